"""The command line as a user types it: small runs of every command, and its answers to mistakes."""
import argparse
import errno
import importlib
import json
import re
import subprocess
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest

import tinypeft as tp
from tinypeft.commands import cli, data
from tinypeft.commands.arguments import build
from tinypeft.commands.cli import main, parser
from tinypeft.commands.training import shared_options


def run(capsys, *argv):
    status = main(list(argv))
    out, err = capsys.readouterr()
    return status, out, err


def test_finetune_saves_an_adapter_that_generate_and_the_library_read(capsys, tmp_path):
    folder = str(tmp_path / "adapter")
    status, out, _ = run(capsys, "finetune", "lora", "--quick", "--json", "--set", "rank=4", "--out", folder)
    record = json.loads(out)
    assert status == 0 and record["method"] == "LoRA(rank=4)" and record["steps"] == 12
    assert record["after"]["loss"] < record["before"]["loss"]
    tuned = tp.load_adapter(tp.load_pretrained(), folder)
    assert tuned.method == tp.LoRA(rank=4)
    status, out, _ = run(capsys, "generate", "numpy.mean(a, axis=None)", "--adapter", folder, "--max-new-tokens", "8")
    assert status == 0 and out.startswith("numpy.mean(a, axis=None)")


def test_the_speed_of_writing_is_in_tokens_per_second(capsys, monkeypatch):
    monkeypatch.setattr("tinypeft.commands.writing.time", types.SimpleNamespace(perf_counter=iter([3.0, 7.0]).__next__))
    record = json.loads(run(capsys, "generate", "Return the", "--max-new-tokens", "6", "--json")[1])
    assert record["tokens"] == 6 and record["tokens_per_second"] == 1.5


@pytest.mark.parametrize("asked, kept, context", [(32, {}, 32), (32, {"context": 64}, 32), (None, {"context": 64}, 64),
                                                  (None, {}, None)])
def test_the_context_is_the_one_that_is_asked_for_or_else_the_adapters(monkeypatch, asked, kept, context):
    monkeypatch.setattr("tinypeft.text.tasks.text", lambda paths, model, **options: options["context"])
    args = argparse.Namespace(text=["notes"], context=asked, encoding="utf-8")
    assert data.own_task(args, None, "text", kept) == context


@pytest.mark.parametrize("format, says", [
    ("tinypeft", "tinypeft.load_adapter(model, {0!r}) loads it"),
    ("peft", "peft.PeftModel.from_pretrained(model, {0!r}) loads it, and so does tinypeft.load_adapter(model, {0!r})")])
def test_the_last_line_names_what_loads_the_adapter(capsys, tmp_path, format, says):
    folder = str(tmp_path / "adapter")
    status, out, _ = run(capsys, "finetune", "lora", "--steps", "1", "--quick", "--out", folder, "--format", format)
    assert status == 0 and out.splitlines()[-1] == f"saved in {folder}; {says.format(folder)}"
    assert tp.load_adapter(tp.load_pretrained(), folder).method == tp.LoRA()


def test_what_is_set_twice_is_set_twice_and_steps_that_are_asked_for_are_taken(capsys):
    _, out, _ = run(capsys, "finetune", "lora", "--quick", "--json", "--steps", "2", "--set", "rank=4", "--set", "alpha=8")
    record = json.loads(out)
    assert record["method"] == "LoRA(rank=4, alpha=8)" and record["steps"] == 2


@pytest.mark.parametrize("argv, says", [
    (["pretrain", "--out", "x", "--quick"], "--quick"), (["--quick", "pretrain", "--out", "x"], "does not take --quick"),
    (["doctor", "--model", "x"], "--model"), (["--seed", "1", "doctor"], "does not take --seed")])
def test_an_option_that_a_command_would_ignore_is_refused(capsys, argv, says):
    with pytest.raises(SystemExit): main(argv)
    assert says in capsys.readouterr().err


def test_generate_is_seeded(capsys):
    texts = [run(capsys, "generate", "Return the", "--max-new-tokens", "12", "--seed", seed)[1] for seed in ("1", "1", "2")]
    assert texts[0] == texts[1] != texts[2]


def test_the_help_names_the_default():
    commands = next(action for action in parser()._actions if action.dest == argparse.SUPPRESS or action.metavar == "COMMAND")
    numbers = 0
    for name, command in commands.choices.items():
        for action in command._actions:
            if named := re.search(r"\(default ([\d.]+)\)", action.help or ""):
                assert action.default in (float(named[1]), argparse.SUPPRESS), (name, action.dest)
                numbers += action.default != argparse.SUPPRESS
    assert numbers >= 4


TEXT, CLASSES = types.SimpleNamespace(), types.SimpleNamespace(classes=["a", "b"])
BASE, SMOLLM2 = (types.SimpleNamespace(config=types.SimpleNamespace(d_model=d)) for d in (128, 576))


@pytest.mark.parametrize("argv, model, task, steps, rows", [
    ("finetune lora", BASE, TEXT, 300, 8), ("finetune lora", BASE, CLASSES, 300, 16),
    ("finetune lora --quick", BASE, TEXT, 12, 8), ("finetune lora --quick --steps 5", BASE, TEXT, 5, 8),
    ("finetune lora --batch-size 3", BASE, CLASSES, 300, 3),
    ("finetune lora", SMOLLM2, TEXT, 30, 2), ("finetune lora", SMOLLM2, CLASSES, 300, 16),
    ("finetune lora --quick", SMOLLM2, TEXT, 12, 2), ("finetune lora --steps 7 --batch-size 3", SMOLLM2, TEXT, 7, 3)])
def test_steps_and_rows_that_nobody_asked_for(argv, model, task, steps, rows):
    counted, options = shared_options(parser().parse_args(argv.split()), model, task)
    assert (counted, options["batch_size"]) == (steps, rows)


def test_an_option_before_the_command_counts_as_after_it(capsys):
    before = run(capsys, "--seed", "5", "generate", "Return the", "--max-new-tokens", "8")
    after = run(capsys, "generate", "Return the", "--max-new-tokens", "8", "--seed", "5")
    assert before == after


def test_quantize_reports_bytes_that_the_scheme_really_stores(capsys):
    status, out, _ = run(capsys, "quantize", "nf4", "--quick", "--json")
    record = json.loads(out)
    model = tp.quantize(tp.load_pretrained(), tp.NF4())
    stored = sum(m.weight.nbytes for _, m in model.named_modules() if isinstance(m, tp.QuantizedLinear))
    assert status == 0 and record["bytes"] == stored and record["bits_per_weight"] == pytest.approx(4.5)
    assert record["quantized"]["perplexity"] > record["exact"]["perplexity"] > 1 and 0 < record["weight_error"] < 0.2


def test_doctor_finds_all_well(capsys):
    status, out, _ = run(capsys, "doctor", "--json")
    report = json.loads(out)
    assert status == 0 and report["verdict"] == "all is well" and report["numpy"] == np.__version__


def test_a_model_of_ones_own(capsys, tmp_path):
    status, _, err = run(capsys, "generate", "x", "--model", str(tmp_path))
    assert status == 2 and "weights.safetensors" in err


@pytest.mark.parametrize("text, value", [
    ("query", ("query",)), ("query,blocks.2-5,!blocks.3", ("query", "blocks.2-5", "!blocks.3")), ("all", "all"),
    ("('mlp', '!up')", ("mlp", "!up")), ("['mlp']", ["mlp"]), ("*.mlp", ("*.mlp",))])
def test_names_of_layers_are_separated_by_commas(text, value):
    assert build("method", tp.METHODS, "lora", [f"targets={text}", "rank=3"]) == tp.LoRA(3, targets=value)
    assert build("scheme", tp.SCHEMES, "gguf", ["embeddings=true"]) == tp.GGUF(embeddings=True)
    assert build("method", tp.METHODS, "ia3", ["feedforward=down", f"targets={text}"]).feedforward == ("down",)


@pytest.mark.parametrize("text", ["query,", "", "a b", "3", "()", "blocks..1,up"])
def test_what_are_no_names_is_refused_on_the_command_line(text):
    with pytest.raises(tp.MethodError, match="LoRA: targets must be a tuple of names"):
        build("method", tp.METHODS, "lora", [f"targets={text}"])
    with pytest.raises(tp.MethodError, match="init must be 'kaiming', 'gaussian', .* or 'lora_ga', got 'a,b'"):
        build("method", tp.METHODS, "lora", ["init=a,b"])


@pytest.mark.parametrize("argv, says", [
    (["finetune", "lorra"], "lora"),
    (["finetune", "lora", "--set", "rnk=4"], "rank"),
    (["finetune", "lora", "--set", "rank=0"], "rank must be a positive integer"),
    (["finetune", "lora", "--task", "translate"], "there is no task 'translate'; there are domain, classify, summarize"),
    (["quantize", "nf5"], "nf4"),
    (["generate", ""], "empty"),
    (["generate", "word " * 2000], "256"),
    (["finetune", "lora", "--set", "rank"], "expected FIELD=VALUE"),
    (["figures", "rnak"], "there is no picture 'rnak'; there are"),
])
def test_mistakes_are_said_in_one_line(capsys, argv, says):
    status, out, err = run(capsys, *argv)
    assert status == 2 and out == "" and says in err and err.count("\n") == 1


@pytest.mark.parametrize("argv, work", [
    ("assign 01 --out {good} --course {bad}", "course.assign.assign"), ("assign 01 --out {bad}", "course.assign.assign"),
    ("grade {good} --csv {bad}/points.csv", "course.grade.grade"), ("pretrain --out {bad}", "pretrained.make.pretrain"),
    ("--quick --out {bad}", "study.compare.compare"),
    ("figures --out {bad}", "study.gallery.figures"), ("figures --rerun --out {bad}", "study.whole.measure_all"),
    ("figures rank --quick --out {bad}", "study.measuring.run"), ("finetune lora --quick --out {bad}", "training.loop.train"),
    ("finetune lora --quick --checkpoint {bad}/x", "training.loop.train")])
def test_a_folder_that_cannot_be_written_to_is_refused_before_any_work(capsys, monkeypatch, tmp_path, argv, work):
    module, _, name = work.rpartition(".")
    for package in "tinypeft", f"tinypeft.{module.partition('.')[0]}":
        getattr(importlib.import_module(package), name, None)            # a package keeps what it gives first
    monkeypatch.setattr(importlib.import_module(f"tinypeft.{module}"), name, lambda *args, **options: pytest.fail("it works"))
    (tmp_path / "file").touch()
    folders = {"good": tmp_path / "good", "bad": tmp_path / "file" / "x"}
    status, out, err = run(capsys, *argv.format(**folders).split())
    assert status == 2 and out == "" and "cannot write to the folder" in err and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_warning_is_one_line_without_control_characters():
    given = UserWarning, "file.py", 3
    with cli.plain_warnings(): assert warnings.formatwarning("\x1b[2Jx", *given) == "tinypeft: \\x1b[2Jx\n"
    assert warnings.formatwarning("x", *given).startswith("file.py:3: UserWarning: x")


def test_a_reader_that_left_is_no_error(capsys, monkeypatch):
    """As a broken pipe, and as Windows says it: an invalid argument, of no file."""
    def raising(*error):
        def report(): raise OSError(*error)
        monkeypatch.setattr("tinypeft.commands.doctor.report", report)
        return run(capsys, "doctor")
    monkeypatch.setattr(cli, "_drop_output", lambda: None)
    assert raising(errno.EPIPE, "Broken pipe") == (141, "", "")
    assert raising(errno.EINVAL, "Invalid argument")[0] == 2
    monkeypatch.setattr(sys, "platform", "win32")
    assert raising(errno.EINVAL, "Invalid argument") == (141, "", "")
    assert raising(errno.EINVAL, "Invalid argument", "a?b")[0] == raising(errno.EACCES, "Permission denied")[0] == 2


INTERRUPTED = """
import runpy, sys
class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == {name!r}: raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
sys.argv = ["tinypeft", "finetune", "lora"]
runpy.run_module("tinypeft", run_name="__main__")
"""


@pytest.mark.parametrize("name", ["tinypeft.commands.cli", "tinypeft.commands.finetuning", "tinypeft.peft.method",
                                  "tinypeft.training.finder"])
def test_ctrl_c_while_modules_are_imported_is_one_line(name):
    """At the start, while the options are made, and while the command begins."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED.format(name=name)], cwd=Path(__file__).parents[2],
                          capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "tinypeft: stopped\n")


# -- how finetune trains ---------------------------------------------------------------------------
@pytest.fixture
def short_text(tmp_path):
    """A file of text that can be measured after every step."""
    text, rng = tmp_path / "text.md", np.random.default_rng(1)
    words = "phone lamp chair kettle bicycle coat radio table spoon clock".split()
    text.write_text("\n\n".join(" ".join(rng.choice(words, 12)) for _ in range(200)), "utf-8")
    return text


def test_finetune_keeps_what_is_best_on_validation(capsys, short_text, tmp_path):
    """A rate that grows for 20 steps helps in the first and then spoils the model, by far more than kernels differ. So
    the first state stays the best."""
    known = "The function returns a new array with the same shape and type as the given array. "
    rows = short_text.read_text("utf-8").split("\n\n")
    short_text.write_text("\n\n".join(known + " ".join(row.split()[:3]) for row in rows), "utf-8")
    options = "finetune lora --quick --steps 3 --lr 0.6 --validate-every 1 --text"
    argv = *options.split(), str(short_text)
    status, out, _ = run(capsys, *argv, "--json", "--out", str(tmp_path / "adapter"))
    record = json.loads(out)
    assert (status, record["best"], record["steps"]) == (0, 1, 3)
    kept = tp.load_adapter(tp.load_pretrained(), tmp_path / "adapter")
    model = tp.load_pretrained()
    tuned, task = tp.attach(model, tp.LoRA(), rng=0), tp.tasks.text(short_text, model)
    tp.train(tuned, task, 3, lr=0.6, stop_after=1, progress=False)
    for name, a in tuned.state_dict().items(): assert np.array_equal(a, kept.state_dict()[name]), name
    _, out, _ = run(capsys, *argv)
    assert "\nkept: the state after step 1, the best on validation\n" in out


def test_find_rate_prints_a_rate_and_draws(capsys, short_text, tmp_path):
    argv = *"finetune lora --find-rate --quick --steps 8 --text".split(), str(short_text)
    status, out, _ = run(capsys, *argv, "--json", "--out", str(tmp_path / "found"))
    found = json.loads(out)
    assert status == 0 and found["suggestion"] in found["rates"] and len(found["losses"]) == len(found["rates"]) <= 8
    assert [path.name for path in (tmp_path / "found").iterdir()] == ["rates.svg"]
    assert "learning rate" in (tmp_path / "found" / "rates.svg").read_text("utf-8")
    _, out, _ = run(capsys, *argv)
    assert "\nRateSearch(" in out and out.endswith(f"with --lr {found['suggestion']:.2g} instead of --find-rate\n")


def test_finetune_takes_an_optimizer_that_a_checkpoint_remembers(capsys, tmp_path):
    argv = "finetune", "lora", "--quick", "--steps", "2", "--checkpoint", str(tmp_path / "c")
    status, _, _ = run(capsys, *argv, "--optimizer", "muon")
    assert status == 0
    status, out, err = run(capsys, *argv)
    assert status == 2 and out.startswith("learning rate ") and "optimizer was Muon(momentum=0.95, adjust='original'" in err
    with pytest.raises(SystemExit): main(["finetune", "lora", "--optimizer", "adam"])
    assert "adamw, sgd, muon, adamw8bit, galore" in capsys.readouterr().err.replace("'", "")    # from Python 3.12 on without
    assert {name: shared_options(parser().parse_args(["finetune", "lora", "--optimizer", name]), BASE, TEXT)[1]["optimizer"]
            for name in ("sgd", "muon", "adamw8bit", "galore")} == {
                "sgd": tp.optim.SGD, "muon": tp.optim.Muon, "adamw8bit": tp.optim.AdamW8bit, "galore": tp.optim.GaLore}


def test_less_memory_changes_rounding_only(capsys, short_text):
    """Each row is a part of its own, and blocks are computed again."""
    argv = *"finetune lora --steps 3 --batch-size 4 --quick --json --text".split(), str(short_text)
    whole, less = (json.loads(run(capsys, *argv, *more)[1])["after"]["loss"] for more in ([], ["--less-memory"]))
    assert less == pytest.approx(whole, rel=1e-5)
    _, options = shared_options(parser().parse_args([*argv, "--less-memory"]), BASE, TEXT)
    assert options["accumulate"] == options["batch_size"] == 4 and options["checkpoint_activations"]


@pytest.mark.parametrize("options, says", [
    (["--find-rate", "--lr", "0"], "--find-rate does not train; leave out --lr"),
    (["--find-rate", "--checkpoint", "c"], "leave out --checkpoint")])
def test_options_that_would_do_nothing_are_refused(capsys, options, says):
    status, out, err = run(capsys, "finetune", "lora", "--quick", *options)
    assert status == 2 and out == "" and says in err and err.count("\n") == 1


def test_the_defaults_are_those_that_help_states():
    """Steps: 300, with --quick 12. Rows of a step: 8, for classes 16."""
    class Classes: classes = "a", "b"
    def chosen(*argv, task=None):
        steps, options = shared_options(parser().parse_args(["finetune", "lora", *argv]), BASE, task)
        return steps, options["batch_size"]
    assert chosen() == (300, 8) and chosen("--quick") == (12, 8) and chosen(task=Classes()) == (300, 16)
    assert chosen("--quick", "--steps", "7", "--batch-size", "3", task=Classes()) == (7, 3)
