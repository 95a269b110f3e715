"""The rule, the claims and their verdicts as Markdown, from stored results."""
import functools
from collections.abc import Iterable
from pathlib import Path

from .. import markdown
from ..about import linked
from ..effects import __doc__ as effects_text
from ..stored import load_whole
from . import deltas, rule
from .rule import BY_CONSTRUCTION, NOT_MEASURED, VERDICTS, Claim, Judgement, judge

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
    each = (f"δ is {deltas.FINE_TUNING} for losses after training, {deltas.QUANTIZATION} for the excess of rounding, "
            f"{deltas.ACCURACY} of accuracy, {deltas.SHARE}, {deltas.RELATIVE}, {deltas.CORRELATION}, {deltas.LOGARITHM}, or "
            f"{deltas.SLOPE}.")
    return f"```text\n{rule.__doc__.strip()}\n```\n\n{each}\n\n```text\n{effects_text.strip()}\n```"


def table(folder: str | Path, claims: Iterable[Claim]) -> str:
    """The count, the claims that count with effects, verdicts and reasons, and those that hold by construction."""
    judgements = judged(folder, claims)
    row = lambda j, measured: (j.claim.text, source(j.claim), *measured, j.why)
    counted = [row(j, (effects(j), f"{j.claim.delta}", said(j))) for j in judgements if not j.claim.by_construction]
    others = [row(j, [j.means]) for j in judgements if j.claim.by_construction]
    parts = [count(judgements), markdown.table(("claim", "paper", "effect ± 95 % interval", "δ", "verdict", "why"), counted)]
    if others:
        parts += ["These hold by construction, and do not count:",
                  markdown.table(("claim", "paper", "measured here", "why it cannot fail here"), others)]
    return "\n\n".join(parts)


def details(judgements: Iterable[Judgement]) -> str:
    """What was fixed before the runs (contrast, kind, δ, what would refute it), the means behind the effects, and p."""
    rows = [(j.claim.text, j.claim.contrast, f"{j.claim.kind}, {j.claim.delta}", j.claim.refuted, j.means,
             f"{j.p:.2g}" if j.parts else "")
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
    if not j.parts: return j.means
    if j.claim.by_construction: return f"{j.means}. It holds by construction: {j.why.removesuffix('.')}"
    shown = sorted(j.parts, key=lambda name: j.parts[name].mean)
    if len(shown) > 2: shown = shown[0], shown[-1]
    of = [f"{j.claim.delta.show(j.parts[name])} ({name})" for name in shown]
    effects = f"at least {', and at most '.join(of)}" if len(j.parts) > 2 else "; ".join(of)
    return f"**{j.verdict}**. Effect (plus supports the claim): {effects}; δ is {j.claim.delta}. Measured: {j.means}"


def effects(j: Judgement) -> str:
    """"part: effect ± half width" for every part, or the command that measures them."""
    return "; ".join(f"{name}: {j.claim.delta.show(e)}" for name, e in j.parts.items()) or j.means


def said(j: Judgement) -> str:
    """The verdict, and beside it "larger bases come nearer" if a trend in size was measured."""
    if j.verdict in (NOT_MEASURED, BY_CONSTRUCTION): return j.verdict
    if not j.larger_come_nearer: return f"**{j.verdict}**"
    rises = " and ".join(f"by {100 * e:.0f} points {name}" for name, e in j.trend.items())
    return (f"**{j.verdict}**. Larger bases come nearer: from the smallest to the largest, three of each, the share of full "
            f"fine-tuning's gain on *domain* rises {rises}")


def source(claim: Claim) -> str:
    """The paper with its own numbers; for a claim of the study, the paper whose method it is about."""
    return "the study's own, on " * claim.own + linked(claim.paper) + f": {claim.number}" * bool(claim.number)
