"""Lesson 04: adapters behind a sublayer and beside it."""
from pathlib import Path

from .. import plot
from ..about import about
from ..experiments import EXPERIMENTS
from ..stored import load

__all__ = ["adapters"]


def adapters(results: Path) -> plot.Drawing:
    r, others = load(results, "adapters"), load(results, "methods")
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
