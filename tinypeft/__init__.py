"""tinypeft: parameter-efficient and memory-efficient fine-tuning of language models in NumPy.

A fine-tuning method and a quantization scheme are small values. Two verbs put them on a model:
`attach(model, LoRA(rank=8))` and `quantize(model, NF4())`. The public names stand below, by
subject. Each is imported when it is first used (`common/lazy.py`).
"""
from typing import TYPE_CHECKING

from .common.lazy import lazily

lazily(__name__)
__version__ = "0.1.0"                # pyproject.toml reads it here
if TYPE_CHECKING:
    # the model and its text
    from .models.gemma import Gemma, GemmaConfig
    from .models.gpt import GPT, GPTConfig
    from .models.llama import Llama, LlamaConfig
    from .pretrained import load_tokenizer
    from .text import tasks
    from .text.chat import chat_end, chat_prompt
    from .interop import AdapterError
    from .interop.card import write_card
    from .interop.export import export_training
    from .interop.gguf import write_gguf
    from .interop.gguf_adapter import write_gguf_adapter
    from .interop.loading import load_model, load_pretrained, save_model

    # the first verb: fine-tuning methods
    from .peft.methods import (C3A, IA3, METHODS, OFT, AdaLoRA, BottleneckAdapter, DoRA, DyLoRA,
                               FourierFT, FullFineTuning, HiRA, LinearProbe, LoHa, LoKr, LoRA,
                               LoReFT, MiSS, ParallelAdapter, PrefixTuning, PromptTuning, PTuning,
                               PTuningV2, RandLoRA, SHiRA, TrainableTokens, VeRA)
    from .peft import (Method, MethodError, PeftModel, attach, combine, load_adapter, mixed_batch,
                       mixed_classify, search_rank, to_low_rank)
    from .peft.probe import fit_probe

    # the second verb: quantization schemes
    from .quant import (AWQ, GGUF, GPTQ, LLMQAT, NF4, PEQA, SCHEMES, W8A8, FakeQuant,
                        FakeQuantLinear, FloatFormat, LLMInt8, QTensor, QuantizedKVCache,
                        QuantizedLinear, Scheme, SelfDistillation, SmoothQuant, Uniform, ZeroQuant,
                        bits_per_weight, capture, convert, dequantize, layer_errors, load_quantized,
                        loftq, plant_outliers, quantize, requantize_error, save_quantized,
                        self_distillation, weight_error)

    # training, evaluation, generation
    from .training.loop import train
    from .training.options import TrainOptions
    from .training.evaluation import evaluate
    from .training.diagnosis import DivergedError
    from .training.history import History
    from .training.finder import RateSearch, find_rate
    from .training.live import LiveCurve
    from .engine.optim.paged import PagedAdamW
    from .models.cache import KVCache
    from .models.in_words import generate, stream
    from .course import check, guess

    # the engine
    from .engine.tensor import (GraphError, Tensor, concatenate, maximum, no_grad, split, stack,
                                where)
    from .engine.nn import Module, Parameter
    from .engine.gradcheck import gradcheck
    from .engine.graph import graph
    from .engine import functional, optim, plain
