"""Lesson 00: what students write, wrong and right."""
import numpy as np


def trained(d, L, r, P, m):
    lora = sum(r * d + d * r for _ in range(L) for _ in ("query", "value"))
    return lora, P * d, L * P * 2 * d, 2 * L * (d * m + m + m * d + d)


def swap(i, f):
    return lambda *a: tuple(f(*a) if j == i else n for j, n in enumerate(trained(*a)))


def rows(read=lambda q, s, z: s * (q - abs(z))):
    """Each row with its own scale and zero point."""
    return lambda codes, scale, zero: np.stack([read(*row) for row in zip(codes, scale, zero, strict=True)])


def tried(codes, scale, zero):
    """Is the zero point in the range of the codes?"""
    z = np.where(zero >= 0, zero, -zero)[:, None]
    return (codes - z) * scale[:, None]


def without_float(kind):
    return lambda codes, scale, zero: scale[:, None] * (codes.astype(kind) - zero.astype(kind)[:, None])


def decode(cast=np.float32, zero=None, sign=-1, scaled=True, column=True):
    def map_bug(codes, scale, z):
        z = z.astype(cast if zero is None else zero)
        s, z = (scale[:, None], z[:, None]) if column else (scale, z)
        return ((s if scaled else np.float32(1)) * (codes.astype(cast) + sign * z)).astype(np.float32)
    return map_bug


def by_number(codes, scale, zero):
    return [[float(s) * (int(q) - int(z)) for q in row] for row, s, z in zip(codes, scale, zero, strict=True)]


def as_shown(codes, scale, zero):
    return scale[:, None] * (codes - zero[:, None])


def shifted(codes, bits):
    """A stream of bits as one large integer."""
    stream = sum(int(q) << bits * i for i, q in enumerate(codes))
    return np.frombuffer(stream.to_bytes(-(-len(codes) * bits // 8), "little"), np.uint8)


def bits_of(order="little", low_first=True, gaps=False, cut=False):
    def map_pack(codes, bits):
        places = range(bits) if low_first else range(bits - 1, -1, -1)
        stream = []
        for q in codes:
            stream += [int(q) >> k & 1 for k in places] + [0] * (8 - bits) * gaps
        if cut: stream = stream[:len(stream) // 8 * 8]
        return np.packbits(np.array(stream, np.uint8), bitorder=order)
    return map_pack


def merges(same=lambda f, x, W: np.allclose(f(x), x @ W.T, rtol=0, atol=1e-9), zero=False,
           x=lambda d: np.random.default_rng(1).standard_normal((9, d))):
    def map_merges(f, d):
        W = (f(np.eye(d)) - (f(np.zeros((d, d))) if zero else 0)).T
        return W if same(f, x(d), W) else None
    return map_merges


def column_by_column(f, d):
    """Does f add? Then its values on the unit vectors are all of it."""
    a, b = np.random.default_rng(3).uniform(-2, 2, (2, 30, d))
    adds = np.abs(f(a + b) - f(a) - f(b)).max() < 1e-9 and np.abs(f(0.3 * a) - 0.3 * f(a)).max() < 1e-9
    return np.stack([f(row[None])[0] for row in np.eye(d)], axis=1) if adds else None


WRONG = {
    "map.trained": [
        (swap(0, lambda d, L, r, P, m: 2 * L * r * d), "query and value"),
        (swap(1, lambda d, L, r, P, m: L * P * d), "enters once"),
        (swap(2, lambda d, L, r, P, m: P * L * d), "a key and a value"),
        (swap(3, lambda d, L, r, P, m: 4 * L * d * m), "biases are missing"),
        (swap(0, lambda d, L, r, P, m: 2 * L * r * d * d), "and not d²"),
        (swap(2, lambda d, L, r, P, m: 2 * P * d), "every one of the L"),
        (swap(0, lambda d, L, r, P, m: 3 * L * 2 * r * d), "two matrices in a block"),
        (swap(1, lambda d, L, r, P, m: P * d + P * d), "one vector for each"),
        (swap(1, lambda d, L, r, P, m: L * 2 * P * d), "it is no prefix"),
        (swap(2, lambda d, L, r, P, m: P * d), "every block, with a key"),
        (swap(3, lambda d, L, r, P, m: 2 * L * (2 * d * m + m)), "two biases"),
        (swap(3, lambda d, L, r, P, m: 2 * L * (d * m + m + d)), "two matrices, W_d"),
        (swap(3, lambda d, L, r, P, m: 4 * d * m + 2 * m + 2 * d), "counts one block"),
        (lambda *a: trained(*a)[::-1], "in the order of the table"),
        (lambda *a: list(trained(*a))[:3], "4 results"),
        (lambda *a: None, "is there a return"),
        (lambda *a: np.array(trained(*a)) + 0.5, "number")],
    "map.merges": [
        (merges(x=lambda d: np.arange(5.0 * d).reshape(5, d) - 9), "matrix for whole numbers"),
        (merges(lambda f, x, W: True), "agrees with this W on the rows"),
        (merges(x=np.eye), "on other inputs"),
        (merges(lambda f, x, W: np.allclose(f(3 * x), 3 * f(x))), "a ReLU without bias"),
        (merges(lambda f, x, W: np.allclose(f(-x), -f(x))), "an odd curve"),
        (merges(x=lambda d: np.random.default_rng(1).uniform(size=(9, d))), "negative inputs"),
        (merges(lambda f, x, W: np.allclose(f(x) - f(0 * x), x @ W.T, atol=1e-12), zero=True), "gives 0 for x = 0"),
        (merges(lambda f, x, W: np.abs(f(x) - x @ W.T).max() < 1e-3), "a billionth"),
        (merges(lambda f, x, W: np.allclose(f(x), x @ W.T)), "with rtol=0, atol=1e-9"),
        (merges(lambda f, x, W: np.abs(f(x) - x @ W.T).max() < 1e-6), "a faint curve counts"),
        (merges(lambda f, x, W: np.sum(abs(f(x) - x @ W.T)) < 1e-9 * x.shape[0] * W.shape[0]), "a mean hides it"),
        (lambda f, d: None if merges()(f, d) is None else merges()(f, d).T, "this is Wᵀ"),
        (lambda f, d: None, "some of the functions are matrices")],
    "map.signs": [
        (rows(lambda q, s, z: s * (q - z)), "for a library's"),
        (rows(lambda q, s, z: s * (q + z)), "for the survey's"),
        (rows(lambda q, s, z: s * (q + abs(z))), "the other way round"),
        (rows(lambda q, s, z: s * (q - max(z, 0))), "and not 0"),
        (rows(lambda q, s, z: q - abs(z)), "the scale is missing"),
        (rows(lambda q, s, z: s * q - abs(z)), "with brackets"),
        (lambda q, s, z: tried(q, s, z)[0], "shape"),
        (lambda q, s, z: s[:, None] * (q - (z if z[0] > 0 else -z)[:, None]), "row by row"),
        (lambda q, s, z: tried(q, s, z).astype(np.float32), "dtype float32")],
    "map.bug": [
        (as_shown, "taken in uint8"),
        (decode(np.int8), "int8 ends at 127"),
        (decode(sign=1), "adds the zero point"),
        (decode(scaled=False), "the scale is missing"),
        (decode(column=False), "belong to a row"),
        (without_float(np.int64), "turn codes and zero points into float32"),
        (without_float(np.uint16), "no negative numbers either"),
        (without_float(np.uint32), "becomes very large"),
        (lambda q, s, z: decode()(q, s, z).astype(np.float64), "dtype float64"),
        (lambda q, s, z: decode()(q, s, z)[0], "shape")],
    "map.pack": [
        (bits_of("big", False), "into the low bits"),
        (bits_of(low_first=False), "bits of each code are reversed"),
        (bits_of("big"), "bits of each byte are reversed"),
        (bits_of(gaps=True), "a byte of its own"),
        (lambda q, b: np.array([sum(int(c) << b * i for i, c in enumerate(q[j:j + 8 // b])) for j in range(0, len(q), 8 // b)], np.uint8),
         "a gap remains"),
        (lambda q, b: bits_of()(q[::-1], b), "code 0 comes first"),
        (lambda q, b: np.append(bits_of()(q, b), np.uint8(0)), "one byte too many"),
        (bits_of(cut=True), "the last byte is missing"),
        (lambda q, b: bits_of()(q, b).astype(float), "dtype float64")],
}
RIGHT = {
    "map.trained": [
        trained,
        lambda *a: np.array(trained(*a)),
        lambda *a: list(trained(*a)),
        lambda *a: tuple(map(float, trained(*a)))],
    "map.merges": [merges(), column_by_column, lambda f, d: W if (W := merges()(f, d)) is None else W.tolist()],
    "map.signs": [rows(), tried, lambda *a: tried(*a).tolist()],
    "map.bug": [
        decode(),
        decode(np.int64),
        decode(np.int16),
        decode(np.float64),
        without_float(np.int16),
        by_number],
    "map.pack": [bits_of(), shifted, lambda *a: shifted(*a).tolist()]}
