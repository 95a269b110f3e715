"""Quantization: arrays in, QTensors out. One file per scheme; `qtensor.py` is what all of them produce."""
from .awq import AWQ
from .calibration import capture
from .folding import plant_outliers
from .formats import FloatFormat
from .gguf_blocks import GGUF
from .gptq import GPTQ
from .int8 import W8A8
from .kv_cache import QuantizedKVCache
from .linear import QuantizedLinear
from .llm_int8 import LLMInt8
from .measure import bits_per_weight, layer_errors, requantize_error, weight_error
from .model import quantize
from .nf4 import NF4
from .qtensor import QTensor
from .saving import load_quantized, save_quantized
from .scheme import Scheme
from .smoothquant import SmoothQuant
from .uniform import Uniform
from .zeroquant import ZeroQuant

SCHEMES = {"uniform": Uniform, "float": FloatFormat, "nf4": NF4, "gguf": GGUF, "gptq": GPTQ, "awq": AWQ, "w8a8": W8A8,
           "llm_int8": LLMInt8, "zeroquant": ZeroQuant, "smoothquant": SmoothQuant}

__all__ = ["AWQ", "GGUF", "GPTQ", "NF4", "SCHEMES", "W8A8", "FloatFormat", "LLMInt8", "QTensor", "QuantizedKVCache",
           "QuantizedLinear", "Scheme", "SmoothQuant", "Uniform", "ZeroQuant", "bits_per_weight", "capture", "layer_errors",
           "load_quantized", "plant_outliers", "quantize", "requantize_error", "save_quantized", "weight_error"]
