"""What a method, scheme, exercise or experiment still lacks: `python -m tinypeft missing NAME`.

    missing("lora")     "method lora" → what it lacks, and so for everything else called lora
    missing()           the same for everything there is, and for the pages

.github/CONTRIBUTING.md describes how to add each kind in five steps. A `Lack` names the step, the
file and what to do there. What is checked here is that nothing was forgotten; whether it is right
is for the tests to say.
"""
from __future__ import annotations

import ast
import functools
import importlib.util
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from .. import peft, quant
from ..course.build import table as table_of_lessons
from ..course.exercises import TOPICS, of_topic
from ..course.percent import assignment, lesson, parsed, read, sources
from ..peft import METHODS
from ..quant import SCHEMES
from ..study import pages, pictures
from ..study.about import ABOUT, lesson_map
from ..study.claims import ALL_CLAIMS
from ..study.claims.rule import NOT_MEASURED
from ..study.claims.tables import judged, table
from ..study.compared import COMPARED_SCHEMES, SLOW
from ..study.experiment import Results
from ..study.experiments import EXPERIMENTS
from ..study.freshness import StaleWarning, Stamp, changes, summary
from ..study.pages import ROOT
from ..study.pictures import PICTURES

__all__ = ["Lack", "missing", "stale"]

PUBLIC = sys.modules[__name__.split(".")[0]]             # the package: its list of public names
RESULTS = ROOT / "figures" / "results"
FIGURES, MAIN_JOB = "`python -m tinypeft figures`", "`python -m tinypeft --out figures`"
TEXTBOOK = {"full", "uniform", "gguf"}                   # without a paper's letters to translate
# there for other experiments, for the main job or for a page
SERVING = {"rates", "classify_rates", "quant_rates", "first_look", "baselines", "smollm2_rates",
           "smollm2"}


@dataclass(frozen=True)
class Lack:
    """One missing thing. step: of the recipe in CONTRIBUTING. where: the file. what: what to do
    there."""
    step: int
    where: str
    what: str

    def __str__(self) -> str:
        return f"step {self.step}  {self.where}: {self.what}"


Lacks = Iterator[Lack]


def missing(name: str | None = None) -> dict[str, list[Lack]]:
    """"kind name" → what it lacks, for everything that is called `name`; without a name for all
    there is, and "pages".

    With a name, results that are stale count as missing. Without one they do not: `stale` counts
    them.
    """
    there = [(kind, n) for kind, names in KINDS.items() for n in names() if name in (None, n)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StaleWarning)
        found = {f"{kind} {n}": list(CHECKS[kind](n, name is not None)) for kind, n in there}
        if name is None: found["pages"] = list(of_pages())
        elif not there: found[name] = list(of_a_stranger(name))
    return found


def stale() -> int:
    """How many stored conditions were measured with other code, settings or values than there are
    now."""
    there = [e for e in EXPERIMENTS.values() if (RESULTS / f"{e.name}.json").exists()]
    now = {e.name: Stamp.now(e, world=False) for e in there}
    return sum(len(changes(Results.read(RESULTS, name), stamp)) for name, stamp in now.items())


def of_a_stranger(name: str) -> Lacks:
    """A name that is registered nowhere: which list it belongs in, to judge by its file."""
    topic, _, task = name.partition(".")
    if task:
        where = f"tinypeft/course/exercises/{topic if topic in TOPICS else '__init__'}.py"
        what = f"EXERCISES has no {name!r}" if topic in TOPICS else f"TOPICS has no {topic!r}"
        yield Lack(1, where, f"{what}; add it")
        return
    lists = {"tinypeft/peft": "METHODS", "tinypeft/quant": "SCHEMES",
             "tinypeft/study/experiments": "EXPERIMENTS"}
    there = [folder for folder in lists if (ROOT / folder / f"{name}.py").exists()]
    for folder in there:
        if lists[folder] != "EXPERIMENTS":
            tree = ast.parse((ROOT / folder / f"{name}.py").read_text("utf-8"))
            yield from of_docstring(name, f"{folder}/{name}.py", ast.get_docstring(tree) or "")
        what = f"{lists[folder]} has no entry {name!r}; import it from {name}.py and add it"
        yield Lack(2, f"{folder}/__init__.py", what)
    if not there:
        files = " or ".join(f"{folder}/{name}.py" for folder in lists)
        yield Lack(1, files, "there is no such file; write it, for a method, a scheme or an "
                   "experiment of that name")


# -- methods and schemes -------------------------------------------------------------------------
def of_method(name: str, fresh: bool) -> Lacks:
    cls = METHODS[name]
    yield from of_class(name, cls, "peft")
    needs = {"assert_gradients(": "the gradient check",
             "assert_leaves_base_alone(": "the test that the base stays as it was",
             "assert_saves(": "the test of saving and loading",
             "importorskip(": "an oracle, PEFT or PyTorch",
             ".merge()": "a test of merging, or of the error that says why it cannot be merged"}
    yield from of_tests(name, cls, "peft", needs)
    yield from of_knowledge(name)
    yield from of_results(name, "methods", [name], fresh)


def of_scheme(name: str, fresh: bool) -> Lacks:
    cls = SCHEMES[name]
    yield from of_class(name, cls, "quant")
    yield from of_tests(name, cls, "quant", {"torch": "an oracle, such as PyTorch"})
    yield from of_knowledge(name)
    labels = [label for label, scheme in COMPARED_SCHEMES.items() if type(scheme) is cls]
    if not labels:
        yield Lack(4, "tinypeft/study/compared.py",
                   f"COMPARED_SCHEMES has no {cls.__name__}; add a label and a value")
    record = json.loads((RESULTS / "compare.json").read_text("utf-8"))
    if name not in [row["name"] for row in record["schemes"]] and not SLOW.issuperset(labels):
        yield Lack(5, "figures/results/compare.json",
                   f"it has no row {name!r}; {MAIN_JOB} measures it")
    yield from of_results(name, "schemes", labels, fresh)


def of_class(name: str, cls: type, folder: str) -> Lacks:
    """The docstring, and where the public names are imported."""
    package, where = {"peft": peft, "quant": quant}[folder], f"tinypeft/{folder}/__init__.py"
    file = f"{cls.__module__.split('.')[-1]}.py"
    yield from of_docstring(name, f"{cls.__module__.replace('.', '/')}.py", cls.__doc__)
    if cls.__name__ not in vars(package):
        yield Lack(2, where, f"it does not import {cls.__name__}; add it there")
    if f" {file}" not in package.__doc__:
        yield Lack(2, where, f"the docstring does not name {file}; add it there")
    if cls.__name__ not in PUBLIC.__all__:
        yield Lack(2, "tinypeft/__init__.py", f"it does not import {cls.__name__}; add it there")


def of_docstring(name: str, file: str, doc: str) -> Lacks:
    """What a docstring must have: citation, equation, table of symbols, and where implementations
    differ."""
    papers = ABOUT[name].papers if name in ABOUT else ("",)
    cited = rf"arXiv\s+{papers and papers[0] or r'[0-9]{4}[.][0-9]{5}'}"
    if papers and name not in TEXTBOOK and not re.search(cited, doc):
        yield Lack(1, file, "the docstring does not cite the paper; write (authors, arXiv "
                   f"{papers[0] or 'number'})")
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


def of_tests(name: str, cls: type, folder: str, needs: dict[str, str]) -> Lacks:
    """Tests that name the class, and contain what a test of its kind must have."""
    files = sorted((ROOT / "tests" / folder).glob("test_*.py"))
    texts = [path.read_text("utf-8") for path in files]
    texts = [text for text in texts if re.search(rf"\b{cls.__name__}\(", text)]
    where = f"tests/{folder}/test_{name}.py"
    if not texts: yield Lack(3, where, f"there are no tests of {cls.__name__}; write them")
    for code, what in needs.items():
        if texts and not any(code in text for text in texts):
            yield Lack(3, where, f"the tests of {cls.__name__} lack {what}; `{code}` is in none of "
                       "their files")


def of_knowledge(name: str) -> Lacks:
    """The entry of ABOUT."""
    where = "tinypeft/study/about.py"
    if name not in ABOUT:
        yield Lack(4, where, f"ABOUT has no entry {name!r}; add an About, in the order of METHODS "
                   "and SCHEMES")
        return
    known, group = ABOUT[name], METHODS if name in METHODS else SCHEMES
    if not any(path.stem.startswith(f"{known.lesson}_") for path in sources()):
        yield Lack(4, where, f"there is no lesson {known.lesson!r} for {name!r}; name one of "
                   "lessons/src")
    twins = [n for n in group if n != name and n in ABOUT and ABOUT[n].look[:2] == known.look[:2]]
    for twin in twins:
        yield Lack(4, where, f"{name!r} looks like {twin!r} in plots; take another colour or "
                   "marker")


def of_results(name: str, experiment: str, labels: list[str], fresh: bool) -> Lacks:
    """The stored measurements of a method or scheme, and the pages that show them. fresh: stale
    ones do not count."""
    yield from of_measurement(experiment, labels, fresh, step=5)
    if fresh and name in ABOUT: yield from of_pages()


def of_measurement(experiment: str, labels: list[str] | None, fresh: bool, step: int) -> Lacks:
    """Conditions of an experiment that are not stored, or not for every seed. labels: None for all.
    fresh: nor stale."""
    e, where = EXPERIMENTS[experiment], f"figures/results/{experiment}.json"
    if labels is not None:
        e = replace(e, conditions={label: e.conditions[label] for label in labels})
    measures = f"`python -m tinypeft figures {experiment} --rerun` measures it"
    record = Results.read(RESULTS, experiment) if (ROOT / where).exists() else {"runs": {}}
    for label in e.conditions:
        if any(str(seed) not in record["runs"].get(label, {}) for seed in e.seeds):
            yield Lack(step, where, f"it has no measurement of {label!r} over {len(e.seeds)} "
                       f"seeds; {measures}")
    if fresh and (old := changes(record, Stamp.now(e, world=False))):
        yield Lack(step, where, f"stale ({summary(old)}); {measures}, unless --accept shows that "
                   "no number moved")


# -- pages ---------------------------------------------------------------------------------------
def of_pages() -> Lacks:
    """Generated text that is not what the stored results say: README, the folders' pages, the
    gallery, the lessons."""
    unknown = [name for name in (*METHODS, *SCHEMES) if name not in ABOUT]
    for name in unknown: yield from of_knowledge(name)
    if unknown: return
    for path, sections in pages.SECTIONS.items():
        text = (ROOT / path).read_text("utf-8")
        if pages.filled(text, sections, RESULTS) != text:
            yield Lack(5, path, f"it is not up to date; {FIGURES} writes it")
    gallery = (ROOT / "figures" / "README.md").read_text("utf-8")
    for part in (pages.main_job(RESULTS), pages.over_seeds(RESULTS), table(RESULTS, ALL_CLAIMS)):
        if part not in gallery:
            yield Lack(5, "figures/README.md", f"it is not up to date; {FIGURES} writes it")
            break
    if lesson_map() not in outputs(ROOT / "lessons" / "00_map.ipynb"):
        yield Lack(5, "lessons/00_map.ipynb",
                   "its map is not up to date; `python -m tinypeft lessons build 00` writes it")
    if not lists_all_lessons():
        yield Lack(5, "lessons/README.md",
                   "its table is not up to date; `python -m tinypeft lessons build NN` writes it")
    yield from of_lessons()


def lists_all_lessons() -> bool:
    """Whether the table of lessons/README.md is that of the sources."""
    return table_of_lessons(sources()) in (ROOT / "lessons" / "README.md").read_text("utf-8")


def of_lessons(experiment: str | None = None) -> Lacks:
    """Lessons whose text or captions are not what the stored results say now: of all, or of those
    that read `experiment`."""
    for path in sources():
        text, where = path.read_text("utf-8"), f"lessons/{path.stem}.ipynb"
        shown = dict.fromkeys(re.findall(r'show\("(\w+)"\)', text))
        shown = [name for name in shown if name in PICTURES]
        if experiment is not None and experiment not in read_by(text, shown): continue
        try:
            cells = read(path)
        except ValueError as e:
            yield Lack(5, f"lessons/src/{path.name}", str(e))
            continue
        builds = f"`python -m tinypeft lessons build {path.stem[:2]}` writes it"
        assigned = where.replace("/", "/assignments/")
        for made, file in ((lesson(cells), where), (assignment(cells), assigned)):
            there = (ROOT / file).exists() and json.loads((ROOT / file).read_text("utf-8"))
            if there and texts(made) != texts(there):
                yield Lack(5, file, "its text is not what its source and the stored results say "
                           f"now; {builds}")
        if not (ROOT / where).exists(): continue
        said = outputs(ROOT / where)
        for name in shown:
            if not pictures.missing(RESULTS.parent, name) and caption(name) not in said:
                yield Lack(5, where, f"its picture {name!r} is not what the stored results say "
                           f"now; {builds}")


def read_by(text: str, shown: list[str]) -> set[str]:
    """The experiments that a lesson's source reads: by its pictures, its numbers and its claims."""
    starts = [" ".join(start.split()) for start in re.findall(r"\{claim\s([^}]+)\}", text)]
    claims = [c for c in ALL_CLAIMS if any(map(c.text.startswith, starts))]
    read = {name for shows in shown for name in PICTURES[shows].needs}
    return read | {name for c in claims for name in c.needs} | set(
        re.findall(r"\{study\s+(\w+):", text))


def texts(notebook: dict) -> list[str]:
    """The sources of a notebook's cells of text."""
    cells = notebook["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]


def caption(name: str) -> str:
    """What a lesson shows below a picture."""
    return drawn(name, *((RESULTS / f"{need}.json").read_bytes() for need in PICTURES[name].needs))


@functools.cache
def drawn(name: str, *results: bytes) -> str:
    """The same, once for each content of the results that the picture needs."""
    picture = pictures.drawing(RESULTS.parent, name)
    return f"**{picture.sentence}** {picture.detail}"


def outputs(notebook: Path) -> list[str]:
    """The Markdown that the cells of a notebook have put out."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    shown = [out.get("data", {}) for cell in cells for out in cell.get("outputs", ())]
    return ["".join(data["text/markdown"]) for data in shown if "text/markdown" in data]


# -- exercises -----------------------------------------------------------------------------------
def exercises() -> list[str]:
    """The names of all exercises."""
    return [name for topic in TOPICS for name in of_topic(topic)]


def of_exercise(name: str, fresh: bool) -> Lacks:
    topic = name.partition(".")[0]
    lesson, exercise = TOPICS[topic], of_topic(topic)[name]
    source, solutions = f"lessons/src/{lesson}.py", f"tests/course/solutions/{topic}.py"
    if not all(exercise.hints):
        yield Lack(1, f"tinypeft/course/exercises/{topic}.py", f"{name} has no hints; write three")
    cells = parsed(ROOT / source)
    if not any(cell.exercise == name for cell in cells):
        yield Lack(2, source, f"no cell sets it; add one that begins # %% exercise={name} points=… "
                   "minutes=…")
    elif not any(f'tp.check("{name}"' in cell.source for cell in cells):
        yield Lack(2, source, f"no cell checks it; call tp.check(\"{name}\", {exercise.function}) "
                   "in the cell after it")
    if (ROOT / solutions).exists():
        spec = importlib.util.spec_from_file_location(f"solutions_{topic}", ROOT / solutions)
        tried = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(tried)
        for kind, least in (("WRONG", 4), ("RIGHT", 1)):
            if len(getattr(tried, kind, {}).get(name, ())) < least:
                yield Lack(3, solutions, f"{kind} has fewer than {least} solutions of {name}; add "
                           "them")
    else:
        yield Lack(3, solutions, f"there is no such file; write WRONG and RIGHT for {name}")
    builds = f"`python -m tinypeft lessons build {lesson[:2]}` writes it"
    for notebook in (f"lessons/{lesson}.ipynb", f"lessons/assignments/{lesson}.ipynb"):
        there = (ROOT / notebook).exists() and (ROOT / notebook).read_text("utf-8")
        if not there or f"def {exercise.function}(" not in there:
            yield Lack(5, notebook, f"it does not have {exercise.function}; {builds}")
    if fresh and not lists_all_lessons():
        yield Lack(5, "lessons/README.md", f"its table is not up to date; {builds}")


# -- experiments and claims ----------------------------------------------------------------------
def of_experiment(name: str, fresh: bool) -> Lacks:
    yield from of_measurement(name, None, fresh, step=4)
    claims = [j for j in judged(RESULTS, ALL_CLAIMS) if name in j.claim.needs]
    drawn = any(name in picture.needs for picture in PICTURES.values())
    if not claims and not drawn and name not in SERVING:
        yield Lack(3, "tinypeft/study/claims/methods.py or schemes.py",
                   f"no claim and no picture reads {name}; add a Claim here, or a Picture to "
                   "tinypeft/study/pictures")
    gallery = (ROOT / "figures" / "README.md").read_text("utf-8")
    for j in claims:
        if j.verdict != NOT_MEASURED and not j.why:
            yield Lack(4, "tinypeft/study/claims",
                       f"the claim {j.claim.text!r} is {j.verdict}, and `why` does not say why")
        if f"| {j.claim.text} |" not in gallery:
            yield Lack(5, "figures/README.md",
                       f"it lacks the claim {j.claim.text!r}; {FIGURES} writes it")
    yield from of_lessons(name)


KINDS: dict[str, Callable[[], list[str]]] = {
    "method": lambda: list(METHODS), "scheme": lambda: list(SCHEMES), "exercise": exercises,
    "experiment": lambda: list(EXPERIMENTS)}
CHECKS: dict[str, Callable[[str, bool], Lacks]] = {
    "method": of_method, "scheme": of_scheme, "exercise": of_exercise, "experiment": of_experiment}
