"""uniform.py: the grid's formulas, the half-step bound, clipping, degenerate blocks, PyTorch, and every error."""
import numpy as np
import pytest

from tinypeft.quant import Uniform
from tinypeft.quant.uniform import Grid, group_width, make_grid

f32 = np.float32


def weights(seed=0, shape=(16, 96), scale=1.0):
    return (np.random.default_rng(seed).standard_t(4, shape) * scale).astype(f32)


# ---- the formulas -------------------------------------------------------------------------------------------------

def test_exact_by_hand_symmetric():
    q = Uniform(4).quantize(np.array([[-7.0, 7.0, 3.4, 3.5, 2.5, -0.5, 0.0]]))           # s = 1, halves to even
    assert q.scale.tolist() == [1.0] and q.zero == 8
    assert q.integers().tolist() == [[-7, 7, 3, 4, 2, 0, 0]]
    q = Uniform(4, convention="full").quantize(np.array([[-7.5, 7.5, 1.4]]))             # s = 2·7.5/15 = 1
    assert q.scale.tolist() == [1.0] and q.integers().tolist() == [[-8, 7, 1]]


def test_exact_by_hand_asymmetric():
    q = Uniform(4, symmetric=False).quantize(np.array([[-3.0, 12.0, 0.0, 5.2], [-5.0, -20.0, -9.6, -30.0]]))
    assert q.scale.tolist() == [1.0, 2.0]                                                # the second range is [−30, 0]
    assert q.unpack().tolist() == [0, 15, 3, 8, 13, 5, 10, 0]                            # −5/2 → −2, then + 15
    assert q.zeros().tolist() == [3.0, 15.0]
    assert q.dequantize().tolist() == [[-3.0, 12.0, 0.0, 5.0], [-4.0, -20.0, -10.0, -30.0]]


def test_both_signs_of_the_zero_point():
    """The survey: x_q = R(x/S) − Z and x̃ = S(x_q + Z), with Z = −z."""
    x = weights()
    q = Uniform(8, symmetric=False, granularity="tensor").quantize(x)
    S, Z = q.scale[0], -q.zeros()[0]
    x_q = np.rint(x / S) - Z
    assert np.array_equal(x_q.astype(np.uint8).reshape(-1), q.unpack())
    assert np.array_equal(S * (x_q + Z), q.dequantize())


# ---- the half-step bound ------------------------------------------------------------------------------------------

def assert_half_step(scheme, x):
    q = scheme.quantize(x)
    blocks = scheme.blocks(np.asarray(x, f32)).astype(np.float64)
    error = np.abs(scheme.blocks(q.dequantize()) - blocks)
    s = q.scales().astype(np.float64)[:, None]
    slack = 2e-7 * np.abs(blocks).max(axis=1, keepdims=True) + 1e-30         # float32: of x/s and of s·(q−z)
    assert (error <= s / 2 + slack).all(), (error / s).max()


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("symmetric, convention", [(True, "absmax"), (True, "full"), (False, "absmax")])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
def test_error_is_at_most_half_a_step(bits, symmetric, convention, dtype, granularity):
    group = 12 if granularity == "group" else None
    scheme = Uniform(bits, symmetric, granularity, group, convention=convention, scale_dtype=dtype)
    for seed in range(10):
        x = weights(seed, scale=10.0**(seed - 6))
        x[seed] = np.abs(x[seed])                                                        # a range that lacks 0
        assert_half_step(scheme, x)


def test_error_is_at_most_half_a_step_for_anything():
    hypothesis = pytest.importorskip("hypothesis")
    from hypothesis import strategies as st
    from hypothesis.extra.numpy import arrays

    @hypothesis.settings(deadline=None, max_examples=300)
    @hypothesis.given(x=arrays(f32, (2, 6), elements=st.floats(-5e4, 5e4, width=32)), bits=st.integers(2, 8),
                      symmetric=st.booleans(), dtype=st.sampled_from(["float32", "float16"]),
                      granularity=st.sampled_from(["tensor", "channel"]))
    def check(x, bits, symmetric, dtype, granularity):
        assert_half_step(Uniform(bits, symmetric, granularity, scale_dtype=dtype), x)

    check()


def test_a_float16_scale_is_rounded_up_and_is_the_one_that_rounds():
    x = weights()
    wide, narrow = Uniform(8).quantize(x), Uniform(8, scale_dtype="float16").quantize(x)
    assert narrow.scale.dtype == np.float16 and (narrow.scales() >= wide.scale).all()
    assert (narrow.scales() < wide.scale * (1 + 2**-10)).all() and (narrow.scales() != wide.scale).any()
    codes = np.clip(np.rint(x / narrow.scales()[:, None]), -127, 127)
    assert np.array_equal(codes, narrow.integers())
    tiny = Uniform(8, scale_dtype="float16").quantize(x * f32(1e-12))                    # rounded to nearest: 0
    assert (tiny.scales() == 2.0**-24).all() and (tiny.dequantize() == 0).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_full_uses_its_lowest_code_where_the_outermost_weight_is_negative(bits):
    """With a float16 scale. The step that is rounded up would leave the lowest code without any number, in every row."""
    x = np.random.default_rng(bits).standard_normal((2000, 128)).astype(f32)
    scheme = Uniform(bits, convention="full", scale_dtype="float16")
    q = scheme.quantize(x)
    codes, negative = q.unpack().reshape(x.shape), -x.min(axis=1) > x.max(axis=1) * 1.001
    assert (codes[negative].min(axis=1) == 0).all() and 900 < negative.sum() < 1100
    if bits < 8: assert set(codes[negative].reshape(-1)) == set(range(2**bits))
    assert_half_step(scheme, x)
    assert_half_step(scheme, np.concatenate([x[:300], -x[:300]], axis=1))                # both ends are outermost
    for scale in (1e-4, 1e-6, 3e-8): assert_half_step(scheme, x[:300] * f32(scale))      # float16's subnormal numbers


# ---- blocks with nothing to quantize ------------------------------------------------------------------------------

@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kwargs", [dict(), dict(symmetric=False), dict(convention="full"), dict(clipping="mse"),
                                    dict(clipping="percentile"), dict(granularity="tensor"),
                                    dict(scale_dtype="float16", symmetric=False)])
def test_zero_blocks_stay_zero(bits, kwargs):
    x = weights()
    x[3] = 0
    q = Uniform(bits, **kwargs).quantize(x)
    assert (q.dequantize()[3] == 0).all()
    if q.n_blocks == 16:
        assert q.scales()[3] == 1 and np.isfinite(q.dequantize()).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("c", [5.0, -5.0, 0.1, -3e-7, 1e30])
def test_constant_blocks(bits, c):
    x = np.full((1, 5), c)
    for symmetric in (True, False):
        assert Uniform(bits, symmetric).quantize(x).dequantize() == pytest.approx(x, rel=3e-7)
    full = Uniform(bits, convention="full").quantize(x).dequantize() / c                 # half a step off, either way
    assert np.abs(full - 1) == pytest.approx(np.full((1, 5), 1 / (2**bits - 1)), abs=3e-7)


def test_subnormal_blocks_decode_to_zero():
    with np.errstate(divide="raise", over="raise", invalid="raise"):
        q = Uniform(8).quantize(np.full((1, 3), 1e-42))
    assert q.scale.tolist() == [1.0] and (q.dequantize() == 0).all()


def test_a_range_wider_than_float32_does_not_overflow():
    top = np.finfo(f32).max * f32(0.9)
    for symmetric in (True, False):
        x = np.array([[top, -top]])
        assert Uniform(8, symmetric).quantize(x).dequantize() == pytest.approx(x, rel=5e-3)


# ---- clipping -----------------------------------------------------------------------------------------------------

def test_percentile():
    x = np.arange(-1000, 1001, dtype=f32)[None]
    symmetric = Uniform(8, clipping="percentile", percentile=90.0)
    assert symmetric.quantize(x).scale == pytest.approx([np.percentile(np.abs(x), 90) / 127])
    assert np.abs(symmetric.quantize(x).dequantize()).max() == pytest.approx(900)
    q = Uniform(8, symmetric=False, clipping="percentile", percentile=90.0).quantize(x + 800)
    assert q.dequantize().min() == pytest.approx(-100, abs=4) and q.dequantize().max() == pytest.approx(1700, abs=4)
    all_of_it = Uniform(4, clipping="percentile", percentile=100.0).quantize(x)
    assert np.array_equal(all_of_it.codes, Uniform(4).quantize(x).codes)


@pytest.mark.parametrize("symmetric, norm", [(True, 2.0), (False, 2.0), (True, 2.4)])
def test_mse_is_the_best_of_its_grid(symmetric, norm):
    x = weights()
    scheme = Uniform(3, symmetric, clipping="mse", norm=norm)
    error = (np.abs(scheme.quantize(x).dequantize() - x)**norm).sum(axis=1)
    low, high = x.min(axis=1), x.max(axis=1)
    tried = [np.abs(scheme.grid(p * low, p * high).round(x) - x)**norm for p in 1 - np.arange(81, dtype=f32) / f32(100)]
    assert error == pytest.approx(np.min([e.sum(axis=1) for e in tried], axis=0), rel=1e-6)
    minmax = (np.abs(Uniform(3, symmetric).quantize(x).dequantize() - x)**norm).sum(axis=1)
    assert (error <= minmax).all() and error.sum() < 0.9 * minmax.sum()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("norm", [2.0, 2.4])
def test_mse_chooses_the_same_at_every_size_bit_exact(symmetric, norm):
    """The powers of very small and very large errors leave float32, which used to change the choice."""
    x, scheme = weights(), Uniform(3, symmetric, clipping="mse", norm=norm)
    codes = scheme.quantize(x).codes
    with np.errstate(over="raise"):
        for e in (-110, -80, -60, 60, 80, 120): assert np.array_equal(scheme.quantize(x * f32(2.0)**e).codes, codes), e


@pytest.mark.parametrize("symmetric", [True, False])
def test_percentile_of_zeros_and_an_outlier(symmetric):
    """The percentile is 0, which is no range; the row keeps all of its range, whatever the size of the outlier."""
    scheme = Uniform(4, symmetric, clipping="percentile", percentile=80.0)
    for c in (0.3, -5.0, 300.0, 1e-6):
        x = np.zeros((2, 40), f32)
        x[0, 7] = c
        assert scheme.quantize(x).dequantize() == pytest.approx(x, rel=1e-6)


def test_static_ranges():
    """A grid fitted on calibration data quantizes other data, and saturates outside its range."""
    seen, new = weights(0), weights(1) * 3
    scheme = Uniform(8, granularity="tensor")
    q = scheme.quantize(new, grid=scheme.grid(seen.min(), seen.max()))
    m = np.abs(seen).max()
    assert q.scale == pytest.approx([m / 127]) and np.abs(q.dequantize()).max() == pytest.approx(m)
    per_token = Uniform(8, symmetric=False)                                              # one range for every row
    q = per_token.quantize(new, grid=per_token.grid(-1.0, 2.0))
    assert q.n_blocks == 16 and q.dequantize().min() == pytest.approx(-1, abs=0.01)


# ---- the grid, as GPTQ and fake quantization use it -----------------------------------------------------------------

@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_exact_round_is_decode_of_encode(symmetric, bits):
    x, scheme = weights(), Uniform(bits, symmetric)
    grid = scheme.fit(x)
    assert np.array_equal(grid.round(x), grid.decode(grid.encode(x)))
    assert np.array_equal(grid.round(x), scheme.quantize(x).dequantize())
    assert np.array_equal(grid.round(grid.round(x)), grid.round(x))                      # a projection
    assert np.array_equal(grid.round(x[:, 5:6]), grid.round(x)[:, 5:6])                  # a column at a time: GPTQ
    assert grid.round(x).dtype == f32 and x.dtype == f32


def test_restricted_codes():
    far = np.array([[-9.0, 9.0]], f32)
    assert make_grid([-7.0], [7.0], 4).encode(far).tolist() == [[1, 15]]
    assert make_grid([-7.5], [7.5], 4, convention="full").encode(far).tolist() == [[0, 15]]
    assert Grid(np.ones((1, 1), f32), 8, 4).round(far).tolist() == [[-8.0, 7.0]]


@pytest.mark.parametrize("symmetric", [True, False])
def test_numerical_torch_fake_quantize(symmetric):
    """The same grid in PyTorch, which multiplies by 1/s: equal but for points within rounding of a tie."""
    torch = pytest.importorskip("torch")
    x, scheme = weights(shape=(16, 4096)), Uniform(8, symmetric)
    grid = scheme.fit(x)
    s = torch.tensor(grid.scale[:, 0])
    z = torch.tensor(np.broadcast_to(grid.zero, (16, 1))[:, 0].astype(np.int32))
    theirs = torch.fake_quantize_per_channel_affine(torch.tensor(x), s, z, 0, grid.low, 255).numpy()
    at_tie = np.abs(np.abs(x / grid.scale % 1) - 0.5) < 1e-4
    assert at_tie.mean() < 1e-3
    assert np.array_equal(theirs[~at_tie], grid.round(x)[~at_tie])


@pytest.mark.parametrize("bits, group", [(4, 32), (8, 96)])
def test_exact_torchao_symmetric_is_full(bits, group):
    """torchao's "symmetric" choice of scales is the convention "full"."""
    quant = pytest.importorskip("torchao.quantization.quant_primitives")
    import torch
    x = weights()
    s, z = quant.choose_qparams_affine(torch.tensor(x), quant.MappingType.SYMMETRIC, (1, group), torch.int8,
                                       -2**(bits - 1), 2**(bits - 1) - 1, eps=1e-30)
    q = Uniform(bits, granularity="group", group_size=group, convention="full").quantize(x)
    assert q.scale == pytest.approx(s.numpy().reshape(-1), rel=2e-7) and (z == 0).all()


# ---- activations, and errors --------------------------------------------------------------------------------------

def test_tokens_of_a_batch():
    x = weights(shape=(2, 5, 24))
    q = Uniform(8).quantize(x)
    assert q.shape == (2, 5, 24) and q.scale == pytest.approx(np.abs(x).max(axis=-1).reshape(-1) / 127)


@pytest.mark.parametrize("kwargs, message", [
    (dict(bits=1), "bits must be 2 … 8 if symmetric, got 1"),
    (dict(group_size=32), "group_size=32 needs granularity='group', got granularity='channel'"),
])
def test_fields_that_do_not_go_together(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Uniform(**kwargs)


def test_groups_must_divide():
    with pytest.raises(ValueError, match="group_size=128 does not divide the last axis, 96; 96 does"):
        Uniform(4, granularity="group").quantize(weights())
    with pytest.raises(ValueError, match="group_size=10 does not divide the last axis, 96; 8 does"):
        Uniform(4, granularity="group", group_size=10).quantize(weights())
    assert group_width(256, None) == 128


def test_a_scale_that_float16_cannot_hold():
    with pytest.raises(ValueError, match="a scale of 7.87402e.06 overflows float16: use scale_dtype='float32'"):
        Uniform(8, scale_dtype="float16").quantize(np.full((1, 2), 1e9))
