"""The tokenizer in a GGUF file's metadata. It has one of two kinds, `tokenizer.ggml.model`:

    gpt2     byte-level BPE: tokens and merges as tokenizer.json writes them. `tokenizer.ggml.pre`
             names the rule for cutting a text into words
    llama    SentencePiece: tokens with scores. The merges follow: two tokens that make a third are
             merged, and the third's score is the rank

`token_type` says of each token whether text makes it: 1 normal, 2 unknown, 3 control, 4 user
defined, 5 unused, 6 a byte. Control tokens are `special`, user-defined ones `added`.
Source: llama.cpp's llama-vocab.cpp, and gguf-py's constants.py.
"""
from typing import Any

import numpy as np

from ..common.wording import brief, shortened
from ..text.sentencepiece import SentencePieceTokenizer
from ..text.tokenizer import END_OF_TEXT, BPETokenizer, Tokenizer, check_bytes
from .byte_level import as_bytes
from .gguf_reader import GGUFError

__all__ = ["KEY", "PRE", "TEMPLATE", "UnknownTokenizer", "tokenizer_of_gguf"]

PRE = {"gpt2": "gpt-2", "smollm": "smollm", "qwen2": "qwen2", "llama3": "llama-bpe"}
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
KEY = "tokenizer.ggml."
TEMPLATE = "tokenizer.chat_template"


class UnknownTokenizer(GGUFError):
    """The fields describe a tokenizer that cannot be made here, and may be in order."""

    def __init__(self, reason: str):
        super().__init__(f"the tokenizer is not supported: {shortened(reason)}")


def tokenizer_of_gguf(fields: dict[str, Any]) -> Tokenizer | None:
    """Return the tokenizer that a GGUF file's fields describe, None if they have none.

    The end of text is `<|endoftext|>` if it is a control token, and the file's EOS then ends a
    turn. `start` is the file's BOS if `add_bos_token` is true; without that field it is so for
    "llama" and for the splitting rule of Llama 3, as in llama.cpp. A text is given a space in front
    as llama.cpp and TinyLlama's own tokenizer.json do ("prepend"). Raises GGUFError for fields that
    do not fit together, and UnknownTokenizer, a GGUFError, for tokenizers of other kinds."""
    kind = fields.get(f"{KEY}model")
    if kind is None or isinstance(kind, str) and kind in ("no_vocab", "none"): return None
    try:
        _check_known(fields, kind)
        tokenizer = _byte_level(fields) if kind == "gpt2" else _sentencepiece(fields)
    except UnknownTokenizer: raise
    except (ValueError, TypeError) as e:
        raise GGUFError(f"the tokenizer is damaged: {shortened(str(e))}") from e
    template = fields.get(TEMPLATE)
    tokenizer.chat_template = template if isinstance(template, str) else None
    return tokenizer


def _check_known(fields, kind):
    """UnknownTokenizer for a kind, or a rule, that is not here. ValueError for what is no name."""
    pre = fields.get(f"{KEY}pre")
    for name, value in (("model", kind), ("pre", pre)):
        if not isinstance(value, (str, type(None))):
            raise ValueError(f"{KEY}{name} is {brief(value)}, expected a name")
    reason = None
    if kind not in ("gpt2", "llama"):
        reason = f"{KEY}model is {brief(kind)}, expected 'gpt2' or 'llama'"
    elif kind == "gpt2" and pre not in PRE.values():
        reason = f"{KEY}pre is {brief(pre)}, expected one of {', '.join(PRE.values())}"
    elif kind == "llama" and str(fields.get("general.architecture")).startswith("gemma"):
        reason = ("a Gemma GGUF file does not say in which order to merge; a folder with "
                  "tokenizer.json does")
    elif fields.get(f"{KEY}add_eos_token"):
        reason = "add_eos_token: a token after every text is not supported"
    if reason: raise UnknownTokenizer(reason)


def _byte_level(fields):
    split = next(ours for ours, theirs in PRE.items() if theirs == fields[f"{KEY}pre"])
    vocab, named = _tokens(fields)
    merges = [tuple(merge.split(" ")) for merge in _array(fields, "merges", str)]
    if wrong := [merge for merge in merges if len(merge) != 2]:
        raise ValueError(f"a merge must be two tokens, got {brief(wrong[0])}")
    octets = {token: as_bytes(token) for token in vocab}
    try: check_bytes(octets.values())
    except ValueError as e: raise UnknownTokenizer(str(e)) from e
    if missing := [t for pair in merges for t in pair if t not in octets]:
        raise ValueError(f"{brief(missing[0])} is merged, but is no token that text makes")
    return BPETokenizer([(octets[a], octets[b]) for a, b in merges],
                        {octets[token]: i for token, i in vocab.items()},
                        split=split, **named, **_ends(fields, named, split == "llama3"))


def _sentencepiece(fields):
    vocab, named = _tokens(fields)
    scores = _array(fields, "scores", float)
    if len(scores) != len(fields[f"{KEY}tokens"]):
        raise ValueError(f"{len(scores)} scores for {len(fields[f'{KEY}tokens'])} tokens")
    merges = [(-scores[i], -n, n - len(token), i, token[:n], token[n:])
              for token, i in vocab.items() for n in range(1, len(token))
              if token[:n] in vocab and token[n:] in vocab]       # in transformers' order
    prefix = "prepend" if fields.get(f"{KEY}add_space_prefix", True) else "never"
    return SentencePieceTokenizer([merge[4:] for merge in sorted(merges)], vocab, prefix=prefix,
                                  **named, **_ends(fields, named, True))


def _tokens(fields):
    """({token: id} of the vocabulary, {"special": …, "added": …} of tokens found by name)"""
    tokens, types = _array(fields, "tokens", str), _array(fields, "token_type", int)
    if len(types) != len(tokens): raise ValueError(f"{len(types)} types for {len(tokens)} tokens")
    vocab, special, added = {}, {}, {}
    homes = {NORMAL: vocab, BYTE: vocab, USER: added, CONTROL: special, UNKNOWN: special,
             UNUSED: {}}
    for i, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if (home := homes.get(kind)) is None:
            raise ValueError(f"token {i} has type {kind}, expected 1 … 6")
        if home.setdefault(token, i) != i and kind != UNUSED:
            raise ValueError(f"the tokens {home[token]} and {i} are both {brief(token)}")
    for name, i in fields.items():
        if i is None or not name.startswith(KEY) or not name.endswith("_token_id"): continue
        if type(i) is not int or not 0 <= i < len(tokens):
            raise ValueError(f"{shortened(name, 80)} is {brief(i)}, expected an id below "
                             f"{len(tokens)}")
    return vocab, {"special": special, "added": added}


def _ends(fields, named, default):
    """Return the arguments end_of_text, end_of_turn and start."""
    bos, eos = (fields.get(f"{KEY}{name}_token_id") for name in ("bos", "eos"))
    if eos not in named["special"].values():
        raise UnknownTokenizer(f"{KEY}eos_token_id is {brief(eos)}, which is no control token")
    end = named["special"].get(END_OF_TEXT, eos)
    adds = fields.get(f"{KEY}add_bos_token", default)
    return {"end_of_text": end, "end_of_turn": None if end == eos else eos,
            "start": bos if adds else None}


def _array(fields, name, kind):
    """Return a field that is a list of `kind`."""
    values = fields.get(f"{KEY}{name}")
    if isinstance(values, np.ndarray): values = values.tolist()
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise ValueError(f"{KEY}{name} must be an array of {kind.__name__}, "
                         f"got {brief(values)}")
    return values
