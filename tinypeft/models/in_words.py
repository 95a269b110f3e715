"""In words: what a model does with texts, and a model with a method on it, too.

    model.generate("…")                a text and its continuation
    model.stream("…")                  the continuation, piece by piece
    model.chat([{"role": …, …}])       the answer in a conversation
    model.classify(["…", "…"])         the label of each text, with probabilities

The model's `tokenizer` turns text into tokens and back. `classify` also needs the `task` that the
model was trained for, which knows the classes.
"""
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..common.hints import Array
from .generation import answer, generate, stream

__all__ = ["Classified", "InWords"]


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
