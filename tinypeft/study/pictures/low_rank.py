"""Lessons 07, 08 and 09: LoRA's rank and the shape of its update; the ranks of AdaLoRA; the ranks of DyLoRA."""
from pathlib import Path

import numpy as np

from .. import plot
from ..about import about
from ..effects import read
from ..experiments import EXPERIMENTS
from ..stored import load

__all__ = ["adalora", "dylora", "planted", "rank", "subspace"]

MATRICES = "query", "key", "value", "output", "up", "down"


def rank(results: Path) -> plot.Drawing:
    r, others = load(results, "rank"), load(results, "methods")
    methods = [EXPERIMENTS["rank"].conditions[c].method for c in r.conditions]
    ranks, stabilized = ([m.rank for m in methods if m.rank_stabilized == by_root] for by_root in (False, True))
    frozen, full = others.mean("frozen", "loss"), others.mean("full", "loss")
    fig, ax = plot.figure(height=3.8)
    mean = plot.band(ax, ranks, r, list(map(str, ranks)), "loss", ("blue", "o"))
    for i, b in enumerate(stabilized):
        ax.errorbar(b, r.mean(f"{b}/sqrt", "loss"), yerr=r.interval(f"{b}/sqrt", "loss"), marker="s", ls="none",
                    color=plot.COLOURS["orange"])
        if i == len(stabilized) - 1: scale = (b, r.mean(f"{b}/sqrt", "loss"), "α/√r", plot.COLOURS["orange"])
    every = others.mean("lora_all", "loss")
    ax.errorbar(4, every, yerr=others.interval("lora_all", "loss"), **plot.mark("lora_all"))
    ax.annotate("r = 4 on all six matrices", (4, every), xytext=(8, 0), textcoords="offset points", va="center",
                color=plot.ink(plot.COLOURS["blue"]))
    plot.reference_line(ax, frozen, about("frozen").short)
    plot.reference_line(ax, full, "full fine-tuning", above=True)
    ax.set_xscale("log", base=2)
    ax.set_xticks(ranks, map(str, ranks))
    ax.margins(y=0.1)
    ax.set(xlabel="rank r", ylabel="test loss (nats/token)")
    plot.label_ends(ax, [(ranks[-1], mean[-1], "α/r", plot.COLOURS["blue"]), scale])
    gain = lambda loss: (frozen - loss) / (frozen - full)
    return plot.Drawing(
        fig,
        f"In a small model a higher rank helps, and more matrices help more: on query and value rank {ranks[0]} reaches "
        f"{gain(mean[0]):.0%} of full fine-tuning's gain and rank {ranks[-1]} reaches {gain(mean[-1]):.0%}; rank 4 on all six "
        f"matrices reaches {gain(every):.0%}.",
        f"LoRA on query and value, α = 16, {r.record['settings']['steps']} steps on *domain*. Squares: the scale α/√r with "
        f"α = 16/√8 = {16 / 8 ** 0.5:.2f}, so that both scales are 2 at r = 8. {len(r.seeds)} seeds.",
        f"Test loss over rank between the frozen base, {frozen:.3f}, and full fine-tuning, {full:.3f}; rank 4 on all six "
        f"{every:.3f}; on two: " + ", ".join(
            f"r = {b} {m:.3f} ± {r.interval(str(b), 'loss'):.3f}" for b, m in zip(ranks, mean, strict=True)) + "; with α/√r: "
        + ", ".join(f"r = {b} {r.mean(f'{b}/sqrt', 'loss'):.3f}" for b in stabilized) + ".")


def subspace(results: Path) -> plot.Drawing:
    r = load(results, "subspace")
    fig, axes = plot.figure(2, 2, height=5.4)
    looks = {"full": ("black", "s", "full fine-tuning"), "lora_64": ("sky", "^", "LoRA r = 64"),
             "lora_8": ("blue", "o", "LoRA r = 8")}
    at = {}
    for column, m in zip(axes.T, ("query", "value"), strict=True):
        above, below = column
        for name, (colour, marker, _) in looks.items():
            s = r.mean("domain", f"values_{name}_{m}").mean(0)               # mean over seeds, then over layers
            s = s[s > 1e-4 * s[0]]
            above.semilogy(np.arange(1, len(s) + 1), s, color=plot.COLOURS[colour], marker=marker, markevery=7, ms=5)
        above.set(title=f"ΔW of {m}s" if m == "value" else "ΔW of queries", xlabel="index of the singular value")
        plot.plain_log(above.yaxis)
        phi = r.mean("domain", f"phi_{m}").mean(0)                           # (8, 64)
        image = below.imshow(phi, cmap="cividis", vmin=0, vmax=1, aspect="auto", interpolation="nearest", origin="lower",
                             extent=(0.5, 64.5, 0.5, 8.5))
        below.grid(False)
        below.set(xlabel="first j directions of r = 64", ylabel="first i of r = 8" if m == "query" else "")
        at[m] = phi[0, 0], phi[-1, 7], *(r.mean("domain", f"phi_{kind}_{m}").mean(0)[7] for kind in ("seeds", "random"))
    axes[0, 0].set_ylabel("singular value")
    fig.colorbar(image, ax=axes[1], label="similarity φ", pad=0.02)
    plot.key(fig, {text: look for *look, text in looks.values()})
    energy = {m: r.mean("domain", f"energy_8_full_{m}").mean() for m in at}
    return plot.Drawing(
        fig,
        f"For values the 8 largest directions of full fine-tuning's update hold {energy['value']:.0%} of its squared norm, and "
        f"the first directions of LoRA at rank 8 and at rank 64 have a similarity of φ = {at['value'][0]:.2f}.",
        "Above: the singular values of the update ΔW. Below: of the first i directions at r = 8 and the first j at r = 64, how "
        f"much of the smaller space lies in the larger. Means over 5 layers and {len(r.seeds)} seeds.",
        "Singular values fall slowly for full fine-tuning and stop at the rank for LoRA. " + " ".join(
            f"{m.capitalize()}: φ(1, 1) = {a:.2f}, φ(8, 8) = {b:.2f}; φ(8, 8) is {c:.2f} between two seeds of r = 64 and "
            f"{d:.2f} for random directions; the 8 largest directions of full fine-tuning hold {energy[m]:.0%} of its squared "
            "norm."
            for m, (a, b, c, d) in at.items()))


def adalora(results: Path) -> plot.Drawing:
    r = load(results, "adalora")
    fig, (left, right) = plot.figure(1, 2, height=3.0, width_ratios=(1.25, 1))
    name = "AdaLoRA 12 → 8"
    ranks = r.mean(name, "ranks").reshape(-1, len(MATRICES))
    left.imshow(ranks, cmap="cividis", vmin=0, vmax=12, aspect="auto")
    for (i, j), value in np.ndenumerate(ranks):
        left.text(j, i, f"{value:.0f}", ha="center", va="center", color="white" if value < 6 else "black")
    left.set_xticks(range(len(MATRICES)), MATRICES)
    left.set_yticks(range(len(ranks)), range(1, len(ranks) + 1))
    left.grid(False)
    left.set(ylabel="layer", title="final rank, started at 12")
    left.title.set_fontsize(9)
    budget = r.values(name, "budget")[0]
    right.plot(np.arange(1, len(budget) + 1), budget, color=plot.COLOURS["blue"])
    right.set(xlabel="step", ylim=(0, None))
    right.set_title("singular values in the budget", fontsize=9)
    versus = [r.difference("AdaLoRA 12 → 8", "all six r=8", "loss"), r.difference("AdaLoRA 3 → 2", "all six r=2", "loss")]
    by = dict(zip(MATRICES, ranks.mean(0), strict=True))
    high, low = max(by, key=by.get), min(by, key=by.get)
    return plot.Drawing(
        fig,
        f"AdaLoRA removes rank from some matrices and keeps it in others: on average {by[low]:.1f} remain for {low} and "
        f"{by[high]:.1f} for {high}.",
        f"Mean over {len(r.seeds)} seeds. Loss of AdaLoRA minus loss of LoRA with the same final budget: {versus[0][0]:+.3f} ± "
        f"{versus[0][1]:.3f} nats at 8 per matrix, {versus[1][0]:+.3f} ± {versus[1][1]:.3f} at 2; "
        f"{len(budget)} steps on *domain*.",
        "Heat map of final ranks by layer and matrix; mean over layers: " + ", ".join(f"{m} {x:.1f}" for m, x in by.items())
        + f". Beside it the budget, a curve that falls from {budget[0]:.0f} to {budget[-1]:.0f} singular values.")


def planted(results: Path) -> plot.Drawing:
    r = load(results, "adalora_planted")
    dealt, found = (r.values("attention", m) for m in ("planted", "found"))  # (seeds, 20)
    fig, ax = plot.figure(height=3.6)
    kinds = {"query": ("blue", "o"), "key": ("sky", "s"), "value": ("vermillion", "^"), "output": ("orange", "D")}
    ranks = np.unique(dealt).astype(int)
    for i, (kind, (colour, marker)) in enumerate(kinds.items()):
        of_kind = np.arange(dealt.shape[1]) % len(kinds) == i
        y = [found[(dealt == b) & of_kind] for b in ranks]
        x = np.arange(len(ranks)) + (-0.24, -0.08, 0.08, 0.24)[i]
        means = [v.mean() if v.size else np.nan for v in y]
        ax.plot(x, means, color=plot.COLOURS[colour], marker=marker, ls="none", ms=7, label=kind)
    every = [found[dealt == b].mean() for b in ranks]
    ax.plot(range(len(ranks)), every, color="#606060", lw=1.2)
    ax.plot(range(len(ranks)), ranks, color="#999999", lw=1, ls="--")
    ax.annotate("as planted", (len(ranks) - 1, ranks[-1]), xytext=(-6, 0), textcoords="offset points", ha="right", va="center",
                color="#606060")
    ax.annotate("mean found", (len(ranks) - 1, every[-1]), xytext=(8, -3), textcoords="offset points", va="top",
                color="#606060")
    ax.set_xticks(range(len(ranks)), ranks)
    ax.set(xlabel="planted rank", ylabel="rank found")
    ax.legend(loc="upper left", ncols=2)
    rho, half = r.mean("attention", "spearman"), r.interval("attention", "spearman")
    share, chance = r.mean("attention", "of_planted"), r.mean("attention", "share_planted")
    return plot.Drawing(
        fig,
        f"AdaLoRA finds planted ranks, with exceptions: {share:.0%} of the rank lies where rank was planted, and chance would "
        f"put {chance:.0%} there (Spearman's correlation {rho:.2f} ± {half:.2f}).",
        f"Ranks {', '.join(map(str, ranks))} were planted in the {dealt.shape[1]} matrices of the attention. AdaLoRA ends with "
        f"{found.sum(1).mean():.0f} singular values, where {dealt.sum(1).mean():.0f} were planted: its budget is a whole "
        f"number for each matrix. Means by kind of matrix over {len(r.seeds)} seeds.",
        "Rank found over rank planted: on average " + ", ".join(
            f"{e:.1f} where {b} was planted" for b, e in zip(ranks, every, strict=True)) + ". By kind: " + ", ".join(
            f"{k} {x:.1f}" for k, x in zip(kinds, r.mean("attention", "mean_by_kind"), strict=True)) + ".")


def dylora(results: Path) -> plot.Drawing:
    r, one = load(results, "dylora"), load(results, "rank")
    ranks = [1, 2, 4, 8, 16]
    lines = {"a LoRA for each rank": (one, list(map(str, ranks)), "loss", ("black", "s")),
             "DyLoRA × 3 steps": (r, "DyLoRA × 3", "loss", ("blue", "D")),
             "DyLoRA": (r, "DyLoRA", "loss", ("blue", "D", "--")),
             "LoRA cut, by SVD": (r, "LoRA r=16, cut", "loss_svd", ("green", "v")),
             "LoRA cut, scale α/b": (r, "LoRA r=16, cut", "loss_rescaled", ("orange", "^")),
             "LoRA cut": (r, "LoRA r=16, cut", "loss", ("vermillion", "o"))}
    fig, ax = plot.figure(height=4.0)
    each = [read(one, str(b)) for b in ranks]
    half = {name: np.array([(read(r, c, metric, i) - each[i]).effect.half for i in range(len(ranks))]) if of is r else
            np.zeros(len(ranks)) for name, (of, c, metric, _) in lines.items()}
    mean = {name: plot.band(ax, ranks, of, c, metric, look, half=half[name]) for name, (of, c, metric, look) in lines.items()}
    ax.set_xscale("log", base=2)
    ax.set_xticks(ranks, map(str, ranks))
    off = mean["LoRA cut, scale α/b"]
    ax.set(xlabel="rank b in use", ylabel="test loss (nats/token)", ylim=(None, mean["LoRA cut"].max() + 0.15))
    ax.annotate(f"to {off[0]:.2f} at b = 1", (3.4, ax.get_ylim()[1]), xytext=(0, -4), textcoords="offset points", va="top",
                ha="right", color=plot.ink(plot.COLOURS["orange"]))
    plot.key(fig, {name: look for name, (*_, look) in lines.items()})
    above = lambda name: f"{max(mean[name] - mean['a LoRA for each rank']):.3f}"
    return plot.Drawing(
        fig,
        f"A DyLoRA trained three times as long is at most {above('DyLoRA × 3 steps')} nats above a LoRA trained for the rank "
        f"in use. A LoRA of rank 16 that is cut to its first columns and keeps its scale is up to "
        f"{above('LoRA cut')} nats above a LoRA for that rank, and one cut by SVD up to {above('LoRA cut, by SVD')}.",
        f"Query and value, {r.record['settings']['steps']} steps on *domain* (DyLoRA also three times as many). A LoRA of "
        f"rank 16 is cut to its first b rows and columns, or to its b largest singular values. Bands are "
        f"95 % intervals of the difference to a LoRA for that rank; {len(r.seeds)} seeds.",
        "Test loss over the rank in use, 1 to 16: " + "; ".join(
            f"{name} {', '.join(f'{x:.3f}' for x in y)}" for name, y in mean.items()) + ".")
