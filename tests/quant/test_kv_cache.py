"""The quantized generation cache: what is stored when, in how many bytes, how close it decodes, what generation makes of it."""
import numpy as np
import pytest

import tinypeft as tp
from tests.oracles import assert_close
from tinypeft.engine import functional as F
from tinypeft.engine.tensor import no_grad
from tinypeft.quant import kv_cache
from tinypeft.quant.kv_cache import History, single
from tinypeft.quant.packing import pack, unpack

LONG = dict(d_model=32, vocab_size=64, context_length=128)


def error(x, reference):
    return np.linalg.norm(x - reference) / np.linalg.norm(reference)


def through_codes(x, bits):
    """min-max rounding of groups (…, G), in float64, without storage."""
    low, high = x.min(-1, keepdims=True), x.max(-1, keepdims=True)
    s = np.where(high > low, high - low, 1) / (2**bits - 1)
    return low + s * np.rint((x - low) / s)


class Reference:
    """KIVI's Algorithm 1 with a list of tokens, and nothing packed."""

    def __init__(self, kind, bits, group, residual):
        self.kind, self.bits, self.group, self.residual, self.old, self.recent = kind, bits, group, residual, [], []

    def append(self, x):                                               # (B, H, T, d)
        self.recent += list(np.moveaxis(x, 2, 0))
        everything = np.stack(self.old + self.recent, 2)
        while len(self.recent) >= (self.residual + 8 if self.kind == "token" else self.residual):
            n = 8 if self.kind == "token" else self.residual
            leaving = np.stack(self.recent[:n], -1).astype(np.float64) # (B, H, d, n)
            B, H, d, _ = leaving.shape
            if self.kind == "token":
                channels = np.moveaxis(leaving, 3, 2).reshape(B, H, n, -1, self.group)
                leaving = np.moveaxis(through_codes(channels, self.bits).reshape(B, H, n, d), 2, 3)
            else:
                leaving = through_codes(leaving.reshape(B, H, d, -1, self.group), self.bits).reshape(B, H, d, n)
            self.old, self.recent = self.old + list(np.moveaxis(leaving, -1, 0)), self.recent[n:]
        return everything


# -- one history -----------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["token", "channel"])
@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
@pytest.mark.parametrize("calls", [[20] + 9 * [1], [1] * 25, [3, 8, 8, 9], [40, 1]])
def test_history_is_kivi(rng, kind, bits, calls):
    group, residual = 4, 8
    mine, reference = History(kind, bits, group, residual), Reference(kind, bits, group, residual)
    total = 0
    for T in calls:
        x = rng.standard_normal((2, 3, T, 8)).astype(np.float32) + 5
        got, expected = mine.append(x), reference.append(x)
        total += T
        assert got.shape == (2, 3, total, 8) and got.dtype == np.float32
        step = 10 / (2**bits - 1)                                      # float16 scales: rounding may tip a number one step
        assert np.abs(got - expected).max() < 1.01 * step and np.abs(got - expected).mean() < 0.02 * step + 0.003
        assert np.array_equal(got[:, :, -T:], x)                       # what was just fed is seen as it is
        kept = total % residual
        if kind == "token": kept = min(total, residual + (total - residual) % 8)
        assert mine.recent.shape[2] == kept == len(reference.recent)
    old = total - kept
    assert mine.codes.array.nbytes == -(-2 * 3 * old * 8 * bits // 8)
    assert mine.nbytes == mine.codes.array.nbytes + 4 * (2 * 3 * old * 8 // group) + 4 * 2 * 3 * kept * 8


@pytest.mark.parametrize("kind, most", [("token", 8 * 5), ("channel", 3 * 5 + 7)])
@pytest.mark.parametrize("bits", [8, 4, 3, 1])
def test_what_leaves_packs_itself_alone_bit_exact(rng, monkeypatch, bits, kind, most):
    """Values are whole bytes, as 8 tokens are. Of keys at most 7 older codes, which share a byte with the first, are packed
    once more. The bytes are those of one call."""
    sizes, x = [], rng.standard_normal((1, 1, 60, 5)).astype(np.float32)
    monkeypatch.setattr(kv_cache, "pack", lambda q, bits: sizes.append(q.size) or pack(q, bits))
    history, together = (History(kind, bits, 5 if kind == "token" else 3, 3) for _ in range(2))
    for t in range(60): history.append(x[:, :, t:t + 1])
    assert 0 < max(sizes) <= most
    together.append(x)
    for name in ("codes", "scale", "low"): assert np.array_equal(getattr(history, name).array, getattr(together, name).array)
    assert history.nbytes == together.nbytes


@pytest.mark.parametrize("kind", ["token", "channel"])
@pytest.mark.parametrize("bits", [8, 4, 2, 1])
def test_error_is_at_most_half_a_step(rng, kind, bits):
    """And nothing leaves the range, constants included; ranges far from zero and tiny ones too."""
    x = (rng.standard_normal((1, 2, 32, 8)) * np.exp(4 * rng.standard_normal((1, 2, 32, 8)))).astype(np.float32)
    x[0, 0] += 1000
    x[0, 1, :, 4] = x[0, 1, 6] = 0.1                                   # constants, which float16 does not hold
    x[0, 1, :, 3] = x[0, 1, 5] = 0.25                                  # and does
    history = History(kind, bits, 8, 8)
    with np.errstate(divide="raise", invalid="raise"): history.append(x)
    groups = history.groups(x[:, :, :32 - history.recent.shape[2]])
    decoded = history.groups(history.decode(x))
    s, m = (a.astype(np.float64)[:, None] for a in (history.scale.array, history.low.array))
    assert (m <= groups).all() and (groups <= m + s * (2**bits - 1) * (1 + 1e-6)).all()
    assert (np.abs(decoded - groups) <= s / 2 * (1 + 1e-5) + 1e-6 * np.abs(groups)).all()
    constant = (groups == 0.25).all(1)
    assert constant.any() and (decoded[constant] == 0.25).all()


@pytest.mark.parametrize("seed", range(5))
def test_keys_want_channels(seed):
    """Direction, 2 bits, the relative error of a token's vector: where some channels are large and some far from zero, a
    step per channel leaves less than half of what a step per token leaves; where a few tokens are large, it is reversed."""
    rng = np.random.default_rng(seed)
    K, V = rng.standard_normal((2, 1, 2, 128, 32)).astype(np.float32)
    K[..., :2] *= 10
    K[..., 2:4] += 20
    V[:, :, ::16] *= 10

    def errors(x):
        for kind in "channel", "token":
            history = History(kind, 2, 32, 32)
            history.append(x)
            n = 128 - history.recent.shape[2]
            yield (np.linalg.norm(history.decode(x) - x[:, :, :n], axis=-1) / np.linalg.norm(x[:, :, :n], axis=-1)).mean()
    channel, token = errors(K)
    assert channel < 0.5 * token
    channel, token = errors(V)
    assert token < 0.5 * channel


def test_every_finite_float16_bit_exact():
    x = np.arange(2**16, dtype=np.uint16).view(np.float16)
    x = x[np.isfinite(x)]
    assert single(x).tobytes() == x.astype(np.float32).tobytes()


@pytest.mark.parametrize("bits, group", [(1, 8), (2, 4), (2, 6), (3, 8), (4, 2), (4, 5), (5, 8), (8, 3)])
def test_planes_are_the_codes_bit_exact(rng, bits, group):
    """In lanes where a byte holds codes of one group alone, and whole where it does not."""
    history = History("token", bits, group, 0)
    x = rng.standard_normal((1, 2, 16, 3 * group)).astype(np.float32)
    history.append(x)
    codes = np.full((1, 2, 3, 16, group), np.nan, np.float32)         # (B, H, columns, tokens, G)
    lanes = list(history.planes(x, 3 * group))
    for places, q in lanes: codes[..., places] = q
    assert np.array_equal(np.moveaxis(codes, 3, 0).reshape(-1), unpack(history.codes.array, bits, history.n))
    assert len(lanes) == (1 if 8 % bits or group % (8 // bits) else 8 // bits)


# -- one token attends to the codes ----------------------------------------------------------------
@pytest.mark.parametrize("keys", ["channel", "token"])
@pytest.mark.parametrize("values", ["channel", "token"])
@pytest.mark.parametrize("bits, heads, dtype, tolerance", [(4, 4, np.float32, 1e-5), (3, 2, np.float64, 1e-12),
                                                           (1, 4, np.float64, 1e-12), (8, 2, np.float32, 1e-5)])
def test_attention_to_codes_is_attention_to_what_they_decode_to_numerical(rng, monkeypatch, keys, values, bits, heads, dtype,
                                                                          tolerance):
    """With as many heads of keys as of queries and with fewer; what is stored is the same, bit for bit."""
    config = tp.GPTConfig(64, 512, 32, 1, heads)
    mine, plain = (tp.QuantizedKVCache(config, bits, 8, 16, keys, values).layers[0] for _ in range(2))
    monkeypatch.setattr(plain, "attend", lambda q, k, v, **options: F.attention(q, *plain.append(k, v), **options))
    for i, T in enumerate([40, *[1] * 40, 3, 1]):
        q, k, v = (tp.Tensor(rng.standard_normal((2, n, T, 32 // heads)).astype(dtype)) for n in (4, heads, heads))
        options = {} if i % 2 else {"scale": 0.3}
        assert_close(mine.attend(q, k, v, **options).data, plain.attend(q, k, v, **options).data, tolerance)
        assert mine.length == plain.length and mine.nbytes == plain.nbytes
    for a, b in ((mine.keys, plain.keys), (mine.values, plain.values)):
        for name in ("codes", "scale", "low"): assert np.array_equal(getattr(a, name).array, getattr(b, name).array)
        assert np.array_equal(a.recent, b.recent)


def test_with_a_window_it_is_attention_to_decoded_vectors_numerical(rng):
    mine, plain = (tp.QuantizedKVCache(tp.GPTConfig(64, 512, 32, 1, 4), 4, 8, 8).layers[0] for _ in range(2))
    for T in (40, 1, 1):
        q, k, v = (tp.Tensor(rng.standard_normal((1, 4, T, 8)).astype(np.float32)) for _ in range(3))
        o, expected = mine.attend(q, k, v, window=20), F.attention(q, *plain.append(k, v), window=20)
        assert_close(o.data, expected.data, 1e-6)


@pytest.mark.parametrize("keys", ["channel", "token"])
@pytest.mark.parametrize("values", ["channel", "token"])
@pytest.mark.parametrize("bits, window, calls", [(4, 20, [40] + [1] * 60), (3, 3, [1] * 50), (2, 1, [5, 30, 1, 9, 1, 1, 33]),
                                                 (8, 7, [50, 50, 3, 1, 1])])
def test_groups_that_a_window_has_passed_are_dropped_bit_exact(rng, keys, values, bits, window, calls):
    """The attention is that of a cache that keeps them; memory is that of the window, a group and the recent tokens."""
    mine, whole = (tp.QuantizedKVCache(tp.GPTConfig(64, 512, 32, 1, 4), bits, 8, 8, keys, values).layers[0] for _ in range(2))
    for T in calls:
        q, k, v = (tp.Tensor(rng.standard_normal((3, heads, T, 8)).astype(np.float32)) for heads in (4, 2, 2))
        o, expected = mine.attend(q, k, v, window=window), F.attention(q, *whole.append(k, v), window=window)
        assert np.array_equal(o.data, expected.data) and mine.length == whole.length
        for a, b in ((mine.keys, whole.keys), (mine.values, whole.values)):
            assert np.array_equal(a.recent, b.recent)
            coded = a.n // (3 * 2 * 8)
            assert min(window - 1, mine.length) <= coded + a.recent.shape[2] < max(window - 1, 8) + 8 + 8
            assert np.array_equal(a.decode(k.data), b.decode(k.data)[:, :, b.n // (3 * 2 * 8) - coded:])
            for name in "codes", "scale", "low":
                array = getattr(a, name)
                assert array.memory.size <= max(2 * array.array.size, 64)


# -- generation ------------------------------------------------------------------------------------
def test_a_window_as_long_as_the_text_changes_nothing(gpt, tokens):
    model = gpt(np.float32)
    cache = tp.QuantizedKVCache(model.config, bits=1, group_size=4, residual=24)
    assert np.array_equal(model.generate(tokens, 16, cache=cache), model.generate(tokens, 16))
    assert cache.length == tokens.shape[1] + 15


def test_a_prompt_attends_in_full_precision(gpt, tokens):
    model = gpt(np.float32)
    with no_grad():
        cache = tp.QuantizedKVCache(model.config, bits=1, group_size=4, residual=4)
        assert np.array_equal(model(tokens, cache=cache).data, model(tokens, cache=tp.KVCache(2)).data)
        off = model(tokens[:, :1], cache=cache).data - model(np.hstack([tokens, tokens[:, :1]])).data[:, -1:]
        assert np.abs(off).max() > 0.1                       # the next token attends to one bit; rounding is 1e-6


def logits_one_by_one(model, text, cache, prompt=48):
    with no_grad():
        parts = [model(text[:, :prompt], cache=cache).data]
        parts += [model(text[:, [t]], cache=cache).data for t in range(prompt, text.shape[1])]
    return np.concatenate(parts, axis=1)


def test_quality_and_bytes_by_bits(gpt):
    """Teacher-forced over 80 tokens, three seeds: the error of the logits at least halves with every doubling of bits, and
    the bytes are those of the formula; keys per channel beat keys per token where channels are planted in the keys."""
    for seed in range(3):
        model = gpt(np.float32, rng=seed, **LONG)
        text = np.random.default_rng(seed).integers(0, 64, (2, 80))
        plain = tp.KVCache(2)
        exact = logits_one_by_one(model, text, plain)
        assert plain.nbytes == 2 * 2 * (2 * 80 * 32) * 4               # layers, K and V, numbers, bytes

        errors = []
        for bits in (8, 4, 2):
            cache = tp.QuantizedKVCache(model.config, bits=bits, group_size=8, residual=16)
            errors.append(error(logits_one_by_one(model, text, cache), exact))
            keys, values = 2 * 80 * 32, 2 * 64 * 32                    # 80 = 5 · 16 tokens flushed; a window of 16
            assert cache.nbytes == 2 * ((keys + values) * bits // 8 + (keys + values) // 8 * 4 + 2 * 16 * 32 * 4)
        assert 0 < errors[0] < errors[1] / 4 and errors[1] < errors[2] / 2, errors

        for block in model.blocks:                                     # scores stay: query down, key up
            for d in (0, 9, 18, 27):
                block.attention.key.weight.data[d] *= 16; block.attention.key.bias.data[d] *= 16
                block.attention.query.weight.data[d] /= 16; block.attention.query.bias.data[d] /= 16
        by = {keys: error(logits_one_by_one(model, text, tp.QuantizedKVCache(model.config, 2, 8, 16, keys=keys)), exact)
              for keys in ("channel", "token")}
        assert by["channel"] < 0.8 * by["token"], by


@pytest.mark.parametrize("bits, group, residual, ratio", [(2, 32, 32, 0.3), (4, 32, 32, 0.35)])
def test_generate_with_fewer_bytes(gpt, bits, group, residual, ratio):
    model = gpt(np.float32, d_model=64, n_heads=2, vocab_size=64, context_length=256)
    prompt = np.random.default_rng(0).integers(0, 64, (1, 200))
    plain, small = tp.KVCache(2), tp.QuantizedKVCache(model.config, bits, group, residual)
    a, b = model.generate(prompt, 40, cache=plain), model.generate(prompt, 40, cache=small)
    assert a.shape == b.shape == (1, 240) and small.nbytes < ratio * plain.nbytes


def test_with_a_prefix(gpt, tokens):
    """A method's virtual tokens are in the cache like any others."""
    tuned = tp.attach(gpt(np.float32, context_length=64), tp.PrefixTuning(length=6), rng=0)
    cache = tp.QuantizedKVCache(tuned.config, bits=8, group_size=4, residual=8)
    out = tuned.generate(tokens, 20, cache=cache)
    assert out.shape == (3, 27) and cache.length == 6 + 26


def test_errors(gpt, tokens):
    config = gpt().config
    for match, options in (("bits must be an integer from 1 to 8, got 9", dict(bits=9)),
                           ("keys must be 'channel' or 'token', got 'row'", dict(keys="row")),
                           ("values must be 'token' or 'channel', got 'head'", dict(values="head")),
                           ("got residual=48 and group_size=32", dict(residual=48)), ("got residual=0", dict(residual=0)),
                           ("group_size must be a positive integer, got 0", dict(group_size=0)),
                           ("group_size=3 does not divide a head of 4", dict(group_size=3, residual=3))):
        with pytest.raises(ValueError, match=match): tp.QuantizedKVCache(config, **options)
    tp.QuantizedKVCache(config, keys="token", residual=0)              # no group of tokens, no condition on the window
    for bad in (np.inf, np.nan, 1e6):
        x = np.ones((1, 1, 4, 4), np.float32)
        x[0, 0, 2, 1] = bad
        with pytest.raises(ValueError, match="exceed float16"): History("channel", 4, 2, 2).append(x)
