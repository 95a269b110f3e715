"""Every parameter-efficient fine-tuning method, one file each; `METHODS` maps names to their classes."""
from .adalora import AdaLoRA
from .adapter import BottleneckAdapter
from .dylora import DyLoRA
from .full import FullFineTuning, LinearProbe
from .lora import LoRA
from .mixed import mixed_batch
from .model import Method, MethodError, PeftModel, attach, load_adapter
from .parallel import ParallelAdapter
from .prefix import PrefixTuning
from .prompt import PromptTuning
from .ptuning import PTuning
from .ptuning_v2 import PTuningV2
from .rank_search import search_rank

METHODS = {"full": FullFineTuning, "adapter": BottleneckAdapter, "parallel_adapter": ParallelAdapter,
           "prefix": PrefixTuning, "prompt": PromptTuning, "ptuning": PTuning, "ptuning_v2": PTuningV2,
           "lora": LoRA, "adalora": AdaLoRA, "dylora": DyLoRA}

__all__ = ["METHODS", "AdaLoRA", "BottleneckAdapter", "DyLoRA", "FullFineTuning", "LinearProbe", "LoRA", "Method",
           "MethodError", "PTuning", "PTuningV2", "ParallelAdapter", "PeftModel", "PrefixTuning", "PromptTuning",
           "attach", "load_adapter", "mixed_batch", "search_rank"]
