"""The commands that these files test take the shipped base: SmolLM2 takes seconds a step, and has `tests/test_smollm2.py`."""
import pytest


@pytest.fixture(autouse=True)
def no_wheel(monkeypatch):
    """SmolLM2's wheel is as if it were not installed."""
    def missing(): raise FileNotFoundError
    monkeypatch.setattr("tinypeft.interop.loading.smollm2_file", missing)
