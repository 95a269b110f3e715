"""The main job: every method on two tasks and every scheme on the same model, in two tables and one picture.

Each method, with its defaults, fine-tunes the base on two tasks: `domain` (the documentation of a library it never saw;
test loss in nats/token) and `classify` (which package a sentence documents; test accuracy). Each scheme quantizes the
base, which is then tested on `domain` without fine-tuning (perplexity). There is one seed; the study's experiments
measure the spread over seeds.
"""
from __future__ import annotations

import copy
import json
import math
import platform
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import quant as q
from ..decoder import Decoder
from ..nn import Linear
from ..peft import METHODS, LinearProbe, Method, PeftModel, attach
from ..progress import Progress
from ..text import tasks
from ..train import backward, evaluate, train
from . import plot
from .about import about, name_of

__all__ = ["COMPARED_SCHEMES", "QUICK", "Size", "compare", "cost_of_scheme", "described", "draw", "measure_scheme", "picture",
           "sharing", "tables", "traced_peak"]


@dataclass(frozen=True)
class Size:
    """How much a comparison measures. steps, classify_steps: training steps on either task (0 leaves `classify` out).
    test_batches: test batches of 16 rows of `domain`. schemes: labels in COMPARED_SCHEMES (None: all). batch_size: rows of 128
    tokens in a training step on `domain`."""
    steps: int = 30
    classify_steps: int = 60
    test_batches: int = 8
    schemes: tuple[str, ...] | None = None
    batch_size: int = 4


QUICK = Size(steps=5, classify_steps=0, test_batches=1, schemes=("int8", "LLM.int8()", "int4", "NF4", "GPTQ 4 bit"))

# Some minutes for SmolLM2; AWQ's search would take as long again. Its weights were quantized to 4 bits before, which would
# decide a comparison of 4-bit schemes.
LARGE = Size(steps=8, classify_steps=0, test_batches=1, batch_size=2, schemes=(
    "int8", "W8A8", "LLM.int8()", "SmoothQuant", "NF4", "int3 asymmetric", "GPTQ 3 bit"))
LARGE_FROM = 20_000_000                                  # parameters


# label → scheme: the rows of the table, at 8, 4 and 3 bits, with settings that can be compared; a star: it is trained
GROUPS = {"granularity": "group", "group_size": 32}
COMPARED_SCHEMES = {
    "int8": q.Uniform(bits=8),
    "W8A8": q.W8A8("channel", "token"),
    "LLM.int8()": q.LLMInt8(),
    "SmoothQuant": q.SmoothQuant(),
    "ZeroQuant": q.ZeroQuant(),
    "FP8 E4M3": q.FloatFormat("E4M3"),
    "int4 per channel": q.Uniform(bits=4),
    "int4": q.Uniform(bits=4, scale_dtype="float16", **GROUPS),
    "int4 asymmetric": q.Uniform(bits=4, symmetric=False, scale_dtype="float16", **GROUPS),
    "GGUF Q4_0": q.GGUF("Q4_0"),
    "FP4 E2M1": q.FloatFormat("E2M1"),
    "NF4": q.NF4(),
    "NF4 double": q.NF4(double_quant=True),
    "AWQ 4 bit": q.AWQ(bits=4, group_size=32),
    "GPTQ 4 bit": q.GPTQ(bits=4, group_size=32),
    "int3 asymmetric": q.Uniform(bits=3, symmetric=False, scale_dtype="float16", **GROUPS),
    "AWQ 3 bit": q.AWQ(bits=3, group_size=32),
    "GPTQ 3 bit": q.GPTQ(bits=3, group_size=32),
    "PEQA 3 bit *": q.PEQA(bits=3, group_size=32),
    "QAT 3 bit *": q.FakeQuant(bits=3, symmetric=False, **GROUPS),
    "LLM-QAT 4-8-4 *": q.LLMQAT(),
}


def compare(model: Decoder, size: Size | None = None, seed: int = 0, progress: bool | None = None) -> dict:
    """Run the comparison on a model with a tokenizer; returns a record that JSON can hold. size: None is `Size()`, or `LARGE`
    for a model of LARGE_FROM parameters or more. The model is as it was afterwards."""
    size = size or (Size() if model.n_parameters() < LARGE_FROM else LARGE)
    for name in METHODS: about(name)                     # it must have a mark: say so before a minute is spent
    started = time.perf_counter()
    domain = tasks.domain(model.tokenizer, context=128)
    classify = tasks.classify(model.tokenizer) if size.classify_steps else None
    methods = {name: cls() for name, cls in METHODS.items()}
    shown = {label: scheme for label, scheme in COMPARED_SCHEMES.items() if size.schemes is None or label in size.schemes}
    with Progress(1 + len(methods) + len(shown), "compare", progress) as bar:
        frozen = {"name": "frozen", "label": "frozen base", "trained": 0, "share": 0.0,
                  "loss": evaluate(model, domain, "test", max_batches=size.test_batches)["loss"]}
        if classify:
            frozen |= _classify(model, LinearProbe(), classify, size, seed)
        bar(1, "frozen base")
        rows = [frozen]
        for i, (name, method) in enumerate(methods.items()):
            rows.append({"name": name, **_adapt(model, method, domain, classify, size, seed)})
            bar(2 + i, str(method))
        quantized = []
        for i, (label, scheme) in enumerate(shown.items()):
            quantized.append({"label": label, "name": name_of(scheme), **measure_scheme(model, scheme, domain, size, seed)})
            bar(2 + len(methods) + i, label)
    return {"command": "python -m tinypeft --out figures", "date": time.strftime("%Y-%m-%d"), "seed": seed, "steps": size.steps,
            "classify_steps": size.classify_steps, "test_tokens": size.test_batches * 16 * 128,
            "versions": {"python": platform.python_version(), "numpy": np.__version__},
            "seconds": round(time.perf_counter() - started, 1), "classes": len(classify.classes) if classify else None,
            "perplexity": math.exp(frozen["loss"]),
            "methods": rows, "schemes": quantized}


def _adapt(model: Decoder, method: Method, domain: tasks.Task, classify: tasks.Task | None, size: Size, seed: int) -> dict:
    """One row: the method on both tasks, each time from the same base."""
    tuned = attach(model, method, rng=seed)
    counts = tuned.summary()
    peak = traced_peak(tuned, domain, size.batch_size)
    history = train(tuned, domain, size.steps, batch_size=size.batch_size, seed=seed, progress=False)
    loss = evaluate(tuned, domain, "test", max_batches=size.test_batches)["loss"]
    tuned.detach()
    row = {"label": str(method), "trained": counts.trained, "stored": counts.stored, "share": counts.share, "loss": loss,
           "seconds_per_step": history.seconds / size.steps, "peak_bytes": peak}
    return row | (_classify(model, method, classify, size, seed) if classify else {})


def _classify(model: Decoder, method: Method, classify: tasks.Task, size: Size, seed: int) -> dict:
    tuned = attach(model, method, rng=seed, head=len(classify.classes))
    train(tuned, classify, size.classify_steps, batch_size=16, seed=seed, progress=False)
    accuracy = evaluate(tuned, classify, "test", batch_size=32)["accuracy"]
    tuned.detach()
    return {"accuracy": accuracy}


def measure_scheme(model: Decoder, scheme: q.Scheme, domain: tasks.Task, size: Size, seed: int = 0) -> dict:
    """Quantize a copy of `model` and measure bits per weight, bytes, the relative errors of weights and of logits, and the
    perplexity on `domain`.

    A scheme that trains is trained for `size.steps` steps on `domain`; LLM-QAT on text that the model writes.
    """
    calibration = domain.batch("train", 16, np.random.default_rng(seed))[0]
    copied = copy.deepcopy(model) if scheme.trains else sharing(model)
    quantized = q.quantize(copied, scheme, calibration=calibration)
    if scheme.trains:
        task = q.self_distillation(model, rows=32, held_out=1, length=64, rng=seed) if isinstance(scheme, q.LLMQAT) else domain
        train(quantized, task, size.steps, batch_size=size.batch_size, lr=3e-4, seed=seed, progress=False)
        quantized = q.convert(quantized)
    tokens = next(iter(domain.batches("test", 4)))[0]
    exact = model(tokens).data
    return {"scheme": str(scheme), "bits_per_weight": q.bits_per_weight(quantized),
            "bytes": sum(m.nbytes for _, m in quantized.named_modules() if isinstance(m, q.QuantizedLinear)),
            "weight_error": q.weight_error(model, quantized, scheme.trains),
            "output_error": float(np.linalg.norm(quantized(tokens).data - exact) / np.linalg.norm(exact)),
            "perplexity": evaluate(quantized, domain, "test", max_batches=size.test_batches)["perplexity"]}


def sharing(model: Decoder) -> Decoder:
    """A copy of a model that shares its arrays, so that a large one is in memory once. `quantize` puts other arrays into the
    copy and writes into none; an optimizer would write into them."""
    return copy.deepcopy(model, {id(p.data): p.data for p in model.parameters()})


def cost_of_scheme(model: Decoder, scheme: q.Scheme, size: Size) -> dict:
    """What `measure_scheme` gives on `domain`, with the number of weights and the float32 model's perplexity beside it."""
    domain = tasks.domain(model, context=128)
    exact = evaluate(model, domain, "test", max_batches=size.test_batches)["perplexity"]
    weights = sum(m.weight.size for _, m in model.named_modules() if isinstance(m, Linear))
    return {**measure_scheme(model, scheme, domain, size), "perplexity of float32": exact, "weights": weights}


def traced_peak(tuned: PeftModel, task: tasks.Task, batch_size: int) -> int:
    """Peak bytes that one training step (forward and backward, one thread) allocates beyond the model."""
    batch = task.batch("train", batch_size, np.random.default_rng(0))
    tuned.before_step(0, 1)
    tracemalloc.start()
    backward(tuned, task, batch, workers=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    for p in tuned.parameters(): p.grad = None
    return peak


def described(cost: dict) -> str:
    """The record of `cost_of_scheme` as text."""
    weights = cost["weights"]
    return (f"{cost['scheme']}\n"
            f"  weights       {weights:,} in the blocks' linear layers, {4 * weights / 1024:,.0f} KiB in float32\n"
            f"  stored in     {cost['bytes'] / 1024:,.0f} KiB, {cost['bits_per_weight']:.3f} bits/weight, scales included\n"
            f"  weight error  {100 * cost['weight_error']:.2f} % of the weights' norm\n"
            f"  output error  {100 * cost['output_error']:.2f} % of the logits' norm\n"
            f"  perplexity    {cost['perplexity of float32']:.3f} → {cost['perplexity']:.3f} on the test split of Matplotlib's "
            "documentation")


# -- tables and the picture ------------------------------------------------------------------------
def tables(record: dict) -> str:
    """The record as text: a table of methods, a table of schemes, and notes."""
    def table(head, rows):
        cells = [head, *rows]
        widths = [max(len(r[i]) for r in cells) for i in range(len(head))]
        line = lambda r: "  ".join([r[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(r[1:], widths[1:], strict=True))])
        return "\n".join([line(head), "-" * (sum(widths) + 2 * len(head) - 2), *map(line, rows)])

    show = lambda row, key, form: form(row[key]) if key in row else "–"
    methods = table(["method", "trained", "share", "domain loss", "classify acc.", "step ms", "peak MiB"], [
        [r["label"], f"{r['trained']:,}", f"{100 * r['share']:.2f} %", f"{r['loss']:.3f}",
         show(r, "accuracy", lambda a: f"{100 * a:.1f} %"), show(r, "seconds_per_step", lambda s: f"{1e3 * s:.0f}"),
         show(r, "peak_bytes", lambda b: f"{b / 2**20:.1f}")] for r in record["methods"]])
    schemes = table(["scheme", "bits/weight", "KiB", "weight error", "output error", "perplexity"], [
        [r["label"], f"{r['bits_per_weight']:.3f}", f"{r['bytes'] / 1024:,.0f}", f"{100 * r['weight_error']:.2f} %",
         f"{100 * r['output_error']:.2f} %", f"{r['perplexity']:.2f}"] for r in record["schemes"]])
    notes = [f"domain: the first {record['test_tokens']:,} tokens of the test split, in windows of 128"]
    if record["classify_steps"]: notes.append("classify: every row also trains a linear head, which is not counted")
    if any(r["label"].endswith("*") for r in record["schemes"]): notes.append("* trained, on as much text as the methods")
    return f"{methods}\n\n{schemes}\n\n" + "\n".join(notes)


def draw(record: dict, path: str | Path) -> Path:
    """Draw the record into the file `path`."""
    with plot.style(): drawing = picture_of(record)
    return plot.save(drawing, path)


def picture(results: Path) -> plot.Drawing:
    """The comparison stored in the folder `results`, as a `Drawing`."""
    return picture_of(json.loads((results / "compare.json").read_text(encoding="utf-8")))


def picture_of(record: dict) -> plot.Drawing:
    """Loss over trained parameters, and perplexity by bits per weight, as a `Drawing`."""
    frozen, *methods = record["methods"]
    rows = sorted(record["schemes"], key=lambda r: -r["bits_per_weight"])
    fig, (above, below) = plot.figure(2, 1, height=3.4 + 0.6 + 0.19 * len(rows), height_ratios=(3.4, 0.6 + 0.19 * len(rows)))
    colour = lambda r: plot.mark(r["name"])["color"]
    base = plot.reference_line(above, frozen["loss"], about("frozen").short, above=True, right=True)
    for r in methods: above.scatter(r["trained"], r["loss"], zorder=3, **plot.mark(r["name"]))
    above.set(xscale="log", xlabel="trained parameters", ylabel="test loss (nats/token)")
    above.set_title(f"Fine-tuning for {record['steps']} steps: lower is better")
    above.margins(x=0.12, y=0.14)
    plot.count_axis(above.xaxis)
    fig.draw_without_rendering()
    plot.label_points(above, [(r["trained"], r["loss"], r["label"].split("(")[0], colour(r)) for r in methods],
                      avoid=[base.get_window_extent()])
    below.axvline(record["perplexity"], color=plot.COLOURS["grey"], lw=1, ls="--")
    for y, r in enumerate(rows):
        trained = {"facecolors": "none"} if r["label"].endswith("*") else {}
        below.scatter(r["perplexity"], y, zorder=3, **{"edgecolors": colour(r), **plot.mark(r["name"]), **trained})
    below.set_yticks(range(len(rows)), [f"{r['label']}\u2003{r['bits_per_weight']:.2f}" for r in rows])
    below.set(xlabel="perplexity; dashed: float32, hollow: trained", ylim=(-0.7, len(rows) - 0.3))
    below.set_title("Quantizing, by bits per weight: left is better")
    below.invert_yaxis()
    best, small = min(methods, key=lambda r: r["loss"]), rows[-1]
    return plot.Drawing(
        fig,
        "A few per cent of the parameters learn most of what all parameters learn, and four bits keep nearly everything that "
        "thirty-two bits hold.",
        f"Both panels: *domain*, {record['test_tokens']:,} test tokens. This is a first look with one seed and "
        f"{record['steps']} steps.",
        f"Above: test loss against trained parameters for {len(methods)} methods. The frozen base is at {frozen['loss']:.3f} "
        f"and the best method, {best['label']}, at {best['loss']:.3f}. Below: perplexity by bits per weight for {len(rows)} "
        f"quantization schemes. float32 is at {record['perplexity']:.2f} and the smallest scheme, {small['label']}, at "
        f"{small['perplexity']:.2f}.")
