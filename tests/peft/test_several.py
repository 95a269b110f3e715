"""Several methods on one model: every pair that makes sense, and what parts do together and alone."""
import copy
import itertools
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import tinypeft as tp
from tests.oracles import assert_close
from tests.protocol import LENGTHS, assert_gradients, frozen_bytes, learned, move, outputs
from tests.toys import Noise, same
from tinypeft.files import load_arrays, save_arrays

METHODS = {"biases": tp.FullFineTuning(("bias",)), "norms": tp.FullFineTuning(("norm1", "norm2", "final_norm")),
           "weights": tp.FullFineTuning(("mlp",)),
           "adapter": tp.BottleneckAdapter(4, norms=False), "parallel": tp.ParallelAdapter(4, beside="both", activation="gelu"),
           "prefix": tp.PrefixTuning(3, hidden=5), "v2": tp.PTuningV2(3, dropout=0.0), "prompt": tp.PromptTuning(3),
           "ptuning": tp.PTuning(hidden=4), "lora": tp.LoRA(rank=2, alpha=2, targets="all"), "ia3": tp.IA3(),
           "adalora": tp.AdaLoRA(init_rank=4, target_rank=2, t_init=1, t_final=1, delta_t=1),
           "dylora": tp.DyLoRA(rank=4, alpha=4, targets="all"), "peqa": tp.PEQA(bits=4)}
MERGE = {"biases", "norms", "weights", "lora", "ia3", "adalora", "dylora", "peqa"}
ON_LAYERS = "adapter", "lora", "ia3", "adalora", "dylora"
APART = [("prefix", "v2"), ("prompt", "ptuning"), ("biases", "norms"), ("weights", "biases"), *((a, "peqa") for a in ON_LAYERS)]
PAIRS = [(a, b) for a, b in itertools.permutations(METHODS, 2) if (a, b) not in APART and {a, b} != {"weights", "peqa"}
         and ((b, a) not in APART or "peqa" in (a, b))]


def each(pairs):
    """One order of every pair on one block, now that of METHODS and now the other; its reverse, on two, is a long test."""
    def case(a, b):
        i, j = list(METHODS).index(a), list(METHODS).index(b)
        comes_later = (b, a) in pairs and (i + j + (i < j)) % 2 == 0
        return pytest.param((a, b), 1 + comes_later, marks=[pytest.mark.long] * comes_later, id=f"{a}+{b}")
    return pytest.mark.parametrize("pair, blocks", [case(*p) for p in pairs])


pairs = each(PAIRS)
MAM = tp.PrefixTuning(3, hidden=5), tp.ParallelAdapter(4)                # mix-and-match of He et al.


def base(gpt, names=(), dtype=np.float32, blocks=2):
    """A model; its layers are quantized if PEQA is among the methods."""
    model = gpt(dtype, n_layers=blocks)
    return tp.quantize(model, METHODS["peqa"].uniform) if "peqa" in names else model


def both(model, pair, head=3):
    """A pair of methods on a model, named and moved, and the arrays that each has learned."""
    tuned = tp.attach(model, {name: METHODS[name] for name in pair}, rng=0, head=head)
    move(tuned, np.random.default_rng(0))
    return tuned


def alone(model, name, tuned):
    """A part of `tuned` on a model of its own, with the same numbers."""
    state = {n: a for n, a in tuned.state_dict().items() if n.startswith((f"{name}/", "head"))}
    return tp.attach(model, {name: METHODS[name]}, head=3).load_state_dict(state)


@pairs
def test_gradients_are_those_of_finite_differences(pair, blocks, gpt, tokens):
    assert_gradients(both(base(gpt, pair, np.float64, blocks), pair, None), tokens[:2, :4], kinks=True)    # or much curvature


@pairs
def test_one_comes_off_and_leaves_the_other_bit_for_bit(pair, blocks, gpt, tokens):
    model, kept = base(gpt, pair, blocks=blocks), pair
    before, plain = frozen_bytes(model), model(tokens).data
    tuned = both(model, pair)
    want, counts = outputs(tuned, tokens), [len(part.parameters()) for part in tuned.parts.values()]
    assert len(tuned.trainable_parameters()) == sum(counts) + 2 and min(counts) > 0
    for gone, kept in (pair, pair[::-1]):
        tuned.detach(gone)
        assert outputs(tuned, tokens) == outputs(alone(base(gpt, pair, blocks=blocks), kept, tuned), tokens) != want
        assert outputs(copy.deepcopy(tuned), tokens) == outputs(tuned, tokens)
        with tuned.disabled() as off: assert np.array_equal(off(tokens).data, plain)
        tuned.reattach(gone)
        assert outputs(tuned, tokens) == want
    assert tuned.detach() is model and frozen_bytes(model) == before
    assert outputs(tuned.reattach(), tokens) == want


@pairs
def test_saved_loaded_and_merged(pair, blocks, gpt, tokens, tmp_path):
    tuned = both(base(gpt, pair, blocks=blocks), pair)
    want = outputs(tuned, tokens)
    tuned.save(tmp_path)
    again = tp.load_adapter(base(gpt, pair, blocks=blocks), tmp_path)
    assert list(again.parts) == list(pair) and outputs(again, tokens) == want
    assert same(again.state_dict(False), tuned.state_dict(False))
    if set(pair) <= MERGE:
        merged = tuned.merge()
        assert_close(merged(tokens).data, tuned(tokens).data, 1e-5)
        assert_close(merged.class_logits(tokens, LENGTHS).data, tuned.class_logits(tokens, LENGTHS).data, 1e-5)
        assert all(p.requires_grad for p in merged.parameters()) and merged.attached is None
        assert outputs(tuned, tokens) == want                            # it is as it was
        model = tuned.base
        assert tuned.merge(in_place=True) is model and outputs(model, tokens) == outputs(merged, tokens)
        with pytest.raises(tp.MethodError, match="no methods any more"): tuned(tokens)
    else:
        with pytest.raises(tp.MethodError, match="^merge: "): tuned.merge()
        assert outputs(tuned, tokens) == want


@each([p for p in PAIRS if {"adalora", "dylora", "prefix"} & set(p)])
def test_training_resumes_exactly(pair, blocks, gpt, tmp_path):
    def run(**options):
        tuned = both(base(gpt, pair, blocks=blocks), pair)
        history = tp.train(tuned, Noise(), 6, lr=1e-3, progress=False, **options)
        return history.loss, tuned
    loss, whole = run()
    run(stop_after=3, checkpoint=tmp_path / "half")
    again, resumed = run(checkpoint=tmp_path / "half")
    assert loss == again and same(whole.state_dict(), resumed.state_dict())


@pytest.mark.parametrize(("a", "b"), APART)
def test_pairs_that_cannot_be(a, b, gpt):
    model = base(gpt, (a, b))
    before = frozen_bytes(model)
    with pytest.raises(tp.MethodError, match=r"^attach: \w+ (and \w+ both |works on the layer)"): both(model, (a, b))
    assert frozen_bytes(model) == before and model.attached is None


def test_the_second_adapts_what_the_first_gives(gpt, tokens):
    """l ⊙ (W x + B A x) is not l ⊙ (W x) + B A x."""
    scale, change = tp.IA3(("query",), None), tp.LoRA(2, targets=("query",))
    outside, inside = (tp.attach(gpt(np.float64), *order) for order in ((change, scale), (scale, change)))
    x = np.random.default_rng(1).standard_normal((5, 16))
    path = "blocks.0.attention.query"
    for tuned, formula in (outside, lambda Wx, BAx, l: (Wx + BAx) * l), (inside, lambda Wx, BAx, l: Wx * l + BAx):
        move(tuned, np.random.default_rng(0))
        lora, l = (tuned.parts[name].wrappers[path] for name in ("LoRA", "IA3"))
        query = tuned.model.get(path)
        assert_close(query(tp.Tensor(x)).data, formula(query.base.base(tp.Tensor(x)).data, x @ lora.delta().T, l.l.data), 1e-12)


def test_names(gpt):
    tuned = tp.attach(gpt(), tp.LoRA(2), tp.LoRA(1), {"style": tp.IA3()}, tp.LoRA(3, targets=("key",)))
    assert list(tuned.parts) == ["LoRA", "LoRA 2", "style", "LoRA 3"]
    assert str(tuned.method) == "LoRA(rank=2) + LoRA(rank=1) + IA3() + LoRA(rank=3, targets=('key',))"
    assert "style/blocks.0.mlp.down.l" in tuned.state_dict()
    assert tp.attach(gpt(), {"style": tp.LoRA(2)}).state_dict().keys() >= {"style/blocks.0.attention.query.A"}
    for wrong, error, says in (((), TypeError, "got none"), ((tp.LoRA,), TypeError, "call it, LoRA()"),
                               (({"a/b": tp.LoRA()},), tp.MethodError, "a str without '/'"),
                               (({"a": tp.LoRA()}, {"a": tp.IA3()}), tp.MethodError, "two methods called 'a'")):
        with pytest.raises(error, match=says.replace("(", r"\(").replace(")", r"\)")): tp.attach(gpt(), *wrong)
    with pytest.raises(tp.MethodError, match="no method is called 'lora'; there are 'LoRA', 'LoRA 2'"): tuned.detach("lora")


def test_a_part_is_switched_while_all_are_disabled(gpt, tokens):
    model = gpt()
    tuned = learned(model, {"a": tp.LoRA(2), "b": tp.IA3()})
    plain, both = model(tokens).data, tuned(tokens).data
    tuned.detach("a")
    one = tuned(tokens).data
    for switch, want in (tuned.reattach, both), (tuned.detach, one):
        with tuned.disabled():
            switch("a")
            assert np.array_equal(tuned(tokens).data, plain)
        assert np.array_equal(tuned(tokens).data, want)


def test_a_copy_of_a_disabled_model_is_not_disabled_and_an_added_method_is(gpt, tokens):
    tuned = learned(gpt(), {"a": tp.LoRA(2)})
    plain, want = tuned.base(tokens).data, tuned(tokens).data
    with tuned.disabled():
        assert np.array_equal(copy.deepcopy(tuned)(tokens).data, want)
        tuned.add({"b": tp.LoRA(1)})
        assert np.array_equal(tuned(tokens).data, plain)
    assert np.array_equal(tuned(tokens).data, want)


def test_mix_and_match_generates_from_a_cache(gpt, tokens):
    tuned = tp.attach(gpt(np.float64), *MAM, tp.PromptTuning(2), rng=0)
    move(tuned, np.random.default_rng(0))
    assert tuned.virtual_length == 5
    text = tuned.generate(tokens[:, :3], 6, temperature=0)
    for t in range(3, 9): assert np.array_equal(tuned(text[:, :t]).data[:, -1].argmax(-1), text[:, t])
    with pytest.raises(tp.MethodError, match="24 virtual tokens leave no room"):
        tp.attach(gpt(), tp.PromptTuning(12), tp.PrefixTuning(12))


def test_one_part_is_merged_and_the_others_stay(gpt, tokens):
    tuned = tp.attach(gpt(np.float64), tp.LoRA(2, targets="all"), tp.PrefixTuning(3, hidden=5), tp.BottleneckAdapter(4), head=3)
    move(tuned, np.random.default_rng(0))
    logits, classes = tuned(tokens).data, tuned.class_logits(tokens, LENGTHS).data
    rest = tuned.merge("LoRA")
    assert list(rest.parts) == ["PrefixTuning", "BottleneckAdapter"] and list(tuned.parts)[0] == "LoRA"
    assert_close(rest(tokens).data, logits, 1e-12)
    assert_close(rest.class_logits(tokens, LENGTHS).data, classes, 1e-12)
    plain = rest.detach().get("blocks.0.attention.query").weight.data
    wrapper = tuned.parts["LoRA"].wrappers["blocks.0.attention.query"]
    assert_close(plain, wrapper.base.weight.data + wrapper.delta(), 1e-14)
    assert np.array_equal(tuned(tokens).data, logits)


def test_only_the_innermost_part_can_be_merged_alone(gpt, tokens):
    tuned = tp.attach(gpt(), tp.IA3(), tp.LoRA(2, targets="all"))
    with pytest.raises(tp.MethodError, match=r"LoRA\(.*\) changes blocks.0.attention.key as IA3 gives it, and IA3 stays"):
        tuned.merge("LoRA")
    assert list(tuned.merge("IA3").parts) == ["LoRA"]
    tuned.detach("IA3")
    assert tuned.merge("LoRA").parts.keys() == {"IA3"}
    with pytest.raises(tp.MethodError, match=r"IA3\(\) is switched off; reattach it"): tuned.merge("IA3")


TRAINS = {"weight": tp.FullFineTuning(("query", "value")), "bias": tp.FullFineTuning(("bias",))}
MERGED = {"lora": tp.LoRA(2, targets="all"), "ia3": tp.IA3(("query", "key", "down")), "both": {"a": tp.IA3(), "b": tp.LoRA(2)}}


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("merged", MERGED)
@pytest.mark.parametrize("trains", TRAINS)
def test_a_part_that_stays_keeps_what_it_learned_for_a_merged_weight(trains, merged, is_first, gpt, tokens):
    ours = MERGED[merged] if merged == "both" else {merged: MERGED[merged]}
    stays = {"stays": TRAINS[trains]}
    tuned = tp.attach(gpt(), *((stays, ours) if is_first else (ours, stays)))
    move(tuned, np.random.default_rng(0))
    whole = tuned(tokens).data
    tuned.detach("stays")
    with_one_off = tuned(tokens).data
    assert_close(tuned.merge(*ours)(tokens).data, with_one_off, 1e-12)
    assert_close(tuned.merge(*ours).reattach("stays")(tokens).data, whole, 1e-12)
    rest = tuned.reattach("stays").merge(*ours, in_place=True)
    assert list(rest.parts) == ["stays"]
    assert_close(rest(tokens).data, whole, 1e-12)
    rest.detach("stays")
    assert_close(rest(tokens).data, with_one_off, 1e-12)


def test_biases_learned_beside_peqa_stay_when_it_is_merged(gpt, tokens):
    tuned = tp.attach(base(gpt, ["peqa"], np.float64), {"bias": METHODS["biases"], "peqa": METHODS["peqa"]})
    move(tuned, np.random.default_rng(0))
    assert_close(tuned.merge("peqa")(tokens).data, tuned(tokens).data, 1e-6)         # scales become float32 again


def test_merging_in_place_takes_one_layer_more(gpt):
    def peak(**options):
        """Bytes that `merge` takes beyond those that the model has."""
        tracemalloc.start()
        try:
            tuned = tp.attach(tp.GPT(tp.GPTConfig(64, 16, 256, 4, 4), rng=0), tp.LoRA(2, targets="all"))
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            tuned.merge(**options)
            return tracemalloc.get_traced_memory()[1] - before
        finally: tracemalloc.stop()
    layer, whole = 4 * 256 * 1024, 4 * 12 * 256 * 256 * 4
    assert peak() > whole and peak(in_place=True) < 2.5 * layer < whole / 4            # W + ΔW, and ΔW


@pytest.mark.parametrize("is_quantized", [False, True])
def test_more_methods_later_and_from_other_models(is_quantized, gpt, tokens):
    model = tp.quantize(gpt(), tp.NF4(block_size=16)) if is_quantized else gpt()
    first = learned(model, tp.LoRA(2))
    alone = first(tokens).data
    second = learned(model, tp.IA3())
    second.add({"first": tp.PromptTuning(2)})
    for given in (first, first), (second,):
        with pytest.raises(tp.MethodError, match="expected other PeftModels, each of them once"): second.add(*given)
    with pytest.raises(tp.MethodError, match="no methods any more"): second.add(first).add(first)
    assert list(second.parts) == ["IA3", "first", "LoRA"] and first.parts == {}
    second.detach("IA3", "first")
    assert np.array_equal(second(tokens).data, alone)
    headed = tp.attach(model, tp.LoRA(1), head=3)
    for other, says in ((headed, "has a classification head"), (tp.attach(gpt(), tp.LoRA(1)), "on another model"),
                        (tp.load_pretrained, "expected a method")):
        with pytest.raises((tp.MethodError, TypeError), match=says): second.add(other)
    both = second.reattach("first")(tokens).data
    with pytest.raises(tp.MethodError, match="both give the model a prompt"): second.add(tp.PromptTuning(3))
    assert list(second.parts) == ["IA3", "first", "LoRA"] and np.array_equal(second(tokens).data, both)


def test_tasks_stand_beside_each_other_on_one_base(gpt, tokens):
    model = gpt(np.float32)
    before, tasks, want = frozen_bytes(model), {}, {}
    for i, method in enumerate((tp.LoRA(2), tp.FullFineTuning(), tp.PrefixTuning(3, hidden=4))):
        tasks[i] = tp.attach(model, method, rng=i, head=i + 2)
        move(tasks[i], np.random.default_rng(i))
        want[i] = outputs(tasks[i], tokens)
    assert [outputs(tuned, tokens) for tuned in tasks.values()] == [*want.values()] and len({*want.values()}) == 3
    merged = tasks[0].merge(in_place=True)
    assert merged is model and frozen_bytes(model) != before
    assert [outputs(tasks[i], tokens) for i in (1, 2)] == [want[1], want[2]]


def test_a_part_on_the_base_as_it_was_is_not_added_to_one_on_the_base_of_now(gpt, tokens):
    model = gpt()
    first = learned(model, tp.LoRA(2))
    model.load_state_dict({name: array + 1 for name, array in model.state_dict().items()})
    second = learned(model, tp.IA3())
    logits = [tuned(tokens).data for tuned in (first, second)]
    with pytest.raises(tp.MethodError, match="on another model"): second.add(first)
    assert all(np.array_equal(tuned(tokens).data, want) for tuned, want in zip((first, second), logits, strict=True))


def test_a_part_that_is_off_is_off_after_saving(gpt, tokens, tmp_path):
    tuned = tp.attach(gpt(), {"a": tp.LoRA(2, targets="all"), "b": tp.IA3()})
    move(tuned, np.random.default_rng(0))
    tuned.detach("a")
    logits = tuned(tokens).data
    tuned.save(tmp_path)
    again = tp.load_adapter(gpt(), tmp_path)
    assert [part.on for part in again.parts.values()] == [False, True] and np.array_equal(again(tokens).data, logits)
    assert np.array_equal(again.reattach("a")(tokens).data, tuned.reattach("a")(tokens).data)
    arrays, meta = load_arrays(tmp_path / "adapter.safetensors")
    for off, says in ([3], "expected names of methods"), (["c"], "no method is called 'c'"), ([["a"]], "expected names"):
        save_arrays(tmp_path / "adapter.safetensors", arrays, meta | {"off": off})
        model = gpt()
        with pytest.raises(ValueError, match=says): tp.load_adapter(model, tmp_path)
        assert model.attached is None
    alone = learned(gpt(), tp.LoRA(2))
    alone.detach("LoRA")
    with pytest.raises(tp.MethodError, match="LoRA is switched off, which a folder of PEFT's cannot say"):
        alone.save(tmp_path / "peft", "peft")
    assert not (tmp_path / "peft").exists()


def test_without_parts_nothing_is_saved_or_trained(gpt, tmp_path):
    model = gpt()
    giver = tp.attach(model, tp.LoRA(2))
    giver.save(tmp_path)
    before = (tmp_path / "adapter.safetensors").read_bytes()
    tp.attach(model, tp.IA3()).add(giver)
    for format in ("tinypeft", "peft"):
        with pytest.raises(tp.MethodError, match="no methods any more"): giver.save(tmp_path, format)
    with pytest.raises(ValueError, match="no methods any more"): tp.train(giver, Noise(), 1, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter.safetensors"]
    assert (tmp_path / "adapter.safetensors").read_bytes() == before


@pytest.mark.parametrize("off", ["part", "disabled"])
@pytest.mark.parametrize("method", [tp.LoRA(2, dropout=0.5), tp.PTuningV2(2, dropout=0.5)], ids=str)
def test_dropout_is_off_after_eval_also_in_what_was_off(method, off, gpt, tokens):
    tuned = tp.attach(gpt(), {"drops": method, "other": tp.IA3()})
    move(tuned, np.random.default_rng(0))
    logits = tuned(tokens).data
    tuned.train()
    if off == "disabled":
        with tuned.disabled(): tuned.eval()
    else:
        tuned.detach("drops")
        tuned.eval()
        tuned.reattach("drops")
    assert not tuned.training and np.array_equal(tuned(tokens).data, logits)


def test_rows_of_several_tasks_are_classified_by_their_heads(gpt, rng):
    model = gpt(np.float64)
    methods = {"prompt": tp.PromptTuning(3), "prompt 2": tp.PromptTuning(3),
               "ptuning": tp.PTuning((1, "context", 2, "target"), separator=5, hidden=4),
               "prefix": tp.PrefixTuning(3, hidden=4), "both": tp.PTuningV2(2), "lora": tp.LoRA(2), "mam": MAM[1]}
    tuned = {}
    for i, (name, method) in enumerate(methods.items()):
        tuned[name] = tp.attach(model, method, *[tp.PromptTuning(1)] * (name == "both"), rng=i, head=i + 2)
        move(tuned[name], rng)
    tasks = [*methods, *list(methods)[::-1]]
    tokens, lengths = rng.integers(0, 37, (len(tasks), 6)), rng.integers(4, 7, len(tasks))
    tokens[:, 2] = 5
    got = tp.mixed_classify(model, tuned, tokens, lengths, tasks)
    logits = tp.mixed_batch(model, tuned, tokens, tasks).data
    for b, task in enumerate(tasks):
        one = tuned[task]
        assert_close(got[b], one.class_logits(tokens[b:b + 1], lengths[b:b + 1]).data[0], 1e-12)
        assert_close(logits[b], one(tokens[b:b + 1]).data[0], 1e-12)
    tuned["bare"] = tp.attach(model, tp.IA3())
    with pytest.raises(tp.MethodError, match="the task 'bare' has no classification head"):
        tp.mixed_classify(model, tuned, tokens[:1], lengths[:1], ["bare"])


def test_a_merged_qlora_is_quantized_again(gpt, tokens):
    scheme = tp.NF4(block_size=16)
    model = tp.quantize(gpt(np.float32), scheme)
    codes = {path: layer.weight for path, layer in model.named_modules() if isinstance(layer, tp.QuantizedLinear)}
    merged = learned(model, tp.LoRA(2)).merge()
    with pytest.raises(ValueError, match="skip_quantized=True"): tp.quantize(merged, scheme)
    tp.quantize(merged, scheme, skip_quantized=True)
    again = {path: layer.weight for path, layer in merged.named_modules() if isinstance(layer, tp.QuantizedLinear)}
    assert again.keys() == codes.keys()
    changed = {path.rsplit(".", 1)[1] for path in codes if not same(codes[path].arrays(), again[path].arrays())}
    assert changed == {"query", "value"}
    both = learned(tp.quantize(gpt(np.float32), scheme), {"a": tp.LoRA(2), "b": tp.LoRA(2)})
    with pytest.raises(ValueError, match="by one change that can be merged"): tp.requantize_error(both, scheme)
    with pytest.raises(ValueError, match="all of these layers are quantized already"):
        tp.quantize(merged, scheme, skip_quantized=True)


def test_a_file_of_several_that_somebody_changed(gpt, tmp_path):
    tp.attach(gpt(np.float32), tp.LoRA(2), tp.IA3()).save(tmp_path)
    path = tmp_path / "adapter.safetensors"
    arrays, meta = load_arrays(path)
    parts = meta["parts"]
    for wrong, says in ((parts | {f"p{i}": parts["IA3"] for i in range(50)}, "52 methods for"),
                        (parts | {"a/b": parts["IA3"]}, "without '/'"), ({"LoRA": 3}, "'LoRA': expected a JSON object"),
                        (parts | {"IA3": parts["IA3"] | {"method": "os.system"}}, "unknown method"),
                        (parts | {"IA3": parts["LoRA"]}, "matched"), ({}, "0 methods for")):
        save_arrays(path, arrays, meta | {"parts": wrong})
        model = gpt(np.float32)
        with pytest.raises((ValueError, KeyError, TypeError), match=says): tp.load_adapter(model, tmp_path)
        assert model.attached is None
    save_arrays(path, arrays, meta | {"format": 2})
    with pytest.raises(ValueError, match="unknown format 2; expected 1"): tp.load_adapter(gpt(np.float32), tmp_path)


def test_each_method_learns_at_its_own_steps(gpt):
    """AdaLoRA prunes and DyLoRA draws its ranks, each on its own layers."""
    tuned = tp.attach(gpt(np.float32), {"ada": METHODS["adalora"], "dy": METHODS["dylora"]})
    tp.train(tuned, Noise(), 6, lr=1e-3, progress=False)
    ranks = [w.rank for w in tuned.parts["ada"].wrappers.values()]
    assert sum(ranks) == 2 * len(ranks) and {w.rank for w in tuned.parts["dy"].wrappers.values()} == {4}
    tuned.set_rank(1)
    assert {w.rank for w in tuned.parts["dy"].wrappers.values()} == {1}
    counts = tuned.summary()
    assert counts.parts == {name: sum(p.size for p in part.added()) for name, part in tuned.parts.items()}
    assert sum(counts.parts.values()) == counts.trained and f"\n    by dy      {counts.parts['dy']:,}\n" in repr(counts)
    assert [w.rank for w in tuned.parts["ada"].wrappers.values()] == ranks


@pytest.mark.parametrize("second", [tp.IA3(), tp.PrefixTuning(3), tp.LoRA(1)], ids=str)
def test_pefts_folder_holds_one_method(gpt, tmp_path, second):
    tuned = tp.attach(gpt(np.float32), tp.LoRA(2), second)
    with pytest.raises(tp.MethodError, match="are several methods, and a folder of PEFT's holds one"):
        tuned.save(tmp_path, "peft")
    assert not list(tmp_path.iterdir())


# -- PEFT as the oracle ----------------------------------------------------------------------------
def race(tuned, theirs, pairs, task, steps=10):
    """Ours and PEFT's losses, with every tensor that is trained the same at the start and at the end."""
    import torch

    from tests.oracles import peft_lora
    with torch.no_grad():
        for ours, p in pairs: p.copy_(torch.as_tensor(ours.data))
    assert sum(p.requires_grad for p in theirs.parameters()) == len(pairs) == len(tuned.trainable_parameters())
    history = tp.train(tuned, task, steps, lr=1e-2, clip=None, schedule_kind="constant", warmup=0, workers=1, progress=False)
    assert_close(history.loss, peft_lora.train(theirs, task, steps, 8, lr=1e-2), 1e-10)
    for ours, p in pairs: assert_close(ours.data, p, 1e-8)


def test_two_loras_learn_together_as_in_peft(gpt):
    peft = pytest.importorskip("peft")
    from tests.oracles import peft_lora
    tuned = tp.attach(gpt(np.float64), {"a": tp.LoRA(2, alpha=4), "b": tp.LoRA(3, alpha=3, targets=("value", "up"))})
    configs = {"a": peft.LoraConfig(r=2, lora_alpha=4, target_modules=["query", "value"]),
               "b": peft.LoraConfig(r=3, lora_alpha=3, target_modules=["value", "up"])}
    with tuned.disabled() as base:
        theirs = peft.get_peft_model(peft_lora.WithLoss(base), configs["a"], "a", autocast_adapter_dtype=False)
    theirs.add_adapter("b", configs["b"], autocast_adapter_dtype=False)
    theirs.base_model.set_adapter(["a", "b"])
    copy_of = lambda path: theirs.get_submodule(f"base_model.model.copy.{path}")
    pairs = [(getattr(wrapper, letter), getattr(copy_of(path), f"lora_{letter}")[name].weight)
             for name, part in tuned.parts.items() for path, wrapper in part.wrappers.items() for letter in "AB"]
    race(tuned, theirs, pairs, Noise())


def test_norms_beside_a_lora_learn_as_modules_to_save_in_peft(gpt):
    peft = pytest.importorskip("peft")
    from tests.oracles import peft_lora
    tuned = tp.attach(gpt(np.float64), tp.LoRA(2, alpha=4), tp.FullFineTuning(("norm1", "final_norm")))
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["query", "value"], modules_to_save=["norm1", "final_norm"])
    with tuned.disabled() as base:
        theirs = peft.get_peft_model(peft_lora.WithLoss(base), config, autocast_adapter_dtype=False)
    copy_of = lambda path: theirs.get_submodule(f"base_model.model.copy.{path}")
    pairs = [(getattr(wrapper, letter), getattr(copy_of(path), f"lora_{letter}")["default"].weight)
             for path, wrapper in tuned.wrappers.items() for letter in "AB"]
    for name, p in tuned.trained.items():
        path, _, kind = name.rpartition(".")
        pairs.append((p, getattr(copy_of(path).modules_to_save["default"], kind)))
    race(tuned, theirs, pairs, Noise())


# -- stacks ----------------------------------------------------------------------------------------
STACKED = {"lora": METHODS["lora"], "ia3": tp.IA3(("query", "key", "up", "down")), "dylora": METHODS["dylora"]}
QUANTIZED = {"nf4": tp.NF4(block_size=16), "awq": tp.AWQ(group_size=16), "fake": tp.FakeQuant(4), "peqa": tp.PEQA(bits=4)}


@pytest.mark.parametrize("order, scheme", [*zip(itertools.permutations(STACKED), [*QUANTIZED, *QUANTIZED][:6], strict=True)])
def test_wrappers_over_wrappers_over_a_quantized_layer_are_merged_from_within(order, scheme, gpt, tokens):
    """Each merge reads the weight of what is below it: of the layer as the parts before have left it."""
    model = tp.quantize(gpt(), QUANTIZED[scheme], calibration=np.tile(tokens, (9, 1)))
    tuned = tp.attach(model, {name: STACKED[name] for name in order})
    move(tuned, np.random.default_rng(0))
    logits = tuned(tokens).data
    one, two, three = order
    for merged in (tuned.merge(), tuned.merge(one), tuned.merge(one, two).merge(three), tuned.merge(one).merge()):
        assert_close(merged(tokens), logits, 1e-11)
    for outer in (two, three):
        with pytest.raises(tp.MethodError, match="merge both, or detach"): tuned.merge(outer)
    with pytest.raises(ValueError, match="by one change that can be merged"): tp.requantize_error(tuned, QUANTIZED["nf4"])


def test_a_wrapper_has_no_weight_for_another_to_read(gpt):
    tuned = tp.attach(gpt(), tp.IA3(("query",), feedforward=None), tp.LoRA(2, targets=("query",)))
    wrapper = tuned.wrappers["blocks.0.attention.query"]
    with pytest.raises(tp.MethodError, match="a ScaledOutput has no weight that another method could read; .*innermost"):
        wrapper.base.dense_weight()
    with pytest.raises(tp.MethodError, match="a ScaledOutput has no weight"): wrapper.merge()


def test_the_snippet_of_the_page_runs(tmp_path, monkeypatch):
    """The first Python of peft/README.md, each `attach` on a model of its own."""
    monkeypatch.chdir(tmp_path)
    page = (Path(tp.__file__).parent / "peft" / "README.md").read_text("utf-8")
    lines = re.search(r"```python\n(.*?)```", page, re.S).group(1).splitlines()
    first = [i for i, line in enumerate(lines) if "tp.attach(" in line]
    assert first == [0, 1] and len(lines) == 7
    for part in lines[:1], lines[1:]:
        names = {"tp": tp, "model": tp.GPT(tp.GPTConfig(37, 24, 64, 2, 4))}
        exec("\n".join(part), names)
    assert (tmp_path / "folder" / "adapter.safetensors").is_file() and list(names["tuned"].parts) == ["style", "norms"]
