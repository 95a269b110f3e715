"""The states of a model with a method: on loan, taken off, changed meanwhile, cast, copied, interrupted."""
import contextlib
import copy
import gc
import linecache
import pickle
import sys
import warnings
import weakref

import numpy as np
import pytest

import tinypeft as tp
from tests.methods import SMALL
from tests.peft.test_model import LORA
from tests.protocol import frozen_bytes, learned
from tests.toys import Noise, linear_paths
from tinypeft.engine.nn import replace_modules
from tinypeft.peft import detach
from tinypeft.peft.attachment import Attachment

PREFIX, NORMS, BITFIT = tp.PrefixTuning(3), tp.FullFineTuning(("norm1", "norm2")), tp.FullFineTuning(("bias",))
each = pytest.mark.parametrize("method", SMALL.values(), ids=SMALL)
TOKENS = np.random.default_rng(7).integers(0, 37, (4, 24))


# -- on loan -------------------------------------------------------------------------------------
VERBS = {"attach": lambda base: tp.attach(base, tp.LoRA(2, targets=("key", "query"))),
         "quantize": lambda base: tp.quantize(base, tp.NF4(block_size=16)),
         "plant_outliers": tp.plant_outliers, "convert": tp.convert,
         "load_adapter": lambda base: tp.load_adapter(base, "any folder")}


@each
@pytest.mark.parametrize("verb", VERBS)
def test_inside_disabled_the_base_is_on_loan(verb, method, gpt, tokens):
    model = gpt(np.float32)
    tuned = learned(model, method)
    before, want = frozen_bytes(gpt(np.float32)), tuned(tokens).data
    with tuned.disabled() as base:
        with pytest.raises(tp.MethodError, match=f"^{verb.split()[0]}: this model is on loan: .* is disabled"):
            VERBS[verb](base)
        assert frozen_bytes(base) == before and not tuned.active and tuned.is_disabled
    assert np.array_equal(tuned(tokens).data, want) and frozen_bytes(tuned.detach()) == before


def pickled(x): return pickle.loads(pickle.dumps(x))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled], ids=["deepcopy", "pickle"])
def test_a_copy_of_a_base_on_loan_is_free(copied, gpt, tokens):
    tuned = learned(gpt(np.float32), LORA)
    want = tuned(tokens).data
    with tuned.disabled() as base:
        free, twin = copied(base), copied(tuned)
        tp.quantize(free, tp.NF4(block_size=16))
        assert not twin.is_disabled and np.array_equal(twin.reattach()(tokens).data, want)
    assert np.array_equal(tuned(tokens).data, want)


@each
def test_disabled_blocks_nest(method, gpt, tokens):
    model = gpt(np.float32)
    plain, tuned = model(tokens).data, learned(model, method)
    want = tuned(tokens).data
    with tuned.disabled() as outer:
        with tuned.disabled() as inner: assert inner is outer and np.array_equal(tuned(tokens).data, plain)
        with pytest.raises(ZeroDivisionError), tuned.disabled(): raise ZeroDivisionError
        assert tuned.is_disabled and np.array_equal(tuned(tokens).data, plain)
    assert tuned.active and not tuned.is_disabled and np.array_equal(tuned(tokens).data, want)


def test_a_base_changed_on_loan_does_not_get_its_method_back(gpt, tokens):
    tuned = learned(gpt(np.float32), LORA)
    want = tuned(tokens).data
    with pytest.raises(tp.MethodError, match=r"blocks.0.norm1.weight has other numbers, and \d+ more"), \
         tuned.disabled() as base:
        state = {name: a.copy() for name, a in base.state_dict().items()}
        tp.train(base, Noise(), 1, progress=False)                            # in place: the same arrays
    assert not tuned.active and not tuned.is_disabled and tuned.model.attached is None
    base.load_state_dict(state)                                               # the change is undone
    assert np.array_equal(tuned.reattach()(tokens).data, want)


def test_reattach_ends_a_loan_early(gpt, tokens):
    """So that a Ctrl-C in the very end of the block leaves no model on loan for ever."""
    tuned = learned(gpt(np.float32), LORA)
    want = tuned(tokens).data
    with tuned.disabled():
        assert np.array_equal(tuned.reattach()(tokens).data, want)
    assert tuned.active and np.array_equal(tuned(tokens).data, want)


# -- changed while the method was off ------------------------------------------------------------
def trained(model): tp.train(model, Noise(), 1, progress=False)
def loaded(model): model.load_state_dict(tp.GPT(model.config, rng=5).state_dict())
def swapped(model): replace_modules(model, {"blocks.0": model.blocks[1], "blocks.1": model.blocks[0]})
def permuted(model):
    """The hidden units of an MLP in another order: the same function, in place."""
    up, down = model.blocks[0].mlp.up, model.blocks[0].mlp.down
    for a in (up.weight.data, up.bias.data, down.weight.data.T): a[:] = a[::-1].copy()


def quantized(scheme, **options):
    return lambda model: tp.quantize(model, scheme, calibration=TOKENS, **options)


CHANGES = {"smoothquant": (quantized(tp.SmoothQuant()), "attention.query was of class Linear and is Int8Linear"),
           "awq": (quantized(tp.AWQ(group_size=16)), "was of class Linear and is QuantizedLinear"),
           "nf4 of some": (quantized(tp.NF4(block_size=16), targets=("up",)), "mlp.up was of class Linear"),
           "fake": (quantized(tp.FakeQuant(4), targets=("down",)), "was of class Linear and is FakeQuantLinear"),
           "outliers": (tp.plant_outliers, "blocks.0.norm1.weight has other numbers"),
           "training": (trained, "token_embedding.weight has other numbers"),
           "loading": (loaded, "token_embedding.weight has other numbers"),
           "order": (permuted, "mlp.up.weight has other numbers"),
           "head": (lambda model: setattr(model, "head", tp.engine.Linear(16, 3)), "head is new")}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("method", [LORA, NORMS, BITFIT, PREFIX, tp.LoRA(2, targets=("output",))], ids=str)
def test_reattach_refuses_a_changed_base_and_names_the_change(method, change, gpt):
    model = gpt(np.float32)
    tuned = learned(model, method)
    tuned.detach()
    how, words = CHANGES[change]
    how(model)
    before = frozen_bytes(model)
    with pytest.raises(tp.MethodError, match=f"^reattach: .* learned on a base that was changed .*{words}"):
        tuned.reattach()
    assert model.attached is None and not tuned.active and frozen_bytes(model) == before


def test_reattach_refuses_other_objects_with_equal_numbers(gpt):
    model = gpt(np.float32)
    tuned = learned(model, LORA)
    path = next(iter(tuned.wrappers))
    tuned.detach()
    replace_modules(model, {path: copy.deepcopy(model.get(path))})
    with pytest.raises(tp.MethodError, match=f"{path} is another object"): tuned.reattach()


def test_numbers_of_a_float64_base_are_compared_as_they_are_in_float32(gpt):
    """Or a base that was cast to float32 and back would be another one."""
    model = gpt(np.float64)
    tuned = learned(model, LORA)
    tuned.detach()
    model.to(np.float32).to(np.float64)
    tuned.reattach().detach()
    weight = model.blocks[0].mlp.up.weight.data
    weight[0, 0] *= 1 + 1e-12
    tuned.reattach().detach()
    weight[0, 0] *= 1 + 1e-6
    with pytest.raises(tp.MethodError, match="mlp.up.weight has other numbers"): tuned.reattach()


def test_what_was_learned_moves_to_a_changed_base_by_a_file(gpt, tokens, tmp_path):
    model = gpt(np.float32)
    tuned = learned(model, NORMS)
    tuned.detach()
    tuned.save(tmp_path)
    tp.quantize(model, tp.NF4(block_size=16))
    with pytest.warns(UserWarning, match="the base's weights differ"): again = tp.load_adapter(model, tmp_path)
    assert all(np.array_equal(a, again.state_dict()[n]) for n, a in tuned.state_dict().items())


def test_a_layer_for_training_can_be_taken_off_and_put_back(gpt, tokens):
    """PEQA on a base of PEQA takes the place of a module that is not its `base`."""
    peqa = tp.PEQA(4)
    model = tp.quantize(gpt(np.float32), peqa)
    layers = {path: model.get(path) for path in linear_paths(gpt())}
    tuned = learned(model, peqa)
    want = tuned(tokens).data
    tuned.detach()
    assert all(model.get(path) is layer for path, layer in layers.items())
    assert np.array_equal(tuned.reattach()(tokens).data, want)


def test_saved_while_another_method_is_on_its_base(gpt, tokens, tmp_path):
    model = gpt(np.float32)
    tuned = learned(model, LORA)
    want = tuned(tokens).data
    tuned.detach()
    other = learned(model, NORMS)
    theirs = other(tokens).data
    tuned.save(tmp_path)
    assert other.active and np.array_equal(other(tokens).data, theirs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(tp.load_adapter(gpt(np.float32), tmp_path)(tokens).data, want)


# -- cast ----------------------------------------------------------------------------------------
CASTS = {"all, attached": lambda t: t.to(np.float64), "model, attached": lambda t: t.model.to(np.float64),
         "base, detached": lambda t: (t.detach().to(np.float64), t.reattach()),
         "all, detached": lambda t: (t.detach(), t.to(np.float64), t.reattach())}


@each
@pytest.mark.parametrize("cast", [*CASTS, "base, on loan"])
def test_a_cast_is_no_change(cast, method, gpt, tokens):
    model = gpt(np.float32)
    base = {name: a.copy() for name, a in model.state_dict().items()}
    tuned = learned(model, method)
    want = tuned(tokens).data
    if tuned.virtual and cast == "model, attached": cast = "all, attached"    # the prefix is beside the model
    if cast in CASTS: CASTS[cast](tuned)
    else:
        with tuned.disabled() as lent: lent.to(np.float64)
    got = tuned(tokens).data
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
    tp.train(tuned, Noise(), 3, progress=False)
    now = tuned.detach().state_dict()
    assert all(a.dtype == np.float64 and np.array_equal(a, base[name]) for name, a in now.items())


# -- copied --------------------------------------------------------------------------------------
@each
def test_the_method_can_be_taken_off_a_copy_of_the_model(method, gpt, tokens):
    model = gpt(np.float32)
    before, objects = frozen_bytes(model), dict(model.named_modules())
    tuned = learned(model, method)
    want = tuned(tokens).data
    twin = copy.deepcopy(tuned.model)
    with pytest.raises(tp.MethodError, match=r"peft\.detach\(copy\)"): tp.attach(twin, LORA)
    assert detach(twin) is twin and frozen_bytes(twin) == before
    assert all(p.requires_grad for p in twin.parameters())
    assert not {id(m) for m in objects.values()} & {id(m) for _, m in twin.named_modules()}
    assert tp.attach(tp.quantize(twin, tp.NF4(block_size=16)), LORA).active
    assert tuned.active and np.array_equal(tuned(tokens).data, want)
    with pytest.raises(tp.MethodError, match="detach: no method is on this model"): detach(tuned.detach())
    with pytest.raises(TypeError, match="detach: expected a language model, got PeftModel"): detach(tuned)


def test_taking_it_off_by_the_model_is_as_good_as_by_the_method(gpt, tokens):
    tuned = learned(gpt(np.float32), BITFIT)
    want = tuned(tokens).data
    detach(tuned.model)
    assert not tuned.active and np.array_equal(tuned.reattach()(tokens).data, want)


@pytest.mark.parametrize("method", [LORA, tp.FullFineTuning()], ids=str)
def test_a_merge_in_place_lets_go_of_the_weights_that_it_replaces(method, gpt):
    model = gpt(np.float32)
    arrays = [model.get(path).weight.data for path in tp.attach(gpt(), LORA).wrappers]
    held = [weakref.ref(array) for array in arrays]
    del arrays
    tuned = learned(model, method)
    assert tuned.merge(in_place=True) is model
    gc.collect()
    assert len(held) == 4 and not any(ref() is not None for ref in held)


@each
def test_nothing_holds_an_attached_model_or_its_copy_without_the_collector(method, gpt):
    gc.collect()
    gc.disable()
    try:
        tuned = learned(gpt(np.float32), method)
        with tuned.disabled(): pass
        twin, both = copy.deepcopy(tuned.model), copy.deepcopy(tuned)
        held = [weakref.ref(m) for m in (tuned, tuned.model, twin, both, both.model, detach(copy.deepcopy(twin)))]
        del tuned, twin, both
        assert [ref() for ref in held] == [None] * len(held)
    finally:
        gc.enable()


# -- interrupted ---------------------------------------------------------------------------------
@contextlib.contextmanager
def interrupted_at(n):
    """KeyboardInterrupt before line n of those that run in model.py, switching.py and attachment.py; yields how many ran.

    Lines with a loop are left out: in Python 3.13, what a tracer raises where a loop goes round passes by the handlers
    around it. A real Ctrl-C there does not.
    """
    count, files = [0], [m.__file__ for m in (tp.peft.model, tp.peft.switching, tp.peft.attachment)]

    def line(frame, event, _):
        if event == "line" and " for " not in f" {linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()}":
            count[0] += 1
            if count[0] == n: raise KeyboardInterrupt
        return line

    sys.settrace(lambda frame, *_: line if frame.f_code.co_filename in files else None)
    try: yield count
    except KeyboardInterrupt: pass
    finally: sys.settrace(None)


def some(lines):
    """Lines to interrupt: the first ten, the last ten, and twenty at equal distances."""
    return sorted({*range(1, 11), *range(lines - 9, lines + 1), *np.linspace(1, lines, 20).astype(int).tolist()})


def cycle(tuned):
    tuned.detach()
    tuned.reattach()
    with tuned.disabled(): pass
    if len(tuned.parts) > 1: tuned.detach("a"), tuned.reattach("a")


@pytest.mark.parametrize("method", [LORA, NORMS, tp.DyLoRA(2, targets=("query",)), {"a": NORMS, "b": LORA}], ids=str)
def test_an_interrupt_anywhere_leaves_model_and_method_usable(method, gpt, tokens):
    model = gpt(np.float32, n_layers=1)
    before, tuned = frozen_bytes(model), learned(model, method)
    want = tuned(tokens).data
    with interrupted_at(0) as count: cycle(tuned)
    assert count[0] > 100
    for n in some(count[0]):
        with interrupted_at(n): cycle(tuned)
        for part in tuned.parts.values(): part.on = True                # it may have been in the middle of a switch
        if tuned.active: tuned.detach()
        tuned.reattach()
        assert np.array_equal(tuned(tokens).data, want), n
        assert frozen_bytes(tuned.detach()) == before, n
        tuned.reattach()


@pytest.mark.parametrize("change", [lambda t: t.detach("a"), lambda t: t.add(tp.PromptTuning(2))], ids=["detach", "add"])
def test_an_interrupted_switch_of_parts_can_be_put_on_again(change, gpt, tokens):
    """Also where the methods were never off before: nothing noted what the base is."""
    with interrupted_at(0) as count: change(learned(gpt(np.float32, n_layers=1), {"a": NORMS, "b": LORA}))
    for n in some(count[0]):
        tuned = learned(gpt(np.float32, n_layers=1), {"a": NORMS, "b": LORA})
        want = tuned(tokens).data
        with interrupted_at(n): change(tuned)
        for name in [*tuned.parts][2:]: tuned.parts.pop(name)            # the prompt may be there already
        for part in tuned.parts.values(): part.on = True
        if tuned.active: tuned.detach()
        assert np.array_equal(tuned.reattach()(tokens).data, want), n


def test_an_interrupted_attach_leaves_the_base(gpt):
    model = gpt(np.float32)
    before, flags = frozen_bytes(model), [p.requires_grad for p in model.parameters()]
    with interrupted_at(0) as count: tp.attach(model, tp.BottleneckAdapter(4)).detach()
    for n in some(count[0]):
        with interrupted_at(n): tp.attach(model, tp.BottleneckAdapter(4)).detach()
        if model.attached is not None: detach(model)
        assert frozen_bytes(model) == before and [p.requires_grad for p in model.parameters()] == flags, n


def test_an_interrupt_at_the_last_line_of_putting_on_leaves_the_methods_on_once(gpt, tokens, monkeypatch):
    """The lines behind `put_on` in `add` are interrupted, too: a wrapper must not become its own base."""
    tuned = learned(gpt(), tp.LoRA(2))
    logits = tuned(tokens).data
    put_on = Attachment.put_on

    def stopped(self, model):
        put_on(self, model)
        monkeypatch.setattr(Attachment, "put_on", put_on)
        raise KeyboardInterrupt
    monkeypatch.setattr(Attachment, "put_on", stopped)
    with pytest.raises(KeyboardInterrupt): tuned.add(tp.IA3())
    assert list(tuned.parts) == ["LoRA"] and np.array_equal(tuned(tokens).data, logits)
