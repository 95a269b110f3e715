"""GPTQ against round to nearest on the same grid: the weights are further off, the outputs nearer (its tables 3 and 4)."""
import numpy as np

from ...quant import GPTQ, Scheme, capture, layer_errors
from ...quant.gptq import factor
from ...quant.measure import output_error
from ...quant.plain import gptq_step
from ..experiment import Experiment
from ..quantized import PARTS, base_model, costs, draw, rounded

GRIDS = {f"{bits} bits, {name}": {"bits": bits, "group_size": group}
         for bits in (4, 3, 2) for name, group in (("channel", None), ("group 32", 32))}
OPTIONS = {"GPTQ, act-order": {"act_order": True}, "GPTQ, act-order, static groups": {"act_order": True, "static_groups": True},
           "GPTQ, fresh scales": {"group_scales": "fresh"}}


def variants(grid: str) -> dict[str, Scheme]:
    """name → scheme on one grid of GRIDS; GPTQ's options are tried on one grid only."""
    plain = GPTQ(**GRIDS[grid])
    options = OPTIONS if grid == "3 bits, group 32" else {}
    return {"round to nearest": plain.nearest, "GPTQ": plain, **{n: GPTQ(**GRIDS[grid], **o) for n, o in options.items()}}


def measure(scheme: Scheme, seed: int, settings: dict) -> dict:
    sample = draw(seed, settings["calibration"], settings["test"])
    model = rounded(scheme, sample)
    errors = np.array(list(layer_errors(base_model(), model, [x for x, _ in sample.windows]).values()))
    return costs(model, sample) | {"weight_error": float(errors[:, 0].mean()), "output_error": float(errors[:, 1].mean())}


GPTQ_OR_NEAREST = Experiment(
    "gptq", "GPTQ and round to nearest on the same asymmetric grids, 4, 3 and 2 bits; a seed draws the calibration and the "
    "test windows.",
    {"excess": "nats/token over float32", "error": "relative error of the logits",
     "weight_error": "relative Frobenius norm, of a layer's weight, mean over layers",
     "output_error": "relative Frobenius norm, of a layer's output on test windows, mean over layers"},
    measure, {f"{name}, {grid}": scheme for grid in GRIDS for name, scheme in variants(grid).items()},
    {"calibration": 64, "test": 64},
    {"calibration": 8, "test": 16, "conditions": ("round to nearest, 3 bits, channel", "GPTQ, 3 bits, channel"),
     "seeds": (0, 1)}, seeds=PARTS)


def measure_columns(compensate: bool, seed: int, settings: dict) -> dict:
    """One layer, quantized column after column, with or without GPTQ's correction of the columns that are left.

    The layer is blocks.2.mlp.up, (512, 128), of which the first rows are shown; the output error counts the columns that
    are still floats as they are at that moment.
    """
    sample, path = draw(seed, settings["calibration"], 16), "blocks.2.mlp.up"
    H = capture(base_model(), sample.calibration, [path], hessian=True)[path].H
    weight = base_model().get(path).weight.data
    W0 = weight.astype(float)
    W, U, d = W0.copy(), factor(H, 0.01), len(H)
    grid = GPTQ(settings["bits"]).nearest.fit(weight)
    frames, errors = [], [0.0]
    for j in range(d):
        if compensate: gptq_step(W, U, j, d, grid)
        else: W[:, [j]] = grid.round(W[:, [j]].astype(np.float32))
        errors.append(output_error(W0, W, H))
        if j + 1 in settings["moments"]: frames.append(np.round(np.abs(W - W0)[:settings["rows"]], 4).tolist())
    return {"output_error": errors, "frames": frames, "weight_error": float(np.linalg.norm(W - W0) / np.linalg.norm(W0))}


GPTQ_COLUMNS = Experiment(
    "gptq_columns", "blocks.2.mlp.up quantized to 3 bits column after column: a picture, not a measurement, with one seed, "
    "which draws the calibration.",
    {"frames": "|Ŵ − W| of the first 48 rows after 32, 64 and 128 columns", "weight_error": "relative, at the end",
     "output_error": "relative, after 0 … 128 columns"},
    measure_columns, {"round to nearest": False, "GPTQ": True},
    {"bits": 3, "rows": 48, "moments": [32, 64, 128], "calibration": 64},
    {"rows": 8, "moments": [128], "calibration": 8}, (0,))
