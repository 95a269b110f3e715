"""generation.py: what is drawn and how often, with and without the cache, in batches, up to a stop or the context's end."""
import numpy as np
import pytest

import tinypeft as tp
from tests.oracles import assert_close
from tinypeft.engine import functional as F
from tinypeft.engine.tensor import Tensor
from tinypeft.models import plain
from tinypeft.models.cache import KVCache, LayerCache
from tinypeft.models.generation import batches, sample
from tinypeft.models.in_words import generate

LOGITS = np.array([1.0, 3.0, -2.0, 2.5, 0.0, 2.5, -9.0])   # two equal ones among them


# -- sampling --------------------------------------------------------------------------------------
def distribution(temperature=1.0, top_k=None, top_p=None):
    """The probabilities that the options define, computed one token at a time."""
    p = np.exp(LOGITS / temperature)
    p /= p.sum()
    ranked = sorted(range(len(p)), key=lambda i: (-p[i], i))
    if top_k is not None: ranked = ranked[:top_k]
    kept, mass, total = [], 0.0, sum(p[i] for i in ranked)
    for i in ranked:
        if top_p is not None and mass >= top_p: break
        kept.append(i)
        mass += p[i] / total
    q = np.zeros_like(p)
    q[kept] = p[kept] / p[kept].sum()
    return q


@pytest.mark.parametrize("options", [
    {}, {"temperature": 0.5}, {"temperature": 3.0}, {"top_k": 1}, {"top_k": 3}, {"top_k": 99}, {"top_p": 0.6}, {"top_p": 1e-9},
    {"top_p": 1.0}, {"top_k": 4, "top_p": 0.8, "temperature": 1.5}])
def test_tokens_are_drawn_as_often_as_they_should(options):
    n, q = 40_000, distribution(**options)
    drawn = np.bincount(sample(np.tile(LOGITS, (n, 1)), np.random.default_rng(0), **options), minlength=len(q))
    assert not drawn[q == 0].any()
    assert (np.abs(drawn - n * q) <= 5 * np.sqrt(n * q * (1 - q)) + 1e-9).all()            # five standard deviations


@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"temperature": 0.1}, {"temperature": 9.0}, {"top_k": 1},
                                     {"top_k": 40}, {"top_k": 9999}, {"top_p": 0.3}, {"top_p": 0.95}, {"top_p": 1.0},
                                     {"top_k": 70, "top_p": 0.9}])
def test_the_tokens_are_those_of_the_plain_twin(options):
    g = np.random.default_rng(0)
    for n, width in ((5, 1.0), (64, 1.0), (65, 0.0), (700, 0.3), (700, 4.0), (5000, 2.0)):
        z = (g.standard_normal((30, n)) * width).astype(np.float32)
        z[::3] = z[::3].round()                          # many equal ones
        z[1::3, 0] = -np.inf
        draws = [f(z, np.random.default_rng(n), **options) for f in (sample, plain.sample)]
        assert np.array_equal(*draws) and draws[0].dtype == draws[1].dtype


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    p = np.log(np.array([[0.5, 0.3, 0.2]]))
    kept = lambda top_p: set(sample(np.repeat(p, 500, axis=0), np.random.default_rng(0), top_p=top_p))
    assert kept(0.4) == {0} and kept(0.6) == {0, 1} and kept(0.9) == {0, 1, 2}


def test_temperature_0_takes_the_likeliest_and_draws_nothing():
    rng = np.random.default_rng(0)
    assert np.array_equal(sample(np.stack([LOGITS, -LOGITS]), rng, temperature=0), [1, 6])
    assert rng.random() == np.random.default_rng(0).random()


def test_rows_are_drawn_independently():
    z = np.stack([np.where(np.arange(5) == i, 50.0, 0.0) for i in range(5)])
    assert np.array_equal(sample(z, np.random.default_rng(0)), np.arange(5))
    assert len(set(sample(np.zeros((50, 10)), np.random.default_rng(0)))) > 5


# -- generation ------------------------------------------------------------------------------------
def test_greedy(gpt, tokens):
    model = gpt()
    expected = np.concatenate([plain.generate(model, row[None], 10) for row in tokens])
    assert np.array_equal(model.generate(tokens, 10), expected)
    assert np.array_equal(model.generate(tokens, 10, use_cache=False), expected)
    assert np.array_equal(model.generate(tokens[1:2], 10), expected[1:2])
    assert np.array_equal(model.generate(tokens, 10, temperature=0.7, top_k=1, rng=5), expected)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_cache_changes_no_logits(dtype, gpt, tokens):
    model = gpt(dtype)
    full, cache = model(tokens).data, KVCache(2)
    with tp.no_grad():
        pieces = [model(tokens[:, i:j], cache=cache).data for i, j in ((0, 3), (3, 4), (4, 7))]
    assert cache.length == 7
    assert_close(np.concatenate(pieces, axis=1), full, 1e-12 if dtype is np.float64 else 1e-5)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"temperature": 1.3, "top_k": 9, "top_p": 0.9}])
def test_the_cache_changes_no_tokens(options, gpt, tokens):
    model = gpt()
    a, b = (model.generate(tokens, 17, use_cache=cached, rng=3, **options) for cached in (True, False))
    assert a.shape == (3, 24) and a.dtype == tokens.dtype and np.array_equal(a[:, :7], tokens)
    assert np.array_equal(a, b) and np.array_equal(a, plain.generate(model, tokens, 17, rng=3, **options))


class WithVirtualTokens:
    """What a PeftModel does: virtual tokens enter once, before anything is cached."""
    def __init__(self, model, **seams):
        self.model, self.config, self.seams = model, model.config, seams
        self.virtual_length = 3

    def __call__(self, tokens, cache=None, last=False):
        return self.model(tokens, cache=cache, last=last, **({} if cache is not None and cache.length else self.seams))


@pytest.mark.parametrize("seam", ["prompt", "prefix"])
def test_virtual_tokens_are_cached_too(seam, gpt, tokens, rng):
    model = gpt()
    if seam == "prompt": virtual = Tensor(rng.standard_normal((3, 16)))
    else:                virtual = [(Tensor(rng.standard_normal((4, 3, 4))),) * 2 for _ in range(2)]
    tuned = WithVirtualTokens(model, **{seam: virtual})
    a, b = (generate(tuned, tokens, 15, use_cache=cached) for cached in (True, False))
    assert np.array_equal(a, b) and not np.array_equal(a, model.generate(tokens, 15))
    with pytest.raises(ValueError, match="7 tokens and 16 new ones beside 3 virtual ones exceed the context of 24"):
        generate(tuned, tokens, 16)


def test_draws_are_those_of_the_rng(gpt, tokens):
    model = gpt()
    a = model.generate(tokens, 12, temperature=2.0, rng=1)
    assert np.array_equal(a, model.generate(tokens, 12, temperature=2.0, rng=np.random.default_rng(1)))
    assert not np.array_equal(a, model.generate(tokens, 12, temperature=2.0, rng=2))


def test_stop(gpt, tokens):
    """A row that has produced the stop token repeats it; generation ends when all rows have, and not before."""
    model = gpt()
    free = model.generate(tokens, 17)
    stop = free[1, 9]                                    # the third token that row 1 produces
    y = model.generate(tokens, 17, stop=stop)
    for row, unstopped in zip(y, free, strict=True):
        produced = unstopped[7:]
        n = 1 + np.flatnonzero(produced == stop)[0] if stop in produced else len(produced)
        assert np.array_equal(row[7:7 + n], produced[:n]) and (row[7 + n:] == stop).all()
    alone = model.generate(tokens[1:2], 17, stop=stop)
    assert np.array_equal(alone[0], free[1, :10 if stop not in free[1, 7:9] else 8]) and alone[0, -1] == stop
    assert np.array_equal(model.generate(np.full((1, 3), stop), 2, stop=stop)[:, :3], np.full((1, 3), stop))


def test_nothing_is_recorded(gpt, tokens):
    model = gpt()
    model.generate(tokens, 3)
    assert model(tokens).requires_grad and all(p.grad is None for p in model.parameters())


def test_the_context_is_used_to_its_end(gpt, tokens):
    model = gpt()
    assert model.generate(tokens, 18).shape == (3, 25)   # the last one need not be fed
    with pytest.raises(ValueError, match="7 tokens and 19 new ones exceed the context of 24"):
        model.generate(tokens, 19)
    assert np.array_equal(model.generate(tokens, 0), tokens)


def test_a_cache_of_ones_own(gpt, tokens):
    """`cache=` is used and filled; it holds all tokens but the last, which was never fed."""
    model, cache = gpt(), KVCache(2)
    y = model.generate(tokens, 5, cache=cache)
    assert np.array_equal(y, model.generate(tokens, 5)) and cache.length == y.shape[1] - 1
    assert cache.nbytes == 2 * 2 * 3 * 4 * 11 * 4 * 8    # layers, K and V, rows, heads, positions, d_head, bytes


# -- prompts of unequal lengths --------------------------------------------------------------------
@pytest.mark.parametrize("stop", [None, 5])
@pytest.mark.parametrize("use_cache", [True, False])
def test_prompts_of_unequal_lengths_go_on_as_each_does_alone(gpt, rng, stop, use_cache):
    """Batches of at most ROWS, in any order; a token `stop` in a prompt ends nothing."""
    model = gpt(np.float64, vocab_size=7, context_length=60)
    for p in model.parameters(): p.data[...] += rng.standard_normal(p.shape)
    prompts = [rng.integers(0, 7, n) for n in [1, 50, 3, *rng.integers(1, 50, 20), 3]]
    outs = model.generate(prompts, 10, stop=stop, use_cache=use_cache)
    ends = 0
    for prompt, out in zip(prompts, outs, strict=True):
        alone = model.generate(prompt[None], 10, stop=stop)[0]
        assert np.array_equal(out, alone) and out.dtype == alone.dtype
        ends += len(out) < len(prompt) + 10
    assert (ends > 0) == (stop is not None)


def test_batches_of_prompts():
    """Each prompt once, sorted, at most `n_rows`, at most `later` tokens longer than the first."""
    lengths = np.array([5, 30, 1, 6, 5, 22, 5])
    assert [rows.tolist() for rows in batches(lengths, 3, 5)] == [[2, 0, 4], [6, 3], [5], [1]]
    assert [rows.tolist() for rows in batches(lengths, 9, 0)] == [[2], [0, 4, 6], [3], [5], [1]]
    assert list(batches(lengths[:0], 3, 5)) == []


def test_prompts_of_unequal_lengths_are_refused_as_one_is(gpt):
    model = gpt()
    prompts = [np.zeros(3, int), np.zeros(20, int)]
    with pytest.raises(ValueError, match="20 tokens and 7 new ones exceed the context"): model.generate(prompts, 7)
    for bad in prompts[1][:0], prompts[1][None], np.zeros(2):
        with pytest.raises(ValueError, match=r"prompt 2 must be integers \(T,\) with T ≥ 1, got"):
            model.generate([prompts[0], bad], 2)


def test_the_buffers_of_a_cache_grow(rng):
    layer, whole = LayerCache(), np.zeros((2, 3, 0, 4))
    for n in (1, 1, 5, 1, 9):
        new = rng.standard_normal((2, 3, n, 4))
        whole = np.concatenate([whole, new], axis=2)
        k, v = layer.append(Tensor(new), Tensor(-new))
        assert np.array_equal(k.data, whole) and np.array_equal(v.data, -whole) and layer.length == whole.shape[2]


@pytest.mark.parametrize("make_cache", [lambda c: KVCache(c.n_layers), lambda c: tp.QuantizedKVCache(c, 8, 4, 4)])
def test_a_cache_goes_back_to_no_earlier_position(make_cache, gpt):
    """What left a window is gone, so `length` cannot be set."""
    cache = make_cache(gpt().config)
    for target in cache, cache.layers[0]:
        with pytest.raises(AttributeError): target.length = 0


@pytest.mark.parametrize("window", [1, 2, 5, 40])
@pytest.mark.parametrize("calls", [[1] * 60, [3, 1, 1, 30, 1, 1, 7] + [1] * 20, [50] + [1] * 15])
def test_a_window_keeps_what_the_next_token_sees_bit_exact(window, calls, rng):
    """Chunks that straddle the window, too: attention is as over everything, and memory is bounded."""
    mine, whole = LayerCache(), LayerCache()
    for n in calls:
        q, k, v = (Tensor(rng.standard_normal((2, h, n, 4)).astype(np.float32)) for h in (6, 3, 3))
        o = mine.attend(q, k, v, window=window)
        assert np.array_equal(o.data, F.attention(q, *whole.append(k, v), window=window).data)
        held = min(mine.length, window - 1)
        assert mine.length == whole.length and mine.nbytes == 2 * held * 2 * 3 * 4 * 4
        assert mine.k.shape[2] <= 4 * (window - 1 + n)       # of this call: the buffers of a long one are freed
    assert window > 5 or mine.k.shape[2] < whole.length


@pytest.mark.parametrize("tokens, n, options, error, says", [
    (np.zeros(3, int), 2, {}, ValueError, r"integers \(B, T\) with T ≥ 1, got int64 \(3,\)"),
    (np.zeros((1, 0), int), 2, {}, ValueError, r"\(1, 0\)"),
    (np.zeros((0, 3), int), 2, {}, ValueError, r"\(0, 3\)"),
    (np.zeros((1, 3)), 2, {}, ValueError, "float64"),
    (np.full((1, 3), 37), 2, {}, ValueError, r"token ids must lie in \[0, 37\), got 37"),
    (np.zeros((1, 3), int), -1, {}, ValueError, "max_new_tokens must be a non-negative integer, got -1"),
    (np.zeros((1, 3), int), 2, {"temperature": -1}, ValueError, "temperature must be a non-negative number, got -1"),
    (np.zeros((1, 3), int), 2, {"temperature": float("nan")}, ValueError, "temperature"),
    (np.zeros((1, 3), int), 2, {"top_k": 0}, ValueError, "top_k must be a positive integer, or None, got 0"),
    (np.zeros((1, 3), int), 2, {"top_p": 0.0}, ValueError, r"top_p must be a number in \(0, 1\], or None, got 0.0"),
    (np.zeros((1, 3), int), 2, {"top_p": 1.5}, ValueError, r"top_p must be a number in \(0, 1\], or None, got 1.5"),
    (np.zeros((1, 3), int), 2, {"topk": 5}, TypeError, "topk"),
])
def test_misuse(tokens, n, options, error, says, gpt):
    with pytest.raises(error, match=says):
        gpt().generate(tokens, n, **options)


def test_a_method_uses_the_context_to_its_end(gpt, tokens):
    """Nothing virtual, nothing lost: with LoRA, and with pseudo-tokens that are switched off."""
    for method in (tp.LoRA(rank=2), tp.PromptTuning(length=3)):
        tuned = tp.attach(gpt(), method)
        room = 25 - tokens.shape[1] - tuned.virtual_length
        assert tuned.virtual_length == (tuned.virtual is not None) * 3
        assert tuned.generate(tokens, room).shape == (3, 7 + room)
        with pytest.raises(ValueError, match="exceed the context"): tuned.generate(tokens, room + 1)
        with tuned.disabled():
            assert tuned.virtual_length == 0 and tuned.generate(tokens, 18).shape == (3, 25)
