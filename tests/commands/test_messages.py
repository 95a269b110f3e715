"""messages.py: the library names arguments of Python, a command names options."""
import ast
import re
import warnings
from pathlib import Path

import pytest

import tinypeft as tp
from tinypeft.commands.messages import WORDS, plain_warnings, with_flags


def texts_of(node):
    """The strings in a piece of code, with x for what they quote: 'x' where it is by repr."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str): yield inner.value
        if isinstance(inner, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "'x'" if part.conversion == ord("r") else "x"
                          for part in inner.values)


@pytest.fixture(scope="module")
def library():
    """All strings of the package but those of the commands."""
    files = [path for path in Path(tp.__file__).parent.rglob("*.py") if not {"commands", "course"} & set(path.parts[-2:])]
    return [text for path in files for text in texts_of(ast.parse(path.read_text("utf-8")))]


@pytest.mark.parametrize("pattern", [pattern for pattern, _ in WORDS])
def test_the_library_says_what_is_translated(pattern, library):
    """A message that changes there would pass by here without a word."""
    assert any(re.search(pattern, text) for text in library)


@pytest.mark.parametrize("python, flags", [
    ("it wants load_model('my folder')", "it wants --model 'my folder'"), ("load_model('smollm2')", "--model smollm2"),
    ("it wants load_pretrained()", "it wants the shipped base: leave --model out"),
    ("such as encoding='cp1252'", "such as --encoding cp1252"), ("nothing to say", "nothing to say")])
def test_arguments_become_options(python, flags):
    assert with_flags(python) == flags


def test_a_warning_is_one_line():
    given = UserWarning("give load_model('a')"), UserWarning, "file.py", 3
    with plain_warnings(): assert warnings.formatwarning(*given) == "tinypeft: give --model a\n"
    with plain_warnings(): assert warnings.formatwarning("\x1b[2Jx", *given[1:]) == "tinypeft: \\x1b[2Jx\n"
    assert warnings.formatwarning(*given).startswith("file.py:3: UserWarning: give load_model")
