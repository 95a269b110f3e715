"""Parameter-efficient fine-tuning: one file per method, and `attach`, which puts one on a model.

    method.py      the protocol           model.py    attach, and PeftModel: a model with methods
    part.py        what one method adds   attachment.py  how all of them change the model
    folders.py     saved adapters         summary.py  what a method costs
    full.py        FullFineTuning and LinearProbe, the baselines
    adapter.py     BottleneckAdapter: a small network after a sublayer
    fusion.py      AdapterFusion: an attention over trained adapters, and `fuse`, which makes it
    parallel.py    ParallelAdapter: one beside it
    lora.py        LoRA: a low-rank change of a weight
    adalora.py     AdaLoRA: training distributes the ranks over the layers
    dylora.py      DyLoRA: all ranks are trained at once (rank_search.py: which one is enough?)
    ia3.py         IA3: vectors that rescale keys, values and inner activations
    virtual.py     what the methods of virtual tokens share
    prompt.py      PromptTuning: vectors before the input
    ptuning.py     PTuning: vectors among the input's words, made by an encoder (lstm.py)
    prefix.py      PrefixTuning: keys and values in every layer
    ptuning_v2.py  PTuningV2: the same, trained directly
    mixed.py       mixed_batch, mixed_classify: the rows of one batch have different methods
    combine.py     combine: one LoRA out of several adapters of low rank

`METHODS` maps names to classes. PEQA is also a scheme, and is in `quant/peqa.py`.
"""
from .adalora import AdaLoRA
from .adapter import BottleneckAdapter
from .attachment import detach
from .combine import combine
from .dylora import DyLoRA
from .folders import KNOWN, load_adapter
from .full import FullFineTuning, LinearProbe
from .fusion import AdapterFusion, fuse
from .ia3 import IA3
from .lora import LoRA
from .method import Method, MethodError
from .mixed import mixed_batch, mixed_classify
from .model import PeftModel, attach
from .parallel import ParallelAdapter
from .prefix import PrefixTuning
from .prompt import PromptTuning
from .ptuning import PTuning
from .ptuning_v2 import PTuningV2
from .rank_search import search_rank

METHODS = {"full": FullFineTuning, "adapter": BottleneckAdapter,
           "parallel_adapter": ParallelAdapter, "prefix": PrefixTuning, "prompt": PromptTuning,
           "ptuning": PTuning, "ptuning_v2": PTuningV2, "lora": LoRA, "adalora": AdaLoRA,
           "dylora": DyLoRA, "ia3": IA3}
KNOWN.update({cls.__name__: cls for cls in (*METHODS.values(), AdapterFusion, LinearProbe)})

__all__ = ["IA3", "METHODS", "AdaLoRA", "AdapterFusion", "BottleneckAdapter", "DyLoRA",
           "FullFineTuning", "LinearProbe", "LoRA", "Method", "MethodError", "PTuning",
           "PTuningV2", "ParallelAdapter", "PeftModel", "PrefixTuning", "PromptTuning", "attach",
           "combine", "detach", "fuse", "load_adapter", "mixed_batch", "mixed_classify",
           "search_rank"]
