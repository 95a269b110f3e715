"""Long short-term memory (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000).

For a sequence x₁ … x_T, from h₀ = c₀ = 0:

    z_t = W x_t + b + U h_{t−1} + b′                     (4 n,), the inputs of the four gates
    i = σ(z_i),   f = σ(z_f),   g = tanh(z_g),   o = σ(z_o)
    c_t = f c_{t−1} + i g,        h_t = o tanh(c_t)

and back from t = T to 1, with dh_t = ∂L/∂h_t, and dc_t from the later steps and from h_t:

    dh_t += Uᵀ dz_{t+1},       dc_t = f_{t+1} dc_{t+1} + dh_t o (1 − tanh² c_t)
    dz_i = dc g i (1 − i),     dz_f = dc c_{t−1} f (1 − f)
    dz_g = dc i (1 − g²),      dz_o = dh tanh(c) o (1 − o),       dU = Σ dz_t h_{t−1}ᵀ

PyTorch's names and order: W is `weight_ih`, U `weight_hh`, b and b′ `bias_ih` and `bias_hh`, gates
i f g o. The two biases act only as a sum; both are kept, as an optimizer moves each.
"""
import numpy as np

from ..common.hints import Rng
from ..engine import functional as F
from ..engine.nn import Module, Parameter
from ..engine.tensor import Tensor, concatenate

__all__ = ["BiLSTM", "lstm"]


def lstm(a: Tensor, U: Tensor) -> Tensor:
    """Compute h (T, n) by the recurrence from U (4n, n) and a (T, 4n), the W x_t + b + b′ of z_t.

    One operation, with the gradients written out: the recurrence alone is in `plain.py`."""
    T, n = a.shape[0], U.shape[1]
    if a.ndim != 2 or U.shape != (4 * n, n) or a.shape[1] != 4 * n:
        raise ValueError(f"lstm: a {a.shape}, U {U.shape}; expected a (T, 4n), U (4n, n)")
    Ud, dtype = U.data, a.dtype
    gates = np.empty((T, 4, n), dtype)
    h, c = np.zeros((2, T + 1, n), dtype)                                 # h[t] is h_t, h[0] = 0
    for t in range(T):
        z = (a.data[t] + Ud @ h[t]).reshape(4, n)
        gates[t] = 0.5 * (1 + np.tanh(0.5 * z))                               # σ(z)
        gates[t, 2] = np.tanh(z[2])
        i, f, g, o = gates[t]
        c[t + 1] = f * c[t] + i * g
        h[t + 1] = o * np.tanh(c[t + 1])

    def vjp(dh):
        dz = np.empty_like(gates)
        later_h, later_c = np.zeros((2, n), dtype)                        # from step t + 1
        for t in reversed(range(T)):
            i, f, g, o = gates[t]
            tanh_c = np.tanh(c[t + 1])
            dh_t = dh[t] + later_h
            dc = later_c + dh_t * o * (1 - tanh_c * tanh_c)
            dz[t, 0] = dc * g * i * (1 - i)
            dz[t, 1] = dc * c[t] * f * (1 - f)
            dz[t, 2] = dc * i * (1 - g * g)
            dz[t, 3] = dh_t * tanh_c * o * (1 - o)
            later_h = dz[t].reshape(-1) @ Ud
            later_c = dc * f
        dz = dz.reshape(T, -1)
        return dz, dz.T @ h[:-1]
    return Tensor.fused(h[1:], (a, U), vjp)


class LSTM(Module):
    """One layer, one direction: (T, d_in) → (T, n). All starts at U(−1/√n, 1/√n), as in PyTorch."""

    def __init__(self, d_in: int, n: int, rng: Rng):
        def draw(*shape):
            return Parameter(rng.uniform(-n ** -0.5, n ** -0.5, shape))
        self.weight_ih = draw(4 * n, d_in)
        self.weight_hh = draw(4 * n, n)
        self.bias_ih = draw(4 * n)
        self.bias_hh = draw(4 * n)

    def forward(self, x: Tensor) -> Tensor:
        a = F.linear(x, self.weight_ih, self.bias_ih) + self.bias_hh
        return lstm(a, self.weight_hh)


class BiLSTM(Module):
    """`n_layers` layers of two LSTMs, one forward and one backward in time: (T, d_in) → (T, 2n)."""

    def __init__(self, d_in: int, n: int, n_layers: int, rng: Rng):
        widths = [d_in] + [2 * n] * (n_layers - 1)
        self.forwards = [LSTM(d, n, rng) for d in widths]
        self.backwards = [LSTM(d, n, rng) for d in widths]

    def forward(self, x: Tensor) -> Tensor:
        for ahead, back in zip(self.forwards, self.backwards, strict=True):
            from_the_end = back(x[::-1])[::-1]
            x = concatenate([ahead(x), from_the_end], axis=1)
        return x
