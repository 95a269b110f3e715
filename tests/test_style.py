"""Lines that `show()` prints fit a notebook: 100 columns in the package, exercises and the study apart."""
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tinypeft"
OUTSIDE = "study/", "course/exercises/"
FILES = {name: path for path in sorted(PACKAGE.rglob("*.py"))
         if not (name := path.relative_to(PACKAGE).as_posix()).startswith(OUTSIDE)}


@pytest.mark.parametrize("name", FILES)
def test_lines_fit_100_columns(name):
    lines = FILES[name].read_text("utf-8").splitlines()
    assert [f"line {n} has {len(line)} characters" for n, line in enumerate(lines, 1) if len(line) > 100] == []
