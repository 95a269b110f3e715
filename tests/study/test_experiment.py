"""The study's framework: what is measured is kept, reused while it holds, and summed up over seeds as SciPy would."""
import dataclasses
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tests.study.test_dependencies import edited
from tests.study.toy import MEASURED, METRICS, TOY, Length
from tests.study.waiting import WAITING
from tinypeft.commands.cli import main
from tinypeft.study import acceptance, effects, experiment, freshness
from tinypeft.study.acceptance import status
from tinypeft.study.experiment import Results, run
from tinypeft.study.experiments import EXPERIMENTS
from tinypeft.study.freshness import StaleWarning, changes, dated, modules_of, stamp
from tinypeft.study.stored import load
from tinypeft.text import base_corpus, domain_corpus

RESULTS = Path(__file__).parents[2] / "figures" / "results"


@pytest.fixture(autouse=True)
def nothing_measured():
    MEASURED.clear()


def toy(folder, e=TOY, **options):
    return run(e, folder, jobs=1, progress=False, **{"say": lambda line: None, **options})


def accept(e, folder, say=print):
    """`acceptance.accept` for one experiment: its results, or its refusal as an error."""
    told = []
    refused = acceptance.accept([e], folder, jobs=1, progress=False, say=told.append)
    for line in told: say(line)
    if refused: raise ValueError(told[-1])
    return Results(Results.read(folder, e.name))


def with_condition(**values):
    return dataclasses.replace(TOY, conditions=TOY.conditions | values)


def test_everything_is_measured_once(tmp_path):
    first = toy(tmp_path)
    assert len(MEASURED) == 10 and MEASURED[:2] == [(1, 0), (2, 0)]               # seed by seed: all conditions early
    again = toy(tmp_path)
    assert len(MEASURED) == 10 and again.record["runs"] == first.record["runs"]
    assert load(tmp_path, "toy").record == first.record == json.loads((tmp_path / "toy.json").read_text("utf-8"))
    assert first.record["command"] == "python -m tinypeft figures toy --rerun" and len(first.record["base"]) == 64
    assert set(first.record["versions"]) == {"python", "numpy", "scipy", "matplotlib"} and first.record["seconds"] >= 0
    assert first.record["about"] == TOY.about and first.record["metrics"] == METRICS
    assert first.record["conditions"]["bb"]["value"] == "Length(n=2)"


def test_a_list_of_numbers_takes_one_line():
    """What is read is what was written: numbers, infinities, lists in lists, and text that looks like a list."""
    record = {"loss": [1.5, -2e-05, float("inf")], "rows": [[1, 2], [3]], "text": ["[\n 1,\n 2\n]", "a, b"], "none": []}
    text = experiment.as_text(record)
    assert json.loads(text) == record
    assert ' "loss": [1.5, -2e-05, Infinity],\n' in text and "\n  [1, 2],\n  [3]\n" in text and '"a, b"\n' in text


def test_what_was_stopped_goes_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        toy(tmp_path, dataclasses.replace(TOY, settings={"size": 2.0, "stop": 3}))
    stored = json.loads((tmp_path / "toy.json").read_text("utf-8"))
    assert [len(r) for r in stored["runs"].values()] == [2, 1]
    stored["settings"].pop("stop")                                                # as if it had been stopped from outside
    (tmp_path / "toy.json").write_text(json.dumps(stored), "utf-8")
    MEASURED.clear()
    assert toy(tmp_path).seeds == (0, 1, 2, 3, 4) and len(MEASURED) == 7


# -- what is measured again -----------------------------------------------------------------------
def test_what_is_added_is_measured_alone_and_what_is_gone_goes(tmp_path):
    before = toy(tmp_path)
    MEASURED.clear()
    r = toy(tmp_path, with_condition(c=Length(3)))
    assert sorted(MEASURED) == [(3, s) for s in range(5)] and r.conditions == ("a", "bb", "c")
    assert r.record["runs"]["a"] == before.record["runs"]["a"] and set(r.record["conditions"]) == {"a", "bb", "c"}
    MEASURED.clear()
    r = toy(tmp_path, dataclasses.replace(TOY, conditions={"c": Length(3), "bb": Length(2)}, seeds=(1, 7)))
    assert sorted(MEASURED) == [(2, 7), (3, 7)] and r.conditions == ("c", "bb") and r.seeds == (1, 7)


def test_a_changed_value_is_measured_alone_and_that_is_told(tmp_path):
    toy(tmp_path)
    MEASURED.clear()
    told = []
    r = toy(tmp_path, with_condition(a=Length(9)), say=told.append)
    assert sorted(MEASURED) == [(9, s) for s in range(5)] and r.conditions == ("a", "bb")
    assert told == ["toy: a is measured again: its value (Length(n=1) → Length(n=9)) changed"]


def restamped(folder, **changed):
    """The stored file as if it had been measured under another stamp."""
    record = json.loads((folder / "toy.json").read_text("utf-8"))
    (folder / "toy.json").write_text(json.dumps(record | changed), "utf-8")


@pytest.mark.parametrize("key, other, says", [
    ("settings", {"size": 3.0}, "settings (size) changed"), ("text", {"base": "0", "domain": "0"}, "the text 'base' changed"),
    ("base", "0", "the base's weights changed")])
def test_what_all_depend_on_makes_all_stale(tmp_path, key, other, says):
    toy(tmp_path)
    restamped(tmp_path, **{key: other})
    MEASURED.clear()
    told = []
    toy(tmp_path, say=told.append)
    assert len(MEASURED) == 10 and len(told) == 2 and all(says in line for line in told)


def other_sources(folder, label, file="tests/study/toy.py", digest="0"):
    """As if `label` had been measured with another version of a module."""
    record = json.loads((folder / "toy.json").read_text("utf-8"))
    used = {c: modules_of(record, c) for c in record["runs"]}
    assert file in used[label]
    used[label] = used[label] | {file: digest}
    restamped(folder, sources=[{"conditions": [c], "modules": modules} for c, modules in used.items()])


def test_changed_code_makes_its_condition_stale_alone(tmp_path):
    toy(tmp_path)
    other_sources(tmp_path, "bb")
    found = status(TOY, tmp_path)
    assert found["fresh"] == ["a"] and found["missing"] == [] and set(found["stale"]) == {"bb"}
    assert [str(c) for c in found["stale"]["bb"]] == ["tests/study/toy.py changed"]
    MEASURED.clear()
    r = toy(tmp_path)
    assert sorted(MEASURED) == [(2, s) for s in range(5)] and r.seeds == (0, 1, 2, 3, 4)
    assert status(TOY, tmp_path)["fresh"] == ["a", "bb"]


def test_conditions_with_the_same_modules_share_an_entry(tmp_path):
    sources = toy(tmp_path).record["sources"]
    assert [group["conditions"] for group in sources] == [["a", "bb"]] and set(sources[0]["modules"]) == {"tests/study/toy.py"}
    other_sources(tmp_path, "bb")
    record = json.loads((tmp_path / "toy.json").read_text("utf-8"))
    assert modules_of(record, "a") == sources[0]["modules"] and modules_of(record, "bb") == {"tests/study/toy.py": "0"}
    assert modules_of(record, "c") == {}


def test_a_stale_result_is_told_when_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setitem(EXPERIMENTS, "toy", TOY)
    toy(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path, "toy")
    other_sources(tmp_path, "bb")
    says = r"toy: stored numbers are stale \(bb: .*toy.py changed\).*figures toy --rerun"
    with pytest.warns(StaleWarning, match=says) as seen:
        assert load(tmp_path, "toy").mean("bb", "n") == 3                  # it is read all the same
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path, "toy")                                              # it is told once
    assert main(["figures", "--status", "toy", "--out", str(tmp_path.parent)]) == 1


def test_changed_wording_is_taken_over_without_a_run(tmp_path):
    toy(tmp_path)
    MEASURED.clear()
    toy(tmp_path, dataclasses.replace(TOY, about="Said better."))
    assert not MEASURED and load(tmp_path, "toy").record["about"] == "Said better."


# -- accepting a change that moves nothing --------------------------------------------------------
def test_a_refactoring_is_accepted_by_few_runs(tmp_path):
    before = toy(tmp_path)
    other_sources(tmp_path, "a")
    other_sources(tmp_path, "bb")
    MEASURED.clear()
    said = []
    r = accept(TOY, tmp_path, say=said.append)
    assert MEASURED == [(1, 0)] and r.record["runs"] == before.record["runs"] and status(TOY, tmp_path)["fresh"] == ["a", "bb"]
    assert r.record["accepted"]["measured"] == {"a": [0]} and r.record["accepted"]["agreed"] == "equal to 0.0001"
    assert r.record["accepted"]["changed"] == ["tests/study/toy.py"]
    assert said == ["toy: accepted; measured again, seed 0: a; equal to 0.0001"]
    toy(tmp_path, with_condition(c=Length(3)))                                    # the note stays when something is added
    assert "accepted" in load(tmp_path, "toy").record
    accept(with_condition(c=Length(3)), tmp_path, say=said.append)
    assert said[-1] == "toy: nothing is stale"


def test_every_change_is_run_at_least_once(tmp_path):
    toy(tmp_path)
    other_sources(tmp_path, "a", digest="1")
    other_sources(tmp_path, "bb", digest="2")                                     # two versions of it
    MEASURED.clear()
    accept(TOY, tmp_path, say=lambda line: None)
    assert sorted(MEASURED) == [(1, 0), (2, 0)]


def moved(folder, metric, by, seed="0"):
    record = json.loads((folder / "toy.json").read_text("utf-8"))
    for by_seed in record["runs"].values(): by_seed[seed][metric] = by(by_seed[seed][metric])
    (folder / "toy.json").write_text(json.dumps(record), "utf-8")
    return record


@pytest.mark.parametrize("metric, by, says", [
    ("loss", lambda x: x * 1.001, r"toy: nothing was accepted: a, seed 0: loss was [\d.]+, and is [\d.]+\."),
    ("curve", lambda x: [*x[:2], x[2] + 0.01], r"curve \(number 2\) was"), ("curve", lambda x: x[:2], "curve was"),
    ("n", lambda x: 4, "n was 4, and is 3"), ("n", lambda x: "three", "n was 'three', and is 3")])
def test_a_number_that_moved_is_refused(tmp_path, metric, by, says):
    toy(tmp_path)
    other_sources(tmp_path, "a")
    record = moved(tmp_path, metric, by)
    with pytest.raises(ValueError, match=says): accept(TOY, tmp_path)
    assert json.loads((tmp_path / "toy.json").read_text("utf-8")) == record and status(TOY, tmp_path)["stale"]


def test_a_number_of_one_seed_that_moved_is_refused(tmp_path):
    toy(tmp_path)
    other_sources(tmp_path, "a")
    record = moved(tmp_path, "curve", lambda x: [*x[:2], x[2] + 0.01])
    for by_seed in record["runs"].values():
        for seed in set(by_seed) - {"0"}: del by_seed[seed]["curve"]
    (tmp_path / "toy.json").write_text(json.dumps(record), "utf-8")
    with pytest.raises(ValueError, match=r"curve \(number 2\) was"): accept(TOY, tmp_path)


def test_clocks_and_rounding_may_differ(tmp_path):
    toy(tmp_path)
    other_sources(tmp_path, "a")
    moved(tmp_path, "seconds", lambda x: 1000)
    moved(tmp_path, "loss", lambda x: x * (1 + 5e-5))
    assert accept(TOY, tmp_path).record["accepted"]["agreed"] == "equal to 0.0001"


def test_another_blas_may_differ_within_the_interval(tmp_path):
    toy(tmp_path)
    other_sources(tmp_path, "a")
    moved(tmp_path, "loss", lambda x: x + 0.05)
    with pytest.raises(ValueError, match="loss was"): accept(TOY, tmp_path)
    restamped(tmp_path, rounding="of another machine")
    accepted = accept(TOY, tmp_path).record["accepted"]
    assert accepted["agreed"] == "within the stored interval: loss of a"
    other_sources(tmp_path, "a")
    moved(tmp_path, "loss", lambda x: x + 50)
    with pytest.raises(ValueError, match="loss was"): accept(TOY, tmp_path)


def test_only_code_can_be_accepted(tmp_path):
    toy(tmp_path)
    with pytest.raises(ValueError, match=r"for changes of the code, but settings \(size\) changed\. `.* --rerun`"):
        accept(dataclasses.replace(TOY, settings={"size": 3.0}), tmp_path)
    with pytest.raises(ValueError, match="not measured yet: c"): accept(with_condition(c=Length(3)), tmp_path)
    with pytest.raises(ValueError, match="does not exist; .* --rerun"): accept(TOY, tmp_path / "nowhere")


def fails(length, seed, settings): raise RuntimeError("broken")


def test_a_run_that_fails_is_refused_and_the_next_experiment_goes_on(tmp_path):
    other = dataclasses.replace(TOY, name="other")
    toy(tmp_path), toy(tmp_path, other)
    other_sources(tmp_path, "a")
    told = []
    broken = dataclasses.replace(TOY, measure=fails)
    assert acceptance.accept([broken, other], tmp_path, jobs=1, progress=False, say=told.append) == 1
    assert "RuntimeError('broken')" in told[0] and told[1] == "other: nothing is stale"


def test_a_value_that_is_written_otherwise_is_measured_itself(tmp_path):
    toy(tmp_path)
    record = json.loads((tmp_path / "toy.json").read_text("utf-8"))
    record["conditions"]["bb"]["value"] = "Length(2)"
    restamped(tmp_path, conditions=record["conditions"])
    MEASURED.clear()
    accept(TOY, tmp_path)
    assert MEASURED == [(2, 0)] and status(TOY, tmp_path)["fresh"] == ["a", "bb"]


def test_the_hashes_of_the_text_are_those_of_the_corpora():
    assert freshness.text_hashes() == {"base": base_corpus().sha256, "domain": domain_corpus().sha256}


# -- what is stored with the project --------------------------------------------------------------
@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name not in WAITING])
def test_no_stored_result_is_stale(name):
    """The code may not be ahead of the numbers. The text is another matter: another installation has another."""
    e, record = EXPERIMENTS[name], Results.read(RESULTS, name)
    why = changes(record, stamp(e, world=False))
    assert not why, (f"{name} is stale: {freshness.summary(why)}. If no number should move: `python -m tinypeft figures {name} "
                       f"--accept`; else `python -m tinypeft figures {name} --rerun`")
    assert set(record["conditions"]) == set(record["runs"]) == set(e.conditions)
    assert record["about"] == e.about and record["metrics"] == e.metrics


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name not in WAITING])
def test_every_metric_has_a_meaning(name):
    e = EXPERIMENTS[name]
    there = {metric for runs in Results.read(RESULTS, name)["runs"].values() for run in runs.values() for metric in run}
    assert there == set(e.metrics) and e.about.endswith(".")


def test_a_changed_method_is_told_by_name():
    """What a contributor sees who changes a forward pass: which conditions, and what changed."""
    e = EXPERIMENTS["methods"]
    record = dated(stamp(e, world=False), dict.fromkeys(e.conditions, "today")) | {"runs": dict.fromkeys(e.conditions)}
    assert changes(record, stamp(e, world=False)) == {}
    with edited("tinypeft.peft.lora"): why = changes(record, stamp(e, world=False))
    assert {"lora", "dylora", "lora_all"} <= why.keys() and "full" not in why
    assert {tuple(map(str, reasons)) for reasons in why.values()} == {("peft/lora.py changed",)}


# -- numbers -------------------------------------------------------------------------------------
def test_quick_is_smaller_and_processes_give_the_same_numbers(tmp_path):
    from tinypeft.study.experiments.rank import RANK
    two = dataclasses.replace(RANK, quick=RANK.quick | {"steps": 1, "seeds": (0,)})
    one, both = (run(two, tmp_path / str(jobs), quick=True, jobs=jobs, progress=False) for jobs in (1, 2))
    assert one.conditions == both.conditions == ("1", "8") and one.record["settings"]["steps"] == 1
    for c in one.conditions: assert np.array_equal(one.values(c, "loss"), both.values(c, "loss"))


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


def test_mistakes_are_named(tmp_path, capsys):
    r = toy(tmp_path)
    with pytest.raises(KeyError, match="no condition 'z'; there are a, bb"): r.values("z", "loss")
    with pytest.raises(KeyError, match="no metric 'z' of 'a'; there are loss"): r.mean("a", "z")
    with pytest.raises(FileNotFoundError, match="figures nothing --rerun"): load(tmp_path, "nothing")
    for flag in ("--rerun", "--status", "--accept"):
        assert main(["figures", "nothing", flag]) == 2
        assert "no experiment 'nothing'; there are" in capsys.readouterr().err
    assert main(["figures", "nothing"]) == 2 and "no picture 'nothing'" in capsys.readouterr().err


def test_the_command_shows_what_is_fresh_and_accepts_the_others(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(EXPERIMENTS, "toy", TOY)
    folder = tmp_path / "results"
    toy(folder)
    assert main(["figures", "toy", "--status", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "toy                 2 fresh\n"
    other_sources(folder, "a")
    assert main(["figures", "toy", "--status", "--out", str(tmp_path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["toy"]["fresh"] == ["bb"]
    moved(folder, "n", lambda n: 4)
    assert main(["figures", "toy", "--accept", "--out", str(tmp_path), "--jobs", "1"]) == 1
    assert "nothing was accepted" in capsys.readouterr().out
    moved(folder, "n", lambda n: 3)
    assert main(["figures", "toy", "--accept", "--out", str(tmp_path), "--jobs", "1"]) == 0
    assert main(["figures", "toy", "--status", "--out", str(tmp_path)]) == 0


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
    e = effects.difference(a, b)
    assert tuple(map(float, r.difference("a", "b", "loss"))) == pytest.approx((e.mean, e.half))
    assert r.interval("a", "loss") == pytest.approx(effects.among(a, b).half)
    assert r.mean("a", "loss") == pytest.approx(np.average(np.mean(list(a.by_seed.values()), 0), weights=tokens))


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
