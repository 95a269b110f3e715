"""Lesson 00: what students write, wrong and right."""
import numpy as np


def half_up(x, b, convention):
    l, h = min(x.min(), 0), max(x.max(), 0)
    s = (h - l) / (2**b - 1)
    z = np.floor(-l / s + 0.5)
    return np.clip(np.floor(x / s + 0.5) + z, 0, 2**b - 1), s, z if convention == "library" else -z


def unclipped(x, b, convention):
    l, h = min(x.min(), 0), max(x.max(), 0)
    s = (h - l) / (2**b - 1)
    z = np.rint(-l / s)
    return np.rint(x / s) + z, s, z if convention == "library" else -z


def trained(d, L, r, P, m):
    lora = sum(r * d + d * r for _ in range(L) for _ in ("query", "value"))
    return lora, P * d, L * P * 2 * d, 2 * L * (d * m + m + m * d + d)


def swap(i, f):
    return lambda *a: tuple(f(*a) if j == i else n for j, n in enumerate(trained(*a)))


def quantize(x, b, convention, range_=lambda x: (min(x.min(), 0), max(x.max(), 0)), steps=lambda b: 2**b - 1, sign=None, code_sign=None):
    l, h = range_(x)
    s = (h - l) / steps(b)
    Z = np.rint(l / s)
    survey = convention == "survey"
    codes = np.clip(np.rint(x / s) - (Z if not code_sign else code_sign(Z, survey)), 0, 2**b - 1)
    return codes, s, (Z if survey else -Z) if sign is None else sign(Z)


def rounded_once(x, b, convention):
    l, h = min(x.min(), 0), max(x.max(), 0)
    s = (h - l) / (2**b - 1)
    z = np.rint(-l / s)
    return np.clip(np.rint((x - l) / s), 0, 2**b - 1), s, z if convention == "library" else -z


def crooked(x, b, convention):
    """The zero point is not rounded."""
    l, h = min(x.min(), 0), max(x.max(), 0)
    s = (h - l) / (2**b - 1)
    return np.clip(np.rint(x / s) - l / s, 0, 2**b - 1), s, -l / s if convention == "library" else l / s


def rounded(how):
    def map_signs(x, b, convention):
        l, h = min(x.min(), 0), max(x.max(), 0)
        s = (h - l) / (2**b - 1)
        z = how(-l / s)
        return np.clip(how(x / s) + z, 0, 2**b - 1), s, z if convention == "library" else -z
    return map_signs


def clipped_early(x, b, convention):
    codes, s, z = quantize(x, b, convention)
    return (codes, s, z) if convention == "library" else (np.clip(np.rint(x / s), 0, 2**b - 1) - z, s, z)


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
        (swap(2, lambda d, L, r, P, m: P * d), "every layer, with a key"),
        (swap(3, lambda d, L, r, P, m: 2 * L * (2 * d * m + m)), "two biases"),
        (swap(3, lambda d, L, r, P, m: 2 * L * (d * m + m + d)), "two matrices, W_d"),
        (swap(3, lambda d, L, r, P, m: 4 * d * m + 2 * m + 2 * d), "counts one block"),
        (lambda *a: trained(*a)[::-1], "in the order of the table"),
        (lambda *a: list(trained(*a))[:3], "4 results"),
        (lambda *a: None, "is there a return"),
        (lambda *a: np.array(trained(*a)) + 0.5, "number")],
    "map.merges": [
        (merges(lambda f, x, W: True), "agrees with this W on the rows"),
        (merges(x=np.eye), "on other inputs"),
        (merges(lambda f, x, W: np.allclose(f(3 * x), 3 * f(x))), "a ReLU without bias"),
        (merges(lambda f, x, W: np.allclose(f(-x), -f(x))), "an odd curve"),
        (merges(x=lambda d: np.random.default_rng(1).uniform(size=(9, d))), "negative inputs"),
        (merges(lambda f, x, W: np.allclose(f(x) - f(0 * x), x @ W.T, atol=1e-12), zero=True), "gives 0 for x = 0"),
        (merges(lambda f, x, W: np.abs(f(x) - x @ W.T).max() < 1e-3), "a billionth"),
        (lambda f, d: None if merges()(f, d) is None else merges()(f, d).T, "this is Wᵀ"),
        (lambda f, d: None, "some of the functions are matrices")],
    "map.signs": [
        (lambda x, b, c: quantize(x, b, c, sign=lambda Z: -Z), "libraries' sign in both"),
        (lambda x, b, c: quantize(x, b, c, code_sign=lambda Z, survey: -Z if survey else Z),
         "only the zero point's sign"),
        (lambda x, b, c: quantize(x, b, c, lambda x: (x.min(), x.max())), "must contain 0"),
        (lambda x, b, c: quantize(x, b, c, steps=lambda b: 2**b), "2ᵇ − 1 steps"),
        (unclipped, "not clipped"),
        (rounded_once, "each by itself"),
        (crooked, "round l/s"),
        (clipped_early, "clipped too early"),
        (lambda x, b, c: (quantize(x, b, c)[0].astype(np.float32), *quantize(x, b, c)[1:]), "dtype float32"),
        (rounded(np.floor), "np.floor rounds down"),
        (rounded(np.trunc), "cuts the digits off"),
        (lambda x, b, c: (lambda q, s, z: (s * (q - quantize(x, b, "library")[2]), s, z))(*quantize(x, b, c)),
         "decoded numbers"),
        (lambda x, b, c: (lambda q, s, z: (q, 1 / s, z))(*quantize(x, b, c)), "not its inverse"),
        (lambda x, b, c: (lambda q, s, z: (q, z, s))(*quantize(x, b, c)), "the order is"),
        (lambda x, b, c: (quantize(x, b, c)[0].astype(int), *quantize(x, b, c)[1:]), "as a float64 array"),
        (half_up, "half to the even"),
        (lambda x, b, c: quantize(x, b, c)[:2], "3 results"),
        (lambda x, b, c: (quantize(x, b, c)[0].astype(np.uint8), *quantize(x, b, c)[1:]), "dtype uint8")],
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
    "map.signs": [
        quantize,
        lambda *a: list(quantize(*a)),
        lambda *a: (quantize(*a)[0].tolist(), *quantize(*a)[1:])],
    "map.bug": [
        decode(),
        decode(np.int64),
        decode(np.int16),
        decode(np.float64),
        without_float(np.int16),
        by_number],
    "map.pack": [bits_of(), shifted, lambda *a: shifted(*a).tolist()]}
