"""gguf_blocks.py, bit-exact against the gguf package: bytes and values of Q8_0 and Q4_0; every error."""
import warnings

import numpy as np
import pytest

from tinypeft.quant import GGUF, NF4, Uniform
from tinypeft.quant.gguf_blocks import block_bytes


def cases():
    rng = np.random.default_rng(0)
    for exponent in (-4, -1, 0, 2):
        W = (rng.normal(size=(32, 256)) * 10.0**exponent).astype(np.float32)
        W[0, :32], W[1, :32], W[2, :32] = 0, 0.5, -0.5
        W[3] = np.round(W[3], 1)                                               # ties, between codes and for the largest
        W[4, :32] = np.arange(-16, 16) / 16
        W[5, 64:96] = np.arange(32) * 4 - 63.5                                 # Q8_0: s = 0.5, halves of steps
        yield W


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0"])
def test_exact_gguf(name):
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[name]
    for W in cases():
        q = GGUF(name).quantize(W)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                                    # its 1/0 of zero blocks
            theirs = gguf.quants.quantize(W, kind)
        assert np.array_equal(block_bytes(q).reshape(-1), theirs.reshape(-1))
        assert np.array_equal(q.dequantize(), gguf.quants.dequantize(theirs, kind))
        assert q.nbytes == theirs.nbytes and q.bits_per_weight == {"Q8_0": 8.5, "Q4_0": 4.5}[name]


def test_exact_by_hand():
    x = np.zeros((1, 32), np.float32)
    x[0, :5] = -8, 4, 3.5, -3.5, 7.9
    q = GGUF("Q4_0").quantize(x)                                               # d = −(−8)/8 = 1
    assert q.scale.tolist() == [1.0] and q.integers()[0, :5].tolist() == [-8, 4, 4, -3, 7]
    x[0, :5] = 127, 0.5, -0.5, 1.5, -2.5
    q = GGUF("Q8_0").quantize(x)
    assert q.scale.tolist() == [1.0] and q.integers()[0, :5].tolist() == [127, 1, -1, 2, -3]
    assert block_bytes(q).shape == (1, 34)


def test_errors():
    with pytest.raises(ValueError, match="name must be 'Q4_0' or 'Q8_0', got 'Q4_K'"):
        GGUF("Q4_K")
    with pytest.raises(ValueError, match="group_size=32 does not divide the last axis, 48; 24 does"):
        GGUF().quantize(np.ones((4, 48)))
    with pytest.raises(ValueError, match="a scale of 7.87402e.07 overflows GGUF's float16"):
        GGUF("Q8_0").quantize(np.full((1, 32), 1e10))
    with pytest.raises(ValueError, match="overflows"):           # in one block of many
        GGUF("Q8_0").quantize(np.vstack([np.ones((3, 32)), np.full((1, 32), 1e10)]))
    for other in (NF4(), Uniform(4), Uniform(4, granularity="group", group_size=32)):
        with pytest.raises(ValueError, match="block_bytes needs blocks of 32 with float16 scales and 4 or 8 bits, got"):
            block_bytes(other.quantize(np.ones((4, 64))))
