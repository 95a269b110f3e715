"""Lessons 03 and 15: methods at equal terms: what they forget, and all that they store."""
from collections.abc import Collection
from pathlib import Path

import numpy as np

from .. import plot
from ..about import about
from ..claims.deltas import FINE_TUNING
from ..effects import read
from ..experiment import Results
from ..experiments import EXPERIMENTS
from ..markdown import pm
from ..stored import load

__all__ = ["forgetting", "pareto"]

MARGIN = FINE_TUNING.size                                # nats/token, the δ of the claims


# -- learned against forgotten -------------------------------------------------------------------
def forgetting(results: Path) -> plot.Drawing:
    """One curve a method over its learning rates, with a large mark at its best rate."""
    r = load(results, "frontier")
    methods = list(r.conditions)
    best = {m: EXPERIMENTS["frontier"].conditions[m].lr for m in methods}
    curve = {m: points(r, m, best[m]) for m in methods}
    fig, ax = plot.figure(height=4.6)
    for m, (x, y, at) in curve.items():
        for part, alpha in ((slice(at + 1), 1), (slice(at, None), 0.4)):                      # pale: rates above the best
            ax.plot(x[part], y[part], ms=4, lw=1.2, alpha=alpha, **plot.line(about(m).look))
        rate = int(np.abs(np.log(r.mean(m, "rate") / best[m])).argmin())
        wide, high = spread(r, m, rate)
        ax.errorbar(x[at], y[at], high, wide, ms=8, ls="none", **plot.mark(m))
    ax.axhline(0, color=plot.COLOURS["grey"], lw=1, ls="--")
    ax.margins(0.14, 0.08)
    ax.set(xlabel="learned: how far the loss on the new text falls (nats/token)",
           ylabel="forgotten: how far the loss on the old rises (nats/token)")
    plot.label_points(ax, [(x[at], y[at], about(m).short, plot.mark(m)["color"]) for m, (x, y, at) in curve.items()])
    at_best = {m: (x[at], y[at]) for m, (x, y, at) in curve.items()}
    others = [m for m in methods if m != "full"]
    less = [m for m in others if at_best[m][1] < at_best["full"][1]]
    reached = {m: forgotten_at(curve["full"], at_best[m][0]) for m in others}
    known = {m: f for m, f in reached.items() if np.isfinite(f)}
    below = [m for m, f in known.items() if f < at_best[m][1]]
    gentler = (f" At gentler rates, at which it learns as much as another method, it forgets less than {of_all(below, known)} "
               "methods that can be compared so." if known else "")
    return plot.Drawing(
        fig,
        f"At its best learning rate full fine-tuning forgets {at_best['full'][1]:.2f} nats, more than {of_all(less, others)} "
        f"other methods at theirs.{gentler}",
        f"Each curve is one method at {len(r.record['settings']['factors'])} learning rates; the large mark with its 95 % "
        "intervals is the best on validation text, and the pale part has larger rates. Learned: on Matplotlib's "
        f"documentation, {r.record['settings']['steps']} steps. Forgotten: on text of the kind that the base was trained on. "
        f"{len(r.seeds)} seeds.",
        "Curves of forgetting over learning, in nats per token. At the best rates: " + ", ".join(
            f"{about(m).short} learns {x:.3f}, forgets {y:.3f}" for m, (x, y) in sorted(at_best.items(), key=lambda i: i[1]))
        + "." + "".join(f" Where full fine-tuning learns as much as {about(m).short}, it forgets {f:.3f}."
                        for m, f in known.items()))


def of_all(some: Collection, all_of_them: Collection) -> str:
    """"each of the 6", "4 of the 6" or "none of the 6"."""
    count = {0: "none", len(all_of_them): "each"}.get(len(some), len(some))
    return f"{count} of the {len(all_of_them)}"


def points(r: Results, method: str, best: float) -> tuple[np.ndarray, np.ndarray, int]:
    """(learned, forgotten, index of the best rate) over the rates at which no seed diverged."""
    x, y, rate = (r.mean(method, metric) for metric in ("learned", "forgotten", "rate"))
    there = np.isfinite(x) & np.isfinite(y)
    return x[there], y[there], int(np.abs(np.log(rate[there] / best)).argmin())


def spread(r: Results, method: str, at: int) -> tuple[float, float]:
    """Half of the 95 % intervals of what a method learns and forgets at one of its rates: differences to the frozen base."""
    half = lambda metric: read(r, method, metric, at).effect.half
    return half("learned"), half("forgotten")


def forgotten_at(curve: tuple[np.ndarray, np.ndarray, int], learned: float) -> float:
    """What a method forgets where it learns this much, on a straight line between two rates not above its best one; NaN if it
    never learns so little or so much."""
    x, y, at = curve
    order = np.argsort(x[:at + 1])
    return float(np.interp(learned, x[order], y[order], np.nan, np.nan))


# -- over parameters and memory ------------------------------------------------------------------
def bytes_of(r: Results, method: str) -> dict[str, float]:
    """What fine-tuning holds at the peak of a step, in bytes: weights (the method's too), the optimizer's two moments of what
    is trained, both in 32 bits, and what the step allocated when it was traced: activations and gradients."""
    trained = float(r.mean(method, "trained"))
    return {"weights": 4 * trained / float(r.mean(method, "share")), "optimizer": 8 * trained,
            "step": float(r.mean(method, "peak_bytes"))}


def pareto(results: Path) -> plot.Drawing:
    """Test loss over trained parameters, and over all memory."""
    r = load(results, "methods")
    methods, frozen = {m: about(m).short for m in r.conditions if m != "frozen"}, float(r.mean("frozen", "loss"))
    y = {m: float(r.mean(m, "loss")) for m in methods}
    memory = {m: sum(bytes_of(r, m).values()) / 2**20 for m in methods}
    fig, axes = plot.figure(2, 1, height=6.8)
    front = {}
    for ax, x, label in ((axes[0], {m: float(r.mean(m, "trained")) for m in methods}, "trained parameters"),
                         (axes[1], memory, "memory: weights, optimizer, gradients and activations (MiB)")):
        front[label] = [m for m in methods if all(x[o] >= x[m] or y[o] > y[m] + MARGIN for o in methods if o != m)]
        ladder = sorted((x[m], y[m]) for m in front[label])
        corners = np.repeat(ladder, 2, axis=0)
        corners = np.stack([corners[1:, 0], corners[:-1, 1]], axis=1)
        ax.plot(*corners.T, color="#BBBBBB", lw=1, zorder=1)
        for m in methods: ax.errorbar(x[m], y[m], yerr=r.interval(m, "loss"), ms=7, ls="none", **plot.mark(m))
        plot.reference_line(ax, frozen, about("frozen").short)
        ax.margins(x=0.22, y=0.1)
        if ax is axes[0]: plot.plain_log(ax.xaxis)
        ax.set(xlabel=label, ylabel="test loss (nats/token)")
        plot.label_points(ax, [(x[m], y[m], methods[m], plot.mark(m)["color"]) for m in methods])
    by_parameters, by_memory = front.values()
    gain = lambda m: (frozen - y[m]) / (frozen - y["full"])
    percent = lambda m: 100 * float(r.mean(m, "share"))
    s = r.record["settings"]
    bought = [f"{memory[m] / memory['full']:.0%} buy {gain(m):.0%} of its gain ({methods[m]})" for m in by_memory
              if m != "full"]
    return plot.Drawing(
        fig,
        f"Of full fine-tuning's memory {', and '.join(bought)}.",
        f"Test loss on *domain* after {s['steps']} steps of {s['batch_size']} × 128 tokens, each method at its best learning "
        f"rate; bars are 95 % intervals over {len(r.seeds)} seeds and the documents, of what tells a method from the others. "
        "Memory: 4 bytes for each weight and 8 for each trained one (AdamW's two moments), and the peak of a training step, "
        f"traced (activations and gradients). Grey steps: methods that are better by more than {MARGIN} nats than every "
        "cheaper one. The sentence names those on the steps over memory.",
        f"Two scatter plots of test loss, over trained parameters and over memory. The frozen base is at {frozen:.3f}. "
        + ", ".join(f"{methods[m]} {pm(y[m], r.interval(m, 'loss'))} ({percent(m):.2f} %, {memory[m]:.1f} MiB)"
                    for m in sorted(methods, key=gain, reverse=True))
        + f". On the steps over parameters: {', '.join(methods[m] for m in by_parameters)}; over memory: "
        f"{', '.join(methods[m] for m in by_memory)}.")
