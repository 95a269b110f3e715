"""Does training hold on to anything? Memory over many steps, with Python's garbage collector switched off.

    python -m tests.stress.leaks --record               1,000 steps of each method

Python frees an object when the last reference to it goes. Objects that refer to each other in a circle have to wait for
the collector, and a graph of arrays that waits is memory that grows. So the collector is off, and two numbers are
compared between an early step and the last: the process' resident memory, and the objects that a collector would look at.
"""
import argparse
import gc
import json
import os
import time
from pathlib import Path

import tinypeft as tp
from tests.stress import record
from tests.toys import Noise, small

METHODS = {"full fine-tuning": tp.FullFineTuning(), "LoRA": tp.LoRA(rank=4),
           "AdaLoRA": tp.AdaLoRA(), "P-tuning": tp.PTuning()}


def resident() -> float | None:
    """MiB of this process' memory that are in RAM; None where the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20 if statm.exists() else None


class Watched(Noise):
    """Random tokens; notes memory and objects at the steps `at`, before the batch is drawn."""

    def __init__(self, at):
        super().__init__(T=16)
        self.at, self.step, self.memory, self.objects = at, 0, [], []

    def batch(self, split, size, rng):
        if self.step in self.at:
            self.memory.append(resident())
            self.objects.append(len(gc.get_objects()))
        self.step += 1
        return super().batch(split, size, rng)


def growth(method: tp.peft.Method, steps: int, task: type[Watched] = Watched) -> dict:
    """What `steps` training steps leave behind after the first fifth of them: MiB, and objects.

    The optimizer's state, the pool of threads and NumPy's buffers exist by then.
    """
    model = tp.attach(small(), method, rng=0)
    watch = task(at=(steps // 5, steps - 1))
    gc.collect()
    gc.disable()
    try: tp.train(model, watch, steps, progress=False)
    finally: gc.enable()
    (before, after), (few, many) = watch.memory, watch.objects
    return {"MiB": None if before is None else round(after - before, 2), "objects": many - few}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    start = time.perf_counter()
    grown = {name: growth(method, args.steps) for name, method in METHODS.items()}
    figures = {"steps": args.steps, "growth": grown, "seconds": round(time.perf_counter() - start)}
    print(json.dumps(figures, indent=1))
    if args.record: print(record("leaks", figures))


if __name__ == "__main__":
    main()
