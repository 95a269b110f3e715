"""Byte-level BPE in `tokenizer.json`: how it writes bytes, and how it says which splitting rule.

JSON and lines of text need visible characters, so the files write each byte of a token as one
character. A byte that is a printable character of Latin-1 is written as itself. The other 68 bytes
are written, in order, as the characters from 256 on: the space is Ġ, the newline Ċ.
"""
from typing import Any

from ..common.wording import brief
from ..text.tokenizer import END_OF_TEXT, BPETokenizer
from ..text.words import SPLITS
from .folder import check_fields

__all__ = ["as_bytes", "as_characters", "described", "parsed"]

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
CHARACTER = {b: chr(b) for b in _PRINTABLE}                      # byte → its character in the files
CHARACTER |= {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in CHARACTER)}
BYTE = {character: b for b, character in CHARACTER.items()}

# Values that tokenizer.json may have in its model, and types of its other parts; others change ids.
MODEL = {"type": ("BPE",), "dropout": (None, 0), "unk_token": (None, END_OF_TEXT),
         "continuing_subword_prefix": (None, ""), "end_of_word_suffix": (None, ""),
         "fuse_unk": (False,), "byte_fallback": (False,), "ignore_merges": (False, True)}
PARTS = {"normalizer": (None, "NFC"), "pre_tokenizer": ("ByteLevel", "Sequence"),
         "decoder": (None, "ByteLevel")}
LEVEL = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
DIGITS = {"type": "Digits", "individual_digits": True}


def as_bytes(token: str) -> bytes:
    """Return the bytes of a token as the files write it. ValueError for a character of no byte."""
    try:
        return bytes([BYTE[c] for c in token])
    except KeyError as e:
        raise ValueError(f"{brief(token)} has {e.args[0]!r}, which stands for no byte") from e


def as_characters(token: bytes) -> str:
    """Return the characters that the files write for a token's bytes."""
    return "".join(CHARACTER[b] for b in token)


def parsed(content: dict[str, Any], special: dict[str, int], added: dict[str, int],
           **ids: Any) -> BPETokenizer:
    """Return the tokenizer of a tokenizer.json, without its added tokens and post-processor, which
    are given. ValueError or TypeError for parts that would give other ids."""
    model, parts = content["model"], {name: content.get(name) for name in PARTS}
    check_fields(model, MODEL)
    check_fields({name: part.get("type") if isinstance(part, dict) else part and [part]
                  for name, part in parts.items()}, PARTS)
    split = _split(parts["pre_tokenizer"])
    nfc, whole = parts["normalizer"] is not None, bool(model.get("ignore_merges"))
    if nfc != SPLITS[split].nfc:
        got, expected = ("'NFC'", "None") if nfc else ("None", "'NFC'")
        raise ValueError(f"the normalizer is {got}, expected {expected} with this pre_tokenizer")
    if whole != SPLITS[split].whole:
        raise ValueError(f"ignore_merges is {whole}, expected {not whole} with this pre_tokenizer")
    vocab = {as_bytes(token): i for token, i in model["vocab"].items()
             if token not in special and token not in added}
    if model.get("unk_token") and len({t for t in vocab if len(t) == 1}) < 256:
        raise ValueError("unk_token is used for the bytes that the vocabulary lacks")
    merges = [(as_bytes(a), as_bytes(b)) for a, b in model["merges"]]
    return BPETokenizer(merges, vocab, special=special, added=added, split=split, **ids)


def _split(part):
    """Return the name in `SPLITS` of a pre_tokenizer: ByteLevel, alone or after one other step."""
    *steps, level = part.get("pretokenizers") or [None] if part["type"] == "Sequence" else [part]
    if not isinstance(level, dict) or level.get("type") != "ByteLevel":
        raise ValueError(f"pre_tokenizer is 'Sequence', expected it to end in ByteLevel, got "
                         f"{brief(part)}")
    rules = {"gpt2": not steps, "smollm": steps == [DIGITS]}
    if not level.get("use_regex", True):
        rules = {name: steps == [_step(split.expression)] for name, split in SPLITS.items()}
    if level.get("add_prefix_space") or not any(rules.values()):
        raise ValueError("the pre_tokenizer must split by GPT-2's expression, SmolLM2's, Qwen's or "
                         f"Llama 3's, and put no space in front, got {brief(part)}")
    return next(name for name, holds in rules.items() if holds)


def _step(expression):
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated",
            "invert": False}


def described(tokenizer: BPETokenizer) -> dict[str, Any]:
    """Return the parts of tokenizer.json that say what a tokenizer does; `vocab` without named
    tokens."""
    split, rule = tokenizer.split, SPLITS[tokenizer.split]
    steps = {"gpt2": [], "smollm": [DIGITS]}.get(split, [_step(rule.expression)])
    level = LEVEL | {"use_regex": split in ("gpt2", "smollm")}
    sequence = {"type": "Sequence", "pretokenizers": [*steps, level]}
    return {"normalizer": {"type": "NFC"} if rule.nfc else None,
            "pre_tokenizer": sequence if steps else level,
            "post_processor": LEVEL | {"trim_offsets": False}, "decoder": LEVEL,
            "model": {**{name: allowed[0] for name, allowed in MODEL.items()},
                      "ignore_merges": rule.whole,
                      "vocab": {as_characters(token): i for token, i in tokenizer.vocab.items()},
                      "merges": [[as_characters(t) for t in pair] for pair in tokenizer.merges]}}
