"""Every method on two tasks, at its best learning rate on each: quality, forgetting, and cost."""
import numpy as np

from ...peft import LinearProbe
from ..bases import kept_text
from ..compared import traced_peak
from ..experiment import Experiment, Results
from ..tuning import DOCUMENTS, SEEDS, OnBoth, domain, pretrained, tested
from .adapters import accuracy, on_both

COMPARED = {"frozen": OnBoth(LinearProbe()), **on_both("methods")}


def measure(arm: OnBoth, seed: int, settings: dict) -> dict:
    """A linear probe changes nothing of the model, so that on domain it is the frozen base."""
    metrics, history = accuracy(arm, seed, settings)
    metrics["classify_curve"] = curve(history)
    before = tested(pretrained(), "forgetting", kept_text())
    if isinstance(arm.method, LinearProbe):
        nothing = {"forgetting": 0.0, "forgetting_documents": [0.0] * len(before["forgetting_documents"])}
        return metrics | tested(pretrained()) | nothing | {"base_loss": before["forgetting"], "trained": 0, "stored": 0,
                                                           "share": 0.0}
    peak = traced_peak(arm.start(seed), domain(), settings["batch_size"])
    tuned, history = arm.train(seed, settings)
    counts, after = tuned.summary(), tested(tuned, "forgetting", kept_text())
    forgotten = {name: np.round(np.subtract(after[name], before[name]), 2 if name.endswith("documents") else 9)
                 for name in after}
    return metrics | tested(tuned) | {
        **forgotten, "base_loss": after["forgetting"], "trained": counts.trained, "stored": counts.stored,
        "share": counts.share, "peak_bytes": peak, "seconds_per_step": history.seconds / settings["steps"],
        "curve": curve(history)}


def curve(history) -> list[float]:
    """Training loss per step, nats, in four digits."""
    return [round(x, 4) for x in history.loss]


EVERY_METHOD = Experiment(
    "methods", "Every method on domain and on classify, at its best learning rate on each (experiments `rates`, "
    "`classify_rates`); also what it forgets and what it costs.",
    DOCUMENTS | {"curve": "nats/token, domain training loss per step", "trained": "trained parameters",
               "stored": "stored parameters", "share": "trained parameters over all",
               "peak_bytes": "bytes that a training step allocates beyond the model",
               "seconds_per_step": "seconds of a clock, on a machine busy with other work: not to be compared",
               "base_loss": "nats/token on test text of the base's own kind, after training on domain",
               "forgetting": "nats/token, base_loss minus the same before training",
               "forgetting_documents": "nats, one sum per document of that text",
               "accuracy": "share of classify's test set that is classified correctly",
               "accuracy_documents": "1 or 0 for every sentence of that set",
               "classify_curve": "nats, classify training loss per step"},
    measure, COMPARED, {"steps": 150, "batch_size": 4, "classify_steps": 200},
    {"steps": 10, "classify_steps": 5, "seeds": (0, 1), "conditions": ("frozen", "full", "lora")}, seeds=SEEDS)


def table(results: Results) -> str:
    """The results as Markdown: means over seeds, and in brackets the paired difference to full fine-tuning ± half of its 95 %
    interval."""
    from ..claims.words import beside
    from ..markdown import table as markdown_table
    share = lambda c: f"{100 * results.mean(c, 'share'):.2f} %" if c != "frozen" else "–"
    rows = [(f"`{COMPARED[c].method}`", share(c), beside(results, c, "full"), beside(results, c, "full", "accuracy", 1, 100),
             beside(results, c, "full", "forgetting")) for c in results.conditions]
    head = "method", "trained", "*domain*, nats/token", "*classify*, accuracy in %", "forgetting, nats/token"
    return markdown_table(head, rows)
