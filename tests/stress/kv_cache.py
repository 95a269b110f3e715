"""The quantized generation cache over 1,000, 2,000 and 4,000 tokens: processor seconds.

    python -m tests.stress.kv_cache [--record]

One layer of 4 heads of 32 channels, 4 bits, is fed one token at a time. Every call decodes all that is held, because
attention reads it, so the time grows with the square of the tokens; only a token's own codes are packed.
"""
import sys
import time

import numpy as np

import tinypeft as tp
from tests.stress import record
from tinypeft.engine.tensor import Tensor

__all__ = ["main", "seconds"]

CONFIG = tp.GPTConfig(vocab_size=64, context_length=4096, d_model=128, n_layers=1, n_heads=4)


def seconds(tokens):
    """Processor seconds for `tokens` tokens, one at a time."""
    layer = tp.QuantizedKVCache(CONFIG, bits=4).layers[0]
    x = np.random.default_rng(0).standard_normal((tokens, 2, 1, 4, 1, 32)).astype(np.float32)
    start = time.process_time()
    for k, v in x: layer.append(Tensor(k), Tensor(v))
    return time.process_time() - start


def main(arguments):
    figures = {}
    for tokens in (1000, 2000, 4000):
        figures[str(tokens)] = round(seconds(tokens), 2)
        print(f"{tokens} tokens: {figures[str(tokens)]} s")
    if "--record" in arguments: print(record("kv_cache", {"processor seconds by tokens": figures}))


if __name__ == "__main__":
    main(sys.argv[1:])
