"""What can be had without a language model, from the same training split: nothing here is random, one run is all."""
from ..experiment import Experiment
from ..tuning import classify, domain

METRIC = {"domain": "loss", "classify": "accuracy"}


def measure(condition, seed, settings):
    task = {"domain": domain, "classify": classify}[condition]()
    return {name: metrics[METRIC[condition]] for name, metrics in task.baselines.items()}


BASELINES = Experiment(
    "baselines", "Test loss on domain (nats/token) of the unigram and the Kneser–Ney 5-gram model, test accuracy on classify "
    "of the most frequent class and of logistic regression on bags of words.", measure, ("domain", "classify"), {}, {},
    seeds=(0,))
