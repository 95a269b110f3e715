"""Lessons 10 to 15: few bits, and what to choose."""
import numpy as np

from ...quant.codebooks import codebook
from ...study.memory import SHAPES
from ...study.plot import Drawing
from .sheet import BAD, DATA, FROZEN, GOOD, INK, PALE, SOFT, TRAINED, WARM, WHITE, Sheet

__all__ = ["choosing", "gptq", "grid", "nf4", "outliers", "straight_through"]

GREYS = "#E9F2F9", "#CFE3F3", "#B5D3EA", "#9BC3E0", "#82B3D6"            # larger scales are darker


def grid() -> Drawing:
    scale, zero, codes = 0.5, 2, 8
    place = lambda value: 140 + 110 * (value + 1)        # −1 stands at x = 140
    s = Sheet(640, 336)
    s.text(320, 16, "A grid of b = 3 bits: s = 0.5, z = 2", bold=True)
    s.line((60, 104), (600, 104))
    for q in range(codes):
        x = place(scale * (q - zero))
        s.box(x - 27.5, 96, 55, 16, fill="#E9F2F9" if q % 2 else DATA, edge=None)
        s.line((x, 96), (x, 112), colour=INK)
        s.text(x, 124, f"{scale * (q - zero):g}".replace("-", "−"), size=11)
        s.text(x, 142, f"{q}", bold=q == zero)
    s.text(104, 124, "x̂", "end")
    s.text(104, 142, "code q", "end", size=11)
    s.text(place(0), 160, "z: here is 0", size=11)
    for value in (-1.55, -0.63, 0.1, 0.42, 1.31, 1.9, 2.9):
        q = min(max(round(value / scale) + zero, 0), codes - 1)
        outside = abs(value - scale * (q - zero)) > scale / 2
        colour = WARM if outside else SOFT
        s.arrow((place(value), 56), (place(scale * (q - zero)), 92), colour=colour)
        s.text(place(value), 46, f"{value:g}".replace("-", "−"), size=11)
    s.text(10, 46, "x", "start")
    s.text(584, 74, "clip", size=11, colour=WARM)

    s.line((20, 182), (620, 182), colour="#CCC")
    rows, columns = 4, 8
    shades = {"per tensor": [[2] * columns] * rows,
              "per row": [[k] * columns for k in (3, 0, 4, 1)],
              "per group": [[k] * 4 + [m] * 4 for k, m in ((3, 1), (0, 0), (2, 4), (1, 0))]}
    for i, (name, pattern) in enumerate(shades.items()):
        x = 40 + 208 * i
        s.text(x + 72, 202, name, bold=True)
        fills = [[GREYS[k] for k in row] for row in pattern]
        s.cells(x, 218, [[""] * columns] * rows, 18, 18, fills)
        s.text(x + 72, 304, ("one scale", "4 scales", "8 scales")[i], size=11)
    s.text(320, 322, "The same shade has the same scale.", size=11)
    return Drawing(
        s.svg, "Every number in a cell becomes the grid point in its middle, and numbers beyond "
        "the ends are clipped.",
        "What shares a scale shares the length of its cells: a whole matrix, a row, or a group of "
        "a row.",
        "A line with eight cells of length 0.5, whose middles are −1 to 2.5, with the codes 0 to "
        "7; code 2 is 0. Seven numbers point to the middle of their cell; −1.55 and 2.9 are "
        "clipped to the ends. Below, three matrices of 4 × 8: one shade for all; a shade for each "
        "row; a shade for each half of a row.")


def outliers() -> Drawing:
    s = Sheet(640, 300)
    s.text(74, 16, "X", bold=True)
    s.cells(20, 40, [[""] * 9] * 6, 12, 12, [[BAD if j == 3 else DATA for j in range(9)]] * 6,
            edge="#BBB")
    s.text(74, 123, "T × d", size=11)
    s.text(146, 80, "·", size=15)
    s.text(196, 16, "Wᵀ", bold=True)
    s.cells(160, 28, [[""] * 6] * 9, 12, 12, [[BAD if i == 3 else FROZEN] * 6 for i in range(9)],
            edge="#BBB")
    s.text(196, 147, "d × d_out", size=11)
    s.text(262, 80, "=", size=15)

    s.text(400, 16, "int8: all other columns", bold=True)
    s.box(282, 44, 8, 72, fill=GOOD)
    s.text(286, 126, "s_x", size=11)
    s.box(300, 44, 96, 72, "q_x", DATA)
    s.text(408, 80, "·")
    s.box(420, 32, 72, 96, "q_wᵀ", FROZEN)
    s.box(420, 134, 72, 8, fill=GOOD)
    s.text(508, 138, "s_w", size=11)
    s.text(348, 126, "T × (d − 1)", size=11)
    s.text(508, 60, "a scale for each\nrow of X, and for\neach row of W", "start", size=11)

    s.text(262, 222, "+", size=15)
    s.text(400, 178, "16 bits: the outlier column", bold=True)
    s.box(336, 192, 12, 72, fill=BAD)
    s.text(342, 275, "T × 1", size=11)
    s.text(372, 228, "·")
    s.box(396, 222, 72, 12, fill=BAD)
    s.text(432, 245, "1 × d_out", size=11)
    s.text(508, 222, "a thin product,\nin floats", "start", size=11)
    s.text(112, 196, "One column of X is large in every\ntoken. With it, each row's scale\n"
                     "would be coarse for all the rest.", size=11)
    s.key(24, 262, [(BAD, "outlier")], 0)
    s.key(24, 284, [(DATA, "inputs"), (FROZEN, "weights"), (GOOD, "scales")], 76)
    return Drawing(
        s.svg, "The column with outliers is multiplied in 16 bits, and all the others in 8.",
        "A product of matrices is a sum over columns of X and rows of Wᵀ, so it can be split.",
        "X, T × d, with one column marked, times the transpose of W, d × d_out, with the same row "
        "marked, equals two parts. In int8: codes of X without the column, with a scale for each "
        "row, times codes of W, with a scale for each output. In 16 bits: the column, T × 1, times "
        "the row, 1 × d_out.")


def gptq() -> Drawing:
    d, j = 10, 4
    s = Sheet(640, 292)
    s.text(178, 16, "W, in the middle of the work", bold=True)
    fills = [[GOOD if k < j else BAD if k == j else DATA for k in range(d)]] * 6
    s.cells(48, 44, [[""] * d] * 6, 26, 20, fills)
    s.text(178, 34, "d columns", size=11)
    s.text(40, 104, "d_out", "end", size=11)
    s.brace(48, 170, 26 * j - 2, "rounded,\nthey stay")
    s.brace(48 + 26 * j + 2, 170, 22, "now:\nj")
    s.brace(50 + 26 * (j + 1), 170, 26 * (d - j - 1) - 2, "still floats: they take\nover the error")
    s.arrow((61 + 26 * j, 218), (61 + 26 * j, 240), (178 + 74, 240), (178 + 74, 218), colour=WARM)
    s.text(204, 254, "E · U_jk, for each k > j", size=11, colour=WARM)

    s.line((346, 10), (346, 282), colour="#CCC")
    s.text(492, 16, "One column", bold=True)
    steps = [("1", "round column j to the grid"), ("2", "E = (W_j − rounded) / U_jj"),
             ("3", "W_k ← W_k − E · U_jk, for k > j")]
    for i, (n, words) in enumerate(steps):
        s.circle(372, 46 + 28 * i, n, TRAINED, r=9, size=11)
        s.text(390, 46 + 28 * i, words, "start")
    s.text(436, 140, "U", bold=True)
    shades = [[WHITE if m < i else TRAINED if i == j and m == j else "#FBE2BF" if i == j else PALE
               for m in range(d)] for i in range(d)]
    s.cells(376, 154, [[""] * d] * d, 12, 12, shades, edge="#CCC")
    s.text(508, 180, "U is upper triangular,\nd × d, and belongs to\nthe inputs: H⁻¹ = Uᵀ U.\n"
                     "Row j says how much\neach later column\ntakes over.", "start", size=11)
    return Drawing(
        s.svg, "GPTQ rounds one column after the other, and the columns that are still floats make "
        "up for its error.",
        "Columns that are often large together with column j take over most.",
        "A matrix of ten columns: four are rounded, the fifth is being rounded, and its error E "
        "times U_jk is subtracted from the five that follow. At the right the three steps, and an "
        "upper triangular matrix U with row j marked.")


def nf4() -> Drawing:
    levels = codebook("nf4")
    left, right, base, high = 30, 350, 150, 108
    place = lambda c: (left + right) / 2 + c * (right - left) / 2
    # The levels are quantiles of N(0, 1), divided by the largest, Φ⁻¹(0.9677).
    density = lambda c: np.exp(-(1.848 * c) ** 2 / 2)
    s = Sheet(640, 320)
    s.text(190, 16, "16 levels under a normal density", bold=True)
    edges = [-1.0, *(levels[1:] + levels[:-1]) / 2, 1.0]
    for i, (a, b) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        top = [(place(c), base - high * density(c)) for c in np.linspace(a, b, 4)]
        fill = GREYS[3] if levels[i] == 0 else DATA if i % 2 else "#B9D5EA"
        s.polygon([(place(a), base), *top, (place(b), base)], fill, edge=None)
    for c in levels: s.line((place(c), base), (place(c), base + 8), colour=INK)
    for c in (-1, 0, 1): s.text(place(c), base + 20, f"{c}".replace("-", "−"), size=11)
    s.text(190, 188, "weight ÷ largest of its block", size=11)

    s.line((382, 10), (382, 200), colour="#CCC")
    s.text(514, 16, "A block of 64 weights", bold=True)
    s.cells(402, 40, [[""] * 32] * 2, 7, 14, [[DATA] * 32] * 2, edge="#BBB")
    s.text(514, 82, "64 codes of 4 bits", size=11)
    s.box(402, 100, 44, 22, "a", TRAINED)
    s.text(456, 111, "one scale, float32: 32 bits", "start", size=11)
    s.text(514, 146, "x̂ = a · level of the code")
    s.text(514, 174, f"4 + 32/64 = {4 + 32 / 64} bits per weight", size=11)

    s.line((20, 210), (620, 210), colour="#CCC")
    s.text(320, 228, "Double quantization: the scales of 256 blocks", bold=True)
    for i in range(16): s.box(24 + 15 * i, 246, 12, 18, fill=TRAINED)
    s.text(144, 278, "256 scales a", size=11)
    s.arrow((272, 255), (322, 255))
    s.text(297, 242, "− mean", size=11)
    for i in range(16): s.box(332 + 8 * i, 246, 6, 18, fill="#FBE2BF")
    s.text(396, 278, "256 codes of 8 bits", size=11)
    s.box(484, 244, 26, 22, "m", TRAINED)
    s.text(518, 248, "one scale of the\nscales: 32 bits", "start", size=11)
    bits = 4 + 8 / 64 + 32 / (64 * 256)
    s.text(320, 304, f"4 + 8/64 + 32/(64 · 256) = {bits:.3f} bits per weight", size=11)
    return Drawing(
        s.svg, "NF4 has its levels where normally distributed weights are, and a scale for each "
        "block of 64.",
        "Double quantization stores the scales in 8 bits. The mean o, one number for the whole "
        "matrix, is not counted.",
        "Left: a bell curve cut into 16 strips around the 16 levels of NF4 from −1 to 1; strips in "
        "the middle are narrow. Right: 64 codes of 4 bits and one scale, 4.5 bits per weight. "
        "Below: 256 scales less their mean become 256 codes of 8 bits with one scale m, 4.127 bits "
        "per weight.")


def straight_through() -> Drawing:
    s = Sheet(640, 300)
    left, unit, low = 70, 40, 220
    s.text(200, 16, "Forward: the staircase", bold=True)
    place = lambda u, v: (left + unit * (u + 0.75), low - unit * v)
    stairs = [(-0.75, 0), *((q + 0.5, q + up) for q in range(4) for up in (0, 1)), (5.75, 4)]
    s.line((left, low + 12), (left + 6.5 * unit, low + 12))
    s.line((left, low + 12), (left, 36))
    s.line(place(0, 0), place(4, 4), colour=WARM, dashed=True, width=2)
    s.line(*(place(u, v) for u, v in stairs), colour="#0072B2", width=2)
    s.text(left - 6, 40, "x̂", "end")
    s.text(left + 6.5 * unit + 12, low + 12, "x")
    for u, words in ((0, "lowest code"), (4, "highest code")):
        x, _ = place(u, 0)
        s.line((x, low + 12), (x, low + 17))
        s.text(x, low + 26, words, size=11)
    s.text(140, 268, "the staircase is what is computed", size=11, colour="#005A8F")
    s.text(140, 284, "the dashed line has the gradient that is used", size=11, colour=WARM)

    s.line((362, 10), (362, 290), colour="#CCC")
    s.text(500, 16, "Backward: the slope", bold=True)
    left, unit = 396, 34
    place = lambda u, v: (left + unit * (u + 0.75), v)
    for base, words in ((110, "true: 0, and no slope at the steps"),
                        (230, "straight-through: 1 inside, 0 outside")):
        s.line((left, base), (left + 6.5 * unit, base))
        s.line((left, base), (left, base - 64))
        s.text(left - 6, base - 48, "1", "end", size=11)
        s.text(left - 6, base, "0", "end", size=11)
        s.text(506, base + 18, words, size=11)
    s.line(place(-0.75, 110), place(5.75, 110), colour="#0072B2", width=2)
    for q in range(4):
        s.line(place(q + 0.5, 110), place(q + 0.5, 60), colour="#9BC3E0", dashed=True)
    s.line(place(-0.75, 230), place(0, 230), place(0, 182), place(4, 182), place(4, 230),
           place(5.75, 230), colour=WARM, width=2)
    s.text(500, 276, "With the true slope nothing would be trained.", size=11)
    return Drawing(
        s.svg, "Rounding is computed as it is, but its gradient pretends that it was the identity.",
        "Outside the grid the gradient is 0: a clipped number has no say.",
        "Left: a staircase of five steps, flat outside the lowest and the highest code, and a "
        "dashed diagonal through it. Right: the true slope is 0 everywhere, without a value at the "
        "steps; the straight-through slope is 1 between the lowest and the highest code and 0 "
        "outside.")


def choosing() -> Drawing:
    N, bits = SHAPES["llama-7b"].parameters, 4 + 8 / 64 + 32 / (64 * 256)
    size = lambda per_weight: f"{N * per_weight / 2**30:.1f} GiB"
    s = Sheet(640, 330)
    s.text(320, 16, f"What fits? Bytes per weight, and for N = {N / 1e9:.2f} billion weights",
           bold=True)
    rows = [("16 bytes", "weights, gradients, moments", size(16), "Full fine-tuning", "03"),
            ("2 bytes", "weights in 16 bits, and 16 bytes\nfor each trained number", size(2),
             "LoRA, adapters, prompts", "04–09"),
            (f"{bits / 8:.2f} bytes", "weights in 4 bits, and 16 bytes\nfor each trained number",
             size(bits / 8), "QLoRA", "13")]
    for i, (cost, words, total, method, lesson) in enumerate(rows):
        y = 36 + 84 * i
        s.box(20, y, 330, 56, round=6, fill=PALE)
        s.text(34, y + 18, f"Do {cost} per weight fit?", "start", bold=True)
        s.text(34, y + 34, words.split("\n")[0], "start", size=11)
        if "\n" in words: s.text(34, y + 48, words.split("\n")[1], "start", size=11)
        s.text(336, y + 18, total, "end")
        s.arrow((350, y + 28), (414, y + 28))
        s.text(380, y + 18, "yes", size=11)
        s.box(414, y, 206, 56, round=6, fill=TRAINED)
        s.text(517, y + 20, method, bold=True)
        s.text(517, y + 38, f"lessons {lesson}" if "–" in lesson else f"lesson {lesson}", size=11)
        s.arrow((185, y + 56), (185, y + 84))
        s.text(200, y + 70, "no", size=11)
    s.text(185, 300, "a smaller model, or fewer bits\n(lessons 10 to 14)", size=11)
    s.text(517, 292, "Activations come on top.\nLeave room for them, or\ncompute them twice.",
           size=11)
    return Drawing(
        s.svg, "First ask what fits; among the methods that fit, compare quality.",
        "Weights in 16 or 4 bits are frozen, and each trained number needs 16 bytes: itself, its "
        "gradient and Adam's two moments in float32.",
        f"Three questions below one another. Do 16 bytes per weight fit, {size(16)} for "
        f"{N / 1e9:.2f} billion? Yes: full fine-tuning. Do 2 bytes fit, {size(2)}? Yes: LoRA, "
        f"adapters, prompts. Do {bits / 8:.2f} bytes fit, {size(bits / 8)}? Yes: QLoRA. No: a "
        "smaller model or fewer bits.")
