"""`import tinypeft` is quick, and every public name is there when it is used."""
import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tinypeft

ROOT = Path(__file__).parents[2]
TOY = {"__init__": "from typing import TYPE_CHECKING\nfrom tinypeft.common.lazy import lazily\nlazily(__name__)\n"
                   "if TYPE_CHECKING:\n    from .train import rate, train\n"
                   "    from .inner import parts\n    from . import alone\n",
       "train": "rate = 3\ndef train(): return rate", "alone": "", "other": "from . import train as module",
       "broken": "import no_such_module", "inner/__init__": "", "inner/parts": ""}


def python(code, **options):
    """What a fresh interpreter prints, with compiled files; it does not run `site`, which imports modules of its own."""
    code = f"import sys; sys.path[:0] = {[str(ROOT), *sys.path]!r}\n{code}"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, **options)
    return done.stdout.split()


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A package that is lazy."""
    for name, text in TOY.items():
        path = tmp_path / "lazy_toy" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("lazy_toy")
    for name in [name for name in sys.modules if name.startswith("lazy_toy")]: del sys.modules[name]


# -- the package itself ----------------------------------------------------------------------------
def test_import_is_light(tmp_path):
    """Nothing but itself is imported, and the processor works no longer than 1.3 times as long as for NumPy, once the first
    import has compiled the files."""
    compiled = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    code = ("import time; start = time.process_time(); import {}; print(time.process_time() - start)\n"
            "print(*sorted({{name.split('.')[0] for name in sys.modules}} - {{*sys.stdlib_module_names, '__main__'}}))")
    runs = {name: [python(code.format(name), env=compiled) for _ in range(6)] for name in ("numpy", "tinypeft")}
    assert runs["tinypeft"][-1][1:] == ["tinypeft"]
    fastest = {name: min(float(run[0]) for run in of_one) for name, of_one in runs.items()}
    tick = 1 / 64 if sys.platform == "win32" else 0      # Windows counts a process's time in such steps
    assert fastest["tinypeft"] <= 1.3 * fastest["numpy"] + tick, fastest


def test_all_names_need_numpy_alone():
    third = "{name.split('.')[0] for name in sys.modules} - {*sys.stdlib_module_names, '__main__'}"
    found = python(f"from tinypeft import *; print(LoRA.__name__, *sorted(name for name in {third} if name[0] != '_'))")
    assert found == ["LoRA", "numpy", "tinypeft"]


def test_the_version_stands_once_and_importing_nothing_reads_it():
    """In a checkout that is not installed, too. setuptools reads it from the text of the file."""
    third = "{name.split('.')[0] for name in sys.modules} - {*sys.stdlib_module_names, '__main__'}"
    assert python(f"import tinypeft; print(tinypeft.__version__, *{third})") == [tinypeft.__version__, "tinypeft"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert "version" not in project["project"] and project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "tinypeft.__version__"}
    build = pytest.importorskip("setuptools.config.expand")
    assert build.read_attr("tinypeft.__version__", root_dir=ROOT) == tinypeft.__version__


def test_every_public_name_is_there():
    assert len(tinypeft.__all__) > 70 and set(tinypeft.__all__) <= set(dir(tinypeft))
    for package in tinypeft, tinypeft.engine, tinypeft.models, tinypeft.training, tinypeft.interop:
        for name in package.__all__: assert getattr(package, name) is getattr(package, name)
    assert tinypeft.LoRA is importlib.import_module("tinypeft.peft.lora").LoRA
    assert tinypeft.tasks is importlib.import_module("tinypeft.text.tasks")


@pytest.mark.parametrize("name", ["graph", "gradcheck"])
def test_a_function_has_its_name_before_the_module_of_the_same_name(name):
    home = f"tinypeft.engine.{name}"
    for first in (f"import {home}", f"from {home} import {name}", home, "tinypeft.GPT"):
        assert python(f"import tinypeft\n{first}\nprint(type({home}).__name__)") == ["function"]


def test_saving_an_adapter_in_our_own_format_imports_nothing(tmp_path):
    code = ("import sys, tinypeft as tp; tuned = tp.attach(tp.GPT(tp.GPTConfig(50, 16, 16, 1, 2), rng=0), tp.LoRA(rank=2))\n"
            f"before = {{*sys.modules}}; tuned.save({str(tmp_path)!r})\n"
            "print(*sorted(name for name in {*sys.modules} - before if name.startswith('tinypeft')))")
    assert python(code) == []


def test_a_folder_of_peft_is_written_and_read_when_nothing_else_was_imported(tmp_path):
    start = ("from tinypeft.models import GPT, GPTConfig; from tinypeft.peft import LoRA, attach, load_adapter\n"
             "model = GPT(GPTConfig(50, 16, 16, 1, 2), rng=0)\n")
    python(start + f"attach(model, LoRA(rank=2)).save({str(tmp_path)!r}, 'peft')")
    assert python(start + f"print(type(load_adapter(model, {str(tmp_path)!r}).method).__name__)") == ["LoRA"]


# -- a toy -----------------------------------------------------------------------------------------
def test_a_model_is_written_for_transformers_when_nothing_else_was_imported(tmp_path):
    code = ("import tinypeft as tp; tp.save_model(tp.GPT(tp.GPTConfig(16, 8, 8, 1, 2)), sys.argv[1])\n"
            "print(tp.load_model(sys.argv[1]).n_parameters() > 0)")
    assert python(code.replace("sys.argv[1]", repr(str(tmp_path)))) == ["True"]


def test_names_are_imported_when_they_are_used(toy):
    loaded = lambda: {name for name in sys.modules if name.startswith("lazy_toy.")}
    assert loaded() == set() and {"train", "rate", "parts", "alone"} <= set(dir(toy)) and loaded() == set()
    assert toy.train() == toy.rate == 3 and loaded() == {"lazy_toy.train"}
    assert toy.parts.__name__ == "lazy_toy.inner.parts" and toy.alone.__name__ == "lazy_toy.alone"
    assert toy.__all__ == ["rate", "train", "parts", "alone"]
    assert vars(toy)["train"] is toy.train


def test_a_module_that_is_imported_first_leaves_the_name_to_the_function(toy):
    assert importlib.import_module("lazy_toy.train").rate == 3
    assert toy.train() == 3
    assert toy.other.module is toy.train                 # `from . import train` gives what the package shows


def test_modules_are_found_without_being_listed(toy):
    assert toy.inner.__name__ == "lazy_toy.inner" and "inner" not in toy.__all__


@pytest.mark.parametrize("name", ["nothing", "_hidden", "__wrapped__"])
def test_a_name_that_does_not_exist(toy, name):
    with pytest.raises(AttributeError, match=f"module 'lazy_toy' has no attribute '{name}'"): getattr(toy, name)
    with pytest.raises(ImportError, match=name): exec(f"from lazy_toy import {name}")


def test_what_a_module_lacks_is_said(toy):
    with pytest.raises(ModuleNotFoundError, match="no_such_module"): _ = toy.broken
