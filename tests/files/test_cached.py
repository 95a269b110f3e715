"""cached.py: a row is computed once, and never taken from a file that is not as it should be."""
import hashlib
import os

import numpy as np
import pytest

from tinypeft.files import cache_directory, cached, cached_rows, load_arrays, save_arrays

A, B, C = (hashlib.sha256(name).digest() for name in (b"a", b"b", b"c"))
MODEL, *OTHERS = (hashlib.sha256(name).hexdigest() for name in (b"model", b"second", b"third"))
VALUES = {A: 1.0, B: 2.0, C: 3.0}


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(cached, "cache_directory", lambda: tmp_path)
    return tmp_path / "features"


def read(*keys, name=MODEL, width=4):
    """(the rows' first numbers, the keys that were computed)."""
    computed = []

    def compute(places):
        computed.extend(keys[i] for i in places)
        return np.array([[VALUES[keys[i]]] * width for i in places], np.float32)
    rows = cached_rows(name, keys, width, compute)
    assert rows.shape == (len(keys), width) and rows.dtype == np.float32
    return rows[:, 0].tolist(), computed


def test_a_row_is_computed_once(folder):
    assert read(A, B) == ([1, 2], [A, B])
    assert read(B, C, A) == ([2, 3, 1], [C]) and read(C, B, A, C) == ([3, 2, 1, 3], [])
    assert read(A, name=OTHERS[0]) == ([1], [A]) and read(A) == ([1], [])
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.safetensors" for name in (MODEL, OTHERS[0]))


def damaged(path): path.write_bytes(path.read_bytes()[:-1] + b"x")
def cut(path): path.write_bytes(path.read_bytes()[:50])
def emptied(path): path.write_bytes(b"")
def other_arrays(path): save_arrays(path, {"a": np.zeros(3)}, {})
def short_keys(path): save_arrays(path, {"keys": np.zeros((1, 31), np.uint8), "rows": np.ones((1, 4), np.float32)}, {})


def one_number(path): save_arrays(path, {"keys": np.zeros((1, 32), np.uint8), "rows": np.float32(3)}, {})
def one_key(path): save_arrays(path, {"keys": np.uint8(1), "rows": np.ones((1, 4), np.float32)}, {})


def of_other_keys(path):
    arrays, meta = load_arrays(path)
    save_arrays(path, arrays | {"keys": arrays["keys"][:1]}, meta)


def whole_numbers(path):
    arrays, meta = load_arrays(path)
    save_arrays(path, arrays | {"rows": arrays["rows"].astype(int)}, meta)


@pytest.mark.parametrize("harm", [damaged, cut, emptied, other_arrays, short_keys, one_number, one_key, of_other_keys,
                                  whole_numbers])
def test_a_file_that_is_not_as_it_should_be_is_computed_again(folder, harm):
    read(A, B)
    harm(folder / f"{MODEL}.safetensors")
    assert read(A, B) == ([1, 2], [A, B]) and read(A, B) == ([1, 2], [])


def test_rows_of_another_width_are_not_taken(folder):
    read(A)
    assert read(A, width=5) == ([1], [A])


def test_what_was_used_last_stays(folder, monkeypatch):
    """Half of the limit holds two rows of 100 float32 and a key of 32 bytes; the file that was used first goes."""
    monkeypatch.setattr(cached, "LIMIT", 2 * 2 * (400 + 32))
    read(A, B, C, width=100)
    assert read(C, B, width=100) == ([3, 2], []) and read(A, C, width=100) == ([1, 3], [A])
    assert read(B, width=100) == ([2], [B])
    read(A)
    monkeypatch.setattr(cached, "LIMIT", 2 * (folder / f"{MODEL}.safetensors").stat().st_size + 1)
    for seconds, name in enumerate((MODEL, *OTHERS)):
        read(A, name=name)
        if name != OTHERS[1]: os.utime(folder / f"{name}.safetensors", (seconds, seconds))
    assert {path.stem for path in folder.iterdir()} == set(OTHERS)


@pytest.mark.parametrize("name", ["mine", MODEL[:-1], f"{MODEL}.old"])
def test_other_files_in_the_folder_stay_and_take_no_room(folder, monkeypatch, name):
    folder.mkdir()
    mine = folder / f"{name}.safetensors"
    mine.write_bytes(b"x" * 3000)
    os.utime(mine, (0, 0))
    monkeypatch.setattr(cached, "LIMIT", 2000)
    assert read(A) == ([1], [A]) and read(A) == ([1], []) and mine.stat().st_size == 3000


@pytest.mark.parametrize("target", ["large", "nowhere"])
def test_a_link_in_the_folder_is_no_file_of_the_cache(folder, monkeypatch, tmp_path, target):
    (tmp_path / "large").write_bytes(b"x" * 3000)
    folder.mkdir()
    link, old = (folder / f"{name}.safetensors" for name in OTHERS)
    link.symlink_to(tmp_path / target)
    old.write_bytes(b"x" * 2000)
    for path in (tmp_path / "large", old): os.utime(path, (0, 0))
    monkeypatch.setattr(cached, "LIMIT", 2000)
    assert read(A) == ([1], [A]) and read(A) == ([1], [])
    assert link.is_symlink() and not old.exists() and len(list(folder.iterdir())) == 2


def test_where_nothing_can_be_written_it_is_computed_each_time(folder):
    folder.write_text("a file")
    assert read(A) == read(A) == ([1], [A]) and folder.read_text() == "a file"


def test_a_user_without_a_home_computes_each_time(no_home, tmp_path, monkeypatch):
    monkeypatch.setattr(cached, "cache_directory", cache_directory)
    monkeypatch.chdir(tmp_path)
    assert read(A) == read(A) == ([1], [A]) and not list(tmp_path.iterdir())


def test_numbers_that_are_not_finite_are_not_kept(folder, monkeypatch):
    monkeypatch.setitem(VALUES, A, np.inf)
    assert read(A) == read(A) == ([np.inf], [A]) and not folder.exists()
