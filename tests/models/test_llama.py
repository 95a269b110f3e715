"""llama.py: values and gradients against transformers, rotary embeddings, grouped heads, the seams and the cache."""
import numpy as np
import pytest

import tinypeft as tp
from tests.oracles import assert_close, assert_gradients_close
from tinypeft.engine import functional as F
from tinypeft.engine import plain
from tinypeft.engine.tensor import Tensor
from tinypeft.models.cache import KVCache
from tinypeft.models.llama import Llama, LlamaConfig

SIZES = {"vocab_size": 41, "context_length": 80, "d_model": 24, "n_layers": 3, "d_mlp": 20, "rope_theta": 1e3}
KINDS = {"grouped": {"n_heads": 6, "n_kv_heads": 2, "d_head": 4},
         "one key head": {"n_heads": 3, "n_kv_heads": 1, "d_head": 8, "tied": False},
         "odd sizes": {"d_model": 25, "d_mlp": 13, "n_heads": 5, "n_kv_heads": 1, "d_head": 2, "vocab_size": 43},
         "as many key heads": {"n_heads": 4, "n_kv_heads": 4, "d_head": 6, "norm_eps": 1e-2},
         "Qwen3": {"n_heads": 4, "n_kv_heads": 2, "d_head": 10, "qk_norm": True, "tied": False},
         "Qwen 2.5": {"n_heads": 4, "n_kv_heads": 2, "d_head": 6, "qkv_bias": True}}


def llama(kind="grouped", dtype=np.float64, **sizes):
    """A small model whose norms, too, are drawn at random."""
    model = Llama(LlamaConfig(**SIZES | KINDS[kind] | sizes), rng=1).to(dtype)
    rng = np.random.default_rng(2)
    for name, p in model.named_parameters():
        start = 1.0 if "norm" in name else 0.0
        p.assign((start + 0.2 * rng.standard_normal(p.shape)).astype(dtype))
    return model


@pytest.mark.parametrize("T", [2, 7, 80])
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_transformers(kind, T, rng, torch):
    """Logits and the gradient of every parameter, in float64."""
    from tests.oracles.torch_llama import their_name, torch_llama
    ours = llama(kind)
    theirs = torch_llama(ours)
    tokens, dy = rng.integers(0, 41, (2, T)), rng.standard_normal((2, T, ours.config.vocab_size))
    y, z = ours(tokens), theirs(torch.tensor(tokens)).logits
    assert_close(y, z, 1e-10)
    y.backward(dy)
    z.backward(torch.tensor(dy))
    grads = dict(theirs.named_parameters())
    found = {name: p.grad for name, p in ours.named_parameters()}
    assert_gradients_close(found, {name: grads[their_name(name)].grad.numpy() for name in found}, 1e-10)


def test_float32_agrees_with_transformers(rng, torch):
    from tests.oracles.torch_llama import torch_llama
    ours = llama(dtype=np.float32)
    tokens = rng.integers(0, 41, (2, 80))
    assert_close(ours(tokens), torch_llama(ours, torch.float32, exact=False)(torch.tensor(tokens)).logits, 2e-4)


def test_finite_differences_of_every_parameter(rng):
    model, tokens = llama("Qwen3", n_layers=1), rng.integers(0, 41, (2, 5))
    tp.gradcheck(lambda *_: model(tokens), *model.parameters(), directions=1)


# -- grouped heads and windows ----------------------------------------------------------------------
@pytest.mark.parametrize("T,S", [(5, 5), (1, 9), (70, 70), (130, 140)])
@pytest.mark.parametrize("window", [None, 1, 3, 64, 100])
def test_grouped_attention_is_attention_with_repeated_heads(T, S, window, rng, torch):
    q, k, v = (rng.standard_normal((2, n, t, 4)) for n, t in ((6, T), (2, S), (2, S)))
    i, j = np.arange(S - T, S)[:, None], np.arange(S)
    seen = torch.tensor((j <= i) & (j > i - (window or S)))
    ts = [torch.tensor(a, requires_grad=True) for a in (q, k, v)]
    z = torch.nn.functional.scaled_dot_product_attention(*ts, seen, scale=0.7, enable_gqa=True)
    xs = [Tensor(a, requires_grad=True) for a in (q, k, v)]
    y = F.attention(*xs, scale=0.7, window=window)
    dy = rng.standard_normal(y.shape)
    y.backward(dy)
    z.backward(torch.tensor(dy))
    assert_close(y, z, 1e-12)
    for x, t in zip(xs, ts, strict=True): np.testing.assert_allclose(x.grad, t.grad, rtol=0, atol=1e-12)
    if window is None: assert_close(F.attention(*xs), plain.grouped_attention(*xs), 1e-12)


@pytest.mark.parametrize("shapes", [((2, 5, 3, 4), (2, 2, 3, 4)), ((2, 2, 3, 4), (2, 4, 3, 4)), ((2, 4, 3, 4), (1, 2, 3, 4))])
def test_heads_that_do_not_fit(shapes):
    q, k = (Tensor(np.ones(s)) for s in shapes)
    with pytest.raises(ValueError, match="G a divisor of H"): F.attention(q, k, k)


@pytest.mark.parametrize("options", [{"window": 0}, {"window": 2, "causal": False}])
def test_windows_that_do_not_fit(options):
    q = Tensor(np.ones((1, 3, 4)))
    with pytest.raises(ValueError, match="a window is at least 1 and causal"): F.attention(q, q, q, **options)


# -- seams, cache, sizes ----------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_cached_generation_is_uncached_generation(kind, rng):
    model = llama(kind)
    tokens = rng.integers(0, 41, (2, 5))
    np.testing.assert_array_equal(*(model.generate(tokens, 20, use_cache=use) for use in (True, False)))
    cache = KVCache(3)
    with tp.no_grad(): steps = [model(tokens[:, a:b], cache=cache).data for a, b in ((0, 2), (2, 3), (3, 5))]
    assert_close(np.concatenate(steps, 1), model(tokens), 1e-12)
    assert cache.layers[0].k.shape[1] == model.config.n_kv_heads


def test_a_prefix_is_what_the_model_would_have_computed(rng):
    """Keys and values of earlier tokens, given as a prefix, have the effect of the tokens themselves."""
    model, tokens, cache = llama(), rng.integers(0, 41, (1, 9)), KVCache(3)
    with tp.no_grad(): model(tokens[:, :4], cache=cache)
    prefix = [(Tensor(c.k[0, :, :4]), Tensor(c.v[0, :, :4])) for c in cache.layers]
    assert_close(model(tokens[:, 4:], prefix=prefix), model(tokens).data[:, 4:], 1e-12)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_prefix_is_pefts(kind, batched, rng, torch):
    """Keys that are not rotated, before the others, in each group of heads: as a cache that PEFT fills."""
    import transformers

    from tests.oracles.torch_llama import torch_llama
    ours = llama(kind)
    c, theirs = ours.config, torch_llama(ours)
    prefix = [[Tensor(rng.standard_normal((*[2] * batched, c.n_kv_heads, 4, c.d_head)), requires_grad=True) for _ in "kv"]
              for _ in range(c.n_layers)]
    given = [[torch.tensor(p.data, requires_grad=True) for p in pair] for pair in prefix]
    cache = transformers.DynamicCache(config=theirs.config)
    for i, pair in enumerate(given): cache.update(*(t.expand(2, *t.shape[-3:]) for t in pair), i)
    tokens, dy = rng.integers(0, 41, (2, 7)), rng.standard_normal((2, 7, c.vocab_size))
    y = ours(tokens, prefix=prefix)
    z = theirs(torch.tensor(tokens), attention_mask=torch.ones((2, 11), dtype=torch.long), cache=cache).logits
    assert_close(y, z, 1e-10)
    y.backward(dy)
    z.backward(torch.tensor(dy))
    for ps, ts in zip(prefix, given, strict=True):
        for p, t in zip(ps, ts, strict=True): assert_close(p.grad, t.grad, 1e-10)


@pytest.mark.parametrize("sizes", [{"n_heads": 6, "n_kv_heads": 4}, {"d_head": 5}])
def test_sizes_that_do_not_fit(sizes):
    with pytest.raises(ValueError, match="must divide n_heads .* even"): LlamaConfig(**sizes)
    with pytest.raises(TypeError, match="expected a LlamaConfig"): Llama(tp.GPTConfig())


def test_layers_start_with_gpt2s_spread_numerical():
    """0.02, and those whose outputs add to the residual stream smaller by √(2 L)."""
    model = Llama(LlamaConfig(200, 50, 64, n_layers=8, n_heads=4, n_kv_heads=2, d_mlp=128, d_head=16), rng=0)
    for path, module in model.named_modules():
        if not hasattr(module, "d_in"): continue
        expected = 0.02 / 4 if path.endswith(("output", "down")) else 0.02
        assert module.weight.data.std() == pytest.approx(expected, rel=0.06), path
