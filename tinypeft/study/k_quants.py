"""What tinypeft/quant/K_QUANTS.md computes: a superblock of real weights as bytes and as numbers, types, a mixture, a picture.

The weights are of the shipped base. SmolLM2's file would not do: its weights were rounded to 16 levels per 32 before, and a K
type finds these levels again.
"""
import functools
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from ..interop.gguf_bytes import file_bytes
from ..interop.loading import load_pretrained
from ..quant.gguf import GGUF
from ..quant.k_quants import LINE_TRIALS, steps
from . import plot
from .markdown import beside, table
from .stored import load

__all__ = ["SECTIONS", "picture"]

LAYER = "blocks.1.mlp.down"
TYPES = "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0"
SEARCHED = 3                                             # the sub-block whose search is shown
PARTS = {"Q4_0": "1 × 32", "Q4_1": "1 × 32", "Q4_K": "8 × 32", "Q5_0": "1 × 32", "Q5_1": "1 × 32", "Q5_K": "8 × 32",
         "Q6_K": "16 × 16", "Q8_0": "1 × 32"}
SIZES = {"d_model": 576, "n_layers": 30, "queries": 576, "values": 192, "d_mlp": 1536}    # of SmolLM2-135M


@functools.cache
def weights() -> list[np.ndarray]:
    """The matrices of mlp.down in the shipped base, (128, 512), one for each block."""
    model = load_pretrained()
    return [model.get(f"blocks.{i}.mlp.down").weight.data for i in range(model.config.n_layers)]


def superblock() -> np.ndarray:
    """The first 256 weights of `LAYER`."""
    return weights()[1][:1, :256]


# -- the page ------------------------------------------------------------------------------------
def example(results: Path) -> str:
    """The bytes of a superblock, its scales, and its first weights."""
    x, q = superblock(), GGUF("Q4_K").quantize(superblock())
    octets, numbers, codes = file_bytes(q)[0], q.dequantize()[0], q.unpack().reshape(-1)
    sc, mn, d, e = q.scale.unpack(), q.offset.unpack(), q.scale.scale[0], -q.offset.scale[0]
    lines = "\n".join(octets[i:i + 24].tobytes().hex(" ") for i in range(0, 144, 24))
    steps_of, minima = q.scale.dequantize(), -q.offset.dequantize()
    scales = [(str(j), str(sc[j]), str(mn[j]), f"{s:.6f}", f"{m:.6f}", f"{-m:.4f} … {15 * s - m:.4f}")
              for j, (s, m) in enumerate(zip(steps_of, minima, strict=True))]
    first = [(str(i), str(i // 32), f"`{octets[16 + i % 32]:02x}`", str(codes[i]), f"{numbers[i]:.9g}", f"{x[0, i]:.9g}")
             for i in (0, 1, 2, 32, 33, 34)]
    return (f"These are the first 256 weights of `{LAYER}` of the shipped model, as bytes:\n\n```text\n{lines}\n```\n\n"
            f"d = {d:.9g} and e = {e:.9g}. The sub-blocks:\n\n"
            + table(("j", "sc", "mn", "s = d·sc", "m = e·mn", "levels from … to"), scales)
            + "\n\nThree weights of sub-block 0, and the three of sub-block 1 that share their bytes:\n\n"
            + table(("weight", "sub-block", "byte", "q", "decoded, s q − m", "original"), first))


def error(name: str) -> tuple[float, float]:
    """Bits per weight, and the relative RMS error in per cent, of a type on the base's mlp.down."""
    squares = np.zeros(2)
    for W in weights():
        q = GGUF(name).quantize(W)
        squares += [np.square(np.float64(q.dequantize()) - W).sum(), np.square(np.float64(W)).sum()]
    return q.bits_per_weight, 100 * np.sqrt(squares[0] / squares[1])


def types(results: Path) -> str:
    """What each type costs, and its error on real weights."""
    rows = [(f"`{name}`", PARTS[name], f"{bits:g}", f"{rms:.2f} %") for name in TYPES for bits, rms in [error(name)]]
    return table(("type", "blocks of weights", "bits per weight", "RMS error ÷ RMS of the weights"), rows)


def mixture(results: Path) -> str:
    """The types that Q4_K_M gives the layers of a model of SmolLM2's sizes."""
    d, n = SIZES["d_model"], SIZES["n_layers"]
    layers = {"attention.query": (SIZES["queries"], d), "attention.key": (SIZES["values"], d),
              "attention.value": (SIZES["values"], d), "attention.output": (d, SIZES["queries"]),
              "mlp.gate": (SIZES["d_mlp"], d), "mlp.up": (SIZES["d_mlp"], d), "mlp.down": (d, SIZES["d_mlp"])}
    model, rows = SimpleNamespace(config=SimpleNamespace(n_layers=n)), []
    for layer, (d_out, d_in) in layers.items():
        kinds = [GGUF("Q4_K_M").kind(f"blocks.{i}.{layer}", SimpleNamespace(d_in=d_in), model) for i in range(n)]
        common = max(dict.fromkeys(kinds), key=kinds.count)
        other = {kind: [i for i in range(n) if kinds[i] == kind] for kind in dict.fromkeys(kinds) if kind != common}
        rows.append((f"`{layer}`", f"{d_out} × {d_in}", f"`{common}`",
                     "; ".join(f"`{kind}` in blocks {', '.join(map(str, blocks))}" for kind, blocks in other.items())))
    return table(("layer", "outputs × inputs", "usual type", "in other blocks"), rows)


def search_end(results: Path) -> str:
    """Where the search in sub-block `SEARCHED` ends, with an origin that moves and with one that stays."""
    x = superblock().reshape(8, 32)[SEARCHED]
    moving, fixed = (100 * search(x, moves)[0].min() for moves in (True, False))
    return (f"In sub-block {SEARCHED} of the example above, the search ends at {moving:.0f} % of the sum of its start,\n"
            f"and at {fixed:.0f} % if *low* is fixed. The picture shows both, below on the left.")


def losses(results: Path) -> str:
    """What the types cost the base, beside other formats of about as many bits."""
    r = load(results, "k_quants")
    rows = [(c, f"{r.mean(c, 'bits'):.2f}", beside(r, c, "Q4_K", "excess")) for c in r.conditions]
    return table(("format", "bits per weight", "loss above float32, nats/token (difference to Q4_K)"), rows)


SECTIONS = {"example": example, "search": search_end, "types": types, "mixture": mixture, "losses": losses}


# -- the picture ---------------------------------------------------------------------------------
def search(x: np.ndarray, moving: bool) -> tuple[np.ndarray, np.ndarray]:
    """The weighted error of each trial for a sub-block x, divided by that of max–min, and whether it was kept.
    moving: does a kept trial move the origin of those after it?"""
    x = np.float64(x)
    w, low, high = np.sqrt((x * x).mean()) + np.abs(x), min(x.min(), 0), x.max()
    errors = [(w * np.square((high - low) / 15 * np.rint((x - low) * 15 / (high - low)) + low - x)).sum()]
    for n in steps(*LINE_TRIALS[4], 15):
        q = np.clip(np.rint((x - low) * n / (high - low)), 0, 15)
        A = np.sqrt(w)[:, None] * np.stack([q, -np.ones_like(q)], axis=1)
        (s, m), *_ = np.linalg.lstsq(A, np.sqrt(w) * x, rcond=None)
        if m < 0: s, m = (w * q * x).sum() / (w * q * q).sum(), 0
        errors.append((w * np.square(s * q - m - x)).sum())
        if moving and errors[-1] < min(errors[:-1]): low = -m
    errors = np.array(errors)
    return errors[1:] / errors[0], errors[1:] < np.minimum.accumulate(errors)[:-1]


def picture(results: Path | None = None) -> plot.Drawing:
    """A superblock with the levels of its sub-blocks; the search in one of them; types by bits and error."""
    x, q = superblock()[0], GGUF("Q4_K").quantize(superblock())
    fig, axes = plot.figure(2, 2, height=5.6)
    grid = axes[0, 0].get_gridspec()
    for ax in axes[0]: ax.remove()
    above, (left, right) = fig.add_subplot(grid[0, :]), axes[1]
    for j, (s, low) in enumerate(zip(q.scale.dequantize(), q.offset.dequantize(), strict=True)):
        above.hlines(s * np.arange(16) + low, 32 * j + 1, 32 * j + 31, color=plot.COLOURS["sky"], lw=0.8)
    above.plot(np.arange(256), x, ls="none", marker=".", ms=3.5, color="black")
    above.set(xticks=range(0, 257, 32), xlim=(-2, 258), xlabel="weight", ylabel="value")
    above.grid(axis="y", visible=False)
    above.set_title("A superblock of 256 weights, and the 16 levels of each of its 8 sub-blocks", fontsize=9)
    best = {}
    for moving, colour, marker, text in ((False, "orange", "s", "origin stays"), (True, "blue", "o", "origin moves")):
        errors, kept = search(x.reshape(8, 32)[SEARCHED], moving)
        best[moving] = 100 * errors.min()
        at = steps(*LINE_TRIALS[4], 15)
        left.plot(at, 100 * errors, color=plot.COLOURS[colour], lw=1, marker=marker, ms=3, mfc="white")
        left.plot(at[kept], 100 * errors[kept], ls="none", color=plot.COLOURS[colour], marker=marker, ms=5, label=text)
    left.axhline(100, color=plot.COLOURS["grey"], lw=1, ls="--")
    left.plot(15, 100, ls="none", color="black", marker="D", ms=5, label="start: max–min")
    left.set(xlabel="steps between low and high", ylabel="error, % of max–min’s")
    left.set_title(f"The search in sub-block {SEARCHED}", fontsize=9)
    left.set_ylim(top=150)
    left.legend(loc="upper left", fontsize=9)
    points = {name: error(name) for name in TYPES[:-1]}
    for family, colour, marker in (("_K", "blue", "o"), ("", "orange", "s")):
        shown = [values for name, values in points.items() if name.endswith("_K") == bool(family)]
        right.plot(*zip(*shown, strict=True), ls="none", color=plot.COLOURS[colour], marker=marker)
    right.set(xlabel="bits per weight", ylabel="RMS error, %", xlim=(4.2, 7.3), ylim=(0, 10))
    right.set_title("Types on real weights", fontsize=9)
    plot.label_points(right, [(*values, name, plot.COLOURS["blue" if name.endswith("_K") else "orange"])
                              for name, values in points.items()])
    return plot.Drawing(
        fig,
        "A scale and a minimum of 6 bits for 32 weights cost no more than one scale of 16 bits; a search chooses them.",
        f"Weights of {LAYER} of the shipped base in Q4_K. Left below: 21 trials; those that were kept are filled. The search "
        f"ends at {best[True]:.0f} % of max–min's weighted error, and at {best[False]:.0f} % if the origin stays. Right below: "
        "mlp.down of all blocks.",
        f"Above, 256 weights as dots over eight ladders of 16 levels, each as high as its 32 weights need. Left below, the "
        f"error of 21 trials, and a mark at 100 % for max–min: the origin that moves leads to {best[True]:.0f} %, the fixed "
        f"one to {best[False]:.0f} %. Right below, error over bits: "
        + ", ".join(f"{name} {rms:.1f} % at {bits:g}" for name, (bits, rms) in points.items()) + ".")
