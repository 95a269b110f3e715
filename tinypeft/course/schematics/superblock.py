"""The schematic of a superblock of Q4_K, which computes its bits and the levels that it shows."""
from ...study.plot import Drawing
from .sheet import DATA, FROZEN, INK, TRAINED, Sheet

__all__ = ["superblock"]


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
