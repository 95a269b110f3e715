"""One short job in several surroundings: what must be equal bit for bit is, and the rest is equal to rounding."""
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.stress import determinism

SURROUNDINGS = {
    "as it is": ({}, 2), "hash seed": ({"PYTHONHASHSEED": "1"}, 2), "BLAS threads": ({"OPENBLAS_NUM_THREADS": "2"}, 2),
    "workers": ({}, 1), "kernel": ({"OPENBLAS_CORETYPE": "Prescott"}, 2)}


@pytest.fixture(scope="module")
def found():
    with ThreadPoolExecutor(2) as pool:
        runs = {name: pool.submit(determinism.run, environment, 4, workers)
                for name, (environment, workers) in SURROUNDINGS.items()}
        return {name: run.result() for name, run in runs.items()}


@pytest.mark.parametrize("name", ["hash seed", "BLAS threads"])
def test_hash_seed_and_blas_threads_change_no_bit(found, name):
    assert found[name] == found["as it is"]


def test_workers_change_rounding_only(found):
    """A batch's parts are added in another order. Quantization has no parts."""
    compared = determinism.compare(found["as it is"], found["workers"])
    assert {"NF4", "GPTQ"} <= {*compared["equal"]}
    assert compared.get("largest difference, loss", 0) < 1e-5 and compared.get("largest difference, tested", 0) < 1e-5


def test_another_processors_kernel_changes_rounding_only(found):
    """Matrix products are added up in another order. NF4 has none; GPTQ may round a weight the other way."""
    compared = determinism.compare(found["as it is"], found["kernel"])
    assert "NF4" in compared["equal"]
    assert compared.get("largest difference, loss", 0) < 1e-5 and compared.get("largest difference, tested", 0) < 1e-5
    assert compared.get("largest difference, GPTQ norms", 0) < 1e-2
