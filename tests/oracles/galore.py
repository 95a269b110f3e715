"""GaLore as its authors' package computes it: what `tinypeft.engine.optim.GaLore` must equal.

`galore.json` holds the three bases of twelve steps, and the weights after some of them. One optimizer is no reason for
everybody to install the package, so this was run once, with galore-torch 1.0 in a folder of its own:

    PYTHONPATH=.:FOLDER python -m tests.oracles.galore
"""
import json
from pathlib import Path

import numpy as np

__all__ = ["EVERY", "KEPT", "RANK", "gradients", "stored"]

FILE = Path(__file__).with_suffix(".json")
STEPS, RANK, EVERY = 12, 3, 5
KEPT = 1, 5, 6, 12                                       # steps after which the weights are kept
SHAPES = (8, 14), (14, 8)
OPTIONS = {"as the paper": {"eps": 1e-30, "weight_decay": 0.0}, "their eps and decay": {"eps": 1e-6, "weight_decay": 0.1}}


def gradients(shape):
    """The start, and the gradients of twelve steps, float32."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) for _ in range(1 + STEPS)]


def stored():
    """(shape, options, bases, weights after the steps KEPT) of each run."""
    for run in json.loads(FILE.read_text("utf-8")):
        bases, weights = (np.float32(run[name]) for name in ("bases", "weights"))
        yield tuple(run["shape"]), run["options"], bases, weights


def run(shape, options):
    """One run of the authors' optimizer."""
    import torch
    from galore_torch.adamw import AdamW
    start, *grads = gradients(shape)
    p = torch.nn.Parameter(torch.tensor(start))
    group = {"params": [p], "rank": RANK, "update_proj_gap": EVERY, "scale": 0.25, "proj_type": "std"}
    optimizer = AdamW([group], lr=1e-2, no_deprecation_warning=True, **options)
    bases, weights = [], []
    for t, g in enumerate(grads, 1):
        p.grad = torch.tensor(g)
        optimizer.step()
        if t % EVERY == 1: bases.append(brief(optimizer.state[p]["projector"].ortho_matrix))
        if t in KEPT: weights.append(brief(p))
    return {"shape": shape, "options": options, "bases": bases, "weights": weights}


def brief(array):
    """The numbers with as many digits as float32 has."""
    return [[float(str(x)) for x in row] for row in array.detach().numpy()]


if __name__ == "__main__":
    runs = [run(shape, options) for shape in SHAPES for options in OPTIONS.values()]
    FILE.write_text(json.dumps(runs) + "\n", "utf-8")
