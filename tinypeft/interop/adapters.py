"""Adapter folders of Hugging Face's PEFT for transformers' GPT-2: what is learned here loads there, and back.

    adapter_config.json           peft_type, task_type and the method's fields
    adapter_model.safetensors     the tensors below

    here                                peft_type        tensors
    LoRA, DyLoRA, AdaLoRA               LORA, ADALORA    see `lowrank`
    PrefixTuning, PTuningV2             PREFIX_TUNING    prompt_embeddings (P, 2 L d): per layer keys, then values
    PromptTuning                        PROMPT_TUNING    prompt_embeddings (P, d)
    PTuning, pseudo-tokens in front     P_TUNING         prompt_embeddings (P, d): what the encoder computes
    a head without a bias               the same, in     base_model.model.score.weight (C, d), with virtual tokens
                                        task SEQ_CLS     base_model.score.weight

A reparameterization is folded: PEFT, too, keeps what it computes. Positions of tokens start after the virtual ones on
both sides. Virtual tokens show in PEFT's logits, (B, P + T, V) for PROMPT_TUNING and P_TUNING: the last T are those of here.
With transformers 5, PEFT 0.21.2 cannot run PREFIX_TUNING with a head on GPT-2 (its classifier has renamed its past), and
its `generate` needs use_cache=False for virtual tokens: with a cache it loses a prefix and stumbles over a prompt.

PEFT meets most mistakes with a warning, or nothing, and the base's own output: names without their prefix, a missing or
superfluous tensor, virtual tokens without task_type. Here each is an error, which carries a `Report`. Of what is
in a folder nothing is executed, and nothing asks for more memory than the files' sizes.
"""
import json
import re
import warnings

import numpy as np

from ..files import write_atomically
from ..peft import AdaLoRA, DyLoRA, LoRA, MethodError, PrefixTuning, PromptTuning, PTuning, PTuningV2
from ..peft.folders import attach_with
from .folder import Report
from .lowrank import PREFIX, adalora_folder, lora_folder, read_adalora, read_lora
from .peft_config import Config
from .safetensors import read_safetensors, write_safetensors

__all__ = ["AdapterError", "load_peft", "peft_content", "save_peft"]

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
VIRTUAL_FIELDS = {"num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules",
                  "encoder_hidden_size", "prefix_projection", "init_weights", "prompt_tuning_init", "prompt_tuning_init_text",
                  "tokenizer_name_or_path", "tokenizer_kwargs", "encoder_reparameterization_type", "encoder_num_layers",
                  "encoder_dropout"}


class AdapterError(MethodError):
    """The tensors of a folder are not those that its configuration and the model call for; `report` says which."""

    def __init__(self, message, report):
        super().__init__(message)
        self.report = report


# -- to a folder ---------------------------------------------------------------------------------
def save_peft(tuned, folder):
    """Write a `PeftModel` as PEFT would. Raises MethodError, and writes nothing, for what `peft_content` has no place for."""
    config, tensors = peft_content(tuned)
    (folder / CONFIG).unlink(missing_ok=True)                             # never a new file beside an old one
    write_safetensors(folder / TENSORS, {n: np.ascontiguousarray(tensors[n]) for n in sorted(tensors)}, {"format": "pt"})
    write_atomically(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")


def peft_content(tuned):
    """(config, tensors) of a `PeftModel` as PEFT would write them. Raises MethodError for what it has no counterpart of.

    Those are bottleneck and parallel adapters, training of the base's own parameters, P-tuning whose pseudo-tokens do
    not all come before the text, and heads with a bias.
    """
    method, head = tuned.method, tuned.head
    if isinstance(method, (LoRA, DyLoRA)): config, tensors = lora_folder(tuned)
    elif isinstance(method, AdaLoRA):      config, tensors = adalora_folder(tuned)
    elif tuned.virtual is not None:        config, tensors = virtual_folder(tuned)
    else:
        raise MethodError(f"save: PEFT has no counterpart of {method}; save it in our own format, or train LoRA, AdaLoRA, "
                          "DyLoRA, PrefixTuning, PromptTuning or PTuning")
    if head is not None:
        if head.bias is not None:
            raise MethodError("save: transformers' classification head of GPT-2 has no bias, this one has; attach with "
                              "head_bias=False")
        tensors[score_name(tuned.virtual is not None)] = head.weight.data
    config |= {"task_type": "CAUSAL_LM" if head is None else "SEQ_CLS", "modules_to_save": None if head is None else ["score"],
               "base_model_name_or_path": None, "inference_mode": True}
    return config, tensors


def score_name(virtual):
    return ("base_model." if virtual else PREFIX) + "score.weight"


def virtual_folder(tuned):
    """(config, tensors) of a model tuned by virtual tokens, without the reparameterization."""
    method, c = tuned.method, tuned.config
    virtual = method.fold(tuned.virtual)[1]
    fields = {"num_virtual_tokens": virtual.length, "token_dim": c.d_model, "num_layers": c.n_layers,
              "num_attention_heads": c.n_heads, "num_transformer_submodules": 1}
    if isinstance(method, PrefixTuning):
        return {"peft_type": "PREFIX_TUNING", **fields}, {"prompt_embeddings": virtual.P.data}
    if isinstance(method, PromptTuning):
        return {"peft_type": "PROMPT_TUNING", **fields}, {"prompt_embeddings": virtual.P_e.data}
    together = virtual.separator is None and tuned.head is None           # the parts before the last are empty
    if not together and virtual.counts[0] < virtual.length:
        raise MethodError(f"save: PEFT's P-tuning puts all pseudo-tokens before the text, the template {method.template} does "
                          f"not; train with template=({virtual.length}, 'target')")
    kind = "LSTM" if method.encoder == "lstm" else "MLP"
    return ({"peft_type": "P_TUNING", "encoder_reparameterization_type": kind, "encoder_hidden_size": c.d_model, **fields},
            {"prompt_embeddings": virtual.embedding.data})


# -- from a folder -------------------------------------------------------------------------------
class Tensors:
    """The tensors of a folder as they are asked for. `take` notes what was found, `report` what was not or is left."""

    def __init__(self, path, dtype):
        self.path, self.dtype, self.file = path, dtype, read_safetensors(path)
        self.names, self.matched, self.missing = {}, [], []
        for name in self.file:
            short = re.sub(r"\.default(?=\.|$)", "", name)                # an adapter's name, in some folders
            if short in self.names:
                raise ValueError(f"{path}: {name!r} and {self.names[short]!r} are the same tensor")
            self.names[short] = name

    def take(self, name, shape, why=""):
        """The array of this name, in the model's dtype, or None, and it is noted as missing.

        ValueError unless it has floats, finite ones, and the `shape`, of which None may be any number.
        """
        if name not in self.names:
            self.missing.append(name)
            return None
        array = self.file[self.names[name]]
        if len(array.shape) != len(shape) or any(want not in (n, None) for n, want in zip(array.shape, shape, strict=True)):
            expected = ", ".join("any" if n is None else str(n) for n in shape)
            hint = "; it is transposed" if array.shape == shape[::-1] else "; is the base of other sizes?"
            raise ValueError(f"{self.path}: {name} has shape {array.shape}, expected ({expected}){why and ' for '}{why}{hint}")
        if array.dtype.kind != "f":
            raise ValueError(f"{self.path}: {name} has {array.dtype} numbers, expected floats")
        with np.errstate(over="ignore"): array = array.astype(self.dtype)
        if not np.isfinite(array).all():
            raise ValueError(f"{self.path}: {name} has numbers that are not finite in {np.dtype(self.dtype)}")
        self.matched.append(name)
        return array

    def report(self):
        unused = (name for short, name in self.names.items() if short not in self.matched)
        return Report(tuple(self.matched), tuple(self.missing), tuple(unused))


def load_peft(model, folder, strict=True):
    """Attach to `model` the adapter that PEFT, or `save_peft`, wrote to `folder`, with all of it trainable; a `PeftModel`.

    Raises AdapterError, a MethodError with a `Report`, unless the tensors are exactly those that configuration and model
    call for; with `strict=False` warns and loads what is there, if anything. ValueError or MethodError for fields that
    make no sense or that nothing here computes, and for tensors of other shapes.
    """
    config, path = Config(folder / CONFIG), folder / TENSORS
    kind = config.get("peft_type", str)
    if kind not in READERS:
        hint = f"; it is written in capitals, {kind.upper()}" if str(kind).upper() in READERS else ""
        raise MethodError(f"load_adapter: peft_type {str(kind)[:80]!r} is not supported; there are {', '.join(READERS)}{hint}")
    if not path.exists() and (folder / "adapter_model.bin").exists():
        raise MethodError(f"load_adapter: {folder} has an adapter_model.bin, which is a pickle and can run code; save it in "
                          "PEFT with safe_serialization=True")
    task, tensors = config.task(), Tensors(path, model.token_embedding.weight.dtype)
    method, state = READERS[kind](model, config, tensors)
    score = tensors.take(score_name(kind not in LOW_RANK), (None, model.config.d_model)) if task == "SEQ_CLS" else None
    report = tensors.report()
    if report.missing or report.unused or method is None:
        nameless = kind in LOW_RANK and any(not name.startswith(PREFIX) for name in report.unused)
        hint = f" Names must begin with {PREFIX!r}." if nameless else ""
        if strict or method is None:
            raise AdapterError(f"load_adapter: {folder} does not fit its configuration and this model: {report}.{hint}"
                               + (" strict=False loads what matches." if method is not None else ""), report)
        warnings.warn(f"load_adapter: {folder}: {report}.{hint}", stacklevel=3)
    if score is not None: state["head.weight"] = score
    return attach_with(model, method, state, head=None if score is None else len(score), head_bias=False)


def read_virtual(model, config, tensors):
    """(method, state) for virtual tokens."""
    config.refuse_others(VIRTUAL_FIELDS)
    c, kind, task = model.config, config.get("peft_type", str), config.task()
    if task is None:
        raise MethodError(f"load_adapter: {kind} without task_type, which PEFT loads and then ignores; it must be CAUSAL_LM or "
                          "SEQ_CLS")
    for name, ours in (("token_dim", c.d_model), ("num_layers", c.n_layers), ("num_attention_heads", c.n_heads),
                       ("num_transformer_submodules", 1)):
        if (theirs := config.get(name, int, ours)) != ours:
            raise MethodError(f"load_adapter: the adapter was made for a model with {name} = {theirs}, this one has {ours}")
    P = config.get("num_virtual_tokens", int)
    if P is None: raise ValueError(f"{config.path}: num_virtual_tokens is missing")
    prefix = kind == "PREFIX_TUNING"
    table = tensors.take("prompt_embeddings", (P, 2 * c.n_layers * c.d_model if prefix else c.d_model),
                         f"num_virtual_tokens = {P}")
    if table is None: return None, {}
    if prefix and task == "SEQ_CLS": return PTuningV2(P, dropout=0.0), {"virtual.P": table}
    if prefix:                       return PrefixTuning(P, reparameterize=False), {"virtual.P": table}
    if kind == "PROMPT_TUNING":      return PromptTuning(P), {"virtual.P_e": table}
    return PTuning((P, "target"), encoder=None), {"virtual.embedding": table}


LOW_RANK = {"LORA": read_lora, "ADALORA": read_adalora}
READERS = {**LOW_RANK, "PREFIX_TUNING": read_virtual, "PROMPT_TUNING": read_virtual, "P_TUNING": read_virtual}
