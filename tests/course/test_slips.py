"""slips.py: wrong variants that stand in the right answer, and arguments that are drawn by their signature."""
import numpy as np
import pytest

import tinypeft as tp
from tinypeft.course import handout
from tinypeft.course.exercises import TOPICS, of_topic
from tinypeft.course.slips import inputs, slip, slips, which


def signed(values):
    return [-v if slip("the sign", 2) else v for v in values]


def answer(a, b):
    s = a / b
    if slip("no division"): s = a
    if slip("the sign"): s = -s
    if s > 0 and not slip("one more where it is positive"):
        s = s + 1
    twice = lambda x: 2 * x * x if slip("a square") else 2 * x
    return twice(s), signed([s])


def test_each_slip_is_a_variant_in_the_order_in_which_it_stands():
    """In a condition, in an inner function, in a helper; two that share a sentence have numbers."""
    made = slips(answer, signed)
    assert answer(4, 2) == (6, [3])
    assert [(sentence, wrong(4, 2)) for sentence, wrong in made] == [
        ("no division", (10, [5])), ("the sign", (-4, [-2])), ("one more where it is positive", (4, [2])),
        ("a square", (18, [3])), ("the sign", (6, [-3]))]
    assert len(slips(answer)) == 4 and answer(4, 2) == (6, [3])


def test_a_sentence_of_several_slips_in_one_place_is_written_once():
    def size(x):
        s = abs(x)
        match which("a size has no sign and no square", 2):
            case 1: s = x
            case 2: s = x * x
        return s
    made = slips(size)
    assert [(sentence, wrong(-3)) for sentence, wrong in made] == [("a size has no sign and no square", n) for n in (-3, 9)]
    assert size(-3) == 3


def test_a_slip_ends_with_its_call():
    """Also where it raises an error."""
    def divided(a):
        return 1 / (0 if slip("zero") else a)
    (_, wrong), = slips(divided)
    with pytest.raises(ZeroDivisionError): wrong(2)
    assert divided(2) == 0.5


def test_a_sentence_that_is_not_written_out_is_refused():
    """It would be no slip, and nobody would know."""
    said = "the sign"
    def unknown(a):
        return -a if slip(said) else a
    with pytest.raises(ValueError, match="unknown: slip takes a sentence that is written out, in line "): slips(unknown)


def test_slips_of_many_constants_are_found():
    """Beyond 256 constants an instruction needs a second one, EXTENDED_ARG, before it."""
    lines = "".join(f"    x = x + {i}.5\n    if slip('number {i}'): x = x - {i}.5\n" for i in range(300))
    exec(f"def long(x):\n{lines}    return x\n", scope := {"slip": slip})
    made = slips(scope["long"])
    assert [sentence for sentence, _ in made] == [f"number {i}" for i in range(300)]
    assert made[299][1](0.0) == scope["long"](0.0) - 299.5


# -- arguments -------------------------------------------------------------------------------------
def test_arguments_are_drawn_by_their_signature():
    draw = inputs("x:N,i W:o,i alpha=5..20 b=1|4", N=2, i=(3, 5), o=(6, 8))
    drawn = [draw(np.random.default_rng(seed)) for seed in range(40)]
    assert {x.shape for x, *_ in drawn} == {(2, 3), (2, 4)} and {W.shape[0] for _, W, *_ in drawn} == {6, 7}
    assert all(x.shape[1] == W.shape[1] and x.dtype == np.float64 for x, W, *_ in drawn)
    assert {b for *_, b in drawn} == {1, 2, 3} and all(type(b) is int for *_, b in drawn)
    assert all(5 <= alpha < 20 and type(alpha) is float for *_, alpha, _ in drawn)
    x, W, *_ = inputs("x:N,i W:o,i", np.float32, tensors=True, N=2, i=3, o=4)(np.random.default_rng(0))
    assert type(x) is type(W) is tp.Tensor and x.dtype == np.float32 and x.shape == (2, 3) and W.shape == (4, 3)


# -- in a hand-out ---------------------------------------------------------------------------------
@pytest.mark.parametrize("topic", TOPICS)
def test_a_packed_topic_has_the_same_mistakes_and_no_readable_answer(topic, tmp_path):
    """Packed, a module has no source, and its slips are found all the same. None of its attributes holds a function's text."""
    module = __import__(f"tinypeft.course.exercises.{topic}", fromlist=["EXERCISES"])
    path = tmp_path / f"{topic}.py"
    path.write_text(handout.packed(handout.ROOT / "tinypeft" / "course" / "exercises" / f"{topic}.py"), encoding="utf-8")
    scope = {"__name__": module.__name__, "__package__": module.__package__, "__file__": str(path)}
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), scope)
    for packed, plain in zip(scope["EXERCISES"], of_topic(topic).values(), strict=True):
        assert [sentence for sentence, _ in packed.mistakes] == [sentence for sentence, _ in plain.mistakes]
    texts = [value for value in scope.values() if isinstance(value, str)]
    assert not [text for text in texts if "def " in text and "return" in text]
