"""The solution that a lesson prints: the exercise's right answer, without the slips in it.

    s = alpha / len(A)
    if slip("the scale is α/r, not α"): s = alpha              this line goes

A slip is false (`slips.py`). So an `if` with one is its `else` or nothing, `not slip(…)` and what
is left of `a or slip(…)` stay, and a name that only holds a slip goes. Nothing else is changed.
"""
import ast
import inspect
import re
from collections.abc import Callable
from textwrap import dedent, indent

__all__ = ["right_answer", "without_slips"]


def right_answer(reference: Callable) -> str:
    """Return the lines below a right answer's head and docstring, with an indent of four."""
    source = without_slips(dedent(inspect.getsource(reference)))
    (function,) = ast.parse(source).body
    first = function.body[ast.get_docstring(function) is not None]
    return indent(dedent("\n".join(source.split("\n")[first.lineno - 1:])), "    ")


def without_slips(source: str) -> str:
    """Return a function's source as if no slip could be made in it.

    ValueError for a slip where none can be taken away, such as in a comprehension's condition.
    """
    while (shorter := _with_one_less(source)) != source: source = shorter
    for node in ast.walk(ast.parse(source)):
        if _known(node, ()) is False:
            line = source.split("\n")[node.lineno - 1].strip()
            raise ValueError(f"a slip stands where a lesson cannot leave it out: {line}; ask it in "
                             "an if, a match or an x if … else y")
    return re.sub(r"\n{3,}", "\n\n", source).rstrip()


def _with_one_less(source):
    """Take away one slip, or a name that nobody reads; the source as it is if there is none."""
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    assigned = [node for node in nodes if isinstance(node, ast.Assign)]
    held = {ast.unparse(node.targets[0]) for node in assigned if _known(node.value, ()) is False}
    for node in nodes:
        match node:
            case ast.If() if _known(node.test, held) is not None:
                return _branch(source, node, node.body if _known(node.test, held) else node.orelse)
            case ast.IfExp() if _known(node.test, held) is not None:
                chosen = node.body if _known(node.test, held) else node.orelse
                return _replaced(source, node, ast.get_source_segment(source, chosen))
            case ast.Match() if _known(node.subject, held) is not None:
                return _without_lines(source, node.lineno, node.end_lineno)
            case ast.BoolOp():
                left = [value for value in node.values if _known(value, held) is None]
                if len(left) < len(node.values):
                    word = " or " if isinstance(node.op, ast.Or) else " and "
                    texts = [ast.get_source_segment(source, value) for value in left]
                    return _replaced(source, node, word.join(texts))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    read = {name.id for name in names if isinstance(name.ctx, ast.Load)}
    for node in assigned:
        if _is_idle(node, read, held): return _without_lines(source, node.lineno, node.end_lineno)
    return source


def _known(node, held):
    """Return the truth of a condition that hangs on slips alone, else None."""
    match node:
        case ast.Call(func=ast.Name(id="slip" | "which")): return False
        case ast.Name() if node.id in held: return False
        case ast.Tuple(elts=[_, *_]):
            return False if all(_known(each, held) is False for each in node.elts) else None
        case ast.UnaryOp(op=ast.Not()):
            value = _known(node.operand, held)
            return None if value is None else not value
        case ast.BoolOp():
            values = [_known(each, held) for each in node.values]
            decides = isinstance(node.op, ast.Or)
            if decides in values: return decides
            return None if None in values else not decides
    return None


def _is_idle(node, read, held):
    """Does this assignment only give values, or a slip, to names that nobody reads?"""
    target = node.targets[0]
    if not isinstance(target, (ast.Name, ast.Tuple)): return False
    names = {at.id for at in ast.walk(target) if isinstance(at, ast.Name)}
    calls = any(isinstance(at, ast.Call) for at in ast.walk(node.value))
    return not names & read and (names <= held or not calls)


def _branch(source, node, statements):
    """Put the statements that are run in the place of an `if`."""
    first, lines = node.lineno, source.split("\n")
    if lines[first - 1].lstrip().startswith("elif"):
        return _without_lines(source, first, node.body[-1].end_lineno)
    if not statements: return _without_lines(source, first, node.end_lineno)
    start, column = statements[0].lineno - 1, statements[0].col_offset
    alone = " " * column + lines[start].encode()[column:].decode()
    kept = [alone, *lines[start + 1:statements[-1].end_lineno]]
    while lines[start - 1].lstrip().startswith("#"):     # comments above the first statement
        start -= 1
        kept.insert(0, lines[start])
    moved = indent(dedent("\n".join(kept)), " " * node.col_offset)
    if moved.lstrip().startswith("elif"): moved = moved.replace("elif", "if", 1)
    return "\n".join([*lines[:first - 1], moved, *lines[node.end_lineno:]])


def _replaced(source, node, text):
    """Put a text in the place of an expression."""
    whole, lines = source.encode(), source.encode().split(b"\n")
    at = lambda line, column: sum(len(each) + 1 for each in lines[:line - 1]) + column
    start, end = at(node.lineno, node.col_offset), at(node.end_lineno, node.end_col_offset)
    return (whole[:start] + text.encode() + whole[end:]).decode()


def _without_lines(source, first, last):
    lines = source.split("\n")
    return "\n".join(lines[:first - 1] + lines[last:])
