"""GPTQ at work on one layer, for a picture."""
import numpy as np

from ...quant import GPTQ, capture
from ...quant.gptq import factor
from ...quant.measure import output_error
from ...quant.plain import gptq_step
from ..experiment import Experiment
from ..quantized import base_model, draw


def measure(compensate: bool, seed: int, settings: dict) -> dict:
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
    measure, {"round to nearest": False, "GPTQ": True},
    {"bits": 3, "rows": 48, "moments": [32, 64, 128], "calibration": 64},
    {"rows": 8, "moments": [128], "calibration": 8}, (0,))
