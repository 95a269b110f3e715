"""Fields that state their limits: every field of every method, scheme and config refuses what its words exclude.

Which limit and which default each has is listed in limits.txt (test_limits.py)."""
import copy
import dataclasses
import pickle
import pydoc
import re

import numpy as np
import pytest

import tinypeft as tp
from tests.bad_values import bad_values
from tinypeft.common.hyper import Checked, declared, flag, layer_names, mapping, one_of, real, whole
from tinypeft.common.wording import brief

NAMED = {**tp.METHODS, **tp.SCHEMES}
CLASSES = [*NAMED.values(), tp.GPTConfig]
FIELDS = [pytest.param(cls, f, id=f"{cls.__name__}.{f.name}") for cls in CLASSES for f in dataclasses.fields(cls)]
JUNK = [object(), 1j, b"8", "no such choice", [None], {"query": object()}, (object(),), np.zeros(2)]
every_field = pytest.mark.parametrize("cls, field", FIELDS)
every_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)


# -- every field of every class ------------------------------------------------------------------
@every_field
def test_a_bad_value_is_refused_and_the_message_names_class_field_and_value(cls, field):
    limit = field.metadata["limit"]
    bad = [*bad_values(limit), *(x for x in JUNK if not (isinstance(x, str) and limit.holds(x)))]
    for value in bad:
        with pytest.raises(cls.error) as caught:
            cls(**{field.name: value})
        message = str(caught.value)
        assert message.startswith(f"{cls.__name__}: {field.name} must be ") and message.endswith(f", got {brief(value)}")


@every_field
def test_none_is_allowed_where_the_message_says_so(cls, field):
    limit = field.metadata["limit"]
    assert limit.holds(None) == limit.expected.endswith(("None", "None'"))


@pytest.mark.parametrize("cls", [*tp.METHODS.values(), tp.GPTConfig], ids=lambda cls: cls.__name__)
def test_numpy_scalars_are_allowed_where_numbers_are(cls):
    for f in dataclasses.fields(cls):
        if type(f.default) in (int, float):
            scalar = np.int64(f.default) if type(f.default) is int else np.float64(f.default)
            assert getattr(cls(**{f.name: scalar}), f.name) is scalar


# -- names ---------------------------------------------------------------------------------------
@every_class
def test_the_names_of_other_libraries_get_a_hint(cls):
    fields = {f.name: f.metadata["also"] for f in dataclasses.fields(cls)}
    others = [name for names in fields.values() for name in names]
    assert len(set(others)) == len(others) and not set(others) & fields.keys()
    for ours, names in fields.items():
        for name in names:
            with pytest.raises(TypeError, match=f"^{cls.__name__} has no field '{name}'; the field is called {ours}$"):
                cls(**{name: 1})


@pytest.mark.parametrize("make, message", [
    (lambda: tp.LoRA(r=8), "LoRA has no field 'r'; the field is called rank"),
    (lambda: tp.LoRA(rnak=8), "did you mean rank?"),
    (lambda: tp.LoRA(alfa=8), "did you mean alpha?"),
    (lambda: tp.PromptTuning(size=8), "its fields are length, init, text"),
    (lambda: tp.LinearProbe(rank=8), "its fields are none")])
def test_a_wrong_name_gets_a_hint(make, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        make()


# -- the kinds of field --------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Kinds(Checked):
    count: int = whole(2, least=2, most=8)
    size: int | None = whole(None, least=0, or_none=True)
    share: float = real(0.5, above=0, most=1)
    rate: float = real(1.0, below=10)
    kind: str | None = one_of("a", "b", None, default="b")
    on: bool = flag(False)
    names: tuple = layer_names("all")
    ranks: dict | None = mapping(whole(1, least=1))
    pair: tuple = declared((1, 2), dataclasses.replace(whole(0).metadata["limit"], holds=lambda x: len(x) == 2))

    def check(self):
        if self.size == self.count: raise self.error("size and count must differ")


@pytest.mark.parametrize("field, good, bad, expected", [
    ("count", [2, 8, np.int8(3)], [1, 9, 2.0, True, "2", None], "an integer from 2 to 8"),
    ("size", [None, 0, 10 ** 30], [-1, 0.0, False], "a non-negative integer, or None"),
    ("share", [1, 1e-300, np.float32(0.5)], [0, 1.01, float("nan"), True, "1", None, np.complex64(1)], "a number in (0, 1]"),
    ("rate", [-1e30, 9.99, 0], [10, float("inf"), -float("inf")], "a number in (-inf, 10)"),
    ("kind", ["a", None], ["c", b"a", 0, ["a"]], "'a', 'b' or None"),
    ("on", [True, np.False_], [0, 1, None, "yes"], "True or False"),
    ("names", [("query",), ["query", "up"], "all"], ["query", (), [], (1,), None, {"query": 1}], "a tuple of names"),
    ("ranks", [None, {}, {"query": 1}], [{"query": 0}, {"query": True}, {1: 1}, [("query", 1)]], "each a positive integer")])
def test_a_kind_of_field_holds_what_it_says(field, good, bad, expected):
    for value in good: assert getattr(Kinds(**{field: value}), field) is value
    for value in bad:
        with pytest.raises(ValueError) as caught: Kinds(**{field: value})
        message = str(caught.value)
        assert message.startswith(f"Kinds: {field} must be ") and expected in message
        assert message.endswith(f", got {brief(value)}")


def test_check_runs_after_the_fields():
    with pytest.raises(ValueError, match="size and count must differ"): Kinds(size=2)
    with pytest.raises(ValueError, match="Kinds: count must be"): Kinds(count=1, size=1)


# -- values --------------------------------------------------------------------------------------
@every_class
def test_a_value_can_be_copied_replaced_saved_and_pickled(cls):
    value = cls()                                                      # all its defaults are allowed
    for same in (copy.copy(value), copy.deepcopy(value), dataclasses.replace(value), pickle.loads(pickle.dumps(value))):
        assert type(same) is cls and same == value and repr(same) == repr(value)
    saved = dataclasses.asdict(value)
    assert saved.keys() == {f.name for f in dataclasses.fields(cls)}
    if not any(isinstance(x, dict) for x in saved.values()): assert cls(**saved) == value      # no scheme within a scheme
    with pytest.raises(dataclasses.FrozenInstanceError): value.anything = 1
    with pytest.raises(TypeError, match="has no field 'anything'"): dataclasses.replace(value, anything=1)


class Plain(tp.LoRA):
    """Without a decorator."""
    learning_rate = 0.5


class OwnInit(tp.LoRA):
    def __init__(self, size, **options):
        super().__init__(rank=2 * size, **options)


class Bare(tp.peft.Method):
    """No dataclass at all: it has no fields."""


@dataclasses.dataclass(frozen=True)
class Extended(tp.LoRA):
    extra: object = None


def test_a_users_subclass_needs_no_decorator(gpt, tokens):
    assert repr(Plain(rank=4)) == "Plain(rank=4)" and Plain(4) == Plain(rank=4) != tp.LoRA(4)
    with pytest.raises(tp.MethodError, match="^Plain: rank must be a positive integer, got 0$"): Plain(0)
    with pytest.raises(TypeError, match="Plain has no field 'r'; the field is called rank"): Plain(r=4)
    assert Plain.__doc__ == "Without a decorator." and pickle.loads(pickle.dumps(Plain(3))) == Plain(3)
    assert repr(OwnInit(2, alpha=3)) == "OwnInit(rank=4, alpha=3)"
    assert repr(Bare()) == "Bare()"
    assert repr(Extended(extra="x")) == "Extended(rank=8, extra='x')"
    tuned = tp.attach(gpt(), Plain(rank=2))
    assert tuned.learning_rate == 0.5 and tuned(tokens).shape == (3, 7, 37)


# -- the equation where the reader looks ---------------------------------------------------------
@pytest.mark.parametrize("name", NAMED)
def test_the_docstring_of_a_class_has_paper_equation_symbols_and_differences(name):
    cls = NAMED[name]
    doc = cls.__doc__
    if name not in ("uniform", "gguf", "trainable_tokens"):            # textbook, file format, habit of tools: no paper
        assert re.search(r"arXiv\s+\d{4}\.\d{4,5}", doc), "no citation"
    assert re.search(r"^    .*[=←∝|].*$", doc, re.MULTILINE), "no equation"
    if name not in ("full", "probe", "uniform", "gguf"):                                # nothing to translate
        assert re.search(r"^    \S.* {3,}(here|shape)", doc, re.MULTILINE), "no table of symbols"
        assert re.search(r"differ|authors|repository|DeepSpeed", doc), "not where implementations differ"
    shown = pydoc.plain(pydoc.render_doc(cls))
    for line in filter(str.strip, doc.splitlines()): assert line.strip() in shown
