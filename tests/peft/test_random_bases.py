"""VeRA, RandLoRA: the equations, what is drawn, the promises of every method, and PEFT's numbers."""
import numpy as np
import pytest

import tinypeft as tp
from tests.oracles import assert_close
from tests.protocol import assert_gradients, assert_leaves_base_alone, assert_same_race, assert_saves, learned, shift
from tinypeft.engine import functional as F
from tinypeft.peft.changed import ChangedLinear

LAYERS = "query", "up", "down"                                                        # 16 → 16, 16 → 64 and 64 → 16
METHODS = {"vera": tp.VeRA(5, targets=LAYERS), "randlora": tp.RandLoRA(3, alpha=2, targets=LAYERS)}
QUERY, UP, DOWN = "blocks.1.attention.query", "blocks.0.mlp.up", "blocks.1.mlp.down"
names = pytest.mark.parametrize("name", METHODS)


def bases(tuned):
    """A and B of a PeftModel with one part."""
    part, = tuned.parts.values()
    return part.shared["A"], part.shared["B"]


# -- the equations ---------------------------------------------------------------------------------
def test_vera_scales_rows_of_the_same_matrices_in_all_layers(gpt):
    tuned = learned(gpt(), METHODS["vera"])
    A, B = bases(tuned)
    assert A.shape == (5, 64) and B.shape == (64, 5)
    for path, layer in tuned.wrappers.items():
        W = np.diag(layer.b.data) @ B[:layer.d_out] @ np.diag(layer.d.data) @ A[:, :layer.d_in]
        assert_close(layer.delta(), W, 1e-12, path)
        assert np.linalg.matrix_rank(W) == 5


def test_randlora_adds_up_products_until_the_rank_is_full(gpt):
    tuned = learned(gpt(), METHODS["randlora"])
    A, B = bases(tuned)
    assert A.shape == (3, 64) and B.shape == (64, 22 * 3)                             # ⌈64/3⌉ = 22 for the largest layer
    for path, layer in tuned.wrappers.items():
        d, D, n = 16, max(layer.d_in, layer.d_out), 6
        B_j = [B[:D, :n * 3][:, j::n] for j in range(n)]
        total = sum(B_j[j] @ np.diag(layer.Lam.data[:, j]) @ A[:, :d] @ np.diag(layer.Gam.data[j]) for j in range(n))
        assert_close(layer.delta(), 2 / 3 * (total.T if path.endswith("down") else total), 1e-12, path)
        assert np.linalg.matrix_rank(layer.delta()) == 16
    assert np.linalg.matrix_rank(learned(gpt(), tp.LoRA(3)).wrappers[QUERY].delta()) == 3


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


@names
def test_the_rank_may_exceed_the_width(name, gpt, tokens):
    """A and B are frozen: their rank bounds the change, and nothing is trained in vain."""
    method = {"vera": tp.VeRA(100), "randlora": tp.RandLoRA(100, alpha=10)}[name]
    tuned = learned(gpt(), method)
    assert_close(tuned.merge()(tokens), tuned(tokens), 1e-12)
    assert tuned.summary().trained == {"vera": 4 * (100 + 16), "randlora": 4 * (100 + 16)}[name]       # n = 1
    assert np.linalg.matrix_rank(next(iter(tuned.wrappers.values())).delta()) == 16
    assert_gradients(tuned, tokens)


@names
def test_dropout_acts_on_the_input_of_the_change(name, gpt, tokens):
    tuned = learned(gpt(), type(METHODS[name])(3, dropout=0.5))
    quiet, layer = tuned(tokens).data, tuned.wrappers[QUERY]
    x = np.random.default_rng(0).standard_normal((4, 16))
    tuned.train()
    layer.dropout.rng = np.random.default_rng(5)
    z = F.dropout(tp.Tensor(x), 0.5, np.random.default_rng(5)).data
    assert_close(layer(tp.Tensor(x)), layer.base(tp.Tensor(x)).data + z @ layer.delta().T, 1e-12)
    assert np.array_equal(tuned.eval()(tokens).data, quiet)


# -- the promises of every method ------------------------------------------------------------------
@names
def test_gradients_numerical(name, gpt, tokens):
    assert_gradients(learned(gpt(), METHODS[name]), tokens)


@names
def test_the_base_stays_as_it_is(name, gpt, tokens):
    assert_leaves_base_alone(gpt(), METHODS[name], tokens)


def test_saved_and_loaded_bit_exact(gpt, tokens, tmp_path):
    others = tp.VeRA(40, d_initial=1e-7, dropout=0.2), tp.RandLoRA(20, dropout=0.2)
    assert_saves(gpt, [*METHODS.values(), *others], tokens, tmp_path)


@names
def test_a_fresh_one_is_the_base_and_a_merged_one_is_wrapped(name, gpt, tokens):
    model = gpt()
    before = model(tokens).data
    assert np.array_equal(tp.attach(model, METHODS[name])(tokens).data, before)
    tuned = learned(gpt(), METHODS[name])
    assert_close(tuned.merge()(tokens), tuned(tokens), 1e-12)
    for order in (1, -1):
        parts = dict([*{"bases": METHODS[name], "lora": tp.LoRA(2, targets="all")}.items()][::order])
        both = learned(gpt(), parts)
        assert_close(both.merge()(tokens), both(tokens), 1e-11)


@names
def test_counts_are_the_formulas(name, gpt):
    sizes = [(16, 16), (16, 64), (64, 16)] * 2                                     # d_in, d_out
    trained = {"vera": sum(5 + d_out for _, d_out in sizes), "randlora": 6 * 6 * (3 + 16)}[name]
    frozen = {"vera": 5 * (64 + 64), "randlora": 3 * 64 + 64 * 22 * 3}[name]
    base = gpt().n_parameters()
    summary = tp.attach(gpt(), METHODS[name]).summary()
    assert (summary.trained, summary.stored, summary.total) == (trained, trained + frozen, base + trained + frozen)


@names
def test_what_they_cannot_do_is_refused_by_name(name, gpt, tmp_path):
    tuned = learned(gpt(), METHODS[name])
    for verb in (lambda: tp.combine({tuned: 1}), tuned.ranks, tuned.fold):
        with pytest.raises(tp.MethodError, match=type(tuned.method).__name__): verb()
    with pytest.raises(tp.MethodError, match="rank must be a positive integer, got 0"): type(METHODS[name])(0)
    with pytest.raises(TypeError, match="the field is called rank"): type(METHODS[name])(r=3)


# -- PEFT ------------------------------------------------------------------------------------------
def peft_twin(tuned):
    """PEFT's model with the same A and B, on a torch copy of the base; and [(our Parameter, PEFT's)]."""
    import peft
    import torch

    from tests.oracles.torch_gpt import torch_copy
    m = tuned.method
    config = peft.VeraConfig(r=m.rank, target_modules=list(m.targets))
    theirs_of = {"d": "vera_lambda_d", "b": "vera_lambda_b"}
    if isinstance(m, tp.RandLoRA):
        config = peft.RandLoraConfig(r=m.rank, randlora_alpha=m.alpha, target_modules=list(m.targets))
        theirs_of = {"Lam": "randlora_lambda", "Gam": "randlora_gamma"}
    with tuned.disabled() as base: theirs = peft.get_peft_model(torch_copy(base), config, autocast_adapter_dtype=False).double()
    pairs, stem = [], "vera" if isinstance(m, tp.VeRA) else "randlora"
    for path, layer in tuned.wrappers.items():
        module = theirs.get_submodule(f"base_model.model.{path}")
        pairs += [(getattr(layer, name), getattr(module, their)["default"]) for name, their in theirs_of.items()]
        for name, array in zip("AB", bases(tuned), strict=True):
            buffer = getattr(module, f"{stem}_{name}")["default"]
            with torch.no_grad(): buffer.copy_(torch.as_tensor(array.copy()).reshape(buffer.shape))
    return theirs, pairs


RACES = [*METHODS.values(), tp.VeRA(30), tp.RandLoRA(4, alpha=2), tp.RandLoRA(20, alpha=20)]


@pytest.mark.parametrize("method", RACES, ids=str)
def test_gradients_20_steps_of_adamw_and_the_merge_equal_pefts_numerical(method, gpt, tokens):
    pytest.importorskip("peft")
    import torch
    tuned = learned(gpt(), method)
    theirs, pairs = peft_twin(tuned)
    with torch.no_grad():
        for ours, their in pairs: their.copy_(torch.as_tensor(ours.data.copy()))
    x, y = shift(tokens)
    F.cross_entropy(tuned(x), y).backward()
    torch.nn.functional.cross_entropy(theirs(torch.as_tensor(x)).flatten(0, 1), torch.as_tensor(y).flatten()).backward()
    for ours, their in pairs:
        assert_close(ours.grad, their.grad, 1e-11)
        ours.grad = their.grad = None
    assert_same_race(tuned, theirs, pairs, tokens)
    assert_close(tuned.merge()(tokens), theirs.merge_and_unload()(torch.as_tensor(tokens)).detach(), 1e-8)


@names
def test_both_sides_start_at_the_same_numbers_and_draw_as_widely(name, gpt):
    peft = pytest.importorskip("peft")
    from tests.oracles.torch_gpt import torch_copy
    tuned = tp.attach(gpt(), METHODS[name])
    for ours, theirs in peft_twin(tuned)[1]: assert_close(ours, theirs.detach().numpy(), 1e-6)
    model = tp.GPT(tp.GPTConfig(37, 24, 64, 1, 4), rng=0)
    config = {"vera": peft.VeraConfig, "randlora": peft.RandLoraConfig}[name](r=50, target_modules=["query"])
    theirs = peft.get_peft_model(torch_copy(model), config).get_submodule("base_model.model.blocks.0.attention.query")
    ours = tp.attach(model, type(METHODS[name])(50, targets=("query",)))
    for letter, array in zip("AB", bases(ours), strict=True):
        their = getattr(theirs, f"{name}_{letter}")["default"].float().numpy()
        assert their.size == array.size and abs(np.abs(array).max() / np.abs(their).max() - 1) < 0.03   # PEFT's are bfloat16
