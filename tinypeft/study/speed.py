"""The tables of tests/benchmarks/README.md, from the records that `python -m tests.benchmarks` files.

A record has one run per make of processor, the newest first: {"runs": [{"machine", "date", "commit", "versions", …}, …]}. A
table shows the newest run in full, and the ratios of the others beside it. A run of another commit is marked as older.
"""
from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from .markdown import read, table

__all__ = ["SECTIONS", "crossover", "exponent", "halves", "make", "runs"]


# -- runs ----------------------------------------------------------------------------------------
def make(machine: str) -> str:
    """The maker of a processor, which decides how fast each library multiplies: "AMD EPYC, 2 cores" → "AMD"."""
    return re.split(r"[\s(,]", machine)[0]


def runs(results: Path, name: str) -> list[dict]:
    """The runs in results/benchmark_NAME.json, the newest first."""
    return read(results, f"benchmark_{name}")["runs"]


def where(run: dict, newest: dict) -> str:
    """The make of a run's processor, marked if the run is of an older commit than the newest."""
    return make(run["machine"]) + ("" if run["commit"] == newest["commit"] else " (older)")


def origins(found: list[dict]) -> str:
    """What ran, when and on which machine: a line per run."""
    lines = []
    for run in found:
        versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        older = "" if run["commit"] == found[0]["commit"] else " An older version."
        lines.append(f"{run['machine']}: `{run['command']}`, medians over {run['rounds']} rounds, {run['date']}, commit "
                     f"{run['commit']}; {versions}.{older}")
    return "\n\n".join(lines)


def beside(head: Iterable[str], rows: dict, found: list[dict], ratios: Callable[[dict], dict]) -> str:
    """The newest run's rows, name → cells, with a column of ratios for each other make. ratios: a run → name → ratio."""
    others = [ratios(run) for run in found[1:]]
    head = (*head, *(f"ratio, {where(run, found[0])}" for run in found[1:]))
    return table(head, [(*cells, *(number(other.get(name)) for other in others)) for name, cells in rows.items()]) + \
        f"\n\n{origins(found)}"


def number(x: float | None, form: str = ".2f") -> str:
    """A number of a table, or a dash for one that was not measured."""
    return "–" if x is None else format(x, form)


# -- training ------------------------------------------------------------------------------------
def step(results: Path) -> str:
    """A training step over its limit and over PyTorch's, for every size and make of processor."""
    found = runs(results, "step")
    rows = [(name, f"{r['parameters']:,}", where(run, found[0]), number(r["ms"]["tinypeft"], ".0f"),
             number(r["ms"].get("limit"), ".0f"), *(number(r["ratio"].get(side)) for side in ("limit", "eager", "compile")),
             number(r.get("memory", {}).get("ratio")))
            for name in found[0]["steps"] for run in found if (r := run["steps"].get(name))]
    return table(("model", "parameters", "processor", "ms per step", "ms of its limit", "÷ limit", "÷ PyTorch eager",
                  "÷ `torch.compile`", "memory ÷ PyTorch"), rows) + f"\n\n{origins(found)}"


def lora(results: Path) -> str:
    """A LoRA step over a full step."""
    found = runs(results, "step")
    return table(("LoRA step ÷ full step", "processor", "time", "peak memory"), [
        (side, where(run, found[0]), number(r["time"]), number(r["memory"])) for side in ("tinypeft", "PEFT")
        for run in found for r in [run["lora"][side]]])


def operations(results: Path) -> str:
    """Where a step's CPU time goes: milliseconds and share of every operation; what its products alone would take of that."""
    newest, *_ = found = runs(results, "operations")
    cells = {size: {f"{row['operation']}, {row['direction']}".strip(", "): row for row in step["operations"]}
             for size, step in newest["steps"].items()}
    names = [name for name in next(iter(cells.values())) if any(c[name]["share"] >= 0.005 for c in cells.values())]

    def said(row):
        alone = row["products alone ms"]
        return f"{row['ms']:.1f} ({row['share']:.0%})", f"{alone / row['ms']:.0%}" if alone else ""
    head = [f"{size}: ms of {step['cpu ms']:.0f}" for size, step in newest["steps"].items()]
    return (table(("operation", *(h for size in head for h in (size, "products"))),
                  [(name.replace("_", " "), *(c for rows in cells.values() for c in said(rows[name]))) for name in names])
            + f"\n\n{origins(found[:1])}")


def tricks(results: Path) -> str:
    """The run without a trick over the run with it."""
    found = runs(results, "tricks")
    rows = {r["trick"]: (r["trick"], f"`{r['file']}`", number(r["ms"]["with"], ".0f"), number(r["ms"]["without"], ".0f"),
                         number(r["ratio"])) for r in found[0]["rows"]}
    return beside(("trick", "where", "ms with", "ms without", "ratio"), rows, found,
                  lambda run: {r["trick"]: r["ratio"] for r in run["rows"]})


def methods(results: Path) -> str:
    """A step of every method over PEFT's, its time and its memory."""
    found = runs(results, "methods")
    rows = {name: (f"`{r['method']}`", f"{r['trained']['tinypeft']:,}", number(r["ms"]["tinypeft"], ".0f"),
                   number(r["ms"].get("PEFT"), ".0f"), number(r["ratio"]), f"{r['peak bytes']['tinypeft'] / 2**20:.0f}",
                   number(r["memory"])) for name, r in found[0]["methods"].items()}
    return beside(("method", "trained", "ms per step", "PEFT, ms", "ratio", "MiB per step", "MiB ÷ PEFT's"), rows, found,
                  lambda run: {name: r["ratio"] for name, r in run["methods"].items()})


# -- whole models --------------------------------------------------------------------------------
def generation(results: Path) -> str:
    """Generation on the base: float32 over transformers, quantized over float32."""
    found = runs(results, "generation")
    against = lambda name: "transformers" if name == "float32" else "float32"
    rows = {name: (name, number(found[0]["tokens per second"][name], ",.0f"), against(name),
                   number(found[0]["tokens per second"][against(name)], ",.0f"), number(r))
            for name, r in found[0]["ratio"].items()}
    newest = found[0]
    same = "the same tokens as transformers" if newest["same tokens generated"] else "other tokens than transformers"
    return (f"{newest['new tokens']} tokens after a prompt of {newest['prompt']}; in float32 {same}.\n\n"
            + beside(("weights", "tokens/s", "compared with", "tokens/s", "ratio"), rows, found, lambda run: run["ratio"]))


def whole(results: Path, name: str) -> str:
    """GPT-2 small, or another model, beside transformers and PEFT."""
    found = runs(results, name)

    def ratios(run):
        ours, theirs = run["LoRA peak bytes"].values()
        return {n: r["ratio"] for n, r in (run["seconds"] | run["tokens per second"]).items()} | {"memory": ours / theirs}
    newest, ratio = found[0], ratios(found[0])
    rows = {}
    for what, times in newest["seconds"].items():
        unit, values = ("tokens/s", newest["tokens per second"]) if what in newest["tokens per second"] else \
            ("s", newest["seconds"])
        said = f"{what.replace('after', 'after a prompt of')} tokens" if unit == "tokens/s" else what
        digits = ".1f" if unit == "tokens/s" else ".2f"
        rows[what] = (said, *(f"{values[what][side]:{digits}} {unit}" for side in times if side != "ratio"),
                      number(ratio[what]))
    rows["memory"] = ("LoRA step, peak memory", *(f"{n / 2**20:.0f} MiB" for n in newest["LoRA peak bytes"].values()),
                      number(ratio["memory"]))
    alone = "; ".join(f"{name.removesuffix(' s')} {seconds:.1f} s" for name, seconds in newest["quantizing"].items())
    batch, length = newest["batch"]
    same = "the same on both sides" if newest["same tokens generated"] else "not the same on both sides"
    return (f"A batch has {batch} rows of {length} tokens; {newest['new tokens']} tokens are generated, {same}. Quantizing the "
            f"whole model: {alone}.\n\n{long_texts(newest.get('long texts', []))}"
            + beside(("what", "tinypeft", "transformers or PEFT", "ratio"), rows, found, ratios))


def long_texts(steps: list[dict]) -> str:
    """LoRA steps on one long text; nothing in a record without them."""
    if not steps:
        return ""
    rows = []
    for s in steps:
        ours, theirs = s["peak bytes"].values()
        rows.append((s["model"], f"{s['tokens']:,}", number(s["seconds"]["tinypeft"]), number(s["ratio"]),
                     f"{ours / 2**20:,.0f} MiB", number(ours / theirs)))
    return table(("a LoRA step on one text", "tokens", "seconds", "÷ PEFT", "peak memory", "÷ PEFT"), rows) + "\n\n"


def quant(results: Path) -> str:
    """Quantizing, decoding and quantized layers."""
    found = runs(results, "quant")
    rows = {(r["what"], r["against"]): (
        r["what"], f"{r['ms']:.1f}", r["against"], f"{r['against_ms']:.1f}", f"{r['ratio']:.2f}",
        "" if r["target"] is None else f"≤ {r['target']:g}") for r in found[0]["rows"]}
    return beside(("what", "ms", "compared with", "ms", "ratio", "target"), rows, found,
                  lambda run: {(r["what"], r["against"]): r["ratio"] for r in run["rows"]})


# -- cost as work grows --------------------------------------------------------------------------
THEORY = {                                               # what grows → exponents of time and of memory
    "parameters": ("1", "1"), "batch": ("1", "0, then 1"), "context": ("1, then 2", "1"),
    "rank": ("0, then 1", "0, then 1"), "vocabulary": ("0, then 1", "0, then 1"), "cores": ("−1", "0")}


def exponent(x: list[float], y: list[float]) -> float:
    """The slope of log y over log x, by least squares."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def halves(x: list[float], y: list[float]) -> tuple[float, float]:
    """The exponents over the lower and the upper half of x; of an odd number they share the point in the middle."""
    n = max(2, -(-len(x) // 2))
    return exponent(x[:n], y[:n]), exponent(x[-n:], y[-n:])


def crossover(x: list[float], y: list[float]) -> float:
    """Where c x² is half of y ≈ a + b x + c x², fitted by least squares of the relative error."""
    x, y = np.array(x, float), np.array(y)
    powers = np.stack([np.ones(len(x)), x, x * x], 1) / y[:, None]
    a, b, c = np.linalg.lstsq(powers, np.ones(len(x)), rcond=None)[0]
    return float((b + (b * b + 4 * a * c) ** 0.5) / (2 * c))


def scaling(results: Path) -> str:
    """Exponents of time and memory, measured and in theory."""
    found = runs(results, "scaling")
    rows = []
    for name, s in found[0]["series"].items():
        measured = [f"{low:.2f}, {high:.2f}" if len(s["x"]) > 2 else f"{low:.2f}".replace("-", "−")
                    for low, high in (halves(s["x"], s[kind]) for kind in ("seconds", "bytes"))]
        rows.append((name, s["rest"], f"{s['x'][0]:,} to {s['x'][-1]:,}", measured[0], THEORY[name][0], measured[1],
                     THEORY[name][1]))
    context = found[0]["series"]["context"]
    return (table(("what grows", "what stays", "from, to", "time", "in theory", "memory", "in theory"), rows)
            + f"\n\nThe part of a step that is quadratic in the context takes half of its time at "
              f"{crossover(context['x'], context['seconds']):,.0f} tokens. By flops that would be at {context['even flops']:,} "
              f"tokens.\n\n{origins(found)}")


def cores(results: Path) -> str:
    """A step as the workers share it, beside one worker's; from one core's times. Two workers are run where the machine can."""
    found = runs(results, "cores")
    of = lambda r: (r["model"], r["rows"], r["tokens"], r["cores"])
    rows = {of(r): (
        r["model"], f"{r['rows']} × {r['tokens']}", *(str(r[k]) for k in ("cores", "workers")),
        *(f"{1e3 * r[k]:.0f}" for k in ("seconds", "one worker")),
        number(r["seconds"] / r["one worker"]), number(r["run"])) for r in found[0]["rows"]}
    return beside(("model", "batch", "cores", "workers", "ms", "ms of one worker", "ratio", "two workers, run"), rows, found,
                  lambda run: {of(r): r["seconds"] / r["one worker"] for r in run["rows"]})


SECTIONS: dict[str, Callable[[Path], str]] = {
    "step": step, "lora": lora, "operations": operations, "tricks": tricks, "methods": methods, "generation": generation,
    "smollm2": functools.partial(whole, name="smollm2"), "gpt2": functools.partial(whole, name="gpt2"), "scaling": scaling,
    "cores": cores,
    "quant": quant}
