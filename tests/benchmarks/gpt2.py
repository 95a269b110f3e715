"""GPT-2 small (124 M parameters, random weights), NumPy against transformers and PEFT, in turn in one run.

    python tests/benchmarks/gpt2.py [--rounds 9] [--json figures/results/benchmark_gpt2.json]

Both sides read the same folder, see the same tokens and use both cores. Loading goes up to the first token's logits
(transformers maps the file and reads it then), a forward pass and a LoRA step take 2 × 256 tokens, generation is greedy,
with a cache, 32 tokens after a prompt of 16 or of 512. A LoRA step is forward to AdamW, rank 8, here on query and value,
in PEFT on c_attn, which is both and the key beside them. Ratios are medians over pairs, ours to theirs; memory is the peak
of what a step allocates (tracemalloc here, PyTorch's profiler there). NF4 and GPTQ of the whole model are timed once,
without a counterpart.
"""
import argparse
import copy
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import peft
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import tinypeft as tp  # noqa: E402
from tests.benchmarks.machine import machine  # noqa: E402
from tests.benchmarks.step import in_turn, ours, ratio, torch_peak, traced_peak  # noqa: E402

ROWS, LENGTH, PROMPTS, NEW = 2, 256, (16, 512), 32


def write_folder(folder):
    torch.manual_seed(0)
    config = transformers.GPT2Config(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, eos_token_id=None, bos_token_id=None)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)


def theirs(model, batch):
    """A training step of a transformers model, as `ours` of step.py."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    tokens, targets = (torch.as_tensor(a) for a in batch)

    def step():
        optimizer.zero_grad()
        logits = model(tokens, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1)).backward()
        optimizer.step()
    return step


def without_gradients(run):
    def step():
        with tp.no_grad(), torch.no_grad(): run()
    return step


def generators(model, reference, prompt):
    """Two functions that continue a prompt (1, T) by NEW tokens, greedily."""
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "use_cache": True, "pad_token_id": 0,
               "attention_mask": torch.ones(prompt.shape, dtype=torch.long)}
    return lambda: model.generate(prompt, NEW), lambda: reference.generate(torch.as_tensor(prompt), **options).numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_folder(folder)
        here, there = tp.GPT.from_huggingface, transformers.GPT2LMHeadModel.from_pretrained
        one = np.zeros((1, 1), int)
        load = in_turn({"tinypeft": without_gradients(lambda: here(folder)(one)),
                        "transformers": without_gradients(lambda: there(folder)(torch.as_tensor(one)))}, args.rounds)
        model, reference = here(folder), there(folder).eval()

    draw = np.random.default_rng(0).integers
    tokens = draw(0, model.config.vocab_size, (ROWS, LENGTH + 1))
    batch = tokens[:, :-1], tokens[:, 1:]
    ids = torch.as_tensor(batch[0])
    forward = in_turn({"tinypeft": without_gradients(lambda: model(batch[0])),
                       "transformers": without_gradients(lambda: reference(ids, use_cache=False))}, args.rounds)
    generation, same = {}, True
    for length in PROMPTS:
        mine, other = generators(model, reference, draw(0, model.config.vocab_size, (1, length)))
        same = same and np.array_equal(mine(), other())
        generation[f"generation after {length}"] = in_turn({"tinypeft": mine, "transformers": other}, args.rounds)

    tuned = tp.attach(model, tp.LoRA(rank=8, alpha=16), rng=0)
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["c_attn"], fan_in_fan_out=True)
    adapted = peft.get_peft_model(reference, config)
    steps = {"tinypeft": ours(tuned, batch), "PEFT": theirs(adapted, batch)}
    lora = in_turn(steps, args.rounds)
    peaks = {"tinypeft": traced_peak(steps["tinypeft"]), "PEFT": torch_peak(steps["PEFT"])}

    quantizing = {}
    base = tuned.detach()
    for name, scheme in (("NF4", tp.NF4()), ("GPTQ", tp.GPTQ(bits=4, group_size=128))):
        twin = copy.deepcopy(base)
        start = time.perf_counter()
        tp.quantize(twin, scheme, calibration=draw(0, model.config.vocab_size, (16, LENGTH)) if name == "GPTQ" else None)
        quantizing[f"{name} s"] = round(time.perf_counter() - start, 2)

    record = record_of("gpt2", base, args.rounds, batch, bool(same), peaks, quantizing)
    compared(record, {"load, first token": load, "forward": forward, "LoRA step": lora}, generation)
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def record_of(name, model, rounds, batch, same, peaks, quantizing):
    """What a file of this comparison states beside the times."""
    versions = {m.__name__: m.__version__ for m in (np, torch, transformers, peft)}
    return {"command": f"python tests/benchmarks/{name}.py", "rounds": rounds, "parameters": model.n_parameters(),
            "batch": list(batch[0].shape), "new tokens": NEW, "same tokens generated": same, "machine": machine(),
            "versions": {"python": platform.python_version(), **versions},
            "seconds": {}, "tokens per second": {}, "LoRA peak bytes": peaks, "quantizing": quantizing}


def compared(record, measured, generation):
    """Put medians and ratios of the times into the record, and print them."""
    print(f"{'':<28}{'tinypeft':>10}{'theirs':>10}{'ratio':>8}")
    for name, times in {**measured, **generation}.items():
        (_, a), (_, b) = times.items()
        medians = {side: statistics.median(t) for side, t in times.items()}
        record["seconds"][name] = {side: round(t, 4) for side, t in medians.items()} | {"ratio": round(ratio(a, b), 3)}
        print(f"{name + ', s':<28}" + "".join(f"{t:>10.3f}" for t in medians.values()) + f"{ratio(a, b):>8.2f}")
    for name, times in generation.items():
        speed = {side: round(NEW / statistics.median(t), 1) for side, t in times.items()}
        record["tokens per second"][name] = speed | {"ratio": round(ratio(times["transformers"], times["tinypeft"]), 3)}
        print(f"{name + ', tokens/s':<28}" + "".join(f"{n:>10.1f}" for n in speed.values())
              + f"{ratio(times['transformers'], times['tinypeft']):>8.2f}")
    ours, theirs = record["LoRA peak bytes"].values()
    print(f"{'LoRA step, peak MiB':<28}{ours / 2**20:>10.0f}{theirs / 2**20:>10.0f}{ours / theirs:>8.2f}")
    for name, seconds in record["quantizing"].items(): print(f"{name:<28}{seconds:>10.2f}")
    print("both generate the same tokens" if record["same tokens generated"] else "the two generate different tokens")


if __name__ == "__main__":
    main()
