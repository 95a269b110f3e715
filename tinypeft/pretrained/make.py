"""`python -m tinypeft pretrain`: train the base model and write what the package ships.

It takes an hour and a half on two cores; an interrupted run resumes. The text is `base_corpus()`.
Every number in training.json is measured here, also the n-gram model's.

The study compares models of three sizes. `python -m tinypeft.pretrained.make small` (or medium)
trains a smaller one by the same recipe, on one core, in about 11 (or 32) minutes; it resumes, too.
`… small:1` draws another one with seed 1, and puts it in the user's cache: `study/bases.py` reads
it.
"""
import dataclasses
import hashlib
import json
import math
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..common.hints import Array
from ..common.threads import blas_threads
from ..files import save_arrays, write_atomically
from ..models.gpt import GPT, GPTConfig
from ..text import BPETokenizer, KneserNey, base_corpus, domain_corpus
from ..text.tasks import LanguageModelling, domain
from ..training.evaluation import evaluate
from ..training.loop import train
from . import FOLDER, WEIGHTS, load_tokenizer
from .base import drawn_bases, drawn_name

CONFIG = GPTConfig(vocab_size=1024, context_length=256, d_model=128, n_layers=5, n_heads=4)
RECIPE = dict(steps=16_000, batch_size=8, lr=2.5e-3, weight_decay=0.1, schedule_kind="cosine",
              warmup=400, lr_floor=0.02, betas=(0.9, 0.98), clip=1.0, seed=0, eval_every=1000,
              eval_batches=8)
SIZES = {"small": dataclasses.replace(CONFIG, d_model=32, n_layers=2),
         "medium": dataclasses.replace(CONFIG, d_model=64, n_layers=3), "base": CONFIG}


def tasks(tokenizer: BPETokenizer, context: int) -> tuple[LanguageModelling, LanguageModelling]:
    """Make two tasks of language modelling: the base's own text, and Matplotlib's."""
    own = LanguageModelling.of_corpus("base", base_corpus(), tokenizer, context)
    return own, domain(tokenizer, context)


def pretrain(work: str | Path, out: str | Path = FOLDER, config: GPTConfig = CONFIG,
             recipe: dict[str, Any] = RECIPE, stop_after: int | None = None,
             progress: Any = None) -> dict[str, Any] | None:
    """Train the base; return its record, or None if `stop_after` ended training early.

    work: a folder for the checkpoint. out: the folder for weights, tokenizer and record."""
    work, out = Path(work), Path(out)
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = BPETokenizer.train(base_corpus().text("train"), config.vocab_size)
    own, other = tasks(tokenizer, config.context_length)
    model = GPT(config, rng=recipe["seed"])
    history = train(model, own, **recipe, checkpoint=work / "checkpoint.safetensors",
                    checkpoint_every=500, stop_after=stop_after, progress=progress)
    if len(history.loss) < recipe["steps"]:
        return None
    half = {name: a.astype(np.float16) for name, a in model.state_dict().items()}
    model.load_state_dict(half)                               # the shipped weights are measured
    model.tokenizer = tokenizer
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(out / "tokenizer.json")
    save_weights(out, half, config)
    ngram, results = KneserNey(order=5).fit(own.data("train"), config.vocab_size), {}
    ngram.tune(own.data("validation"))
    for task in (own, other):
        results[f"{task.name} test"] = evaluate(model, task, "test")
        results[f"5-gram {task.name} test"] = task.finish({"loss": ngram.loss(task.data("test"))})
    record = {
        "command": f"python -m tinypeft pretrain --out {out.name}",
        "config": dataclasses.asdict(config), "recipe": recipe,
        "parameters": sum(p.size for p in model.parameters()),
        "corpus": {"base": base_corpus().sha256, "domain": domain_corpus().sha256,
                   "tokens": {split: len(ids) for split, ids in own.splits.items()}},
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "seconds": round(history.seconds), "loss_curve": curve(history.loss),
        "validation": history.evals, "results": results}
    write_atomically(out / "training.json", json.dumps(record) + "\n")
    return record


def save_weights(folder: Path, arrays: dict[str, Array], config: GPTConfig) -> None:
    """Write a model's arrays to a folder."""
    save_arrays(folder / WEIGHTS, arrays, {"config": dataclasses.asdict(config)})


def curve(losses: Sequence[float], points: int = 240) -> list[list[float]]:
    """Reduce losses to about `points` pairs [step, mean loss since the last point]."""
    width = max(1, math.ceil(len(losses) / points))
    return [[min(i + width, len(losses)), round(float(np.mean(losses[i:i + width])), 4)]
            for i in range(0, len(losses), width)]


# -- other sizes, and other draws of a size --------------------------------------------------------
def pretrain_size(name: str, out: str | Path = FOLDER, recipe: dict[str, Any] = RECIPE,
                  progress: Any = None) -> float:
    """Train a model of size `name` of SIZES, write it to `out`/`drawn_name`.safetensors; return its
    validation loss in nats/token.

    The recipe's seed draws the initialisation and the batches. The tokenizer is the shipped one.
    The checkpoint lies in the user's cache directory. Training is deterministic on one machine:
    `size_key` names all that decides the weights."""
    if name not in SIZES:
        raise ValueError(f"there is no size {name!r}; there are {', '.join(SIZES)}")
    config, key, seed = SIZES[name], size_key(name, recipe), recipe["seed"]
    checkpoint = drawn_bases() / f"{name}-{key}.checkpoint.safetensors"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    text, tokenizer = base_corpus(), load_tokenizer()
    own = LanguageModelling.of_corpus("base", text, tokenizer, config.context_length)
    model = GPT(config, rng=seed)
    with blas_threads(1):                                     # the weights depend on the number
        train(model, own, **recipe | {"eval_every": None}, workers=1, checkpoint=checkpoint,
              checkpoint_every=500, progress=progress)
    half = {name: a.astype(np.float16) for name, a in model.state_dict().items()}
    model.load_state_dict(half)                               # the written weights are measured
    loss = evaluate(model, own, "validation", workers=1)["loss"]
    save_arrays(Path(out) / f"{drawn_name(name, seed)}.safetensors", half,
                {"config": dataclasses.asdict(config), "key": key, "validation": loss})
    checkpoint.unlink(missing_ok=True)
    return loss


def size_key(name: str, recipe: dict[str, Any] = RECIPE) -> str:
    """Hash all that decides the weights of a model of some size (16 hex digits): its configuration,
    the recipe, the text and the tokenizer."""
    tokenizer = (FOLDER / "tokenizer.json").read_text(encoding="utf-8")
    decisive = [dataclasses.asdict(SIZES[name]), recipe, base_corpus().sha256, tokenizer]
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:16]


def pretrain_chosen(chosen: str) -> float:
    """Train "small", "medium" (which the package ships), or another draw of a size: "base:2"."""
    name, _, seed = chosen.partition(":")
    if name == "base" and not seed:
        raise ValueError("`python -m tinypeft pretrain` trains the shipped base")
    seed = int(seed or 0)
    return pretrain_size(name, drawn_bases() if seed else FOLDER, RECIPE | {"seed": seed})


if __name__ == "__main__":
    for each in sys.argv[1:]: print(f"{each}: {pretrain_chosen(each):.4f} nats/token")
