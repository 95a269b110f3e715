"""Write a LoRA as an adapter of llama.cpp: a GGUF file beside that of the base, for `--lora FILE`.

    fields     general.type "adapter", general.architecture, adapter.type "lora", adapter.lora.alpha
    tensors    NAME.lora_a, A (r, d_in), and NAME.lora_b, B (d_out, r); NAME is that of W in the
               base's file: `gguf_architectures.py` has the names

llama.cpp computes W x + (α/r) B A x, with the r of each B and one α. The rank may differ from layer
to layer here, and the scale, too. So α is the largest rank, and B takes the rest of the scale:

    ΔW = L R     A = R,   B = L r/α

Rows of B are those of W, so they are reordered and stacked as W's are: for a rotation of neighbours
in "llama", and in "gpt2" query, key and value are one W, whose pair has zeros in B (`lowrank.py`).
Of several methods on one layer the pairs stand side by side. llama.cpp takes no other change than
this one. Source: llama.cpp's llama-adapter.cpp and convert_lora_to_gguf.py.
"""
from pathlib import Path

import numpy as np

from ..files import naming
from ..peft import MethodError, PeftModel
from .gguf_architectures import architecture_of, neighbours
from .gguf_writer import field, write_container
from .lowrank import stack

__all__ = ["ADAPTER_FILE", "write_gguf_adapter"]

ADAPTER_FILE = "adapter.gguf"                            # what `export --to gguf-lora` writes


def write_gguf_adapter(path: str | Path, tuned: PeftModel) -> None:
    """Write the low-rank changes that are on, completely or not at all, for the base that `tuned`
    is on. Raises MethodError for any other method, a head, or trained weights of the base, and
    ValueError for a base that llama.cpp does not compute."""
    model = tuned.model
    with naming("write_gguf_adapter"):
        architecture = architecture_of(model)
        architecture.check(model.config)
    changes, pairs, tensors = _changes(tuned), {}, {}
    for theirs, (ours, _) in architecture.layout(model.config).items():
        parts = [changes.get(name.removesuffix(".weight")) for name in ours]
        if not any(parts): continue
        B, A = stack(parts)
        if architecture.is_paired(model.config, theirs): B = neighbours(B, model.config.d_head)
        pairs[theirs] = B, A
    alpha = float(max(len(A) for _, A in pairs.values()))
    for theirs, (B, A) in pairs.items():
        for name, W in ("lora_a", A), ("lora_b", B * (len(A) / alpha)):
            tensors[f"{theirs}.{name}"] = "F32", W.shape, np.ascontiguousarray(W, "<f4")
    fields = {"general.architecture": architecture.kind(model.config), "general.type": "adapter",
              "adapter.type": "lora", "adapter.lora.alpha": alpha}
    write_container(path, {name: field(value) for name, value in fields.items()}, tensors)


def _changes(tuned):
    """Return path of a layer → (L (d_out, r), R (r, d_in)) of all methods that are on."""
    _refuse(tuned)
    changes = {}
    for part in tuned.used():
        for path, layer in part.wrappers.items():
            L, R = (factor.data for factor in layer.factors())
            if path in changes:
                others = changes[path]
                L, R = np.hstack([others[0], L]), np.vstack([others[1], R])
            changes[path] = L, R
    return changes


def _refuse(tuned):
    """MethodError for what no adapter of llama.cpp holds."""
    reason = None
    if not tuned.used():
        reason = "no method is on"
    elif tuned.head is not None:
        reason = "there is a classification head"
    elif tuned.trained:
        reason = f"the base's {next(iter(tuned.trained))} was trained"
    for part in tuned.used():
        if part.virtual or not all(layer.is_low_rank for layer in part.wrappers.values()):
            reason = f"there is {part.method}"
    if reason:
        raise MethodError("write_gguf_adapter: an adapter of llama.cpp holds low-rank changes of "
                          f"weights, such as LoRA's, and no more, but {reason}; if the method "
                          "merges, merge it and write the model by write_gguf")
