"""Other projects' files, read and written with NumPy. Nothing in a file is trusted or executed.

    loading.py        load_model and save_model: every way to a model
    huggingface.py    Hugging Face's folders of models ↔ `Decoder`
    families/         the names that each family of models has there
    folder.py         what is in a folder: JSON, one or several files of tensors, a `Report`
    bpe.py            the tokenizer files in such a folder: byte_level.py, sentencepiece.py
    adapters.py       PEFT's adapter folders ↔ `PeftModel`; virtual tokens and heads
    lowrank.py        the tensors of LoRA, DyLoRA and AdaLoRA in such a folder
    ia3.py            those of (IA)³
    changed_layers.py those of all other changes of weights, by the table in changed_table.py
    token_rows.py     those of TrainableTokens, also beside a LoRA
    base_weights.py   the base's own weights in such a folder: norms, modules_to_save, biases
    peft_config.py    adapter_config.json: its fields, and which layers its patterns select
    peft_names.py     what PEFT calls the layers of a model
    export.py         a run of `train` → a folder that goes on in PyTorch: rows.py, torch_names.py
    gguf.py           models → GGUF, the format of llama.cpp: gguf_bytes.py, gguf_writer.py
    gguf_adapter.py   a LoRA → an adapter of llama.cpp
    llama.py          GGUF → models: gguf_reader.py, gguf_types.py, gguf_tokenizer.py
    gguf_architectures.py   the names that each family of models has in GGUF
    card.py           the page beside an adapter or a model
    importance.py     importance files of llama.cpp → mean squares of inputs

A name is imported when it is first used (`common/lazy.py`), because the shipped base needs none of
these files.
"""
from typing import TYPE_CHECKING

from ..common.lazy import lazily

lazily(__name__)
if TYPE_CHECKING:
    from ..files.safetensors import (SafeTensors, SafeTensorsError, read_safetensors,
                                     write_safetensors)
    from .adapters import AdapterError
    from .bpe import read_tokenizer, write_tokenizer
    from .folder import HuggingFaceError, Report
    from .gguf import write_gguf
    from .gguf_adapter import write_gguf_adapter
    from .loading import load_model, load_pretrained, save_model
