"""Damaged and hostile files of every kind: each ends in a named error, or in what the file really says.

    damage       bytes flipped, cut off, repeated, moved; of any file of the kind
    forgery      a value or an array changed by somebody who knows the format; checksums are made again
    attacks      files built to take memory, to hang, or to get in where they should not: see `attacks.py`

What must hold (`judged`): only ValueError and its subclasses, KeyError, FileNotFoundError; never longer than 5 seconds,
never more memory than ten times the file's size and 64 MiB; no number that is not finite; nothing changed in a model
after a refusal. A damaged file of tinypeft's own formats never loads with other numbers, because it has a checksum;
Hugging Face's formats have none, so there a changed weight is a weight.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import copy
import dataclasses
import json
import multiprocessing
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

import tinypeft as tp
from tests.stress import record
from tests.stress.attacks import attacks, gguf_content, save_gguf, save_raw
from tests.toys import Noise
from tinypeft.files import fingerprint, load_arrays
from tinypeft.files.safetensors import write_safetensors
from tinypeft.interop import write_gguf
from tinypeft.interop.llama import from_gguf
from tinypeft.models.gemma import Gemma, GemmaConfig
from tinypeft.models.llama import Llama, LlamaConfig
from tinypeft.text.tokenizer import BPETokenizer

NAMED = ValueError, KeyError, FileNotFoundError
SECONDS, TIMES, SPARE, ADDRESSES = 5.0, 10, 64 << 20, 3 << 30  # per file; ADDRESSES: the child's whole address space
TOKENS = np.random.default_rng(1).integers(0, 37, (2, 7))
CONFIG = tp.GPTConfig(vocab_size=37, context_length=24, d_model=16, n_layers=2, n_heads=4)
RANKS = (
    tp.LoRA(rank=2),
    tp.DyLoRA(rank=4),
    tp.AdaLoRA(init_rank=4, target_rank=2, delta_t=1),
    tp.PrefixTuning(length=3),
    tp.BottleneckAdapter(bottleneck=4),
    tp.PTuning((2, "target")),
    tp.FullFineTuning(targets=("bias",)),
)


# -- the kinds: what a folder holds, and what is computed from it ----------------------------------------------------
def model() -> tp.GPT:
    return tp.GPT(CONFIG, rng=0)


def logits(m: tp.GPT) -> np.ndarray:
    with tp.no_grad(), np.errstate(all="ignore"):
        return m(TOKENS).data


def moved(m):
    """Nothing at its start: what is 0 in a new method would hide errors."""
    rng = np.random.default_rng(2)
    for p in m.trainable_parameters():
        p.assign((p.data + 0.05 * rng.standard_normal(p.shape)).astype(p.dtype))
    return m


TEXT = "the cat sat on the mat and the dog on the cat " * 3


def tokenizer() -> BPETokenizer:
    return BPETokenizer.train(TEXT, 262)


SCHEMES = [
    lambda m: tp.quantize(m, tp.NF4(block_size=16, double_quant=True)),
    lambda m: tp.quantize(m, tp.Uniform(3)),
    lambda m: tp.quantize(m, tp.FloatFormat("E4M3")),
    lambda m: tp.quantize(m, tp.LLMInt8(), TOKENS),
    lambda m: tp.quantize(m, tp.W8A8(activations="static"), TOKENS),
    lambda m: tp.quantize(m, tp.GPTQ(group_size=8, act_order=True), TOKENS),
    lambda m: tp.quantize(m, tp.AWQ(group_size=8), TOKENS),
]


def settings(file):
    return dict(steps=6, batch_size=2, checkpoint=file, progress=False, workers=1)


class Kind:
    """A kind of file: `make(folder, i)` writes variant i, `read(folder)` reads it, sets `seen` to the model, and returns
    what it computes. own: the kind has a checksum."""

    own, variants = True, 1

    def __init__(self):
        self.base, self.seen = model(), None

    def numbers(self):
        """All numbers of what was read, decoded where they are codes."""
        if self.seen is None:
            return []
        dense = [m.dense_weight() for _, m in self.seen.named_modules() if hasattr(m, "dense_weight")]
        return dense + [a for a in self.seen.state_dict().values() if a.dtype.kind == "f"]

    def make(self, folder: Path, i: int) -> None:
        raise NotImplementedError

    def read(self, folder: Path) -> list[np.ndarray]:
        raise NotImplementedError

    def state(self) -> str:
        return fingerprint(self.base.state_dict())


class HuggingFace(Kind):
    own = False

    def make(self, folder, i):
        m = tp.GPT(dataclasses.replace(CONFIG, vocab_size=262), rng=0)
        m.tokenizer = tokenizer()
        tp.save_model(m, folder)

    def read(self, folder):
        m = self.seen = tp.load_model(folder)
        return [logits(m), *([] if m.tokenizer is None else [m.tokenizer.encode(TEXT)])]


FAMILIES = [
    Llama(LlamaConfig(37, 24, 16, 2, 4, 2, 12, 6, 100.0, tied=False), rng=0),
    Llama(LlamaConfig(37, 24, 16, 2, 4, 1, 12, 6, 100.0, qk_norm=True), rng=0),
    Gemma(GemmaConfig(37, 24, 16, 3, 4, 2, 12, 6, 4, 3, 100.0, 10.0, 6), rng=0),
]


class OtherFamilies(HuggingFace):
    """Folders of Llama, Qwen3 and Gemma 3, without tokenizers."""

    variants = len(FAMILIES)

    def make(self, folder, i):
        tp.save_model(FAMILIES[i], folder)


class Tokenizer(Kind):
    own = False

    def make(self, folder, i):
        tokenizer().save(folder / "tokenizer.json")

    def read(self, folder):
        return [BPETokenizer.load(folder / "tokenizer.json").encode(TEXT)]


class GGUF(Kind):
    """A Llama with a tokenizer, its weights in floating point, and in blocks of two types."""

    own, variants = False, 3

    def make(self, folder, i):
        m = Llama(LlamaConfig(262, 24, 32, n_layers=2, n_heads=4, n_kv_heads=2, d_head=8, d_mlp=64), rng=0)
        m.tokenizer = tokenizer()
        if i:
            tp.quantize(m, tp.GGUF(["Q4_0", "Q8_0"][i - 1]))
        write_gguf(folder / "model.gguf", m)

    def read(self, folder):
        decoded = from_gguf(folder / "model.gguf")
        m = self.seen = from_gguf(folder / "model.gguf", quantized=True)
        assert np.array_equal(logits(m), logits(decoded), equal_nan=True)
        return [logits(m), *([] if m.tokenizer is None else [m.tokenizer.encode(TEXT)])]


class Adapter(Kind):
    variants, file = len(RANKS), "adapter.safetensors"

    def make(self, folder, i):
        tuned = moved(tp.attach(model(), RANKS[i], head=3))
        tuned.save(folder)

    def read(self, folder):
        tuned = self.seen = tp.load_adapter(self.base, folder)
        try:
            return [logits(tuned)]
        finally:
            tuned.detach()

    def state(self):
        return f"{super().state()} {self.base.attached} {self.base.head}"


class SeveralAdapters(Adapter):
    """Two methods on one model; the first is a LoRA."""

    variants = 2

    def make(self, folder, i):
        second = [tp.PrefixTuning(3, hidden=4), tp.BottleneckAdapter(4)][i]
        moved(tp.attach(model(), tp.LoRA(rank=2), second, head=3)).save(folder)


class PeftFolder(Adapter):
    own, variants = False, 2

    def make(self, folder, i):
        moved(tp.attach(model(), [tp.LoRA(rank=2), tp.AdaLoRA(init_rank=4, target_rank=2)][i])).save(
            folder, format="peft"
        )


class Prediction(Kind):
    """task.json, which lies beside an adapter."""

    own, variants = False, 3

    def made(self, folder, i):
        (folder / "own.txt").write_text("\n\n".join(f"{n} cats on the mat {n}" for n in range(99)), "utf-8")
        (folder / "own.csv").write_text("text,label\n" + "".join(f"{n} {TEXT},{n % 2}\n" for n in range(12)), "utf-8")
        rows = ({"prompt": f"{n} cats", "answer": f"{n} mats"} for n in range(12))
        (folder / "own.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
        return self.tasks(folder)[i]

    def tasks(self, folder):
        t = tokenizer()
        makers = [(tp.tasks.text, "txt"), (tp.tasks.labelled, "csv"), (tp.tasks.pairs, "jsonl")]
        return [make(path, t) for make, suffix in makers if (path := folder / f"own.{suffix}").exists()]

    def make(self, folder, i):
        with tempfile.TemporaryDirectory() as other:
            tp.tasks.save_task(self.made(Path(other), i), folder)

    def read(self, folder):
        task = tp.tasks.load_task(folder, tokenizer())
        return [np.frombuffer(json.dumps(task.form).encode("utf-8", "surrogatepass"), np.uint8)]


class OwnData(Prediction):
    """Files of one's own: text, CSV, JSONL."""

    def make(self, folder, i):
        self.made(folder, i)
        for path in folder.iterdir():
            if path.suffix != (".txt", ".csv", ".jsonl")[i]:
                path.unlink()

    def read(self, folder):
        (task,) = self.tasks(folder)
        return [np.concatenate(batch[:1]) for batch in task.batches("test", 99)]


class Pretrained(Kind):
    file = "weights.safetensors"

    def make(self, folder, i):
        m = tp.GPT(dataclasses.replace(CONFIG, vocab_size=262), rng=0)
        tokenizer().save(folder / "tokenizer.json")
        half = {n: a.astype(np.float16) for n, a in m.state_dict().items()}
        save_raw(folder / self.file, half, {"config": dataclasses.asdict(m.config)})

    def read(self, folder):
        m = self.seen = tp.load_model(folder)
        return [logits(m), m.tokenizer.encode(TEXT)]


class Quantized(Kind):
    variants = len(SCHEMES)

    def make(self, folder, i):
        tp.save_quantized(SCHEMES[i](model()), folder / "model.safetensors")

    def read(self, folder):
        self.seen = tp.load_quantized(folder / "model.safetensors")
        return [logits(self.seen)]


class Checkpoint(Kind):
    def make(self, folder, i):
        tp.train(model(), Noise(), **settings(folder / "run.safetensors"), stop_after=4)

    def read(self, folder):
        m = self.base
        history = tp.train(m, Noise(), **settings(folder / "run.safetensors"))
        result = [np.array(history.loss), logits(m)]
        self.base = model()
        return result


KINDS: dict[str, type[Kind]] = {
    "huggingface": HuggingFace,
    "other families": OtherFamilies,
    "tokenizer": Tokenizer,
    "gguf": GGUF,
    "peft": PeftFolder,
    "adapter": Adapter,
    "adapter, several": SeveralAdapters,
    "prediction": Prediction,
    "own data": OwnData,
    "pretrained": Pretrained,
    "quantized": Quantized,
    "checkpoint": Checkpoint,
}


# -- damage and forgery ----------------------------------------------------------------------------------------------
def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """One damage of the bytes of a file; half of them in the first kilobyte, where the header is."""
    n = len(data)
    at = int(rng.integers(0, max(1, min(n, 1024) if rng.random() < 0.5 else n)))
    length, what = int(rng.integers(1, 64)), rng.integers(8)
    if what == 0:
        return data[:at]
    if what == 1:
        return data[:at] + data[at + length :]
    if what == 2:
        return data[:at] + data[at : at + length] + data[at:]
    if what == 3:
        return data[:at] + bytes(min(length, n - at)) + data[at + length :]
    if what == 4:
        return data[:at] + rng.bytes(min(length, n - at)) + data[at + length :]
    if what == 5:
        return data + rng.bytes(length)
    flipped = bytearray(data)
    for _ in range(1 if what == 6 else 4):
        if n:
            flipped[int(rng.integers(0, n)) if _ else min(at, n - 1)] ^= 1 << int(rng.integers(8))
    return bytes(flipped)


NASTY = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    3,
    2**22,
    2**31,
    2**40,
    2**63,
    10**400,
    0.5,
    -0.5,
    1e-300,
    1e308,
    "",
    "x",
    "forward",
    "é",
    "../../x",
    [],
    {},
    [0],
    [[]],
    {"a": 1},
    "NaN",
    float("nan"),
    float("inf"),
    [1, 2, 3, 4],
    "training",
    [-1, 4],
    "uint8",
    "\ud800",
    "x" * 5000,
]


def nodes(value, path=()):
    yield path
    for key, child in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from nodes(child, (*path, key))


def forged(value: object, rng: np.random.Generator) -> object:
    """A JSON value with one node replaced, taken away, renamed or moved."""
    value = copy.deepcopy(value)
    paths = [p for p in nodes(value) if p]
    if not paths:
        return NASTY[rng.integers(len(NASTY))]
    path = paths[rng.integers(len(paths))]
    owner = value
    for key in path[:-1]:
        owner = owner[key]
    what = rng.integers(6)
    if what == 0:
        del owner[path[-1]]
    elif what == 1 and isinstance(owner, dict):
        owner[str(NASTY[rng.integers(len(NASTY))])[:40]] = owner.pop(path[-1])
    elif what == 2:
        other = value
        for key in paths[rng.integers(len(paths))]:
            other = other[key]
        owner[path[-1]] = copy.deepcopy(other)
    elif what == 3 and isinstance(owner[path[-1]], (int, float)):
        owner[path[-1]] *= int(rng.choice([-1, 2, 10, 1 << 20]))
    else:
        owner[path[-1]] = NASTY[rng.integers(len(NASTY))]
    return value


def forged_arrays(arrays: dict, rng: np.random.Generator) -> dict:
    """Named arrays, one of them changed."""
    arrays = dict(arrays)
    if not arrays:
        return {"x": np.zeros(3)}
    name = list(arrays)[rng.integers(len(arrays))]
    a, what = arrays[name], rng.integers(12)
    flat = lambda value: np.concatenate([np.full(1, value, np.float64), a.reshape(-1)[1:].astype(np.float64)]).reshape(
        a.shape
    )
    if what == 0 and a.size:
        arrays[name] = flat(np.nan).astype(a.dtype if a.dtype.kind == "f" else float)
    elif what == 1 and a.size:
        arrays[name] = flat(np.inf).astype(a.dtype if a.dtype.kind == "f" else float)
    elif what == 2:
        arrays[name] = a.astype(np.complex64)
    elif what == 3:
        arrays[name] = a.astype(np.int32)
    elif what == 4:
        arrays[name] = a.T
    elif what == 5:
        arrays[name] = a.reshape(-1)
    elif what == 6:
        del arrays[name]
    elif what == 7:
        arrays[str(NASTY[rng.integers(18, 22)])] = arrays.pop(name)
    elif what == 8:
        arrays["extra"] = a
    elif what == 9:
        arrays[name] = a[:0] if a.ndim else a.reshape(1)
    elif what == 10:
        arrays[name] = a.astype(np.float64)
    else:
        arrays[name] = np.repeat(a.reshape(1, -1), 2, 0)
    return arrays


def forged_gguf(path: Path, rng: np.random.Generator) -> None:
    """Change a field of a GGUF file, or a tensor's name, type, shape or blocks."""
    fields, tensors = gguf_content(path)
    if rng.random() < 0.5:
        return save_gguf(path, forged(fields, rng), tensors)
    name, what = list(tensors)[rng.integers(len(tensors))], rng.integers(7)
    kind, shape, octets = tensors.pop(name)
    if what == 0:
        kind = int(rng.integers(0, 32))
    elif what == 1:
        shape = tuple(int(n) for n in rng.permutation(shape))
    elif what == 2:
        shape = tuple(int(n) for n in np.array(shape) * rng.choice([0, 1, 2, 1 << 31], len(shape)))
    elif what == 3:
        octets = np.frombuffer(damage(octets.tobytes(), rng), np.uint8)
    elif what == 4:
        octets = octets.copy()
        octets[rng.integers(0, octets.size, 20)] = rng.choice(np.uint8([0, 0x7C, 0x7F, 0x80, 0xFF]), 20)
    elif what == 5:
        name = str(NASTY[rng.integers(17, 22)])
    if what < 6:
        tensors[name] = kind, shape, octets
    save_gguf(path, fields, tensors)


def forge(path: Path, kind: Kind, rng: np.random.Generator) -> None:
    """Change a file as somebody would who knows the format."""
    if path.suffix == ".gguf":
        return forged_gguf(path, rng)
    if path.suffix == ".json":
        text = json.dumps(forged(json.loads(path.read_text("utf-8")), rng))
        if rng.random() < 0.02:
            text = "[" * 100_000
        return path.write_text(text, "utf-8")
    if path.suffix in (".txt", ".csv", ".jsonl"):
        return path.write_bytes(damage(path.read_bytes(), rng))
    if not kind.own:  # a safetensors file of somebody else's
        arrays = dict(tp.interop.read_safetensors(path))
        return write_safetensors(
            path, forged_arrays({n: np.array(a) for n, a in arrays.items()}, rng), {"format": "pt"}
        )
    arrays, meta = load_arrays(path)
    if rng.random() < 0.6:
        meta = forged(meta, rng)
    else:
        arrays = forged_arrays(arrays, rng)
    save_raw(path, arrays, meta)


# -- judging one file ------------------------------------------------------------------------------------------------
class Overtime(BaseException):
    """A file took more than SECONDS."""


def _alarm(*_):
    raise Overtime


def size_of(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def memory(start: bool = False) -> int:
    """The most bytes held so far: of what Python allocated since `start`, or else of the process."""
    if not tracemalloc.is_tracing(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    if start: tracemalloc.reset_peak()
    return tracemalloc.get_traced_memory()[not start]


def judged(kind: Kind, folder: Path, original: list[np.ndarray] | None, damaged: bool) -> str:
    """ "refused", "same", "other" (a forger's file that is as good as any), or "BAD: …"."""
    before, start = kind.state(), time.monotonic()
    held = memory(start=True)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            warnings.simplefilter("ignore", UserWarning)
            result, outcome = kind.read(folder), "other"
    except NAMED as e:
        result, outcome = None, f"refused by {type(e).__name__}"
    except Overtime:
        return f"BAD: more than {SECONDS} s"
    except BaseException as e:
        return f"BAD: {type(e).__name__}: {str(e)[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    peak = memory() - held
    if peak > TIMES * size_of(folder) + SPARE:
        return f"BAD: {peak >> 20} MiB for a file of {size_of(folder):,} bytes"
    if time.monotonic() - start > SECONDS:
        return f"BAD: {time.monotonic() - start:.1f} s"
    if result is None:
        return outcome if kind.state() == before else "BAD: refused, but the model has changed"
    if not all(np.isfinite(a).all() for a in kind.numbers()):
        return "BAD: numbers that are not finite"
    if not all(np.isfinite(a).all() for a in result):
        outcome = "other, of numbers so large that the model overflows"
    alike = original is not None and len(result) == len(original) and all(map(np.array_equal, result, original))
    if alike:
        return "same"
    if damaged and kind.own:
        return "BAD: a damaged file loads with other numbers"
    return outcome


def one(kind: Kind, pristine: Path, work: Path, original: list[np.ndarray], seed: list[int]) -> str:
    """Spoil a copy of a folder and read it. `seed` repeats it."""
    rng = np.random.default_rng(seed)
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(pristine, work)
    files = sorted(f for f in work.iterdir())
    path, damaged = files[rng.integers(len(files))], rng.random() < 0.5
    try:
        if damaged:
            path.write_bytes(damage(path.read_bytes(), rng))
        else:
            forge(path, kind, rng)
    except (UnicodeEncodeError, ValueError, OverflowError, TypeError, AttributeError):
        return "not written"
    own = kind.own and path.suffix != ".json"
    return judged(kind, work, original, damaged and own)


def in_child(work: Callable[[], object], seconds: float, traced: bool = False) -> object:
    """`work()` in a child process with a bounded address space; TimeoutError or RuntimeError if it does not end well."""
    end, start = os.pipe()
    if not (pid := os.fork()):
        os.close(end)
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
        signal.signal(signal.SIGALRM, _alarm)
        if traced: tracemalloc.start()             # five times slower, but exact
        with contextlib.suppress(BaseException), os.fdopen(start, "wb") as f:
            f.write(json.dumps(work()).encode())
        os._exit(0)
    os.close(start)
    got, until = b"", time.monotonic() + seconds
    with os.fdopen(end, "rb", buffering=0) as f:
        while True:
            ready, _, _ = select.select([f], [], [], max(0.0, until - time.monotonic()))
            part = f.read(1 << 16) if ready else None
            if not part:
                break
            got += part
    if part is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise TimeoutError(f"no end after {seconds} s")
    os.waitpid(pid, 0)
    if not got:
        raise RuntimeError("the child died")
    return json.loads(got)


def damaged_files(name: str, count: int, seed: int = 0) -> dict[str, int]:
    """How `count` spoiled files of one kind ended: outcome → number."""
    with tempfile.TemporaryDirectory() as folder:
        folder, cls = Path(folder), KINDS[name]
        pristine(name, folder)

        def chunk(first, n):
            outcomes, kind = collections.Counter(), cls()
            for j in range(first, first + n):
                i = j % cls.variants
                work = folder / f"work{first}"
                if j < first + cls.variants:
                    shutil.rmtree(work, ignore_errors=True)
                    shutil.copytree(folder / f"{i}", work)
                    originals[i] = kind.read(work)
                outcome = one(kind, folder / f"{i}", work, originals[i], [seed, j])
                outcomes[outcome if not outcome.startswith("BAD") else f"{outcome} [{name}, seed {[seed, j]}]"] += 1
            return outcomes

        outcomes, originals = collections.Counter(), {}
        for first in range(0, count, 200):
            n = min(200, count - first)
            try:
                outcomes.update(in_child(lambda first=first, n=n: chunk(first, n), 600))
            except (TimeoutError, RuntimeError) as e:
                outcomes[f"BAD: {e} [{name}, files from {first}]"] += 1
        return dict(outcomes)


def pristine(name: str, folder: Path) -> None:
    """Write every variant of a kind to folder/0, folder/1, …"""
    for i in range(KINDS[name].variants):
        (folder / f"{i}").mkdir(parents=True)
        KINDS[name]().make(folder / f"{i}", i)


def attacked(every: int = 1) -> dict[str, int]:
    """How the attacks ended, each in a child of its own: outcome → number. every: read only each `every`-th."""
    outcomes = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name in KINDS:
            pristine(name, folder / name)
        kinds = {name: cls() for name, cls in KINDS.items()}
        for i, (name, of, change) in enumerate(attacks()):
            if i % every:
                continue
            shutil.rmtree(work := folder / "work", ignore_errors=True)
            shutil.copytree(folder / of / "0", work)
            change(work)
            try:
                outcome = in_child(lambda of=of, work=work: judged(kinds[of], work, None, False), 3 * SECONDS, traced=True)
            except (TimeoutError, RuntimeError) as e:
                outcome = f"BAD: {e}"
            if not outcome.startswith(("refused", "BAD")):
                outcome = f"BAD: it loads ({outcome})"
            if list(folder.rglob("sprung*")) or Path("sprung").exists():
                outcome = "BAD: code ran, or a file was written"
            outcomes[f"{outcome} [{of}: {name}]" if outcome.startswith("BAD") else outcome] += 1
    return dict(outcomes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_020, help="spoiled files of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    start, each = time.time(), -(-args.count // len(KINDS))
    with concurrent.futures.ProcessPoolExecutor(args.jobs, multiprocessing.get_context("fork")) as pool:
        attacks_end = pool.submit(attacked)
        kinds = dict(zip(KINDS, pool.map(damaged_files, KINDS, [each] * len(KINDS), [args.seed] * len(KINDS)), strict=True))
        ends = attacks_end.result()
    for name, table in kinds.items(): print(f"{name:20} {summed(table)}")
    bad = [
        f"{outcome} × {n}"
        for table in (ends, *kinds.values())
        for outcome, n in table.items()
        if outcome.startswith("BAD")
    ]
    print(f"{'attacks':20} {summed(ends)}", *bad, sep="\n")
    figures = {
        "files": sum(sum(table.values()) for table in kinds.values()),
        "attacks": sum(ends.values()),
        "bad": bad,
        "by kind": {name: summed(table) for name, table in kinds.items()},
        "of the attacks": summed(ends),
        "limits": f"{SECONDS} s, {TIMES} × the file + {SPARE >> 20} MiB",
        "seconds": round(time.time() - start),
    }
    if args.record:
        print(record("files", figures))
    sys.exit(bool(bad))


def summed(table: dict[str, int]) -> dict[str, int]:
    """Outcomes with all bad ones under one name."""
    sums = collections.Counter()
    for outcome, n in table.items():
        sums["bad" if outcome.startswith("BAD") else outcome] += n
    return dict(sums.most_common())


if __name__ == "__main__":
    main()
