"""Workers on 2, 4, 8 and 16 cores: a step as `tinypeft/training/backward.py` shares it, beside one worker's.

    python -m tests.benchmarks.cores [--rounds 5] [--json FILE]

Cores that this machine lacks are computed from one core's times. With a worker for each core, a step takes as long as its
longest part, and what lies between the parts. With one worker, the matrix products are spread over all cores without a loss,
which no BLAS reaches, and the rest stays on one core. Neither counts that cores share the memory. Where the machine has the
cores, both are run as well, and two workers where the rule takes one.
"""
import statistics
import time
from unittest import mock

import tinypeft as tp
from tests.benchmarks.limit import products, runner
from tests.benchmarks.measure import in_turn, parser, ratio, seconds, write
from tests.benchmarks.sides import SIZES, batch_of, ours
from tinypeft.common import threads
from tinypeft.common.threads import blas_threads
from tinypeft.training import backward

CORES = 2, 4, 8, 16
ROWS = ("base", 8, 256), ("base", 8, 128), ("base", 8, 32), ("middle", 4, 256), ("large", 2, 256)   # rows, tokens in each


def chosen(model, batch, cores):
    """How many workers share a batch on so many cores."""
    with mock.patch.object(threads, "cores", lambda: cores):
        return threads.workers_for(min(len(batch[0]), backward.most_workers(model, batch)))


def shared(step):
    """Seconds of a step whose parts would run at once: they run one after another, and the longest counts."""
    parts = []

    def one_by_one(fn, items, workers):
        found = []
        for item in items:
            start = time.perf_counter()
            found.append(fn(item))
            parts.append(time.perf_counter() - start)
        return found
    with mock.patch.object(backward, "parallel_map", one_by_one), blas_threads(1):
        whole = seconds(step)
    return whole - sum(parts) + max(parts)


def alone(run):
    """Seconds of a function whose products use one core."""
    with blas_threads(1): return seconds(run)


def computed(model, batch, rounds):
    """[{cores, workers, seconds, one worker}] of a step, medians."""
    step, multiply = ours(model, batch, 1), runner(products(model, *batch[0].shape))
    counts = {cores: chosen(model, batch, cores) for cores in CORES}
    several = {n: ours(model, batch, n) for n in set(counts.values()) - {1}}
    times = {"step": [], "products": [], **{n: [] for n in several}}
    for number in range(rounds + 1):                     # the first one warms up
        new = {"step": alone(step), "products": alone(multiply), **{n: shared(s) for n, s in several.items()}}
        if number:
            for name, t in new.items(): times[name].append(t)
    t = {name: statistics.median(found) for name, found in times.items()}
    found = []
    for cores, n in counts.items():
        one = t["step"] - t["products"] * (1 - 1 / cores)
        found.append({"cores": cores, "workers": n, "seconds": t[n] if n > 1 else one, "one worker": one})
    return found


def run(model, batch, rounds):
    """The time of a step with a worker for each core of this machine over that of one worker."""
    sides = {n: ours(model, batch, n) for n in (threads.cores(), 1)}
    return ratio(*in_turn(sides, rounds, warmup=1).values())


def main(argv=None):
    args = parser(__doc__, 5).parse_args(argv)
    table = {}
    print(f"{'model':<10}{'rows':>6}{'tokens':>8}{'cores':>7}{'workers':>9}{'ms':>9}{'one worker':>12}{'ratio':>8}{'run':>8}")
    for name, rows, length in ROWS:
        config, _ = SIZES[name]
        model, batch = tp.GPT(config), batch_of(config, rows, length)
        for row in computed(model, batch, args.rounds):
            here = row["cores"] == threads.cores()
            both = run(model, batch, args.rounds) if here else None
            ms, one, share = 1e3 * row["seconds"], 1e3 * row["one worker"], row["seconds"] / row["one worker"]
            table[f"{name}, {rows} × {length}, {row['cores']} cores"] = {
                "workers": row["workers"], "ms": ms, "one worker: ms": one, "ratio": share, "two workers, run": both}
            print(f"{name:<10}{rows:>6}{length:>8}{row['cores']:>7}{row['workers']:>9}{ms:>9.1f}{one:>12.1f}{share:>8.2f}"
                  f"{'' if both is None else both:>8}", flush=True)
    write("cores", args, {"cores": table})


if __name__ == "__main__":
    main()
