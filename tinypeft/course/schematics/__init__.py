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
from .low_rank import adalora, dylora, lora
from .models import autograd, llama, memory, places, transformer
from .rounding import choosing, gptq, grid, nf4, outliers, straight_through
from .tokens import adapters, prefix, prompts

__all__ = ["SCHEMATICS"]

SCHEMATICS: dict[str, Callable[[], Drawing]] = {
    "map": places, "autograd": autograd, "transformer": transformer, "memory": memory,
    "adapters": adapters, "prompts": prompts, "prefix": prefix, "lora": lora, "adalora": adalora,
    "dylora": dylora, "grid": grid, "outliers": outliers, "gptq": gptq, "nf4": nf4,
    "straight_through": straight_through, "choosing": choosing, "llama": llama}
