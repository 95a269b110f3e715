"""What each trick buys: the same run without it over the run with it, in turn, one trick at a time.

    python -m tests.benchmarks.tricks [--rounds 9] [--json FILE]

`WITHOUT` says how to take a trick away; what then runs in its place is the readable form that the tests compare it with. The
run is a training step of the base, where nothing else is said. To add a trick, add an entry.
"""
import contextlib
import subprocess
import sys
from unittest import mock

import numpy as np

import tinypeft as tp
from tests.benchmarks.measure import ROOT, in_turn, medians, parser, ratio, write
from tests.benchmarks.sides import SIZES, batch_of, ours
from tinypeft.engine import functional, plain


def plainly(name, form=None):
    """Inside, an operation is composed from primitives, as `plain.py` has it."""
    return lambda: mock.patch.object(functional, name, form or getattr(plain, name))


WITHOUT = {                                              # trick → (run, the file that has it, a context without it)
    "one operation, one backward: linear": ("step", "engine/functional.py", plainly("linear")),
    "one operation, one backward: layer norm": ("step", "engine/functional.py", plainly("layer_norm")),
    "GELU in slices that stay in the cache, which keeps its slope": ("step", "engine/functional.py", plainly("gelu")),
    "attention in blocks of 64 queries, without the keys that none of them sees":
        ("step", "engine/functional.py", plainly("attention", lambda q, k, v, **options: plain.attention(q, k, v))),
    "head and cross-entropy in one operation, in slices, the gradient in place":
        ("step", "engine/functional.py", plainly("linear_cross_entropy")),
    "freed memory stays with the process": ("kept memory", "common/heap.py", "returned memory"),
    "a thread for each half of the batch, in place of two threads in each product": ("step", "common/threads.py", "one worker"),
    "a cache of keys and values: generation of 64 tokens": ("generation", "models/generation.py", "no cache")}


@contextlib.contextmanager
def runs_of(config, rows):
    """name → function: what a trick is judged by."""
    (kept, one), (returned, other) = (in_a_child(keeps, config, rows) for keeps in (True, False))
    model, batch, prompt = tp.GPT(config), batch_of(config, rows), np.zeros((1, 16), int)
    with one, other:
        yield {"step": ours(model, batch), "one worker": ours(model, batch, workers=1),  # with the BLAS's own two threads
               "kept memory": kept, "returned memory": returned, "generation": lambda: model.generate(prompt, 64),
               "no cache": lambda: model.generate(prompt, 64, use_cache=False)}


CHILD = """
import sys
import tinypeft as tp
from tinypeft.training import backward as training
from tests.benchmarks.sides import batch_of, ours
if not {keeps}: training.keep_freed_memory = lambda: False
config, rows = tp.{config}, {rows}
step = ours(tp.GPT(config), batch_of(config, rows))
for _ in sys.stdin: step(), print(flush=True)
"""


def in_a_child(keeps, config, rows):
    """A training step in a process of its own, because a C library that was told to keep memory cannot be told otherwise."""
    code = CHILD.format(keeps=keeps, config=config, rows=rows)
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, encoding="utf-8",
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def step():
        child.stdin.write("\n")
        child.stdin.flush()
        if not child.stdout.readline(): raise RuntimeError("the process that takes steps has ended")
    return step, child


def without(runs, run, how):
    """The run without a trick: another run, or the same one inside a context."""
    def step():
        with how() if callable(how) else contextlib.nullcontext(): runs[run if callable(how) else how]()
    return step


def main(argv=None):
    args = parser(__doc__, 9).parse_args(argv)
    table = {}
    with runs_of(*SIZES["base"]) as runs:
        for trick, (run, file, how) in WITHOUT.items():
            times = in_turn({"with": runs[run], "without": without(runs, run, how)}, args.rounds, warmup=2)
            ms = medians(times, 1e-3, 1)
            row = table[trick] = {"where": f"`{file}`", "ms with": ms["with"], "ms without": ms["without"],
                                  "ratio": ratio(times["without"], times["with"])}
            print(f"{trick:<78}{row['ratio']:>7.2f}", flush=True)
    write("tricks", args, {"tricks": table})


if __name__ == "__main__":
    main()
