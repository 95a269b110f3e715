"""Drawings: where each method sits in a transformer block, and the data flow of QLoRA. Nothing is measured here; the
package counts the bits."""
from pathlib import Path

import numpy as np

from ...peft import METHODS
from ...quant import NF4
from .. import plot

__all__ = ["methods_in_a_block", "qlora_flow"]

FROZEN, EDGE = "#EDEDED", "#777777"
LAYERS = {"Q": (3, 3.7, 1.8, 1.3), "K": (5.1, 3.7, 1.8, 1.3), "V": (7.2, 3.7, 1.8, 1.3), "O": (3, 7.2, 6, 1.2),
          "up": (3, 11.2, 6, 1.2), "down": (3, 12.8, 6, 1.2)}                # name: (left, bottom, width, height)


def canvas(ax, width, height):
    """Axes without frame and ticks, `width` × `height` units large."""
    ax.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    ax.axis("off")


def box(ax, x, y, w, h, text="", fill=FROZEN, **look):
    """A rectangle with text in it; hatching leaves the text free."""
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Rectangle
    dark = np.dot(to_rgb(fill), (0.299, 0.587, 0.114)) < 0.6
    ax.add_patch(Rectangle((x, y), w, h, **{"facecolor": fill, "edgecolor": EDGE, "lw": 0.8, "clip_on": False, **look}))
    clear = {"bbox": {"fc": fill, "ec": "none", "pad": 0.8}, "zorder": 5} if "hatch" in look else {}
    if text: ax.text(x + w / 2, y + h / 2 - 0.04, text, ha="center", va="center", color="white" if dark else "black", **clear)


def arrow(ax, *points, color=EDGE, lw=0.9, head=True, ls="-"):
    """A line through the points, with a head at its end."""
    x, y = zip(*points, strict=True)
    ax.plot(x, y, color=color, lw=lw, ls=ls, solid_capstyle="round", zorder=1.5)
    if head:
        ax.annotate("", points[-1], points[-2], arrowprops={"arrowstyle": "-|>", "color": color, "lw": lw, "shrinkA": 0,
                                                            "shrinkB": 0, "mutation_scale": 7})


def bottleneck(ax, x, y, w, h, colour, upright=False):
    """An adapter: wide, narrow, wide along the direction of the flow."""
    from matplotlib.patches import Polygon
    corners = [(0, 0), (0.5, 0.32), (1, 0), (1, 1), (0.5, 0.68), (0, 1)]
    points = [(x + w * (b if upright else a), y + h * (a if upright else b)) for a, b in corners]
    ax.add_patch(Polygon(points, facecolor=colour, edgecolor="black", lw=0.8, zorder=2))


def block(ax, title, fill=None, tokens=0, template=False, **look):
    """A frozen block. fill: name of a layer → its colour. tokens: number of virtual tokens before the input. template: put
    virtual tokens between the parts of the input. look: keywords for the layers' rectangles."""
    fill = fill or {}
    canvas(ax, 11, 15.4)
    ax.set_title(title, fontsize=9, pad=2)
    arrow(ax, (1.3, 1.1), (1.3, 15.2))                                       # the residual stream
    plus = {"boxstyle": "circle,pad=0.12", "fc": "white", "ec": EDGE, "lw": 0.8}
    for y, top in ((1.7, 8.95), (9.5, 14.6)):
        arrow(ax, (1.3, y), (6, y), (6, y + 0.5), head=False)
        arrow(ax, (6, top - 0.6), (6, top), (1.75, top))
        ax.text(1.3, top, "+", ha="center", va="center", bbox=plus)
    for y in (2.2, 9.85): box(ax, 3, y, 6, 1.05, "norm", fill.get("norm", FROZEN))
    for x in (3.9, 6, 8.1): arrow(ax, (x, 3.25), (x, 5.5), head=False)
    box(ax, 3, 5.4, 6, 1.4, "attention", "white")
    for y in (6.8, 10.8, 12.4): arrow(ax, (6, y), (6, y + 0.5), head=False)
    for name, place in LAYERS.items(): box(ax, *place, name, fill.get(name, FROZEN), **{"zorder": 2, **look})
    colours = [fill.get("token", "white")] * tokens + [FROZEN] * 4
    if template: colours = [fill["token"]] * 2 + [FROZEN] * 2 + [fill["token"]] * 2 + [FROZEN]
    for i, colour in enumerate(colours): box(ax, 1.3 + 1.25 * i, 0, 1, 1, "", colour)


def low_rank(ax, colour, ranks):
    """A below and B above each layer, thicker for a higher rank. ranks: name of a layer → rank."""
    for name, rank in ranks.items():
        x, y, w, h = LAYERS[name]
        thick = 0.12 + 0.04 * rank
        for bottom in (y - thick, y + h): box(ax, x, bottom, w, thick, "", colour, edgecolor="black", lw=0.6, zorder=3)
        low, high, right = y - thick / 2, y + h + thick / 2, x + w + 0.25
        ax.plot([x + w, right, right, x + w], [low, low, high, high], color=colour, lw=1.2, zorder=1.9)


def prefixes(ax, colour, mlp):
    """Additional keys and values for attention; mlp: with the MLP that makes them during training."""
    for y in (5.4, 6.15): box(ax, 9.75, y, 1.1, 0.65, "", colour, edgecolor="black")
    arrow(ax, (9.7, 6.1), (9.05, 6.1))
    if mlp:
        box(ax, 9.6, 3.75, 1.4, 1.0, "", colour, hatch="////", edgecolor="white", ls="--")
        arrow(ax, (10.3, 4.75), (10.3, 5.35))


def methods_in_a_block(results: Path) -> plot.Drawing:
    fig, axes = plot.figure(3, 4, height=7.4)
    c = {name: plot.mark(name)["color"] for name in (*METHODS, "peqa")}
    (full, adapter, parallel, lora), (adalora, dylora, qlora, peqa), (prefix, v2, prompt, ptuning) = axes
    block(full, "full fine-tuning", dict.fromkeys([*LAYERS, "norm"], "#000000"))
    block(adapter, "adapters", {"norm": c["adapter"]})
    for y in (8.5, 14.15): bottleneck(adapter, 2.2, y, 2.8, 0.9, c["adapter"])
    block(parallel, "parallel adapters")
    arrow(parallel, (6, 11.05), (2.3, 11.05), (2.3, 14.6), head=False)
    bottleneck(parallel, 1.8, 11.5, 1.0, 2.6, c["parallel_adapter"], upright=True)
    block(prefix, "prefix tuning")
    prefixes(prefix, c["prefix"], mlp=True)
    block(v2, "P-tuning v2")
    prefixes(v2, c["ptuning_v2"], mlp=False)
    block(prompt, "prompt tuning", {"token": c["prompt"]}, tokens=3)
    block(ptuning, "P-tuning", {"token": c["ptuning"]}, template=True)
    block(lora, "LoRA")
    low_rank(lora, c["lora"], {"Q": 6, "V": 6})
    block(adalora, "AdaLoRA")
    low_rank(adalora, c["adalora"], {"Q": 1, "K": 2, "V": 6, "O": 4, "up": 7, "down": 3})
    block(dylora, "DyLoRA")
    low_rank(dylora, c["dylora"], {"Q": 6, "V": 6})
    for name in "QV":                                                        # the ranks are nested
        x, y, w, h = LAYERS[name]
        for low in (y - 0.18, y + h + 0.18): box(dylora, x, low, w, 0.18, "", "white", edgecolor="black", lw=0.6, zorder=4)
    few_bits = {"hatch": "//////", "edgecolor": "#B0B0B0"}
    block(qlora, "QLoRA", **few_bits)
    low_rank(qlora, c["lora"], dict.fromkeys(LAYERS, 3))
    block(peqa, "PEQA", **few_bits)
    for x, y, _, h in LAYERS.values(): box(peqa, x, y, 0.35, h, "", c["peqa"], zorder=3)
    return plot.Drawing(
        fig,
        "A method trains a small part: beside the weights, between layers, among attention's keys and values, or before the "
        "text.",
        "One block, read upwards: tokens, layer norm, queries, keys and values (Q K V), attention and its output (O), the MLP "
        "(up, down); the residual stream is at the left. Trained parts are in colour or black, frozen parts are grey, and "
        "weights stored in few bits are hatched grey. DyLoRA's ranks can be cut to any size, AdaLoRA gives each matrix its "
        "own rank, PEQA trains scales, and the MLP of prefix tuning (hatched) is dropped after training.",
        "Twelve small drawings of one transformer block with the trained part in colour. Full fine-tuning: everything. "
        "Adapters: bottlenecks behind attention and MLP, and the layer norms. Parallel adapters: a bottleneck beside the MLP. "
        "LoRA: pairs of thin matrices on Q and V; AdaLoRA: on all, of unequal rank; DyLoRA: nested ranks; QLoRA: on all, over "
        "4-bit weights. PEQA: only the scales of quantized weights. Prefix tuning and P-tuning v2: keys and values in "
        "attention, the first made by an MLP. Prompt tuning: vectors before the input; P-tuning: between its parts.")


def qlora_flow(results: Path) -> plot.Drawing:
    W = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    plain, double = (NF4(double_quant=d).quantize(W).bits_per_weight for d in (False, True))
    fig, ax = plot.figure(height=3.6)
    canvas(ax, 20, 11)
    blue, red = plot.COLOURS["blue"], plot.COLOURS["vermillion"]
    back = {"color": red, "ls": "--", "lw": 1.1}
    for y, text in ((8.4, "NF4 codes\n4 bits / weight"), (5.9, f"block scales\n{double - 4:.3f} bits / weight")):
        box(ax, 0.2, y, 4.6, 2.0, text)
    box(ax, 6.2, 7.2, 3.1, 1.8, "dequantize", "white")
    box(ax, 10.6, 6.9, 3.6, 2.4, "Ŵ, 16 bits,\nfor a moment", "white", ls="--")
    box(ax, 0.2, 2.9, 2.2, 1.6, "x", "white")
    for x, name in ((6.2, "A"), (10.9, "B")): box(ax, x, 1.0, 3.0, 2.0, f"{name}\ntrained", blue)
    box(ax, 17.7, 4.2, 2.1, 1.6, "y, loss", "white")
    ax.text(16.5, 5, "+", ha="center", va="center", bbox={"boxstyle": "circle,pad=0.2", "fc": "white", "ec": EDGE, "lw": 0.8})
    arrow(ax, (4.8, 9.4), (5.5, 9.4), (5.5, 8.4), (6.2, 8.4))
    arrow(ax, (4.8, 6.9), (5.5, 6.9), (5.5, 7.8), (6.2, 7.8))
    arrow(ax, (9.3, 8.1), (10.6, 8.1))
    arrow(ax, (2.4, 3.7), (4.2, 3.7), (4.2, 4.7), (12.6, 4.7), (12.6, 6.9))
    arrow(ax, (4.2, 3.7), (4.2, 2.2), (6.2, 2.2))
    arrow(ax, (9.2, 2.2), (10.9, 2.2))
    arrow(ax, (13.9, 2.2), (16.4, 2.2), (16.4, 4.7))
    arrow(ax, (14.2, 7.8), (16.4, 7.8), (16.4, 5.3))
    arrow(ax, (16.85, 5), (17.7, 5))
    arrow(ax, (16.7, 4.7), (16.7, 1.6), (13.9, 1.6), **back)
    arrow(ax, (10.9, 1.6), (9.2, 1.6), **back)
    arrow(ax, (6.2, 1.6), (1.3, 1.6), (1.3, 2.9), **back)
    arrow(ax, (16.7, 5.3), (16.7, 8.5), (14.2, 8.5), **back)
    arrow(ax, (11.8, 6.9), (11.8, 5.3), (1.3, 5.3), (1.3, 4.5), **back)
    ax.text(10.1, 0.4, "gradient: to A and B, and through both to x", color=plot.ink(red), ha="center", va="center")
    ax.text(10.3, 9.9, "gradient: through Ŵ to x, but not to the codes", color=plot.ink(red), ha="center", va="center")
    return plot.Drawing(
        fig,
        "The frozen weights are stored in 4 bits and decoded to 16 bits for each product; only A and B learn.",
        f"With double quantization a weight takes {double:.3f} bits, scales included ({plain:.3f} without), counted by the "
        f"package for a {W.shape[0]} × {W.shape[1]} matrix. Grey: forward; dashed: backward.",
        f"Flow chart. NF4 codes and their scales ({double:.3f} bits per weight together) are dequantized to a 16-bit matrix "
        "that multiplies x; beside it x passes through A and B, which are trained; the sum of both is y. Gradients flow from "
        "the loss to A and B, and to x on two ways, through B and A and through the dequantized matrix, never to the codes.")
