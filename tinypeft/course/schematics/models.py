"""Lessons 00 to 03 and 16: models, and what they keep in memory."""
from ...study.plot import Drawing
from .sheet import DATA, FROZEN, INK, PALE, SOFT, TRAINED, WARM, WHITE, Sheet

__all__ = ["autograd", "llama", "memory", "places", "transformer"]

STAGES = [(368, "layer norm", "(B, T, d)"), (296, "attention", "weights (B, H, T, T)"),
          (262, "output, d × d", "(B, T, d)"), (180, "layer norm", "(B, T, d)"),
          (146, "up, 4d × d", "(B, T, 4d)"), (112, "GELU", "(B, T, 4d)"),
          (78, "down, d × 4d", "(B, T, d)")]
STRIPES = "#CFE3F3", "#E8F1F9", "#B9D5EA", "#DCEBF7"     # four heads


def block(s):
    """A block of GPT-2, read upwards, in the left 210 × 440 pixels of a sheet."""
    s.text(40, 16, "(B, T, d)", size=11)
    s.arrow((40, 416), (40, 28))                         # the residual stream
    s.text(40, 428, "x  (B, T, d)", size=11)
    for start, top, end in ((404, 390, 262), (216, 202, 78)):
        s.arrow((40, start), (145, start), (145, top))
        s.arrow((145, end), (145, end - 22), (51, end - 22))
        s.circle(40, end - 22, "+", size=15)
    for y, words, _ in STAGES:
        s.box(80, y, 130, 22, words, FROZEN if "×" in words or "norm" in words else WHITE)
    for i, name in enumerate("QKV"):
        s.box(80 + 45 * i, 332, 40, 22, name, FROZEN)
        s.arrow((100 + 45 * i, 368), (100 + 45 * i, 354))
        s.arrow((100 + 45 * i, 332), (100 + 45 * i, 318))
    for y in (296, 146, 112, 180): s.arrow((145, y), (145, y - 12))


def places() -> Drawing:
    s = Sheet(640, 450)
    block(s)
    s.line((145, 174), (228, 174), (228, 66), (146, 66), colour=WARM)      # beside the MLP
    methods = [("Full fine-tuning", "every grey box, d² or 4d² numbers each", (210, 89)),
               ("Adapters", "a bottleneck d → m → d behind a layer", (145, 251)),
               ("Parallel adapters", "the same bottleneck, beside a layer", (228, 123)),
               ("LoRA, AdaLoRA, DyLoRA", "thin matrices, d × r and r × d, beside a weight",
                (210, 343)),
               ("Prefix tuning, P-tuning v2", "P keys and P values more, in every layer",
                (68, 307)),
               ("Prompt tuning, P-tuning", "P vectors more among the tokens, at the input",
                (98, 428)),
               ("QLoRA, PEQA", "grey boxes in few bits; LoRA, or the scales, on top", (80, 157))]
    for i, (name, words, place) in enumerate(methods, 1):
        y = 40 + 54 * (i - 1)
        for x, height in (place, (272, y)):
            s.circle(x, height, f"{i}", TRAINED, r=9, size=11)
        s.text(290, y, name, "start", bold=True)
        s.text(290, y + 18, words, "start", size=11)
    s.text(264, 424, "Grey arrows: what is computed, upwards.\n+ adds to the residual stream, "
                     "the line at the left.", "start", size=11)
    return Drawing(
        s.svg, "Every method has its own place in the block.",
        "A number on the block says where the method of that number puts what it trains; full "
        "fine-tuning trains all.",
        "One transformer block, read upwards, with numbered places: 1 full fine-tuning, all "
        "weights; 2 adapters, behind attention's output; 3 parallel adapters, beside the MLP; 4 "
        "LoRA, AdaLoRA, DyLoRA, beside a weight matrix; 5 prefix tuning and P-tuning v2, keys and "
        "values in attention; 6 prompt tuning and P-tuning, vectors at the input; 7 QLoRA and "
        "PEQA, weights stored in few bits.")


def autograd() -> Drawing:
    x = 3
    a = x * x
    values = {"x": (x, "leaf", 2 * x * 3), "a": (a, "a = x · x", 3), "b": (2 * a, "b = a + a", 1),
              "c": (3 * a, "c = b + a", 1)}
    s = Sheet(640, 236)
    place = dict(zip(values, (20, 194, 368, 542), strict=True))
    edges = [("x", "a", 115, x, x * 3), ("x", "a", 141, x, x * 3), ("a", "b", 115, 1, 1),
             ("a", "b", 141, 1, 1), ("b", "c", 128, 1, 1)]
    for start, end, y, slope, gradient in edges:
        left, right = place[start] + 78, place[end]
        s.arrow((left, y), (right, y))
        middle, up = (left + right) / 2, y < 130
        s.text(middle, y - 25 if up else y + 26, f"slope {slope}", size=11)
        s.text(middle, y - 10 if up else y + 11, f"+ {gradient}", size=11, colour=WARM)
    s.arrow((233, 98), (233, 44), (581, 44), (581, 98))
    s.text(407, 32, "slope 1", size=11)
    s.text(407, 56, "+ 1", size=11, colour=WARM)
    for name, (value, made, gradient) in values.items():
        s.box(place[name], 98, 78, 60, fill=DATA if name != "x" else "#CFE3F3")
        s.text(place[name] + 39, 112, name, bold=True)
        s.text(place[name] + 39, 129, f"value {value}", size=11)
        s.text(place[name] + 39, 146, f"grad {gradient}", size=11, colour=WARM)
        s.text(place[name] + 39, 172, made, size=11)
    s.text(320, 206, f"a has three uses: its gradient is 1 + 1 + 1 = 3.   "
                     f"x has two: {x} · 3 + {x} · 3 = {2 * x * 3}.", size=11)
    s.text(320, 222, "Black goes forward, from left to right; red goes backward.", size=11)
    return Drawing(
        s.svg, "Each use of a value is an edge, and each edge brings a part of its gradient: the "
        "slope times the gradient at its end.",
        "The parts are added before the gradient goes on.",
        f"A graph of x = {x}, a = x · x = {a}, b = a + a = {2 * a}, c = b + a = {3 * a}. Two edges "
        f"from x to a have the slope {x}; two from a to b, one from a to c and one from b to c "
        f"have the slope 1. The gradients are 1 for c, 1 for b, 3 for a and {2 * x * 3} for x.")


def memory() -> Drawing:
    kept = [("down", 4, True, "input, 4d wide"), ("GELU", 4, False, "slope, 4d wide"),
            ("up", 1, True, "input"), ("layer norm", 1, False, "x̂, and 1/σ"),
            ("+", 0, False, "nothing"), ("output", 1, True, "input"),
            ("attention", 3, False, "q, k, v"), ("Q, K, V", 1, True, "one input"),
            ("layer norm", 1, False, "x̂, and 1/σ")]
    units = sum(n for _, n, *_ in kept)
    s = Sheet(640, 330)
    s.text(190, 16, "Kept for the backward pass, in one block", bold=True)
    for i, (name, n, weight, words) in enumerate(kept):
        y = 38 + 26 * i
        s.text(96, y + 10, name, "end")
        s.cells(106, y, [[""] * n], 20, 20, [[TRAINED if weight else DATA] * n])
        s.text(112 + 20 * n, y + 10, words, "start", size=11)
    y = 38 + 26 * 6
    s.polygon([(272, y - 13), (272, y + 31), (316, y + 31)], DATA)
    s.text(324, y + 2, "weights,\nBHT(T + 64)/2", "start", size=11)
    s.text(190, 284, f"One square is B · T · d numbers; there are {units}.", size=11)
    s.key(60, 306, [(TRAINED, "for the layer's dW"), (DATA, "for dx")], 150)

    s.line((440, 10), (440, 320), colour="#CCC")
    s.text(540, 16, "The bill, in bytes", bold=True)
    bill = [("weight", 4, FROZEN), ("gradient", 4, TRAINED), ("Adam's m", 4, TRAINED),
            ("Adam's v", 4, TRAINED)]
    for i, (name, n, fill) in enumerate(bill):
        y = 58 + 26 * i
        s.text(530, y + 10, name, "end", size=11)
        s.cells(538, y, [[""] * n], 20, 20, [[fill] * n])
    s.text(540, 40, "for one weight, in float32", size=11)
    s.text(540, 174, "Grey: for all N weights.\nOrange: only for the n\nthat are trained.", size=11)
    s.text(540, 240, "4N + 12n")
    s.text(540, 262, "and the activations:")
    s.text(540, 284, f"4 · L · {units} BTd + …")
    return Drawing(
        s.svg, "The backward pass needs what the forward pass computed, and each layer keeps its "
        "share.",
        "Training fewer weights removes gradients and moments. It removes only a part of the "
        "activations.",
        "Left: the operations of a block and what each keeps, in units of B times T times d: layer "
        "norm 1, query, key and value together 1, attention 3 and its weights, output 1, addition "
        "nothing, layer norm 1, up 1, GELU 4, down 4. Right: four bytes each for weight, gradient "
        "and Adam's two moments.")


def transformer() -> Drawing:
    s = Sheet(640, 450)
    block(s)
    for y, _, shape in STAGES: s.text(218, y + 11, shape, "start", size=11)
    s.text(218, 343, "three d × d: (B, T, d)", "start", size=11)

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


def llama() -> Drawing:
    s = Sheet(640, 450)
    s.text(40, 16, "(B, T, d)", size=11)
    s.arrow((40, 416), (40, 28))                         # the residual stream
    s.text(40, 428, "x  (B, T, d)", size=11)
    for start, top, end in ((404, 392, 228), (186, 174, 70)):
        s.arrow((40, start), (165, start), (165, top))
        s.arrow((165, end), (165, end - 20), (51, end - 20))
        s.circle(40, end - 20, "+", size=15)
    for y, words in ((370, "RMS norm"), (262, "attention"), (228, "output"), (152, "RMS norm"),
                     (70, "down")):
        s.box(80, y, 170, 22, words, WHITE if words == "attention" else FROZEN)
    for x, w, name in ((80, 76, "Q"), (164, 39, "K"), (211, 39, "V")):
        s.box(x, 334, w, 22, name, FROZEN)
        s.arrow((x + w / 2, 370), (x + w / 2, 356))
        if name == "V":
            s.arrow((x + w / 2, 334), (x + w / 2, 284))
        else:
            s.arrow((x + w / 2, 334), (x + w / 2, 320))
            s.box(x, 298, w, 22, "rotate" if name == "Q" else "rot.", size=11)
            s.arrow((x + w / 2, 298), (x + w / 2, 284))
    s.arrow((165, 262), (165, 250))
    for x, name in ((80, "gate"), (175, "up")):
        s.box(x, 116, 75, 22, name, FROZEN)
        s.arrow((x + 37, 152), (x + 37, 138))
    s.circle(165, 104, "⊙", r=8)
    s.arrow((117, 116), (117, 104), (157, 104))
    s.arrow((212, 116), (212, 104), (173, 104))
    s.text(112, 104, "silu", "end", size=11)
    shapes = [(381, "no mean is subtracted, no bias"), (345, "Q: d × d; K, V: G·d/H × d"),
              (309, "q and k, by their positions"), (273, "H queries, G keys and values"),
              (127, "two of d_mlp × d"), (81, "d × d_mlp")]
    for y, words in shapes: s.text(260, y, words, "start", size=11)

    s.line((440, 10), (440, 440), colour="#CCC")
    s.text(540, 16, "Grouped heads", bold=True)
    tints = "#CFE3F3", "#F7E3C5", "#C4E6DB"
    for i in range(9):
        x, shared = 454 + 20 * i, i // 3
        s.box(x, 48, 16, 40, fill=tints[shared])
        s.line((x + 8, 88), (474 + 60 * shared + 8, 116))
    for i in range(3):
        s.box(474 + 60 * i, 116, 16, 40, fill=tints[i])
        s.box(474 + 60 * i, 162, 16, 40, fill=tints[i])
    s.text(540, 36, "H = 9 heads of queries", size=11)
    s.text(540, 214, "G = 3 heads of keys, of values", size=11)
    s.text(540, 234, "each of shape T × d/H", size=11)
    s.text(540, 276, "Rotary positions", bold=True)
    s.line((500, 376), (582, 376))
    s.line((500, 376), (500, 300))
    s.arrow((500, 376), (568, 348), colour=INK)
    s.arrow((500, 376), (526, 308), colour=WARM)
    s.text(574, 346, "t = 0", "start", size=11)
    s.text(532, 304, "t", "start", size=11, colour=WARM)
    s.line((542, 359), (539, 348), (532, 338), (522, 330), (517, 330), colour=SOFT, dashed=True)
    s.text(540, 396, "Numbers i and i + d/(2H) of a\nhead are a pair. It turns by an\n"
                     "angle that grows with t.", size=11)
    return Drawing(
        s.svg,
        "A Llama block differs from GPT-2's in its norm, its positions, its heads and its MLP.",
        "Drawn for SmolLM2-135M: d = 576, H = 9, G = 3, and d_mlp = 1536.",
        "Left, a block read upwards: RMS norm; query of d × d, key and value of G·d/H × d; query "
        "and key are rotated; attention; output; addition to the residual stream; RMS norm; gate "
        "and up, each d_mlp × d; silu of the gate times up; down, d × d_mlp; addition. Right: nine "
        "heads of queries, of which three each share one head of keys and values; and an arrow "
        "that is turned by an angle that grows with the position.")
