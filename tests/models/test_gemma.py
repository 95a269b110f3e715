"""gemma.py: values and gradients against transformers, windows, prefixes and prompts in them, the cache."""
import math

import numpy as np
import pytest

import tinypeft as tp
from tests.oracles import assert_close, assert_gradients_close
from tinypeft.engine.tensor import Tensor
from tinypeft.models.cache import KVCache
from tinypeft.models.gemma import Gemma, GemmaConfig

SIZES = {"vocab_size": 41, "context_length": 200, "d_model": 24, "n_layers": 4, "n_heads": 6, "n_kv_heads": 2,
         "d_mlp": 20, "d_head": 10, "window": 5, "global_every": 3, "rope_theta": 1e3, "local_theta": 1e2,
         "query_scale": 7}
KINDS = {"four norms": {}, "one key head": {"n_heads": 3, "n_kv_heads": 1, "window": 70, "norm_eps": 1e-2},
         "all layers alike": {"global_every": 1, "n_layers": 2}, "windows alone": {"global_every": 9, "window": 2}}


def gemma(kind="four norms", dtype=np.float64, **sizes):
    """A small model with random numbers, its norms among them, which are around 1 + 0."""
    model, rng = Gemma(GemmaConfig(**SIZES | KINDS[kind] | sizes)).to(dtype), np.random.default_rng(2)
    for p in model.parameters(): p.assign((0.2 * rng.standard_normal(p.shape)).astype(dtype))
    return model


@pytest.mark.parametrize("T", [2, 9, 160])
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_transformers(kind, T, rng, torch):
    """Logits and the gradient of every parameter, in float64, also long after the windows' end."""
    from tests.oracles.torch_llama import their_name, torch_llama
    ours = gemma(kind)
    theirs = torch_llama(ours)
    tokens, dy = rng.integers(0, 41, (2, T)), rng.standard_normal((2, T, 41))
    y, z = ours(tokens), theirs(torch.tensor(tokens)).logits
    assert_close(y, z, 1e-10)
    y.backward(dy)
    z.backward(torch.tensor(dy))
    grads = dict(theirs.named_parameters())
    found = {name: p.grad for name, p in ours.named_parameters()}
    assert_gradients_close(found, {name: grads[their_name(name, True)].grad.numpy() for name in found}, 1e-10)


def test_float32_agrees_with_transformers(rng, torch):
    from tests.oracles.torch_llama import torch_llama
    ours = gemma(dtype=np.float32)
    tokens = rng.integers(0, 41, (2, 80))
    assert_close(ours(tokens), torch_llama(ours, torch.float32, exact=False)(torch.tensor(tokens)).logits, 2e-4)


def test_finite_differences_of_every_parameter(rng):
    model, tokens = gemma(n_layers=2, global_every=2, window=2), rng.integers(0, 41, (2, 5))
    tp.gradcheck(lambda *_: model(tokens), *model.parameters(), directions=1)


# -- windows ---------------------------------------------------------------------------------------
def test_what_left_every_window_is_not_seen(rng):
    """Where all layers have windows of w, a position reaches L (w − 1) positions further, and no more."""
    model, tokens = gemma("windows alone", n_layers=2, window=3), rng.integers(0, 41, (1, 12))
    before = model(tokens).data
    tokens[0, 2] = (tokens[0, 2] + 1) % 41
    changed = np.flatnonzero((model(tokens).data != before).any(-1)[0])
    np.testing.assert_array_equal(changed, np.arange(2, 2 + 2 * 2 + 1))


def test_every_nth_layer_sees_all():
    blocks = Gemma(GemmaConfig(**SIZES | {"n_layers": 7})).blocks
    assert [b.attention.options["window"] for b in blocks] == [5, 5, None, 5, 5, None, 5]
    assert [b.attention.rotary.theta for b in blocks] == [1e2, 1e2, 1e3, 1e2, 1e2, 1e3, 1e2]


@pytest.mark.parametrize("P", [1, 4, 7])
@pytest.mark.parametrize("T", [1, 3, 12])
def test_a_prefix_takes_places_in_the_windows(P, T, rng, torch):
    """As a cache that PEFT's prefix tuning fills: its positions count, and a window passes them."""
    import transformers

    from tests.oracles.torch_llama import torch_llama
    ours = gemma()
    theirs, c = torch_llama(ours), ours.config
    prefix = [[Tensor(rng.standard_normal((2, c.n_kv_heads, P, c.d_head)), requires_grad=True) for _ in "kv"]
              for _ in range(c.n_layers)]
    cache, given = transformers.DynamicCache(config=theirs.config), []
    for i, pair in enumerate(prefix):
        given.append([torch.tensor(p.data, requires_grad=True) for p in pair])
        cache.update(*given[-1], i)
    tokens, dy = rng.integers(0, 41, (2, T)), rng.standard_normal((2, T, 41))
    y = ours(tokens, prefix=[tuple(pair) for pair in prefix])
    mask = torch.ones((2, P + T), dtype=torch.long)
    z = theirs(torch.tensor(tokens), attention_mask=mask, cache=cache).logits
    assert_close(y, z, 1e-10)
    y.backward(dy)
    z.backward(torch.tensor(dy))
    for ps, ts in zip(prefix, given, strict=True):
        for p, t in zip(ps, ts, strict=True): np.testing.assert_allclose(p.grad, t.grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("P", [2, 7])
def test_a_prefix_in_the_cache_is_the_prefix(P, rng):
    """Its positions count for the windows and the angles of later calls."""
    model, tokens, cache = gemma(), rng.integers(0, 41, (2, 12)), KVCache(4)
    prefix = [tuple(Tensor(rng.standard_normal((2, P, 10))) for _ in "kv") for _ in range(4)]
    with tp.no_grad():
        parts = [model(tokens[:, :5], prefix=prefix, cache=cache), model(tokens[:, 5:6], cache=cache),
                 model(tokens[:, 6:], cache=cache)]
    assert_close(np.concatenate([y.data for y in parts], 1), model(tokens, prefix=prefix), 1e-12)


def test_a_prompt_enters_beside_the_scaled_embeddings(rng, torch):
    """PEFT's prompt vectors are as large as √d E[tokens]: they are not scaled again."""
    from tests.oracles.torch_llama import torch_llama
    ours = gemma()
    theirs, tokens, prompt = torch_llama(ours), rng.integers(0, 41, (2, 9)), rng.standard_normal((2, 4, 24))
    embedded = theirs.model.embed_tokens(torch.tensor(tokens))
    z = theirs(inputs_embeds=torch.cat([torch.tensor(prompt), embedded], 1)).logits[:, 4:]
    assert_close(ours(tokens, prompt=Tensor(prompt)), z, 1e-10)
    assert_close(ours.token_embedding(tokens), math.sqrt(24) * ours.token_embedding.weight.data[tokens], 1e-14)


def test_a_prompt_of_words_starts_as_these_words_enter(rng):
    """`PromptTuning` by text is the text itself until it is trained."""
    model = gemma()
    tokens = rng.integers(0, 41, (1, 6))
    virtual = tp.PromptTuning(length=3, init="text", text=(4, 9, 2)).virtual(model, rng)
    both = np.concatenate([[[4, 9, 2]], tokens], 1)
    assert_close(model(tokens, prompt=virtual.P_e), model(both).data[:, 3:], 1e-12)


# -- the cache -------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_cached_generation_is_uncached_generation(kind, rng):
    model, tokens = gemma(kind), rng.integers(0, 41, (2, 60))
    np.testing.assert_array_equal(*(model.generate(tokens, 20, use_cache=use) for use in (True, False)))
    cache = KVCache(model.config.n_layers)
    with tp.no_grad(): steps = [model(tokens[:, a:b], cache=cache).data for a, b in ((0, 3), (3, 4), (4, 60))]
    assert_close(np.concatenate(steps, 1), model(tokens), 1e-12)


@pytest.mark.parametrize("make_cache", [lambda c: KVCache(c.n_layers), lambda c: tp.QuantizedKVCache(c, 8, 5, 5)],
                         ids=["plain", "8 bits"])
def test_virtual_tokens_leave_the_windows_of_a_cache(make_cache, rng):
    """P = 7 virtual tokens and windows of 5: as without a cache. Layers with windows hold few positions, the others all."""
    model, tokens = gemma(), rng.integers(0, 41, (2, 6))
    for method in tp.PrefixTuning(7), tp.PTuningV2(7, init="text", text=tuple(range(7))), tp.PromptTuning(7):
        tuned = tp.attach(model, method, rng=0)
        cache = make_cache(model.config)
        a, b = (tuned.generate(tokens, 50, **options) for options in ({"cache": cache}, {"use_cache": False}))
        np.testing.assert_array_equal(a, b)
        assert cache.length == 7 + 55
        sizes = [layer.nbytes for layer in cache.layers]
        assert all((2 * size < max(sizes)) == bool(block.attention.options["window"])
                   for size, block in zip(sizes, model.blocks, strict=True))


def test_a_prefix_of_words_is_their_keys_and_values_in_layers_with_windows_too(rng):
    """More words than a window holds."""
    model, words, cache = gemma(), tuple(range(9)), KVCache(4)
    table = tp.PTuningV2(9, init="text", text=words, dropout=0.0).virtual(model, rng)
    tokens = rng.integers(0, 41, (1, 4))
    with tp.no_grad():
        model.hidden(np.array([words]), cache=cache)
        assert_close(model(tokens, **table.seams(tokens)), model(tokens, cache=cache), 1e-12)


# -- sizes -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("sizes", [{"n_heads": 6, "n_kv_heads": 4}, {"d_head": 5}])
def test_sizes_that_do_not_fit(sizes):
    with pytest.raises(ValueError, match="GemmaConfig: n_kv_heads .* must divide n_heads .* even"): GemmaConfig(**sizes)


def test_the_defaults_are_gemma_3_270ms():
    shapes = Gemma.parameter_shapes(GemmaConfig())
    assert sum(map(math.prod, shapes.values())) == 268_098_176
