"""One training step (forward, backward, AdamW), NumPy against PyTorch, in turn in one run; ratios of medians of pairs.

    python tests/benchmarks/step.py [--rounds 15] [--no-compile] [--json figures/results/benchmark_step.json]

Both sides use both cores: tinypeft one worker per half of the batch (`threads.py`), PyTorch its own threads.
The second table is a LoRA step (query and value, rank 8) over a full step, in time and in peak memory of
what a step allocates, for tinypeft (tracemalloc) and for PEFT (PyTorch's profiler).
"""
import argparse
import json
import platform
import statistics
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import tinypeft as tp  # noqa: E402
from tests.benchmarks.machine import machine  # noqa: E402
from tests.oracles.torch_gpt import torch_copy  # noqa: E402
from tinypeft.train import backward  # noqa: E402

SIZES = {                                     # name → (config, rows per batch)
    "base":   (tp.GPTConfig(1024, 256, 128, 5, 4), 8),
    "middle": (tp.GPTConfig(4096, 256, 320, 6, 5), 4),
    "large":  (tp.GPTConfig(8192, 256, 512, 8, 8), 2),
}


class Random:
    """A task whose batches are random tokens; timing does not care what they say."""
    def count(self, batch): return batch[1].size
    def loss(self, model, batch): return tp.functional.cross_entropy(model(batch[0]), batch[1])


def batch_of(config, rows):
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (rows, config.context_length + 1))
    return tokens[:, :-1], tokens[:, 1:]


def ours(model, batch, workers=2):
    optimizer = tp.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)

    def step():
        optimizer.zero_grad()
        backward(model, Random(), batch, workers)
        optimizer.step()
    return step


def theirs(model, batch, forward=None):
    forward = model if forward is None else forward
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    tokens, targets = (torch.as_tensor(a) for a in batch)

    def step():
        optimizer.zero_grad()
        logits = forward(tokens)
        torch.nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1)).backward()
        optimizer.step()
    return step


def in_turn(steps, rounds, warmup=3):
    """name → seconds per step, `rounds` of each, A B C A B C …"""
    for _ in range(warmup):
        for step in steps.values(): step()
    times = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    return times


def ratio(a, b):
    """Median over rounds of a/b, pair by pair."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def traced_peak(step):
    """Peak bytes that one step allocates through NumPy, beyond what was there."""
    step()
    tracemalloc.start()
    step()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def torch_peak(step):
    """Peak bytes that one step allocates through PyTorch's CPU allocator, beyond what was there."""
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as prof:
        step()
    events = sorted((e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"),
                    key=lambda e: e.start_ns())
    return int(max(np.cumsum([e.nbytes() for e in events])))


def peft_lora(model):
    import peft
    return peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out (it needs a C++ compiler)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    record = {"command": "python tests/benchmarks/step.py", "rounds": args.rounds, "steps": {}, "lora": {},
              "machine": machine(),
              "versions": {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__}}

    print(f"{'size':<8}{'parameters':>12}{'tinypeft ms':>13}{'eager ms':>10}{'compile ms':>12}{'÷ eager':>9}{'÷ compile':>11}")
    for name, (config, rows) in SIZES.items():
        model, batch = tp.GPT(config), batch_of(config, rows)
        steps = {"tinypeft": ours(model, batch), "eager": theirs(torch_copy(model, torch.float32), batch)}
        if not args.no_compile:
            twin = torch_copy(model, torch.float32)
            steps["compile"] = theirs(twin, batch, torch.compile(twin))
        times = in_turn(steps, args.rounds)
        row = {"parameters": model.n_parameters(), "ms": {k: round(1e3 * statistics.median(t), 1) for k, t in times.items()},
               "ratio": {k: round(ratio(times["tinypeft"], t), 3) for k, t in times.items() if k != "tinypeft"}}
        record["steps"][name] = row
        cell = lambda d, k, f: format(d[k], f) if k in d else "–"                       # noqa: E731
        print(f"{name:<8}{row['parameters']:>12,}{row['ms']['tinypeft']:>13}{row['ms']['eager']:>10}"
              f"{cell(row['ms'], 'compile', ''):>12}{row['ratio']['eager']:>9.2f}{cell(row['ratio'], 'compile', '.2f'):>11}")

    config, rows = SIZES["base"]
    batch = batch_of(config, rows)
    full, base = tp.GPT(config), tp.GPT(config)
    lora = tp.attach(base, tp.LoRA(rank=8))
    torch_full, torch_lora = torch_copy(full, torch.float32), peft_lora(torch_copy(full, torch.float32))
    times = in_turn({"full": ours(full, batch), "lora": ours(lora, batch),
                     "torch full": theirs(torch_full, batch), "torch lora": theirs(torch_lora, batch)}, args.rounds)
    print(f"\n{'LoRA step ÷ full step':<24}{'time':>8}{'peak memory':>14}")
    for name, a, b, peak in (("tinypeft", "lora", "full", traced_peak), ("PEFT", "torch lora", "torch full", torch_peak)):
        make = ours if name == "tinypeft" else theirs
        models = (lora, full) if name == "tinypeft" else (torch_lora, torch_full)
        peaks = [peak(make(m, batch)) for m in models]
        row = {"time": round(ratio(times[a], times[b]), 3), "memory": round(peaks[0] / peaks[1], 3), "peak bytes": peaks}
        record["lora"][name] = row
        print(f"{name:<24}{row['time']:>8.2f}{row['memory']:>14.2f}   ({peaks[0] / 2**20:.0f} of {peaks[1] / 2**20:.0f} MiB)")
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
