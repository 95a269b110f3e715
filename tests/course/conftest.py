"""What tests of the course share."""
import pytest

from tinypeft.course.exercises import autograd, gradients


@pytest.fixture
def shorter_tape(monkeypatch):
    """The tapes of lessons 01 and 01b have 1,200 steps in place of 5,000: still more than functions may call each other."""
    for topic in (autograd, gradients): monkeypatch.setattr(topic, "STEPS", 1200)
