"""Single faults of a module: what a slip of the hand leaves, one change of its syntax tree each.

`faults(tree)` lists them. A fault exchanges an operator, a comparison or two arguments, moves a constant, turns a condition
round, or drops a term, a statement, a transpose, an axis or an exercise's check. Names, annotations, docstrings and the
texts of errors stay as they are.
"""
import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Fault", "faults", "planted"]

OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div,
             ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
             ast.LShift: ast.RShift, ast.RShift: ast.LShift}
EDGES = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
OPPOSITES = {ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
             ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt}
NAMES = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "any": "all", "all": "any", "sum": "mean",
         "mean": "sum", "zeros": "ones", "ones": "zeros", "zeros_like": "ones_like", "floor": "ceil", "ceil": "floor",
         "argmin": "argmax", "argmax": "argmin", "rint": "floor", "sin": "cos", "cos": "sin"}
CALLS_TO_DROP = {"sqrt", "abs", "copy", "square", "rint", "sorted", "reversed", "ascontiguousarray", "exp", "log"}
SYMMETRIC = {"min", "max", "minimum", "maximum", "allclose", "array_equal", "isclose", "vdot", "gcd", "hypot", "zip"}
CHECKS = {"special", "invariants", "gradient"}            # of an exercise; its mistakes and symptoms are words
SILENT = {"__repr__", "_repr_html_", "__str__", "describe", "summary"}      # functions that make words


@dataclass(frozen=True)
class Fault:
    """One change. `path` leads from the tree's root to the node: (field, index or None) pairs."""
    kind: str
    function: str
    line: int
    statement: int                                       # the line of the statement that holds it
    before: str
    after: str
    path: tuple
    node: ast.AST

    @property
    def key(self) -> str:
        return " | ".join((self.function, self.before, self.after))


def planted(tree: ast.Module, fault: Fault) -> ast.Module:
    """A copy of `tree` with the fault in it."""
    tree = copy.deepcopy(tree)
    *way, (field, i) = fault.path
    node = tree
    for name, j in way: node = getattr(node, name) if j is None else getattr(node, name)[j]
    if i is None: setattr(node, field, fault.node)
    else: getattr(node, field)[i] = fault.node
    return ast.fix_missing_locations(tree)


def faults(tree: ast.Module) -> Iterator[Fault]:
    """Every fault, in the order of the source; the same change twice in one function is listed once."""
    seen = set()
    for node, path, around in nodes(tree):
        for kind, new in changes(node):
            new = ast.copy_location(new, node)
            fault = described(tree, node, new, kind, path, around)
            if fault.before != fault.after and fault.key not in seen:
                seen.add(fault.key)
                yield fault


# -- which nodes -----------------------------------------------------------------------------------
def nodes(tree):
    """(node, path, nodes around it) of everything that may be changed."""
    def walk(node, path, around):
        yield node, path, around
        for field, value in ast.iter_fields(node):
            if spared(node, field): continue
            for i, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "Limit" and i: continue    # words and examples
                if isinstance(child, ast.AST) and not is_text(child):
                    yield from walk(child, (*path, (field, i)), (*around, node))
    for i, statement in enumerate(tree.body):
        if not is_text(statement): yield from walk(statement, (("body", i),), (tree,))


def spared(node, field):
    """Whether a field holds no arithmetic: annotations, decorators, messages, and the names of words."""
    if field in ("annotation", "returns", "decorator_list", "exc", "msg", "type_params"): return True
    if isinstance(node, ast.FunctionDef): return node.name in SILENT
    if isinstance(node, ast.keyword): return node.arg in ("strict", "stacklevel", "encoding")   # a second look, and words
    if isinstance(node, ast.Call): return ast.unparse(node.func).endswith(("warn", "Error"))
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def is_text(node):
    """A docstring, text with values in it, an import, or the list of public names."""
    if isinstance(node, ast.Expr): return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Assign): return ast.unparse(node.targets[0]) == "__all__"
    return isinstance(node, (ast.JoinedStr, ast.Import, ast.ImportFrom))


# -- the changes -----------------------------------------------------------------------------------
def changes(node):
    """(kind, node to put in its place)."""
    match node:
        case ast.BinOp(left, op, right) if not any(isinstance(side, (ast.JoinedStr, ast.List)) for side in (left, right)):
            if type(op) in OPERATORS: yield "operator", ast.BinOp(left, OPERATORS[type(op)](), right)
            if isinstance(op, (ast.MatMult, ast.Sub, ast.Div)): yield "exchange", ast.BinOp(right, op, left)
            if isinstance(op, (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow)):
                yield "drop a term", left
            if isinstance(op, (ast.Add, ast.Mult)): yield "drop a term", right
        case ast.Compare(left, [op], right):
            if type(op) in EDGES: yield "edge", ast.Compare(left, [EDGES[type(op)]()], right)
            yield "comparison", ast.Compare(left, [OPPOSITES[type(op)]()], right)
        case ast.BoolOp(op, values):
            yield "and, or", ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
            for i in range(len(values)):
                rest = values[:i] + values[i + 1:]
                yield "drop a condition", rest[0] if len(rest) == 1 else ast.BoolOp(op, rest)
        case ast.UnaryOp(ast.USub() | ast.Not(), operand):
            yield "sign", operand
        case ast.IfExp(test, body, orelse):
            yield "condition", ast.IfExp(test, orelse, body)
        case ast.If(test, body, orelse) if "TYPE_CHECKING" not in ast.unparse(test):
            yield "condition", ast.If(negated(test), body, orelse)
        case ast.Constant(bool()):
            yield "constant", ast.Constant(not node.value)
        case ast.Constant(int()):
            yield "constant", ast.Constant(node.value + 1)
            if node.value: yield "constant", ast.Constant(node.value * 2 if abs(node.value) > 1 else node.value - 1)
        case ast.Constant(float()):
            yield "constant", ast.Constant(node.value * 2 if node.value else 1.0)
        case ast.Attribute(value, "T"):
            yield "transpose", value
        case ast.Return(ast.BinOp() | ast.UnaryOp()) if not isinstance(node.value.op, (ast.Not, ast.BitOr, ast.BitAnd)):
            yield "sign", ast.Return(ast.UnaryOp(ast.USub(), node.value))
        case ast.AugAssign(target, op, value):
            yield "drop a statement", ast.Pass()
            if type(op) in OPERATORS: yield "operator", ast.AugAssign(target, OPERATORS[type(op)](), value)
        case ast.Expr(ast.Call()) | ast.Raise() | ast.Delete():
            yield "drop a statement", ast.Pass()
        case ast.Assign([ast.Subscript() | ast.Attribute()], _):
            yield "drop a statement", ast.Pass()
        case ast.comprehension(target, iterated, ifs, is_async) if ifs:
            yield "drop a condition", ast.comprehension(target, iterated, ifs[1:], is_async)
        case ast.Call():
            yield from changed_calls(node)


def changed_calls(node):
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    plain = not any(isinstance(a, ast.Starred) for a in node.args)
    if name in NAMES:
        func = copy.copy(node.func)
        setattr(func, "attr" if isinstance(func, ast.Attribute) else "id", NAMES[name])
        if not (name == "sum" and isinstance(node.func, ast.Name)):
            yield "function", ast.Call(func, node.args, node.keywords)
    if name in CALLS_TO_DROP and plain:
        if node.args: yield "drop a call", node.args[0]
        elif isinstance(node.func, ast.Attribute): yield "drop a call", node.func.value
    if plain and len(node.args) >= 2 and name not in ("isinstance", "getattr", "hasattr", *SYMMETRIC):
        a, b, *rest = node.args
        alike = all(isinstance(x, (ast.Name, ast.Attribute, ast.Subscript)) for x in (a, b))
        if alike and ast.dump(a) != ast.dump(b): yield "exchange", ast.Call(node.func, [b, a, *rest], node.keywords)
    for i, keyword in enumerate(node.keywords):
        others = node.keywords[:i] + node.keywords[i + 1:]
        if keyword.arg in ("keepdims", "axis", "dtype", "out"):
            yield "drop an argument", ast.Call(node.func, node.args, others)
        if name == "Exercise" and keyword.arg in CHECKS and isinstance(keyword.value, ast.Tuple):
            for j in range(len(keyword.value.elts)):
                left = ast.Tuple(keyword.value.elts[:j] + keyword.value.elts[j + 1:], ast.Load())
                yield "weaken a check", ast.Call(node.func, node.args, [*others, ast.keyword(keyword.arg, left)])
        if name == "Exercise" and keyword.arg == "tolerance": yield "weaken a check", ast.Call(node.func, node.args, [
            *others, ast.keyword("tolerance", ast.Constant(1e9))])


def negated(test):
    return test.operand if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not) else ast.UnaryOp(ast.Not(), test)


# -- how a fault is told ---------------------------------------------------------------------------
def described(tree, node, new, kind, path, around):
    """The fault, shown within the smallest expression around it that says where it is."""
    functions = [a.name for a in around if isinstance(a, (ast.FunctionDef, ast.ClassDef))]
    chain = [*around, node]
    statement = next(a for a in reversed(chain) if isinstance(a, ast.stmt))
    if kind == "weaken a check": return weakened(node, new, kind, functions, statement, path)
    for depth in range(len(chain) - 1, 0, -1):
        shown = chain[depth]
        if isinstance(shown, (ast.FunctionDef, ast.ClassDef, ast.For, ast.With, ast.While, ast.Try)): break
        before = text(shown)
        if len(before) >= 12 or shown is statement: break
    else:
        depth, before = len(chain) - 1, text(node)
    relative = path[depth:]
    if not before or isinstance(shown, (ast.FunctionDef, ast.ClassDef, ast.For, ast.With, ast.While, ast.Try)):
        shown, before, relative = node, text(node), ()
    return Fault(kind, ".".join(functions), getattr(node, "lineno", statement.lineno), statement.lineno, before,
                 changed(shown, relative, new), path, new)


def changed(shown, path, new):
    """The text of `shown` with `new` at the end of a path, which is there for as long as the text is made."""
    if not path: return text(new)
    *way, (field, i) = path
    node = shown
    for name, j in way: node = getattr(node, name) if j is None else getattr(node, name)[j]
    old = getattr(node, field) if i is None else getattr(node, field)[i]

    def put(value):
        if i is None: setattr(node, field, value)
        else: getattr(node, field)[i] = value
    put(new)
    try:
        return text(shown)
    finally:
        put(old)


def text(node):
    """Source of a node; of an `if` its first line alone."""
    if isinstance(node, ast.If): return "if " + ast.unparse(node.test) + ": …"
    if isinstance(node, ast.Pass): return "pass"
    if isinstance(node, ast.Raise): return "raise " + (ast.unparse(node.exc).split("(")[0] if node.exc else "")
    return ast.unparse(node)


def weakened(node, new, kind, functions, statement, path):
    """An exercise without one of its checks: its name, the field, and the sentence that was dropped."""
    name = next(ast.unparse(k.value) for k in node.keywords if k.arg == "name")
    keyword = new.keywords[-1]
    old = next(k.value for k in node.keywords if k.arg == keyword.arg)
    if keyword.arg == "tolerance":
        return Fault(kind, name, old.lineno, old.lineno, f"tolerance={ast.unparse(old)}", "tolerance=1e9", path, new)
    kept = {ast.dump(e) for e in keyword.value.elts}
    gone = next(e for e in old.elts if ast.dump(e) not in kept)
    words = ast.unparse(gone.elts[0] if isinstance(gone, ast.Tuple) else gone)
    return Fault(kind, name, gone.lineno, gone.lineno, f"{keyword.arg}: {words}", "dropped", path, new)
