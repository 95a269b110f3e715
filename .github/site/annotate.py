"""A Python file as a reader wants it: the words of its docstring on the left, its code on the right. All of it is HTML."""
import ast
import functools
import re
import unicodedata
from html import escape

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

DIFFERENCES = "Where implementations differ"
TABLES = "paper", "symbol"                               # the first word of a table of symbols
PLAIN = "plain"                                          # what the anchors of plain forms begin with


# -- a docstring -----------------------------------------------------------------------------------
def split(docstring):
    """Return (what stands before the differences between implementations, these without their heading) of a docstring."""
    before, _, differences = docstring.partition(f"\n{DIFFERENCES}")
    return before, re.sub(r"\A[.:]\s", "", differences)


def prose(docstring, source="", plain=None):
    """Write a docstring as HTML: paragraphs, bullets, equations and tables of symbols, which look for names in the source.

    Below the last equation before a table stands where the code computes with these symbols, its plain form first. plain: the
    file of plain forms, and the functions of it that count.
    """
    parts = list(blocks(docstring))
    html = [block(kind, lines, source) for kind, lines in parts]
    places = [(name, PLAIN, lines) for name, lines in marked_in(docstring, *plain).items()] if plain else []
    places += [(name, "L", lines) for name, lines in marked_in(docstring, source, functions(source)).items()]
    equations = [i for i, text in enumerate(html) if text.startswith("<pre class='equation")]
    tables = [i for i, text in enumerate(html) if "class='symbols'" in text]
    if places and equations:
        last = max([i for i in equations if i < tables[0]], default=equations[0])
        html[last] += jumps(places)
    return "\n".join(html)


def marked_in(docstring, source, names):
    """Return name → the numbers of its marked lines, of those functions and classes that have any."""
    lines = marked_lines(docstring, source)
    found = {}
    for name in names:
        first, text = functions(source)[name]
        found[name] = [line for line in lines if first <= line <= first + text.count("\n")]
    return {name: lines for name, lines in found.items() if lines}


def jumps(places):
    """Write links to the marked lines. places: (the function or class, the prefix of the anchors, the numbers)."""
    items = ""
    for name, prefix, lines in places:
        links = ", ".join(f"<a href='#{prefix}-{line}'>{line}</a>" for line in lines)
        owner = f"plain.{name}" if prefix == PLAIN else name
        items += f"<li><code>{owner}</code>: line{'s' * (len(lines) > 1)} {links}</li>"
    return ("<div class='lines'>A bar at the left marks the lines that compute the equation: they use two or more symbols of "
            f"the table below, or what was made of these, or are all of a function that it names.<ul>{items}</ul></div>")


def blocks(docstring):
    """Yield (kind, lines) of each run of lines: "text", "indented" by four blanks, or "bullet"."""
    for paragraph in re.split(r"\n\s*\n", docstring.strip("\n")):
        kind, lines = None, []
        for line in paragraph.split("\n"):
            new = kind_of(line, kind)
            if lines and (new != kind or line.startswith(" * ")):
                yield kind, lines
                lines = []
            kind = new
            lines.append(line)
        yield kind, lines


def kind_of(line, before):
    """Return the kind of a line. A bullet goes on over lines that are indented."""
    if line.startswith(" * "):
        return "bullet"
    if line.startswith("    "):
        return "bullet" if before == "bullet" else "indented"
    return "text"


def block(kind, lines, source):
    if kind == "text":
        return f"<p>{inline(' '.join(lines))}</p>"
    if kind == "bullet":
        return f"<ul><li>{inline(' '.join(line.removeprefix(' * ').strip() for line in lines))}</li></ul>"
    if lines[0].split()[0] in TABLES:
        return symbols(lines, names_in(source))
    equation = "".join(f"<span>{terms(line.removeprefix('    '))}\n</span>" for line in lines)
    kind = "equation whole" if len(lines) > 1 else "equation"        # lines below each other are aligned: they do not break
    return f"<pre class='{kind}'>{equation}</pre>"


def terms(line):
    """Escape a line of an equation. What follows two blanks or more is kept together where the line is too long (site.css)."""
    return re.sub(r"(?<=\S)(\s{2,})(\S+(?:\s\S+)*)", r"\1<span>\2</span>", escape(line))


def inline(text):
    """Escape text; backticks become code, and numbers of papers become links."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"<a href='https://arxiv.org/abs/\1'>arXiv \1</a>", text)


def rows_of(lines):
    """Cut a table of symbols into rows of cells, at two blanks or more. A line with an empty first cell goes on with a row."""
    starts = [match.start() for match in re.finditer(r"(?<!\S)(?<!\S )\S", lines[0])]
    rows = []
    for line in lines:
        indent = len(line) - len(line.lstrip())
        skipped = max(i for i, start in enumerate(starts) if start <= max(indent, starts[0]))
        cells = [""] * skipped + re.split(r"\s{2,}", line.strip(), maxsplit=len(starts) - skipped - 1)
        cells += [""] * (len(starts) - len(cells))
        if skipped:
            rows[-1] = [f"{old} {new}".strip() for old, new in zip(rows[-1], cells, strict=True)]
        else:
            rows.append(cells)
    return rows


def symbols(lines, names):
    """Write a table of symbols. A name of the code is a button, which marks the name in the code (site.js)."""
    head, *rows = rows_of(lines)
    top = "".join(f"<th scope='col'>{escape(cell)}</th>" for cell in head)
    body = ""
    for paper, here, *rest in ([cell.replace("`", "") for cell in row] for row in rows):
        cells = [re.sub(r"[^\W\d]\w*", lambda match: button(match[0], names), escape(here, quote=False)), *map(escape, rest)]
        body += f"<tr><th scope='row'>{escape(paper)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    pressed = "<caption>Press a framed name to mark it in the code.</caption>" if "<button" in body else ""
    return (f"<div class='scroll'><table class='symbols'>{pressed}<thead><tr>{top}</tr></thead>"
            f"<tbody>{body}</tbody></table></div>")


def button(word, names):
    return f"<button type='button' class='find'>{word}</button>" if word in names else word


# -- code ------------------------------------------------------------------------------------------
def code(source, first=1, marked=(), prefix="L"):
    """Write code as HTML, each line with its number and an anchor such as L-12. first: the number of its first line.

    marked: the numbers of lines that get a bar. prefix: of the anchors.
    """
    start = f"counter-reset: line {first - 1}"
    style = HtmlFormatter(linespans=prefix, linenostart=first, cssclass="highlight numbered", prestyles=start)
    html = highlight(source, PythonLexer(stripnl=False), style)
    for line in marked:
        html = html.replace(f'<span id="{prefix}-{line}">', f'<span class="symbolic" id="{prefix}-{line}">')
    return html


parsed = functools.cache(ast.parse)
SIGNS = ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.MatMult


def pieces(source):
    """Cut a file into (docstring, imports, the rest), the last two as (number of the first line, text)."""
    tree, lines = parsed(source), source.split("\n")
    docstring, imports = ast.get_docstring(tree) or "", 0
    start = tree.body[0].end_lineno if docstring else 0
    for node in tree.body[bool(docstring):]:
        if not isinstance(node, ast.Import | ast.ImportFrom):
            break
        imports = node.end_lineno
    middle = max(start, imports)
    return docstring, trimmed(lines[:middle], start), trimmed(lines, middle)


def trimmed(lines, start):
    """Return (number of the first line, text) of the lines from `start` on, without empty ones at the ends."""
    while start < len(lines) and not lines[start].strip():
        start += 1
    return start + 1, "\n".join(lines[start:]).rstrip() + "\n"


def functions(source):
    """Return name → (its first line, its text) of the functions and classes of a file."""
    nodes = [node for node in parsed(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    lines = source.split("\n")
    return {node.name: (node.lineno, "\n".join(lines[node.lineno - 1:node.end_lineno])) for node in nodes}


def names_in(source):
    """Return the names that code gives: of variables, arguments, attributes, functions and classes."""
    fields = "id", "arg", "attr", "name"
    return {getattr(node, field, None) for node in ast.walk(parsed(source)) for field in fields} - {None}


def symbols_of(docstring, source):
    """Return the names that the docstring's tables of symbols give and that stand in the code. There W₀ is W0."""
    tables = [lines for kind, lines in blocks(docstring) if kind == "indented" and lines[0].split()[0] in TABLES]
    words = {word for lines in tables for paper, here, *_ in rows_of(lines)[1:]
             for word in re.findall(r"[^\W\d]\w*", unicodedata.normalize("NFKC", f"{paper} {here}"))}
    return words & names_in(source)


def marked_lines(docstring, source):
    """Return the numbers of the lines that calculate with two or more symbols of the docstring's tables, in order.

    What such a line gives a name to is a symbol, too, to the end of its function. Of a function that the docstring names, as in
    norm(), each statement counts.
    """
    symbols, lines = symbols_of(docstring, source), set()
    for scope in scopes(parsed(source)):
        known = set(symbols)
        for node in statements(scope):
            names = {getattr(part, field, None) for part in ast.walk(node) for field in ("id", "attr")}
            if calculates(node.value) and len(names & known) > 1 or re.search(rf"\b{scope.name}\(\)", docstring):
                lines.add(node.lineno)
                known |= {target.id for target in getattr(node, "targets", ()) if isinstance(target, ast.Name)}
    return sorted(lines)


def scopes(tree):
    """Yield the functions of a file that stand in no other function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            yield node
        else:
            yield from scopes(node)


def statements(function):
    """Return the statements of a function that give a value, in their order."""
    kinds = ast.Assign | ast.AugAssign | ast.Return
    nodes = [node for node in ast.walk(function) if isinstance(node, kinds) and node.value]
    return sorted(nodes, key=lambda node: node.lineno)


def calculates(value):
    """Return whether an expression has a sum, difference, product, quotient or power, or a linear map."""
    return any(isinstance(getattr(node, "op", None), SIGNS) or getattr(node, "attr", None) == "linear"
               for node in ast.walk(value))


def side_by_side(docstring, source, name="", above="", plain=None):
    """Write a docstring beside the code of its file, whose imports are folded. name, above: HTML that stands over the code.

    plain: as in `prose`.
    """
    _, (top, imports), (first, rest) = pieces(source)
    side = f"<div class='words'>{prose(docstring, source, plain)}</div>" if docstring else ""
    folded = f"<summary>Imports</summary>{code(imports, top)}" if imports.strip() else ""
    folded = folded and f"<details class='imports'>{folded}</details>"
    listing = code(rest, first, marked_lines(docstring, source))
    return f"<div class='annotated'>{side}<div class='code'>{above}{name}{folded}{listing}</div></div>"
