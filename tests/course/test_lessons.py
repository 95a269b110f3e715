"""Every lesson runs from a clean kernel, every assignment does so unsolved, what is committed was made of the sources,
and a lesson has the parts that a reader of the course expects."""
import ast
import re
import sys

import pytest

from tinypeft.course import percent
from tinypeft.study.pictures import PICTURES

nbformat = pytest.importorskip("nbformat")
SOURCES = percent.sources()
KINDS = {"lesson": percent.LESSONS, "assignment": percent.LESSONS / "assignments"}
MADE = {"lesson": percent.lesson, "assignment": percent.assignment}
EACH = [(kind, path) for path in SOURCES for kind in KINDS]
COMMITTED = [(kind, path) for kind, path in EACH if (KINDS[kind] / f"{path.stem}.ipynb").exists()]
PACKAGES = {"numpy", "scipy", "matplotlib", "IPython", "pytest", "tinypeft"}
NETWORK = {"socket", "http", "urllib", "ssl", "ftplib"}
LARGEST = 300 * 1024                                     # bytes of a notebook
each = lambda cases: pytest.mark.parametrize("kind, path", cases, ids=[f"{path.stem}-{kind}" for kind, path in cases])


# -- running -------------------------------------------------------------------------------------
SHORT = """
import functools, tinypeft

@functools.wraps(tinypeft.train)
def train(model, task, steps, *args, whole=tinypeft.train, **options):
    history = whole(model, task, steps, *args, **{**options, "stop_after": 2})
    history.loss += history.loss[-1:] * (steps - len(history.loss))
    return history

@functools.wraps(tinypeft.evaluate)
def evaluate(*args, whole=tinypeft.evaluate, **options): return whole(*args, **{**options, "max_batches": 1})

tinypeft.train, tinypeft.evaluate = train, evaluate
del functools, tinypeft, train, evaluate
"""


@each(EACH)
def test_it_runs_from_a_clean_kernel(kind, path):
    """The lesson's run shows that its training works at full length. The assignment trains by the same cells, so that two
    steps suffice, of which a history of full length is made, and one batch for an evaluation."""
    notebook = MADE[kind](percent.read(path))
    if kind == "assignment": notebook.cells.insert(0, nbformat.v4.new_code_cell(SHORT))
    percent.execute(notebook, timeout=600)               # an exception in a cell is raised here, with its traceback
    assert not shown_badly(notebook, kind)
    assert len(nbformat.writes(notebook).encode()) <= LARGEST


def shown_badly(notebook, kind):
    """What an executed notebook should not show, or does not show and should, as sentences."""
    found, ran = [], [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    if [cell.execution_count for cell in ran] != list(range(1, len(ran) + 1)):
        found.append("its cells were not run once each, in order, from a clean kernel")
    for cell in ran:
        where = f"the cell that begins {cell.source.splitlines()[0]!r}"
        text = "".join(out.get("text", out.get("data", {}).get("text/plain", "")) for out in cell.outputs)
        for out in cell.outputs:
            if out.output_type == "error": found.append(f"{where} ends in an error: {out.ename}")
            if out.get("name") == "stderr": found.append(f"{where} warns: {out.text[:200]}")
        if "\r" in text: found.append(f"{where} leaves a carriage return")
        if "not measured in this checkout" in text or "there is no picture" in text: found.append(f"{where}: {text}")
        if re.search(r"(^|[\s'\"(])(/home|/root|/tmp|/usr|/Users|[A-Z]:\\)", text):
            found.append(f"{where} shows a path of this machine")
        if "tp.check(" in cell.source and not text.startswith("✔" if kind == "lesson" else "○"):
            found.append(f"{where} says {text[:200]!r}, expected {'a right' if kind == 'lesson' else 'an unsolved'} exercise")
        kinds = {kind for out in cell.outputs for kind in out.get("data", {})}
        if picture(cell.source) and not {"image/png", "image/svg+xml"} & kinds:
            found.append(f"{where} shows no picture")
        if "execution" in cell.metadata: found.append(f"{where} has the time of its execution")
    return found


# -- what is committed ---------------------------------------------------------------------------
def test_each_source_has_both_notebooks():
    there = {str(file.relative_to(percent.LESSONS)) for file in percent.LESSONS.rglob("*.ipynb")
             if ".ipynb_checkpoints" not in file.parts}
    expected = {str((KINDS[kind] / f"{path.stem}.ipynb").relative_to(percent.LESSONS)) for kind, path in EACH}
    assert there == expected, (f"missing {sorted(expected - there) or 'nothing'}, without a source "
                               f"{sorted(there - expected) or 'nothing'}; run: python -m tinypeft lessons build")


@each(COMMITTED)
def test_a_committed_notebook_was_made_of_its_source(kind, path):
    file = KINDS[kind] / f"{path.stem}.ipynb"
    assert file.stat().st_size <= LARGEST
    notebook = nbformat.read(file, 4)
    nbformat.validate(notebook)
    content = lambda made: [(c.id, c.cell_type, c.source, c.metadata.get("nbgrader"),
                              c.metadata.get("jupyter")) for c in made.cells]
    assert content(notebook) == content(MADE[kind](percent.read(path))), "run: python -m tinypeft lessons build"
    if kind == "lesson": assert not shown_badly(notebook, kind)
    else: assert not any(cell.get("outputs") for cell in notebook.cells), "an assignment is handed out without outputs"


# -- what a lesson is made of --------------------------------------------------------------------
@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_a_lesson_has_its_parts(path):
    missing = faults(path.stem, percent.read(path))
    assert not missing, f"{path.name}:\n  " + "\n  ".join(missing)


def picture(code):
    """Does a cell with this code show a picture?"""
    return re.search(r'''^fig$(?!\n.)|^(tp\.)?graph\(|^show\("''', code.strip(), re.M) is not None


def words(prose):
    """How many words a text has, without mathematics, code and tags."""
    text = re.sub(r"\$\$.*?\$\$|<[^<>\n]+>|`[^`]+`", " ", prose, flags=re.S)
    text = "\n\n".join(re.sub(r"\$[^$]+\$", " ", paragraph) for paragraph in text.split("\n\n"))
    return len(re.findall(r"[^\W\d_][\w’'-]*", text))


def faults(stem, cells):
    """What a lesson lacks, or has and should not, as sentences; lessons/src/README.md lists its parts."""
    found, first_or_last = [], stem[:2] in ("00", "15")
    prose = "\n\n".join(cell.source for cell in cells if cell.kind == "markdown")
    code = [cell for cell in cells if cell.kind == "code"]
    recall = prose.partition("\n## Recall")[2].partition("\n## ")[0]
    between = lambda what, n, low, high: found.append(f"{n} {what}, expected {low} to {high}") if not low <= n <= high else None

    for part in ("**What you will do.**", "**What you need.**"):
        if part not in cells[0].source: found.append(f"the first cell has no {part}")
    if not re.search(r"\*\*Time\.\*\* \d+ minutes", cells[0].source): found.append("the first cell has no **Time.** NN minutes")
    for heading in ("Where the papers? says? (this|these)", "Where implementations differ"):
        if not re.search(f"^#+ {heading}", prose, re.M): found.append(f"no heading “{heading}”")
    between("pictures", sum(picture(cell.source) for cell in code), 2 if first_or_last else 3, 9)
    told = len(re.findall("What to see", prose))
    between("sentences “What to see: …”", told, 2 if first_or_last else 3, 12)
    between("checked exercises", sum(bool(cell.exercise) for cell in cells), 2 if first_or_last else 3, 8)
    if not re.search(r"^### Exercise \d[^\n]*\(open, \d+ points", prose, re.M): found.append("no open exercise with points")
    if not re.search(r"\*Rubric: |<summary>Rubric</summary>", prose): found.append("no rubric of the open exercise")
    between("recall questions in <details>", recall.count("<details>"), 5, 5)
    between("words", words(prose), 1000, 2800)
    between("displayed equations", len(re.findall(r"\$\$.+?\$\$", prose, re.S)), 0 if first_or_last else 4, 18)

    for cell in code:
        where = f"line {cell.line}"
        found += [f"{where} shows {name!r}, which is no picture of the study"
                  for name in re.findall(r'show\("(\w+)"\)', cell.source) if name not in PICTURES]
        for node in ast.walk(ast.parse(cell.source)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else \
                    [node.module] if isinstance(node, ast.ImportFrom) else []
            for top in {name.split(".")[0] for name in names}:
                if top in NETWORK or top not in PACKAGES | sys.stdlib_module_names: found.append(f"{where} imports {top}")
            text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            if re.match(r"/\w|[A-Z]:\\|~|https?:", text): found.append(f"{where} has a path or an address: {text!r}")
    for target in re.findall(r"\]\(([^)#]+\.ipynb)\)", prose):
        if target not in {f"{path.stem}.ipynb" for path in SOURCES}: found.append(f"a link to {target}, which does not exist")
    return found


CELLS = percent.read(percent.sources("07")[0])
@pytest.mark.parametrize("old, new, says", [
    ("**Time.**", "Time:", "no **Time.** NN minutes"), ("## Recall", "## Questions", "0 recall questions"),
    ("*Rubric: ", "*", "no rubric"), ("(open, ", "(", "no open exercise"),
    ("## Where implementations differ", "## Else", "differ"), ("import numpy", "import torch, numpy", "imports torch"),
    ("import numpy", "import urllib.request, numpy", "imports urllib"),
    ('"train"', '"/etc/x"', "a path or an address: '/etc/x'"), ("$$", "$", "0 displayed equations"),
    ("tp.", "tp. ", None), ("08_adalora.ipynb", "8.ipynb", "a link to 8.ipynb"), ("\nfig", "\n(fig)", "pictures"),
    ('show("rank")', 'show("ranks")', "'ranks', which is no picture")])
def test_faults_are_found(old, new, says):
    assert any(old in cell.source for cell in CELLS), old
    changed = faults("07_lora", [percent.Cell(c.kind, c.source.replace(old, new), c.options, c.line) for c in CELLS])
    assert not changed if says is None else any(says in sentence for sentence in changed), changed


def test_the_errors_that_the_readme_explains_exist():
    """Its bold headings quote messages of the package; "…" stands for what varies."""
    readme = (percent.LESSONS / "README.md").read_text(encoding="utf-8")
    package = percent.LESSONS.parent / "tinypeft"
    sources = " ".join(re.sub(r'"\s*f?"', "", path.read_text(encoding="utf-8")) for path in package.rglob("*.py"))
    quoted = re.findall(r"^\* \*\*`(?:\w+Error: … )?([^`]+)`\.\*\*", readme, re.M)
    assert len(quoted) == 3
    for message in quoted: assert message in sources, message
