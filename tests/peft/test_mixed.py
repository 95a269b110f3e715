"""Batches of several tasks: every row equals its own method alone."""
from dataclasses import dataclass

import numpy as np
import pytest

import tinypeft as tp
from tests.protocol import frozen_bytes, move

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
