"""MiSS: a LoRA with a fixed A, its sums, the promises of every method, and PEFT's numbers."""
import numpy as np
import pytest

import tinypeft as tp
from tests.oracles import assert_close
from tests.peft.test_plain import same_gradients
from tests.protocol import assert_gradients, assert_leaves_base_alone, assert_same_race, assert_saves, learned, shift
from tinypeft.engine import functional as F
from tinypeft.engine.nn import Parameter
from tinypeft.peft import plain
from tinypeft.peft.lora import LoRALinear

LAYERS = "query", "up", "down"
METHODS = [tp.MiSS(4, targets=LAYERS), tp.MiSS(5, targets=LAYERS)]               # 4 divides 16 and 64; 5 divides neither
every = pytest.mark.parametrize("method", METHODS, ids=str)
UP, DOWN = "blocks.0.mlp.up", "blocks.0.mlp.down"


# -- the equation --------------------------------------------------------------------------------
@every
def test_the_change_is_d_repeated_along_the_inputs(method, gpt):
    r = method.rank
    for layer in learned(gpt(), method).wrappers.values():
        repeated = np.hstack([layer.D.data] * 20)[:, :layer.d_in]
        assert np.array_equal(layer.delta(), repeated) and np.linalg.matrix_rank(layer.delta()) == r == layer.rank


@every
def test_the_product_is_the_papers_sums_with_the_same_gradients(method, gpt):
    layer = learned(gpt(), method).wrappers[DOWN]
    x = Parameter(np.random.default_rng(0).standard_normal((2, 5, 64)))
    same_gradients(lambda: layer(x), lambda: plain.miss(layer, x), x, layer.D)


@every
def test_it_is_a_lora_whose_a_is_fixed(method, gpt, tokens):
    """s = 1, A of zeros and ones and not trained, B = D: the same logits and, after every step, the same B."""
    tuned, r = learned(gpt(), method), method.rank
    lora = tp.attach(gpt(), tp.LoRA(r, alpha=r, targets=LAYERS))
    for path, layer in lora.wrappers.items():
        assert type(layer) is LoRALinear
        A = tuned.wrappers[path].factors()[1].data
        assert set(A.ravel()) == {0.0, 1.0} and (A.sum(0) == 1).all() and np.array_equal(A[:, :r], np.eye(r))
        layer.A.assign(A)
        layer.B.assign(tuned.wrappers[path].D.data)
        layer.A.requires_grad = False
    x, y = shift(tokens)
    optimizers = [tp.optim.AdamW(t.trainable_parameters(), lr=1e-2) for t in (tuned, lora)]
    for _ in range(4):
        assert_close(tuned(tokens), lora(tokens), 1e-13)
        for t, optimizer in zip((tuned, lora), optimizers, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(t(x), y).backward()
            optimizer.step()
        for path, layer in tuned.wrappers.items(): assert_close(layer.D, lora.wrappers[path].B, 1e-12)


def test_so_combine_takes_it(gpt, tokens):
    model = gpt()
    tuned = learned(model, METHODS[1])
    want = tuned(tokens).data
    lora = tp.combine({tuned: 1.0})
    assert type(lora.method) is tp.LoRA and set(lora.ranks().values()) == {5} == set(tuned.ranks().values())
    assert_close(lora(tokens), want, 1e-12)


def test_dropout_is_on_its_input(gpt, tokens):
    tuned = learned(gpt(), tp.MiSS(4, dropout=0.5, targets=LAYERS))
    quiet, layer, x = tuned(tokens).data, tuned.wrappers[UP], np.random.default_rng(0).standard_normal((4, 16))
    tuned.train()
    layer.dropout.rng = np.random.default_rng(5)
    dropped = F.dropout(tp.Tensor(x), 0.5, np.random.default_rng(5)).data
    assert_close(layer(tp.Tensor(x)), layer.base(tp.Tensor(x)).data + dropped @ layer.delta().T, 1e-13)
    assert np.array_equal(tuned.eval()(tokens).data, quiet)


@every
def test_gradients_numerical(method, gpt, tokens):
    assert_gradients(learned(gpt(), method), tokens)


# -- the promises of every method ------------------------------------------------------------------
@every
def test_the_base_stays_as_it_is(method, gpt, tokens):
    assert_leaves_base_alone(gpt(), method, tokens)


def test_saved_and_loaded_bit_exact(gpt, tokens, tmp_path):
    assert_saves(gpt, [*METHODS, tp.MiSS(2, dropout=0.2, targets="all")], tokens, tmp_path)


@every
def test_a_fresh_one_is_the_base_and_a_merged_one_is_wrapped(method, gpt, tokens):
    model = gpt()
    before = model(tokens).data
    assert np.array_equal(tp.attach(model, method)(tokens).data, before)
    tuned = learned(gpt(), method)
    assert_close(tuned.merge()(tokens), tuned(tokens), 1e-12)
    outside = tp.attach(gpt(), {"inner": tp.LoRA(2, targets="all"), "outer": method}, rng=0)
    for p in outside.trainable_parameters(): p.data += 0.1 * np.random.default_rng(0).standard_normal(p.shape)
    assert_close(outside.merge()(tokens), outside(tokens), 1e-11)


@every
def test_count_is_the_formula(method, gpt):
    assert tp.attach(gpt(), method).summary().trained == 2 * method.rank * (16 + 64 + 16)


def test_what_it_cannot_do_is_refused_by_name(gpt, tmp_path):
    with pytest.raises(tp.MethodError, match="rank 17 exceeds 16"): tp.attach(gpt(), tp.MiSS(17))
    with pytest.raises(tp.MethodError, match="GPT-2's are Conv1D"):
        learned(gpt(), METHODS[0]).save(tmp_path, format="peft")
    with pytest.raises(tp.MethodError, match="loftq: expected a LoRA"): tp.loftq(gpt(np.float32), tp.MiSS(2), tp.NF4())


# -- PEFT ------------------------------------------------------------------------------------------
@every
def test_20_steps_of_adamw_equal_pefts_numerical(method, gpt, tokens):
    peft = pytest.importorskip("peft")
    from tests.oracles.torch_gpt import torch_copy
    tuned = learned(gpt(), method)
    config = peft.MissConfig(r=method.rank, target_modules=list(LAYERS))
    with tuned.disabled() as base: theirs = peft.get_peft_model(torch_copy(base), config, autocast_adapter_dtype=False).double()
    pairs = [(layer.D, theirs.get_submodule(f"base_model.model.{path}").miss_block["default"], np.transpose)
             for path, layer in tuned.wrappers.items()]
    assert_same_race(tuned, theirs, pairs, tokens)
    assert_close(tuned.merge()(tokens), theirs.merge_and_unload()(tokens).detach(), 1e-8)
