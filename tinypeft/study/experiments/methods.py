"""Every method on two tasks, at its own learning rate: quality, forgetting, and what it costs."""

from ...peft import METHODS, LinearProbe, LoRA
from ..bases import base_text
from ..compare import traced_peak
from ..experiment import Experiment
from ..tuning import attach, classify, domain, evaluate, fine_tune, pretrained, test_loss

COMPARED = {"frozen": LinearProbe(), **{name: cls() for name, cls in METHODS.items()}, "lora_all": LoRA(rank=4, targets="all")}
RATE = {name: method.learning_rate for name, method in COMPARED.items()} | {"lora_all": 3.3e-3}


def measure(condition, seed, settings):
    method, frozen = COMPARED[condition], condition == "frozen"
    on_classify = {"steps": settings["classify_steps"], "batch_size": 16}
    tuned, history = fine_tune(method, seed, on_classify, task=classify(), head=len(classify().classes), lr=RATE[condition])
    metrics = {"accuracy": evaluate(tuned, classify(), batch_size=32, workers=1)["accuracy"], "classify_curve": curve(history)}
    kept = base_text(("test",), 128, 8)
    before = test_loss(pretrained(), kept)
    if frozen:
        return metrics | {"loss": test_loss(pretrained()), "base_loss": before, "forgetting": 0.0, "trained": 0, "stored": 0,
                          "share": 0.0}
    peak = traced_peak(attach(pretrained(), method, rng=seed), domain(), settings["batch_size"])
    tuned, history = fine_tune(method, seed, settings, lr=RATE[condition])
    counts, after = tuned.summary(), test_loss(tuned, kept)
    return metrics | {"loss": test_loss(tuned), "base_loss": after, "forgetting": after - before, "trained": counts.trained,
                      "stored": counts.stored, "share": counts.share, "peak_bytes": peak,
                      "seconds_per_step": history.seconds / settings["steps"], "curve": curve(history)}


def curve(history):
    """Training loss per step, nats, in four digits."""
    return [round(x, 4) for x in history.loss]


EVERY_METHOD = Experiment(
    "methods", "Every method at its own learning rate. On domain: test loss (nats/token), training loss per step (curve), "
    "trained and stored parameters, share of all parameters, peak bytes that a training step allocates beyond the model, "
    "seconds per step (of a clock, on a machine busy with other work: not to be compared); base_loss on test text of the "
    "base's own kind after that (nats/token), forgetting = the same minus before. On classify: test accuracy, training loss "
    "per step (classify_curve).", measure, tuple(COMPARED),
    {"steps": 150, "batch_size": 4, "classify_steps": 200,
     "methods": {name: [str(m), RATE[name]] for name, m in COMPARED.items()}},
    {"steps": 10, "classify_steps": 5, "seeds": (0, 1), "conditions": ("frozen", "full", "lora")})


def table(results):
    """The results as Markdown: mean over seeds ± half of the 95 % confidence interval."""
    def cell(condition, metric, form):
        return f"{form(results.mean(condition, metric))} ± {form(results.interval(condition, metric))}".replace(" ± 0.000", "")
    labels = {name: label for name, (label, _) in results.record["settings"]["methods"].items()}
    share = lambda c: f"{100 * results.mean(c, 'share'):.2f} %" if c != "frozen" else "–"
    rows = [f"| `{labels[c]}` | {share(c)} | {cell(c, 'loss', '{:.3f}'.format)} | {cell(c, 'accuracy', '{:.1%}'.format)} | "
            f"{cell(c, 'forgetting', '{:.3f}'.format)} |" for c in results.conditions]
    return "\n".join(["| method | trained | *domain*, nats/token | *classify*, accuracy | forgetting, nats/token |",
                      "|---|---|---|---|---|", *rows])
