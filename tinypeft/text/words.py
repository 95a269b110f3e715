"""Cutting a text into the words that merges stay within, as each family of models does.

A family publishes one regular expression, in a dialect that knows Unicode's categories: \\p{L} is a
letter and \\p{N} a numeral. `words` cuts as that expression does. Python's `re` has no categories,
so `_pattern` writes the same expression in Python's dialect.
"""
from __future__ import annotations

import functools
import re
import unicodedata
from dataclasses import dataclass

__all__ = ["SPLITS", "Split", "words"]


@dataclass(frozen=True)
class Split:
    """A family's way to cut. expression: its words, as published. nfc: whether the text is brought
    into Unicode's form NFC first. whole: whether a word that is a token is taken without merges."""
    expression: str
    nfc: bool = False
    whole: bool = False


_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# GPT-2: tokenizers' ByteLevel. SmolLM2: tokenizers' Digits(individual_digits=True), then GPT-2's
# expression on the text between the digits; this is the same in one expression. Qwen 2 and 3:
# transformers' tokenization_qwen2.py. Llama 3: the same, but up to three digits stay together.
SPLITS = {
    "gpt2": Split(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"),
    "smollm": Split(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+"
                    r"|\s+(?![^\s\p{N}])|\s+"),
    "qwen2": Split(rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{_TAIL}", nfc=True),
    "llama3": Split(rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{_TAIL}",
                    whole=True)}

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


def words(text: str, split: str = "gpt2") -> list[str]:
    """Cut a text into the words of a family of `SPLITS`; joined, they are the text again."""
    expression = SPLITS[split].expression
    if text.isascii(): return _pattern(expression, "", "", "").findall(text)
    kinds = {c: unicodedata.category(c) for c in set(text)}
    kinds |= {c: _newer().get(c, "Cn") for c, kind in kinds.items() if kind == "Cn"}
    members = lambda *some: "".join(sorted(c for c, kind in kinds.items() if kind in some))
    pattern = _pattern(expression, members("Nl", "No"), members("L"), members("N"))
    return pattern.findall(text)


@functools.lru_cache(maxsize=64)
def _pattern(expression, odd, letters, numerals):
    """Compile an expression for a text with some characters that `re` classes unlike Unicode 16.

    odd: numerals that are not decimal digits (², Ⅷ), which `re` takes for letters. letters,
    numerals: of `_NEWER`. Whitespace is listed because `re` adds four control characters to it."""
    space = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
    letter = rf"[^\W\d_{odd}]"
    if letters: letter = rf"(?:{letter}|[{letters}])"
    known = rf"\w{letters}{numerals}"                             # letters, numerals, and _
    other = rf"(?:[^{known}{space}]|_)"
    for theirs, ours in {r"[^\s\p{L}\p{N}]": other, r"[^\r\n\p{L}\p{N}]": rf"(?:[^{known}\r\n]|_)",
                         r"[^\s\p{N}]": rf"(?:{letter}|{other})", r"\p{L}": letter,
                         r"\p{N}": rf"[\d{odd}{numerals}]", r"\S": rf"[^{space}]",
                         r"\s": rf"[{space}]"}.items():
        expression = expression.replace(theirs, ours)
    return re.compile(expression)
