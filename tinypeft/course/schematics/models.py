"""Lessons 00 to 03 and 16: models, and what they keep in memory."""
from ...study.plot import Drawing
from .sheet import DATA, FROZEN, PALE, WHITE, Sheet

__all__ = ["transformer"]

STRIPES = "#CFE3F3", "#E8F1F9", "#B9D5EA", "#DCEBF7"     # four heads


def transformer() -> Drawing:
    s = Sheet(640, 450)
    s.text(40, 16, "(B, T, d)", size=11)
    s.arrow((40, 416), (40, 28))                         # the residual stream
    s.text(40, 428, "x  (B, T, d)", size=11)
    for start, top, end in ((404, 390, 262), (216, 202, 78)):
        s.arrow((40, start), (145, start), (145, top))
        s.arrow((145, end), (145, end - 22), (51, end - 22))
        s.circle(40, end - 22, "+", size=15)
    stages = [(368, "layer norm", "(B, T, d)"), (296, "attention", "weights (B, H, T, T)"),
              (262, "output, d × d", "(B, T, d)"), (180, "layer norm", "(B, T, d)"),
              (146, "up, 4d × d", "(B, T, 4d)"), (112, "GELU", "(B, T, 4d)"),
              (78, "down, d × 4d", "(B, T, d)")]
    for y, words, shape in stages:
        s.box(80, y, 130, 22, words, FROZEN if "×" in words or "norm" in words else WHITE)
        s.text(218, y + 11, shape, "start", size=11)
    for i, name in enumerate("QKV"):
        s.box(80 + 45 * i, 332, 40, 22, name, FROZEN)
        s.arrow((100 + 45 * i, 368), (100 + 45 * i, 354))
        s.arrow((100 + 45 * i, 332), (100 + 45 * i, 318))
    s.text(218, 343, "three d × d: (B, T, d)", "start", size=11)
    for y in (296, 146, 112, 180): s.arrow((145, y), (145, y - 12))

    s.line((352, 10), (352, 430), colour="#CCC")
    s.text(500, 16, "Split into H heads", bold=True)
    for i, fill in enumerate(STRIPES):
        s.box(380 + 24 * i, 40, 24, 64, fill=fill)
        s.box(514 + 30 * i, 40, 24, 64, fill=fill)
    s.arrow((482, 72), (508, 72))
    s.text(372, 72, "T", "end", size=11)
    s.text(428, 116, "d", size=11)
    s.text(571, 116, "H pieces, each T × d/H", size=11)
    s.text(500, 142, "(B, T, d) → (B, T, H, d/H) → (B, H, T, d/H)", size=11)
    s.text(500, 180, "The mask: T = 3 queries, S = 5 keys", bold=True)
    mask = [["" if j <= i + 2 else "−∞" for j in range(5)] for i in range(3)]
    fills = [[PALE if words else "#B9D5EA" for words in row] for row in mask]
    s.cells(440, 214, mask, 36, 24, fills)
    for j in range(5): s.text(458 + 36 * j, 204, f"{j}", size=11)
    for i in range(3): s.text(432, 226 + 24 * i, f"query {i}", "end", size=11)
    s.text(500, 300, "Blue is seen. The queries are the last T\n"
                     "of the S tokens: query 0 is token S − T.", size=11)
    s.text(500, 340, "One head", bold=True)
    s.matrix(382, 376, 14, 40, "", "T × d/H", DATA)
    s.text(410, 396, "·")
    s.matrix(424, 389, 60, 14, "", "d/H × S", DATA)
    s.arrow((490, 396), (512, 396))
    s.matrix(516, 376, 60, 40, "", "T × S", "#B9D5EA")
    s.text(588, 396, "·")
    s.matrix(602, 366, 14, 60, "", "S × d/H", DATA)
    for x, y, name in ((389, 366, "q"), (454, 379, "kᵀ"), (546, 366, "softmax"), (609, 356, "v")):
        s.text(x, y, name, size=11)
    return Drawing(
        s.svg, "A block adds twice to the residual stream: what attention gathers from earlier "
        "tokens, and what the MLP makes of each token.",
        "Grey boxes hold weights. B rows of T tokens have d numbers each, and H heads share them.",
        "Left, read upwards: x of shape (B, T, d), layer norm, query, key and value of d × d, "
        "attention with weights of (B, H, T, T), output of d × d, addition to the residual stream; "
        "layer norm, up to 4d, GELU, down to d, addition. Right: the d columns are split into H "
        "pieces; a mask of 3 queries and 5 keys, where query 0 sees the keys 0 to 2, query 1 the "
        "keys 0 to 3 and query 2 all; one head multiplies q by the transpose of k, applies softmax "
        "and multiplies by v.")
