"""Texts side by side: what a model wrote before it was fine-tuned, and after."""
from collections.abc import Mapping, Sequence
from html import escape
from textwrap import indent

__all__ = ["Beside", "beside"]

STYLE = "text-align:left;vertical-align:top;white-space:pre-wrap;overflow-wrap:anywhere"


def beside(texts: Mapping[str, str | Sequence[str]]) -> "Beside":
    """Texts in columns, each under its name; as a cell's last line it is displayed.

        beside({f"before, {a:.2f} nats": old, f"after, {b:.2f} nats": new})

    A list of texts has a row for each; all lists have the same length. Outside a notebook the texts
    stand below one another. Everything in a text is shown as it is.
    """
    columns = {name: [text] if isinstance(text, str) else list(text)
               for name, text in texts.items()}
    if len({len(column) for column in columns.values()}) > 1:
        raise ValueError("beside: expected as many texts in each column, got "
                         f"{', '.join(f'{len(c)} for {n!r}' for n, c in columns.items())}")
    return Beside(columns)


class Beside:
    """Names, and a column of texts for each. A notebook shows a table."""

    def __init__(self, columns: dict[str, list[str]]):
        self.columns = columns

    def _repr_html_(self):
        width = 100 // max(len(self.columns), 1)
        cell = lambda tag, text: f"<{tag} style='{STYLE};width:{width}%'>{escape(text)}</{tag}>"
        rows = ["".join(cell("th", name) for name in self.columns)]
        for row in zip(*self.columns.values(), strict=True):
            rows.append("".join(cell("td", text) for text in row))
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table style='width:100%;table-layout:fixed'>{body}</table>"

    def __repr__(self):
        return "\n".join(f"{name}:\n" + indent("\n\n".join(column), "    ")
                         for name, column in self.columns.items())
