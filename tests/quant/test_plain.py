"""Each plain form in `quant/plain.py` computes what the fast form computes: the same codes, and the same bits but for W8A8."""
import itertools

import numpy as np
import pytest

import tinypeft as tp
from tinypeft.quant import QTensor, plain
from tinypeft.quant.calibration import Statistics
from tinypeft.quant.codebooks import codebook
from tinypeft.quant.int8 import signed_codes
from tinypeft.quant.llm_int8 import inputs
from tinypeft.quant.nf4 import nearest
from tinypeft.quant.packing import pack, unpack


def layer(seed, d_out=24, d=96, n=300):
    """A weight, and inputs that are correlated and of different size, as a layer's are."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)) @ (np.eye(d) + 0.3 * rng.standard_normal((d, d))) * rng.uniform(0.2, 4, d)
    return rng.standard_normal((d_out, d)).astype(np.float32), X.astype(np.float32)


def statistics(X):
    seen = Statistics(X.shape[1], hessian=True)
    seen.update(X)
    return seen


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("block_size", [32, 40])
@pytest.mark.parametrize("group_size", [None, 16])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 3, 2])
def test_gptq_takes_one_column_after_the_other(bits, symmetric, group_size, block_size, act_order):
    for seed in range(3):
        W, X = layer(seed)
        H = statistics(X).H
        scheme = tp.GPTQ(bits=bits, symmetric=symmetric, group_size=group_size, block_size=block_size, act_order=act_order)
        order = np.argsort(-H.diagonal(), kind="stable") if act_order else np.arange(len(H))
        codes = plain.gptq(W[:, order], H[order][:, order], scheme)
        nearest = scheme.nearest.quantize(W[:, order]).unpack().reshape(W.shape)
        np.testing.assert_array_equal(codes, scheme.quantize(W, H).unpack().reshape(W.shape))
        assert (codes != nearest).mean() > 0.05          # the corrections matter


def test_a_step_of_gptq_rounds_its_column_and_leaves_earlier_and_later_ones():
    W, X = layer(5)
    H = statistics(X).H
    H += 0.01 * np.mean(np.diag(H)) * np.eye(len(H))     # as GPTQ does; else rounding decides whether it has an inverse
    U = np.linalg.cholesky(np.linalg.inv(H)).T
    grid = tp.GPTQ(bits=3).nearest.fit(W)
    after = W.astype(float)
    q, E = plain.gptq_step(after, U, 10, 20, grid)
    changed = (after != W).any(0)
    assert changed[10:20].all() and changed.sum() == 10
    np.testing.assert_array_equal(after[:, 10], grid.decode(q[:, None])[:, 0])
    np.testing.assert_allclose(W[:, 10] - after[:, 10], E * U[10, 10], rtol=1e-6)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits, group_size", [(4, 32), (3, 16), (3, None), (2, 32)])
def test_awq_chooses_the_same_alpha_and_scales(bits, group_size, symmetric):
    chosen = set()
    for seed in range(4):
        W, X = layer(seed)
        X[:, seed] *= 30                                 # a channel whose weights should grow
        scheme, seen = tp.AWQ(bits=bits, group_size=group_size, symmetric=symmetric), statistics(X)
        s, losses = scheme.search(W, seen.mean_abs, scheme.output_loss(W, seen.H))
        plain_s, alpha = plain.awq(W, X, scheme)
        assert alpha == losses.argmin() / scheme.n_ratios
        assert s.dtype == plain_s.dtype
        np.testing.assert_array_equal(s, plain_s)
        chosen.add(alpha)
    assert chosen - {0.0}                                # a search that always stays at 0 would pass


@pytest.mark.parametrize("block_size", [16, 64, 128])
def test_nf4_takes_the_nearest_of_16_values_in_every_block(block_size):
    W = np.random.default_rng(block_size).standard_normal((64, 640)).astype(np.float32)
    W[3] = 0
    q = tp.NF4(block_size=block_size).quantize(W)
    codes, scales = zip(*map(plain.nf4, W.reshape(-1, block_size)), strict=True)
    np.testing.assert_array_equal(q.unpack(), np.concatenate(codes))
    np.testing.assert_array_equal(q.scale, scales)
    values = [plain.nf4_decode(*block) for block in zip(codes, scales, strict=True)]
    np.testing.assert_array_equal(q.dequantize().reshape(-1, block_size), values)


def test_a_number_at_a_rounded_midpoint_gets_one_of_its_neighbours():
    c = codebook("nf4")
    midpoints = (c[:-1] + c[1:]) / np.float32(2)
    q, s = plain.nf4(np.append(midpoints, np.float32(1)))
    assert s == 1 and np.array_equal(nearest(midpoints, "nf4"), np.arange(15))
    assert set(q[:-1] - np.arange(15)) == {0, 1}         # where float32 rounds a midpoint up, it is nearer to the upper one


def test_double_quantization_takes_the_nearest_scale():
    W = np.random.default_rng(1).standard_normal((100, 640)).astype(np.float32)
    s = tp.NF4().quantize(W).scale
    q = tp.NF4(double_quant=True).quantize(W).scale
    o = np.float32(s.mean(dtype=np.float64))
    codes, t = zip(*(plain.double_quantize(s[i:i + 256], o) for i in range(0, len(s), 256)), strict=True)
    assert q.offset == o and len(t) == 4                 # the last block is short
    np.testing.assert_array_equal(q.unpack(), np.concatenate(codes))
    np.testing.assert_array_equal(q.scale, t)


@pytest.mark.parametrize("threshold", [3.0, 6.0, np.inf])
def test_llm_int8_multiplies_the_same_integers_and_outliers(threshold):
    for seed in range(3):
        W, X = layer(seed, d=64)
        X[:, 3:6] *= 20
        linear = tp.engine.nn.Linear(64, len(W), bias=False, rng=0)
        linear.weight.data = W
        scheme = tp.LLMInt8(threshold=threshold)
        outliers = np.flatnonzero((np.abs(X) >= threshold).any(0))
        fast = scheme.layer(linear, outliers)
        np.testing.assert_array_equal(fast.product(X), plain.llm_int8(X, W, threshold))
        Q, s, O = inputs(X, threshold)
        np.testing.assert_array_equal(O, outliers)
        assert (np.abs(Q).max(), np.abs(signed_codes(fast.weight)).max()) == (127, 127)
        assert bool(len(outliers)) == (threshold < np.inf)


def test_w8a8_is_llm_int8_without_outliers():
    W, X = layer(7, d=64)
    linear = tp.engine.nn.Linear(64, len(W), bias=False, rng=0)
    linear.weight.data = W
    fast = tp.W8A8(weights="channel", activations="token").layer(linear)       # multiplies by s_w first, then by s_x
    np.testing.assert_allclose(fast.product(X), plain.llm_int8(X, W, np.inf), rtol=3e-7)


@pytest.mark.parametrize("prompt, n", [(1, 9), (1, 83), (21, 37), (50, 96)])
@pytest.mark.parametrize("group_size, residual", [(8, 8), (8, 24), (4, 12), (16, 16), (32, 32)])
@pytest.mark.parametrize("bits", [2, 4])
def test_kivi_attends_to_the_same_keys_and_values(bits, group_size, residual, prompt, n):
    """Of a prompt the tokens leave at once, so only what it attends to is another. A head has 16 channels."""
    rng = np.random.default_rng(n)
    Q, K, V = rng.standard_normal((3, 2, 3, n, 16)).astype(np.float32)
    K[..., :2] *= 10                                     # as KIVI finds them
    K[..., 2] += 30
    V[:, :, :3] = 0.1                                    # groups of one number
    config = tp.GPTConfig(64, 512, 48, 1, 3)
    cache = tp.QuantizedKVCache(config, bits, group_size, residual).layers[0]
    ends = [0, prompt, *range(prompt + 1, n + 1)]
    fast = [cache.attend(*(tp.Tensor(x[:, :, i:j]) for x in (Q, K, V))).data for i, j in itertools.pairwise(ends)][1:]
    expected, exact = ([form(Q[i], K[i], V[i]) for i in np.ndindex(2, 3)] for form in (
        lambda *head: plain.kivi(*head, bits, group_size, residual), lambda *head: plain.kivi(*head, bits, group_size, n + 1)))
    expected, exact = (np.reshape(form, Q.shape)[:, :, prompt:] for form in (expected, exact))
    np.testing.assert_allclose(np.concatenate(fast, 2), expected, rtol=0, atol=1e-5)
    assert (np.abs(exact - expected).max() > 0.02) == (n >= residual + 1)                # rounding matters


DECODED = {"symmetric": tp.Uniform(8), "asymmetric": tp.Uniform(3, symmetric=False, granularity="group", group_size=48),
           "one scale": tp.Uniform(5, granularity="tensor"), "nf4": tp.NF4(), "short block": tp.NF4(block_size=1000),
           "codes of scales": tp.NF4(double_quant=True), "E8M0": tp.FloatFormat("E2M1", block_size=32, scale_format="E8M0"),
           "16 bits": tp.FloatFormat("FP16"), "float16": tp.GGUF()}


@pytest.mark.parametrize("name", DECODED)
def test_decoding_applies_the_formula_to_every_block(name):
    for shape in ((24, 96), (1200, 960)):                # in one thread, and in two
        q = DECODED[name].quantize(np.random.default_rng(2).standard_normal(shape).astype(np.float32))
        np.testing.assert_array_equal(q.dequantize(), plain.decode(q))


def test_decoding_knows_offsets_and_orders():
    rng = np.random.default_rng(4)
    W, X = layer(1)
    q = tp.GPTQ(bits=3, act_order=True).quantize(W, statistics(X).H)
    assert q.order is not None
    np.testing.assert_array_equal(q.dequantize(), plain.decode(q))
    scale, offset = rng.random((2, 40)).astype(np.float32)
    q = QTensor(pack(rng.integers(0, 16, 640), 4), 4, (20, 32), 16, scale, offset=offset)
    np.testing.assert_array_equal(q.dequantize(), plain.decode(q))


@pytest.mark.parametrize("bits", range(1, 9))
def test_packing_is_a_stream_of_bits(bits):
    rng = np.random.default_rng(bits)
    for n in (1, 7, 8, 9, 64, 101):
        codes = rng.integers(0, 2**bits, n)
        packed = pack(codes, bits)
        np.testing.assert_array_equal(packed, plain.pack(codes, bits))
        np.testing.assert_array_equal(unpack(packed, bits, n), plain.unpack(packed, bits, n))
        np.testing.assert_array_equal(codes, plain.unpack(packed, bits, n))
