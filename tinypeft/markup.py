"""HTML for notebooks: tables whose every cell is escaped, and drawings."""
from base64 import b64encode
from html import escape

__all__ = ["drawing", "escape", "facts", "table"]

LEFT, RIGHT = "style='text-align:left;white-space:pre-wrap'", "style='text-align:right'"


def table(rows, head=None, caption=None, numbers=(), foot=None):
    """An HTML table of rows of values. numbers: the columns that are aligned to the right; foot: a line under it."""
    cell = lambda tag, i, value: f"<{tag} {RIGHT if i in numbers else LEFT}>{escape(str(value))}</{tag}>"
    line = lambda row, tag: "<tr>" + "".join(cell(tag, i, v) for i, v in enumerate(row)) + "</tr>"
    return (f"<table>{_caption(caption)}" + (f"<thead>{line(head, 'th')}</thead>" if head else "")
            + "<tbody>" + "".join(line(row, "td") for row in rows) + "</tbody>"
            + (f"<tfoot><tr><td colspan='9' {LEFT}>{escape(str(foot))}</td></tr></tfoot>" if foot else "")
            + "</table>")


def facts(pairs, caption=None):
    """An HTML table of (name, value), one fact a row."""
    shown = lambda text: f"<pre style='margin:0'>{escape(text)}</pre>" if "\n" in text or text[:1] == "[" else escape(text)
    rows = "".join(f"<tr><th {LEFT}>{escape(str(name))}</th><td {LEFT}>{shown(str(value))}</td></tr>" for name, value in pairs)
    return f"<table>{_caption(caption)}<tbody>{rows}</tbody></table>"


def drawing(svg, alt=""):
    """An SVG's text as an image. JupyterLab shows an SVG output only where the notebook is trusted, an image everywhere."""
    return (f"<img alt='{escape(alt)}' style='max-width:100%' "
            f"src='data:image/svg+xml;base64,{b64encode(svg.encode()).decode()}'>")


def _caption(text):
    return f"<caption style='text-align:left;white-space:nowrap'><code>{escape(str(text))}</code></caption>" if text else ""
