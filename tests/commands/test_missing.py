"""missing: nothing is missing here, and whatever is taken away is named with its step and its file."""
import json
import shutil

import pytest

import tinypeft as tp
from tinypeft.commands import missing as m
from tinypeft.commands.cli import main
from tinypeft.commands.missing import missing
from tinypeft.course import percent, study_numbers
from tinypeft.study.about import ABOUT


def said(name):
    """What is missing of `name`, one line each, without what is merely stale."""
    return [str(lack) for lacks in missing(name).values() for lack in lacks if "stale (" not in lack.what]


def test_nothing_is_missing():
    found = missing()
    assert {of: list(map(str, lacks)) for of, lacks in found.items() if lacks} == {}
    assert {"method lora", "scheme nf4", "exercise lora.forward", "experiment rank", "pages"} <= found.keys()
    assert sum(of.startswith("method ") for of in found) == len(tp.METHODS)


# -- what is registered nowhere --------------------------------------------------------------------
@pytest.mark.parametrize("name, says", [
    ("nothing", "step 1  tinypeft/peft/nothing.py or tinypeft/quant/nothing.py or tinypeft/study/experiments/nothing.py"),
    ("lora.nothing", "step 1  tinypeft/course/exercises/lora.py: EXERCISES has no 'lora.nothing'"),
    ("nothing.forward", "step 1  tinypeft/course/exercises/__init__.py: TOPICS has no 'nothing'")])
def test_a_name_without_a_file(name, says):
    (line,) = said(name)
    assert line.startswith(says)


@pytest.mark.parametrize("kind, name, file, entries", [
    ("method", "lora", "tinypeft/peft", "METHODS"), ("scheme", "nf4", "tinypeft/quant", "SCHEMES"),
    ("experiment", "rank", "tinypeft/study/experiments", "EXPERIMENTS")])
def test_a_file_that_is_registered_nowhere(monkeypatch, kind, name, file, entries):
    monkeypatch.setitem(m.KINDS, kind, lambda: [])
    assert said(name) == [f"step 2  {file}/__init__.py: {entries} has no entry '{name}'; import it from {name}.py and add it"]


# -- what is taken away ----------------------------------------------------------------------------
@pytest.mark.parametrize("doc, says", [
    ("Nothing.", ["cite", "equation", "symbols", "differ"]),
    ("arXiv 2106.09685\n\n    h = W x\n\n    paper      here\n\nImplementations differ.", []),
    ("arXiv 2305.14314\n\n    h = W x\n\n    paper      here\n\nImplementations differ.", ["arXiv 2106.09685"])])
def test_docstrings(doc, says):
    lacks = [str(lack) for lack in m.of_docstring("lora", "peft/lora.py", doc)]
    assert len(lacks) == len(says) and all(word in line for word, line in zip(says, lacks, strict=True))
    assert all(line.startswith("step 1  peft/lora.py: the docstring ") for line in lacks)


def test_public_names(monkeypatch):
    monkeypatch.delattr(tp.peft, "LoRA")
    monkeypatch.setattr(tp.peft, "__doc__", "One line.")
    monkeypatch.setattr(tp, "__all__", ["attach"])
    assert [line.split(";")[0] for line in said("lora")] == [
        "step 2  tinypeft/peft/__init__.py: it does not import LoRA",
        "step 2  tinypeft/peft/__init__.py: the docstring does not name lora.py",
        "step 2  tinypeft/__init__.py: it does not import LoRA"]


def test_tests():
    class Nameless(tp.LoRA): pass
    (none,) = m.of_tests("nameless", Nameless, "peft", {"assert_gradients(": "the gradient check"})
    assert str(none) == "step 3  tests/peft/test_nameless.py: there are no tests of Nameless; write them"
    (lack,) = m.of_tests("lora", tp.LoRA, "peft", {"assert_nothing(": "the check of nothing", "assert_gradients(": "…"})
    assert "the tests of LoRA lack the check of nothing" in str(lack)


@pytest.fixture
def about():
    """The table, which is put back with its order."""
    whole = dict(ABOUT)
    yield ABOUT
    ABOUT.clear()
    ABOUT.update(whole)


def test_what_is_known(about):
    about["lora"] = about["adalora"]
    assert "step 4  tinypeft/study/about.py: 'lora' looks like 'adalora'" in said("lora")[1]      # its paper is another, too
    del about["lora"]
    assert said("lora") == ["step 4  tinypeft/study/about.py: ABOUT has no entry 'lora'; add an About, in the order of METHODS "
                            "and SCHEMES"]
    assert any("ABOUT has no entry 'lora'" in line for line in said("adalora"))                   # which no page can be without


def test_rows_of_the_main_job(monkeypatch):
    monkeypatch.setattr(m, "COMPARED_SCHEMES", {})
    assert any("step 4  tinypeft/study/compared.py: COMPARED_SCHEMES has no NF4" in line for line in said("nf4"))


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A function that takes something out of a copy of the stored results."""
    folder = tmp_path / "results"
    shutil.copytree(m.RESULTS, folder)
    monkeypatch.setattr(m, "RESULTS", folder)

    def change(name, how):
        record = json.loads((folder / f"{name}.json").read_text("utf-8"))
        how(record)
        (folder / f"{name}.json").write_text(json.dumps(record), "utf-8")
    return change


def test_results(results):
    results("methods", lambda record: record["runs"]["lora"].pop("4"))
    lines = said("lora")
    assert "step 5  figures/results/methods.json: it has no measurement of 'lora' over 8 seeds" in lines[0]
    assert any(line.startswith("step 5  tinypeft/peft/README.md: it is not up to date") for line in lines)


def test_a_scheme_has_a_row_in_the_main_job(results):
    results("compare", lambda record: record.update(schemes=[r for r in record["schemes"] if r["name"] != "nf4"]))
    assert any("step 5  figures/results/compare.json: it has no row 'nf4'; `python -m tinypeft --out figures`" in str(lack)
               for lack in m.of_scheme("nf4", fresh=False))


def test_what_is_stale_counts_for_one_name_only(results):
    results("rank", lambda record: record["settings"].update(steps=1))
    fresh, whole = (list(map(str, m.of_measurement("rank", None, fresh, 3))) for fresh in (True, False))
    assert len(fresh) == 1 and "stale (" in fresh[0] and "settings (steps) changed" in fresh[0] and whole == []
    assert m.stale() >= len(m.EXPERIMENTS["rank"].conditions)


def test_an_experiment_that_nothing_reads(monkeypatch):
    monkeypatch.setattr(m, "ALL_CLAIMS", [])
    monkeypatch.setattr(m, "PICTURES", {})
    (line,) = said("rank")
    assert line.startswith("step 3  tinypeft/study/claims/methods.py or schemes.py: no claim and no picture reads rank")


def test_exercises(monkeypatch):
    monkeypatch.setattr(m, "parsed", lambda path: [])
    monkeypatch.setattr(m, "ROOT", m.ROOT / "nowhere")
    monkeypatch.setattr(m, "table_of_lessons", lambda paths: "")
    lines = [str(lack) for lack in m.of_exercise("lora.forward", fresh=False)]
    assert [line.split(":")[0] for line in lines] == [
        "step 2  lessons/src/07_lora.py", "step 3  tests/course/solutions/lora.py", "step 5  lessons/07_lora.ipynb",
        "step 5  lessons/assignments/07_lora.ipynb"]


def test_a_lesson_that_is_not_what_the_results_say(results, monkeypatch, tmp_path):
    """A number in the text, a caption and a placeholder that names nothing: each is told, for the lesson that has it."""
    folder = tmp_path / "src"
    shutil.copytree(percent.SOURCES, folder)
    monkeypatch.setattr(percent, "SOURCES", folder)
    monkeypatch.setattr(study_numbers, "FIGURES", tmp_path)
    assert list(m.of_lessons()) == []
    results("rank", lambda record: record["runs"]["1"]["0"].update(loss=9.9))
    lines = list(map(str, m.of_lessons()))
    assert any(line.startswith("step 5  lessons/07_lora.ipynb: its picture 'rank' is not what the stored results say now; `py")
               for line in lines) and all("its picture" in line or "its text" in line for line in lines)
    assert list(m.of_lessons("rank")) and not list(m.of_lessons("memory"))

    source = folder / "09_dylora.py"
    source.write_text(source.read_text("utf-8").replace("\n#\n# ", "\n#\n# It is {study qlora: NF4, after}.\n# ", 1), "utf-8")
    lines = list(map(str, m.of_lessons("qlora")))
    assert [line.split(":")[0] for line in lines if "its text is not what" in line] == \
        ["step 5  lessons/09_dylora.ipynb", "step 5  lessons/assignments/09_dylora.ipynb"]
    source.write_text(source.read_text("utf-8").replace("NF4, after", "NF5, after", 1), "utf-8")
    (line,) = (line for line in map(str, m.of_lessons("qlora")) if "09_dylora" in line)
    where = "step 5  lessons/src/09_dylora.py: 09_dylora.py, line "
    assert line.startswith(where) and "{study qlora: NF5, after}: qlora: no condition" in line


# -- the command -----------------------------------------------------------------------------------
def test_the_command(capsys):
    assert main(["missing", "nothing"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("nothing\n  step 1  ") and "Missing: 1. The steps are those of .github/CONTRIBUTING.md." in out
    assert main(["missing", "lora.forward"]) == 0
    assert capsys.readouterr().out == "Nothing is missing: exercise lora.forward.\n"
    assert main(["missing", "lora.forward", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"exercise lora.forward": []}
