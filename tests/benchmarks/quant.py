"""Quantizing and decoding 4 M weights, and what is built on it, in pairs in one run; medians of ratios.

    python -m tests.benchmarks.quant [--rounds 25] [--json FILE]

NF4 quantization takes ≤ 0.6 of bitsandbytes' time, and NF4 decoding ≤ 2.2 in-place multiplications of a float32 array of the
same size. bitsandbytes' decoder is a compiled loop that looks codes up in registers, which NumPy cannot express and does not
reach: that ratio is in the table too. A quantized layer's forward pass at batch 512 takes ≤ 1.4 of its float32 one (160 wide ≤
1.6). GPTQ and AWQ of a 768 × 3072 layer, and of the shipped base with the calibration of the main job, take ≤ 0.6 of the plain
loops in PyTorch (tests/oracles/torch_gptq.py, torch_awq.py). Rounding to GGUF's types and decoding them stand beside
llama.cpp's own C code. Generation with a quantized cache takes ≤ 1.5 times as long as with a float32 one at 1,000 tokens, and ≤
1.8 at 4,000; generation by the quantized base takes ≤ 1.25 of the float32 base's time, which is 0.8 of its tokens per second.
Before a side of a comparison of whole algorithms starts, both rest, because the waiting threads of either library take a core
from the other for some time.
"""
import copy
import statistics
import time

import libgguf
import numpy as np
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

import tinypeft as tp
from tests.benchmarks.measure import parser, write
from tests.oracles import torch_awq
from tests.oracles.torch_gpt import torch_copy
from tests.oracles.torch_gptq import gptq, gptq_model
from tinypeft import Tensor, no_grad
from tinypeft.engine.nn import Linear
from tinypeft.quant import AWQ, GGUF, GPTQ, NF4, W8A8, FloatFormat, LLMInt8, Uniform, ZeroQuant
from tinypeft.study.cost import sharing
from tinypeft.study.quantized import draw

SHAPE, REST = (2048, 2048), 0.1                          # weights; seconds
LENGTHS = {1000: 1.5, 2000: None, 4000: 1.8}             # tokens of generation with a cache → the target


def seconds(f, rest):
    time.sleep(rest)
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def pairs(f, g, rounds, rest=0.0):
    """(median time of f, of g, median of f/g), run in turn; one round of each is not counted. rest: seconds before each."""
    f(), g()
    a, b = zip(*((seconds(f, rest), seconds(g, rest)) for _ in range(rounds)), strict=True)
    return statistics.median(a), statistics.median(b), statistics.median(x / y for x, y in zip(a, b, strict=True))


def calibrated():
    """GPTQ and AWQ, of one layer and of the base, against the plain loops: [(name, f, against, g, target)]."""
    rng, plain = np.random.default_rng(2), "the loop in PyTorch"
    W = (rng.normal(size=(768, 3072)) * 0.02).astype(np.float32)
    X = (rng.normal(size=(4096, 3072)) * np.exp(rng.normal(size=3072) / 2)).astype(np.float32)
    H, (W_, X_) = X.T @ X, map(torch.tensor, (W, X))
    H_, linear, scheme = torch.tensor(H), torch.nn.Linear(3072, 768, bias=False), AWQ(group_size=128)
    linear.weight.data = W_

    def ours():
        H = X.T @ X
        s, _ = scheme.search(W, np.abs(X).mean(0), scheme.output_loss(W, H))
        scheme.quantize(W * s, H / np.outer(s, s))

    def theirs():
        s = torch_awq.search([linear], X_, linear, 4, 128)
        torch_awq.round_to_nearest(torch_awq.clipped(W_ * s, X_ / s, 4, 128), 4, 128)
    base, tokens = tp.load_pretrained(), draw(0, calibration=16).calibration
    base.tokenizer, twin = None, torch_copy(base, torch.float32)           # a copy of a tokenizer takes as long as GPTQ
    of_base = lambda scheme: lambda: tp.quantize(sharing(base), scheme, tokens)                           # noqa: E731
    return [("GPTQ(group_size=128), 768 × 3072", lambda: GPTQ(group_size=128).quantize(W, H),
             plain, lambda: gptq(W_, H_, group_size=128), 0.6),
            ("AWQ(group_size=128), 768 × 3072", ours, plain, theirs, 0.6),
            ("GPTQ(group_size=32) of the base", of_base(GPTQ(group_size=32)),
             plain, lambda: gptq_model(copy.deepcopy(twin), tokens, 4, 32), 0.6),
            ("AWQ(group_size=32) of the base", of_base(AWQ(group_size=32)),
             plain, lambda: torch_awq.awq(copy.deepcopy(twin), tokens, 4, 32), 0.6)]


def generated():
    """Generation with a quantized cache, and by quantized models, against float32: [(name, f, against, g, target)]."""
    long, one = tp.GPT(tp.GPTConfig(1024, max(LENGTHS), 128, 5, 4), rng=0), np.zeros((1, 1), int)
    base, prompt = tp.load_pretrained(), np.arange(16)[None]
    rows = [(f"KV cache of 4 bits, {n:,} tokens", lambda n=n: long.generate(one, n, cache=tp.QuantizedKVCache(long.config)),
             "float32 cache", lambda n=n: long.generate(one, n), target) for n, target in LENGTHS.items()]
    schemes = {"NF4": NF4(), "Uniform(bits=8)": Uniform(8), "W8A8": W8A8("channel", "token"), "LLM.int8()": LLMInt8()}
    for name, scheme in schemes.items():
        model = tp.quantize(sharing(base), scheme)
        rows.append((f"{name}, 100 tokens by the base", lambda model=model: model.generate(prompt, 100),
                     "float32", lambda: base.generate(prompt, 100), 1.25))
    return rows


def llama_cpps(W):
    """Rounding to GGUF's types and decoding them, against llama.cpp's own C code: [(name, f, against, g, target)]."""
    h, rows = np.float32(np.random.default_rng(3).standard_normal(SHAPE[1])**2 + 1e-3), []
    for name in ("Q4_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K"):
        scheme, kind = GGUF(name), libgguf.GGMLQuantizationType[name]
        q, octets = scheme.quantize(W), libgguf.quantize_rows(W, kind)
        assert np.array_equal(q.dequantize(), libgguf.dequantize_rows(octets, kind))
        rows += [(f"{name} quantize", lambda s=scheme: s.quantize(W), "libgguf", lambda k=kind: libgguf.quantize_rows(W, k)),
                 (f"{name} decode", q.dequantize, "libgguf", lambda o=octets, k=kind: libgguf.dequantize_rows(o, k))]
        if name == "Q4_K":
            rows.append((f"{name} quantize, with importance", lambda s=scheme: s.quantize(W, h),
                         "libgguf", lambda k=kind: libgguf.quantize_rows(W, k, h)))
    return [(*row, None) for row in rows]


def main(argv=None):
    args = parser(__doc__, 25).parse_args(argv)

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
             ("NF4 decode", lambda: q.dequantize(out), *multiply, 2.2),
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
        cases.append((f"{scheme} forward, batch 512", lambda layer=layer: layer(X), "float32", lambda: linear(X), 1.4))
    X.data[:, :3] *= 30                                  # outliers
    for exact, X_ in ((linear, X), (Linear(160, 640), Tensor(X.data[:, :160].copy()))):
        for name, layer in (("W8A8", W8A8("channel", "token").layer(exact)), ("ZeroQuant", ZeroQuant().layer(exact)),
                            ("LLM.int8()", LLMInt8().layer(exact, range(3)))):
            cases.append((f"{name} forward, batch 512, {layer.d_in} → {layer.d_out}", lambda layer=layer, X_=X_: layer(X_),
                          "float32", lambda layer=exact, X_=X_: layer(X_), 1.4 if layer.d_in > 1000 else 1.6))
    table = {}
    print(f"{'4,194,304 weights':<54}{'ms':>8}   {'against':<20}{'ms':>8}{'ratio':>8}{'target':>8}")
    few = -(-args.rounds // 5)
    cases = [(*case, args.rounds, 0) for case in cases]
    cases += [(*case, few, REST) for case in [*llama_cpps(W), *calibrated(), *generated()]]
    for name, f, against, g, target, rounds, rest in cases:
        with no_grad():
            a, b, ratio = pairs(f, g, rounds, rest)
        table[f"{name} ÷ {against}"] = {"ms": 1e3 * a, "the other: ms": 1e3 * b, "ratio": ratio, "at most": target}
        print(f"{name:<54}{1e3 * a:8.2f}   {against:<20}{1e3 * b:8.2f}{ratio:8.2f}{'' if target is None else f'≤ {target}':>8}")
    write("quant", args, {"quant": table})


if __name__ == "__main__":
    main()
