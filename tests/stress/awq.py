"""AWQ against its authors' algorithm: what either adds to the loss of the base, at 2, 3 and 4 bits, over three seeds.

    python -m tests.stress.awq [--record]

A seed draws 64 calibration windows and 64 test windows of 128 tokens. All three schemes are given the same ones: tinypeft's
AWQ, the authors' algorithm in PyTorch (`tests/oracles/torch_awq.py`), and round to nearest on AWQ's grid. The loss is
judged by tinypeft's model in each case.
"""
import sys

import numpy as np
import torch

import tinypeft as tp
from tests.oracles.torch_awq import awq
from tests.oracles.torch_gpt import torch_copy
from tests.stress import record
from tinypeft.study.quantized import base_model, costs, draw
from tinypeft.study.tuning import pretrained

__all__ = ["excess", "main", "outermost"]

SETTINGS, SEEDS = ((2, 64), (3, 64), (3, 128), (4, 128)), (0, 1, 2)
CLIPPED = ("attention.value", "attention.output", "mlp.up", "mlp.down")


def quantized_by_the_authors(tokens, bits, group):
    """The base with the weights that their algorithm leaves."""
    theirs, model = awq(torch_copy(base_model(), torch.float32), tokens, bits, group), pretrained()
    model.load_state_dict({name: p.numpy() for name, p in theirs.state_dict().items()})
    return model


def excess(bits, group, seed, calibration=64, test=64):
    """Nats/token above float32 of the three, and the share of groups whose lowest and highest level are in use."""
    sample, scheme = draw(seed, calibration, test), tp.AWQ(bits, group)
    ours = tp.quantize(pretrained(), scheme, sample.calibration)
    models = {"tinypeft": ours, "authors": quantized_by_the_authors(sample.calibration, bits, group),
              "nearest": tp.quantize(pretrained(), scheme.nearest)}
    return {name: round(costs(model, sample)["excess"], 4) for name, model in models.items()} | outermost(ours, bits, group)


def outermost(model, bits, group):
    """{"lowest", "highest"}: the share of groups of the layers that AWQ clips with a code 0, and with a code 2**bits − 1."""
    codes = np.concatenate([m.weight.unpack().reshape(-1, group) for path, m in model.named_modules()
                            if path.endswith(CLIPPED)])
    return {"lowest": round(float((codes.min(1) == 0).mean()), 4),
            "highest": round(float((codes.max(1) == 2**bits - 1).mean()), 4)}


def main(arguments):
    torch.set_num_threads(1)
    rows, means = {}, {}
    for bits, group in SETTINGS:
        found = [excess(bits, group, seed) for seed in SEEDS]
        rows[name := f"{bits} bits, groups of {group}"] = dict(zip(map(str, SEEDS), found, strict=True))
        means[name] = {key: round(float(np.mean([row[key] for row in found])), 4) for key in found[0]}
        print(name, *(f"seed {seed}: {row}" for seed, row in rows[name].items()), f"mean: {means[name]}", sep="\n  ",
              flush=True)
    if "--record" in arguments: print(record("awq", {"unit": "nats/token above float32", "seeds": rows, "means": means}))


if __name__ == "__main__":
    main(sys.argv[1:])
