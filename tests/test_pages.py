"""The pages tell the truth: their numbers are the stored ones, their links lead somewhere, and the first one is short."""
import re
import shlex
import subprocess
import sys

import pytest

import tinypeft as tp
from tests.test_checkout import FILES
from tinypeft.commands.cli import parser
from tinypeft.study.pages import ROOT, SECTIONS, filled, table

RESULTS = ROOT / "figures" / "results"
PAGES = {path: (ROOT / path).read_text("utf-8") for path in FILES if path.endswith(".md")}
README = PAGES["README.md"]
BY_HAND = {path for path in PAGES if not path.startswith("lessons/")}                     # which have tests of their own
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.S)


# -- numbers -------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", SECTIONS)
def test_generated_sections_are_what_the_results_say(path):
    """Every number in them is a stored one, because they are made again here and are the same."""
    assert filled(PAGES[path], SECTIONS[path], RESULTS) == PAGES[path], "run `python -m tinypeft figures`"


@pytest.mark.parametrize("path", sorted(BY_HAND))
def test_no_measured_number_is_written_by_hand(path):
    """Outside generated sections a decimal number is a version, the setting of an experiment, or part of an address."""
    text = re.sub(r"<!-- ([\w-]+) -->.*?<!-- /\1 -->", "", PAGES[path], flags=re.S)
    text = re.sub(r"\[\d{4}\.\d{5}\]\([^)]*\)|\]\([^)]*\)", "", CODE.sub("", text))
    assert set(re.findall(r"(?<![\w.])\d+\.\d+(?![\w.]*\d)", text)) <= {"3.11", "4.5"}


def test_changed_results_change_the_page(tmp_path):
    """A number that moves in a results file moves on the page."""
    (tmp_path / "results").mkdir()
    for file in RESULTS.glob("*.json"): (tmp_path / "results" / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "results" / "benchmark_step.json"
    path.write_text(path.read_text("utf-8").replace('"÷ eager": 1.314', '"÷ eager": 7.654'), "utf-8")
    assert "7.65" in filled(PAGES["tests/benchmarks/README.md"], SECTIONS["tests/benchmarks/README.md"], path.parent)


# -- words ---------------------------------------------------------------------------------------
def test_the_first_page_is_short_and_starts_with_what_one_wants_to_see():
    """At most 8 kB; and in this order: what it is, a picture, a snippet, the two commands."""
    assert len(README.encode("utf-8")) <= 8192
    places = [README.index(part) for part in ("tinypeft is ", "<img ", "```python", "```bash", "## What you will see")]
    assert places == sorted(places)


def test_every_method_and_scheme_is_listed():
    for page, classes in (("tinypeft/peft/README.md", tp.METHODS), ("tinypeft/quant/README.md", tp.SCHEMES)):
        for name, cls in classes.items():
            listed = re.search(rf"\b{name}\b", README) and f"| `{name}`: [`{cls.__name__}`]" in PAGES[page]
            assert listed, f"README.md or {page} does not list {name}; run `python -m tinypeft figures`"


def test_there_are_exactly_two_commands_to_set_up():
    commands = re.search(r"```bash\n(.*?)```", README, re.S).group(1).strip().split("\n")
    assert len(commands) == 2 and "-m tinypeft" in commands[0] and "pytest" in commands[1]
    assert "torch" not in (ROOT / "requirements.txt").read_text("utf-8")


def test_the_snippet_runs(tmp_path):
    """The first page's Python, with fewer steps, in an empty folder."""
    code = re.search(r"```python\n(.*?)```", README, re.S).group(1)
    assert "steps=300" in code and "tp.evaluate(tuned, task)" in code
    code = code.replace("steps=300", "steps=2").replace("evaluate(tuned, task)", "evaluate(tuned, task, max_batches=1)")
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}\nprint(qlora.summary())"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr
    assert "LoRA(rank=8)" in run.stdout and (tmp_path / "my-adapter").is_dir()


# -- promises ------------------------------------------------------------------------------------
def commands(text):
    """The arguments of every `python -m tinypeft …` on a page: up to a comment, the end of the code, or two spaces."""
    code = " ".join(line + "\n" for block in CODE.findall(text) for line in block.strip("`").splitlines())
    command = r"python3? -m tinypeft(?= |\n)((?: (?! )[^\n#;&|>`]*?)?)(?=\n|[#;&>`|]|  )"
    return [shlex.split(found) for found in re.findall(command, code)]


@pytest.mark.parametrize("path", [path for path in PAGES if "python -m tinypeft" in PAGES[path]])
def test_every_command_on_a_page_is_one(path):
    """The parser takes it, with every option. `…` and NAMES in capitals stand for anything."""
    found = commands(PAGES[path])
    assert found
    for argv in found:
        assert parser().parse_known_args(argv)[1] == [], argv


def test_a_command_that_does_not_exist_is_found():
    assert commands("```\npython -m tinypeft finetune lora --csv a.csv      columns\n```\n`python -m tinypeft nosuch`") == [
        ["finetune", "lora", "--csv", "a.csv"], ["nosuch"]]
    with pytest.raises(SystemExit): parser().parse_known_args(["nosuch"])


def test_every_promise_names_tests_that_exist():
    section = PAGES["tests/README.md"].split("## Promises to users", 1)[1].split("\n## ")[0]
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]
    assert 40 < len(rows) <= 70
    for where, promise, held in rows:
        files = re.findall(r"\[`([\w/]+\.py)`\]\(\1\) (`test_\w+`(?:, `test_\w+`)*)", held)
        assert files or held.startswith("none: "), (where, promise)
        for file, names in files:
            defined = (ROOT / "tests" / file).read_text("utf-8")
            for name in re.findall(r"`(test_\w+)`", names): assert f"\ndef {name}(" in defined, name


# -- links ---------------------------------------------------------------------------------------
def links(text):
    """The addresses that a page links to or shows, code apart."""
    text = CODE.sub("", text)
    return re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)


def anchors(text):
    """The names that GitHub gives to a page's headings: lower case, no punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def leads_nowhere(path, text):
    """The links of the page at `path` that lead to no file of the checkout, or to no heading of a page."""
    lost = []
    for link in links(text):
        target, _, anchor = link.partition("#")
        if link.startswith(("https://", "../../actions/")): continue     # on another site, or GitHub's page of workflow runs
        file = (ROOT / path).parent / target if target else ROOT / path
        if not file.exists() or anchor and anchor not in anchors(file.read_text("utf-8")): lost.append(link)
    return lost


@pytest.mark.parametrize("path", PAGES)
def test_every_link_leads_somewhere(path):
    assert leads_nowhere(path, PAGES[path]) == []


def test_every_page_can_be_reached_from_the_first():
    reached, waiting = set(), ["README.md"]
    while waiting:
        path = waiting.pop()
        if path in reached or path not in PAGES: continue
        reached.add(path)
        waiting += [(ROOT / path).parent.joinpath(link.split("#")[0]).resolve().relative_to(ROOT).as_posix()
                    for link in links(PAGES[path]) if link.partition("#")[0].endswith(".md")]
    assert reached == {path for path in PAGES if "ISSUE_TEMPLATE" not in path}


@pytest.mark.parametrize("text, lost", [
    ("[a](README.md) [b](tests/README.md#oracles) <img src=\"figures/compare.svg\">", []),
    ("[a](nothing.md)", ["nothing.md"]), ("[a](tests/README.md#nothing)", ["tests/README.md#nothing"]),
    ("`[a](nothing.md)`", []), ("[a](#two-commands)", [])])
def test_a_lost_link_is_found(text, lost):
    assert leads_nowhere("README.md", text + "\n" + README) == lost


# -- the machinery -------------------------------------------------------------------------------
def test_sections_are_filled_where_their_marks_are():
    sections = {"a": lambda results: "one\ntwo", "b": lambda results: "three"}
    page = "x <!-- b -->old<!-- /b -->\n<!-- a -->\nold\n<!-- /a -->\ny"
    new = "x <!-- b -->three<!-- /b -->\n<!-- a -->\none\ntwo\n<!-- /a -->\ny"
    assert filled(page, sections, RESULTS) == new == filled(new, sections, RESULTS)


@pytest.mark.parametrize("page", ["no marks", "<!-- a --> no end", "<!-- /a --><!-- a -->", 2 * "<!-- a --><!-- /a -->"])
def test_a_section_without_a_place_is_an_error(page):
    with pytest.raises(ValueError, match="the page needs <!-- a --> and, after it, <!-- /a -->"):
        filled(page, {"a": lambda results: ""}, RESULTS)


def test_a_table():
    assert table(("a", "b"), [("1", "2")]) == "| a | b |\n|---|---|\n| 1 | 2 |"
