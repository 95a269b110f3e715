"""Hugging Face's folders of models, both ways: config.json, safetensors, tokenizer ↔ `Decoder`.

config.json names a family of models by its model_type. The family's table (`families/`) says which
tensors hold which of our parameters. A folder is not trusted: headers are checked before the
model gets memory, every tensor must be known, and every field that could change the function must
have a value for which our model computes the same.
"""
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from ..common.hints import Array
from ..common.wording import brief
from ..engine.nn import Dropout, LayerNorm, Linear, Parameter, RMSNorm
from ..files import naming, write_atomically
from ..files.safetensors import write_safetensors
from ..models.decoder import Block, Decoder, require_free
from .bpe import read_tokenizer, write_tokenizer
from .families import FAMILIES, Family, family_of
from .families.family import Layout
from .folder import SINGLE, HuggingFaceError, Report, check_fields, read_object, read_tensors

__all__ = ["HEAD", "arrays_of", "from_huggingface", "to_huggingface"]

HEAD, SCORE = "lm_head.weight", "score.weight"
REFUSED = {"gemma3": "it reads images, too; a folder of its text part has model_type gemma3_text"}


def from_huggingface(folder: str | Path, dtype: Any = np.float32, strict: bool = True,
                     expected: type[Decoder] = Decoder) -> Decoder:
    """Load a folder as a model of `dtype`; `load_model` calls this, and says what the rest means.

    The tokenizer (or None) is the folder's. A folder of a `ForSequenceClassification` gives a model
    with a head; it must be tied, or have lm_head, too. Loading takes no more memory than the model
    and one tensor. Raises FileNotFoundError, and HuggingFaceError or SafeTensorsError (both
    ValueErrors) for a damaged or unsuitable folder."""
    family, config, layout, tensors, report = _check_folder(Path(folder), expected)
    if report.missing or strict and report.unused:
        hint = "" if report.missing else "; strict=False ignores the unused ones"
        raise HuggingFaceError(f"{folder} does not fit its config.json: {report}{hint}", report)
    arrays = {}
    for theirs, (ours, _) in layout.items():
        array = _floats(tensors, theirs)
        array = array.T if family.transposed.search(theirs) else array
        for name, part in zip(ours, np.split(array, len(ours)), strict=True):
            with np.errstate(over="ignore"): data = np.array(part, dtype, order="C")
            if not np.isfinite([data.min(), data.max()]).all():
                raise HuggingFaceError(f"{folder}: {theirs} has numbers that are not finite")
            arrays[name] = data
    model = family.model.from_arrays(config, arrays)
    model.tokenizer = read_tokenizer(folder, config.vocab_size)
    if model.tokenizer is not None and model.tokenizer.vocab_size > config.vocab_size:
        raise HuggingFaceError(f"{folder}: the tokenizer has {model.tokenizer.vocab_size} tokens, "
                               f"the model only {config.vocab_size}")
    return model


def _check_folder(folder, expected):
    """(family, configuration, its layout, short name → (file, name in it), Report). Of the
    weights, reads only a head that is tied."""
    found, content = read_tensors(folder), read_object(path := folder / "config.json")
    with naming(path, HuggingFaceError):
        family, kind = _family(content, expected)
        check_fields(content, family.supported)
        config = family.read(kind, content)
        if config.n_layers > len(found):                 # checked before memory is needed for them
            raise ValueError(f"{brief(config.n_layers)} layers, but the weights are "
                             f"{len(found)} tensors")
        layout = family.layout(config)
    tensors = _without_prefix(folder, found, family.prefix)
    if _is_classifier(content) and SCORE in tensors:
        file, name = tensors[SCORE]
        layout[SCORE] = ["head.weight"], (max((*file.shape(name), 1)[0], 1), config.d_model)
    for name, (_, shape) in layout.items():
        if name in tensors and (got := tensors[name][0].shape(tensors[name][1])) != shape:
            raise HuggingFaceError(f"{folder}: {name} has shape {got}, config.json says {shape}")
    ignored = {name for name in tensors if family.buffers.fullmatch(name)}
    embedding = f"{family.embedding}.weight"
    if HEAD not in layout and HEAD in tensors and embedding in tensors:
        if not np.array_equal(_floats(tensors, HEAD), _floats(tensors, embedding)):
            raise HuggingFaceError(f"{folder}: {HEAD} is not {embedding}, but config.json ties "
                                   "them")
        ignored.add(HEAD)
    elif HEAD not in layout and content.get("tie_word_embeddings") is False:
        raise HuggingFaceError(f"{path}: tie_word_embeddings=false, but {HEAD} is missing")
    return family, config, layout, tensors, Report(
        tuple(name for name in layout if name in tensors),
        tuple(name for name in layout if name not in tensors),
        tuple(sorted(tensors.keys() - layout.keys() - ignored)))


def _family(content, expected):
    """(family, model_type). The oldest folders of GPT-2 name no model_type."""
    families = {kind: family for family in FAMILIES if issubclass(family.model, expected)
                for kind in family.defaults}
    kind = content.get("model_type", "gpt2")
    if isinstance(kind, str) and kind in REFUSED:
        raise ValueError(f"model_type is {kind!r}, which is not supported: {REFUSED[kind]}")
    check_fields({"model_type": kind}, {"model_type": tuple(families)})
    return families[kind], kind


def _is_classifier(content):
    kinds = content.get("architectures")
    return isinstance(kinds, list) and str(kinds[:1]).endswith("ForSequenceClassification']")


def _without_prefix(folder, found, prefix):
    """Short name → (file, its name there)."""
    if twin := next((name for name in found if f"{prefix}{name}" in found), None):
        raise HuggingFaceError(f"{folder}: {twin} occurs with and without {prefix!r}")
    return {name.removeprefix(prefix): (file, name) for name, file in found.items()}


def _floats(tensors, name):
    file, full = tensors[name]
    if file.dtype(full) not in ("F64", "F32", "F16", "BF16"):
        raise HuggingFaceError(f"{file.path}: {full} is {file.dtype(full)}, expected floats")
    return file[full]


def to_huggingface(model: Decoder, folder: str | Path) -> None:
    """Write a model, with its tokenizer; see `save_model`, which calls this."""
    require_free(model, "save_model")
    family, config, folder = family_of(model), model.config, Path(folder)
    layout, parameters = family.layout(config), dict(model.named_parameters())
    classifier = _classifier(model)
    for name in classifier: del parameters[name]
    odd = parameters.keys() ^ {name for ours, _ in layout.values() for name in ours}
    odd |= {path for path, m in model.named_modules() if path.startswith("blocks")
            and not isinstance(m, (Block, *family.parts, Linear, LayerNorm, RMSNorm, Dropout))}
    if odd:
        raise ValueError(f"save_model: expected a plain {type(model).__name__}, got one with "
                         f"{sorted(odd)[:3]}; for a quantized model, give dequantize(model)")
    arrays = arrays_of(family, layout, parameters)
    content = {**family.write(config), **_ends(model.tokenizer),
               "dtype": str(model.dtype)}
    if classifier:
        arrays[SCORE] = classifier["head.weight"]
        content |= _class_fields(content, len(arrays[SCORE]), model.task)
    (folder / "config.json").unlink(missing_ok=True)             # it must not describe new tensors
    write_safetensors(folder / SINGLE, arrays, {"format": "pt"})
    if model.tokenizer is not None: write_tokenizer(folder, model.tokenizer)
    write_atomically(folder / "config.json", json.dumps(content, indent=2) + "\n")


def _classifier(model):
    """Return {"head.weight": W} of a model with a head, else {}. ValueError for a head that is not
    x Wᵀ."""
    head = model.head
    if head is not None and (type(head) is not Linear or head.bias is not None):
        raise ValueError("save_model: the head has a bias, and transformers' has none; train one "
                         "without (head_bias), or take the head off")
    return {} if head is None else {"head.weight": head.weight.data}


def _class_fields(content, n_classes, task):
    """Return the fields of config.json that make a folder one of a classifier."""
    names = getattr(task, "classes", [])
    if len(names) != n_classes:
        names = [f"LABEL_{i}" for i in range(n_classes)]
    kind = re.sub("LMHeadModel|ForCausalLM", "ForSequenceClassification",
                  content["architectures"][0])
    return {"architectures": [kind], "pad_token_id": content["eos_token_id"],
            "id2label": {str(i): name for i, name in enumerate(names)},
            "label2id": {name: i for i, name in enumerate(names)}}


def arrays_of(family: Family, layout: Layout, parameters: dict[str, Parameter]) -> dict[str, Array]:
    """Their tensors in full, from our parameters by name."""
    arrays = {}
    for theirs, (ours, _) in layout.items():
        parts = [parameters[name].data for name in ours]
        array = np.concatenate(parts) if len(parts) > 1 else parts[0]
        array = array.T if family.transposed.search(theirs) else array
        arrays[theirs if theirs == HEAD else family.prefix + theirs] = array
    return arrays


def _ends(tokenizer):
    """Return the fields for the tokens in front of a text and after it."""
    if tokenizer is None: return {"bos_token_id": None, "eos_token_id": None}
    end, turn = tokenizer.end_of_text, tokenizer.end_of_turn
    return {"bos_token_id": tokenizer.opening, "eos_token_id": end if turn is None else turn}
