"""Lessons 04 to 06: what is put in the path of a token, or among the tokens."""
from ...study.plot import Drawing
from .sheet import DATA, FROZEN, TRAINED, WHITE, Sheet

__all__ = ["adapters", "prefix", "prompts"]


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
        s.svg, "An adapter is a narrow network of width m. Only adapters are trained.",
        "In the path it reads what the layer computed; beside the path it reads what the layer "
        "reads.",
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


def prompts() -> Drawing:
    words = "def", "sum", "(", "a", ")", ":", "↵"
    P, T = 4, len(words)
    place = [96 + 34 * i + (16 if i >= P else 0) for i in range(P + T)]
    s = Sheet(640, 300)
    s.box(90, 88, place[-1] - 60, 34, "the frozen blocks", FROZEN)
    for i, x in enumerate(place):
        fill = TRAINED if i < P else FROZEN
        s.box(x, 178, 24, 64, fill=fill)
        s.text(x + 12, 158, str(i), size=11)
        s.arrow((x + 12, 148), (x + 12, 122))
        if i < P: continue
        s.text(x + 12, 254, words[i - P], size=11)
        s.arrow((x + 12, 88), (x + 12, 62))
        s.box(x, 46, 24, 16, fill=DATA)
    s.text(84, 158, "position", "end", size=11)
    s.text(84, 210, "d", "end", size=11)
    s.text(157, 54, "no logits here", size=11)
    s.brace(96, 262, 126, "P_e: P trained vectors\n(P, d)")
    s.brace(place[P], 262, place[-1] + 24 - place[P], "X_e: embeddings of T tokens\n(T, d)")
    right = place[-1] + 40
    s.text(right, 54, "logits (T, V)", "start", size=11)
    s.text(right, 105, "(P + T, d)", "start", size=11)
    s.text(right, 158, "a vector for each\nposition is added", "start", size=11)
    s.text(right, 210, "[P_e; X_e]\n(P + T, d)", "start", size=11)
    s.text(320, 18, "Vectors in front of the embedded text", bold=True)
    return Drawing(
        s.svg, "A trained prompt is P vectors in front of the embedded text, "
        "and the frozen model reads them as tokens.",
        "The text moves up by P positions. P · d numbers are trained.",
        "Eleven columns of d numbers: four trained vectors and the embeddings of seven tokens. "
        "They have the positions 0 to 10. All go through the frozen blocks; only the seven columns "
        "of the text have logits.")


def prefix() -> Drawing:
    P, T, w, h = 3, 4, 18, 20
    s = Sheet(640, 356)
    for left, title, inside in ((70, "A prompt, at the input", False),
                                (392, "A prefix, in every layer", True)):
        s.text(left + 67, 16, title, bold=True)
        for row, y in enumerate((36, 62, 88, 122)):
            given = row == 3
            fill = TRAINED if given != inside else WHITE if given else "#FCF1E0"
            if not (given and inside): s.cells(left, y, [[""] * P], w, h, [[fill] * P])
            s.cells(left + P * w + 8, y, [[""] * T], w, h, [[FROZEN if given else DATA] * T])
            s.text(left - 8, y + h / 2, "input" if given else f"layer {3 - row}", "end", size=11)
        s.brace(left + P * w + 8, 146, T * w, "T tokens")
    s.brace(70, 146, P * w, "(P, d)")
    s.text(214, 56, "pale: what the\nfrozen layers make\nof the prompt", "start", size=11)
    s.text(534, 46, "P_K and P_V:\nkeys and values,\n(P, d) each,\nin every layer", "start",
           size=11)

    s.line((20, 182), (620, 182), colour="#CCC")
    s.text(320, 200, "One query in one head: λ is the share of the prefix", bold=True)
    s.matrix(16, 256, 56, 14, "q", "1 × d/H", DATA, size=11)
    s.text(84, 263, "·")
    s.box(96, 238, 54, 50, "P_K", TRAINED, size=11)
    s.box(150, 238, 86, 50, "kᵀ", DATA, size=11)
    s.text(166, 300, "d/H × (P + T)", size=11)
    s.arrow((246, 263), (306, 263))
    s.text(276, 250, "softmax", size=11)
    s.box(312, 254, 54, 18, "λ", TRAINED)
    s.box(366, 254, 86, 18, "1 − λ", DATA)
    s.text(382, 284, "1 × (P + T)", size=11)
    s.text(466, 263, "·")
    s.box(480, 216, 50, 38, "P_V", TRAINED, size=11)
    s.box(480, 254, 50, 60, "v", DATA, size=11)
    s.text(505, 325, "(P + T) × d/H", size=11)
    s.arrow((538, 263), (564, 263))
    s.matrix(570, 256, 56, 14, "head", "1 × d/H", DATA, size=11)
    s.text(240, 340, "head = (1 − λ) · Attn(q, k, v) + λ · Attn(q, P_K, P_V)")
    return Drawing(
        s.svg, "A prompt is trained at the input alone; a prefix has keys and values of its own in "
        "every layer.",
        "In a head, the prefix takes the share λ of the softmax, and what the text says counts "
        "1 − λ.",
        "Top left: a trained prompt of three vectors beside four tokens at the input; in the "
        "layers above, its columns are what the frozen layers make of it. Top right: trained keys "
        "and values in each layer, nothing at the input. Below, one query q times the keys of "
        "prefix and text gives shares, λ for the prefix and 1 − λ for the text, which weigh their "
        "values.")
