"""Answering: a prompt → an answer, with the loss on the answer only.

A row is "prompt⏎", the answer and the end of text, in front of which stands what the tokenizer puts
in front of a document. For a model with a chat template, a row is the conversation in it, and the
token of the template ends the answer. Only the tokens of the answer and its end are predicted, so
that a model learns to answer prompts and not to write them.
"""
from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from ...common.hints import Array
from ...common.wording import brief
from ...engine.nn import Module
from ...engine.tensor import Tensor
from ...models.generation import prompted
from ..chat import chat_answer, chat_end, chat_prompt
from ..ngram import KneserNey
from ..tokenizer import Tokenizer
from .task import SPLITS, Batch, Metrics, Rows, pad
from .writing import written

__all__ = ["Answering", "Prompt", "plain", "rouge_l"]

IGNORED = -100                                                # a target that the loss ignores
Prompt = str | Sequence[Mapping[str, str]]                    # or the messages of a conversation


class Answering(Rows):
    """Write the answer to a prompt. rows: split → [(prompt, answer)], of which those above
    `context` tokens are left out.

    A prompt is a text, or messages {"role": …, "content": …}. chat: the family of the template, a
    name of `chat.FAMILIES`; None for plain text, where messages are paragraphs. A batch is (tokens
    (B, T), targets (B, T)), padded on the right; the loss ignores targets of −100."""

    def __init__(self, rows: Mapping[str, Sequence[tuple[Prompt, str]]], tokenizer: Tokenizer,
                 context: int, sha256: dict[str, str] | None = None, chat: str | None = None,
                 name: str = "pairs"):
        self.tokenizer, self.context, self.chat = tokenizer, context, chat
        self.end = chat_end(tokenizer, chat) if chat else tokenizer.end_of_text
        fits = lambda ids: sum(map(len, ids)) <= context
        read = {split: [(row, ids) for row in part if fits(ids := self.encode(*row))]
                for split, part in rows.items()}
        self.rows = {split: [row for row, _ in part] for split, part in read.items()}
        super().__init__(name, {s: [ids for _, ids in part] for s, part in read.items()}, sha256)
        self.form = {"kind": "pairs", "context": context, "chat": chat}

    def encode_prompt(self, prompt: Prompt) -> Array:
        """Return the ids (n,) up to where the answer begins."""
        if self.chat: return chat_prompt(self.tokenizer, prompt, self.chat)
        return np.concatenate([[self.tokenizer.opening],
                               self.tokenizer.encode(f"{plain(prompt)}\n")])

    def encode(self, prompt: Prompt, answer: str) -> tuple[Array, Array]:
        """Return the ids of a prompt (n,) and of its answer (m,), the end included."""
        if self.chat: ids = chat_answer(self.tokenizer, prompt, answer, self.chat)
        else:         ids = self.tokenizer.encode(answer)
        return self.encode_prompt(prompt), np.concatenate([ids, [self.end]])

    def collate(self, examples: Sequence) -> Batch:
        ids = [np.concatenate(example) for example in examples]
        targets = [np.concatenate([np.full(len(prompt), IGNORED), answer])
                   for prompt, answer in examples]
        tokens, _ = pad([row[:-1] for row in ids], self.tokenizer.end_of_text)
        return tokens, pad([row[1:] for row in targets], IGNORED)[0]

    def count(self, batch: Batch) -> int:
        return int((batch[1] != IGNORED).sum())

    def loss(self, model: Module, batch: Batch) -> Tensor:
        tokens, targets = batch
        n_prompt = 1 + (targets != IGNORED).argmax(1)             # the last of them predicts
        with prompted(n_prompt):
            return model.loss(tokens, targets, IGNORED)

    def finish(self, means: Metrics, split: str = "test") -> Metrics:
        """Add bits per byte of the answers to the loss (nats per token, the end included)."""
        n_tokens = sum(len(answer) for _, answer in self.data(split))
        n_bytes = sum(len(answer.encode()) for _, answer in self.rows[split])
        return {**means, "bits_per_byte": means["loss"] / math.log(2) * n_tokens / n_bytes}

    def predict(self, model: Module, prompts: Sequence[Prompt],
                max_new_tokens: int = 64) -> list[str]:
        """Return the likeliest answer to each prompt, token by token, without whitespace around it.

        Raises ValueError for a prompt that fills the model's context."""
        if isinstance(prompts, Module):
            raise TypeError("predict: the model comes first, and then the prompts")
        if isinstance(prompts, str):
            raise TypeError(f"predict: expected a list of prompts, got {brief(prompts)}")
        ids = [self.encode_prompt(prompt) for prompt in prompts]
        return self._answers(model, ids, max_new_tokens)

    def write(self, model: Module, split: str = "test", limit: int = 64,
              max_new_tokens: int = 48) -> list[str]:
        """Let `model` answer the first `limit` prompts of a split greedily."""
        prompts = [prompt for prompt, _ in self.data(split)[:limit]]
        return self._answers(model, prompts, max_new_tokens)

    def _answers(self, model, prompts, most):
        answers = written(model, self.tokenizer, prompts, self.end, most)
        return [answer.strip() for answer in answers]

    def rouge(self, model: Module, split: str = "test", limit: int = 64,
              max_new_tokens: int = 48) -> float:
        """Mean ROUGE-L of `write` against the answers, in [0, 1]."""
        pairs = zip(self.write(model, split, limit, max_new_tokens), self.rows[split], strict=False)
        return float(np.mean([rouge_l(answer, wanted) for answer, (_, wanted) in pairs]))

    def measure_baselines(self) -> dict[str, Metrics]:
        """Measure the answers' unigrams, and Kneser–Ney on whole rows."""
        def streams(split):                                 # ids (N,), is it part of an answer (N,)
            rows = self.data(split)
            return (np.concatenate([ids for row in rows for ids in row]),
                    np.repeat([False, True] * len(rows), [len(ids) for row in rows for ids in row]))
        (train, in_answer), (validation, _), (test, counted) = map(streams, SPLITS)
        unigram = KneserNey(1).fit(train[in_answer], self.tokenizer.vocab_size)
        five_gram = KneserNey(5).fit(train, self.tokenizer.vocab_size)
        five_gram.tune(validation)
        loss = lambda ngram: -float(ngram.log_probabilities(test)[counted[1:]].mean())
        return {"unigram": self.finish({"loss": loss(unigram)}),
                "Kneser–Ney 5-gram": self.finish({"loss": loss(five_gram)})}

    def sizes(self) -> str:
        """How many rows the splits have."""
        sizes = " / ".join(f"{len(rows):,}" for rows in self.splits.values())
        return f"{sizes} rows ({' / '.join(self.splits)})"

    def describe(self) -> str:
        form = f"in the chat template of {self.chat}" if self.chat else "as plain text"
        return f"prompt → answer {form}, {self.sizes()}"


def plain(prompt: Prompt) -> str:
    """Return a prompt as one text: a conversation's messages, a blank line between them."""
    if isinstance(prompt, str): return prompt
    return "\n\n".join(message["content"] for message in prompt)


def rouge_l(candidate: str, reference: str) -> float:
    """ROUGE-L in [0, 1]: F₁ of the longest common subsequence of words, 0 if a text has no word.

    Case and punctuation are ignored. Lin (2004), "ROUGE: A Package for Automatic Evaluation of
    Summaries"."""
    a, b = (re.findall(r"\w+", text.lower()) for text in (candidate, reference))
    longest = np.zeros(len(b) + 1, int)                       # [j]: of a's words so far and b[:j]
    for word in a:
        longest[1:] = np.maximum(longest[1:], longest[:-1] + (np.array(b) == word))
        longest = np.maximum.accumulate(longest)
    return 2 * int(longest[-1]) / (len(a) + len(b)) if a and b else 0.0
