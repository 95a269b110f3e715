"""Schematics of few bits, and of what to choose, which compute what they show."""
import numpy as np

from ...quant.codebooks import codebook
from ...study.memory import SHAPES
from ...study.plot import Drawing
from .sheet import DATA, FROZEN, INK, PALE, SOFT, TRAINED, WARM, Sheet

__all__ = ["choosing", "grid", "merging", "nf4", "smoothing"]

OUTLIER = "#F2B79E"                                      # as in the drawing of LLM.int8()
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


def smoothing() -> Drawing:
    largest_x, largest_w = np.array([2.0, 32]), np.array([2, 0.5])
    scale = np.sqrt(largest_x / largest_w)                                # α = ½
    s = Sheet(640, 292)

    def bars(x, base, heights, fill, name):
        for j, height in enumerate(heights):
            s.box(x + 44 * j, base - 2.5 * height, 28, 2.5 * height, fill=fill)
            s.text(x + 14 + 44 * j, base - 2.5 * height - 10, f"{height:g}", size=11)
        s.line((x - 8, base), (x + 80, base))
        s.text(x + 36, base + 14, name, size=11)

    rows = (("before", 128, "γ, β", largest_x, largest_w, "X", "W"),
            ("after", 250, "γ ÷ s, β ÷ s", largest_x / scale, largest_w * scale, "X ÷ s", "W × s"))
    for title, base, norm, of_x, of_w, x, w in rows:
        s.text(20, base - 30, title, "start", bold=True)
        s.box(80, base - 44, 104, 28, norm, FROZEN, round=6)
        s.arrow((184, base - 30), (230, base - 30))
        bars(250, base, of_x, OUTLIER if title == "before" else DATA, f"max|{x[0]}_j|{x[1:]}")
        s.text(354, base - 30, "·", size=15)
        bars(380, base, of_w, FROZEN, f"max|{w[0]}_j|{w[1:]}")
        s.arrow((476, base - 30), (522, base - 30))
        s.box(522, base - 44, 98, 28, "Y" if title == "before" else "the same Y", DATA, round=6)
    s.line((20, 164), (620, 164), colour="#CCC")
    s.text(320, 180, f"s = ({scale[0]:g}, {scale[1]:g}): column 2 of X is divided by {scale[1]:g}, "
           "and column 2 of W is multiplied by it.", size=11)
    s.text(132, 270, "the norm before the layer", size=11)
    return Drawing(
        s.svg, "SmoothQuant moves the size of a column of X into the same column of W.",
        "The norm before the layer divides by s, so nothing is computed in use that was not "
        "computed before. The bars are the largest magnitudes of two columns.",
        "Two rows, before and after. Before: a norm with γ and β; the columns of X reach 2 and 32, "
        "those of W 2 and 0.5. With s = 1 and 8, after: γ and β are divided by s; the columns of X "
        "reach 2 and 4, and those of W 2 and 4. The output Y is the same.")


def merging() -> Drawing:
    def place(v):
        return 60 + 110 * v

    def axis(y):
        s.line((40, y), (420, y))
        for v in range(4):
            s.line((place(v), y - 5), (place(v), y + 5))
            s.text(place(v), y + 18, str(v), size=11)

    def change_of(start, y, change, way):
        s.arrow((place(start), y - 16), (place(start + change), y - 16), colour=TRAINED)
        s.text(place(start) - 14, y - 16, f"+ {change}", "end", size=11)
        s.text(place(start + change) + 8, y - 16, f"{way}: {start + change:g}", "start", size=11)
        s.box(place(start + change) - 5, y - 5, 10, 10, fill=TRAINED)

    s = Sheet(640, 304)
    s.text(320, 16, "One weight of a QLoRA, ŵ = 2 on the grid of the integers, and two changes",
           bold=True)
    for y, change, said in ((62, 0.3, "way 3: rounded again: 2,\nnothing is left of the change"),
                            (122, 0.6, "way 3: rounded again: 3,\nthe change has become 1")):
        axis(y)
        s.box(place(2) - 5, y - 5, 10, 10, fill=DATA)
        change_of(2, y, change, "way 1")
        s.text(440, y, said, "start", size=11)
    s.line((20, 158), (620, 158), colour="#CCC")
    s.text(320, 176, "The same changes of w = 1.7, the weight before it was rounded to ŵ",
           bold=True)
    for y, change in ((214, 0.3), (274, 0.6)):
        axis(y)
        s.box(place(1.7) - 5, y - 5, 10, 10, fill=PALE)
        change_of(1.7, y, change, "way 2")
        s.text(440, y, f"way 1 has {2 + change}", "start", size=11)
    return Drawing(
        s.svg, "Half a step decides whether a change survives.",
        "Blue: the weight as it is stored; pale: before it was rounded. Orange: with the change "
        "that a LoRA has learned.",
        "Four number lines from 0 to 3. On two of them a weight stands at 2. The change 0.3 leads "
        "to 2.3, which is rounded to 2 again; the change 0.6 leads to 2.6, which is rounded to 3. "
        "On the other two the weight stands at 1.7, and the changes lead to 2 and 2.3.")


def choosing() -> Drawing:
    N, bits = SHAPES["llama-7b"].parameters, 4 + 8 / 64 + 32 / (64 * 256)
    size = lambda per_weight: f"{N * per_weight / 2**30:.1f} GiB"
    s = Sheet(640, 330)
    s.text(320, 16, f"What fits? Bytes per weight, and for N = {N / 1e9:.2f} billion weights",
           bold=True)
    rows = [("16 bytes", "weights, gradients, moments", size(16), "Full fine-tuning", "03"),
            ("2 bytes", "weights in 16 bits, and 16 bytes\nfor each trained number", size(2),
             "LoRA, adapters, prompts", "04–09"),
            (f"{bits / 8:.3f} bytes", "weights in 4 bits, and 16 bytes\nfor each trained number",
             size(bits / 8), "QLoRA", "13")]
    for i, (cost, words, total, method, lesson) in enumerate(rows):
        y = 36 + 84 * i
        s.box(20, y, 330, 56, round=6, fill=PALE)
        s.text(34, y + 15, f"Do {cost} per weight fit?", "start", bold=True)
        s.text(34, y + 30, words.split("\n")[0], "start", size=11)
        if "\n" in words: s.text(34, y + 43, words.split("\n")[1], "start", size=11)
        s.text(336, y + 15, total, "end")
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
        f"adapters, prompts. Do {bits / 8:.3f} bytes fit, {size(bits / 8)}? Yes: QLoRA. No: a "
        "smaller model or fewer bits.")
