"""qtensor.py and scheme.py: the decoding formula, sizes, saving, showing, and every error."""
import dataclasses
import json
import re
from threading import Barrier, current_thread

import numpy as np
import pytest

from tests.common.test_threads import forks, in_child
from tinypeft.common import threads
from tinypeft.common.threads import parallel_map
from tinypeft.quant import GPTQ, NF4, FloatFormat, QTensor, Scheme, Uniform, decoding
from tinypeft.quant.codebooks import codebook
from tinypeft.quant.packing import pack, packed_size
from tinypeft.quant.scheme import checked

BOOK = {4: "nf4", 8: "dynamic", 16: "FP16"}


def random_qtensor(rng, bits, shape, block, scaled=True, zeros=False, book=False, offset=False, order=False):
    """(QTensor, the float32 array it must decode to, by the formula spelled out element by element)."""
    N = int(np.prod(shape))
    n_blocks = -(-N // block)
    codes = rng.integers(0, min(2**bits, 31744), N)                            # in FP16: below infinity
    scale = rng.normal(size=n_blocks).astype(np.float32) if scaled else None
    z = rng.integers(0, 2**bits, n_blocks) if zeros else np.full(n_blocks, 0 if book else 2**(bits - 1))
    o = np.float32(rng.normal()) if offset else None
    perm = rng.permutation(shape[-1]).astype(np.int32) if order else None
    q = QTensor(codes.astype(np.uint16) if bits == 16 else pack(codes, bits), bits, shape, block, scale,
                pack(z, bits) if zeros else int(z[0]), BOOK[bits] if book else None, o, perm)
    where = np.arange(N) // block
    x = codebook(BOOK[bits])[codes] if book else codes.astype(np.float32)
    x = x - z[where].astype(np.float32)
    x = x if scale is None else x * scale[where]
    x = (x if o is None else x + o).reshape(shape)
    if order:
        x, stored = np.empty_like(x), x
        x[..., perm] = stored
    return q, x


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("shape, block", [((6, 8), 4), ((7, 5), 5), ((3, 7), 21), ((5, 13), 8), ((1,), 1),
                                          ((2, 3, 4), 6)])
@pytest.mark.parametrize("zeros", [False, True])
def test_exact_decoding_formula(bits, shape, block, zeros, monkeypatch):
    monkeypatch.setattr(decoding, "CHUNK", 16)                                   # several passes, and a last short one
    for order in (False, True):
        q, x = random_qtensor(np.random.default_rng(bits), bits, shape, block, zeros=zeros, order=order)
        assert np.array_equal(q.dequantize(), x) and q.dequantize().dtype == np.float32
        if not order:
            z = q.zeros().repeat(block)[:x.size].reshape(shape) if zeros else q.zero
            assert np.array_equal(q.integers(), q.unpack().reshape(shape).astype(int) - z)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, "codes"])
@pytest.mark.parametrize("shape, block", [((6, 8), 4), ((7, 5), 5), ((5, 13), 8)])
def test_exact_decoding_of_an_offset_per_block(shape, block, dtype, monkeypatch, tmp_path):
    monkeypatch.setattr(decoding, "CHUNK", 16)
    rng = np.random.default_rng(0)
    q, x = random_qtensor(rng, 5, shape, block, zeros=True)
    o = Uniform(6).quantize(rng.normal(size=q.n_blocks)) if dtype == "codes" else rng.normal(size=q.n_blocks).astype(dtype)
    q, plain = dataclasses.replace(q, offset=o), q
    values = o.dequantize() if dtype == "codes" else o.astype(np.float32)
    assert np.array_equal(q.offsets(), values)
    assert np.array_equal(q.dequantize(), x + values[np.arange(x.size) // block].reshape(shape))
    assert q.nbytes == plain.nbytes + o.nbytes
    metadata = json.loads(json.dumps(q.metadata()))
    back = QTensor.from_arrays(q.arrays(), metadata)
    assert np.array_equal(back.dequantize(), q.dequantize()) and repr(back) == repr(q)
    assert "offset o" in q._repr_html_() and "offset o" not in plain._repr_html_()


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("scaled, offset", [(True, False), (True, True), (False, False)])
def test_exact_decoding_of_codebooks(bits, scaled, offset, monkeypatch):
    monkeypatch.setattr(decoding, "CHUNK", 16)
    for shape in ((5, 13), (8, 8), (33,)):
        q, x = random_qtensor(np.random.default_rng(bits), bits, shape, 8, scaled, book=True, offset=offset)
        assert np.array_equal(q.dequantize(), x)


def test_exact_across_the_real_chunk():
    q, x = random_qtensor(np.random.default_rng(0), 4, (300, 1001), 64, book=True)
    assert np.array_equal(q.dequantize(), x)


def on_cores(monkeypatch, n):
    for module in (threads, decoding): monkeypatch.setattr(module, "cores", lambda: n)


def test_exact_in_two_threads_even_inside_workers(monkeypatch):
    """On two cores large arrays are decoded by two threads. A worker decodes alone: it waits for no other."""
    on_cores(monkeypatch, 2)
    monkeypatch.setattr(decoding, "SHARED", 1)
    monkeypatch.setattr(decoding, "CHUNK", 64)
    names, original, meet = set(), QTensor.look_up, Barrier(2, timeout=10)

    def look_up(*args):
        if current_thread().name not in names:
            names.add(current_thread().name)
            meet.wait()                                  # until the other thread has come, too
        original(*args)
    q, x = random_qtensor(np.random.default_rng(0), 4, (37, 24), 16, book=True)
    with monkeypatch.context() as patch:
        patch.setattr(QTensor, "look_up", look_up)
        assert np.array_equal(q.dequantize(), x) and len(names) == 2
    for y in parallel_map(lambda _: q.dequantize(), range(20), workers=2):
        assert np.array_equal(y, x)


@pytest.mark.parametrize("n", [1, 3, 4, 7, 16])
def test_exact_on_any_number_of_cores(n, monkeypatch):
    on_cores(monkeypatch, n)
    monkeypatch.setattr(decoding, "SHARED", 1)
    monkeypatch.setattr(decoding, "CHUNK", 64)
    for shape in ((37, 24), (1, 70), (8, 32)):           # 14, 2 and 4 chunks
        q, x = random_qtensor(np.random.default_rng(0), 4, shape, 16, book=True)
        assert np.array_equal(q.dequantize(), x)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("shape, block", [((6, 8), 4), ((7, 5), 5), ((5, 13), 8), ((1,), 1)])
def test_exact_two_bytes_at_a_time(bits, shape, block, monkeypatch):
    """As large arrays are decoded: the last codes fill no whole word, or no whole byte."""
    monkeypatch.setattr(decoding, "SHARED", 1)
    monkeypatch.setattr(decoding, "CHUNK", 16)
    for book in {False, bits in BOOK}:
        q, x = random_qtensor(np.random.default_rng(bits), bits, shape, block, book=book)
        assert np.array_equal(q.dequantize(), x)


@forks
def test_a_forked_child_decodes():
    """The second thread does not exist there, and the child waited for it."""
    q = NF4().quantize(np.random.default_rng(0).standard_normal((1024, 1024)).astype(np.float32))
    x = q.dequantize()
    assert q.size >= decoding.SHARED
    in_child(lambda: np.array_equal(q.dequantize(), x))


def test_an_error_in_the_second_thread_is_raised(monkeypatch):
    monkeypatch.setattr(decoding, "SHARED", 1)
    monkeypatch.setattr(decoding, "CHUNK", 64)
    q, _ = random_qtensor(np.random.default_rng(0), 4, (8, 32), 16, book=True)      # two chunks of 128
    monkeypatch.setattr(QTensor, "look_up", lambda q, start, x: 1 // (128 - start))
    with pytest.raises(ZeroDivisionError):
        q.dequantize()


def test_dequantize_into_out():
    q, x = random_qtensor(np.random.default_rng(0), 4, (6, 8), 8)
    out = np.empty((6, 8), np.float32)
    assert q.dequantize(out) is out and np.array_equal(out, x)
    for bad in (np.empty((8, 6), np.float32), np.empty((6, 8)), np.empty((8, 6), np.float32).T):
        with pytest.raises(ValueError, match=r"out must be C-contiguous float32 \(6, 8\), got"):
            q.dequantize(bad)


def test_nbytes_is_what_is_stored():
    q, _ = random_qtensor(np.random.default_rng(0), 3, (6, 40), 8, zeros=True, order=True)
    assert q.nbytes == packed_size(240, 3) + 4 * 30 + packed_size(30, 3) + 4 * 40 == sum(
        array.nbytes for array in q.arrays().values())
    assert q.bits_per_weight == 8 * q.nbytes / 240
    q = NF4(double_quant=True).quantize(np.random.default_rng(0).normal(size=(40, 40)))
    assert q.nbytes == 800 + 25 + 4 + 4 == sum(array.nbytes for array in q.arrays().values())


def test_arrays_of_other_names_are_refused():
    q = NF4(double_quant=True).quantize(np.ones((2, 64)))
    for name in ("code", "scales.codes", *q.metadata()):
        with pytest.raises(KeyError, match=rf"unknown arrays \['{name}'\]"):
            QTensor.from_arrays(q.arrays() | {name: np.zeros(1)}, q.metadata())
    with pytest.raises(KeyError, match="no array codes"): QTensor.from_arrays({}, q.metadata())


def test_a_new_scale_is_a_replace():
    q = Uniform(4).quantize(np.random.default_rng(0).normal(size=(5, 40)))
    assert np.array_equal(dataclasses.replace(q, scale=q.scale * 2).dequantize(), q.dequantize() * 2)


def test_shows_itself():
    q = NF4(double_quant=True).quantize(np.ones((64, 64)))
    assert repr(q) == ("QTensor(shape: 64 × 64; codes: 4 bits, nf4; blocks: 64 of 64; scale: 8 bits; "
                       "size: 2,120 bytes, 4.141 bits/weight)")
    text = re.sub("<[^>]*>", " ", q._repr_html_())
    for part in ("64 × 64", "4 bits, nf4", "16: -1, -0.696", "of float32  12.9%"): assert part in text, text
    assert "zero point" not in text                      # a table of levels has none


def test_integers_show_their_step():
    W = np.linspace(-1, 3, 64, dtype=np.float32).reshape(8, 8)
    q = Uniform(4, symmetric=False, granularity="channel").quantize(W)
    text = re.sub("<[^>]*>", " ", q._repr_html_())
    bound = q.scales().max() / 2
    assert abs(q.dequantize() - W).max() <= bound * 1.0001 and f"errs by at most {bound:.4g}" in text
    assert f"{q.zeros().min():.0f} … {q.zeros().max():.0f}, one per block" in text and "16: 0, 1, 2" in text


@pytest.mark.parametrize("change, message", [
    (dict(codes=np.zeros(3, np.uint8)), r"codes must be uint8 \(16,\), got uint8 \(3,\)"),
    (dict(codes=np.zeros(16, np.int8)), r"codes must be uint8 \(16,\), got int8"),
    (dict(scale=np.zeros(3, np.float32)), r"scale must be float32 \(4,\), got float32 \(3,\)"),
    (dict(scale=NF4().quantize(np.ones(3))), "4 blocks, but 3 scales"),
    (dict(offset=np.zeros(3, np.float32)), r"offset must be float32 \(4,\), got float32 \(3,\)"),
    (dict(offset=np.zeros(4, np.int32)), r"offset must be float32 \(4,\), got int32"),
    (dict(offset=1.0), r"offset must be float32 \(4,\), got 1.0"),
    (dict(offset=NF4().quantize(np.ones(3))), "4 blocks, but 3 offsets"),
    (dict(offset=NF4(double_quant=True).quantize(np.ones(4))), "the scales of offsets must be numbers, got codes"),
    (dict(scale=NF4(double_quant=True).quantize(np.ones(4))), "the scales of scales must be numbers, got codes"),
    (dict(zero=np.zeros(4, np.uint8)), r"zero must be uint8 \(2,\), got uint8 \(4,\)"),
    (dict(zero=np.int64(8)), r"zero must be uint8 \(2,\), got int64 \(\)"),
    (dict(order=np.arange(8)), r"order must be int32 \(8,\), got int64"),
    (dict(bits=9), "bits must be 1 … 8 or 16, got 9"),
    (dict(bits=16), r"codes must be uint16 \(32,\), got uint8 \(16,\)"),
])
def test_parts_that_do_not_fit(change, message):
    q = Uniform(4).quantize(np.ones((4, 8)))
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(q, **change)


def test_codes_of_a_codebook_are_not_integers():
    with pytest.raises(ValueError, match="codes of 'nf4' name table entries"):
        NF4().quantize(np.ones(3)).integers()


def test_a_scheme_shows_what_matters():
    assert repr(Uniform()) == "Uniform(bits=8)"
    assert repr(Uniform(4, granularity="group", group_size=64)) == "Uniform(bits=4, granularity='group', group_size=64)"
    assert (repr(NF4()), repr(FloatFormat())) == ("NF4()", "FloatFormat(name='E4M3')")
    assert repr(GPTQ()) == "GPTQ(bits=4)" and repr(GPTQ(3, 128)) == "GPTQ(bits=3, group_size=128)"
    with pytest.raises(NotImplementedError, match="Scheme does not define quantize"):
        Scheme().quantize(np.ones(3))


@pytest.mark.parametrize("x, message", [
    (np.arange(4), "W must be a floating-point array, got ndarray of dtype int64"),
    (object(), "got object of dtype object .*Tensor's array is its .data"),
    (np.float32(3), r"at least one axis and one element, got shape \(\)"),
    (np.zeros((0, 4)), r"at least one axis and one element, got shape \(0, 4\)"),
    (np.array([[1, 2], [np.nan, np.inf]]),
     r"W \(2, 2\) has 2 elements that are not finite in float32, the first at \(1, 0\): nan"),
    (np.array([1e39]), r"not finite in float32, the first at \(0,\): inf"),
])
@pytest.mark.parametrize("scheme", [Uniform(), NF4(), FloatFormat(), FloatFormat("FP4")])
def test_bad_weights(scheme, x, message):
    with pytest.raises(ValueError, match=message):
        scheme.quantize(x)


def test_checked_gives_contiguous_float32():
    x = checked(np.ones((4, 3), np.float16).T)
    assert x.dtype == np.float32 and x.flags.c_contiguous
    same = np.ones(3, np.float32)
    assert checked(same) is same


@pytest.mark.parametrize("bits", [3, 8])
def test_codes_from_a_place_on_are_the_last_ones(bits):
    q = Uniform(bits).quantize(np.float32(np.random.default_rng(0).standard_normal((3, 10))))
    assert q.unpack().size == 30 and np.array_equal(q.unpack(8), q.unpack()[8:])
    assert np.array_equal(q.unpack(16, 5), q.unpack()[16:21])
