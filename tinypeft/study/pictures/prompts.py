"""Lessons 05 and 06: virtual tokens: what attention makes of them, how far from words they are."""
import numpy as np

from .. import plot
from ..experiment import Results

__all__ = ["prefix_attention", "soft_prompts"]


def prefix_attention(results):
    from matplotlib.colors import LogNorm
    r = Results.load(results, "virtual_tokens")
    P, layer = (r.record["settings"][k] for k in ("prefix", "layer"))
    first = r.record["runs"]["prefix"]["0"]
    A = np.array(first["map"])                           # (T, P + T)
    T = len(A)
    fig, (left, right) = plot.figure(1, 2, height=3.7, width_ratios=(2.2, 1))
    image = left.imshow(np.ma.masked_where(~np.tri(T, P + T, P, dtype=bool), np.maximum(A, 1e-3)), cmap="cividis",
                        norm=LogNorm(1e-3, 1), interpolation="nearest", extent=(-P, T, T, 0), aspect="auto")
    left.axvline(0, color=plot.COLOURS["vermillion"], lw=1.5)
    left.grid(False)
    left.set(xlabel="attended to: prefix | tokens", ylabel="token")
    left.set_title(f"attention in layer {layer + 1}", fontsize=9)
    fig.colorbar(image, ax=left, pad=0.02)
    layers = np.arange(1, len(r.mean("prefix", "share")) + 1)
    looks = {"share_before": ("sky", "o", "--"), "share": ("green", "v")}
    before, after = (plot.band(right, layers, r, "prefix", metric, look, 100) for metric, look in looks.items())
    for y, other, metric, text in ((before, after, "share_before", "before"), (after, before, "share", "after")):
        up = y[0] > other[0]
        right.annotate(text, (layers[0], y[0]), xytext=(0, 8 if up else -8), textcoords="offset points", ha="left",
                       va="bottom" if up else "top", color=plot.ink(plot.COLOURS[looks[metric][0]]))
    right.set(xlabel="layer", ylim=(0, 1.2 * max(before.max(), after.max())), xlim=(0.7, layers[-1] + 0.3))
    right.set_title("% of it on the prefix", fontsize=9)
    right.set_xticks(layers)
    return plot.Drawing(
        fig,
        f"A prefix of {P} is read by every token in every layer: after training {after.min():.0f} to {after.max():.0f} % of "
        "the attention goes to it.",
        "Left: one window of test text, mean over heads, seed 0, logarithmic colours. Right: share of all attention that "
        f"goes to the prefix, before training (keys and values of real words) and after {r.record['settings']['steps']} "
        f"steps; {len(r.seeds)} seeds.",
        f"Heat map of the attention of {T} tokens, the {P} columns of the prefix at the left, some bright, some dark, and a "
        f"line of its share by layer: before {', '.join(f'{x:.0f}' for x in before)} %, after "
        f"{', '.join(f'{x:.0f}' for x in after)} %.")


def soft_prompts(results):
    r = Results.load(results, "virtual_tokens")
    one = r.record["runs"]["prompt"]["0"]
    order = np.argsort(one["cosine"])[::-1]
    fig, ax = plot.figure(height=4.6)
    same = np.array([a == b for a, b in zip(one["words"], one["started"], strict=True)])
    show = lambda text: f"“{text}”".replace("\n", "⏎").replace("$", r"\$")
    for y, i in enumerate(order):
        star = {"marker": "*", "ms": 9} if same[i] else {"marker": "o"}
        ax.plot(one["cosine"][i], y, color=plot.COLOURS["purple"], ls="none", **star)
    names = [show(one["words"][i]) + ("" if same[i] else f" (was {show(one['started'][i])})") for i in order]
    ax.set_yticks(range(len(order)), names)
    ax.invert_yaxis()
    ax.set(xlim=(0, 1.02), xlabel="cosine with the nearest token's embedding")
    still = [np.mean([a == b for a, b in zip(run["words"], run["started"], strict=True)]) for run in
             r.record["runs"]["prompt"].values()]
    cosine, moved = r.values("prompt", "cosine"), r.values("prompt", "moved")
    return plot.Drawing(
        fig,
        f"Trained prompt vectors move {100 * moved.mean():.0f} % of their length and stay nearest to the word they started as "
        f"in {np.mean(still):.0%} of cases: they are not a readable text.",
        f"The {len(order)} vectors of one prompt (seed 0) with the tokens nearest to them, stars where that is the word they "
        f"started as. Over {len(r.seeds)} seeds the mean cosine is {cosine.mean():.2f}.",
        f"Dots, one for each of {len(order)} prompt vectors: cosine with the nearest token's embedding from "
        f"{min(one['cosine']):.2f} to {max(one['cosine']):.2f}; {int(same.sum())} are still nearest to the word they started "
        "as.")
