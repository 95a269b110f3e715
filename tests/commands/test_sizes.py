"""What finetune says before the long work: which model, how many passes over the rows, which rate. It runs nothing for that."""
from argparse import Namespace

import pytest

import tinypeft as tp
from tinypeft.commands import sizes
from tinypeft.commands.cli import main
from tinypeft.commands.training import rate_line

PAIRS = [(f"What is {i}?", "It is " + "one and " * (i % 7) + "no more.") for i in range(40)]


@pytest.fixture
def pairs(tmp_path):
    file = tmp_path / "qa.csv"
    file.write_text("\n".join(["question,answer", *map(",".join, PAIRS)]) + "\n")
    return file


def test_finetune_says_what_it_will_do_first(capsys, pairs, monkeypatch):
    """A large model takes 30 steps of 2 rows; flags are followed; the shipped base says what it is for."""
    monkeypatch.setattr(sizes, "LARGE", 64)
    assert main(["finetune", "lora", "--pairs", str(pairs)]) == 0
    model, *lines = capsys.readouterr().out.splitlines()
    assert model.startswith("model: the shipped base, which is for lessons") and model.endswith("--model smollm2 takes")
    assert "30 steps of 2 rows: 2.1 passes over 28 rows" in lines
    assert main(["finetune", "lora", "--pairs", str(pairs), "--model", "shipped", "--steps", "3", "--batch-size", "4"]) == 0
    out = capsys.readouterr().out
    assert f"\nlearning rate {tp.LoRA.learning_rate:g}: LoRA's own {tp.LoRA.learning_rate:g} (--lr sets another)\n" in out
    assert out.splitlines()[0].endswith("--model smollm2 takes a better one")
    size = "3 steps of 4 rows: 0.4 passes over 28 rows; --steps 7 would read every row once, --steps 14 twice"
    assert f"\n{size}\n" in out
    assert main(["finetune", "lora", "--pairs", str(pairs), "--find-rate", "--steps", "2"]) == 0
    assert "\n2 steps of 2 rows: 0.1 passes over 28 rows\n" in capsys.readouterr().out


@pytest.mark.parametrize("given, head_lr, line", [
    ({}, None, "learning rate 0.014: LoRA's own 0.01 × 1.41 for a model 64 wide (--lr sets another)"),
    ({"csv": "a.csv"}, 1e-3, "learning rate 0.0028: LoRA's own 0.01 × 1.41 for a model 64 wide × 0.2 to start at the probe; "
                             "of the head 0.001 (--lr sets another)"),
    ({"lr": 0.002}, None, "learning rate 0.002, by --lr")])
def test_the_learning_rate_is_said_with_its_reasons(given, head_lr, line):
    config = tp.GPTConfig(vocab_size=9, context_length=8, d_model=64, n_layers=1, n_heads=2)
    tuned = tp.attach(tp.GPT(config), tp.LoRA(rank=2))
    names = "csv text pairs text_column label_column prompt_column answer_column context skip_empty".split()
    assert rate_line(Namespace(**dict.fromkeys(names) | {"lr": None} | given), tuned, {"head_lr": head_lr}) == line


def test_passes_over_a_text_count_its_tokens():
    task = tp.tasks.domain()
    tokens = len(task.data("train"))
    said = sizes.passes_over(task, 30, 2, says_more=False)
    assert said == f"30 steps of 2 windows of 128 tokens: {30 * 2 * 128 / tokens:.1g} passes over {tokens:,} tokens"
