"""Bottleneck and parallel adapters: against PyTorch, and what their papers promise."""
import numpy as np
import pytest

import tinypeft as tp
from tests.protocol import assert_gradients, assert_leaves_base_alone, assert_same_race, assert_saves, move
from tinypeft.peft.adapter import truncated_normal

HOULSBY, PFEIFFER = tp.BottleneckAdapter(4), tp.BottleneckAdapter(4, placement="pfeiffer", norms=False)
SURVEY = tp.BottleneckAdapter(4, activation="tanh", activation_up=True)
PARALLEL = tp.ParallelAdapter(4)
ALL = [HOULSBY, PFEIFFER, SURVEY, PARALLEL, tp.ParallelAdapter(4, beside="both", activation="silu"),
       tp.ParallelAdapter(4, scale=2.0, beside="attention")]
each = pytest.mark.parametrize("method", ALL, ids=str)


@each
def test_gradients(method, gpt, tokens, rng):
    tuned = tp.attach(gpt(), method, rng=0)
    move(tuned, rng)
    assert_gradients(tuned, tokens, kinks=method.activation == "relu")


@each
def test_base_stays(method, gpt, tokens):
    assert_leaves_base_alone(gpt(np.float32), method, tokens)


def test_save_and_load_in_a_fresh_process(gpt, tokens, tmp_path):
    assert_saves(gpt, ALL, tokens, tmp_path)


@pytest.mark.parametrize("method", [HOULSBY, PFEIFFER, SURVEY, tp.BottleneckAdapter(4, activation="relu")], ids=str)
def test_behind_equals_torch(method, gpt, tokens, rng):
    pytest.importorskip("torch")
    from tests.oracles.torch_adapters import put_behind
    from tests.oracles.torch_gpt import torch_copy
    model = gpt()
    oracle = torch_copy(model)
    tuned = tp.attach(model, method, rng=0)
    move(tuned, rng)
    places = [(i, *p) for i in range(2) for p in (("attention", "output"), ("mlp", "down"))]
    if method.placement == "pfeiffer": places = [p for p in places if p[1] == "mlp"]
    new = put_behind(oracle, places, 4, method.activation, method.activation_up)
    pairs = []
    for wrapper, other in zip(tuned.wrappers.values(), new, strict=True):
        down, up = other.bottleneck[0], other.bottleneck[2]
        pairs += [(wrapper.W_d, down.weight), (wrapper.b_d, down.bias),
                  (wrapper.W_u, up.weight), (wrapper.b_u, up.bias)]
    names = dict(oracle.named_parameters())
    pairs += [(p, names[name]) for name, p in tuned.trained.items()]
    assert_same_race(tuned, oracle, pairs, tokens)


@pytest.mark.parametrize("method", ALL[3:], ids=str)
def test_beside_equals_torch(method, gpt, tokens, rng):
    pytest.importorskip("torch")
    from tests.oracles.torch_adapters import put_beside
    from tests.oracles.torch_gpt import torch_copy
    model = gpt()
    oracle = torch_copy(model)
    tuned = tp.attach(model, method, rng=0)
    sublayers = {"ffn": ["mlp"], "attention": ["attention"], "both": ["attention", "mlp"]}[method.beside]
    new = put_beside(oracle, [(i, s) for i in range(2) for s in sublayers], 4, method.activation, method.scale)
    pairs = []
    for wrapper, other in zip(tuned.wrappers.values(), new, strict=True):
        down, up = other.bottleneck[0], other.bottleneck[2]
        pairs += [(wrapper.W_down, down.weight), (wrapper.b_down, down.bias),
                  (wrapper.W_up, up.weight), (wrapper.b_up, up.bias)]
    assert_same_race(tuned, oracle, pairs, tokens)


def test_parallel_starts_as_the_identity(gpt, tokens):
    model = gpt(np.float32)
    before = model(tokens).data
    for beside in ("ffn", "attention", "both"):
        tuned = tp.attach(model, tp.ParallelAdapter(4, beside=beside))
        assert np.array_equal(tuned(tokens).data, before)
        tuned.detach()


@pytest.mark.parametrize("std, most", [(1e-2, 1e-2), (1e-3, 1e-4)])
def test_bottleneck_starts_near_the_identity(std, most, gpt, tokens):
    model = gpt()
    before = model(tokens).data
    tuned = tp.attach(model, tp.BottleneckAdapter(4, init_std=std))
    change = np.abs(tuned(tokens).data - before).max() / np.abs(before).max()
    assert 0 < change < most


def test_initial_spread():
    z = truncated_normal((300, 300), 0.01, np.random.default_rng(0))
    assert np.abs(z).max() <= 0.02 and abs(z.std() / 0.01 - 0.8796) < 0.01      # std of a normal cut off at 2
    down = next(iter(tp.attach(tp.GPT(tp.GPTConfig(d_model=64, n_layers=1)), tp.ParallelAdapter(32)).wrappers.values()))
    assert 0.11 < np.abs(down.W_down.data).max() <= 1 / 8 and not down.W_up.data.any()


def test_counts(gpt):
    d, m, L = 16, 4, 2
    for method, n, norms in ((HOULSBY, 2 * L, 2 * d * (2 * L + 1)), (PFEIFFER, L, 0),
                             (tp.ParallelAdapter(m, beside="both"), 2 * L, 0), (PARALLEL, L, 0)):
        summary = tp.attach(gpt(), method).summary()
        assert summary.trained == summary.stored == n * (2 * d * m + d + m) + norms
        assert f"{summary.trained:,}" in summary._repr_html_()


def test_pfeiffer_sits_behind_the_feed_forward_only(gpt):
    assert list(tp.attach(gpt(), PFEIFFER).wrappers) == ["blocks.0.mlp.down", "blocks.1.mlp.down"]
    assert list(tp.attach(gpt(), HOULSBY).wrappers) == [
        f"blocks.{i}.{p}" for i in (0, 1) for p in ("attention.output", "mlp.down")]


@each
def test_generates_with_and_without_cache(method, gpt, tokens, rng):
    tuned = tp.attach(gpt(), method, rng=0)
    move(tuned, rng)
    a, b = (tuned.generate(tokens, 8, use_cache=cached) for cached in (True, False))
    assert np.array_equal(a, b)


@each
def test_does_not_merge(method, gpt):
    with pytest.raises(tp.MethodError, match="has no `merge`; keep the method attached"):
        tp.attach(gpt(), method).merge()


@pytest.mark.parametrize("make, word", [
    (lambda: tp.BottleneckAdapter(0), "positive"), (lambda: tp.BottleneckAdapter(-3), "positive"),
    (lambda: tp.BottleneckAdapter(2.5), "positive"), (lambda: tp.BottleneckAdapter(placement="before"), "placement"),
    (lambda: tp.BottleneckAdapter(activation="softplus"), "activation"),
    (lambda: tp.BottleneckAdapter(init_std=0), "init_std must be a positive number"),
    (lambda: tp.ParallelAdapter(0), "positive"),
    (lambda: tp.ParallelAdapter(beside="norm"), "beside"), (lambda: tp.ParallelAdapter(scale=0), "scale"),
    (lambda: tp.ParallelAdapter(activation="step"), "activation")])
def test_nonsense_is_refused_at_once(make, word):
    with pytest.raises(tp.MethodError, match=word):
        make()


@pytest.mark.parametrize("cls", [tp.BottleneckAdapter, tp.ParallelAdapter])
def test_a_bottleneck_that_does_not_narrow_is_refused(cls, gpt):
    model = gpt()
    with pytest.raises(tp.MethodError, match="does not narrow"):
        tp.attach(model, cls(16))
    assert model.attached is None                                # and nothing was left on the model
