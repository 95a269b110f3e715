"""Lessons 05 and 06: virtual tokens: what their number and their place give, and how far they are from words."""
from pathlib import Path

import numpy as np

from .. import plot
from ..about import about
from ..bases import SIZES, draws_of
from ..effects import Effect, read
from ..experiment import Results
from ..experiments import EXPERIMENTS
from ..stored import load

__all__ = ["prefix_length", "prompt_sizes", "soft_prompts"]


def soft_prompts(results: Path) -> plot.Drawing:
    r = load(results, "virtual_tokens")
    stays = {seed: np.mean([a == b for a, b in zip(run["words"], run["started"], strict=True)])
             for seed, run in r.record["runs"]["prompt"].items()}
    still = np.mean(list(stays.values()))
    typical = min(stays, key=lambda seed: abs(stays[seed] - still))
    one = r.record["runs"]["prompt"][typical]
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
    cosine, moved = r.values("prompt", "cosine"), r.values("prompt", "moved")
    return plot.Drawing(
        fig,
        f"Trained prompt vectors are not a readable text: over {len(r.seeds)} seeds they move by {100 * moved.mean():.0f} % of "
        f"their length, yet {still:.0%} of them stay nearest to the word from which they started.",
        f"The {len(order)} vectors of one prompt (seed {typical}) with the token nearest to each; a star marks a vector whose "
        f"nearest token is the word from which it started. The mean cosine over all seeds is {cosine.mean():.2f}.",
        f"Dots, one for each of {len(order)} prompt vectors: cosine with the nearest token's embedding, from "
        f"{min(one['cosine']):.2f} to {max(one['cosine']):.2f}. {int(same.sum())} vectors are still nearest to the word from "
        "which they started.")


def of_full(r: Results, condition: str, full: str) -> Effect:
    """The share of full fine-tuning's gain that a condition reaches."""
    return (read(r, condition, "gain") / read(r, full, "gain")).effect


def prompt_sizes(results: Path) -> plot.Drawing:
    """Losses on the shipped bases at the left, shares of full fine-tuning's gain on all bases at the right."""
    r = load(results, "prompts")
    bases = {size: [b for b in draws_of(size) if f"full {b}" in r.conditions] for size in SIZES}
    looks = {"full": (*about("full").look, "full fine-tuning"),
             **{name: (*about(name).look, about(name).short) for name in ("ptuning_v2", "prompt")}}
    fig, (left, right) = plot.figure(1, 2, height=3.5)
    x = [r.mean(f"full {s}", "parameters") for s in SIZES]
    left.plot(x, [r.mean(f"full {s}", "before") for s in SIZES], color=plot.COLOURS["grey"], ls="--", lw=1)
    shares = {}
    for name, (colour, marker, _) in looks.items():
        left.plot(x, [r.mean(f"{name} {s}", "loss") for s in SIZES], color=plot.COLOURS[colour], marker=marker, ms=7)
        if name == "full": continue
        shares[name] = [np.array([of_full(r, f"{name} {b}", f"full {b}").mean for b in bases[s]]) for s in SIZES]
        for at, each in zip(x, shares[name], strict=True):
            right.plot([at] * len(each), 100 * each, marker, color=plot.COLOURS[colour], ms=4, alpha=0.45)
        right.plot(x, [100 * each.mean() for each in shares[name]], color=plot.COLOURS[colour], marker=marker, ms=7)
    left.annotate("frozen", (x[0], r.mean(f"full {SIZES[0]}", "before")), xytext=(2, 5), textcoords="offset points",
                  color="#606060")
    for ax in (left, right):
        ax.set(xscale="log", xlabel="parameters of the base")
        plot.count_axis(ax.xaxis)
        ax.margins(x=0.1)
    left.set(ylabel="test loss (nats/token)")
    right.set(ylim=(0, None))
    right.set_title("% of full fine-tuning's gain", fontsize=9)
    plot.key(fig, {text: look for *look, text in looks.values()})
    shallow, deep = (", ".join(f"{100 * each.mean():.0f} %" for each in shares[name]) for name in ("prompt", "ptuning_v2"))
    counts = ", ".join(f"{len(bases[s])} of {n:,.0f}" for s, n in zip(SIZES, x, strict=True))
    return plot.Drawing(
        fig,
        f"From the smallest bases to the largest, a prompt at the input reaches {shallow} of full fine-tuning's gain, and "
        f"prompts in every layer reach {deep}.",
        f"Left: the shipped base of each size. Right: a pale mark for each base ({counts} parameters), a line through their "
        f"means. All bases were trained on the same text; {r.record['settings']['steps']} steps on *domain*, prompts of length "
        f"20, P-tuning v2 without dropout; {len(r.seeds)} seeds each.",
        "Test loss and share of the gain over the base's size. " + " ".join(
            f"{n:,.0f} parameters: before {r.mean(f'full {s}', 'before'):.2f}, " + ", ".join(
                f"{text} {r.mean(f'{name} {s}', 'loss'):.2f}" for name, (*_, text) in looks.items()) + "; "
            + ", ".join(f"{looks[name][-1]} {' / '.join(f'{e:.0%}' for e in shares[name][i])}" for name in shares) + "."
            for i, (n, s) in enumerate(zip(x, SIZES, strict=True))))


def prefix_length(results: Path) -> plot.Drawing:
    r = load(results, "prefix_length")
    lengths = sorted({EXPERIMENTS["prefix_length"].conditions[c].method.length for c in r.conditions})
    by_kind = {kind: [P for P in lengths if f"{kind} {P}" in r.conditions] for kind in ("prompt", "prefix")}
    fig, ax = plot.figure(height=3.4)
    looks, mean = {kind: about(kind).look for kind in ("prompt", "prefix")}, {}
    for kind, look in looks.items():
        mean[kind] = plot.band(ax, by_kind[kind], r, [f"{kind} {P}" for P in by_kind[kind]], "loss", look, ms=7)
    ax.set(xscale="log", xlabel="virtual tokens P", ylabel="test loss (nats/token)")
    ax.set_xticks(lengths, map(str, lengths))
    ax.minorticks_off()
    plot.label_ends(ax, [(by_kind["prompt"][-1], mean["prompt"][-1], "prompt: embeddings only", plot.COLOURS["purple"]),
                         (by_kind["prefix"][-1], mean["prefix"][-1], "prefix: every layer", plot.COLOURS["green"])])
    gap, half = r.difference(f"prompt {lengths[1]}", f"prefix {lengths[1]}", "loss")
    long, short = 100, 10                                # with as many numbers: a prefix has 2 vectors for each of 5 layers
    equal, of_equal = r.difference(f"prompt {long}", f"prefix {short}", "loss")
    return plot.Drawing(
        fig,
        f"Virtual tokens in every layer help more than at the input alone: with {lengths[1]} of them by {gap:.3f} ± {half:.3f} "
        f"nats. With as many numbers, {long} at the input and {short} in every layer, by {equal:.3f} ± {of_equal:.3f}.",
        f"Test loss on *domain* after {r.record['settings']['steps']} steps, each at its best learning rate; "
        f"{len(r.seeds)} seeds.",
        "Two lines over the number of virtual tokens. " + " ".join(
            f"{kind.capitalize()}: {', '.join(f'P = {P} {m:.3f}' for P, m in zip(by_kind[kind], mean[kind], strict=True))}."
            for kind in looks))
