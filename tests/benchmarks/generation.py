"""Generation on the base, greedy and with a cache: against transformers, and quantized against float32.

    python -m tests.benchmarks.generation [--rounds 9] [--json FILE]

transformers' GPT-2 has the same weights. Speeds are in tokens per second; a ratio above 1 means faster.
"""
import numpy as np

import tinypeft as tp
from tests.benchmarks.measure import in_turn, medians, parser, ratio, write
from tests.benchmarks.methods import transformers_copy
from tests.benchmarks.whole_model import generators

PROMPT, NEW = 16, 128
SCHEMES = {"NF4": tp.NF4(), "LLM.int8()": tp.LLMInt8()}


def main(argv=None):
    args = parser(__doc__, 9).parse_args(argv)
    model = tp.load_pretrained()
    prompt = np.random.default_rng(0).integers(0, model.config.vocab_size, (1, PROMPT))
    mine, other = generators(model, transformers_copy(model), prompt, NEW)
    same = bool(np.array_equal(mine(), other()))
    runs = {"float32": mine, "transformers": other}
    for name, scheme in SCHEMES.items():
        quantized = tp.quantize(tp.load_pretrained(), scheme)
        runs[name] = lambda quantized=quantized: quantized.generate(prompt, NEW)
    times = in_turn(runs, args.rounds)
    speeds = {name: round(NEW / t, 1) for name, t in medians(times, digits=6).items()}
    ratios = {"float32": ratio(times["transformers"], times["float32"]),
              **{name: ratio(times["float32"], times[name]) for name in SCHEMES}}
    other_side = {"float32": "transformers"} | dict.fromkeys(SCHEMES, "float32")
    for name, speed in speeds.items(): print(f"{name:<14}{speed:>9.1f} tokens/s{ratios.get(name, '–'):>8}")
    print("both generate the same tokens" if same else "the two generate different tokens")
    write("generation", args,
          {"generation": {name: {"tokens/s": speed, "ratio": ratios.get(name), "to": other_side.get(name)}
                          for name, speed in speeds.items()}},
          {"generation": {"parameters": model.n_parameters(), "prompt": PROMPT, "new tokens": NEW,
                          "the same tokens as transformers": "yes" if same else "no"}})


if __name__ == "__main__":
    main()
