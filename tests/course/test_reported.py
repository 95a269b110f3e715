"""What readers of the course found wrong with a check stays mended."""
import pytest

import tinypeft as tp
from tests.course.reported import ACCEPTED, UNNAMED


@pytest.mark.parametrize("seed", [0, 17, pytest.param(42, marks=pytest.mark.long)])
@pytest.mark.parametrize("name, fn, words", [*ACCEPTED, *UNNAMED], ids=lambda value: value if isinstance(value, str) else "")
def test_an_answer_of_the_reports_is_refused_for_its_reason(name, fn, words, seed):
    result = tp.check(name, fn, seed=seed)
    assert not result and words in f"{result.message} {result.cause}", result
