"""PEFT's adapter folders for transformers' GPT-2, written for PEFT to load and read from PEFT.

    adapter_config.json           peft_type, task_type and the method's fields
    adapter_model.safetensors     the tensors below

    here                            peft_type         tensors
    LoRA, DyLoRA, AdaLoRA           LORA, ADALORA     see `lowrank`
    PrefixTuning, PTuningV2         PREFIX_TUNING     prompt_embeddings (P, 2 L d): per layer first
                                                      the keys, then the values
    PromptTuning                    PROMPT_TUNING     prompt_embeddings (P, d)
    PTuning with all its pseudo-    P_TUNING          prompt_embeddings (P, d), which the encoder
    tokens before the text                            computes
    a classification head           the same, with    base_model.model.score.weight (C, d), or with
    without a bias                  task SEQ_CLS      virtual tokens base_model.score.weight

A reparameterization is folded, as in PEFT. On both sides the tokens' positions start after the
virtual ones. For PROMPT_TUNING and P_TUNING, PEFT's logits (B, P + T, V) include the virtual ones;
the last T are ours. With transformers 5, PEFT 0.21.2 cannot run PREFIX_TUNING with a head on GPT-2
(transformers has renamed the classifier's cache), and `generate` with virtual tokens needs
use_cache=False: with a cache PEFT loses a prefix and fails on a prompt.

For most mistakes PEFT warns or stays silent, and computes the base's output: names without their
prefix, missing or extra tensors, virtual tokens without task_type. Here each is an error with a
`Report`. Nothing in a folder is executed, and reading it takes no more memory than its files.
"""
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_atomically
from ..gpt import GPT
from ..hints import Array
from ..peft import AdaLoRA, DyLoRA, LoRA, PrefixTuning, PromptTuning, PTuning, PTuningV2
from ..peft.model import MethodError, PeftModel, attach_with
from .folder import Report
from .lowrank import PREFIX, adalora_folder, lora_folder, read_adalora, read_lora
from .peft_config import Config, Tensors
from .safetensors import write_safetensors

__all__ = ["AdapterError", "load_peft", "peft_content", "save_peft"]

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
VIRTUAL_FIELDS = {"num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads",
                  "num_transformer_submodules", "encoder_hidden_size", "prefix_projection",
                  "init_weights", "prompt_tuning_init", "prompt_tuning_init_text",
                  "tokenizer_name_or_path", "tokenizer_kwargs", "encoder_reparameterization_type",
                  "encoder_num_layers", "encoder_dropout"}


class AdapterError(MethodError):
    """A folder's tensors are not those that its configuration and the model need; see `report`."""

    def __init__(self, message: str, report: Report):
        super().__init__(message)
        self.report = report


# -- to a folder ---------------------------------------------------------------------------------
def save_peft(tuned: PeftModel, folder: Path) -> None:
    """Write a `PeftModel` as PEFT would. Writes nothing if `peft_content` raises MethodError."""
    config, tensors = peft_content(tuned)
    tensors = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    (folder / CONFIG).unlink(missing_ok=True)                    # it must not describe new tensors
    write_safetensors(folder / TENSORS, tensors, {"format": "pt"})
    write_atomically(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")


def peft_content(tuned: PeftModel) -> tuple[dict[str, Any], dict[str, Array]]:
    """(config, tensors) as PEFT would write them.

    Raises MethodError for all that PEFT has no counterpart of: bottleneck and parallel adapters,
    trained parameters of the base, pseudo-tokens behind the text, and heads with a bias.
    """
    method, head = tuned.method, tuned.head
    if isinstance(method, (LoRA, DyLoRA)): config, tensors = lora_folder(tuned)
    elif isinstance(method, AdaLoRA):      config, tensors = adalora_folder(tuned)
    elif tuned.virtual is not None:        config, tensors = virtual_folder(tuned)
    else:
        raise MethodError(f"save: PEFT has no counterpart of {method}; save it in our own format")
    if head is not None and head.bias is not None:
        raise MethodError("save: the classification head has a bias, and transformers' head for "
                          "GPT-2 has none; attach with head_bias=False")
    if head is not None: tensors[score_name(tuned.virtual is not None)] = head.weight.data
    return config | {"task_type": "CAUSAL_LM" if head is None else "SEQ_CLS",
                     "modules_to_save": None if head is None else ["score"],
                     "base_model_name_or_path": None, "inference_mode": True}, tensors


def score_name(is_virtual):
    return ("base_model." if is_virtual else PREFIX) + "score.weight"


def virtual_folder(tuned):
    """(config, tensors) of a model tuned by virtual tokens, without the reparameterization."""
    method, c = tuned.method, tuned.config
    virtual = method.fold(tuned.virtual)[1]
    fields = {"num_virtual_tokens": virtual.length, "token_dim": c.d_model,
              "num_layers": c.n_layers, "num_attention_heads": c.n_heads,
              "num_transformer_submodules": 1}
    if isinstance(method, PrefixTuning):
        return fields | {"peft_type": "PREFIX_TUNING"}, {"prompt_embeddings": virtual.P.data}
    if isinstance(method, PromptTuning):
        return fields | {"peft_type": "PROMPT_TUNING"}, {"prompt_embeddings": virtual.P_e.data}
    # Without a separator and a head, all the parts before the last are empty.
    if not (virtual.separator is None and tuned.head is None) and (
            virtual.counts[0] < virtual.length):
        raise MethodError("save: PEFT's P-tuning puts all pseudo-tokens before the text, the "
                          f"template {method.template} does not; train with "
                          f"template=({virtual.length}, 'target')")
    kind = "LSTM" if method.encoder == "lstm" else "MLP"
    fields |= {"encoder_reparameterization_type": kind, "encoder_hidden_size": c.d_model}
    return fields | {"peft_type": "P_TUNING"}, {"prompt_embeddings": virtual.embedding.data}


# -- from a folder -------------------------------------------------------------------------------
def load_peft(model: GPT, folder: Path, strict: bool = True) -> PeftModel:
    """Attach the adapter that PEFT, or `save_peft`, wrote to `folder`; all of it can be trained.

    Raises AdapterError, a MethodError with a `Report`, unless the tensors are exactly those that
    the configuration and the model need; `strict=False` loads those that match and warns. Raises
    MethodError for fields that cannot be expressed here, and ValueError for senseless fields and
    for tensors of another shape.
    """
    config, path = Config(folder / CONFIG), folder / TENSORS
    kind = config.get("peft_type", str)
    if kind not in READERS:
        hint = f"; write it in capitals, {kind.upper()}" if str(kind).upper() in READERS else ""
        raise config.unsupported("peft_type", f"there are {', '.join(READERS)}{hint}")
    if not path.exists() and (folder / "adapter_model.bin").exists():
        raise MethodError(f"load_adapter: {folder} has an adapter_model.bin, which is a pickle and "
                          "can run code; save it in PEFT with safe_serialization=True")
    task, tensors = config.task(), Tensors(path, model.token_embedding.weight.dtype)
    method, state = READERS[kind](model, config, tensors)
    name, shape = score_name(kind not in LOW_RANK), (None, model.config.d_model)
    score = tensors.take(name, shape) if task == "SEQ_CLS" else None
    report = tensors.report()
    if report.missing or report.unused or method is None:
        no_prefix = kind in LOW_RANK and any(not name.startswith(PREFIX) for name in report.unused)
        hint = f" Names must begin with {PREFIX!r}." if no_prefix else ""
        if strict or method is None:
            hint += " strict=False loads those that match." if method is not None else ""
            raise AdapterError(f"load_adapter: {folder} does not fit its configuration and this "
                               f"model: {report}.{hint}", report)
        warnings.warn(f"load_adapter: {folder}: {report}.{hint}", stacklevel=3)
    if score is not None: state["head.weight"] = score
    head = None if score is None else len(score)
    return attach_with(model, method, state, head=head, head_bias=False)


def read_virtual(model, config, tensors):
    """(method, state) for virtual tokens."""
    config.refuse_unknown(VIRTUAL_FIELDS)
    c, kind, task = model.config, config.get("peft_type", str), config.task()
    if task is None:
        raise MethodError(f"load_adapter: {kind} without task_type, which PEFT loads and then "
                          "ignores; it must be CAUSAL_LM or SEQ_CLS")
    for name, ours in (("token_dim", c.d_model), ("num_layers", c.n_layers),
                       ("num_attention_heads", c.n_heads), ("num_transformer_submodules", 1)):
        if (theirs := config.get(name, int, ours)) != ours:
            raise MethodError(f"load_adapter: the adapter is for a model with {name} = {theirs}, "
                              f"this one has {ours}")
    P, prefix = config.get("num_virtual_tokens", int), kind == "PREFIX_TUNING"
    if P is None: raise config.invalid("num_virtual_tokens", "given")
    width = 2 * c.n_layers * c.d_model if prefix else c.d_model
    table = tensors.take("prompt_embeddings", (P, width), f"num_virtual_tokens = {P}")
    if table is None: return None, {}
    if prefix and task == "SEQ_CLS": return PTuningV2(P, dropout=0.0), {"virtual.P": table}
    if prefix: return PrefixTuning(P, reparameterize=False), {"virtual.P": table}
    if kind == "PROMPT_TUNING": return PromptTuning(P), {"virtual.P_e": table}
    return PTuning((P, "target"), encoder=None), {"virtual.embedding": table}


LOW_RANK = {"LORA": read_lora, "ADALORA": read_adalora}
READERS = LOW_RANK | dict.fromkeys(["PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"], read_virtual)
