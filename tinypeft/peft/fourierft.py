"""FourierFT: fine-tuning with the discrete Fourier transform (Gao et al., arXiv 2405.03003).

Every matrix is a sum of waves, each of which runs over the whole matrix. FourierFT draws n waves
and trains their heights alone. A wave has rank 2 at most, so the change has rank 2n at most.
Section 3.1, equations (2) to (4):

    F = c at the entries E, else 0
    S_pq = 1/(d₁ d₂) Σ_jk F_jk exp(2πi (p j/d₁ + q k/d₂))
    h = W₀ x + ΔW x = W₀ x + α Re(S) x

    paper     here       shape
    d₁, d₂               (d_out, d_in) are the sides of W₀
    E         E          (2, n), rows and columns of F, drawn once and frozen
    c         c          (n,), from N(0, std²)
    α         alpha

Re(S) is a sum of cosines: `plain.waves` writes them out. So p, q and −p, −q (modulo d₁, d₂) always
have the same number in it: the changes in reach span half of the d₁ d₂ dimensions. The map from c
to Re(S) is linear, and its transpose is the same transform, read at E. Trained: n for each target.

Where implementations differ. Equation (3) in the paper lacks the factor 1/(d₁ d₂), which its
pseudocode, the authors' code and PEFT have, and which makes α so large. Pseudocode and code compute
x ΔW, for square matrices; PEFT and this file compute ΔW x, as equation (4) says. The paper shares E
between layers. PEFT draws it for each layer from one seed, so it is the same where the shapes are;
here the seed gives PEFT's numbers. The paper and PEFT draw c from N(0, 1), std = 1. Their change at
the start has standard deviation α √(n/2)/(d₁ d₂), little in a wide matrix and much in a small one:
it takes the shipped base from 3.0 to 8.7 nats per token. So here std is 0. The paper's pseudocode
has α = 300; 150 is PEFT's.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..common.hints import Array, Rng, Targets
from ..common.hyper import layer_names, real, whole
from ..engine.nn import Module, Parameter
from ..engine.tensor import Tensor
from .changed import ChangedLinear
from .method import Method, MethodError

__all__ = ["FourierFT", "FourierLinear", "draw", "inverse_transform"]


class FourierLinear(ChangedLinear):
    """h = (W₀ + α Re(S)) x + b."""

    def __init__(self, base: Module, method: FourierFT, rng: Rng):
        super().__init__(base, 0.0, rng)
        n = method.frequencies
        size = base.d_out * base.d_in
        if n > size:
            raise MethodError(f"frequencies is {n}, but a {base.d_out} × {base.d_in} matrix has "
                              f"{size}")
        self.alpha = method.alpha
        c = rng.normal(0, method.std, n)
        self.c = Parameter(c.astype(np.float32))
        places = draw(n, size, method.seed)
        self.E = np.array(divmod(places, base.d_in), np.int32)

    def change(self) -> Tensor:
        shape = self.d_out, self.d_in
        return self.alpha * inverse_transform(self.c, self.E, shape)

    def check_parts(self) -> None:
        n = self.E.shape[1]
        row, column = self.E.max(1)
        inside = self.E.min() >= 0 and row < self.d_out and column < self.d_in
        different = np.unique(self.E, axis=1).shape[1]
        if not inside or different < n:
            raise ValueError(f"E must hold {n} different places in a {self.d_out} × {self.d_in} "
                             "matrix")


@dataclass(frozen=True)
class FourierFT(Method):
    """Train a few entries of the spectrum of a change of the layers named in `targets`.

    frequencies: n. std: of the entries at the start; at 0 the model starts as its base. seed: it
    decides which entries are trained.
    """
    frequencies: int = whole(1000, least=1, also=("n_frequency",))
    alpha: float = real(150.0, above=0, also=("scaling",))
    std: float = real(0.0, least=0, also=("init_weights",))
    seed: int = whole(777, most=2**32 - 1, also=("random_loc_seed",))
    targets: Targets = layer_names(("query", "value"))
    learning_rate = 3e-2
    shown = ("frequencies",)
    wrapper = FourierLinear


def inverse_transform(c: Tensor, E: Array, shape: tuple[int, int]) -> Tensor:
    """Compute Re(S), (d₁, d₂), of the spectrum that is c at E.    dc = Re(IFFT₂(dS)) at E."""
    j, k = E
    F = np.zeros(shape, c.dtype)
    F[j, k] = c.data
    S = np.fft.ifft2(F).real

    def dc(dS):
        return np.fft.ifft2(dS).real[j, k]
    return Tensor.op(S, (c, dc))


def draw(n: int, size: int, seed: int) -> Array:
    """Draw n of the numbers 0 … size − 1, each at most once: the first n of torch.randperm(size).

    This is Fisher and Yates's shuffle: step i swaps entry i of 0 … size − 1 with a random one of
    the entries i … size − 1. `moved` holds those entries alone that differ from their index. (Above
    size 2³²/20 PyTorch draws in another way.)
    """
    generator = np.random.RandomState(seed)                       # PyTorch's numbers, MT19937
    numbers = generator.randint(0, 2**32, n, np.uint64)
    drawn = []
    moved = {}
    for i, number in enumerate(numbers.tolist()):
        place = i + number % (size - i)
        drawn.append(moved.get(place, place))
        moved[place] = moved.get(i, i)
    return np.array(drawn)
