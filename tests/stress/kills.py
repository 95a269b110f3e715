"""Training that is killed at random moments and started again must end as if nothing had happened, bit for bit.

    nice python -m tests.stress.kills --count 50 --record

Every kind of run (method, task, optimizer) has the default settings of `train`, and few steps. It is started in a process
of its own with a checkpoint, killed with SIGKILL after a random time, and started again until it ends. Its last checkpoint
must then hold the same numbers as that of a run that was never killed: parameters, moments, losses and evaluations. After
each kill the checkpoint is whole or not there yet. The next writer leaves no other file.
"""
import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess as Process
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np

import tinypeft as tp
from tests.stress import record
from tests.toys import Noise, small
from tinypeft.files import fingerprint, load_arrays, write_atomically

STEPS = 20


def classify() -> tuple:
    model = tp.load_pretrained()
    task = tp.tasks.classify(model)
    return tp.attach(model, tp.LoRA(), rng=0, head=len(task.classes)), task, {}


def domain(method: tp.Method, **options) -> tuple:
    model = tp.load_pretrained()
    return tp.attach(model, method, rng=0), tp.tasks.domain(model), options


# kind → what makes (model, task, options of `train` that are not the default)
KINDS: dict[str, Callable[[], tuple]] = {
    "LoRA classify": classify,
    "LoRA domain": lambda: domain(tp.LoRA()),
    "AdaLoRA domain": lambda: domain(tp.AdaLoRA()),
    "DyLoRA domain": lambda: domain(tp.DyLoRA(), eval_every=7, eval_batches=1),
    "full domain PagedAdamW": lambda: domain(tp.FullFineTuning(), optimizer=tp.PagedAdamW),
    "full domain Muon": lambda: domain(tp.FullFineTuning(), optimizer=tp.optim.Muon),
    "full domain AdamW8bit": lambda: domain(tp.FullFineTuning(), optimizer=tp.optim.AdamW8bit),
    "full domain GaLore": lambda: domain(tp.FullFineTuning(), optimizer=tp.optim.GaLore),
}
TOY = {"toy": lambda: (tp.attach(small(dropout=0.1), tp.DyLoRA(), rng=0), Noise(), {"steps": 250, "checkpoint_every": 7,
                                                                                 "eval_every": 5, "keep_best": True})}


def train(kind: str, checkpoint: Path, begins: Event) -> None:
    """One run, in the child. It says when training begins."""
    model, task, options = (KINDS | TOY)[kind]()
    begins.set()
    tp.train(model, task, progress=False, **{"steps": STEPS, "checkpoint": checkpoint, **options})


def start(kind: str, checkpoint: Path) -> Process:
    """A child that has begun to train. It is forked, so it needs no time to import and read."""
    context = multiprocessing.get_context("fork")
    child = context.Process(target=train, args=(kind, checkpoint, begins := context.Event()))
    child.start()
    while not begins.wait(0.1):
        if child.exitcode is not None: raise RuntimeError(f"{kind}: a run ended before training began")
    return child


def outcome(checkpoint: Path) -> tuple:
    """What a run has computed: a hash of parameters and moments, the losses, the evaluations."""
    arrays, meta = load_arrays(checkpoint)
    return fingerprint(arrays), meta["step"], meta["history"]["loss"], meta["history"]["evals"]


def search(kinds: dict, count: int, seed: int = 0, say: Callable[[str], object] = print) -> dict:
    """Kill `count` times, in turns over the kinds; return the figures. "differ" counts runs that end elsewhere."""
    rng, figures = np.random.default_rng(seed), {}
    for i, kind in enumerate(kinds):
        todo = (count + i) // len(kinds)
        figures[kind] = found = dict.fromkeys(("kills", "kills before the first checkpoint", "kills that cut a write",
                                               "runs that ended", "differ", "files left"), 0)
        with tempfile.TemporaryDirectory() as folder:
            whole, checkpoint = Path(folder) / "whole" / "c", Path(folder) / "killed" / "c"
            checkpoint.parent.mkdir()
            (KINDS | TOY)[kind]()                        # what it reads is then in memory, for all children
            child, begin = start(kind, whole), time.perf_counter()
            child.join()
            seconds, expected, ended = time.perf_counter() - begin, outcome(whole), False
            while found["kills"] < todo or not ended:
                child = start(kind, checkpoint)
                if found["kills"] < todo:
                    child.join(rng.uniform(0, 0.6 * seconds))
                    child.kill()
                child.join()
                ended = child.exitcode != -9             # it may have ended before it was killed
                if ended:
                    if child.exitcode: raise RuntimeError(f"{kind}: a run ended with status {child.exitcode}")
                    found["runs that ended"] += 1
                    found["differ"] += outcome(checkpoint) != expected
                    checkpoint.unlink()
                else:
                    found["kills"] += 1
                    found["kills that cut a write"] += any(checkpoint.parent.glob(".*.part"))
                    if checkpoint.exists(): load_arrays(checkpoint)              # whole
                    else: found["kills before the first checkpoint"] += 1
            time.sleep(1.1)                              # the next writer removes a part that is a second old
            write_atomically(checkpoint, "")
            found["files left"] = len(list(checkpoint.parent.iterdir())) - 1
        say(f"{kind}: {found}")
    total = {key: sum(found[key] for found in figures.values()) for key in found}
    return {"seed": seed, "steps": STEPS, **total, "kinds": figures}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--count", type=int, default=50, help="how many kills (default 50)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--record", action="store_true", help="write results/kills.json")
    args = p.parse_args()
    begin = time.perf_counter()
    figures = search(KINDS, args.count, args.seed)
    figures["seconds"] = round(time.perf_counter() - begin)
    if args.record: print(record("kills", figures))
    if figures["differ"] or figures["files left"]: raise SystemExit("kills: something was lost or left behind, see above")


if __name__ == "__main__":
    main()
