"""files/content.py: JSON of others costs no more than it should, and every value has its type."""
import dataclasses
import json

import pytest

from tinypeft.files import check_fields, made, naming, parse_json


@pytest.mark.parametrize("text, says", [
    ('{"a": 1, "a": 2}', "'a' occurs twice"), ("[NaN]", "NaN is not JSON"), ("[-Infinity]", "-Infinity is not JSON"),
    ("[Infinity]", "Infinity is not JSON"),
    ("[1e999]", "1e999 is too large"), ("[" * 100_000, "nested too deeply"),
    ("[" + "[]," * 3_000_000 + "[]]", "mostly brackets"),
    (b'"\xff"', "utf-8"), ("1" * 10_000, "digits"),
    *((text, f"^expected JSON, {says}; copy the file again, or make it again$") for text, says in [
        (" \n", "got an empty text"), ('{"a": "b', "got a text that ends too early, after 8 characters"),
        ('{\n"a": [1,\n', "got a text that ends too early, after 11 characters"),
        ('{"a": tru}', "got at character 7: 'tru}'"), ('{\n"a": b}', "got at line 2, column 6: 'b}'"),
        ('{"a": 1}\n[2]', r"got more text after it, at line 2, column 1: '\[2\]'")])])
def test_what_is_refused(text, says):
    with pytest.raises(ValueError, match=says): parse_json(text)


def test_what_to_do_is_the_callers_to_say():
    with pytest.raises(ValueError, match="^expected JSON, got an empty text; write one$"): parse_json("", remedy="write one")


def test_what_is_read():
    value = {"a": [1, 2.5, None, True, "é"], "b": {}, "many": list(range(100_000))}
    assert parse_json(json.dumps(value)) == parse_json(json.dumps(value).encode()) == value
    assert parse_json("[Infinity]", infinity=True) == [float("inf")]
    with pytest.raises(ValueError, match="NaN"): parse_json("[NaN]", infinity=True)


@pytest.mark.parametrize("content, says", [
    ([], r"expected a JSON object, got \[\]"), ({"n": 1}, "x missing; the fields must be n, x"),
    ({"n": 1, "x": 2.0, "z": 3}, "unknown field 'z'; there are n, x, y"),
    ({"n": True, "x": 1}, "n must be a whole number, got True"),
    ({"n": 1, "x": "2"}, "x must be a number or null, got '2'"), ({"n": 1.0, "x": 1}, "n must be a whole number, got 1.0"),
    ({"n": 1, "x": 1, "y": None}, "y must be a list, got None")])
def test_a_wrong_field_is_named(content, says):
    with pytest.raises(ValueError, match=says): check_fields(content, {"n": int, "x": (float, None)}, {"y": list})


def test_right_fields():
    for content in {"n": 1, "x": 2}, {"n": 1, "x": None, "y": []}:
        assert check_fields(content, {"n": int, "x": (float, None)}, {"y": list}) is content


def test_a_value_of_a_class_is_made_from_fields():
    @dataclasses.dataclass
    class Pair:
        a: tuple
        b: int = 0
    assert made(Pair, {"a": [1, 2]}) == Pair((1, 2))
    for fields in {"c": 1}, {}, [], None:
        with pytest.raises(ValueError, match="Pair"): made(Pair, fields)


def test_errors_name_the_place():
    with pytest.raises(ValueError, match="file: wrong"), naming("file"): raise ValueError("wrong")
    with pytest.raises(KeyError, match="file: missing"), naming("file"): raise KeyError("missing")
