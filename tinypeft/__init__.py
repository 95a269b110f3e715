"""tinypeft: parameter-efficient and memory-efficient fine-tuning of language models, in readable NumPy."""
from . import functional, optim
from .course import check
from .generate import KVCache, generate
from .gpt import GPT, GPTConfig
from .gradcheck import gradcheck
from .graph import graph
from .nn import Module, Parameter
from .paged import PagedAdamW
from .peft import *  # noqa: F403
from .quant import *  # noqa: F403
from .interop import AdapterError, load_model
from .pretrained import load_pretrained, load_tokenizer
from .tensor import GraphError, Tensor, concatenate, maximum, no_grad, split, stack, where
from .text import tasks
from .train import DivergedError, History, evaluate, train
