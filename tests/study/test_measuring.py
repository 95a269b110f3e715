"""What is measured is kept in a file, reused while its conditions are today's, and continued after a stop."""
import dataclasses
import json

import numpy as np
import pytest

from tests.study.toy import MEASURED, METRICS, TOY, Length
from tinypeft.commands.cli import main
from tinypeft.study import measuring
from tinypeft.study.experiments import EXPERIMENTS
from tinypeft.study.measuring import run
from tinypeft.study.pictures import measured_for
from tinypeft.study.stored import load, load_whole
from tinypeft.text import base_corpus, domain_corpus


@pytest.fixture(autouse=True)
def nothing_measured():
    MEASURED.clear()


def toy(folder, e=TOY, **options):
    return run(e, folder, jobs=1, progress=False, **{"say": lambda line: None, **options})


def with_condition(**values):
    return dataclasses.replace(TOY, conditions=TOY.conditions | values)


def stored(folder):
    return json.loads((folder / "toy.json").read_text("utf-8"))


def changed(folder, **values):
    """Write the stored file with other values of some keys."""
    (folder / "toy.json").write_text(json.dumps(stored(folder) | values), "utf-8")


def test_everything_is_measured_once(tmp_path):
    first = toy(tmp_path)
    assert len(MEASURED) == 10 and MEASURED[:2] == [(1, 0), (2, 0)]               # seed by seed: all conditions early
    again = toy(tmp_path)
    assert len(MEASURED) == 10 and again.record["runs"] == first.record["runs"]
    assert load(tmp_path, "toy").record == first.record == again.record == stored(tmp_path)
    assert first.record["command"] == "python -m tinypeft figures toy --rerun" and len(first.record["base"]) == 64
    assert set(first.record["versions"]) == {"python", "numpy", "scipy", "matplotlib"} and first.record["seconds"] >= 0
    assert first.record["about"] == TOY.about and first.record["metrics"] == METRICS
    assert first.record["conditions"]["bb"] == {"Length": {"n": 2, "wide": False}}


def test_a_list_of_numbers_and_a_condition_take_one_line():
    """What is read is what was written: numbers, infinities, lists in lists, and text that looks like a list."""
    record = {"loss": [1.5, -2e-05, float("inf")], "rows": [[1, 2], [3]], "text": ["[\n 1,\n 2\n]", "a, b"], "none": [],
              "conditions": {"a": {"Length": {"n": [1, 2]}}, "b": "[\n 1\n]"}}
    text = measuring.as_text(record)
    assert json.loads(text) == record and text.endswith("}\n")
    assert '\n "loss": [1.5, -2e-05, Infinity],\n' in text and "\n  [1, 2],\n  [3]\n" in text and '"a, b"\n' in text
    assert '\n  "a": {"Length": {"n": [1, 2]}},\n' in text


def test_what_was_stopped_goes_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        toy(tmp_path, dataclasses.replace(TOY, settings={"size": 2.0, "stop": 3}))
    assert [len(r) for r in stored(tmp_path)["runs"].values()] == [2, 1]
    changed(tmp_path, settings={"size": 2.0})                                     # as if it had been stopped from outside
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
    assert toy(tmp_path).conditions == ("a", "bb")                                # the file's hash is that of what it holds


def test_a_changed_value_is_measured_alone_and_that_is_told(tmp_path):
    toy(tmp_path)
    MEASURED.clear()
    told = []
    r = toy(tmp_path, with_condition(a=Length(9)), say=told.append)
    assert sorted(MEASURED) == [(9, s) for s in range(5)] and r.conditions == ("a", "bb")
    assert told == ["toy: a is measured again: its value.Length.n: 1 → 9"]


def test_a_changed_default_is_another_condition(tmp_path, monkeypatch):
    """The field is not in the call, so that the stored numbers would pass as those of the new default."""
    toy(tmp_path)
    MEASURED.clear()
    wider = dataclasses.make_dataclass("Length", [("n", int), ("wide", bool, True)], frozen=True)
    told = []
    toy(tmp_path, with_condition(a=wider(1), bb=wider(2)), say=told.append)
    assert len(MEASURED) == 10 and told[0] == "toy: a is measured again: its value.Length.wide: false → true"


@pytest.mark.parametrize("key, other, says", [
    ("settings", {"size": 3.0}, "settings.size: 3.0 → 2.0"),
    ("text", {"base": "0", "domain": "0"}, "the text of 'base' is another here (it was read with python 3."),
    ("base", "0", "the base has other weights")])
def test_what_all_depend_on_measures_all_again(tmp_path, key, other, says):
    toy(tmp_path)
    changed(tmp_path, **{key: other})
    MEASURED.clear()
    told = []
    toy(tmp_path, say=told.append)
    assert len(MEASURED) == 10 and len(told) == 2 and all(says in line for line in told)


def test_changed_wording_is_taken_over_without_a_run(tmp_path):
    toy(tmp_path)
    MEASURED.clear()
    told = []
    toy(tmp_path, dataclasses.replace(TOY, about="Said better."), say=told.append)
    assert told == ["toy: nothing is missing, and all settings are today's; --check measures again"]
    assert not MEASURED and load(tmp_path, "toy").record["about"] == "Said better."


# -- files that are refused -----------------------------------------------------------------------
def test_a_number_that_was_changed_by_hand_is_found_and_nothing_is_lost(tmp_path):
    toy(tmp_path)
    runs = stored(tmp_path)["runs"]
    runs["bb"]["3"]["loss"] += 1e-9
    changed(tmp_path, runs=runs)
    before = (tmp_path / "toy.json").read_bytes()
    with pytest.raises(ValueError, match="toy.json: its runs are not those that were measured, because their hash is"):
        toy(tmp_path, with_condition(c=Length(3)))
    assert (tmp_path / "toy.json").read_bytes() == before


def test_a_file_of_the_older_form_is_read_and_not_continued(tmp_path):
    toy(tmp_path)
    old = stored(tmp_path) | {"sources": []}
    del old["runs_hash"]
    (tmp_path / "toy.json").write_text(json.dumps(old), "utf-8")
    assert load(tmp_path, "toy").mean("a", "n") == 3
    with pytest.raises(ValueError, match="has an older form.*--out"): toy(tmp_path)
    assert stored(tmp_path) == old


def test_a_verdict_takes_whole_results_of_today_only(tmp_path, monkeypatch):
    monkeypatch.setitem(EXPERIMENTS, "toy", TOY)
    toy(tmp_path)
    assert load_whole(tmp_path, "toy").conditions == ("a", "bb")
    for other in (with_condition(c=Length(3)), with_condition(a=Length(9)), dataclasses.replace(TOY, seeds=(0, 9)),
                  dataclasses.replace(TOY, settings={"size": 3.0}), dataclasses.replace(TOY, conditions={"a": Length(1)})):
        monkeypatch.setitem(EXPERIMENTS, "toy", other)
        with pytest.raises(KeyError, match="toy was measured in part"): load_whole(tmp_path, "toy")


# -- the world ------------------------------------------------------------------------------------
def test_the_hashes_of_the_text_are_those_of_the_corpora():
    assert measuring.text_hashes() == {"base": base_corpus().sha256, "domain": domain_corpus().sha256}


def test_quick_is_smaller_and_processes_give_the_same_numbers(tmp_path):
    rank = EXPERIMENTS["rank"]
    two = dataclasses.replace(rank, quick=rank.quick | {"steps": 1, "seeds": (0,)})
    one, both = (run(two, tmp_path / str(jobs), quick=True, jobs=jobs, progress=False) for jobs in (1, 2))
    assert one.conditions == both.conditions == ("1", "8") and one.record["settings"]["steps"] == 1
    for c in one.conditions: assert np.array_equal(one.values(c, "loss"), both.values(c, "loss"))


def test_a_name_that_is_no_experiment_is_refused(capsys):
    for flag in ("--rerun", "--check"):
        assert main(["figures", "nothing", flag]) == 2
        assert "no experiment 'nothing'; there are" in capsys.readouterr().err
    assert main(["figures", "nothing"]) == 2 and "no picture 'nothing'" in capsys.readouterr().err


def test_json_is_all_that_a_measurement_prints(tmp_path, monkeypatch, capsys):
    """The second time it has nothing to measure, which is said to people alone."""
    monkeypatch.setitem(EXPERIMENTS, "toy", TOY)
    for _ in range(2):
        assert main(["figures", "toy", "--rerun", "--json", "--jobs", "1", "--out", str(tmp_path)]) in (None, 0)
        assert json.loads(capsys.readouterr().out)["about"] == TOY.about


def test_a_picture_stands_for_the_experiments_that_it_shows():
    """But `rank` is both."""
    assert measured_for(["rank", "pareto", "prompt_sizes", "nothing"]) == ["rank", "methods", "prompts", "nothing"]
