"""Windows and macOS, as far as source shows it: nothing that only POSIX has is asked for while a module is imported, text is
read and written as UTF-8, and nobody forks."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE, TESTS = ([*sorted((ROOT / folder).rglob("*.py"))] for folder in ("tinypeft", "tests"))
MODULES = {"fcntl", "grp", "pty", "pwd", "resource", "termios"}
NAMES = {f"os.{name}" for name in ("fork", "getpgid", "getuid", "killpg", "mkfifo", "mknod", "nice", "posix_fallocate",
                                   "register_at_fork", "sched_getaffinity", "setsid", "uname")}
NAMES |= {f"signal.{name}" for name in ("ITIMER_REAL", "SIGALRM", "SIGHUP", "SIGKILL", "SIGPIPE", "setitimer")}
CALLS = {"open", "read_text", "write_text", "run", "Popen", "call", "check_output", "fork", "get_context"}


def run_at_import(node):
    """The nodes that run when a module is imported, but for those that a condition or an except guards."""
    guarded = isinstance(node, ast.If) and "hasattr" in ast.unparse(node.test) or isinstance(node, ast.Try) and node.handlers
    if guarded: return
    yield node
    inner = ast.iter_child_nodes(node)
    if isinstance(node, ast.FunctionDef): inner = [*node.decorator_list, node.args]
    if isinstance(node, ast.Lambda): inner = [node.args]
    for child in inner: yield from run_at_import(child)


def needs_posix(source):
    """What POSIX alone has, of all that runs when a module is imported."""
    for node in run_at_import(ast.parse(source)):
        if isinstance(node, ast.Import): yield from (alias.name for alias in node.names if alias.name in MODULES)
        if isinstance(node, ast.ImportFrom) and node.module in MODULES: yield node.module
        if isinstance(node, ast.Attribute) and f"{getattr(node.value, 'id', '')}.{node.attr}" in NAMES: yield node.attr
        if last_name(node) == "get_context" and "'fork'" in ast.unparse(node): yield ast.unparse(node)


def last_name(node):
    """The last name of what is called, such as "open" of path.open(…); None for what is no call."""
    return getattr(node.func, "attr", getattr(node.func, "id", None)) if isinstance(node, ast.Call) else None


def careless_calls(source):
    """Calls that mean something else on another system: text without an encoding, and forks."""
    for node in ast.walk(ast.parse(source)):
        if last_name(node) not in CALLS: continue
        name, options = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        values = {*map(ast.unparse, node.args), *options.values()}
        is_text = name.endswith((".read_text", ".write_text")) and not name.startswith("files.")
        is_text |= (name == "open" or name.endswith(".open")) and name != "os.open" and not {"'rb'", "'wb'"} & values
        is_text |= name.startswith("subprocess.") and "text" in options
        encoded = "encoding" in {*options, *values} or {"'utf-8'", "'utf-8-sig'"} & values
        if is_text and not encoded: yield ast.unparse(node)
        if name == "os.fork" or name.endswith("get_context") and values != {"'spawn'"}: yield ast.unparse(node)


def test_a_module_is_imported_on_every_system():
    assert {path.name: found for path in PACKAGE + TESTS if (found := [*needs_posix(path.read_text("utf-8"))])} == {}


def test_the_package_says_what_text_is_and_does_not_fork():
    assert {path.name: found for path in PACKAGE if (found := [*careless_calls(path.read_text("utf-8"))])} == {}


@pytest.mark.parametrize("source, found", [
    ("import resource", True), ("from fcntl import flock", True), ("PLACES = {'pipe': os.mkfifo}", True),
    ("C = multiprocessing.get_context('fork')", True), ("@f(signal.SIGKILL)\ndef g(): pass", True),
    ("class A:\n    n = signal.SIGALRM", True), ("def f(n=signal.SIGKILL): pass", True),
    ("def f():\n    import resource\n    os.fork()", False), ("f = lambda p: os.mkfifo(p)", False),
    ("try: import fcntl\nexcept ImportError: fcntl = None", False),
    ("if hasattr(os, 'register_at_fork'): os.register_at_fork(f)", False), ("os.name", False)])
def test_what_needs_posix_is_found(source, found):
    assert bool([*needs_posix(source)]) is found


@pytest.mark.parametrize("source, found", [
    ("path.read_text()", True), ("path.write_text(text)", True), ("open(path)", True), ("path.open('w')", True),
    ("subprocess.run(words, text=True)", True), ("os.fork()", True), ("multiprocessing.get_context('fork')", True),
    ("path.read_text('utf-8')", False), ("open(path, encoding='utf-8')", False), ("open(path, 'rb')", False),
    ("files.read_text(path)", False), ("os.open(path, os.O_RDWR)", False), ("get_context('spawn')", False)])
def test_careless_calls_are_found(source, found):
    assert bool([*careless_calls(source)]) is found
