"""figures/README.md: the claims, then every picture with its sentence, its lesson and the commands that make it."""
from collections.abc import Callable, Iterable
from pathlib import Path

from ..files import write_atomically
from .claims import ALL_CLAIMS
from .claims.tables import details, judged, table, the_rule
from .pages import ROOT, main_job, over_seeds, write
from .pictures import PICTURES, draw, missing
from .plot import Drawing

__all__ = ["figures", "page"]

MADE_BY = {"compare": "python -m tinypeft --out figures",        # results that no experiment measures
           "compare_all": "python -m tinypeft compare --all --out figures",
           "benchmark_scaling": "python -m tests.benchmarks scaling"}
# The commits of the contrasts, before any run with these seeds, and of what was changed when the first had run.
FIXED, CHANGED = "3e8f3dde", "7486b5a8"
HEAD = """# Figures

`python -m tinypeft figures` makes the pictures and this page from the numbers in [`results/`](results); do not edit the page
by hand. `python -m tinypeft figures NAME` draws one picture. `python -m tinypeft figures NAME --rerun` measures the
conditions of an experiment that are missing, or whose value or settings are others today. `figures --check` measures some
results again, with `--all` one run of every condition, and says which numbers moved. Bands and bars are 95 % intervals
over seeds and, where losses were tested on one text, over its documents. Of several means beside each other they leave out
what all share, because all were tested on the same text (Cousineau, 2005; Morey, 2008).

## What the papers claim, and what was measured

Every claim has one contrast, the difference that matters in it (δ), and a rule that judges it. All three, and the seeds of
training, were committed before the runs that judge them (commit {fixed}); the seeds of rounding, and new parts of the test text
for it, half an hour later, before its results (3fd97994). Commit {changed}, 45 minutes after the first, when the first runs had
ended, changed the error: how documents enter it, its quantiles (Cochran and Cox's in place of Satterthwaite's, wider for most
effects), and that sizes of bases have no pairs. Since then a part that is level refutes nothing, and the claim on longer
pretraining is about six bases at once, not three of each size. By the code of the first commit three verdicts would be others:
the claims on the MLP alone and on a larger model at 3 bits would be *not shown*, and that on PiSSA's lead *contradicted, size
open*. The seeds had not been used before; the shipped bases, every fourth document of the test text, and parts of the base's
own test text had.

An effect is positive where it supports the claim, and has the unit of its δ. ± is half of the 95 % interval, paired where
all arms saw the same seeds and texts; how it is computed stands below the rule. It is over seeds and, where a loss was tested,
the documents of the test text; of ranks, best rates and lengths over seeds alone; of rounding over eight draws of calibration
and test text, the latter without a document in common; of sizes over bases that were pretrained with seeds of their own, which
make no pairs, and over the text.

*domain* is to continue Matplotlib's documentation, which the base never saw, and *classify* asks which package a sentence
documents. Excess is the loss that rounding adds. Where outliers are planted, a few features of every layer norm's output, which
query, key, value and mlp.up read, were made larger on purpose. What is called a conjecture was not measured.
Measured means are those of all that an effect is computed from. The experiment stands in brackets behind them, `small:1` is a
base of the size *small* that was drawn with seed 1, and a list has a mean for each of its entries.


{claims}

<details><summary>What was fixed before the runs, the means behind the effects, and p</summary>

{details}

</details>

<details><summary>The rule, and the error</summary>

{rule}

</details>
"""


TABLES = {"The main job": (main_job, ("compare",)), "Every method over seeds": (over_seeds, ("methods", "baselines"))}


def figures(folder: str | Path, names: Iterable[str] | None = None,
            say: Callable[[str], object] = print) -> dict[str, Drawing]:
    """Draw pictures into `folder` from the numbers in `folder`/results; returns name → `Drawing`.

    names: which ones; None draws all and writes the page as well and, if `folder` is the checkout's, the generated sections
    of the other pages. say: called with a line for each file. Raises ValueError if stored numbers lack what a picture reads.
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
    if names is None:
        write_atomically(Path(folder) / "README.md", page(drawn, Path(folder) / "results"))
        say(str(Path(folder) / "README.md"))
        if Path(folder).resolve() == ROOT / "figures": write(say=say)
    return drawn


def command(results: str) -> str:
    """The command that measures results/NAME.json."""
    return MADE_BY.get(results, f"python -m tinypeft figures {results} --rerun")


def page(drawn: dict[str, Drawing], results: str | Path) -> str:
    """The text of the page: the claims, then the pictures `drawn` in the order of their lessons."""
    parts = [HEAD.format(claims=table(results, ALL_CLAIMS), details=details(judged(results, ALL_CLAIMS)), rule=the_rule(),
                         fixed=FIXED, changed=CHANGED)]
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
