"""Bottleneck adapters: how narrow may they be, and are they better behind the sublayer or beside it (arXiv 2110.04366)?"""
from ...peft import BottleneckAdapter, ParallelAdapter
from ..experiment import Experiment
from ..tuning import classify, evaluate, fine_tune, test_loss


def measure(condition, seed, settings):
    """`condition` is "sequential m" or "parallel m": after, or beside, both sublayers of every block."""
    kind, m = condition.split()
    method = (BottleneckAdapter(bottleneck=int(m), norms=False) if kind == "sequential" else
              ParallelAdapter(bottleneck=int(m), beside="both"))
    tuned, history = fine_tune(method, seed, settings, lr=settings["lr"][kind])
    counts = tuned.summary()
    metrics = {"loss": test_loss(tuned), "trained": counts.trained, "share": counts.trained / (counts.total - counts.trained),
               "seconds": history.seconds}
    if int(m) in settings["classified"]:
        on_classify = {"steps": settings["classify_steps"], "batch_size": 16}
        tuned, _ = fine_tune(method, seed, on_classify, task=classify(), head=len(classify().classes))
        metrics["accuracy"] = evaluate(tuned, classify(), batch_size=32, workers=1)["accuracy"]
    return metrics


ADAPTERS = Experiment(
    "adapters", "Adapters of bottleneck m behind (sequential, without layer norms) or beside (parallel, scale 4) both "
    "sublayers, equally many parameters, each kind at the best of three learning rates (experiment `rates`): test loss on "
    "domain (nats/token), trained parameters, share of the base's; for m = 16, which is 3.7 %, test accuracy on classify.",
    measure,
    ("sequential 16", "sequential 64", "parallel 16", "parallel 64"),
    {"steps": 150, "batch_size": 4, "classify_steps": 200, "classified": [16], "lr": {"sequential": 0.015, "parallel": 0.003}},
    {"steps": 5, "classify_steps": 5, "seeds": (0, 1), "conditions": ("sequential 16", "parallel 16")})
