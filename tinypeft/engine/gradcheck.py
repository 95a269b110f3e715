"""Is a gradient right? Compare it with finite differences, in a random direction.

For y = f(x) and random u (an upstream gradient) and v (a direction), the chain rule says

    ⟨∂⟨u, f(x)⟩/∂x, v⟩  =  d/dε ⟨u, f(x + εv)⟩  ≈  (⟨u, f(x + εv)⟩ − ⟨u, f(x − εv)⟩) / 2ε.

With u = 1, as in `f(x).sum().backward()`, a softmax with a nonsense backward would pass, because
its rows always sum to one.
"""
from collections.abc import Callable

import numpy as np

from ..common.hints import Array, Seed
from .tensor import Tensor, no_grad

__all__ = ["gradcheck"]

TINY = 1e-300                                            # in place of a gradient of 0


def gradcheck(fn: Callable[..., Tensor], *inputs: Tensor | Array, rng: Seed = 0,
              directions: int = 4, step: float = 1e-3, tolerance: float = 1e-8) -> float:
    """Check the gradients of `fn` for every input that requires one; return the worst error.

    inputs: float64 Tensors; arrays become Tensors that require gradients. Each is moved along
    `directions` random directions and differenced to fourth order. The error is
    |analytic − numeric| / (‖gradient‖·‖direction‖), so that the unit of `fn` does not matter; a
    difference that rounding of `fn` explains never exceeds `tolerance`. Raises AssertionError,
    naming the input, when the error does; TypeError for float32, whose rounding would hide it.
    """
    rng = np.random.default_rng(rng)
    inputs = [x if isinstance(x, Tensor) else Tensor(np.asarray(x, np.float64), requires_grad=True)
              for x in inputs]
    checked = [(i, x) for i, x in enumerate(inputs) if x.requires_grad]
    if not checked:
        raise ValueError("gradcheck: no input requires a gradient")
    for i, x in checked:
        if x.dtype != np.float64:
            raise TypeError(f"gradcheck: input {i} is {x.dtype}; finite differences need float64")

    y = fn(*inputs)
    u = rng.standard_normal(y.shape)
    gradients = {id(x): g for x, g in y.gradients(u)}

    def value(x, move):
        """Compute ⟨u, f⟩ where x is moved."""
        before = x.data
        x.data = before + move
        try:
            with no_grad():
                return np.vdot(u, fn(*inputs).data)
        finally:
            x.data = before

    def ends(x, move):
        return value(x, move), value(x, -move)

    rounding = 4 * np.finfo(np.float64).eps / step       # of a slope, for values of size 1
    y_size = np.linalg.norm(u) * np.linalg.norm(y.data)
    worst = 0.0
    for i, x in checked:
        g = gradients.get(id(x), np.zeros_like(x.data))
        for _ in range(directions):
            v = rng.standard_normal(x.shape)
            analytic = np.vdot(g, v)
            high, low = ends(x, step * v)
            noise = rounding * max(y_size, abs(high), abs(low))
            slope = (high - low) / (2 * step)
            high, low = ends(x, step / 2 * v)
            numeric = (4 * (high - low) / step - slope) / 3    # Richardson: no h²
            size = max(np.linalg.norm(g) * np.linalg.norm(v), TINY)
            difference = abs(analytic - numeric)
            error = difference / size
            if difference <= noise:
                error = min(error, tolerance)
            if not error <= tolerance:
                raise AssertionError(
                    f"gradcheck: input {i} of shape {x.shape}: backward says {analytic:.10g}, "
                    f"finite differences say {numeric:.10g} (error {error:.2g} > {tolerance:.2g})")
            worst = max(worst, error)
    return worst
