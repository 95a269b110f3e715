"""gguf_blocks.py, bit-exact against the gguf package: bytes and values of the plain types; every error."""
import tracemalloc
import warnings
from dataclasses import replace

import numpy as np
import pytest

from tests.interop.test_gguf_types import halves
from tinypeft.interop.gguf_bytes import file_bytes, type_of
from tinypeft.interop.gguf_types import TYPES as FILE_TYPES
from tinypeft.interop.gguf_types import as_qtensor
from tinypeft.quant import GGUF, NF4, Uniform, gguf_blocks


def cases():
    rng = np.random.default_rng(0)
    for exponent in (-4, -1, 0, 2):
        W = (rng.normal(size=(32, 256)) * 10.0**exponent).astype(np.float32)
        W[0, :32], W[1, :32], W[2, :32] = 0, 0.5, -0.5
        W[3] = np.round(W[3], 1)                                               # ties, between codes and for the largest
        W[4, :32] = np.arange(-16, 16) / 16
        W[5, 64:96] = np.arange(32) * 4 - 63.5                                 # Q8_0: s = 0.5, halves of steps
        yield W


BITS = {"Q8_0": 8.5, "Q4_0": 4.5, "Q4_1": 5, "Q5_0": 5.5, "Q5_1": 6}


@pytest.mark.parametrize("name", BITS)
def test_exact_gguf(name):
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[name]
    for W in cases():
        q = GGUF(name).quantize(W)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                                    # its 1/0 of zero blocks
            theirs = gguf.quants.quantize(W, kind)
        assert np.array_equal(file_bytes(q).reshape(-1), theirs.reshape(-1))
        assert np.array_equal(q.dequantize(), gguf.quants.dequantize(theirs, kind))
        assert q.nbytes == theirs.nbytes and q.bits_per_weight == BITS[name]


def test_exact_by_hand():
    x = np.zeros((1, 32), np.float32)
    x[0, :5] = -8, 4, 3.5, -3.5, 7.9
    q = GGUF("Q4_0").quantize(x)                                               # d = −(−8)/8 = 1
    assert q.scale.tolist() == [1.0] and q.integers()[0, :5].tolist() == [-8, 4, 4, -3, 7]
    x[0, :5] = 127, 0.5, -0.5, 1.5, -2.5
    q = GGUF("Q8_0").quantize(x)
    assert q.scale.tolist() == [1.0] and q.integers()[0, :5].tolist() == [127, 1, -1, 2, -3]
    assert file_bytes(q).shape == (1, 34)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q5_1"])
def test_rounding_takes_little_memory(name, rng, monkeypatch):
    """An embedding is a fifth of a model: its numbers are taken a part at a time. One worker, because each has a part."""
    monkeypatch.setattr(gguf_blocks, "parallel_map", lambda f, items: [f(item) for item in items])
    W = rng.standard_normal((8192, 512), dtype=np.float32)
    scheme = GGUF(name)
    tracemalloc.start()
    try:
        q = scheme.quantize(W)
        peak = tracemalloc.get_traced_memory()[1]
    finally: tracemalloc.stop()
    assert peak < 1.5 * W.nbytes                             # the codes before and after they are packed; it was 3 to 4
    for row in range(0, 8192, 1000):                         # whatever part a row is in
        assert np.array_equal(q.take(np.array([row])).dequantize(), scheme.quantize(W[row:row + 1]).dequantize())


def test_errors():
    with pytest.raises(ValueError, match="a scale of 787402 overflows GGUF's float16"):
        GGUF("Q8_0").quantize(np.full((1, 32), 1e8))
    with pytest.raises(ValueError, match="overflows"):           # in one block of many
        GGUF("Q8_0").quantize(np.vstack([np.ones((3, 32)), np.full((1, 32), 1e8)]))
    half = {"granularity": "group", "group_size": 32, "scale_dtype": "float16"}
    others = (NF4(), Uniform(4), Uniform(4, granularity="group", group_size=32), Uniform(4, symmetric=False, **half),
              Uniform(3, **half), Uniform(4, convention="full", **half | {"group_size": 16}))
    for other in others:
        with pytest.raises(ValueError, match="no type of GGUF holds .*; tinypeft.GGUF quantizes to its types"):
            file_bytes(other.quantize(np.ones((4, 64))))
    q = GGUF().quantize(np.ones((4, 64)))
    for wrong in {"order": np.arange(64, dtype=np.int32)}, {"offset": np.float32(1)}, {"zero": 7}:
        with pytest.raises(ValueError, match="no type of GGUF holds"): file_bytes(replace(q, **wrong))


@pytest.mark.parametrize("kind", [kind for kind in FILE_TYPES.values() if kind.bits], ids=lambda kind: kind.name)
def test_what_a_file_holds_is_written_again_bit_exact(kind, rng):
    octets = rng.integers(0, 256, (24, kind.octets), np.uint8)
    for at in halves(kind): octets[:, at + 1] &= 0b1011_1111                   # finite scales
    if kind.name == "MXFP4": octets[:, 0] = np.minimum(octets[:, 0], 254)
    q = as_qtensor(kind, octets.reshape(-1), (6, 4 * kind.weights))
    assert np.array_equal(file_bytes(q), octets) and type_of(q) == kind.name
