"""A method of Hugging Face's PEFT on a PyTorch copy of the model, in float64, beside ours."""
import numpy as np
import peft
import torch

from .torch_gpt import torch_copy

__all__ = ["peft_twin"]


def peft_twin(theirs_of, tuned):
    """Return PEFT's model, and (our Parameter, PEFT's, what brings an array into PEFT's shape) of all that is trained.

    theirs_of: the row's `peft` (tests/methods.py). What is drawn and not trained is copied; trained numbers are not.
    """
    with tuned.disabled() as base:
        theirs = peft.get_peft_model(torch_copy(base), theirs_of.config(tuned.method), autocast_adapter_dtype=False).double()
    pairs = []
    for path, layer in tuned.wrappers.items():
        module = theirs.get_submodule(f"base_model.model.{path}")
        if theirs_of.draw:
            with torch.no_grad(): theirs_of.draw(layer, module)
        for ours, name in theirs_of.names.items():
            p = getattr(module, name.removesuffix(".T"))["default"]
            p = getattr(p, "weight", p)
            form = np.transpose if name.endswith(".T") else lambda a, shape=tuple(p.shape): a.reshape(shape)
            pairs.append((getattr(layer, ours), p, form))
    assert len(pairs) == sum(p.requires_grad for p in theirs.parameters())
    return theirs, pairs
