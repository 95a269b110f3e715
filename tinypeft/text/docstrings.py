"""Read the docstrings of an installed library from its source files: one `Document` per docstring.

The sources are parsed with `ast`, never imported. Importing would run code, would need every optional dependency, and
would see each docstring after decorators had filled the same table into a hundred of them; the source has it once.
What compiled extensions say about themselves is read where a library writes it down: `add_newdoc(name, text)` calls.

A document is named as its users call it (`numpy.mean`, not `numpy._core.fromnumeric.mean`), which `_public_names`
works out from the imports in the packages' `__init__.py`. Of a docstring only prose is kept: see `prose`.
"""

import ast
import importlib.util
import inspect
import pydoc_data
import re
import sysconfig
import warnings
from dataclasses import dataclass
from pathlib import Path

LIBRARIES = ("python", "numpy", "scipy", "matplotlib")

# Directories without documentation of the library itself: tests, tables, and other projects' code carried along.
_SKIPPED = {"tests", "test", "conftest", "idle_test", "site-packages", "dist-packages", "lib-dynload", "__pycache__",
            "encodings", "turtledemo", "_vendor", "_bundled", "_external", "externals", "array_api_compat",
            "array_api_extra", "_uarray", "cobyqa", "pyprima", "_highspy"}


@dataclass(frozen=True)
class Document:
    """One docstring. `name` is the dotted public name, `signature` is "(x, axis=None)" or "" for what is not called,
    `text` is the cleaned prose. `str(document)` is what a language model reads: a header line, then the text."""
    library: str
    name: str
    signature: str
    text: str

    @property
    def header(self):
        return self.name + self.signature

    def __str__(self):
        return f"{self.header}\n{self.text}\n"


def read(library):
    """Every docstring of `library` ("python", "numpy", "scipy" or "matplotlib") → list of `Document`, in file order.

    Raises `ValueError` for another name and `FileNotFoundError` if the library is not installed with its sources."""
    modules, packages = {}, set()                                                 # dotted name → syntax tree
    for root, package in _roots(library):
        for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
            parts = path.relative_to(root).with_suffix("").parts
            if _SKIPPED.isdisjoint(parts):
                name = ".".join((*package, *(p for p in parts if p != "__init__")))
                if tree := _parse(path):
                    modules[name] = tree
                    packages |= {name} if path.stem == "__init__" else set()
    found = {module: list(_docstrings(tree, module)) for module, tree in modules.items()}
    public = _public_names(modules, packages, found)
    documents = [Document(library, f"help({topic!r})", "", text) for topic, text in _topics(library)]
    for entries in found.values():
        for place, qualified, signature, doc in entries:
            head, _, tail = qualified.partition(".")
            name = public.get((place, head)) or ".".join(filter(None, (_without_private(place), head)))
            usage, doc = _split_usage(qualified, doc)
            if text := prose(doc):
                documents.append(Document(library, f"{name}.{tail}" if tail else name, signature or usage, text))
    if not documents:
        raise FileNotFoundError(f"no docstrings found for {library!r}: is it installed together with its .py files?")
    return documents


def location(library):
    """The directory `library` is read from, a `Path`. Raises like `read`."""
    if library not in LIBRARIES:
        raise ValueError(f"unknown library {library!r}: expected one of {', '.join(LIBRARIES)}")
    if library == "python":
        return Path(sysconfig.get_path("stdlib"))
    spec = importlib.util.find_spec(library)                                      # finds without importing
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"{library} is not installed: pip install {library}")
    return Path(next(iter(spec.submodule_search_locations)))


def _roots(library):
    home = location(library)
    yield home, () if library == "python" else (library,)
    if library == "matplotlib" and (toolkits := home.parent / "mpl_toolkits").is_dir():
        yield toolkits, ("mpl_toolkits",)


def _parse(path):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                                       # old escapes in their strings
            return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return None                                                               # e.g. lib2to3's Python 2 samples


def _topics(library):
    """Python's own reference, the text behind `help('while')`: a dict literal, so it too is read and not imported."""
    if library == "python":
        tree = _parse(Path(next(iter(pydoc_data.__path__))) / "topics.py")
        table = next(node.value for node in tree.body if isinstance(node, ast.Assign))
        yield from ((topic, prose(inspect.cleandoc(text))) for topic, text in ast.literal_eval(table).items())


# ---- names, signatures and docstrings of one syntax tree ------------------------------------------------------------

def _docstrings(tree, module):
    """(place, qualified name, signature, docstring) of a module: `place` is the module that defines the first name."""
    def walk(node, prefix):
        for child in node.body:
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                is_class = isinstance(child, ast.ClassDef)
                if doc := ast.get_docstring(child):
                    inits = [f for f in child.body if getattr(f, "name", "") == "__init__"] if is_class else [child]
                    is_property = any("property" in ast.unparse(d) for d in child.decorator_list)
                    signature = _signature(inits[0].args) if inits and not is_property else ""
                    yield module, prefix + child.name, signature, doc
                if is_class:
                    yield from walk(child, f"{prefix}{child.name}.")
            elif isinstance(child, (ast.If, ast.Try)):                            # `if sys.platform == …: def …`
                yield from walk(child, prefix)

    if doc := ast.get_docstring(tree):
        yield module, "", "", doc
    yield from walk(tree, "")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "add_newdoc":
            yield from _newdoc(node, module)


def _newdoc(node, module):
    """The three forms of `add_newdoc`: (name, doc), (place, name, doc) and (place, class, (attribute, doc))."""
    try:
        *place, name, doc = map(ast.literal_eval, node.args)
    except ValueError:                                                            # computed text: left to its library
        return
    if isinstance(doc, tuple):
        name, doc = f"{name}.{doc[0]}", doc[1]
    if isinstance(doc, str) and all(p.partition(".")[0] == module.partition(".")[0] for p in place):
        yield (place[0] if place else module.rpartition(".")[0]), name, "", inspect.cleandoc(doc)


def _split_usage(name, doc):
    """A docstring may begin with the call itself, `array(object, dtype=None)` → ("(object, dtype=None)", the rest)."""
    usage = re.compile(rf"(?:\w+\.)*{re.escape(name.rpartition('.')[2])}\((.*)\)(?: *-> *[\w.]+)?(?: --)?")
    signature, blocks = "", doc.replace("\n--\n", "\n--\n\n").split("\n\n")
    while len(blocks) > 1 and (call := usage.fullmatch(" ".join(blocks[0].split()))):
        signature = signature or f"({call[1].strip(' ,').removeprefix('$self').lstrip(' ,/')})"
        blocks.pop(0)
    return signature, "\n\n".join(blocks)


def _signature(a):
    """`ast.arguments` → "(x, axis=None)": annotations and a method's `self` are left out."""
    parts = [p.arg for p in a.posonlyargs + a.args]
    for i, default in enumerate(a.defaults, len(parts) - len(a.defaults)):
        parts[i] += f"={ast.unparse(default)}"
    if a.posonlyargs:
        parts.insert(len(a.posonlyargs), "/")
    if a.vararg or a.kwonlyargs:
        parts.append(f"*{a.vararg.arg if a.vararg else ''}")
    parts += [k.arg + (f"={ast.unparse(d)}" if d else "") for k, d in zip(a.kwonlyargs, a.kw_defaults, strict=True)]
    if a.kwarg:
        parts.append(f"**{a.kwarg.arg}")
    if parts[:1] in (["self"], ["cls"]):
        del parts[:2 if parts[1:2] == ["/"] else 1]
    return f"({', '.join(parts)})"


def _public_names(modules, packages, found):
    """(defining module, name) → the dotted name under which a package without a leading underscore exports it: rather
    one it lies in than another, under its own name, and as short as can be."""
    visible = {}

    def exports(module):                                                          # name → (defining module, name)
        if module not in visible:
            visible[module] = mine = dict(defined.get(module, {}))                # set first: imports may be circular
            tree = modules.get(module)
            for node in ast.walk(tree) if tree else ():
                if isinstance(node, ast.ImportFrom):
                    base = module.split(".") if module in packages else module.split(".")[:-1]
                    base = base[:len(base) - node.level + 1] if node.level else []
                    theirs = exports(".".join((*base, *filter(None, (node.module,)))))
                    for alias in node.names:
                        if alias.name == "*":
                            mine |= {n: origin for n, origin in theirs.items() if not n.startswith("_")}
                        elif alias.name in theirs:
                            mine[alias.asname or alias.name] = theirs[alias.name]
            mine |= defined.get(module, {})
        return visible[module]

    defined = {}
    for place, qualified, *_ in (entry for entries in found.values() for entry in entries):
        if head := qualified.partition(".")[0]:
            defined.setdefault(place, {})[head] = (place, head)
    candidates = {}
    for package in sorted(packages):
        for name, origin in exports(package).items() if package == _without_private(package) else ():
            if origin[0].partition(".")[0] == package.partition(".")[0]:          # asyncio also shows typing's names
                elsewhere = not origin[0].startswith(package)
                rank = elsewhere, name != origin[1], package.count("."), f"{package}.{name}"
                candidates.setdefault(origin, []).append(rank)
    return {origin: min(ranks)[-1] for origin, ranks in candidates.items()}


def _without_private(module):
    public = ".".join(part for part in module.split(".") if not part.startswith("_"))
    return public or re.sub("^_(py)?", "", module.partition(".")[0])              # _pyio documents io


# ---- what of a docstring is prose ------------------------------------------------------------------------------------

_LEGAL = re.compile("(?i)copyright|permission is hereby granted|redistribution and use|all rights reserved|"
                    "without warranty|licensed under")
_RULE = re.compile(r"^\s*([-=~*^\"#+_.])\1{2,}\s*$", re.MULTILINE)


def prose(doc):
    """A cleaned docstring without its doctests, unfilled templates, licence texts, tables and formulas.

    Works on blocks (what blank lines separate): a block is cut at its first `>>>`, loses lines such as `%(example)s`,
    and stays if two thirds of its characters are letters. Headings left with nothing below them go too."""
    kept, section_ends = [], True                                                 # walking up from the last block
    for block in reversed(re.split(r"\n\s*\n", doc.expandtabs())):
        block = re.split(r"^\s*>>>", block, maxsplit=1, flags=re.MULTILINE)[0]
        lines = [s.rstrip() for s in block.splitlines() if s.strip() and not re.fullmatch(r"\s*%\(.*\)s\s*", s)]
        block = "\n".join(lines)
        bare = "".join(_RULE.sub("", block).split())
        heading = len(lines) > 1 and _RULE.match(lines[1])
        empty = heading and len(lines) == 2 and section_ends
        if bare and not empty and 3 * sum(map(str.isalpha, bare)) >= 2 * len(bare) and not _LEGAL.search(block):
            kept.append(block)
            section_ends = bool(heading)
    return "\n\n".join(reversed(kept)) if sum(map(len, kept)) >= 12 else ""
