"""GPT-2's tokenizer files, both ways: `tokenizer.json`, or `vocab.json` with `merges.txt`.

JSON and lines of text need visible characters, so the files write each byte of a token as one
character. A byte that is a printable character of Latin-1 is written as itself. The other 68 bytes
are written, in order, as the characters from 256 on: the space is Ġ, the newline Ċ.
"""
import json
from pathlib import Path

from ..files import write_atomically
from ..text.tokenizer import END_OF_TEXT, BPETokenizer
from .folder import HuggingFaceError, check_fields, read_object, read_text

__all__ = ["as_characters", "read_tokenizer", "write_tokenizer"]

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
CHARACTER = {b: chr(b) for b in _PRINTABLE}                      # byte → its character in the files
CHARACTER |= {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in CHARACTER)}
BYTE = {character: b for b, character in CHARACTER.items()}

# Values that tokenizer.json may have in its model, and types of its other parts; others change ids.
MODEL = {"type": ("BPE",), "dropout": (None, 0), "unk_token": (None, END_OF_TEXT),
         "continuing_subword_prefix": (None, ""), "end_of_word_suffix": (None, ""),
         "fuse_unk": (False,), "byte_fallback": (False,), "ignore_merges": (False,)}
FLAGS = "single_word", "lstrip", "rstrip"        # added tokens that depend on the text around them
PARTS = {"normalizer": (None,), "pre_tokenizer": ("ByteLevel",), "decoder": (None, "ByteLevel"),
         "post_processor": (None, "ByteLevel", "TemplateProcessing")}


def read_tokenizer(folder: str | Path) -> BPETokenizer | None:
    """The tokenizer in a Hugging Face folder, or None if there is none.

    `tokenizer.json` is preferred to `vocab.json`. The end of text is the `eos_token` of
    `tokenizer_config.json` or `special_tokens_map.json`, otherwise `<|endoftext|>`.
    `encode(text, allow_special=True)` gives transformers' ids. Raises HuggingFaceError for damaged
    files and for any tokenizer but GPT-2's byte-level BPE."""
    folder = Path(folder)
    path = folder / ("tokenizer.json" if (folder / "tokenizer.json").exists() else "vocab.json")
    if not path.exists(): return None
    content, end = read_object(path), _end_of_text(folder)
    older = _read_older_files(folder, content) if path.name == "vocab.json" else None
    try:
        merges, vocab, special = older or _parse_tokenizer_json(content)
        special = {end: vocab.get(end)} | special
        vocab = {token: i for token, i in vocab.items() if token not in special}
        if wrong := [i for i in [*vocab.values(), *special.values()] if type(i) is not int]:
            raise ValueError(f"ids must be integers, got {wrong[0]!r}; is {end!r} in it?")
        merges = [(_as_bytes(a), _as_bytes(b)) for a, b in merges]
        vocab = {_as_bytes(token): i for token, i in vocab.items()}
        return BPETokenizer(merges, vocab, special[end], special)
    except (ValueError, TypeError) as e:
        raise HuggingFaceError(f"{path}: not GPT-2's byte-level BPE: {e}") from e


def _parse_tokenizer_json(content):
    """(merges, vocab, special tokens → ids); `BPETokenizer` checks that they fit together."""
    match content:
        case {"model": {"vocab": dict(vocab), "merges": list(merges)} as model}:
            check_fields(model, MODEL)
        case _: raise ValueError("expected model: {vocab: {…}, merges: […]}")
    special, parts = {}, {name: content.get(name) for name in PARTS}
    check_fields({name: part.get("type") if isinstance(part, dict) else part and [part]
                  for name, part in parts.items()}, PARTS)
    if (content.get("post_processor") or {}).get("special_tokens"):
        raise ValueError("the post_processor puts special tokens around a text")
    split = content["pre_tokenizer"]
    if split.get("add_prefix_space") or not split.get("use_regex", True):
        raise ValueError("the pre_tokenizer must split by GPT-2's expression and put no space in "
                         f"front, got {split}")
    for token in content.get("added_tokens") or []:
        match token:
            case {"content": str(name)} if not any(map(token.get, FLAGS)):
                special[name] = token.get("id")
            case _:
                raise ValueError("an added token needs a content, and must not depend on the text "
                                 f"around it, got {str(token)[:200]}")
    return [pair.split(" ") if isinstance(pair, str) else pair for pair in merges], vocab, special


def _read_older_files(folder, vocab):
    """(merges, vocab, special tokens → ids) of a folder with vocab.json."""
    merges = [s.split(" ") for s in read_text(folder / "merges.txt").split("\n") if s.strip()]
    if merges and merges[0][0].startswith("#version"): del merges[0]
    added = folder / "added_tokens.json"
    return merges, vocab, read_object(added) if added.exists() else {}


def _end_of_text(folder):
    for path in folder / "tokenizer_config.json", folder / "special_tokens_map.json":
        token = read_object(path).get("eos_token") if path.exists() else None
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str): return token
    return END_OF_TEXT


def _as_bytes(token):
    """A token as the files write it → its bytes. ValueError if it has a character of no byte."""
    if not isinstance(token, str): raise TypeError(f"a token must be a string, got {token!r}")
    if odd := [c for c in token if c not in BYTE]:
        raise ValueError(f"{token[:40]!r} has {odd[0]!r}, which stands for no byte")
    return bytes([BYTE[c] for c in token])


def as_characters(token: bytes) -> str:
    """A token's bytes → the characters that the files write for them."""
    return "".join(CHARACTER[b] for b in token)


def write_tokenizer(folder: str | Path, tokenizer: BPETokenizer) -> None:
    """Write all of GPT-2's tokenizer files; transformers, tokenizers and llama.cpp read them."""
    by_id = lambda ids: dict(sorted(ids.items(), key=lambda pair: pair[1]))
    folder, special = Path(folder), by_id(tokenizer.special)
    merges = [[as_characters(a), as_characters(b)] for a, b in tokenizer.merges]
    vocab = by_id({as_characters(token): i for token, i in tokenizer.vocab.items()} | special)
    end = next(name for name, i in tokenizer.special.items() if i == tokenizer.end_of_text)
    level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
    flags = dict.fromkeys([*FLAGS, "normalized"], False)
    content = {"version": "1.0", "truncation": None, "padding": None,
               "added_tokens": [{"id": i, "content": name, **flags, "special": True}
                                for name, i in special.items()],
               "normalizer": None, "pre_tokenizer": level,
               "post_processor": level | {"trim_offsets": False}, "decoder": level,
               "model": {**{name: allowed[0] for name, allowed in MODEL.items()},
                         "vocab": vocab, "merges": merges}}
    config = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "bos_token": end,
              "eos_token": end, "unk_token": end}
    lines = "".join(f"{a} {b}\n" for a, b in [("#version:", "0.2"), *merges])
    write_atomically(folder / "merges.txt", lines)
    for name, value in ("vocab", vocab), ("tokenizer", content), ("tokenizer_config", config):
        write_atomically(folder / f"{name}.json", json.dumps(value, ensure_ascii=False) + "\n")
