"""k_quants.py and the searches of gguf_blocks.py: byte for byte what llama.cpp's own C code (libgguf) writes."""
import numpy as np
import pytest

import tinypeft as tp
from tinypeft.interop.gguf_bytes import file_bytes, type_of
from tinypeft.quant.k_quants import fit_line, steps

K_TYPES = {"Q4_K": 4.5, "Q5_K": 5.5, "Q6_K": 6.5625}
D_IN = 1024


def rows(rng):
    """Kinds of rows (16, 1024): usual ones, and those in which a block, a scale or an end is special."""
    n = 16, D_IN
    normal = rng.standard_normal(n)
    of_blocks = lambda sizes: np.repeat(sizes, 16, axis=1)
    return {"normal": normal, "heavy tails": 0.02 * rng.standard_t(3, n), "positive": rng.random(n), "negative": -rng.random(n),
            "rows of zeros": np.where(rng.random((16, 1)) > 0.3, normal, 0),
            "blocks of zeros": np.where(of_blocks(rng.random((16, 64)) > 0.5), normal, 0),
            "scales of all sizes": normal * of_blocks(10.0**rng.uniform(-8, 2, (16, 64))),
            "outliers": np.where(rng.random(n) < 0.01, 30 * normal, 0.02 * normal), "ties": np.round(2 * normal),
            "constant blocks": np.repeat(rng.standard_normal((16, 32)), 32, axis=1), "tiny": 1e-9 * normal, "one": np.eye(*n)}


def importances(rng):
    """No importance; any; none of half of the inputs; none at all."""
    h = np.float32(rng.standard_normal(D_IN)**2 + 1e-3)
    return [None, h, h * (rng.random(D_IN) > 0.5), np.zeros_like(h)]


@pytest.mark.parametrize("name", [*K_TYPES, "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_the_bytes_are_llama_cpps_bit_exact(name, rng):
    libgguf, gguf = pytest.importorskip("libgguf"), pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[name]
    for label, W in rows(rng).items():
        W = np.float32(W)
        for h in importances(rng):
            q = tp.GGUF(name).quantize(W, h)
            theirs = libgguf.quantize_rows(W, kind, h) if h is not None else libgguf.quantize_rows(W, kind)
            theirs = np.asarray(theirs).view(np.uint8)
            octets = file_bytes(q)
            assert np.array_equal(octets.reshape(-1), theirs.reshape(-1)), (label, h)
            values = gguf.quants.dequantize(theirs.reshape(len(W), -1), kind)
            assert np.array_equal(q.dequantize(), values) and type_of(q) == name
            assert octets.nbytes == q.nbytes


@pytest.mark.parametrize("name, bits", K_TYPES.items())
def test_bits_per_weight_are_the_formula_bit_exact(name, bits, rng):
    W = rng.standard_normal((4, 512))
    assert tp.GGUF(name).quantize(W).bits_per_weight == bits
    assert tp.GGUF(name).quantize(W.astype(np.float64)).shape == (4, 512)


def test_one_block_is_fitted_as_the_page_says_numerical(rng):
    """The search of the docstring, one number at a time, for one block of 32 weights in float64."""
    x = np.float32(rng.standard_normal(32))
    w = np.float32(np.sqrt(np.mean(x * x)) + np.abs(x))
    s, m, q = fit_line(x[:, None], w[:, None], 15, steps(-1, 0.1, 21, 15))
    low, high, best = float(min(x.min(), 0)), float(x.max()), np.inf
    for width in [15, *(14 + 0.1 * i for i in range(21))]:
        codes = [min(15, max(0, round((value - low) * width / (high - low)))) for value in x.tolist()]
        solution = (high - low) / 15, low
        if best < np.inf:
            A = np.sqrt(w)[:, None] * np.stack([codes, np.ones(32)], axis=1)
            solution = np.linalg.lstsq(A, np.sqrt(w) * x, rcond=None)[0]
        error = float((w * (solution[0] * np.array(codes) + solution[1] - x)**2).sum())
        if error < best: best, (scale, low), kept = error, solution, codes
    assert np.allclose([s[0], m[0]], [scale, -low], rtol=1e-4) and q[:, 0].tolist() == kept


def test_more_trials_never_fit_worse(rng):
    x, w = np.float32(rng.standard_normal((32, 200))), np.float32(rng.random((32, 200)))
    errors = []
    for n in 0, 5, 21:
        s, m, q = fit_line(x, w, 15, steps(-1, 0.1, n, 15))
        errors.append((w * (s * q - m - x)**2).sum(0))
    assert (errors[1] <= errors[0] * 1.0001).all() and (errors[2] <= errors[1] * 1.0001).all()
    assert errors[2].sum() < 0.9 * errors[0].sum()


@pytest.mark.parametrize("name, others", {"Q4_K": 8, "Q5_K": 9, "Q6_K": 0}.items())
def test_importance_of_a_few_inputs_alone(name, others):
    """A slope below 0 overflows in llama.cpp's bytes. Elsewhere the bytes are equal, and there the error is as small."""
    libgguf, gguf = pytest.importorskip("libgguf"), pytest.importorskip("gguf")
    kind, different = gguf.GGMLQuantizationType[name], 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        W, h = np.float32(rng.standard_normal((3, 512)) * 0.05), np.zeros(512, np.float32)
        few = rng.choice(512, rng.integers(1, 17), replace=False)
        h[few] = rng.standard_normal(len(few))**2 + 1e-3
        q, theirs = tp.GGUF(name).quantize(W, h), libgguf.quantize_rows(W, kind, h)
        if not np.array_equal(file_bytes(q).reshape(-1), np.asarray(theirs).view(np.uint8).reshape(-1)):
            different += 1
            error = [(h * (x - W)**2).sum() for x in (q.dequantize(), libgguf.dequantize_rows(theirs, kind))]
            assert error[0] < 1.01 * error[1]
    assert different == others


@pytest.mark.parametrize("name", K_TYPES)
def test_importance_lowers_the_error_that_it_weighs_direction(name, rng):
    h = np.float32(np.exp(2 * rng.standard_normal(512)))
    for _ in range(3):
        W = np.float32(rng.standard_normal((64, 512)))
        weighed, plain = ((h * (q.dequantize() - W)**2).sum() for q in map(tp.GGUF(name).quantize, (W, W), (h, None)))
        assert weighed < 0.97 * plain


def test_errors(rng):
    W = rng.standard_normal((4, 512))
    with pytest.raises(ValueError, match="Q4_K needs rows of whole superblocks of 256 weights, got 576; llama.cpp takes Q5_0"):
        tp.GGUF("Q4_K").quantize(np.ones((2, 576)))
    for name in K_TYPES:
        with pytest.raises(ValueError, match=f"a scale of {name} overflows GGUF's float16; the largest weight is 1e.10"):
            tp.GGUF(name).quantize(np.vstack([W, np.full((1, 512), -1e10)]))
    for h in np.ones(511), np.full(512, -1.0), np.ones((1, 512)):
        with pytest.raises(ValueError, match="importance: expected 512 numbers ≥ 0, one for each input, got shape"):
            tp.GGUF("Q4_K").quantize(W, h)
    for h in np.full(512, np.nan), np.full(512, np.inf):
        with pytest.raises(ValueError, match="importance .* not finite"): tp.GGUF("Q4_K").quantize(W, h)
    with pytest.raises(ValueError, match="expected importance=, the mean square of each input"):
        tp.GGUF("Q6_K", importance=True).quantize(W)
