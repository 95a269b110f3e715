"""solution.py: the right answer without its slips, as a lesson prints it."""
import ast
import inspect
from textwrap import dedent

import numpy as np
import pytest

from tinypeft.course.diagnose import difference
from tinypeft.course.exercises import TOPICS, of_topic
from tinypeft.course.slips import slip, which
from tinypeft.course.solution import right_answer, without_slips


def answer(a, b):
    """Answer something."""
    half = slip("the half")
    old = a                                              # one slip takes it
    s = a / b                                            # (n,)
    if slip("no division"): s = a
    if s > 0 and not slip("one more where it is positive"):
        s = s + 1
    elif slip("one less"):
        s = s - 1
    elif b > 5 or slip("always"): s = -s
    else:
        s = 2 * s
    if half or slip("two halves"): s = old / 2
    if slip("é: its letters have more bytes"):
        s = [s]
    else:
        # what follows is right
        s = [s,
             a]
    if not slip("the third is missing, which the task "
                "asks for"):
        for n in range(2):
            if slip("only one"): break
            s.append(n)
    match which("the order", 2):
        case 1: s = s[::-1]
        case 2: s = sorted(s)
    return [x * 2 if slip("é doubled") else x for x in s]  # é


RIGHT = '''
    s = a / b                                            # (n,)
    if s > 0:
        s = s + 1
    elif b > 5: s = -s
    else:
        s = 2 * s
    # what follows is right
    s = [s,
         a]
    for n in range(2):
        s.append(n)
    return [x for x in s]  # é
'''


def test_what_is_left_is_the_right_answer():
    assert right_answer(answer) == RIGHT.strip("\n")


def test_a_branch_keeps_what_can_be_reached():
    source = "def f(a):\n    if slip('u'): e = 1\n    elif a: e = 2\n    else: e = 3\n    return e"
    assert without_slips(source) == "def f(a):\n    if a: e = 2\n    else: e = 3\n    return e"
    source = "def f(a):\n    if not (slip('u') or slip('v')): return a\n    return a if not slip('w') and a else 0"
    assert without_slips(source) == "def f(a):\n    return a\n    return a if a else 0"


def test_what_holds_no_slip_stays():
    source = "def f(a):\n    if not a.shape != (): return ()\n    match a, 1:\n        case 0, _: a = 1\n    return a"
    assert without_slips(source) == source


def test_a_slip_that_cannot_be_left_out_is_refused():
    with pytest.raises(ValueError, match=r"stands where a lesson cannot leave it out: return \[v for v in x if not slip"):
        without_slips("def f(x):\n    return [v for v in x if not slip('all')]")


@pytest.mark.parametrize("topic", TOPICS)
def test_the_answer_without_its_slips_answers_the_same(topic):
    """Of every exercise whose mistakes are slips, on four cases."""
    for name, e in of_topic(topic).items():
        if "slip(" not in (source := dedent(inspect.getsource(inspect.unwrap(e.reference)))): continue
        text = without_slips(source)
        assert "slip" not in text and len(ast.parse(text).body) == 1
        exec(text, scope := {**inspect.unwrap(e.reference).__globals__})
        for seed in range(4):
            alone, whole = (fn(*e.cases(np.random.default_rng(seed))) for fn in (scope[e.reference.__name__], e.reference))
            assert difference(alone, whole, 0) is None, name
