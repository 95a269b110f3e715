"""Adapters in PyTorch, for which PEFT has no counterpart: behind a layer (Houlsby, Pfeiffer) and beside a sublayer."""
from torch import nn

__all__ = ["Behind", "Beside", "put_behind", "put_beside"]

ACTIVATIONS = {"gelu": nn.GELU(approximate="tanh"), "relu": nn.ReLU(), "tanh": nn.Tanh(), "silu": nn.SiLU()}


class Behind(nn.Module):
    """The layer's output, plus what a bottleneck makes of that output."""

    def __init__(self, layer, d, m, activation, activation_up):
        super().__init__()
        act = ACTIVATIONS[activation]
        self.layer = layer
        self.bottleneck = nn.Sequential(nn.Linear(d, m), act, nn.Linear(m, d), act if activation_up else nn.Identity())

    def forward(self, x):
        y = self.layer(x)
        return y + self.bottleneck(y)


class Beside(nn.Module):
    """The sublayer's output, plus what a bottleneck makes of its input, scaled."""

    def __init__(self, sublayer, d, m, activation, scale):
        super().__init__()
        self.sublayer, self.scale = sublayer, scale
        self.bottleneck = nn.Sequential(nn.Linear(d, m), ACTIVATIONS[activation], nn.Linear(m, d))

    def forward(self, x, *seams):
        return self.sublayer(x, *seams) + self.scale * self.bottleneck(x)


def put_behind(model, places, m, activation, activation_up=False):
    """places: (block, sublayer, layer) names, e.g. (0, "mlp", "down"); returns the new modules in that order."""
    new = []
    for block, sublayer, layer in places:
        parent = getattr(model.blocks[block], sublayer)
        new.append(Behind(getattr(parent, layer), model.sizes.d_model, m, activation, activation_up).double())
        setattr(parent, layer, new[-1])
    return new


def put_beside(model, places, m, activation, scale):
    """places: (block, sublayer); returns the new modules in that order."""
    new = []
    for block, sublayer in places:
        new.append(Beside(getattr(model.blocks[block], sublayer), model.sizes.d_model, m, activation, scale).double())
        setattr(model.blocks[block], sublayer, new[-1])
    return new
