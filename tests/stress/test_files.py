"""A short form of `files.py`: one attack in fifty, or in fifteen, a few damaged files of every kind, and some long values."""
import pytest

from tests.stress.files import KINDS, attacked, damaged_files, long_files


@pytest.mark.parametrize("every", [50, pytest.param(15, marks=pytest.mark.long)])
def test_attacks_are_refused(every):
    assert [outcome for outcome in attacked(every=every) if outcome.startswith("BAD")] == []


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_refused_or_read_as_they_are(kind):
    assert [outcome for outcome in damaged_files(kind, 20, seed=7) if outcome.startswith("BAD")] == []


@pytest.mark.parametrize("every", [29, pytest.param(5, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", KINDS)
def test_no_message_repeats_a_long_value(kind, every):
    ends = long_files(kind, every)
    assert [outcome for outcome in ends if outcome.startswith("BAD")] == [] and ends.keys() - {"same", "other", "not written"}
