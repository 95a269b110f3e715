"""attach and what it gives: on and off, frozen and trained, the head, merging, counts, refusals."""
import copy
import gc
import warnings

import numpy as np
import pytest

import tinypeft as tp
from tests.conftest import make_gpt
from tests.protocol import LENGTHS, Labels, assert_gradients, assert_leaves_base_alone, frozen_bytes, move, outputs
from tinypeft.engine.nn import Module, Parameter
from tinypeft.peft import Wrapper

LORA, FULL, BITFIT, PROBE = tp.LoRA(rank=2), tp.FullFineTuning(), tp.FullFineTuning(targets=("bias",)), tp.LinearProbe()
three = pytest.mark.parametrize("method", [LORA, BITFIT, PROBE], ids=str)          # a wrapper, weights, a head alone


# -- on and off ----------------------------------------------------------------------------------
@three
def test_the_base_stays_as_it_was_objects_and_bytes(method, gpt, tokens):
    model = gpt(np.float32)
    model.blocks[0].norm1.weight.requires_grad = False                        # the user's flags stay, too
    objects, arrays = dict(model.named_modules()), {n: p.data for n, p in model.named_parameters()}
    before, flags, logits = frozen_bytes(model), [p.requires_grad for p in model.parameters()], model(tokens).data
    tuned = tp.attach(model, method, head=3, rng=1)
    tp.train(tuned, Labels(), 3, lr=1e-2)
    learned = outputs(tuned, tokens)
    assert learned != outputs(tp.attach(model, method, head=3, rng=1), tokens)
    assert tuned.detach() is tuned.base is model and model.attached is None and model.head is None
    assert dict(model.named_modules()) == objects
    assert all(p.data is arrays[n] and p.grad is None for n, p in model.named_parameters())
    assert frozen_bytes(model) == before and [p.requires_grad for p in model.parameters()] == flags
    assert np.array_equal(model(tokens).data, logits)
    assert outputs(tuned, tokens) == outputs(tuned.reattach(), tokens) == learned


@three
def test_disabled_is_the_base_and_enabled_again_what_was_learned(method, gpt, tokens):
    model = gpt(np.float32)
    logits = model(tokens).data
    tuned = tp.attach(model, method, head=3)
    move(tuned, np.random.default_rng(0))
    learned = outputs(tuned, tokens)
    with tuned.disabled() as base:
        assert base is tuned.frozen and np.array_equal(tuned(tokens).data, logits) and np.array_equal(base(tokens).data, logits)
        assert tuned.detach() is model
        with pytest.raises(ValueError, match="no classification head"): tuned.class_logits(tokens, LENGTHS)
        with tuned.disabled(): pass
        assert np.array_equal(tuned(tokens).data, logits)
    assert outputs(tuned, tokens) == learned
    with pytest.raises(ZeroDivisionError), tuned.disabled():
        raise ZeroDivisionError
    assert outputs(tuned, tokens) == learned


def test_a_base_has_several_methods_at_once_and_one_method_object_serves_twice(gpt, tokens):
    model = gpt()
    first, second = (tp.attach(model, LORA, rng=rng) for rng in (1, 2))
    plain, b = model(tokens).data, second(tokens).data
    move(first, np.random.default_rng(1))
    assert not np.array_equal(first(tokens).data, plain)
    assert np.array_equal(second(tokens).data, b) and np.array_equal(model(tokens).data, plain)


CHANGES = {"trained": lambda model, tokens: tp.train(model, Tokens(tokens), steps=1, batch_size=2, progress=False),
           "quantized": lambda model, tokens: tp.quantize(model, tp.NF4(block_size=16)),
           "loaded": lambda model, tokens: model.load_state_dict({n: a + 1 for n, a in model.state_dict().items()}),
           "cast": lambda model, tokens: model.to(np.float64),
           "merged in place": lambda model, tokens: moved_lora(model).merge(in_place=True)}


def moved_lora(model):
    tuned = tp.attach(model, LORA)
    move(tuned, np.random.default_rng(5))
    return tuned


@three
@pytest.mark.filterwarnings("ignore:train. this model is the base of a PeftModel")
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_base_does_not_reach_the_peft_model(change, method, gpt, tokens):
    model = gpt(np.float32)
    tuned = tp.attach(model, method, head=3)
    move(tuned, np.random.default_rng(0))
    learned, plain, merged = outputs(tuned, tokens), model(tokens).data, outputs(tuned.merge(), tokens)
    CHANGES[change](model, tokens)
    assert not np.array_equal(model(tokens).data, plain) and model.attached is None
    assert outputs(tuned, tokens) == learned == outputs(tuned.reattach(), tokens)
    with tuned.disabled(): assert np.array_equal(tuned(tokens).data, plain)
    assert outputs(tuned.merge(), tokens) == merged
    assert tuned.merge(in_place=True) is model and outputs(model, tokens) == merged


@pytest.mark.parametrize("made", [lambda tuned: tuned, copy.deepcopy, lambda tuned: tuned.add(tp.IA3()).merge("LoRA")])
def test_training_the_base_of_a_peft_model_warns(made, gpt, tokens):
    tuned = made(tp.attach(gpt(np.float32), LORA))
    model = tuned.base
    with pytest.warns(UserWarning, match="this model is the base of a PeftModel, which computes with the base as it was"):
        CHANGES["trained"](model, tokens)
    del tuned
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CHANGES["trained"](model, tokens)


@three
def test_a_cast_and_a_mode_do_not_reach_the_base_and_the_other_way_round(method, gpt, tokens):
    model = gpt(np.float32)
    tuned, before = tp.attach(model, method, head=3), frozen_bytes(model)
    tuned.to(np.float64).train()
    assert frozen_bytes(model) == before and not any(module.training for _, module in model.named_modules())
    assert tuned(tokens).dtype == np.float64 and frozen_bytes(model.eval()) == before
    assert all(module.training for _, module in [*tuned.named_modules(), *tuned.frozen.named_modules()])


@three
def test_a_copy_is_attached_by_itself(method, gpt, tokens):
    """It has a base of its own: what is done to one does not reach the other."""
    tuned = tp.attach(gpt(np.float32), method, head=3, rng=1)
    move(tuned, np.random.default_rng(0))
    learned, base = outputs(tuned, tokens), frozen_bytes(gpt(np.float32))
    twin = copy.deepcopy(tuned)
    assert frozen_bytes(twin.detach()) == base and twin.base is not tuned.base and outputs(twin, tokens) == learned
    move(twin, np.random.default_rng(1))
    twin.merge(in_place=True)
    assert frozen_bytes(tuned.detach()) == base and outputs(tuned, tokens) == learned


# -- frozen and trained --------------------------------------------------------------------------
@three
def test_training_moves_what_is_trained_and_nothing_else(method, gpt):
    model = gpt(np.float32)
    tuned = tp.attach(model, method, head=3, rng=1)
    trained = {id(p): p.data.copy() for p in tuned.trainable_parameters()}
    frozen = {n: (p, p.data.tobytes()) for n, p in model.named_parameters() if id(p) not in trained}
    assert {id(p) for p in tuned.parameters() if p.requires_grad} == trained.keys()
    seen = []
    tuned.after_step = lambda step, total: seen.append([n for n, (p, _) in frozen.items() if p.grad is not None])
    tp.train(tuned, Labels(), 4, lr=1e-2)
    assert seen == [[]] * 4                                                   # never given a gradient
    assert all(p.data.tobytes() == before for p, before in frozen.values())
    assert all(not np.array_equal(p.data, trained[id(p)]) for p in tuned.trainable_parameters())


def test_full_fine_tuning_trains_a_copy_of_everything(gpt, tokens):
    assert_leaves_base_alone(gpt(), FULL, tokens)
    assert_gradients(tp.attach(gpt(), BITFIT), tokens)
    tuned = tp.attach(gpt(), FULL)
    assert tuned.summary().trained == tuned.summary().total == gpt().n_parameters()
    norms = tp.attach(gpt(), tp.FullFineTuning(targets=("norm1", "blocks.1.mlp.up.bias")))
    assert set(norms.trained) == {"blocks.0.norm1.weight", "blocks.0.norm1.bias", "blocks.1.norm1.weight",
                                  "blocks.1.norm1.bias", "blocks.1.mlp.up.bias"}
    assert set(tp.attach(gpt(), BITFIT).trained) == {n for n, _ in gpt().named_parameters() if n.endswith("bias")}


def test_20_steps_of_full_fine_tuning_equal_pytorchs_numerical(gpt, tokens):
    pytest.importorskip("torch")
    from tests.oracles.torch_gpt import torch_copy
    from tests.protocol import assert_same_race
    model = gpt()
    copy = torch_copy(model)
    theirs = dict(copy.named_parameters())
    tuned = tp.attach(model, FULL)
    assert_same_race(tuned, copy, [(p, theirs[n]) for n, p in tuned.trained.items()], tokens)


def test_a_probe_trains_the_head_alone(gpt, tokens):
    model = gpt(np.float32)
    logits = model(tokens).data
    tuned = tp.attach(model, PROBE, head=3)
    tp.train(tuned, Labels(), 5)
    assert np.array_equal(tuned(tokens).data, logits)
    assert tuned.summary().trained == tuned.summary().stored == 3 * 16 + 3


# -- the head ------------------------------------------------------------------------------------
@three
def test_the_head_reads_the_last_counted_token_and_is_trained_merged_and_taken_off(method, gpt, tokens):
    model = gpt()
    tuned = tp.attach(model, method, head=3)
    move(tuned, np.random.default_rng(0))
    classes = tuned.class_logits(tokens, LENGTHS).data
    assert classes.shape == (3, 3)
    padded = tokens.copy()
    padded[0, 3:] = 0                                                         # what stands after the end does not count
    assert np.array_equal(tuned.class_logits(padded, LENGTHS).data, classes)
    h = tuned.model.hidden(tokens).data[np.arange(3), np.array(LENGTHS) - 1]
    np.testing.assert_allclose(classes, h @ tuned.head.weight.data.T + tuned.head.bias.data, atol=1e-12)
    assert tuned.head.weight in tuned.trainable_parameters() and "head.weight" in tuned.state_dict()
    np.testing.assert_allclose(tuned.merge().class_logits(tokens, LENGTHS).data, classes, atol=1e-12)
    assert tuned.base.head is None


def test_gradients_with_a_head(gpt, tokens):
    tuned = tp.attach(gpt(), LORA, head=3)
    move(tuned, np.random.default_rng(0))
    tp.gradcheck(lambda *_: tuned.class_logits(tokens, LENGTHS), *tuned.trainable_parameters(),
                 directions=2, step=3e-4)


# -- merging -------------------------------------------------------------------------------------
@three
def test_merged_is_wrapped_and_shares_nothing(method, gpt, tokens):
    model = gpt()
    tuned = tp.attach(model, method, head=3)
    move(tuned, np.random.default_rng(0))
    merged = tuned.merge()
    assert type(merged) is tp.GPT and merged.attached is None and all(p.requires_grad for p in merged.parameters())
    assert [type(m) for _, m in merged.named_modules()] == [type(m) for _, m in gpt().named_modules()] + [type(tuned.head)]
    np.testing.assert_allclose(merged(tokens).data, tuned(tokens).data, rtol=0, atol=1e-11)
    for p in merged.parameters(): p.data += 1
    assert not np.isclose(merged(tokens).data, tuned(tokens).data).all()
    assert frozen_bytes(tuned.detach()) == frozen_bytes(gpt())
    again = tp.attach(gpt(), LORA).merge()
    assert tp.attach(again, LORA).base is again                               # a plain model, ready for the next method


# -- counts --------------------------------------------------------------------------------------
def test_summary_counts_and_prints(gpt):
    summary = tp.attach(gpt(np.float32), LORA).summary()
    n = gpt().n_parameters()
    assert (summary.trained, summary.stored, summary.total, summary.nbytes) == (256, 256, n + 256, 1024)
    assert summary.share == 256 / (n + 256)
    text, html = repr(summary), summary._repr_html_()
    for part in ("LoRA(rank=2)", "256", f"{n + 256:,}", "1.0 KiB", f"{100 * summary.share:.2f} %"):
        assert part in text and part in html
    assert html.count("<tr>") == 4
    probe = tp.attach(gpt(), LORA, head=3).summary()
    assert probe.trained == 256 + 3 * 16 + 3 and probe.total == n + probe.trained


def test_ranks_are_reported_by_those_that_have_them(gpt):
    assert set(tp.attach(gpt(), LORA).ranks().values()) == {2}
    with pytest.raises(tp.MethodError, match="ranks: .* a product B A"): tp.attach(gpt(), BITFIT).ranks()


# -- the protocol of wrappers --------------------------------------------------------------------
def method_with(base, **members):
    """A method whose wrappers are of a class of one's own, with these members."""
    class Own(base):
        def __init__(self, layer):
            self.base, self.l, self.moments = layer, Parameter(np.ones(layer.d_out, np.float32)), np.zeros(3)
        def forward(self, x): return self.base(x) * self.l
    for name, value in members.items(): setattr(Own, name, value)

    class Mine(tp.peft.Method):
        def wrap(self, model, rng): return {"blocks.0.mlp.up": Own(model.get("blocks.0.mlp.up"))}
    return Mine()


def test_a_wrapper_has_defaults(gpt, tokens, tmp_path):
    tuned = tp.attach(gpt(np.float32), method_with(Wrapper))
    with pytest.raises(tp.MethodError, match="puts a Own at blocks.0.mlp.up, which has no `merge`"): tuned.merge()
    (wrapper,) = tuned.wrappers.values()
    with pytest.raises(tp.MethodError, match="merge: a Own changes more than a weight"): wrapper.merge()
    with pytest.raises(tp.MethodError, match="ranks: .* a product B A"): tuned.ranks()
    with pytest.raises(tp.MethodError, match="set_rank: .* has no other rank"): tuned.set_rank(2)
    with pytest.raises(tp.MethodError, match="combine: .* is not a LoRA"): tp.combine({tuned: 1})
    assert {"Mine/blocks.0.mlp.up.moments"} == {*tuned.state_dict(False)} - {"Mine/blocks.0.mlp.up.l"}
    small = tp.attach(gpt(np.float32), method_with(Wrapper, only_to_train=("moments",)))
    assert {*small.state_dict()} == {*tuned.state_dict()} and {*small.state_dict(False)} == {"Mine/blocks.0.mlp.up.l"}


def test_a_wrapper_that_is_none_is_refused_by_name(gpt):
    model = gpt(np.float32)
    before = frozen_bytes(model)
    with pytest.raises(TypeError, match="puts a Own at blocks.0.mlp.up; let .* inherit from tinypeft.peft.method.Wrapper"):
        tp.attach(model, method_with(Module))
    assert model.attached is None and frozen_bytes(model) == before


def test_a_misspelled_attribute_of_a_wrapper_is_refused():
    for name, meant in {"only_to_trian": "only_to_train", "inner_most": "innermost", "onlytotrain": "only_to_train"}.items():
        with pytest.raises(TypeError, match=f"Own has {name}; did you mean {meant}?"): type("Own", (Wrapper,), {name: ()})
    type("Own", (Wrapper,), {"merged": 1, "ranks": 2, "inner": 3, "trained": 4, "train_all": 5})


# -- refusals ------------------------------------------------------------------------------------
@pytest.mark.parametrize("make, error, words", [
    (lambda: tp.attach(tp.attach(make_gpt(), LORA), LORA), TypeError, "got PeftModel; its base is what detach"),
    (lambda: tp.attach(tp.attach(make_gpt(), LORA).model, BITFIT), ValueError, r"inside a PeftModel, with LoRA\(rank=2\)"),
    (lambda: tp.attach(tp.attach(make_gpt(), LORA).frozen, BITFIT), ValueError, "inside a PeftModel, as it was at attach"),
    (lambda: tp.attach(make_gpt().blocks[0], LORA), TypeError, "expected a language model, got Block"),
    (lambda: tp.attach(make_gpt(), "lora"), TypeError, "such as LoRA"),
    (lambda: tp.attach(make_gpt(), tp.LoRA), TypeError, "such as LoRA"),
    (lambda: tp.attach(make_gpt(), LORA, head=1), tp.MethodError, "at least 2, got 1"),
    (lambda: tp.attach(make_gpt(), PROBE), tp.MethodError, "give head="),
    (lambda: tp.attach(make_gpt(), tp.FullFineTuning(targets=("c_attn",))), ValueError, "matches none of"),
    (lambda: tp.attach(make_gpt(), tp.FullFineTuning(targets="bias")), tp.MethodError, "tuple of names"),
    (lambda: tp.attach(tp.quantize(make_gpt(np.float32), tp.NF4(block_size=16)), FULL), tp.MethodError, "quantized")])
def test_what_makes_no_sense_raises_and_leaves_the_model_alone(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_a_refused_method_leaves_no_trace(gpt):
    model = gpt()
    before, flags = frozen_bytes(model), [p.requires_grad for p in model.parameters()]
    for method, head in ((tp.LoRA(rank=17), None), (LORA, 0), (tp.FullFineTuning(targets=("x",)), None)):
        with pytest.raises(ValueError): tp.attach(model, method, head=head)
    assert model.attached is None and frozen_bytes(model) == before
    assert [p.requires_grad for p in model.parameters()] == flags


class Tokens:
    """A task whose every batch is the same tokens."""
    def __init__(self, tokens): self.tokens = tokens
    def batch(self, split, size, rng): return (self.tokens[:size],)
    def count(self, batch): return batch[0][:, 1:].size
    def loss(self, model, batch): return tp.functional.cross_entropy(model(batch[0][:, :-1]), batch[0][:, 1:])
