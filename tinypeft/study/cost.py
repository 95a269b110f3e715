"""What quantizing a model costs: bits and bytes, errors, and a task's metrics before and after.

    quantized, cost = quantized_at_cost(model, tp.NF4(), task, calibration)
    print(described(cost))
"""
import copy

import numpy as np

from .. import quant as q
from ..common.hints import Calibration
from ..common.progress import Progress
from ..engine.tensor import no_grad
from ..models.decoder import Decoder
from ..text.tasks import Task
from ..training.evaluation import batches_of, evaluate
from ..training.loop import train
from .about import name_of

__all__ = ["described", "first_logits", "quantized_at_cost", "relative_error", "sharing", "tested"]

STEPS = 30                                               # of a scheme that trains


def quantized_at_cost(model: Decoder, scheme: q.Scheme, task: Task, calibration: Calibration,
                      rows: int = 128, seed: int = 0) -> tuple[Decoder, dict]:
    """Return a quantized copy of `model`, and what that costs: bits, bytes, the relative errors of
    weights and logits, and the metrics on the first test rows of `task`, "exact" and "quantized".

    A scheme that trains is trained for STEPS steps on `task`, LLM-QAT on what the model writes.
    """
    quantized = rounded(model, scheme, task, calibration, seed)
    exact, after = (tested(m, task, rows, f"testing the {which} model")
                    for m, which in ((model, "exact"), (quantized, "quantized")))
    with Progress(None, "measuring errors and sizes"):
        layers = [layer for path, layer in quantized.named_modules()
                  if isinstance(layer, q.QuantizedLinear) and not path.endswith("lm_head")]
        in_all = sum(array.nbytes for array in quantized.state_dict().values())
        cost = {"scheme": str(scheme), "weights": sum(layer.weight.size for layer in layers),
                "bytes": sum(layer.nbytes for layer in layers),
                "bits_per_weight": q.bits_per_weight(quantized),
                "bytes_in_all": in_all, "bits_in_all": 8 * in_all / model.n_parameters(),
                "weight_error": q.weight_error(model, quantized, scheme.trains),
                "output_error": relative_error(first_logits(quantized, task),
                                               first_logits(model, task))}
    return quantized, cost | {"task": task.name, "on": tested_part(task, rows),
                              "exact": exact, "quantized": after}


def rounded(model: Decoder, scheme: q.Scheme, task: Task, calibration: Calibration,
            seed: int) -> Decoder:
    copied = copy.deepcopy(model) if scheme.trains else sharing(model)
    with Progress(None, f"quantizing by {name_of(scheme)}"):
        quantized = q.quantize(copied, scheme, calibration=calibration)
    if not scheme.trains: return quantized
    if isinstance(scheme, q.LLMQAT):
        length = min(64, model.config.context_length)
        task = q.self_distillation(model, rows=32, held_out=1, length=length, rng=seed)
    train(quantized, task, STEPS, batch_size=4, lr=3e-4, seed=seed)
    return q.convert(quantized)


def sharing(model: Decoder) -> Decoder:
    """Return a copy of a model that shares its arrays, so that a large one is in memory once.
    `quantize` puts other arrays into the copy and writes into none; an optimizer would write into
    them."""
    return copy.deepcopy(model, {id(p.data): p.data for p in model.parameters()})


def tested(model: Decoder, task: Task, rows: int, label: str | None = None) -> dict:
    """Return the metrics on the first `rows` test rows."""
    size = min(16, rows)
    return evaluate(model, task, "test", size, rows // size, label=label)


def tested_part(task: Task, rows: int) -> str:
    """Return what `tested` measures, in words."""
    size = min(16, rows)
    if len(batches_of(task, "test", size)) <= rows // size: return "the test split"
    return f"{rows} {'windows' if hasattr(task, 'streams') else 'rows'} of the test split"


def first_logits(model: Decoder, task: Task) -> np.ndarray:
    """Return the logits (4, T, V) on the first four test rows."""
    with no_grad(): return model(next(iter(task.batches("test", 4)))[0]).data


def relative_error(near: np.ndarray, exact: np.ndarray) -> float:
    """Return ‖near − exact‖ / ‖exact‖."""
    return float(np.linalg.norm(near - exact) / np.linalg.norm(exact))


def described(cost: dict) -> str:
    """Return the record of `quantized_at_cost` as text."""
    weights, stored, in_all = cost["weights"], cost["bytes"], cost["bytes_in_all"]
    lines = [
        cost["scheme"],
        f"  weights       {weights:,} in the blocks' linear layers, {kib(4 * weights)} in float32",
        f"  stored in     {kib(stored)}, {cost['bits_per_weight']:.3f} bits/weight, with scales",
        f"  the rest      {kib(in_all - stored)}: embeddings, norms and biases",
        f"  in all        {kib(in_all)}, {cost['bits_in_all']:.3f} bits over all weights; a file "
        "of save_quantized has a small header besides",
        f"  weight error  {100 * cost['weight_error']:.2f} % of the weights' norm",
        f"  output error  {100 * cost['output_error']:.2f} % of the logits' norm"]
    return "\n".join(lines + [
        f"  {name:<14}{x:.4f} → {cost['quantized'][name]:.4f} on {cost['on']} of {cost['task']}"
        for name, x in cost["exact"].items()])


def kib(n: int) -> str:
    return f"{n / 1024:,.0f} KiB"
