"""LoRA: its start, its scale, its ranks by pattern. What every method promises is in test_methods.py."""
import math

import numpy as np
import pytest

import tinypeft as tp
from tests.conftest import make_gpt
from tests.oracles import assert_close
from tests.protocol import learned
from tinypeft.engine import functional as F

QUERY = "blocks.0.attention.query"
THREE = tp.LoRA(rank=3, targets="all")


def test_at_the_start_only_B_has_a_gradient(gpt, tokens):
    tuned = tp.attach(gpt(), tp.LoRA(targets="all"))
    F.cross_entropy(tuned(tokens), tokens).backward()
    for layer in tuned.wrappers.values():
        assert not layer.A.grad.any() and layer.B.grad.any()


def test_the_start_is_what_its_name_says(gpt):
    draw = lambda rng=3, **kw: tp.attach(gpt(d_model=64), tp.LoRA(rank=32, **kw), rng=rng).wrappers[QUERY].A.data
    A = draw(init="kaiming")
    assert abs(A).max() <= 1 / 8 and A.std() == pytest.approx(1 / 8 / math.sqrt(3), rel=0.05)
    A = draw(init="gaussian")
    assert A.std() == pytest.approx(1 / 32, rel=0.05) and abs(A).max() > 3 / 32
    assert np.array_equal(draw(), draw()) and not np.array_equal(draw(), draw(rng=4))


def test_scale_is_alpha_over_r_or_over_its_root():
    assert tp.LoRA().scale(4, 8) == 2 and tp.LoRA(rank_stabilized=True).scale(4, 8) == 4


def test_patterns_give_targets_ranks_of_their_own(gpt):
    tuned = tp.attach(gpt(), tp.LoRA(rank=2, rank_pattern={"value": 3, "blocks.0.attention.value": 1}))
    assert list(tuned.ranks().values()) == [2, 1, 2, 3]
    assert tuned.summary().trained == (2 + 1 + 2 + 3) * 2 * 16


def test_svd_is_that_of_the_update(gpt):
    layer = learned(gpt(), THREE).wrappers["blocks.0.mlp.up"]
    U, S, Vt = layer.svd()
    assert_close((U * S) @ Vt, layer.delta(), 1e-12)
    assert_close(S, np.linalg.svd(layer.delta())[1][:3], 1e-12)
    assert_close(U.T @ U, np.eye(3), 1e-12)


@pytest.mark.parametrize("make, words", [
    (lambda: tp.attach(make_gpt(), tp.LoRA(targets=("c_attn",))), "here are attention"),
    (lambda: tp.attach(make_gpt(), tp.LoRA(targets=("token_embedding",))), "tied"),
    (lambda: tp.attach(make_gpt(), tp.LoRA(rank_pattern={"key": 4})), "'key' matches none of the targets; .* add it to"),
    (lambda: tp.attach(make_gpt(), tp.LoRA(alpha_pattern={"blocks.7.attention.query": 4})), "none of the targets")])
def test_what_makes_no_sense_raises_before_training_and_says_why(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_start_keeps_its_precision(gpt):
    """A float64 start, of an SVD for example, is not rounded; attach casts it to the model's precision."""
    A, base = np.random.default_rng(0).standard_normal((2, 16)), gpt().get(QUERY)
    layer = tp.peft.lora.LoRALinear(base, A, 1.0, 0.0, np.random.default_rng(0))
    assert layer.A.dtype == layer.B.dtype == np.float64 and np.array_equal(layer.A.data, A)
    layer.A.data += 1                                                              # a copy: the caller's A stays
    assert not np.array_equal(layer.A.data, A)

    class Mine(tp.LoRA):
        def start(self, r, d_in, rng): return np.random.default_rng(1).standard_normal((r, d_in))
    want = np.random.default_rng(1).standard_normal((2, 16))
    for dtype in (np.float32, np.float64):
        assert np.array_equal(tp.attach(gpt(dtype), Mine(rank=2)).wrappers[QUERY].A.data, want.astype(dtype))
