"""Lesson 15: the study as a whole: all effects in units of δ."""
from pathlib import Path

import numpy as np

from .. import plot
from ..claims import ALL_CLAIMS
from ..claims.deltas import FINE_TUNING
from ..claims.rule import AS_GOOD, CONTRADICTED, LEVEL, NO_SIZE, NOT_SHOWN, REPRODUCED, SIZE_OPEN, WITHIN, Judgement
from ..claims.tables import judged

__all__ = ["forest"]

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
