"""What is done to a base does not reach the PeftModels of it, and what they do does not reach the base."""
import copy
import functools
import pickle
import tracemalloc

import numpy as np
import pytest

import tinypeft as tp
from tests.conftest import make_gpt
from tests.families import FAMILIES, make
from tests.methods import ROWS
from tests.protocol import frozen_bytes, learned, move, shift
from tests.stress.configurations import state
from tests.stress.verbs import LineCounter, all_of
from tinypeft.engine.nn import are_twins
from tinypeft.engine.optim import AdamW

SEVERAL = {"inner": tp.LoRA(2), "outer": tp.DyLoRA(3), "prefix": tp.PrefixTuning(2, hidden=4), "off": tp.IA3(),
           "norms": tp.FullFineTuning(("norm1",))}
SMALL = [pytest.param(row.small, "GPT", id=name) for name, row in ROWS.items()] + [pytest.param(SEVERAL, "GPT", id="several")]
OTHERS = [pytest.param(method, "GPT", id=f"{name}-{method}", marks=pytest.mark.long)
          for name, row in ROWS.items() for method in row.others]
FAMILY = [pytest.param(row.small, family, id=f"{name}-{family}", marks=pytest.mark.long)
          for name, row in ROWS.items() for family in FAMILIES]


def both(method, family="GPT"):
    """A base and a PeftModel of it that has learned; the part that is called "off" is off."""
    base = make(family, np.float32)
    tuned = learned(base, method)
    if "off" in tuned.parts: tuned.detach("off")
    return base, tuned


# -- what is done to a base ------------------------------------------------------------------------
def learns(base, tokens):
    optimizer = AdamW(base.parameters(), lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        base.loss(*shift(tokens)).backward()
        optimizer.step()


def is_loaded(base, tokens):
    base.load_state_dict({name: array[::-1] * 0.5 for name, array in base.state_dict().items()})


def takes_a_merge(base, tokens):
    other = learned(base, tp.LoRA(3, targets="all"))
    assert other.merge(in_place=True) is base


DONE = {"it learns": learns, "NF4": lambda base, tokens: tp.quantize(base, tp.NF4(block_size=2)), "it is loaded": is_loaded,
        "it is cast": lambda base, tokens: base.to("float64"), "another one is merged into it": takes_a_merge}


def merged(tuned, tokens):
    try: return tuned.merge()(tokens).data
    except tp.peft.MethodError as error: return str(error)


def everything(tuned, tokens, folder, family):
    """What a PeftModel computes, by every way there is."""
    with tuned.disabled(): found = {"disabled": tuned(tokens).data}
    found |= {"call": tuned(tokens).data, "merged": merged(tuned, tokens), "copied": copy.deepcopy(tuned)(tokens).data}
    for name in [name for name, part in tuned.parts.items() if part.on]:
        tuned.detach(name)
        found[f"without {name}"] = tuned(tokens).data
        tuned.reattach(name)
        found[f"with {name} again"] = tuned(tokens).data
    tuned.save(folder)
    loaded = tp.load_adapter(make(family, np.float32), folder)
    return found | {"loaded": loaded(tokens).data, "off": loaded.off} | tuned.state_dict()


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert type(found[name]) is type(value), name
        if isinstance(value, np.ndarray): assert found[name].dtype == value.dtype, name
        assert np.array_equal(found[name], value), name


@pytest.mark.parametrize(("method", "family"), SMALL + OTHERS + FAMILY)
def test_nothing_that_is_done_to_the_base_reaches_a_method_on_it(method, family, tokens, tmp_path):
    base, tuned = both(method, family)
    before = state(base)
    expected = everything(tuned, tokens, tmp_path, family)
    assert state(base) == before and tuned.detach() is base and base.attached is None
    for name, done in DONE.items():
        base, tuned = both(method, family)
        before, is_training = frozen_bytes(base), name == "it learns"
        base.train(is_training)
        done(base, tokens)
        after = state(base)
        assert frozen_bytes(base) != before, name
        assert_same(everything(tuned, tokens, tmp_path, family), expected)
        assert state(base) == after and tuned.detach() is base and tuned.training is False


@pytest.mark.parametrize(("method", "family"), SMALL)
def test_what_is_done_to_a_method_does_not_reach_the_base_or_another_one(method, family, tokens):
    base, tuned = both(method, family)
    other = tp.attach(base, tp.LoRA(3, targets="all"), rng=1)
    move(other, np.random.default_rng(1))
    before, plain, beside = state(base), base(tokens).data, other(tokens).data
    optimizer = AdamW(tuned.trainable_parameters(), lr=0.05)
    tuned.train().loss(*shift(tokens)).backward()
    optimizer.step()
    tuned.add({"more": tp.IA3()}).to("float64").eval()
    assert tuned(tokens).data.dtype == np.float64
    assert state(base) == before and np.array_equal(base(tokens).data, plain) and np.array_equal(other(tokens).data, beside)
    assert tuned.frozen.dtype == np.float64 and other.frozen.dtype == base.dtype == np.float32


@pytest.mark.parametrize(("method", "family"), SMALL)
def test_a_model_that_is_held_does_not_change_at_a_switch(method, family, tokens):
    _, tuned = both(method, family)
    held, names = tuned.model, [name for name, part in tuned.parts.items() if part.on]
    modules, before = [id(module) for _, module in held.named_modules()], held(tokens).data
    for switch in (lambda: tuned.detach(*names), lambda: tuned.reattach(*names), lambda: tuned.add({"more": tp.IA3()})):
        switch()
        assert tuned.model is not held and modules == [id(module) for _, module in held.named_modules()]
        assert np.array_equal(held(tokens).data, before)


# -- memory ------------------------------------------------------------------------------------------
def held_by(make_it):
    """(what a function makes, how many bytes it holds)."""
    tracemalloc.start()
    made = make_it()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return made, size


@pytest.mark.parametrize("method", [tp.LoRA(2), tp.FullFineTuning()], ids=str)
def test_a_method_costs_no_second_base_until_one_of_the_two_is_written(method):
    base = make_gpt(np.float32, d_model=128)
    size = sum(array.nbytes for array in base.state_dict().values())
    tuned, more = held_by(lambda: tp.attach(base, method, rng=0))
    assert size > 1e6 and more < 0.05 * size
    for copier in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        again, more = held_by(functools.partial(copier, tuned))
        assert more < 1.15 * size and are_twins(again.detach(), again.frozen)
    assert len(pickle.dumps(tuned)) < 1.1 * size


# -- interrupts --------------------------------------------------------------------------------------
VERBS = {"detach": lambda tuned, name: tuned.detach(name), "reattach": lambda tuned, name: tuned.reattach(),
         "add": lambda tuned, name: tuned.add({"more": tp.LoRA(2, targets=("key",))}), "fold": lambda tuned, name: tuned.fold(),
         "merge": lambda tuned, name: tuned.merge(), "merge a part": lambda tuned, name: tuned.merge(name),
         "set_rank": lambda tuned, name: tuned.set_rank(1)}


def run(trace, verb, tuned):
    """Run a verb below a trace; a refusal is an end as well."""
    try: trace.run(lambda: VERBS[verb](tuned, next(iter(tuned.parts))))
    except tp.peft.MethodError: pass
    return trace


@pytest.mark.parametrize(("method", "family"), SMALL)
def test_an_interrupt_leaves_the_state_before_or_the_state_after(method, family):
    tuned, rng = both(method, family)[1], np.random.default_rng(0)
    before, stored = all_of(copy.deepcopy(tuned)), pickle.dumps(tuned)
    for verb in VERBS:
        whole = pickle.loads(stored)
        lines = run(LineCounter(), verb, whole).count
        after = all_of(whole)
        for at in {lines - 1, *rng.integers(lines, size=2)}:
            again = pickle.loads(stored)
            base = state(again.base)
            trace = run(LineCounter(at), verb, again)
            assert trace.where and all_of(again) in (before, after), (verb, trace.where)
            assert state(again.base) == base
