"""Parameter-efficient fine-tuning: the methods, one file each, and the one verb that puts them on a model.

    method.py      the protocol: what every method says about itself
    model.py       attach, and PeftModel: a model with a method on it
    summary.py     how many numbers a method trains and stores
    folders.py     saved adapters
    full.py        FullFineTuning, LinearProbe: the baselines
    adapter.py     BottleneckAdapter, after a sublayer         parallel.py    ParallelAdapter, beside one
    virtual.py     what methods of virtual tokens share
    prompt.py      PromptTuning: vectors before the input
    ptuning.py     PTuning: vectors between the input's parts, made by an encoder (lstm.py)
    prefix.py      PrefixTuning: keys and values in every layer
    ptuning_v2.py  PTuningV2: the same without the MLP
    lora.py        LoRA: a low-rank change of a weight
    adalora.py     AdaLoRA: ranks that training allocates      dylora.py      DyLoRA: all ranks at once
    mixed.py       mixed_batch: rows of one batch with different methods

`METHODS` maps names to classes. PEQA, which is a scheme as well, is in `quant/peqa.py`.
"""
from .adalora import AdaLoRA
from .adapter import BottleneckAdapter
from .dylora import DyLoRA, search_rank
from .folders import KNOWN, load_adapter
from .full import FullFineTuning, LinearProbe
from .lora import LoRA
from .method import Method, MethodError
from .mixed import mixed_batch
from .model import PeftModel, attach
from .parallel import ParallelAdapter
from .prefix import PrefixTuning
from .prompt import PromptTuning
from .ptuning import PTuning
from .ptuning_v2 import PTuningV2

METHODS = {"full": FullFineTuning, "adapter": BottleneckAdapter, "parallel_adapter": ParallelAdapter,
           "prefix": PrefixTuning, "prompt": PromptTuning, "ptuning": PTuning, "ptuning_v2": PTuningV2,
           "lora": LoRA, "adalora": AdaLoRA, "dylora": DyLoRA}
KNOWN.update({cls.__name__: cls for cls in (*METHODS.values(), LinearProbe)})

__all__ = ["METHODS", "AdaLoRA", "BottleneckAdapter", "DyLoRA", "FullFineTuning", "LinearProbe", "LoRA",
           "Method", "MethodError", "PTuning", "PTuningV2", "ParallelAdapter", "PeftModel",
           "PrefixTuning", "PromptTuning", "attach", "load_adapter", "mixed_batch", "search_rank"]
