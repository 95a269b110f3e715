"""Every lesson runs, in the long tests from a clean kernel; every assignment does so unsolved; what is committed was made of
the sources, and a lesson has the parts that a reader of the course expects."""
import ast
import contextlib
import inspect
import os
import re
import sys
import textwrap
from dataclasses import replace

import pytest

from tests.oracles.hf_tokenizers import smollm2
from tinypeft.course import percent
from tinypeft.course.exercises import find
from tinypeft.course.slips import slip
from tinypeft.course.solution import without_slips
from tinypeft.engine import functional as F
from tinypeft.study.pictures import PICTURES

nbformat = pytest.importorskip("nbformat")
SOURCES = percent.sources()
KINDS = {"lesson": percent.LESSONS, "assignment": percent.LESSONS / "assignments"}
MADE = {"lesson": percent.lesson, "assignment": percent.assignment}
EACH = [(kind, path) for path in SOURCES for kind in KINDS]
COMMITTED = [(kind, path) for kind, path in EACH if (KINDS[kind] / f"{path.stem}.ipynb").exists()]
PACKAGES = {"numpy", "scipy", "matplotlib", "IPython", "pytest", "tinypeft"}
NETWORK = {"socket", "http", "urllib", "ssl", "ftplib"}
LARGEST = 340 * 1024                                     # bytes of a notebook; lesson 15 shows every claim
each = lambda cases: pytest.mark.parametrize("kind, path", cases, ids=[f"{path.stem}-{kind}" for kind, path in cases])


# -- running -------------------------------------------------------------------------------------
SHORT = """
import functools, tinypeft
from tests.once import encode_corpora_once
encode_corpora_once()

@functools.wraps(tinypeft.train)
def train(model, task, steps, *args, whole=tinypeft.train, **options):
    history = whole(model, task, steps, *args, **{**options, "stop_after": 2})
    history.loss += history.loss[-1:] * (steps - len(history.loss))
    return history

@functools.wraps(tinypeft.evaluate)
def evaluate(*args, whole=tinypeft.evaluate, **options):
    return whole(*args, **{**options, "batch_size": 2, "max_batches": 1})

@functools.wraps(tinypeft.search_rank)
def search_rank(*args, whole=tinypeft.search_rank, **options):
    return whole(*args, **{**options, "batch_size": 2, "max_batches": 1})

@functools.wraps(tinypeft.generate)
def generate(model, tokens, n, *args, whole=tinypeft.generate, **options):
    return whole(model, tokens, min(n, 2), *args, **options)

@functools.wraps(tinypeft.tasks.domain)
def domain(model, context, held_out=None, whole=tinypeft.tasks.domain):
    return whole(model, context) if held_out is None else whole(model, min(context, 48), held_out)

tinypeft.train, tinypeft.evaluate, tinypeft.search_rank = train, evaluate, search_rank
tinypeft.generate, tinypeft.tasks.domain = generate, domain
del functools, tinypeft, encode_corpora_once, train, evaluate, search_rank, generate, domain
"""
# What stays has been looked at: the next lesson's collector need not do so again.
EMPTY = """%reset -f
__import__("gc").freeze()
get_ipython().execution_count = 0"""
# Sizes that stand in a lesson's own code: lesson → pairs of what is written and what runs.
SHORTER = {
    "01_autograd": [("for _ in range(7)", "for _ in range(2)")],
    "01b_gradients": [("for _ in range(15)", "for _ in range(3)")], "02_transformer": [("[::16]", "[::64]")],
    "03_full_finetuning": [("until=(0, 10, 20, 40)", "until=(0, 1, 2, 3)"), ("times >= 10", "times >= 3")],
    "04_adapters": [("STEPS = 100", "STEPS = 12")],
    "05_prompt_tuning": [("STEPS = 40", "STEPS = 12")], "06_prefix": [("STEPS = 100", "STEPS = 12")],
    "07_lora": [("STEPS = 100", "STEPS = 12")],
    "16_real_model": [('model = tp.load_pretrained("smollm2")', 'model = tp.load_pretrained("smollm2")\ndel model.blocks[6:]'),
                      ("for i in (1, 11, 21)", "for i in (1, 3, 5)"), ("[15][0]", "[5][0]"),
                      ("quantized=True)", "quantized=True)\ndel small.blocks[6:]")]}
in_cells = lambda *code: nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(each) for each in code])


@pytest.fixture(scope="module")
def run():
    """A function that runs a notebook among no names, in a kernel that has imported the package already. A training takes
    two steps there, of which a history of full length is made; an evaluation takes two rows, and a text two more tokens."""
    from nbclient import NotebookClient
    client = NotebookClient(in_cells(SHORT), timeout=600, kernel_name="python3", record_timing=False,
                            extra_arguments=["--log-level=40"], resources={"metadata": {"path": str(percent.LESSONS)}})

    def run(notebook):
        for client.nb in (in_cells(EMPTY), notebook): client.execute(cleanup_kc=False)
    try:
        paths = [str(percent.LESSONS.parent), os.environ.get("PYTHONPATH", "")]
        client.execute(cleanup_kc=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "MPLBACKEND": "agg"})
        yield run
    finally:
        if client.km is not None and client.km.has_kernel: client._cleanup_kernel()


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_a_lesson_runs(run, path):
    """Each cell once, the solutions among them; the long test trains at full length."""
    weights_or_skip(path)
    notebook = percent.lesson(percent.read(path))
    shorten(notebook, SHORTER.get(path.stem, []))
    run(notebook)                                        # an exception in a cell is raised here, with its traceback
    assert not shown_badly(notebook, "lesson")


def weights_or_skip(path):
    """Skip the test of a lesson that reads SmolLM2 if its weights are not installed."""
    if 'load_pretrained("smollm2")' in path.read_text("utf-8"): smollm2()


def shorten(notebook, pairs):
    for old, new in pairs:
        (cell,) = (cell for cell in notebook.cells if cell.cell_type == "code" and old in cell.source)
        cell.source = cell.source.replace(old, new)


def test_no_notebook_sees_the_names_of_another(run):
    run(in_cells("of_this_one = 1"))
    notebook = in_cells("'of_this_one' in globals()")
    run(notebook)
    assert notebook.cells[0].outputs[0].data["text/plain"] == "False" and notebook.cells[0].execution_count == 1


@pytest.mark.long
@each(EACH)
def test_it_runs_from_a_clean_kernel(kind, path):
    """The lesson's run shows that its training works at full length. The assignment trains by the same cells, so that two
    steps suffice, of which a history of full length is made, and two rows for an evaluation."""
    weights_or_skip(path)
    notebook = MADE[kind](percent.read(path))
    if kind == "assignment": notebook.cells.insert(0, nbformat.v4.new_code_cell(SHORT))
    percent.execute(notebook, timeout=600)               # an exception in a cell is raised here, with its traceback
    assert not shown_badly(notebook, kind)
    assert len(nbformat.writes(notebook).encode()) <= LARGEST


WIDE = """
def in_64_bits(f):
    def wide(*args):
        widened = lambda x: [widened(y) for y in x] if isinstance(x, (tuple, list)) else np.asarray(x, np.float64)
        return widened(f(*args))
    return wide
"""


@pytest.mark.long
@pytest.mark.parametrize("stem, name", [("04_adapters", "adapters.widen"), ("06_prefix", "prefix.cut"),
                                        ("07_lora", "lora.backward")])
def test_an_answer_in_64_bits_runs_to_the_end(run, stem, name):
    """`np.zeros` makes float64, and the checks take it, so the cells that put it to work take it as well."""
    (path,) = percent.sources(stem)
    notebook = percent.lesson(percent.read(path))
    function = name.replace(".", "_")
    at = next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code" and f"def {function}(" in cell.source)
    notebook.cells[at].source += f"\n\n{WIDE}\n{function} = in_64_bits({function})"
    run(notebook)
    (checked,) = (cell for cell in notebook.cells if f'tp.check("{name}"' in cell.source)
    assert any("✔" in out.get("data", {}).get("text/plain", "") for out in checked.outputs)


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
             if not {".ipynb_checkpoints", "projects"} & {*file.parts}}
    expected = {str((KINDS[kind] / f"{path.stem}.ipynb").relative_to(percent.LESSONS)) for kind, path in EACH}
    assert there == expected, (f"missing {sorted(expected - there) or 'nothing'}, without a source "
                               f"{sorted(there - expected) or 'nothing'}; run: python -m tinypeft lessons build")


@each(EACH)
def test_every_link_leads_somewhere(kind, path):
    """From the folder of the notebook: an assignment lies a folder deeper than its lesson."""
    cells = MADE[kind](percent.parsed(path)).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)#:\s]+\.(?:ipynb|md))", text)
    assert links and [link for link in links if not (KINDS[kind] / link).exists()] == []


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
    text = re.sub(r"```.*?```|\$\$.*?\$\$|<[^<>\n]+>|`[^`]+`", " ", prose, flags=re.S)
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
    between("words", words(prose), 1000, 3200 if stem.startswith("15") else 2800)         # 15 sums up the study's findings
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
    ("tp.", "tp. ", None), ("08_adalora.ipynb", "8.ipynb", "a link to 8.ipynb"), ("\nresult", "\nfig", "pictures"),
    ('show("rank")', 'show("ranks")', "'ranks', which is no picture")])
def test_faults_are_found(old, new, says):
    assert any(old in cell.source for cell in CELLS), old
    changed = faults("07_lora", [percent.Cell(c.kind, c.source.replace(old, new), c.options, c.line) for c in CELLS])
    assert not changed if says is None else any(says in sentence for sentence in changed), changed


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_the_time_of_the_bonus_is_that_of_its_headings(path):
    cells = percent.read(path)
    stated = re.search(r"the bonus\s(\d+)", cells[0].source)
    bonus = sum(cell.options["minutes"] for cell in cells if cell.bonus)
    more = 15 if path.stem == "07_lora" else 0           # trying LoRA+, which no check asks for
    assert stated and int(stated[1]) == bonus + more


def test_too_few_pictures_are_found():
    kept = [cell for cell in CELLS if not picture(cell.source)]
    assert any("0 pictures, expected 3" in sentence for sentence in faults("07_lora", kept))


# -- the rules of lessons that are finished --------------------------------------------------------
UNNUMBERED = r"How to use the course|Recall|The real call|" \
             r"Where the papers? says? (this|these)|Where implementations differ|What you can do now"
MATHS = re.compile(r"\$\$.+?\$\$|(?<![\\$\w])\$(?![$\s]).+?(?<![\\\s])\$(?!\d)", re.S)
WORK = re.compile(r"tp\.(check|guess|train|attach|evaluate|quantize|generate|find_rate)\(|\.beside\(|\.backward\(")


@pytest.mark.parametrize("stem", [path.stem for path in SOURCES])
def test_a_finished_lesson_keeps_the_rules(stem):
    (path,) = percent.sources(stem)
    broken = rules(stem, percent.parsed(path), percent.read(path))
    assert not broken, f"{path.name}:\n  " + "\n  ".join(broken)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_no_line_of_mathematics_becomes_a_list(path):
    """Markdown makes an item of a list of a line that begins with "- ", also inside $…$."""
    assert not list(listed(percent.parsed(path)))


def listed(cells):
    """Lines inside mathematics that begin as an item of a list does."""
    for cell in cells:
        if cell.kind == "code": continue
        for paragraph in re.finditer(r"(?:[^\n]+\n?)+", re.sub(r"`[^`\n]*`", lambda m: " " * len(m[0]), cell.source)):
            for formula in MATHS.finditer(paragraph[0]):
                for i, line in enumerate(formula[0].split("\n")):
                    at = cell.line + 1 + cell.source[:paragraph.start() + formula.start()].count("\n") + i
                    if i and re.match(r" {0,3}[-+*] ", line): yield f"line {at} begins a list inside mathematics: {line}"


def rules(stem, cells, filled):
    """The rules that a lesson breaks, as sentences. cells: as they stand in the source. filled: as the notebook has them."""
    code = [cell for cell in cells if cell.kind == "code"]
    prose = "\n\n".join(cell.source for cell in filled if cell.kind == "markdown")
    everything = "\n".join(cell.source for cell in code)
    headings = re.findall(r"^#{2,4} (.+)$", prose, re.M)
    found = []
    if not any(re.match(r"Exercise \d+ · (Bonus: )?Find the bug\b.*★", h) for h in headings):
        found.append("no checked exercise is called “Find the bug: …”")
    if not any(re.search(r"\bBonus\b", h) for h in headings): found.append("no heading says “Bonus”")
    names = re.findall(r'tp\.guess\("([^"]+)"', everything)
    if not names: found.append("no prediction: nothing calls tp.guess")
    own = f"{stem.partition('_')[0]}."
    found += [f"the prediction {name!r} does not begin with {own}" for name in names if not name.startswith(own)]
    if everything.count(".beside(") < len(names): found.append("a prediction is not shown .beside( what is measured")
    if 'show("schematic:' not in everything: found.append('no schematic: nothing calls show("schematic:…")')
    if "](GLOSSARY.md" not in cells[0].source: found.append("the first cell does not link GLOSSARY.md")
    sections = [h for h in re.findall(r"^## (.+)$", prose, re.M) if not re.match(UNNUMBERED, h)]
    for i, heading in enumerate(sections, 1):
        if not heading.startswith(f"{i}. "): found.append(f"the section “{heading}” is not numbered {i}.")
    for cell in cells:
        for i, line in enumerate(cell.source.split("\n"), cell.line + 1):
            if len(line) > 100 and not line.startswith("|"): found.append(f"line {i} has {len(line)} columns, at most 100")
    for cell in code:
        if not cell.folded: continue
        draws = re.search(r"\b(fig|ax|axes|plot|sheet)\b", cell.source)
        if not draws: found.append(f"line {cell.line}: a folded cell draws nothing")
        if WORK.search(cell.source): found.append(f"line {cell.line}: a folded cell does more than to draw")
    return [*found, *listed(cells), *of_functions(code)]


def of_functions(code):
    """What is wrong with the exercises' functions: rebound, unused, or shown before they are asked for."""
    exercises = [(i, find(cell.exercise)) for i, cell in enumerate(code) if cell.exercise]
    trees = [ast.parse(cell.source) for cell in code]
    since = 0                                            # the cell of the check before
    for i, exercise in exercises:
        function, check = exercise.function, i + 1
        if any(function in stored(tree) for tree in trees):
            yield f"line {code[i].line}: the student's name {function} is rebound"
        if not used(trees[check:]): yield f"line {code[check].line}: {function} is not used after its check"
        for cell, tree in zip(code[since:check], trees[since:check], strict=True):
            for shown in shown_functions(tree, trees):
                if answers(shown, exercise.reference):
                    yield f"line {cell.line}: it shows {shown.__qualname__}, the answer of {exercise.name}, before the check"
        since = check


def stored(tree):
    """The names that a cell assigns to, outside functions and comprehensions."""
    inner = {id(n) for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.Lambda)) for n in ast.walk(node)}
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store) and id(n) not in inner}


def used(trees):
    """Does the code use result.function, itself or by a name that it is given, before another check has that name?"""
    mine = set()
    for k, tree in enumerate(trees):
        if k and "tp.check(" in ast.unparse(tree): break
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and ast.unparse(node.value) == "result.function":
                mine |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            elif isinstance(node, (ast.expr, ast.withitem, ast.keyword)):
                for part in ast.iter_child_nodes(node):
                    if ast.unparse(part) == "result.function": return True
    loaded = {n.id for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    return bool(mine & loaded)


def shown_functions(tree, trees):
    """The package's functions that `show` displays in a cell, those of a class one by one."""
    names = {}
    imports = [n for t in trees for n in t.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    for node in imports:
        with contextlib.suppress(ImportError): exec(ast.unparse(node), names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "show" and not isinstance(node.args[0], ast.Constant):
            try: shown = eval(ast.unparse(node.args[0]), names)
            except (NameError, AttributeError): continue     # a name of the lesson's own
            of = vars(shown).values() if inspect.isclass(shown) else [shown]
            yield from (inspect.unwrap(f) for f in of if inspect.isfunction(f))


def body(function):
    """The statements of a function without its docstring and its slips, as text."""
    (tree,) = ast.parse(without_slips(textwrap.dedent(inspect.getsource(function)))).body[:1]
    if not isinstance(tree, ast.FunctionDef): return ()
    documented = ast.get_docstring(tree) is not None
    return tuple(ast.unparse(node) for node in tree.body[documented:])


def answers(shown, reference):
    """Is the shown function what the exercise asks for: the reference itself, the same statements, or all that it calls?"""
    if shown is reference: return True
    try: there, asked = body(shown), body(reference)
    except (OSError, SyntaxError): return False
    last = ast.parse(asked[0].removeprefix("return ")).body[0] if len(asked) == 1 else None
    call = isinstance(last, ast.Expr) and isinstance(last.value, ast.Call) and ast.unparse(last.value.func).split(".")[-1]
    return bool(asked) and (there == asked or call == shown.__name__)


GOOD = '''# %% [markdown]
# # 07 · LoRA
#
# **Words and letters.** See the [glossary](GLOSSARY.md).
#
# ## 1. The idea
#
# $$x - y$$
#
# ### {exercise}

# %%
import numpy as np
from tinypeft.course import show
from tinypeft import functional as F
from tinypeft.peft.lora import LoRALinear
import tinypeft as tp
show("schematic:lora")
show(F.linear)

# %% exercise=lora.forward points=3 minutes=10
def lora_forward(x, W, A, B, alpha):
    ### BEGIN SOLUTION
    return 1
    ### END SOLUTION

# %%
mine = result.function
guess = tp.guess("07.gain", 3.0, "nats")

# %%
guess.beside(len([mine]))

# %% fold
fig, ax = plot.figure()
fig

# %% [markdown]
# ## 2. Merged
#
# ### {exercise}

# %% exercise=lora.swap points=2 minutes=5 bonus=yes
def lora_swap(W, A, B, alpha):
    ### BEGIN SOLUTION
    return 2
    ### END SOLUTION

# %%
print(result.function(1, 2, 3, 4))
show(LoRALinear.forward)

# %% [markdown]
# ## Recall
'''


@pytest.fixture
def good(monkeypatch):
    """A short lesson that keeps all rules; one of its exercises is to find a bug."""
    record = find("lora.forward")
    monkeypatch.setattr(percent, "find", lambda name: replace(record, title="Find the bug: no scale") if name == record.name
                        else find(name))
    return lambda text: rules("07_lora", percent.parse(text), percent.headed(percent.parse(text)))


def test_a_lesson_that_keeps_the_rules(good):
    assert good(GOOD) == []


@pytest.mark.parametrize("old, new, says", [
    ("exercise=lora.swap points=2 minutes=5 bonus=yes", "exercise=lora.swap points=2 minutes=5", "no heading says “Bonus”"),
    ("tp.guess(", "tp.note(", "no prediction"), ('"07.gain"', '"08.gain"', "'08.gain' does not begin with 07"),
    (".beside(", ".near(", "not shown .beside("), ("schematic:lora", "lora", "no schematic"),
    ("(GLOSSARY.md)", "(README.md)", "does not link GLOSSARY.md"), ("## 2. Merged", "## Merged", "“Merged” is not numbered 2."),
    ("## 2. Merged", "## 3. Merged", "is not numbered 2."), ("## Recall", "## Recall\n# " + "x " * 60, "120 columns"),
    ("## Recall", "## Recall\n# | " + "x " * 60, None), ("$$x - y$$", "$$x\n# - y$$", "line 9 begins a list"),
    ("$$x - y$$", "so $x\n# - y$ is", "begins a list"), ("$$x - y$$", "costs 3 $\n# - or 4 $", None),
    ("fig, ax = plot.figure()", "tp.train(model, task, 3)\nfig", "does more than to draw"),
    ("fig, ax = plot.figure()\nfig", "x = 1", "a folded cell draws nothing"),
    ("mine = result.function", "lora_forward = result.function", "the student's name lora_forward is rebound"),
    ("mine = result.function", "x = 1", "lora_forward is not used after its check"),
    ("len([mine])", "3", "lora_forward is not used after its check"),
    ("mine = result.function", "mine = {'a': result.function}", None),
    ("print(result.function(1, 2, 3, 4))", "x = 1", "lora_swap is not used"),
    ("print(result.function(1, 2, 3, 4))", "with use(F, gelu=result.function): pass", None)])
def test_a_broken_rule_is_told(good, old, new, says):
    assert old in GOOD
    told = good(GOOD.replace(old, new, 1))
    assert told == [] if says is None else any(says in sentence for sentence in told), told


def test_a_bug_must_be_found():
    cells = percent.parse(GOOD)
    assert rules("07_lora", cells, percent.headed(cells)) == ["no checked exercise is called “Find the bug: …”"]


def test_an_answer_that_is_shown_before_the_check_is_told():
    def shown(x, W):
        """Another docstring."""
        y = x @ W.T
        return y

    def same(x, W):
        y = x @ W.T
        return y

    def slipped(x, W):
        y = x @ W.T
        if slip("no transpose"): y = x @ W
        return y

    def calls(x, W): return F.linear(x, W)
    def builds(x, W): return F.linear(x, W) + 1
    assert answers(shown, same) and answers(shown, slipped) and answers(same, same) and answers(F.linear, calls)
    assert not answers(F.linear, same) and not answers(F.gelu, calls)
    assert not answers(F.gelu, builds)
    for name in ("function", "class"):
        cell = "show(F.attention)" if name == "function" else "show(Holder)"
        trees = [ast.parse("from tinypeft import functional as F\nfrom tinypeft.peft.lora import LoRALinear as Holder"),
                 ast.parse(cell)]
        assert {f.__name__ for f in shown_functions(trees[1], trees)} >= {"attention" if name == "function" else "forward"}


def test_the_plan_of_weeks_has_every_lesson_and_fits_its_hours():
    """Four hours a week. A second half that no week names goes with the first."""
    page = (percent.LESSONS / "INSTRUCTORS.md").read_text(encoding="utf-8")
    weeks = [re.findall(r"\b\d\db?\b", row) for row in re.findall(r"^\| \d+ \| ([^|]+) \|", page, re.M)]
    planned = [number for week in weeks for number in week]
    assert len(weeks) == 12 and len(planned) == len({*planned})
    minutes = dict.fromkeys(planned, 0)
    for path in SOURCES:
        number = path.stem.partition("_")[0]
        stated = re.search(r"\*\*Time\.\*\* (\d+) minutes", percent.read(path)[0].source)
        minutes[number if number in planned else number.rstrip("b")] += int(stated[1])
    assert all(minutes.values())
    assert max(sum(minutes[number] for number in week) for week in weeks) <= 4 * 60


def test_the_errors_that_the_readme_explains_exist():
    """Its bold headings quote messages of the package; "…" stands for what varies."""
    readme = (percent.LESSONS / "README.md").read_text(encoding="utf-8")
    package = percent.LESSONS.parent / "tinypeft"
    sources = " ".join(re.sub(r'"\s*f?"', "", path.read_text(encoding="utf-8")) for path in package.rglob("*.py"))
    quoted = re.findall(r"^\* \*\*`(?:\w+Error: … )?([^`]+)`\.\*\*", readme, re.M)
    assert len(quoted) == 2
    for message in quoted: assert message in sources, message
