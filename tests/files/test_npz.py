"""files/npz.py: what earlier versions wrote is read, and an archive takes no more memory than it has bytes."""
import time
import tracemalloc

import numpy as np
import pytest

from tests.stress.attacks import META, ZIPS, archive, npy, save_npz
from tinypeft.files import load_arrays
from tinypeft.files.npz import read_npz

ARRAYS = {"model/w": np.arange(6, dtype=np.float16).reshape(2, 3), "codes": np.arange(5, dtype=np.uint8), "t": np.array(7),
          "empty": np.zeros((0, 3), np.float32), "columns": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
          "on": np.array([True])}


def test_older_files_are_read(tmp_path):
    save_npz(tmp_path / "old", ARRAYS, {"step": 3})
    arrays, meta = load_arrays(tmp_path / "old")
    assert meta == {"step": 3} and arrays.keys() == ARRAYS.keys()
    for name, a in arrays.items():
        assert a.dtype == ARRAYS[name].dtype and np.array_equal(a, ARRAYS[name]) and a.flags.writeable and a.flags.c_contiguous


@pytest.mark.parametrize("name", ZIPS)
def test_hostile_archives_are_refused_within_their_size(name, tmp_path):
    (tmp_path / "hostile").write_bytes(ZIPS[name])
    tracemalloc.start()
    start = time.process_time()
    if "climb" in name or "root" in name: assert len(load_arrays(tmp_path / "hostile")[0]) == 1      # a name is only a name
    else:
        with pytest.raises(ValueError, match="hostile is not a file that tinypeft wrote"): load_arrays(tmp_path / "hostile")
    assert time.process_time() - start < 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 10 * len(ZIPS[name]) + (16 << 20) and not (tmp_path.parent / "sprung.npy").exists()


@pytest.mark.parametrize("members, says", [
    ([("x.npy", npy()), ("x.npy", npy()), META], "same name"), ([("x.npy", npy(data=bytes(4))), META], "the member has 4"),
    ([("x.npy", npy(descr="'<c8'", shape="(1,)")), META], "complex64, expected numbers"), ([("x.npy", b"nothing")], "magic")])
def test_the_fault_is_named(members, says, tmp_path):
    with pytest.warns(UserWarning) if "same" in says else np.errstate(): data = archive(members)
    (tmp_path / "f").write_bytes(data)
    with pytest.raises(ValueError, match=says): read_npz(tmp_path / "f")
