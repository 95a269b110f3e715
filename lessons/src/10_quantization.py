# %% [markdown]
# # 10 · Quantization from scratch
#
# **What you will do.** Take a weight matrix of the shipped model, round it to 8, 4, 3 and 2 bits with a rule you write
# yourself, and find out what decides how much that costs: where the grid lies, what shares a scale, what is done with
# the largest numbers, and whether the grid has to be uniform at all. At the end the whole model is quantized in a dozen
# ways and its perplexity measured.
#
# **What you need.** NumPy broadcasting; what a weight matrix `(d_out, d_in)` of a linear layer is (lesson 02). No
# fine-tuning yet: that comes back in lessons 13 and 14.
#
# **Time.** 60 minutes: 35 of reading and running, 25 to 40 of exercises.

# %%
import copy

import numpy as np

import tinypeft as tp
from tinypeft.course import show
from tinypeft.quant import formats, uniform
from tinypeft.quant.codebooks import codebook, float_values
from tinypeft.study import plot

model = tp.load_pretrained()
W = model.get("blocks.2.mlp.up").weight.data                     # (d_out, d_in), float32
print(W.shape, f"{W.nbytes:,} bytes, std {W.std():.3f}, largest {np.abs(W).max():.3f}")

# %% [markdown]
# ## 1. A grid, and the nearest point on it
#
# Part 2 of the survey is about **memory-efficient** adaptation: the weights stay what they are, but each is stored in
# fewer bits. A number of $b$ bits can name $2^b$ things. Uniform quantization lets it name the points of an equally
# spaced grid: the *step* or *scale* $s$ says how far apart they are, and the *zero point* $z$ says which code stands
# for 0.
#
# $$q = \mathrm{clip}\left(\mathrm{round}(x/s) + z,\ 0,\ 2^b - 1\right)$$
#
# $$\hat x = s\,(q - z)$$
#
# The first line is what is stored, an integer; the second is what a computation gets back. In the package the two are
# the methods of a small class, `Grid` (`low` is 0, except where the smallest code is left unused):

# %%
show(uniform.Grid._codes)
show(uniform.Grid.decode)

# %% [markdown]
# Let us look at it. Three bits, $s = 0.25$, $z = 4$: eight points, from −1 to 0.75.

# %%
grid = uniform.Grid(scale=np.float32([[0.25]]), zero=4, bits=3)
x = np.float32([[-2.0, -1.0, -0.4, 0.0, 0.1, 0.13, 0.75, 0.9]])
q = grid.encode(x)
for name, row in (("x", x), ("q", q), ("x̂", grid.decode(q)), ("x̂ − x", grid.decode(q) - x)):
    print(f"{name:>6}", *(f"{v:6.2f}" if name != "q" else f"{v:6d}" for v in row[0]))

# %% [markdown]
# Inside the range no error exceeds half a step, 0.125. Outside, −2 and 0.9 are **clipped** to the ends, and the error
# grows without bound. Every choice in this lesson is a trade between the two kinds of error.
#
# If $x$ falls anywhere within a step with equal probability, the rounding error is uniform on $[-s/2, s/2]$, and its
# root mean square is
#
# $$\mathrm{rms}(\hat x - x) \approx \frac{s}{\sqrt{12}}$$

# %%
inside = np.random.default_rng(0).uniform(-1, 0.75, (1, 100_000)).astype(np.float32)
rms = np.sqrt(np.mean((grid.round(inside) - inside)**2))
print(f"measured {rms:.4f}   s/√12 = {0.25 / np.sqrt(12):.4f}")

# %% [markdown]
# So one bit more halves the step, and quarters the squared error: 6 dB per bit, as engineers say.
#
# ## 2. Choosing the scale and the zero point
#
# Given numbers whose smallest is $l$ and whose largest is $h$, the grid should reach both. There are two usual ways.
# The **asymmetric** one uses all codes for $[l, h]$, stretched to contain 0 so that 0 is represented exactly:
#
# $$s = \frac{h - l}{2^b - 1}, \qquad z = \mathrm{round}(-l/s)$$
#
# The **symmetric** one, also called *absmax*, fixes $z$ in the middle of the codes and lets only $m = \max |x|$ decide:
#
# $$s = \frac{m}{2^{b-1} - 1}, \qquad z = 2^{b-1}$$

# %%
show(uniform.make_grid)

# %% [markdown]
# In a picture, both grids for the same lopsided numbers:

# %%
show("staircase")

# %% [markdown]
# *What to see: the error is a sawtooth inside the range and a slope outside it; with a zero point the steps are
# smaller, since none are spent where there are no numbers.*
#
# The symmetric grid leaves one code unused (for 4 bits, −8) and needs no zero point to be stored. Which is better
# depends on the numbers: for a row of weights spread evenly about 0 the two nearly agree, but at 2 bits the symmetric
# grid has three points left of four.
#
# **A trap of signs.** The survey follows Zhao et al. and writes the transformation as
#
# $$x_q = R(x/S) - Z, \qquad \tilde x = S\,(x_q + Z)$$
#
# There $Z$ is *subtracted* on the way in and *added* on the way out. Every library does the opposite, and so does this
# package: $z = -Z$. Neither is wrong, but a formula taken from one side and a file from the other give weights that are
# off by $2 z s$. You write the survey's version yourself in exercise 2.

# %%
row = W[:1]
for name, symmetric in (("symmetric", True), ("asymmetric", False)):
    g = uniform.make_grid(row.min(1), row.max(1), bits=4, symmetric=symmetric)
    error = np.sqrt(np.mean((g.round(row) - row)**2))
    print(f"{name:>10}: s = {g.scale[0, 0]:.5f}, z = {np.ravel(g.zero)[0]:.0f}, "
          f"range {g.decode(np.array([[g.low, 15]]))[0]}, rms error {error:.5f}")

S, Z = g.scale, -g.zero                                                   # the same grid in the survey's letters
x_q = np.clip(np.rint(row / S) - Z, 0, 15)
print("x̃ = S (x_q + Z) is the same:", np.array_equal(S * (x_q + Z), g.round(row)))

# %% [markdown]
# ### {exercise}
#
# Write `quantization_absmax(x, bits)`: quantize the array `x` (any shape, one scale for all of it) symmetrically and
# return the *dequantized* array $\hat x$, of the same shape. Round with `np.rint`. Take care of an array of zeros: it
# must come back as zeros.

# %% exercise=quantization.absmax points=2 minutes=5
def quantization_absmax(x, bits):
    """x float (any shape), bits 2 … 8 → x̂, of the same shape: one symmetric scale max|x|/(2**(bits−1) − 1) for all."""
    ### BEGIN SOLUTION
    m = np.abs(x).max()
    if m == 0:
        return np.zeros_like(x)
    s = m / (2**(bits - 1) - 1)
    return np.rint(x / s) * s
    ### END SOLUTION

# %%
result = tp.check("quantization.absmax", quantization_absmax)
result

# %%
quantization_absmax = result.function
for bits in (8, 4, 2):
    print(f"{bits} bits: relative error {np.linalg.norm(quantization_absmax(W, bits) - W) / np.linalg.norm(W):.3f}")

# %% [markdown]
# ### {exercise}
#
# Write `quantization_survey(x, bits)` in the survey's convention: one asymmetric grid for all of `x`, whose range
# $[l, h]$ is stretched to contain 0. Return `(x_q, S, Z)`: the codes as an integer array with values $0 \dots 2^b - 1$,
# the scale as a positive number, and the zero point as an integer (a Python number will do), such that
# $\tilde x = S\,(x_q + Z)$ is as near to `x` as the grid allows. Work out first what $Z$ must be for the code of $l$ to
# be 0. The code must be clipped: where both ends lie midway between two grid points, rounding twice pushes the largest
# number one step past the end. Round $x/S$ before you subtract $Z$. Zeros must come back as zeros, with $S > 0$.

# %% exercise=quantization.survey points=3 minutes=12
def quantization_survey(x, bits):
    """x float (any shape) → (x_q, S, Z): codes 0 … 2**bits − 1, with x ≈ S·(x_q + Z)."""
    ### BEGIN SOLUTION
    l, h = min(x.min(), 0), max(x.max(), 0)
    S = (h - l) / (2**bits - 1) or 1.0
    Z = int(np.rint(l / S))
    x_q = np.clip(np.rint(x / S) - Z, 0, 2**bits - 1).astype(int)
    return x_q, S, Z
    ### END SOLUTION

# %%
result = tp.check("quantization.survey", quantization_survey)
result

# %%
quantization_survey = result.function
x_q, S, Z = quantization_survey(np.array([-0.4, 0.0, 0.3, 1.1]), 4)
print("codes", x_q, "  S", round(float(S), 4), "  Z", Z, "  x̃", np.round(S * (x_q + Z), 3))

# %% [markdown]
# ## 3. What shares a scale
#
# One scale for a whole matrix means that a single large weight makes the step coarse for all the others. Nothing forces
# us to that. One scale per **output channel** (a row), or per **group** of $B$ consecutive weights in a row, follows
# the numbers more closely, and has to be stored:
#
# $$\mathrm{bits\ per\ weight} = b + \frac{\mathrm{bits}(s) + \mathrm{bits}(z)}{B}$$

# %%
show(tp.QTensor.bits_per_weight.fget)
q = tp.Uniform(bits=4, granularity="group", group_size=32, scale_dtype="float16").quantize(W)
print("by the formula:", 4 + 16 / 32)
q

# %% [markdown]
# A `QTensor` is what every scheme in this package produces: packed codes, two of 4 bits to a byte, and a scale per
# block. Its size counts all that is stored, so it can be held against the formula.
#
# How much does a finer grid of scales buy? We ask for seven granularities and four widths, on this one matrix. The step
# of a block is proportional to its largest number, and the largest of 32 numbers is smaller than the largest of 65,536:

# %%
options = [("tensor", None), ("channel", None), *(("group", g) for g in (128, 64, 32, 16, 8))]
relative = lambda Q: np.linalg.norm(Q.dequantize() - W) / np.linalg.norm(W)

fig, ax = plot.figure()
for bits, colour in ((8, "black"), (4, "blue"), (3, "green"), (2, "vermillion")):
    made = [tp.Uniform(bits, False, kind, g, scale_dtype="float16").quantize(W) for kind, g in options]
    ax.plot([Q.bits_per_weight for Q in made], [100 * relative(Q) for Q in made], "o-", color=plot.COLOURS[colour], ms=4)
    ax.annotate(f"{bits} bits", (made[-1].bits_per_weight, 100 * relative(made[-1])), xytext=(7, 0),
                textcoords="offset points",
                fontsize=8, color=plot.COLOURS[colour], va="center")
ax.set(yscale="log", xlabel="bits per weight, scales and zero points included", ylabel="‖Ŵ − W‖/‖W‖ (%)")
ax.set_title("Left end of a line: one scale per tensor; right end: one per 8 weights", loc="left", fontsize=10)
fig

# %% [markdown]
# *What to see:* Each line falls steeply at first and then flattens while its price goes on rising: at 2 bits with
# groups of 8, more than half of what is stored is scales and zero points. Compare what about 4.2 bits can be spent on:
# 2 bits in groups of 8, 3 bits in groups of 16, or 4 bits with a scale per row; the last has by far the smallest error.
# Groups of 32 to 128 are what everybody settled on.
#
# ## 4. Clipping on purpose
#
# The range need not reach the largest number. With $p < 1$ the grid spans only $[p\,l,\ p\,h]$: the step shrinks by $p$
# for all numbers, and those few beyond the end are clipped. What is best is whatever makes the sum of both errors
# least:
#
# $$p^* = \arg\min_p \sum_i \left(\hat x_i(p) - x_i\right)^2$$

# %%
show(tp.Uniform.best_share, "p = np.float32")

# %% [markdown]
# 81 fractions from 1 down to 0.2 are tried on every row at once. Here are both parts of the error for 512 rows of
# weights at 3 bits:

# %%
def parts(p, bits):
    """Squared errors of W on per-row grids of range p·max|w|: (inside the range, outside), relative to ‖W‖²."""
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
    ax.set(xlabel="p, the fraction of the range kept", ylabel="‖Ŵ − W‖²/‖W‖²", ylim=(0, 2.2 * (rounding + clipping)[-1]),
           title=f"{bits} bits: least at p = {best:.2f}")
axes[0].legend(loc="upper center")
fig

# %% [markdown]
# *What to see:* At 3 bits it is best to give up nearly a third of the range, at 4 bits an eighth. The fewer points
# there are, the more a single far one costs the rest.
#
# ### {exercise}
#
# Write `quantization_best_clip(x, bits, fractions)` for rows `x (n, B)` and symmetric grids: for each row, the fraction
# $p$ of `fractions` whose range $[-p\,m, p\,m]$, $m = \max|x|$ of the row, gives the least squared error. Return
# `(n,)`; of equally good fractions, the first. A row may be all zeros. Build it from the formulas of sections 1 and 2:
# remember that the code is clipped, and where.

# %% exercise=quantization.best_clip points=4 minutes=15
def quantization_best_clip(x, bits, fractions):
    """x float (n, B), fractions (k,) in (0, 1] → the best fraction of every row, (n,)."""
    ### BEGIN SOLUTION
    n = 2**(bits - 1) - 1
    m = np.abs(x).max(1, keepdims=True)
    errors = []
    for p in fractions:
        s = p * m / n
        x_hat = s * np.clip(np.rint(x / s), -n, n)
        errors.append(np.sum((x_hat - x)**2, axis=1))
    return np.asarray(fractions)[np.argmin(errors, axis=0)]
    ### END SOLUTION

# %%
result = tp.check("quantization.best_clip", quantization_best_clip)
result

# %%
quantization_best_clip = result.function
p = quantization_best_clip(W, 3, np.linspace(1, 0.2, 81))
print(f"3 bits, {len(p)} rows: p from {p.min():.2f} to {p.max():.2f}, median {np.median(p):.2f}")

# %% [markdown]
# ## 5. Grids that are not uniform: floating point
#
# A float of $e$ exponent and $m$ mantissa bits is also a grid of a few points, spaced in proportion to their size:
#
# $$x = (-1)^{\mathrm{sign}} \cdot 2^{E - \mathrm{bias}} \cdot \left(1 + M/2^m\right), \qquad \mathrm{bias} = 2^{e-1} - 1$$
#
# and for $E = 0$, the *subnormal* numbers next to zero, $2^{1 - \mathrm{bias}} \cdot M/2^m$.

# %%
show(float_values)

# %%
fig, ax = plot.figure(height=3.0, width=7.2)
grids = {"int4 (absmax)": np.arange(-7, 8) / 7, "FP4 E2M1": codebook("E2M1") / 6, "FP4 of bitsandbytes": codebook("FP4"),
           "E3M0": codebook("E3M0") / codebook("E3M0").max(), "NF4 (lesson 13)": codebook("nf4")}
for y, (values, colour) in enumerate(zip(grids.values(), ("sky", "orange", "vermillion", "purple", "blue"), strict=True)):
    values = np.unique(values)
    ax.plot(values, np.full(len(values), y), "|", ms=14, mew=1.8, color=plot.COLOURS[colour])
ax.set_yticks(range(len(grids)), [f"{name}: {len(np.unique(v))} values" for name, v in grids.items()])
ax.set(xlabel="value after division by the largest of the block", ylim=(len(grids) - 0.5, -0.5),
       title="What 4 bits can name")
fig

# %% [markdown]
# *What to see:* The float grids put most of their points near 0, where most weights are, and few near the ends. Three
# different things are called FP4: the one of the Open Compute Project (E2M1), the one of bitsandbytes, and E3M0, which
# has nothing but powers of two.
#
# To find the nearest float to $x$ no table is needed. With $E = \max(\lfloor \log_2 |x| \rfloor,\ 1 - \mathrm{bias})$
# the spacing around $x$ is $2^{E-m}$, so
#
# $$n = \mathrm{round}\left(|x| / 2^{E-m}\right), \qquad \hat x = \pm\, n \cdot 2^{E-m}$$

# %%
show(formats.encode, "ldexp")

# %% [markdown]
# (The package returns codes, in which exponent and $n$ are packed together.) If $n$ rounds up to $2^{m+1}$ the result
# is the next power of two, which is right without any further case.
#
# ### {exercise}
#
# Write `quantization_to_float(x, e, m)` for formats in which all bit patterns are finite numbers, such as E2M1: the
# nearest value for every element of `x`, ties to the even $n$ (`np.rint`), and what lies beyond the largest value
# $V = 2^{2^e - 1 - \mathrm{bias}}(2 - 2^{-m})$ becomes $\pm V$. Zero must come out as zero. `np.frexp` gives exact
# exponents, but mind that it returns $|x| = f\cdot 2^k$ with $f$ in $[\frac12, 1)$.

# %% exercise=quantization.to_float points=4 minutes=15
def quantization_to_float(x, e, m):
    """x float (any shape) → the nearest floats of e exponent and m mantissa bits, of the same shape."""
    ### BEGIN SOLUTION
    bias = 2**(e - 1) - 1
    V = 2.0**(2**e - 1 - bias) * (2 - 2.0**-m)
    E = np.maximum(np.frexp(np.abs(x))[1] - 1, 1 - bias)
    step = 2.0**(E - m)
    return np.clip(np.rint(x / step) * step, -V, V)
    ### END SOLUTION

# %%
result = tp.check("quantization.to_float", quantization_to_float)
result

# %%
quantization_to_float = result.function
print("E2M1 of 0.2, 0.3, 2.5, 2.6, 5.1, 100:", quantization_to_float(np.array([0.2, 0.3, 2.5, 2.6, 5.1, 100.0]), 2, 1))

# %% [markdown]
# Eight bits can be split as E4M3 (largest value 448, no infinity) or E5M2 (57,344, with infinities): FP8. Scales are
# needed all the same: `FloatFormat("E4M3")` divides a tensor by $\max|W|/448$ first. The **microscaling** formats give
# 32 numbers of E2M1 a common scale that is itself only an 8-bit power of two, E8M0: $4 + 8/32 = 4.25$ bits per weight.

# %%
for scheme in (tp.Uniform(8), tp.FloatFormat("E4M3"), tp.FloatFormat("E5M2"),
               tp.Uniform(4, granularity="group", group_size=32, scale_dtype="float16"),
               tp.FloatFormat("E2M1", block_size=32, scale_format="E8M0"), tp.FloatFormat("E2M1", block_size=16,
                                                                                          scale_format="E4M3")):
    Q = scheme.quantize(W)
    print(f"{Q.bits_per_weight:6.3f} bits/weight   error {100 * relative(Q):5.2f} %   {scheme}")

# %% [markdown]
# At 8 bits the integers win, by a factor of three or more: a float spends bits on tiny numbers, which weights divided
# by their scale do not need. Floats earn their keep where a few numbers are very large, which is the next lesson.
#
# ## 6. The whole model
#
# `tp.quantize` puts a scheme on every linear layer in the blocks, in place; embeddings and norms keep their precision.
# Perplexity is $\exp$ of the loss in nats per token, here on documentation the model has never seen.

# %%
task = tp.tasks.domain(model.tokenizer, context=128)
def perplexity(m): return tp.evaluate(m, task, "test", max_batches=4)["perplexity"]

exact = perplexity(model)
rows = []
for bits in (8, 4, 3, 2):
    for kind, g in (("tensor", None), ("channel", None), ("group", 32)):
        m = tp.quantize(copy.deepcopy(model), tp.Uniform(bits, False, kind, g, scale_dtype="float16"))
        rows.append((bits, kind, tp.bits_per_weight(m), tp.weight_error(model, m), perplexity(m)))
        print("{} bits per {:<8} {:6.3f} bits/weight   weight error {:6.1%}   perplexity {:9.2f}".format(*rows[-1]))
print(f"float32: {exact:.2f}")

# %% [markdown]
# The study's picture of the same question, and its words:

# %%
show("granularity")

# %% [markdown]
# *What to see,* in the table: eight bits change nothing, whatever shares a scale. At four bits the model loses a few
# per cent with groups and more than a third with one scale per tensor; at two bits only groups leave anything of a
# language model, and not much. The relation between weight error and perplexity is not fixed: lesson 12 makes the first
# larger and the second smaller.
#
# Two more questions have been left open on purpose. *When* is the range measured? Weights do not change, so theirs is
# known; activations are different for each input, and their scale is either found at run time (**dynamic**) or
# estimated beforehand (**static**). And is the quantized model faster? Here it is not: codes are decoded before every
# product. Memory is what is saved.
#
# ### {exercise} · Spend 3.25 bits (open, 4 points, 15 minutes)
#
# A colleague has a matrix of $4096 \times 4096$ weights and a budget of 3.25 bits per weight *in all*. She can take (a)
# 3 bits with float16 scales in symmetric groups of 64; (b) 2 bits, symmetric groups of 16 with 16-bit scales, and see
# whether there is room for zero points too; (c) 3 bits per channel, with the bits saved spent on keeping the few
# largest weights exactly, each as a 32-bit index and a 16-bit value. Which would you try first? Compute what each
# stores, measure at least two of them on `W` or on the whole model, and say what would change your mind.
#
# <details><summary>Rubric</summary>
#
# 1 point: the sizes are right, whatever is stored beside the codes included. 1 point: at least two of them measured, with
# the command. 1 point: a reason in terms of step sizes, not only a number. 1 point: what would change the choice.
#
# </details>

# %% [answer]
# *Sizes.* (a) $3 + 16/64 = 3.25$. (b) $2 + 16/16 = 3$; a 2-bit zero point per group makes $3 + 2/16 = 3.125$. (c) $3 + 16/4096
# \approx 3.004$, which leaves 0.246 bits per weight: at 48 bits each, one weight in 195 is kept exactly.
#
# *Measured on `W`*, relative error: (a) 26 %, (b) 59 % symmetric and 36 % with zero points, (c) 25 % (28 % with none kept).
# Two bits lose clearly: a symmetric grid of two bits has three levels in use. (a) and (c) are close. In (a) a group's largest
# weight coarsens the step of 63 others; in (c) the largest that is *left* coarsens the step of its row, and what is kept no
# longer counts.
# `tp.Uniform(3, True, "group", 64, scale_dtype="float16").quantize(W)` and its likes measure it.
#
# *What would change the choice.* Heavier tails favour (c); rows that are all alike favour (a). An index and a gather for each
# kept weight cost time, which this budget does not count. Weight error is not output error (lesson 12): perplexity may
# reverse a close call.

# %% [markdown]
# ## Recall
#
# 1. A block holds numbers from −0.2 to 1.0. What are $s$ and $z$ of the asymmetric 4-bit grid?
# <details><summary>Answer</summary>
#
# $s = 1.2/15 = 0.08$; $-l/s = 2.5$, which rounds to the even neighbour, $z = 2$. (The survey's $Z$ is −2.) The code of
# −0.2 is then $\mathrm{round}(-2.5) + 2 = 0$, and −0.2 is decoded to −0.16.
#
# </details>
#
# 2. Why is the range stretched to contain 0?
# <details><summary>Answer</summary>
#
# So that $z$ is a valid code and 0 is represented exactly: padding, masked or pruned weights, and the zeros of a ReLU
# then cost nothing.
#
# </details>
#
# 3. How many bits per weight does a 4-bit scheme with groups of 128, float16 scales and 4-bit zero points store?
# <details><summary>Answer</summary>
#
# $4 + (16 + 4)/128 = 4.156$.
#
# </details>
#
# 4. Which of the two errors, rounding and clipping, does a smaller range make smaller, and why does the best range
#   shrink when bits are taken away?
# <details><summary>Answer</summary>
#
# Rounding: its squared error goes with $s^2$, and $s$ with the range. With fewer bits $s$ is larger, so there is more
# rounding error to be saved, while the clipping error of a given range hardly depends on the bits.
#
# </details>
#
# 5. Two libraries both offer "symmetric 4-bit" and give different codes for the same weights. Name one reason.
# <details><summary>Answer</summary>
#
# The step: $m/7$ (absmax) or $m/7.5$ (all 16 codes in use, `convention="full"`). Another: how ties are rounded; and
# whether $x/s$ or $x \cdot (1/s)$ is rounded.
#
# </details>

# %% [markdown]
# ## Where the paper says this
#
# - The survey, Matarazzo and Torlone (arXiv 2501.04040), §3.6; the notation with $Z$ is that of Zhao et al. (arXiv
#   2303.18223), §5.4.
# - The affine mapping with an integer zero point: Jacob et al. (arXiv 1712.05877).
# - FP8, E4M3 and E5M2: Micikevicius et al. (arXiv 2209.05433). Microscaling: Rouhani et al. (arXiv 2310.10537).
#
# ## Where implementations differ
#
# - *Symmetric.* SmoothQuant, AWQ and LLM.int8() divide by $2^{b-1}-1$. In GPTQ's code and torchao $-m$ has a code of its
#   own, $s = 2m/(2^b - 1)$: `Uniform(convention="full")`.
# - *Ties.* NumPy and PyTorch round half to even, llama.cpp half away from zero. PyTorch multiplies by $1/s$, which can
#   put a tie on the other side.
# - *Scales in 16 bits.* Rounded to nearest, a scale may become smaller, and the largest weight is then clipped by more
#   than half a step; here such scales are rounded up.
# - *Overflow of E4M3.* Above 448 PyTorch (2.12 and later) saturates, ml_dtypes gives NaN: `FloatFormat(saturate=…)`.
# - *Order in a byte.* bitsandbytes puts the first of two 4-bit codes in the high half, GGUF's Q4_0 in the low half and
#   pairs element $i$ with $i + 16$.
#
# ## What you can do now
#
# Quantize any matrix to any width, say how many bits that really stores, and predict which of two choices has the
# smaller error. So far only weights were rounded. **Lesson 11** rounds what they are multiplied with as well, and meets
# the outliers that made 8-bit models fail.
