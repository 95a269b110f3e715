"""What each method that changes a weight can make of it: the change itself, of one small weight. Nothing is measured here."""
from dataclasses import replace
from pathlib import Path

import numpy as np

from ... import peft
from ...models.gpt import GPT, GPTConfig
from .. import plot
from ..about import about, name_of

__all__ = ["changes_of_a_weight"]

D, PATH = 48, "blocks.0.attention.query"                 # the weight is (D, D)
SMALL = (peft.FullFineTuning(("query",)), peft.LoRA(2), peft.MiSS(8), peft.DoRA(2), peft.VeRA(24), peft.RandLoRA(16),
         peft.FourierFT(4), peft.LoHa(2), peft.LoKr(2), peft.HiRA(2), peft.C3A(12), peft.SHiRA(2), peft.OFT(12))


def changes_of_a_weight(results: Path) -> plot.Drawing:
    """A map of ΔW for every method, its trained parameters drawn at random."""
    fig, axes = plot.figure(3, 5, height=4.6)
    said = []
    for ax, method in zip(axes.flat, SMALL, strict=False):
        W, trained, kept = changed(method)
        singular = np.linalg.svd(W, compute_uv=False)
        rank = int((singular > 1e-6 * singular[0]).sum())
        ax.imshow(W, cmap="RdBu", vmin=-2.5 * W.std(), vmax=2.5 * W.std(), interpolation="nearest")
        name = about(name_of(method)).short
        ax.set(xticks=[], yticks=[], title=f"{name}\n{trained:,}, rank {rank}")
        said.append(f"{name}: {trained:,} numbers, rank {rank}" + ", lengths of rows kept" * kept)
    for ax in axes.flat[len(SMALL):]: ax.set_axis_off()
    return plot.Drawing(
        fig,
        "What is trained decides what a change of a weight can look like: the rank is one limit among others.",
        f"The change ΔW of one weight of {D} × {D} = {D * D:,} numbers by the methods that change weights, at small settings, "
        "with what is trained drawn at random. Above each map stand how many numbers are trained, and the rank of ΔW. Red is "
        "negative and blue is positive, each map in its own scale. AdaLoRA and DyLoRA look like LoRA, and (IA)³, a factor for "
        "each output, scales the rows of the weight.",
        f"Maps of ΔW. {'; '.join(said)}.")


def changed(method: peft.Method) -> tuple[np.ndarray, int, bool]:
    """(ΔW (D, D), how many numbers are trained, do the rows of W keep their lengths?), with parameters drawn at random."""
    model = GPT(GPTConfig(32, 16, D, 1, 2), rng=0).to(np.float64)
    before = model.get(PATH).dense_weight().copy()
    targeted = method if isinstance(method, peft.FullFineTuning) else replace(method, targets=("query",))
    tuned, rng = peft.attach(model, targeted, rng=0), np.random.default_rng(0)
    parameters = [p for name, p in tuned.named_parameters() if p.requires_grad and not name.endswith("bias")]
    for p in parameters: p.assign(p.data + rng.normal(0, 0.3 * (p.data.std() or 1), p.shape))
    after = tuned.model.get(PATH).dense_weight()
    lengths = [np.sqrt((W ** 2).sum(1)) for W in (before, after)]
    return after - before, sum(p.size for p in parameters), bool(np.allclose(*lengths))
