"""Sphinx's settings. `stage.py` copies this file into the source folder."""
import re
from importlib.metadata import distribution
from pathlib import Path
from shutil import copyfile

from docutils import nodes
from glossary import GLOSSARY, anchor, entries
from page import ABOUT, CLASSES, files
from progress import say
from sphinx.addnodes import index

project, author, copyright = "tinypeft", "The tinypeft authors", "The tinypeft authors, MIT licence"
extensions = ["myst_nb", "sphinx.ext.mathjax"]
exclude_patterns = ["lessons/assignments/**"]            # to download
nitpicky = True
language = "en"

html_theme, html_title, html_favicon = "furo", "tinypeft", "_static/favicon.svg"
html_extra_path, html_search_scorer = ["404.html"], str(Path(__file__).with_name("scorer.js"))
html_static_path, html_css_files, html_js_files = ["_static"], ["site.css"], ["site.js"]
html_show_sourcelink = html_copy_source = html_use_index = False
pygments_style, pygments_dark_style = "a11y-high-contrast-light", "github-dark"
suppress_warnings = ["misc.highlighting_failure"]        # outputs and equations in blocks of code

nb_execution_mode, nb_merge_streams = "off", True        # the checkout holds the notebooks with their outputs
myst_enable_extensions = ["dollarmath", "amsmath", "html_image"]
myst_heading_anchors, myst_dmath_double_inline = 4, True
mathjax_path = "tex-svg.js"


def without_split(app, doctree):
    """Take away Sphinx's `split` around a formula of several lines: inside it MathJax refuses a number."""
    for node in doctree.findall(nodes.math_block):
        node["no-wrap"] = node["nowrap"] = True
        node.children = [nodes.Text(rf"\[{node.astext()}\]")]


def with_index(app, doctree):
    """Let the search lead from a word of the glossary to its line, and from a method's names to its page."""
    names = files().get(f"{app.env.docname}.py", ())
    places = [(word, "") for name in names for word in (CLASSES[name].__name__, ABOUT[name].title)]
    if GLOSSARY == f"{app.env.docname}.md":
        places = [(word, anchor(line)) for line in entries() for word in re.findall(r"[^(),]+", line)]
    doctree.append(index(entries=[("single", word.strip(), place, "main", None) for word, place in places]))


def without_solutions(app, doctree):
    """Keep what is folded out of the search: solutions of exercises, answers, the code of pictures, details of claims."""
    for cell in doctree.findall(nodes.container):
        if "tag_hide-input" in cell["classes"]:
            cell[0]["classes"].append("no-search")
    for fold in doctree.findall(nodes.raw):
        if fold.astext().startswith("<details"):
            for node in fold.findall(include_self=False, descend=False, siblings=True):
                if node.astext().startswith("</details"):
                    break
                node["classes"].append("no-search")


def without_headings(app, page, template, context, doctree):
    """Take the role of a heading from the captions of the side: they have no level, and stand before the page's title."""
    tree = "furo_navigation_tree"
    context[tree] = context.get(tree, "").replace(' role="heading"', "")


def setup(app):
    script = next(file for file in distribution("sphinx-mathjax-offline").files if file.name == mathjax_path)
    copyfile(script.locate(), Path(app.srcdir, "_static", mathjax_path))
    app.connect("env-before-read-docs", lambda app, env, names: say(f"Sphinx reads {len(names)} sources"))
    app.connect("env-check-consistency", lambda app, env: say(f"Sphinx writes {len(env.found_docs)} pages: a long stage"))
    app.connect("html-collect-pages", lambda app: say("Sphinx copies pictures, and writes the index of the search") or ())
    for change in (without_split, with_index, without_solutions):
        app.connect("doctree-read", change)
    app.connect("html-page-context", without_headings, priority=900)         # after furo's own
