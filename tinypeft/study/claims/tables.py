"""The claims as Markdown tables, from stored results."""
import functools
from collections.abc import Iterable
from pathlib import Path

from ..experiment import Results
from .rule import VERDICTS, Claim, verdict

__all__ = ["brief", "table"]


def table(folder: str | Path, claims: Iterable[Claim]) -> str:
    """Claim, paper, measured numbers, verdict and reason, from the results in `folder`. A claim whose results are missing
    names the command that measures them."""
    load = functools.cache(lambda name: Results.load(folder, name))
    rows = []
    for claim in claims:
        absent = missing(folder, claim)
        if absent:
            measured, judged, why = f"not measured: `python -m tinypeft figures {' '.join(absent)} --rerun`", "", ""
        else:
            finding = claim.test(load)
            measured, judged = finding.measured, verdict(finding)
            judged, why = f"**{judged}**", claim.why.get(judged, "")
        source = link(claim) + f": {claim.paper_number}" * bool(claim.paper_number)
        rows.append(f"| {claim.text} | {source} | {measured} | {judged} | {why} |")
    return "\n".join(["| claim | paper | measured here (mean ± 95 % interval) | verdict | why |", "|" + 5 * "---|", *rows])


def brief(folder: str | Path, claims: Iterable[Claim]) -> str:
    """Claim, paper and verdict, with a count of the verdicts; claims that were not measured are left out."""
    load = functools.cache(lambda name: Results.load(folder, name))
    judged = [(claim, verdict(claim.test(load))) for claim in claims if not missing(folder, claim)]
    counts = ", ".join(f"{sum(v == name for _, v in judged)} {name}" for name in VERDICTS)
    rows = [f"| {claim.text} | {link(claim)} | {v} |" for claim, v in judged]
    return "\n".join([f"{len(judged)} claims: {counts}.", "", "| claim | paper | here |", "|---|---|---|", *rows])


def missing(folder: str | Path, claim: Claim) -> list[str]:
    """Names of the claim's results that are not in `folder`."""
    return [name for name in claim.experiment if not (Path(folder) / f"{name}.json").exists()]


def link(claim: Claim) -> str:
    """The claim's paper as a Markdown link."""
    return f"[{claim.paper}](https://arxiv.org/abs/{claim.paper})"
