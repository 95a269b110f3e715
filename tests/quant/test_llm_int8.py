"""LLM.int8(): the decomposition against its definition, and that library's variant against bitsandbytes."""
import logging

import numpy as np
import pytest

import tinypeft as tp
from tinypeft.engine.nn import Linear
from tinypeft.quant.linear import QuantizedLinear
from tinypeft.quant.llm_int8 import bitsandbytes_rows

OUTLIERS = [3, 17, 50]


def linear(rng, d_in=64, d_out=48, dtype=np.float32):
    layer = Linear(d_in, d_out).to(dtype)
    layer.weight.data, layer.bias.data = (rng.standard_normal(p.shape).astype(dtype) for p in (layer.weight, layer.bias))
    return layer


def inputs(rng, rows=40, d=64, factor=30):
    X = rng.standard_normal((rows, d)).astype(np.float32)
    X[:, OUTLIERS] *= factor
    return X


def error(Y, reference):
    return np.linalg.norm(Y - reference) / np.linalg.norm(reference)


# -- the definition --------------------------------------------------------------------------------
@pytest.mark.parametrize("kept", [[], [3], OUTLIERS, [0, 3, 63]])
@pytest.mark.parametrize("threshold", [0.5, 6.0, 20.0])
def test_equation_8(rng, kept, threshold):
    """One output at a time, in float64 and without a matrix product."""
    layer, X = linear(rng, d_out=5, dtype=np.float64), inputs(rng, rows=6).astype(np.float64)
    Y = tp.LLMInt8(threshold=threshold).layer(layer, kept)(tp.Tensor(X)).data
    W, b = layer.weight.data, layer.bias.data
    O = {h for h in range(64) if (np.abs(X[:, h]) >= threshold).any()}
    for t in range(6):
        s_x = max([abs(X[t, h]) for h in range(64) if h not in O], default=1) / 127
        for n in range(5):
            s_w = np.abs(W[n]).max() / 127
            y = b[n]
            for h in range(64):
                code = round(W[n, h] / s_w)
                if h in O: y += X[t, h] * (np.float16(W[n, h]) if h in kept else s_w * code)
                else:      y += s_x * s_w * round(X[t, h] / s_x) * code
            assert abs(Y[t, n] - y) < 1e-4 * np.abs(Y[t]).max()


def test_the_threshold_itself_is_an_outlier(rng):
    layer = tp.LLMInt8(threshold=6.0).layer(linear(rng), OUTLIERS)
    X = rng.uniform(-1, 1, (4, 64)).astype(np.float32)
    X[:, 3], below = 6.0, X.copy()
    below[:, 3] = np.nextafter(np.float32(6), np.float32(0))
    exact = layer(tp.Tensor(X)).data - X[:, [3]] @ layer.kept[:, [0]].T.astype(np.float32)
    rest = X.copy(); rest[:, 3] = 0
    np.testing.assert_allclose(exact, layer(tp.Tensor(rest)).data, atol=1e-4)
    assert error(layer(tp.Tensor(below)).data, layer(tp.Tensor(X)).data) > 1e-3    # now 6 sets the step of every token


def test_without_outliers_it_is_vector_wise(rng):
    layer, X = linear(rng), inputs(rng)
    vector_wise = tp.W8A8("channel", "token").layer(layer)
    for threshold, X_ in ((np.inf, X), (6.0, X / 100)):
        mine = tp.LLMInt8(threshold).layer(layer)
        assert np.array_equal(mine.weight.codes, vector_wise.weight.codes)
        np.testing.assert_allclose(mine(tp.Tensor(X_)).data, vector_wise(tp.Tensor(X_)).data, rtol=1e-5, atol=1e-5)


def test_all_columns_outliers_and_kept_is_a_float16_layer(rng):
    layer, X = linear(rng), inputs(rng)
    mine = tp.LLMInt8(1e-3).layer(layer, range(64))
    W = layer.weight.data.astype(np.float16).astype(np.float32)
    assert np.array_equal(mine.dense_weight(), W)
    np.testing.assert_allclose(mine(tp.Tensor(X)).data, X @ W.T + layer.bias.data, rtol=1e-5, atol=1e-4)


def test_direction():
    """Table 1, five seeds: vector-wise loses to LLM.int8() with columns read from codes, and that to float16 columns."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        layer, X = linear(rng, 256, 128), inputs(rng, 256, 256)
        Y = X @ layer.weight.data.T + layer.bias.data
        tensor, vector, codes, kept = (error(m(tp.Tensor(X)).data, Y) for m in (
            tp.W8A8().layer(layer), tp.LLMInt8(np.inf).layer(layer),
            tp.LLMInt8().layer(layer), tp.LLMInt8().layer(layer, OUTLIERS)))
        assert vector < 0.75 * tensor and codes < 0.5 * vector and kept < 0.5 * codes, (tensor, vector, codes, kept)


# -- bitsandbytes ----------------------------------------------------------------------------------
@pytest.fixture
def bnb(torch):
    module = pytest.importorskip("bitsandbytes")
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return module


def theirs(bnb, torch, layer, threshold=6.0):
    other = bnb.nn.Linear8bitLt(layer.d_in, layer.d_out, has_fp16_weights=False, threshold=threshold)
    other.weight = bnb.nn.Int8Params(torch.tensor(layer.weight.data), has_fp16_weights=False, requires_grad=False)
    other.bias = torch.nn.Parameter(torch.tensor(layer.bias.data))
    return other.to("cpu")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["outliers", "one row", "none", "at the threshold in float16", "a row of zeros"])
def test_as_bitsandbytes_computes(bnb, torch, seed, kind):
    rng = np.random.default_rng(seed)
    layer, X = linear(rng), inputs(rng)
    if kind == "one row": X = X[:1]
    if kind == "none": X *= np.float32(0.01)
    if kind == "at the threshold in float16": X[5, 7] = 5.9999
    if kind == "a row of zeros": X[3] = 0
    mine, other = tp.LLMInt8(variant="bitsandbytes").layer(layer), theirs(bnb, torch, layer).eval()
    with torch.no_grad(): Y = other(torch.tensor(X)).numpy()
    assert np.array_equal(mine.weight.integers(), other.state.CB.numpy())
    np.testing.assert_allclose(mine.weight.scales() * 127, other.state.SCB.numpy(), rtol=1e-6)
    np.testing.assert_allclose(mine(tp.Tensor(X)).data, Y, rtol=1e-5, atol=2e-6 * np.abs(Y).max())
    paper = tp.LLMInt8().layer(layer, OUTLIERS)(tp.Tensor(X)).data
    assert error(paper, Y) > 1e-4                                      # the variant is what makes them agree


def test_ties_are_rounded_as_by_bitsandbytes_bit_exact(bnb, torch):
    """Inputs on a coarse grid, half of whose quotients by the step are ties: PyTorch's 127/m is 127 · (1/m), rounded twice."""
    rng = np.random.default_rng(0)
    X = rng.integers(-64, 65, (3000, 64)).astype(np.float32) * np.float32(2.0**-6) * rng.integers(1, 90, (3000, 1))
    X = X.astype(np.float16)
    codes, m, _ = bnb.functional.int8_vectorwise_quant(torch.tensor(X))
    Q, ours = bitsandbytes_rows(X.astype(np.float32))
    assert np.array_equal(Q, codes.numpy()) and np.array_equal(ours[:, 0], m.numpy())
    quotient = np.abs(X.astype(float) * 127 / ours)
    ties = (np.abs(quotient % 1 - 0.5) < 1e-6).mean()
    assert ties > 0.001
    assert not np.array_equal(Q, np.rint(X.astype(np.float32) * (np.float32(127) / ours)))    # what one division gives


def test_gradient_as_bitsandbytes(bnb, torch, rng):
    layer, X, dY = linear(rng), inputs(rng), rng.standard_normal((40, 48)).astype(np.float32)
    mine, other = tp.LLMInt8(variant="bitsandbytes").layer(layer), theirs(bnb, torch, layer).eval()
    x, y = tp.Tensor(X, requires_grad=True), torch.tensor(X, requires_grad=True)
    mine(x).backward(dY)
    other(y).backward(torch.tensor(dY))
    np.testing.assert_allclose(x.grad, y.grad.numpy(), rtol=1e-5, atol=1e-5)


def test_bitsandbytes_in_train_mode_does_not_quantize_inputs(bnb, torch, rng):
    """What its CPU layer really computes while training: our plain QuantizedLinear on the same codes."""
    layer, X = linear(rng), inputs(rng)
    mine = QuantizedLinear(tp.LLMInt8(variant="bitsandbytes").quantize(layer.weight.data), layer.bias)
    Y = theirs(bnb, torch, layer).train()(torch.tensor(X)).detach().numpy()
    np.testing.assert_allclose(mine(tp.Tensor(X)).data, Y, rtol=1e-5, atol=2e-6 * np.abs(Y).max())


# -- models ----------------------------------------------------------------------------------------
SIZES = dict(d_model=64, vocab_size=64, context_length=32)


@pytest.mark.parametrize("seed", range(3))
def test_recovers_a_model_with_planted_outliers(gpt, seed):
    """Direction: the error of the logits, a step per tensor against LLM.int8(); at least 8 times less with the outlier
    columns in float16 (16 to 21 measured), with or without calibration, at least 3 with columns read from codes."""
    tokens = np.random.default_rng(seed).integers(0, 64, (4, 32))

    def logits_error(scheme, calibration=None):
        model = gpt(np.float32, rng=seed, **SIZES)
        planted = tp.plant_outliers(model, 3, 32.0, rng=seed)
        before = model(tokens).data
        tp.quantize(model, scheme, calibration)
        if scheme == tp.LLMInt8():
            assert set(planted) <= set(model.blocks[0].attention.query.columns)
            assert len(model.blocks[0].attention.query.columns) < 10
        return error(model(tokens).data, before)

    naive = logits_error(tp.W8A8())
    assert naive > 0.3
    assert 8 * logits_error(tp.LLMInt8()) < naive
    assert 8 * logits_error(tp.LLMInt8(), [np.random.default_rng(9).integers(0, 64, (2, 32))]) < naive
    assert 3 * logits_error(tp.LLMInt8(variant="bitsandbytes")) < naive


def test_kept_columns_are_the_calibrations(gpt, tokens):
    """Those whose largest magnitude over all its tokens reaches the threshold: other tokens, other columns."""
    one, two = (tp.quantize(gpt(np.float32), tp.LLMInt8(threshold=1.5), calibration=c) for c in (tokens, tokens[:1, :1]))
    for model, seen in ((one, tokens), (two, tokens[:1, :1])):
        plain = gpt(np.float32)
        x = plain.blocks[0].norm1(plain.token_embedding(seen) + plain.position_embedding(np.arange(seen.shape[1]))).data
        assert np.array_equal(model.blocks[0].attention.key.columns, np.flatnonzero((np.abs(x) >= 1.5).any((0, 1))))
    assert len(one.blocks[0].attention.key.columns) > len(two.blocks[0].attention.key.columns) > 0


def test_numbers_that_float16_does_not_hold_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        tp.LLMInt8(variant="bitsandbytes").quantize(np.full((2, 3), 1e5, np.float32))
    large = Linear(3, 2)
    large.weight.data[0, 2] = 1e5                                      # a kept column of it would hold an inf
    with pytest.raises(ValueError, match="at most 65504, got 100000"): tp.LLMInt8().layer(large, [1, 2])
    assert np.isfinite(tp.LLMInt8().layer(large, [1]).dense_weight()).all()


def test_nan_and_inf_inputs_show(rng):
    mine, X = tp.LLMInt8().layer(linear(rng)), inputs(rng, rows=4)
    X[1, 5], X[2, 6] = np.nan, np.inf
    Y = mine(tp.Tensor(X)).data
    assert np.isnan(Y[1]).all() and not np.isfinite(Y[2]).any() and np.isfinite(Y[[0, 3]]).all()
