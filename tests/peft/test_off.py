"""What is off stays part of the model: one test for each row of the table in `part.py`, and where its rows meet."""
import copy
import pickle
import signal

import numpy as np
import pytest

import tinypeft as tp
from tests.oracles import assert_close
from tests.protocol import LENGTHS, Labels, frozen_bytes, move, outputs, shift
from tests.toys import Noise, same, small
from tinypeft.engine.nn import Linear
from tinypeft.engine.optim import AdamW

OFF = {"lora": tp.LoRA(2, targets="all", dropout=0.5), "full": tp.FullFineTuning(("query", "bias")),
       "prefix": tp.PrefixTuning(2, hidden=5), "v2": tp.PTuningV2(2, dropout=0.5), "dylora": tp.DyLoRA(rank=4)}
EXCLUSIVE = {"prompts": (tp.PromptTuning(2), tp.PTuning(hidden=4)), "prefixes": (tp.PrefixTuning(2, hidden=5), tp.PTuningV2(3)),
             "weights": (tp.FullFineTuning(("query",)), tp.FullFineTuning(("attention", "!key"))),
             "biases": (tp.FullFineTuning(("bias",)), tp.FullFineTuning()),
             "norms": (tp.BottleneckAdapter(4), tp.FullFineTuning(("norm1",))), "layers": (tp.LoRA(2), tp.PEQA(bits=4))}
NOISE = dict(lr=1e-3, progress=False, workers=1)


def base(kind="gpt", dtype=np.float64):
    model = small().to(dtype)
    if kind == "llama":
        model = tp.Llama(tp.LlamaConfig(37, 24, 16, 2, 4, n_kv_heads=2, d_mlp=24, d_head=4), rng=0).to(dtype)
    if kind == "peqa": return tp.quantize(model, tp.PEQA(bits=4).uniform)
    return tp.quantize(model, tp.NF4(block_size=16)) if kind == "nf4" else model


def moved(model, methods, **options):
    tuned = tp.attach(model, methods, rng=0, **options)
    move(tuned, np.random.default_rng(0))
    return tuned


def with_one_off(method="lora", **options):
    """A PeftModel of two parts, of which `off` is off, and the logits of "on" alone and of both."""
    tuned = moved(base(), {"off": OFF[method], "on": tp.IA3()}, **options)
    both = tuned(TOKENS).data
    tuned.detach("off")
    return tuned, tuned(TOKENS).data, both


def taken_off(tuned, how):
    """What puts back what is taken off: a part, all, or all inside `disabled`."""
    if how == "part":
        tuned.detach("off")
        return lambda: tuned.reattach("off")
    if how == "whole":
        tuned.detach()
        return tuned.reattach
    block = tuned.disabled()
    block.__enter__()
    return lambda: block.__exit__(None, None, None)


TOKENS = np.random.default_rng(3).integers(0, 37, (3, 7))
methods = pytest.mark.parametrize("method", OFF)
ways = pytest.mark.parametrize("how", ["part", "whole", "disabled"])
exclusive = pytest.mark.parametrize("kind", EXCLUSIVE)


def two(kind):
    """Two parts that exclude each other; the first is off. And the logits of each."""
    first, second = EXCLUSIVE[kind]
    tuned = moved(base("peqa" if kind == "layers" else "gpt"), {"first": first})
    logits = {"first": tuned(TOKENS).data}
    tuned.detach("first")
    tuned.add({"second": second})
    move(tuned, np.random.default_rng(1))
    return tuned, logits | {"second": tuned(TOKENS).data}


# -- a row of the table each -----------------------------------------------------------------------
@methods
def test_what_is_off_is_left_out(method):
    tuned, alone, both = with_one_off(method, head=3)
    ours = tp.attach(base(), {"on": tp.IA3()}, head=3)
    ours.load_state_dict({name: array for name, array in tuned.state_dict().items() if not name.startswith("off/")})
    assert outputs(tuned, TOKENS) == outputs(ours, TOKENS) and not np.array_equal(alone, both)
    assert np.array_equal(tuned.generate(TOKENS, 3, temperature=0), ours.generate(TOKENS, 3, temperature=0))
    assert tuned.virtual_length == 0 and np.array_equal(tuned.reattach("off")(TOKENS).data, both)


@methods
def test_what_is_off_does_not_learn(method):
    tuned, _, _ = with_one_off(method)
    before = {name: array.copy() for name, array in tuned.state_dict().items()}
    tp.find_rate(tuned, Noise(), steps=2, workers=1, progress=False)
    assert same(tuned.state_dict(), before) and tuned.off == ["off"]
    tp.train(tuned, Noise(), 2, **NOISE)
    changed = {name for name, array in tuned.state_dict().items() if not np.array_equal(array, before[name])}
    assert changed and all(name.startswith("on/") for name in changed)
    tuned.detach("on")
    with pytest.raises(ValueError, match="nothing to train, .* and off is switched off, and on is switched off"):
        tp.train(tuned, Noise(), 2, **NOISE)


@pytest.mark.parametrize("how", ["whole", "disabled"])
def test_a_method_that_is_off_the_model_is_not_trained(how, tmp_path):
    def run(tuned, **options): return tp.train(tuned, Noise(), 2, checkpoint=tmp_path / "run", **NOISE, **options)
    run(moved(base(), {"off": tp.FullFineTuning()}), stop_after=1)
    tuned = moved(base(), {"off": tp.FullFineTuning()})
    state, back = {name: array.copy() for name, array in tuned.state_dict().items()}, taken_off(tuned, how)
    verbs = run, lambda t: tp.find_rate(t, Noise(), steps=2), lambda t: tp.export_training(t, Noise(), tmp_path / "out", 2)
    for verb in verbs:
        with pytest.raises(tp.MethodError, match=r"^FullFineTuning\(\) is (detached|disabled); .*reattach\(\)"): verb(tuned)
        assert same(tuned.state_dict(), state) and frozen_bytes(tuned.model) == frozen_bytes(base())
    back()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert len(run(moved(base(), {"off": tp.FullFineTuning()})).loss) == 2


def test_what_is_off_has_no_penalty():
    tuned = tp.attach(base(), {"off": tp.AdaLoRA(2, 1), "on": tp.IA3()})
    assert tuned.penalty() is not None and tuned.detach("off") and tuned.penalty() is None


@methods
def test_rows_of_a_batch_are_computed_without_what_is_off(method):
    tuned, alone, _ = with_one_off(method, head=3)
    classes, model = tuned.class_logits(TOKENS, LENGTHS).data, tuned.detach()
    assert np.array_equal(tp.mixed_batch(model, {"task": tuned}, TOKENS, ["task"] * 3).data, alone)
    assert np.array_equal(tp.mixed_classify(model, {"task": tuned}, TOKENS, LENGTHS, ["task"] * 3), classes)
    assert tuned.off == ["off"] and not tuned.active


def test_ranks_are_those_of_what_is_on():
    tuned = tp.attach(base(), {"lora": tp.LoRA(3), "off": tp.DyLoRA(4), "other": tp.DyLoRA(4)})
    tuned.detach("off")
    assert set(tuned.ranks().values()) == {7} and set(tuned.set_rank(2).ranks().values()) == {5}
    tuned.detach("other")
    assert set(tuned.ranks().values()) == {3}
    with pytest.raises(tp.MethodError, match="set_rank: off, other is switched off; reattach it"): tuned.set_rank(1)
    assert set(tuned.reattach("off", "other").ranks().values()) == {9}
    tuned.detach("lora", "off", "other")
    with pytest.raises(tp.MethodError, match=r"ranks: the part 'lora', .* is switched off; reattach\('lora'\)"): tuned.ranks()


@methods
def test_what_is_off_is_counted_as_stored(method):
    tuned, _, _ = with_one_off(method)
    counts, ours = tuned.summary(), tuned.parts["on"]
    assert counts.trained == sum(p.size for p in ours.parameters()) and list(counts.parts) == ["on"]
    tuned.reattach("off")
    on = tuned.summary()
    assert (counts.stored, counts.total, counts.nbytes) == (on.stored, on.total, on.nbytes) and on.trained > counts.trained


@ways
@methods
def test_the_mode_reaches_what_is_off(method, how):
    tuned = moved(base(), {"off": OFF[method], "on": tp.IA3()})
    logits = tuned(TOKENS).data
    for training in True, False, True, False:
        back = taken_off(tuned, how)
        tuned.train(training)
        back()
        modes = {module.training for part in tuned.parts.values() for _, module in part.modules()}
        assert modes <= {tuned.training} == {training}
    assert np.array_equal(tuned(TOKENS).data, logits)


@ways
@methods
def test_a_cast_and_a_fold_reach_what_is_off(method, how):
    tuned = moved(base(dtype=np.float32), {"off": OFF[method], "on": tp.IA3()}, head=3)
    back = taken_off(tuned, how)
    tuned.to(np.float64)
    if method == "prefix": tuned.fold()
    assert {array.dtype for array in tuned.state_dict().values() if array.dtype.kind == "f"} == {np.dtype("f8")}
    state = {name: array + 1e-12 if array.dtype.kind == "f" else array for name, array in tuned.state_dict().items()}
    tuned.load_state_dict(state)
    back()
    assert same(tuned.state_dict(), state) and tuned(TOKENS).dtype == np.float64


@ways
@methods
def test_arrays_are_read_and_loaded_while_it_is_off(method, how):
    tuned = moved(base(), {"off": OFF[method], "on": tp.IA3()}, head=3)
    before, want = {name: array.copy() for name, array in tuned.state_dict().items()}, outputs(tuned, TOKENS)
    plain = frozen_bytes(copy.deepcopy(tuned).detach())
    move(tuned, np.random.default_rng(5))
    back = taken_off(tuned, how)
    assert tuned.state_dict().keys() == before.keys() and tuned.load_state_dict(before) is tuned
    assert same(tuned.state_dict(), before)
    back()
    assert outputs(tuned, TOKENS) == want and frozen_bytes(tuned.detach()) == plain


def test_a_model_that_was_cast_alone_loads_every_digit():
    tuned = moved(base(dtype=np.float32), {"off": OFF["full"], "on": tp.LoRA(2)})
    tuned.detach().to(np.float64)
    state = {name: array.astype(float) + 1e-12 for name, array in tuned.state_dict().items()}
    assert same(tuned.load_state_dict(state).reattach().state_dict(), state)


@methods
def test_a_file_says_what_is_off(method, tmp_path):
    tuned, alone, both = with_one_off(method)
    tuned.save(tmp_path)
    for saved in "attached", "detached":
        again = tp.load_adapter(base(), tmp_path)
        assert again.off == ["off"] and np.array_equal(again(TOKENS).data, alone), saved
        assert np.array_equal(again.reattach("off")(TOKENS).data, both)
        if saved == "attached": tuned.detach()
        tuned.save(tmp_path)
    tuned.reattach().detach("on")
    tuned.save(tmp_path)
    assert tp.load_adapter(base(), tmp_path).off == ["off", "on"]


@methods
def test_a_run_goes_on_with_the_same_parts_off(method, tmp_path):
    def run(**options):
        tuned, _, _ = with_one_off(method)
        return tp.train(tuned, Noise(), 4, keep_best=True, eval_every=2, eval_batches=1, **NOISE, **options).loss, tuned
    losses, whole = run()
    run(stop_after=2, checkpoint=tmp_path / "half")
    again, resumed = run(checkpoint=tmp_path / "half")
    assert losses == again and same(whole.state_dict(), resumed.state_dict()) and resumed.off == ["off"]


def test_a_run_does_not_go_on_with_other_parts_off(tmp_path):
    """Two LoRAs of one size: AdamW's moments of one would fit the other."""
    def run(off, **options):
        tuned = moved(base(), {"a": tp.LoRA(2), "b": tp.LoRA(2)})
        tuned.detach(off)
        return tp.train(tuned, Noise(), 4, checkpoint=tmp_path / "run", **NOISE, **options)
    run("a", stop_after=2)
    with pytest.raises(ValueError, match=r"another run \(off was \['a'\], is \['b'\]\)"): run("b")
    assert len(run("a").loss) == 4
    (tmp_path / "run").unlink()
    run("a", stop_after=1, callbacks=[lambda step: step.model.detach("b") and None])
    with pytest.raises(ValueError, match=r"another run \(off was \['a', 'b'\], is \['a'\]\)"): run("a")


@ways
@methods
def test_copies_have_what_is_off(method, how):
    tuned = moved(base(), {"off": OFF[method], "on": tp.IA3()})
    both, state = tuned(TOKENS).data, tuned.state_dict()
    back = taken_off(tuned, how)
    for again in copy.deepcopy(tuned), pickle.loads(pickle.dumps(tuned)):
        assert same(again.state_dict(), state) and again.off == tuned.off
        if not again.active: again.reattach()
        assert np.array_equal(again.reattach("off")(TOKENS).data, both)
    for model in copy.deepcopy(tuned.model), pickle.loads(pickle.dumps(tuned.model)):
        if how != "part": assert tp.attach(model, tp.LoRA(1)).active              # a copy is not on loan
    back()
    assert np.array_equal(tuned(TOKENS).data, both)


@pytest.mark.parametrize("kind", ["gpt", "nf4", "llama"])
@pytest.mark.parametrize("method", ["lora", "prefix", "dylora"])
def test_merging_keeps_what_is_off(method, kind):
    tuned = moved(base(kind), {"on": tp.LoRA(2, targets="all"), "off": OFF[method]}, head=3)
    both = outputs(tuned, TOKENS)
    tuned.detach("off")
    alone = tuned(TOKENS).data
    merged = tuned.merge()
    assert isinstance(merged, tp.models.decoder.Decoder) and list(tuned.parts) == ["on", "off"]
    assert_close(merged(TOKENS).data, alone, 1e-12)
    assert outputs(copy.deepcopy(tuned).reattach("off"), TOKENS) == both
    by_name = tuned.merge("on")
    assert tuned.merge(in_place=True) is tuned
    for rest in tuned, by_name:
        assert list(rest.parts) == rest.off == ["off"]
        assert_close(rest(TOKENS).data, alone, 1e-12)
        rest.reattach("off")
        for ours, want in zip((rest(TOKENS), rest.class_logits(TOKENS, LENGTHS)), both, strict=True):
            assert_close(ours.data.ravel(), np.frombuffer(want), 1e-12)


def refusing(verb, tuned, folder):
    tasks = {"combine": lambda: tp.combine({tuned: 1.0}),
             "peft": lambda: tuned.save(folder, "peft"), "merge": lambda: tuned.merge("off"),
             "export_training": lambda: tp.export_training(tuned, Noise(), folder, 2)}
    return tasks[verb]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("verb", "method"), [("combine", tp.LoRA(2)), ("peft", tp.LoRA(2)), ("merge", tp.LoRA(2)),
                                              ("export_training", tp.LoRA(2)),
                                              ("export_training", tp.FullFineTuning(("bias",)))])
def test_what_cannot_hold_it_names_it(verb, method, whole, tmp_path):
    tuned = moved(base(), {"off": method} if whole else {"on": tp.FullFineTuning(("up", "!bias")), "off": method})
    tuned.detach("off")
    logits, state = tuned(TOKENS).data, tuned.state_dict()
    says = "off.* is (switched off|detached).*reattach"
    if verb == "merge": says = "is detached; reattach"
    with pytest.raises(tp.MethodError, match=says): refusing(verb, tuned, tmp_path)()
    assert tuned.active and np.array_equal(tuned(TOKENS).data, logits) and same(tuned.state_dict(), state)
    assert not list(tmp_path.iterdir())
    if verb == "combine":
        tuned.save(tmp_path)
        model = tuned.detach()
        with pytest.raises(tp.MethodError, match="the part 'off', .*, is switched off; reattach"):
            tp.combine({str(tmp_path): 1.0}, model=model)
        assert model.attached is None


@exclusive
def test_of_two_that_exclude_each_other_one_is_on(kind, tmp_path):
    tuned, logits = two(kind)
    state = {name: array.copy() for name, array in tuned.state_dict().items()}

    def refused(call, verb):
        names, on = list(tuned.parts), tuned.off
        now = tuned(TOKENS).data
        with pytest.raises(tp.MethodError, match=rf"^{verb}: .*detach\('second'\)"): call()
        assert (list(tuned.parts), tuned.off) == (names, on) and tuned.active
        assert np.array_equal(tuned(TOKENS).data, now) and same(tuned.state_dict(), state)
    refused(lambda: tuned.reattach("first"), "reattach")
    if kind != "layers": refused(lambda: tuned.add({"third": EXCLUSIVE[kind][0]}), "add")
    tuned.save(tmp_path)
    again = tp.load_adapter(base("peqa" if kind == "layers" else "gpt"), tmp_path)
    for model in tuned, again:
        assert model.off == ["first"] and same(model.state_dict(False), tuned.state_dict(False))
        assert np.array_equal(model(TOKENS).data, logits["second"])
        for on, off in ("first", "second"), ("second", "first"):
            model.detach(off)
            assert np.array_equal(model.reattach(on)(TOKENS).data, logits[on])
    first, second = EXCLUSIVE[kind]
    model = base("peqa" if kind == "layers" else "gpt")
    with pytest.raises(tp.MethodError, match="^attach: .* attach one of them$"):
        tp.attach(model, {"first": first, "second": second})
    assert model.attached is None


@pytest.mark.parametrize("kind", [tp.PromptTuning(2), tp.FullFineTuning(("bias",))])
def test_the_error_about_two_that_exclude_each_other_says_what_helps(kind):
    """The one that is on comes off. Of two that are to come, one is named."""
    with pytest.raises(tp.MethodError, match="^attach: a and b both .* can be on, so attach one of them$"):
        tp.attach(base(), {"a": kind, "b": kind})
    tuned = tp.attach(base(), {"a": kind})
    with pytest.raises(tp.MethodError, match=r"^add: a and b both .* can be on, so detach\('a'\) first$"):
        tuned.add({"b": kind})
    tuned.detach("a")
    tuned.add({"b": kind})
    for names in "a", "ab":
        with pytest.raises(tp.MethodError, match=r"^reattach: a and b both .* can be on, so detach\('b'\) first$"):
            tuned.reattach(*names)
    tuned.detach("b")
    with pytest.raises(tp.MethodError, match="^reattach: a and b both .* can be on, so reattach one of them$"):
        tuned.reattach("a", "b")
    assert tuned.reattach("a").off == ["b"]


def test_the_base_refuses_other_verbs():
    tuned, _, both = with_one_off("full")
    tuned.detach("on")
    verbs = lambda m: tp.quantize(m, tp.NF4()), lambda m: tp.attach(m, tp.LoRA(2)), tp.convert
    for verb in verbs:
        with pytest.raises(ValueError, match="is attached to this model already"): verb(tuned.model)
        with tuned.disabled(), pytest.raises(ValueError, match="this model is on loan"): verb(tuned.model)
    tp.quantize(tuned.detach(), tp.NF4(block_size=16), targets=("up",))
    with pytest.raises(tp.MethodError, match="learned on a base that was changed"): tuned.reattach()


# -- gradients -------------------------------------------------------------------------------------
@pytest.mark.parametrize("between", ["save", "disabled", "loaded"])
def test_gradients_survive_between_backward_and_step(between, tmp_path):
    def stepped(between):
        full = tp.FullFineTuning(("query", "norm1", "bias"))
        tuned = moved(base(), {"full": full, "lora": tp.LoRA(2), "off": tp.PTuningV2(2)})
        tuned.detach("off")
        by_hand = tuned.model.final_norm.weight                  # the user's choice, which no method trains
        by_hand.requires_grad, tuned.model.get("blocks.0.norm1").bias.requires_grad = True, False
        optimizer = AdamW([*tuned.trainable_parameters(), by_hand], lr=1e-2)
        inputs, targets = shift(TOKENS)
        tp.functional.cross_entropy(tuned(inputs), targets).backward()
        if between == "save": tuned.save(tmp_path)
        if between == "loaded": tuned.load_state_dict(tuned.state_dict())
        if between == "disabled":
            with tuned.disabled() as model: assert all(p.grad is None for p in model.parameters())
        optimizer.step()
        flags = [p.requires_grad for p in tuned.model.parameters()]
        return tuned.state_dict() | {"by hand": by_hand.data}, flags, len(tuned.trainable_parameters())
    (now, flags, count), (want, *rest) = stepped(between), stepped(None)
    assert same(now, want) and [flags, count] == rest and not np.array_equal(now["by hand"], base().final_norm.weight.data)


def test_a_part_that_comes_off_leaves_its_gradients():
    tuned = moved(base(), {"full": tp.FullFineTuning(("query",)), "lora": tp.LoRA(2)})
    for off in ("full",), ():
        tuned(TOKENS).sum().backward()
        model = tuned.detach(*off)
        assert all(p.grad is None for name, p in model.named_parameters() if name.endswith("query.weight"))
        tuned.reattach(*off)
        assert all(p.grad is None for p in tuned.trained.values())


@pytest.mark.parametrize("how", ["part", "whole", "disabled"])
def test_no_gradient_of_another_dtype_comes_back(how):
    tuned = moved(base(dtype=np.float32), {"on": tp.FullFineTuning(("query",)), "off": tp.LoRA(2)})
    tuned(TOKENS).sum().backward()
    back = taken_off(tuned, how)
    tuned.to(np.float64)
    back()
    assert {p.grad.dtype for p in tuned.trainable_parameters() if p.grad is not None} <= {tuned(TOKENS).dtype}


# -- where they meet -------------------------------------------------------------------------------
def test_the_rate_is_that_of_the_part_that_is_on():
    """Both train the same norms, at rates of their own."""
    tuned = moved(base(), {"norms": tp.FullFineTuning(("norm1",))})
    tuned.detach("norms")
    tuned.add({"adapter": tp.BottleneckAdapter(4)})
    for on in "adapter", "norms":
        part = tuned.parts[on]
        rates = tp.training.rates.own_rates(tuned)
        want = part.method.learning_rate * tp.training.rates.width_factor(tuned)
        assert {rates(p) for p in part.parameters()} == {want} == {tuned.learning_rate * tp.training.rates.width_factor(tuned)}
        tuned.detach(on)
        if on == "adapter": tuned.reattach("norms")
    assert tp.FullFineTuning.learning_rate != tp.BottleneckAdapter.learning_rate


def test_a_layer_is_not_merged_under_codes_that_are_off():
    """PEQA computes with the codes of the layer itself. A merged layer has none, and what it learned would be lost."""
    tuned = moved(base("peqa"), {"codes": tp.PEQA(bits=4), "lora": tp.LoRA(2)})
    whole = tuned(TOKENS).data
    tuned.detach("codes")
    alone = tuned(TOKENS).data
    for options in {}, {"in_place": True}:
        with pytest.raises(tp.MethodError, match="merge: codes is off and works on the layer"): tuned.merge("lora", **options)
    with pytest.raises(tp.MethodError, match="merge: codes is off and works on the layer"): tuned.merge(in_place=True)
    assert_close(tuned.merge()(TOKENS).data, alone, 1e-12)
    assert np.array_equal(tuned.reattach("codes")(TOKENS).data, whole)


def test_of_two_trainings_each_stays_when_the_other_is_merged():
    tuned, logits = two("weights")
    rest = tuned.merge(in_place=True)
    assert_close(rest(TOKENS).data, logits["second"], 1e-12)
    switched = rest.reattach("first")(TOKENS).data
    assert not np.array_equal(switched, logits["second"])
    rest.detach("first")
    assert_close(rest.detach()(TOKENS).data, logits["second"], 1e-12)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize(("names", "calls"), [(["full", "lora"], 1), (["full", "lora"], 4), (["lora", "full"], 4)])
def test_an_interrupted_merge_goes_on(error, names, calls, monkeypatch):
    ours = {"full": tp.FullFineTuning(("query", "bias")), "lora": tp.LoRA(2, targets="all")}
    tuned = moved(base(), {name: ours[name] for name in names} | {"stays": tp.IA3(), "off": tp.FullFineTuning(("up", "!bias"))})
    tuned.detach("off")
    want, left, merge = tuned(TOKENS).data, [calls], tp.peft.lora.LoRALinear.merge

    def stops(self):
        left[0] -= 1
        if left[0] < 0: raise error
        return merge(self)
    monkeypatch.setattr(tp.peft.lora.LoRALinear, "merge", stops)
    with pytest.raises(error): tuned.merge("full", "lora", in_place=True)
    unmerged = names[names.index("lora"):]                   # what came before is merged
    assert tuned.active and list(tuned.parts) == [*unmerged, "stays", "off"] and tuned.off == ["off"]
    assert_close(tuned(TOKENS).data, want, 1e-12)
    monkeypatch.undo()
    rest = tuned.merge(*unmerged, in_place=True)
    assert list(rest.parts) == ["stays", "off"]
    assert_close(rest(TOKENS).data, want, 1e-12)
    assert rest.reattach("off").trained.keys() == {f"blocks.{i}.mlp.up.weight" for i in range(2)}


def test_ctrl_c_waits_until_a_layer_is_merged(monkeypatch):
    tuned = moved(base(), {"stays": tp.FullFineTuning(("query",)), "lora": tp.LoRA(2)})
    want, paths, merge = tuned(TOKENS).data, list(tuned.wrappers), tp.peft.lora.LoRALinear.merge

    def pressed(self):
        monkeypatch.undo()                                   # once: a second Ctrl-C acts at once
        signal.raise_signal(signal.SIGINT)
        return merge(self)
    monkeypatch.setattr(tp.peft.lora.LoRALinear, "merge", pressed)
    with pytest.raises(KeyboardInterrupt): tuned.merge("lora", in_place=True)
    assert list(tuned.wrappers) == paths[1:] and type(tuned.model.get(paths[0])) is Linear
    assert_close(tuned(TOKENS).data, want, 1e-12)


def test_parts_that_are_given_away_stay_off():
    model = base()
    first = moved(model, {"prompt": tp.PromptTuning(2), "ia3": tp.IA3()})
    first.detach("prompt")
    first.detach()
    second = moved(model, {"other": tp.PromptTuning(3)}).add(first)
    assert second.off == ["prompt"] and list(second.parts) == ["other", "prompt", "ia3"]
    third = tp.attach(second.detach(), {"third": tp.PromptTuning(1)})
    with pytest.raises(tp.MethodError, match=r"^add: third and other both give .*detach\('third'\)"): third.add(second)
    assert list(third.parts) == ["third"] and list(second.parts) == ["other", "prompt", "ia3"]
    third.detach("third")
    assert third.add(second).off == ["third", "prompt"]


def test_a_head_stays_with_the_model_and_a_probe_waits():
    tuned = moved(base(), {"off": tp.LoRA(2)}, head=3)
    tuned.detach("off")
    assert outputs(tuned, TOKENS) != outputs(tuned.reattach("off"), TOKENS)
    tuned.detach("off")
    tp.train(tuned, Labels(), 2, **NOISE)
    with pytest.raises(tp.MethodError, match="is attached to this model already"):
        tp.fit_probe(tuned.model, Labels())
