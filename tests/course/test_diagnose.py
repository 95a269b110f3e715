"""What a check says: where results differ, which cause it names, and which it does not; how hints open."""
import html.parser
import inspect
import re
import signal

import numpy as np
import pytest

import tinypeft as tp
from tinypeft.course import grade, percent
from tinypeft.course.calls import Local
from tinypeft.course.check import check_file
from tinypeft.course.diagnose import difference, in_arrays, likely_cause, place_of
from tinypeft.course.exercise import Exercise
from tinypeft.course.exercises import TOPICS, find, of_topic
from tinypeft.course.judge import judge
from tinypeft.engine import functional as F

ALL = [e for topic in TOPICS for e in of_topic(topic).values()]
ids = lambda e: e.name


def cause(got, expected, tolerance=1e-7):
    """The cause that is named for two arrays, if an exercise knows no mistakes."""
    plain = Exercise(name="x.y", title="", stars=1, reference=lambda: expected, cases=lambda rng: (), hints=("", "", ""),
                     tolerance=tolerance)
    found = difference(got, expected, tolerance)
    return found and likely_cause(plain, got, expected, found, ())


@pytest.mark.parametrize("got, expected, says", [
    (np.ones(2), tp.Tensor(np.ones(2)), "your result is an array (2,), expected a tinypeft.Tensor"),
    (tp.Tensor(np.ones(2)), np.ones(2), "your result is a Tensor, expected a NumPy array or a number")])
def test_a_tensor_is_no_array(got, expected, says):
    assert difference(got, expected, 1e-7)[:2] == ("type", says)


def test_the_right_axis_is_not_called_the_wrong_one(rng):
    right, got = (F.softmax(tp.Tensor(rng.standard_normal((4, 5))), axis=0).data for _ in range(2))
    assert "normalised" not in (cause(got, right) or "")
    assert cause(F.softmax(tp.Tensor(rng.standard_normal((4, 5))), axis=1).data, right) == (
        "it is normalised along axis 1, which is the wrong one")


# -- where it differs ------------------------------------------------------------------------------
def test_the_largest_difference_is_shown():
    e = np.arange(42.0).reshape(2, 3, 7)
    g = e.copy()
    g[1, 0, 3], g[0, 0, 0] = 24.5, 1e-3
    assert place_of(g, e, 1e-5) == "2 of 42 numbers differ, the most at [1, 0, 3]: got 24.5, expected 24"
    g[0, 0, 0] = 0
    assert place_of(g, e, 1e-5) == "1 of 42 numbers differs, the most at [1, 0, 3]: got 24.5, expected 24"


def test_two_numbers_are_shown_with_the_digits_that_tell_them_apart():
    told = place_of(np.array([0, 1 / 3 + 1e-9]), np.array([0, 1 / 3]), 1e-12)
    assert told.endswith("got 0.333333334, expected 0.333333333")


def test_whole_numbers_and_masks_are_shown_as_they_are():
    assert place_of(np.array([12345, 2]), np.array([1, 2]), 0).endswith("at [0]: got 12345, expected 1")
    assert place_of(np.array([True, True]), np.array([True, False]), 0).endswith("at [1]: got True, expected False")


def test_nan_is_place_of_most():
    place = place_of(np.array([9.0, np.nan]), np.array([1.0, 2.0]), 1e-5)
    assert place == "2 of 2 numbers differ, the most at [1]: got nan, expected 2"


@pytest.mark.parametrize("e", ALL, ids=ids)
def test_a_check_says_where(e):
    """Of a result with one number wrong, the place is told, whatever the exercise."""
    def slightly(value):
        """The first array or number in it, wrong in its last entry."""
        if isinstance(value, (tuple, list)):
            i = next(i for i, part in enumerate(value) if part is not None)
            return type(value)([*value[:i], slightly(value[i]), *value[i + 1:]])
        if isinstance(value, dict): return {**value, (last := [*value][-1]): slightly(value[last])}
        if isinstance(value, tp.Tensor):
            off = np.zeros(value.shape, value.dtype)
            off[(-1,) * value.ndim] = 0.5
            return value + off
        if isinstance(value, str): return value + "?"
        value = np.array(value)
        at = (-1,) * value.ndim
        value[at] = not value[at] if value.dtype == bool else value[at] + 2
        return value if value.ndim else value[()]
    told = tp.check(e.name, lambda *args: slightly(Local(e.reference)(args).value))
    if e.name == "k_quants.misled":                      # inputs that mislead still do when one number is another
        assert told
        return
    place = re.search(r"\d+ of \d+ numbers? differs?, the most at \[[\d, ]+\]: got (\S+), expected (\S+)\.$", told.message)
    words = re.search(r" is '(.+)\?', expected '\1'|is True, expected False|is False, expected True", told.message)
    goal = "the goal is missed" in told.message          # of a design: many results are right, so no number is wrong
    assert not told and (goal or place and place[1] != place[2] or words
                         or "another number than" in told.message and told.got != told.expected)


# -- generic causes --------------------------------------------------------------------------------
@pytest.mark.parametrize("got, expected, says", [
    (3.0 * np.arange(1.0, 9), np.arange(1.0, 9), "3 times"),
    (1.002 * np.arange(1.0, 9), np.arange(1.0, 9), ""),                            # no factor of one
    (np.arange(8.0) + 5, np.arange(8.0), "differs by 5 everywhere"),
    (np.arange(8.0) + 5 + np.linspace(-0.01, 0.01, 8), np.arange(8.0), "differs by 5 everywhere"),
    (np.arange(8.0) + np.linspace(-1e-5, 1e-5, 8), np.arange(8.0), ""),            # no constant: it is as large as its spread
    (1e6 + np.arange(8.0) + np.linspace(0.5, 1, 8), 1e6 + np.arange(8.0), ""),
    (-np.arange(1.0, 9), np.arange(1.0, 9), "the sign is wrong"),
    (np.zeros(8), np.arange(8.0), "0 everywhere"),
    (np.arange(8) + (np.arange(8) == 3), np.arange(8), ""), (np.array(5), np.array(4), ""),     # a place, or a number
    (np.array(0.0), np.array(4.0), ""), (2 * np.array([1.0, 2, -1]), np.array([1.0, 2, -1]), "2 times"),
    (2 * np.array([1.0, -1, 1, -1]), np.array([1.0, -1, 1, -1]), ""),              # from three different numbers on
    (np.arange(6.0).reshape(2, 3) + [[1], [2]], np.arange(6.0).reshape(2, 3), "the same along axis 1"),
    (np.arange(3.0), np.arange(3), "use .astype(int)"), (np.arange(3.0) + 0.25, np.arange(3), "not whole"),
    (np.arange(3.0) > 1, np.arange(3.0), "True and False"), (np.arange(2), np.arange(2) > 0, "use .astype(bool)"),
    (np.arange(6), np.arange(6).reshape(2, 3), "look at .reshape"), (1 + np.arange(6), np.arange(6).reshape(2, 3), ""),
    (np.arange(3.0, dtype="f4"), np.arange(3.0), "cuts the graph"),
    (np.array([[1.0, -np.inf], [3, 5]]), np.array([[1.0, -np.inf], [2, 3]]), ""),
    (np.arange(8.0)[::-1] ** 2, np.arange(8.0) ** 2, "the order along axis 0 is the opposite one"),
    (np.roll(np.arange(8.0) ** 2, 1), np.arange(8.0) ** 2, "shifted by one place along axis 0"),
    (np.arange(1.0, 9) ** 2, np.arange(8.0) ** 2, "shifted by one place along axis 0"),
    (np.arange(3), np.arange(1, 4), "differs by -1 everywhere"),                   # shifted as well; one cause at a time
    (np.roll(np.arange(8.0) ** 2, 2), np.arange(8.0) ** 2, ""), (np.array([1.0, 2]), np.array([2.0, 1]), ""),
    (np.tile([1.0, 2, 4], (4, 1))[:, ::-1], np.tile([1.0, 2, 4], (4, 1)), "along axis 1 is the opposite"),
    (np.array([1.0, np.nan]), np.array([1.0, 2.0]), "division by zero")])
def test_causes(got, expected, says):
    assert says in cause(got, expected) and bool(says) == bool(cause(got, expected))


def first_cause(reference, fn, *cases):
    """The cause that is named for the first case of an exercise that knows no mistakes; the others are looked at, too."""
    plain = Exercise(name="x.y", title="", stars=1, reference=reference, cases=lambda rng: (), hints=("", "", ""))
    got, expected = fn(*cases[0]), reference(*cases[0])
    others = [(args, Local(fn)(args)) for args in cases[1:]]
    return likely_cause(plain, got, expected, difference(got, expected, 1e-5), cases[0], others=others)


def test_ties_are_told_of_codes_alone():
    whole = lambda x: np.rint(x).astype(int)
    up, down = (lambda x: np.floor(x + 0.5).astype(int)), (lambda x: np.floor(x).astype(int))
    x, halves = np.linspace(0, 3, 16), np.array([0.5, 1.5, 2.5, 3.5])
    assert first_cause(whole, up, (halves,), (x,)) == "2 are off by one: look at how you round, and at ties"
    assert first_cause(whole, lambda x: up(x) + 2 * (x == 3), (halves,), (x,)) == ""  # by two, in the other case
    assert first_cause(whole, down, (halves[:2],), (x,)) == ""                         # two numbers are too few
    assert first_cause(lambda i: i[::-1], lambda i: i[::-1] ^ 1, (np.arange(4),), (np.arange(8),)) == ""      # places
    assert first_cause(lambda x: x > 2, lambda x: x > 1, (x,)) == ""                   # a mask


def test_no_other_case_may_speak_against_a_cause():
    right = lambda x, up: x + up * np.arange(4.0)
    x = np.array([3.0, -1, 2, 5])
    assert first_cause(right, lambda x, up: 2 * right(x, up), (x, 0.0), (x, 1.0)).startswith("your result is 2 times")
    assert first_cause(right, lambda x, up: right(x, up) + x, (x, 0.0), (x, 1.0)) == "a term is counted twice: argument 1"
    assert first_cause(right, lambda x, up: -x + up, (x, 0.0), (x, 1.0)) == ""
    assert first_cause(right, lambda x, up: up * x, (x, 0.0), (x, 1.0)) == ""          # 0 in the first case only
    assert first_cause(right, lambda x, up: 0 * x, (x, 0.0), (x, 1.0)) == "your result is 0 everywhere"
    square, other, turned = np.arange(4.0).reshape(2, 2), np.arange(6.0).reshape(2, 3), lambda x: x.T.reshape(x.shape)
    assert first_cause(lambda x: x, turned, (square,)) == "it is transposed"
    assert first_cause(lambda x: x, turned, (square,), (other,)) == ""


def test_a_factor_of_single_numbers_needs_three_cases():
    right, cases = (lambda n: np.array(5.0 * n)), [(2.0,), (3.0,), (7.0,)]
    assert first_cause(right, lambda n: 3 * right(n), *cases).startswith("your result is 3 times")
    assert first_cause(right, lambda n: 3 * right(n), *cases[:2]) == ""
    assert first_cause(right, lambda n: n * right(n), *cases) == ""
    assert first_cause(lambda n: right(n - 7), lambda n: 3 * right(n - 7) + (n == 7), *cases, (9.0,)) == ""    # one for 0


def test_exchanged_results_are_told():
    right = lambda x: (x.min(), x.max(), 2 * x)
    other = lambda *order: lambda x: tuple(right(x)[i] for i in order)
    cases = [(np.array([0.0, 2, 3]),), (np.array([1.0, 2]),)]
    assert first_cause(right, other(1, 0, 2), *cases) == "results 1 and 2 are exchanged"
    assert first_cause(right, other(0, 2, 1), *cases) == "results 2 and 3 are exchanged"
    assert first_cause(right, other(1, 2, 0), *cases) == "the results are right, but they stand in another order"
    assert "exchanged" not in first_cause(right, lambda x: (x.max(), 0.0, 2 * x), *cases)    # in the first case only
    assert "exchanged" not in first_cause(right, lambda x: (x.max(), x.min(), x), *cases)


def test_a_term_is_not_called_a_bias_because_the_data_repeats():
    x = np.arange(12.0).reshape(4, 3)
    right, wrong = (lambda x: x ** 2), (lambda x: x ** 2 + np.exp(x / 4))
    assert first_cause(right, wrong, (np.stack([x, x]),)) == first_cause(right, wrong, (np.stack([x, x + 1]),)) == ""
    assert "the same along axis 0" in first_cause(right, lambda x: x ** 2 + [1, 2, 3], (x,))
    assert "the same along axis 1" in first_cause(right, lambda x: x ** 2 + x[..., :1, :], (np.stack([x, x]),))


def test_one_number_is_a_mean_only_where_no_axis_is_left():
    x = np.arange(8.0)
    assert "over all axes" in first_cause(lambda x: x, np.mean, (x,))
    assert "over all axes" in first_cause(lambda x: x, lambda x: x.sum(keepdims=True), (x.reshape(2, 4),))
    assert first_cause(lambda x: x, lambda x: x[:1], (x,)) == ""
    assert first_cause(lambda x: np.flatnonzero(x), lambda x: np.count_nonzero(x), (x,)) == ""


def test_an_axis_of_length_1_is_no_other_shape():
    x = np.arange(12.0).reshape(3, 4)
    flat, kept = (lambda x: x.sum(1)), (lambda x: x.sum(1, keepdims=True))
    assert first_cause(flat, kept, (x,)) == "it has an additional axis of length 1; look at keepdims"
    assert first_cause(kept, flat, (x,)) == "an axis of length 1 is missing; look at keepdims"


def test_what_overflowed_is_told_with_its_line():
    def prefix_share(q, k, P_K):
        p = np.exp(P_K @ q / len(q) ** 0.5).sum()
        return p / (p + np.exp(k @ q / len(q) ** 0.5).sum())
    out = Local(prefix_share)((np.full(4, 5000.0), np.ones((2, 4)), np.ones((2, 4))))
    assert out.strained.startswith("overflow, in line ") and out.strained.endswith("p = np.exp(P_K @ q / len(q) ** 0.5).sum()")

    def qat_distillation(teacher, student):
        p, q = (np.exp(a) / np.exp(a).sum(1, keepdims=True) for a in (teacher, student))
        return (p * np.log(p / q)).sum() / len(p), (q - p) / len(p)
    told = tp.check("qat.distillation", qat_distillation)
    assert "large logits" in told.message and "(overflow, in line " in told.cause and "subtract the largest" in told.cause


def test_a_mistake_is_not_recognised_by_its_nan():
    """Both overflow, and both are NaN; but these are not the odds."""
    def prefix_share(q, k, P_K):
        p, s = (np.exp(a @ q / len(q) ** 0.5).sum() for a in (P_K, k))
        return p / (p + s)
    told = tp.check("prefix.share", prefix_share)
    assert "1 number that is NaN" in told.message and "odds" not in told.cause and "overflows" in told.cause


def test_nan_equals_no_mistakes_nan():
    got, expected = np.array([np.nan, 1.0]), np.array([2.0, 1.0])
    e = Exercise(name="x.y", title="", stars=1, reference=lambda: expected, cases=lambda rng: (), hints=("", "", ""),
                 mistakes=(("a mistake that overflows, too", lambda: got),))
    assert "overflows" not in likely_cause(e, got, expected, difference(got, expected, 1e-5), ())


def test_a_cause_fits_all_cases():
    """The opposite change has the same norm and the same singular values: other cases tell the two mistakes apart."""
    def lora_alike(A1, B1, alpha1, A2, B2, alpha2):
        first, second = (np.linalg.norm(alpha / len(A) * B @ A) for A, B, alpha in ((A1, B1, alpha1), (A2, B2, alpha2)))
        return bool(abs(first - second) <= 1e-3 * first)
    assert "of the same size" in tp.check("lora.alike", lora_alike).cause
    assert "case “the opposite change" in tp.check("lora.alike", lora_alike).message


# -- what is accepted ------------------------------------------------------------------------------
def test_lists_stand_for_arrays_where_the_shapes_agree():
    same = lambda got, expected, free=False: difference(got, expected, 1e-6, free=free) is None
    assert same([[1.0, 2.0]], np.array([[1.0, 2.0]])) and same([1, 2], np.array([1.0, 2.0])) and same([], np.zeros(0, int))
    assert same(np.array([1.0, 2.0]), (1.0, 2.0)) and same([True, False], np.array([True, False]))
    assert not same([1.0, 2.0], np.array([[1.0, 2.0]])) and not same([[1.0], [1.0, 2.0]], np.array([[1.0, 2.0]]))
    assert not same([1.0, 2.0], np.array([1, 2])) and not same(["a"], np.array([1.0]))
    assert not same(np.float32([1]), np.ones(1)) and same(np.float32([1]), np.ones(1), free=True)


def test_the_cells_below_a_check_get_arrays_from_a_function_that_returns_lists():
    right = find("outliers.smooth").reference
    told = tp.check("outliers.smooth", lambda *a: [right(*a)[0].tolist(), right(*a)[1], tuple(map(list, right(*a)[2]))])
    gamma, beta, weights = told.function(np.ones(2), np.ones(2), [np.eye(2), 2 * np.eye(2)], np.ones(2), 0.5)
    assert told and all(isinstance(x, np.ndarray) for x in (gamma, beta, *weights))
    split = find("outliers.llm_int8").reference
    told = tp.check("outliers.llm_int8", lambda *a: [x.tolist() for x in split(*a)])
    assert told.function(np.ones((2, 3)), np.ones((4, 3)), 6.0)[1].dtype == int           # no outliers, and still an index
    whole = [np.ones(2), (1.0, np.ones(3))]
    assert in_arrays(whole, [np.ones(2), (1.0, np.ones(3))]) is whole


def test_one_array_in_place_of_two_results_is_called_an_array():
    assert difference(np.ones((7, 2)), (1.0, 2.0), 0)[1] == "your result is an array (7, 2), expected 2 results"
    assert difference(np.array([1.0, 2.0]), (1.0, 2.0), 0) is None


def test_arguments_of_any_kind_may_not_change():
    def dylora_draw(shares):
        shares = dict(shares)
        return [shares.pop(row) - shares.get(row + 1, 0) for row in sorted(shares)]
    assert tp.check("dylora.draw", dylora_draw)

    def pops(shares):
        p = dylora_draw(shares)
        shares.pop(1)
        return p
    told = tp.check("dylora.draw", pops)
    assert told.stage == "inputs" and "argument shares" in told.message and ".pop()" in told.cause


# -- what a function uses --------------------------------------------------------------------------
def test_the_packages_answer_is_refused_where_one_is_to_write_it():
    def helper(q, k, v): return q
    def attention(q, k, v): return q
    assert "attention" in Local(lambda q, k, v: [F.attention(q, k, v) for _ in "x"]).uses
    assert "attention" not in Local(lambda q, k, v: attention(q, k, v)).uses
    assert Local(len).uses == [] and Local(3).uses == []
    told = tp.check("transformer.attention", lambda q, k, v: F.attention(tp.Tensor(q), tp.Tensor(k), tp.Tensor(v)).data)
    assert not told and "uses attention of the package" in told.message


def test_the_grader_refuses_it_too(tmp_path):
    pytest.importorskip("IPython")
    path = tmp_path / "02_transformer.py"
    path.write_text("""
import numpy as np
import tinypeft as tp
from tinypeft import functional as F

def transformer_attention(q, k, v):
    return F.attention(*(tp.Tensor(a) for a in (q, k, v))).data

def transformer_loss(logits, tokens):
    p = np.exp(logits[:, :-1])
    return -np.log(np.take_along_axis(p, tokens[:, 1:, None], -1)[..., 0] / p.sum(-1)).mean()
""", encoding="utf-8")
    (graded,) = grade.grade([path], lesson="02", seconds=60)
    assert graded.exercises["transformer.attention"]["points"] == 0
    assert "uses attention of the package" in graded.exercises["transformer.attention"]["message"]
    assert "np.exp overflows" in graded.exercises["transformer.loss"]["message"]


# -- words -----------------------------------------------------------------------------------------
def test_a_wrong_dtype_and_a_mistake_are_both_named():
    """The first line says that float64 came out, so a cause that speaks of the mask alone would confuse."""
    def in_64_bits(q, k, v, past):
        hidden = np.arange(len(k)) > np.arange(len(q))[:, None] + (len(k) - len(q) if past else 0)
        weights = np.exp(np.where(hidden, -np.inf, q @ k.T / np.sqrt(np.float64(q.shape[1]))))
        return weights / weights.sum(-1, keepdims=True) @ v
    told = tp.check("transformer.attention", lambda q, k, v: in_64_bits(q, k, v, past=False))
    assert told.stage == "dtype" and told.cause.startswith("a float64 came in") and "the mask forgets the past" in told.cause
    told = tp.check("transformer.attention", lambda q, k, v: in_64_bits(q, k, v, past=True))
    assert told.stage == "dtype" and told.cause.startswith("a float64 came in") and "besides" not in told.cause


def test_an_argument_too_few_is_counted():
    told = tp.check("full.states", lambda N, n, weight_bytes: N)
    assert told.stage == "signature" and told.message.endswith("weight_bytes, frozen_bytes): it is called with 4 arguments")


ALIKE = {"transformer.count", "full.activations", "full.recompute", "adalora.importance", "choosing.memory", "choosing.pareto",
         "k_quants.read"}        # exercises whose first two arguments may be exchanged


@pytest.mark.filterwarnings("ignore:GPTQ")
@pytest.mark.usefixtures("shorter_tape")
@pytest.mark.parametrize("e", [e for e in ALL if len(inspect.signature(e.reference).parameters) > 1], ids=ids)
def test_exchanged_names_in_the_head_are_told(e):
    """The right body under a head whose first two names are exchanged. It stays right where the two do the same."""
    first, second, *rest = names = list(inspect.signature(e.reference).parameters)
    scope = {"reference": e.reference}
    exec(f"def student({', '.join([second, first, *rest])}): return reference({', '.join(names)})", scope)
    result = judge(e, Local(scope["student"]))
    says = f"the arguments come in the order {', '.join(names)}, and the head of your function says {second}, {first}"
    assert bool(result) == (e.name in ALIKE) and (result or result.cause.startswith(says)), result


def test_an_unsolved_exercise_is_named_once():
    def map_trained(d, L, r, P, m): raise NotImplementedError("map.trained")
    assert repr(tp.check("map.trained", map_trained)).startswith("○ map.trained: not solved yet\n")


def test_bytes_print_alike_whether_whole_or_not():
    told = tp.check("choosing.memory", lambda n, bits, t: int(n * bits / 8 + (16 if n < 9000 else 15) * t))
    assert re.fullmatch(r"\d+", told.got) and re.fullmatch(r"\d+\.\d", told.expected)


def test_in_a_terminal_no_cells_follow(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def prefix_copies(lam, n): return lam\n")
    (told,) = check_file("prefix.copies", path)
    assert not told and "cells below" not in repr(told) and "cells below" not in told._repr_html_()
    assert "cells below" in repr(tp.check("prefix.copies", lambda lam, n: lam))


def test_the_line_is_told_whatever_the_folder_is_called(tmp_path):
    folder = tmp_path / "tinypeft"
    folder.mkdir()
    (folder / "mine.py").write_text("def prefix_copies(lam, n):\n    return lam + nothing\n")
    (told,) = check_file("prefix.copies", folder / "mine.py")
    assert "in line 2 of prefix_copies" in told.message


# -- hints -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("e", ALL, ids=ids)
def test_hints_have_three_steps(e):
    question, shapes, nearly = e.hints
    assert "?" in question and not re.search(r"np\.\w+\(| = .*;", question), "the first step asks, and gives nothing away"
    assert re.search(r"\([^)]*[A-Za-z…0-9][^)]*,|number|integers|dict|shape|byte", shapes), "the second step is about shapes"
    assert all(hint.strip() == hint and hint[-1] in ".?)" for hint in e.hints) and len({*e.hints}) == 3
    assert e.stars in (1, 2, 3)


def test_hints_open_one_after_another():
    """Each is folded inside the one before, in plain HTML, closed."""
    class Depth(html.parser.HTMLParser):
        depth, seen, deepest = 0, [], 0

        def handle_starttag(self, tag, attributes):
            if tag != "details": return
            assert "open" not in dict(attributes)
            self.depth += 1

        def handle_endtag(self, tag): self.depth -= tag == "details"
        def handle_data(self, data): self.seen.append((self.depth, data))
    told = tp.check("prefix.copies", lambda lam, n: lam)
    page = Depth()
    page.feed(told._repr_html_())
    hints = find("prefix.copies").hints
    assert [depth for depth, data in page.seen if data in hints] == [1, 2, 3] and page.depth == 0
    assert f"Hint 1 of 3: {hints[0]} (the next one: result.hint(2))" in repr(told) and hints[1] not in repr(told)
    assert told.hint(3) == f"Hint 3 of 3: {hints[2]}"
    with pytest.raises(ValueError, match="got step 4, expected 1 to 3"): told.hint(4)
    assert "Hint" not in repr(tp.check("prefix.copies", lambda lam, n: n * lam / (1 + (n - 1) * lam)))


def test_words_take_the_ink_of_the_page_that_shows_them():
    """A grey of their own would be faint on a light page or on a dark one. Only the sign and the name are coloured."""
    told = tp.check("prefix.copies", lambda lam, n: lam)
    assert told.got and re.findall(r"<([^<>]*)(?<![-\w])color:", told._repr_html_()) == ["b style='"]


def test_an_unsolved_stub_gets_no_hint_that_was_not_asked_for(tmp_path, capsys):
    from tinypeft.commands.cli import main

    def prefix_copies(lam, n): raise NotImplementedError("prefix.copies")
    told, (question, *_) = tp.check("prefix.copies", prefix_copies), find("prefix.copies").hints
    assert told.stage == "unsolved" and question not in repr(told) and "A hint, if you want one: result.hint(1)" in repr(told)
    assert question in told.told(1) and question in told.hint(1)
    path = tmp_path / "mine.py"
    path.write_text("def prefix_copies(lam, n): raise NotImplementedError('prefix.copies')\n")
    for asked in ([], ["--hint", "1"]):
        main(["check", "prefix.copies", str(path), *asked])
        said = capsys.readouterr().out
        assert (question in said) == bool(asked) and ("A hint, if you want one: --hint 1" in said) == (not asked)


def test_stars_stand_beside_the_points():
    for path in percent.sources():
        text = "\n".join(cell.source for cell in percent.read(path) if cell.kind == "markdown")
        for e in ALL:
            if TOPICS[e.name.partition(".")[0]] == path.stem:
                assert re.search(rf"· (Bonus: )?{re.escape(e.title)} \({'★' * e.stars}, ", text), e.name


def test_judge_leaves_the_function_to_check():
    assert judge(find("prefix.copies"), Local(lambda lam, n: lam)).function is None


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="this system has no alarms")
def test_the_time_limit_gives_the_alarm_back():
    alarm, mine = signal.SIGALRM, lambda *_: None
    before = signal.signal(alarm, mine)
    try: assert Local(len)(("abc",)).value == 3 and signal.getsignal(alarm) is mine
    finally: signal.signal(alarm, before)


def test_a_terminal_shows_each_hint(tmp_path, capsys):
    from tinypeft.commands.cli import main
    path = tmp_path / "mine.py"
    path.write_text("def prefix_copies(lam, n): return lam\n")
    said = []
    for step in (1, 2, 3):
        assert main(["check", "prefix.copies", str(path), "--hint", str(step)]) == 1
        said.append(capsys.readouterr().out)
    assert all(f"Hint {i} of 3" in text for i, text in enumerate(said, 1))
    assert "the next one: --hint 2" in said[0] and "--hint" not in said[2]


def test_a_function_written_in_c_is_called_though_it_does_not_say_what_it_takes():
    """As `np.packbits` of older NumPy: no signature is found for it."""
    with pytest.raises(ValueError, match="no signature"): inspect.signature(max)
    told = tp.check("quantization.pack", max)
    assert not told and told.stage != "signature", told.message
    told = tp.check("quantization.pack", 3)
    assert told.stage == "signature" and "an object that cannot be called" in told.message
