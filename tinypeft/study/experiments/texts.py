"""The documents of every test text, which an error over documents needs: how many tokens each has."""
import numpy as np

from ...interop.loading import load_pretrained
from ...text import tasks
from ..bases import kept_text
from ..experiment import Experiment
from ..tuning import classify, domain


def measure(text: str, seed: int, settings: dict) -> dict:
    if text == "classify": return {"tokens": [1] * len(classify().data("test"))}
    task = {"domain": lambda: domain(held_out=None), "domain, every fourth": domain, "base": kept_text,
            "domain, SmolLM2": lambda: tasks.domain(load_pretrained("smollm2"), context=128, held_out=8192)}[text]()
    ids = task.data("test")
    documents = np.cumsum(ids == task.tokenizer.end_of_text)[:-1] - 1            # of every token that is predicted
    return {"tokens": np.bincount(documents).tolist()}


TEXTS = Experiment(
    "texts", "The test texts, document by document; their numbers of documents differ, which tells them apart.",
    {"tokens": "predicted tokens of every document; of *classify* one for every sentence"},
    measure, {name: name for name in ("domain", "domain, every fourth", "base", "classify", "domain, SmolLM2")},
    {}, {}, seeds=(0,))
