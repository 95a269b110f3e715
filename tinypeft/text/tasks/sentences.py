"""First sentences of docstrings, which two tasks use as examples."""
import re
from collections.abc import Callable, Iterable
from dataclasses import replace

from ..docstrings import Document

__all__ = ["first_sentences"]

_HEADING = re.compile(r"^\s*([-=~*^#])\1{2,}\s*$", re.MULTILINE)
_END = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!etc\.)\s+(?=[A-Z`*\"'])")


def first_sentences(*parts: Iterable[Document],
                    edit: Callable[[str], str] = str) -> list[list[Document]]:
    """Replace each document's text by its first sentence, on one line and passed through `edit`.

    A document that begins with a heading or a directive, or whose sentence has fewer than three
    words, is left out. A sentence (case ignored) is kept at its first occurrence in all parts only,
    so that no test sentence was trained on."""
    seen, kept = set(), []
    for documents in parts:
        kept.append([])
        for document in documents:
            sentence = edit(_first(document.text))
            if len(sentence.split()) >= 3 and sentence.lower() not in seen:
                seen.add(sentence.lower())
                kept[-1].append(replace(document, text=sentence))
    return kept


def _first(text):
    paragraph = text.split("\n\n")[0]
    if _HEADING.search(paragraph) or paragraph.startswith(".."): return ""
    return _END.split(" ".join(paragraph.split()), maxsplit=1)[0]
