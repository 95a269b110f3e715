"""How large a step makes a finite difference right: truncation grows with h, rounding with 1/h."""
import numpy as np

from ... import functional as F
from ...tensor import Tensor, no_grad
from ..experiment import Experiment


def layers(x, W, V, one, zero):
    return F.softmax(F.linear(F.gelu(F.linear(F.layer_norm(x, one, zero), W)), V))


def measure(condition, seed, settings):
    """For every step h, the error of the difference of ⟨u, f(x + hv)⟩ along a random v, relative to the derivative that
    backward gives in float64."""
    rng, d = np.random.default_rng([seed, 4]), settings["width"]
    x, W, V, v, u = (rng.standard_normal(shape) for shape in ((d, d), (4 * d, d), (d, 4 * d), (d, d), (d, d)))
    W, V, v = W / d**0.5, V / d**0.5, v / np.linalg.norm(v)
    rest = [W, V, np.ones(d), np.zeros(d)]
    leaf = Tensor(x, requires_grad=True)
    layers(leaf, *map(Tensor, rest)).backward(u)
    exact = np.vdot(leaf.grad, v)
    x, v, u, *rest = (a.astype(condition.split(",")[0]) for a in (x, v, u, *rest))
    rest = [Tensor(a) for a in rest]

    def slope(h):
        with no_grad(): up, down = (layers(Tensor(x + x.dtype.type(s * h) * v), *rest).data for s in (1, -1))
        return float(np.vdot(u, up) - np.vdot(u, down)) / (2 * h)

    fourth = condition.endswith("order")
    return {"error": [abs(((4 * slope(h / 2) - slope(h)) / 3 if fourth else slope(h)) / exact - 1) for h in settings["steps"]]}


GRADIENT_CHECK = Experiment(
    "gradient_check", "error of a central difference over its step h (of fourth order: two of them, extrapolated), relative to "
    "the derivative of layer norm, linear, GELU, linear and softmax in a random direction; a seed draws everything", measure,
    ("float32", "float64", "float64, fourth order"),
    {"width": 16, "steps": [float(f"{10 ** (-i / 3):.3g}") for i in range(41)]},
    {"steps": [0.1, 1e-3, 1e-5], "seeds": (0, 1)}, tuple(range(10)))
