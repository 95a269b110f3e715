"""Models with gated MLPs, grouped heads and norms without biases: folding, calibration against explicit loops, distillation,
LoftQ, and the generation cache. Every scheme on them: test_schemes.py."""
import copy

import numpy as np
import pytest

import tinypeft as tp
from tests.conftest import make_gpt
from tests.models.test_gemma import gemma
from tests.models.test_llama import llama
from tests.oracles import assert_close
from tests.toys import linear_paths
from tinypeft.files import load_arrays
from tinypeft.models.gemma import Gemma
from tinypeft.quant.folding import fold_scale
from tinypeft.quant.measure import folded_scales, unfolded
from tinypeft.quant.readers import channels, readers

TOKENS = np.random.default_rng(0).integers(0, 41, (8, 40))
KINDS = ["grouped", "Qwen3", "one key head", "Gemma"]


def make(kind, dtype=np.float64):
    if kind == "GPT": return make_gpt(dtype, vocab_size=41, context_length=40)
    return gemma("four norms", dtype) if kind == "Gemma" else llama(kind, dtype)


def error(model, exact):
    return np.linalg.norm(model(TOKENS).data - exact) / np.linalg.norm(exact)


def random_scales(block, rng):
    """source → (s (d,), one number per channel of the source; its channels)."""
    for source in readers(block):
        columns = channels(block, source)
        if source: yield source, np.exp(rng.uniform(-1, 1, columns.max() + 1)), columns


# -- folding ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [*KINDS, "GPT"])
def test_folding_changes_no_function_numerical(kind, rng):
    """float64, random scales of every source in every block. Measured: 2e-15."""
    model = make(kind)
    before = model(TOKENS).data
    for block in model.blocks:
        for source, s, columns in random_scales(block, rng):
            fold_scale(block.get(source), [block.get(name) for name in readers(block)[source]], s[columns], columns)
    assert error(model, before) < 1e-10
    for old, new in zip(make(kind).blocks, model.blocks, strict=True):
        for source, names in readers(old).items():
            changed = (source, *names) if source else ()
            assert not any(np.allclose(old.get(path).weight.data, new.get(path).weight.data) for path in changed)


@pytest.mark.parametrize("dtype, factor, tolerance", [(np.float64, 30.0, 1e-10), (np.float32, 64.0, 0)])
@pytest.mark.parametrize("kind", KINDS)
def test_planted_outliers_change_nothing_but_activations(kind, dtype, factor, tolerance):
    """Bit for bit for a power of two, except where norms store γ − 1."""
    if kind == "Gemma" and not tolerance: tolerance = 2e-6
    model, paths = make(kind, dtype), ["blocks.1.attention.key", "blocks.2.mlp.gate"]
    before, inputs = model(TOKENS).data, tp.capture(model, TOKENS, paths)
    planted = tp.plant_outliers(model, 2, factor, rng=5)
    assert error(model, before) <= tolerance
    for path, seen in tp.capture(model, TOKENS, paths).items():
        np.testing.assert_allclose((seen.max_abs / inputs[path].max_abs)[planted], factor, rtol=1e-5)


def test_scales_of_norms_that_store_their_gain_less_one(rng):
    """As Gemma's: w + 1 is divided, and a fold is seen in w + 1."""
    norm, linear = tp.engine.RMSNorm(12, offset=1.0).to(np.float64), tp.engine.Linear(12, 5, bias=False, rng=0).to(np.float64)
    norm.weight.assign(rng.standard_normal(12))
    w, x, s = norm.weight.data, tp.Tensor(rng.standard_normal((3, 12))), np.exp(rng.standard_normal(12))
    before = linear(norm(x)).data
    fold_scale(norm, [linear], s)
    assert_close(norm.weight.data, (1 + w) / s - 1, 1e-14)
    assert_close(linear(norm(x)).data, before, 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_folded_scales_are_taken_out_numerical(kind, rng):
    """Scales of every source, rounded at 8 bits after that: those of the norms are seen exactly, the others by the weights."""
    model = make(kind, np.float32)
    other, true = copy.deepcopy(model), []
    for block in other.blocks:
        true.append({source: (s, columns) for source, s, columns in random_scales(block, rng)})
        for source, (s, columns) in true[-1].items():
            fold_scale(block.get(source), [block.get(name) for name in readers(block)[source]], s[columns], columns)
    tp.quantize(other, tp.Uniform(8, granularity="group", group_size=4))
    for old, new, scales in zip(model.blocks, other.blocks, true, strict=True):
        for source, s in folded_scales(old, new).items():
            np.testing.assert_allclose(s, scales[source][0], rtol=1e-5 if "norm" in source else 0.02)
    for path, W, W_hat in unfolded(model, other): assert np.linalg.norm(W_hat - W) < 0.01 * np.linalg.norm(W), path
    assert tp.weight_error(model, other) < 0.01


# -- what schemes of one kind do ---------------------------------------------------------------------
def test_a_family_that_does_not_exist(tmp_path):
    tp.save_quantized(tp.quantize(llama(dtype=np.float32), tp.Uniform(8)), tmp_path / "q")
    from tests.stress.attacks import save_raw
    arrays, meta = load_arrays(tmp_path / "q")
    for family in "Bloom", 3, []:
        save_raw(tmp_path / "q", arrays, meta | {"family": family})
        with pytest.raises(ValueError, match="its family is|family must be"): tp.load_quantized(tmp_path / "q")
    save_raw(tmp_path / "q", arrays, {name: meta[name] for name in meta if name != "family"})
    with pytest.raises(ValueError, match="family"): tp.load_quantized(tmp_path / "q")


@pytest.mark.parametrize("scheme", [tp.GPTQ(4, group_size=4), tp.AWQ(4, group_size=4)], ids=repr)
@pytest.mark.parametrize("kind", ["grouped", "Gemma"])
def test_calibrated_outputs_are_better_than_round_to_nearest_direction(kind, scheme):
    """Median output error over the layers, three models: at most 0.95 of round to nearest's."""
    for seed in range(3):
        model = make(kind, np.float32)
        tp.plant_outliers(model, 2, 8.0, rng=seed)
        ours, nearest = (tp.layer_errors(model, tp.quantize(copy.deepcopy(model), s, TOKENS), TOKENS)
                         for s in (scheme, scheme.nearest))
        assert np.median([ours[path][1] / nearest[path][1] for path in ours]) < 0.95


def test_outlier_features_of_a_gated_block_stay_in_float16():
    model = llama(dtype=np.float32)
    planted = tp.plant_outliers(model, 2, 32.0, rng=1)
    tp.quantize(model, tp.LLMInt8(threshold=20.0), TOKENS)
    for path in ("attention.value", "mlp.gate", "mlp.up"):
        assert set(model.get(f"blocks.1.{path}").columns) == set(planted)


# -- calibration, by explicit loops -----------------------------------------------------------------
def silu(x): return x / (1 + np.exp(-x))
def gelu(x): return 0.5 * x * (1 + np.tanh((2 / np.pi)**0.5 * (x + 0.044715 * x**3)))


def parts_of(model, i):
    """(path → input (n, d_in) of every layer, path → weight) of block i, in float64, and what its gate computes."""
    block, W, plain = model.blocks[i], {}, lambda x: x
    for name in linear_paths(model):
        if name.startswith(f"blocks.{i}."): W[name.removeprefix(f"blocks.{i}.")] = model.get(name).dense_weight().astype(float)
    with tp.no_grad():
        h = model.token_embedding(TOKENS)
        for j in range(i): h = model.blocks[j](h)
        x1 = block.norm1(h)
        seen = []
        output, block.attention.output = block.attention.output, lambda o: seen.append(o) or output(o)
        h = h + getattr(block, "post_norm1", plain)(block.attention(x1))
        block.attention.output = output
        x2 = block.norm2(h)
    rows = lambda x: x.data.reshape(-1, x.shape[-1]).astype(float)
    X = dict.fromkeys(("attention.query", "attention.key", "attention.value"), rows(x1))
    X |= {"attention.output": rows(seen[0]), "mlp.gate": rows(x2), "mlp.up": rows(x2)}
    act = gelu if isinstance(model, Gemma) else silu
    return X | {"mlp.down": act(X["mlp.gate"] @ W["mlp.gate"].T) * (X["mlp.up"] @ W["mlp.up"].T)}, W, act


@pytest.mark.parametrize("kind", ["grouped", "Gemma"])
def test_gptq_is_its_definition_numerical(kind):
    """Algorithm 1 with explicit inverses, on the first block, whose inputs are the model's own: the same codes."""
    model, scheme = make(kind, np.float32), tp.GPTQ(4, group_size=None, damping=0.01)
    X, W, _ = parts_of(model, 0)
    quantized = tp.quantize(copy.deepcopy(model), scheme, TOKENS).blocks[0]
    for name, w in W.items():
        H = 2 / len(X[name]) * X[name].T @ X[name]
        H += 0.01 * H.diagonal().mean() * np.eye(len(H))
        grid, w, free = scheme.nearest.fit(w.astype(np.float32)), w.copy(), list(range(w.shape[1]))
        expected = np.empty_like(w)
        while free:
            j, inverse = free[0], np.linalg.inv(H[np.ix_(free, free)])
            expected[:, j] = grid.round(w[:, [j]].astype(np.float32))[:, 0]
            w[:, free] -= np.outer(w[:, j] - expected[:, j], inverse[0] / inverse[0, 0])
            free = free[1:]
        same_codes = np.isclose(quantized.get(name).dense_weight(), expected, rtol=1e-5, atol=1e-7)
        assert same_codes.mean() > 0.995, name                          # a number between two codes may go either way


@pytest.mark.parametrize("kind", KINDS)
def test_awq_is_its_definition_numerical(kind):
    """Every α of every group of layers tried by hand: query, key and value by all of attention, gate and up by all of the MLP,
    output and down by themselves; heads that share values share s."""
    model, scheme = make(kind, np.float32), tp.AWQ(3, group_size=4, clip=False)
    (X, W, act), c = parts_of(model, 0), model.config
    quantized = tp.quantize(copy.deepcopy(model), scheme, TOKENS)
    rounded = lambda w, s: scheme.nearest.quantize((w * s).astype(np.float32)).dequantize() / s
    attention = copy.deepcopy(model.blocks[0].attention)
    x1 = tp.Tensor(X["attention.key"].reshape(8, 40, -1).astype(np.float32))

    def attended(s):
        for name in ("query", "key", "value"):
            w = W[f"attention.{name}"] if s is None else rounded(W[f"attention.{name}"], s)
            getattr(attention, name).weight.data = w.astype(np.float32)
        with tp.no_grad(): return attention(x1).data.astype(float)

    def mlp(s):
        gate, up = (W[name] if s is None else rounded(W[name], s) for name in ("mlp.gate", "mlp.up"))
        return act(X["mlp.gate"] @ gate.T) * (X["mlp.up"] @ up.T) @ W["mlp.down"].T

    alone = lambda name: lambda s: X[name] @ (W[name] if s is None else rounded(W[name], s)).T
    H, G, d = c.n_heads, c.n_kv_heads, c.d_head

    def per_group(x):                                                   # mean over the heads that read the same values
        x = x.copy()
        for g in range(G):
            for j in range(d):
                at = [h * d + j for h in range(H) if h // (H // G) == g]
                x[at] = np.mean(x[at])
        return x

    judges = {("attention.query", "attention.key", "attention.value"): attended, ("mlp.gate", "mlp.up"): mlp,
              ("attention.output",): alone("attention.output"), ("mlp.down",): alone("mlp.down")}
    best = {}
    for names, computed in judges.items():
        s_X, losses = np.abs(X[names[0]]).mean(0), []
        if names == ("attention.output",): s_X = per_group(s_X)
        for i in range(20):
            s = np.maximum(s_X**(i / 20), 1e-4)
            s = s / np.sqrt(s.max() * s.min())
            losses.append((np.square(computed(s) - computed(None)).sum(), s))
        best |= dict.fromkeys(names, min(losses, key=lambda pair: pair[0])[1])
    rows = {"attention.value": best["attention.output"].reshape(G, H // G, d)[:, 0].reshape(-1),
            "mlp.up": best["mlp.down"]}
    for name, w in W.items():
        w = ((w * best[name]).T / rows.get(name, 1)).T
        expected = scheme.nearest.quantize(w.astype(np.float32)).dequantize()
        got = quantized.get(f"blocks.0.{name}").dense_weight()
        assert np.linalg.norm(got - expected) < 1e-3 * np.linalg.norm(expected), name
    assert all(type(quantized.get(path)) is tp.QuantizedLinear for path in linear_paths(model))     # every s was folded


# -- training --------------------------------------------------------------------------------------
def test_zeroquant_distills_a_gated_block():
    model = llama(dtype=np.float32)
    exact = model(TOKENS).data
    few, many = (tp.quantize(copy.deepcopy(model), tp.ZeroQuant(mlp_bits=2, groups=4, steps=steps, lr=5e-3), TOKENS)
                 for steps in (1, 40))
    assert error(many, exact) < 0.9 * error(few, exact)
    assert many.get("blocks.0.mlp.gate").weight.bits == 2 and many.get("blocks.0.attention.key").weight.bits == 8


@pytest.mark.parametrize("kind", KINDS)
def test_loftq_starts_nearer_than_rounding(kind):
    model, scheme = make(kind, np.float32), tp.NF4(8)
    tuned = tp.loftq(copy.deepcopy(model), tp.LoRA(rank=4, targets=("value", "gate", "up", "down")), scheme)
    for path, wrapper in tuned.wrappers.items():
        W = model.get(path).weight.data
        assert np.linalg.norm(wrapper.merge().dense_weight() - W) < 0.9 * np.linalg.norm(scheme.quantize(W).dequantize() - W)


# -- the generation cache ---------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_keys_and_values_in_few_bits(kind):
    model = make(kind, np.float32)
    c, g, outputs = model.config, model.config.d_head, []
    for bits in (8, 4, 2):
        cache = tp.QuantizedKVCache(c, bits, group_size=g, residual=g)
        with tp.no_grad():
            parts = [model(TOKENS[:2, :20], cache=cache).data]
            parts += [model(TOKENS[:2, [t]], cache=cache).data for t in range(20, 40)]
        outputs.append(np.concatenate(parts, 1))
        numbers = 2 * c.n_kv_heads * c.d_head                         # per token of the 2 rows
        for layer, block in zip(cache.layers, model.blocks, strict=True):
            recent = g + (40 - g) % 8                                 # values leave the window 8 at a time
            kept = numbers * (40 + 40 - recent)                       # keys, and values without the recent ones, as codes
            if block.attention.options.get("window"): kept = numbers * g        # one group of keys
            assert layer.nbytes == kept * bits // 8 + kept // g * 4 + recent * numbers * 4
    exact = model(TOKENS[:2]).data
    errors = [np.linalg.norm(y - exact) / np.linalg.norm(exact) for y in outputs]
    assert 0 < errors[0] < errors[1] / 3 and errors[1] < errors[2] / 2
    prompt = TOKENS[:2, :5]
    long = tp.QuantizedKVCache(c, 1, 2, 80)
    assert np.array_equal(model.generate(prompt, 20, cache=long), model.generate(prompt, 20))
