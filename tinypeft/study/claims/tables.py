"""The rule, the claims and their verdicts as Markdown, from stored results."""
import functools
from collections.abc import Iterable
from pathlib import Path

from .. import markdown
from ..about import linked
from ..effects import __doc__ as effects_text
from ..stored import load_whole
from . import rule
from .rule import BY_CONSTRUCTION, NOT_MEASURED, VERDICTS, Claim, Judgement, judge
from .words import pm

__all__ = ["count", "details", "in_words", "judged", "table", "the_rule"]


def judged(folder: str | Path, claims: Iterable[Claim]) -> list[Judgement]:
    """The claims, judged by the results in `folder`: once, and again when one of its files has changed."""
    files = sorted(Path(folder).glob("*.json"))
    changed = tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files)
    return list(_judged(Path(folder), tuple(claims), changed))


@functools.lru_cache(maxsize=8)
def _judged(folder: Path, claims: tuple[Claim, ...], changed: tuple) -> list[Judgement]:
    return judge(claims, functools.cache(lambda name: load_whole(folder, name)))


# -- the page of claims ----------------------------------------------------------------------------
def the_rule() -> str:
    """The rule as `rule.py` states it, every δ, and the error as `effects.py` states it."""
    deltas = (f"δ is {rule.FINE_TUNING} for losses after training, {rule.QUANTIZATION} for the excess of rounding, "
              f"{rule.ACCURACY} of accuracy, {rule.SHARE}, {rule.RELATIVE}, {rule.CORRELATION}, {rule.LOGARITHM}, or "
              f"{rule.SLOPE}.")
    return f"```text\n{rule.__doc__.strip()}\n```\n\n{deltas}\n\n```text\n{effects_text.strip()}\n```"


def table(folder: str | Path, claims: Iterable[Claim]) -> str:
    """The count, the claims that count with effects, verdicts and reasons, and those that hold by construction."""
    judgements = judged(folder, claims)
    row = lambda j, measured: (j.claim.text, source(j.claim), *measured, j.why)
    counted = [row(j, (effects(j), f"{j.claim.delta}", said(j))) for j in judgements if not j.claim.by_construction]
    others = [row(j, [means(j)]) for j in judgements if j.claim.by_construction]
    parts = [count(judgements), markdown.table(("claim", "paper", "effect ± 95 % interval", "δ", "verdict", "why"), counted)]
    if others:
        parts += ["These hold by construction, and do not count:",
                  markdown.table(("claim", "paper", "measured here", "why it cannot fail here"), others)]
    return "\n\n".join(parts)


def details(judgements: Iterable[Judgement]) -> str:
    """What was fixed before the runs (contrast, kind, δ, what would refute it), the means behind the effects, and p."""
    rows = [(j.claim.text, j.claim.contrast, f"{j.claim.kind}, {j.claim.delta}", j.claim.refuted, means(j),
             f"{j.p:.2g}" if j.finding else "")
            for j in judgements if not j.claim.by_construction]
    return markdown.table(("claim", "contrast", "kind, δ", "refuted if", "means", "p (Holm)"), rows)


def count(judgements: Iterable[Judgement]) -> str:
    """How many claims count, how many of them have each verdict that was reached, and how many hold by construction."""
    said = [j.verdict for j in judgements if not j.claim.by_construction]
    others = sum(bool(j.claim.by_construction) for j in judgements)
    names = [name for name in (*VERDICTS, NOT_MEASURED) if name in said]
    return (f"{len(said)} claims: {'; '.join(f'{said.count(name)} {name}' for name in names)}"
            + f"; {others} more hold by construction" * bool(others) + ".")


# -- one claim -------------------------------------------------------------------------------------
def in_words(j: Judgement) -> str:
    """The verdict on a claim, its effects (of more than two the least and the greatest), and what was measured, in one line; or
    how to measure it."""
    if j.finding is None: return command(j.claim)
    if j.claim.by_construction: return f"{j.finding.measured}. It holds by construction: {j.why.removesuffix('.')}"
    shown = sorted(j.finding.contrasts, key=lambda c: c.effect.mean)
    if len(shown) > 2: shown = shown[0], shown[-1]
    between = ", and at most " if len(j.finding.contrasts) > 2 else "; "
    least = "at least " if len(j.finding.contrasts) > 2 else ""
    of = [f"{j.claim.delta.show(c.effect)} ({c.name})" for c in shown]
    return (f"**{j.verdict}**. Effect (plus supports the claim): {least}{between.join(of)}; δ is {j.claim.delta}. Measured: "
            f"{j.finding.measured}")


def means(j: Judgement) -> str:
    """Return what was measured, in words, or the command that measures it."""
    return j.finding.measured if j.finding else command(j.claim)


def effects(j: Judgement) -> str:
    """"part: effect ± half width" for every part, or the command that measures them."""
    if j.finding is None: return command(j.claim)
    return "; ".join(f"{c.name}: {j.claim.delta.show(c.effect)}" for c in j.finding.contrasts)


def said(j: Judgement) -> str:
    """The verdict, and beside it "larger bases come nearer" if a trend in size was measured."""
    if j.verdict in (NOT_MEASURED, BY_CONSTRUCTION): return j.verdict
    if not j.larger_come_nearer: return f"**{j.verdict}**"
    rises = " and ".join(f"by {pm(e, '{:.0f}', 100)} points {name}" for name, e in j.trend.items())
    return (f"**{j.verdict}**. Larger bases come nearer: from the smallest to the largest, three of each, the share of full "
            f"fine-tuning's gain on *domain* rises {rises}")


def source(claim: Claim) -> str:
    """The paper with its own numbers; for a claim of the study, the paper whose method it is about."""
    return "the study's own, on " * claim.own + linked(claim.paper) + f": {claim.number}" * bool(claim.number)


def command(claim: Claim) -> str:
    """How to measure what a claim lacks."""
    return f"not measured: `python -m tinypeft figures {' '.join(claim.needs)} --rerun`"

