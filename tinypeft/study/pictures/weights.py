"""Lessons 10, 12 and 13: rounding weights: a grid, how many weights share a scale, 4-bit formats, GPTQ and AWQ."""
from pathlib import Path

import numpy as np

from ...quant import Uniform
from .. import plot
from ..about import about
from ..experiments import EXPERIMENTS
from ..stored import load

__all__ = ["awq", "formats", "gptq", "gptq_columns", "granularity", "staircase"]


def staircase(results: Path) -> plot.Drawing:
    low, high, bits = -0.6, 1.4, 3
    x = np.linspace(-0.8, 1.6, 2401, dtype=np.float32)
    fig, axes = plot.figure(2, 2, height=4.4, sharex=True, sharey="row", height_ratios=(2, 1))
    steps, worst = [], []
    for column, symmetric, name in zip(axes.T, (True, False), ("symmetric", "asymmetric"), strict=True):
        grid = Uniform(bits, symmetric).grid(low, high)
        rounded, s, zero = grid.round(x[None])[0], grid.scale.item(), int(np.ravel(grid.zero)[0])
        inside = (x >= low) & (x <= high)
        above, below = column
        for ax in column: ax.axvspan(low, high, color="#F2F2F2", lw=0, zorder=0)
        above.plot(x, x, color="#999999", lw=1)
        above.plot(x, rounded, color=plot.COLOURS["blue"])
        above.set_title(f"{name}: s = {s:.3f}, z = {zero}", fontsize=9)
        below.plot(x, rounded - x, color=plot.COLOURS["vermillion"], lw=1)
        for e in (-s / 2, s / 2): below.axhline(e, color="#999999", lw=0.8, ls="--")
        below.set(ylim=(-0.42, 0.42), xlabel="x")
        used = np.unique(rounded[inside]).size
        above.text(0.04, 0.93, f"{used} of {2**bits} levels in use", transform=above.transAxes, va="top")
        steps.append(s)
        worst.append((used, np.abs(rounded - x)[inside].max()))
    axes[0, 0].set_ylabel("rounded x̂")
    axes[1, 0].set_ylabel("error x̂ − x")
    axes[1, 0].text(0.52, steps[0] / 2 + 0.03, "s/2", transform=axes[1, 0].get_yaxis_transform(), va="bottom")
    return plot.Drawing(
        fig,
        "Inside the range no error exceeds half a step. With a zero point all levels serve a lopsided range.",
        f"Numbers between {low:g} and {high:g} (shaded) rounded to {bits} bits; numbers beyond the ends of a grid are "
        "clipped. A symmetric grid must reach as far to the left as to the right.",
        f"Staircases and their sawtooth errors. Symmetric: step {steps[0]:.3f}, {worst[0][0]} of {2**bits} levels used, "
        f"largest error {worst[0][1]:.3f}. Asymmetric: step {steps[1]:.3f}, {worst[1][0]} levels, largest error "
        f"{worst[1][1]:.3f}.")


def granularity(results: Path) -> plot.Drawing:
    r = load(results, "granularity")
    fig, (left, right) = plot.figure(1, 2, height=3.8)
    looks = {8: ("blue", "o"), 4: ("vermillion", "s"), 3: ("orange", "^")}
    bits_of = {c: EXPERIMENTS["granularity"].conditions[c].bits for c in r.conditions}
    looks = {b: look for b, look in looks.items() if b in bits_of.values()}
    for bits, look in looks.items():
        conditions = [c for c in r.conditions if bits_of[c] == bits]
        x = np.array([r.mean(c, "bits") for c in conditions])
        for ax, metric in ((left, "weight_error"), (right, "excess")):
            y = plot.band(ax, x, r, conditions, metric, look, 100 if ax is left else 1)
            if ax is left and bits == max(looks):
                for c, i, offset in (("tensor", 0, (6, 2)), ("group 8", -1, (2, -13))):
                    ax.annotate(c, (x[i], y[i]), xytext=offset, textcoords="offset points", ha="left" if i == 0 else "right",
                                color="#606060")
    left.set(yscale="log", xlabel="bits per weight, scales included", ylabel="error of the weights (%)")
    plot.plain_log(left.yaxis)
    left.margins(y=0.12)
    right.set(xlabel="bits per weight, scales included", ylabel="loss added (nats/token)")
    plot.key(fig, {f"{bits} bits": look for bits, look in looks.items()})
    error = lambda c: f"{100 * r.mean(c, 'weight_error'):.1f} % at {r.mean(c, 'bits'):.2f} bits"
    return plot.Drawing(
        fig,
        "A scale for fewer weights costs bits and gives accuracy: large groups are cheap, small groups are not.",
        "Round to nearest with zero points and 16-bit scales. On each line, from left to right, one scale serves the whole "
        f"tensor, a channel, and groups of 128, 64, 32, 16 and 8 weights. {len(r.seeds)} seeds draw the test text.",
        f"Error of the weights, and loss added, over bits per weight for {', '.join(map(str, looks))} bits. 4 bits: tensor "
        f"{error('4 bits, tensor')}, channel {error('4 bits, channel')}, groups of 32 {error('4 bits, group 32')}, of 8 "
        f"{error('4 bits, group 8')}.")


FORMATS = {"NF4": about("nf4").look, "FP4 E2M1": about("float").look, "int4 asymmetric": ("sky", "v"),
           "int4 symmetric": about("uniform").look, "FP4 bitsandbytes": ("orange", "d"), "FP4 E3M0": ("orange", "^")}


def formats(results: Path) -> plot.Drawing:
    r = load(results, "formats")
    s = r.record["settings"]
    fig, axes = plot.figure(1, 3, height=3.8, sharey=True)
    panels = (("normal", s["blocks"], "normal numbers", "block size"),
              ("weights", s["blocks"], "the base's weights", "block size"),
              ("tails", s["degrees"], f"heavy tails, block {s['block']}", "degrees of freedom of t"))
    for ax, (metric, x, title, label) in zip(axes, panels, strict=True):
        for name, look in FORMATS.items(): plot.band(ax, x, r, name, metric, look, 100, ms=4)
        ax.set_title(title, fontsize=9)
        ax.set(xscale="log", xlabel=label)
        ax.set_xticks(x, map(str, x))
        ax.minorticks_off()
    axes[0].set_ylabel("RMS error (% of RMS)")
    plot.key(fig, FORMATS)
    i = s["blocks"].index(s["block"])
    at = lambda name: f"{100 * r.mean(name, 'normal')[i]:.2f} %"
    return plot.Drawing(
        fig,
        f"On normal numbers NF4 ({at('NF4')}) beats E2M1 ({at('FP4 E2M1')}) and symmetric int4 ({at('int4 symmetric')}), as "
        f"QLoRA says. NF4 does not beat int4 with a zero point ({at('int4 asymmetric')}).",
        f"Relative RMS error of 4-bit formats; {s['numbers']:,} numbers for each of {len(r.seeds)} seeds. Scales have 32 bits, "
        "and the zero points of asymmetric int4 take 4 more bits per block.",
        f"RMS error over block size and tails. Normal numbers, block {s['block']}: " + ", ".join(
            f"{name} {at(name)}" for name in FORMATS) + f". The base's weights, block {s['block']}: " + ", ".join(
            f"{name} {100 * r.mean(name, 'weights')[i]:.2f} %" for name in FORMATS) + ".")


NEAREST, COLUMN_BY_COLUMN = about("uniform").look, about("gptq").look
GPTQ = {("round to nearest", "channel"): NEAREST, ("GPTQ", "channel"): COLUMN_BY_COLUMN,
        ("round to nearest", "group 32"): ("sky", "s", "--"), ("GPTQ", "group 32"): ("vermillion", "v", "--")}


def gptq(results: Path) -> plot.Drawing:
    r = load(results, "gptq")
    fig, axes = plot.figure(1, 3, height=3.7)
    panels = (("weight_error", "error of the weights (%)", 100), ("output_error", "error of the outputs (%)", 100),
              ("excess", "loss added (nats/token)", 1))
    bits = 4, 3, 2
    name = lambda variant, b, grid="channel": f"{variant}, {b} bits, {grid}"
    for ax, (metric, label, scale) in zip(axes, panels, strict=True):
        for (variant, grid), look in GPTQ.items():
            plot.band(ax, bits, r, [name(variant, b, grid) for b in bits], metric, look, scale)
        ax.set(yscale="log", ylabel=label, xlabel="bits", xlim=(4.2, 1.8))
        ax.set_xticks(bits)
        plot.plain_log(ax.yaxis)
    plot.key(fig, {f"{variant}, {grid.replace('group', 'groups of')}": look for (variant, grid), look in GPTQ.items()}, 2)
    at = lambda v, b, m: f"{100 * r.mean(name(v, b), m):.0f} %"
    both = lambda b, m: f"{at('round to nearest', b, m)} to {at('GPTQ', b, m)}"
    added = lambda v: f"{r.mean(name(v, 3, 'group 32'), 'excess'):.3f}"
    return plot.Drawing(
        fig,
        "GPTQ makes the error of the weights larger and the error of the outputs smaller: at 3 bits "
        "with a scale per channel the former goes from "
        f"{both(3, 'weight_error')}, the latter from {both(3, 'output_error')}.",
        "A scale and zero point per output channel or per group of 32, with the same grids for both. Errors are means over the "
        f"base's layers, on test text. {len(r.seeds)} seeds draw calibration and test text. At 3 bits in groups the loss "
        f"added is {added('round to nearest')} for round to nearest, {added('GPTQ')} for GPTQ and {added('GPTQ, act-order')} "
        "for GPTQ in act-order.",
        "Three panels over 4, 3 and 2 bits; round to nearest to GPTQ, per channel. Weights: " + ", ".join(
            both(b, "weight_error") for b in bits) + ". Outputs: " + ", ".join(
            both(b, "output_error") for b in bits) + ". Loss added: " + ", ".join(
            f"{r.mean(name('round to nearest', b), 'excess'):.3f} to {r.mean(name('GPTQ', b), 'excess'):.3f}"
            for b in bits) + " nats per token.")


def gptq_columns(results: Path) -> plot.Drawing:
    r = load(results, "gptq_columns")
    moments = r.record["settings"]["moments"]
    fig = plot.figure(height=5.2)[0]
    fig.clear()
    grid = fig.add_gridspec(3, len(moments), height_ratios=(1, 1, 1.3))
    frames = {c: r.values(c, "frames")[0] for c in ("round to nearest", "GPTQ")}
    top = max(f.max() for f in frames.values())
    for row, (condition, pictures) in enumerate(frames.items()):
        for column, (frame, moment) in enumerate(zip(pictures, moments, strict=True)):
            ax = fig.add_subplot(grid[row, column])
            image = ax.imshow(frame, cmap="cividis", vmin=0, vmax=0.6 * top, aspect="auto", interpolation="nearest")
            ax.grid(False)
            ax.set_title(f"after {moment} columns" if row == 0 else "", fontsize=9)
            ax.set(xticks=[], yticks=[])
            if column == 0: ax.set_ylabel(condition)
    fig.colorbar(image, ax=fig.axes, label="|Ŵ − W|", pad=0.01)
    ax = fig.add_subplot(grid[2, :])
    for condition, (colour, marker) in {"round to nearest": NEAREST, "GPTQ": COLUMN_BY_COLUMN}.items():
        y = 100 * r.values(condition, "output_error")[0]
        ax.plot(np.arange(len(y)), y, color=plot.COLOURS[colour], marker=marker, markevery=16, ms=5)
        above = condition != "GPTQ"
        ax.annotate(condition, (80, y[80]), xytext=(-6, 8) if above else (8, -12), textcoords="offset points",
                    ha="right" if above else "left", color=plot.ink(plot.COLOURS[colour]))
    ax.set(xlabel="columns rounded", ylabel="error of the output (%)", xlim=(0, None), ylim=(0, None))
    said = {c: (100 * r.values(c, "weight_error")[0], 100 * r.values(c, "output_error")[0][-1]) for c in frames}
    return plot.Drawing(
        fig,
        "GPTQ moves the columns that are not rounded yet, to compensate for the rounded ones: errors spread over the weights "
        "and cancel in the output.",
        f"One layer (blocks.2.mlp.up, the first {r.record['settings']['rows']} rows) rounded to "
        f"{r.record['settings']['bits']} bits column after column; one seed.",
        f"Heat maps of |Ŵ − W| after {', '.join(map(str, moments))} columns, and the error of the output. Round to nearest "
        "leaves later columns untouched, GPTQ moves them all. At the end: " + "; ".join(
            f"{c}: weights {w:.1f} %, output {o:.1f} %" for c, (w, o) in said.items()) + ".")


AWQ = {"round to nearest": NEAREST, "1 % at random": ("grey", "s"), "1 % by weight": ("orange", "d"),
       "1 % by activation": ("vermillion", "^"), "AWQ without clipping": ("green", "<"), "AWQ": about("awq").look}


def awq(results: Path) -> plot.Drawing:
    r = load(results, "awq")
    fig, axes = plot.figure(1, 2, height=2.8, sharey=True)
    for ax, where in zip(axes, ("as it is", "planted"), strict=True):
        for y, (name, (colour, marker)) in enumerate(AWQ.items()):
            ax.errorbar(r.mean(f"{name}, {where}", "excess"), y, xerr=r.interval(f"{name}, {where}", "excess"),
                        color=plot.COLOURS[colour], marker=marker, ms=6)
        ax.set_title(where, fontsize=9)
        ax.set(xlabel="loss added (nats/token)", xlim=(0, None))
    axes[0].set_yticks(range(len(AWQ)), AWQ)
    axes[0].invert_yaxis()
    at = lambda name, where="as it is": f"{r.mean(f'{name}, {where}', 'excess'):.3f}"
    nearest = r.values("round to nearest, planted", "excess")
    return plot.Drawing(
        fig,
        f"With planted outliers round to nearest costs {at('round to nearest', 'planted')} nats on average "
        f"({np.median(nearest):.2f} in the median draw, {nearest.max():.2f} in the worst); keeping 1 % of the channels leaves "
        f"{at('1 % by activation', 'planted')} if "
        f"they are chosen by activation and {at('1 % by weight', 'planted')} if by weight; AWQ keeps none and leaves "
        f"{at('AWQ', 'planted')}.",
        f"3 bits in groups of 32, asymmetric; the base as it is, and with {r.record['settings']['channels']} features of every "
        f"norm's output planted at {r.record['settings']['factor']} times their size; {len(r.seeds)} seeds.",
        "Loss added, in nats per token. " + " ".join(f"{where.capitalize()}: " + ", ".join(
            f"{name} {at(name, where)}" for name in AWQ) + "." for where in ("as it is", "planted")))
