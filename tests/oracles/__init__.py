"""What the tests compare with. Importing this package needs NumPy only; its modules need what they are named after.

    torch = pytest.importorskip("torch")
    from tests.oracles import assert_close
    from tests.oracles.torch_gpt import named_grads, torch_copy
"""
import numpy as np

__all__ = ["assert_close", "assert_gradients_close", "relative_error"]


def as_array(x):
    """The numbers of a Tensor, a torch tensor or an array, as float64."""
    if hasattr(x, "detach"): x = x.detach()
    if hasattr(x, "data") and not isinstance(x, np.ndarray): x = x.data
    return np.asarray(x, dtype=np.float64)


def relative_error(got, expected):
    """max |got − expected| / max |expected|; infinite where the shapes differ or a number is not finite."""
    a, b = as_array(got), as_array(expected)
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return np.inf
    if not b.size:
        return 0.0
    return np.abs(a - b).max() / max(np.abs(b).max(), np.finfo(float).tiny)


def assert_close(got, expected, tolerance=1e-8, what="value"):
    """The relative error of `got` is at most `tolerance` (1e-8 for float64, 1e-5 for float32)."""
    a, b = as_array(got), as_array(expected)
    assert a.shape == b.shape, f"{what}: shape {a.shape}, expected {b.shape}"
    error = relative_error(a, b)
    assert error <= tolerance or not np.abs(a).max(initial=0) and not np.abs(b).max(initial=0), (
        f"{what}: relative error {error:.2g} > {tolerance:.2g}")


def assert_gradients_close(got, expected, tolerance=1e-8):
    """The same names, and every gradient as close as `tolerance` says.

    Relative to its own largest number, or a tenth of the largest of all gradients: some are 0 but for rounding, such
    as that of a key's bias (what is added to all keys alike changes no softmax).
    """
    assert got.keys() == expected.keys(), f"gradients of {sorted(got)}, expected {sorted(expected)}"
    largest = max(np.abs(g).max(initial=0) for g in expected.values())
    for name, g in expected.items():
        error = np.abs(got[name] - g).max(initial=0) / max(np.abs(g).max(initial=0), 0.1 * largest)
        assert error <= tolerance, f"gradient of {name}: relative error {error:.2g} > {tolerance:.2g}"
