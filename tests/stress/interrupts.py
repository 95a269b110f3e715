"""Ctrl-C at any line of training: the model can be used, trained and taken apart afterwards.

    nice python -m tests.stress.interrupts --count 1000 --record

KeyboardInterrupt is raised at a random line of the package while a method trains, is evaluated, and is switched off for an
evaluation. (`train` makes a real Ctrl-C wait for the end of its step; this is the harder case of a second one, or of a
thread.) Lines that clean up after an error are left out: an interrupt of the cleaning itself is not survived. So are
the lines of `signals.py`, where a real one waits. `verbs.py` interrupts the verbs of a PeftModel.

Afterwards: gradients are recorded again, no module is in training mode, no gradient and no update mask is left, BLAS has its
threads back; the logits are finite; the base and its twin in the PeftModel are as they were, bit for bit; and training goes on.
"""
import argparse
import ast
import functools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import tinypeft as tp
from tests.stress import record
from tests.toys import Noise, same
from tinypeft.common.threads import blas_threads

NARROW = tp.BottleneckAdapter, tp.ParallelAdapter          # their default is wider than the model here
METHODS = {name: cls(bottleneck=4) if cls in NARROW else cls() for name, cls in tp.METHODS.items() if name != "probe"} | {
    "oft": tp.OFT(4),
    "DyLoRA, frozen": tp.DyLoRA(frozen=True), "LoRA, dropout": tp.LoRA(dropout=0.2),
    "fourierft": tp.FourierFT(20)}
CONFIG = tp.GPTConfig(37, 64, 16, 2, 4, dropout=0.1)
PACKAGE = Path(tp.__file__).parent


def cleaning_lines(path: Path) -> set[int]:
    """The lines of a file that clean up: `finally`, `except`, and `__enter__` and `__exit__`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        bodies = [*node.finalbody, *node.handlers] if isinstance(node, ast.Try) else []
        if isinstance(node, ast.FunctionDef) and node.name in ("__enter__", "__exit__"): bodies = [node]
        for body in bodies: found.update(range(body.lineno, body.end_lineno + 1))
    return found


@functools.cache
def cleaning():
    """Return file of the package → its lines that clean up."""
    return {str(path): cleaning_lines(path) for path in PACKAGE.rglob("*.py")}


class Interrupter:
    """A trace function that lists the lines of the package in the order they run, and raises KeyboardInterrupt at the one
    with the index `at`."""
    def __init__(self, at: int = -1): self.at, self.lines, self.where = at, [], None

    def __call__(self, frame, event, argument):
        if frame.f_code.co_filename not in cleaning() or frame.f_code.co_filename.endswith("signals.py"): return None
        if event == "line" and not self.cleans(frame):
            self.lines.append((frame.f_code.co_filename, frame.f_lineno))
            if len(self.lines) == self.at + 1:
                sys.settrace(None)
                self.where = self.lines[-1]
                raise KeyboardInterrupt
        return self

    @staticmethod
    def cleans(frame) -> bool:
        while frame.f_code is not job.__code__:          # nothing below it is the package's
            if frame.f_lineno in cleaning().get(frame.f_code.co_filename, ()): return True
            frame = frame.f_back
        return False


def job(tuned: tp.PeftModel, checkpoint: Path) -> None:
    """What is interrupted: two steps, an evaluation after them, one of the base, a checkpoint."""
    tp.train(tuned, Noise(), 3, eval_every=2, eval_batches=1, checkpoint=checkpoint, checkpoint_every=3, stop_after=2,
             progress=False)
    with tuned.disabled(): tp.evaluate(tuned, Noise(), max_batches=1)


def interrupted(tuned: tp.PeftModel, at: int = -1) -> Interrupter:
    """Run the job; interrupt it at the line with the index `at`, if there is one."""
    trace = Interrupter(at)
    with tempfile.TemporaryDirectory() as folder:
        before = sys.gettrace()
        sys.settrace(trace)
        try: job(tuned, Path(folder) / "c")
        except KeyboardInterrupt:
            if trace.where is None: raise                # the user's own
        finally: sys.settrace(before)
        trace.files = [path.name for path in Path(folder).iterdir() if path.suffix == ".part"]
    return trace


def faults(tuned: tp.PeftModel, base: dict) -> list[str]:
    """What is wrong with a model after an interrupt."""
    found, tokens = [], np.arange(6)[None]
    x = tp.Tensor(np.ones(2), requires_grad=True)
    (x * x).sum().backward()
    if x.grad is None: found.append("nothing is recorded")
    if any(m.training for _, m in tuned.named_modules()): found.append("a module is in training mode")
    if any(p.grad is not None for p in tuned.parameters()): found.append("a gradient is left")
    masks = [p.update_mask for p in tuned.parameters() if p.update_mask is not None]
    if not all(mask.all() for mask in masks): found.append("an update mask is left")
    if tuned.is_disabled: found.append("the method is disabled")
    if not np.isfinite(tuned(tokens).data).all(): found.append("logits are not finite")
    if not same(tuned.base.state_dict(), base): found.append("the base changed")
    if not same(tuned.frozen.state_dict(), base): found.append("the twin of the base changed")
    losses = tp.train(tuned, Noise(), 9, stop_after=1, progress=False).loss
    if not np.isfinite(losses).all(): found.append("a loss is not finite")
    return found


def search(count: int, seed: int = 0, methods: dict = METHODS, say: Callable[[str], object] = print) -> dict:
    """Interrupt `count` times, in turns over the methods."""
    rng, figures = np.random.default_rng(seed), {"interrupts": 0, "lines": set(), "faults": 0}
    with blas_threads(2):                                # so that one thread left over would be seen
        for i, (name, method) in enumerate(methods.items()):
            attached = lambda method=method: tp.attach(tp.GPT(CONFIG, rng=0), method, rng=0)
            lines = interrupted(attached()).lines
            for line in rng.choice(sorted(set(lines)), (count + i) // len(methods)):
                at = rng.choice([k for k, other in enumerate(lines) if other == (line[0], int(line[1]))])
                tuned = attached()
                base = {n: a.copy() for n, a in tuned.base.state_dict().items()}
                trace = interrupted(tuned, at)
                wrong = faults(tuned, base) + [f"{file} is left" for file in trace.files]
                figures["interrupts"] += trace.where is not None
                figures["lines"].add(trace.where)
                figures["faults"] += bool(wrong)
                if wrong: say(f"{name}, interrupted at {line[0]}:{line[1]}: {', '.join(wrong)}")
    return {"seed": seed, "methods": len(methods), **figures, "lines": len(figures["lines"])}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--count", type=int, default=1000, help="how many interrupts (default 1000)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--record", action="store_true", help="write results/interrupts.json")
    args = p.parse_args()
    begin = time.perf_counter()
    figures = search(args.count, args.seed)
    figures["seconds"] = round(time.perf_counter() - begin)
    print(figures)
    if args.record: print(record("interrupts", figures))
    if figures["faults"]: raise SystemExit("interrupts: see above")


if __name__ == "__main__":
    main()
