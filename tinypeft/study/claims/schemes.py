"""The claims on quantization: SCHEME_CLAIMS, and what their expressions use.

The papers measured their own models, of 125 million to 175 billion parameters. This base has 1.2 million, so only the
order of schemes can be reproduced. "Excess" is the loss above float32 on the same text, in nats/token. A seed draws the
calibration and the test text, of which no two seeds share a document, so the error over seeds is that of the text as well.
In `parts`, s is what was measured (`measured.py`).
"""
import numpy as np

from ..effects import Effect, Rows, between, effect
from .deltas import AT_LEAST, FINE_TUNING, QUANTIZATION, RELATIVE
from .measured import Measured, Study
from .rule import AS_GOOD, BETTER, LEVEL, NOT_SHOWN, REPRODUCED, SIZE_OPEN, WITHIN, Claim

__all__ = ["SCHEME_CLAIMS"]

NEAREST, WHERE = "round to nearest", ("as it is", "planted")
GRIDS = [f"{bits} bits, {shared}" for bits in (4, 3, 2) for shared in ("channel", "group 32")]
PLANTED = "The outliers are planted where its threshold finds them."
LLAMA_CPP = "llama.cpp, k-quants: https://github.com/ggml-org/llama.cpp/pull/1684"


# -- what several expressions read, or one that is long --------------------------------------------
def more(error: Measured, worse: str, better: str, bits: int) -> Rows:
    """By which share of itself one scheme's error is larger than another's, with a scale per channel."""
    return error[f"{worse}, {bits} bits, channel"] / error[f"{better}, {bits} bits, channel"] - 1


def longer_minus_shorter(s: Study) -> Effect:
    """The excess after the longer pretraining minus that after the shorter, over the bases of both sizes together: three of
    each are too few for a claim of their own. Raises KeyError if there are fewer than two of a size."""
    found = [s.pretrained_for.parts[size].values for size in ("small", "medium")]           # (bases, 2 lengths, parts of text)
    if sum(map(len, found)) < 2 * len(found): raise KeyError("one base of a size says nothing of others")
    parts = np.concatenate(found)
    return effect(parts[:, 1] - parts[:, 0])


# -- the claims ------------------------------------------------------------------------------------
SCHEME_CLAIMS = (
    Claim("With outlier features, LLM.int8() is nearer float32 than absmax, zero-point, row-wise and vector-wise quantization",
          "2208.07339", BETTER, QUANTIZATION,
          number="C4 perplexity of a 13B model: 12.45 as float32; vector-wise 16.48, zero-point 13.94, absmax 19.08",
          contrast="excess of the others minus that of LLM.int8()",
          refuted="one of the others is nearer",
          parts=lambda s: {f"against {c}": s.int8_outliers.excess.at(c, factors=64)
                           - s.int8_outliers.excess.at("LLM.int8()", factors=64)
                           for c in ("absmax", "zero-point", "row-wise", "vector-wise")},
          by_construction=PLANTED),
    Claim("LLM.int8() costs nothing, however large the outliers", "2208.07339", WITHIN, QUANTIZATION,
          number="12.45 and 12.45",
          contrast="excess of LLM.int8() at the size of outliers that costs most",
          refuted="the excess is δ or more",
          parts=lambda s: {"at most": max((s.int8_outliers.excess.at("LLM.int8()", factors=factor)
                                                for factor in s.int8_outliers.settings["factors"]), key=lambda x: x.mean)},
          by_construction=PLANTED),
    Claim("SmoothQuant's error over α is a U: too little and too much smoothing are both worse than α = 0.5",
          "2211.10438", BETTER, RELATIVE,
          contrast="error of the logits at α = 0 and at α = 1, relative to that at α = 0.5, with a scale for each token",
          refuted="the error at one of the ends is smaller than at α = 0.5",
          parts=lambda s: {f"α = {alpha}": s.smoothquant.error.at("token", alphas=alpha)
                           / s.smoothquant.error.at("token", alphas=0.5) - 1
                           for alpha in (0, 1)},
          why={REPRODUCED: "At every α the planted outliers are gone. At α = 0 the inputs have all of the base's own "
               "unevenness, and at α = 1 the weights have it (that this makes the U is a conjecture). With one scale for all "
               "tokens the bottom of the U lies further to the right."}),
    Claim("GPTQ loses less than round to nearest on the same grid, at 4, 3 and 2 bits", "2210.17323", BETTER, QUANTIZATION,
          contrast="excess of round to nearest minus that of GPTQ, with a scale per channel and per 32 weights",
          refuted="round to nearest loses less on one of the six grids",
          parts=lambda s: {grid: s.gptq.excess[f"{NEAREST}, {grid}"] - s.gptq.excess[f"GPTQ, {grid}"] for grid in GRIDS},
          why={REPRODUCED: "The columns that are still to be rounded make up for the error of each column that is."}),
    Claim("GPTQ makes the error of the weights larger and the error of the outputs smaller", "2210.17323", BETTER, RELATIVE,
          contrast="relative errors of the weights and of the outputs",
          refuted="the weights are nearer, or the outputs further off",
          parts=lambda s: {f"weights, {b} bits": more(s.gptq.weight_error, "GPTQ", NEAREST, b) for b in (4, 3, 2)}
                          | {f"outputs, {b} bits": more(s.gptq.output_error, NEAREST, "GPTQ", b) for b in (4, 3, 2)},
          by_construction="Round to nearest has the least error of weights by definition; GPTQ minimizes that of outputs."),
    Claim("Activations show which 1 % of the weights to keep; the weights' own size and chance do not",
          "2306.00978", BETTER, QUANTIZATION,
          number="OPT-6.7B, 3 bits: round to nearest 23.54; kept by activation 11.39, by weight 22.37, at random 24.23",
          contrast="excess with 1 % of the channels kept (2 of 128, 6 of 512) by weight, and at random, minus that by "
                   "activation, on the base as it is and with planted outliers",
          refuted="the weights' size or chance loses less on one of the two bases",
          parts=lambda s: {f"{other}, {where}":
                           s.awq.excess[f"1 % {other}, {where}"] - s.awq.excess[f"1 % by activation, {where}"]
                           for where in WHERE for other in ("by weight", "at random")},
          why={NOT_SHOWN: "All eight draws agree on both bases, and on the base as it is the lead is twice δ. But with one "
               "draw of the planted channels the other rules cost over three times as much as with the rest on average, and so "
               "wide a spread leaves the mean open."}),
    Claim("AWQ's scales lose less than round to nearest at 3 bits, without clipping, and keep no weight in 16 bits",
          "2306.00978", BETTER, QUANTIZATION,
          contrast="excess of round to nearest minus that of AWQ without clipping, on the base as it is and with planted "
                   "outliers",
          refuted="round to nearest loses less on one of the two bases",
          parts=lambda s: {where: s.awq.excess[f"{NEAREST}, {where}"] - s.awq.excess[f"AWQ without clipping, {where}"]
                           for where in WHERE},
          why={NOT_SHOWN: "All eight draws agree on both bases. But one draw of the planted channels costs round to nearest "
               "over three times as much as the others on average, and so wide a spread leaves the mean open. On the base as "
               "it is the lead is about δ."}),
    Claim("On normal numbers NF4 has a smaller error than FP4 E2M1, and FP4 E2M1 a smaller one than symmetric int4, in blocks "
          "of 64",
          "2305.14314", BETTER, RELATIVE,
          number="perplexity 27.41 (NF4, double quantization), 31.07 (E2M1), 34.34 (int4)",
          contrast="relative RMS errors in blocks of 64",
          refuted="the order is another",
          parts=lambda s: {f"{better} against {worse}":
                           s.formats.normal.at(worse, blocks=64) / s.formats.normal.at(better, blocks=64) - 1
                           for better, worse in (("NF4", "FP4 E2M1"), ("FP4 E2M1", "int4 symmetric"))},
          by_construction="This is a fact about levels and normal numbers, without a model. In blocks of 16 and 32 symmetric "
                          "int4 is ahead of FP4 E2M1."),
    Claim("NF4 loses least of the 4-bit formats in blocks of 64, on a model", "2305.14314", BETTER, QUANTIZATION,
          number="perplexity 27.41 (NF4, double quantization), 31.07 (E2M1), 34.34 (int4)",
          contrast="excess of each other format minus that of NF4",
          refuted="one of the other formats loses less",
          parts=lambda s: {f"against {c}": s.formats.excess[c] - s.formats.excess["NF4"]
                           for c in s.formats.results.conditions if c != "NF4"},
          why={SIZE_OPEN: "FP4 E2M1 and integers with a zero point lose about δ more, so the order of the best three hardly "
               "matters on this base."}),
    Claim("Double quantization saves 0.373 bits per weight and costs nothing", "2305.14314", WITHIN, QUANTIZATION,
          number="0.373 bits",
          contrast="excess that quantizing the scales adds",
          refuted="the excess is δ or more",
          parts=lambda s: {"excess that it adds": s.double_quantization.excess["double"] - s.double_quantization.excess["one"]},
          by_construction="The bits are arithmetic, and eight bits hold the scales of blocks that resemble each other."),
    Claim("QLoRA learns as well as a LoRA on 16 bits", "2305.14314", AS_GOOD, AT_LEAST,
          contrast="share of the gain of LoRA on 16 bits over the 16-bit base, with NF4 and with double quantization",
          refuted="QLoRA reaches less than 90 % of the gain",
          parts=lambda s: {arm: (s.qlora.before["16 bits"] - s.qlora.after[arm])
                           / (s.qlora.before["16 bits"] - s.qlora.after["16 bits"]) for arm in ("NF4", "NF4, double")},
          why={REPRODUCED: "What NF4 costs is small, and the LoRA is trained on the rounded weights, so it makes up for most "
               "of that cost."}),
    Claim("Rounding a merged QLoRA again loses a part of what was learned", "2305.14314", BETTER, FINE_TUNING, own=True,
          number="not measured there",
          contrast="test loss merged and rounded again, minus that before merging",
          refuted="nothing is lost",
          parts=lambda s: {"merged and rounded": s.qlora.merged_and_rounded["NF4"] - s.qlora.after["NF4"]},
          by_construction="Rounding moves the weights away from where training put them."),
    Claim("LoftQ ends below QLoRA at 3 and 2 bits", "2310.08659", BETTER, FINE_TUNING,
          contrast="test loss of QLoRA minus that of LoftQ after 150 steps, each at its own rate",
          refuted="QLoRA ends lower at one of the two",
          parts=lambda s: {b: s.loftq.after[f"QLoRA, {b}"] - s.loftq.after[f"LoftQ, {b}"] for b in ("3 bits", "2 bits")},
          why={SIZE_OPEN: "At 3 bits the lead is about δ. After twice as many steps the mean lead is smaller at both widths "
               "(that a better start only saves steps is a conjecture)."}),
    Claim("Training with rounded weights beats GPTQ at 3 and 2 bits", "1902.08153", BETTER, QUANTIZATION, own=True,
          contrast="excess of GPTQ, which reads fewer rows of text, minus that of STE and of LSQ",
          refuted="GPTQ loses less than one of them",
          parts=lambda s: {f"{m}, {b} bits": s.qat.excess[f"GPTQ, {b} bits"] - s.qat.excess[f"{m}, {b} bits"]
                           for b in (3, 2) for m in ("STE", "LSQ")},
          why={REPRODUCED: "GPTQ keeps the outputs of each layer near, one after the other. Training moves all of them towards "
               "a smaller loss, and reads more text."}),
    Claim("PEQA, which trains the scales alone, beats round to nearest", "2305.14152", BETTER, QUANTIZATION, own=True,
          contrast="excess of round to nearest minus that of PEQA, at 3 and 2 bits",
          refuted="round to nearest loses less",
          parts=lambda s: {f"{b} bits": s.qat.excess[f"{NEAREST}, {b} bits"] - s.qat.excess[f"PEQA, {b} bits"] for b in (3, 2)},
          by_construction="PEQA starts as round to nearest and is trained on the loss that judges it."),
    Claim("LLM-QAT, trained on text that the model writes itself, beats GPTQ at 3 and 2 bits",
          "2305.17888", BETTER, QUANTIZATION, own=True,
          number="tested there at 4-8-4 and 8-8-8 bits",
          contrast="excess of GPTQ on an asymmetric grid minus that of LLM-QAT on a symmetric one",
          refuted="GPTQ loses less at one of the two",
          parts=lambda s: {f"{b} bits": s.qat.excess[f"GPTQ, {b} bits"] - s.qat.excess[f"LLM-QAT, {b} bits"] for b in (3, 2)},
          why={NOT_SHOWN: "At 3 bits these runs cannot tell the two apart, so nothing is decided for both widths. At 2 bits "
               "LLM-QAT is ahead, although its grid is symmetric."}),
    Claim("A larger model at 3 bits is better than a smaller one at 16 bits", "2212.09720", BETTER, QUANTIZATION, own=True,
          number="4 bits are almost universally best for a given number of bits in all, 19M to 176B",
          contrast="test loss of a size at 16 bits minus that of the next larger size at 3 bits (GPTQ), three bases of each",
          refuted="the smaller size is ahead in one of the two pairs",
          parts=lambda s: {"medium, 3 bits, against small, 16 bits": between(
                               s.bits_vs_parameters.on_bases("{}, 16 bits", "small"),
                               s.bits_vs_parameters.on_bases("{}, 3 bits", "medium")),
                           "base, 3 bits, against medium, 16 bits": between(
                               s.bits_vs_parameters.on_bases("{}, 16 bits", "medium"),
                               s.bits_vs_parameters.on_bases("{}, 3 bits", "base"))},
          why={REPRODUCED: "At 3 bits the matrices of the larger size take a third to a half more memory. In about the same "
               "memory, at 2 bits, it is behind."}),
    Claim("Rounding costs more if the model was trained for longer", "2411.17691", BETTER, QUANTIZATION,
          contrast="excess of round to nearest at 3 bits after 16,000 steps of pretraining, minus that after 2,000, over three "
                   "bases of each of two sizes",
          refuted="it costs less",
          parts=lambda s: {"six bases, two sizes": longer_minus_shorter(s)},
          why={REPRODUCED: "After eight times as many steps rounding costs seven to eleven times as much, by base. That longer "
               "training makes use of a weight's finer digits is a conjecture."}),
    Claim("Q4_K loses less than round to nearest with as many bits", LLAMA_CPP, BETTER, QUANTIZATION, own=True,
          contrast="excess of Q4_0, of NF4 and of int4 with zero points in groups of 32, minus that of Q4_K",
          refuted="one of the three loses less",
          parts=lambda s: {f"against {c}": s.k_quants.excess[c] - s.k_quants.excess["Q4_K"]
                           for c in ("Q4_0", "NF4", "int4 asymmetric")},
          why={NOT_SHOWN: "Q4_0 loses more than δ more, NF4 about δ. Integers with a zero point, which take an eighth of a bit "
               "more, lose more in most draws, but not by enough after Holm's correction for all claims."}),
    Claim("With the importance of inputs Q4_K loses less", LLAMA_CPP, BETTER, QUANTIZATION, own=True,
          contrast="excess of Q4_K minus that of Q4_K with importance from text of the model's kind",
          refuted="it loses more",
          parts=lambda s: {"from text of its kind": s.k_quants.excess["Q4_K"] - s.k_quants.excess["Q4_K, importance"]},
          why={SIZE_OPEN: "The lead is about δ. On average half of it needs no importance: llama.cpp then has another search, "
               "which gains that much with the same number for every input. Importance from another kind of text gains as much "
               "as that from its own, and with either Q4_K loses as little as GPTQ."}),
    Claim("More rank makes up for fewer bits", "2305.14314", BETTER, FINE_TUNING, own=True,
          contrast="what rounding the base costs a LoRA of rank 2 in test loss, minus what it costs one of rank 32",
          refuted="it costs the larger rank more, at 3 or at 2 bits",
          parts=lambda s: {bits: (s.rounding_rank[f"{bits}, r = 2"] - s.rounding_rank["16 bits, r = 2"])
                           - (s.rounding_rank[f"{bits}, r = 32"] - s.rounding_rank["16 bits, r = 32"])
                           for bits in ("3 bits", "2 bits")},
          why={REPRODUCED: "With more directions a LoRA makes up for more of what rounding did to its base (a conjecture)."}),
    Claim("If the merged model is rounded in the end, it is better to train on the rounded base",
          "2305.14314", BETTER, FINE_TUNING, own=True,
          contrast="test loss of a LoRA trained on 16 bits, merged and rounded, minus that of QLoRA, merged and rounded to the "
                   "same format",
          refuted="training on 16 bits is ahead in one of the two formats",
          parts=lambda s: {"NF4": s.qlora.to_NF4["16 bits"] - s.qlora.merged_and_rounded["NF4"],
                           "int3": s.qlora.to_int3["16 bits"] - s.qlora.merged_and_rounded["int3"]},
          why={LEVEL: "QLoRA makes up for the rounding errors of its base, and rounding the merged weights makes new ones (a "
               "conjecture)."}),
)
