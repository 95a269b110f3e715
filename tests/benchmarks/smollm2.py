"""SmolLM2-135M-Instruct, NumPy against transformers and PEFT, in turn in one run.

    python tests/benchmarks/smollm2.py [--rounds 7] [--json figures/results/benchmark_smollm2.json]

Both sides have the same weights, see the same tokens and use both cores. Loading is from the GGUF file to float32 weights,
there by the package gguf, which transformers uses (the tokenizer is left out on both sides). A forward pass and a LoRA step
take 4 × 128 tokens, generation is greedy, with a cache, 32 tokens after a prompt of 16 or of 512. A LoRA step is forward to
AdamW, rank 8, on query and value. Ratios are medians over pairs, ours to theirs; memory is the peak of what a step allocates
(tracemalloc here, PyTorch's profiler there). NF4 and GPTQ of all 210 matrices are timed once, without a counterpart.
"""
import argparse
import json
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import peft
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import tinypeft as tp  # noqa: E402
from tests.benchmarks.gpt2 import PROMPTS, compared, generators, record_of, theirs, without_gradients  # noqa: E402
from tests.benchmarks.step import in_turn, ours, torch_peak, traced_peak  # noqa: E402
from tests.oracles.torch_llama import torch_llama  # noqa: E402
from tinypeft.interop.gguf_reader import read_gguf  # noqa: E402
from tinypeft.loading import smollm2_file  # noqa: E402
from tinypeft.study.compare import sharing  # noqa: E402

ROWS, LENGTH = 4, 128


def decoded_here(path):
    file = read_gguf(path)
    return [file[name] for name in file]


def decoded_there(path):
    return [gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    path = smollm2_file()
    load = in_turn({"tinypeft": lambda: decoded_here(path), "gguf": lambda: decoded_there(path)}, 3, warmup=1)
    start = time.perf_counter()
    model = tp.load_pretrained("smollm2")
    whole = time.perf_counter() - start
    reference = torch_llama(model, torch.float32, exact=False)

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
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    adapted = peft.get_peft_model(reference, config)
    steps = {"tinypeft": ours(tuned, batch), "PEFT": theirs(adapted, batch)}
    lora = in_turn(steps, args.rounds)
    peaks = {"tinypeft": traced_peak(steps["tinypeft"]), "PEFT": torch_peak(steps["PEFT"])}
    del adapted, steps

    quantizing, base = {}, tuned.detach()
    for name, scheme in (("NF4", tp.NF4()), ("GPTQ", tp.GPTQ(bits=3, group_size=32))):
        calibration = draw(0, model.config.vocab_size, (16, LENGTH)) if scheme.calibrated else None
        start = time.perf_counter()
        tp.quantize(sharing(base), scheme, calibration=calibration)
        quantizing[f"{name} s"] = round(time.perf_counter() - start, 2)
    record = record_of("smollm2", base, args.rounds, batch, bool(same), peaks, quantizing)
    record["load with tokenizer s"] = round(whole, 2)
    compared(record, {"decode the GGUF file": load, "forward": forward, "LoRA step": lora}, generation)
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
