"""The study's framework: what is measured is kept, reused while it holds, and summed up over seeds as SciPy would."""
import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from tinypeft.cli import main
from tinypeft.study import experiment
from tinypeft.study.experiment import Experiment, Results, run

MEASURED = []


def measure(condition, seed, settings):
    MEASURED.append((condition, seed))
    if len(MEASURED) > settings.get("stop", 99): raise KeyboardInterrupt
    x = np.random.default_rng([len(condition), seed]).standard_normal(3)
    return {"loss": np.float32(settings["size"] + x[0]), "curve": x, "n": np.int64(3)}


TOY = Experiment("toy", "Made-up numbers.", measure, ("a", "bb"), {"size": 2.0}, {"size": 1.0})


@pytest.fixture(autouse=True)
def nothing_measured():
    MEASURED.clear()


def test_everything_is_measured_once(tmp_path):
    first = run(TOY, tmp_path, jobs=1, progress=False)
    assert len(MEASURED) == 10 and MEASURED[:2] == [("a", 0), ("bb", 0)]          # seed by seed: all conditions early
    again = run(TOY, tmp_path, jobs=1, progress=False)
    assert len(MEASURED) == 10 and again.record["runs"] == first.record["runs"]
    assert Results.load(tmp_path, "toy").record == first.record == json.loads((tmp_path / "toy.json").read_text("utf-8"))
    assert first.record["command"] == "python -m tinypeft figures toy --rerun" and len(first.record["base"]) == 64
    assert set(first.record["versions"]) == {"python", "numpy", "scipy", "matplotlib"} and first.record["seconds"] >= 0


def test_what_was_stopped_goes_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(dataclasses.replace(TOY, settings={"size": 2.0, "stop": 3}), tmp_path, jobs=1, progress=False)
    stored = json.loads((tmp_path / "toy.json").read_text("utf-8"))
    assert [len(r) for r in stored["runs"].values()] == [2, 1]
    stored["settings"].pop("stop")                                                # as if it had been stopped from outside
    (tmp_path / "toy.json").write_text(json.dumps(stored), "utf-8")
    MEASURED.clear()
    assert run(TOY, tmp_path, jobs=1, progress=False).seeds == (0, 1, 2, 3, 4) and len(MEASURED) == 7


def test_what_is_added_is_measured_and_what_is_gone_goes(tmp_path):
    run(TOY, tmp_path, jobs=1, progress=False)
    MEASURED.clear()
    r = run(dataclasses.replace(TOY, conditions=("c", "bb"), seeds=(1, 7)), tmp_path, jobs=1, progress=False)
    assert sorted(MEASURED) == [("bb", 7), ("c", 1), ("c", 7)] and r.conditions == ("c", "bb") and r.seeds == (1, 7)


@pytest.mark.parametrize("key", ["settings", "text", "base", "source"])
def test_what_no_longer_holds_is_measured_again_and_that_is_said(tmp_path, monkeypatch, key):
    run(TOY, tmp_path, jobs=1, progress=False)
    MEASURED.clear()
    depends, told = experiment.depends, []
    monkeypatch.setattr(experiment, "depends", lambda *a: depends(*a) | {key: {"another": 1}})
    run(TOY, tmp_path, jobs=1, progress=False, say=told.append)
    assert len(MEASURED) == 10 and key in told[0] and "toy" in told[0]


@pytest.mark.parametrize("line, same", [("# a remark", True), ('"""Said otherwise."""', True), ("TOY = Experiment('x')", True),
                                        ("LIMIT = 3", False), ("def helper(): return 1", False)])
def test_source_is_what_can_change_a_number(tmp_path, monkeypatch, line, same):
    texts = ['"""What."""\nimport math\ndef measure(c, s, t):\n    """How."""\n    return {"x": math.pi}\n'] * 2
    texts[1] = texts[1].replace('"""What."""', line) if line.startswith('"') else texts[1] + line
    hashes = []
    for text in texts:
        (tmp_path / "module.py").write_text(text, "utf-8")
        monkeypatch.setattr(experiment.inspect, "getsourcefile", lambda _: tmp_path / "module.py")
        hashes.append(experiment.source(measure))
    assert (hashes[0] == hashes[1]) == same


def test_quick_is_smaller_and_processes_give_the_same_numbers(tmp_path):
    from tinypeft.study.experiments.rank import RANK
    two = dataclasses.replace(RANK, quick=RANK.quick | {"steps": 1})
    one, both = (run(two, tmp_path / str(jobs), quick=True, jobs=jobs, progress=False) for jobs in (1, 2))
    assert one.conditions == both.conditions == ("1", "8") and one.record["settings"]["steps"] == 1
    for c in one.conditions: assert np.array_equal(one.values(c, "loss"), both.values(c, "loss"))


def test_intervals_are_students(tmp_path):
    r = run(TOY, tmp_path, jobs=1, progress=False)
    x, y = r.values("a", "loss"), r.values("bb", "loss")
    low, high = stats.t.interval(0.95, 4, loc=x.mean(), scale=stats.sem(x))
    assert (r.mean("a", "loss"), r.interval("a", "loss")) == pytest.approx(((low + high) / 2, (high - low) / 2))
    ci = stats.ttest_rel(x, y).confidence_interval(0.95)
    mean, half = r.difference("a", "bb", "loss")
    assert (mean - half, mean + half) == pytest.approx((ci.low, ci.high))
    assert r.mean("a", "curve").shape == r.interval("a", "curve").shape == (3,) and r.values("a", "curve").shape == (5, 3)
    assert r.interval("a", "n") == 0 and experiment.half_width([1.0]) == np.inf


def test_mistakes_are_named(tmp_path, capsys):
    r = run(TOY, tmp_path, jobs=1, progress=False)
    with pytest.raises(KeyError, match="no condition 'z'; there are a, bb"): r.values("z", "loss")
    with pytest.raises(KeyError, match="no metric 'z' of 'a'; there are loss"): r.mean("a", "z")
    with pytest.raises(FileNotFoundError, match="figures nothing --rerun"): Results.load(tmp_path, "nothing")
    assert main(["figures", "nothing", "--rerun"]) == 2 and "no experiment 'nothing'; there are" in capsys.readouterr().err
    assert main(["figures", "nothing"]) == 2 and "no picture 'nothing'" in capsys.readouterr().err
