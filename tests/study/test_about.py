"""The table of methods and schemes: nothing is missing, no two look alike, and what it says leads somewhere."""
import re
from itertools import combinations
from pathlib import Path

import pytest

import tinypeft as tp
from tests.legible import DISTINCT, grey
from tinypeft.peft.methods import FAMILIES
from tinypeft.study import about, compare, pages, plot
from tinypeft.study.about import ABOUT, ARMS, class_link, code, lesson_map, linked, name_of
from tinypeft.study.compared import COMPARED_SCHEMES
from tinypeft.study.tuning import Arm

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "figures" / "results"
EVERYTHING = {**tp.METHODS, **tp.SCHEMES}


def test_every_method_and_scheme_is_in_the_table_and_nothing_else():
    order = [*tp.METHODS, *(n for n in ABOUT if n in tp.SCHEMES)]
    assert ABOUT.keys() <= EVERYTHING.keys()
    assert list(ABOUT) == order, f"tinypeft/study/about.py: ABOUT has these entries, in this order: {', '.join(order)}"
    assert not ARMS.keys() & ABOUT.keys()


@pytest.mark.parametrize("name", [*ABOUT, *ARMS])
def test_an_entry_is_well_formed(name):
    known = about.about(name)
    assert known.title and known.short and known.equation and "\n" not in known.equation and len(known.equation) <= 90
    assert all(re.fullmatch(r"\d{4}\.\d{4,5}|.+: https://\S+", paper) for paper in known.papers)
    there = sorted(path.name[:path.name.index("_")] for path in (ROOT / "lessons" / "src").glob("[0-9]*_*.py"))
    says = f"tinypeft/study/about.py: {name!r} names the lesson {known.lesson!r}; write one of {', '.join(there)}"
    assert there.count(known.lesson) == 1, says
    colour, marker, *style = known.look
    assert colour in plot.COLOURS and len(style) <= 1
    assert plot.mark(name) == {"color": plot.COLOURS[colour], "marker": marker}


@pytest.mark.parametrize("group", [[*tp.METHODS, "lora_all", "frozen"], list(tp.SCHEMES)], ids=["methods", "schemes"])
def test_no_two_look_alike_in_a_grey_print(group):
    looks = {name: (ABOUT | ARMS)[name].look for name in group if name in ABOUT | ARMS}
    for a, b in combinations(looks, 2):
        if not alike(looks[a], looks[b]): continue
        free = [c for c in plot.COLOURS if not any(alike((c, looks[b][1]), looks[n]) for n in looks if n != b)]
        pytest.fail(f"tinypeft/study/about.py: {a!r} {looks[a][:2]} and {b!r} {looks[b][:2]} look alike in grey. Write another "
                    f"marker for {b!r}; or with {looks[b][1]!r} one of these colours: {', '.join(free) or 'none is free'}",
                    pytrace=False)


def alike(look, other):
    """Tell if two have one marker, in colours that a grey print does not tell apart."""
    return look[1] == other[1] and abs(grey(plot.COLOURS[look[0]]) - grey(plot.COLOURS[other[0]])) <= DISTINCT


def test_labels_of_pictures_are_distinct():
    shorts = [known.short for known in (ABOUT | ARMS).values()]
    twice = {short for short in shorts if shorts.count(short) > 1}
    assert not twice, f"tinypeft/study/about.py: `short` labels pictures, and two entries have one of {twice}; write another"


def test_a_value_knows_its_name():
    assert {name_of(cls()) for cls in EVERYTHING.values()} == set(EVERYTHING)
    class Nameless(tp.LoRA): pass
    with pytest.raises(KeyError, match="Nameless is neither in METHODS nor in SCHEMES"): name_of(Nameless())


def test_what_is_missing_is_told_with_the_table_to_extend(monkeypatch):
    class Nameless(tp.LoRA): pass
    monkeypatch.setitem(tp.METHODS, "nameless", Nameless)
    monkeypatch.setitem(FAMILIES["all weights"], "nameless", Nameless)
    whole = lambda folder, kind: pages.SECTIONS[f"tinypeft/{folder}/README.md"][kind](RESULTS)
    runs = {name: [{"loss": x, "trained": 0, "share": 0.0}] for x, name in enumerate(("full", "frozen", "nameless"))}
    for ask in (lambda: about.about("nameless"), lambda: plot.mark("nameless"), lesson_map, lambda: whole("peft", "methods"),
                lambda: compare.method_rows(runs, dict.fromkeys(runs, Arm(Nameless())))):
        with pytest.raises(KeyError, match="about.py has no entry for 'nameless'"): ask()
    monkeypatch.setitem(tp.SCHEMES, "hqq", tp.NF4)
    with pytest.raises(KeyError, match="about.py has no entry for 'nameless'"): whole("peft", "methods")
    monkeypatch.delitem(tp.METHODS, "nameless")
    monkeypatch.delitem(FAMILIES["all weights"], "nameless")
    with pytest.raises(KeyError, match="about.py has no entry for 'hqq'"): whole("quant", "schemes")


def test_cells_of_tables_link_files_and_papers_and_keep_bars():
    for cls in EVERYTHING.values():
        name, file = re.fullmatch(r"\[`(\w+)`\]\(\.\./(.*)\)", class_link(cls, "../")).groups()
        assert f"class {name}(" in (ROOT / file).read_text("utf-8")
    assert linked("2106.09685", "PEFT: https://a.b/c") == (
        "[2106.09685](https://arxiv.org/abs/2106.09685), [PEFT](https://a.b/c)")
    assert code("s = max|x|") == r"`s = max\|x\|`"


def test_the_map_of_lessons_is_in_their_order_and_links_them():
    rows = lesson_map().splitlines()[2:]
    lessons = [re.match(r"\| \[(\d\db?)\]\((.*?)\)", row).groups() for row in rows]
    assert len(rows) == len(EVERYTHING) + 2 and [n for n, _ in lessons] == sorted(n for n, _ in lessons)
    assert all((ROOT / "lessons" / path).exists() for _, path in lessons)


def test_every_scheme_is_compared():
    lacks = tp.SCHEMES.keys() - {name_of(scheme) for scheme in COMPARED_SCHEMES.values()}
    assert not lacks, f"tinypeft/study/compared.py: COMPARED_SCHEMES lacks {lacks}; write a label and a value for each"
    for label, scheme in COMPARED_SCHEMES.items(): assert label.endswith("*") == scheme.trains, label
