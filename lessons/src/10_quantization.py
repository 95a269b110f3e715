# %% [markdown]
# # 10 · Quantization from scratch
#
# **What you will do.** You see why the weights of large models are rounded at all. Then you round
# those of the shipped model to 8, 4, 3 and 2 bits, with rules that you write yourself. You find out
# what decides how much that costs: where the grid lies, what shares a scale, what happens to the
# largest numbers, and whether the grid must be uniform. Your quantizer is put on the whole model,
# and you measure what it loses.
#
# **What you need.** NumPy broadcasting, and what a weight matrix `(d_out, d_in)` of a linear layer
# is (lesson 02). No fine-tuning yet: that comes back in lessons 13 and 14.
#
# **Words and letters.** They are explained on first use, and all together in the
# [glossary](GLOSSARY.md).
#
# **Time.** 130 minutes for reading and the exercises. The open exercise takes 25 more, the bonus
# 6. Every cell together runs in well under a minute.

# %%
import copy
import tempfile
import time
from pathlib import Path

import numpy as np

import tinypeft as tp
from tinypeft.course import show, sliders
from tinypeft.interop import write_gguf
from tinypeft.quant import formats, uniform
from tinypeft.quant.codebooks import codebook, float_values
from tinypeft.study import plot

model = tp.load_pretrained()
W = model.get("blocks.2.mlp.up").weight.data                     # (d_out, d_in), float32
print(W.shape, f"{W.nbytes:,} bytes, std {W.std():.3f}, largest {np.abs(W).max():.3f}")


def relative(W_hat):
    """‖Ŵ − W‖/‖W‖ in per cent."""
    return 100 * np.linalg.norm(W_hat - W) / np.linalg.norm(W)

# %% [markdown]
# ## 1. Why round?
#
# A model of seven billion weights takes 14 GB if each weight has 16 bits, and 3.9 GB if it has 4.5.
# A graphics card of 12 GB holds the second and not the first. That is half of the reason.
#
# The other half is speed. A model writes token by token, and for each token it reads every weight
# from memory, to use it in one multiplication and one addition. Processors are built for more than
# that. NVIDIA's A100 computes 312 · 10¹² such operations in the second in which its memory delivers
# 2.04 · 10¹² bytes: about 150 for each byte. A weight of two bytes needs two. So the processor
# waits, and the *bandwidth* of the memory, in bytes a second, decides:
#
# $$\mathrm{tokens\ a\ second} \le \frac{\mathrm{bandwidth}}{\mathrm{bytes\ of\ all\ weights}}$$
#
# By hand: a laptop whose memory delivers 200 GB a second writes at most $200/14 = 14$ tokens a
# second in 16 bits, and $200/3.9 = 51$ in 4.5 bits.
#
# Here is what the authors of the program llama.cpp measured with Llama 3.1, which has 8 billion
# weights. (Their `tools/quantize/README.md` has this table. It does not name the machine.)

# %%
measured = {                                             # bits a weight, GiB, tokens a second
    "F16": (16.00, 14.96, 29.17), "Q8_0": (8.50, 7.95, 50.93), "Q6_K": (6.56, 6.14, 58.67),
    "Q4_K_M": (4.89, 4.58, 71.93), "Q2_K": (3.16, 2.95, 79.85)}
for name, (bits, size, speed) in measured.items():
    gigabytes = size * 2**30 / 1e9
    print(f"{name:6}  {bits:5.2f} bits   {gigabytes:5.2f} GB   {speed:5.2f} tokens a second: "
          f"it reads {gigabytes * speed:3.0f} GB a second")

# %% [markdown]
# *What to see: half the bytes (0.53) give 1.75 times the tokens. With fewer bits the gain shrinks.*
# F16 and Q8_0 fit 1.95 ms for each GB and 3.0 ms for the rest, such as attention. For Q2_K that
# makes 9.2 ms. It takes 12.5: decoding its codes is work, too. (The [page on
# K-quants](../tinypeft/quant/K_QUANTS.md) explains the types with a K byte by byte.)
#
# Is it the same in this package? Here is the base in three forms: its file, its linear layers in
# memory, and the time of one token.

# %%
folder, token = Path(tempfile.mkdtemp()), np.array([[7]])


def milliseconds(m, repeats=50):
    """The shortest of some forward passes of one token."""
    times = []
    with tp.no_grad():
        for _ in range(repeats):
            start = time.perf_counter()
            m(token)
            times.append(time.perf_counter() - start)
    return 1e3 * min(times)


for name, scheme in (("float32", None), ("8 bits", tp.Uniform(8, granularity="group")),
                     ("4 bits", tp.Uniform(4, granularity="group"))):
    m = tp.quantize(copy.deepcopy(model), scheme) if scheme else model
    tp.save_quantized(m, folder / name)
    weights = [layer.weight for _, layer in m.named_modules() if hasattr(layer, "d_in")]
    held = sum(w.nbytes if scheme else w.data.nbytes for w in weights)
    print(f"{name:8} file {(folder / name).stat().st_size / 1e6:.2f} MB, layers in memory "
          f"{held / 1e6:.2f} MB, one token {milliseconds(m):.1f} ms")

# %% [markdown]
# *What to see: file and memory shrink. The time does not: it grows.* NumPy multiplies floats only,
# so each layer decodes all of its codes into floats before each product. llama.cpp and the
# libraries for graphics cards decode a few codes at a time, within the product, on their way from
# memory. So this course measures sizes and errors, and leaves speed to those programs.
#
# ## 2. A grid, and the nearest point on it
#
# $b$ bits can name $2^b$ things. *Uniform quantization* lets them name the points of an equally
# spaced grid. The *step* or *scale* $s$ says how far apart the points are. The *zero point* $z$
# says which code stands for 0. For a number $x$, with round to nearest,
#
# $$q = \mathrm{clip}\left(\mathrm{round}(x/s) + z,\ 0,\ 2^b - 1\right), \qquad
# \hat x = s\,(q - z) \tag{1}$$
#
# The *code* $q$ is stored, an integer. $\hat x$ is what a computation gets back.

# %%
show("schematic:grid")

# %% [markdown]
# By hand, with a number of the picture: $-0.63$ has the code $\mathrm{round}(-1.26) + 2 = 1$, and
# comes back as $0.5 \cdot (1 - 2) = -0.5$. And all of them:

# %%
grid = uniform.Grid(scale=np.float32([[0.5]]), zero=2, bits=3)
x = np.float32([[-1.55, -0.63, 0.1, 0.42, 1.31, 1.9, 2.9]])
q = grid.encode(x)
for name, row in (("x", x), ("q", q), ("x̂", grid.decode(q)), ("x̂ − x", grid.decode(q) - x)):
    print(f"{name:>6}", *(f"{v:6.2f}" if name != "q" else f"{v:6d}" for v in row[0]))

# %% [markdown]
# Inside the range no error exceeds half a step, 0.25. Outside, −1.55 and 2.9 are **clipped** to the
# ends, and the error can be as large as you like. Every choice in this lesson weighs these two
# kinds of error. (If $x$ falls anywhere within a step with equal probability, the root mean square
# of the rounding error is $s/\sqrt{12}$. One bit more about halves the step, and so the error.)
#
# ## 3. Choose the scale and the zero point
#
# Given numbers of which $l$ is the smallest and $h$ the largest, the grid should reach both, and
# the number 0 should lie on it. There are two usual ways.
#
# * **Symmetric**, also called *absmax*. The grid is the same on both sides of 0 and reaches
#   $m = \max |x|$. The integers $q - z$ go from $-n$ to $n$, with the largest $n$ for which they
#   fit into $b$ bits. By hand: (−0.8, 0.1, 0.35, 1.5) with 3 bits. Three bits have 8 codes, so
#   $n = 3$, the integers are −3 … 3, and one code stays unused. With $s = 1.5/3 = 0.5$ the numbers
#   become (−2, 0, 1, 3), and come back as (−1, 0, 0.5, 1.5).
# * **Asymmetric**. All $2^b$ codes are used for the range from $l$ to $h$.
#
# ### {exercise}
#
# Write `quantization_absmax(x, bits)`: quantize the array `x` (any shape, one scale for all of it)
# symmetrically, and return the *dequantized* array $\hat x$ of the same shape. Round with
# `np.rint`. An array of zeros must come back as zeros.

# %% exercise=quantization.absmax points=2 minutes=6 as=my_absmax
def quantization_absmax(x, bits):
    """x float (any shape), bits 2 … 8 → x̂ of the same shape, on one symmetric grid."""

# %% [markdown]
# Yours, on the matrix `W`. The next cell prints the relative error with 8 bits. Guess it for 4
# bits.

# %%
print(f"8 bits: {relative(my_absmax(W, 8)):.2f} %")
four_bits = tp.guess("10.four_bits", 6.0, "%")
four_bits

# %%
four_bits.beside(relative(my_absmax(W, 4)))

# %% [markdown]
# The step grows from $m/127$ to $m/7$, eighteen-fold, and the error with it.
#
# ### {exercise}
#
# Now the asymmetric grid, in another convention of signs. The survey of Matarazzo and Torlone
# (arXiv 2501.04040) follows Zhao et al. and writes
#
# $$x_q = R(x/S) - Z, \qquad \tilde x = S\,(x_q + Z) \tag{2}$$
#
# where $R$ rounds to nearest. $Z$ is *subtracted* on the way in and *added* on the way out. Most
# libraries do the opposite, and so does (1): $z = -Z$. Neither is wrong, but a formula of one side
# and a file of the other give weights that are off by $2 z s$.
#
# Write `quantization_survey(x, bits)`. Return `(x_q, S, Z)` for one grid over all of `x`, whose
# range $[l, h]$ is stretched to contain 0: $x_q$ as an integer array with values $0 \dots 2^b - 1$,
# $S$ as a positive number, $Z$ as a whole number. Derive first how many steps lie between $2^b$
# points, and which $Z$ makes the code of $l$ equal to 0. Round $x/S$ before you subtract $Z$. Clip
# the codes: if $l/S$ and $h/S$ both end in ½, both are rounded to the even neighbour, and the
# largest code can become $2^b$. Do not add an ε to $S$: it would push ties to one side. If all
# numbers are zero, any $S > 0$ is right, and zeros must come back as zeros.

# %% exercise=quantization.survey points=3 minutes=12 as=my_survey
def quantization_survey(x, bits):
    """x float (any shape) → (x_q, S, Z): codes 0 … 2**bits − 1, with x ≈ S·(x_q + Z)."""

# %%
row = W[0]
x_q, S, Z = my_survey(row, 4)
error = lambda row_hat: np.sqrt(np.mean((row_hat - row)**2))
print(f"a row from {row.min():.3f} to {row.max():.3f}, 4 bits, root mean square of the error:")
print(f"  asymmetric, yours    {error(S * (np.asarray(x_q) + Z)):.5f}, with Z = {Z}")
print(f"  symmetric, yours     {error(my_absmax(row, 4)):.5f}")
print(f"  signs mixed, x_q − Z {error(S * (np.asarray(x_q) - Z)):.5f}")

# %% [markdown]
# <details><summary>Both grids as formulas</summary>
#
# Symmetric, and asymmetric with the libraries' sign:
#
# $$s = \frac{m}{2^{b-1} - 1},\quad z = 2^{b-1} \qquad\qquad
# s = \frac{h - l}{2^b - 1},\quad z = \mathrm{round}(-l/s)$$
#
# </details>
#
# Compare yours with the package's.

# %%
show(uniform.make_grid)

# %% [markdown]
# Both grids for the same *lopsided* numbers, which reach much further on one side of 0 than on the
# other:

# %%
show("staircase")

# %% [markdown]
# *What to see: the error is a sawtooth on the grid and a slope beyond its ends. The symmetric grid
# goes on to −1.4, left of the picture. With a zero point the steps are smaller, since none are
# spent where there are no numbers.*
#
# ## 4. What shares a scale
#
# With one scale for a whole matrix, a single large weight makes the step coarse for all the others.
# One scale per **channel** (a row of $W$, which is an output channel) or per **group** of $g$
# consecutive weights in a row follows the numbers more closely. The scales have to be stored, too:
#
# $$\mathrm{bits\ per\ weight} = b + \frac{\mathrm{bits}(s) + \mathrm{bits}(z)}{g} \tag{3}$$
#
# By hand: 4 bits in groups of 64, symmetric, with a float32 scale for each group:
# $4 + 32/64 = 4.5$.

# %%
tp.Uniform(bits=4, granularity="group", group_size=64).quantize(W)

# %% [markdown]
# Such a `QTensor` is what every scheme of the package makes: packed codes, and a scale per block.
# This grid is symmetric, so the codes in use are $z - n = 1$ to $z + n = 15$, and 0 stays unused.

# %% [markdown]
# Move the handles: the first changes the bits, in groups of 32, and the second the group, at 3
# bits. Drawn are the first 64 weights of `W`.

# %%
sliders.bits(W)

# %%
sliders.groups(W)

# %% [markdown]
# *What to see: each bit more at least halves the error. The first ones take off most, because the
# step is $m$ with 2 bits, $m/3$ with 3 and $m/7$ with 4. A smaller group takes off much less. In
# groups of 8 and of 4 the scales take more bits than the codes.*
#
# **Your quantizer, on the base.** It rounds all linear layers in the blocks to 4 bits, block by
# block, and the loss of the rounded model is measured on text that the base has not seen.

# %%
task = tp.tasks.domain(model.tokenizer, context=128)
loss_of = lambda m: tp.evaluate(m, task, "test", max_batches=4)["loss"]


def rounded_by_me(bits, group):
    """The base with my_absmax on every block of `group` weights (None: on every whole matrix)."""
    m = copy.deepcopy(model)
    for path, layer in m.named_modules():
        if path.startswith("blocks.") and isinstance(layer, tp.engine.Linear):
            V = layer.weight.data
            blocks = V.reshape(-1, group or V.size)
            rounded = np.float32([my_absmax(block, bits) for block in blocks])
            layer.weight.data = rounded.reshape(V.shape)
    return m


exact = loss_of(model)
for shared, group in (("a matrix", None), ("128 weights", 128), ("32 weights", 32)):
    added = loss_of(rounded_by_me(4, group)) - exact
    print(f"4 bits, one scale for {shared:12} adds {added:.3f} nats/token")

# %% [markdown]
# ### {exercise}
#
# A file holds 4-bit codes and zero points as `uint8`, and a scale and a zero point for each group.
# Somebody decodes the file like this:

# %%
def careless_decode(q, s, z, group):
    """q (d_out, d_in), s and z (d_out, d_in/group) → x̂ = s (q − z)."""
    return np.repeat(s, group, axis=1) * (q - np.repeat(z, group, axis=1))


Q = tp.Uniform(bits=4, symmetric=False, granularity="group", group_size=32).quantize(W)
codes = Q.unpack().reshape(W.shape)                                       # uint8
s, z = Q.scales().reshape(len(W), -1), Q.zeros().astype(np.uint8).reshape(len(W), -1)
W_hat = careless_decode(codes, s, z, 32)
print("W      ", W[0, :6].round(2))
print("decoded", W_hat[0, :6].round(2))
print(f"relative error {relative(W_hat):.0f} %, the package's {relative(Q.dequantize()):.0f} %")

# %% [markdown]
# *What to see: positive weights come back as they should. Negative weights come back positive and
# far too large.*
#
# Find the bug and write `quantization_bug(q, s, z, group)`, the mended function. It must also be
# right for codes of 8 bits.

# %% exercise=quantization.bug points=2 minutes=8 as=my_decode
def quantization_bug(q, s, z, group):
    """q uint8 (d_out, d_in), s float32 and z uint8 (d_out, d_in/group) → x̂ (d_out, d_in)."""

# %%
print(f"relative error {relative(my_decode(codes, s, z, 32)):.0f} %")

# %% [markdown]
# An integer that leaves the range of its type *wraps*: it comes back at the other end, without an
# error.
#
# How much does a finer grid of scales buy? Six choices of what shares a scale, and four
# widths. (Scales are float16 here, and float32 in the sliders.)

# %% fold
options = [("tensor", None), ("channel", None), *(("group", g) for g in (64, 32, 16, 8))]
fig, ax = plot.figure()
for bits, colour in ((8, "black"), (4, "blue"), (3, "green"), (2, "vermillion")):
    made = [tp.Uniform(bits, symmetric=False, granularity=kind, group_size=g,
                       scale_dtype="float16").quantize(W) for kind, g in options]
    errors = [relative(Q.dequantize()) for Q in made]
    ax.plot([Q.bits_per_weight for Q in made], errors, "o-", color=plot.COLOURS[colour], ms=4)
    ax.annotate(f"{bits} bits", (made[-1].bits_per_weight, errors[-1]), xytext=(7, 0),
                textcoords="offset points", fontsize=8, color=plot.COLOURS[colour], va="center")
ax.set(yscale="log", xlabel="bits per weight, scales and zero points included",
       ylabel="‖Ŵ − W‖/‖W‖ (%)")
ax.set_title("from left to right: a scale per tensor, per row, per 64, 32, 16, 8 weights",
             loc="left", fontsize=10)
fig.set_label("Relative error, on a logarithmic axis, over bits per weight, one line for each "
              "of 8, 4, 3 and 2 bits. Each line falls from one scale per tensor to one per 8 "
              "weights, steeply at first.")
fig

# %% [markdown]
# *What to see: each line falls steeply at first and then flattens, while its price goes on rising.
# About 4.2 bits can be spent on 2 bits in groups of 8, on 3 bits in groups of 16, or on 4 bits with
# a scale per row. The last has by far the smallest error.*
#
# ## 5. Clip on purpose
#
# The range need not reach the largest number. With $p < 1$ a symmetric grid spans only
# $[-p\,m,\ p\,m]$. The step shrinks by $p$ for all numbers, and those few beyond the end are
# clipped. The best $p$ makes the sum of both errors least:
#
# $$p^* = \arg\min_p \sum_i \left(\hat x_i(p) - x_i\right)^2 \tag{4}$$

# %% fold
def parts(p, bits):
    """Squared errors of W on per-row grids of range p·max|w|: (inside the range, outside)/‖W‖²."""
    m = p * np.abs(W).max(1)
    error = (uniform.make_grid(-m, m, bits).round(W) - W)**2 / np.sum(W**2)
    clipped = np.abs(W) > m[:, None]
    return error[~clipped].sum(), error[clipped].sum()

ps = np.linspace(0.2, 1, 33)
fig, axes = plot.figure(1, 2, height=3.2, width=8.4)
for ax, bits in zip(axes, (3, 4), strict=True):
    rounding, clipping = np.array([parts(p, bits) for p in ps]).T
    for y, label, colour in ((rounding, "rounding", "blue"), (clipping, "clipping", "vermillion"),
                             (rounding + clipping, "sum", "black")):
        ax.plot(ps, y, color=plot.COLOURS[colour], label=label)
    best = ps[(rounding + clipping).argmin()]
    ax.axvline(best, color=plot.COLOURS["grey"], lw=1, ls="--")
    ax.set(xlabel="p, the fraction of the range kept", ylabel="‖Ŵ − W‖²/‖W‖²",
           ylim=(0, 2.2 * (rounding + clipping)[-1]), title=f"{bits} bits: least at p = {best:.2f}")
axes[0].legend(loc="upper right")
fig.set_label("Two panels, 3 and 4 bits: the error of rounding rises with the fraction of the "
              "range kept, that of clipping falls, and their sum is least below 1, further to "
              "the left for 3 bits.")
fig

# %% [markdown]
# *What to see: with fewer bits it is best to give up more of the range. The fewer points there are,
# the more a single far number costs the rest.* Move $p$ (3 bits, one grid for all of `W`):

# %%
sliders.clipping(W)

# %% [markdown]
# ### {exercise}
#
# Write `quantization_best_clip(x, bits, fractions)`. For each row of `x (n, g)`, find the fraction
# $p$ of `fractions` whose symmetric grid over $[-p\,m, p\,m]$ gives the least squared error, with
# $m = \max|x|$ of the row. Return an array `(n,)`; of equally good fractions, the first. A row may
# be all zeros. The unused code stays unused: with 3 bits the integers are −3 … 3, and what lies
# beyond is clipped to these.

# %% exercise=quantization.best_clip points=4 minutes=15 as=my_best_clip
def quantization_best_clip(x, bits, fractions):
    """x float (n, g), fractions (k,) in (0, 1] → the best fraction of every row, (n,)."""

# %%
p = my_best_clip(W, 3, np.linspace(1, 0.2, 81))
m = p * np.abs(W).max(1)
print(f"3 bits, {len(p)} rows: p from {p.min():.2f} to {p.max():.2f}, median {np.median(p):.2f}")
print(f"error {relative(uniform.make_grid(-m, m, 3).round(W)):.1f} % with your ranges, "
      f"{relative(tp.Uniform(3).quantize(W).dequantize()):.1f} % with the whole range")

# %% [markdown]
# Compare yours with the package's search.

# %%
show(tp.Uniform.best_share, "p = np.float32")

# %% [markdown]
# ## 6. Grids that are not uniform: floating point
#
# A float of few bits is also a grid of a few points. It has $e$ *exponent bits*, which give the
# power of two below the number, and $m$ *mantissa bits*, which place it between this power and the
# next. (In this section $m$ is not the largest number.) So the spacing of the points grows with
# their size. With $E$ and $M$ the integers in the exponent's and the mantissa's bits,
#
# $$x = \pm\, 2^{E - \mathrm{bias}} \cdot \left(1 + M/2^m\right), \qquad
# \mathrm{bias} = 2^{e-1} - 1 \tag{5}$$
#
# For $E = 0$ it is $\pm\, 2^{1 - \mathrm{bias}} \cdot M/2^m$ instead: the *subnormal* numbers next
# to zero. "E2M1" means $e = 2$ and $m = 1$.

# %%
show(float_values)

# %% fold
fig, ax = plot.figure(height=3.0, width=7.2)
grids = {"int4 (absmax)": np.arange(-7, 8) / 7, "FP4 E2M1": codebook("E2M1") / 6,
         "FP4 of bitsandbytes": codebook("FP4"), "E3M0": codebook("E3M0") / codebook("E3M0").max(),
         "NF4 (lesson 13)": codebook("nf4")}
colours = "sky", "orange", "vermillion", "purple", "blue"
for y, (values, colour) in enumerate(zip(grids.values(), colours, strict=True)):
    values = np.unique(values)
    ax.plot(values, np.full(len(values), y), "|", ms=14, mew=1.8, color=plot.COLOURS[colour])
ax.set_yticks(range(len(grids)), [f"{name}: {len(np.unique(v))} values"
                                  for name, v in grids.items()])
ax.set(xlabel="value after division by the largest of the block", ylim=(len(grids) - 0.5, -0.5),
       title="What 4 bits can name")
fig.set_label("The values of five formats of 4 bits as ticks from -1 to 1. Those of int4 are "
              "evenly spaced; those of the floats and of NF4 are denser near 0.")
fig

# %% [markdown]
# *What to see: the float grids put most of their points near 0, where most weights are. Three
# different things are called FP4: that of the Open Compute Project (E2M1), that of bitsandbytes,
# and E3M0, which has powers of two only.*
#
# ### {exercise}
#
# Write `quantization_to_float(x, e, m)`. For formats in which all bit patterns are finite numbers,
# such as E2M1, return the nearest value
# for every element of `x`. An element midway between two values becomes the one that is an even
# multiple of their distance. What lies beyond the largest value
# $V = 2^{2^e - 1 - \mathrm{bias}}(2 - 2^{-m})$ becomes $\pm V$. No table is needed: derive from (5)
# how far apart the values next to $x$ are, and round $x$ to a multiple of that distance with
# `np.rint`, which does the same with ties. Zero must come out as zero. `np.frexp` gives exact
# exponents, but it returns $|x| = f\cdot 2^k$ with $f$ in $[\frac12, 1)$.

# %% exercise=quantization.to_float points=4 minutes=25 as=my_float
def quantization_to_float(x, e, m):
    """x float (any shape) → the nearest floats of e exponent and m mantissa bits, alike."""

# %% [markdown]
# Compare yours with the package's. It returns codes, in which the exponent and the multiple are
# packed together.

# %%
show(formats.encode, "ldexp")

# %% [markdown]
# Integers against floats is a fair comparison only if the same weights share a scale. With 8 bits
# and one scale per tensor there are E4M3 (largest value 448) and E5M2 (57,344). With 4 bits and one
# scale for 32 weights there is E2M1. The *microscaling* format MXFP4 is E2M1 as well, but its scale
# is only a power of two in 8 bits: $4 + 8/32 = 4.25$ bits per weight. Your functions make three of
# the lines.

# %%
blocks = W.reshape(-1, 32)
s = np.abs(blocks).max(1, keepdims=True) / 6                              # 6 is V of E2M1
stored = lambda scheme: scheme.quantize(W).dequantize()
found = {"8 bits, one scale per tensor: integers, yours": my_absmax(W, 8),
         "                              E4M3": stored(tp.FloatFormat("E4M3")),
         "                              E5M2": stored(tp.FloatFormat("E5M2")),
         "4 bits, one per 32 weights:   integers, yours": [my_absmax(b, 4) for b in blocks],
         "                              E2M1, yours": np.asarray(my_float(blocks / s, 2, 1)) * s,
         "                              MXFP4": stored(tp.FloatFormat("E2M1", block_size=32,
                                                                      scale_format="E8M0"))}
for name, W_hat in found.items():
    print(f"{name:46} {relative(np.reshape(W_hat, W.shape)):6.2f} %")

# %% [markdown]
# At 8 bits the integers have the smaller error. A float spends many codes on tiny numbers, and
# weights that are divided by a common scale need few of these. At 4 bits the two are close.
#
# ## 7. The whole model
#
# `tp.quantize` puts a scheme on every linear layer in the blocks, in place. Embeddings and norms
# keep their precision. *Perplexity* is $\exp$ of the loss in nats per token. The next cell
# prints it for float32. Guess it for 2 bits in groups of 32.

# %%
print(f"float32: perplexity {np.exp(exact):.2f}")
two_bits = tp.guess("10.two_bits", 40.0)
two_bits

# %%
rows = {}
for bits in (8, 4, 3, 2):
    for kind, g in (("tensor", None), ("channel", None), ("group", 32)):
        scheme = tp.Uniform(bits, symmetric=False, granularity=kind, group_size=g,
                            scale_dtype="float16")
        m = tp.quantize(copy.deepcopy(model), scheme)
        rows[bits, kind] = np.exp(loss_of(m))
        print(f"{bits} bits per {kind:<8} {tp.bits_per_weight(m):6.3f} bits/weight   "
              f"error {tp.weight_error(model, m):6.1%}   perplexity {rows[bits, kind]:8.2f}"
              f"   adds {np.log(rows[bits, kind]) - exact:5.3f} nats/token")
two_bits.beside(rows[2, "group"])

# %% [markdown]
# *What to see: 8 bits change next to nothing. At 4 bits the
# groups lose little, and one scale per tensor loses much. At 2 bits the groups leave a language
# model, a scale per channel leaves little (counting single tokens has perplexity 297
# on the whole test text), and one per
# tensor is worse than a guess among the 1,024 tokens.* These grids are asymmetric. Your own in
# section 4 were symmetric, so one scale per matrix at 4 bits added more nats there than here. The
# study, with several draws of the text:

# %%
show("granularity")

# %% [markdown]
# *What to see: error and loss both fall steeply at first and then slowly. (The axis of the error is
# logarithmic, that of the loss is not, so do not compare the slopes.) The first step, from one
# scale per tensor to one per channel, costs hardly any bits and gains most.*
#
# One question remains: *when* is the range measured? That of activations is found at run time
# (*dynamic*) or estimated beforehand (*static*).
#
# ### {exercise}
#
# A byte holds two codes of 4 bits. Write `quantization_pack(q)`: pack the codes `q` (`uint8`, an
# even number, each 0 … 15). Two neighbours share a byte, and the first is in its high half. Return
# `uint8`. Your bytes are those of the package's `QTensor`.

# %% exercise=quantization.pack points=2 minutes=6 bonus=yes
def quantization_pack(q):
    """Codes uint8 (n,), n even, 0 … 15 → uint8 (n/2,), first code in the high half."""

# %%
my_bytes = np.asarray(result.function(codes.reshape(-1)))
print(f"{codes.size:,} codes in {my_bytes.size:,} bytes; the same as the package's:",
      np.array_equal(my_bytes, Q.codes))

# %% [markdown]
# ### {exercise} · Spend 3.25 bits (open, 4 points, 25 minutes)
#
# A colleague has a matrix of $4096 \times 4096$ weights and a budget of 3.25 bits per weight *in
# all*. She can take (a) 3 bits with float16 scales in symmetric groups of 64; (b) 2 bits, symmetric
# groups of 16 with 16-bit scales, and see whether there is room for zero points too; (c) 3 bits per
# channel, with the bits saved spent on keeping the few largest weights exactly, each as a 32-bit
# index and a 16-bit value. (A 16-bit scale per channel costs $16/4096 = 0.004$ bits per weight in
# her matrix, and $16/128 = 0.125$ in `W`, so count each matrix by itself.) Which would you try
# first? Compute what each stores, measure at least two of them on `W` or on the whole model, and
# say what would change your mind.
#
# <details><summary>Rubric</summary>
#
# 1 point: the sizes are right, whatever is stored beside the codes included. 1 point: at least two
# of them measured, with the command. 1 point: a reason in terms of step sizes, not only a number. 1
# point: what would change the choice.
#
# </details>

# %% [answer]
# *Sizes.* (a) $3 + 16/64 = 3.25$. (b) $2 + 16/16 = 3$; a 2-bit zero point per group makes
# $3 + 2/16 = 3.125$. (c) $3 + 16/4096 \approx 3.004$, which leaves 0.246 bits per weight: at 48
# bits each, one weight in 195 is kept exactly. In `W`, whose rows are shorter, it is one in 384.
#
# *Measured on `W`*, relative error: (a) 26 %, (b) 59 % symmetric and 36 % with zero points, (c)
# 26.2 % (28 % with none kept), a little behind (a). With one in 195, as in her matrix, it is 25 %.
# Two bits lose clearly: a symmetric grid of two bits has three levels in use. (a) and (c) are
# close. In (a) a group's largest weight coarsens the step of 63 others. In (c)
# the largest that is *left* coarsens the step of its row, and what is kept no longer counts.
# `tp.Uniform(3, True, "group", 64, scale_dtype="float16").quantize(W)` and its likes measure it.
#
# *What would change the choice.* Heavier tails favour (c). Rows that are all alike favour (a). An
# index and a gather for each kept weight cost time, which this budget does not count. Weight error
# is not output error (lesson 12): perplexity may reverse a close call.

# %% [markdown]
# ## The real call
#
# llama.cpp quantizes a file with one command. `Q4_0` is 4 bits
# in groups of 32, with a scale in float16. Its codes are −8 … 7, and −8 is the weight of the
# largest magnitude, so the scale has a sign:

# %%
write_gguf(folder / "base.gguf", model)
small = tp.quantize(copy.deepcopy(model), tp.GGUF("Q4_0"))
write_gguf(folder / "base-Q4_0.gguf", small)
for file in sorted(folder.glob("*.gguf")): print(f"{file.name:15} {file.stat().st_size:,} bytes")

# %% [markdown]
# llama.cpp makes such a file of `base.gguf` by itself, and writes text with it:
#
# ```bash
# llama-quantize base.gguf base-Q4_0.gguf Q4_0
# llama-cli -m base-Q4_0.gguf -p "The array" -n 32
# ```
#
# A large model is given `Q4_K_M` in place of `Q4_0`: a mixture of 4 and 6 bits, in blocks of 256
# weights, which are more than most rows of our base have.

# %% [markdown]
# ## Recall
#
# 1. A block holds numbers from −0.2 to 1.0. What are $s$ and $z$ of the asymmetric 4-bit grid?
# <details><summary>Answer</summary>
#
# $s = 1.2/15 = 0.08$. $-l/s = 2.5$ rounds to the even neighbour, $z = 2$. (The survey's $Z$ is −2.)
# The code of −0.2 is then $\mathrm{round}(-2.5) + 2 = 0$, and −0.2 is decoded to −0.16.
#
# </details>
#
# 2. Why is the range stretched to contain 0?
# <details><summary>Answer</summary>
#
# So that $z$ is a valid code and 0 is represented exactly. Padding, masked or pruned weights, and
# the zeros of a ReLU then have no error.
#
# </details>
#
# 3. How many bits per weight does a 4-bit scheme with groups of 128, float16 scales and 4-bit zero
# points store?
# <details><summary>Answer</summary>
#
# $4 + (16 + 4)/128 = 4.156$.
#
# </details>
#
# 4. Which of the two errors, rounding and clipping, does a smaller range make smaller? Why does the
# best range shrink when bits are taken away?
# <details><summary>Answer</summary>
#
# Rounding: its squared error goes with $s^2$, and $s$ with the range. With fewer bits $s$ is
# larger, so there is more rounding error to be saved, while the clipping error of a given range
# hardly depends on the bits.
#
# </details>
#
# 5. Two libraries both offer "symmetric 4-bit" and give different codes for the same weights. Name
# one reason.
# <details><summary>Answer</summary>
#
# The step: $m/7$ (absmax) or $m/7.5$ (all 16 codes in use, `convention="full"`). Another reason is
# how ties are rounded, and whether $x/s$ or $x \cdot (1/s)$ is rounded.
#
# </details>

# %% [markdown]
# ## Where the paper says this
#
# * The survey, Matarazzo and Torlone (arXiv 2501.04040), §3.6; the notation with $Z$ is that of
#   Zhao et al. (arXiv 2303.18223), §5.4.
# * The affine mapping with an integer zero point: Jacob et al. (arXiv 1712.05877).
# * Operations and bandwidth of the A100 with 80 GB: NVIDIA's data sheet.
# * FP8, E4M3 and E5M2: Micikevicius et al. (arXiv 2209.05433).
# * Microscaling: Rouhani et al. (arXiv 2310.10537).
#
# ## Where implementations differ
#
# * *Symmetric.* SmoothQuant, LLM.int8() and AWQ's code divide $m$ by $2^{b-1}-1$ (AWQ's equation
#   (1) has $2^{b-1}$). In GPTQ's code and torchao $-m$ has a code of its own, $s = 2m/(2^b - 1)$:
#   `Uniform(convention="full")`.
# * *Ties.* NumPy and PyTorch round a half to the even neighbour. PyTorch multiplies by $1/s$, which
#   can put a tie on the other side.
# * *Scales in 16 bits.* Rounded to nearest, a scale may become smaller, and the largest weight is
#   then clipped by more than half a step. Here such scales are rounded up.
# * *Overflow of E4M3.* Beyond 464 ml_dtypes gives NaN, and PyTorch (2.12 and later) saturates:
#   `FloatFormat(saturate=…)`.
# * *Order in a byte.* bitsandbytes puts the first of two 4-bit codes in the high half. GGUF's Q4_0
#   puts it in the low half, and pairs element $i$ with $i + 16$.
#
# ## What you can do now
#
# Quantize any matrix to any width, say how many bits that really stores, and predict which of two
# choices has the smaller error. **Lesson 11** rounds what they
# are multiplied with as well, and meets the outliers that made 8-bit models fail.
