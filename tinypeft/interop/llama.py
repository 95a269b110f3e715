"""GGUF files of the Llama family, of the architectures "llama" and "qwen2" → `Llama`.

    theirs                   ours                     blk.N is blocks.N
    token_embd               token_embedding          attn_q  attn_k  attn_v  attn_output
    output (absent if tied)  lm_head                  attention.query  key  value  output
    output_norm              final_norm               attn_norm  ffn_norm: norm1  norm2
                                                      ffn_gate  ffn_up  ffn_down: mlp.gate  up  down

Files of "llama" hold the rows of attn_q and attn_k for a rotation of neighbours (x_{2i}, x_{2i+1}).
`halves` reorders them for the rotation of halves (x_i, x_{i + d/2}) that `Llama` computes. Files of
"qwen2" hold them for halves; attn_q, attn_k and attn_v have biases there.

Stretched angles are fields (`rope.scaling.…`), but those of Llama 3.1 to 3.3 are a tensor,
rope_freqs.weight: a divisor for the angle of each pair. It does not say what it was made of.
`llama3_fields` tries what these models have, and refuses other divisors. llama.cpp obeys the fields
in `ONLY`, too; they are refused unless what they say changes nothing.
"""
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..common.hints import Array
from ..common.wording import brief, shortened
from ..engine.nn import Parameter
from ..files import naming
from ..models.llama import Llama, LlamaConfig
from ..models.rotary import Rotary, frequencies
from ..quant import QuantizedLinear
from .gguf_reader import GGUFError, read_gguf
from .gguf_tokenizer import tokenizer_of_gguf
from .gguf_types import as_qtensor, decode

__all__ = ["from_gguf", "halves"]

# their module in a block → ours, and its shape in (d_model, queries, keys, MLP)
MODULES = {"attn_norm": ("norm1", "d"), "attn_q": ("attention.query", "qd"),
           "attn_k": ("attention.key", "kd"), "attn_v": ("attention.value", "kd"),
           "attn_output": ("attention.output", "dq"), "ffn_norm": ("norm2", "d"),
           "ffn_gate": ("mlp.gate", "md"), "ffn_up": ("mlp.up", "md"),
           "ffn_down": ("mlp.down", "dm")}
# our size → their field, after "llama."
SIZES = {"context_length": "context_length", "d_model": "embedding_length",
         "n_layers": "block_count", "n_heads": "attention.head_count",
         "n_kv_heads": "attention.head_count_kv", "d_mlp": "feed_forward_length",
         "rope_theta": "rope.freq_base", "norm_eps": "attention.layer_norm_rms_epsilon"}
# their field, after "llama." → the only value that is computed here, or the size of ours that it is
ONLY = {"attention.causal": True, "attention.value_length": "d_head",
        "expert_count": 0, "expert_used_count": 0, "nextn_predict_layers": 0,
        "rope.dimension_count": "d_head"}
BIASES = {"attn_q": ("attention.query", "q"), "attn_k": ("attention.key", "k"),
          "attn_v": ("attention.value", "k")}
SCALING = {"type", "factor", "attn_factor", "finetuned", "original_context_length"}
FACTORS = "rope_freqs.weight"
ADVICE = "take a model without it, or run this one with llama.cpp"


def from_gguf(path: str | Path, quantized: bool = False) -> Llama:
    """Load a GGUF file of the architecture "llama" or "qwen2" as a `Llama`, in float32, with its
    tokenizer.

    quantized: True leaves the linear layers of the blocks as codes, where the file has codes: they
    become `QuantizedLinear`s, which compute the same numbers. Embeddings and norms are float32.
    Raises FileNotFoundError, or GGUFError for a damaged file, another architecture, or a field or
    tensor that asks for what `Llama` does not compute, such as experts."""
    file = read_gguf(path)
    config, arrays, layers = _config(file), {}, {}
    with naming(path, GGUFError): tokenizer = tokenizer_of_gguf(file.fields)
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise GGUFError(f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, the model only "
                        f"{config.vocab_size}")
    for name, ours in _names(file, config).items():
        kind, shape, octets = file.kind(name), file.shape(name), file.octets(name)
        if not config.qkv_bias and ("attn_q." in name or "attn_k." in name):     # whole blocks
            octets = halves(octets.reshape(shape[0], -1), config.d_head).reshape(-1)
        module, _, part = ours.rpartition(".")
        with naming(f"{path}: {name}", GGUFError):
            if quantized and kind.bits and ours.startswith("blocks.") and len(shape) == 2:
                layers[module] = QuantizedLinear(as_qtensor(kind, octets, shape), None)
                continue
            W = arrays[ours] = decode(kind, octets, shape)
            if not np.isfinite([W.min(), W.max()]).all():
                raise ValueError("it has numbers that are not finite")
    for module, layer in layers.items():
        if f"{module}.bias" in arrays: layer.bias = Parameter(arrays.pop(f"{module}.bias"))
    model = Llama.from_arrays(config, arrays, layers)
    model.tokenizer = tokenizer
    return model


def _names(file, config):
    """Their name of every tensor → our parameter. GGUFError unless names and shapes fit."""
    if len(MODULES) * config.n_layers > len(file):
        raise GGUFError(f"{file.path}: {len(file)} tensors are too few for {config.n_layers} "
                        "layers")
    layout = {"token_embd": ("token_embedding", "vd"), "output_norm": ("final_norm", "d")}
    if not config.tied: layout["output"] = "lm_head", "vd"
    for i in range(config.n_layers):
        layout |= {f"blk.{i}.{theirs}": (f"blocks.{i}.{ours}", shape)
                   for theirs, (ours, shape) in MODULES.items()}
    sizes = {"v": config.vocab_size, "d": config.d_model, "m": config.d_mlp,
             "q": config.n_heads * config.d_head, "k": config.n_kv_heads * config.d_head}
    expected, ours = {}, {}
    for theirs, (path, axes) in layout.items():
        expected[f"{theirs}.weight"] = tuple(sizes[axis] for axis in axes)
        ours[f"{theirs}.weight"] = f"{path}.weight"
    for i in range(config.n_layers if config.qkv_bias else 0):
        for theirs, (path, axis) in BIASES.items():
            expected[f"blk.{i}.{theirs}.bias"] = (sizes[axis],)
            ours[f"blk.{i}.{theirs}.bias"] = f"blocks.{i}.{path}.bias"
    got = {name: file.shape(name) for name in file if name != FACTORS}
    if wrong := sorted(expected.items() ^ got.items()):
        raise GGUFError(f"{file.path}: {brief(wrong[0][0])} does not fit: expected "
                        f"{expected.get(wrong[0][0], 'no such tensor')}, got "
                        f"{got.get(wrong[0][0], 'none')}")
    return ours


def halves(W: Array, d_head: int) -> Array:
    """Reorder the rows of W (heads · d_head, d): 2i, 2i + 1 of a head become i, i + d_head/2."""
    pairs = W.reshape(-1, d_head // 2, 2, W.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(W.shape)


def neighbours(W: Array, d_head: int) -> Array:
    """Return the inverse of `halves`."""
    pairs = W.reshape(-1, 2, d_head // 2, W.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(W.shape)


def _config(file) -> LlamaConfig:
    kind = file.fields.get("general.architecture")
    if kind not in ("llama", "qwen2"):
        raise GGUFError(f"{file.path}: the architecture is {brief(kind)}, expected 'llama' or "
                        "'qwen2'")
    fields: dict[str, Any] = {name.removeprefix(f"{kind}."): value
                              for name, value in file.fields.items() if name.startswith(f"{kind}.")}
    if missing := [name for name in SIZES.values() if name not in fields
                   and name not in ("attention.head_count_kv", "rope.freq_base")]:
        raise GGUFError(f"{file.path}: the field {kind}.{missing[0]} is missing")
    if lists := [name for name in SIZES.values()
                 if isinstance(fields.get(name), (list, np.ndarray))]:
        raise GGUFError(f"{file.path}: {kind}.{lists[0]} is a list, expected one number for all "
                        "layers")
    defaults = {"attention.head_count_kv": fields["attention.head_count"],
                "rope.freq_base": 10000.0}
    values = {ours: fields.get(theirs, defaults.get(theirs)) for ours, theirs in SIZES.items()}
    for name in ("token_embd.weight", "output_norm.weight"):
        if name not in file: raise GGUFError(f"{file.path}: the tensor {name} is missing")
    try:
        d_head = fields.get("attention.key_length", values["d_model"] // values["n_heads"])
        config = LlamaConfig(vocab_size=file.shape("token_embd.weight")[0], d_head=d_head,
                             tied="output.weight" not in file, qkv_bias=kind == "qwen2", **values)
        _check_only(file, kind, fields, config)
        return replace(config, **_stretched(file, fields, config))
    except GGUFError: raise
    except (ValueError, TypeError, ZeroDivisionError) as e:
        raise GGUFError(f"{file.path}: {shortened(str(e))}") from e


def _check_only(file, kind, fields, config):
    """GGUFError if a field asks for another function than `Llama`'s."""
    for name, value in fields.items():
        scaling = name.partition("rope.scaling.")[2]
        if name not in ONLY and (not scaling or scaling in SCALING): continue
        only = vars(config).get(ONLY.get(name), ONLY.get(name))
        if isinstance(value, (list, np.ndarray)) or value != only:
            expected = "no such field" if only is None else repr(only)
            raise GGUFError(f"{file.path}: {shortened(f'{kind}.{name}', 80)} is {brief(value)}, "
                            f"expected {expected}; nothing else is computed here: {ADVICE}")


def _stretched(file, fields, config):
    """Return our fields of stretched angles. ValueError for those that `Llama` does not compute."""
    def field(name, default):
        """A field after "rope.scaling."; of the default's type."""
        value = fields.get(f"rope.scaling.{name}", default)
        if isinstance(value, (list, np.ndarray)) or type(value) not in (type(default), int):
            raise ValueError(f"rope.scaling.{name} is {brief(value)}, expected a "
                             f"{type(default).__name__}")
        return value
    kind = field("type", "linear")
    field("finetuned", False)                            # changes nothing
    if kind not in ("none", "linear", "yarn"):
        raise ValueError(f"rope.scaling.type is {brief(kind)}, expected 'none', 'linear' or 'yarn'")
    older = fields.get("rope.scale_linear", 1.0)
    if not isinstance(older, (int, float)):
        raise ValueError(f"rope.scale_linear is {brief(older)}, expected a number")
    factor = field("factor", float(older)) or 1.0        # 0 stands for none
    context = field("original_context_length", config.context_length)
    magnitude = field("attn_factor", 1.0)
    stretched = {"rope_factor": factor, "rope_magnitude": magnitude}
    replace(config, **stretched, rope_context=context)   # are they numbers that a model can have?
    if FACTORS in file:
        if kind == "yarn" or factor != 1:
            raise ValueError(f"it has {FACTORS} and rope.scaling.type {kind!r}, expected one")
        if file.shape(FACTORS) != (config.d_head // 2,):
            raise ValueError(f"{FACTORS} has shape {file.shape(FACTORS)}, "
                             f"expected ({config.d_head // 2},)")
        return {"rope_magnitude": magnitude, **llama3_fields(config, file[FACTORS])}
    if kind == "yarn":
        magnitude *= 0.1 * math.log(factor) + 1
        return {"rope_kind": kind, "rope_factor": factor, "rope_context": context,
                "rope_high": 32.0, "rope_magnitude": magnitude}
    return stretched | ({"rope_kind": "linear"} if factor != 1 else {})


def llama3_fields(config: LlamaConfig, divisors: Array) -> dict[str, Any]:
    """Return the fields of the angles of Llama 3.1 to 3.3 that `divisors` (d_head/2,) makes; {} if
    all are 1. ValueError if none of their settings makes them."""
    if (divisors == 1).all(): return {}
    plain = Rotary(config.rope_theta, config.d_head)
    factor = float(divisors.max())
    fields = {"rope_kind": "llama3", "rope_factor": factor, "rope_context": 8192}
    tried = replace(config, **fields).rotary if factor >= 1 else plain
    expected = frequencies(plain, 1) / frequencies(tried, 1)
    if not np.allclose(divisors, expected, rtol=1e-5, atol=0):
        raise ValueError(f"{FACTORS} divides the angles of the rotary embeddings, but not as in "
                         f"Llama 3.1 to 3.3; {ADVICE}")
    return fields
