"""Every method learns, on both tasks and for every seed: the stored measurement says so."""
from pathlib import Path

import pytest

import tinypeft as tp
from tinypeft.study.experiments import EXPERIMENTS
from tinypeft.study.experiments.arms import SURVEYED
from tinypeft.study.stored import load

RESULTS = Path(__file__).parents[2] / "figures" / "results"
STORED = load(RESULTS, "methods")
COMPARED = EXPERIMENTS["methods"].conditions


def test_it_is_about_every_method_as_it_is_now():
    assert STORED.conditions == tuple(COMPARED) and {"frozen", *SURVEYED} < set(COMPARED)
    for name, arm in COMPARED.items():
        if name in tp.METHODS: assert arm.method == tp.METHODS[name]() and arm.lr and arm.classify_lr


@pytest.mark.parametrize("name", SURVEYED)
def test_every_method_beats_the_frozen_base_or_the_page_says_what_is_open(name):
    assert STORED.values(name, "loss").max() < STORED.values("frozen", "loss").min() - 0.05
    gain, half = STORED.difference(name, "frozen", "accuracy")
    page = (RESULTS.parent / "README.md").read_text("utf-8")
    told = page.partition("On *classify* every other method")[2].partition(".")[0]
    assert told and gain > 0 and (gain > half) == (f"`{name}`" not in told)


def test_the_baselines_are_beaten_where_they_are():
    """What a model of 1.2 M parameters cannot do in 150 steps is stored as well: the n-gram model has seen all of train."""
    baselines = load(RESULTS, "baselines")
    assert max(STORED.values(c, "loss").max() for c in STORED.conditions) < baselines.mean("domain", "unigram") - 2
    assert baselines.mean("classify", "majority class") < 0.1
