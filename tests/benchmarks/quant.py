"""Quantizing and decoding 4 M weights, NumPy against bitsandbytes' CPU code, in pairs in one run; medians of ratios.

    python tests/benchmarks/quant.py [--rounds 25] [--json figures/results/benchmark_quant.json]

Two targets: NF4 quantization takes ≤ 0.6 of bitsandbytes' time, and NF4 decoding ≤ 3 in-place multiplications of a
float32 array of the same size. bitsandbytes' decoder is a compiled loop that looks codes up in registers, which NumPy
cannot express and does not reach: that ratio is in the table too. Two more, of what is built on this: a quantized layer's
forward pass at batch 512 takes ≤ 1.5 of its float32 one, and GPTQ of a 768 × 3072 layer no longer than the same loop in
PyTorch (tests/oracles/torch_gptq.py).
"""
import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import bitsandbytes
import numpy as np
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.benchmarks.machine import machine  # noqa: E402
from tests.oracles.torch_gptq import gptq  # noqa: E402
from tinypeft import Tensor, no_grad  # noqa: E402
from tinypeft.nn import Linear  # noqa: E402
from tinypeft.quant import GGUF, GPTQ, NF4, W8A8, FloatFormat, LLMInt8, Uniform, ZeroQuant  # noqa: E402

SHAPE = (2048, 2048)


def seconds(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def pairs(f, g, rounds):
    """(median time of f, of g, median of f/g), run in turn; one round of each is not counted."""
    f(), g()
    a, b = zip(*((seconds(f), seconds(g)) for _ in range(rounds)), strict=True)
    return statistics.median(a), statistics.median(b), statistics.median(x / y for x, y in zip(a, b, strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    W = (np.random.default_rng(0).normal(size=SHAPE) * 0.02).astype(np.float32)
    T, out, x = torch.tensor(W), np.empty_like(W), W.copy()
    q, doubly = NF4().quantize(W), NF4(double_quant=True).quantize(W)
    codes, state = quantize_4bit(T, quant_type="nf4")
    assert np.array_equal(q.codes, codes.numpy().reshape(-1))
    assert np.array_equal(q.dequantize(), dequantize_4bit(codes, state).numpy())

    multiply = ("one multiplication", lambda: np.multiply(x, np.float32(1), out=x))
    cases = [("NF4 quantize", lambda: NF4().quantize(W),
              "bitsandbytes", lambda: quantize_4bit(T, quant_type="nf4"), 0.6),
             ("NF4 + double quantize", lambda: NF4(double_quant=True).quantize(W),
              "bitsandbytes", lambda: quantize_4bit(T, quant_type="nf4", compress_statistics=True), None),
             ("NF4 decode", lambda: q.dequantize(out), *multiply, 3.0),
             ("NF4 + double decode", lambda: doubly.dequantize(out), *multiply, None),
             ("NF4 decode", lambda: q.dequantize(out), "bitsandbytes", lambda: dequantize_4bit(codes, state), None)]
    for scheme in (Uniform(8), Uniform(4, granularity="group"), Uniform(3, False, "group"), FloatFormat("E4M3"),
                   FloatFormat("FP16"), GGUF("Q4_0")):
        other = scheme.quantize(W)
        cases += [(f"{scheme} quantize", lambda scheme=scheme: scheme.quantize(W), *multiply, None),
                  (f"{scheme} decode", lambda other=other: other.dequantize(out), *multiply, None)]

    linear, X = Linear(*SHAPE), Tensor(np.random.default_rng(1).normal(size=(512, SHAPE[1])).astype(np.float32))
    linear.weight.data = W
    for scheme in (NF4(), Uniform(4, granularity="group")):
        layer = scheme.layer(linear)
        cases.append((f"{scheme} forward, batch 512", lambda layer=layer: layer(X), "float32", lambda: linear(X), 1.5))
    X.data[:, :3] *= 30                                  # outliers; the base's layers are too small to hide what they cost
    for exact, X_, target in ((linear, X, 1.5), (Linear(160, 640), Tensor(X.data[:, :160].copy()), None)):
        for name, layer in (("W8A8", W8A8("channel", "token").layer(exact)), ("ZeroQuant", ZeroQuant().layer(exact)),
                            ("LLM.int8()", LLMInt8().layer(exact, range(3)))):
            cases.append((f"{name} forward, batch 512, {layer.d_in} → {layer.d_out}", lambda layer=layer, X_=X_: layer(X_),
                          "float32", lambda layer=exact, X_=X_: layer(X_), target))
    x768 = np.random.default_rng(2).normal(size=(4096, 3072)).astype(np.float32)
    W768, H768 = W.reshape(-1)[:768 * 3072].reshape(768, 3072), x768.T @ x768
    W768T, H768T = torch.tensor(W768), torch.tensor(H768)
    cases.append(("GPTQ(group_size=128), 768 × 3072", lambda: GPTQ(group_size=128).quantize(W768, H768),
                  "the loop in PyTorch", lambda: gptq(W768T, H768T, group_size=128), 1.0))

    rows = []
    print(f"{'4,194,304 weights':<54}{'ms':>8}   {'against':<20}{'ms':>8}{'ratio':>8}{'target':>8}")
    for name, f, against, g, target in cases:
        with no_grad():
            a, b, ratio = pairs(f, g, args.rounds if "GPTQ" not in name else -(-args.rounds // 5))
        rows.append({"what": name, "ms": 1e3 * a, "against": against, "against_ms": 1e3 * b, "ratio": ratio,
                     "target": target})
        print(f"{name:<54}{1e3 * a:8.2f}   {against:<20}{1e3 * b:8.2f}{ratio:8.2f}{'' if target is None else f'≤ {target}':>8}")
    if args.json:
        record = {"command": "python tests/benchmarks/quant.py", "rounds": args.rounds, "rows": rows,
                  "machine": machine(), "versions": {"python": platform.python_version(), "numpy": np.__version__,
                               "torch": torch.__version__, "bitsandbytes": bitsandbytes.__version__}}
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
