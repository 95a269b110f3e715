"""Dependencies: an edit of a module that a number depends on makes it stale; words, layout and other modules do not."""
import contextlib
import functools
import importlib
import pickle
import sys

import pytest

import tinypeft as tp
from tinypeft.study import dependencies as d
from tinypeft.study.experiments import EXPERIMENTS


@contextlib.contextmanager
def edited(module, old="", new="planted = 1\n"):
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


def hashes(name):
    """Condition of an experiment → the hashes of what it depends on."""
    e = EXPERIMENTS[name]
    return {label: d.dependencies(e.measure, value) for label, value in e.conditions.items()}


hashes_before = functools.cache(hashes)


def stale(name, module, *edit):
    """The conditions of an experiment that an edit of a module makes stale."""
    before = hashes_before(name)
    with edited(f"tinypeft.{module}", *edit): after = hashes(name)
    return {label for label in before if before[label] != after[label]}


# -- edits that make stale -------------------------------------------------------------------------
@pytest.mark.parametrize("module, name, some", [
    ("peft.lora", "methods", {"lora", "lora_all", "dylora"}), ("peft.lora", "rank", "all"), ("peft.lora", "qlora", "all"),
    ("peft.lora", "first_look", {"lora_all", "qlora_all"}),
    ("peft.lora", "prompts", None), ("peft.lora", "gptq", None), ("peft.adapter", "methods", {"adapter"}),
    ("peft.adapter", "rank", None), ("quant.nf4", "schemes", {"NF4", "NF4 double"}), ("quant.nf4", "qlora", "all"),
    ("quant.nf4", "rank", None), ("training.loop", "methods", "all"), ("training.loop", "loftq", "all"),
    ("training.loop", "gptq", None), ("training.loop", "gradient_check", None), ("engine.functional", "gptq", "all"),
    ("engine.functional", "gradient_check", "all"), ("engine.functional", "memory", "all")])
def test_an_edit_makes_stale_what_uses_the_module(module, name, some):
    """Some conditions, all, or none. Where it is some, others stay fresh."""
    found, conditions = stale(name, module), set(EXPERIMENTS[name].conditions)
    if some is None: assert found == set()
    elif some == "all": assert found == conditions
    else: assert some <= found < conditions


@pytest.mark.parametrize("edit", [
    ("FACTOR = 1.8", "FACTOR = 1.9"), ('split="validation"', 'split="test"'), ("except DivergedError", "except ValueError")])
def test_what_an_experiment_measures_with_counts(edit):
    """A constant, the measuring function, and a function that it calls."""
    assert stale("rates", "study.experiments.rates", *edit) == set(EXPERIMENTS["rates"].conditions)


# -- edits that do not -----------------------------------------------------------------------------
@pytest.mark.parametrize("old, new", [
    ('"""LoRA', '"""Said otherwise: LoRA'), ("\n\n\nclass ", "\n\n\n\n# another\nclass "), ("", "# a comment\n")])
def test_words_and_layout_make_nothing_stale(old, new):
    assert stale("rank", "peft.lora", old, new) == set()


@pytest.mark.parametrize("module", [
    "course.check", "course.exercises.lora", "commands.cli", "commands.training", "study.pages", "study.claims.methods",
    "study.pictures.fair", "interop.adapters", "peft", "peft.prefix", "quant", "quant.awq", "text.tasks", "text.tasks.own",
    "common.hyper", "files.arrays", "training.checkpoints"])
def test_an_unrelated_module_makes_nothing_stale(module):
    assert stale("rank", module) == set()


@pytest.mark.parametrize("name, module, old, new", [
    ("rank", "rank", 'tuned("rank")', 'tuned("rank") | {"another": Arm(None)}'), ("rank", "rank", "trained parameters", "so"),
    ("rank", "arms", "", "planted = 1\n"), ("qlora", "arms", '    "dylora": {', '    "another": {}, "dylora": {'),
    ("qlora", "best", "", "planted = 1\n")])
def test_another_condition_word_or_rate_makes_no_stored_condition_stale(name, module, old, new):
    """Values and settings are compared themselves."""
    assert stale(name, f"study.experiments.{module}", old, new) == set()


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
    ("start", '"""Measure."""', '"""Another."""', False), ("start", '"""What measures."""\n', "", False),
    ("apart", "1", "2", False)])
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


def test_what_is_silent_exists():
    assert [name for name in d.SILENT if not d.file_of(name.removesuffix("."))] == []


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
