# %% [markdown]
# # 09 · DyLoRA
#
# **What you will do.** Train one LoRA that works at every rank. First you will cut an ordinary LoRA down and watch it fail; then write
# the forward pass that learns at a rank drawn anew in every step, see why "no gradient" does not mean "does not move", and choose a
# rank after training instead of before.
#
# **What you need.** Lesson 07 (LoRA).
#
# **Time.** 50 minutes; every cell together runs in well under a minute.

# %%
import copy

import numpy as np

import tinypeft as tp
from tinypeft import functional as F
from tinypeft.course import show
from tinypeft.peft.dylora import DyLoRALinear
from tinypeft.study import plot

model = tp.load_pretrained()
task = tp.tasks.domain(model, context=128, held_out=4096)        # Matplotlib's documentation: new to the model
base_loss = tp.evaluate(model, task)["loss"]
STEPS, R, ALPHA = 80, 8, 16.0
print(f"frozen base on {task.name}: {base_loss:.3f} nats/token")

# %% [markdown]
# ## Cut a LoRA, and it collapses
#
# LoRA's rank is chosen before training. To know which one was right you train again, with another. Why not train at the
# largest rank, and take the first rows of $A$ and columns of $B$ afterwards? Write $A_{\downarrow b}$ for the first $b$ rows of $A$
# and $B_{\downarrow b}$ for the first $b$ columns of $B$; the change of the weights is then
#
# $$\Delta W_b = \frac{\alpha}{b}\, B_{\downarrow b}\, A_{\downarrow b} \tag{1}$$
#
# ### {exercise}
#
# Return $\Delta W_b$ of equation (1) for arrays `A` $(R, d_\text{in})$ and `B` $(d_\text{out}, R)$.

# %% exercise=dylora.truncate points=2 minutes=5
def dylora_truncate(A, B, b, alpha):
    """ΔW at rank b, an array (d_out, d_in)."""
    ### BEGIN SOLUTION
    return alpha / b * B[:, :b] @ A[:b]
    ### END SOLUTION

# %%
result = tp.check("dylora.truncate", dylora_truncate)
result

# %%
truncate = result.function
lora = tp.attach(copy.deepcopy(model), tp.LoRA(rank=R, alpha=ALPHA), rng=0)
tp.train(lora, task, STEPS, batch_size=4, seed=0, progress=False)


def loss_at(b, alpha):
    """Test loss of the trained LoRA, cut to rank b and merged."""
    plain = copy.deepcopy(model)
    for path, layer in lora.wrappers.items():
        weight = plain.get(path).weight
        weight.data = weight.data + truncate(layer.A.data, layer.B.data, b, alpha).astype(np.float32)
    return tp.evaluate(plain, task)["loss"]


ranks = [1, 2, 3, 4, 6, 8]
cut = {"α/b": [loss_at(b, ALPHA) for b in ranks], "α/R": [loss_at(b, ALPHA * b / R) for b in ranks]}

# %% [markdown]
# Two ways to cut: rescaling to $\alpha/b$, or keeping the factor $\alpha/R$ that the columns were trained with. (Papers that report a collapse
# should say which; few do.) Hold the numbers; the picture comes below. None of LoRA's rows is more important than another, as the
# next cell shows: each rank-one part $B_{:,i} A_{i,:}$ has about the same size, so taking any of them away loses its share.

# %%
sizes = lambda tuned: np.mean([np.linalg.norm(w.B.data, axis=0) * np.linalg.norm(w.A.data, axis=1)
                               for w in tuned.wrappers.values()], axis=0)
print("mean ‖B[:, i]‖ ‖A[i]‖ for i = 0 … 7:", sizes(lora).round(2))

# %% [markdown]
# ## Draw the rank
#
# DyLoRA (Valipour et al., arXiv 2210.07558) makes the order matter. In every training step it draws a rank
#
# $$b \sim p_B \quad \text{on } \{1, \dots, R\}, \text{ one for all layers} \tag{2}$$
#
# and does the whole step, forward and backward, at that rank:
#
# $$h = W_0 x + \frac{\alpha}{b}\, B_{\downarrow b}\, A_{\downarrow b}\, x \tag{3}$$
#
# The first row takes part in every step, the last in one of $R$. So the first rows must carry what matters most: it is the idea of
# nested dropout, on ranks. Instead of cutting matrices to a new size in each step, one can leave them alone and put a mask between
# them, $m = \frac{\alpha}{b}(1, \dots, 1, 0, \dots, 0)$ with $b$ ones:
#
# $$h = W_0 x + B\,(m \odot A x) \tag{4}$$

# %%
show(DyLoRALinear.forward)

# %% [markdown]
# ### {exercise}
#
# Write equation (3) or (4), whichever you like: all arguments but `b` and `alpha` are Tensors, `x` $(\dots, d_\text{in})$, `W` $(d_\text{out}, d_\text{in})$.
# Gradients must reach `A` and `B`, and must be zero behind rank $b$.

# %% exercise=dylora.forward points=3 minutes=10
def dylora_forward(x, W, A, B, b, alpha):
    """h = W x + α/b B↓b A↓b x, a Tensor (…, d_out)."""
    ### BEGIN SOLUTION
    m = alpha / b * (np.arange(A.shape[0]) < b)                                      # (R,)
    return F.linear(x, W) + F.linear(F.linear(x, A) * m.astype(x.dtype), B)
    ### END SOLUTION

# %%
result = tp.check("dylora.forward", dylora_forward)
result

# %% [markdown]
# ## Zero gradient is not zero motion
#
# Rows behind the mask get the gradient zero. Do they stay where they are? Take two numbers, give the second a gradient in the first step only,
# and let AdamW make ten steps.

# %%
w = tp.Parameter(np.ones(2, np.float32))
optimizer = tp.optim.AdamW([w], lr=0.01, weight_decay=0.0)
path = [w.data.copy()]
for step in range(10):
    w.grad = np.array([1.0, 1.0 if step == 0 else 0.0], np.float32)
    optimizer.step()
    path.append(w.data.copy())
print("with a gradient in every step:     ", np.array(path)[:, 0].round(3))
print("with a gradient in the first alone:", np.array(path)[:, 1].round(3))

# %% [markdown]
# The moments go on pushing. If weight decay were on, it would pull besides. For DyLoRA that means: a step drawn at rank 2 would move rows
# that it never saw, by what other ranks wanted some steps ago. So in the package the mask is also the parameters' `update_mask`, and the optimizer
# leaves alone what is outside it:

# %%
show(DyLoRALinear.start_step)

# %% [markdown]
# ## Frozen: only the last row
#
# The paper's second version protects what was learned: in a step at rank $b$, rows $1 \dots b-1$ serve as constants, and only row $b$ of $A$ and column
# $b$ of $B$ are trained. (Ranks are counted from 1 in the paper, rows from 0 in NumPy.)
#
# ### {exercise}
#
# Given `A` $(R, d_\text{in})$, `B` $(d_\text{out}, R)$ and their gradients at rank `b` (arrays), return the new `(A, B)` after one step of plain gradient descent with the
# rate `lr` that trains only the $b$-th row and column. Leave the arguments as they were.

# %% exercise=dylora.frozen_step points=3 minutes=12
def dylora_frozen_step(A, B, dA, dB, b, lr):
    """(new A, new B): only row b of A and column b of B have moved, counted from 1."""
    ### BEGIN SOLUTION
    A, B = A.copy(), B.copy()
    A[b - 1] -= lr * dA[b - 1]
    B[:, b - 1] -= lr * dB[:, b - 1]
    return A, B
    ### END SOLUTION

# %%
result = tp.check("dylora.frozen_step", dylora_frozen_step)
result

# %% [markdown]
# ## One training, every rank
#
# The same number of steps as the LoRA above, the same data. `search_rank` then reads the test text once and measures every rank on each batch.

# %%
dylora = tp.attach(copy.deepcopy(model), tp.DyLoRA(rank=R, alpha=ALPHA), rng=0)
tp.train(dylora, task, STEPS, batch_size=4, seed=0, progress=False)
best, by_rank = tp.search_rank(dylora, task, "test")
flat = [by_rank[b]["loss"] for b in range(1, R + 1)]

# %%
fig, ax = plot.figure()
lines = [("LoRA, cut, scaled by α/b", ranks, cut["α/b"], "vermillion", "s", "-"), ("LoRA, cut, scale α/R as trained", ranks, cut["α/R"], "orange", "^", "--"),
         ("DyLoRA", range(1, R + 1), flat, "blue", "D", "-")]
top = max(cut["α/b"])
for i, (label, xs, ys, colour, marker, ls) in enumerate(lines):
    style = {"color": plot.COLOURS[colour], "marker": marker, "ls": ls}
    ax.plot(xs, ys, **style)
    ax.plot([4.4, 4.8], [top - 0.12 * i] * 2, **style)
    ax.text(5, top - 0.12 * i, label, va="center", color="black")
ax.axhline(base_loss, color=plot.COLOURS["grey"], ls=":", lw=1)
ax.text(R, base_loss, "frozen base", color="#606060", ha="right", va="bottom")
ax.set(xlabel="rank b at inference", ylabel="test loss (nats/token)")
fig

# %% [markdown]
# *What to see: cut to one row and rescaled to $\alpha/b$, LoRA is far worse than no LoRA at all, and DyLoRA improves on the base at every rank.* But look at the
# third curve, which papers seldom draw: cut and **not** rescaled, LoRA degrades gently, and at this size is no worse than DyLoRA. Most of the
# "collapse" is the scale: one eighth of what was learned, multiplied by eight.
#
# What it pays is at the right end: at full rank it has seen each row in only a part of the steps. The ordering is in the parameters:

# %%
fig, ax = plot.figure()
for name, tuned, colour, marker in (("LoRA", lora, "vermillion", "s"), ("DyLoRA", dylora, "blue", "D")):
    ax.plot(np.arange(1, R + 1), sizes(tuned), color=plot.COLOURS[colour], marker=marker)
    ax.text(R + 0.12, sizes(tuned)[-1], name, color=plot.COLOURS[colour], va="center")
ax.set(xlabel="row i of A, column i of B", ylabel="mean size ‖B[:, i]‖ ‖A[i]‖", xlim=(0.7, R + 1), ylim=(0, None))
fig

# %% [markdown]
# *What to see: LoRA's parts are alike; DyLoRA's last ones, which only the largest ranks train, are small.* The committed study does it at rank 16, with more
# steps and five seeds, beside a LoRA trained for each rank by itself:

# %%
show("dylora")

# %% [markdown]
# *What to see: the distance between DyLoRA and the LoRA that was trained for a rank is the price of not having to choose; the number of trainings is the gain.*
#
# ### {exercise}
#
# A search after training. `losses` is a dict rank → loss on validation text. Return the *smallest* rank whose loss is at most `tolerance` above the
# lowest of all.

# %% exercise=dylora.search points=2 minutes=8
def dylora_search(losses, tolerance):
    """The smallest rank within `tolerance` (nats) of the lowest loss."""
    ### BEGIN SOLUTION
    lowest = min(losses.values())
    return min(b for b, loss in losses.items() if loss <= lowest + tolerance)
    ### END SOLUTION

# %%
result = tp.check("dylora.search", dylora_search)
result

# %%
search = result.function
losses = {b: m["loss"] for b, m in by_rank.items()}
for tolerance in (0.0, 0.02, 0.05):
    print(f"within {tolerance:.2f} nats/token of the lowest: rank {search(losses, tolerance)}")

# %% [markdown]
# Choosing by the *test* text, as this cell does for brevity, is a sin: the number you then report is too good. `tp.search_rank(dylora, task)` takes the validation split unless told otherwise.
#
# ### {exercise} · Which distribution? (open, 4 points, 20 minutes)
#
# $p_B$ may be uniform or geometric (`DyLoRA(distribution="geometric", p=…)`), which prefers small ranks. Predict what the curve over ranks does, then measure it, with `frozen=True` as a
# second question if you have time.
#
# *Rubric: 1 point for a prediction with a reason; 1 for changing one thing at a time; 1 for at least three seeds with their spread; 1 for naming what the
# distribution is worth at the rank you would really use.*

# %% [answer]
# *Prediction.* Row $i$ is trained when $b \ge i$. A geometric $p_B$ draws small ranks more often, so the first rows get more
# steps at the rank at which they are used, and the last rows fewer: the curve gets flatter. It is lower on the left and
# higher on the right.
#
# *Measurement.* That is what happens, over three seeds with $p = 0.3$ and the lesson's rank of 8: at rank 1 it gains nearly a
# tenth of a nat, which is more than the seeds differ; at rank 8 it loses about half as much; the curves cross below rank 4.
# In `frozen=True` a step trains row $b$ alone, so that each row gets a part of the steps: expect every rank to be worse for
# the same number of steps.
#
# *What it is worth.* Nothing, if the rank in use is the largest: then take the uniform one, or a plain LoRA. It pays if ranks 1
# and 2 are what will be deployed. Both stay above a LoRA of the full rank that is cut by its singular values, which costs one
# ordinary training. {picture dylora}

# %% [markdown]
# ## Recall
#
# <details><summary>1. Why does DyLoRA draw one rank for all layers, and not one for each?</summary>At inference all layers are used at one rank; drawing per layer would
# train combinations that nobody asks for. (Some programs do draw per module.)</details>
#
# <details><summary>2. How often is row i of A trained, if b is uniform on 1 … R?</summary>When b ≥ i: in (R − i + 1)/R of the steps. In the frozen version in 1/R of them.</details>
#
# <details><summary>3. Why must a DyLoRA not be merged at one rank and then used at another?</summary>Merging adds ΔW_b to W₀; the other ranks would be added to a weight that is no longer W₀.</details>
#
# <details><summary>4. What is the same in LoRA and DyLoRA?</summary>The parameters, their number, the start (B = 0), and that ΔW merges at whatever rank is chosen.</details>
#
# <details><summary>5. AdaLoRA and DyLoRA both avoid choosing a rank per matrix by hand. What differs?</summary>AdaLoRA decides, for each matrix, in training, and what it prunes is gone.
# DyLoRA decides nothing: every rank works afterwards, the same one in all matrices.</details>
#
# ## Where the paper says this
#
# arXiv 2210.07558, section 3: the draw of $b$, truncation, and the frozen variant. Its abstract claims training "4 to 7 times faster" than a search over ranks and
# good results over a wider range of ranks than LoRA's; this lesson's experiment is the second claim, at toy size.
#
# ## Where implementations differ
#
# * The authors' code multiplies by $\alpha/R$, and $A$ and $B$ by $\sqrt{R/b}$ each: together $\alpha/b$, as here. Others keep $\alpha/R$ (`rescale=False`).
# * The authors' training script draws $b$ uniformly and always trains only the last row (`frozen=True`). Its AdamW also moves rows outside the mask, by
#   its moments and a weight decay of 0.1; here rows outside the mask never move.
# * The authors count ranks from 0: their rank 0 is our rank 1.
# * Some implementations train blocks of rows (`block_size`), or draw a rank in evaluation as well, which makes results random.
# * PEFT has no DyLoRA; an adapter exported at one rank is a LoRA.
#
# **Now you can** train once and choose a rank later. Next: [10 · Quantization from scratch](10_quantization.ipynb), where memory is saved in the weights that do not train.
