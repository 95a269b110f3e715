"""The corpora: what is read from sources, what counts as prose, and that no part of a split knows another."""

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tinypeft.files import cache_directory
from tinypeft.text import Document, base_corpus, corpus, docstrings, domain_corpus
from tinypeft.text.docstrings import prose
from tinypeft.text.tasks import held_out as duplicates

ROOT = Path(__file__).parents[2]
PARTS = "train", "validation", "test"


def document(text, name="f", signature="()"):
    return Document("numpy", name, signature, text)


def spans(d, n=24):
    words = re.findall(r"\w+", d.text.lower())
    return {tuple(words[i:i + n]) for i in range(len(words) - n + 1)}


SOURCES = {                                                                       # a little "scipy", not to be imported
"__init__.py": """
'''The documented library.'''
from ._core import mean, array, _hidden as shown
from . import linalg
from .sub import *
raise RuntimeError("imported")""",

"_core/__init__.py": """
from .fromnumeric import *
from .fromnumeric import _hidden
from .c import array""",

"_core/fromnumeric.py": """
from . import c
from .c import array                                                      # in a circle
def mean(a, axis=None, *, where=np._NoValue) -> float:
    '''Compute the mean.'''
def _hidden(x: int, /, y: str = 'a,b', *args, k, **kw):
    '''A hidden function.'''""",

"_core/c.py": "from .fromnumeric import mean",

"_core/_add_newdocs.py": """
add_newdoc('scipy._core.c', 'array', '''
    array(object, *,
        copy=True,)
    --

    array(object)

    Create an array.
    ''')
add_newdoc('scipy._core.c', 'array', ('dot', '''dot($self, b, /)
--

Refer to it.'''))
add_newdoc('scipy._core.c', name, f'{computed}')
add_newdoc('Elsewhere', 'Union', 'Of another library.')""",

"linalg/__init__.py": "from ._norms import norm\nfrom .._core import array",

"linalg/_norms.py": """
def norm(x):
    '''Norm of a vector.'''
    def inner():
        '''Not seen outside.'''
async def wait(): '''Await the norm.'''
class Result(dict):
    '''A result object.'''
    def __init__(self, x=1): pass
    @property
    def size(self): '''How large it is.'''
    def keys(self, /, *, deep=False): '''Its keys, all of them.'''
if True:
    def conditional(): '''Defined under a condition.'''
class Bare: '''No constructor of its own.'''""",

"sub/__init__.py": "def leaf(): '''Shown at the top by a star.'''",
"special/__init__.py": "",
"special/_add_newdocs.py": "add_newdoc('gamma', '''\n gamma(z)\n\n The function.''')",
"tests/test_x.py": "def test(): '''Never to be read.'''",
"linalg/tests/t.py": "def t(): '''Nor is this one.'''",
"broken.py": "def f(:",
"null.py": "x = '\0'",
}


def test_names_and_signatures(tmp_path, monkeypatch):
    for path, source in SOURCES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(source)
    monkeypatch.setattr(docstrings, "location", lambda library: tmp_path)
    assert {d.header: d.text for d in docstrings.read("scipy")} == {
        "scipy": "The documented library.",
        "scipy.mean(a, axis=None, *, where=np._NoValue)": "Compute the mean.",
        "scipy.shown(x, /, y='a,b', *args, k, **kw)": "A hidden function.",
        "scipy.array(object, *, copy=True)": "Create an array.",
        "scipy.array.dot(b, /)": "Refer to it.",
        "scipy.linalg.norm(x)": "Norm of a vector.",
        "scipy.linalg.wait()": "Await the norm.",
        "scipy.linalg.Result(x=1)": "A result object.",
        "scipy.linalg.Result.size": "How large it is.",
        "scipy.linalg.Result.keys(*, deep=False)": "Its keys, all of them.",
        "scipy.linalg.conditional()": "Defined under a condition.",
        "scipy.linalg.Bare": "No constructor of its own.",
        "scipy.leaf()": "Shown at the top by a star.",
        "scipy.special.gamma(z)": "The function."}


def test_known_entries_of_the_installed_libraries():
    for library, header, beginning in [
            ("python", "help('while')", 'The "while" statement'),
            ("python", "textwrap.dedent(text)", "Remove any common"),
            ("numpy", "numpy.linalg.norm(x, ord=None, axis=None, keepdims=False)", "Matrix or vector norm."),
            ("numpy", "numpy.dot(a, b, out=None)", "Dot product of two arrays."),    # of a compiled function
            ("scipy", "scipy.linalg.inv(a", "Compute the inv"),
            ("matplotlib", "matplotlib.axes.Axes.set_title(label", "Set a title")]:
        found = [d for d in corpus.documents(library) if d.header.startswith(header)]
        assert found and found[0].text.startswith(beginning) and found[0].library == library, header


def test_signatures_are_pythons_own():
    for arguments in ("(a, b=1, /, c=2, *, d, e=(3, 4), **f)", "(*a, b)", "(a, /)", "()", "(**k)", "(a, *, b=None)"):
        assert docstrings._signature(ast.parse(f"def f{arguments}: pass").body[0].args) == arguments


@pytest.fixture(scope="module")
def elsewhere():
    """What a process of another hash seed reads: fingerprints of Matplotlib's documents and their parts; modules it imports."""
    code = ("import sys; from tinypeft.text import corpus, docstrings, domain_corpus\n"
            "d = docstrings.read('matplotlib'); s = corpus.split(d); domain_corpus()\n"
            "print(corpus.fingerprint(d), *(corpus.fingerprint(p) for p in s))\n"
            "print(*(m for m in ('scipy', 'matplotlib', 'pydoc_data.topics') if m in sys.modules))")
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = os.environ | {"PYTHONHASHSEED": seed}
    return subprocess.check_output([sys.executable, "-c", code], env=environment, cwd=ROOT, text=True).splitlines()


def test_reading_imports_nothing(elsewhere):
    assert elsewhere[1] == ""


def test_a_library_that_is_not_there(monkeypatch, tmp_path):
    for call in (corpus.documents, docstrings.read, docstrings.location):
        with pytest.raises(ValueError, match="'pandas': expected one of python, numpy, scipy, matplotlib"):
            call("pandas")
    monkeypatch.setattr(docstrings.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install scipy"):
        docstrings.location("scipy")
    monkeypatch.setattr(docstrings, "location", lambda library: tmp_path)
    with pytest.raises(FileNotFoundError, match=r"together with its \.py files"):
        docstrings.read("scipy")


# ---- prose -----------------------------------------------------------------------------------------------------------

def test_prose_stays_as_it_is():
    text = "Sum of elements.\n\nParameters\n----------\na : array_like\n    Elements to sum.\n\n    * indented item"
    assert prose(text) == text


@pytest.mark.parametrize("block", [
    ">>> f(1)\n1", "array([[0.1, 0.25],\n       [1.0, 2.0]])", "%(example)s",
    "=====  =====\n  1      2.5\n  3      4.5\n=====  =====",
    ".. math::", r"\int_0^1 x^2 \, dx = \frac{1}{3}", "Copyright 2001 by somebody.", "Licensed under the Some License.",
    "Examples\n--------\n>>> f(1)\n1", "Examples\n--------\n%(example)s", "See Also\n--------", "====", "   "])
def test_what_is_not_prose_goes(block):
    before, after = "A first line of words.", "Notes\n-----\nSome more words that are kept."
    assert prose("\n\n".join([before, block, after])) == f"{before}\n\n{after}"
    assert prose(f"{before}\n\n{block}") == before


def test_the_words_before_a_doctest_stay():
    assert prose("Say what it does:\n>>> f(1)\n1\n\n>>> g()") == "Say what it does:"
    assert prose("Examples\n--------\nThis:\n\n>>> f()\n\nThen that.") == "Examples\n--------\nThis:\n\nThen that."
    assert prose("Too short") == "" == prose(">>> only(code)")


def test_the_base_is_mostly_prose():
    """Direction: nine in ten characters that are not space are letters, doctests are gone, code is below 1 %."""
    text = base_corpus().text("train")
    solid = "".join(re.sub(r"-{3,}|={3,}", "", text).split())
    assert sum(map(str.isalpha, solid)) > 0.87 * len(solid)
    assert not re.search(r"^\s*>>> ", text, re.MULTILINE)
    code = re.findall(r"^ *(?:def \w+\(.*|from \S+ import .*|import \w+|return .*=.*)$", text, re.MULTILINE)
    assert sum(map(len, code)) < 0.01 * len(text)


# ---- families and the split ------------------------------------------------------------------------------------------

def test_families_are_connected_components():
    w = [f"word{i}" for i in range(100)]
    text = lambda *ranges: " ".join(" ".join(w[a:b]) for a, b in ranges)
    docs = [document(t) for t in (
        text((0, 30)), "Something else, quite unrelated to it.", text((6, 30), (40, 70)), text((7, 30)), text((46, 70)),
        "SOMETHING else -- quite unrelated (to it)", "Something else, quite unrelated", text((0, 23)))]
    assert corpus.families(docs) == [0, 1, 0, 3, 0, 1, 6, 7]              # 24 shared words join, 23 do not; 4 through 2
    assert corpus.families(docs, span=4)[6:] == [1, 0] and corpus.families([]) == []


def test_runs_of_words_have_equal_keys_where_they_are_equal():
    """All runs of the base's text, and short and empty documents."""
    number, runs, keys = {}, set(), set()
    for d in base_corpus().train:
        words = corpus.numbered(d.text, number)
        own = [tuple(words[i:i + corpus.SPAN]) for i in range(max(1, len(words) - corpus.SPAN + 1))]
        found = corpus.keys(words)
        assert found.dtype == np.uint64 and len(found) == len(own)
        runs.update(own)
        keys.update(found.tolist())
    assert len(keys) == len(runs) > 400_000
    assert corpus.keys([]).shape == (0,) and (corpus.keys([3, 1]) != corpus.keys([1, 3])).all()


def test_families_do_not_hang_on_the_platform(monkeypatch):
    """In a browser Python's own hash has 32 bits, so that unrelated documents would meet; here it has two."""
    docs = [document(f"text {i} " * 15, name=f"f{i}") for i in range(50)]
    for module in corpus, duplicates: monkeypatch.setattr(module, "hash", lambda key: hash(key) % 4, raising=False)
    assert corpus.families(docs) == duplicates.near_duplicates([(d.text,) for d in docs]) == [*range(50)]


def test_split_is_by_family_and_by_hash():
    docs = [document(f"text {i % 2000} " * 15, name=f"f{i % 2000}") for i in range(4000)]
    train, validation, test = corpus.split(docs, fractions=(0.1, 0.2))
    assert 300 < len(validation) < 500 and 650 < len(test) < 950 and len(train) + len(validation) + len(test) == 4000
    for a, b in ((train, test), (train, validation), (validation, test)):
        assert not {d.name for d in a} & {d.name for d in b}
    assert corpus.split(docs, (0.1, 0.2)) == (train, validation, test) != corpus.split(docs, (0.1, 0.2), seed=1)
    shorter = corpus.split([d for d in docs if d.name not in ("f3", "f77")], (0.1, 0.2))
    assert all(set(a) <= set(b) for a, b in zip(shorter, (train, validation, test), strict=True))   # others stay put
    assert corpus.split(docs, (0, 0)) == (docs, [], [])


def test_a_giant_family_goes_to_train():
    giant = [document("the same twenty-four words " * 8 + str(i), name=f"g{i}") for i in range(50)]
    single = [document(f"on its own {i} " * 10, name=f"s{i}") for i in range(50)]
    for seed in range(10):
        train, validation, test = corpus.split(giant + single, (0.3, 0.3), seed)
        assert train[:50] == giant and validation and test                # a large single document is no family


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (-0.1, 0.2), (1, 0)])
def test_fractions_must_leave_something(fractions):
    with pytest.raises(ValueError, match="sum below 1"):
        corpus.split([document("a b c")], fractions)


def test_deduplicate_keeps_the_first():
    long, other = ["a paragraph of more than eighty characters"] * 2, ["another one, which is long enough to count"] * 2
    long, other = " ".join(long), " ".join(other)
    docs = [document(f"{long}\n\nshort\n\n{long}"), document(f"short\n\n{long.replace(' ', chr(10))}\n\n{other}"),
            document(other)]
    assert [d.text for d in corpus.deduplicate(docs)] == [f"{long}\n\nshort", f"short\n\n{other}"]
    seen = {" ".join(long.split())}
    assert [d.text for d in corpus.deduplicate(docs[:1], seen)] == ["short"] and docs[0].text.startswith(long)


def test_a_random_split_would_leak():
    """Direction: why families exist. Of documents held out one by one, over a tenth share 24 words with the rest (18 %
    measured), with three seeds."""
    docs = [set(map(hash, spans(d))) for library in ("python", "numpy", "scipy") for d in corpus.documents(library)]
    for seed in range(3):
        held_out = {i for i in range(len(docs)) if (i * 2654435761 + seed * 977) % 1000 < 50}
        known = set().union(*(own for i, own in enumerate(docs) if i not in held_out))
        assert sum(not docs[i].isdisjoint(known) for i in held_out) > 0.1 * len(held_out)


@pytest.mark.parametrize("load", [base_corpus, domain_corpus])
def test_no_part_knows_another(load):
    c = load()
    seen, paragraphs = set(), set()
    for part in PARTS:
        own = set()
        for d in getattr(c, part):
            own |= spans(d)
            for paragraph in d.text.split("\n\n"):
                key = " ".join(paragraph.split())
                assert len(key) < 80 or key not in paragraphs, (part, d.header)
                paragraphs.add(key)
        assert not own & seen, part
        seen |= own


def test_sizes():
    """The base has 5–8 MB to train on; held-out parts are large enough to tell 1 % in loss."""
    for c, low, high, held_out in ((base_corpus(), 5e6, 8e6, 200_000), (domain_corpus(), 0.9e6, 2e6, 80_000)):
        assert low < c.n_bytes("train") < high
        assert all(held_out < c.n_bytes(part) < 0.15 * c.n_bytes("train") for part in PARTS[1:])
        assert len(c.text("test").encode()) == c.n_bytes("test") + len(c.test) - 1
    assert {d.library for d in base_corpus().train} == {d.library for d in base_corpus().test} == {"python", "numpy", "scipy"}
    assert {d.library for d in domain_corpus().train} == {"matplotlib"} and re.fullmatch("[0-9a-f]{64}", base_corpus().sha256)


def test_the_same_in_every_process(elsewhere):
    here = corpus.documents("matplotlib")
    assert elsewhere[0].split() == [corpus.fingerprint(here), *map(corpus.fingerprint, corpus.split(here))]


# ---- the cache -------------------------------------------------------------------------------------------------------

@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a reader that takes no time and counts its calls."""
    calls = []
    monkeypatch.setenv("TINYPEFT_CACHE", str(tmp_path / "deep" / "cache"))
    monkeypatch.setattr(docstrings, "read", lambda library: calls.append(library) or [document("Über alles, a text.")])
    return calls


def test_cached_after_the_first_time(cache):
    first = corpus.documents("numpy")
    assert corpus.documents("numpy") == first == [document("Über alles, a text.")] and cache == ["numpy"]
    file, = cache_directory().iterdir()
    assert re.fullmatch(r"numpy-[\d.]+\w*-[0-9a-f]{16}\.json", file.name) and json.loads(file.read_text("utf-8"))


@pytest.mark.parametrize("damage", [
    lambda text: "", lambda text: text[:-9], lambda text: text.replace("alles", "alle5"), lambda text: "[1, 2]",
    lambda text: '{"sha256": "", "documents": [["a"]]}', lambda text: '{"documents": 5, "sha256": 1}',
    lambda text: "null", lambda text: "[" * 100_000,
    lambda text: json.dumps({"sha256": corpus.fingerprint([]), "documents": []})])
def test_a_damaged_cache_is_rebuilt(cache, damage):
    first = corpus.documents("numpy")
    file, = cache_directory().iterdir()
    file.write_text(damage(file.read_text("utf-8")), "utf-8")
    assert corpus.documents("numpy") == first and len(cache) == 2
    assert corpus.documents("numpy") == first and len(cache) == 2


@pytest.mark.skipif(os.name != "posix", reason="Windows has no named pipes among its files")
def test_a_pipe_in_place_of_the_cache_blocks_nobody(cache):
    corpus.documents("numpy")
    file, = cache_directory().iterdir()
    file.unlink()
    os.mkfifo(file)
    assert corpus.documents("numpy") == [document("Über alles, a text.")] and len(cache) == 2


def test_no_cache_where_nothing_can_be_written(cache, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TINYPEFT_CACHE", str(tmp_path / "file" / "below"))
    assert corpus.documents("numpy") == corpus.documents("numpy") and len(cache) == 2


def test_a_user_without_a_home_has_no_cache(cache, no_home):
    assert corpus.documents("numpy") == corpus.documents("numpy") and len(cache) == 2


def test_another_version_is_another_entry(cache, monkeypatch):
    corpus.documents("numpy")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9")
    corpus.documents("numpy")
    monkeypatch.setattr(corpus.platform, "python_version", lambda: "3.99")
    corpus.documents("numpy")
    monkeypatch.setattr(corpus, "_READER", "edited")
    corpus.documents("numpy")
    assert len(cache) == 4 == len(list(cache_directory().iterdir()))


@pytest.mark.parametrize("n, stays", [(130, True), (400, False)])
def test_a_family_above_a_hundredth_of_the_text_is_giant(n, stays):
    """Two related documents among n of the same length: 1.5 % of the text, or 0.5 %."""
    family = [document("the same twenty-four words " * 8 + str(i), name=f"g{i}") for i in range(2)]
    length = len(family[0].text)
    single = [document((f"on its own {i} " * 30)[:length], name=f"s{i}") for i in range(n)]
    trained = [family[0] in corpus.split(family + single, (0.3, 0.3), seed)[0] for seed in range(10)]
    assert all(trained) is stays
