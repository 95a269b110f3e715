# %% [markdown]
# # 01 · Autograd: the chain rule, walked backwards
#
# **What you will do.** Take apart a machine that differentiates any program made of a few operations.
# You write its walk through the graph, find the fault in a gradient that has the right shape, and
# derive the backward passes of a linear layer and of layer norm.
# Your four functions then train a small network. The second half, [01b](01b_gradients.ipynb), tests
# gradients, and measures what *not* training a parameter saves.
# LoRA and its relatives live on this: they freeze most weights, and the backward pass decides what a
# frozen weight still costs.
#
# **What you need.** The chain rule, matrix products, NumPy.
#
# **Words and letters.** They are in the [glossary](GLOSSARY.md).
# New here: $L$ is the loss, a single number.
# $J$ is a Jacobian, the table of all derivatives of a function.
#
# **Time.** 95 minutes for reading and the exercises. The open exercise takes 15 more, the bonus 8.
# Every cell together runs in well under a minute.

# %%
import functools
import time

import numpy as np

import tinypeft as tp
from tinypeft.engine import functional as F
from tinypeft.engine import optim, plain, tensor
from tinypeft.course import show, use
from tinypeft.course.schematics.sheet import DATA, TRAINED, Sheet
from tinypeft.course.slider import slider
from tinypeft.study import plot
from tinypeft.engine.tensor import topological_order

# %% [markdown]
# ## 1. A gradient travels backwards
#
# Training asks one question of a model with a million numbers.
# If I move this number a little, where does the loss $L$ go?
# Finite differences answer with two evaluations of the model *per number*.
# Reverse-mode differentiation answers for all numbers at once, at the cost of a few evaluations.
#
# It goes operation by operation.
# Let $y = f(x)$ be one of them, somewhere in the middle of the model.
# Suppose somebody hands us $\partial L/\partial y$: for each number in $y$, how fast the loss grows
# with it.
# We write $dy$ for it, and $dx$ for $\partial L/\partial x$.
# (PyTorch writes `y.grad` and `x.grad`.)
# The chain rule turns $dy$ into $dx$:
#
# $$dx_j = \sum_i dy_i \,\frac{\partial y_i}{\partial x_j} \qquad\text{or}\qquad
# dx = J^\top dy, \quad J_{ij} = \frac{\partial y_i}{\partial x_j} \tag{1}$$
#
# $J$ is the *Jacobian*: one row for each number of $y$, one column for each number of $x$.
# For $y = \tanh x$ it is diagonal, because each $y_i$ depends on its own $x_i$ alone, with the
# slope $1 - y_i^2$:

# %%
x = tp.Tensor(np.array([0.5, -1.0, 2.0]), requires_grad=True)
dy = np.array([1.0, 10.0, 100.0])

J = np.diag(1 - np.tanh(x.data) ** 2)          # written out: 3 × 3
by_hand = J.T @ dy                             # equation (1)

x.tanh().backward(dy)                          # the package
print("by hand ", by_hand)
print("package ", x.grad)
assert np.allclose(by_hand, x.grad)

# %% [markdown]
# No program stores $J$.
# For a thousand numbers in and out it has a million entries, and nearly all are zero.
# Instead, an operation brings a function from $dy$ to $J^\top dy$: its *vector–Jacobian product*,
# or **vjp**.
# This is all there is to `tanh` in the package.
# `Tensor.op` makes the result, and takes a pair of tensor and vjp for each tensor that it was
# computed from. The `lambda` is the vjp:

# %%
show(tp.Tensor.tanh)

# %% [markdown]
# ## 2. The graph, and the order of the walk
#
# Every operation leaves a *node*.
# It knows from which tensors it was computed (its parents), and it has its vjp.
# A tensor that no operation made, such as a parameter, is a *leaf*.
# Take
#
# $$a = x \cdot x, \qquad b = a + a, \qquad c = b + a \tag{2}$$
#
# Three operations, and `a` is used three times.
# `backward` starts with $dc = 1$ and goes from node to node.
# What if a value is used several times?
# By equation (1), $a$ changes the loss along each of its uses, so its gradient is the **sum** over
# them.
# Here are the values and the gradients at $x = 3$:
#
# | value | at $x = 3$ | is used in | its gradient |
# |---|---|---|---|
# | $c = b + a$ | 27 | nothing: it is the result | 1 |
# | $b = a + a$ | 18 | $c$ | 1 |
# | $a = x \cdot x$ | 9 | $b$ twice, $c$ once | 1 + 1 + 1 = 3 |
# | $x$ | 3 | $a$ twice | 3 · 3 + 3 · 3 = 18 |
#
# The schematic shows how the three parts of $da$ come together:

# %%
show("schematic:autograd")

# %% [markdown]
# The package draws the graph of any function:

# %%
def f(x):
    a = x * x
    b = a + a
    return b + a                               # c


tp.graph(f, x=3.0)

# %% [markdown]
# *What to see, from right to left: blue is the leaf $x$, a circle is an operation.
# The box to the right of an operation shows its result and, below, the gradient of the result.*
# An edge stands for all uses of a value in one operation, so $a$ has one edge to the + that makes
# $b$.
# The box with data 9 belongs to $a$.
# Its gradient is 3: one part comes from $c$ and two come from $b$.
# All three must have arrived before $a$ passes its own gradient on to $x$, which gets
# $2x \cdot 3 = 18$.
# If $a$ passed on each part as it came, it would have to be visited three times, and $x$ six times:
# the work multiplies with every step.
# So the walk goes in reverse *topological order*: a value comes up only after everything that was
# computed from it.
#
# A list of operations in the order in which the program ran them, a *tape*, is in topological order
# already.
# What is left is a loop.
#
# ### {exercise}
#
# `tape[k]` says how value number `k` was made.
# It is a list of pairs `(j, vjp)`, one for each use of an earlier value `j < k`, and `vjp` is a
# function: it takes the gradient of value `k` and returns this use's part of the gradient of value
# `j`.
# A leaf has the empty list.
# The last value has the gradient `dy`.
# Return the list of all gradients, $\partial L/\partial$ (value k) for every `k`, and `None` for a
# value that the last one does not depend on.
# A tape may be thousands of values long, and $n$ steps may have $2^n$ paths through them: visit
# each value once.
# The vjp of a sum returns the array `dy` itself. What follows from that for your additions?
#
# With `three = lambda dy: 3.0 * dy` and `same = lambda dy: dy`, equation (2) at $x = 3$ is
# `[[], [(0, three), (0, three)], [(1, same), (1, same)], [(2, same), (1, same)]]`.
# For `dy = np.array([1.0])` the four gradients are those of the table: 18, 3, 1 and 1.

# %% exercise=autograd.walk points=4 minutes=20 as=walk
def autograd_walk(tape, dy):
    """The gradient of every value on the tape, or None; dy is the gradient of the last."""

# %% [markdown]
# Move the handle through equation (2) at $x = 3$. Your walk says what has arrived when the orange
# values have passed their gradients on:

# %%
three, same = (lambda dy: 3.0 * dy), (lambda dy: dy)
tape = [[], [(0, three), (0, three)], [(1, same), (1, same)], [(2, same), (1, same)]]
# the gradients that have arrived when the last `passed` values have passed theirs on
arrived = [walk([[]] * (4 - passed) + tape[4 - passed:], np.array([1.0])) for passed in range(4)]

# %% fold
frames, told = {}, {}
for passed, found in enumerate(arrived):
    sheet = Sheet(600, 300)
    for k, name in enumerate(("x\n3", "a = x · x\n9", "b = a + a\n18", "c = b + a\n27")):
        if k: sheet.arrow((150 * k - 35, 150), (150 * k + 15, 150))
        sheet.box(150 * k + 15, 120, 100, 60, name, TRAINED if k >= 4 - passed else DATA)
        number = "nothing yet" if found[k] is None else f"d{name[0]} = {found[k][0]:g}"
        sheet.text(150 * k + 65, 205, number)
    sheet.line((215, 120), (215, 90), (515, 90))
    sheet.arrow((515, 90), (515, 120))
    frames[passed] = sheet.svg
    told[passed] = ", ".join("nothing" if g is None else f"{g[0]:g}" for g in found)
slider("values that have passed theirs on", frames,
       captions={n: f"the gradients of x, a, b and c are {words}" for n, words in told.items()})

# %% [markdown]
# **Your function at work.**
# A tape of pairs `(j, vjp)` is just what the package records.
# `tape_of` writes its graph as such a tape; the rest of `gradients` is your walk.
# `use` puts it in the place of the package's own walk, so inside the block every `.backward()` is
# yours.
# Here it differentiates the whole pretrained model of lesson 02, 1.2 million numbers, and the
# gradients agree. (You need not read the next cell now.)

# %%
def tape_of(y):
    """The graph of y: its nodes and leaves in order, and for each its list of pairs (j, vjp)."""
    order = topological_order(y.node or y)
    place, tape = {id(node): k for k, node in enumerate(order)}, []
    for node in order:
        shared = []  # an operation computes the gradients of all parents at once

        def part(dy, i, node=node, shared=shared):
            shared[:] = shared or node.vjp(dy)
            return np.asarray(shared[i])
        tape.append([(place[id(parent[0])], functools.partial(part, i=i))
                     for i, parent in enumerate(node.parents) if parent is not None])
    return order, tape


def gradients(self, dy=None):
    """What stands in the place of Tensor.gradients: (leaf, its gradient), found by your walk."""
    order, tape = tape_of(self)
    found = walk(tape, np.ones_like(self.data) if dy is None else dy)
    return [(x, dx) for x, dx in zip(order, found, strict=True) if isinstance(x, tp.Tensor)]


model = tp.load_pretrained()
task = tp.tasks.domain(model, context=128)
batch = task.batch("train", 4, np.random.default_rng(0))
tuned = tp.attach(model, tp.FullFineTuning())
task.loss(tuned, batch).backward()                                     # the package's walk
theirs = [p.grad for p in tuned.trainable_parameters()]
for p in tuned.trainable_parameters(): p.grad = None
with use(tp.Tensor, gradients=gradients):
    loss = task.loss(tuned, batch)
    nodes = len(topological_order(loss.node))
    loss.backward()                                                    # your walk
mine = [p.grad for p in tuned.trainable_parameters()]
apart = max(abs(a - b).max() for a, b in zip(mine, theirs, strict=True))
print(f"{nodes} values on the tape, {len(mine)} gradients of {sum(g.size for g in mine):,} numbers")
print(f"largest difference to the package's {apart:.0e}")

# %% [markdown]
# What does that cost? Guess: how long do the model and its walk take together, in forward passes
# of the model?

# %%
guess = tp.guess("01.backward", 3.0, "forward passes")

# %%
def seconds(walked):
    """The time of a forward pass of the model, with or without the walk back."""
    start = time.perf_counter()
    if walked: task.loss(tuned, batch).backward()
    else:
        with tp.no_grad(): task.loss(tuned, batch)
    return time.perf_counter() - start


forward_only, both_ways = np.median([[seconds(False), seconds(True)] for _ in range(7)], axis=0)
print(f"finite differences of {sum(g.size for g in mine):,} numbers, two passes for each: "
      f"{2 * sum(g.size for g in mine) * forward_only / 3600:.0f} hours; "
      f"the walk: {both_ways - forward_only:.2f} seconds")
guess.beside(both_ways / forward_only)

# %% [markdown]
# Compare yours with the package's.
# In it, `y.walk(dy)` calls the vjp of an operation and frees the arrays that it saved, and
# `sums.add` checks the shape of every gradient:

# %%
show(tp.Tensor.gradients)

# %% [markdown]
# ## 3. Broadcasting hides a sum
#
# A bias $b$ of shape $(d,)$ is added to every row of an $(n, d)$ array:
# $y_{ij} = x_{ij} + b_j$.
# NumPy uses each $b_j$ silently $n$ times, and equation (1) sums over all places where $b_j$ occurs:
#
# $$db_j = \sum_i dy_{ij} \tag{3}$$

# %%
rng = np.random.default_rng(0)
X, b = tp.Tensor(rng.standard_normal((5, 3))), tp.Tensor(rng.standard_normal(3), requires_grad=True)
dy = rng.standard_normal((5, 3))
(X + b).backward(dy)
assert np.allclose(b.grad, dy.sum(0))          # equation (3)

# %% [markdown]
# So each operation that broadcasts must sum its gradient back to the shape of the parent.
# A colleague does that in one line. Arrays of four shapes are added to a $(4, 5, 3)$ array, and
# finite differences say what their gradients should be:

# %%
def of_colleague(dy, shape):
    """WRONG: dy, summed to `shape`."""
    return dy.reshape(-1, *shape).sum(0)


def measured(dy, shape, eps=1e-6):
    """How the sum of dy · (x + b) changes with each number of b, by finite differences."""
    db = np.empty(shape)
    for at in np.ndindex(*shape):
        step = np.zeros(shape)
        step[at] = eps
        db[at] = np.sum(dy * np.broadcast_to(step, dy.shape)) / eps
    return db


dy = rng.standard_normal((4, 5, 3))
for shape in ((3,), (1, 3), (5, 1), ()):
    db = of_colleague(dy, shape)
    right = np.allclose(db, measured(dy, shape))
    print(f"{str(shape):7} shape {'right' if db.shape == shape else 'wrong'}, "
          f"numbers {'right' if right else 'WRONG'}")

# %% [markdown]
# The shape is always right, and for three of the four the numbers are. For $(5, 1)$ they are wrong,
# and no error is raised.
#
# ### {exercise}
#
# Write the mended function. It sums `dy` down to `shape`, the shape that an array had before NumPy
# broadcast it to `dy.shape`. For example from `(4, 5, 3)` to `(3,)`, to `(1, 3)`, to `(5, 1)`, to
# `()`. The result must have exactly the shape `shape`.
# First say along which axes NumPy repeats the array. There are two kinds.

# %% exercise=autograd.unbroadcast points=2 minutes=10 as=unbroadcast
def autograd_unbroadcast(dy, shape):
    """Sum dy over the axes along which an array of `shape` was broadcast to dy.shape."""

# %% [markdown]
# ## 4. The linear layer, where nearly all the work is
#
# A linear layer maps rows of $d_{in}$ numbers to rows of $d_{out}$.
# Its weight $W$ is stored as $(d_{out}, d_{in})$, and $n$ counts the $N$ rows:
#
# $$Y = X W^\top + b, \qquad Y_{no} = \sum_i X_{ni} W_{oi} + b_o \tag{4}$$
#
# (The line `@accepts_arrays` lets a caller give arrays in place of tensors.)

# %%
show(plain.linear)

# %% [markdown]
# Three gradients are asked for:
# $dX$ $(N, d_{in})$, $dW$ $(d_{out}, d_{in})$ and $db$ $(d_{out},)$.
# Apply equation (1) to one number at a time.
# In which entries of $Y$ does $W_{oi}$ occur, and with which factor?
# Write the sum, then read it as a product of matrices.
# The shapes allow only one order of the factors.
#
# There is a twist, and this course is about it.
# `need` says for which of the three a gradient is wanted.
# A frozen weight needs none.
# Its $dW$ costs as much to compute as the forward pass of the layer did.
#
# ### {exercise}
#
# Return `(dX, dW, db)` from `X` $(N, d_{in})$, `W` $(d_{out}, d_{in})$ and `dY` $(N, d_{out})$.
# Do not compute a gradient that is not needed, but return `None` in its place.
# What no needed gradient uses was not kept:
# `X` is `None` if $dW$ is not needed, and `W` is `None` if $dX$ is not.

# %% exercise=autograd.linear_vjp points=4 minutes=12 as=linear_vjp
def autograd_linear_vjp(X, W, dY, need=(True, True, True)):
    """∂L/∂X, ∂L/∂W, ∂L/∂b of Y = X Wᵀ + b from dY = ∂L/∂Y; None where need is False."""

# %% [markdown]
# Forwards a linear layer computes one product, backwards two of the same size, $dX$ and $dW$. That is
# why model and walk together took about three forward passes in section 2.
#
# Compare yours with the package's.
# `Tensor.op` takes one function for each parent, and drops those of frozen parents.
# Only the function of `W` holds `X`, so the input of a frozen layer is freed while the forward pass
# is still running.

# %%
show(F.linear)

# %% [markdown]
# ## 5. The hardest backward pass: layer norm
#
# First a worked example.
# Softmax turns numbers into probabilities, $p_i = e^{x_i}/\sum_k e^{x_k}$.
# Each $p_i$ depends on every $x_j$.
# If $i = j$, the numerator and the sum change; otherwise the sum alone changes:
#
# $$\frac{\partial p_i}{\partial x_j} = p_i(\delta_{ij} - p_j) \qquad\Longrightarrow\qquad
# dx_j = p_j \Big(dp_j - \sum_i p_i\,dp_i\Big) \tag{5}$$
#
# ($\delta_{ij}$ is 1 if $i = j$ and 0 otherwise. The right side is equation (1) with the left side
# as $J$.)
#
# **By hand**, for $p = (\tfrac12, \tfrac14, \tfrac14)$ and $dp = (4, 0, 8)$. The mean of $dp$ with
# the weights $p$ is $2 + 0 + 2 = 4$, so $dx = (\tfrac12 \cdot 0,\; \tfrac14 \cdot (-4),\;
# \tfrac14 \cdot 4) = (0, -1, 1)$. With $J$: its rows are $(\tfrac14, -\tfrac18, -\tfrac18)$,
# $(-\tfrac18, \tfrac3{16}, -\tfrac1{16})$ and $(-\tfrac18, -\tfrac1{16}, \tfrac3{16})$, and its first
# column times $dp$ is $1 + 0 - 1 = 0$. The sum of $dx$ is 0, whatever $dp$ is.

# %% fold
p = np.exp([1.0, 0.0, 2.0, -1.0, 0.5, 1.5])
p /= p.sum()
J = np.diag(p) - np.outer(p, p)                # equation (5), left
fig, ax = plot.figure(height=2.8)
image = ax.imshow(J, cmap="RdBu_r", vmin=-0.25, vmax=0.25)
ax.grid(False)
ax.set(xlabel="input j", ylabel="output i", title="∂pᵢ/∂xⱼ of a softmax")
fig.colorbar(image, label="derivative")
fig.set_label("The Jacobian of a softmax of six numbers as a square of colours. The diagonal is "
              "positive, everything else is negative; the largest input's row and column are "
              "strongest.")
fig

# %% [markdown]
# *What to see: the diagonal is positive and everything else is negative, and every row and
# every column sums to zero.
# A larger input takes probability from all others.*
#
# Layer norm gives each row mean 0 and variance 1. Then it scales with $\gamma$ and shifts with
# $\beta$, which are trained.
# With the mean $\mu$ and the variance over the last axis, which has $d$ numbers:
#
# $$\hat x = \frac{x - \mu}{\sigma}, \qquad
# \sigma = \sqrt{\mathrm{var}(x) + \varepsilon}, \qquad y = \gamma\odot\hat x + \beta \tag{6}$$
#
# ($\odot$ multiplies number by number; the small $\varepsilon$ prevents a division by zero.)

# %%
show(plain.layer_norm)

# %% [markdown]
# ### {exercise}
#
# Derive $dx$ from $d\hat x = \gamma \odot dy$.
# Do it as for softmax: find $\partial\hat x_i/\partial x_j$, then apply equation (1).
# Ask in how many ways $x_j$ changes $\hat x_i$, and find $\partial\mu/\partial x_j$ and
# $\partial\sigma/\partial x_j$ first.
# The variance divides by $d$.
# Return `dx` of the shape of `x`, `(…, d)`.

# %% exercise=autograd.layer_norm_vjp points=5 minutes=30 as=layer_norm_vjp
def autograd_layer_norm_vjp(x, gamma, dy, eps=1e-5):
    """∂L/∂x of y = γ x̂ + β from dy = ∂L/∂y; everything over the last axis."""

# %% [markdown]
# Compare yours with the package's.
# `plain.layer_norm` leaves the gradient to the chain rule.
# The *fused* version is one operation in place of many small ones, with its vjps written by hand.
# It has your three terms, and writes them into memory that it already has:

# %%
show(F.layer_norm)

# %% [markdown]
# **Your functions at work.**
# Now a network of two layers, in which all four functions are yours: the linear layer and the layer
# norm have your vjps, every sum with broadcasting calls your `unbroadcast`, and `.backward()` is
# your walk.
# `Tensor.fused` makes an operation whose vjp returns the gradients of all its parents at once.
# The network learns a curve from 64 points.

# %%
def linear_with(vjp):
    """A linear layer with the given backward pass, vjp(X, W, dY, need) → (dX, dW, db)."""
    def linear(x, W, b):
        need = [t.requires_grad for t in (x, W, b)]
        X, M = x.data if need[1] else None, W.data if need[0] else None  # what the vjp uses
        y = x.data @ W.data.T + b.data
        return tp.Tensor.fused(y, [x, W, b], lambda dY: vjp(X, M, dY, need))
    return linear


def layer_norm_with(vjp):
    """A layer norm with the given backward pass, vjp(x, gamma, dy) → dx."""
    def layer_norm(x, gamma, beta):
        X, g = x.data, gamma.data
        xhat = (X - X.mean(-1, keepdims=True)) / np.sqrt(X.var(-1, keepdims=True) + 1e-5)
        return tp.Tensor.fused(xhat * g + beta.data, [x, gamma, beta],
                               lambda dy: [vjp(X, g, dy), (dy * xhat).sum(0), dy.sum(0)])
    return layer_norm


x = np.linspace(-3, 3, 64)[:, None]
y = np.sin(1.5 * x)


def fit(linear, layer_norm, steps=50):
    """Train a fresh network: its losses, and its curve in each step."""
    rng = np.random.default_rng(0)
    leaf = lambda *shape, scale=1.0: tp.Tensor(scale * rng.standard_normal(shape), True)
    W1, b1, W2, b2 = leaf(32, 1), leaf(32), leaf(1, 32, scale=0.1), leaf(1, scale=0.0)
    gamma, beta = tp.Tensor(np.ones(32), requires_grad=True), leaf(32, scale=0.0)
    optimizer, losses = optim.AdamW([W1, b1, gamma, beta, W2, b2], lr=0.03, weight_decay=0.0), []
    curves = []
    for _ in range(steps):
        h = layer_norm(linear(tp.Tensor(x), W1, b1), gamma, beta).tanh()
        out = h @ W2.T + b2                    # b2 is broadcast over 64 rows
        loss = ((out - y) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        curves.append(out.data[:, 0])
    return np.array(losses), curves


theirs, _ = fit(F.linear, F.layer_norm)
with use(tensor, unbroadcast=unbroadcast), use(tp.Tensor, gradients=gradients):
    mine, curves = fit(linear_with(linear_vjp), layer_norm_with(layer_norm_vjp))
print(f"loss {mine[0]:.3f} → {mine[-1]:.3f}; "
      f"largest difference to the package's {abs(mine - theirs).max():.0e}")

# %% fold
fig, (left, right) = plot.figure(1, 2, height=2.6)
left.semilogy(theirs, color=plot.COLOURS["sky"], lw=5, alpha=0.6)
left.semilogy(mine, color=plot.COLOURS["black"])
left.set(xlabel="step", ylabel="mean square error", title="the package's (wide), yours (thin)")
right.plot(x, y, ".", color=plot.COLOURS["grey"], ms=4)
right.plot(x, curves[-1], color=plot.COLOURS["black"])
right.set(xlabel="x", title="your network after 50 steps")
fig.set_label("Left: the mean square error of two trainings over 50 steps, a thin line on a wide "
              "one. Right: 64 points of a sine, and the curve of the network near all of them.")
fig

# %% [markdown]
# *What to see: one curve on top of the other.
# Your backward passes train the network as the package's do.* Move the handle, and watch it learn:

# %%
frames = {step: {"your network": (x[:, 0], curves[step])} for step in (0, 2, 5, 10, 15, 20, 30, 49)}
slider("step", frames, captions={step: f"mean square error {mine[step]:.3f}" for step in frames},
       behind={"sin 1.5 x": (x[:, 0], y[:, 0])}, xlabel="x")

# %% [markdown]
# ### {exercise} · What must be kept? (open, 3 points, 15 minutes)
#
# Until the walk comes back, the graph holds the arrays that its vjps use. That is most of the memory
# of training (lesson 03).
# For each of $a + b$, $a \cdot b$, $\tanh x$, $e^x$, $\max(x, 0)$, $\sum_i x_i$ and $X W^\top$, all
# of whose parents want a gradient, say what the vjp must have: an input, the result, or neither.
# Which of them can choose?
# Then take $h = \tanh(X W^\top)$ and $Y = h V^\top$. How many arrays of the size of $h$ are kept if
# each vjp chooses well, and how many if $\tanh$ keeps its input?
#
# *Rubric: 1 point for the list. 1 point for those that can choose, with the reason. 1 point for both
# counts and for what they have to do with one another.*

# %% [answer]
# - *List.* The sums, $a + b$ and $\sum x$, need shapes alone. $a \cdot b$ needs $b$ for $da$ and
#   $a$ for $db$. $X W^\top$ needs $W$ for $dX$ and $X$ for $dW$.
#   $\tanh$, $e^x$ and $\max(x, 0)$ need one array.
# - *Choice.* $1 - \tanh^2 x$ and $e^x$ can be computed from the input and from the result; the
#   result is cheaper, because it is there already. Of $\max(x, 0)$ one bit for each number is
#   enough, and the input and the result both tell it.
# - *Counts.* The second product keeps $h$, as its $X$. If $\tanh$ keeps its result, that is the
#   same array: one. If it keeps its input, there are two.
#   PyTorch's $\tanh$ and this package's keep the result.

# %% [markdown]
# ## 6. The other direction
#
# The walk backwards answers one question: how does *one* result change with *every* input?
# The same tape answers another one: how does *every* value change if *one* input moves by $dx$?
# Each edge then has the function $dx \mapsto J\,dx$, the *Jacobian–vector product*, or **jvp**.
#
# ### {exercise}
#
# `tape[k]` is a list of pairs `(j, jvp)`.
# `jvp` takes the change of value `j` and returns this use's part of the change of value `k`.
# Value 0 changes by `dx`, and other leaves do not change.
# Return the list of the changes of all values, and `None` for a value that does not depend on value
# 0.
# The jvp of a sum returns the array `dx` itself.

# %% exercise=autograd.forward points=2 minutes=8 bonus=yes as=forward
def autograd_forward(tape, dx):
    """The change of every value on the tape, or None, if the first one changes by dx."""

# %%
# the tape of equation (2) at x = 3, whose slopes serve in both directions
print("forwards, from dx = 1: ", *forward(tape, 1.0))
print("backwards, from dc = 1:", *walk(tape, 1.0))

# %% [markdown]
# Both find $\partial c/\partial x = 18$, at opposite ends of the list.
# For a million inputs and one loss, forwards takes a million walks and backwards takes one.
# So training goes backwards.
#
# ## Recall
#
# <details><summary>1. Why does an operation bring a vjp and not its Jacobian?</summary>
# The Jacobian of an operation on n numbers has n² entries, and for most operations nearly all are
# zero.
# Jᵀdy can be computed without it, at about the cost of the forward pass.
# </details>
# <details><summary>2. A value is used in three places. What is its gradient?</summary>
# The sum of what the three uses send back.
# It must be complete before the value passes anything on: reverse topological order.
# </details>
# <details><summary>3. What does broadcasting turn into on the way back?</summary>
# A sum, over the axes that were added or stretched.
# </details>
# <details><summary>4. In which order does the walk visit the values, and why?</summary>
# A value after everything that was computed from it. Only then is its gradient complete.
# </details>
# <details><summary>5. Layer norm subtracts a mean and divides by σ. Why has dx three terms?</summary>
# A number of x changes its own normalized value, the mean of the row, and σ of the row.
# </details>
#
# ## Where the papers say this
#
# - Baydin, Pearlmutter, Radul, Siskind, *Automatic Differentiation in Machine Learning: a Survey*,
#   JMLR 18 (2018), arXiv 1502.05767: forward and reverse mode, and what is neither (symbolic and
#   numerical differentiation).
# - Ba, Kiros, Hinton, *Layer Normalization*, arXiv 1607.06450: equation (6).
#
# ## Where implementations differ
#
# - PyTorch frees what each operation kept as soon as `backward` has used it, and so does this
#   package.
#   A second walk is an error here. In PyTorch it is one where an operation had kept something.
#   (PyTorch has `retain_graph=True`; here you run the forward pass again.)
# - micrograd and its many descendants keep a `.grad` on every node and add into it.
#   Here only leaves keep one, so a second `backward` through other nodes adds to leaves alone.
#
# ## The real call
#
# An operation with a backward pass of its own in PyTorch (`Tensor.fused` is its like here):
#
# ```python
# import torch
#
# class Tanh(torch.autograd.Function):
#     @staticmethod
#     def forward(ctx, x):
#         y = x.tanh()
#         ctx.save_for_backward(y)                # what the vjp needs
#         return y
#
#     @staticmethod
#     def backward(ctx, dy):
#         (y,) = ctx.saved_tensors
#         return dy * (1 - y * y)
#
# x = torch.tensor([0.5, -1.0, 2.0], requires_grad=True)
# Tanh.apply(x).backward(torch.tensor([1.0, 10.0, 100.0]))
# print(x.grad)                                   # as in section 1
# ```
#
# **Now you can** write the walk through a graph, and the backward pass of any layer.
# Next: [01b · Is a gradient right, and what does it cost?](01b_gradients.ipynb), the second half.
