"""The short form of interrupts.py: one interrupt of each of five methods."""
from tests.stress import interrupts


def test_an_interrupt_at_any_line_leaves_the_model_usable():
    methods = {name: interrupts.METHODS[name] for name in ("full", "adapter", "prefix", "adalora", "DyLoRA, frozen")}
    found = interrupts.search(len(methods), seed=1, methods=methods)
    assert found["faults"] == 0 and found["interrupts"] == len(methods)
