"""Mutation testing by mutmut: its settings can be read, and what was recorded is of modules and tests that exist."""
import json
import tomllib

import pytest

from tests.stress import RESULTS
from tests.stress.mutants import ROOT, SETTINGS, own_tests

RECORDED = json.loads((RESULTS / "mutants.json").read_text("utf-8"))["modules"]


@pytest.mark.parametrize("module", RECORDED)
def test_a_recorded_module_has_tests_of_its_own_that_notice_most_faults(module):
    assert (ROOT / "tinypeft" / module).exists() and (ROOT / own_tests(module)).exists()
    assert RECORDED[module]["caught"] >= 0.6 * RECORDED[module]["planted"] > 0


def test_mutmut_is_told_the_module_and_its_tests():
    ours = SETTINGS.format(module="peft/lora.py", tests=own_tests("peft/lora.py"))
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8") + ours)["tool"]["mutmut"]
    assert settings["only_mutate"] == ["tinypeft/peft/lora.py"]
    assert settings["pytest_add_cli_args_test_selection"] == ["tests/peft/test_lora.py"]
