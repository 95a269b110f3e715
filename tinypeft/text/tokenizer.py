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
    then what the merges make, in order. `end_of_text`: the id of `<|endoftext|>`; by default the last.

    Raises `ValueError` unless the ids are 0 … vocab_size − 1 and every byte and every merge's parts and result are in
    `vocab`."""

    def __init__(self, merges, vocab=None, end_of_text=None):
        self.merges = [(bytes(a), bytes(b)) for a, b in merges]
        if vocab is None:
            vocab = dict.fromkeys([bytes([b]) for b in range(256)] + [a + b for a, b in self.merges])
            vocab = {token: i for i, token in enumerate(vocab)}
        self.vocab = {bytes(token): int(i) for token, i in vocab.items()}
        self.vocab_size = len(self.vocab) + 1
        self.end_of_text = self.vocab_size - 1 if end_of_text is None else int(end_of_text)
        if sorted([*self.vocab.values(), self.end_of_text]) != list(range(self.vocab_size)):
            raise ValueError(f"ids must be 0 … {self.vocab_size - 1}, each once, end_of_text={self.end_of_text} too")
        needed = [bytes([b]) for b in range(256)] + [t for a, b in self.merges for t in (a, b, a + b)]
        if missing := [t for t in needed if t not in self.vocab]:
            raise ValueError(f"{len(missing)} tokens are missing from the vocabulary, the first is {missing[0]!r}")
        self._rank = {pair: rank for rank, pair in enumerate(self.merges)}
        self._bytes = {i: token for token, i in self.vocab.items()} | {self.end_of_text: END_OF_TEXT.encode()}
        self._cache = {}

    def __repr__(self):
        return f"BPETokenizer(vocab_size={self.vocab_size})"

    def __eq__(self, other):
        return isinstance(other, BPETokenizer) and (self.merges, self.vocab, self.end_of_text) == (
            other.merges, other.vocab, other.end_of_text)

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

        With `allow_special` the characters `<|endoftext|>` become that token; otherwise they are plain text. Raises
        `TypeError` for other types and `ValueError` for a str that is not Unicode text (a lone surrogate)."""
        if isinstance(text, (bytes, bytearray, memoryview)):
            text = bytes(text).decode("utf-8", "surrogateescape")                 # a wrong byte becomes one character
        elif not isinstance(text, str):
            raise TypeError(f"encode expects str or bytes, got {type(text).__name__}")
        elif not text.isascii():
            text.encode()                                                         # UnicodeEncodeError is a ValueError
        if allow_special:
            parts = [self.encode(part.encode("utf-8", "surrogateescape")) for part in text.split(END_OF_TEXT)]
            end = np.array([self.end_of_text], np.int32)
            return np.concatenate([parts[0], *(a for part in parts[1:] for a in (end, part))])
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
        content = {"format": "tinypeft-bpe", "end_of_text": self.end_of_text, "merges": merges, "vocab": vocab}
        write_atomically(path, json.dumps(content))

    @classmethod
    def load(cls, path):
        """Read what `save` wrote. Raises `ValueError` for another kind of file, `OSError` if it cannot be read."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            merges = [[token.encode("latin-1") for token in pair] for pair in content["merges"]]
            vocab = {token.encode("latin-1"): i for token, i in content["vocab"].items()}
            return cls(merges, vocab, content["end_of_text"])
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


def words(text):
    """Cut a str into the words that merges stay within; joined they are the text again → list of str."""
    odd = "" if text.isascii() else "".join(sorted(c for c in set(text) if unicodedata.category(c) in ("Nl", "No")))
    return _word_pattern(odd).findall(text)


@functools.lru_cache(maxsize=64)
def _word_pattern(odd):
    """`odd`: the text's numerals that are not decimal digits (², Ⅷ), which `re` counts as letters and Unicode does not.
    Space is spelled out because `re` also counts the four separator control characters as space."""
    space = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
    letter = rf"[^\W\d_{odd}]"
    digit = rf"[\d{odd}]"
    other = rf"(?:[^\w{space}]|_)"
    return re.compile(rf"'(?:s|t|re|ve|m|ll|d)| ?{letter}+| ?{digit}+| ?{other}+|[{space}]+(?![^{space}])|[{space}]+")
