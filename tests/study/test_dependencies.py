"""The static walk: what a measurement reaches, and what a change of the source text makes stale."""
import ast
from pathlib import Path

import pytest

import tinypeft as tp
from tinypeft.study import dependencies
from tinypeft.study.dependencies import Sources, definitions, starts
from tinypeft.study.experiments import EXPERIMENTS

PACKAGE = Path(tp.__file__).parent


def stale(name, changed):
    """The conditions of an experiment that other texts of some modules make stale."""
    e, sources = EXPERIMENTS[name], Sources(changed)
    return {label for label, value in e.conditions.items()
            if definitions(e.measure, value) != definitions(e.measure, value, sources)}


def source(module):
    return PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py").read_text("utf-8")


def edited(module, where, line):
    """{module: its text with a line put before the first statement of a function, class or method}."""
    text = source(module)
    node = ast.parse(text)
    for name in where.split("."): node = next(n for n in node.body if getattr(n, "name", "") == name)
    first = node.body[1 if ast.get_docstring(node) is not None else 0]
    lines = text.splitlines(keepends=True)
    lines.insert(first.lineno - 1, " " * first.col_offset + line + "\n")
    return {module: "".join(lines)}


FORWARD = edited("tinypeft.peft.lora", "LoRALinear.forward", "x = -x")


@pytest.mark.parametrize("name, expected", [
    ("methods", {"lora", "lora_all", "dylora"}), ("rank", "all"), ("adapters", set()), ("qlora", "all"),
    ("dylora", "all"), ("adalora", {"all six r=2", "all six r=8"}), ("prompts", set()), ("prefix_length", set()),
    ("frontier", {"lora_all"}), ("first_look", {"lora_all", "qlora_all"}), ("lengths", {"lora_all 600", "lora_all 1500"}),
    ("gptq", set()), ("qat", set())])
def test_a_changed_lora_makes_stale_what_trains_a_lora(name, expected):
    assert stale(name, FORWARD) == (set(EXPERIMENTS[name].conditions) if expected == "all" else expected)


def test_a_changed_adapter_makes_stale_what_trains_one():
    changed = edited("tinypeft.peft.adapter", "Adapter.forward", "x = -x")
    assert stale("methods", changed) == {"adapter"}
    assert stale("adapters", changed) == {"sequential 16", "sequential 64", "sequential 16, norms"}
    assert stale("rank", changed) == set()


def test_a_changed_scheme_makes_stale_what_rounds_by_it():
    changed = edited("tinypeft.quant.nf4", "NF4.quantize", "W = -W")
    assert {"NF4", "NF4 double"} <= stale("schemes", changed)
    assert "GPTQ 4 bit" not in stale("schemes", changed)
    assert stale("loftq", changed) == {"QLoRA, NF4", "LoftQ, NF4"}
    assert stale("rank", changed) == set()


TRAIN = [name for name, e in EXPERIMENTS.items()
         if any(d.startswith("training/loop.py train") for v in e.conditions.values() for d in definitions(e.measure, v))]


def test_a_changed_loop_makes_everything_stale_that_trains():
    assert {"rates", "methods", "rank", "placement", "adalora", "dylora", "adapters", "prompts", "qlora", "loftq", "qat",
            "subspace", "virtual_tokens", "schemes"} <= set(TRAIN)
    changed = edited("tinypeft.training.loop", "train", "steps = steps + 1")
    for name in ("rank", "methods", "qlora", "qat"): assert stale(name, changed) == set(EXPERIMENTS[name].conditions)
    for name in ("gptq", "formats", "gradient_check"): assert stale(name, changed) == set()


def test_a_changed_operation_makes_everything_stale():
    changed = edited("tinypeft.engine.functional", "layer_norm", "x = x")
    for name in ("rank", "methods", "gptq", "gradient_check", "memory"):
        assert stale(name, changed) == set(EXPERIMENTS[name].conditions), name


def docstrings(node):
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
        node.body[0] = ast.Expr(ast.Constant("Said otherwise."))


def annotations(node):
    if not isinstance(node, ast.FunctionDef): return
    node.returns = ast.Name("object")
    for arg in node.args.args: arg.annotation = ast.Name("object")


def messages(node):
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call): node.exc.args = [ast.Constant("said otherwise")]


def layout(node):
    """`ast.unparse` drops the comments and breaks lines in other places."""


@pytest.mark.parametrize("change", [docstrings, annotations, messages, layout])
def test_words_and_layout_make_nothing_stale(change):
    changed = {}
    for module in ("tinypeft.peft.lora", "tinypeft.engine.nn", "tinypeft.training.loop", "tinypeft.engine.functional"):
        tree = ast.parse(source(module))
        for node in ast.walk(tree): change(node)
        changed[module] = ast.unparse(tree)
        assert changed[module] != source(module)
    assert stale("rank", changed) == set()


TOY = """
import math
import numpy as np
from . import corpus as words
from .quant import nf4
LIMIT = 3
LIMIT += 1
class Base:
    def used(self): return LIMIT
class Toy(Base):
    x: int = 1
    def __init__(self): self.y = words.base
    def used(self): return super().used()
    def unused(self): return nf4.NF4
    def by_name(self): return 1
    def __repr__(self): return "toy"
def other(): return 1
def measure(value, seed, settings):
    def inner():
        from .peft.lora import LoRA as L
        return L
    if seed < 0: raise ValueError("told")
    return Toy().used(), hasattr(value, "by_name"), np.unused, math.pi
"""


def reached(text):
    class Toy(Sources):                                  # a module of the package that is not there
        def _file(self, name):
            return PACKAGE / "engine" / "tensor.py" if name == "tinypeft.toy" else super()._file(name)
    function = type("F", (), {"__module__": "tinypeft.toy", "__qualname__": "measure"})
    return Toy({"tinypeft.toy": text}).reach([function])


def test_what_the_walk_follows():
    found = reached(TOY)
    assert {"toy.py measure", "toy.py Toy", "toy.py Base", "toy.py LIMIT", "peft/lora.py LoRA"} <= set(found)
    assert "toy.py other" not in found and "quant/nf4.py NF4" not in found


def test_the_walk_follows_the_packages_late_names():
    found = reached("import tinypeft as tp\ndef measure(value, seed, settings): return tp.NF4, tp.train")
    assert {"quant/nf4.py NF4", "training/loop.py train"} <= set(found) and "peft/lora.py LoRA" not in found


@pytest.mark.parametrize("old, new, which", [
    ("LIMIT += 1", "LIMIT += 2", {"LIMIT"}), ("return super().used()", "return 1 + super().used()", {"Toy"}),
    ("x: int = 1", "x: int = 2", {"Toy"}), ("x: int = 1", "x: float = 1", set()), ("return nf4.NF4", "return 3", set()),
    ("def by_name(self): return 1", "def by_name(self): return 2", {"Toy"}), ('"toy"', '"another"', set()),
    ('ValueError("told")', 'ValueError("said", "otherwise")', set()), ("seed < 0", "seed < 1", {"measure"}),
    ("def other(): return 1", "def other(): return 2", set()), ("LIMIT = 3", "LIMIT: int = 3", set()),
    ("x: int = 1", "x = 1", {"Toy"})])
def test_what_counts_in_a_hash(old, new, which):
    assert old in TOY
    before, after = reached(TOY), reached(TOY.replace(old, new))
    assert {d for d in {*before, *after} if before.get(d) != after.get(d)} == {f"toy.py {name}" for name in which}


def test_a_registry_is_a_dead_end():
    e = EXPERIMENTS["methods"]
    found = definitions(e.measure, e.conditions["prompt"])
    assert "peft/prompt.py PromptTuning" in found and "peft/__init__.py METHODS" not in found
    assert not [d for d in found if d.startswith(("interop", "study/pictures", "study/plot", "markup", "progress", "course"))]


def test_a_function_without_a_file_is_refused():
    function = type("F", (), {"__module__": "__notebook__.cell", "__qualname__": "measure"})
    with pytest.raises(ValueError, match="has no source file"): definitions(function, None)


def test_where_a_value_starts():
    value = {"a": (tp.LoRA(), [tp.GPTConfig(8, 8, 8, 1, 1)]), "f": definitions, "n": None}
    assert {f.__name__ for f in starts(value)} >= {"LoRA", "GPTConfig", "definitions", "NoneType"}


def test_no_value_hides_its_code_or_its_name():
    """Each is written by its `repr` in the results, and goes to another process."""
    import pickle
    for e in EXPERIMENTS.values():
        for label, value in e.conditions.items():
            assert " at 0x" not in repr(value) and "lambda" not in repr(value), (e.name, label)
            pickle.dumps(value)
            assert all(f.__name__ != "<lambda>" for f in starts(value))


def test_hashes_do_not_depend_on_pythons_version():
    """ast.dump and ast.unparse differ between versions; the text that is hashed is the project's own."""
    tree = dependencies._Bare().visit(ast.parse("def f(a, *, b: int = 1) -> int:\n    'd'\n    return f'{a!r:>{b}}' + 'x' 'y'"))
    assert dependencies._text(tree.body[0]).startswith("(FunctionDef name='f' args=(arguments args=[(arg arg='a')]")
    assert dependencies._hash([dependencies._text(tree.body[0])]) == HASH


HASH = "5af11817"
