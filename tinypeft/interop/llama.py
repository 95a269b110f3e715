"""GGUF files of the Llama family → `Llama`.

    theirs                   ours                     blk.N is blocks.N
    token_embd               token_embedding          attn_q  attn_k  attn_v  attn_output
    output (absent if tied)  lm_head                  attention.query  key  value  output
    output_norm              final_norm               attn_norm  ffn_norm: norm1  norm2
                                                      ffn_gate  ffn_up  ffn_down: mlp.gate  up  down

GGUF stores the rows of attn_q and attn_k for a rotation of neighbours (x_{2i}, x_{2i+1}). `halves`
reorders them for the rotation of halves (x_i, x_{i + d/2}) that `Llama` computes.

A file may ask for more than `Llama` computes: the tensor rope_freqs.weight of Llama 3.1 to 3.3
holds a divisor for the angle of each pair, and llama.cpp obeys the fields in `ONLY`. They are
refused unless what they say changes nothing.
"""
from pathlib import Path
from typing import Any

import numpy as np

from ..common.hints import Array
from ..common.wording import brief, shortened
from ..files import naming
from ..models.llama import Llama, LlamaConfig
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
        "rope.dimension_count": "d_head", "rope.scale_linear": 1,
        "rope.scaling.type": "none", "rope.scaling.factor": 1, "rope.scaling.attn_factor": 1,
        "rope.scaling.finetuned": False,
        "rope.scaling.original_context_length": "context_length"}
FACTORS = "rope_freqs.weight"
ADVICE = ("take a model without it, such as SmolLM2, TinyLlama, or Llama up to 3.0, or run this "
          "one with llama.cpp")


def from_gguf(path: str | Path, quantized: bool = False) -> Llama:
    """Load a GGUF file of the architecture "llama" as a `Llama`, in float32, with its tokenizer.

    quantized: True leaves the linear layers of the blocks as codes, where the file has codes: they
    become `QuantizedLinear`s, which compute the same numbers. Embeddings and norms are float32.
    Raises FileNotFoundError, or GGUFError for a damaged file, another architecture, or a field or
    tensor that asks for what `Llama` does not compute, such as scaled rotary embeddings."""
    file = read_gguf(path)
    config, arrays, layers = _config(file), {}, {}
    _check_only(file, config)
    with naming(path, GGUFError): tokenizer = tokenizer_of_gguf(file.fields)
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise GGUFError(f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, the model only "
                        f"{config.vocab_size}")
    for name, ours in _names(file, config).items():
        kind, shape, octets = file.kind(name), file.shape(name), file.octets(name)
        if "attn_q." in name or "attn_k." in name:               # a row is whole blocks
            octets = halves(octets.reshape(shape[0], -1), config.d_head).reshape(-1)
        with naming(f"{path}: {name}", GGUFError):
            if quantized and kind.bits and ours.startswith("blocks.") and len(shape) == 2:
                layers[ours] = QuantizedLinear(as_qtensor(kind, octets, shape), None)
                continue
            W = arrays[f"{ours}.weight"] = decode(kind, octets, shape)
            if not np.isfinite([W.min(), W.max()]).all():
                raise ValueError("it has numbers that are not finite")
    model = Llama.from_arrays(config, arrays, layers)
    model.tokenizer = tokenizer
    return model


def _names(file, config):
    """Their name of every tensor → our module's path. GGUFError unless names and shapes fit."""
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
    expected = {f"{name}.weight": tuple(sizes[axis] for axis in axes)
                for name, (_, axes) in layout.items()}
    got = {name: file.shape(name) for name in file if name != FACTORS}
    if wrong := sorted(expected.items() ^ got.items()):
        raise GGUFError(f"{file.path}: {brief(wrong[0][0])} does not fit: expected "
                        f"{expected.get(wrong[0][0], 'no such tensor')}, got "
                        f"{got.get(wrong[0][0], 'none')}")
    return {f"{theirs}.weight": ours for theirs, (ours, _) in layout.items()}


def halves(W: Array, d_head: int) -> Array:
    """Reorder the rows of W (heads · d_head, d): 2i, 2i + 1 of a head become i, i + d_head/2."""
    pairs = W.reshape(-1, d_head // 2, 2, W.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(W.shape)


def neighbours(W: Array, d_head: int) -> Array:
    """Return the inverse of `halves`."""
    pairs = W.reshape(-1, 2, d_head // 2, W.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(W.shape)


def _config(file) -> LlamaConfig:
    fields: dict[str, Any] = file.fields
    if (kind := fields.get("general.architecture")) != "llama":
        raise GGUFError(f"{file.path}: the architecture is {brief(kind)}, expected 'llama'")
    if missing := [name for name in SIZES.values() if f"llama.{name}" not in fields
                   and name not in ("attention.head_count_kv", "rope.freq_base")]:
        raise GGUFError(f"{file.path}: the field llama.{missing[0]} is missing")
    if lists := [name for name in SIZES.values()
                 if isinstance(fields.get(f"llama.{name}"), (list, np.ndarray))]:
        raise GGUFError(f"{file.path}: llama.{lists[0]} is a list, expected one number for all "
                        "layers")
    defaults = {"attention.head_count_kv": fields["llama.attention.head_count"],
                "rope.freq_base": 10000.0}
    values = {ours: fields.get(f"llama.{theirs}", defaults.get(theirs))
              for ours, theirs in SIZES.items()}
    for name in ("token_embd.weight", "output_norm.weight"):
        if name not in file: raise GGUFError(f"{file.path}: the tensor {name} is missing")
    try:
        d_head = fields.get("llama.attention.key_length", values["d_model"] // values["n_heads"])
        return LlamaConfig(vocab_size=file.shape("token_embd.weight")[0], d_head=d_head,
                           tied="output.weight" not in file, **values)
    except (ValueError, TypeError, ZeroDivisionError) as e:
        raise GGUFError(f"{file.path}: {shortened(str(e))}") from e


def _check_only(file, config):
    """GGUFError if a field, or the tensor of factors, asks for another function than `Llama`'s."""
    for name, value in file.fields.items():
        prefix, _, field = name.partition("llama.")
        if prefix or field not in ONLY and not field.startswith("rope.scaling."): continue
        only = vars(config).get(ONLY.get(field), ONLY.get(field))
        if isinstance(value, (list, np.ndarray)) or value != only:
            expected = "no such field" if only is None else repr(only)
            raise GGUFError(f"{file.path}: {shortened(name, 80)} is {brief(value)}, expected "
                            f"{expected}; nothing else is computed here: {ADVICE}")
    if FACTORS not in file: return
    with naming(f"{file.path}: {FACTORS}", GGUFError):
        if file.shape(FACTORS) != (config.d_head // 2,) or np.any(file[FACTORS] != 1):
            raise ValueError("it divides the angles of the rotary embeddings, as in Llama 3.1 to "
                             f"3.3; scaled rotary embeddings are not computed here: {ADVICE}")
