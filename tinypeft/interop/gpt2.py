"""Hugging Face's GPT-2 folders, both ways: config.json, safetensors and tokenizer files ↔ `GPT`.

Their wte, wpe and ln_f are our token_embedding, position_embedding and final_norm. Their h.N is our
blocks.N, and `MODULES` lists what is in it. Their linear layers (Conv1D) store W as (d_in, d_out),
the transpose of ours. c_attn computes query, key and value together. Names may start with
"transformer.". `lm_head.weight` repeats the token embedding. `attn.bias` and `attn.masked_bias`, in
old files, hold the causal mask. A folder is not trusted: headers are checked before the model gets
memory, and every tensor must be known.
"""
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from ..files import naming, only_file, write_atomically
from ..files.safetensors import write_safetensors
from ..gpt import GPT, MLP, Attention, Block, GPTConfig
from ..nn import Dropout, LayerNorm, Linear
from ..pretrained import WEIGHTS, load_base
from .bpe import read_tokenizer, write_tokenizer
from .folder import SINGLE, HuggingFaceError, Report, check_fields, read_object, read_tensors

__all__ = ["MODULES", "from_huggingface", "load_model", "to_huggingface"]

# their module in a block → ours, and the shape of its weight in units of d
MODULES = {"ln_1": (["norm1"], (1,)),
           "attn.c_attn": (["attention.query", "attention.key", "attention.value"], (1, 3)),
           "attn.c_proj": (["attention.output"], (1, 1)), "ln_2": (["norm2"], (1,)),
           "mlp.c_fc": (["mlp.up"], (1, 4)), "mlp.c_proj": (["mlp.down"], (4, 1))}
CONV1D = re.compile(r"\.c_\w+\.weight$")                  # their weights that are stored transposed
MASKS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
# our size → theirs, and GPT2Config's default
SIZES = {"vocab_size": ("vocab_size", 50257), "context_length": ("n_positions", 1024),
         "d_model": ("n_embd", 768), "n_layers": ("n_layer", 12), "n_heads": ("n_head", 12)}
DROPOUTS = "resid_pdrop", "embd_pdrop", "attn_pdrop"
# The values for which `GPT` computes the same function. The first is GPT2Config's default.
SUPPORTED = {"model_type": ("gpt2",), "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
             "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,),
             "reorder_and_upcast_attn": (False,), "add_cross_attention": (False,),
             "pruned_heads": (None, {}), "quantization_config": (None,)}


def from_huggingface(folder: str | Path, dtype: Any = np.float32, strict: bool = True) -> GPT:
    """Load a GPT-2 folder as a `GPT` of `dtype`; also called as `GPT.from_huggingface(folder)`.

    The tokenizer (or None) and dropout are the folder's. Loading takes no more memory than the
    model. `strict=False` ignores tensors that a GPT has no use for. Raises FileNotFoundError, and
    HuggingFaceError or SafeTensorsError (both ValueErrors) for a damaged or unsuitable folder."""
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise TypeError(f"from_huggingface: expected float32 or float64, got {np.dtype(dtype)}")
    config, tensors, report = _check_folder(Path(folder))
    if report.missing or strict and report.unused:
        hint = "" if report.missing else "; strict=False ignores the unused ones"
        raise HuggingFaceError(f"{folder} does not fit its config.json: {report}{hint}", report)
    arrays = {}
    for theirs, (ours, _) in _layout(config).items():
        array = _floats(tensors, theirs)
        array = array.T if CONV1D.search(theirs) else array
        for name, part in zip(ours, np.split(array, len(ours)), strict=True):
            with np.errstate(over="ignore"): data = np.array(part, dtype, order="C")
            if not np.isfinite([data.min(), data.max()]).all():
                raise HuggingFaceError(f"{folder}: {theirs} has numbers that are not finite")
            arrays[name] = data
    model = GPT.from_arrays(config, arrays)
    model.tokenizer = read_tokenizer(folder)
    if model.tokenizer is not None and model.tokenizer.vocab_size > config.vocab_size:
        raise HuggingFaceError(f"{folder}: the tokenizer has {model.tokenizer.vocab_size} tokens, "
                               f"the model only {config.vocab_size}")
    return model


def load_model(folder: str | Path | None = None) -> GPT:
    """Load the shipped base (None), a folder from `tinypeft pretrain`, or a GPT-2 folder."""
    if folder is None or only_file(folder, *WEIGHTS): return load_base(folder)
    if not (Path(folder) / "config.json").exists():
        raise FileNotFoundError(f"{folder} holds no model: neither {WEIGHTS[0]} (of `python -m "
                                f"tinypeft pretrain`) nor config.json and {SINGLE} (of GPT-2)")
    return from_huggingface(folder)


def _check_folder(folder):
    """(GPTConfig, short name → (file, name in it), Report); of the weights, reads only lm_head."""
    found = read_tensors(folder)
    if twin := next((name for name in found if f"transformer.{name}" in found), None):
        raise HuggingFaceError(f"{folder}: {twin} occurs with and without 'transformer.'")
    tensors = {name.removeprefix("transformer."): (file, name) for name, file in found.items()}
    content = read_object(path := folder / "config.json")
    with naming(path, HuggingFaceError): config = _parse_config(content, len(tensors))
    layout = _layout(config)
    for name, (_, shape) in layout.items():
        if name in tensors and (got := tensors[name][0].shape(tensors[name][1])) != shape:
            raise HuggingFaceError(f"{folder}: {name} has shape {got}, config.json says {shape}")
    ignored = {name for name in tensors if MASKS.fullmatch(name)}
    if "lm_head.weight" in tensors and "wte.weight" in tensors:
        if not np.array_equal(*(_floats(tensors, f"{name}.weight") for name in ("lm_head", "wte"))):
            raise HuggingFaceError(f"{folder}: lm_head.weight is not wte.weight; a GPT ties them")
        ignored.add("lm_head.weight")
    elif content.get("tie_word_embeddings") is False:
        raise HuggingFaceError(f"{path}: tie_word_embeddings=false, but lm_head.weight is missing")
    return config, tensors, Report(tuple(name for name in layout if name in tensors),
                                   tuple(name for name in layout if name not in tensors),
                                   tuple(sorted(tensors.keys() - layout.keys() - ignored)))


def _parse_config(content, n_tensors):
    """config.json → GPTConfig. ValueError for fields that do not describe a GPT."""
    check_fields(content, SUPPORTED)
    dropouts = {name: content.get(name, 0.1) for name in DROPOUTS}
    if any(p != dropouts["resid_pdrop"] for p in dropouts.values()):
        raise ValueError(f"a GPT here has one dropout for all, got {dropouts}; make them equal")
    sizes = {ours: content.get(theirs, default) for ours, (theirs, default) in SIZES.items()}
    config = GPTConfig(**sizes, dropout=dropouts["resid_pdrop"],         # checks types and limits
                       norm_eps=content.get("layer_norm_epsilon", 1e-5))
    check_fields(content, {"n_inner": (None, 4 * config.d_model)})
    if config.n_layers > n_tensors:                      # checked before memory is needed for them
        raise ValueError(f"{config.n_layers} layers, but the weights are {n_tensors} tensors")
    return config


def _layout(config):
    """Their tensor → (names of our parameters that make it up, its shape), in the model's order."""
    d = config.d_model
    layout = {"wte.weight": (["token_embedding.weight"], (config.vocab_size, d)),
              "wpe.weight": (["position_embedding.weight"], (config.context_length, d))}
    for i in range(config.n_layers):
        for theirs, (ours, shape) in MODULES.items():
            shape = tuple(k * d for k in shape)
            for kind, size in ("weight", shape), ("bias", shape[-1:]):
                layout[f"h.{i}.{theirs}.{kind}"] = [f"blocks.{i}.{m}.{kind}" for m in ours], size
    return layout | {f"ln_f.{kind}": ([f"final_norm.{kind}"], (d,)) for kind in ("weight", "bias")}


def _floats(tensors, name):
    file, full = tensors[name]
    if file.dtype(full) not in ("F64", "F32", "F16", "BF16"):
        raise HuggingFaceError(f"{file.path}: {full} is {file.dtype(full)}, expected floats")
    return file[full]


def to_huggingface(model: GPT, folder: str | Path) -> None:
    """Write a GPT, with its tokenizer, for transformers' `GPT2LMHeadModel`; also called as
    `model.to_huggingface(folder)`. ValueError for one that is quantized, has a method or a head."""
    config, folder = model.config, Path(folder)
    layout, parameters = _layout(config), dict(model.named_parameters())
    odd = parameters.keys() ^ {name for ours, _ in layout.values() for name in ours}
    odd |= {path for path, m in model.named_modules() if path.startswith("blocks")
            and not isinstance(m, (Block, Attention, MLP, Linear, LayerNorm, Dropout))}
    if odd or model.attached is not None:
        got = model.attached or f"one with {sorted(odd)[:3]}"
        raise ValueError(f"to_huggingface: expected a plain GPT, got {got}; merge or detach the "
                         "method, set model.head = None, or use a model that is not quantized")
    arrays = {}
    for theirs, (ours, _) in layout.items():
        parts = [parameters[name].data for name in ours]
        array = np.concatenate(parts) if len(parts) > 1 else parts[0]
        arrays[f"transformer.{theirs}"] = array.T if CONV1D.search(theirs) else array
    end = getattr(model.tokenizer, "end_of_text", None)
    content = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"],
               **{theirs: getattr(config, ours) for ours, (theirs, _) in SIZES.items()},
               "n_inner": None, "activation_function": "gelu_new",
               **dict.fromkeys(DROPOUTS, config.dropout), "layer_norm_epsilon": config.norm_eps,
               "bos_token_id": end, "eos_token_id": end, "tie_word_embeddings": True,
               "dtype": str(model.token_embedding.weight.dtype)}
    (folder / "config.json").unlink(missing_ok=True)             # it must not describe new tensors
    write_safetensors(folder / SINGLE, arrays, {"format": "pt"})
    if model.tokenizer is not None: write_tokenizer(folder, model.tokenizer)
    write_atomically(folder / "config.json", json.dumps(content, indent=2) + "\n")


# GPT has them as methods too. They are added here because gpt.py knows nothing of other formats.
GPT.from_huggingface, GPT.to_huggingface = staticmethod(from_huggingface), to_huggingface
