"""What the papers on quantization claim, beside what was measured; `claims.py` says how a verdict comes about.

Numbers of papers are those of their own models, of 125 million to 175 billion parameters; here it is one of 1.2 million, so
that only the order of things can be reproduced. "Excess" is the loss above float32, nats/token, on the same windows.
"""
import numpy as np

from .claims import Claim, Finding, effect, pm

__all__ = ["QUANT_CLAIMS"]


def against(r, better, worse, metric="excess", of_better=None):
    """By how much `worse` exceeds `better`, paired over seeds: positive as the claim says."""
    return r.difference(worse, better, metric, of_better)


def told(r, conditions, metric="excess", form="{:.3f}"):
    return ", ".join(f"{c} {pm(r.values(c, metric), form)}" for c in conditions)


def at(r, condition, metric, i):
    """One number per seed: entry i of a metric that is a list."""
    return r.values(condition, metric)[:, i]


def llm_int8(load):
    r = load("int8_outliers")
    i = r.record["settings"]["factors"].index(64)
    mine, others = at(r, "LLM.int8()", "excess", i), [c for c in r.conditions if c != "LLM.int8()"]
    return Finding("three features 64 times their size: " + ", ".join(f"{c} {pm(at(r, c, 'excess', i))}" for c in r.conditions),
                   tuple(effect(at(r, c, "excess", i) - mine) for c in others))


def free_of_loss(load):
    r = load("int8_outliers")
    x = r.values("LLM.int8()", "excess")
    worst = x.mean(0).argmax()
    return Finding(f"excess over all factors at most {pm(x[:, worst])}", (effect(0.01 - x[:, worst]),))


def smoothquant_u(load):
    r = load("smoothquant")
    alphas, e = r.record["settings"]["alphas"], r.values("token", "error")
    middle, best = alphas.index(0.5), alphas[int(e.mean(0).argmin())]
    at_three = ", ".join(pm(100 * e[:, i], "{:.2f}") for i in (0, middle, -1))
    return Finding(f"error of the logits at α = 0, 0.5, 1: {at_three} %; least at α = {best:g}; planted and not smoothed "
                   f"{pm(100 * r.values('token', 'error_planted'), '{:.1f}')} %",
                   (effect(e[:, 0] - e[:, middle]), effect(e[:, -1] - e[:, middle])))


def gptq(load):
    r = load("gptq")
    grids = [f"{bits} bits, {shared}" for bits in (4, 3, 2) for shared in ("channel", "group 32")]
    pair = lambda g: (f"GPTQ, {g}", f"round to nearest, {g}")
    return Finding("; ".join(f"{g}: {pm(r.values(pair(g)[0], 'excess'))}, round to nearest {pm(r.values(pair(g)[1], 'excess'))}"
                             for g in grids), tuple(against(r, *pair(g)) for g in grids))


def gptq_errors(load):
    r, found, effects = load("gptq"), [], []
    for bits in (4, 3, 2):
        a, b = f"GPTQ, {bits} bits, channel", f"round to nearest, {bits} bits, channel"
        show = lambda c, m: f"{100 * r.mean(c, m):.0f}"                   # noqa: B023
        found.append(f"{bits} bits: weights {show(b, 'weight_error')} → {show(a, 'weight_error')} %, outputs "
                     f"{show(b, 'output_error')} → {show(a, 'output_error')} %")
        effects += [r.difference(a, b, "weight_error"), against(r, a, b, "output_error")]
    return Finding("; ".join(found), tuple(effects))


def salient(load):
    r, effects = load("awq"), []
    rules = ("round to nearest", "1 % by activation", "1 % by weight", "1 % at random")
    for where in ("as it is", "planted"):
        effects += [against(r, f"1 % by activation, {where}", f"{rule}, {where}", "output_error") for rule in rules if
                    rule != "1 % by activation"]
    return Finding("; ".join(f"{where}: " + ", ".join(f"{rule} {pm(r.values(f'{rule}, {where}', 'excess'))}" for rule in rules)
                             for where in ("as it is", "planted")), tuple(effects))


def awq(load):
    r = load("awq")
    pairs = [(f"AWQ, {where}", f"round to nearest, {where}") for where in ("as it is", "planted")]
    return Finding("; ".join(told(r, pair) for pair in pairs), tuple(against(r, *pair) for pair in pairs))


def nf4(load):
    r = load("formats")
    i = r.record["settings"]["blocks"].index(64)
    order = "NF4", "FP4 E2M1", "int4 symmetric"
    x = {c: at(r, c, "normal", i) for c in r.conditions}
    return Finding("relative RMSE, blocks of 64: " + ", ".join(f"{c} {100 * v.mean():.2f} %" for c, v in x.items()),
                   tuple(effect(x[worse] - x[better]) for better, worse in zip(order, order[1:], strict=False)))


def nf4_everywhere(load):
    r = load("formats")
    s, effects, parts = r.record["settings"], [], []
    for metric, values, unit in (("normal", s["blocks"], "blocks of"), ("tails", s["degrees"], "Student's t,")):
        for i, value in enumerate(values):
            a, b = at(r, "NF4", metric, i), at(r, "int4 asymmetric", metric, i)
            effects.append(effect(b - a))
            parts.append(f"{unit} {value}: {100 * a.mean():.1f} against {100 * b.mean():.1f} %")
    return Finding("NF4 against asymmetric int4, RMSE: " + "; ".join(parts), tuple(effects))


def nf4_model(load):
    r = load("formats")
    return Finding(told(r, r.conditions), tuple(against(r, "NF4", c) for c in r.conditions if c != "NF4"))


def double_quantization(load):
    r = load("double_quantization")
    saved = r.values("one", "bits") - r.values("double", "bits")
    more, half = r.difference("double", "one", "excess")
    worst = r.values("double", "worst_scale")
    return Finding(f"{saved.mean():.3f} bits saved of a matrix of a million; excess {more:+.4f} ± {half:.4f}; scales off by at "
                   f"worst {100 * worst[:, 0].mean():.1f} % where rows resemble each other, {100 * worst[:, 3].mean():.0f} % "
                   "where they differ by factors e^z", (effect(0.005 - np.abs(saved - 0.373)), (0.005 - abs(more), half)))


def qlora(load):
    r = load("qlora")
    frozen, full = r.values("16 bits", "before"), r.values("16 bits", "after")
    shares = [(frozen - r.values(c, "after")) / (frozen - full) for c in ("NF4", "NF4, double")]
    return Finding(f"{told(r, ('16 bits', 'NF4', 'NF4, double'), 'after')} nats/token, of {frozen[0]:.3f} before: "
                   f"{pm(100 * shares[0], '{:.0f}')} % of the gain", tuple(effect(s - 0.9) for s in shares), 0.4)


def merging(load):
    r = load("qlora")
    x = {m: r.values("NF4", m) for m in ("after", "merged", "merged_into_16_bits", "merged_and_rounded")}
    return Finding(f"NF4: after {pm(x['after'])}, merged into the 16-bit weights {pm(x['merged_into_16_bits'])}, merged and "
                   f"rounded again {pm(x['merged_and_rounded'])}, which moves weights by "
                   f"{pm(100 * r.values('NF4', 'rounding_of_change'), '{:.0f}')} % of what was learned",
                   (effect(x["merged_and_rounded"] - x["after"]),))


def loftq(load):
    r, bases = load("loftq"), ("3 bits", "2 bits")
    return Finding("; ".join(f"{b}: {told(r, (f'LoftQ, {b}', f'QLoRA, {b}'), 'after')}" for b in ("NF4", *bases)),
                   tuple(against(r, f"LoftQ, {b}", f"QLoRA, {b}", "after") for b in bases))


def qat(load):
    r, effects = load("qat"), []
    for bits in (3, 2):
        effects += [against(r, f"{m}, {bits} bits", f"GPTQ, {bits} bits") for m in ("STE", "LSQ")]
    return Finding("; ".join(f"{b} bits: " + ", ".join(f"{m} {pm(r.values(f'{m}, {b} bits', 'excess'))}" for m in
                                                       ("round to nearest", "GPTQ", "STE", "LSQ")) for b in (3, 2))
                   + f"; float32 trained as long {pm(r.values('float32, trained as long', 'excess'))}", tuple(effects))


def peqa(load):
    r = load("qat")
    return Finding("; ".join(told(r, [f"{m}, {b} bits" for m in ("PEQA", "round to nearest", "STE")]) for b in (3, 2)),
                   tuple(against(r, f"PEQA, {b} bits", f"round to nearest, {b} bits") for b in (3, 2)))


def llm_qat(load):
    r = load("qat")
    return Finding("; ".join(told(r, [f"{m}, {b} bits" for m in ("LLM-QAT", "GPTQ", "round to nearest")]) for b in (3, 2)),
                   tuple(against(r, f"LLM-QAT, {b} bits", f"GPTQ, {b} bits") for b in (3, 2)))


def more_parameters(load):
    r = load("bits_vs_parameters")
    show = lambda c: f"{c} {pm(r.values(c, 'loss'))} in {r.mean(c, 'matrices') / 1024:.0f} KiB of matrices"
    pairs = [("medium, 2 bits", "small, 16 bits"), ("base, 2 bits", "medium, 16 bits")]
    return Finding("; ".join(f"{show(a)}, {show(b)}" for a, b in [*pairs, ("medium, 4 bits", "base, 4 bits")]),
                   tuple(against(r, a, b, "loss") for a, b in pairs))


SAME = {"not at this size": "The base has no outliers of its own and loses little at 4 bits; the rest is within the spread."}

QUANT_CLAIMS = [
    Claim("With outlier features, LLM.int8() is nearer float32 than absmax, zero-point, row-wise and vector-wise quantization",
          "2208.07339", "C4 perplexity of a 13B model: 12.45 as float32; vector-wise 16.48, zero-point 13.94, absmax 19.08",
          ("int8_outliers",), llm_int8, {"reproduced": "Outliers are planted: small models have none."}),
    Claim("LLM.int8() costs nothing, however large the outliers (less than 0.01 nats/token)", "2208.07339",
          "12.45 and 12.45", ("int8_outliers",), free_of_loss),
    Claim("SmoothQuant's error over α is a U: too little and too much smoothing are both worse than α = 0.5", "2211.10438",
          "", ("smoothquant",), smoothquant_u,
          {"reproduced": "The U is that of the base's own channels: planted outliers are undone exactly at every α."}),
    Claim("GPTQ loses less than round to nearest on the same grid, at 4, 3 and 2 bits", "2210.17323",
          "", ("gptq",), gptq, SAME),
    Claim("GPTQ leaves the weights further off and the outputs nearer", "2210.17323", "", ("gptq",), gptq_errors),
    Claim("Which 1 % of the weights to keep is told by activations, not by the weights' size, nor by chance", "2306.00978",
          "OPT-6.7B, 3 bits: round to nearest 23.54; kept by activation 11.39, by weight 22.37, at random 24.23", ("awq",),
          salient, {"reproduced": "By the layers' output error. Without outliers the effect on the loss is small.", **SAME}),
    Claim("AWQ's scales do it without exceptions: less loss than round to nearest at 3 bits", "2306.00978", "", ("awq",), awq),
    Claim("On normal weights NF4 has a smaller error than FP4 E2M1, and that than symmetric int4", "2305.14314",
          "perplexity 27.41 (NF4, double quantization), 31.07 (E2M1), 34.34 (int4)", ("formats",), nf4),
    Claim("… and than asymmetric int4, whatever the block size and the tails", "2305.14314", "", ("formats",), nf4_everywhere,
          {"not at this size": "Asymmetric int4 is ahead on small blocks of normal numbers: its range fits either end, for "
                               "a stored zero point. NF4 wins on large blocks and heavy tails.",
           "contradicted": "Asymmetric int4 stores a zero point, and its range fits either end."}),
    Claim("NF4 loses least of the 4-bit formats, on a model", "2305.14314", "as above", ("formats",), nf4_model, SAME),
    Claim("Double quantization saves 0.373 bits per weight and costs nothing", "2305.14314", "0.373 bits",
          ("double_quantization",), double_quantization,
          {"reproduced": "Where blocks resemble each other. Where they do not, scales are far off."}),
    Claim("QLoRA learns as well as a LoRA on 16 bits", "2305.14314", "", ("qlora",), qlora,
          {"not at this size": "A model of 1.2 million has less to spare: the LoRA must first win back what rounding cost."}),
    Claim("Rounding a merged QLoRA again loses what was learned", "2305.14314", "not measured there", ("qlora",), merging),
    Claim("LoftQ ends below QLoRA at 3 and 2 bits", "2310.08659", "", ("loftq",), loftq),
    Claim("Training with rounded weights beats GPTQ at 3 and 2 bits", "1902.08153", "", ("qat",), qat,
          {"not at this size": "At 2 bits by a nat; at 3 bits 80 steps of training are hardly ahead of GPTQ."}),
    Claim("PEQA: training the scales alone beats round to nearest", "2305.14152", "", ("qat",), peqa),
    Claim("LLM-QAT, on what the model writes itself, beats GPTQ at 3 and 2 bits", "2305.17888", "", ("qat",), llm_qat,
          {"not at this size": "Its grid is symmetric, three of four levels at 2 bits."}),
    Claim("More parameters at 2 bits beat fewer at 16, in about as many bytes of matrices", "2212.09720",
          "4 bits almost universally best for the bits in all, 19M to 176B", ("bits_vs_parameters",), more_parameters,
          {"reproduced": "The sizes differ seven-fold: only 2 bits meet 16. The smaller two were trained for 3,000 steps, the "
                         "largest for 16,000: small and medium are the fair pair."}),
]
