"""The command `export --to training`: the folder it writes, and its answers to mistakes."""
import json
import os
import subprocess
import sys

import pytest

from tinypeft.commands.cli import main

EXPORT = "export", "--to", "training"


def test_it_writes_the_run_of_finetune(capsys, tmp_path):
    folder = tmp_path / "run"
    assert main([*EXPORT, "lora", "--quick", "--set", "rank=4", "--task", "classify", "--lr", "0.003", "--seed", "2",
                 "--out", str(folder)]) == 0
    assert f"accelerate launch {folder / 'train.py'}" in capsys.readouterr().out
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"train.py", "README.md", "settings.json", "start.safetensors", "model/config.json", "model/tokenizer.json",
            "model/model.safetensors", "adapter/adapter_config.json", "adapter/adapter_model.safetensors",
            "data/train.safetensors", "data/validation.safetensors", "data/test.safetensors"} <= files
    said = json.loads((folder / "settings.json").read_text("utf-8"))
    assert (said["steps"], said["batch_size"], said["seed"], said["classes"]) == (12, 16, 2, 12)
    assert {group["lr"] for group in said["groups"]} == {0.003, 0.01}              # the head's is its own
    readme = (folder / "README.md").read_text("utf-8")
    assert readme.startswith("# LoRA(rank=4) on classify") and len(readme.splitlines()) <= 16


def test_it_says_in_json_what_it_wrote(capsys, tmp_path):
    assert main([*EXPORT, "full", "--steps", "7", "--json", "--out", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == {"method": "FullFineTuning()", "task": "domain", "steps": 7,
                                                   "saved": str(tmp_path)}
    assert not (tmp_path / "adapter").exists() and json.loads((tmp_path / "settings.json").read_text())["adapter"] is None


@pytest.mark.parametrize("argv, says", [
    (["dylora"], "DyLoRA"), (["lorra"], "there is no method 'lorra'"), (["lora", "--task", "translate"], "there is no task"),
    (["adapter"], "PEFT has no counterpart"), (["prompt", "--task", "classify"], "read the padding")])
def test_mistakes_are_said_in_one_line(capsys, tmp_path, argv, says):
    assert main([*EXPORT, *argv, "--quick", "--out", str(tmp_path / "run")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and says in err and err.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.mark.long
def test_a_run_on_ones_own_rows_comes_back_and_classifies(capsys, tmp_path):
    """From a CSV to a run, to its result in PyTorch, to a prediction of `classify`."""
    for oracle in ("torch", "transformers", "peft", "accelerate"): pytest.importorskip(oracle)
    rows = [f"the {thing} is {word},{'good' if word == 'quick' else 'bad'}" for thing in map(str, range(100, 150))
            for word in ("quick", "broken")]
    (tmp_path / "rows.csv").write_text("text,label\n" + "\n".join(rows), "utf-8")
    run = tmp_path / "run"
    assert main([*EXPORT, "lora", "--csv", str(tmp_path / "rows.csv"), "--steps", "12", "--lr", "0.01",
                 "--out", str(run)]) == 0
    done = subprocess.run([sys.executable, str(run / "train.py")], capture_output=True, text=True,
                          env={**os.environ, "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    losses = [json.loads(line)["loss"] for line in done.stdout.splitlines() if line.startswith('{"step')]
    assert losses[-1] < losses[0]
    capsys.readouterr()
    assert main(["classify", "the lamp is quick", "the lamp is broken", "--model", str(run / "model"),
                 "--adapter", str(run / "result")]) == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == ["good", "bad"]
