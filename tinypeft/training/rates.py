"""At which rate each parameter trains: its own, the model's width, and factors by name.

A method's own rate was chosen for the shipped base, whose width d is 128. Another width takes

    η(d) = η(128) √(128 / d)

This is a rough rule. On SmolLM2 (d = 576, 20 steps) the best rates of eleven methods lie between
0.3 and 3.2 times their own. With the exponents 0, ¼, ½, ¾ and 1 of 128/d the methods lose there, on
average, 0.14, 0.10, 0.08, 0.09 and 0.11 nats/token against the best rate that was tried: ½ and ¾
are equally good, and ½ changes less. It helps full fine-tuning (0.05 instead of 0.32) and P-tuning
v2 (0.13 instead of 0.83) most. AdaLoRA (0.37 instead of 0.11) and parallel adapters (0.15 instead
of 0.09) learn faster at their own rates. On the study's smaller bases (d = 64 and 32, 150 steps)
the best rates are 1.1 and 2.2 times those at 128 for full fine-tuning, and 1.8 and 3.2 times for
LoRA on all matrices and for sequential adapters; the rule says 1.4 and 2. Prompts lose less than
0.01 nats/token there over a factor of five of rates. Nothing was measured above 576.
Yang et al. (arXiv 2203.03466, μP) derive 1/d for matrices that Adam trains from the start.
`find_rate` measures the rate for a model and a task at hand.
"""
import math
from collections.abc import Callable, Mapping
from typing import Any

from ..engine.nn import Module, Parameter
from ..models.targets import chosen

__all__ = ["WIDTH", "groups", "own_rate", "own_rates", "width_factor"]

WIDTH = 128                                          # of the model that the own rates are for


def width_factor(model: Module) -> float:
    """√(128 / d): the factor on an own rate for a model that is d wide; exactly 1 at 128."""
    return math.sqrt(WIDTH / model.config.d_model)


def own_rate(model: Module) -> float:
    """The rate that `train` takes when it is given none: the method's, or 1e-3, at this width."""
    return getattr(model, "learning_rate", 1e-3) * width_factor(model)


def own_rates(model: Module) -> Callable[[Parameter], float]:
    """Parameter → its rate at this width: of several methods on one model, each has its own."""
    parts, factor = getattr(model, "parts", {}).values(), width_factor(model)
    rates = {id(p): part.method.learning_rate * factor for part in parts for p in part.parameters()}
    return lambda p: rates.get(id(p), own_rate(model))


def groups(model: Module, rate: Callable[[Parameter], float], head_rate: float,
           factors: Mapping[str, float] | None = None) -> list[dict[str, Any]]:
    """Groups for an optimizer of all parameters that require gradients.

    Weight decay is for matrices, and never for a classification head. rate: of each parameter
    outside the head, before its factors. factors: by name, as `models/targets.py` says.
    Raises TargetError for a name that matches nothing.
    """
    named = trained(model)
    head = {id(p) for p in model.head.parameters()} if getattr(model, "head", None) else set()
    scale = dict.fromkeys(named, 1.0)
    paths = {name.replace("/", "."): name for name in named}         # "LoRA/blocks.0.query.A"
    for pattern, factor in (factors or {}).items():
        for path in chosen(paths, (pattern,), "rates", "parameters that train"):
            scale[paths[path]] *= factor
    found = {}                                       # (kind, rate) → parameters
    for name, p in named.items():
        kind = 2 if id(p) in head else int(p.ndim < 2)
        own = head_rate if kind == 2 else rate(p)
        found.setdefault((kind, own * scale[name]), []).append(p)
    decay = {}, {"weight_decay": 0.0}, {"weight_decay": 0.0}
    return [{"params": found[kind, lr], "lr": lr, **decay[kind]}
            for kind, lr in sorted(found, key=lambda key: key[0])]


def trained(model: Module) -> dict[str, Parameter]:
    """name → Parameter of all that require gradients, named as in the model's `state_dict`, or, if
    they are not in it (a base's, unfrozen by hand), in `named_parameters`."""
    names = {id(array): name for name, array in model.state_dict().items()}
    return {names.get(id(p.data), path): p for path, p in model.named_parameters()
            if p.requires_grad}
