"""Is a gradient right? Compare it with finite differences, in a random direction.

For y = f(x) and random u (an upstream gradient) and v (a direction), the chain rule says

    ⟨∂⟨u, f(x)⟩/∂x, v⟩  =  d/dε ⟨u, f(x + εv)⟩  ≈  (⟨u, f(x + εv)⟩ − ⟨u, f(x − εv)⟩) / 2ε.

u must be random: with u = 1, which is what `f(x).sum().backward()` tests, a softmax whose backward
is nonsense passes, because its rows sum to one whatever happens.
"""
import numpy as np

from .tensor import Tensor, no_grad

__all__ = ["gradcheck"]


def gradcheck(fn, *inputs, rng=0, directions=4, step=1e-3, tolerance=1e-8):
    """Check the gradients of `fn` with respect to every input that requires one; return the worst error.

    `fn(*inputs)` returns a Tensor; `inputs` are float64 Tensors (arrays become ones that require
    gradients). Each of `directions` random directions is differenced along one input at a time, to
    fourth order. The error is relative: |analytic − numeric| / (‖gradient‖·‖direction‖, or 1 if
    that is smaller). Raises AssertionError, naming the input, when it exceeds `tolerance`; TypeError
    for float32 inputs, whose rounding would drown the difference.
    """
    rng = np.random.default_rng(rng)
    inputs = [x if isinstance(x, Tensor) else Tensor(np.asarray(x, np.float64), requires_grad=True) for x in inputs]
    checked = [(i, x) for i, x in enumerate(inputs) if x.requires_grad]
    if not checked:
        raise ValueError("gradcheck: no input requires a gradient")
    for i, x in checked:
        if x.dtype != np.float64:
            raise TypeError(f"gradcheck: input {i} is {x.dtype}; finite differences need float64")

    y = fn(*inputs)
    u = rng.standard_normal(y.shape)
    before = [x.grad for _, x in checked]
    for _, x in checked: x.grad = None
    y.backward(u)
    gradients = [np.zeros_like(x.data) if x.grad is None else x.grad for _, x in checked]
    for (_, x), g in zip(checked, before, strict=True): x.grad = g

    def value(x, v, eps):
        here, x.data = x.data, x.data + eps * v
        try:
            with no_grad(): return np.vdot(u, fn(*inputs).data)
        finally:
            x.data = here

    worst = 0.0
    for (i, x), g in zip(checked, gradients, strict=True):
        for _ in range(directions):
            v = rng.standard_normal(x.shape)
            slope = lambda h: (value(x, v, h) - value(x, v, -h)) / (2 * h)   # noqa: B023
            numeric = (4 * slope(step / 2) - slope(step)) / 3                # Richardson: the h² term cancels
            error = abs(np.vdot(g, v) - numeric) / max(1.0, np.linalg.norm(g) * np.linalg.norm(v))
            assert error <= tolerance, (
                f"gradcheck: input {i} of shape {x.shape}: backward says {np.vdot(g, v):.10g}, finite differences "
                f"say {numeric:.10g} (relative error {error:.2g} > {tolerance:.2g})")
            worst = max(worst, error)
    return worst
