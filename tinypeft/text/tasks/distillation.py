"""Distillation: the student learns to predict what a teacher predicts, on any text."""
import numpy as np

from ...common.hints import Array
from ...engine import functional as F
from ...engine.nn import Module
from ...engine.tensor import Tensor
from .task import Task

__all__ = ["Distillation", "divergence"]


def divergence(log_p: Array, logits: Tensor) -> Tensor:
    """Mean KL(p ‖ softmax(logits)) over positions, nats. log_p, an array, and logits are (…, V)."""
    return (np.exp(log_p) * (log_p - F.log_softmax(logits))).sum(-1).mean()


class Distillation(Task):
    """Predict as `teacher` does on batch[0] (B, T). Subclasses supply batches and call `teach`."""
    finish = Task.finish                         # a divergence has no perplexity

    def teach(self, teacher: Module) -> None:
        """Freeze the teacher, which then records no graph."""
        self.teacher = teacher
        for p in teacher.parameters(): p.requires_grad = False

    def log_p(self, batch: tuple[Array, ...]) -> Array:
        return F.log_softmax(self.teacher(batch[0])).data

    def loss(self, model: Module, batch: tuple[Array, ...]) -> Tensor:
        return divergence(self.log_p(batch), model(batch[0]))

    def metrics(self, model: Module, batch: tuple[Array, ...]) -> dict[str, float]:
        """KL in nats/token, and the share of positions where both find the same token likeliest."""
        log_p, logits = self.log_p(batch), model(batch[0])
        agree = log_p.argmax(-1) == logits.data.argmax(-1)
        return {"loss": divergence(log_p, logits).item(), "agreement": float(agree.mean())}
