"""How the base was trained, as a picture: its loss over steps beside the n-gram model's."""
import math

__all__ = ["draw"]


def draw(record, path):
    """`pretrained.training_record()` as a picture."""
    from . import plot
    fig, ax = plot.figure()
    steps, loss = zip(*record["loss_curve"], strict=True)
    ax.plot(steps, loss, color="#BBBBBB", lw=1)
    at, held_out = zip(*((step, m["loss"]) for step, m in record["validation"]), strict=True)
    ax.plot(at, held_out, color=plot.COLOURS["blue"], marker="o", ms=3)
    results = record["results"]
    ax.axhline(results["5-gram base test"]["loss"], color=plot.COLOURS["vermillion"], lw=1, ls="--")
    top = min(loss[len(loss) // 20], 4.5)
    ax.set(ylim=(min(loss) - 0.1, top), xlabel=f"steps of {record['recipe']['batch_size']} × "
           f"{record['config']['context_length']} tokens", ylabel="nats per token")
    ax.set_title("Pretraining the base", loc="left", fontsize=10)
    ax.annotate("validation", (at[-1], held_out[-1]), xytext=(0, 8), textcoords="offset points", ha="right", fontsize=8,
                color=plot.COLOURS["blue"])
    ax.annotate("training", (steps[-1], loss[-1]), xytext=(0, 10), textcoords="offset points", ha="right", fontsize=8,
                color="#707070")
    ax.annotate("Kneser–Ney 5-gram, test", (0, results["5-gram base test"]["loss"]), xytext=(4, 4),
                textcoords="offset points", fontsize=8, color=plot.COLOURS["vermillion"])
    return plot.save(fig, path, alt(record))


def alt(record):
    """What the picture shows, in words."""
    (_, first), (_, last) = record["validation"][0], record["validation"][-1]
    r = record["results"]
    base, ngram = r["base test"]["loss"], r["5-gram base test"]["loss"]
    return (f"Loss of the base over {record['recipe']['steps']} steps: validation falls from {first['loss']:.2f} to "
            f"{last['loss']:.2f} nats per token. On the test split it reaches {base:.2f} ({base / math.log(2):.2f} bits) "
            f"per token, the 5-gram model {ngram:.2f}.")
