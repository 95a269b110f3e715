"""files/safetensors.py: the library's files byte for byte, read lazily, and never trusted."""
import json
import tracemalloc

import numpy as np
import pytest

from tests.damaged import read_or_refused, spliced
from tinypeft.files import disk
from tinypeft.files.safetensors import DTYPE_NAMES, DTYPES
from tinypeft.interop import SafeTensorsError, read_safetensors, write_safetensors

RNG = np.random.default_rng(0)
ARRAYS = {f"of {name}": (100 * RNG.random((2, 3))).astype(dtype) % 2 for dtype, name in DTYPE_NAMES.items()
          if name != "C64"} | {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.arange(5, dtype=np.int8), "é\n\x7f\x1f\"": np.array(3.0),
    "empty": np.zeros((0, 3), np.float16), "complex": np.ones(2, np.complex64)}


def same(got, expected):
    return got.keys() == expected.keys() and all(
        got[k].dtype == a.dtype and got[k].shape == a.shape and got[k].tobytes() == a.tobytes() for k, a in expected.items())


def raw(path, header, data=b"", length=None):
    """A file with a header as given: JSON-able, or text."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"ключ": "\t\"\\"}])
def test_written_files_are_the_librarys_byte_for_byte(metadata, tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    write_safetensors(tmp_path / "ours", ARRAYS, metadata)
    numpy.save_file(ARRAYS, tmp_path / "theirs", metadata)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert same(numpy.load_file(tmp_path / "ours"), ARRAYS)


def test_arrays_survive_the_round_trip(tmp_path):
    path = tmp_path / "new" / "file.safetensors"
    arrays = {**ARRAYS, "columns": np.asfortranarray(np.arange(12).reshape(3, 4)), "every other": np.arange(10)[::2],
              "big-endian": np.arange(3, dtype=">f8")}
    write_safetensors(path, arrays, {"format": "pt"})
    f = read_safetensors(path)
    assert same(f, {**arrays, "big-endian": np.arange(3.0)}) and f.metadata == {"format": "pt"}
    assert f.shape("b") == (2, 3) and f.dtype("empty") == "F16" and "b" in f and "c" not in f and len(f) == len(arrays)
    assert not f["b"].flags.writeable and all(f[name].flags.aligned for name in f)
    write_safetensors(path, {})
    assert dict(read_safetensors(path)) == {} and f["a"].tolist() == [0, 1, 2, 3, 4]      # the old file, still mapped
    with pytest.raises(KeyError, match="has no tensor .*; it has 20: of U64, .*…"):
        f["c"]


def test_bfloat16_and_dtypes_that_numpy_lacks(tmp_path, torch):
    save = pytest.importorskip("safetensors.torch").save_file
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    save({"bf16": x.bfloat16(), "fp8": x.to(torch.float8_e4m3fn), "half": x.half()}, tmp_path / "f")
    f = read_safetensors(tmp_path / "f")
    assert same({k: f[k] for k in ("bf16", "half")}, {"bf16": x.bfloat16().float().numpy(), "half": x.half().numpy()})
    with pytest.raises(SafeTensorsError, match="f: tensor 'fp8' is F8_E4M3, which NumPy does not have"):
        f["fp8"]


def test_only_arrays_that_are_used_are_read(tmp_path):
    write_safetensors(tmp_path / "f", {"large": np.zeros(1 << 22), "small": np.ones(3)})
    tracemalloc.start()
    f = read_safetensors(tmp_path / "f")
    total = f["small"].sum() + f["large"][:9].sum()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 3 and peak < 1 << 18


def test_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "f"
    write_safetensors(path, {"a": np.ones(3)})
    before = path.read_bytes()

    def crash(*args): raise OSError("no space left on device")
    monkeypatch.setattr(disk.os, "replace", crash)
    with pytest.raises(OSError, match="no space left"):
        write_safetensors(path, {"a": np.zeros(3)})
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("arrays, metadata, error, says", [
    ({"a": np.array(["text"])}, None, TypeError, "'a' is <U4; the format has bool, uint8"),
    ({"a": np.array([object()])}, None, TypeError, "'a' is object"),
    ({"__metadata__": np.ones(1)}, None, ValueError, "'__metadata__' cannot name an array"),
    ({3: np.ones(1)}, None, ValueError, "3 cannot name an array"),
    ({"\ud800": np.ones(1)}, None, ValueError, "surrogates not allowed"),
    ({}, {"a": 3}, ValueError, "metadata must map strings to strings")])
def test_arrays_and_names_that_the_format_cannot_hold(arrays, metadata, error, says, tmp_path):
    with pytest.raises(error, match=says):
        write_safetensors(tmp_path / "f", arrays, metadata)
    assert not list(tmp_path.iterdir())


HOSTILE = [
    ({"a": entry("F33")}, b"", "unknown dtype 'F33'; there are BOOL"), ({"a": entry(["F32"])}, b"", "unknown dtype"),
    ({"a": entry(shape=[2.0])}, b"", r"shape must be a list of whole numbers in \[0, 2⁶³\), got \[2.0\]"),
    ({"a": entry(shape=[True, 2])}, b"", "shape must be"), ({"a": entry(shape=[-2])}, b"", "shape must be"),
    ({"a": entry(shape=[-1, -2])}, b"12345678", "shape must be"), ({"a": entry(shape=[10**30])}, b"", "shape must be"),
    ({"a": entry(shape=[0, 2**62, 2**62], offsets=[0, 0])}, b"", "an array cannot have"),
    ({"a": entry(shape=[2**40])}, b"12345678", r"F32 \(1099511627776,\) has 4.39805e\+12 bytes, data_offsets are \[0, 8\]"),
    ({"a": entry(shape=[2**32, 2**32])}, b"12345678", "an array cannot have"),          # 0 in 64 bits
    ({"a": entry(shape=[1] * 33, offsets=[0, 4])}, b"1234", "an array cannot have 33 axes"),
    ({"a": entry(offsets=[8, 0])}, b"12345678", "data_offsets are"),
    ({"a": entry(offsets=[0])}, b"1234", "data_offsets are"),
    ({"a": entry(offsets=[0, 8, 8])}, b"12345678", "data_offsets are"),
    ({"a": entry(offsets="08")}, b"", "must be a list"), ({"a": entry("F4", [3], [0, 2])}, b"12", r"F4 \(3,\) has 1.5 bytes"),
    ({"a": entry()}, b"1234567", "end at byte 8 of the data, the file at 7; it is cut off"),
    ({"a": entry()}, b"123456789", "the file at 9; it is longer than its header says"),
    ({"a": entry(offsets=[4, 12])}, b"123456789012", "'a' starts at byte 4 of the data, expected 0: there is a gap"),
    ({"a": entry(), "b": entry(offsets=[4, 12])}, b"123456789012", "'b' starts at byte 4 .* expected 8: there is an overlap"),
    ({"a": entry(), "b": entry()}, b"12345678", "'b' starts at byte 0"),
    ({"a": entry(offsets=[2**62, 2**62 + 8])}, b"12345678", "starts at byte"), ({}, b"x", "the arrays end at byte 0"),
    ({"a": {**entry(), "pickle": 1}}, b"12345678", "expected dtype, shape and data_offsets, got"),
    ({"a": {"dtype": "F32"}}, b"", "expected dtype, shape and data_offsets"), ({"a": 3}, b"", "got 3"),
    ([], b"", "the header must be a JSON object, got list"), (b"", b"", "not the JSON"), (b"null", b"", "got NoneType"),
    (b"\xff", b"", "utf-8"), (b'{"a":NaN}', b"", "NaN is not JSON"), (b"{", b"", "not the JSON"),
    (b"\xef\xbb\xbf{}", b"", "ufeff"), (b"[" * 100_000, b"", "not the JSON"),
    (b'{"a":' + b"9" * 5000 + b"}", b"", "not the JSON"), (b"{} {}", b"", "more text after it, at character 4"),
    (b'{"a":1,"a":1}', b"", "the name 'a' occurs twice"), (b'{"\\ud800":{}}', b"", "surrogates not allowed"),
    (b'{"a":{"dtype":"F32","dtype":"F16"}}', b"", "the name 'dtype' occurs twice"),
    ({"__metadata__": {"a": 1}}, b"", "__metadata__ must map"), ({"__metadata__": ["a"]}, b"", "__metadata__ must map")]


@pytest.mark.parametrize("header, data, says", HOSTILE)
def test_a_hostile_header_is_named(header, data, says, tmp_path):
    with pytest.raises(SafeTensorsError, match=f"(?s)hostile.st.*{says}"):
        read_safetensors(raw(tmp_path / "hostile.st", header, data))


@pytest.mark.parametrize("content, says", [(b"", "0 bytes, too short"), (b"1234567", "too short"), (b"\xff" * 8, "a header of"),
                                           (b"\x03" + bytes(7) + b"{}", "a header of 3 bytes in a file of 10"),
                                           (b"PK\x03\x04 a zip archive, such as torch.save's", "no safetensors file")])
def test_other_files_are_refused(content, says, tmp_path):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(SafeTensorsError, match=f"f: .*{says}"):
        read_safetensors(tmp_path / "f")


def test_a_header_beyond_the_librarys_limit(tmp_path):
    with open(tmp_path / "f", "wb") as f:
        f.write((100_000_001).to_bytes(8, "little"))
        f.truncate(100_000_100)                                          # sparse: no bytes on disk
    with pytest.raises(SafeTensorsError, match="a header of 100,000,001 bytes"):
        read_safetensors(tmp_path / "f")


def test_a_folder_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(SafeTensorsError, match="is not a regular file"):
        read_safetensors(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_safetensors(tmp_path / "nothing")


def test_a_bool_is_0_or_1(tmp_path):
    f = read_safetensors(raw(tmp_path / "f", {"a": entry("BOOL", [2], [0, 2])}, b"\x01\x02"))
    with pytest.raises(SafeTensorsError, match="'a' is BOOL, with bytes other than 0 and 1"):
        f["a"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_unaligned_file_is_read_as_well(dtype, tmp_path):
    f = read_safetensors(raw(tmp_path / "f", b'{"a":' + json.dumps(entry(dtype, [4], [0, DTYPES[dtype][1] // 2])).encode()
                             + b"}", bytes(DTYPES[dtype][1] // 2)))
    if DTYPES[dtype][0]: assert f["a"].tolist() == [0] * 4
    assert f.dtype("a") == dtype


def test_mutated_files_give_the_named_error_or_what_the_library_reads(tmp_path):
    """Bytes are changed, removed and inserted, mostly in the header. Files that we accept the library reads alike."""
    st, numpy = pytest.importorskip("hypothesis.strategies"), pytest.importorskip("safetensors.numpy")
    path = tmp_path / "f"
    write_safetensors(path, {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.int8), "e": np.zeros(0)},
                      {"format": "pt"})
    whole = path.read_bytes()
    tokens = [b"0", b"1", b"9", b"-", b"[", b"]", b"{", b"}", b",", b":", b'"', b" ", b"e", b".5", b'"w"', b'"F32"', b'"I8"',
              b"null", b"[2,3]", b"[3,2]", b"[6]", b"[24,27]", b"\\u0077", b"\x00", b"\xff"]
    place = st.one_of(st.integers(0, 12), st.integers(0, len(whole)))
    length = st.one_of(st.integers(0, 9), st.just(10**6))                # of what is cut out; or everything that follows
    change = st.tuples(place, length, st.one_of(st.just(b""), st.sampled_from(tokens), st.binary(max_size=3)))

    def read(changes, mend):
        content = spliced(whole, changes)
        if mend and len(content) > 8:                                    # a length that fits, so that the JSON is looked at
            content = (len(content) - 8 - 27).to_bytes(8, "little", signed=True) + content[8:]
        path.write_bytes(content)
        return dict(read_safetensors(path))

    def is_theirs(arrays):
        assert same(arrays, numpy.load_file(path))
        assert sum(a.nbytes for a in arrays.values()) <= path.stat().st_size
    changes = st.lists(change, min_size=1, max_size=3)
    read_or_refused(read, is_theirs, SafeTensorsError, str(path), 1500, changes, st.booleans())
