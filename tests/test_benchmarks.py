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
from tinypeft.study import pictures, speed

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
                                          for name in scaling.SERIES},
                               "crossover": lambda x, seconds: 20.0},        # noise has none
    "cores": lambda folder: {"SIZES": TINY, "ROWS": (("base", 2, 96), ("base", 1, 8))},
    "gpt2": lambda folder: {"SIZES": {"n_layer": 1, "n_embd": 128, "n_head": 2, "vocab_size": 64}, "LENGTH": 8},
    "smollm2": lambda folder: {"smollm2_file": lambda: small_llama(folder), "LENGTH": 8, "LONG": (8, 16)}}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in every.ORDER if name != "quant"])
def test_a_benchmark_runs_and_its_record_fills_its_table(name, tiny, tmp_path):
    for oracle in ("torch", "transformers", "peft", *["gguf"] * (name == "smollm2")): pytest.importorskip(oracle)
    record = tiny(name)
    every.filed(every.file_of(name, tmp_path), record)
    results = every.file_of(name, tmp_path).parent
    for section in {"step": ("step", "lora"), "smollm2": ("smollm2", "long_texts")}.get(name, (name,)):
        text = speed.SECTIONS[section](results)
        assert speed.make(record["machine"]) in text
        assert "nan" not in text and all(f"| {row} |" in text for row in record["tables"][section])
    if name == "scaling": assert "to the power" in pictures.speed.scaling(results).sentence


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
    text = speed.SECTIONS["quant"](every.file_of("quant", tmp_path).parent)
    assert text.count("| 1.00 |") == len(record["tables"]["quant"]) > 20


@pytest.mark.filterwarnings("ignore")
def test_both_sides_train_as_many_numbers(tiny):
    for oracle in ("torch", "transformers", "peft"): pytest.importorskip(oracle)
    rows = tiny("methods")["tables"]["methods"]
    both = {name: (row["trained"], row["PEFT: trained"]) for name, row in rows.items() if "ratio" in row}
    from tests.benchmarks import methods
    assert rows.keys() == methods.OURS.keys() and both.keys() == {*methods.WRAPPING, *methods.AT_SEAMS}
    assert all(ours == theirs for ours, theirs in both.values()), both


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
        whole, *found = operations.shares(*TINY["base"], 3).items()
        share = sum(row["share"] for _, row in found)
        if abs(share - 1) <= 0.05: break
    assert whole[0] == "all"
    assert share == pytest.approx(1, abs=0.05)
    alone = {name for name, row in found if row["products alone: ms"]}
    assert alone == {f"{o.replace('_', ' ')}, {d}" for o in operations.WITH_PRODUCTS for d in ("forward", "backward")}


def test_every_benchmark_is_run_and_has_a_table():
    files = (measure.ROOT / "tests" / "benchmarks").glob("*.py")
    there = {path.stem for path in files if "def main(" in path.read_text("utf-8")}
    assert there - {"limit", "__main__"} == set(every.ORDER)
    assert {*every.ORDER, "lora", "long_texts"} == set(speed.SECTIONS)


# -- the limit -----------------------------------------------------------------------------------
@pytest.fixture
def computed(monkeypatch):
    """The factors' shapes of every matrix product whose factors come from a recorded operation or from a gradient."""
    found, fused = [], Tensor.fused
    watch = lambda a: np.asarray(a).view(Watched)

    def watched(data, parents, vjp, fs=()):
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
RUN = {"machine": "AMD EPYC 7763, 2 cores", "date": "2026-11-25", "commit": "a", "command": "c", "rounds": 1, "versions": {},
       "settings": {}, "tables": {}}


def test_a_file_keeps_the_newest_run_of_each_make(tmp_path):
    file = every.file_of("step", tmp_path)
    for make, commit in (("AMD EPYC", "a"), ("Intel(R) Xeon(R)", "a"), ("AMD Ryzen", "b")):
        every.filed(file, RUN | {"machine": f"{make}, 2 cores", "commit": commit})
    assert [(run["machine"], run["commit"]) for run in speed.runs(file.parent, "step")] == [
        ("AMD Ryzen, 2 cores", "b"), ("Intel(R) Xeon(R), 2 cores", "a")]


def table_of(folder, *runs):
    """The page's table `step` of a file with these runs."""
    (folder / "benchmark_step.json").write_text(json.dumps({"runs": runs}), "utf-8")
    return speed.SECTIONS["step"](folder)


def test_every_run_has_a_line_in_every_row_and_an_older_one_is_marked(tmp_path):
    newest = RUN | {"tables": {"step": {"x": {"ms": 145.2, "ratio": 1.0}, "only new": {"ms": 2}}}}
    other = RUN | {"machine": "Intel(R) Xeon(R), 2 cores", "commit": "b", "tables": {
        "step": {"x": {"ratio": 2.5, "target": 9.87}, "only old": {"ms": 3}}}}
    text = table_of(tmp_path, newest, other)
    assert text.startswith("""| what | processor | ms | ratio | target |
|---|---|---|---|---|
| x | AMD | 145 | 1.00 | – |
| x | Intel (older) | – | 2.50 | 9.87 |
| only new | AMD | 2 | – | – |
| only old | Intel (older) | 3 | – | – |
""")
    assert text.count("An older version.") == 1


def test_one_run_needs_no_processor_and_settings_stand_above(tmp_path):
    run = RUN | {"tables": {"step": {"x": {"ms": 9}}}, "settings": {"step": {"rows": 8, "same": "yes"}, "lora": {"rank": 7}}}
    assert table_of(tmp_path, run).startswith("rows: 8; same: yes.\n\n| what | ms |\n|---|---|\n| x | 9 |\n\nAMD EPYC 7763")


def test_a_number_has_about_three_digits_and_a_count_all(tmp_path):
    cells = {"a": 1155456, "b": 10759.8, "c": 94.87, "d": 0.5469, "e": -0.7186, "f": "`LoRA()`"}
    run = RUN | {"tables": {"step": {"x": cells}}}
    assert "| x | 1,155,456 | 10,760 | 94.9 | 0.55 | −0.72 | `LoRA()` |" in table_of(tmp_path, run)


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
    assert scaling.exponent(x, [3 * n ** 1.5 for n in x]) == pytest.approx(1.5)
    low, high = scaling.halves(x, [max(4, n) for n in x])
    assert low < 0.4 and high == pytest.approx(1)
    assert scaling.halves(x[:6], [max(4, n) for n in x[:6]])[1] == pytest.approx(1)      # three of six
    assert scaling.crossover(x, [10 * n + 0.5 * n * n for n in x]) == pytest.approx(20)
    meet = scaling.crossover(x, [90 + 10 * n + 0.5 * n * n for n in x])
    assert 0.5 * meet ** 2 == pytest.approx(90 + 10 * meet)            # half of the whole, with what does not grow
