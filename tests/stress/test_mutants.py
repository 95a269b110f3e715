"""Planted faults: what is drawn, which tests run, and that a run tells a fault from an equivalent one."""
import json
import os
import shutil

import pytest

from tests.stress import RESULTS
from tests.stress.mutants import EQUIVALENT, draw, modules, own_tests, planted, verdict, wider_tests
from tests.stress.planting import ROOT, faults

RECORDED = json.loads((RESULTS / "mutants.json").read_text("utf-8"))


def test_the_record_adds_up_and_few_real_faults_survive():
    kinds = ("own", "wider", "timeout", "new", "equivalent", "undecided", "survived", "survived own", "to be planted")
    assert sum(RECORDED[kind] for kind in kinds) == RECORDED["drawn"]
    real = RECORDED["drawn"] - RECORDED["equivalent"]
    assert RECORDED["equivalent"] == len(RECORDED["equivalents"]) and len(RECORDED["survivors"]) <= 0.03 * real


def test_what_is_called_equivalent_can_be_drawn_and_has_a_reason():
    for name, reason in json.loads(EQUIVALENT.read_text("utf-8")).items():
        assert (ROOT / "tinypeft" / name.split(":")[0]).exists() and len(reason) > 10


def test_a_draw_has_different_faults_of_many_files_and_the_same_again(monkeypatch):
    few = [name for name in modules() if name.startswith(("files/", "common/", "models/"))]
    monkeypatch.setattr("tests.stress.mutants.modules", lambda: few)
    drawn = draw(500, 5)
    assert len({*map(str, drawn)}) == 500 and {fault.module for fault in drawn} == {n for n in few if faults(n)}
    assert draw(20, 5) == drawn[:20]


@pytest.mark.parametrize("module", ["peft/lora.py", "quant/uniform.py", "text/tasks/saved.py", "study/claims/rule.py"])
def test_every_fault_can_be_compiled_and_changes_the_code(module):
    source = (ROOT / "tinypeft" / module).read_bytes()
    names = set()
    for fault in faults(module):
        changed = source[:fault.start] + fault.text.encode() + source[fault.end:]
        compile(changed, module, "exec")
        assert changed != source and str(fault) not in names
        names.add(str(fault))
    assert len(names) > 10


def test_words_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.stress.planting.ROOT", tmp_path)
    (tmp_path / "tinypeft").mkdir()
    text = 'def f(x: int | None = 3) -> int | str:\n    """Words."""\n    if x < 0: raise ValueError(f"{x + 1}" + "no")\n' \
           '    print("é", x + 1)\n    return g("é", x, title="T", by=2) + "s"\n'
    (tmp_path / "tinypeft" / "a.py").write_text(text, "utf-8")
    assert [str(fault) for fault in faults("a.py")] == [
        "a.py:1:22 3 -> (4)", "a.py:3:7 x < 0 -> (not (x < 0))", "a.py:3:7 x < 0 -> (x <= 0)", "a.py:3:11 0 -> (1)",
        "a.py:4:16 x + 1 -> (x - 1)", "a.py:4:20 1 -> (2)", "a.py:5:33 by=2 -> **{}", "a.py:5:36 2 -> (3)"]


def test_tests_that_run():
    """The module's own, then six that import it or name it most often."""
    assert own_tests("peft/lora.py") == ["tests/peft/test_lora.py"]
    assert own_tests("course/exercises/lora.py")[1:] == ["tests/course/test_mistakes.py", "-k", "lora."]
    assert own_tests("quant/scheme.py")[0].startswith("tests/quant/")
    assert own_tests("study/experiments/formats.py")[-1] == "stored_numbers or formats"
    assert own_tests("pretrained/base.py") == ["tests/test_pretrained.py"]
    assert own_tests("interop/torch_names.py") == ["tests/interop/test_export.py"]          # export.py imports it
    wider = wider_tests("peft/lora.py")
    assert "tests/common/test_hyper.py" in wider_tests("peft/dylora.py")
    assert len({*wider}) == 6 and "tests/peft/test_combine.py" in wider and "tests/peft/test_lora.py" not in wider


@pytest.mark.skipif(os.name != "posix", reason="it forks")
def test_a_fault_is_caught_and_taken_out_again(tmp_path):
    for name in ("tinypeft", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors", "results", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    turned = next(fault for fault in faults("files/content.py") if "not (isinstance(text, bytes))" in fault.text)
    caught = planted(tmp_path, turned, "own")
    assert caught["by"].startswith("tests/files/test_content.py::"), caught
    path = "tinypeft/files/content.py"
    assert (tmp_path / path).read_bytes() == (ROOT / path).read_bytes()


@pytest.mark.parametrize("rows, is_known", [
    ([], "to be planted"), ([("own", "")], "survived own"), ([("own", "test_a")], "own"),
    ([("own", "timeout")], "survived own"), ([("own", "timeout"), ("wider", "timeout")], "timeout"),
    ([("own", ""), ("wider", "timeout")], "undecided"), ([("own", ""), ("wider", "test_b")], "wider"),
    ([("own", ""), ("wider", "")], "survived"), ([("own", ""), ("wider", ""), ("new", "test_c")], "new"),
    ([("own", ""), ("new", "")], "survived own"), ([("own", ""), ("wider", ""), ("new", "")], "survived")])
def test_the_verdict_is_of_the_last_row(rows, is_known):
    assert verdict([{"tests": kind, "by": by} for kind, by in rows]) == is_known
