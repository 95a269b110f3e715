# %% [markdown]
# # 01b · Is a gradient right, and what does it cost?
#
# **What you will do.** Train with a wrong backward pass, and see that the loss does not tell.
# You write a test that finds such passes, and learn how small a step it may take.
# Then you say which values of a program a walk must reach if only a few parameters are trained, and
# measure what *not* training a parameter saves. That number is why the rest of this course exists.
#
# **What you need.** [01 · Autograd](01_autograd.ipynb), of which this is the second half: vjps, the
# graph, the walk.
#
# **Words and letters.** They are in the [glossary](GLOSSARY.md).
# New here: $u$ and $v$ are arrays of random numbers, and $\varepsilon$ is a small step.
#
# **Time.** 75 minutes for reading and the exercises. The open exercise takes 15 more, the bonus
# 10. Every cell together runs in well under a minute.

# %%
import time

import numpy as np

import tinypeft as tp
from tinypeft.engine import functional as F
from tinypeft.engine import optim
from tinypeft.course import show, sliders
from tinypeft.course.slider import slider
from tinypeft.study import plot
from tinypeft.study.compared import traced_peak
from tinypeft.engine.tensor import topological_order

# %% [markdown]
# ## 1. Would you notice?
#
# Here is a network of two layers, with a layer norm between them. It learns a curve from 64 points.
# Its layer norm can be given any backward pass. Two authors have written one. The second of them
# treated the mean and $\sigma$ as constants, as if they did not depend on $x$:

# %%
def of_package(x, gamma, dy):
    """The package's backward pass of layer norm."""
    leaf = tp.Tensor(x, requires_grad=True)
    F.layer_norm(leaf, tp.Tensor(gamma), tp.Tensor(np.zeros_like(gamma))).backward(dy)
    return leaf.grad


def forgetful(x, gamma, dy):
    """WRONG: μ and σ as constants."""
    return gamma * dy / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def layer_norm_with(vjp):
    """A layer norm with the given backward pass, vjp(x, gamma, dy) → dx."""
    def layer_norm(x, gamma, beta):
        X, g = x.data, gamma.data
        xhat = (X - X.mean(-1, keepdims=True)) / np.sqrt(X.var(-1, keepdims=True) + 1e-5)
        return tp.Tensor.fused(xhat * g + beta.data, [x, gamma, beta],
                               lambda dy: [vjp(X, g, dy), (dy * xhat).sum(0), dy.sum(0)])
    return layer_norm


def fit(layer_norm, steps=50):
    """Train a fresh network: its losses."""
    rng, x = np.random.default_rng(0), np.linspace(-3, 3, 64)[:, None]
    leaf = lambda *shape, scale=1.0: tp.Tensor(scale * rng.standard_normal(shape), True)
    W1, b1, W2, b2 = leaf(32, 1), leaf(32), leaf(1, 32, scale=0.1), leaf(1, scale=0.0)
    gamma, beta = tp.Tensor(np.ones(32), requires_grad=True), leaf(32, scale=0.0)
    optimizer, losses = optim.AdamW([W1, b1, gamma, beta, W2, b2], lr=0.03, weight_decay=0.0), []
    for _ in range(steps):
        h = layer_norm(F.linear(tp.Tensor(x), W1, b1), gamma, beta).tanh()
        loss = ((h @ W2.T + b2 - np.sin(1.5 * x)) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


right, wrong = fit(layer_norm_with(of_package)), fit(layer_norm_with(forgetful))
print(f"both began at {wrong[0]:.3f}; after 50 steps right {right[-1]:.3f}, wrong {wrong[-1]:.3f}")

# %% [markdown]
# The wrong one learns, too, and here it even ends a little lower.
# Nothing stops, nothing is NaN, and the loss falls: a loss does not show a wrong gradient.
#
# ## 2. A test
#
# The test is a finite difference along a random direction $v$, of the single number
# $\langle u, f(x)\rangle$.
# Here $\langle u, y\rangle = \sum_i u_i y_i$, and $u$ is random as well, a $dy$ that nobody has
# chosen:
#
# $$\langle \mathrm{vjp}(u), v\rangle \;\approx\;
# \frac{\langle u, f(x + \varepsilon v)\rangle-
# \langle u, f(x - \varepsilon v)\rangle}{2\varepsilon} \tag{1}$$
#
# **By hand.** The rows of $J$ of $f(x) = (x_1^2,\; x_1 x_2)$ at $x = (1, 2)$ are $(2, 0)$ and
# $(2, 1)$. Take $u = (1, 3)$ and $v = (1, -1)$. Left: $J^\top u = (8, 3)$, times $v$ is 5.
# Right, with $\varepsilon = 0.1$: $f(1.1, 1.9) = (1.21, 2.09)$ and $f(0.9, 2.1) = (0.81, 1.89)$,
# times $u$ 7.48 and 6.48, and $1/0.2 = 5$. A vjp that forgets the 2 in the second row has $(2, 3)$
# in place of $(8, 3)$, which times $v$ is $-1$.
#
# How small should $\varepsilon$ be? Two errors pull in opposite directions. The series of $f$ around
# $x$ says what the difference on both sides leaves out, and each value of $f$ is rounded, by about
# $\delta$ of its size ($\delta = 6 \cdot 10^{-8}$ in float32, $1.1 \cdot 10^{-16}$ in float64):
#
# $$\text{error} \approx \frac{\varepsilon^2}{6}\,|f'''| + \frac{\delta\,|f|}{\varepsilon}
# \tag{2}$$
#
# A large step suffers from the first term, a small one from the second. The sum is least where its
# derivative with respect to $\varepsilon$ is zero:
#
# $$\varepsilon = \sqrt[3]{3\,\delta\,|f| \,/\, |f'''|} \tag{3}$$
#
# **By hand**, with $|f| = |f'''| = 1$. In float64
# $\varepsilon = \sqrt[3]{3.3 \cdot 10^{-16}} = 7 \cdot 10^{-6}$, and the error is about $10^{-11}$.
# In float32 $\varepsilon = 6 \cdot 10^{-3}$, and the error is about $10^{-5}$.
#
# Try it on GELU, a curve that lesson 02 uses, in both precisions.
# The difference of the two sides is compared with $\|\mathrm{vjp}(u)\|\,\|v\|$, where $\|a\|$ is
# the root of the sum of all squares, `np.linalg.norm(a)`:

# %%
def difference_error(dtype, eps, seed=0):
    """How far apart the two sides of equation (1) are for GELU, relative to ‖vjp(u)‖‖v‖."""
    rng = np.random.default_rng(seed)
    x, u, v = (rng.standard_normal(1000).astype(dtype) for _ in range(3))
    leaf = tp.Tensor(x, requires_grad=True)
    F.gelu(leaf).backward(u)
    value = lambda x: np.vdot(u, F.gelu(tp.Tensor(x)).data)
    right = (value(x + dtype(eps) * v) - value(x - dtype(eps) * v)) / (2 * eps)  # equation (1)
    left = np.vdot(leaf.grad, v)
    return abs(left - right) / (np.linalg.norm(leaf.grad) * np.linalg.norm(v))


for eps in (1e-1, 1e-3, 1e-5, 1e-7):
    errors = [np.median([difference_error(dtype, eps, seed) for seed in range(5)])
              for dtype in (np.float32, np.float64)]
    print(f"ε = {eps:.0e}   float32 {errors[0]:.0e}   float64 {errors[1]:.0e}")

# %% [markdown]
# Move the step yourself, for the slope of $\tanh$ at one point in float32. At the left it is too
# small, at the right too large:

# %%
sliders.step(np.tanh, 1 - np.tanh(0.5) ** 2, 0.5, dtype=np.float32)

# %% [markdown]
# The study has measured another function, a small network, at many more steps.
# It calls the step $h$, and its axis runs from large steps at the left to small ones at the right:

# %%
show("gradient_check")

# %% [markdown]
# *What to see: two Vs, for float32 and float64.*
# From large steps to small ones the error of the formula shrinks as $\varepsilon^2$.
# Then the rounding of $f$, divided by an ever smaller $\varepsilon$, takes over.
# In float32 the valley is too shallow to tell a right gradient from a slightly wrong one.
# So checks run in float64, and training runs in float32.
# (The third line combines two steps so that the error shrinks as $h^4$.
# The package's `gradcheck` does that.)
#
# Why a *random* $u$?
# Many people test with `f(x).sum().backward()`, which is $u = (1, …, 1)$.
# Watch what that does to softmax:

# %%
def softmax_with(vjp):
    """A softmax over the last axis with the given backward pass, vjp(p, dp) → dx."""
    def softmax(x):
        p = np.exp(x.data - x.data.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        return tp.Tensor.fused(p, [x], lambda dp: [vjp(p, dp)])
    return softmax


# equation (5) of lesson 01
right = softmax_with(lambda p, dp: p * (dp - (p * dp).sum(-1, keepdims=True)))
# no formula at all
nonsense = softmax_with(lambda p, dp: p ** 3 * (dp - dp.mean(-1, keepdims=True)))

points = np.random.default_rng(0).standard_normal((4, 6))
for name, f in (("right", right), ("nonsense", nonsense)):
    for how, g in ((".sum()", lambda x, f=f: f(x).sum()), ("random u", f)):
        try:
            print(f"{name:9} checked with {how:9}  passes, error {tp.gradcheck(g, points):.0e}")
        except AssertionError:
            print(f"{name:9} checked with {how:9}  FAILS")

# %% [markdown]
# The nonsense passes with `.sum()`. (Where the true gradient is 0, any rounding is large beside it.
# Then 1e-08, the limit, is printed in its place, or 0 if the rounding cancels.)
# Probabilities sum to one for every $x$, so the true gradient of their sum is zero.
# Anything that vanishes for a constant $dp$ looks right.
#
# ### {exercise}
#
# Eleven authors have written a backward pass of $f(x) = \tanh x \cdot \sum_k x_k$. The sum runs over
# the last axis.
# Nine of them are wrong.
# One forgot a term, one is wrong by three millionths of a term, one is right for $dy = (1, …, 1)$
# alone, one is wrong only where `x` is large … You get them one at a time, the smallest error at
# nine different `x`, and do not see their code.
# Two come with an `f` in other units, a million times as large or as small.
# How large may the difference of both sides of equation (1) be?
# For a right vjp and the $\varepsilon$ of equation (3) it is about $10^{-11}$ of
# $\|\mathrm{vjp}(u)\|\,\|v\|$, and for $\varepsilon = 10^{-4}$ up to $10^{-8}$.
# A limit of $10^{-7}$ leaves room, but a single direction may be nearly at right angles to a small
# error: it misses the smallest one in one to three of ten draws. So how many do you need?
# Return `True` if `vjp` is wrong and `False` if it is right.
# `f(x)` returns an array of the shape of `x`, which is float64, and `vjp(x, dy)` returns `dx` of
# the same shape.

# %% exercise=gradients.catches points=4 minutes=20 as=catches
def gradients_catches(f, vjp, x):
    """Is vjp(x, dy) a wrong backward pass of f at x?"""

# %% [markdown]
# **Your function at work**, on the two authors of layer norm.
# The package's test agrees:

# %%
rng = np.random.default_rng(1)
points, gamma, beta = rng.standard_normal((5, 8)), rng.standard_normal(8), np.zeros(8)
norm = lambda x: F.layer_norm(tp.Tensor(x), tp.Tensor(gamma), tp.Tensor(beta)).data
for name, vjp in (("forgetful", forgetful), ("package", of_package)):
    try:
        said = f"error {tp.gradcheck(layer_norm_with(vjp), points, gamma, beta):.0e}"
    except AssertionError:
        said = "FAILS"
    caught = catches(norm, lambda x, dy, vjp=vjp: vjp(x, gamma, dy), points)
    print(f"{name:10} caught: {caught!s:6} gradcheck: {said}")

# %% [markdown]
# (If you have solved lesson 01, try your own `autograd_layer_norm_vjp` here.)
#
# How many directions are enough? Move the handle: 200 tries to find the smallest error of the
# exercise, sorted. Those below the line miss it.

# %%
def apart(x, rng):
    """Both sides of equation (1) for a vjp of tanh x · Σ x that is wrong by 3e-6 in a term."""
    f = lambda x: np.tanh(x) * x.sum(-1, keepdims=True)
    u, v = rng.standard_normal((2, *x.shape))
    slope = (1 - np.tanh(x) ** 2) * x.sum(-1, keepdims=True)
    dx = (1 + 3e-6) * u * slope + (u * np.tanh(x)).sum(-1, keepdims=True)
    right = np.vdot(u, f(x + 1e-5 * v) - f(x - 1e-5 * v)) / 2e-5
    return abs(np.vdot(dx, v) - right) / (np.linalg.norm(dx) * np.linalg.norm(v))


x = rng.standard_normal((8, 6))
tries, frames, told = np.array([[apart(x, rng) for _ in range(12)] for _ in range(200)]), {}, {}
for n in (1, 2, 3, 4, 6, 8, 12):
    worst = np.sort(tries[:, :n].max(1))
    frames[n] = {"the worst direction": (np.arange(200), worst)}
    told[n] = f"{(worst < 1e-7).sum()} of 200 tries miss the error"
slider("directions", frames, captions=told, behind={"limit": ([0, 199], [1e-7, 1e-7])},
       xlabel="try", ylabel="difference, relative", ylog=True)

# %% [markdown]
# Compare yours with the package's. Its limit is ten times as strict as the $10^{-7}$ above, so
# that four directions are enough. It also allows what rounding of $f$ explains: where
# the gradient is 0, as of the sum of a softmax, any rounding is infinitely large beside it.

# %%
show(tp.gradcheck)

# %% [markdown]
# ## 3. A frozen parent has no vjp
#
# Now the point of it all.
# In the package an operation records a vjp only for parents that require a gradient.
# If no parent does, the operation records nothing.
# So the graph reaches down exactly to the lowest trained parameter:

# %%
show(tp.Tensor.op)

# %% [markdown]
# So which gradients does a walk compute, if a few leaves are trained and the others are frozen?
# Take five linear layers, of which the third is trained:

# %%
show("schematic:stack")

# %% [markdown]
# *What to see: layers 4 and 5 lie between the loss and what is trained, so the gradients of their
# inputs are needed. Backwards, nothing is computed for layers 1 and 2.*
#
# ### {exercise}
#
# `uses[k]` lists the numbers of the earlier values from which value `k` was computed. A leaf has an
# empty list. `trained` lists the leaves that are trained. The walk starts at the last value.
# Return a list of bools: for which values must it compute a gradient, so that every trained leaf
# gets its own? A trained leaf on which the last value does not depend gets none: `False`. A value
# may be named twice in `uses[k]`, and a tape may be thousands of values long.
#
# For example `uses = [[], [], [0, 1], [], [2, 3], [1], [4, 4]]` with `trained = [1]`: leaf 1 is used
# by 2, 2 by 4 and 4 by 6, the last. Value 5 uses leaf 1, too, but nothing uses 5. So the answer is
# `[False, True, True, False, True, False, True]`.

# %% exercise=gradients.needed points=3 minutes=12 as=needed
def gradients_needed(uses, trained):
    """For each value: does the walk compute its gradient? A list of bools."""

# %% [markdown]
# **Your function at work.** The graph of the whole base model, with everything trained, names every
# value. From it you predict how many values a walk reaches if only some leaves are trained, and the
# package builds those graphs and counts:

# %%
model = tp.load_pretrained()
task = tp.tasks.domain(model, context=128)
batch = task.batch("train", 4, np.random.default_rng(0))
tuned = tp.attach(model, tp.FullFineTuning())
order = topological_order(task.loss(tuned, batch).node)
place = {id(value): k for k, value in enumerate(order)}
uses = [[] if isinstance(value, tp.Tensor) else
        [place[id(parent[0])] for parent in value.parents if parent is not None] for value in order]
named = {id(p): name for name, p in tuned.model.named_parameters()}
leaf_names = {k: named[id(value)] for k, value in enumerate(order) if id(value) in named}
model = tp.load_pretrained()
for part in ("bias", "blocks.4.", "blocks.2.attention", "final_norm"):
    trained = [k for k, name in leaf_names.items() if part in name]
    for name, p in model.named_parameters(): p.requires_grad = part in name
    built = len(topological_order(task.loss(model, batch).node))
    print(f"{part:19} trained: {sum(needed(uses, trained)):3} values by your rule, "
          f"{built:3} in the package's graph, of {len(uses)}")

# %% [markdown]
# Move the handle: the only block that is trained, and how many values the walk has reached on its
# way down, from right to left. (Half of the weights stand at the beginning of this tape. So the
# curve is flat below the block's operations, and rises once more at its weights.)

# %%
frames, told = {}, {}
for block in range(5):
    trained = [k for k, name in leaf_names.items() if f"blocks.{block}." in name]
    reached = needed(uses, trained)
    frames[block] = {"reached": (np.arange(len(uses)), np.cumsum(reached[::-1])[::-1])}
    told[block] = f"{sum(reached)} of {len(uses)} values if this block alone is trained"
slider("trained block", frames, captions=told, xlabel="value on the tape",
       ylabel="values reached so far")

# %% [markdown]
# ## 4. What it saves
#
# Now with methods: the same batch, the same loss, and five choices of what is trained.
# We count the nodes and leaves of the graph, and the bytes that a step allocates at its peak,
# beyond the model itself.
# Before you run it, guess.
# The biases, with the $\beta$ of each layer norm, are less than a hundredth of all parameters.
# How much memory does a step take that trains them alone, in per cent of a step that trains
# everything?

# %%
guess = tp.guess("01b.biases", 30.0, "%")
guess

# %%
last = [f"blocks.{model.config.n_layers - 1}.attention.{name}" for name in ("query", "value")]
model = tp.load_pretrained()
choices = {
    "everything": tp.FullFineTuning(),
    "biases": tp.FullFineTuning(targets=("bias",)),
    "LoRA in every block": tp.LoRA(rank=8, targets=("query", "value")),
    "LoRA in the last block": tp.LoRA(rank=8, targets=tuple(last)),
    "the final norm": tp.FullFineTuning(targets=("final_norm",)),
}
rows = []
for name, method in choices.items():
    tuned = tp.attach(model, method)
    loss = task.loss(tuned, batch)
    rows.append((name, sum(p.size for p in tuned.trainable_parameters()),
                 len(topological_order(loss.node)), traced_peak(tuned, task, 4) / 2**20))
print(f"{'trained':24}{'numbers':>10}{'nodes':>8}{'peak MiB':>10}")
for name, n, nodes, mib in rows: print(f"{name:24}{n:10,}{nodes:8}{mib:10.1f}")
guess.beside(100 * rows[1][-1] / rows[0][-1])

# %% fold
names = [name for name, *_ in rows][::-1]
fig, (left, right) = plot.figure(1, 2, height=2.2)
left.plot([n for _, n, _, _ in rows][::-1], names, "o", color=plot.COLOURS["vermillion"])
left.set(xscale="log", xlim=(100, 3e6), xlabel="numbers trained", title="What is trained …")
right.barh(names, [mib for *_, mib in rows][::-1], color=plot.COLOURS["blue"])
right.set(xlabel="peak of one step, MiB", yticks=[], title="… and what a step allocates")
fig.set_label("Five choices of what is trained. Left, dots on a logarithmic axis: from a million "
              "numbers to a few hundred. Right, bars of the memory of a step: the biases, less "
              "than a hundredth of all numbers, take two thirds of what everything takes; the "
              "final norm least.")
fig

# %% [markdown]
# *What to see: the right bars do not follow the left dots.*
# The biases are less than a hundredth of all numbers, and a step that trains them still takes nearly
# two thirds of the memory.
# The lowest bias is in the first block, so the walk must go all the way down, and every layer must
# keep what its $dX$ needs. (LoRA in every block takes more: for $dA$ it keeps inputs, too.)
# *Where* the lowest trained parameter sits matters as much as how many there are.
# Lesson 03 does the accounts.
#
# And the time?
# LoRA of rank 8 trains fewer than 2 % of the numbers.
# Guess: how long does its step take, in per cent of a step that trains everything?

# %%
guess = tp.guess("01b.time", 67.0, "%")
guess

# %%
def seconds(tuned):
    """The time of one step, forward and backward."""
    for p in tuned.trainable_parameters(): p.grad = None
    start = time.perf_counter()
    task.loss(tuned, batch).backward()
    return time.perf_counter() - start


both = [tp.attach(model, choices[name])
        for name in ("LoRA in every block", "everything")]
# in turn, so that a busy machine slows down both kinds
lora, everything = np.array([[seconds(tuned) for tuned in both] for _ in range(15)]).T
guess.beside(100 * np.median(lora / everything))

# %% [markdown]
# ### {exercise} · Few parameters, how much time? (open, 3 points, 15 minutes)
#
# Explain what you have just measured.
# Count matrix products of a linear layer that is $d \times d$ and sees $N$ rows: forward, $dX$,
# $dW$. Which of the three does LoRA save?
# Which ratio does your count predict? The measured one is between 0.58 and 0.79 on our machines when
# they are quiet, and higher on a busy one.
# Name costs that raise it and costs that lower it.
# What would you have to give up to get below one half?
#
# *Rubric: 1 point for the count and the ratio that follows from it. 1 point for one cost that raises
# the ratio and one that lowers it. 1 point for a way to get below one half, and for what it loses.*

# %% [answer]
# - *Count.*
#   Forward, $dX$ and $dW$ are products of the same size, $N d^2$.
#   Full fine-tuning needs all three. A frozen layer above the lowest adapter needs two, without
#   $dW$. The ratio is 2/3. ($dX$ of the lowest layer is not needed either.)
# - *What raises it.*
#   Both methods pay in full for attention's own products, GELU, norms, the softmax over the
#   vocabulary and the loss. LoRA pays for the products of its adapters on top.
# - *What lowers it.*
#   Full fine-tuning alone pays for more than the $dW$ of the blocks: $dW$ of the table that is the
#   head as well, $V d$ numbers; the sums for $db$, $d\gamma$ and $d\beta$; the rows of the embedding;
#   and it allocates 4.4 MiB of gradients in each step. The optimizer's step would lower the ratio
#   further, since only trained parameters take part. (The cell measures without it.)
#   Which side wins depends on the machine, so the ratio lies on either side of 2/3.
# - *Below one half.*
#   Do not walk down: a layer below the lowest adapter pays the forward product alone, one of three.
#   With adapters in the upper $k$ of $L$ blocks the ratio is $(L + k)/3L$, which is below one half
#   for $k < L/2$. The lower layers' representations then cannot change.

# %% [markdown]
# ## 5. Bonus: a difference with a smaller error
#
# The points of this section are extra. By equation (2) the difference
# $D(\varepsilon) = (f(x + \varepsilon) - f(x - \varepsilon))/2\varepsilon$ misses the slope by
# $c\,\varepsilon^2$, with a $c$ that nobody knows, and by terms with $\varepsilon^4$ and higher even
# powers:
#
# $$D(\varepsilon) = f'(x) + c\,\varepsilon^2 + O(\varepsilon^4), \qquad
# D\!\left(\tfrac{\varepsilon}{2}\right) = f'(x) + \tfrac14\,c\,\varepsilon^2 + O(\varepsilon^4)
# \tag{4}$$
#
# ### {exercise}
#
# Combine them, so that the error shrinks as $\varepsilon^4$. `f` takes and returns numbers. On
# polynomials of degree 4 such a difference is exact.

# %% exercise=gradients.fourth points=2 minutes=10 bonus=yes as=fourth
def gradients_fourth(f, x, eps):
    """The slope of f at x, from values of f near x, with an error that goes with eps⁴."""

# %%
slope = 1 - np.tanh(0.5) ** 2
for eps in (1e-1, 1e-2, 1e-3, 1e-4):
    plain = (np.tanh(0.5 + eps) - np.tanh(0.5 - eps)) / (2 * eps)
    print(f"ε = {eps:.0e}: error {abs(plain - slope):.0e}, "
          f"of yours {abs(fourth(np.tanh, 0.5, eps) - slope):.0e}")

# %% [markdown]
# Each step that is ten times smaller brings a hundredth of the error, and of yours a ten-thousandth,
# until rounding takes over.
#
# ## Recall
#
# <details><summary>1. Why is f(x).sum().backward() a bad test of a gradient?</summary>
# The gradient that it starts from is constant.
# An operation whose outputs have a constant sum, such as softmax, passes with a wrong backward
# pass. A random gradient exposes it.
# </details>
# <details><summary>2. The loss falls. Is the gradient right?</summary>
# That does not follow. A step in a wrong direction may still go downhill.
# </details>
# <details><summary>3. Why does a gradient check run in float64?</summary>
# The error of a difference is a sum of two terms, and the best step balances them.
# In float32 the least sum is about 10⁻⁵, so that a slightly wrong gradient passes.
# </details>
# <details><summary>4. Which of dX, dW, db does a frozen linear layer compute
# in the middle of a network, with trained parameters below it?</summary>
# Only dX. It needs the weight and not the input, so the input can be freed.
# </details>
# <details><summary>5. You train one vector at the input, and nothing else. What is saved?</summary>
# No dW is computed. But the walk goes all the way down, through every layer's dX.
# </details>
#
# ## Where the papers say this
#
# - Baydin, Pearlmutter, Radul, Siskind, *Automatic Differentiation in Machine Learning: a Survey*,
#   JMLR 18 (2018), arXiv 1502.05767: section 2.1 on finite differences and their two errors.
# - Hendrycks, Gimpel, *Gaussian Error Linear Units*, arXiv 1606.08415: GELU.
# - Hu et al., *LoRA*, arXiv 2106.09685, section 4.2: training GPT-3 becomes a quarter faster.
#
# ## Where implementations differ
#
# - `torch.autograd.gradcheck` compares every number of the Jacobian; with `fast_mode=True` it takes
#   one random direction. It wants float64, and warns about float32.
# - PyTorch, JAX and this package skip frozen parents.
#   An engine that computes every gradient and throws some away gets the same numbers, and saves
#   nothing.
#
# ## The real call
#
# The two things of this lesson in PyTorch, the second for a `model` of transformers and its
# `batches` of tokens:
#
# ```python
# import torch
#
# x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
# print(torch.autograd.gradcheck(torch.nn.functional.gelu, (x,)))          # True, or an error
#
# model.requires_grad_(False)                                              # frozen
# for name, p in model.named_parameters():
#     if "norm" in name: p.requires_grad = True                            # but for these, of a Llama
# model(**batches[0]).loss.backward()
# ```
#
# **Now you can** test a backward pass so that a wrong one is found, and say what a frozen weight
# saves.
# Next: [02 · The transformer](02_transformer.ipynb) is built of such layers.
