"""Batches of several tasks: every row equals its own method alone."""
from dataclasses import dataclass

import numpy as np
import pytest

import tinypeft as tp
from tests.protocol import frozen_bytes, move
from tinypeft.peft import attachment

METHODS = {"prompt": tp.PromptTuning(3), "prompt2": tp.PromptTuning(3), "long": tp.PromptTuning(5),
           "ptuning": tp.PTuning((1, "context", 2, "target"), separator=5, hidden=4),
           "prefix": tp.PrefixTuning(3, hidden=4), "v2": tp.PTuningV2(3),
           "lora": tp.LoRA(rank=2), "lora2": tp.LoRA(rank=2),
           "adapter": tp.BottleneckAdapter(4), "parallel": tp.ParallelAdapter(4, beside="both"),
           "full": tp.FullFineTuning()}


def tune(model, methods, rng):
    """All of them on one model, one after the other, all detached."""
    tuned = {}
    for i, (name, method) in enumerate(methods.items()):
        tuned[name] = tp.attach(model, method, rng=i)
        move(tuned[name], rng)
        tuned[name].detach()
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
        if task: tuned[task].reattach()
        want[b] = (tuned[task] if task else model)(tokens[b:b + 1]).data[0]
        if task: tuned[task].detach()
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


@pytest.mark.parametrize("on", ["prompt", "lora", "full", "parallel", None])
def test_leaves_everything_as_it_was(on, batch):
    model, tuned, tokens, tasks, _ = batch
    if on: tuned[on].reattach()
    state, flags = frozen_bytes(model), {n: p.requires_grad for n, p in model.named_parameters()}
    ours = {name: {n: a.tobytes() for n, a in t.state_dict().items()} for name, t in tuned.items()}
    tp.mixed_batch(model, tuned, tokens, tasks)
    assert model.attached is (METHODS[on] if on else None)
    assert [name for name, t in tuned.items() if t.active] == ([on] if on else [])
    assert frozen_bytes(model) == state and {n: p.requires_grad for n, p in model.named_parameters()} == flags
    assert ours == {name: {n: a.tobytes() for n, a in t.state_dict().items()} for name, t in tuned.items()}


def test_models_of_their_own(gpt, rng):
    """Tasks whose methods sit on other models of the same sizes, attached all the time."""
    model = gpt()
    tuned = {name: tp.attach(gpt(rng=i), METHODS[name], rng=1) for i, name in enumerate(("prefix", "lora", "prompt"))}
    for t in tuned.values(): move(t, rng)
    tokens, tasks = rng.integers(0, 37, (4, 6)), ["lora", "prompt", None, "prefix"]
    got = tp.mixed_batch(model, tuned, tokens, tasks).data
    for b, task in enumerate(tasks):
        alone = (tuned[task] if task else model)(tokens[b:b + 1]).data[0]
        np.testing.assert_allclose(got[b], alone, rtol=0, atol=1e-10)
    assert all(t.active for t in tuned.values()) and model.attached is None


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
        np.testing.assert_allclose(got[b], tuned[task].reattach()(tokens[b:b + 1]).data[0], rtol=0, atol=1e-10)
        tuned[task].detach()


def test_the_state_is_restored_when_a_row_fails(batch):
    model, tuned, tokens, tasks, _ = batch
    tuned["lora"].reattach()
    tokens[tasks.index("ptuning")] = 9                                   # its separator is gone
    with pytest.raises(ValueError, match="separators"):
        tp.mixed_batch(model, tuned, tokens, tasks)
    assert tuned["lora"].active


def test_what_it_refuses(batch, gpt):
    model, tuned, tokens, tasks, _ = batch
    with pytest.raises(ValueError, match="24 rows but 2 tasks"):
        tp.mixed_batch(model, tuned, tokens, ["lora", "prompt"])
    with pytest.raises(ValueError, match="row 0 has the task 'poetry'; there are 'prompt'"):
        tp.mixed_batch(model, tuned, tokens, ["poetry"] * 24)
    with pytest.raises(TypeError):
        tp.mixed_batch(model, {"a": model}, tokens, ["a"] * 24)
    tuned["lora"].reattach()
    others = {name: t for name, t in tuned.items() if name != "lora"}
    with pytest.raises(tp.MethodError, match="not among the tasks' methods"):
        tp.mixed_batch(model, others, tokens[:1], ["prompt"])
    assert tuned["lora"].active


@pytest.mark.parametrize("name", ["prompt", "prefix", "lora"])
def test_a_base_that_was_changed_serves_no_task(name, batch):
    model, tuned, tokens, tasks, _ = batch
    tp.plant_outliers(model)
    with pytest.raises(tp.MethodError, match="learned on a base that was changed"):
        tp.mixed_batch(model, {name: tuned[name]}, tokens[:2], [name, None])


# -- virtual tokens that share a pass --------------------------------------------------------------
def assert_rows(model, tuned, tokens, tasks, tolerance=1e-10):
    """Every row equals its method alone, in the model's dtype."""
    logits = tp.mixed_batch(model, tuned, tokens, tasks).data
    for b, task in enumerate(tasks):
        alone = tuned[task].reattach()(tokens[b:b + 1]).data[0]
        tuned[task].detach()
        assert logits.dtype == alone.dtype
        np.testing.assert_allclose(logits[b], alone, rtol=0, atol=tolerance)


def test_virtual_tokens_of_one_sum_but_other_splits_have_passes_of_their_own(gpt, rng):
    model, tuned = gpt(), {}
    for name, (P, Q) in {"3 + 5": (3, 5), "5 + 3": (5, 3), "again": (3, 5)}.items():
        tuned[name] = tp.attach(model, tp.PrefixTuning(P, hidden=4), tp.PromptTuning(Q))
        move(tuned[name], rng)
        tuned[name].detach()
    assert_rows(model, tuned, rng.integers(0, 37, (4, 6)), ["3 + 5", "5 + 3", "again", "5 + 3"])


@pytest.mark.parametrize("name", METHODS)
def test_a_model_cast_while_the_method_was_off(name, gpt, rng):
    """The method follows the model: its dtype, and whether there is dropout."""
    model = gpt(np.float32)
    tuned = tp.attach(model, METHODS[name], head=3)
    move(tuned, rng)
    tuned.detach()
    model.to(np.float64)
    tokens = rng.integers(0, 37, (2, 6))
    tokens[:, 2] = 5
    classes = tp.mixed_classify(model, {"a": tuned}, tokens, [6, 4], ["a", "a"])
    assert_rows(model, {"a": tuned}, tokens, ["a", "a"])
    alone = tuned.reattach().class_logits(tokens, [6, 4]).data
    assert alone.dtype == classes[0].dtype == np.float64
    np.testing.assert_allclose(np.stack(classes), alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", [tp.PrefixTuning(3, hidden=4, dropout=0.5), tp.LoRA(2, dropout=0.5)], ids=str)
def test_dropout_is_off_if_the_model_was_switched_to_eval_meanwhile(method, gpt, rng):
    model = gpt()
    tuned = tp.attach(model, method)
    move(tuned, rng)
    tuned.train()
    tuned.detach()
    model.eval()
    assert_rows(model, {"a": tuned}, rng.integers(0, 37, (2, 6)), ["a", "a"])


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
    tp.attach(model, tp.IA3()).add(tuned[name]).detach()
    with pytest.raises(tp.MethodError, match=f"^mixed_batch: task '{name}': this PeftModel has no methods any more"):
        tp.mixed_batch(model, tuned, tokens[:2], [name, None])


def test_a_method_that_is_disabled_stays_so(batch):
    model, tuned, tokens, _, _ = batch
    with tuned["lora"].reattach().disabled():
        with pytest.raises(tp.MethodError, match="^mixed_batch: task 'lora': reattach: this model is on loan"):
            tp.mixed_batch(model, tuned, tokens[:1], ["lora"])
        assert tuned["lora"].is_disabled
    assert tuned["lora"].active


def test_a_ctrl_c_while_a_task_comes_off_brings_back_the_method_that_was_on(batch, monkeypatch):
    model, tuned, tokens, _, _ = batch
    tuned["lora"].reattach()
    logits, detach = tuned["lora"](tokens).data, tp.PeftModel.detach

    def stopped(self):
        if self is not tuned["lora2"]: return detach(self)
        monkeypatch.undo()
        raise KeyboardInterrupt
    monkeypatch.setattr(tp.PeftModel, "detach", stopped)
    with pytest.raises(KeyboardInterrupt): tp.mixed_batch(model, tuned, tokens[:1], ["lora2"])
    assert tuned["lora"].active and np.array_equal(tuned["lora"](tokens).data, logits)


# -- how often the base is read --------------------------------------------------------------------
def test_the_base_is_read_once_however_many_tasks_there_are(batch, monkeypatch):
    model, tuned, tokens, tasks, _ = batch
    arrays = len(model.state_dict())
    tuned["lora"].reattach()
    read, checksum = [], attachment.checksum
    monkeypatch.setattr(attachment, "checksum", lambda array: read.append(array) or checksum(array))
    tp.mixed_batch(model, tuned, tokens, tasks)
    assert len(read) == arrays and tuned["lora"].active
    monkeypatch.undo()
    model.blocks[0].mlp.up.weight.data[0, 0] += 1.0            # by nobody but an array: the next call reads it
    with pytest.raises(tp.MethodError, match="^mixed_batch: task 'prompt': .*mlp.up.weight has other numbers"):
        tp.mixed_batch(model, {"prompt": tuned["prompt"], "lora": tuned["lora"]}, tokens[:1], ["prompt"])
