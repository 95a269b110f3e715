"""missing: nothing is missing here, and whatever is taken away is named with its step and its file."""
import json
import shutil

import pytest

import tinypeft as tp
from tests.study.waiting import WAITING
from tinypeft.commands import missing as m
from tinypeft.commands.cli import main
from tinypeft.commands.missing import missing
from tinypeft.study.about import ABOUT


def said(name):
    """What is missing of `name`, one line each."""
    return [str(lack) for lacks in missing(name).values() for lack in lacks]


def test_nothing_is_missing():
    found = missing()
    assert {of: list(map(str, lacks)) for of, lacks in found.items()
            if lacks and of.removeprefix("experiment ") not in WAITING} == {}
    assert {"method lora", "scheme nf4", "experiment rank"} <= found.keys()
    assert sum(of.startswith("method ") for of in found) == len(tp.METHODS)


# -- what is registered nowhere --------------------------------------------------------------------
def test_a_name_without_a_file():
    (line,) = said("nothing")
    folders = "peft", "quant", "study/experiments"
    assert line.startswith("step 1  " + " or ".join(f"tinypeft/{folder}/nothing.py" for folder in folders))


def test_an_exercise_is_a_matter_of_its_tests():
    with pytest.raises(ValueError, match="`pytest tests/course -k lora` says what exercises lack"): missing("lora.forward")


@pytest.mark.parametrize("kind, name, file, entries", [
    ("method", "lora", "tinypeft/peft/methods.py", "METHODS"), ("scheme", "nf4", "tinypeft/quant/__init__.py", "SCHEMES"),
    ("experiment", "rank", "tinypeft/study/experiments/__init__.py", "EXPERIMENTS")])
def test_a_file_that_is_registered_nowhere(monkeypatch, kind, name, file, entries):
    monkeypatch.setitem(m.KINDS, kind, ({}, None))
    assert said(name) == [f"step 2  {file}: {entries} has no entry '{name}'; import it from {name}.py and add it"]


# -- what is taken away ----------------------------------------------------------------------------
@pytest.mark.parametrize("doc, says", [
    ("Nothing.", ["cite", "equation", "symbols", "differ"]),
    ("arXiv 2106.09685\n\n    h = W x\n\n    paper      here\n\nImplementations differ.", []),
    ("arXiv 2305.14314\n\n    h = W x\n\n    paper      here\n\nImplementations differ.", ["arXiv 2106.09685"])])
def test_docstrings(doc, says):
    lacks = [str(lack) for lack in m.of_docstring("lora", "peft/lora.py", doc)]
    assert len(lacks) == len(says) and all(word in line for word, line in zip(says, lacks, strict=True))
    assert all(line.startswith("step 1  peft/lora.py: the docstring ") for line in lacks)


def test_a_paper_that_arxiv_lacks_is_cited_by_its_title():
    (lack,) = [lack for lack in m.of_docstring("hira", "peft/hadamard.py", "Nothing.") if "cite" in str(lack)]
    assert "(authors, ICLR 2025)" in str(lack)


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


def test_the_table_of_methods(monkeypatch, tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "methods.py").write_text('ROWS = {"dora": Row(', "utf-8")
    monkeypatch.setattr(m, "ROOT", tmp_path)
    assert list(m.of_row("dora", "tests/methods.py")) == []
    (lack,) = m.of_row("lora", "tests/methods.py")
    assert str(lack) == "step 3  tests/methods.py: ROWS has no row 'lora'; add one"


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


def test_rows_of_the_comparison(monkeypatch):
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
    results("methods", lambda record: record["runs"]["lora"].pop("21"))
    (line,) = said("lora")
    assert "step 5  figures/results/methods.json: it has no measurement of 'lora' over 4 seeds" in line


def test_results_of_an_experiment(results):
    results("rank", lambda record: record["runs"]["8"].pop("23"))
    assert any(line.startswith("step 4  figures/results/rank.json: it has no measurement of '8'") for line in said("rank"))


def test_what_was_measured_otherwise_counts_for_one_name_only(results):
    results("rank", lambda record: record["settings"].update(steps=1))
    labels = list(m.EXPERIMENTS["rank"].conditions)
    fresh, whole = (list(map(str, m.of_measurement("rank", labels, fresh, 3))) for fresh in (True, False))
    assert len(fresh) == len(labels) and "was measured otherwise (settings.steps: 1 → 150)" in fresh[0] and whole == []


def test_an_experiment_that_nothing_reads(monkeypatch):
    monkeypatch.setattr(m, "ALL_CLAIMS", [])
    monkeypatch.setattr(m, "PICTURES", {})
    (line,) = said("rank")
    assert line.startswith("step 3  tinypeft/study/claims/methods.py or schemes.py: no claim and no picture reads rank")


# -- the command -----------------------------------------------------------------------------------
def test_the_command(capsys):
    assert main(["missing", "nothing"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("nothing\n  step 1  ") and "Missing: 1. The steps are those of .github/CONTRIBUTING.md." in out
    assert main(["missing", "dylora"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Nothing is missing: method dylora, experiment dylora. Next: `pytest tests/test_pages.py tests/c")
    assert main(["missing", "lora", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"method lora": []}
    assert main(["missing", "lora.forward"]) == 2 and "pytest tests/course -k lora" in capsys.readouterr().err
