"""LoRA: its start, its gradients, its merge, its refusals, and PEFT's numbers."""
import math

import numpy as np
import pytest

import tinypeft as tp
from tests import protocol
from tests.conftest import make_gpt
from tests.oracles import assert_close
from tests.protocol import assert_gradients, assert_leaves_base_alone, assert_saves
from tests.toys import Noise, linear_paths
from tinypeft.engine import functional as F

ALL = ("query", "key", "value", "output", "up", "down")
QUERY = "blocks.0.attention.query"
THREE = tp.LoRA(rank=3, targets="all")


def learned(model, method=THREE):
    return protocol.learned(model, method)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_fresh_lora_is_the_identity_bit_for_bit(dtype, gpt, tokens):
    model = gpt(dtype)
    before = model(tokens).data
    after = tp.attach(model, tp.LoRA(targets="all"))(tokens).data
    assert after.dtype == dtype and np.array_equal(before, after)


def test_at_the_start_only_B_has_a_gradient(gpt, tokens):
    tuned = tp.attach(gpt(), tp.LoRA(targets="all"))
    F.cross_entropy(tuned(tokens), tokens).backward()
    for layer in tuned.wrappers.values():
        assert not layer.A.grad.any() and layer.B.grad.any()


def test_gradients_of_every_trainable_tensor_numerical(gpt, tokens):
    tuned = learned(gpt())
    assert len(tuned.trainable_parameters()) == 2 * 12
    assert_gradients(tuned, tokens)


def test_the_base_stays_as_it_is(gpt, tokens):
    assert_leaves_base_alone(gpt(), tp.LoRA(rank=2), tokens)


def test_saved_and_loaded_bit_exact(gpt, tokens, tmp_path):
    assert_saves(gpt, [tp.LoRA(rank=2, targets="all", alpha_pattern={"query": 3}, rank_pattern={"up": 4}, dropout=0.1),
                       tp.LoRA(rank_stabilized=True, init="gaussian")], tokens, tmp_path)


@pytest.mark.parametrize("method", [
    tp.LoRA(rank=4, alpha=8, targets=ALL), tp.LoRA(rank=4, alpha=8, rank_stabilized=True, init="gaussian"),
    tp.LoRA(rank=2, alpha=3, targets=("query", "up"), rank_pattern={"up": 5}, alpha_pattern={"blocks.1.mlp.up": 1})],
    ids=str)
def test_logits_and_20_steps_of_adamw_equal_pefts_numerical(method, gpt, tokens):
    peft = pytest.importorskip("peft")
    from tests.oracles import peft_lora
    tuned = learned(gpt(), method)
    theirs = peft_lora.peft_model(tuned, peft.LoraConfig(
        r=method.rank, lora_alpha=method.alpha, target_modules=list(method.targets),
        use_rslora=method.rank_stabilized, rank_pattern=method.rank_pattern or {},
        alpha_pattern=method.alpha_pattern or {}))
    assert_close(tuned(tokens), theirs(tokens).logits, 1e-12)

    task = Noise()
    ours = tp.train(tuned, task, 20, lr=1e-2, schedule_kind="constant", warmup=0, clip=None, weight_decay=0.1)
    assert_close(ours.loss, peft_lora.train(theirs, task, 20, 8, lr=1e-2, weight_decay=0.1), 1e-10)
    for path, name, p, their_p in peft_lora.pairs(tuned, theirs):
        assert_close(p, their_p.reshape(p.shape), 1e-8, f"{path}.{name}")
    assert_close(tuned(tokens), theirs(tokens).logits, 1e-8)


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


@pytest.mark.parametrize("targets", [("query", "value"), "all", ("blocks.1.mlp.down",)])
def test_count_is_the_formula(targets, gpt):
    tuned = tp.attach(gpt(), tp.LoRA(rank=3, targets=targets))
    summary = tuned.summary()
    assert summary.trained == summary.stored == sum(3 * (w.d_in + w.d_out) for w in tuned.wrappers.values())
    assert list(tuned.wrappers) == [p for p in linear_paths(gpt())
                                    if targets == "all" or p in targets or p.rsplit(".", 1)[-1] in targets]


def test_merged_is_wrapped_numerical(gpt, tokens):
    tuned = learned(gpt())
    merged = tuned.merge()
    assert type(merged) is tp.GPT and not any(isinstance(m, tp.peft.lora.LoRALinear) for _, m in merged.named_modules())
    assert_close(merged(tokens), tuned(tokens), 1e-12)
    assert not np.allclose(merged(tokens).data, tuned.detach()(tokens).data)


def test_on_a_quantized_base_codes_stay_and_lora_learns(gpt, tokens):
    model = tp.quantize(gpt(np.float32), tp.NF4(block_size=16))
    base = model.get(QUERY)
    codes = {name: a.copy() for name, a in model.state_dict().items()}
    before = model(tokens).data
    tuned = tp.attach(model, tp.LoRA(rank=2))
    assert np.array_equal(tuned(tokens).data, before)
    tp.train(tuned, Noise(), 3, lr=1e-2)
    assert not np.array_equal(tuned(tokens).data, before)
    assert_close(tuned.merge()(tokens), tuned(tokens), 1e-5)
    assert tuned.detach().get(QUERY) is base
    assert all(np.array_equal(a, codes[name]) for name, a in model.state_dict().items())


def test_svd_is_that_of_the_update(gpt):
    layer = learned(gpt()).wrappers["blocks.0.mlp.up"]
    U, S, Vt = layer.svd()
    assert_close((U * S) @ Vt, layer.delta(), 1e-12)
    assert_close(S, np.linalg.svd(layer.delta())[1][:3], 1e-12)
    assert_close(U.T @ U, np.eye(3), 1e-12)


def test_dropout_acts_in_training_only_and_on_lora_only(gpt, tokens):
    model = gpt()
    plain = model(tokens).data
    tuned = learned(model, tp.LoRA(rank=3, dropout=0.5))
    quiet = tuned(tokens).data
    assert np.array_equal(tuned(tokens).data, quiet)
    tuned.train()
    assert not np.array_equal(tuned(tokens).data, tuned(tokens).data)
    for layer in tuned.wrappers.values(): layer.B.data[:] = 0
    assert np.array_equal(tuned(tokens).data, plain)


@pytest.mark.parametrize("make, words", [
    (lambda: tp.LoRA(rank=0), "rank must be a positive integer, got 0"),
    (lambda: tp.LoRA(rank=2.5), "got 2.5"),
    (lambda: tp.LoRA(alpha=0), "alpha must be a positive number"),
    (lambda: tp.LoRA(init="zeros"), "'kaiming', 'gaussian', 'pissa'.* or 'lora_ga', got 'zeros'"),
    (lambda: tp.LoRA(rank_pattern={"value": -1}), "rank_pattern"),
    (lambda: tp.attach(make_gpt(), tp.LoRA(rank=17)), "rank 17 exceeds"),
    (lambda: tp.attach(make_gpt(), tp.LoRA(dropout=1.0)), r"\[0, 1\)"),
    (lambda: tp.attach(make_gpt(), tp.LoRA(targets=("c_attn",))), "here are attention"),
    (lambda: tp.attach(make_gpt(), tp.LoRA(targets="query")), "tuple"),
    (lambda: tp.attach(make_gpt(), tp.LoRA(targets=("token_embedding",))), "tied"),
    (lambda: tp.attach(make_gpt(), tp.LoRA(rank_pattern={"key": 4})), "'key' matches none of the targets; .* add it to"),
    (lambda: tp.attach(make_gpt(), tp.LoRA(alpha_pattern={"blocks.7.attention.query": 4})), "none of the targets"),
    (lambda: tp.LoRA(rank_pattern={"blocks..0": 4}), "whose keys are names of layers")])
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
