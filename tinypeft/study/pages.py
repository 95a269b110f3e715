"""The pages of the repository, and what in them is generated from stored results.

    python -m tinypeft figures        draws every picture, writes figures/README.md, and calls `write` below

A page is a Markdown file in the folder it describes. The text between `<!-- name -->` and `<!-- /name -->` is generated:
`SECTIONS` names the function that makes it from the folder of results. Everything else on a page is written by hand and
holds no measured number. A test compares every page with what `filled` makes of it.
"""
from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path

from ..files import write_atomically
from ..peft import METHODS, Method, attach
from ..peft.methods import FAMILIES
from ..pretrained import load_base, training_record
from ..quant import SCHEMES
from . import glance, k_quants, speed
from .about import about, class_link, code, lesson_map, linked, name_of
from .claims import ALL_CLAIMS
from .claims.tables import count, judged
from .compared import COMPARED_SCHEMES
from .effects import read as read_rows
from .experiment import Results
from .experiments import EXPERIMENTS
from .experiments import smollm2 as real_model
from .experiments.arms import SURVEYED
from .markdown import beside, listed, pm, read, table
from .pictures import drawing
from .stored import load
from .successors import successors

__all__ = ["ROOT", "SECTIONS", "filled", "main_job", "on_first_page", "over_seeds", "write"]

ROOT = Path(__file__).parents[2]                         # of the checkout


# -- the pages -----------------------------------------------------------------------------------
def write(root: Path = ROOT, say: Callable[[str], None] = print) -> None:
    """Generate the sections of every page under `root` again, from `root`/figures/results. `say` is told each page."""
    for name, sections in SECTIONS.items():
        path = root / name
        write_atomically(path, filled(path.read_text("utf-8"), sections, root / "figures" / "results"))
        say(str(path))


def filled(text: str, sections: dict[str, Callable[[Path], str]], results: Path) -> str:
    """A page's text with its sections as `results` gives them; a section of one line stays within its line.

    Raises ValueError if a section has no place in the text.
    """
    for name, section in sections.items():
        parts = re.split(f"(<!-- /?{name} -->)", text)
        if parts[1::2] != [f"<!-- {name} -->", f"<!-- /{name} -->"]:
            raise ValueError(f"the page needs <!-- {name} --> and, after it, <!-- /{name} -->, each of them once")
        before, start, _, end, after = parts
        made = section(results)
        text = f"{before}{start}\n{made}\n{end}{after}" if "\n" in made else f"{before}{start}{made}{end}{after}"
    return text


# -- methods and schemes -------------------------------------------------------------------------
FIRST_PAGE = "full", "adapter", "prefix", "prompt", "lora", "adalora", "uniform", "nf4", "llm_int8", "gptq", "awq", "fake_quant"


def picture(results: Path) -> str:
    """The picture that `python -m tinypeft` draws. The tables below it have the numbers, so its sentence describes it."""
    alt = html.escape(f"Dots with intervals. {drawing(results.parent, 'compare').sentence}")
    return f'<img src="figures/compare.svg" width="614" alt="{alt}">'


def first_page(results: Path, kind: str, folder: str, classes: dict[str, type], section: Callable) -> str:
    """Return the first page's methods or schemes, and how to find all of them. section: `methods` or `schemes`."""
    some = section(results, [name for name in classes if name in FIRST_PAGE])
    names = ", ".join(classes)
    return f"{some}\n\nThe package has {len(classes)} [{kind}](tinypeft/{folder}/README.md): {names}."


def on_first_page(results: Path) -> dict[str, list[str]]:
    """Return experiment → the conditions whose numbers the first page shows."""
    labels = [nearest(load(results, "schemes"), name) for name in SCHEMES if name in FIRST_PAGE]
    return {"methods": ["frozen", *(name for name in METHODS if name in FIRST_PAGE)], "schemes": list(filter(None, labels))}


def methods(results: Path, names: list[str], prefix: str = "", papers: bool = False) -> str:
    """Methods with their equations, and what they reached over seeds. prefix: the path from the page to the checkout. papers:
    with their papers, and with the difference to full fine-tuning."""
    r, settings = load(results, "methods"), read(results, "methods")["settings"]
    rows = [("the frozen base", "", *[""] * papers, "–", f"{r.mean('frozen', 'loss'):.3f}")]
    for name in names:
        loss = lambda name: beside(r, name, "full") if papers else f"{r.mean(name, 'loss'):.3f}"
        measured = (f"{100 * r.mean(name, 'share'):.2f} %", loss(name)) if name in r.conditions else ("", "")
        rows.append((*known(name, METHODS, prefix, papers), *measured))
    return (f"Test loss on documentation that the base never saw, after {settings['steps']} training steps, over "
            f"{len(r.seeds)} seeds"
            + "; in brackets the difference to full fine-tuning ± half of its 95 % interval, paired" * papers + ". LoRA is on "
            "two matrices of a block here and AdaLoRA on six, so do not compare these two.\n\n"
            + table(("method", "equation", *["papers"] * papers, "trained", "nats/token"), rows))


def by_family(results: Path) -> str:
    """Every method, by what it changes: its equation, its papers, the rank of its change, what it trains and takes, and
    whether it merges.

    What is trained, with which settings, and the time of a step, are those of the benchmark of methods on the base."""
    measured = speed.runs(results, "methods")[0]["tables"]["methods"]
    lora = measured["lora"]["ms"]
    rows = []
    for family, classes in FAMILIES.items():
        rows.append((f"**{family}**", *[""] * 6))
        for name, cls in classes.items():
            found = measured.get(name)
            cost = (trained(found), f"{found['ms'] / lora:.2f}") if found else ("–", "–")
            rows.append((*known(name, METHODS, "../../", papers=True), about(name).rank, *cost, merges(cls)))
    return table(("method", "equation", "papers", "rank", "trained", "step over LoRA's", "merges"), rows)


def trained(measured: dict) -> str:
    """The count of what is trained, and the settings that it is for."""
    settings = measured["method"].partition("(")[2].removesuffix(")`")
    shown = re.sub(r"\((\d+), (?:\d+, ){2,}(\d+)\)", r"(\1, …, \2)", settings)              # of many tokens the first and last
    return f"{measured['trained']:,}" + f" with `{shown}`" * bool(shown)


def merges(cls: type[Method]) -> str:
    """Say whether what a method learns, at its defaults on the base, can become weights; "–" if it changes nothing there."""
    tuned = attach(load_base(), cls(), head=2)
    if not tuned.trained and not tuned.wrappers and tuned.virtual is None:
        return "–"
    mergeable = all(w.is_mergeable for w in tuned.wrappers.values()) and tuned.virtual is None
    return "yes" if mergeable else "no"


def schemes(results: Path, names: list[str], prefix: str = "", papers: bool = False) -> str:
    """Schemes with their equations, and the loss that each adds at its setting nearest to 4.5 bits per weight."""
    r, rows = load(results, "schemes"), []
    for name in names:
        label = nearest(r, name)
        measured = [""] * 3
        if label:
            added = pm(r.mean(label, "excess"), r.interval(label, "excess"))
            measured = label.removesuffix(" *"), f"{r.mean(label, 'bits'):.2f}", added
        rows.append((*known(name, SCHEMES, prefix, papers), *measured))
    return (f"Loss that quantizing adds to the same model's test loss, over {len(r.seeds)} calibration sets.\n\n"
            + table(("scheme", "equation", *["papers"] * papers, "measured", "bits/weight", "nats/token"), rows))


def nearest(r: Results, name: str) -> str | None:
    """Return the label of a scheme's setting that is nearest to 4.5 bits per weight; None if none was measured."""
    labels = [label for label, scheme in COMPARED_SCHEMES.items() if name_of(scheme) == name and label in r.conditions]
    return min(labels, key=lambda label: abs(r.mean(label, "bits") - 4.5), default=None)


def known(name: str, classes: dict[str, type], prefix: str, papers: bool) -> tuple[str, ...]:
    """The cells that say what a method or scheme is: its class, linked to its file, its equation, and its papers."""
    link, equation = class_link(classes[name], prefix), code(about(name).equation)
    return (f"`{name}`: {link}", equation, linked(*about(name).papers)) if papers else (link, equation)


def claims(results: Path) -> str:
    """How many claims there are, and how many of them have which verdict."""
    return count(judged(results, ALL_CLAIMS)).rstrip(".")


# -- figures/README.md: the tables that are too long for the first page ---------------------------
def main_job(results: Path) -> str:
    """The tables that `python -m tinypeft` prints."""
    return f"```text\n{glance.tables(read(results, 'compare'))}\n```"


def over_seeds(results: Path) -> str:
    """Every method on both tasks over seeds, and the baselines that need no language model."""
    r, baselines = load(results, "methods"), load(results, "baselines").record["runs"]
    losses, accuracies, settings = baselines["domain"]["0"], baselines["classify"]["0"], r.record["settings"]
    ahead = (min(losses.values()) < min(r.mean(c, "loss") for c in r.conditions)
             and max(accuracies.values()) > max(r.mean(c, "accuracy") for c in r.conditions))
    return (f"{settings['steps']} steps on *domain* and {settings['classify_steps']} on *classify*, {len(r.seeds)} seeds. "
            f"{beats_the_frozen(r, 'domain', 'loss', -1)} {beats_the_frozen(r, 'classify', 'accuracy', 1)}\n\n"
            f"{on_both_tasks(r)}\n\n"
            f"Baselines without a language model, on the same training split: {listed(losses, unit=' nats/token')}, "
            f"{listed(accuracies, '.1%')}."
            + " The 5-gram model and the bag of words are ahead of every method here." * bool(ahead))


def beats_the_frozen(r: Results, task: str, metric: str, sign: int) -> str:
    """Name the methods not shown to beat the frozen base in a metric that should rise (sign 1) or fall (sign −1)."""
    rows = lambda c: read_rows(r, c, metric)
    gain = lambda c: (rows(c) - rows("frozen") if sign > 0 else rows("frozen") - rows(c)).effect
    lacks = [f"`{c}`" for c in r.conditions if c != "frozen" and gain(c).low <= 0]
    beaten = f"On *{task}* every other method is shown to beat `LinearProbe`"
    return beaten + f", but for {', '.join(lacks)}" * bool(lacks) + "."


def on_both_tasks(r: Results) -> str:
    """Every method on both tasks: means over seeds, and in brackets the paired difference to full fine-tuning ± half of its
    95 % interval."""
    arms = EXPERIMENTS["methods"].conditions
    share = lambda c: f"{100 * r.mean(c, 'share'):.2f} %" if c != "frozen" else "–"
    rows = [(f"`{arms[c].method}`", share(c), beside(r, c, "full"), beside(r, c, "full", "accuracy", 1, 100),
             beside(r, c, "full", "forgetting")) for c in r.conditions]
    return table(("method", "trained", "*domain*, nats/token", "*classify*, accuracy in %", "forgetting, nats/token"), rows)


# -- a real model --------------------------------------------------------------------------------
def smollm2(results: Path) -> str:
    """Every method on SmolLM2."""
    r = load(results, "smollm2")
    s = r.record["settings"]
    return (f"{real_model.table(r)}\n\nThe test text after {s['steps']} steps of {s['batch_size']} × 128 tokens, over "
            f"{len(r.seeds)} seeds. In brackets: the difference to full fine-tuning, paired over seeds and documents, ± half "
            "of its 95 % interval. `python -m tinypeft figures smollm2_rates smollm2 --rerun` measures it again.")


# -- the base ------------------------------------------------------------------------------------
def base(results: Path) -> str:
    """What the base is, how it was trained and what it reached."""
    record = training_record()
    c, recipe, corpus, r = record["config"], record["recipe"], record["corpus"]["tokens"], record["results"]
    cell = lambda name: f"{r[name]['loss']:.3f} ({r[name]['bits_per_byte']:.3f})"
    texts = {"Python, NumPy and SciPy: families of documents it never saw": "base test",
             "Matplotlib: a library it never saw": "domain test"}
    epochs = recipe["steps"] * recipe["batch_size"] * c["context_length"] / corpus["train"]
    return (f"The base has GPT-2's architecture and {record['parameters']:,} parameters: d = {c['d_model']}, {c['n_layers']} "
            f"layers, {c['n_heads']} heads, a context of {c['context_length']} tokens, and a vocabulary of "
            f"{c['vocab_size']:,} byte-level BPE tokens. It was trained for {recipe['steps']:,} steps of "
            f"{recipe['batch_size']} × {c['context_length']} tokens, in {record['seconds'] / 60:.0f} minutes on two cores.\n\n"
            + table(("test text", "the base", "5-gram"), [(text, cell(n), cell(f"5-gram {n}")) for text, n in texts.items()])
            + "\n\nLosses are in nats per token, and in brackets in bits per byte. The 5-gram model is interpolated "
              "Kneser–Ney; its discounts were tuned on the same validation text.\n\n"
              f"The base saw its {corpus['train']:,} training tokens about {epochs:.0f} times. It fits them better "
              f"({record['loss_curve'][-1][1]:.1f} nats per token at the end) than text it did not see.")


def draws(results: Path) -> str:
    """The bases of the study, their hashes, and their losses on domain."""
    r = load(results, "prompts")
    bases = [c.removeprefix("full ") for c in r.conditions if c.startswith("full ")]
    of = lambda base: next(iter(r.record["runs"][f"full {base}"].values()))
    rows = [(f"`{base}`", f"{of(base)['parameters']:,}", f"`{of(base)['weights']}`", f"{of(base)['before']:.3f}")
            for base in bases]
    return table(("base", "parameters", "hash of the weights", "nats/token on Matplotlib's documentation"), rows)


SECTIONS = {
    "README.md": {"picture": picture, "claims": claims,
                  "methods": lambda results: first_page(results, "methods", "peft", METHODS, methods),
                  "schemes": lambda results: first_page(results, "schemes", "quant", SCHEMES, schemes)},
    "tinypeft/peft/README.md": {"methods": by_family,
                                "survey": lambda results: methods(results, list(SURVEYED), "../../", papers=True),
                                "successors": successors},
    "tinypeft/quant/README.md": {"schemes": lambda results: schemes(results, list(SCHEMES), "../../", papers=True)},
    "tinypeft/quant/K_QUANTS.md": k_quants.SECTIONS,
    "tests/benchmarks/README.md": speed.SECTIONS,
    "tinypeft/interop/README.md": {"smollm2": smollm2},
    "tinypeft/pretrained/README.md": {"base": base, "draws": draws},
    "lessons/GLOSSARY.md": {"map": lambda results: lesson_map()},
}
