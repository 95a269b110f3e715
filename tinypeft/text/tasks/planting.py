"""Planting: recover a hidden change of known ranks, the truth for methods that allocate rank.

The teacher is the model with a hidden change in some weight matrices, W + σ U Vᵀ of rank r. The
rank differs from matrix to matrix and is mostly 0. The student is the model with a method attached.
The loss, in nats/token on text, is

    L = mean over positions of KL(teacher ‖ student),
    KL(p ‖ q) = Σ_w p(w) ln(p(w) / q(w)).

L is 0 if and only if the change is found. A method that allocates rank (AdaLoRA) should put it
where it was planted. The loss as a function of the rank in use (DyLoRA) should fall up to that rank
only.

All planted directions must matter equally; leaving out an unimportant one would be no mistake. Let
x (d_in,) be the layer's inputs and y = W x its outputs on some text. Vᵀx are r random features of x
with E[Vᵀx xᵀV] = I, and U is an orthonormal basis (d_out, r) of random mixtures of outputs. σ is
chosen so that this matrix' change alone costs the model KL(model ‖ changed) = r · effect. Each
direction then costs the same, within a matrix and between matrices.
"""
from __future__ import annotations

import copy

import numpy as np

from ... import functional as F
from ...gpt import GPT
from ...hints import Seed
from ...nn import Linear, Module, replace_modules
from ...tensor import no_grad
from ...train import evaluate
from .distillation import Distillation, divergence
from .language_modelling import LanguageModelling, domain
from .task import Metrics

__all__ = ["Planted", "planted"]

RANKS = 0, 0, 0, 0, 1, 2, 4, 8


def planted(model: GPT, ranks: dict[str, int] | int | None = None, effect: float = 0.01,
            context: int | None = None, held_out: int | None = 8192, rng: Seed = 0) -> Planted:
    """Make the task of recovering a hidden low-rank change; `task.ranks` is the truth, path → rank.

    model: a plain GPT with a tokenizer; it is not changed. ranks: path → rank for some of the
    blocks' linear layers, one rank for all of them, or None to deal 0, 0, 0, 0, 1, 2, 4, 8 out at
    random. effect: the cost of a planted direction to the unchanged model, nats/token. context,
    held_out: as in `domain`. Raises TypeError for anything but a GPT, and ValueError for an
    attached method, an unknown path or an impossible rank."""
    if not isinstance(model, GPT):
        raise TypeError(f"planted: expected a GPT, got {type(model).__name__}; "
                        "attach a method afterwards, to the same model")
    if model.attached is not None:
        raise ValueError("planted: a method is attached to the model; "
                         "call .detach() on the result of attach first")
    rng = np.random.default_rng(rng)
    layers = {path: m for path, m in model.named_modules()
              if path.startswith("blocks.") and hasattr(m, "dense_weight")}
    largest = {p: min(m.d_in, m.d_out) for p, m in layers.items()}
    if ranks is None:
        dealt = rng.permutation(np.resize(RANKS, len(layers))).tolist()
        ranks = {path: min(r, largest[path]) for path, r in zip(layers, dealt, strict=True)}
    elif not isinstance(ranks, dict):
        ranks = dict.fromkeys(layers, ranks)
    for path, r in ranks.items():
        if path not in layers:
            raise ValueError(f"planted: there is no linear layer {path!r}; "
                             f"there are {', '.join(layers)}")
        if not 0 <= r <= largest[path]:
            raise ValueError(f"planted: the rank at {path} must lie in [0, {largest[path]}], "
                             f"got {r}")
    text = domain(model, context, held_out)
    tokens = text.batch("train", 4, rng)[0]
    change = plant(model, {path: r for path, r in ranks.items() if r}, effect, tokens, rng)
    every = {path: ranks.get(path, 0) for path in layers}
    return Planted(copy.deepcopy(model).eval(), change, every, text)


def plant(model, ranks, effect, tokens, rng):
    """Make a Linear with W + σ U Vᵀ for each path of `ranks`, scaled on tokens (B, T)."""
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
            L = np.linalg.cholesky(V.T @ (X.T @ X) @ V / len(X))
            V = V @ np.linalg.inv(L).T                                         # now E[Vᵀx xᵀV] = I
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
                sigma *= np.sqrt(r * effect / cost)            # the cost is almost quadratic in σ
    return change


class Recorder(Module):
    """A wrapper that keeps the last inputs of its layer, (N, d_in)."""

    def __init__(self, base):
        self.base = base

    def forward(self, x):
        self.inputs = x.data.reshape(-1, x.shape[-1])
        return self.base(x)


class Planted(Distillation, LanguageModelling):
    """Imitate `model` with the layers of `change` (path → Linear), on the windows of `text`.

    ranks: path → rank. The model becomes the task's own, as `teacher`."""

    def __init__(self, model: GPT, change: dict[str, Linear], ranks: dict[str, int],
                 text: LanguageModelling):
        super().__init__("planted", text.streams, text.n_bytes, text.context, text.sha256)
        self.ranks, self.unchanged = ranks, replace_modules(model, change)
        self.teach(model)

    def finish(self, means: Metrics, split: str = "test") -> Metrics:
        return means

    def measure_baselines(self) -> dict[str, Metrics]:
        """Measure the unchanged model."""
        model = copy.deepcopy(self.teacher)
        replace_modules(model, self.unchanged)
        return {"unchanged model": evaluate(model, self, "test")}

    def describe(self) -> str:
        hidden = [r for r in self.ranks.values() if r]
        return (f"rank {sum(hidden)} hidden in {len(hidden)} of {len(self.ranks)} matrices, "
                f"{super().describe()}")
