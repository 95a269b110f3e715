"""Every parameter-efficient fine-tuning method, one file each; `METHODS` maps names to their classes."""
from .full import FullFineTuning, LinearProbe
from .lora import LoRA
from .model import Method, MethodError, PeftModel, attach, load_adapter

METHODS = {"full": FullFineTuning, "lora": LoRA}

__all__ = ["METHODS", "FullFineTuning", "LinearProbe", "LoRA", "Method", "MethodError", "PeftModel", "attach",
           "load_adapter"]
