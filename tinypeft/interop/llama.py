"""GGUF files, llama.cpp's, → `Llama`, `Gemma` or `GPT`. `gguf_architectures.py` has the names.

A file says more than a model holds: the template of a chat, ids of special tokens, a name, a
licence. `Origin` keeps that, and `write_gguf` writes it again.
"""
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..common.wording import brief, shortened
from ..engine.nn import Parameter
from ..files import naming
from ..models.decoder import Decoder
from ..models.gemma import Gemma
from ..quant import QuantizedEmbedding, QuantizedLinear
from ..text.tokenizer import Tokenizer
from .gguf_architectures import ADVICE, ARCHITECTURES, FACTORS, halves, neighbours
from .gguf_reader import GGUFError, read_gguf
from .gguf_tokenizer import UnknownTokenizer, tokenizer_of_gguf
from .gguf_types import as_qtensor, decode

__all__ = ["Origin", "from_gguf", "halves", "neighbours"]

EMBEDDING, HEAD = "token_embd.weight", "output.weight"


@dataclass(frozen=True)
class Origin:
    """What the GGUF file said that a model was read from. fields: name → type and value, as in the
    file. types: name of a tensor → its type. config, tokenizer: what the fields were read as."""
    fields: dict[str, bytes]
    types: dict[str, str]
    config: Any
    tokenizer: Tokenizer | None


def from_gguf(path: str | Path, quantized: bool = False) -> Decoder:
    """Load a GGUF file of the architecture "llama", "qwen2", "qwen3", "gemma3" or "gpt2", in
    float32, with its tokenizer. A tokenizer that cannot be made here is a warning; the model then
    has none.

    quantized: True leaves matrices as codes, where the file has codes: linear layers become
    `QuantizedLinear`s and embeddings `QuantizedEmbedding`s, which compute the same numbers. Norms
    are float32. Raises FileNotFoundError, or GGUFError for a damaged file, another architecture,
    a type of tensor that is not read, or a field or tensor that asks for what the model does not
    compute, such as experts."""
    file = read_gguf(path)
    architecture, kind, config = _config(file)
    tokenizer = _tokenizer(file, config)
    arrays, layers = {}, {}
    for theirs, (ours, shape) in _layout(file, architecture, kind, config).items():
        type_, octets = file.kind(theirs), file.octets(theirs)
        if architecture.is_paired(config, theirs):       # whole blocks
            octets = halves(octets.reshape(shape[0], -1), config.d_head).reshape(-1)
        rows, *columns = shape
        shape = rows // len(ours), *columns
        with naming(f"{path}: {theirs}", GGUFError):
            for name, part in zip(ours, octets.reshape(len(ours), -1), strict=True):
                module, _, attribute = name.rpartition(".")
                if quantized and type_.bits and attribute == "weight" and len(shape) == 2:
                    layers[module] = _coded(module, as_qtensor(type_, part, shape), config)
                else:
                    arrays[name] = _floats(decode(type_, part, shape), architecture.shift(theirs))
    for module, layer in layers.items():
        if f"{module}.bias" in arrays: layer.bias = Parameter(arrays.pop(f"{module}.bias"))
    model = architecture.model.from_arrays(config, arrays, layers)
    model.tokenizer = tokenizer
    types = {name: file.kind(name).name for name in file}
    model.origin = Origin(file.field_octets(), types, config, tokenizer)
    return model


def _tokenizer(file, config):
    """Return the file's tokenizer. GGUFError if it does not fit."""
    try:
        with naming(file.path, GGUFError): tokenizer = tokenizer_of_gguf(file.fields)
    except GGUFError as e:
        if not isinstance(e.__cause__, UnknownTokenizer): raise
        warnings.warn(f"{e}; the model has no tokenizer", stacklevel=3)
        return None
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise GGUFError(f"{file.path}: the tokenizer has {tokenizer.vocab_size} tokens, the model "
                        f"only {config.vocab_size}")
    return tokenizer


def _coded(module, codes, config):
    """Return the module that holds these codes."""
    if not module.endswith("_embedding"): return QuantizedLinear(codes, None)
    is_scaled = module == "token_embedding" and isinstance(config, Gemma.Config)
    return QuantizedEmbedding(codes, math.sqrt(config.d_model) if is_scaled else 1.0)


def _floats(W, shift):
    """Take `shift` from numbers. ValueError unless they are finite."""
    if not np.isfinite([W.min(), W.max()]).all():
        raise ValueError("it has numbers that are not finite")
    if shift: W -= np.float32(shift)
    return W


def _config(file):
    """(architecture, its name in the file, our configuration)"""
    if file.fields.get("general.type") == "adapter":
        raise GGUFError(f"{file.path} holds an adapter, not a model; llama.cpp takes it by --lora")
    kind = file.fields.get("general.architecture")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise GGUFError(f"{file.path}: the architecture is {brief(kind)}, expected "
                        f"{' or '.join(map(repr, ARCHITECTURES))}")
    content: dict[str, Any] = {name.removeprefix(f"{kind}."): value
                               for name, value in file.fields.items()
                               if name.startswith(f"{kind}.")}
    for name in (EMBEDDING, "output_norm.weight"):
        if name not in file: raise GGUFError(f"{file.path}: the tensor {name} is missing")
    content |= {"vocab_size": file.shape(EMBEDDING)[0], "tied": HEAD not in file,
                "rope_freqs": file[FACTORS] if FACTORS in file else None}
    architecture = ARCHITECTURES[kind]
    try: return architecture, kind, architecture.read(kind, content)
    except (ValueError, TypeError, ZeroDivisionError) as e:
        raise GGUFError(f"{file.path}: {shortened(str(e))}") from e


def _layout(file, architecture, kind, config):
    """Their tensors → (our parameters, shape). GGUFError unless names and shapes fit."""
    if len(architecture.modules) * config.n_layers > 2 * len(file):
        raise GGUFError(f"{file.path}: {len(file)} tensors are too few for {config.n_layers} "
                        "layers")
    try: layout = architecture.layout(config)
    except ValueError as e: raise GGUFError(f"{file.path}: {shortened(str(e))}") from e
    expected = {name: shape for name, (_, shape) in layout.items()}
    actual = {name: file.shape(name) for name in file}
    if kind == "llama": actual.pop(FACTORS, None)
    if HEAD in actual and HEAD not in expected:          # older files repeat the embedding
        if not _is_embedding(file):
            raise GGUFError(f"{file.path}: {HEAD} is not {EMBEDDING}; a {kind} model has one "
                            f"matrix for both here: {ADVICE}")
        actual.pop(HEAD)
    if wrong := sorted(expected.items() ^ actual.items()):
        name = wrong[0][0]
        raise GGUFError(f"{file.path}: {brief(name)} does not fit: expected "
                        f"{expected.get(name, 'no such tensor')}, got {actual.get(name, 'none')}")
    return layout


def _is_embedding(file):
    """Is the tensor of the head the embedding, byte for byte?"""
    return (file.kind(HEAD) == file.kind(EMBEDDING) and file.shape(HEAD) == file.shape(EMBEDDING)
            and np.array_equal(file.octets(HEAD), file.octets(EMBEDDING)))
