"""Where the links of a page lead on the site: to a page, to a picture, or to a copy of a file. Nothing leads elsewhere."""
import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = re.compile(r"^(```+).*?^\1$|(?<!`)`[^`\n]+`(?!`)", re.S | re.M)              # brackets in it are no links
LINK = re.compile(r'(\]\(|\b(?:src|href)=["\'])([^)\s"\']+)')
OUTSIDE = re.compile(r"[a-z]+:|#|\.\./\.\./actions/")
BADGES = re.compile(r"^\[?!\[[^\]]*\]\([^)]*(?:badge)[^)]*\)(?:\]\([^)]*\))?\n", re.M)      # they are for GitHub
MARKS = re.compile(r"<!-- /?[\w-]+ -->")


def place(path):
    """Return where a file of the checkout lies in the source folder: folders that begin with a dot would be left out."""
    return re.sub(r"^\.(github|ci)(?=/)", "project", path)


def page_of(path):
    """Return the file, with the ending .md, of the page that shows a Python file."""
    return place(path).removesuffix(".py") + ".md"


class Links:
    """The links of all pages: `lead` rewrites those of a text, and notes what they need.

    pages: path in the checkout → the file in the source folder whose page shows it. places: (path, anchor) → another path,
    whose page has the anchor. wanted: files and folders that a page links to and that have no page yet. missing: (page, link)
    that leads nowhere.
    """

    def __init__(self, pages, places=()):
        self.pages, self.places, self.wanted, self.missing = dict(pages), dict(places), [], []

    def lead(self, text, here, on=None, ending=None):
        """Rewrite the relative links of a text that stands on the page `here`, a path in the checkout.

        on: the page that the text is put on, if another. ending: of pages, in place of their own.
        """
        text = MARKS.sub("", BADGES.sub("", text))
        def to(match):
            html = ".html" if match[1].startswith("href") else None                # Sphinx leaves HTML as it is
            return match[1] + self.to(match[2], here, on or here, ending or html)
        codes = [match[0] for match in CODE.finditer(text)]
        pieces = [LINK.sub(to, piece) for piece in CODE.sub("\0", text).split("\0")]
        return "".join(piece + code for piece, code in zip(pieces, [*codes, ""], strict=True))

    def to(self, link, here="", on="", ending=None):
        """Return where a link of the page `here` leads to from the page `on`."""
        if OUTSIDE.match(link):
            return link
        path, _, anchor = link.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), path))
        path = self.places.get((path, anchor), path)
        if path not in self.pages and not (ROOT / path).exists():
            self.missing.append((on, link))
            return link
        target = self.target(path)
        if ending:
            target = re.sub(r"\.(md|ipynb)$", ending, target)
        target = posixpath.relpath(target, posixpath.dirname(self.pages.get(on, place(on))) or ".")
        copied = path in self.wanted and target.endswith(".ipynb")               # a notebook that is not a page
        return "path:" * copied + target + (f"#{anchor}" if anchor else "")

    def target(self, path):
        """Return the file of the source folder that stands for a path. A folder's page is its README, or its __init__."""
        if (ROOT / path).is_dir():
            pages = [name for name in ("README.md", "__init__.py") if (ROOT / path / name).exists()]
            path = posixpath.join(path, pages[0] if pages else "")
        if path not in self.pages:
            self.wanted.append(path)
            if path.endswith("/"):
                self.pages[path] = place(path) + "index.md"
            else:
                self.pages[path] = page_of(path) if path.endswith(".py") else place(path)
        return self.pages[path]
