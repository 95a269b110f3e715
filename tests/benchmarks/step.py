"""A training step over its limit (its matrix products alone) and over PyTorch's step, and a LoRA step over a full one.

    python -m tests.benchmarks.step [--rounds 15] [--no-compile] [--json FILE]

Memory is the peak of what a step allocates beyond what was there, here through NumPy (tracemalloc), there through PyTorch
(its profiler). The LoRA step (query and value, rank 8) is that of the base; PEFT's is on a copy in PyTorch.
"""
import peft
import torch

import tinypeft as tp
from tests.benchmarks.limit import limit
from tests.benchmarks.measure import in_turn, medians, parser, ratio, torch_peak, traced_peak, write
from tests.benchmarks.sides import SIZES, batch_of, ours, theirs
from tests.oracles.torch_gpt import torch_copy


def full(config, rows, rounds, compiles):
    """A training step of a model of this size, beside its limit and beside PyTorch."""
    model, batch = tp.GPT(config), batch_of(config, rows)
    steps = {"tinypeft": ours(model, batch), "limit": limit(model, rows),
             "eager": theirs(torch_copy(model, torch.float32), batch)}
    if compiles:
        twin = torch_copy(model, torch.float32)
        steps["compile"] = theirs(twin, batch, torch.compile(twin))
    times = in_turn(steps, rounds)
    peaks = {"tinypeft": traced_peak(steps["tinypeft"]), "eager": torch_peak(steps["eager"])}
    return {"parameters": model.n_parameters(), "ms": medians(times, 1e-3, 1),
            "ratio": {side: ratio(times["tinypeft"], t) for side, t in times.items() if side != "tinypeft"},
            "memory": {"peak bytes": peaks, "ratio": round(peaks["tinypeft"] / peaks["eager"], 3)}}


def lora(config, rows, rounds):
    """A LoRA step over a full step, here and in PEFT."""
    model, batch = tp.GPT(config), batch_of(config, rows)
    adapted = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"])
    sides = {"tinypeft": (ours, traced_peak, model, tp.attach(tp.GPT(config), tp.LoRA(rank=8))),
             "PEFT": (theirs, torch_peak, torch_copy(model, torch.float32),
                      peft.get_peft_model(torch_copy(model, torch.float32), adapted))}
    steps = {(side, i): make(m, batch) for side, (make, _, *models) in sides.items() for i, m in enumerate(models)}
    times, record = in_turn(steps, rounds), {}
    for side, (_, peak, *_) in sides.items():
        peaks = [peak(steps[side, i]) for i in (1, 0)]
        record[side] = {"time": ratio(times[side, 1], times[side, 0]), "memory": round(peaks[0] / peaks[1], 3),
                        "peak bytes": peaks}
    return record


def main(argv=None):
    options = parser(__doc__, 15)
    options.add_argument("--no-compile", action="store_true", help="leave torch.compile out (it needs a C++ compiler)")
    args = options.parse_args(argv)
    record, sides = {"steps": {}, "lora": {}}, ("limit", "eager", "compile")
    print(f"{'size':<8}{'ms':>8}" + "".join(f"{'÷ ' + side:>11}" for side in sides) + f"{'memory ÷ eager':>17}")
    for name, (config, rows) in SIZES.items():
        row = record["steps"][name] = full(config, rows, args.rounds, not args.no_compile)
        print(f"{name:<8}{row['ms']['tinypeft']:>8}" + "".join(f"{row['ratio'].get(side, '–'):>11}" for side in sides)
              + f"{row['memory']['ratio']:>17}", flush=True)
    record["lora"] = lora(*SIZES["base"], args.rounds)
    for side, row in record["lora"].items(): print(f"LoRA ÷ full, {side}: time {row['time']}, memory {row['memory']}")
    write("step", args, record)


if __name__ == "__main__":
    main()
