"""Every method on two tasks, at its best learning rate on each: quality, forgetting, and cost."""
from ...peft import LinearProbe
from ..bases import base_text
from ..compared import traced_peak
from ..experiment import Experiment, Results
from ..tuning import WINDOWS, OnBoth, domain, pretrained, test_loss, tested
from .adapters import accuracy, on_both

COMPARED = {"frozen": OnBoth(LinearProbe()), **on_both("methods")}


def measure(arm: OnBoth, seed: int, settings: dict) -> dict:
    """A linear probe changes nothing of the model, so that on domain it is the frozen base."""
    metrics, history = accuracy(arm, seed, settings)
    metrics["classify_curve"] = curve(history)
    kept = base_text(("test",), 128, 8)
    before = test_loss(pretrained(), kept)
    if isinstance(arm.method, LinearProbe):
        return metrics | tested(pretrained()) | {"base_loss": before, "forgetting": 0.0, "trained": 0,
                                                 "stored": 0, "share": 0.0}
    peak = traced_peak(arm.start(seed), domain(), settings["batch_size"])
    tuned, history = arm.train(seed, settings)
    counts, after = tuned.summary(), test_loss(tuned, kept)
    return metrics | tested(tuned) | {
        "base_loss": after, "forgetting": after - before, "trained": counts.trained, "stored": counts.stored,
        "share": counts.share, "peak_bytes": peak, "seconds_per_step": history.seconds / settings["steps"],
        "curve": curve(history)}


def curve(history) -> list[float]:
    """Training loss per step, nats, in four digits."""
    return [round(x, 4) for x in history.loss]


EVERY_METHOD = Experiment(
    "methods", "Every method on domain and on classify, at its best learning rate on each (experiments `rates`, "
    "`classify_rates`); also what it forgets and what it costs.",
    WINDOWS | {"curve": "nats/token, domain training loss per step", "trained": "trained parameters",
               "stored": "stored parameters", "share": "trained parameters over all",
               "peak_bytes": "bytes that a training step allocates beyond the model",
               "seconds_per_step": "seconds of a clock, on a machine busy with other work: not to be compared",
               "base_loss": "nats/token on test text of the base's own kind, after training on domain",
               "forgetting": "nats/token, base_loss minus the same before training",
               "accuracy": "share of classify's test set that is classified correctly",
               "classify_curve": "nats, classify training loss per step"},
    measure, COMPARED, {"steps": 150, "batch_size": 4, "classify_steps": 200},
    {"steps": 10, "classify_steps": 5, "seeds": (0, 1), "conditions": ("frozen", "full", "lora")}, seeds=tuple(range(8)))


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
