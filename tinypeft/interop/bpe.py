"""GPT-2's tokenizer files, both ways: `vocab.json` with `merges.txt`, or `tokenizer.json`, ↔ `BPETokenizer`.

The files hold bytes in disguise: JSON and lines of text need characters that can be seen, so each byte has one. A byte
that is a printable character of Latin-1 stands for itself, and the 68 others, in order, are the characters from 256 on:
the space is Ġ, the newline Ċ. What a file asks for beyond byte-level BPE as GPT-2 does it is a `HuggingFaceError`.
"""
import json
from pathlib import Path

from ..files import write_atomically
from ..text.tokenizer import END_OF_TEXT, BPETokenizer
from .folder import HuggingFaceError, read_object, read_text

__all__ = ["read_tokenizer", "write_tokenizer"]

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
CHARACTER = {b: chr(b) for b in _PRINTABLE}                               # byte → the character that stands for it
CHARACTER |= {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in CHARACTER)}
_BYTE = {character: b for b, character in CHARACTER.items()}

# what tokenizer.json may say of its model and of what stands before and behind it; anything else changes the ids
MODEL = {"type": ("BPE",), "dropout": (None, 0), "unk_token": (None, END_OF_TEXT), "continuing_subword_prefix": (None, ""),
         "end_of_word_suffix": (None, ""), "fuse_unk": (False,), "byte_fallback": (False,), "ignore_merges": (False,)}
PARTS = {"normalizer": (None,), "pre_tokenizer": ("ByteLevel",), "post_processor": (None, "ByteLevel", "TemplateProcessing"),
         "decoder": (None, "ByteLevel")}


def read_tokenizer(folder):
    """The tokenizer of a Hugging Face folder → `BPETokenizer`, or None if there is none. `tokenizer.json` goes before.

    Its end of text is the `eos_token` of `tokenizer_config.json` or `special_tokens_map.json`, else `<|endoftext|>`.
    `encode(text, allow_special=True)` gives transformers' ids. Raises `HuggingFaceError` for files that are damaged or ask
    for more than GPT-2's byte-level BPE."""
    folder = Path(folder)
    if (path := folder / "tokenizer.json").exists():
        merges, vocab, special = _from_tokenizer_json(path)
    elif (path := folder / "vocab.json").exists():
        merges = [line.split(" ") for line in read_text(folder / "merges.txt").split("\n") if line.strip()]
        if merges and merges[0][0].startswith("#version"): del merges[0]
        vocab, special = read_object(path), {}
        if (folder / "added_tokens.json").exists(): special = read_object(folder / "added_tokens.json")
    else:
        return None
    end = _end_of_text(folder)
    special = {end: vocab.get(end)} | special
    vocab = {token: i for token, i in vocab.items() if token not in special}
    if wrong := [i for i in [*vocab.values(), *special.values()] if type(i) is not int]:
        raise HuggingFaceError(f"{path}: ids must be integers, got {wrong[0]!r}; is {end!r} in it?")
    try:
        merges = [(_bytes(a), _bytes(b)) for a, b in merges]
        return BPETokenizer(merges, {_bytes(token): i for token, i in vocab.items()}, special[end], special)
    except (ValueError, TypeError) as e:
        raise HuggingFaceError(f"{path}: no byte-level BPE: {e}") from e


def _from_tokenizer_json(path):
    content = read_object(path)
    model, added = content.get("model"), content.get("added_tokens") or []
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict) or not isinstance(model.get("merges"), list):
        raise HuggingFaceError(f"{path}: expected model: {{vocab: {{…}}, merges: […]}}")
    said = {name: model.get(name, allowed[0]) for name, allowed in MODEL.items()}
    for name in PARTS:
        part = content.get(name)
        said[name] = part.get("type") if isinstance(part, dict) else part if part is None else [part]
    for name, allowed in {**MODEL, **PARTS}.items():
        if (value := said[name]) not in allowed:
            raise HuggingFaceError(f"{path}: {name} is {repr(value)[:80]}; only GPT-2's byte-level BPE is read, which has "
                                   f"{' or '.join(map(repr, allowed))}")
    if (content.get("post_processor") or {}).get("special_tokens"):
        raise HuggingFaceError(f"{path}: the post_processor puts special tokens around a text, which GPT-2's does not")
    split = content["pre_tokenizer"]
    if split.get("add_prefix_space") or not split.get("use_regex", True):
        raise HuggingFaceError(f"{path}: the pre_tokenizer must cut as GPT-2's, without a space put in front, got {split}")
    special = {}
    for token in added:
        if not isinstance(token, dict) or not isinstance(token.get("content"), str) or any(
                token.get(flag) for flag in ("lstrip", "rstrip", "single_word")):
            raise HuggingFaceError(f"{path}: an added token must have a content, and leave what is around it alone, got "
                                   f"{str(token)[:200]}")
        special[token["content"]] = token.get("id")
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    return merges, model["vocab"], special


def _end_of_text(folder):
    for name in "tokenizer_config.json", "special_tokens_map.json":
        if (folder / name).exists():
            token = read_object(folder / name).get("eos_token")
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str): return token
    return END_OF_TEXT


def _bytes(token):
    """A token as files write it → its bytes. ValueError for a character that stands for none."""
    if not isinstance(token, str):
        raise TypeError(f"a token must be a string, got {token!r}")
    try:
        return bytes([_BYTE[character] for character in token])
    except KeyError as e:
        raise ValueError(f"{token[:40]!r} has {e.args[0]!r}, which stands for no byte") from None


def write_tokenizer(folder, tokenizer):
    """Write a `BPETokenizer` as GPT-2's files, all of them: what transformers, tokenizers and llama.cpp read."""
    folder = Path(folder)
    shown = lambda token: "".join(CHARACTER[b] for b in token)
    in_order = lambda ids: dict(sorted(ids.items(), key=lambda pair: pair[1]))
    merges = [[shown(a), shown(b)] for a, b in tokenizer.merges]
    vocab = in_order({shown(token): i for token, i in tokenizer.vocab.items()} | tokenizer.special)
    end = next(name for name, i in tokenizer.special.items() if i == tokenizer.end_of_text)
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content = {"version": "1.0", "truncation": None, "padding": None,
               "added_tokens": [{"id": i, "content": name, **flags} for name, i in in_order(tokenizer.special).items()],
               "normalizer": None, "pre_tokenizer": level, "post_processor": level | {"trim_offsets": False}, "decoder": level,
               "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                         "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                         "vocab": vocab, "merges": merges}}
    config = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "bos_token": end, "eos_token": end,
              "unk_token": end}
    write_atomically(folder / "merges.txt", "".join(f"{a} {b}\n" for a, b in [("#version:", "0.2"), *merges]))
    for name, value in ("vocab.json", vocab), ("tokenizer.json", content), ("tokenizer_config.json", config):
        write_atomically(folder / name, json.dumps(value, ensure_ascii=False) + "\n")
