"""The corpora: English from every installation, split so that no test repeats training text.

The shipped model is pretrained on `base_corpus()`: Python's reference topics and the docstrings of
the standard library, NumPy and SciPy. `domain_corpus()` is Matplotlib's docstrings, which the base
never saw. Both are read at run time, in a fixed order; their SHA-256 identifies what was read.

Documentation repeats itself. If test documents are drawn one by one, a sixth of them share 24 words
in a row with training (measured), and the test rewards memory. So we split in three steps:

1. Documents that share any span of 24 words form a *family* (union–find; a shorter document is one
   span), and a family is never divided. Shorter spans join documents that merely use the same
   phrases (the largest family is 38 % of the base's text at 12 words, 26 % at 16, 17 % at 24, 11 %
   at 32, 2 % at 48). Longer spans let repetition through (at 48, 14 % of the test documents share
   24 words with training). Half of all docstrings have at most 24 words.
2. The hash of a family's first header chooses train, validation or test, so new documents move few
   old ones. A family above 1 % of the text goes to train: it should not dominate a test.
3. A paragraph of at least 80 characters is kept at its first occurrence only, in the order train,
   validation, test. A repeated one would count twice in training and make a test easy.

Matplotlib's documents are split likewise but not compared with the base's: a pretrained model may
know the wording that libraries share.
"""
import contextlib
import functools
import hashlib
import json
import platform
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from pathlib import Path

import numpy as np

from ..files import cache_directory, check_fields, parse_json, read_text, write_atomically
from . import docstrings
from .docstrings import LIBRARIES, Document, location

SPAN = 24              # words in a row that join two documents into a family
PARAGRAPH = 80         # characters; repeated paragraphs of at least this length are dropped
GIANT = 0.01           # a family above this share of the text stays in train
_parts = attrgetter(*(f.name for f in fields(Document)))     # like `astuple`, which is slower
_READER = hashlib.sha256(Path(docstrings.__file__).read_bytes()).hexdigest()


@dataclass(frozen=True)
class Corpus:
    """Documents in three parts, and the SHA-256 of all documents that were read."""
    train: tuple[Document, ...]
    validation: tuple[Document, ...]
    test: tuple[Document, ...]
    sha256: str

    def text(self, part: str) -> str:
        """Join the documents of "train", "validation" or "test" into one string."""
        return "\n".join(map(str, getattr(self, part)))

    def n_bytes(self, part: str) -> int:
        """Count the UTF-8 bytes of a part's documents, which bits per byte divide by."""
        return sum(len(str(document).encode()) for document in getattr(self, part))


@functools.cache
def base_corpus() -> Corpus:
    """Read the corpus of the shipped base model: Python, NumPy and SciPy."""
    return _read_corpus("python", "numpy", "scipy", fractions=(0.05, 0.05))


@functools.cache
def domain_corpus() -> Corpus:
    """Read the corpus that the base has never seen: Matplotlib. It is small (a fifth of the base
    corpus), so twice the share is held out."""
    return _read_corpus("matplotlib", fractions=(0.1, 0.1))


def _read_corpus(*libraries, fractions):
    read, seen = [d for library in libraries for d in documents(library)], set()
    parts = (tuple(deduplicate(part, seen)) for part in split(read, fractions))
    return Corpus(*parts, sha256=fingerprint(read))


def fingerprint(documents: Iterable[Document]) -> str:
    """SHA-256 (hex) of the documents, in order."""
    return hashlib.sha256(json.dumps([_parts(d) for d in documents]).encode()).hexdigest()


# ---- families, split, repetition -----------------------------------------------------------------

def families(documents: Sequence[Document], span: int = SPAN) -> list[int]:
    """Return, for each document, the index of its family's first member.

    Sharing `span` consecutive words (case and punctuation ignored) joins two documents. Families
    are the connected components."""
    number = {}
    return components(keys(numbered(document.text, number), span) for document in documents)


def numbered(text: str, number: dict[str, int]) -> list[int]:
    """Return the words of a text as numbers. number: word → its number; new words are added to
    it."""
    return [number.setdefault(w, len(number)) for w in re.findall(r"\w+", text.lower())]


def keys(words: Sequence[int], span: int = SPAN) -> np.ndarray:
    """Compute a key of 64 bits for each run of `span` words, or for all words if there are fewer.

    words: n numbers from `numbered`. Returns an array (max(1, n − span + 1),) of uint64, or (0,)
    without words. A key is the sum of the words, each times the factor of its place, modulo 2⁶⁴.
    Two runs that differ have equal keys about once in 2⁶³ pairs. Python's own `hash` is shorter in
    a browser: it has 32 bits there, and unrelated documents would meet."""
    places = min(span, len(words))
    runs = len(words) - places + 1 if words else 0
    numbers = np.array(words, np.uint64) + np.uint64(1)                       # no word counts as 0
    found = np.zeros(runs, np.uint64)
    for place, factor in enumerate(_factors(span)[:places]):
        found += factor * numbers[place:place + runs]
    return found


@functools.cache
def _factors(span):
    """Draw an odd number of 64 bits for each place in a run."""
    return np.random.default_rng(0).bit_generator.random_raw(span) | np.uint64(1)


def components(keys: Iterable[np.ndarray]) -> list[int]:
    """Return, for each item, the first of the items that it is joined with (union–find).

    keys: those of each item, an array of integers. Items with a key in common are joined."""
    parent, owner = [], {}                                                # key → the first with it

    def root(i):
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]                                   # path halving
        return i

    for i, own in enumerate(keys):
        parent.append(i)
        for key in own.tolist():
            first = owner.setdefault(key, i)
            if first != i:
                a, b = root(i), root(first)
                parent[max(a, b)] = min(a, b)
    return [root(i) for i in range(len(parent))]


def split(documents: Sequence[Document], fractions: tuple[float, float] = (0.05, 0.05),
          seed: int = 0) -> tuple[list[Document], list[Document], list[Document]]:
    """Split documents into (train, validation, test) by family, keeping their order.

    fractions: the shares of validation and test. seed: equal seeds give equal splits. Raises
    `ValueError` if a fraction is negative or nothing is left to train on."""
    validation, test = fractions
    if min(fractions) < 0 or validation + test >= 1:
        raise ValueError(f"fractions must be two numbers ≥ 0 with sum below 1, got {fractions}")
    family, size = families(documents), Counter()
    members = Counter(family)
    for first, document in zip(family, documents, strict=True):
        size[first] += len(str(document))
    limit = GIANT * size.total()
    giants = {first for first in members if members[first] > 1 and size[first] > limit}
    parts = [], [], []
    for first, document in zip(family, documents, strict=True):
        digest = hashlib.sha256(f"{seed} {documents[first].header}".encode()).digest()
        u = int.from_bytes(digest[:8]) / 2**64                                  # uniform in [0, 1)
        part = 0 if first in giants or u >= validation + test else 1 if u < validation else 2
        parts[part].append(document)
    return parts


def deduplicate(documents: Iterable[Document], seen: set[str] | None = None) -> list[Document]:
    """Drop repeated paragraphs, and documents that are then empty.

    Blank lines separate paragraphs; those below 80 characters stay. seen: the paragraphs met so far
    (spaces collapsed); the function adds to it, so several calls can share one set."""
    seen, kept = set() if seen is None else seen, []
    for document in documents:
        paragraphs = []
        for paragraph in document.text.split("\n\n"):
            key = " ".join(paragraph.split())
            if len(key) < PARAGRAPH or key not in seen: paragraphs.append(paragraph)
            seen.add(key)
        if paragraphs: kept.append(replace(document, text="\n\n".join(paragraphs)))
    return kept


# ---- the cache -----------------------------------------------------------------------------------

def documents(library: str) -> list[Document]:
    """Call `docstrings.read`, which takes seconds, and keep the result in a cache file.

    The file is named after the library's location and version, Python's version and the reader's
    source. An unreadable file is made again; without a directory that can be written to there is no
    cache. Raises as `docstrings.read` does."""
    from importlib.metadata import version as version_of  # 13 ms that only a reader waits for
    version = version_of(library) if library in LIBRARIES[1:] else ""
    origin = f"{location(library)} {version} {platform.python_version()} {_READER}"
    key = hashlib.sha256(origin.encode()).hexdigest()[:16]
    file = f"{library}-{version or platform.python_version()}-{key}.json"
    try:
        text = read_text(cache_directory() / file)
        stored = check_fields(parse_json(text), {"sha256": str, "documents": list})
        read = [Document(*fields) for fields in stored["documents"]]
        texts = all(isinstance(part, str) for document in read for part in _parts(document))
        if read and texts and stored["sha256"] == fingerprint(read):
            return read
    except (OSError, ValueError, TypeError):
        pass
    read = docstrings.read(library)
    with contextlib.suppress(OSError):
        content = {"sha256": fingerprint(read), "documents": [_parts(d) for d in read]}
        write_atomically(cache_directory() / file, json.dumps(content))
    return read
