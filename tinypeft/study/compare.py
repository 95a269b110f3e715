"""The main job: five ways to fine-tune the base and eight schemes that round it, side by side.

Fine-tuning: the frozen base, full fine-tuning, LoRA with r = 4 on all matrices, the same on a base
in NF4 (QLoRA), adapters and a prompt, trained for 60 steps with three seeds each on *domain* (the
documentation of a library that the base never saw). Schemes: what each adds to the loss on held-out
text of the base's own kind. Schemes that train stand apart, beside a float32 model that was trained
as long.

The shipped base is measured by the study's experiments `first_look`, `schemes` and `qat`, with
seeds that the study does not use. So every run is a test of the study: beside each number stands
the stored one (`prediction.py`). Another model is measured in the same way on *domain*, each method
at its own learning rate, and without schemes that train.

`ALL` is every method and every scheme. A method that the study has no rate for learns at its own.
"""
import json
import math
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from .. import quant as q
from ..common.progress import Progress
from ..engine.nn import Linear
from ..models.decoder import Decoder
from ..peft import METHODS, LinearProbe, attach
from ..text import tasks
from ..training.loop import train
from . import tuning
from .about import about, name_of
from .compared import COMPARED_SCHEMES, SHOWN, TRAINED, TRAINED_AS_LONG
from .cost import first_logits, relative_error, sharing, tested
from .experiment import half_width
from .experiments import EXPERIMENTS
from .experiments.best import RESULTS
from .measuring import measure_one, measured_with, workers
from .prediction import beside
from .quantized import base_model

__all__ = ["ALL", "QUICK", "Size", "announcement", "compare"]

FRESH = 1000                             # the first seed; no experiment has one that is as large
MOST_JOBS = 4                            # each process reads the text anew


@dataclass(frozen=True)
class Size:
    """How much is measured. steps, batch_size: of fine-tuning. seeds: how many. schemes: labels in
    COMPARED_SCHEMES. test_rows: of the test text, for another model than the base. methods: names
    in METHODS, measured beside those of `first_look`."""
    steps: int = 60
    seeds: int = 3
    schemes: tuple[str, ...] = SHOWN
    batch_size: int = 4
    test_rows: int = 128
    methods: tuple[str, ...] = ()


QUICK = Size(steps=5, seeds=1, test_rows=16,
             schemes=("int8", "LLM.int8()", "int4", "NF4", "GPTQ 4 bit"))
ALL = Size(schemes=tuple(COMPARED_SCHEMES),
           methods=tuple(name for name in METHODS if name != "probe"))         # it needs classes

# Three minutes for SmolLM2 on two cores, without AWQ, whose search takes longest. Its weights were
# quantized to 4 bits before, which would decide a comparison of 4-bit schemes.
LARGE = Size(steps=4, test_rows=8, batch_size=2, schemes=(
    "int8", "W8A8", "LLM.int8()", "SmoothQuant", "NF4", "int3 asymmetric", "GPTQ 3 bit"))
LARGE_FROM = 20_000_000                  # parameters


def compare(model: Decoder | None = None, size: Size | None = None, seed: int = 0,
            progress: bool | None = None, jobs: int | None = None) -> dict:
    """Run the comparison → a record that JSON can hold.

    model: with a tokenizer; it is as it was afterwards. None: the shipped base, which is held
    against the study. size: None is `Size()`, or `LARGE` for a model of LARGE_FROM parameters or
    more. jobs: processes that measure the base (default: one per core, at most MOST_JOBS).
    """
    is_large = model is not None and model.n_parameters() >= LARGE_FROM
    size = size or (LARGE if is_large else Size())
    started, seeds = time.perf_counter(), [FRESH + size.seeds * seed + i for i in range(size.seeds)]
    if model is None:
        calls = calls_of(base_conditions(size), seeds)
        jobs = min(jobs or min(os.cpu_count() or 1, MOST_JOBS), len(calls))
        with workers(jobs) as each:
            runs = collected(calls, each(measure_one, calls), jobs, progress)
        task = tuning.domain()
        tokens = len(task.data("test")) - 1
        judged_on = "held-out text of the base's own kind"
    else:
        here = Another(model, size)
        calls = calls_of(here.conditions(), seeds)
        runs = collected(calls, map(here.measure_one, calls), 1, progress)
        task = here.task
        tokens = task.count(next(task.batches("test", size.test_rows)))
        judged_on = "the same text"
    record = {"date": time.strftime("%Y-%m-%d"), "seed": seed, "seeds": seeds, "steps": size.steps,
              "scheme_steps": EXPERIMENTS["schemes"].settings["steps"],
              "batch_size": size.batch_size, "context": task.context, **measured_with(),
              "seconds": round(time.perf_counter() - started, 1), "test_tokens": tokens,
              "judged_on": judged_on, "methods": method_rows(runs, arms_of(size, model)),
              "schemes": scheme_rows(runs, model or base_model())}
    return record | {"notes": notes(record, model, size)}


def announcement(size: Size, results: Path = RESULTS) -> str:
    """Say what `compare --all` measures on the base, and how long the stored run of it took."""
    said = (f"{len(arms_of(size))} ways to fine-tune, {size.seeds} seeds each, and "
            f"{len(size.schemes)} schemes")
    path = results / "compare_all.json"
    if not path.exists(): return said
    seconds = json.loads(path.read_text("utf-8"))["seconds"]
    return f"{said}: about {seconds / 60:.0f} minutes, if this machine is as fast as ours"


def notes(record: dict, model: Decoder | None, size: Size) -> list[str]:
    """Put the study's numbers into the rows of the record. Return what is to be known of them."""
    if model is not None:
        said = ["The study measures the shipped base only, so nothing of it stands beside these "
                "numbers.", "Schemes that train are left out."]
        usual = arms_of(size)
        half = [about(name).short for name, arm in arms_of(size, model).items()
                if arm != usual[name]]
        if half:
            said.append(f"Half of the width is the bottleneck of {' and of '.join(half)}: the "
                        "usual one does not narrow this model.")
        return said
    if replace(size, schemes=SHOWN, methods=()) != Size():
        return ["A run of another size than the default is not compared with the study."]
    return beside(record)


# -- what is measured ------------------------------------------------------------------------------
def arms_of(size: Size, model: Decoder | None = None) -> dict[str, tuning.Arm]:
    """Return name → arm: those of `first_look`, then the other methods, each at its own rate. A
    bottleneck that does not narrow `model` is half of its width."""
    arms = EXPERIMENTS["first_look"].conditions
    others = [name for name in size.methods if name not in arms]
    times = arms["full"].times
    arms = arms | {name: tuning.Arm(METHODS[name](), times=times) for name in others}
    width = math.inf if model is None else model.config.d_model
    wide = [name for name, arm in arms.items() if getattr(arm.method, "bottleneck", 0) >= width]
    half = {name: replace(arms[name].method, bottleneck=width // 2) for name in wide}
    return arms | {name: replace(arms[name], method=method) for name, method in half.items()}


def base_conditions(size: Size) -> dict[str, tuple]:
    """Return label → (how it is measured on the base, value, settings). What takes longest comes
    first."""
    first_look, schemes, qat = (EXPERIMENTS[name] for name in ("first_look", "schemes", "qat"))
    arms = arms_of(size)
    of_arms = {"steps": size.steps / arms["full"].times, "batch_size": size.batch_size}
    fine_tuned = {name: (first_look.measure, arm, of_arms) for name, arm in arms.items()}
    of_scheme = {label: (schemes.measure, schemes.conditions[label], schemes.settings)
                 for label in size.schemes}
    trained = {label: of for label, of in of_scheme.items() if label in TRAINED}
    if trained:
        trained[TRAINED_AS_LONG] = qat.measure, qat.conditions[TRAINED_AS_LONG], qat.settings
    return trained | fine_tuned | of_scheme


def calls_of(conditions: dict[str, tuple], seeds: list[int]) -> list[tuple]:
    """Return what `measure_one` takes: the methods with all seeds, the rest with the first."""
    once = {"frozen", TRAINED_AS_LONG, *COMPARED_SCHEMES}
    return [(measure, label, value, seed, settings)
            for label, (measure, value, settings) in conditions.items()
            for seed in (seeds[:1] if label in once else seeds)]


def collected(calls: list[tuple], results: Iterable[tuple], jobs: int,
              progress: bool | None) -> dict[str, list[dict]]:
    """Return label → metrics for each seed, and show which runs are under way. results: what
    `measure_one` returns, in any order; `jobs` calls run at once, and begin in order."""
    found, left = {}, [(label, seed) for _, label, _, seed, _ in calls]
    with Progress(len(calls), "compare", progress) as bar:
        say = lambda: bar(len(found), "; ".join(label for label, _ in left[:jobs]))
        say()
        for label, seed, metrics, _ in results:
            found[label, seed] = metrics
            left.remove((label, seed))
            say()
    runs = {}
    for _, label, _, seed, _ in calls: runs.setdefault(label, []).append(found[label, seed])
    return runs


class Another:
    """Measures another model than the base, on *domain*, in this process."""

    def __init__(self, model: Decoder, size: Size):
        self.model, self.size, self.task = model, size, tasks.domain(model)

    def conditions(self) -> dict[str, tuple]:
        arms = {name: (self.fine_tuned, arm, {})
                for name, arm in arms_of(self.size, self.model).items()}
        return arms | {label: (self.rounded, COMPARED_SCHEMES[label], {})
                       for label in self.size.schemes if label not in TRAINED}

    def measure_one(self, call: tuple) -> tuple:
        measure, label, value, seed, _ = call
        return label, seed, measure(value, seed), 0.0

    @cached_property
    def exact(self) -> float:
        return self.loss(self.model)

    @cached_property
    def logits(self) -> np.ndarray:
        return first_logits(self.model, self.task)

    def loss(self, model: Decoder) -> float:
        return tested(model, self.task, self.size.test_rows)["loss"]

    def fine_tuned(self, arm: tuning.Arm, seed: int) -> dict:
        """Measure an arm at its method's own rate, as `first_look` does on the base."""
        if isinstance(arm.method, LinearProbe):          # the frozen model
            return {"loss": self.exact, "trained": 0, "share": 0.0}
        base = q.quantize(sharing(self.model), arm.scheme) if arm.scheme else self.model
        tuned = attach(base, arm.method, rng=seed)
        train(tuned, self.task, self.size.steps, batch_size=self.size.batch_size, seed=seed,
              progress=False)
        counts, loss = tuned.summary(), self.loss(tuned)
        return {"loss": loss, "trained": counts.trained, "share": counts.share}

    def rounded(self, scheme: q.Scheme, seed: int) -> dict:
        """Measure a scheme, as `schemes` does on the base."""
        calibration = self.task.batch("train", 16, np.random.default_rng(seed))[0]
        quantized = q.quantize(sharing(self.model), scheme, calibration=calibration, progress=False)
        loss = self.loss(quantized)
        error = relative_error(first_logits(quantized, self.task), self.logits)
        return {"bits": q.bits_per_weight(quantized), "error": error, "loss": loss,
                "excess": loss - self.exact}


# -- the rows --------------------------------------------------------------------------------------
def method_rows(runs: dict[str, list[dict]], arms: dict[str, tuning.Arm]) -> list[dict]:
    """Return a row for each arm: "loss" is the mean over seeds, "interval" half of its 95 %
    interval (None for one seed), and "gain" the share of what full fine-tuning gains."""
    losses = {name: [run["loss"] for run in runs[name]] for name in arms}
    mean = {name: float(np.mean(of)) for name, of in losses.items()}
    half = {name: float(half_width(of)) if len(of) > 1 else None for name, of in losses.items()}
    half["frozen"] = 0.0
    return [{"name": name, "label": about(name).short, "method": str(arm.method),
             "trained": runs[name][0]["trained"], "share": runs[name][0]["share"],
             "loss": mean[name], "losses": losses[name], "interval": half[name],
             "gain": (mean["frozen"] - mean[name]) / (mean["frozen"] - mean["full"])}
            for name, arm in arms.items()]


def scheme_rows(runs: dict[str, list[dict]], model: Decoder) -> list[dict]:
    """Return a row for float32 and each scheme. "bytes": of all arrays of the model, the rest in
    float32; "bits_in_all" per parameter."""
    rounded = {label: runs[label][0] for label in COMPARED_SCHEMES if label in runs}
    first = next(iter(rounded.values()))
    exact = first["loss"] - first["excess"]
    as_float = {"name": "float32", "bits": 32.0, "error": 0.0}
    rows = [{"label": "float32", **as_float, "loss": exact, "excess": 0.0}]
    rows += [{"label": label, "name": name_of(COMPARED_SCHEMES[label]), **of}
             for label, of in rounded.items()]
    for of in runs.get(TRAINED_AS_LONG, []):
        rows.append({"label": TRAINED_AS_LONG, **as_float, "loss": exact + of["excess"], **of})
    n = model.n_parameters()
    weights = sum(m.weight.size for path, m in model.named_modules()
                  if isinstance(m, Linear) and path.startswith("blocks."))
    for row in rows:
        row["bits_in_all"] = (row["bits"] * weights + 32 * (n - weights)) / n
        row["bytes"] = round(n * row["bits_in_all"] / 8)
    return rows
