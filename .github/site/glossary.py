"""The glossary on the site: each word has an anchor, and other pages link to it."""
import functools
import re

from links import ROOT

GLOSSARY = "lessons/GLOSSARY.md"
ENTRY = re.compile(r"^\* \*\*([^*]+)\.\*\* (.+)$", re.M)
HEADS = {"nats/token": "Nats", "bits/weight": "Bits per weight", "kind, δ": "Delta (δ)", "effect ± 95 % interval": "Effect",
         "verdict": "Verdict"}                           # the head of a table's column → its word
HEAD = re.compile(r"^\|.*\|\n(?=\|(?:-+\|)+$)", re.M)


@functools.cache
def entries():
    """Return word → what it means."""
    return dict(ENTRY.findall((ROOT / GLOSSARY).read_text("utf-8").split("\n## ")[1]))


def anchor(word):
    return "word-" + re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-")


def link(word, shown="", root=""):
    """Return a link to a word of the glossary, as HTML: MyST knows no anchors but those of headings.

    root: the way from the page to the root of the checkout.
    """
    if word not in entries():
        raise KeyError(f"the glossary has no {word!r}")
    return f"<a href='{root}{GLOSSARY}#{anchor(word)}'>{shown or word.lower()}</a>"


def with_anchors(text):
    """Give each word's line an anchor, to which the search leads (conf.py), and put a line of letters above the first."""
    first = {}
    for word in entries():
        first.setdefault(word[0], anchor(word))
    letters = " · ".join(f"<a href='#{target}'>{letter}</a>" for letter, target in first.items())
    text = text.replace("## Words\n", f"## Words\n\n<div class='letters'>{letters}</div>\n", 1)
    return ENTRY.sub(lambda match: f"* <span id='{anchor(match[1])}'>**{match[1]}.** {match[2]}</span>", text)


def with_words(text, path):
    """Link the heads of tables to their words. path: of the page in the checkout."""
    root = "../" * path.count("/")
    def linked(match):
        cells = match[0].strip().strip("|").split("|")
        cells = [f" {link(HEADS[cell.strip()], cell.strip(), root)} " if cell.strip() in HEADS else cell for cell in cells]
        return f"|{'|'.join(cells)}|\n"
    return HEAD.sub(linked, text)
