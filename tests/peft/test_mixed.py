"""Batches of several tasks: every row equals its own method alone."""
from dataclasses import dataclass

import numpy as np
import pytest

import tinypeft as tp
from tests.protocol import frozen_bytes, move
from tests.toys import Noise

METHODS = {"prompt": tp.PromptTuning(3), "prompt2": tp.PromptTuning(3), "long": tp.PromptTuning(5),
           "ptuning": tp.PTuning((1, "context", 2, "target"), separator=5, hidden=4),
           "prefix": tp.PrefixTuning(3, hidden=4), "v2": tp.PTuningV2(3),
           "lora": tp.LoRA(rank=2), "lora2": tp.LoRA(rank=2),
           "adapter": tp.BottleneckAdapter(4), "parallel": tp.ParallelAdapter(4, beside="both"),
           "full": tp.FullFineTuning()}


def tune(model, methods, rng):
    """All of them of one model."""
    tuned = {name: tp.attach(model, method, rng=i) for i, (name, method) in enumerate(methods.items())}
    for t in tuned.values(): move(t, rng)
    return tuned


@pytest.fixture
def batch(gpt, rng):
    """A model, its tuned tasks, tokens with two rows for every task and for the base, and what each row must give."""
    model = gpt()
    tuned = tune(model, METHODS, rng)
    tasks = [*METHODS, None, *list(METHODS)[::-1], None]
    tokens = rng.integers(0, 37, (len(tasks), 6))
    tokens[:, 2] = 5
    want = np.empty((*tokens.shape, 37))
    for b, task in enumerate(tasks):
        want[b] = (tuned[task] if task else model)(tokens[b:b + 1]).data[0]
    return model, tuned, tokens, tasks, want


def test_every_row_equals_its_method_alone(batch):
    model, tuned, tokens, tasks, want = batch
    got = tp.mixed_batch(model, tuned, tokens, tasks)
    np.testing.assert_allclose(got.data, want, rtol=0, atol=1e-10)
    assert not got.requires_grad
    gaps = [np.abs(want[i] - want[j]).max() for i in range(12) for j in range(i)]
    assert min(gaps) > 1e-3                                              # no two rows would do for each other


def test_rows_with_equally_many_virtual_tokens_share_a_pass(batch, monkeypatch):
    model, tuned, tokens, tasks, _ = batch
    rows, forward = [], tp.GPT.forward
    monkeypatch.setattr(tp.GPT, "forward", lambda self, x, **seams: rows.append(len(x)) or forward(self, x, **seams))
    prompts = [b for b, t in enumerate(tasks) if t in ("prompt", "prompt2", "ptuning")]
    tp.mixed_batch(model, tuned, tokens[prompts], [tasks[b] for b in prompts])
    assert rows == [len(prompts)] == [6]
    rows.clear()
    tp.mixed_batch(model, tuned, tokens, tasks)
    # three prompts of 3, two prefixes of 3; a prompt of 5; the base; the two LoRAs, both adapters and full fine-tuning
    assert sorted(rows) == [2, 2, 2, 2, 2, 2, 2, 4, 6]


def test_leaves_everything_as_it_was(batch):
    model, tuned, tokens, tasks, _ = batch
    read = lambda: [(vars(t).copy(), frozen_bytes(t)) for t in tuned.values()]
    state, flags, ours = frozen_bytes(model), {n: p.requires_grad for n, p in model.named_parameters()}, read()
    tp.mixed_batch(model, tuned, tokens, tasks)
    assert frozen_bytes(model) == state and {n: p.requires_grad for n, p in model.named_parameters()} == flags
    assert model.attached is None and read() == ours


def test_models_of_their_own(gpt, rng):
    """Tasks of other models of the same sizes."""
    model = gpt()
    tuned = {name: tp.attach(gpt(rng=i), METHODS[name], rng=1) for i, name in enumerate(("prefix", "lora", "prompt"))}
    for t in tuned.values(): move(t, rng)
    tokens, tasks = rng.integers(0, 37, (4, 6)), ["lora", "prompt", None, "prefix"]
    got = tp.mixed_batch(model, tuned, tokens, tasks).data
    for b, task in enumerate(tasks):
        alone = (tuned[task] if task else model)(tokens[b:b + 1]).data[0]
        np.testing.assert_allclose(got[b], alone, rtol=0, atol=1e-10)


@dataclass(frozen=True)
class PromptAndBiases(tp.PromptTuning):
    def trained(self, model):
        return [name for name, _ in model.named_parameters() if name.endswith("bias")]


def test_a_prompt_that_comes_with_other_changes_has_a_pass_of_its_own(gpt, rng):
    model = gpt()
    tuned = tune(model, {"prompt": tp.PromptTuning(3), "both": PromptAndBiases(3)}, rng)
    tokens = rng.integers(0, 37, (2, 6))
    got = tp.mixed_batch(model, tuned, tokens, ["both", "prompt"]).data
    for b, task in enumerate(("both", "prompt")):
        np.testing.assert_allclose(got[b], tuned[task](tokens[b:b + 1]).data[0], rtol=0, atol=1e-10)


def test_what_it_refuses(batch, gpt):
    model, tuned, tokens, tasks, _ = batch
    with pytest.raises(ValueError, match="24 rows but 2 tasks"):
        tp.mixed_batch(model, tuned, tokens, ["lora", "prompt"])
    with pytest.raises(ValueError, match="row 0 has the task 'poetry'; there are 'prompt'"):
        tp.mixed_batch(model, tuned, tokens, ["poetry"] * 24)
    with pytest.raises(TypeError):
        tp.mixed_batch(model, {"a": model}, tokens, ["a"] * 24)


@pytest.mark.filterwarnings("ignore:train. this model is the base")
@pytest.mark.parametrize("change", [tp.plant_outliers, lambda model: tp.quantize(model, tp.NF4(block_size=16)),
                                    lambda model: tp.train(model, Noise(), 2, progress=False)],
                         ids=["outliers", "NF4", "training"])
def test_a_base_that_was_changed_later_changes_its_own_rows_only(change, batch):
    model, tuned, tokens, tasks, want = batch
    change(model)
    changed = [b for b, task in enumerate(tasks) if task is None]
    want[changed] = [model(tokens[b:b + 1]).data[0] for b in changed]
    np.testing.assert_allclose(tp.mixed_batch(model, tuned, tokens, tasks).data, want, rtol=0, atol=1e-10)


# -- virtual tokens that share a pass --------------------------------------------------------------
def assert_rows(model, tuned, tokens, tasks, tolerance=1e-10):
    """Every row equals its method alone, in the model's dtype."""
    logits = tp.mixed_batch(model, tuned, tokens, tasks).data
    for b, task in enumerate(tasks):
        alone = tuned[task](tokens[b:b + 1]).data[0]
        assert logits.dtype == alone.dtype
        np.testing.assert_allclose(logits[b], alone, rtol=0, atol=tolerance)


def test_virtual_tokens_of_one_sum_but_other_splits_have_passes_of_their_own(gpt, rng):
    model, tuned = gpt(), {}
    for name, (P, Q) in {"3 + 5": (3, 5), "5 + 3": (5, 3), "again": (3, 5)}.items():
        tuned[name] = tp.attach(model, tp.PrefixTuning(P, hidden=4), tp.PromptTuning(Q))
        move(tuned[name], rng)
    assert_rows(model, tuned, rng.integers(0, 37, (4, 6)), ["3 + 5", "5 + 3", "again", "5 + 3"])


@pytest.mark.parametrize("name", METHODS)
def test_a_task_that_was_cast(name, gpt, rng):
    model = gpt(np.float32)
    tuned = tp.attach(model, METHODS[name], head=3)
    move(tuned, rng)
    tuned.to(np.float64)
    model.to(np.float64)
    tokens = rng.integers(0, 37, (2, 6))
    tokens[:, 2] = 5
    classes = tp.mixed_classify(model, {"a": tuned}, tokens, [6, 4], ["a", "a"])
    assert_rows(model, {"a": tuned}, tokens, ["a", "a"])
    alone = tuned.class_logits(tokens, [6, 4]).data
    assert alone.dtype == classes[0].dtype == np.float64
    np.testing.assert_allclose(np.stack(classes), alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", [tp.PrefixTuning(3, hidden=4, dropout=0.5), tp.LoRA(2, dropout=0.5)], ids=str)
def test_dropout_is_that_of_the_task_and_not_of_the_base(method, gpt, rng):
    model = gpt(dropout=0.5)
    tuned = tp.attach(model, method)
    move(tuned, rng)
    model.train()
    tokens = rng.integers(0, 37, (2, 6))
    assert_rows(model, {"a": tuned}, tokens, ["a", "a"])
    tuned.train()
    assert np.ptp([tp.mixed_batch(model, {"a": tuned}, tokens, ["a", "a"]).data for _ in range(2)], 0).max() > 1e-3


# -- refusals --------------------------------------------------------------------------------------
def test_a_refusal_names_the_task_and_the_reason(batch):
    model, tuned, tokens, tasks, _ = batch
    few = tokens[:2] * 0
    with pytest.raises(tp.MethodError, match="^mixed_batch: task 'ptuning': .*separators"):
        tp.mixed_batch(model, tuned, few, [None, "ptuning"])
    long = np.zeros((2, model.config.context_length - 2), int)
    with pytest.raises(tp.MethodError, match="^mixed_batch: task 'prompt', 'prompt2': .*exceed the context"):
        tp.mixed_batch(model, tuned, long, ["prompt", "prompt2"])
    with pytest.raises(tp.MethodError, match="^mixed_classify: task 'v2': .*exceed the context"):
        tp.attach(model, tp.LinearProbe(), head=3).merge(in_place=True)
        tuned["v2"] = tp.attach(model, tp.PTuningV2(3))
        tp.mixed_classify(model, tuned, long, [3, 3], ["v2", "v2"])


@pytest.mark.parametrize("name", ["prompt", "lora"])
def test_a_method_that_was_given_away_serves_no_row(name, batch):
    model, tuned, tokens, _, _ = batch
    tp.attach(model, tp.IA3()).add(tuned[name])
    reason = f"task '{name}': this PeftModel has no methods any more"
    with pytest.raises(tp.MethodError, match=f"^mixed_batch: {reason}"):
        tp.mixed_batch(model, tuned, tokens[:2], [name, None])
    with pytest.raises(tp.MethodError, match=f"^mixed_classify: {reason}"):
        tp.mixed_classify(model, tuned, tokens[:2], [6, 6], [name, name])


@pytest.mark.parametrize("name", ["prompt", "lora", "full"])
def test_a_method_that_is_disabled_gives_what_the_base_gives(name, batch):
    model, tuned, tokens, _, _ = batch
    with tuned[name].disabled():
        logits = tp.mixed_batch(model, tuned, tokens[:2], [name, None]).data
    np.testing.assert_allclose(logits, model(tokens[:2]).data, rtol=0, atol=1e-10)
