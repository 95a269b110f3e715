"""Files built to take memory, to hang, to run code or to leave their folder; `files.py` reads them.

An attack is (name, kind, change): `change(folder)` spoils a folder that holds a good file of the kind. All must be
refused. The tables say what is written; `attacks` makes each row an attack.
"""
import functools
import itertools
import json
import os
import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tinypeft.files import load_arrays
from tinypeft.files.arrays import _checksum
from tinypeft.files.safetensors import write_safetensors
from tinypeft.interop.gguf_architectures import ONLY
from tinypeft.interop.gguf_reader import read_gguf
from tinypeft.interop.gguf_types import TYPES

__all__ = ["DATS", "GGUFS", "MAIN", "attacks", "dat", "gguf_content", "save_gguf", "save_raw"]

OWN = {"adapter": "adapter.safetensors", "adapter, several": "adapter.safetensors", "pretrained": "weights.safetensors",
       "quantized": "model.safetensors", "checkpoint": "run.safetensors"}
MAIN = {"huggingface": "model.safetensors", "other families": "model.safetensors", "peft": "adapter_model.safetensors",
        **OWN, "tokenizer": "tokenizer.json", "gguf": "model.gguf", "importance, gguf": "model.gguf",
        "importance, dat": "imatrix.dat"}
CONFIGS = {"huggingface": "config.json", "other families": "config.json", "peft": "adapter_config.json",
           "tokenizer": "tokenizer.json"}


# -- writing without checks ------------------------------------------------------------------------------------------
def save_raw(path: Path, arrays: dict, meta: dict) -> None:
    """As `save_arrays`, but without its checks."""
    text = json.dumps(meta)
    write_safetensors(path, arrays, {"tinypeft": text, "sha256": _checksum(text, arrays)})


# -- any file --------------------------------------------------------------------------------------------------------
class Trap:
    """A pickle of it makes a folder "sprung" where it is loaded."""

    def __reduce__(self): return os.mkdir, ("sprung",)


def sparse(path):
    with open(path, "wb") as f: f.truncate(1 << 40)


PLACES = {
    "a named pipe": lambda p: os.mkfifo(p),                # which Windows does not have
    "a folder": os.mkdir,
    "an endless device": lambda p: os.symlink("/dev/zero", p),
    "a link to itself": lambda p: os.symlink(p.name, p),
    "no bytes": lambda p: p.write_bytes(b""),
    "a file of 1 TiB": sparse,
    "a pickle": lambda p: p.write_bytes(pickle.dumps(Trap())),
}
NESTED = b"[" * 1_000_000
TEXTS = {
    "deep nesting": NESTED,
    "nothing but brackets": b"[" + b"[]," * 3_000_000 + b"[]]",
    "a number of a million digits": b"1" * 1_000_000,
    "no UTF-8": b'{"a": "\xff"}',
    "a name twice": b'{"a": 1, "a": 2}',
    "NaN": b'{"a": NaN}',
    "deep objects": b'{"a":' * 200_000,
}


def header(text: bytes, data: bytes = b"") -> bytes:
    """The start of a safetensors file."""
    return len(text).to_bytes(8, "little") + text + data


def listed(name: str, shape: object, start: int, end: int) -> str:
    return f'"{name}":{{"dtype":"F32","shape":{json.dumps(shape, separators=(",", ":"))},"data_offsets":[{start},{end}]}}'


HEADERS = {
    "a header of 2^63 bytes": (1 << 63).to_bytes(8, "little") + b"{}",
    "a header as long as the file": (10**6).to_bytes(8, "little") + b" " * 100,
    "a tensor of 4 TiB": header(f"{{{listed('x', [2**40], 0, 2**42)}}}".encode(), bytes(64)),
    "a tensor of 2^63 axes' product": header(f"{{{listed('x', [2**32, 2**32, 2**32, 0], 0, 0)}}}".encode()),
    "offsets that overlap": header(f"{{{listed('x', [2], 0, 8)},{listed('y', [2], 4, 12)}}}".encode(), bytes(12)),
    **{f"a header with {name}": header(text) for name, text in TEXTS.items()},
}


# -- GGUF files ------------------------------------------------------------------------------------------------------
GGUF_TYPES = {"|b1": 7, "|u1": 0, "|i1": 1, "<u2": 2, "<i2": 3, "<u4": 4, "<i4": 5, "<f4": 6, "<u8": 10, "<i8": 11, "<f8": 12}


def head(version=3, tensors=0, fields=0, rest=b""):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, fields) + rest


def text(s):
    s = s.encode() if isinstance(s, str) else s
    return struct.pack("<Q", len(s)) + s


def tensor(name, shape, kind=0, at=0):
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, at)


def field(name, value):
    if isinstance(value, str): return text(name) + struct.pack("<I", 8) + text(value)
    if isinstance(value, list) and all(isinstance(s, str) for s in value):
        return text(name) + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
    array = np.asarray(value)                              # ValueError or OverflowError for what is no number
    if array.dtype.str not in GGUF_TYPES or array.ndim > 1: raise ValueError(f"GGUF has no type for {value}")
    kind = GGUF_TYPES[array.dtype.str]
    announced = struct.pack("<IIQ", 9, kind, len(array)) if array.ndim else struct.pack("<I", kind)
    return text(name) + announced + array.tobytes()


def gguf_content(path: Path) -> tuple[dict, dict]:
    """(fields, name → (number of the type, shape, octets)) of a GGUF file."""
    numbers = {kind.name: number for number, kind in TYPES.items()}
    file = read_gguf(path)
    fields = {n: np.array(v) if isinstance(v, np.ndarray) else v for n, v in file.fields.items()}    # the file may go
    return fields, {n: (numbers[file.kind(n).name], file.shape(n), np.array(file.octets(n))) for n in file}


def save_gguf(path: Path, fields: dict, tensors: dict) -> None:
    """Write a GGUF file without any checks."""
    infos, data = b"", b""
    for name, (kind, shape, octets) in tensors.items():
        infos += tensor(name, shape[::-1], kind, len(data))
        data += octets.tobytes() + bytes(-octets.nbytes % 32)
    start = head(3, len(tensors), len(fields), b"".join(field(n, v) for n, v in fields.items()) + infos)
    path.write_bytes(start + bytes(-len(start) % 32) + data)


def dat(entries: dict[str, np.ndarray], n: int) -> bytes:
    """An importance file of the older form, without any checks: Σ x² of each weight, over n pieces of text."""
    content = struct.pack("<i", len(entries))
    for name, x in entries.items():
        name = name.encode()
        content += struct.pack(f"<i{len(name)}sii", len(name), name, n, x.size) + x.tobytes()
    return content + struct.pack("<ii", n, 0)


DATS = {
    "two billion entries": struct.pack("<i", 2**31 - 1) + bytes(99),
    "fewer than no entries": struct.pack("<i", -1) + bytes(99),
    "a name of 2³¹ bytes": struct.pack("<ii", 1, 2**31 - 1) + bytes(99),
    "a name of −1 byte": struct.pack("<ii", 1, -1) + bytes(99),
    "2³¹ numbers": struct.pack("<iiii", 1, 0, 1, 2**31 - 1) + bytes(99),
    "−2³¹ numbers": struct.pack("<iiii", 1, 0, 1, -2**31) + bytes(99),
    "an entry twice": struct.pack("<i", 2) + 2 * dat({"a": np.ones(2, "<f4")}, 1)[4:-8],
    "a name that is not UTF-8": struct.pack("<ii1sii", 1, 1, b"\xff", 1, 0),
    "other names": dat({f"{i}": np.ones(1, "<f4") for i in range(10_000)}, 1),
}
GGUFS = {
    "nothing": b"",
    "another format": b"PK" + bytes(40),
    "an old version": head(1),
    "a quintillion tensors": head(tensors=1 << 60),
    "a quintillion fields": head(fields=1 << 60),
    "a hundred thousand fields": head(fields=10**5, rest=b"".join(field(f"{i}", True) for i in range(10**5))),
    "a string of 2⁶³ bytes": head(fields=1, rest=struct.pack("<Q", 1 << 63) + bytes(40)),
    "an array of 2⁶⁰ numbers": head(fields=1, rest=text("a") + struct.pack("<IIQ", 9, 4, 1 << 60) + bytes(40)),
    "an array of 2⁶⁰ strings": head(fields=1, rest=text("a") + struct.pack("<IIQ", 9, 8, 1 << 60) + bytes(40)),
    "arrays in an array": head(fields=1, rest=text("a") + struct.pack("<IIQ", 9, 9, 1) + bytes(40)),
    "a type of field of tomorrow": head(fields=1, rest=text("a") + struct.pack("<II", 13, 1)),
    "a name that is not UTF-8": head(fields=1, rest=text(b"\xff") + struct.pack("<II", 4, 1)),
    "a field twice": head(fields=2, rest=2 * (text("a") + struct.pack("<II", 4, 1))),
    "a tensor twice": head(tensors=2, rest=2 * tensor("a", (4,)) + bytes(64)),
    "tensors that overlap": head(tensors=2, rest=tensor("a", (16,)) + tensor("b", (16,), at=32) + bytes(200)),
    "a tensor of 2⁶² numbers": head(tensors=1, rest=tensor("a", (1 << 31, 1 << 31)) + bytes(64)),
    "a tensor of 2⁶⁴ numbers": head(tensors=1, rest=tensor("a", (1 << 32, 1 << 32)) + bytes(64)),
    "a tensor beyond the end": head(tensors=1, rest=tensor("a", (4,), at=1 << 40) + bytes(64)),
    "a tensor off the grid": head(tensors=1, rest=tensor("a", (4,), at=4) + bytes(64)),
    "five axes": head(tensors=1, rest=tensor("a", (1, 1, 1, 1, 1)) + bytes(64)),
    "2³¹ axes": head(tensors=1, rest=text("a") + struct.pack("<I", 1 << 31) + bytes(64)),
    "a row of half a block": head(tensors=1, rest=tensor("a", (16, 2), kind=2) + bytes(64)),
    "no axis": head(tensors=1, rest=tensor("a", ()) + bytes(64)),
    "an empty axis": head(tensors=1, rest=tensor("a", (0, 4)) + bytes(64)),
    "an alignment of 3": head(fields=1, rest=text("general.alignment") + struct.pack("<II", 4, 3)),
    "an alignment of 2³¹": head(fields=1, rest=text("general.alignment") + struct.pack("<II", 4, 1 << 31)),
    "an alignment in words": head(fields=1, rest=field("general.alignment", "32")),
}
# Read without complaint, but no model, and not to be held as so many Python objects.
LARGE_GGUFS = {
    "ten million numbers": lambda: head(fields=1, rest=field("a", np.full(10**7, 999, np.uint16))),
    "fifty thousand strings": lambda: head(fields=1, rest=field("a", ["ab"] * 50_000)),
    "sixteen thousand tensors": lambda: head(
        tensors=16_000, rest=b"".join(tensor(f"{i}", (4,), at=32 * i) for i in range(16_000)) + bytes(32 * 16_001)),
}
GGUF_FIELDS = {
    "general.architecture": ["gpt2", "", 3, ["llama"]],
    "llama.context_length": [0, -1, "x", 1.5, True, [64]],
    "llama.embedding_length": [2**14, 2**40, 2**63, 0, -1, "x", True, [32]],
    "llama.block_count": [2**22, 2**32 - 1, 2**63, 3, 0, -1, 1.5, "x"],
    "llama.attention.head_count": [0, -1, 3, 2**40, "x", [4, 4]],
    "llama.attention.head_count_kv": [0, 3, -1, 2**40, "x", [2, 2]],
    "llama.attention.key_length": [0, -8, 7, 2**40, 1.5, "x"],
    "llama.feed_forward_length": [2**40, 0, "x", [64, 64]],
    "llama.rope.freq_base": [0.0, -1.0, float("nan"), float("inf"), "x"],
    "llama.attention.layer_norm_rms_epsilon": [-1.0, float("nan"), float("inf"), "x"],
    "llama.rope.scaling.type": ["longrope", 3],
    "llama.rope.scale_linear": [0.5, float("nan"), "x", ["1"]],
    "llama.rope.dimension_count": [2, "x", np.full(2, 8)],
    "llama.attention.value_length": [2, 2**40],
    "llama.attention.causal": [False, "true"],
    "llama.expert_count": [8, [0]],
    "tokenizer.ggml.model": [3, ["gpt2"]],                # an unknown one is a warning
    "tokenizer.ggml.pre": [3],
    "tokenizer.ggml.tokens": [[], ["a"] * 262, 3, "x", np.zeros(262), [f"t{i}" for i in range(5000)]],
    "tokenizer.ggml.token_type": [np.ones(3, np.int32), np.full(262, 99, np.int32), ["1"], 3],
    "tokenizer.ggml.merges": [["a"], ["a b c"], ["€ €"], ["Ġ"], 3, np.zeros(3)],
    "tokenizer.ggml.eos_token_id": [-1, 2**40, "x", [1]],
}
UP = "blk.1.ffn_up.weight"
GGUF_TENSORS = {
    "a tensor less": lambda t: t.pop(UP),
    "a tensor more": lambda t: t.update(more=t[UP]),
    "another name": lambda t: t.update({UP.upper(): t.pop(UP)}),
    "another type": lambda t: t.update({UP: (1, *t[UP][1:])}),
    "a flat weight": lambda t: t.update({UP: (t[UP][0], (64 * 32,), t[UP][2])}),
    "a transposed weight": lambda t: t.update({UP: (t[UP][0], t[UP][1][::-1], t[UP][2])}),
    "a weight that is not finite": lambda t: t.update({UP: (*t[UP][:2], np.full_like(t[UP][2], 0xFF))}),
    "a norm that is not finite": lambda t: t.update({"output_norm.weight": (0, (32,), np.full(128, 0xFF, np.uint8))}),
}


def gguf_attacks() -> Iterator[tuple[str, Callable[[dict, dict], object]]]:
    """(name, edit): edit changes the fields and tensors of a GGUF file."""
    for name, values in GGUF_FIELDS.items():
        optional = ("key_length", "freq_base", "ggml.model", "ggml.pre", "eos_token_id", "scaling.type", "scale_linear")
        may_be_missing = name.endswith(optional) or name[6:] in ONLY
        if not may_be_missing: yield f"no {name}", lambda fields, tensors, n=name: fields.pop(n)
        for v in values: yield f"{name} = {v}", lambda fields, tensors, n=name, v=v: fields.update({n: v})
    for name, edit in GGUF_TENSORS.items(): yield name, lambda fields, tensors, edit=edit: edit(tensors)


# -- forged descriptions and arrays: the values that a name is given ----------------------------------------------------
SIZES = {
    "vocab_size": [2**22, 2**40, 0, "x", True],
    "d_model": [2**14, 2**40, 3],
    "n_layers": [20_000, 2**22, 2**40, 0, -1, 10**400],
    "n_heads": [True, 0, 3, 2**40],
    "context_length": [2**40, -1],
    "norm_eps": [-1, None, "x", 1e308, float("nan")],
    "dropout": [2, -1, None],
    "more": [1],
}
FIELDS = {
    "rank": [2**22, 2**40, 0, -1, 1.5, None, True],
    "alpha": [None, -1, "x", float("nan"), 10**400],
    "targets": [[], ["nothing"], 3, "x"],
    "rank_pattern": [{"query": 2**22}, {"query": -1}, 3],
    "init": ["__class__", 3],
    "more": [1],
}
PART = {
    "method": ["os.system", "LoRALinear", "", 3, "PeftModel.save"],
    "module": ["os", 3, None, "__main__"],
    "fields": [[], None, 3],
}
ADAPTER = {"head": [2**26, 2**40, -1, 1, True, "x"], "base": [3], "config": [[], None, {}]}
PARTS = [{}, [], 3, None, {"": {}}, {"a/b": {}}, {"LoRA": 3}, {str(i): {} for i in range(10**5)}]
ATTRIBUTES = {
    "forward": "x", "__class__": "x", "__dict__": "x", "dense_weight": 3, "d_in": 3, "children": None, "parts": "x",
    "bias": 3, "weight": None, "extra": {"array": "ndarray"}, "a": {"array": "Trap"}, "b": [1],
}
TENSORS = {
    "bits": [64, 0, -1, True, "4", 16],
    "block_size": [0, -1, 2**62, 1.5, True, None],
    "shape": [[16, 2**40], [2**62, 4], [-16, -16], [256], [], 3, ["16"], [16, 16, 1]],
    "codebook": ["none", "E4M3", "x" * 1000, 3, []],
    "zero": [10**400, 2**20, 0.5, "x", None],
    "scale": [{}, 3, "x"],
    "more": [1],
}
QUANTIZED = {
    "layers": [{}, [], {"blocks.0": 0}, {"blocks.0.mlp.up": 99}, {"blocks.0.mlp.up": {}}, {"": {"class": "QuantizedLinear"}}],
    "format": [3, [], {}, "2"],
}
CHECKPOINT = {
    "step": [10**9, -1, 1.5, True, None, 3],
    "history": [{}, None, "x", {"loss": []}],
    "settings": [{}, None, 3],
}
PEFT = {
    "r": [2**22, 2**40, 0, -1, "x", True],
    "lora_alpha": [10**400, "x", []],
    "target_modules": ["(a+)+$", "(.*)*x", [], 3, ["nothing"]],
    "rank_pattern": [{"c_attn": 2**40}, 3],
    "peft_type": ["x", "PROMPT_TUNING", None, "__class__"],
    "num_virtual_tokens": [2**40],
    "task_type": ["x"],
    "use_dora": [True],
    "bias": ["all"],
    "layers_to_transform": [[2**40], "x"],
    "modules_to_save": [["wte"]],
}
GPT2 = {
    "vocab_size": [2**22, 2**40, -1, "x", True, 10**400],
    "n_embd": [2**14, 3],
    "n_layer": [2**22, 2**40, 0],
    "n_head": [0, 3, True],
    "n_positions": [2**40],
    "layer_norm_epsilon": [-1, None, "x", 1e308],
    "model_type": ["x"],
    "activation_function": ["relu"],
    "n_inner": [2**40],
}
LLAMA = {
    "vocab_size": [2**40, -1, True, 10**400],
    "hidden_size": [2**40, 10**400, "x", None],
    "num_hidden_layers": [2**22, 2**40, 0, 1.5],
    "num_attention_heads": [0, 3, 2**40],
    "num_key_value_heads": [0, 3, None, 2**40],
    "head_dim": [0, 5, None, 2**40],
    "rope_theta": [0, -1, None, [], 1e5],
    "rope_parameters": [3, [[]], {"rope_type": "yarn"}, {"rope_theta": None}, {"rope_theta": 1e5}, {"a": {}}],
    "rope_scaling": [{"type": "linear", "factor": 1e308}, 3],
    "layer_types": [["sliding_attention"], [[]], 3, {"a": 1}],
    "hidden_act": ["relu", []],
    "model_type": ["qwen2", "gemma3", "gemma3_text", "mistral", ["llama"], {}],
    "tie_word_embeddings": [None, True, 2],
    "rms_norm_eps": [-1, None, "x"],
    "attention_bias": [True, "x", None],
}
TOKENIZER = {
    "vocab": [{}, 3, {"a": 2**40}, {"a": True}],
    "merges": [3, [3], [["a"]], [["a", "b", "c"]], ["ab"], [["é", "€"]]],
    "end_of_text": [-1, 2**40, "x", None],
    "special": [{"": 261}, {"x": 3}, 3],
    "format": ["x"],
}
SHARDS = ("../../etc/passwd", "/dev/zero", "x" * 5000 + ".safetensors", "a\0.safetensors", "nothing.safetensors",
          "../model.safetensors")
BAD_ARRAYS = {
    "NaN": lambda a: np.full_like(a, np.nan),
    "inf": lambda a: np.full_like(a, np.inf),
    "complex": lambda a: a.astype(np.complex64),
    "int64": lambda a: np.ones(a.shape, np.int64).reshape(-1),
    "nothing": lambda a: a[:0],
    "transposed": lambda a: a.reshape(-1, 1).T[None],
}


def whole(meta): return meta
def config(meta): return meta["config"]
def lora(meta): return meta["parts"]["LoRA"]
def layer(meta): return next(iter(meta["layers"].values()))


# Whose description, where in it, and what is written there.
MODELS = [kind for kind in OWN if "checkpoint" not in kind]
ADAPTERS = "adapter", "adapter, several"
DESCRIPTIONS = (
    (MODELS, config, SIZES),
    (ADAPTERS, lambda meta: lora(meta)["fields"], FIELDS),
    (ADAPTERS, lora, PART),
    (ADAPTERS, whole, ADAPTER | {"format": [2, "1"], "parts": PARTS}),
    (["quantized"], layer, {name: [value] for name, value in ATTRIBUTES.items()}),
    (["quantized"], lambda meta: layer(meta)["weight"]["QTensor"], TENSORS),
    (["quantized"], whole, QUANTIZED),
    (["checkpoint"], whole, CHECKPOINT),
    (["peft"], whole, PEFT),
    (["huggingface"], whole, GPT2),
    (["other families"], whole, LLAMA),
    (["tokenizer"], whole, TOKENIZER),
)


# -- each row is an attack -------------------------------------------------------------------------------------------
def put(where: Callable[[dict], dict], name: str, value: object):
    """An edit that gives `name` a value, where `where` says."""
    def edit(arrays, meta): where(meta)[name] = value
    return edit


def edited(kind: str, edit: Callable[[dict, dict], object]) -> Callable[[Path], None]:
    """Change what a file holds: arrays and description of one of our own, whose checksum then fits; the tensors and
    fields of a GGUF file; somebody else's JSON."""
    def change(folder):
        path = folder / CONFIGS.get(kind, MAIN[kind])
        if kind in CONFIGS: load, save = lambda p: ({}, json.loads(p.read_text("utf-8"))), save_json
        elif kind == "gguf": load, save = gguf_content, save_gguf
        else: load, save = load_arrays, save_raw
        content = load(path)
        edit(*content)
        save(path, *content)
    return change


def save_json(path, arrays, meta): path.write_text(json.dumps(meta), "utf-8")


def instead(make: Callable[[Path], object], file: str, folder: Path) -> None:
    """Something else in the place of a file."""
    (folder / file).unlink()
    make(folder / file)


def written(file: str, data: object, folder: Path) -> None:
    (folder / file).write_bytes(data() if callable(data) else data)


def shards(shard: str, folder: Path) -> None:
    """An index in place of the single file."""
    (folder / MAIN["huggingface"]).unlink()
    (folder / f"{MAIN['huggingface']}.index.json").write_text(json.dumps({"weight_map": {"wte.weight": shard}}), "utf-8")


def floats(arrays):
    """The name of an array of floats of more than one number."""
    return next(name for name, a in arrays.items() if a.dtype.kind == "f" and a.size > 1)


def nested_scale(arrays, meta):
    q = layer(meta)["weight"]["QTensor"]
    for _ in range(50): q["scale"] = {**q["scale"], "scale": q["scale"]}


def array_edits() -> dict[str, Callable[[dict, dict], object]]:
    """Edits of the arrays of any file of our own, and one of its whole description."""
    def spoilt(spoil): return lambda arrays, meta: arrays.update({(n := floats(arrays)): spoil(arrays[n])})
    return {f"an array of {name}": spoilt(spoil) for name, spoil in BAD_ARRAYS.items()} | {
        "an array more": lambda arrays, meta: arrays.update(more=np.ones(3, np.float32)),
        "an array less": lambda arrays, meta: arrays.pop(floats(arrays)),
        "no description": lambda arrays, meta: meta.clear()}


def contents(kind: str, file: str) -> dict[str, object]:
    """What may be written in place of a file."""
    if file.endswith(".json"): return TEXTS
    if file.endswith(".dat"): return DATS
    if file.endswith(".gguf"): return HEADERS | GGUFS | LARGE_GGUFS
    return HEADERS


def attacks() -> Iterator[tuple[str, str, Callable[[Path], object]]]:
    """(name, kind, change) of every attack."""
    for kind, main in MAIN.items():
        for file in dict.fromkeys([main, CONFIGS.get(kind, main)]):
            for name, make in PLACES.items():
                if "checkpoint" in kind and "link" in name: continue       # there is no file: training starts anew
                yield f"{file} is {name}", kind, functools.partial(instead, make, file)
            for name, data in contents(kind, file).items():
                yield f"{file}: {name}", kind, functools.partial(written, file, data)
    for name, edit in gguf_attacks(): yield name, "gguf", edited("gguf", edit)
    for kind in OWN:
        for name, edit in array_edits().items(): yield name, kind, edited(kind, edit)
    for kinds, where, table in DESCRIPTIONS:
        for kind, (name, values) in itertools.product(kinds, table.items()):
            for value in values: yield f"{name} = {str(value)[:30]}", kind, edited(kind, put(where, name, value))
    yield "scales of scales of scales", "quantized", edited("quantized", nested_scale)
    embedding = put(lambda meta: meta["layers"], "token_embedding", 0)
    yield "a layer in place of the embedding", "quantized", edited("quantized", embedding)
    for t in -1, 0, 3, 2**40:
        def edit(arrays, meta, t=t): arrays["optimizer/t"] = np.array(t)
        yield f"an optimizer of {t} steps", "checkpoint", edited("checkpoint", edit)
    for shard in SHARDS: yield f"a shard {shard[:30]!r}", "huggingface", functools.partial(shards, shard)
