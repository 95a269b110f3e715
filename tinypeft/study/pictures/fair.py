"""Lessons 03 and 15: methods at equal terms: over learning rates, sizes of the model, steps, and all that they store."""
from collections.abc import Collection
from pathlib import Path

import numpy as np

from .. import plot
from ..about import about
from ..claims.rule import FINE_TUNING
from ..experiment import Results, half_width
from ..experiments import EXPERIMENTS
from ..stored import load

__all__ = ["forgetting", "lengths", "pareto", "rates", "sizes"]

MARGIN = FINE_TUNING.size                                # nats/token, the δ of the claims


# -- learned against forgotten -------------------------------------------------------------------
def forgetting(results: Path) -> plot.Drawing:
    """One curve a method over its learning rates, with a large mark at its best rate."""
    from matplotlib.transforms import Bbox
    r = load(results, "frontier")
    methods = list(r.conditions)
    best = {m: EXPERIMENTS["frontier"].conditions[m].lr for m in methods}
    curve = {m: points(r, m, best[m]) for m in methods}
    fig, ax = plot.figure(height=4.6)
    for m, (x, y, at) in curve.items():
        for part, alpha in ((slice(at + 1), 1), (slice(at, None), 0.4)):                      # pale: rates above the best
            ax.plot(x[part], y[part], ms=4, lw=1.2, alpha=alpha, **plot.line(about(m).look))
        halves = {f"{axis}err": interval[at] for axis, interval in zip("xy", spread(r, m), strict=True)}
        ax.errorbar(x[at], y[at], ms=8, ls="none", **plot.mark(m), **halves)
    ax.axhline(0, color=plot.COLOURS["grey"], lw=1, ls="--")
    ax.margins(0.14, 0.08)
    ax.set(xlabel="learned: loss on the new text falls by (nats/token)", ylabel="forgotten: loss on the old rises by")
    fig.draw_without_rendering()
    small = [Bbox.from_bounds(*(ax.transData.transform(p) - 5), 10, 10)
             for x, y, _ in curve.values() for p in zip(x, y, strict=True)]
    plot.label_points(ax, [(x[at], y[at], about(m).short, plot.mark(m)["color"]) for m, (x, y, at) in curve.items()],
                      avoid=small)
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
        f"At its best learning rate full fine-tuning forgets {at_best['full'][1]:.2f} nats, more than "
        f"{of_all(less, others)} other methods at theirs.{gentler}",
        f"Each curve is one method at {len(r.record['settings']['factors'])} learning rates; the large mark with its 95 % "
        "intervals is the best on validation text, and the pale part lies above it. Learned: on Matplotlib's documentation, "
        f"{r.record['settings']['steps']} steps. Forgotten: on text of the kind that the base was trained on. "
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


def spread(r: Results, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Half of the 95 % intervals of what `points` returns."""
    x, y = (r.values(method, metric) for metric in ("learned", "forgotten"))
    there = np.isfinite(x.mean(0)) & np.isfinite(y.mean(0))
    return half_width(x[:, there]), half_width(y[:, there])


def forgotten_at(curve: tuple[np.ndarray, np.ndarray, int], learned: float) -> float:
    """What a method forgets where it learns this much, on a straight line between two rates not above its best one; NaN if it
    never learns so little or so much."""
    x, y, at = curve
    x, y = x[:at + 1], y[:at + 1]
    for i in range(len(x) - 1):
        if min(x[i], x[i + 1]) <= learned <= max(x[i], x[i + 1]):
            part = (learned - x[i]) / (x[i + 1] - x[i]) if x[i + 1] != x[i] else 0.0
            return float(y[i] + part * (y[i + 1] - y[i]))
    return float("nan")


# -- over the size of the model, and over steps --------------------------------------------------
def sizes(results: Path) -> plot.Drawing:
    """The share of full fine-tuning's gain over the number of the base's parameters."""
    r = load(results, "sizes")
    bases = [c.removeprefix("full ") for c in r.conditions if c.startswith("full ")]
    bases.sort(key=lambda b: float(r.mean(f"full {b}", "parameters")))
    methods = [m for m in ("lora_all", "adapter", "prompt") if all(f"{m} {b}" in r.conditions for b in bases)]
    n = np.array([float(r.mean(f"full {b}", "parameters")) for b in bases])
    share = {m: [shares(r, f"{m} {b}", r, f"full {b}", "gain") for b in bases] for m in methods}
    fig, ax = plot.figure(height=3.4)
    ends = []
    for i, m in enumerate(methods):
        mean, half = (np.array([f(s) for s in share[m]]) for f in (np.mean, half_width))
        ax.errorbar(n * 1.04 ** (i - 1), 100 * mean, yerr=100 * half, ms=7, **plot.line(about(m).look))
        ends.append((n[-1] * 1.04 ** (i - 1), 100 * np.mean(share[m][-1]), about(m).short, plot.mark(m)["color"]))
    ax.axhline(100, color=plot.COLOURS["grey"], lw=1, ls="--")
    ax.axhline(0, color=plot.COLOURS["grey"], lw=1, ls="--")
    ax.set_xscale("log")
    ax.set_xticks(n, [f"{x / 1000:,.0f} k" for x in n])
    ax.minorticks_off()
    ax.set(xlabel="parameters of the base", ylabel="share of full fine-tuning's gain (%)")
    plot.label_ends(ax, ends, gap=4)

    def said(m: str) -> str:
        step = share[m][-1] - share[m][0]
        how = "no measurable trend" if abs(step.mean()) <= half_width(step) else "it rises" if step.mean() > 0 else "it falls"
        return f"{about(m).short} {share[m][0].mean():.0%} and {share[m][-1].mean():.0%} ({how})"
    def size(m: str) -> str:
        least, most = (f"{100 * f(r.mean(f'{m} {b}', 'share_trained') for b in bases):.1f}" for f in (min, max))
        share = f"{about(m).short} {least}{f' to {most}' * (least != most)} %"
        of_each = [EXPERIMENTS["sizes"].conditions[f"{m} {b}"].method for b in bases]
        if m == "adapter": return f"{share} (m = {', '.join(str(method.bottleneck) for method in of_each)}, frozen layer norms)"
        if m == "prompt": return f"{share} ({', '.join(str(method.length) for method in of_each)} vectors)"
        return share
    return plot.Drawing(
        fig,
        f"Share of full fine-tuning's gain on bases of {n[0]:,.0f} and of {n[-1]:,.0f} parameters, with an equal share of them "
        f"trained: {'; '.join(map(said, methods))}.",
        f"Trained parameters, of the base's: {'; '.join(map(size, methods))}. All bases were trained on the same text for the "
        "same number of steps; each method at its best "
        f"learning rate on each, {r.record['settings']['steps']} steps. Mean and 95 % interval over {len(r.seeds)} seeds, "
        "paired with full fine-tuning.",
        "Lines over the size of the base. " + " ".join(
            f"{about(m).short}: " + ", ".join(f"{x:,.0f} parameters {np.mean(s):.0%} ± {half_width(s):.0%}"
                                              for x, s in zip(n, share[m], strict=True)) + "." for m in methods))


def shares(r: Results, condition: str, of_full: Results, full: str, metric: str, frozen: float | None = None) -> np.ndarray:
    """(seeds,) gain of a condition over full fine-tuning's, seed by seed. frozen: the base's loss, if the metric is a loss."""
    seeds = [s for s in r.record["runs"][condition] if s in of_full.record["runs"][full]]
    a, b = r.values(condition, metric, seeds), of_full.values(full, metric, seeds)
    return a / b if frozen is None else (frozen - a) / (frozen - b)


def lengths(results: Path) -> plot.Drawing:
    """The gain over training steps, at three or four lengths of training."""
    r, short, adapters, look = (load(results, n) for n in ("lengths", "methods", "adapters", "first_look"))
    frozen, base_steps = float(short.mean("frozen", "loss")), short.record["settings"]["steps"]
    at = {"full": {60: (look, "full"), base_steps: (short, "full")},
          "lora_all": {60: (look, "lora_all"), base_steps: (short, "lora_all")},
          "adapter": {base_steps: (adapters, "sequential 16")}}
    for c in r.conditions:
        name, steps = c.split(" ")
        at[name][int(steps)] = r, c
    fig, ax = plot.figure(height=3.6)
    ends, share = [], {}
    for m, by_steps in at.items():
        steps = sorted(by_steps)
        gains = [frozen - by_steps[s][0].values(by_steps[s][1], "loss") for s in steps]
        mean, half = (np.array([f(g) for g in gains]) for f in (np.mean, half_width))
        ax.errorbar(steps, mean, yerr=half, ms=7, **plot.line(about(m).look))
        ends.append((steps[-1], mean[-1], about(m).short, plot.mark(m)["color"]))
        if m != "full": share[m] = {s: shares(*by_steps[s], *at["full"][s], "loss", frozen) for s in steps if s in at["full"]}
    every = sorted({s for by_steps in at.values() for s in by_steps})
    ax.set_xscale("log")
    ax.set_xticks(every, [f"{s:,}" for s in every])
    ax.minorticks_off()
    ax.margins(y=0.12)
    ax.set(xlabel="training steps", ylabel="test loss falls by (nats/token)")
    plot.label_ends(ax, ends)
    first = base_steps
    said = [f"{about(m).short} from {np.mean(s[first]):.0%} to {np.mean(s[max(s)]):.0%}" for m, s in share.items()]
    change = {m: np.mean(s[max(s)]) - np.mean(s[first]) for m, s in share.items()}
    how = ("The gap to full fine-tuning closes with longer training" if all(c > 0.05 for c in change.values()) else
           "Longer training does not close the gap to full fine-tuning" if all(c < 0.05 for c in change.values()) else
           "Longer training closes the gap to full fine-tuning for some methods")
    return plot.Drawing(
        fig,
        f"{how}: from {first} to {every[-1]:,} steps its share of full fine-tuning's gain goes, for " + " and for ".join(said)
        + ".",
        f"Fall of the test loss on *domain* from the frozen base's {frozen:.3f}. The learning rate is the best one for 60, "
        f"{first} and 600 steps; 1,500 steps use that for 600. {len(look.seeds)} seeds up to {first} steps and {len(r.seeds)} "
        "beyond; bars are 95 % intervals. Adapters have m = 16, and frozen layer norms.",
        "Rising lines over steps. " + " ".join(
            f"{about(m).short}: " + ", ".join(
                f"{s:,} steps {frozen - np.mean(x.values(c, 'loss')):.3f}" for s, (x, c) in sorted(by_steps.items())) + "."
            for m, by_steps in at.items()))


# -- over the learning rate ----------------------------------------------------------------------
def rates(results: Path) -> plot.Drawing:
    """One small panel a method: validation loss above its best, over the rate in units of the best."""
    r = load(results, "rates")
    methods = [c for c in EXPERIMENTS["methods"].conditions if c in r.conditions]
    found = {}
    for m in methods:
        rate, loss = (r.values(m, metric)[0] for metric in ("rate", "loss"))
        found[m] = rate, loss - loss.min(), rate[loss.argmin()]
    rows, top = -(-len(methods) // 4), 0.1
    fig, axes = plot.figure(rows, 4, height=0.5 + 1.35 * rows, sharex=True, sharey=True)
    for ax, m in zip(axes.flat, methods, strict=False):
        rate, above, best = found[m]
        colour, marker, *_ = about(m).look
        ax.axhspan(0, MARGIN, color="#EEEEEE", lw=0)
        ax.plot(rate / best, np.minimum(above, 10 * top), color=plot.COLOURS[colour], marker=marker, ms=5)
        ax.set_title(f"{about(m).short}\n{best:g}", fontsize=9)
    for ax in axes.flat[len(methods):]: ax.set_axis_off()
    axes.flat[0].set(xscale="log", xlim=(1 / 8, 8), ylim=(-0.006, top))
    for ax in axes.flat:
        ax.set_xticks([1 / 4, 1, 4], ["1/4", "1", "4"])
        ax.minorticks_off()
    fig.supxlabel("learning rate over the best one, which is written above", fontsize=9)
    fig.supylabel("loss above the best (nats/token)", fontsize=9)
    width = {m: good_width(*found[m][:2]) for m in methods}
    order = sorted(methods, key=lambda m: width[m][0])
    often = lambda m: f"{'more than ' if width[m][1] else ''}{width[m][0]:.1f}"
    return plot.Drawing(
        fig,
        f"The best learning rates lie between {min(f[2] for f in found.values()):g} and {max(f[2] for f in found.values()):g}, "
        f"and the region that costs less than {MARGIN} nats spans a factor of {often(order[0])} for {about(order[0]).short}, "
        f"and of {often(order[-1])} for {about(order[-1]).short}.",
        f"Validation loss on *domain* after {r.record['settings']['steps']} steps, above the best of the same method. Grey: "
        f"within {MARGIN} nats. Mean over {len(r.record['settings']['tuning_seeds'])} seeds that no other experiment uses.",
        "Small panels, one for each method; each is a valley over the learning rate. Best rate, and the factor between the "
        f"rates that cost less than {MARGIN} nats: " + ", ".join(
            f"{about(m).short} {found[m][2]:g}, {often(m)}" for m in methods) + ".")


def good_width(rate: np.ndarray, above: np.ndarray) -> tuple[float, bool]:
    """The largest over the smallest rate whose loss lies less than MARGIN above the best, on straight lines over log rate, and
    whether the good region reaches the end of what was tried."""
    x, best = np.log(rate), int(above.argmin())

    def edge(order: range) -> tuple[float, bool]:
        for i, j in zip(order, order[1:], strict=False):
            if above[j] > MARGIN:
                part = (MARGIN - above[i]) / (above[j] - above[i]) if np.isfinite(above[j]) else 0.0
                return x[i] + part * (x[j] - x[i]), False
        return x[order[-1]], True
    (low, open_below), (high, open_above) = edge(range(best, -1, -1)), edge(range(best, len(x)))
    return float(np.exp(high - low)), open_below or open_above


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
        front[label] = [m for m in methods if not any(x[o] <= x[m] and y[o] < y[m] for o in methods)]
        ladder = sorted((x[m], y[m]) for m in front[label])
        ax.step(*zip(*ladder, strict=True), where="post", color="#BBBBBB", lw=1, zorder=1)
        for m in methods: ax.errorbar(x[m], y[m], yerr=r.interval(m, "loss"), ms=7, ls="none", **plot.mark(m))
        base = plot.reference_line(ax, frozen, about("frozen").short)
        ax.margins(x=0.12, y=0.1)
        if ax is axes[0]:
            ax.set_xscale("log")
            plot.count_axis(ax.xaxis)
        ax.set(xlabel=label, ylabel="test loss (nats/token)")
        fig.draw_without_rendering()
        plot.label_points(ax, [(x[m], y[m], methods[m], plot.mark(m)["color"]) for m in methods],
                          avoid=[base.get_window_extent()])
    by_parameters, by_memory = front.values()
    gain = lambda m: (frozen - y[m]) / (frozen - y["full"])
    share = lambda m: 100 * float(r.mean(m, "share"))
    few = max((m for m in methods if share(m) < 15), key=gain)
    fewer = max((m for m in methods if share(m) < 5), key=gain)
    s = r.record["settings"]
    said = lambda m: (f"{share(m):.1f} % of the parameters and {memory[m] / memory['full']:.0%} of full fine-tuning's memory "
                      f"buy {gain(m):.0%} of its gain ({methods[m]})")
    return plot.Drawing(
        fig,
        "; ".join(map(said, dict.fromkeys((few, fewer)))) + ".",
        f"Test loss on *domain* after {s['steps']} steps of {s['batch_size']} × 128 tokens, each method at its best learning "
        f"rate; mean and 95 % interval over {len(r.seeds)} seeds. Memory: 4 bytes for each weight and 8 for each trained one "
        "(AdamW's two moments), and the peak of a training step, traced (activations and gradients). Grey steps: methods that "
        "no other method beats in both.",
        f"Two scatter plots of test loss, over trained parameters and over memory. The frozen base is at {frozen:.3f}. "
        + ", ".join(f"{methods[m]} {y[m]:.3f} ± {r.interval(m, 'loss'):.3f} ({share(m):.2f} %, {memory[m]:.1f} MiB)"
                    for m in sorted(methods, key=gain, reverse=True))
        + f". Unbeaten over parameters: {', '.join(methods[m] for m in by_parameters)}; over memory: "
        f"{', '.join(methods[m] for m in by_memory)}.")
