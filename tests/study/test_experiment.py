"""What was measured, summed up over seeds as SciPy would, and over documents as effects are."""
import numpy as np
import pytest
from scipy import stats

from tests.study.test_measuring import toy
from tinypeft.study import effects, experiment
from tinypeft.study.experiment import Results
from tinypeft.study.stored import load


def test_intervals_are_students(tmp_path):
    r = toy(tmp_path)
    x, y = r.values("a", "loss"), r.values("bb", "loss")
    low, high = stats.t.interval(0.95, 4, loc=x.mean(), scale=stats.sem(x))
    assert (r.mean("a", "loss"), r.interval("a", "loss")) == pytest.approx(((low + high) / 2, (high - low) / 2))
    ci = stats.ttest_rel(x, y).confidence_interval(0.95)
    mean, half = r.difference("a", "bb", "loss")
    assert (mean - half, mean + half) == pytest.approx((ci.low, ci.high))
    assert r.mean("a", "curve").shape == r.interval("a", "curve").shape == (3,) and r.values("a", "curve").shape == (5, 3)
    assert r.interval("a", "n") == 0 and experiment.half_width([1.0]) == np.inf


def test_mistakes_are_named(tmp_path):
    r = toy(tmp_path)
    with pytest.raises(KeyError, match="no condition 'z'; there are a, bb"): r.values("z", "loss")
    with pytest.raises(KeyError, match="no metric 'z' of 'a'; there are loss"): r.mean("a", "z")
    with pytest.raises(FileNotFoundError, match="figures nothing --rerun"): load(tmp_path, "nothing")


def test_intervals_of_documents_are_those_of_effects():
    """A difference is paired over both; a mean's interval leaves out what the conditions share."""
    rng, tokens = np.random.default_rng(1), np.array([30, 5, 10, 20])
    def runs(mean):
        made = {}
        for seed in range(3):
            sums = (mean + rng.normal(0, 0.1, 4)) * tokens
            made[str(seed)] = {"loss": sums.sum() / tokens.sum(), "loss_documents": sums.tolist()}
        return made
    r = Results({"experiment": "toy", "runs": {"a": runs(2.0), "b": runs(2.5)}}, (tokens,))
    a, b = (effects.read(r, c) for c in "ab")
    e = (a - b).effect
    assert tuple(map(float, r.difference("a", "b", "loss"))) == pytest.approx((e.mean, e.half))
    assert r.interval("a", "loss") == pytest.approx(effects.among(a, b).half)
    assert r.mean("a", "loss") == pytest.approx(np.average(a.values.mean(0), weights=tokens))


def test_a_metric_that_no_other_condition_has_is_beside_their_losses():
    """The loss of a cut by singular values is one condition's alone, and is shown beside the losses of the others."""
    rng, tokens = np.random.default_rng(2), np.array([30, 5, 10, 20])
    of_document = rng.normal(2.0, 0.5, 4)                                     # the text's, which all conditions share
    def run(metric):
        sums = (of_document + rng.normal(0, 0.01, 4)) * tokens
        return {metric: sums.sum() / tokens.sum(), f"{metric}_documents": sums.tolist()}
    runs = {"a": {str(s): run("loss") | run("loss_svd") for s in range(3)}, "b": {str(s): run("loss") for s in range(3)}}
    r = Results({"experiment": "toy", "runs": runs}, (tokens,))
    a, b, svd = effects.read(r, "a"), effects.read(r, "b"), effects.read(r, "a", "loss_svd")
    assert r.interval("a", "loss_svd") == pytest.approx(effects.among(svd, a, b).half)
    assert r.interval("a", "loss_svd") < 0.1 * effects.among(svd).half


def test_intervals_of_a_list_with_documents_have_its_length():
    tokens = np.array([3, 7])
    run = lambda seed: {"loss": [2.0 + seed, 3.0], "loss_documents": [[6.0 + 3 * seed, 14.0 + 7 * seed], [9.0, 21.0]]}
    r = Results({"experiment": "toy", "runs": {c: {str(s): run(s) for s in range(2)} for c in "ab"}}, (tokens,))
    assert r.interval("a", "loss").shape == (2,) and [x.shape for x in r.difference("a", "b", "loss")] == [(2,), (2,)]
