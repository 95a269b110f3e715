"""LoHa, LoKr, HiRA: the ranks of their changes. Their equations and promises are in test_methods.py."""
import numpy as np

import tinypeft as tp
from tests.protocol import learned
from tinypeft.peft.hadamard import divisor

LAYERS = "query", "up", "down"
METHODS = {"loha": tp.LoHa(3, alpha=6, targets=LAYERS), "lokr": tp.LoKr(1, alpha=4, targets=LAYERS),
           "hira": tp.HiRA(3, targets=LAYERS)}
UP = "blocks.0.mlp.up"


def test_their_ranks_and_sizes(gpt):
    """A LoHa of rank 3 has rank 9; a HiRA has that of the weight. LoKr's factors are as square as can be."""
    layer = {name: learned(gpt(), method).wrappers[UP] for name, method in METHODS.items()}
    w = layer["lokr"]
    assert w.C.shape == (8, 4) and w.B.shape == (8, 1) and w.A.shape == (1, 4)
    assert np.linalg.matrix_rank(layer["loha"].delta()) == 9 and np.linalg.matrix_rank(layer["hira"].delta()) == 16
    assert [divisor(d) for d in (1, 7, 16, 20, 64, 127, 128)] == [1, 1, 4, 4, 8, 1, 8]
