"""How dense is the code? Lines, tokens a line and dense lines of each folder: `python -m tests.measure`.

A token is a name, a number, a string or an operator. Comments, docstrings and line ends are none. A line of code has at
least one token; a dense line has more than 30. `test_style.py` holds the limits of the book's folders.
"""
import ast
import tokenize
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "tinypeft"
COUNTED = tokenize.NAME, tokenize.NUMBER, tokenize.STRING, tokenize.OP
DENSE = 30


def tokens_of_lines(path):
    """Return line number → number of tokens, for each line of code of a file."""
    text = path.read_text("utf-8")
    docstrings = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            docstrings.add((node.body[0].lineno, node.body[0].col_offset))
    with path.open("rb") as file:
        starts = [token.start for token in whole_strings(tokenize.tokenize(file.readline)) if token.type in COUNTED]
    return Counter(line for line, column in starts if (line, column) not in docstrings)


def whole_strings(tokens):
    """Yield an f-string as one string, as Python 3.11 does. Later ones cut it into parts, each of which may hold others."""
    depth = 0
    for token in tokens:
        name = tokenize.tok_name[token.type]
        if name == "FSTRING_START":
            depth += 1
            if depth == 1: yield token._replace(type=tokenize.STRING)
        elif name == "FSTRING_END": depth -= 1
        elif not depth: yield token


def totals(paths):
    """Return (lines of code, tokens, dense lines) of some files together."""
    sums = Counter()
    for path in paths:
        counts = tokens_of_lines(path)
        sums += Counter(lines=len(counts), tokens=counts.total(), dense=sum(n > DENSE for n in counts.values()))
    return sums["lines"], sums["tokens"], sums["dense"]


def folders():
    """Return folder → `totals`; "." are the files at the root of the package."""
    inner = {path.name: path.rglob("*.py") for path in sorted(PACKAGE.iterdir()) if any(path.glob("*.py"))}
    return {name: totals(paths) for name, paths in {".": PACKAGE.glob("*.py"), **inner}.items()}


if __name__ == "__main__":
    print(f"{'folder':12}{'lines':>8}{'tokens':>9}{'a line':>8}{'dense':>7}")
    for folder, (lines, tokens, dense) in folders().items():
        print(f"{folder:12}{lines:8}{tokens:9}{tokens / lines:8.1f}{dense:7}")
