"""The main job: five ways to fine-tune the base and eight schemes that round it, in tables and one picture.

Fine-tuning: the frozen base, full fine-tuning, LoRA with r = 4 on all matrices, the same on a base in NF4 (QLoRA), adapters
and a prompt, trained for 60 steps with three seeds each on *domain* (the documentation of a library that the base never saw).
Schemes: what each adds to the loss on held-out text of the base's own kind. The schemes that train stand apart, beside a
float32 model that was trained as long.

The shipped base is measured by the study's experiments `first_look`, `schemes` and `qat`, with seeds that the study does not
use. So every run is a test of the study: beside each number stands the stored one (`prediction.py`). Another model is measured
in the same way on *domain*, each method at its own learning rate, and without schemes that train.

`ALL` is every method and every scheme. A method that the study has no rate for learns at its own.
"""
import copy
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import quant as q
from ..common.hints import Calibration
from ..common.progress import Progress
from ..engine.nn import Linear
from ..engine.tensor import no_grad
from ..models.decoder import Decoder
from ..peft import METHODS, attach
from ..text import tasks
from ..training.evaluation import batches_of, evaluate
from ..training.loop import train
from . import tuning
from .about import about, name_of
from .compared import COMPARED_SCHEMES, SHOWN, TRAINED_AS_LONG
from .experiment import half_width
from .experiments import EXPERIMENTS
from .measuring import measure_one, measured_with, workers
from .prediction import beside
from .quantized import base_model

__all__ = ["ALL", "QUICK", "RESULTS", "Size", "announcement", "compare", "described", "measure_scheme",
           "quantized_at_cost", "sharing"]

RESULTS = Path(__file__).parents[2] / "figures" / "results"            # of the study, in a checkout
FRESH = 1000                                             # the first seed; the study uses 0 … 7, and 100 and 101 for rates
MOST_JOBS = 4                                            # each process reads the text anew


@dataclass(frozen=True)
class Size:
    """How much is measured. steps, batch_size: of fine-tuning, in rows of 128 tokens. seeds: how many. schemes: labels in
    COMPARED_SCHEMES. scheme_steps: of the schemes that train. test_rows: of the test text, for another model than the
    base. methods: names in METHODS, measured beside those of experiment `first_look`."""
    steps: int = 60
    seeds: int = 3
    schemes: tuple[str, ...] = SHOWN
    scheme_steps: int = 80
    batch_size: int = 4
    test_rows: int = 128
    methods: tuple[str, ...] = ()


QUICK = Size(steps=5, seeds=1, schemes=("int8", "LLM.int8()", "int4", "NF4", "GPTQ 4 bit"), test_rows=16)
ALL = Size(schemes=tuple(COMPARED_SCHEMES), methods=tuple(name for name in METHODS if name != "probe"))    # it needs classes

# Three minutes for SmolLM2 on two cores, without AWQ, whose search takes longest. Its weights were quantized to 4 bits
# before, which would decide a comparison of 4-bit schemes.
LARGE = Size(steps=4, test_rows=8, batch_size=2, schemes=(
    "int8", "W8A8", "LLM.int8()", "SmoothQuant", "NF4", "int3 asymmetric", "GPTQ 3 bit"))
LARGE_FROM = 20_000_000                                  # parameters


def compare(model: Decoder | None = None, size: Size | None = None, seed: int = 0, progress: bool | None = None,
            jobs: int | None = None) -> dict:
    """Run the comparison; returns a record that JSON can hold.

    model: with a tokenizer; it is as it was afterwards. None: the shipped base, which is held against the study. size: None is
    `Size()`, or `LARGE` for a model of LARGE_FROM parameters or more. jobs: processes that measure the base (default: one per
    core, at most MOST_JOBS).
    """
    size = size or (Size() if model is None or model.n_parameters() < LARGE_FROM else LARGE)
    schemes = {label: COMPARED_SCHEMES[label] for label in size.schemes}
    for scheme in schemes.values(): about(name_of(scheme))             # it must have a mark: say so before a minute is spent
    started, seeds = time.perf_counter(), [FRESH + size.seeds * seed + i for i in range(size.seeds)]
    if model is None: found = of_the_base(size, seeds, schemes, progress, jobs or default_jobs())
    else:             found = of_another(model, size, seeds, schemes, progress)
    return {"command": "python -m tinypeft --out figures", "date": time.strftime("%Y-%m-%d"), "seed": seed, "seeds": seeds,
            "steps": size.steps, "scheme_steps": size.scheme_steps, "batch_size": size.batch_size,
            **measured_with(), "seconds": round(time.perf_counter() - started, 1), **found}


# -- what is measured ------------------------------------------------------------------------------
def arms_of(size: Size) -> dict[str, tuning.Arm]:
    """Name → arm: those of experiment `first_look`, then the other methods, each at its own rate."""
    arms = EXPERIMENTS["first_look"].conditions
    times = arms["full"].times
    return arms | {name: tuning.Arm(METHODS[name](), times=times) for name in size.methods if name not in arms}


def calls_of(size: Size, seeds: list[int]) -> list[tuple]:
    """What `measure_one` takes, for each run on the base: the methods with `seeds`, the schemes with the first of them."""
    arms, first_look = arms_of(size), EXPERIMENTS["first_look"]
    settings = {name: EXPERIMENTS[name].settings | {"steps": size.scheme_steps} for name in ("schemes", "qat")}
    settings["first_look"] = {"steps": size.steps / arms["full"].times, "batch_size": size.batch_size}
    conditions = {name: EXPERIMENTS[name].conditions for name in ("schemes", "qat")} | {"first_look": arms}
    wanted = [("schemes", label, seeds[:1]) for label in reversed(size.schemes)]
    if any(COMPARED_SCHEMES[label].trains for label in size.schemes): wanted.append(("qat", TRAINED_AS_LONG, seeds[:1]))
    wanted += [("first_look", name, seeds[:1] if name == "frozen" else seeds) for name in reversed(arms)]
    measure = {"first_look": first_look.measure, **{name: EXPERIMENTS[name].measure for name in ("schemes", "qat")}}
    return [(measure[name], (name, label), conditions[name][label], seed, settings[name])
            for name, label, of in wanted for seed in of]


def stored_costs(results: Path = RESULTS) -> dict[str, float]:
    """Label → processor seconds of one run, as the last stored `compare --all` took them; {} without it."""
    path = results / "compare_all.json"
    return json.loads(path.read_text(encoding="utf-8"))["costs"] if path.exists() else {}


def announcement(size: Size, jobs: int | None = None) -> str:
    """Say what a comparison on the base measures, and how long that takes if its costs are stored."""
    calls = calls_of(size, list(range(size.seeds)))
    costs = [stored_costs().get(key[1]) for _, key, _, _, _ in calls]
    said = f"{len(arms_of(size))} ways to fine-tune, {size.seeds} seeds each, and {len(size.schemes)} schemes"
    jobs = jobs or default_jobs()
    return said if None in costs else f"{said}: about {sum(costs) / jobs / 60:.0f} minutes on {jobs} cores"


def default_jobs() -> int:
    """One process for each core, at most MOST_JOBS."""
    return min(os.cpu_count() or 1, MOST_JOBS)


def of_the_base(size: Size, seeds: list[int], schemes: dict[str, q.Scheme], progress: bool | None, jobs: int) -> dict:
    """What the study's experiments measure, with `seeds` for the methods and the first of them for schemes, in processes."""
    arms, calls = arms_of(size), calls_of(size, seeds)
    runs, costs = measured(calls, min(jobs, len(calls)), progress)
    methods = []
    for name, arm in arms.items():
        of_name = runs["first_look", name]
        methods.append(row(name, arm, of_name[seeds[0]], [of_name[seed]["loss"] for seed in sorted(of_name)]))
    rounded = {label: runs["schemes", label][seeds[0]] for label in schemes}
    exact = next(found["loss"] - found["excess"] for found in rounded.values())
    rows = [{"label": "float32", "name": "float32", "bits": 32.0, "error": 0.0, "loss": exact, "excess": 0.0}]
    rows += [{"label": label, "name": name_of(schemes[label])} | found for label, found in rounded.items()]
    rows += [{"label": label, "name": "float32", "bits": 32.0, "loss": exact + of_seed[seeds[0]]["excess"]} | of_seed[seeds[0]]
             for (name, label), of_seed in runs.items() if name == "qat"]
    record = {"test_tokens": len(tuning.domain().data("test")) - 1, "judged_on": "held-out text of the base's own kind",
              "methods": with_gains(methods), "schemes": with_sizes(rows, base_model()), "costs": costs}
    if (size.steps, size.seeds, size.scheme_steps) == (Size.steps, Size.seeds, Size.scheme_steps):
        return record | {"notes": beside(record, RESULTS)}
    return record | {"notes": ["A run of another size than the default is not compared with the study."]}


def measured(calls: list[tuple], jobs: int, progress: bool | None) -> tuple[dict, dict]:
    """Make the runs in processes, those that take longest first: ((experiment, label) → seed → metrics, label → processor
    seconds of one run)."""
    cost = stored_costs()
    calls = sorted(calls, key=lambda call: -cost.get(call[1][1], 0))
    runs, seconds = {}, {}
    waiting = sum(cost.get(key[1], 0) for _, key, _, _, _ in calls)      # by the stored costs
    spent, stored = 0.0, 0.0                                             # by this run, and by the stored costs of the same
    with Progress(len(calls), "compare", progress) as bar, workers(jobs) as each:
        if waiting: bar(0, left=waiting / jobs)
        for done, (key, seed, metrics, took) in enumerate(each(measure_one, calls), 1):
            runs.setdefault(key, {})[seed] = metrics
            seconds.setdefault(key[1], []).append(took)
            spent, stored = spent + took, stored + cost.get(key[1], 0)
            left = (waiting - stored) * spent / stored / jobs if stored else None
            bar(done, key[1], left=left)
    return runs, {label: round(float(np.mean(took)), 2) for label, took in sorted(seconds.items())}


def of_another(model: Decoder, size: Size, seeds: list[int], schemes: dict[str, q.Scheme], progress: bool | None) -> dict:
    """The same of another model, on *domain* alone and in this process."""
    domain, arms = tasks.domain(model), arms_of(size)
    schemes = {label: scheme for label, scheme in schemes.items() if not scheme.trains}
    test = lambda m: tested(m, domain, size)["loss"]
    with Progress(1 + size.seeds * (len(arms) - 1) + len(schemes), "compare", progress) as bar:
        exact, done = test(model), 1
        methods = [row("frozen", arms["frozen"], {"trained": 0, "share": 0.0}, [exact])]
        for name, arm in arms.items():
            if name == "frozen": continue
            losses, scheme = [], getattr(arm, "scheme", None)
            for seed in seeds:
                tuned = attach(q.quantize(sharing(model), scheme) if scheme else model, arm.method, rng=seed)
                counts = tuned.summary()
                train(tuned, domain, size.steps, batch_size=size.batch_size, seed=seed, progress=False)
                losses.append(test(tuned))
                tuned.detach()
                bar(done := done + 1, name)
            methods.append(row(name, arm, {"trained": counts.trained, "share": counts.share}, losses))
        rows = [{"label": "float32", "name": "float32", "bits": 32.0, "error": 0.0, "loss": exact, "excess": 0.0}]
        logits = first_logits(model, domain)
        for label, scheme in schemes.items():
            calibration = domain.batch("train", 16, np.random.default_rng(seeds[0]))[0]
            quantized = rounded_by(model, scheme, domain, size, calibration, seeds[0], progress=False)
            loss, error = test(quantized), relative_error(first_logits(quantized, domain), logits)
            rows.append({"label": label, "name": name_of(scheme), "bits": q.bits_per_weight(quantized), "error": error,
                         "loss": loss, "excess": loss - exact})
            bar(done := done + 1, label)
    tokens = domain.count(next(domain.batches("test", size.test_rows)))
    return {"test_tokens": tokens, "judged_on": "the same text", "methods": with_gains(methods),
            "schemes": with_sizes(rows, model),
            "notes": ["The study measures the shipped base only, so nothing of it stands beside these numbers.",
                      "Schemes that train are left out."]}


def row(name: str, arm: tuning.Arm, counts: dict, losses: list[float]) -> dict:
    """A row of the first table, with the mean of losses over seeds and half of its 95 % interval (None for one seed)."""
    known = len(losses) > 1 or name == "frozen"
    return {"name": name, "label": about(name).short, "method": str(arm.method), "trained": counts["trained"],
            "share": counts["share"], "loss": float(np.mean(losses)), "losses": losses,
            "interval": (float(half_width(losses)) if len(losses) > 1 else 0.0) if known else None}


def with_gains(rows: list[dict]) -> list[dict]:
    """The rows, each with "gain": its share of what full fine-tuning gains over the frozen base."""
    loss = {r["name"]: r["loss"] for r in rows}
    return [r | {"gain": (loss["frozen"] - r["loss"]) / (loss["frozen"] - loss["full"])} for r in rows]


def with_sizes(rows: list[dict], model: Decoder) -> list[dict]:
    """The rows, each with what all arrays of the model take, the rest in float32: "bytes", and "bits_in_all" per parameter."""
    weights, n = block_weights(model), model.n_parameters()
    bits_in_all = [(r["bits"] * weights + 32 * (n - weights)) / n for r in rows]
    return [r | {"bytes": round(n * bits / 8), "bits_in_all": bits} for r, bits in zip(rows, bits_in_all, strict=True)]


def block_weights(model: Decoder) -> int:
    """How many numbers the linear layers in the blocks hold."""
    return sum(m.weight.size for path, m in model.named_modules() if isinstance(m, Linear) and path.startswith("blocks."))


# -- one scheme, for the command `quantize` --------------------------------------------------------
def measure_scheme(model: Decoder, scheme: q.Scheme, domain: tasks.Task, size: Size, seed: int = 0,
                   progress: bool | None = None) -> dict:
    """Quantize a copy of `model` and measure bits per weight, bytes of the layers and of the whole model's file, the relative
    errors of weights and of logits, and the perplexity on `domain`. See `rounded_by`."""
    calibration = domain.batch("train", 16, np.random.default_rng(seed))[0]
    quantized = rounded_by(model, scheme, domain, size, calibration, seed, progress)
    return {**costs(model, quantized, scheme, domain),
            "perplexity": tested(quantized, domain, size)["perplexity"]}


def tested(model: Decoder, task: tasks.Task, size: Size, label: str | None = None) -> dict:
    """Return the metrics on the first test rows."""
    rows = min(16, size.test_rows)
    return evaluate(model, task, "test", rows, size.test_rows // rows, label=label)


def rounded_by(model: Decoder, scheme: q.Scheme, task: tasks.Task, size: Size, calibration: Calibration, seed: int = 0,
               progress: bool | None = None) -> Decoder:
    """Return a quantized copy of `model`. A scheme that trains is trained for `size.steps` steps on `task`. LLM-QAT is trained
    on 32 rows that the model writes, of 64 tokens or of the model's context if that is shorter."""
    copied = copy.deepcopy(model) if scheme.trains else sharing(model)
    quantized = q.quantize(copied, scheme, calibration=calibration, progress=progress)
    if scheme.trains:
        length = min(64, model.config.context_length)
        if isinstance(scheme, q.LLMQAT):
            task = q.self_distillation(model, rows=32, held_out=1, length=length, rng=seed)
        train(quantized, task, size.steps, batch_size=size.batch_size, lr=3e-4, seed=seed, progress=False)
        quantized = q.convert(quantized)
    return quantized


def costs(model: Decoder, quantized: Decoder, scheme: q.Scheme, task: tasks.Task) -> dict:
    """Return what a quantized copy of `model` takes, and its errors: of weights, and of logits on test rows of `task`."""
    return {"scheme": str(scheme), "bits_per_weight": q.bits_per_weight(quantized),
            "bytes": sum(m.nbytes for _, m in quantized.named_modules() if isinstance(m, q.QuantizedLinear)),
            "file": file_size(quantized),
            "weight_error": q.weight_error(model, quantized, scheme.trains),
            "output_error": relative_error(first_logits(quantized, task), first_logits(model, task))}


def first_logits(model: Decoder, task: tasks.Task) -> np.ndarray:
    """Return the logits (4, T, V) on the first four test rows."""
    with no_grad(): return model(next(iter(task.batches("test", 4)))[0]).data


def relative_error(near: np.ndarray, exact: np.ndarray) -> float:
    """Return ‖near − exact‖ / ‖exact‖."""
    return float(np.linalg.norm(near - exact) / np.linalg.norm(exact))


def file_size(model: Decoder) -> int:
    """The bytes of the file that `save_quantized` makes of a model, without its tokenizer."""
    model = sharing(model)
    model.tokenizer = None
    with tempfile.TemporaryDirectory() as folder:
        q.save_quantized(model, path := Path(folder, "model.safetensors"))
        return path.stat().st_size


def sharing(model: Decoder) -> Decoder:
    """A copy of a model that shares its arrays, so that a large one is in memory once. `quantize` puts other arrays into the
    copy and writes into none; an optimizer would write into them."""
    return copy.deepcopy(model, {id(p.data): p.data for p in model.parameters()})


def quantized_at_cost(model: Decoder, scheme: q.Scheme, size: Size, task: tasks.Task, calibration: Calibration,
                      seed: int = 0) -> tuple[Decoder, dict]:
    """Return a quantized copy of `model`, and what that costs on a task: "exact" and "quantized" are the metrics on its test
    split, or on as much of it as "on" says."""
    with Progress(None, f"quantizing by {name_of(scheme)}"):
        quantized = rounded_by(model, scheme, task, size, calibration, seed)
    exact, rounded = (tested(m, task, size, f"testing the {which} model")
                      for m, which in ((model, "exact"), (quantized, "quantized")))
    with Progress(None, "measuring errors and sizes"):
        cost = with_shares(costs(model, quantized, scheme, task), model)
    return quantized, {**cost, "task": task.name, "on": tested_part(task, size), "exact": exact, "quantized": rounded}


def tested_part(task: tasks.Task, size: Size) -> str:
    """Return what `tested` measures, in words."""
    rows = min(16, size.test_rows)
    if len(batches_of(task, "test", rows)) <= size.test_rows // rows: return "the test split"
    return f"{size.test_rows} {'windows' if hasattr(task, 'streams') else 'rows'} of the test split"


def with_shares(cost: dict, model: Decoder) -> dict:
    """The record of `costs`, with the bits over all weights, the number of weights, and the bytes of what is not quantized."""
    weights, n = block_weights(model), model.n_parameters()
    return {**cost, "bits_in_all": 8 * cost["file"] / n, "weights": weights, "rest": 4 * (n - weights)}


def described(cost: dict) -> str:
    """The record of `quantized_at_cost` as text."""
    weights = cost["weights"]
    return (f"{cost['scheme']}\n"
            f"  weights       {weights:,} in the blocks' linear layers, {4 * weights / 1024:,.0f} KiB in float32\n"
            f"  stored in     {cost['bytes'] / 1024:,.0f} KiB, {cost['bits_per_weight']:.3f} bits/weight, scales included\n"
            f"  the rest      {cost['rest'] / 1024:,.0f} KiB in float32: embeddings, norms and biases\n"
            f"  as a file     {cost['file'] / 1024:,.0f} KiB, {cost['bits_in_all']:.3f} bits over all weights: what "
            "save_quantized writes, without the tokenizer\n"
            f"  weight error  {100 * cost['weight_error']:.2f} % of the weights' norm\n"
            f"  output error  {100 * cost['output_error']:.2f} % of the logits' norm\n"
            + "\n".join(f"  {name:<14}{x:.4f} → {cost['quantized'][name]:.4f} on {cost['on']} of {cost['task']}"
                        for name, x in cost["exact"].items()))
