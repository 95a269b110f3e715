"""Every mistake of every exercise is told: a student who makes it reads its sentence, and not another one."""
import pytest

from tinypeft.course.calls import Local
from tinypeft.course.exercises import TOPICS, of_topic
from tinypeft.course.judge import judge

EXERCISES = {name: exercise for topic in TOPICS for name, exercise in of_topic(topic).items()}


def told(exercise, wrong, seed):
    """The cause that a student is told whose function computes the wrong variant."""
    result = judge(exercise, Local(lambda *args: wrong(*args)), seed)
    assert not result, f"{exercise.name}: the variant is accepted: {result}"
    return result.cause


@pytest.mark.usefixtures("shorter_tape")
@pytest.mark.parametrize("name", EXERCISES)
def test_each_mistake_is_told_by_its_own_sentence(name):
    """With another seed where the data of one do not tell two mistakes apart."""
    exercise = EXERCISES[name]
    for sentence, wrong in exercise.mistakes:
        assert any(told(exercise, wrong, seed) == sentence for seed in (0, 1)), sentence
