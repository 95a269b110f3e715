"""llama.cpp as a client: does it compute from the GGUF files that we write what we compute?

    python -m tests.stress.llamacpp                    fetch it, write files, compare
    python -m tests.stress.llamacpp --record           the same, with the figures in results/llamacpp.json
    python -m tests.stress.llamacpp --where FOLDER     keep it there, and use it again

npm fetches node-llama-cpp and the llama.cpp that was built for it (Linux on x64), and node runs `llamacpp.mjs`. Nothing is
written into the checkout. Compared are

    ids          of texts that are hard to cut, from the tokenizer that we wrote; and of a conversation, by the chat template
    logits       at every position of three prompts and a text, the next 60 greedy tokens, and the text's perplexity, for each
                 of FILES, which are SmolLM2
    families     the logits of small random models, one for each thing that GGUF's fields say of an architecture, alone and
                 with a LoRA as an adapter's file

In float32 the logits differ by the order of sums, and in Gemma and GPT-2 by llama.cpp's GELU, a table of float16. Where weights
are codes, llama.cpp rounds the inputs of a layer, too: to Q8_0, or to 8 bits with a float32 scale for 256 numbers (Q8_K) where
the weights are a K type; `Rounding` does the same. With codes in one layer alone, this explains the whole difference: to our
logits with rounded inputs it is less than a twentieth of that to ours. With codes in all layers it does not, because rounding
takes a small difference e to about √(e d), where d is the step: after four layers, two models that differ by the order of sums
differ as much as rounded ones differ from others. There the difference must be at most 1.5 times what rounding the inputs
changes in our own logits; and the same codes, decoded and written as F32, must give what we compute.
"""
import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np

import tinypeft as tp
from tests.stress import record
from tinypeft.engine.nn import replace_modules
from tinypeft.interop import write_gguf, write_gguf_adapter
from tinypeft.interop.llama import from_gguf

__all__ = ["FAMILIES", "TEXTS", "Rounding", "compared", "job", "main", "q8_k", "random_texts"]

PACKAGE, BINARY, VERSION = "node-llama-cpp", "@node-llama-cpp/linux-x64", "3.22.1"
CLIENT = Path(__file__).with_suffix(".mjs")
PROMPTS = "The capital of France is", "def fibonacci(n):", "Once upon a time there was"
NEXT, LENGTH = 60, 128                                       # greedy tokens; tokens of the text
ONE = "blocks.15.mlp.down",                                   # its rows hold 1536 numbers, which are whole superblocks
FILES = {"F32": (), "F32, LoRA merged": (), "F32, LoRA as a file": (), "Q8_0 in one layer": ("Q8_0", ONE),
         "Q4_K in one layer": ("Q4_K", ONE), "Q8_0": ("Q8_0", "all"), "Q8_0, decoded": ("Q8_0", "all"),
         "Q4_K_M": ("Q4_K_M", "all"), "Q4_K_M, decoded": ("Q4_K_M", "all")}             # name → type, and layers that have it
YARN = {"rope_kind": "yarn", "rope_factor": 4.0, "rope_context": 16, "rope_high": 32.0}
LLAMA3 = {"rope_kind": "llama3", "rope_factor": 8.0, "rope_context": 8192}
# architecture → what a model has that is not as in `small`
FAMILIES = {
    "llama": [{}, {"d_head": 32}, {"d_head": 8}, {"n_heads": 3, "n_kv_heads": 1, "d_head": 10}, {"tied": False}, {"d_mlp": 5},
              {"norm_eps": 0.01, "rope_theta": 50.0}, {"rope_kind": "linear", "rope_factor": 3.0}, YARN, LLAMA3,
              YARN | {"rope_magnitude": 1.7}],
    "qwen2": [{}, {"n_heads": 8, "n_kv_heads": 1, "d_head": 8}, {"tied": False}, YARN],
    "qwen3": [{}, {"d_head": 32}, {"tied": False}, {"rope_kind": "linear", "rope_factor": 2.0}],
    "gemma3": [{}, {"d_head": 16, "query_scale": 16}, {"window": 8, "global_every": 2}, {"window": 8, "global_every": 1},
               {"window": 100, "n_heads": 3, "n_kv_heads": 1}, {"n_layers": 62, "query_scale": 16, "window": 8}],
    "gpt2": [{}, {"n_heads": 1}, {"d_model": 36, "n_heads": 12}, {"context_length": 40}]}
WITHIN = {"gemma3": 3e-3, "gpt2": 3e-3}                      # of logits; else 1e-5. θ less a tenth: 0.006, window + 1: 0.3
CONVERSATION = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "Four, I think."},
                {"role": "user", "content": "  Thank you!\n"}]
TEXTS = ["", " ", "  ", "\n", "\n\n \t\n", "Hello", " Hello", "Hello  world", "don't, WON'T, I'll've", "1234567890", "3.14e-10",
         "x=1;y=22;z=333", "<|im_start|>user", "<|endoftext|>", "a<|im_end|>b", "naïve café", "e\u0301 \u00e9", "Straße ẞ ﬁ",
         "你好，世界", "こんにちは", "안녕하세요", "שלום عالم", "नमस्ते", "ไทย", "👩‍👩‍👧‍👦🏳️‍🌈", "🇫🇷🇩🇪",
         "\u200b\u200d\ufeff", "\u00a0\u2003\u3000x", "a\u0000b", "\r\n\r", "٣٤٥ ৪৫ Ⅷ ½ ²", "_ __ ___", "(((]]}}", "…—–‘’“”",
         "'s 't 're 'S 'ſ", "https://a.b/c?d=e&f#g", "def f(x):\n    return x\n\n\n", "\t\tif a:\n\t\t\tb", "A" * 300,
         "ab" * 99, " " * 99 + "x", "\U0010ffff\ue000", "¡¿ÀÿŒ", "ǅ ǆ Ǆ", "İıſK", "\x7f\x80\x9f\xad"]
ALPHABETS = [(32, 127), (0, 0x250), (0x300, 0x700), (0x900, 0xE80), (0x2000, 0x2C00), (0x3000, 0x9FFF), (0x1F000, 0x1FA00)]


# -- the library ---------------------------------------------------------------------------------------
class Library:
    """llama.cpp in node-llama-cpp, installed in `where`, unless it is there already."""

    def __init__(self, where: Path): self.where = where

    def run(self, *command: object) -> None:
        """Run a command there; SystemExit with its last lines if it fails."""
        done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.where)
        if done.returncode: sys.exit(f"{' '.join(map(str, command))[:300]} failed:\n{done.stdout[-3000:]}")

    def install(self) -> None:
        if not (self.where / "node_modules" / PACKAGE).exists():
            self.run("npm", "install", "--prefix", ".", "--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund",
                     f"{PACKAGE}@{VERSION}", f"{BINARY}@{VERSION}")
        shutil.copy(CLIENT, self.where)                                       # it finds its modules beside it

    def answers(self, **asked: object) -> dict:
        """What it makes of a file, see `job`: "ids", "next", "release", "chat" if the file has a template, and "logits"
        (positions of all prompts, vocabulary)."""
        (self.where / "job.json").write_text(json.dumps(job(**asked)), "utf-8")
        self.run("node", CLIENT.name, "job.json", "answers.json", "logits.f32")
        found = json.loads((self.where / "answers.json").read_text("utf-8"))
        n = sum(map(len, asked["prompts"]))
        return found | {"logits": np.fromfile(self.where / "logits.f32", "<f4").reshape(n, -1)}


def job(model: Path, prompts: list[np.ndarray], following: list[int], texts: list[str] = (), messages: list[dict] | None = None,
        lora: Path | None = None) -> dict:
    """What `llamacpp.mjs` reads. following: how many greedy tokens after each prompt, at least 1."""
    return {"model": str(model), "lora": lora and str(lora), "context": 512, "texts": [*texts], "messages": messages,
            "prompts": [ids.tolist() for ids in prompts], "next": following}


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


def smollm2(name: str) -> tp.Llama | tp.PeftModel:
    """SmolLM2 as one of FILES holds it, or with a LoRA on it."""
    model = tp.load_pretrained("smollm2")
    if "LoRA" in name: return tuned(model, tp.LoRA(rank=4, targets="all"), 0.02)
    if FILES[name]:
        kind, targets = FILES[name]
        tp.quantize(model, tp.GGUF(kind), targets=targets)
    return tp.dequantize(model) if name.endswith("decoded") else model


def tuned(model: tp.Module, method: object, spread: float) -> tp.PeftModel:
    """A method on a model, with random numbers as if it were trained."""
    result, rng = tp.attach(model, method, rng=0), np.random.default_rng(0)
    for p in result.trainable_parameters(): p.assign(p.data + rng.normal(0, spread, p.shape).astype(p.dtype))
    return result


def small(kind: str, **sizes: object) -> tp.Module:
    """A random model of an architecture, with the tokenizer of the shipped base."""
    tokenizer, rng = tp.load_pretrained().tokenizer, np.random.default_rng(0)
    sizes = {"vocab_size": tokenizer.vocab_size, "context_length": 64, "d_model": 64, "n_layers": 3, "n_heads": 4} | sizes
    grouped = {"n_kv_heads": 2, "d_mlp": 96, "d_head": 16}
    if kind == "gpt2": model = tp.GPT(tp.GPTConfig(**sizes))
    elif kind == "gemma3": model = tp.Gemma(tp.GemmaConfig(**grouped | {"d_head": 32, "query_scale": 32} | sizes))
    else: model = tp.Llama(tp.LlamaConfig(qkv_bias=kind == "qwen2", qk_norm=kind == "qwen3", **grouped | sizes))
    for p in model.parameters(): p.assign(p.data + rng.normal(0, 0.1 if p.data.ndim > 1 else 0.2, p.shape).astype(p.dtype))
    model.tokenizer = tokenizer
    return model


def prompts(tokenizer: object) -> list[np.ndarray]:
    """The ids of PROMPTS, and of the beginning of a text."""
    return [*map(tokenizer.encode, PROMPTS), tokenizer.encode(topics["truth"])[:LENGTH]]


def all_logits(model: tp.Module, asked: list[np.ndarray]) -> np.ndarray:
    """Logits at all positions, (positions, vocabulary)."""
    with tp.no_grad(): return np.concatenate([model(ids[None]).data[0] for ids in asked])


def centred(logits: np.ndarray) -> np.ndarray:
    """Each row less its mean: what softmax does not see is no difference."""
    return logits - logits.mean(1, keepdims=True)


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """‖a − b‖/‖b‖, in two digits."""
    return float(f"{np.linalg.norm(a.ravel() - b.ravel()) / np.linalg.norm(b.ravel()):.2g}")


def perplexity(logits: np.ndarray, ids: np.ndarray) -> float:
    """Of a text, whose logits are the last rows."""
    rows = logits[-len(ids):-1].astype(np.float64)
    losses = np.log(np.exp(rows - rows.max(1, keepdims=True)).sum(1)) + rows.max(1) - rows[np.arange(len(rows)), ids[1:]]
    return round(float(np.exp(losses.mean())), 3)


def same_tokens(model: tp.Module, asked: list[np.ndarray], answers: dict) -> int:
    """How many of the next greedy tokens are llama.cpp's, up to the first other one of each prompt."""
    same = 0
    for ids, theirs in zip(asked, answers["next"], strict=True):
        if len(theirs) < NEXT: continue
        ours = tp.generate(model, ids[None], NEXT, temperature=0)[0, len(ids):]
        same += int(np.cumprod(ours == theirs).sum())
    return same


def compared(model: tp.Module, asked: list[np.ndarray], answers: dict) -> dict[str, float]:
    """Logits and greedy tokens of a model beside llama.cpp's; of one with codes, also with its inputs rounded."""
    logits = all_logits(model, asked)
    theirs, ours = centred(answers["logits"]), centred(logits)
    row = {"largest difference": float(f"{np.abs(ours - theirs).max():.2g}"), "relative": relative(theirs, ours),
           "same greedy tokens": same_tokens(model, asked, answers),
           "perplexity": [perplexity(ours, asked[-1]), perplexity(theirs, asked[-1])]}
    layers = {path: m for path, m in model.named_modules() if isinstance(m, tp.QuantizedLinear)}
    if not layers: return row
    replace_modules(model, {path: Rounding(m) for path, m in layers.items()})
    rounded = centred(all_logits(model, asked))
    return row | {"relative to ours with rounded inputs": relative(theirs, rounded),
                  "rounding alone": relative(rounded, ours)}


def checked_files(library: Library) -> dict:
    """Write each of FILES, and compare what it becomes on both sides."""
    texts, files, ids, path, lora = [*PROMPTS, *TEXTS, *random_texts(500)], {}, {}, library.where / "model.gguf", None
    for name in FILES:
        model = smollm2(name)
        if name.endswith("as a file"):
            write_gguf_adapter(lora := library.where / "lora.gguf", model)
            write_gguf(path, model.detach())
        if "LoRA" in name: model = model.merge()
        if not lora:
            write_gguf(path, model)
            model = from_gguf(path, quantized=True)
        asked = prompts(model.tokenizer)
        answers = library.answers(model=path, lora=lora, texts=[] if ids else texts, messages=None if ids else CONVERSATION,
                                  prompts=asked, following=[*[NEXT] * len(PROMPTS), 1])
        if not ids:
            wrong = [text for text, theirs in zip(texts, answers["ids"], strict=True)
                     if not np.array_equal(model.tokenizer.encode(text), theirs)]
            chat = "no template in the file"
            if "chat" in answers:
                same = np.array_equal(answers["chat"], tp.chat_prompt(model.tokenizer, CONVERSATION))
                chat = "the same ids" if same else "other ids"
            ids = {"texts": len(texts), "cut otherwise": wrong, "conversation": chat}
        files[name] = {"MB": round(path.stat().st_size / 1e6, 1), **compared(model, asked, answers)}
        print(name, files[name], flush=True)
        lora = None
    return {"release": answers["release"], "ids": ids, "greedy tokens": NEXT * len(PROMPTS), "files": files}


def checked_families(library: Library) -> dict[str, list[float]]:
    """For each architecture how far the logits of its models are apart: [alone, with a LoRA as a file] of each."""
    path, lora, found = library.where / "model.gguf", library.where / "lora.gguf", {}
    for kind, variants in FAMILIES.items():
        found[kind] = []
        for sizes in variants:
            model = small(kind, **sizes)
            ids = np.random.default_rng(1).integers(0, model.config.vocab_size, 30)
            write_gguf(path, model)
            alone = library.answers(model=path, prompts=[ids], following=[1])["logits"]
            row = [relative(centred(alone), centred(all_logits(model, [ids])))]
            model = tuned(model, tp.LoRA(rank=3, targets="all", rank_pattern={"value": 5}), 0.1)
            write_gguf_adapter(lora, model)
            beside = library.answers(model=path, lora=lora, prompts=[ids], following=[1])["logits"]
            found[kind].append([*row, relative(centred(beside), centred(all_logits(model, [ids])))])
            print(kind, sizes, found[kind][-1], flush=True)
    return found


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
    for kind, rows in figures["families"].items():
        if np.max(rows) > WITHIN.get(kind, 1e-5): wrong.append(f"{kind}: the logits differ")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write results/llamacpp.json")
    parser.add_argument("--where", type=Path, metavar="FOLDER", help="of the packages (default: one that is deleted)")
    args = parser.parse_args()
    where = args.where or Path(tempfile.mkdtemp(prefix="tinypeft-llamacpp-"))
    where.mkdir(parents=True, exist_ok=True)
    try:
        library = Library(where)
        library.install()
        figures = {"package": f"{PACKAGE} {VERSION}", **checked_files(library), "families": checked_families(library)}
    finally:
        if not args.where: shutil.rmtree(where, ignore_errors=True)
    figures["faults"] = faults(figures)
    print(json.dumps(figures, indent=1, ensure_ascii=False))
    if args.record: print(record("llamacpp", figures))
    sys.exit(bool(figures["faults"]))


if __name__ == "__main__":
    main()
