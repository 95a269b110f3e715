"""text/sentencepiece.py: the tokens of Llama 2's and Gemma's kind are the library's, and any bytes come back."""
import random
import time

import numpy as np
import pytest

from tests.oracles.hf_tokenizers import BYTES, MIXED, PREFIXES
from tinypeft.text import BPETokenizer, SentencePieceTokenizer
from tinypeft.text.templates import Special
from tinypeft.text.tokenizer import join

NAMED = {"<unk>": 0, "<s>": 1, "</s>": 2}
LETTERS = list("▁abcdehlorw")
MERGES = [("h", "e"), ("l", "l"), ("▁", "he"), ("▁he", "ll"), ("▁hell", "o"), ("he", "ll"), ("▁", "w")]


def small(merges=MERGES, more=(), **options):
    tokens = [*NAMED, *BYTES, *LETTERS, *dict.fromkeys(a + b for a, b in merges), *more]
    vocab = {token: i for i, token in enumerate(tokens) if token not in NAMED}
    return SentencePieceTokenizer(merges, vocab, 2, NAMED, **{"start": 1, **options})


def tokens(tokenizer, ids):
    named = {i: token for token, i in (tokenizer.vocab | tokenizer.special).items()}
    return [named[i] for i in ids]


def slow(pieces, merges):
    """The definition: of all pairs that have a merge, join the leftmost of the earliest merge, again and again."""
    pieces = list(pieces)
    pairs = lambda: enumerate(zip(pieces, pieces[1:], strict=False))
    while found := [(merges.index(pair), i) for i, pair in pairs() if pair in merges]:
        _, i = min(found)
        pieces[i:i + 2] = [pieces[i] + pieces[i + 1]]
    return pieces


def test_merges_are_joined_as_the_definition_says():
    """Merges in any order, also where a token is made before its parts, which no training gives but a file may."""
    order = [("b", "c"), ("a", "b"), ("bc", "d"), ("a", "bc")]           # (a, b) is gone when its turn comes
    assert join("abcd", {pair: i for i, pair in enumerate(order)}) == slow("abcd", order) == ["a", "bcd"]
    rng = random.Random(0)
    for _ in range(300):
        made, merges = ["a", "b", "c"], []
        for _ in range(rng.randrange(1, 12)):
            merges.append((rng.choice(made), rng.choice(made)))
            made.append("".join(merges[-1]))
        merges = list(dict.fromkeys(merges))
        rng.shuffle(merges)
        text = rng.choices("abc", k=rng.randrange(30))
        assert join(text, {pair: i for i, pair in enumerate(merges)}) == slow(text, merges)


def test_the_space_in_front():
    for prefix, text, expected in [
            ("prepend", "hello", ["▁hello"]), ("prepend", " hello", ["▁", "▁hello"]),
            ("prepend", "o</s>o", "▁ o </s> ▁ o".split()),
            ("always", " hello", ["▁hello"]), ("always", "o</s>o", "▁ o </s> ▁ o".split()),
            ("first", "hello", ["▁hello"]), ("first", "o</s>o", "▁ o </s> o".split()),
            ("first", "</s>o", ["</s>", "o"]),
            ("never", "hello", ["hell", "o"]), ("never", " hello", ["▁hello"]), ("prepend", "", []), ("first", "", [])]:
        t = small(prefix=prefix)
        assert tokens(t, t.encode(text, allow_special=True)) == expected, (prefix, text)
    for prefix, expected in ("prepend", "▁ o </s> ▁ o"), ("first", "▁ o </s> o"):
        t = small(prefix=prefix)
        assert tokens(t, t.encode_parts(["o", Special("</s>"), "o"])) == expected.split()


def test_bytes_stand_for_what_has_no_token():
    t = small(prefix="never")
    assert tokens(t, t.encode("é\t")) == ["<0xC3>", "<0xA9>", "<0x09>"]
    assert tokens(t, t.encode(b"\xff")) == ["<0xFF>"] and t.decode_bytes(t.encode(b"\xff a")) == b"\xff a"
    assert tokens(t, t.encode("<0x09>"))[0] == "<0x3C>"                  # nobody can write a byte's token
    assert "<s>" not in tokens(t, t.encode("<s></s>"))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_byte_string_comes_back(prefix):
    t, rng = small(prefix=prefix), random.Random(0)
    cases = [b"", b" ", b"  a", MIXED.encode(), *(rng.randbytes(rng.randrange(60)) for _ in range(300))]
    for case in cases:
        if case.startswith(b" ") and prefix in ("always", "first"): continue       # they do not tell " a" from "a"
        assert t.decode_bytes(t.encode(case)) == case.replace("▁".encode(), b" ")


def test_a_continuation_keeps_its_space():
    t = small()
    ids = t.encode("hello hello")
    assert t.decode(ids) == "hello hello" and t.decode(ids[:1]) == "hello" and t.decode(ids[1:]) == "hello"
    assert t.decode(ids[1:], continued=True) == " hello" and t.decode(ids) == "hello hello"


def test_documents_begin_with_the_start():
    t = small()
    assert tokens(t, t.encode_documents(["hello", "o"])) == ["<s>", "▁hello", "</s>", "<s>", "▁", "o", "</s>"]
    assert t.encode_documents([]).tolist() == [] and t.opening == 1
    assert tokens(t, t.encode_prompt("hello")) == ["<s>", "▁hello"] and t.encode_prompt("").tolist() == [1]
    without = small(start=None)
    assert tokens(without, without.encode_documents(["o"])) == ["</s>", "▁", "o", "</s>"] and without.opening == 2
    assert without.encode_prompt("o").tolist() == without.encode("o").tolist()


def test_where_a_token_reaches_across_a_space_nothing_is_cut():
    merges = [("o", "▁"), ("o▁", "w"), *MERGES]
    t = small(merges, prefix="never")
    assert tokens(t, t.encode("hello worw")) == slow(list("hello▁worw"), merges) == ["hell", "o▁w", "o", "r", "w"]


def test_added_tokens_and_long_words():
    t = small(more=["▁▁"], added={"▁▁": 3 + 256 + len(LETTERS) + len(MERGES)}, prefix="never")
    assert tokens(t, t.encode("o ▁▁o")) == ["o", "▁", "▁▁", "o"]         # found in the text as it is written
    start = time.process_time()
    assert t.decode(t.encode("日本" * 50_000 + "hello" * 50_000)) == "日本" * 50_000 + "hello" * 50_000
    assert time.process_time() - start < 10                              # a word of 350,000 characters: not quadratic


@pytest.mark.parametrize("change, says", [
    ({"prefix": "x"}, "prefix must be one of prepend, always, first, never, got 'x'"), ({"start": 9}, "id of start, 9"),
    ({"end_of_turn": 700}, "id of end_of_turn, 700"), ({"merges": [("q", "q")]}, "2 tokens are missing")])
def test_bad_arguments(change, says):
    t = small()
    given = {"merges": t.merges, "vocab": t.vocab, "end_of_text": 2, "special": t.special, **change}
    with pytest.raises(ValueError, match=says): SentencePieceTokenizer(**given)


def test_a_byte_without_a_token():
    t = small()
    vocab = {token: i for token, i in t.vocab.items() if token not in ("<0x61>", "<0x09>")}
    with pytest.raises(ValueError, match="1 bytes have no token, the first is <0x09>"):        # 0x61 is "a", a token
        SentencePieceTokenizer(t.merges, vocab, 2, NAMED)


def test_saved_and_loaded(tmp_path):
    added = {"▁▁": 3 + 256 + len(LETTERS) + len(MERGES)}
    for t in small(), small(prefix="first", start=None), small(more=["▁▁"], added=added, end_of_turn=0):
        t.save(tmp_path / "t.json")
        again = SentencePieceTokenizer.load(tmp_path / "t.json")
        assert again == t and np.array_equal(again.encode(MIXED), t.encode(MIXED)) and repr(t) == repr(again)
        with pytest.raises(ValueError, match="not a tokenizer of BPETokenizer.save: its format is 'tinypeft-sentencep"):
            BPETokenizer.load(tmp_path / "t.json")
    assert small() != small(prefix="first")
