"""PEFT's adapter folders for transformers' models, written for PEFT to load and read from PEFT.

adapter_config.json holds peft_type, task_type and the method's fields. adapter_model.safetensors
holds the tensors:

    here                            peft_type         tensors
    LoRA, DyLoRA, AdaLoRA           LORA, ADALORA     see `lowrank`
    PrefixTuning, PTuningV2         PREFIX_TUNING     prompt_embeddings (P, 2 L w): per layer first
                                                      the keys, then the values (see `prefix`)
    PromptTuning                    PROMPT_TUNING     prompt_embeddings (P, d)
    PTuning, if all pseudo-tokens   P_TUNING          prompt_embeddings (P, d), which the encoder
    stand before the text                             computes
    a classification head           the same, with    base_model.model.score.weight (C, d), or with
    without a bias                  task SEQ_CLS      virtual tokens base_model.score.weight

A reparameterization is folded, as in PEFT. On both sides the tokens' positions start after the
virtual ones. Mistakes that PEFT ignores, or only warns of, are errors here. Nothing in a folder is
executed, and reading it takes no more memory than its files.
"""
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ..common.hints import Array
from ..files import write_atomically
from ..files.safetensors import write_safetensors
from ..models.decoder import Decoder
from ..peft import AdaLoRA, DyLoRA, LoRA, PrefixTuning, PromptTuning, PTuning, PTuningV2
from ..peft.folders import attach_with
from ..peft.method import MethodError
from ..peft.model import PeftModel
from .folder import HuggingFaceError
from .lowrank import PREFIX, adalora_folder, lora_folder, read_adalora, read_lora
from .peft_config import Config, Tensors

__all__ = ["AdapterError", "check", "load", "save"]

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
VIRTUAL_FIELDS = {"num_virtual_tokens", "encoder_hidden_size", "encoder_num_layers",
                  "encoder_dropout", "encoder_reparameterization_type", "prefix_projection",
                  "init_weights", "prompt_tuning_init", "prompt_tuning_init_text",
                  "tokenizer_name_or_path", "tokenizer_kwargs"}


class AdapterError(MethodError, HuggingFaceError):
    """A folder's tensors are not those that its configuration and the model need; see `report`."""


# -- to a folder ---------------------------------------------------------------------------------
def save(tuned: PeftModel, folder: Path) -> None:
    """Write a `PeftModel` as PEFT would. Writes nothing if `check` raises MethodError.

    If another process replaces the tensors meanwhile, write again: a folder must not hold the
    tensors of one adapter and the configuration of another. OSError if that does not end."""
    config, tensors = content_of(tuned)
    tensors = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    for _ in range(9):
        (folder / CONFIG).unlink(missing_ok=True)                # it must not describe new tensors
        write_safetensors(folder / TENSORS, tensors, {"format": "pt"})
        written = (folder / TENSORS).stat().st_ino
        write_atomically(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
        if (folder / TENSORS).stat().st_ino == written: return
    raise OSError(f"other processes write to {folder} all the time; give another folder")


def check(tuned: PeftModel) -> None:
    """Raise MethodError if `save` would refuse."""
    content_of(tuned)


def content_of(tuned: PeftModel) -> tuple[dict[str, Any], dict[str, Array]]:
    """(config, tensors) as PEFT would write them. MethodError for what PEFT lacks: bottleneck and
    parallel adapters, trained weights of the base, pseudo-tokens after text, heads with a bias."""
    method, head = tuned.method, tuned.head
    if len(tuned.parts) > 1:
        raise MethodError(f"save: {method} are several methods, and a folder of PEFT's holds one; "
                          "save them in our own format, or merge all but one into the base")
    if off := [name for name, part in tuned.parts.items() if not part.on]:
        raise MethodError(f"save: {off[0]} is switched off, which a folder of PEFT's cannot say; "
                          f"reattach({off[0]!r}), or save it in our own format")
    if isinstance(method, (LoRA, DyLoRA, AdaLoRA)):
        for wrapper in tuned.wrappers.values():
            if not wrapper.is_low_rank:
                raise MethodError(f"save: a {type(wrapper).__name__} is not base(x) + ΔW x, as "
                                  "PEFT's folder would say; save it in our own format")
    if isinstance(method, (LoRA, DyLoRA)): config, tensors = lora_folder(tuned)
    elif isinstance(method, AdaLoRA):      config, tensors = adalora_folder(tuned)
    elif tuned.virtual is not None:        config, tensors = virtual_folder(tuned)
    else:
        raise MethodError(f"save: PEFT has no counterpart of {method}; save it in our own format")
    config |= {"task_type": "CAUSAL_LM", "modules_to_save": None, "base_model_name_or_path": None,
               "inference_mode": True}
    if head is None: return config, tensors
    if head.bias is not None:
        raise MethodError("save: the head has a bias, PEFT's has none; attach with head_bias=False")
    tensors[score_name(tuned.virtual is not None)] = head.weight.data
    return config | {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}, tensors


def score_name(is_virtual): return ("base_model." if is_virtual else PREFIX) + "score.weight"


def sizes(c, is_prefix):
    """Return the model's sizes, which a folder with virtual tokens states; for a prefix those of
    the keys, which grouped heads share."""
    heads, d = (c.n_kv_heads, c.n_kv_heads * c.d_head) if is_prefix else (c.n_heads, c.d_model)
    return {"token_dim": d, "num_layers": c.n_layers, "num_attention_heads": heads,
            "num_transformer_submodules": 1}


def virtual_folder(tuned):
    """(config, tensors) of a model tuned by virtual tokens, without the reparameterization."""
    method, c = tuned.method, tuned.config
    virtual = method.fold(tuned.virtual)[1]
    is_prefix = isinstance(method, PrefixTuning)
    fields = sizes(c, is_prefix) | {"num_virtual_tokens": virtual.length}
    if is_prefix:
        return fields | {"peft_type": "PREFIX_TUNING"}, {"prompt_embeddings": virtual.P.data}
    if isinstance(method, PromptTuning):
        return fields | {"peft_type": "PROMPT_TUNING"}, {"prompt_embeddings": virtual.P_e.data}
    one_part = virtual.separator is None and tuned.head is None    # the parts before it are empty
    if not one_part and virtual.counts[0] < virtual.length:
        raise MethodError(f"save: {method.template} puts pseudo-tokens after text, PEFT cannot; "
                          f"train with template=({virtual.length}, 'target')")
    kind = "LSTM" if method.encoder == "lstm" else "MLP"
    fields |= {"encoder_reparameterization_type": kind, "encoder_hidden_size": c.d_model}
    return fields | {"peft_type": "P_TUNING"}, {"prompt_embeddings": virtual.embedding.data}


# -- from a folder -------------------------------------------------------------------------------
def load(model: Decoder, file: Path, strict: bool = True) -> PeftModel:
    """Attach the adapter that PEFT, or `save`, wrote to the folder of `file`, its
    adapter_config.json; all of it can be trained.

    Raises AdapterError unless the tensors are exactly those that the configuration and the model
    need; `strict=False` loads those that match and warns. Raises MethodError for fields that cannot
    be expressed here, and ValueError for invalid fields and shapes."""
    folder = file.parent
    config, path = Config(file), folder / TENSORS
    kind = config.get("peft_type", str)
    if kind not in READERS:
        hint = f"; write it in capitals, {kind.upper()}" if str(kind).upper() in READERS else ""
        raise config.unsupported("peft_type", f"there are {', '.join(READERS)}{hint}")
    if not path.exists() and (folder / "adapter_model.bin").exists():
        raise MethodError(f"load_adapter: {folder}/adapter_model.bin is a pickle and can run code; "
                          "save it in PEFT with safe_serialization=True")
    task, tensors = config.task(), Tensors(path, model.token_embedding.weight.dtype)
    method, state = READERS[kind](model, config, tensors)
    name, shape = score_name(kind not in LOW_RANK), (None, model.config.d_model)
    score = tensors.take(name, shape) if task == "SEQ_CLS" else None
    report = tensors.report()
    if report.missing or report.unused or method is None:
        message = f"load_adapter: {folder} does not fit its configuration and this model: {report}."
        if kind in LOW_RANK and any(not name.startswith(PREFIX) for name in report.unused):
            message += f" Names must begin with {PREFIX!r}."
        if method is None: raise AdapterError(message, report)
        if strict: raise AdapterError(f"{message} strict=False loads those that match.", report)
        warnings.warn(message, stacklevel=3)
    state = {f"{type(method).__name__}/{name}": array for name, array in state.items()}
    if score is not None: state["head.weight"] = score
    head = None if score is None else len(score)
    return attach_with(model, method, state, head=head, head_bias=False)


def read_virtual(model, config, tensors):
    """(method, state) for virtual tokens."""
    c, kind, task = model.config, config.get("peft_type", str), config.task()
    prefix = kind == "PREFIX_TUNING"
    expected = sizes(c, prefix)
    config.refuse_unknown(VIRTUAL_FIELDS | expected.keys())
    if task is None:
        raise config.unsupported("task_type", "it must be CAUSAL_LM or SEQ_CLS; PEFT ignores an "
                                 "adapter without one")
    for name, ours in expected.items():
        if config.get(name, int, ours) != ours:
            raise config.unsupported(name, f"this model has {ours}")
    P, width = config.get("num_virtual_tokens", int), expected["token_dim"]
    if P is None: raise config.invalid("num_virtual_tokens", "given")
    if prefix: width *= 2 * c.n_layers
    table = tensors.take("prompt_embeddings", (P, width), f"num_virtual_tokens = {P}")
    if table is None: return None, {}
    if prefix and task == "SEQ_CLS": return PTuningV2(P, dropout=0.0), {"virtual.P": table}
    if prefix: return PrefixTuning(P, reparameterize=False), {"virtual.P": table}
    if kind == "PROMPT_TUNING": return PromptTuning(P), {"virtual.P_e": table}
    return PTuning((P, "target"), encoder=None), {"virtual.embedding": table}


LOW_RANK = {"LORA": read_lora, "ADALORA": read_adalora}
READERS = LOW_RANK | dict.fromkeys(["PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"], read_virtual)
