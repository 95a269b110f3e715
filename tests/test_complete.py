"""What a method, a scheme or an experiment still lacks. Each sentence names a file, what is not there, and what to write.

    pytest tests/test_complete.py -k toy         of one thing;  without -k of everything

.github/CONTRIBUTING.md says how to add each kind. Other tests say what in it is wrong; this one says what is not there.
"""
import dataclasses
import functools
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import tinypeft as tp
from tests.methods import ROWS as OF_METHODS
from tests.names import LISTS as WRITTEN
from tests.schemes import ROWS as OF_SCHEMES
from tests.study.waiting import WAITING
from tinypeft import peft, quant
from tinypeft.peft import METHODS, Method
from tinypeft.quant import SCHEMES
from tinypeft.quant.scheme import Scheme
from tinypeft.study.about import ABOUT
from tinypeft.study.claims import ALL_CLAIMS
from tinypeft.study.claims.rule import NOT_MEASURED
from tinypeft.study.claims.tables import judged
from tinypeft.study.experiment import Experiment
from tinypeft.study.experiments import EXPERIMENTS
from tinypeft.study.pictures import PICTURES

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "figures" / "results"
BY_HEAD = {"probe"}                                      # a head alone: no row of the tables is about it
TEXTBOOK = {"full", "probe", "uniform", "gguf"}          # without a paper's letters to translate
SERVING = {                                              # there for other experiments, for the main job or for a page
    "rates", "classify_rates", "quant_rates", "first_look", "baselines", "smollm2_rates", "smollm2", "texts",
    "lengths"}                                           # a claim's sentence names it

Lacks = Iterator[str]


# -- what each kind lacks ----------------------------------------------------------------------------
def of_method(name: str) -> Lacks:
    cls = METHODS[name]
    yield from of_class(name, cls, "peft")
    for file in WRITTEN:
        if not re.search(rf"\b{cls.__name__}\b", (ROOT / "tinypeft" / file).read_text("utf-8")):
            yield f"tinypeft/{file}: it does not import {cls.__name__}; run python -m tests.names"
    if name in BY_HEAD: return
    if name not in OF_METHODS: yield f'tests/methods.py: ROWS has no "{name}"; write "{name}": Row(tp.{cls.__name__}(…), …)'
    yield from of_tests(name, cls, "peft")


def of_scheme(name: str) -> Lacks:
    cls = SCHEMES[name]
    yield from of_class(name, cls, "quant")
    yield from of_the_package(cls, quant, "quant")
    if name not in OF_SCHEMES: yield f'tests/schemes.py: ROWS has no "{name}"; write "{name}": Row(tp.{cls.__name__}(…), …)'
    yield from of_tests(name, cls, "quant", "torch")


def of_experiment(name: str) -> Lacks:
    e, path = EXPERIMENTS[name], RESULTS / f"{name}.json"
    if name not in WAITING:
        runs = json.loads(path.read_text("utf-8"))["runs"] if path.exists() else {}
        for label in e.conditions:
            if any(str(seed) not in runs.get(label, {}) for seed in e.seeds):
                yield (f"figures/results/{name}.json: it has no measurement of {label!r} over {len(e.seeds)} seeds; run "
                       f"python -m tinypeft figures {name} --rerun")
    claims = [j for j in claims_judged() if name in j.names]
    if not claims and name not in SERVING and not any(name in picture.needs for picture in PICTURES.values()):
        yield (f"tinypeft/study/claims: no claim and no picture reads {name}; write a Claim in methods.py or schemes.py, or a "
               "picture in tinypeft/study/pictures")
    for j in claims:
        if j.verdict != NOT_MEASURED and not j.why:
            yield f"tinypeft/study/claims: {j.claim.text!r} is {j.verdict}; write in its `why` what explains that"


@functools.cache
def claims_judged() -> list:
    return judged(RESULTS, ALL_CLAIMS)


# -- the file and the lists ------------------------------------------------------------------------------
def of_class(name: str, cls: type, folder: str) -> Lacks:
    yield from of_docstring(name, f"tinypeft/{folder}/{Path(inspect.getfile(cls)).name}", cls.__doc__ or "")
    if name not in ABOUT:
        yield (f'tinypeft/study/about.py: ABOUT has no "{name}"; write "{name}": About(…) at its place in the order of METHODS '
               "and SCHEMES, with papers=() if there is no paper")


def of_the_package(cls: type, package, folder: str) -> Lacks:
    file = Path(inspect.getfile(cls)).name
    if cls.__name__ not in vars(package):
        yield f"tinypeft/{folder}/__init__.py: it does not import {cls.__name__}; add the name to an import"
    if f" {file}" not in package.__doc__:
        yield f"tinypeft/{folder}/__init__.py: its docstring does not name {file}; add the name to a line of the list"
    if cls.__name__ not in tp.__all__:
        yield f"tinypeft/__init__.py: it does not import {cls.__name__}; add the name to `from .{folder} import`"


def of_docstring(name: str, file: str, doc: str) -> Lacks:
    """A docstring cites the first paper that ABOUT names; papers=() there asks for none."""
    papers = ABOUT[name].papers if name in ABOUT and name not in TEXTBOOK else ()
    if papers:
        title, address, _ = papers[0].partition(": ")
        cited = re.escape(title) if address else rf"arXiv\s+{title}"
        if not re.search(cited, doc):
            citation = title if address else f"arXiv {title}"
            yield (f"{file}: the docstring does not cite the paper that ABOUT names first; write (authors, {citation}), or "
                   f"papers=() in tinypeft/study/about.py if there is none")
    if not re.search(r"^ {4}.*[=←∝|]", doc, re.M):
        yield f"{file}: the docstring has no equation; write it on a line of its own, indented by four blanks"
    if name in TEXTBOOK: return
    if not re.search(r"^ {4}\S.* {3,}(here|shape)", doc, re.M):
        yield f"{file}: the docstring has no table of symbols; write one with the columns paper, here, shape"
    if not re.search(r"differ|authors|repository|DeepSpeed", doc):
        yield f'{file}: the docstring does not compare implementations; write a paragraph "Where implementations differ: …"'


def of_tests(name: str, cls: type, folder: str, oracle: str = "") -> Lacks:
    texts = [path.read_text("utf-8") for path in (ROOT / "tests" / folder).glob("test_*.py")]
    texts = [text for text in texts if re.search(rf"\b{cls.__name__}\(", text)]
    if not texts: yield f"tests/{folder}/test_{name}.py: there are no tests of {cls.__name__}; write them"
    elif oracle and not any(oracle in text for text in texts):
        yield f"tests/{folder}/test_{name}.py: no test of {cls.__name__} names {oracle}; write one beside an oracle"


# -- files that are in no list ---------------------------------------------------------------------------
LISTS = {                                                # folder → (its base class, the list, where it is)
    "peft": (Method, METHODS, "methods.py: FAMILIES"), "quant": (Scheme, SCHEMES, "__init__.py: SCHEMES")}


def in_no_list() -> dict[str, list[str]]:
    """file → what to write, for each that defines a method, a scheme or an experiment that no list has."""
    found = {}
    for folder, (base, table, where) in LISTS.items():
        load(folder)
        listed = [*table.values(), *peft.KNOWN.values()]
        for cls in below(base):
            file, known = cls.__module__.rpartition(".")[2], any(issubclass(other, cls) for other in listed)
            if known or cls.__module__ != f"tinypeft.{folder}.{file}" or "__dataclass_fields__" not in vars(cls): continue
            found[f"{folder}/{file}"] = [
                *of_docstring(file, f"tinypeft/{folder}/{file}.py", cls.__doc__ or ""),
                f'tinypeft/{folder}/{where} has no {cls.__name__}; import it from .{file} and write "{file}": {cls.__name__}']
    listed = {id(e) for e in EXPERIMENTS.values()}
    for module in load("study/experiments"):
        for name, e in vars(module).items():
            if isinstance(e, Experiment) and id(e) not in listed:
                file = module.__name__.rpartition(".")[2]
                found[f"study/experiments/{file}"] = ["tinypeft/study/experiments/__init__.py: EXPERIMENTS has no "
                                                      f"{name}; import {file} and write {file}.{name}"]
    return found


def load(folder: str) -> list:
    """Import every file of a folder."""
    files = sorted((ROOT / "tinypeft" / folder).glob("[!_]*.py"))
    return [importlib.import_module(f"tinypeft.{folder.replace('/', '.')}.{path.stem}") for path in files]


def below(cls: type) -> Iterator[type]:
    for child in cls.__subclasses__():
        yield child
        yield from below(child)


# -- the tests -------------------------------------------------------------------------------------------
NO_LIST = in_no_list()
KINDS = {"method": (METHODS, of_method), "scheme": (SCHEMES, of_scheme), "experiment": (EXPERIMENTS, of_experiment),
         "file": (NO_LIST, NO_LIST.get)}
THINGS = [pytest.param(kind, name, id=f"{kind} {name}") for kind, (things, _) in KINDS.items() for name in things]


@pytest.mark.parametrize("kind, name", THINGS)
def test_nothing_is_missing(kind, name):
    _, check = KINDS[kind]
    if lacks := [*check(name)]: pytest.fail("\n".join([f"{kind} {name} is not complete:", *lacks]), pytrace=False)


# -- what is taken away is named -------------------------------------------------------------------------
WHOLE = "\n\n    h = W x\n\n    paper      here\n\nImplementations differ."


@pytest.mark.parametrize("doc, papers, says", [
    ("Nothing.", ("2106.09685",), ["cite", "equation", "symbols", "implementations"]),
    ("arXiv 2106.09685" + WHOLE, ("2106.09685",), []), ("arXiv 2305.14314" + WHOLE, ("2106.09685",), ["arXiv 2106.09685"]),
    ("Nothing.", ("ICLR 2025: https://a.b",), ["(authors, ICLR 2025)", "equation", "symbols", "implementations"]),
    (WHOLE, (), [])])
def test_docstrings(monkeypatch, doc, papers, says):
    """A method without a paper has papers=(), and then nothing asks for a citation."""
    monkeypatch.setitem(ABOUT, "nameless", dataclasses.replace(ABOUT["lora"], papers=papers))
    lacks = [*of_docstring("nameless", "tinypeft/peft/nameless.py", doc)]
    assert len(lacks) == len(says) and all(word in line for word, line in zip(says, lacks, strict=True))
    assert all(line.startswith("tinypeft/peft/nameless.py: the docstring ") for line in lacks)


def test_every_list_that_lacks_a_method_is_named(monkeypatch):
    class Nameless(tp.DoRA): __doc__ = tp.DoRA.__doc__
    monkeypatch.setitem(METHODS, "nameless", Nameless)
    files = [line.split(": ")[0] for line in of_method("nameless")]
    assert files == ["tinypeft/study/about.py", "tinypeft/peft/__init__.py", "tinypeft/__init__.py", "tests/methods.py",
                     "tests/peft/test_nameless.py"]


def test_every_list_that_lacks_a_scheme_is_named(monkeypatch):
    class Nameless(tp.NF4): __doc__ = tp.NF4.__doc__
    monkeypatch.setitem(SCHEMES, "nameless", Nameless)
    files = [line.split(": ")[0] for line in of_scheme("nameless")]
    assert files == ["tinypeft/study/about.py", *["tinypeft/quant/__init__.py"] * 2, "tinypeft/__init__.py", "tests/schemes.py",
                     "tests/quant/test_nameless.py"]
    assert "no test of LoRA names an oracle; " in "".join(of_tests("lora", tp.LoRA, "peft", "an oracle"))


def test_a_class_in_no_list_is_named_with_what_its_docstring_lacks(monkeypatch):
    monkeypatch.setitem(LISTS, "peft", (Method, {n: cls for n, cls in METHODS.items() if n != "miss"}, "methods.py: FAMILIES"))
    monkeypatch.delitem(peft.KNOWN, "MiSS")
    monkeypatch.setattr(tp.MiSS, "__doc__", "    h = W x\n\n    paper      here")
    citation, others, entry = in_no_list()["peft/miss"]
    assert citation.startswith("tinypeft/peft/miss.py: the docstring does not cite the paper") and "implementations" in others
    assert entry == 'tinypeft/peft/methods.py: FAMILIES has no MiSS; import it from .miss and write "miss": MiSS'


def test_an_experiment_that_is_in_no_list_or_not_measured_or_not_read_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(f"{__name__}.EXPERIMENTS", {n: e for n, e in EXPERIMENTS.items() if n != "gradient_check"})
    assert in_no_list()["study/experiments/gradient_check"][0].endswith(
        "EXPERIMENTS has no GRADIENT_CHECK; import gradient_check and write gradient_check.GRADIENT_CHECK")
    monkeypatch.undo()
    record = json.loads((RESULTS / "rank.json").read_text("utf-8"))
    del record["runs"]["8"]["23"]
    (tmp_path / "rank.json").write_text(json.dumps(record))
    monkeypatch.setattr(f"{__name__}.RESULTS", tmp_path)
    monkeypatch.setattr(f"{__name__}.claims_judged", lambda: [])
    monkeypatch.setattr(f"{__name__}.PICTURES", {})
    measured, read = of_experiment("rank")
    assert measured == ("figures/results/rank.json: it has no measurement of '8' over 4 seeds; run python -m tinypeft figures "
                        "rank --rerun") and "no claim and no picture reads rank" in read
