"""Files of others: safetensors, and the adapter folders of Hugging Face's PEFT."""
from ..peft.model import FORMATS, Format
from .adapters import AdapterError, Report, load_peft, peft_content, save_peft
from .safetensors import SafeTensors, SafeTensorsError, read_safetensors, write_safetensors

__all__ = ["AdapterError", "Report", "SafeTensors", "SafeTensorsError", "read_safetensors", "write_safetensors"]

FORMATS["peft"] = Format("adapter_config.json", save_peft, load_peft, check=peft_content)
