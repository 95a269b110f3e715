"""gguf_types.py: every block type decodes to the numbers that the package gguf decodes, whatever the bytes."""
import numpy as np
import pytest

from tinypeft.interop.gguf_types import TYPES, as_qtensor, decode
from tinypeft.quant import QTensor

gguf = pytest.importorskip("gguf")


@pytest.mark.parametrize("kind", TYPES.values(), ids=lambda kind: kind.name)
@pytest.mark.parametrize("n", [1, 7, 3000])
def test_random_bytes_decode_to_the_same_numbers(kind, n, rng):
    theirs = gguf.GGMLQuantizationType[kind.name]
    assert gguf.GGML_QUANT_SIZES[theirs] == (kind.weights, kind.octets)
    assert TYPES[int(theirs)] is kind
    octets = rng.integers(0, 256, (n, kind.octets), np.uint8)
    for at in halves(kind): octets[:, at + 1] &= 0b1011_1111                   # finite scales, ±2 at most
    if kind.name == "MXFP4": octets[:, 0] = np.minimum(octets[:, 0], 254)      # 255 is NaN in the standard
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(octets, theirs).reshape(-1)
        got = decode(kind, octets.reshape(-1), (n * kind.weights,))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("kind", [kind for kind in TYPES.values() if kind.bits], ids=lambda kind: kind.name)
def test_a_qtensor_holds_the_same_numbers_in_as_many_bits_bit_exact(kind, rng):
    octets = rng.integers(0, 256, (24, kind.octets), np.uint8)
    for at in halves(kind): octets[:, at + 1] &= 0b1011_1111
    if kind.name == "MXFP4": octets[:, 0] = np.minimum(octets[:, 0], 254)
    shape = (6, 4 * kind.weights)
    q = as_qtensor(kind, octets.reshape(-1), shape)
    np.testing.assert_array_equal(q.dequantize(), decode(kind, octets.reshape(-1), shape))
    assert q.bits == kind.bits and q.nbytes == octets.nbytes
    again = QTensor.from_arrays(q.arrays(), q.metadata())
    np.testing.assert_array_equal(again.dequantize(), q.dequantize())


@pytest.mark.parametrize("kind", [kind for kind in TYPES.values() if kind.bits], ids=lambda kind: kind.name)
def test_a_scale_of_infinity_decodes_without_a_warning(kind):
    """∞ · 0 is NaN, also where the 0 is the scale of a sub-block."""
    octets = np.zeros(kind.octets, np.uint8)
    for at in halves(kind): octets[at + 1] = 0x7C
    if kind.name == "MXFP4": octets[0] = 255
    with np.errstate(all="raise"): x = decode(kind, octets, (kind.weights,))
    assert not np.isfinite(x).any()


def test_what_a_qtensor_cannot_hold():
    with pytest.raises(ValueError, match="F16 holds numbers, not codes"): as_qtensor(TYPES[1], np.zeros(4, np.uint8), (2,))
    for kind, at, value in (TYPES[3], 1, 0x7C), (TYPES[3], 3, 0x7C), (TYPES[12], 3, 0x7C), (TYPES[39], 0, 255):
        octets = np.zeros(kind.octets, np.uint8)
        octets[at] = value                                             # infinity, NaN
        with pytest.raises(ValueError, match="a scale is not finite"): as_qtensor(kind, octets, (kind.weights,))


def halves(kind):
    """Where a block has float16 numbers."""
    if kind.weights == 1: return ()
    return {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2),
            "Q6_K": (208,), "MXFP4": ()}.get(kind.name, (0,))

