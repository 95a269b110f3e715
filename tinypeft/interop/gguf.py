"""Write a GPT or a Llama as GGUF, llama.cpp's format: quantized layers as they are, the rest F32.

    "GGUF", version 3        uint32 each; all numbers are little-endian
    tensors, fields          uint64 each: how many there are
    fields                   name, type, value: the sizes, and the tokenizer
    tensors                  name, number of axes, axes (last first), type, offset in the data
    data                     starts at a multiple of 32 bytes; so does every tensor in it

A string is its length (uint64) and its bytes. Weights are (d_out, d_in), as in tinypeft. A GPT's
query, key and value are one tensor, with their rows stacked. The rows of a Llama's query and key
are reordered for rotations of neighbours (`llama.py`). A row is whole blocks, so this is exact.
Format: github.com/ggml-org/ggml, docs/gguf.md.
"""
import math
import struct
from pathlib import Path

import numpy as np

from ..engine.nn import Embedding, LayerNorm, Linear, RMSNorm
from ..files import replacing
from ..models.gpt import GPT
from ..models.llama import Llama
from ..models.rotary import Rotary, frequencies
from ..quant import QuantizedLinear
from ..text.tokenizer import BPETokenizer
from .byte_level import as_characters
from .families import GPT2
from .gguf_bytes import file_bytes, type_of
from .gguf_tokenizer import CONTROL, NORMAL, PRE, UNUSED, USER
from .gguf_types import TYPES
from .llama import FACTORS, neighbours
from .llama import MODULES as LLAMA_MODULES
from .llama import SIZES as LLAMA_SIZES

__all__ = ["write_gguf"]

ALIGNMENT = 32
NUMBERS = {kind.name: number for number, kind in TYPES.items()}          # type → its number
FILE_TYPES = {"F32": 0, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q4_K": 14,
              "Q5_K": 16, "Q6_K": 18}
TENSORS = {"ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output",
           "ln_2": "ffn_norm", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}   # GPT-2's → GGUF's


def write_gguf(path: str | Path, model: GPT | Llama) -> None:
    """Write a model, plain or quantized by `GGUF` or read from a GGUF file with `quantized=True`,
    with its tokenizer, completely or not at all. Raises ValueError for another family, a method
    attached, a head, layers quantized otherwise, or a tokenizer that GGUF does not know."""
    if model.attached is not None or model.head is not None:
        added = model.attached or "a classification head"
        raise ValueError(f"write_gguf: expected a {type(model).__name__} alone, it has {added}; "
                         "merge or detach the method, set model.head = None")
    c, tensors = model.config, {}                                  # name → (type, shape, its bytes)
    if not isinstance(model, (GPT, Llama)) or getattr(c, "qk_norm", False):
        raise ValueError(f"write_gguf: a GPT or a Llama is expected, got {type(model).__name__}"
                         f"{' with norms of queries and keys' * isinstance(model, Llama)}")
    if isinstance(model, Llama): tensors |= _divisors(c)
    for name, ours in _paths(model).items():
        modules = [model.get(path) for path in ours]
        kind, shape, array = _weight(modules, ours)
        if name.endswith((".attn_q", ".attn_k")) and not getattr(c, "qkv_bias", False):
            array = neighbours(array.reshape(shape[0], -1), c.d_head)
        tensors[f"{name}.weight"] = kind, shape, array
        if getattr(modules[0], "bias", None) is not None:
            bias = np.concatenate([module.bias.data for module in modules], dtype="<f4")
            tensors[f"{name}.bias"] = "F32", bias.shape, bias
    kind = _file_type([kind for kind, *_ in tensors.values()])
    values = _sizes(model) | {"general.file_type": kind, "general.quantization_version": 2}
    values |= _tokenizer(model)
    fields, at, infos = [_field(name, value) for name, value in values.items()], 0, []
    for name, (kind, shape, array) in tensors.items():
        n = len(shape)
        infos.append(_string(name) + struct.pack(f"<I{n}QIQ", n, *shape[::-1], NUMBERS[kind], at))
        at += array.nbytes + -array.nbytes % ALIGNMENT
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields)) + b"".join(fields + infos)
    with replacing(path) as f:
        f.write(head + bytes(-len(head) % ALIGNMENT))
        for _, _, array in tensors.values():
            f.write(array)
            f.write(bytes(-array.nbytes % ALIGNMENT))


def _divisors(c):
    """Return the tensor of divisors of Llama 3.1's angles. ValueError for angles that llama.cpp
    lacks."""
    if c.rope_kind == "dynamic" or c.rope_kind == "yarn" and (c.rope_low, c.rope_high) != (1, 32):
        raise ValueError("write_gguf: llama.cpp has no rotary embeddings of this kind: rope_kind="
                         f"{c.rope_kind!r}, rope_low={c.rope_low:g}, rope_high={c.rope_high:g}")
    if c.rope_kind != "llama3": return {}
    plain = frequencies(Rotary(c.rope_theta, c.d_head), 1)
    divisors = np.float32(plain / frequencies(c.rotary, 1))
    return {FACTORS: ("F32", divisors.shape, divisors)}


def _paths(model):
    """Map the name of a GGUF tensor to the paths that it holds here."""
    if isinstance(model, Llama):
        paths = {"token_embd": ["token_embedding"], "output_norm": ["final_norm"]}
        if not model.config.tied: paths["output"] = ["lm_head"]
        return paths | {f"blk.{i}.{theirs}": [f"blocks.{i}.{ours}"]
                        for i in range(model.config.n_layers)
                        for theirs, (ours, _) in LLAMA_MODULES.items()}
    paths = {"token_embd": ["token_embedding"], "position_embd": ["position_embedding"],
             "output_norm": ["final_norm"]}
    for i in range(model.config.n_layers):
        for theirs, ours in GPT2.modules.items():
            paths[f"blk.{i}.{TENSORS[theirs]}"] = [f"blocks.{i}.{name}" for name in ours]
    return paths


def _weight(modules, paths):
    """(type, shape, array) of one weight, or of several with their rows stacked."""
    weights = [m.weight for m in modules]
    shape = sum(W.shape[0] for W in weights), *weights[0].shape[1:]
    if all(type(m) in (Linear, LayerNorm, RMSNorm, Embedding) for m in modules):
        return "F32", shape, np.concatenate([W.data for W in weights]).astype("<f4", copy=False)
    if all(type(m) is QuantizedLinear for m in modules):
        try: kinds = {type_of(W) for W in weights}
        except ValueError as e:
            raise ValueError(f"write_gguf: {paths[0]}: {e}") from e
        if len(kinds) == 1: return *kinds, shape, np.concatenate([*map(file_bytes, weights)])
    raise ValueError(f"write_gguf: {', '.join(paths)}: expected floating point, or all of them "
                     f"quantized by the same GGUF(…), got {', '.join(map(repr, modules))}")


def _file_type(kinds):
    """Return llama.cpp's number of a file: that of the commonest type of codes, or of a mixture."""
    kinds = [kind for kind in kinds if kind != "F32"] or ["F32"]
    for usual in "Q4_K", "Q5_K":
        if usual in kinds: return FILE_TYPES[usual] + ("Q6_K" in kinds)   # _S, _M
    return FILE_TYPES[max(sorted(set(kinds)), key=kinds.count)]


def _sizes(model):
    """Return the fields of the model's sizes."""
    c = model.config
    if isinstance(model, Llama):
        sizes = {theirs: getattr(c, ours) for ours, theirs in LLAMA_SIZES.items()}
        sizes |= {"vocab_size": c.vocab_size, "rope.dimension_count": c.d_head,
                  "attention.key_length": c.d_head, "attention.value_length": c.d_head}
        if c.rope_kind in ("linear", "yarn"):
            sizes |= {"rope.scaling.type": c.rope_kind, "rope.scaling.factor": float(c.rope_factor)}
        magnitude = float(c.rope_magnitude)
        if c.rope_kind == "yarn":
            sizes["rope.scaling.original_context_length"] = c.rope_context
            magnitude /= 0.1 * math.log(c.rope_factor) + 1       # which llama.cpp multiplies
        if not math.isclose(magnitude, 1): sizes["rope.scaling.attn_factor"] = magnitude
        kind = "qwen2" if c.qkv_bias else "llama"
        return {"general.architecture": kind} | {f"{kind}.{n}": v for n, v in sizes.items()}
    return {"general.architecture": "gpt2", "gpt2.context_length": c.context_length,
            "gpt2.embedding_length": c.d_model, "gpt2.feed_forward_length": 4 * c.d_model,
            "gpt2.block_count": c.n_layers, "gpt2.attention.head_count": c.n_heads,
            "gpt2.attention.layer_norm_epsilon": float(c.norm_eps)}


def _tokenizer(model):
    """Return the tokenizer's fields. Ids that only the model has are written as unused tokens."""
    tokenizer, n = model.tokenizer, model.config.vocab_size
    if tokenizer is None: return {}
    if not isinstance(tokenizer, BPETokenizer):
        raise ValueError(f"write_gguf: the tokenizer must be byte-level, got {tokenizer!r}; set "
                         "model.tokenizer = None to write the model without one")
    tokens, kinds = [f"[PAD{i}]" for i in range(n)], [UNUSED] * n
    for token, i in tokenizer.vocab.items(): tokens[i], kinds[i] = as_characters(token), NORMAL
    for name, i in tokenizer.added.items(): tokens[i], kinds[i] = name, USER
    for name, i in tokenizer.special.items(): tokens[i], kinds[i] = name, CONTROL
    merges = [f"{as_characters(a)} {as_characters(b)}" for a, b in tokenizer.merges]
    bos, eos = tokenizer.opening, tokenizer.end_of_turn
    values = {"model": "gpt2", "pre": PRE[tokenizer.split], "tokens": tokens, "token_type": kinds,
              "merges": merges, "bos_token_id": bos,
              "eos_token_id": tokenizer.end_of_text if eos is None else eos,
              "add_bos_token": tokenizer.start is not None}
    return {f"tokenizer.ggml.{name}": value for name, value in values.items()}


def _string(text): return struct.pack("<Q", len(text.encode())) + text.encode()


def _field(name, value):
    """Name, type and value: uint32 4, float32 6, bool 7, string 8, array 9 (of strings, or of
    int32 5)."""
    n = len(value) if isinstance(value, list) else 0
    if isinstance(value, str):                content = struct.pack("<I", 8) + _string(value)
    elif isinstance(value, bool):             content = struct.pack("<I?", 7, value)
    elif isinstance(value, int):              content = struct.pack("<II", 4, value)
    elif isinstance(value, float):            content = struct.pack("<If", 6, value)
    elif value and isinstance(value[0], int): content = struct.pack(f"<IIQ{n}i", 9, 5, n, *value)
    else: content = struct.pack("<IIQ", 9, 8, n) + b"".join(map(_string, value))
    return _string(name) + content
