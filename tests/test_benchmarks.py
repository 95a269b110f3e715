"""Every benchmark runs, at sizes too small to tell anything, and its record fills its table; the limit is complete."""
import functools
import importlib
import json
from collections import Counter

import numpy as np
import pytest

import tinypeft as tp
from tests.benchmarks import __main__ as every
from tests.benchmarks import limit, measure, operations, scaling, sides
from tests.conftest import Watched
from tinypeft.engine.nn import Linear
from tinypeft.engine.tensor import Tensor
from tinypeft.interop import write_gguf
from tinypeft.models.llama import Llama, LlamaConfig
from tinypeft.study import speed

TINY = {"base": (tp.GPTConfig(64, 96, 80, 1, 2), 2)}


# -- every benchmark runs ------------------------------------------------------------------------
@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """`tiny(name)` runs a benchmark for one round, with small models, and returns its record."""
    def run(name):
        module = importlib.import_module(f"tests.benchmarks.{name}")
        for attribute, value in SMALLER.get(name, lambda folder: {})(tmp_path).items():
            assert hasattr(module, attribute), attribute
            monkeypatch.setattr(module, attribute, value)
        if name == "step":                               # torch.compile without a C++ compiler
            monkeypatch.setattr(module.torch, "compile", functools.partial(module.torch.compile, backend="eager"))
        module.main(["--rounds", "1", "--json", str(tmp_path / "record.json")])
        return json.loads((tmp_path / "record.json").read_text("utf-8"))
    return run


def small_llama(folder):
    """A GGUF file of a small Llama, with the base's tokenizer."""
    model = Llama(LlamaConfig(1024, 600, d_model=32, n_layers=1, n_heads=2, n_kv_heads=1, d_mlp=32, d_head=16))
    model.tokenizer = tp.load_pretrained().tokenizer
    write_gguf(folder / "model.gguf", model)
    return folder / "model.gguf"


SMALLER = {                                              # name → what its module has in place of its own sizes
    **dict.fromkeys(("step", "operations", "tricks"), lambda folder: {"SIZES": TINY}),
    "methods": lambda folder: {"CONFIG": TINY["base"][0], "ROWS": 2}, "generation": lambda folder: {"NEW": 4},
    "scaling": lambda folder: {"SERIES": {name: scaling.Series((1, 2, 3), lambda n: (TINY["base"][0], 2, 8 * n, None, n), "")
                                          for name in scaling.SERIES}},
    "cores": lambda folder: {"SIZES": TINY, "ROWS": (("base", 2, 96), ("base", 1, 8))},
    "gpt2": lambda folder: {"SIZES": {"n_layer": 1, "n_embd": 128, "n_head": 2, "vocab_size": 64}, "LENGTH": 8},
    "smollm2": lambda folder: {"smollm2_file": lambda: small_llama(folder), "LENGTH": 8, "LONG": (8, 16)}}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in every.ORDER if name != "quant"])
def test_a_benchmark_runs_and_its_record_fills_its_table(name, tiny, tmp_path):
    for oracle in ("torch", "transformers", "peft", *["gguf"] * (name == "smollm2")): pytest.importorskip(oracle)
    record = tiny(name)
    every.filed(every.file_of(name, tmp_path), record)
    for section in {"step": ("step", "lora")}.get(name, (name,)):
        text = speed.SECTIONS[section](every.file_of(name, tmp_path).parent)
        assert speed.make(record["machine"]) in text
        assert "nan" not in text


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_the_quantizers_benchmark_runs(monkeypatch, tmp_path):
    """Each of its cases once, not timed; the sizes are its own, but for the tokens in a cache."""
    for oracle in ("torch", "bitsandbytes"): pytest.importorskip(oracle)
    from tests.benchmarks import quant
    monkeypatch.setattr(quant, "pairs", lambda f, g, rounds, rest: (f(), g(), (1.0, 1.0, 1.0))[-1])
    monkeypatch.setattr(quant, "LENGTHS", {40: 1.5, 50: None})
    quant.main(["--json", str(tmp_path / "record.json")])
    record = json.loads((tmp_path / "record.json").read_text("utf-8"))
    every.filed(every.file_of("quant", tmp_path), record)
    text = speed.quant(every.file_of("quant", tmp_path).parent)
    assert text.count("| 1.00 |") == len(record["rows"]) > 20


@pytest.mark.filterwarnings("ignore")
def test_both_sides_train_as_many_numbers(tiny):
    for oracle in ("torch", "transformers", "peft"): pytest.importorskip(oracle)
    rows = tiny("methods")["methods"]
    both = {name: row["trained"] for name, row in rows.items() if row["ratio"] is not None}
    from tests.benchmarks import methods
    assert rows.keys() == methods.OURS.keys() and both.keys() == rows.keys() - {*methods.ALONE}
    assert all(trained["tinypeft"] == trained["PEFT"] for trained in both.values()), both


def test_every_operation_of_a_step_is_timed_once_in_each_direction():
    """Dropout that draws nothing returns its input, whose backward belongs to another operation."""
    config, rows = TINY["base"]
    model = tp.GPT(config).train()
    step = sides.ours(model, sides.batch_of(config, rows), workers=1)
    with operations.watched() as spent: step()
    calls = Counter((name, direction) for name, direction, _ in spent)
    layers = sum(isinstance(m, Linear) for _, m in model.named_modules())
    assert calls["linear", "forward"] == calls["linear", "backward"] == layers
    assert calls["dropout", "forward"] > 0 == calls["dropout", "backward"] and calls["AdamW", ""] == 1
    for name in ("attention", "gelu", "layer_norm", "linear_cross_entropy", "embedding"):
        assert calls[name, "forward"] == calls[name, "backward"] > 0


def test_the_parts_of_a_step_are_the_whole():
    """Each part is a median of its own, and another job on the machine may come between two. One of five runs is enough."""
    for _ in range(5):
        found = operations.shares(*TINY["base"], 3)["operations"]
        whole = sum(row["share"] for row in found)
        if abs(whole - 1) <= 0.05: break
    assert whole == pytest.approx(1, abs=0.05)
    alone = {(row["operation"], row["direction"]) for row in found if row["products alone ms"]}
    assert alone == {(o, d) for o in operations.WITH_PRODUCTS for d in ("forward", "backward")}


def test_every_benchmark_is_run_and_has_a_table():
    files = (measure.ROOT / "tests" / "benchmarks").glob("*.py")
    there = {path.stem for path in files if "def main(" in path.read_text("utf-8")}
    assert there - {"limit", "__main__"} == set(every.ORDER) and set(every.ORDER) | {"lora"} == set(speed.SECTIONS)


# -- the limit -----------------------------------------------------------------------------------
@pytest.fixture
def computed(monkeypatch):
    """The factors' shapes of every matrix product whose factors come from a recorded operation or from a gradient."""
    found, fused = [], Tensor.fused
    watch = lambda a: np.asarray(a).view(Watched)

    def watched(data, parents, vjp):
        y = fused(data, parents, lambda dy: vjp(watch(dy)))
        y.data = watch(y.data)
        return y
    monkeypatch.setattr(Tensor, "fused", staticmethod(watched))
    monkeypatch.setattr(Watched, "products", found)
    return found


@pytest.mark.parametrize("length", [40, 64, 150])
def test_the_limit_has_every_product_of_a_step_and_no_other(computed, length):
    """Those that a step really computes, but for the scores that backward computes again. Flops are the textbook's."""
    config = tp.GPTConfig(vocab_size=48, context_length=length, d_model=16, n_layers=2, n_heads=2)
    model, rows = tp.GPT(config), 3
    sides.ours(model, sides.batch_of(config, rows), workers=1)()
    expected = limit.products(model, rows)
    total = sum(p.flops for p in expected)
    products = [(a, b) for a, b in computed if len(a) > 1 < len(b)]                         # with a vector of ones it is a sum
    again = sum(p.flops for p in expected if (p.operation, p.direction, p.turned) == ("attention", "forward", "b"))
    assert sum(2 * int(np.prod(a)) * b[-1] for a, b in products) == total + again           # the step may join products

    d, L, V = config.d_model, config.n_layers, config.vocab_size
    pairs = sum(min(64, length - i) * min(i + 64, length) for i in range(0, length, 64))      # of query and key
    assert total == 6 * rows * (length * (12 * L * d * d + V * d) + 2 * L * d * pairs)


def test_the_limits_parts_are_the_whole():
    config, rows = TINY["base"]
    parts = [p for n in (1, 1) for p in limit.products(tp.GPT(config), n)]
    assert sum(p.flops for p in parts) == sum(p.flops for p in limit.products(tp.GPT(config), rows))
    limit.limit(tp.GPT(config), rows)()


# -- records -------------------------------------------------------------------------------------
RUN = {"machine": "AMD EPYC 7763, 2 cores", "date": "2026-11-25", "commit": "a", "command": "c", "rounds": 1, "versions": {}}


def test_a_file_keeps_the_newest_run_of_each_make(tmp_path):
    file = every.file_of("step", tmp_path)
    for make, commit in (("AMD EPYC", "a"), ("Intel(R) Xeon(R)", "a"), ("AMD Ryzen", "b")):
        every.filed(file, RUN | {"machine": f"{make}, 2 cores", "commit": commit})
    assert [(run["machine"], run["commit"]) for run in speed.runs(file.parent, "step")] == [
        ("AMD Ryzen, 2 cores", "b"), ("Intel(R) Xeon(R), 2 cores", "a")]


def test_a_run_of_another_commit_is_marked_as_older():
    newest, other = RUN, RUN | {"machine": "Intel(R) Xeon(R), 2 cores", "commit": "b"}
    text = speed.beside(("what", "ratio"), {"x": ("x", "1.00")}, [newest, other], lambda run: {"x": 2.5})
    assert "| what | ratio | ratio, Intel (older) |" in text and "| x | 1.00 | 2.50 |" in text
    assert text.count("An older version.") == 1 and "(older)" not in speed.where(newest, newest)


@pytest.mark.parametrize("machine, make", [("AMD EPYC, 2 cores", "AMD"), ("Intel(R) Xeon(R) Processor, 2 cores", "Intel"),
                                           ("arm, 8 cores", "arm")])
def test_the_make_of_a_processor(machine, make):
    assert speed.make(machine) == make


def test_what_this_commit_has_measured_is_not_measured_again(tmp_path, monkeypatch):
    monkeypatch.setattr(every, "file_of", lambda name: tmp_path / f"{name}.json")
    monkeypatch.setattr(every, "commit", lambda: "abc")
    assert not every.is_measured("step")
    every.filed(tmp_path / "step.json", RUN | {"machine": every.machine(), "commit": "abc"})
    assert every.is_measured("step")
    monkeypatch.setattr(every, "commit", lambda: "abc+")
    assert not every.is_measured("step")


# -- exponents -----------------------------------------------------------------------------------
def test_exponents_of_known_laws():
    x = [1, 2, 4, 8, 16, 32, 64]
    assert speed.exponent(x, [3 * n ** 1.5 for n in x]) == pytest.approx(1.5)
    low, high = speed.halves(x, [max(4, n) for n in x])
    assert low < 0.4 and high == pytest.approx(1)
    assert speed.halves(x[:6], [max(4, n) for n in x[:6]])[1] == pytest.approx(1)      # three of six
    assert speed.crossover(x, [10 * n + 0.5 * n * n for n in x]) == pytest.approx(20)
    meet = speed.crossover(x, [90 + 10 * n + 0.5 * n * n for n in x])
    assert 0.5 * meet ** 2 == pytest.approx(90 + 10 * meet)            # half of the whole, with what does not grow
