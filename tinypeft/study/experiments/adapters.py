"""Bottleneck adapters: how narrow may they be, and are they better after a sublayer or beside it (arXiv 2110.04366)?"""
from ...peft import BottleneckAdapter, ParallelAdapter
from ..experiment import Experiment
from ..tuning import Arm, classify, evaluate, fine_tune, test_loss


def measure(arm: Arm, seed: int, settings: dict) -> dict:
    """The accuracy on classify is measured, at the method's own learning rate, for the bottlenecks in "classified" only."""
    tuned, history = fine_tune(arm.method, seed, settings, lr=arm.lr)
    counts = tuned.summary()
    metrics = {"loss": test_loss(tuned), "trained": counts.trained, "share": counts.trained / (counts.total - counts.trained),
               "seconds": history.seconds}
    if arm.method.bottleneck in settings["classified"]:
        on_classify = {"steps": settings["classify_steps"], "batch_size": 16}
        tuned, _ = fine_tune(arm.method, seed, on_classify, task=classify(), head=len(classify().classes))
        metrics["accuracy"] = evaluate(tuned, classify(), batch_size=32, workers=1)["accuracy"]
    return metrics


ADAPTERS = Experiment(
    "adapters", "Adapters of bottleneck m after (sequential, without layer norms) or beside (parallel, scale 4) both "
    "sublayers of every block, equally many parameters, each kind at the best of three learning rates (experiment `rates`).",
    {"loss": "nats/token, domain test", "trained": "trained parameters", "share": "trained parameters over the base's",
     "accuracy": "share of classify's test set that is classified correctly, for m = 16, which is 3.7 % of the parameters",
     "seconds": "seconds in training steps"},
    measure,
    {**{f"sequential {m}": Arm(BottleneckAdapter(bottleneck=m, norms=False), lr=0.015) for m in (16, 64)},
     **{f"parallel {m}": Arm(ParallelAdapter(bottleneck=m, beside="both"), lr=0.003) for m in (16, 64)}},
    {"steps": 150, "batch_size": 4, "classify_steps": 200, "classified": [16]},
    {"steps": 5, "classify_steps": 5, "seeds": (0, 1), "conditions": ("sequential 16", "parallel 16")})
