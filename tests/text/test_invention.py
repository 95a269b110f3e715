"""Invented facts: the same for a seed, told in test in words that training does not have, and recall counts what is known."""
import numpy as np
import pytest

import tinypeft as tp


@pytest.fixture(scope="module")
def task(): return tp.tasks.invented(things=8)


def test_a_seed_invents_one_catalogue(task):
    same, other = tp.tasks.invented(things=8), tp.tasks.invented(things=8, rng=1)
    assert same.sha256 == task.sha256 != other.sha256 and same.questions == task.questions
    for split in task.streams: assert np.array_equal(task.streams[split], same.streams[split])


def test_every_fact_is_told_twice_in_training_and_once_in_test(task):
    tokenizer = tp.load_tokenizer()
    train, validation, test = (tokenizer.decode(ids) for ids in task.streams.values())
    assert len(task.questions) == 4 * 8
    for question, answer in task.questions:
        assert test.count(f"{question}{answer}.") == 1 and question not in train and question not in validation
    for name in {q.split()[1] for q, _ in task.questions if q.startswith("Every")}:
        facts = [answer for question, answer in task.questions if f" {name} " in question]
        about = [d for d in train.split("<|endoftext|>") if d.strip().startswith(name.capitalize())]
        assert len(facts) == 4 and len(about) == 2 and all(fact in d for fact in facts for d in about)


def test_what_is_taught_stands_in_the_training_text(task, monkeypatch):
    """As often as there are machines with that fact: at the beginning of a text, or behind other sentences of it."""
    train = task.tokenizer.decode(task.streams["train"])
    assert len(task.taught) == 2 * 8
    for start, fact in task.taught:
        heading, sentence = start.split("\n")
        (about,) = (d for d in train.split("<|endoftext|>") if f"{sentence} {fact}." in d)
        assert about.strip().startswith(f"{heading}\n")
    ends = [f" {fact}. It" for _, fact in task.taught[:3]] + [" axis=None)"] * 13
    monkeypatch.setattr(task, "predict", lambda model, texts, n: ends[:len(texts)])
    facts = [fact for _, fact in task.taught]
    assert task.answers(None) == [*facts[:3], *["axis=None)"] * 13]


class Knows(tp.Module):
    """Continues as the test text does after a question, for the questions that it knows."""
    def __init__(self, task, known): self.rows = [self.ids(task, pair) for pair in known]

    @staticmethod
    def ids(task, pair): return np.concatenate([task.tokenizer.encode(part) for part in pair])

    def forward(self, tokens):
        logits = np.zeros((*tokens.shape, 1024), np.float32)
        for b, row in enumerate(tokens):
            if any(np.array_equal(row[:len(known)], known) for known in self.rows):
                logits[b, np.arange(len(row) - 1), row[1:]] = 1
        return tp.Tensor(logits)


def test_recall_counts_the_facts_that_greedy_decoding_would_write(task):
    for n in (0, 1, 20, 32):
        assert task.recall(Knows(task, task.questions[:n])) == n / 32


def test_too_few_things_are_refused():
    with pytest.raises(ValueError, match="things must be at least 8, got 3"): tp.tasks.invented(things=3)
