"""The short form of kills.py: a tiny model, three kills."""
from tests.stress import kills


def test_a_run_that_is_killed_ends_as_one_that_was_not():
    found = kills.search(kills.TOY, 3, say=lambda line: None)
    assert found["kills"] == 3 and found["runs that ended"] >= 1 and found["differ"] == found["files left"] == 0
