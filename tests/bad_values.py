"""Values that a field refuses, as the words of its limit say: the message of an error must be true."""
import math
import re

__all__ = ["bad_values"]

# what a limit expects, as a pattern → values that it refuses, given the groups of the match
REFUSED = {
    r"a positive integer": lambda: (0, 1.5, True, "1"),
    r"a non-negative integer": lambda: (-1, 0.5, True, "0"),
    r"an integer ≥ (\d+)": lambda least: (int(least) - 1, int(least) + 0.5, True, least),
    r"an integer from (\d+) to (\d+)": lambda least, most: (int(least) - 1, int(least) + 0.5, int(most) + 1, True, least),
    r"a positive number": lambda: (0, -1.0, 1e39, 10**400, math.nan, math.inf, "1", True),
    r"a non-negative number": lambda: (math.nextafter(0, -1), -1.0, math.nan, math.inf, "1", True),
    r"a number in ([(\[])(\S+), (\S+)([)\]])": lambda left, low, high, right: (
        float(low) if left == "(" else math.nextafter(float(low), -math.inf),
        float(high) if right == ")" else math.nextafter(float(high), math.inf), math.nan, math.inf, "1", True),
    r"True or False": lambda: (1, 0, "yes", None),
    r"True, False or the path of an importance file": lambda: (1, 0, "", None),
    r"('[^']*'.*) or [^,]*": lambda choices: ("?", 0.5, [choices.split("'")[1]]),
    r"a tuple of names such as .*": lambda: ("query", (), 3, (1,), ("!",), ("blocks..0",), ("query value",)),
    r"a dict whose keys are names of layers and whose values are each (.*)": lambda expected: (
        3, {1: 1}, *({"query": value} for value in refused(expected))),
    r"a positive even integer": lambda: (0, 63, 64.0, "64", True),
    r"a positive number or inf": lambda: (0, -6.0, 10**400, math.nan, "6", True),
    r"'FP4', 'FP16', 'BF16' or an 'ExMy' of at most 8 bits, such as 'E4M3'": lambda: ("FP8", "nf4", "E8M8", 4),
    r"a str or a tuple of token ids": lambda: (3, [1], (0.5,)),
    r"a tuple of token ids and strs, such as .*": lambda: ((), 3, (-1,), (0.5,), (True,), "user"),
    r"a token id or a str": lambda: (-1, 0.5),
    r"a number of steps, or a share in \[0, 1\) of all steps": lambda: (*refused("a non-negative number"), 1.5),
    r"a tuple of counts and names of parts, such as .*": lambda: ("[3] context", 3, (-3, "target"), (3.0, "target"))}


def bad_values(limit):
    """Values that a `Limit` refuses. KeyError if no pattern fits its words: then add a row."""
    allows_none = limit.expected.endswith(", or None")
    return tuple(x for x in refused(limit.expected.removesuffix(", or None")) if not (allows_none and x is None))


def refused(expected):
    for pattern in reversed(REFUSED):                    # the special ones stand last
        if match := re.fullmatch(pattern, expected): return REFUSED[pattern](*match.groups())
    raise KeyError(f"add a row to tests/bad_values.py for {expected!r}")
