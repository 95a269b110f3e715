"""files/disk.py: what cannot be written is said before any work, and writers that were killed leave nothing for long."""
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tinypeft.files import cache_directory, check_writable, disk, write_atomically


def test_where_the_cache_is(monkeypatch):
    monkeypatch.setenv("TINYPEFT_CACHE", "/a/b")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert cache_directory() == Path("/a/b")
    monkeypatch.delenv("TINYPEFT_CACHE")
    assert cache_directory() == Path("/c/tinypeft")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path.home() / ".cache" / "tinypeft"


def test_a_user_without_a_home_has_no_cache(no_home, monkeypatch):
    with pytest.raises(OSError, match="this user has no home directory.*; set TINYPEFT_CACHE to a folder"): cache_directory()
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert cache_directory() == Path("/c/tinypeft")


@pytest.mark.parametrize("where", [".", "new", "new/below", "link"])
def test_a_folder_that_can_be_written_to_or_made(where, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    check_writable(tmp_path / where)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["link", "real"]           # nothing is left


@pytest.mark.parametrize("where", ["file", "file/x", "file/x/y", "broken/x"])
def test_a_folder_that_cannot(where, tmp_path):
    (tmp_path / "file").write_text("text")
    (tmp_path / "broken").symlink_to("nowhere")
    with pytest.raises(OSError, match=rf"cannot write to the folder .*{where}: .*; give a folder that can be written to"):
        check_writable(tmp_path / where)


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(descriptor): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as e: write_atomically(tmp_path / "text", "x")
    assert e.value.filename == str(tmp_path / "text") and not list(tmp_path.iterdir())


WRITER = """
import sys, time
from tinypeft.files import replacing
with replacing(sys.argv[1]):
    print("open", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(os.name != "posix", reason="Windows cannot remove an open file, and needs no lock")
def test_what_a_killed_writer_left_goes_with_the_next_write_and_what_a_living_one_writes_stays(tmp_path):
    path, other = tmp_path / "c[1]*", tmp_path / "other"
    write_atomically(other, "o")
    child = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    try:
        child.stdout.readline()
        (part,) = tmp_path.glob("*.part")
        os.utime(part, (time.time() - 9, time.time() - 9))
        write_atomically(path, "1")
        assert part.exists()                             # its writer is alive
    finally:
        child.kill(); child.wait(); child.stdout.close()
    write_atomically(other, "2")
    assert part.exists()                                 # another file's part
    write_atomically(path, "2")
    assert not part.exists() and path.read_text() == "2" and len(list(tmp_path.iterdir())) == 2


def test_a_part_of_this_moment_stays(tmp_path):
    """Its writer may not have locked it yet."""
    part = tmp_path / f".text.{'0' * 32}.part"
    part.write_text("half")
    write_atomically(tmp_path / "text", "whole")
    assert part.exists()


def test_a_part_is_closed_before_it_is_removed(tmp_path, monkeypatch):
    """As on Windows, where there is no lock and an open file cannot be removed."""
    part = tmp_path / f".text.{'0' * 32}.part"
    part.write_text("half")
    os.utime(part, (time.time() - 9, time.time() - 9))
    opened, unlink = [], Path.unlink

    def remember(*args):
        opened.append(open(*args))
        return opened[-1]

    def refuse_what_is_open(path, missing_ok=False):
        if any(not f.closed and Path(f.name) == path for f in opened): raise PermissionError(13, "another process uses it")
        unlink(path, missing_ok)
    monkeypatch.setattr(disk, "fcntl", None)
    monkeypatch.setattr(disk, "open", remember, raising=False)
    monkeypatch.setattr(Path, "unlink", refuse_what_is_open)
    write_atomically(tmp_path / "text", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["text"]
