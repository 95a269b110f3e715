"""The base's own weights in PEFT's folders, both ways: norms, `modules_to_save` and biases.

PEFT has four places for them. Here they are one part, `FullFineTuning` of some parameters, which
may stand beside another method that PEFT has:

    in adapter_config.json          tensors, after base_model.model.<their module>
    peft_type LN_TUNING             .ln_tuning_layers.weight, .bias     copies of whole norms
    modules_to_save                 .weight, .bias                      copies of whole modules
    bias: "all", "lora_only"        .bias; .base_layer.bias, if LoRA adapts the layer
    lora_bias                       .lora_B.bias      b ← b + s b_B; only read

Beside virtual tokens, names begin with base_model. alone. `bias` exists beside LoRA and AdaLoRA:
"all" are the biases of linear layers and norms, "lora_only" those of the adapted layers.

PEFT copies whole modules, so it cannot hold half of one. It keeps two matrices where an output head
is tied to the embedding, so it cannot hold the trained embedding of such a model.
"""
import contextlib
from collections.abc import Collection
from typing import Any

import numpy as np

from ..common.hints import Array
from ..common.wording import brief
from ..engine.nn import LayerNorm, RMSNorm
from ..models.decoder import Decoder
from ..models.targets import names_for
from ..peft import FullFineTuning, MethodError
from ..peft.model import PeftModel
from .huggingface import HEAD
from .ia3 import TARGETS as IA3_TARGETS
from .lowrank import State, linear_layers, read_lora_biases
from .peft_config import VIRTUAL, Config, Tensors, prefix_of
from .peft_names import names_of

__all__ = ["base_weights_folder", "method_of", "read_base_weights", "read_norms"]

NORM_FIELDS = {"target_modules", "exclude_modules"}
NORM_TARGETS = {"gpt2": ("ln_1", "ln_2", "ln_f"),
                "qwen2": ("post_attention_layernorm",), "qwen3": ("post_attention_layernorm",),
                "llama": ("input_layernorm", "post_attention_layernorm", "norm"),
                "gemma3_text": ("input_layernorm", "post_attention_layernorm", "norm",
                                "pre_feedforward_layernorm", "post_feedforward_layernorm")}
NORMS = LayerNorm, RMSNorm
WITH_BIASES = {"LORA", "ADALORA"}                        # the peft_types that have `bias`
Modules = dict[str, dict[str, tuple[list[str], tuple[int, ...]]]]


def modules_with_weights(model: Decoder) -> Modules:
    """Their module → "weight" or "bias" → (our parameters that it holds, its shape)."""
    family, modules = names_of(model).family, {}
    for tensor, entry in family.layout(model.config).items():
        path, _, kind = tensor.rpartition(".")
        path = path if tensor == HEAD else family.prefix + path
        modules.setdefault(path, {})[kind] = entry
    return modules


# -- to a folder -----------------------------------------------------------------------------------
def base_weights_folder(tuned: PeftModel, kind: str | None,
                        adapted: Collection[str]) -> tuple[dict[str, Any], dict[str, Array]]:
    """(config, tensors) of all weights of the base that the parts train, ({}, {}) for none.

    kind: the peft_type of the part beside them, or None. adapted: their layers that it adapts. A
    head alone has no peft_type in PEFT, so the last norm goes with it, as it is."""
    arrays = {name: array for part in tuned.parts.values()
              for name, array in part.state_dict().items() if name in part.trained}
    if not arrays and kind is None and tuned.head is not None:
        arrays = {f"final_norm.{name}": array
                  for name, array in tuned.model.final_norm.state_dict().items()}
    if not arrays:
        return {}, {}
    modules = modules_with_weights(tuned.model)
    trained = stacked(tuned.model, modules, arrays)
    whole, bias = places_of(trained, modules, kind, adapted)
    norms = [path for path in whole if kind is None and is_norm(tuned.model, modules[path])]
    check_whole(tuned.model, kind, whole, norms, adapted)
    places = dict.fromkeys(norms, ".ln_tuning_layers") | dict.fromkeys(adapted, ".base_layer")
    tensors = {f"{prefix_of(kind)}{path}{places.get(path, '')}.{leaf}": array
               for (path, leaf), array in trained.items()}
    names = names_of(tuned.model)
    fields = {"modules_to_save": names.brief([path for path in whole if path not in norms]) or None}
    if kind is None:
        fields |= {"peft_type": "LN_TUNING", "target_modules": names.brief(norms)}
    if kind in WITH_BIASES:
        fields["bias"] = bias
    return fields, tensors


def stacked(model, modules, arrays):
    """Stack our arrays as their tensors: (their module, "weight" or "bias") → array. MethodError
    for a tensor of which some rows are not trained."""
    trained, transposed = {}, names_of(model).family.transposed
    for path, tensors in modules.items():
        for leaf, (ours, _) in tensors.items():
            untrained = [name for name in ours if name not in arrays]
            if untrained == ours:
                continue
            if untrained:
                raise refusal(f"{path}.{leaf} is one tensor there, and {untrained[0]} is not "
                              "trained")
            array = np.concatenate([arrays[name] for name in ours])
            trained[path, leaf] = array.T if transposed.search(f"{path}.{leaf}") else array
    return trained


def places_of(trained, modules, kind, adapted):
    """Say where PEFT holds what is trained: (modules that it copies whole, its `bias`)."""
    biases = {(path, "bias") for path, tensors in modules.items() if "bias" in tensors}
    whole = [path for path, tensors in modules.items()
             if all((path, leaf) in trained for leaf in tensors)]
    if kind in WITH_BIASES and biases and biases <= trained.keys():
        others = [path for path in whole if (path, "bias") not in biases]
        if all(key in biases or key[0] in others for key in trained):
            return others, "all"
    rest = {key for key in trained if key[0] not in whole}
    if not rest:
        return whole, "none"
    if kind in WITH_BIASES and rest == {key for key in biases if key[0] in adapted}:
        return whole, "lora_only"
    path, leaf = min(rest)
    raise refusal(f"it trains {path}.{leaf}, but not all of that layer; PEFT trains whole layers, "
                  "or beside a LoRA all biases, or those of its layers")


def is_norm(model, tensors):
    """Is their module a norm here?"""
    return isinstance(model.get(tensors["weight"][0][0].removesuffix(".weight")), NORMS)


def check_whole(model, kind, whole, norms, adapted):
    """Raise MethodError for layers that PEFT cannot copy as a whole."""
    for path in whole:
        if path in adapted:
            raise refusal(f"PEFT adapts {path} or trains it, not both")
    if model.lm_head is None and names_of(model).embedding in whole:
        raise refusal("the embedding is tied to the output head, and PEFT would train two matrices")
    if kind is None and not norms:
        raise refusal("alone it has LNTuningConfig for norms, and these are no norms")


def refusal(reason):
    """Make the error for weights of the base that PEFT cannot hold."""
    return MethodError(f"save: PEFT cannot hold these weights of the base: {reason}. Take the "
                       "format tinypeft, or merge it and save the model")


# -- from a folder ---------------------------------------------------------------------------------
def read_norms(model: Decoder, config: Config, tensors: Tensors) -> tuple[None, State]:
    """Check the fields of LN_TUNING, which has no method beside the base's weights."""
    config.refuse_unknown(NORM_FIELDS)
    return None, {}


def read_base_weights(model: Decoder, config: Config, tensors: Tensors) -> State:
    """Our parameter → its array, for all weights of the base that the folder holds."""
    modules, kind = modules_with_weights(model), config.get("peft_type", str)
    adapted = adapted_paths(model, config, kind)
    copies = copied_modules(model, config, modules, kind)
    for path in adapted:
        if any(is_below(path, copy) for copy in copies):
            raise config.unsupported("modules_to_save",
                                     f"it holds {path}, which is adapted as well")
    names = {(path, leaf): f"{copy}{place}{path.removeprefix(copy)}.{leaf}"
             for copy, place in copies.items()
             for path in modules if is_below(path, copy) for leaf in modules[path]}
    names |= bias_names(config, modules, adapted, names)
    arrays, transposed = {}, names_of(model).family.transposed
    for (path, leaf), name in names.items():
        ours, shape = modules[path][leaf]
        array = tensors.take(prefix_of(kind) + name, shape)
        if array is None:
            continue
        array = np.ascontiguousarray(array.T if transposed.search(f"{path}.{leaf}") else array)
        arrays |= zip(ours, np.split(array, len(ours)), strict=True)
    changes = read_lora_biases(model, config, tensors) if kind == "LORA" else {}
    for name, change in changes.items():
        bias = arrays.get(name, model.get(name.removesuffix(".bias")).bias.data)
        arrays[name] = bias + change
    return arrays


def adapted_paths(model, config, kind):
    """List their layers that the method of the folder adapts."""
    if kind in ("LN_TUNING", "TRAINABLE_TOKENS") or kind in VIRTUAL:
        return []
    default = IA3_TARGETS[names_of(model).kind] if kind == "IA3" else ()
    return [path for path, *_ in linear_layers(model, config, default)]


def copied_modules(model, config, modules, kind):
    """Their modules of which the folder has a copy → what stands behind their paths in names."""
    names, saved = names_of(model), config.saved_modules()
    paths = names.modules(lm_head=config.task() != "SEQ_CLS")
    existing = [path for path in paths if path == "lm_head"
                or any(is_below(inner, path) for inner in modules)]
    for name in saved:
        if not any(path.endswith(name) for path in existing):
            raise config.unsupported("modules_to_save", f"{brief(name)} is no module with weights")
    copies = {path: "" for path in existing if path.endswith(tuple(saved))}
    if kind == "LN_TUNING":
        for path in config.select(names, paths, NORM_TARGETS[names.kind]):
            if path not in existing or path in copies:
                raise config.unsupported("target_modules", f"it selects {path}, which is no module "
                                         "with weights, or is in modules_to_save")
            copies[path] = ".ln_tuning_layers"
    for path in copies:
        field = "target_modules" if copies[path] else "modules_to_save"
        if any(is_below(path, other) for other in copies if other != path):
            raise config.unsupported(field, f"it selects {path}, and a module that holds it")
        tied = path == "lm_head" or is_below(names_of(model).embedding, path)
        if tied and model.lm_head is None:
            raise config.unsupported(field, "the output head is tied to the embedding here, and "
                                     "PEFT's copy is a second matrix")
    return copies


def bias_names(config, modules, adapted, copied):
    """(their module, "bias") → the name of the tensor, for the biases that `bias` trains."""
    which = config.get("bias", str, "none")
    if which not in ("none", "all", "lora_only"):
        raise config.invalid("bias", "'none', 'all' or 'lora_only'")
    if which == "none":
        return {}
    paths = [path for path in modules if "bias" in modules[path]]
    if which == "lora_only":
        paths = [path for path in paths if path in adapted]
    for path in paths:
        if (path, "bias") in copied:
            raise config.unsupported("bias", f"{path} is in modules_to_save, and has two biases")
    return {(path, "bias"): f"{path}.base_layer.bias" if path in adapted else f"{path}.bias"
            for path in paths}


def is_below(path, module):
    """Is `path` the module, or in it?"""
    return f"{path}.".startswith(f"{module}.")


def method_of(model: Decoder, trained: Collection[str]) -> FullFineTuning:
    """Return the method that trains these parameters, named as briefly as can be."""
    biases = [name for name in trained if name.endswith(".bias")]
    others = [name for name in trained if name not in biases]
    of_layers = tuple(f"{layer}.bias" for layer in layers_named(biases, model))
    candidates = layers_named(trained, model), ("bias", *layers_named(others, model)), of_layers
    for targets in candidates:
        with contextlib.suppress(ValueError):                    # a name that matches nothing
            if {*FullFineTuning(targets).trained(model)} == {*trained}:
                return FullFineTuning(targets)
    return FullFineTuning(tuple(trained))


def layers_named(parameters, model):
    """Name the layers of parameters as `names_for` does."""
    layers = dict.fromkeys(name.rpartition(".")[0] for name in parameters)
    in_blocks = [path for path in layers if path.startswith("blocks.")]
    outer = [path for path in layers if path not in in_blocks]
    return (*names_for(in_blocks, model.config.n_layers), *outer)
