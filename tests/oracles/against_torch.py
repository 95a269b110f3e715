"""One function, written for tinypeft and for PyTorch: same values, same gradients under a random upstream gradient."""
import numpy as np
import torch

from tinypeft import Tensor

from . import assert_close

__all__ = ["against_torch", "leaves"]


def leaves(arrays, frozen=()):
    """The arrays as leaves of both engines, sharing nothing; those whose index is in `frozen` need no gradient."""
    ours = [Tensor(a, requires_grad=i not in frozen) for i, a in enumerate(arrays)]
    theirs = [torch.tensor(np.array(a), requires_grad=i not in frozen) for i, a in enumerate(arrays)]
    return ours, theirs


def against_torch(ours, theirs, *arrays, tolerance=1e-8, frozen=(), rng=0):
    """Compare ours(*Tensors) with theirs(*torch tensors), and the gradients of all not `frozen`."""
    xs, ts = leaves(arrays, frozen)
    y, z = ours(*xs), theirs(*ts)
    assert_close(y, z, tolerance, "value")
    assert y.dtype == arrays[0].dtype, f"{arrays[0].dtype} became {y.dtype}"
    dy = np.random.default_rng(rng).standard_normal(y.shape).astype(y.dtype)
    y.backward(dy)
    z.backward(torch.tensor(dy))
    for i, (x, t) in enumerate(zip(xs, ts, strict=True)):
        assert (x.grad is None) == (t.grad is None), f"gradient {i}: ours is {x.grad}, PyTorch's {t.grad}"
        if x.grad is not None:
            assert x.grad.dtype == x.dtype
            assert_close(x.grad, t.grad, tolerance, f"gradient {i}")
