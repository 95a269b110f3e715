"""The lists of methods in `tinypeft/peft/__init__.py` and `tinypeft/__init__.py`, which editors read, are written from METHODS.

    python -m tests.names
"""
import re
import textwrap
from pathlib import Path

from tinypeft.peft.methods import METHODS

PACKAGE = Path(__file__).parents[1] / "tinypeft"
LISTS = {"peft/__init__.py": "from .methods import (", "__init__.py": "    from .peft.methods import ("}


def written(file: str) -> str:
    """Return a file with its list of methods as it should be: constants first, as ruff sorts them."""
    start = LISTS[file]
    names = ["METHODS", *(cls.__name__ for cls in METHODS.values())]
    names.sort(key=lambda name: (not name.isupper(), name.lower()))
    listed = textwrap.fill(", ".join(names) + ")", 100, initial_indent=start, subsequent_indent=" " * len(start))
    return re.sub(rf"^{re.escape(start)}[^)]*\)", listed, (PACKAGE / file).read_text("utf-8"), count=1, flags=re.M)


if __name__ == "__main__":
    for file in LISTS: (PACKAGE / file).write_text(written(file), "utf-8")
