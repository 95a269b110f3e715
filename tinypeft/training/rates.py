"""At which rate each parameter trains: its own, the model's width, and factors by name.

A method's own rate was chosen for the shipped base, whose width d is 128. Another width takes

    η(d) = η(128) √(128 / d)

This is a rough rule. On SmolLM2 (d = 576) the best rates of eleven methods lie between a third of
their own and three times it. Of the exponents 0, ¼, ½, ¾ and 1, ¾ and ½ lose least there on
average and 0 loses most, because P-tuning v2 diverges at its own rate; the other ten lose about as
much at 0, ¼ and ½, and more beyond. The rule helps full fine-tuning and P-tuning v2; AdaLoRA and
parallel adapters learn faster at their own rates.
`tests/training/test_rates.py` computes all this from the stored results. Nothing was measured above
576.
Yang et al. (arXiv 2203.03466, μP) derive 1/d for matrices that Adam trains from the start.
`find_rate` measures the rate for a model and a task at hand.
"""
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..engine.nn import Module, Parameter
from ..engine.optim import Optimizer
from ..models.targets import TargetError, chosen, matches
from .options import TrainOptions

__all__ = ["HEAD_LR", "WIDTH", "Trained", "groups", "make_optimizer", "own_rate", "peak_rate",
           "trained", "width_factor"]

WIDTH = 128                 # of the model that the methods' own rates are for
HEAD_LR = 1e-2              # a classification head starts from nothing


def make_optimizer(model: Module, options: TrainOptions) -> Optimizer:
    """Return the optimizer of all parameters that require gradients, each at its rate.

    `options.optimizer` is called with their groups, `lr` and `weight_decay`, and with `betas` if
    they are not the usual ones. What it returns is told which parameters are tables.
    Raises ValueError if there are no such parameters, and inside `with tuned.disabled():`, where
    only a penalty would teach the methods; TypeError if the optimizer takes no betas.
    """
    if getattr(model, "is_disabled", False):
        raise ValueError("train: the methods are disabled; leave `with tuned.disabled():` first")
    params = trained(model)
    if not params:
        off = "".join(f", and {name} is switched off" for name in getattr(model, "off", []))
        raise ValueError(f"train: nothing to train, every parameter is frozen{off}")
    own = {"lr": peak_rate(model, options.lr), "weight_decay": options.weight_decay}
    if options.betas != TrainOptions.betas:
        own["betas"] = options.betas
    optimizer = options.optimizer(groups(params, options), **own)
    optimizer.leave_to_adamw([t.p for t in params if t.is_table])
    return optimizer


@dataclass(frozen=True)
class Trained:
    """A parameter that trains, and what decides its rate.

    name: in the model's `state_dict`; of a parameter of the base that was unfrozen by hand, its
    path. own_rate: that of its method at the model's width, or HEAD_LR. in_head: does a
    classification head own it? is_table: does each of its rows belong to one token or class, as in
    embeddings, output layers, heads and virtual tokens?
    """
    p: Parameter
    name: str
    own_rate: float
    in_head: bool
    is_table: bool


def trained(model: Module) -> list[Trained]:
    """List the parameters that require gradients, in the order of `named_parameters`."""
    names = {id(array): name for name, array in model.state_dict().items()}
    width = width_factor(model)
    rates = {}
    for part in getattr(model, "parts", {}).values():
        rate = part.method.learning_rate * width
        rates |= dict.fromkeys(map(id, part.parameters()), rate)
    usual = own_rate(model)
    found = {}
    for path, owner, _, p in model.attributes(Parameter):
        if not p.requires_grad or id(p) in found:
            continue
        place = path.removeprefix("model.")              # so it begins in a PeftModel
        in_head = place.startswith("head.")
        is_output = place.rpartition(".")[0] in ("head", "lm_head")
        rate = HEAD_LR if in_head else rates.get(id(p), usual)
        name = names.get(id(p.data), path)
        found[id(p)] = Trained(p, name, rate, in_head, owner.is_table or is_output)
    return list(found.values())


def width_factor(model: Module) -> float:
    """Return √(128 / d), the factor on an own rate for a model that is d wide: exactly 1 at 128."""
    return math.sqrt(WIDTH / model.config.d_model)


def own_rate(model: Module) -> float:
    """Return the rate of a model that is given none: its method's or 1e-3, at this width."""
    return getattr(model, "learning_rate", 1e-3) * width_factor(model)


def peak_rate(model: Module, lr: float | None) -> float:
    """Return `lr`, or the model's own rate if it is None."""
    return own_rate(model) if lr is None else lr


def groups(params: Sequence[Trained], options: TrainOptions) -> list[dict[str, Any]]:
    """Return groups for an optimizer: parameters of one kind and one rate.

    Weight decay is for matrices, and never for a classification head. Raises TargetError for a name
    in `options.rates` that matches nothing, or that could mean two things.
    """
    scale = factors_by_name([t.name for t in params], options.rates or {})
    kinds = {"matrices": {}, "vectors": {}, "head": {}}              # kind → rate → parameters
    for t in params:
        kind = "head" if t.in_head else "vectors" if t.p.ndim < 2 else "matrices"
        rate = rate_of(t, options) * scale[t.name]
        kinds[kind].setdefault(rate, []).append(t.p)
    decay = {"matrices": {}, "vectors": {"weight_decay": 0.0}, "head": {"weight_decay": 0.0}}
    return [{"params": params, "lr": lr, **decay[kind]}
            for kind, by_rate in kinds.items() for lr, params in by_rate.items()]


def rate_of(t: Trained, options: TrainOptions) -> float:
    """Return the rate of a parameter before the factors by name."""
    if t.in_head and options.head_lr is not None:
        return options.head_lr
    return t.own_rate if options.lr is None else options.lr


def factors_by_name(names: Iterable[str], factors: Mapping[str, float]) -> dict[str, float]:
    """Return the product of the factors for each name; `models/targets.py` says what matches."""
    scale = dict.fromkeys(names, 1.0)
    dotted = {name.replace("/", "."): name for name in scale}        # "LoRA/blocks.0.query.A"
    for pattern, factor in factors.items():
        check_meaning(pattern, scale)
        for path in chosen(dotted, (pattern,), "rates", "parameters that train"):
            scale[dotted[path]] *= factor
    return scale


def check_meaning(pattern: str, names: Iterable[str]) -> None:
    """Raise TargetError for a name that a method has, and parameters inside a method have, too."""
    name = pattern.removeprefix("!")
    matching = [path for path in names if matches(name, path.replace("/", "."))]
    inside = [path for path in matching if matches(name, path.rpartition("/")[2])]
    if inside and inside != matching:
        raise TargetError(f"rates: {pattern!r} is the name of a method and of {inside[0]}; for the "
                          f"method write '{name}.blocks', for the parameters 'blocks.{name}'")
