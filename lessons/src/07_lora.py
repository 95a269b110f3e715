# %% [markdown]
# # 07 · LoRA
#
# **What you will do.** Write the change of a weight matrix as a product of two thin ones: forward, backward by hand, and merged
# away at the end. You will see why one factor starts at zero, what $\alpha$ is for, how much rank a change really has, and what
# LoRA saves and what it does not.
#
# **What you need.** Lesson 02 (the model) and lesson 03 (what full fine-tuning costs).
#
# **Time.** 60 minutes; every cell together runs in well under a minute.

# %%
import numpy as np

import tinypeft as tp
from tinypeft import functional as F
from tinypeft.course import show
from tinypeft.peft.lora import LoRA, LoRALinear, LowRankLinear
from tinypeft.study import plot

model = tp.load_pretrained()
task = tp.tasks.domain(model, context=128, held_out=8192)        # Matplotlib's documentation: new to the model
base_loss = tp.evaluate(model, task)["loss"]
print(f"{model.n_parameters():,} parameters; frozen, it has {base_loss:.3f} nats/token on {task.name}")

# %% [markdown]
# ## The idea
#
# Full fine-tuning turns each weight matrix $W_0$ into $W_0 + \Delta W$. LoRA (Hu et al., arXiv 2106.09685) bets that $\Delta W$ does not need
# all the freedom it has: that it may be written with *low rank*, as a product of a tall and a wide matrix. Their equation 3:
#
# $$h = W_0 x + \Delta W x = W_0 x + \frac{\alpha}{r}\, B A x, \qquad B \in \mathbb{R}^{d_\text{out} \times r},\ A \in \mathbb{R}^{r \times d_\text{in}} \tag{1}$$
#
# $W_0$ is frozen, $A$ and $B$ are trained. In the package it is two small linear maps beside the frozen one, and $\Delta W$ is
# never formed:

# %%
show(LoRALinear.forward)

# %% [markdown]
# (The survey that this course follows writes $W + AB$ with $A$ of $m \times k$: the letters are exchanged. Lesson 00 has the
# table.)
#
# ### {exercise}
#
# Write equation (1) on Tensors: `x` $(\dots, d_\text{in})$, `W` $(d_\text{out}, d_\text{in})$, `A` $(r, d_\text{in})$, `B` $(d_\text{out}, r)$, and the number
# `alpha`. Rows of `x` are inputs, so that $W x$ for every row is `x @ W.T`, or `F.linear(x, W)`. Do not form $BA$: it would
# cost what LoRA is there to save.

# %% exercise=lora.forward points=3 minutes=10
def lora_forward(x, W, A, B, alpha):
    """h = W x + α/r B A x for each row of x: a Tensor (…, d_out)."""
    ### BEGIN SOLUTION
    r = A.shape[0]
    return F.linear(x, W) + F.linear(F.linear(x, A), B) * (alpha / r)
    ### END SOLUTION

# %%
result = tp.check("lora.forward", lora_forward)
result

# %% [markdown]
# ## What it saves
#
# Instead of $d_\text{out}\, d_\text{in}$ numbers, $r(d_\text{in} + d_\text{out})$ train. That is also what is stored per task, and, times two, what AdamW
# remembers:

# %%
tuned = tp.attach(model, tp.LoRA(rank=8, alpha=16), rng=0)
d = model.config.d_model
print(f"by hand: {model.config.n_layers} layers × 2 matrices × 8 × ({d} + {d}) = {model.config.n_layers * 2 * 8 * (d + d):,}")
tuned.summary()

# %% [markdown]
# What it does *not* save is the forward pass, nor the way back through the frozen layers: the gradient has to pass through
# all of them to reach the $A$ and $B$ of the first. Only the products $dW = dy^\top x$ of frozen weights fall away, one third of the
# multiplications. To see which gradients are left, take the derivative by hand.
#
# ## Backward by hand
#
# Let $s = \alpha/r$, $X$ be the inputs as rows $(N, d_\text{in})$, and $dH$ the gradient of the loss with respect to $H = X W_0^\top + s\,(X A^\top) B^\top$. Then
#
# $$dB = s\; dH^\top (X A^\top), \qquad dA = s\; (dH\, B)^\top X, \qquad dX = dH\, W_0 + s\,(dH\, B)\, A \tag{2}$$
#
# All shapes are small: $X A^\top$ and $dH\,B$ are $(N, r)$.
#
# ### {exercise}
#
# Return $(dA, dB, dX)$ of equation (2) for NumPy arrays. (The check compares with what the engine's own backward gives, not with
# equation (2).)

# %% exercise=lora.backward points=4 minutes=15
def lora_backward(x, W, A, B, alpha, dh):
    """(dA, dB, dx): gradients of the loss, given dh = ∂L/∂h (N, d_out)."""
    ### BEGIN SOLUTION
    s = alpha / len(A)
    dhB = dh @ B                                                                     # (N, r)
    return s * dhB.T @ x, s * dh.T @ (x @ A.T), dh @ W + s * dhB @ A
    ### END SOLUTION

# %%
result = tp.check("lora.backward", lora_backward)
result

# %% [markdown]
# Look at $dA$ in equation (2): it contains $B$. LoRA starts with $B = 0$, so that a fresh LoRA *is* the model it is put on, and therefore **in the first step only
# $B$ moves**. (Were both zero, nothing would ever move. Were neither, the model would start broken.)

# %%
tokens, targets = task.batch("train", 4, np.random.default_rng(0))
layer = tuned.wrappers["blocks.0.attention.query"]
with tuned.disabled(): plain = model(tokens).data
print("a fresh LoRA changes nothing, bit for bit:", np.array_equal(plain, tuned(tokens).data))
F.cross_entropy(tuned(tokens), targets).backward()
print(f"first step: ‖dA‖ = {np.linalg.norm(layer.A.grad):.1e}, ‖dB‖ = {np.linalg.norm(layer.B.grad):.1e}, dW₀ = {layer.base.weight.grad}")
for p in tuned.trainable_parameters(): p.grad = None

# %% [markdown]
# ## Train it
#
# Beside full fine-tuning, each at its own learning rate. LoRA's is ten times as large: a step of $A$ and $B$ moves $W$ by a product of small
# numbers.

# %%
def learn(method, steps=80):
    """A fresh copy of the base with `method`, trained; its losses, and the test loss."""
    tuned = tp.attach(tp.load_pretrained(), method, rng=0)
    history = tp.train(tuned, task, steps, batch_size=4, seed=0, progress=False)
    return tuned, np.array(history.loss), tp.evaluate(tuned, task)["loss"]


runs = {"full": learn(tp.FullFineTuning()), "lora": learn(tp.LoRA(rank=8, alpha=16))}

# %%
fig, ax = plot.figure()
for i, (name, (t, losses, test)) in enumerate(runs.items()):
    style = {**plot.mark(name), "marker": "", "ls": ("-", "--")[i]}
    y = np.convolve(losses, np.ones(10) / 10, "valid")
    ax.plot(np.arange(10, len(losses) + 1), y, **style)
    ax.plot([43, 46], [3.05 - 0.045 * i] * 2, **style)
    ax.text(46.6, 3.05 - 0.045 * i, f"{name}: {t.summary().trained:,} trained, test {test:.3f}", va="center")
ax.set(xlabel="step (4 × 128 tokens each)", ylabel="training loss, mean of 10 steps (nats/token)", ylim=(None, 3.09))
fig

# %% [markdown]
# *What to see: LoRA follows full fine-tuning with less than two per cent of its parameters, and stays behind it.* The paper's claim is that it does not stay behind,
# on models a thousand times as large that have read far more: there, adapting needs little that is new. Here the base is small, has seen little, and Matplotlib's
# documentation really is news to it. The committed study has more steps, all ranks and five seeds:

# %%
show("rank")

# %% [markdown]
# *What to see: whether more rank helps, and how fast that ends.* The paper's table 6 is flat from $r = 1$ on.
#
# ## How much rank does a change have?
#
# Nothing forced full fine-tuning to low rank. Did it find a change of low rank all the same? Take the singular values of $\Delta W$ for both: the number of large
# ones is the rank that matters.

# %%
path = "blocks.2.attention.value"
full = runs["full"][0]
delta_full = full.merge().get(path).weight.data - model.get(path).base.weight.data
U, S_full, _ = np.linalg.svd(delta_full)
_, S_lora, _ = runs["lora"][0].wrappers[path].svd()
fig, ax = plot.figure()
ax.semilogy(np.arange(1, len(S_full) + 1), S_full, **{**plot.mark("full"), "marker": "."})
ax.semilogy(np.arange(1, 9), S_lora, **plot.mark("lora"))
ax.text(60, S_full[40] * 1.3, "full fine-tuning: all 128", color=plot.COLOURS["black"])
ax.text(9.5, S_lora[-1], "LoRA: 8, the rest is 0", color=plot.COLOURS["blue"], va="center")
ax.set(xlabel="index", ylabel="singular value of ΔW", title=path)
fig

# %% [markdown]
# *What to see: full fine-tuning's change has a few large singular values and a long tail of small ones; LoRA has nothing behind the eighth, and makes its few larger.*
#
# Do two LoRAs of different rank find the same directions? The paper measures that by the overlap of two subspaces. With orthonormal bases $U_1$ ($i$ columns) and $U_2$ ($j$ columns),
#
# $$\varphi = \frac{\lVert U_1^\top U_2 \rVert_F^2}{\min(i, j)} \in [0, 1] \tag{3}$$
#
# which is 1 if one subspace lies within the other and about $\max(i,j)/d$ for random ones.
#
# ### {exercise}
#
# `A1` $(r_1, d)$ and `A2` $(r_2, d)$ are two LoRAs' matrices. Take the top `i` and top `j` *right* singular vectors of each (`np.linalg.svd(A)` returns $U, S, V^\top$; the rows of
# $V^\top$ are the right singular vectors, largest singular value first) and return $\varphi$.

# %% exercise=lora.overlap points=3 minutes=12
def lora_overlap(A1, A2, i, j):
    """φ of the spaces of the top i and top j right singular vectors, a number in [0, 1]."""
    ### BEGIN SOLUTION
    V1, V2 = np.linalg.svd(A1)[2][:i], np.linalg.svd(A2)[2][:j]                      # (i, d), (j, d)
    return np.sum((V1 @ V2.T) ** 2) / min(i, j)
    ### END SOLUTION

# %%
result = tp.check("lora.overlap", lora_overlap)
result

# %%
overlap = result.function
A1 = runs["lora"][0].wrappers[path].A.data
A2 = np.random.default_rng(1).standard_normal((8, 128))
print(f"with itself {overlap(A1, A1, 4, 8):.2f}, with random directions {overlap(A1, A2, 4, 8):.2f} (chance: {8 / 128:.2f})")

# %% [markdown]
# ## What is α for?
#
# $B A x$ is a sum of $r$ terms. With a fixed $\alpha$, dividing by $r$ keeps the size of a step about the same when the rank is changed, so that the learning rate need not be tuned
# again. Rank-stabilised LoRA (Kalajdzievski, arXiv 2312.03732) argues that $1/r$ is too much and takes
#
# $$s = \frac{\alpha}{r} \quad\text{(LoRA)} \qquad\text{or}\qquad s = \frac{\alpha}{\sqrt r} \quad\text{(rank-stabilised)} \tag{4}$$

# %%
show(LoRA.scale)

# %%
def first_update(r, stabilized):
    """Mean change of the weights, ‖ΔW‖_F, by one step of AdamW from the start."""
    t = tp.attach(tp.load_pretrained(), tp.LoRA(rank=r, rank_stabilized=stabilized), rng=0)
    tp.train(t, task, 1, batch_size=2, seed=0, progress=False)
    return np.mean([np.linalg.norm(w.delta()) for w in t.wrappers.values()])


ranks = [1, 2, 4, 8, 16, 32, 64]
fig, ax = plot.figure()
for stabilized, colour, marker, label in ((False, "blue", "o", "α/r"), (True, "vermillion", "s", "α/√r")):
    y = [first_update(r, stabilized) for r in ranks]
    ax.loglog(ranks, y, color=plot.COLOURS[colour], marker=marker, ls="-" if stabilized else "--")
    ax.text(70, y[-1], label, color=plot.COLOURS[colour], va="center")
ax.set(xlabel="rank r", ylabel="‖ΔW‖ after one step", xticks=ranks, xticklabels=ranks, xlim=(0.9, 110))
ax.minorticks_off()
fig

# %% [markdown]
# *What to see: with $\alpha/r$ the first update shrinks as the rank grows (AdamW moves each entry equally far, and $r$ terms with random signs add up like $\sqrt r$); with
# $\alpha/\sqrt r$ it does not.* So at large ranks, LoRA learns slowly unless its learning rate grows.
#
# ## Merged away
#
# After training, $W = W_0 + s B A$ is an ordinary matrix again: no additional latency, which no adapter or prefix can say of itself.
#
# $$W = W_0 + \frac{\alpha}{r} B A \tag{5}$$

# %%
show(LowRankLinear.merge)

# %% [markdown]
# ### {exercise}
#
# Return the merged matrix of equation (5) for arrays. Leave `W` as it is: the base serves other tasks, too.

# %% exercise=lora.merge points=2 minutes=5
def lora_merge(W, A, B, alpha):
    """W + α/r B A, a new array (d_out, d_in)."""
    ### BEGIN SOLUTION
    return W + alpha / len(A) * B @ A
    ### END SOLUTION

# %%
result = tp.check("lora.merge", lora_merge)
result

# %%
trained = runs["lora"][0]
merged = trained.merge()
print(type(merged).__name__, "with", f"{merged.n_parameters():,}", "parameters; largest difference of logits:",
      f"{abs(merged(tokens).data - trained(tokens).data).max():.1e}")

# %% [markdown]
# Merged and unmerged agree up to rounding. On a base that was quantized, merging is another matter (lesson 13).
#
# ### {exercise} · Where to spend a budget (open, 4 points, 25 minutes)
#
# The paper (table 5) finds that a budget is better spent on several matrices at low rank than on one at high rank. Choose a budget, spread it in three ways (`targets=("query",)`, `("query", "value")`, `"all"`), and find out whether it
# holds here. Mind that each way may need its own learning rate.
#
# *Rubric: 1 point for budgets that are equal by count; 1 for learning rates that are fair and chosen on validation text; 1 for three seeds with their spread; 1 for a conclusion that the
# numbers carry, with a comparison to the paper's table.*

# %% [answer]
# *Budget.* On a $d \times d$ matrix rank $r$ costs $2 r d$ numbers; on `mlp.up` and `mlp.down`, $5 r d$. In five blocks of
# $d = 128$ the query alone at rank 36 takes 46,080 numbers, query and value at rank 18 as many, and all six at rank 4
# takes 46,080 too: $4 \cdot 2 + 2 \cdot 5 = 18$ times $r d$.
#
# *Rates.* Each way has its own rate, the best of at least three on validation text. Comparing all at one rate measures the
# rate. *Conclusion:* as in the paper's table, more matrices at a lower rank are better, and the query alone is worst. Part of
# the gap is the MLP, which the paper's table does not adapt. {claim With the same number of parameters}

# %% [markdown]
# ## Recall
#
# <details><summary>1. Why does B start at zero and A not?</summary>With B = 0 the model starts as the base, exactly. If A were zero, too, both gradients would be zero (each contains the other factor) and nothing would ever move.</details>
#
# <details><summary>2. Which memory does LoRA save in training, and which not?</summary>Gradients and optimizer state of the frozen weights. Not the weights themselves (that is QLoRA's part), and only little of the activations.</details>
#
# <details><summary>3. Dropout is put on x before A. Why not on B A x?</summary>Either would be possible; on the input, every rank-one part loses the same inputs. In evaluation it is off, so merging needs no correction.</details>
#
# <details><summary>4. You double α and halve the learning rate of A and B. Is that the same training?</summary>Not with AdamW: its steps do not depend on the size of gradients, so doubling s doubles the change of W by a step while weights A, B move the same; halving
# the rate restores roughly the size, but the product's quadratic part differs, and A's share against B's start does, too.</details>
#
# <details><summary>5. Why is a merged LoRA faster than a merged adapter?</summary>There is no merged adapter: its nonlinearity cannot be folded into a matrix.</details>
#
# ## Where the paper says this
#
# arXiv 2106.09685: equation (1) is its equation 3 in section 4.1, with the start of $A$ and $B$ and $\alpha$; the overlap is equation 4 in section 7.2. Table 5 (WikiSQL, GPT-3, 18 M trained): one matrix with $r = 8$: 70.4 (query), 73.0 (value); query and value with
# $r = 4$: 73.7; all four with $r = 2$: 73.7. Table 6, query and value: $r = 1$ gives 73.4 and $r = 64$ gives 73.5.
#
# ## Where implementations differ
#
# * $A$ starts Gaussian in the paper, Kaiming-uniform in the authors' code and in PEFT (and here; `init="gaussian"`).
# * On GPT-2, whose query, key and value are one matrix, PEFT adapts the fused one with *one* shared $A$; the authors' code keeps a pair for each, as here.
# * Some programs call the factor $s$ itself "alpha" or "scale": 16 there is a multiplication by 16.
# * The defaults here, $r = 8$ and $\alpha = 16$ ($s = 2$), are the paper's for RoBERTa large. For GPT-2 it takes $r = 4$, $\alpha = 32$ ($s = 8$); PEFT's defaults
#   are 8 and 8 ($s = 1$). Always compare $s$.
# * The learning rates here were chosen for a model 128 wide; `train` multiplies them by √(128/d) on another. The paper trains GPT-2 medium,
#   1,024 wide, at 0.0002 and for longer. `tp.find_rate` measures which rate suits a model.
#
# **Now you can** write LoRA, its gradient and its end. Next: [08 · AdaLoRA](08_adalora.ipynb) gives each matrix a rank of its own.
