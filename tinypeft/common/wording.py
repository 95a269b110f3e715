"""Words in messages. What a file holds may be hostile, so no message repeats it whole."""
from typing import Any

__all__ = ["brief", "counted", "shortened"]


def brief(value: Any) -> str:
    """Return the `repr` of a value, shortened to 80 characters."""
    return shortened(repr(value), 80)


def shortened(text: str, most: int = 500) -> str:
    """Return a text; if it has more than `most` characters, leave out its middle."""
    if len(text) <= most:
        return text
    head, tail = most * 3 // 4, most // 4
    return f"{text[:head]}…{text[1 - tail:]}"


def counted(n: int, noun: str) -> str:
    """Return "1 row", "2,000 rows" or "2 classes"."""
    if n == 1:
        return f"1 {noun}"
    return f"{n:,} {noun}{'es' if noun.endswith('s') else 's'}"
