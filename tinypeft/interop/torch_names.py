"""What trains, under the names that PyTorch's modules have: transformers' with PEFT on them.

    LoRA, DoRA           base_model.model.<their layer>.lora_A.default.weight, lora_B,
                         lora_magnitude_vector
    AdaLoRA              <their layer>.lora_A.default, lora_E, lora_B, as LoRA's
    (IA)³                <their layer>.ia3_l.default
    virtual tokens       prompt_encoder.default.embedding.weight; transform.0, .2 of a prefix' MLP;
                         lstm_head and mlp_head.0, .2, .4 of P-tuning's encoder
    the base itself      the names in transformers' folders
    a head               score.weight, or base_model.model.score.modules_to_save.default.weight

A file start.safetensors has, for such a NAME:

    weight/NAME          the value at the start; absent for the base itself
    m/NAME, v/NAME       AdamW's moments, of a run that goes on
    mask/NAME            which numbers train, where some are zeros that must stay

The last is for GPT-2. Our query and value have a pair (B, A) each, and PEFT's c_attn has one pair,
made of blocks (`lowrank`). PEFT alone trains the zeros between the blocks, which is another run.
With their gradients masked it is the same one. The ones of (IA)³'s c_attn are masked as well.

`tensors_of` only stacks our arrays, transposes them and fills up with zeros. So it converts what
belongs to the parameters as well: their moments, and the numbers of the groups that they are in,
from which names and masks are read off.
"""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..common.hints import Array
from ..engine.nn import Parameter
from ..engine.optim import Optimizer
from ..peft import IA3, AdaLoRA, MethodError
from ..peft.model import PeftModel
from ..peft.prefix import ReparameterizedPrefix
from ..peft.ptuning import LSTMEncoder, PseudoTokens
from .families import family_of
from .huggingface import HEAD, arrays_of
from .ia3 import ia3_folder
from .lowrank import adapted_layers, lora_folder
from .peft_config import PREFIX

__all__ = ["start_of", "tensors_of", "training_fields", "trains_the_base"]


def trains_the_base(tuned: PeftModel) -> bool:
    """Is nothing added to the base but a head?"""
    return not tuned.wrappers and tuned.virtual is None


def tensors_of(tuned: PeftModel, absent: int = 1) -> dict[str, Array]:
    """PyTorch's name → array of everything that trains. MethodError for what one of its tensors
    cannot hold. absent: the numbers of an l of (IA)³ that is not here."""
    score = "score.weight"
    if trains_the_base(tuned): tensors = base_tensors(tuned)
    elif tuned.virtual is not None:
        parts = encoder_tensors(tuned.virtual).items()
        tensors = {f"prompt_encoder.default.{name}": p.data for name, p in parts}
    elif isinstance(tuned.method, IA3):
        vectors = ia3_folder(tuned, absent)[1].items()
        tensors = {f"{name}.default": array for name, array in vectors}
        score = f"{PREFIX}score.modules_to_save.default.weight"
    else:
        for path, layers in adapted_layers(tuned):
            if len({layer.scale for layer in layers if layer}) > 1:
                raise MethodError(f"export_training: the parts of {path} have different scales; "
                                  "PEFT has one for them, so give them one rank and one alpha")
        tensors = low_rank_tensors(tuned)
        score = f"{PREFIX}score.modules_to_save.default.weight"
    return tensors if tuned.head is None else tensors | {score: tuned.head.weight.data}


def low_rank_tensors(tuned):
    """Return the tensors of LoRA, or of AdaLoRA with all its triplets, pruned or not."""
    if not isinstance(tuned.method, AdaLoRA):
        tensors = lora_folder(tuned, tuned.method)[1]           # in a folder DoRA's m has no suffix
        return {f"{name.removesuffix('.weight')}.default.weight": array
                for name, array in tensors.items()}
    return {f"{PREFIX}{path}.lora_{letter}.default": array for path, (w,) in adapted_layers(tuned)
            for letter, array in (("A", w.Q.data), ("E", w.Lam.data[:, None]), ("B", w.P.data))}


def base_tensors(tuned):
    """Return the names of the transformers tensors that are only partly trained."""
    family = family_of(tuned.model)
    layout = {theirs: entry for theirs, entry in family.layout(tuned.config).items()
              if any(name in tuned.trained for name in entry[0])}
    if tuned.head is not None: layout.pop(HEAD, None)            # a classifier has no other head
    return arrays_of(family, layout, dict(tuned.model.named_parameters()))


def encoder_tensors(virtual):
    """Name in PEFT's encoder → Parameter."""
    if not isinstance(virtual, (ReparameterizedPrefix, PseudoTokens)):
        (table,) = virtual.parameters()
        return {"embedding.weight": table}
    if isinstance(virtual, PseudoTokens):
        layers = [virtual.encoder.W1, virtual.encoder.W2, getattr(virtual.encoder, "W3", None)]
        found, stack = {"embedding.weight": virtual.embedding}, "mlp_head"
    else:
        layers, stack = [virtual.W1, virtual.W2], "transform"
        found = {"embedding.weight": virtual.P_small}
    for i, layer in enumerate(filter(None, layers)):             # a nonlinearity between any two
        found |= {f"{stack}.{2 * i}.{name}": p for name, p in layer.named_parameters()}
    if isinstance(getattr(virtual, "encoder", None), LSTMEncoder):
        lstm = virtual.encoder.lstm
        for stack, suffix in (lstm.forwards, ""), (lstm.backwards, "_reverse"):
            found |= {f"lstm_head.{name}_l{i}{suffix}": p for i, layer in enumerate(stack)
                      for name, p in layer.named_parameters()}
    return found


def training_fields(tuned: PeftModel, steps: int) -> dict[str, Any]:
    """Fields of PEFT's configuration that a saved folder lacks and training needs."""
    virtual, method, fields = tuned.virtual, tuned.method, {"inference_mode": False}
    if isinstance(method, AdaLoRA):
        first, last = method.phases(steps)
        fields |= {"total_step": steps, "tinit": first, "tfinal": steps - last}
        fields |= {"rank_pattern": None}                         # nothing is pruned yet
    if isinstance(virtual, ReparameterizedPrefix):
        fields |= {"prefix_projection": True, "encoder_hidden_size": virtual.W1.d_out}
    if isinstance(virtual, PseudoTokens):
        hidden = virtual.encoder.W2.d_in // (1 + isinstance(virtual.encoder, LSTMEncoder))
        fields |= {"encoder_hidden_size": hidden, "encoder_dropout": 0.0}
    return fields


def start_of(tuned: PeftModel, optimizer: Optimizer, moments: bool) -> tuple[list, dict]:
    """(groups as PyTorch's AdamW takes them, with names for parameters; arrays of
    start.safetensors)."""
    trained = [(p, i) for i, group in enumerate(optimizer.groups) for p in group["params"]]
    number = {id(p): n for n, (p, _) in enumerate(trained, 1)}
    start = {} if trains_the_base(tuned) else tensors_of(tuned)
    if trains_the_base(tuned) and tuned.head is not None:
        start = {"score.weight": tuned.head.weight.data}
    start = {f"weight/{name}": array for name, array in start.items()}
    groups = [{"params": [], "lr": g["base_lr"], "weight_decay": g["weight_decay"]}
              for g in optimizer.groups]
    labels = converted(tuned, lambda p: np.full(p.shape, number.get(id(p), 0), np.float32))
    lost = {*number.values()}
    for name, label in labels.items():
        mask = label > 0
        numbers = set(label[mask].astype(int).tolist())
        if not numbers: continue                                 # it is frozen
        lost -= numbers
        of = {trained[n - 1][1] for n in numbers}
        group = groups[min(of)]
        if len(of) > 1 or (not mask.all() and group["weight_decay"] and trains_the_base(tuned)):
            raise MethodError(f"export_training: {name} is one tensor there, whose parts train "
                              "here at different rates, or not at all; treat them alike")
        group["params"].append(name)
        if not mask.all(): start[f"mask/{name}"] = mask
    if lost and not trains_the_base(tuned):
        name = next(name for name, p in tuned.named_parameters() if number.get(id(p)) in lost)
        raise MethodError(f"export_training: PyTorch has no place for {name} of {tuned.method}, "
                          "which trains; train it here")
    if moments:
        for slot in optimizer.slots:
            arrays = converted(tuned, lambda p, slot=slot: optimizer.state[id(p)][slot]
                               if id(p) in number else np.zeros(p.shape))
            start |= {f"{slot}/{name}": array for name, array in arrays.items()}
    return [g for g in groups if g["params"]], start


def converted(tuned: PeftModel, array_of: Callable[[Parameter], Array]) -> dict[str, Array]:
    """`tensors_of`, with an array in place of each parameter's own."""
    with holding({p: array_of(p) for p in tuned.parameters()}): return tensors_of(tuned, absent=0)


@contextlib.contextmanager
def holding(arrays: dict[Parameter, Array]) -> Iterator[None]:
    """Inside, the parameters hold other arrays."""
    own = {p: p.data for p in arrays}
    try:
        for p, array in arrays.items(): p.data = array
        yield
    finally:
        for p, array in own.items(): p.data = array
