"""BPE on characters with SentencePiece's spaces: the tokenizers of Llama 2, TinyLlama and Gemma.

A space is written as ▁ and is a character like another, so that merges may begin with it: "▁the".
A character without a token becomes the tokens of its UTF-8 bytes, "<0xE6>" "<0x97>" "<0xA5>" (byte
fallback). Merges are as in `tokenizer.py`, but nothing cuts a text into words. Where no token has a
▁ after another character, a text may be cut before every such ▁ all the same: no merge reaches
across, so the tokens do not change, and words can be remembered.

Families differ in the space that they put in front (`prefix`):
    "prepend"   one in front of every piece of text, also if it begins with a space: Llama 2 and
                TinyLlama as their tokenizer.json says (a normalizer, Prepend)
    "always"    the same, but not if the piece begins with a space: newer files (Metaspace)
    "first"     as "always", but only at the beginning of the whole text, not after a special token
    "never"     none: Gemma
Source: Kudo & Richardson (2018), "SentencePiece", arXiv:1808.06226.
"""
from __future__ import annotations

import re
from collections.abc import Iterable

from ..common.wording import brief
from .tokenizer import BYTES, Tokenizer, join

__all__ = ["SPACE", "SentencePieceTokenizer"]

SPACE = "▁"
_NAMES = [f"<0x{b:02X}>" for b in range(256)]                # the tokens of the bytes
_BYTE = {name: BYTES[b] for b, name in enumerate(_NAMES)}
_PREFIXES = "prepend", "always", "first", "never"


class SentencePieceTokenizer(Tokenizer):
    """A BPE vocabulary of characters, with byte fallback.

    merges: pairs of strings. vocab: string → id, with spaces as ▁ and bytes as "<0x00>" … "<0xFF>".
    prefix: the space in front of a text, see the module. ▁ itself decodes to a space, and `decode`
    drops the one in front that `prefix` put there, so text comes back but for its ▁. Further
    arguments and errors: `Tokenizer`'s. Raises `ValueError` also if a byte has no token."""

    _format, _options = "tinypeft-sentencepiece", {"prefix": None}

    def __init__(self, merges: Iterable[tuple[str, str]], vocab: dict[str, int], end_of_text: int,
                 special: dict[str, int], added: dict[str, int] | None = None,
                 start: int | None = None, end_of_turn: int | None = None,
                 prefix: str = "prepend"):
        if prefix not in _PREFIXES:
            raise ValueError(f"prefix must be one of {', '.join(_PREFIXES)}, "
                             f"got {brief(prefix)}")
        self.prefix, self._strips = prefix, prefix != "never"
        super().__init__([(str(a), str(b)) for a, b in merges], dict(vocab), int(end_of_text),
                         special, added, start, end_of_turn)
        if missing := [name for b, name in enumerate(_NAMES) if name not in self.vocab
                       and not (b < 128 and chr(b) in self.vocab)]:
            raise ValueError(f"{len(missing)} bytes have no token, the first is {missing[0]}")
        crossing = any(SPACE in (a + b).lstrip(SPACE) for a, b in self.merges)
        self._words = re.compile(".+" if crossing else f"{SPACE}*[^{SPACE}]+|{SPACE}+", re.DOTALL)

    @staticmethod
    def _as_bytes(token): return _BYTE.get(token) or token.replace(SPACE, " ").encode()
    @staticmethod
    def _named(name): return name.replace(SPACE, " ").encode()
    @staticmethod
    def _written(token): return token
    @staticmethod
    def _read(token): return token

    def _encode_text(self, text, first):
        text, prefix = text.replace(" ", SPACE), self.prefix
        if text and (prefix == "prepend" or not text.startswith(SPACE)
                     and (prefix == "always" or prefix == "first" and first)):
            text = SPACE + text
        ids = []
        for word in self._words.findall(text): ids += self._cached(word, self._encode_word)
        return ids

    def _encode_word(self, word):
        pieces = []
        for c in word:
            if c in self.vocab: pieces.append(c)
            else: pieces += [_NAMES[b] for b in c.encode("utf-8", "surrogateescape")]
        return [self.vocab[piece] for piece in join(pieces, self._rank)]
