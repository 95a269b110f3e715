"""Byte-level byte-pair encoding (BPE): text ↔ integers, for any text in any encoding, even broken.

Source: Sennrich, Haddow & Birch (2016), "Neural Machine Translation of Rare Words with Subword Units",
arXiv:1508.07909, on bytes instead of characters as in Radford et al. (2019), "Language Models are Unsupervised
Multitask Learners" (GPT-2). Start with the 256 bytes; count neighbours; make the most frequent pair a token; repeat.

Merges never cross a *word*. `words` cuts a text exactly where GPT-2 does: an English contraction, letters, digits or
other signs, each with one space before it if there is one, and runs of whitespace, which leave their last space to
the word that follows. GPT-2's own merges and numbering can therefore be given to `BPETokenizer(merges, vocab)`.
"""

import functools
import json
import re
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from ..files import write_atomically

END_OF_TEXT = "<|endoftext|>"
_CACHED_WORDS, _CACHED_LENGTH = 1 << 16, 64                                       # bounds the cache: 65,536 short words


class BPETokenizer:
    """`merges`: pairs of byte strings, most important first. `vocab`: byte string → id; by default the bytes 0…255,
    then what the merges make, in order. `end_of_text`: the id of `<|endoftext|>`; by default the last. `special`: str → id
    of every token that no text produces by itself, the end of text among them, where there are others or it has another name.

    Raises `ValueError` unless the ids are 0 … vocab_size − 1 and every byte and every merge's parts and result are in
    `vocab`."""

    def __init__(self, merges, vocab=None, end_of_text=None, special=None):
        self.merges = [(bytes(a), bytes(b)) for a, b in merges]
        if vocab is None:
            vocab = dict.fromkeys([bytes([b]) for b in range(256)] + [a + b for a, b in self.merges])
            vocab = {token: i for i, token in enumerate(vocab)}
        self.vocab = {bytes(token): int(i) for token, i in vocab.items()}
        self.end_of_text = len(self.vocab) if end_of_text is None else int(end_of_text)
        self.special = dict(special) if special else {END_OF_TEXT: self.end_of_text}
        self.vocab_size = len(self.vocab) + len(self.special)
        if self.end_of_text not in self.special.values() or "" in self.special:
            raise ValueError(f"special tokens need names, and one of them the id {self.end_of_text}, got {self.special}")
        if sorted([*self.vocab.values(), *self.special.values()]) != list(range(self.vocab_size)):
            raise ValueError(f"ids must be 0 … {self.vocab_size - 1}, each once, {self.special} too")
        needed = [bytes([b]) for b in range(256)] + [t for a, b in self.merges for t in (a, b, a + b)]
        if missing := [t for t in needed if t not in self.vocab]:
            raise ValueError(f"{len(missing)} tokens are missing from the vocabulary, the first is {missing[0]!r}")
        self._rank = {pair: rank for rank, pair in enumerate(self.merges)}
        self._bytes = {i: token for token, i in self.vocab.items()} | {i: name.encode() for name, i in self.special.items()}
        self._special = re.compile("|".join(map(re.escape, sorted(self.special, key=len, reverse=True))))
        self._cache = {}

    def __repr__(self):
        return f"BPETokenizer(vocab_size={self.vocab_size})"

    def __eq__(self, other):
        return isinstance(other, BPETokenizer) and (self.merges, self.vocab, self.end_of_text, self.special) == (
            other.merges, other.vocab, other.end_of_text, other.special)

    __hash__ = None

    @classmethod
    def train(cls, text, vocab_size):
        """Learn a vocabulary of `vocab_size` tokens (256 bytes, the merges, `<|endoftext|>`) from `text` (str).

        Of equally frequent pairs the one first in byte order is merged, so training is deterministic. Raises
        `ValueError` for a size below 257 or beyond what the text has pairs for, `TypeError` for wrong types."""
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, got {type(text).__name__}")
        if not isinstance(vocab_size, (int, np.integer)) or isinstance(vocab_size, bool):
            raise TypeError(f"vocab_size must be an integer, got {vocab_size!r}")
        if vocab_size < 257:
            raise ValueError(f"vocab_size must be at least 257 (256 bytes and {END_OF_TEXT}), got {vocab_size}")
        frequency = Counter(words(text))
        pieces = [_single_bytes(word.encode()) for word in frequency]
        weight = list(frequency.values())
        count, where = Counter(), defaultdict(set)                                # of a pair: how often, in which words
        for w, word in enumerate(pieces):
            for pair in zip(word, word[1:], strict=False):
                count[pair] += weight[w]
                where[pair].add(w)
        merges, tokens = [], set()
        while len(tokens) < vocab_size - 257:
            if not count:
                raise ValueError(f"the text has pairs for a vocab_size of {257 + len(tokens)} only, not {vocab_size}")
            pair = min(count, key=lambda p: (-count[p], p))
            merges.append(pair)
            tokens.add(pair[0] + pair[1])                                         # "a"+"bc" may equal "ab"+"c"
            for w in where.pop(pair):                                             # only these words' counts change
                for old in zip(pieces[w], pieces[w][1:], strict=False):
                    count[old] -= weight[w]
                pieces[w] = _join(pieces[w], pair)
                for new in zip(pieces[w], pieces[w][1:], strict=False):
                    count[new] += weight[w]
                    where[new].add(w)
            count = +count                                                        # drops what no longer occurs
        return cls(merges)

    def encode(self, text, allow_special=False):
        """`text` (str, or any bytes) → ids, an int32 array (n,). `decode_bytes` gives the same bytes back.

        With `allow_special` the characters `<|endoftext|>` become that token, and likewise those of any other special token;
        otherwise they are plain text. Raises
        `TypeError` for other types and `ValueError` for a str that is not Unicode text (a lone surrogate)."""
        if isinstance(text, (bytes, bytearray, memoryview)):
            text = bytes(text).decode("utf-8", "surrogateescape")                 # a wrong byte becomes one character
        elif not isinstance(text, str):
            raise TypeError(f"encode expects str or bytes, got {type(text).__name__}")
        elif not text.isascii():
            text.encode()                                                         # UnicodeEncodeError is a ValueError
        if allow_special:
            parts = [self.encode(part.encode("utf-8", "surrogateescape")) for part in self._special.split(text)]
            marks = [np.array([self.special[name]], np.int32) for name in self._special.findall(text)]
            return np.concatenate([parts[0], *(a for pair in zip(marks, parts[1:], strict=True) for a in pair)])
        ids, cache = [], self._cache
        for word in words(text):
            known = cache.get(word)
            if known is None:
                known = self._encode_word(word.encode("utf-8", "surrogateescape"))
                if len(word) <= _CACHED_LENGTH:
                    if len(cache) >= _CACHED_WORDS:
                        cache.clear()
                    cache[word] = known
            ids += known
        return np.array(ids, np.int32)

    def encode_documents(self, documents):
        """Documents (anything with a `str`) → one stream of ids (n,), `<|endoftext|>` before, between and after."""
        end = np.array([self.end_of_text], np.int32)
        return np.concatenate([end, *(a for document in documents for a in (self.encode(str(document)), end))])

    def decode(self, ids, errors="replace"):
        """ids → str. A cut-off or invalid UTF-8 sequence becomes "�" (`errors` as in `bytes.decode`)."""
        return self.decode_bytes(ids).decode("utf-8", errors)

    def decode_bytes(self, ids):
        """ids (n,) → bytes. Raises `TypeError` unless they are integers, `ValueError` if one is out of range."""
        ids = np.asarray(ids)
        if ids.size == 0:
            return b""
        if ids.dtype.kind not in "iu":
            raise TypeError(f"ids must be integers, got {ids.dtype}")
        if ids.ndim > 1:
            raise ValueError(f"ids must be one sequence (n,), got shape {ids.shape}")
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            raise ValueError(f"ids must be in 0 … {self.vocab_size - 1}, got {ids.min()} … {ids.max()}")
        return b"".join(map(self._bytes.__getitem__, np.atleast_1d(ids).tolist()))

    def save(self, path):
        """Write to a JSON file, atomically; a byte string is stored as the characters of the same numbers."""
        vocab = {token.decode("latin-1"): i for token, i in self.vocab.items()}
        merges = [[a.decode("latin-1"), b.decode("latin-1")] for a, b in self.merges]
        content = {"format": "tinypeft-bpe", "end_of_text": self.end_of_text, "special": self.special, "merges": merges,
                   "vocab": vocab}
        write_atomically(path, json.dumps(content))

    @classmethod
    def load(cls, path):
        """Read what `save` wrote. Raises `ValueError` for another kind of file, `OSError` if it cannot be read."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            merges = [[token.encode("latin-1") for token in pair] for pair in content["merges"]]
            vocab = {token.encode("latin-1"): i for token, i in content["vocab"].items()}
            return cls(merges, vocab, content["end_of_text"], content.get("special"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a tokenizer saved by BPETokenizer.save: {error}") from error

    def _encode_word(self, word):
        """Apply the merges to the bytes of one word, the earliest learned first → list of ids."""
        pieces = _single_bytes(word)
        while len(pieces) > 1:
            pair = min(zip(pieces, pieces[1:], strict=False), key=lambda p: self._rank.get(p, len(self.merges)))
            if pair not in self._rank:
                break
            pieces = _join(pieces, pair)
        return [self.vocab[piece] for piece in pieces]


def _single_bytes(word):
    return [word[i:i + 1] for i in range(len(word))]


def _join(pieces, pair):
    """Replace each occurrence of `pair` in a list of byte strings, from left to right, by one byte string."""
    joined, i = [], 0
    while i < len(pieces):
        if pieces[i] == pair[0] and i + 1 < len(pieces) and pieces[i + 1] == pair[1]:
            joined.append(pair[0] + pair[1])
            i += 2
        else:
            joined.append(pieces[i])
            i += 1
    return joined


# Letters (L) and numerals (N) that Unicode 15.0, 15.1 and 16.0 added, for older Pythons: first-last character, hexadecimal.
# Source: the Unicode Character Database, DerivedGeneralCategory.txt of 14.0.0 and 16.0.0. tokenizers 0.23 knows 16.0.
_NEWER = {
    "L": "1c89-1c8a a7cb-a7cd a7da-a7dc 105c0-105f3 10d4a-10d65 10d6f-10d85 10ec2-10ec4 1123f-11240 11380-11389 1138b 1138e "
         "11390-113b5 113b7 113d1 113d3 11bc0-11be0 11f02 11f04-11f10 11f12-11f33 1342f 13441-13446 13460-143fa 16100-1611d "
         "16d40-16d6c 18cff 1b132 1b155 1df25-1df2a 1e030-1e06d 1e4d0-1e4eb 1e5d0-1e5ed 1e5f0 2b739 2ebf0-2ee5d 31350-323af",
    "N": "10d40-10d49 116d0-116e3 11bf0-11bf9 11f50-11f59 16130-16139 16d70-16d79 1ccf0-1ccf9 1d2c0-1d2d3 1e4f0-1e4f9 "
         "1e5f1-1e5fa"}


@functools.cache
def _newer():
    """Character → "L" or "N" of those in `_NEWER`."""
    spans = [(kind, *(int(end, 16) for end in span.split("-"))) for kind, spans in _NEWER.items() for span in spans.split()]
    return {chr(i): kind for kind, first, *last in spans for i in range(first, (last or [first])[0] + 1)}


def words(text):
    """Cut a str into the words that merges stay within; joined they are the text again → list of str."""
    if text.isascii():
        return _word_pattern("", "", "").findall(text)
    kinds = {c: unicodedata.category(c) for c in set(text)}
    kinds |= {c: _newer().get(c, "Cn") for c, kind in kinds.items() if kind == "Cn"}
    return _word_pattern(*("".join(sorted(c for c, kind in kinds.items() if kind in some))
                           for some in (("Nl", "No"), ("L",), ("N",)))).findall(text)


@functools.lru_cache(maxsize=64)
def _word_pattern(odd, letters, numerals):
    """What of a text's characters `re` does not class as Unicode does. `odd`: numerals that are not decimal digits (², Ⅷ),
    which it counts as letters; `letters` and `numerals`: those of `_NEWER` that it does not know.
    Space is spelled out because `re` also counts the four separator control characters as space."""
    space = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
    letter = rf"[^\W\d_{odd}]"
    if letters: letter = rf"(?:{letter}|[{letters}])"
    digit = rf"[\d{odd}{numerals}]"
    other = rf"(?:[^\w{space}{letters}{numerals}]|_)"
    return re.compile(rf"'(?:s|t|re|ve|m|ll|d)| ?{letter}+| ?{digit}+| ?{other}+|[{space}]+(?![^{space}])|[{space}]+")
