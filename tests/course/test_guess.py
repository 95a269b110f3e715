"""tp.guess: a guess beside what is measured, and `...` in its place in an assignment."""
import numpy as np
import pytest

import tinypeft as tp
from tinypeft.course import percent


def stars(guess, measured): return tp.guess("03.peak", guess, "MiB").beside(measured).stars


@pytest.mark.parametrize("guess, measured, expected", [
    (31.0, 31.0, 3), (110, 100, 3), (90, 100, 3), (111, 100, 2), (89, 100, 2), (125, 100, 2), (75, 100, 2), (126, 100, 1),
    (74, 100, 1), (200, 100, 1), (50, 100, 1), (201, 100, 0), (49, 100, 0), (-100, 100, 0), (-95, -100, 3), (-300, -100, 0),
    (0, 0, 3), (0.1, 0, 0), (0, 100, 0), (1e-12, 1.05e-12, 3), (10 ** 400 // 10 ** 390, 1e10, 3)])
def test_stars_are_for_the_relative_deviation(guess, measured, expected):
    assert stars(guess, measured) == expected


@pytest.mark.parametrize("guess, measured, says", [
    (31, 28.4, "9 % too large  ★★★"), (20, 28.4, "30 % too small  ★☆☆"), (90, 28.4, "3.17 times too large  ☆☆☆"),
    (5, 28.4, "5.68 times too small  ☆☆☆"), (28.4, 28.4, "exactly right  ★★★"), (28.41, 28.4, "less than 1 % too large"),
    (-28, 28.4, "the sign is wrong"), (0, 28.4, "the measured number is not 0"), (5, 0, "the measured number is 0")])
def test_it_says_how_far_off(guess, measured, says):
    shown = tp.guess("03.peak", guess, "MiB").beside(measured)
    assert says in repr(shown)
    for part in ("03.peak", "MiB", says.split("  ")[0]): assert part in shown._repr_html_()


@pytest.mark.parametrize("value, words", [(12345.6, "12,346 MiB"), (9999.5, "1e+04 MiB"), (12000, "12,000 MiB"), (3, "3 MiB"),
                                          (2.34567, "2.346 MiB")])
def test_large_and_whole_numbers_are_written_out(value, words):
    assert f"measured     {words}" in repr(tp.guess("03.peak", 1.0, "MiB").beside(value))


def test_text():
    guess = tp.guess("03.peak", 31.0, "MiB")
    assert tp.guess("p2.qlora", 5, "MiB").name == "p2.qlora"                 # of a project
    assert repr(guess) == "? 03.peak: your guess is 31 MiB" and guess.stars is None
    assert repr(guess.beside(28.4)).split("\n") == [
        "? 03.peak: your guess is 31 MiB", "  measured     28.4 MiB", "  how far off  9 % too large  ★★★"]
    assert "1,155,456" in repr(tp.guess("02.parameters", 1_155_456)) and repr(guess.beside(1 / 3)).count("0.3333 MiB")


def test_without_a_guess_everything_goes_on():
    guess = tp.guess("03.peak", ..., "MiB")
    assert guess.guess is None and "no guess yet" in repr(guess) and "no guess yet" in guess._repr_html_()
    shown = guess.beside(28.4)
    assert shown.stars is None and "measured     28.4 MiB" in repr(shown) and "★" not in repr(shown) + shown._repr_html_()


@pytest.mark.parametrize("number", [np.float32(3), np.int64(3), np.array([3.0]), np.array(3), tp.Tensor(np.array(3.0)), 3])
def test_numbers_of_numpy_and_tensors_count(number):
    assert tp.guess("01.sum", number).guess == 3.0 and tp.guess("01.sum", 3).beside(number).stars == 3


@pytest.mark.parametrize("name", ["peak", "3.peak", "03.Peak", "03 peak", "03.", "lora.forward", "03.peak.of", 3, None])
def test_another_name_is_refused(name):
    with pytest.raises(ValueError, match=r'expected "NN.word", for example "03.peak"'): tp.guess(name, 1.0)


@pytest.mark.parametrize("guess", ["31", None, True, [31], np.zeros(2), 1j])
def test_a_guess_that_is_no_number_is_refused(guess):
    with pytest.raises(TypeError, match="03.peak: the guess is .* no number; write one number"): tp.guess("03.peak", guess)
    with pytest.raises(TypeError, match="03.peak: the measured value"): tp.guess("03.peak", 1).beside(guess)


@pytest.mark.parametrize("guess", [float("nan"), float("inf"), np.float32("-inf")])
def test_a_guess_that_is_not_finite_is_refused(guess):
    with pytest.raises(ValueError, match="finite"): tp.guess("03.peak", guess)


# -- in a notebook ---------------------------------------------------------------------------------

def test_an_assignment_has_dots_in_place_of_the_guess():
    code = ('x = "α ± ε"; guess = tp.guess("03.peak", -31.5e0, "MiB"); other = tp.guess(\n    "03.time", 2)\n'
            'task.predict(model, 31)')
    cells = percent.parse(f"# %%\n{code}\n")
    assert percent.lesson(cells).cells[0].source == code
    for solved in (False, True):
        assert percent.assignment(cells, solved).cells[0].source == code.replace("-31.5e0", "...").replace(", 2)", ", ...)")


@pytest.mark.parametrize("call, says", [
    ('tp.guess("03.peak", guess)', "must be one plain number, got guess"), ('tp.guess("03.peak", 3 * 4)', "3 \\* 4"),
    ('tp.guess("03.peak", ...)', "plain number, got ..."), ('tp.guess("03.peak")', "expected tp.guess"),
    ('tp.guess(name, 3)', "expected tp.guess"), ('tp.guess("03.peak", True)', "plain number")])
def test_a_guess_in_a_source_is_a_plain_number(call, says):
    with pytest.raises(ValueError, match=f"x.py, line 3: .*{says}"): percent.parse(f"# %%\nx = 1\n# %%\n{call}\n", "x.py")
