"""GPTQ against round to nearest on the same grid: the weights are further off, the outputs nearer (its tables 3 and 4)."""
import numpy as np

from ...quant import GPTQ, capture, layer_errors
from ...quant.gptq import factor
from ...quant.measure import output_error
from ..experiment import Experiment
from ..quantized import base, costs, draw, rounded

GRIDS = {f"{bits} bits, {name}": {"bits": bits, "group_size": group}
         for bits in (4, 3, 2) for name, group in (("channel", None), ("group 32", 32))}
VARIANTS = {"round to nearest": None, "GPTQ": {}, "GPTQ, act-order": {"act_order": True},
            "GPTQ, act-order, static groups": {"act_order": True, "static_groups": True}, "GPTQ, fresh scales":
            {"group_scales": "fresh"}}
CONDITIONS = {f"{variant}, {grid}": (variant, grid) for grid in GRIDS for variant in VARIANTS
              if grid == "3 bits, group 32" or variant in ("round to nearest", "GPTQ")}


def measure(condition, seed, settings):
    """excess, error; weight_error and output_error, means over the layers, outputs on test windows; bits per weight."""
    variant, grid = CONDITIONS[condition]
    sample = draw(seed, settings["calibration"], settings["test"])
    scheme = GPTQ(**GRIDS[grid], **(VARIANTS[variant] or {}))
    model = rounded(scheme if VARIANTS[variant] is not None else scheme.nearest, sample)
    errors = np.array(list(layer_errors(base(), model, [x for x, _ in sample.windows]).values()))
    return costs(model, sample) | {"weight_error": float(errors[:, 0].mean()), "output_error": float(errors[:, 1].mean())}


SETTINGS = {"calibration": 64, "test": 64}

GPTQ_OR_NEAREST = Experiment(
    "gptq", "GPTQ and round to nearest on the same asymmetric grids, 4, 3 and 2 bits: excess (nats/token), error (of the "
    "logits' norm), weight_error and output_error (relative Frobenius norms of a layer's weight, and of its output on test "
    "windows, means over layers); a seed draws the calibration and the test windows",
    measure, tuple(CONDITIONS), SETTINGS,
    {"calibration": 8, "test": 16, "conditions": ("round to nearest, 3 bits, channel", "GPTQ, 3 bits, channel"),
     "seeds": (0, 1)})


def measure_columns(condition, seed, settings):
    """One layer, quantized column after column: |W − Ŵ| so far at a few moments, and the output error after every column.

    The layer is blocks.2.mlp.up, (512, 128), of which the first rows are shown; the output error counts the columns that
    are still floats as they stand then.
    """
    sample, path = draw(seed, settings["calibration"], 16), "blocks.2.mlp.up"
    H = capture(base(), sample.calibration, [path], hessian=True)[path].H
    W0 = base().get(path).weight.data.astype(float)
    W, U, d = W0.copy(), factor(H, 0.01), len(H)
    grid = GPTQ(settings["bits"]).nearest.fit(base().get(path).weight.data)
    frames, errors = [], [0.0]
    for j in range(d):
        q = grid.round(W[:, j:j + 1].astype(np.float32)).astype(float)
        if condition == "GPTQ": W[:, j + 1:] -= (W[:, j:j + 1] - q) / U[j, j] * U[j, j + 1:]
        W[:, j:j + 1] = q
        errors.append(output_error(W0, W, H))
        if j + 1 in settings["moments"]: frames.append(np.round(np.abs(W - W0)[:settings["rows"]], 4).tolist())
    return {"output_error": errors, "frames": frames, "weight_error": float(np.linalg.norm(W - W0) / np.linalg.norm(W0))}


GPTQ_COLUMNS = Experiment(
    "gptq_columns", "blocks.2.mlp.up quantized to 3 bits column after column: frames (|Ŵ − W| of the first 48 rows after 32, "
    "64 and 128 columns), output_error (relative, after 0 … 128 columns), weight_error (relative, at the end); one seed, "
    "which draws the calibration; a picture, not a measurement",
    measure_columns, ("round to nearest", "GPTQ"),
    {"bits": 3, "rows": 48, "moments": [32, 64, 128], "calibration": 64},
    {"rows": 8, "moments": [128], "calibration": 8}, (0,))
