"""files/: what goes in comes out, a crash leaves the old file, and a file is not trusted."""
import hashlib
import io
import os

import numpy as np
import pytest

from tests.stress.attacks import PLACES, save_raw
from tinypeft.files import disk, fingerprint, load_arrays, read_text, save_arrays, write_atomically
from tinypeft.files.safetensors import write_safetensors

ARRAYS = {"model/blocks.0.w": np.arange(6, dtype=np.float16).reshape(2, 3), "codes": np.arange(5, dtype=np.uint8),
          "t": np.array(7), "empty": np.zeros((0, 3), np.float32), "columns": np.asfortranarray(np.eye(3)[:2])}
META = {"step": 3, "loss": [1.5, 2.25], "name": "größer", "none": None, "nested": {"a": [True]}}


def test_what_goes_in_comes_out(tmp_path):
    path = tmp_path / "new" / "folder" / "file.npz"
    save_arrays(path, ARRAYS, META)
    arrays, meta = load_arrays(path)
    assert meta == META and arrays.keys() == ARRAYS.keys()
    for name, a in arrays.items():
        assert a.dtype == ARRAYS[name].dtype and np.array_equal(a, ARRAYS[name])
    save_arrays(path, {}, {})
    assert load_arrays(path) == ({}, {}) and os.listdir(path.parent) == ["file.npz"]


def test_numpy_numbers_are_numbers_in_meta(tmp_path):
    save_arrays(tmp_path / "a", {}, {"steps": np.int64(3), "lr": np.float32(0.5), "on": np.bool_(True)})
    assert load_arrays(tmp_path / "a")[1] == {"steps": 3, "lr": 0.5, "on": True}


class FullDisk(io.FileIO):
    """A file that takes 100 bytes."""
    def write(self, data):
        if self.tell() + len(data) > 100: raise OSError("no space left on device")
        return super().write(data)


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_a_crash_leaves_the_old_file(where, tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.safetensors"
    save_arrays(path, ARRAYS, {"step": 1})
    before = path.read_bytes()

    def crash(*args): raise OSError("no space left on device")
    if where == "write": monkeypatch.setattr(disk, "open", FullDisk, raising=False)
    else:                monkeypatch.setattr(disk.os, where, crash)
    with pytest.raises(OSError, match="no space left"):
        save_arrays(path, ARRAYS, {"step": 2})
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["checkpoint.safetensors"]  # and leaves no litter


def test_write_atomically(tmp_path, monkeypatch):
    path = tmp_path / "a" / "text.json"
    write_atomically(path, "größer\r\n")
    assert path.read_bytes() == "größer\r\n".encode()
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_bytes() == "größer\r\n".encode() and os.listdir(path.parent) == ["text.json"]


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_arrays(tmp_path / "nothing.npz")


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b"hello", lambda b: b[:len(b) // 2],
                                    lambda b: b[:100] + bytes([b[100] ^ 1]) + b[101:]])
def test_a_damaged_file_is_named(damage, tmp_path):
    path = tmp_path / "file.npz"
    save_arrays(path, {"w": np.arange(1000)}, META)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"file.npz is not a file that tinypeft wrote, or it is damaged"):
        load_arrays(path)


def test_another_programs_file_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", w=np.ones(3))
    with pytest.raises(ValueError, match="other.npz is not a file that tinypeft wrote"):
        load_arrays(tmp_path / "other.npz")
    write_safetensors(tmp_path / "other.safetensors", {"w": np.ones(3)})
    with pytest.raises(ValueError, match="is not a file that tinypeft wrote, or it is damaged: .* no entry 'tinypeft'"):
        load_arrays(tmp_path / "other.safetensors")


def test_nothing_in_a_file_is_executed(tmp_path):
    class Trap:
        def __reduce__(self): return os.mkdir, (str(tmp_path / "sprung"),)
    np.savez(tmp_path / "trap.npz", w=np.array([Trap()], dtype=object), __meta__=np.frombuffer(b"{}", np.uint8))
    with pytest.raises(ValueError, match="trap.npz"):
        load_arrays(tmp_path / "trap.npz")
    assert not (tmp_path / "sprung").exists()


def test_a_fingerprint_is_of_names_types_shapes_and_bytes():
    """The digest is part of saved adapters: SHA-256 over each array's "name dtype (shape)" and its bytes, by name."""
    a = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.asfortranarray(np.eye(2))}
    parts = [b"b float64 (2, 2)", np.eye(2).tobytes(), b"w float32 (2, 3)", a["w"].tobytes()]
    assert fingerprint(a) == hashlib.sha256(b"".join(parts)).hexdigest() == fingerprint(dict(reversed(a.items())))
    others = [{**a, "w": a["w"].T.copy()}, {**a, "w": a["w"].astype(np.float64)}, {"v": a["w"], "b": a["b"]},
              {**a, "w": a["w"] + 1}, {"w": a["w"]}]
    assert len({fingerprint(x) for x in [a, *others]}) == 6


@pytest.mark.parametrize("bad, says", [
    (np.array([1, np.nan], np.float32), "'w' has numbers that are not finite"),
    (np.array([np.inf], np.float16), "'w' has numbers that are not finite"),
    (np.ones(2, np.complex64), "'w' is of type complex64, expected real numbers")])
def test_numbers_that_are_not_finite_or_real_are_neither_written_nor_read(bad, says, tmp_path):
    with pytest.raises(ValueError, match=f"new: {says}"): save_arrays(tmp_path / "new", {"w": bad}, {})
    assert not list(tmp_path.iterdir())
    save_raw(tmp_path / "raw", {"w": bad}, {})
    with pytest.raises(ValueError, match="raw is not a file.*(not finite|complex)"): load_arrays(tmp_path / "raw")


def test_any_changed_byte_is_noticed(tmp_path):
    arrays = {"w": np.arange(20, dtype=np.float32), "codes": np.arange(9, dtype=np.uint8)}
    save_arrays(path := tmp_path / "f", arrays, {"alpha": 16.5})
    good = path.read_bytes()
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1:])
        with pytest.raises(ValueError, match="f is not a file that tinypeft wrote"): load_arrays(path)


def test_the_description_is_a_finite_object(tmp_path):
    with pytest.raises(ValueError, match="JSON"): save_arrays(tmp_path / "f", {}, {"loss": float("nan")})
    save_raw(tmp_path / "f", {}, [])
    with pytest.raises(ValueError, match="must be an object, got list"): load_arrays(tmp_path / "f")


@pytest.mark.parametrize("name", PLACES)
def test_only_regular_files_are_opened(name, tmp_path):
    PLACES[name](tmp_path / "place")
    error = r"place (is not a regular file|cannot be opened|is not a file that tinypeft wrote|has 1,099,511,627,776 bytes)"
    for read in load_arrays, *[read_text] * (name not in ("a pickle", "no bytes")):
        with pytest.raises(ValueError, match=error): read(tmp_path / "place")
