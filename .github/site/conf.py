"""Sphinx's settings. `stage.py` copies this file into the source folder."""
from importlib.metadata import files
from pathlib import Path
from shutil import copyfile

from docutils import nodes
from progress import say

project, author, copyright = "tinypeft", "The tinypeft authors", "The tinypeft authors, MIT licence"
extensions = ["myst_nb", "sphinx.ext.mathjax"]
exclude_patterns = ["lessons/assignments/**"]            # to download
nitpicky = True
language = "en"

html_theme, html_title, html_favicon = "furo", "tinypeft", "_static/favicon.svg"
html_extra_path, html_search_scorer = ["404.html"], str(Path(__file__).with_name("scorer.js"))
html_static_path, html_css_files, html_js_files = ["_static"], ["site.css"], ["site.js"]
html_show_sourcelink = html_copy_source = False
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


def without_headings(app, page, template, context, doctree):
    """Take the role of a heading from the captions of the side: they have no level, and stand before the page's title."""
    tree = "furo_navigation_tree"
    context[tree] = context.get(tree, "").replace(' role="heading"', "")


def setup(app):
    script = next(file for file in files("sphinx-mathjax-offline") if file.name == mathjax_path)
    copyfile(script.locate(), Path(app.srcdir, "_static", mathjax_path))
    app.connect("env-before-read-docs", lambda app, env, names: say(f"Sphinx reads {len(names)} sources"))
    app.connect("env-check-consistency", lambda app, env: say(f"Sphinx writes {len(env.found_docs)} pages: a long stage"))
    app.connect("html-collect-pages", lambda app: say("Sphinx copies pictures, and writes the index of the search") or ())
    app.connect("doctree-read", without_split)
    app.connect("html-page-context", without_headings, priority=900)         # after furo's own
