"""Damaged and hostile files of every kind: each ends in a named error, or in what the file really says.

    damage       bytes flipped, cut off, repeated, moved; of any file of the kind
    forgery      a value or an array changed by somebody who knows the format; checksums are made again
    attacks      files built to take memory, to hang, or to get in where they should not: see `attacks.py`
    length       a value, or a name, of 3,000 characters in each field: see `lengthened`

What must hold (`judged`): only ValueError and its subclasses, KeyError, FileNotFoundError, with a message of at most 700
characters; never longer than 5 seconds of the processor, or 20 by the clock, because a machine may be busy; never more
memory than ten times the file's size and 64 MiB; no number that is not finite; nothing changed in a model after a refusal.
A damaged file of tinypeft's own formats never loads with other numbers, because it has a checksum; Hugging Face's formats
have none, so there a changed weight is a weight.
"""
import argparse
import collections
import concurrent.futures
import contextlib
import copy
import dataclasses
import functools
import io
import itertools
import json
import math
import multiprocessing
import re
import shutil
import signal
import sys
import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import tinypeft as tp
from tests.schemes import ROWS
from tests.stress import record
from tests.stress.attacks import attacks, dat, gguf_content, save_gguf, save_raw
from tests.toys import Noise, linear_paths
from tinypeft.files import fingerprint, load_arrays
from tinypeft.files.safetensors import write_safetensors
from tinypeft.interop import write_gguf
from tinypeft.interop.gguf_types import TYPES
from tinypeft.interop.importance import entries_of_dat, name_of, read_importance
from tinypeft.interop.llama import from_gguf
from tinypeft.models.gemma import Gemma, GemmaConfig
from tinypeft.models.llama import Llama, LlamaConfig
from tinypeft.text.tokenizer import BPETokenizer

NAMED = ValueError, KeyError, FileNotFoundError
SECONDS, CLOCK, TIMES, SPARE, ADDRESSES = 5.0, 20.0, 10, 64 << 20, 3 << 30     # per file; ADDRESSES: of the whole child
MESSAGE = 700                                                  # characters, the path of the folder apart
TOKENS = np.random.default_rng(1).integers(0, 37, (2, 7))
CONFIG = tp.GPTConfig(vocab_size=37, context_length=24, d_model=16, n_layers=2, n_heads=4)
TEXT = "the cat sat on the mat and the dog on the cat " * 3


# -- what the files hold -----------------------------------------------------------------------------------------------
def model(vocab_size: int = 37) -> tp.GPT:
    return tp.GPT(dataclasses.replace(CONFIG, vocab_size=vocab_size), rng=0)


def tokenizer() -> BPETokenizer:
    return BPETokenizer.train(TEXT, 262)


def with_tokenizer(m):
    m.tokenizer = tokenizer()
    return m


def logits(m: tp.GPT) -> np.ndarray:
    with tp.no_grad(), np.errstate(all="ignore"): return m(TOKENS).data


def moved(m):
    """Nothing at its start: what is 0 in a new method would hide errors."""
    rng = np.random.default_rng(2)
    for p in m.trainable_parameters(): p.assign((p.data + 0.05 * rng.standard_normal(p.shape)).astype(p.dtype))
    return m


METHODS = [(tp.LoRA(rank=2),), (tp.DyLoRA(rank=4),), (tp.AdaLoRA(init_rank=4, target_rank=2, delta_t=1),),
           (tp.PrefixTuning(length=3),), (tp.BottleneckAdapter(bottleneck=4),), (tp.PTuning((2, "target")),),
           (tp.FullFineTuning(targets=("bias",)),)]
SEVERAL = [(tp.LoRA(rank=2), tp.PrefixTuning(3, hidden=4)), (tp.LoRA(rank=2), tp.BottleneckAdapter(4))]
PEFT = [tp.LoRA(rank=2), tp.AdaLoRA(init_rank=4, target_rank=2)]
FAMILIES = [Llama(LlamaConfig(37, 24, 16, 2, 4, 2, 12, 6, 100.0, tied=False), rng=0),
            Llama(LlamaConfig(37, 24, 16, 2, 4, 1, 12, 6, 100.0, qk_norm=True), rng=0),
            Gemma(GemmaConfig(37, 24, 16, 3, 4, 2, 12, 6, 4, 3, 100.0, 10.0, 6), rng=0)]
SCHEMES = [tp.W8A8(activations="static"), *(row.small for row in ROWS.values() if not row.small.trains and not row.sizes)]


# -- the kinds -------------------------------------------------------------------------------------------------------
@dataclasses.dataclass
class Kind:
    """A kind of file: `make(folder, i)` writes variant i; `read(folder, base)` returns the model that it reads, or None,
    and what is computed from it. own: it has a checksum."""
    make: Callable[[Path, int], object]
    read: Callable[[Path, tp.GPT], tuple[Any, list[np.ndarray]]]
    variants: int = 1
    own: bool = True


def adapter(methods, **options):
    return lambda folder, i: moved(tp.attach(model(), *methods[i], **options)).save(folder)


def read_adapter(folder, base):
    tuned = tp.load_adapter(base, folder)
    return tuned, [logits(tuned)]


def encoded(m):
    return [logits(m), *([] if m.tokenizer is None else [m.tokenizer.encode(TEXT)])]


def read_model(folder, base):
    m = tp.load_model(folder)
    return m, encoded(m)


def make_gguf(folder, i):
    """A Llama with a tokenizer, its weights in floating point, and in blocks of two types."""
    config = LlamaConfig(262, 24, 32, n_layers=2, n_heads=4, n_kv_heads=2, d_head=8, d_mlp=64)
    m = with_tokenizer(Llama(config, rng=0))
    if i: tp.quantize(m, tp.GGUF(["Q4_0", "Q8_0"][i - 1]))
    write_gguf(folder / "model.gguf", m)


def read_gguf(folder, base):
    """The codes are the numbers that the file is read as without them, bit for bit."""
    decoded = from_gguf(folder / "model.gguf").state_dict()
    m = from_gguf(folder / "model.gguf", quantized=True)
    codes = tp.dequantize(m).state_dict()
    assert codes.keys() == decoded.keys()
    for name, array in decoded.items(): assert np.array_equal(codes[name], array, equal_nan=True), name
    return m, encoded(m)


def make_blocks(name):
    """Makes a Llama whose layers hold random blocks of a type of GGUF. Bytes below 40 are small numbers as scales, too."""
    number, kind = next((number, kind) for number, kind in TYPES.items() if kind.name == name)
    config = LlamaConfig(37, 24, 256, n_layers=1, n_heads=32, n_kv_heads=1, d_head=8, d_mlp=256)

    def make(folder, i):
        write_gguf(path := folder / "model.gguf", Llama(config, rng=0))
        fields, tensors = gguf_content(path)
        for tensor, (_, shape, _) in tensors.items():
            if not tensor.startswith("blk") or len(shape) < 2: continue
            octets = np.random.default_rng(0).integers(0, 40, (math.prod(shape) // kind.weights, kind.octets), np.uint8)
            if name == "MXFP4": octets[:, 0] += 80                              # an exponent
            tensors[tensor] = number, shape, octets
        save_gguf(path, fields, tensors)
    return make


def make_stretched(**fields):
    """Makes a Llama with other angles, or biases, and its tokenizer."""
    config = LlamaConfig(262, 24, 32, n_layers=1, n_heads=2, n_kv_heads=1, d_head=16, d_mlp=64, rope_theta=5e5, **fields)
    return lambda folder, i: write_gguf(folder / "model.gguf", with_tokenizer(Llama(config, rng=0)))


def sums(m):
    """Σ x² of the inputs of each layer, by GGUF's names of the weights."""
    return {name_of(path, m): s.mean_square * np.float32(14) for path, s in tp.capture(m, TOKENS).items()}


def make_gguf_importance(folder, i):
    tensors = {}
    for name, x in sums(model()).items():
        tensors[f"{name}.in_sum2"] = 0, x.shape, x.view(np.uint8)
        tensors[f"{name}.counts"] = 0, (1,), np.float32([14]).view(np.uint8)
    save_gguf(folder / "model.gguf", {"general.type": "imatrix", "imatrix.datasets": ["a.txt"]}, tensors)


def make_dat_importance(folder, i): (folder / "imatrix.dat").write_bytes(dat(sums(model()), 14))


def read_importances(folder, base):
    (path,) = folder.iterdir()
    return None, list(read_importance(path, base, linear_paths(base)).values())


def make_data(folder, i):
    """A file of one's own: text, CSV or JSONL."""
    rows = [json.dumps({"prompt": f"{n} cats", "answer": f"{n} mats"}) for n in range(12)]
    content = ["\n\n".join(f"{n} cats on the mat {n}" for n in range(99)),
               "text,label\n" + "".join(f"{n} {TEXT},{n % 2}\n" for n in range(12)), "\n".join(rows) + "\n"]
    (folder / ("own.txt", "own.csv", "own.jsonl")[i]).write_text(content[i], "utf-8")


def task(folder):
    """The task of the file that is there."""
    makers = {"txt": tp.tasks.text, "csv": tp.tasks.labelled, "jsonl": tp.tasks.pairs}
    (path,) = folder.iterdir()
    return makers[path.suffix[1:]](path, tokenizer())


def read_data(folder, base):
    return None, [np.concatenate(batch[:1]) for batch in task(folder).batches("test", 99)]


def make_prediction(folder, i):
    """task.json, which lies beside an adapter."""
    with tempfile.TemporaryDirectory() as other:
        make_data(Path(other), i)
        tp.tasks.save_task(task(Path(other)), folder)


def read_prediction(folder, base):
    form = json.dumps(tp.tasks.load_task(folder, tokenizer()).form)
    return None, [np.frombuffer(form.encode("utf-8", "surrogatepass"), np.uint8)]


def make_tokenizer(folder, i): tokenizer().save(folder / "tokenizer.json")
def read_tokenizer(folder, base): return None, [BPETokenizer.load(folder / "tokenizer.json").encode(TEXT)]


def make_pretrained(folder, i):
    make_tokenizer(folder, i)
    m = model(262)
    half = {name: a.astype(np.float16) for name, a in m.state_dict().items()}
    save_raw(folder / "weights.safetensors", half, {"config": dataclasses.asdict(m.config)})


def read_pretrained(folder, base):
    m = tp.load_model(folder)
    return m, [logits(m), m.tokenizer.encode(TEXT)]


def make_quantized(folder, i): tp.save_quantized(tp.quantize(model(), SCHEMES[i], TOKENS), folder / "model.safetensors")


def read_quantized(folder, base):
    m = tp.load_quantized(folder / "model.safetensors")
    return m, [logits(m)]


def train(m, folder, **options):
    file = folder / "run.safetensors"
    return tp.train(m, Noise(), steps=6, batch_size=2, checkpoint=file, progress=False, workers=1, **options)


def make_checkpoint(folder, i): train(model(), folder, stop_after=4)


def read_checkpoint(folder, base):
    history = train(base, folder)
    return None, [np.array(history.loss), logits(base)]


BLOCKS = "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "MXFP4"           # types beside those of "gguf"
KINDS: dict[str, Kind] = {
    "huggingface": Kind(lambda f, i: tp.save_model(with_tokenizer(model(262)), f), read_model, own=False),
    "other families": Kind(lambda f, i: tp.save_model(FAMILIES[i], f), read_model, len(FAMILIES), own=False),
    "tokenizer": Kind(make_tokenizer, read_tokenizer, own=False),
    "gguf": Kind(make_gguf, read_gguf, 3, own=False),
    **{f"gguf, {name}": Kind(make_blocks(name), read_gguf, own=False) for name in BLOCKS},
    "gguf, Llama 3": Kind(make_stretched(rope_kind="llama3", rope_factor=32.0, rope_context=8192), read_gguf, own=False),
    "gguf, Qwen 2": Kind(make_stretched(rope_kind="linear", rope_factor=2.0, qkv_bias=True), read_gguf, own=False),
    "importance, gguf": Kind(make_gguf_importance, read_importances, own=False),
    "importance, dat": Kind(make_dat_importance, read_importances, own=False),
    "peft": Kind(lambda f, i: moved(tp.attach(model(), PEFT[i])).save(f, format="peft"), read_adapter, len(PEFT), own=False),
    "adapter": Kind(adapter(METHODS, head=3), read_adapter, len(METHODS)),
    "adapter, several": Kind(adapter(SEVERAL, head=3), read_adapter, len(SEVERAL)),
    "prediction": Kind(make_prediction, read_prediction, 3, own=False),
    "own data": Kind(make_data, read_data, 3, own=False),
    "pretrained": Kind(make_pretrained, read_pretrained),
    "quantized": Kind(make_quantized, read_quantized, len(SCHEMES)),
    "checkpoint": Kind(make_checkpoint, read_checkpoint),
}


# -- damage and forgery ----------------------------------------------------------------------------------------------
def one_of(choices, rng): return choices[rng.integers(len(choices))]


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """One damage of the bytes of a file; half of them in the first kilobyte, where the header is."""
    n = len(data)
    at = int(rng.integers(0, max(1, min(n, 1024) if rng.random() < 0.5 else n)))
    length = int(rng.integers(1, 64))
    before, part, after = data[:at], data[at : at + length], data[at + length :]
    match rng.integers(8):
        case 0: return before
        case 1: return before + after
        case 2: return before + part + part + after
        case 3: return before + bytes(len(part)) + after
        case 4: return before + rng.bytes(len(part)) + after
        case 5: return data + rng.bytes(length)
        case what:
            flipped, places = bytearray(data), [at, *rng.integers(0, max(n, 1), 0 if what == 6 else 3)]
            for place in places if n else (): flipped[place] ^= 1 << int(rng.integers(8))
            return bytes(flipped)


NAMES = ["", "x", "forward", "é", "../../x"]
NASTY = [None, True, False, 0, -1, 1, 2, 3, 2**22, 2**31, 2**40, 2**63, 10**400, 0.5, -0.5, 1e-300, 1e308, *NAMES,
         [], {}, [0], [[]], {"a": 1}, "NaN", float("nan"), float("inf"), [1, 2, 3, 4], "training", [-1, 4], "uint8",
         "\ud800", "x" * 5000]


def nodes(value, path=()):
    """The path of a JSON value and of each in it."""
    yield path
    for key, child in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from nodes(child, (*path, key))


def at(value, path): return functools.reduce(lambda owner, key: owner[key], path, value)


def forged(value: object, rng: np.random.Generator) -> object:
    """A JSON value with one node replaced, taken away, renamed or moved."""
    value = copy.deepcopy(value)
    paths = [path for path in nodes(value) if path]
    if not paths: return one_of(NASTY, rng)
    *path, key = one_of(paths, rng)
    owner = at(value, path)
    match rng.integers(6):
        case 0: del owner[key]
        case 1 if isinstance(owner, dict): owner[str(one_of(NASTY, rng))[:40]] = owner.pop(key)
        case 2: owner[key] = copy.deepcopy(at(value, one_of(paths, rng)))
        case 3 if isinstance(owner[key], (int, float)): owner[key] *= int(rng.choice([-1, 2, 10, 1 << 20]))
        case _: owner[key] = one_of(NASTY, rng)
    return value


def starting_with(x, a):
    """The array `a` with x as its first number."""
    dtype = a.dtype if a.dtype.kind == "f" else float
    return np.append(x, a.reshape(-1)[1:]).astype(dtype).reshape(a.shape)


def forged_arrays(arrays: dict, rng: np.random.Generator) -> dict:
    """Named arrays, one of them changed."""
    arrays = dict(arrays)
    if not arrays: return {"x": np.zeros(3)}
    name = one_of(list(arrays), rng)
    a = arrays.pop(name)
    match rng.integers(12):
        case 0 | 1 as k if a.size: changed = {name: starting_with([np.nan, np.inf][k], a)}
        case 2: changed = {name: a.astype(np.complex64)}
        case 3: changed = {name: a.astype(np.int32)}
        case 4: changed = {name: a.T}
        case 5: changed = {name: a.reshape(-1)}
        case 6: changed = {}
        case 7: changed = {one_of(NAMES, rng): a}
        case 8: changed = {name: a, "extra": a}
        case 9: changed = {name: a[:0] if a.ndim else a.reshape(1)}
        case 10: changed = {name: a.astype(np.float64)}
        case _: changed = {name: np.repeat(a.reshape(1, -1), 2, 0)}
    return arrays | changed


def forged_gguf(path: Path, rng: np.random.Generator) -> None:
    """Change a field of a GGUF file, or a tensor's name, type, shape or blocks."""
    fields, tensors = gguf_content(path)
    if rng.random() < 0.5: return save_gguf(path, forged(fields, rng), tensors)
    name = one_of(list(tensors), rng)
    kind, shape, octets = tensors.pop(name)
    what = rng.integers(7)
    match what:
        case 0: kind = int(rng.integers(0, 32))
        case 1: shape = tuple(int(n) for n in rng.permutation(shape))
        case 2: shape = tuple(int(n) for n in np.array(shape) * rng.choice([0, 1, 2, 1 << 31], len(shape)))
        case 3: octets = np.frombuffer(damage(octets.tobytes(), rng), np.uint8)
        case 4:
            octets = octets.copy()
            octets[rng.integers(0, octets.size, 20)] = rng.choice(np.uint8([0, 0x7C, 0x7F, 0x80, 0xFF]), 20)
        case 5: name = one_of(NAMES, rng)
    if what < 6: tensors[name] = kind, shape, octets
    save_gguf(path, fields, tensors)


def forged_dat(path: Path, rng: np.random.Generator) -> None:
    """Change a name, the numbers or the count of an importance file of the older form."""
    entries = {name: numbers for name, (numbers, _) in entries_of_dat(io.BytesIO(path.read_bytes())).items()}
    if rng.random() < 0.2: path.write_bytes(dat(entries, one_of([0, -1, 1, 2**31 - 1, -2**31], rng)))
    else: path.write_bytes(dat(forged_arrays(entries, rng), 14))


def forge(path: Path, kind: Kind, rng: np.random.Generator) -> None:
    """Change a file as somebody would who knows the format."""
    if path.suffix == ".gguf": return forged_gguf(path, rng)
    if path.suffix == ".dat": return forged_dat(path, rng)
    if path.suffix in (".txt", ".csv", ".jsonl"): return path.write_bytes(damage(path.read_bytes(), rng))
    if path.suffix == ".json":
        text = json.dumps(forged(json.loads(path.read_text("utf-8")), rng))
        return path.write_text("[" * 100_000 if rng.random() < 0.02 else text, "utf-8")
    if not kind.own:                                                        # a safetensors file of somebody else's
        arrays = {name: np.array(a) for name, a in dict(tp.interop.read_safetensors(path)).items()}
        return write_safetensors(path, forged_arrays(arrays, rng), {"format": "pt"})
    arrays, meta = load_arrays(path)
    if rng.random() < 0.6: meta = forged(meta, rng)
    else: arrays = forged_arrays(arrays, rng)
    save_raw(path, arrays, meta)


# -- long values -----------------------------------------------------------------------------------------------------
LONG = "a" * 3000
LONG_VALUES = [LONG, [1] * 3000, {LONG: 1}, 10**2900, [LONG], [[LONG, LONG]]]


def lengthened(value: object, path: tuple = ()) -> Iterator[object]:
    """Copies of a JSON value, in each of which another value is long, or a name. Of a list, and of an object that holds only
    objects and lists, the first two values are tried."""
    inner = at(value, path)
    for long in LONG_VALUES if path else ():
        changed = copy.deepcopy(value)
        at(changed, path[:-1])[path[-1]] = long
        yield changed
    if isinstance(inner, dict):
        for removed in [None, *inner][:4]:
            changed = copy.deepcopy(value)
            at(changed, path)[LONG] = at(changed, path).pop(removed, 1)
            yield changed
    keys = list(inner) if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ()
    alike = isinstance(inner, list) or all(isinstance(at(value, (*path, key)), (dict, list)) for key in keys) or len(keys) > 30
    for key in keys[:2] if alike else keys: yield from lengthened(value, (*path, key))


def lengthened_files(path: Path, own: bool) -> Iterator[Callable[[Path], object]]:
    """What writes a file with a long value, for each value."""
    if path.suffix == ".json":
        for value in lengthened(json.loads(path.read_text("utf-8"))):
            yield lambda p, value=value: p.write_text(json.dumps(value), "utf-8")
    elif path.suffix == ".gguf":
        fields, tensors = gguf_content(path)
        for value in lengthened(fields): yield lambda p, value=value: save_gguf(p, value, tensors)
        for name in list(tensors)[:3]:
            yield lambda p, name=name: save_gguf(p, fields, {LONG if n == name else n: a for n, a in tensors.items()})
    elif path.suffix == ".safetensors":
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        for value in lengthened(json.loads(data[8:start])):
            text = json.dumps(value).encode()
            yield lambda p, text=text: p.write_bytes(len(text).to_bytes(8, "little") + text + data[start:])
        if not own: return
        arrays, meta = load_arrays(path)
        for value in lengthened(meta): yield lambda p, value=value: save_raw(p, arrays, value)
        for name in list(arrays)[:3]:
            for new in LONG, f"{name}.{LONG}", f"{name.partition('/')[0]}/{LONG}":
                renamed = {new if n == name else n: a for n, a in arrays.items()}
                yield lambda p, renamed=renamed: save_raw(p, renamed, meta)
    elif path.suffix == ".dat":
        entries = {name: numbers for name, (numbers, _) in entries_of_dat(io.BytesIO(path.read_bytes())).items()}
        for name, long in itertools.product(list(entries)[:3], [LONG, f"blk.{10**2900}.x", f"blk.0.{LONG}"]):
            renamed = {long if n == name else n: a for n, a in entries.items()}
            yield lambda p, renamed=renamed: p.write_bytes(dat(renamed, 14))
    else:                                                                   # data of one's own
        text = path.read_text("utf-8")
        for match in list(re.finditer(r"\w+|[^\w\s]|\n", text))[:30]:
            for long in LONG, f'"{LONG}':
                changed = text[:match.start()] + long + text[match.end():]
                yield lambda p, changed=changed: p.write_text(changed, "utf-8")


# -- judging one file ------------------------------------------------------------------------------------------------
class Overtime(BaseException):
    """A file took more than CLOCK seconds."""


def _alarm(*_): raise Overtime


def size_of(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def memory(start: bool = False) -> int:
    """The most bytes held so far: of what Python allocated since `start`, or else of the process."""
    import resource
    if not tracemalloc.is_tracing(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    if start: tracemalloc.reset_peak()
    return tracemalloc.get_traced_memory()[not start]


def state(m: tp.GPT) -> str:
    return f"{fingerprint(m.state_dict())} {m.attached} {m.head}"


def numbers(m) -> list[np.ndarray]:
    """All numbers of a model, decoded where they are codes."""
    layers = [layer for _, layer in m.named_modules() if not isinstance(layer, tp.peft.Wrapper)]
    dense = [layer.dense_weight() for layer in layers if hasattr(layer, "dense_weight")]
    return dense + [a for a in m.state_dict().values() if a.dtype.kind == "f"]


def judged(kind: Kind, folder: Path, original: list[np.ndarray] | None, damaged: bool) -> str:
    """"refused by …", "same", "other" (a forger's file that is as good as any), or "BAD: …"."""
    base, start = model(), time.process_time()
    before, held = state(base), memory(start=True)
    signal.setitimer(signal.ITIMER_REAL, CLOCK)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            warnings.simplefilter("ignore", UserWarning)
            loaded, result = kind.read(folder, base)
            refusal = None
    except NAMED as e:
        refusal, length = f"refused by {type(e).__name__}", len(str(e).replace(str(folder), ""))
        if length > MESSAGE: return f"BAD: a message of {length:,} characters: {str(e)[:200]}"
    except Overtime: return f"BAD: more than {CLOCK} s"
    except BaseException as e: return f"BAD: {type(e).__name__}: {str(e)[:200]}"
    finally: signal.setitimer(signal.ITIMER_REAL, 0)
    peak, seconds = memory() - held, time.process_time() - start
    if peak > TIMES * size_of(folder) + SPARE: return f"BAD: {peak >> 20} MiB for a file of {size_of(folder):,} bytes"
    if seconds > SECONDS: return f"BAD: {seconds:.1f} s"
    if refusal: return refusal if state(base) == before else "BAD: refused, but the model has changed"
    if loaded is not None and not all(np.isfinite(a).all() for a in numbers(loaded)): return "BAD: numbers that are not finite"
    if original is not None and len(result) == len(original) and all(map(np.array_equal, result, original)): return "same"
    if damaged and kind.own: return "BAD: a damaged file loads with other numbers"
    return "other" if all(np.isfinite(a).all() for a in result) else "other, of numbers so large that the model overflows"


def one(kind: Kind, pristine: Path, work: Path, original: list[np.ndarray], seed: list[int]) -> str:
    """Spoil a copy of a folder and read it. `seed` repeats it."""
    rng = np.random.default_rng(seed)
    copied(pristine, work)
    path, damaged = one_of(sorted(work.iterdir()), rng), rng.random() < 0.5
    try:
        if damaged: path.write_bytes(damage(path.read_bytes(), rng))
        else: forge(path, kind, rng)
    except (ValueError, OverflowError, TypeError, AttributeError):
        return "not written"
    return judged(kind, work, original, damaged and path.suffix != ".json")


def long_files(name: str, every: int = 1) -> dict[str, int]:
    """How files with long values ended: outcome → number. every: read only each `every`-th, but eight at least."""
    kind = KINDS[name]

    def read(folder):
        writers = [(i, path.name, write) for i in range(kind.variants) for path in sorted((folder / f"{i}").iterdir())
                   for write in lengthened_files(path, kind.own)]
        outcomes = collections.Counter()
        for number, (i, file, write) in list(enumerate(writers))[::min(every, -(-len(writers) // 8))]:
            work = copied(folder / f"{i}", folder / "work")
            try: write(work / file)
            except (ValueError, OverflowError): outcome = "not written"
            else: outcome = judged(kind, work, None, False)
            outcomes[f"{outcome} [{name}, {number}]" if outcome.startswith("BAD") else outcome] += 1
        return dict(outcomes)

    with tempfile.TemporaryDirectory() as folder:
        pristine(name, Path(folder))
        return in_child(functools.partial(read, Path(folder)), 600)


def copied(folder: Path, work: Path) -> Path:
    """`work`, which is now a copy of `folder`."""
    shutil.rmtree(work, ignore_errors=True)
    return shutil.copytree(folder, work)


def in_child(work: Callable[[], object], seconds: float, traced: bool = False) -> object:
    """`work()` in a child process with a bounded address space; TimeoutError or RuntimeError if it does not end well."""
    import resource  # not above: other tests import this module on Windows, too
    fork = multiprocessing.get_context("fork")

    def child():
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
        signal.signal(signal.SIGALRM, _alarm)
        if traced: tracemalloc.start()             # five times slower, but exact
        with contextlib.suppress(BaseException): answers.send(work())
    receiver, answers = fork.Pipe(duplex=False)
    process = fork.Process(target=child)
    process.start()
    answers.close()
    try:
        if not receiver.poll(seconds): raise TimeoutError(f"no end after {seconds} s")
        return receiver.recv()
    except EOFError:
        raise RuntimeError("the child died") from None
    finally:
        process.kill()
        process.join()


# -- the search --------------------------------------------------------------------------------------------------------
def pristine(name: str, folder: Path) -> None:
    """Write every variant of a kind to folder/0, folder/1, …"""
    for i in range(KINDS[name].variants):
        (folder / f"{i}").mkdir(parents=True)
        KINDS[name].make(folder / f"{i}", i)


def damaged_files(name: str, count: int, seed: int = 0) -> dict[str, int]:
    """How `count` spoiled files of one kind ended: outcome → number."""
    kind, outcomes = KINDS[name], collections.Counter()

    def chunk(folder, numbers):
        ends, work = collections.Counter(), folder / "work"
        originals = [kind.read(copied(folder / f"{i}", work), model())[1] for i in range(kind.variants)]
        for j in numbers:
            i = j % kind.variants
            outcome = one(kind, folder / f"{i}", work, originals[i], [seed, j])
            ends[f"{outcome} [{name}, seed {[seed, j]}]" if outcome.startswith("BAD") else outcome] += 1
        return ends

    with tempfile.TemporaryDirectory() as folder:
        pristine(name, Path(folder))
        for first in range(0, count, 200):
            numbers = range(first, min(first + 200, count))
            try: outcomes.update(in_child(functools.partial(chunk, Path(folder), numbers), 600))
            except (TimeoutError, RuntimeError) as e: outcomes[f"BAD: {e} [{name}, files from {first}]"] += 1
    return dict(outcomes)


def attacked(every: int = 1) -> dict[str, int]:
    """How the attacks ended, each in a child of its own: outcome → number. every: read only each `every`-th."""
    outcomes = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name in KINDS: pristine(name, folder / name)
        for name, of, change in list(attacks())[::every]:
            change(work := copied(folder / of / "0", folder / "work"))
            try: outcome = in_child(functools.partial(judged, KINDS[of], work, None, False), 2 * CLOCK, traced=True)
            except (TimeoutError, RuntimeError) as e: outcome = f"BAD: {e}"
            if not outcome.startswith(("refused", "BAD")): outcome = f"BAD: it loads ({outcome})"
            if list(folder.rglob("sprung*")) or Path("sprung").exists(): outcome = "BAD: code ran, or a file was written"
            outcomes[f"{outcome} [{of}: {name}]" if outcome.startswith("BAD") else outcome] += 1
    return dict(outcomes)


def summed(table: dict[str, int]) -> dict[str, int]:
    """Outcomes with all bad ones under one name."""
    sums = collections.Counter()
    for outcome, n in table.items(): sums["bad" if outcome.startswith("BAD") else outcome] += n
    return dict(sums.most_common())


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
    tables = kinds | {"attacks": ends}
    bad = [f"{outcome} × {n}" for table in tables.values() for outcome, n in table.items() if outcome.startswith("BAD")]
    for name, table in tables.items(): print(f"{name:20} {summed(table)}")
    print(*bad, sep="\n")
    figures = {
        "files": sum(sum(table.values()) for table in kinds.values()),
        "attacks": sum(ends.values()),
        "bad": bad,
        "by kind": {name: summed(table) for name, table in kinds.items()},
        "of the attacks": summed(ends),
        "limits": f"{SECONDS} s, {TIMES} × the file + {SPARE >> 20} MiB",
        "seconds": round(time.time() - start),
    }
    if args.record: print(record("files", figures))
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
