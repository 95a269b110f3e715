"""The picture of how the base was trained: its loss over steps, beside the loss of an n-gram model."""
import math
from pathlib import Path

from ..pretrained import training_record
from . import plot

__all__ = ["picture"]


def picture(results: Path | None = None) -> plot.Drawing:
    """The training record as a `Drawing`. It needs no results: the record is stored beside the weights."""
    record = training_record()
    fig, ax = plot.figure()
    steps, loss = zip(*record["loss_curve"], strict=True)
    ax.plot(steps, loss, color="#BBBBBB", lw=1)
    at, held_out = zip(*((step, m["loss"]) for step, m in record["validation"]), strict=True)
    ax.plot(at, held_out, color=plot.COLOURS["blue"], marker="o", ms=3)
    r, recipe = record["results"], record["recipe"]
    base, ngram = r["base test"]["loss"], r["5-gram base test"]["loss"]
    ax.axhline(ngram, color=plot.COLOURS["vermillion"], lw=1, ls="--")
    ax.set(ylim=(min(loss) - 0.1, min(loss[len(loss) // 20], 4.5)), ylabel="nats per token",
           xlabel=f"steps of {recipe['batch_size']} × {record['config']['context_length']} tokens")
    ax.annotate("Kneser–Ney 5-gram, test", (1, ngram), xycoords=("axes fraction", "data"), xytext=(0, 4),
                textcoords="offset points", ha="right",
                color=plot.ink(plot.COLOURS["vermillion"]))
    plot.label_ends(ax, [(at[-1], held_out[-1], "validation", plot.COLOURS["blue"]),
                         (steps[-1], loss[-1], "training", "#707070")])
    (_, first), (_, last) = record["validation"][0], record["validation"][-1]
    return plot.Drawing(
        fig,
        "A million parameters trained in under an hour beat a strong n-gram model (Kneser–Ney) of the same text.",
        f"Loss in nats per token over {recipe['steps']:,} steps; one seed. On the test split the base reaches {base:.3f} and "
        f"the 5-gram model {ngram:.3f}.",
        f"Loss of the base over {recipe['steps']:,} steps: validation falls from {first['loss']:.2f} to "
        f"{last['loss']:.2f} nats per token. On the test split the base reaches {base:.2f} nats ({base / math.log(2):.2f} "
        f"bits) per token and the 5-gram model {ngram:.2f} nats.")
