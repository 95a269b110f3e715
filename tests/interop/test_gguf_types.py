"""gguf_types.py: every block type decodes to the numbers that the package gguf decodes, whatever the bytes."""
import numpy as np
import pytest

from tinypeft.interop.gguf_types import TYPES, decode

gguf = pytest.importorskip("gguf")


@pytest.mark.parametrize("kind", TYPES.values(), ids=lambda kind: kind.name)
@pytest.mark.parametrize("n", [1, 7, 3000])
def test_random_bytes_decode_to_the_same_numbers(kind, n, rng):
    theirs = gguf.GGMLQuantizationType[kind.name]
    assert gguf.GGML_QUANT_SIZES[theirs] == (kind.weights, kind.octets)
    assert TYPES[int(theirs)] is kind
    octets = rng.integers(0, 256, (n, kind.octets), np.uint8)
    for at in halves(kind): octets[:, at + 1] &= 0b1011_1111                   # finite scales, ±2 at most
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(octets, theirs).reshape(-1)
        got = decode(kind, octets.reshape(-1), (n * kind.weights,))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, expected)


def halves(kind):
    """Where a block has float16 numbers."""
    if kind.weights == 1: return ()
    return {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}.get(kind.name, (0,))

