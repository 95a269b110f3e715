"""The single faults that can be planted in a file: one operator, number, condition, argument or statement is another one.

Strings, messages, annotations and what a `raise` says stay as they are: a fault there changes words, no result.
"""
import ast
import textwrap
from pathlib import Path
from typing import NamedTuple

__all__ = ["Fault", "faults", "ROOT"]

ROOT = Path(__file__).parents[2]
PAIRS = [(ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn),
         (ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.BitAnd, ast.BitOr), (ast.LShift, ast.RShift), (ast.And, ast.Or)]
OTHER = dict(PAIRS) | {b: a for a, b in PAIRS}
OTHER |= {ast.FloorDiv: ast.Div, ast.Mod: ast.Div, ast.Pow: ast.Mult, ast.USub: ast.UAdd}
NAMES = {"any": "all", "all": "any", "min": "max", "max": "min", "zip": "enumerate", "ceil": "floor", "floor": "ceil"}
TURNED = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
WORDS = (ast.JoinedStr, ast.Raise, ast.Import, ast.ImportFrom)
LABELS = {"title", "label", "help", "hints", "metavar", "color", "colors", "fontsize", "figsize", "linewidth", "zorder"}
ANNOTATIONS = {"annotation", "returns", "decorator_list"}


class Fault(NamedTuple):
    """`source[start:end]`, in bytes, of a file of tinypeft/ is `text` instead."""
    module: str
    line: int
    column: int
    start: int
    end: int
    before: str
    text: str

    def __str__(self) -> str:
        before, after = (textwrap.shorten(text, 80, placeholder=" ...") for text in (self.before, self.text))
        return f"{self.module}:{self.line}:{self.column} {before} -> {after}"


def changed(node: ast.AST):
    """Yield what may stand in the place of `node`."""
    match node:
        case ast.Constant(value=bool()): yield str(not node.value)
        case ast.Constant(value=int() | float()): yield repr(node.value + 1)
        case ast.Name(id=name) if name in NAMES: yield NAMES[name]
        case ast.UnaryOp(op=ast.Not()): yield ast.unparse(node.operand)
        case ast.BinOp(left=left, right=right) if is_text(left) or is_text(right): return
        case ast.BinOp() | ast.BoolOp() | ast.UnaryOp() if type(node.op) in OTHER:
            yield ast.unparse(remade(node, op=OTHER[type(node.op)]()))
        case ast.AugAssign() if type(node.op) in OTHER:
            yield ast.unparse(remade(node, op=OTHER[type(node.op)]()))
            yield "pass"
        case ast.Compare():
            for i, op in enumerate(node.ops):
                yield ast.unparse(remade(node, ops=[*node.ops[:i], OTHER[type(op)](), *node.ops[i + 1:]]))
        case ast.keyword(arg=str()): yield "**{}"
        case ast.Continue(): yield "break"
        case ast.Break(): yield "continue"
        case ast.Expr(value=ast.Call(func=ast.Name(id="print"))): return
        case ast.Expr(value=ast.Call()): yield "pass"
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]): yield "pass"


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or isinstance(node, ast.Constant) and isinstance(node.value, str)


def remade(node: ast.AST, **fields) -> ast.AST:
    return type(node)(**{name: getattr(node, name) for name in node._fields} | fields)


def turns(test: ast.AST) -> bool:
    """Whether one of its other faults turns a condition."""
    return (isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
            or isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], TURNED))


def below(node: ast.AST):
    """Yield the nodes of a tree that are no words."""
    if isinstance(node, WORDS) or isinstance(node, ast.keyword) and node.arg in LABELS: return
    yield node
    for name, value in ast.iter_fields(node):
        if name in ANNOTATIONS: continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST): yield from below(child)


def faults(module: str) -> list[Fault]:
    """Every fault of a file, such as peft/lora.py. A condition is also turned, by a `not`."""
    source = (ROOT / "tinypeft" / module).read_bytes()
    starts, tree, planted = [0], ast.parse(source), []
    for line in source.splitlines(keepends=True): starts.append(starts[-1] + len(line))
    for node in below(tree):
        for test in (getattr(node, "test", None), *getattr(node, "ifs", [])):
            if isinstance(test, ast.AST) and not turns(test): planted.append((test, f"not ({ast.unparse(test)})"))
        planted += [(node, text) for text in changed(node)]
    spans = [(starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset)
             for node, _ in planted]
    return [Fault(module, node.lineno, node.col_offset, start, end, source[start:end].decode(),
                  f"({text})" if isinstance(node, ast.expr) else text)
            for (node, text), (start, end) in zip(planted, spans, strict=True)]
