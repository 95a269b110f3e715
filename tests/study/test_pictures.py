"""Every picture is drawn from stored results, legible, described and reproducible; the page shows what the results say."""
import json
import re
from pathlib import Path

import matplotlib
import pytest

from tests.legible import faults
from tinypeft.quant import SCHEMES
from tinypeft.study import gallery, pictures, plot
from tinypeft.study.about import about
from tinypeft.study.claims import ALL_CLAIMS, tables
from tinypeft.study.pictures import PICTURES, weights

FIGURES = Path(__file__).parents[2] / "figures"
THERE = [name for name in PICTURES if not pictures.missing(FIGURES, name)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of figures with the committed results in it."""
    folder = tmp_path_factory.mktemp("figures")
    (folder / "results").symlink_to(FIGURES / "results")
    return folder


@pytest.fixture(scope="module")
def drawn(folder):
    return gallery.figures(folder, say=lambda line: None)


@pytest.mark.parametrize("name", THERE)
def test_a_picture_can_be_read(drawn, folder, name):
    drawing, file = drawn[name], folder / PICTURES[name].file(name)
    if not isinstance(drawing.figure, str):
        drawing.figure.set_layout_engine("none")         # it was laid out when it was drawn
        with plot.style(): assert faults(drawing.figure) == []
    assert 1000 < file.stat().st_size < 160_000
    assert len(drawing.alt) > 80 and drawing.sentence.endswith(".") and drawing.detail.endswith(".")
    assert "nan" not in f"{drawing.alt} {drawing.sentence} {drawing.detail}".split()
    if file.suffix == ".svg" and not isinstance(drawing.figure, str):
        assert drawing.alt[:40].replace("&", "&amp;") in file.read_text("utf-8")


def test_the_page_is_what_the_results_say(drawn):
    """The numbers of its sections come from results files, because the sections do: they are made again here, and are the
    same."""
    page = (FIGURES / "README.md").read_text("utf-8")
    assert gallery.filled_page(page, drawn, FIGURES / "results") == page, "run `python -m tinypeft figures`"


def test_a_picture_names_the_claims_about_its_experiment_and_what_measures_it_again(drawn):
    judged = tables.judged(FIGURES / "results", ALL_CLAIMS)
    dylora, memory = (gallery.shown({name: drawn[name]}, judged) for name in ("dylora", "memory"))
    about_it = [f"*{j.claim.text}* ({j.verdict})" for j in judged if j.claim.paper == "2210.07558"]
    assert len(about_it) == 3 and f"\n\nClaims on these numbers: {'; '.join(about_it)}.\n\n" in dylora
    assert "Claims on these numbers" not in memory
    assert "measured again by `python -m tinypeft figures dylora rank --check --all`" in dylora


def test_another_folder_gets_the_pictures_alone(drawn, folder):
    """The page and its words are the checkout's."""
    assert {path.name for path in folder.iterdir()} == {"results", *(PICTURES[name].file(name) for name in drawn)}


def trained(results):
    """The numbers of training steps of all conditions of some results, as the records say."""
    numbers = set()
    for name in results:
        record = json.loads((FIGURES / "results" / f"{name}.json").read_text("utf-8"))
        numbers |= {record[key] for key in ("steps", "scheme_steps") if key in record}
        for condition in record.get("conditions", {}).values():
            times = re.search(r'"times": ([\d.]+)', json.dumps(condition))
            numbers.add(round(record["settings"]["steps"] * float(times[1] if times else 1)))
    return numbers


def named_steps(words):
    """The numbers in "150 steps" and in "60, 150 and 1,500 steps"."""
    n = r"(?<![.×] )(?<![.\d,])\d{1,3}(?:,\d{3})*"
    phrases = re.findall(rf"((?:(?:{n}, )*{n} (?:and|to) )?{n}) (?:training )?steps", words)
    return {int(number.replace(",", "")) for phrase in phrases for number in re.findall(n, phrase)}


def test_captions_name_as_many_steps_as_were_trained(drawn):
    named = {name: named_steps(f"{x.sentence} {x.detail} {x.alt}") for name, x in drawn.items() if PICTURES[name].needs}
    named = {name: numbers for name, numbers in named.items() if numbers}
    assert {name: numbers for name, numbers in named.items() if not numbers <= trained(PICTURES[name].needs)} == {}
    assert len(named) > 12 and named["adalora"] == {200}


def test_numbers_of_steps_are_found():
    assert named_steps("α = 16, 150 steps, A × 3 steps") == {150}
    assert named_steps("after 60, 150 and 1,500 steps, from 70 to 90 steps") == {60, 150, 1500, 70, 90}
    assert trained(["adalora"]) == {200} and trained(["lengths"]) == {600, 1500} and trained(["dylora"]) == {150, 450}


def test_what_the_page_shows_is_there():
    page = (FIGURES / "README.md").read_text("utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", page): assert (FIGURES / target).exists(), target
    assert {PICTURES[name].file(name) for name in THERE} <= set(re.findall(r"\]\(([^)#:]+)\)", page))


def test_all_figures_are_small_enough_for_a_repository():
    """Most of it are the losses of 399 test documents for each seed of each arm."""
    assert sum(f.stat().st_size for f in FIGURES.rglob("*") if f.is_file()) < 8_000_000


@pytest.mark.parametrize("name", [*dict.fromkeys([THERE[0], *(n for n in THERE if PICTURES[n].ending == "png")][:2])])
def test_the_same_numbers_give_the_same_bytes_whatever_the_readers_style(drawn, folder, tmp_path, name):
    (tmp_path / "results").symlink_to(FIGURES / "results")
    with matplotlib.rc_context({"font.size": 20, "axes.grid": False, "lines.linewidth": 9, "svg.hashsalt": "other"}):
        pictures.draw(tmp_path, name)
    file = PICTURES[name].file(name)
    assert (tmp_path / file).read_bytes() == (folder / file).read_bytes()


def test_a_picture_without_results_says_what_measures_them(tmp_path):
    said = []
    gallery.figures(tmp_path, ["gradient_check", "compare", "staircase"], said.append)
    assert said[0] == ("gradient_check: not drawn, because results/gradient_check.json is missing; to measure: "
                       "python -m tinypeft figures gradient_check --rerun")
    assert said[1].endswith("python -m tinypeft --out figures") and said[2] == str(tmp_path / "staircase.svg")


def test_a_picture_whose_results_are_of_other_settings_says_what_measures_them(tmp_path):
    record = json.loads((FIGURES / "results" / "gradient_check.json").read_text("utf-8"))
    record["runs"] = {"another condition": next(iter(record["runs"].values()))}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "gradient_check.json").write_text(json.dumps(record), "utf-8")
    with pytest.raises(ValueError, match="gradient_check: the stored numbers lack .* figures gradient_check --rerun"):
        gallery.figures(tmp_path, ["gradient_check"], print)


def test_changed_results_change_the_picture_and_its_words(tmp_path):
    record = json.loads((FIGURES / "results" / "compare.json").read_text("utf-8"))
    record["methods"][1]["loss"] = 1.2345
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "compare.json").write_text(json.dumps(record), "utf-8")
    assert "1.234" in pictures.draw(tmp_path, "compare").alt
    assert (tmp_path / "compare.svg").read_bytes() != (FIGURES / "compare.svg").read_bytes()


# -- the check itself ----------------------------------------------------------------------------
def bad(draw):
    with plot.style():
        fig, ax = plot.figure()
        draw(ax)
        return faults(fig)


@pytest.mark.parametrize("draw, says", [
    (lambda ax: (ax.text(0.5, 0.5, "one"), ax.text(0.51, 0.51, "two")), "'one' overlaps 'two'"),
    (lambda ax: ax.text(3, 0.5, "far", in_layout=False), "'far' leaves the picture"),
    (lambda ax: ax.set_yticks([0.5], ["A claim that …"]), "'A claim that …' is cut"),
    (lambda ax: (ax.plot([0, 1]), ax.text(0.45, 0.5, "on it")), "a line crosses 'on it'"),
    (lambda ax: (ax.errorbar(0.5, 0.5, 0.4), ax.text(0.45, 0.7, "across"), ax.set_xlim(0, 1)), "a line crosses 'across'"),
    (lambda ax: (ax.annotate("", (0, 0), (1, 1), arrowprops={"arrowstyle": "-"}), ax.text(0.45, 0.5, "between")),
     "the line to a point crosses 'between'"),
    (lambda ax: ax.set_ylabel("loss"), "'loss' has no unit"),
    (lambda ax: ax.text(0.5, 0.5, "tiny", fontsize=7), "'tiny' has 7.0 points"),
    (lambda ax: (ax.plot([0, 1], color="#0072B2"), ax.plot([1, 0], color="#D55E00")), "in grey, line 0 looks like line 1"),
    (lambda ax: (ax.scatter([0], [0], color="#009E73"), ax.scatter([1], [0], color="#D55E00")), "in grey, points 0 looks like"),
])
def test_what_cannot_be_read_is_found(draw, says):
    assert any(fault.startswith(says) for fault in bad(draw)), bad(draw)


@pytest.mark.parametrize("draw", [
    lambda ax: (ax.text(0.2, 0.5, "one"), ax.text(0.6, 0.5, "two")),
    lambda ax: (ax.plot([0, 1], color="#0072B2", marker="o"), ax.plot([1, 0], color="#D55E00", marker="s")),
    lambda ax: (ax.plot([0, 1], color="#0072B2", ls="--"), ax.plot([1, 0], color="#D55E00")),
    lambda ax: (ax.scatter([0], [0], color="#009E73"), ax.scatter([1], [0], color="#D55E00", marker="s"))])
def test_what_can_be_read_is_left_alone(draw):
    assert bad(draw) == []


def test_an_arm_that_is_no_scheme_has_the_look_of_none():
    """A colour with a marker names one scheme, whichever picture it is in."""
    looks = {about(name).look[:2] for name in (*SCHEMES, "qlora", "loftq")}
    assert not looks & {look for name, look in weights.AWQ.items() if name.startswith("1 %")}


def test_inks_can_be_read_on_white():
    from matplotlib.colors import to_rgb
    for colour in plot.COLOURS.values():
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(plot.ink(colour))]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        assert 1.05 / (luminance + 0.05) > 4.45
