"""A whole model beside transformers and PEFT: forward pass, greedy generation and LoRA step, in turn; quantizing, alone."""
import functools
import statistics

import numpy as np
import peft
import torch

import tinypeft as tp
from tests.benchmarks.measure import in_turn, medians, ratio, seconds, torch_peak, traced_peak
from tests.benchmarks.sides import batch_of, ours, theirs
from tinypeft.study.compare import sharing

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
    """The record of a comparison, which it prints as well.

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
        times[f"generation after {length}"] = in_turn({"tinypeft": mine, "transformers": other}, rounds, warmup=1, twice=False)
    times["LoRA step"], peaks = lora_step(model, reference, lora, batch, rounds)
    return {"parameters": model.n_parameters(), "batch": [rows, batch[0].shape[1]], "new tokens": NEW,
            "same tokens generated": same, **tables(times), "LoRA peak bytes": peaks,
            "quantizing": quantizing(model, schemes)}


def lora_step(model, reference, lora, batch, rounds):
    """(times, peak bytes) of a LoRA step on each side; `model` is afterwards as before."""
    tuned, adapted = tp.attach(model, tp.LoRA(rank=8, alpha=16), rng=0), peft.get_peft_model(reference, lora)
    steps = {"tinypeft": ours(tuned, batch), "PEFT": theirs(adapted, batch, lambda tokens: adapted(tokens, use_cache=False))}
    times = in_turn(steps, rounds, warmup=1, twice=False)
    peaks = {"tinypeft": traced_peak(steps["tinypeft"]), "PEFT": torch_peak(steps["PEFT"])}
    tuned.detach()
    return times, peaks


def tables(times):
    """Medians in seconds, of generation also in tokens per second; ratios of times are ours to theirs, those of speeds too."""
    found = {"seconds": {}, "tokens per second": {}}
    print(f"{'':<28}{'tinypeft':>10}{'theirs':>10}{'ratio':>8}")
    for name, sides in times.items():
        (_, a), (_, b) = sides.items()
        found["seconds"][name] = row = medians(sides) | {"ratio": ratio(a, b)}
        if name.startswith("generation"):
            speeds = {side: round(NEW / statistics.median(t), 1) for side, t in sides.items()}
            found["tokens per second"][name] = speeds | {"ratio": ratio(b, a)}
        print(f"{name:<28}" + "".join(f"{n:>10.3f}" for n in list(row.values())[:2]) + f"{row['ratio']:>8.2f}", flush=True)
    return found


def quantizing(model, schemes):
    """Seconds to quantize a copy of the whole model, by name."""
    draw, found = np.random.default_rng(1).integers, {}
    for name, scheme in schemes.items():
        calibration = draw(0, model.config.vocab_size, (16, 128)) if scheme.calibrated else None
        quantize = functools.partial(tp.quantize, sharing(model), scheme, calibration=calibration)
        found[f"{name} s"] = round(seconds(quantize), 2)
        print(f"{name:<28}{found[f'{name} s']:>10.2f}", flush=True)
    return found
