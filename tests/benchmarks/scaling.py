"""What a step costs as the work grows: seconds and peak memory over parameters, batch, context, rank, vocabulary, cores.

    python -m tests.benchmarks.scaling [--rounds 5] [--json FILE]

One thing grows at a time; the rest stays as `SERIES` says. Memory is what a step allocates, with the weights and AdamW's two
moments. An exponent is the slope of log time, or log memory, over log size. The picture `scaling` draws all of it.
"""
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import tinypeft as tp
from tests.benchmarks.measure import in_turn, medians, parser, traced_peak, write
from tests.benchmarks.sides import SIZES, batch_of, ours
from tinypeft.common.threads import blas_threads

BASE, _ = SIZES["base"]
SHAPES = (48, 2, 2), (64, 6, 2), (128, 5, 4), (192, 8, 6), (320, 8, 5), (512, 11, 8), (768, 19, 12)    # d, layers, heads


@dataclass(frozen=True)
class Series:
    """One thing that grows. grow: its size → (config, rows, tokens per row, method or None, workers)."""
    sizes: tuple
    grow: Callable
    rest: str                                            # what stays


def gpt(vocab=1024, context=128, width=128, layers=5, heads=4):
    """The base's size, but for what is given."""
    return tp.GPTConfig(vocab, context, width, layers, heads)


SERIES = {
    "parameters": Series(SHAPES, lambda s: (gpt(1024, 128, *s), 2, 128, None, None), "2 rows of 128 tokens"),
    "batch": Series((2, 4, 8, 16, 32, 64), lambda n: (gpt(), n, 128, None, None), "the base's size, rows of 128 tokens"),
    "context": Series((64, 128, 256, 512, 1024, 2048, 4096, 8192), lambda n: (gpt(context=n), 2, n, None, None),
                      "the base's size, 2 rows"),
    "rank": Series((1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
                   lambda n: (gpt(width=512, layers=4, heads=8), 4, 128, tp.LoRA(rank=n, targets="all"), None),
                   "512 wide, 4 layers, LoRA on all six matrices, 4 rows of 128 tokens"),
    "vocabulary": Series((256, 1024, 4096, 16384, 65536), lambda n: (gpt(vocab=n), 2, 128, None, None),
                         "the base's size, 2 rows of 128 tokens"),
    "cores": Series((1, 2), lambda n: (SIZES["large"][0], 2, 256, None, n), "29.5 M parameters, 2 rows of 256 tokens")}
THEORY = {                                               # what grows → exponents of time and of memory
    "parameters": ("1", "1"), "batch": ("1", "0, then 1"), "context": ("1, then 2", "1"),
    "rank": ("0, then 1", "0, then 1"), "vocabulary": ("0, then 1", "0, then 1"), "cores": ("−1", "0")}


def steps_of(series):
    """(what is grown, the step, bytes that stay between steps) for each size."""
    for size in series.sizes:
        config, rows, length, method, workers = series.grow(size)
        model = tp.GPT(config)
        x = model.n_parameters() if isinstance(size, tuple) else size
        tuned = model if method is None else tp.attach(model, method)
        kept = sum(p.data.nbytes * (3 if p.requires_grad else 1) for p in tuned.parameters())
        step = ours(tuned, batch_of(config, rows, length), workers)
        yield x, step if workers != 1 else on_one_core(step), kept


def on_one_core(step):
    """The step, with one thread in every product too."""
    def alone():
        with blas_threads(1): step()
    return alone


def measured(series, rounds):
    """Seconds and bytes of a step at each of its sizes."""
    return {str(x): {"s": medians(in_turn({x: step}, rounds, warmup=1, twice=False), digits=6)[x],
                     "bytes": kept + traced_peak(step)} for x, step, kept in steps_of(series)}


# -- what it means -------------------------------------------------------------------------------
def exponent(x, y):
    """The slope of log y over log x, by least squares."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def halves(x, y):
    """The exponents over the lower and the upper half of x; of an odd number they share the point in the middle."""
    n = max(2, -(-len(x) // 2))
    return exponent(x[:n], y[:n]), exponent(x[-n:], y[-n:])


def crossover(x, y):
    """Where c x² is half of y ≈ a + b x + c x², fitted by least squares of the relative error."""
    x, y = np.array(x, float), np.array(y)
    powers = np.stack([np.ones(len(x)), x, x * x], 1) / y[:, None]
    a, b, c = np.linalg.lstsq(powers, np.ones(len(x)), rcond=None)[0]
    return float((b + (b * b + 4 * a * c) ** 0.5) / (2 * c))


def columns(table):
    """(sizes, seconds, bytes) of a table of `measured`."""
    return ([int(x) for x in table], *([cells[name] for cells in table.values()] for name in ("s", "bytes")))


def exponents(name, table):
    """The row of a series: what stays, its ends, and the exponents of time and memory, measured and in theory."""
    x, *found = columns(table)
    row = {"what stays": SERIES[name].rest, "from": x[0], "to": x[-1]}
    for kind, y, theory in zip(("time", "memory"), found, THEORY[name], strict=True):
        low, high = halves(x, y)
        row |= {f"{kind}: lower half": low, f"{kind}: upper half": high, f"{kind}: in theory": theory}
    return row


def even_flops(c):
    """The context at which causal attention takes as many flops as all linear layers: T d = 12 d² + V d / L, per token."""
    return round(12 * c.d_model + c.vocab_size / c.n_layers)


def main(argv=None):
    args = parser(__doc__, 5).parse_args(argv)
    tables = {}
    for name, series in SERIES.items():
        tables[name] = measured(series, args.rounds)
        print(f"{name} ({series.rest})")
        for x, t, n in zip(*columns(tables[name]), strict=True):
            print(f"{x:>14,}{1e3 * t:>10.1f} ms{n / 2**20:>10.1f} MiB", flush=True)
    x, seconds, _ = columns(tables["context"])
    half = {"context where half of a step is quadratic": round(crossover(x, seconds)), "by flops": even_flops(gpt())}
    write("scaling", args, {"scaling": {name: exponents(name, table) for name, table in tables.items()}, **tables},
          {"scaling": half})


if __name__ == "__main__":
    main()
