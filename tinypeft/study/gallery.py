"""figures/README.md: every picture with the sentence to remember, its lesson, and the commands that make it again."""
from pathlib import Path

from ..files import write_atomically
from .claims import CLAIMS, brief, table
from .pages import ROOT, main_job, over_seeds, write
from .pictures import PICTURES, draw, missing
from .quant_claims import QUANT_CLAIMS

__all__ = ["ALL_CLAIMS", "figures", "in_brief", "page"]

ALL_CLAIMS = *CLAIMS, *QUANT_CLAIMS

MADE_BY = {"compare": "python -m tinypeft --out figures"}
HEAD = """# Figures

Made by `python -m tinypeft figures` from the numbers in [`results/`](results), this page included: it is not edited by hand.
`python -m tinypeft figures NAME` draws one; `python -m tinypeft figures NAME --rerun` measures an experiment again, where that
is not done yet or no longer holds. Bands and bars are 95 % confidence intervals of the mean over seeds (Student's t).

## What the papers claim, and what was measured

A claim is *reproduced* if the whole interval lies on its side, *contradicted* if all of it lies clearly on the other, and
else *not at this size*: a base of 1.2 million parameters, 150 steps, five seeds. The rule stands in
[`claims.py`](../tinypeft/study/claims.py); ± is half of the 95 % interval over seeds, paired where two methods saw the same.

{claims}
"""


TABLES = {"The main job": (main_job, ("compare",)), "Every method over seeds": (over_seeds, ("methods", "baselines"))}


def figures(folder, names=None, say=print):
    """Draw the pictures into `folder`, from `folder`/results → name: `Drawing`. Without names: all of them, and the page;
    and if `folder` is the checkout's, the generated sections of all pages. `say` is told of each."""
    drawn = {}
    for name in names or PICTURES:
        lacking = missing(folder, name)
        if lacking:
            say(f"{name}: not drawn, there is no {' and no '.join(f'results/{n}.json' for n in lacking)}: "
                f"{'; '.join(command(n) for n in lacking)}")
        else:
            drawn[name] = draw(folder, name)
            say(str(Path(folder) / PICTURES[name].file(name)))
    if names is None:
        write_atomically(Path(folder) / "README.md", page(drawn, Path(folder) / "results"))
        say(str(Path(folder) / "README.md"))
        if Path(folder).resolve() == ROOT / "figures": write(say=say)
    return drawn


def command(results):
    """What measures results/NAME.json."""
    return MADE_BY.get(results, f"python -m tinypeft figures {results} --rerun")


def in_brief(results):
    """The claims for the README: claim, paper, verdict."""
    return brief(results, ALL_CLAIMS)


def page(drawn, results):
    """The page, for name → `Drawing`: the claims, then the pictures in the order of their lessons."""
    parts = [HEAD.replace("{claims}", table(results, ALL_CLAIMS))]
    for title, (section, needs) in TABLES.items():
        if all((results / f"{name}.json").exists() for name in needs): parts.append(f"## {title}\n\n{section(results)}")
    for name in sorted(drawn, key=lambda n: PICTURES[n].lesson):
        picture, drawing = PICTURES[name], drawn[name]
        made = f"`python -m tinypeft figures {name}`"
        if picture.needs:
            numbers = ", ".join(f"[{n}](results/{n}.json) (`{command(n)}`)" for n in picture.needs)
            made += f" · numbers: {numbers}"
        alt = drawing.alt.replace("[", "(").replace("]", ")")
        parts.append(f"## {picture.title}\n\n![{alt}]({picture.file(name)})\n\n**{drawing.sentence}** {drawing.detail}\n\n"
                     f"Lesson {picture.lesson} · {made}\n")
    return "\n".join(parts)
