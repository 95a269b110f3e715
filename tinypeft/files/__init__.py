"""Files: written completely or not at all, and read without trusting them.

    disk.py           writing in one step; opening a regular file, and nothing else
    content.py        JSON from elsewhere, and the types of what is in it
    safetensors.py    the format of all arrays that are written
    arrays.py         named arrays and a description in one file, with a checksum
    cached.py         rows that took long to compute, in the user's cache, with a limit
"""
from .arrays import fingerprint, load_arrays, save_arrays
from .cached import cached_rows
from .content import check_fields, made, naming, parse_json
from .disk import (
    cache_directory,
    check_writable,
    open_regular,
    read_text,
    replacing,
    write_atomically,
)

__all__ = ["cache_directory", "cached_rows", "check_fields", "check_writable", "fingerprint",
           "load_arrays", "made", "naming", "open_regular", "parse_json", "read_text", "replacing",
           "save_arrays", "write_atomically"]
