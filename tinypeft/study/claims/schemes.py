"""The claims on quantization: one function per claim, and the table SCHEME_CLAIMS.

The papers measured their own models, of 125 million to 175 billion parameters. This base has 1.2 million, so only the
order of schemes can be reproduced. "Excess" is the loss above float32 on the same text, in nats/token. A seed draws the
calibration and the test text, of which no two seeds share a document, so the error over seeds is that of the text as well.
"""
import functools

import numpy as np

from ..bases import draws_of
from ..effects import averaged, between, difference, effect, read, relative, together
from ..experiment import Results
from .methods import of_gain
from .rule import (
    AS_GOOD,
    AT_LEAST,
    BETTER,
    FINE_TUNING,
    LEVEL,
    NOT_SHOWN,
    QUANTIZATION,
    RELATIVE,
    REPRODUCED,
    SIZE_OPEN,
    WITHIN,
    Claim,
    Contrast,
    Finding,
    Load,
)
from .words import listed, mean, percent

__all__ = ["SCHEME_CLAIMS"]

NEAREST, WHERE = "round to nearest", ("as it is", "planted")
PLANTED = "The outliers are planted where its threshold finds them."


def excess(results: Results, better: str, worse: str, name: str = "", metric: str = "excess", i: int | None = None) -> Contrast:
    """By how much `worse` exceeds `better`, paired over seeds."""
    return Contrast(name or f"against {worse}", difference(read(results, worse, metric, i), read(results, better, metric, i)))


def llm_int8(load: Load) -> Finding:
    r = load("int8_outliers")
    i, best = r.record["settings"]["factors"].index(64), "LLM.int8()"
    return Finding("excess with three features at 64 times their size: "
                   + ", ".join(f"{c} {r.values(c, 'excess')[:, i].mean():.3f}" for c in r.conditions),
                   tuple(excess(r, best, c, i=i) for c in r.conditions if c != best))


def free_of_loss(load: Load) -> Finding:
    costs = load("int8_outliers").values("LLM.int8()", "excess")                  # (seeds, factors)
    worst = costs[:, costs.mean(0).argmax()]
    return Finding(f"excess at most {worst.mean():.3f} over all sizes of outliers", (Contrast("at most", effect(worst)),))


def smoothquant_u(load: Load) -> Finding:
    r = load("smoothquant")
    alphas, error = r.record["settings"]["alphas"], r.values("token", "error")
    middle = alphas.index(0.5)
    arms = {i: read(r, "token", "error", i) for i in (0, middle, len(alphas) - 1)}
    return Finding("error of the logits at α = 0, 0.5, 1: " + ", ".join(percent(error[:, i], 2) for i in arms)
                   + f", least at α = {alphas[int(error.mean(0).argmin())]:g}; with planted outliers and without smoothing "
                   + percent(r.values("token", "error_planted"), 1),
                   tuple(Contrast(f"α = {alphas[i]:g}", relative(arms[i], arms[middle])) for i in arms if i != middle))


def gptq(load: Load) -> Finding:
    r, grids = load("gptq"), [f"{bits} bits, {shared}" for bits in (4, 3, 2) for shared in ("channel", "group 32")]
    said = lambda g: f"{g}: GPTQ {mean(r, f'GPTQ, {g}', 'excess')}, {NEAREST} {mean(r, f'{NEAREST}, {g}', 'excess')}"
    return Finding("; ".join(map(said, grids)), tuple(excess(r, f"GPTQ, {g}", f"{NEAREST}, {g}", g) for g in grids))


def gptq_errors(load: Load) -> Finding:
    r, found, contrasts = load("gptq"), [], []
    error = lambda condition, of: percent(r.values(condition, of))
    for bits in (4, 3, 2):
        a, b = f"GPTQ, {bits} bits, channel", f"{NEAREST}, {bits} bits, channel"
        found.append(f"{bits} bits: weights {error(b, 'weight_error')} → {error(a, 'weight_error')}, outputs "
                     f"{error(b, 'output_error')} → {error(a, 'output_error')}")
        contrasts += [Contrast(f"weights, {bits} bits", relative(read(r, a, "weight_error"), read(r, b, "weight_error"))),
                      Contrast(f"outputs, {bits} bits", relative(read(r, b, "output_error"), read(r, a, "output_error")))]
    return Finding(f"relative errors, {NEAREST} → GPTQ: " + "; ".join(found), tuple(contrasts))


def of_one_base(r: Results, rules: tuple[str, ...], where: str) -> str:
    """"as it is: rule excess, …" for the base as it is or with planted outliers."""
    return f"{where}: " + ", ".join(f"{rule} " + mean(r, f"{rule}, {where}", "excess") for rule in rules)


def salient(load: Load) -> Finding:
    r, best, others = load("awq"), "1 % by activation", ("1 % by weight", "1 % at random")
    return Finding(f"excess {'; '.join(of_one_base(r, (NEAREST, best, *others), where) for where in WHERE)}",
                   tuple(excess(r, f"{best}, {where}", f"{other}, {where}", f"{other.removeprefix('1 % ')}, {where}")
                         for where in WHERE for other in others))


def awq_scales(load: Load) -> Finding:
    r, scales = load("awq"), "AWQ without clipping"
    said = "; ".join(of_one_base(r, (NEAREST, scales, "AWQ"), where) for where in WHERE)
    return Finding(f"excess {said}", tuple(excess(r, f"{scales}, {w}", f"{NEAREST}, {w}", w) for w in WHERE))


def nf4_on_numbers(load: Load) -> Finding:
    r = load("formats")
    blocks, order = r.record["settings"]["blocks"], ("NF4", "FP4 E2M1", "int4 symmetric")
    error = lambda c, i: read(r, c, "normal", i)
    said = lambda c: f"{c} {' / '.join(f'{100 * x:.1f}' for x in r.mean(c, 'normal'))} %"
    return Finding(f"relative RMS error on normal numbers, blocks of {' / '.join(map(str, blocks))}: "
                   + ", ".join(map(said, (*order, "int4 asymmetric"))),
                   tuple(Contrast(f"{better} against {worse}", relative(error(worse, i), error(better, i)))
                         for better, worse in zip(order, order[1:], strict=False) for i in [blocks.index(64)]))


def nf4_model(load: Load) -> Finding:
    r = load("formats")
    return Finding(f"excess: {listed(r, r.conditions, 'excess')}",
                   tuple(excess(r, "NF4", c) for c in r.conditions if c != "NF4"))


def double_quantization(load: Load) -> Finding:
    r = load("double_quantization")
    saved, worst = r.mean("one", "bits") - r.mean("double", "bits"), r.mean("double", "worst_scale")
    adds = r.mean("double", "excess") - r.mean("one", "excess")
    return Finding(f"{saved:.3f} bits per weight saved for a matrix of a million weights; the worst scale is off "
                   f"by {100 * worst[0]:.1f} % where rows resemble each other and by {100 * worst[3]:.0f} % where rows differ "
                   f"by factors e^z, z from N(0, 1); on the base it adds {adds:.4f} nats/token",
                   (excess(r, "one", "double", "excess that it adds"),))


def qlora(load: Load) -> Finding:
    r, arms = load("qlora"), ("NF4", "NF4, double")
    frozen, full = (read(r, "16 bits", metric) for metric in ("before", "after"))
    return Finding(f"after training {listed(r, ('16 bits', *arms), 'after')}, before {mean(r, '16 bits', 'before')} nats/token",
                   tuple(of_gain(c, frozen, read(r, c, "after"), full) for c in arms))


def merging(load: Load) -> Finding:
    r = load("qlora")
    loss = {m: r.mean("NF4", m) for m in ("after", "merged_into_16_bits", "merged_and_rounded")}
    lost = (loss["merged_and_rounded"] - loss["after"]) / (r.mean("16 bits", "before") - loss["after"])
    return Finding(f"NF4: {loss['after']:.3f} after training, {loss['merged_into_16_bits']:.3f} merged into the 16-bit "
                   f"weights, {loss['merged_and_rounded']:.3f} merged and rounded again, which loses {percent(lost)} of the "
                   "gain over the 16-bit base",
                   (Contrast("merged and rounded", difference(read(r, "NF4", "merged_and_rounded"), read(r, "NF4", "after"))),))


def loftq(load: Load) -> Finding:
    r = load("loftq")
    said = "; ".join(listed(r, (f"LoftQ, {b}", f"QLoRA, {b}"), "after") for b in ("NF4", "3 bits", "2 bits"))
    return Finding(f"{said} nats/token, each at its own rate",
                   tuple(excess(r, f"LoftQ, {b}", f"QLoRA, {b}", b, "after") for b in ("3 bits", "2 bits")))


def qat(load: Load) -> Finding:
    r, arms = load("qat"), [f"{m}, {b} bits" for b in (3, 2) for m in ("STE", "LSQ")]
    others = [f"{m}, {b} bits" for b in (3, 2) for m in (NEAREST, "GPTQ")]
    return Finding(f"excess: {listed(r, (*others, *arms, 'float32, trained as long'), 'excess')}",
                   tuple(excess(r, arm, f"GPTQ, {arm.split(', ')[1]}", arm) for arm in arms))


def peqa(load: Load) -> Finding:
    r = load("qat")
    return Finding("; ".join(listed(r, [f"{m}, {b} bits" for m in ("PEQA", NEAREST, "STE")], "excess") for b in (3, 2)),
                   tuple(excess(r, f"PEQA, {b} bits", f"{NEAREST}, {b} bits", f"{b} bits") for b in (3, 2)))


def llm_qat(load: Load) -> Finding:
    r = load("qat")
    return Finding("; ".join(listed(r, [f"{m}, {b} bits" for m in ("LLM-QAT", "GPTQ", NEAREST)], "excess") for b in (3, 2)),
                   tuple(excess(r, f"LLM-QAT, {b} bits", f"GPTQ, {b} bits", f"{b} bits") for b in (3, 2)))


def k_quants(load: Load) -> Finding:
    r, others = load("k_quants"), ("Q4_0", "NF4", "int4 asymmetric")
    bits = ", ".join(f"{c} {r.mean(c, 'bits'):.2f}" for c in ("Q4_K", *others, "GPTQ"))
    return Finding(f"excess {listed(r, ('Q4_K', *others, 'GPTQ', 'Q5_K', 'Q6_K'), 'excess')}; bits per weight {bits}",
                   tuple(excess(r, "Q4_K", c) for c in others))


OTHER_IMPORTANCES = "importance from other text", "equal importance", "shuffled importance"


def importance(load: Load) -> Finding:
    r, arms = load("k_quants"), ("Q4_K, importance", "Q4_K")
    return Finding(f"excess {listed(r, (*arms, *(f'Q4_K, {h}' for h in OTHER_IMPORTANCES)), 'excess')}",
                   (excess(r, *arms, "from text of its kind"),))


def more_parameters(load: Load) -> Finding:
    r, pairs = load("bits_vs_parameters"), (("medium", "small"), ("base", "medium"))
    of = lambda size, bits: averaged(*(read(r, f"{base}, {bits} bits", "loss") for base in draws_of(size)))
    kib = lambda c, of: f"{r.mean(c, of) / 1024:.0f}"

    def show(size: str, bits: int) -> str:
        loss = np.mean([r.mean(f"{base}, {bits} bits", "loss") for base in draws_of(size)])
        c = f"{size}, {bits} bits"
        return f"{c} {loss:.3f} in {kib(c, 'matrices')} KiB of matrices ({kib(c, 'bytes')} in all)"
    return Finding("; ".join(f"{show(a, 3)}, {show(b, 16)}" for a, b in pairs),
                   tuple(Contrast(f"{a}, 3 bits, against {b}, 16 bits", between(of(b, 16), of(a, 3))) for a, b in pairs))


def trained_for_longer(load: Load) -> Finding:
    """The bases of both sizes together: three of each are too few for a claim of their own."""
    r, sizes = load("pretrained_for"), ("small", "medium")
    said = "; ".join(f"{s}: {' and '.join(f'{x:.3f}' for x in r.mean(s, 'excess'))}" for s in sizes)
    parts = np.concatenate([r.values(s, "parts") for s in sizes])                 # (bases, 2 lengths, parts of the text)
    if len(parts) < 2 * len(sizes): raise KeyError("one base of a size says nothing of others")
    return Finding(f"excess at 3 bits after 2,000 and 16,000 steps of pretraining: {said}",
                   (Contrast("six bases, two sizes", effect(parts[:, 1] - parts[:, 0])),))


def rank_repairs(load: Load) -> Finding:
    r, found = load("rounding_rank"), []
    for bits in ("3 bits", "2 bits"):
        arms = (read(r, f"{b}, r = {rank}") for rank in (2, 32) for b in (bits, "16 bits"))
        (low, low_16, high, high_16), weights = together(*arms)
        found.append(Contrast(bits, effect(low - low_16 - (high - high_16), weights)))
    return Finding(f"{listed(r, r.conditions)} nats/token", tuple(found))


def round_first(load: Load) -> Finding:
    r, pairs = load("qlora"), {"NF4": "to_NF4", "int3": "to_int3"}
    said = "; ".join(f"{c}: {mean(r, '16 bits', metric)} trained on 16 bits, {mean(r, c, 'merged_and_rounded')} on the rounded "
                     "base" for c, metric in pairs.items())
    return Finding(f"after merging and rounding, {said} nats/token",
                   tuple(Contrast(c, difference(read(r, "16 bits", metric), read(r, c, "merged_and_rounded")))
                         for c, metric in pairs.items()))


better = functools.partial(Claim, kind=BETTER, delta=QUANTIZATION)
LLAMA_CPP = "llama.cpp, k-quants: https://github.com/ggml-org/llama.cpp/pull/1684"

SCHEME_CLAIMS = (
    better("With outlier features, LLM.int8() is nearer float32 than absmax, zero-point, row-wise and vector-wise quantization",
           "2208.07339", "C4 perplexity of a 13B model: 12.45 as float32; vector-wise 16.48, zero-point 13.94, absmax 19.08",
           "excess of the others minus that of LLM.int8()",
           "one of the others is nearer", ("int8_outliers",), llm_int8, by_construction=PLANTED),
    Claim("LLM.int8() costs nothing, however large the outliers", "2208.07339", "12.45 and 12.45",
          "excess of LLM.int8() at the size of outliers that costs most",
          "the excess is δ or more", ("int8_outliers",), free_of_loss, WITHIN, QUANTIZATION, by_construction=PLANTED),
    Claim("SmoothQuant's error over α is a U: too little and too much smoothing are both worse than α = 0.5", "2211.10438", "",
          "error of the logits at α = 0 and at α = 1, relative to that at α = 0.5, with a scale for each token",
          "the error at one of the ends is smaller than at α = 0.5", ("smoothquant",), smoothquant_u, BETTER, RELATIVE,
          why={REPRODUCED: "At every α the planted outliers are gone. At α = 0 the inputs have all of the base's own "
               "unevenness, and at α = 1 the weights have it (that this makes the U is a conjecture). With one scale for all "
               "tokens the bottom of the U lies further to the right."}),
    better("GPTQ loses less than round to nearest on the same grid, at 4, 3 and 2 bits", "2210.17323", "",
           "excess of round to nearest minus that of GPTQ, with a scale per channel and per 32 weights",
           "round to nearest loses less on one of the six grids", ("gptq",), gptq,
           why={REPRODUCED: "The columns that are still to be rounded make up for the error of each column that is."}),
    Claim("GPTQ makes the error of the weights larger and the error of the outputs smaller", "2210.17323", "",
          "relative errors of the weights and of the outputs",
          "the weights are nearer, or the outputs further off", ("gptq",), gptq_errors, BETTER, RELATIVE,
          by_construction="Round to nearest has the least error of weights by definition; GPTQ minimizes that of outputs."),
    better("Activations show which 1 % of the weights to keep; the weights' own size and chance do not", "2306.00978",
           "OPT-6.7B, 3 bits: round to nearest 23.54; kept by activation 11.39, by weight 22.37, at random 24.23",
           "excess with 1 % of the channels kept (2 of 128, 6 of 512) by weight, and at random, minus that by activation, on "
           "the base as it is and with planted outliers",
           "the weights' size or chance loses less on one of the two bases", ("awq",), salient,
           why={NOT_SHOWN: "All eight draws agree on both bases, and on the base as it is the lead is twice δ. But with one "
                "draw of the planted channels the other rules cost over three times as much as with the rest on average, and "
                "so wide a spread leaves the mean open."}),
    better("AWQ's scales lose less than round to nearest at 3 bits, without clipping, and keep no weight in 16 bits",
           "2306.00978", "",
           "excess of round to nearest minus that of AWQ without clipping, on the base as it is and with "
           "planted outliers",
           "round to nearest loses less on one of the two bases", ("awq",), awq_scales,
           why={NOT_SHOWN: "All eight draws agree on both bases. But one draw of the planted channels costs round to nearest "
                "over three times as much as the others on average, and so wide a spread leaves the mean open. On the base as "
                "it is the lead is about δ."}),
    Claim("On normal numbers NF4 has a smaller error than FP4 E2M1, and FP4 E2M1 a smaller one than symmetric int4, in blocks "
          "of 64",
          "2305.14314", "perplexity 27.41 (NF4, double quantization), 31.07 (E2M1), 34.34 (int4)",
          "relative RMS errors in blocks of 64",
          "the order is another", ("formats",), nf4_on_numbers, BETTER, RELATIVE,
          by_construction="This is a fact about levels and normal numbers, without a model. In blocks of 16 and 32 symmetric "
          "int4 is ahead of FP4 E2M1."),
    better("NF4 loses least of the 4-bit formats in blocks of 64, on a model", "2305.14314",
           "perplexity 27.41 (NF4, double quantization), 31.07 (E2M1), 34.34 (int4)",
           "excess of each other format minus that of NF4",
           "one of the other formats loses less", ("formats",), nf4_model,
           why={SIZE_OPEN: "FP4 E2M1 and integers with a zero point lose about δ more, so the order of the best three hardly "
                "matters on this base."}),
    Claim("Double quantization saves 0.373 bits per weight and costs nothing", "2305.14314", "0.373 bits",
          "excess that quantizing the scales adds",
          "the excess is δ or more", ("double_quantization",), double_quantization, WITHIN, QUANTIZATION,
          by_construction="The bits are arithmetic, and eight bits hold the scales of blocks that resemble each other."),
    Claim("QLoRA learns as well as a LoRA on 16 bits", "2305.14314", "",
          "share of the gain of LoRA on 16 bits over the 16-bit base, with NF4 and with double quantization",
          "QLoRA reaches less than 90 % of the gain", ("qlora",), qlora, AS_GOOD, AT_LEAST,
          why={REPRODUCED: "What NF4 costs is small, and the LoRA is trained on the rounded weights, so it makes up for most "
               "of that cost."}),
    Claim("Rounding a merged QLoRA again loses a part of what was learned", "2305.14314", "not measured there",
          "test loss merged and rounded again, minus that before merging",
          "nothing is lost", ("qlora",), merging, BETTER, FINE_TUNING, own=True,
          by_construction="Rounding moves the weights away from where training put them."),
    Claim("LoftQ ends below QLoRA at 3 and 2 bits", "2310.08659", "",
          "test loss of QLoRA minus that of LoftQ after 150 steps, each at its own rate",
          "QLoRA ends lower at one of the two", ("loftq",), loftq, BETTER, FINE_TUNING,
          why={SIZE_OPEN: "At 3 bits the lead is about δ. After twice as many steps the mean lead is smaller at both widths "
               "(that a better start only saves steps is a conjecture)."}),
    better("Training with rounded weights beats GPTQ at 3 and 2 bits", "1902.08153", "",
           "excess of GPTQ, which reads fewer rows of text, minus that of STE and of LSQ",
           "GPTQ loses less than one of them", ("qat",), qat, own=True,
           why={REPRODUCED: "GPTQ keeps the outputs of each layer near, one after the other. Training moves all of them "
                "towards a smaller loss, and reads more text."}),
    better("PEQA, which trains the scales alone, beats round to nearest", "2305.14152", "",
           "excess of round to nearest minus that of PEQA, at 3 and 2 bits",
           "round to nearest loses less", ("qat",), peqa, own=True,
           by_construction="PEQA starts as round to nearest and is trained on the loss that judges it."),
    better("LLM-QAT, trained on text that the model writes itself, beats GPTQ at 3 and 2 bits", "2305.17888",
           "tested there at 4-8-4 and 8-8-8 bits",
           "excess of GPTQ on an asymmetric grid minus that of LLM-QAT on a symmetric one",
           "GPTQ loses less at one of the two", ("qat",), llm_qat, own=True,
           why={NOT_SHOWN: "At 3 bits these runs cannot tell the two apart, so nothing is decided for both widths. At 2 bits "
                "LLM-QAT is ahead, although its grid is symmetric."}),
    better("A larger model at 3 bits is better than a smaller one at 16 bits", "2212.09720",
           "4 bits are almost universally best for a given number of bits in all, 19M to 176B",
           "test loss of a size at 16 bits minus that of the next larger size at 3 bits (GPTQ), three bases of each",
           "the smaller size is ahead in one of the two pairs", ("bits_vs_parameters",), more_parameters, own=True,
           why={REPRODUCED: "At 3 bits the matrices of the larger size take a third to a half more memory. In about the same "
                "memory, at 2 bits, it is behind."}),
    better("Rounding costs more if the model was trained for longer", "2411.17691", "",
           "excess of round to nearest at 3 bits after 16,000 steps of pretraining, minus that after 2,000, over "
           "three bases of each of two sizes", "it costs less", ("pretrained_for",), trained_for_longer,
           why={REPRODUCED: "After eight times as many steps rounding costs seven to eleven times as much, by base. "
                "That longer training makes use of a weight's finer digits is a conjecture."}),
    better("Q4_K loses less than round to nearest with as many bits", LLAMA_CPP, "",
           "excess of Q4_0, of NF4 and of int4 with zero points in groups of 32, minus that of Q4_K",
           "one of the three loses less", ("k_quants",), k_quants, own=True,
           why={NOT_SHOWN: "Q4_0 loses more than δ more, NF4 about δ. Integers with a zero point, which take an eighth of a "
                "bit more, lose more in most draws, but not by enough after Holm's correction for all claims."}),
    better("With the importance of inputs Q4_K loses less", LLAMA_CPP, "",
           "excess of Q4_K minus that of Q4_K with importance from text of the model's kind",
           "it loses more", ("k_quants",), importance, own=True,
           why={SIZE_OPEN: "The lead is about δ. On average half of it needs no importance: llama.cpp then has another search, "
                "which gains that much with the same number for every input. Importance from another kind of text gains as "
                "much as that from its own, and with either Q4_K loses as little as GPTQ."}),
    better("More rank makes up for fewer bits", "2305.14314", "",
           "what rounding the base costs a LoRA of rank 2 in test loss, minus what it costs one of rank 32",
           "it costs the larger rank more, at 3 or at 2 bits", ("rounding_rank",), rank_repairs, delta=FINE_TUNING, own=True,
           why={REPRODUCED: "With more directions a LoRA makes up for more of what rounding did to its base (a conjecture)."}),
    better("If the merged model is rounded in the end, it is better to train on the rounded base", "2305.14314", "",
           "test loss of a LoRA trained on 16 bits, merged and rounded, minus that of QLoRA, merged and rounded to "
           "the same format",
           "training on 16 bits is ahead in one of the two formats", ("qlora",), round_first, delta=FINE_TUNING, own=True,
           why={LEVEL: "QLoRA makes up for the rounding errors of its base, and rounding the merged weights makes new ones (a "
                "conjecture)."}),
)
