"""What a method, scheme or experiment still lacks: `python -m tinypeft missing NAME`.

    missing("lora")     "method lora" → what it lacks, and so for everything else called lora
    missing()           the same for everything there is

.github/CONTRIBUTING.md describes how to add each kind in five steps. A `Lack` names the step, the
file and what to do there. These are the docstrings, the lists and the stored results. The tests
hold the rest: what is right, the pages (`tests/test_pages.py`), the lessons and the exercises
(`tests/course`). Where they fail they name the command that mends it.
"""
from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

from .. import peft, quant
from ..course.percent import sources
from ..peft import METHODS
from ..quant import SCHEMES
from ..study.about import ABOUT
from ..study.claims import ALL_CLAIMS
from ..study.claims.rule import NOT_MEASURED
from ..study.claims.tables import judged
from ..study.compared import COMPARED_SCHEMES
from ..study.conditions import changed
from ..study.experiment import Results
from ..study.experiments import EXPERIMENTS
from ..study.pages import ROOT
from ..study.pictures import PICTURES

__all__ = ["Lack", "missing"]

PUBLIC = sys.modules[__name__.split(".")[0]]             # the package: its list of public names
RESULTS = ROOT / "figures" / "results"
HEAD_ALONE = {"probe"}                                   # it is tested with a head, not by a row
TEXTBOOK = {"full", "probe", "uniform", "gguf"}          # without a paper's letters to translate
# there for other experiments, for the main job or for a page
SERVING = {"rates", "classify_rates", "quant_rates", "first_look", "baselines", "smollm2_rates",
           "smollm2", "texts"}


@dataclass(frozen=True)
class Lack:
    """One missing thing. step: of the recipe in CONTRIBUTING. what: to do in the file `where`."""
    step: int
    where: str
    what: str

    def __str__(self) -> str:
        return f"step {self.step}  {self.where}: {self.what}"


Lacks = Iterator[Lack]


def missing(name: str | None = None) -> dict[str, list[Lack]]:
    """Return "kind name" → what it lacks, for everything called `name`; without a name, for all.

    Raises ValueError for the name of an exercise.
    """
    lacks: dict[str, list[Lack]] = {}
    for kind, (things, check) in KINDS.items():
        chosen = [thing for thing in things if name in (None, thing)]
        lacks |= {f"{kind} {thing}": list(check(thing, name is not None)) for thing in chosen}
    return lacks or {name: list(of_a_stranger(name))}


def of_a_stranger(name: str) -> Lacks:
    """Yield where a name belongs that is registered nowhere, to judge by its file."""
    if "." in name:
        raise ValueError(f"missing: {name!r} would be an exercise; `pytest tests/course -k "
                         f"{name.split('.')[0]}` says what exercises lack")
    lists = {"tinypeft/peft": "METHODS", "tinypeft/quant": "SCHEMES",
             "tinypeft/study/experiments": "EXPERIMENTS"}
    files = {"tinypeft/peft": "methods.py"}
    folders = [folder for folder in lists if (ROOT / folder / f"{name}.py").exists()]
    for folder in folders:
        if lists[folder] != "EXPERIMENTS":
            tree = ast.parse((ROOT / folder / f"{name}.py").read_text("utf-8"))
            yield from of_docstring(name, f"{folder}/{name}.py", ast.get_docstring(tree) or "")
        what = f"{lists[folder]} has no entry {name!r}; import it from {name}.py and add it"
        yield Lack(2, f"{folder}/{files.get(folder, '__init__.py')}", what)
    if not folders:
        paths = " or ".join(f"{folder}/{name}.py" for folder in lists)
        yield Lack(1, paths, "there is no such file; write it, for a method, a scheme or an "
                   "experiment of that name")


# -- methods and schemes -------------------------------------------------------------------------
def of_method(name: str, fresh: bool) -> Lacks:
    cls = METHODS[name]
    yield from of_class(name, cls, peft)
    yield from of_tests(name, cls, "peft", {})
    if name not in HEAD_ALONE:
        yield from of_row(name, "tests/methods.py")
    yield from of_knowledge(name)
    labels = [label for label, arm in EXPERIMENTS["methods"].conditions.items()
              if type(arm.method) is cls]                # others are compared elsewhere
    if labels: yield from of_measurement("methods", labels, fresh, step=5)


def of_scheme(name: str, fresh: bool) -> Lacks:
    cls = SCHEMES[name]
    yield from of_class(name, cls, quant)
    yield from of_tests(name, cls, "quant", {"torch": "an oracle, such as PyTorch"})
    yield from of_row(name, "tests/schemes.py")
    yield from of_knowledge(name)
    labels = [label for label, scheme in COMPARED_SCHEMES.items() if type(scheme) is cls]
    if not labels:
        yield Lack(4, "tinypeft/study/compared.py",
                   f"COMPARED_SCHEMES has no {cls.__name__}; add a label and a value")
    yield from of_measurement("schemes", labels, fresh, step=5)


def of_class(name: str, cls: type, package: object) -> Lacks:
    """Yield what the docstring lacks, and which list of public names lacks the class."""
    folder, file = cls.__module__.replace(".", "/").rsplit("/", 1)
    yield from of_docstring(name, f"{folder}/{file}.py", cls.__doc__)
    if cls.__name__ not in vars(package):
        yield Lack(2, f"{folder}/__init__.py", f"it does not import {cls.__name__}; add it there")
    if f" {file}.py" not in package.__doc__:
        yield Lack(2, f"{folder}/__init__.py",
                   f"the docstring does not name {file}.py; add it there")
    if cls.__name__ not in PUBLIC.__all__:
        yield Lack(2, "tinypeft/__init__.py", f"it does not import {cls.__name__}; add it there")


def of_docstring(name: str, file: str, doc: str) -> Lacks:
    """Yield what a docstring lacks: citation, equation, table of symbols, where others differ."""
    papers = ABOUT[name].papers if name in ABOUT else ("",)
    if papers and name not in TEXTBOOK:
        title, address, _ = papers[0].partition(": ")
        citation = title if address else f"arXiv {title or 'number'}"
        cited = re.escape(title) if address else rf"arXiv\s+{title or '[0-9]{4}[.][0-9]{5}'}"
        if not re.search(cited, doc):
            yield Lack(1, file, "the docstring does not cite the paper; write "
                       f"(authors, {citation})")
    if not re.search(r"^ {4}.*[=←∝|]", doc, re.M):
        yield Lack(1, file, "the docstring has no equation; write it on a line of its own, "
                   "indented by four blanks")
    if name in TEXTBOOK: return
    if not re.search(r"^ {4}\S.* {3,}(here|shape)", doc, re.M):
        yield Lack(1, file, "the docstring has no table of symbols; give it the columns paper, "
                   "here, shape")
    if not re.search(r"differ|authors|repository|DeepSpeed", doc):
        yield Lack(1, file, "the docstring does not say where paper and implementations differ; "
                   "add a paragraph")


def of_row(name: str, table: str) -> Lacks:
    """Yield whether the tests' table lacks a row, by which every promise is tested."""
    if f'"{name}": Row(' not in (ROOT / table).read_text("utf-8"):
        yield Lack(3, table, f"ROWS has no row {name!r}; add one")


def of_tests(name: str, cls: type, folder: str, needs: dict[str, str]) -> Lacks:
    """Yield what the tests that name the class lack. needs: code → what it is a sign of."""
    texts = [path.read_text("utf-8") for path in (ROOT / "tests" / folder).glob("test_*.py")]
    texts = [text for text in texts if re.search(rf"\b{cls.__name__}\(", text)]
    where = f"tests/{folder}/test_{name}.py"
    if not texts: yield Lack(3, where, f"there are no tests of {cls.__name__}; write them")
    for code, what in needs.items():
        if texts and not any(code in text for text in texts):
            yield Lack(3, where, f"the tests of {cls.__name__} lack {what}; `{code}` is in none of "
                       "their files")


def of_knowledge(name: str) -> Lacks:
    """Yield what the entry of ABOUT lacks."""
    where = "tinypeft/study/about.py"
    if name not in ABOUT:
        yield Lack(4, where, f"ABOUT has no entry {name!r}; add an About, in the order of METHODS "
                   "and SCHEMES")
        return
    known, group = ABOUT[name], METHODS if name in METHODS else SCHEMES
    if not any(path.stem.startswith(f"{known.lesson}_") for path in sources()):
        yield Lack(4, where, f"there is no lesson {known.lesson!r} for {name!r}; name one of "
                   "lessons/src")
    for twin in sorted(group.keys() & ABOUT.keys() - {name}):
        if ABOUT[twin].look[:2] == known.look[:2]:
            yield Lack(4, where, f"{name!r} looks like {twin!r} in plots; take another colour or "
                       "marker")


# -- experiments and claims ----------------------------------------------------------------------
def of_measurement(experiment: str, labels: list[str], fresh: bool, step: int) -> Lacks:
    """Yield the conditions of an experiment that are not stored for every seed. fresh: or stale."""
    e, where = EXPERIMENTS[experiment], f"figures/results/{experiment}.json"
    e = replace(e, conditions={label: e.conditions[label] for label in labels})
    measures = f"`python -m tinypeft figures {experiment} --rerun` measures it"
    record = Results.read(RESULTS, experiment) if (ROOT / where).exists() else {"runs": {}}
    for label in e.conditions:
        if any(str(seed) not in record["runs"].get(label, {}) for seed in e.seeds):
            yield Lack(step, where, f"it has no measurement of {label!r} over {len(e.seeds)} "
                       f"seeds; {measures}")
    for label, why in changed(e, record).items() if fresh else ():
        yield Lack(step, where, f"{label!r} was measured otherwise ({'; '.join(why)}); {measures}")


def of_experiment(name: str, fresh: bool) -> Lacks:
    yield from of_measurement(name, list(EXPERIMENTS[name].conditions), fresh, step=4)
    claims = [j for j in judged(RESULTS, ALL_CLAIMS) if name in j.claim.needs]
    drawn = any(name in picture.needs for picture in PICTURES.values())
    if not claims and not drawn and name not in SERVING:
        yield Lack(3, "tinypeft/study/claims/methods.py or schemes.py",
                   f"no claim and no picture reads {name}; add a Claim here, or a Picture to "
                   "tinypeft/study/pictures")
    for j in claims:
        if j.verdict != NOT_MEASURED and not j.why:
            yield Lack(4, "tinypeft/study/claims",
                       f"the claim {j.claim.text!r} is {j.verdict}, and `why` does not say why")


# what there is of each kind, and the function that says what one of it lacks
KINDS = {"method": (METHODS, of_method), "scheme": (SCHEMES, of_scheme),
         "experiment": (EXPERIMENTS, of_experiment)}
