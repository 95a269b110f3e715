"""Lesson 11: outlier features harm 8-bit products, and LLM.int8() and SmoothQuant help."""
from pathlib import Path

import numpy as np

from .. import plot
from ..about import about
from ..stored import load

__all__ = ["int8_outliers", "natural", "smoothquant"]

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
    ax.annotate("per token, not smoothed", (0, without), xytext=(0, -4), textcoords="offset points", va="top",
                color=plot.ink(plot.COLOURS["blue"]))
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
