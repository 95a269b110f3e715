"""One row a scheme: what differs between them. The checks are `quant/test_schemes.py`; whoever means all schemes asks here.

A new scheme is one row and its own file, which holds its equation, and what it computes beside other programs.
"""
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import tinypeft as tp
from tinypeft.quant import Scheme

__all__ = ["SETTINGS", "ROWS", "Row"]

WIDE = {"GPT": {"d_model": 32}, "Llama": {"d_model": 32, "d_mlp": 64, "d_head": 8},
        "Qwen3": {"d_model": 32, "d_mlp": 32, "d_head": 16}, "Gemma": {"d_model": 32, "d_mlp": 32, "d_head": 8}}


def never(*_): return False
def always(*_): return True
def needed(*_): return "needed"


@dataclass(frozen=True)
class Row:
    """A scheme as it is tested, and in what it differs from the others. A setting is `small` or one of the others."""
    small: Scheme                                        # on every family
    others: tuple[Scheme, ...]                           # other settings, on a GPT
    error: float                                         # of the logits of `small`, relative: a bound over the families
    bits: Callable                                       # (setting, layer) → bits per weight of a layer, its bias apart
    oracle: Callable | None = None                       # (setting, W) → Ŵ by the formula; None: in the scheme's own file
    nearest: Callable = always                           # (setting): each weight gets the nearest level of its run
    alone: bool = True                                   # a layer's codes are `quantize(W)`, whatever the other layers are
    folds: bool = False                                  # norms and other layers' weights take up scales
    tokens: Callable = never                             # (setting): "needed" or "used", where it is calibrated
    line: str = "3/3  batches"                           # what its line of progress counts, of three batches and two blocks
    silent: bool = True                                  # works where all inputs of a layer are 0 while it is calibrated
    rounds: Callable = never                             # (setting, name): the layer of this name rounds inputs or outputs
    depends: Callable = never                            # (setting): one row of a batch changes what another computes
    trained: str = ""                                    # the parameters that `train` moves, by the end of their names
    straight: Callable = always                          # (setting): dx = dy Ŵ; a step that is trained clips inputs, too
    uneven: Scheme | None = None                         # groups that divide no row of a GPT
    sizes: dict[str, dict] | None = None                 # of the models, if small ones have too short rows


def stored(bits, width, scale=32, zero=False):
    """Count bits per weight: a code, and of `width` weights a scale and maybe a zero point."""
    return bits + (scale + bits * zero) / width


def rounded(W, bits, symmetric=True, width=None, learned=False):
    """Round runs of `width` weights to s (q − z), with the s and z of their range, or the s at which LSQ starts to learn."""
    x = np.asarray(W, float).reshape(-1, width or W.shape[-1])
    low, high = np.minimum(x.min(1, keepdims=True), 0), np.maximum(x.max(1, keepdims=True), 0)
    top, middle = 2**bits - 1, 2**(bits - 1)
    if not symmetric: s, first = (high - low) / top, 0
    elif learned:     s, first = 2 * np.abs(x).mean(1, keepdims=True) / math.sqrt(middle - 1), 0
    else:             s, first = np.maximum(-low, high) / (middle - 1), 1
    z = middle if symmetric else np.rint(-low / s)
    return (s * (np.clip(np.rint(x / s) + z, first, top) - z)).reshape(W.shape)


def shared(s, size, d_in):
    """Count the weights that share a scale, where a setting has a granularity."""
    return {"tensor": size, "channel": d_in, "group": s.group_size}[s.granularity]


def grid_bits(s, layer):
    """Count the bits of a `Uniform` grid, or of one that is trained."""
    return stored(s.bits, shared(s, layer.weight.size, layer.d_in), zero=not s.symmetric)


def of_floats(s, layer):
    """Count the bits of a float format and of its scales, which one more float32 may scale."""
    size = layer.weight.size
    shares = {"none": math.inf, "tensor": size, "channel": layer.d_in, "block": s.block_size}[s.shared]
    one, for_all = {"float32": (32, 0), "E8M0": (8, 0), "E4M3": (8, 32)}[s.scale_format]
    return s.bits + one / shares + for_all / size


def of_nf4(s, layer):
    """Count 4 bits, and a float32 scale, or its code of 8 bits with the statistics of 256 of them and one offset."""
    size, n = layer.weight.size, layer.weight.size / s.block_size
    return 4 + ((8 * n + 32 * math.ceil(n / 256) + 32) if s.double_quant else 32 * n) / size


def of_gptq(s, layer):
    """Count a code, its share of a float16 scale and a zero point, and 32 bits a column for an order that is kept."""
    kept = 32 / layer.d_out if s.act_order and not s.static_groups else 0
    return stored(s.bits, s.group_size or layer.d_in, 16, not s.symmetric) + kept


def of_awq(s, layer):
    """Count a code, its share of a scale and a zero point, and a float32 for each input that is divided at run time."""
    kept = 32 / layer.d_out if hasattr(layer, "input_scale") else 0
    return stored(s.bits, s.group_size or layer.d_in, 16, not s.symmetric) + kept


def of_int8(weights, activations, layer):
    """Count 8 bits, a scale for a matrix or each of its rows, and one for inputs whose range is fixed."""
    size = layer.weight.size
    return stored(8, size if weights == "tensor" else layer.d_in) + 32 / size * (activations == "static")


def of_llm_int8(s, layer):
    """Count 8 bits, a scale a row, and each column that is kept in float16 with its int32 number."""
    return stored(8, layer.d_in) + len(layer.columns) * (16 * layer.d_out + 32) / layer.weight.size


def widths(s, size):
    """Count the weights of a run of ZeroQuant's."""
    return s.group_size or size // s.groups


GROUPS = {"granularity": "group", "group_size": 4}
ROWS = {
    "uniform": Row(
        tp.Uniform(8), (tp.Uniform(3, False), tp.Uniform(5, granularity="tensor"),
                        tp.Uniform(2, **GROUPS), tp.Uniform(4, False, **GROUPS)), 0.03, grid_bits,
        lambda s, W: rounded(W, s.bits, s.symmetric, shared(s, W.size, W.shape[1])),
        uneven=tp.Uniform(4, granularity="group", group_size=5)),
    "float": Row(
        tp.FloatFormat("E4M3"),
        (tp.FloatFormat("E5M2", "channel"), tp.FloatFormat("E2M1", block_size=8), tp.FloatFormat("FP4", block_size=16),
         tp.FloatFormat("BF16"), tp.FloatFormat("FP16"), tp.FloatFormat("E2M1", block_size=8, scale_format="E8M0"),
         tp.FloatFormat("E2M1", block_size=8, scale_format="E4M3")), 0.2, of_floats),
    "nf4": Row(tp.NF4(16, double_quant=True), (tp.NF4(8), tp.NF4(), tp.NF4(double_quant=True)), 0.5, of_nf4,
               nearest=lambda s: not s.double_quant),
    "gguf": Row(
        tp.GGUF("Q8_0"), (tp.GGUF("Q4_0"), tp.GGUF("Q5_1"), tp.GGUF("Q4_1", importance=True)), 0.04,
        lambda s, layer: stored(int(s.name[1]), 32, 16 + 16 * int(s.name[3])), nearest=never,
        tokens=lambda s: s.importance and "needed", silent=False, uneven=tp.GGUF("Q8_0"), sizes=WIDE),
    "gptq": Row(
        tp.GPTQ(8, group_size=4, act_order=True),
        (tp.GPTQ(8, true_sequential=True), tp.GPTQ(4), tp.GPTQ(3, symmetric=True, group_size=2), tp.GPTQ(3, act_order=True),
         tp.GPTQ(4, group_size=16, act_order=True, static_groups=True)), 0.03, of_gptq, nearest=never, alone=False,
        tokens=needed, line="2/2  blocks", silent=False, uneven=tp.GPTQ(group_size=5)),
    "awq": Row(
        tp.AWQ(8, group_size=4), (tp.AWQ(8, group_size=4, duo_scaling=True), tp.AWQ(4, group_size=16),
                                  tp.AWQ(4, symmetric=True, group_size=8, sequential=True)), 0.02, of_awq, nearest=never,
        alone=False, folds=True, tokens=needed, line="2/2  blocks", silent=False, uneven=tp.AWQ(group_size=5)),
    "w8a8": Row(
        tp.W8A8("channel", "token"), (tp.W8A8(), tp.W8A8(activations="static"), tp.W8A8("channel", "static")), 0.06,
        lambda s, layer: of_int8(s.weights, s.activations, layer),
        lambda s, W: rounded(W, 8, width=W.size if s.weights == "tensor" else None),
        tokens=lambda s: s.activations == "static" and "needed", rounds=always,
        depends=lambda s: s.activations == "tensor"),
    "llm_int8": Row(
        tp.LLMInt8(), (tp.LLMInt8(1.0), tp.LLMInt8(math.inf), tp.LLMInt8(1.0, variant="bitsandbytes")), 0.06, of_llm_int8,
        lambda s, W: rounded(W, 8), tokens=lambda s: "used", rounds=always,
        depends=lambda s: s.threshold < 6),               # which no input of a small model reaches
    "zeroquant": Row(
        tp.ZeroQuant(groups=4), (tp.ZeroQuant(4, group_size=8), tp.ZeroQuant(bits=3, groups=16),
                                 tp.ZeroQuant(mlp_bits=4, groups=4, steps=1)), 0.06,
        lambda s, layer: stored(layer.weight.bits, widths(s, layer.weight.size)),
        lambda s, W: rounded(W, s.bits, width=widths(s, W.size)), tokens=lambda s: s.steps and "needed",
        line="2/2  blocks", rounds=always, uneven=tp.ZeroQuant(groups=7)),
    "smoothquant": Row(
        tp.SmoothQuant(), (tp.SmoothQuant(activations="tensor"), tp.SmoothQuant("channel", "static", alpha=0.7)), 0.06,
        lambda s, layer: of_int8(s.weights, s.activations, layer),
        lambda s, W: rounded(W, 8, width=W.size if s.weights == "tensor" else None), alone=False,
        folds=True, tokens=needed, rounds=always,
        depends=lambda s: s.activations == "tensor"),
    "fake_quant": Row(
        tp.FakeQuant(8),
        (tp.FakeQuant(4, symmetric=False), tp.FakeQuant(2, **GROUPS), tp.FakeQuant(4, activation_bits=8),
         tp.FakeQuant(3, learn_step=True), tp.FakeQuant(8, learn_step=True, symmetric=False, granularity="tensor"),
         tp.FakeQuant(4, True, False, activation_bits=5, activation_symmetric=False, **GROUPS)), 0.03,
        lambda s, layer: grid_bits(s, layer) + 64 / layer.weight.size * s.calibrated,
        lambda s, W: rounded(W, s.bits, s.symmetric, shared(s, W.size, W.shape[1]), s.learn_step),
        tokens=lambda s: s.learn_step and s.activation_bits and "needed",
        rounds=lambda s, name: s.activation_bits is not None, straight=lambda s: not s.learn_step,
        uneven=tp.FakeQuant(granularity="group", group_size=5)),
    "llm_qat": Row(
        tp.LLMQAT(8, kv_bits=8), (tp.LLMQAT(), tp.LLMQAT(3, activation_bits=None, kv_bits=4), tp.LLMQAT(4, kv_bits=None),
                                  tp.LLMQAT(4, activation_bits=None, kv_bits=None)), 0.06,
        lambda s, layer: stored(s.bits, layer.d_in), lambda s, W: rounded(W, s.bits),
        rounds=lambda s, name: s.activation_bits is not None or s.kv_bits is not None and name in ("key", "value")),
    "peqa": Row(
        tp.PEQA(8), (tp.PEQA(4), tp.PEQA(3, group_size=4), tp.PEQA(3, symmetric=True)), 0.03,
        lambda s, layer: stored(s.bits, s.group_size or layer.d_in, zero=not s.symmetric),
        lambda s, W: rounded(W, s.bits, s.symmetric, s.group_size), trained=".scale", uneven=tp.PEQA(group_size=5)),
}
SETTINGS = [(name, scheme) for name, row in ROWS.items() for scheme in (row.small, *row.others)]
