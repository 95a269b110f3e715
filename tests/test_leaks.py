"""200 training steps with the garbage collector off leave nothing behind. `stress/leaks.py` measures, and does 1,000."""
import pytest

from tests.stress.leaks import METHODS, Watched, growth


@pytest.mark.parametrize("name", METHODS)
def test_training_keeps_nothing(name):
    grown = growth(METHODS[name], 200)
    assert abs(grown["objects"]) <= 20 and (grown["MiB"] or 0) < 2


class Circle(Watched):
    """A task that leaves each step's graph in a circle."""

    def loss(self, model, batch):
        loss = super().loss(model, batch)
        circle = [loss]
        circle.append(circle)
        return loss


def test_a_circle_would_be_noticed():
    grown = growth(METHODS["LoRA"], 100, Circle)
    assert grown["objects"] > 80
