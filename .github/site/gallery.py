"""The two pages that place everything: the map of all methods and schemes, and the gallery with its filter."""
import re

from page import (
    ABOUT,
    BOX,
    PICTURES,
    SCHEMES,
    WIDE,
    claims_of,
    files,
    gallery,
    judgements,
    lesson_of,
    read,
    slug,
    title_of,
    verdicts,
)

from tinypeft.peft.methods import FAMILIES

FILTER = """<fieldset class="filter"><legend>Show</legend>
{}
</fieldset>"""
CHOICE = '<label><input type="radio" name="verdict" value="{value}"{checked}> {label}</label>'
ALL = "all"
INTRO = ("What papers claim, what was measured with this code, and every picture of the study. Choose a verdict, and only its "
         "claims and small pictures stay.")


# -- the map ---------------------------------------------------------------------------------------
def map_page(links):
    """Write every method by what it changes, and every scheme by its lesson: each with its equation and its verdicts."""
    first = "What each method changes, and what each scheme rounds. A name leads to its paper and code, side by side."
    blocks = [WIDE, "# The map", first, "## Methods", section(PICTURES["methods_in_a_block"].title, level="")]
    blocks += [f"### {family.capitalize()}\n\n{cards(names)}" for family, names in FAMILIES.items()]
    blocks += ["## Schemes"]
    for lesson in sorted({*map(lesson_of, SCHEMES)}):
        heading = title_of(lesson).split(" · ")[1]
        blocks.append(f"### {heading}\n\n{cards([name for name in SCHEMES if lesson_of(name) == lesson])}")
    return links.lead("\n\n".join(blocks), "", on="map.md") + "\n"


def cards(names):
    """Write a list of methods: name, equation, lesson, verdicts."""
    holder = {name: file for file, names in files().items() for name in names}
    lines = [f"* **[{ABOUT[name].title}]({holder[name]})** `{ABOUT[name].equation}` "
             f"[lesson {ABOUT[name].lesson}]({lesson_of(name)}) {verdicts(claims_of(name))}" for name in names]
    return BOX.format("cards", "\n".join(line.rstrip() for line in lines))


def section(title, level="### "):
    """Return the picture of this title and its words, with links from the root."""
    text, _, _ = gallery()[title]
    return (f"{level}{title}\n\n" if level else "") + re.sub(r"(!\[.*?\]\()", r"\1figures/", text)


# -- the gallery -----------------------------------------------------------------------------------
def gallery_page(links):
    """Write the gallery: small pictures first, then the claims, then every picture; last, how all this is made."""
    title, how, rest = re.match(r"(# .*?\n)(.*?)(?=\n## )(.*)", read("figures/README.md"), re.S).groups()
    counts = [j.verdict for j in judgements()]
    choices = [CHOICE.format(value=ALL, label="all", checked=" checked")]
    choices += [CHOICE.format(value=verdict, label=f"{verdict} ({counts.count(verdict)})", checked="")
                for verdict in dict.fromkeys(counts)]
    small = [f"* [![{sentence}]({PICTURES[name].file(name)}) {picture.title}](#{slug(picture.title)}) "
             f"{verdicts(judged_by(picture))}".rstrip()
             for name, picture in sorted(PICTURES.items(), key=lambda item: item[1].lesson)
             for _, _, sentence in [gallery()[picture.title]]]
    text = "\n\n".join([WIDE, title.strip(), INTRO, FILTER.format("\n".join(choices)), "## All pictures, small",
                        BOX.format("small", "\n".join(small)), marked(rest).strip(),
                        "## How this page is made", how.strip()])
    return links.lead(text, "figures/README.md")


def marked(text):
    """Mark the tables of claims and verdicts, for the filter."""
    claims = r"^\| claim \| paper(?:.*\n\|)+.*\n"
    return re.sub(claims, lambda match: BOX.format("claims", match[0].strip()) + "\n", text, flags=re.M)


def judged_by(picture):
    """Return the judged claims whose results a picture shows."""
    return [j for j in judgements() if picture.needs and picture.needs[0] == j.claim.needs[0]]
