"""VeRA, RandLoRA: their ranks, what is drawn, and which way is cheaper. Their promises are in test_methods.py."""
import numpy as np
import pytest

import tinypeft as tp
from tests.methods import ROWS
from tests.oracles import assert_close
from tests.protocol import learned
from tinypeft.peft.changed import ChangedLinear

LAYERS = "query", "up", "down"                                                        # 16 → 16, 16 → 64 and 64 → 16
METHODS = {"vera": tp.VeRA(5, targets=LAYERS), "randlora": tp.RandLoRA(3, alpha=2, targets=LAYERS)}
QUERY, UP, DOWN = "blocks.1.attention.query", "blocks.0.mlp.up", "blocks.1.mlp.down"
names = pytest.mark.parametrize("name", METHODS)


def bases(tuned):
    """A and B of a PeftModel with one part."""
    part, = tuned.parts.values()
    return part.shared["A"], part.shared["B"]


# -- what is drawn, and ranks ----------------------------------------------------------------------
def test_the_same_matrices_serve_all_layers_and_the_ranks_are_those_of_the_papers(gpt):
    """VeRA's change has the rank of A and B, RandLoRA's is full: it adds up ⌈16/3⌉ products, and 22 for the widest layer."""
    shapes = {"vera": [(5, 64), (64, 5)], "randlora": [(3, 64), (64, 22 * 3)]}
    for (name, method), rank in zip(METHODS.items(), (5, 16), strict=True):
        tuned = learned(gpt(), method)
        assert [array.shape for array in bases(tuned)] == shapes[name]
        assert {np.linalg.matrix_rank(layer.delta()) for layer in tuned.wrappers.values()} == {rank}


def test_what_is_drawn():
    """VeRA: PyTorch's `kaiming_uniform_`, U(±√(6/columns)); RandLoRA: a standard deviation of 1. No trained number is drawn."""
    model = tp.GPT(tp.GPTConfig(37, 24, 64, 1, 4), rng=0)
    A, B = bases(tp.attach(model, tp.VeRA(100), rng=0))
    for array, columns in (A, 64), (B, 100):
        bound = np.sqrt(6 / columns)
        assert array.dtype == np.float32 and 0.99 * bound < np.abs(array).max() <= bound * (1 + 1e-6)
        assert abs(array.mean()) < 0.02 * bound and abs(array.std() / (bound / np.sqrt(3)) - 1) < 0.02
    model = tp.GPT(tp.GPTConfig(37, 24, 64, 1, 4), rng=0)
    tuned = tp.attach(model, tp.RandLoRA(16), rng=0)
    for array in bases(tuned): assert array.dtype == np.float32 and abs(array.std() - 1) < 1e-5 and np.abs(array).max() < 1.8
    layer = next(iter(tuned.wrappers.values()))
    assert not layer.Lam.data.any() and (layer.Gam.data == np.float32(1 / 64)).all() and layer.scale == 40


def test_other_targets_other_numbers(gpt):
    A = {name: bases(tp.attach(gpt(), tp.VeRA(5, targets=(name,)), rng=0))[0] for name in ("query", "value", "down")}
    assert np.array_equal(A["query"], A["value"]) and A["down"].shape == (5, 64)
    assert not np.array_equal(A["down"][:, :16], A["query"])


@names
def test_the_general_forward_pass_agrees_and_has_the_same_gradients(name, gpt):
    """base(x) + ΔW x, which forms ΔW. For so few positions the layer's own does not."""
    tuned = learned(gpt(), METHODS[name])
    for path in QUERY, UP, DOWN:
        layer, results = tuned.wrappers[path], []
        trained = [p for n, p in layer.named_parameters() if not n.startswith("base.")]
        x = tp.Tensor(np.random.default_rng(0).standard_normal((2, 5, layer.d_in)), requires_grad=True)
        for forward in (type(layer).forward, ChangedLinear.forward):
            for p in (x, *trained): p.grad = None
            y = forward(layer, x)
            (y * np.random.default_rng(1).standard_normal(y.shape)).sum().backward()
            results.append([y.data, x.grad, *(p.grad for p in trained)])
        for ours, general in zip(*results, strict=True): assert_close(ours, general, 1e-12)


@pytest.mark.parametrize("method", [tp.VeRA(40), tp.RandLoRA(3, alpha=1)], ids=str)
def test_the_change_is_formed_where_that_takes_fewer_products(method, gpt, monkeypatch):
    """Products: positions r (d_in + d_out) by the factors; r d_in d_out, once, and positions d_in d_out by ΔW."""
    layer, r = learned(gpt(), method).wrappers[QUERY], 40 if isinstance(method, tp.VeRA) else 6 * 3
    calls, change = [], type(layer).change
    monkeypatch.setattr(type(layer), "change", lambda self: calls.append(self) or change(self))
    for positions in (1, 5, 10, 20, 50, 100):
        x = np.random.default_rng(0).standard_normal((positions, 16))
        calls.clear()
        y = layer(tp.Tensor(x)).data
        assert bool(calls) == (r * 256 + positions * 256 < positions * r * 32)
        assert_close(y, layer.base(tp.Tensor(x)).data + x @ layer.delta().T, 1e-12)
    assert layer in calls


@pytest.mark.parametrize("method", [tp.VeRA(100), tp.RandLoRA(100, alpha=10)], ids=str)
def test_the_rank_may_exceed_the_width(method, gpt):
    """A and B are frozen: their rank bounds the change, and nothing is trained in vain."""
    for layer in learned(gpt(), method).wrappers.values(): assert np.linalg.matrix_rank(layer.delta()) == 16


# -- PEFT ------------------------------------------------------------------------------------------
@names
def test_both_sides_start_at_the_same_numbers_and_draw_as_widely(name, gpt):
    peft = pytest.importorskip("peft")
    from tests.oracles.peft_twin import peft_twin
    from tests.oracles.torch_gpt import torch_copy
    tuned = tp.attach(gpt(), METHODS[name])
    for ours, theirs, _ in peft_twin(ROWS[name].peft, tuned)[1]: assert_close(ours, theirs.detach().numpy(), 1e-6)
    model = tp.GPT(tp.GPTConfig(37, 24, 64, 1, 4), rng=0)
    config = {"vera": peft.VeraConfig, "randlora": peft.RandLoraConfig}[name](r=50, target_modules=["query"])
    theirs = peft.get_peft_model(torch_copy(model), config).get_submodule("base_model.model.blocks.0.attention.query")
    ours = tp.attach(model, type(METHODS[name])(50, targets=("query",)))
    for letter, array in zip("AB", bases(ours), strict=True):
        their = getattr(theirs, f"{name}_{letter}")["default"].float().numpy()
        assert their.size == array.size and abs(np.abs(array).max() / np.abs(their).max() - 1) < 0.03   # PEFT's are bfloat16
