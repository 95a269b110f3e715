"""Files of others: safetensors, the format in which Hugging Face models and adapters are shared."""
from .safetensors import SafeTensors, SafeTensorsError, read_safetensors, write_safetensors

__all__ = ["SafeTensors", "SafeTensorsError", "read_safetensors", "write_safetensors"]
