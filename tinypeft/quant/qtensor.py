"""The quantized array: codes of a few bits, one scale per block, and a formula that decodes them.

    x̂ = s · (c[q] − z) + o                   c[q] = q itself when there is no codebook

    q   codes      N codes of b bits, packed                    x̂ has N elements, in C order
    s   scale      one per block: an array, or a QTensor (double quantization), or None for 1
    z   zero       one int for all, or one b-bit code per block, packed
    c   codebook   the name of a table in `codebooks.py`, or None
    o   offset     one float32 for all (the scales of double quantization), or one per block: an
                   array, or a QTensor; None for 0      (the weights of some types of GGUF files)

A block is `block_size` consecutive elements; the last may be short. Weights are (d_out, d_in) in C
order, so this rule covers every granularity: a block is N elements per tensor, d_in per output
channel (or per token, of activations), g per group. NF4's blocks of 64 run on from row to row.

Two signs of the zero point are in use. Libraries and this file write q = round(x/s) + z. The survey
(Zhao et al. 2023, §5.4) writes x_q = R(x/S) − Z and x̃ = S(x_q + Z): its Z is −z.
"""
from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ..common.hints import Array
from ..common.show import tables
from ..engine.nn import Packed
from ..files import check_fields
from . import decoding
from .codebooks import codebook
from .packing import packed_size, unpack

ARRAYS = "codes", "scale", "zero", "offset", "order"
CHECKED = 1 << 20                        # codes that `check_finite` unpacks at a time


@dataclass(frozen=True, eq=False, repr=False)
class QTensor(Packed):
    """A quantized array of shape `shape`. Raises ValueError if the parts do not fit together."""
    codes: Array                         # uint8 (⌈N·bits/8⌉,), or uint16 (N,), not packed, for 16
    bits: int
    shape: tuple[int, ...]
    block_size: int                      # elements that share a scale
    scale: Array | QTensor | None        # (n_blocks,), float16 or float32
    zero: int | Array = 0                # or uint8 (⌈n_blocks·bits/8⌉,)
    codebook: str | None = None
    offset: np.float32 | Array | QTensor | None = None
    order: Array | None = None           # int32 (d_in,): stored column j is column order[j] (GPTQ)

    def __post_init__(self):
        bits = self.bits
        if not is_whole(bits) or bits not in (*range(1, 9), 16):
            raise ValueError(f"QTensor: bits must be 1 … 8 or 16, got {bits!r}")
        if not all(is_whole(n) and n >= 0 for n in self.shape):
            raise ValueError(f"QTensor: shape must be whole numbers ≥ 0, got {self.shape}")
        if not is_whole(self.block_size) or not 1 <= self.block_size < 1 << 48:
            raise ValueError("QTensor: block_size must be a whole number from 1 to 2⁴⁸, "
                             f"got {self.block_size!r}")
        if self.codebook is not None and len(codebook(self.codebook)) != 2**bits:
            raise ValueError(f"QTensor: {self.codebook!r} has {len(codebook(self.codebook))} "
                             f"values, codes of {bits} bits have {2**bits}")
        if bits == 16:
            self._require("codes", np.uint16, self.size)
        else:
            self._require("codes", np.uint8, packed_size(self.size, bits))
        self._check_numbers("scale")
        if not isinstance(self.offset, np.floating):
            self._check_numbers("offset")
        if type(self.zero) is not int:
            self._require("zero", np.uint8, packed_size(self.n_blocks, bits))
        elif abs(self.zero) > 1 << 15:
            raise ValueError(f"QTensor: zero must be from −2¹⁵ to 2¹⁵, got {self.zero}")
        if self.order is not None:
            self._require("order", np.int32, self.shape[-1])

    def _check_numbers(self, name):
        """ValueError unless the part `name` is one number per block, or codes of numbers."""
        part = getattr(self, name)
        if part is None:
            return
        if not isinstance(part, QTensor):
            dtype = getattr(part, "dtype", None)
            if dtype not in (np.float16, np.float64):
                dtype = np.float32
            self._require(name, dtype, self.n_blocks)
            return
        if part.size != self.n_blocks:
            raise ValueError(f"QTensor: {self.n_blocks} blocks, but {part.size} {name}s")
        if isinstance(part.scale, QTensor) or isinstance(part.offset, QTensor):
            raise ValueError(f"QTensor: the scales of {name}s must be numbers, got codes")

    def _require(self, name, dtype, size):
        """ValueError unless the part `name` is an array of this dtype and size."""
        part = getattr(self, name)
        if not isinstance(part, np.ndarray) or part.shape != (size,) or part.dtype != dtype:
            actual = f"{getattr(part, 'dtype', part)!s:.80} {getattr(part, 'shape', '')}"
            raise ValueError(f"QTensor {self.shape} of {self.bits} bits: {name} must be "
                             f"{np.dtype(dtype)} ({size},), got {actual}")

    # -- size -----------------------------------------------------------------------------------
    @property
    def size(self) -> int:
        """N, the number of elements."""
        return math.prod(self.shape)

    @property
    def n_blocks(self) -> int:
        return -(-self.size // self.block_size)

    @property
    def nbytes(self) -> int:
        """All stored bytes. The codebook is a constant of the format and does not count."""
        return sum(array.nbytes for array in self.arrays().values())

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.size

    # -- values ---------------------------------------------------------------------------------
    def dequantize(self, out: Array | None = None) -> Array:
        """Return x̂, float32, of shape `shape`. out: a C-contiguous array of that kind to write
        into."""
        if out is None:
            out = np.empty(self.shape, np.float32)
        if out.shape != self.shape or out.dtype != np.float32 or not out.flags.c_contiguous:
            raise ValueError(f"dequantize: out must be C-contiguous float32 {self.shape}, "
                             f"got {out.dtype} {out.shape}")
        values = out if self.order is None else np.empty_like(out)
        decoding.decode(values.reshape(-1), self.look_up, self.block_size, self.scales(),
                        self.zeros(), self.offsets())
        if self.order is not None:
            out[..., self.order] = values
        return out

    def look_up(self, start: int, x: Array) -> None:
        """Write c[q] − z of the elements start … start + len(x), in stored order, into x, float32;
        z is 0 if each block has its own. start: a multiple of 8."""
        zero = self.zero if isinstance(self.zero, int) else 0
        if self.bits == 8 and self.codebook is None:       # a byte is a number: nothing to look up
            np.subtract(self.codes[start:start + len(x)], np.float32(zero), out=x)
        elif self.bits == 16:
            table = decoding.decoding_table(16, self.codebook, zero)
            np.take(table, self.codes[start:start + len(x)], out=x, mode="clip")
        else:
            decoding.expand(self.codes[start * self.bits // 8:], self.bits, x, self.codebook, zero,
                            wide=self.size >= decoding.SHARED)

    def scales(self) -> Array | None:
        """Return s of every block, float32 (n_blocks,), decoded if need be; None for no scale."""
        return decoded(self.scale)

    def offsets(self) -> Array | None:
        """Return o of every block, float32 (n_blocks,), or () for one o; None for no offset."""
        return decoded(self.offset)

    def zeros(self) -> Array | None:
        """Return z of every block, float32 (n_blocks,); None if `zero` is one int for all."""
        if isinstance(self.zero, int):
            return None
        return unpack(self.zero, self.bits, self.n_blocks).astype(np.float32)

    def unpack(self, start: int = 0, n: int | None = None) -> Array:
        """Return the codes of n elements from `start` (a multiple of 8) on, as stored: uint8 or
        uint16. By default, of all that follow."""
        if n is None:
            n = self.size - start
        if self.bits == 16:
            return self.codes[start:start + n]
        return unpack(self.codes[start * self.bits // 8:], self.bits, n)

    def integers(self) -> Array:
        """Return q − z, int16, of shape `shape`, in stored order: factors of an integer product."""
        if self.codebook is not None:
            raise ValueError(f"the codes of {self.codebook!r} name table entries, not integers")
        z = self.zero
        if not isinstance(z, int):
            z = np.repeat(self.zeros().astype(np.int16), self.block_size)[:self.size]
        q = self.unpack().astype(np.int16) - z
        return q.astype(np.int16, copy=False).reshape(self.shape)

    def take(self, rows: Array) -> QTensor:
        """Return rows (m,) of a matrix (n, d). ValueError unless there is one z, and the rows are
        whole blocks and bytes."""
        n, d = self.shape
        is_plain = isinstance(self.zero, int) and self.order is None
        has_blocks = self.scale is not None or self.offset is not None
        cuts_blocks = has_blocks and d % self.block_size
        if not is_plain or cuts_blocks or d * self.bits % 8:
            raise ValueError(f"take: a row of {self} is not whole blocks")

        def taken(part):
            if isinstance(part, QTensor):                # codes of scales: n rows, too
                matrix = replace(part, shape=(n, part.size // n))
                matrix = matrix.take(rows)
                return replace(matrix, shape=(matrix.size,))
            return part.reshape(n, -1)[rows].reshape(-1)
        parts = {}
        for name in "codes", "scale", "offset":
            part = getattr(self, name)
            if isinstance(part, (QTensor, np.ndarray)):
                parts[name] = taken(part)
        return replace(self, shape=(len(rows), d), **parts)

    def check_finite(self) -> None:
        """ValueError if a code, or the code of a scale, stands for infinity or NaN."""
        for part in self.scale, self.offset:
            if isinstance(part, QTensor):
                part.check_finite()
        if self.codebook is None:
            return
        finite = np.isfinite(codebook(self.codebook))
        if finite.all():
            return
        for start in range(0, self.size, CHECKED):
            codes = self.unpack(start, min(CHECKED, self.size - start))
            if not finite[codes].all():
                raise ValueError(f"a code of {self.codebook} stands for a number that is not "
                                 "finite")

    # -- saving ---------------------------------------------------------------------------------
    def arrays(self) -> dict[str, Array]:
        """Return the stored arrays by name; those of a quantized scale under "scale.codes", …"""
        arrays = {}
        for name, part in vars(self).items():
            if isinstance(part, QTensor):
                for inner, array in part.arrays().items():
                    arrays[f"{name}.{inner}"] = array
            elif isinstance(part, (np.ndarray, np.floating)):
                arrays[name] = np.asarray(part)
        return arrays

    def metadata(self) -> dict:
        """Return the parts that `arrays` does not hold, in types that JSON has."""
        metadata = {"bits": int(self.bits), "shape": [int(n) for n in self.shape],
                    "block_size": int(self.block_size), "codebook": self.codebook}
        if type(self.zero) is int:
            metadata["zero"] = self.zero
        for name, part in vars(self).items():
            if isinstance(part, QTensor):
                metadata[name] = part.metadata()
        return metadata

    @classmethod
    def from_arrays(cls, arrays: dict[str, Array], metadata: dict) -> QTensor:
        """Invert `arrays` and `metadata`, which may come from a file. KeyError for arrays that are
        missing or unknown, ValueError for parts that do not fit together."""
        check_fields(metadata, {"bits": int, "shape": list, "block_size": int,
                                "codebook": (str, None)},
                     {"zero": int, "scale": dict, "offset": dict})
        if "codes" not in arrays:
            raise KeyError("QTensor: there is no array codes")
        unknown = [name for name in arrays
                   if name in metadata or name.partition(".")[0] not in ARRAYS]
        if unknown:
            raise KeyError(f"QTensor: unknown arrays {sorted(unknown)}")
        parts = {"scale": None} | metadata
        parts |= {name: array for name, array in arrays.items() if "." not in name}
        for name in {"scale", "offset"} & metadata.keys():
            own = {key.removeprefix(f"{name}."): array for key, array in arrays.items()
                   if key.startswith(f"{name}.")}
            parts[name] = cls.from_arrays(own, metadata[name])
        offset = parts.get("offset")
        if isinstance(offset, np.ndarray) and offset.shape == ():
            if offset.dtype.kind != "f":
                raise ValueError(f"QTensor: offset must be a float, got {offset.dtype}")
            parts["offset"] = np.float32(offset)
        parts["shape"] = tuple(parts["shape"])
        q = cls(**parts)
        order = q.order
        if order is not None and not np.array_equal(np.sort(order), np.arange(order.size)):
            raise ValueError(f"QTensor: order must have each of 0 … {order.size - 1} once")
        return q

    def repacked(self, arrays: dict[str, Array]) -> QTensor:
        """Return a QTensor of the same layout around other arrays."""
        return self.from_arrays(arrays, self.metadata())

    # -- showing --------------------------------------------------------------------------------
    def _facts(self):
        scale = getattr(self.scale, "dtype", "none")
        if isinstance(self.scale, QTensor):
            scale = f"{self.scale.bits} bits"
        return {"shape": " × ".join(map(str, self.shape)),
                "codes": f"{self.bits} bits, {self.codebook or 'integers'}",
                "blocks": f"{self.n_blocks} of {self.block_size}",
                "scale": str(scale),
                "size": f"{self.nbytes:,} bytes, {self.bits_per_weight:.3f} bits/weight"}

    def __repr__(self):
        return f"QTensor({'; '.join(f'{name}: {fact}' for name, fact in self._facts().items())})"

    def _repr_html_(self):
        table = None if self.codebook is None else codebook(self.codebook)
        zeros = self.zero if isinstance(self.zero, int) else self.zeros()
        return tables.of_codes(self._facts(), self.bits, table, self.scales(), zeros,
                               self.offsets(), self.bits_per_weight)


def decoded(numbers: Array | QTensor | None) -> Array | None:
    """Return numbers in float32, decoded if they are codes."""
    if isinstance(numbers, QTensor):
        return numbers.dequantize().reshape(-1)
    return None if numbers is None else numbers.astype(np.float32, copy=False)


def is_whole(x: object) -> bool:
    return isinstance(x, (int, np.integer)) and not isinstance(x, bool)


def blocks_of(x: Array, block_size: int) -> Array:
    """Cut x into (n_blocks, block_size): a view, or a copy that ends in zeros if a block is
    short."""
    x = x.reshape(-1)
    if x.size % block_size:
        x = np.pad(x, (0, -x.size % block_size))
    return x.reshape(-1, block_size)
