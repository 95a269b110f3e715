"""Schematics of the lessons: what goes where, and of which shape. Nothing in them is measured.

    SCHEMATICS["lora"]()             # a `Drawing`: the SVG, a caption, a description

    drawings.py    the words of those that are finished drawings; NAME.svg beside it is the drawing
    rounding.py    those that compute what they show: a grid, NF4, merging, choosing
    superblock.py  a superblock of Q4_K, which computes its bits, and how it is stored
    sheet.py       paper for these: boxes, cells, arrows, text
"""
from collections.abc import Callable
from functools import partial

from ...study.plot import Drawing
from .drawings import read_drawing
from .rounding import choosing, grid, merging, nf4, smoothing
from .superblock import stored, superblock

__all__ = ["SCHEMATICS"]

NAMES = ("map", "autograd", "stack", "road", "transformer", "memory", "adapters", "prompts",
         "prefix", "lora", "adalora", "dylora", "grid", "outliers", "smoothing", "gptq", "nf4",
         "merging", "straight_through", "choosing", "children", "superblock", "stored",
         "llama")
COMPUTED = {"grid": grid, "nf4": nf4, "merging": merging, "choosing": choosing,
            "smoothing": smoothing, "superblock": superblock, "stored": stored}
SCHEMATICS: dict[str, Callable[[], Drawing]] = {
    name: COMPUTED.get(name) or partial(read_drawing, name) for name in NAMES}
