"""OFT: rotations and what they keep, the series beside the inverse, PEFT's numbers. Its promises are in test_methods.py."""
import numpy as np
import pytest

import tinypeft as tp
from tests.oracles import assert_close
from tests.peft.test_plain import same_gradients
from tests.protocol import assert_same_race, learned
from tinypeft.engine.nn import Parameter
from tinypeft.peft import plain
from tinypeft.peft.changed import ChangedLinear
from tinypeft.peft.oft import OFTLinear, cayley, neumann, skew, turned

LAYERS = "query", "up", "down"
EXACT, SERIES = tp.OFT(4, targets=LAYERS), tp.OFT(4, neumann_terms=5, targets=LAYERS)
both = pytest.mark.parametrize("method", [EXACT, SERIES], ids=str)
UP = "blocks.0.mlp.up"


def random_q(size, k=3, b=5):
    return Parameter(size * np.random.default_rng(0).standard_normal((k, b * (b - 1) // 2)))


def largest(Q):
    """‖Q‖, the largest over the blocks."""
    return np.linalg.norm(Q, 2, axis=(1, 2)).max()


# -- the equation --------------------------------------------------------------------------------
def test_a_rotation_of_two_inputs_is_the_one_of_school():
    """b = 2: Q = [[0, t], [−t, 0]] with t = tan(θ/2) turns a row by the angle θ, from the first axis to the second."""
    theta = np.array([0.3, -2.0])
    R = cayley(skew(Parameter(np.tan(theta / 2)[:, None]), 2)).data
    for a, block in zip(theta, R, strict=True):
        assert_close(np.array([1.0, 0.0]) @ block, [np.cos(a), np.sin(a)], 1e-14)


def test_q_is_skew_and_r_is_a_rotation_however_large_q_is():
    for size in (0.1, 1, 30):
        Q = skew(random_q(size), 5)
        assert np.array_equal(Q.data, -Q.data.swapaxes(1, 2)) and np.array_equal(Q.data[0, 0, 1:], random_q(size).data[0, :4])
        R = cayley(Q).data
        assert_close(R @ R.swapaxes(1, 2), np.tile(np.eye(5), (3, 1, 1)), 1e-12)
        assert_close(np.linalg.det(R), np.ones(3), 1e-12)


def test_the_solve_is_the_papers_inverse_with_the_same_gradient():
    q = random_q(0.5)
    same_gradients(lambda: cayley(skew(q, 5)), lambda: plain.cayley(skew(q, 5)), q)


def test_the_series_is_the_inverse_cut_off():
    """It turns the same way: R_n = R (I − Qⁿ⁻¹), so R_n tends to R where ‖Q‖ < 1, and never to its inverse."""
    Q = skew(random_q(0.1), 5)
    R, I = cayley(Q).data, np.eye(5)
    for n in (2, 3, 5, 9): assert_close(neumann(Q, n), R @ (I - np.linalg.matrix_power(Q.data, n - 1)), 1e-14)
    powers = [np.linalg.matrix_power(Q.data, i) for i in range(5)]
    assert_close(neumann(Q, 5), sum(c * P for c, P in zip((1, 2, 2, 2, 1), powers, strict=True)), 1e-14)
    errors = [np.abs(neumann(Q, n).data - R).max() for n in (2, 4, 8, 16, 32)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-12 < 0.1 < np.abs(R - R.swapaxes(1, 2)).max()


def test_lengths_and_angles_of_rows_are_kept(gpt):
    """By the inverse to rounding; by five terms, rows shorten by at most the share ‖Q‖⁴, and some do."""
    for method, dtype, digits in ((EXACT, np.float64, 1e-13), (EXACT, np.float32, 1e-5)):
        for layer in learned(gpt(dtype), method).wrappers.values():
            W0, W = layer.base.weight.data, layer.dense_weight()
            assert_close(W @ W.T, W0 @ W0.T, digits)
            assert np.abs(W - W0).max() > 0.1 * np.abs(W0).max()
    for layer in learned(gpt(), SERIES).wrappers.values():
        W0, W = layer.base.weight.data, layer.dense_weight()
        shares = 1 - np.linalg.norm(W, axis=1) / np.linalg.norm(W0, axis=1)
        assert 0 <= shares.min() and 1e-6 < shares.max() <= largest(skew(layer.q, 4).data) ** 4 < 0.5


@both
def test_the_input_is_turned_or_the_weight(method, gpt):
    """W₀ (x R) = (W₀ Rᵀ) x: the general forward pass, which forms ΔW, agrees and has the same gradients."""
    layer = learned(gpt(), method).wrappers[UP]
    x = Parameter(np.random.default_rng(0).standard_normal((2, 5, 16)))
    same_gradients(lambda: layer(x), lambda: ChangedLinear.forward(layer, x), x, layer.q)
    R = np.zeros((16, 16))
    for i, block in enumerate(layer.rotation().data): R[4 * i:4 * i + 4, 4 * i:4 * i + 4] = block
    assert_close(turned(x, layer.rotation()), x.data @ R, 1e-14)
    assert_close(layer.dense_weight(), layer.base.weight.data @ R.T, 1e-14)
    assert_close(layer(x), x.data @ R @ layer.base.weight.data.T + layer.base.bias.data, 1e-13)      # b is not turned


def test_a_quantized_weight_is_not_decoded_for_a_pass(gpt, tokens, monkeypatch):
    tuned = learned(tp.quantize(gpt(), tp.NF4(block_size=16)), EXACT)
    monkeypatch.setattr(OFTLinear, "change", lambda self: pytest.fail("ΔW was formed"))
    want = tuned(tokens).data
    monkeypatch.undo()
    assert_close(tuned.merge()(tokens), want, 1e-12)


def test_the_rotation_is_computed_once_while_it_generates(gpt, tokens, monkeypatch):
    tuned, calls, rotation = learned(gpt(), EXACT), [], OFTLinear.rotation
    monkeypatch.setattr(OFTLinear, "rotation", lambda self: calls.append(self) or rotation(self))
    assert np.array_equal(tuned.generate(tokens, 5), tuned.merge().generate(tokens, 5, use_cache=False))
    calls.clear()
    tuned.generate(tokens, 5)
    assert len(calls) == len(tuned.wrappers)


# -- PEFT ------------------------------------------------------------------------------------------
def theirs_of(base, **options):
    import peft

    from tests.oracles.torch_gpt import torch_copy
    config = peft.OFTConfig(oft_block_size=4, target_modules=list(LAYERS), **options)
    return peft.get_peft_model(torch_copy(base), config, autocast_adapter_dtype=False).double()


@both
def test_20_steps_of_adamw_equal_pefts_numerical(method, gpt, tokens):
    """PEFT's inverse turns the other way, so its Q is ours with a minus; its series has ours."""
    pytest.importorskip("peft")
    tuned, is_series = learned(gpt(), method), method is SERIES
    theirs = theirs_of(tuned.frozen, use_cayley_neumann=is_series)
    pairs = [(layer.q, theirs.get_submodule(f"base_model.model.{path}").oft_R["default"].weight,
              (lambda a: a) if is_series else np.negative) for path, layer in tuned.wrappers.items()]
    assert_same_race(tuned, theirs, pairs, tokens)
    assert_close(tuned.merge()(tokens), theirs.merge_and_unload()(tokens).detach(), 1e-8)


def test_pefts_two_forms_are_each_others_inverse():
    """What the docstring says of PEFT: if this fails, PEFT was mended, and the docstring is to change."""
    pytest.importorskip("peft")
    import torch
    from peft.tuners.oft.layer import OFTRotationModule
    module, q = OFTRotationModule(3, 10, 5, 15), random_q(0.02)
    rotation = lambda is_series, n=5: module._cayley_batch(torch.as_tensor(q.data), 5, is_series, n).numpy()
    Q = skew(q, 5)
    assert_close(rotation(False), cayley(Q).data.swapaxes(1, 2), 1e-14)
    for n in (4, 5, 8): assert_close(rotation(True, n), neumann(Q, n), 1e-14)
    assert np.array_equal(rotation(True, 3), rotation(True, 4))
    assert_close(rotation(True, 2), np.eye(5) + 2 * Q.data, 1e-14)
