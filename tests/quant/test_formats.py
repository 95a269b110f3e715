"""formats.py: encoding bit-exact against ml_dtypes, PyTorch and NumPy; scaled formats against torchao; every error."""
import numpy as np
import pytest

from tinypeft.quant import FloatFormat
from tinypeft.quant.codebooks import codebook
from tinypeft.quant.formats import decode, encode, max_value

FORMATS = {"E4M3": "float8_e4m3fn", "E5M2": "float8_e5m2", "E2M1": "float4_e2m1fn", "E3M2": "float6_e3m2fn",
           "E2M3": "float6_e2m3fn", "BF16": "bfloat16", "FP16": "float16"}


def samples(name):
    """Numbers of every size; every value of the format, every midpoint of two, and the floats beside those."""
    rng = np.random.default_rng(0)
    values = np.unique(codebook(name)[np.isfinite(codebook(name))].astype(np.float64))
    edges = np.concatenate([values, (values[1:] + values[:-1]) / 2]).astype(np.float32)
    x = np.concatenate([rng.normal(size=20000) * 10.0**rng.integers(-9, 6, 20000), edges,
                        np.nextafter(edges, np.float32(np.inf)), np.nextafter(edges, np.float32(-np.inf)),
                        [0.0, -0.0, 1e-45, -1e-45, 448, 464, 464.001, 480, 57344, 61439, 61440, 65519, 65520, 3e38]])
    return x.astype(np.float32)


def their_dtype(name):
    return np.float16 if name == "FP16" else getattr(pytest.importorskip("ml_dtypes"), FORMATS[name])


@pytest.mark.parametrize("name", FORMATS)
def test_exact_every_code_encodes_itself(name):
    codes = np.arange(len(codebook(name)))
    values = decode(codes, name)
    numbers = ~np.isnan(values)
    assert np.array_equal(encode(values, name, saturate=False)[numbers], codes[numbers])
    assert np.isnan(decode(encode(values[~numbers], name), name)).all()


@pytest.mark.parametrize("name", FORMATS)
def test_exact_rounding_and_overflow_without_saturation(name):
    """ml_dtypes (NumPy for FP16): to ∞ or NaN beyond the range; E2M1 and the 6-bit formats saturate."""
    x = np.append(samples(name), np.float32([np.inf, -np.inf]))
    with np.errstate(over="ignore"):
        theirs = x.astype(their_dtype(name))
    ours = encode(x, name, saturate=False)
    assert np.array_equal(np.isnan(theirs.astype(np.float32)), np.isnan(decode(ours, name)))
    numbers = ~np.isnan(decode(ours, name))
    assert np.array_equal(ours[numbers], theirs.view(ours.dtype)[numbers])
    assert (~numbers).any() == (name == "E4M3")


@pytest.mark.parametrize("name, saturates", [("E4M3", True), ("E5M2", False)])
def test_exact_torch_float8(name, saturates):
    torch = pytest.importorskip("torch")
    x = np.append(samples(name), np.float32([np.inf, -np.inf]))
    theirs = torch.tensor(x).to(getattr(torch, FORMATS[name])).view(torch.uint8).numpy()
    if name == "E4M3" and np.isnan(decode(theirs, name)).any():
        saturates = False                                                    # PyTorch before 2.12
    ours = encode(x, name, saturate=saturates)
    numbers = ~np.isnan(decode(ours, name))
    assert np.array_equal(ours[numbers], theirs[numbers]) and np.isnan(decode(theirs[~numbers], name)).all()


@pytest.mark.parametrize("name", FORMATS)
def test_saturation(name):
    V = np.float32(max_value(name))
    assert decode(encode(np.float32([3e38, np.inf, -np.inf, V]), name), name)[1:].tolist() == [V, -V, V]
    x = samples(name)
    expected = decode(encode(np.clip(x, -V, V), name, saturate=False), name)
    assert np.array_equal(decode(encode(x, name), name), expected)


@pytest.mark.parametrize("name", ["E4M3", "E5M2", "E2M1", "E3M2", "BF16", "FP16"])
def test_nearest_value_by_brute_force(name):
    x = np.random.default_rng(1).normal(size=200).astype(np.float32)
    values = codebook(name)[np.isfinite(codebook(name))].astype(np.float64)
    nearest = np.abs(x[:, None] - values).min(axis=1)
    assert np.array_equal(np.abs(decode(encode(x, name), name) - x.astype(np.float64)), nearest)


def test_nan():
    for name in ("E4M3", "E5M2", "FP16", "BF16"):
        assert np.isnan(decode(encode(np.float32([np.nan, -np.nan]), name), name)).all()
    with pytest.raises(ValueError, match="E2M1 has no NaN, and x has 2"):
        encode(np.float32([np.nan, 1, np.nan]), "E2M1")


# ---- schemes ------------------------------------------------------------------------------------------------------

def weights(shape=(32, 160), seed=0):
    return (np.random.default_rng(seed).normal(size=shape) * 0.02).astype(np.float32)


@pytest.mark.parametrize("name, dtype", [("FP16", np.float16), ("BF16", "bfloat16")])
def test_exact_sixteen_bits_are_a_cast(name, dtype):
    W = weights()
    q = FloatFormat(name).quantize(W)
    dtype = dtype if dtype is np.float16 else getattr(pytest.importorskip("ml_dtypes"), dtype)
    assert np.array_equal(q.dequantize(), W.astype(dtype).astype(np.float32))
    assert np.array_equal(q.codes, W.astype(dtype).view(np.uint16).reshape(-1)) and q.bits_per_weight == 16


@pytest.mark.parametrize("scaling, n", [("none", 0), ("tensor", 1), ("channel", 32), ("block", 80)])
@pytest.mark.parametrize("name", ["E4M3", "E5M2", "E3M2"])
def test_scaling(name, scaling, n):
    W = weights()
    q = FloatFormat(name, scaling).quantize(W)
    s = np.float32(1)
    if n:
        amax = np.abs(W.reshape(n, -1)).max(axis=1, keepdims=True)
        s = amax / np.float32(max_value(name))
        assert np.array_equal(q.scale, s[:, 0])
        assert np.abs(q.dequantize()).reshape(n, -1).max(axis=1) == pytest.approx(amax[:, 0], rel=1e-6)
    assert np.array_equal(q.dequantize(), (decode(encode(W.reshape(n or 1, -1) / s, name), name) * s).reshape(W.shape))
    assert q.bits_per_weight == q.bits + 32 * n / W.size


def test_what_is_usual():
    shared = {name: FloatFormat(name).shared for name in ("FP16", "BF16", "E4M3", "E5M2", "E2M1", "FP4", "E3M2")}
    assert list(shared.values()) == ["none", "none", "tensor", "tensor", "block", "block", "block"]


@pytest.mark.parametrize("scheme", [FloatFormat("E4M3"), FloatFormat("E2M1"), FloatFormat("FP4"), FloatFormat("FP16"),
                                    FloatFormat("E2M1", block_size=32, scale_format="E8M0"),
                                    FloatFormat("E2M1", block_size=16, scale_format="E4M3")])
def test_zeros_odd_sizes_and_short_blocks(scheme):
    zero = scheme.quantize(np.zeros((3, 5)))
    assert (zero.dequantize() == 0).all()
    for shape in ((1,), (7, 11), (2, 3, 13)):
        W = weights(shape)
        x = scheme.quantize(W).dequantize()
        assert x.shape == shape and np.abs(x - W).max() <= 0.3 * np.abs(W).max()
    W = weights((4, 64))
    W[1] = 0
    assert (scheme.quantize(W).dequantize()[1] == 0).all()


def test_exact_mxfp4():
    """Blocks of 32, scale 2^(⌊log₂ amax⌋ − 2), by its formula."""
    W = weights((64, 96))
    q = FloatFormat("E2M1", block_size=32, scale_format="E8M0").quantize(W)
    x = W.reshape(-1, 32)
    s = 2.0**(np.floor(np.log2(np.abs(x).max(axis=1, keepdims=True))) - 2).astype(np.float32)
    assert np.array_equal(q.scales(), s[:, 0]) and q.bits_per_weight == 4.25
    assert np.array_equal(q.dequantize(), (decode(encode(x / s, "E2M1"), "E2M1") * s).reshape(W.shape))


@pytest.mark.parametrize("amax, scale", [(1, 1.0), (2.0**-5, 2.0**-5), (2.0**-6, 2.0**-6), (2.0**-7, 2.0**-6), (0, 2.0**-6)])
def test_exact_the_smallest_scale_of_a_block_in_E4M3(amax, scale):
    """2⁻⁶, E4M3's smallest normal number. The tensor's largest block has 448, so that the tensor's own scale is 1."""
    W = np.float32([[6 * 448] * 16, [6 * amax] * 16])
    q = FloatFormat("E2M1", block_size=16, scale_format="E4M3").quantize(W)
    assert q.scale.scale == 1 and q.scale.dequantize().tolist() == [448, scale]
    assert np.array_equal(q.dequantize(), W)


@pytest.mark.parametrize("name, theirs", [("E2M1", "float4_e2m1fn_x2"), ("E4M3", "float8_e4m3fn")])
def test_exact_torchao_mx(name, theirs):
    mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    import torch
    W = weights((64, 96))
    tensor = mx.MXTensor.to_mx(torch.tensor(W), getattr(torch, theirs), 32)
    q = FloatFormat(name, "block", 32, "E8M0").quantize(W)
    assert np.array_equal(tensor.dequantize(torch.float32).numpy(), q.dequantize())


def test_exact_torchao_nvfp4():
    nv = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")
    import torch
    W = torch.tensor(weights((64, 96)))
    tensor = nv.NVFP4Tensor.to_nvfp4(W, per_tensor_scale=nv.per_tensor_amax_to_scale(W.abs().max()))
    q = FloatFormat("E2M1", block_size=16, scale_format="E4M3").quantize(W.numpy())
    theirs = tensor.dequantize(torch.float32).numpy()
    assert np.abs(theirs - q.dequantize()).max() <= 2e-7 * np.abs(theirs).max()          # s·t·x and (s·x)·t
    assert q.bits_per_weight == 4.5 + 32 / W.numel()


@pytest.mark.parametrize("size", [64, 65, 1, 130, 4096, 65536, 65536 + 33])
def test_exact_bitsandbytes_fp4(size):
    functional = pytest.importorskip("bitsandbytes.functional")
    import torch
    W = weights(size, seed=size)
    W[:3 * size // 4:7] = 0
    codes, state = functional.quantize_4bit(torch.tensor(W), quant_type="fp4")
    with torch.compiler.set_stance("force_eager"):                   # or it compiles anew for every odd shape
        values = functional.dequantize_4bit(codes, state).numpy().reshape(-1)
    q = FloatFormat("FP4").quantize(W)
    assert np.array_equal(codes.numpy().reshape(-1), q.codes) and np.array_equal(state.absmax.numpy(), q.scale)
    assert np.array_equal(values, q.dequantize())


def test_direction_rmse_on_normal_weights():
    """Of the orderings in QLoRA's table 2, those that hold for the error of N(0, 1) in blocks of 64."""
    from tinypeft.quant import NF4, Uniform
    rmse = {}
    for seed in range(3):
        W = np.random.default_rng(seed).normal(size=(64, 1024))
        for scheme in (NF4(), FloatFormat("E2M1"), FloatFormat("FP4"), FloatFormat("E3M0"),
                       Uniform(4, granularity="group", group_size=64)):
            rmse.setdefault(repr(scheme), []).append(float(np.sqrt(((scheme.quantize(W).dequantize() - W)**2).mean())))
    nf4, e2m1, fp4, e3m0, int4 = rmse.values()
    assert max(nf4) < 0.94 * min(e2m1) and max(e2m1) < min(int4) and max(int4) < 0.9 * min(fp4) and max(fp4) < min(e3m0)


@pytest.mark.parametrize("kwargs, message", [
    (dict(scale_format="E8M0"), "E4M3 with scale_format='E8M0' needs scaling='block', got 'tensor'"),
    (dict(name="FP4", scaling="tensor"), "FP4 with .* needs scaling='block', got 'tensor'"),
    (dict(name="FP4", scale_format="E8M0"), "bitsandbytes' FP4 has float32 scales, got scale_format='E8M0'"),
])
def test_fields_that_do_not_go_together(kwargs, message):
    with pytest.raises(ValueError, match=message):
        FloatFormat(**kwargs)
