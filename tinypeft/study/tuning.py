"""One fine-tuning run, as the study's experiments make it: from the base, in one thread, on the study's tasks."""
import copy
import functools

from ..peft import attach
from ..pretrained import load_pretrained
from ..text import tasks
from ..train import evaluate, train

__all__ = ["classify", "domain", "fine_tune", "pretrained", "test_loss"]

_pretrained = functools.cache(load_pretrained)
classify = functools.cache(tasks.classify)


def pretrained():
    """A copy of the shipped base."""
    return copy.deepcopy(_pretrained())


@functools.cache
def domain(context=128, held_out=16384):
    """Matplotlib's documentation in the base's tokens; about `held_out` tokens of validation and of test."""
    return tasks.domain(_pretrained(), context=context, held_out=held_out)


def fine_tune(method, seed, settings, model=None, task=None, head=None, lr=None):
    """`method` on a model (the base) for settings["steps"] steps of settings["batch_size"] rows of `task` (domain) →
    (PeftModel, History). The seed draws the initialisation and the batches. lr: the method's rate; a head's stays its own."""
    if lr is not None:
        method = copy.copy(method)
        object.__setattr__(method, "learning_rate", lr)
    tuned = attach(pretrained() if model is None else model, method, rng=seed, head=head)
    history = train(tuned, task or domain(), settings["steps"], batch_size=settings["batch_size"], seed=seed, workers=1,
                    progress=False)
    return tuned, history


def test_loss(model, task=None, split="test"):
    """Nats/token on the test split of `task` (domain)."""
    return evaluate(model, task or domain(), split, workers=1)["loss"]
