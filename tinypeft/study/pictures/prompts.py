"""Lessons 05 and 06: virtual tokens: what their number and their place give, and how far they are from words."""
from pathlib import Path

import numpy as np

from .. import plot
from ..about import about
from ..bases import SIZES, draws_of
from ..effects import Effect, read
from ..experiment import Results
from ..experiments import EXPERIMENTS
from ..markdown import listed, pm
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
        "nearest token is the word from which it started. ⏎ is the end of a line, and � a part of a letter. The mean cosine "
        f"over all seeds is {cosine.mean():.2f}.",
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
    names = {"full": "full fine-tuning", **{name: about(name).short for name in ("ptuning_v2", "prompt")}}
    fig, (left, right) = plot.figure(1, 2, height=3.5)
    x = [r.mean(f"full {s}", "parameters") for s in SIZES]
    left.plot(x, [r.mean(f"full {s}", "before") for s in SIZES], color=plot.COLOURS["grey"], ls="--", lw=1)
    shares = {}
    for name in names:
        look = plot.line(about(name).look)
        left.plot(x, [r.mean(f"{name} {s}", "loss") for s in SIZES], ms=7, **look)
        if name == "full": continue
        shares[name] = [np.array([of_full(r, f"{name} {b}", f"full {b}").mean for b in bases[s]]) for s in SIZES]
        for at, each in zip(x, shares[name], strict=True):
            right.plot([at] * len(each), 100 * each, ms=4, alpha=0.45, **look | {"ls": "none"})
        right.plot(x, [100 * each.mean() for each in shares[name]], ms=7, **look)
    plot.note(left, (x[0], r.mean(f"full {SIZES[0]}", "before")), "frozen", (2, 5))
    for ax in (left, right):
        ax.set(xlabel="parameters of the base")
        plot.plain_log(ax.xaxis)
        ax.margins(x=0.1)
    left.set(ylabel="test loss (nats/token)")
    right.set(ylim=(0, None), title="% of full fine-tuning's gain")
    plot.key(fig, {label: about(name).look for name, label in names.items()})
    shallow, deep = (", ".join(f"{100 * each.mean():.0f} %" for each in shares[name]) for name in ("prompt", "ptuning_v2"))
    counts = ", ".join(f"{len(bases[s])} of {n:,.0f}" for s, n in zip(SIZES, x, strict=True))
    return plot.Drawing(
        fig,
        f"From the smallest bases to the largest, a prompt at the input reaches {shallow} of full fine-tuning's gain, and "
        f"prompts in every layer reach {deep}.",
        f"Left: the shipped base of each size. Right: a pale mark for each base ({counts} parameters), and a line through the "
        f"mean of each size. All bases were trained on the same text; {r.record['settings']['steps']} steps on *domain*, "
        f"prompts of length 20, P-tuning v2 without dropout; {len(r.seeds)} seeds each.",
        "Test loss and share of the gain over the base's size. " + " ".join(
            f"{n:,.0f} parameters: before {r.mean(f'full {s}', 'before'):.2f}, "
            + listed({label: r.mean(f"{name} {s}", "loss") for name, label in names.items()}, ".2f") + "; "
            + ", ".join(f"{names[name]} {' / '.join(f'{e:.0%}' for e in shares[name][i])}" for name in shares) + "."
            for i, (n, s) in enumerate(zip(x, SIZES, strict=True))))


def prefix_length(results: Path) -> plot.Drawing:
    r = load(results, "prefix_length")
    lengths = sorted({EXPERIMENTS["prefix_length"].conditions[c].method.length for c in r.conditions})
    by_kind = {kind: [P for P in lengths if f"{kind} {P}" in r.conditions] for kind in ("prompt", "prefix")}
    fig, ax = plot.figure(height=3.4)
    mean = {kind: plot.band(ax, at, r, [f"{kind} {P}" for P in at], "loss", about(kind).look, ms=7)
            for kind, at in by_kind.items()}
    ax.set(xlabel="virtual tokens P", ylabel="test loss (nats/token)")
    plot.plain_log(ax.xaxis, lengths)
    plot.label_ends(ax, [(by_kind[kind][-1], mean[kind][-1], f"{kind}: {where}", plot.mark(kind)["color"])
                         for kind, where in (("prompt", "embeddings only"), ("prefix", "every layer"))])
    ahead = lambda prompt, prefix: pm(*r.difference(f"prompt {prompt}", f"prefix {prefix}", "loss"))
    long, short = 100, 10                                # with as many numbers: a prefix has 2 vectors for each of 5 layers
    return plot.Drawing(
        fig,
        f"Virtual tokens in every layer help more than at the input alone: with {lengths[1]} of them by "
        f"{ahead(lengths[1], lengths[1])} nats. With as many numbers, {long} at the input and {short} in every layer, by "
        f"{ahead(long, short)}.",
        f"Test loss on *domain* after {r.record['settings']['steps']} steps, each at its best learning rate; {len(r.seeds)} "
        "seeds.",
        "Two lines over the number of virtual tokens. " + " ".join(
            f"{kind.capitalize()}: {', '.join(f'P = {P} {m:.3f}' for P, m in zip(by_kind[kind], mean[kind], strict=True))}."
            for kind in by_kind))
