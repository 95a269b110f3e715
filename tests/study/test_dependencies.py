"""Dependencies: an edit of a module that a number depends on makes it stale; words, layout and other modules do not."""
import contextlib
import importlib
import pickle
import sys

import pytest

import tinypeft as tp
from tinypeft.study import dependencies as d
from tinypeft.study.experiments import EXPERIMENTS


@contextlib.contextmanager
def edited(module, old, new):
    """As if a file of the package had `new` in place of `old` (of "": at its end)."""
    text, plain = d.file_of(module).read_text("utf-8"), d.tree_of
    assert old in text, (module, old)
    planted = d.without_docstrings(text.replace(old, new) if old else text + new)
    forget()
    d.tree_of = lambda name: planted if name == module else plain(name)
    try:
        yield
    finally:
        d.tree_of = plain
        forget()


def forget():
    for function in (d.home, d.uses, d.imports, d.definitions, d.hash_of): function.cache_clear()


def stale(name, *edit):
    """The conditions of an experiment that an edit (module, old text, new text) makes stale."""
    e = EXPERIMENTS[name]
    hashes = lambda: {label: d.dependencies(e.measure, value) for label, value in e.conditions.items()}
    before = hashes()
    with edited(*edit): after = hashes()
    return {label for label in before if before[label] != after[label]}


def every(name):
    return set(EXPERIMENTS[name].conditions)


# -- edits that make stale -------------------------------------------------------------------------
FORWARD = "tinypeft.peft.lora", "return self.base(x) + F.linear(Ax, self.B)", "return self.base(x) - F.linear(Ax, self.B)"


@pytest.mark.parametrize("name, expected", [
    ("methods", {"lora", "lora_all", "dylora", "adalora"}), ("rank", "all"), ("adapters", set()), ("qlora", "all"),
    ("dylora", "all"), ("adalora", "all"), ("prompts", set()), ("prefix_length", set()), ("gptq", set()),
    ("frontier", {"lora_all", "adalora"}), ("first_look", {"lora_all", "qlora_all"}),
    ("lengths", {"lora_all 600", "lora_all 1500"})])
def test_a_changed_lora_makes_stale_what_trains_a_lora(name, expected):
    """AdaLoRA and DyLoRA import its module."""
    assert stale(name, *FORWARD) == (every(name) if expected == "all" else expected)


def test_a_changed_adapter_makes_stale_what_trains_one():
    edit = "tinypeft.peft.adapter", "def forward(self, x: Tensor) -> Tensor:\n", "def forward(self, x):\n        x = -x\n"
    assert stale("methods", *edit) == {"adapter", "parallel_adapter"} and stale("rank", *edit) == set()


def test_a_changed_scheme_makes_stale_what_rounds_by_it():
    edit = "tinypeft.quant.nf4", "64", "32"
    assert {"NF4", "NF4 double"} <= stale("schemes", *edit) and "GPTQ 4 bit" not in stale("schemes", *edit)
    assert {"QLoRA, NF4", "LoftQ, NF4"} <= stale("loftq", *edit) < every("loftq") and stale("rank", *edit) == set()


def test_a_changed_loop_makes_everything_stale_that_trains():
    edit = "tinypeft.training.loop", "optimizer.step()", "optimizer.step() or 0"
    for name in ("rank", "methods", "adalora", "prompts", "loftq", "subspace"): assert stale(name, *edit) == every(name)
    for name in ("gptq", "formats", "gradient_check"): assert stale(name, *edit) == set()


def test_a_changed_operation_makes_everything_stale():
    edit = "tinypeft.engine.functional", "def layer_norm(", "def layer_norm(_=0, *, "
    for name in ("rank", "methods", "gptq", "gradient_check", "memory"): assert stale(name, *edit) == every(name), name


@pytest.mark.parametrize("edit", [
    ("FACTOR = 1.8", "FACTOR = 1.9"), ('split="validation"', 'split="test"'), ("except DivergedError", "except ValueError")])
def test_what_an_experiment_measures_with_counts(edit):
    """A constant, the measuring function, and a function that it calls."""
    assert stale("rates", "tinypeft.study.experiments.rates", *edit) == every("rates")


# -- edits that do not -----------------------------------------------------------------------------
@pytest.mark.parametrize("old, new", [
    ('"""LoRA: ', '"""Said otherwise: '), ("# (…, r)", "# of rank r"), ("\n\n\nclass ", "\n\n\n\n# another\nclass "),
    (FORWARD[1], "return (self.base(x)\n + F.linear(Ax, self.B))")])
def test_words_and_layout_make_nothing_stale(old, new):
    assert stale("rank", "tinypeft.peft.lora", old, new) == set()


@pytest.mark.parametrize("module", [
    "course.check", "course.exercises.lora", "commands.cli", "commands.training", "study.pages", "study.claims.methods",
    "study.pictures.tuning", "interop.adapters", "peft.prefix", "peft.__init__", "quant.awq", "quant.__init__",
    "text.tasks.own", "text.tasks.__init__", "common.hyper", "files.arrays", "training.checkpoints"])
def test_an_unrelated_module_makes_nothing_stale(module):
    assert stale("rank", f"tinypeft.{module.removesuffix('.__init__')}", "", "planted = 1\n") == set()


@pytest.mark.parametrize("module, old, new", [
    ("rank", 'tuned("rank")', 'tuned("rank") | {"another": Arm(None)}'), ("rank", "trained parameters", "parameters"),
    ("arms", "ARMS: dict", "MORE = 1\nARMS: dict"), ("best", "0.0072", "0.0073")])
def test_another_condition_word_or_rate_makes_no_stored_condition_stale(module, old, new):
    """Values and settings are compared themselves."""
    assert stale("rank", f"tinypeft.study.experiments.{module}", old, new) == set()


# -- the rules, on a package of their own ----------------------------------------------------------
FILES = {
    "__init__.py": "from .listed import thing, unused\nLIST = 1\n",
    "listed.py": "def thing(): return 1\ndef unused(): return 2\n",
    "late.py": "import math\nclass Late: pass\n",
    "apart.py": "X = 1\n",
    "start.py": '''"""What measures."""
import numpy as np
import tinypeft.quant.nf4
from toyhouse import thing as renamed

def measure(value, seed, settings):
    """Measure."""
    from . import late
    return renamed(), late.Late(), np.pi
'''}


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A function that writes a file of a package and says what its `measure` depends on."""
    folder = tmp_path / "toyhouse"
    folder.mkdir()
    for name, text in FILES.items(): (folder / name).write_text(text, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    measure = importlib.import_module("toyhouse.start").measure

    def depends(name=None, text=""):
        if name: (folder / name).write_text(text, "utf-8")
        for function in (d.file_of, d.tree_of): function.cache_clear()
        forget()
        return d.dependencies(measure, {"a": [tp.LoRA()]})
    yield depends
    for name in [name for name in sys.modules if name.startswith("toyhouse")]: del sys.modules[name]


def test_imports_are_followed_inside_functions_through_packages_and_in_values(house):
    found = house()
    assert {f"toyhouse/{name}.py" for name in ("start", "listed", "late")} | {"quant/nf4.py", "peft/lora.py"} <= found.keys()
    assert not found.keys() & {"toyhouse/apart.py", "toyhouse/__init__.py", "peft/__init__.py", "quant/gptq.py"}
    assert all(len(digest) == 8 for digest in found.values())


@pytest.mark.parametrize("name, old, new, counts", [
    ("late", "pass", "x = 1", True), ("listed", "return 2", "return 3", True), ("start", "np.pi", "np.e", True),
    ("start", '"""Measure."""', '"""Another."""', False), ("start", "np.pi", "np.pi  # so", False), ("apart", "1", "2", False),
    ("start", '"""What measures."""\n', "", False)])
def test_what_changes_a_hash(house, name, old, new, counts):
    before, text = house(), FILES[f"{name}.py"]
    assert old in text
    after = house(f"{name}.py", text.replace(old, new))
    changed = {file for file in {*before, *after} if before.get(file) != after.get(file)}
    assert changed == ({f"toyhouse/{name}.py"} if counts else set())


def test_a_registry_is_a_dead_end():
    e = EXPERIMENTS["methods"]
    found = d.dependencies(e.measure, e.conditions["prompt"])
    assert "peft/prompt.py" in found and not found.keys() & {"peft/__init__.py", "peft/lora.py", "quant/nf4.py"}
    assert not [file for file in found if file.startswith(("interop", "course", "commands", "study/pictures", "study/claims"))]


def test_a_function_without_a_file_is_refused():
    function = type("F", (), {"__module__": "__notebook__.cell", "__qualname__": "measure"})
    with pytest.raises(ValueError, match="has no source file"): d.dependencies(function, None)


def test_where_a_value_starts():
    value = {"a": (tp.LoRA(), [tp.GPTConfig(8, 8, 8, 1, 1)]), "f": stale, "n": None}
    assert {f.__name__ for f in d.starts(value)} >= {"LoRA", "GPTConfig", "stale", "NoneType"}


def test_no_value_hides_its_code_or_its_name():
    """Each is written by its `repr` in the results, and goes to another process."""
    for e in EXPERIMENTS.values():
        for label, value in e.conditions.items():
            assert " at 0x" not in repr(value) and "lambda" not in repr(value), (e.name, label)
            pickle.dumps(value)
            assert all(f.__name__ != "<lambda>" for f in d.starts(value))


def test_hashes_do_not_depend_on_pythons_version():
    """ast.dump and ast.unparse differ between versions; the text that is hashed is the project's own."""
    tree = d.without_docstrings("def f(a, *, b: int = 1) -> int:\n    'd'\n    return f'{a!r:>{b}}' + 'x' 'y'")
    assert d.text(tree.body[0]).startswith("(FunctionDef name='f' args=(arguments args=[(arg arg='a')]")
    assert d.digest(d.text(tree.body[0])) == "35c5982d"
