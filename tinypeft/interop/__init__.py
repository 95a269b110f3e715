"""Files of others: safetensors, the format in which Hugging Face models and adapters are shared."""
from .safetensors import SafetensorsError, SafeTensors, read_safetensors, write_safetensors

__all__ = ["SafeTensors", "SafetensorsError", "read_safetensors", "write_safetensors"]
