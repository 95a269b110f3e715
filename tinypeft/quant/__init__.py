"""Quantization: arrays in, QTensors out. One file per scheme; `qtensor.py` is what all of them produce."""
from .formats import FloatFormat
from .gguf_blocks import GGUF
from .gptq import GPTQ
from .linear import QuantizedLinear
from .model import quantize
from .nf4 import NF4
from .qtensor import QTensor
from .scheme import Scheme
from .uniform import Uniform

SCHEMES = {"uniform": Uniform, "float": FloatFormat, "nf4": NF4, "gguf": GGUF, "gptq": GPTQ}

__all__ = ["GGUF", "GPTQ", "NF4", "SCHEMES", "FloatFormat", "QTensor", "QuantizedLinear", "Scheme", "Uniform", "quantize"]
