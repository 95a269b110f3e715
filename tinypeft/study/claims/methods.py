"""What the papers on fine-tuning methods claim: one function per claim, and the table METHOD_CLAIMS.

Each function takes `load`, which gives the results of an experiment by name. Losses are in nats/token; "gain" is the loss
of the frozen base minus the loss after training.
"""
import numpy as np

from ..experiments import EXPERIMENTS
from .rule import (
    NOT_AT_THIS_SIZE,
    REPRODUCED,
    Claim,
    Finding,
    Load,
    as_good,
    effect,
    listed,
    percent,
    pm,
    share_of_gain,
    slashed,
)

__all__ = ["METHOD_CLAIMS"]

LAYERS = "query", "key", "value", "output", "up", "down"


def lora_is_full(load: Load) -> Finding:
    results = load("methods")
    lora, full, frozen = ({m: results.values(c, m) for m in ("loss", "accuracy")} for c in ("lora_all", "full", "frozen"))
    shares = [share_of_gain(lora[m], full[m], frozen[m]) for m in ("loss", "accuracy")]
    return Finding(f"LoRA with r = 4 on all matrices ({100 * results.mean('lora_all', 'share'):.1f} % of the parameters): "
                   f"{pm(lora['loss'])} nats/token, full {pm(full['loss'])}, frozen {frozen['loss'][0]:.3f}: "
                   f"{percent(shares[0])} of the gain; accuracy {percent(lora['accuracy'], 1)}, full "
                   f"{percent(full['accuracy'], 1)}: {percent(shares[1])} of the gain", *as_good(shares))


def placement(load: Load) -> Finding:
    results = load("placement")
    return Finding(f"{listed(results, results.conditions, 'loss')} nats/token",
                   tuple(results.difference(one, "all four r=9", "loss") for one in ("Wq r=36", "Wv r=36")))


def flat_rank(load: Load) -> Finding:
    results = load("rank")
    share = share_of_gain(results.values("1", "loss"), results.values("64", "loss"), load("methods").mean("frozen", "loss"))
    plain = [c for c in results.conditions if not EXPERIMENTS["rank"].conditions[c].rank_stabilized]
    by_rank = ", ".join(f"r = {c} {pm(results.values(c, 'loss'))}" for c in plain)
    return Finding(f"{by_rank} nats/token; r = 1 reaches {percent(share)} of the gain of r = 64", *as_good([share]))


def stabilized(load: Load) -> Finding:
    results = load("rank")
    loss = lambda condition: pm(results.values(condition, "loss"))
    return Finding(f"r = 64: {loss('64')} with α/r, {loss('64/sqrt')} with α/√r; r = 1: {loss('1')} and {loss('1/sqrt')} "
                   "nats/token", (results.difference("64", "64/sqrt", "loss"),))


def forgets_less(load: Load) -> Finding:
    results, names = load("methods"), {"full": "full", "lora_all": "LoRA with r = 4 on all matrices", "lora": "LoRA"}
    learns = {c: results.mean("frozen", "loss") - results.values(c, "loss") for c in names}
    both = "; ".join(f"{name} learns {pm(learns[c])} and forgets {pm(results.values(c, 'forgetting'))}"
                     for c, name in names.items())
    return Finding(f"{both} nats/token",
                   (results.difference("full", "lora_all", "forgetting"), results.difference("lora_all", "full", "loss")))


def adalora(load: Load) -> Finding:
    results, pairs = load("adalora"), (("all six r=2", "AdaLoRA 3 → 2"), ("all six r=8", "AdaLoRA 12 → 8"))
    by_pair = "; ".join(f"LoRA {listed(results, pair, 'loss')}" for pair in pairs)
    return Finding(f"{by_pair} nats/token", tuple(results.difference(*pair, "loss") for pair in pairs))


def uneven(load: Load) -> Finding:
    ranks = load("adalora").values("AdaLoRA 12 → 8", "ranks")                     # (seeds, matrices)
    agree = [np.corrcoef(row, np.delete(ranks, i, 0).mean(0))[0, 1] for i, row in enumerate(ranks)]
    kinds = zip(LAYERS, ranks.reshape(len(ranks), -1, 6).mean((0, 1)), strict=True)
    return Finding(f"final ranks, started at 12, with mean 8: from {ranks.min():.0f} to {ranks.max():.0f} per matrix; mean by "
                   f"kind of matrix: {', '.join(f'{name} {k:.1f}' for name, k in kinds)}; one seed's ranks correlate "
                   f"{pm(agree, '{:.2f}')} with the mean of the other seeds", (effect(agree),))


def planted(load: Load) -> Finding:
    values = lambda metric: load("adalora_planted").values("attention", metric)
    kinds = zip(LAYERS[:4], values("mean_by_kind").mean(0), strict=True)
    return Finding(f"Spearman {pm(values('spearman'), '{:.2f}')}; {percent(values('of_planted'))} of the rank lies in the "
                   f"{100 * values('share_planted').mean():.0f} % of matrices where rank was planted; mean rank found: "
                   f"{', '.join(f'{name} {k:.1f}' for name, k in kinds)}; KL {pm(values('kl_before'))} → {pm(values('kl'))}",
                   (effect(values("spearman") - 0.5),), 0.5)


def dylora_flat(load: Load) -> Finding:
    results, fall = load("dylora"), lambda loss: loss[:, 0] - loss[:, -1]         # from b = 16 to b = 1
    dylora, thrice = (results.values(c, "loss") for c in ("DyLoRA", "DyLoRA × 3"))           # (seeds, ranks)
    cut, rescaled, svd = (results.values("LoRA r=16, cut", m) for m in ("loss", "loss_rescaled", "loss_svd"))
    return Finding(f"at rank b = 1 / 2 / 4 / 8 / 16: DyLoRA {slashed(dylora)}, trained three times as long {slashed(thrice)}; "
                   f"LoRA r = 16 cut to b {slashed(cut)} (with the scale α/b {slashed(rescaled)}, cut by SVD {slashed(svd)}) "
                   f"nats/token; from b = 16 to b = 1 DyLoRA loses {pm(fall(dylora))} and the cut LoRA {pm(fall(cut))}",
                   (effect(fall(cut) - fall(dylora)), effect(cut[:, 0] - dylora[:, 0])))


def dylora_cost(load: Load) -> Finding:
    results, ranks = load("dylora"), ("1", "2", "4", "8", "16")
    each = np.stack([load("rank").values(b, "loss") for b in ranks], 1)           # (seeds, ranks)
    frozen = load("methods").mean("frozen", "loss")
    once, thrice = (share_of_gain(results.values(c, "loss"), each, frozen).mean(1) for c in ("DyLoRA", "DyLoRA × 3"))
    return Finding(f"five LoRAs take 5 × {results.mean('DyLoRA', 'steps'):.0f} steps; one DyLoRA reaches {percent(once)} of "
                   f"their gain, a mean over the five ranks, if it is trained as long as one of them, and {percent(thrice)} if "
                   "it is trained three times as long", *as_good([thrice]))


def adapters_full(load: Load) -> Finding:
    results, others, c = load("adapters"), load("methods"), "sequential 16"
    shares = [share_of_gain(results.values(c, m), others.values("full", m), others.values("frozen", m))
              for m in ("loss", "accuracy")]
    return Finding(f"m = 16 ({100 * results.mean(c, 'share'):.1f} % of the parameters): {pm(results.values(c, 'loss'))} "
                   f"nats/token, {percent(shares[0])} of the gain of full fine-tuning; accuracy "
                   f"{percent(results.values(c, 'accuracy'), 1)}, {percent(shares[1])} of the gain", *as_good(shares))


def parallel(load: Load) -> Finding:
    results = load("adapters")
    pairs = {m: (f"sequential {m}", f"parallel {m}") for m in (16, 64)}
    by_width = "; ".join(f"m = {m}: {listed(results, pair, 'loss')}".replace(f" {m} ", " ") for m, pair in pairs.items())
    return Finding(f"{by_width} nats/token", tuple(results.difference(*pair, "loss") for pair in pairs.values()))


def prefix_over_prompt(load: Load) -> Finding:
    results = load("methods")
    names = {"prompt": "prompt P = 20", "prefix": "prefix P = 10", "ptuning_v2": "deep prompts P = 20"}
    by_method = ", ".join(f"{name} {pm(results.values(c, 'loss'))}" for c, name in names.items())
    return Finding(f"{by_method}, frozen {results.mean('frozen', 'loss'):.3f} nats/token",
                   tuple(results.difference("prompt", deep, "loss") for deep in ("prefix", "ptuning_v2")))


def deep_over_shallow(load: Load) -> Finding:
    results, bases = load("prompts"), ("small", "medium", "base")
    gain = lambda name, base: pm(results.values(f"{name} {base}", "gain"))
    by_base = "; ".join(f"{base} {gain('prompt', base)} and {gain('ptuning_v2', base)}" for base in bases)
    return Finding(f"gain of prompts at the input, and of prompts in every layer: {by_base} nats/token",
                   tuple(results.difference(f"ptuning_v2 {base}", f"prompt {base}", "gain") for base in bases))


def prompt_gap(load: Load) -> Finding:
    results = load("prompts")
    gain = lambda name, base: results.values(f"{name} {base}", "gain")
    share = {base: gain("prompt", base) / gain("full", base) for base in ("small", "medium", "base")}
    by_size = "; ".join(f"{results.mean(f'full {b}', 'parameters'):,.0f}: {percent(s)}" for b, s in share.items())
    return Finding(f"share of full fine-tuning's gain that prompt tuning reaches, by the number of parameters: {by_size}",
                   (effect(share["medium"] - share["small"]), effect(share["base"] - share["medium"])))


def reparameterized(load: Load) -> Finding:
    results = load("prefix_rates")
    mlp, direct = (results.values(c, "loss") for c in ("reparameterized", "direct"))         # (seeds, rates)
    best, width = (lambda loss: loss[:, loss.mean(0).argmin()]), (lambda loss: np.ptp(loss, 1))
    rates = " / ".join(f"{x:g}" for x in results.record["settings"]["rates"])
    return Finding(f"at learning rates {rates}: reparameterized {slashed(mlp)}, direct {slashed(direct)} nats/token; at the "
                   f"best rate {pm(best(mlp))} and {pm(best(direct))}; the best and the worst rate differ by {pm(width(mlp))} "
                   f"and {pm(width(direct))}", (effect(best(direct) - best(mlp)), effect(width(direct) - width(mlp))))


METHOD_CLAIMS = (
    Claim("LoRA is as good as full fine-tuning with a few per cent of the parameters", "2106.09685",
          "RoBERTa-base, GLUE: full 86.4, LoRA 87.2 with 0.3 M parameters", ("methods",), lora_is_full,
          {NOT_AT_THIS_SIZE: "The language of a new library is much to learn for a model of 1.2 M parameters; a GLUE task is "
                             "little for a model of 125 M. Here more trained parameters still bring more gain (next rows)."}),
    Claim("With the same number of parameters, more matrices at a lower rank beat one matrix at a high rank", "2106.09685",
          "GPT-3, WikiSQL: Wq r = 8 70.4, Wv r = 8 73.0, all four r = 2 73.7", ("placement",), placement,
          {REPRODUCED: "The query matrix alone is worst here too. The feed-forward layers, which the paper does not adapt, add "
                       "as much again."}),
    Claim("A very small rank suffices", "2106.09685", "GPT-3, WikiSQL, r = 1 … 64: 73.4, 73.3, 73.7, 73.8, 73.5",
          ("rank", "methods"), flat_rank,
          {NOT_AT_THIS_SIZE: "Learning a new vocabulary is not a low-rank change for a model that is 128 wide. Every doubling "
                             "of r gains less than the one before."}),
    Claim("A large rank learns more with the scale α/√r than with α/r", "2312.03732", "", ("rank",), stabilized,
          {REPRODUCED: "At a large r the scale α/r makes updates small. The gain is small beside that of the rank itself."}),
    Claim("LoRA learns less than full fine-tuning, and forgets less", "2405.09673", "", ("methods",), forgets_less,
          {REPRODUCED: "LoRA also forgets less for each nat that it learns."}),
    Claim("AdaLoRA is better than LoRA with the same final budget", "2303.10512",
          "DeBERTaV3-base, GLUE: r = 2 88.15 → 88.86, r = 8 88.34 → 89.31", ("adalora",), adalora,
          {NOT_AT_THIS_SIZE: "A fixed rank at its own learning rate is level or slightly ahead. 200 steps are few for "
                             "training, pruning and recovering from pruning. The surviving ranks are uneven nevertheless "
                             "(next row)."}),
    Claim("AdaLoRA's ranks are uneven, and the same matrices keep more rank with every seed", "2303.10512", "", ("adalora",),
          uneven,
          {REPRODUCED: "With every seed, query and key keep least; the feed-forward layers and the attention's output keep "
                       "more."}),
    Claim("AdaLoRA puts rank where a change of known ranks was planted (Spearman above 0.5)", "2303.10512", "",
          ("adalora_planted",), planted,
          {REPRODUCED: "Little rank remains where nothing was planted. Ranks were planted in the attention only: in an earlier "
                       "experiment the feed-forward's output learned too slowly to be found."}),
    Claim("DyLoRA works at every rank; a LoRA that is cut to a smaller rank does not", "2210.07558", "", ("dylora",),
          dylora_flat,
          {NOT_AT_THIS_SIZE: "A LoRA collapses if it is cut and rescaled to α/b. At its old scale it only falls back towards "
                             "the base. A cut by SVD loses least, and after as many steps DyLoRA is ahead of it at no rank. "
                             "DyLoRA trains each small rank rarely; three times as long, it beats the plain cut at every "
                             "rank."}),
    Claim("One DyLoRA replaces one LoRA for each rank", "2210.07558", "at least 4 to 7 times faster than LoRA",
          ("dylora", "rank", "methods"), dylora_cost,
          {NOT_AT_THIS_SIZE: "With three fifths of the steps of five LoRAs it matches the LoRAs of rank 4 and more, but not "
                             "those of rank 1 and 2."}),
    Claim("Adapters are as good as full fine-tuning with 3.6 % of the parameters", "1902.00751",
          "BERT-large, GLUE: full 80.4, adapters 80.0", ("adapters", "methods"), adapters_full,
          {NOT_AT_THIS_SIZE: "The reason is LoRA's: the task is larger and the model smaller, and a few per cent of its "
                             "parameters cannot learn all of it in these steps."}),
    Claim("Parallel adapters are better than sequential adapters with as many parameters", "2110.04366",
          "XSum, ROUGE-2: 19.98 → 20.66", ("adapters",), parallel,
          {REPRODUCED: "This holds at both widths, with each kind at its own learning rate."}),
    Claim("Prefixes in every layer are far better than prompts at the input alone", "2101.00190",
          "GPT-2 M, E2E BLEU: prefix 69.7, embedding-only 48.1 / 62.2 / 61.9 at length 1 / 10 / 20", ("methods",),
          prefix_over_prompt,
          {REPRODUCED: "The order is the paper's, but the distance is not: the prompt alone reaches four fifths of the gain."}),
    Claim("Deep prompts are better than shallow prompts in small models too", "2110.07602", "", ("prompts",),
          deep_over_shallow,
          {REPRODUCED: "This holds for all three bases; the factor is largest for the smallest base."}),
    Claim("Prompt tuning's gap to full fine-tuning closes as the model grows", "2104.08691",
          "closed at billions of parameters", ("prompts",), prompt_gap,
          {REPRODUCED: "The gap narrows with every size and is far from closed. The bases also differ in how long they were "
                       "trained."}),
    Claim("Reparameterized prefixes train more stably than direct prefixes, and end slightly better", "2101.00190", "",
          ("prefix_rates",), reparameterized,
          {NOT_AT_THIS_SIZE: "At their best rates they are level, and at the largest rate the MLP breaks. The direct prefix "
                             "needs rates ten times as high. Both start from activations of real words here, which may "
                             "be what steadies the direct prefix."}),
)
