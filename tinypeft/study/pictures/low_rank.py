"""Lessons 07, 08 and 09: LoRA's rank and the shape of its update; the ranks of AdaLoRA; the ranks of DyLoRA."""
from pathlib import Path

import numpy as np

from .. import plot
from ..about import about
from ..effects import read
from ..experiments import EXPERIMENTS
from ..markdown import listed, pm
from ..stored import load

__all__ = ["adalora", "dylora", "planted", "rank", "subspace"]

MATRICES = "query", "key", "value", "output", "up", "down"


def rank(results: Path) -> plot.Drawing:
    r, others = load(results, "rank"), load(results, "methods")
    methods = [EXPERIMENTS["rank"].conditions[c].method for c in r.conditions]
    ranks, stabilized = ([m.rank for m in methods if m.rank_stabilized == stable] for stable in (False, True))
    frozen, full = others.mean("frozen", "loss"), others.mean("full", "loss")
    fig, ax = plot.figure(height=3.8)
    mean = plot.band(ax, ranks, r, list(map(str, ranks)), "loss", ("blue", "o"))
    by_root = {b: r.mean(f"{b}/sqrt", "loss") for b in stabilized}
    for b, loss in by_root.items():
        ax.errorbar(b, loss, r.interval(f"{b}/sqrt", "loss"), ls="none", color=plot.COLOURS["orange"], marker="s")
    every = others.mean("lora_all", "loss")
    ax.errorbar(4, every, others.interval("lora_all", "loss"), **plot.mark("lora_all"))
    plot.note(ax, (4, every), "r = 4 on all six matrices", (8, 0), "blue")
    plot.reference_line(ax, frozen, about("frozen").short)
    plot.reference_line(ax, full, "full fine-tuning", above=True)
    plot.plain_log(ax.xaxis, ranks)
    ax.margins(y=0.1)
    ax.set(xlabel="rank r", ylabel="test loss (nats/token)")
    plot.label_ends(ax, [(ranks[-1], mean[-1], "α/r", "blue"), (stabilized[-1], by_root[stabilized[-1]], "α/√r", "orange")])
    gain = lambda loss: (frozen - loss) / (frozen - full)
    return plot.Drawing(
        fig,
        f"In a small model a higher rank helps, and more matrices help more: on query and value rank {ranks[0]} reaches "
        f"{gain(mean[0]):.0%} of full fine-tuning's gain and rank {ranks[-1]} reaches {gain(mean[-1]):.0%}; rank 4 on all six "
        f"matrices reaches {gain(every):.0%}.",
        f"LoRA on query and value, α = 16, {r.record['settings']['steps']} steps on *domain*. Squares: the scale α/√r with α = "
        f"16/√8 = {16 / 8 ** 0.5:.2f}, so that both scales are 2 at r = 8. {len(r.seeds)} seeds.",
        f"Test loss over rank between the frozen base, {frozen:.3f}, and full fine-tuning, {full:.3f}; rank 4 on all six "
        f"{every:.3f}; on two: "
        + ", ".join(f"r = {b} {pm(m, r.interval(str(b), 'loss'))}" for b, m in zip(ranks, mean, strict=True))
        + f"; with α/√r: {listed({f'r = {b}': loss for b, loss in by_root.items()})}.")


def subspace(results: Path) -> plot.Drawing:
    r = load(results, "subspace")
    fig, axes = plot.figure(2, 2, height=5.4)
    looks = {"full fine-tuning": ("black", "s"), "LoRA r = 64": ("sky", "^"), "LoRA r = 8": ("blue", "o")}
    names = dict(zip(looks, ("full", "lora_64", "lora_8"), strict=True))
    at = {}
    for column, m in zip(axes.T, ("query", "value"), strict=True):
        above, below = column
        for label, look in looks.items():
            s = r.mean("domain", f"values_{names[label]}_{m}").mean(0)       # mean over seeds, then over layers
            s = s[s > 1e-4 * s[0]]
            above.plot(np.arange(1, len(s) + 1), s, markevery=7, ms=5, **plot.line(look))
        above.set(title=f"ΔW of {m}", xlabel="index of the singular value")
        plot.plain_log(above.yaxis)
        phi = r.mean("domain", f"phi_{m}").mean(0)                           # (8, 64)
        image = below.imshow(phi, cmap="cividis", vmin=0, vmax=1, aspect="auto", interpolation="nearest", origin="lower",
                             extent=(0.5, 64.5, 0.5, 8.5))
        below.grid(False)
        below.set(xlabel="first j directions of r = 64", ylabel="first i directions of r = 8" if m == "query" else "")
        at[m] = phi[0, 0], phi[-1, 7], *(r.mean("domain", f"phi_{kind}_{m}").mean(0)[7] for kind in ("seeds", "random"))
    axes[0, 0].set_ylabel("singular value")
    fig.colorbar(image, ax=axes[1], label="similarity φ", pad=0.02)
    plot.key(fig, looks)
    energy = {m: r.mean("domain", f"energy_8_full_{m}").mean() for m in at}
    return plot.Drawing(
        fig,
        f"For values the 8 largest directions of full fine-tuning's update hold {energy['value']:.0%} of its squared norm, and "
        f"the first directions of LoRA at rank 8 and at rank 64 have a similarity of φ = {at['value'][0]:.2f}.",
        "Above: the singular values of the update ΔW. Below: of the first i directions at r = 8 and the first j at r = 64, "
        f"how much of the smaller space lies in the larger. Means over 5 layers and {len(r.seeds)} seeds.",
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
    budget = r.values(name, "budget")[0]
    right.plot(np.arange(1, len(budget) + 1), budget, color=plot.COLOURS["blue"])
    right.set(xlabel="step", ylim=(0, None), title="singular values in the budget")
    versus = lambda start, end: pm(*r.difference(f"AdaLoRA {start} → {end}", f"all six r={end}", "loss"), "+.3f")
    by = dict(zip(MATRICES, ranks.mean(0), strict=True))
    high, low = max(by, key=by.get), min(by, key=by.get)
    return plot.Drawing(
        fig,
        f"AdaLoRA removes rank from some matrices and keeps it in others: on average {by[low]:.1f} remain for {low} and "
        f"{by[high]:.1f} for {high}.",
        f"Mean over {len(r.seeds)} seeds. Loss of AdaLoRA minus loss of LoRA with the same final budget: {versus(12, 8)} nats "
        f"at 8 per matrix, {versus(3, 2)} at 2; {len(budget)} steps on *domain*.",
        f"Heat map of final ranks by layer and matrix; mean over layers: {listed(by, '.1f')}. Beside it the budget, a curve "
        f"that falls from {budget[0]:.0f} to {budget[-1]:.0f} singular values.")


def planted(results: Path) -> plot.Drawing:
    r = load(results, "adalora_planted")
    dealt, found = (r.values("attention", m) for m in ("planted", "found"))  # (seeds, 20)
    fig, ax = plot.figure(height=3.6)
    kinds = {"query": ("blue", "o", "none"), "key": ("sky", "s", "none"), "value": ("vermillion", "^", "none"),
             "output": ("orange", "D", "none")}
    ranks = np.unique(dealt).astype(int)
    for i, (kind, look) in enumerate(kinds.items()):
        of_kind = np.arange(dealt.shape[1]) % len(kinds) == i
        y = [found[(dealt == b) & of_kind] for b in ranks]
        x = np.arange(len(ranks)) + (-0.24, -0.08, 0.08, 0.24)[i]
        ax.plot(x, [v.mean() if v.size else np.nan for v in y], ms=7, label=kind, **plot.line(look))
    every = [found[dealt == b].mean() for b in ranks]
    ax.plot(range(len(ranks)), every, color="#606060", lw=1.2)
    ax.plot(range(len(ranks)), ranks, color="#999999", lw=1, ls="--")
    plot.note(ax, (len(ranks) - 1, ranks[-1]), "as planted", (-6, 0))
    plot.note(ax, (len(ranks) - 1, every[-1]), "mean found", (8, -3))
    ax.set_xticks(range(len(ranks)), ranks)
    ax.set(xlabel="planted rank", ylabel="rank found")
    ax.legend(loc="upper left", ncols=2)
    rho = pm(r.mean("attention", "spearman"), r.interval("attention", "spearman"))
    share, chance = r.mean("attention", "of_planted"), r.mean("attention", "share_planted")
    return plot.Drawing(
        fig,
        f"AdaLoRA finds planted ranks, with exceptions: {share:.0%} of the rank lies where rank was planted, and chance would "
        f"put {chance:.0%} there (Spearman's correlation {rho}).",
        f"Ranks {', '.join(map(str, ranks))} were planted in the {dealt.shape[1]} matrices of the attention. AdaLoRA ends with "
        f"{found.sum(1).mean():.0f} singular values, where {dealt.sum(1).mean():.0f} were planted: its budget is a whole "
        f"number for each matrix. Means by kind of matrix over {len(r.seeds)} seeds.",
        "Rank found over rank planted: on average "
        + ", ".join(f"{e:.1f} where {b} was planted" for b, e in zip(ranks, every, strict=True))
        + f". By kind: {listed(dict(zip(kinds, r.mean('attention', 'mean_by_kind'), strict=True)), '.1f')}.")


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
    plot.plain_log(ax.xaxis, ranks)
    ax.set(xlabel="rank b in use", ylabel="test loss (nats/token)", ylim=(None, mean["LoRA cut"].max() + 0.15))
    highest = mean["LoRA cut, scale α/b"][0]
    plot.note(ax, (3.4, ax.get_ylim()[1]), f"goes up to {highest:.2f} at b = 1", (-1, -4), "orange")
    plot.key(fig, {name: look for name, (*_, look) in lines.items()})
    above = lambda name: f"{max(mean[name] - mean['a LoRA for each rank']):.3f}"
    return plot.Drawing(
        fig,
        f"A DyLoRA trained three times as long is at most {above('DyLoRA × 3 steps')} nats above a LoRA trained for the rank "
        f"in use. A LoRA of rank 16 that is cut to its first columns and keeps its scale is up to {above('LoRA cut')} nats "
        f"above a LoRA for that rank, and one cut by SVD up to {above('LoRA cut, by SVD')}.",
        f"Query and value, {r.record['settings']['steps']} steps on *domain* (DyLoRA also three times as many). A LoRA of rank "
        "16 is cut to its first b rows and columns, or to its b largest singular values. Bands are 95 % intervals of the "
        f"difference to a LoRA for that rank; {len(r.seeds)} seeds.",
        "Test loss over the rank in use, 1 to 16: "
        + "; ".join(f"{name} {', '.join(f'{x:.3f}' for x in y)}" for name, y in mean.items()) + ".")
