"""Read the docstrings of an installed library from its source files: one `Document` per docstring.

The sources are parsed with `ast`, never imported: an import would run code and need every optional
dependency, and decorators would copy one table into a hundred docstrings. Calls
`add_newdoc(name, text)` in the sources give the docstrings of compiled extensions.

A document is named as users call it (`numpy.mean`, not `numpy._core.fromnumeric.mean`), by the
imports in the packages' `__init__.py`. Its text is the docstring's prose.
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

# Tests, tables, code of other projects.
_SKIPPED = set("""tests test conftest idle_test site-packages dist-packages lib-dynload __pycache__
encodings turtledemo _vendor _bundled _external externals array_api_compat array_api_extra _uarray
cobyqa pyprima _highspy""".split())


@dataclass(frozen=True)
class Document:
    """One docstring; `str(document)` is what a language model reads: a header line, then the text.

    name: dotted, public. signature: "(x, axis=None)", or "" if the object is not called."""
    library: str
    name: str
    signature: str
    text: str

    @property
    def header(self) -> str:
        """The name and the signature."""
        return self.name + self.signature

    def __str__(self):
        return f"{self.header}\n{self.text}\n"


def read(library: str) -> list[Document]:
    """Read every docstring of "python", "numpy", "scipy" or "matplotlib", in file order.

    Raises `ValueError` for another name and `FileNotFoundError` if its sources are missing."""
    modules, packages = {}, set()                                        # dotted name → syntax tree
    for root, package in _roots(library):
        for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
            parts = path.relative_to(root).with_suffix("").parts
            if _SKIPPED.isdisjoint(parts) and (tree := _parse(path)):
                name = ".".join((*package, *(p for p in parts if p != "__init__")))
                modules[name] = tree
                if path.stem == "__init__": packages.add(name)
    found = [entry for module, tree in modules.items() for entry in _docstrings(tree, module)]
    public = _public_names(modules, packages, found)
    documents = [Document(library, f"help({name!r})", "", text) for name, text in _topics(library)]
    for module, qualified, signature, doc in found:
        top, dot, attribute = qualified.partition(".")
        name = public.get((module, top)) or ".".join(filter(None, (_without_private(module), top)))
        usage, doc = _split_usage(qualified, doc)
        if text := prose(doc):
            documents.append(Document(library, name + dot + attribute, signature or usage, text))
    if not documents:
        raise FileNotFoundError(f"no docstrings: install {library} together with its .py files")
    return documents


def location(library: str) -> Path:
    """Return the directory that `library` is read from. Raises like `read`."""
    if library not in LIBRARIES:
        raise ValueError(f"unknown library {library!r}: expected one of {', '.join(LIBRARIES)}")
    if library == "python": return Path(sysconfig.get_path("stdlib"))
    spec = importlib.util.find_spec(library)                               # does not import it
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
            warnings.simplefilter("ignore")                                # outdated string escapes
            return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return None                                                       # e.g. Python 2 in lib2to3


def _topics(library):
    """(topic, text) of Python's reference, shown by `help('while')`, from a dict literal."""
    if library == "python":
        tree = _parse(Path(next(iter(pydoc_data.__path__))) / "topics.py")
        table = next(node.value for node in tree.body if isinstance(node, ast.Assign))
        for topic, text in ast.literal_eval(table).items():
            yield topic, prose(inspect.cleandoc(text))


# ---- names, signatures and docstrings of one syntax tree -----------------------------------------

def _docstrings(tree, module):
    """Yield (defining module, qualified name in it, signature, docstring) of a module."""
    def walk(node, prefix):
        for child in node.body:
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                is_class = isinstance(child, ast.ClassDef)
                if doc := ast.get_docstring(child):
                    initializer = [f for f in child.body if getattr(f, "name", "") == "__init__"]
                    called = initializer if is_class else [child]
                    is_property = any("property" in ast.unparse(d) for d in child.decorator_list)
                    signature = _signature(called[0].args) if called and not is_property else ""
                    yield module, prefix + child.name, signature, doc
                if is_class:
                    yield from walk(child, f"{prefix}{child.name}.")
            elif isinstance(child, (ast.If, ast.Try)):               # `if sys.platform == …: def …`
                yield from walk(child, prefix)

    if doc := ast.get_docstring(tree):
        yield module, "", "", doc
    yield from walk(tree, "")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "add_newdoc":
            yield from _newdoc(node, module)


def _newdoc(node, module):
    """Read `add_newdoc(name, doc)`, (module, name, doc) or (module, class, (attribute, doc))."""
    try:
        *target, name, doc = map(ast.literal_eval, node.args)
    except ValueError:                                                     # the text is computed
        return
    if isinstance(doc, tuple):
        name, doc = f"{name}.{doc[0]}", doc[1]
    library = module.partition(".")[0]
    if isinstance(doc, str) and all(t.partition(".")[0] == library for t in target):
        yield target[0] if target else module.rpartition(".")[0], name, "", inspect.cleandoc(doc)


def _split_usage(name, doc):
    """Split off a call at the beginning: `array(object)` → ("(object)", the rest)."""
    function = re.escape(name.rpartition(".")[2])
    usage = re.compile(rf"(?:\w+\.)*{function}\((.*)\)(?: *-> *[\w.]+)?(?: --)?")
    signature, blocks = "", doc.replace("\n--\n", "\n--\n\n").split("\n\n")
    while len(blocks) > 1 and (call := usage.fullmatch(" ".join(blocks[0].split()))):
        signature = signature or f"({call[1].strip(' ,').removeprefix('$self').lstrip(' ,/')})"
        blocks.pop(0)
    return signature, "\n\n".join(blocks)


def _signature(a):
    """Print `ast.arguments` as "(x, axis=None)", without annotations and a method's `self`."""
    for arg in filter(None, [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg]):
        arg.annotation = None
    return f"({re.sub('^(self|cls)(, /)?(, |$)', '', ast.unparse(a))})"


def _public_names(modules, packages, found):
    """Map (defining module, name) to the dotted name under which a public package exports it.

    A name in a package that contains the module is preferred, then the name as defined, then the
    shortest path."""
    visible = {}

    def exports(module):                                            # name → (defining module, name)
        if module not in visible:
            visible[module] = own = dict(defined.get(module, {}))   # first: imports may be circular
            tree = modules.get(module)
            for node in ast.walk(tree) if tree else ():
                if isinstance(node, ast.ImportFrom):
                    source = module.split(".") if module in packages else module.split(".")[:-1]
                    source = source[:len(source) - node.level + 1] if node.level else []
                    imported = exports(".".join((*source, *filter(None, (node.module,)))))
                    for alias in node.names:
                        if alias.name == "*":
                            own |= {n: o for n, o in imported.items() if not n.startswith("_")}
                        elif alias.name in imported:
                            own[alias.asname or alias.name] = imported[alias.name]
            own |= defined.get(module, {})
        return visible[module]

    defined, candidates = {}, {}
    for module, qualified, *_ in found:
        if top := qualified.partition(".")[0]:
            defined.setdefault(module, {})[top] = (module, top)
    for package in sorted(p for p in packages if p == _without_private(p)):
        for name, (module, defined_name) in exports(package).items():
            if module.partition(".")[0] == package.partition(".")[0]:    # asyncio re-exports typing
                outside = not module.startswith(package)
                rank = outside, name != defined_name, package.count("."), f"{package}.{name}"
                candidates.setdefault((module, defined_name), []).append(rank)
    return {origin: min(ranks)[-1] for origin, ranks in candidates.items()}


def _without_private(module):
    public = ".".join(part for part in module.split(".") if not part.startswith("_"))
    return public or re.sub("^_(py)?", "", module.partition(".")[0])       # _pyio documents io


# ---- prose ---------------------------------------------------------------------------------------

_LEGAL = re.compile("(?i)copyright|permission is hereby granted|redistribution and use|"
                    "all rights reserved|without warranty|licensed under")
_RULE = re.compile(r"^\s*([-=~*^\"#+_.])\1{2,}\s*$", re.MULTILINE)


def prose(doc: str) -> str:
    """Remove doctests, unfilled templates, licence texts, tables and formulas from a docstring.

    A block between blank lines is cut at its first `>>>`, loses lines such as `%(example)s`, and is
    kept if two thirds of its characters are letters. Empty sections are removed."""
    kept, section_ends = [], True                                          # from the last block up
    for block in reversed(re.split(r"\n\s*\n", doc.expandtabs())):
        block = re.split(r"^\s*>>>", block, maxsplit=1, flags=re.MULTILINE)[0]
        lines = [line.rstrip() for line in block.splitlines()
                 if line.strip() and not re.fullmatch(r"\s*%\(.*\)s\s*", line)]
        block = "\n".join(lines)
        bare = "".join(_RULE.sub("", block).split())
        heading = len(lines) > 1 and bool(_RULE.match(lines[1]))
        empty = not bare or heading and len(lines) == 2 and section_ends
        mostly_letters = 3 * sum(map(str.isalpha, bare)) >= 2 * len(bare)
        if not empty and mostly_letters and not _LEGAL.search(block):
            kept.append(block)
            section_ends = heading
    return "\n\n".join(reversed(kept)) if sum(map(len, kept)) >= 12 else ""
