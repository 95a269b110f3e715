"""What is equal bit for bit, and what is equal to rounding, when nothing but the surroundings differ?

    python -m tests.stress.determinism                   one short job in many surroundings
    python -m tests.stress.determinism --record          the same, with the figures in results/determinism.json

The job attaches a LoRA to the shipped base, trains it, measures it, saves it, and quantizes the base with NF4 and GPTQ. Each
part is stated as the SHA-256 of its bytes; the losses also as numbers. It runs in a new process for each of these:

    again            nothing else                        bit for bit
    hash seed        PYTHONHASHSEED=1 instead of 0       bit for bit
    BLAS threads     OPENBLAS_NUM_THREADS=2              bit for bit, or to rounding: what is found is recorded
    workers          train and evaluate with 1, not 2    to rounding: the batch's parts are added in another order
    kernels          OPENBLAS_CORETYPE                   to rounding: another processor adds up in another order
"""
import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import tinypeft as tp
from tests.stress import record
from tests.toys import Noise
from tinypeft.files import fingerprint
from tinypeft.study.experiment import Results, half_width, rounding

__all__ = ["KERNELS", "SAME", "compare", "run"]

ROOT = Path(__file__).parents[2]
KERNELS = ("Prescott", "Haswell", "Zen", "SkylakeX")           # of OpenBLAS, oldest processor first
SAME = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}


def job(steps: int, workers: int, text: bool) -> dict:
    """Train, measure, save and quantize. text: train on the domain task, not on random tokens."""
    model = tp.load_pretrained()
    task = tp.tasks.domain(model) if text else Noise(model.config.vocab_size, T=48)
    tuned = tp.attach(model, tp.LoRA(rank=8), rng=0)
    history = tp.train(tuned, task, steps, seed=0, workers=workers, progress=False)
    tested = tp.evaluate(tuned, task, max_batches=20 if text else 2, workers=workers)
    found = {"rounding": rounding(), "loss": history.loss, "tested": tested["loss"],
             "adapter": fingerprint({name: p.data for name, p in tuned.named_parameters() if p.requires_grad})}
    with tempfile.TemporaryDirectory() as folder:
        tuned.save(folder)
        files = sorted(p for p in Path(folder).rglob("*") if p.is_file())
        found["saved"] = hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()
    calibration = [np.random.default_rng(1).integers(0, model.config.vocab_size, (4, 64)) for _ in range(2)]
    for scheme, more in ((tp.NF4(), {}), (tp.GPTQ(bits=4, group_size=64), {"calibration": calibration})):
        q = tp.quantize(tp.load_pretrained(), scheme, **more)
        weights = {p: m.weight.dequantize() for p, m in q.named_modules() if hasattr(getattr(m, "weight", 0), "dequantize")}
        found[type(scheme).__name__] = fingerprint(weights)
        norm = lambda W: float(np.sqrt(np.square(W, dtype=np.float64).sum()))
        found[type(scheme).__name__ + " norms"] = [norm(W) for W in weights.values()]
    return found


def run(environment: dict, steps: int = 6, workers: int = 2, text: bool = False) -> dict:
    """What the job finds in a new process."""
    command = [sys.executable, "-m", "tests.stress.determinism", "--job", str(steps), str(workers), str(int(text))]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OPENBLAS_", "OMP_", "MKL_", "PYTHONHASHSEED"))}
    return json.loads(subprocess.check_output(command, cwd=ROOT, env=clean | {"PYTHONPATH": str(ROOT)} | SAME | environment))


def compare(a: dict, b: dict) -> dict:
    """Which parts are equal bit for bit, and the largest relative differences of those that are numbers."""
    off = lambda x, y: float(np.max(np.abs(np.subtract(x, y)) / np.abs(x)))
    parts = ("adapter", "saved", "NF4", "GPTQ")
    return {"equal": [p for p in parts if a[p] == b[p]], "different": [p for p in parts if a[p] != b[p]],
            **{f"largest difference, {p}": off(a[p], b[p]) for p in ("loss", "tested", "GPTQ norms") if a[p] != b[p]}}


def main() -> None:
    if sys.argv[1:2] == ["--job"]:
        steps, workers, text = map(int, sys.argv[2:])
        return print(json.dumps(job(steps, workers, bool(text))))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write results/determinism.json")
    parser.add_argument("--steps", type=int, default=60, help="of training on the domain task")
    args = parser.parse_args()
    first = run({}, args.steps, text=True)
    figures = {"steps": args.steps, "rounding here": first["rounding"], "tested here": first["tested"]}
    for name, environment, workers in (("again", {}, 2), ("hash seed", {"PYTHONHASHSEED": "1"}, 2),
                                       ("BLAS threads", {"OPENBLAS_NUM_THREADS": "2"}, 2), ("workers", {}, 1)):
        figures[name] = compare(first, run(environment, args.steps, workers, text=True))
        print(name, figures[name], flush=True)
    tested = {}
    for kernel in KERNELS:
        found = run({"OPENBLAS_CORETYPE": kernel}, args.steps, text=True)
        tested[kernel] = found["tested"]
        figures[f"kernel {kernel}"] = {"rounding": found["rounding"], "tested": found["tested"], **compare(first, found)}
        print(kernel, figures[f"kernel {kernel}"], flush=True)
    figures["spread of the loss over kernels"] = max(tested.values()) - min(tested.values())
    stored = Results(Results.read(ROOT / "figures" / "results", "rank"))
    figures["half of the stored 95 % interval over seeds (rank 8)"] = float(half_width(stored.values("8", "loss")))
    print(json.dumps(figures, indent=1))
    if args.record: print(record("determinism", figures))


if __name__ == "__main__":
    main()
