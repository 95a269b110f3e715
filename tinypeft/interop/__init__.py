"""Files of others: safetensors, Hugging Face's folders of GPT-2 models and tokenizers, PEFT's folders of
adapters, GGUF."""
from ..peft.folders import FORMATS, Format
from .adapters import AdapterError, load_peft, peft_content, save_peft
from .bpe import read_tokenizer, write_tokenizer
from .folder import HuggingFaceError, Report
from .gguf import write_gguf
from .gpt2 import from_huggingface, load_model, to_huggingface
from .safetensors import SafeTensors, SafeTensorsError, read_safetensors, write_safetensors

__all__ = ["AdapterError", "HuggingFaceError", "Report", "SafeTensors", "SafeTensorsError", "from_huggingface", "load_model",
           "read_safetensors", "read_tokenizer", "to_huggingface", "write_gguf", "write_safetensors", "write_tokenizer"]

FORMATS["peft"] = Format("adapter_config.json", save_peft, load_peft, check=peft_content)
