"""SmolLM2-135M-Instruct, NumPy against transformers and PEFT, in turn in one run.

    python -m tests.benchmarks.smollm2 [--rounds 5] [--json FILE]

Both sides have the same weights, see the same tokens and use both cores. Loading is from the GGUF file to float32 weights,
there by the package gguf, which transformers uses (the tokenizer is left out on both sides). LoRA is on query and value.
`whole_model.py` has what is compared.
"""
import gguf
import peft
import torch

import tinypeft as tp
from tests.benchmarks.measure import in_turn, parser, write
from tests.benchmarks.whole_model import compared
from tests.oracles.torch_llama import torch_llama
from tinypeft.interop.gguf_reader import read_gguf
from tinypeft.interop.loading import smollm2_file

ROWS, LENGTH = 4, 128
LORA = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])


def decoded_here(path):
    file = read_gguf(path)
    return [file[name] for name in file]


def decoded_there(path):
    return [gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors]


def main(argv=None):
    args = parser(__doc__, 5).parse_args(argv)
    path = smollm2_file()
    load = in_turn({"tinypeft": lambda: decoded_here(path), "gguf": lambda: decoded_there(path)}, min(3, args.rounds),
                   warmup=1, twice=False)
    model = tp.load_model(path)
    reference = torch_llama(model, torch.float32, exact=False)
    schemes = {"NF4": tp.NF4(), "GPTQ": tp.GPTQ(bits=3, group_size=32)}
    write("smollm2", args, compared(("decode the GGUF file", load), model, reference, ROWS, LENGTH, LORA, schemes, args.rounds))


if __name__ == "__main__":
    main()
