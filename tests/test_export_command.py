"""The command `export-training`: the folder it writes, and its answers to mistakes."""
import json

import pytest

from tinypeft.cli import main


def test_it_writes_the_run_of_finetune(capsys, tmp_path):
    folder = tmp_path / "run"
    assert main(["export-training", "lora", "--quick", "--set", "rank=4", "--task", "classify", "--lr", "0.003", "--seed", "2",
                 "--out", str(folder)]) == 0
    assert f"accelerate launch {folder / 'train.py'}" in capsys.readouterr().out
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"train.py", "README.md", "settings.json", "start.safetensors", "model/config.json", "model/tokenizer.json",
            "model/model.safetensors", "adapter/adapter_config.json", "adapter/adapter_model.safetensors",
            "data/train.safetensors", "data/validation.safetensors", "data/test.safetensors"} <= files
    said = json.loads((folder / "settings.json").read_text("utf-8"))
    assert (said["steps"], said["batch_size"], said["seed"], said["classes"]) == (12, 16, 2, 12)
    assert {group["lr"] for group in said["groups"]} == {0.003}
    readme = (folder / "README.md").read_text("utf-8")
    assert readme.startswith("# LoRA(rank=4) on classify") and len(readme.splitlines()) <= 16


def test_it_says_in_json_what_it_wrote(capsys, tmp_path):
    assert main(["export-training", "full", "--steps", "7", "--json", "--out", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == {"method": "FullFineTuning()", "task": "domain", "steps": 7,
                                                   "saved": str(tmp_path)}
    assert not (tmp_path / "adapter").exists() and json.loads((tmp_path / "settings.json").read_text())["adapter"] is None


@pytest.mark.parametrize("argv, says", [
    (["dylora"], "DyLoRA"), (["lorra"], "there is no method 'lorra'"), (["lora", "--task", "translate"], "there is no task"),
    (["adapter"], "PEFT has no counterpart"), (["prompt", "--task", "classify"], "read the padding")])
def test_mistakes_are_said_in_one_line(capsys, tmp_path, argv, says):
    assert main(["export-training", *argv, "--quick", "--out", str(tmp_path / "run")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and says in err and err.count("\n") == 1 and not (tmp_path / "run").exists()
