"""How large a step makes a finite difference right: truncation grows with h, rounding with 1/h."""
from dataclasses import dataclass

import numpy as np

from ...engine import functional as F
from ...engine.tensor import Tensor, no_grad
from ..experiment import Experiment


@dataclass(frozen=True)
class Difference:
    """A central difference. order: 2, or 4, which extrapolates two of them."""
    dtype: str
    order: int = 2


def layers(x: Tensor, W: Tensor, V: Tensor, one: Tensor, zero: Tensor) -> Tensor:
    return F.softmax(F.linear(F.gelu(F.linear(F.layer_norm(x, one, zero), W)), V))


def measure(difference: Difference, seed: int, settings: dict) -> dict:
    """For every step h, the error of the difference of ⟨u, f(x + hv)⟩ along a random v, relative to the derivative that
    backward gives in float64."""
    rng, d = np.random.default_rng([seed, 4]), settings["width"]
    x, W, V = map(rng.standard_normal, [(d, d), (4 * d, d), (d, 4 * d)])
    v, u = rng.standard_normal((2, d, d))
    W, V, v = W / d**0.5, V / d**0.5, v / np.linalg.norm(v)
    rest = [W, V, np.ones(d), np.zeros(d)]
    leaf = Tensor(x, requires_grad=True)
    layers(leaf, *map(Tensor, rest)).backward(u)
    exact = np.vdot(leaf.grad, v)
    x, v, u, *rest = (a.astype(difference.dtype) for a in (x, v, u, *rest))
    rest = [Tensor(a) for a in rest]

    def slope(h):
        step = x.dtype.type(h) * v
        with no_grad():
            up = layers(Tensor(x + step), *rest).data
            down = layers(Tensor(x - step), *rest).data
        return float(np.vdot(u, up) - np.vdot(u, down)) / (2 * h)

    slopes = [slope(h) for h in settings["steps"]]
    if difference.order == 4:
        halved = [slope(h / 2) for h in settings["steps"]]
        slopes = [(4 * fine - coarse) / 3 for fine, coarse in zip(halved, slopes, strict=True)]
    return {"error": [abs(s / exact - 1) for s in slopes]}


GRADIENT_CHECK = Experiment(
    "gradient_check", "Central differences over their step h, for layer norm, linear, GELU, linear and softmax in a random "
    "direction; a seed draws everything.", {"error": "relative, of the derivative, one per step h"},
    measure, {"float32": Difference("float32"), "float64": Difference("float64"),
              "float64, fourth order": Difference("float64", 4)},
    {"width": 16, "steps": [float(f"{10 ** (-i / 3):.3g}") for i in range(41)]},
    {"steps": [0.1, 1e-3, 1e-5], "seeds": (0, 1)}, tuple(range(10)))
