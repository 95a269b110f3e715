"""`python -m tinypeft pretrain`: train the base model and write what the package ships.

About an hour and a half on two cores; it can be interrupted and resumes where it was. The text is
`text.base_corpus()`: Python, NumPy and SciPy documentation, split by near-duplicate family, the training part
deduplicated. Every number in training.json is measured here, the n-gram model's on the same tokens.
"""
import dataclasses
import json
import math
import platform
from pathlib import Path

import numpy as np

from ..files import save_arrays, write_atomically
from ..gpt import GPT, GPTConfig
from ..text import BPETokenizer, base_corpus, domain_corpus
from ..text.ngram import KneserNey
from ..text.tasks import LanguageModelling
from ..train import evaluate, train
from . import FOLDER

CONFIG = GPTConfig(vocab_size=1024, context_length=256, d_model=128, n_layers=5, n_heads=4)
RECIPE = dict(steps=16_000, batch_size=8, lr=2.5e-3, weight_decay=0.1, schedule_kind="cosine", warmup=400, lr_floor=0.02,
              betas=(0.9, 0.98), clip=1.0, seed=0, eval_every=1000, eval_batches=8)


def tasks(tokenizer, context):
    """(in-domain task, matplotlib task) for language modelling."""
    def task(name, corpus):
        splits = {split: tokenizer.encode_documents(getattr(corpus, split)) for split in ("train", "validation", "test")}
        return LanguageModelling(name, splits, {split: corpus.n_bytes(split) for split in splits}, context)
    return task("base", base_corpus()), task("domain", domain_corpus())


def pretrain(work, out=FOLDER, config=CONFIG, recipe=RECIPE, stop_after=None, progress=None):
    """Train the base; `work` is a folder for the checkpoint, `out` where weights, tokenizer and record are written.

    Returns the record, or None when `stop_after` ended training early.
    """
    work, out = Path(work), Path(out)
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = BPETokenizer.train(base_corpus().text("train"), config.vocab_size)
    inside, outside = tasks(tokenizer, config.context_length)
    model = GPT(config, rng=recipe["seed"])
    history = train(model, inside, **recipe, checkpoint=work / "checkpoint.npz", checkpoint_every=500,
                    stop_after=stop_after, progress=progress)
    if len(history.loss) < recipe["steps"]:
        return None
    half = {name: a.astype(np.float16) for name, a in model.state_dict().items()}
    model.load_state_dict(half)                                                   # what is measured is what is shipped
    model.tokenizer = tokenizer
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(out / "tokenizer.json")
    save_arrays(out / "weights.npz", half, {"config": dataclasses.asdict(config)})
    results = {}
    ngram = KneserNey(order=5).fit(inside.data("train"), config.vocab_size)
    ngram.tune(inside.data("validation"))
    for task in (inside, outside):
        results[f"{task.name} test"] = evaluate(model, task, "test")
        results[f"5-gram {task.name} test"] = task.finish({"loss": ngram.loss(task.data("test"))}, "test")
    record = {
        "command": f"python -m tinypeft pretrain --out {out.name}", "config": dataclasses.asdict(config), "recipe": recipe,
        "parameters": sum(p.size for p in model.parameters()),
        "corpus": {"base": base_corpus().sha256, "domain": domain_corpus().sha256,
                   "tokens": {split: len(ids) for split, ids in inside.splits.items()}},
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "seconds": round(history.seconds), "loss_curve": curve(history.loss), "validation": history.evals,
        "results": results,
    }
    write_atomically(out / "training.json", json.dumps(record) + "\n")
    return record


def curve(losses, points=240):
    """[step, mean loss since the last point] for a picture."""
    width = max(1, math.ceil(len(losses) / points))
    return [[min(i + width, len(losses)), round(float(np.mean(losses[i:i + width])), 4)] for i in range(0, len(losses), width)]
