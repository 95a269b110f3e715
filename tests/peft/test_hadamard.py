"""LoHa, LoKr, HiRA: the equations, the promises of every method, and PEFT's numbers."""
import numpy as np
import pytest

import tinypeft as tp
from tests.oracles import assert_close
from tests.protocol import assert_gradients, assert_leaves_base_alone, assert_same_race, assert_saves, learned
from tinypeft.peft.hadamard import divisor

LAYERS = "query", "up", "down"
METHODS = {"loha": tp.LoHa(3, alpha=6, targets=LAYERS), "lokr": tp.LoKr(1, alpha=4, targets=LAYERS),
           "hira": tp.HiRA(3, targets=LAYERS)}
UP = "blocks.0.mlp.up"
names = pytest.mark.parametrize("name", METHODS)


def test_the_changes_are_those_of_the_equations(gpt):
    layer = {name: learned(gpt(), method).wrappers[UP] for name, method in METHODS.items()}
    w = layer["loha"]
    B1, A1, B2, A2 = (p.data for p in (w.B1, w.A1, w.B2, w.A2))
    assert_close(w.delta(), 2 * (B1 @ A1) * (B2 @ A2), 1e-12)
    w = layer["lokr"]
    assert w.C.shape == (8, 4) and w.B.shape == (8, 1) and w.A.shape == (1, 4)
    assert_close(w.delta(), 4 * np.kron(w.C.data, w.B.data @ w.A.data), 1e-12)
    w = layer["hira"]
    assert_close(w.delta(), w.base.weight.data * (w.B.data @ w.A.data), 1e-12)
    assert np.linalg.matrix_rank(layer["loha"].delta()) == 9 and np.linalg.matrix_rank(layer["hira"].delta()) == 16
    assert [divisor(d) for d in (1, 7, 16, 20, 64, 127, 128)] == [1, 1, 4, 4, 8, 1, 8]


@names
def test_gradients_numerical(name, gpt, tokens):
    assert_gradients(learned(gpt(), METHODS[name]), tokens)


@names
def test_the_base_stays_as_it_is(name, gpt, tokens):
    assert_leaves_base_alone(gpt(), METHODS[name], tokens)


def test_saved_and_loaded_bit_exact(gpt, tokens, tmp_path):
    assert_saves(gpt, [*METHODS.values(), tp.HiRA(2, dropout=0.2)], tokens, tmp_path)


@names
def test_a_fresh_one_is_the_base_and_a_merged_one_is_wrapped(name, gpt, tokens):
    model = gpt()
    before = model(tokens).data
    assert np.array_equal(tp.attach(model, METHODS[name])(tokens).data, before)
    tuned = learned(gpt(), METHODS[name])
    assert_close(tuned.merge()(tokens), tuned(tokens), 1e-12)
    outside = tp.attach(gpt(), {"inner": METHODS[name], "outer": tp.LoRA(2, targets="all")}, rng=0)
    for p in outside.trainable_parameters(): p.data += 0.1 * np.random.default_rng(0).standard_normal(p.shape)
    assert_close(outside.merge()(tokens), outside(tokens), 1e-11)


@names
def test_counts_are_the_formulas(name, gpt):
    sizes = [(16, 16), (16, 64), (64, 16)] * 2                                     # d_in, d_out
    want = {"loha": 6 * sum(i + o for i, o in sizes), "hira": 3 * sum(i + o for i, o in sizes),
            "lokr": sum(divisor(i) * divisor(o) + o // divisor(o) + i // divisor(i) for i, o in sizes)}
    assert tp.attach(gpt(), METHODS[name]).summary().trained == want[name]


@names
def test_what_they_cannot_do_is_refused_by_name(name, gpt, tmp_path):
    tuned = learned(gpt(), METHODS[name])
    for verb in (lambda: tp.combine({tuned: 1}), tuned.ranks, tuned.fold):
        with pytest.raises(tp.MethodError): verb()
    if name != "hira":                                   # PEFT has no other for GPT-2: tests/interop/test_changed_layers.py
        with pytest.raises(tp.MethodError, match="GPT-2's are Conv1D"): tuned.save(tmp_path / "peft", format="peft")
    with pytest.raises(tp.MethodError, match="rank 17 exceeds 16"): tp.attach(gpt(), type(METHODS[name])(17))
    if name == "hira":
        with pytest.raises(tp.MethodError, match="HiRA works on the layer .* itself"):
            tp.attach(gpt(), tp.LoRA(2, targets="all"), METHODS[name])


@names
def test_20_steps_of_adamw_equal_pefts_numerical(name, gpt, tokens):
    peft = pytest.importorskip("peft")
    from tests.oracles.torch_gpt import torch_copy
    T = list(LAYERS)
    config = {"loha": peft.LoHaConfig(r=3, alpha=6, target_modules=T), "lokr": peft.LoKrConfig(r=1, alpha=4, target_modules=T),
              "hira": peft.HiraConfig(r=3, target_modules=T)}[name]
    theirs_of = {"loha": {"B1": "hada_w1_a", "A1": "hada_w1_b", "B2": "hada_w2_a", "A2": "hada_w2_b"},
                 "lokr": {"C": "lokr_w1", "B": "lokr_w2_a", "A": "lokr_w2_b"}, "hira": {"A": "hira_A", "B": "hira_B"}}[name]
    tuned = learned(gpt(), METHODS[name])
    with tuned.disabled() as base: theirs = peft.get_peft_model(torch_copy(base), config, autocast_adapter_dtype=False).double()
    pairs = [(getattr(layer, ours), getattr(theirs.get_submodule(f"base_model.model.{path}"), their)["default"])
             for path, layer in tuned.wrappers.items() for ours, their in theirs_of.items()]
    assert_same_race(tuned, theirs, pairs, tokens)
    assert_close(tuned.merge()(tokens), theirs.merge_and_unload()(tokens).detach(), 1e-8)
