"""llama.cpp as a client: does it compute from the GGUF files that we write what we compute?

    python -m tests.stress.llamacpp                    build it, write files of SmolLM2, compare
    python -m tests.stress.llamacpp --record           the same, with the figures in results/llamacpp.json
    python -m tests.stress.llamacpp --where FOLDER     keep the build there, and use it again

pip fetches the source package of llama-cpp-python, and CMake builds its llama.cpp: ten minutes of one processor. Nothing is
written into the checkout. Compared are

    ids          of texts that are hard to cut, from the tokenizer that we wrote; and of a conversation, by the chat template
    logits       at every position of three prompts, and the next 60 greedy tokens, for each of FILES
    importance   what llama-imatrix finds on a text and `read_importance` reads, with the mean squares of `capture`

In float32 the logits differ by the order of sums. Where weights are codes, llama.cpp rounds the inputs of a layer, too: to
Q8_0, or to 8 bits with a float32 scale for 256 numbers (Q8_K) where the weights are a K type; `Rounding` does the same. With
codes in one layer alone, this explains the whole difference: to our logits with rounded inputs it is less than a twentieth
of that to ours. With codes in all layers it does not, because rounding takes a small difference e to about √(e d), where d is
the step: after four layers, two models that differ by the order of sums differ as much as rounded ones differ from others.
There the difference must be at most 1.5 times what rounding the inputs changes in our own logits.
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
from pathlib import Path

import numpy as np

import tinypeft as tp
from tests.stress import record
from tests.toys import linear_paths
from tinypeft.engine.nn import replace_modules
from tinypeft.interop import write_gguf
from tinypeft.interop.gguf_reader import read_gguf
from tinypeft.interop.importance import read_importance
from tinypeft.interop.llama import from_gguf
from tinypeft.quant.calibration import capture

__all__ = ["Rounding", "TEXTS", "compared", "main", "q8_k", "random_texts"]

PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
NEEDS = ["scikit-build-core", "cmake", "ninja", "numpy", "jinja2", "diskcache", "typing-extensions"]
OPTIONS = {"CMAKE_BUILD_TYPE": "Release", "BUILD_SHARED_LIBS": "ON", "LLAMA_OPENSSL": "OFF", "LLAMA_BUILD_TESTS": "OFF",
           "LLAMA_BUILD_EXAMPLES": "OFF", "LLAMA_BUILD_SERVER": "OFF", "LLAMA_BUILD_APP": "OFF"}
PROMPTS = "The capital of France is", "def fibonacci(n):", "Once upon a time there was"
NEXT, CONTEXT, PIECES = 60, 128, 4                           # greedy tokens; tokens of a piece of text, and pieces
ONE = "blocks.15.mlp.down",                                   # its rows hold 1536 numbers, which are whole superblocks
FILES = {"F32": (), "F32, LoRA merged": (), "Q8_0 in one layer": ("Q8_0", ONE), "Q4_K in one layer": ("Q4_K", ONE),
         "Q8_0": ("Q8_0", "all"), "Q4_K_M": ("Q4_K_M", "all")}                          # name → type, and layers that have it
CONVERSATION = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "Four, I think."},
                {"role": "user", "content": "  Thank you!\n"}]
TEXTS = ["", " ", "  ", "\n", "\n\n \t\n", "Hello", " Hello", "Hello  world", "don't, WON'T, I'll've", "1234567890", "3.14e-10",
         "x=1;y=22;z=333", "<|im_start|>user", "<|endoftext|>", "a<|im_end|>b", "naïve café", "e\u0301 \u00e9", "Straße ẞ ﬁ",
         "你好，世界", "こんにちは", "안녕하세요", "שלום عالم", "नमस्ते", "ไทย", "👩‍👩‍👧‍👦🏳️‍🌈", "🇫🇷🇩🇪",
         "\u200b\u200d\ufeff", "\u00a0\u2003\u3000x", "a\u0000b", "\r\n\r", "٣٤٥ ৪৫ Ⅷ ½ ²", "_ __ ___", "(((]]}}", "…—–‘’“”",
         "'s 't 're 'S 'ſ", "https://a.b/c?d=e&f#g", "def f(x):\n    return x\n\n\n", "\t\tif a:\n\t\t\tb", "A" * 300,
         "ab" * 99, " " * 99 + "x", "\U0010ffff\ue000", "¡¿ÀÿŒ", "ǅ ǆ Ǆ", "İıſK", "\x7f\x80\x9f\xad"]
ALPHABETS = [(32, 127), (0, 0x250), (0x300, 0x700), (0x900, 0xE80), (0x2000, 0x2C00), (0x3000, 0x9FFF), (0x1F000, 0x1FA00)]
CLIENT = """
import json, sys
import numpy as np
from llama_cpp import Llama
from llama_cpp.llama_chat_format import Jinja2ChatFormatter
job, found = json.load(open(sys.argv[1])), {}
llm = Llama(job["model"], n_ctx=512, logits_all=True, n_threads=1, n_threads_batch=1, type_k=0, type_v=0, flash_attn=False,
            verbose=False)
encode = lambda text, special: llm.tokenize(text.encode(), add_bos=False, special=special)
for i, text in enumerate(job["texts"]): found[f"ids {i}"] = encode(text, False)
if template := llm.metadata.get("tokenizer.chat_template"):
    token = lambda name: llm.detokenize([int(llm.metadata[f"tokenizer.ggml.{name}_token_id"])], special=True).decode()
    formatter = Jinja2ChatFormatter(template, eos_token=token("eos"), bos_token=token("bos"))
    found["chat"] = encode(formatter(messages=job["messages"]).prompt, True)
for i, text in enumerate(job["prompts"]):
    llm.reset()
    llm.eval(encode(text, False))
    found[f"logits {i}"], tokens = llm.scores[:llm.n_tokens].copy(), []
    while len(tokens) < job["next"]:
        tokens.append(int(llm.scores[llm.n_tokens - 1].argmax()))
        llm.eval(tokens[-1:])
    found[f"next {i}"] = tokens
np.savez(sys.argv[2], **found)
"""


# -- the library ---------------------------------------------------------------------------------------
class Library:
    """llama.cpp and its Python module, built from the source package in `where`, unless they are there already."""

    def __init__(self, where: Path):
        self.where, self.python = where, where / "venv/bin/python"
        self.source, self.built = where / f"{PACKAGE.replace('-', '_')}-{VERSION}", where / "build"

    def run(self, *command: object, **options: object) -> None:
        """Run a command; SystemExit with its last lines if it fails."""
        done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
        if done.returncode: sys.exit(f"{' '.join(map(str, command))[:300]} failed:\n{done.stdout[-3000:]}")

    def build(self) -> None:
        if not self.python.exists():
            venv.create(self.where / "venv", with_pip=True)
            self.run(self.python, "-m", "pip", "install", "-q", *NEEDS)
        if not self.source.exists():
            self.run(self.python, "-m", "pip", "download", "-q", "--no-deps", "--no-build-isolation", "--no-binary", ":all:",
                     "-d", self.where, f"{PACKAGE}=={VERSION}")
            with tarfile.open(f"{self.source}.tar.gz") as tar: tar.extractall(self.where, filter="data")
        cmake = self.python.with_name("cmake")
        if not (self.built / "bin/llama-imatrix").exists():
            self.run(cmake, "-S", self.source / "vendor/llama.cpp", "-B", self.built, "-G", "Ninja",
                     f"-DCMAKE_MAKE_PROGRAM={self.python.with_name('ninja')}", *(f"-D{k}={v}" for k, v in OPTIONS.items()))
            jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", "2")
            self.run(cmake, "--build", self.built, "--parallel", jobs, "--target", "llama", "llama-imatrix")

    def answers(self, model: Path, texts: list[str], prompts: list[str]) -> dict[str, np.ndarray]:
        """What it makes of a file: arrays "ids i", "logits i", "next i", and "chat" if the file has a template."""
        job, out = self.where / "job.json", self.where / "answers.npz"
        job.write_text(json.dumps({"model": str(model), "texts": texts, "messages": CONVERSATION, "prompts": prompts,
                                   "next": NEXT}), "utf-8")
        self.run(self.python, "-c", CLIENT, job, out, env=os.environ | {
            "PYTHONPATH": str(self.source), "LLAMA_CPP_LIB_PATH": str(self.built / "bin"), "OMP_NUM_THREADS": "1"})
        with np.load(out) as answers: return dict(answers)

    def importance(self, model: Path, text: str, out: Path) -> Path:
        """The importance file of the first PIECES pieces of a text; in the older form if it is called .dat."""
        (self.where / "text.txt").write_text(text, "utf-8")
        self.run(self.built / "bin/llama-imatrix", "-m", model, "-f", self.where / "text.txt", "-o", out, "-c", CONTEXT, "-b",
                 CONTEXT, "--chunks", PIECES, "-t", 1, "-ctk", "f32", "-ctv", "f32", "-fa", "off", "--no-ppl",
                 "--output-format", out.suffix[1:])
        return out


# -- our side ------------------------------------------------------------------------------------------
def q8_k(x: np.ndarray) -> np.ndarray:
    """x (…, 256 n) as 8 bits hold it, with one scale in float32 for 256 numbers: the largest becomes −127."""
    blocks = x.reshape(-1, 256)
    top = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
    per_unit = np.float32(-127) / np.where(top == 0, 1, top)
    return (np.minimum(np.rint(per_unit * blocks), 127) * (top != 0) / per_unit).reshape(x.shape).astype(np.float32)


class Rounding(tp.Module):
    """A quantized layer that rounds its input first, as llama.cpp does."""

    def __init__(self, base: tp.QuantizedLinear): self.base = base

    def forward(self, x: tp.Tensor) -> tp.Tensor:
        is_k_type = isinstance(self.base.weight.scale, tp.QTensor)
        return self.base(tp.Tensor(q8_k(x.data) if is_k_type else tp.GGUF("Q8_0").quantize(x.data).dequantize()))


def random_texts(n: int, seed: int = 0) -> list[str]:
    """Texts of up to 40 characters; those of each part of a text come from one alphabet."""
    rng, texts = np.random.default_rng(seed), []
    for _ in range(n):
        parts = [rng.integers(*ALPHABETS[rng.integers(len(ALPHABETS))], rng.integers(1, 9)) for _ in range(rng.integers(1, 6))]
        texts.append("".join(chr(c) for part in parts for c in part))
    return texts


def smollm2(name: str) -> tp.Llama:
    """SmolLM2 as one of FILES holds it."""
    model = tp.load_pretrained("smollm2")
    if name.endswith("merged"):
        tuned, rng = tp.attach(model, tp.LoRA(rank=4, targets="all"), rng=0), np.random.default_rng(0)
        for p in tuned.trainable_parameters(): p.assign(p.data + rng.normal(0, 0.02, p.shape).astype(p.dtype))
        return tuned.merge()
    if FILES[name]:
        kind, targets = FILES[name]
        tp.quantize(model, tp.GGUF(kind), targets=targets)
    return model


def all_logits(model: tp.Llama) -> np.ndarray:
    """Logits at all positions of PROMPTS, (positions, vocabulary), each row less its mean."""
    with tp.no_grad(): logits = np.concatenate([model(model.tokenizer.encode(text)[None]).data[0] for text in PROMPTS])
    return logits - logits.mean(1, keepdims=True)


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """‖a − b‖/‖b‖, in two digits."""
    return float(f"{np.linalg.norm(a.ravel() - b.ravel()) / np.linalg.norm(b.ravel()):.2g}")


def same_tokens(model: tp.Llama, answers: dict[str, np.ndarray]) -> int:
    """How many of the next greedy tokens are llama.cpp's, up to the first other one of each prompt."""
    same = 0
    for i, text in enumerate(PROMPTS):
        tokens = model.tokenizer.encode(text)
        ours = tp.generate(model, tokens[None], NEXT, temperature=0)[0, len(tokens):]
        same += int(np.cumprod(ours == answers[f"next {i}"]).sum())
    return same


def compared(model: tp.Llama, answers: dict[str, np.ndarray]) -> dict[str, float]:
    """Logits and greedy tokens of a model beside llama.cpp's; of one with codes, also with its inputs rounded."""
    theirs = np.concatenate([answers[f"logits {i}"] for i in range(len(PROMPTS))])
    theirs, ours = theirs - theirs.mean(1, keepdims=True), all_logits(model)
    row = {"largest difference": float(f"{np.abs(ours - theirs).max():.2g}"), "relative": relative(theirs, ours),
           "same greedy tokens": same_tokens(model, answers)}
    layers = {path: m for path, m in model.named_modules() if isinstance(m, tp.QuantizedLinear)}
    if not layers: return row
    replace_modules(model, {path: Rounding(m) for path, m in layers.items()})
    rounded = all_logits(model)
    return row | {"relative to ours with rounded inputs": relative(theirs, rounded),
                  "rounding alone": relative(rounded, ours)}


def checked_files(library: Library) -> dict:
    """Write each of FILES, and compare what it becomes on both sides."""
    texts, files, ids, path = TEXTS + random_texts(500), {}, {}, library.where / "model.gguf"
    for name in FILES:
        write_gguf(path, smollm2(name))
        model = from_gguf(path, quantized=True)
        answers = library.answers(path, [] if ids else texts, list(PROMPTS))
        if not ids:
            wrong = [text for i, text in enumerate(texts)
                     if not np.array_equal(model.tokenizer.encode(text), answers[f"ids {i}"])]
            chat = "no template in the file"
            if "chat" in answers:
                same = np.array_equal(answers["chat"], tp.chat_prompt(model.tokenizer, CONVERSATION))
                chat = "the same ids" if same else "other ids"
            ids = {"texts": len(texts), "cut otherwise": wrong, "conversation": chat}
        files[name] = {"MB": round(path.stat().st_size / 1e6, 1), **compared(model, answers)}
        print(name, files[name], flush=True)
    return {"ids": ids, "greedy tokens": NEXT * len(PROMPTS), "files": files}


def checked_importance(library: Library) -> dict:
    """Σ x² / n that llama-imatrix and `capture` find on the same pieces of a text, and the codes that follow."""
    model, path = smollm2("F32"), library.where / "model.gguf"
    write_gguf(path, model)
    text = re.sub(r"<[^>]*>|[|`#]", " ", (Path(tp.__file__).parent / "interop/README.md").read_text("utf-8"))
    tokens = model.tokenizer.encode(text)[:PIECES * CONTEXT].reshape(PIECES, CONTEXT)
    layers = linear_paths(model)
    seen = capture(model, tokens, layers)
    worst, forms = 0.0, {}
    for form in ".gguf", ".dat":
        file = library.importance(path, text, library.where / f"imatrix{form}")
        forms[form] = read_importance(file, model, layers)
        for layer, h in forms[form].items():
            expected = seen[layer].mean_square
            worst = max(worst, float((np.abs(h - expected) / (expected + expected.mean())).max()))
    between = max(float(np.abs(forms[".gguf"][n] / np.maximum(forms[".dat"][n], 1e-30) - 1).max()) for n in layers)
    shown = read_gguf(library.where / "imatrix.gguf")
    return {"layers": len(layers), "tokens": tokens.size, "tensors of the file": len(shown),
            "largest relative difference": float(f"{worst:.2g}"), "between the two forms": float(f"{between:.2g}")}


def faults(figures: dict) -> list[str]:
    """What is wrong in the figures, in words."""
    wrong = [f"the ids of {text!r} differ" for text in figures["ids"]["cut otherwise"]]
    if figures["ids"]["conversation"] == "other ids": wrong.append("the ids of the conversation differ")
    for name, row in figures["files"].items():
        if "rounding alone" not in row:
            if row["relative"] > 1e-4: wrong.append(f"{name}: the logits differ")
            if row["same greedy tokens"] < figures["greedy tokens"]: wrong.append(f"{name}: other greedy tokens")
        elif "one layer" in name:
            if row["relative to ours with rounded inputs"] > row["relative"] / 20:
                wrong.append(f"{name}: rounded inputs do not explain the logits")
        elif row["relative"] > 1.5 * row["rounding alone"]: wrong.append(f"{name}: the logits differ by more than rounding")
    if figures["importance"]["largest relative difference"] > 1e-3: wrong.append("the importances differ")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write results/llamacpp.json")
    parser.add_argument("--where", type=Path, metavar="FOLDER", help="of the build (default: one that is deleted)")
    args = parser.parse_args()
    where = args.where or Path(tempfile.mkdtemp(prefix="tinypeft-llamacpp-"))
    where.mkdir(parents=True, exist_ok=True)
    try:
        start, library = time.monotonic(), Library(where)
        library.build()
        print(f"built in {time.monotonic() - start:.0f} s", flush=True)
        figures = {"package": f"{PACKAGE} {VERSION}", **checked_files(library), "importance": checked_importance(library)}
    finally:
        if not args.where: shutil.rmtree(where, ignore_errors=True)
    figures["faults"] = faults(figures)
    print(json.dumps(figures, indent=1, ensure_ascii=False))
    if args.record: print(record("llamacpp", figures))
    sys.exit(bool(figures["faults"]))


if __name__ == "__main__":
    main()
