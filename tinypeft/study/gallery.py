"""figures/README.md: the claims, then every picture with its sentence, its lesson and the commands that make it.

The page's words on how the study was done are written by hand. `figures` fills its sections, as those of every other page.
"""
from collections.abc import Callable, Iterable
from pathlib import Path

from ..files import write_atomically
from .claims import ALL_CLAIMS
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
    return filled(text, {**SECTIONS, "pictures": lambda results: shown(drawn)}, results)


def shown(drawn: dict[str, Drawing]) -> str:
    """The pictures in the order of their lessons, each with its description, its sentence, and the commands that make it."""
    parts = []
    for name in sorted(drawn, key=lambda n: PICTURES[n].lesson):
        picture, drawing = PICTURES[name], drawn[name]
        numbers = ", ".join(f"[{n}](results/{n}.json) (`{command(n)}`)" for n in picture.needs)
        made = f"`python -m tinypeft figures {name}`" + f" · numbers: {numbers}" * bool(numbers)
        alt = drawing.alt.replace("[", "(").replace("]", ")")
        parts.append(f"## {picture.title}\n\n![{alt}]({picture.file(name)})\n\n**{drawing.sentence}** {drawing.detail}\n\n"
                     f"Lesson {picture.lesson} · {made}\n")
    return "\n".join(parts)
