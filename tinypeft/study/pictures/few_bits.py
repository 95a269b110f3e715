"""Lessons 13 to 15: QLoRA, LoftQ, training with rounded weights, and all schemes side by side."""
from pathlib import Path

from .. import plot
from ..about import about, name_of
from ..compared import COMPARED_SCHEMES
from ..experiments import EXPERIMENTS
from ..stored import load

__all__ = ["bits_vs_parameters", "loftq", "qat", "qlora", "schemes"]


def qlora(results: Path) -> plot.Drawing:
    r = load(results, "qlora")
    looks = {"before": ("grey", "o", "before"), "after": ("blue", "o", "after: kept apart, or merged in 16 bits"),
             "merged_into_16_bits": ("orange", "^", "merged into the weights before rounding"),
             "merged_and_rounded": ("vermillion", "s", "merged, then rounded again")}
    fig, ax = plot.figure(height=3.6)
    for y, base in enumerate(r.conditions):
        there = [m for m in looks if m in r.record["runs"][base]["0"]]
        means = [r.mean(base, m) for m in there]
        ax.plot([min(means), max(means)], [y, y], color="#CCCCCC", lw=1, zorder=1)
        for metric, mean in zip(there, means, strict=True):
            colour, marker, _ = looks[metric]
            face = {"markerfacecolor": "white"} if metric == "before" else {}
            ax.errorbar(mean, y, xerr=r.interval(base, metric), ls="none", ms=7, color=plot.COLOURS[colour],
                        marker=marker, **face)
    ax.axvline(r.mean("16 bits", "after"), color=plot.COLOURS["grey"], lw=1, ls="--")
    ax.set_yticks(range(len(r.conditions)), r.conditions)
    ax.invert_yaxis()
    ax.set(xlabel="test loss (nats/token)", ylabel="the frozen base in")
    ax.margins(y=0.12)
    plot.key(fig, {text: (colour, marker, "none") for colour, marker, text in looks.values()}, 2, ("before",))
    gap, half = r.difference("NF4", "16 bits", "after")
    lost, lost_half = r.difference("NF4", "NF4", "merged_and_rounded", of_b="after")
    at = lambda c, m: f"{r.mean(c, m):.3f}"
    return plot.Drawing(
        fig,
        f"A LoRA learns as well on four bits as on sixteen, within {gap:.3f} ± {half:.3f} nats. Merging it and rounding again "
        f"loses {lost:.3f} ± {lost_half:.3f} nats.",
        f"Test loss on *domain* before and after {r.record['settings']['steps']} steps of a LoRA of rank "
        f"{EXPERIMENTS['qlora'].conditions['16 bits'].method.rank} on all layers, each at its best learning rate. Dashed: "
        f"after training on the 16-bit base. {len(r.seeds)} seeds.",
        "Dots per base. " + " ".join(f"{c}: before {at(c, 'before')}, after {at(c, 'after')}" + (
            f", merged and rounded again {at(c, 'merged_and_rounded')}." if c != "16 bits" else ".") for c in r.conditions))


def loftq(results: Path) -> plot.Drawing:
    r = load(results, "loftq")
    bases, steps = ["NF4", "4 bits", "3 bits", "2 bits"], r.record["settings"]["steps"]
    longer = [b for b in bases if f"LoftQ, {b}, {2 * steps} steps" in r.conditions]
    fig, axes = plot.figure(1, 2, height=3.5)
    looks = {"QLoRA": about("qlora").look, "LoftQ": about("loftq").look}
    for ax, metric in zip(axes, ("before", "after"), strict=True):
        for method, look in looks.items():
            plot.band(ax, range(len(bases)), r, [f"{method}, {b}" for b in bases], metric, look)
            if metric == "after":
                plot.band(ax, list(map(bases.index, longer)), r, [f"{method}, {b}, {2 * steps} steps" for b in longer], metric,
                          look, mfc="white", ls=":")
        line = r.mean("LoRA, 16 bits", metric)
        ax.axhline(line, color=plot.COLOURS["grey"], lw=1, ls="--")
        ax.annotate("16 bits", (0, line), xytext=(0, -4), textcoords="offset points", va="top", color="#606060")
        ax.set_xticks(range(len(bases)), bases)
        ax.margins(y=0.12)
        ax.set_title(f"{metric} training", fontsize=9)
    axes[0].set_ylabel("test loss (nats/token)")
    plot.key(fig, {"QLoRA: starts at zero": looks["QLoRA"], "LoftQ: starts at what rounding lost": looks["LoftQ"]})
    gain = {b: r.difference(f"QLoRA, {b}", f"LoftQ, {b}", "after") for b in bases}
    return plot.Drawing(
        fig,
        "LoftQ starts a LoRA at the rounding error, and the fewer the bits, the more this helps: it ends "
        f"{gain['2 bits'][0]:.3f} ± {gain['2 bits'][1]:.3f} nats lower than QLoRA at 2 bits and {gain['4 bits'][0]:.3f} ± "
        f"{gain['4 bits'][1]:.3f} at 4 bits.",
        f"A LoRA of rank {EXPERIMENTS['loftq'].conditions['LoRA, 16 bits'].method.rank} on all layers of a rounded base (NF4; "
        f"integers in groups of 32, asymmetric), before and after {steps} steps on *domain*, each at its best learning rate. "
        f"Hollow: after {2 * steps} steps at the same rate. {len(r.seeds)} seeds.",
        "Lines over the base's bits. " + " ".join(
            f"{b}: QLoRA {r.mean(f'QLoRA, {b}', 'before'):.3f} before and {r.mean(f'QLoRA, {b}', 'after'):.3f} after, LoftQ "
            f"{r.mean(f'LoftQ, {b}', 'before'):.3f} and {r.mean(f'LoftQ, {b}', 'after'):.3f}." for b in bases)
        + f" After {2 * steps} steps: " + "; ".join(f"{b}: " + ", ".join(
            f"{m} {r.mean(f'{m}, {b}, {2 * steps} steps', 'after'):.3f}" for m in looks) for b in longer) + ".")


QAT = {"round to nearest": about("uniform").look, "GPTQ": about("gptq").look, "PEQA": about("peqa").look,
       "LLM-QAT": ("purple", *about("llm_qat").look[1:]), "STE": ("green", "s"), "LSQ": ("blue", "v")}


def qat(results: Path) -> plot.Drawing:
    r = load(results, "qat")
    floor = "float32, trained as long"
    bits = [b for b in (4, 3, 2) if f"GPTQ, {b} bits" in r.conditions]
    fig, ax = plot.figure(height=3.8)
    ends, mean = [], {}
    for name, look in QAT.items():
        found = [r.difference(f"{name}, {b} bits", floor, "excess") for b in bits]
        mean[name] = [m for m, _ in found]
        ax.errorbar(bits, mean[name], yerr=[h for _, h in found], ms=6, **plot.line(look))
        ends.append((2, mean[name][-1], name, plot.COLOURS[look[0]]))
    ax.set(yscale="log", xlim=(bits[0] + 0.1, 1.95), xlabel="bits", ylabel="loss above float32 (nats/token)")
    ax.set_xticks(bits)
    plot.plain_log(ax.yaxis)
    plot.label_ends(ax, ends)
    best = min(QAT, key=lambda n: mean[n][-1])
    return plot.Drawing(
        fig,
        "Training moves rounded weights to better places: at 2 bits round to nearest costs "
        f"{mean['round to nearest'][-1]:.2f} nats, GPTQ, without training, {mean['GPTQ'][-1]:.2f}, and {best} "
        f"{mean[best][-1]:.2f}.",
        "All use one kind of grid, with a scale and a zero point per output channel (LLM-QAT's is symmetric). Training takes "
        f"{r.record['settings']['steps']} steps on the base's own text, or on text that the base writes (LLM-QAT). The loss is "
        f"that above a float32 model trained as long; {len(r.seeds)} seeds.",
        f"Lines over {', '.join(map(str, bits))} bits: " + "; ".join(
            f"{name} {', '.join(f'{m:.3f}' for m in mean[name])}" for name in QAT) + " nats per token.")


def schemes(results: Path) -> plot.Drawing:
    r = load(results, "schemes")
    names = {label: name_of(scheme) for label, scheme in COMPARED_SCHEMES.items()}
    x, y = ({c: r.mean(c, metric) for c in r.conditions} for metric in ("bits", "excess"))
    front = [c for c in x if not any(x[o] <= x[c] and y[o] < y[c] for o in x)]
    fig, (left, right) = plot.figure(1, 2, height=5.4, width_ratios=(2.6, 1), sharey=True)
    panels = {left: [c for c in x if x[c] < 6], right: [c for c in x if x[c] >= 6]}
    for ax, labels in panels.items():
        for c in labels:
            look = plot.mark(names[c]) | ({"mfc": "white"} if c.endswith("*") else {})
            ax.errorbar(x[c], y[c], yerr=r.interval(c, "excess"), ls="none", ms=7, **look)
        ax.axhline(0, color=plot.COLOURS["grey"], lw=1, ls="--")
    ladder = sorted((x[c], y[c]) for c in front if x[c] < 6)
    left.step(*zip(*ladder, strict=True), where="post", color="#BBBBBB", lw=1, zorder=1)
    left.margins(x=0.12, y=0.08)
    right.margins(x=0.6)
    left.set(ylabel="loss added (nats/token)", xlabel="bits per weight, all that is stored")
    right.set(xlabel="8-bit schemes")
    for ax, labels in panels.items():
        plot.label_points(ax, [(x[c], y[c], c.replace(" bit", ""), plot.mark(names[c])["color"]) for c in labels])
    four = min((c for c in x if 4 <= x[c] < 5 and not c.endswith("*")), key=y.get)
    return plot.Drawing(
        fig,
        f"Eight bits cost almost nothing, four bits cost {y[four]:.3f} nats at best ({four}), and three bits need calibration "
        "or training.",
        f"Loss added to the base on held-out text of the kind it was trained on. Hollow: trained for "
        f"{r.record['settings']['steps']} steps. Grey steps: schemes that no other scheme beats in both bits and loss. "
        f"{len(r.seeds)} seeds draw calibration, batches and test windows.",
        "Scatter plot of loss added over bits per weight: " + ", ".join(
            f"{c} {x[c]:.2f} bits {y[c]:+.3f}" for c in sorted(x, key=x.get, reverse=True)) + ".")


def bits_vs_parameters(results: Path) -> plot.Drawing:
    r = load(results, "bits_vs_parameters")
    models = {c: EXPERIMENTS["bits_vs_parameters"].conditions[c] for c in r.conditions}
    sizes, bits = (list(dict.fromkeys(getattr(m, name) for m in models.values())) for name in ("size", "bits"))
    label = {(m.size, m.bits): c for c, m in models.items()}
    looks = dict(zip(sizes, (("orange", "^"), ("sky", "s"), ("blue", "o")), strict=True))
    fig, (left, right) = plot.figure(1, 2, height=3.8, sharey=True)
    for ax, metric in ((left, "matrices"), (right, "bytes")):
        for size, look in looks.items():
            conditions = [label[size, b] for b in bits]
            y = plot.band(ax, [r.mean(c, metric) / 1024 for c in conditions], r, conditions, "loss", look, ms=6)
            if ax is left:
                for b, c, value in zip(bits, conditions, y, strict=True):
                    if size == sizes[-1]:
                        ax.annotate(str(b), (r.mean(c, metric) / 1024, value), xytext=(-3, -3), textcoords="offset points",
                                    ha="right", va="top", color="#606060")
        ax.set(xscale="log")
        plot.count_axis(ax.xaxis)
    left.set(xlabel="KiB of the matrices", ylabel="loss (nats/token)")
    right.set(xlabel="KiB in all, embeddings in 16 bits")
    left.margins(y=0.12)
    parameters = {s: r.mean(label[s, bits[0]], "parameters") for s in sizes}
    plot.key(fig, {f"{parameters[s]:,.0f} parameters": look for s, look in looks.items()})
    few, many = label[sizes[-2], 2], label[sizes[-3], 16]
    at = lambda c: f"{r.mean(c, 'loss'):.3f} nats in {r.mean(c, 'matrices') / 1024:.0f} KiB"
    better = r.mean(few, "loss") < r.mean(many, "loss")
    return plot.Drawing(
        fig,
        f"{'More parameters at fewer bits beat fewer parameters at more bits' if better else 'Two bits are too few'}: "
        f"{parameters[sizes[-2]]:,.0f} parameters at 2 bits reach {at(few)} of matrices, {parameters[sizes[-3]]:,.0f} at 16 "
        f"bits reach {at(many)}.",
        f"Three bases trained for as long on the same text, their matrices at {', '.join(str(b) for b in bits)} bits (GPTQ, "
        f"groups of {r.record['settings']['group_size']}); {len(r.seeds)} seeds draw calibration and test windows.",
        "Loss over memory, one line for each size. " + " ".join(
            f"{parameters[s]:,.0f} parameters: " + ", ".join(f"{b} bits {r.mean(label[s, b], 'loss'):.3f}" for b in bits) + "."
            for s in sizes))
