"""What the main job shows for one seed and a few steps, over seeds and for long enough to learn.

Every method is fine-tuned on *domain* and on *classify* from the base once per seed, which draws its initialisation
and its batches, and measured on 16,384 test tokens of the one and the whole test split of the other, beside the tasks'
baselines on the same. Kept in a file after every method: a run that was stopped
goes on where it was.
"""
import copy
import json
import time
from pathlib import Path

import numpy as np

from ..files import write_atomically
from ..peft import METHODS, LinearProbe, attach
from ..progress import Progress
from ..text import tasks
from ..train import evaluate, train

__all__ = ["spread", "table"]


def spread(model, path, seeds=(0, 1, 2), steps=150, classify_steps=200, progress=None):
    """Measure, store in the JSON file `path`, and return the record: name → label, losses and accuracies, one per seed."""
    domain, classify = tasks.domain(model, context=128, held_out=16384), tasks.classify(model)
    settings = {"command": "python -m tinypeft spread --out figures", "seeds": list(seeds), "steps": steps,
                "classify_steps": classify_steps, "text": {**domain.sha256, **classify.sha256}}
    stored = json.loads(Path(path).read_text(encoding="utf-8")) if Path(path).exists() else {}
    record = stored if stored.get("settings") == settings else {"settings": settings, "methods": {}}
    runs = {"frozen": LinearProbe(), **{name: cls() for name, cls in METHODS.items()}}
    with Progress(len(runs), "spread", progress) as bar:
        for i, (name, method) in enumerate(runs.items()):
            row = record["methods"].get(name)
            what = {"label": str(method), "lr": method.learning_rate}
            if row is None or not what.items() <= row.items():
                record["methods"][name] = {**what, **measure(model, method, domain, classify, settings)}
                record["date"] = time.strftime("%Y-%m-%d")
                write_atomically(path, json.dumps(record, indent=1) + "\n")
            bar(i + 1, str(method))
    if "baselines" not in record:
        record["baselines"] = {"domain": domain.baselines, "classify": classify.baselines}
        write_atomically(path, json.dumps(record, indent=1) + "\n")
    return record


def measure(model, method, domain, classify, settings):
    """Test losses on `domain` and accuracies on `classify` for every seed."""
    loss, accuracy = [], []
    for seed in settings["seeds"]:
        if isinstance(method, LinearProbe):
            loss.append(evaluate(model, domain)["loss"])
        else:
            tuned = attach(copy.deepcopy(model), method, rng=seed)
            train(tuned, domain, settings["steps"], batch_size=4, seed=seed, progress=False)
            loss.append(evaluate(tuned, domain)["loss"])
        tuned = attach(copy.deepcopy(model), method, rng=seed, head=len(classify.classes))
        train(tuned, classify, settings["classify_steps"], batch_size=16, seed=seed, progress=False)
        accuracy.append(evaluate(tuned, classify, batch_size=32)["accuracy"])
    return {"loss": loss, "accuracy": accuracy}


def table(record):
    """The record as Markdown: mean and, in brackets, the range over seeds."""
    show = lambda values, form: f"{form(np.mean(values))} ({form(min(values))} … {form(max(values))})"
    rows = [f"| `{row['label']}` | {show(row['loss'], '{:.3f}'.format)} | {show(row['accuracy'], '{:.1%}'.format)} |"
            for row in record["methods"].values()]
    told = [f"{name} {m['loss']:.3f} nats/token" for name, m in record["baselines"]["domain"].items()]
    told += [f"{name} {m['accuracy']:.1%}" for name, m in record["baselines"]["classify"].items()]
    return "\n".join(["| method | *domain*, nats/token | *classify*, accuracy |", "|---|---|---|", *rows,
                      "", f"Without a language model, trained on the same training split: {', '.join(told)}."])
