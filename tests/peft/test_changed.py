"""A changed layer: one expression ΔW gives the forward pass, the gradients, the numbers and the merged layer."""
import numpy as np
import pytest

import tinypeft as tp
from tests.oracles import assert_close
from tests.protocol import assert_gradients, learned
from tinypeft.engine.nn import Parameter
from tinypeft.models.targets import match_targets
from tinypeft.peft.changed import ChangedLinear
from tinypeft.peft.ia3 import ScaledOutput
from tinypeft.peft.lora import LoRALinear


class Diagonal(ChangedLinear):
    """ΔW = outer(b, a): a relative of LoRA that says nothing but what ΔW is."""

    def __init__(self, base, dropout, rng):
        super().__init__(base, dropout, rng)
        self.a, self.b = Parameter(np.ones(base.d_in, np.float32)), Parameter(np.zeros(base.d_out, np.float32))

    def change(self): return self.b.reshape(-1, 1) * self.a


class OfDiagonals(tp.Method):
    dropout = 0.0

    def wrap(self, model, rng):
        return {path: Diagonal(layer, self.dropout, rng) for path, layer in match_targets(model, ("query", "up"))}


@pytest.mark.parametrize("quantized", [False, True])
def test_an_expression_of_the_change_is_enough(quantized, gpt, tokens):
    model = tp.quantize(gpt(), tp.NF4(block_size=16)) if quantized else gpt()
    tuned = learned(model, OfDiagonals())
    assert_gradients(tuned, tokens)
    layer = tuned.wrappers["blocks.0.mlp.up"]
    assert_close(layer.delta(), np.outer(layer.b.data, layer.a.data), 1e-15)
    assert np.array_equal(layer.dense_weight(), layer.base.dense_weight() + layer.delta())
    assert_close(tuned.merge()(tokens), tuned(tokens), 1e-12)


def test_dropout_is_on_the_input_of_the_change(gpt, tokens):
    class Dropped(OfDiagonals):
        dropout = 0.5
    model = gpt()
    plain, tuned = model(tokens).data, learned(model, Dropped())
    quiet = tuned(tokens).data
    noisy = [tuned.train()(tokens).data for _ in range(2)]
    assert not np.array_equal(*noisy) and np.array_equal(tuned.eval()(tokens).data, quiet)
    for layer in tuned.wrappers.values(): layer.b.data[:] = 0
    assert_close(tuned.train()(tokens), plain, 1e-15)


def test_a_low_rank_layer_is_a_case_of_it(gpt, tokens):
    """LoRA, AdaLoRA and DyLoRA never form ΔW; the general forward pass, which does, agrees."""
    for method in (tp.LoRA(3), tp.AdaLoRA(4, 2), tp.DyLoRA(4)):
        tuned = learned(gpt(), method)
        for layer in tuned.wrappers.values():
            x = tp.Tensor(np.random.default_rng(0).standard_normal((5, layer.d_in)))
            assert_close(ChangedLinear.forward(layer, x), layer(x), 1e-12)


# -- a class cannot compute one change and merge another ---------------------------------------------
@pytest.mark.parametrize("parent", [LoRALinear, Diagonal, ScaledOutput])
def test_a_class_that_overrides_forward_alone_is_refused(parent):
    own = {"forward": lambda self, x: parent.forward(self, x) * 2}
    with pytest.raises(TypeError, match="Louder overrides `forward` and would still merge as before; override merge"):
        type("Louder", (parent,), own)
    assert type("Louder", (parent,), own | {"merge": parent.merge}).merge is parent.merge   # its author has thought of it


@pytest.mark.parametrize("name", ["change", "factors", "delta"])
def test_a_class_whose_forward_does_not_read_its_change_is_refused(name):
    own = {name: lambda self: None}
    with pytest.raises(TypeError, match="Twice overrides ΔW, but its `forward` does not read that; override `forward`, too"):
        type("Twice", (LoRALinear,), own)
    assert type("Twice", (LoRALinear,), own | {"forward": ChangedLinear.forward})
