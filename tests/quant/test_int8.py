"""int8.py: integer products are exact, and W8A8 is what its formula says. Bit-exact and numerical tiers; one direction."""
import dataclasses

import numpy as np
import pytest

import tinypeft as tp
from tinypeft.engine.nn import Linear
from tinypeft.quant import int8
from tinypeft.quant.int8 import Int8Linear, int8_inputs, int8_matmul, scale_of, scaled_matmul


def random_int8(rng, *shape):
    return rng.integers(-128, 128, shape).astype(np.int8)


def in_int64(A, B):
    return A.astype(np.int64) @ B.astype(np.int64).T


def linear(W, b=None):
    layer = Linear(W.shape[1], W.shape[0], bias=b is not None)
    layer.weight.data = W
    if b is not None: layer.bias.data = b
    return layer


# -- exact products --------------------------------------------------------------------------------
@pytest.mark.parametrize("K", [1, 7, 1023, 1024, 1025, 2048, 3000])
@pytest.mark.parametrize("extreme", [None, (127, 127), (-127, 127), (-128, -128), (-128, 127)])
def test_product_is_exact(rng, K, extreme):
    A, B = random_int8(rng, 9, K), random_int8(rng, 5, K)
    if extreme is not None: A[:], B[:] = extreme
    C = int8_matmul(A, B)
    assert np.array_equal(C, in_int64(A, B))
    assert np.array_equal(int8_matmul(A.astype(np.float32), B.astype(np.float32)), C)
    large = np.abs(A.astype(int)).sum(1).max() > 2**17
    assert C.dtype == (np.float64 if K > 1024 and large else np.float32)


@pytest.mark.parametrize("row", [0, 2])
def test_small_codes_need_no_pieces_but_one_row_too_large_does(row):
    """4096 codes of 32 have the sum 2¹⁷, and times −128 that of 2²⁴. One more, and float32 alone is wrong."""
    A, B = np.full((3, 4096), 32, np.int8), np.full((2, 4096), -128, np.int8)
    assert int8_matmul(A, B).dtype == np.float32 and (int8_matmul(A, B) == -2.0**24).all()
    A[row, 0], B[:, 0] = 33, -127
    A[row, 1] = 33
    C = int8_matmul(A, B)
    assert C.dtype == np.float64 and np.array_equal(C, in_int64(A, B))
    assert np.float32(C[row, 0]) != C[row, 0]                              # an odd number beyond 2²⁴


def test_product_is_exact_where_the_sum_is_odd_and_large():
    """The smallest integer that float32 does not hold, 2²⁴ + 1, is the sum of one product more than a chunk."""
    A, B = np.full((1, 1025), -128, np.int8), np.full((1, 1025), -128, np.int8)
    A[0, -1] = B[0, -1] = 1
    assert int8_matmul(A, B)[0, 0] == 2**24 + 1


def test_the_bound_is_tight():
    """127² · 1040 and 128² · 1024 are at most 2²⁴, and one float32 GEMM is exact; one term more, and it is not."""
    def gemm(K, code, last):
        A = np.full((1, K), code, np.float32)
        A[0, -1] = last
        return float((A @ A.T)[0, 0]), (K - 1) * code**2 + last**2
    assert 127**2 * 1040 <= 2**24 < 127**2 * 1041
    assert 128**2 * 1024 == 2**24 and int8.CHUNK == 1024
    for K, code, last in ((1040, 127, 127), (1024, -128, -128)):
        got, true = gemm(K, code, last)
        assert got == true
    for K, code, last in ((1041, 127, 127), (1025, -128, 1)):
        got, true = gemm(K, code, last)
        assert got != true and true > 2**24


def test_random_data_would_hide_a_wrong_bound(monkeypatch, rng):
    """With chunks four times too long random operands still come out right, and the worst case does not."""
    monkeypatch.setattr(int8, "CHUNK", 4096)
    A, B = random_int8(rng, 20, 4096), random_int8(rng, 20, 4096)
    assert np.array_equal(int8_matmul(A, B), in_int64(A, B))
    A[:] = B[:] = 127
    A[:, -1], B[:, -1] = 2, 1
    assert not np.array_equal(int8_matmul(A, B), in_int64(A, B))


def test_product_refuses_what_it_cannot_do():
    A = np.zeros((2, 3), np.int8)
    with pytest.raises(TypeError, match="int32"): int8_matmul(A.astype(np.int32), A)
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"): int8_matmul(A, np.zeros((2, 4), np.int8))


# -- scales ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("block", [6 * 40, 40, 80, 8, 60, 24])     # a matrix, a row, two rows, parts of rows, 1.5 rows, 0.6
def test_scaled_product_is_the_product_with_the_decoded_weight(rng, block):
    W = rng.standard_normal((6, 40)).astype(np.float32)
    q = tp.Uniform(8, granularity="group", group_size=block).quantize(W.reshape(-1))
    q = dataclasses.replace(q, shape=W.shape)
    Q = random_int8(rng, 9, 40).astype(np.float32)
    expected = Q.astype(np.float64) @ q.dequantize().astype(np.float64).T
    np.testing.assert_allclose(scaled_matmul(Q, q), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["token", "tensor", "static"])
def test_inputs_are_rounded_to_the_nearest_step(rng, kind, dtype):
    X = rng.standard_normal((7, 12)).astype(dtype)
    Q, s = int8_inputs(X, kind, scale=np.float32(0.01))
    largest = {"token": np.abs(X).max(1, keepdims=True), "tensor": np.abs(X).max(), "static": 0.01 * 127}[kind]
    np.testing.assert_allclose(s, largest / 127, rtol=1e-6)
    assert np.array_equal(Q, np.rint(Q)) and np.abs(Q).max() <= 127
    inside = np.abs(X) <= largest
    assert (np.abs(Q * s - X)[inside] <= np.broadcast_to(s / 2, X.shape)[inside] * (1 + 1e-5)).all()
    assert (np.abs(Q)[~inside] == 127).all()
    assert (kind == "static") == (not inside.all())


def test_row_max_is_the_largest_of_each_row(rng):
    """One row gives a number, which scales as a column of one does."""
    for shape in ((5, 7), (3, 1), (1, 6), (4, 0), (0, 4)):
        A = np.abs(rng.standard_normal(shape)).astype(np.float32)
        assert np.array_equal(np.reshape(int8.row_max(A), (-1, 1)), A.max(1, keepdims=True, initial=0))


@pytest.mark.parametrize("shape", [(6, 40), (3, 3000)])
def test_scaling_in_place_leaves_the_buffer_as_it_was(rng, shape):
    Y, before = rng.standard_normal(shape), np.getbufsize()
    s, s_w = rng.standard_normal((len(Y), 1)), rng.standard_normal(shape[1])
    expected = Y * s * s_w
    assert int8.scaled(Y, s, s_w) is Y and np.array_equal(Y, expected) and np.getbufsize() == before
    with pytest.raises(ValueError): int8.scaled(Y, np.ones(2))
    assert np.getbufsize() == before


def test_zero_rows_are_exact_and_nan_stays_where_it_is(rng):
    X = rng.standard_normal((4, 6)).astype(np.float32)
    X[1], X[2, 3] = 0, np.nan
    layer = Int8Linear(tp.Uniform(8).quantize(rng.standard_normal((5, 6)).astype(np.float32)), None, "token")
    Y = layer(tp.Tensor(X)).data
    assert (Y[1] == 0).all() and np.isnan(Y[2]).all() and np.isfinite(Y[[0, 3]]).all()
    assert scale_of(np.float32([0, 1e-44, 127])).tolist() == [1, 1, 1]


# -- the layer -------------------------------------------------------------------------------------
@pytest.mark.parametrize("weights", ["tensor", "channel"])
@pytest.mark.parametrize("activations", ["token", "tensor", "static"])
def test_layer_is_its_formula(rng, weights, activations):
    W, b, X = (rng.standard_normal(s) for s in ((7, 10), 7, (2, 5, 10)))
    layer = tp.W8A8(weights, activations).layer(linear(W, b), largest=2.0)
    s_w = np.abs(W).max(None if weights == "tensor" else 1, keepdims=True) / 127
    s_x = {"token": np.abs(X).max(2, keepdims=True), "tensor": np.abs(X).max(), "static": 2.0}[activations] / 127
    expected = (np.clip(np.rint(X / s_x), -127, 127) * s_x) @ (np.rint(W / s_w) * s_w).T + b
    np.testing.assert_allclose(layer(tp.Tensor(X)).data, expected, rtol=1e-5, atol=1e-5)


def test_what_shares_a_scale_decides(rng):
    """Direction, five seeds: with three input columns 30 times larger, and rows of W of unlike size, the relative output
    error falls from a step per tensor to a step per token to a step per token and per output channel."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        X, W = rng.standard_normal((256, 256)).astype(np.float32), rng.standard_normal((128, 256)).astype(np.float32)
        X[:, rng.choice(256, 3, replace=False)] *= 30
        X *= np.exp(0.5 * rng.standard_normal((256, 1))).astype(np.float32)
        W *= np.exp(0.5 * rng.standard_normal((128, 1))).astype(np.float32)
        Y = X @ W.T
        error = [np.linalg.norm(tp.W8A8(*kinds).layer(linear(W))(tp.Tensor(X)).data - Y) / np.linalg.norm(Y)
                 for kinds in (("tensor", "tensor"), ("tensor", "token"), ("channel", "token"))]
        assert error[1] < 0.7 * error[0] and error[2] < 0.95 * error[1], error


# -- models ----------------------------------------------------------------------------------------
def test_static_scale_is_the_largest_input_of_the_calibration(gpt, tokens):
    model, plain = gpt(np.float32), gpt(np.float32)
    tp.quantize(model, tp.W8A8(activations="static"), calibration=[tokens[:2], tokens[2:]])
    x = plain.token_embedding(tokens) + plain.position_embedding(np.arange(tokens.shape[1]))
    largest = np.abs(plain.blocks[0].norm1(x).data).max()
    np.testing.assert_allclose(model.blocks[0].attention.query.scale, largest / 127, rtol=1e-6)


def test_a_fixed_range_is_asked_for():
    with pytest.raises(ValueError, match="calibration"): tp.W8A8(activations="static").layer(Linear(3, 4))


def test_label():
    assert repr(tp.W8A8()) == "W8A8(weights='tensor', activations='tensor')"


def test_a_weight_with_offsets_is_no_factor_of_an_integer_product():
    q = tp.Uniform(8, granularity="group", group_size=4).quantize(np.ones((3, 8)))
    Int8Linear(q, None, "token").check_parts()
    for offset in np.float32(1), np.ones(6, np.float16):
        with pytest.raises(ValueError, match="expected a symmetric weight"):
            Int8Linear(dataclasses.replace(q, offset=offset), None, "token").check_parts()
