# %% [markdown]
# # 13 · NF4, double quantization and QLoRA
#
# **What you will do.** You learn what the line does by which most people fine-tune a model that is
# too large for their graphics card. You derive the sixteen numbers of NF4 from the normal
# distribution, and compare them with the table of the library bitsandbytes.
# You see on which weights they are better than integers, on which they are not, and design better
# ones. You quantize the scales as well, and train a LoRA on a base of 4 bits with a gradient that
# you derived by hand.
#
# **What you need.** LoRA (lesson 07); grids, groups and bits per weight (lesson 10).
# You should know what a quantile is.
#
# **Words and letters.** The [glossary](GLOSSARY.md) has those that all lessons share.
# This lesson adds: $a$, the largest magnitude of a block of weights; $q$, the code of a weight;
# $c_q$, the *level* that the code stands for; $\rho$, the code of a scale; and $\Phi^{-1}$, the
# quantile function of the normal distribution $N(0, 1)$.
# $m$ is the scale of the scales in section 4.
# $r$, $\alpha$ and $s = \alpha/r$ belong to LoRA, as in lesson 07.
#
# **Time.** 120 minutes: 53 of reading and running, 67 of exercises.
# The open exercise takes 20 more, and the bonus 8.

# %%
import copy

import numpy as np
from scipy.stats import norm

import tinypeft as tp
from tinypeft.course import show, sliders
from tinypeft.course.slider import slider
from tinypeft.quant import linear, nf4, plain
from tinypeft.quant.codebooks import codebook
from tinypeft.study import plot

model = tp.load_pretrained()
task = tp.tasks.domain(model.tokenizer, context=128)
W = model.get("blocks.2.mlp.up").weight.data                      # (512, 128)
def perplexity(m): return tp.evaluate(m, task, "test", max_batches=2)["perplexity"]

# %% [markdown]
# ## 1. A model that does not fit
#
# Somebody has a graphics card of 12 GB and wants to fine-tune a model of 7 billion weights.
# In training, a weight that is frozen costs its storage only.
# One that is trained costs a number, a gradient, and the two numbers that AdamW keeps (lesson 03):

# %%
base, adapter = 7e9, 20e6                                         # weights, and numbers of a LoRA
ends = 2 * 32_000 * 4096                # Llama-2-7B's embedding and head, which keep 16 bits
for name, bits, trained in (("full fine-tuning", 32, base), ("LoRA on 16 bits", 16, adapter),
                            ("QLoRA", 4.127, adapter)):
    stored = bits / 8 * (base - ends) + max(bits, 16) / 8 * ends
    own = 0 if name == "full fine-tuning" else 4 * trained
    print(f"{name:16} weights {(stored + own) / 1e9:5.1f} GB, "
          f"gradients and AdamW {12 * trained / 1e9:5.1f} GB")

# %% [markdown]
# Activations come on top (lesson 15). LoRA on 16 bits does not fit, and QLoRA leaves 7.7 GB for
# them. In the libraries of Hugging Face, QLoRA is a configuration:
#
# ```python
# BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
# ```
#
# Transformers' own guide names bitsandbytes first for QLoRA. `"nf4"` is section 2, `double_quant`
# section 4, and the LoRA on top of it section 5. The whole call stands at the end.
#
# ## 2. Sixteen quantiles
#
# Trained weights look normally distributed.
# If the distribution is known, the levels need not be evenly spaced.
# Put them at *quantiles*, so that each level is used equally often.
# The QLoRA paper does this for $N(0, 1)$.
# (Levels that are used equally often do not give the least squared error. Exercise 3 finds better
# ones.)
#
# There is one complication.
# Sixteen quantiles that lie symmetrically have no exact zero between them.
# So the paper takes the quantiles of the two halves apart, eight levels above 0 and seven below,
# joins them at 0, and scales the result to $[-1, 1]$.
#
# One half, with $n$ levels: take $n + 1$ equally spaced probabilities from $\delta$ down to
# $\frac12$, and their quantiles. The last quantile, $\Phi^{-1}(\frac12)$, is 0, so it is dropped.
# The other half is the same with its own $n$ and a minus sign.
# At the end everything is divided by the largest magnitude.
#
# $\delta$ cannot be 1, because the quantile is infinite there. bitsandbytes leaves out half a
# cell at the end. It averages half a cell of a grid of 16 cells, $\frac1{32}$, and of one of 15
# cells, $\frac1{30}$:
#
# $$\delta = 1 - \tfrac12\left(\tfrac1{32} + \tfrac1{30}\right) = 0.9677083$$
#
# *A small table by hand.* Two levels above 0 and one below, with $\delta = 0.9$.
# Above: the probabilities are $0.9$, $0.7$ and $0.5$, their quantiles $1.282$, $0.524$ and $0$.
# Below: the probabilities are $0.9$ and $0.5$, so the level is $-1.282$. Divided by $1.282$:
#
# $$c = (-1,\ \ 0,\ \ 0.409,\ \ 1)$$
#
# ### {exercise}
#
# Write `nf4_levels(delta, positive, negative)`: `positive` levels above 0, 0 itself, and
# `negative` levels below. They are ascending, and the largest magnitude is 1.
# `nf4_levels(0.9677083, 8, 7)` is NF4. `scipy.stats.norm.ppf` is $\Phi^{-1}$.

# %% exercise=nf4.levels points=4 minutes=15
def nf4_levels(delta, positive, negative):
    """δ in (½, 1), the numbers of levels above and below 0
    → the levels, ascending, (positive + 1 + negative,)."""
    ### BEGIN SOLUTION
    up = norm.ppf(np.linspace(delta, 0.5, positive + 1)[:-1])
    down = -norm.ppf(np.linspace(delta, 0.5, negative + 1)[:-1])
    levels = np.sort(np.concatenate([up, [0.0], down]))
    return levels / np.abs(levels).max()
    ### END SOLUTION

# %% [markdown]
# Compare yours with bitsandbytes' table, which the package uses:

# %%
my_levels = result.function(1 - (1 / 32 + 1 / 30) / 2, 8, 7)
print(np.round(my_levels, 4))
print("largest difference from bitsandbytes' table:", np.abs(my_levels - codebook("nf4")).max())

# %% [markdown]
# With the seven digits of $\delta$ that bitsandbytes writes, and PyTorch's `linspace` in float32, all
# sixteen are equal to the table, which is that of the paper's appendix E.
#
# Why this $\delta$? Move it. Your function makes every table:

# %%
sliders.levels(result.function, W)

# %% [markdown]
# *What to see: the smaller δ, the further out the inner levels lie. The error in the caption has a
# shallow valley, and the paper's δ lies a little to the right of its bottom.*
#
# To quantize, a block of 64 weights is divided by its largest magnitude $a$.
# Every weight becomes the code of the nearest level. $\hat x$ is what is decoded later:
#
# $$a = \max|x|, \qquad q = \arg\min_i |x/a - c_i|, \qquad \hat x = a\, c_q$$
#
# By hand, with the four levels from above and the block $x = (0.2,\ -0.8,\ 0.4,\ 0.1)$:
# $a = 0.8$, and $x/a = (0.25,\ -1,\ 0.5,\ 0.125)$.
# The nearest levels are $0.409$, $-1$, $0.409$ and $0$, so the codes are $(2, 0, 2, 1)$.
#
# ### {exercise}
#
# Write `nf4_encode(x, levels)` for one block `x (n,)` and ascending `levels (L,)`.
# Return `(codes, a)`: the integer codes of the nearest levels, and $a$.
# The block is not all zeros, and no weight is exactly midway between two levels.

# %% exercise=nf4.encode points=2 minutes=8
def nf4_encode(x, levels):
    """x float (n,), levels ascending (L,) → (codes int (n,), a)."""

# %% [markdown]
# Compare yours with the package's: $s$ is your $a$. The faster form counts midpoints below a
# weight.

# %%
my_encode = result.function
show(plain.nf4)
show(nf4.nearest)

# %% [markdown]
# Your two functions at work: they quantize all linear layers of the base.

# %%
def my_nf4(W):
    """W, rounded by your levels and your codes in blocks of 64."""
    W_hat = np.empty_like(W)
    for x, x_hat in zip(W.reshape(-1, 64), W_hat.reshape(-1, 64), strict=True):
        codes, a = my_encode(x, my_levels)
        x_hat[:] = a * my_levels[codes]
    return W_hat

mine = copy.deepcopy(model)
for _, layer in mine.named_modules():
    if hasattr(layer, "d_in"): layer.weight.data = my_nf4(layer.weight.data)
theirs = tp.quantize(copy.deepcopy(model), tp.NF4())
print(f"perplexity: float32 {perplexity(model):.3f}, your NF4 {perplexity(mine):.3f}, "
      f"the package's NF4 {perplexity(theirs):.3f}")

# %%
blocks = W.reshape(-1, 64)
normed = blocks / np.abs(blocks).max(1, keepdims=True)
codes = np.concatenate([my_encode(b, my_levels)[0] for b in blocks])
shares = {"NF4": np.bincount(codes, minlength=16) / codes.size,
          "int4": np.bincount(np.rint(normed * 7).astype(int).ravel() + 7, minlength=15) / W.size}
for name, share in shares.items():
    print(f"{name}: the most used code has {share.max():.1%} of the weights, "
          f"the least used {share.min():.1%}")

# %% fold
fig, (left, right) = plot.figure(1, 2, height=3.3, width=9)
left.hist(normed.ravel(), bins=81, density=True, color="#D9D9D9")
for c in codebook("nf4"): left.axvline(c, color=plot.COLOURS["blue"], lw=1)
left.set(xlabel="weight ÷ largest of its block", ylabel="density")
left.set_title("The base's weights, and NF4's levels", loc="left", fontsize=10)
for (name, share), colour in zip(shares.items(), ("blue", "orange"), strict=True):
    right.plot(range(1, len(share) + 1), 100 * np.sort(share)[::-1], "o-", ms=4,
               color=plot.COLOURS[colour], label=name)
right.axhline(100 / 16, color=plot.COLOURS["grey"], lw=1, ls="--")
right.set(xlabel="codes, the most used first", ylabel="share of the weights (%)", ylim=(0, None))
right.set_title("How often each code is used", loc="left", fontsize=10)
right.legend()
fig.set_label("Left: the weights divided by the largest of their block, a bell, and NF4's levels, "
              "dense in the middle. Right: the share of each code; those of NF4 are more alike "
              "than those of int4.")
fig

# %% [markdown]
# *What to see: NF4's levels are dense where the weights are, and its codes are used more evenly
# than those of int4, but not equally (dashed: of sixteen codes each).*
# The weights are divided by the largest of 64, which is another number in every block, so what is
# left is not $N(0, 1)$. The paper calls NF4 "information-theoretically optimal".
# That would need exact quantiles, and weights that are $N(0, 1)$ after the division. Neither holds
# here: the ends are cut at $\delta$, and the division is by a random maximum.
#
# ## 3. Is it better?
#
# We round four kinds of weights: normal ones, ones with heavy tails (Student's t with 5 degrees
# of freedom), uniform ones, and the base's own.
# (Lesson 10: E2M1 has 2 exponent bits and 1 bit of mantissa.)

# %%
rng = np.random.default_rng(0)
kinds = {"normal": rng.normal(size=(512, 512)), "heavy tails": rng.standard_t(5, size=(512, 512)),
         "uniform": rng.uniform(-1, 1, (512, 512)), "the base's mlp.up": W}
schemes = {"NF4": tp.NF4(), "FP4 E2M1": tp.FloatFormat("E2M1"), "FP4 E3M0": tp.FloatFormat("E3M0"),
           "FP4 of bitsandbytes": tp.FloatFormat("FP4"),
           "int4 symmetric": tp.Uniform(4, True, "group", 64),
           "int4 asymmetric": tp.Uniform(4, False, "group", 64)}
relative = lambda Q, A: float(np.linalg.norm(Q.dequantize() - A) / np.linalg.norm(A))
table = {name: {kind: 100 * relative(s.quantize(A.astype(np.float32)), A)
                for kind, A in kinds.items()} for name, s in schemes.items()}
print(f"symmetric int4 on normal weights: ‖Ŵ − W‖/‖W‖ = {table['int4 symmetric']['normal']:.2f} %")

# %% [markdown]
# **Predict** the same error on *uniform* weights, in per cent.
# (You can also compute it: the codes are −7 … 7, and the error of rounding is uniform, too.)

# %%
guess = tp.guess("13.uniform", 9.0, "%")

# %%
print(f"{'‖Ŵ − W‖/‖W‖ (%)':20}", *(f"{name:>17}" for name in kinds), "   model, nats")
exact = perplexity(model)
for name, scheme in schemes.items():
    added = np.log(perplexity(tp.quantize(copy.deepcopy(model), scheme)) / exact)
    print(f"{name:20}", *(f"{e:17.2f}" for e in table[name].values()), f"{added:14.3f}")
guess.beside(table["int4 symmetric"]["uniform"])

# %%
show("formats")

# %% [markdown]
# *What to see: on normal weights NF4 is best among the formats that store nothing but a scale.*
# It beats E2M1 and symmetric integers, as the paper reports. In the last column the whole base is
# rounded: what its loss grows by, which is what lesson 12 told you to look at.
# The paper's Table 2 has perplexities: 27.41 for NF4 with double quantization, 29.48 for E3M0,
# 31.07 for E2M1, and 34.34 for int4.
#
# {claim On normal numbers NF4 has a smaller error}
#
# Four things the paper does not show, or shows otherwise:
#
# - *E3M0*, whose levels are powers of two, is second in the paper. Here it is the worst of all, in
#   all five columns of the table: its levels are too sparse where the large weights are. At 3
#   degrees of freedom (right panel) symmetric integers and bitsandbytes' FP4 are worse still.
# - *bitsandbytes' own FP4* is worse than symmetric int4 on normal weights.
# - *Integers with a zero point* are as good as NF4 on normal weights, with 0.06 bits per weight
#   more for the zero points. On the model NF4 is better: it adds 0.045 nats, and they 0.065.
# - *On uniform weights* integers win by far. NF4's lead over integers is widest where tails are
#   heavy.
#
# How large should a block be? Move it. (The grey lines are NF4's levels.)

# %%
frames, told = {}, {}
comb = np.repeat(codebook("nf4"), 3), np.tile([0, 1, 0], 16)
for block in (16, 32, 64, 128):
    Q = tp.NF4(block_size=block).quantize(W)
    v = W.reshape(-1, block)
    counts, edges = np.histogram(v / np.abs(v).max(1, keepdims=True), 40, range=(-1, 1))
    frames[block] = {"weights": (edges[:-1] + 0.025, counts / counts.max())}
    told[block] = (f"the error is {100 * relative(Q, W):.2f} %, "
                   f"at {Q.bits_per_weight:.2f} bits per weight")
slider("block size", frames, captions=told, behind={"levels": comb},
       xlabel="weight ÷ largest of its block", ylabel="how many ÷ the most")

# %% [markdown]
# *What to see: the smaller the block, the wider its weights spread over the levels, and the more
# the scales cost.*
#
# ### {exercise}
#
# Design better levels for given weights. `x (N,)` are weights that were divided by the largest
# magnitude of their block. Write `nf4_better(x)`: sixteen ascending levels, one of them exactly 0,
# with which the squared error of `x`, each number rounded to its nearest level, is at most 0.97 of
# that of NF4. The check tries blocks of normal and of uniform weights. Any such levels are right.

# %% exercise=nf4.better points=4 minutes=18
def nf4_better(x):
    """x (N,), from −1 to 1 → 16 levels, ascending, with a 0, that suit x better than NF4."""

# %%
size = np.linalg.norm
x = normed.ravel()[:8192].astype(float)
other = model.get("blocks.3.mlp.up").weight.data.reshape(-1, 64)
other = (other / np.abs(other).max(1, keepdims=True)).ravel()[:8192].astype(float)
tables = {"NF4": my_levels, "yours, made for this layer": np.asarray(result.function(x)),
          "yours, made for the other": np.asarray(result.function(other))}
for name, levels in tables.items():
    errors = [size(levels[np.abs(v[:, None] - levels).argmin(1)] - v) / size(v) for v in (x, other)]
    print(f"{name:26}: error {errors[0]:.2%} on this layer, {errors[1]:.2%} on the other")
print("your levels:", np.round(tables["yours, made for this layer"], 3))

# %% [markdown]
# *What to see: on another layer, levels that were made for this one keep about two thirds of what a
# table of its own would gain over NF4.* A table for all models has to be agreed upon once. NF4 has
# been.
#
# ## 4. Double quantization
#
# A float32 scale for 64 weights is half a bit per weight: $4 + 32/64 = 4.5$ bits in all.

# %%
show("schematic:nf4")

# %% [markdown]
# The scales are numbers like any others, so quantize them as well. Subtract their mean $o$.
# In blocks of 256, divide what is left by the block's largest magnitude $m$, and store it in 8
# bits:
#
# $$a_i \approx m\, d_{\rho_i} + o, \qquad o = \mathrm{mean}(a), \qquad m = \max|a - o|$$
#
# $d$ is a table of 256 values. Counting everything:
#
# $$4 + \frac{8}{64} + \frac{32}{64 \cdot 256} = 4.127 \text{ bits}$$

# %%
show(plain.double_quantize)                                       # its s, t, r: our a, m, ρ
for scheme in (tp.NF4(), tp.NF4(double_quant=True)):
    Q = scheme.quantize(kinds["normal"].astype(np.float32))
    error = 100 * relative(Q, kinds["normal"])
    print(f"{Q.bits_per_weight:.3f} bits/weight, error {error:.3f} %   {scheme}")
print("by the formula:", 4 + 8 / 64 + 32 / (64 * 256))

for factor in (1, 100):                                           # times one block in 256
    V = kinds["normal"].reshape(-1, 64).astype(np.float32)
    V[::256] *= factor
    Q = tp.NF4(double_quant=True).quantize(V)
    others = np.arange(len(V)) % 256 > 0
    a, near = np.abs(V).max(1), Q.dequantize()
    off = np.mean(np.abs(Q.scales().ravel() / a - 1)[others])
    print(f"one block in 256 times {factor:3}: the scales of the others are off by {off:.2%}, "
          f"their weights by {size((near - V)[others]) / size(V[others]):.1%}")

# %% [markdown]
# The error hardly changes, because the scales of 256 neighbouring blocks are much alike, and
# because the table of scales is dense near 0, where most of them lie. Even if one block in 256 has
# weights that are a hundred times larger, little is lost: the scales of the others are off by eight
# times as much on the average, but their weights hardly.
#
# By hand: the scales 0.5 and 0.3 have $o = 0.4$ and $m = 0.1$. $(a - o)/m$ is $(1, -1)$, and $d$
# has its 1 at the code 255, and nearest to −1 a level of −0.993 at the code 0. So
# $\rho = (255, 0)$, and the scales come back as $0.1 \cdot 1 + 0.4 = 0.5$ and
# $-0.1 \cdot 0.993 + 0.4 = 0.3007$.
#
# {claim Double quantization saves}
#
# For 7 billion weights, 0.373 bits are 0.33 GB.
#
# ### {exercise}
#
# A colleague decodes such weights. $n$ blocks of 64 weights have the codes `codes (n, 64)` and the
# codes of their scales `rho (n,)`. `m (k,)` is one number for every $n/k$ neighbouring blocks.
# Here is the code, and what it makes of the base's weights:

# %%
def careless_decode(codes, rho, m, o, d, levels):
    """The weights (n, 64) of n blocks."""
    a = np.tile(m, len(rho) // len(m)) * d[rho]
    return a[:, None] * levels[codes]

Q = tp.NF4(double_quant=True).quantize(W)
stored = dict(codes=Q.unpack().reshape(-1, 64), rho=Q.scale.codes.astype(int), m=Q.scale.scale,
              o=float(Q.scale.offset), d=codebook("dynamic"), levels=codebook("nf4"))
careless = careless_decode(**stored).reshape(W.shape)
print("weights", W[1, :6].round(3))
print("decoded", careless[1, :6].round(3))
print(f"{np.mean(careless * W < 0):.0%} of the weights have the other sign")

# %% [markdown]
# Many weights come back with the other sign. There are two faults. Write `nf4_bug`, the mended
# function.

# %% exercise=nf4.bug points=2 minutes=9
def nf4_bug(codes, rho, m, o, d, levels):
    """codes (n, g), rho (n,), m (k,), o a number, tables d and levels → the weights (n, g)."""

# %%
mended = np.asarray(result.function(**stored)).reshape(W.shape)
print("decoded", mended[1, :6].round(3), "as the package's:",
      np.allclose(mended, Q.dequantize()))

# %% [markdown]
# ## 5. QLoRA: training on top
#
# Now freeze the quantized weights and put a LoRA on them.
# The forward pass decodes $\hat W$ for one layer at a time, multiplies, and drops it.
# With the paper's double dequantization (its equations (5) and (6)):
#
# $$y = x\,\hat W^\top + s\,(x A^\top) B^\top$$
#
# $$\hat W = \mathrm{dequant}(\mathrm{dequant}(\rho, m, o),\ q)$$
#
# What flows where:

# %%
show("qlora_flow")

# %% [markdown]
# The codes get no gradient, because there is nothing to train in them.
# But gradients pass *through* $\hat W$ to the layers below.
# So it is decoded a second time in the backward pass.
#
# ### {exercise}
#
# Derive the gradients of $x$, $A$ and $B$, given $\mathrm{d}y = \partial L/\partial y$.
# Write down the shape of each factor first. The shapes leave only one way to multiply.
#
# Write `nf4_backward(x, codes, scales, levels, A, B, s, dy)` and return `(dx, dA, dB)`.
# The weight is given as it is stored. `codes (d_out, d_in)` are integers into `levels (L,)`.
# `scales (d_out, d_in/g)` has one number for each group of $g$ consecutive weights in a row.
# `x (n, d_in)`, `A (r, d_in)`, `B (d_out, r)`, `dy (n, d_out)`, and `s` is LoRA's $\alpha/r$.

# %% exercise=nf4.backward points=4 minutes=17
def nf4_backward(x, codes, scales, levels, A, B, s, dy):
    """The gradients of x (n, d_in), A (r, d_in) and B (d_out, r), given dy (n, d_out)
    → (dx, dA, dB)."""

# %% [markdown]
# <details><summary>The gradients as equations</summary>
#
# $$\mathrm{d}x = \mathrm{d}y\, \hat W + s\,(\mathrm{d}y\, B) A$$
#
# $$\mathrm{d}B = s\, \mathrm{d}y^\top (x A^\top)$$
#
# $$\mathrm{d}A = s\,(\mathrm{d}y\, B)^\top x$$
#
# </details>
#
# Compare yours with the package's. It has the part of the frozen weight.
# The two products of the LoRA are ordinary products, which autograd differentiates.

# %%
my_backward = result.function
show(linear.quantized_linear)

# %% [markdown]
# Your gradient at work.
# A layer is to compute $x(W + \Delta)^\top$ with a planted change $\Delta$ of rank 4.
# We have only $\hat W$ in NF4, and a LoRA of rank 8 that your gradient trains:

# %%
rng = np.random.default_rng(0)
Q = tp.NF4().quantize(W)
codes, scales = Q.unpack().reshape(W.shape), Q.scales().reshape(512, 2)
levels = codebook("nf4").astype(float)
planted = rng.normal(0, 0.02, (512, 4)) @ rng.normal(0, 1, (4, 128))
A, B, s = rng.normal(0, 0.1, (8, 128)), np.zeros((512, 8)), 2.0
for step in range(201):
    x = rng.normal(size=(64, 128))
    y = x @ Q.dequantize().T + s * (x @ A.T) @ B.T
    dy = 2 * (y - x @ (W + planted).T)
    if step % 50 == 0: print(f"step {step:3}: mean squared error {(dy**2).mean() / 4:.4f}")
    _, dA, dB = my_backward(x, codes, scales, levels, A, B, s, dy / len(x))
    A, B = A - 0.003 * dA, B - 0.003 * dB
print(f"NF4's own error on such inputs: {np.square(Q.dequantize() - W).sum() / 512:.4f}")

# %% [markdown]
# The error ends below NF4's own. The planted change has rank 4, and the LoRA's other four ranks
# make up for a part of $W - \hat W$.
#
# There is no QLoRA class: quantize the model, then attach a LoRA.
# We train three LoRAs for 30 steps on documentation that the base never saw: on the base itself, on
# NF4, and on 2 bits.

# %%
lora = tp.LoRA(rank=8, targets="all")
schemes = {"float32": None, "NF4, double": tp.NF4(double_quant=True),
           "2 bits": tp.Uniform(2, False, "group", 32, scale_dtype="float16")}
for name, scheme in schemes.items():
    m = copy.deepcopy(model)
    tuned = tp.attach(tp.quantize(m, scheme) if scheme else m, lora, rng=0)
    start = perplexity(tuned)
    tp.train(tuned, task, steps=30, batch_size=4, lr=3e-3, seed=0, progress=False)
    print(f"LoRA on {name:11} test perplexity {start:6.2f} → {perplexity(tuned):6.2f}")

# %% [markdown]
# *What to see: on NF4 a LoRA ends close to where it ends on float32, and it makes up for a part
# of what four bits cost. On 2 bits it repairs much of a broken model, and stays behind.* (None has
# learned this documentation yet: a 5-gram model of its training text, `task.baselines`, has the
# perplexity 9.7 on the test text.)
# Before training NF4 costs 0.046 nats here, on two batches. On all of the study's test text the NF4
# base is {study qlora: NF4 - 16 bits, before} behind, and on text of the base's own kind
# {study schemes: NF4, excess}.
# After the study's 150 steps, five times as many as here, the gap is
# {study qlora: NF4 - 16 bits, after} nats.
#
# {claim QLoRA learns as well}
#
# On 2 bits the LoRA ends at {study qlora: int2, after} nats instead of
# {study qlora: 16 bits, after}. The [next half](13b_merging_loftq.ipynb) starts it better, and asks
# what is lost when a LoRA is merged.
#
# ### {exercise}
#
# No table is best for all weights. Given levels that lack at least one of the numbers
# $-\frac77, -\frac67, \dots, \frac77$, write `nf4_loses(levels)`: 64 weights `(64,)`, the largest
# magnitude 1, whose squared error with the integers' levels, which are these numbers, is at most
# half of that with `levels`.

# %% exercise=nf4.loses points=2 minutes=8 bonus=yes
def nf4_loses(levels):
    """levels (L,), ascending → 64 weights (64,) on which evenly spaced levels are far better."""

# %%
block = np.asarray(result.function(my_levels), np.float32)[None]
for name, scheme in (("NF4", tp.NF4()), ("int4", tp.Uniform(4, True, "group", 64))):
    print(f"{name}: error of your block {relative(scheme.quantize(block), block):.1%}")

# %% [markdown]
# ### {exercise} · Spend 4.25 bits (open, 4 points, 20 minutes)
#
# You may store 4.25 bits per weight. Candidates are NF4 with double quantization and blocks of 32,
# 64 or 128 (`tp.NF4(block_size=…, double_quant=True)`), NF4 in blocks of 128 with float32 scales,
# and integers with a zero point and float16 scales in groups. Compute the bits of each, and say
# which fit. Measure the error of those that fit on two layers of the base, and the perplexity of
# the two best. Say in one sentence each why smaller blocks help, and why they stop helping.
#
# <details><summary>Rubric</summary>
#
# 1 point: the bits of each, as formulas. 1 point: errors on two layers, with the commands.
# 1 point: perplexity of the two best, and whether the difference is larger than chance.
# 1 point: both reasons.
#
# </details>

# %% [answer]
# *Bits.* NF4 with double quantization: $4 + 8/g + 32/(256 g)$: 4.254 for $g = 32$, which is just
# too much, 4.127 for 64, 4.063 for 128. NF4 in blocks of 128 with float32 scales:
# $4 + 32/128 = 4.25$. Integers with a zero point: $4 + (16 + 4)/g$: 4.156 for 128, 4.31 for 64.
#
# *Errors.* Among those that fit, NF4 in blocks of 64 with double quantization has the least error;
# in blocks of 128 it is a few per cent larger. The perplexities of the best two differ by less
# than two draws of the text do, but on the same text the difference is about three of its errors.
#
# *Reasons.* The largest weight of a block sets the step for all others, and in a small block it is
# smaller. The scales take more bits the smaller the block is, and one code of each block is spent
# on the weight that is ±1. {claim Double quantization saves}

# %% [markdown]
# ## The real call
#
# QLoRA on a model in a folder, with transformers, bitsandbytes and PEFT:
#
# ```python
# import torch
# from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
# from transformers import AutoModelForCausalLM, BitsAndBytesConfig
# four_bits = BitsAndBytesConfig(
#     load_in_4bit=True,                          # every linear layer but the head
#     bnb_4bit_quant_type="nf4",                  # the default is "fp4"
#     bnb_4bit_use_double_quant=True,             # section 4; the default is False
#     bnb_4bit_compute_dtype=torch.bfloat16)      # decode to 16 bits, and multiply in 16 bits
# base = AutoModelForCausalLM.from_pretrained(
#     "folder-of-the-model", quantization_config=four_bits)
# base = prepare_model_for_kbit_training(base)    # float32 for all but the 4 bits; checkpoints
# model = get_peft_model(base, LoraConfig(
#     r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
# ```
#
# The paper adds a *paged* optimizer, which moves AdamW's numbers out of the card's memory while
# they are not needed: `bnb.optim.PagedAdamW`, and here `PagedAdamW` (lesson 03).

# %% [markdown]
# ## Recall
#
# 1. Why do NF4's levels have eight levels above 0 and seven below?
# <details><summary>Answer</summary>
#
# Sixteen codes, one of which is an exact 0, leave fifteen. They cannot be shared evenly.
#
# </details>
#
# 2. Why are NF4's codes not used equally often in practice?
# <details><summary>Answer</summary>
#
# The levels are quantiles of $N(0,1)$ scaled by a constant, but weights are divided by the
# largest of their block, which varies. ±1 in particular is hit by exactly one weight of each
# block, or a few.
#
# </details>
#
# 3. What does double quantization subtract before coding the scales, and why?
# <details><summary>Answer</summary>
#
# Their mean. Scales are all positive. Without it half of a signed table would be unused.
#
# </details>
#
# 4. Which gradients does QLoRA compute, and which not?
# <details><summary>Answer</summary>
#
# For $A$ and $B$, and for the layer's input, through the decoded weight.
# None for codes or scales.
#
# </details>
#
# 5. Why is the compute type of QLoRA not 4 bits?
# <details><summary>Answer</summary>
#
# Codes cannot be multiplied: they are numbers of places in a table. Each is decoded to a float, in
# 16 bits on a graphics card, and the product is one of floats.
#
# </details>

# %% [markdown]
# ## Where the papers say this
#
# - QLoRA: Dettmers et al. (arXiv 2305.14314). §3 has NormalFloat, double quantization, and
#   equations (5) and (6). Table 2 has the perplexities quoted, and appendix E the sixteen values.
# - The 8-bit table of scales: Dettmers et al. (arXiv 2110.02861), §2.
#
# ## Where implementations differ
#
# - *The 8-bit type of the scales.* The paper says "8-bit Floats" and "FP8", but not which FP8.
#   bitsandbytes uses a *dynamic* table. torchao's NF4 uses linear int8, which gives other scales.
# - *The default.* bitsandbytes' `quantize_4bit` means **FP4**, not NF4, if nothing is said. The
#   first of two codes sits in the high half of a byte.
# - *Elsewhere.* llama.cpp's `IQ4_NL` has sixteen unequal levels, too, but others. Its K types
#   quantize their scales as double quantization does ([K-quants](../tinypeft/quant/K_QUANTS.md)).
#
# **Now you can** fine-tune a model that is stored in 4 bits, and say what it stores.
# **[Lesson 13b](13b_merging_loftq.ipynb)** merges what you trained, and starts it better.
