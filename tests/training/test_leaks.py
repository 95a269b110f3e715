"""100 training steps with the garbage collector off leave nothing behind. `stress/leaks.py` measures, and does 1,000."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stress.leaks import METHODS, Watched, growth


@pytest.fixture(scope="module")
def grown():
    """Measured in a process of its own: memory that other tests have freed moves while this one is counted."""
    done = subprocess.run([sys.executable, "-m", "tests.stress.leaks", "--steps", "100"], cwd=Path(__file__).parents[2],
                          stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)["growth"]


@pytest.mark.parametrize("name", METHODS)
def test_training_keeps_nothing(grown, name):
    assert abs(grown[name]["objects"]) <= 20 and (grown[name]["MiB"] or 0) < 2


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
