"""(IA)³: its start, its gradients, its merge, its refusals, and PEFT's numbers."""
import numpy as np
import pytest

import tinypeft as tp
from tests.conftest import make_gpt
from tests.oracles import assert_close, assert_gradients_close
from tests.protocol import assert_gradients, assert_leaves_base_alone, assert_same_race, assert_saves, learned
from tests.toys import Noise, linear_paths
from tinypeft.engine import functional as F
from tinypeft.peft.ia3 import ScaledInput, ScaledOutput

PAPER = tp.IA3()
LIKE_PEFT = tp.IA3(targets=("query", "key", "value", "down"))
ALL = tp.IA3(targets="all", feedforward=("up", "down"))
OUTPUTS = tp.IA3(targets=("value", "blocks.1.mlp.up"), feedforward=None)
every = pytest.mark.parametrize("method", [PAPER, LIKE_PEFT, ALL, OUTPUTS], ids=str)


def peft_model(tuned):
    """PEFT's IA3 on a copy of the base of `tuned`, and [(our l, PEFT's l, to PEFT's shape)]."""
    peft = pytest.importorskip("peft")
    from tests.oracles.torch_gpt import torch_copy
    targets, inner = tuned.method.targets, tuned.method.feedforward or ()
    if targets == "all": targets = {path.rsplit(".", 1)[-1] for path in linear_paths(make_gpt())}
    config = peft.IA3Config(target_modules=list(targets), feedforward_modules=list(inner))
    with tuned.disabled() as base:
        model = peft.get_peft_model(torch_copy(base), config, autocast_adapter_dtype=False)
    pairs = []
    for path, wrapper in tuned.wrappers.items():
        layer = model.get_submodule(f"base_model.model.{path}")
        theirs = layer.ia3_l["default"]
        theirs.data = theirs.data.double()
        assert layer.is_feedforward == isinstance(wrapper, ScaledInput)
        pairs.append((wrapper.l, theirs, lambda a, shape=tuple(theirs.shape): a.reshape(shape)))
    assert len(pairs) == sum(p.requires_grad for p in model.parameters())
    return model, pairs


@every
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_fresh_ia3_is_the_identity_bit_for_bit(dtype, method, gpt, tokens):
    model = gpt(dtype)
    before = model(tokens).data
    after = tp.attach(model, method)(tokens).data
    assert after.dtype == dtype and np.array_equal(before, after)


@every
def test_gradients_of_every_vector_numerical(method, gpt, tokens):
    assert_gradients(learned(gpt(), method), tokens)


@every
def test_gradients_equal_pytorchs_numerical(method, gpt, tokens, torch):
    tuned = learned(gpt(), method)
    theirs, pairs = peft_model(tuned)
    with torch.no_grad():
        for ours, their_l, form in pairs: their_l.copy_(torch.as_tensor(form(ours.data)))
    upstream = np.random.default_rng(2).standard_normal((*tokens.shape, 37))
    tuned(tokens).backward(upstream)
    theirs(tokens).backward(torch.as_tensor(upstream))
    ours, theirs = {}, {}
    for path, (l, their_l, form) in zip(tuned.wrappers, pairs, strict=True):
        ours[path], theirs[path] = form(l.grad), their_l.grad.numpy()
    assert_gradients_close(ours, theirs)


@every
def test_logits_and_20_steps_of_adamw_equal_pefts_numerical(method, gpt, tokens):
    tuned = learned(gpt(), method)
    theirs, pairs = peft_model(tuned)
    assert_same_race(tuned, theirs, pairs, tokens)


@every
def test_the_base_stays_as_it_is(method, gpt, tokens):
    assert_leaves_base_alone(gpt(), method, tokens)


def test_saved_and_loaded_bit_exact(gpt, tokens, tmp_path):
    assert_saves(gpt, [PAPER, LIKE_PEFT, ALL, OUTPUTS], tokens, tmp_path)


def test_one_vector_moves_keys_values_and_inner_activations_as_the_paper_says(gpt):
    block, rng = gpt().blocks[0], np.random.default_rng(3)
    tuned = learned(gpt(), PAPER)
    wrapped = tuned.model.blocks[0]
    x = tp.Tensor(rng.standard_normal((2, 5, 16)))
    for name in ("key", "value"):
        plain, scaled = getattr(block.attention, name), getattr(wrapped.attention, name)
        assert np.array_equal(scaled(x).data, scaled.l.data * plain(x).data)
    assert type(wrapped.attention.query) is tp.engine.Linear and type(wrapped.mlp.up) is tp.engine.Linear
    W2, b2, l_ff = block.mlp.down.weight.data, block.mlp.down.bias.data, wrapped.mlp.down.l.data
    assert_close(wrapped.mlp(x), (l_ff * F.gelu(block.mlp.up(x)).data) @ W2.T + b2, 1e-12)


def test_a_vector_of_zeros_inhibits_and_one_of_twos_amplifies(gpt, tokens):
    tuned = tp.attach(gpt(), PAPER)
    x = tp.Tensor(np.random.default_rng(3).standard_normal((5, 16)))
    layer = tuned.wrappers["blocks.0.attention.value"]
    layer.l.data[:] = 0
    assert not layer(x).data.any()
    layer.l.data[:] = 2
    assert np.array_equal(layer(x).data, 2 * layer.base(x).data)


def test_count_is_the_formula(gpt):
    d, L = 16, 2
    count = lambda method: tp.attach(gpt(), method).summary()
    for method, trained in ((PAPER, L * (d + d + 4 * d)), (LIKE_PEFT, L * (3 * d + 4 * d)),
                            (ALL, L * (4 * d + d + 4 * d)), (OUTPUTS, L * d + 4 * d)):
        assert count(method).trained == count(method).stored == trained


def test_feedforward_layers_are_scaled_at_their_input(gpt):
    kinds = lambda method: {path: type(w) for path, w in tp.attach(gpt(), method).wrappers.items()}
    assert list(kinds(PAPER)) == [f"blocks.{i}.{p}" for i in (0, 1)
                                  for p in ("attention.key", "attention.value", "mlp.down")]
    assert kinds(PAPER)["blocks.1.mlp.down"] is ScaledInput
    assert kinds(PAPER)["blocks.1.attention.key"] is ScaledOutput
    assert set(kinds(OUTPUTS).values()) == {ScaledOutput}
    assert set(kinds(tp.IA3(targets="all", feedforward="all")).values()) == {ScaledInput}
    one = kinds(tp.IA3(targets=("down",), feedforward=("blocks.0.mlp.down",)))
    assert one == {"blocks.0.mlp.down": ScaledInput, "blocks.1.mlp.down": ScaledOutput}


@every
def test_merged_is_wrapped_numerical(method, gpt, tokens):
    tuned = learned(gpt(), method)
    merged = tuned.merge()
    assert type(merged) is tp.GPT
    assert all(type(merged.get(path)) is tp.engine.Linear for path in linear_paths(gpt()))
    assert_close(merged(tokens), tuned(tokens), 1e-12)
    assert not np.allclose(merged(tokens).data, tuned.detach()(tokens).data)


def test_merging_scales_rows_and_the_bias_or_columns(gpt):
    tuned = learned(gpt(), PAPER)
    merged, base = tuned.merge(), gpt()
    for path, layer in tuned.wrappers.items():
        W, b, l = base.get(path).weight.data, base.get(path).bias.data, layer.l.data
        inner = path.endswith("down")
        want = W @ np.diag(l) if inner else np.diag(l) @ W
        assert np.array_equal(merged.get(path).weight.data, want)
        assert np.array_equal(merged.get(path).bias.data, b if inner else l * b)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_layer_without_bias_merges(dtype, rng):
    linear = tp.engine.Linear(5, 3, bias=False, rng=0).to(dtype)
    x = tp.Tensor(rng.standard_normal((4, 5)).astype(dtype))
    for kind in (ScaledInput, ScaledOutput):
        layer = kind(linear).to(dtype)
        layer.l.data[:] = rng.standard_normal(layer.l.shape)
        merged = layer.merge()
        assert merged.bias is None and merged.weight.dtype == dtype
        assert_close(merged(x), layer(x), 1e-5 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("scheme", [tp.NF4(block_size=16), tp.Uniform(8), tp.GGUF("Q8_0")], ids=str)
def test_on_a_quantized_base_codes_stay_and_vectors_learn(scheme, gpt, tokens):
    model = tp.quantize(gpt(np.float32, d_model=32), scheme)
    paths = [f"blocks.0.{p}" for p in ("attention.key", "mlp.down")]
    bases = [model.get(path) for path in paths]
    codes = {name: a.copy() for name, a in model.state_dict().items()}
    before = model(tokens).data
    tuned = tp.attach(model, PAPER)
    assert np.array_equal(tuned(tokens).data, before)
    tp.train(tuned, Noise(), 3, lr=1e-2)
    assert not np.array_equal(tuned(tokens).data, before)
    assert_close(tuned.merge()(tokens), tuned(tokens), 1e-5)
    tuned.detach()
    assert all(model.get(path) is base for path, base in zip(paths, bases, strict=True))
    assert np.array_equal(model(tokens).data, before)
    assert all(np.array_equal(a, codes[name]) for name, a in model.state_dict().items())


@pytest.mark.parametrize("scheme", [tp.W8A8(), tp.LLMInt8()], ids=str)
def test_on_a_base_whose_inputs_are_quantized_the_scaled_input_is_quantized(scheme, gpt, tokens):
    model = tp.quantize(gpt(np.float32), scheme)
    before = model(tokens).data
    tuned = tp.attach(model, PAPER)
    assert np.array_equal(tuned(tokens).data, before)
    tp.train(tuned, Noise(), 3, lr=1e-2)
    layer = tuned.wrappers["blocks.0.mlp.down"]
    x = tp.Tensor(np.random.default_rng(3).standard_normal((5, 64)).astype(np.float32))
    assert np.array_equal(layer(x).data, layer.base(x * layer.l.data).data)


def test_generates_with_and_without_cache(gpt, tokens):
    tuned = learned(gpt(), PAPER)
    a, b = (tuned.generate(tokens, 8, use_cache=cached) for cached in (True, False))
    assert np.array_equal(a, b)


def test_it_shows_where_it_scales(gpt):
    shown = repr(tp.attach(gpt(), PAPER).model)
    assert "(16 → 16, output scaled)" in shown and "(64 → 16, input scaled)" in shown


@pytest.mark.parametrize("make, words", [
    (lambda: tp.IA3(targets="key"), "targets must be a tuple of names"),
    (lambda: tp.IA3(targets=()), "targets must be a tuple of names"),
    (lambda: tp.IA3(feedforward="down"), "feedforward must be .*, or None, got 'down'"),
    (lambda: tp.attach(make_gpt(), tp.IA3(targets=("c_attn",))), "here are attention, blocks, down, key"),
    (lambda: tp.attach(make_gpt(), tp.IA3(targets=("token_embedding",))), "tied"),
    (lambda: tp.attach(make_gpt(), tp.IA3(targets=("key", "value"))),
     "'down' matches none of the targets.*add it to targets"),
    (lambda: tp.attach(make_gpt(), tp.IA3(feedforward=("c_proj",))),
     "feedforward: 'c_proj' matches none of the targets"),
    (lambda: tp.attach(tp.attach(make_gpt(), PAPER).model, PAPER),
     "attached to this model already"),
    (lambda: tp.attach(make_gpt(), PAPER).ranks(), "a product B A"),
    (lambda: tp.attach(make_gpt(), PAPER).set_rank(2), "no other rank to use")])
def test_what_makes_no_sense_raises_and_says_why(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("theirs, ours", [("target_modules", "targets"),
                                          ("feedforward_modules", "feedforward")])
def test_names_of_peft_are_translated(theirs, ours):
    with pytest.raises(TypeError, match=f"the field is called {ours}"):
        tp.IA3(**{theirs: ("down",)})
