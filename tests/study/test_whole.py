"""The whole study by one command: the rates come first, and what is there is not measured again."""
import dataclasses
import json
import subprocess

import pytest

from tests.study.toy import MEASURED, TOY, Length, measure
from tinypeft.commands.cli import main
from tinypeft.study import whole
from tinypeft.study.measuring import run

ORDER = []


def noted(value, seed, settings):
    if settings["name"] not in ORDER: ORDER.append(settings["name"])
    return measure(value, seed, settings)


def toy(name):
    return dataclasses.replace(TOY, name=name, measure=noted, settings=TOY.settings | {"name": name}, seeds=(0, 1))


@pytest.fixture
def study(monkeypatch):
    """Two experiments on rates, after one that uses them."""
    ORDER.clear(), MEASURED.clear()
    there = {name: toy(name) for name in ("use", "rates", "more_rates")}
    monkeypatch.setattr(whole, "EXPERIMENTS", there)
    monkeypatch.setattr(whole, "FILES", {"domain": "rates", "classify": "more_rates"})
    monkeypatch.setattr(whole, "best_rates", lambda folder, name: {})
    return there


def test_rates_come_first_and_what_is_there_is_kept(study, tmp_path):
    said = []
    assert whole.measure_all(tmp_path, jobs=1, say=said.append) == 0
    assert ORDER == ["rates", "more_rates", "use"] and len(MEASURED) == 12
    assert said[0] == ("12 runs are missing: about 0 minutes of processor time, and the time of what was never "
                       "measured: use, rates, more_rates.")
    assert whole.measure_all(tmp_path, jobs=1, say=said.append) == 0 and len(MEASURED) == 12


def test_new_rates_start_the_command_again(study, tmp_path, monkeypatch):
    """This process has read the old ones, so that it measures nothing with them."""
    called, rates = [], iter([1.0, 1.0, 1.0, 2.0])       # of both files, before and after
    monkeypatch.setattr(whole, "best_rates", lambda folder, name: {"full": next(rates)})
    done = subprocess.CompletedProcess([], returncode=3)
    monkeypatch.setattr(whole.subprocess, "run", lambda words, check: called.append(words) or done)
    assert whole.measure_all(tmp_path / "results", jobs=1, say=lambda line: None) == 3
    assert ORDER == ["rates", "more_rates"]
    assert called[0][1:] == ["-m", "tinypeft", "figures", "--rerun", "--out", str(tmp_path), "--jobs", "1"]


def test_the_estimate_counts_what_is_missing(study, tmp_path):
    e = study["use"]
    stored = run(e, tmp_path, jobs=1, progress=False).record
    (tmp_path / "use.json").write_text(json.dumps(stored | {"seconds": 4 * 60.0}), "utf-8")
    more = dataclasses.replace(e, seeds=tuple(range(6)))
    assert whole.estimate([e], tmp_path) == "0 runs are missing: about 0 minutes of processor time."
    assert whole.estimate([more], tmp_path) == "8 runs are missing: about 8 minutes of processor time."
    other = dataclasses.replace(e, conditions={"a": Length(1), "bb": Length(7)})
    assert whole.estimate([other], tmp_path) == "2 runs are missing: about 2 minutes of processor time."


def test_the_command_line_reaches_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(whole, "measure_all", lambda folder, jobs: print(folder, jobs))
    assert not main(["figures", "--rerun", "--jobs", "2", "--out", str(tmp_path)])
    assert capsys.readouterr().out.strip() == f"{tmp_path / 'results'} 2"
