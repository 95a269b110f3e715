"""Solutions of lesson 17's exercises, right and wrong."""
import numpy as np


# -- children.which --------------------------------------------------------------------------------
def by_columns(D, within=1e-4):
    n = D.shape[1]
    return any(np.abs(np.diff(D[:, i::r], axis=1)).max() <= within * np.abs(D).max() for r in range(1, n // 4 + 1) for i in [0]
               if all(np.ptp(D[:, i::r], axis=1).max() <= within * np.abs(D).max() for i in range(r)))


def repeats_with(D, r):
    return np.allclose(D[:, r:], D[:, :-r], rtol=0, atol=1e-4 * np.abs(D).max())


def in_circles(D, close=True, only=()):
    """Number after number: place (i, j) of a block has what place (0, j − i) has."""
    rows, columns = D.shape
    for b in only or range(2, min(D.shape) + 1):
        if rows % b or columns % b: continue
        block = lambda i, j, b=b: D[i * b:(i + 1) * b, j * b:(j + 1) * b]
        def goes(M, b=b):
            if not close: return all(np.ptp(np.diag(M, k)) <= 1e-4 * np.abs(D).max() for k in range(1 - b, b))
            return all(np.abs(np.roll(M[0], i) - M[i]).max() <= 1e-4 * np.abs(D).max() for i in range(b))
        if all(goes(block(i, j)) for i in range(rows // b) for j in range(columns // b)): return True
    return False


def exactly_circular(D, b):
    if D.shape[0] % b or D.shape[1] % b: return False
    blocks = D.reshape(D.shape[0] // b, b, D.shape[1] // b, b)
    return np.array_equal(np.roll(blocks, (1, 1), (1, 3)), blocks)


def angles(W):
    """Lengths of the rows, and cosines between them."""
    n = np.linalg.norm(W, axis=1)
    return n, W @ W.T / n / n[:, None]


def of_rank(M, tol=1e-4):
    s = np.linalg.svd(M)[1]
    return np.count_nonzero(s / s[0] > tol)


def ask(order="MCSOLH", **other):
    def children_which(W, W2):
        W, W2 = np.asarray(W, np.float64), np.asarray(W2, np.float64)
        D = W2 - W
        size = lambda a, b: all(np.allclose(x, y, rtol=1e-4, atol=1e-5 * np.abs(D).max()) for x, y in zip(a, b, strict=True))
        yes = {"M": lambda: by_columns(D), "C": lambda: in_circles(D), "S": lambda: np.count_nonzero(D) <= D.size / 10,
               "O": lambda: size(angles(W), angles(W2)), "L": lambda: 4 * of_rank(D) <= min(D.shape),
               "H": lambda: 4 * of_rank(D / W) <= min(D.shape)}
        yes |= {letter: (lambda f=f: f(W, W2, D)) for letter, f in other.items()}
        names = {"M": "MiSS", "C": "C3A", "S": "SHiRA", "O": "OFT", "L": "LoRA", "H": "HiRA"}
        return next((names[letter] for letter in order if yes[letter]()), "none")
    return children_which


# -- children.lengths ------------------------------------------------------------------------------
def length_of(W): return np.sqrt(np.sum(W * W, axis=1))
def all_but_long(W, r): return np.where(length_of(W) > np.sort(length_of(W))[-r - 1], 1.0, 1.9)
def shorter(W, r): return 1 - 0.4 * length_of(W).min() / length_of(W)


# -- children.bug ----------------------------------------------------------------------------------
def terms(W, r): return np.sum([s * np.outer(u, v) for u, s, v in list(zip(*(lambda U, S, V: (U.T, S, V))(
    *np.linalg.svd(W, full_matrices=False)), strict=True))[:r]], axis=0)


def tried(shapes=((7, 12), (12, 7)), ranks=(2, 4), scales=(0.5, 3.0), within=1e-6, make=None, say=("moves", "other", "PiSSA"),
          base_counts=True, start_counts=True, s_counts=True, s_again=True, of=lambda M: M):
    """Several weights, ranks and scales, and the worst decides."""
    def children_bug(start):
        rng, moved, other = np.random.default_rng(11), False, False
        for shape in shapes:
            for r in ranks:
                for s in scales:
                    W = make(shape) if make else rng.normal(0, 2, shape)
                    base, B, A = start(W, r, s)
                    moved |= np.abs(base + (s if s_counts else 1) * B @ A - W).max() > within * np.abs(W).max()
                    other |= np.abs(of((s if s_again else 1) * B @ A) - of(terms(W, r))).max() > within * np.abs(W).max()
        if moved and base_counts: return say[0]
        return say[1] if other and start_counts else say[2]
    return children_bug


# -- children.nearest ------------------------------------------------------------------------------
def along(mean=np.mean, way=1, each=True, close=True, first=False):
    """Place by place: the mean of all places of a block with the same j − i."""
    def children_nearest(D, b):
        out, i, j = np.zeros(D.shape), *np.indices(D.shape)
        k = (j - way * i) % b if close else j % b - i % b
        block = i // b * 1000 + j // b if each else 0 * i
        for one in np.unique(block):
            for place in np.unique(k):
                at = (block == one) & (k == place)
                if at.any(): out[at] = D[at][0] if first else mean(D[at])
        return out
    return children_nearest


def by_fourier(D, b):
    """What the transform of the moves leaves at frequency 0: a projection."""
    blocks = D.reshape(len(D) // b, b, -1, b)
    shears = np.stack([[np.roll(blocks[:, i], -i, axis=-1)] for i in range(b)])[:, 0].mean(0)
    return np.stack([np.roll(shears, i, axis=-1) for i in range(b)], 1).reshape(D.shape)


def sliced(D, b):
    """Move D's pieces of b × b in number, not in size, onto each other."""
    pieces = D.reshape(b, len(D) // b, b, D.shape[1] // b)
    return sum(np.roll(pieces, (k, k), (1, 3)) for k in range(b)).reshape(D.shape) / b


WRONG = {
    "children.which": [
        (ask("LMCSOH"), "low rank, too"),
        (ask("MCSLOH"), "a rotation of few inputs"),
        (ask(O=lambda W, W2, D: np.allclose(length_of(W), length_of(W2), 1e-5)), "equal lengths are not enough"),
        (ask(O=lambda W, W2, D: np.allclose(W.T @ W, W2.T @ W2, atol=1e-3 * np.abs(D).max())), "those of the columns"),
        (ask(O=lambda W, W2, D: np.abs(W2 @ W2.T - W @ W.T).max() < 1e-2 * np.abs(W @ W.T).max()), "a small change hardly moves"),
        (ask(O=lambda W, W2, D: np.allclose(W @ W.T, W2 @ W2.T)), "rounding, which is some"),
        (ask(C=lambda W, W2, D: in_circles(D, close=False)), "the circle closes"),
        (ask(C=lambda W, W2, D: any(in_circles(D[:b, :b], only=(b,)) for b in range(2, 37) if not (D.shape[0] % b or D.shape[1] % b))),
         "some of the blocks only"),
        (ask(C=lambda W, W2, D: any(in_circles(D[:b], only=(b,)) for b in range(2, 37) if not (D.shape[0] % b or D.shape[1] % b))),
         "you look at some"),
        (ask(C=lambda W, W2, D: any(exactly_circular(D, b) for b in range(2, min(D.shape) + 1))), "moved by one row"),
        (ask(C=lambda W, W2, D: in_circles(D, only=(4,))), "every divisor of both sides"),
        (ask(M=lambda W, W2, D: D.shape[1] % 6 == 0 and np.ptp(D.reshape(len(D), -1, 6), 1).max() < 1e-4 * D.max()), "whether it divides"),
        (ask(M=lambda W, W2, D: any(repeats_with(D, r) for r in (1, 2, 4, 8))), "no power of 2"),
        (ask(M=lambda W, W2, D: repeats_with(D, 4)), "up to rounding, column j + r"),
        (ask(M=lambda W, W2, D: any((D[:, r:] == D[:, :-r]).all() for r in range(1, 10))), "MiSS is not recognised: up to rounding"),
        (ask(M=lambda W, W2, D: any(repeats_with(D, r) for r in range(1, D.shape[1] // 4))), "ends one before it"),
        (ask(M=lambda W, W2, D: any(repeats_with(D, r) for r in range(1, D.shape[1] // 2 + 1))), "at most a quarter of the inputs"),
        (ask(M=lambda W, W2, D: any(repeats_with(D[:, :2 * r], r) for r in range(1, D.shape[1] // 4 + 1))), "two copies"),
        (ask(L=lambda W, W2, D: np.linalg.matrix_rank(D) < 7), "carries rounding"),
        (ask(L=lambda W, W2, D: np.linalg.matrix_rank(D.astype(np.float32)) < 7), "which has full rank"),
        (ask(L=lambda W, W2, D: np.linalg.matrix_rank(D) < 7, H=lambda W, W2, D: np.linalg.matrix_rank(D / W) < 7), "above 10⁻⁴"),
        (ask(H=lambda W, W2, D: np.linalg.matrix_rank(D / W) < 7), "since float32's rounding"),
        (ask(L=lambda W, W2, D: 4 * of_rank(D) <= max(D.shape)), "not of the larger one"),
        (ask(L=lambda W, W2, D: 2 * of_rank(D) <= min(D.shape)), "not a half of it"),
        (ask(L=lambda W, W2, D: of_rank(D) <= 8, H=lambda W, W2, D: of_rank(D / W) <= 8), "smaller side"),
        (ask(S=lambda W, W2, D: np.mean(abs(D) < 1e-2) >= 0.9), "exactly 0"),
        (ask(S=lambda W, W2, D: np.mean(D != 0) < 0.6), "half of the numbers"),
        (ask("MCSOL"), "do not multiply"),
        (ask(C=lambda W, W2, D: in_circles(D, only=tuple(range(2, 17)))), "every divisor of"),
        (ask(M=lambda W, W2, D: any(np.abs(D[:, r:] - D[:, :-r]).max() < 1e-6 for r in range(1, D.shape[1] // 4 + 1))), "allow for rounding"),
        (ask(S=lambda W, W2, D: np.mean(D == 0) > 0.95), "at least nine of ten"),
        (ask("CMSOLH"), "ask in its order"),
        (ask("MSCOLH"), "the first one in the table"),
        (ask("MCOSLH"), "two marks hold here"),
        (ask("MCSOHL"), "two marks hold"),
        (ask("MCSLH"), "OFT is not recognised"),
        (ask("MSOLH"), "C3A is not recognised"),
        (ask("MCOLH"), "SHiRA is not recognised"),
        (lambda W, W2: ask()(W, W2).lower(), "one of the seven words"),
        (ask(H=lambda W, W2, D: True), "asks for too little"),
        (lambda W, W2: None, "None")],
    "children.stretch": [
        (lambda W, g: (g[:, None], np.ones((1, W.shape[1]))), "added to W"),
        (lambda W, g: (1 - g[:, None], np.ones((1, W.shape[1]))), "the sign is wrong"),
        (lambda W, g: (g[:, None] - 1, W.mean(0)[None]), "keeps its direction only"),
        (lambda W, g: (g[:, None] - 1, np.zeros((1, W.shape[1]))), "nothing changes"),
        (lambda W, g: (1 / g[:, None] - 1, np.ones((1, W.shape[1]))), "not 1/g"),
        (lambda W, g: (np.sqrt(g)[:, None], np.ones((1, W.shape[1]))), "the goal is missed"),
        (lambda W, g: (g - 1, np.ones(W.shape[1])), "shape"),
        (lambda W, g: (np.ones((1, W.shape[1])), (g - 1)[:, None]), "exchanged"),
        (lambda W, g: np.outer(g - 1, np.ones(W.shape[1])), "2 results")],
    "children.lengths": [
        (lambda W, r: np.full(len(W), 2.0), "one factor for all"),
        (lambda W, r: np.ones(len(W)), "nothing changes"),
        (lambda W, r: 1 + length_of(W) / length_of(W).max(), "the long rows most"),
        (lambda W, r: np.r_[2.0, np.ones(len(W) - 1)], "one row has rank 1"),
        (lambda W, r: length_of(W).mean() / length_of(W), "all rows get the same length"),
        (lambda W, r: length_of(W) + length_of(W).min(), "these are the new lengths"),
        (lambda W, r: length_of(W).min() / length_of(W), "return g itself"),
        (lambda W, r: -shorter(W, r), "below 0.5 or above 2"),
        (lambda W, r: np.linspace(0.6, 1.9, len(W)), "look at the lengths of the rows"),
        (lambda W, r: np.linspace(0.6, 1.9, len(W)), "it leaves 0."),
        (lambda W, r: shorter(W, r)[:, None] * W, "not the rows themselves"),
        (lambda W, r: shorter(W, r)[None] + 0 * W[:, :1], "shape")],
    "children.bug": [
        (tried(scales=(1.0,)), "with s = 1"),
        (tried(ranks=(1,)), "at r = 1"),
        (tried(shapes=((8, 8),), make=lambda shape: np.diag(np.arange(8.0, 0, -1))), "its own decomposition"),
        (tried(ranks=(7,)), "nothing is left for the base"),
        (tried(make=lambda shape: np.arange(84.0).reshape(shape)), "of one of low rank"),
        (tried(make=np.ones), "an outer product"),
        (tried(of=np.linalg.norm), "equal norms"),
        (tried(of=lambda M: np.linalg.svd(M)[1]), "equal singular values"),
        (tried(s_counts=False, s_again=False), "you have left out"),
        (tried(s_again=False), "the layer computes with base + s B A"),
        (tried(within=2e-2), "the fourth digit on"),
        (tried(within=0), "not for equality"),
        (tried(within=1e-12), "the eighth digit"),
        (tried(s_counts=False), "left out s"),
        (tried(start_counts=False), "still not be PiSSA"),
        (tried(base_counts=False), "while the base is not"),
        (tried(say=("PiSSA", "other", "moves")), "words are exchanged"),
        (lambda start: "right", "one of the three words"),
        (lambda start: "moves" if start(np.eye(4), 2, 1.0)[0].shape else 0, "up to rounding, signs"),
        (lambda start: start(np.ones((3, 5)), 2, 2.0)[0] @ np.ones((3, 5)), "matmul")],
    "children.nearest": [
        (along(first=True), "the first row of each block"),
        (along(np.sum), "the sum along a diagonal"),
        (along(way=-1), "run the other way"),
        (along(each=False), "the mean over all blocks"),
        (along(close=False), "a circle closes"),
        (along(np.median), "least sum of squares"),
        (lambda D, b: D, "D itself"),
        (lambda D, b: np.repeat(D.reshape(len(D), -1, b).mean(2), b, axis=1), "those of a diagonal"),
        (lambda D, b: by_fourier(D, b) if len(D) == b * b else sliced(D, b), "you cut D into b × b"),
        (lambda D, b: np.kron(D.reshape(len(D) // b, b, -1, b).mean((1, 3)), np.ones((b, b))), "b numbers, not one"),
        (lambda D, b: along()(D, b)[:b], "shape")],
}
RIGHT = {
    "children.which": [ask(), lambda W, W2: np.str_(ask()(W, W2)).item()],
    "children.stretch": [lambda W, g: (-7 * (g - 1).reshape(-1, 1), np.full((1, W.shape[1]), -1 / 7)),
                         lambda W, g: [(g / 2 - 0.5)[:, np.newaxis], [[2.0] * W.shape[1]]]],
    "children.lengths": [all_but_long, shorter, lambda W, r: list(1 + length_of(W).min() / length_of(W))],
    "children.bug": [tried(), tried(shapes=((6, 6),), ranks=(3,), scales=(4.0,))],
    "children.nearest": [along(), by_fourier]}
