"""Lessons 07 to 09: matrices of low rank beside a frozen one."""
from ...study.plot import Drawing
from .sheet import DATA, FROZEN, PALE, TRAINED, WARM, WHITE, Sheet

__all__ = ["adalora", "dylora", "lora"]

MERGED = "#EDD7B4"                                       # grey and orange in one
OFF = "#F3E9DC"                                          # a triplet whose λ is zero


def lora() -> Drawing:
    s = Sheet(640, 304)
    s.text(235, 16, "While it is trained", bold=True)
    s.box(12, 82, 36, 36, "x", DATA)
    s.text(34, 130, "(B, T, d)", size=11)
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
    s.text(424, 130, "(B, T, d)", size=11)
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


def adalora() -> Drawing:
    r, off = 6, (2, 4)
    s = Sheet(640, 262)
    s.text(190, 16, "W = W₀ + P Λ Q", bold=True)
    s.matrix(12, 60, 100, 100, "W₀", "d × d, frozen")
    s.text(128, 110, "+", size=15)
    fills = [OFF if i in off else TRAINED for i in range(r)]
    s.cells(146, 60, [[""] * r], 14, 100, [fills])
    s.text(188, 48, "P", bold=True)
    s.text(188, 171, "d × r", size=11)
    sign = lambda i: "0" if i in off else "λ"
    values = [[sign(i) if i == j else "" for j in range(r)] for i in range(r)]
    shades = [[WHITE if i != j else fills[i] for j in range(r)] for i in range(r)]
    s.cells(238, 60, values, 14, 14, shades, size=11)
    s.text(280, 48, "Λ", bold=True)
    s.text(280, 155, "r × r, diagonal", size=11)
    s.cells(330, 60, [[""]] * r, 100, 14, [[fill] for fill in fills])
    s.text(380, 48, "Q", bold=True)
    s.text(380, 155, "r × d", size=11)
    s.text(220, 200, "A triplet is one λ, one column of P and one row of Q.", size=11)
    s.text(220, 216, "Here two of six have λ = 0. They may come back.", size=11)
    s.key(128, 244, [(FROZEN, "frozen"), (TRAINED, "in use"), (OFF, "λ = 0")], 76)

    s.line((450, 10), (450, 252), colour="#CCC")
    s.text(546, 16, "The budget", bold=True)
    left, right, low, high = 486, 626, 170, 60
    t_i, t_end = 0.1, 0.6
    place = lambda t, share: (left + t * (right - left), low - share * (low - high))
    budget = lambda t: 0.5 + 0.5 * (1 - (t - t_i) / (t_end - t_i)) ** 3
    steps = [t_i + i * (t_end - t_i) / 12 for i in range(13)]
    s.line((left, 44), (left, low), (right, low))
    s.line(place(0, 1), *(place(t, budget(t)) for t in steps), place(1, 0.5), colour=WARM, width=2)
    for t, words in ((t_i, "t_i"), (t_end, "T − t_f"), (1, "T")):
        x, _ = place(t, 0)
        s.line((x, low), (x, low + 5))
        s.text(x, low + 14, words, size=11)
    s.text(left - 6, high, "b₀", "end", size=11)
    s.text(left - 6, (low + high) / 2, "b_T", "end", size=11)
    s.text(546, 204, "number of triplets\nin all matrices together", size=11)
    return Drawing(
        s.svg, "AdaLoRA takes away triplets with the lowest score until the budget is met.",
        "Each triplet can be set aside alone, because P has orthogonal columns and Q has "
        "orthogonal rows.",
        "Left: a frozen d × d matrix plus P, d × r, times a diagonal r × r matrix Λ, times Q, "
        "r × d; two of the six λ are zero, with their columns of P and rows of Q. Right: the "
        "number of triplets over the steps of training. It stays at b₀ until t_i, falls along a "
        "cubic curve to b_T at T − t_f, and stays there until T.")


def dylora() -> Drawing:
    R, shades = 8, ["#E08A2E", "#EDA85A", *["#F7C88A"] * 2, *["#FBE2BF"] * 4]
    s = Sheet(640, 296)
    for k, b in enumerate((1, 2, 4, 8)):
        x = 20 + 158 * k
        fills = [shades[i] if i < b else PALE for i in range(R)]
        s.text(x + 66, 16, f"b = {b}", bold=True)
        s.cells(x, 40, [[""] * R], 5, 80, [fills], edge=None)
        s.cells(x + 52, 40, [[""]] * R, 80, 5, [[fill] for fill in fills], edge=None)
        s.box(x, 40, 40, 80, fill="none")
        s.box(x + 52, 40, 80, 40, fill="none")
        s.text(x + 20, 131, f"d × {b}", size=11)
        s.text(x + 92, 91, f"{b} × d", size=11)
        s.text(x + 92, 112, "α/b · B A", size=11)
    s.text(320, 160, "Each training step draws one b, and uses the first b columns of B and the "
                     "first b rows of A.", size=11)
    s.line((20, 178), (620, 178), colour="#CCC")
    s.text(30, 232, "In how many steps\ndoes a row take part,\nif each b from 1 to 8\nis equally "
                    "likely?", "start", size=11)
    for i in range(R):
        height = 72 * (R - i) / R
        s.box(210 + 48 * i, 272 - height, 34, height, fill=shades[i])
        s.text(227 + 48 * i, 283, f"row {i + 1}", size=11)
        s.text(227 + 48 * i, 264 - height, f"{R - i}/{R}", size=11)
    return Drawing(
        s.svg, "One pair of matrices holds LoRAs of every rank, one inside the other.",
        "The first row takes part in every step and the last in one of R, so the first rows "
        "learn what matters most.",
        "Four drawings of B, d × 8, and A, 8 × d, for the ranks 1, 2, 4 and 8. The first b columns "
        "of B and rows of A are in colour. Below, bars: row 1 takes part in 8 of 8 steps, row 2 in "
        "7 of 8, and so on to row 8, in 1 of 8.")
