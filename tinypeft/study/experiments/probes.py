"""Probes: what an experiment on fine-tuning measures of an arm that was trained.

    PROBES["norms"]                            a function of a `Trained` arm, and the metrics that it gives, in words
    FineTuning(("loss", "norms"))(arm, 20, settings)      trains the arm with seed 20, and asks it both

An arm whose method is the linear probe changes nothing of the model: on domain it is the frozen base, which is not trained.
"""
from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...engine.nn import Linear
from ...engine.tensor import no_grad
from ...files import fingerprint
from ...peft import DyLoRA, LinearProbe, PeftModel
from ...quant import NF4, quantize, requantize_error
from ...training.history import History
from .. import tuning
from ..bases import kept_text, small_base
from ..compared import traced_peak
from ..experiment import as_lists
from ..tuning import DOCUMENTS, Arm, classify, domain, pretrained, test_loss, tested
from .arms import FEW_BITS

__all__ = ["PROBES", "RANKS", "FineTuning"]

RANKS = 1, 2, 4, 8, 16                                   # at which an arm is used that learned at one


class Trained:
    """An arm after training with a seed. model: what was trained, or the base; history: None if nothing is trained."""

    def __init__(self, arm: Arm, seed: int, settings: dict):
        self.arm, self.seed, self.settings = arm, seed, settings
        self.model: PeftModel = pretrained()
        self.history: History | None = None
        self.trained, self.stored, self.share, self.frozen = 0, 0, 0.0, 0
        if isinstance(arm.method, LinearProbe): return
        self.model, self.history = arm.train(seed, settings)
        counts = self.model.summary()
        self.trained, self.stored, self.share = counts.trained, counts.stored, counts.share
        self.frozen = counts.total - counts.trained

    @functools.cached_property
    def on_classify(self) -> tuple[PeftModel, History]:
        """The same arm, trained on classify."""
        settings = {"steps": self.settings["classify_steps"], "batch_size": 16}
        return self.arm.train_on_classify(self.seed, settings)


@dataclass(frozen=True)
class Probe:
    """metrics: name → its unit and meaning. of: the function. of_training: it asks how the arm was trained."""
    metrics: dict[str, str]
    of: Callable[[Trained], dict]
    of_training: bool = False


@dataclass(frozen=True)
class FineTuning:
    """An experiment's `measure`: train an arm, and ask the probes of these names."""
    probes: tuple[str, ...]

    def __call__(self, arm: Arm, seed: int, settings: dict) -> dict:
        trained, found = Trained(arm, seed, settings), {}
        for probe in (PROBES[name] for name in self.probes):
            if trained.history or not probe.of_training: found |= probe.of(trained)
        return found

    def metrics(self) -> dict[str, str]:
        """Metric → its unit and meaning, of all these probes."""
        return {metric: words for name in self.probes for metric, words in PROBES[name].metrics.items()}


def value_of(name: str, words: str, of: Callable[[Trained], object], of_training: bool = False) -> Probe:
    """A probe of one metric. of: its value."""
    return Probe({name: words}, lambda t: {name: of(t)}, of_training)


# -- losses ----------------------------------------------------------------------------------------
@functools.cache
def untrained(base: str = "base", name: str = "loss", text: Callable | None = None) -> dict:
    """What `tested` gives of a base. text: makes the task, if it is not domain."""
    return tested(small_base(base), name, text() if text else None)


def changes(before: dict, after: dict, sign: int = 1) -> dict:
    """after − before, or with sign −1 before − after, of a loss in nine digits and of its documents in two."""
    return {name: np.round(sign * np.subtract(after[name], before[name]), 2 if name.endswith("documents") else 9)
            for name in after}


def gain(t: Trained) -> dict:
    """What an arm gains on its base."""
    before, after = untrained(t.arm.base), tested(t.model)
    documents = np.round(np.subtract(before["loss_documents"], after["loss_documents"]), 2)
    return {"gain": before["loss"] - after["loss"], "gain_documents": documents, "before": before["loss"],
            "loss": after["loss"]}


def forgetting(t: Trained) -> dict:
    """The loss on text of the base's own kind, and what training added to it."""
    after = tested(t.model, "forgetting", kept_text())
    return changes(untrained("base", "forgetting", kept_text), after) | {"base_loss": after["forgetting"]}


def accuracy(t: Trained) -> dict:
    """The share of classify's test set that is right, and 1 or 0 for every sentence, in an order that is always the same."""
    if t.arm.classify_lr is None: return {}
    model, task, right = t.on_classify[0].eval(), classify(), []
    with no_grad():
        for batch in task.batches("test", 32): right += (task.logits(model, batch).data.argmax(-1) == batch[2]).tolist()
    return {"accuracy": float(np.mean(right)), "accuracy_documents": np.array(right, int)}


def curve(history: History) -> list[float]:
    """Training loss per step, nats, in four digits."""
    return [round(x, 4) for x in history.loss]


# -- ranks -----------------------------------------------------------------------------------------
def at_ranks(t: Trained) -> dict:
    """The loss at every rank of RANKS. DyLoRA is set to it. A LoRA is cut to its first b rows of A and columns of B, or, by
    SVD, to the b largest singular values of ΔW; its scale stays α/16, or becomes α/b."""
    if isinstance(t.arm.method, DyLoRA): return as_lists(tested(t.model.set_rank(b)) for b in RANKS)
    layers, R = list(t.model.wrappers.values()), t.arm.method.rank
    learned = [(layer.A.data, layer.B.data, layer.scale, layer.svd()) for layer in layers]

    def cut(b, rescale=1.0, svd=False):
        for layer, (A, B, scale, (U, S, Vt)) in zip(layers, learned, strict=True):
            if svd: layer.B.data, layer.A.data, layer.scale = U[:, :b] * S[:b], Vt[:b], 1.0
            else:   layer.B.data, layer.A.data, layer.scale = B[:, :b], A[:b], scale * rescale
        return t.model
    return as_lists(tested(cut(b)) | tested(cut(b, svd=True), "loss_svd") | tested(cut(b, R / b), "loss_rescaled")
                    for b in RANKS)


def budget(t: Trained) -> dict:
    """AdaLoRA's singular values in all, after every step."""
    if not hasattr(t.arm.method, "budget"): return {}
    n, steps = len(t.model.wrappers), len(t.history.loss)
    return {"budget": [t.arm.method.budget(step, steps, n) for step in range(1, steps + 1)]}


# -- weights ---------------------------------------------------------------------------------------
def change_of_norms(t: Trained) -> float:
    """The mean over the neurons of all changed layers of |‖w′‖/‖w‖ − 1|, w a row of W; 0 if no layer's weight is changed."""
    changed = {path: layer.dense_weight() for path, layer in t.model.wrappers.items() if layer.is_mergeable}
    if not t.model.wrappers:                             # full fine-tuning
        changed = {path: layer.weight.data for path, layer in t.model.model.named_modules()
                   if path.startswith("blocks.") and isinstance(layer, Linear)}
    base, lengths = pretrained(), functools.partial(np.linalg.norm, axis=1)
    changes = [np.abs(lengths(W) / lengths(base.get(path).weight.data) - 1) for path, W in changed.items()]
    return float(np.mean(np.concatenate(changes))) if changes else 0.0


def merged(t: Trained) -> dict:
    """A LoRA on a rounded base is merged into it in floating point, into the 16-bit weights that it was not trained on, or into
    weights that are then rounded again. One on 16 bits is merged, and the weights are rounded in two ways."""
    merged = t.model.merge()
    found = {"merged": test_loss(merged)}
    if t.arm.scheme is None:
        to_NF4, to_int3 = (quantize(copy.deepcopy(merged), scheme) for scheme in (NF4(), FEW_BITS["3 bits"]))
        return found | tested(to_NF4, "to_NF4") | tested(to_int3, "to_int3")
    exact = pretrained()
    for path, wrapper in t.model.wrappers.items(): exact.get(path).weight.data += wrapper.delta()
    of_change = requantize_error(t.model, t.arm.scheme)[1]
    again = quantize(merged, t.arm.scheme)
    return (found | tested(exact, "merged_into_16_bits") | tested(again, "merged_and_rounded")
            | {"rounding_of_change": of_change})


def of_base(t: Trained) -> dict:
    base = small_base(t.arm.base)
    return {"parameters": base.n_parameters(), "weights": fingerprint(base.state_dict())[:16],
            "share_trained": t.trained / base.n_parameters()}


# -- the table -------------------------------------------------------------------------------------
BY_DOCUMENT = "nats, one sum per document of the test text"
PROBES = {
    "loss": Probe(DOCUMENTS, lambda t: tested(t.model)),
    "loss on some": Probe(DOCUMENTS, lambda t: tested(t.model, task=tuning.domain())),       # every fourth document
    "before": Probe({"before": "nats/token, domain test, before training", "before_documents": BY_DOCUMENT},
                    lambda t: tested(t.arm.start(t.seed), "before")),
    "after": Probe({"after": "nats/token, domain test, after training", "after_documents": BY_DOCUMENT},
                   lambda t: tested(t.model, "after")),
    "gain": Probe({"gain": "nats/token, the difference", "gain_documents": BY_DOCUMENT,
                   "before": "nats/token, domain test, before training",
                   "loss": "nats/token, domain test, after training"}, gain),
    "forgetting": Probe({"forgetting": "nats/token, base_loss minus the same before training",
                         "forgetting_documents": "nats, one sum per document of that text",
                         "base_loss": "nats/token on test text of the base's own kind, after training on domain"}, forgetting),
    "forgotten": value_of("forgetting", "nats/token, lost on test text of the base's own kind",
                          lambda t: test_loss(t.model, kept_text()) - test_loss(pretrained(), kept_text())),
    "accuracy": Probe({"accuracy": "share of classify's test set that is classified correctly",
                       "accuracy_documents": "1 or 0 for every sentence of that set"}, accuracy),
    "classify curve": value_of("classify_curve", "nats, classify training loss per step",
                               lambda t: curve(t.on_classify[1])),
    "at ranks": Probe({"loss": "nats/token, domain test, one per rank; LoRA cut to its first b rows and columns, scale α/16",
                       "loss_documents": "nats, one sum per rank and document of the test text",
                       "loss_rescaled": "loss with scale α/b", "loss_rescaled_documents": "the same by document",
                       "loss_svd": "loss, cut to the b largest singular values",
                       "loss_svd_documents": "the same by document"}, at_ranks),
    "trained": value_of("trained", "trained parameters", lambda t: t.trained),
    "stored": value_of("stored", "stored parameters", lambda t: t.stored),
    "share": value_of("share", "trained parameters over all", lambda t: t.share),
    "share of the base": value_of("share", "trained parameters over the base's", lambda t: t.trained / t.frozen),
    "base": Probe({"parameters": "parameters of the base", "weights": "hash of the base's weights",
                   "share_trained": "trained parameters over the base's"}, of_base),
    "norms": value_of("norms", "mean relative change of the length of a neuron's weights", change_of_norms),
    "ranks": value_of("ranks", "final rank of every matrix, layer by layer: query, key, value, output, up, down",
                      lambda t: list(t.model.ranks().values())),
    "budget": Probe({"budget": "singular values in all, after every step (AdaLoRA)"}, budget),
    "merged": Probe({"merged": "nats/token, merged into the weights it was trained on",
                     "merged_into_16_bits": "nats/token, merged into the weights before rounding",
                     "merged_into_16_bits_documents": "the same, by document",
                     "merged_and_rounded": "nats/token, merged and rounded to the same format again",
                     "merged_and_rounded_documents": "the same, by document",
                     **{f"to_{name}": f"nats/token, trained on 16 bits, merged and rounded to {name}"
                        for name in ("NF4", "int3")},
                     **{f"to_{name}_documents": "the same, by document" for name in ("NF4", "int3")},
                     "rounding_of_change": "‖Q(M) − M‖/‖ΔW‖, M the merged weights"}, merged),
    "seconds": value_of("seconds", "seconds in training steps", lambda t: t.history.seconds, of_training=True),
    "seconds of a step": value_of(
        "seconds_per_step", "seconds of a clock, on a machine busy with other work: not to be compared",
        lambda t: t.history.seconds / len(t.history.loss), of_training=True),
    "steps": value_of("steps", "training steps", lambda t: len(t.history.loss), of_training=True),
    "curve": value_of("curve", "nats/token, domain training loss per step", lambda t: curve(t.history), of_training=True),
    "peak": value_of("peak_bytes", "bytes that a training step allocates beyond the model",
                     lambda t: traced_peak(t.arm.start(t.seed), domain(), t.settings["batch_size"]), of_training=True),
}
