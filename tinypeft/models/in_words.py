"""In words: what a model does with texts, and a model with a method on it, too.

    model.generate("…")                a text and its continuation
    model.stream("…")                  the continuation, piece by piece
    model.chat([{"role": …, …}])       the answer in a conversation
    model.classify(["…", "…"])         the label of each text, with probabilities

The model's `tokenizer` turns text into tokens and back; tokens (`generation.py`) are taken, too.
`classify` also needs the `task` that the model was trained for, which knows the classes.
"""
import codecs
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..common.hints import Array
from . import generation
from .generation import continuations, steps

__all__ = ["Classified", "InWords", "answer", "characters", "generate", "stream", "trained_family"]


class Classified(NamedTuple):
    """A text's likeliest label, and name → probability of all labels."""
    label: str
    probabilities: dict[str, float]


class InWords:
    """The verbs of a model that take text and return text."""
    tokenizer: Any = None
    task: Any = None                                         # what it was trained for, without data

    def generate(self, tokens: Array | str | list[str], max_new_tokens: int = 64,
                 **options: Any) -> Any:
        """Continue `tokens` (B, T), a text, or each of some texts, by up to `max_new_tokens`
        tokens; options as in `tinypeft.generate`."""
        return generate(self, tokens, max_new_tokens, **options)

    def stream(self, tokens: Any, max_new_tokens: int = 64, **options: Any) -> Iterator[Any]:
        """Yield what `generate` adds as soon as it is there; see `tinypeft.stream`."""
        return stream(self, tokens, max_new_tokens, **options)

    def chat(self, messages: str | Sequence[Mapping[str, str]], max_new_tokens: int = 256,
             **options: Any) -> str:
        """Return the model's answer in a conversation.

        messages: {"role": "system", "user" or "assistant", "content": text} each, the last one of
        the user; or one text of the user. family: whose chat template to take, as in
        `tinypeft.chat_prompt`; by default that of the model's own, or of the prompts that it was
        trained on. options: of `tinypeft.generate`. Raises ValueError for other conversations, for
        a template that is not known here, and if the context has no room for an answer."""
        return "".join(answer(self, messages, max_new_tokens, **options))

    def classify(self, texts: str | Sequence[str]) -> Any:
        """Return the `Classified` label of a text, or of each text of a list, by the model's
        `task`. Raises ValueError if that has no classes."""
        if self.task is None or not hasattr(self.task, "classes"):
            raise ValueError("classify: this model knows no classes of texts: it was neither "
                             "trained on a task with classes nor loaded with one; with such a task "
                             "use task.predict(tuned, texts)")
        if isinstance(texts, str):
            return self.classify([texts])[0]
        labels, p = self.task.predict(self, texts, probabilities=True)
        named = [dict(zip(self.task.classes, row, strict=True)) for row in p.tolist()]
        return [Classified(*pair) for pair in zip(labels, named, strict=True)]


def generate(model: Any, tokens: Array | str | list[str], max_new_tokens: int = 64,
             temperature: float = 0.0, **options: Any) -> Any:
    """Continue `tokens` (B, T), as `generation.generate` says. Or continue a text, up to the end of
    text, and return it with what was written; or each text of a list, or each prompt (T_b,) of a
    list of arrays of unequal lengths. options: see `models/generation.py`, `GenerateOptions`."""
    options["temperature"] = temperature
    if starts_with(tokens, Mapping):
        raise TypeError("generate: these are messages of a conversation; model.chat(messages) "
                        "answers them")
    if isinstance(tokens, str):
        return tokens + "".join(stream(model, tokens, max_new_tokens, **options))
    if starts_with(tokens, str):
        new = new_texts(model, tokens, max_new_tokens, **options)
        return ["".join(pair) for pair in zip(tokens, new, strict=True)]
    require_model(model)
    if starts_with(tokens, np.ndarray) and len({row.shape for row in tokens}) > 1:
        new = continuations(model, tokens, max_new_tokens, **options)
        return [np.concatenate(pair) for pair in zip(tokens, new, strict=True)]
    return generation.generate(model, tokens, max_new_tokens, **options)


def new_texts(model: Any, texts: list[str], max_new_tokens: int, stop: int | None = None,
              **options: Any) -> list[str]:
    """Return what each of the texts is continued by."""
    require_model(model)
    tokenizer = require_tokenizer(model, "generate")
    prompts = [tokenizer.encode_prompt(text) for text in texts]
    if stop is None:
        stop = tokenizer.end_of_text
    new = continuations(model, prompts, max_new_tokens, stop=stop, **options)
    pieces = [characters(tokenizer, ids[:, None], {stop}, is_continued=True) for ids in new]
    return ["".join(piece) for piece in pieces]


def stream(model: Any, tokens: Any, max_new_tokens: int = 64, stop: int | None = None,
           **options: Any) -> Iterator[Any]:
    """Yield what `generate` adds as soon as it is there: of tokens (B, T) integers (B,) at a time,
    of a text pieces of text. A piece is one whole character or more.

    tokens: the messages of a conversation do, too: {"role": …, "content": …} each, the last one of
    the user; then the pieces are those of the answer. family: of the chat template, as in
    `tinypeft.chat_prompt`. options: of `generate`. The model must not change before the end."""
    require_model(model)
    if starts_with(tokens, Mapping):
        return answer(model, tokens, max_new_tokens, stop, **options)
    if not isinstance(tokens, str):
        return steps(model, tokens, max_new_tokens, stop=stop, **options)
    tokenizer = require_tokenizer(model, "generate")
    ids = tokenizer.encode_prompt(tokens)
    if stop is None:
        stop = tokenizer.end_of_text
    new = steps(model, ids[None], max_new_tokens, stop=stop, **options)
    return characters(tokenizer, new, {stop}, is_continued=True)


def answer(model: Any, messages: Any, max_new_tokens: int = 256, stop: int | None = None,
           family: str | None = None, **options: Any) -> Iterator[str]:
    """Yield the pieces of the model's answer in a conversation; see `stream`. It is shorter than
    max_new_tokens where the context ends. ValueError if there is no room for an answer."""
    require_model(model)
    tokenizer = require_tokenizer(model, "chat")
    family = family or trained_family(model)
    ids = tokenizer.chat_prompt(messages, family)
    if stop is None:
        stop = tokenizer.chat_end(family)
    room = model.config.context_length - getattr(model, "virtual_length", 0) - len(ids)
    if room < 1:
        raise ValueError(f"chat: the conversation has {len(ids)} tokens and the model takes "
                         f"{len(ids) + room}, the answer included; shorten it, or leave out its "
                         "first messages")
    new = steps(model, ids[None], min(max_new_tokens, room), stop=stop, **options)
    return characters(tokenizer, new, {stop, tokenizer.end_of_text}, is_continued=False)


def trained_family(model: Any) -> str | None:
    """Return the family of the chat template that the model was trained on prompts in, "plain" for
    none, or None for a model that was not."""
    task = getattr(model, "task", None)
    return (task.chat or "plain") if hasattr(task, "chat") else None


def characters(tokenizer: Any, tokens: Iterable[Array], ends: Container[int],
               is_continued: bool) -> Iterator[str]:
    """Yield the text of tokens (1,), in pieces of whole characters, up to one of `ends`. Bytes that
    are no character become "�". is_continued: did text come before? A space in front is kept."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for (token,) in tokens:
        if token in ends:
            break
        if token >= tokenizer.vocab_size:                    # some vocabularies are padded
            continue
        piece = decoder.decode(tokenizer.decode_bytes([token], is_continued))
        is_continued = is_continued or bool(tokenizer.decode_bytes([token], True))
        if piece:
            yield piece
    rest = decoder.decode(b"", final=True)
    if rest:
        yield rest


def starts_with(value: Any, kind: type) -> bool:
    """Tell if a value is a list or tuple whose first item is of a kind."""
    return isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], kind)


def require_model(model: Any) -> None:
    """Raise TypeError for anything that has no `config`, such as a text in the model's place."""
    if not hasattr(model, "config"):
        raise TypeError("generate: the model comes first, and then the text or the tokens; got a "
                        f"{type(model).__name__} first")


def require_tokenizer(model: Any, verb: str) -> Any:
    """Return the model's tokenizer. Raises ValueError if it has none."""
    if getattr(model, "tokenizer", None) is None:
        raise ValueError(f"{verb}: this model has no tokenizer, so it takes token ids (B, T); set "
                         "model.tokenizer to give it a text")
    return model.tokenizer
