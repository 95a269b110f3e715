"""Byte-level byte-pair encoding (BPE): text ↔ integers, for any sequence of bytes.

Source: Sennrich, Haddow & Birch (2016), "Neural Machine Translation of Rare Words with Subword
Units", arXiv:1508.07909, on bytes as in Radford et al. (2019), "Language Models are Unsupervised
Multitask Learners" (GPT-2). Start with the 256 bytes, make the most frequent pair of neighbours a
token, repeat.

Merges never cross a *word*. `words` cuts a text exactly as GPT-2 does (English contractions;
letters, digits or other signs, each with at most one space before them; other whitespace), so that
`BPETokenizer(merges, vocab)` accepts GPT-2's files.
"""
from __future__ import annotations

import functools
import itertools
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ..files import check_fields, parse_json, read_text, write_atomically
from ..hints import Array

END_OF_TEXT = "<|endoftext|>"
_BYTES = [bytes([b]) for b in range(256)]
_CACHED_WORDS, _CACHED_LENGTH = 1 << 16, 64             # the cache holds 65,536 short words at most


class BPETokenizer:
    """A byte-level BPE vocabulary; `encode` and `decode` translate between text and ids.

    merges: pairs of byte strings, most important first. vocab: byte string → id; by default the
    bytes 0 … 255, then the merges' results. end_of_text: the id of `<|endoftext|>`, by default the
    last. special: str → id of every token that plain text never produces, by default only the end
    of text. Raises `ValueError` unless the ids are 0 … vocab_size − 1, and `vocab` has every byte
    and every merge's parts and result."""

    def __init__(self, merges: Iterable[tuple[bytes, bytes]],
                 vocab: dict[bytes, int] | None = None, end_of_text: int | None = None,
                 special: dict[str, int] | None = None):
        self.merges = [(bytes(a), bytes(b)) for a, b in merges]
        if vocab is None:
            tokens = dict.fromkeys(_BYTES + [a + b for a, b in self.merges])
            vocab = {token: i for i, token in enumerate(tokens)}
        self.vocab = {bytes(token): int(i) for token, i in vocab.items()}
        self.end_of_text = len(self.vocab) if end_of_text is None else int(end_of_text)
        self.special = dict(special) if special else {END_OF_TEXT: self.end_of_text}
        self.vocab_size = len(self.vocab) + len(self.special)
        if self.end_of_text not in self.special.values() or "" in self.special:
            raise ValueError("special tokens need names, and one must have the id "
                             f"{self.end_of_text}, got {self.special}")
        if sorted([*self.vocab.values(), *self.special.values()]) != list(range(self.vocab_size)):
            raise ValueError(f"ids must be 0 … {self.vocab_size - 1}, each once, "
                             f"including those of {self.special}")
        needed = _BYTES + [t for a, b in self.merges for t in (a, b, a + b)]
        if missing := [t for t in needed if t not in self.vocab]:
            raise ValueError(f"{len(missing)} tokens are missing from the vocabulary, "
                             f"the first is {missing[0]!r}")
        self._rank = {pair: rank for rank, pair in enumerate(self.merges)}
        self._bytes = {i: token for token, i in self.vocab.items()}
        self._bytes |= {i: name.encode() for name, i in self.special.items()}
        longest_first = sorted(self.special, key=len, reverse=True)
        self._special = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
        self._cache = {}

    def __repr__(self):
        return f"BPETokenizer(vocab_size={self.vocab_size})"

    def __eq__(self, other):
        key = lambda t: (t.merges, t.vocab, t.end_of_text, t.special)
        return isinstance(other, BPETokenizer) and key(self) == key(other)

    __hash__ = None

    @classmethod
    def train(cls, text: str, vocab_size: int) -> BPETokenizer:
        """Learn `vocab_size` tokens (256 bytes, the merges, `<|endoftext|>`) from a text.

        Of equally frequent pairs the first in byte order is merged, so training is deterministic.
        Raises `TypeError`, or `ValueError` for a size below 257 or a text with too few pairs."""
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, got {type(text).__name__}")
        if not isinstance(vocab_size, (int, np.integer)) or isinstance(vocab_size, bool):
            raise TypeError(f"vocab_size must be an integer, got {vocab_size!r}")
        if vocab_size < 257:
            raise ValueError(f"vocab_size must be at least 257 (256 bytes and {END_OF_TEXT}), "
                             f"got {vocab_size}")
        frequency = Counter(words(text))
        pieces = [[_BYTES[b] for b in word.encode()] for word in frequency]
        count, where = Counter(), defaultdict(set)   # pair → occurrences, pair → words that have it

        def tally(w, times):                            # `times` the pairs of word w
            for pair in itertools.pairwise(pieces[w]):
                count[pair] += times
                where[pair].add(w)
        weight = list(frequency.values())
        for w in range(len(pieces)): tally(w, weight[w])
        merges, tokens = [], set()
        while len(tokens) < vocab_size - 257:
            if not count:
                raise ValueError(f"the text has pairs for a vocab_size of {257 + len(tokens)} "
                                 f"only, got {vocab_size}: give more text or a smaller size")
            pair = min(count, key=lambda p: (-count[p], p))
            merges.append(pair)
            tokens.add(pair[0] + pair[1])            # two pairs may give one token: a + bc = ab + c
            for w in where.pop(pair):                   # only these words' counts change
                tally(w, -weight[w])
                pieces[w] = _join(pieces[w], pair)
                tally(w, weight[w])
            count = +count                              # drops pairs that no longer occur
        return cls(merges)

    def encode(self, text: str | bytes, allow_special: bool = False) -> Array:
        """Encode a str, or any bytes, as ids (n,), int32. `decode_bytes` returns the same bytes.

        allow_special: whether the name of a special token, such as `<|endoftext|>`, becomes that
        token or is plain text. Raises `TypeError` for other types, `ValueError` for a str with a
        lone surrogate."""
        if isinstance(text, (bytes, bytearray, memoryview)):
            text = bytes(text).decode("utf-8", "surrogateescape")   # an invalid byte is a character
        elif not isinstance(text, str):
            raise TypeError(f"encode expects str or bytes, got {type(text).__name__}")
        elif not text.isascii():
            text.encode()                               # raises UnicodeEncodeError, a ValueError
        if not allow_special: return np.array(self._encode_text(text), np.int32)
        parts = enumerate(self._special.split(text))    # plain text and special tokens alternate
        ids = ([self.special[part]] if i % 2 else self._encode_text(part) for i, part in parts)
        return np.array(list(itertools.chain.from_iterable(ids)), np.int32)

    def encode_documents(self, documents: Iterable[object]) -> Array:
        """Encode `str(document)` of each as one stream of ids (n,), each between ends of text."""
        end = np.array([self.end_of_text], np.int32)
        parts = (part for d in documents for part in (self.encode(str(d)), end))
        return np.concatenate([end, *parts])

    def decode(self, ids: Sequence[int] | Array, errors: str = "replace") -> str:
        """Decode ids as text. Invalid UTF-8 becomes "�"; errors: as in `bytes.decode`."""
        return self.decode_bytes(ids).decode("utf-8", errors)

    def decode_bytes(self, ids: Sequence[int] | Array) -> bytes:
        """Decode ids (n,) as bytes. Raises `TypeError` unless they are integers, `ValueError` for
        an id out of range."""
        ids = np.asarray(ids)
        if ids.size == 0: return b""
        if ids.dtype.kind not in "iu":
            raise TypeError(f"ids must be integers, got {ids.dtype}")
        if ids.ndim > 1:
            raise ValueError(f"ids must be one sequence (n,), got shape {ids.shape}")
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            raise ValueError(f"ids must be in 0 … {self.vocab_size - 1}, "
                             f"got {ids.min()} … {ids.max()}")
        return b"".join(map(self._bytes.__getitem__, np.atleast_1d(ids).tolist()))

    def save(self, path: str | Path) -> None:
        """Write a JSON file, atomically. Byte strings are stored as Latin-1 characters."""
        write_atomically(path, json.dumps({
            "format": "tinypeft-bpe", "end_of_text": self.end_of_text, "special": self.special,
            "merges": [[token.decode("latin-1") for token in pair] for pair in self.merges],
            "vocab": {token.decode("latin-1"): i for token, i in self.vocab.items()}}))

    @classmethod
    def load(cls, path: str | Path) -> BPETokenizer:
        """Read a file that `save` wrote. Raises `ValueError` for another kind of file."""
        text = read_text(path)
        try:
            content = check_fields(parse_json(text), {"format": str, "end_of_text": int,
                                                      "merges": list, "vocab": dict},
                                   {"special": dict})
            if content["format"] != "tinypeft-bpe":
                raise ValueError(f"its format is {content['format'][:80]!r}")
            special = content.get("special") or {}
            check_fields(content["vocab"], dict.fromkeys(content["vocab"], int))
            check_fields(special, dict.fromkeys(special, int))
            merges = [[token.encode("latin-1") for token in pair] for pair in content["merges"]]
            vocab = {token.encode("latin-1"): i for token, i in content["vocab"].items()}
            return cls(merges, vocab, content["end_of_text"], special)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a tokenizer of BPETokenizer.save: {error}") from error

    def _encode_text(self, text):
        ids, cache = [], self._cache
        for word in words(text):
            if (word_ids := cache.get(word)) is None:
                word_ids = self._encode_word(word.encode("utf-8", "surrogateescape"))
                if len(word) <= _CACHED_LENGTH:
                    if len(cache) >= _CACHED_WORDS: cache.clear()
                    cache[word] = word_ids
            ids += word_ids
        return ids

    def _encode_word(self, word):
        """Apply the merges to the bytes of one word, the earliest learned first; return the ids."""
        pieces, last = [_BYTES[b] for b in word], len(self.merges)
        while len(pieces) > 1:
            pair = min(itertools.pairwise(pieces), key=lambda p: self._rank.get(p, last))
            if pair not in self._rank: break
            pieces = _join(pieces, pair)
        return [self.vocab[piece] for piece in pieces]


def _join(pieces, pair):
    """Join each occurrence of `pair` in a list of byte strings, from left to right."""
    joined = []
    for piece in pieces:
        if piece == pair[1] and joined and joined[-1] == pair[0]:
            joined[-1] += piece                # longer than pair[0], so it is not joined once more
        else:
            joined.append(piece)
    return joined


# Letters (L) and numerals (N) that Unicode 15.0 to 16.0 added, for older Pythons, in hexadecimal.
# Source: DerivedGeneralCategory.txt, 14.0.0 and 16.0.0. The package tokenizers 0.23 follows 16.0.
_NEWER = {
    "L": "1c89-1c8a a7cb-a7cd a7da-a7dc 105c0-105f3 10d4a-10d65 10d6f-10d85 10ec2-10ec4 "
         "1123f-11240 11380-11389 1138b 1138e 11390-113b5 113b7 113d1 113d3 11bc0-11be0 11f02 "
         "11f04-11f10 11f12-11f33 1342f 13441-13446 13460-143fa 16100-1611d 16d40-16d6c 18cff "
         "1b132 1b155 1df25-1df2a 1e030-1e06d 1e4d0-1e4eb 1e5d0-1e5ed 1e5f0 2b739 2ebf0-2ee5d "
         "31350-323af",
    "N": "10d40-10d49 116d0-116e3 11bf0-11bf9 11f50-11f59 16130-16139 16d70-16d79 1ccf0-1ccf9 "
         "1d2c0-1d2d3 1e4f0-1e4f9 1e5f1-1e5fa"}


@functools.cache
def _newer():
    """Map each character of `_NEWER` to "L" or "N"."""
    ends = lambda span: [int(end, 16) for end in span.split("-")]
    return {chr(i): kind for kind, spans in _NEWER.items() for span in spans.split()
            for i in range(ends(span)[0], ends(span)[-1] + 1)}


def words(text: str) -> list[str]:
    """Cut a text into the words that merges stay within; joined, they are the text again."""
    if text.isascii():
        return _word_pattern("", "", "").findall(text)
    kinds = {c: unicodedata.category(c) for c in set(text)}
    kinds |= {c: _newer().get(c, "Cn") for c, kind in kinds.items() if kind == "Cn"}
    members = lambda *some: "".join(sorted(c for c, kind in kinds.items() if kind in some))
    return _word_pattern(members("Nl", "No"), members("L"), members("N")).findall(text)


@functools.lru_cache(maxsize=64)
def _word_pattern(odd, letters, numerals):
    """Compile GPT-2's pattern for a text with some characters that `re` classes unlike Unicode 16.

    odd: numerals that are not decimal digits (², Ⅷ), which `re` takes for letters. letters,
    numerals: of `_NEWER`. Whitespace is listed because `re` adds four control characters to it."""
    space = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
    letter = rf"[^\W\d_{odd}]"
    if letters: letter = rf"(?:{letter}|[{letters}])"
    digit = rf"[\d{odd}{numerals}]"
    other = rf"(?:[^\w{space}{letters}{numerals}]|_)"
    return re.compile(rf"'(?:s|t|re|ve|m|ll|d)| ?{letter}+| ?{digit}+| ?{other}+|"
                      rf"[{space}]+(?![^{space}])|[{space}]+")
