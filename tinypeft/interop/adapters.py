"""PEFT's adapter folders for transformers' models, written for PEFT to load and read from PEFT.

adapter_config.json holds peft_type, task_type and the method's fields. adapter_model.safetensors
holds the tensors:

    here                            peft_type         tensors
    LoRA, DoRA, DyLoRA, AdaLoRA     LORA, ADALORA     see `lowrank`
    IA3                             IA3               see `ia3`
    other changes of weights        LOHA, VERA, …     see `changed_table`
    TrainableTokens                 TRAINABLE_TOKENS  see `token_rows`; also beside a LoRA
    FullFineTuning, of norms        LN_TUNING         see `base_weights`
    FullFineTuning, beside these    the same, with    modules_to_save or bias; see `base_weights`
    PrefixTuning, PTuningV2         PREFIX_TUNING     prompt_embeddings (P, 2 L w): per layer first
                                                      the keys, then the values (see `prefix`)
    PromptTuning                    PROMPT_TUNING     prompt_embeddings (P, d)
    PTuning, if all pseudo-tokens   P_TUNING          prompt_embeddings (P, d), which the encoder
    stand before the text                             computes
    LinearProbe                     LN_TUNING         the last norm, as it is
    a classification head           the same, with    base_model.model.score.weight (C, d), or with
    without a bias                  task SEQ_CLS      virtual tokens base_model.score.weight

A reparameterization is folded, as in PEFT. On both sides the tokens' positions start after the
virtual ones. Mistakes that PEFT ignores, or only warns of, are errors here. Nothing in a folder is
executed, and reading it takes no more memory than its files.
"""
import contextlib
import functools
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..common.hints import Array
from ..common.wording import shortened
from ..files import fingerprint, write_atomically
from ..files.safetensors import write_safetensors
from ..models.decoder import SHIPPED, Decoder
from ..peft import (
    IA3,
    AdaLoRA,
    DyLoRA,
    LoRA,
    PrefixTuning,
    PromptTuning,
    PTuning,
    PTuningV2,
    TrainableTokens,
)
from ..peft.folders import attach_with
from ..peft.method import MethodError
from ..peft.model import PeftModel
from ..peft.part import Methods
from ..peft.prefix import Prefix
from ..peft.prompt import Prompt
from ..peft.ptuning import PseudoTokens
from .base_weights import base_weights_folder, method_of, read_base_weights, read_norms
from .changed_layers import changed_folder, read_changed
from .changed_table import ROWS, row_of
from .folder import HuggingFaceError
from .ia3 import ia3_folder, read_ia3
from .loading import SMOLLM2
from .lowrank import (
    adalora_folder,
    adapted_layers,
    check_kinds,
    lora_folder,
    read_adalora,
    read_lora,
)
from .peft_config import PREFIX, VIRTUAL, Config, Tensors, prefix_of
from .token_rows import (
    ROWS_ALONE,
    check_rows,
    read_rows,
    read_rows_beside,
    rows_folder,
    stands_beside_rows,
)

__all__ = ["AdapterError", "base_address", "check", "hub_name", "load", "save"]

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"         # what was quantized to make SmolLM2's file
FINGERPRINTS = {                                         # of its weights, in float32 and as codes
    "7c563b195edf3d1ee2e2cc8fba9040fa0c68d3b64c70dd84801c108950d6b94f",
    "a454ad47ff74d44ff1148aade7be3459978306e7a54a29b1b7f218fd1ef471cf"}
VIRTUAL_FIELDS = {"num_virtual_tokens", "encoder_hidden_size", "encoder_num_layers",
                  "encoder_dropout", "encoder_reparameterization_type", "prefix_projection",
                  "init_weights", "prompt_tuning_init", "prompt_tuning_init_text",
                  "tokenizer_name_or_path", "tokenizer_kwargs"}


class AdapterError(MethodError, HuggingFaceError):
    """A folder's tensors are not those that its configuration and the model need; see `report`."""


# -- to a folder ---------------------------------------------------------------------------------
def save(tuned: PeftModel, folder: Path, named: bool = True) -> None:
    """Write a `PeftModel` as PEFT would. Writes nothing if `check` raises MethodError. named: say
    for which base it is, as `base_address` does.

    If another process replaces the tensors meanwhile, write again: a folder must not hold the
    tensors of one adapter and the configuration of another. OSError if that does not end."""
    config, tensors = content_of(tuned)
    config["base_model_name_or_path"] = base_address(tuned.frozen) if named else None
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


def base_address(model: Decoder) -> str | None:
    """Return where transformers finds a base, as PEFT's `AutoPeftModelForCausalLM` needs it: the
    whole path of the folder that it was loaded from, or its name on huggingface.co, or None."""
    place = Path(model.source or "")
    is_name = model.source in (None, SHIPPED, SMOLLM2)
    if not is_name and (place / "config.json").is_file():
        return str(place.absolute())
    return hub_name(model)


def hub_name(model: Decoder) -> str | None:
    """Return the name of a base on huggingface.co, or None. Only SmolLM2 is known, by its weights,
    so a model that was trained or merged has no name."""
    if (model.config.d_model, model.config.n_layers) != (576, 30):       # hashing takes a second
        return None
    return HUB_NAME if fingerprint(model.state_dict()) in FINGERPRINTS else None


def content_of(tuned: PeftModel) -> tuple[dict[str, Any], dict[str, Array]]:
    """(config, tensors) as PEFT would write them. MethodError for what PEFT lacks: bottleneck and
    parallel adapters, pseudo-tokens after text, heads with a bias, some weights of the base."""
    parts = [part for part in tuned.parts.values() if part.wrappers or part.virtual]
    rows = [part for part in parts if isinstance(part.method, TrainableTokens)]
    added = [part for part in parts if part not in rows]
    can_share = not rows or not added or stands_beside_rows(added[0].method)
    if len(added) > 1 or len(rows) > 1 or not can_share:
        methods = Methods(part.method for part in parts)
        raise MethodError(f"save: {methods} are several methods, and a folder of PEFT's holds one, "
                          "with trained weights of the base; take the format tinypeft, or merge "
                          "all but one into the base")
    if off := [name for name, part in tuned.parts.items() if not part.on]:
        raise MethodError(f"save: {off[0]} is switched off, which a folder of PEFT's cannot say; "
                          f"reattach({off[0]!r}), or take the format tinypeft, which holds it")
    config, tensors = added_folder(tuned, added[0]) if added else ({}, {})
    for part in rows:
        fields, deltas = rows_folder(tuned.model, part, is_beside=bool(added))
        config, tensors = config | fields, tensors | deltas
    adapted = [path for path, _ in adapted_layers(tuned)]
    fields, weights = base_weights_folder(tuned, config.get("peft_type"), adapted)
    if not tensors and not weights:
        raise MethodError(f"save: PEFT has no counterpart of {tuned.method}; only the format "
                          "tinypeft holds it")
    head = tuned.head
    if rows: check_rows(tuned.model, fields, is_beside=bool(added), has_head=head is not None)
    saved = {} if config.get("peft_type") == ROWS_ALONE else {"modules_to_save": None}
    config = {"task_type": "CAUSAL_LM", "inference_mode": True, **saved, **config, **fields}
    tensors |= weights
    if head is None: return config, tensors
    if head.bias is not None:
        raise MethodError("save: the head has a bias, PEFT's has none; attach one without "
                          "(head_bias)")
    tensors[prefix_of(config["peft_type"]) + "score.weight"] = head.weight.data
    saved = ["score", *(config["modules_to_save"] or ())]
    return config | {"task_type": "SEQ_CLS", "modules_to_save": saved}, tensors


def added_folder(tuned, part):
    """(config, tensors) of what the method of `part` adds to the base."""
    method = part.method
    if isinstance(method, (LoRA, DyLoRA)): return lora_folder(tuned, method)
    if isinstance(method, AdaLoRA):        return adalora_folder(tuned, method)
    if isinstance(method, IA3):            return ia3_folder(tuned)
    if row := row_of(method):              return changed_folder(tuned, row, method)
    if isinstance(method, (PrefixTuning, PromptTuning, PTuning)):
        return virtual_folder(tuned, method)
    raise MethodError(f"save: PEFT has no counterpart of {method}; only the format tinypeft holds "
                      "it")


def sizes(c, is_prefix):
    """Return the model's sizes, which a folder with virtual tokens states; for a prefix those of
    the keys, which grouped heads share."""
    heads, d = (c.n_kv_heads, c.n_kv_heads * c.d_head) if is_prefix else (c.n_heads, c.d_model)
    return {"token_dim": d, "num_layers": c.n_layers, "num_attention_heads": heads,
            "num_transformer_submodules": 1}


def virtual_folder(tuned, method):
    """(config, tensors) of a model tuned by virtual tokens, without the reparameterization."""
    c = tuned.config
    virtual = method.fold(tuned.virtual)[1]
    check_kinds("the input", [virtual], [Prefix, Prompt, PseudoTokens])
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
    be expressed here, and ValueError for invalid fields and shapes. Those that another base may
    cause have a note that names the base in the folder."""
    folder = file.parent
    config, path = Config(file), folder / TENSORS
    kind = config.get("peft_type", str)
    if kind not in READERS:
        hint = f"; write it in capitals, {kind.upper()}" if str(kind).upper() in READERS else ""
        raise config.unsupported("peft_type", f"there are {', '.join(READERS)}{hint}")
    if not path.exists() and (folder / "adapter_model.bin").exists():
        raise MethodError(f"load_adapter: {folder}/adapter_model.bin is a pickle and can run code; "
                          "save it as safetensors in PEFT (safe_serialization)")
    with noting_base(config):
        return load_tensors(model, config, path, kind, strict)


@contextlib.contextmanager
def noting_base(config: Config) -> Iterator[None]:
    """An error inside carries a note that names the base of the adapter, where the file has one."""
    try:
        yield
    except ValueError as e:
        name = config.fields.get("base_model_name_or_path")
        if isinstance(name, str) and name:
            wanted = SMOLLM2 if name == HUB_NAME else shortened(name, 240)
            e.add_note(f"its base came from the model {wanted!r}")
        raise


def load_tensors(model: Decoder, config: Config, path: Path, kind: str, strict: bool) -> PeftModel:
    """Attach what the file at `path` holds, of an adapter of this kind; see `load`."""
    folder = path.parent
    task, tensors = config.task(), Tensors(path, model.dtype)
    method, arrays = READERS[kind](model, config, tensors)
    methods = {} if method is None else {type(method).__name__: method}
    state = {f"{name}/{path}": array for name in methods for path, array in arrays.items()}
    if kind in WITH_ROWS:
        rows, arrays = read_rows_beside(model, config, tensors)
        if rows is not None:
            methods["TrainableTokens"] = rows
            state |= {f"TrainableTokens/{path}": array for path, array in arrays.items()}
    weights = read_base_weights(model, config, tensors)
    if weights:
        methods["FullFineTuning"] = method_of(model, weights)
        state |= {f"FullFineTuning/{name}": array for name, array in weights.items()}
    name, shape = prefix_of(kind) + "score.weight", (None, model.config.d_model)
    score = tensors.take(name, shape) if task == "SEQ_CLS" else None
    report = tensors.report()
    if report.missing or report.unused or not methods:
        message = f"load_adapter: {folder} does not fit its configuration and this model: {report}."
        if kind not in VIRTUAL and any(not name.startswith(PREFIX) for name in report.unused):
            message += f" Names must begin with {PREFIX!r}."
        if not methods: raise AdapterError(message, report)
        if strict: raise AdapterError(f"{message} In Python, strict=False loads those "
                                        "that match.", report)
        warnings.warn(message, stacklevel=3)
    if score is not None: state["head.weight"] = score
    head = None if score is None else len(score)
    return attach_with(model, methods, state, head=head, head_bias=False)


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


WITH_ROWS = {"LORA", "ADALORA"}                          # they have trainable_token_indices
READERS = {"LORA": read_lora, "ADALORA": read_adalora, "IA3": read_ia3, "LN_TUNING": read_norms,
           ROWS_ALONE: read_rows,
           **dict.fromkeys(VIRTUAL, read_virtual),
           **{row.peft_type: functools.partial(read_changed, row) for row in ROWS}}
