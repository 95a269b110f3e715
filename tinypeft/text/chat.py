"""Conversations: the messages of system, user and assistant as the ids that a model expects.

A model is known by the text of its template (`Tokenizer.chat_template`), letter by letter, because
a template that is nearly the same may say something else. Without a text, as in a file that lost
it, four families are known by their tokenizers. For any other model name the family yourself:
one of `templates.FAMILIES`, or "plain", which is the texts as paragraphs and a line end.

A message's text is encoded without special tokens. "<|im_end|>" that a user writes stays ten
characters of text and ends no turn; transformers' `apply_chat_template` would make it the token.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..common.hints import Array
from ..common.wording import brief, shortened
from .templates import FAMILIES, Special, Turns, family_of_text

__all__ = ["PLAIN", "Messages", "chat_answer", "chat_end", "chat_prompt", "family_of",
           "known_family", "turns_of"]

PLAIN = "plain"
Messages = str | Sequence[Mapping[str, str]]


def chat_prompt(tokenizer: Any, messages: Messages, family: str | None = None) -> Array:
    """Return the ids (n,) of a conversation, up to where the model's answer begins.

    messages: {"role": …, "content": …} for each: a system message or none, then user and assistant
    in turn, the user first and last. A str is one message of the user. family: a name in
    `FAMILIES`, or "plain"; None finds it by the text of the template, or by the tokenizer. Raises
    ValueError for other conversations, for a template that is not known, and for a tokenizer
    without the family's special tokens."""
    if family == PLAIN: return plain_prompt(tokenizer, messages)
    return tokenizer.encode_parts(_parts(tokenizer, messages, family))


def chat_answer(tokenizer: Any, messages: Messages, answer: str,
                family: str | None = None) -> Array:
    """Return the ids (n,) of the model's answer in a conversation, without the token that ends it.

    Arguments and errors: `chat_prompt`'s, whose ids come before these."""
    family = family_of(tokenizer, family)
    if family == PLAIN: return tokenizer.encode(answer)
    parts, answer = _parts(tokenizer, messages, family), FAMILIES[family].before + answer
    prompt, whole = (tokenizer.encode_parts(p) for p in (parts, [*parts, answer]))
    if whole[:len(prompt)].tolist() == prompt.tolist(): return whole[len(prompt):]
    return tokenizer.encode(answer)              # its first token would reach into the prompt


def plain_prompt(tokenizer: Any, messages: Messages) -> Array:
    """Return the ids (n,) of a prompt without a template: the opening of a document, the texts of
    the messages as paragraphs, and a line end."""
    text = "\n\n".join(text for _, text in turns_of(messages))
    return np.concatenate([[tokenizer.opening], tokenizer.encode(f"{text}\n")])


def _parts(tokenizer, messages, family):
    """Return the parts of a conversation's prompt, for `encode_parts`."""
    return FAMILIES[family_of(tokenizer, family)].template(turns_of(messages))


def turns_of(messages: Messages) -> Turns:
    """Return the turns of a conversation, checked as `chat_prompt` does."""
    if isinstance(messages, str): messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, Iterable):
        raise TypeError(f"expected a text, or a list of messages, got {brief(messages)}")
    turns = [_turn(message) for message in messages]
    roles = [role for role, _ in turns]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    expected = [("user", "assistant")[i % 2] for i in range(len(spoken))]
    if not len(spoken) % 2 or spoken != expected:
        raise ValueError("a conversation is a system message or none, then user and assistant in "
                         f"turn, the user first and last; got {', '.join(roles) or 'no message'}")
    return turns


def chat_end(tokenizer: Any, family: str | None = None) -> int:
    """Return the id that ends the model's answer: `stop` of `generate`. Errors: `chat_prompt`'s."""
    family = family_of(tokenizer, family)
    if family == PLAIN: return tokenizer.end_of_text
    return tokenizer.special[FAMILIES[family].end]


def family_of(tokenizer: Any, family: str | None = None) -> str:
    """Return the family whose template fits the tokenizer, or `family` if the tokenizer has its
    tokens."""
    if family is None: family = _found(tokenizer)
    if family == PLAIN: return family
    if not isinstance(family, str) or family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)} or {PLAIN}, got "
                         f"{brief(family)}")
    needed = [p for p in FAMILIES[family].template([("user", "")]) if isinstance(p, Special)]
    needed.append(FAMILIES[family].end)
    if missing := [name for name in needed if name not in tokenizer.special]:
        raise ValueError(f"{family}: the tokenizer lacks the special token {str(missing[0])!r}")
    return family


def _found(tokenizer):
    """Return the family of a tokenizer: by the text of its template, or if it has none by itself.
    Raises ValueError for a template that is not known, and for a tokenizer that fits none."""
    text = getattr(tokenizer, "chat_template", None)
    found = family_of_text(text) if text is not None else next(
        (name for name, family in FAMILIES.items() if family.fits(tokenizer)), None)
    if found: return found
    choice = f"give the family, one of {', '.join(FAMILIES)}, or {PLAIN} for none"
    if text is None: raise ValueError(f"no chat template is known for {tokenizer!r}; {choice}")
    first = text.strip().partition("\n")[0]
    raise ValueError("the model's chat template is not one of those that are known here; it begins "
                     f"with {shortened(first, 120)!r}; {choice}")


def known_family(tokenizer: Any) -> str | None:
    """Return the family whose template fits the tokenizer; None if there is none."""
    try:
        return family_of(tokenizer)
    except ValueError:
        return None


def _turn(message):
    """(role, text) of a message."""
    match message:
        case {"role": "system" | "user" | "assistant" as role, "content": str(text)}:
            return role, text
    raise ValueError('a message is {"role": "system", "user" or "assistant", "content": text}, '
                     f"got {brief(message)}")
