"""Numbers and verdicts of the study inside the text of lessons, from figures/results.

    {study rank: 8, loss}                       mean over seeds ± half of its 95 % interval
    {study rank: 8, loss, mean}                 without the interval
    {study rank: 1 - 64, loss}                  a difference, paired, with its interval
    {study rank: 1, loss, of 64 over frozen}    the share of what 64 gains over frozen, in per cent
    {study dylora: DyLoRA, loss[0]}             the first entry of a metric that is a list
    {claim A very small rank}                   numbers and verdict of the claim that begins so
    {picture rank}                              a picture's sentence, and what it shows

Behind the metric may stand `mean`; `bits`, for a loss in nats that is shown in bits; and a form,
`as .2f`, `as %` or `as .1%`. A share names conditions of the experiment or of `methods`. What a
placeholder names must exist, or the lesson is not built. Intervals are the study's: over seeds and
the documents of the test text; that of a mean leaves out what all arms of its experiment share.
"""
from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..study import effects

if TYPE_CHECKING:
    from ..study.experiment import Results

__all__ = ["PLACEHOLDER", "filled"]

FIGURES = Path(__file__).parents[2] / "figures"
PLACEHOLDER = re.compile(r"(?<!\w)\{(study|claim|picture)\b([^{}]*)\}")
OPTION = re.compile(r"^(.+), (mean|bits|as \S+)$")
SHARE = re.compile(r"^(.+), of (.+) over (.+)$")
METRIC = re.compile(r"^(.+), (\w+)(?:\[(-?\d+)\])?$")
ELSEWHERE = "methods"                                    # has "full" and "frozen", for shares


def filled(text: str, lesson: str, line: int = 0) -> str:
    """The text with the study's numbers in place of its placeholders.

    lesson, line: where the text begins, for the error. Raises ValueError for a placeholder that
    names nothing; the error says which names there are.
    """
    def of(match):
        kind, body = match[1], " ".join(match[2].split())
        try:
            return {"study": number, "claim": claim, "picture": picture}[kind](body)
        except (KeyError, ValueError, FileNotFoundError) as e:
            at = line + text[:match.start()].count("\n")
            said = e.args[0] if isinstance(e, KeyError) else e
            raise ValueError(f"{lesson}, line {at}: {{{kind} {body}}}: {said}") from e
    return PLACEHOLDER.sub(of, text)


# -- numbers -------------------------------------------------------------------------------------
def number(body: str) -> str:
    """The words for "EXPERIMENT: CONDITION, METRIC, …"."""
    name, colon, rest = body.partition(": ")
    if not colon: raise ValueError("expected {study EXPERIMENT: CONDITION, METRIC}")
    results, options = load(name), []
    while match := OPTION.match(rest):
        rest = match[1]
        options.append(match[2])
    share = SHARE.match(rest)
    if share: rest = share[1]
    match = METRIC.match(rest)
    if not match: raise ValueError("expected CONDITION, METRIC behind the experiment's name")
    condition, metric = match[1], match.group(2, 3)
    parts = None if share else difference(condition, results.conditions)
    if share:
        ends = [(results if c in results.conditions else load(ELSEWHERE), c)
                for c in share.group(2, 3)]
        arm, full, frozen = paired([(results, condition), *ends], metric)
        e = ((frozen - arm) / (frozen - full)).effect
    elif parts:
        a, b = paired([(results, part) for part in parts], metric)
        e = (a - b).effect
    else:
        paired([(results, condition)], metric)           # says what does not exist
        place = () if metric[1] is None else int(metric[1])
        both = results.mean, results.interval
        mean, half = (float(of(condition, metric[0])[place]) for of in both)
        return words(mean, half, options, whole=whole(results, [condition], metric[0]))
    return words(e.mean, e.half, options, share=bool(share), signed=bool(parts),
                 whole=bool(parts) and whole(results, parts, metric[0]))


def whole(results: Results, conditions: Iterable[str], metric: str) -> bool:
    """Are all stored numbers of a metric whole ones?"""
    return all((v == v.round()).all() for v in (results.values(c, metric) for c in conditions))


def load(name: str) -> Results:
    """The stored results of an experiment."""
    from ..study.experiment import Results
    from ..study.experiments import EXPERIMENTS
    if name not in EXPERIMENTS:
        raise KeyError(f"there is no experiment {name!r}; there are {', '.join(EXPERIMENTS)}")
    file = FIGURES / "results" / f"{name}.json"
    if not file.exists(): Results.read(file.parent, name)        # raises, and says what to do
    return _loaded(file, file.stat().st_mtime_ns)


@functools.cache
def _loaded(file, changed):
    """Read once, and again when the file has changed."""
    from ..study.experiment import Results
    from ..study.stored import texts
    return Results(Results.read(file.parent, file.stem), texts(file.parent))


def difference(condition: str, labels: Iterable[str]) -> tuple[str, str] | None:
    """(A, B) if the text is "A - B" for two of the labels and is no label itself."""
    labels = set(labels)
    if condition in labels: return None
    pieces = condition.split(" - ")
    cuts = ((" - ".join(pieces[:i]), " - ".join(pieces[i:])) for i in range(1, len(pieces)))
    return next((cut for cut in cuts if labels.issuperset(cut)), None)


def paired(of: list[tuple[Results, str]], metric: tuple[str, str | None]) -> list[effects.Rows]:
    """The metric of each (results, condition), by seed and document."""
    name, entry = metric
    values = [results.values(label, name) for results, label in of]      # KeyError names what is
    shape = values[0].shape[1:]
    if entry is not None and (len(shape) != 1 or not -shape[0] <= int(entry) < shape[0]):
        raise ValueError(f"{name} has shape {shape}, and so no entry [{entry}]")
    if entry is None and shape:
        raise ValueError(f"{name} is a list of shape {shape}; write {name}[0] for its first entry")
    i = None if entry is None else int(entry)
    return [effects.read(results, label, name, i) for results, label in of]


def words(mean: float, half: float, options: Iterable[str], share: bool = False,
          signed: bool = False, whole: bool = False) -> str:
    """"mean ± half width", in the form that the options ask for. whole: without decimals."""
    form, interval, unit = "%" if share else ",.0f" if whole else ".3f", True, ""
    for option in options:
        if option == "mean": interval = False
        elif option == "bits": mean, half = mean / math.log(2), half / math.log(2)
        else: form = option.removeprefix("as ")
    if form.endswith("%"):
        mean, half, form = 100 * mean, 100 * half, (form[:-1] or ".0") + "f"
        unit = " points" if signed else " %"
    text = format(mean, ("+" if signed else "") + form).replace("-", "−")
    if interval and 0 < half < math.inf: text += f" ± {format(half, form)}"
    return text + unit


# -- sentences -----------------------------------------------------------------------------------
def claim(beginning: str) -> str:
    """What was measured for the claim that begins so, and the verdict."""
    from ..study import claims
    from ..study.claims import tables
    found = [c for c in claims.ALL_CLAIMS if c.text.startswith(beginning)]
    if len(found) != 1 or not beginning:
        there = "\n  ".join(c.text for c in found or claims.ALL_CLAIMS)
        raise KeyError(f"{len(found) or 'no'} claims of the study begin so; there are\n  {there}")
    (judged,) = (j for j in tables.judged(FIGURES / "results", claims.ALL_CLAIMS)
                 if j.claim is found[0])
    return f"The study, on the claim *{found[0].text}*: {tables.in_words(judged)}."


def picture(name: str) -> str:
    """A picture's sentence, and what it shows."""
    from ..study import pictures
    if name not in pictures.PICTURES:
        raise KeyError(f"there is no picture {name!r}; there are {', '.join(pictures.PICTURES)}")
    drawn = pictures.drawing(FIGURES, name)
    return f"The study, {name}: *{drawn.sentence}* {drawn.alt}"
