"""Every experiment can be measured, and its stored numbers are of its conditions."""
import json
from pathlib import Path

import numpy as np
import pytest

from tinypeft.study.acceptance import status
from tinypeft.study.experiments import EXPERIMENTS

from .waiting import WAITING

RESULTS = Path(__file__).parents[2] / "figures" / "results"
OF_FILE = {f"{e.measure.__module__.rpartition('.')[2]} {name}": e for name, e in EXPERIMENTS.items()}


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


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name not in WAITING])
def test_stored_numbers_are_of_todays_conditions_and_settings(name):
    """What the code computes may have changed since: `python -m tinypeft figures --status` tells."""
    record, e = json.loads((RESULTS / f"{name}.json").read_text("utf-8")), EXPERIMENTS[name]
    assert {label: c["value"] for label, c in record["conditions"].items()} == {n: repr(v) for n, v in e.conditions.items()}
    assert record["settings"] == json.loads(json.dumps(e.settings))


def test_what_waits_is_not_measured():
    """What was measured leaves the list."""
    for name in WAITING:
        state = status(EXPERIMENTS[name], RESULTS)
        assert state["missing"] or state["stale"], name
