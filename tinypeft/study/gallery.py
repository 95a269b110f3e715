"""figures/README.md: the claims, then every picture with its sentence, its lesson and the commands that make it.

The page's words on how the study was done are written by hand. `figures` fills its sections, as those of every other page.
"""
from collections.abc import Callable, Iterable
from pathlib import Path

from ..files import write_atomically
from .claims import ALL_CLAIMS, Judgement
from .claims.tables import details, judged, table, the_rule
from .pages import ROOT, filled, main_job, over_seeds, write
from .pictures import PICTURES, draw, missing
from .plot import Drawing

__all__ = ["filled_page", "figures"]

MADE_BY = {"compare": "python -m tinypeft --out figures",        # results that no experiment measures
           "compare_all": "python -m tinypeft compare --all --out figures",
           "benchmark_scaling": "python -m tests.benchmarks scaling"}
SECTIONS = {"claims": lambda results: table(results, ALL_CLAIMS),
            "details": lambda results: details(judged(results, ALL_CLAIMS)),
            "rule": lambda results: the_rule(),
            "main_job": main_job,
            "over_seeds": over_seeds}


def figures(folder: str | Path, names: Iterable[str] | None = None,
            say: Callable[[str], object] = print) -> dict[str, Drawing]:
    """Draw pictures into `folder` from the numbers in `folder`/results; returns name → `Drawing`.

    names: which ones; None draws all and, if `folder` is the checkout's, fills this page and the others. say: called with a
    line for each file. Raises ValueError if stored numbers lack what a picture reads.
    """
    drawn = {}
    for name in names or PICTURES:
        lacking = missing(folder, name)
        if lacking:
            say(f"{name}: not drawn, because {' and '.join(f'results/{n}.json' for n in lacking)} "
                f"{'is' if len(lacking) == 1 else 'are'} missing; to measure: {'; '.join(command(n) for n in lacking)}")
        else:
            try: drawn[name] = draw(folder, name)
            except KeyError as e:
                raise ValueError(f"{name}: the stored numbers lack what the picture reads ({e.args[0]}); to measure: "
                                 + "; ".join(map(command, PICTURES[name].needs))) from e
            say(str(Path(folder) / PICTURES[name].file(name)))
    if names is None and Path(folder).resolve() == ROOT / "figures":
        path = ROOT / "figures" / "README.md"
        write_atomically(path, filled_page(path.read_text("utf-8"), drawn, path.parent / "results"))
        say(str(path))
        write(say=say)
    return drawn


def command(results: str) -> str:
    """The command that measures results/NAME.json."""
    return MADE_BY.get(results, f"python -m tinypeft figures {results} --rerun")


def filled_page(text: str, drawn: dict[str, Drawing], results: Path) -> str:
    """The text of figures/README.md with its sections as `results` give them, and the pictures `drawn`."""
    return filled(text, {**SECTIONS, "pictures": lambda results: shown(drawn, judged(results, ALL_CLAIMS))}, results)


def shown(drawn: dict[str, Drawing], judgements: list[Judgement]) -> str:
    """The pictures in the order of their lessons, each with its description, its sentence, the claims that are about its
    experiment, and the commands that draw it and measure its numbers."""
    parts = []
    for name in sorted(drawn, key=lambda n: PICTURES[n].lesson):
        picture, drawing = PICTURES[name], drawn[name]
        about = [f"*{j.claim.text}* ({j.verdict})" for j in judgements if j.names[:1] == picture.needs[:1]]
        claims = f"Claims on these numbers: {'; '.join(about)}.\n\n" if about else ""
        alt = drawing.alt.replace("[", "(").replace("]", ")")
        made = f"Lesson {picture.lesson} · `python -m tinypeft figures {name}` draws it{numbers(picture.needs)}"
        parts.append(f"## {picture.title}\n\n![{alt}]({picture.file(name)})\n\n**{drawing.sentence}** {drawing.detail}\n\n"
                     f"{claims}{made}\n")
    return "\n".join(parts)


def numbers(needs: tuple[str, ...]) -> str:
    """The files that a picture reads, and the commands that measure them again."""
    if not needs: return ""
    files = ", ".join(f"[{n}](results/{n}.json)" for n in needs)
    measured = [n for n in needs if n not in MADE_BY]
    again = [f"python -m tinypeft figures {' '.join(measured)} --check --all"] * bool(measured)
    again += [MADE_BY[n] for n in needs if n in MADE_BY]
    return f" · numbers: {files}, measured again by " + " and ".join(f"`{c}`" for c in again)
