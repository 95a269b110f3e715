"""Lessons 03 and 15: where the memory of fine-tuning goes."""
from pathlib import Path

from .. import plot
from ..about import about
from ..experiments import EXPERIMENTS
from ..memory import MIXED, SHAPES, estimate
from ..stored import load

__all__ = ["memory"]

PARTS = {"weights": plot.COLOURS["blue"], "optimizer": plot.COLOURS["yellow"], "gradients": plot.COLOURS["vermillion"],
         "activations": plot.COLOURS["sky"], "working": "#D8D8D8"}
SHORT = {run: about(name).short for run, name in (           # run of the experiment → label
    *((name, name) for name in ("full", "adapter", "prompt", "prefix", "lora")),
    ("lora, all", "lora_all"), ("qlora, all", "qlora_all"))}
ROWS, LENGTH = 8, 128                                    # of the base's batch
BATCH, TOKENS = 1, 512                                   # of the 7 B model


def at_peak(found: dict[str, float], layers: int) -> dict[str, float]:
    """The parts of memory at the end of the forward or of the backward pass, whichever takes more."""
    if found["forward"] >= found["backward"]: return {part: found[part] for part in PARTS if part != "gradients"}
    return {part: found[part] / (layers if part == "activations" else 1) for part in PARTS if part != "working"}


def memory(results: Path) -> plot.Drawing:
    from matplotlib.patches import Patch
    r = load(results, "memory")
    batches = r.record["settings"]["batches"]
    i = batches.index([ROWS, LENGTH])
    runs = [n for n in SHORT if f"{n}, base" in r.conditions]
    ours = {n: {part: r.mean(f"{n}, base", part)[i] for part in (*PARTS, "forward", "backward", "peak")} for n in runs}
    traced = {n: r.mean(f"{n}, base", "traced")[i] for n in runs}
    steps = {n: EXPERIMENTS["memory"].conditions[f"{n}, base"] for n in runs}
    of_7b = lambda n: estimate(SHAPES["llama-7b"], steps[n].name, BATCH, TOKENS, MIXED, **steps[n].options)
    large = {n: of_7b(n) for n in ("full", "lora", "lora, all", "qlora, all")}
    fig, axes = plot.figure(2, 1, height=5.2, height_ratios=(len(ours), len(large) + 0.4))
    for ax, rows, unit, shape in ((axes[0], ours, 2**20, "base"), (axes[1], large, 2**30, "llama-7b")):
        for y, (n, found) in enumerate(rows.items()):
            left = 0
            for part, size in at_peak(found, SHAPES[shape].layers).items():
                ax.barh(y, size / unit, left=left, color=PARTS[part], height=0.7, edgecolor="white", lw=0.5)
                left += size / unit
            end = max(left, traced[n] / unit) if rows is ours else left
            plot.note(ax, (end, y), f"{left:.0f}", (7, 0), "black")
        ax.set_yticks(range(len(rows)), [SHORT[n] for n in rows])
        ax.grid(False)
        ax.invert_yaxis()
        ax.margins(x=0.08)
    for y, n in enumerate(ours): axes[0].plot(traced[n] / 2**20, y, marker="D", ms=5, color="black", mfc="white", ls="none")
    axes[0].set(xlabel="MiB at the peak; diamonds: traced", title=f"the base, {ROWS} × {LENGTH} tokens, 32 bits")
    axes[1].set(xlabel="GiB at the peak",
                title=f"LLaMA 7 B, {BATCH} × {TOKENS} tokens, 16 bits, trained in 32, QLoRA's base in NF4")
    fig.legend([Patch(color=colour) for colour in PARTS.values()], PARTS, loc="outside upper center", ncols=len(PARTS))
    off = {c: abs(r.mean(c, "peak") / r.mean(c, "traced") - 1) for c in r.conditions}
    shown, worst = max(off[f"{n}, base"][i] for n in runs), max(x.max() for x in off.values())
    gib = {n: large[n]["peak"] / 2**30 for n in large}
    return plot.Drawing(
        fig,
        "LoRA saves the memory of optimizer and gradients; QLoRA also saves the memory of weights: 7 B parameters take "
        f"{gib['full']:.0f} GiB, {gib['lora, all']:.0f} with LoRA and {gib['qlora, all']:.0f} with QLoRA, both on all "
        "matrices.",
        "In the lower panel everything is in 16 bits but what is trained, which is in 32, and QLoRA's base, in NF4. Peak "
        "memory by formula (`python -m tinypeft memory`), at the end of the forward or of the backward pass, whichever is "
        f"larger. Working: logits and short-lived values of operations. The bars in the upper panel, {ROWS} rows of {LENGTH} "
        f"tokens, are within {shown:.1%} of the bytes traced in a training step; all "
        f"{len(r.conditions) * len(batches)} cases tried are within {worst:.0%}.",
        "Stacked bars. The base, predicted and traced, in MiB: " + ", ".join(
            f"{SHORT[n]} {ours[n]['peak'] / 2**20:.1f} and {traced[n] / 2**20:.1f}" for n in ours) + ". LLaMA 7 B, in GiB: "
        + ", ".join(f"{SHORT[n]} {g:.1f}, of which weights take {large[n]['weights'] / 2**30:.1f}" for n, g in gib.items())
        + ".")
