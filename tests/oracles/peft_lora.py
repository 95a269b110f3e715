"""LoRA, AdaLoRA and IA³ of Hugging Face's PEFT on a torch copy, in float64, from where ours stands.

PEFT's AdaLoRA adds its orthogonality penalty to `output.loss`; its allocator is called after the optimizer.
"""
from types import SimpleNamespace

import numpy as np
import peft
import torch
from torch import nn
from torch.nn import functional as F

import tinypeft as tp

from .torch_gpt import torch_copy
from .torch_llama import their_name, torch_llama

THEIRS = {"A": "lora_A", "B": "lora_B", "P": "lora_B", "Lam": "lora_E", "Q": "lora_A", "l": "ia3_l",
          "m": "lora_magnitude_vector"}


class WithLoss(nn.Module):
    """tokens, targets → an output with `logits` and `loss`, as transformers' models give it."""

    def __init__(self, base):
        super().__init__()
        self.copy = torch_copy(base) if isinstance(base, tp.GPT) else torch_llama(base)

    def forward(self, tokens, targets=None):
        logits = self.copy(torch.as_tensor(tokens))
        logits = getattr(logits, "logits", logits)
        loss = None if targets is None else F.cross_entropy(logits.flatten(0, 1), torch.as_tensor(targets).flatten())
        return SimpleNamespace(logits=logits, loss=loss)


def peft_model(tuned, config):
    """PEFT with `config` on a copy of the base of `tuned`, every trainable tensor as in `tuned`."""
    with tuned.disabled() as base:
        model = peft.get_peft_model(WithLoss(base), config, autocast_adapter_dtype=False)
    for name, p in model.named_parameters():
        if "ranknum" in name: p.requires_grad = False    # AdaLoRA's init_r; PEFT 0.21 trains it on a float64 base
    with torch.no_grad():
        for _, name, ours, theirs in pairs(tuned, model):
            if name == "l": theirs.data = theirs.data.double()             # PEFT makes IA³'s vectors in float32
            assert theirs.dtype == torch.float64 and theirs.requires_grad
            theirs.copy_(torch.as_tensor(np.array(ours.data)).reshape(theirs.shape))
    return model


def pairs(tuned, model):
    """(path, name, our Parameter, PEFT's parameter) of all that is trained."""
    found, name_of = [], str if isinstance(tuned.model, tp.GPT) else their_name
    for path, wrapper in tuned.wrappers.items():
        layer = model.get_submodule(f"base_model.model.copy.{name_of(path)}")
        for name, p in wrapper.named_parameters():
            if name in THEIRS:
                theirs = getattr(layer, THEIRS[name])["default"]
                found.append((path, name, p, getattr(theirs, "weight", theirs)))
    assert len(found) == sum(p.requires_grad for p in model.parameters()) == len(tuned.trainable_parameters())
    return found


def is_matrix(p):
    """PEFT's λ is (r, 1) and its l (d, 1), which are vectors here."""
    return p.dim() > 1 and min(p.shape) > 1


def train(model, task, steps, batch_size, lr, weight_decay=0.0, seed=0, after_step=lambda t: None, make=None):
    """AdamW on the batches that tinypeft.train draws (vectors, such as λ and m, are not decayed); the loss of every step.

    after_step(t) runs after step t of 1 … steps. make: makes another optimizer.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = make() if make else torch.optim.AdamW(
        [{"params": [p for p in trained if is_matrix(p)]},
         {"params": [p for p in trained if not is_matrix(p)], "weight_decay": 0.0}], lr=lr, weight_decay=weight_decay)
    losses = []
    for step in range(steps):
        tokens, targets = task.batch("train", batch_size, np.random.default_rng([seed, step]))
        loss = model.base_model(tokens, targets).loss    # PeftModel's own forward would leave the penalty out
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if hasattr(model.base_model, "update_and_allocate"): model.base_model.update_and_allocate(step + 1)
        after_step(step + 1)
        losses.append(loss.item())
    return losses
