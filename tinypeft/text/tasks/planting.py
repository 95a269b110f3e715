"""Planting: recover a change of known ranks, the truth against which allocations of rank are judged.

The teacher is the model with a hidden change in some weight matrices, W + σ U Vᵀ of rank r, where r differs from matrix
to matrix and is mostly 0. The student is the model with a method on it, and the loss, in nats/token on text, is

    L = mean over positions of KL(teacher ‖ student) = Σ_w p_teacher(w) ln(p_teacher(w) / p_student(w)),

0 if and only if the change is found. A method that allocates rank (AdaLoRA) should put it where it was planted; the
loss as a function of the rank that is used (DyLoRA) should fall up to the planted one, and no further.

No planted direction may matter more than another, or leaving it out would be no mistake. So with inputs x (d_in,) and
outputs y = W x of the layer on some text, Vᵀx are r random features of x with E[Vᵀx xᵀV] = I, U is an orthonormal basis
(d_out, r) of random mixtures of outputs, and σ is such that this matrix' change alone costs the model
KL(model ‖ changed) = r · effect: each direction is worth the same, within a matrix and between them.
"""
import copy

import numpy as np

from ... import functional as F
from ...gpt import GPT
from ...nn import Linear, Module, replace_modules
from ...tensor import no_grad
from ...train import evaluate
from .distillation import Distillation, divergence
from .language_modelling import LanguageModelling, domain

__all__ = ["Planted", "planted"]

RANKS = 0, 0, 0, 0, 1, 2, 4, 8


def planted(model, ranks=None, effect=0.01, context=None, held_out=8192, rng=0):
    """The model with a hidden low-rank change as the teacher → `Planted`; `task.ranks` is the truth, path → rank.

    model: a plain GPT with a tokenizer; it is not changed. ranks: path → rank for some of the blocks' linear layers,
    one rank for all of them, or None to deal 0, 0, 0, 0, 1, 2, 4, 8 out at random. effect: what a planted direction
    costs the unchanged model, nats/token. context, held_out: as in `domain`. rng: seed or Generator.
    Raises TypeError for anything but a GPT, ValueError if a method is attached to it, for unknown paths and ranks."""
    if not isinstance(model, GPT):
        raise TypeError(f"planted: expected a GPT, got {type(model).__name__}; attach a method afterwards, to the same model")
    if model.attached is not None:
        raise ValueError("planted: a method is attached to the model; call .detach() on what attach returned first")
    rng = np.random.default_rng(rng)
    layers = {p: m for p, m in model.named_modules() if p.startswith("blocks.") and hasattr(m, "dense_weight")}
    largest = {p: min(m.d_in, m.d_out) for p, m in layers.items()}
    if ranks is None:
        dealt = rng.permutation(np.resize(RANKS, len(layers))).tolist()
        ranks = {path: min(r, largest[path]) for path, r in zip(layers, dealt, strict=True)}
    elif not isinstance(ranks, dict):
        ranks = dict.fromkeys(layers, ranks)
    for path, r in ranks.items():
        if path not in layers:
            raise ValueError(f"planted: there is no linear layer {path!r}; there are {', '.join(layers)}")
        if not 0 <= r <= largest[path]:
            raise ValueError(f"planted: the rank at {path} must lie in [0, {largest[path]}], got {r}")
    text = domain(model, context, held_out)
    change = plant(model, {path: r for path, r in ranks.items() if r}, effect, text.batch("train", 4, rng)[0], rng)
    return Planted(copy.deepcopy(model).eval(), change, {path: ranks.get(path, 0) for path in layers}, text)


def plant(model, ranks, effect, tokens, rng):
    """path → Linear with W + σ U Vᵀ, for each of `ranks`; tokens (B, T) is the text on which they are measured."""
    recorders = {path: Recorder(model.get(path)) for path in ranks}
    replace_modules(model, recorders)
    with no_grad():
        log_p = F.log_softmax(model(tokens)).data
        replace_modules(model, {path: recorder.base for path, recorder in recorders.items()})
        change = {}
        for path, r in ranks.items():
            layer, X = recorders[path].base, recorders[path].inputs.astype(np.float64)   # (N, d_in)
            W = layer.dense_weight()
            mixtures = rng.standard_normal((len(X), r)), rng.standard_normal((len(X), r))
            V = X.T @ mixtures[0]
            V = V @ np.linalg.inv(np.linalg.cholesky(V.T @ (X.T @ X) @ V / len(X))).T    # now E[Vᵀx xᵀV] = I
            Y = X @ W.T
            U = np.linalg.qr(Y.T @ mixtures[1])[0]
            change[path] = changed = Linear(layer.d_in, layer.d_out, layer.bias is not None)
            if layer.bias is not None: changed.bias.data = layer.bias.data.copy()
            sigma = 0.1 * np.sqrt((Y ** 2).sum() / len(X) / r)
            for _ in range(3):
                changed.weight.data = (W + sigma * U @ V.T).astype(W.dtype)
                replace_modules(model, {path: changed})
                cost = divergence(log_p, model(tokens)).item()
                replace_modules(model, {path: layer})
                sigma *= np.sqrt(r * effect / cost)                               # the cost is almost quadratic in σ
    return change


class Recorder(Module):
    """A layer that keeps its last inputs, (N, d_in)."""

    def __init__(self, base):
        self.base = base

    def forward(self, x):
        self.inputs = x.data.reshape(-1, x.shape[-1])
        return self.base(x)


class Planted(Distillation, LanguageModelling):
    """Compute what `model` computes with the layers of `change` (path → Linear), on the windows of `text`, a
    `LanguageModelling`. ranks: path → rank. The model becomes the task's own, as `teacher`."""

    def __init__(self, model, change, ranks, text):
        super().__init__("planted", text.streams, text.n_bytes, text.context, text.sha256)
        self.ranks, self.unchanged = ranks, replace_modules(model, change)
        self.teach(model)

    def finish(self, means, split="test"):
        return means

    def measure_baselines(self):
        """The unchanged model."""
        model = copy.deepcopy(self.teacher)
        replace_modules(model, self.unchanged)
        return {"unchanged model": evaluate(model, self, "test")}

    def describe(self):
        hidden = [r for r in self.ranks.values() if r]
        return f"rank {sum(hidden)} hidden in {len(hidden)} of {len(self.ranks)} matrices, {super().describe()}"
