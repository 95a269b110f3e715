"""The chat templates: how a conversation is written for the models of a family.

A template puts special tokens and role names around the messages, and ends where the model's answer
begins. Folders and GGUF files hold it as a program in a language of templates (Jinja). Here the
templates of families are functions, for a conversation without tools:

    chatml        <|im_start|>ROLE⏎TEXT<|im_end|>⏎ for each message
    smollm2       the same, with a system message of its own if there is none; so have qwen2 and
                  qwen2.5
    qwen3         chatml; thinking is off (enable_thinking=False): an empty pair of <think> and
                  </think> begins the answer, and earlier answers lose their thoughts
    llama3        <|begin_of_text|>, then <|start_header_id|>ROLE<|end_header_id|>⏎⏎TEXT<|eot_id|>
    llama3.1      the same; a system message is always there and begins with two dates
    llama3.2      the same; one of the dates is today's
    gemma3        <bos>, then <start_of_turn>ROLE⏎TEXT<end_of_turn>⏎; the assistant is called model,
                  and a system message goes in front of the first text
    mistral-v0.1  <s>, then [INST] TEXT [/INST]ANSWER</s>, without a system message
    mistral-v0.2  with other spaces, and a system message in front of the first text
    mistral-v0.3  a system message is in front of the last text, and [INST] and [/INST] are tokens
    tinyllama     <|ROLE|>⏎TEXT</s>⏎; only </s> is a special token, and no <s> comes first
"""
from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["FAMILIES", "Family", "Special", "family_of_text"]

Turns = list[tuple[str, str]]                                    # (role, text) of each message
SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
QWEN2_SYSTEM = "You are a helpful assistant."
QWEN25_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."


class Special(str):
    """The name of a special token, which is that token in `Tokenizer.encode_parts`; any other str
    is text."""


@dataclass(frozen=True)
class Family:
    """template: turns → parts of the prompt, for `encode_parts`. end: the token that ends an
    answer. texts: what `digest` gives for the templates that say the same. fits: is this the
    tokenizer of the family? before: what stands between a prompt and its answer."""
    template: Callable[[Turns], list[str]]
    end: str
    texts: tuple[str, ...]
    fits: Callable[[Any], bool] = lambda tokenizer: False
    before: str = ""


# -- ChatML ----------------------------------------------------------------------------------------
def chatml(turns: Turns) -> list[str]:
    """Return the template that many fine-tuned models share."""
    parts = []
    for role, text in turns:
        parts += [Special("<|im_start|>"), f"{role}\n{text}", Special("<|im_end|>"), "\n"]
    return [*parts, Special("<|im_start|>"), "assistant\n"]


def chatml_with(system: str) -> Callable[[Turns], list[str]]:
    """Return ChatML's template with a system message for conversations that have none."""
    def template(turns):
        return chatml(turns if turns[0][0] == "system" else [("system", system), *turns])
    return template


def qwen3(turns: Turns) -> list[str]:
    """Qwen 3's template with enable_thinking=False."""
    def spoken(role, text):
        _, thought, answer = text.rpartition("</think>")
        return role, answer.lstrip("\n") if thought and role == "assistant" else text
    return [*chatml([spoken(*turn) for turn in turns]), "<think>\n\n</think>\n\n"]


# -- Llama 3 ---------------------------------------------------------------------------------------
def llama3(turns: Turns) -> list[str]:
    """Llama 3's template. Texts lose the whitespace around them."""
    return headed([(role, text.strip()) for role, text in turns])


def llama31(turns: Turns, today: str = "26 Jul 2024") -> list[str]:
    """Return the template of Llama 3.1 and 3.3. Its text has a date of its own for today."""
    system, turns = (turns[0][1], turns[1:]) if turns[0][0] == "system" else ("", turns)
    dates = f"Cutting Knowledge Date: December 2023\nToday Date: {today}\n\n"
    return headed([("system", dates + system.strip()),
                   *((role, text.strip()) for role, text in turns)])


def llama32(turns: Turns) -> list[str]:
    """Llama 3.2's template."""
    return llama31(turns, datetime.datetime.now().strftime("%d %b %Y"))


def headed(turns):
    """Return the parts of turns of Llama 3, each below a header with its role."""
    header = lambda role: [Special("<|start_header_id|>"), role, Special("<|end_header_id|>"),
                           "\n\n"]
    parts = [Special("<|begin_of_text|>")]
    for role, text in turns: parts += [*header(role), text, Special("<|eot_id|>")]
    return [*parts, *header("assistant")]


# -- others ----------------------------------------------------------------------------------------
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


def mistral1(turns: Turns) -> list[str]:
    """Return the template of Mistral 7B Instruct v0.1. Raises ValueError for a system message."""
    if turns[0][0] == "system":
        raise ValueError("mistral-v0.1 has no system message; put it into the first text")
    parts = [Special("<s>")]
    for role, text in turns:
        parts += [f"[INST] {text} [/INST]"] if role == "user" else [text, Special("</s>")]
    return parts


def mistral2(turns: Turns) -> list[str]:
    """Return the template of Mistral 7B Instruct v0.2."""
    parts = [Special("<s>")]
    for role, text in joined(turns, 0):
        parts += [f" [INST] {text} [/INST]"] if role == "user" else [f" {text}", Special("</s>")]
    return parts


def mistral3(turns: Turns) -> list[str]:
    """Return the template of Mistral 7B Instruct v0.3."""
    parts = [Special("<s>")]
    for role, text in joined(turns, -1):
        parts += ([Special("[INST]"), f" {text}", Special("[/INST]")] if role == "user" else
                  [f" {text.strip()}", Special("</s>")])
    return parts


def tinyllama(turns: Turns) -> list[str]:
    """Return the template of TinyLlama-1.1B-Chat-v1.0, which is Zephyr's."""
    parts = []
    for role, text in turns: parts += [f"<|{role}|>\n{text}", Special("</s>"), "\n"]
    return [*parts, "<|assistant|>\n"]


def joined(turns, place):
    """Return the turns with the system message in front of the text of the turn at `place`."""
    if turns[0][0] != "system": return turns
    (_, system), *turns = turns
    role, text = turns[place]
    turns[place] = role, f"{system}\n\n{text}"
    return turns


# -- families --------------------------------------------------------------------------------------
def digest(text: str) -> str:
    """Return the first 16 digits of a template's SHA-256. Whitespace around it does not count, and
    a line end may be written as one or as \\n."""
    text = text.strip().replace("\\n", "\n")
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def splits(name):
    """Return a function that tells if a tokenizer cuts words as `words.SPLITS[name]`."""
    return lambda tokenizer: getattr(tokenizer, "split", None) == name


def is_qwen3(tokenizer): return splits("qwen2")(tokenizer) and "<think>" in tokenizer.added
def is_gemma(tokenizer): return "<start_of_turn>" in tokenizer.special
def is_sentencepiece(tokenizer): return hasattr(tokenizer, "prefix")


IM_END = "<|im_end|>"
FAMILIES = {
    "chatml": Family(chatml, IM_END, ("153280e3ff55d19d",)),
    "smollm2": Family(chatml_with(SMOLLM2_SYSTEM), IM_END, ("872be49dbb638044",), splits("smollm")),
    "qwen2": Family(chatml_with(QWEN2_SYSTEM), IM_END, ("793202280c0910ab",)),
    "qwen2.5": Family(chatml_with(QWEN25_SYSTEM), IM_END, ("a18cc698dd45623e",)),
    "qwen3": Family(qwen3, IM_END, ("2df317a15cbc983d",), is_qwen3),
    "llama3": Family(llama3, "<|eot_id|>", ("ba03a121d097859c",)),
    "llama3.1": Family(llama31, "<|eot_id|>", ("99799a835a31e1d3",)),
    "llama3.2": Family(llama32, "<|eot_id|>", ("0cac23ffd2b33ff7",)),
    "gemma3": Family(gemma3, "<end_of_turn>", ("8d9e3a3c114fb205",), is_gemma),
    "mistral-v0.1": Family(mistral1, "</s>", ("26a59556925c9873",)),
    "mistral-v0.2": Family(mistral2, "</s>", ("1c6594f8393552ef",), before=" "),
    "mistral-v0.3": Family(mistral3, "</s>", ("9074ed36d7503f0f",), before=" "),
    "tinyllama": Family(tinyllama, "</s>", ("66291cf0045c2425",), is_sentencepiece)}


def family_of_text(text: str) -> str | None:
    """Return the family whose template a text is, or None."""
    known = digest(text)
    return next((name for name, family in FAMILIES.items() if known in family.texts), None)
