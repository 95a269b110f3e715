"""Lesson 15: the study as a whole: all effects in units of δ, the best learning rates, and what makes an interval narrow."""
from pathlib import Path

import numpy as np

from .. import plot
from ..claims import ALL_CLAIMS
from ..claims.deltas import FINE_TUNING
from ..claims.rule import AS_GOOD, CONTRADICTED, LEVEL, NO_SIZE, NOT_SHOWN, REPRODUCED, SIZE_OPEN, WITHIN, Judgement
from ..claims.tables import judged
from ..effects import components, half_of, read, together
from ..stored import load

__all__ = ["best_rates", "forest", "half_widths"]

LOOKS = {REPRODUCED: ("green", "o"), SIZE_OPEN: ("sky", "s"), LEVEL: ("black", "D"), NOT_SHOWN: ("grey", "x"),
         NO_SIZE: ("orange", "v"), CONTRADICTED: ("vermillion", "^")}
FARTHEST = 12                                            # δ; an effect beyond is drawn at the edge


def forest(results: Path) -> plot.Drawing:
    """A row for each claim that counts, a mark with its interval for each of its parts."""
    found = [j for j in judged(results, ALL_CLAIMS) if j.parts and not j.claim.by_construction]
    found.sort(key=lambda j: (list(LOOKS).index(j.verdict), -min(mean for mean, _ in in_deltas(j))))
    fig, ax = plot.figure(height=1.2 + 0.25 * len(found))
    ax.axvspan(-1, 1, color="#EEEEEE", lw=0)
    ax.axvline(0, color=plot.COLOURS["grey"], lw=1)
    beyond = 0
    for y, j in enumerate(found):
        colour, marker = LOOKS[j.verdict]
        parts = in_deltas(j)
        for k, (mean, half) in enumerate(parts):
            at = y + 0.6 * ((k + 0.5) / len(parts) - 0.5)
            beyond += abs(mean) > FARTHEST
            shown = float(np.clip(mean, -FARTHEST, FARTHEST))
            above = min(half, 1 - mean) if j.claim.kind == WITHIN else half      # of δ less a distance, at most δ is left
            low, high = np.clip([mean - half, mean + above], -FARTHEST - 0.5, FARTHEST + 0.5)
            ax.hlines(at, low, high, color="#9A9A9A", lw=1)
            ax.plot(shown, at, ls="none", ms=4, color=plot.COLOURS[colour], marker=marker)
            if shown != mean: ax.plot(1.03 * shown, at, ls="none", ms=3, color="#000000", marker="<>"[mean > 0])
    ax.set_yticks(range(len(found)), [shortened(j.claim.text) for j in found])
    ax.invert_yaxis()
    ax.margins(y=0.01)
    ax.set(xlim=(-FARTHEST - 0.5, FARTHEST + 0.5), xlabel="effect in units of δ")
    counts = {verdict: sum(j.verdict == verdict for j in found) for verdict in LOOKS}
    plot.key(fig, {verdict: (*LOOKS[verdict], "none") for verdict, n in counts.items() if n}, 3)
    said = ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n)
    return plot.Drawing(
        fig,
        f"All measured claims at a glance, each effect over the difference that matters in it: {said}.",
        "Each mark is one part of a claim with its 95 % interval; to the right it supports the claim. Grey: smaller than δ, "
        "which matters to claims that something is better. Of \"as good as\" the distance from 90 % of the gain is drawn, and "
        "of \"within δ\" δ less the distance from zero: there 1 is the most that can be, and a claim holds where its marks lie "
        "right of zero"
        + f"; {beyond} marks at the edges, with arrows, lie beyond {FARTHEST} δ" * bool(beyond) + ".",
        "Rows of marks with intervals, in units of δ. " + " ".join(
            f"{j.claim.text}: {j.verdict}, {', '.join(f'{m:+.1f} ± {h:.1f}' for m, h in in_deltas(j))}." for j in found))


def in_deltas(j: Judgement) -> list[tuple[float, float]]:
    """(effect, half of its interval) of each part in units of δ, positive where the part is right."""
    shifts = {AS_GOOD: lambda x, d: x - (1 - d), WITHIN: lambda x, d: d - abs(x)}
    shift, d = shifts.get(j.claim.kind, lambda x, d: x), j.claim.delta.size
    return [(shift(e.mean, d) / d, e.half / d) for e in j.parts.values()]


def shortened(text: str, most: int = 46) -> str:
    """The claim, cut at a word where it is long."""
    return text if len(text) <= most else f"{text[:most].rsplit(' ', 1)[0]} …"


def best_rates(results: Path) -> plot.Drawing:
    """LoRA's best rate over full fine-tuning's at four places, and the best rate over the rank."""
    r = load(results, "best_rates")
    fig, (left, right) = plot.figure(1, 2, height=2.9)
    where = {"60 steps": "60 steps", "150 steps": "150 steps", "medium": "150 steps,\nmedium base",
             "small": "150 steps,\nsmall base"}
    ratio = {w: r.difference(f"LoRA, {w}", f"full, {w}", "log_best") for w in where}
    left.axvspan(5, 20, color="#EEEEEE", lw=0)
    left.axvline(10, color=plot.COLOURS["grey"], lw=1, ls="--")
    for y, (mean, half) in enumerate(ratio.values()):
        left.plot([10 ** (mean - half), 10 ** (mean + half)], [y, y], color=plot.COLOURS["blue"], lw=1.2)
        left.plot(10 ** mean, y, "o", color=plot.COLOURS["blue"], ms=7)
    left.set_yticks(range(len(where)), where.values())
    left.invert_yaxis()
    left.set(xscale="log", xlim=(2, 40), xlabel="LoRA's best rate over full fine-tuning's")
    left.set_xticks([2, 5, 10, 20, 40], ["2", "5", "10", "20", "40"])
    left.minorticks_off()
    left.margins(y=0.2)
    ranks = [int(c.removeprefix("r = ")) for c in r.conditions if c.startswith("r = ")]
    best = {b: r.values(f"r = {b}", "log_best") for b in ranks}
    for b in ranks: right.plot([b] * len(best[b]), 10 ** best[b], "o", color=plot.COLOURS["blue"], ms=4, alpha=0.5)
    right.plot(ranks, [10 ** x.mean() for x in best.values()], color=plot.COLOURS["blue"], marker="o", ms=7)
    right.set(xscale="log", yscale="log", xlabel="rank, scale α/r", ylabel="best learning rate", ylim=(1e-3, 0.1))
    right.set_xticks(ranks, map(str, ranks))
    right.minorticks_off()
    said = ", ".join(f"{10 ** mean:.1f} times ({w})" for w, (mean, _) in ratio.items())
    return plot.Drawing(
        fig,
        f"LoRA's best learning rate is larger than full fine-tuning's: {said}. From rank {ranks[0]} to {ranks[-1]} it goes "
        f"from {10 ** best[ranks[0]].mean():.2g} to {10 ** best[ranks[-1]].mean():.2g}.",
        "Left: LoRA on all matrices, on the base or, with about the same share of the parameters, on smaller bases, with 95 % "
        "intervals; "
        "grey: a factor of two around ten. Right: LoRA on query and value, 150 steps; small marks are seeds. The best rate "
        f"is the lowest point of a parabola through three rates, on validation text of *domain*; {len(r.seeds)} seeds.",
        "Left, ratio of the best rates: " + ", ".join(
            f"{w} {10 ** m:.1f} ({10 ** (m - h):.1f} to {10 ** (m + h):.1f})" for w, (m, h) in ratio.items())
        + ". Right, best rate: " + ", ".join(f"r = {b} {10 ** x.mean():.3g}" for b, x in best.items()) + ".")


def half_widths(results: Path) -> plot.Drawing:
    """What a contrast's interval would be with other numbers of seeds and documents, by its measured variances."""
    r, methods = load(results, "rank"), load(results, "methods")
    contrasts = {"LoRA on all − full": (methods, "lora_all", "full"), "r = 1 − r = 64": (r, "1", "64")}
    fig, axes = plot.figure(1, len(contrasts), height=3.0, sharey=True)
    seeds, said = {2: ":", 4: "-", 8: "--"}, []
    for ax, (name, (of, a, b)) in zip(axes, contrasts.items(), strict=True):
        (x, y), weights = together(read(of, a), read(of, b))
        (n, m), parts = x.shape, components(x - y, weights)
        documents = np.geomspace(25, 1600, 40)
        for k, style in seeds.items():
            ax.plot(documents, [half_of(parts, n, m, k, d, weights) for d in documents], color=plot.COLOURS["blue"], ls=style)
        ax.plot(m, half_of(parts, n, m, n, m, weights), "o", color=plot.COLOURS["vermillion"], ms=8)
        ax.axhline(FINE_TUNING.size / 2, color=plot.COLOURS["grey"], lw=1, ls="--")
        ax.set_title(name, fontsize=9)
        ax.set(xscale="log", yscale="log", xlabel="documents of the test text")
        ax.set_xticks([25, 100, 400, 1600], ["25", "100", "400", "1,600"])
        ax.minorticks_off()
        now, seeds_2, documents_2 = (half_of(parts, n, m, *by, weights) for by in ((n, m), (2 * n, m), (n, 2 * m)))
        said.append(f"{name}: ± {now:.4f}; with twice the seeds ± {seeds_2:.4f}, with twice the documents ± {documents_2:.4f}")
    axes[0].set_ylabel("half of the 95 % interval (nats/token)")
    axes[0].set_yticks([0.002, 0.005, 0.01, 0.02, 0.05], ["0.002", "0.005", "0.01", "0.02", "0.05"])
    plot.key(fig, {f"{k} seeds": ("blue", "", style) for k, style in seeds.items()}, 3)
    return plot.Drawing(
        fig,
        f"What another {n} seeds and what twice the test text would do to an interval. {said[0]}.",
        f"Half of the 95 % interval by the variances that were measured over seeds, documents and their rest; the dot is "
        f"the study's choice, {n} seeds and {m} documents. Grey: half of δ = {FINE_TUNING.size} nats/token.",
        "Falling curves over the number of documents, one for each number of seeds. " + ". ".join(said) + ".")
