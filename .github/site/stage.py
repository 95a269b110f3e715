"""The checkout as a source folder for Sphinx: pages, notebooks, pictures, and a page for each file that a page links to.

    links = stage("build/site/source")
    links.missing                        # (page, link) of what leads nowhere

Everything on the site stands elsewhere in the checkout, but for the front page's words and a page on JupyterLite.
"""
import functools
import re
import shutil
from pathlib import Path

import annotate
from glossary import GLOSSARY, with_anchors, with_words
from links import ROOT, Links, page_of, place
from map_page import map_page
from page import HEAD, METHODS, SCHEMES, STUDY, Page, files, judgements, raw, read, title_of
from progress import say
from repository import address, get, linked
from staged_notebook import staged_notebook
from study_pages import PAGES, path_of, places, study_pages

HERE = Path(__file__).parent
NOSEARCH = "nosearch: true\n"                            # a page that the search leaves out
ORPHAN = f"orphan: true\n{NOSEARCH}"                     # a page in no list of pages
TEMPLATE = ".github/site/front_page.txt"
FROM_README = {"what": r"^(tinypeft is .*?)\n\n", "picture": r"(<img [^>]*>)", "snippet": r"(^```python.*?^```)",
               "claims": r"<!-- claims -->(.*?)<!--", "commands": r"^```bash\n(.*?)\n```"}
FROM_STUDY = {"sentence": r"\]\(compare\.svg\)\n\n\*\*(.*?)\*\*", "caption": r"\]\(compare\.svg\)\n\n\*\*.*?\*\* (.*?)\n\n"}
EXAMPLE = "lessons/projects/example/"
# Listed pages that the search leaves out, too: how it is tested, what is for authors, and a project that is solved.
UNSEARCHED = "tests/README.md", ".github/CHANGELOG.md", "lessons/src/README.md", EXAMPLE
FRONT, MAP = "index.md", "map.md"
CONTENTS = {"Learn": ["lessons/README.md"],
            "Read the maths": [MAP, "tinypeft/peft/README.md", "tinypeft/quant/README.md", STUDY],
            "Use it": ["tinypeft/commands/README.md", "tinypeft/interop/README.md", "README.md"]}
NAMES = {"README.md": "All that it does", "tinypeft/peft/README.md": "All methods in a table",
         "tinypeft/quant/README.md": "All schemes in a table"}     # where a page's title says too little in the list of pages


def stage(folder):
    """Write the source folder anew; return the `Links`, which know what is missing."""
    say("judges the study's claims")
    judgements()
    say(f"writes {len(notebooks())} notebooks and {len(pages())} pages of the checkout")
    folder = Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    study = study_pages()
    links = Links({path: place(path) for path in [*pages(), *notebooks()]} | {path: page_of(path) for path in files()}
                  | {path: path for path in (FRONT, MAP, *study)}, places(study))

    def write(path, text):
        file = folder / links.pages[path]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")

    for path in notebooks():
        write(path, staged_notebook(path, links, searched=not path.startswith(UNSEARCHED)))
    texts = {path: (path, page_text(path)) for path in pages()} | {path: (STUDY, text) for path, text in study.items()}
    for path, (here, text) in texts.items():
        head = f"---\n{NOSEARCH}---\n\n" if path.startswith(UNSEARCHED) else ""
        text = head + links.lead(with_words(text, here), here, on=path)
        write(path, f"{text}\n\n{toctree(below()[path], links)}" if path in below() else text)
    say(f"writes {len(files())} pages of methods and schemes, paper beside code")
    for path in files():
        write(path, Page(path, links).text)
    write(MAP, map_page(links))
    write(FRONT, front_page(links))
    say("writes a page for each file that a page links to: a long stage")
    for path in links.wanted:                            # it grows: a folder's page wants its files
        if path.endswith("/"):
            write(path, listing(path, links))
        elif path.endswith(".py"):
            write(path, code_page(path))
        else:
            (folder / place(path)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, folder / place(path))
    shutil.copytree(HERE / "static", folder / "_static")
    for name in ("conf.py", "404.html", "scorer.js"):
        shutil.copyfile(HERE / name, folder / name)
    return links


# -- what there is ---------------------------------------------------------------------------------
def pages():
    """Return the paths of the checkout's Markdown pages."""
    files = [*ROOT.glob("*.md"), *(ROOT / ".github").glob("*.md"), HERE / "jupyterlite.md"]
    files += [path for folder in ("lessons", "figures", "tests", "tinypeft") for path in (ROOT / folder).rglob("*.md")]
    return sorted(path.relative_to(ROOT).as_posix() for path in files)


def notebooks():
    """Return the paths of the lessons and projects, in the order of the course."""
    folders = [sorted((ROOT / "lessons" / folder).glob("*.ipynb")) for folder in ("", "projects", "projects/example")]
    return [path.relative_to(ROOT).as_posix() for path in sum(folders, [])]


def page_text(path):
    """Return a Markdown page with what the site adds: the glossary's anchors, and how to get the checkout in README."""
    text = read(path)
    if path == GLOSSARY:
        return with_anchors(text)
    if path == "README.md":
        return text.replace("```bash\n", f"Get it first:\n\n```bash\n{get()}\n```\n\nThe two commands:\n\n```bash\n", 1)
    return text


# -- pages that the site makes ---------------------------------------------------------------------
def front_page(links):
    """Write the front page from README and the study: what it is, the picture, the snippet, the claims. Last, the contents."""
    excerpts = {name: re.search(pattern, read(page), re.M | re.S).group(1)
                for page, patterns in (("README.md", FROM_README), (STUDY, FROM_STUDY)) for name, pattern in patterns.items()}
    main_job, tests = excerpts.pop("commands").split("\n")
    text = read(TEMPLATE).format(**excerpts, methods=len(METHODS), schemes=len(SCHEMES), repository=linked(), get=get(),
                                 main_job=main_job, tests=tests)
    trees = [toctree(paths, links, caption) for caption, paths in CONTENTS.items()]
    if address():
        trees.append(toctree([], links, "The repository", f"{address().split('//')[-1]} <{address()}>"))
    return "\n\n".join([links.lead(text, FRONT), *trees])


@functools.cache
def below():
    """Return path → the paths of the pages that the list of pages has below it."""
    kinds = [[path for path, names in files().items() if names[0] in classes] for classes in (METHODS, SCHEMES)]
    lists = {"lessons/README.md": [*notebooks(), "lessons/GLOSSARY.md", "lessons/INSTRUCTORS.md"],
             STUDY: [*map(path_of, PAGES)],
             "tinypeft/peft/README.md": kinds[0], "tinypeft/quant/README.md": [*kinds[1], "tinypeft/quant/K_QUANTS.md"]}
    listed = {path for paths in (*CONTENTS.values(), *lists.values()) for path in paths}
    return lists | {"README.md": [path for path in pages() if path not in listed]}


def toctree(paths, links, caption="", last=""):
    """Write a list of pages. The title of an example says that it is one. last: an entry of another kind."""
    titles = {path: f"{title_of(path)}: an example" for path in paths if path.startswith(EXAMPLE)}
    titles |= NAMES
    entries = []
    for path in paths:
        name = "/" + re.sub(r"\.(md|ipynb)$", "", links.pages[path])
        entries.append(f"{titles[path]} <{name}>" if path in titles else name)
    option = f":caption: {caption}\n" if caption else ""
    entries = "\n".join([*entries, last]).rstrip()
    return f"```{{toctree}}\n{option}:hidden:\n\n{entries}\n```\n"


def code_page(path):
    """Write the page of any other Python file: its docstring beside its code."""
    source = read(path)
    docstring, *_ = annotate.pieces(source)
    return f"{HEAD.format(ORPHAN)}\n\n# {path}\n\n{raw(annotate.side_by_side(docstring, source))}\n"


def listing(path, links):
    """Write the page of a folder that has none: its files."""
    names = [file.relative_to(ROOT).as_posix() for file in sorted((ROOT / path).iterdir()) if file.is_file()]
    lines = [f"* [{name.removeprefix(path)}]({name})" for name in names]
    return f"---\n{ORPHAN}---\n\n# {path}\n\n" + links.lead("\n".join(lines), "", on=path) + "\n"
