"""Planting: recover a change of known ranks, which is the truth that judges allocations of rank.

The teacher is the model with a hidden change W + σ U Vᵀ of rank r in some matrices; r differs from
matrix to matrix and is mostly 0. The student is the model with a method on it. The loss on text is

    L = KL(teacher ‖ student) = Σ_w p_teacher(w) ln(p_teacher(w) / p_student(w))

in nats/token, the mean over positions. It is 0 if and only if the change is found. A method that
allocates rank (AdaLoRA) should put it where it was planted. The loss as a function of the rank in
use (DyLoRA) should fall up to the planted rank, and no further.

Every planted direction costs the model the same; otherwise leaving out a cheap one would be no
mistake. For inputs x (d_in,) and outputs y = W x of a layer on some text, Vᵀx are r random features
of x with E[Vᵀx xᵀV] = I, U (d_out, r) is an orthonormal basis of random mixtures of outputs, and σ
is such that changing this matrix alone costs KL(model ‖ changed) = r · effect.
"""
import copy

import numpy as np

from ...common.hints import Array, Seed
from ...engine import functional as F
from ...engine.nn import Linear, Module, replace_modules
from ...engine.tensor import Tensor, no_grad
from ...models.decoder import Decoder, require_free
from ...models.targets import match_targets
from ...training.evaluation import evaluate
from .distillation import Distillation, divergence
from .language_modelling import LanguageModelling, domain

__all__ = ["Planted", "planted"]


def planted(model: Decoder, ranks: dict[str, int] | int | None = None, effect: float = 0.01,
            context: int | None = None, held_out: int | None = 8192, rng: Seed = 0) -> "Planted":
    """Return the task whose teacher is `model` with a hidden low-rank change; `.ranks` is the
    truth.

    model: a plain one with a tokenizer; it is not changed. ranks: path → rank for linear layers in
    the blocks, one rank for all, or None to deal out 0, 0, 0, 0, 1, 2, 4, 8 at random. effect:
    what a planted direction costs the unchanged model, nats/token. context, held_out: as in
    `domain`. TypeError for no model; ValueError for the model inside a PeftModel, unknown paths
    and ranks."""
    require_free(model, "planted")
    rng, layers = np.random.default_rng(rng), dict(match_targets(model, "all"))
    largest = {path: min(layer.d_in, layer.d_out) for path, layer in layers.items()}
    if ranks is None:
        dealt = rng.permutation(np.resize([0, 0, 0, 0, 1, 2, 4, 8], len(layers))).tolist()
        ranks = {path: min(r, largest[path]) for path, r in zip(layers, dealt, strict=True)}
    elif not isinstance(ranks, dict):
        ranks = dict.fromkeys(layers, ranks)
    for path, r in ranks.items():
        if path not in layers:
            raise ValueError(f"planted: no linear layer {path!r}; there are {', '.join(layers)}")
        if not 0 <= r <= largest[path]:
            raise ValueError(f"the rank at {path} must lie in [0, {largest[path]}], got {r}")
    text, hidden = domain(model, context, held_out), {path: r for path, r in ranks.items() if r}
    change = plant(model, hidden, effect, text.batch("train", 4, rng)[0], rng)
    return Planted(copy.deepcopy(model).eval(), change, dict.fromkeys(layers, 0) | ranks, text)


def plant(model: Decoder, ranks: dict[str, int], effect: float, tokens: Array,
          rng: "np.random.Generator") -> dict[str, Linear]:
    """path → Linear with W + σ U Vᵀ for each of `ranks`, measured on the text tokens (B, T)."""
    recorders = {path: Recorder(model.get(path)) for path in ranks}
    layers = replace_modules(model, recorders)
    with no_grad():
        log_p = F.log_softmax(model(tokens)).data
        replace_modules(model, layers)
        change = {}
        for path, r in ranks.items():
            layer, X = layers[path], recorders[path].inputs.astype(np.float64)        # (N, d_in)
            W = layer.dense_weight()
            mixtures = rng.standard_normal((len(X), r)), rng.standard_normal((len(X), r))
            V = X.T @ mixtures[0]
            V = V @ np.linalg.inv(np.linalg.cholesky(V.T @ (X.T @ X) @ V / len(X))).T  # whitened
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
                sigma *= np.sqrt(r * effect / cost)              # the cost is almost quadratic in σ
    return change


class Recorder(Module):
    """A layer that keeps its last inputs, (N, d_in)."""

    def __init__(self, base: Module):
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        self.inputs = x.data.reshape(-1, x.shape[-1])
        return self.base(x)


class Planted(Distillation, LanguageModelling):
    """Compute what `model` computes with the layers of `change` (path → Linear), on the windows of
    `text`. ranks: path → rank. The model becomes the task's own, as `teacher`."""

    def __init__(self, model: Decoder, change: dict[str, Linear], ranks: dict[str, int],
                 text: LanguageModelling):
        super().__init__("planted", text.streams, text.n_bytes, text.context, text.sha256)
        self.ranks, self.unchanged = ranks, replace_modules(model, change)
        self.teach(model)

    def measure_baselines(self) -> dict[str, dict[str, float]]:
        """Measure the unchanged model."""
        model = copy.deepcopy(self.teacher)
        replace_modules(model, self.unchanged)
        return {"unchanged model": evaluate(model, self, "test")}

    def describe(self) -> str:
        ranks = [r for r in self.ranks.values() if r]
        return (f"rank {sum(ranks)} hidden in {len(ranks)} of {len(self.ranks)} matrices, "
                f"{super().describe()}")
