"""The training loop as one reads it: `loop.py` without options, threads, evaluations, checkpoints.

It calls no hook and adds no penalty, which AdaLoRA and DyLoRA need. For other methods, with one
worker and no dropout, `tinypeft.train` gives the same losses and parameters, bit for bit.
"""
from typing import Any

import numpy as np

from ..engine.nn import Module
from ..engine.optim import AdamW, clip_grad_norm, schedule

__all__ = ["train"]


def train(model: Module, task: Any, steps: int, lr: float, batch_size: int = 8,
          seed: int = 0) -> list[float]:
    """Train what requires gradients by AdamW; return the loss of each step, in nats."""
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = AdamW(params, lr=lr, weight_decay=0.0)
    losses = []
    for s in range(steps):
        optimizer.scale_lr(schedule("linear", s, steps, warmup=max(1, steps // 20)))
        optimizer.zero_grad()
        batch = task.batch("train", batch_size, np.random.default_rng([seed, s]))
        loss = task.loss(model, batch)
        loss.backward()
        clip_grad_norm(params, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses
