"""OFT: Orthogonal Fine-Tuning (Qiu et al., arXiv 2306.07280; OFTv2, arXiv 2506.19847).

Other methods add something to a weight. OFT turns it: all its rows, one for each output, turn
alike, so their lengths and the angles between them stay what pretraining made them. Equation (2)
and section 3.3:

    y = W x = (R W₀ᵀ)ᵀ x,      R = diag(R₁, …, R_k),      R_i = (I + Q_i)(I − Q_i)⁻¹

    paper   here               shape
    W⁰      base               (d_out, d_in), the transpose of the paper's; frozen, quantized or not
    Q       q                  (k, b (b − 1)/2), what stands above the diagonal of each Q_i; starts
                               at 0, so that R = I. Below it stands the same with a minus: Q = −Qᵀ
    R       rotation()         (k, b, b), rotations: R_iᵀ R_i = I
    r, d/r  k, b: block_size   k blocks of b inputs, k b = d_in

R is the Cayley transform of Q. It has determinant 1: it turns and does not mirror. OFTv2 turns the
input in place of the weight, y = (x R) W₀ᵀ for a row x, and so does this file: no product of W₀ and
R is made, and a quantized base stays so. Merged, W = W₀ Rᵀ. Trained: Σ d_in (b − 1)/2 over the
targets.

`neumann_terms=n` takes OFTv2's series (its section 3.3) in place of the inverse:

    R ≈ (I + Q)(I + Q + … + Qⁿ⁻²) = I + 2Q + … + 2Qⁿ⁻² + Qⁿ⁻¹

That is R (I − Qⁿ⁻¹), so for n = 5, OFTv2's and PEFT's choice, rows shrink by at most the share
‖Q‖⁴. On the shipped base ‖Q‖ is 0.7 after 60 steps at the default rate, and rows are up to 5 % too
short. So the default here is the exact R. (OFTv2 writes the sum from 1 to k, so its k is n − 2; it
says "five terms" and not how it counts. PEFT's five are n = 5.) If ‖Q‖ is 1 or more, the series
does not come near R.

Where implementations differ. In PEFT the series (`use_cayley_neumann=True`, its default, with 5
terms) and the inverse (`False`) turn in opposite directions: its inverse is (I − Q)(I + Q)⁻¹, that
of the blocks in the authors' first code. An adapter that is trained with one and read with the
other turns the wrong way; the start, Q = 0, does not show it. Here both are the paper's R. PEFT's
series of 3 terms is that of 4, and its series of 2 is I + 2Q. Where b does not divide d_in, PEFT
takes another b, and this file raises MethodError. Not here: a bound on ‖R − I‖ (the paper's COFT),
one R for all blocks, and PEFT's `module_dropout`, which leaves out whole blocks. BOFT (Liu et al.,
arXiv 2311.06243) multiplies several such R with permutations between them, so that every input
meets every other. The paper turns the weights of attention; the default here is LoRA's.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..common.hints import Rng, Targets
from ..common.hyper import layer_names, whole
from ..engine.memo import kept
from ..engine.nn import Module, Parameter
from ..engine.tensor import Tensor
from ..models.decoder import Decoder
from ..models.targets import match_targets
from .changed import ChangedLinear
from .method import Method, MethodError, Wrapper

__all__ = ["OFT", "OFTLinear", "cayley", "neumann", "skew", "turned"]


@dataclass(frozen=True)
class OFT(Method):
    """Train rotations of `block_size` inputs each, of the layers named in `targets`.

    neumann_terms: of the series that takes the inverse's place; None takes the inverse.
    """
    block_size: int = whole(32, least=2, also=("oft_block_size",))
    neumann_terms: int | None = whole(None, least=2, most=32, or_none=True,
                                      also=("num_cayley_neumann_terms", "use_cayley_neumann"))
    targets: Targets = layer_names(("query", "value"))
    learning_rate = 1e-2
    shown = ("block_size",)

    def wrap(self, model: Decoder, rng: Rng) -> dict[str, Wrapper]:
        layers = match_targets(model, self.targets)
        for path, layer in layers:
            check_block(self.block_size, path, layer.d_in)
        return {path: OFTLinear(layer, self.block_size, self.neumann_terms, rng)
                for path, layer in layers}


class OFTLinear(ChangedLinear):
    """y = (x R) W₀ᵀ + b for rows x."""

    def __init__(self, base: Module, b: int, neumann_terms: int | None, rng: Rng):
        super().__init__(base, 0.0, rng)
        self.block_size = b
        self.neumann_terms = neumann_terms
        k = base.d_in // b
        n = b * (b - 1) // 2
        self.q = Parameter(np.zeros((k, n), np.float32))

    def rotation(self) -> Tensor:
        """Compute the blocks of R, (k, b, b)."""
        Q = skew(self.q, self.block_size)
        if self.neumann_terms is None:
            return cayley(Q)
        return neumann(Q, self.neumann_terms)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(turned(x, kept(self, self.rotation)))

    def change(self) -> Tensor:
        """Compute W₀ Rᵀ − W₀."""
        W0 = Tensor(self.base.dense_weight().astype(self.q.dtype, copy=False))
        back = self.rotation().transpose(0, 2, 1)
        return turned(W0, back) - W0

    def describe(self) -> str:
        return f"({self.d_in} → {self.d_out}, {len(self.q)} rotations of {self.block_size})"


def skew(q: Tensor, b: int) -> Tensor:
    """Write Q (k, b, b), Q = −Qᵀ, from the numbers above the diagonals (k, b (b − 1)/2)."""
    i, j = np.triu_indices(b, 1)
    Q = np.zeros((len(q), b, b), q.dtype)
    Q[:, i, j] = q.data
    Q[:, j, i] = -q.data

    def dq(dQ):
        return dQ[:, i, j] - dQ[:, j, i]
    return Tensor.op(Q, (q, dq))


def cayley(Q: Tensor) -> Tensor:
    """R = (I − Q)⁻¹ (I + Q) of each block.    dQ = (I − Q)⁻ᵀ dR (I + R)ᵀ, and (I − Q)ᵀ = I + Q.

    For the gradient: (I − Q) R = I + Q, and so (I − Q) δR = δQ (I + R).

    The two factors commute, so this is the paper's R. A solver takes the place of the inverse;
    `plain.cayley` is the paper's form."""
    I = np.eye(Q.shape[-1], dtype=Q.dtype)
    plus, minus = I + Q.data, I - Q.data
    R = np.linalg.solve(minus, plus)

    def dQ(dR):
        both = (I + R).swapaxes(1, 2)
        return np.linalg.solve(plus, dR @ both)
    return Tensor.op(R, (Q, dQ))


def neumann(Q: Tensor, n: int) -> Tensor:
    """R ≈ (I + Q)(I + Q + … + Qⁿ⁻²), n terms in all when it is multiplied out."""
    I = Tensor(np.eye(Q.shape[-1], dtype=Q.dtype))
    total = I
    for _ in range(n - 2):
        total = I + Q @ total
    return total + Q @ total


def turned(x: Tensor, R: Tensor) -> Tensor:
    """Compute x R for rows x (…, d_in) and the blocks of R (k, b, b).

    All rows of a block are one product. As N k products of one row each, it takes about 20 times
    as long, with its gradients (measured: N = 2048, b = 32, d_in = 128 and 512).
    """
    k, b, _ = R.shape
    pieces = x.reshape(-1, k, b).transpose(1, 0, 2)               # (k, N, b)
    return (pieces @ R).transpose(1, 0, 2).reshape(x.shape)


def check_block(b, path, d_in):
    """Raise MethodError unless b divides d_in."""
    if d_in % b:
        divisors = [n for n in range(2, d_in + 1) if d_in % n == 0]
        raise MethodError(f"OFT: block_size {b} does not divide the {d_in} inputs of {path}; "
                          f"what does: {', '.join(map(str, divisors))}")
