# %% [markdown]
# # 07 · LoRA
#
# **What you will do.** Write the change of a weight matrix as a product of two thin matrices.
# You write its forward pass, put it on the model and freeze everything else, derive its gradients,
# and train with what you wrote. You will see what it learns and what holds it back, why one factor
# starts at zero, what $\alpha$ is for, and what becomes of a base that is merged again and again.
#
# **What you need.** Lesson 02 (the model) and lesson 03 (what full fine-tuning costs). Section 7
# also needs singular values; the glossary says what they are.
#
# **Words and letters.** [The glossary](GLOSSARY.md) explains every word and letter of the course.
#
# **Time.** 105 minutes for reading and the exercises. The open exercise takes 35 more, the bonus
# 30. Every cell together runs in about a minute.
#
# **Half an hour?** Sections 1, 2, 5 and 9 are marked ◆. They say what LoRA is, put it on a model,
# show what it learns, and merge it. Leave out exercise 6, or take an hour. Run all cells first.

# %%
import numpy as np

import tinypeft as tp
from tinypeft.engine import functional as F
from tinypeft.course import beside, show, sliders, use
from tinypeft.course.slider import slider
from tinypeft.engine import Parameter
from tinypeft.engine import AdamW
from tinypeft.engine.nn import Module, replace_modules
from tinypeft.peft.lora import LoRA, LoRALinear, LowRankLinear
from tinypeft.study import plot

base = tp.load_pretrained()
task = tp.tasks.invented(base, context=64, things=8)          # machines that do not exist
tokens, targets = task.batch("train", 4, np.random.default_rng(0))
base_loss = tp.evaluate(base, task, "train")["loss"]
print(f"{base.n_parameters():,} parameters; on the catalogue the frozen base has "
      f"{base_loss:.2f} nats per token")
print("for example:", *task.taught[0], sep="\n")

# %% [markdown]
# As in lesson 00, the model shall learn a catalogue of eight machines that a generator invents.
# There are 16 questions, the beginnings of sentences, and each has one right end.
#
# ## 1. The idea ◆
#
# Full fine-tuning turns each weight matrix $W_0$ into $W_0 + \Delta W$.
# LoRA (Hu et al., arXiv 2106.09685) assumes that $\Delta W$ does not need all of its freedom.
# It freezes $W_0$ and trains a $\Delta W$ that is the product of a tall and a wide matrix:
#
# $$W = W_0 + \Delta W, \qquad \Delta W = \frac{\alpha}{r}\, B A, \qquad
# B \in \mathbb{R}^{d_\text{out} \times r},\ A \in \mathbb{R}^{r \times d_\text{in}} \tag{1}$$
#
# The number $r$ is the *rank*.
# It is small, for example 8 where $d_\text{in}$ and $d_\text{out}$ are 128 or more.
# The number $\alpha$ is fixed, and $s = \alpha/r$ is the *scale* of the change.
# An input goes two ways, a wide one that is frozen and a narrow one that is trained:

# %%
show("schematic:lora")

# %% [markdown]
# **By hand.** Take 3 inputs, 2 outputs, rank 1 and $\alpha = 2$, so that $s = 2$:
#
# $$W_0 = \begin{pmatrix} 1 & 0 & 2 \\ 0 & 1 & 0 \end{pmatrix}, \quad
# A = \begin{pmatrix} 1 & -1 & 0 \end{pmatrix}, \quad
# B = \begin{pmatrix} 0.5 \\ 1 \end{pmatrix}, \quad
# x = \begin{pmatrix} 1 \\ 2 \\ 3 \end{pmatrix}$$
#
# 1. The frozen way gives $W_0 x = (1 + 6,\ 2) = (7,\ 2)$.
# 2. On the narrow way $A x = 1 - 2 = -1$ is a single number. It takes 3 multiplications.
# 3. $B (A x) = (-0.5,\ -1)$ takes 2 more. Times $s$ it is $(-1,\ -2)$.
# 4. The sum is $h = (7 - 1,\ 2 - 2) = (6,\ 0)$.
#
# The other order forms $\Delta W = s B A$ first.
# It gives the same $h$, by another amount of work:

# %%
W0, A, B = np.array([[1., 0, 2], [0, 1, 0]]), np.array([[1., -1, 0]]), np.array([[0.5], [1]])
x = np.array([1., 2, 3])
print("ΔW =", (2 * B @ A).tolist(), "  (W₀ + ΔW) x =", (W0 + 2 * B @ A) @ x)
for d, r in ((3, 1), (128, 8), (4096, 8)):
    print(f"d_in = d_out = {d:4}, r = {r}: {2 * r * d:6,} multiplications for B (A x), "
          f"{r * d * d + d * d:11,} for B A and then (B A) x")

# %% [markdown]
# (The survey that this course follows writes $W + AB$. Its letters $A$ and $B$ are exchanged.)
#
# ### {exercise}
#
# Write $h = W x$ with the $W$ of equation (1), and never form $BA$.
# Everything is a Tensor: `x` $(\dots, d_\text{in})$, `W0` $(d_\text{out}, d_\text{in})$, which is
# frozen, `A` $(r, d_\text{in})$, `B` $(d_\text{out}, r)$. `alpha` is a number.
# Each row of `x` is an input. `F.linear(x, M)` multiplies the matrix `M` with every row.

# %% exercise=lora.forward points=2 minutes=8 as=my_forward
def lora_forward(x, W0, A, B, alpha):
    """h = W₀ x + α/r B A x for each row of x: a Tensor (…, d_out)."""

# %% [markdown]
# Compare yours with the package's.
# It scales $A x$, which is narrow, and not $B A x$, which is wide:

# %%
show(LoRALinear.forward)

# %% [markdown]
# ## 2. On the model ◆
#
# In the model LoRA stands at several layers, and everything else is frozen, biases and norms too.
#
# ### {exercise}
#
# `parameters` is a dict, name → array, such as `"blocks.0.attention.query.weight"` → (128, 128).
# What stands before `.weight` is the path of a layer. LoRA goes on every layer whose own name, the
# last part of its path, is one of `targets`, for example `("query", "value")`.
# Return two dicts with the same names, `(arrays, trained)`. `arrays` has the old arrays and for each
# layer with LoRA two new ones: `path.A`, and `path.B` with zeros. A is drawn in its shape by
# `rng.standard_normal` and divided by $\sqrt{d_\text{in}}$, layer after layer in the order of
# `parameters`, with one `rng = np.random.default_rng(seed)`. New arrays have the dtype of their
# weight. `trained` says for each name whether the optimizer moves it, `True` or `False`.

# %% exercise=lora.attach points=2 minutes=12 as=my_attach
def lora_attach(parameters, targets, r, seed):
    """(arrays, trained): the model's arrays with LoRA, by name, and which of them are trained."""

# %% [markdown]
# In place of $d_\text{out}\, d_\text{in}$ numbers, $r(d_\text{in} + d_\text{out})$ numbers are
# trained. The same number is stored for each task. AdamW remembers two more for each of them.
# Your function on the whole model, and then the package's summary:

# %%
parameters = {name: p.data for name, p in base.named_parameters()}
arrays, trained = my_attach(parameters, ("query", "value"), 8, 0)
c = base.config
print(f"by hand: {c.n_layers} blocks × 2 matrices × 8 × ({c.d_model} + {c.d_model}) = "
      f"{c.n_layers * 2 * 8 * (c.d_model + c.d_model):,}; "
      f"by your dicts: {sum(arrays[name].size for name, on in trained.items() if on):,}")
tuned = tp.attach(tp.load_pretrained(), tp.LoRA(rank=8, alpha=16), rng=0)
tuned.summary()

# %% [markdown]
# LoRA does not save the forward pass, nor the way back through the frozen layers: the gradient has
# to reach the $A$ and $B$ of the first block. Only the products $dW_0 = dH^\top X$ are not computed.
# A step of full fine-tuning multiplies three times with each weight: forward, for $dX$, and for
# $dW_0$, with equal work. So LoRA saves a third of that.
#
# ## 3. Backward by hand
#
# Let the rows of $X$ $(N, d_\text{in})$ be inputs. Here $N$ is their number: the tokens of a
# batch. Then
#
# $$H = X W_0^\top + s\,(X A^\top)\, B^\top \tag{2}$$
#
# and $dH$ $(N, d_\text{out})$ is the gradient of the loss with respect to $H$.
# You need one rule, from lesson 01.
# In $Y = Z M^\top$ the gradients are $dM = dY^\top Z$ and $dZ = dY\, M$.
# Each has the shape of its array, and no other product has.
#
# ### {exercise}
#
# Derive the gradients of equation (2) on paper. Write down the shape of every factor.
# Then return $(dA, dB, dX)$ as NumPy arrays. `W0` and `dh`, which is $dH$, are arrays, too.
# $X$ has two ways to the loss, so $dX$ is a sum.

# %% exercise=lora.backward points=4 minutes=20 as=my_backward
def lora_backward(x, W0, A, B, alpha, dh):
    """(dA, dB, dx): gradients of the loss, given dh = ∂L/∂h (N, d_out)."""

# %% [markdown]
# <details><summary>The equations, to compare with yours</summary>
#
# $$dB = s\; dH^\top (X A^\top), \qquad dA = s\; (dH\, B)^\top X, \qquad
# dX = dH\, W_0 + s\,(dH\, B)\, A \tag{3}$$
#
# $X A^\top$ and $dH\,B$ are $(N, r)$, so that no product is larger than it has to be.
#
# </details>

# %% [markdown]
# Your $dA$ contains $B$, and your $dB$ contains $A$.
# LoRA starts with $B = 0$, so a fresh LoRA computes what the base computes.
# Therefore $dA = 0$ in the first step, and **only $B$ moves**.
# If both were zero, both gradients would be zero, and nothing would ever be trained.
# If neither were zero, the model would start with a random change.

# %%
layer = tuned.wrappers["blocks.0.attention.query"]
with tuned.disabled(): plain = tuned(tokens).data
print("a fresh LoRA changes nothing, bit for bit:", np.array_equal(plain, tuned(tokens).data))
F.cross_entropy(tuned(tokens), targets).backward()
size = np.linalg.norm
print(f"first step: ‖dA‖ = {size(layer.A.grad):.1e}, ‖dB‖ = {size(layer.B.grad):.1e}, "
      f"dW₀ = {layer.base.weight.grad}")

# %% [markdown]
# ## 4. Your LoRA at work
#
# `my_attach` makes the arrays and says what is trained. A small layer holds them, and takes the place
# of the frozen layer. `my_forward` computes its output, `my_backward` its gradients.
# The model trains for 15 steps, once with your LoRA and once with the package's, from the same $A$:

# %%
class MyLoRA(Module):
    """A frozen linear layer and your LoRA beside it."""

    def __init__(self, base, A, B, alpha=16):
        self.base, self.alpha = base, alpha
        self.A, self.B = Parameter(A.copy()), Parameter(B.copy())

    def forward(self, x):
        W0, A, B, alpha = self.base.weight, self.A, self.B, self.alpha
        rows = lambda a: a.reshape(-1, a.shape[-1])
        with tp.no_grad(): h = my_forward(x, W0, A, B, alpha).data

        def gradients(dh):
            dA, dB, dx = my_backward(rows(x.data), W0.data, A.data, B.data, alpha, rows(dh))
            return [g.astype(np.float32) for g in (dA, dB, dx.reshape(x.shape))]
        return tp.Tensor.fused(h, (A, B, x), gradients) + self.base.bias


layers = [name.removesuffix(".A") for name, on in trained.items() if on and name.endswith(".A")]
own = tp.load_pretrained()
for name, p in own.named_parameters(): p.requires_grad = trained[name]                 # frozen
replace_modules(own, {path: MyLoRA(own.get(path), arrays[f"{path}.A"], arrays[f"{path}.B"])
                      for path in layers})
package = tp.attach(tp.load_pretrained(), tp.LoRA(rank=8, alpha=16), rng=0)
for path in layers: package.wrappers[path].A.assign(arrays[f"{path}.A"])

theirs, mine = (np.array(tp.train(model, task, 15, batch_size=4, seed=0, lr=1e-2,
                                  progress=False).loss) for model in (package, own))
print("step   package     yours")
for step in (0, 4, 9, 14): print(f"{step + 1:4}  {theirs[step]:8.5f}  {mine[step]:8.5f}")
print(f"largest difference of the {len(mine)} losses: {abs(mine - theirs).max():.0e}")

# %% [markdown]
# ## 5. Train it ◆
#
# Full fine-tuning has two advantages over this LoRA: no limit of rank, and 30 matrices in place of
# ten. (Embeddings, biases and norms come on top.) Which of the two matters? Two more arms: one trains
# query and value with no limit of rank, the other has LoRA of rank 8 on all six matrices of a
# block.

# %%
STEPS = 100


def learn(method, rng=0, **options):
    """A fresh copy of the base with `method`, trained; its training losses."""
    tuned = tp.attach(tp.load_pretrained(), method, rng=rng)
    history = tp.train(tuned, task, STEPS, batch_size=8, seed=0, progress=False, **options)
    return tuned, np.array(history.loss)


right = [fact for _, fact in task.taught]
n_right = lambda answers: sum(a == fact for a, fact in zip(answers, right, strict=True))
query_value = tp.FullFineTuning(targets=("query.weight", "value.weight"))
arms = {"LoRA, query and value": learn(tp.LoRA(rank=8, alpha=16), lr=2e-2),
        "query and value, any rank": learn(query_value, lr=1e-2),
        "LoRA, all six": learn(tp.LoRA(rank=8, alpha=16, targets="all"), lr=1e-2),
        "everything": learn(tp.FullFineTuning(), lr=3e-3)}           # each at the best of three
told = {name: task.answers(tuned) for name, (tuned, _) in arms.items()}
print(f"{'frozen base':27}{base_loss:27.2f} nats  {n_right(task.answers(base)):2} of 16 right")
for name, (tuned, _) in arms.items():
    loss = tp.evaluate(tuned, task, "train")["loss"]
    print(f"{name:27}{tuned.summary().trained:10,} trained, {loss:7.2f} nats  "
          f"{n_right(told[name]):2} of 16 right")

# %% fold
fig, ax = plot.figure(height=3.0)
looks = ("blue", "-"), ("green", "--"), ("sky", "-."), ("black", "-")
ends = []
for (name, (_, losses)), (colour, style) in zip(arms.items(), looks, strict=True):
    y = np.convolve(losses, np.ones(10) / 10, "valid")
    ax.plot(np.arange(10, STEPS + 1), y, color=plot.COLOURS[colour], ls=style)
    ends.append((STEPS, y[-1], f"{name}: {n_right(told[name])} of 16", plot.COLOURS[colour]))
ax.set(xlabel="step (8 × 64 tokens each)", xlim=(8, STEPS + 70), xticks=range(20, STEPS + 1, 20),
       ylabel="loss on the catalogue,\nmean of 10 steps (nats/token)", yscale="log", ylim=(0.05, 5))
plot.plain_log(ax.yaxis)
plot.label_ends(ax, ends)
fig.set_label("Four falling curves over 100 steps, on a logarithmic axis. LoRA on query and "
              "value stays highest; query and value without a limit of rank, LoRA on all six "
              "matrices, and full fine-tuning end near one another.")
fig

# %% [markdown]
# *What to see: all four fall. LoRA on query and value stays behind, and each of the two remedies
# brings it close to training everything.*

# %%
ask = 0, 1, 4, 5, 8, 9
some = lambda answers: [answers[i] for i in ask]
beside({"question": [task.taught[i][0].partition("\n")[2] + " …" for i in ask],
        "frozen base": some(task.answers(base)),
        "LoRA, query and value": some(told["LoRA, query and value"]),
        "LoRA, all six": some(told["LoRA, all six"]), "the catalogue": some(right)})

# %% [markdown]
# The base answers in the language of documentation. LoRA on two matrices knows some answers, gives
# that of another machine, or mixes words up. LoRA on all six knows the catalogue.
#
# So the rank is one limit here, and the choice of matrices another. Rank 8 on all six makes up
# for both, with fewer numbers than query and value have. The paper's claim, as good as full
# fine-tuning, depends on such choices. The study trained longer, on documentation, over four seeds:

# %%
show("rank")

# %% [markdown]
# *What to see: more rank helps, but slowly.* From rank 1 to rank 64 the loss goes from
# {study rank: 1, loss} to {study rank: 64, loss} nats per token. Rank 64 on query and value has
# {study rank: 64, loss, of full over frozen} of full fine-tuning's gain. Rank 4 on all six has
# {study methods: lora_all, loss, of full over frozen}. There the matrices matter more than the rank.
# In the paper's table 6 the result for query and value is nearly the same for every rank from 1 on.
#
# ## 6. Five LoRAs, one of them right
#
# Five people put LoRA on the model by hand. Each program runs without an error.
# Which one would you trust?

# %%
def trained(model): return [p for p in model.parameters() if p.requires_grad]


def lora_on(model): return tp.attach(model, tp.LoRA(rank=8, alpha=16), rng=0)


def first(model):
    tuned = lora_on(model)
    for layer in tuned.wrappers.values(): layer.A.assign(np.zeros_like(layer.A.data))
    return tuned, trained(tuned)                  # no change at the start: B is 0, and A is 0


def second(model):
    parameters = trained(model)                   # first the list for the optimizer,
    return lora_on(model), parameters             # then the LoRA


def third(model):
    tuned = lora_on(model)
    return tuned, trained(tuned)


def fourth(model):
    tuned, rng = lora_on(model), np.random.default_rng(0)
    for layer in tuned.wrappers.values():         # random, so that A has a gradient from the start
        layer.B.assign(0.3 * rng.standard_normal(layer.B.shape).astype(np.float32))
    return tuned, trained(tuned)


def fifth(model):
    tuned = lora_on(model)
    for p in tuned.parameters(): p.requires_grad = True          # so that gradients reach A and B
    return tuned, trained(tuned)

# %%
def run(program, steps=12):
    """Losses, and one layer's (W₀, A, B) before and after."""
    tuned, parameters = program(tp.load_pretrained())
    layer = tuned.wrappers["blocks.1.attention.value"]
    arrays = lambda: [p.data.copy() for p in (layer.base.weight, layer.A, layer.B)]
    optimizer, before, losses = AdamW(parameters, lr=1e-2, weight_decay=0.0), arrays(), []
    for step in range(steps):
        tokens, targets = task.batch("train", 2, np.random.default_rng([0, step]))
        loss = F.cross_entropy(tuned(tokens), targets)
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        losses.append(loss.item() - F.cross_entropy(base(tokens), targets).item())
    return losses, (*before, *arrays())


seen = {program.__name__: run(program) for program in (first, second, third, fourth, fifth)}
print("loss − frozen base's loss, in step", *(f"{step:6}" for step in (1, 2, 4, 8, 12)))
for name, (losses, _) in seen.items():
    print(f"{name:33}", *(f"{losses[step - 1]:6.2f}" for step in (1, 2, 4, 8, 12)))

# %% [markdown]
# *What to see: two programs learn nothing at all, and two rise far above the base, one of them
# from the first step on.* A loss tells that something is wrong. The arrays tell what.
#
# ### {exercise}
#
# Write the test that finds the fault in the arrays of one layer.
# `W_before`, `A_before`, `B_before` are the arrays before training, and `W_after`, `A_after`,
# `B_after` are the same after one or more steps.
# At most one thing is wrong. Return one of these words:
#
# * `"base trained"`: the base is not frozen. Frozen means equal to the last bit.
# * `"start changed"`: the model did not start as the base. Any change of the weight counts, however
#   small it is.
# * `"both zero"`: the start allows no gradient.
# * `"not trained"`: the start is sound, and neither $A$ nor $B$ has moved.
# * `"fine"`: none of these. A LoRA with $A = 0$ and a random $B$ is fine as well.

# %% exercise=lora.bug points=3 minutes=15 as=what_is_wrong
def lora_bug(W_before, A_before, B_before, W_after, A_after, B_after):
    """What is wrong with a LoRA: one word, from its arrays before and after training."""

# %%
for name, (_, arrays) in seen.items(): print(f"{name:7} {what_is_wrong(*arrays)}")

# %% [markdown]
# A sixth fault leaves no trace in these arrays: $\alpha$ that is not divided by $r$.
# The learning rate of another rank is then too large. Section 8 shows what the division does.
#
# ## 7. How much rank does a change have?
#
# Nothing forces full fine-tuning to a low rank. Does it find a change of low rank all the same?
# The singular values of $\Delta W$ answer that: $\lVert \Delta W \rVert^2$ is the sum of their
# squares, and the number of large ones is the rank that matters.
# The matrix is `blocks.2.attention.value`, 128 × 128. How much of $\lVert \Delta W \rVert^2$ do its
# 8 largest hold?

# %%
guess = tp.guess("07.share", 90, "%")

# %%
path = "blocks.2.attention.value"
full, narrow, free = (arms[name][0] for name in ("everything", "LoRA, query and value",
                                                 "query and value, any rank"))
W_of = lambda model: model.get(path).weight.data
delta = W_of(full.merge()) - W_of(base)
chance = np.random.default_rng(0).standard_normal(delta.shape)
changes = {"everything": delta,
           "query and value, any rank": W_of(free.merge()) - W_of(base),
           "LoRA, query and value": narrow.wrappers[path].delta(),
           "by chance": chance * size(delta) / size(chance)}
spectra = {name: np.linalg.svd(change)[1] for name, change in changes.items()}
for name, S in spectra.items():
    share = np.cumsum(S ** 2) / np.sum(S ** 2)
    print(f"{name:26}‖ΔW‖ = {size(S):5.2f}; 8 directions hold {share[7]:4.0%} of its square, "
          f"90 % need {np.argmax(share >= 0.9) + 1:2} of 128")
guess.beside(100 * size(spectra["everything"][:8]) ** 2 / size(delta) ** 2)

# %% fold
fig, ax = plot.figure(height=3.0)
looks = ("black", "-"), ("green", "--"), ("blue", "-"), ("grey", ":")
for (name, S), (colour, style) in zip(spectra.items(), looks, strict=True):
    S = S[:8] if name.startswith("LoRA") else S
    ax.semilogy(np.arange(1, len(S) + 1), S, color=plot.COLOURS[colour], ls=style)
ax.text(62, spectra["everything"][60] * 0.45, "everything", ha="right")
ax.text(60, spectra["query and value, any rank"][60] * 1.6, "query and value, any rank",
        color=plot.ink(plot.COLOURS["green"]))
ax.text(28, spectra["by chance"][28] * 1.4, "by chance", color=plot.ink(plot.COLOURS["grey"]))
ax.text(10, 5, "LoRA: 8, the rest is 0", color=plot.COLOURS["blue"], va="center")
ax.set(xlabel="index of the singular value", ylabel="singular value of ΔW", title=path)
fig.set_label("Singular values of three changes, and of a random matrix as large as the first, on "
              "a logarithmic axis. Those of full fine-tuning fall without a gap, and faster than "
              "the random ones; LoRA's eight lie above these, the first three above all curves.")
fig

# %% [markdown]
# *What to see: full fine-tuning has no gap, but it is concentrated: 8 directions hold half,
# where chance puts a fifth. With query and value alone each change is larger: the rate was three
# times as large, and seven times with LoRA.*
#
# Move the handle: how many directions make the left picture look like $\Delta W$, on the right?
# (Every third row and column is drawn.)

# %%
sliders.rank(delta, beside=True)

# %% [markdown]
# *What to see: at rank 8, and at 12, the left is still far from the right.* So low rank is a
# restriction. Section 5 showed what it costs at two matrices, and that more matrices make up for it.
#
# Do two LoRAs learn the same? Their $A$ and $B$ do not tell. For every invertible $G$ $(r, r)$ the
# factors $B G$ and $G^{-1} A$ make the same change.
#
# ### {exercise}
#
# Two LoRAs for one weight are given, each by $A$ $(r, d_\text{in})$, $B$ $(d_\text{out}, r)$ and
# $\alpha$, in float32. Their ranks may differ. Return `True` if they make the same change of $W$,
# and `False` if not. Choose a number that decides.
# Rounding in float32 is far below a thousandth of a change. What really differs here differs by more
# than a hundredth of it. A change may be tiny, and it may be zero.

# %% exercise=lora.alike points=2 minutes=10 as=same_change
def lora_alike(A1, B1, alpha1, A2, B2, alpha2):
    """Do two LoRAs make the same change of a weight, up to rounding? A bool."""
    ### BEGIN SOLUTION
    first, second = alpha1 / len(A1) * B1 @ A1, alpha2 / len(A2) * B2 @ A2
    return bool(np.linalg.norm(first - second) <= 1e-3 * np.linalg.norm(first))
    ### END SOLUTION

# %% [markdown]
# Move the handle: noise in $B$ grows, and your function decides.

# %%
A, B = (p.data for p in (narrow.wrappers[path].A, narrow.wrappers[path].B))
noise = np.random.default_rng(0).standard_normal(B.shape).astype(np.float32)
some_of = lambda B: (np.arange(40), (2 * B @ A)[0, :40])
frames, told_same = {}, {}
for off in (1e-7, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.3):
    other = B * (1 + np.float32(off) * noise)
    frames[off] = {"with noise": some_of(other)}
    told_same[off] = ("by your function the same change" if same_change(A, B, 16, A, other, 16)
                      else "by your function another change")
slider("noise, as a share of each number of B", frames, captions=told_same,
       behind={"ΔW": some_of(B)}, xlabel="number of ΔW's first row", ylabel="its value")

# %% [markdown]
# Your function asks: does LoRA find the same change from another random start?
# If the changes are not the same, do they at least use the same directions? The paper measures the
# overlap of two subspaces. With orthonormal bases $U_1$ ($i$ columns) and $U_2$ ($j$ columns) it is
#
# $$\varphi = \frac{\lVert U_1^\top U_2 \rVert_F^2}{\min(i, j)} \in [0, 1] \tag{4}$$
#
# (*Orthonormal*: of length 1, and at right angles. $\lVert \cdot \rVert_F$ is the root of the sum
# of the squares.) $\varphi$ is 1 if one subspace lies in the other, about $\max(i,j)/d$ by chance.

# %%
again = learn(tp.LoRA(rank=8, alpha=16), rng=1, lr=2e-2)[0]
pair = [tuned.wrappers[path] for tuned in (narrow, again)]
print("the same change from two starts:", same_change(*(
    a for w in pair for a in (w.A.data, w.B.data, w.scale * len(w.A.data)))))
V1, V2 = (np.linalg.svd(w.delta())[2][:8] for w in pair)                 # top right vectors, rows
print(f"φ(8, 8) = {np.sum((V1 @ V2.T) ** 2) / 8:.2f}, by chance {8 / c.d_model:.2f}")   # (4)

# %%
show("subspace")

# %% [markdown]
# *What to see: two LoRAs share much more than chance would give, and their first directions most.
# They do not find the same eight.* The picture is of documentation, ranks 8 and 64.
#
# ## 8. What is α for?
#
# $BAx$ is a sum of $r$ terms, so it grows with the rank. LoRA divides by $r$.
# Rank-stabilised LoRA (Kalajdzievski, arXiv 2312.03732) argues that $1/r$ is too much:
#
# $$s = \frac{\alpha}{r} \quad\text{(LoRA)} \qquad\text{or}\qquad
# s = \frac{\alpha}{\sqrt r} \quad\text{(rank-stabilised)} \tag{5}$$
#
# Derive the size of the first change of $W$ in four lines.
#
# 1. At the start $B = 0$, and AdamW moves every number of $B$ by $\pm\eta$, whatever its
#    gradient.
# 2. So each number of $BA$ is a sum of $r$ terms $\pm\eta A_{kj}$ with mixed signs.
#    Such a sum grows like $\sqrt r$.
# 3. Times $s$, the first $\Delta W$ goes with $\sqrt r \cdot \alpha/r = \alpha/\sqrt r$.
#    With $s = \alpha/\sqrt r$ it does not depend on $r$.
# 4. This is nearly right. The signs are not quite independent, because each step goes downhill:
#    for one output, all $r$ terms have a part along the same gradient, one direction of $d$.
#    That multiplies the change by $\sqrt{1 + 2(r - 1)/(\pi d)}$ (given, not derived).
#
# How many times larger is the first change at $r = 1$ than at $r = 64$, with $\alpha/r$ and
# $d = 128$?

# %%
guess = tp.guess("07.first_change", 7, "times")

# %%
def first_change(r, stabilized):
    """Mean size of ΔW, ‖ΔW‖_F, after one step of AdamW from the start."""
    t = tp.attach(tp.load_pretrained(), LoRA(rank=r, rank_stabilized=stabilized), rng=0)
    tp.train(t, task, 1, batch_size=2, seed=0, progress=False)
    return np.mean([np.linalg.norm(w.delta()) for w in t.wrappers.values()])


ranks = [1, 2, 4, 8, 16, 32, 64]
changes = {stabilized: [first_change(r, stabilized) for r in ranks] for stabilized in (False, True)}
downhill = np.sqrt(1 + 2 * (np.array(ranks) - 1) / (np.pi * c.d_model))
for name, row in (("with α/√r", changes[True]), ("by line 4", changes[True][0] * downhill)):
    print(name, *(f"{y:.2f}" for y in row))
guess.beside(changes[False][0] / changes[False][-1])

# %% fold
fig, ax = plot.figure(height=2.8)
looks = (False, "blue", "o", "α/r"), (True, "vermillion", "s", "α/√r")
for stabilized, colour, marker, label in looks:
    y = changes[stabilized]
    ax.loglog(ranks, y, color=plot.COLOURS[colour], marker=marker, ls="--" if stabilized else "-")
    ax.text(70, y[-1], label, color=plot.COLOURS[colour], va="center")
plot.plain_log(ax.xaxis, ranks)
ax.set(xlabel="rank r", ylabel="‖ΔW‖ after one step", xlim=(0.9, 110), ylim=(0.05, 5))
plot.plain_log(ax.yaxis)
fig.set_label("The size of the first change against the rank, both axes logarithmic. With α/r it "
              "falls by a factor of seven from rank 1 to rank 64; with α/√r it is nearly level.")
fig

# %% [markdown]
# *What to see: with $\alpha/r$ the first change shrinks as the rank grows.
# With $\alpha/\sqrt r$ it nearly stays: it rises by what line 4 says.*
# So at a large rank LoRA with $\alpha/r$ learns slowly, unless its learning rate grows.
# In the study the rate may grow, because each scale has its own best one. There rank 64 ends at
# {study rank: 64, loss} nats per token with $16/r$, and at
# {study rank: 64/sqrt, loss} with $5.66/\sqrt r$, which is as much at $r = 8$. The difference is
# {study rank: 64 - 64/sqrt, loss}. Once each scale has its own best learning rate, it hardly matters
# which scale you take.
#
# ## 9. Merged away ◆
#
# An adapter stays in the model for ever. LoRA need not stay: by equation (1) one matrix of the
# frozen shape does what $W_0$, $A$ and $B$ do together.
# So a colleague's server holds one base in 16 bits and serves many tasks. For each request it adds
# the task's change to the base, answers, and subtracts the change again:

# %%
def served(W, tasks):
    """WRONG: the merged weight of each task, and what is left of the base."""
    merged = []
    for A, B, alpha in tasks:
        change = (alpha / len(A) * B @ A).astype(W.dtype)
        W = W + change
        merged.append(W)
        W = W - change
    return merged, W


W = base.get(path).weight.data.astype(np.float16)
both = [(w.A.data, w.B.data, w.scale * len(w.A.data)) for w in pair]
for n in (1, 10, 100, 1000):
    left = served(W, [both[i % 2] for i in range(n)])[1]
    lost = size(np.float32(left) - W) / size(np.float32(W))
    print(f"requests: {n:4}; {lost:.2%} of the base is lost; "
          f"{np.mean(left != W):.0%} of its numbers have changed")

# %% [markdown]
# Each sum is rounded to the nearest number of its type. A subtraction cannot bring back what was
# rounded away. In float32 and float64 it wears out later, and at once if a change is large.
#
# ### {exercise}
#
# `W0` is the base's weight, float32, and `tasks` a list of `(A, B, alpha)`, one for each request.
# A task may come several times. Return the list of the merged weights, as new arrays in float32.
# Each must be right to the last digits that float32 allows, however large the changes before it were.

# %% exercise=lora.swap points=2 minutes=8 as=my_swap
def lora_swap(W0, tasks):
    """The merged weight (d_out, d_in) of each task, in order."""

# %% [markdown]
# Put your matrices into a plain copy of the base.
# It has as many parameters as before, and no LoRA:

# %%
merged = tp.load_pretrained()
for p, w in narrow.wrappers.items():
    weight = merged.get(p).weight
    (mine_W,) = my_swap(weight.data, [(w.A.data, w.B.data, w.scale * len(w.A.data))])
    weight.assign(mine_W.astype(np.float32))
print(f"{merged.n_parameters():,} parameters; largest difference of the logits "
      f"{abs(merged(tokens).data - narrow(tokens).data).max():.0e}")

# %% [markdown]
# Compare with the package's merge, which also copies the bias and decodes quantized weights:

# %%
show(LowRankLinear.merge)

# %% [markdown]
# A merged LoRA takes no extra time when the model is used. Adapters and prefixes cannot do that.
# On a quantized base merging is another matter (lesson 13).
#
# ## 10. Bonus: DoRA, and two rates
#
# The points of this section are extra.
# DoRA (Liu et al., arXiv 2402.09353) takes a weight apart into *magnitude* and *direction*.
# LoRA changes the direction.
# A vector $m$, with one number for each output, is trained as the magnitude.
# With $w_o$ for row $o$ of $W_0 + \frac{\alpha}{r} BA$, output $o$ becomes
#
# $$h_o = m_o\, \frac{w_o \cdot x}{\lVert w_o \rVert}, \qquad
# m_o = \lVert w_o \rVert \text{ at the start} \tag{6}$$
#
# ### {exercise}
#
# Write equation (6) on Tensors, for all outputs; `m` is $(d_\text{out},)$.
# The lengths need $W_0 + \frac{\alpha}{r} BA$ itself, so here you may form it.
# `(V * V).sum(axis=1)` and `.sqrt()` work on Tensors.
# Let gradients flow through the lengths as well.
# (The paper's section 4.3 takes them as constants, to save memory.)

# %% exercise=lora.dora points=3 minutes=15 bonus=yes as=my_dora
def lora_dora(x, W0, A, B, alpha, m):
    """DoRA: each row of W0 + α/r B A brought to the length m: a Tensor (…, d_out)."""

# %% [markdown]
# Your DoRA in the model. It starts as the base, and it trains a few numbers more than LoRA:

# %%
def dora_layer(self, x):
    W0, alpha = self.base.weight, self.scale * len(self.A.data)
    return my_dora(x, W0, self.A, self.B, alpha, self.m) + self.base.bias


dora, lora = (tp.attach(tp.load_pretrained(), tp.LoRA(rank=8, alpha=16), rng=0) for _ in "12")
for w in dora.wrappers.values(): w.m = Parameter(np.linalg.norm(w.base.weight.data, axis=1))
with use(LoRALinear, forward=dora_layer):
    gap = abs(dora(tokens).data - plain).max()
    print(f"at the start, largest difference from the base: {gap:.0e}")
    with_dora = tp.train(dora, task, 15, batch_size=2, seed=0, progress=False).loss
with_lora = tp.train(lora, task, 15, batch_size=2, seed=0, progress=False).loss    # the same start
print(f"after 15 steps, mean of the last five losses: DoRA {np.mean(with_dora[-5:]):.3f}, "
      f"LoRA {np.mean(with_lora[-5:]):.3f}")

# %% [markdown]
# ### {exercise} · Bonus: LoRA+ (open, 2 extra points, 15 minutes)
#
# LoRA+ (Hayou et al., arXiv 2402.12354) gives $B$ a larger learning rate than $A$.
# `tp.train(…, lr=…, rates={"B": 4})` multiplies $B$'s rate by 4. Does it pay here?
# Try the ratios 1, 4 and 16, each with at least three values of `lr`.
#
# *Rubric: 1 point for a table of validation losses in which each ratio has its own best `lr`; 1
# for a conclusion that compares the ratios at their best rates, and not at one rate.*

# %% [answer]
# The best `lr` falls as the ratio grows: at one `lr` a larger ratio is simply a larger rate.
# At their best rates the ratios differ by a few hundredths of a nat after 60 steps of rank 8, and
# the ratio 1 is not behind. (One seed; an answer with several seeds is better.)
# The paper's argument is about very wide models, in which $B$ moves too slowly at the rate that
# suits $A$. This model is 128 wide.

# %% [markdown]
# ### {exercise} · Where to spend a budget (open, 4 points, 35 minutes)
#
# The paper (table 5) finds that a budget is better spent on several matrices at a low rank than
# on one matrix at a high rank. Choose a budget and spread it in three ways: `targets=("query",)`,
# `("query", "value")`, `"all"`. All six matrices of one rank cost nine times a query's: ranks 18, 9
# and 2, for example, cost 23,040 each. Find out whether the paper's finding holds here.
# Mind that each way may need its own learning rate.
#
# *Rubric: 1 point for budgets that are equal by count; 1 for learning rates that are fair and
# chosen on validation text; 1 for three seeds with their spread; 1 for a conclusion that the
# numbers carry, with a comparison to the paper's table.*

# %% [answer]
# *Budget.*
# On a $d \times d$ matrix rank $r$ costs $2 r d$ numbers; on `mlp.up` and `mlp.down`, $5 r d$.
# In five blocks of $d = 128$ the query alone at rank 36 takes 46,080 numbers.
# Query and value at rank 18 take as many.
# All six at rank 4 take 46,080, too: $4 \cdot 2 + 2 \cdot 5 = 18$ times $r d$.
#
# *Rates.* Each way has its own rate, the best of at least three on validation text.
# Comparing all at one rate measures the rate. *Conclusion:* as in the paper's table, more
# matrices at a lower rank are better, and the query alone is worst.
# Part of the gap is the MLP, which the paper's table does not adapt.
# {claim With the same number of parameters}
# {claim LoRA on the attention alone} {claim LoRA on the MLP alone}

# %% [markdown]
# ## Recall
#
# <details><summary>1. Why does B start at zero and A not?</summary>
# With B = 0 the model starts as the base, exactly.
# If A were zero, too, both gradients would be zero, because each contains the other factor, and
# nothing would ever move.
# </details>
#
# <details><summary>2. Which memory does LoRA save in training, and which not?</summary>
# It saves the gradients and the optimizer's state of the frozen weights.
# It does not save the weights themselves (QLoRA does, in lesson 13), and it saves only a part of
# the activations.
# </details>
#
# <details><summary>3. Dropout sets random numbers to zero in training. LoRA puts it on x before A.
# Why is there nothing to correct when LoRA is merged?</summary> Dropout is off when
# the model is used, so that the narrow way is linear.
# Merging needs no more.
# </details>
#
# <details><summary>4. You double α and halve the learning rate of A and B. Is that the same
# training?</summary> Not with AdamW. Its steps do not depend on the size of the gradients.
# Doubling s doubles the change of W by a step, and halving the rate halves it again.
# But A and B then move half as far from their start, so the part of the change that is a product
# of both movements is smaller.
# </details>
#
# <details><summary>5. Why can LoRA be merged, and a sequential adapter not?</summary>
# LoRA is linear, so it is a change of the matrix beside it.
# The adapter's nonlinearity cannot be folded into a matrix.
# </details>
#
# ## Where the paper says this
#
# arXiv 2106.09685: the sum $W_0 x + BAx$ is its equation 3 in section 4.1, with the start of $A$
# and $B$ and with $\alpha$. The overlap is its equation 4 in section 7.2.
# Table 5 (WikiSQL, a benchmark; GPT-3, 18 M trained): one matrix with $r = 8$: 70.4
# (query), 73.0 (value); query and value with $r = 4$: 73.7; all four with $r = 2$: 73.7.
# Table 6, query and value: $r = 1$ gives 73.4 and $r = 64$ gives 73.5.
#
# ## Where implementations differ
#
# * $A$ starts Gaussian in the paper. In the authors' code, in PEFT and here it starts
#   Kaiming-uniform, with equal chances in a range that narrows as $d_\text{in}$ grows
#   (`init="gaussian"` for the other).
# * In GPT-2, query, key and value are one matrix. PEFT adapts it with *one* shared $A$.
#   The authors' code keeps a pair for each, as here.
# * Some programs call the factor $s$ itself "alpha" or "scale": 16 there multiplies by 16.
# * The defaults here, $r = 8$ and $\alpha = 16$ ($s = 2$), are the paper's for RoBERTa large.
#   For GPT-2 it takes $r = 4$, $\alpha = 32$ ($s = 8$). PEFT's defaults are 8 and 8 ($s = 1$).
#   Always compare $s$.
# * Learning rates belong to a width: `train` multiplies the defaults by √(128/d).
# * DoRA's paper has one magnitude for each column of its $W$.
#   PEFT, like equation (6), has one per output.
#
# ## The real call
#
# The same with Hugging Face's PEFT, for a `model` of transformers and `batches` with labels:
#
# ```python
# import torch
# from peft import LoraConfig, get_peft_model
#
# config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
# tuned = get_peft_model(model, config)            # freezes everything else
# tuned.print_trainable_parameters()
# optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=2e-4)
# for batch in batches:
#     loss = tuned(**batch).loss
#     loss.backward()
#     optimizer.step()
#     optimizer.zero_grad()
# tuned.save_pretrained("adapter")                 # A and B alone, a small file
# merged = tuned.merge_and_unload()                # a plain model again
# ```
#
# `target_modules="all-linear"` is what helped most in section 5.
#
# **Now you can** write LoRA, derive its gradients, find why one does not learn, and merge it. Next:
# [08 · AdaLoRA](08_adalora.ipynb) gives each matrix its own rank. Lesson 17 changes the rest.
