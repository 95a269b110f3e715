"""SentencePiece-style BPE in `tokenizer.json`: Llama 2's and TinyLlama's, Gemma's.

The file says in two places how spaces are written and which space is put in front: `normalizer`
and `pre_tokenizer`. `FORMS` lists the combinations that exist.
"""
from typing import Any

from ..common.wording import brief
from ..text.sentencepiece import SPACE, SentencePieceTokenizer
from .folder import check_fields

__all__ = ["described", "parsed"]

MODEL = {"type": ("BPE",), "dropout": (None, 0), "continuing_subword_prefix": (None, ""),
         "end_of_word_suffix": (None, ""), "byte_fallback": (True,), "ignore_merges": (False,)}

_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_PREPEND = {"type": "Prepend", "prepend": SPACE}
_SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
          "invert": False}                   # finds nothing: the normalizer has replaced the spaces


def _sequence(*steps): return {"type": "Sequence", "normalizers": list(steps)}


def _metaspace(scheme):
    return {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}


# (prefix, normalizer, pre_tokenizer); the first form of a prefix is the one that is written
FORMS = [("prepend", _sequence(_PREPEND, _REPLACE), None), ("never", _REPLACE, _SPLIT),
         ("never", _REPLACE, None), ("never", _sequence(_REPLACE), None),
         ("always", None, _metaspace("always")), ("first", None, _metaspace("first")),
         ("never", None, _metaspace("never"))]


def parsed(content: dict[str, Any], special: dict[str, int], added: dict[str, int],
           **ids: Any) -> SentencePieceTokenizer:
    """Return the tokenizer of a tokenizer.json, without its added tokens and post-processor, which
    are given. Leave out merges that would turn plain text into a special token. ValueError or
    TypeError for parts that would give other ids."""
    model = content["model"]
    check_fields(model, MODEL)
    form = content.get("normalizer"), content.get("pre_tokenizer")
    prefix = next((prefix for prefix, *parts in FORMS if tuple(parts) == form), None)
    if prefix is None:
        raise ValueError(f"with byte_fallback, this is not supported: normalizer "
                         f"{brief(form[0])}, pre_tokenizer {brief(form[1])}")
    if (decoder := content.get("decoder")) != _decoder(prefix):
        raise ValueError(f"decoder is {brief(decoder)}, expected {_decoder(prefix)}")
    vocab = {token: i for token, i in model["vocab"].items() if token not in special}
    merges = [(a, b) for a, b in model["merges"] if special.keys().isdisjoint((a, b, a + b))]
    return SentencePieceTokenizer(merges, vocab, special=special, added=added, prefix=prefix, **ids)


def _decoder(prefix):
    steps = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
             {"type": "ByteFallback"}, {"type": "Fuse"}]
    if prefix != "never": steps += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    return {"type": "Sequence", "decoders": steps}


def described(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    """Return the parts of tokenizer.json that say what a tokenizer does; `vocab` without special
    tokens.

    There is no unk_token: every byte has a token."""
    prefix, normalizer, pre = next(form for form in FORMS if form[0] == tokenizer.prefix)
    return {"normalizer": normalizer, "pre_tokenizer": pre, "post_processor": None,
            "decoder": _decoder(prefix),
            "model": {**{name: allowed[0] for name, allowed in MODEL.items()}, "unk_token": None,
                      "fuse_unk": True, "vocab": tokenizer.vocab,
                      "merges": [list(pair) for pair in tokenizer.merges]}}
