"""Schematics of a superblock of Q4_K and of how it is stored, which compute what they show."""
from ...study.plot import Drawing
from .sheet import DATA, FROZEN, INK, TRAINED, WARM, WHITE, Sheet

__all__ = ["stored", "superblock"]


def superblock() -> Drawing:
    parts, width, bits, whole = 8, 32, 4, 6
    for_codes, for_scales = parts * width * bits, parts * 2 * whole
    total = for_codes + for_scales + 2 * 16
    s = Sheet(640, 330)
    s.text(320, 16, "A superblock of Q4_K: 256 weights of a row", bold=True)
    for j in range(parts):
        x = 24 + 75 * j
        s.box(x, 38, 68, 28, f"{width} codes", DATA, size=11)
        s.box(x, 76, 33, 20, f"sc{chr(0x2080 + j)}", TRAINED, size=11)
        s.box(x + 35, 76, 33, 20, f"mn{chr(0x2080 + j)}", "#FBE2BF", size=11)
    s.text(320, 112, f"8 sub-blocks of {width} codes of {bits} bits, each with two whole numbers "
           f"of {whole} bits, 0 … 63", size=11)
    s.box(226, 128, 40, 22, "d", FROZEN)
    s.box(376, 128, 40, 22, "e", FROZEN)
    s.text(214, 139, "float16, for all sc:", "end", size=11)
    s.text(428, 139, "float16, for all mn", "start", size=11)
    s.text(320, 172, f"256 · {bits} + 8 · ({whole} + {whole}) + 2 · 16 = {total} bits,  "
           f"{total / 256:g} for each weight")

    s.line((20, 192), (620, 192), colour="#CCC")
    s.text(320, 210, "The levels of a sub-block with 2 bits: d = 0.01, sc = 49, e = 0.015, mn = 24",
           bold=True)
    step, low = 0.01 * 49, 0.015 * 24

    def place(value):
        return 180 + 220 * (value + low)

    s.line((150, 262), (540, 262))
    for q in range(4):
        value = step * q - low
        s.line((place(value), 252), (place(value), 272), colour=INK)
        s.text(place(value), 284, f"{value:.2f}".replace("-", "−"), size=11)
        s.text(place(value), 302, f"q = {q}", size=11)
    for weight in (-0.3, 0.1, 0.5, 1.2):
        s.arrow((place(weight), 238), (place(weight), 259))
        s.text(place(weight), 230, f"{weight}".replace("-", "−"), size=11)
    s.text(130, 230, "weights x", "end", size=11)
    s.text(130, 284, "d sc q − e mn", "end", size=11)
    return Drawing(
        s.svg, "Scales and minima of a superblock are whole numbers, with one scale for each kind.",
        "The lowest level of a sub-block is −e mn, and neighbouring levels lie d sc apart.",
        f"Above, eight sub-blocks of 32 codes, each with a number sc and a number mn under it; d "
        f"serves all sc, and e all mn; {total} bits in all, {total / 256:g} for each weight. "
        "Below, a line with the levels −0.36, 0.13, 0.62 and 1.11, and arrows from the weights "
        "−0.3, 0.1, "
        "0.5 and 1.2.")


def stored() -> Drawing:
    x, step, d = 0.55, 0.037, 0.01
    sc = round(step / d)
    wrong, right = round(x / step), round(x / (d * sc))
    s = Sheet(640, 290)
    s.text(320, 16, "From weights to what a file holds", bold=True)
    boxes = (("weights x", DATA), ("s and m", WHITE), ("sc and mn", TRAINED),
             ("d·sc and e·mn", FROZEN))
    for i, (name, fill) in enumerate(boxes):
        s.box(20 + 156 * i, 52, 132, 34, name, fill)
        if i: s.arrow((156 * i - 4, 69), (20 + 156 * i, 69))
    for middle, words in ((242, "a search"), (398, "whole numbers, 0 … 63"),
                          (554, "what a reader computes")):
        s.text(middle, 40, words, size=11)
    s.box(488, 150, 132, 34, "codes q", DATA)
    s.arrow((554, 86), (554, 150))
    s.text(546, 116, "right", "end", size=11)
    s.arrow((242, 86), (242, 160), (488, 160), colour=WARM)
    s.text(360, 148, "the colleague's way", size=11, colour=WARM)
    s.arrow((86, 86), (86, 176), (488, 176))
    s.line((20, 204), (620, 204), colour="#CCC")
    s.text(320, 222, f"A sub-block with s = {step}, m = 0, in a superblock with d = {d}, and its "
           f"weight {x}", bold=True)
    s.text(320, 246, f"s ÷ d = {step / d:.1f} becomes sc = {sc}, so a reader has the step "
           f"{d * sc:.2f}.", size=11)
    s.text(320, 266, f"Code {wrong}, from {x} ÷ {step}, is read as {wrong * d * sc:.2f}. Code "
           f"{right}, from {x} ÷ {d * sc:.2f}, is read as {right * d * sc:.2f}.", size=11)
    return Drawing(
        s.svg, "Codes belong to the scales that the file holds, so these are rounded first.",
        "The file holds d and e, sc and mn, and the codes. It does not hold s and m.",
        "Four boxes in a row with arrows: weights x; s and m, by a search; sc and mn, whole "
        "numbers; d sc and e mn, what a reader computes. Codes q come from the weights and, by a "
        "grey arrow, from d sc and e mn; an orange arrow, the colleague's way, leads there from s "
        f"and m. Below: s = {step} becomes the step {d * sc:.2f}; code {wrong} is read as "
        f"{wrong * d * sc:.2f}, code {right} as {right * d * sc:.2f}, for the weight {x}.")
