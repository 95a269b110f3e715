"""Quantization: arrays become `QTensor`s, and the linear layers of a model become smaller ones.

    read first    plain.py (the papers' loops; the files below compute the same faster)
    storage       qtensor.py   packing.py (codes in bytes)   decoding.py   saving.py
    grids         scheme.py  uniform.py  codebooks.py  formats.py  nf4.py  gguf.py  gguf_blocks.py
                  k_quants.py
    calibrated    calibration.py   readers.py (who reads an input)   obq.py   gptq.py   awq.py
    activations   int8.py   llm_int8.py   smoothquant.py   folding.py   zeroquant.py   kv_cache.py
    training      rounding.py   fake_quant.py   llm_qat.py   peqa.py   loftq.py
    model level   model.py (quantize, dequantize)   linear.py   measure.py
To follow GPTQ.apply: gptq, calibration, uniform, readers. AWQ.apply: these with awq for gptq, and
folding. SmoothQuant: smoothquant, calibration, folding, readers, int8. LLM.int8(): llm_int8, int8.
"""
from .awq import AWQ
from .calibration import capture
from .fake_quant import FakeQuant, FakeQuantLinear, convert
from .folding import plant_outliers
from .formats import FloatFormat
from .gguf import GGUF
from .gptq import GPTQ
from .int8 import W8A8
from .kv_cache import QuantizedKVCache
from .linear import QuantizedEmbedding, QuantizedLinear
from .llm_int8 import LLMInt8
from .llm_qat import LLMQAT, SelfDistillation, self_distillation
from .loftq import loftq
from .measure import bits_per_weight, layer_errors, requantize_error, weight_error
from .model import dequantize, quantize
from .nf4 import NF4
from .peqa import PEQA
from .qtensor import QTensor
from .saving import load_quantized, save_quantized
from .scheme import Scheme
from .smoothquant import SmoothQuant
from .uniform import Uniform
from .zeroquant import ZeroQuant

SCHEMES = {"uniform": Uniform, "float": FloatFormat, "nf4": NF4, "gguf": GGUF, "gptq": GPTQ,
           "awq": AWQ, "w8a8": W8A8, "llm_int8": LLMInt8, "zeroquant": ZeroQuant,
           "smoothquant": SmoothQuant, "fake_quant": FakeQuant, "llm_qat": LLMQAT, "peqa": PEQA}
