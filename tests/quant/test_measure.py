"""measure.py: the scale that two layers hid from each other is found again; what hides the layers is refused."""
import numpy as np
import pytest

import tinypeft as tp
from tests.oracles import assert_close
from tests.protocol import learned
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


# -- which layers are measured -------------------------------------------------------------------
def test_a_method_on_the_model_is_refused_by_name(gpt, tokens):
    """Or the layers that it wraps would be missing from the error, without a word."""
    plain, nf4 = gpt(np.float32), tp.NF4(block_size=16)
    tuned = learned(tp.quantize(gpt(np.float32), nf4), tp.LoRA(2, targets=("query",)))
    other = learned(gpt(np.float32), tp.IA3())
    for before, after in ((plain, tuned.model), (other.model, tuned.model)):
        for measured in (lambda a, b: tp.layer_errors(a, b, tokens), tp.weight_error):
            with pytest.raises(ValueError, match="is on the model, .* measure the base, which detach"):
                measured(before, after)
    with pytest.raises(TypeError, match="expected a language model, got PeftModel"): tp.weight_error(plain, tuned)
    alone = tp.weight_error(plain, tp.quantize(gpt(np.float32), nf4))
    with tuned.disabled() as base: assert tp.weight_error(plain, base) == alone
    assert tp.bits_per_weight(tuned.model) == tp.bits_per_weight(tuned.detach())


def test_a_model_without_codes_has_no_bits_and_no_error(gpt, tokens):
    with pytest.raises(ValueError, match="bits_per_weight: no layer holds codes"): tp.bits_per_weight(gpt())
    with pytest.raises(ValueError, match="weight_error: no layer of the second"): tp.weight_error(gpt(), gpt())
    assert tp.layer_errors(gpt(), gpt(), tokens) == {}
