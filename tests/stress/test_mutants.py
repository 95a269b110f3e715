"""The committed table of planted faults: enough of them, almost all caught, and every survivor explained."""
import ast
import json

import pytest

from tests.stress import RESULTS
from tests.stress.equivalent import EQUIVALENT, EXPLAINED
from tests.stress.faults import faults, planted
from tests.stress.reached import ROOT, TESTS
from tinypeft.common.threads import parallel_map

pytest.importorskip("resource")                          # limits of time and memory, which Windows does not have
from tests.stress.mutants import AREAS, COLUMNS, drawn, first_failure, modules, sampled, summary  # noqa: E402

RECORD = json.loads((RESULTS / "mutants.json").read_text("utf-8"))
ROWS = [dict(zip(COLUMNS, row, strict=True)) for row in RECORD["mutants"]]


def test_at_least_95_percent_of_300_faults_are_caught():
    counted = [r for r in ROWS if r["state"] != "equivalent"]
    assert len(ROWS) >= 300 and len({(r["module"], r["function"], r["before"], r["after"]) for r in ROWS}) == len(ROWS)
    assert sum(r["state"] == "caught" for r in counted) >= 0.95 * len(counted)
    assert all(r["caught by"] for r in ROWS if r["state"] == "caught")
    assert RECORD["areas"] == summary(RECORD["mutants"])


def test_the_tests_of_every_folder_with_planted_faults_are_measured():
    assert all((ROOT / path).exists() for path in TESTS)
    assert {module.split("/")[1] for module in modules()} <= {path.split("/")[1] for path in TESTS}


def can_be_planted(place):
    """Is there such code today? (module, function, before, after)"""
    module, *fault = place
    if not (ROOT / module).exists(): return False
    return " | ".join(fault) in {f.key for f in faults(ast.parse((ROOT / module).read_text("utf-8")))}


def test_every_survivor_is_explained():
    """One in code that has changed since then needs no reason any more."""
    unnoticed = {(r["module"], r["function"], r["before"], r["after"]): r["state"] for r in ROWS if r["state"] != "caught"}
    reasons = EQUIVALENT | EXPLAINED
    assert [place for place in unnoticed if place not in reasons and can_be_planted(place)] == []
    assert all(len(reason) > 20 for reason in reasons.values()) and not EQUIVALENT.keys() & EXPLAINED.keys()


def test_every_reason_is_of_a_fault_that_can_be_planted():
    """One that was written for older code goes."""
    assert [place for place in EQUIVALENT | EXPLAINED if not can_be_planted(place)] == []


@pytest.mark.long
def test_every_area_has_its_faults():
    places = [(module, fault.key) for module, _, fault in sampled(330, 1)]
    assert len(set(places)) == len(places) >= 300 and {modules()[module] for module, _ in places} == set(AREAS)


def test_a_fault_is_drawn_by_what_it_changes():
    """The same each time; and another function in the module leaves those of this one in their order."""
    found, more = (list(faults(ast.parse(source))) for source in (SOURCE, "def g(a, b): return a - b\n" + SOURCE))
    order = [f.key for f in drawn("m", found, 1)]
    assert order == [f.key for f in drawn("m", found[::-1], 1)] != [f.key for f in drawn("m", found, 2)]
    assert {f.key for f in drawn("m", more, 1)[:8]} & set(order[:8])


SOURCE = """
def f(x, axis=-1, *, keepdims=True):
    \"\"\"Never 1 + 1.\"\"\"
    if x is None or 2 < len(x): raise ValueError(f"{1 + 1}")
    y: "int | None" = (x - x.T).sum(axis=1)
    y += x @ y
    return max(y, -y) / 3
"""


def test_a_fault_is_one_change_and_none_is_in_words():
    tree = ast.parse(SOURCE)
    whole = ast.unparse(tree)
    made = [(f.before, f.after) for f in faults(tree)]
    for change in (("x - x.T", "x + x.T"), ("(x - x.T).sum(axis=1)", "(x - x.T).mean(axis=1)"), ("2 < len(x)", "2 <= len(x)"),
                   ("x is None or 2 < len(x)", "x is None and 2 < len(x)"), ("raise ValueError", "pass"),
                   ("y += x @ y", "pass"), ("y += x @ y", "y -= x @ y"), ("y += x @ y", "y += y @ x"), ("x - x.T", "x - x")):
        assert any(change[0] in b and change[1] in a for b, a in made), change
    for fault in faults(tree):
        changed = ast.unparse(planted(tree, fault))
        assert changed != whole and "Never 1 + 1." in changed and "'int | None'" in changed
        assert "{1 + 1}" in changed or fault.before == "raise ValueError"
        assert sum(a != b for a, b in zip(changed.splitlines(), whole.splitlines(), strict=False)) <= 2
    assert ast.unparse(tree) == whole, "the tree itself stays as it was"


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_planted_fault_is_noticed_by_the_test_of_its_module():
    """In a forked process. Without a fault the test passes; nothing is changed in this one."""
    source = (ROOT / "tinypeft/common/threads.py").read_text("utf-8")
    test = ["tests/common/test_threads.py::test_results_come_in_order[1]"]
    assert first_failure("tinypeft/common/threads.py", ast.parse(source), test, 5) is None
    wrong = ast.parse(source.replace("[fn(item) for item in items]", "[item for item in items]"))
    assert first_failure("tinypeft/common/threads.py", wrong, test, 5) == test[0]
    assert first_failure("tinypeft/common/threads.py", ast.parse("raise ImportError"), test, 5)
    assert parallel_map(abs, [-1, -2], 1) == [1, 2]
