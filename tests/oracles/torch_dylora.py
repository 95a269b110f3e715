"""DyLoRA in PyTorch by explicit truncation, and AdamW that touches only a block of rows, moments included."""
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .torch_gpt import torch_copy


class TruncatedLoRA(nn.Module):
    """h = W₀x + α/b · B[:, :b] A[:b] x, of which the first `fixed` rows and columns are constants."""

    def __init__(self, base, A, B, alpha):
        super().__init__()
        self.base, self.A, self.B = base, *(nn.Parameter(torch.as_tensor(np.array(w))) for w in (A, B))
        self.alpha, self.b, self.fixed = alpha, len(A), 0

    def forward(self, x):
        f, b = self.fixed, self.b
        A = torch.cat([self.A[:f].detach(), self.A[f:b]])
        B = torch.cat([self.B[:, :f].detach(), self.B[:, f:b]], dim=1)
        return self.base(x) + self.alpha / b * (x @ A.T @ B.T)


def dylora(tuned, alpha):
    """The torch copy of the base of `tuned` with a TruncatedLoRA at each target; and path → TruncatedLoRA."""
    with tuned.disabled() as base:
        model = torch_copy(base).requires_grad_(False)
    layers = {}
    for path, w in tuned.wrappers.items():
        parent, name = path.rsplit(".", 1)
        layers[path] = TruncatedLoRA(model.get_submodule(path), w.A.data, w.B.data, alpha)
        setattr(model.get_submodule(parent), name, layers[path])
    return model, layers


def train(model, layers, task, ranks, batch_size, lr, weight_decay=0.0, block=None, smallest=0, seed=0):
    """A step of AdamW per rank b of `ranks`; returns the losses.

    It moves rows [0, b) or, with `block`, [b − block, b) at all ranks but the smallest.
    """
    moments = {(path, n): torch.zeros(2, *getattr(m, n).shape, dtype=torch.float64)
               for path, m in layers.items() for n in "AB"}
    losses, (beta1, beta2) = [], (0.9, 0.999)
    for t, b in enumerate(ranks, start=1):
        first = b - block if block and b > smallest else 0
        for m in layers.values(): m.b, m.fixed = b, first
        tokens, targets = task.batch("train", batch_size, np.random.default_rng([seed, t - 1]))
        model.zero_grad()
        loss = F.cross_entropy(model(tokens).flatten(0, 1), torch.as_tensor(targets).flatten())
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for path, layer in layers.items():
                for name, rows in (("A", np.s_[first:b]), ("B", np.s_[:, first:b])):
                    p, (m, v) = getattr(layer, name), moments[path, name]
                    g = p.grad[rows]
                    m[rows] = beta1 * m[rows] + (1 - beta1) * g
                    v[rows] = beta2 * v[rows] + (1 - beta2) * g * g
                    p[rows] *= 1 - lr * weight_decay
                    p[rows] -= lr * (m[rows] / (1 - beta1 ** t)) / ((v[rows] / (1 - beta2 ** t)).sqrt() + 1e-8)
    return losses
