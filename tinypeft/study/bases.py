"""Two smaller bases beside the shipped one, of the same architecture, tokenizer and text, trained for fewer steps.

    name      d    layers   parameters    trained, 8 × 256 tokens a step
    "small"   32   2            66,432    3,000 steps
    "medium"  64   3           232,000    3,000 steps
    "base"    128  5         1,155,456    the shipped one: 16,000 steps

They are made when first asked for, two and six minutes on one core, and kept in the user's cache directory as
bases/NAME-KEY.npz (`files.save_arrays`: float16 arrays under the names of `GPT.state_dict`, meta {"config": …,
"validation": nats/token}); KEY is a hash of configuration, recipe, text and tokenizer, so that a changed recipe is
another file. What is in the file is a function of these alone: training is deterministic.
"""
import dataclasses
import functools
import hashlib
import json

import numpy as np

from ..files import cache_directory, load_arrays, save_arrays
from ..gpt import GPT, GPTConfig
from ..pretrained import FOLDER, load_pretrained, load_tokenizer
from ..pretrained.make import RECIPE
from ..text import base_corpus
from ..text.tasks import LanguageModelling
from ..train import evaluate, train

__all__ = ["SIZES", "base_text", "small_base"]

SIZES = {"small": GPTConfig(vocab_size=1024, context_length=256, d_model=32, n_layers=2, n_heads=4),
         "medium": GPTConfig(vocab_size=1024, context_length=256, d_model=64, n_layers=3, n_heads=4),
         "base": None}                                   # the shipped one
STEPS = 3000


def small_base(name, progress=None):
    """The base `name` of SIZES, as `load_pretrained` gives the shipped one: a fresh copy, with its tokenizer."""
    if name not in SIZES:
        raise ValueError(f"small_base: there is no base {name!r}; there are {', '.join(SIZES)}")
    if SIZES[name] is None: return load_pretrained()
    path = cache_directory() / "bases" / f"{name}-{key(name)}.npz"
    if not path.exists(): make(name, path, progress)
    arrays, meta = load_arrays(path)
    model = GPT(GPTConfig(**meta["config"]))
    model.load_state_dict({n: a.astype(np.float32) for n, a in arrays.items()})
    model.tokenizer = load_tokenizer()
    return model


def recipe():
    return {**RECIPE, "steps": STEPS, "eval_every": None}


def key(name):
    """16 hex digits that change with whatever decides the weights."""
    what = [dataclasses.asdict(SIZES[name]), recipe(), base_corpus().sha256, (FOLDER / "tokenizer.json").read_text(encoding="utf-8")]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


@functools.cache
def base_text(splits=("train", "validation"), context=256, every=1):
    """The text of the bases as a task, every `every`-th document of it; they have never seen "validation" and "test"."""
    documents = {split: getattr(base_corpus(), split)[::every] for split in splits}
    streams = {split: load_tokenizer().encode_documents(ds) for split, ds in documents.items()}
    n_bytes = {split: sum(len(str(d).encode()) for d in ds) for split, ds in documents.items()}
    return LanguageModelling("base", streams, n_bytes, context, {"base": base_corpus().sha256})


def make(name, path, progress=None):
    """Train the base `name` and write it to `path`; it resumes where it was stopped."""
    model, checkpoint = GPT(SIZES[name], rng=RECIPE["seed"]), path.with_suffix(".checkpoint.npz")
    train(model, base_text(), **recipe(), workers=1, checkpoint=checkpoint, checkpoint_every=1000, progress=progress)
    half = {n: a.astype(np.float16) for n, a in model.state_dict().items()}
    model.load_state_dict({n: a.astype(np.float32) for n, a in half.items()})
    loss = evaluate(model, base_text(), "validation", workers=1)["loss"]
    save_arrays(path, half, {"config": dataclasses.asdict(SIZES[name]), "validation": loss})
    checkpoint.unlink(missing_ok=True)
