"""What both the main job and the experiments compare: the schemes by label, and a step's memory."""
import tracemalloc

import numpy as np

from .. import quant as q
from ..peft import PeftModel
from ..text.tasks import Task
from ..training.backward import backward

__all__ = ["COMPARED_SCHEMES", "SHOWN", "TRAINED", "TRAINED_AS_LONG", "traced_peak"]

TRAINED_AS_LONG = "float32, trained as long"             # the label of the row beside the schemes that train

# label → scheme: the rows of the table, at 8, 4 and 3 bits, with settings that can be compared; a star: it is trained
GROUPS = {"granularity": "group", "group_size": 32}
COMPARED_SCHEMES = {
    "int8": q.Uniform(bits=8),
    "W8A8": q.W8A8("channel", "token"),
    "LLM.int8()": q.LLMInt8(),
    "SmoothQuant": q.SmoothQuant(),
    "ZeroQuant": q.ZeroQuant(),
    "FP8 E4M3": q.FloatFormat("E4M3"),
    "int4 per channel": q.Uniform(bits=4),
    "int4": q.Uniform(bits=4, scale_dtype="float16", **GROUPS),
    "int4 asymmetric": q.Uniform(bits=4, symmetric=False, scale_dtype="float16", **GROUPS),
    "GGUF Q4_0": q.GGUF("Q4_0"),
    "FP4 E2M1": q.FloatFormat("E2M1"),
    "NF4": q.NF4(),
    "NF4 double": q.NF4(double_quant=True),
    "AWQ 4 bit": q.AWQ(bits=4, group_size=32),
    "GPTQ 4 bit": q.GPTQ(bits=4, group_size=32),
    "int3 asymmetric": q.Uniform(bits=3, symmetric=False, scale_dtype="float16", **GROUPS),
    "AWQ 3 bit": q.AWQ(bits=3, group_size=32),
    "GPTQ 3 bit": q.GPTQ(bits=3, group_size=32),
    "PEQA 3 bit *": q.PEQA(bits=3, group_size=32),
    "QAT 3 bit *": q.FakeQuant(bits=3, symmetric=False, **GROUPS),
    "LLM-QAT 4-8-4 *": q.LLMQAT(),
}
TRAINED = {label for label, scheme in COMPARED_SCHEMES.items() if scheme.trains}
# one of each kind, which the main job shows: rounding, products of integers with outliers apart or smoothed, steps with an
# offset, a code book, files, correcting columns, and training
SHOWN = ("int8", "LLM.int8()", "SmoothQuant", "int4 asymmetric", "GGUF Q4_0", "NF4", "GPTQ 4 bit", "QAT 3 bit *")


def traced_peak(tuned: PeftModel, task: Task, batch_size: int) -> int:
    """Peak bytes that one training step (forward and backward, one thread) allocates beyond the model."""
    batch = task.batch("train", batch_size, np.random.default_rng(0))
    tuned.before_step(0, 1)
    tracemalloc.start()
    backward(tuned, task, batch, workers=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    for p in tuned.parameters(): p.grad = None
    return peak
