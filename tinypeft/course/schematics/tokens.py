"""Lessons 04 to 06: what is put in the path of a token, or among the tokens."""
from ...study.plot import Drawing
from .sheet import FROZEN, TRAINED, Sheet

__all__ = ["adapters"]


def adapters() -> Drawing:
    s = Sheet(640, 344)
    s.text(150, 16, "In the path (sequential)", bold=True)
    layer(s, 60, 226)
    s.line((120, 226), (120, 196))
    bottleneck(s, 120, 110, 196)
    s.arrow((120, 110), (120, 97))
    s.line((120, 210), (226, 210), (226, 86))            # the adapter's own skip connection
    s.arrow((226, 86), (131, 86))
    s.circle(120, 86, "+", size=15)
    s.arrow((120, 75), (120, 55))
    s.text(236, 150, "the adapter's\nown skip", "start", size=11)

    s.line((325, 10), (325, 300), colour="#CCC")
    s.text(480, 16, "Beside the path (parallel)", bold=True)
    layer(s, 370, 146)
    s.arrow((430, 146), (430, 97))
    s.line((430, 280), (570, 280), (570, 210))
    bottleneck(s, 570, 124, 210)
    s.line((570, 124), (570, 86))
    s.arrow((570, 86), (441, 86))
    s.circle(430, 86, "+", size=15)
    s.arrow((430, 75), (430, 55))

    for left, middle in ((20, 120), (346, 430)):         # the residual connection around both
        s.text(middle, 320, "x  (B, T, d)")
        s.line((middle, 308), (middle, 262 if middle == 120 else 182))
        s.line((middle, 294), (left, 294), (left, 44))
        s.arrow((left, 44), (middle - 11, 44))
        s.circle(middle, 44, "+", size=15)
    s.key(500, 332, [(FROZEN, "frozen"), (TRAINED, "trained")], 72)
    return Drawing(
        s.svg, "An adapter is a narrow network of width m, and it is the only part that is trained.",
        "In the path it reads what the layer computed; beside the path it reads what the layer "
        "reads. The matrices are m × d and d × m, so both have 2dm numbers.",
        "Two drawings, read upwards. Left: x goes through a frozen layer, then through an adapter "
        "that narrows d numbers to m, applies GELU and widens them to d again; the adapter has its "
        "own skip connection, and the residual connection goes around both. Right: the adapter "
        "stands beside the frozen layer, and both results are added.")


def layer(s, x, y):
    s.box(x, y, 120, 36, "attention or MLP", FROZEN)


def bottleneck(s, x, top, bottom):
    """An adapter around the vertical line at x, read upwards: d wide, m wide, d wide."""
    third = (bottom - top) / 3
    for wide, narrow, words in ((bottom, bottom - third, "m × d"), (top, top + third, "d × m")):
        s.polygon([(x - 46, wide), (x + 46, wide), (x + 10, narrow), (x - 10, narrow)], TRAINED)
        s.text(x - 32, (wide + 2 * narrow) / 3, words, "end", size=11)
    s.line((x, bottom - third), (x, top + third))
    s.text(x + 10, (top + bottom) / 2, "GELU", "start", size=11)
    s.text(x - 10, (top + bottom) / 2, "m wide", "end", size=11)
