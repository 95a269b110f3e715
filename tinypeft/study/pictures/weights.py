"""Lessons 10, 12 and 13: rounding weights: a grid, how many weights share a scale, 4-bit formats, GPTQ and AWQ."""
from pathlib import Path

import numpy as np

from ...quant import Uniform
from .. import plot
from ..about import about
from ..experiments import EXPERIMENTS
from ..markdown import listed
from ..stored import load

__all__ = ["awq", "formats", "gptq", "gptq_columns", "granularity", "staircase"]


def staircase(results: Path) -> plot.Drawing:
    low, high, bits = -0.6, 1.4, 3
    x = np.linspace(-0.8, 1.6, 2401, dtype=np.float32)
    fig, axes = plot.figure(2, 2, height=4.4, sharex=True, sharey="row", height_ratios=(2, 1))
    said = []
    for column, symmetric, name in zip(axes.T, (True, False), ("symmetric", "asymmetric"), strict=True):
        grid = Uniform(bits, symmetric).grid(low, high)
        rounded, s, zero = grid.round(x[None])[0], grid.scale.item(), int(np.ravel(grid.zero)[0])
        inside = (x >= low) & (x <= high)
        above, below = column
        for ax in column: ax.axvspan(low, high, color="#F2F2F2", lw=0, zorder=0)
        above.plot(x, x, color="#999999", lw=1)
        above.plot(x, rounded, color=plot.COLOURS["blue"])
        above.set_title(f"{name}: s = {s:.3f}, z = {zero}")
        below.plot(x, rounded - x, color=plot.COLOURS["vermillion"], lw=1)
        for e in (-s / 2, s / 2): below.axhline(e, color="#999999", lw=0.8, ls="--")
        below.set(ylim=(-0.42, 0.42), xlabel="x")
        used = np.unique(rounded[inside]).size
        above.text(0.04, 0.93, f"{used} of {2**bits} levels in use", transform=above.transAxes, va="top")
        plot.note(below, (0.6, s / 2), "s/2", (0, 2), "black")
        said.append(f"{name.capitalize()}: step {s:.3f}, {used} of {2**bits} levels used, largest error "
                    f"{np.abs(rounded - x)[inside].max():.3f}.")
    axes[0, 0].set_ylabel("rounded x̂")
    axes[1, 0].set_ylabel("error x̂ − x")
    return plot.Drawing(
        fig,
        "Inside the range no error exceeds half a step. With a zero point all levels serve a lopsided range.",
        f"Numbers between −{-low:g} and {high:g} (shaded) rounded to {bits} bits; numbers beyond the ends of a grid are "
        "clipped. A symmetric grid must reach as far to the left as to the right.",
        f"Staircases and their sawtooth errors. {' '.join(said)}")


def granularity(results: Path) -> plot.Drawing:
    r = load(results, "granularity")
    fig, (left, right) = plot.figure(1, 2, height=3.8)
    looks = {4: ("vermillion", "s"), 3: ("orange", "^")}
    for bits, look in looks.items():
        conditions = [c for c in r.conditions if EXPERIMENTS["granularity"].conditions[c].bits == bits]
        x = np.array([r.mean(c, "bits") for c in conditions])
        for ax, metric in ((left, "weight_error"), (right, "excess")):
            y = plot.band(ax, x, r, conditions, metric, look, 100 if ax is left else 1)
            if ax is left and bits == max(looks):
                plot.note(ax, (x[0], y[0]), "one scale", (6, 2))
                plot.note(ax, (x[-1], y[-1]), "groups of 8", (-1, -6))
    left.set(xlabel="bits per weight, scales included", ylabel="error of the weights (%)")
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
    panels = (("normal", s["blocks"], "normal numbers", "numbers in a block"),
              ("weights", s["blocks"], "the base's weights", "weights in a block"),
              ("tails", s["degrees"], f"heavy tails, block {s['block']}", "degrees of freedom of t"))
    for ax, (metric, x, title, label) in zip(axes, panels, strict=True):
        for name, look in FORMATS.items(): plot.band(ax, x, r, name, metric, look, 100, ms=4)
        ax.set(title=title, xlabel=label)
        plot.plain_log(ax.xaxis, x)
    axes[0].set_ylabel("RMS error (% of RMS)")
    plot.key(fig, FORMATS)
    i = s["blocks"].index(s["block"])
    errors = {metric: {name: 100 * r.mean(name, metric)[i] for name in FORMATS} for metric in ("normal", "weights")}
    at = lambda name: f"{errors['normal'][name]:.2f} %"
    return plot.Drawing(
        fig,
        f"On normal numbers NF4 ({at('NF4')}) beats E2M1 ({at('FP4 E2M1')}) and symmetric int4 ({at('int4 symmetric')}), as "
        f"QLoRA says. On them it does not beat int4 with a zero point ({at('int4 asymmetric')}).",
        f"Relative RMS error of 4-bit formats; {s['numbers']:,} numbers for each of {len(r.seeds)} seeds. Scales have 32 bits, "
        "and the zero points of asymmetric int4 take 4 more bits per block.",
        f"RMS error over block size and tails. In blocks of {s['block']}: normal numbers, "
        f"{listed(errors['normal'], '.2f', ' %')}; the base's weights, {listed(errors['weights'], '.2f', ' %')}.")


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
        ax.set(ylabel=label, xlabel="bits", xlim=(4.2, 1.8))
        ax.set_xticks(bits)
        plot.plain_log(ax.yaxis)
    plot.key(fig, {f"{variant}, {grid.replace('group', 'groups of')}": look for (variant, grid), look in GPTQ.items()}, 2)
    at = lambda v, b, m: f"{100 * r.mean(name(v, b), m):.0f} %"
    both = lambda b, m: f"{at('round to nearest', b, m)} to {at('GPTQ', b, m)}"
    excess = lambda v, b, grid="channel": f"{r.mean(name(v, b, grid), 'excess'):.3f}"
    added = lambda v: excess(v, 3, "group 32")
    return plot.Drawing(
        fig,
        "GPTQ makes the error of the weights larger and the error of the outputs smaller. At 3 bits with a scale per channel "
        f"that of the weights goes from {both(3, 'weight_error')}, and that of the outputs from {both(3, 'output_error')}.",
        "A scale and zero point per output channel or per group of 32, with the same grids for both. Errors are means over "
        f"the base's layers, on test text. {len(r.seeds)} seeds draw calibration and test text. At 3 bits in groups the loss "
        f"added is {added('round to nearest')} for round to nearest, {added('GPTQ')} for GPTQ and {added('GPTQ, act-order')} "
        "for GPTQ in act-order.",
        "Three panels over 4, 3 and 2 bits; from round to nearest to GPTQ, per channel. Weights: "
        f"{', '.join(both(b, 'weight_error') for b in bits)}. Outputs: {', '.join(both(b, 'output_error') for b in bits)}. "
        "Loss added, in nats per token: "
        + ", ".join(f"{excess('round to nearest', b)} to {excess('GPTQ', b)}" for b in bits) + ".")


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
            ax.set(xticks=[], yticks=[], title=f"after {moment} columns" if row == 0 else "")
            if column == 0: ax.set_ylabel(condition)
    fig.colorbar(image, ax=fig.axes, label="|Ŵ − W|", pad=0.01)
    ax = fig.add_subplot(grid[2, :])
    for condition, look, offset in (("round to nearest", NEAREST, (-6, 6)), ("GPTQ", COLUMN_BY_COLUMN, (8, -2))):
        y = 100 * r.values(condition, "output_error")[0]
        ax.plot(np.arange(len(y)), y, markevery=16, ms=5, **plot.line(look))
        plot.note(ax, (80, y[80]), condition, offset, look[0])
    ax.set(xlabel="columns rounded", ylabel="error of the output (%)", xlim=(0, None), ylim=(0, None))
    said = {c: (100 * r.values(c, "weight_error")[0], 100 * r.values(c, "output_error")[0][-1]) for c in frames}
    return plot.Drawing(
        fig,
        "GPTQ moves the columns that are not rounded yet, to compensate for the rounded ones: errors spread over the weights "
        "and cancel in the output.",
        f"One layer (blocks.2.mlp.up, the first {r.record['settings']['rows']} rows) rounded to {r.record['settings']['bits']} "
        "bits column after column; one seed.",
        f"Heat maps of |Ŵ − W| after {', '.join(map(str, moments))} columns, and the error of the output. Round to nearest "
        "leaves later columns untouched, GPTQ moves them all. At the end: " + "; ".join(
            f"{c}: weights {w:.1f} %, output {o:.1f} %" for c, (w, o) in said.items()) + ".")


AWQ = {"round to nearest": NEAREST, "1 % at random": ("grey", "s"), "1 % by weight": ("grey", "d"),
       "1 % by activation": ("grey", "^"), "AWQ without clipping": ("green", "<"), "AWQ": about("awq").look}


def awq(results: Path) -> plot.Drawing:
    r = load(results, "awq")
    fig, axes = plot.figure(1, 2, height=2.8, sharey=True)
    for ax, where, title in zip(axes, ("as it is", "planted"), ("the base as it is", "with planted outliers"), strict=True):
        for y, (name, look) in enumerate(AWQ.items()):
            condition = f"{name}, {where}"
            ax.errorbar(r.mean(condition, "excess"), y, xerr=r.interval(condition, "excess"), ms=6, **plot.line(look))
        ax.set(xlabel="loss added (nats/token)", xlim=(0, None), title=title)
    axes[0].set_yticks(range(len(AWQ)), AWQ)
    axes[0].invert_yaxis()
    losses = {where: {name: r.mean(f"{name}, {where}", "excess") for name in AWQ} for where in ("as it is", "planted")}
    at = lambda name: f"{losses['planted'][name]:.3f}"
    nearest = r.values("round to nearest, planted", "excess")
    return plot.Drawing(
        fig,
        f"With planted outliers round to nearest costs {at('round to nearest')} nats. If 1 % of the channels are kept, the "
        f"cost is {at('1 % by activation')} where activations choose them, and {at('1 % by weight')} where weights do. AWQ "
        f"keeps none and costs {at('AWQ')}.",
        f"3 bits in groups of 32, asymmetric; the base as it is, and with {r.record['settings']['channels']} features of every "
        f"norm's output planted at {r.record['settings']['factor']} times their size; {len(r.seeds)} seeds. With planted "
        f"outliers round to nearest costs {np.median(nearest):.2f} nats in the median draw, and {nearest.max():.2f} in the "
        "worst.",
        "Loss added, in nats per token. "
        + " ".join(f"{where.capitalize()}: {listed(of)}." for where, of in losses.items()))
