"""The first sentence of a docstring, which says what the thing is: the examples of two tasks."""
import re
from dataclasses import replace

__all__ = ["first_sentences"]

_HEADING = re.compile(r"^\s*([-=~*^#])\1{2,}\s*$", re.MULTILINE)
_END = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!etc\.)\s+(?=[A-Z`*\"'])")


def first_sentences(*parts, edit=str):
    """Lists of documents → as many lists of `Document`s whose text is their first sentence, on one line, `edit`ed.

    Documents without one (they begin with a heading or a directive, or have fewer than three words) are left out. A
    sentence (case ignored) is kept where it occurs first and dropped everywhere after, within a part and across parts:
    what is tested was not trained on, word for word."""
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
    if _HEADING.search(paragraph) or paragraph.startswith(".."):
        return ""
    return _END.split(" ".join(paragraph.split()), maxsplit=1)[0]
