"""The quantized array: codes of a few bits, one scale per block, and one formula that turns them back into numbers.

    x̂ = s · (c[q] − z) + o                                            c[q] = q itself when there is no codebook

    q   codes      N codes of b bits, packed                          x̂ has N elements, in C order
    s   scale      one per block: an array, or itself a QTensor (double quantization), or None for 1
    z   zero       one int for all, or one b-bit code per block, packed
    c   codebook   the name of a table in `codebooks.py`, or None
    o   offset     one float32 for all, or None                        (only the scales of double quantization need it)

A block is `block_size` consecutive elements. Weights are (d_out, d_in) in C order, so one rule covers every
granularity: per tensor is block N, per output channel (and per token, of activations) is block d_in, per group is block
g, and NF4's blocks of 64 run on from row to row. The last block may be short.

Two signs of the zero point are in use. Libraries, and this file, write x̂ = s(q − z), q = round(x/s) + z. The survey
(Zhao et al. 2023, §5.4) writes x_q = R(x/S) − Z and x̃ = S(x_q + Z): its Z is −z.
"""
import math
from dataclasses import dataclass

import numpy as np

from ..markup import facts
from ..nn import Packed
from .codebooks import codebook
from .decoding import decode
from .packing import packed_size, unpack


@dataclass(frozen=True, eq=False, repr=False)
class QTensor(Packed):
    """A quantized array of shape `shape`, stored in `nbytes` bytes. See the formula at the top of the file.

    Raises ValueError if the parts do not fit together. 16-bit codes are not packed: `codes` is then uint16.
    """
    codes: np.ndarray                        # uint8 (⌈N·bits/8⌉,), or uint16 (N,) when bits = 16
    bits: int
    shape: tuple[int, ...]
    block_size: int
    scale: "np.ndarray | QTensor | None"     # (n_blocks,), float16 or float32
    zero: int | np.ndarray = 0               # or uint8 (⌈n_blocks·bits/8⌉,)
    codebook: str | None = None
    offset: np.float32 | None = None
    order: np.ndarray | None = None          # int32 (d_in,): stored column j is column order[j] of the array (GPTQ)

    def __post_init__(self):
        if self.bits not in (*range(1, 9), 16):
            raise ValueError(f"QTensor: bits must be 1 … 8 or 16, got {self.bits!r}")
        if self.bits == 16:
            self._require("codes", np.uint16, self.size)
        else:
            self._require("codes", np.uint8, packed_size(self.size, self.bits))
        if isinstance(self.scale, QTensor) and self.scale.size != self.n_blocks:
            raise ValueError(f"QTensor: {self.n_blocks} blocks, but scale is a QTensor of {self.scale.size}")
        if isinstance(self.scale, np.ndarray):
            self._require("scale", self.scale.dtype, self.n_blocks)
        if not isinstance(self.zero, int):
            self._require("zero", np.uint8, packed_size(self.n_blocks, self.bits))
        if self.order is not None:
            self._require("order", np.int32, self.shape[-1])

    def _require(self, name, dtype, size):
        part = getattr(self, name)
        if part.shape != (size,) or part.dtype != dtype:
            raise ValueError(f"QTensor of shape {self.shape}, {self.bits} bits, blocks of {self.block_size}: {name} "
                             f"must be {np.dtype(dtype)} ({size},), got {part.dtype} {part.shape}")

    # ---- size ---------------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """N, the number of elements."""
        return math.prod(self.shape)

    @property
    def n_blocks(self) -> int:
        return -(-self.size // self.block_size)

    @property
    def nbytes(self) -> int:
        """Every stored byte: codes, scales, zero points, offset, order. Not the codebook, a constant of the format."""
        return sum(getattr(part, "nbytes", 0) for part in (self.codes, self.scale, self.zero, self.offset, self.order))

    @property
    def bits_per_weight(self) -> float:
        """8 · nbytes / N."""
        return 8 * self.nbytes / self.size

    # ---- values -------------------------------------------------------------------------------------------------

    def dequantize(self, out: np.ndarray | None = None) -> np.ndarray:
        """x̂, float32, of the original shape. `out`: a C-contiguous float32 array of that shape to write into."""
        if out is None:
            out = np.empty(self.shape, np.float32)
        elif out.shape != self.shape or out.dtype != np.float32 or not out.flags.c_contiguous:
            raise ValueError(f"dequantize: out must be C-contiguous float32 {self.shape}, got {out.dtype} {out.shape}")
        values = out if self.order is None else np.empty_like(out)
        decode(self, values.reshape(-1))
        if self.order is not None:
            out[..., self.order] = values
        return out

    def scales(self) -> np.ndarray | None:
        """s of every block, float32 (n_blocks,), dequantized if they are quantized themselves; None for no scale."""
        if isinstance(self.scale, QTensor):
            return self.scale.dequantize().reshape(-1)
        return None if self.scale is None else self.scale.astype(np.float32, copy=False)

    def zeros(self) -> np.ndarray | None:
        """z of every block, float32 (n_blocks,); None when it is one int for all, `zero`."""
        return None if isinstance(self.zero, int) else unpack(self.zero, self.bits, self.n_blocks).astype(np.float32)

    def unpack(self, start: int = 0, n: int | None = None) -> np.ndarray:
        """The codes of elements start … start + n, flat, in stored order: uint8, or uint16 for 16 bits.

        `start` must be a multiple of 8 (a whole byte at every width)."""
        n = self.size - start if n is None else n
        if self.bits == 16:
            return self.codes[start:start + n]
        return unpack(self.codes[start * self.bits // 8:], self.bits, n)

    def integers(self) -> np.ndarray:
        """q − z as int16, of shape `shape`, in stored order: what an integer matrix product multiplies."""
        if self.codebook is not None:
            raise ValueError(f"the codes of {self.codebook!r} name entries of a table, not integers")
        zeros = self.zeros()
        zeros = self.zero if zeros is None else np.repeat(zeros.astype(np.int16), self.block_size)[:self.size]
        return (self.unpack().astype(np.int16) - zeros).astype(np.int16, copy=False).reshape(self.shape)

    # ---- saving -------------------------------------------------------------------------------------------------

    def arrays(self) -> dict[str, np.ndarray]:
        """The stored arrays by name; those of a quantized scale under "scale.". `metadata()` is the rest."""
        parts = {"codes": self.codes}
        if isinstance(self.scale, QTensor):
            parts |= {f"scale.{name}": array for name, array in self.scale.arrays().items()}
        elif self.scale is not None:
            parts["scale"] = self.scale
        if isinstance(self.zero, np.ndarray):
            parts["zero"] = self.zero
        if self.offset is not None:
            parts["offset"] = np.asarray(self.offset)
        if self.order is not None:
            parts["order"] = self.order
        return parts

    def metadata(self) -> dict:
        """What `arrays` does not hold, of types that JSON has."""
        meta = {"bits": self.bits, "shape": list(self.shape), "block_size": self.block_size, "codebook": self.codebook}
        if isinstance(self.zero, int):
            meta["zero"] = self.zero
        if isinstance(self.scale, QTensor):
            meta["scale"] = self.scale.metadata()
        return meta

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], metadata: dict) -> "QTensor":
        """The inverse of `arrays` and `metadata`. KeyError for a missing part, ValueError for parts that do not fit."""
        scale = arrays.get("scale")
        if "scale" in metadata:
            inner = {name.removeprefix("scale."): a for name, a in arrays.items() if name.startswith("scale.")}
            scale = cls.from_arrays(inner, metadata["scale"])
        offset = np.float32(arrays["offset"]) if "offset" in arrays else None
        zero = metadata["zero"] if "zero" in metadata else arrays["zero"]
        return cls(arrays["codes"], metadata["bits"], tuple(metadata["shape"]), metadata["block_size"], scale, zero,
                   metadata["codebook"], offset, arrays.get("order"))

    def repacked(self, arrays: dict[str, np.ndarray]) -> "QTensor":
        """The same layout around other arrays."""
        return self.from_arrays(arrays, self.metadata())

    # ---- showing ------------------------------------------------------------------------------------------------

    def _facts(self) -> dict[str, str]:
        doubly = isinstance(self.scale, QTensor)
        scale = "none" if self.scale is None else f"{self.scale.bits} bits" if doubly else str(self.scale.dtype)
        return {"shape": " × ".join(map(str, self.shape)), "codes": f"{self.bits} bits, {self.codebook or 'integers'}",
                "blocks": f"{self.n_blocks} of {self.block_size}", "scale": scale,
                "size": f"{self.nbytes:,} bytes, {self.bits_per_weight:.3f} bits/weight"}

    def __repr__(self):
        return f"QTensor({'; '.join(f'{name}: {fact}' for name, fact in self._facts().items())})"

    def _repr_html_(self):
        table = None if self.codebook is None else np.unique(codebook(self.codebook))          # ascending
        levels = [f"{v:.3g}" for v in table if np.isfinite(v)] if table is not None else range(2**self.bits)
        zeros, scales = self.zeros(), self.scales()
        zero = f"{self.zero}" if zeros is None else f"{zeros.min():.0f} … {zeros.max():.0f}, one per block"
        shown = {"levels": f"{len(levels)}: " + (", ".join(map(str, levels)) if len(levels) <= 16 else
                                                 f"{levels[0]}, {levels[1]}, {levels[2]} … {levels[-1]}")}
        if scales is not None: shown["scale s"] = f"{scales.min():.4g} … {scales.max():.4g}, one per block"
        if self.codebook is None:
            shown["zero point z"] = zero
            if scales is not None: shown["step s"] = f"rounding to nearest errs by at most {abs(scales).max() / 2:.4g}"
        return facts([*self._facts().items(), *shown.items(), ("of float32", f"{self.bits_per_weight / 32:.1%}")])


def blocks_of(x: np.ndarray, block_size: int) -> np.ndarray:
    """x in blocks, (n_blocks, block_size): a view, or a copy with zeros at the end when the last block is short."""
    x = x.reshape(-1)
    return (x if x.size % block_size == 0 else np.pad(x, (0, -x.size % block_size))).reshape(-1, block_size)
