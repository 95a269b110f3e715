"""Lesson 11: outlier features harm 8-bit products, and LLM.int8() and SmoothQuant help."""
from pathlib import Path

import numpy as np

from .. import plot
from ..about import about
from ..stored import load

__all__ = ["activations", "int8_outliers", "int8_threshold", "maxima", "natural", "smoothquant"]

LOOKS = {"absmax": ("black", "s"), "zero-point": ("orange", "d"), "row-wise": ("sky", "o"), "vector-wise": ("green", "v"),
         "LLM.int8()": about("llm_int8").look}


def int8_outliers(results: Path) -> plot.Drawing:
    r = load(results, "int8_outliers")
    factors = r.record["settings"]["factors"]
    fig, ax = plot.figure()
    ends = []
    for condition, look in LOOKS.items():
        mean = plot.band(ax, factors, r, condition, "error", look, 100)
        ends.append((factors[-1], mean[-1], condition, plot.COLOURS[look[0]]))
    ax.set(xscale="log", yscale="log", xlabel="how many times their size the planted features have",
           ylabel="error of the logits (%)")
    ax.set_xticks(factors, map(str, factors), minor=False)
    plot.plain_log(ax.yaxis)
    ax.minorticks_off()
    plot.label_ends(ax, ends)
    at = lambda c, i: f"{100 * r.mean(c, 'error')[i]:.1f} %"
    return plot.Drawing(
        fig,
        "A few outlier features ruin 8-bit products in which other features share their scale. Multiplying these columns "
        "separately, as LLM.int8() does, keeps the error small.",
        f"Relative error of the base's logits with weights and inputs in 8 bits. {r.record['settings']['channels']} of the 128 "
        f"features of the blocks' norms are planted at 1 to {factors[-1]} times their size, which leaves the float32 function "
        f"unchanged. {len(r.seeds)} seeds.",
        f"Error over the outliers' size, both logarithmic. Without outliers all lie between {at('absmax', 0)} (absmax) and "
        f"{at('LLM.int8()', 0)} (LLM.int8()). At {factors[-1]} times: absmax {at('absmax', -1)}, zero-point "
        f"{at('zero-point', -1)}, row-wise {at('row-wise', -1)}, vector-wise {at('vector-wise', -1)}, LLM.int8() "
        f"{at('LLM.int8()', -1)}.")


def int8_threshold(results: Path) -> plot.Drawing:
    r = load(results, "int8_threshold")
    thresholds = np.array(r.record["settings"]["thresholds"])
    fig, (above, below) = plot.figure(2, 1, height=4.8, sharex=True)
    looks = {"planted": ("vermillion", "s"), "as it is": ("blue", "o")}
    for ax, metric in ((above, "error"), (below, "columns")):
        ends = []
        for condition, look in looks.items():
            mean = plot.band(ax, thresholds, r, condition, metric, look, 100)
            ends.append((thresholds[-1], mean[-1], condition, plot.COLOURS[look[0]]))
        plot.label_ends(ax, ends)
        ax.axvline(6, color="#999999", lw=1, ls=":")
    above.set(xscale="log", yscale="log", ylabel="error of the logits (%)")
    below.set(ylabel="columns in float16 (%)", xlabel="threshold on |x| above which a column is taken out")
    below.annotate("the paper's 6", (6, 1), xycoords=("data", "axes fraction"), xytext=(4, -4), textcoords="offset points",
                   va="top", color="#606060")
    i = int(np.flatnonzero(thresholds == 6)[0])
    said = {c: (100 * r.mean(c, "error"), 100 * r.mean(c, "columns")) for c in looks}
    return plot.Drawing(
        fig,
        f"With outliers the threshold hardly matters over a wide range: at 6, {said['planted'][1][i]:.1f} % of the columns are "
        f"kept in float16, and the error falls from {said['planted'][0][-1]:.1f} % to {said['planted'][0][i]:.1f} %.",
        f"LLM.int8() on the base as it is and with {r.record['settings']['channels']} features of the blocks' norms planted "
        f"at {r.record['settings']['factor']} times their size; {len(r.seeds)} seeds.",
        "Above: the error of the logits over the threshold. Below: the share of columns kept in float16. " + " ".join(
            f"{c.capitalize()}: at a threshold of 6 the error is {e[i]:.2f} % with {k[i]:.1f} % of the columns in float16; "
            f"at the largest threshold it is {e[-1]:.2f} %." for c, (e, k) in said.items()))


def activations(results: Path) -> plot.Drawing:
    from matplotlib.colors import LogNorm
    r = load(results, "int8_activations")
    fig, axes = plot.figure(2, 1, height=4.4, sharex=True)
    largest, of_few = {}, {}
    for ax, (condition, title) in zip(axes, (("as it is", "as it is"), ("planted", "three features planted")), strict=True):
        x = np.maximum(np.abs(r.values(condition, "activations")[0]), 0.03)
        largest[condition] = x.max(), np.median(x.max(0))
        few = np.argsort(x.max(0))[-3:]
        of_few[condition] = np.isin(x.argmax(1), few).sum()
        image = ax.imshow(x, cmap="cividis", norm=LogNorm(0.03, 100), aspect="auto", interpolation="nearest")
        ax.grid(False)
        ax.set_title(title, fontsize=9)
        ax.set_ylabel("token")
    axes[1].set_xlabel("feature")
    fig.colorbar(image, ax=axes, label="|x|", pad=0.01)
    return plot.Drawing(
        fig,
        "Outliers are whole columns: three planted features are large for most tokens, and one of them sets the scale of "
        f"{of_few['planted']} of {len(x)} rows.",
        f"Inputs of the second block's attention for {len(x)} tokens of test text, |x| on a logarithmic scale; one seed.",
        f"Heat maps of activations, tokens by features. As it is, there are faint stripes: the largest is "
        f"{largest['as it is'][0]:.1f} and the median feature's maximum {largest['as it is'][1]:.1f}. Planted, three bright "
        f"vertical stripes reach {largest['planted'][0]:.0f}.")


def smoothquant(results: Path) -> plot.Drawing:
    """Planted outliers are undone at every α, because s_j follows any factor that the inputs have and the weights lack. So the
    U comes from the base's own channels."""
    r = load(results, "smoothquant")
    alphas = np.array(r.record["settings"]["alphas"])
    looks = {"static": ("vermillion", "s", "static"), "tensor": ("orange", "d", "per tensor"),
             "token": ("blue", "o", "per token")}
    fig, ax = plot.figure(height=3.8)
    ends, best, bare = [], {}, {}
    for name, (*look, text) in looks.items():
        mean = plot.band(ax, alphas, r, name, "error", look, 100)
        best[name] = mean[0], mean.min(), alphas[mean.argmin()], mean[-1]
        bare[name] = 100 * r.mean(name, "error_planted"), 100 * r.mean(name, "error_as_it_is")
        ends.append((alphas[-1], mean[-1], text, plot.COLOURS[look[0]]))
    without = bare["token"][0]
    ax.axhline(without, color=plot.COLOURS["blue"], lw=1, ls=":")
    ends.append((alphas[-1], without, "per token,\nnot smoothed", plot.COLOURS["blue"]))
    ax.set(yscale="log", ylabel="error of the logits (%)",
           xlabel="α: how much of the difficulty moves from the inputs into the weights")
    plot.plain_log(ax.yaxis)
    plot.label_ends(ax, ends)
    by_look = " ".join(
        f"{text.capitalize()}: {bare[n][0]:.1f} % without smoothing ({bare[n][1]:.1f} % without outliers), {best[n][0]:.1f} % "
        f"at α = 0, least {best[n][1]:.1f} % at {best[n][2]:g}, {best[n][3]:.1f} % at 1." for n, (*_, text) in looks.items())
    return plot.Drawing(
        fig,
        f"It is best to share the difficulty between inputs and weights: outliers cause an error of {without:.0f} %, and "
        f"SmoothQuant with α = {best['token'][2]:g} leaves {best['token'][1]:.1f} %.",
        f"W8A8; {r.record['settings']['channels']} features planted at {r.record['settings']['factor']} times their size; "
        f"inputs with one scale per token, per tensor, or for all text (static); {len(r.seeds)} seeds. Planted outliers are "
        "undone at every α, so the U may come from the base's own channels.",
        f"Error of the logits over α, U-shaped. {by_look}")


def maxima(results: Path) -> plot.Drawing:
    r = load(results, "smoothquant_maxima")
    fig, axes = plot.figure(2, 2, height=3.8, sharex=True, sharey="row")
    ratio = {}
    for column, condition in zip(axes.T, ("before", "after"), strict=True):
        for ax, metric, colour in zip(column, ("inputs", "weights"), ("vermillion", "blue"), strict=True):
            y = r.values(condition, metric)[0]
            ax.stairs(y, fill=True, color=plot.COLOURS[colour])
            ratio[condition, metric] = y.max() / np.median(y)
            ax.set_title(f"{condition}: {metric}, largest {ratio[condition, metric]:.1f} × median", fontsize=9)
    for ax in axes[-1]: ax.set_xlabel("channel")
    axes[0, 0].set_ylabel("max |x|")
    axes[1, 0].set_ylabel("max |w|")
    return plot.Drawing(
        fig,
        "SmoothQuant divides outlier channels of the inputs and multiplies the same channels of the weights: the largest input "
        f"is {ratio['before', 'inputs']:.0f} times the median before and {ratio['after', 'inputs']:.0f} times after, and the "
        "weights have room for it.",
        "Largest |x| and |w| of the 128 channels that the second block's attention reads, before and after SmoothQuant with "
        f"α = {r.record['settings']['alpha']:g}; three planted features; one seed.",
        "Bars per channel. Largest over median: " + ", ".join(f"{metric} {condition} {x:.1f}"
                                                               for (condition, metric), x in ratio.items()) + ".")


NATURAL = {("SmolLM2", "stream"): ("vermillion", "o"), ("SmolLM2", "attention"): ("blue", "s"),
           ("SmolLM2", "down"): ("green", "v"), ("base", "stream"): ("black", "o"), ("base", "down"): ("orange", "v"),
           ("base, planted", "attention"): ("sky", "s")}


def natural(results: Path) -> plot.Drawing:
    r = load(results, "natural_outliers")
    names = {"stream": "residual stream", "attention": "inputs of attention", "down": "inputs of mlp.down"}
    fig, ax = plot.figure()
    top = {}
    for (condition, metric), look in NATURAL.items():
        mean = r.mean(condition, metric)
        ax.plot((np.arange(mean.size) + 0.5) / mean.size, mean, color=plot.COLOURS[look[0]], marker=look[1], ms=4)
        top[condition, metric] = mean.max()
    ax.set(yscale="log", xlabel="depth: 0 is before the first block, 1 after the last",
           ylabel="largest feature ÷ median feature")
    plot.plain_log(ax.yaxis)
    plot.key(fig, {f"{condition}: {names[metric]}": look for (condition, metric), look in NATURAL.items()}, columns=2)
    largest, s = r.mean("SmolLM2", "largest"), r.record["settings"]
    return plot.Drawing(
        fig,
        "A real model grows outlier features by itself. One feature of SmolLM2's residual stream is "
        f"{top['SmolLM2', 'stream']:.0f} times the median of that stream, and one that mlp.down reads is "
        f"{top['SmolLM2', 'down']:,.0f} times the median of what it reads ({top['base', 'down']:.0f} times in the base).",
        f"The size of a feature is its largest |x| over {s['rows']} × {s['context']} tokens. SmolLM2 has {largest.size} "
        f"blocks, the base has 5. In the planted base, {s['channels']} features of the blocks' norms are {s['factor']} times "
        f"as large. Means over {len(r.seeds)} draws of text.",
        "Largest over median feature, logarithmic, over depth. " + " ".join(
            f"{condition}, {names[metric]}: up to {most:,.0f}." for (condition, metric), most in top.items())
        + f" The largest number of SmolLM2's residual stream is {largest.max():,.0f}.")
