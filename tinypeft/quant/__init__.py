"""Quantization: arrays in, QTensors out. One file per scheme; `qtensor.py` is what all of them produce."""
from .formats import FloatFormat
from .gguf_blocks import GGUF
from .nf4 import NF4
from .qtensor import QTensor
from .scheme import Scheme
from .uniform import Uniform

__all__ = ["GGUF", "NF4", "FloatFormat", "QTensor", "Scheme", "Uniform"]
