"""Which modules of the package decide a number, with a hash of each.

    dependencies(measure, LoRA(rank=8))      # {"peft/lora.py": "1f0c…", "training/loop.py": "9a37…", …}

These are the modules of `measure` and of the functions and classes in its value, and all that they import, inside functions
too. A hash changes with every edit but those of docstrings, comments and layout. Three rules keep the rest of the package out:

1. An imported name leads to the module that defines it, not to all that a package lists. METHODS and SCHEMES
   lead nowhere, because the value says which classes are needed.
2. A file of the study holds tables and many conditions. What counts of it is what `measure` uses, by name.
3. The modules of SILENT do not count. They check hyperparameters, show, save or load, hold rates that stand in the values, or
   share work among threads: an experiment runs in one.
"""
import ast
import dataclasses
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

__all__ = ["dependencies", "starts"]

PACKAGE = __name__.split(".")[0]
SILENT = tuple(f"{PACKAGE}.{name}." for name in (
    "common.heap", "common.hints", "common.hyper", "common.lazy", "common.markup", "common.progress", "common.signals",
    "common.threads", "common.wording", "files", "peft.formats", "training.checkpoints", "training.curves", "study.experiment",
    "study.experiments.best"))
Place = tuple[str, str | None]                           # a module, and a name in it; None: all of it


def dependencies(measure: Callable, value: object) -> dict[str, str]:
    """Return file → hash (8 hex digits) of all that `measure(value, …)` depends on, in this package and in measure's own.

    Raises ValueError for a function that is not in a file.
    """
    places: set[Place] = set()
    functions = measure, *starts(value)
    waiting = [home(f.__module__, f.__qualname__.split(".")[0], measure.__module__) for f in functions]
    while waiting:
        place = waiting.pop()
        if place is None or place in places: continue
        places.add(place)
        waiting += uses(*place)
    hashes: dict[str, list[str]] = {}
    for module, name in places: hashes.setdefault(file_name(module), []).append(hash_of(module, name))
    return {file: digest("".join(sorted(parts))) for file, parts in sorted(hashes.items())}


def starts(value: object) -> Iterator[Callable]:
    """Yield the functions and classes in a value: through dataclass fields, tuples, lists and dicts."""
    if isinstance(value, type) or hasattr(value, "__code__"):
        yield value
        return
    inner = value.values() if isinstance(value, dict) else value
    if not isinstance(value, (dict, tuple, list, set, frozenset)):
        yield type(value)
        inner = [getattr(value, f.name) for f in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
    for item in inner: yield from starts(item)


@cache
def home(module: str, name: str | None, user: str) -> Place | None:
    """Return where a name is defined that `user` imports from a module; None if it does not count."""
    if module.split(".")[0] not in (PACKAGE, user.split(".")[0]): return None
    if f"{module}.{name}.".startswith(SILENT): return None
    if name and file_of(f"{module}.{name}"): return f"{module}.{name}", None
    if not file_of(module):
        raise ValueError(f"{name} of {module} has no source file; put what an experiment measures into a module")
    if name in ("METHODS", "SCHEMES"): return None
    if name in imports(module): return home(*imports(module)[name], module)
    return module, name if module.startswith(f"{PACKAGE}.study.") else None


@cache
def uses(module: str, name: str | None) -> list[Place | None]:
    """Return the homes of all that a module imports; with a name, of what its definition uses."""
    if name is None: return [home(*place, module) for place in imports(module).values()]
    nodes = [node for statement in definitions(module).get(name, ()) for node in ast.walk(statement)]
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    places = {own: (module, own) for own in definitions(module)} | imports(module)
    return [home(*places[used], module) for used in names & places.keys()]


@cache
def imports(module: str) -> dict[str, Place]:
    """Return alias → (module, name) of all import statements in a module."""
    places: dict[str, Place] = {}
    package = module if is_package(module) else module.rpartition(".")[0]
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            places |= {alias.asname or alias.name: (alias.name, None) for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            places |= {alias.asname or alias.name: (origin, alias.name) for alias in node.names}
    return places


@cache
def definitions(module: str) -> dict[str, list[ast.stmt]]:
    """Return name → the statements at the top of a module that define or change it."""
    found: dict[str, list[ast.stmt]] = {}
    for node in tree_of(module).body:
        targets = [node]
        if isinstance(node, ast.Assign): targets = node.targets
        if isinstance(node, (ast.AnnAssign, ast.AugAssign)): targets = [node.target]
        names = {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)): names = {node.name}
        for name in names: found.setdefault(name, []).append(node)
    return found


# -- files and hashes ------------------------------------------------------------------------------
@cache
def file_of(module: str) -> Path | None:
    """Return a module's file, or None."""
    top, *rest = module.split(".")
    start = getattr(sys.modules.get(top), "__file__", None)
    if start is None or not rest: return start and Path(start)
    path = Path(start).parent.joinpath(*rest)
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def is_package(module: str) -> bool:
    return file_of(module).name == "__init__.py"


def file_name(module: str) -> str:
    """Return a module's file, relative to the package."""
    path = module.removeprefix(f"{PACKAGE}.").replace(".", "/")
    return f"{path}/__init__.py" if is_package(module) else f"{path}.py"


@cache
def tree_of(module: str) -> ast.Module:
    return without_docstrings(file_of(module).read_text("utf-8"))


def without_docstrings(source: str) -> ast.Module:
    tree = ast.parse(source)
    documented = [node for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))]
    for node in documented:
        if ast.get_docstring(node, clean=False) is not None: del node.body[0]
    return tree


@cache
def hash_of(module: str, name: str | None) -> str:
    return digest(text(definitions(module).get(name, []) if name else tree_of(module)))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def text(node: object) -> str:
    """Return a syntax tree as text that is the same in every version of Python."""
    if isinstance(node, list): return f"[{' '.join(map(text, node))}]"
    if not isinstance(node, ast.AST): return repr(node)
    fields = [f"{key}={text(part)}" for key, part in ast.iter_fields(node)
              if part not in (None, []) and key not in ("ctx", "kind", "type_comment")]
    return f"({type(node).__name__} {' '.join(fields)})"
