"""Quantization: arrays become `QTensor`s, and the linear layers of a model become smaller ones.

storage          qtensor.py       the quantized array: codes, scales, one formula that decodes them
                 packing.py       codes of 1 … 8 bits in bytes
                 decoding.py      from packed codes to float32, fast
                 saving.py        a quantized model in one file
grids            scheme.py        the base of all quantizers
                 uniform.py       equally spaced numbers: round to nearest, a grid by itself
                 codebooks.py     tables of unequal levels: NF4, small floats, dynamic codes
                 formats.py       floating point of a few bits: FP16, BF16, FP8, FP4, MX
                 nf4.py           NF4 and double quantization (QLoRA)
                 gguf_blocks.py   the blocks of llama.cpp's files
calibrated       readers.py       who reads what in a block
                 calibration.py   statistics of inputs, block by block
                 obq.py           one weight at a time, the others make up for it
                 gptq.py          the same in one order for a whole matrix
                 folding.py       moving a scale from an input into the layer before
                 awq.py           larger weights where activations are large
activations      int8.py          exact integer products, and W8A8
                 llm_int8.py      outlier features in floating point, the rest in int8
                 smoothquant.py   outliers moved from the inputs into the weights
                 zeroquant.py     groups, tokens, and distillation block by block
                 kv_cache.py      keys and values of the generation cache in few bits
training         rounding.py      rounding through which gradients pass: STE, LSQ
                 fake_quant.py    quantization-aware training
                 llm_qat.py       the same without data: the model is its own teacher
                 peqa.py          codes stay, only their scales are trained
                 loftq.py         a LoRA that starts as the quantization error
model level      model.py         quantize, the verb that puts a scheme on a model
                 linear.py        the layer that a quantizer leaves behind
                 measure.py       bytes, errors, and the price of merging

Three files suffice to follow a scheme: gptq, calibration and uniform for GPTQ; awq, calibration and
folding for AWQ; llm_int8, int8 and linear for LLM.int8().
"""
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

SCHEMES = {"uniform": Uniform, "float": FloatFormat, "nf4": NF4, "gguf": GGUF, "gptq": GPTQ,
           "awq": AWQ, "w8a8": W8A8, "llm_int8": LLMInt8, "zeroquant": ZeroQuant,
           "smoothquant": SmoothQuant, "fake_quant": FakeQuant, "llm_qat": LLMQAT, "peqa": PEQA}

__all__ = ["AWQ", "GGUF", "GPTQ", "LLMQAT", "NF4", "PEQA", "SCHEMES", "W8A8", "FakeQuant",
           "FakeQuantLinear", "FloatFormat", "LLMInt8", "QTensor", "QuantizedKVCache",
           "QuantizedLinear", "Scheme", "SelfDistillation", "SmoothQuant", "Uniform", "ZeroQuant",
           "bits_per_weight", "capture", "convert", "layer_errors", "load_quantized", "loftq",
           "plant_outliers", "quantize", "requantize_error", "save_quantized", "self_distillation",
           "weight_error"]
