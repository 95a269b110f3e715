"""Write a GPT, a Llama or a Gemma as GGUF, llama.cpp's format: codes as they are, the rest F32.

`gguf_writer.py` has the format. `gguf_architectures.py` has the names, and how the numbers differ
from ours. A row is whole blocks, so codes are reordered and stacked as they are.

A model that was read from a GGUF file is written with the fields of that file: the template of its
chat, ids of special tokens, its name and licence. Fields of the sizes or of the tokenizer are made
anew if the configuration or the tokenizer is another one now. A tensor that was F16 or BF16 is that
again if it still has such numbers.
"""
from pathlib import Path

import numpy as np

from ..engine.nn import Embedding, LayerNorm, Linear, RMSNorm, replace_modules
from ..files import naming
from ..models.decoder import Decoder, require_free
from ..quant import QuantizedEmbedding, QuantizedLinear
from ..text.tokenizer import BPETokenizer
from .byte_level import as_characters
from .gguf_architectures import FACTORS, architecture_of, neighbours
from .gguf_bytes import file_bytes, known_type, type_of
from .gguf_tokenizer import CONTROL, KEY, NORMAL, PRE, TEMPLATE, UNUSED, USER
from .gguf_writer import field, write_container
from .llama import Origin

__all__ = ["NUMBER_TYPES", "keep_codes", "write_gguf"]

POSITIONS = "position_embd.weight"                       # never rounded, as in llama.cpp
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9,
              "Q2_K": 10, "Q3_K": 11, "Q4_K": 14, "Q5_K": 16, "Q6_K": 18, "IQ4_NL": 25,
              "BF16": 32, "MXFP4": 38}
NUMBER_TYPES = "F32", "F16", "BF16"
NO_ORIGIN = Origin({}, {}, None, None)
PLAIN = Linear, LayerNorm, RMSNorm, Embedding            # modules whose weights are numbers
CODED = QuantizedLinear, QuantizedEmbedding


def write_gguf(path: str | Path, model: Decoder, numbers: str | None = None) -> None:
    """Write a model, plain or quantized by `GGUF` or read from a GGUF file with `quantized=True`,
    with its tokenizer, completely or not at all; llama.cpp needs a tokenizer.

    numbers: the type of matrices that are no codes, "F32", "F16" or "BF16", which rounds them; by
    default they are F32, or what they were in the file that they are from. Raises ValueError for
    the model inside a PeftModel, a head, layers quantized otherwise, a weight that overflows
    float16, a tokenizer that GGUF does not know, or a function that llama.cpp lacks."""
    if numbers not in (None, *NUMBER_TYPES):
        raise ValueError(f"write_gguf: numbers must be {' or '.join(map(repr, NUMBER_TYPES))}, got "
                         f"{numbers!r}; quantize by tinypeft.GGUF for codes")
    require_free(model, "write_gguf")
    if model.head is not None:
        raise ValueError(f"write_gguf: expected a {type(model).__name__} alone, it has a "
                         "classification head; set model.head = None")
    with naming("write_gguf"):
        architecture_of(model).check(model.config)
        tensors = _tensors(model, numbers)
        fields = _fields(model, {name: kind for name, (kind, *_) in tensors.items()})
    write_container(path, fields, tensors)


def keep_codes(model: Decoder, coded: Decoder) -> tuple[int, int]:
    """Put the codes of `coded` into `model`, in place, where they decode to its numbers and a GGUF
    file can hold them. Return how many matrices of the file have codes now, and how many have not.
    The models have the same sizes, and `model` is plain."""
    kept, counts = {}, [0, 0]
    for ours, shape in architecture_of(model).layout(model.config).values():
        if len(shape) < 2: continue
        layers = {path: coded.get(path) for path in _modules(ours)}
        types = {known_type(m.weight) if type(m) in CODED else None for m in layers.values()}
        same = len(types) == 1 and None not in types and all(
            np.array_equal(layer.dense_weight(), model.get(path).weight.data)
            for path, layer in layers.items())
        if same: kept |= layers
        counts[not same] += 1
    for path, layer in kept.items():
        if type(layer) is QuantizedLinear:
            kept[path] = QuantizedLinear(layer.weight, model.get(path).bias)
    replace_modules(model, kept)
    return *counts,


def _modules(names): return [name.rpartition(".")[0] for name in names]


def _tensors(model, numbers):
    """Return name → (type, shape, array of the bytes or numbers) of every tensor of the file."""
    architecture, config, tensors = architecture_of(model), model.config, {}
    if (divisors := architecture.divisors(config)) is not None:
        tensors[FACTORS] = "F32", divisors.shape, divisors
    types = (model.origin or NO_ORIGIN).types
    for theirs, (ours, shape) in architecture.layout(config).items():
        paths, attribute = _modules(ours), ours[0].rpartition(".")[2]
        modules = [model.get(path) for path in paths]
        if attribute == "weight" and not all(type(m) in PLAIN for m in modules):
            kind, array = _codes(modules, paths)
        else:
            W = np.concatenate([getattr(m, attribute).data for m in modules])
            W = W.astype("<f4", copy=False)
            shift = architecture.shift(theirs)
            W = W + np.float32(shift) if shift else W
            if numbers is None:
                kind, array = _numbers(W, types.get(theirs))
            else:
                kind = numbers if len(shape) == 2 and theirs != POSITIONS else "F32"
                with naming(theirs): array = _rounded(W, kind)
        if architecture.is_paired(config, theirs):
            array = neighbours(array.reshape(shape[0], -1), config.d_head)
        tensors[theirs] = kind, shape, array
    in_the_file = [name for name in types if name in tensors]                # keeps its order
    return {name: tensors[name] for name in dict.fromkeys([*in_the_file, *tensors])}


def _codes(modules, paths):
    """(type, bytes) of the codes of one module, or of several with their rows stacked."""
    if all(type(m) in CODED for m in modules):
        with naming(paths[0]): kinds = {type_of(m.weight) for m in modules}
        if len(kinds) == 1: return *kinds, np.concatenate([file_bytes(m.weight) for m in modules])
    raise ValueError(f"{', '.join(paths)}: expected floating point, or all of them quantized by "
                     f"the same GGUF(…), got {', '.join(map(repr, modules))}")


def _numbers(W, kind):
    """(type, numbers) of an array of float32: of the type `kind` if that loses nothing."""
    if kind == "F16":
        with np.errstate(over="ignore"): half = W.astype("<f2")
        if np.array_equal(half, W): return kind, half
    bits = np.ascontiguousarray(W).view("<u4")
    if kind == "BF16" and not (bits & 0xFFFF).any(): return kind, (bits >> 16).astype("<u2")
    return "F32", W


def _rounded(W, kind):
    """Round an array of float32 to one of NUMBER_TYPES, ties to even."""
    if kind == "F32": return W
    if kind == "F16":
        with np.errstate(over="ignore"): half = W.astype("<f2")
        if np.isfinite(half).all(): return half
        raise ValueError(f"a weight of {np.abs(W).max():g} overflows float16; BF16 holds it")
    bits = np.ascontiguousarray(W).view("<u4")
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")


def _fields(model, types):
    """Name → type and value: those of the file that the model was read from, where they still hold,
    and new ones. types: name → type of all tensors."""
    origin, architecture = model.origin or NO_ORIGIN, architecture_of(model)
    kind, made, outdated = architecture.kind(model.config), {}, ["general.alignment"]
    if model.config != origin.config:
        made = {f"{kind}.{name}": value for name, value in architecture.write(model.config).items()}
        outdated.append(f"{kind}.")
    if types != origin.types:
        made |= {"general.file_type": _file_type(types),
                 "general.quantization_version": 2}
    if model.tokenizer is not origin.tokenizer and model.tokenizer != origin.tokenizer:
        made |= _tokenizer(model)
        outdated.append("tokenizer.")
    kept = {name: octets for name, octets in origin.fields.items()
            if not name.startswith(tuple(outdated))}
    made = {"general.architecture": kind, **made}
    return kept | {name: field(value) for name, value in made.items()}


def _file_type(types):
    """Return llama.cpp's number of a file: that of the commonest type of codes, or of a mixture. A
    mixture is known by its blocks: the embedding may have Q6_K in any."""
    blocks = [kind for name, kind in types.items() if name.startswith("blk.")]
    for usual in "Q4_K", "Q5_K":
        if usual in blocks: return FILE_TYPES[usual] + ("Q6_K" in blocks)   # _S, _M
    kinds = [kind for kind in types.values() if kind != "F32"] or ["F32"]
    return FILE_TYPES[max(sorted(set(kinds)), key=kinds.count)]


def _tokenizer(model):
    """Return the tokenizer's fields. Ids that only the model has are written as unused tokens."""
    tokenizer, n = model.tokenizer, model.config.vocab_size
    if tokenizer is None: return {}
    if not isinstance(tokenizer, BPETokenizer):
        raise ValueError(f"the tokenizer must be byte-level, got {tokenizer!r}; set "
                         "model.tokenizer = None to write a file without one, which llama.cpp "
                         "does not load")
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
    fields = {f"{KEY}{name}": value for name, value in values.items()}
    if tokenizer.chat_template is not None: fields[TEMPLATE] = tokenizer.chat_template
    return fields
