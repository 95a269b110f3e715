"""The page that places everything: the map of all methods and schemes."""
import re

from page import (
    ABOUT,
    BOX,
    PICTURES,
    SCHEMES,
    WIDE,
    claims_of,
    counted,
    files,
    gallery,
    lesson_of,
    section_of,
    title_of,
)

from tinypeft.peft.methods import FAMILIES

MAP_TITLE = "Methods and schemes"


def map_page(links):
    """Write every method by what it changes, and every scheme by its lesson: each with its equation and its verdicts."""
    first = ("What each method changes, and what each scheme rounds. A name leads to its paper and code, side by side. A "
             "coloured verdict says how many claims of the paper have it, and leads to them. The picture has a selection; the "
             "cards have all. [The table of methods](tinypeft/peft/README.md) says what merges, and how much each trains.")
    blocks = [WIDE, f"# {MAP_TITLE}", first, "## Methods", section(PICTURES["methods_in_a_block"].title)]
    blocks += [f"### {family.capitalize()}\n\n{cards(names)}" for family, names in FAMILIES.items()]
    blocks += ["## Schemes"]
    for lesson in sorted({*map(lesson_of, SCHEMES)}):
        heading = title_of(lesson).split(" · ")[1]
        blocks.append(f"### {heading}\n\n{cards([name for name in SCHEMES if lesson_of(name) == lesson])}")
    blocks.append("The K-quants of `gguf` have [a page of their own](tinypeft/quant/K_QUANTS.md).")
    return links.lead("\n\n".join(blocks), "", on="map.md") + "\n"


def cards(names):
    """Write a list of methods: name, equation, lesson, verdicts."""
    holder = {name: file for file, names in files().items() for name in names}
    lines = [f"* **[{ABOUT[name].title}]({holder[name]})** `{ABOUT[name].equation}` "
             f"[lesson {ABOUT[name].lesson}]({section_of(name)[1]}) {counted(claims_of(name), holder[name])}"
             for name in names]
    return BOX.format("cards", "\n".join(line.rstrip() for line in lines))


def section(title):
    """Return the picture of this title and its words, with links from the root."""
    return re.sub(r"(!\[.*?\]\()", r"\1figures/", gallery()[title][0])
