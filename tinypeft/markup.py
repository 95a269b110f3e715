"""HTML for notebooks: tables whose every cell is escaped."""
from html import escape

__all__ = ["escape", "table"]


def table(rows, head=None, caption=None, numbers=()):
    """An HTML table of rows of values. numbers: the columns that are aligned to the right."""
    side = lambda i: f"style='text-align:{'right' if i in numbers else 'left'}'"
    line = lambda row, tag: "<tr>" + "".join(f"<{tag} {side(i)}>{escape(str(v))}</{tag}>" for i, v in enumerate(row)) + "</tr>"
    return ("<table>" + (f"<caption><code>{escape(str(caption))}</code></caption>" if caption else "")
            + (f"<thead>{line(head, 'th')}</thead>" if head else "")
            + "<tbody>" + "".join(line(row, "td") for row in rows) + "</tbody></table>")
