"""The record of the main job (`compare.py`) as tables and as a picture."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from . import plot
from .compared import TRAINED, TRAINED_AS_LONG
from .markdown import aligned, read

__all__ = ["draw", "picture", "stored", "tables"]


def by_kind(schemes: list[dict]) -> tuple[list[dict], list[dict]]:
    """Return the rows of what is rounded at once, and of what is trained: schemes, and the float32
    model beside them."""
    trained = [r for r in schemes if r["label"] in TRAINED | {TRAINED_AS_LONG}]
    return [r for r in schemes if r not in trained], trained


def checks(record: dict) -> list[dict]:
    """Return what the study says of the rows where something varies."""
    rows = record["methods"] + record["schemes"]
    return [r["study"] for r in rows if "study" in r and r["study"]["half"]]


def count(found: list[dict]) -> str:
    return f"{sum(study['inside'] for study in found)} of {len(found)}"


# -- tables ----------------------------------------------------------------------------------------
def tables(record: dict) -> str:
    """Return the record as text: methods, schemes that round at once, schemes that train, and
    notes."""
    methods, schemes = record["methods"], record["schemes"]
    head, study = (["the study", ""], beside) if checks(record) else ([], lambda r, sign="": [])
    parts = [table(["fine-tuning", "trained", "share", "loss", "share of full's gain", *head], [
        [r["label"], f"{r['trained']:,}", f"{100 * r['share']:.2f} %", pm(r["loss"], r["interval"]),
         f"{round(100 * r['gain'])} %", *study(r)] for r in methods])]
    titles = "rounding at once", "rounding and training"
    for title, rows in zip(titles, by_kind(schemes), strict=True):
        if not rows: continue
        columns = ["bits/weight", "of all", "KiB", "error of logits", "loss added"]
        parts.append(table([title, *columns, *head], [
            [r["label"], f"{r['bits']:.3f}", f"{r['bits_in_all']:.3f}", f"{r['bytes'] / 1024:,.0f}",
             f"{100 * r['error']:.2f} %", f"{r['excess']:+.3f}", *study(r, "+")] for r in rows]))
    return "\n\n".join([*parts, "\n".join(notes(record))])


def table(head: list[str], rows: list[list[str]]) -> str:
    first, *others = aligned([head, *rows])
    return "\n".join([first.rstrip(), "-" * len(first), *(line.rstrip() for line in others)])


def pm(mean: float, half: float | None, sign: str = "") -> str:
    """Return "mean ± half" in three decimals. half: None if it is not known, 0 where nothing
    varies."""
    return f"{mean:{sign}.3f} ± {half:.3f}" if half else f"{mean:{sign}.3f}"


def beside(r: dict, sign: str = "") -> list[str]:
    """Return the study's interval, and whether the row's number is inside."""
    if "study" not in r: return ["–", ""]
    study = r["study"]
    return [pm(study["mean"], study["half"], sign), "inside" if study["inside"] else "OUTSIDE"]


def notes(record: dict) -> list[str]:
    """Return what the tables mean, one sentence a line."""
    n, schemes = len(record["seeds"]), record["schemes"]
    method = {r["name"]: r["method"] for r in record["methods"]}
    said = [
        f"Fine-tuning: {record['steps']} steps of {record['batch_size']} × {record['context']} "
        f"tokens on domain; loss in nats/token on {record['test_tokens']:,} test tokens"
        + (f", mean over {n} seeds ± half of the 95 % interval." if n > 1 else "."),
        f"The adapters are {method['adapter']}, the prompt is {method['prompt']}; LoRA is "
        f"{method['lora_all']}, in QLoRA on a base in NF4."]
    if n > 1:
        said.append("All rows see the same batches, so two rows differ more reliably than their ± "
                    "suggest.")
    training = f"; training took {record['scheme_steps']} steps." if by_kind(schemes)[1] else "."
    said += [
        f"Rounding: nats/token over float32 ({schemes[0]['loss']:.3f}) on {record['judged_on']}"
        f"{training} bits/weight counts the linear layers in the blocks; the embedding stays "
        "float32.",
        "of all: bits over all parameters, with embeddings, norms and biases in float32. KiB: what "
        "all of these arrays take; a file of save_quantized has a header and the tokenizer besides."]
    if found := checks(record):
        said.append(f"The study: where a new mean should lie, by its {found[0]['seeds']} seeds. "
                    f"{count(found)} are inside; about 1 in 20 is outside by chance.")
    return [*said, *record["notes"]]


# -- the picture -----------------------------------------------------------------------------------
def draw(record: dict, path: Path) -> Path:
    """Draw the record into the file `path`."""
    with plot.style(): drawing = picture(record)
    return plot.save(drawing, path)


def stored(name: str) -> Callable[[Path], plot.Drawing]:
    """Return a function from a folder of results to the picture of its record `name`."""
    return lambda results: picture(read(results, name))


def picture(record: dict) -> plot.Drawing:
    """Return a `Drawing` of the record: a dot and an interval for each row, behind it the study's
    interval."""
    methods = record["methods"]
    at_once, trained = by_kind(record["schemes"][1:])
    at_once.sort(key=lambda r: -r["bits"])
    rows = [*at_once, *([None] if trained else []), *trained]            # None: a gap
    heights = max(2.0, 0.6 + 0.19 * len(methods)), 0.6 + 0.19 * len(rows)
    height = 0.6 + sum(heights)
    fig, (above, below) = plot.figure(2, 1, height=height, height_ratios=heights)
    for y, r in enumerate(methods): dot(above, r, "loss", y, xerr=r["interval"])
    labels = [f"{r['label']}\u2003{round(100 * r['gain'])}%" for r in methods]
    above.set_yticks(range(len(methods)), labels)
    above.set(xlabel="test loss (nats/token)", ylim=(-0.6, len(methods) - 0.4))
    above.set_title(f"Fine-tuning for {record['steps']} steps; % of full fine-tuning's gain")
    below.axvline(0, color=plot.COLOURS["grey"], lw=1, ls="--")
    for y, r in enumerate(rows):
        if r: dot(below, r, "excess", y, mfc="white" if r in trained else None)
    labelled = [(y, f"{r['label']}\u2003{r['bits']:.2f}") for y, r in enumerate(rows) if r]
    below.set_yticks(*zip(*labelled, strict=True))
    below.set(xlabel="loss added to float32 (nats/token)", ylim=(-0.7, len(rows) - 0.3))
    below.set_title("Rounding, by bits per weight" + "; hollow: trained" * bool(trained))
    for ax in (above, below):
        ax.invert_yaxis()
        ax.use_sticky_edges = False                      # room beside the last mark, bars or not
        ax.margins(x=0.03)
    return plot.Drawing(fig, *words(record, at_once, trained))


def dot(ax, r: dict, metric: str, y: int, **looks) -> None:
    """Draw a row's number, and behind it a grey bar: the study's interval."""
    if "study" in r:
        mean, half = r["study"]["mean"], r["study"]["half"]
        ax.barh(y, 2 * half, left=mean - half, height=0.7, color="#DDDDDD", lw=0)
    grey = {"color": plot.COLOURS["grey"], "marker": "x"}
    look = grey if r["name"] == "float32" else plot.mark(r["name"])
    ax.errorbar(r[metric], y, ls="none", ms=6, mew=1.5, **look, **looks)


def words(record: dict, at_once: list[dict], trained: list[dict]) -> tuple[str, str, str]:
    """Return the picture's sentence, its detail and its description."""
    methods, exact, n = record["methods"], record["schemes"][0], len(record["seeds"])
    named = {r["name"]: r for r in methods}
    best = max((r for r in methods if r["name"] not in ("frozen", "full")), key=lambda r: r["gain"])
    four = min((r for r in at_once if 4 <= r["bits"] < 5), key=lambda r: r["excess"])
    sentence = (
        f"After {record['steps']} steps the best share of full fine-tuning's gain is "
        f"{best['gain']:.0%} ({best['label']}, {100 * best['share']:.1f} % of the parameters); at "
        f"four bits the least loss added is {four['excess']:.3f} nats ({four['label']}).")
    detail = (
        f"Above: *domain*, {record['test_tokens']:,} test tokens; "
        + (f"mean and 95 % interval over {n} seeds." if n > 1 else "one seed.")
        + f" Below: {record['judged_on']}, with one draw of calibration and test text.")
    if found := checks(record):
        detail += (f" Grey bars: where the study's {found[0]['seeds']} seeds say that a new mean "
                   f"should lie; {count(found)} do.")
    losses = ", ".join(f"{r['label']} {pm(r['loss'], r['interval'])}" for r in methods)
    added = ", ".join(f"{r['label']} ({r['bits']:.2f} bits) {r['excess']:+.3f}"
                      for r in (*at_once, *trained))
    gain = named["frozen"]["loss"] - named["full"]["loss"]
    alt = (f"Dots with intervals. Test loss in nats per token: {losses}. Below, the loss that "
           f"rounding adds to that of float32, {exact['loss']:.3f}: {added}. Full fine-tuning "
           f"gains {gain:.3f}.")
    return sentence, detail, alt
