# %% [markdown]
# # 01 · Autograd: the chain rule, walked backwards
#
# **What you will do.** Take apart a machine that differentiates any program made of a few operations: write the walk
# through the graph yourself, derive the backward pass of a linear layer and of layer norm, find out how to tell a right
# gradient from a wrong one, and measure what *not* training a parameter saves. That last number is why the rest of this
# course exists.
#
# **What you need.** The chain rule, matrix products, NumPy.
#
# **Time.** 60 minutes; every cell together runs in well under a minute.

# %%
import numpy as np

import tinypeft as tp
from tinypeft import functional as F
from tinypeft import plain
from tinypeft.course import show
from tinypeft.study import plot
from tinypeft.study.compare import traced_peak
from tinypeft.tensor import topological_order

# %% [markdown]
# ## 1. A gradient travels backwards
#
# Training asks one question of a model with a million numbers: if I move this number a little, where does the loss $L$
# go? Finite differences would answer with two evaluations of the model *per number*. Reverse-mode differentiation
# answers for all numbers at once, at the cost of about two more evaluations.
#
# It goes operation by operation. Let $y = f(x)$ be one of them, somewhere in the middle, and suppose somebody hands us
# $dy$, our shorthand for $\partial L/\partial y$: one number for each number in $y$. The chain rule turns it into $dx$:
#
# $$dx_j = \sum_i dy_i \,\frac{\partial y_i}{\partial x_j} \qquad\text{or, with the Jacobian } J_{ij} = \partial y_i/\partial x_j,\qquad dx = J^\top dy \tag{1}$$
#
# Here it is for $y = \tanh x$, whose Jacobian is diagonal, with $1 - y_i^2$ on the diagonal:

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
# Nobody writes $J$ out. For a thousand numbers in and out it has a million entries, nearly all zero. An operation brings instead a function from $dy$ to $J^\top dy$, its *vector–Jacobian product*, or **vjp**. This is
# all there is to `tanh` in the package; the `lambda` is its vjp:

# %%
show(tp.Tensor.tanh)

# %% [markdown]
# ## 2. The graph, and the order of the walk
#
# Every operation leaves a *node*: which tensors it was computed from (its parents), and its vjp. Take
#
# $$a = x \cdot x, \qquad b = a + a, \qquad c = b + a \tag{2}$$
#
# Three operations, and `a` is used three times. `backward` starts with $dc = 1$ and goes from node to node. The rule
# for a value that is used several times comes from equation (1) as well: $a$ influences $L$ along each of its uses, so
# its gradient is the **sum** over them.

# %%
def f(x):
    a = x * x
    b = a + a
    return b + a                               # c


tp.graph(f, x=3.0)

# %% [markdown]
# *What to see, from right to left: blue is the leaf $x$, an oval an operation; the box behind it has the value it made
# and, under it, the gradient that reached it. The box of $a$ says 3.* One comes from its use in $c$, two from its two
# uses in $b$. All three must have arrived before $a$ passes its own gradient on to $x$, which gets $2x \cdot 3 = 18$.
# If $a$ were visited as soon as the first had come, the others would be lost. So the walk goes in reverse *topological
# order*: a node comes up only after everything that was computed from it.
#
# A list of operations in the order in which the program ran them, a *tape*, is in topological order already. What is
# left is a loop.

# %% [markdown]
# ### {exercise}
#
# `tape[k]` says how value number `k` was made: a list of pairs `(j, J)`, one for each use of an earlier value `j < k`,
# with the Jacobian `J` of value `k` with respect to that use, of shape (size of `k`, size of `j`). A leaf has the empty
# list. The last value has the gradient `dy`. Return the list of all gradients, $\partial L/\partial$ (value k) for
# every `k`, and `None` for a value that the last one does not depend on. A tape may be thousands of values long, and $n$
# steps may have $2^n$ paths through them: visit each value once.
#
# Equation (2) at $x = 3$ is `[[], [(0, J3), (0, J3)], [(1, J1), (1, J1)], [(2, J1), (1, J1)]]` with
# `J3 = np.array([[3.0]])` and `J1 = np.array([[1.0]])`; for `dy = np.array([1.0])` the four gradients are 18, 3, 1 and
# 1.

# %% exercise=autograd.walk points=4 minutes=12
def autograd_walk(tape, dy):
    """The gradient of every value on the tape, or None; dy is the gradient of the last."""
    ### BEGIN SOLUTION
    grads = [None] * len(tape)
    grads[-1] = dy
    for k in reversed(range(len(tape))):
        if grads[k] is None:
            continue
        for j, J in tape[k]:
            dx = J.T @ grads[k]
            grads[j] = dx if grads[j] is None else grads[j] + dx
    return grads
    ### END SOLUTION

# %%
result = tp.check("autograd.walk", autograd_walk)
result

# %% [markdown]
# The package's own walk, `Tensor.gradients`, also drops each gradient and each node's saved arrays as soon as they have been used, and checks every gradient's shape.
#
# ## 3. Broadcasting hides a sum
#
# A bias $b$ of shape $(d,)$ is added to every row of an $(n, d)$ array:
#
# $$y_{ij} = x_{ij} + b_j \qquad\Longrightarrow\qquad db_j = \sum_i dy_{ij} \tag{3}$$
#
# NumPy copies $b$ silently, $n$ times. Equation (1) sums over the copies. So each operation that broadcasts must sum
# its gradient back to the shape of the parent: over axes that broadcasting put in front, and over axes of length 1 that
# it stretched.

# %%
rng = np.random.default_rng(0)
X, b = tp.Tensor(rng.standard_normal((5, 3))), tp.Tensor(rng.standard_normal(3), requires_grad=True)
dy = rng.standard_normal((5, 3))
(X + b).backward(dy)
assert np.allclose(b.grad, dy.sum(0))          # equation (3)

# %% [markdown]
# ### {exercise}
#
# Sum `dy` down to `shape`, the shape an array had before NumPy broadcast it to `dy.shape`. For example from `(4, 5, 3)`
# to `(3,)`, to `(1, 3)`, to `(5, 1)`, to `()`. The result must have exactly the shape `shape`.

# %% exercise=autograd.unbroadcast points=2 minutes=5
def autograd_unbroadcast(dy, shape):
    """Sum dy over the axes along which an array of `shape` was broadcast to dy.shape."""
    ### BEGIN SOLUTION
    dy = dy.sum(axis=tuple(range(dy.ndim - len(shape))))
    for axis, n in enumerate(shape):
        if n == 1:
            dy = dy.sum(axis=axis, keepdims=True)
    return dy
    ### END SOLUTION

# %%
result = tp.check("autograd.unbroadcast", autograd_unbroadcast)
result

# %% [markdown]
# ## 4. The linear layer, where nearly all the work is
#
# A linear layer of a transformer maps rows of $d_{in}$ numbers to rows of $d_{out}$. With the weight stored as
# $(d_{out}, d_{in})$:
#
# $$Y = X W^\top + b, \qquad Y_{no} = \sum_i X_{ni} W_{oi} + b_o \tag{4}$$

# %%
show(plain.linear)

# %% [markdown]
# Apply equation (1) to one weight. $W_{oi}$ occurs in column $o$ of $Y$, in every row $n$, with the factor $X_{ni}$:
#
# $$dW_{oi} = \sum_n dY_{no} X_{ni}, \qquad\text{as matrices}\qquad dW = dY^\top X \tag{5}$$
#
# The same two steps give $dX$ from $dY$ and $W$, and $db$ is equation (3). That is your next exercise, with one twist:
# it is the twist that this course is about. `need` says for which of the three a gradient is wanted. A frozen weight
# needs none. Its $dW$ costs as much to compute as the forward pass of the layer did, so do not compute it.
#
# ### {exercise}
#
# Return `(dX, dW, db)`. Do not compute a gradient that is not needed, but return `None` in its place. `X` is `(N, d_in)`,
# `W` `(d_out, d_in)`, `dY` `(N, d_out)`. What no needed gradient uses was not kept: `X` may be `None` if $dW$ is not
# needed, and `W` may be `None` if $dX$ is not.

# %% exercise=autograd.linear_vjp points=4 minutes=10
def autograd_linear_vjp(X, W, dY, need=(True, True, True)):
    """∂L/∂X, ∂L/∂W, ∂L/∂b of Y = X Wᵀ + b from dY = ∂L/∂Y; None where need is False."""
    ### BEGIN SOLUTION
    dX = dY @ W if need[0] else None
    dW = dY.T @ X if need[1] else None
    db = dY.sum(0) if need[2] else None
    return dX, dW, db
    ### END SOLUTION

# %%
result = tp.check("autograd.linear_vjp", autograd_linear_vjp)
result

# %% [markdown]
# Compare with the package. `Tensor.op` takes one function for each parent and drops those of frozen parents. Only the
# function of `W` holds `X`, so the input of a frozen layer is freed while the forward pass is still running.

# %%
show(F.linear)

# %% [markdown]
# ## 5. Is a gradient right?
#
# A model with a wrong backward pass still trains, just worse. The test is a finite
# difference, along a random direction $v$, of the number $\langle u, f(x)\rangle$ for a random $u$:
#
# $$\langle dx, v\rangle \;\approx\; \frac{\langle u, f(x + \varepsilon v)\rangle - \langle u, f(x - \varepsilon v)\rangle}{2\varepsilon}, \qquad dx = J^\top u \tag{6}$$
#
# How small should $\varepsilon$ be? Try it on GELU, in both precisions:

# %%
def difference_error(dtype, eps, seed=0):
    """How far apart the two sides of equation (6) are for gelu, relative to ‖dx‖‖v‖."""
    rng = np.random.default_rng(seed)
    x, u, v = (rng.standard_normal(1000).astype(dtype) for _ in range(3))
    leaf = tp.Tensor(x, requires_grad=True)
    F.gelu(leaf).backward(u)
    value = lambda x: np.vdot(u, F.gelu(tp.Tensor(x)).data)
    right = (value(x + dtype(eps) * v) - value(x - dtype(eps) * v)) / (2 * eps)        # equation (6), right side
    left = np.vdot(leaf.grad, v)                                                       # left side
    return abs(left - right) / (np.linalg.norm(leaf.grad) * np.linalg.norm(v))


for eps in (1e-1, 1e-3, 1e-5, 1e-7):
    errors = [np.median([difference_error(dtype, eps, seed) for seed in range(5)]) for dtype in (np.float32, np.float64)]
    print(f"ε = {eps:.0e}   float32 {errors[0]:.0e}   float64 {errors[1]:.0e}")

# %% [markdown]
# The study has measured the same over many more steps, for a small network:

# %%
show("gradient_check")

# %% [markdown]
# *What to see: a V.* From left to right the error of the formula shrinks as $\varepsilon^2$, until the rounding of $f$,
# divided by an ever smaller $\varepsilon$, takes over. In float32 the valley is too shallow to tell a right gradient
# from a slightly wrong one. So checks run in float64, and training in float32.
#
# Why a *random* $u$? Many people test with `f(x).sum().backward()`, which is $u = (1, …, 1)$. Watch what that does to
# softmax, $p_i = e^{x_i}/\sum_k e^{x_k}$, whose Jacobian and vjp are
#
# $$\frac{\partial p_i}{\partial x_j} = p_i(\delta_{ij} - p_j) \qquad\Longrightarrow\qquad dx = p \odot \Big(dp - \sum_i p_i\,dp_i\Big) \tag{7}$$

# %%
def softmax_with(vjp):
    """A softmax over the last axis with the given backward pass, vjp(p, dp) → dx."""
    def softmax(x):
        p = np.exp(x.data - x.data.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        return tp.Tensor.fused(p, [x], lambda dp: [vjp(p, dp)])
    return softmax


right = softmax_with(lambda p, dp: p * (dp - (p * dp).sum(-1, keepdims=True)))         # equation (7)
nonsense = softmax_with(lambda p, dp: p ** 3 * (dp - dp.mean(-1, keepdims=True)))      # no formula at all

x = np.random.default_rng(0).standard_normal((4, 6))
for name, f in (("right", right), ("nonsense", nonsense)):
    for how, g in ((".sum()", lambda x, f=f: f(x).sum()), ("random u", f)):
        try:
            print(f"{name:9} checked with {how:9}  passes, error {tp.gradcheck(g, x):.0e}")
        except AssertionError:
            print(f"{name:9} checked with {how:9}  FAILS")

# %% [markdown]
# The nonsense passes with `.sum()`: probabilities sum to one whatever $x$ is, so the true gradient of their sum is zero, and anything that vanishes for a constant $dp$ looks right.

# %%
p = np.exp([1.0, 0.0, 2.0, -1.0, 0.5, 1.5])
p /= p.sum()
J = np.diag(p) - np.outer(p, p)                # equation (7), left
fig, ax = plot.figure(height=2.8)
image = ax.imshow(J, cmap="RdBu_r", vmin=-0.25, vmax=0.25)
ax.grid(False)
ax.set(xlabel="input j", ylabel="output i", title=f"∂pᵢ/∂xⱼ of a softmax; rows sum to at most {abs(J.sum(1)).max():.0e}")
fig.colorbar(image, label="derivative")
fig

# %% [markdown]
# *What to see: a positive diagonal, and everything else negative, so that every row and every column sums to zero. A
# larger input takes probability from all others.*
#
# ### {exercise}
#
# The hardest backward pass of a transformer. With mean and variance over the last axis,
#
# $$\hat x = \frac{x - \mu}{\sigma}, \qquad \sigma = \sqrt{\mathrm{var}(x) + \varepsilon}, \qquad y = \gamma\odot\hat x + \beta \tag{8}$$

# %%
show(plain.layer_norm)

# %% [markdown]
# Derive $dx$ from $d\hat x = \gamma \odot dy$. Do it as for softmax: find $\partial\hat x_i/\partial x_j$, then apply
# equation (1). Two facts help: $\partial\mu/\partial x_j = 1/d$ and $\partial\sigma/\partial x_j = \hat x_j/d$ (the
# variance divides by $d$). You should end with three terms, all divided by $\sigma$: $d\hat x$ itself, minus its mean,
# minus $\hat x$ times another mean. Return `dx` of the shape of `x`, `(…, d)`.

# %% exercise=autograd.layer_norm_vjp points=5 minutes=15
def autograd_layer_norm_vjp(x, gamma, dy, eps=1e-5):
    """∂L/∂x of y = γ x̂ + β from dy = ∂L/∂y; everything over the last axis."""
    ### BEGIN SOLUTION
    sigma = np.sqrt(x.var(-1, keepdims=True) + eps)
    xhat = (x - x.mean(-1, keepdims=True)) / sigma
    dxhat = gamma * dy
    return (dxhat - dxhat.mean(-1, keepdims=True) - xhat * (dxhat * xhat).mean(-1, keepdims=True)) / sigma
    ### END SOLUTION

# %%
result = tp.check("autograd.layer_norm_vjp", autograd_layer_norm_vjp)
result

# %% [markdown]
# `plain.layer_norm` leaves the gradient to the chain rule. The package runs a fused version with your three terms,
# which writes them into memory that it already has:

# %%
show(F.layer_norm)

# %% [markdown]
# ## 6. A frozen parent costs nothing
#
# Now the point of it all. In the package an operation records a vjp only for parents that require a gradient, and an
# operation none of whose parents does records nothing. So the graph reaches down exactly to the lowest trained
# parameter:

# %%
show(tp.Tensor.op)
show(tp.Tensor.fused)

# %% [markdown]
# Put this to work on the real base model. The same batch, the same loss, and five choices of what is trained. We count
# the nodes of the graph and the bytes that a step allocates at its peak, forward and backward, beyond the model itself.

# %%
model = tp.load_pretrained()
task = tp.tasks.domain(model, context=128)
batch = task.batch("train", 4, np.random.default_rng(0))
last = [f"blocks.{model.config.n_layers - 1}.attention.{name}" for name in ("query", "value")]
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
    rows.append((name, sum(p.size for p in tuned.trainable_parameters()), len(topological_order(loss.node)),
                 traced_peak(tuned, task, 4) / 2**20))
    tuned.detach()
print(f"{'trained':24}{'numbers':>10}{'nodes':>8}{'peak MiB':>10}")
for name, n, nodes, mib in rows:
    print(f"{name:24}{n:10,}{nodes:8}{mib:10.1f}")

# %%
names = [name for name, *_ in rows][::-1]
fig, (left, right) = plot.figure(1, 2, height=2.2)
left.barh(names, [n for _, n, _, _ in rows][::-1], color=plot.COLOURS["sky"])
left.set(xscale="log", xlim=(100, 3e6), xlabel="numbers trained", title="What is trained …")
right.barh(names, [mib for *_, mib in rows][::-1], color=plot.COLOURS["blue"])
right.set(xlabel="peak of one step, MiB", yticks=[], title="… and what a step allocates")
fig

# %% [markdown]
# *What to see: the right bars do not follow the left ones.* Biases are less than a hundredth of the parameters, and yet
# they save only a quarter of the memory: the lowest bias is in the first block, so the walk must go all the way down
# and every layer must keep what its $dX$ needs. *Where* the lowest trained parameter sits matters as much as how many
# there are. Lesson 03 does the accounts.
#
# ### {exercise} · Few parameters, how much time? (open, 3 points, 15 minutes)
#
# LoRA trains fewer than 2 % of the numbers in this model, yet a training step takes about three quarters of full
# fine-tuning's time. Count matrix products of a linear layer that is $d \times d$ and sees $N$ rows: forward, $dX$,
# $dW$. Which of the three does LoRA save? What does your count predict for the ratio, and why is the measured one not
# the same? What would you have to give up to get below one half?
#
# *Rubric: 1 point for the count and the ratio that follows from it; 1 for two costs that the count leaves out; 1 for a way
# to get below one half, and for what it loses.*

# %% [answer]
# - *Count.* Forward, $dX$ and $dW$ are products of the same size, $N d^2$. Full fine-tuning needs all three. A frozen layer
#   above the lowest adapter needs two, without $dW$. The ratio is 2/3. ($dX$ of the lowest layer is not needed either.)
# - *Left out.* Attention's own products, GELU, norms, the softmax over the vocabulary and the loss, which both methods pay
#   in full, and the products of the adapters raise the ratio. The optimizer's step lowers it, since only trained parameters
#   take part.
# - *Below one half.* Do not walk down: a layer below the lowest adapter pays the forward product alone, one of three. With
#   adapters in the upper $k$ of $L$ blocks the ratio is $(L + k)/3L$, which is below one half for $k < L/2$. The lower
#   layers' representations then cannot change.

# %% [markdown]
# ## Recall
#
# <details><summary>1. Why does an operation bring a vjp and not its Jacobian?</summary>
# The Jacobian of an operation on n numbers has n² entries, nearly all zero for most operations; Jᵀdy can be computed
# without it, at about the cost of the forward pass.
# </details>
# <details><summary>2. A value is used in three places. What is its gradient?</summary>
# The sum of what the three uses send back, and it must be complete before the value passes anything on: reverse
# topological order.
# </details>
# <details><summary>3. What does broadcasting turn into on the way back?</summary>
# A sum, over the axes that were added or stretched.
# </details>
# <details><summary>4. Why is f(x).sum().backward() a bad test of a gradient?</summary>
# Its upstream gradient is constant. An operation whose outputs have a constant sum (softmax, layer norm) passes with a
# wrong backward. A random upstream gradient exposes it.
# </details>
# <details><summary>5. Which of dX, dW, db does a frozen linear layer compute in the middle of a network, with trained parameters below it?</summary>
# Only dX. It needs the weight, not the input, so the input can be freed.
# </details>
#
# ## Where the paper says this
#
# - Baydin, Pearlmutter, Radul, Siskind, *Automatic Differentiation in Machine Learning: a Survey*, JMLR 18 (2018),
#   arXiv 1502.05767: forward and reverse mode, and what is neither (symbolic and numerical differentiation).
# - Ba, Kiros, Hinton, *Layer Normalization*, arXiv 1607.06450: equation (8).
# - Hendrycks, Gimpel, *Gaussian Error Linear Units*, arXiv 1606.08415: the function of the V-shaped picture.
#
# ## Where implementations differ
#
# - PyTorch keeps the values that the backward pass needs until `backward` is done, unless told otherwise, and so does
#   this package; walking a graph twice is an error in both (PyTorch has `retain_graph=True`, here you run the forward
#   pass again).
# - micrograd and its many descendants keep a `.grad` on every node and add into it; here only leaves keep one, so a
#   second `backward` through other nodes adds to leaves alone.
# - PyTorch, JAX and this package skip frozen parents. An engine that computes every gradient and throws some away gets
#   the same numbers, and saves nothing.
#
# **Now you can** write the backward pass of any layer, test it so that a wrong one is found, and say what a frozen
# weight saves. Next: [02 · The transformer](02_transformer.ipynb) is built of such layers.
