"""A conversation as the model of a family knows it from its fine-tuning: the chat templates.

A template puts special tokens and role names around the messages, and ends where the model's answer
begins. Hugging Face folders hold it as a program in a language of templates (Jinja). Here the
templates of four families are functions, for a conversation without tools:

    smollm2     <|im_start|>ROLE⏎TEXT<|im_end|>⏎ for each message, with a system message of its own
                if there is none
    qwen3       the same without one; thinking is off (enable_thinking=False): an empty pair of
                <think> and </think> begins the answer, and earlier answers lose their thoughts
    tinyllama   <|ROLE|>⏎TEXT</s>⏎; only </s> is a special token, and no <s> comes first
    gemma3      <bos>, then <start_of_turn>ROLE⏎TEXT<end_of_turn>⏎; the assistant is called model,
                and a system message goes in front of the first text

A message's text is encoded without special tokens. "<|im_end|>" that a user writes stays ten
characters of text and ends no turn; transformers' `apply_chat_template` would make it the token.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..common.hints import Array
from ..common.wording import brief
from .sentencepiece import SentencePieceTokenizer
from .tokenizer import BPETokenizer, Special, Tokenizer

__all__ = ["FAMILIES", "Family", "chat_answer", "chat_end", "chat_prompt", "family_of",
           "known_family", "turns_of"]

Turns = list[tuple[str, str]]                                    # (role, text) of each message
SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


@dataclass(frozen=True)
class Family:
    """template: turns → parts of the prompt, for `encode_parts`. end: the token that ends an
    answer. fits: is this the tokenizer of the family?"""
    template: Callable[[Turns], list[str]]
    end: str
    fits: Callable[[Tokenizer], bool]


def _chatml(turns):
    parts = []
    for role, text in turns:
        parts += [Special("<|im_start|>"), f"{role}\n{text}", Special("<|im_end|>"), "\n"]
    return [*parts, Special("<|im_start|>"), "assistant\n"]


def smollm2(turns: Turns) -> list[str]:
    """Return the template inside SmolLM2's GGUF and folders."""
    return _chatml(turns if turns[0][0] == "system" else [("system", SMOLLM2_SYSTEM), *turns])


def qwen3(turns: Turns) -> list[str]:
    """Qwen 3's template with enable_thinking=False."""
    def spoken(role, text):
        _, thought, answer = text.rpartition("</think>")
        return role, answer.lstrip("\n") if thought and role == "assistant" else text
    return [*_chatml([spoken(*turn) for turn in turns]), "<think>\n\n</think>\n\n"]


def tinyllama(turns: Turns) -> list[str]:
    """Return the template of TinyLlama-1.1B-Chat-v1.0, which is Zephyr's."""
    parts = []
    for role, text in turns: parts += [f"<|{role}|>\n{text}", Special("</s>"), "\n"]
    return [*parts, "<|assistant|>\n"]


def gemma3(turns: Turns) -> list[str]:
    """Gemma 3's template. Texts lose the whitespace around them."""
    system = ""
    if turns[0][0] == "system": system, turns = turns[0][1] + "\n\n", turns[1:]
    parts = [Special("<bos>")]
    for i, (role, text) in enumerate(turns):
        role, front = "model" if role == "assistant" else role, "" if i else system
        parts += [Special("<start_of_turn>"), f"{role}\n{front}{text.strip()}",
                  Special("<end_of_turn>"), "\n"]
    return [*parts, Special("<start_of_turn>"), "model\n"]


def _splits(tokenizer, name):
    return isinstance(tokenizer, BPETokenizer) and tokenizer.split == name


FAMILIES = {
    "smollm2": Family(smollm2, "<|im_end|>", lambda t: _splits(t, "smollm")),
    "qwen3": Family(qwen3, "<|im_end|>", lambda t: _splits(t, "qwen2") and "<think>" in t.added),
    "gemma3": Family(gemma3, "<end_of_turn>", lambda t: "<start_of_turn>" in t.special),
    "tinyllama": Family(tinyllama, "</s>", lambda t: isinstance(t, SentencePieceTokenizer))}


def chat_prompt(tokenizer: Tokenizer, messages: str | Sequence[Mapping[str, str]],
                family: str | None = None) -> Array:
    """Return the ids (n,) of a conversation, up to where the model's answer begins.

    messages: {"role": …, "content": …} for each: a system message or none, then user and assistant
    in turn, the user first and last. A str is one message of the user. family: a name in
    `FAMILIES`; None finds it by the tokenizer. Other models have the tokenizer of a family, too
    (Llama 2 has TinyLlama's), and another template. Raises ValueError for other conversations,
    and for a tokenizer without the family's special tokens."""
    return tokenizer.encode_parts(_parts(tokenizer, messages, family))


def chat_answer(tokenizer: Tokenizer, messages: str | Sequence[Mapping[str, str]], answer: str,
                family: str | None = None) -> Array:
    """Return the ids (n,) of the model's answer in a conversation, without the token that ends it.

    Arguments and errors: `chat_prompt`'s, whose ids come before these."""
    parts = _parts(tokenizer, messages, family)
    prompt, whole = (tokenizer.encode_parts(p) for p in (parts, [*parts, answer]))
    if whole[:len(prompt)].tolist() == prompt.tolist(): return whole[len(prompt):]
    return tokenizer.encode(answer)              # its first token would reach into the prompt


def _parts(tokenizer, messages, family):
    """Return the parts of a conversation's prompt, for `encode_parts`."""
    return FAMILIES[family_of(tokenizer, family)].template(turns_of(messages))


def turns_of(messages: str | Sequence[Mapping[str, str]]) -> Turns:
    """Return the turns of a conversation, checked as `chat_prompt` does."""
    if isinstance(messages, str): messages = [{"role": "user", "content": messages}]
    turns = [_turn(message) for message in messages]
    roles = [role for role, _ in turns]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    expected = [("user", "assistant")[i % 2] for i in range(len(spoken))]
    if not len(spoken) % 2 or spoken != expected:
        raise ValueError("a conversation is a system message or none, then user and assistant in "
                         f"turn, the user first and last; got {', '.join(roles) or 'no message'}")
    return turns


def chat_end(tokenizer: Tokenizer, family: str | None = None) -> int:
    """Return the id that ends the model's answer: `stop` of `generate`. Errors: `chat_prompt`'s."""
    return tokenizer.special[FAMILIES[family_of(tokenizer, family)].end]


def family_of(tokenizer: Tokenizer, family: str | None = None) -> str:
    """Return the family whose template fits the tokenizer, or `family` if the tokenizer has its
    tokens."""
    if family is None:
        family = next((name for name, f in FAMILIES.items() if f.fits(tokenizer)), None)
        if family is None:
            raise ValueError(f"no chat template is known for {tokenizer!r}; give the family, one "
                             f"of {', '.join(FAMILIES)}")
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {brief(family)}")
    needed = [p for p in FAMILIES[family].template([("user", "")]) if isinstance(p, Special)]
    if missing := [name for name in needed if name not in tokenizer.special]:
        raise ValueError(f"{family}: the tokenizer lacks the special token {str(missing[0])!r}")
    return family


def known_family(tokenizer: Tokenizer) -> str | None:
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
