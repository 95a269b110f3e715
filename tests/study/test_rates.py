"""Learning rates: the search brackets the best one, and every experiment uses the best that was measured."""
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tinypeft as tp
from tests.oracles.hf_tokenizers import smollm2
from tinypeft.engine import functional as F
from tinypeft.engine import nn
from tinypeft.study import tuning
from tinypeft.study.experiment import Results
from tinypeft.study.experiments import EXPERIMENTS, arms, best, over_rates, qat, rates, texts
from tinypeft.study.experiments import smollm2 as on_smollm2
from tinypeft.study.stored import load
from tinypeft.text.tasks import LanguageModelling
from tinypeft.training.diagnosis import DivergedError

RESULTS = Path(__file__).parents[2] / "figures" / "results"
MEASURED = [e for e in (rates.RATES, rates.CLASSIFY_RATES, rates.QUANT_RATES) if (RESULTS / f"{e.name}.json").exists()]
SETTINGS = {"tuning_seeds": [100, 101], "first": 3, "most": 9}


def bowl(best, walls=math.inf):
    """A loss that is least at `best` and diverges above `walls`."""
    def loss(rate, seed):
        if rate > walls: raise DivergedError("infinite")
        return math.log(rate / best) ** 2 + seed
    return loss


@pytest.mark.parametrize("best, tried", [(1.0, 3), (1.8, 4), (0.56, 4), (3.24, 5), (0.17, 6)])
def test_the_search_goes_on_until_the_best_lies_between_two(best, tried):
    found = rates.search(bowl(best), 1.0, SETTINGS)
    at = int(np.argmin(found["loss"]))
    assert len(found["rate"]) == tried and 0 < at < tried - 1 and found["rate"][at] == pytest.approx(best, rel=0.03)
    assert list(found["rate"]) == sorted(found["rate"]) and np.allclose(np.mean(found["by_seed"], 1), found["loss"])
    assert np.shape(found["by_seed"]) == (tried, 2)


def test_a_training_that_diverges_is_worse_than_any():
    found = rates.search(bowl(1.8, walls=1.5), 1.0, SETTINGS)
    assert found["rate"] == (0.56, 1.0, 1.8) and found["loss"][-1] == math.inf and np.argmin(found["loss"]) == 1


def test_the_first_rates_may_lie_below_the_expected_one():
    found = rates.search(bowl(1.0), 1.0, SETTINGS, factor=10 ** 0.5, below=2)
    assert found["rate"] == (0.1, 0.32, 1.0, 3.2) and np.argmin(found["loss"]) == 2


def test_a_training_that_diverges_leaves_smollm2_as_it_was(monkeypatch):
    """All trainings of a process are of one model."""
    def diverges(*_): raise DivergedError("infinite")
    model = tp.load_pretrained()
    for name, there in (("smollm2", lambda: model), ("text", lambda *_: None), ("learn", diverges)):
        monkeypatch.setattr(on_smollm2, name, there)
    found = on_smollm2.rates(tuning.Arm(tp.LoRA()), 0, {"tried": 1, "held_out": 0})
    assert found == {"rate": (tp.LoRA().learning_rate,), "loss": (math.inf,)}
    assert type(model.get("blocks.0.attention.query")) is nn.Linear


def test_the_search_ends_where_nothing_is_best():
    assert len(rates.search(lambda rate, seed: -rate, 1.0, SETTINGS)["rate"]) == 9


# -- what was measured ---------------------------------------------------------------------------
def results(**losses):
    return Results({"runs": {label: {"100": {"rate": [1, 2, 3], "loss": loss}} for label, loss in losses.items()}})


def at_edge(results):
    """The arms whose best rate is the first or the last of its grid, which says nothing about the best rate, or diverges."""
    tried = {label: found["loss"] for label, runs in results.record["runs"].items() for found in runs.values()}
    return [label for label, loss in tried.items() if min(loss) in (loss[0], loss[-1], math.inf)]


def test_an_edge_is_found(tmp_path):
    r = results(inside=[2, 1, 2], low=[1, 2, 3], high=[3, 2, 1], broken=[math.inf] * 3)
    assert at_edge(r) == ["low", "high", "broken"]
    (tmp_path / "rates.json").write_text(json.dumps(r.record), "utf-8")
    assert best.best_rates(tmp_path, "rates") == {"inside": 2, "low": 1, "high": 3, "broken": 1}


@pytest.mark.parametrize("experiment", MEASURED, ids=lambda e: e.name)
def test_no_best_rate_lies_at_the_edge_of_its_grid(experiment):
    assert at_edge(load(RESULTS, experiment.name)) == []


def test_every_arm_has_the_rate_of_the_files():
    """Where there are no files, as in an installed wheel, it is the expected one."""
    found = best.of_files()
    assert found == {"domain": best.best_rates(RESULTS, "rates"), "classify": best.best_rates(RESULTS, "classify_rates"),
                     "quant": best.best_rates(RESULTS, "quant_rates"), "smollm2": best.best_rates(RESULTS, "smollm2_rates")}
    assert found["domain"].keys() == arms.TRIED["domain"].keys() and found["quant"].keys() == qat.TRAINED.keys()
    assert best.best_rates(RESULTS / "nowhere", "rates") == {}
    assert best.measured_rate("domain", "an arm that is new", 0.5) == 0.5


def test_from_an_installed_wheel_an_arm_has_the_expected_rate(tmp_path):
    """Beside the package there are no figures."""
    package = Path(tp.__file__).parent
    shutil.copytree(package, tmp_path / "tinypeft", ignore=shutil.ignore_patterns("__pycache__"))
    code = ("from tinypeft.study.experiments import EXPERIMENTS, arms\n"
            "assert all(arms.tuned(e)[c].lr == arm.lr for e, of in arms.ARMS.items() if e != 'methods' for c, arm in of.items()"
            " if arms.LABELS['domain'][e, c] == f'{e}: {c}')\nprint(len(EXPERIMENTS), arms.__file__)")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == str(len(EXPERIMENTS)) and str(tmp_path) in done.stdout


def test_tuning_uses_seeds_that_nothing_else_does():
    used = {seed for e in EXPERIMENTS.values() if e not in MEASURED for seed in e.seeds}
    assert not used & {100, 101} and all(e.settings["tuning_seeds"] == [100, 101] for e in MEASURED)


# -- where the experiments take them from --------------------------------------------------------
def test_an_arm_that_stands_twice_has_one_label():
    labels = arms.LABELS["domain"]
    assert labels["methods", "lora"] == labels["rank", "8"] == "lora"
    assert labels["placement", "all six r=4"] == "lora_all" and labels["qlora", "int2"] == labels["loftq", "QLoRA, 2 bits"]
    assert labels["batches", "full, 4 rows"] == "full" and labels["batches", "full, 64 rows"] == "batches: full, 64 rows"
    assert labels["prompts", "prompt base"] == "prompt" and labels["prompts", "prompt small"] == "prompts: prompt small"
    assert labels["adalora", "AdaLoRA 12 → 8"] == "adalora: AdaLoRA 12 → 8"                     # it is trained for longer
    assert set(labels.values()) == set(arms.TRIED["domain"]) == set(rates.RATES.conditions)
    assert set(rates.CLASSIFY_RATES.conditions) == set(arms.LABELS["classify"].values())


def test_experiments_state_the_best_rate(monkeypatch):
    found = best.of_files()
    monkeypatch.setitem(found["domain"], "rank: 64", 0.123)
    monkeypatch.delitem(found["domain"], "rank: 2")
    assert arms.tuned("rank")["64"].lr == 0.123 and arms.tuned("rank")["2"].lr == arms.ARMS["rank"]["2"].lr
    monkeypatch.setitem(found["quant"], "STE, 2 bits", 0.5)
    assert qat.at_best("STE, 2 bits").lr == 0.5


@pytest.mark.parametrize("name", sorted(arms.ARMS))
def test_no_arm_of_an_experiment_has_another_rate(name):
    """An experiment is made of tuned arms, and nothing beside."""
    tuned = arms.tuned(name)
    for condition, value in EXPERIMENTS[name].conditions.items():
        arm = getattr(value, "arm", value)
        if condition in tuned: assert (arm.method, arm.lr, arm.times) == (
            tuned[condition].method, tuned[condition].lr, tuned[condition].times)
        else: assert arm.lr is None or arm.lr in {a.lr for a in [*tuned.values(), *arms.tuned("prompts").values()]}


@pytest.mark.parametrize("method, share", [("lora_all", 0.05), ("adapter", 0.05), ("prompt", 0.0044)])
def test_sizes_compare_equal_shares(method, share):
    for base in ("small", "medium", "base"):
        counts = arms.ARMS["sizes"][f"{method} {base}"].start(0).summary()
        assert counts.trained / (counts.total - counts.trained) == pytest.approx(share, rel=0.11), base


# -- one run -------------------------------------------------------------------------------------
def test_the_documents_make_up_the_loss():
    model, text = tuning.pretrained(), tuning.domain()
    found = tuning.tested(model, "before", text)
    assert found["before"] == pytest.approx(tuning.test_loss(model, text), abs=1e-5)
    tokens = texts.measure("domain, every fourth", 0, {})["tokens"]
    assert len(found["before_documents"]) == len(tokens) and sum(tokens) == len(text.data("test")) - 1
    assert sum(found["before_documents"]) / sum(tokens) == pytest.approx(found["before"], abs=1e-4)


def test_a_document_s_nats_are_those_of_its_tokens():
    """Two short documents in one window; the end of text belongs to the document that it ends."""
    model, tokenizer = tuning.pretrained(), tuning.domain().tokenizer
    ids = tokenizer.encode_documents(["An array of floats.", "Draw a line from x to y, in points."])
    task = LanguageModelling("toy", {"test": ids}, {"test": 1}, len(ids) - 1, tokenizer=tokenizer)
    with tp.no_grad(): log_p = F.log_softmax(model.eval()(ids[None, :-1])).data[0]
    nats = -log_p[np.arange(len(ids) - 1), ids[1:]]
    end = int(np.flatnonzero(ids[1:] == tokenizer.end_of_text)[0]) + 1
    np.testing.assert_allclose(tuning.by_document(model, task)[0], [nats[:end].sum(), nats[end:].sum()], rtol=1e-5)


def test_an_arm_may_read_less_text_and_larger_batches():
    settings = {"steps": 8, "batch_size": 2}
    arm = tuning.Arm(arms.on_all(1), 1e-3, rows=8, tokens=1000)
    _, history = arm.train(0, settings)
    assert len(history.loss) == 2 and len(tuning.less_text(1000).data("train")) == 1000
    assert len(tuning.domain().data("train")) > 100_000


def test_the_test_texts_are_told_apart_by_their_documents():
    smollm2()                                            # one of them is counted in its tokens
    counts = [len(texts.measure(name, 0, {})["tokens"]) for name in texts.TEXTS.conditions]
    assert len(set(counts)) == len(counts)


def test_the_lowest_point_of_a_parabola():
    x = np.log10([1, 2, 4, 8, 16])
    assert over_rates.least(x, (x - 0.5) ** 2) == pytest.approx(0.5)
    ends = x, -x, np.array([3, np.inf, 1, 2, 3])         # the least is an end, or has none beside it
    assert np.isnan([over_rates.least(x, y) for y in ends]).all()


def test_an_arm_trains_as_fine_tune_does():
    arm = tuning.Arm(arms.on_all(2), 3e-3, times=2)
    one, history = arm.train(5, {"steps": 1, "batch_size": 2})
    other, _ = tuning.fine_tune(arm.method, 5, {"steps": 2, "batch_size": 2}, lr=3e-3)
    assert len(history.loss) == 2 and tuning.test_loss(one) == tuning.test_loss(other)
