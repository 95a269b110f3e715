"""HTML for notebooks: tables whose every cell is escaped, and drawings."""
from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["captioned", "drawing", "escape", "facts", "table"]

LEFT, RIGHT = "style='text-align:left;white-space:pre-wrap'", "style='text-align:right'"


def table(rows: Iterable[Sequence], head: Sequence[str] | None = None, caption: str | None = None,
          numbers: Sequence[int] = (), foot: str | None = None) -> str:
    """Write rows as an HTML table. numbers: columns aligned to the right. foot: a last line."""
    def line(row, tag):
        cells = (f"<{tag} {RIGHT if i in numbers else LEFT}>{escape(str(value))}</{tag}>"
                 for i, value in enumerate(row))
        return f"<tr>{''.join(cells)}</tr>"
    top = f"<thead>{line(head, 'th')}</thead>" if head else ""
    body = "".join(line(row, "td") for row in rows)
    end = f"<tfoot><tr><td colspan='9' {LEFT}>{escape(str(foot))}</td></tr></tfoot>" if foot else ""
    return f"<table>{_caption(caption)}{top}<tbody>{body}</tbody>{end}</table>"


def facts(pairs: Iterable[tuple], caption: str | None = None) -> str:
    """Write (name, value) pairs as a table. Arrays and text of several lines keep their breaks."""
    def row(name, value):
        text = escape(value)
        if "\n" in value or value[:1] == "[":
            text = f"<pre style='margin:0'>{text}</pre>"
        return f"<tr><th {LEFT}>{escape(name)}</th><td {LEFT}>{text}</td></tr>"
    rows = "".join(row(str(name), str(value)) for name, value in pairs)
    return f"<table>{_caption(caption)}<tbody>{rows}</tbody></table>"


def drawing(svg: str, alt: str = "") -> str:
    """Write an SVG as an HTML image. JupyterLab shows an SVG output in a trusted notebook
    only, and an image in every notebook."""
    return (f"<img alt='{escape(alt)}' style='max-width:100%' "
            f"src='data:image/svg+xml;base64,{b64encode(svg.encode()).decode()}'>")


def captioned(svg: str, text: str) -> str:
    """Write an SVG as an image below a line of text, which also describes it."""
    return f"<code>{escape(text)}</code><br>{drawing(svg, text)}"


def _caption(text):
    if not text:
        return ""
    # The style stands on `code`, which JupyterLab wraps.
    code = f"<code style='white-space:nowrap'>{escape(str(text))}</code>"
    return f"<caption style='text-align:left'>{code}</caption>"
