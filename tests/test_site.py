"""The site's source folder, without Sphinx and a browser: every link leads somewhere, every method and scheme has a page that
says what its file says, verdicts are the gallery's. `tests/browser/website.py` looks at what Sphinx makes of it."""
import functools
import html
import importlib
import json
import posixpath
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.browser.typed import FIRST, NOTHING
from tinypeft.peft import METHODS
from tinypeft.peft.methods import FAMILIES
from tinypeft.quant import SCHEMES
from tinypeft.study.about import ABOUT, linked
from tinypeft.study.claims import ALL_CLAIMS

ROOT = Path(__file__).parents[1]
HOME = ROOT / ".github" / "site"
FILES = {name: cls.__module__.replace(".", "/") for name, cls in (METHODS | SCHEMES).items()}
LINK = re.compile(r"\]\((?:path:)?([^)\s]+)\)")
TAG = re.compile(r"<(?:a|img)\b[^>]*\b(?:src|href)=[\"']([^\"']+)")
CODE = re.compile(r"^(```+).*?^\1$|(?<!`)`[^`\n]+`(?!`)", re.S | re.M)


def module(name):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HOME))
        return importlib.import_module(name)


def plain_lines(source, lexer, style):
    """Lines with numbers as Pygments writes them, without colours: these take most of the time."""
    lines = enumerate(source.split("\n")[:-1], style.linenostart)
    prefix = style.linespans
    return "<pre>" + "".join(f'<span id="{prefix}-{n}">{html.escape(line)}\n</span>' for n, line in lines) + "</pre>"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """(the source folder, what is missing, the stages that were said)."""
    folder, said = tmp_path_factory.mktemp("site") / "source", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module("annotate"), "highlight", plain_lines)
        patch.setattr(module("stage"), "say", said.append)
        return folder, module("stage").stage(folder).missing, said


@pytest.fixture(scope="module")
def pages(site):
    """The page of each method's or scheme's file, as Markdown."""
    return {name: (site[0] / f"{file}.md").read_text("utf-8") for name, file in FILES.items()}


def cells_of(path):
    return json.loads(path.read_text("utf-8"))["cells"]


# -- links -----------------------------------------------------------------------------------------
def texts(path):
    """What a page or a notebook says, its outputs too."""
    if path.suffix == ".md": return [path.read_text("utf-8")]
    cells = cells_of(path)
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", ())]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"] + \
           ["".join(data[kind]) for data in outputs for kind in ("text/html", "text/markdown") if kind in data]


def dead(folder, path, link):
    """Whether a link of a page leads nowhere. On the site a page ends in .html."""
    if re.match(r"https?:|data:|mailto:", link): return False
    file, _, anchor = link.partition("#")
    if not file: return anchor not in anchors_of(path)
    target = folder / posixpath.normpath(posixpath.join(path.parent.relative_to(folder).as_posix(), file))
    if target.suffix == ".html": target = next(filter(Path.exists, map(target.with_suffix, (".md", ".ipynb"))), target)
    return not target.is_file() or bool(anchor) and anchor not in anchors_of(target)


@functools.cache
def anchors_of(path):
    """The places of a page that a link can name: its headings, and what has an id."""
    text = "\n".join(texts(path))
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^(```+).*?^\1$", "", text, flags=re.M | re.S), re.M)
    return {*map(module("page").slug, headings), *re.findall(r"\bid=[\"']([^\"']+)", text)}


def test_every_link_leads_to_a_page_or_a_file(site):
    folder, missing, _ = site
    sources = [path for path in folder.rglob("*.*") if path.suffix in {".md", ".ipynb"} and "assignments" not in path.parts]
    links = {(path, link) for path in sources for text in texts(path)
             for link in LINK.findall(CODE.sub("", text)) + TAG.findall(text)}
    assert missing == [] and len(links) > 1000
    assert [f"{path.relative_to(folder)}: {link}" for path, link in sorted(links) if dead(folder, path, link)] == []


def test_a_dead_link_is_noted_and_a_badge_left_out():
    links = module("links").Links({"README.md": "README.md"})
    badge, text = "[![tests](../../actions/badge.svg)](../../actions)\n", "[a](README.md#two) `[b](c.md)` [d](e.md)"
    assert links.lead(badge + text, "README.md") == text and links.missing == [("README.md", "e.md")]


def test_no_page_asks_another_computer(site):
    """Links lead there, pictures and scripts do not."""
    for path in [*site[0].rglob("*.md"), *site[0].rglob("_static/*.*")]:
        text = path.read_text("utf-8")
        assert not re.search(r"<(?:img|script|link|iframe)[^>]*=[\"']?(?:https?:)?//", text), path
        assert not re.search(r"!\[[^\]]*\]\(http|@import|fetch\(", CODE.sub("", text)), path


# -- annotated pages -------------------------------------------------------------------------------
def squeezed(text):
    return re.sub(r"[\s`]", "", text)


def text_of(page):
    return squeezed(html.unescape(re.sub(r"<[^>]*>", "", page)))


@pytest.mark.parametrize("name", FILES)
def test_a_page_has_every_word_of_the_docstring_and_every_line_of_the_code(name, pages):
    source = (ROOT / f"{FILES[name]}.py").read_text("utf-8")
    _, docstring, code = re.split(r'"""', source, maxsplit=2)
    docstring = re.sub(r"^(Where implementations differ)[.:]?\s", r"\1\n", docstring, flags=re.M)      # a heading on the page
    page = text_of(pages[name])
    pieces = [piece for line in docstring.split("\n") for piece in re.split(r"\s{2,}|^ \* ", line)]
    assert [piece for piece in [*pieces, *code.split("\n")] if squeezed(piece) not in page] == []
    assert pages[name].count("<th scope='col'>paper</th>") == len(re.findall(r"^ +paper +here", docstring, re.M))


@pytest.mark.parametrize("name", FILES)
def test_a_page_has_its_paper_lesson_tests_and_differences(name, pages):
    page, about = pages[name], ABOUT[name]
    assert about.equation.replace("|", "\\|") in page and linked(*about.papers) in page
    assert f"lessons/{about.lesson}_" in page and f"lessons/assignments/{about.lesson}_" in page
    assert re.search(r"\[`tests/\w+/test_\w+\.py`\]\(", page) and "<ul class='promises'><li>" in page
    assert re.search(r"!\[.{20,}\]\(.*\.(?:svg|png)\)", page)
    source = (ROOT / f"{FILES[name]}.py").read_text("utf-8")
    assert ("\n## Where implementations differ\n" in page) == ("\nWhere implementations differ" in source)


TWINS = {"gptq": {"gptq", "gptq_step"}, "awq": {"awq"}, "nf4": {"nf4", "double_quantize"}, "llm_int8": {"llm_int8"},
         "w8a8": {"llm_int8"}, "adalora": {"allocate"}, "oft": {"cayley"}, "loreft": {"loreft"}, "miss": {"miss"},
         "fourierft": {"waves"}, "c3a": {"circular", "circular_dx"}, "randlora": {"randlora"}, "ptuning": {"places"},
         "dora": {"dora"}}


@pytest.mark.parametrize("name", FILES)
def test_a_page_has_its_plain_twin(name, pages):
    """Those of tests/README.md, above the file's own code, and none on the page of a method that is plain already."""
    plain = re.search(r"<div class='plain'>.*?</div>", pages[name], re.S)
    assert {*re.findall(r"\bdef (\w+)\(", plain.group() if plain else "")} == TWINS.get(name, set())
    assert ("\n## The plain twin\n" in pages[name]) == (name in TWINS)
    assert pages[name].find("<div class='plain'>") < pages[name].find('<span id="L-')


LINES = {"dora": "self.scale * self.B @ self.A", "gptq": "E[i] = (W[i] - Q) / U[i, i]",
         "lora": "return self.base(x) + F.linear(Ax, self.B)", "hira": "return W0 * (self.B @ self.A)",
         "smoothquant": "max_abs**alpha", "parallel_adapter": "F.linear(y, self.W_up, self.b_up) * self.scale"}


@pytest.mark.parametrize("name", LINES)
def test_the_equation_leads_to_the_lines_that_calculate_with_its_symbols(name, pages):
    marked = dict(re.findall(r'<span class="symbolic" id="([A-Za-z]+-\d+)">(.*)', pages[name]))
    assert any(LINES[name] in html.unescape(line) for line in marked.values())
    listed = re.findall("href='#([^']+)'", re.search(r"<div class='lines'>.*?</div>", pages[name]).group())
    assert sorted(listed) == sorted(marked)


def test_the_plain_form_has_its_lines_marked_and_listed_first(pages):
    marked = dict(re.findall(r'<span class="symbolic" id="(plain-\d+)">(.*)', pages["gptq"]))
    assert any("W[:, end:] -= E[:, i:end] @ U[i:end, end:]" in html.unescape(line) for line in marked.values())
    assert re.search("<code>plain.gptq</code>: line.*<code>GPTQ</code>: line", pages["gptq"])


def test_a_line_is_marked_only_if_it_calculates_with_two_symbols_or_what_they_gave():
    docstring = "    y = A B\n\n    paper   here\n    A       a\n    B       b\n    r       rank\n"
    source = ("def f(a, b, r):\n    b = g(a, b)\n    y = a * b\n    z = a * c\n    v = y + a\n    q = b / r\n    return a[b]\n"
              "def g(y, a):\n    return y + a\n")
    assert module("annotate").marked_lines(docstring, source) == [3, 5, 6]


def test_the_name_and_the_lines_of_the_file_stand_above_the_code(pages):
    path = "tinypeft/quant/gptq.py"
    first, last = re.search(rf"<p class='file'>.*?{path}<.*?, lines (\d+) to (\d+)", pages["gptq"]).groups()
    lines = (ROOT / path).read_text("utf-8").split("\n")
    assert lines[int(first) - 1] == "@dataclass(frozen=True)" and int(last) == len(lines) - 1
    assert re.findall(r'id="(L-\d+)"', pages["gptq"])[-1] == f"L-{last}"


@pytest.mark.parametrize("name, heading", [("dora", "10-bonus-dora-and-two-rates"), ("lora", None),
                                           ("gptq", "3-gptq-the-same-for-a-whole-matrix")])
def test_a_page_leads_to_the_section_of_its_lesson(name, heading, pages):
    links = re.findall(r"\]\(\S*lessons/\w+\.ipynb(?:#(\S+))?\)", pages[name])
    assert (heading in links) if heading else not any(links)


def test_a_docstring_becomes_paragraphs_equations_tables_and_bullets():
    """A bullet goes on over indented lines, a row over lines with an empty first cell, and names of the code are buttons."""
    text = ("One\n`two`.\n\n    y = W x,   a < b   for all\n      + b\n\n    paper   here   meaning\n    W       w      the\n"
            "                   weight\n\nDifferences:\n * one\n    goes on\n * two\n")
    assert module("annotate").prose(text, "w = 1").split("\n") == [
        "<p>One <code>two</code>.</p>",
        "<pre class='equation whole'><span>y = W x,   <span>a &lt; b</span>   <span>for all</span>",
        "</span><span>  + b", "</span></pre>",
        "<div class='scroll'><table class='symbols'><caption>Press a framed name to mark it in the code.</caption>"
        "<thead><tr><th scope='col'>paper</th><th scope='col'>here</th>"
        "<th scope='col'>meaning</th></tr></thead><tbody><tr><th scope='row'>W</th>"
        "<td><button type='button' class='find'>w</button></td><td>the weight</td></tr></tbody></table></div>",
        "<p>Differences:</p>", "<ul><li>one goes on</li></ul>", "<ul><li>two</li></ul>"]


# -- verdicts --------------------------------------------------------------------------------------
def claims_in(text):
    """Claim → verdict, of the tables of a page. A table of claims that hold by construction has no column for it."""
    text = re.sub(r"</?(?:span|a)\b[^>]*>", "", text)
    rows = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in text.split("\n") if not line.startswith("|--")]
    verdicts, heads = {}, None
    for row in rows:
        if row[:2] == ["claim", "paper"]: heads = row
        elif heads and len(row) == len(heads):
            verdict = dict(zip(heads, row, strict=True)).get("verdict", "by construction")
            verdicts[row[0]] = re.match(r"\**([^*,]+(?:, size open)?)", verdict).group(1)
        else: heads = None
    return verdicts


def test_verdicts_are_those_of_the_gallery(pages):
    gallery = claims_in((ROOT / "figures/README.md").read_text("utf-8"))
    assert len(gallery) > 30
    claims_of = {name: claims_in(page) for name, page in pages.items()}
    for name, claims in claims_of.items():
        assert claims.items() <= gallery.items(), name
        assert {*re.findall(r"data-verdict='([^']+)'", pages[name])} == {*claims.values()}, name
    papers = {paper for about in ABOUT.values() for paper in about.papers}
    texts = {text for claims in claims_of.values() for text in claims}
    assert {claim.text for claim in ALL_CLAIMS if claim.paper in papers} <= texts


def test_a_verdict_leads_to_its_claim(site, pages):
    """On a method's page, on the page of all, and on the study's, where each claim has one anchor."""
    study = {path: path.read_text("utf-8") for path in site[0].glob("figures/*.md")}
    texts = {site[0] / f"{FILES[name]}.md": page for name, page in pages.items()} | study
    anchors = {path: re.findall(r"<span class='claim' id='([^']+)'", text) for path, text in texts.items()}
    assert all(len(a) == len({*a}) for a in anchors.values())
    assert len([anchor for path in study for anchor in anchors[path]]) == len(ALL_CLAIMS)
    counts = 0
    for path, text in [*texts.items(), (site[0] / "map.md", (site[0] / "map.md").read_text("utf-8"))]:
        for file, anchor in re.findall(r"<a class='verdict' href='([^'#]*)#([^']+)'", text):
            target = (path.parent / file).with_suffix(".md").resolve() if file else path
            assert anchor in anchors[target], (path, anchor)
            counts += 1
    assert counts > 100


def test_a_table_of_claims_says_its_unit_its_sign_and_delta(site, pages):
    """And what each of its verdicts means, with a link to the rule."""
    study = [path.read_text("utf-8") for path in site[0].glob("figures/*.md")]
    assert sum(text.count(" id='rule'") for text in study) == 1
    for text in (page for page in [*study, *pages.values()] if "| claim | paper" in page):
        before = text.partition("| claim | paper")[0]
        wanted = "#word-nats", "plus supports the claim", "#word-delta'", "#rule'"
        assert [words for words in wanted if words not in before] == []
        table = text[len(before):].partition("\n\n")[0]
        words = {"word-" + re.sub(r"\W+", "-", verdict) for verdict in re.findall(r"data-verdicts='([^']+)'", table)}
        assert words and all(f"#{word}'" in before for word in words)


# -- the study's pages -----------------------------------------------------------------------------
def bare(text):
    """The lines of a page without what the site adds to them: links' addresses, anchors, marks of verdicts."""
    text = re.sub(r"</?(?:a|span|div|summary|details|fieldset)\b[^>]*>", "", text)
    return [re.sub(r"\]\([^)]*\)", "]", line).strip() for line in text.split("\n")]


def test_nothing_of_the_study_is_lost_or_said_twice_where_its_page_is_cut(site):
    """Rows of claims, pictures, tables and the rule: each line of the checkout's page stands on one of the site's."""
    text = re.sub("<!--.*?-->", "", (ROOT / "figures/README.md").read_text("utf-8"))             # the marks of its sections
    lines = [line for line in bare(text) if re.search(r"\w", line)]
    theirs = {path.stem: bare(path.read_text("utf-8")) for path in site[0].glob("figures/*.md")}
    where = {line: [name for name, own in theirs.items() if line in own] for line in lines}
    dropped = {"# Figures", "## What the papers claim, and what was measured", "The rule, and the error",
               "What was fixed before the runs, the means behind the effects, and p"}      # headings
    assert {line for line, names in where.items() if not names} <= dropped
    heads = re.compile(r"\| (?:claim|method) \|")
    rows = [line for line in lines if line.startswith(("| ", "![", "**", "## ")) and not heads.match(line)]
    assert len(rows) > 150 and [(line, where[line]) for line in rows if len(where[line]) > 1] == []


def test_the_study_s_short_page_leads_to_the_others(site):
    text = (site[0] / "figures/README.md").read_text("utf-8")
    others = {path.name for path in site[0].glob("figures/*.md")} - {"README.md"}
    assert {*re.findall(r"^\* \*\*\[[^]]+\?\]\((\w+\.md)\)", text, re.M)} == others and len(text) < 6000


def test_a_link_to_a_place_of_the_study_leads_to_the_page_that_has_it():
    links = module("links").Links({"a/README.md": "a/README.md", "a/b.md": "a/b.md"}, {("a/README.md", "two"): "a/b.md"})
    text = "[one](README.md#one) [two](README.md#two) <a href='README.md#two'>2</a>"
    assert links.lead(text, "a/README.md") == "[one](README.md#one) [two](b.md#two) <a href='b.html#two'>2</a>"


def test_links_to_words_of_the_glossary_find_them(site):
    text = (site[0] / "lessons/GLOSSARY.md").read_text("utf-8")
    anchors = re.findall(r"<span id='(word-[^']+)'>\*\*", text)
    assert len(anchors) == len({*anchors}) == len(re.findall(r"^\* .*\*\*[A-Z]", text.partition("\n## Letters")[0], re.M))
    links = {link for path in site[0].rglob("*.md") for link in re.findall(r"#(word-[^']+)'", path.read_text("utf-8"))}
    assert links <= {*anchors} and len(links) > 30
    assert "#word-nats" in (site[0] / "README.md").read_text("utf-8")


def test_the_map_places_every_method_and_scheme_once(site):
    text = (site[0] / "map.md").read_text("utf-8")
    cards = re.findall(r"^\* \*\*\[(.+?)\]\((\S+)\.md\)\*\*", text, re.M)
    assert sorted(cards) == sorted((ABOUT[name].title, file) for name, file in FILES.items())
    assert [f"### {family.capitalize()}" in text for family in FAMILIES] == [True] * len(FAMILIES)


# -- lessons ---------------------------------------------------------------------------------------
def lessons():
    return sorted((ROOT / "lessons").glob("*.ipynb"))


@pytest.mark.parametrize("lesson", lessons(), ids=lambda path: path.stem)
def test_a_lesson_has_its_answers_folded_its_guesses_open_and_its_assignment(lesson, site):
    cells = cells_of(site[0] / "lessons" / lesson.name)
    texts = ["".join(cell["source"]) for cell in cells]
    for cell, text, following in zip(cells, texts, [*texts[1:], ""], strict=True):
        if cell["cell_type"] == "markdown":
            assert "<details open" not in text
        elif "tp.check(\"" in following:
            assert "hide-input" in cell["metadata"]["tags"]
        if guess := re.match(r"guess = tp\.guess\(\"([\w.]+)\"", text):
            assert f'data-guess="{guess[1]}"' in following
    assert f"](path:assignments/{lesson.name})" in texts[0].partition("\n## ")[0]


def test_numbers_of_lessons_become_links_once():
    text = "**What you need.** Lesson 07, and [lesson 10](10_quantization.ipynb): codes.\n\nLesson 08 comes next."
    assert module("staged_notebook").with_lessons(text) == text.replace("Lesson 07", "Lesson [07](07_lora.ipynb)")


def test_pictures_of_lessons_keep_their_descriptions(site):
    undescribed = 0
    for lesson in lessons():
        staged = {cell.get("id"): cell for cell in cells_of(site[0] / "lessons" / lesson.name)}
        for cell in cells_of(lesson):
            for output in cell.get("outputs", ()):
                if "image/png" in output.get("data", {}):
                    described = output["metadata"].get("image/png", {}).get("alt")
                    assert staged[cell["id"]]["metadata"]["mystnb"].get("image", {}).get("alt") == described
                    undescribed += not described
    assert undescribed == 0


# -- front page, workflow --------------------------------------------------------------------------
def test_the_front_page_says_what_it_is_and_has_three_doors(site):
    text, readme = (site[0] / "index.md").read_text("utf-8"), (ROOT / "README.md").read_text("utf-8")
    assert re.search(r"```python.*?```", readme, re.S).group() in text and text.count("<img ") == 1
    assert re.findall(r"^\* \*\*\[(.*?)\]", text, re.M) == ["Learn", "Read the maths", "Use it"]
    assert f"{len(METHODS)} methods, {len(SCHEMES)} schemes" in text
    study = (ROOT / "figures/README.md").read_text("utf-8")
    for words in (r"After \d+ steps the best share.*?;", r"Above: \*domain\*.*?seeds\.", r"Grey bars: .*?$"):
        assert re.search(words, study, re.M | re.S).group() in text


def test_pages_say_how_to_get_the_repository(site, monkeypatch):
    """With the address that the workflow knows, and without one in words."""
    repository = module("repository")
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    monkeypatch.delenv("TINYPEFT_REPOSITORY", raising=False)
    assert "your copy of the repository" in repository.get() and repository.linked() == "your copy of the repository"
    monkeypatch.setenv("TINYPEFT_REPOSITORY", "https://example.org/a/")
    assert repository.get() == "git clone https://example.org/a tinypeft && cd tinypeft"
    monkeypatch.setenv("GITHUB_REPOSITORY", "b/c")
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://github.com")
    assert repository.commands("d") == \
        f"```bash\ngit clone https://github.com/b/c tinypeft && cd tinypeft\n{repository.INSTALL}\nd\n```"
    assert "blob/HEAD/e.py'" in repository.shown("e.py", (1, 2))
    install = (ROOT / "README.md").read_text("utf-8")
    assert repository.INSTALL in install
    for name in ("index.md", "README.md", "lessons/07_lora.ipynb"):
        assert "cd tinypeft" in (site[0] / name).read_text("utf-8"), name


# -- the search ------------------------------------------------------------------------------------
@pytest.mark.parametrize("typed, place", (FIRST | NOTHING).items())
def test_what_one_types_stands_where_the_search_leads_or_may_not_lead(typed, place, site):
    """`tests/browser/website.py` types it: a word that is on no page would find nothing without reason."""
    page, _, anchor = place.partition("#")
    text = "\n".join(path.read_text("utf-8") for path in site[0].glob(page.replace(".html", ".*")))
    if anchor:
        text = re.search(f"<span id='{anchor}'>.*", text).group()
    assert all(re.search(rf"(?<![A-Za-z]){word}", text, re.I) for word in typed.split())


def test_the_search_leaves_out_sources_tests_and_what_is_solved_or_for_authors(site):
    texts = {path.relative_to(site[0]).as_posix(): path.read_text("utf-8") for path in site[0].rglob("*.*")
             if path.suffix in {".md", ".ipynb"} and "assignments" not in path.parts}
    out = {path for path, text in texts.items() if re.match(r"---\n(?:.+\n)*nosearch: true\n", text)
           or path.endswith(".ipynb") and "nosearch" in json.loads(text)["metadata"]}
    sources = {path for path, text in texts.items() if "orphan: true" in text}
    assert len(sources) > 50 and out - sources == {"tests/README.md", "project/CHANGELOG.md", "lessons/src/README.md",
                                                   "lessons/projects/example/1_own_task.ipynb"} and sources <= out


def test_the_search_leaves_out_what_the_tests_of_a_method_promise(pages):
    assert [name for name, page in pages.items() if ":class: no-search\n<ul class='promises'>" not in page] == []


def test_the_list_of_pages_has_each_page_once(site):
    """A page in no list is one that nobody finds, and Sphinx refuses it."""
    texts = [path.read_text("utf-8") for path in site[0].rglob("*.md")]
    trees = [tree for text in texts for tree in re.findall(r"^```\{toctree\}\n.*?\n\n(.*?)\n```", text, re.S | re.M)]
    entries = [re.sub(r".*<(.*)>", r"\1", line).removeprefix("/") for tree in trees for line in tree.split("\n")]
    entries = [entry for entry in entries if not entry.startswith("http")]               # the repository's address
    pages = [path for path in site[0].rglob("*.*") if path.suffix in {".md", ".ipynb"} and "assignments" not in path.parts]
    pages = [path for path in pages if "orphan: true" not in path.read_text("utf-8")]
    names = {path.relative_to(site[0]).with_suffix("").as_posix() for path in pages}
    assert len(entries) == len({*entries}) and {*entries} == names - {"index"}


def test_a_build_says_its_first_stage_before_it_loads_anything(monkeypatch, tmp_path, capsys):
    """And a line for each later one: on a terminal it would look as if it hung."""
    build, said = module("build"), []
    class Loaded(ModuleType):
        """A module that notes what had been said when a name of it was asked for."""
        def __getattr__(self, name):
            said.append(capsys.readouterr().out)
            return lambda *_: module("links").Links({}) if name == "stage" else 0
    monkeypatch.setitem(sys.modules, "sphinx.cmd.build", Loaded("sphinx.cmd.build"))
    monkeypatch.setitem(sys.modules, "stage", Loaded("stage"))
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    monkeypatch.setattr(build, "PAGES", tmp_path)
    monkeypatch.setattr(sys, "argv", ["build.py"])
    assert build.main() == 0
    assert "loads the package and Sphinx" in said[0] and "done: 0 pages" in capsys.readouterr().out


def test_the_source_folder_says_each_of_its_stages_once(site):
    assert [stage.split()[0] for stage in site[2]] == ["judges", "writes", "writes", "writes"] and len({*site[2]}) == 4


def test_the_site_judges_with_the_versions_that_measured():
    """Equal pins: another SciPy could move a p over a threshold, and the site would say another verdict than the checkout."""
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (HOME / "requirements.txt").read_text("utf-8"), re.M))
    heads = [json.loads(path.read_text("utf-8")).get("versions", {}) for path in (ROOT / "figures/results").glob("*.json")]
    packages = {(name, version) for head in heads for name, version in head.items() if name != "python"}
    assert packages == {(name, pins.get(name)) for name in ("numpy", "scipy", "matplotlib")}
    workflow = (ROOT / ".github/workflows/site.yml").read_text("utf-8")
    pythons = {head["python"].rpartition(".")[0] for head in heads if head}
    assert pythons == {*re.findall(r'python-version: "(.*)"', workflow)}


def test_the_workflow_runs_commands_that_exist():
    workflow = (ROOT / ".github/workflows/site.yml").read_text("utf-8")
    files = re.findall(r"(?:python|-r) (\S+\.(?:py|txt))", workflow)
    assert {".github/site/build.py", "tests/browser/website.py", ".github/site/requirements.txt"} <= {*files}
    assert [file for file in files if not (ROOT / file).is_file()] == []
