"""What the papers claim, beside what was measured here: `table` writes both, with a verdict that a rule gives.

A claim is tested by one or more *effects*, each signed so that positive is what the claim says, and each with its 95 %
confidence interval over seeds (Student's t, paired where two methods saw the same seeds):

    reproduced          every interval lies above zero
    contradicted        every interval lies below −margin
    not at this size    anything else: no effect is shown, or it depends

"A is better than B" has the difference as its effect and margin 0. "A is as good as B" has as its effect the share of B's
gain over the frozen base that A reaches, minus 0.9, and margin 0.4: nine tenths reproduce it, less than half contradicts it.
"""
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .experiment import Results, half_width
from .experiments import EXPERIMENTS

__all__ = ["CLAIMS", "Claim", "Finding", "brief", "table", "verdict"]

VERDICTS = "reproduced", "not at this size", "contradicted"


@dataclass(frozen=True)
class Finding:
    """told: the measured numbers, Markdown. effects: (mean, half width) each, positive as the claim says. margin: see above."""
    told: str
    effects: tuple
    margin: float = 0.0


@dataclass(frozen=True)
class Claim:
    """text: what is claimed. paper: arXiv id. paper_number: what the paper measured ("" where it gives a direction only).
    experiment: names of the results. test: (name → Results) → Finding. why: verdict → the sentence that goes with it."""
    text: str
    paper: str
    paper_number: str
    experiment: tuple
    test: Callable
    why: dict = field(default_factory=dict)


def verdict(finding):
    """One of VERDICTS, by the rule of the module's docstring. Raises ValueError for a finding without an effect."""
    if not finding.effects:
        raise ValueError(f"verdict: there is no effect to judge by in {finding.told!r}")
    if all(mean - half > 0 for mean, half in finding.effects): return "reproduced"
    if all(mean + half < -finding.margin for mean, half in finding.effects): return "contradicted"
    return "not at this size"


def table(folder, claims=None):
    """The claims as a Markdown table, from the results in `folder`; those whose results are missing say what measures them."""
    load = functools.cache(lambda name: Results.load(folder, name))
    rows = []
    for claim in CLAIMS if claims is None else claims:
        absent = [n for n in claim.experiment if not (Path(folder) / f"{n}.json").exists()]
        if absent:
            told, judged = f"not measured: `python -m tinypeft figures {' '.join(absent)} --rerun`", ("", "")
        else:
            finding = claim.test(load)
            told, judged = finding.told, (f"**{verdict(finding)}**", claim.why.get(verdict(finding), ""))
        source = f"[{claim.paper}](https://arxiv.org/abs/{claim.paper})" + f": {claim.paper_number}" * bool(claim.paper_number)
        rows.append(f"| {claim.text} | {source} | {told} | {judged[0]} | {judged[1]} |")
    return "\n".join(["| claim | paper | measured here (mean ± 95 % interval) | verdict | why |", "|" + 5 * "---|", *rows])


def brief(folder, claims):
    """The claims with their verdicts alone, as a Markdown table; of those that have been measured."""
    load = functools.cache(lambda name: Results.load(folder, name))
    measured = [c for c in claims if all((Path(folder) / f"{n}.json").exists() for n in c.experiment)]
    judged = [(c, verdict(c.test(load))) for c in measured]
    counts = ", ".join(f"{sum(v == name for _, v in judged)} {name}" for name in VERDICTS)
    rows = [f"| {c.text} | [{c.paper}](https://arxiv.org/abs/{c.paper}) | {v} |" for c, v in judged]
    return "\n".join([f"{len(judged)} claims: {counts}.", "", "| claim | paper | here |", "|---|---|---|", *rows])


# -- what the tests are made of --------------------------------------------------------------------
def effect(values):
    """(mean, half width) of one number per seed."""
    return float(np.mean(values)), float(half_width(values))


def pm(values, form="{:.3f}"):
    """"mean ± half width" of one number per seed; a mean alone where nothing varies."""
    mean, half = effect(np.asarray(values, float))
    return form.format(mean) + (f" ± {form.format(half)}" if half > 0 else "")


def percent(values, digits=0):
    return pm(100 * np.asarray(values), f"{{:.{digits}f}}") + " %"


def share_of_gain(of, full, frozen):
    """How much of what `full` gains over the frozen base `of` gains, one number per seed."""
    return (frozen - of) / (frozen - full)


def as_good(*shares):
    """The effects and the margin of "as good as"."""
    return tuple(effect(share - 0.9) for share in shares), 0.4


def slashed(values):
    """Means over seeds of (seeds, n) numbers."""
    return " / ".join(f"{x:.3f}" for x in values.mean(0))


# -- the tests --------------------------------------------------------------------------------------
def lora_is_full(load):
    r = load("methods")
    lora, full, frozen = ({m: r.values(c, m) for m in ("loss", "accuracy")} for c in ("lora_all", "full", "frozen"))
    shares = [share_of_gain(lora[m], full[m], frozen[m]) for m in ("loss", "accuracy")]
    return Finding(f"LoRA r = 4 everywhere ({100 * r.mean('lora_all', 'share'):.1f} %): {pm(lora['loss'])} nats/token, full "
                   f"{pm(full['loss'])}, frozen {frozen['loss'][0]:.3f}, {percent(shares[0])} of the gain; accuracy "
                   f"{percent(lora['accuracy'], 1)}, full {percent(full['accuracy'], 1)}, {percent(shares[1])} of the gain",
                   *as_good(*shares))


def placement(load):
    r = load("placement")
    told = ", ".join(f"{c} {pm(r.values(c, 'loss'))}" for c in r.conditions)
    return Finding(f"{told} nats/token", tuple(r.difference(one, "all four r=9", "loss") for one in ("Wq r=36", "Wv r=36")))


def flat_rank(load):
    r = load("rank")
    share = share_of_gain(r.values("1", "loss"), r.values("64", "loss"), load("methods").mean("frozen", "loss"))
    told = ", ".join(f"{c}: {pm(r.values(c, 'loss'))}" for c in r.conditions
                     if not EXPERIMENTS["rank"].conditions[c].rank_stabilized)
    return Finding(f"by r, {told} nats/token; r = 1 has {percent(share)} of the gain of r = 64", *as_good(share))


def stabilized(load):
    r = load("rank")
    return Finding(f"r = 64: α/r {pm(r.values('64', 'loss'))}, α/√r {pm(r.values('64/sqrt', 'loss'))}; r = 1: "
                   f"{pm(r.values('1', 'loss'))} and {pm(r.values('1/sqrt', 'loss'))} nats/token",
                   (r.difference("64", "64/sqrt", "loss"),))


def forgets_less(load):
    r, names = load("methods"), {"full": "full", "lora_all": "LoRA r = 4 everywhere", "lora": "LoRA"}
    learns = {c: r.mean("frozen", "loss") - r.values(c, "loss") for c in names}
    told = "; ".join(f"{name} learns {pm(learns[c])}, forgets {pm(r.values(c, 'forgetting'))}" for c, name in names.items())
    return Finding(f"{told} nats/token",
                   (r.difference("full", "lora_all", "forgetting"), r.difference("lora_all", "full", "loss")))


def adalora(load):
    r, pairs = load("adalora"), (("all six r=2", "AdaLoRA 3 → 2"), ("all six r=8", "AdaLoRA 12 → 8"))
    told = "; ".join(f"{a} {pm(r.values(a, 'loss'))}, {b} {pm(r.values(b, 'loss'))}" for a, b in pairs)
    return Finding(f"LoRA {told} nats/token", tuple(r.difference(a, b, "loss") for a, b in pairs))


def uneven(load):
    ranks = load("adalora").values("AdaLoRA 12 → 8", "ranks")                     # (seeds, matrices)
    agree = [np.corrcoef(row, np.delete(ranks, i, 0).mean(0))[0, 1] for i, row in enumerate(ranks)]
    kinds = zip(("query", "key", "value", "output", "up", "down"), ranks.reshape(len(ranks), -1, 6).mean((0, 1)), strict=True)
    return Finding(f"of 12, mean 8: {ranks.min():.0f} to {ranks.max():.0f} per matrix, by kind "
                   f"{', '.join(f'{name} {k:.1f}' for name, k in kinds)}; a seed's ranks correlate {pm(agree, '{:.2f}')} with "
                   "the other seeds' mean", (effect(agree),))


def planted(load):
    values = lambda metric: load("adalora_planted").values("attention", metric)
    kinds = zip(("query", "key", "value", "output"), values("mean_by_kind").mean(0), strict=True)
    return Finding(f"Spearman {pm(values('spearman'), '{:.2f}')}; {percent(values('of_planted'))} of the rank lies in the "
                   f"{100 * values('share_planted').mean():.0f} % of matrices where rank was planted; mean found: "
                   f"{', '.join(f'{name} {k:.1f}' for name, k in kinds)}; KL {pm(values('kl_before'))} → {pm(values('kl'))}",
                   (effect(values("spearman") - 0.5),), 0.5)


def dylora_flat(load):
    r, fall = load("dylora"), lambda loss: loss[:, 0] - loss[:, -1]               # from b = 16 to b = 1
    dylora, thrice = (r.values(c, "loss") for c in ("DyLoRA", "DyLoRA × 3"))      # (seeds, ranks)
    cut, rescaled, svd = (r.values("LoRA r=16, cut", m) for m in ("loss", "loss_rescaled", "loss_svd"))
    return Finding(f"b = 1 / 2 / 4 / 8 / 16: DyLoRA {slashed(dylora)}, three times as long {slashed(thrice)}; LoRA r = 16 cut "
                   f"{slashed(cut)} (scale α/b {slashed(rescaled)}, by SVD {slashed(svd)}) nats/token; from 16 to 1 DyLoRA "
                   f"loses {pm(fall(dylora))}, the cut LoRA {pm(fall(cut))}",
                   (effect(fall(cut) - fall(dylora)), effect(cut[:, 0] - dylora[:, 0])))


def dylora_cost(load):
    r, ranks = load("dylora"), ("1", "2", "4", "8", "16")
    each = np.stack([load("rank").values(b, "loss") for b in ranks], 1)           # (seeds, ranks)
    frozen = load("methods").mean("frozen", "loss")
    once, thrice = (share_of_gain(r.values(c, "loss"), each, frozen).mean(1) for c in ("DyLoRA", "DyLoRA × 3"))
    return Finding(f"of what five LoRAs gain in 5 × {r.mean('DyLoRA', 'steps'):.0f} steps, mean over the five ranks: DyLoRA "
                   f"{percent(once)} in one training as long as one of them, {percent(thrice)} in one three times as long",
                   *as_good(thrice))


def adapters_full(load):
    r, m, c = load("adapters"), load("methods"), "sequential 16"
    shares = [share_of_gain(r.values(c, x), m.values("full", x), m.values("frozen", x)) for x in ("loss", "accuracy")]
    return Finding(f"m = 16 ({100 * r.mean(c, 'share'):.1f} %): {pm(r.values(c, 'loss'))} nats/token, {percent(shares[0])} of "
                   f"full's gain; accuracy {percent(r.values(c, 'accuracy'), 1)}, {percent(shares[1])} of the gain",
                   *as_good(*shares))


def parallel(load):
    r = load("adapters")
    pairs = {m: (f"sequential {m}", f"parallel {m}") for m in (16, 64)}
    told = "; ".join(f"m = {m}: {' and '.join(pm(r.values(c, 'loss')) for c in pair)}" for m, pair in pairs.items())
    return Finding(f"sequential and parallel, {told} nats/token", tuple(r.difference(*pair, "loss") for pair in pairs.values()))


def prefix_over_prompt(load):
    r, names = load("methods"), {"prompt": "prompt P = 20", "prefix": "prefix P = 10", "ptuning_v2": "deep prompts P = 20"}
    told = ", ".join(f"{name} {pm(r.values(c, 'loss'))}" for c, name in names.items())
    return Finding(f"{told}, frozen {r.mean('frozen', 'loss'):.3f} nats/token",
                   (r.difference("prompt", "prefix", "loss"), r.difference("prompt", "ptuning_v2", "loss")))


def deep_over_shallow(load):
    r, bases = load("prompts"), ("small", "medium", "base")
    gain = lambda name, base: pm(r.values(f"{name} {base}", "gain"))
    told = "; ".join(f"{base} {gain('prompt', base)} and {gain('ptuning_v2', base)}" for base in bases)
    return Finding(f"gain of prompts at the input and in every layer: {told} nats/token",
                   tuple(r.difference(f"ptuning_v2 {base}", f"prompt {base}", "gain") for base in bases))


def prompt_gap(load):
    r = load("prompts")
    share = {b: r.values(f"prompt {b}", "gain") / r.values(f"full {b}", "gain") for b in ("small", "medium", "base")}
    told = "; ".join(f"{r.mean(f'full {b}', 'parameters'):,.0f}: {percent(s)}" for b, s in share.items())
    return Finding(f"prompt tuning's share of full fine-tuning's gain, by the base's parameters: {told}",
                   (effect(share["medium"] - share["small"]), effect(share["base"] - share["medium"])))


def reparameterized(load):
    r = load("prefix_rates")
    mlp, direct = (r.values(c, "loss") for c in ("reparameterized", "direct"))    # (seeds, rates)
    best, width = (lambda loss: loss[:, loss.mean(0).argmin()]), (lambda loss: np.ptp(loss, 1))
    rates = " / ".join(f"{x:g}" for x in r.record["settings"]["rates"])
    return Finding(f"learning rates {rates}: reparameterized {slashed(mlp)}, direct {slashed(direct)} nats/token; at the best "
                   f"{pm(best(mlp))} and {pm(best(direct))}, over all rates {pm(width(mlp))} and {pm(width(direct))} apart",
                   (effect(best(direct) - best(mlp)), effect(width(direct) - width(mlp))))


REPRODUCED, SIZE, CONTRADICTED = VERDICTS
CLAIMS = (
    Claim("LoRA is as good as full fine-tuning with a few per cent of the parameters", "2106.09685",
          "RoBERTa-base, GLUE: full 86.4, LoRA 87.2 with 0.3 M parameters", ("methods",), lora_is_full,
          {SIZE: "The language of a new library is more to learn for a model of 1.2 M parameters than a task of GLUE is for "
                 "one of 125 M: what LoRA reaches still grows with its parameters (next rows)."}),
    Claim("More matrices at a lower rank beat one matrix at a high rank with as many parameters", "2106.09685",
          "GPT-3, WikiSQL: Wq r = 8 70.4, Wv r = 8 73.0, all four r = 2 73.7", ("placement",), placement,
          {REPRODUCED: "The query matrix alone is worst here too; the feed-forward layers, which the paper leaves alone, add "
                       "as much again."}),
    Claim("A very small rank suffices", "2106.09685", "GPT-3, WikiSQL, r = 1 … 64: 73.4, 73.3, 73.7, 73.8, 73.5",
          ("rank", "methods"), flat_rank,
          {SIZE: "New vocabulary on a new subject is no low-rank change of a model that is 128 wide; every doubling of r gains "
                 "less than the one before."}),
    Claim("With the scale α/√r a large rank learns more than with α/r", "2312.03732", "", ("rank",), stabilized,
          {REPRODUCED: "α/r makes updates small where r is large; beside what the rank itself brings it is a small gain."}),
    Claim("LoRA learns less than full fine-tuning, and forgets less", "2405.09673", "", ("methods",), forgets_less,
          {REPRODUCED: "It forgets less for each nat it learns, too."}),
    Claim("AdaLoRA is better than LoRA with the same final budget", "2303.10512",
          "DeBERTaV3-base, GLUE: r = 2 88.15 → 88.86, r = 8 88.34 → 89.31", ("adalora",), adalora,
          {verdict: "A fixed rank at its own learning rate is level or slightly ahead; 200 steps are few for training, pruning "
                    "and recovering from it, though the ranks that survive are uneven (next row)."
           for verdict in (SIZE, CONTRADICTED)}),
    Claim("AdaLoRA's ranks are uneven, and not by chance", "2303.10512", "", ("adalora",), uneven,
          {REPRODUCED: "Query and key keep least, the feed-forward layers and the attention's output more, for every seed."}),
    Claim("AdaLoRA puts rank where a change of known ranks was planted (Spearman above 0.5)", "2303.10512", "",
          ("adalora_planted",), planted,
          {REPRODUCED: "Where nothing was planted little rank is left. Only the attention was planted: in an earlier look the "
                       "feed-forward's output learned too slowly to be found."}),
    Claim("DyLoRA works at every rank, LoRA cut to a smaller one does not", "2210.07558", "", ("dylora",), dylora_flat,
          {verdict: "LoRA collapses when it is cut and rescaled to α/b, but not at its old scale, where it only falls back "
                    "towards the base, and least when it is cut by SVD, which DyLoRA passes at no rank in as many steps. It "
                    "trains small ranks rarely; three times as long it is ahead of the plain cut at every rank."
           for verdict in (SIZE, CONTRADICTED)}),
    Claim("One DyLoRA replaces one LoRA for each rank", "2210.07558", "4 to 7 times faster than a search",
          ("dylora", "rank", "methods"), dylora_cost,
          {SIZE: "In three fifths of the steps of five LoRAs it reaches those of rank 4 and more, not those of 1 and 2.",
           REPRODUCED: "In three fifths of the steps of five LoRAs; it passes those of high rank and is behind at 1 and 2."}),
    Claim("Adapters are as good as full fine-tuning with 3.6 % of the parameters", "1902.00751",
          "BERT-large, GLUE: full 80.4, adapters 80.0", ("adapters", "methods"), adapters_full,
          {verdict: "As for LoRA: more is to be learned, by a smaller model, than a few per cent of it can hold in these steps."
           for verdict in (SIZE, CONTRADICTED)}),
    Claim("Parallel adapters are better than sequential ones with as many parameters", "2110.04366",
          "XSum, ROUGE-2: 19.98 → 20.66", ("adapters",), parallel,
          {REPRODUCED: "At both widths, each kind at its own learning rate.",
           SIZE: "They are ahead on average; over five seeds one of the intervals reaches zero."}),
    Claim("Prefixes in every layer are far better than prompts at the input alone", "2101.00190",
          "GPT-2 M, E2E BLEU: prefix 69.7, embedding-only 48.1 / 62.2 / 61.9 at length 1 / 10 / 20", ("methods",),
          prefix_over_prompt,
          {REPRODUCED: "The order is the paper's, the distance is not: the prompt alone has four fifths of the gain."}),
    Claim("Deep prompts are better than shallow ones in small models too", "2110.07602", "", ("prompts",), deep_over_shallow,
          {REPRODUCED: "In all three bases, and by the largest factor in the smallest."}),
    Claim("Prompt tuning's gap to full fine-tuning closes as the model grows", "2104.08691",
          "closed at billions of parameters", ("prompts",), prompt_gap,
          {REPRODUCED: "It narrows with every size and is far from closed; the bases also differ in their training."}),
    Claim("Reparameterized prefixes train more stably than direct ones, and slightly better", "2101.00190", "",
          ("prefix_rates",), reparameterized,
          {SIZE: "Each at its best rate they are level, and it is the MLP that breaks at the largest. The direct prefix wants "
                 "rates ten times as high; both start from real words' activations here, which may be what steadies it.",
           CONTRADICTED: "Each at its best rate they are level at most, and it is the MLP that breaks at the largest. Both "
                         "start from real words' activations here, which may be what steadies the direct prefix."}),
)
