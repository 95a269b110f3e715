"""(IA)³ in PEFT's folders, both ways.

    here                                     in a folder, after base_model.model.<their layer>
    l of a layer whose output is scaled      .ia3_l   (d_out, 1)
    l of a layer in `feedforward`            .ia3_l   (1, d_in)

`target_modules` are all of these layers, `feedforward_modules` those whose input is scaled. GPT-2's
query, key and value are one layer in PEFT, c_attn, with one l. On the way there, the l of a part
that has none here is 1. On the way back, a part gets no l if all of its numbers are 1, unless those
of all three parts are. An l for the input of c_attn becomes three equal ones here. Only equal ones
can go back, because c_attn has one input.
"""
from typing import Any

import numpy as np

from ..common.hints import Array
from ..models.decoder import Decoder
from ..models.targets import names_for
from ..peft import IA3, MethodError
from ..peft.ia3 import ScaledInput, ScaledOutput
from ..peft.model import PeftModel
from .lowrank import State, adapted_layers, check_kinds, linear_layers
from .peft_config import PREFIX, Config, Tensors, matches
from .peft_names import names_of

__all__ = ["ia3_folder", "read_ia3"]

FIELDS = {"target_modules", "exclude_modules", "feedforward_modules", "init_ia3_weights"}
# model_type → the targets and the feedforward_modules of a file that names none
TARGETS = {"gpt2": ("c_attn", "mlp.c_proj"), "llama": ("k_proj", "v_proj", "down_proj"),
           "qwen2": ("q_proj", "v_proj", "down_proj"),
           "qwen3": ("q_proj", "v_proj", "down_proj"),
           "gemma3_text": ("q_proj", "v_proj", "down_proj")}
FEEDFORWARD = {"gpt2": ("mlp.c_proj",), "llama": ("down_proj",), "qwen2": ("down_proj",),
               "qwen3": ("down_proj",), "gemma3_text": ("down_proj",)}


# -- to a folder -----------------------------------------------------------------------------------
def ia3_folder(tuned: PeftModel,
               absent: int = 1) -> tuple[dict[str, Any], dict[str, Array]]:
    """(config, tensors) of a model tuned by (IA)³. absent: the numbers of an l that is not here."""
    names, tensors, inner, outer = names_of(tuned.model), {}, [], []
    for path, layers in adapted_layers(tuned):
        check_kinds(path, layers, [ScaledInput, ScaledOutput])
        scaled_input = [isinstance(layer, ScaledInput) for layer in layers]
        if any(scaled_input):
            check_one_input(path, layers, all(scaled_input))
            inner.append(path)
            l = layers[0].l.data[None]
        else:
            outer.append(path)
            l = stacked_outputs(layers, absent)[:, None]
        tensors[f"{PREFIX}{path}.ia3_l"] = l
    feedforward = names.brief(inner)
    return {"peft_type": "IA3", "target_modules": names.brief(outer) + feedforward,
            "feedforward_modules": feedforward, "fan_in_fan_out": names.conv1d,
            "init_ia3_weights": True}, tensors


def check_one_input(path, layers, all_scaled):
    """Raise MethodError unless the parts of the layer at `path` scale their input alike."""
    if all_scaled and all(np.array_equal(layer.l.data, layers[0].l.data) for layer in layers):
        return
    raise MethodError(f"save: PEFT scales the input of {path} by one vector, which query, key and "
                      "value share, and theirs differ here; only the format tinypeft holds it")


def stacked_outputs(layers, absent):
    """Stack the vectors of a layer's parts, or `absent` for a part that has none."""
    known = next(layer.l.data for layer in layers if layer)
    return np.concatenate([layer.l.data if layer else np.full_like(known, absent)
                           for layer in layers])


# -- from a folder ---------------------------------------------------------------------------------
def read_ia3(model: Decoder, config: Config, tensors: Tensors) -> tuple[IA3 | None, State]:
    """(method, state) for IA3; method is None if no layer's tensors are there."""
    config.refuse_unknown(FIELDS)
    names, state, inner = names_of(model), {}, []
    config.get("init_ia3_weights", bool, True)                   # only how training began
    for path, d_in, d_out in linear_layers(model, config, TARGETS[names.kind]):
        is_inner, parts = is_feedforward(config, path, FEEDFORWARD[names.kind]), names.ours(path)
        shape = (1, d_in) if is_inner else (d_out, 1)
        l = tensors.take(f"{PREFIX}{path}.ia3_l", shape)
        if l is None:
            continue
        pieces = np.split(l.reshape(-1), 1 if is_inner else len(parts))
        pieces *= len(parts) // len(pieces)
        keep_all = is_inner or np.all(l == 1)
        for ours, piece in zip(parts, pieces, strict=True):
            if keep_all or np.any(piece != 1):
                state[f"{ours}.l"] = piece
                inner += [ours] * is_inner
    if not state:
        return None, state
    n_layers, paths = model.config.n_layers, [name.removesuffix(".l") for name in state]
    return IA3(names_for(paths, n_layers), names_for(inner, n_layers) or None), state


def is_feedforward(config, path, default):
    """Is the input of the layer at `path` scaled? PEFT compares names with the path's last
    letters, which need not begin after a dot."""
    named = config.names("feedforward_modules", (list, str), list(default))
    if isinstance(named, str):
        return matches(named, path)
    return path.endswith(tuple(named))
