"""What the papers on quantization claim: one function per claim, and the table SCHEME_CLAIMS.

The papers measured their own models, of 125 million to 175 billion parameters. This base has 1.2 million, so only the
order of schemes can be reproduced. "Excess" is the loss above float32 on the same windows, in nats/token.
"""
import numpy as np

from .rule import (
    NOT_AT_THIS_SIZE,
    REPRODUCED,
    Claim,
    Finding,
    Load,
    against,
    as_good,
    effect,
    entry,
    listed,
    percent,
    pm,
    share_of_gain,
)

__all__ = ["SCHEME_CLAIMS"]

NEAREST = "round to nearest"


def llm_int8(load: Load) -> Finding:
    results = load("int8_outliers")
    i = results.record["settings"]["factors"].index(64)
    excess = {c: entry(results, c, "excess", i) for c in results.conditions}
    return Finding("three features at 64 times their size: " + ", ".join(f"{c} {pm(x)}" for c, x in excess.items()),
                   tuple(effect(x - excess["LLM.int8()"]) for c, x in excess.items() if c != "LLM.int8()"))


def free_of_loss(load: Load) -> Finding:
    excess = load("int8_outliers").values("LLM.int8()", "excess")                 # (seeds, factors)
    worst = excess[:, excess.mean(0).argmax()]
    return Finding(f"excess at most {pm(worst)} over all sizes of outliers", (effect(0.01 - worst),))


def smoothquant_u(load: Load) -> Finding:
    results = load("smoothquant")
    alphas, error = results.record["settings"]["alphas"], results.values("token", "error")
    middle, best = alphas.index(0.5), alphas[int(error.mean(0).argmin())]
    at_three = ", ".join(pm(100 * error[:, i], "{:.2f}") for i in (0, middle, -1))
    return Finding(f"error of the logits at α = 0, 0.5, 1: {at_three} %, least at α = {best:g}; with planted outliers and "
                   f"without smoothing {percent(results.values('token', 'error_planted'), 1)}",
                   (effect(error[:, 0] - error[:, middle]), effect(error[:, -1] - error[:, middle])))


def gptq(load: Load) -> Finding:
    results = load("gptq")
    grids = [f"{bits} bits, {shared}" for bits in (4, 3, 2) for shared in ("channel", "group 32")]
    excess = lambda variant, grid: pm(results.values(f"{variant}, {grid}", "excess"))
    return Finding("; ".join(f"{g}: GPTQ {excess('GPTQ', g)}, {NEAREST} {excess(NEAREST, g)}" for g in grids),
                   tuple(against(results, f"GPTQ, {g}", f"{NEAREST}, {g}") for g in grids))


def gptq_errors(load: Load) -> Finding:
    results, found, effects = load("gptq"), [], []
    error = lambda condition, of: f"{100 * results.mean(condition, of):.0f}"
    for bits in (4, 3, 2):
        a, b = f"GPTQ, {bits} bits, channel", f"{NEAREST}, {bits} bits, channel"
        found.append(f"{bits} bits: weights {error(b, 'weight_error')} → {error(a, 'weight_error')} %, outputs "
                     f"{error(b, 'output_error')} → {error(a, 'output_error')} %")
        effects += [results.difference(a, b, "weight_error"), against(results, a, b, "output_error")]
    return Finding(f"relative errors, {NEAREST} → GPTQ: " + "; ".join(found), tuple(effects))


def salient(load: Load) -> Finding:
    results, best = load("awq"), "1 % by activation"
    rules = NEAREST, best, "1 % by weight", "1 % at random"
    found, effects = [], []
    for where, base in (("as it is", "the base as it is"), ("planted", "with planted outliers")):
        found.append(f"{base}: " + ", ".join(f"{rule} {pm(results.values(f'{rule}, {where}', 'excess'))}" for rule in rules))
        effects += [against(results, f"{best}, {where}", f"{rule}, {where}", "output_error") for rule in rules if rule != best]
    return Finding("; ".join(found), tuple(effects))


def awq(load: Load) -> Finding:
    results = load("awq")
    pairs = [(f"AWQ, {where}", f"{NEAREST}, {where}") for where in ("as it is", "planted")]
    return Finding("; ".join(listed(results, pair) for pair in pairs), tuple(against(results, *pair) for pair in pairs))


def nf4(load: Load) -> Finding:
    results = load("formats")
    i, order = results.record["settings"]["blocks"].index(64), ("NF4", "FP4 E2M1", "int4 symmetric")
    error = {c: entry(results, c, "normal", i) for c in results.conditions}
    return Finding("relative RMS error, blocks of 64: " + ", ".join(f"{c} {100 * x.mean():.2f} %" for c, x in error.items()),
                   tuple(effect(error[worse] - error[better]) for better, worse in zip(order, order[1:], strict=False)))


def nf4_everywhere(load: Load) -> Finding:
    results = load("formats")
    settings, effects, found = results.record["settings"], [], []
    for metric, values, unit in (("normal", settings["blocks"], "blocks of"), ("tails", settings["degrees"], "Student's t,")):
        for i, value in enumerate(values):
            a, b = (entry(results, c, metric, i) for c in ("NF4", "int4 asymmetric"))
            effects.append(effect(b - a))
            found.append(f"{unit} {value}: {100 * a.mean():.1f} against {100 * b.mean():.1f} %")
    return Finding("RMS error of NF4 against asymmetric int4: " + "; ".join(found), tuple(effects))


def nf4_model(load: Load) -> Finding:
    results = load("formats")
    return Finding(listed(results, results.conditions),
                   tuple(against(results, "NF4", c) for c in results.conditions if c != "NF4"))


def double_quantization(load: Load) -> Finding:
    results = load("double_quantization")
    saved = results.values("one", "bits") - results.values("double", "bits")
    more, half = results.difference("double", "one", "excess")
    worst = results.values("double", "worst_scale")
    return Finding(f"{saved.mean():.3f} bits per weight saved for a matrix of a million weights; excess changes by {more:+.4f} "
                   f"± {half:.4f}; the worst scale is off by {100 * worst[:, 0].mean():.1f} % where rows resemble each other "
                   f"and by {100 * worst[:, 3].mean():.0f} % where rows differ by factors e^z",
                   (effect(0.005 - np.abs(saved - 0.373)), (0.005 - abs(more), half)))


def qlora(load: Load) -> Finding:
    results = load("qlora")
    frozen, full = results.values("16 bits", "before"), results.values("16 bits", "after")
    shares = [share_of_gain(results.values(c, "after"), full, frozen) for c in ("NF4", "NF4, double")]
    return Finding(f"after training {listed(results, ('16 bits', 'NF4', 'NF4, double'), 'after')} nats/token, before "
                   f"{frozen[0]:.3f}: NF4 reaches {percent(shares[0])} of the gain", *as_good(shares))


def merging(load: Load) -> Finding:
    results = load("qlora")
    loss = {m: results.values("NF4", m) for m in ("after", "merged_into_16_bits", "merged_and_rounded")}
    return Finding(f"NF4: {pm(loss['after'])} after training, {pm(loss['merged_into_16_bits'])} merged into the 16-bit "
                   f"weights, {pm(loss['merged_and_rounded'])} merged and rounded again; rounding moves the weights by "
                   f"{percent(results.values('NF4', 'rounding_of_change'))} of what was learned",
                   (effect(loss["merged_and_rounded"] - loss["after"]),))


def loftq(load: Load) -> Finding:
    results, few = load("loftq"), ("3 bits", "2 bits")
    return Finding("; ".join(f"{b}: {listed(results, (f'LoftQ, {b}', f'QLoRA, {b}'), 'after')}" for b in ("NF4", *few)),
                   tuple(against(results, f"LoftQ, {b}", f"QLoRA, {b}", "after") for b in few))


def qat(load: Load) -> Finding:
    results = load("qat")
    excess = lambda condition: pm(results.values(condition, "excess"))
    by_bits = "; ".join(f"{b} bits: " + ", ".join(f"{m} {excess(f'{m}, {b} bits')}" for m in (NEAREST, "GPTQ", "STE", "LSQ"))
                        for b in (3, 2))
    return Finding(f"{by_bits}; float32 trained as long {excess('float32, trained as long')}",
                   tuple(against(results, f"{m}, {b} bits", f"GPTQ, {b} bits") for b in (3, 2) for m in ("STE", "LSQ")))


def peqa(load: Load) -> Finding:
    results = load("qat")
    return Finding("; ".join(listed(results, [f"{m}, {b} bits" for m in ("PEQA", NEAREST, "STE")]) for b in (3, 2)),
                   tuple(against(results, f"PEQA, {b} bits", f"{NEAREST}, {b} bits") for b in (3, 2)))


def llm_qat(load: Load) -> Finding:
    results = load("qat")
    return Finding("; ".join(listed(results, [f"{m}, {b} bits" for m in ("LLM-QAT", "GPTQ", NEAREST)]) for b in (3, 2)),
                   tuple(against(results, f"LLM-QAT, {b} bits", f"GPTQ, {b} bits") for b in (3, 2)))


def more_parameters(load: Load) -> Finding:
    results = load("bits_vs_parameters")
    show = lambda c: f"{c} {pm(results.values(c, 'loss'))} in {results.mean(c, 'matrices') / 1024:.0f} KiB of matrices"
    pairs = [("medium, 2 bits", "small, 16 bits"), ("base, 2 bits", "medium, 16 bits")]
    return Finding("; ".join(f"{show(a)}, {show(b)}" for a, b in [*pairs, ("medium, 4 bits", "base, 4 bits")]),
                   tuple(against(results, a, b, "loss") for a, b in pairs))


SCHEME_CLAIMS = (
    Claim("With outlier features, LLM.int8() is nearer float32 than absmax, zero-point, row-wise and vector-wise quantization",
          "2208.07339", "C4 perplexity of a 13B model: 12.45 as float32; vector-wise 16.48, zero-point 13.94, absmax 19.08",
          ("int8_outliers",), llm_int8, {REPRODUCED: "The outliers are planted, because small models have none."}),
    Claim("LLM.int8() costs nothing, however large the outliers (less than 0.01 nats/token)", "2208.07339",
          "12.45 and 12.45", ("int8_outliers",), free_of_loss),
    Claim("SmoothQuant's error over α is a U: too little and too much smoothing are both worse than α = 0.5", "2211.10438",
          "", ("smoothquant",), smoothquant_u,
          {REPRODUCED: "The U comes from the base's own channels; planted outliers are undone exactly at every α."}),
    Claim("GPTQ loses less than round to nearest on the same grid, at 4, 3 and 2 bits", "2210.17323", "", ("gptq",), gptq),
    Claim("GPTQ makes the error of the weights larger and the error of the outputs smaller", "2210.17323", "", ("gptq",),
          gptq_errors),
    Claim("Activations show which 1 % of the weights to keep; the weights' own size and chance do not", "2306.00978",
          "OPT-6.7B, 3 bits: round to nearest 23.54; kept by activation 11.39, by weight 22.37, at random 24.23", ("awq",),
          salient, {REPRODUCED: "Judged by the output error of the layers. Without outliers the effect on the loss is small."}),
    Claim("AWQ's scales lose less than round to nearest at 3 bits, and keep no weight in 16 bits", "2306.00978", "", ("awq",),
          awq),
    Claim("On normal weights NF4 has a smaller error than FP4 E2M1, and FP4 E2M1 a smaller one than symmetric int4",
          "2305.14314", "perplexity 27.41 (NF4, double quantization), 31.07 (E2M1), 34.34 (int4)", ("formats",), nf4),
    Claim("NF4 has a smaller error than asymmetric int4 at every block size and with heavy tails", "2305.14314", "",
          ("formats",), nf4_everywhere,
          {NOT_AT_THIS_SIZE: "Asymmetric int4 is ahead on small blocks of normal numbers: it stores a zero point, so its range "
                             "fits both ends. NF4 wins on large blocks and on heavy tails."}),
    Claim("NF4 loses least of the 4-bit formats, on a model", "2305.14314", "as above", ("formats",), nf4_model),
    Claim("Double quantization saves 0.373 bits per weight and costs nothing", "2305.14314", "0.373 bits",
          ("double_quantization",), double_quantization,
          {REPRODUCED: "This holds where blocks resemble each other. Where they do not, some scales are far off."}),
    Claim("QLoRA learns as well as a LoRA on 16 bits", "2305.14314", "", ("qlora",), qlora),
    Claim("Rounding a merged QLoRA again loses what was learned", "2305.14314", "not measured there", ("qlora",), merging),
    Claim("LoftQ ends below QLoRA at 3 and 2 bits", "2310.08659", "", ("loftq",), loftq),
    Claim("Training with rounded weights beats GPTQ at 3 and 2 bits", "1902.08153", "", ("qat",), qat),
    Claim("PEQA, which trains the scales alone, beats round to nearest", "2305.14152", "", ("qat",), peqa),
    Claim("LLM-QAT, trained on text that the model writes itself, beats GPTQ at 3 and 2 bits", "2305.17888", "", ("qat",),
          llm_qat, {NOT_AT_THIS_SIZE: "Its grid is symmetric, so at 2 bits it has three of the four levels."}),
    Claim("More parameters at 2 bits beat fewer at 16 bits, in about as many bytes of matrices", "2212.09720",
          "4 bits are almost universally best for a given number of bits in all, 19M to 176B", ("bits_vs_parameters",),
          more_parameters,
          {REPRODUCED: "The sizes differ seven-fold, so only 2 bits can match 16. The two smaller bases were trained for 3,000 "
                       "steps and the largest for 16,000: small and medium are the fair pair."}),
)
