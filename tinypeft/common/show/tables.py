"""The tables that a notebook shows of a model, a tensor, a quantized array and a run."""
import re
from collections.abc import Iterable, Sequence

import numpy as np

from ..hints import Array
from .markup import facts, table

__all__ = ["of_codes", "of_model", "of_run", "of_tensor"]


def of_model(title: str, arrays: Iterable[tuple], n_parameters: int, n_trained: int) -> str:
    """Write the arrays of a model as a table. Equal layers in several blocks share a row.

    arrays: (path, shape, how it is stored, whether it is trained, bytes) of each.
    """
    blocks, sizes = {}, {}                               # row → numbers of blocks, bytes
    for path, shape, stored, trained, nbytes in arrays:
        pattern, *number = re.split(r"\.(\d+)\.", path, maxsplit=1)
        if number:
            pattern = f"{pattern}.*.{number.pop()}"
        row = pattern, " × ".join(map(str, shape)), stored, "✔" if trained else ""
        blocks.setdefault(row, []).extend(map(int, number))
        sizes[row] = sizes.get(row, 0) + nbytes
    return table(
        [(row[0].replace("*", ranges(blocks[row])), *row[1:], f"{sizes[row]:,}") for row in sizes],
        head=("layer", "shape of each", "stored as", "trained", "bytes in all"),
        caption=title,
        numbers=(1, 4),
        foot=f"{n_parameters:,} parameters, {n_trained:,} of them trained; "
             f"{sum(sizes.values()):,} bytes")


def ranges(numbers):
    """Write [0, 1, 2, 5] as "0–2,5"."""
    runs = []
    for i in numbers:
        if runs and runs[-1][1] == i - 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ",".join(f"{a}" if a == b else f"{a}–{b}" for a, b in runs)


def of_tensor(title: str, data: Array, grad: Array | str | None) -> str:
    """Write an array and its gradient, or what is to be said of it; None leaves that out."""
    rows = {"shape": data.shape, "dtype": data.dtype, "data": excerpt(data)}
    if grad is not None:
        rows["grad"] = grad if isinstance(grad, str) else excerpt(grad)
    return facts(rows.items(), title)


def excerpt(array):
    """Write an array's first and last numbers."""
    return np.array2string(array, 100, precision=4, threshold=40, edgeitems=2)


def of_codes(about: dict[str, str], bits: int, codebook: Array | None, scales: Array | None,
             zeros: Array | int, offsets: Array | None, bits_per_weight: float) -> str:
    """Write what a quantized array is, and what its codes mean.

    about: name → fact. codebook: None for integers, which alone have zeros and offsets. scales,
    zeros, offsets: one per block; a single zero is an int.
    """
    levels = list(map(str, range(2**bits)))
    if codebook is not None:
        finite = codebook[np.isfinite(codebook)]
        levels = [f"{value:.3g}" for value in np.unique(finite)]     # ascending
    shown = ", ".join(levels)
    if len(levels) > 16:
        shown = f"{', '.join(levels[:3])} … {levels[-1]}"
    rows = about | {"levels": f"{len(levels)}: {shown}"}
    if scales is not None:
        rows["scale s"] = per_block(scales, ".4g")
    if codebook is None:
        rows["zero point z"] = str(zeros) if isinstance(zeros, int) else per_block(zeros, ".0f")
        if offsets is not None:
            rows["offset o"] = per_block(offsets, ".4g")
        if scales is not None:
            half_step = abs(scales).max() / 2
            rows["step s"] = f"rounding to nearest errs by at most {half_step:.4g}"
    rows["of float32"] = f"{bits_per_weight / 32:.1%}"
    return facts(rows.items())


def per_block(numbers, form):
    """Say from where to where the numbers of all blocks go."""
    return f"{numbers.min():{form}} … {numbers.max():{form}}, one per block"


def of_run(title: str, losses: Sequence[float], evals: Sequence[tuple[int, dict]]) -> str:
    """Write the metrics of each evaluation (step, metrics), and below them the losses as bars."""
    names = list(evals[0][1]) if evals else []
    rows = [[step, *(f"{metrics[name]:.4f}" for name in names)] for step, metrics in evals]
    head = ["after step", *(f"validation {name}" for name in names)] if rows else None
    foot = f"loss {bars(losses)}" if losses else None
    return table(rows, head, title, range(1 + len(names)), foot)


def bars(losses):
    """Draw losses as up to 40 characters, each for the mean of a stretch."""
    stretches = np.array_split(np.array(losses), min(len(losses), 40))
    means = np.array([stretch.mean() for stretch in stretches])
    share = (means - means.min()) / max(np.ptp(means), 1e-12)
    return "".join("▁▂▃▄▅▆▇█"[height] for height in (7 * share).round().astype(int))
