"""Reading the files that somebody brings: texts, and tables in CSV, TSV or JSON.

Nothing is guessed and nothing is skipped in silence: a file that is not what it should be is a
ValueError that names the file, the line, what is there and what to do. A file may have 20 MB,
because a corpus is held in memory, with each of its spans of words.
"""
from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...common.wording import brief, shortened
from ...engine.nn import Module
from ...files import naming, open_regular, parse_json

__all__ = ["Rows", "Table", "Texts", "read_table", "read_texts", "table_of"]

MOST = 20_000_000                                             # bytes
TEXTS = ".md", ".markdown", ".rst", ".txt"                    # what is read of a folder
# Why the other files are not.
OTHER_NAME = f"the name ends in none of {', '.join(TEXTS)}; to read such a file, name it"
HIDDEN, BLANK, LINK, NO_FILE = "hidden", "no text in it", "link to a folder", "no regular file"
SKIP = "; or set skip_empty, which leaves such rows out"
WIDE = b"\xff\xfe", b"\xfe\xff"                               # how UTF-16 and UTF-32 begin
Paths = str | Path | Sequence[str | Path]
Columns = Mapping[str, Iterable[Any]]
Rows = str | Path | Iterable[tuple[str, ...] | Mapping[str, Any]] | Columns      # a file, or memory


@dataclass(frozen=True)
class Table:
    """Rows of a file: (line, column → value). columns: in the file's order; a name may repeat.
    unit: what a row is known by, "line", or "item" of a JSON list."""
    path: Path
    sha256: str
    columns: tuple[str, ...]
    rows: tuple[tuple[int, dict[str, Any]], ...]
    unit: str = "line"

    def place(self, line: int) -> str:
        """"reviews.csv, line 3"."""
        return f"{self.path}, {self.unit} {line}"

    def places(self, lines: Sequence[int]) -> str:
        """"line 3", or "lines 3, 5, 8, 9, 12 and 7 more"."""
        return several(self.unit, lines)

    def chosen(self, *options: tuple[str, ...]) -> tuple[str, ...]:
        """Return the first option whose columns all exist. ValueError, with a list of the columns,
        if none is there, or one of them twice."""
        for names in options:
            if not set(names) <= set(self.columns): continue
            if twice := [name for name in names if self.columns.count(name) > 1]:
                raise ValueError(f"{self.path}: two columns are called {brief(twice[0])}; rename "
                                 "one")
            return names
        wanted = " or ".join(" and ".join(map(repr, names)) for names in options)
        raise ValueError(f"{self.path} has no column {wanted}; there are "
                         f"{shortened(', '.join(map(repr, self.columns)), 400)}. Say which of them "
                         "to read")

    def empty(self, columns: Sequence[str]) -> list[int]:
        """Return the places of the rows that have nothing in one of these columns."""
        return [i for i, (_, row) in enumerate(self.rows)
                if any(_is_empty(row.get(column)) for column in columns)]

    def without(self, places: Sequence[int]) -> Table:
        """Return the table without the rows at these places. ValueError if none is left."""
        gone = set(places)
        rows = tuple(row for i, row in enumerate(self.rows) if i not in gone)
        if not rows: raise ValueError(f"{self.path}: no row is left; give rows that are not empty")
        return replace(self, rows=rows)

    def texts(self, column: str, is_optional: bool = False) -> list[str]:
        """Return the column's values as text, without whitespace around them. ValueError for a
        value that is missing, empty (unless is_optional) or no text; numbers and truth values
        become text."""
        texts = [self._text(line, row.get(column), column, is_optional) for line, row in self.rows]
        empty = [line for (line, _), text in zip(self.rows, texts, strict=True) if not text]
        if empty and not is_optional:
            raise ValueError(f"{self.path}: {column!r} is empty in {self.places(empty)}; fill it "
                             f"in, or delete the row{SKIP}")
        return texts

    def _text(self, line, value, column, is_optional):
        if isinstance(value, np.generic): value = value.item()
        if value != value: value = None                       # NaN stands for nothing
        if type(value) in (int, float, bool): value = json.dumps(value)
        if value is None and is_optional: value = ""
        if not isinstance(value, str):
            got = f"nothing{SKIP}" if value is None else brief(value)
            raise ValueError(f"{self.place(line)}: {column!r} must be text, got {got}")
        return checked(value, self.place(line)).strip()


def _is_empty(value):
    """Tell if a value is nothing: none, NaN, blank, or a conversation without a last message."""
    match value:
        case [*_, {"content": last}]: return _is_empty(last)
        case None | []: return True
        case str(): return not value.strip()
        case _: return bool(value != value)


def several(unit: str, numbers: Sequence[int]) -> str:
    """Return the first numbers of lines or items, and how many more there are."""
    more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
    return f"{unit}{'s'[:len(numbers) > 1]} {', '.join(map(str, numbers[:5]))}{more}"


@dataclass(frozen=True)
class Texts:
    """What was read of files. texts: (name, text) of each. sha256: of them all. left_out: why files
    were not read → their names."""
    texts: list[tuple[str, str]]
    sha256: str
    left_out: dict[str, list[str]]


def read_texts(paths: Paths, encoding: str = "utf-8") -> Texts:
    """Read files, and the text files in folders. A dict of name → text, or of name → list of texts,
    is taken as it is.

    Of a folder, files that end in .md, .markdown, .rst or .txt are read, in the order of their
    names, those of inner folders too; hidden ones and blank ones are not. Raises FileNotFoundError,
    and ValueError for what is not text, for no text at all, and for more than 20 MB."""
    left_out = {}
    if isinstance(paths, Mapping):
        texts = [pair for name, value in paths.items() for pair in named_texts(name, value)]
        if not all(isinstance(text, str) for pair in texts for text in pair):
            raise TypeError(f"expected a dict of texts, name → text, got {str(paths)[:80]}")
        texts = [(name, checked(text, name).strip()) for name, text in texts]
        hashed = hashlib.sha256(json.dumps(texts).encode())
    elif isinstance(paths, Module) or not isinstance(paths, (Path, Iterable)):
        raise TypeError("expected files or folders, or a dict name → text, got a "
                        f"{type(paths).__name__}; the data come first, and then the model")
    else:
        paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
        texts, hashed, left_out = _texts(paths, encoding)
    if blank := [name for name, text in texts if not text]:
        left_out[BLANK] = blank
    found = [(name, text) for name, text in texts if text]
    if not found:
        raise ValueError(f"{', '.join(map(str, paths)) or 'no file'}: there is no text in it; give "
                         "files that hold text")
    return Texts(found, hashed.hexdigest(), left_out)


def named_texts(name: str, value: Any) -> list[tuple[str, Any]]:
    """Return [(name, text)] of a text, or of a list of texts, which are numbered."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        return [(name, value)]
    return [(f"{name} {n}", text) for n, text in enumerate(value, 1)]


def _texts(paths, encoding):
    """([(name, text)] of files, the hash of their hashes, why others were left out → names)."""
    texts, hashed, left, left_out = [], hashlib.sha256(), MOST, {}
    others = {}                                               # path → (name, why it is not read)
    files = dict.fromkeys(file for given in paths for file in _files(Path(given), others))
    for path in files:
        data = _bytes(path, left)
        left -= len(data)
        hashed.update(hashlib.sha256(data).digest())
        texts.append((path.name, decoded(data, path, encoding).strip()))
    for path, (name, reason) in others.items():
        if path not in files: left_out.setdefault(reason, []).append(name)
    return texts, hashed, left_out


def _files(path, others):
    """Return the file itself, or a folder's text files. others: takes the folder's other files."""
    if "\n" in str(path) or len(str(path)) > 1000:
        raise ValueError(f"{brief(str(path))} is a text and not the path of a file; give texts in "
                         "memory as a dict, name → text")
    if not path.is_dir(): return [path]
    there = []
    for file in sorted(path.rglob("*")):
        inner = file.relative_to(path)
        if reason := _why_not(file, inner.parts): others[file] = inner.as_posix(), reason
        elif not file.is_dir(): there.append(file)
    if there: return there
    raise ValueError(f"the folder {path} holds no text file: none ends in {', '.join(TEXTS)}; name "
                     "the files instead")


def _why_not(file, parts):
    """Return why a file of a folder is not read, or None. parts: of its path in the folder."""
    if file.is_dir():                                         # what is in it is listed by itself
        return LINK if file.is_symlink() else None
    if any(part.startswith(".") for part in parts): return HIDDEN
    if file.suffix.lower() not in TEXTS: return OTHER_NAME
    return None if file.is_file() else NO_FILE


def read_table(path: str | Path, encoding: str = "utf-8", delimiter: str | None = None) -> Table:
    """Return the rows of a file: JSON if it ends in .jsonl, .ndjson or .json, or begins with a
    brace or a bracket, and otherwise CSV with a header.

    delimiter: what separates fields; None is a tab in a file that ends in .tsv, and elsewhere what
    the header has most of: commas, semicolons or tabs. Raises FileNotFoundError and ValueError."""
    path = Path(path)
    data = _bytes(path, MOST)
    text = decoded(data, path, encoding)
    if not text.strip(): raise ValueError(f"{path} is empty; give a file with rows")
    is_json = path.suffix in (".jsonl", ".ndjson", ".json")
    if path.suffix not in (".csv", ".tsv"): is_json |= text.lstrip()[0] in "{["
    columns, rows = _json(text, path) if is_json else _csv(text, path, delimiter)
    if not rows: raise ValueError(f"{path} has no row; give a file with rows")
    unit = "item" if is_json and text.lstrip()[0] == "[" else "line"
    return Table(path, hashlib.sha256(data).hexdigest(), columns, tuple(rows), unit)


def table_of(data: Rows, names: tuple[str, ...], encoding: str, delimiter: str | None) -> Table:
    """Return the rows of a file, as `read_table`, or of what is in memory: a list of tuples in the
    order of `names`, or of dicts, a dict of columns, or a data frame. Raises TypeError for others.
    """
    if isinstance(data, (str, Path)):
        return read_table(data, encoding, delimiter)
    wanted = f"({', '.join(names)})"
    if hasattr(data, "keys"):
        data = rows_of_columns(data)
    if isinstance(data, Module) or not isinstance(data, Iterable):
        raise TypeError(f"expected a file, a list of {wanted} or of dicts, or a dict of columns, "
                        f"got a {type(data).__name__}; the data come first, and then the model")
    rows = []
    for n, row in enumerate(data, 1):
        if isinstance(row, (tuple, list)) and len(row) == len(names):
            row = dict(zip(names, row, strict=True))
        if not isinstance(row, Mapping):
            raise TypeError(f"item {n} of the rows: expected {wanted}, or a dict, got {row!r:.80}")
        rows.append((n, row))
    if not rows:
        raise ValueError("there is no row; give a list with rows")
    columns = dict.fromkeys(name for _, row in rows for name in row)
    text = json.dumps([dict(row) for _, row in rows], default=str)
    return Table(Path("rows"), hashlib.sha256(text.encode()).hexdigest(), tuple(columns),
                 tuple(rows), "item")


def rows_of_columns(data: Any) -> list[dict[str, Any]]:
    """Return the rows of columns, name → list of values. ValueError for columns of unequal
    lengths, TypeError for a column that is no list."""
    columns = {}
    for name in data.keys():                                  # a data frame has no items()
        if isinstance(data[name], str) or not isinstance(data[name], Iterable):
            raise TypeError(f"the column {brief(name)} must be a list of values, got "
                            f"{brief(data[name])}")
        columns[str(name)] = list(data[name])
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{brief(name)} {n:,}" for name, n in lengths.items())
        raise ValueError(f"the columns have unequal lengths: {shortened(listed, 400)}")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _json(text, path):
    if text.lstrip()[0] == "[":
        unit, values = "item", [*enumerate(_parsed(text, path), 1)]
    else:
        unit, lines = "line", enumerate(text.split("\n"), 1)
        values = [(n, _parsed(line, f"{path}, line {n}")) for n, line in lines if line.strip()]
    for n, value in values:
        if not isinstance(value, dict):
            raise ValueError(f'{path}, {unit} {n}: expected a JSON object such as {{"prompt": "…", '
                             f'"answer": "…"}}, got {brief(value)}')
    return tuple(dict.fromkeys(name for _, row in values for name in row)), values


def _parsed(text, place):
    with naming(place):
        return parse_json(text, remedy="each line holds one JSON object")


def _csv(text, path, delimiter):
    header = text.lstrip("\n").split("\n", 1)[0]
    if delimiter is None:
        delimiter = "\t" if path.suffix == ".tsv" else max(",;\t", key=header.count)
    if len(delimiter) != 1 or delimiter in '"\n\r ':
        raise ValueError(f"delimiter must be one character such as ',' or ';', got {delimiter!r}")
    reader, rows, before = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True), [], 0
    try:
        for row in reader:
            if row: rows.append((before + 1, row))            # the line that the row begins in
            before = reader.line_num
    except csv.Error as e:
        raise ValueError(f"{path}, line {before + 1}: {e}; a text that contains {delimiter!r}, a "
                         "quote or a line end stands in quotes, and a quote in it is written twice"
                         ) from e
    (_, columns), *rows = rows
    columns = [name.strip() for name in columns]
    ragged = [(line, row) for line, row in rows if len(row) != len(columns)]
    if ragged:
        (line, row), where = ragged[0], several("line", [line for line, _ in ragged])
        raise ValueError(f"{path}: {where}: line {line} has {len(row)} fields, the "
                         f"header has {len(columns)}; put quotes around a text that contains "
                         f"{delimiter!r} or a line end")
    return tuple(columns), [(line, dict(zip(columns, row, strict=True))) for line, row in rows]


# -- bytes and characters --------------------------------------------------------------------------
def _bytes(path, most):
    if path.is_dir(): raise ValueError(f"{path} is a folder; give a file in it")
    with open_regular(path) as f: data = f.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{path}: more than {MOST:,} bytes in all, which is the most that is read "
                         "as a task; give a part of it")
    return data


def decoded(data: bytes, path: str | Path, encoding: str) -> str:
    """Return the bytes as text, its line ends as "\\n" and without a byte order mark. ValueError
    names the first byte that does not fit, and an encoding to try."""
    try:
        name = codecs.lookup(encoding).name
        b" ".decode(encoding, "ignore")                       # refuses "hex" and the like
    except (LookupError, ValueError, TypeError) as e:
        raise ValueError(f"{path}: there is no encoding {encoding!r} of text; files are usually in "
                         "'utf-8', and older ones of Windows in 'cp1252'") from e
    if not name.startswith(("utf-16", "utf-32")):
        if data.startswith(WIDE):
            raise ValueError(f"{path} begins as a file in UTF-16 does; give its encoding, utf-16")
        if (at := data.find(0)) >= 0:
            raise ValueError(f"{path} is not a text file: byte {at:,} is 0; save it as plain text")
    try:
        text = data.decode(encoding)
    except UnicodeError as e:
        at = f"byte {e.start:,} does not fit" if isinstance(e, UnicodeDecodeError) else str(e)
        other = "cp1252" if name.startswith("utf-8") else "utf-8"
        raise ValueError(f"{path} is not text in {encoding}: {at}. Save it as UTF-8, or say its "
                         f"encoding, such as {other}") from e
    return checked(text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n"), path)


def checked(text: str, place: object) -> str:
    """Return the text. ValueError if it holds NUL, or half of a pair of surrogates, which no file
    can."""
    if "\0" in text: raise ValueError(f"{place}: the text holds the character NUL; remove it")
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise ValueError(f"{place}: {text[e.start]!r} is half of a character; write the whole one"
                         ) from e
    return text
