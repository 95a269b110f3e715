"""The factor on the learning rate at each step of a run; and clipping, a bound on the gradients."""
import math
from collections.abc import Iterable

import numpy as np

from ..tensor import Tensor

__all__ = ["clip_grad_norm", "schedule"]


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
