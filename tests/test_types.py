"""Every public signature has types: functions, methods and properties, `__init__` included; `py.typed` says so to others."""
import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tinypeft"
OUTSIDE = "study/", "course/exercises/"                  # measurements, and functions that students write
FILES = {name: path for path in sorted(PACKAGE.rglob("*.py"))
         if not (name := path.relative_to(PACKAGE).as_posix()).startswith(OUTSIDE)}


def untyped(source):
    """The public functions and methods of public classes that lack a type, each with the places where it is missing.
    Public is what `__all__` lists; in a file without `__all__`, every name without an underscore in front."""
    tree = ast.parse(source)
    listed = next((ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)
                   and getattr(node.targets[0], "id", "") == "__all__" and isinstance(node.value, ast.List)), None)
    found = []
    for node in tree.body:
        name = getattr(node, "name", "_")
        if name not in listed if listed is not None else name.startswith("_"): continue
        if isinstance(node, ast.FunctionDef): found += missing(node, node.name)
        elif isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and (method.name == "__init__" or not method.name.startswith("_")):
                    found += missing(method, f"{node.name}.{method.name}", is_method=True)
    return found


def missing(function, name, is_method=False):
    """["name: a, b, the return"], or [] if nothing is missing. A static method has no `self` to leave out."""
    a = function.args
    arguments = [*a.posonlyargs, *a.args]
    decorators = {ast.unparse(d) for d in function.decorator_list}
    if is_method and "staticmethod" not in decorators: arguments = arguments[1:]
    arguments += [*a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
    places = [arg.arg for arg in arguments if arg.annotation is None]
    if function.returns is None and function.name != "__init__": places.append("the return")
    return [f"{name}: {', '.join(places)}"] if places else []


def test_public_signatures_have_types():
    assert {name: faults for name, path in FILES.items() if (faults := untyped(path.read_text("utf-8")))} == {}


def test_the_package_says_that_it_has_types():
    assert (PACKAGE / "py.typed").read_text("utf-8") == ""
    assert '"py.typed"' in (PACKAGE.parent / "pyproject.toml").read_text("utf-8")


@pytest.mark.parametrize("source, says", [
    ("def f(a, b: int) -> None: ...", ["f: a"]),
    ("def f(*a, k=1, **kw): ...", ["f: k, a, kw, the return"]),
    ("def f(a: int) -> int: ...\ndef g(a): ...", []),
    ("class C:\n def __init__(self, a): ...\n def _p(self, a): ...\n def m(self) -> None: ...", ["C.__init__: a"]),
    ("class C:\n @property\n def p(self): ...\n @staticmethod\n def s(a) -> int: ...", ["C.p: the return", "C.s: a"]),
    ("class C:\n @classmethod\n def c(cls, a: int) -> int: ...\n def __add__(self, b): ...", []),
])
def test_what_is_missing_is_found(source, says):
    assert untyped('__all__ = ["f", "C"]\n' + source) == says


def test_without_a_list_every_name_without_an_underscore_is_public():
    assert untyped("def f(a): ...\ndef _g(a): ...") == ["f: a, the return"]
    assert untyped("__all__ = []\ndef f(a): ...") == []
