"""What tests of the course share."""
import pytest

from tinypeft.course.exercises import autograd


@pytest.fixture
def shorter_tape(monkeypatch):
    """The tape of lesson 01 has 1,200 steps in place of 5,000: still more than functions may call each other."""
    monkeypatch.setattr(autograd, "STEPS", 1200)
