"""A training step over its limit (its matrix products alone) and over PyTorch's step, and a LoRA step over a full one.

    python -m tests.benchmarks.step [--rounds 15] [--no-compile] [--json FILE]

Memory is the peak of what a step allocates beyond what was there, here through NumPy (tracemalloc), there through PyTorch
(its profiler). The LoRA step (query and value, rank 8) is that of the base; PEFT's is on a copy in PyTorch.
"""
import peft
import torch

import tinypeft as tp
from tests.benchmarks.limit import limit
from tests.benchmarks.measure import in_turn, medians, mib, parser, ratio, torch_peak, traced_peak, write
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
    ms, over = medians(times, 1e-3, 1), {side: ratio(times["tinypeft"], t) for side, t in times.items()}
    return {"parameters": model.n_parameters(), "ms": ms["tinypeft"], "limit: ms": ms["limit"],
            "PyTorch eager: ms": ms["eager"], "`torch.compile`: ms": ms.get("compile"), "÷ limit": over["limit"],
            "÷ eager": over["eager"], "÷ `torch.compile`": over.get("compile"), "MiB": mib(peaks["tinypeft"]),
            "PyTorch: MiB": mib(peaks["eager"]), "memory ÷ PyTorch": round(peaks["tinypeft"] / peaks["eager"], 3)}


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
        of_lora, of_full = (peak(steps[side, i]) for i in (1, 0))
        record[side] = {"time ÷ full step": ratio(times[side, 1], times[side, 0]),
                        "memory ÷ full step": round(of_lora / of_full, 3), "LoRA step: MiB": mib(of_lora),
                        "full step: MiB": mib(of_full)}
    return record


def main(argv=None):
    options = parser(__doc__, 15)
    options.add_argument("--no-compile", action="store_true", help="leave torch.compile out (it needs a C++ compiler)")
    args = options.parse_args(argv)
    table, ratios = {}, ("÷ limit", "÷ eager", "÷ `torch.compile`")
    print(f"{'size':<8}{'ms':>8}" + "".join(f"{name:>19}" for name in (*ratios, "memory ÷ PyTorch")))
    for name, (config, rows) in SIZES.items():
        row = table[name] = full(config, rows, args.rounds, not args.no_compile)
        cells = [row[column] or "–" for column in (*ratios, "memory ÷ PyTorch")]
        print(f"{name:<8}{row['ms']:>8}" + "".join(f"{cell:>19}" for cell in cells), flush=True)
    of_lora = lora(*SIZES["base"], args.rounds)
    for side, row in of_lora.items():
        print(f"LoRA step, {side}: time {row['time ÷ full step']}, memory {row['memory ÷ full step']} of a full step's")
    write("step", args, {"step": table, "lora": of_lora})


if __name__ == "__main__":
    main()
