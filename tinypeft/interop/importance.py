"""Importance files of llama.cpp: the mean square h of each input of each linear layer.

llama-imatrix runs a model on a text and adds up x² for each input x of each layer. `GGUF` takes the
file in place of tokens of calibration: GGUF("Q4_K_M", importance="imatrix.gguf"). A file has one of
two forms. The newer one is a GGUF file with two F32 tensors for each weight NAME:

    NAME.in_sum2   Σ x²                       (d_in,)
    NAME.counts    n, the number of tokens    (1,)          h = Σ x² / n

The older one, called .dat, is a sequence of little-endian int32 numbers, names and float32 numbers:

    the number of entries; for each entry
        the length of NAME; NAME; c; d_in; d_in numbers, float32          h = numbers / c
    the number of pieces of text; the length of the text's file name; that name

c is the number of pieces that were read, so the numbers are c h. What follows the entries is not
needed here. The names of weights are those of GGUF files of models, such as blk.0.attn_q.weight.

Where things differ. llama.cpp rounds a layer that the file lacks without importance, and says
nothing. Here the error names such layers. Source: llama.cpp's imatrix.cpp, imatrix-loader.cpp.
"""
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..common.hints import Array
from ..common.wording import brief
from ..files import naming, open_regular
from ..models.decoder import Decoder
from ..models.gpt import GPT
from .gguf_reader import read_gguf

__all__ = ["read_importance"]

SUMS, COUNTS = ".in_sum2", ".counts"
TENSORS = {"attention.query": "attn_q", "attention.key": "attn_k", "attention.value": "attn_v",
           "attention.output": "attn_output", "mlp.gate": "ffn_gate", "mlp.up": "ffn_up",
           "mlp.down": "ffn_down"}                               # our layer of a block → GGUF's
STACKED = dict.fromkeys(["attn_q", "attn_k", "attn_v"], "attn_qkv")          # of a GPT
Entry = tuple[Array, float]                                      # sums (d_in,), and their divisor


def read_importance(path: str | Path, model: Decoder, layers: Iterable[str]) -> dict[str, Array]:
    """Read h, float32 (d_in,), of each of the linear layers of a model: path of the layer → h.

    Raises FileNotFoundError, or ValueError, naming the file, if it is damaged, belongs to another
    model, or lacks a layer."""
    path = Path(path)
    with open_regular(path) as f, naming(path):
        is_gguf = f.read(4) == b"GGUF"
        entries = {} if is_gguf else entries_of_dat(f)
    if is_gguf:
        entries = entries_of_gguf(path)
    with naming(path):
        check_blocks(entries, model.config.n_layers)
        names = {layer: name_of(layer, model) for layer in layers}
        missing = [name for name in dict.fromkeys(names.values()) if name not in entries]
        if missing:
            raise ValueError(f"it lacks {len(missing)} of {len(set(names.values()))} tensors, "
                             f"{brief(missing)}; to round them without importance, leave them out "
                             "of targets=, then quantize again by a scheme without it, with "
                             "skip_quantized=True")
        return {layer: mean_square(name, entries[name], model.get(layer).d_in)
                for layer, name in names.items()}


def name_of(layer: str, model: Decoder) -> str:
    """Return GGUF's name of a layer's weight: blocks.0.mlp.up → blk.0.ffn_up.weight."""
    _, block, role = layer.split(".", 2)
    name = TENSORS[role]
    if isinstance(model, GPT):
        name = STACKED.get(name, name)
    return f"blk.{block}.{name}.weight"


def check_blocks(entries: Iterable[str], n_layers: int) -> None:
    """ValueError if an entry belongs to a block that the model lacks."""
    for name in entries:
        block = re.match(r"blk\.(\d{1,9})\.", name)
        if block and int(block[1]) >= n_layers:
            raise ValueError(f"it has {brief(name)}, but the model has {n_layers} blocks; it is "
                             "another model's")


def mean_square(name: str, entry: Entry, d_in: int) -> Array:
    """Return h of an entry. ValueError unless it is d_in finite numbers ≥ 0."""
    sums, count = entry
    if sums.shape != (d_in,):
        raise ValueError(f"{name} has importances of shape {sums.shape}, the model's layer has "
                         f"{d_in} inputs; the file is another model's")
    if not 1 <= count < np.inf:
        raise ValueError(f"{name} has the count {count:g}, expected 1 or more; llama-imatrix saw "
                         "no tokens there, or the file is damaged")
    with np.errstate(invalid="ignore"):                          # of a NaN in a damaged file
        h = sums / np.float32(count)
    if not (np.isfinite(h) & (h >= 0)).all():
        raise ValueError(f"{name} has importances from {h.min():g} to {h.max():g}, expected finite "
                         "numbers ≥ 0")
    return h


def entries_of_gguf(path: Path) -> dict[str, Entry]:
    """Read all entries of the form of GGUF, by the names of their weights."""
    file = read_gguf(path)
    entries = {}
    with naming(path):
        for tensor in file:
            name = tensor.removesuffix(SUMS)
            if name == tensor:
                continue
            counts = name + COUNTS
            if counts not in file:
                raise ValueError(f"{brief(tensor)} is there, but not {brief(counts)}")
            for other in tensor, counts:
                if file.kind(other).name != "F32":
                    raise ValueError(f"{brief(other)} is {file.kind(other).name}, expected F32")
            if file.shape(counts) not in ((1,), (1, 1)):
                raise ValueError(f"{brief(counts)} has shape {file.shape(counts)}, expected one "
                                 "number; experts are not computed here")
            entries[name] = file[tensor].reshape(-1), file[counts].item()
        if not entries:
            raise ValueError(f"it has no tensor NAME{SUMS}, so it is no importance file")
    return entries


def entries_of_dat(f: BinaryIO) -> dict[str, Entry]:
    """Read all entries of the older form, by the names of their weights."""
    size = f.seek(0, os.SEEK_END)
    f.seek(0)
    n = integer(f, size)
    if not 1 <= n <= size // 12:
        raise ValueError(f"a file of {size:,} bytes should have {n:,} entries; it is no importance "
                         "file, or it is damaged")
    entries = {}
    for _ in range(n):
        name = octets(f, integer(f, size), size).decode()
        if name in entries:
            raise ValueError(f"the name {brief(name)} occurs twice")
        count = integer(f, size)
        sums = octets(f, 4 * integer(f, size), size)
        entries[name] = np.frombuffer(sums, "<f4"), count
    return entries


def integer(f: BinaryIO, size: int) -> int:
    """Read the next 4 bytes."""
    return int.from_bytes(octets(f, 4, size), "little", signed=True)


def octets(f: BinaryIO, n: int, size: int) -> bytes:
    """Read the next n bytes of a file of `size` bytes. ValueError if it ends before."""
    left = size - f.tell()
    if not 0 <= n <= left:
        raise ValueError(f"at byte {f.tell():,} it should have {n:,} bytes more, but it has "
                         f"{left:,}; it is cut off or damaged")
    return f.read(n)
