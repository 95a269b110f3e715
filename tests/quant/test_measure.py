"""measure.py: the scale that two layers hid from each other is found again."""
import numpy as np

import tinypeft as tp
from tests.oracles import assert_close
from tinypeft.quant.measure import scale_between


def test_the_scale_between_two_layers_is_found_numerical(rng):
    """V divided by s by rows, W multiplied by it by columns: exactly, and nearly where both were rounded since."""
    V, W = np.float32(rng.standard_normal((8, 200))), np.float32(rng.standard_normal((100, 8)))
    s = np.float32(2.0) ** rng.uniform(-2, 2, 8).astype(np.float32)
    V_hat, W_hat = V / s[:, None], W * s
    assert_close(scale_between(V, V_hat, W.T, W_hat.T), s, 1e-5)
    rounded = lambda X: tp.Uniform(4).quantize(X).dequantize()
    found = scale_between(V, rounded(V_hat), W.T, rounded(W_hat).T)
    assert found.dtype == np.float32 and np.abs(np.log2(found / s)).max() < 0.1


def test_rounding_alone_is_no_scale(rng):
    V, W = np.float32(rng.standard_normal((8, 200))), np.float32(rng.standard_normal((100, 8)))
    rounded = lambda X: tp.Uniform(2).quantize(X).dequantize()
    assert np.array_equal(scale_between(V, rounded(V), W.T, rounded(W).T), np.ones(8))
    assert np.array_equal(scale_between(V, V, W.T, W.T), np.ones(8))
