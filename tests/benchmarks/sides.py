"""A training step (forward, backward, AdamW) on either side: the same model, the same tokens, both cores.

tinypeft takes the workers that its rule says (`training/backward.py`), PyTorch its own threads.
"""
import itertools

import numpy as np

import tinypeft as tp
from tinypeft.training.backward import backward

__all__ = ["HORIZON", "SIZES", "Random", "batch_of", "ours", "theirs"]

SIZES = {                                     # name → (config, rows per batch)
    "base":   (tp.GPTConfig(1024, 256, 128, 5, 4), 8),
    "middle": (tp.GPTConfig(4096, 256, 320, 6, 5), 4),
    "large":  (tp.GPTConfig(8192, 256, 512, 8, 8), 2),
}


class Random:
    """A task whose batches are random tokens; timing does not care what they say."""
    def count(self, batch): return batch[1].size
    def loss(self, model, batch): return model.loss(batch[0], batch[1])


def batch_of(config, rows, length=None):
    """(tokens, targets) of `rows` rows, each as long as the context or `length`."""
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (rows, (length or config.context_length) + 1))
    return tokens[:, :-1], tokens[:, 1:]


def ours(model, batch, workers=None):
    """A training step of a GPT or a PeftModel, as `tinypeft.train` does it. workers: None for those of the rule."""
    optimizer = tp.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    optimizer.workers = workers

    def step():
        model.before_step(optimizer.t, HORIZON)
        optimizer.zero_grad()
        backward(model, Random(), batch, workers)
        optimizer.step()
        model.after_step(optimizer.t - 1, HORIZON)
    return step


HORIZON = 10_000                              # steps of the training that a step belongs to; AdaLoRA's schedule asks


def theirs(model, batch, forward=None, loss=None, after_step=lambda t: None):
    """A training step in PyTorch. forward: tokens → logits, or an output that has them; the model itself if None. loss: tokens
    → the loss, in place of the cross-entropy of the logits. after_step(t) runs after step t = 1, 2, …"""
    import torch
    forward = model if forward is None else forward      # `or` would ask a compiled model for its length
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    tokens, targets = (torch.as_tensor(a) for a in batch)
    steps = itertools.count(1)

    def cross_entropy(tokens):
        output = forward(tokens)
        logits = getattr(output, "logits", output)[:, -targets.shape[1]:]                # without those of virtual tokens
        return torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))

    def step():
        optimizer.zero_grad()
        (loss or cross_entropy)(tokens).backward()
        optimizer.step()
        after_step(next(steps))
    return step
