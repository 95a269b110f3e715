"""Every experiment measures what it says, in its quick form: few steps, one seed, two conditions."""
import json

import numpy as np
import pytest

from tinypeft.study.experiments import EXPERIMENTS

OF_FILE = {f"{e.measure.__module__.rpartition('.')[2]} {name}": e for name, e in EXPERIMENTS.items()}


def numbers(value):
    """Yield the numbers of a (nested) list."""
    if isinstance(value, (list, tuple)):
        for part in value: yield from numbers(part)
    else: yield value


@pytest.mark.long
@pytest.mark.parametrize("e", OF_FILE.values(), ids=OF_FILE)
def test_an_experiment_measures_its_metrics_in_its_quick_form(e):
    settings = json.loads(json.dumps(e.settings | e.quick))
    labels = settings.pop("conditions", e.conditions)
    for label in list(labels)[:2]:
        found = e.measure(e.conditions[label], settings.pop("seeds", e.seeds)[0], settings)
        assert found.keys() == e.metrics.keys()
        assert all(np.isfinite(number) for value in found.values() for number in numbers(value)), label
