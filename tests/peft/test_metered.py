"""metered.py: the numbers of `default_rng(0)`, and no more of them than a file justifies."""
import numpy as np
import pytest

from tinypeft.peft.metered import Metered

DRAWS = [
    lambda rng: rng.standard_normal((3, 4)), lambda rng: rng.standard_normal(5, np.float32), lambda rng: rng.standard_normal(),
    lambda rng: rng.normal(2.0, 0.5, (2, 3)), lambda rng: rng.uniform(-3.0, -1.0, 4), lambda rng: rng.integers(2, 9, (2, 2)),
    lambda rng: rng.integers(7, size=3), lambda rng: rng.choice(50, 9, replace=False)]


def test_it_draws_what_the_default_generator_draws():
    ours, plain = Metered(10), np.random.default_rng(0)
    for draw in DRAWS: assert np.array_equal(draw(ours), draw(plain))


@pytest.mark.parametrize("draw", [
    lambda rng, n: rng.standard_normal((n, 1)), lambda rng, n: rng.normal(0.0, 1.0, n), lambda rng, n: rng.uniform(0.0, 1.0, n),
    lambda rng, n: rng.integers(0, 9, n), lambda rng, n: rng.choice(n + 1, n, replace=False)])
def test_twice_the_file_and_a_quarter_of_a_million_are_free(draw):
    rng = Metered(1000)
    draw(rng, 2000)
    draw(rng, 2**18 - 1)
    rng.standard_normal()
    with pytest.raises(ValueError, match="many more numbers than the file holds"): rng.standard_normal()
    with pytest.raises(ValueError, match="many more"): draw(Metered(0), 2**40)          # before anything is allocated
