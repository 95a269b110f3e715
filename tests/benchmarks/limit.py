"""The limit of a training step: its matrix products alone.

    python -m tests.benchmarks.limit [--rounds 15]

Without these products no gradient can be had, whatever the rest of a step costs. Of a layer y = x Wᵀ they are

    y = x Wᵀ,   dx = dy W,   dW = dyᵀ x                                                      2 N d_in d_out flops each,

N rows at a time, and in attention, for each head and each block of 64 queries with the n keys that they see,

    S = Q Kᵀ,   O = P V,   dV = Pᵀ dO,   dP = dO Vᵀ,   dQ = dS K,   dK = dSᵀ Q               2·64 n d_head flops each.

The step's backward computes S once more, to spare the memory of P. A gradient could be had without that product, so it does
not count here. The products run with the shapes, layouts, dtype and threads of the step. Each writes to an array of its own
that is there before. Factors of the same shape are one array, which the cache may still hold: a step is a little further from
that.
"""
import functools
from dataclasses import dataclass

import numpy as np

from tests.benchmarks.measure import in_turn, medians, parser
from tests.benchmarks.sides import SIZES
from tinypeft import GPT
from tinypeft.common.threads import parallel_map
from tinypeft.engine.nn import Linear

__all__ = ["Product", "limit", "products"]

QUERIES = 64                                             # of a block of `functional.attention`


@dataclass(frozen=True)
class Product:
    """a @ b of float32 arrays. A factor that the step takes as a transposed view is stored the other way round."""
    operation: str                                       # linear, attention or linear_cross_entropy, which has the head
    direction: str                                       # forward or backward
    a: tuple[int, ...]
    b: tuple[int, ...]
    turned: str = ""                                     # which factors are transposed views: "", "a" or "b"

    @property
    def flops(self) -> int: return 2 * int(np.prod(self.a)) * self.b[-1]


def products(model: GPT, rows: int, length: int | None = None) -> list[Product]:
    """The products of a step on `rows` rows of `length` tokens (default: the context), of which every weight is trained."""
    c, T = model.config, length or model.config.context_length
    N, found = rows * T, []
    layers = [("linear", m.d_out, m.d_in) for _, m in model.named_modules() if isinstance(m, Linear) and m is not model.lm_head]
    for operation, o, i in [*layers, ("linear_cross_entropy", c.vocab_size, c.d_model)]:
        found += [Product(operation, "forward", (N, i), (i, o), "b"),              # y = x Wᵀ
                  Product(operation, "backward", (N, o), (o, i)),                  # dx = dy W
                  Product(operation, "backward", (o, N), (N, i), "a")]             # dW = dyᵀ x
    B, d = rows * c.n_heads, c.d_head
    for first in list(range(0, T, QUERIES)) * c.n_layers:
        n = min(first + QUERIES, T)
        q = n - first
        found += [Product("attention", "forward", (B, q, d), (B, d, n), "b"),      # S = Q Kᵀ
                  Product("attention", "forward", (B, q, n), (B, n, d)),           # O = P V
                  Product("attention", "backward", (B, n, q), (B, q, d), "a"),     # dV = Pᵀ dO
                  Product("attention", "backward", (B, q, d), (B, d, n), "b"),     # dP = dO Vᵀ
                  Product("attention", "backward", (B, q, n), (B, n, d)),          # dQ = dS K
                  Product("attention", "backward", (B, n, q), (B, q, d), "a")]     # dK = dSᵀ Q
    return found


def runner(found):
    """A function that computes the products."""
    array = functools.cache(lambda *shape: np.random.default_rng(0).standard_normal(shape, np.float32))
    turned = lambda *shape: array(*shape[:-2], shape[-1], shape[-2]).swapaxes(-1, -2)
    work = [((turned if p.turned == "a" else array)(*p.a), (turned if p.turned == "b" else array)(*p.b),
             np.zeros((*p.a[:-1], p.b[-1]), np.float32)) for p in found]

    def run():
        for a, b, out in work: np.matmul(a, b, out=out)
    return run


def limit(model: GPT, rows: int, workers: int = 2, length: int | None = None, only=lambda product: True):
    """A function that computes the products of a step on `rows` rows, a part of them in each worker, as the step does.

    only: a Product → whether it counts."""
    cuts = np.linspace(0, rows, min(workers, rows) + 1).astype(int)
    runs = [runner(list(filter(only, products(model, n, length)))) for n in np.diff(cuts).tolist()]
    return lambda: parallel_map(lambda run: run(), runs, workers)


def main(argv=None):
    args = parser(__doc__, 15).parse_args(argv)
    print(f"{'size':<10}{'ms':>8}{'GFLOP':>8}{'GFLOP/s':>10}")
    for name, (config, rows) in SIZES.items():
        model = GPT(config)
        ms = medians(in_turn({name: limit(model, rows)}, args.rounds), 1e-3, 1)[name]
        work = sum(p.flops for p in products(model, rows)) / 1e9
        print(f"{name:<10}{ms:>8}{work:>8.1f}{1e3 * work / ms:>10.0f}")


if __name__ == "__main__":
    main()
