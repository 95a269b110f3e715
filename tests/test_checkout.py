"""The checkout as a stranger finds it: what lies at the top, nothing of the machine it was made on, and its CI."""
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP = {"tinypeft", "lessons", "tests", "figures", "requirements.txt", "README.md", "pyproject.toml", "LICENSE",
       ".ci", ".github", ".gitattributes", ".gitignore", ".pre-commit-config.yaml"}
MADE = {".git", ".venv", ".hypothesis", "build", "__pycache__"}      # by git, README's commands, pip, Python
PAGES = {".md", ".py", ".ipynb", ".json", ".toml", ".txt", ".yml", ".yaml", ".svg", ".csv", ""}
MACHINE = re.compile(r"(?:/(?:home|root|Users|work|workspace|mnt|opt)/|(?<![\w.])/tmp/|\b[A-Z]:\\\\?Users\\)[\w.-]+")


def tracked():
    """Paths of the checkout's files, relative to its root: what git has or would add; without git, all that no tool made."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                            capture_output=True, encoding="utf-8")
    if listed.returncode == 0: return sorted(p for p in listed.stdout.split("\0") if p and (ROOT / p).is_file())
    paths = (p.relative_to(ROOT) for p in ROOT.rglob("*") if p.is_file())
    return sorted(p.as_posix() for p in paths
                  if not any(part in MADE or part.endswith(("_cache", ".egg-info")) for part in p.parts))


FILES = tracked()

def test_the_top_level_holds_what_is_agreed():
    assert {path.split("/")[0] for path in FILES} <= TOP


def test_files_are_text_with_lf_or_marked_as_binary():
    """`.gitattributes` says so to Git for Windows, which would else check text out with CRLF."""
    attributes = (ROOT / ".gitattributes").read_text("utf-8")
    assert "\n* text=auto eol=lf\n" in attributes
    binary = tuple(re.findall(r"^\*(\.\w+) binary$", attributes, re.M))
    wrong = [path for path in FILES if not path.endswith(binary) and re.search(rb"\0|\r\n", (ROOT / path).read_bytes())]
    assert binary and wrong == []


def test_no_file_names_the_machine_it_was_made_on():
    mine = Path(__file__).relative_to(ROOT).as_posix()
    found = [f"{path} says {match.group()}" for path in FILES if Path(path).suffix in PAGES and path != mine
             for match in [MACHINE.search((ROOT / path).read_text("utf-8", errors="replace"))] if match]
    assert found == []


@pytest.mark.parametrize("text, found", [
    ("saved to /home/ada/adapter", True), ("/tmp/x.npz", True), (r"C:\Users\ada", True), ("/root/model", True),
    ("tmpfs, as /tmp sometimes is", False), ("see figures/results", False), ("https://arxiv.org/abs/1", False),
    ("a network/work/flow", True)])
def test_a_machines_path_is_recognised(text, found):
    assert bool(MACHINE.search(text)) is found


def test_the_workflow_runs_what_the_readme_promises():
    """It calls `.ci/run`, its quick job runs all of `tests/`, on systems and versions that pyproject lists."""
    workflow = (ROOT / ".github/workflows/ci.yml").read_text("utf-8")
    assert "run: .ci/run" in workflow
    if os.name == "posix": assert (ROOT / ".ci/run").stat().st_mode & 0o111
    for system in ("ubuntu-latest", "macos-latest", "windows-latest"): assert system in workflow
    versions = set(re.findall(r'"(3\.\d+)"', workflow))
    pyproject = (ROOT / "pyproject.toml").read_text("utf-8")
    assert versions == {"3.11", "3.13", "3.14"}
    for version in ("3.11", "3.13"): assert f"Python :: {version}" in pyproject
    assert "- run: python -m pytest\n" in workflow
