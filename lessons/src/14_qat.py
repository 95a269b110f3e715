# %% [markdown]
# # 14 · Training with quantization: STE, LSQ, PEQA, LLM-QAT
#
# **What you will do.** You send a gradient through a function whose derivative is zero, and see
# why that works and what it costs (STE).
# You derive the gradient of the step size and train the step with the weights (LSQ).
# You train nothing but the scales of a quantized model (PEQA).
# You train a quantized model on text that its own teacher has written (LLM-QAT).
# At 2 bits rounding alone breaks the model.
# STE, LSQ, PEQA and QLoRA are put to the test there, and the study adds LLM-QAT.
#
# **What you need.** Grids and clipping ([lesson 10](10_quantization.ipynb)), autograd's backward
# functions ([lesson 01](01_autograd.ipynb)), cross-entropy and softmax
# ([lesson 02](02_transformer.ipynb)), and for the last comparison
# [lesson 13](13_nf4_qlora.ipynb).
#
# **Words and letters.** The [glossary](GLOSSARY.md) has those that all lessons share.
# In this lesson $\lfloor v \rceil$ is $v$ rounded to the nearest integer, $s$ the step, $z$ the
# zero point, and $q_\mathrm{low}$, $q_\mathrm{high}$ are the lowest and the highest *code*.
# (In lesson 10, $l$ and $h$ were numbers on the axis of the weights.)
# $\mathrm{d}x$ is short for $\partial L/\partial x$, the gradient of the loss.
#
# **Time.** 110 minutes: 45 of reading and running, 65 of exercises.
# The open exercise takes 25 more, and the bonus 8.

# %%
import copy
import math

import numpy as np

import tinypeft as tp
from tinypeft.course import show, sliders, use
from tinypeft.quant import llm_qat, peqa, rounding
from tinypeft.quant.linear import straight_through
from tinypeft.study import plot
from tinypeft.text.tasks.distillation import divergence

model = tp.load_pretrained()
task = tp.tasks.domain(model.tokenizer, context=128)
def perplexity(m): return tp.evaluate(m, task, "test", max_batches=2)["perplexity"]
W = model.get("blocks.2.mlp.up").weight.data                      # (512, 128)
groups = dict(symmetric=False, granularity="group", group_size=32)
rounded = tp.quantize(copy.deepcopy(model), tp.Uniform(bits=2, **groups))
print(f"test perplexity {perplexity(model):.1f}; rounded to 2 bits, {perplexity(rounded):.1f}")

# %% [markdown]
# That is what this lesson repairs.
#
# ## 1. A gradient where there is none
#
# Quantization-aware training computes the loss with rounded weights and changes the floats behind
# them. As a function, rounding is a staircase:
#
# $$\hat x = s\,(q - z), \qquad
# q = \mathrm{clip}\left(\lfloor x/s \rceil + z,\ q_\mathrm{low},\ q_\mathrm{high}\right)$$
#
# Its derivative is 0 almost everywhere. With that, backpropagation would never change anything.
# The **straight-through estimator** (STE) replaces the staircase by the ramp that it follows, and
# takes the derivative of the ramp.
#
# ### {exercise}
#
# The ramp is the same function without the rounding.
# Write it down, and find its derivative in the middle and at the two sides.
# Then write `qat_ste(x, s, z, low, high, dy)`: $\mathrm{d}x$, given
# $\mathrm{d}y = \partial L/\partial \hat x$. Exactly at an end of the range the gradient is 0.
# `x` and `dy` have one shape, the others are numbers.
#
# *By hand*, for the codes 0 … 3, $s = 0.5$ and $z = 2$: at $x = 0.2$ the ramp is at
# $0.2/0.5 + 2 = 2.4$, at $x = 0.7$ it would be at $3.4$. So for $\mathrm{d}y = (5, 5)$ it is
# $\mathrm{d}x = (5, 0)$.

# %% exercise=qat.ste points=2 minutes=9
def qat_ste(x, s, z, low, high, dy):
    """x, dy float (any shape); s > 0, z, low, high numbers → dx, of the same shape."""
    ### BEGIN SOLUTION
    u = x / s + z
    return dy * ((low < u) & (u < high))
    ### END SOLUTION

# %%
show("schematic:straight_through")

# %% [markdown]
# Your function at work.
# Take one weight, the grid of all integers, and the loss $(\hat w - 0.3)^2$.
# The best grid point is 0.
# At $\hat w = 0$ the gradient is $2 \cdot (0 - 0.3) < 0$, so the weight goes up.
# At $\hat w = 1$ it is $2 \cdot (1 - 0.3) > 0$, so the weight goes down. What does a descent do?

# %%
my_ste = result.function
w, path = 0.9, []
for _ in range(80):
    w_hat = float(np.rint(w))
    path.append((w, w_hat))
    w -= 0.05 * my_ste(np.array([w]), 1.0, 8, 0, 15, np.array([2 * (w_hat - 0.3)]))[0]
path = np.array(path)
print(f"after the first 20 steps ŵ is 1 in {path[20:, 1].mean():.0%} of the steps")

# %% fold
fig, (left, right) = plot.figure(1, 2, height=3.2, width=9)
x = np.linspace(-2.6, 2.6, 521)
left.plot(x, np.clip(np.rint(x), -2, 1), color=plot.COLOURS["blue"], label="x̂")
left.plot(x, my_ste(x, 1.0, 2, 0, 3, np.ones_like(x)), color=plot.COLOURS["vermillion"],
          label="STE: ∂x̂/∂x")
left.set(xlabel="x/s", ylabel="x̂/s, and the derivative used")
left.legend()
right.plot(path[:, 0], color=plot.COLOURS["vermillion"], label="w, a float")
right.step(range(80), path[:, 1], where="mid", color=plot.COLOURS["blue"], label="ŵ, its integer")
right.axhline(0.3, color=plot.COLOURS["grey"], lw=1, ls="--")
right.set(xlabel="step", ylabel="weight", ylim=(-0.1, 1.5))
right.legend(loc="upper right", ncols=2)
fig.set_label("Left, a staircase, and the derivative 1 between its ends. Right, a weight falls to "
              "0.5 and goes to and fro there, while its integer flips between 0 and 1.")
fig

# %% [markdown]
# *What to see: the float does not come to rest.*
# Left: the derivative that is used is that of the ramp between the clipping points.
# Right: the float is driven to the border between two integers and goes to and fro across it, so
# $\hat w$ flips between 0 and 1. The *average* of $\hat w$ comes near the target 0.3 (dashed).
# One weight alone cannot settle. In a layer of thousands the flips partly cancel, and a learning
# rate that falls to zero ends them.
#
# ### {exercise}
#
# A colleague trains a linear model with rounded weights.
# The loss is the mean of $(X \hat w - y)^2$ over the rows.
# This is the code, and the loss after more and more steps:

# %%
def faulty(w, X, y, s, lr, steps):
    """Descent on the mean of (X ŵ − y)², ŵ = s ⌊w/s⌉ → ŵ at the end?"""
    for _ in range(steps):
        w = s * np.rint(w / s)
        w = w - lr * 2 / len(X) * X.T @ (X @ w - y)
    return s * np.rint(w / s)

rng = np.random.default_rng(0)
X, w0 = rng.normal(size=(200, 8)), np.zeros(8)
y = X @ rng.normal(size=8)
for steps in (0, 10, 100, 1000):
    print(f"{steps:4} steps: loss {np.mean((X @ faulty(w0, X, y, 0.25, 0.01, steps) - y)**2):.3f}")

# %% [markdown]
# The loss stands still. Write `qat_bug(w, X, y, s, lr, steps)`, the mended function.
# Keep the number of steps, the learning rate and the STE.

# %% exercise=qat.bug points=3 minutes=11
def qat_bug(w, X, y, s, lr, steps):
    """w (d,), X (n, d), y (n,), step s, learning rate lr → ŵ after so many steps, (d,)."""
    ### BEGIN SOLUTION
    for _ in range(steps):
        w_hat = s * np.rint(w / s)
        w = w - lr * 2 / len(X) * X.T @ (X @ w_hat - y)
    return s * np.rint(w / s)
    ### END SOLUTION

# %%
for steps in (0, 10, 100, 1000):
    mended = result.function(w0, X, y, 0.25, 0.01, steps)
    print(f"{steps:4} steps: loss {np.mean((X @ mended - y)**2):.3f}")

# %% [markdown]
# This is why quantization-aware training saves no memory: the float weights must be kept until
# the end.
#
# ## 2. LSQ: learn the step
#
# A step from the largest weight is too wide at few bits: most codes then serve a few large weights.
# But if $\hat x$ has a gradient with respect to $x$, it has one with respect to $s$.
# Let $z = 0$, and let the codes be $-Q_N, \dots, Q_P$ with $Q_N = 2^{b-1}$ and
# $Q_P = 2^{b-1} - 1$. With $u = x/s$:
#
# $$\hat x = s \cdot \mathrm{clip}\left(\lfloor u \rceil,\ -Q_N,\ Q_P\right)$$
#
# The letter $s$ stands there twice: in front, and inside $u$.
# Differentiate with the product rule, and pass straight through the rounding.
#
# *By hand*, for signed codes of 3 bits and $s = 1$. At $x = 2.4$ the code is 2.
# The factor in front contributes $2$, and $u$ contributes
# $s \cdot \partial u/\partial s = -x/s = -2.4$. Together: $-0.4$.
# At $x = 7$ the number is clipped to the code 3, and $u$ contributes nothing. So it is 3.
#
# The step starts at $2\langle|x|\rangle/\sqrt{Q_P}$, where $\langle|x|\rangle$ is the mean
# magnitude. All $n$ weights that share a step add to its gradient, so LSQ multiplies this sum by
#
# $$g = \frac{1}{\sqrt{n\, Q_P}}$$
#
# Then steps and weights move at similar relative speeds. This is meant for SGD.
# Adam divides by the size of the gradients, so any constant factor disappears.
#
# ### {exercise}
#
# Write `qat_lsq(x, s, bits, dy)` for rows `x (m, n)` with one step per row, `s (m,)`.
# Return `(x_hat, dx, ds)`. `ds (m,)` has the factor $g$.
# "Inside" means that $x/s$ is strictly between $-Q_N$ and $Q_P$, as in the paper.

# %% exercise=qat.lsq points=4 minutes=18
def qat_lsq(x, s, bits, dy):
    """x, dy float (m, n), s (m,) > 0 → (x_hat (m, n), dx (m, n), ds (m,))."""
    ### BEGIN SOLUTION
    Q_N, Q_P = 2**(bits - 1), 2**(bits - 1) - 1
    u = x / s[:, None]
    k = np.clip(np.rint(u), -Q_N, Q_P)
    inside = (-Q_N < u) & (u < Q_P)
    g = 1 / math.sqrt(x.shape[1] * Q_P)
    return s[:, None] * k, dy * inside, g * (dy * np.where(inside, k - u, k)).sum(1)
    ### END SOLUTION

# %%
my_lsq = result.function

# %% [markdown]
# Inside the range, the gradient is the rounding error in units of the step.
# Outside, a clipped number moves with the end of the range.
# So the step finds the balance between rounding and clipping (lesson 10, section 5) by descent.
# It finds it for the *loss*, not for the weights.
# Find it yourself first: move the end of the grid until the error is least. Your function rounds one
# row of weights to 3 bits, the codes −4 … 3. (All eight are drawn. No weight may be near −4.)

# %%
def by_lsq(w, s): return my_lsq(w[None], np.array([s]), 3, w[None])[0][0]
sliders.clipping(W[:1], shares=np.arange(0.4, 1.45, 0.1), rounding=by_lsq)

# %% [markdown]
# Your function at work where the answer can be seen: descend on $\|\hat x - x\|^2$ for one row of
# real weights, and move the step alone.

# %%
row = W[:1].astype(float)
size = np.linalg.norm
error = lambda s, bits: size(my_lsq(row, np.array([s]), bits, row)[0] - row) / size(row)
found = {}
for bits in (2, 3, 4):
    start = s = 2 * np.abs(row).mean() / math.sqrt(2**(bits - 1) - 1)
    for _ in range(300):
        x_hat, _, _ = my_lsq(row, np.array([s]), bits, row)
        s -= 0.02 * my_lsq(row, np.array([s]), bits, 2 * (x_hat - row))[2][0]
    found[bits] = start, s
    print(f"{bits} bits: the step starts at {start:.3f}, {start / s:.2f} times where it ends; "
          f"error {error(start, bits):.1%} → {error(s, bits):.1%}")

# %% fold
fig, ax = plot.figure(height=3.4, width=6.8)
for (bits, (start, s)), colour in zip(found.items(), ("vermillion", "green", "blue"), strict=True):
    steps = np.geomspace(start / 4, start * 4, 200)
    ax.plot(steps, [error(v, bits) for v in steps], color=plot.COLOURS[colour], lw=1)
    ax.plot(start, error(start, bits), "o", mfc="none", color=plot.COLOURS[colour])
    ax.plot(s, error(s, bits), "o", color=plot.COLOURS[colour], label=f"{bits} bits")
ax.set(xscale="log", yscale="log", xlabel="step s", ylabel="‖x̂ − x‖/‖x‖")
ax.set_xticks([0.02, 0.05, 0.1, 0.2, 0.5], [0.02, 0.05, 0.1, 0.2, 0.5])
ax.minorticks_off()
ax.set_title("LSQ's start (ring), and where its gradient leads (dot)", loc="left", fontsize=10)
ax.legend()
fig.set_label("The error against the step for 2, 3 and 4 bits, three valleys. Each ring lies to "
              "the right of the lowest point, each dot near it.")
fig

# %% [markdown]
# *What to see: the rule for the start gives a step that is too wide, and the gradient leads from
# there into the valley.*
# Along the curve, each number keeps its code for a while and then changes it.
# Each change begins a new piece of the curve, so the curve is not smooth.
# The straight-through gradient does not see these changes, but it leads to the valley all the same.
# At 2 bits the dot is not quite at the bottom: this gradient is an estimate, and it is biased.
#
# ### {exercise}
#
# LSQ+ also trains the zero point. Write `qat_zero(x, s, z, low, high, dy)`: the gradient of the
# one number $z$ that all of `x` share, straight through the rounding, for
# $\hat x = s\,(\mathrm{clip}(\lfloor x/s \rceil + z,\ q_\mathrm{low},\ q_\mathrm{high}) - z)$.
# Exactly at an end a number counts as clipped.

# %% exercise=qat.zero points=2 minutes=8 bonus=yes
def qat_zero(x, s, z, low, high, dy):
    """x, dy float (any shape); s > 0, z, low, high numbers → ∂L/∂z, a number."""
    ### BEGIN SOLUTION
    u = x / s + z
    return float(np.sum(dy * -s * ((u <= low) | (u >= high))))
    ### END SOLUTION

# %% [markdown]
# Your function at work: positive numbers, codes 0 … 7, and a zero point that begins in the
# middle. Half of the codes are then kept for negative numbers, of which there are none.

# %%
x, z = np.abs(row), 4.0
s = x.max() / 7
for step in range(41):
    whole = np.rint(z)
    x_hat = s * (np.clip(np.rint(x / s) + whole, 0, 7) - whole)
    if step % 10 == 0: print(f"step {step:2}: z = {z:5.2f}, error {np.sum((x_hat - x)**2):.4f}")
    z -= 15 * result.function(x, s, whole, 0, 7, 2 * (x_hat - x))

# %% [markdown]
# *What to see: $z$ falls until it is rounded to the code 0, the error falls with it, and there both
# stay.* The float $z$ ends a little below ½, and the zero point is this float, rounded.
# With the zero point 0 no code is kept for negative numbers, and no number is cut off.
# So the gradient is 0.
#
# The package's function computes your three gradients at once. Its `mask` chooses what "inside"
# means. The default is PyTorch's rule (see the end of the lesson). `FakeQuant` calls it with the
# paper's rule when it learns steps.

# %%
show(rounding.fake_quantize)

# %% [markdown]
# ## 3. PEQA: train the scales and nothing else
#
# Full quantization-aware training moves every weight.
# Each one needs a float, a gradient and the optimizer's state, so nothing is saved until it is
# over. PEQA keeps the codes of round to nearest *frozen*, and trains one number per output
# channel or per group:
#
# $$\hat W = (s_0 + \Delta s) \odot (q - z_0)$$
#
# $\odot$ multiplies each weight by the scale of its group.
# Both LSQ and PEQA train $s$, but not the same function of it.
# In LSQ a larger step also changes which code a weight gets.
# In PEQA the codes stay, and $\hat W$ is *linear* in $s$.
# So there is no estimator: the gradient is exact.
#
# *By hand*, for one group of two weights: $q = (3, 1)$, $z_0 = 2$ and $s = 0.5$ make
# $\hat w = (0.5, -0.5)$. With $x = (2, 1)$ it is $y = s\,(2 \cdot 1 + 1 \cdot (-1)) = s$. So if
# $\mathrm{d}y = 1$, the gradient of $s$ is 1.
#
# ### {exercise}
#
# Let $s = s_0 + \Delta s$. Derive $\partial L/\partial s$ from $y = x \hat W^\top$.
# Begin with $G = \partial L/\partial \hat W$, which has the shape of $\hat W$.
# Which weights share one scale?
#
# Write `qat_peqa(x, dy, q, z, g)`: the gradient, `(d_out, d_in/g)`.
# Each group of `g` consecutive weights of a row has a scale and a zero point `z (d_out, d_in/g)`.
# `x (n, d_in)`, `dy (n, d_out)`, and `q (d_out, d_in)` are the codes.

# %% exercise=qat.peqa points=3 minutes=13
def qat_peqa(x, dy, q, z, g):
    """x (n, d_in), dy (n, d_out), q (d_out, d_in), z (d_out, d_in/g) → ds (d_out, d_in/g)."""

# %% [markdown]
# Compare yours with the package's. It also serves other schemes: $c[q]$ looks a code up in a codebook
# (lesson 13), $o$ is an offset for each block, and `q.order` another order of the columns (GPTQ). In
# PEQA, $c[q]$ is $q$, $o$ is 0, and there is no order.

# %%
my_peqa = result.function
show(peqa.scaled_linear)

# %% [markdown]
# Your gradient at work: it trains the scales of the whole base at 2 bits, for five steps, beside
# the package's.

# %%
def my_scaled_linear(x, q, s, b):
    """`scaled_linear`, whose gradient of the scales is yours."""
    dense = lambda: peqa.scaled(q, s.data)
    X, d_out = x.data.reshape(-1, q.shape[1]).astype(float), q.shape[0]
    codes, z = q.unpack().reshape(q.shape).astype(int), q.zeros().reshape(d_out, -1).astype(int)

    def ds(dy):
        dY = dy.reshape(-1, d_out).astype(float)
        return my_peqa(X, dY, codes, z, q.block_size).reshape(-1).astype(s.dtype)
    return straight_through(x, q, b, lambda X: X @ dense().T, dense, (s, ds))

def five_steps():
    m = tp.quantize(copy.deepcopy(model), tp.PEQA(bits=2, group_size=32))
    return tp.train(m, task, steps=5, batch_size=2, lr=3e-3, seed=0, progress=False).loss

print("the package's", np.round(five_steps(), 4))
with use(peqa, scaled_linear=my_scaled_linear): print("yours        ", np.round(five_steps(), 4))

# %% [markdown]
# ## 4. The test: 2 bits
#
# The weights get asymmetric grids of 2 bits in groups of 32.
# There are 30 steps of 4 × 128 tokens of Matplotlib's documentation.
# `convert` puts integers in place of the floats afterwards. The function stays the same.
# Beside STE, LSQ and PEQA stands a LoRA on frozen 2-bit codes (lesson 13).
# The grids are asymmetric, and `FakeQuant` trains their zero points with the steps. So the row LSQ is
# really LSQ+ (the bonus above): a step and a zero point for each group.
#
# How should we judge? The text is new, so a model also learns from it.
# The mark is therefore the float model that is *trained on the same text for as long*.
# Rounding costs some nats before the training, against the float model as it is.
# After training some of these nats remain, against the mark. We call the share that is gone
# *repaired*. PEQA, which trains the scales alone, repairs about half.
# **Predict** it for LSQ, which trains the weights and the steps:

# %%
guess = tp.guess("14.repaired", 80.0, "%")

# %%
runs = {"float32": (None, 3e-4), "STE": (tp.FakeQuant(bits=2, **groups), 1e-3),
        "LSQ": (tp.FakeQuant(bits=2, learn_step=True, **groups), 1e-3),
        "PEQA": (tp.PEQA(bits=2, group_size=32), 3e-3),
        "QLoRA": (tp.Uniform(bits=2, **groups), 1e-2)}
curves, before, after = {}, {}, {}
for name, (scheme, lr) in runs.items():
    m = copy.deepcopy(model)
    if scheme: m = tp.quantize(m, scheme)
    if name == "QLoRA": m = tp.attach(m, tp.LoRA(rank=8, targets="all"), rng=0)
    trained = sum(p.data.size for p in m.parameters() if p.requires_grad)
    before[name] = math.log(perplexity(m))
    curves[name] = tp.train(m, task, steps=30, batch_size=4, lr=lr, seed=0, progress=False).loss
    if name in ("STE", "LSQ", "PEQA"): m = tp.convert(m)
    after[name] = math.log(perplexity(m))
    print(f"{name:8} {trained:>9,} trained   test loss {before[name]:.3f} → {after[name]:.3f} nats")

# %%
repaired = {name: 1 - (after[name] - after["float32"]) / (before[name] - before["float32"])
            for name in runs if name != "float32"}
for name, share in repaired.items(): print(f"{name:6} repairs {share:.0%} of what rounding costs")
guess.beside(100 * repaired["LSQ"])

# %% fold
fig, ax = plot.figure(height=3.4, width=6.8)
ends = []
for name, colour in zip(repaired, ("green", "blue", "black", "vermillion"), strict=True):
    behind = np.subtract(curves[name], curves["float32"])
    y = np.convolve(behind, np.ones(5) / 5, "valid")
    ax.plot(np.arange(len(y)) + 3, y, color=plot.COLOURS[colour])
    ends.append((len(y) + 2, y[-1], name, plot.COLOURS[colour]))
plot.label_ends(ax, ends)
ax.set(xlabel="step", ylabel="nats/token above the float model,\non the same batch",
       xlim=(2, 36), ylim=(0, None))
ax.set_title("Training loss, mean of 5 steps", loc="left", fontsize=10)
fig.set_label("How far STE, LSQ, PEQA and QLoRA are above the float model, against the step: all "
              "four fall, and none reaches 0.")
fig

# %% [markdown]
# *What to see: all four come nearer to the float model, and in thirty steps none reaches it.*
# STE and LSQ move every weight and need the memory of full fine-tuning.
# PEQA trains one number for 32 weights, and the result is still a 2-bit model.
# The LoRA keeps its own floats beside the codes. This is one seed, and for each the best of three
# rates, a factor of 3 apart: at 3e-3 the LoRA ends behind PEQA, and so the rate decides which of the
# two wins. The study has more:

# %%
show("qat")

# %% [markdown]
# *What to see: STE and LSQ, which train the weights, lie below everything else, and their lead
# grows as the bits get fewer.*
# (LLM-QAT is the subject of section 5.)
# The study's grids have one scale for each output channel, yours had one for 32 weights, so its
# losses are higher. The picture counts from the float model that was trained as long, the verdicts
# below from the base as it was. Here both are the same: the text is the base's own, and the float
# model gains nothing from more of it.
#
# - {claim Training with rounded weights beats}
# - {claim PEQA, which trains the scales alone}
# - {claim LLM-QAT, trained on text}
#
# ## 5. LLM-QAT: no data
#
# The text that a large model was trained on is often not at hand.
# A small substitute would teach it the habits of that text.
# Liu et al. let the full-precision model write its own text: a first token at random, the next
# few the likeliest ones, and the rest drawn from its distribution.
# Then the quantized student S learns to predict as the teacher T does.
# $n$ is the number of tokens:
#
# $$L = \frac1n \sum_i
# \mathrm{KL}\left(p_T(\cdot \mid x_{<i})\, \|\, p_S(\cdot \mid x_{<i})\right)$$
#
# The Kullback–Leibler divergence is $\mathrm{KL}(p\, \|\, p') = \sum_v p_v \log(p_v / p'_v)$.
# Weights, inputs of the layers, and the keys and values of the cache are all rounded.
# The grids are symmetric and clip nothing:
#
# $$\hat X = s \lfloor X/s \rceil, \qquad s = \frac{\max|X|}{2^{b-1} - 1}$$
#
# "4-8-4" are the bits of weights, inputs and cache.
#
# ### {exercise}
#
# Write `qat_distillation(teacher, student)`. From two arrays of logits `(n, V)` return the mean
# KL divergence above, a number, and its gradient with respect to the student's logits, `(n, V)`.
# The gradient is short. Derive it.
# Large logits must not overflow: subtract the row's maximum before you exponentiate.
# A small probability may become 0, so do not take its logarithm.
# For a row $a$ of logits, $\log p = a - \max a - \log \sum \exp(a - \max a)$.
#
# *By hand*, with $V = 2$: logits $(0, 0)$ of the teacher are $p = (\frac12, \frac12)$, and
# $(\ln 3, 0)$ of the student are $(\frac34, \frac14)$. The divergence is
# $\frac12 \ln \frac23 + \frac12 \ln 2 = 0.144$ nats.

# %% exercise=qat.distillation points=3 minutes=14
def qat_distillation(teacher, student):
    """Logits float (n, V), twice
    → (mean KL in nats, gradient with respect to `student`, (n, V))."""

# %% [markdown]
# Compare yours with the package's. Autograd differentiates this one:

# %%
my_distillation = result.function
show(divergence)

# %% [markdown]
# Your two functions at work, together. The base writes some text.
# A student whose weights have 3 bits learns from it.
# Its rounding and the gradients of its steps are your `qat_lsq`, and its loss is your
# `qat_distillation`:

# %%
own = tp.self_distillation(model, rows=24, held_out=4, length=48, rng=0)
print(model.tokenizer.decode(own.splits["train"][0]), "\n" + "-" * 40)

def my_fake_quantize(x, s, z, low, high, mask, g):
    """`fake_quantize` of symmetric codes by your function, which has the factor g already."""
    bits, S = high.bit_length(), s.data[:, 0].astype(float)
    both = lambda dy: my_lsq(x.data.astype(float), S, bits, dy.astype(float))
    as_x = lambda a: np.asarray(a).astype(x.dtype)
    return tp.Tensor.op(as_x(both(0 * x.data)[0]), (x, lambda dy: as_x(both(dy)[1])),
                        (s, lambda dy: as_x(both(dy)[2])[:, None]))

def my_loss(self, student, batch):
    """The loss of `SelfDistillation`, by your function."""
    logits = student(batch[0])
    rows = lambda a: a.reshape(-1, a.shape[-1]).astype(float)
    kl, gradient = my_distillation(rows(self.log_p(batch)), rows(logits.data))
    gradient = np.asarray(gradient).reshape(logits.shape).astype(logits.dtype)
    return tp.Tensor.op(np.asarray(kl, logits.dtype), (logits, lambda dy: dy * gradient))

student = tp.quantize(copy.deepcopy(model), tp.FakeQuant(bits=3, learn_step=True))
print(f"before: KL from the teacher {tp.evaluate(student, own, 'test')['loss']:.3f} nats/token")
with use(rounding, fake_quantize=my_fake_quantize), use(llm_qat.SelfDistillation, loss=my_loss):
    tp.train(student, own, steps=12, batch_size=4, lr=1e-3, seed=0, progress=False)
print(f"after:  KL from the teacher {tp.evaluate(student, own, 'test')['loss']:.3f} nats/token")

# %% [markdown]
# And now LLM-QAT as in the paper, 4-8-4:

# %%
student = tp.quantize(copy.deepcopy(model), tp.LLMQAT())
told = {"rounded": (tp.evaluate(student, own, "test"), perplexity(student))}
tp.train(student, own, steps=24, batch_size=4, lr=3e-4, seed=0, progress=False)
told["trained"] = tp.evaluate(student, own, "test"), perplexity(student)
for name, (mine, real) in told.items():
    print(f"{name}: KL from the teacher {mine['loss']:.3f} nats/token, "
          f"same likeliest token {mine['agreement']:.0%}; on real text, perplexity {real:.2f}")
print(f"float32: on real text, perplexity {perplexity(model):.2f}")

# %% [markdown]
# *What to see: a student that has seen only made-up text predicts real text better than the
# merely rounded one.* The text has the manner of the documentation that the base was trained on.
# What remains to the float model's perplexity is the price of 4-bit weights, 8-bit inputs and a 4-bit
# cache, and of a training that has not ended: after 24 steps the divergence is still large.
# With the weights alone rounded, the study cannot tell LLM-QAT from GPTQ at 3 bits and finds it ahead
# at 2 bits (above), although its symmetric grid has one level less.
#
# ### {exercise} · Repair, or knowledge? (open, 4 points, 25 minutes)
#
# "Quantization-aware training is fine-tuning in disguise."
# In section 4 the test text is of the same kind as the training text.
# So a better loss may come from repaired rounding or from new knowledge.
# Section 4 separates the two by a mark.
# Design another measurement that separates them, run it for one method, and say what you find.
# (Which of this lesson's methods gains nothing from new knowledge by construction?)
#
# *Rubric: 1 point for a control that has nothing new to learn from; 1 for a sound measurement; 1 for
# a run, with command and numbers; 1 for a conclusion that the numbers bear out.*

# %% [answer]
# *By construction* LLM-QAT gains nothing from new knowledge: it distils from the float model on
# that model's own text. That makes it one control.
# Text of the kind that the base was trained on is another.
#
# *Sound measurements.* (1) The loss on held-out Python, NumPy or SciPy documentation, which the
# base knows: what is gained there is repair. (2) The KL from the float model on any text.
# (3) Training on the base's own text in place of the domain's.
# Compare nats, not points of perplexity: the same step in nats is many points for a bad model and
# few for a good one.
#
# *Conclusion.* Nearly everything that training gains at 2 bits is repair, since the float model
# hardly changes on the base's own text.
# On the domain's text a part is knowledge: the float model gains there, too.
# {claim Training with rounded weights beats} {claim LLM-QAT, trained on text}

# %% [markdown]
# ## The real call
#
# Training with weights rounded to 4 bits in groups of 32, with torchao:
#
# ```python
# import torch
# from torchao.quantization import quantize_
# from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig
# from transformers import AutoModelForCausalLM
# model = AutoModelForCausalLM.from_pretrained("folder-of-the-model")
# grid = IntxFakeQuantizeConfig(torch.int4, group_size=32)
# quantize_(model, QATConfig(weight_config=grid, step="prepare"))       # and now train
# ```
#
# Each linear layer is now what `FakeQuant` makes of it here: floats that are rounded in the forward
# pass, with the straight-through gradient.

# %% [markdown]
# ## Recall
#
# 1. Why does the STE's gradient vanish outside the range?
# <details><summary>Answer</summary>
#
# There $\hat x$ is constant, and so is the ramp that stands for the staircase.
# Moving $x$ changes nothing.
#
# </details>
#
# 2. For $s = 0.5$, signed 3-bit codes, $x = 0.8$ and $x = -9$: what is
#    $\partial \hat x/\partial s$?
# <details><summary>Answer</summary>
#
# $u = 1.6$, so $\lfloor 1.6 \rceil - 1.6 = 0.4$. And −9 is clipped, so it is $-Q_N = -4$.
#
# </details>
#
# 3. What is in memory during FakeQuant training, and what afterwards?
# <details><summary>Answer</summary>
#
# Float weights, their gradients and the optimizer's state, and rounded copies for a moment.
# Afterwards codes and scales.
#
# </details>
#
# 4. Why is PEQA's gradient exact while LSQ's is an estimate?
# <details><summary>Answer</summary>
#
# With frozen codes $\hat W$ is a linear function of the scales.
# In LSQ the codes depend on the step, by a staircase.
#
# </details>
#
# 5. Why does LLM-QAT not clip?
# <details><summary>Answer</summary>
#
# Its steps come from the largest magnitude.
# The authors found outliers of weights and activations too important to be cut off.
#
# </details>

# %% [markdown]
# ## Where the papers say this
#
# - STE: Bengio et al. (arXiv 1308.3432); in quantization-aware training, Jacob et al. (arXiv
#   1712.05877).
# - LSQ: Esser et al. (arXiv 1902.08153), equations (2), (3) and (5).
# - LSQ+: Bhalgat et al. (arXiv 2004.09576).
# - LLM-QAT: Liu et al. (arXiv 2305.17888), §2.1 (the data) and equations (1) to (3).
# - PEQA: Kim et al. (arXiv 2305.14152), equations (1) and (2).
#
# ## Where implementations differ
#
# - *Where the gradient stops.* LSQ's paper tests $q_\mathrm{low} < u + z < q_\mathrm{high}$.
#   PyTorch tests the *rounded* value, half a step further out. `FakeQuant(mask="torch")` does
#   that, too.
# - *The zero point.* LSQ+ learns an offset as it is. PyTorch and this package round it to an
#   integer, so that sums of products stay integers.
# - *LLM-QAT's repository* stops the gradient where $|X| \ge 2$, though its forward pass clips
#   nothing: `LLMQAT(cutoff=2.0)`. Its loss is the KL, a sum over the vocabulary and a mean over
#   tokens. The paper's is the cross-entropy, which is the KL plus a constant, the teacher's
#   entropy.
# - *LSQ's factor g* has no effect under Adam, which nearly everybody uses.
#
# **Now you can** train through rounding, train steps and scales, and distil without data.
# You have now met every method and scheme of the survey (arXiv 2501.04040).
# **Lesson 15** puts them side by side: what to choose for which model and memory.
