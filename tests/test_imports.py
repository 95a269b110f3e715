"""The house holds: imports point one way and in no circle, nothing imports an oracle, and `import tinypeft` is light."""
import ast
import graphlib
import sys
from pathlib import Path

import pytest

import tinypeft
from tests.names import LISTS, PACKAGE, written

ROOT = Path(__file__).parents[1] / "tinypeft"
FILES = {path.relative_to(ROOT).with_suffix("").as_posix(): path for path in sorted(ROOT.rglob("*.py"))}

# A folder may import those before it.
ORDER = ["common", "files", "engine", "models", "training", "text", "pretrained", "peft", "quant", "interop", "study", "course",
         "commands", "__main__"]
COMPOSITIONS = {"quant/loftq", "quant/peqa"}             # a scheme and a method at once: other schemes know no method

RUN_TIME = {"numpy", "scipy", "matplotlib", "IPython", "ipykernel", "nbformat", "nbclient", "nbconvert", "pytest"}
NETWORK = {"socket", "http", "urllib", "ssl", "ftplib", "requests", "huggingface_hub"}
UNSAFE = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal"}


def imports(name, tree):
    """(what is imported, as an absolute name; the line) for every import in a file, those inside functions too."""
    package = ["tinypeft", *name.split("/")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            base += [node.module] if node.module else []
            yield from ((".".join([*base, alias.name]), node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            if node.args and isinstance(node.args[0], ast.Constant): yield node.args[0].value, node.lineno


def faults(name, source):
    """What in a file breaks the rules of the house, as a list of sentences."""
    tree, found = ast.parse(source), []
    part = name.split("/")[0]
    for target, line in imports(name, tree):
        top, *inner = target.split(".")
        where = f"{name}.py:{line} imports {target}"
        if top == "tinypeft":
            other = inner[0] if inner else "__init__"
            if part == "__init__": continue
            if other not in ORDER: found.append(f"{where}: not a part of the house")
            elif ORDER.index(other) > ORDER.index(part): found.append(f"{where}: upwards, {other} comes after {part}")
            elif (part, other) == ("quant", "peft") and name not in COMPOSITIONS:
                found.append(f"{where}: a scheme knows no method")
        elif top in UNSAFE:  found.append(f"{where}: what it reads can run code")
        elif top in NETWORK: found.append(f"{where}: nothing here needs a network")
        elif top == "random": found.append(f"{where}: its state is global, use numpy.random.default_rng")
        elif top not in sys.stdlib_module_names and top not in RUN_TIME: found.append(f"{where}: not a package of the project")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr == "random":
            if node.attr not in ("default_rng", "Generator", "RandomState", "SeedSequence"):
                found.append(f"{name}.py:{node.lineno} uses np.random.{node.attr}: its state is global")
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and getattr(node.value, "value", True) is not False:
            found.append(f"{name}.py:{node.lineno} allows pickle")
    return found


def test_every_file_keeps_to_the_house():
    assert [fault for name, path in FILES.items() for fault in faults(name, path.read_text("utf-8"))] == []


def test_every_part_has_its_place():
    assert {name.split("/")[0] for name in FILES} - {"__init__"} == {*ORDER}


@pytest.mark.parametrize("part", ORDER[:-1])
def test_a_folder_says_what_is_in_it(part):
    """Its `__init__` is a map of at most forty lines that names every file; METHODS has those of methods."""
    text = FILES[f"{part}/__init__"].read_text("utf-8")
    assert text.count("\n") <= 40
    names = {name.split("/")[1] for name in FILES if name.startswith(f"{part}/")} - {"__init__"}
    names -= {cls.__module__.removeprefix(f"tinypeft.{part}.") for cls in tinypeft.METHODS.values()}
    assert [name for name in sorted(names) if name not in ast.get_docstring(ast.parse(text))] == []


def file_of(target):
    """The file that a dotted name of the package is in, or None."""
    parts = target.split(".")[1:]
    candidates = ("/".join(parts[:n] + end) for n in range(len(parts), -1, -1) for end in ([], ["__init__"]))
    return next((name for name in candidates if name in FILES), None)


def arrows(name, source):
    """The files that a file imports, inside functions and under TYPE_CHECKING too."""
    return {file_of(target) for target, _ in imports(name, ast.parse(source)) if target.startswith("tinypeft.")}


def test_no_circle():
    graph = {name: arrows(name, path.read_text("utf-8")) for name, path in FILES.items()}
    graphlib.TopologicalSorter(graph).prepare()          # CycleError names the circle


def test_a_circle_is_found():
    lines = "def f():\n    from .model import attach", "if TYPE_CHECKING:\n    from ..peft import model"
    for source in lines: assert arrows("peft/method", source) == {"peft/model"}
    assert "peft/method" in arrows("peft/model", FILES["peft/model"].read_text("utf-8"))


@pytest.mark.parametrize("name, source, says", [
    ("engine/tensor", "from ..models.gpt import GPT", "engine/tensor.py:1 imports tinypeft.models.gpt.GPT: upwards"),
    ("models/gpt", "def f():\n    from .. import peft", "models/gpt.py:2 imports tinypeft.peft: upwards"),
    ("peft/folders", "if TYPE_CHECKING:\n    from .. import interop", "folders.py:2 imports tinypeft.interop: upwards"),
    ("peft/lora", "from .. import quant", "peft/lora.py:1 imports tinypeft.quant: upwards, quant comes after peft"),
    ("quant/nf4", "from ..peft.model import attach", "a scheme knows no method"),
    ("engine/nn", "import tinypeft", "not a part of the house"),
    ("engine/nn", "import torch.nn", "not a package of the project"),
    ("text/corpus", "importlib.import_module('transformers')", "not a package of the project"),
    ("files", "import pickle", "can run code"),
    ("files", "np.load(f, allow_pickle=True)", "files.py:1 allows pickle"),
    ("interop/gpt2", "import urllib.request", "network"),
    ("engine/nn", "import random", "global"),
    ("engine/nn", "np.random.seed(0)", "engine/nn.py:1 uses np.random.seed: its state is global"),
    ("engine/nn", "x = np.random.randn(3)", "np.random.randn"),
])
def test_faults_are_found(name, source, says):
    (fault,) = faults(name, source)
    assert says in fault


@pytest.mark.parametrize("name, source", [
    ("models/gpt", "from ..engine import functional as F\nfrom .decoder import Decoder"),
    ("quant/loftq", "from ..peft import LoRA"),
    ("peft/lora", "from .model import Method\nfrom ..engine.nn import Linear"), ("__init__", "from .peft import *"),
    ("engine/nn", "np.random.default_rng(0)\nimport math, scipy.special"), ("files", "np.load(f, allow_pickle=False)")])
def test_what_is_right_is_no_fault(name, source):
    assert faults(name, source) == []


def test_the_package_holds_public_names_and_nothing_else():
    tree = ast.parse(FILES["__init__"].read_text("utf-8"))
    assert ast.get_docstring(tree)
    *start, listed = tree.body[1:]
    assert [ast.unparse(node) for node in start] == ["from typing import TYPE_CHECKING", "from .common.lazy import lazily",
                                                     "lazily(__name__)", f"__version__ = {tinypeft.__version__!r}"]
    assert isinstance(listed, ast.If) and ast.unparse(listed.test) == "TYPE_CHECKING"
    assert {type(node) for node in listed.body} == {ast.ImportFrom}
    assert all(node.level == 1 and alias.asname is None for node in listed.body for alias in node.names)


@pytest.mark.parametrize("file", LISTS)
def test_the_lists_of_methods_are_those_of_methods_py(file):
    text = (PACKAGE / file).read_text("utf-8")
    assert text == written(file), "METHODS has other names; run python -m tests.names"


def test_public_names_exist():
    for name in FILES: check_public_names(name)


def check_public_names(name):
    tree = ast.parse(FILES[name].read_text("utf-8"))
    defined = {n.id for node in tree.body for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    defined |= {node.name for node in tree.body if hasattr(node, "name")}
    defined |= {a.asname or a.name for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom)) for a in node.names}
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            missing = set(ast.literal_eval(node.value)) - defined
            assert not missing or "*" in defined, f"{name}: __all__ names {missing}"


