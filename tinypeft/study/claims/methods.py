"""The claims on fine-tuning methods: METHOD_CLAIMS, and what their expressions use.

In `parts`, s is what was measured (`measured.py`). Losses are in nats/token; "gain" is the loss of the frozen base
minus the loss after training. Every arm has its own learning rate (experiment `rates`).
"""
import itertools
import math

import numpy as np

from ..bases import SIZES
from ..effects import Effect, Rows, between, effect, over_both_texts
from .deltas import AT_LEAST, CORRELATION, FINE_TUNING, LENGTH, LOGARITHM, SHARE, SLOPE
from .measured import Measured, Study
from .rule import AS_GOOD, BETTER, CHANCE, CONTRADICTED, FAR, LEVEL, NO_SIZE, NOT_SHOWN, REPRODUCED, SIZE_OPEN, WITHIN, Claim

__all__ = ["METHOD_CLAIMS"]

KINDS_OF_MATRICES = 6                                    # query, key, value, output, up, down
RANKS = 1, 2, 4, 8, 16
PLACES = "60 steps", "150 steps", "small", "medium"      # where the best rates were searched
REGRET = "LoRA Without Regret: https://thinkingmachines.ai/blog/lora/"


# -- what several expressions read, or one that is long --------------------------------------------
def of_full(arms: Measured, arm: str, size: str) -> Rows:
    """The share of full fine-tuning's gain that an arm reaches on the bases of a size."""
    return arms.gain.on_bases(f"{arm} {{}}", size) / arms.study.prompts.gain.on_bases("full {}", size)


def rises(arms: Measured, arm: str, smaller: str = "small", larger: str = "base") -> Effect:
    """How much more of full fine-tuning's gain an arm reaches on the bases of a larger size."""
    return between(of_full(arms, arm, larger), of_full(arms, arm, smaller))


def forgets_more(s: Study) -> Rows:
    """What full fine-tuning forgets more than LoRA at its best rate, between two of its rates where it learns as much. That
    both do is measured too, with an error; what an error of learning costs in forgetting is the slope between the two rates."""
    learned, forgotten = s.frontier.learned, s.frontier.forgotten
    i, t = bracket(learned["full"].values.mean(0), learned.at("lora_all", factors=1).mean)
    ahead = lambda of: (1 - t) * of["full", i] + t * of["full", i + 1] - of.at("lora_all", factors=1)
    rise = lambda of: of["full", i + 1].mean - of["full", i].mean
    return over_both_texts(ahead(forgotten), -rise(forgotten) / rise(learned) * ahead(learned))


def bracket(learned: np.ndarray, level: float) -> tuple[int, float]:
    """The rate from which on to the next `level` is learned, and how far it lies on this way. Raises KeyError if there is
    none."""
    for i, (low, high) in enumerate(itertools.pairwise(learned[:learned.argmax() + 1])):
        if low <= level <= high: return i, (level - low) / (high - low)
    raise KeyError(f"no two rates have {level:.3f} between them")


def agreements(ranks: np.ndarray) -> np.ndarray:
    """Correlations (pairs,) of the ranks (seeds, matrices) of two seeds at a time. Every seed counts once, so that they are
    independent. Each kind of matrix is centred first: that "up" keeps more than "query" everywhere is not what is asked."""
    by_kind = ranks.reshape(len(ranks), -1, KINDS_OF_MATRICES)
    centred = (by_kind - by_kind.mean(1, keepdims=True)).reshape(len(ranks), -1)
    pairs = zip(centred[0::2], centred[1::2], strict=False)
    return np.array([np.corrcoef(a, b)[0, 1] for a, b in pairs])


def at_best(s: Study, prefix: str, steps: int = 0) -> Rows:
    """The loss at the best rate, by validation text, or at one so many steps of the grid above it. Raises KeyError if there is
    none. Two steps are three times the rate."""
    validation = s.prefix_rates.validation[prefix].values.mean(0)
    i = int(validation.argmin()) + steps
    if i >= len(validation): raise KeyError(f"{prefix}: no rate is three times the best")
    return s.prefix_rates[prefix, i]


def rise(s: Study, prefix: str) -> Rows:
    """By how much the loss rises from the best rate to three times that rate."""
    return at_best(s, prefix, steps=2) - at_best(s, prefix)


# -- the claims ------------------------------------------------------------------------------------
METHOD_CLAIMS = (
    Claim("LoRA is as good as full fine-tuning with a few per cent of the parameters", "2106.09685", AS_GOOD, AT_LEAST,
          number="RoBERTa-base, GLUE: full 86.4, LoRA 87.2 with 0.3 M parameters",
          contrast="share of full fine-tuning's gain over the frozen base, on *domain* and on *classify*",
          refuted="LoRA reaches less than 90 % of the gain on one of the two tasks",
          parts=lambda s: {"*domain*": s.gain(s.methods["lora_all"]) / s.gain(s.methods["full"]),
                           "*classify*": s.gain(s.methods.accuracy["lora_all"]) / s.gain(s.methods.accuracy["full"])},
          trend=lambda s: {"with an equal share of the parameters": rises(s.sizes, "lora_all"),
                           "with r = 4 on every base": rises(s.sizes, "r = 4")},
          why={CONTRADICTED: "Ten times as many steps do not close the gap (experiment `lengths`); on all matrices more rank "
               "narrows it (experiment `rounding_rank`)."}),
    Claim("With the same number of parameters, more matrices at a lower rank beat one matrix at a high rank",
          "2106.09685", BETTER, FINE_TUNING,
          number="GPT-3, WikiSQL: Wq r = 8 70.4, Wv r = 8 73.0, all four r = 2 73.7",
          contrast="test loss of one matrix with r = 36, minus that of four with r = 9",
          refuted="the query or the value matrix alone is ahead",
          parts=lambda s: {one: s.placement[one] - s.placement["all four r=9"] for one in ("Wq r=36", "Wv r=36")},
          why={REPRODUCED: "From r = 4 on more rank on the same matrices gains less and less (experiment `rank`). That another "
               "matrix starts where rank still gains most is a conjecture."}),
    Claim("LoRA on the attention alone is worse than on all matrices, with as many parameters", REGRET, BETTER, FINE_TUNING,
          contrast="test loss of the attention's four matrices with r = 9, minus that of all six with r = 4",
          refuted="the attention alone is ahead",
          parts=lambda s: {"four − six": s.placement["all four r=9"] - s.placement["all six r=4"]},
          why={REPRODUCED: "The MLP has two thirds of a block's weights, and the attention alone leaves them as they are."}),
    Claim("LoRA on the MLP alone is as good as on all matrices, with as many parameters", REGRET, WITHIN, FINE_TUNING,
          contrast="test loss of the MLP's two matrices with r = 7 (3 % fewer parameters), minus that of all six with r = 4",
          refuted="they differ by δ or more",
          parts=lambda s: {"MLP − all six": s.placement["up and down r=7"] - s.placement["all six r=4"]},
          why={REPRODUCED: "With the attention's matrices beside it or without, the MLP gives as much; the attention alone "
               "does not (the row above)."}),
    Claim("LoRA's best learning rate is ten times that of full fine-tuning", REGRET, WITHIN, LOGARITHM,
          number="about 10",
          contrast="logarithm of the ratio of the best rates, minus 1: after 60 and 150 steps, and on two smaller bases",
          refuted="the ratio is below 5 or above 20 in one of the four",
          parts=lambda s: {f"{where}, beyond 10 ×":
                           s.best_rates.log_best[f"LoRA, {where}"] - s.best_rates.log_best[f"full, {where}"] - 1
                           for where in PLACES},
          why={NOT_SHOWN: "It is five to eight times as large. In three of the four it is shown to be within a factor of 2 of "
               "ten; on the smallest base the interval reaches below five."}),
    Claim("With the scale α/r, LoRA's best learning rate does not depend on the rank", REGRET, WITHIN, SLOPE,
          contrast="x, if the best rate grows as r to the power of x from r = 1 to r = 64",
          refuted="x is 0.1 or more, or −0.1 or less",
          parts=lambda s: {"exponent of the rank":
                           (s.best_rates.log_best["r = 64"] - s.best_rates.log_best["r = 1"]) / math.log10(64 / 1)},
          why={NOT_SHOWN: "From r = 1 to r = 64 the best rate rises by two thirds on average. Four seeds show neither that "
               "this is less than δ nor that it is more."}),
    Claim("A large batch costs LoRA more than full fine-tuning", REGRET, BETTER, FINE_TUNING,
          contrast="test loss of LoRA minus that of full fine-tuning with 64 rows in a batch, minus the same with 4, after 576 "
                   "and 600 rows",
          refuted="LoRA's gap is smaller with the large batch",
          parts=lambda s: {"LoRA − full, 64 rows − 4 rows":
                           (s.batches["lora_all, 64 rows"] - s.batches["full, 64 rows"])
                           - (s.batches["lora_all, 4 rows"] - s.batches["full, 4 rows"])},
          why={LEVEL: "With 64 rows in a batch both take nine steps in place of 150, and both lose 0.12 by that."}),
    Claim("LoRA falls behind where there is more to learn than its capacity", REGRET, BETTER, FINE_TUNING,
          contrast="test loss of LoRA with r = 1 minus that of full fine-tuning, where the rows are drawn from 262,144 tokens, "
                   "minus the same with 16,384; 76,800 tokens are read in both",
          refuted="LoRA's gap is smaller with more text",
          parts=lambda s: {"262,144 − 16,384 tokens":
                           (s.capacity["r = 1, 262,144 tokens"] - s.capacity["full, 262,144 tokens"])
                           - (s.capacity["r = 1, 16,384 tokens"] - s.capacity["full, 16,384 tokens"])},
          why={REPRODUCED: "The gap grows with each fourfold text: 0.054, 0.145, 0.212. A text that is read several times has "
               "less to teach (a conjecture)."}),
    Claim("A very small rank suffices", "2106.09685", AS_GOOD, AT_LEAST,
          number="GPT-3, WikiSQL, r = 1, 2, 4, 8, 64: 73.4, 73.3, 73.7, 73.8, 73.5",
          contrast="share of the gain of r = 64 that r = 1 reaches",
          refuted="r = 1 reaches less than 90 % of the gain of r = 64",
          parts=lambda s: {"r = 1 of r = 64": s.gain(s.rank["1"]) / s.gain(s.rank["64"])},
          why={CONTRADICTED: "Each doubling of the rank still helps. That a large model has less to learn is a conjecture."}),
    Claim("A large rank learns more with the scale α/√r than with α/r", "2312.03732", BETTER, FINE_TUNING,
          contrast="test loss at r = 64 with α/r, minus that with α/√r, each at its own rate",
          refuted="α/r at its own rate is ahead",
          parts=lambda s: {"r = 64": s.rank["64"] - s.rank["64/sqrt"]},
          why={LEVEL: "Each scale has its own rate here, and a larger rate can make up for a smaller scale (a conjecture)."}),
    Claim("LoRA learns less than full fine-tuning, and forgets less", "2405.09673", BETTER, FINE_TUNING,
          contrast="what full fine-tuning forgets, and learns, minus the same of LoRA, each at its best rate",
          refuted="LoRA learns more, or forgets more",
          parts=lambda s: {"full forgets more": s.methods.forgetting["full"] - s.methods.forgetting["lora_all"],
                           "full learns more": s.methods["lora_all"] - s.methods["full"]},
          why={REPRODUCED: "At its best rate full fine-tuning goes further in both; the next claim compares at equal "
               "learning."}),
    Claim("Where LoRA and full fine-tuning learn as much, LoRA forgets less", "2405.09673", BETTER, FINE_TUNING, own=True,
          contrast="what full fine-tuning forgets at a rate at which it learns as much, minus what LoRA forgets",
          refuted="full fine-tuning forgets less at equal learning",
          parts=lambda s: {"at equal learning": forgets_more(s)},
          why={CONTRADICTED: "At an eighth of its best rate full fine-tuning learns as much as LoRA, and at so small a rate it "
               "hardly forgets. LoRA at half its best rate learns nearly as much, and still forgets about four times as much "
               "as full fine-tuning does there."}),
    Claim("AdaLoRA is better than LoRA with the same final budget", "2303.10512", BETTER, FINE_TUNING,
          number="DeBERTaV3-base, GLUE: r = 2 88.15 → 88.86, r = 8 88.34 → 89.31",
          contrast="test loss of LoRA minus that of AdaLoRA, with 2 and with 8 singular values a matrix in the end",
          refuted="LoRA is ahead at one of the two budgets",
          parts=lambda s: {"r = 2": s.adalora["all six r=2"] - s.adalora["AdaLoRA 3 → 2"],
                           "r = 8": s.adalora["all six r=8"] - s.adalora["AdaLoRA 12 → 8"]},
          why={CONTRADICTED: "A part of AdaLoRA's steps trains directions that it prunes later (that this costs it the lead is "
               "a conjecture)."}),
    Claim("In AdaLoRA the same matrices keep more rank with every seed", "2303.10512", CHANCE, CORRELATION,
          contrast="correlation of two seeds' ranks over the matrices, within each kind of matrix, over disjoint pairs of "
                   "seeds",
          refuted="where two seeds keep rank is unrelated, or opposed, within the kinds of matrices",
          parts=lambda s: {"ranks of two seeds, within kinds": effect(agreements(s.adalora.ranks["AdaLoRA 12 → 8"].values))},
          why={REPRODUCED: "All seeds share the base and the text, and what is important depends on these (a conjecture)."}),
    Claim("AdaLoRA puts rank where a change of known ranks was planted in the attention",
          "2303.10512", CHANCE, CORRELATION, own=True,
          contrast="Spearman's correlation of planted and found ranks, new ranks with every seed",
          refuted="planted and found ranks are unrelated, or opposed",
          parts=lambda s: {"Spearman, planted and found": s.adalora_planted.spearman["attention"]},
          why={REPRODUCED: "Where nothing was planted a triplet hardly lowers the loss, so its importance stays small (a "
               "conjecture)."}),
    Claim("DyLoRA works at every rank; a LoRA that is cut to a smaller rank does not", "2210.07558", BETTER, FINE_TUNING,
          contrast="test loss of LoRA r = 16 cut to b = 1, 2, 4, 8 with its scale kept, minus that of DyLoRA at b, trained as "
                   "long",
          refuted="the cut LoRA is ahead at one of the ranks",
          parts=lambda s: {f"b = {b}": s.dylora["LoRA r=16, cut", i] - s.dylora["DyLoRA", i]
                           for i, b in enumerate(RANKS[:4])},
          why={NOT_SHOWN: "At ranks 1 and 2 the seeds differ too much to tell. At ranks 4 and 8 DyLoRA is ahead of this cut, "
               "and a cut by singular values is ahead of both. With the scale α/b the cut is worse at each rank."}),
    Claim("One DyLoRA replaces one LoRA for each rank", "2210.07558", AS_GOOD, AT_LEAST,
          number="at least 4 to 7 times faster than LoRA",
          contrast="share of the gain of a LoRA of rank 1, 2, 4, 8, 16 that one DyLoRA, trained as long, reaches",
          refuted="DyLoRA reaches less than 90 % of the gain at one of the ranks",
          parts=lambda s: {f"b = {b}": s.gain(s.dylora["DyLoRA", i]) / s.gain(s.rank[f"{b}"]) for i, b in enumerate(RANKS)},
          why={CONTRADICTED: "Five ranks share one training. Trained three times as long, DyLoRA is within δ or ahead from "
               "rank 4 on."}),
    Claim("One LoRA that is cut by its singular values replaces a DyLoRA that is trained three times as long",
          "2210.07558", AS_GOOD, AT_LEAST, own=True,
          contrast="share of the gain of DyLoRA, trained three times as long, at rank 1, 2, 4, 8, 16 that one LoRA of rank 16 "
                   "reaches when it is cut to that rank",
          refuted="it reaches less than 90 % of the gain at one of the ranks",
          parts=lambda s: {f"b = {b}": s.gain(s.dylora.loss_svd["LoRA r=16, cut", i]) / s.gain(s.dylora["DyLoRA × 3", i])
                           for i, b in enumerate(RANKS)},
          why={NOT_SHOWN: "At rank 1 the seeds differ too much to tell. At ranks 2 to 16 the cut is shown to reach 90 %."}),
    Claim("Adapters are as good as full fine-tuning with 3.6 % of the parameters", "1902.00751", AS_GOOD, AT_LEAST,
          number="BERT-large, GLUE: full 80.4, adapters 80.0",
          contrast="share of full fine-tuning's gain over the frozen base, on *domain* and on *classify*",
          refuted="adapters reach less than 90 % of the gain on one of the two tasks",
          parts=lambda s: {"*domain*": s.gain(s.adapters["sequential 16, norms"]) / s.gain(s.methods["full"]),
                           "*classify*": s.gain(s.adapters.accuracy["sequential 16, norms"])
                           / s.gain(s.methods.accuracy["full"])},
          trend=lambda s: {"with an equal share of the parameters": rises(s.sizes, "adapter")},
          why={CONTRADICTED: "With as many parameters adapters reach less than LoRA on *classify*. On SmolLM2, a real and "
               "larger model, adapters end as low as full fine-tuning (experiment `smollm2`)."}),
    Claim("Parallel adapters are better than sequential adapters with as many parameters", "2110.04366", BETTER, FINE_TUNING,
          number="XSum, ROUGE-2: 19.98 → 20.66",
          contrast="test loss of sequential minus that of parallel adapters, m = 16 and 64",
          refuted="sequential adapters are ahead at one of the two widths",
          parts=lambda s: {f"m = {m}": s.adapters[f"sequential {m}"] - s.adapters[f"parallel {m}"] for m in (16, 64)},
          why={SIZE_OPEN: "The lead is about δ at both widths. A parallel adapter reads what the layer norm made even, and its "
               "result is multiplied by 4 (that this is the reason is a conjecture)."}),
    Claim("Deep prompts are better by far than prompts at the input alone, in small models, and on the base with as many "
          "numbers",
          "2101.00190", FAR, FINE_TUNING,
          number="GPT-2 M, E2E BLEU: prefix 69.7, embedding-only 48.1 / 62.2 / 61.9 at length 1 / 10 / 20; small models are of "
                 "2110.07602",
          contrast="gain of prompts in every layer minus that of as long prompts at the input, on three bases of each of two "
                   "small sizes; and on the base with 12,800 stored numbers each",
          refuted="prompts at the input are ahead in one of the three comparisons",
          parts=lambda s: {size: s.prompts.gain.on_bases("ptuning_v2 {}", size) - s.prompts.gain.on_bases("prompt {}", size)
                           for size in ("small", "medium")}
                          | {"base, as many numbers": s.prefix_length["prompt 100"] - s.prefix_length["prefix 10"]},
          why={SIZE_OPEN: "Prompts in every layer are ahead in each comparison. No interval lies above five δ, which is what "
               "far means here."}),
    Claim("Prompt tuning's gap to full fine-tuning closes as the model grows", "2104.08691", BETTER, SHARE,
          number="closed at billions of parameters",
          contrast="share of full fine-tuning's gain that prompt tuning reaches, minus that in the next smaller size, three "
                   "bases of each",
          refuted="the share falls from one size to the next",
          parts=lambda s: {f"{smaller} → {larger}": rises(s.prompts, "prompt", smaller, larger)
                           for smaller, larger in itertools.pairwise(SIZES)},
          why={NOT_SHOWN: "From the smallest bases to the next the gap narrows. From there to the largest 20 vectors on every "
               "base leave it as it is; with an equal share of the parameters (experiment `sizes`) it is a little narrower on "
               "average."}),
    Claim("DoRA is better than LoRA of the same rank, on a rounded base as well", "2402.09353", BETTER, FINE_TUNING,
          number="LLaMA-7B, commonsense reasoning: LoRA r = 32 74.7, DoRA 78.4",
          contrast="test loss of LoRA minus that of DoRA on all matrices, r = 1 and 4, and r = 4 on the base in NF4",
          refuted="LoRA is ahead in one of the three",
          parts=lambda s: {"r = 1": s.successors["LoRA, small"] - s.successors["DoRA, r = 1"],
                           "r = 4": s.successors["LoRA, middle"] - s.successors["DoRA, middle"],
                           "r = 4 on NF4": s.successors["LoRA on NF4"] - s.successors["DoRA on NF4"]},
          why={SIZE_OPEN: "The lead is about δ at r = 4, and larger at r = 1, where DoRA trains half as many numbers more. "
               "That lengths of their own are the reason is a conjecture."}),
    Claim("LoRA from PiSSA's start has a lead early in training", "2404.02948", BETTER, FINE_TUNING,
          contrast="test loss of LoRA minus that of LoRA from PiSSA's start, r = 4 on all matrices, after 60 steps, each at "
                   "its own rate",
          refuted="the usual start is ahead",
          parts=lambda s: {"after 60 steps": s.successors["LoRA, 60 steps"] - s.successors["LoRA from pissa, 60 steps"]},
          why={NOT_SHOWN: "On average the usual start is ahead, each at its own rate. PiSSA's best rate is less than a third "
               "of LoRA's, so that a comparison at one rate would be another one."}),
    Claim("VeRA is as good as LoRA with far fewer parameters", "2310.11454", AS_GOOD, AT_LEAST,
          number="RoBERTa-base, GLUE: 85.2 with 0.043 M, LoRA 86.6 with 0.3 M",
          contrast="share of the gain of LoRA with r = 4 on all matrices that VeRA with a quarter of its parameters reaches",
          refuted="VeRA reaches less than 90 % of the gain",
          parts=lambda s: {"a quarter of the parameters":
                           s.gain(s.successors["VeRA, small"]) / s.gain(s.successors["LoRA, middle"])},
          why={CONTRADICTED: "VeRA with as many numbers as LoRA with r = 1 learns as much as that, and r = 4 learns more."}),
    Claim("OFT keeps the lengths of the neurons' weights", "2306.07280", BETTER, LENGTH,
          contrast="mean change of these lengths by LoRA minus that by OFT",
          refuted="OFT changes them more",
          parts=lambda s: {"LoRA − OFT": s.successors.norms["LoRA, middle"] - s.successors.norms["OFT, middle"]},
          by_construction="A rotation keeps lengths; what is left is rounding."),
    Claim("Muon fine-tunes better than AdamW a model that AdamW pretrained", "2502.16982", BETTER, FINE_TUNING, own=True,
          contrast="test loss of full fine-tuning by AdamW minus that by Muon, each at its own rate",
          refuted="AdamW is ahead",
          parts=lambda s: {"AdamW − Muon": s.successors["full"] - s.successors["full by Muon"]},
          why={LEVEL: "AdamW is ahead by half of δ, each at its own rate."}),
    Claim("AdamW with states of 8 bits learns what AdamW learns", "2110.02861", WITHIN, FINE_TUNING,
          contrast="test loss of full fine-tuning by AdamW with states of 8 bits minus that by AdamW, each at its own rate",
          refuted="they differ by δ or more",
          parts=lambda s: {"8 bits − 32": s.successors["full by AdamW8bit"] - s.successors["full"]},
          why={NOT_SHOWN: "The difference lies within δ on average, and its interval reaches beyond. The best rates lie one "
               "step of the grid apart; that this makes the difference is a conjecture."}),
    Claim("GaLore is as good as AdamW with a fraction of its states", "2403.03507", AS_GOOD, AT_LEAST,
          contrast="share of the gain of full fine-tuning by AdamW that GaLore reaches, each at its own rate",
          refuted="GaLore reaches less than 90 % of the gain",
          parts=lambda s: {"of AdamW's gain": s.gain(s.successors["full by GaLore"]) / s.gain(s.successors["full"])},
          why={NO_SIZE: "With rank 8 and a new basis every 200 steps, one basis serves the whole training here. It reaches "
               "more than 80 % of the gain."}),
    Claim("Reparameterized prefixes train more stably than direct prefixes, and end slightly better",
          "2101.00190", BETTER, FINE_TUNING,
          contrast="test loss of direct minus that of reparameterized prefixes, at the best rates; and what three times these "
                   "rates cost",
          refuted="direct prefixes end lower, or lose less at too large a rate",
          parts=lambda s: {"at the best rates": at_best(s, "direct") - at_best(s, "reparameterized"),
                           "at three times these": rise(s, "direct") - rise(s, "reparameterized")},
          why={NOT_SHOWN: "At three times its best rate the direct prefix loses a little more, and at the best rates it ends a "
               "little lower. The parts point in opposite directions, and after Holm's correction neither is shown."}),
)
