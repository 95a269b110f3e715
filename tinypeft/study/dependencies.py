"""Which definitions of the package decide a number: a static walk from a function to everything it can reach.

    definitions(measure, LoRA(rank=8))     # {"peft/lora.py LoRALinear": "1f0c…", "training/loop.py train": "9a37…", …}

The walk works on syntax trees; it runs nothing. A *definition* is a function, a class or an assignment at the top level of a
module. The walk starts at the function that measures and at the classes in the value that it is given. From there it follows
every name: through imports (also those inside functions), through the re-exports of `__init__` files, and through module
aliases such as `F.linear`. Four rules keep it from following too much:

1. A method counts if its class is reached and some reached code uses an attribute of that name (`x.merge`,
   `hasattr(x, "merge")`). Special methods, such as `__init__`, always count. A measurement that saves nothing therefore does
   not depend on `PeftModel.save`, nor on the file formats behind it.
2. The walk does not enter a registry (METHODS, SCHEMES): the value says which class is needed.
3. It does not enter modules that only show things, only check hyperparameters, or only write arrays to files and read the
   same arrays back (SILENT).
4. Docstrings, comments, annotations, messages of exceptions and `__repr__` cannot change a number. They do not count.

The hash of a definition covers the parts of it that count. It does not depend on the version of Python. The walk cannot
see a name that is computed at run time, as in `getattr(x, name)`, so it relies on other code that uses the same name.
"""
from __future__ import annotations

import ast
import dataclasses
import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

__all__ = ["Sources", "definitions", "starts"]

PACKAGE = __name__.split(".")[0]
REGISTRIES = {(f"{PACKAGE}.peft", "METHODS"), (f"{PACKAGE}.quant", "SCHEMES")}
SILENT = tuple(f"{PACKAGE}.{name}" for name in (
    "common.heap", "common.hints", "common.hyper", "common.markup", "common.progress", "common.signals", "files",
    "training.checkpoints", "training.curves", "study.plot", "study.experiment"))
NOT_COUNTED = {"__repr__", "__str__", "_repr_html_"}


def definitions(measure: Callable, value: object, sources: Sources | None = None) -> dict[str, str]:
    """What `measure(value, …)` can reach: "file name" of each definition → hash (8 hex digits).

    sources: where the text of the modules is read (default: the files that Python imports).
    """
    return (sources or _installed()).reach([measure, *starts(value)])


@cache
def _installed() -> Sources:
    return Sources()


def starts(value: object) -> Iterator[Callable]:
    """The functions and classes in a value: through dataclass fields, tuples, lists and dicts."""
    if isinstance(value, dict): value = tuple(value.values())
    if isinstance(value, (tuple, list, set, frozenset)):
        for item in value: yield from starts(item)
    elif isinstance(value, type) or hasattr(value, "__code__"):
        yield value
    else:
        yield type(value)
        if dataclasses.is_dataclass(value):
            for f in dataclasses.fields(value): yield from starts(getattr(value, f.name))


@dataclasses.dataclass
class _Module:
    """What a module binds at its top level.

    definitions: name → its parts, (method or None, syntax tree): a class is cut into its methods and the rest.
    imports: name → (module, name there, or None for the module itself). stars: modules of `from … import *`.
    """
    definitions: dict[str, list[tuple[str | None, ast.AST]]]
    imports: dict[str, tuple[str, str | None]]
    stars: list[str]


class Sources:
    """The modules of the package, parsed when they are first needed.

    texts: module → source text that takes the place of its file, for example to ask what a change would touch.
    """

    def __init__(self, texts: dict[str, str] | None = None):
        self.texts, self.packages = texts or {}, {PACKAGE}
        self.modules: dict[str, _Module | None] = {}
        self.files: dict[str, Path | None] = {}                      # looking for a file costs more than the walk
        self.known: dict[ast.AST, tuple] = {}                        # part → what it reads, as text

    def reach(self, functions: list[Callable]) -> dict[str, str]:
        """"file name" → hash of everything that the functions and classes can reach; other packages are left out.

        The package of the first function counts as well, so that a test can measure with a function of its own.
        """
        self.packages.add(functions[0].__module__.split(".")[0])
        todo = [(f.__module__, f.__qualname__.split(".")[0]) for f in functions if self._is_ours(f.__module__)]
        found: dict[tuple[str, str], list[str]] = {}                 # definition → its parts that count, as text
        waiting: dict[str, list[tuple]] = {}                         # attribute → methods that count once it is used
        used: set[str] = set()

        while todo:
            definition = todo.pop()
            if definition in found: continue
            module, name = definition
            found[definition] = []
            if (there := self._module(module)) is None:
                raise ValueError(f"{name} of {module} has no source file; put what an experiment measures into a module")
            for method, part in there.definitions.get(name, ()):
                if method in NOT_COUNTED: continue
                counts = method is None or method in used or method.startswith("__") and method.endswith("__")
                if not counts:
                    waiting.setdefault(method, []).append((definition, part))
                    continue
                parts = [(definition, part)]
                while parts:
                    owner, part = parts.pop()
                    names, attributes, text = self._reads(owner[0], part)
                    found[owner].append(text)
                    todo += names
                    for attribute in attributes - used: parts += waiting.pop(attribute, [])
                    used |= attributes
        named = {f"{self._told(module)} {name}": _hash(parts) for (module, name), parts in found.items()}
        return dict(sorted(named.items()))

    def _reads(self, module: str, part: ast.AST) -> tuple[list[tuple[str, str]], set[str], str]:
        """The definitions that a part of a module names, the attributes it uses, and the part as text."""
        if part in self.known: return self.known[part]
        local, _ = _imports(module, self._is_package(module), ast.walk(part))
        names, attributes = [], set()

        def stands_for(node: ast.AST) -> tuple[str, str | None] | None:
            """(module, definition) or (module, None) that a dotted name stands for; None if it is no such name."""
            if isinstance(node, ast.Name):
                return self._follow(*local[node.id]) if node.id in local else self._find(module, node.id)
            if isinstance(node, ast.Attribute) and (at := stands_for(node.value)) and at[1] is None:
                return self._find(at[0], node.attr) if self._is_ours(at[0]) else at
            return None

        for node in ast.walk(part):
            if isinstance(node, (ast.Name, ast.Attribute)):
                at = stands_for(node)
                if at and at[1] and at not in REGISTRIES and not _silent(at[0]): names.append(at)
                if not at and isinstance(node, ast.Attribute): attributes.add(node.attr)
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr"):
                attributes |= {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
        self.known[part] = names, attributes, _text_of(part)
        return self.known[part]

    def _find(self, module: str, name: str) -> tuple[str, str | None] | None:
        """Where a name of a module is defined: (module, name), (module, None) if it is a module, None if nowhere."""
        if (there := self._module(module)) is None: return None
        if name in there.definitions: return module, name
        if there.imports.get(name, (module, name)) != (module, name): return self._follow(*there.imports[name])
        if self._is_package(module) and self._file(f"{module}.{name}"): return f"{module}.{name}", None
        return next(filter(None, (self._find(star, name) for star in there.stars)), None)

    def _follow(self, module: str, name: str | None) -> tuple[str, str | None] | None:
        """Where an imported name is defined; a foreign one stands for its module."""
        return (module, None) if name is None or not self._is_ours(module) else self._find(module, name)

    # -- modules and files ------------------------------------------------------------------------
    def _is_ours(self, module: str) -> bool:
        return module.split(".")[0] in self.packages

    def _module(self, name: str) -> _Module | None:
        if name not in self.modules:
            file = self._file(name)
            text = self.texts.get(name) or (file and file.read_text(encoding="utf-8"))
            self.modules[name] = None if text is None else _parse(name, self._is_package(name), text)
        return self.modules[name]

    def _file(self, name: str) -> Path | None:
        if name not in self.files: self.files[name] = self._look_for(name)
        return self.files[name]

    def _look_for(self, name: str) -> Path | None:
        top, *rest = name.split(".")
        start = getattr(sys.modules.get(top), "__file__", None)
        if start is None: return None
        if not rest: return Path(start)
        path = Path(start).parent.joinpath(*rest)
        return next((p for p in (path.with_name(path.name + ".py"), path / "__init__.py") if p.is_file()), None)

    def _is_package(self, name: str) -> bool:
        file = self._file(name)
        return file is not None and file.name == "__init__.py"

    def _told(self, module: str) -> str:
        """A module's file, relative to the package."""
        path = module.removeprefix(PACKAGE + ".").replace(".", "/")
        return f"{path}/__init__.py" if self._is_package(module) else f"{path}.py"


def _silent(module: str) -> bool:
    """Whether a module, or the package around it, is in SILENT."""
    return any(f"{module}.".startswith(f"{name}.") for name in SILENT)


# -- syntax ---------------------------------------------------------------------------------------
@cache                                                   # for those who ask what a change of one module would touch
def _parse(name: str, is_package: bool, text: str) -> _Module:
    tree = _Bare().visit(ast.parse(text))
    late = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]   # see `common/lazy.py`
    body = [*(n for n in tree.body if n not in late), *(n for each in late for n in each.body)]
    found: dict[str, list[tuple[str | None, ast.AST]]] = {}
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)): continue
        if isinstance(node, ast.ClassDef):
            methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
            node.body = [n for n in node.body if n not in methods]
            found.setdefault(node.name, []).extend([*((m.name, m) for m in methods), (None, node)])
            continue
        if isinstance(node, ast.FunctionDef): bound = {node.name}
        elif isinstance(node, ast.Assign): bound = {n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name)}
        else: bound = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}      # `del x`, `x |= …`, `if …: x = …`
        for each in bound: found.setdefault(each, []).append((None, node))
    return _Module(found, *_imports(name, is_package, body))


def _imports(module: str, is_package: bool, nodes: Iterable[ast.AST]) -> tuple[dict[str, tuple[str, str | None]], list[str]]:
    """name → (module, name there or None) of the import statements among nodes; and the modules that `*` stands for."""
    names, stars = {}, []
    for node in nodes:
        if isinstance(node, ast.Import):
            for a in node.names: names[a.asname or a.name.split(".")[0]] = a.name if a.asname else a.name.split(".")[0], None
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[:len(module.split(".")) - node.level + is_package] if node.level else []
            source = ".".join([*base, *(node.module or "").split(".")]).rstrip(".")
            for a in node.names:
                if a.name == "*": stars.append(source)
                else: names[a.asname or a.name] = source, a.name
    return names, stars


class _Bare(ast.NodeTransformer):
    """Takes away what cannot change a number: docstrings, annotations, and the messages of exceptions."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            if ast.get_docstring(node, clean=False) is not None: node.body = node.body[1:]
            if not isinstance(node, ast.ClassDef):       # in a class, `x: int = 1` is a field and `x = 1` is not
                plain = lambda n: ast.Assign([n.target], n.value) if isinstance(n, ast.AnnAssign) and n.value else n
                node.body = [plain(n) for n in node.body]
            if isinstance(node, ast.FunctionDef): node.returns = None
        elif isinstance(node, ast.arg): node.annotation = None
        elif isinstance(node, ast.AnnAssign): node.annotation = ast.Constant(None)
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call): node.exc = node.exc.func
        return node


@cache
def _text_of(part: ast.AST) -> str: return _text(part)


def _text(node: object) -> str:
    """A syntax tree as text, the same in every version of Python."""
    if isinstance(node, list): return f"[{' '.join(map(_text, node))}]"
    if not isinstance(node, ast.AST): return repr(node)
    fields = ((k, v) for k, v in ast.iter_fields(node) if v not in (None, []) and k not in ("ctx", "kind", "type_comment"))
    return f"({type(node).__name__} {' '.join(f'{k}={_text(v)}' for k, v in fields)})"


def _hash(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()[:8]
