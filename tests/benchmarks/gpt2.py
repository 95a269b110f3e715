"""GPT-2 small (124 M parameters, random weights), NumPy against transformers and PEFT, in turn in one run.

    python -m tests.benchmarks.gpt2 [--rounds 5] [--json FILE]

Both sides read the same folder, see the same tokens and use both cores. Loading goes up to the first token's logits
(transformers maps the file and reads it then). LoRA is here on query and value, in PEFT on c_attn, which is both and the key
beside them. `whole_model.py` has what is compared.
"""
import tempfile

import numpy as np
import peft
import torch
import transformers

import tinypeft as tp
from tests.benchmarks.measure import in_turn, parser, write
from tests.benchmarks.whole_model import compared, without_gradients

SIZES = {}                                               # of GPT2Config, where they are not those of GPT-2 small
ROWS, LENGTH = 2, 256
LORA = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["c_attn"], fan_in_fan_out=True)


def write_folder(folder):
    torch.manual_seed(0)
    config = transformers.GPT2Config(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, eos_token_id=None, bos_token_id=None, **SIZES)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)


def main(argv=None):
    args = parser(__doc__, 5).parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        write_folder(folder)
        here, there = tp.load_model, transformers.GPT2LMHeadModel.from_pretrained
        one = np.zeros((1, 1), int)
        load = in_turn({"tinypeft": without_gradients(lambda: here(folder)(one)),
                        "transformers": without_gradients(lambda: there(folder)(torch.as_tensor(one)))}, args.rounds)
        model, reference = here(folder), there(folder).eval()
    schemes = {"NF4": tp.NF4(), "GPTQ": tp.GPTQ(bits=4, group_size=128)}
    table, settings = compared(("load, first token", load), model, reference, ROWS, LENGTH, LORA, schemes, args.rounds)
    write("gpt2", args, {"gpt2": table}, {"gpt2": settings})


if __name__ == "__main__":
    main()
