"""AdaLoRA as the paper has it, in PyTorch: Algorithm 1, the squared penalty of equation (4), scores before the step.

Written from the paper, layer by layer with dictionaries, apart from one departure it shares with all codes: the
schedule (that of the paper's Appendix A, as printed, does not end at the target).
"""
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .torch_gpt import torch_copy


class SVDLinear(nn.Module):
    def __init__(self, base, P, lam, Q):
        super().__init__()
        self.base, self.P, self.lam, self.Q = base, *(nn.Parameter(torch.as_tensor(np.array(a))) for a in (P, lam, Q))

    def forward(self, x):
        return self.base(x) + torch.einsum("...i,ri,r,or->...o", x, self.Q, self.lam, self.P)


def adalora(tuned):
    """The torch copy of the base of `tuned` with an SVDLinear at each of its targets; and path → SVDLinear."""
    with tuned.disabled() as base:
        model = torch_copy(base).requires_grad_(False)
    layers = {}
    for path, w in tuned.wrappers.items():
        parent, name = path.rsplit(".", 1)
        layers[path] = SVDLinear(model.get_submodule(path), w.P.data, w.Lam.data, w.Q.data)
        setattr(model.get_submodule(parent), name, layers[path])
    return model, layers


def train(model, layers, task, T, batch_size, lr, *, r0, rT, ti, tf, dT, beta1, beta2, gamma, seed=0):
    """T steps of AdamW; returns losses (penalty included) and, per allocation, the set of (path, i) that was kept."""
    params = {(path, n): p for path, m in layers.items() for n, p in (("P", m.P), ("lam", m.lam), ("Q", m.Q))}
    optimizer = torch.optim.AdamW(params.values(), lr=lr, weight_decay=0.0)
    bar_I, bar_U = ({k: torch.zeros_like(p) for k, p in params.items()} for _ in range(2))
    losses, kept_sets, kept = [], [], {(path, i) for path in layers for i in range(r0)}
    for t in range(1, T + 1):
        tokens, targets = task.batch("train", batch_size, np.random.default_rng([seed, t - 1]))
        loss = F.cross_entropy(model(tokens).flatten(0, 1), torch.as_tensor(targets).flatten())
        for m in layers.values():
            for gram in (m.P.T @ m.P, m.Q @ m.Q.T):
                loss = loss + gamma * torch.linalg.matrix_norm(gram - torch.eye(r0)) ** 2
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            if t < T - tf:
                for k, p in params.items():
                    I = (p * p.grad).abs()
                    bar_I[k] = beta1 * bar_I[k] + (1 - beta1) * I
                    bar_U[k] = beta2 * bar_U[k] + (1 - beta2) * (I - bar_I[k]).abs()
            optimizer.step()
            if ti < t <= T - tf and (t % dT == 0 or t == T - tf):
                b0, bT = r0 * len(layers), rT * len(layers)
                budget = int((b0 - bT) * (1 - (t - ti) / (T - tf - ti)) ** 3 + bT)
                s = lambda path, n: bar_I[path, n] * bar_U[path, n]          # noqa: B023
                S = {(path, i): (s(path, "lam")[i] + s(path, "P")[:, i].mean() + s(path, "Q")[i].mean()).item()
                     for path in layers for i in range(r0)}
                kept = set(sorted(S, key=S.get)[-budget:])
                kept_sets.append(kept)
            elif t <= T - tf:
                continue
            for path, m in layers.items():
                for i in range(r0):
                    if (path, i) not in kept: m.lam[i] = 0
    return losses, kept_sets
