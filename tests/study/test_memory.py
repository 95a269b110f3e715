"""The memory model: predictions against traced bytes, counts against the library, and the command's output."""
import json
from pathlib import Path

import pytest

import tinypeft as tp
from tinypeft.commands.cli import main
from tinypeft.models.llama import Llama, LlamaConfig
from tinypeft.study import memory
from tinypeft.study.markdown import aligned
from tinypeft.study.memory import FLOAT32, SHAPES, Shape, estimate, shape_of, traced

DEEP, WIDE = tp.GPTConfig(1024, 128, 96, 6, 4), tp.GPTConfig(512, 128, 192, 3, 4)
METHODS = [("full", {}), ("lora", {}), ("lora", {"targets": "all", "rank": 4}), ("qlora", {"targets": "all"}),
           ("adapter", {"bottleneck": 16}), ("prefix", {}), ("prompt", {})]


GROUPED = LlamaConfig(512, 128, 96, 4, n_heads=6, n_kv_heads=2, d_mlp=640, d_head=16)
QWEN = LlamaConfig(512, 128, 96, 3, n_heads=4, n_kv_heads=2, d_mlp=160, d_head=32, qk_norm=True, tied=False)


@pytest.mark.parametrize("config", [DEEP, WIDE], ids=["deep", "wide"])
@pytest.mark.parametrize("batch, tokens", [(1, 32), (6, 96)])
@pytest.mark.parametrize("method, options", METHODS, ids=lambda v: str(v))
def test_a_prediction_is_within_ten_per_cent_of_what_is_traced(config, batch, tokens, method, options):
    predicted = estimate(Shape.of(config), method, batch, tokens, FLOAT32, **options)["peak"]
    assert predicted == pytest.approx(traced(config, method, batch, tokens, **options), rel=0.1)


@pytest.mark.parametrize("config", [GROUPED, QWEN], ids=["grouped heads", "Qwen3"])
@pytest.mark.parametrize("method, options", METHODS, ids=lambda v: str(v))
def test_a_prediction_for_a_llama_is_within_ten_per_cent_of_what_is_traced(config, method, options):
    predicted = estimate(Shape.of(config), method, 4, 64, FLOAT32, **options)["peak"]
    assert predicted == pytest.approx(traced(config, method, 4, 64, **options), rel=0.1)
    tuned = tp.attach(Llama(config), memory.attachable(method, options))
    assert memory.FORMULAS[method](Shape.of(config), **options).n == tuned.summary().trained
    assert Shape.of(config).parameters == Llama(config).n_parameters()


def test_a_family_without_a_formula_is_refused():
    with pytest.raises(ValueError, match="for a GPTConfig or a LlamaConfig, got a str"): Shape.of("gpt")


def test_both_moments_decide():
    """With a batch of 32 tokens the gradients dominate, with a large batch the activations do. Both were tested above."""
    moments = lambda batch, tokens: estimate(Shape.of(WIDE), "full", batch, tokens, FLOAT32)
    assert moments(1, 32)["backward"] > moments(1, 32)["forward"]
    assert moments(6, 96)["backward"] < moments(6, 96)["forward"]


@pytest.mark.parametrize("method, options", METHODS[1:], ids=lambda v: str(v))
def test_trained_parameters_are_the_librarys(method, options):
    tuned = tp.attach(tp.GPT(WIDE), memory.attachable(method, options))
    assert memory.FORMULAS[method](Shape.of(WIDE), **options).n == tuned.summary().trained


def test_shapes_have_the_parameters_they_are_known_for():
    assert SHAPES["base"] == Shape.of(tp.load_pretrained().config)
    assert SHAPES["base"].parameters == tp.load_pretrained().n_parameters()
    assert SHAPES["gpt2"].parameters == 124_439_808                   # the safetensors file's, without the masks
    assert SHAPES["llama-7b"].parameters == 6_738_415_616
    for n in (1e8, 1e9, 7e9): assert shape_of(n).parameters == pytest.approx(n, rel=0.2)


def test_the_stored_measurement_agrees_within_ten_per_cent():
    path = Path(__file__).parents[2] / "figures" / "results" / "memory.json"
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    assert len(runs) == 21
    for condition, by_seed in runs.items():
        r = by_seed["0"]
        assert r["peak"] == pytest.approx(r["traced"], rel=0.1), condition


def test_seven_billion():
    rows = memory.compared(SHAPES["llama-7b"], targets="all")
    full, lora, qlora = (rows[m]["peak"] / 2**30 for m in ("full", "lora", "qlora"))
    assert full > 6 * lora and lora > 1.7 * qlora
    assert rows["full"]["optimizer"] == 8 * SHAPES["llama-7b"].parameters


def test_the_command(capsys):
    assert main(["memory", "--params", "7e9", "--method", "qlora", "--set", "rank=64", "targets=all", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["bytes"]["qlora"] == estimate(shape_of(7e9), "qlora", rank=64, targets="all")
    assert main(["memory"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("full", "lora", "qlora", "GiB", "6,738,415,616"))


@pytest.mark.parametrize("args, says", [
    (["--shape", "llama-70b"], "llama-7b"), (["--method", "magic"], "prompt"), (["--set", "rnak=3"], "rnak"),
    (["--params", "0"], "positive"), (["--params", "7e9", "--shape", "gpt2"], "not both"), (["--tokens", "0"], "positive"),
    (["--set", "rank=-1"], "rank must be a positive integer, got -1"), (["--params", "1e30"], "parameters, got 1e+30"),
    (["--set", "bits=-4"], "bits must be a number in (0, 32]"), (["--params", "inf"], "must be a positive number, got 'inf'"),
    (["--set", "targets=key"], "targets must be ('query', 'value') or 'all', got 'key'"),
    (["--batch-size", "0"], "must be a positive integer, got '0'")])
def test_mistakes_are_told(args, says, capsys):
    try: status = main(["memory", *args])
    except SystemExit as e: status = e.code              # argparse found it
    assert status == 2 and says in capsys.readouterr().err


def test_full_fine_tuning_has_nothing_to_quantize():
    with pytest.raises(ValueError, match="leave bits out"): estimate(SHAPES["base"], "full", bits=4)


def test_a_table_as_text_has_its_first_column_left():
    assert aligned([["method", "of"], ["a", "12.5"]]) == ["method    of", "a       12.5"]
