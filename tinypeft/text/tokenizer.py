"""Byte-pair encoding (BPE): text ↔ integers. `Tokenizer` is the part that every family shares,
`BPETokenizer` works on bytes, `sentencepiece.py` on characters.

Source: Sennrich, Haddow & Birch (2016), "Neural Machine Translation of Rare Words with Subword
Units", arXiv:1508.07909, on bytes as in Radford et al. (2019), "Language Models are Unsupervised
Multitask Learners" (GPT-2). Start with the 256 bytes, make the most frequent pair of neighbours a
token, repeat. Merges never cross a *word*; `words.py` has each family's rule for cutting a text.
"""
from __future__ import annotations

import heapq
import itertools
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..common.hints import Array
from ..common.wording import brief, shortened
from ..files import check_fields, parse_json, read_text, write_atomically
from .chat import Messages, chat_end, chat_prompt
from .templates import Special
from .words import SPLITS, words

__all__ = ["BYTES", "END_OF_TEXT", "BPETokenizer", "Tokenizer", "check_bytes", "join"]

END_OF_TEXT = "<|endoftext|>"
BYTES = [bytes([b]) for b in range(256)]
# The bytes of text in UTF-8, without control characters and the planes that hold no letters: these
# are what SmolLM2 lacks.
NEEDED = {*b"\t\n\r", *range(0x20, 0x7F), *range(0x80, 0xC0), *range(0xC2, 0xF1)}
_CACHED_WORDS, _CACHED_LENGTH = 1 << 16, 64             # the cache holds 65,536 short words at most
_MOST_IDS = 1 << 31                                      # ids are int32


class Tokenizer:
    """A vocabulary; `encode` and `decode` translate between text and ids. See its two families,
    `BPETokenizer` and `SentencePieceTokenizer`.

    merges: pairs of tokens, most important first. vocab: token → id. end_of_text: the id at the end
    of every text. special: name → id of tokens that plain text never produces; the end of text must
    be among them. added: name → id of tokens that are taken wherever their name stands in a text,
    before any merge. start: the id that the family puts in front of every text, None if it puts
    none. end_of_turn: the id that ends an answer, where it is not the end of text: SmolLM2 and Qwen
    were pretrained on documents between `<|endoftext|>`, and end an answer with `<|im_end|>`. The
    attribute chat_template is the text that files hold of the template of a chat. Ids may leave
    gaps; an id without a token decodes to nothing. Raises `ValueError` unless ids are different
    whole numbers, and every merge's parts and result are tokens."""

    _format, _options, _strips = "", {}, False       # options: field → the default
    chat_template: str | None = None                 # a program that is carried, and never run

    def __init__(self, merges: list[tuple[Any, Any]], vocab: dict[Any, int], end_of_text: int,
                 special: dict[str, int], added: dict[str, int] | None, start: int | None,
                 end_of_turn: int | None):
        self.merges, self.vocab, self.end_of_text = merges, vocab, end_of_text
        self.special, self.added, self.start = dict(special), dict(added or {}), start
        self.end_of_turn = end_of_turn
        if self.end_of_text not in self.special.values() or "" in self.special | self.added:
            raise ValueError("special tokens need names, and one must have the id "
                             f"{self.end_of_text}, got {brief(self.special)}")
        for name, i in ("start", start), ("end_of_turn", end_of_turn):
            if i is not None and i not in self.special.values():
                raise ValueError(f"no special token has the id of {name}, {brief(i)}")
        self._bytes = {i: self._as_bytes(token) for token, i in self.vocab.items()}
        more = {name: i for name, i in self.added.items()      # an added token may also have merges
                if self._bytes.get(i) != self._named(name)} | self.special
        ids = [*self.vocab.values(), *more.values()]
        self._bytes |= {i: self._named(name) for name, i in more.items()}
        if len(self._bytes) < len(ids) or min(ids) < 0 or max(ids) >= _MOST_IDS:
            raise ValueError(f"ids must be whole numbers from 0 to {_MOST_IDS - 1}, each once, "
                             f"including those of {brief(more)}")
        self.vocab_size = max(ids) + 1
        needed = dict.fromkeys(t for a, b in self.merges for t in (a, b, a + b))
        if missing := [t for t in needed if t not in self.vocab]:
            raise ValueError(f"{len(missing)} tokens are missing from the vocabulary, "
                             f"the first is {brief(missing[0])}")
        self._rank = {pair: rank for rank, pair in enumerate(self.merges)}
        self._names = self.added | self.special
        self._find_added, self._find_names = _finder(self.added), _finder(self._names)
        self._cache = {}

    def __repr__(self):
        return f"{type(self).__name__}(vocab_size={self.vocab_size})"

    def __eq__(self, other):
        key = lambda t: (t.merges, t.vocab, t.end_of_text, t.special, t.added, t.start,
                         t.end_of_turn, t.chat_template, [getattr(t, name) for name in t._options])
        return type(other) is type(self) and key(self) == key(other)

    __hash__ = None

    def __deepcopy__(self, memo: dict): return self      # it never changes: copied models share it

    @property
    def opening(self) -> int:
        """The id in front of a document in training: `start`, or without one the end of text."""
        return self.end_of_text if self.start is None else self.start

    def encode(self, text: str | bytes, allow_special: bool = False) -> Array:
        """Encode a str, or any bytes, as ids (n,), int32. Nothing is put in front of them.

        allow_special: whether the name of a special token, such as `<|endoftext|>`, becomes that
        token or is plain text. Raises `TypeError` for other types, `ValueError` for a str with a
        lone surrogate."""
        if isinstance(text, (bytes, bytearray, memoryview)):
            text = bytes(text).decode("utf-8", "surrogateescape")   # an invalid byte is a character
        elif not isinstance(text, str):
            raise TypeError(f"encode expects str or bytes, got {type(text).__name__}")
        elif not text.isascii():
            text.encode()                               # raises UnicodeEncodeError, a ValueError
        find = self._find_names if allow_special else self._find_added
        return np.array(self._encode_named(text, find, True), np.int32)

    def encode_parts(self, parts: Iterable[str]) -> Array:
        """Encode text in which some parts are special tokens, each a `Special`, as ids (n,).

        Text beside text is encoded together, and the name of a special token in it stays text. So
        nobody who writes a part of a prompt can write a special token into it."""
        ids = []
        for is_special, group in itertools.groupby(parts, lambda part: isinstance(part, Special)):
            if is_special: ids += [self.special[name] for name in group]
            else: ids += self._encode_named("".join(group), self._find_added, not ids)
        return np.array(ids, np.int32)

    def encode_prompt(self, text: str | bytes, allow_special: bool = False) -> Array:
        """Return the ids of a text that a model shall continue: `encode`'s, after `start` if there
        is one. transformers' `tokenizer(text)` gives the same."""
        start = [] if self.start is None else [self.start]
        return np.concatenate([np.array(start, np.int32), self.encode(text, allow_special)])

    def chat_prompt(self, messages: Messages, family: str | None = None) -> Array:
        """Return the ids (n,) of a conversation; see `chat.chat_prompt`."""
        return chat_prompt(self, messages, family)

    def chat_end(self, family: str | None = None) -> int:
        """Return the id that ends an answer in a conversation; see `chat.chat_end`."""
        return chat_end(self, family)

    def encode_documents(self, documents: Iterable[object]) -> Array:
        """Encode `str(document)` of each as one stream of ids (n,). Each ends with the end of text,
        and `opening` is in front of it: a start of its own, or the end of text before it."""
        end, start = np.array([self.end_of_text], np.int32), self.start is not None
        encode = self.encode_prompt                      # puts a start in front of each, if any
        parts = (part for d in documents for part in (encode(str(d)), end))
        return np.concatenate([end[:0] if start else end, *parts])

    def decode(self, ids: Sequence[int] | Array, errors: str = "replace",
               continued: bool = False) -> str:
        """Decode ids as text. Invalid UTF-8 becomes "�"; errors: as in `bytes.decode`."""
        return self.decode_bytes(ids, continued).decode("utf-8", errors)

    def decode_bytes(self, ids: Sequence[int] | Array, continued: bool = False) -> bytes:
        """Decode ids (n,) as bytes. continued: whether other ids came before these, as in
        generation; then a space in front is text, also where a family puts one in front of every
        text. Raises `TypeError` unless ids are integers, `ValueError` for an id out of range."""
        ids = np.asarray(ids)
        if ids.size == 0: return b""
        if ids.dtype.kind not in "iu":
            raise TypeError(f"ids must be integers, got {ids.dtype}")
        if ids.ndim > 1:
            raise ValueError(f"ids must be one sequence (n,), got shape {ids.shape}")
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            raise ValueError(f"ids must be in 0 … {self.vocab_size - 1}, "
                             f"got {ids.min()} … {ids.max()}")
        text = b"".join(self._bytes.get(i, b"") for i in np.atleast_1d(ids).tolist())
        return text[1:] if self._strips and not continued and text[:1] == b" " else text

    def save(self, path: str | Path) -> None:
        """Write a JSON file, atomically. Byte strings are stored as Latin-1 characters."""
        write_atomically(path, json.dumps(self.content()))

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a file that `save` wrote. Raises `ValueError` for another kind of file."""
        text = read_text(path)
        try:
            return cls.from_content(parse_json(text))
        except ValueError as error:
            raise ValueError(f"{path} is not a tokenizer of {cls.__name__}.save: "
                             f"{shortened(str(error))}") from error

    def content(self) -> dict[str, Any]:
        """Return what `save` writes, as JSON can hold it."""
        fields = {"added": self.added or None, "start": self.start, "end_of_turn": self.end_of_turn,
                  "chat_template": self.chat_template}
        fields |= {name: getattr(self, name) for name in self._options}
        changed = {name: value for name, value in fields.items()
                   if value != self._options.get(name)}
        return {"format": self._format, "end_of_text": self.end_of_text, "special": self.special,
                "merges": [[self._written(token) for token in pair] for pair in self.merges],
                "vocab": {self._written(token): i for token, i in self.vocab.items()}, **changed}

    @classmethod
    def from_content(cls, content: Any) -> Tokenizer:
        """Make the tokenizer of which `content` is. Raises `ValueError` for anything else."""
        try:
            if isinstance(content, dict) and content.get("format") != cls._format:
                raise ValueError(f"its format is {brief(content.get('format'))}")
            check_fields(content, {"format": str, "end_of_text": int, "merges": list,
                                   "vocab": dict},
                         {"special": dict, "added": dict, "start": int, "end_of_turn": int,
                          "chat_template": str, **dict.fromkeys(cls._options, str)})
            names = {"start", "end_of_turn", *cls._options} & content.keys()
            fields: dict[str, Any] = {name: content[name] for name in names}
            for name in "vocab", "special", "added":
                ids = content.get(name) or {}
                fields[name] = check_fields(ids, dict.fromkeys(ids, int))
            fields["vocab"] = {cls._read(token): i for token, i in fields["vocab"].items()}
            merges = [[cls._read(token) for token in pair] for pair in content["merges"]]
            made = cls(merges, end_of_text=content["end_of_text"], **fields)
        except (TypeError, AttributeError) as error:
            raise ValueError(str(error)) from error
        made.chat_template = content.get("chat_template")
        return made

    def _encode_named(self, text, find, first):
        """Return the ids of a text with the tokens that `find` finds. first: is it a text's
        beginning?"""
        if find is None: return self._encode_text(text, first)
        parts = enumerate(find.split(text))              # plain text and named tokens alternate
        return [i for n, part in parts for i in (
            [self._names[part]] if n % 2 else self._encode_text(part, first and n == 0))]

    def _cached(self, word, encode):
        """Return the ids of a word, `encode(word)`, remembered."""
        if (ids := self._cache.get(word)) is None:
            ids = encode(word)
            if len(word) <= _CACHED_LENGTH:
                if len(self._cache) >= _CACHED_WORDS: self._cache.clear()
                self._cache[word] = ids
        return ids


class BPETokenizer(Tokenizer):
    """A byte-level BPE vocabulary: GPT-2, SmolLM2, Qwen 2 and 3, Llama 3.

    merges: pairs of byte strings. vocab: byte string → id; by default the bytes 0 … 255, then the
    merges' results. It may lack control characters and other bytes that text hardly has, as
    SmolLM2's does; they give no id, as in the package tokenizers. end_of_text: the id of
    `<|endoftext|>`, by default the last. special: by default only the end of text. split: how a
    text is cut into words, a name of `words.SPLITS`. Of "qwen2" the text is first brought into
    Unicode's form NFC, so other forms do not come back. (The package tokenizers has NFC of
    Unicode 9: it does not reorder rare marks that came later.) Further arguments and errors:
    `Tokenizer`'s. Raises `ValueError` also if a byte that text needs is no token."""

    _format, _options = "tinypeft-bpe", {"split": "gpt2"}

    def __init__(self, merges: Iterable[tuple[bytes, bytes]],
                 vocab: dict[bytes, int] | None = None, end_of_text: int | None = None,
                 special: dict[str, int] | None = None, added: dict[str, int] | None = None,
                 start: int | None = None, end_of_turn: int | None = None, split: str = "gpt2"):
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {brief(split)}")
        merges = [(bytes(a), bytes(b)) for a, b in merges]
        if vocab is None:
            tokens = dict.fromkeys(BYTES + [a + b for a, b in merges])
            vocab = {token: i for i, token in enumerate(tokens)}
        vocab = {bytes(token): int(i) for token, i in vocab.items()}
        check_bytes(vocab)
        end = max(vocab.values(), default=-1) + 1 if end_of_text is None else int(end_of_text)
        self.split = split
        super().__init__(merges, vocab, end, special or {END_OF_TEXT: end}, added, start,
                         end_of_turn)

    @classmethod
    def train(cls, text: str, vocab_size: int, split: str = "gpt2") -> BPETokenizer:
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
        frequency = Counter(words(text, split))
        pieces = [[BYTES[b] for b in word.encode()] for word in frequency]
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
                pieces[w] = join(pieces[w], {pair: 0})
                tally(w, weight[w])
            count = +count                              # drops pairs that no longer occur
        return cls(merges, split=split)

    @staticmethod
    def _as_bytes(token): return token
    @staticmethod
    def _named(name): return name.encode()
    @staticmethod
    def _written(token): return token.decode("latin-1")
    @staticmethod
    def _read(token): return token.encode("latin-1")

    def _encode_text(self, text, first):
        if SPLITS[self.split].nfc: text = unicodedata.normalize("NFC", text)
        ids = []
        for word in words(text, self.split): ids += self._cached(word, self._encode_word)
        return ids

    def _encode_word(self, word):
        word, vocab = word.encode("utf-8", "surrogateescape"), self.vocab
        if SPLITS[self.split].whole and word in vocab: return [vocab[word]]
        return [vocab[t] for t in join([BYTES[b] for b in word if BYTES[b] in vocab], self._rank)]


def check_bytes(vocab: Iterable[bytes]) -> None:
    """Raise ValueError unless each byte of `NEEDED` is a token; text would lose it in silence."""
    missing = sorted(NEEDED - {token[0] for token in vocab if len(token) == 1})
    if missing:
        raise ValueError(f"{len(missing)} bytes that text needs are no tokens, the first is "
                         f"{missing[0]:#04x}")


def join(pieces: Sequence[Any], rank: dict[tuple[Any, Any], int]) -> list[Any]:
    """Apply merges to a list of byte strings or strings, until none applies.

    rank: pair of neighbours → its rank. The pair of the lowest rank is joined first, of equal
    ranks the leftmost. A heap holds the pairs, so n pieces take O(n log n)."""
    pieces, n = list(pieces), len(pieces)
    before, after = list(range(-1, n - 1)), list(range(1, n + 1))
    heap = [(rank[pair], i) for i, pair in enumerate(itertools.pairwise(pieces)) if pair in rank]
    heapq.heapify(heap)
    while heap:
        r, i = heapq.heappop(heap)
        j = after[i]
        if j == n or rank.get((pieces[i], pieces[j])) != r: continue     # one of them was joined
        pieces[i], pieces[j] = pieces[i] + pieces[j], None
        h, k = before[i], after[j]
        after[i] = k
        if k < n:
            before[k] = i
            if (r := rank.get((pieces[i], pieces[k]))) is not None: heapq.heappush(heap, (r, i))
        if h >= 0 and (r := rank.get((pieces[h], pieces[i]))) is not None:
            heapq.heappush(heap, (r, h))
    return [piece for piece in pieces if piece is not None]


def _finder(names):
    """Return a pattern that finds the longest of some names, None for no names."""
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})") if names else None
