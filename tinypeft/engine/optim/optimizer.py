"""What all optimizers share: groups of parameters, the arrays kept for each, and checkpoints.

A subclass says in `allocate` which arrays it keeps for a parameter, of any shape and type, and in
`update` what a step does. A checkpoint keeps these arrays by name and number, such as "m.0".
"""
import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from ...common.hints import Array
from ...common.threads import parallel_map
from ..tensor import Tensor

__all__ = ["MatrixOptimizer", "Optimizer", "is_masked", "misfit"]


class Optimizer:
    """The base of optimizers: groups of parameters, and the state arrays that checkpoints keep.

    parameters: Parameters, or dicts {"params": [...], "lr": …, …} that override the defaults.
    """
    workers: ClassVar[int | None] = None         # threads that share the parameters; one per core
    slots: ClassVar[tuple[str, ...]] = ()        # names of the state arrays that are shaped as p
    squares: ClassVar[tuple[str, ...]] = ()      # names of those that hold no number below 0

    def __init__(self, parameters: Iterable[Tensor | dict], **defaults: Any):
        name = type(self).__name__
        self.defaults = defaults
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
            if not all(0 <= b < 1 for b in g.get("betas", ())):
                raise ValueError(f"{name}: betas must lie in [0, 1), got {g['betas']}")
        params = self.parameters()
        if not params:
            raise ValueError(f"{name}: no parameters to train")
        for p in params:
            if not isinstance(p, Tensor):
                raise TypeError(f"{name}: expected Parameters, got {type(p).__name__}")
        if len(set(map(id, params))) < len(params):
            raise ValueError(f"{name}: a parameter occurs twice and would be updated twice")
        self.t = 0                               # steps taken
        self.state = {}                          # id of a parameter → its arrays
        for g in self.groups:
            self.state |= {id(p): self.allocate(p, g) for p in g["params"]}

    def parameters(self) -> list[Tensor]:
        return [p for g in self.groups for p in g["params"]]

    def allocate(self, p: Tensor, group: dict) -> dict[str, Array]:
        """Make what a parameter needs beside itself: name → array of any shape, here zeros as p."""
        return {slot: np.zeros_like(p.data) for slot in self.slots}

    def leave_to_adamw(self, tables: Iterable[Tensor]) -> None:
        """Learn which parameters are tables, whose rows each belong to one token or class; here
        nothing depends on it."""

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for p in self.parameters():
            p.grad = None

    def scale_lr(self, factor: float) -> None:
        """Set every group's learning rate to `factor` times the one it was given."""
        for g in self.groups:
            g["lr"] = g["base_lr"] * factor

    def step(self) -> None:
        """Update every parameter that has a gradient, in place.

        Raises ValueError for an update mask that came after the moments of several numbers at once.
        """
        jobs = [(p, g) for g in self.groups for p in g["params"] if p.grad is not None]
        self._check_masks([p for p, _ in jobs])
        self.t += 1
        large = sum(p.size for p, _ in jobs) > 1 << 21        # worth threads; same arithmetic
        parallel_map(lambda job: self._step_one(*job), jobs, self.workers if large else 1)

    def _check_masks(self, parameters):
        """Raise ValueError if a masked parameter has moments that are not one for each number."""
        for p in parameters:
            if is_masked(p) and self.state[id(p)].keys() - set(self.slots):
                raise ValueError(f"{type(self).__name__}: a parameter of shape {p.shape} has an "
                                 "update_mask, but moments that several numbers share; set the "
                                 "mask before the optimizer is made")

    def _step_one(self, p, group):
        mask = getattr(p, "update_mask", None)
        self._update(p.writable(), p.grad, mask, self.state[id(p)], group)
        p.version += 1                           # written in place; `assign` would need a copy

    def _update(self, w, g, mask, state, group):
        """Call `update`. With a mask it sees weights, a gradient and moments that are zero outside
        the mask; the real numbers there stay as they are."""
        if mask is None:
            return self.update(w, g, state, group)
        inside = np.broadcast_to(mask, w.shape)
        new_w = np.where(inside, w, 0)
        slots = [slot for slot in self.slots if slot in state]
        masked = {slot: np.where(inside, state[slot], 0) for slot in slots}
        self.update(new_w, np.where(inside, g, 0), state | masked, group)
        np.copyto(w, new_w, where=inside)
        for slot, array in masked.items():
            np.copyto(state[slot], array, where=inside)

    def update(self, w: Array, g: Array, state: dict[str, Array], group: dict) -> None:
        """Take a step with the gradient g: change w and the arrays in `state` in place."""
        raise NotImplementedError

    def described(self) -> str | None:
        """Name the optimizer and its options, those of `train` apart. A checkpoint compares it."""
        own = [f"{name}={value!r}" for name, value in self.defaults.items()
               if name not in ("lr", "betas", "weight_decay")]
        return f"{type(self).__name__}({', '.join(own)})"

    def state_arrays(self) -> dict[str, Array]:
        """Return name → array: the state that a checkpoint needs."""
        arrays = {"t": np.array(self.t)}
        for i, p in enumerate(self.parameters()):
            arrays |= {f"{name}.{i}": array for name, array in self.state[id(p)].items()}
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


class MatrixOptimizer(Optimizer):
    """An optimizer of the matrices inside a model; AdamW trains vectors and tables beside them.

    by_adamw: ids of the tables.
    """
    by_adamw: set[int]

    def is_hidden(self, p: Tensor) -> bool:
        """Is p a matrix, and no table?"""
        return p.ndim == 2 and id(p) not in self.by_adamw

    def leave_to_adamw(self, tables: Iterable[Tensor]) -> None:
        """Train these by AdamW. Before the first step: their state is made anew."""
        self.by_adamw |= {id(p) for p in tables}
        for g in self.groups:
            for p in g["params"]:
                if id(p) in self.by_adamw:
                    self.state[id(p)] = self.allocate(p, g)


def is_masked(p: Tensor) -> bool:
    """Has p an update mask? Then each of its numbers needs moments of its own."""
    return getattr(p, "update_mask", None) is not None


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
