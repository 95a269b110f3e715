"""The claims on fine-tuning methods: one function per claim, and the table METHOD_CLAIMS.

Each function takes `load`, which gives the results of an experiment by name. Losses are in nats/token; "gain" is the loss
of the frozen base minus the loss after training. Every arm has its own learning rate (experiment `rates`).
"""
import functools
import itertools
from collections.abc import Callable

import numpy as np

from ..bases import draws_of
from ..effects import Effect, Rows, averaged, between, difference, effect, gains, linear, plus, read, share, together
from ..experiment import Results
from .rule import (
    ACCURACY,
    AS_GOOD,
    AT_LEAST,
    BETTER,
    CHANCE,
    CONTRADICTED,
    CORRELATION,
    FAR,
    FINE_TUNING,
    LENGTH,
    LEVEL,
    LOGARITHM,
    NO_SIZE,
    NOT_SHOWN,
    REPRODUCED,
    SHARE,
    SIZE_OPEN,
    SLOPE,
    WITHIN,
    Claim,
    Contrast,
    Delta,
    Finding,
    Load,
)
from .words import listed, mean, percent, slashed

__all__ = ["METHOD_CLAIMS"]

LAYERS = "query", "key", "value", "output", "up", "down"
SIZES = "small", "medium", "base"


def of_gain(name: str, frozen: Rows, arm: Rows, whole: Rows, worth: Delta = FINE_TUNING) -> Contrast:
    """The share of `whole`'s gain over the frozen base that `arm` reaches. worth: δ of the metric."""
    part, all_of_it = gains(frozen, arm, whole)
    (gained,), weights = together(all_of_it)
    return Contrast(name, share(part, all_of_it), effect(gained, weights), worth)


def on_both_tasks(of_arm: Results, of_methods: Results, arm: str) -> tuple[Contrast, Contrast]:
    """The share of full fine-tuning's gain on domain (loss) and on classify (share of wrong answers)."""
    rows = lambda metric: (read(of_methods, "frozen", metric), read(of_arm, arm, metric), read(of_methods, "full", metric))
    wrong = [of.mapped(lambda x: 1 - x) for of in rows("accuracy")]
    return of_gain("*domain*", *rows("loss")), of_gain("*classify*", *wrong, ACCURACY)


def over_size(*conditions: str) -> Callable[[Load], dict[str, Effect]]:
    """A function of `load`: how much more of full fine-tuning's gain is reached in the largest bases than in the smallest, by
    condition of the experiment `sizes`."""
    name = lambda c: "with r = 4 on every base" if c == "r = 4" else "with an equal share of the parameters"
    return lambda load: {name(c): shares_differ(load("prompts"), load("sizes"), c, "small", "base") for c in conditions}


def shares_differ(of_full: Results, of_arm: Results, condition: str, smaller: str, larger: str) -> Effect:
    """The share of full fine-tuning's gain on the larger bases, minus that on the smaller ones; bases are what is drawn."""
    def shares(size: str) -> Rows:
        gained = [averaged(*(read(results, f"{arm} {base}", "gain") for base in draws_of(size)))
                  for results, arm in ((of_arm, condition), (of_full, "full"))]
        (part, whole), weights = together(*gained)
        return Rows(dict(enumerate(linear(part, whole, weights))), weights)
    return between(shares(larger), shares(smaller))


def lora_is_full(load: Load) -> Finding:
    r = load("methods")
    return Finding(f"LoRA with r = 4 on all matrices ({percent(r.values('lora_all', 'share'), 1)} of the parameters) "
                   f"{mean(r, 'lora_all')}, full {mean(r, 'full')}, frozen {mean(r, 'frozen')} nats/token; accuracy "
                   + ", ".join(f"{name} {percent(r.values(c, 'accuracy'), 1)}" for c, name in
                               (("lora_all", "LoRA"), ("full", "full"), ("frozen", "frozen"))), on_both_tasks(r, r, "lora_all"))


def placement(load: Load) -> Finding:
    r = load("placement")
    four = read(r, "all four r=9")
    return Finding(f"{listed(r, r.conditions)} nats/token",
                   tuple(Contrast(one, difference(read(r, one), four)) for one in ("Wq r=36", "Wv r=36")))


def attention_alone(load: Load) -> Finding:
    r, arms = load("placement"), ("all four r=9", "all six r=4")
    return Finding(f"{listed(r, arms)} nats/token", (Contrast("four − six", difference(*(read(r, c) for c in arms))),))


def mlp_alone(load: Load) -> Finding:
    r, arms = load("placement"), ("up and down r=7", "all six r=4")
    return Finding(f"{listed(r, arms)} nats/token", (Contrast("MLP − all six", difference(*(read(r, c) for c in arms))),))


def ten_times(load: Load) -> Finding:
    r, where = load("best_rates"), ("60 steps", "150 steps", "small", "medium")
    best = {w: [read(r, f"{name}, {w}", "log_best") for name in ("LoRA", "full")] for w in where}
    apart = {w: difference(*pair) for w, pair in best.items()}
    times = ", ".join(f"{w} {10 ** e.mean:.1f}" for w, e in apart.items())
    return Finding(f"LoRA's best rate over full fine-tuning's: {times}",
                   tuple(Contrast(f"{w}, beyond 10 ×", e.shifted(-1)) for w, e in apart.items()))


def rate_over_rank(load: Load) -> Finding:
    r, ranks = load("best_rates"), (1, 8, 64)
    one, *_, last = (read(r, f"r = {b}", "log_best") for b in ranks)
    e = difference(last, one)
    said = ", ".join(f"r = {b} {10 ** r.mean(f'r = {b}', 'log_best'):.3g}" for b in ranks)
    times = np.log10(ranks[-1] / ranks[0])
    return Finding(f"best rates: {said}", (Contrast("exponent of the rank", e.scaled(1 / times)),))


def large_batches(load: Load) -> Finding:
    r = load("batches")
    arms = (read(r, f"{name}, {rows} rows") for rows in (64, 4) for name in ("lora_all", "full"))
    (l64, f64, l4, f4), weights = together(*arms)
    return Finding(f"{listed(r, r.conditions)} nats/token",
                   (Contrast("LoRA − full, 64 rows − 4 rows", effect(l64 - f64 - (l4 - f4), weights)),))


def capacity(load: Load) -> Finding:
    r, tokens = load("capacity"), (16_384, 65_536, 262_144)
    behind = [difference(*(read(r, f"{name}, {n:,} tokens") for name in ("r = 1", "full"))) for n in tokens]
    (a, b, c, d), weights = together(*(read(r, f"{name}, {n:,} tokens") for n in (tokens[-1], tokens[0])
                                       for name in ("r = 1", "full")))
    return Finding("LoRA with r = 1 behind full fine-tuning: "
                   + ", ".join(f"{n:,} tokens {e.mean:+.3f}" for n, e in zip(tokens, behind, strict=True)) + " nats/token",
                   (Contrast(f"{tokens[-1]:,} − {tokens[0]:,} tokens", effect(a - b - (c - d), weights)),))


def flat_rank(load: Load) -> Finding:
    r = load("rank")
    plain = ", ".join(f"r = {c} {mean(r, c)}" for c in r.conditions if c.isdigit())
    return Finding(f"{plain} nats/token",
                   (of_gain("r = 1 of r = 64", read(load("methods"), "frozen"), read(r, "1"), read(r, "64")),))


def stabilized(load: Load) -> Finding:
    r = load("rank")
    return Finding(f"r = 64: {mean(r, '64')} with α/r, {mean(r, '64/sqrt')} with α/√r nats/token, each at its own rate",
                   (Contrast("r = 64", difference(read(r, "64"), read(r, "64/sqrt"))),))


def forgets_less(load: Load) -> Finding:
    r = load("methods")
    learns = {c: f"{r.mean('frozen', 'loss') - r.mean(c, 'loss'):.3f}" for c in ("full", "lora_all")}
    said = "; ".join(f"{name} learns {learns[c]} and forgets {mean(r, c, 'forgetting')}" for c, name in
                     (("full", "full fine-tuning"), ("lora_all", "LoRA with r = 4 on all matrices")))
    return Finding(f"{said} nats/token, each at its best rate",
                   (Contrast("full forgets more", difference(read(r, "full", "forgetting"), read(r, "lora_all", "forgetting"))),
                    Contrast("full learns more", difference(read(r, "lora_all"), read(r, "full")))))


def forgets_less_at_equal_learning(load: Load) -> Finding:
    """What full fine-tuning forgets, between its rates, where it learns as much as LoRA does at LoRA's best rate."""
    r = load("frontier")
    curve = {c: [r.mean(c, m) for m in ("learned", "forgotten")] for c in ("full", "lora_all")}
    best = r.record["settings"]["factors"].index(1)
    level, lora = (x[best] for x in curve["lora_all"])
    i, j, t = bracket(curve["full"][0], level)
    full = (1 - t) * curve["full"][1][i] + t * curve["full"][1][j]
    at = lambda c, metric, k: read(r, c, metric, k)
    slope = np.diff(curve["full"][1][[i, j]])[0] / np.diff(curve["full"][0][[i, j]])[0]
    mixed = lambda metric: mix(at("full", metric, i), at("full", metric, j), t, at("lora_all", metric, best))
    return Finding(f"where both learn {level:.3f} nats/token, LoRA with r = 4 on all matrices forgets {lora:.3f} "
                   f"and full fine-tuning, at another rate, {full:.3f}",
                   (Contrast("at equal learning", plus(mixed("forgotten"), mixed("learned").mapped(lambda x: -slope * x))),))


def bracket(learned: np.ndarray, level: float) -> tuple[int, int, float]:
    """The two rates between which `level` is learned, and how far it lies from the first to the second. Raises KeyError if
    there are none."""
    for i, j in itertools.pairwise(range(int(learned.argmax()) + 1)):
        if learned[i] <= level <= learned[j]: return i, j, (level - learned[i]) / (learned[j] - learned[i])
    raise KeyError(f"no two rates have {level:.3f} between them")


def mix(a: Rows, b: Rows, t: float, less: Rows) -> Rows:
    """(1 − t) a + t b − less, by seed and document."""
    (x, y, z), weights = together(a, b, less)
    seeds = [s for s in a.by_seed if s in b.by_seed and s in less.by_seed]
    return Rows(dict(zip(seeds, (1 - t) * x + t * y - z, strict=True)), weights)


def adalora(load: Load) -> Finding:
    r, pairs = load("adalora"), {2: ("all six r=2", "AdaLoRA 3 → 2"), 8: ("all six r=8", "AdaLoRA 12 → 8")}
    return Finding(f"{'; '.join(f'LoRA {listed(r, pair)}' for pair in pairs.values())} nats/token",
                   tuple(Contrast(f"r = {rank}", difference(*(read(r, c) for c in pair))) for rank, pair in pairs.items()))


def uneven(load: Load) -> Finding:
    """Two seeds at a time, every seed once, so that the correlations are independent. Each kind of matrix is centred first:
    that "up" keeps more than "query" everywhere is not what is asked."""
    ranks = load("adalora").values("AdaLoRA 12 → 8", "ranks")                     # (seeds, matrices)
    kinds = zip(LAYERS, ranks.reshape(len(ranks), -1, 6).mean((0, 1)), strict=True)
    return Finding(f"final ranks, started at 12, with mean 8: from {ranks.min():.0f} to {ranks.max():.0f} per matrix; mean by "
                   f"kind of matrix: {', '.join(f'{name} {k:.1f}' for name, k in kinds)}",
                   (Contrast("ranks of two seeds, within kinds", effect(agreements(ranks))),))


def agreements(ranks: np.ndarray) -> np.ndarray:
    """Correlations (pairs,) of the ranks (seeds, matrices) of seeds 0 and 1, 2 and 3, …, each kind of matrix centred."""
    by_kind = ranks.reshape(len(ranks), -1, 6)
    centred = (by_kind - by_kind.mean(1, keepdims=True)).reshape(len(ranks), -1)
    pairs = zip(centred[0::2], centred[1::2], strict=False)
    return np.array([np.corrcoef(a, b)[0, 1] for a, b in pairs])


def planted(load: Load) -> Finding:
    values = lambda metric: load("adalora_planted").values("attention", metric)
    kinds = zip(LAYERS[:4], values("mean_by_kind").mean(0), strict=True)
    return Finding(f"{percent(values('of_planted'))} of the rank lies in the {percent(values('share_planted'))} of matrices "
                   f"where rank was planted; mean rank found: {', '.join(f'{name} {k:.1f}' for name, k in kinds)}",
                   (Contrast("Spearman, planted and found", effect(values("spearman"))),))


def dylora_flat(load: Load) -> Finding:
    r, arms = load("dylora"), ("LoRA r=16, cut", "DyLoRA")
    cut, dylora = (r.values(c, "loss") for c in arms)                             # (seeds, ranks)
    svd = r.values(arms[0], "loss_svd")
    at = lambda i: difference(*(read(r, c, i=i) for c in arms))
    return Finding(f"at rank b = 1 / 2 / 4 / 8 / 16: DyLoRA {slashed(dylora)}; LoRA r = 16 cut to its first b rows and columns "
                   f"{slashed(cut)}, or by SVD {slashed(svd)} nats/token",
                   tuple(Contrast(f"b = {b}", at(i)) for i, b in enumerate((1, 2, 4, 8))))


def dylora_for_all(load: Load) -> Finding:
    r, each, frozen, ranks = load("dylora"), load("rank"), read(load("methods"), "frozen"), (1, 2, 4, 8, 16)
    losses = " / ".join(mean(each, str(b)) for b in ranks)
    return Finding(f"at rank b = 1 / 2 / 4 / 8 / 16: one DyLoRA {slashed(r.values('DyLoRA', 'loss'))}, five LoRAs {losses} "
                   "nats/token",
                   tuple(of_gain(f"b = {b}", frozen, read(r, "DyLoRA", i=i), read(each, str(b))) for i, b in enumerate(ranks)))


def cut_by_svd(load: Load) -> Finding:
    r, frozen, ranks = load("dylora"), read(load("methods"), "frozen"), (1, 2, 4, 8, 16)
    cut, longer = (r.values(c, metric) for c, metric in (("LoRA r=16, cut", "loss_svd"), ("DyLoRA × 3", "loss")))
    return Finding(f"at rank b = 1 / 2 / 4 / 8 / 16: one LoRA r = 16, cut by SVD, {slashed(cut)}; DyLoRA, trained three times "
                   f"as long, {slashed(longer)} nats/token",
                   tuple(of_gain(f"b = {b}", frozen, read(r, "LoRA r=16, cut", "loss_svd", i), read(r, "DyLoRA × 3", i=i))
                         for i, b in enumerate(ranks)))


def adapters_full(load: Load) -> Finding:
    r, others, c = load("adapters"), load("methods"), "sequential 16, norms"
    of_base = r.values(c, "share")                                                # trained over the base's, without the added
    return Finding(f"m = 16 with layer norms ({percent(of_base / (1 + of_base), 1)} of the parameters) {mean(r, c)}, full "
                   f"{mean(others, 'full')} nats/token; accuracy {percent(r.values(c, 'accuracy'), 1)}, full "
                   f"{percent(others.values('full', 'accuracy'), 1)}, frozen {percent(others.values('frozen', 'accuracy'), 1)}",
                   on_both_tasks(r, others, c))


def parallel(load: Load) -> Finding:
    r, pairs = load("adapters"), {m: (f"sequential {m}", f"parallel {m}") for m in (16, 64)}
    return Finding(f"{'; '.join(listed(r, pair) for pair in pairs.values())} nats/token",
                   tuple(Contrast(f"m = {m}", difference(*(read(r, c) for c in pair))) for m, pair in pairs.items()))


def deep_prompts(load: Load) -> Finding:
    r, same, sizes, pair = load("prompts"), load("prefix_length"), ("small", "medium"), ("prompt 100", "prefix 10")
    of = lambda method, size: averaged(*(read(r, f"{method} {base}", "gain") for base in draws_of(size)))
    mean_of = lambda method, size: np.mean([r.mean(f"{method} {base}", "gain") for base in draws_of(size)])
    by_size = "; ".join(f"{s} {mean_of('prompt', s):.3f} and {mean_of('ptuning_v2', s):.3f}" for s in sizes)
    more = [Contrast(s, difference(of("ptuning_v2", s), of("prompt", s))) for s in sizes]
    return Finding(f"gain of prompts of 20 at the input, and in every layer: {by_size}; base, 12,800 stored numbers each: "
                   f"{listed(same, pair)} nats/token",
                   (*more, Contrast("base, as many numbers", difference(*(read(same, c) for c in pair)))))


def dora(load: Load) -> Finding:
    r, pairs = load("successors"), {"r = 1": ("LoRA, small", "DoRA, r = 1"), "r = 4": ("LoRA, middle", "DoRA, middle"),
                                    "r = 4 on NF4": ("LoRA on NF4", "DoRA on NF4")}
    return Finding(f"{'; '.join(listed(r, pair) for pair in pairs.values())} nats/token",
                   tuple(Contrast(name, difference(*(read(r, c) for c in pair))) for name, pair in pairs.items()))


def pissa(load: Load) -> Finding:
    r, early, late = load("successors"), ("LoRA, 60 steps", "LoRA from pissa, 60 steps"), ("LoRA, middle", "LoRA from pissa")
    return Finding(f"{listed(r, early)}; after 150 steps {listed(r, late)} nats/token",
                   (Contrast("after 60 steps", difference(*(read(r, c) for c in early))),))


def vera(load: Load) -> Finding:
    r, pair = load("successors"), ("VeRA, small", "LoRA, middle")
    said = ", ".join(f"{c} {r.mean(c, 'trained'):,.0f} parameters {mean(r, c)}" for c in pair)
    return Finding(f"{said} nats/token", (of_gain("a quarter of the parameters", read(load("methods"), "frozen"),
                                                  *(read(r, c) for c in pair)),))


def kept_norms(load: Load) -> Finding:
    r, arms = load("successors"), ("OFT, middle", "LoRA, middle", "DoRA, middle", "full")
    said = ", ".join(f"{c} {100 * r.mean(c, 'norms'):.2f} %" for c in arms)
    return Finding(f"mean change of the length of a neuron's weights: {said}",
                   (Contrast("LoRA − OFT", difference(read(r, "LoRA, middle", "norms"), read(r, "OFT, middle", "norms"))),))


def muon(load: Load) -> Finding:
    r, arms = load("successors"), ("full", "full by Muon")
    return Finding(f"{listed(r, arms)} nats/token, each at its own rate",
                   (Contrast("AdamW − Muon", difference(*(read(r, c) for c in arms))),))


def eight_bits(load: Load) -> Finding:
    r, arms = load("successors"), ("full by AdamW8bit", "full")
    return Finding(f"{listed(r, arms)} nats/token, each at its own rate",
                   (Contrast("8 bits − 32", difference(*(read(r, c) for c in arms))),))


def galore(load: Load) -> Finding:
    r, arms = load("successors"), ("full by GaLore", "full")
    return Finding(f"{listed(r, arms)} nats/token, each at its own rate",
                   (of_gain("of AdamW's gain", read(load("methods"), "frozen"), *(read(r, c) for c in arms)),))


def prompt_gap(load: Load) -> Finding:
    r = load("prompts")
    gain = lambda method, size: np.mean([r.mean(f"{method} {base}", "gain") for base in draws_of(size)])
    parameters = {size: r.mean(f"full {size}", "parameters") for size in SIZES}
    by_size = "; ".join(f"{parameters[s]:,.0f}: {percent(gain('prompt', s) / gain('full', s))}" for s in SIZES)
    return Finding(f"share of full fine-tuning's gain that prompt tuning reaches, by the number of parameters: {by_size}",
                   tuple(Contrast(f"{a} → {b}", shares_differ(r, r, "prompt", a, b)) for a, b in itertools.pairwise(SIZES)))


def reparameterized(load: Load) -> Finding:
    """The best rate is taken on validation text. Steadiness: what three times that rate costs."""
    r, arms = load("prefix_rates"), ("direct", "reparameterized")
    best = {c: int(r.values(c, "validation").mean(0).argmin()) for c in arms}
    rises = {c: rise(r, c, best[c]) for c in arms}
    said = [f"{c} {r.mean(c, 'loss')[best[c]]:.3f} at its best rate, {r.mean(c, 'rate')[best[c]]:.3g}, and "
            f"{r.mean(c, 'loss')[best[c] + 2] - r.mean(c, 'loss')[best[c]]:+.3f} at three times that rate" for c in arms]
    return Finding(f"{'; '.join(said)} (nats/token)",
                   (Contrast("at the best rates", difference(*(read(r, c, i=best[c]) for c in arms))),
                    Contrast("at three times these", difference(*(rises[c] for c in arms)))))


def rise(results: Results, condition: str, best: int) -> Rows:
    """By how much the loss rises from the best rate to three times that rate, two steps of the grid, by seed and document.
    Raises KeyError if no rate is as large."""
    if best + 2 >= results.values(condition, "rate").shape[1]: raise KeyError(f"{condition}: no rate is three times the best")
    at = lambda i: read(results, condition, "loss", i)
    (low, high), weights = together(at(best), at(best + 2))
    return Rows(dict(zip(at(best).by_seed, high - low, strict=True)), weights)


better = functools.partial(Claim, kind=BETTER, delta=FINE_TUNING)
as_good = functools.partial(Claim, kind=AS_GOOD, delta=AT_LEAST)
within = functools.partial(Claim, kind=WITHIN)
REGRET = "LoRA Without Regret: https://thinkingmachines.ai/blog/lora/"

METHOD_CLAIMS = (
    as_good("LoRA is as good as full fine-tuning with a few per cent of the parameters", "2106.09685",
            "RoBERTa-base, GLUE: full 86.4, LoRA 87.2 with 0.3 M parameters",
            "share of full fine-tuning's gain over the frozen base, on *domain* and on *classify*",
            "LoRA reaches less than 90 % of the gain on one of the two tasks",
            ("methods", "prompts", "sizes"), lora_is_full, trend=over_size("lora_all", "r = 4"),
            why={CONTRADICTED: "Ten times as many steps do not close the gap (experiment `lengths`); on all matrices more rank "
                 "narrows it (experiment `rounding_rank`)."}),
    better("With the same number of parameters, more matrices at a lower rank beat one matrix at a high rank", "2106.09685",
           "GPT-3, WikiSQL: Wq r = 8 70.4, Wv r = 8 73.0, all four r = 2 73.7",
           "test loss of one matrix with r = 36, minus that of four with r = 9",
           "the query or the value matrix alone is ahead", ("placement",), placement,
           why={REPRODUCED: "From r = 4 on more rank on the same matrices gains less and less (experiment `rank`). That "
                "another matrix starts where rank still gains most is a conjecture."}),
    better("LoRA on the attention alone is worse than on all matrices, with as many parameters", REGRET, "",
           "test loss of the attention's four matrices with r = 9, minus that of all six with r = 4",
           "the attention alone is ahead", ("placement",), attention_alone,
           why={REPRODUCED: "The MLP has two thirds of a block's weights, and the attention alone leaves them as they are."}),
    within("LoRA on the MLP alone is as good as on all matrices, with as many parameters", REGRET, "",
           "test loss of the MLP's two matrices with r = 7 (3 % fewer parameters), minus that of all six with r = 4",
           "they differ by δ or more", ("placement",), mlp_alone, delta=FINE_TUNING,
           why={REPRODUCED: "With the attention's matrices beside it or without, the MLP gives as much; the attention alone "
                "does not (the row above)."}),
    within("LoRA's best learning rate is ten times that of full fine-tuning", REGRET, "about 10",
           "logarithm of the ratio of the best rates, minus 1: after 60 and 150 steps, and on two smaller bases",
           "the ratio is below 5 or above 20 in one of the four", ("best_rates",), ten_times, delta=LOGARITHM,
           why={NOT_SHOWN: "It is five to eight times as large. In three of the four it is shown to be within a factor of 2 of "
                "ten; on the smallest base the interval reaches below five."}),
    within("With the scale α/r, LoRA's best learning rate does not depend on the rank", REGRET, "",
           "x, if the best rate grows as r to the power of x from r = 1 to r = 64",
           "x is 0.1 or more, or −0.1 or less", ("best_rates",), rate_over_rank, delta=SLOPE,
           why={NOT_SHOWN: "From r = 1 to r = 64 the best rate rises by two thirds on average. Four seeds show neither that "
                "this is less than δ nor that it is more."}),
    better("A large batch costs LoRA more than full fine-tuning", REGRET, "",
           "test loss of LoRA minus that of full fine-tuning with 64 rows in a batch, minus the same with 4, "
           "after 576 and 600 rows",
           "LoRA's gap is smaller with the large batch", ("batches",), large_batches,
           why={LEVEL: "With 64 rows in a batch both take nine steps in place of 150, and both lose 0.12 by that."}),
    better("LoRA falls behind where there is more to learn than its capacity", REGRET, "",
           "test loss of LoRA with r = 1 minus that of full fine-tuning, where the rows are drawn from 262,144 "
           "tokens, minus the same with 16,384; 76,800 tokens are read in both",
           "LoRA's gap is smaller with more text", ("capacity",), capacity,
           why={REPRODUCED: "The gap grows with each fourfold text: 0.054, 0.145, 0.212. A text that is read several times has "
                "less to teach (a conjecture)."}),
    as_good("A very small rank suffices", "2106.09685", "GPT-3, WikiSQL, r = 1, 2, 4, 8, 64: 73.4, 73.3, 73.7, 73.8, 73.5",
            "share of the gain of r = 64 that r = 1 reaches",
            "r = 1 reaches less than 90 % of the gain of r = 64", ("rank", "methods"), flat_rank,
            why={CONTRADICTED: "Each doubling of the rank still helps. That a large model has less to learn is a conjecture."}),
    better("A large rank learns more with the scale α/√r than with α/r", "2312.03732", "",
           "test loss at r = 64 with α/r, minus that with α/√r, each at its own rate",
           "α/r at its own rate is ahead", ("rank",), stabilized,
           why={LEVEL: "Each scale has its own rate here, and a larger rate can make up for a smaller scale (a conjecture)."}),
    better("LoRA learns less than full fine-tuning, and forgets less", "2405.09673", "",
           "what full fine-tuning forgets, and learns, minus the same of LoRA, each at its best rate",
           "LoRA learns more, or forgets more", ("methods",), forgets_less,
           why={REPRODUCED: "At its best rate full fine-tuning goes further in both; the next claim compares at equal "
                "learning."}),
    better("Where LoRA and full fine-tuning learn as much, LoRA forgets less", "2405.09673", "",
           "what full fine-tuning forgets at a rate at which it learns as much, minus what LoRA forgets",
           "full fine-tuning forgets less at equal learning", ("frontier",), forgets_less_at_equal_learning, own=True,
           why={CONTRADICTED: "At an eighth of its best rate full fine-tuning learns as much as LoRA, and at so small a rate "
                "it hardly forgets. LoRA at half its best rate learns nearly as much, and still forgets about four "
                "times as much as full fine-tuning does there."}),
    better("AdaLoRA is better than LoRA with the same final budget", "2303.10512",
           "DeBERTaV3-base, GLUE: r = 2 88.15 → 88.86, r = 8 88.34 → 89.31",
           "test loss of LoRA minus that of AdaLoRA, with 2 and with 8 singular values a matrix in the end",
           "LoRA is ahead at one of the two budgets", ("adalora",), adalora,
           why={CONTRADICTED: "A part of AdaLoRA's steps trains directions that it prunes later (that this costs it the lead "
                "is a conjecture)."}),
    Claim("In AdaLoRA the same matrices keep more rank with every seed", "2303.10512", "",
          "correlation of two seeds' ranks over the matrices, within each kind of matrix, over disjoint pairs of seeds",
          "where two seeds keep rank is unrelated, or opposed, within the kinds of matrices", ("adalora",), uneven,
          CHANCE, CORRELATION,
          why={REPRODUCED: "All seeds share the base and the text, and what is important depends on these (a conjecture)."}),
    Claim("AdaLoRA puts rank where a change of known ranks was planted in the attention", "2303.10512", "",
          "Spearman's correlation of planted and found ranks, new ranks with every seed",
          "planted and found ranks are unrelated, or opposed", ("adalora_planted",), planted, CHANCE, CORRELATION, own=True,
          why={REPRODUCED: "Where nothing was planted a triplet hardly lowers the loss, so its importance stays small (a "
               "conjecture)."}),
    better("DyLoRA works at every rank; a LoRA that is cut to a smaller rank does not", "2210.07558", "",
           "test loss of LoRA r = 16 cut to b = 1, 2, 4, 8 with its scale kept, minus that of DyLoRA at b, "
           "trained as long",
           "the cut LoRA is ahead at one of the ranks", ("dylora",), dylora_flat,
           why={NOT_SHOWN: "At ranks 1 and 2 the seeds differ too much to tell. At ranks 4 and 8 DyLoRA is ahead of this cut, "
                "and a cut by singular values is ahead of both. With the scale α/b the cut is worse at each rank."}),
    as_good("One DyLoRA replaces one LoRA for each rank", "2210.07558", "at least 4 to 7 times faster than LoRA",
            "share of the gain of a LoRA of rank 1, 2, 4, 8, 16 that one DyLoRA, trained as long, reaches",
            "DyLoRA reaches less than 90 % of the gain at one of the ranks", ("dylora", "rank", "methods"), dylora_for_all,
            why={CONTRADICTED: "Five ranks share one training. Trained three times as long, DyLoRA is within δ or ahead from "
                 "rank 4 on."}),
    as_good("One LoRA that is cut by its singular values replaces a DyLoRA that is trained three times as long",
            "2210.07558", "",
            "share of the gain of DyLoRA, trained three times as long, at rank 1, 2, 4, 8, 16 that one LoRA of rank 16 reaches "
            "when it is cut to that rank",
            "it reaches less than 90 % of the gain at one of the ranks", ("dylora", "methods"), cut_by_svd, own=True,
            why={NOT_SHOWN: "At rank 1 the seeds differ too much to tell. At ranks 2 to 16 the cut is shown to reach 90 %."}),
    as_good("Adapters are as good as full fine-tuning with 3.6 % of the parameters", "1902.00751",
            "BERT-large, GLUE: full 80.4, adapters 80.0",
            "share of full fine-tuning's gain over the frozen base, on *domain* and on *classify*",
            "adapters reach less than 90 % of the gain on one of the two tasks",
            ("adapters", "methods", "prompts", "sizes"), adapters_full, trend=over_size("adapter"),
            why={CONTRADICTED: "With as many parameters adapters reach less than LoRA on *classify*. On SmolLM2, a real and "
                 "larger model, adapters end as low as full fine-tuning (experiment `smollm2`)."}),
    better("Parallel adapters are better than sequential adapters with as many parameters", "2110.04366",
           "XSum, ROUGE-2: 19.98 → 20.66",
           "test loss of sequential minus that of parallel adapters, m = 16 and 64",
           "sequential adapters are ahead at one of the two widths", ("adapters",), parallel,
           why={SIZE_OPEN: "The lead is about δ at both widths. A parallel adapter reads what the layer norm made even, "
                "and its result is multiplied by 4 (that this is the reason is a conjecture)."}),
    Claim("Deep prompts are better by far than prompts at the input alone, in small models, and on the base with as "
          "many numbers",
          "2101.00190", "GPT-2 M, E2E BLEU: prefix 69.7, embedding-only 48.1 / 62.2 / 61.9 at length 1 / 10 / 20; small models "
          "are of 2110.07602",
          "gain of prompts in every layer minus that of as long prompts at the input, on three bases of each of two "
          "small sizes; and on the base with 12,800 stored numbers each",
          "prompts at the input are ahead in one of the three comparisons", ("prompts", "prefix_length"), deep_prompts,
          FAR, FINE_TUNING,
          why={SIZE_OPEN: "Prompts in every layer are ahead in each comparison. No interval lies above five δ, which is what "
               "far means here."}),
    Claim("Prompt tuning's gap to full fine-tuning closes as the model grows", "2104.08691",
          "closed at billions of parameters",
          "share of full fine-tuning's gain that prompt tuning reaches, minus that in the next smaller size, three "
          "bases of each",
          "the share falls from one size to the next", ("prompts",), prompt_gap, BETTER, SHARE,
          why={NOT_SHOWN: "From the smallest bases to the next the gap narrows. From there to the largest 20 vectors on every "
               "base leave it as it is; with an equal share of the parameters (experiment `sizes`) it is a little narrower on "
               "average."}),
    better("DoRA is better than LoRA of the same rank, on a rounded base as well", "2402.09353",
           "LLaMA-7B, commonsense reasoning: LoRA r = 32 74.7, DoRA 78.4",
           "test loss of LoRA minus that of DoRA on all matrices, r = 1 and 4, and r = 4 on the base in NF4",
           "LoRA is ahead in one of the three", ("successors",), dora,
           why={SIZE_OPEN: "The lead is about δ at r = 4, and larger at r = 1, where DoRA trains half as many numbers more. "
                "That lengths of their own are the reason is a conjecture."}),
    better("LoRA from PiSSA's start has a lead early in training", "2404.02948", "",
           "test loss of LoRA minus that of LoRA from PiSSA's start, r = 4 on all matrices, after 60 steps, each at its own "
           "rate",
           "the usual start is ahead", ("successors",), pissa,
           why={NOT_SHOWN: "On average the usual start is ahead, each at its own rate. PiSSA's best rate is less than a third "
                "of LoRA's, so that a comparison at one rate would be another one."}),
    as_good("VeRA is as good as LoRA with far fewer parameters", "2310.11454",
            "RoBERTa-base, GLUE: 85.2 with 0.043 M, LoRA 86.6 with 0.3 M",
            "share of the gain of LoRA with r = 4 on all matrices that VeRA with a quarter of its parameters reaches",
            "VeRA reaches less than 90 % of the gain", ("successors", "methods"), vera,
            why={CONTRADICTED: "VeRA with as many numbers as LoRA with r = 1 learns as much as that, and r = 4 learns more."}),
    Claim("OFT keeps the lengths of the neurons' weights", "2306.07280", "",
          "mean change of these lengths by LoRA minus that by OFT", "OFT changes them more", ("successors",), kept_norms,
          BETTER, LENGTH, by_construction="A rotation keeps lengths; what is left is rounding."),
    better("Muon fine-tunes better than AdamW a model that AdamW pretrained", "2502.16982", "",
           "test loss of full fine-tuning by AdamW minus that by Muon, each at its own rate",
           "AdamW is ahead", ("successors",), muon, own=True,
           why={LEVEL: "AdamW is ahead by half of δ, each at its own rate."}),
    within("AdamW with states of 8 bits learns what AdamW learns", "2110.02861", "",
           "test loss of full fine-tuning by AdamW with states of 8 bits minus that by AdamW, each at its own rate",
           "they differ by δ or more", ("successors",), eight_bits, delta=FINE_TUNING,
           why={NOT_SHOWN: "The difference lies within δ on average, and its interval reaches beyond. The best rates lie one "
                "step of the grid apart; that this makes the difference is a conjecture."}),
    as_good("GaLore is as good as AdamW with a fraction of its states", "2403.03507", "",
            "share of the gain of full fine-tuning by AdamW that GaLore reaches, each at its own rate",
            "GaLore reaches less than 90 % of the gain", ("successors", "methods"), galore,
            why={NO_SIZE: "With rank 8 and a new basis every 200 steps, one basis serves the whole training here. It reaches "
                 "more than 80 % of the gain."}),
    better("Reparameterized prefixes train more stably than direct prefixes, and end slightly better", "2101.00190", "",
           "test loss of direct minus that of reparameterized prefixes, at the best rates; and what "
           "three times these rates cost",
           "direct prefixes end lower, or lose less at too large a rate", ("prefix_rates",), reparameterized,
           why={NOT_SHOWN: "At three times its best rate the direct prefix loses a little more, and at the best rates it ends "
                "a little lower. The parts point in opposite directions, and after Holm's correction neither is shown."}),
)
