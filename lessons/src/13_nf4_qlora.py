# %% [markdown]
# # 13 · NF4, double quantization, QLoRA and LoftQ
#
# **What you will do.** Derive the sixteen numbers of NF4 from the normal distribution and check them against
# bitsandbytes' table; see on which weights they are better than integers, and on which not; quantize the scales as
# well; train a LoRA on a base of 4 bits, with the gradient written by hand; find out what merging it loses; and start a
# LoRA where quantization left off (LoftQ).
#
# **What you need.** LoRA (lesson 07); grids, groups and bits per weight (lesson 10). What a quantile is.
#
# **Time.** 70 minutes: 35 of reading and running, 35 to 50 of exercises.

# %%
import copy

import numpy as np
from scipy.stats import norm

import tinypeft as tp
from tinypeft.course import show
from tinypeft.quant import linear, measure, nf4
from tinypeft.quant.codebooks import codebook
from tinypeft.quant.loftq import loftq_rounds
from tinypeft.study import plot

model = tp.load_pretrained()
task = tp.tasks.domain(model.tokenizer, context=128)
W = model.get("blocks.2.mlp.up").weight.data                              # (512, 128)
def perplexity(m): return tp.evaluate(m, task, "test", max_batches=2)["perplexity"]

# %% [markdown]
# ## 1. Sixteen quantiles
#
# Trained weights look normally distributed. If the distribution is known, one need not space the levels evenly: put
# them at its *quantiles*, so that each is used equally often. The QLoRA paper does this for $N(0, 1)$, with one
# complication: a plain quantile grid of 16 levels has no exact zero. So it takes quantiles of the two halves apart,
# eight steps on the positive side and seven on the negative, joins them at 0, and scales the result to $[-1, 1]$. With
# $\Phi^{-1}$ the quantile function of $N(0,1)$:
#
# $$c^{+} = \frac{\Phi^{-1}(p^{+})}{\Phi^{-1}(\delta)}$$
#
# $$p^{+} = 9 \text{ equally spaced points from } \delta \text{ to } \tfrac12, \text{ without the last}$$
#
# $$c^{-} = -\frac{\Phi^{-1}(p^{-})}{\Phi^{-1}(\delta)}$$
#
# $$p^{-} = 8 \text{ equally spaced points from } \delta \text{ to } \tfrac12, \text{ without the last}$$
#
# The end $\delta$ cannot be 1, where the quantile is infinite. bitsandbytes takes the mean of what two grids of 15 and
# 16 intervals would leave at their ends,
#
# $$\delta = 1 - \tfrac12\left(\tfrac1{32} + \tfrac1{30}\right) = 0.9677083$$

# %%
delta = 1 - (1 / 32 + 1 / 30) / 2
positive = norm.ppf(np.linspace(delta, 0.5, 9)[:-1])
print(f"δ = {delta:.7f};   eight positive levels: {np.round(positive[::-1] / norm.ppf(delta), 4)}")

# %% [markdown]
# ### {exercise}
#
# Write `nf4_levels(delta, positive, negative)`: `positive` levels above 0, 0 itself, and `negative` levels below,
# ascending, scaled so that the largest magnitude is 1. `nf4_levels(0.9677083, 8, 7)` is NF4. Remember that $n$ levels
# on one side need $n + 1$ points from δ to ½; the last of them, whose quantile is 0, is dropped. `scipy.stats.norm.ppf`
# is $\Phi^{-1}$.

# %% exercise=nf4.levels points=4 minutes=15
def nf4_levels(delta, positive, negative):
    """δ in (½, 1), the numbers of levels above and below 0 → the levels, ascending, (positive + 1 + negative,)."""
    ### BEGIN SOLUTION
    up = norm.ppf(np.linspace(delta, 0.5, positive + 1)[:-1])
    down = -norm.ppf(np.linspace(delta, 0.5, negative + 1)[:-1])
    levels = np.sort(np.concatenate([up, [0.0], down]))
    return levels / np.abs(levels).max()
    ### END SOLUTION

# %%
result = tp.check("nf4.levels", nf4_levels)
result

# %%
nf4_levels = result.function
derived = nf4_levels(delta, 8, 7)
print("largest difference from bitsandbytes' table:", np.abs(derived - codebook("nf4")).max())

# %% [markdown]
# What difference there is comes from float32 arithmetic in the original: with a float32 `linspace` one gets the paper's
# appendix E digit for digit.
#
# To quantize, a block of 64 weights is divided by its largest magnitude, and every weight becomes the code of the
# nearest level:
#
# $$s = \max|x|, \qquad q = \arg\min_i |x/s - c_i|, \qquad \hat x = s\, c_q$$

# %%
show(nf4.nearest)

# %% [markdown]
# ### {exercise}
#
# Write `nf4_encode(x, levels)` for one block `x (B,)` and ascending `levels (L,)`: return `(codes, s)`, the integer
# codes of the nearest levels after division by $s = \max|x|$, and $s$. The block is not all zeros, and no weight is
# exactly midway.

# %% exercise=nf4.encode points=2 minutes=5
def nf4_encode(x, levels):
    """x float (B,), levels ascending (L,) → (codes int (B,), s)."""
    ### BEGIN SOLUTION
    s = np.abs(x).max()
    return np.abs(x[:, None] / s - levels).argmin(1), s
    ### END SOLUTION

# %%
result = tp.check("nf4.encode", nf4_encode)
result

# %%
nf4_encode = result.function
blocks = W.reshape(-1, 64)
normed = blocks / np.abs(blocks).max(1, keepdims=True)
use = {"NF4": np.mean([np.bincount(nf4_encode(b, codebook("nf4"))[0], minlength=16) for b in blocks], axis=0) / 64,
       "int4": np.bincount(np.rint(normed * 7).astype(int).ravel() + 7, minlength=15) / normed.size}

fig, (left, right) = plot.figure(1, 2, height=3.3, width=9)
left.hist(normed.ravel(), bins=81, density=True, color="#D9D9D9")
for c in codebook("nf4"): left.axvline(c, color=plot.COLOURS["blue"], lw=1)
left.set(xlabel="weight ÷ largest of its block", ylabel="density")
left.set_title("The base's weights, and NF4's levels", loc="left", fontsize=10)
for (name, share), colour in zip(use.items(), ("blue", "orange"), strict=True):
    right.plot(range(1, len(share) + 1), 100 * np.sort(share)[::-1], "o-", ms=4, color=plot.COLOURS[colour], label=name)
right.axhline(100 / 16, color=plot.COLOURS["grey"], lw=1, ls="--")
right.set(xlabel="codes, the most used first", ylabel="share of the weights (%)", ylim=(0, None))
right.set_title("How often each code is used", loc="left", fontsize=10)
right.legend()
fig

# %% [markdown]
# *What to see:* NF4's levels are dense where the weights are. Its codes are used more evenly than those of int4, but by
# no means equally (dashed): the weights are divided by the largest of 64, which is another number in every block, so
# what is left is not $N(0,1)$. "Information-theoretically optimal", as the paper says, holds for a grid and a
# distribution that it does not quite have.
#
# ## 2. Is it better?

# %%
rng = np.random.default_rng(0)
kinds = {"normal": rng.normal(size=(512, 512)), "heavy tails (t₅)": rng.standard_t(5, size=(512, 512)),
         "uniform": rng.uniform(-1, 1, (512, 512)), "the base's mlp.up": W}
schemes = {"NF4": tp.NF4(), "FP4 E2M1": tp.FloatFormat("E2M1"), "FP4 of bitsandbytes": tp.FloatFormat("FP4"),
           "int4 symmetric": tp.Uniform(4, True, "group", 64), "int4 asymmetric": tp.Uniform(4, False, "group", 64)}
relative = lambda Q, A: float(np.linalg.norm(Q.dequantize() - A) / np.linalg.norm(A))
table = {name: [100 * relative(s.quantize(A.astype(np.float32)), A) for A in kinds.values()] for name, s in schemes.items()}

print(f"{'‖Ŵ − W‖/‖W‖ (%)':20}", *(f"{name:>18}" for name in kinds))
for name, row in table.items(): print(f"{name:20}", *(f"{error:18.2f}" for error in row))

# %%
show("formats")

# %% [markdown]
# On normal weights NF4 beats E2M1 and symmetric integers, as the paper reports (its Table 2: 27.41 perplexity for NF4
# with double quantization, 31.07 for E2M1, 34.34 for int4). Three things the paper does not show: bitsandbytes' own FP4
# is *worse* than int4; integers with a zero point are as good as NF4 on normal weights, for 4 bits per block more (0.06
# per weight); and on uniform weights integers win by far. NF4's lead over integers is widest where tails are heavy.
#
# ## 3. Double quantization
#
# A float32 scale per 64 weights is half a bit per weight. The scales are numbers like any others, so quantize them:
# subtract their mean $o$, and in blocks of 256 code what is left in 8 bits,
#
# $$s_i \approx t\, d_{r_i} + o, \qquad o = \mathrm{mean}(s), \qquad t = \max|s - o| \text{ of the block}$$
#
# where $d$ is a table of 256 values. Counting everything:
#
# $$4 + \frac{8}{64} + \frac{32}{64 \cdot 256} = 4.127 \text{ bits instead of } 4 + \frac{32}{64} = 4.5$$

# %%
show(nf4.quantize_scales)
for scheme in (tp.NF4(), tp.NF4(double_quant=True)):
    Q = scheme.quantize(kinds["normal"].astype(np.float32))
    print(f"{Q.bits_per_weight:.3f} bits/weight, error {100 * relative(Q, kinds['normal']):.3f} %   {scheme}")
print("by the formula:", 4 + 8 / 64 + 32 / (64 * 256))

# %% [markdown]
# The error hardly changes: the scales of 256 neighbouring blocks are much alike. (If one block in 256 had weights a
# hundred times larger, the others' scales would be coarse. It is the story of lesson 11 once more.) For 7 billion
# weights 0.373 bits are 0.33 GB.
#
# ## 4. QLoRA: training on top
#
# Now freeze the quantized weights and put a LoRA on them. The forward pass decodes $\hat W$ for one layer at a time,
# multiplies, and drops it, equations (5) and (6) of the paper:
#
# $$y = x\,\hat W^\top + s\,(x A^\top) B^\top, \qquad \hat W = \mathrm{dequant}(\mathrm{dequant}(r, t, o),\ q)$$
#
# The codes get no gradient: there is nothing to train in them. But gradients pass *through* $\hat W$ to the layers
# below, so it is decoded a second time in the backward pass. With $\mathrm dy = \partial L/\partial y$:
#
# $$\mathrm dx = \mathrm dy\, \hat W + s\,(\mathrm dy\, B) A, \qquad \mathrm dB = s\, \mathrm dy^\top (x A^\top)$$
#
# $$\mathrm dA = s\,(\mathrm dy\, B)^\top x$$

# %%
show(linear.quantized_linear)

# %% [markdown]
# ### {exercise}
#
# Write `nf4_backward(x, codes, scales, levels, A, B, s, dy)` and return `(dx, dA, dB)`. The weight is given as it is
# stored: `codes (d_out, d_in)` are integers into `levels (L,)`, and `scales (d_out, d_in/g)` has one number for each
# group of $g$ consecutive weights in a row. `x (n, d_in)`, `A (r, d_in)`, `B (d_out, r)`, `dy (n, d_out)`; $s$ is
# LoRA's α/r. Work out each shape before you write the product.

# %% exercise=nf4.backward points=4 minutes=15
def nf4_backward(x, codes, scales, levels, A, B, s, dy):
    """The gradients of x (n, d_in), A (r, d_in) and B (d_out, r), given dy (n, d_out) → (dx, dA, dB)."""
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
# What flows where:

# %%
show("qlora_flow")

# %% [markdown]
# *What to see:* the 4-bit weights are decoded for each product and dropped again; gradients pass through them, and end
# at A and B alone.
#
# QLoRA in this package is no class but a composition: quantize, then attach. We train four LoRAs for 30 steps on
# documentation the base never saw: on the base itself, on NF4, and two on 2 bits, of which the second is started by
# LoftQ (section 6).

# %%
lora = tp.LoRA(rank=8, targets="all")
two_bits = tp.Uniform(2, False, "group", 32, scale_dtype="float16")
def build(name):
    m = copy.deepcopy(model)
    if name == "float32":         return tp.attach(m, lora, rng=0)
    if name == "NF4, double":     return tp.attach(tp.quantize(m, tp.NF4(double_quant=True)), lora, rng=0)
    if name == "2 bits":          return tp.attach(tp.quantize(m, two_bits), lora, rng=0)
    return tp.loftq(m, lora, two_bits, iterations=5, rng=0)

tuned = {}
for name in ("float32", "NF4, double", "2 bits", "2 bits, LoftQ"):
    tuned[name] = build(name)
    start = perplexity(tuned[name])
    tp.train(tuned[name], task, steps=30, batch_size=4, lr=3e-3, seed=0, progress=False)
    print(f"LoRA on {name:14} test perplexity {start:6.2f} → {perplexity(tuned[name]):6.2f}")

# %%
show("qlora")

# %% [markdown]
# On NF4 a LoRA learns at the same pace as on float32. But the gap with which it starts stays: in 30 steps at this size
# training does not win back what 4 bits cost, a few per cent of perplexity, whereas the paper finds that 4-bit QLoRA
# matches 16-bit fine-tuning. On 2 bits the LoRA starts from a broken model and repairs most of it. What LoftQ does is
# told in section 6.
#
# What is saved? During training a parameter of the base costs its storage only; those of the LoRA cost weight, gradient
# and two numbers of AdamW's:

# %%
base = sum(m.weight.size for _, m in model.named_modules() if hasattr(m, "d_in"))
adapter = tuned["float32"].summary().trained
bits = tp.bits_per_weight(tp.quantize(copy.deepcopy(model), tp.NF4(double_quant=True)))
for name, stored, trained in (("full fine-tuning", 4 * base, base), ("LoRA", 4 * base + 4 * adapter, adapter),
                              ("QLoRA", bits / 8 * base + 4 * adapter, adapter)):
    print(f"{name:16} weights {stored / 2**20:5.2f} MiB, gradients and AdamW {12 * trained / 2**20:5.2f} MiB")

# %% [markdown]
# (Linear layers of the blocks alone; activations come on top, and are about the same for all three. Lesson 15 does this
# for 7 billion parameters.)
#
# ## 5. The merge that is not one
#
# LoRA's change can be merged into the weights, so that nothing is slower afterwards. Here it was trained on $\hat W$,
# so it may be merged into $\hat W$, in floating point. Two shortcuts go wrong: merging into the original $W$, which
# adds an error $W - \hat W$ that training has never seen; and quantizing the merged weight again, because a change
# smaller than half a step is rounded away.

# %%
show(measure.requantize_error)
for name, scheme in (("NF4, double", tp.NF4(double_quant=True)), ("2 bits", two_bits)):
    of_weights, of_change = tp.requantize_error(tuned[name], scheme)
    again = tp.quantize(tuned[name].merge(), scheme)
    print(f"{name:12} error ÷ ‖M‖ {of_weights:5.1%}   ÷ ‖ΔW‖ {of_change:5.1%}   perplexity: kept apart "
          f"{perplexity(tuned[name]):.2f}, "
          f"quantized again {perplexity(again):.2f}")

# %% [markdown]
# The second rounding is about as large as the change that was learned, and a third of what training gained is gone: on
# 2 bits, all of it. Keep the adapter apart, or merge into floating point and accept the size.
#
# ## 6. LoftQ: spend the rank on the error first
#
# QLoRA starts from $\hat W + 0$, which is not the model that was pretrained. Li et al. choose $Q$, $A$ and $B$
# together, equation (6), so that their sum is as near to $W$ as possible (our letters: their $A B^\top$ is LoRA's
# $B A$):
#
# $$\min_{Q, A, B}\ \|W - Q - B A\|$$
#
# by turns: quantize what the low-rank part leaves, then take the best rank-$r$ approximation of what quantization
# leaves, from a singular value decomposition:
#
# $$Q_t = \mathrm{quant}(W - B_{t-1} A_{t-1}), \qquad W - Q_t = U \Sigma V^\top$$
#
# $$B_t = U_r \sqrt{\Sigma_r}, \quad A_t = \sqrt{\Sigma_r}\, V_r^\top$$

# %%
show(loftq_rounds)

# %% [markdown]
# ### {exercise}
#
# Write `nf4_loftq(W, quant, r, T)`: exactly $T$ rounds from $B A = 0$, returning `(Q, B, A)` of the **last** round (the
# paper's; the package keeps the best). `quant` takes a matrix and returns the rounded matrix. `B (d_out, r)` and
# `A (r, d_in)` are determined up to signs; either sign is right. Split $\Sigma$ evenly.

# %% exercise=nf4.loftq points=4 minutes=15
def nf4_loftq(W, quant, r, T):
    """W (d_out, d_in), quant: matrix → rounded matrix → Q (d_out, d_in), B (d_out, r), A (r, d_in) of round T."""
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

# %%
nf4_loftq = result.function
fig, (left, right) = plot.figure(1, 2, height=3.4, width=9)
norm_of = np.linalg.norm
for scheme, name, colour in ((tp.NF4(), "NF4", "blue"), (two_bits, "2 bits", "vermillion")):
    quant = lambda A, scheme=scheme: scheme.quantize(A).dequantize()
    R = W - quant(W)
    left.plot(range(1, 129), np.cumsum(np.linalg.svd(R, compute_uv=False)**2) / norm_of(R)**2 * 100, color=plot.COLOURS[colour])
    for r, style in ((4, ":"), (16, "-")):
        errors = []
        for T in (1, 2, 4, 8):
            Q, B, A = nf4_loftq(W, quant, r, T)
            errors.append(norm_of(W - Q - B @ A) / norm_of(R))
        right.plot([0, 1, 2, 4, 8], [1, *errors], style, marker="o", ms=3, color=plot.COLOURS[colour])
        right.annotate(f"{name}, r = {r}", (8, errors[-1]), xytext=(4, 0), textcoords="offset points", fontsize=8,
                       va="center", color=plot.COLOURS[colour])
left.plot(range(1, 129), np.cumsum(np.linalg.svd(W, compute_uv=False)**2) / norm_of(W)**2 * 100, color=plot.COLOURS["grey"])
left.annotate("W itself", (5, 62), fontsize=8, color="#606060")
left.set(xlabel="rank", ylabel="share of the squared norm (%)")
left.set_title("How much of W − Ŵ a low rank can hold", loc="left", fontsize=10)
right.set(xlabel="rounds T", ylabel="‖W − Q − BA‖ ÷ ‖W − Ŵ‖", xlim=(-0.3, 11), ylim=(0.6, 1.02))
right.set_title("What alternating achieves", loc="left", fontsize=10)
fig

# %% [markdown]
# *What to see:* Left, the error of quantization is nearly noise: its share grows hardly faster than the rank, so no
# small rank can hold most of it. Right, alternating helps beyond the first round, because the low-rank part also lets
# $Q$ choose better. With a thirty-second of the full rank the error falls by about a tenth, with an eighth by a fifth
# to a quarter.
#
# In the run above LoftQ starts from a clearly better place on 2 bits and is still ahead after 30 steps. That depends on
# the learning rate: at `1e-2`, LoRA's own default here, the lead is gone by then, since both factors start large and a
# step then moves the weights further. On 4 bits there is little to repair. The paper's gains, too, are at 2 bits, where
# QLoRA did not converge on LLaMA-2 at all and LoftQ reached a perplexity of 7.85 on WikiText with 7 B parameters.
#
# The study trained longer, at several widths and over seeds:

# %%
show("loftq")

# %% [markdown]
# ### {exercise} · Spend 4.5 bits (open, 4 points, 15 minutes)
#
# You have memory for 4.5 bits per weight. Compare (a) NF4 with float32 scales and a LoRA of rank 8 from zero, (b) NF4
# with double quantization and the bits saved spent on a LoRA of higher rank, (c) 3 bits in groups of 32 with LoftQ. Say
# how large a rank (b) can afford on `mlp.up` if LoRA's numbers are kept in float16; train two of the three for 30 steps
# with two seeds each, and recommend one. What would you have to measure before recommending it for a model of 7 B?
#
# <details><summary>Rubric</summary>
#
# 1 point: the budget, in bits, and the rank that follows from it. 1 point: runs with two seeds, same data, with numbers.
# 1 point: differences are compared with the spread over seeds before anything is concluded. 1 point: what does not carry
# over to 7 B.
#
# </details>

# %% [answer]
# *Budget.* Double quantization saves 0.373 bits for each of the $512 \cdot 128 = 65,536$ weights of `mlp.up`: 24,445 bits. One
# rank costs $16 \cdot (128 + 512) = 10,240$ bits, so two more ranks: $r = 10$. (The LoRA of rank 8 itself costs 81,920 bits,
# 1.25 per weight, on top of the 4.5: say whether you count it.)
#
# *Runs.* Expect (a) and (b) to differ by less than two seeds do: two ranks are worth little, and double quantization costs
# nothing that can be seen. Either may be recommended. (c) is behind: rounding to 3 bits costs more than LoftQ and training
# win back. {claim LoftQ ends below QLoRA} {claim Double quantization saves}
#
# *7 B.* The share of a rank in $d = 4096$ is a thirtieth of what it is here. Weights may be less normal, or have outliers; the
# learning rate and the length of training differ; activations, not weights, may fill the memory. Measure the loss of the
# rounded base, and two seeds of a short training, before the choice.

# %% [markdown]
# ## Recall
#
# 1. Why do NF4's levels have eight steps above 0 and seven below?
# <details><summary>Answer</summary>
#
# Sixteen codes, one of which is an exact 0, leave fifteen: they cannot be shared evenly.
#
# </details>
#
# 2. Why are NF4's codes not used equally often in practice?
# <details><summary>Answer</summary>
#
# The levels are quantiles of $N(0,1)$ scaled by a constant, but weights are divided by the largest of their block,
# which varies; ±1 in particular is hit by exactly one weight of each block.
#
# </details>
#
# 3. What does double quantization subtract before coding the scales, and why?
# <details><summary>Answer</summary>
#
# Their mean. Scales are all positive; without it half of a signed table would be unused.
#
# </details>
#
# 4. Which gradients does QLoRA compute, and which not?
# <details><summary>Answer</summary>
#
# For $A$ and $B$, and for the layer's input, through the decoded weight. None for codes or scales.
#
# </details>
#
# 5. A colleague merges a LoRA trained on NF4 into the original 16-bit weights, "to get rid of the quantization error".
#   What happens?
# <details><summary>Answer</summary>
#
# $A$ and $B$ were trained to work with $\hat W$, and partly to correct its error. Added to $W$ they overcorrect: the
# result differs from what was trained by $W - \hat W$, which is larger than $\Delta W$ as a rule.
#
# </details>

# %% [markdown]
# ## Where the paper says this
#
# - QLoRA: Dettmers et al. (arXiv 2305.14314), §3: NormalFloat, double quantization, equations (5) and (6); Table 2 the
#   perplexities quoted; appendix E the sixteen values. The 8-bit table of scales: Dettmers et al. (arXiv 2110.02861),
#   §2.
# - LoftQ: Li et al. (arXiv 2310.08659), Algorithm 1.
#
# ## Where implementations differ
#
# - The paper leaves the 8-bit type of the scales open. bitsandbytes uses a *dynamic* table; torchao's NF4 uses linear
#   int8, which gives other scales.
# - bitsandbytes' `quantize_4bit` defaults to **FP4**, not NF4. The first of two codes sits in the high half of a byte.
# - LoftQ's code sets α = $r$, but α = 16 for causal models of 4 bits, and corrects neither; nor does PEFT. With α ≠ $r$
#   the product is scaled and no longer repairs the error. Here the factors are divided by $\sqrt{\alpha/r}$.
# - The paper of LoftQ keeps the last round; with uniform grids of 2 or 3 bits a later round can be worse than an
#   earlier one, and the package keeps the best.
#
# ## What you can do now
#
# Fine-tune a model stored in 4 bits, say what it stores and what may be merged. The codes themselves have stayed frozen
# all along. **Lesson 14** trains through the rounding itself.
