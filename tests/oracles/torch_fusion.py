"""AdapterFusion in PyTorch, for which PEFT has no counterpart: query, key and value as one writes an attention."""
import torch
from torch import nn

from .torch_adapters import ACTIVATIONS

__all__ = ["Fused", "put_fused"]


class Fused(nn.Module):
    """The layer's output, plus an attention over what frozen bottlenecks make of that output. shapes: [(m, activation)]."""

    def __init__(self, layer, d, shapes):
        super().__init__()
        self.layer = layer
        self.bottlenecks = nn.ModuleList(nn.Sequential(nn.Linear(d, m), ACTIVATIONS[f], nn.Linear(m, d)) for m, f in shapes)
        self.query, self.key, self.value = (nn.Linear(d, d, bias=False) for _ in range(3))
        for p in self.bottlenecks.parameters(): p.requires_grad = False

    def forward(self, x):
        h = self.layer(x)
        z = torch.stack([bottleneck(h) for bottleneck in self.bottlenecks], dim=2)              # (B, T, N, d)
        scores = self.query(h).unsqueeze(2) @ self.key(z).transpose(2, 3)                       # (B, T, 1, N)
        return h + (scores.softmax(dim=-1) @ self.value(z)).squeeze(2)


def put_fused(model, places, shapes):
    """places: (block, sublayer, layer) names; returns the new modules in that order."""
    new = []
    for block, sublayer, layer in places:
        parent = getattr(model.blocks[block], sublayer)
        new.append(Fused(getattr(parent, layer), model.sizes.d_model, shapes).double())
        setattr(parent, layer, new[-1])
    return new
