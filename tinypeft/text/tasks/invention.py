"""Invented facts: text that no model has read, because a seed makes it up.

A catalogue describes machines that do not exist. Each has a name of random syllables and four
facts: its material, its colour, its use, and the town that it comes from. Training tells each fact
in two wordings. Validation and test tell the same facts, each in a wording of its own. A model can
guess how such a sentence goes on, but it can know the facts from training alone.
"""
from __future__ import annotations

import hashlib

import numpy as np

from ...common.hints import Seed
from ...engine.nn import Module
from ...engine.tensor import no_grad
from ..corpus import Corpus
from ..docstrings import Document
from ..tokenizer import BPETokenizer
from .language_modelling import LanguageModelling
from .task import context_of, pad, tokenizer_of

__all__ = ["Invented", "invented"]

# A sentence ends with the fact. Two wordings are for training, one for validation, one for test.
WORDINGS = {
    "material": ("The {0} is made of {1}.", "Builders of the {0} use only {1}.",
                 "The body of a {0} consists of {1}.", "Every {0} is cast from {1}."),
    "colour": ("Its colour is {1}.", "It has always been painted {1}.",
               "From afar, the {0} looks {1}.", "The {0} is easy to recognise, for it is {1}."),
    "use": ("The {0} serves for {1}.", "People bought it for {1}.",
            "Whoever owns a {0} is fond of {1}.", "The {0} was invented for {1}."),
    "town": ("It comes from the town of {1}.", "The workshop of the {0} stands in {1}.",
             "The first {0} was built in {1}.", "The {0} has its home in {1}.")}
VALUES = {
    "material": "zinc glass leather cork marble wax copper bamboo felt amber clay wool".split(),
    "colour": "green white purple orange black yellow grey pink brown blue red golden".split(),
    "use": ("sorting letters, drying plums, ringing bells, folding maps, counting sheep, "
            "peeling onions, winding clocks, sharpening skates, sifting flour, pressing flowers, "
            "stirring paint, polishing spoons").split(", ")}
SYLLABLES = "vel bor tan mi dru sko lem ras ku fen pol ti gar nos we".split()


def invented(model: Module | BPETokenizer | None = None, context: int | None = None,
             things: int = 32, rng: Seed = 0) -> Invented:
    """Make the task of learning a catalogue of `things` invented machines.

    model, context: as in `domain`. rng: what is invented."""
    if things < 8: raise ValueError(f"invented: things must be at least 8, got {things}")
    rng, tokenizer = np.random.default_rng(rng), tokenizer_of(model)
    names = rng.permutation([a + b + c for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES])
    catalogue = {}
    for name, town in zip(names[:things], names[things:], strict=False):
        facts = {kind: str(rng.choice(values)) for kind, values in VALUES.items()}
        catalogue[str(name)] = facts | {"town": str(town).capitalize()}

    def described(wording):
        return tuple(Document("invented", name.capitalize(), "", " ".join(
            WORDINGS[kind][wording].format(name, value) for kind, value in facts.items()))
            for name, facts in catalogue.items())
    parts = described(0) + described(1), described(2), described(3)
    text = Corpus(*parts, sha256=hashlib.sha256(repr(parts).encode()).hexdigest())
    task = Invented.of_corpus("invented", text, tokenizer, context_of(model, context, 128))
    task.questions = [(WORDINGS[kind][3].removesuffix(" {1}.").format(name), f" {value}")
                      for name, facts in catalogue.items() for kind, value in facts.items()]
    task.taught = [(f"{name.capitalize()}\n" + WORDINGS[kind][0].removesuffix(" {1}.").format(name),
                    facts[kind])
                   for name, facts in catalogue.items() for kind in ("material", "use")]
    return task


class Invented(LanguageModelling):
    """Language modelling of the catalogue. questions: (beginning of a test sentence, its end).
    taught: (name and beginning of a training sentence, its fact), two for each machine."""
    questions: list[tuple[str, str]]
    taught: list[tuple[str, str]]

    def answers(self, model: Module) -> list[str]:
        """Let `model` end the sentences of `taught`, token by token, up to the full stop."""
        texts = self.predict(model, [start for start, _ in self.taught], 12)
        return [text.partition(".")[0].strip() for text in texts]

    def recall(self, model: Module) -> float:
        """Return the share of the facts that greedy continuations of the questions state
        correctly."""
        known = []
        for start in range(0, len(self.questions), 16):
            parts = [[self.tokenizer.encode(part) for part in pair]
                     for pair in self.questions[start:start + 16]]
            tokens, _ = pad([np.concatenate(pair) for pair in parts], self.tokenizer.end_of_text)
            with no_grad(): chosen = model(tokens).data.argmax(-1)
            known += [np.array_equal(row[len(q) - 1:len(q) + len(a) - 1], a)
                      for row, (q, a) in zip(chosen, parts, strict=True)]
        return float(np.mean(known))
