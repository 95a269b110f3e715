"""A whole model beside transformers and PEFT: forward pass, greedy generation and LoRA step, in turn; quantizing, alone."""
import functools
import statistics

import numpy as np
import peft
import torch

import tinypeft as tp
from tests.benchmarks.measure import in_turn, medians, mib, ratio, seconds, torch_peak, traced_peak
from tests.benchmarks.sides import batch_of, ours, theirs
from tinypeft.study.cost import sharing

__all__ = ["compared", "generators", "without_gradients"]

PROMPTS, NEW = (16, 512), 32


def without_gradients(run):
    def step():
        with tp.no_grad(), torch.no_grad(): run()
    return step


def generators(model, reference, prompt, new):
    """Two functions that continue a prompt (1, T) by `new` tokens, greedily, here and in transformers."""
    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "use_cache": True, "pad_token_id": 0,
               "eos_token_id": None, "attention_mask": torch.ones(prompt.shape, dtype=torch.long)}
    return lambda: model.generate(prompt, new), lambda: reference.generate(torch.as_tensor(prompt), **options).numpy()


def compared(load, model, reference, rows, length, lora, schemes, rounds):
    """(table, settings) of a comparison, which it prints as well. A row of the table names its unit.

    load: (what it is, in_turn's times of loading). model, reference: the same model on both sides. lora: the `LoraConfig` that
    stands for LoRA(rank=8, alpha=16). schemes: name → scheme, to quantize the whole model with, once.
    """
    batch, draw = batch_of(model.config, rows, length), np.random.default_rng(0).integers
    ids, times, same = torch.as_tensor(batch[0]), dict([load]), True
    times["forward"] = in_turn({"tinypeft": without_gradients(lambda: model(batch[0])),
                                "transformers": without_gradients(lambda: reference(ids, use_cache=False))}, rounds,
                               warmup=1, twice=False)
    for length in PROMPTS:
        mine, other = generators(model, reference, draw(0, model.config.vocab_size, (1, length)), NEW)
        same = same and bool(np.array_equal(mine(), other()))
        sides = {"tinypeft": mine, "transformers": other}
        times[f"generation after a prompt of {length}"] = in_turn(sides, rounds, warmup=1, twice=False)
    times["LoRA step"], peaks = lora_step(model, reference, lora, batch, rounds)
    ours, theirs = peaks.values()
    table = rows_of(times) | {"LoRA step: MiB": beside(mib(ours), mib(theirs), ours / theirs)}
    table |= {f"quantizing with {name}: s": {"tinypeft": t} for name, t in quantizing(model, schemes).items()}
    return table, {"parameters": model.n_parameters(), "rows": rows, "tokens": batch[0].shape[1], "new tokens": NEW,
                   "the same tokens on both sides": "yes" if same else "no"}


def beside(ours, theirs, ratio):
    """The cells of a row."""
    return {"tinypeft": ours, "transformers, PEFT or gguf": theirs, "ratio": ratio}


def lora_step(model, reference, lora, batch, rounds):
    """(times, peak bytes) of a LoRA step on each side."""
    tuned, adapted = tp.attach(model, tp.LoRA(rank=8, alpha=16), rng=0), peft.get_peft_model(reference, lora)
    steps = {"tinypeft": ours(tuned, batch), "PEFT": theirs(adapted, batch, lambda tokens: adapted(tokens, use_cache=False))}
    times = in_turn(steps, rounds, warmup=1, twice=False)
    peaks = {"tinypeft": traced_peak(steps["tinypeft"]), "PEFT": torch_peak(steps["PEFT"])}
    return times, peaks


def rows_of(times):
    """Medians in seconds, of generation also in tokens per second; ratios of times are ours to theirs, those of speeds too."""
    found = {}
    print(f"{'':<34}{'tinypeft':>10}{'theirs':>10}{'ratio':>8}")
    for name, sides in times.items():
        a, b = sides.values()
        found[f"{name}: s"] = row = beside(*medians(sides).values(), ratio(a, b))
        if name.startswith("generation"):
            found[f"{name}: tokens/s"] = beside(*(round(NEW / statistics.median(t), 1) for t in (a, b)), ratio(b, a))
        print(f"{name:<34}" + "".join(f"{n:>10.3f}" for n in list(row.values())[:2]) + f"{row['ratio']:>8.2f}", flush=True)
    return found


def quantizing(model, schemes):
    """Seconds to quantize a copy of the whole model, by name."""
    draw, found = np.random.default_rng(1).integers, {}
    for name, scheme in schemes.items():
        calibration = draw(0, model.config.vocab_size, (16, 128)) if scheme.calibrated else None
        quantize = functools.partial(tp.quantize, sharing(model), scheme, calibration=calibration)
        found[name] = round(seconds(quantize), 2)
        print(f"{name:<34}{found[name]:>10.2f}", flush=True)
    return found
