"""Finite weights give finite numbers in every scheme, without a warning: the largest float32, the smallest, and both."""
import numpy as np
import pytest

import tinypeft as tp
from tests.schemes import ROWS
from tinypeft.engine.nn import Linear
from tinypeft.quant import FakeQuant, FloatFormat, Uniform
from tinypeft.quant.uniform import LARGEST, bounded

N, D = 6, 32
GGUF_TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
DRAWN = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)
SCHEMES = [*(Uniform(bits, symmetric, convention=convention) for bits in range(1, 9) for symmetric in (True, False)
             for convention in ("absmax", "full") if bits > symmetric),
           Uniform(8, clipping="percentile"), Uniform(3, False, clipping="percentile"),
           *(Uniform(bits, symmetric, clipping="mse", grid_steps=10) for bits in (2, 8) for symmetric in (True, False)),
           *(Uniform(bits, False, granularity, 8 if granularity == "group" else None)
             for bits in (2, 8) for granularity in ("tensor", "group")),
           *(FloatFormat(name, scaling) for name in ("E4M3", "E5M2", "E2M1", "FP16", "BF16", "E3M2", "E7M0")
             for scaling in ("tensor", "channel", "block")),
           *(FloatFormat(name, "block", 16, kind) for name in ("E4M3", "E2M1", "BF16") for kind in ("E8M0", "E4M3")),
           *(row.small for row in ROWS.values()), tp.NF4(16), tp.NF4(16, double_quant=True), tp.NF4(2, double_quant=True),
           *(tp.GGUF(name) for name in GGUF_TYPES), tp.W8A8(), tp.LLMInt8(variant="bitsandbytes"),
           tp.ZeroQuant(bits=3, groups=4), tp.PEQA(1), tp.PEQA(4, symmetric=True), tp.LLMQAT(2),
           tp.GPTQ(2, symmetric=True, scale_dtype="float32"),
           *(FakeQuant(bits, step, symmetric) for bits in (2, 4, 8) for step in (True, False) for symmetric in (True, False)),
           *(cls(bits, group_size=8, scale_dtype="float32") for cls in (tp.GPTQ, tp.AWQ) for bits in (1, 4, 8))]


def matrices():
    """name → float32 (N, D)."""
    sign = np.sign(DRAWN)
    found = {"the largest": sign * LARGEST, "the largest alone": np.abs(sign) * LARGEST, "zeros": 0 * DRAWN,
             "the smallest": sign * np.float32(1e-45), "just normal": sign * np.finfo(np.float32).tiny,
             "every size": np.ldexp(sign, np.random.default_rng(1).integers(-149, 128, DRAWN.shape))}
    for size in LARGEST, np.float32(3e38), np.float32(1e20), np.float32(1e-38):
        found[f"up to {size}"] = DRAWN / np.abs(DRAWN).max() * size
        for outlier in size, -size:
            for name, W in ("among others", DRAWN.copy()), ("among zeros", 0 * DRAWN):
                W[2, 3] = outlier
                found[f"{outlier} {name}"] = W
    W = 0 * DRAWN
    W[0, :3] = LARGEST, -LARGEST, 1e-45
    return found | {"both ends": W}


MATRICES = matrices()


def dense(scheme, W):
    """Ŵ of W, or None where the scheme refuses a number that float16 cannot hold."""
    if isinstance(scheme, tp.GGUF): W = np.tile(W, 8)            # whole superblocks of a K type
    try: return scheme.quantize(W, *[np.eye(D)] * isinstance(scheme, (tp.GPTQ, tp.AWQ))).dequantize()[:, :D]
    except ValueError as e:
        assert "float16" in str(e) and np.abs(W).max() > 65504
        return None


@pytest.mark.parametrize("name", MATRICES)
def test_finite_weights_stay_finite(name):
    W = MATRICES[name]
    assert np.isfinite(W).all() and W.dtype == np.float32
    refused = 0
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        for scheme in SCHEMES:
            W_hat = dense(scheme, W)
            refused += W_hat is None
            assert W_hat is None or np.isfinite(W_hat).all(), scheme
    assert refused <= 14                                         # GGUF, bitsandbytes, AWQ with float16 scales


@pytest.mark.parametrize("name", GGUF_TYPES)
@pytest.mark.parametrize("importance", [None, np.ones(256, np.float32)], ids=["plain", "by importance"])
def test_gguf_refuses_what_its_scales_cannot_hold_and_decodes_the_rest(name, importance):
    """Not to zeros: Q6_K once took the square of 1e20, and found nothing in the block."""
    drawn = np.random.default_rng(0).standard_normal((2, 256)).astype(np.float32)
    for size in np.float32([1, 6e4, 1e6, 1e7, 1e8, 1e9, 1e12, 1e18, 1e20, 1e30, LARGEST]):
        W = drawn / np.abs(drawn).max() * size
        with np.errstate(over="raise", divide="raise", invalid="raise"):
            try: W_hat = tp.GGUF(name, importance=importance is not None).quantize(W, importance).dequantize()
            except ValueError as e:
                assert "overflows GGUF's float16" in str(e) and size >= 1e6
                continue
        assert size <= 1e9 and np.abs(W_hat - W).max() < 0.1 * size


SUBNORMAL = FloatFormat("BF16", "block", 16, "E4M3")             # the scale of a matrix times 2⁻⁴⁰ is a subnormal number
LEVELS = [s for s in SCHEMES if type(s) in (Uniform, FloatFormat) and s != SUBNORMAL]


@pytest.mark.parametrize("scheme", LEVELS, ids=str)
def test_the_largest_weights_err_at_most_twice_as_much_as_others(scheme):
    """By a step in place of half a step, where a level would exceed float32."""
    for W in (W for name, W in MATRICES.items() if "3.4" in name or "largest" in name or "ends" in name):
        small = np.ldexp(W, -40)
        error = np.abs(np.ldexp(np.float64(dense(scheme, small)), 40) - W).max()
        assert np.abs(np.float64(dense(scheme, W)) - W).max() <= 2 * error + 1e-6 * LARGEST


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if type(s) in (FakeQuant, tp.LLMQAT, tp.PEQA)], ids=str)
def test_layers_for_training_round_finite_weights_to_finite_ones(scheme):
    linear = Linear(D, N, rng=0)
    for name, W in MATRICES.items():
        linear.weight.assign(W)
        with np.errstate(over="raise", divide="raise", invalid="raise"):
            layer = scheme.layer(linear)
            assert np.isfinite(layer.dense_weight()).all(), name
            assert np.array_equal(layer.convert().dense_weight(), layer.dense_weight()), name


def test_a_scale_is_as_large_as_it_may_be():
    steps = np.float32([1, 2, 7, 127, 128, 255])
    s = bounded(LARGEST + 0 * steps, steps)
    assert np.isfinite(s * steps).all() and (s * steps > 0.999999 * LARGEST).all()
    larger = np.nextafter(np.nextafter(s, LARGEST), LARGEST)
    with np.errstate(over="ignore"): assert np.isinf(larger * steps)[1:].all()
    assert bounded(np.float32(0.1), 127) == np.float32(0.1)
