"""HTML for notebooks: tables whose every cell is escaped, and drawings."""
from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["drawing", "escape", "facts", "table"]

LEFT, RIGHT = "style='text-align:left;white-space:pre-wrap'", "style='text-align:right'"


def table(rows: Iterable[Sequence], head: Sequence[str] | None = None, caption: str | None = None,
          numbers: Sequence[int] = (), foot: str | None = None) -> str:
    """An HTML table of rows of values. numbers: columns aligned to the right. foot: a last line."""
    def line(row, tag):
        styles = (RIGHT if i in numbers else LEFT for i in range(len(row)))
        cells = (f"<{tag} {s}>{escape(str(v))}</{tag}>" for s, v in zip(styles, row, strict=True))
        return f"<tr>{''.join(cells)}</tr>"
    return (f"<table>{_caption(caption)}" + (f"<thead>{line(head, 'th')}</thead>" if head else "")
            + "<tbody>" + "".join(line(row, "td") for row in rows) + "</tbody>"
            + (f"<tfoot><tr><td colspan='9' {LEFT}>{escape(str(foot))}</td></tr></tfoot>" if foot
               else "") + "</table>")


def facts(pairs: Iterable[tuple], caption: str | None = None) -> str:
    """An HTML table of (name, value) pairs, one a row. Arrays and text of several lines keep their
    line breaks."""
    def row(name, value):
        text = escape(value)
        if "\n" in value or value[:1] == "[": text = f"<pre style='margin:0'>{text}</pre>"
        return f"<tr><th {LEFT}>{escape(name)}</th><td {LEFT}>{text}</td></tr>"
    rows = "".join(row(str(name), str(value)) for name, value in pairs)
    return f"<table>{_caption(caption)}<tbody>{rows}</tbody></table>"


def drawing(svg: str, alt: str = "") -> str:
    """The text of an SVG as an HTML image. JupyterLab shows an SVG output in a trusted notebook
    only, and an image in every notebook."""
    return (f"<img alt='{escape(alt)}' style='max-width:100%' "
            f"src='data:image/svg+xml;base64,{b64encode(svg.encode()).decode()}'>")


def _caption(text):
    if not text: return ""
    style = "text-align:left;white-space:nowrap"
    return f"<caption style='{style}'><code>{escape(str(text))}</code></caption>"
