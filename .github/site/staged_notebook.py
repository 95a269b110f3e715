"""A lesson as a page: solutions folded, guesses with a field for the reader's number, descriptions of pictures, links."""
import json
import posixpath
import re

from links import ROOT
from page import CLASSES, files, lesson_of
from repository import commands

CHECK = re.compile(r"tp\.check\(\"")
GUESS = re.compile(r"^guess = tp\.guess\(\"([\w.]+)\", [^,)]+(?:, \"([^\"]*)\")?\)", re.M)
FIELD = """<form class="guess" data-guess="{name}"><label>Your guess{unit}: <input type="number" step="any" required></label>
<button>Keep it</button> <output></output></form>"""


def staged_notebook(path, links, searched=True):
    """Return the notebook at `path`, as JSON, with what the site adds and with its links led. searched: the search has it."""
    notebook = json.loads((ROOT / path).read_text("utf-8"))
    cells = []
    for cell, following in zip(notebook["cells"], [*notebook["cells"][1:], None], strict=True):
        text = "".join(cell["source"])
        cells.append(cell)
        if cell["cell_type"] == "markdown":
            cell["source"] = links.lead(text, path)
            continue
        fold(cell, "solution" if following and CHECK.search("".join(following["source"])) else "code of the picture")
        describe(cell, links, path)
        if match := GUESS.search(text):
            unit = f", in {match[2]}" if match[2] else ""
            cells.append(markdown(FIELD.format(name=match[1], unit=unit), f"{cell['id']}-field"))
    if len(path.split("/")) == 2:
        opening, heading, section = with_lessons(cells[0]["source"]).partition("\n## ")
        work = links.lead(assignment_and_pages(path), "", on=path)
        cells[0]["source"] = f"{opening.rstrip()}\n\n{work}\n{heading}{section}"
    if not searched:
        notebook["metadata"]["nosearch"] = True
    return json.dumps(notebook | {"cells": cells})


def markdown(text, name):
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": text}


def with_lessons(text):
    """Link the numbers of lessons in what a lesson needs, but for those that are in a link."""
    def linked(match):
        lessons = sorted((ROOT / "lessons").glob(f"{match[0]}_*.ipynb"))
        return f"[{match[0]}]({lessons[0].name})" if lessons else match[0]
    needs, link_or_number = r"\*\*What you need\.\*\*.*?(?=\n\n)", r"\[[^]]*\]\([^)]*\)|\b\d\d[a-z]?\b"
    return re.sub(needs, lambda match: re.sub(link_or_number, linked, match[0]), text, flags=re.S)


def assignment_and_pages(path):
    """Write where a lesson's assignment is, and which pages have the papers and the code of its methods."""
    assignment = posixpath.join("lessons", "assignments", posixpath.basename(path))
    pages = [f"[{CLASSES[name].__name__}]({file})" for file, names in files().items() for name in names
             if lesson_of(name) == path]
    read = f"\n\n**Papers and code, side by side.** {', '.join(pages)}." if pages else ""
    return ("**To work on it.** The assignment is the same lesson with stubs for your code, and checks that say what is "
            f"wrong. It runs in JupyterLab on your computer:\n\n{commands(f'.venv/bin/jupyter lab {assignment}')}\n\n"
            f"If you have installed tinypeft, the last line will do; or [download the assignment]({assignment}) alone. "
            f"The outputs on this page are those of the authors' run: \"✔ right\" is said of their solutions.{read}")


def fold(cell, kind):
    """Hide the code of an exercise's solution, and of a cell that draws."""
    metadata = cell["metadata"]
    if kind == "solution":
        metadata["tags"] = [*metadata.get("tags", []), "hide-input"]
    metadata["mystnb"] = {"code_prompt_show": f"Show the {kind}", "code_prompt_hide": f"Hide the {kind}"}


def of_the_authors(output):
    """Say in the outputs of checks and guesses whose they are: the reader has done nothing yet."""
    output = re.sub(r"(✔ [\w.]+</b>) right", r"\1 the authors' solution is right", output)
    return output.replace(">your guess<", ">the authors' guess<")


def describe(cell, links, path):
    """Hand on the descriptions of pictures, which the notebook's format keeps beside them, and lead links in outputs."""
    for output in cell["outputs"]:
        data, description = output.get("data", {}), output.get("metadata", {}).get("image/png", {}).get("alt")
        if description:
            cell["metadata"]["mystnb"]["image"] = {"alt": description}
        for kind in {"text/markdown", "text/html"} & data.keys():
            data[kind] = links.lead(of_the_authors("".join(data[kind])), path, ending=".html")
