"""Lesson 11: outlier features harm 8-bit products, and LLM.int8() and SmoothQuant help."""
from pathlib import Path

import numpy as np

from .. import plot
from ..about import about
from ..markdown import listed
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
        ends.append((factors[-1], mean[-1], condition, look[0]))
    ax.set(xlabel="how many times their size the planted features have", ylabel="error of the logits (%)")
    plot.plain_log(ax.xaxis, factors)
    plot.plain_log(ax.yaxis)
    plot.label_ends(ax, ends)
    at = lambda i: listed({c: 100 * r.mean(c, "error")[i] for c in LOOKS}, ".1f", " %")
    return plot.Drawing(
        fig,
        "A few outlier features ruin 8-bit products in which other features share their scale. Multiplying these columns "
        "separately, as LLM.int8() does, keeps the error small.",
        f"Relative error of the base's logits with weights and inputs in 8 bits. {r.record['settings']['channels']} of the 128 "
        f"features of the blocks' norms are planted at 1 to {factors[-1]} times their size, which leaves the float32 function "
        f"unchanged. {len(r.seeds)} seeds.",
        f"Error over the outliers' size, both logarithmic. Without outliers: {at(0)}. At {factors[-1]} times: {at(-1)}.")


def smoothquant(results: Path) -> plot.Drawing:
    """Planted outliers are undone at every α, because s_j follows any factor that the inputs have and the weights lack. So the
    U comes from the base's own channels."""
    r = load(results, "smoothquant")
    alphas = np.array(r.record["settings"]["alphas"])
    looks = {"static": ("vermillion", "s"), "tensor": ("orange", "d"), "token": ("blue", "o")}
    fig, ax = plot.figure(height=3.8)
    ends, said = [], []
    for name, look in looks.items():
        mean = plot.band(ax, alphas, r, name, "error", look, 100)
        without, plain = 100 * r.mean(name, "error_planted"), 100 * r.mean(name, "error_as_it_is")
        label = name if name == "static" else f"per {name}"
        ends.append((alphas[-1], mean[-1], label, look[0]))
        said.append(f"{label.capitalize()}: {without:.1f} % without smoothing ({plain:.1f} % without outliers), "
                    f"{mean[0]:.1f} % at α = 0, least {mean.min():.1f} % at {alphas[mean.argmin()]:g}, {mean[-1]:.1f} % at 1.")
    plot.reference_line(ax, without, "per token, not smoothed", colour="blue")           # the last look
    ax.set(ylabel="error of the logits (%)", xlabel="α: how much of the difficulty moves from the inputs into the weights")
    plot.plain_log(ax.yaxis)
    plot.label_ends(ax, ends)
    return plot.Drawing(
        fig,
        f"It is best to share the difficulty between inputs and weights: outliers cause an error of {without:.0f} %, and "
        f"SmoothQuant with α = {alphas[mean.argmin()]:g} leaves {mean.min():.1f} %.",
        f"W8A8; {r.record['settings']['channels']} features planted at {r.record['settings']['factor']} times their size; "
        f"inputs with one scale per token, per tensor, or for all text (static); {len(r.seeds)} seeds. Planted outliers are "
        "undone at every α, so the U may come from the base's own channels.",
        f"Error of the logits over α, U-shaped. {' '.join(said)}")


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
        ax.plot((np.arange(mean.size) + 0.5) / mean.size, mean, ms=4, **plot.line(look))
        top[condition, metric] = mean.max()
    ax.set(xlabel="depth: 0 is before the first block, 1 after the last", ylabel="largest feature ÷ median feature")
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
