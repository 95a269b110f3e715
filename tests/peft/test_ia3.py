"""(IA)³: what a vector scales, where, and how it merges. What every method promises is in test_methods.py."""
import numpy as np
import pytest

import tinypeft as tp
from tests.conftest import make_gpt
from tests.oracles import assert_close
from tests.protocol import learned
from tests.toys import Noise
from tinypeft.engine import functional as F
from tinypeft.peft.ia3 import ScaledInput, ScaledOutput

PAPER = tp.IA3()
OUTPUTS = tp.IA3(targets=("value", "blocks.1.mlp.up"), feedforward=None)


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


def test_it_shows_where_it_scales(gpt):
    shown = repr(tp.attach(gpt(), PAPER).model)
    assert "(16 → 16, output scaled)" in shown and "(64 → 16, input scaled)" in shown


@pytest.mark.parametrize("make, words", [
    (lambda: tp.attach(make_gpt(), tp.IA3(targets=("c_attn",))), "here are attention, blocks, down, key"),
    (lambda: tp.attach(make_gpt(), tp.IA3(targets=("token_embedding",))), "tied"),
    (lambda: tp.attach(tp.attach(make_gpt(), PAPER).model, PAPER),
     r"attach: this is the model inside a PeftModel, with IA3\(.* attached; give the base")])
def test_what_makes_no_sense_raises_and_says_why(make, words):
    with pytest.raises(ValueError, match=words):
        make()
