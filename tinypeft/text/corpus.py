"""The corpora: real English that every installation carries, divided so that a test shows nothing seen in training.

`base()` is what the shipped model is pretrained on: Python's reference topics and the docstrings of the standard
library, NumPy and SciPy. `domain()` is Matplotlib's docstrings, which the base never saw. Both are read at run time,
in a fixed order, and carry a SHA-256 of what was read: another version of a library is another corpus, and says so.

Documentation repeats itself: a method and its function, five FFTs, twenty distributions. Of test documents drawn one by
one, every sixth shares 24 words in a row with training (measured), and a model is graded on its memory. So, in order:

1. Documents that share any span of 24 words form a *family* (union–find), and a family is split as a whole: no test
   document shares 24 words in a row with training. A shorter document is one span, so equal ones meet too. Why 24:
   shorter spans chain what merely uses the same phrases (the largest family is 38 % of the base's text at 12 words,
   26 % at 16, 17 % at 24, 11 % at 32, 2 % at 48), longer ones let repetition through (at 48, 14 % of the test documents
   share 24 words with training); and half of all docstrings are no longer than 24 words.
2. A family goes to train, validation or test by the hash of its first member's header, so that a library's new
   documents move few old ones. A family above 1 % of the text goes to train: a test should not be one family's.
3. A paragraph of at least 80 characters is kept where it occurs first and dropped everywhere after, going through
   train, then validation, then test: repetition would weigh it double, and would make a test easy.

Matplotlib's documents are divided by the same rules among themselves, not against the base's: what the two libraries
word alike is what a model pretrained on the one knows about the other, and is no leak.
"""

import functools
import hashlib
import importlib.metadata
import json
import platform
import re
from collections import Counter
from dataclasses import astuple, dataclass, replace
from pathlib import Path

from ..files import cache_directory, write_atomically
from . import docstrings
from .docstrings import LIBRARIES, Document, location

SPAN = 24              # words in a row that make two documents one family
PARAGRAPH = 80         # characters from which a repeated paragraph is dropped
GIANT = 0.01           # share of the text from which a family stays in train

# Editing the reader renews the cache. Hashed on import: a process that began before the edit keeps to its own entry.
_READER = hashlib.sha256(Path(docstrings.__file__).read_bytes()).hexdigest()


@dataclass(frozen=True)
class Corpus:
    """Documents in three parts, each a tuple of `Document`, and the SHA-256 of all that was read to make them."""
    train: tuple
    validation: tuple
    test: tuple
    sha256: str

    def text(self, part):
        """The documents of "train", "validation" or "test" as one string (what a tokenizer is trained on)."""
        return "\n".join(map(str, getattr(self, part)))

    def n_bytes(self, part):
        """UTF-8 bytes of a part's documents: what turns nats per token into bits per byte."""
        return sum(len(str(document).encode()) for document in getattr(self, part))


@functools.cache
def base():
    """Python, NumPy and SciPy: the `Corpus` of the shipped base model."""
    return _corpus("python", "numpy", "scipy", fractions=(0.05, 0.05))


@functools.cache
def domain():
    """Matplotlib: the `Corpus` the base has never seen. A fifth of the base's size, so twice the share is held out."""
    return _corpus("matplotlib", fractions=(0.1, 0.1))


def _corpus(*libraries, fractions):
    read = [d for library in libraries for d in documents(library)]
    seen = set()
    return Corpus(*(tuple(deduplicate(part, seen)) for part in split(read, fractions)), sha256=fingerprint(read))


def fingerprint(documents):
    """SHA-256 (hex) over the documents, in order."""
    return hashlib.sha256(json.dumps([astuple(d) for d in documents]).encode()).hexdigest()


# ---- families, split, repetition -------------------------------------------------------------------------------------

def families(documents, span=SPAN):
    """For each document the index of its family's first member → list of int.

    Two documents are joined if they share `span` consecutive words (case and punctuation ignored); families are the
    connected components of that relation."""
    parent = list(range(len(documents)))

    def root(i):
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]                                     # path halving
        return i

    number, owner = {}, {}                                      # word → number, hash of a span → its first document
    for i, document in enumerate(documents):
        words = [number.setdefault(w, len(number)) for w in re.findall(r"\w+", document.text.lower())]
        for row in zip(*(words[k:] for k in range(min(span, len(words)))), strict=False):
            a, b = root(i), root(owner.setdefault(hash(row), i))                  # of integers: equal in every process
            parent[max(a, b)] = min(a, b)
    return [root(i) for i in range(len(documents))]


def split(documents, fractions=(0.05, 0.05), seed=0):
    """Documents → (train, validation, test), three lists in the given order; `fractions` are validation's and test's.

    Whole families, by hash (see the module's docstring); deterministic for equal `seed`. Raises `ValueError` unless
    the fractions are positive or zero and leave something to train on."""
    validation, test = fractions
    if min(fractions) < 0 or validation + test >= 1:
        raise ValueError(f"fractions must be two numbers ≥ 0 with a sum below 1, got {fractions}")
    family = families(documents)
    members, size = Counter(family), Counter()
    for first, document in zip(family, documents, strict=True):
        size[first] += len(str(document))
    giants = {first for first in members if members[first] > 1 and size[first] > GIANT * size.total()}
    parts = [], [], []
    for first, document in zip(family, documents, strict=True):
        digest = hashlib.sha256(f"{seed} {documents[first].header}".encode()).digest()
        u = int.from_bytes(digest[:8]) / 2**64                                    # uniform in [0, 1)
        part = 0 if first in giants or u >= validation + test else 1 if u < validation else 2
        parts[part].append(document)
    return parts


def deduplicate(documents, seen=None):
    """Documents without the paragraphs in `seen`, a set of paragraphs (spaces collapsed) that grows as it is read.

    Paragraphs are what blank lines separate; those below 80 characters always stay. A document left empty is gone."""
    seen, kept = set() if seen is None else seen, []
    for document in documents:
        paragraphs = []
        for paragraph in document.text.split("\n\n"):
            key = " ".join(paragraph.split())
            if len(key) < PARAGRAPH or key not in seen:
                seen.add(key)
                paragraphs.append(paragraph)
        if paragraphs:
            kept.append(replace(document, text="\n\n".join(paragraphs)))
    return kept


# ---- the cache -------------------------------------------------------------------------------------------------------

def documents(library):
    """The documents of an installed library: `docstrings.read`, remembered in a file because it takes seconds.

    The file's name says which library, which version, which Python and which reader; anything unreadable is read
    again, and where nothing can be written nothing is. Raises like `docstrings.read`."""
    version = importlib.metadata.version(library) if library in LIBRARIES[1:] else ""
    what = f"{location(library)} {version} {platform.python_version()} {_READER}"
    key = hashlib.sha256(what.encode()).hexdigest()
    path = cache_directory() / f"{library}-{version or platform.python_version()}-{key[:16]}.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        read = [Document(*fields) for fields in stored["documents"]]
        if stored["sha256"] == fingerprint(read):
            return read
    except (OSError, ValueError, TypeError, KeyError):
        pass
    read = docstrings.read(library)
    try:
        write_atomically(path, json.dumps({"sha256": fingerprint(read), "documents": [astuple(d) for d in read]}))
    except OSError:
        pass
    return read
