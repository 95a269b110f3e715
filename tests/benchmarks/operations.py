"""Where a training step spends its time: CPU seconds of every operation, forward and backward, and of its products alone.

    python -m tests.benchmarks.operations [--rounds 9] [--json FILE]

Every function of `engine/functional.py` is timed by its thread's own clock, and so is the backward that it records. AdamW is
timed as a whole. The rest of the step's CPU time is sums, reshaping, views, the walk of the graph and the batch. The products
of linear layers, of the head and of attention are timed alone (`limit.py`), as a share of what their operation takes.
"""
import contextlib
import functools
import statistics
import time
from unittest import mock

import numpy as np

from tests.benchmarks.limit import limit
from tests.benchmarks.measure import in_turn, medians, parser, seconds, write
from tests.benchmarks.sides import SIZES, batch_of, ours
from tinypeft import GPT
from tinypeft.engine import functional, optim
from tinypeft.engine.tensor import Tensor

DIRECTIONS = "forward", "backward"
WITH_PRODUCTS = "linear", "attention", "linear_cross_entropy"


def timed(function, name, direction, spent, clock=time.thread_time):
    """The function, with (name, direction, seconds) noted in `spent` at each call."""
    @functools.wraps(function)
    def call(*args, **options):
        start = clock()
        try: return function(*args, **options)
        finally: spent.append((name, direction, clock() - start))
    return call


def operation(function, name, spent):
    """An operation whose forward and backward are both timed."""
    forward = timed(function, name, "forward", spent)

    @functools.wraps(function)
    def call(*args, **options):
        y = forward(*args, **options)
        made = isinstance(y, Tensor) and y.node is not None and all(y is not x for x in args)     # dropout may return x
        if made: y.node.vjp = timed(y.node.vjp, name, "backward", spent)
        return y
    return call


@contextlib.contextmanager
def watched():
    """Inside, every operation and the optimizer note in the list given what they spend."""
    spent = []
    with contextlib.ExitStack() as patches:
        for name in functional.__all__:
            f = getattr(functional, name)
            if callable(f): patches.enter_context(mock.patch.object(functional, name, operation(f, name, spent)))
        step = timed(optim.AdamW.step, "AdamW", "", spent, time.process_time)
        patches.enter_context(mock.patch.object(optim.AdamW, "step", step))
        yield spent


def shares(config, rows, rounds):
    """The whole step, then each operation and direction, the largest first: milliseconds of CPU time, their share of the step,
    and what the operation's products take alone."""
    model = GPT(config)
    step = ours(model, batch_of(config, rows))
    for _ in range(3): step()
    times = {}
    with watched() as spent:
        for i in range(rounds):
            spent.clear()
            total = seconds(step, time.process_time)
            for name, direction, t in spent: times.setdefault((name, direction), np.zeros(rounds))[i] += t
            times.setdefault("all", np.zeros(rounds))[i] = total
    total = times.pop("all")
    times["rest", ""] = total - sum(times.values())
    only = {(o, d): limit(model, rows, only=lambda p, o=o, d=d: (p.operation, p.direction) == (o, d))
            for o in WITH_PRODUCTS for d in DIRECTIONS}
    alone = medians(in_turn(only, rounds, clock=time.process_time), 1e-3, 2)
    found = {"all": {"ms": round(1e3 * statistics.median(total), 1)}}
    for (name, direction), t in sorted(times.items(), key=lambda item: (item[0][0] == "rest", -item[1].sum())):
        ms, products = round(1e3 * statistics.median(t), 2), alone.get((name, direction))
        found[f"{name.replace('_', ' ')}, {direction}".removesuffix(", ")] = {
            "ms": ms, "share": round(statistics.median(t / total), 4), "products alone: ms": products,
            "products ÷ all of it": products and products / ms}
    return found


def main(argv=None):
    args = parser(__doc__, 9).parse_args(argv)
    table = {f"{size}: {name}": cells for size, (config, rows) in SIZES.items()
             for name, cells in shares(config, rows, args.rounds).items()}
    for name, cells in table.items():
        print(f"{name:<40}" + "".join(f"{value:>10.2f}" for value in cells.values() if value is not None))
    write("operations", args, {"operations": table})


if __name__ == "__main__":
    main()
