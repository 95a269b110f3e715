"""Lessons 07 to 09: matrices of low rank beside a frozen one."""
from ...study.plot import Drawing
from .sheet import DATA, FROZEN, TRAINED, Sheet

__all__ = ["lora"]

MERGED = "#EDD7B4"                                       # grey and orange in one


def lora() -> Drawing:
    s = Sheet(640, 300)
    s.text(235, 16, "While it is trained", bold=True)
    s.box(12, 82, 36, 36, "x", DATA)
    s.text(30, 130, "(B, T, d)", size=11)
    s.arrow((48, 100), (110, 100))
    s.line((76, 100), (76, 222))
    s.arrow((76, 222), (110, 222))
    s.matrix(110, 40, 120, 120, "W₀", "d × d, frozen")
    s.matrix(110, 214, 120, 15, "A", "r × d", TRAINED, size=11)
    s.arrow((230, 222), (300, 222))
    s.text(265, 208, "(B, T, r)", size=11)
    s.matrix(300, 162, 15, 120, "B", "d × r", TRAINED, size=11)
    s.arrow((315, 222), (347, 222))
    s.circle(364, 222, "α/r", r=17, size=11)
    s.arrow((364, 205), (364, 111))
    s.arrow((230, 100), (353, 100))
    s.circle(364, 100, "+", size=15)
    s.arrow((375, 100), (404, 100))
    s.box(404, 82, 36, 36, "h", DATA)
    s.text(422, 130, "(B, T, d)", size=11)
    s.line((466, 10), (466, 290), colour="#CCC")
    s.text(556, 16, "Merged", bold=True)
    s.matrix(496, 40, 120, 120, "W", "d × d", MERGED)
    s.text(556, 196, "W = W₀ + (α/r) B A")
    s.text(556, 222, "one matrix again,\nno extra time", size=11)
    s.key(500, 266, [(FROZEN, "frozen")], 0)
    s.key(500, 284, [(TRAINED, "trained"), (DATA, "data")], 72)
    return Drawing(
        s.svg, "LoRA adds a detour of two thin matrices to a frozen matrix.",
        "Drawn in proportion for r = d/8: A and B together have 2dr numbers, a quarter of d².",
        "x of shape (B, T, d) goes through the frozen d × d matrix W₀, and beside it through A, "
        "r × d, and B, d × r. The second result is multiplied by α/r and added to the first. On "
        "the right the merged matrix, again d × d.")
