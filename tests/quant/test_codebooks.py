"""codebooks.py, bit-exact: against the normal quantiles, bitsandbytes, ml_dtypes; and by formula."""
import numpy as np
import pytest

from tinypeft.quant.codebooks import codebook, float_layout


def test_exact_nf4_is_the_normal_quantiles():
    """QLoRA, §3: eight levels of the upper half of N(0, 1), seven of the lower, and 0, over the largest of them. The
    outermost probability is 1 − ½(1/32 + 1/30). The table was computed in float32, from 0.9677083 and edges spaced from
    both ends; from exact probabilities the quantiles agree to 2e-7, but not in every bit."""
    ndtri = pytest.importorskip("scipy.special").ndtri

    def table(probabilities, dtype):
        upper, lower = (ndtri(probabilities(n).astype(np.float64)) for n in (8, 7))
        levels = np.sort(np.concatenate([upper, [0], -lower])).astype(dtype)
        return (levels / levels.max()).astype(np.float32)

    def exact(n):
        return np.linspace(1 - (1 / 32 + 1 / 30) / 2, 0.5, n + 1)[:-1]

    def float32(n):
        k, first = np.arange(float(n)), np.float32(0.9677083)
        step = (np.float32(0.5) - first) / np.float32(n)
        return np.where(k < (n + 1) // 2, first + step * k, 0.5 - step * (n - k)).astype(np.float32)

    assert np.array_equal(table(float32, np.float32), codebook("nf4"))
    assert np.abs(table(exact, np.float64) - codebook("nf4")).max() < 2e-7


@pytest.mark.parametrize("name", ["nf4", "FP4"])
def test_exact_bitsandbytes_tables(name):
    functional = pytest.importorskip("bitsandbytes.functional")
    theirs = functional.get_4bit_type(name.lower(), device="cpu").numpy()
    assert np.array_equal(theirs.view(np.uint32), codebook(name).view(np.uint32))        # the sign of zero too


def test_exact_bitsandbytes_dynamic_map():
    functional = pytest.importorskip("bitsandbytes.functional")
    assert np.array_equal(functional.create_dynamic_map(True).numpy(), codebook("dynamic"))


def test_dynamic_map_by_its_formula():
    d = codebook("dynamic")
    assert d.shape == (256,) and (np.diff(d) > 0).all() and d[-1] == 1 and d[127] == 0
    assert d[0] == pytest.approx(-(1 - 0.9 / 64 / 2)) and d[128] == pytest.approx(0.55e-6)
    for i in range(7):                                                                   # 2^i levels in every decade
        assert ((d > 10.0**(i - 7)) & (d < 10.0**(i - 6))).sum() == 2**i


@pytest.mark.parametrize("name, theirs", [
    ("E4M3", "float8_e4m3fn"), ("E5M2", "float8_e5m2"), ("E2M1", "float4_e2m1fn"), ("E3M2", "float6_e3m2fn"),
    ("E2M3", "float6_e2m3fn"), ("BF16", "bfloat16"), ("FP16", None), ("E8M0", "float8_e8m0fnu")])
def test_exact_every_code_of_every_float(name, theirs):
    if theirs is not None:
        dtype = getattr(pytest.importorskip("ml_dtypes"), theirs)
    ours = codebook(name)
    codes = np.arange(len(ours)).astype(np.uint16 if len(ours) > 256 else np.uint8)
    values = codes.view(np.float16 if theirs is None else dtype).astype(np.float32)
    assert np.array_equal(np.isnan(ours), np.isnan(values))
    numbers = ~np.isnan(values)
    assert np.array_equal(ours[numbers].view(np.uint32), values[numbers].view(np.uint32))  # the sign of zero too


def test_known_values():
    assert codebook("E2M1")[:8].tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert codebook("E4M3")[[1, 0x7e]].tolist() == [2.0**-9, 448] and np.isnan(codebook("E4M3")[0x7f])
    assert codebook("E5M2")[[1, 0x7b, 0x7c]].tolist() == [2.0**-16, 57344, np.inf]
    assert codebook("E3M0")[:8].tolist() == [0, 0.25, 0.5, 1, 2, 4, 8, 16]
    assert codebook("FP4")[:8] * 12 == pytest.approx([0, 0.0625, 8, 12, 4, 6, 2, 3])
    assert len({tuple(np.sort(codebook(name) / codebook(name).max())) for name in ("E2M1", "FP4", "E3M0")}) == 3


def test_a_codebook_is_one_constant():
    assert codebook("nf4") is codebook("nf4") and not codebook("nf4").flags.writeable
    assert float_layout("FP16") == (5, 10, "inf") and float_layout("E4M3") == (4, 3, "nan")


@pytest.mark.parametrize("name", ["nf5", "E9M0", "E4M4", "E0M3", "e4m3", "E5M11", ""])
def test_unknown_names(name):
    with pytest.raises(ValueError, match=f"unknown format '{name}': expected 'nf4', .* 'ExMy' of at most 8 bits"):
        codebook(name)
