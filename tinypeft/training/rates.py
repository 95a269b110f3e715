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

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from ..engine.nn import Module, Parameter
from ..engine.optim import Optimizer
from ..models.decoder import Decoder
from ..models.targets import TargetError, chosen, matches
from .options import TrainOptions

__all__ = ["HEAD_LR", "WIDTH", "groups", "make_optimizer", "own_rate", "own_rates", "peak_rate",
           "width_factor"]

WIDTH = 128                 # of the model that the methods' own rates are for
HEAD_LR = 1e-2              # a classification head starts from nothing


def make_optimizer(model: Module, options: TrainOptions) -> Optimizer:
    """Return the optimizer of all parameters that require gradients, each at its rate.

    `options.optimizer` is called with their groups, `lr` and `weight_decay`, and with `betas` if it
    takes them, as a function of **options does. What it returns is told the `tables` of the model.
    Raises ValueError if there are no such parameters or no use for the betas, and inside
    `with tuned.disabled():`, where only a penalty would teach the methods.
    """
    if getattr(model, "is_disabled", False):
        raise ValueError("train: the methods are disabled; leave `with tuned.disabled():` first")
    if not any(p.requires_grad for p in model.parameters()):
        off = "".join(f", and {name} is switched off" for name in getattr(model, "off", []))
        raise ValueError(f"train: nothing to train, every parameter is frozen{off}")
    if options.lr is None:
        rate, head_rate = own_rates(model), HEAD_LR
    else:
        rate, head_rate = (lambda p: options.lr), options.lr
    if options.head_lr is not None:
        head_rate = options.head_lr
    accepted = inspect.signature(options.optimizer).parameters
    own = {"lr": peak_rate(model, options.lr), "weight_decay": options.weight_decay}
    if "betas" in accepted or any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        own["betas"] = options.betas
    elif options.betas != TrainOptions.betas:
        raise ValueError(f"train: this optimizer takes no betas, got betas={options.betas}")
    of_each_rate = groups(model, rate, head_rate, options.rates)
    optimizer = options.optimizer(of_each_rate, **own)
    optimizer.leave_to_adamw(tables(model))
    return optimizer


def tables(model: Module) -> list[Parameter]:
    """Return the parameters whose rows each belong to one token or class: those of embeddings,
    output layers, classification heads and virtual tokens."""
    modules = [module for _, module in model.named_modules()]
    owners = [module for module in modules if module.is_table]
    for module in modules:
        if isinstance(module, Decoder):
            owners += [head for head in (module.lm_head, module.head) if head is not None]
    return [p for module in owners for p in vars(module).values() if isinstance(p, Parameter)]


def peak_rate(model: Module, lr: float | None) -> float:
    """Return `lr`, or the model's own rate if it is None."""
    return own_rate(model) if lr is None else lr


def width_factor(model: Module) -> float:
    """Return √(128 / d), the factor on an own rate for a model that is d wide: exactly 1 at 128."""
    return math.sqrt(WIDTH / model.config.d_model)


def own_rate(model: Module) -> float:
    """Return the rate of a model that is given none: its method's or 1e-3, at this width."""
    return getattr(model, "learning_rate", 1e-3) * width_factor(model)


def own_rates(model: Module) -> Callable[[Parameter], float]:
    """Return a function from a parameter to its rate: each of several methods has its own."""
    rates = {}
    for part in getattr(model, "parts", {}).values():
        if not part.on:                                  # it may share weights with one that is
            continue
        for p in part.parameters():
            rates[id(p)] = part.method.learning_rate * width_factor(model)
    default = own_rate(model)
    return lambda p: rates.get(id(p), default)


def groups(model: Module, rate: Callable[[Parameter], float], head_rate: float,
           factors: Mapping[str, float] | None = None) -> list[dict[str, Any]]:
    """Return groups for an optimizer of all parameters that require gradients.

    Weight decay is for matrices, and never for a classification head. rate: of each parameter
    outside the head, before its factors. factors: by name, as `models/targets.py` says.
    Raises TargetError for a name that matches nothing, or that could mean two things.
    """
    named = trained(model)
    head = getattr(model, "head", None)
    in_head = {id(p) for p in head.parameters()} if head else set()
    scale = factors_by_name(named, factors or {})
    kinds = {"matrices": {}, "vectors": {}, "head": {}}              # kind → rate → parameters
    for name, p in named.items():
        if id(p) in in_head:
            kind, base = "head", head_rate
        else:
            kind, base = "vectors" if p.ndim < 2 else "matrices", rate(p)
        kinds[kind].setdefault(base * scale[name], []).append(p)
    decay = {"matrices": {}, "vectors": {"weight_decay": 0.0}, "head": {"weight_decay": 0.0}}
    return [{"params": params, "lr": lr, **decay[kind]}
            for kind, by_rate in kinds.items() for lr, params in by_rate.items()]


def factors_by_name(named: Mapping[str, Parameter],
                    factors: Mapping[str, float]) -> dict[str, float]:
    """Return the product of the factors for each name."""
    scale = dict.fromkeys(named, 1.0)
    names = {name.replace("/", "."): name for name in named}         # "LoRA/blocks.0.query.A"
    for pattern, factor in factors.items():
        check_meaning(pattern, named)
        for path in chosen(names, (pattern,), "rates", "parameters that train"):
            scale[names[path]] *= factor
    return scale


def check_meaning(pattern: str, named: Mapping[str, Parameter]) -> None:
    """Raise TargetError for a name that a method has, and parameters inside a method have, too."""
    name = pattern.removeprefix("!")
    matching = [path for path in named if matches(name, path.replace("/", "."))]
    inside = [path for path in matching if matches(name, path.rpartition("/")[2])]
    if inside and inside != matching:
        raise TargetError(f"rates: {pattern!r} is the name of a method and of {inside[0]}; for the "
                          f"method write '{name}.blocks', for the parameters 'blocks.{name}'")


def trained(model: Module) -> dict[str, Parameter]:
    """Return name → Parameter of all that require gradients.

    They are named as in the model's `state_dict`; what is not in it (a parameter of the base that
    was unfrozen by hand) is named as in `named_parameters`.
    """
    names = {id(array): name for name, array in model.state_dict().items()}
    return {names.get(id(p.data), path): p for path, p in model.named_parameters()
            if p.requires_grad}
