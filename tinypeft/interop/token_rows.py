"""Trained rows of the token embedding in PEFT's folders, both ways.

    here                    in adapter_config.json            tensors, after base_model.model.
    TrainableTokens         peft_type TRAINABLE_TOKENS,       <embedding>.trainable_tokens_delta,
                            token_indices                     and lm_head's, if the head is tied
    beside a LoRA           trainable_token_indices           <embedding>.token_adapter.
    or an AdaLoRA                                             trainable_tokens_delta

A delta is the rows themselves, (n, d), in the order of the indices. <embedding> is transformer.wte
in GPT-2, else model.embed_tokens. TRAINABLE_TOKENS has no place for a head or for other weights.
"""
from typing import Any

import numpy as np

from ..common.hints import Array
from ..models.decoder import Decoder
from ..peft import AdaLoRA, DyLoRA, LoRA, Method, MethodError, TrainableTokens
from ..peft.part import Part
from ..peft.trainable_tokens import TrainedRows
from .lowrank import State, check_kinds
from .peft_config import PREFIX, Config, Tensors
from .peft_names import names_of

__all__ = ["ROWS_ALONE", "check_rows", "read_rows", "read_rows_beside", "rows_folder",
           "stands_beside_rows"]

ROWS_ALONE = "TRAINABLE_TOKENS"
FIELDS = {"token_indices", "target_modules", "exclude_modules", "init_weights"}
EMBEDDING = "token_embedding"


def stands_beside_rows(method: Method) -> bool:
    """Has PEFT's configuration of the method `trainable_token_indices`?"""
    return isinstance(method, (LoRA, DyLoRA, AdaLoRA))


# -- to a folder -----------------------------------------------------------------------------------
def rows_folder(model: Decoder, part: Part,
                is_beside: bool) -> tuple[dict[str, Any], dict[str, Array]]:
    """(config, tensors) of trained rows, beside another method or alone."""
    layer = part.wrappers[EMBEDDING]
    check_kinds(EMBEDDING, part.wrappers.values(), [TrainedRows])
    path = names_of(model).embedding
    indices = layer.tokens.tolist()
    rows = layer.rows.data
    if is_beside:
        return ({"trainable_token_indices": indices},
                {f"{PREFIX}{path}.token_adapter.trainable_tokens_delta": rows})
    tensors = {f"{PREFIX}{path}.trainable_tokens_delta": rows}
    if model.lm_head is None:
        tensors[f"{PREFIX}lm_head.trainable_tokens_delta"] = rows
    return {"peft_type": ROWS_ALONE, "token_indices": indices, "target_modules": path,
            "init_weights": True}, tensors


def check_rows(model: Decoder, fields: dict[str, Any], is_beside: bool, has_head: bool) -> None:
    """Raise MethodError for what PEFT cannot hold together with trained rows. fields: those of
    other weights of the base."""
    if not is_beside and (fields or has_head):
        raise MethodError("save: PEFT's TrainableTokensConfig holds no head and no other weights; "
                          "add a LoRA, beside which PEFT holds them, or take the format tinypeft")
    if is_saved(model, fields.get("modules_to_save") or ()):
        raise MethodError("save: PEFT trains the whole embedding or some of its rows, not both; "
                          "only the format tinypeft holds it")


def is_saved(model, modules):
    """Is the embedding one of the modules named, or in one?"""
    return any(f".{name}." in f".{names_of(model).embedding}." for name in modules)


# -- from a folder ---------------------------------------------------------------------------------
def read_rows(model: Decoder, config: Config,
              tensors: Tensors) -> tuple[TrainableTokens | None, State]:
    """(method, state) of a folder of TRAINABLE_TOKENS; method is None if its tensor is missing."""
    config.refuse_unknown(FIELDS)
    names = names_of(model)
    path = names_of(model).embedding
    config.get("init_weights", bool, True)                       # only how training began
    if config.select(names, names.modules(lm_head=True), [path]) != [path]:
        raise config.unsupported("target_modules", f"only the token embedding, {path}, has rows "
                                 "that are trained here")
    if config.task() == "SEQ_CLS" or config.saved_modules():
        raise config.unsupported("modules_to_save", "PEFT's TRAINABLE_TOKENS has no such field")
    tied = f"{PREFIX}lm_head.trainable_tokens_delta"
    indices = config.get("token_indices", list, [])
    name = f"{path}.trainable_tokens_delta"
    read = rows_at(model, config, tensors, "token_indices", indices, name)
    if read[0] is None or model.lm_head is not None or tied not in tensors.names:
        return read
    rows = read[1][f"{EMBEDDING}.rows"]
    of_head = tensors.take(tied, rows.shape)
    if not np.array_equal(of_head[np.argsort(indices)], rows):
        raise ValueError(f"{tensors.path}: {tied} and the rows of the embedding differ, and the "
                         "head is tied to it")
    return read


def read_rows_beside(model: Decoder, config: Config,
                     tensors: Tensors) -> tuple[TrainableTokens | None, State]:
    """(method, state) of trainable_token_indices, beside a LoRA; (None, {}) if there are none."""
    field = "trainable_token_indices"
    path = names_of(model).embedding
    indices = config.get(field, (list, dict), [])
    if isinstance(indices, dict):
        if len(indices) != 1 or not path.endswith(*indices):
            raise config.unsupported(field, f"only the token embedding, {path}, has rows that are "
                                     "trained here")
        (indices,) = indices.values()
    if indices == []:
        return None, {}
    if is_saved(model, config.saved_modules()):
        raise config.unsupported("modules_to_save", "it holds the embedding, some rows of which "
                                 f"{field} names")
    return rows_at(model, config, tensors, field, indices,
                   f"{path}.token_adapter.trainable_tokens_delta")


def rows_at(model, config, tensors, field, indices, name):
    """(method, state) of the rows in the tensor `name`, whose tokens are `indices`."""
    V, d = model.config.vocab_size, model.config.d_model
    is_ids = isinstance(indices, list) and all(type(i) is int and 0 <= i < V for i in indices)
    if not is_ids or len(set(indices)) < len(indices) or not indices:
        raise config.invalid(field, f"a list of different token ids in [0, {V})")
    rows = tensors.take(PREFIX + name, (len(indices), d), f"{len(indices)} token ids")
    if rows is None:
        return None, {}
    order = np.argsort(indices)
    tokens = np.array(indices)[order]
    return TrainableTokens(tuple(tokens.tolist())), {f"{EMBEDDING}.tokens": tokens,
                                                     f"{EMBEDDING}.rows": rows[order]}
