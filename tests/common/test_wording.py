"""wording.py: one is no plural, and no text is obeyed by what shows it."""
import sys
import unicodedata
import xml.etree.ElementTree as ElementTree

import pytest

from tinypeft.common.wording import counted, in_one_line, printable, table_cell


def test_one_is_no_plural():
    assert [counted(n, "row") for n in (0, 1, 2, 2000)] == ["0 rows", "1 row", "2 rows", "2,000 rows"]
    assert counted(1, "class") == "1 class" and counted(3, "class") == "3 classes"


def test_every_character_that_a_terminal_obeys_is_shown_as_an_escape():
    """All characters of Unicode: letters of every script stay, with the marks that join them; XML can hold the result."""
    text = "".join(map(chr, range(sys.maxunicode + 1)))
    shown = printable(text)
    left = set(shown)
    assert {c for c in left if unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs")} == {"\t", "\n"}
    assert not left & {c for c in text if unicodedata.bidirectional(c) in "LRE RLE LRO RLO PDF LRI RLI FSI PDI".split()}
    assert {c for c in text if unicodedata.category(c)[0] in "LMNPS"} <= left and "\u200d" in left
    assert ElementTree.fromstring(f"<a>{shown.replace('&', '').replace('<', '')}</a>").text
    assert printable("\x1b]0;owned\x07 ü\n") == r"\x1b]0;owned\x07 ü" + "\n" and printable("\u202e") == r"\u202e"
    assert in_one_line(" a\r\n\tb \x1b[2J\u2028") == r"a b \x1b[2J"


@pytest.mark.parametrize("text, written", [
    ('=HYPERLINK("http://x")', '\'=HYPERLINK("http://x")'), ("@SUM(1)", "'@SUM(1)"), ("-1+cmd", "'-1+cmd"), ("+a", "'+a"),
    ("\t=1+1", "'\t=1+1"), ("\n=1", "'\n=1"), ("\r=1", r"\r=1"), ("\x1b=", r"\x1b="), ("-1", "-1"), ("+2.5", "+2.5"),
    ("-", "-"), ("=", "="), ("good = bad", "good = bad"), ("'=a", "'=a"), ("", "")])
def test_a_cell_is_no_formula(text, written):
    assert table_cell(text) == written
