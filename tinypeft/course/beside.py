"""Texts side by side: what a model wrote before it was fine-tuned, and after."""
from collections.abc import Mapping
from html import escape
from textwrap import indent

__all__ = ["Beside", "beside"]

STYLE = "text-align:left;vertical-align:top;white-space:pre-wrap"


def beside(texts: Mapping[str, str]) -> "Beside":
    """Texts in columns, each under its name; as a cell's last line it is displayed.

        beside({f"before, {a:.2f} nats": old, f"after, {b:.2f} nats": new})

    Outside a notebook they stand below one another. Everything in a text is shown as it is.
    """
    return Beside(dict(texts))


class Beside:
    """Names and texts. A notebook shows a table of one row."""

    def __init__(self, texts: dict[str, str]):
        self.texts = texts

    def _repr_html_(self):
        width = 100 // max(len(self.texts), 1)
        cell = lambda tag, text: f"<{tag} style='{STYLE};width:{width}%'>{escape(text)}</{tag}>"
        head = "".join(cell("th", name) for name in self.texts)
        body = "".join(cell("td", text) for text in self.texts.values())
        return f"<table style='width:100%'><tr>{head}</tr><tr>{body}</tr></table>"

    def __repr__(self):
        return "\n".join(f"{name}:\n{indent(text, '    ')}" for name, text in self.texts.items())
