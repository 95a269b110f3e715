# %% [markdown]
# # 13 · NF4, double quantization, QLoRA and LoftQ
#
# **What you will do.** You derive the sixteen numbers of NF4 from the normal distribution, and
# compare them with the table of the library bitsandbytes.
# You see on which weights they are better than integers, and on which they are not.
# You quantize the scales as well, and train a LoRA on a base of 4 bits with a gradient that you
# derived by hand. Then you find out what is lost when the LoRA is merged, and start a LoRA at the
# error that quantization left (LoftQ).
#
# **What you need.** LoRA (lesson 07); grids, groups and bits per weight (lesson 10).
# You should know what a quantile is.
#
# **Words and letters.** The [glossary](GLOSSARY.md) has those that all lessons share.
# This lesson adds: $a$, the largest magnitude of a block of weights; $q$, the code of a weight;
# $c_q$, the *level* that the code stands for; $\rho$, the code of a scale; and $\Phi^{-1}$, the
# quantile function of the normal distribution $N(0, 1)$.
# $m$ is the scale of the scales in section 3.
# $r$, $\alpha$ and $s = \alpha/r$ belong to LoRA, as in lesson 07.
#
# **Time.** 110 minutes: 45 of reading and running, 65 of exercises.
# The open exercise takes 25 more, and the bonus 12.

# %%
import copy

import numpy as np
from scipy.stats import norm

import tinypeft as tp
from tinypeft.course import show
from tinypeft.quant import linear, nf4, plain
from tinypeft.quant.codebooks import codebook
from tinypeft.quant.loftq import loftq_rounds
from tinypeft.study import plot

model = tp.load_pretrained()
task = tp.tasks.domain(model.tokenizer, context=128)
W = model.get("blocks.2.mlp.up").weight.data                      # (512, 128)
def perplexity(m): return tp.evaluate(m, task, "test", max_batches=2)["perplexity"]

# %% [markdown]
# ## 1. Sixteen quantiles
#
# Trained weights look normally distributed.
# If the distribution is known, the levels need not be evenly spaced.
# Put them at *quantiles*, so that each level is used equally often.
# The QLoRA paper does this for $N(0, 1)$.
# (Equal use of the codes is not the least squared error. Exercise 6 finds better levels.)
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

# %%
result = tp.check("nf4.levels", nf4_levels)
result

# %% [markdown]
# Compare yours with bitsandbytes' table, which the package uses:

# %%
my_levels = result.function(1 - (1 / 32 + 1 / 30) / 2, 8, 7)
print(np.round(my_levels, 4))
print("largest difference from bitsandbytes' table:", np.abs(my_levels - codebook("nf4")).max())

# %% [markdown]
# The difference comes from float32: with a float32 `linspace` one gets the digits of the paper's
# appendix E.
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
    ### BEGIN SOLUTION
    a = np.abs(x).max()
    return np.abs(x[:, None] / a - levels).argmin(1), a
    ### END SOLUTION

# %%
result = tp.check("nf4.encode", nf4_encode)
result

# %% [markdown]
# Compare yours with the package's: $s$ is your $a$. The faster form counts midpoints below a weight.

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
fig

# %% [markdown]
# *What to see: NF4's levels are dense where the weights are, and its codes are used more evenly
# than those of int4, but not equally (dashed).*
# The weights are divided by the largest of 64, which is another number in every block, so what is
# left is not $N(0, 1)$. The paper calls NF4 "information-theoretically optimal".
# That would need exact quantiles, and weights that are $N(0, 1)$ after the division.
# Neither is quite so.
#
# ## 2. Is it better?
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
print(f"{'‖Ŵ − W‖/‖W‖ (%)':20}", *(f"{name:>18}" for name in kinds))
for name, row in table.items(): print(f"{name:20}", *(f"{e:18.2f}" for e in row.values()))
guess.beside(table["int4 symmetric"]["uniform"])

# %%
show("formats")

# %% [markdown]
# *What to see: on normal weights NF4 is best among the formats that store nothing but a scale.*
# It beats E2M1 and symmetric integers, as the paper reports.
# The paper's Table 2 has perplexities: 27.41 for NF4 with double quantization, 29.48 for E3M0,
# 31.07 for E2M1, and 34.34 for int4.
#
# {claim On normal numbers NF4 has a smaller error}
#
# Four things the paper does not show, or shows otherwise:
#
# - *E3M0*, whose levels are powers of two, is second in the paper. Here it is by far the worst of
#   all, on all four kinds of the table. Its levels are too sparse where the large weights are.
# - *bitsandbytes' own FP4* is worse than symmetric int4 on normal weights.
# - *Integers with a zero point* are as good as NF4 on normal weights. They store 4 bits more per
#   block, which is 0.06 bits per weight.
# - *On uniform weights* integers win by far. NF4's lead over integers is widest where tails are
#   heavy.
#
# ## 3. Double quantization
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
show(plain.double_quantize)                                       # s, t, r: our a, m, ρ
for scheme in (tp.NF4(), tp.NF4(double_quant=True)):
    Q = scheme.quantize(kinds["normal"].astype(np.float32))
    error = 100 * relative(Q, kinds["normal"])
    print(f"{Q.bits_per_weight:.3f} bits/weight, error {error:.3f} %   {scheme}")
print("by the formula:", 4 + 8 / 64 + 32 / (64 * 256))

# %% [markdown]
# The error hardly changes, because the scales of 256 neighbouring blocks are much alike.
# If one block in 256 had weights that are a hundred times larger, the scales of the others would
# be coarse.
#
# {claim Double quantization saves}
#
# For 7 billion weights, 0.373 bits are 0.33 GB.
#
# ## 4. QLoRA: training on top
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
#
# <details><summary>The gradients as equations, if you want to check your derivation</summary>
#
# $$\mathrm{d}x = \mathrm{d}y\, \hat W + s\,(\mathrm{d}y\, B) A$$
#
# $$\mathrm{d}B = s\, \mathrm{d}y^\top (x A^\top)$$
#
# $$\mathrm{d}A = s\,(\mathrm{d}y\, B)^\top x$$
#
# </details>

# %% exercise=nf4.backward points=4 minutes=17
def nf4_backward(x, codes, scales, levels, A, B, s, dy):
    """The gradients of x (n, d_in), A (r, d_in) and B (d_out, r), given dy (n, d_out)
    → (dx, dA, dB)."""
    ### BEGIN SOLUTION
    g = codes.shape[1] // scales.shape[1]
    W = levels[codes] * np.repeat(scales, g, axis=1)
    dyB = dy @ B                                                          # (n, r)
    return dy @ W + s * dyB @ A, s * dyB.T @ x, s * dy.T @ (x @ A.T)
    ### END SOLUTION

# %%
result = tp.check("nf4.backward", nf4_backward)
result

# %% [markdown]
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
# The error ends below NF4's own. The planted change has rank 4, and the LoRA's other four ranks make
# up for a part of $W - \hat W$.
#
# QLoRA is no class of this package but a composition: quantize, then attach.
# We train four LoRAs for 30 steps on documentation that the base never saw: on the base itself,
# on NF4, and two on 2 bits. The second of these is started by LoftQ (section 6).

# %%
lora = tp.LoRA(rank=8, targets="all")
two_bits = tp.Uniform(2, False, "group", 32, scale_dtype="float16")
def build(name):
    m = copy.deepcopy(model)
    if name == "2 bits, LoftQ": return tp.loftq(m, lora, two_bits, iterations=5, rng=0)
    if name == "NF4, double":   m = tp.quantize(m, tp.NF4(double_quant=True))
    if name == "2 bits":        m = tp.quantize(m, two_bits)
    return tp.attach(m, lora, rng=0)

tuned = {}
for name in ("float32", "NF4, double", "2 bits", "2 bits, LoftQ"):
    tuned[name] = build(name)
    start = perplexity(tuned[name])
    tp.train(tuned[name], task, steps=30, batch_size=4, lr=3e-3, seed=0, progress=False)
    print(f"LoRA on {name:14} test perplexity {start:6.2f} → {perplexity(tuned[name]):6.2f}")

# %%
show("qlora")

# %% [markdown]
# *What to see: on NF4 a LoRA ends close to where it ends on 16 bits, and it makes up for a part
# of what four bits cost.* Before training, the study's NF4 base is
# {study qlora: NF4 - 16 bits, before} nats per token behind.
# After training the gap is {study qlora: NF4 - 16 bits, after} nats.
#
# {claim QLoRA learns as well}
#
# On 2 bits the LoRA starts from a broken model and repairs most of it, but it ends at
# {study qlora: int2, after} nats instead of {study qlora: 16 bits, after}.
# (*int2* is these 2 bits.)
# Sections 5 and 6 explain the other marks and LoftQ.
#
# What is saved? In training, a parameter of the base costs its storage only.
# A parameter of the LoRA costs a weight, a gradient, and the two numbers that AdamW keeps:

# %%
base = sum(m.weight.size for _, m in model.named_modules() if hasattr(m, "d_in"))
adapter = tuned["float32"].summary().trained
bits = tp.bits_per_weight(tp.quantize(copy.deepcopy(model), tp.NF4(double_quant=True)))
for name, stored, trained in (("full fine-tuning", 4 * base, base),
                              ("LoRA", 4 * base + 4 * adapter, adapter),
                              ("QLoRA", bits / 8 * base + 4 * adapter, adapter)):
    print(f"{name:16} weights {stored / 2**20:5.2f} MiB, "
          f"gradients and AdamW {12 * trained / 2**20:5.2f} MiB")

# %% [markdown]
# These are the linear layers alone. Lesson 15 counts the rest, too, for 7 billion parameters.
#
# ## 5. What merging does
#
# LoRA's change can be merged into the weights, so that inference takes no extra time.
# Here it was trained on $\hat W$. There are three ways to merge it.
#
# 1. *Into $\hat W$, in floating point.* This is exact, but the result is no longer small.
# 2. *Into the original $W$.* The LoRA has never seen it.
#    The result differs from what was trained by $W - \hat W$.
# 3. *Into $\hat W$, and then the sum is quantized again.*
#    A change that is smaller than half a step is rounded away.
#
# `requantize_error` measures the third way. $M$ is the merged weight:

# %%
for name, scheme in (("NF4, double", tp.NF4(double_quant=True)), ("2 bits", two_bits)):
    of_weights, of_change = tp.requantize_error(tuned[name], scheme)
    again = tp.quantize(tuned[name].merge(), scheme)
    print(f"{name:12} error ÷ ‖M‖ {of_weights:5.1%}   ÷ ‖ΔW‖ {of_change:5.1%}   perplexity: "
          f"kept apart {perplexity(tuned[name]):.2f}, quantized again {perplexity(again):.2f}")

# %% [markdown]
# The study has measured all three, over seeds and after a longer training.
# The losses, in nats per token, are the other marks of the picture above:
#
# - *NF4.* Kept apart, or merged into $\hat W$: {study qlora: NF4, after}. Merged into $W$:
#   {study qlora: NF4, merged_into_16_bits}. Merged and rounded again:
#   {study qlora: NF4, merged_and_rounded}.
# - *2 bits.* Kept apart, or merged into $\hat W$: {study qlora: int2, after}. Merged into $W$:
#   {study qlora: int2, merged_into_16_bits}. Merged and rounded again:
#   {study qlora: int2, merged_and_rounded}.
#
# *Rounding again* loses a part of what was learned at 4 bits, and most of it at 2 bits.
#
# {claim Rounding a merged QLoRA}
#
# (The share in the cell above is larger, because after 30 steps the change is still smaller.)
#
# *Merging into $W$* is often called a mistake: the LoRA has learned to make up for the errors of
# $\hat W$, and $W$ has no such errors.
# In the study it costs next to nothing at 4 bits, and at 2 bits little beside what was learned.
# What the LoRA has learned about the new text is of use on $W$ as well, and $W$ is the better
# base. So measure both.
#
# ## 6. LoftQ: spend the rank on the error first
#
# QLoRA starts from $\hat W + 0$, which is not the model that was pretrained.
# Li et al. choose $Q$, $A$ and $B$ together, so that their sum is as near to $W$ as possible
# (equation (6); their $A B^\top$ is LoRA's $B A$):
#
# $$\min_{Q, A, B}\ \|W - Q - B A\|$$
#
# $Q$ must lie on the grid, and $B A$ must have rank $r$. There is no formula for both at once.
# But each half is easy when the other half is fixed.
# If $B A$ is fixed, which matrix should be rounded?
# If $Q$ is fixed, which matrix should $B A$ approximate?
# The best approximation of rank $r$ comes from the singular value decomposition.
# LoftQ does these two steps by turns.
#
# ### {exercise}
#
# Write `nf4_loftq(W, quant, r, T)`: exactly $T$ rounds, which begin with $B A = 0$.
# Each round first finds $Q$, then $B$ and $A$.
# Return `(Q, B, A)` of the **last** round (as in the paper; the package keeps the best round).
# `quant` takes a matrix and returns the rounded matrix.
# `B (d_out, r)` and `A (r, d_in)` share the singular values evenly: each gets $\sqrt{\Sigma_r}$.
# They are determined up to signs, and either sign is right.

# %% exercise=nf4.loftq points=4 minutes=17
def nf4_loftq(W, quant, r, T):
    """W (d_out, d_in), quant: matrix → rounded matrix
    → Q (d_out, d_in), B (d_out, r), A (r, d_in) of round T."""
    ### BEGIN SOLUTION
    BA = 0
    for _ in range(T):
        Q = quant(W - BA)
        U, S, Vt = np.linalg.svd(W - Q, full_matrices=False)
        B, A = U[:, :r] * np.sqrt(S[:r]), np.sqrt(S[:r])[:, None] * Vt[:r]
        BA = B @ A
    return Q, B, A
    ### END SOLUTION

# %%
result = tp.check("nf4.loftq", nf4_loftq)
result

# %% [markdown]
# Compare yours with the package's:

# %%
my_loftq = result.function
show(loftq_rounds)

# %% [markdown]
# Your function at work on `mlp.up`, with two grids and two ranks:

# %%
size = np.linalg.norm
errors = {}
for scheme, name in ((tp.NF4(), "NF4"), (two_bits, "2 bits")):
    quant = lambda M, scheme=scheme: scheme.quantize(M).dequantize()
    for r in (4, 16):
        rounds = [my_loftq(W, quant, r, T) for T in (1, 2, 4, 8)]
        errors[name, r] = [size(W - Q - B @ A) / size(W - quant(W)) for Q, B, A in rounds]
        print(f"{name:7} r = {r:2}: ‖W − Q − BA‖ ÷ ‖W − Ŵ‖ after 1, 2, 4, 8 rounds",
              *(f"{e:.3f}" for e in errors[name, r]))

# %% fold
fig, (left, right) = plot.figure(1, 2, height=3.4, width=9)
share = lambda M: np.cumsum(np.linalg.svd(M, compute_uv=False)**2) / size(M)**2 * 100
for scheme, name, colour in ((tp.NF4(), "NF4", "blue"), (two_bits, "2 bits", "vermillion")):
    left.plot(range(1, 129), share(W - scheme.quantize(W).dequantize()), color=plot.COLOURS[colour])
    for r, style in ((4, ":"), (16, "-")):
        right.plot([0, 1, 2, 4, 8], [1, *errors[name, r]], style, marker="o", ms=3,
                   color=plot.COLOURS[colour])
        right.annotate(f"{name}, r = {r}", (8, errors[name, r][-1]), xytext=(4, 0), fontsize=8,
                       textcoords="offset points", va="center",
                       color=plot.ink(plot.COLOURS[colour]))
left.plot(range(1, 129), share(W), color=plot.COLOURS["grey"])
for M, name in ((W - tp.NF4().quantize(W).dequantize(), "W − Ŵ, NF4"),
                (W - quant(W), "W − Ŵ, 2 bits"), (W, "W itself"),
                (np.random.default_rng(0).normal(size=W.shape), "a random matrix")):
    print(f"16 of 128 ranks hold {share(M)[15]:.0f} % of {name}")
left.annotate("W itself", (5, 62), fontsize=8, color="#606060")
left.annotate("W − Ŵ, NF4 and 2 bits", (60, 52), fontsize=8, color=plot.ink(plot.COLOURS["blue"]))
left.set(xlabel="rank", ylabel="share of the squared norm (%)")
left.set_title("How much of W − Ŵ a low rank can hold", loc="left", fontsize=10)
right.set(xlabel="rounds T", ylabel="‖W − Q − BA‖ ÷ ‖W − Ŵ‖", xlim=(-0.3, 11), ylim=(0, 1.05))
right.set_title("What alternating achieves", loc="left", fontsize=10)
fig

# %% [markdown]
# *What to see: the error of quantization is nearly noise, so a small rank can hold little of it.*
# Left: 16 of 128 ranks hold as little of it as of a random matrix, and much more of $W$ itself
# (printed above).
# Right: more rounds help beyond the first one, because the low-rank part also lets $Q$ choose
# better.
#
# The study trained longer, at several widths and over seeds:

# %%
show("loftq")

# %% [markdown]
# *What to see: the fewer the bits, the more LoftQ helps, before and after training.*
# After twice as many steps (hollow) the lead is smaller.
#
# {claim LoftQ ends below QLoRA}
#
# The paper's gains are at 2 bits, too. There QLoRA did not converge on LLaMA-2, and LoftQ reached
# a perplexity of 7.85 on WikiText with 7 billion parameters.
#
# ### {exercise}
#
# A colleague starts LoRAs by LoftQ. With $\alpha = r$ all is well.
# With a larger $\alpha$ nothing is gained, or the start is worse than without LoftQ.
# This is the code, and what it does on `mlp.up`:

# %%
def faulty_loftq(W, quant, r, alpha):
    """Q, and the factors of a LoRA of rank r and scale α/r that makes up for W − Q?"""
    return my_loftq(W, quant, r, 1)

quant2 = lambda M: two_bits.quantize(M).dequantize()
def distance(f, alpha, r=8):
    """How far the layer, with its LoRA, is from W; 1 is the distance without a LoRA."""
    Q, B, A = f(W, quant2, r, alpha)
    return size(W - Q - alpha / r * B @ A) / size(W - quant2(W))

for alpha in (8, 16, 32):
    print(f"r = 8, α = {alpha:2}: distance from W {distance(faulty_loftq, alpha):.3f}")

# %% [markdown]
# Write `nf4_bug(W, quant, r, alpha)`, the mended function. Keep its one round.
# Any way to share the product between $B$ and $A$ is right.

# %% exercise=nf4.bug points=2 minutes=8
def nf4_bug(W, quant, r, alpha):
    """W (d_out, d_in), quant: matrix → rounded matrix → Q (d_out, d_in), B (d_out, r), A (r, d_in),
    for a layer that computes with Q + (α/r) B A."""
    ### BEGIN SOLUTION
    Q = quant(W)
    U, S, Vt = np.linalg.svd(W - Q, full_matrices=False)
    root = np.sqrt(S[:r] / (alpha / r))
    return Q, U[:, :r] * root, root[:, None] * Vt[:r]
    ### END SOLUTION

# %%
result = tp.check("nf4.bug", nf4_bug)
result

# %% [markdown]
# Both functions in the whole model, on a base of 2 bits, with $r = 8$ and $\alpha = 32$, before
# any training:

# %%
print(f"no LoftQ:      perplexity {perplexity(tp.quantize(copy.deepcopy(model), two_bits)):6.2f}")
for name, f in (("faulty LoftQ", faulty_loftq), ("your LoftQ", result.function)):
    started = tp.attach(tp.quantize(copy.deepcopy(model), two_bits),
                        tp.LoRA(rank=8, alpha=32, targets="all"), rng=0)
    for path, wrapper in started.wrappers.items():
        _, B, A = f(model.get(path).weight.data, quant2, 8, 32)
        wrapper.B.assign(np.float32(B))
        wrapper.A.assign(np.float32(A))
    print(f"{name + ':':14} perplexity {perplexity(started):6.2f}")

# %% [markdown]
# ### {exercise}
#
# Section 1 said that equal use of the codes is not the least squared error.
# *Lloyd's algorithm* repeats two steps: each number gets the code of its nearest level; then each
# level moves to where the squared error of its own numbers is least.
# Write one round, `nf4_lloyd(x, levels)`: numbers `x (N,)`, ascending `levels (L,)` → the new
# levels `(L,)`. A level that no number is nearest to stays as it is.

# %% exercise=nf4.lloyd points=2 minutes=12 bonus=yes
def nf4_lloyd(x, levels):
    """x (N,), levels ascending (L,) → the levels after one round, (L,)."""
    ### BEGIN SOLUTION
    codes = np.abs(x[:, None] - levels).argmin(1)
    return np.array([x[codes == i].mean() if (codes == i).any() else levels[i]
                     for i in range(len(levels))])
    ### END SOLUTION

# %%
result = tp.check("nf4.lloyd", nf4_lloyd)
result

# %%
x, better = normed.ravel()[:8192].astype(float), my_levels
for rounds in range(11):
    if rounds in (0, 1, 3, 10):
        nearest = better[np.abs(x[:, None] - better).argmin(1)]
        print(f"{rounds:2} rounds: error {size(nearest - x) / size(x):.2%} of the weights' size")
    better = result.function(x, better)
print("levels:", np.round(better, 3))

# %% [markdown]
# The error falls, but the table now belongs to these weights, and the exact zero is gone.
#
# ### {exercise} · Spend your bits (open, 4 points, 25 minutes)
#
# You have memory for a base of 4.5 bits per weight.
# A LoRA of rank 8 comes on top of it and does not count. Ranks above 8 do.
# Compare three ways:
#
# - (a) NF4 with float32 scales, and a LoRA of rank 8 that starts at zero;
# - (b) NF4 with double quantization, and the bits saved are spent on a LoRA of a higher rank;
# - (c) 3 bits in groups of 32, and a LoRA of rank 8 that LoftQ starts.
#
# Say how large a rank (b) can afford on `mlp.up` if LoRA's numbers are kept in float16.
# Train two of the three for 30 steps with two seeds each, and recommend one.
# What would you have to measure before you recommend it for a model of 7 billion parameters?
#
# <details><summary>Rubric</summary>
#
# 1 point: the budget, in bits, and the rank that follows from it.
# 1 point: runs with two seeds, on the same data, with numbers.
# 1 point: differences are compared with the spread over seeds before anything is concluded.
# 1 point: what does not carry over to 7 billion parameters.
#
# </details>

# %% [answer]
# *Budget.* Double quantization saves 0.373 bits for each of the $512 \cdot 128 = 65{,}536$
# weights of `mlp.up`: 24,445 bits.
# One rank costs $16 \cdot (128 + 512) = 10{,}240$ bits, so two more ranks: $r = 10$.
# (The LoRA of rank 8 itself costs 81,920 bits, 1.25 per weight.
# It comes on top in all three.) (c) does not use its whole budget: 3 bits in groups of 32 are
# about 3.6 bits per weight.
#
# *Runs.* Expect (a) and (b) to differ by less than two seeds do.
# Two ranks are worth little, and double quantization costs nothing that can be seen.
# Either may be recommended. (c) is behind, because rounding to 3 bits costs more than LoftQ and
# training win back. {claim LoftQ ends below QLoRA} {claim Double quantization saves}
#
# *7 billion.* The share of a rank in $d = 4096$ is a thirtieth of what it is here.
# Weights may be less normal, or have outliers.
# The learning rate and the length of training differ.
# Activations, not weights, may fill the memory.
# Measure the loss of the rounded base, and two seeds of a short training, before the choice.

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
# 5. A colleague merges a LoRA that was trained on NF4 into the original 16-bit weights.
#    What happens?
# <details><summary>Answer</summary>
#
# The model differs from the one that was trained by $W - \hat W$.
# The LoRA may have learned to make up for that difference, which it now does for nothing.
# On the other hand $W$ is the better base.
# Which of the two counts more must be measured; section 5 has the study's numbers.
#
# </details>

# %% [markdown]
# ## Where the papers say this
#
# - QLoRA: Dettmers et al. (arXiv 2305.14314). §3 has NormalFloat, double quantization, and
#   equations (5) and (6). Table 2 has the perplexities quoted, and appendix E the sixteen values.
# - The 8-bit table of scales: Dettmers et al. (arXiv 2110.02861), §2.
# - LoftQ: Li et al. (arXiv 2310.08659), Algorithm 1.
#
# ## Where implementations differ
#
# - *The 8-bit type of the scales.* The paper says "8-bit Floats" and "FP8", but not which FP8.
#   bitsandbytes uses a *dynamic* table. torchao's NF4 uses linear int8, which gives other scales.
# - *The default.* bitsandbytes' `quantize_4bit` means **FP4**, not NF4, if nothing is said. The
#   first of two codes sits in the high half of a byte.
# - *LoftQ's scale.* The authors' code sets α = $r$, but α = 16 for causal models of 4 bits, and
#   corrects neither. PEFT does not either. With α ≠ $r$ the product is scaled and no longer
#   repairs the error. You have mended that above.
# - *LoftQ's rounds.* The paper keeps the last round. With uniform grids of 2 or 3 bits a later
#   round can be worse than an earlier one, and the package keeps the best.
#
# **Now you can** fine-tune a model that is stored in 4 bits, and say what it stores and what may be
# merged. The codes themselves have stayed frozen all along.
# **Lesson 14** trains through the rounding itself.
