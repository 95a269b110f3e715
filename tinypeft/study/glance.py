"""The record of the main job (`compare.py`) as tables and as a picture."""
from __future__ import annotations

import json
from pathlib import Path

from . import plot
from .compared import COMPARED_SCHEMES, TRAINED_AS_LONG
from .markdown import aligned

__all__ = ["draw", "everything", "picture", "tables"]


def trains(label: str) -> bool:
    """Is it the row of a scheme that trains, or of the float32 model beside them?"""
    return label == TRAINED_AS_LONG or label in COMPARED_SCHEMES and COMPARED_SCHEMES[label].trains


# -- tables --------------------------------------------------------------------------------------
def tables(record: dict) -> str:
    """The record as text: methods, schemes that round at once, schemes that train, and notes."""
    checked = any("study" in r for r in (*record["methods"], *record["schemes"]))
    head, cells = (["the study", ""], beside) if checked else ([], lambda r, sign: [])
    methods = table(["fine-tuning", "trained", "share", "loss", "share of full's gain", *head], [
        [r["label"], f"{r['trained']:,}", f"{100 * r['share']:.2f} %", pm(r["loss"], r["interval"]), f"{share(r)} %",
         *cells(r, "")] for r in record["methods"]])
    parts = [methods]
    for title, of_kind in (("rounding at once", False), ("rounding and training", True)):
        rows = [r for r in record["schemes"] if trains(r["label"]) == of_kind]
        size_head = ["of all", "KiB"] if rows and "bytes" in rows[0] else []           # older records do not say it
        if rows: parts.append(table([title, "bits/weight", *size_head, "error of logits", "loss added", *head], [
            [r["label"], f"{r['bits']:.3f}", *sizes(r), f"{100 * r['error']:.2f} %",
             *(["–", *cells(r, "")] if r["label"] == "float32" else [f"{r['excess']:+.3f}", *cells(r, "+")])] for r in rows]))
    return "\n\n".join([*parts, "\n".join(notes(record))])


def sizes(r: dict) -> list[str]:
    """Bits over all parameters, and what the whole model takes."""
    return [f"{r['bits_in_all']:.3f}", f"{r['bytes'] / 1024:,.0f}"] if "bytes" in r else []


def share(r: dict) -> int:
    """The share of full fine-tuning's gain, in whole per cent."""
    return round(100 * r["gain"])


def table(head: list[str], rows: list[list[str]]) -> str:
    first, *others = aligned([head, *rows])
    return "\n".join([first.rstrip(), "-" * len(first), *(line.rstrip() for line in others)])


def pm(mean: float, half: float | None, sign: str = "") -> str:
    """"mean ± half" in three decimals; half: None if it is not known, 0 where nothing varies."""
    return f"{mean:{sign}.3f} ± {half:.3f}" if half else f"{mean:{sign}.3f}"


def beside(r: dict, sign: str) -> list[str]:
    """The study's interval, and whether the row's number is inside."""
    if "study" not in r: return ["–", ""]
    return [pm(r["study"]["mean"], r["study"]["half"], sign), "inside" if r["study"]["inside"] else "OUTSIDE"]


def notes(record: dict) -> list[str]:
    """What the tables mean, one sentence a line."""
    n, of = len(record["seeds"]), {r["name"]: r for r in record["methods"]}
    over = f", mean over {n} seeds ± half of the 95 % interval." if n > 1 else "."
    said = [f"Fine-tuning: {record['steps']} steps of {record['batch_size']} × 128 tokens on domain; loss in nats/token on "
            f"{record['test_tokens']:,} test tokens{over}",
            f"The adapters are {of['adapter']['method']}, the prompt is {of['prompt']['method']}; LoRA is "
            f"{of['lora_all']['method']}, in QLoRA on a base in NF4."]
    if n > 1: said.append("All rows see the same batches, so two rows differ more reliably than their ± suggest.")
    exact, *rest = record["schemes"]
    said.append(f"Rounding: nats/token over float32 ({exact['loss']:.3f}) on {record['judged_on']}"
                + (f"; training took {record['scheme_steps']} steps." if any(trains(r["label"]) for r in rest) else ".")
                + " bits/weight counts the linear layers in the blocks; the embedding stays float32.")
    if "bytes" in exact:
        said.append("of all: bits over all parameters, with embeddings, norms and biases in float32. KiB: what all of these "
                    "arrays take; a file of save_quantized has a header of less than 1 % besides.")
    checked = [r["study"] for r in (*record["methods"], *record["schemes"]) if "study" in r and r["study"]["half"]]
    if checked:
        said.append(f"The study: where a new mean should lie, by its {checked[0]['seeds']} seeds. "
                    f"{sum(s['inside'] for s in checked)} of {len(checked)} are inside; about 1 in 20 is outside by chance.")
    return [*said, *record["notes"]]


# -- the picture ---------------------------------------------------------------------------------
def draw(record: dict, path: str | Path) -> Path:
    """Draw the record into the file `path`."""
    with plot.style(): drawing = picture_of(record)
    return plot.save(drawing, path)


def picture(results: Path) -> plot.Drawing:
    """The comparison stored in the folder `results`, as a `Drawing`."""
    return picture_of(json.loads((results / "compare.json").read_text(encoding="utf-8")))


def everything(results: Path) -> plot.Drawing:
    """What `compare --all` stored in the folder `results`, as a `Drawing`."""
    return picture_of(json.loads((results / "compare_all.json").read_text(encoding="utf-8")))


def picture_of(record: dict) -> plot.Drawing:
    """A dot and an interval for each row, with the study's interval behind it, as a `Drawing`."""
    methods, (exact, *rest) = record["methods"], record["schemes"]
    at_once, trained = ([r for r in rest if trains(r["label"]) == of_kind] for of_kind in (False, True))
    at_once.sort(key=lambda r: -r["bits"])
    rows = [*at_once, *([None] if trained else []), *trained]            # None: a gap
    heights = max(2.0, 0.6 + 0.19 * len(methods)), 0.6 + 0.19 * len(rows)
    fig, (above, below) = plot.figure(2, 1, height=0.6 + sum(heights), height_ratios=heights)
    for y, r in enumerate(methods): dot(above, r, "loss", y, xerr=r["interval"])
    above.set_yticks(range(len(methods)), [f"{r['label']}\u2003{share(r)}%" for r in methods])
    above.set(xlabel="test loss (nats/token)", ylim=(-0.6, len(methods) - 0.4))
    above.set_title(f"Fine-tuning for {record['steps']} steps; % of full fine-tuning's gain")
    below.axvline(0, color=plot.COLOURS["grey"], lw=1, ls="--")
    for y, r in enumerate(rows):
        if r: dot(below, r, "excess", y, mfc="white" if trains(r["label"]) else None)
    labelled = [(y, f"{r['label']}\u2003{r['bits']:.2f}") for y, r in enumerate(rows) if r]
    below.set_yticks(*zip(*labelled, strict=True))
    below.set(xlabel="loss added to float32 (nats/token)", ylim=(-0.7, len(rows) - 0.3))
    below.set_title("Rounding, by bits per weight" + "; hollow: trained" * bool(trained))
    for ax in (above, below):
        ax.invert_yaxis()
        ax.use_sticky_edges = False                                      # room beside the last mark, bars or not
        ax.margins(x=0.03)
    loss, n = {r["name"]: r for r in methods}, len(record["seeds"])
    best = max((r for r in methods if r["name"] not in ("frozen", "full")), key=lambda r: r["gain"])
    four = min((r for r in at_once if 4 <= r["bits"] < 5), key=lambda r: r["excess"])
    checked = [r["study"] for r in (*methods, *record["schemes"]) if "study" in r and r["label"] != "float32"]
    check = (f" Grey bars: where the study's {checked[0]['seeds']} seeds say that a new mean should lie; "
             f"{sum(s['inside'] for s in checked)} of {len(checked)} do." if checked else "")
    return plot.Drawing(
        fig,
        f"After {record['steps']} steps the best share of full fine-tuning's gain is {best['gain']:.0%} ({best['label']}, "
        f"{100 * best['share']:.1f} % of the parameters); at four bits the least loss added is {four['excess']:.3f} nats "
        f"({four['label']}).",
        f"Above: *domain*, {record['test_tokens']:,} test tokens; " + (f"mean and 95 % interval over {n} seeds." if n > 1 else
        "one seed.") + f" Below: {record['judged_on']}, with one draw of calibration and test text.{check}",
        "Dots with intervals. Test loss in nats per token: " + ", ".join(
            f"{r['label']} {pm(r['loss'], r['interval'])}" for r in methods)
        + f". Below, the loss that rounding adds to that of float32, {exact['loss']:.3f}: " + ", ".join(
            f"{r['label']} ({r['bits']:.2f} bits) {r['excess']:+.3f}" for r in (*at_once, *trained))
        + f". Full fine-tuning gains {loss['frozen']['loss'] - loss['full']['loss']:.3f}.")


def dot(ax, r: dict, metric: str, y: int, **looks) -> None:
    """A row's number, and behind it a grey bar: the study's interval."""
    if "study" in r:
        mean, half = r["study"]["mean"], r["study"]["half"]
        ax.barh(y, 2 * half, left=mean - half, height=0.7, color="#DDDDDD", lw=0)
    look = {"color": plot.COLOURS["grey"], "marker": "x"} if r["name"] == "float32" else plot.mark(r["name"])
    ax.errorbar(r[metric], y, ls="none", ms=6, mew=1.5, **look, **{k: v for k, v in looks.items() if v is not None})
