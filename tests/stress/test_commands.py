"""The short form of commands.py: every 16th wrong command line, and three scripts."""
import pytest

from tests.stress import commands


@pytest.fixture(scope="module")
def furnished(tmp_path_factory):
    commands.furnish(folder := tmp_path_factory.mktemp("furnished"))
    return folder


def test_wrong_command_lines_are_answered(furnished):
    lines = commands.wrong_lines()
    assert len(lines) >= 150 and commands.faults(lines[::16], furnished) == []


@pytest.mark.parametrize("name", ["broken pipe", "full disk, checkpoint", "Ctrl-C in the test"])
def test_abuses_are_survived(name, furnished):
    assert len(commands.ABUSES) >= 25 and commands.suffered(commands.ABUSES[name], furnished) is None
