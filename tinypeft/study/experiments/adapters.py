"""Bottleneck adapters: how narrow may they be, and are they better after a sublayer or beside it (arXiv 2110.04366)?"""
from dataclasses import replace

import numpy as np

from ...engine.tensor import no_grad
from ...peft import PeftModel
from ...training.history import History
from ..experiment import Experiment
from ..tuning import DOCUMENTS, SEEDS, Arm, OnBoth, classify, tested
from .arms import LABELS, best_rate, tuned


def measure(arm: Arm, seed: int, settings: dict) -> dict:
    """The accuracy on classify is measured for arms that have a learning rate there."""
    model, history = arm.train(seed, settings)
    counts = model.summary()
    metrics = tested(model) | {"trained": counts.trained, "share": counts.trained / (counts.total - counts.trained),
                               "seconds": history.seconds}
    return metrics | accuracy(arm, seed, settings)[0] if isinstance(arm, OnBoth) else metrics


def accuracy(arm: OnBoth, seed: int, settings: dict) -> tuple[dict, History]:
    """What an arm reaches on classify: {"accuracy"}, and how it was trained."""
    settings = {"steps": settings["classify_steps"], "batch_size": 16}
    model, history = replace(arm, lr=arm.classify_lr).train(seed, settings, classify(), len(classify().classes))
    return right(model), history


def right(model: PeftModel) -> dict:
    """{"accuracy": on classify's test set, "accuracy_documents": 1 or 0 for every sentence, in an order that is always the
    same}."""
    task, found = classify(), []
    with no_grad():
        for batch in task.batches("test", 32): found += (task.logits(model.eval(), batch).data.argmax(-1) == batch[2]).tolist()
    return {"accuracy": float(np.mean(found)), "accuracy_documents": np.array(found, int).tolist()}


def on_both(experiment: str) -> dict[str, Arm]:
    """The arms of an experiment, with their learning rates on classify where these are tuned as well."""
    return {c: arm if (experiment, c) not in LABELS["classify"] else
            OnBoth(arm.method, arm.lr, classify_lr=best_rate(experiment, c, "classify"))
            for c, arm in tuned(experiment).items()}


ADAPTERS = Experiment(
    "adapters", "Adapters of bottleneck m after (sequential) or beside (parallel, scale 4) both "
    "sublayers of every block, equally many parameters, each at its best learning rate on either task (experiments `rates`, "
    "`classify_rates`). The condition \"sequential 16, norms\" trains the layer norms as well.",
    DOCUMENTS | {"trained": "trained parameters", "share": "trained parameters over the base's",
               "accuracy": "share of classify's test set that is classified correctly, for m = 16: 3.7 % of the parameters",
               "accuracy_documents": "1 or 0 for every sentence of that set",
               "seconds": "seconds in training steps"},
    measure, on_both("adapters"), {"steps": 150, "batch_size": 4, "classify_steps": 200},
    {"steps": 5, "classify_steps": 5, "seeds": (0, 1), "conditions": ("sequential 16", "parallel 16")}, seeds=SEEDS)
