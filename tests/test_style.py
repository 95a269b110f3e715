"""Lines that `show()` prints fit a notebook: 100 columns in the package, the study apart. The book's lines hold
few tokens, and ruff holds that they hold one statement."""
from pathlib import Path

import pytest

from tests import measure

PACKAGE = Path(__file__).parents[1] / "tinypeft"
OUTSIDE = "study/",
FILES = {name: path for path in sorted(PACKAGE.rglob("*.py"))
         if not (name := path.relative_to(PACKAGE).as_posix()).startswith(OUTSIDE)}


def test_lines_fit_100_columns():
    lines = ((f"{name}:{n}", line) for name, path in FILES.items()
             for n, line in enumerate(path.read_text("utf-8").splitlines(), 1))
    assert [f"{place} has {len(line)} characters" for place, line in lines if len(line) > 100] == []


@pytest.mark.parametrize("folder", ["engine", "models", "training", "peft", "quant"])
def test_the_book_is_not_dense(folder):
    """At most 11 tokens a line on the average, 30 in any: `python -m tests.measure` prints all folders."""
    lines, tokens, dense = measure.totals((measure.PACKAGE / folder).rglob("*.py"))
    assert tokens / lines <= 11 and dense == 0


def test_a_dense_line_is_counted(tmp_path):
    """Docstrings and comments are no tokens; a line of 31 tokens is dense, and one of 30 is not. An f-string is one token
    in every Python."""
    lines = '"""A docstring."""', "# a comment", "x = " + "1 + " * 14 + "1", "'a string'", "f'{a + b:{c}} {f(d)}' + f''"
    (tmp_path / "a.py").write_text("\n".join(lines) + "\n")
    assert measure.tokens_of_lines(tmp_path / "a.py") == {3: 31, 4: 1, 5: 3}
