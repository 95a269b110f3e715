"""SmolLM2-135M-Instruct, NumPy against transformers and PEFT, in turn in one run.

    python -m tests.benchmarks.smollm2 [--rounds 5] [--json FILE]

Both sides have the same weights, see the same tokens and use both cores. Loading is from the GGUF file to float32 weights,
there by the package gguf, which transformers uses (the tokenizer is left out on both sides). LoRA is on query and value.
`whole_model.py` has what is compared. Two LoRA steps on one long text follow: of SmolLM2, and of a Llama of the base's width
with random weights. `--long` measures these alone and files nothing.
"""
import gguf
import peft
import torch

import tinypeft as tp
from tests.benchmarks.measure import in_turn, medians, mib, parser, ratio, write
from tests.benchmarks.sides import batch_of
from tests.benchmarks.whole_model import compared, lora_step
from tests.oracles.torch_llama import torch_llama
from tinypeft.interop.gguf_reader import read_gguf
from tinypeft.interop.loading import smollm2_file
from tinypeft.models.llama import Llama, LlamaConfig

ROWS, LENGTH = 4, 128
LONG = 2048, 8192                                        # tokens of the text that SmolLM2 and the small Llama read
LORA = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])


def decoded_here(path):
    file = read_gguf(path)
    return [file[name] for name in file]


def decoded_there(path):
    return [gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors]


def long_texts(model, rounds):
    """(model, cells of its row) of a LoRA step on one row of many tokens, here and in PEFT."""
    small = Llama(LlamaConfig(1024, LONG[1], d_model=128, n_layers=5, n_heads=4, n_kv_heads=4, d_mlp=352, d_head=32), rng=0)
    for name, m, tokens in (("SmolLM2", model, LONG[0]), ("a Llama of the base's width", small, LONG[1])):
        times, peaks = lora_step(m, torch_llama(m, torch.float32, exact=False), LORA, batch_of(m.config, 1, tokens), rounds)
        ours, theirs = peaks.values()
        yield name, {"tokens": tokens, "s": medians(times)["tinypeft"], "PEFT: s": medians(times)["PEFT"],
                     "ratio": ratio(*times.values()), "MiB": mib(ours), "PEFT: MiB": mib(theirs),
                     "memory ÷ PEFT": ours / theirs}
        print(f"{name}, {tokens:,} tokens: {medians(times)} s, {peaks} bytes", flush=True)


def main(argv=None):
    options = parser(__doc__, 5)
    options.add_argument("--long", action="store_true", help="the steps on a long text alone")
    args = options.parse_args(argv)
    path = smollm2_file()
    if args.long: return list(long_texts(tp.load_model(path), args.rounds))
    load = in_turn({"tinypeft": lambda: decoded_here(path), "gguf": lambda: decoded_there(path)}, min(3, args.rounds),
                   warmup=1, twice=False)
    model = tp.load_model(path)
    reference = torch_llama(model, torch.float32, exact=False)
    schemes = {"NF4": tp.NF4(), "GPTQ": tp.GPTQ(bits=3, group_size=32)}
    table, settings = compared(("decode the GGUF file", load), model, reference, ROWS, LENGTH, LORA, schemes, args.rounds)
    write("smollm2", args, {"smollm2": table, "long_texts": dict(long_texts(model, args.rounds))}, {"smollm2": settings})


if __name__ == "__main__":
    main()
