"""JSON that somebody else may have written, and the types of the values in it."""
import contextlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from ..common.wording import brief, counted, shortened

__all__ = ["check_fields", "made", "naming", "parse_json"]

NAMES = {dict: "an object", list: "a list", str: "a string", int: "a whole number",
         float: "a number", bool: "true or false", None: "null"}
# The bytes of memory that one sign of a text can cost. A text may cost ten times its length, and
# SPARE bytes more. Without a limit, "[[],[],…]" takes twenty times its length.
COST = {"{": 250, "[": 64, ",": 32}
SPARE = 1 << 24
COPY = "copy the file again, or make it again"           # what to do about a damaged file


@contextlib.contextmanager
def naming(place: Any, error: type[ValueError] = ValueError) -> Iterator[None]:
    """A ValueError inside becomes an `error` whose message begins with `place` and is shortened. So
    does an OverflowError, of a number that no float holds, and a KeyError, which stays one."""
    try:
        yield
    except (ValueError, OverflowError) as e:
        raise error(f"{place}: {shortened(str(e))}") from e
    except KeyError as e:
        raise KeyError(f"{place}: {shortened(str(e.args[0]))}") from e


def parse_json(text: str | bytes, infinity: bool = False, remedy: str = COPY) -> Any:
    """`json.loads` for untrusted text: ValueError also for a name that occurs twice in an object,
    for NaN and infinities, for nesting that is too deep, and for a text that would take more memory
    than ten times its length. infinity: whether Python's Infinity is allowed. remedy: what to do
    about a text that is not JSON."""
    if isinstance(text, bytes): text = text.decode("utf-8")
    if sum(text.count(sign) * cost for sign, cost in COST.items()) > 10 * len(text) + SPARE:
        raise ValueError(f"{len(text):,} characters are mostly brackets and commas")
    constant = lambda name: math.inf if infinity and name == "Infinity" else _no_constant(name)
    try:
        return json.loads(text, object_pairs_hook=_without_twins, parse_constant=constant,
                          parse_float=_finite)
    except json.JSONDecodeError as e:
        raise ValueError(f"expected JSON, {_found(e)}; {remedy}") from e
    except RecursionError as e:
        raise ValueError("nested too deeply") from e


def _found(e):
    """Say what stands where a text is not JSON."""
    whole, rest = e.doc.strip(), e.doc[e.pos:].strip()
    if not whole:
        return "got an empty text"
    place = f"line {e.lineno}, column {e.colno}" if "\n" in whole else f"character {e.pos + 1}"
    if not rest or e.msg.startswith("Unterminated string"):
        return f"got a text that ends too early, after {counted(len(e.doc), 'character')}"
    if e.msg == "Extra data":
        return f"got more text after it, at {place}: {brief(rest)}"
    return f"got at {place}: {brief(rest)}"


def _without_twins(pairs):
    for name, n in Counter(name for name, _ in pairs).items():
        if n > 1: raise ValueError(f"the name {brief(name)} occurs twice in one object")
    return dict(pairs)


def _no_constant(name): raise ValueError(f"{name} is not JSON")


def _finite(digits):
    if math.isinf(number := float(digits)):
        raise ValueError(f"the number {shortened(digits, 80)} is too large")
    return number


Kinds = Mapping[str, type | tuple[type | None, ...]]


def check_fields(content: Any, kinds: Kinds, optional: Kinds = MappingProxyType({})) -> dict:
    """`content`, if it is a JSON object with these fields, each of its kind, and no others.

    A kind is a type, or several; None stands for null, `object` for anything, and float allows
    whole numbers. ValueError says which field is at fault."""
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, got {brief(content)}")
    if missing := sorted(kinds.keys() - content.keys()):
        raise ValueError(f"{', '.join(missing)} missing; the fields must be {', '.join(kinds)}")
    for name, value in content.items():
        if name not in kinds and name not in optional:
            raise ValueError(f"unknown field {brief(name)}; there are "
                             f"{', '.join([*kinds, *optional])}")
        kind = kinds[name] if name in kinds else optional[name]
        allowed = kind if type(kind) is tuple else (kind,)
        got = None if value is None else type(value)
        if got not in allowed and object not in allowed and not (got is int and float in allowed):
            expected = " or ".join(NAMES.get(k) or k.__name__ for k in allowed)
            raise ValueError(f"{name} must be {expected}, got {brief(value)}")
    return content


def made(cls: type, fields: Any) -> Any:
    """`cls(**fields)` for fields from a file; a wrong field is a ValueError, as a wrong value is.
    JSON has no tuples, so lists become tuples."""
    if not isinstance(fields, dict):
        raise ValueError(f"{cls.__name__}: expected an object of fields, got {brief(fields)}")
    try:
        return cls(**{k: tuple(v) if type(v) is list else v for k, v in fields.items()})
    except (TypeError, ArithmeticError) as e:
        raise ValueError(f"{cls.__name__}: {e}") from e
