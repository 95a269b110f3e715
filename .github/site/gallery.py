"""The two pages that place everything: the map of all methods and schemes, and the gallery with its filter."""
import re

from glossary import with_words
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
    how_to_read,
    judged_by,
    judgements,
    lesson_of,
    read,
    section_of,
    slug,
    title_of,
    verdicts,
    with_claims,
)

from tinypeft.peft.methods import FAMILIES

FILTER = """<fieldset class="filter"><legend>Show</legend>
{}
</fieldset>"""
CHOICE = '<label><input type="radio" name="verdict" value="{value}"{checked}> {label}</label>'
ALL = "all"
INTRO = ("What papers claim, what was measured with this code, and every picture. Choose a verdict, and only the claims with "
         "it and the pictures whose numbers judge them stay. A coloured verdict leads to its claim.")
JUMPS = ["What the papers claim, and what was measured", "All pictures, small", "The main job", "Every method over seeds",
         "How this page is made"]
TITLE, MAP_TITLE = "The study: claims and pictures", "Methods and schemes"
RULE = "<summary>The rule, and the error</summary>"


# -- the map ---------------------------------------------------------------------------------------
def map_page(links):
    """Write every method by what it changes, and every scheme by its lesson: each with its equation and its verdicts."""
    first = ("What each method changes, and what each scheme rounds. A name leads to its paper and code, side by side. A "
             "coloured verdict says how many claims of the paper have it, and leads to them. The picture has a selection; the "
             "cards have all. [The table of methods](tinypeft/peft/README.md) says what merges, and how much each trains.")
    blocks = [WIDE, f"# {MAP_TITLE}", first, "## Methods", section(PICTURES["methods_in_a_block"].title, level="")]
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


def section(title, level="### "):
    """Return the picture of this title and its words, with links from the root."""
    text, _, _ = gallery()[title]
    return (f"{level}{title}\n\n" if level else "") + re.sub(r"(!\[.*?\]\()", r"\1figures/", text)


# -- the gallery -----------------------------------------------------------------------------------
def gallery_page(links):
    """Write the gallery: the claims first, then small pictures, then every picture; last, how all this is made."""
    title, how, rest = re.match(r"(# .*?\n)(.*?)(?=\n## )(.*)", read("figures/README.md"), re.S).groups()
    counts = [j.verdict for j in judgements()]
    choices = [CHOICE.format(value=ALL, label="all", checked=" checked")]
    choices += [CHOICE.format(value=verdict, label=f"{verdict} ({counts.count(verdict)})", checked="")
                for verdict in dict.fromkeys(counts)]
    small = [f"* [![{sentence}]({PICTURES[name].file(name)}) {picture.title}](#{slug(picture.title)}) "
             f"{verdicts(judged_by(picture))}".rstrip()
             for name, picture in sorted(PICTURES.items(), key=lambda item: item[1].lesson)
             for _, _, sentence in [gallery()[picture.title]]]
    claims, heading, pictures = marked(rest).strip().partition("\n## The main job")
    text = "\n\n".join([WIDE, f"# {TITLE}", INTRO, FILTER.format("\n".join(choices)),
                        BOX.format("jumps", "Below: " + " · ".join(f"[{jump}](#{slug(jump)})" for jump in JUMPS)),
                        claims, "## All pictures, small",
                        BOX.format("small", "\n".join(small)), heading + pictures,
                        "## How this page is made", how.strip()])
    return links.lead(with_words(text, "figures/README.md"), "figures/README.md")


def marked(text):
    """Mark the tables of claims and the pictures' sections, for the filter; say how to read them, and where the rule is."""
    read_so = how_to_read(judgements()).replace("href='", "href='../")
    text = text.replace("\n| claim | paper", f"\n{read_so}\n\n| claim | paper", 1)
    tables = r"^\| claim \|(?:.*\n\|)+.*\n"
    text = re.sub(tables, lambda match: BOX.format("claims", with_claims(match[0].strip())) + "\n", text, flags=re.M)
    for picture in PICTURES.values():
        pills = verdicts(judged_by(picture))
        judges = f"Claims judged by these numbers: {pills}" if pills else ""
        text = text.replace(f"\n## {picture.title}\n", f"\n## {picture.title}\n\n<div class='judges'>{judges}</div>\n", 1)
    return text.replace(RULE, RULE.replace("<summary>", "<summary id='rule'>"), 1)


