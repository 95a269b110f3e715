"""One schematic for each lesson: what goes where, and of which shape. Nothing in them is measured.

    SCHEMATICS["lora"]()             # a `Drawing`: the SVG, a caption, a description

    sheet.py       paper: boxes, matrices, cells, arrows, text
    models.py      the map, a computation graph, a transformer block, its memory, a Llama block
    tokens.py      adapters, prompts, prefixes
    low_rank.py    LoRA, AdaLoRA, DyLoRA
    rounding.py    grids, outliers, GPTQ, NF4, straight-through, choosing
"""
from collections.abc import Callable

from ...study.plot import Drawing
from . import low_rank, models, rounding, tokens

__all__ = ["SCHEMATICS"]

SCHEMATICS: dict[str, Callable[[], Drawing]] = {
    "map": models.places, "autograd": models.autograd, "transformer": models.transformer,
    "memory": models.memory, "adapters": tokens.adapters, "prompts": tokens.prompts,
    "prefix": tokens.prefix, "lora": low_rank.lora, "adalora": low_rank.adalora,
    "dylora": low_rank.dylora, "grid": rounding.grid, "outliers": rounding.outliers,
    "gptq": rounding.gptq, "nf4": rounding.nf4,
    "straight_through": rounding.straight_through, "choosing": rounding.choosing,
    "llama": models.llama}
