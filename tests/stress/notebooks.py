"""Can a submission sink a class?

    python -m tests.stress.notebooks                a class of hostile submissions, and damaged messages
    python -m tests.stress.notebooks --record       the same, with the figures in results/notebooks.json

Every submission of hostile.py is graded beside honest ones by `python -m tinypeft grade`, once as a table and once
with --json and --csv. Each must have its row, in each format; nothing but the honest ones' points may be earned; the
grader's time and memory are bounded. Then messages and notebook files are damaged at random: reading one ends in a
ValueError, or in a value of the wire's own types, which the exercises can judge.
"""
import argparse
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

import tinypeft as tp
from tests.stress import record
from tests.stress.hostile import CELLS, EARNS, HONEST, IMPORTS, PART, SOLVED
from tinypeft.course import wire, worker
from tinypeft.course.exercises import TOPICS, of_topic
from tinypeft.course.judge import judge
from tinypeft.course.whose import lesson_of, student

ROOT = Path(__file__).parents[2]

def notebook(cells):
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {},
                       "cells": [{"cell_type": "code", "metadata": {}, "source": source, "outputs": [],
                                  "execution_count": None} for source in cells]})


def write_files(folder: Path) -> list[str]:
    """Submissions that are no notebooks, or have odd names; returns the students' names."""
    good = notebook(HONEST["ada"]).encode("utf-8")
    files = {"empty.ipynb": b"", "not_json.ipynb": b"{", "a_list.ipynb": b"[]", "no_cells.ipynb": b'{"cells": 5}',
             "source_is_a_number.ipynb": b'{"cells": [{"cell_type": "code", "source": 5}]}',
             "utf16.ipynb": b"\xff\xfe" + good, "mark.ipynb": b"\xef\xbb\xbf" + good, "zeros.ipynb": bytes(10_000),
             "nested.ipynb": b'{"cells": ' + b"[" * 10**5,
             "format_3.ipynb": b'{"worksheets": [{"cells": []}]}',
             "large_number.ipynb": b'{"cells": ' + b"9" * 10_000 + b"}",
             "=HYPERLINK(1).ipynb": b"{", "-rf.ipynb": b"{", "line\nend\x1b[2J.ipynb": b"{", "n" * 240 + ".ipynb": b"{",
             "broken.py": b"def lora_forward(", "zero.py": b"x = '\0'", "coding.py": b"# coding: no-such-thing\n",
             "quits.py": b"import sys; sys.exit(3)", "raises.py": b"raise KeyboardInterrupt"}
    for name, data in files.items(): (folder / name).write_bytes(data)
    (Path(os.fsdecode(os.fsencode(folder) + b"/no\xfftext.ipynb"))).write_bytes(b"{")
    os.mkfifo(folder / "fifo.ipynb")
    os.symlink(folder / "nothing", folder / "broken_link.ipynb")
    os.symlink("/dev/zero", folder / "endless.ipynb")
    with open(folder / "sparse.ipynb", "wb") as f: f.truncate(2**40)
    for name in ("numpy.py", "json.py"): (folder / name).write_text("\n".join([IMPORTS, *SOLVED]), encoding="utf-8")
    return [*(Path(name).stem for name in files), "no\udcfftext", "fifo", "broken_link", "endless", "sparse", "numpy", "json"]


RUN = """
import resource, sys
from tinypeft.commands.cli import main
status = main(sys.argv[1:])
sys.stderr.write(f"\\n{status} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}\\n")
"""


def run_grade(arguments: list, cwd: Path) -> tuple[str, int, int, float]:
    """(what `grade` printed, exit status, the peak of its own memory in MiB, seconds)."""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", RUN, "grade", *map(str, arguments)], cwd=cwd, text=True,
                          capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"},
                          stdin=subprocess.DEVNULL)
    *_, last = done.stderr.strip().splitlines()
    status, kib = last.split()
    return done.stdout, int(status), int(kib) >> 10, time.monotonic() - start


def grade_class(names: dict[str, list], seconds: float, files: bool = True) -> dict:
    """Grade a class in each format. AssertionError unless each submission has its row, and what it earned."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as out:
        folder = Path(out, "class")
        folder.mkdir()
        for name, cells in (HONEST | names).items():
            (folder / f"{name}.ipynb").write_text(notebook(cells), encoding="utf-8")
        others = write_files(folder) if files else []
        arguments = [folder, "--lesson", "07", "--timeout", seconds, "--jobs", "3"]
        printed, status, mib, took = run_grade([*arguments, "--json", "--csv", Path(out, "points.csv")], Path(out))
        assert status == 0, printed
        rows = {r["student"]: r for r in json.loads(printed)}
        with open(Path(out, "points.csv"), newline="", encoding="utf-8") as f:
            lines = list(csv.DictReader(f))
        wanted = len(HONEST) + len(names) + len(others)
        assert len(rows) == len(lines) == wanted, (len(rows), len(lines), wanted)
        assert {r["points"] for r in lines} == {str(r["points"]) for r in rows.values()}
        honest = {*HONEST, *EARNS.intersection(names), *{"numpy", "json"}.intersection(others)}
        of = rows["ada"]["of"]
        wrong = {name: r["points"] for name, r in rows.items()
                 if name not in PART and r["points"] != of * (name in honest)}
        assert not wrong, wrong
        assert of > 0 and all(r["of"] == of for r in rows.values())
        table, status, more, again = run_grade(arguments, Path(out))
        heads = [line for line in table.splitlines() if f" of {of} points" in line and line.endswith(" in 07_lora")]
        assert status == 0 and len(heads) == wanted, table
        assert all(c.isprintable() or c == "\n" for c in table)
        return {"submissions": wanted, "hostile notebooks": len(names), "other files": len(others),
                "seconds each": seconds, "rows in --json, --csv and the table": [len(rows), len(lines), wanted],
                "seconds": round(took + again),
                "peak memory of the grader, MiB": max(mib, more),
                "problems": {name: (r["problem"] or "")[:120] for name, r in rows.items()}}


# -- damage ----------------------------------------------------------------------------------------
TYPES = (type(None), bool, int, float, str, tuple, list, dict, np.ndarray, np.generic, tp.Tensor, wire.Opaque)


def only_its_types(value) -> bool:
    """Does a value consist of the wire's own types?"""
    inside = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else []
    return isinstance(value, TYPES) and all(map(only_its_types, inside))


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one to four faults: bits, bytes, pieces taken out, doubled, moved, or words of JSON put in."""
    data = bytearray(data)
    words = [b"null", b"true", b"-1", b"1e999", b"NaN", b"[]", b"{}", b'""', b'"function"', b'"array"', b'"<f4"', b'"|O"',
             b'"<U9"', b"4294967296", b"99999999999999999999", b'{"list": []}', b'{"opaque": "x", "type": "y"}', b"\\ud800",
             b"[", b"}", b"\xff"]
    for _ in range(rng.randint(1, 4)):
        i, n = rng.randrange(len(data) + 1), rng.randint(1, 40)
        kind = rng.randrange(6)
        if kind == 0 and i < len(data): data[i] ^= 1 << rng.randrange(8)
        if kind == 1 and i < len(data): data[i] = rng.randrange(256)
        if kind == 2: del data[i:i + n]
        if kind == 3: data[i:i] = data[i:i + n]
        if kind == 4: data[i:i + rng.choice((0, n))] = rng.choice(words)
        if kind == 5: j = rng.randrange(len(data) + 1); data[i:i] = data[j:j + n]
    return bytes(data)


def altered(message: bytes, rng: random.Random) -> bytes:
    """A message in which one value is another one: a well-formed lie, where `damaged` mostly breaks the form."""
    array = lambda a: json.loads(wire.encode(a))
    values = [None, True, -1, 10**30, 1e308, float("inf"), float("nan"), "", "\ud800\x1b", [], {}, {"list": []},
              {"dict": []}, {"tuple": [1, None]}, {"opaque": "x", "type": "y"}, {"function": ["os", "system"]},
              array(np.zeros((0, 3))), array(np.full((2, 3), np.nan)), array(np.ones((2, 3, 4), np.float16)),
              array(np.array(1j)), array(np.arange(5)), array(np.float64(3)),
              array(tp.Tensor(np.ones((1, 7), np.float32), requires_grad=True))]
    top, at = json.loads(message), []

    def walk(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            at.append((node, key))
            if isinstance(node[key], (dict, list)): walk(node[key])
    walk(top)
    node, key = rng.choice(at)
    node[key] = rng.choice(values)
    return json.dumps(top).encode()


class Answers:
    """Stands for a worker whose next answer is a damaged one; `Remote` believes nothing in it."""

    def __init__(self, message): self.message = message
    def ask_for(self, question): return wire.decode(self.message)


def damage_messages(n: int, seed: int = 0) -> Counter:
    """Damage `n` messages: outcomes of each exercise's own reference. Counts what came of them."""
    rng, found = random.Random(seed), Counter()
    exercises = [e for t in TOPICS for e in of_topic(t).values()]
    for k in range(n):
        exercise = exercises[k % len(exercises)]
        args = exercise.cases(np.random.default_rng(k))
        value = exercise.reference(*args)
        outcome = {"value": value, "error": None, "unsolved": False, "changed": [], "gradients": {"x": np.ones(3)},
                   "strained": ""}
        described = {"functions": {exercise.function: worker.description(exercise.reference)}, "problem": None}
        fault = damaged if rng.random() < 0.4 else altered
        message = fault(wire.encode(described if k % 5 == 0 else outcome), rng)
        start = time.monotonic()
        try:
            there = wire.decode(message)
            assert only_its_types(there), message
            if k % 5 == 0: wire._described(there)
            else: wire._outcome(there)
            found["read"] += 1
        except ValueError:
            found["ValueError"] += 1
        if k % 5:                                            # … and the check of this exercise goes on from there
            signature = wire.inspect.signature(exercise.reference)
            result = judge(exercise, wire.Remote(Answers(message), exercise.function, "x", [], signature), seed=k)
            found["judged wrong" if not result else "judged right"] += 1
        assert time.monotonic() - start < 5, message
    return found


def damage_notebooks(n: int, seed: int = 0) -> Counter:
    """Damage `n` notebook files: their cells are read, or a ValueError says why not."""
    rng, found = random.Random(seed), Counter()
    good = [notebook(cells).encode("utf-8") for cells in (HONEST["ada"], ["1 + 1"], [IMPORTS, *SOLVED[:1]])]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ada.ipynb")
        for k in range(n):
            path.write_bytes(damaged(good[k % len(good)], rng))
            assert student(path) == "ada" and lesson_of(path) in (None, *TOPICS.values())
            try:
                assert all(isinstance(source, str) for _, source in worker.code_cells(path))
                found["read"] += 1
            except ValueError as e:
                assert "ada.ipynb is no notebook" in str(e)
                found["ValueError"] += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write results/notebooks.json")
    parser.add_argument("--messages", type=int, default=6000)
    parser.add_argument("--notebooks", type=int, default=2000)
    parser.add_argument("--timeout", type=float, default=20, help="seconds for one hostile notebook")
    parser.add_argument("--only", help="a name: grade this notebook alone")
    args = parser.parse_args()
    if args.only: return print(json.dumps(grade_class({args.only: CELLS[args.only]}, args.timeout, False), indent=1))
    figures = {"a class": grade_class(CELLS, args.timeout)}
    print(json.dumps(figures, indent=1, ensure_ascii=False))
    figures |= {"damaged messages": {"tried": args.messages, **damage_messages(args.messages)},
                "damaged notebooks": {"tried": args.notebooks, **damage_notebooks(args.notebooks)}}
    print(json.dumps(figures, indent=1, ensure_ascii=False))
    if args.record: print(record("notebooks", figures))


if __name__ == "__main__":
    main()
