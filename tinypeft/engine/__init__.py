"""How gradients flow: tensors that remember how they were made, operations, modules, optimizers.

    plain.py       operations, and a step of AdamW, as one reads them; begin here
    tensor.py      Tensor and `backward`: reverse-mode differentiation
    functional.py  the operations, fused and fast, each beside its backward pass
    nn.py          Module and Parameter; Linear, LayerNorm, RMSNorm, Embedding, Dropout
    optim/         SGD, AdamW and its relatives, Muon; schedules, clipping
    gradcheck.py   is a gradient right? it is compared with finite differences
    graph.py       a picture of the graph that `backward` walks
    recompute.py   activation checkpointing: keep a block's input, compute the rest again
    memo.py        keep a decoded weight for as long as a computation takes

A name is imported when it is first used.
"""
from typing import TYPE_CHECKING

from ..common.lazy import lazily

lazily(__name__)
if TYPE_CHECKING:
    from . import functional, optim, plain
    from .gradcheck import gradcheck
    from .graph import graph
    from .nn import Dropout, Embedding, LayerNorm, Linear, Module, Parameter, RMSNorm
    from .optim import SGD, AdamW, PagedAdamW, clip_grad_norm, schedule
    from .tensor import GraphError, Tensor, concatenate, maximum, no_grad, split, stack, where
