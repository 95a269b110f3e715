"""What is off stays part of the model: one test for each row of the table in `part.py`, and where its rows meet."""
import contextlib
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


@contextlib.contextmanager
def switched_off(tuned, how):
    """Inside it one part is off, or all are disabled."""
    if how == "disabled":
        with tuned.disabled():
            yield
    else:
        tuned.detach("off")
        yield
        tuned.reattach("off")


TOKENS = np.random.default_rng(3).integers(0, 37, (3, 7))
methods = pytest.mark.parametrize("method", OFF)
ways = pytest.mark.parametrize("how", ["part", "disabled"])
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
    assert tuned.virtual_length == 0 and tuned.detach() is tuned.base
    assert tuned.off == ["off"] and np.array_equal(tuned(TOKENS).data, alone)
    assert np.array_equal(tuned.reattach()(TOKENS).data, both) and tuned.off == []


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


@pytest.mark.parametrize("method", [tp.FullFineTuning(), tp.AdaLoRA(2, 1)], ids=str)      # AdaLoRA's penalty would train it
def test_what_is_disabled_does_not_learn(method, tmp_path):
    def run(tuned, **options): return tp.train(tuned, Noise(), 2, checkpoint=tmp_path / "run", **NOISE, **options)
    run(moved(base(), method), stop_after=1)
    tuned = moved(base(), method)
    before = frozen_bytes(tuned)
    with tuned.disabled(), pytest.raises(ValueError, match="^train: the methods are disabled; leave"): run(tuned)
    assert frozen_bytes(tuned) == before and len(run(tuned).loss) == 2


def test_what_is_off_has_no_penalty():
    tuned = tp.attach(base(), {"off": tp.AdaLoRA(2, 1), "on": tp.IA3()})
    assert tuned.penalty() is not None and tuned.detach("off") and tuned.penalty() is None


@methods
def test_rows_of_a_batch_are_computed_without_what_is_off(method):
    tuned, alone, _ = with_one_off(method, head=3)
    classes, model = tuned.class_logits(TOKENS, LENGTHS).data, tuned.base
    assert np.array_equal(tp.mixed_batch(model, {"task": tuned}, TOKENS, ["task"] * 3).data, alone)
    assert np.array_equal(tp.mixed_classify(model, {"task": tuned}, TOKENS, LENGTHS, ["task"] * 3), classes)
    assert tuned.off == ["off"]


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
def test_modes_casts_folds_and_arrays_reach_what_is_off(method, how):
    tuned = moved(base(dtype=np.float32), {"off": OFF[method], "on": tp.IA3()}, head=3)
    before, want = {name: array.copy() for name, array in tuned.state_dict().items()}, outputs(tuned, TOKENS)
    move(tuned.train(), np.random.default_rng(5))
    with switched_off(tuned, how):
        assert tuned.state_dict().keys() == before.keys() and same(tuned.load_state_dict(before).eval().state_dict(), before)
    assert outputs(tuned, TOKENS) == want
    with switched_off(tuned, how):
        tuned.to(np.float64).train()
        if method == "prefix": tuned.fold()
        assert {array.dtype for array in tuned.state_dict().values() if array.dtype.kind == "f"} == {np.dtype("f8")}
        state = {name: array + 1e-12 if array.dtype.kind == "f" else array for name, array in tuned.state_dict().items()}
        tuned.load_state_dict(state)
    assert same(tuned.state_dict(), state) and tuned(TOKENS).dtype == np.float64
    assert all(module.training for part in tuned.parts.values() for _, module in part.modules())


@methods
def test_copies_and_files_say_what_is_off(method, tmp_path):
    tuned, alone, both = with_one_off(method)
    tuned.save(tmp_path)
    for again in copy.deepcopy(tuned), pickle.loads(pickle.dumps(tuned)), tp.load_adapter(base(), tmp_path):
        assert same(again.state_dict(False), tuned.state_dict(False)) and again.off == ["off"]
        assert np.array_equal(again(TOKENS).data, alone)
        assert np.array_equal(again.reattach("off")(TOKENS).data, both)
    assert tuned.off == ["off"] and np.array_equal(tuned(TOKENS).data, alone)
    tuned.detach("on")
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


REFUSING = {"combine": lambda tuned, folder: tp.combine({tuned: 1.0}), "merge": lambda tuned, folder: tuned.merge("off"),
            "peft": lambda tuned, folder: tuned.save(folder, "peft"),
            "export_training": lambda tuned, folder: tp.export_training(tuned, Noise(), folder, 2)}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("verb", "method"), [*((verb, tp.LoRA(2)) for verb in REFUSING),
                                              ("export_training", tp.FullFineTuning(("bias",)))])
def test_what_cannot_hold_it_names_it(verb, method, whole, tmp_path):
    tuned = moved(base(), {"off": method} if whole else {"on": tp.FullFineTuning(("up", "!bias")), "off": method})
    tuned.detach("off")
    before, logits = frozen_bytes(tuned), tuned(TOKENS).data
    says = "is switched off; reattach" if verb == "merge" else "off.* is switched off.*reattach"
    with pytest.raises(tp.MethodError, match=says): REFUSING[verb](tuned, tmp_path)
    assert frozen_bytes(tuned) == before and np.array_equal(tuned(TOKENS).data, logits) and not list(tmp_path.iterdir())
    if verb == "combine":
        tuned.save(tmp_path)
        with pytest.raises(tp.MethodError, match="the part 'off', .*, is switched off; reattach"):
            tp.combine({str(tmp_path): 1.0}, model=tuned.base)


@exclusive
def test_of_two_that_exclude_each_other_one_is_on(kind, tmp_path):
    tuned, logits = two(kind)
    before, first = frozen_bytes(tuned), EXCLUSIVE[kind][0]
    with pytest.raises(tp.MethodError, match=r"^reattach: .*detach\('second'\)"): tuned.reattach("first")
    if kind != "layers":
        with pytest.raises(tp.MethodError, match=r"^add: .*detach\('second'\)"): tuned.add({"third": first})
    assert list(tuned.parts) == ["first", "second"] and frozen_bytes(tuned) == before
    tuned.save(tmp_path)
    for model in tuned, tp.load_adapter(tuned.base, tmp_path):
        assert model.off == ["first"] and same(model.state_dict(False), tuned.state_dict(False))
        assert np.array_equal(model(TOKENS).data, logits["second"])
        for on, off in ("first", "second"), ("second", "first"):
            model.detach(off)
            assert np.array_equal(model.reattach(on)(TOKENS).data, logits[on])
    with pytest.raises(tp.MethodError, match="^attach: .* attach one of them$"):
        tp.attach(tuned.base, dict(zip(("first", "second"), EXCLUSIVE[kind], strict=True)))


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


def test_the_models_inside_refuse_other_verbs_and_the_base_takes_them():
    tuned, alone, _ = with_one_off("full")
    verbs = lambda model: tp.quantize(model, tp.NF4(block_size=16)), lambda model: tp.attach(model, tp.LoRA(2)), tp.convert
    for verb in verbs:
        for model, says in (tuned.model, r"with IA3\(\) attached"), (tuned.frozen, "as it was at attach"):
            with pytest.raises(ValueError, match=f"this is the model inside a PeftModel, {says}; give the base"):
                verb(model)
    for verb in verbs[:2]:
        verb(tuned.base)
    assert np.array_equal(tuned(TOKENS).data, alone)


# -- gradients -------------------------------------------------------------------------------------
def off_and_on(tuned):
    with tuned.disabled():
        tuned.detach("full", "lora")
    tuned.reattach("full", "lora")


BETWEEN = {"saved": lambda tuned, folder: tuned.save(folder), "switched": lambda tuned, folder: off_and_on(tuned),
           "loaded": lambda tuned, folder: tuned.load_state_dict(tuned.state_dict())}


@pytest.mark.parametrize("between", BETWEEN)
def test_gradients_survive_between_backward_and_step(between, tmp_path):
    def stepped(verb):
        full = tp.FullFineTuning(("query", "norm1", "bias"))
        tuned = moved(base(), {"full": full, "lora": tp.LoRA(2), "off": tp.PTuningV2(2)})
        tuned.detach("off")
        by_hand = tuned.model.final_norm.weight                  # the user's choice, which no method trains
        by_hand.requires_grad, tuned.model.get("blocks.0.norm1").bias.requires_grad = True, False
        optimizer = AdamW([*tuned.trainable_parameters(), by_hand], lr=1e-2)
        inputs, targets = shift(TOKENS)
        tp.functional.cross_entropy(tuned(inputs), targets).backward()
        verb(tuned, tmp_path)
        optimizer.step()
        assert frozen_bytes(tuned.base) == frozen_bytes(base()) and all(p.grad is None for p in tuned.base.parameters())
        return tuned.state_dict() | {"by hand": by_hand.data}, [p.requires_grad for p in tuned.model.parameters()]
    (now, flags), (want, want_flags) = stepped(BETWEEN[between]), stepped(lambda tuned, folder: None)
    assert same(now, want) and flags == want_flags and not np.array_equal(now["by hand"], base().final_norm.weight.data)


@ways
def test_no_gradient_of_another_dtype_comes_back(how):
    tuned = moved(base(dtype=np.float32), {"on": tp.FullFineTuning(("query",)), "off": tp.LoRA(2)})
    tuned(TOKENS).sum().backward()
    with switched_off(tuned, how):
        tuned.to(np.float64)
    assert all(p.grad is None for p in tuned.trainable_parameters()) and tuned(TOKENS).dtype == np.float64


# -- where they meet -------------------------------------------------------------------------------
def test_the_rate_is_that_of_the_part_that_is_on():
    """Both train the same norms, at rates of their own."""
    tuned, _ = two("norms")
    rates = set()
    for on, off in ("second", "first"), ("first", "second"):
        tuned.detach(off)
        part, own = tuned.reattach(on).parts[on], {t.p: t.own_rate for t in tp.training.rates.trained(tuned)}
        assert tuned.learning_rate == part.method.learning_rate
        want = tuned.learning_rate * tp.training.rates.width_factor(tuned)
        assert {own[p] for p in part.parameters()} == {want}
        rates.add(want)
    assert len(rates) == 2


def test_a_layer_is_not_merged_under_codes_that_are_off():
    """PEQA computes with the codes of the layer itself. A merged layer has none, and what it learned would be lost."""
    tuned = moved(base("peqa"), {"codes": tp.PEQA(bits=4), "lora": tp.LoRA(2)})
    whole = tuned(TOKENS).data
    tuned.detach("codes")
    alone = tuned(TOKENS).data
    for names, options in (["lora"], {}), (["lora"], {"in_place": True}), ([], {"in_place": True}):
        with pytest.raises(tp.MethodError, match="merge: codes is off and works on the layer"): tuned.merge(*names, **options)
    assert_close(tuned.merge()(TOKENS).data, alone, 1e-12)
    assert np.array_equal(tuned.reattach("codes")(TOKENS).data, whole)


def test_of_two_trainings_each_stays_when_the_other_is_merged():
    tuned, logits = two("weights")
    rest = tuned.merge(in_place=True)
    assert_close(rest(TOKENS).data, logits["second"], 1e-12)
    assert not np.array_equal(rest.reattach("first")(TOKENS).data, logits["second"])
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
    assert list(tuned.parts) == ["lora", "stays", "off"] and tuned.off == ["off"]       # trained weights are merged first
    assert_close(tuned(TOKENS).data, want, 1e-12)
    monkeypatch.undo()
    rest = tuned.merge("lora", in_place=True)
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
    second = moved(model, {"other": tp.PromptTuning(3)}).add(first)
    assert second.off == ["prompt"] and list(second.parts) == ["other", "prompt", "ia3"]
    third = tp.attach(model, {"third": tp.PromptTuning(1)})
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
    with pytest.raises(ValueError, match="fit_probe: this is the model inside a PeftModel"):
        tp.fit_probe(tuned.model, Labels())
