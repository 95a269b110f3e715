"""nf4.py, bit-exact against bitsandbytes on the CPU: codes, absmax, values, double quantization; sizes; every error."""
import numpy as np
import pytest

from tinypeft.quant import NF4, QTensor
from tinypeft.quant.codebooks import codebook
from tinypeft.quant.nf4 import TINY, nearest, quantize_4bit, quantize_scales

f32 = np.float32


@pytest.fixture
def bnb():
    functional = pytest.importorskip("bitsandbytes.functional")
    import torch
    with torch.compiler.set_stance("force_eager"):                   # or it compiles anew for every odd shape
        yield functional


def theirs(bnb, W, block=64, **kwargs):
    import torch
    W = W.reshape(-1)                          # rows of 1½ or 2½ blocks are decoded with wrong scales by 0.50.2
    codes, state = bnb.quantize_4bit(torch.tensor(W), blocksize=block, quant_type="nf4", **kwargs)
    return codes, state, bnb.dequantize_4bit(codes, state).numpy()


def assert_equal_bits(bnb, W, block=64):
    codes, state, values = theirs(bnb, W, block)
    q = NF4(block).quantize(W)
    assert np.array_equal(codes.numpy().reshape(-1), q.codes)
    assert np.array_equal(state.absmax.numpy(), q.scale)
    assert np.array_equal(values.reshape(W.shape), q.dequantize())


def weights(shape, seed=0, scale=0.02):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(f32)


# ---- bitsandbytes, bit for bit --------------------------------------------------------------------------------------

@pytest.mark.parametrize("shape", [(256, 256), (1024, 512), (65536,), (48, 5, 32), (2048, 2048)])
def test_exact_bitsandbytes(bnb, shape):
    assert_equal_bits(bnb, weights(shape))


@pytest.mark.parametrize("block", [32, 64, 128, 256, 512, 1024, 2048, 4096])
def test_exact_every_block_size(bnb, block):
    assert_equal_bits(bnb, weights(3 * 4096 + 62, seed=block), block)


@pytest.mark.parametrize("size", [1, 2, 3, 63, 64, 65, 127, 129, 191, 1001, 65537, 65536 + 63])
def test_exact_odd_sizes(bnb, size):
    for seed in range(5):
        assert_equal_bits(bnb, weights(size, seed))


@pytest.mark.parametrize("exponent", [-44, -38, -37, -30, -10, 0, 10, 37])
def test_exact_every_magnitude(bnb, exponent):
    assert_equal_bits(bnb, np.float32(weights(64 * 50, scale=1.0).astype(np.float64) * 10.0**exponent))


def test_exact_zero_blocks(bnb):
    W = weights((16, 64))
    W[3], W[7, 5:] = 0, 0
    assert_equal_bits(bnb, W)
    q = NF4().quantize(np.zeros((2, 64)))
    assert (q.codes == 0x77).all() and (q.scale == 0).all() and (q.dequantize() == 0).all()


def test_exact_ties(bnb):
    """Every midpoint of two levels, the floats beside it, and each divided by scales that do not divide evenly."""
    c = codebook("nf4")
    middle = (c[1:] + c[:-1]) / f32(2)
    near = np.concatenate([middle, np.nextafter(middle, f32(2)), np.nextafter(middle, f32(-2))])
    block = np.pad(near, (0, 64 - len(near) - 1))
    for scale in (1.0, 3.0, 0.7, 1e-3, 123.456):
        whole, short = np.append(block, f32(1)) * f32(scale), np.append(near, f32(1)) * f32(scale)
        assert_equal_bits(bnb, whole)
        assert_equal_bits(bnb, np.append(whole, short))
    assert np.array_equal(nearest(middle, "nf4"), np.arange(15))                          # a tie goes down
    assert np.array_equal(nearest(c, "nf4"), np.arange(16))


def test_exact_the_reciprocal_is_not_a_division(bnb):
    """v = x·(1/s). On these values x/s gives other codes, so that equality with bitsandbytes means something."""
    rng = np.random.default_rng(0)
    c = codebook("nf4")
    middle = (c[1:] + c[:-1]) / f32(2)
    s = rng.uniform(0.5, 2, 4000).astype(f32)[:, None]
    W = np.concatenate([s, middle[rng.integers(0, 15, (4000, 63))] * s], axis=1)
    q = NF4().quantize(W)
    divided = nearest(W / s, "nf4").reshape(-1)
    assert 0.05 < (divided != q.unpack()).mean() < 0.5
    assert_equal_bits(bnb, W)
    short = W[0, :41]                                                                     # here bitsandbytes divides
    assert np.array_equal(NF4().quantize(short).unpack(), nearest(short / s[0], "nf4"))
    for row in W[:200]:
        assert_equal_bits(bnb, row[:41])


def test_exact_known_bytes():
    expected = [0, 0, 1, 17, 17, 17, 18, 34, 34, 51, 52, 68, 69, 85, 102, 103, 120, 136, 153, 170, 171, 187, 204, 204,
                221, 221, 238, 238, 238, 239, 255, 255]
    assert NF4().quantize(np.linspace(-1, 1, 64, dtype=f32)).codes.tolist() == expected


# ---- double quantization --------------------------------------------------------------------------------------------

def test_exact_double_quantization_decodes_as_bitsandbytes(bnb):
    """Their codes and statistics in our QTensor decode to their values."""
    W = weights((512, 640))
    codes, state, values = theirs(bnb, W, compress_statistics=True)
    scale = QTensor(state.absmax.numpy(), 8, (5120,), 256, state.state2.absmax.numpy(), codebook="dynamic",
                    offset=f32(state.offset.item()))
    q = QTensor(codes.numpy().reshape(-1), 4, W.shape, 64, scale, codebook="nf4")
    assert np.array_equal(q.dequantize(), values.reshape(W.shape))


def table_codes(v):
    """How bitsandbytes' CPU code finds the nearest entry of the map: [−1, 1] in 65,535 steps, each with its entry."""
    d = codebook("dynamic")
    table = np.searchsorted((d[1:] + d[:-1]) / f32(2), (np.arange(65536) / 65535 * 2 - 1).astype(f32)).astype(np.uint8)
    return table[((v + f32(1)) * f32(0.5) * f32(65535) + f32(0.5)).astype(np.int64)]


@pytest.mark.parametrize("shape, seed", [((512, 640), 0), ((2048, 1024), 1), ((333, 64), 2), ((7, 31), 3)])
def test_exact_double_quantization_codes(bnb, shape, seed):
    """All but one or two in a hundred codes are bitsandbytes'; all are when its table is emulated."""
    W = weights(shape, seed) * np.random.default_rng(seed).uniform(0.5, 2, (shape[0], 1)).astype(f32)
    _, state, _ = theirs(bnb, W, compress_statistics=True)
    their_codes, offset = state.absmax.numpy(), f32(state.offset.item())
    scale = NF4().quantize(W).scale
    centred = scale - offset                                                              # with their offset
    blocks = np.pad(centred, (0, -len(scale) % 256)).reshape(-1, 256)
    absmax = np.abs(blocks).max(axis=1)
    assert np.array_equal(absmax, state.state2.absmax.numpy())
    assert np.array_equal(table_codes(blocks * (f32(1) / absmax)[:, None]).reshape(-1)[:len(scale)], their_codes)
    ours = NF4(double_quant=True).quantize(W).scale
    assert ours.offset == pytest.approx(offset, rel=1.2e-7)
    difference = np.abs(ours.codes.astype(int) - their_codes)
    assert difference.max() <= 1 and difference.mean() < 0.015
    d = codebook("dynamic")
    exact = np.abs((scale - ours.offset)[:, None] - d * np.repeat(ours.scale, 256)[:len(scale), None]).argmin(axis=1)
    assert (ours.codes != exact).mean() < 1e-3                                            # ours are the nearest


def test_double_quantization_by_its_formula():
    scale = np.random.default_rng(0).uniform(0.5, 1.5, 600).astype(f32)
    q = quantize_scales(scale)
    o, d = f32(scale.mean(dtype=np.float64)), codebook("dynamic")
    assert q.offset == o and q.n_blocks == 3 and q.block_size == 256
    for i, first in enumerate(range(0, 600, 256)):
        part = scale[first:first + 256] - o
        assert q.scale[i] == np.abs(part).max()
        assert np.array_equal(q.dequantize()[first:first + 256], d[q.codes[first:first + 256]] * q.scale[i] + o)
    assert np.abs(q.dequantize() - scale).max() <= np.diff(d).max() / 2 * q.scale.max() * (1 + 1e-6)


def test_double_quantization_of_equal_scales_is_exact():
    with np.errstate(all="raise"):                                            # a block of zeros divides by no zero
        q = quantize_scales(np.full(300, 0.37, f32))
    assert (q.scale == 0).all() and np.array_equal(q.dequantize(), np.full(300, 0.37, f32))


def test_double_quantization_assumes_alike_blocks():
    """Where block maxima differ by orders of magnitude, small ones are lost in the offset: the limit worth knowing."""
    alike = np.random.default_rng(0).uniform(0.5, 1.5, 4096).astype(f32)
    apart = 10.0**np.random.default_rng(0).uniform(-3, 0, 4096)
    error = [np.abs(quantize_scales(s.astype(f32)).dequantize() / s - 1).max() for s in (alike, apart)]
    assert error[0] < 0.02 and error[1] > 0.5


# ---- accuracy -------------------------------------------------------------------------------------------------------

def test_round_trip_of_anything():
    """Nearest by brute force, in float64, for any finite block: no level is closer than the one chosen."""
    hypothesis = pytest.importorskip("hypothesis")
    from hypothesis import strategies as st
    from hypothesis.extra.numpy import arrays

    @hypothesis.settings(deadline=None, max_examples=200)
    @hypothesis.given(arrays(f32, st.integers(1, 30), elements=st.floats(-2.0**99, 2.0**99, width=32)),
                      st.sampled_from([2, 4, 8, 64]))
    def check(W, block):
        q = NF4(block).quantize(W)
        s = np.repeat(q.scale, block)[:W.size].astype(np.float64)
        assert np.array_equal(q.scale, [np.abs(W[i:i + block]).max() for i in range(0, W.size, block)])
        best = np.abs(W[:, None] - s[:, None] * codebook("nf4").astype(np.float64)).min(axis=1)
        assert (np.abs(q.dequantize().astype(np.float64) - W) <= best + 4e-7 * s + 1e-38).all()

    check()


def test_a_short_zero_block_is_the_stated_difference(bnb):
    W = np.zeros(70, f32)
    codes, state, values = theirs(bnb, W)
    packed, scale = quantize_4bit(W, 64, "nf4")
    assert np.array_equal(codes.numpy().reshape(-1), packed) and (values == 0).all()
    assert scale.tolist() == [0, 0] and state.absmax.tolist() == [0, TINY]
