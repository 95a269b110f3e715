"""One short job in several surroundings: what must be equal bit for bit is, and the rest is equal to rounding.

Adding numbers up in another order rounds otherwise. So the same bits are promised of one computation that runs twice. With
another number of workers, or with another processor's kernels of BLAS, it is another computation, and so is GPTQ with another
number of BLAS's threads.
"""
import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import tinypeft as tp
from tests.toys import Noise
from tinypeft.files import fingerprint

ROOT = Path(__file__).parents[1]
SURROUNDINGS = {                                         # name → variables, workers
    "as it is": ({}, 2), "hash seed": ({"PYTHONHASHSEED": "1"}, 2), "BLAS threads": ({"OPENBLAS_NUM_THREADS": "2"}, 2),
    "workers": ({}, 1), "kernel": ({"OPENBLAS_CORETYPE": "Prescott"}, 2)}


def job(workers, folder):
    """Train, measure, save and quantize; return hashes of what must be equal, and the numbers."""
    model = tp.load_pretrained()
    task = Noise(model.config.vocab_size, T=48)
    tuned = tp.attach(model, tp.LoRA(rank=8), rng=0)
    history = tp.train(tuned, task, 4, seed=0, workers=workers, progress=False)
    found = {"loss": history.loss, "tested": tp.evaluate(tuned, task, max_batches=2, workers=workers)["loss"],
             "adapter": fingerprint({name: p.data for name, p in tuned.named_parameters() if p.requires_grad})}
    tuned.save(folder)
    files = sorted(p for p in Path(folder).rglob("*") if p.is_file())
    found["saved"] = hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()
    calibration = [np.random.default_rng(1).integers(0, model.config.vocab_size, (4, 64)) for _ in range(2)]
    for scheme, more in ((tp.NF4(), {}), (tp.GPTQ(bits=4, group_size=64), {"calibration": calibration})):
        layers = tp.quantize(tp.load_pretrained(), scheme, **more).named_modules()
        weights = {path: m.weight.dequantize() for path, m in layers if hasattr(getattr(m, "weight", 0), "dequantize")}
        found[type(scheme).__name__] = fingerprint(weights)
        squares = [np.square(W, dtype=np.float64).sum() for W in weights.values()]
        found[f"{type(scheme).__name__} norms"] = np.sqrt(squares).tolist()
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    def run(surroundings):
        variables, workers = surroundings
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": paths, "PYTHONHASHSEED": "0"} | variables
        command = [sys.executable, __file__, str(workers), str(tmp_path_factory.mktemp("saved"))]
        return json.loads(subprocess.check_output(command, cwd=ROOT, env=environment))
    with ThreadPoolExecutor(2) as pool: return dict(zip(SURROUNDINGS, pool.map(run, SURROUNDINGS.values()), strict=True))


def off(found, other, what):
    """The largest relative difference to the run as it is."""
    return np.max(np.abs(np.subtract(found[other][what], found["as it is"][what])) / np.abs(found["as it is"][what]))


def test_another_hash_seed_changes_no_bit(found):
    assert found["hash seed"] == found["as it is"]


def test_the_number_of_blas_threads_changes_no_bit_of_training(found):
    """Whatever it was: training gives each worker one."""
    for what in ("loss", "tested", "adapter", "saved"): assert found["BLAS threads"][what] == found["as it is"][what]


@pytest.mark.parametrize("other", ["workers", "BLAS threads", "kernel"])
def test_another_computation_changes_rounding_only(found, other):
    """Of float32: 1e-5 is about a hundred roundings. NF4 has no products, so that it is the same; GPTQ has some, and may round
    a weight the other way."""
    assert off(found, other, "loss") < 1e-5 and off(found, other, "tested") < 1e-5
    assert found[other]["NF4"] == found["as it is"]["NF4"]
    assert off(found, other, "GPTQ norms") < 1e-2


def test_other_workers_quantize_alike(found):
    assert found["workers"]["GPTQ"] == found["as it is"]["GPTQ"]


if __name__ == "__main__":
    print(json.dumps(job(int(sys.argv[1]), sys.argv[2])))
