"""Bottleneck and parallel adapters: against PyTorch, and where they start. Their promises are in test_methods.py."""
import numpy as np
import pytest

import tinypeft as tp
from tests.protocol import assert_same_race, move
from tinypeft.peft.adapter import truncated_normal

HOULSBY, PFEIFFER = tp.BottleneckAdapter(4), tp.BottleneckAdapter(4, placement="pfeiffer", norms=False)
SURVEY = tp.BottleneckAdapter(4, activation="tanh", activation_up=True)
BESIDE = [tp.ParallelAdapter(4), tp.ParallelAdapter(4, beside="both", activation="silu"),
          tp.ParallelAdapter(4, scale=2.0, beside="attention")]


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


@pytest.mark.parametrize("method", BESIDE, ids=str)
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


def test_pfeiffer_sits_behind_the_feed_forward_only(gpt):
    assert list(tp.attach(gpt(), PFEIFFER).wrappers) == ["blocks.0.mlp.down", "blocks.1.mlp.down"]
    assert list(tp.attach(gpt(), HOULSBY).wrappers) == [
        f"blocks.{i}.{p}" for i in (0, 1) for p in ("attention.output", "mlp.down")]
