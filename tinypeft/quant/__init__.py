"""Quantization: arrays in, QTensors out. One file per scheme; `qtensor.py` is what all of them produce."""
from .awq import AWQ
from .calibration import capture
from .fake_quant import FakeQuant, FakeQuantLinear, convert
from .folding import plant_outliers
from .formats import FloatFormat
from .gguf_blocks import GGUF
from .gptq import GPTQ
from .int8 import W8A8
from .kv_cache import QuantizedKVCache
from .linear import QuantizedLinear
from .llm_int8 import LLMInt8
from .llm_qat import LLMQAT, SelfDistillation, self_distillation
from .loftq import loftq
from .measure import bits_per_weight, layer_errors, requantize_error, weight_error
from .model import quantize
from .nf4 import NF4
from .peqa import PEQA
from .qtensor import QTensor
from .saving import load_quantized, save_quantized
from .scheme import Scheme
from .smoothquant import SmoothQuant
from .uniform import Uniform
from .zeroquant import ZeroQuant

SCHEMES = {"uniform": Uniform, "float": FloatFormat, "nf4": NF4, "gguf": GGUF, "gptq": GPTQ, "awq": AWQ, "w8a8": W8A8,
           "llm_int8": LLMInt8, "zeroquant": ZeroQuant, "smoothquant": SmoothQuant, "fake_quant": FakeQuant, "llm_qat": LLMQAT,
           "peqa": PEQA}

__all__ = ["AWQ", "GGUF", "GPTQ", "LLMQAT", "NF4", "PEQA", "SCHEMES", "W8A8", "FakeQuant", "FakeQuantLinear", "FloatFormat",
           "LLMInt8", "QTensor", "QuantizedKVCache", "QuantizedLinear", "Scheme", "SelfDistillation", "SmoothQuant", "Uniform",
           "ZeroQuant", "bits_per_weight", "capture", "convert", "layer_errors", "load_quantized", "loftq", "plant_outliers",
           "quantize", "requantize_error", "save_quantized", "self_distillation", "weight_error"]
