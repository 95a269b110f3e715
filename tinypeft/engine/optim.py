"""Optimizers, learning-rate schedules, gradient clipping.

AdamW (Loshchilov & Hutter, arXiv 1711.05101, Algorithm 2, in PyTorch's form: the decay is lr·λ):

    w ← w − lr λ w
    m ← β₁ m + (1 − β₁) g,   v ← β₂ v + (1 − β₂) g²
    w ← w − lr m̂ / (√v̂ + ε),   m̂ = m/(1 − β₁ᵗ),   v̂ = v/(1 − β₂ᵗ)

`plain.adamw` is one step of it as one reads it; read it first.
"""
import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from ..common.hints import Array
from ..common.threads import parallel_map, slices
from .tensor import Tensor

__all__ = ["SGD", "AdamW", "clip_grad_norm", "schedule"]


class Optimizer:
    """The base of optimizers: groups of parameters, and the state arrays that checkpoints keep.

    parameters: Parameters, or dicts {"params": [...], "lr": …, …} that override the defaults.
    """
    workers: ClassVar[int] = 2                   # threads that share the parameters
    slots: ClassVar[tuple[str, ...]] = ()        # names of the state arrays, each shaped as p
    squares: ClassVar[tuple[str, ...]] = ()      # those of them that cannot be negative

    def __init__(self, parameters: Iterable[Tensor | dict], **defaults: Any):
        name = type(self).__name__
        if isinstance(parameters, Tensor):
            raise TypeError(f"{name}: expected a list of parameters, got one Tensor")
        groups = list(parameters)
        if not groups or not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        self.groups = [{**defaults, **g, "params": list(g["params"])} for g in groups]
        for g in self.groups:
            if g.keys() - defaults.keys() - {"params"}:
                raise ValueError(f"{name}: a group has {', '.join(map(repr, g))}; expected "
                                 f"'params' and any of {', '.join(map(repr, defaults))}")
            g["base_lr"] = g["lr"]
            if not 0 <= g["lr"] < math.inf:
                raise ValueError(f"{name}: lr must be finite and at least 0, got {g['lr']}")
        params = self.parameters()
        if not params:
            raise ValueError(f"{name}: no parameters to train")
        for p in params:
            if not isinstance(p, Tensor):
                raise TypeError(f"{name}: expected Parameters, got {type(p).__name__}")
        if len(set(map(id, params))) < len(params):
            raise ValueError(f"{name}: a parameter occurs twice and would be updated twice")
        self.t = 0                               # steps taken
        self.state = {id(p): [self.allocate(p) for _ in self.slots] for p in params}

    def parameters(self) -> list[Tensor]:
        return [p for g in self.groups for p in g["params"]]

    def allocate(self, p: Tensor) -> Array:
        """Make a zero array for one slot of p's state."""
        return np.zeros_like(p.data)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for p in self.parameters():
            p.grad = None

    def scale_lr(self, factor: float) -> None:
        """Set every group's learning rate to `factor` times the one it was given."""
        for g in self.groups:
            g["lr"] = g["base_lr"] * factor

    def step(self) -> None:
        """Update every parameter that has a gradient, in place."""
        self.t += 1
        jobs = [(p, g) for g in self.groups for p in g["params"] if p.grad is not None]
        large = sum(p.size for p, _ in jobs) > 1 << 21        # worth two threads; same arithmetic
        parallel_map(lambda job: self._step_one(*job), jobs, self.workers if large else 1)

    def _step_one(self, p, group):
        mask = getattr(p, "update_mask", None)
        arrays = [p.data, p.grad, *self.state[id(p)]]
        if mask is not None:                     # numbers outside the mask keep value and moments
            mask = np.broadcast_to(mask, p.shape)
            whole = arrays
            arrays = [a[mask] for a in whole]
        data, grad, *state = arrays
        self.update(data, grad, state, group)
        if mask is not None:
            for array, new in zip(whole, arrays, strict=True):
                array[mask] = new
        p.version += 1                           # written in place; `assign` would need a copy

    def state_arrays(self) -> dict[str, Array]:
        """Return name → array: the state that a checkpoint needs."""
        arrays = {"t": np.array(self.t)}
        for i, p in enumerate(self.parameters()):
            arrays |= {f"{slot}.{i}": array
                       for slot, array in zip(self.slots, self.state[id(p)], strict=True)}
        return arrays

    def load_state_arrays(self, arrays: dict[str, Array]) -> None:
        """Load what `state_arrays` gave, all or nothing. Raises ValueError if it does not fit."""
        own = self.state_arrays()
        reason = misfit(own, arrays) or self._impossible(arrays)
        if reason:
            raise ValueError(f"the optimizer's state belongs to other parameters: {reason}")
        for name, array in own.items():
            array[...] = arrays[name]
        self.t = int(own["t"])

    def _impossible(self, arrays):
        """Say which number no optimizer can have; None if there is none."""
        if arrays["t"] < 0:
            return f"t is {arrays['t']}, expected t ≥ 0"
        for name, array in arrays.items():
            if name.split(".")[0] in self.squares and (array < 0).any():
                return f"{name} holds a number below 0"
        return None


def misfit(own: Mapping[str, Array], given: Mapping[str, Array]) -> str | None:
    """Say why `given` cannot replace the arrays `own` of the same names; None if it can."""
    if own.keys() != given.keys():
        missing = sorted(own.keys() - given.keys()) or "nothing"
        unknown = sorted(given.keys() - own.keys()) or "nothing"
        return f"arrays lack {missing} and have, unexpected, {unknown}"
    for name, a in own.items():
        b = np.asarray(given[name])
        if b.shape != a.shape:
            return f"{name} has shape {b.shape}, expected {a.shape}"
        if b.dtype != a.dtype:
            return f"{name} has dtype {b.dtype}, expected {a.dtype}"
        if not np.isfinite(b).all():
            return f"{name} holds a number that is not finite"
    return None


class SGD(Optimizer):
    """w ← w − lr u,  u ← μ u + (g + λ w): momentum μ, decay λ, as in PyTorch (u starts as g)."""
    slots = ("velocity",)

    def __init__(self, parameters: Iterable[Tensor | dict], lr: float, momentum: float = 0.0,
                 weight_decay: float = 0.0):
        super().__init__(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def update(self, w: Array, g: Array, state: list[Array], group: dict) -> None:
        (u,) = state
        if group["weight_decay"]:
            g = g + group["weight_decay"] * w
        u *= group["momentum"]
        u += g
        w -= group["lr"] * u


class AdamW(Optimizer):
    """Adam with decoupled weight decay; the equations stand at the head of this file."""
    slots = "m", "v"
    squares = ("v",)

    def __init__(self, parameters: Iterable[Tensor | dict], lr: float = 1e-3,
                 betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0.01):
        super().__init__(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        for g in self.groups:
            if not all(0 <= b < 1 for b in g["betas"]):
                raise ValueError(f"AdamW: betas must lie in [0, 1), got {g['betas']}")

    def update(self, w: Array, g: Array, state: list[Array], group: dict) -> None:
        """Compute `plain.adamw` in place: `scratch` is the only new array, of a slice's size."""
        lr, (b1, b2) = group["lr"], group["betas"]
        arrays = [np.atleast_1d(a) for a in (w, g, *state)]          # views; a number has no slices
        for s in slices(arrays[0].shape, 1 << 18):
            w, g, m, v = (a[s] for a in arrays)
            if group["weight_decay"]:
                w *= 1 - lr * group["weight_decay"]
            scratch = g * (1 - b1)
            m *= b1
            m += scratch
            np.multiply(g, g, out=scratch)
            scratch *= 1 - b2
            v *= b2
            v += scratch
            np.sqrt(v, out=scratch)
            scratch *= 1 / math.sqrt(1 - b2 ** self.t)
            scratch += group["eps"]                                  # √v̂ + ε
            np.divide(m, scratch, out=scratch)
            scratch *= lr / (1 - b1 ** self.t)                       # lr m̂ / (√v̂ + ε)
            w -= scratch


def clip_grad_norm(parameters: Iterable[Tensor], limit: float) -> float:
    """Scale all gradients so that their global norm √Σ‖g‖² is at most `limit`; return it before."""
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = math.sqrt(sum(float(np.vdot(g, g)) for g in grads))
    if norm > limit:
        for g in grads:
            g *= limit / (norm + 1e-6)
    return norm


def schedule(kind: str, step: int, total: int, warmup: int = 0, floor: float = 0.0) -> float:
    """Return the factor on the learning rate at `step` = 0 … total − 1.

    It rises as (step + 1)/warmup over the first `warmup` steps. Then it stays at 1 ("constant") or
    falls from 1 to `floor` at step `total` ("linear", "cosine"). "exponential" rises from `floor`
    to 1 in equal ratios, to find a rate.
    """
    if kind not in ("constant", "linear", "cosine", "exponential"):
        raise ValueError("schedule: expected 'constant', 'linear', 'cosine' or 'exponential', got "
                         f"{kind!r}")
    if step < warmup:
        return (step + 1) / warmup
    if kind == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    if kind == "exponential":
        return floor ** (1 - done)
    if kind == "linear":
        return floor + (1 - floor) * (1 - done)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))
