"""What finetune says before the long work: which model, how many passes, how long. The plan changes nothing."""
import re
from argparse import Namespace

import numpy as np
import pytest

import tinypeft as tp
from tinypeft.commands import plan
from tinypeft.commands.cli import main
from tinypeft.commands.training import rate_line

PAIRS = [(f"What is {i}?", "It is " + "one and " * (i % 7) + "no more.") for i in range(40)]


@pytest.fixture
def pairs(tmp_path):
    file = tmp_path / "qa.csv"
    file.write_text("\n".join(["question,answer", *map(",".join, PAIRS)]) + "\n")
    return file


def args(**given):
    return Namespace(**{"find_rate": False, "validate_every": None, "quick": False} | given)


def options(rows):
    return {"batch_size": rows, "seed": 0, "accumulate": 1, "checkpoint_activations": False}


def test_finetune_says_what_it_will_do_first(capsys, pairs, monkeypatch):
    """A large model takes 30 steps of 2 rows; flags are followed; the shipped base says what it is for."""
    monkeypatch.setattr(plan, "LARGE", 64)
    assert main(["finetune", "lora", "--pairs", str(pairs)]) == 0
    model, *_, size = capsys.readouterr().out.partition(" of tests")[0].splitlines()
    assert model.startswith("model: the shipped base, which is for lessons") and model.endswith("--model smollm2 takes")
    assert re.fullmatch(r"30 steps of 2 rows: 2\.1 passes over 28 rows; about \d+ s of training and \d+ s", size)
    assert main(["finetune", "lora", "--pairs", str(pairs), "--model", "shipped", "--steps", "3", "--batch-size", "4"]) == 0
    out = capsys.readouterr().out
    assert f"\nlearning rate {tp.LoRA.learning_rate:g}: LoRA's own {tp.LoRA.learning_rate:g} (--lr sets another)\n" in out
    model, *_, size = out.partition(" of tests")[0].splitlines()
    assert model.endswith("--model smollm2 takes a better one")
    assert size.startswith("3 steps of 4 rows: 0.4 passes over 28 rows; about ")
    assert " of tests; --steps 7 would read every row once, --steps 14 twice\n" in out
    assert main(["finetune", "lora", "--pairs", str(pairs), "--find-rate", "--steps", "2"]) == 0
    assert re.search(r"^2 steps of 2 rows: 0\.1 passes over 28 rows; about \d+ s of search$", capsys.readouterr().out, re.M)


@pytest.mark.parametrize("given, head_lr, line", [
    ({}, None, "learning rate 0.014: LoRA's own 0.01 × 1.41 for a model 64 wide (--lr sets another)"),
    ({"csv": "a.csv"}, 1e-3, "learning rate 0.0028: LoRA's own 0.01 × 1.41 for a model 64 wide × 0.2 to start at the probe; "
                             "of the head 0.001 (--lr sets another)"),
    ({"lr": 0.002, "rates": ["B=16"]}, None, "learning rate 0.002, by --lr; times B=16")])
def test_the_learning_rate_is_said_with_its_reasons(given, head_lr, line):
    config = tp.GPTConfig(vocab_size=9, context_length=8, d_model=64, n_layers=1, n_heads=2)
    tuned = tp.attach(tp.GPT(config), tp.LoRA(rank=2))
    names = "csv text pairs text_column label_column prompt_column answer_column context skip_empty".split()
    assert rate_line(Namespace(**dict.fromkeys(names) | {"lr": None, "rates": []} | given), tuned, {"head_lr": head_lr}) == line


def test_passes_over_a_text_count_its_tokens():
    task = tp.tasks.domain()
    tokens = len(task.data("train"))
    said = plan.passes_over(task, 30, 2)
    assert said == f"30 steps of 2 windows of 128 tokens: {30 * 2 * 128 / tokens:.1g} passes over {tokens:,} tokens"


@pytest.mark.parametrize("seconds, words", [(0.2, "1 s"), (59.6, "60 s"), (100, "2 minutes"), (900, "15 minutes")])
def test_durations(seconds, words):
    assert plan.duration(seconds) == words


def test_the_time_is_in_proportion_to_the_tokens_with_padding(monkeypatch, pairs):
    """A step and a batch of the test take a second each here; what train and evaluate do then takes so much longer."""
    model = tp.load_pretrained()
    task, tuned = tp.tasks.pairs(pairs, model), tp.attach(model, tp.LoRA(rank=2))
    monkeypatch.setattr(plan, "seconds_of", lambda job: job() and 1.0 or 1.0)
    draw = lambda s: task.batch("train", 3, np.random.default_rng([0, s]))[0].size
    training, testing = plan.expected_seconds(args(), tuned, task, 10, options(3))
    assert training == pytest.approx(sum(map(draw, range(10))) / draw(0))
    tokens = lambda split: sum(batch[0].size for batch in task.batches_by_length(split, 16))
    assert testing == pytest.approx(2)                   # the test is one batch, before and after
    validated, _ = plan.expected_seconds(args(), tuned, task, 10, options(3) | {"eval_every": 4})
    assert validated - training == pytest.approx(3 * tokens("validation") / tokens("test"))
    searched, none = plan.expected_seconds(args(find_rate=True), tuned, task, 10, options(3))
    assert searched == training + 10 and none == 0       # it validates a batch after each step


def test_the_plan_changes_nothing(pairs):
    """Training after it is the same, bit for bit, also where dropout and ranks are drawn."""
    states = []
    for planned in (False, True):
        model = tp.load_pretrained()
        task = tp.tasks.pairs(pairs, model)
        tuned = tp.attach(model, tp.LoRA(rank=2, dropout=0.2), tp.DyLoRA(rank=2, targets=("mlp.up",)), rng=0)
        if planned: plan.planned(args(), tuned, task, 2, options(2))
        assert all(p.grad is None for p in tuned.parameters())
        tp.train(tuned, task, 2, batch_size=2, progress=False)
        states.append(tuned.state_dict())
    assert all(np.array_equal(a, states[1][name]) for name, a in states[0].items())
