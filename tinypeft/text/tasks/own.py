"""Tasks from one's own files: text to continue, rows with a label, and prompts with an answer.

    task = tp.tasks.text("notes/", model)                    # Markdown or plain text, or folders
    task = tp.tasks.labelled("reviews.csv", model)           # columns text and label
    task = tp.tasks.pairs("answers.jsonl", model)            # prompt and answer, or messages

In place of a file, `labelled` and `pairs` take a list of rows, or columns, a dict of lists or a
data frame; and `text` a dict of texts, or of lists of texts.
Each is split into train, validation and test by `held_out.py`, near-duplicates on one side. Rows
that repeat another are left out, and so are repeated paragraphs of a text. `task.notes` says what
there is, and what needs a look, with the numbers of lines. The task's `sha256` is that of the
files.

A file of text is a document. One that holds more than a twentieth of all text is cut into documents
of at most half of that: at Markdown headings, where a part is still longer at blank lines, then at
line ends, sentences and words. Neighbours that fit together stay together. The parts of one file
may then stand on different sides. They share its subject and its style, so the test says how well
the model continues this text, and not how well it would continue another author's.
"""
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...common.wording import brief, counted
from ...engine.nn import Module
from ...files import naming
from ..chat import known_family, turns_of
from ..corpus import deduplicate
from ..tokenizer import Tokenizer
from . import facts
from .answering import Answering, plain
from .classification import Classification
from .held_out import check_shares, parts
from .language_modelling import LanguageModelling
from .own_files import Paths, Rows, Table, checked, read_texts, table_of
from .task import SPLITS, context_of, tokenizer_of

__all__ = ["PAIRS", "cut", "labelled", "pairs", "text"]

PAIRS = (("prompt", "answer"), ("prompt", "completion"), ("instruction", "output"),
         ("question", "answer"), ("messages",))
LARGEST = 20                                                  # a document is a 20th of all at most
SHORTEST = 16                                                 # tokens of a window
# Where a long text is cut: before headings; after blank lines, line ends, sentences, words.
PLACES = r"(?m)(?=^#{1,6} )", r"(?<=\n\n)", r"(?<=\n)", r"(?<=[.!?] )", r"(?<= )"
Shares = tuple[float, float]


@dataclass(frozen=True)
class Passage:
    """A document that is only text."""
    text: str

    def __str__(self): return f"{self.text}\n"


# -- text ------------------------------------------------------------------------------------------
def text(paths: Paths, model: Module | Tokenizer | None = None, context: int | None = None, *,
         held_out: Shares = (0.1, 0.1), seed: int = 0,
         encoding: str = "utf-8") -> LanguageModelling:
    """Make the task of language modelling on files of text, and text files in folders.

    paths: of files and folders, or a dict of texts in memory, name → text or list of texts.
    model: a model or PeftModel with a tokenizer, or a tokenizer; None means the shipped base's.
    context: tokens per window; by default 128, or less if the model's context or a part of the text
    is short. held_out: the shares of validation and test, by length; (0, 1) makes everything the
    test. seed: another one draws other parts. Raises FileNotFoundError, and ValueError for files
    that are not text, too long (20 MB) or too short."""
    check_shares(held_out)
    read = read_texts(paths, encoding)
    files, tokenizer, name = read.texts, tokenizer_of(model), _name(paths)
    most = sum(len(text) for _, text in files) // LARGEST
    is_long = lambda text: len(text) > most and held_out[1] < 1
    n_long = sum(is_long(text) for _, text in files)
    pieces = (piece for _, text in files
              for piece in (cut(text, most // 2) if is_long(text) else [text]))
    documents = [Passage(piece.strip("\n")) for piece in pieces if piece.strip()]
    split = _split([(d.text,) for d in documents], held_out, seed,
                   weights=[len(d.text) for d in documents])
    seen = set()
    kept = {s: deduplicate([documents[i] for i in rows], seen) for s, rows in split.items()}
    streams = {s: tokenizer.encode_documents(part) for s, part in kept.items() if part}
    _nothing_empty(name, streams, held_out, "documents",
                   "give more text, which does not repeat itself")
    if context is None:
        context = min(context_of(model, None, 128), *(len(ids) - 1 for ids in streams.values()))
        if context < SHORTEST:
            sizes = " / ".join(str(len(ids)) for ids in streams.values())
            raise ValueError(f"{name} is too short: {sizes} tokens ({' / '.join(streams)}), and "
                             f"each needs {SHORTEST + 1}; give more text")
    n_bytes = {s: sum(len(str(d).encode()) for d in kept[s]) for s in streams}
    task = LanguageModelling(name, streams, n_bytes, context_of(model, context, 128),
                             {name: read.sha256}, tokenizer)
    task.form |= {"held_out": list(held_out), "seed": seed}
    lost = sum(len(d.text) for d in documents) - sum(len(d.text) for p in kept.values() for d in p)
    ends = [np.flatnonzero(ids == tokenizer.end_of_text) for ids in streams.values()]
    n_tokens = [n for end in ends for n in np.diff(end, prepend=-1) if n > 1]
    noun = "text" if isinstance(paths, Mapping) else "file"
    task.notes = (
        _what_was_read(noun, len(files), n_long, len(documents)),
        facts.lengths(n_tokens, "document"),
        *facts.looks([*facts.unread(read.left_out, noun),
                      lost and f"{counted(lost, 'character')} in repeated paragraphs left out"],
                     "file left out, repeated paragraph"))
    return task


def cut(text: str, most: int, places: Sequence[str] = PLACES) -> list[str]:
    """Cut a text into parts of at most `most` characters where that is possible. The parts joined
    are the text. places: where to cut, as patterns; the next one is for what is still too long."""
    if len(text) <= most or not places: return [text]
    joined = []
    for piece in re.split(places[0], text):
        for part in cut(piece, most, places[1:]):
            if joined and len(joined[-1]) + len(part) <= most: joined[-1] += part
            else: joined.append(part)
    return joined


# -- rows ------------------------------------------------------------------------------------------
def labelled(data: Rows, model: Module | Tokenizer | None = None, text: str = "text",
             label: str = "label", context: int | None = None, *,
             classes: Sequence[str] | None = None, reads: str = "newline",
             held_out: Shares = (0.15, 0.15), seed: int = 0,
             encoding: str = "utf-8", delimiter: str | None = None,
             skip_empty: bool = False) -> Classification:
    """Make the task of naming the label of each row of a CSV or TSV file with a header, or JSONL.

    data: the file, or rows in memory: a list of (text, label), or of dicts; or columns, name →
    list.
    `attach(model, method, head=len(task.classes))` gives the model a head. text, label: columns.
    context: the most tokens of a row, by default 128 or half of the model's; longer rows are cut.
    classes: the labels in the head's order; by default all there are, sorted. Each needs 3 rows.
    reads: the token that the head reads, the "newline" after the text or the "end" of text.
    model, held_out (here shares of each class' rows), seed: as in `text`. encoding, delimiter: of
    the file. skip_empty: leave out rows with nothing as text or label, and count them in `notes`.
    Raises FileNotFoundError, and ValueError for a file that is not such a table."""
    check_shares(held_out)
    table = table_of(data, (text, label), encoding, delimiter)
    table.chosen((text, label))
    table, without_empty = _filled(table, (text, label), skip_empty)
    rows = list(zip(table.texts(text), table.texts(label), strict=True))
    lines = [line for line, _ in table.rows]
    known = sorted({label for _, label in rows})
    if classes is not None:
        if wrong := [(n, c) for n, (_, c) in zip(lines, rows, strict=True) if c not in classes]:
            raise ValueError(f"{table.place(wrong[0][0])}: {label!r} is {brief(wrong[0][1])}, and "
                             f"the classes are {', '.join(classes)[:400]}")
    elif len(known) < 2:
        raise ValueError(f"{table.path}: every row has the label {brief(known[0])}; a classifier "
                         "needs two classes")
    kept = _first(rows)
    count = Counter(rows[i][1] for i in kept)
    if held_out[1] < 1 and (rare := [c for c in known if count[c] < 3]):
        where = table.places([n for n, (_, c) in zip(lines, rows, strict=True) if c == rare[0]])
        others = f", and so {_others(len(rare) - 1)}" if len(rare) > 1 else ""
        raise ValueError(f"{table.path}: the class {brief(rare[0])} has "
                         f"{counted(count[rare[0]], 'different row')} ({where}){others}; each "
                         "class needs 3, one each to train, validate and test. Add rows, join "
                         f"classes, or name another column than {label!r}")
    classes, tokenizer = tuple(classes or known), tokenizer_of(model)
    split = _split([(rows[i][0],) for i in kept], held_out, seed, [rows[i][1] for i in kept])
    _nothing_empty(table.path, split, held_out, "rows", "add rows that are not near-duplicates")
    index = {c: i for i, c in enumerate(classes)}
    examples = {s: [(rows[kept[i]][0], index[rows[kept[i]][1]]) for i in part]
                for s, part in split.items()}
    context = context_of(model, context, 128)
    task = Classification(examples, classes, tokenizer, context, {table.path.name: table.sha256},
                          _name(table.path), reads)
    task.form |= {"held_out": list(held_out), "seed": seed, "columns": [text, label]}
    tested = {classes[label] for _, label in examples.get("test") or examples["train"]}
    untested = ", ".join(brief(c) for c in known if c not in tested)
    texts, labels = zip(*rows, strict=True)
    n_tokens = {i: len(tokenizer.encode(f"{texts[i]}\n")) + 2 for i in kept}
    too_long = [i for i in kept if n_tokens[i] > context]
    task.notes = (
        facts.class_counts([labels[i] for i in kept]),
        facts.lengths([*n_tokens.values()], "row", context),
        *facts.looks([without_empty,
                      facts.affected(table, _gone(rows, kept), "left out as repeating another"),
                      facts.contradictions(table, rows, "label"),
                      facts.near_names(table, labels),
                      facts.missing_words(table, {text: texts, label: labels}),
                      facts.affected(table, too_long, f"cut to {context} tokens, the context"),
                      untested and f"no row in test, by near-duplicates: {untested}"],
                     "repeated row, text with two labels, class names nearly equal, NaN, or "
                     "row that is cut"))
    return task


def pairs(data: Rows, model: Module | Tokenizer | None = None, prompt: str | None = None,
          answer: str | None = None, context: int | None = None, *,
          chat: str | bool | None = None, held_out: Shares = (0.15, 0.15), seed: int = 0,
          encoding: str = "utf-8", delimiter: str | None = None,
          skip_empty: bool = False) -> Answering:
    """Make the task of answering the prompts of a JSONL or CSV file. The loss is on the answers.

    data: the file, or rows in memory: a list of (prompt, answer), or of dicts; or columns, name →
    list.
    prompt, answer: columns; by default the first of `PAIRS` that the file has. An "input" beside
    "instruction" and "output" is a part of the prompt. "messages" is a conversation, whose last
    message is the answer. chat: the family of the chat template (`chat.FAMILIES`), False for plain
    text; by default the template that the tokenizer is known for, plain text if there is none. (A
    base model may have the tokenizer of a chat model.) context: the most tokens of a row, by
    default 256 or half of the model's; longer rows are left out. Otherwise as `labelled`.
    Of the result, rows["test"] are the (prompt, answer) of a split, and predict(model, prompts)
    writes answers."""
    check_shares(held_out)
    if (prompt is None) != (answer is None):
        raise ValueError("pairs: name both columns, prompt and answer, or none of them")
    columns = PAIRS[0] if prompt is None else (prompt, answer)
    table = table_of(data, columns, encoding, delimiter)
    tokenizer = tokenizer_of(model)
    names = table.chosen(*([(prompt, answer)] if prompt is not None else PAIRS))
    table, without_empty = _filled(table, names, skip_empty)
    rows = _conversations(table) if names == ("messages",) else _prompts(table, names)
    kept = _first([(plain(prompt), answer) for prompt, answer in rows])
    if chat is None: chat = known_family(tokenizer)
    split = _split([(plain(rows[i][0]), rows[i][1]) for i in kept], held_out, seed)
    _nothing_empty(table.path, split, held_out, "rows", "add rows that are not near-duplicates")
    examples = {s: [rows[kept[i]] for i in part] for s, part in split.items()}
    context = context_of(model, context, 256)
    task = Answering(examples, tokenizer, context, {table.path.name: table.sha256}, chat or None,
                     _name(table.path))
    _nothing_empty(table.path, {s: part for s, part in task.splits.items() if part}, held_out,
                   f"rows of at most {context} tokens", "shorten them, or give a larger context")
    task.form |= {"held_out": list(held_out), "seed": seed, "columns": list(names)}
    plains = [(plain(prompt), answer) for prompt, answer in rows]
    n_tokens = {i: sum(map(len, task.encode(*rows[i]))) for i in kept}
    too_long = [i for i in kept if n_tokens[i] > context]
    task.notes = (
        facts.lengths([*n_tokens.values()], "row", context),
        *facts.looks([without_empty,
                      facts.affected(table, _gone(rows, kept), "left out as repeating another"),
                      facts.contradictions(table, plains, "answer"),
                      facts.missing_words(table, dict(zip(names[:2], zip(*plains, strict=True),
                                                          strict=False))),
                      facts.affected(table, too_long,
                                     f"left out as longer than {context} tokens, the context"),
                      chat is None and getattr(tokenizer, "chat_template", None) and
                      "the model's chat template is not known here, so prompts are plain text"],
                     "repeated row, prompt with two answers, NaN, or row that is too long"))
    return task


def _filled(table, columns, skip_empty):
    """Return the table, with skip_empty without the rows that have nothing in one of the columns,
    and the sentence that counts these."""
    empty = table.empty(columns) if skip_empty else []
    what = f"left out with nothing in {' or '.join(map(repr, columns))}"
    return table.without(empty), facts.affected(table, empty, what)


def _prompts(table, names):
    """[(prompt, answer)] of two columns."""
    prompts, answers = map(table.texts, names)
    if names == ("instruction", "output"):
        more = table.texts("input", is_optional=True)
        prompts = [f"{p}\n\n{m}" if m else p for p, m in zip(prompts, more, strict=True)]
    return list(zip(prompts, answers, strict=True))


def _conversations(table: Table):
    """[(messages, answer)] of the column "messages"."""
    rows = []
    for line, row in table.rows:
        messages, place = row.get("messages"), table.place(line)
        match messages:
            case [*before, {"role": "assistant", "content": str(answer)}] if answer.strip(): pass
            case _:
                raise ValueError(f'{place}: messages must be a list of {{"role": …, "content": …}},'
                                 " the last one from the assistant and not empty, got "
                                 f"{brief(messages)}")
        with naming(place): turns = turns_of(before)
        rows.append((tuple({"role": role, "content": checked(said, place)}
                           for role, said in turns), checked(answer, place).strip()))
    return rows


# -- both ------------------------------------------------------------------------------------------
def _name(paths):
    """Return a short name of a task that is made of files, or of a dict of texts."""
    if isinstance(paths, Mapping):
        return "texts"
    first, *more = [paths] if isinstance(paths, (str, Path)) else paths
    return Path(first).absolute().name + (f" and {len(more)} more" if more else "")


def _what_was_read(noun, n_files, n_long, n_documents):
    """Say how many files were read, and how many documents they are where long ones are cut."""
    files = counted(n_files, noun)
    if not n_long: return files if n_files == 1 else f"{files}, a document each"
    of_them = f"{n_long} of them " if n_files > 1 else ""
    return f"{files}, {of_them}long and cut into parts: {counted(n_documents, 'document')}"


def _first(rows):
    """Return the indices of rows that do not repeat an earlier one; case and spaces are ignored."""
    found = {}
    for i, row in enumerate(rows):
        found.setdefault(tuple(" ".join(text.lower().split()) for text in row), i)
    return list(found.values())


def _split(texts, held_out, seed, classes=None, weights=None):
    """split → indices of texts, in order; without splits that have none."""
    n = len(texts)
    part = parts(texts, classes or [None] * n, weights or [1] * n, held_out, seed)
    split = {s: [i for i in range(n) if part[i] == s] for s in SPLITS}
    return {s: rows for s, rows in split.items() if rows}


def _nothing_empty(place, split, held_out, what, remedy):
    """ValueError if a split that was asked for has nothing."""
    shares = zip(SPLITS, (1 - sum(held_out), *held_out), strict=True)
    if lost := [s for s, share in shares if share > 1e-9 and s not in split]:
        raise ValueError(f"{place}: there are no {what} for {' and '.join(lost)}: {remedy}")


def _gone(rows, kept):
    """Return the places of the rows that were left out."""
    return sorted(set(range(len(rows))) - set(kept))


def _others(n):
    return "does one other class" if n == 1 else f"do {n} other classes"
