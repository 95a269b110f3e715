"""gpt.py: the model against PyTorch and finite differences, its two seams for virtual tokens, and every error."""
import dataclasses
import tracemalloc

import numpy as np
import pytest

import tinypeft as tp
from tests.oracles import assert_close, assert_gradients_close
from tinypeft.engine import functional as F
from tinypeft.engine.nn import Dropout
from tinypeft.engine.tensor import Tensor, topological_order
from tinypeft.models.cache import KVCache

P = 3                                                    # virtual tokens in the tests below


def loss_of(model, tokens, **virtual):
    return F.cross_entropy(model(tokens, **virtual), np.roll(tokens, -1, axis=1))


# -- values and gradients --------------------------------------------------------------------------
def test_agrees_with_pytorch(gpt, tokens, rng, torch):
    from tests.oracles.torch_gpt import named_grads, torch_copy
    for dtype, tolerance in ((np.float64, 1e-9), (np.float32, 1e-5)):
        ours = gpt(dtype)
        theirs = torch_copy(ours, torch.float64)         # float32 too is held against the truth
        y, z = ours(tokens), theirs(tokens)
        assert y.shape == (3, 7, 37)
        assert_close(y, z, tolerance)
        dy = rng.standard_normal(y.shape)
        y.backward(dy.astype(dtype))
        z.backward(torch.tensor(dy))
        assert list(named_grads(ours)) == [n for n, _ in ours.named_parameters()]
        assert_gradients_close(named_grads(ours), named_grads(theirs), tolerance)


@pytest.mark.parametrize("path", ["blocks.0", "blocks.1.attention", "blocks.0.mlp", "final_norm"])
def test_parts_agree_with_pytorch(path, gpt, rng, torch):
    from tests.oracles.against_torch import leaves
    from tests.oracles.torch_gpt import named_grads, torch_copy
    ours = gpt()
    theirs = torch_copy(ours).get_submodule(path)
    ours = ours.get(path)
    (x,), (t,) = leaves([rng.standard_normal((2, 5, 16))])
    y, z = ours(x), theirs(t)
    dy = rng.standard_normal(y.shape)
    y.backward(dy)
    z.backward(torch.tensor(dy))
    assert_close(y, z, 1e-10)
    assert_close(x.grad, t.grad, 1e-10)
    assert_gradients_close(named_grads(ours), named_grads(theirs), 1e-10)


def test_finite_differences_of_every_parameter(gpt, tokens):
    model = gpt(n_layers=1)
    tp.gradcheck(lambda *_: model(tokens), *model.parameters(), directions=1)


def test_finite_differences_with_dropout(gpt, tokens):
    """With the same masks drawn anew in every call, the gradient is that of the network they leave."""
    model = gpt(n_layers=1, dropout=0.3).train()
    drawing = [m for _, m in model.named_modules() if isinstance(m, Dropout)]

    def f(*_):
        for i, m in enumerate(drawing): m.rng = np.random.default_rng(i)
        return model(tokens)
    assert len(drawing) == 4                             # embedding, attention, the attention's output, MLP
    assert not np.allclose(f().data, model.eval()(tokens).data)
    model.train()
    tp.gradcheck(f, *model.parameters(), directions=1)


def test_a_training_step_stays_in_float32(gpt, tokens):
    """Every operation of the graph, every gradient, and what AdamW keeps and leaves behind."""
    model = gpt(np.float32, dropout=0.1).train()
    optimizer = tp.optim.AdamW(model.parameters(), lr=1e-3)
    prompt, kv = (Tensor(np.ones(shape, np.float32), requires_grad=True) for shape in ((P, 16), (4, P, 4)))
    loss = loss_of(model, tokens, prompt=prompt, prefix=[(kv, kv)] * 2)
    nodes = topological_order(loss.node)
    assert len(nodes) > 100 and {n.dtype for n in nodes} == {np.dtype(np.float32)}
    loss.backward()
    assert {p.grad.dtype for p in [prompt, kv, *model.parameters()]} == {np.dtype(np.float32)}
    tp.optim.clip_grad_norm(model.parameters(), 0.1)
    optimizer.step()
    assert {a.dtype for n, a in optimizer.state_arrays().items() if n != "t"} == {np.dtype(np.float32)}
    assert {p.dtype for p in model.parameters()} == {np.dtype(np.float32)}


# -- what frozen weights cost ----------------------------------------------------------------------
def test_the_gradient_of_a_frozen_weight_is_never_computed(tokens, products):
    """Of all products of a LoRA step's backward pass, those that sum over the 21 tokens give only dA, dB.

    The gradient of a weight (d_out, d_in) is dyᵀ x, (d_out, 21) times (21, d_in).
    """
    def backward(method):
        tuned = tp.attach(tp.GPT(tp.GPTConfig(37, 24, 16, 2, 4)), method)
        products.watch(*tuned.parameters())
        loss = loss_of(tuned, tokens)
        products.clear()
        loss.backward()
        return sorted((a[0], b[1]) for a, b in products if len(a) == 2 and a[1] == b[0] == tokens.size)

    assert backward(tp.LoRA(rank=3)) == sorted(2 * 2 * [(3, 16), (16, 3)])         # 2 layers × query, value
    assert backward(tp.FullFineTuning()) == sorted([(37, 16)] + 2 * (4 * [(16, 16)] + [(64, 16), (16, 64)]))


def test_nothing_below_the_first_trained_parameter_is_recorded(gpt, tokens):
    model = gpt()
    for p in model.parameters(): p.requires_grad = False
    model.final_norm.weight.requires_grad = True
    loss = loss_of(model, tokens)
    assert len(topological_order(loss.node)) == 4        # cross_entropy, linear, layer_norm, its weight
    loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is not None] == ["final_norm.weight"]


# -- virtual tokens --------------------------------------------------------------------------------
def virtual_tokens(rng, prompt, prefix):
    """Arrays for the seams: prompt and prefix are None, "shared" by all rows, or of "each" row."""
    shape = {"shared": (), "each": (3,)}
    vectors = None if prompt is None else rng.standard_normal((*shape[prompt], P, 16))
    kv = None if prefix is None else [rng.standard_normal((*shape[prefix], 4, 2, 4)) for _ in range(4)]
    return vectors, kv


@pytest.mark.parametrize("at", [None, [0, 4, 9], [[0, 1, 2], [9, 8, 7], [3, 0, 5]]])
@pytest.mark.parametrize("prompt, prefix", [("shared", None), ("each", None), ("shared", "each"), ("each", "shared")])
def test_a_prompt_agrees_with_pytorch(prompt, prefix, at, gpt, tokens, rng, torch):
    agrees_with_pytorch(prompt, prefix, at, gpt, tokens, rng, torch)


@pytest.mark.parametrize("prefix", ["shared", "each"])
def test_a_prefix_agrees_with_pytorch(prefix, gpt, tokens, rng, torch):
    agrees_with_pytorch(None, prefix, None, gpt, tokens, rng, torch)


def agrees_with_pytorch(prompt, prefix, at, gpt, tokens, rng, torch):
    from tests.oracles.against_torch import leaves
    from tests.oracles.torch_gpt import named_grads, torch_copy
    vectors, kv = virtual_tokens(rng, prompt, prefix)
    xs, ts = leaves([a for a in (vectors, *(kv or ())) if a is not None])
    seams = lambda v: {"prompt": v[0] if prompt else None, "prompt_at": at,
                       "prefix": list(zip(v[-4::2], v[-3::2], strict=True)) if prefix else None}
    ours = gpt()
    theirs = torch_copy(ours)
    y, z = ours(tokens, **seams(xs)), theirs(tokens, **seams(ts))
    assert y.shape == (3, 7, 37)                         # virtual tokens never show
    assert_close(y, z, 1e-9)
    assert not np.allclose(y.data, ours(tokens).data)    # and they matter
    dy = rng.standard_normal(y.shape)
    y.backward(dy)
    z.backward(torch.tensor(dy))
    for i, (x, t) in enumerate(zip(xs, ts, strict=True)): assert_close(x.grad, t.grad, 1e-9, f"virtual {i}")
    assert_gradients_close(named_grads(ours), named_grads(theirs), 1e-9)


@pytest.mark.parametrize("prompt, prefix", [("shared", "each"), ("each", "shared")])
def test_seams_by_finite_differences(prompt, prefix, gpt, tokens, rng):
    model = gpt()
    for p in model.parameters(): p.requires_grad = False
    vectors, kv = virtual_tokens(rng, prompt, prefix)
    f = lambda x, *kv: model(tokens, prompt=x, prompt_at=[2, 0, 7], prefix=[kv[:2], kv[2:]])
    tp.gradcheck(f, vectors, *kv, directions=2)


def test_a_prompt_of_embedded_tokens_is_those_tokens(gpt, tokens):
    model = gpt()
    first = model.token_embedding(tokens[:, :P])
    assert_close(model(tokens[:, P:], prompt=first), model(tokens).data[:, P:], 1e-12)
    middle = model.token_embedding(tokens[:, 2:4])
    rest = np.delete(tokens, [2, 3], axis=1)             # what follows token 1 is then predicted at place 3
    assert_close(model(rest, prompt=middle, prompt_at=[2, 3]), model(tokens).data[:, [0, 3, 4, 5, 6]], 1e-12)
    last = model.token_embedding(tokens[:, 6:])
    assert_close(model(tokens[:, :6], prompt=last, prompt_at=[6]), model(tokens).data[:, [0, 1, 2, 3, 4, 6]], 1e-12)


def test_a_prefix_of_past_keys_and_values_is_the_past(gpt, tokens):
    """The prefix seam and the generation cache are one thing: both continue what the keys and values came from."""
    model, cache = gpt(), KVCache(2)
    with tp.no_grad(): model(tokens[:, :P], cache=cache)
    past = [(Tensor(layer.k[:, :, :P].copy()), Tensor(layer.v[:, :, :P].copy())) for layer in cache.layers]
    with tp.no_grad(): by_cache = model(tokens[:, P:], cache=cache)
    assert cache.length == 7
    assert_close(by_cache, model(tokens).data[:, P:], 1e-12)
    assert_close(model(tokens[:, P:], prefix=past), model(tokens).data[:, P:], 1e-12)


def test_the_future_does_not_matter(gpt, tokens):
    model, changed = gpt(), tokens.copy()
    changed[:, 4:] = (changed[:, 4:] + 1) % 37
    a, b = model(tokens).data, model(changed).data
    assert np.array_equal(a[:, :4], b[:, :4]) and not np.isclose(a[:, 4:], b[:, 4:]).all(-1).any()


def test_the_last_positions_logits_alone(gpt, tokens):
    model = gpt()
    for seams in ({}, {"prompt": tp.Tensor(np.ones((2, 16)))}):
        y = model(tokens, last=True, **seams)
        assert y.shape == (3, 1, 37)
        np.testing.assert_allclose(y.data, model(tokens, **seams).data[:, -1:], rtol=1e-10)
    tuned = tp.attach(model, tp.PrefixTuning(length=3), rng=0)
    np.testing.assert_allclose(tuned(tokens, last=True).data, tuned(tokens).data[:, -1:], rtol=1e-10)


def test_classify_reads_the_last_token_that_counts(gpt, tokens, torch):
    from tests.oracles.torch_gpt import torch_copy
    model = gpt()
    model.head = tp.engine.Linear(16, 5, rng=0).to(np.float64)
    lengths = [7, 2, 4]
    y = model.class_logits(tokens, lengths)
    assert y.shape == (3, 5)
    assert_close(y, torch_copy(model).classify(tokens, lengths), 1e-10)
    padded = tokens.copy()
    padded[1, 2:] = 0
    assert np.array_equal(model.class_logits(padded, lengths).data, y.data)


# -- construction ----------------------------------------------------------------------------------
def test_construction():
    config = tp.GPTConfig(vocab_size=37, context_length=24, d_model=16, n_layers=2, n_heads=4)
    model, same, other = (tp.GPT(config, rng=seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a, same.state_dict()[name]) for name, a in model.state_dict().items())
    assert not np.array_equal(model.token_embedding.weight.data, other.token_embedding.weight.data)
    d, L = 16, 2
    assert model.n_parameters() == 37 * d + 24 * d + L * (12 * d * d + 13 * d) + 2 * d
    names = [n for n, _ in model.named_modules()]
    for part in "norm1 attention.query attention.key attention.value attention.output norm2 mlp.up mlp.down".split():
        assert f"blocks.1.{part}" in names
    assert {"token_embedding", "position_embedding", "final_norm"} < set(names)
    assert dataclasses.asdict(config) == dataclasses.asdict(model.config)


def test_the_context_may_be_filled_but_not_exceeded(gpt):
    model = gpt()
    assert model(np.zeros((1, 24), int)).shape == (1, 24, 37)
    with pytest.raises(ValueError, match=r"25 positions \(25 tokens, 0 prompt .*\) exceed the context of 24"):
        model(np.zeros((1, 25), int))
    with pytest.raises(ValueError, match=r"25 positions \(20 tokens, 3 prompt vectors, 2 of prefix or cache\)"):
        model(np.zeros((1, 20), int), prompt=Tensor(np.ones((3, 16))), prefix=[(Tensor(np.ones((4, 2, 4))),) * 2] * 2)


def zeros(*shape):
    return Tensor(np.zeros(shape))


def filled(model):
    cache = KVCache(2)
    with tp.no_grad(): model(np.zeros((1, 5), int), cache=cache)
    return cache


IDS = np.zeros((1, 5), int)


@pytest.mark.parametrize("misuse, error, says", [
    (lambda m: tp.GPTConfig(d_model=10, n_heads=4), ValueError, "d_model 10 does not divide into 4 heads"),
    (lambda m: tp.GPT({"d_model": 4}), TypeError, "expected a GPTConfig, got dict"),
    (lambda m: m(IDS[0]), ValueError, r"tokens must have shape \(B, T\), B and T ≥ 1, got \(5,\)"),
    (lambda m: m(IDS[:0]), ValueError, r"got \(0, 5\)"),
    (lambda m: m(IDS[:, :0]), ValueError, r"got \(1, 0\)"),
    (lambda m: m(IDS + 37), ValueError, r"token ids must lie in \[0, 37\), got 37"),
    (lambda m: m(IDS - 1), ValueError, r"token ids must lie in \[0, 37\), got -1"),
    (lambda m: m(IDS * 1.0), TypeError, "token ids must be integers, got an array of float64"),
    (lambda m: m(Tensor(IDS)), TypeError, "tokens are integers, got a Tensor"),
    (lambda m: m(IDS, prompt=zeros(3, 15)), ValueError, r"prompt must have shape \(P, 16\) or \(1, P, 16\), got \(3, 15\)"),
    (lambda m: m(IDS, prompt=zeros(2, 3, 16)), ValueError, r"got \(2, 3, 16\)"),
    (lambda m: m(IDS, prompt=zeros(16)), ValueError, r"got \(16,\)"),
    (lambda m: m(IDS, prompt=zeros(2, 16), prompt_at=[0, 7]), ValueError, r"places must lie in \[0, 7\) for 2 vectors"),
    (lambda m: m(IDS, prompt=zeros(2, 16), prompt_at=[3, 3]), ValueError, "two vectors cannot take the same place"),
    (lambda m: m(IDS, prompt=zeros(2, 16), prompt_at=[1, 2, 3]), ValueError, r"expected shape \(2,\) .* got \(3,\)"),
    (lambda m: m(IDS, prefix=[(zeros(4, 2, 4),) * 2]), ValueError, r"one \(K, V\) for each of the 2 layers, got 1"),
    (lambda m: m(IDS, prefix=[(zeros(4, 2, 4), zeros(4, 3, 4))] * 2), ValueError, r"layer 0 must have shapes \(4, 2, 4\)"),
    (lambda m: m(IDS, prefix=[(zeros(4, 2, 4),) * 2, (zeros(4, 3, 4),) * 2]), ValueError, "prefix of layer 1"),
    (lambda m: m(IDS, prefix=[(zeros(2, 4, 2, 4),) * 2] * 2), ValueError, r"or \(1, 4, 2, 4\), got \(2, 4, 2, 4\)"),
    (lambda m: m(IDS, prefix=[(zeros(4, 2, 4),) * 2] * 2, cache=filled(m)), ValueError, "the cache holds 5 positions already"),
    (lambda m: m(IDS, cache=KVCache(2)), tp.GraphError, "a cache keeps numbers without their history"),
    (lambda m: m(IDS, prompt=Tensor(np.zeros((2, 16), np.float32))), TypeError, "do not mix"),
    (lambda m: m.class_logits(IDS, [5]), ValueError, "no classification head"),
])
def test_misuse(misuse, error, says, gpt):
    with pytest.raises(error, match=says):
        misuse(gpt())


@pytest.mark.parametrize("lengths", [[5, 5], [0], [6], []])
def test_classify_refuses_lengths(lengths, gpt):
    model = gpt()
    model.head = tp.engine.Linear(16, 3)
    with pytest.raises(ValueError, match=r"lengths must be 1 numbers in \[1, 5\]"):
        model.class_logits(IDS, lengths)


# -- a model from arrays -------------------------------------------------------------------------
CONFIG = tp.GPTConfig(37, 24, 16, 2, 4)


def test_the_shapes_of_a_model_are_known_without_one():
    assert tp.GPT.parameter_shapes(CONFIG) == {n: p.shape for n, p in tp.GPT(CONFIG).named_parameters()}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_model_is_made_of_arrays_without_copies(dtype):
    first = tp.GPT(CONFIG, rng=0).to(dtype)
    arrays = first.state_dict() | {"head.weight": np.ones((3, 16), dtype)}
    second = tp.GPT.from_arrays(CONFIG, arrays)
    tokens = np.arange(10).reshape(2, 5)
    assert np.array_equal(second(tokens).data, first(tokens).data) and repr(second.blocks[0]) == repr(first.blocks[0])
    assert all(second.state_dict()[n] is a for n, a in arrays.items()) and second.head.bias is None


@pytest.mark.parametrize("change, error, says", [
    ({"blocks.1.norm1.weight": None}, KeyError, "missing .*blocks.1.norm1.weight"),
    ({"x": np.ones(3)}, KeyError, "unknown .*'x'"),
    ({"final_norm.bias": np.ones(3, np.float32)}, ValueError, r"final_norm.bias has shape \(3,\), expected \(16,\)"),
    ({"final_norm.bias": np.ones(16)}, ValueError, "float32 and float64, expected float32 or float64 for all"),
    ({"final_norm.bias": np.ones(16, int)}, ValueError, "the arrays are float32 and int64"),
    ({"head.weight": np.float32(1)}, ValueError, r"head.weight has shape \(\), expected \(16,\)")])
def test_arrays_that_do_not_fit_are_named(change, error, says):
    arrays = {n: a for n, a in (tp.GPT(CONFIG).state_dict() | change).items() if a is not None}
    with pytest.raises(error, match=says): tp.GPT.from_arrays(CONFIG, arrays)


def test_sizes_that_the_arrays_do_not_have_take_no_memory():
    arrays = tp.GPT(CONFIG).state_dict()
    tracemalloc.start()
    for sizes in {"n_layers": 1 << 40}, {"vocab_size": 1 << 40}, {"d_model": 1 << 40}, {"n_layers": 3}:
        with pytest.raises((ValueError, KeyError)): tp.GPT.from_arrays(dataclasses.replace(CONFIG, **sizes), arrays)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_layers_start_with_gpt2s_spread_numerical():
    """0.02; the 2 L layers that add to the residual stream start smaller by √(2 L); positions by a half."""
    model = tp.GPT(tp.GPTConfig(vocab_size=200, context_length=100, d_model=64, n_layers=8, n_heads=4), rng=0)
    for path, module in model.named_modules():
        if not hasattr(module, "weight") or "norm" in path: continue
        expected = 0.01 if path == "position_embedding" else 0.02 / 4 if path.endswith(("output", "down")) else 0.02
        assert module.weight.data.std() == pytest.approx(expected, rel=0.06), path
