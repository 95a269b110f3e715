"""Two smaller bases, of the same architecture, tokenizer and text as the shipped one, trained for fewer steps.

    name      d    layers   parameters    trained, 8 × 256 tokens a step
    "small"   32   2            66,432    3,000 steps
    "medium"  64   3           232,000    3,000 steps
    "base"    128  5         1,155,456    the shipped one: 16,000 steps

They are trained when they are first needed, in two and six minutes on one core, and kept in the user's cache directory as
bases/NAME-KEY.safetensors (`files.save_arrays`: float16 arrays under the names of `GPT.state_dict`, meta {"config": …,
"validation": nats/token}). KEY is a hash of configuration, recipe, text and tokenizer, so a changed recipe makes another
file. Training is deterministic: these four decide the weights.
"""
import dataclasses
import functools
import hashlib
import json
from pathlib import Path

import numpy as np

from ..files import cache_directory, only_file, save_arrays
from ..gpt import GPT, GPTConfig
from ..pretrained import FOLDER, load_base, load_tokenizer, read_weights
from ..pretrained.make import RECIPE
from ..text import corpus
from ..text.tasks import LanguageModelling
from ..train import evaluate, train

__all__ = ["SIZES", "base_text", "small_base"]

SIZES = {"small": GPTConfig(vocab_size=1024, context_length=256, d_model=32, n_layers=2, n_heads=4),
         "medium": GPTConfig(vocab_size=1024, context_length=256, d_model=64, n_layers=3, n_heads=4),
         "base": None}                                   # the shipped one
STEPS = 3000


def small_base(name: str, progress: bool | None = None) -> GPT:
    """A fresh copy of the base `name` of SIZES, with its tokenizer. Raises ValueError for another name."""
    if name not in SIZES:
        raise ValueError(f"small_base: there is no base {name!r}; there are {', '.join(SIZES)}")
    if SIZES[name] is None: return load_base()
    folder, stem = cache_directory() / "bases", f"{name}-{key(name)}"
    path = only_file(folder, f"{stem}.safetensors", f"{stem}.npz")       # .npz: an older version's
    if path is None: make(name, path := folder / f"{stem}.safetensors", progress)
    model = read_weights(path)
    model.tokenizer = load_tokenizer()
    return model


def recipe() -> dict:
    """The arguments of `train`: those of the shipped base, for fewer steps."""
    return {**RECIPE, "steps": STEPS, "eval_every": None}


def key(name: str) -> str:
    """16 hex digits that change with everything that decides the weights."""
    tokenizer = (FOLDER / "tokenizer.json").read_text(encoding="utf-8")
    decisive = [dataclasses.asdict(SIZES[name]), recipe(), corpus.base_corpus().sha256, tokenizer]
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:16]


@functools.cache
def base_text(splits: tuple[str, ...] = ("train", "validation"), context: int = 256, every: int = 1) -> LanguageModelling:
    """The text of the bases as a task, every `every`-th document of it; they have never seen "validation" and "test"."""
    text = corpus.base_corpus()
    text = dataclasses.replace(text, **{split: getattr(text, split)[::every] for split in splits})
    return LanguageModelling.of_corpus("base", text, load_tokenizer(), context, splits)


def make(name: str, path: Path, progress: bool | None = None) -> None:
    """Train the base `name` and write it to `path`. A training that was stopped continues where it was."""
    model, checkpoint = GPT(SIZES[name], rng=RECIPE["seed"]), path.with_suffix(".checkpoint.safetensors")
    train(model, base_text(), **recipe(), workers=1, checkpoint=checkpoint, checkpoint_every=1000, progress=progress)
    half = {n: a.astype(np.float16) for n, a in model.state_dict().items()}
    model.load_state_dict({n: a.astype(np.float32) for n, a in half.items()})
    loss = evaluate(model, base_text(), "validation", workers=1)["loss"]
    save_arrays(path, half, {"config": dataclasses.asdict(SIZES[name]), "validation": loss})
    checkpoint.unlink(missing_ok=True)
