"""heap.py: a training step takes its memory from what the step before it freed."""
import platform
import subprocess
import sys

import pytest

from tinypeft.common import heap

COUNT = """
import resource
import sys
import numpy as np
import tinypeft as tp
from tinypeft.training import backward as training
if sys.argv[1] == "returned": training.keep_freed_memory = lambda: False
model = tp.GPT(tp.GPTConfig(1024, 128, 128, 4, 4))
batch = (np.arange(8 * 128).reshape(8, 128) % 1024,) * 2
class Task:
    def count(self, batch): return batch[1].size
    def loss(self, model, batch): return tp.functional.cross_entropy(model(batch[0]), batch[1])
def faults(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        training.backward(model, Task(), batch, 2)
        for p in model.parameters(): p.grad = None
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(4)
print(faults(6))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked to keep memory")
def test_a_step_takes_no_new_pages_from_the_system():
    pages = {how: int(subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, text=True, check=True).stdout)
             for how in ("kept", "returned")}
    assert pages["kept"] < pages["returned"] / 4, pages


def test_a_c_library_without_the_call_is_left_alone(monkeypatch):
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: object())
    assert heap.keep_freed_memory.__wrapped__() is False
    monkeypatch.undo()
    assert heap.keep_freed_memory() is (platform.libc_ver()[0] == "glibc")
