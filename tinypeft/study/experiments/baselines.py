"""What is possible without a language model, from the same training split? Nothing here is random: one run is enough."""
from ..experiment import Experiment
from ..tuning import classify, domain

TASKS = {"domain": domain, "classify": classify}


def measure(metric_of: tuple[str, str], seed: int, settings: dict) -> dict:
    """metric_of: (a task, the metric of its baselines)."""
    task, metric = metric_of
    return {name: metrics[metric] for name, metrics in TASKS[task]().baselines.items()}


BASELINES = Experiment(
    "baselines", "What models that are not neural networks reach on the two tasks.",
    {"unigram": "nats/token, domain test", "Kneser–Ney 5-gram": "nats/token, domain test",
     "majority class": "share of classify's test set that is classified correctly",
     "bag of words": "the same, by logistic regression"},
    measure, {"domain": ("domain", "loss"), "classify": ("classify", "accuracy")}, {}, {}, seeds=(0,))
