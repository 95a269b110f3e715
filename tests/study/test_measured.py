"""Every experiment can be measured, and its stored numbers are of its conditions, in every field."""
import json
import re
from pathlib import Path

import numpy as np
import pytest

from tinypeft.study.checking import check
from tinypeft.study.conditions import changed, described, in_full
from tinypeft.study.experiments import EXPERIMENTS
from tinypeft.study.measuring import lacking, record_of

from .waiting import WAITING

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "figures" / "results"
OF_FILE = {f"{e.measure.__module__.rpartition('.')[2]} {name}": e for name, e in EXPERIMENTS.items()}
MEASURED = [name for name in EXPERIMENTS if name not in WAITING]


@pytest.mark.long
@pytest.mark.parametrize("e", OF_FILE.values(), ids=OF_FILE)
def test_an_experiment_measures_its_metrics_in_its_quick_form(e):
    """Finite numbers, with one seed and two conditions."""
    settings = json.loads(json.dumps(e.settings | e.quick))
    labels, seeds = settings.pop("conditions", list(e.conditions)), settings.pop("seeds", e.seeds)
    measured = set()
    for label in labels[:2]:
        found = e.measure(e.conditions[label], seeds[0], settings)
        measured |= found.keys()
        for name, value in found.items():
            if name == "log_best": continue              # after two steps the best rate may be the last that was tried
            if (array := np.asarray(value)).dtype.kind in "fiu": assert np.isfinite(array).all(), (label, name)
    assert measured and measured <= e.metrics.keys()
    assert measured == e.metrics.keys() or len(e.conditions) > 2


@pytest.mark.parametrize("name", MEASURED)
def test_stored_numbers_are_of_todays_conditions_and_settings(name):
    """A default that changes, a rate, and a number that was changed by hand are found here, without measuring. Whether the code
    still gives the numbers is measured by `python -m tinypeft figures --check`."""
    e = EXPERIMENTS[name]
    record = record_of(e, RESULTS)                       # refuses runs whose hash is another
    again = f"`python -m tinypeft figures {name} --rerun` measures what changed or is missing"
    assert not changed(e, record), again
    assert not lacking(e, record["runs"]), again
    assert list(record["runs"]) == list(record["conditions"]) == list(e.conditions), again
    assert {"conditions": record["conditions"], "settings": record["settings"]} == in_full(e)
    assert record["about"] == e.about and record["metrics"] == e.metrics, again


@pytest.mark.parametrize("name", ["double_quantization", "formats", "awq", pytest.param("rank", marks=pytest.mark.long)])
def test_measuring_again_gives_the_stored_numbers(name, tmp_path):
    """What `figures --check` measures of an experiment. All of them are checked every night."""
    found = check([EXPERIMENTS[name]], RESULTS, tmp_path, {}, jobs=1, progress=False)[name]
    if found.not_comparable: pytest.xfail("this installation carries other versions of the text")
    assert found.measured and found.holds(), found.lines()


@pytest.mark.parametrize("name", MEASURED)
def test_every_metric_has_a_meaning(name):
    e = EXPERIMENTS[name]
    there = {metric for runs in record_of(e, RESULTS)["runs"].values() for run in runs.values() for metric in run}
    assert there == set(e.metrics) and e.about.endswith(".")


def test_all_results_were_measured_with_the_same_versions():
    """They are compared with each other, and a check needs one environment."""
    heads = [record_of(EXPERIMENTS[name], RESULTS) for name in MEASURED]
    heads += [json.loads((RESULTS / f"{name}.json").read_text("utf-8")) for name in ("compare", "compare_all")]
    kinds = {json.dumps({key: head[key] for key in ("versions", "rounding", "text", "base")}) for head in heads}
    assert len(kinds) == 1


def test_the_nightly_check_has_the_versions_of_the_results():
    versions = record_of(EXPERIMENTS["methods"], RESULTS)["versions"]
    job = (ROOT / ".github" / "workflows" / "nightly.yml").read_text("utf-8")
    pins = dict(re.findall(r"(numpy|scipy|matplotlib)==(\S+)", job)) | dict(re.findall(r'(python)-version: "(.+)"', job))
    assert pins == versions


def test_no_two_conditions_of_an_experiment_are_the_same():
    for e in EXPERIMENTS.values():
        values = [json.dumps(described(value)) for value in e.conditions.values()]
        assert len(set(values)) == len(values), e.name


def test_what_waits_is_not_measured():
    """What was measured leaves the list."""
    for name in WAITING:
        record = record_of(EXPERIMENTS[name], RESULTS)
        assert changed(EXPERIMENTS[name], record) or lacking(EXPERIMENTS[name], record["runs"]), name
