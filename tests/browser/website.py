"""The site in headless Chromium, as a reader has it: on a phone in the light, and on a wide screen in the dark.

    python tests/browser/website.py [build/site/html] [--only lessons/07]        look for faults on all pages
    python tests/browser/website.py --planted                                    plant one fault of each kind, and find it
    python tests/browser/website.py --shots FOLDER                               ten pages as pictures, to be looked at

What counts as a fault stands in `KINDS`. Needs `chromium` on the path and .github/site/requirements.txt. Not a part of
pytest, which needs no browser; .github/workflows/site.yml runs both commands.
"""
import argparse
import contextlib
import functools
import http.server
import re
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import TimeoutError as Late
from playwright.sync_api import sync_playwright
from typed import FIRST, NOTHING

PAGES = Path(__file__).parents[2] / "build" / "site" / "html"
KINDS = {"formula": "MathJax refused it, or it was not typeset", "link": "it leads to no file",
         "anchor": "it leads to no place on its page", "markup": "Markdown stands there as it was written",
         "cut": "it reaches over the edge of a phone", "description": "a picture has none, or the name of a file",
         "host": "a page asks another computer for something", "answer": "it is open before one asks for it",
         "script": "an error, or a file that does not come", "contrast": "letters are too faint", "slider": "it does not move",
         "tall": "a page of the study takes more than fourteen screens of a phone",
         "guess": "what a reader guesses does not come beside the measured number", "search": "another page comes first",
         "filter": "the study shows other claims than it counts",
         "access": "another rule of axe-core is broken, or a cell does not say its column"}
PHONE, WIDE = {"width": 390, "height": 844}, {"width": 1360, "height": 900}
TYPESET = "() => [...document.querySelectorAll('.math')].every(e => e.querySelector('mjx-container'))"
NOTES = """() => {
  const all = selector => [...document.querySelectorAll(selector)], start = e => e.textContent.trim().slice(0, 60);
  const root = document.documentElement, drawn = 'mjx-container, label, a, button';
  const outside = e => !e.closest('mjx-container') && e.getBoundingClientRect().right > innerWidth + 1 &&
    !e.closest('.scroll, pre, .table-wrapper');
  return {
    formulas: all('mjx-container').length,
    formula: [...all('[data-mml-node=merror]').map(start), ...all('article :is(p, li, td, th)').filter(
      e => !e.closest('pre') && !e.querySelector('code, pre, p') && /\\$[^$ ][^$]*\\$|\\\\\\[/.test(e.innerText)).map(start)],
    markup: all('article :is(p, li, td, figcaption)').filter(
      e => !e.querySelector('code, pre, p') && /\\]\\(|\\*\\*/.test(e.innerText)).map(start),
    cut: [...all('article :is(img, svg, input, table)').filter(outside).map(e => e.alt || e.outerHTML.slice(0, 60)),
          ...all('.highlight-bash pre').filter(e => e.scrollWidth > e.clientWidth + 1).map(e => 'a command: ' + start(e)),
          ...root.scrollWidth > innerWidth ? [`the page is ${root.scrollWidth} wide`] : []],
    description: [...all('article img').filter(e => !e.alt.trim() || /^\\S+\\.(png|svg)$/.test(e.alt)),
                  ...all('article svg').filter(e => !e.closest(drawn) && !e.closest('[role=img]')?.getAttribute('aria-label'))]
      .map(e => (e.getAttribute('src') ?? 'svg').split('/').at(-1).slice(0, 60)),
    answer: all('article details[open]').map(start),
    tall: /\\/figures\\//.test(location.pathname) && root.scrollHeight > 12000 ? [`${root.scrollHeight} px`] : [],
    script: [...document.images].filter(e => e.complete && !e.naturalWidth && e.src.startsWith(location.origin))
      .map(e => `${e.src} is no picture`),
    access: all('table.rows td:not([colspan])').filter(e => e.textContent.trim() && !e.dataset.head &&
      e.closest('table').tHead.rows[0].cells[e.cellIndex]?.textContent).map(e => `a cell without its column: ${start(e)}`),
    slider: all('[data-slider]').map(() => 'it has not started'),
    sliders: all('input[type=range]').length, details: all('article details').length, pictures: all('article img').length,
    ids: all('[id]').map(e => e.id), links: all('a[href]').map(e => e.href)}
}"""
CLAIMS = ".claims tbody tr:not(details *):visible"
FOUND = """() => document.querySelector('#search-results li > a')?.href ||
  (/did not match/.test(document.querySelector('.search-summary')?.innerText) && 'nothing')"""
PRESENT = """() => {
  const list = document.querySelector('.sidebar-scroll');
  const page = [...document.querySelectorAll('.sidebar-tree .current-page')].at(-1);
  if (!page) return true;
  const [inner, outer] = [page, list].map(e => e.getBoundingClientRect());
  return inner.top >= outer.top && inner.top < outer.bottom;
}"""
SHOTS = ("index", "map", "tinypeft/peft/lora", "tinypeft/peft/dora", "tinypeft/quant/gptq", "lessons/07_lora",
         "lessons/11_outliers", "figures/claims_methods", "lessons/GLOSSARY", "lessons/README")
# axe-core takes a minute for the nodes of all formulas. They are MathJax's, which gives readers of screens its MathML. Code
# and the side have the same colours on all pages, so it sees them on one page; and of a long table it sees the first rows.
LIGHTER = """() => {
  document.querySelectorAll('mjx-container, svg g').forEach(e => e.replaceChildren());
  document.querySelectorAll('article pre').forEach(e => e.textContent = e.textContent);
  document.querySelectorAll('tbody tr:nth-child(n+12)').forEach(e => e.remove());
  document.querySelectorAll('.sidebar-tree ul').forEach(e => e.replaceChildren());
}"""
ONCE = "tinypeft/peft/full.html"
NO_RULES = "region", "empty-table-header"                # furo has a button outside regions; the corner of a table may be empty


# -- looking ---------------------------------------------------------------------------------------
class Site:
    """A built site behind a server of its own. `faults` are (kind, page, what), and `counts` what was looked at."""

    def __init__(self, folder, browser):
        self.folder, self.browser, self.axe = folder, browser, Axe()
        self.faults, self.counts, self.ids, self.links = [], Counter(), {}, {}
        front = (folder / "index.html").read_text("utf-8")
        side = re.findall(r'toctree-l\d[^"]*"><a class="reference internal" href="([^"]+)"', front)
        self.listed = {"index.html", "search.html", *side}

    @contextlib.contextmanager
    def served(self):
        quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(quiet, directory=str(self.folder))) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            self.base = f"http://127.0.0.1:{server.server_port}/"
            yield self
            server.shutdown()

    def fault(self, kind, name, what):
        if (kind, name, what) not in self.faults:
            self.faults.append((kind, name, what))

    def answered(self, reply):
        if reply.status >= 400:
            self.fault("script", self.name, f"{reply.status} {reply.url}")

    @contextlib.contextmanager
    def tab(self, size, scheme):
        """A tab of the browser that refuses what another host should give, and notes it."""
        def only_here(route):
            url = route.request.url
            if url.startswith((self.base, "data:")):
                route.continue_()
            else:
                self.fault("host", self.name, url)
                route.abort()
        context = self.browser.new_context(viewport=size, color_scheme=scheme)
        context.route("**/*", only_here)
        page = context.new_page()
        page.on("pageerror", lambda error: self.fault("script", self.name, str(error)[:100]))
        page.on("response", self.answered)
        yield page
        context.close()

    def go(self, page, name):
        self.name = name
        page.goto(self.base + name)
        try:
            page.wait_for_function(TYPESET, timeout=20_000)
        except Late:
            self.fault("formula", name, "some are not typeset after 20 seconds")

    def look(self, names):
        """Look at the pages on a phone, at those that the side lists also in the dark, then follow all links."""
        with self.served():
            with self.tab(PHONE, "light") as page:
                for n, name in enumerate(names):
                    self.go(page, name)
                    self.note(page, name)
                    self.use(page, name)
                    if name in self.listed or n % 10 == 0:                       # the others, files of Python, are alike
                        self.accessible(page, name)
            with self.tab(WIDE, "dark") as page:
                for name in (name for name in names if name in self.listed):
                    self.go(page, name)
                    if not page.evaluate(PRESENT):
                        self.fault("access", name, "the list of pages does not show the present one")
                    self.accessible(page, name, {"runOnly": ["color-contrast"], "resultTypes": ["violations"]})
            self.follow()

    def note(self, page, name):
        """Note what the page itself shows."""
        notes = page.evaluate(NOTES)
        self.ids[name], self.links[name] = {*notes.pop("ids")}, notes.pop("links")
        for kind, what in notes.items():
            if isinstance(what, int):
                self.counts[kind] += what
            for one in what if isinstance(what, list) else ():
                self.fault(kind, name, one)
        self.counts["pages"] += 1

    def accessible(self, page, name, options=None):
        options = options or {"resultTypes": ["violations"], "rules": dict.fromkeys(NO_RULES, {"enabled": False})}
        if name != ONCE:
            page.evaluate(LIGHTER)
        for broken in self.axe.run(page, {"exclude": [["mjx-container"]]}, options).response["violations"]:
            for node in broken["nodes"]:
                kind = "contrast" if broken["id"] == "color-contrast" else "access"
                self.fault(kind, name, f"{broken['id']}: {node['target'][0]} {node['html'][:80]}")

    def use(self, page, name):
        """Move the sliders by the keyboard, open an answer, and guess."""
        for slider in page.locator("input[type=range]").all():
            box = slider.locator("xpath=ancestor::div[1]")
            before = box.locator("output").text_content()
            slider.focus()
            page.keyboard.press("ArrowRight")
            if box.locator("output").text_content() == before:
                self.fault("slider", name, f"an arrow key leaves it at {before}")
        for answer in page.locator("article details > summary").all()[:1]:
            answer.focus()
            page.keyboard.press("Enter")
            if not answer.evaluate("e => e.parentElement.open"):
                self.fault("access", name, "an answer does not open by the keyboard")
        for form in page.locator("form.guess").all():
            tables = page.locator(f"table:has(caption:has-text('Guess {form.get_attribute('data-guess')}'))")
            form.locator("input").fill("98765")
            form.locator("button").click()
            rows = tables.last.locator("tr").all_text_contents() if tables.count() else []
            if len(rows) != 3 or "98765" not in rows[0] or "☆☆☆" not in rows[2]:
                self.fault("guess", name, f"{form.get_attribute('data-guess')}: {rows}")
            self.counts["guesses"] += 1

        for choice in page.locator(".filter input").all()[1:]:
            choice.check()
            label, count = choice.locator("xpath=..").text_content(), page.locator(CLAIMS).count()
            if page.locator(".claims").count() and f"({count})" not in label:
                self.fault("filter", name, f"{label}: {count}")
            verdict = page.locator(f"[data-verdict='{choice.get_attribute('value')}']")
            for other in page.locator(".small li:visible").filter(has_not=verdict).all_text_contents():
                self.fault("filter", name, f"{label}: {other}")

    def follow(self):
        """Follow every link that stays on the site."""
        for name, links in self.links.items():
            for link in links:
                if not link.startswith(self.base):
                    self.counts["links to other sites"] += link.startswith("http")
                    continue
                self.counts["links"] += 1
                path, _, anchor = link.removeprefix(self.base).partition("#")
                path = re.sub(r"\?.*", "", path) or "index.html"
                if not (self.folder / path).is_file():
                    self.fault("link", name, path)
                elif anchor and path.endswith(".html") and anchor not in self.ids_of(path):
                    self.fault("anchor", name, f"{path}#{anchor}")

    def ids_of(self, path):
        if path not in self.ids:
            self.ids[path] = {*re.findall(r"""\bid=["']([^"']+)["']""", (self.folder / path).read_text("utf-8"))}
        return self.ids[path]

    def shoot(self, folder):
        """Take pictures of ten pages: the first four screens, in the light, in the dark and on a phone."""
        folder.mkdir(parents=True, exist_ok=True)
        for way, size, scheme in (("light", WIDE, "light"), ("dark", WIDE, "dark"), ("phone", PHONE, "light")):
            with self.served(), self.tab(size, scheme) as page:
                for name in SHOTS:
                    self.go(page, f"{name}.html")
                    clip = {"x": 0, "y": 0, "width": size["width"], "height": 4 * size["height"]}
                    page.screenshot(path=folder / f"{name.replace('/', '_')}-{way}.png", full_page=True, clip=clip)

    def search(self):
        """Type what has a known place, and what nothing may be found for."""
        self.name = "search.html"
        with self.served(), self.tab(WIDE, "light") as page:
            for typed, place in (FIRST | dict.fromkeys(NOTHING, "nothing")).items():
                page.goto(f"{self.base}search.html?q={typed}")
                try:
                    found = page.wait_for_function(FOUND, timeout=15_000).json_value().removeprefix(self.base)
                except Late:
                    found = "no answer in 15 seconds"
                if found != place:
                    self.fault("search", self.name, f"{typed} finds {found} first, not {place}")
                self.counts["searches"] += 1


@contextlib.contextmanager
def chromium():
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def pages_of(folder, starts):
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*.html"))
    return sorted(name for name in names if name.startswith(tuple(starts)))


# -- planted faults --------------------------------------------------------------------------------
WORD = "</h1>"                                           # a fault is written behind the first heading
PLANTED = {
    "formula": ("lessons/02_transformer.html", WORD, WORD + r'<div class="math">\[\begin{split}a\tag{1}\end{split}\]</div>'),
    "link": ("lessons/01_autograd.html", WORD, WORD + '<p><a href="nowhere.html">a</a></p>'),
    "anchor": ("lessons/03_full_finetuning.html", WORD, WORD + '<p><a href="GLOSSARY.html#nowhere">a</a></p>'),
    "cut": ("lessons/07_lora.html", WORD, WORD + "<style>.cell_output svg { max-width: none !important }</style>"),
    "description": ("map.html", ' alt="', ' title="'),
    "host": ("index.html", WORD, WORD + '<img src="https://img.shields.io/badge/a-b-blue" alt="a badge">'),
    "answer": ("lessons/09_dylora.html", "<details>", "<details open>"),
    "script": ("lessons/04_adapters.html", WORD, WORD + '<script>throw Error("planted")</script>'),
    "tall": ("figures/rule.html", WORD, WORD + '<div style="height: 12000px"></div>'),
    "markup": ("lessons/06_prefix.html", WORD, WORD + "<p>[a page](b.html)</p>"),
    "search": ("search.html", '<script src="searchindex', '<script>delete Scorer.score</script><script src="searchindex'),
    "contrast": ("lessons/05_prompt_tuning.html", WORD, WORD + '<p style="color: #999; background: #fff">faint</p>'),
}


def planted(folder, browser):
    """Plant one fault of each kind into a copy, on a page of its own; return the kinds that are not found where they are."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch, "html")
        shutil.copytree(folder, copy)
        for name, old, new in PLANTED.values():
            text = (copy / name).read_text("utf-8")
            assert old in text, (name, old)
            (copy / name).write_text(text.replace(old, new, 1), "utf-8")
        names = [name for name, *_ in PLANTED.values()]
        before, after = Site(folder, browser), Site(copy, browser)
        for site in (before, after):
            site.look(names)
            site.search()
    missed = []
    for kind, (name, *_) in PLANTED.items():
        new = [fault[2] for fault in after.faults if fault[:2] == (kind, name) and fault not in before.faults]
        print(f"{kind:12} {name:32} {'found: ' + new[0] if new else 'MISSED'}")
        missed += [] if new else [kind]
    return missed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=PAGES)
    parser.add_argument("--only", nargs="+", default=[""], metavar="START", help="pages whose path begins so")
    parser.add_argument("--planted", action="store_true")
    parser.add_argument("--shots", type=Path, metavar="FOLDER")
    args, start = parser.parse_args(), time.perf_counter()
    with chromium() as browser:
        if args.planted:
            return len(planted(args.folder, browser))
        site = Site(args.folder, browser)
        if args.shots:
            return site.shoot(args.shots)
        site.look(pages_of(args.folder, args.only))
        site.search()
    for kind, name, what in site.faults:
        print(f"{kind:12} {name}: {what}")
    numbers = Counter(kind for kind, *_ in site.faults).items()
    print(", ".join(f"{count:,} {thing}" for thing, count in site.counts.items()), f"{time.perf_counter() - start:.0f} s")
    print("faults:", ", ".join(f"{count} {kind} ({KINDS[kind]})" for kind, count in numbers) or "none")
    return bool(site.faults)


if __name__ == "__main__":
    sys.exit(main())
