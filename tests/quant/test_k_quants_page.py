"""K_QUANTS.md: its function, its bytes and its numbers are those of llama.cpp's own package."""
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import tinypeft as tp
from tests.quant.test_k_quants import rows
from tinypeft.interop.gguf_bytes import file_bytes
from tinypeft.quant.k_quants import LINE_TRIALS, WEIGHED_TRIALS, fit_line, six_bits, steps
from tinypeft.study import k_quants

PAGE = (Path(tp.__file__).parent / "quant" / "K_QUANTS.md").read_text("utf-8")
FUNCTION, = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "def decode" in block]
BLOCK = bytes.fromhex(re.search(r"```text\n(.*?)```", PAGE, re.S).group(1))
F = np.float32


def decode(octets):
    """What the page's own function makes of the bytes of one superblock."""
    names = {}
    exec(FUNCTION, names)
    return np.float32(names["decode"](octets))


def table(heading):
    """The rows of the table that begins with this cell, as lists of numbers and texts."""
    rows = PAGE.partition(f"| {heading} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip("` ") for cell in row.strip("|").split("|")] for row in rows if row.startswith("|")]


def test_the_page_decodes_a_superblock_in_at_most_25_lines():
    assert len(BLOCK) == 144 and len(decode(BLOCK)) == 256
    body = FUNCTION[FUNCTION.index("def decode"):].strip().splitlines()
    assert len(body) <= 25 and "import tinypeft" not in FUNCTION and "numpy" not in FUNCTION


def test_the_pages_numbers_are_those_of_gguf_bit_exact(rng):
    """The worked example; and the page's function on blocks of other numbers, and on bytes that nobody wrote."""
    gguf = pytest.importorskip("gguf")
    theirs = lambda octets: gguf.quants.dequantize(np.frombuffer(octets, np.uint8)[None], gguf.GGMLQuantizationType.Q4_K)[0]
    numbers = theirs(BLOCK)
    assert np.array_equal(decode(BLOCK), numbers)
    shown = table("weight")
    assert len(shown) == 6
    for weight, j, byte, q, decoded, original in shown:
        assert numbers[int(weight)] == np.float32(decoded) and int(weight) // 32 == int(j)
        assert f"{BLOCK[16 + int(weight) % 32]:02x}" == byte and int(q) == int(byte, 16) >> 4 * int(j) & 15
        assert abs(float(original) - float(decoded)) < 0.02
    levels = numbers.reshape(8, 32)
    for j, _, _, step, minimum, _ in table("j"):
        s, m, own = float(step), float(minimum), levels[int(j)]
        assert np.abs(own - s * np.rint((own + m) / s) + m).max() < 2e-5
    written = file_bytes(tp.GGUF("Q4_K").quantize(rng.standard_normal((20, 256))))
    at_random = rng.integers(0, 256, (20, 144), dtype=np.uint8)
    at_random[:, [1, 3]] &= 0x3F                                                    # no scale is infinite or NaN
    for octets in [*written, *at_random]:
        assert np.array_equal(decode(octets.tobytes()), theirs(octets.tobytes()))


def test_the_example_is_what_the_package_writes():
    assert file_bytes(tp.GGUF("Q4_K").quantize(k_quants.superblock())).tobytes() == BLOCK


def test_the_search_that_is_drawn_is_the_one_that_is_computed():
    """Its least error is that of `fit_line`, up to float32; and the picture says what moving the origin is worth."""
    for x in k_quants.superblock().reshape(8, 32):
        errors, kept = k_quants.search(x, moving=True)
        w = np.float32(np.sqrt(np.mean(x * x)) + np.abs(x))
        both = []
        for trials in (), steps(*LINE_TRIALS[4], 15):
            s, m, q = fit_line(x[:, None], w[:, None], 15, trials)
            both.append((w * np.square(s * q[:, 0] - m - x)).sum())
        assert abs(both[1] / both[0] - errors.min()) < 1e-4 and errors[kept][-1] == errors.min()
    shown = k_quants.superblock().reshape(8, 32)[k_quants.SEARCHED]
    assert k_quants.search(shown, moving=True)[0].min() < 0.9 * k_quants.search(shown, moving=False)[0].min()


# -- the encoder, written from the page ------------------------------------------------------------
def total(terms):
    """Add numbers in their order, in float32."""
    return np.cumsum(terms, dtype=np.float32)[-1]


def line(x, w, most, trials):
    """The page's search for the s, m and q of a sub-block x, with weights w of its errors."""
    low, high = min(x.min(), F(0)), x.max()
    if high == low: return F(0), -low, np.zeros(32, np.float32)
    rounded = lambda n: np.clip(np.rint(n / (high - low) * (x - low)), 0, most)
    s, m, q = 1 / (F(most) / (high - low)), -low, rounded(F(most))
    least = total(w * (s * q - m - x)**2)
    for n in trials:
        p = rounded(n)
        a, b, c, d, e = total(w), total(w * p), total(w * p * p), total(w * p * x), total(w * x)
        D = a * c - b * b
        if D <= 0: continue
        slope, minimum = (a * d - e * b) / D, (b * d - c * e) / D
        if minimum < 0: slope, minimum = d / c, F(0)
        error = total(w * (slope * p - minimum - x)**2)
        if error < least: s, m, q, least, low = slope, minimum, p, error, -minimum
    return s, m, q


def scales(s, W):
    """The page's d and sc for the eight s_j; W: the sub-blocks' sums of w, or None without importance."""
    top = s.max()
    if top <= 0 or W is not None and top < 1e-15: return F(0), np.zeros(8, np.float32)
    codes = lambda n: np.minimum(np.rint(n / top * s), 63)
    if W is None: return top / F(63), codes(F(63))
    trials = [F(0.1) * F(i) + F(63) for i in (0, -4, -3, -2, -1, 1, 2, 3, 4)]
    sc = codes(min(trials, key=lambda n: total(W * (s - 1 / (n / top) * codes(n))**2)))
    P, Q = total(W * s * sc), total(W * sc * sc)
    for j in 5 * list(range(8)):
        p, q = P - W[j] * s[j] * sc[j], Q - W[j] * sc[j] * sc[j]
        if p <= 0 or q <= 0: continue
        code = min(np.rint(s[j] * q / p), F(63))
        p, q = p + W[j] * s[j] * code, q + W[j] * code * code
        if code != sc[j] and p * p * Q > P * P * q: P, Q, sc[j] = p, q, code
    return (P / Q if Q > 0 else F(0)), sc


def encode_45(x, bits, h):
    """The bytes of a superblock x of Q4_K or Q5_K, as the page says."""
    most, x = 2**bits - 1, x.reshape(8, 32)
    if h is None:
        w = np.float32([np.sqrt(total(row * row) / F(32)) + np.abs(row) for row in x])
        first, step, n = {4: (-1, 0.1, 21), 5: (-0.5, 0.1, 16)}[bits]
    else:
        w = h.reshape(8, 32) * np.sqrt(2 * (total((x * x).reshape(-1)) / F(256)) + x * x)
        first, step, n = -0.9, 0.05, 37
    trials = [F(step) * F(i) + F(first) + F(most) for i in range(n)]
    s, m, q = zip(*[line(x[j], w[j], most, trials) for j in range(8)], strict=True)
    W = None if h is None else np.float32([total(row) for row in w])
    (d, sc), (e, mn) = scales(np.float32(s), W), scales(np.float32(m), W)
    d, e, q = np.float16(d), np.float16(e), np.array(q)
    for j in range(8):
        if step := F(d) * sc[j]: q[j] = np.clip(np.rint((x[j] + F(e) * mn[j]) / step), 0, most)
    sc, mn, q = (numbers.astype(np.uint8) for numbers in (sc, mn, q))
    low, fifth = q & 15, np.packbits(q >> 4, axis=0, bitorder="little")[0] if bits == 5 else []
    return np.concatenate([np.array([d, e]).view(np.uint8), sc[:4] | sc[4:] >> 4 << 6, mn[:4] | mn[4:] >> 4 << 6,
                           sc[4:] & 15 | (mn[4:] & 15) << 4, fifth, (low[::2] | low[1::2] << 4).reshape(-1)]).astype(np.uint8)


def encode_6(x, h):
    """The bytes of a superblock x of Q6_K, as the page says."""
    x, tiny = x.reshape(16, 16), 1e-15
    w = x * x if h is None else h.reshape(16, 16)
    s, p = np.zeros(16, np.float32), np.full((16, 16), -32, np.float32)
    trials = [F(0.1) * F(i) + F(32) for i in (0, *range(-9, 0), *range(1, 10))]
    for j in range(16):
        top, best = x[j, np.abs(x[j]).argmax()], None
        if abs(top) < tiny: continue
        for n in trials:
            codes = np.clip(np.rint(-n / top * x[j]), -32, 31)
            product, square = total(w[j] * x[j] * codes), total(w[j] * codes * codes)
            slope = product / square if square > 0 else F(0)
            if best is None or product * product > best * square: s[j], p[j], best = slope, codes, slope * product
    top = s[np.abs(s).argmax()]
    if abs(top) < tiny: return np.zeros(210, np.uint8)
    r = F(-128) / top
    d, sc = np.float16(1 / r), np.minimum(np.rint(r * s), 127)
    for j in range(16):
        if step := F(d) * sc[j]: p[j] = np.clip(np.rint(x[j] / step), -32, 31)
    q = (p + 32).astype(np.uint8).reshape(2, 128)
    low, high = q & 15, (q >> 4).reshape(2, 4, 32)
    high = high[:, 0] | high[:, 1] << 2 | high[:, 2] << 4 | high[:, 3] << 6
    return np.concatenate([(low[:, :64] | low[:, 64:] << 4).reshape(-1), high.reshape(-1), sc.astype(np.int8).view(np.uint8),
                           np.array([d]).view(np.uint8)])


def special_rows(rng):
    """Those of test_k_quants.py, numbers that llama.cpp takes for 0, and the page's own."""
    tiny = np.repeat([[1e-16], [1e-16], [1]], 256, axis=1)
    tiny[2, 32:64] = 1e-16
    return {**rows(rng), "below 1e-15": tiny * rng.standard_normal((3, 256)), "page": k_quants.superblock()}


@pytest.mark.parametrize("weighed", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("name", ["Q4_K", "Q5_K", "Q6_K"])
def test_an_encoder_written_from_the_page_writes_the_same_bytes_bit_exact(name, weighed, rng):
    """Three superblocks of each kind of row. Half of the inputs of the second have no importance, and none of the third."""
    for label, W in special_rows(rng).items():
        for i, x in enumerate(np.float32(W[:3, :256])):
            shares = 1, np.arange(256) // 16 % 2, 0
            h = np.float32(rng.standard_normal(256)**2 * shares[i]) if weighed else None
            octets = encode_6(x, h) if name == "Q6_K" else encode_45(x, int(name[1]), h)
            assert np.array_equal(octets, file_bytes(tp.GGUF(name).quantize(x[None], h))[0]), (label, i)


def test_the_search_for_d_is_the_pages_bit_exact(rng):
    """Some of these numbers still change in the fifth round, and some would change in a sixth."""
    s, W = np.float32(rng.random((8, 1000))**4), np.float32(np.exp(3 * rng.standard_normal((8, 1000))))
    d, sc = six_bits(s, W)
    for i in range(1000):
        own_d, own_sc = scales(s[:, i], W[:, i])
        assert np.float16(own_d) == d[i] and np.array_equal(own_sc, sc[:, i])


def test_the_pages_trials_are_those_of_the_code_bit_exact():
    """`0.1 i − 1 + 15` with i = 0 … 20: Q4_K, Q5_K, and Q4_K with importance."""
    found = re.findall(r"`([\d.]+) i − ([\d.]+) \+ (15|31)`[^`]*?with\s+i = 0 … (\d+)", PAGE.replace("(`+ 31`) ", ""))
    searches = (LINE_TRIALS[4], 15), (LINE_TRIALS[5], 31), (WEIGHED_TRIALS, 15)
    assert len(found) == 3
    for (step, first, most, last), (trials, n) in zip(found, searches, strict=True):
        shown = [F(step) * F(i) - F(first) + F(most) for i in range(int(last) + 1)]
        assert np.array_equal(shown, steps(*trials, n))


# -- the page's other rules ------------------------------------------------------------------------
def test_an_origin_that_moves_is_better_on_the_average_only(rng):
    ratios = np.array([k_quants.search(x, True)[0].min() / k_quants.search(x, False)[0].min()
                       for x in rng.standard_normal((200, 32))])
    assert ratios.mean() < 0.99 and ratios.max() > 1


def test_at_equal_bits_the_k_types_of_the_table_have_the_smaller_error():
    of_types = {name: (float(bits), float(error.strip("% "))) for name, _, bits, error in table("type")}
    pairs = [(a, b) for a in of_types for b in of_types if a < b and of_types[a][0] == of_types[b][0]]
    assert pairs == [("Q4_0", "Q4_K"), ("Q5_0", "Q5_K")]
    assert all(of_types[k][1] < of_types[plain][1] for plain, k in pairs)


def test_mixtures_give_layers_the_types_that_the_page_says():
    for n in 1, 7, 12, 22, 30, 32, 80:
        model, linear, a = SimpleNamespace(config=SimpleNamespace(n_layers=n)), SimpleNamespace(d_in=256), n // 8
        better = {*range(a), *range(7 * n // 8, n), *range(a + 2, 7 * n // 8, 3)}
        for name, of_value, of_down, usual, best in (("Q4_K_M", better, better, "Q4_K", "Q6_K"),
                                                     ("Q5_K_M", better, better, "Q5_K", "Q6_K"),
                                                     ("Q4_K_S", range(4), range(a), "Q4_K", "Q5_K"),
                                                     ("Q5_K_S", (), (), "Q5_K", "Q5_K")):
            for i in range(n):
                for role, blocks in (("attention.value", of_value), ("mlp.down", of_down), ("mlp.up", ())):
                    kind = tp.GGUF(name).kind(f"blocks.{i}.{role}", linear, model)
                    assert kind == (best if i in blocks else usual), (n, name, i, role)


def test_mxfp4_is_as_the_page_says_bit_exact(rng):
    magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    x = np.float32(np.round(8 * rng.standard_normal((40, 32))) / 8 * 2.0**rng.integers(-9, 9, (40, 1)))
    x[0] = 0
    octets = file_bytes(tp.FloatFormat("E2M1", block_size=32, scale_format="E8M0").quantize(x))
    for block, octet in zip(x, octets, strict=True):
        E = max(0, int(np.floor(np.log2(np.abs(block).max()))) + 125) if block.any() else 0
        distance = np.abs(np.abs(block[:, None]) / 2.0**(E - 127) - magnitudes)
        code = [min(range(8), key=lambda k, d=row: (d[k], k % 2)) for row in distance] + 8 * np.signbit(block)
        assert octet[0] == E and np.array_equal(octet[1:], code[:16] | code[16:] << 4)
