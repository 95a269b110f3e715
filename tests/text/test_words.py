"""text/words.py: each family's splitting rule is bit-exact with the package tokenizers on every kind of character."""
import random
import sys
import unicodedata

import pytest

from tests.oracles.hf_tokenizers import BYTE_LEVEL, cut, documents
from tinypeft.text.words import SPLITS, _newer, words

ALPHABET = " \n\t\r\x1c\x1f\x85\xa0\u2003\u3000'strevmldSTREVMLDſK_0912²½Ⅷ①٣aZéßж中\u0301-,.{🙂\u200b\x00"


def known_characters():
    return [c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) not in ("Cn", "Co", "Cs")]


@pytest.mark.parametrize("split", BYTE_LEVEL)
def test_words_are_the_librarys(split):
    pytest.importorskip("tokenizers")
    rng, pre = random.Random(1), cut(split)
    for text in ["\n".join(documents()), *("".join(rng.choices(ALPHABET, k=60)) for _ in range(800))]:
        assert words(text, split) == [text[a:b] for _, (a, b) in pre.pre_tokenize_str(text)]


@pytest.mark.skipif(unicodedata.unidata_version > "16.1", reason="a Python that knows more letters than tokenizers")
def test_every_character_is_cut_as_in_the_library():
    """Characters of Unicode 14, which all Pythons know; tests/interop/test_bpe.py has the newer ones."""
    pytest.importorskip("tokenizers")
    pre, known = cut("smollm"), known_characters()
    for i in range(0, len(known), 8192):
        text = "".join(f"a{c}1{c}!{c} {c}" for c in known[i:i + 8192])
        assert words(text, "smollm") == [text[a:b] for _, (a, b) in pre.pre_tokenize_str(text)], hex(ord(known[i]))


def test_a_range_of_newer_characters_has_both_ends():
    """Letters and numerals of Unicode 15.0 to 16.0, which a Python's own table may not know."""
    for ends, kind in (("1c89 1c8a 1138b 31350 323af", "L"), ("10d40 10d49 1e5f1 1e5fa", "N")):
        assert {_newer()[chr(int(end, 16))] for end in ends.split()} == {kind}
    assert not {chr(int(end, 16)) for end in "1c88 1c8b 1134f 3134f 323b0 10d3f 1e5fb".split()} & _newer().keys()


def test_rules_read_as_they_should():
    text = "I'LL pay  1234\r\n  now"
    assert words(text) == ["I", "'", "LL", " pay", " ", " 1234", "\r\n ", " now"]
    assert words(text, "smollm") == ["I", "'", "LL", " pay", "  ", "1", "2", "3", "4", "\r\n ", " now"]
    assert words(text, "qwen2") == ["I", "'LL", " pay", " ", " ", "1", "2", "3", "4", "\r\n", " ", " now"]
    assert words(text, "llama3") == ["I", "'LL", " pay", " ", " ", "123", "4", "\r\n", " ", " now"]


def test_nothing_is_lost():
    every = "".join(chr(c) + " " for c in range(0x3000))
    for split in SPLITS: assert "".join(words(every, split)) == every


def test_form_nfc_is_the_librarys():
    """tokenizers has the marks of Unicode 9, so it leaves the order of 98 rarer ones, such as U+0898, as it is."""
    theirs = pytest.importorskip("tokenizers").normalizers.NFC()
    known = known_characters()
    assert theirs.normalize_str(text := "\n".join(known)) == unicodedata.normalize("NFC", text)
    rng, marks = random.Random(0), [c for c in known if unicodedata.combining(c) and c < "\u07fd"]
    text = "".join(rng.choice(known[:1900]) + rng.choice(marks) + rng.choice(marks) for _ in range(20_000))
    assert theirs.normalize_str(text) == unicodedata.normalize("NFC", text) != text
