"""Which tests reach which lines of the package, so that a fault in a line runs those tests alone.

    python -m tests.stress.reached               measure every test once (about ten minutes), write build/mutants/reached.json

Tests that were measured before are not measured again; delete the file to measure all. Left out are the tests of a paper's
claim (`_direction`) and of training on the base: they train for seconds, to reach what others reach in milliseconds.
A line is named by its module, the innermost function around it, and its distance from the function's first line: so a
change in one function leaves the others' names as they are, and an old measurement stays of use.
"""
import ast
import json
import sys
import threading
import time
from pathlib import Path

import pytest

from tinypeft.files import write_atomically

__all__ = ["FILE", "ROOT", "functions", "place_of"]

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "tinypeft"
FILE = ROOT / "build" / "mutants" / "reached.json"
LIMIT = 10                                               # seconds of one test; what it reaches later is not noted
TESTS = ["tests/common", "tests/engine", "tests/models", "tests/training", "tests/peft", "tests/quant", "tests/interop",
         "tests/text", "tests/files", "tests/course/test_exercises.py", "tests/test_pretrained.py"]


def functions(tree):
    """[(first line, last line, qualified name)] of a module's functions, outer ones first."""
    found = []

    def walk(node, prefix):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                name = prefix + child.name
                if not isinstance(child, ast.ClassDef): found.append((child.lineno, child.end_lineno, name))
                walk(child, name + ".")
            else:
                walk(child, prefix)
    walk(tree, "")
    return found


def place_of(line, spans):
    """(name of the innermost function around a line, the line's distance from its first); ("", line) outside of all."""
    inside = [span for span in spans if span[0] <= line <= span[1]]
    first, _, name = max(inside, default=(0, 0, ""))
    return name, line - first


class Recorder:
    """A pytest plugin: for each test that passes, its seconds and the lines of the package that it executed."""

    def __init__(self, old):
        self.seconds = dict(zip(old["tests"], old["seconds"], strict=True))
        self.failed, self.saved = old["failed"], time.monotonic()
        self.places, self.spans = old["places"], {}      # {module: {function: {distance: [numbers of tests]}}}
        self.numbers = {test: i for i, test in enumerate(old["tests"])}

    def trace(self, frame, event, arg):
        """Called at each call of a function: lines are noted for the package's own, until all of them were seen."""
        code = frame.f_code
        if (left := self.left.get(id(code))) is None:    # hashing the code itself would take longer than the tests
            mine = code.co_filename.startswith(str(PACKAGE))
            left = {line for *_, line in code.co_lines() if line} if mine else set()
            self.left[id(code)], self.alive[id(code)] = left, code
            if mine: self.seen.setdefault(code.co_filename, set())
        if not left: return None
        if time.process_time() - self.start > LIMIT: return sys.settrace(None)
        seen = self.seen[code.co_filename]

        def each(frame, event, arg):
            if event == "line":
                seen.add(frame.f_lineno)
                left.discard(frame.f_lineno)
                if not left: frame.f_trace_lines = False
            return each
        seen.add(code.co_firstlineno)
        left.discard(code.co_firstlineno)
        return each

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if item.nodeid not in self.seconds]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self.left, self.seen, self.alive, self.start = {}, {}, {}, time.process_time()
        threading.settrace(self.trace)
        sys.settrace(self.trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)
            self.note(item.nodeid, time.process_time() - self.start)
            if time.monotonic() > self.saved + 60: self.save()

    def pytest_runtest_logreport(self, report):
        if report.outcome != "passed": self.failed.append(report.nodeid)

    def note(self, test, seconds):
        """Keep the lines of a test that passed, by their places."""
        self.seconds[test], number = round(seconds, 3), self.numbers.setdefault(test, len(self.numbers))
        for file, lines in self.seen.items() if test not in self.failed else ():
            module = Path(file).relative_to(ROOT).as_posix()
            if module not in self.spans: self.spans[module] = functions(ast.parse(Path(file).read_text("utf-8")))
            for line in lines:
                function, distance = place_of(line, self.spans[module])
                tests = self.places.setdefault(module, {}).setdefault(function, {}).setdefault(str(distance), [])
                tests.append(number)

    def save(self):
        FILE.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(FILE, json.dumps({"tests": list(self.seconds), "seconds": list(self.seconds.values()),
                                           "failed": self.failed, "places": self.places}))
        self.saved = time.monotonic()


def main():
    old = json.loads(FILE.read_text("utf-8")) if FILE.exists() else {"tests": [], "seconds": [], "failed": [], "places": {}}
    recorder = Recorder(old)
    pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", str(ROOT),
                 "-k", "not direction and not quantized_training", *sys.argv[1:], *TESTS], plugins=[recorder])
    recorder.save()
    print(f"{len(recorder.seconds)} tests, {sum(recorder.seconds.values()):.0f} s, failed or skipped: {recorder.failed}")


if __name__ == "__main__":
    main()
