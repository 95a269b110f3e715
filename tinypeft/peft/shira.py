"""SHiRA: Sparse High Rank Adapters (Bhardwaj et al., arXiv 2406.13175).

SHiRA trains a few numbers of a weight, where they stand, and leaves the others as they are: the
paper one or two in a hundred, as r = 8 does in a wide weight; of one that is 128 wide r = 8 is an
eighth. So few numbers make a change of any rank: to train little, low rank is not needed. Section
3.1 and appendix I (with α = 1):

    W = W₀ + S,      S = 0 but at the n places of a mask M

    paper   here             shape
    W₀      base             (d_out, d_in), frozen, quantized or not
    S       change()         (d_out, d_in), with `values` (n,) at `places`; they start at 0
    M       places           (n,), i d_in + j for each place (i, j), rising. Drawn, not trained

Trained parameters: Σ n = Σ r (d_in + d_out) over the targets, as many as in a LoRA of rank r. Here
r counts numbers and bounds no rank. A file holds the places, too, 4 bytes each: without them nobody
could read it. S is written out, so each layer holds a matrix as large as its weight from its
forward to its backward pass; switched off or saved, it holds n values and n places.

Where implementations differ. The paper masks the gradients of W₀, and names five masks: some rows,
columns and the diagonal; random; where weights, gradients or both are large. PEFT trains the values
alone, as here, and has the random mask; its n is used here. With `random_seed` or without, PEFT
gives all layers of one shape the same places, in every run; here `attach(…, rng=)` draws those of
each layer. PEFT's default is r = 32; here it is that of LoRA.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..common.hints import Array, Rng, Targets
from ..common.hyper import layer_names, whole
from ..engine.nn import Module, Parameter
from ..engine.tensor import Tensor
from .changed import ChangedLinear
from .method import Method, MethodError

__all__ = ["SHiRA", "SHiRALinear", "scattered"]


class SHiRALinear(ChangedLinear):
    """y = (W₀ + S) x + b, S with n numbers.

    A product with the dense S takes as long as W₀'s. With the n numbers alone, gathered from x and
    added up by rows, it takes 60 times as long in NumPy (n = 2048 of 128 × 128, 2048 rows)."""

    def __init__(self, base: Module, method: SHiRA, rng: Rng):
        super().__init__(base, 0.0, rng)
        r = method.rank
        n = r * (base.d_in + base.d_out)
        size = base.d_in * base.d_out
        if n > size:
            raise MethodError(f"SHiRA: rank {r} asks for {n} of the {size} numbers of a "
                              f"{base.d_out} × {base.d_in} matrix")
        places = rng.choice(size, n, replace=False)
        self.places = np.sort(places).astype(np.int32)
        self.values = Parameter(np.zeros(n, np.float32))

    def change(self) -> Tensor:
        return scattered(self.values, self.places, (self.d_out, self.d_in))

    def check_parts(self) -> None:
        places, size = self.places, self.d_in * self.d_out
        is_rising = (places[1:] > places[:-1]).all()              # so none is there twice
        if not is_rising or places[0] < 0 or places[-1] >= size:
            raise ValueError(f"places: expected rising numbers from 0 to {size - 1}, each once")

    def describe(self) -> str:
        return f"({self.d_in} → {self.d_out}, {len(self.places)} numbers)"


@dataclass(frozen=True)
class SHiRA(Method):
    """Train single numbers of the weights of the layers named in `targets`, at random places.

    rank: r of r (d_in + d_out), how many numbers; a LoRA of rank r trains as many.
    """
    rank: int = whole(8, least=1, also=("r",))
    targets: Targets = layer_names(("query", "value"))
    learning_rate = 3e-2
    shown = ("rank",)
    wrapper = SHiRALinear


def scattered(values: Tensor, places: Array, shape: tuple[int, int]) -> Tensor:
    """Write `values` at `places` of a matrix of zeros. Its gradient at these places is theirs."""
    S = np.zeros(shape, values.dtype)
    S.flat[places] = values.data
    return Tensor.op(S, (values, lambda dS: dS.reshape(-1)[places]))
