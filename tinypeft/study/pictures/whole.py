"""Lesson 15: the study as a whole: all effects in units of δ."""
import textwrap
from pathlib import Path

import numpy as np

from .. import plot
from ..claims import ALL_CLAIMS
from ..claims.rule import AS_GOOD, CONTRADICTED, LEVEL, NO_SIZE, NOT_SHOWN, REPRODUCED, SIZE_OPEN, WITHIN, Judgement
from ..claims.tables import judged

__all__ = ["forest"]

LOOKS = {REPRODUCED: ("green", "o"), SIZE_OPEN: ("sky", "s"), LEVEL: ("black", "D"), NOT_SHOWN: ("grey", "x"),
         NO_SIZE: ("orange", "v"), CONTRADICTED: ("vermillion", "^")}
FARTHEST, EDGE = 12, 13.4                                # δ; an effect beyond is drawn at the edge, with an arrow


def forest(results: Path) -> plot.Drawing:
    """A row for each claim that counts, a mark with its interval for each of its parts."""
    found = [j for j in judged(results, ALL_CLAIMS) if j.parts and not j.claim.by_construction]
    found.sort(key=lambda j: (list(LOOKS).index(j.verdict), -min(mean for mean, _ in in_deltas(j))))
    labels = [wrapped(j.claim.text) for j in found]
    heights = np.array([1.5 + label.count("\n") for label in labels])             # in lines of text, with a gap
    places = heights.cumsum() - heights / 2
    fig, ax = plot.figure(height=1.2 + 0.14 * heights.sum())
    ax.axvspan(-1, 1, color="#EEEEEE", lw=0)
    ax.axvline(0, color=plot.COLOURS["grey"], lw=1)
    beyond = 0
    for y, height, j in zip(places, heights, found, strict=True):
        colour, marker = LOOKS[j.verdict]
        parts = in_deltas(j)
        for k, (mean, half) in enumerate(parts):
            at = y + 0.7 * height * ((k + 0.5) / len(parts) - 0.5)
            beyond += abs(mean) > FARTHEST
            shown = float(np.clip(mean, -FARTHEST, FARTHEST))
            above = min(half, 1 - mean) if j.claim.kind == WITHIN else half      # of δ less a distance, at most δ is left
            low, high = np.clip([mean - half, mean + above], -EDGE, EDGE)
            ax.hlines(at, low, high, color="#9A9A9A", lw=1)
            ax.plot(shown, at, ls="none", ms=4, color=plot.COLOURS[colour], marker=marker)
            if shown != mean: ax.plot(1.07 * shown, at, ls="none", ms=3, color="#000000", marker="<>"[mean > 0])
    ax.set_yticks(places, labels, linespacing=1)
    ax.set(xlim=(-EDGE, EDGE), ylim=(heights.sum(), 0), xlabel="effect in units of δ")
    ax.tick_params(labeltop=True)
    counts = {verdict: sum(j.verdict == verdict for j in found) for verdict in LOOKS}
    plot.key(fig, {verdict: (*LOOKS[verdict], "none") for verdict, n in counts.items() if n}, 3)
    said = ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n)
    return plot.Drawing(
        fig,
        f"All measured claims at a glance, each effect over the difference that matters in it: {said}.",
        "Each mark is one part of a claim with its 95 % interval, and supports the claim if it lies on the right. Effects on "
        "grey are smaller than δ, which is too little where a claim says that something is better. Where a claim says \"as "
        "good as\", the mark is the distance from 90 % of the gain. Where it says \"within δ\", the mark is δ less the "
        f"distance from zero: it is at most 1, and right of zero the claim holds. The {beyond} marks with arrows lie beyond "
        f"{FARTHEST} δ.",
        "Rows of marks with intervals, in units of δ. " + " ".join(
            f"{j.claim.text}: {j.verdict}, {', '.join(f'{m:+.1f} ± {h:.1f}' for m, h in in_deltas(j))}." for j in found))


def wrapped(text: str, most: int = 46) -> str:
    """The text in as few lines of at most 46 letters as it needs, which are about as long as each other."""
    lines = lambda width: textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    narrow = next(width for width in range(1, most + 1) if len(lines(width)) == len(lines(most)))
    return "\n".join(lines(narrow))


def in_deltas(j: Judgement) -> list[tuple[float, float]]:
    """(effect, half of its interval) of each part in units of δ, positive where the part is right."""
    shifts = {AS_GOOD: lambda x, d: x - (1 - d), WITHIN: lambda x, d: d - abs(x)}
    shift, d = shifts.get(j.claim.kind, lambda x, d: x), j.claim.delta.size
    return [(shift(e.mean, d) / d, e.half / d) for e in j.parts.values()]
