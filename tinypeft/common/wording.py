"""Words in messages, pages and tables. What a file holds may be hostile: no message repeats it
whole, and nothing in it reaches a terminal or a spreadsheet that obeys it."""
import re
from typing import Any

__all__ = ["brief", "counted", "in_one_line", "printable", "shortened", "table_cell"]

# Control characters but tabs and line ends, other separators of lines, marks that turn the
# direction of writing, halves of characters, and what XML cannot hold.
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069"
                    "\ud800-\udfff\ufffe\uffff]")
# What a spreadsheet computes: text after one of these signs, unless it is a number.
FORMULA = re.compile(r"(?![+-][\d.,]*\Z)[=+@\t\n-].", re.DOTALL)


def brief(value: Any) -> str:
    """Return the `repr` of a value, shortened to 80 characters."""
    return shortened(repr(value), 80)


def shortened(text: str, most: int = 500) -> str:
    """Return a text; if it has more than `most` characters, leave out its middle."""
    if len(text) <= most:
        return text
    head, tail = most * 3 // 4, most // 4
    return f"{text[:head]}…{text[1 - tail:]}"


def printable(text: str) -> str:
    """Return a text with escapes, such as \\x1b, in place of the characters that a terminal obeys
    or that SVG cannot hold. Tabs and line ends stay."""
    return OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def in_one_line(text: str) -> str:
    """Return what `printable` does, in one line: a space in place of each run of white space."""
    return printable(" ".join(text.split()))


def table_cell(text: str) -> str:
    """Return a text for a cell of a CSV file: printable, and with ' in front where a spreadsheet
    would take it for a formula."""
    text = printable(text)
    return f"'{text}" if FORMULA.match(text) else text


def counted(n: int, noun: str) -> str:
    """Return "1 row", "2,000 rows" or "2 classes"."""
    if n == 1:
        return f"1 {noun}"
    return f"{n:,} {noun}{'es' if noun.endswith('s') else 's'}"
