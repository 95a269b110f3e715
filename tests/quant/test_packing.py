"""packing.py, bit-exact: every width and both orders, against np.packbits on the codes' own bits."""
import numpy as np
import pytest

from tinypeft.quant.packing import pack, packed_size, unpack


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("order", ["big", "little"])
def test_exact_layout_and_round_trip(bits, order):
    rng = np.random.default_rng(bits)
    for n in range(42):
        codes = rng.integers(0, 2**bits, n)
        packed = pack(codes, bits, order)
        assert packed.dtype == np.uint8 and packed.shape == (packed_size(n, bits),)
        assert np.array_equal(unpack(packed, bits, n, order), codes)
        assert np.array_equal(unpack(packed, bits, n // 2, order), codes[:n // 2])
        digits = (codes[:, None] >> np.arange(bits) & 1).astype(np.uint8)      # least significant first
        digits = digits[:, ::-1] if order == "big" else digits
        assert np.array_equal(packed, np.packbits(digits.reshape(-1), bitorder=order))


def test_exact_known_bytes():
    assert pack([1, 2, 3], 4).tolist() == [0x12, 0x30]                         # as bitsandbytes: the first is high
    assert pack([1, 2, 3], 4, "little").tolist() == [0x21, 0x03]
    assert pack(np.arange(8), 3).tolist() == [0b00000101, 0b00111001, 0b01110111]
    words = pack(np.arange(16), 4, "little").view("<u4")                       # compressed-tensors: arange(-8, 8) + 8
    assert [hex(word) for word in words] == ["0x76543210", "0xfedcba98"]


def test_any_integer_dtype_and_shape():
    assert np.array_equal(pack(np.arange(12, dtype=np.int64).reshape(3, 4), 4), pack(np.arange(12, dtype=np.uint8), 4))


@pytest.mark.parametrize("codes, bits, order, message", [
    ([1], 0, "big", "bits must be 1 … 8, got 0"),
    ([1], 9, "big", "bits must be 1 … 8, got 9"),
    ([1], 4, "msb", "bitorder must be 'big' or 'little', got 'msb'"),
    ([16], 4, "big", "codes must lie in 0 … 15 for 4 bits, got 16 … 16"),
    ([-1, 3], 4, "big", "codes must lie in 0 … 15 for 4 bits, got -1 … 3"),
    ([1.0], 4, "big", "codes must be integers, got float64"),
])
def test_pack_errors(codes, bits, order, message):
    with pytest.raises(ValueError, match=message):
        pack(codes, bits, order)


def test_unpack_errors():
    with pytest.raises(ValueError, match=r"5 codes of 3 bits need 2 bytes \(uint8\), got 1 of uint8"):
        unpack(np.zeros(1, np.uint8), 3, 5)
    with pytest.raises(ValueError, match="got 2 of int64"):
        unpack(np.zeros(2, np.int64), 3, 5)
