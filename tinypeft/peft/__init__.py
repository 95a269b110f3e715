"""Every parameter-efficient fine-tuning method, one file each; `METHODS` maps names to their classes."""
from .adalora import AdaLoRA
from .dylora import DyLoRA, search_rank
from .full import FullFineTuning, LinearProbe
from .lora import LoRA
from .model import Method, MethodError, PeftModel, attach, load_adapter

METHODS = {"full": FullFineTuning, "lora": LoRA, "adalora": AdaLoRA, "dylora": DyLoRA}

__all__ = ["METHODS", "AdaLoRA", "DyLoRA", "FullFineTuning", "LinearProbe", "LoRA", "Method", "MethodError",
           "PeftModel", "attach", "load_adapter", "search_rank"]
