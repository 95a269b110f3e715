"""CONTRIBUTING can be followed: a toy method is added to a copy of the checkout, step by step, and nothing else is touched."""
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from tinypeft.commands.cli import parser
from tinypeft.study.pages import ROOT

PAGE = (ROOT / ".github" / "CONTRIBUTING.md").read_text("utf-8")
RECIPES = {title: re.split(r"^\d\. ", body, flags=re.M)[1:] for title, body in
           re.findall(r"^## Add an? (\w+) in five steps\n(.*?)(?=^## |\Z)", PAGE, re.S | re.M)}


# -- what the page says --------------------------------------------------------------------------
def named(step):
    """The files that a step begins with: those in its first sentence."""
    first = re.split(r"\.(?:\s|$)", step, maxsplit=1)[0]
    return re.findall(r"`([\w/.]+/[\w.]*)`", first)


def commands(text):
    """The commands of a step, those in a block and those in backticks."""
    blocks = [line.strip() for block in re.findall(r"```text\n(.*?)```", text, re.S) for line in block.splitlines()]
    inline = re.findall(r"`((?:python -m tinypeft|pytest|ruff) [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    return [line for line in blocks if line] + inline


def test_there_are_four_recipes_of_five_steps_that_end_in_one_command():
    assert list(RECIPES) == ["method", "scheme", "exercise", "claim"]
    for title, steps in RECIPES.items():
        last = commands(steps[-1])[-1].split()
        assert len(steps) == 5 and last[0] == "pytest" and len(last) > 1
        if title != "exercise": assert {"tests/test_complete.py", "tests/test_pages.py"} <= {*last}


@pytest.mark.parametrize("title", RECIPES)
def test_what_a_recipe_names_exists(title):
    for path in re.findall(r"`((?:tinypeft|tests|lessons|figures)/[\w/.]+)`", " ".join(RECIPES[title])):
        if not re.search("NAME|TOPIC|NN_|latest", path): assert (ROOT / path).exists(), path
        else: assert (ROOT / path).parent.is_dir() or "latest" in path, path
    for command in commands(" ".join(RECIPES[title])):
        if command.startswith("python -m tinypeft"): parser().parse_args(command.split()[3:])
        for path in re.findall(r"(?<= )tests/\S+", command):
            assert re.search("NAME|TOPIC", path) or (ROOT / path).exists(), command


# -- a method, step by step ----------------------------------------------------------------------
METHOD = '''"""Toy: a trained shift of what a linear layer gives (nobody, arXiv 2106.09685).

A vector is added to the output of a frozen layer, and trained. It can be merged into the bias.

    h = W x + b

    paper      here           shape
    b          b              (d_out,), starts at 0

Where implementations differ: there is only this one.
"""
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..common.hints import Rng, Targets
from ..common.hyper import layer_names
from ..engine.nn import Linear, Module, Parameter
from ..engine.tensor import Tensor
from .method import Method, Wrapper

__all__ = ["Toy"]


class Shifted(Wrapper):
    """h = W x + b."""

    def __init__(self, base: Module, method: "Toy", rng: Rng):
        self.base, self.b = base, Parameter(np.zeros(base.d_out, np.float32))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b

    def merge(self) -> Linear:
        merged = Linear(self.base.d_in, self.base.d_out)
        merged.weight.data = self.base.dense_weight().astype(self.b.dtype)
        merged.bias.data = self.b.data + (0 if self.base.bias is None else self.base.bias.data)
        return merged


@dataclass(frozen=True)
class Toy(Method):
    """Train a shift of the layers named in `targets`."""
    targets: Targets = layer_names(("query", "value"))
    learning_rate: ClassVar[float] = 1e-2
    wrapper: ClassVar[type[Wrapper]] = Shifted
'''

TESTS = '''"""Toy: PyTorch's numbers. What every method promises is in test_methods.py."""
import pytest

import tinypeft as tp
from tests.protocol import assert_same_race, learned


def test_20_steps_equal_pytorchs_numerical(gpt, tokens):
    torch = pytest.importorskip("torch")
    from tests.oracles.torch_gpt import torch_copy
    oracle, pairs = torch_copy(gpt()), []
    tuned = learned(gpt(), tp.Toy())
    for path, wrapper in tuned.wrappers.items():
        b = torch.nn.Parameter(torch.zeros(16, dtype=torch.float64))
        oracle.get_submodule(path).register_forward_hook(lambda layer, x, y, b=b: y + b)
        pairs.append((wrapper.b, b))
    assert_same_race(tuned, oracle, pairs, tokens)
'''

ROW = '''    "toy": Row(
        tp.Toy(),
        each_layer(lambda m, path, i, o: o),
        equation=lambda m, layer, x: linear(x, weight(layer), bias(layer)) + layer.b.data, no_folder="PEFT has no"),
    "adapter": Row(
'''

ENTRY = '''    "toy": About("Toy", "h = W x + b, b trained", ("2106.09685",), "07", ("yellow", "p"), "toy"),
    # -- schemes
'''

LINE = "### Changed\n\n- `Toy` adds a trained vector to what a layer gives.\n"


class Checkout:
    """A copy of the checkout, in which files are changed and commands run."""

    def __init__(self, folder):
        self.folder = folder
        left_out = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", ".hypothesis", "latest", "*.egg-info")
        shutil.copytree(ROOT, folder, ignore=left_out)

    def change(self, path, *replacements):
        text = (self.folder / path).read_text("utf-8")
        for old, new in replacements:
            assert text.count(old) == 1, (path, old)
            text = text.replace(old, new)
        (self.folder / path).write_text(text, "utf-8")

    def write(self, path, text):
        (self.folder / path).write_text(text, "utf-8")

    def run(self, command):
        """(exit status, what was printed) of a command as CONTRIBUTING writes it."""
        program, *arguments = command.split()
        words = {"python": [sys.executable], "pytest": [sys.executable, "-m", "pytest", "-q"]}[program] + arguments
        return self.call(words)

    def call(self, words):
        env = {**os.environ, "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(words, cwd=self.folder, env=env, capture_output=True, encoding="utf-8")
        return done.returncode, done.stdout + done.stderr


def write_the_method(copy):
    copy.write("tinypeft/peft/toy.py", METHOD)


def list_it(copy):
    copy.change("tinypeft/peft/methods.py", ("from .prompt import", "from .toy import Toy\nfrom .prompt import"),
                ('{"probe": LinearProbe}', '{"probe": LinearProbe, "toy": Toy}'))
    status, printed = copy.run("python -m tests.names")
    assert status == 0, printed


def write_the_tests(copy):
    copy.write("tests/peft/test_toy.py", TESTS)
    copy.change("tests/methods.py", ('    "adapter": Row(\n', ROW))
    status, printed = copy.run("python -m tests.common.test_limits")
    assert status == 0, printed


def say_what_is_known(copy):
    copy.change("tinypeft/study/about.py", ("    # -- schemes\n", ENTRY))


def write_the_pages(copy):
    """The block of commands, word by word as the page has it, for a method that is not of the survey."""
    changelog = copy.folder / ".github" / "CHANGELOG.md"
    changelog.write_text(changelog.read_text("utf-8").replace("### Changed\n", LINE, 1), "utf-8")
    (block,) = re.findall(r"```text\n(.*?)```", RECIPES["method"][4], re.S)
    for command in block.strip().splitlines():
        status, printed = copy.run(command.strip())
        assert status == 0, printed


# what the test does in each step, the files that it writes there, and which of the page's checks it runs afterwards
STEPS = [
    (write_the_method, ["tinypeft/peft/NAME.py"], []),
    (list_it, ["tinypeft/peft/methods.py"], []),
    (write_the_tests, ["tests/methods.py", "tests/common/limits.txt", "tests/peft/test_NAME.py"],
     ["pytest tests/peft/test_NAME.py tests/peft/test_methods.py -k NAME",
      "pytest tests/common/test_hyper.py tests/common/test_limits.py"]),
    (say_what_is_known, ["tinypeft/study/about.py"], ["pytest tests/study/test_about.py"]),
    (write_the_pages, [".github/CHANGELOG.md"], [commands(RECIPES["method"][4])[-1]]),
]
# the files that `pytest tests/test_complete.py -k NAME` names after each step
LEFT = [
    {"tinypeft/peft/methods.py"},
    {"tinypeft/study/about.py", "tests/methods.py", "tests/peft/test_toy.py"},
    {"tinypeft/study/about.py"}, set(), set()]


@pytest.mark.long
def test_a_method_is_added_by_following_the_page(tmp_path):
    """After each step the tests name what is left. At the end the last command passes: it names all pages before they are
    written."""
    copy = Checkout(tmp_path / "checkout")
    last = STEPS[-1][2][0]
    for i, ((do, files, checks), left, text) in enumerate(zip(STEPS, LEFT, RECIPES["method"], strict=True), 1):
        assert named(text) == files, f"step {i} of the page names other files than the test"
        if i == 5:
            status, printed = copy.run(last)
            assert status == 1 and "run `python -m tinypeft figures`" in printed and "lessons build 00" in printed
        do(copy)
        for check in checks:
            assert check in commands(text), f"step {i} of the page names other checks than the test"
            status, printed = copy.run(check.replace("NAME", "toy"))
            assert status == 0, printed
        assert lacking(copy) == left, i


# What the copy measures is small, and the stored numbers are called those of these settings: they are not measured again.
SMALLER = {
    "tinypeft/study/experiments/fine_tuning.py": [
        ('"conditions": ("frozen", "full", "lora")}, classify_steps=200',
         '"conditions": ("frozen",)}, SEEDS[:1], steps=1, batch_size=1, classify_steps=1')],
    "tinypeft/study/tuning.py": [("held_out: int | None = 16384", "held_out: int | None = 512")]}
STORED_AT_THESE = """
import json
from tinypeft.study.conditions import in_full
from tinypeft.study.experiments import EXPERIMENTS
from tinypeft.study.measuring import as_text, measured_with, sealed
e, path = EXPERIMENTS["methods"], "figures/results/methods.json"
record = json.load(open(path, encoding="utf-8"))
runs = {c: {str(s): by_seed[str(s)] for s in e.seeds} for c, by_seed in record.pop("runs").items()}
open(path, "w", encoding="utf-8").write(as_text(record | measured_with() | in_full(e) | sealed(runs)))
"""


def list_it_in_the_survey(copy):
    copy.change("tinypeft/study/experiments/arms.py", ('            "ia3")', '            "ia3", "toy")'))
    copy.change("tinypeft/study/experiments/smollm2.py", ('"ptuning_v2")}', '"ptuning_v2", "toy")}'))


def test_a_method_of_the_survey_is_measured_alone(tmp_path):
    """By the command of the page, and with one training step. What is stored stays as it is."""
    copy = Checkout(tmp_path / "checkout")
    for path, replacements in SMALLER.items(): copy.change(path, *replacements)
    status, printed = copy.call([sys.executable, "-c", STORED_AT_THESE])
    assert status == 0, printed
    runs = lambda: json.loads((copy.folder / "figures" / "results" / "methods.json").read_text("utf-8"))["runs"]
    before = runs()
    for do in (write_the_method, list_it, list_it_in_the_survey): do(copy)
    command = "python -m tinypeft figures methods --rerun"
    assert command in commands(RECIPES["method"][4])
    status, printed = copy.run(command)
    after = runs()
    assert status == 0 and after.keys() - before.keys() == {"toy"}, printed
    assert all(after[c] == before[c] for c in before) and after["toy"].keys() == before["lora"].keys()
    assert after["toy"]["20"]["trained"] == 2 * 5 * 128


def lacking(copy):
    """The files in which something is missing, of which there are none if and only if the test passes."""
    status, printed = copy.run("pytest tests/test_complete.py -k toy -p no:cacheprovider")
    files = {*re.findall(r"^([\w/.]+\.\w+): ", printed, re.M)}
    assert status in ((1,) if files else (0, 5)), printed
    return files
