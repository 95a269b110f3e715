"""The short form of interrupts.py: one interrupt of each of a few methods."""
import pytest

from tests.stress import interrupts


@pytest.mark.parametrize("names", [
    ("prefix", "adalora"), pytest.param(("full", "adapter", "DyLoRA, frozen"), marks=pytest.mark.long)], ids="|".join)
def test_an_interrupt_at_any_line_leaves_the_model_usable(names):
    methods = {name: interrupts.METHODS[name] for name in names}
    found = interrupts.search(len(methods), seed=1, methods=methods)
    assert found["faults"] == 0 and found["interrupts"] == len(methods)
