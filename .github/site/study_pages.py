"""The study's pages. The checkout has one page, figures/README.md; here it is cut so that each page answers one question.

    texts = study_pages()                # path → text, with links as if it stood on the checkout's page
    places(texts)                        # (the checkout's page, anchor) → the path of the page that has the anchor now

Nothing of the checkout's page is left out: its claims by what they are about, its pictures by their lessons.
"""
import re

from page import (
    BOX,
    PICTURES,
    STUDY,
    WIDE,
    counted,
    gallery,
    how_to_read,
    judged_by,
    judgements,
    read,
    slug,
    verdicts,
    with_claims,
)

from tinypeft.study.claims import METHOD_CLAIMS
from tinypeft.study.markdown import table

FILTER = """<fieldset class="filter"><legend>Show</legend>
{}
</fieldset>"""
CHOICE = '<label><input type="radio" name="verdict" value="{value}"{checked}> {label}</label>'
TITLE, CLAIMS = "The study: claims and pictures", "What the papers claim, and what was measured"
INTRO = ("What papers claim, what was measured with this code, and every picture. Each page answers one question. A coloured "
         "verdict leads to its claim.")
FIXED = ("Of each claim the contrast, δ and what would refute it, which were fixed before its runs; then the means behind the "
         "effects, and p. [All claims](claims.md) leads to the verdicts, and [the rule](rule.md) says how these are reached.")
PAGES = {                                                # file → the question that it answers
    "claims": "All claims: which of them held?",
    "claims_methods": "Fine-tuning methods: what is claimed, and what held?",
    "claims_rates": "Learning rates: what is claimed, and what held?",
    "claims_schemes": "Rounding: what is claimed, and what held?",
    "rule": "How is a claim judged, and an interval computed?",
    "fixed_methods": "Claims on fine-tuning: what was fixed before the runs?",
    "fixed_schemes": "Claims on rounding: what was fixed before the runs?",
    "reached": "How far does each method and scheme get?",
    "pictures": "All pictures, small: which of them shows what?",
    "pictures_training": "Pictures: what happens in training, and what does it cost?",
    "pictures_methods": "Pictures: what do the methods change?",
    "pictures_schemes": "Pictures: what does rounding do?",
    "pictures_four_bits": "Pictures: how far do four bits go, and what does training add?",
    "pictures_choosing": "Pictures: what should one choose?"}
LESSONS = {"pictures_training": "00 01 02 03", "pictures_methods": "04 05 06 07 08 09 17",
           "pictures_schemes": "10 11 12", "pictures_four_bits": "13 14 18", "pictures_choosing": "15 16"}


def path_of(name):
    return f"figures/{name}.md"


def study_pages():
    """Return path → text of the study's pages, the short one first that leads to the others."""
    parts = re.split(r"^## (.+)\n", read(STUDY), flags=re.M)
    how, sections = parts[0].partition("\n")[2].strip(), dict(zip(parts[1::2], parts[2::2], strict=True))
    when, effect, words, count, rule = claims_parts(sections.pop(CLAIMS))
    texts = {"claims": with_filter(BOX.format("claims", all_claims()))}
    for name, group in groups().items():
        texts[f"claims_{name}"] = claims_page(name, group, words)
    texts["rule"] = f"<div id='rule'></div>\n\n{effect}\n\n{rule}\n\n## What was fixed, and what was changed later\n\n{when}"
    methods = [*groups()["methods"], *groups()["rates"]]
    for name, group in (("methods", methods), ("schemes", groups()["schemes"])):
        texts[f"fixed_{name}"] = f"{FIXED}\n\n{rows_of(group)[-1]}"
    pictures = {picture.title: picture for picture in PICTURES.values()}
    texts["reached"] = "\n".join(f"## {title}\n{text}" for title, text in sections.items() if title not in pictures)
    texts["pictures"] = with_filter(BOX.format("small", small()))
    for name, lessons in LESSONS.items():
        texts[name] = "\n".join(f"## {title}\n\n{judges(pictures[title])}\n{text}" for title, text in sections.items()
                                if title in pictures and pictures[title].lesson[:2] in lessons.split())
    return {STUDY: whole(TITLE, overview(count, how))} | {path_of(name): whole(PAGES[name], texts[name]) for name in PAGES}


def whole(title, text):
    return f"{WIDE}\n\n# {title}\n\n{text.strip()}\n"


def places(texts):
    """Return (the checkout's page, anchor) → the path of the page that has the anchor now."""
    return {(STUDY, anchor): path for path, text in texts.items()
            for anchor in [*map(slug, re.findall(r"^##+ (.+)$", text, re.M)), *re.findall(r"\bid='([^']+)'", text)]}


# -- the pages -------------------------------------------------------------------------------------
def overview(count, how):
    """Write the short page that leads to the others."""
    by_page = {f"claims_{name}": counted(group, "README.md") for name, group in groups().items()}
    lines = [f"* **[{question}]({name}.md)** {by_page.get(name, '')}".rstrip() for name, question in PAGES.items()]
    split = list(PAGES).index("pictures")
    return "\n\n".join([INTRO, f"## {CLAIMS}", count, "\n".join(lines[:split]), "## Pictures", "\n".join(lines[split:]),
                        "## How these pages are made", how])


def claims_page(name, group, words):
    """Write claims with their papers' numbers, effects, verdicts and reasons; last those that hold by construction."""
    read_so = how_to_read(group).replace("href='", "href='../")
    other = "schemes" if name == "schemes" else "methods"
    more = f"[Another page](fixed_{other}.md) has what was fixed before the runs, the means behind the effects, and p."
    counted_ones, constructed, _ = (BOX.format("claims", with_claims(rows)) if rows else "" for rows in rows_of(group))
    last = f"These hold by construction, and do not count:\n\n{constructed}" if constructed else ""
    return "\n\n".join(filter(None, [words, read_so, more, counted_ones, last]))


def all_claims():
    return table(("claim", "verdict"), [(j.claim.text, verdicts([j], "README.md")) for j in judgements()])


def small():
    """Write a list of small pictures in the order of their lessons, each a link to itself in full."""
    return "\n".join(f"* [![{sentence}]({PICTURES[name].file(name)}) {picture.title}](README.md#{slug(picture.title)}) "
                     f"{verdicts(judged_by(picture), 'README.md')}".rstrip()
                     for name, picture in sorted(PICTURES.items(), key=lambda item: item[1].lesson)
                     for _, _, sentence in [gallery()[picture.title]])


def judges(picture):
    """Write the verdicts on the claims that a picture's numbers judge."""
    pills = verdicts(judged_by(picture), "README.md")
    return BOX.format("judges", f"Claims judged by these numbers: {pills}") if pills else ""


def with_filter(text):
    """Put the choice of a verdict above claims or pictures."""
    counts = [j.verdict for j in judgements()]
    choices = [CHOICE.format(value="all", label="all", checked=" checked")]
    choices += [CHOICE.format(value=verdict, label=f"{verdict} ({counts.count(verdict)})", checked="")
                for verdict in dict.fromkeys(counts)]
    return FILTER.format("\n".join(choices)) + "\n\n" + text


# -- the checkout's page, cut ----------------------------------------------------------------------
def claims_parts(text):
    """Return of the claims' section: what was fixed and when, how an effect is read, the words, the count, the rule."""
    before, count = re.search(r"(.*?)^(\d+ claims: .*?)$", text, re.M | re.S).groups()
    when, effect, words = before.strip().split("\n\n")
    rule = re.search(r"<summary>The rule, and the error</summary>\n\n(.*?)\n\n</details>", text, re.S)[1]
    return when, effect, words, count, rule


def rows_of(group):
    """Return the three tables of claims with the rows of a group: those that count, those by construction, what was fixed."""
    texts = {j.claim.text.replace("|", "\\|") for j in group}
    tables = []
    for head, rule, *rows in (block.splitlines() for block in re.findall(r"^\| claim \|.*\n(?:\|.*\n)+", read(STUDY), re.M)):
        own = [row for row in rows if row[2:].partition(" | ")[0] in texts]
        tables.append("\n".join((head, rule, *own)) if own else "")
    return tables


def groups():
    """Return the judged claims by what they are about: methods, their learning rates, schemes."""
    found = {"methods": [], "rates": [], "schemes": []}
    for j in judgements():
        rates = any("rates" in name for name in j.names)
        found["schemes" if j.claim not in METHOD_CLAIMS else "rates" if rates else "methods"].append(j)
    return found
