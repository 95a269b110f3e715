"""The page of a method or scheme: its paper beside its code, and below that all that the checkout knows of it."""
import ast
import functools
import re
import sys
from html import escape
from pathlib import Path

import annotate
from glossary import entries, link, with_words
from links import ROOT
from repository import shown

sys.path.insert(0, str(ROOT))
from tinypeft.peft import METHODS  # noqa: E402
from tinypeft.quant import SCHEMES  # noqa: E402
from tinypeft.study import pictures  # noqa: E402
from tinypeft.study.about import ABOUT, code, linked  # noqa: E402
from tinypeft.study.claims import ALL_CLAIMS  # noqa: E402
from tinypeft.study.claims.tables import details, effects, judged, said, source  # noqa: E402
from tinypeft.study.markdown import table  # noqa: E402

CLASSES = METHODS | SCHEMES
RESULTS = ROOT / "figures" / "results"
STUDY = "figures/README.md"
PICTURES = {name: of for name, of in pictures.PICTURES.items() if not pictures.missing(ROOT / "figures", name)}     # drawn
EVERYTHING = "compare_all"                               # the picture of those that have none of their own
SIDE_BY_SIDE, TWIN, MEASURED, LESSON, TESTS = ("Paper and code, side by side", "The plain twin", "What was measured",
                                               "Lesson and exercises", "Tests and oracles")
HEAD = "---\nhide-toc: true\n{}---\n\n<div class='wide'></div>"
WIDE = HEAD.format("")                                   # of a page that takes the whole width (site.css)
FOLDED = "<details><summary>What was fixed before the runs, the means behind the effects, and p</summary>\n\n{}\n\n</details>"
BOX = "<div class='{}'>\n\n{}\n\n</div>"


def read(path):
    """The text of a file of the checkout; of the study's page without the marks of its sections."""
    text = (ROOT / path).read_text("utf-8")
    return re.sub(r"<!-- /?\w+ -->\n?", "", text) if path == STUDY else text


def files():
    """Return the file of each method and scheme, a path → the names that it holds."""
    holders = {}
    for name, cls in CLASSES.items():
        holders.setdefault(cls.__module__.replace(".", "/") + ".py", []).append(name)
    return holders


def lesson_of(name):
    """Return the path of the lesson's notebook."""
    return next(path.relative_to(ROOT).as_posix() for path in (ROOT / "lessons").glob(f"{ABOUT[name].lesson}_*.ipynb"))


def title_of(notebook):
    """Return the first heading of a notebook."""
    return re.search(r'"# (.+?)\\n"', read(notebook)).group(1)


def section_of(name):
    """Return (the heading, the address) of the first section whose heading names the method, else of its whole lesson.

    A lesson that is called like the method is about nothing else.
    """
    notebook, title = lesson_of(name), ABOUT[name].title
    heading = re.search(rf'"## ((?:[^"\\]*\W)?{re.escape(title)}(?!\w)[^"\\]*)(?:\\n)?"', read(notebook))
    if not heading or title_of(notebook).endswith(f" · {title}"):
        return title_of(notebook), notebook
    return heading[1], f"{notebook}#{slug(heading[1])}"


# -- what was measured -----------------------------------------------------------------------------
@functools.cache
def judgements():
    """Judge all claims by the stored numbers. Whether these hold is what `figures --check` says."""
    return judged(RESULTS, ALL_CLAIMS)


@functools.cache
def claims_of(name):
    """Return the judged claims of a method: on its papers, or on papers of no method's, if they name it.

    Of two methods with the same paper a claim belongs to the one that it names.
    """
    return [j for j in judgements() if name in owners(j.claim)]


def owners(claim):
    citing = [name for name, about in ABOUT.items() if claim.paper in about.papers]
    named = [name for name, about in ABOUT.items() if re.search(rf"(?<!\w){re.escape(about.title)}(?!\w)", claim.text, re.I)]
    return [name for name in citing if name in named] or citing or named


def anchor_of(claim):
    """Return the anchor of a claim, on the page of its method and on that of the study."""
    return "claim-" + re.sub(r"[^a-z0-9]+", "-", claim.text.lower()).strip("-")


def verdicts(judgements, page=""):
    """Return the verdict on each claim as a link to the claim: a page shows them in colours. page: which has the claims."""
    return " ".join(f"<a class='verdict' href='{page}#{anchor_of(j.claim)}' data-verdict='{j.verdict}' "
                    f"title='{escape(j.claim.text)}'>{j.verdict}</a>" for j in judgements)


def counted(judgements, page):
    """Return how often each verdict was reached, as links to the first claim with it, on the page that has the claims."""
    first = {j.verdict: j for j in reversed(judgements)}
    count = [j.verdict for j in judgements].count
    return " ".join(f"<a class='verdict' href='{page}#{anchor_of(first[verdict].claim)}' data-verdict='{verdict}'>"
                    f"{count(verdict)} {verdict}</a>" for verdict in dict.fromkeys(j.verdict for j in judgements))


def with_claims(text):
    """Mark the rows of claims in tables: with the verdict, for the filter, and where the claims are judged with an anchor."""
    judged = {j.claim.text.replace("|", "\\|"): j for j in judgements()}
    lines, head = [], ""
    for line in text.split("\n"):
        cell = line[2:].partition(" | ")[0]
        head = (head or line) if line.startswith("|") else ""
        if line.startswith("| ") and cell in judged:
            j = judged[cell]
            place = f" id='{anchor_of(j.claim)}'" if head.startswith("| claim | paper") else ""
            line = line.replace("| ", f"| <span class='claim'{place} data-verdicts='{j.verdict}'></span>", 1)
        lines.append(line)
    return "\n".join(lines)


def judged_by(picture, among=None):
    """Return those of the judged claims (None: of all) that read the results which a picture shows first."""
    return [j for j in (judgements() if among is None else among) if picture.needs and picture.needs[0] in j.names]


def claims_table(judgements):
    """Write claims with their papers' numbers, what was measured, δ, the verdict and the reason, as a Markdown table."""
    rows = [(j.claim.text, source(j.claim), j.means if j.claim.by_construction else effects(j),
             "" if j.claim.by_construction else f"{j.claim.delta}", said(j), j.why)
            for j in judgements]
    return with_claims(table(("claim", "paper", "effect ± 95 % interval", "δ", "verdict", "why"), rows))


def how_to_read(judgements):
    """Say what a table of claims has for numbers, and what its verdicts mean, by the glossary. Links start at the root."""
    distinct = [word[0].upper() + word[1:] for word in dict.fromkeys(j.verdict for j in judgements)]
    meanings = "\n".join(f"* {link(word)}: {entries()[word]}" for word in distinct if word in entries())
    return (f"Unit: {link('Nats', 'nats/token')} unless another stands beside the number. Sign: plus supports the claim, "
            "whether it says *less* or *more*; a share of the gain supports *as good as* above 90 %, and *within δ* an effect "
            "between −δ and δ. "
            f"± is half of the 95 % {link('Confidence interval')}. {link('Delta (δ)', 'δ')} is the difference that matters. "
            f"<a href='figures/README.md#rule'>The rule</a> makes these verdicts:\n\n{meanings}")


def tables_with(name, page):
    """Yield the tables of a page with a row of the method, cut down to the heading and this row, below what the page says
    before the table."""
    for words, block in re.findall(r"((?:^(?![|#<]).+\n)*)\n?((?:^\|.*\n)+)", read(page), re.M):
        head, rule, *rows = block.splitlines()
        matches = [row for row in rows if row.startswith(f"| `{name}`: ")]
        if matches:
            yield "\n".join((*words.splitlines(), "", head, rule, *matches))


def pictures_of(names):
    """Return the names of pictures: of the claims' results, the main ones first, else the lesson's schematics, else all."""
    own = [j for name in names for j in claims_of(name)]
    main = {j.names[0] for j in own}
    measured = sorted((key for key, picture in PICTURES.items() if judged_by(picture, own)),
                      key=lambda key: PICTURES[key].needs[0] not in main)
    schematics = [key for key, picture in PICTURES.items() if not picture.needs and picture.lesson == ABOUT[names[0]].lesson]
    return (measured or schematics or [EVERYTHING])[:3]


@functools.cache
def gallery():
    """Return title → (its section of the gallery, the description of its picture, its sentence)."""
    sections = re.findall(r"^## (.+)\n\n(!\[(.*?)\]\(.*?\)\n\n\*\*(.*?)\*\*.*)\n", read(STUDY), re.M)
    return {title: (text, alt, sentence) for title, text, alt, sentence in sections}


# -- the plain twin, and the tests -----------------------------------------------------------------
def twins(path):
    """Return (rows of tests/README.md on the fast forms of a file, the names of their plain twins)."""
    folder, stem = path.split("/")[1], Path(path).stem
    plain = annotate.functions(read(f"tinypeft/{folder}/plain.py"))
    classes = [name for name, (_, text) in annotate.functions(read(path)).items() if text.startswith(("class", "@"))]
    subjects = "|".join([rf"{folder}/{stem}\.py", rf"(?:{folder}\.)?{stem}\.\w+", *map(re.escape, classes)])
    rows, names = [], []
    for row in re.findall(r"^\| (.*) \|$", read("tests/README.md"), re.M):
        cells = row.split(" | ")
        if len(cells) == 3 and re.match(rf"`(?:{subjects})\b", cells[0]) and "plain" in cells[1]:
            rows.append(cells)
            names += [name for name in re.findall(r"\w+", " ".join(re.findall(r"`[^`]+`", cells[1]))) if name in plain]
    return rows, {name: plain[name] for name in dict.fromkeys(names)}


def tests_of(path, name):
    """Return the file of a class's tests: called like its file or its name, or else that which names the class most often."""
    folder = path.split("/")[1]
    every = [file.relative_to(ROOT).as_posix() for file in sorted((ROOT / "tests" / folder).glob("test_*.py"))]
    for stem in (Path(path).stem, name):
        if (namesake := f"tests/{folder}/test_{stem}.py") in every:
            return namesake
    return max(every, key=lambda file: len(re.findall(rf"\b{CLASSES[name].__name__}\b", read(file))))


def oracles(text):
    """Return (the packages that tests compare with, the files in tests/oracles that they use)."""
    files = re.findall(r"from tests\.oracles\.(\w+) import", text)
    sources = [text, *(read(f"tests/oracles/{name}.py") for name in files)]
    packages = [name for source in sources for name in re.findall(r"importorskip\(\"(\w+)", source)]
    packages += ["torch" for source in sources if re.search(r"^import torch$", source, re.M)]
    return sorted({*packages} - {"hypothesis"}), sorted({*files})


def promises(text):
    """Yield (the name of a test in words, the number of its line)."""
    for node in annotate.parsed(text).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.name.removeprefix("test_").replace("_", " "), node.lineno


# -- the page --------------------------------------------------------------------------------------
class Page:
    """The page of a file of methods or schemes. `text` is its Markdown. links: the site's `Links`."""

    def __init__(self, path, links):
        self.path, self.names, self.source, self.links = path, files()[path], read(path), links

    @property
    def text(self):
        docstring, _, (first, rest) = annotate.pieces(self.source)
        text, differences = annotate.split(docstring)
        name = shown(self.path, (first, first + rest.count("\n") - 1))
        sections = {SIDE_BY_SIDE: raw(annotate.side_by_side(text, self.source, name, self.plain_code(), self.plain_forms())),
                    TWIN: self.twin(),
                    MEASURED: self.measured(),
                    annotate.DIFFERENCES: raw(differences and f"<div class='prose'>{annotate.prose(differences)}</div>"),
                    LESSON: self.lesson(),
                    TESTS: self.tests()}
        sections = {title: body for title, body in sections.items() if body}
        jumps = " · ".join(f"[{title}](#{slug(title)})" for title in list(sections)[1:])
        return "\n\n".join([WIDE, f"# {', '.join(ABOUT[name].title for name in self.names)}", self.facts(),
                            BOX.format("jumps", f"Below the code: {jumps}"),
                            *(f"## {title}\n\n{body}" for title, body in sections.items())]) + "\n"

    def lead(self, text, here=""):
        """Rewrite the links of a text from the page `here`; those of this file start at the root of the checkout."""
        return self.links.lead(text, here, on=self.path)

    def facts(self):
        """Write what is known of each name in one row: its equation, papers, class and lesson; then the claims, each with its
        verdict."""
        rows = []
        for name in self.names:
            about, (heading, section) = ABOUT[name], section_of(name)
            rows.append((code(about.equation), linked(*about.papers) or "–", f"`tp.{CLASSES[name].__name__}`",
                         self.lead(f"[{about.lesson} · {heading.removeprefix(about.lesson + ' · ')}]({section})")))
        claims = [f"* {verdicts([j])} {escape(j.claim.text)}" for j in self.judged] or \
            [f"* No claim of the paper was judged here. [What was measured](#{slug(MEASURED)})"]
        return "\n\n".join([table(("equation", "paper", "in Python", "lesson"), rows), "\n".join(claims)])

    def plain_code(self):
        """Write the plain twins' code, which stands above the file's own."""
        _, plain = twins(self.path)
        file = f"tinypeft/{self.path.split('/')[1]}/plain.py"
        docstring, *_ = annotate.pieces(self.source)
        marked = annotate.marked_lines(annotate.split(docstring)[0], read(file))
        parts = [shown(file, (line, line + text.count("\n"))) + annotate.code(text + "\n", line, marked, annotate.PLAIN)
                 for line, text in plain.values()]
        return f"<div class='plain'><p>First the plain form, in the paper's order:</p>{''.join(parts)}" \
               "<p>Then the form that the package uses:</p></div>" if parts else ""

    def plain_forms(self):
        """Return the text of the file of plain forms, and the names of those of this page."""
        _, plain = twins(self.path)
        return (read(f"tinypeft/{self.path.split('/')[1]}/plain.py"), plain) if plain else None

    def twin(self):
        rows, _ = twins(self.path)
        if not rows:
            return ""
        folder = self.path.split("/")[1]
        intro = self.lead(f"It stands above the file's own code, and comes from [`plain.py`](tinypeft/{folder}/plain.py).")
        return "\n\n".join([intro, self.lead(table(("fast", "plain", "held equal by"), rows), "tests/README.md")])

    @functools.cached_property
    def judged(self):
        """The judged claims that belong to one of the names."""
        return [j for j in judgements() if {*self.names} & {*owners(j.claim)}]

    def measured(self):
        judged = self.judged
        sections = [self.lead(how_to_read(judged)), self.lead(claims_table(judged), STUDY)] if judged else []
        if details(judged).count("\n") > 1:                                       # a claim by construction has none
            sections.append(FOLDED.format(self.lead(details(judged), STUDY)))
        sections += [self.elsewhere(judged)] if self.elsewhere(judged) else []
        readme = f"tinypeft/{self.path.split('/')[1]}/README.md"
        rows = [self.lead(with_words(cut, readme), readme) for name in self.names for cut in tables_with(name, readme)]
        if rows:
            sections += [self.lead(f"### Beside the others\n\nThe [whole tables]({readme}) compare it with the "
                                   "others. The words before a table say its settings."), *rows]
        for picture in map(PICTURES.get, pictures_of(self.names)):
            same = verdicts(judged_by(picture, judged))
            pills = same and f"Claims judged by these numbers: {same}"
            sections += [f"### {picture.title}", pills, self.lead(gallery()[picture.title][0], STUDY)]
        return "\n\n".join([*filter(None, sections), self.lead("[The study](figures/README.md) has every claim, every picture, "
                                                               "and the rule that judges.")])

    def elsewhere(self, own):
        """List the claims on other papers that name one of the page's methods, with links to the study."""
        named = [j for j in judgements() if j not in own and any(
            re.search(rf"(?<!\w){re.escape(ABOUT[name].title)}(?!\w)", j.claim.text) for name in self.names)]
        lines = [f"* <a href='figures/README.md#{anchor_of(j.claim)}'>{j.claim.text}</a>: {j.verdict}" for j in named]
        return self.lead("Claims on other papers name it, too:\n\n" + "\n".join(lines)) if named else ""

    def lesson(self):
        lines = []
        for name in self.names:
            notebook, (heading, section) = lesson_of(name), section_of(name)
            where = f": [{heading}]({section})" if section != notebook else ""
            lines.append(self.lead(f"* Read [{title_of(notebook)}]({notebook}){where}."))
        for notebook in dict.fromkeys(map(lesson_of, self.names)):
            assignment = notebook.replace("lessons/", "lessons/assignments/")
            lines.append(self.lead(f"* Work on [its assignment]({assignment}), a "
                                   "notebook to download, with stubs for your code and checks."))
        return "\n".join(dict.fromkeys(lines))

    def tests(self):
        return "\n\n".join(map(self.tests_in, dict.fromkeys(tests_of(self.path, name) for name in self.names)))

    def tests_in(self, file):
        packages, files = oracles(read(file))
        compared = [*(f"`{name}`" for name in packages), *(f"[`{name}.py`](tests/oracles/{name}.py)" for name in files)]
        first = f"[`{file}`]({file}) " + (f"compares with {', '.join(compared)}." if compared else "compares with no library.")
        address = self.links.to(file, on=self.path, ending=".html")
        lines = [f"<li><a href='{address}#L-{line}'>{escape(words)}</a></li>" for words, line in promises(read(file))]
        promised = raw(f"<ul class='promises'>{''.join(lines)}</ul>", searched=False)
        return self.lead(f"{first} What it promises, a test each:\n\n") + promised


def raw(html, searched=True):
    option = "" if searched else ":class: no-search\n"
    return f"```{{raw}} html\n{option}{html}\n```" if html else ""


def slug(title):
    """Return the anchor of a heading, as GitHub and MyST name it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
