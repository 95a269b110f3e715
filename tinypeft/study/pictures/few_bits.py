"""Lessons 13 to 15: QLoRA, LoftQ, training with rounded weights, and all schemes side by side."""
from pathlib import Path

import numpy as np

from .. import plot
from ..about import about, name_of
from ..bases import SIZES, draws_of
from ..compared import COMPARED_SCHEMES
from ..experiments import EXPERIMENTS
from ..markdown import listed, pm
from ..stored import load

__all__ = ["bits_vs_parameters", "loftq", "qat", "qlora", "schemes"]


def qlora(results: Path) -> plot.Drawing:
    r = load(results, "qlora")
    looks = {"before": ("grey", "o", "none"), "after": ("blue", "o", "none"), "merged_into_16_bits": ("orange", "^", "none"),
             "merged_and_rounded": ("black", "s", "none")}
    labels = ("before", "after: kept apart, or merged in 16 bits", "merged into the weights before rounding",
              "merged, then rounded again")
    fig, ax = plot.figure(height=3.6)
    has = lambda base, metric: all(metric in run for run in r.record["runs"][base].values())
    shown = [(base, m) for base in r.conditions for m in looks if has(base, m)]
    for y, base in enumerate(r.conditions):
        there = [m for m in looks if has(base, m)]
        means = [r.mean(base, m) for m in there]
        ax.plot([min(means), max(means)], [y, y], color="#CCCCCC", lw=1, zorder=1)
        for metric, mean in zip(there, means, strict=True):
            hollow = {"mfc": "white"} if metric == "before" else {}
            ax.errorbar(mean, y, xerr=r.interval(base, metric, shown), ms=7, **plot.line(looks[metric]) | hollow)
    ax.axvline(r.mean("16 bits", "after"), color=plot.COLOURS["grey"], lw=1, ls="--")
    ax.set_yticks(range(len(r.conditions)), r.conditions)
    ax.invert_yaxis()
    ax.set(xlabel="test loss (nats/token)", ylabel="the frozen base in")
    ax.margins(y=0.12)
    plot.key(fig, dict(zip(labels, looks.values(), strict=True)), 2, ("before",))
    gap = pm(*r.difference("NF4", "16 bits", "after"))
    lost = pm(*r.difference("NF4", "NF4", "merged_and_rounded", of_b="after"))
    return plot.Drawing(
        fig,
        f"A LoRA learns as well on four bits as on sixteen, within {gap} nats. If it is merged and rounded again, {lost} nats "
        "are lost.",
        f"Test loss on *domain* before and after {r.record['settings']['steps']} steps of a LoRA of rank "
        f"{EXPERIMENTS['qlora'].conditions['16 bits'].method.rank} on all layers, each at its best learning rate. Dashed: "
        f"after training on the 16-bit base. {len(r.seeds)} seeds.",
        "Dots per base. " + " ".join(
            f"{c}: {listed({m.replace('_', ' '): r.mean(c, m) for m in looks if has(c, m)})}." for c in r.conditions))


def loftq(results: Path) -> plot.Drawing:
    r = load(results, "loftq")
    bases, longer, steps = ["NF4", "4 bits", "3 bits", "2 bits"], ["3 bits", "2 bits"], r.record["settings"]["steps"]
    fig, axes = plot.figure(1, 2, height=3.5)
    looks = {"QLoRA": about("qlora").look, "LoftQ": about("loftq").look}
    for ax, metric in zip(axes, ("before", "after"), strict=True):
        for method, look in looks.items():
            plot.band(ax, range(len(bases)), r, [f"{method}, {b}" for b in bases], metric, look)
            if metric == "after":
                plot.band(ax, list(map(bases.index, longer)), r, [f"{method}, {b}, {2 * steps} steps" for b in longer], metric,
                          look, mfc="white", ls=":")
        plot.reference_line(ax, r.mean("LoRA, 16 bits", metric), "16 bits")
        ax.set_xticks(range(len(bases)), bases)
        ax.margins(y=0.12)
        ax.set_title(f"{metric} training")
    axes[0].set_ylabel("test loss (nats/token)")
    plot.key(fig, {"QLoRA: starts at zero": looks["QLoRA"], "LoftQ: starts at what rounding lost": looks["LoftQ"]})
    gain = lambda base: pm(*r.difference(f"QLoRA, {base}", f"LoftQ, {base}", "after"))
    loss = lambda method, base: listed({m: r.mean(f"{method}, {base}", m) for m in ("before", "after")})
    return plot.Drawing(
        fig,
        f"LoftQ starts a LoRA at the rounding error, and the fewer the bits, the more this helps: it ends {gain('2 bits')} "
        f"nats lower than QLoRA at 2 bits and {gain('4 bits')} at 4 bits.",
        f"A LoRA of rank {EXPERIMENTS['loftq'].conditions['LoRA, 16 bits'].method.rank} on all layers of a rounded base (NF4; "
        f"integers in groups of 32, asymmetric), before and after {steps} steps on *domain*, each at its best learning rate. "
        f"Hollow: after {2 * steps} steps at the same rate. {len(r.seeds)} seeds.",
        "Lines over the base's bits. "
        + " ".join(f"{b}: QLoRA {loss('QLoRA', b)}; LoftQ {loss('LoftQ', b)}." for b in bases) + f" After {2 * steps} steps: "
        + " ".join(f"{b}: {listed({m: r.mean(f'{m}, {b}, {2 * steps} steps', 'after') for m in looks})}." for b in longer))


QAT = "round to nearest", "GPTQ", "PEQA", "LLM-QAT", "STE", "LSQ"


def qat(results: Path) -> plot.Drawing:
    """A row for each way, a panel for each width; both panels have an axis of their own."""
    r, floor = load(results, "qat"), "float32, trained as long"
    bits = 3, 2
    found = {b: {name: r.difference(f"{name}, {b} bits", floor, "excess") for name in QAT} for b in bits}
    fig, axes = plot.figure(1, len(bits), height=2.8, sharey=True)
    order = sorted(QAT, key=lambda name: -found[bits[-1]][name][0])
    for ax, b in zip(axes, bits, strict=True):
        mean, half = zip(*map(found[b].get, order), strict=True)
        ax.errorbar(mean, range(len(order)), xerr=half, ms=7, ls="none", color=plot.COLOURS["blue"], marker="o")
        ax.axvline(0, color=plot.COLOURS["grey"], lw=1, ls="--")
        ax.set_title(f"{b} bits")
        ax.margins(x=0.08, y=0.12)
    axes[0].set_yticks(range(len(order)), order)
    axes[0].invert_yaxis()
    fig.supxlabel("loss above float32 (nats/token)", fontsize=9)
    best, at = order[-1], bits[-1]
    return plot.Drawing(
        fig,
        f"Training moves rounded weights to better places: at {at} bits round to nearest costs "
        f"{found[at]['round to nearest'][0]:.2f} nats, GPTQ, without training, {found[at]['GPTQ'][0]:.2f}, and {best} "
        f"{found[at][best][0]:.2f}.",
        "All use one kind of grid, with a scale and a zero point per output channel (LLM-QAT's is symmetric). Training takes "
        f"{r.record['settings']['steps']} steps on the base's own text, or on text that the base writes (LLM-QAT). The loss is "
        f"that above a float32 model trained as long, with 95 % intervals; {len(r.seeds)} seeds. The two axes differ.",
        "Dots with intervals. " + " ".join(
            f"{b} bits: {', '.join(f'{name} {pm(*found[b][name])}' for name in QAT)}." for b in bits))


def schemes(results: Path) -> plot.Drawing:
    """A row for each scheme, from many bits to few: the loss that it adds, and what it stores."""
    r = load(results, "schemes")
    names = {label: name_of(scheme) for label, scheme in COMPARED_SCHEMES.items()}
    x, y = ({c: r.mean(c, metric) for c in r.conditions} for metric in ("bits", "excess"))
    front = [c for c in x if not any(x[o] <= x[c] and y[o] < y[c] for o in x)]
    rows = sorted(x, key=lambda c: (-x[c], y[c]))
    fig, (left, right) = plot.figure(1, 2, height=0.7 + 0.21 * len(rows), width_ratios=(2.4, 1), sharey=True)
    for row, c in enumerate(rows):
        look = plot.mark(names[c]) | ({"mfc": "white"} if c.endswith("*") else {})
        left.errorbar(y[c], row, xerr=r.interval(c, "excess"), ls="none", ms=6, **look)
        right.barh(row, x[c], color="#C8C8C8", height=0.6)
        plot.note(right, (x[c], row), f"{x[c]:.2f}", (4, 0), "black")
        if c in front:
            for ax in (left, right): ax.axhspan(row - 0.5, row + 0.5, color="#E8F1F8", lw=0, zorder=0)
    left.axvline(0, color=plot.COLOURS["grey"], lw=1, ls="--")
    left.set_yticks(range(len(rows)), rows)
    left.set(xlabel="loss added (nats/token)", ylim=(len(rows) - 0.4, -0.6))
    right.set(xlabel="bits per weight", xlim=(0, 11))
    right.grid(False)
    four = min((c for c in x if 4 <= x[c] < 5 and not c.endswith("*")), key=y.get)
    return plot.Drawing(
        fig,
        f"Eight bits cost almost nothing, four bits cost {y[four]:.3f} nats at best ({four}), and the best schemes at three "
        "bits calibrate or train.",
        "Loss added to the base on held-out text of the kind it was trained on. Hollow: trained for "
        f"{r.record['settings']['steps']} steps. Rows on blue: schemes that no other scheme beats in both bits and loss. "
        f"{len(r.seeds)} seeds draw calibration, batches and test text.",
        "A row for each scheme, with the loss added and the bits per weight: " + ", ".join(
            f"{c} {x[c]:.2f} bits {y[c]:+.3f}" for c in sorted(x, key=x.get, reverse=True)) + ".")


def bits_vs_parameters(results: Path) -> plot.Drawing:
    """A thin line for each base, a thick one for the mean of its size."""
    r = load(results, "bits_vs_parameters")
    bits = 16, 8, 4, 3, 2
    bases = {size: [b for b in draws_of(size) if f"{b}, {bits[0]} bits" in r.conditions] for size in SIZES}
    looks = dict(zip(SIZES, (("orange", "^"), ("sky", "s"), ("blue", "o")), strict=True))
    fig, (left, right) = plot.figure(1, 2, height=3.8, sharey=True)
    loss = {size: np.array([[r.mean(f"{base}, {b} bits", "loss") for b in bits] for base in bases[size]]) for size in SIZES}
    of_size = lambda size, metric: np.array([float(r.mean(f"{size}, {b} bits", metric)) for b in bits])
    for ax, metric in ((left, "matrices"), (right, "bytes")):
        for size, look in looks.items():
            x = of_size(size, metric) / 1024
            for each in loss[size]: ax.plot(x, each, ms=2, lw=0.8, alpha=0.5, **plot.line(look))
            ax.plot(x, loss[size].mean(0), ms=6, **plot.line(look))
            if ax is right or size != SIZES[-1]: continue
            for b, at, y in zip(bits, x, loss[size].mean(0), strict=True):
                plot.note(ax, (at, y), f"{b} bits" if b == bits[-1] else str(b), (3, 3))
        plot.plain_log(ax.xaxis)
    left.set(xlabel="KiB of the matrices", ylabel="loss (nats/token)")
    right.set(xlabel="KiB in all, embeddings in 16 bits")
    left.margins(y=0.12)
    parameters = {s: r.mean(f"{s}, {bits[0]} bits", "parameters") for s in SIZES}
    plot.key(fig, {f"{parameters[s]:,.0f} parameters": look for s, look in looks.items()})
    small, large = SIZES[-2:]
    at = lambda s, b: (f"{loss[s].mean(0)[bits.index(b)]:.3f} nats with {of_size(s, 'matrices')[bits.index(b)] / 1024:.0f} KiB "
                       f"of matrices at {b} bits")
    counts = ", ".join(f"{len(bases[s])} of {parameters[s]:,.0f}" for s in SIZES)
    return plot.Drawing(
        fig,
        f"The base of {parameters[large]:,.0f} parameters has {at(large, 3)}, and {at(large, 2)}. The base of "
        f"{parameters[small]:,.0f} has {at(small, 16)}.",
        f"Bases trained for as long on the same text, their matrices at {', '.join(str(b) for b in bits)} bits (GPTQ, groups "
        f"of {r.record['settings']['group_size']}); {counts} parameters. Thin lines are single bases, thick ones their mean; "
        f"{len(r.seeds)} seeds draw calibration and test text.",
        "Loss over memory, one line for each size. " + " ".join(
            f"{parameters[s]:,.0f} parameters: "
            f"{listed({f'{b} bits': x for b, x in zip(bits, loss[s].mean(0), strict=True)})}." for s in SIZES))
