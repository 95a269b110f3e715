"""Lessons 03, 04 and 15: every method side by side: loss, cost, forgetting; adapters in detail."""
from pathlib import Path

import numpy as np

from .. import plot
from ..about import about
from ..experiment import Results
from ..experiments import EXPERIMENTS

__all__ = ["adapters", "curves", "forgetting", "pareto"]


def compared(r: Results) -> tuple[dict[str, str], float]:
    """Name → label of every method that was measured, and the loss of the frozen base."""
    return {m: about(m).short for m in r.conditions if m != "frozen"}, r.mean("frozen", "loss")


def pareto(results: Path) -> plot.Drawing:
    r = Results.load(results, "methods")
    methods, frozen = compared(r)
    fig, axes = plot.figure(2, 1, height=6.8)
    front = {}
    for ax, metric, unit, label in ((axes[0], "trained", 1, "trained parameters"),
                                    (axes[1], "peak_bytes", 2**20, "peak memory of a training step beyond the model (MiB)")):
        x = {m: r.mean(m, metric) / unit for m in methods}
        y = {m: r.mean(m, "loss") for m in methods}
        front[metric] = [m for m in methods if not any(x[o] <= x[m] and y[o] < y[m] for o in methods)]
        ladder = sorted((x[m], y[m]) for m in front[metric])
        ax.step(*zip(*ladder, strict=True), where="post", color="#BBBBBB", lw=1, zorder=1)
        for m in methods: ax.errorbar(x[m], y[m], yerr=r.interval(m, "loss"), capsize=2, ms=7, ls="none", **plot.mark(m))
        base = plot.reference_line(ax, frozen, about("frozen").short)
        ax.margins(x=0.12, y=0.1)
        if unit == 1:
            ax.set_xscale("log")
            plot.count_axis(ax.xaxis)
        ax.set(xlabel=label, ylabel="test loss (nats/token)")
        fig.draw_without_rendering()
        plot.label_points(ax, [(x[m], y[m], methods[m], plot.mark(m)["color"]) for m in methods],
                          avoid=[base.get_window_extent()])
    gain = lambda m: (frozen - r.mean(m, "loss")) / (frozen - r.mean("full", "loss"))
    share = lambda m: 100 * r.mean(m, "share")
    few = max((m for m in methods if share(m) < 15), key=gain)
    fewer = max((m for m in methods if share(m) < 5), key=gain)
    s = r.record["settings"]
    return plot.Drawing(
        fig,
        f"{share(few):.1f} % of the parameters buy {gain(few):.0%} of full fine-tuning's gain ({methods[few]}), "
        f"{share(fewer):.1f} % buy {gain(fewer):.0%} ({methods[fewer]}).",
        f"Test loss on *domain* after {s['steps']} steps of {s['batch_size']} × 128 tokens, each method at its own learning "
        f"rate; mean and 95 % interval over {len(r.seeds)} seeds. Grey steps: methods that no other method beats in both.",
        f"Two scatter plots of test loss, over trained parameters and over peak memory. The frozen base is at {frozen:.3f}. "
        + ", ".join(f"{methods[m]} {r.mean(m, 'loss'):.3f} ± {r.interval(m, 'loss'):.3f} ({share(m):.2f} %, "
                    f"{r.mean(m, 'peak_bytes') / 2**20:.1f} MiB)" for m in sorted(methods, key=gain, reverse=True))
        + f". Unbeaten over parameters: {', '.join(methods[m] for m in front['trained'])}.")


def forgetting(results: Path) -> plot.Drawing:
    from matplotlib.transforms import Bbox
    r = Results.load(results, "methods")
    methods, frozen = compared(r)
    fig, ax = plot.figure(height=4.2)
    x, y = ({m: f(m) for m in methods} for f in (lambda m: frozen - r.mean(m, "loss"), lambda m: r.mean(m, "forgetting")))
    for m in methods:
        ax.errorbar(x[m], y[m], xerr=r.interval(m, "loss"), yerr=r.interval(m, "forgetting"), capsize=2, ms=7, ls="none",
                    **plot.mark(m))
    ax.axhline(0, color=plot.COLOURS["grey"], lw=1, ls="--")
    ax.margins(0.14, 0.12)
    ax.set(xlabel="learned: loss on the new text falls by (nats/token)", ylabel="forgotten: loss on the old rises by")
    fig.draw_without_rendering()
    bars = {m: (r.interval(m, "loss"), r.interval(m, "forgetting")) for m in methods}
    boxes = [Bbox(ax.transData.transform([(x[m] - a, y[m] - b), (x[m] + a, y[m] + b)])) for m, (a, b) in bars.items()]
    plot.label_points(ax, [(x[m], y[m], methods[m], plot.mark(m)["color"]) for m in methods], avoid=boxes)
    both = lambda m: f"{x[m] / x['full']:.0%} and {y[m] / y['full']:.0%}"
    return plot.Drawing(
        fig,
        "Every method forgets less than full fine-tuning. As shares of full fine-tuning's learning and forgetting, LoRA has "
        f"{both('lora')}, AdaLoRA {both('adalora')}, adapters {both('adapter')}.",
        "Fine-tuned on Matplotlib's documentation, tested on it and on text of the kind the base was trained on; "
        f"{len(r.seeds)} seeds; bars are 95 % intervals.",
        "Scatter plot of forgetting over learning, both in nats per token: " + ", ".join(
            f"{methods[m]} learns {x[m]:.3f}, forgets {y[m]:.3f}" for m in sorted(methods, key=lambda m: x[m])) + ".")


def curves(results: Path) -> plot.Drawing:
    r = Results.load(results, "methods")
    shown = "full", "adapter", "lora_all", "lora", "prefix", "prompt"     # AdaLoRA's loss contains its penalty
    fig, ax = plot.figure(height=4.0)
    window, ends = 15, []
    for m in (m for m in shown if m in r.conditions):
        loss = r.values(m, "curve")
        smooth = np.apply_along_axis(lambda c: np.convolve(c, np.ones(window) / window, "valid"), 1, loss)  # noqa: B023
        steps = np.arange(smooth.shape[1]) + window / 2 + 0.5
        look = plot.mark(m)
        ax.plot(steps, smooth.mean(0), color=look["color"], marker=look["marker"], markevery=15, ms=5)
        ends.append((steps[-1], smooth.mean(0)[-1], about(m).short, look["color"]))
    ax.set(xlabel="step", ylabel="training loss (nats/token)")
    plot.label_ends(ax, ends)
    return plot.Drawing(
        fig,
        "All methods start from the same base and learn from the first step; they differ in how low the loss falls.",
        f"Training loss on *domain*, a running mean over {window} steps, averaged over {len(r.seeds)} seeds. All methods see "
        "the same batches, so the fluctuations they share come from the text.",
        "Falling curves; the last running mean is " + ", ".join(f"{name} {y:.2f}" for _, y, name, _ in ends)
        + " nats per token.")


def adapters(results: Path) -> plot.Drawing:
    r, others = Results.load(results, "adapters"), Results.load(results, "methods")
    widths = sorted({EXPERIMENTS["adapters"].conditions[c].method.bottleneck for c in r.conditions})
    frozen, full = others.mean("frozen", "loss"), others.mean("full", "loss")
    fig, ax = plot.figure(height=3.6)
    looks, ends, mean = {"sequential": about("adapter").look, "parallel": about("parallel_adapter").look}, [], {}
    for kind, look in looks.items():
        mean[kind] = plot.band(ax, widths, r, [f"{kind} {m}" for m in widths], "loss", look, ms=7)
        ends.append((widths[-1], mean[kind][-1], kind, plot.COLOURS[look[0]]))
    plot.reference_line(ax, frozen, about("frozen").short)
    plot.reference_line(ax, full, "full fine-tuning", above=True, ls=":")
    ax.set_xscale("log", base=2)
    ax.set_xticks(widths, [f"{m}\n{100 * r.mean(f'parallel {m}', 'share'):.1f} %" for m in widths])
    ax.margins(y=0.1)
    ax.set(xlabel="bottleneck m, and share of the parameters", ylabel="test loss (nats/token)")
    plot.label_ends(ax, ends)
    i = widths.index(16)
    gap, half = r.difference("sequential 16", "parallel 16", "loss")
    gain = {kind: (frozen - mean[kind][i]) / (frozen - full) for kind in looks}
    return plot.Drawing(
        fig,
        f"An adapter beside the sublayer is {'better' if gap > half else 'not measurably better'} than one behind it: at m = "
        f"16 by {gap:.3f} ± {half:.3f} nats, {gain['parallel']:.0%} against {gain['sequential']:.0%} of full fine-tuning's "
        f"gain with {100 * r.mean('parallel 16', 'share'):.1f} % of the parameters.",
        f"Adapters at both sublayers of every block, each at its best learning rate; "
        f"{r.record['settings']['steps']} steps on *domain*, {len(r.seeds)} seeds.",
        f"Test loss over the bottleneck, between the frozen base, {frozen:.3f}, and full fine-tuning, {full:.3f}. " + " ".join(
            f"{kind.capitalize()}: {', '.join(f'm = {m} {x:.3f}' for m, x in zip(widths, mean[kind], strict=True))}."
            for kind in looks))
