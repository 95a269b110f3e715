# %% [markdown]
# # 09 · DyLoRA
#
# **What you will do.** You train one LoRA that works at every rank. First you cut an ordinary LoRA
# to a smaller rank and see what is lost, and why. Then you write the forward pass that learns at a
# rank drawn anew in every step, find out why "no gradient" does not mean "does not move", and
# choose a rank after training. At the end you judge whether the effort pays.
#
# **What you need.** Lesson 07 (LoRA).
#
# **Words and letters.** They are explained on first use, and all together in the
# [glossary](GLOSSARY.md).
#
# **Time.** 70 minutes for reading and the exercises. The open exercise takes 35 more, the bonus
# 12. Every cell together runs in well under a minute.

# %%
import copy

import numpy as np

import tinypeft as tp
from tinypeft.engine import functional as F
from tinypeft.course import show, use
from tinypeft.course.slider import slider
from tinypeft.peft.dylora import DyLoRALinear
from tinypeft.study import plot

model = tp.load_pretrained()
task = tp.tasks.domain(model, context=128, held_out=4096)        # Matplotlib's documentation: new
# held_out: tokens kept for the test, half as many as in lesson 08, so the base's loss is another.
base_loss = tp.evaluate(model, task)["loss"]
STEPS, R, ALPHA = 80, 8, 16.0
print(f"frozen base on {task.name}: {base_loss:.3f} nats/token")

# %% [markdown]
# ## 1. Cut a LoRA
#
# The rank of a LoRA is chosen before training. To know which of five ranks is right you train five
# times. And whoever sends one adapter to a server and to a telephone wants two. Why not pay for one
# training, at the largest rank $R$, and cut afterwards? Write
# $A_{\downarrow b}$ for the first $b$ rows of $A$ $(R, d_\text{in})$, and $B_{\downarrow b}$ for
# the first $b$ columns of $B$ $(d_\text{out}, R)$. LoRA of rank $b$ has the scale $\alpha/b$, so
# the change of the weights after the cut is
#
# $$\Delta W_b = \frac{\alpha}{b}\, B_{\downarrow b}\, A_{\downarrow b} \tag{1}$$
#
# Let us train a LoRA of rank 8 and cut it to rank 1. The frozen base has the loss printed above,
# and the whole LoRA a lower one. How far is the loss at rank 1 from that of the base? Write a
# negative number if you expect it to lie below the base, and a positive one if above.

# %%
rank_one = tp.guess("09.rank_one", -0.1, "nats/token from the base")

# %%
lora = tp.attach(model, tp.LoRA(rank=R, alpha=ALPHA), rng=0)
tp.train(lora, task, STEPS, batch_size=4, seed=0, progress=False)


def loss_with(change):
    """Test loss with change(A, B), an array (d_out, d_in), added to each adapted weight."""
    plain = copy.deepcopy(model)
    for path, layer in lora.wrappers.items():
        weight = plain.get(path).weight
        weight.data = weight.data + change(layer.A.data, layer.B.data).astype(np.float32)
    return tp.evaluate(plain, task)["loss"]


ranks = [1, 2, 3, 4, 6, 8]
rescaled = [loss_with(lambda A, B, b=b: ALPHA / b * B[:, :b] @ A[:b]) for b in ranks]
kept = [loss_with(lambda A, B, b=b: ALPHA / R * B[:, :b] @ A[:b]) for b in ranks]
rank_one.beside(rescaled[0] - base_loss)

# %%
print("rank b               ", *(f"{b:6}" for b in ranks))
print("scale α/b, as in (1) ", *(f"{loss:6.3f}" for loss in rescaled))
print("scale α/R, as trained", *(f"{loss:6.3f}" for loss in kept))

# %% [markdown]
# There are two ways to cut: the scale becomes $\alpha/b$, or it stays at $\alpha/R$, with which the
# columns were trained. With the first one LoRA collapses: at rank 1 it is far worse than no LoRA at
# all. With the second one it only falls back towards the base. So most of the collapse is the
# scale: one eighth of what was learned, multiplied by eight. A paper that reports a collapse should
# say which cut it means.
#
# Something is lost in both cases, because no row of a LoRA is more important than another. The size
# of the part that row $i$ of $A$ and column $i$ of $B$ add to $\Delta W$ is about the same for all
# $i$:

# %%
def sizes(tuned):
    """‖B[:, i]‖ ‖A[i]‖ for each i, a mean over the layers."""
    return np.mean([np.linalg.norm(layer.B.data, axis=0) * np.linalg.norm(layer.A.data, axis=1)
                    for layer in tuned.wrappers.values()], axis=0)


print("mean size of the parts 1 … 8 of LoRA:", sizes(lora).round(2))

# %% [markdown]
# ## 2. Draw the rank
#
# DyLoRA (Valipour et al., arXiv 2210.07558) gives the rows an order. In every training step it
# draws one rank $b$ for all layers, from a distribution $p_B$ on $1, \dots, R$ ($p_B$ has nothing
# to do with the matrix $B$; here it is uniform),
#
# $$b \sim p_B \tag{2}$$
#
# and does the whole step, forward and backward, at that rank. With an input $x$ and the output $h$:
#
# $$h = W_0 x + \frac{\alpha}{b}\, B_{\downarrow b}\, A_{\downarrow b}\, x \tag{3}$$
#
# By hand, with one input and one output, $R = 2$, $\alpha = 4$, $W_0 = 1$, $A = (1, 2)^\top$,
# $B = (0.5, 0.75)$ and $x = 1$: at rank 1 it is $h = 1 + \frac41 \cdot 0.5 \cdot 1 = 3$, and at
# rank 2 it is $h = 1 + \frac42 (0.5 \cdot 1 + 0.75 \cdot 2) = 5$.
#

# %%
show("schematic:dylora")

# %% [markdown]
# *What to see: row 1 is part of every rank, row $R$ of the largest rank alone. The scale of row 1
# depends on how many stand beside it: alone it counts eight times as much as among eight.*
#
# So row 1 must be useful without the others, and each further row may only add to the rows before
# it. This is *nested dropout* (Rippel et al., arXiv 1402.0915), applied to ranks.
#
# ### {exercise}
#
# Write equation (3) as `dylora_forward(x, W, A, B, b, alpha)`. All arguments but `b` and `alpha`
# are Tensors, `x` $(\dots, d_\text{in})$, `W` $(d_\text{out}, d_\text{in})$. Gradients must reach
# `A` and `B`, and must be zero in the rows of `A` after row $b$, and in the columns of `B` after
# column $b$. Before you cut the matrices, think: is there a vector $m$ of $R$ numbers with which
# $B\,(m \odot A x)$ gives the same, so that $A$ and $B$ stay whole? ($\odot$ multiplies number by
# number.) Both ways are right.

# %% exercise=dylora.forward points=2 minutes=10 as=my_forward
def dylora_forward(x, W, A, B, b, alpha):
    """h = W x + α/b B↓b A↓b x, a Tensor (…, d_out)."""

# %% [markdown]
# Compare yours with the package's.

# %%
show(DyLoRALinear.forward)

# %% [markdown]
# ## 3. Zero gradient is not zero motion
#
# ### {exercise}
#
# The rows after row $b$ get the gradient zero. Somebody writes the training step of a DyLoRA as
# gradient descent with *momentum*: $M$ remembers the gradients with a weight $\beta$, and $A$ moves
# along $M$ with the learning rate $\eta$ (`lr`),
#
# $$M \leftarrow \beta M + \frac{\partial L}{\partial A}, \qquad A \leftarrow A - \eta M \tag{4}$$
#
# By hand, for one row with $\beta = 0.9$ and $\eta = 0.1$: in a step with the gradient 1 it becomes
# $M = 1$, and the row moves by $-0.1$. In the next step the gradient is 0. But $M = 0.9$, and the
# row moves by $-0.09$.

# %%
def careless_step(A, M, dA, b, beta, lr, frozen):
    """One step of equation (4). dA is 0 in the rows after row b."""
    M = beta * M + dA
    return A - lr * M, M


A, M = np.zeros((4, 3)), np.zeros((4, 3))
for b in (4, 1, 1, 1):                                           # the ranks that were drawn
    dA = np.ones((4, 3)) * (np.arange(4) < b)[:, None]           # zero after row b
    before = A
    A, M = careless_step(A, M, dA, b, 0.9, 0.1, False)
    print(f"a step at rank {b}: rows 1 … 4 move by", (A - before)[:, 0].round(3))

# %% [markdown]
# *What to see: the last three steps are at rank 1, and all four rows move.*
#
# Find the bug and write `dylora_bug`, the mended step. Rows that are not trained in this step keep
# their place *and* their momentum, as if the step had not been. There are two versions of DyLoRA.
# With `frozen=False` a step at rank $b$ trains rows $1, \dots, b$. With `frozen=True`, the paper's
# second version, it trains row $b$ alone, and rows $1, \dots, b-1$ serve as constants, which
# protects what they have learned. `dA` is zero in the rows after row $b$. In the other rows it may
# be any number, also with `frozen=True`, and it may happen to be zero in a row that is trained.
# Ranks and rows are counted from 1 here. Return new arrays.

# %% exercise=dylora.bug points=3 minutes=15 as=my_step
def dylora_bug(A, M, dA, b, beta, lr, frozen):
    """A, M, dA (R, d_in) → (new A, new M) after a step at rank b."""

# %%
A, M = np.zeros((4, 3)), np.zeros((4, 3))
for b in (4, 1, 1, 1):
    before = A
    A, M = my_step(A, M, np.ones((4, 3)) * (np.arange(4) < b)[:, None], b, 0.9, 0.1, False)
    print(f"a step at rank {b}: rows 1 … 4 move by", (A - before)[:, 0].round(3))

# %% [markdown]
# Before, the rows 2 to 4 were moved by what other ranks wanted some steps ago. AdamW does the same
# with its *moments*, its running averages of each gradient and of its square. Its weight decay
# moves such rows, too. Compare your rows with the package's: it gives the mask to the parameters,
# and the optimizer leaves alone what is outside.

# %%
show(DyLoRALinear.start_step)

# %% [markdown]
# ## 4. One training, every rank
#
# Now your forward pass trains a DyLoRA: as many steps as the LoRA above, and the same data.
# `Noting` writes down the rank of each step. In how many of the 80 steps will row 5 of $A$ take
# part? (The schematic has its share. The ranks are drawn at random.)

# %%
row_five = tp.guess("09.row_five", 10, "steps")

# %%
drawn = []


class Noting(tp.DyLoRA):
    """DyLoRA that notes the rank of each step."""

    def before_step(self, layers, step, total, rng):
        super().before_step(layers, step, total, rng)
        drawn.append(next(iter(layers.values())).rank_drawn)


def forward(self, x):
    """DyLoRALinear's forward pass out of your function."""
    b = self.rank_drawn if self.training and self.rank_drawn else self.rank
    h = my_forward(x, self.base.weight, self.A, self.B, b, self.method.alpha)
    return h if self.base.bias is None else h + self.base.bias


dylora = tp.attach(model, Noting(rank=R, alpha=ALPHA), rng=0)
with use(DyLoRALinear, forward=forward):
    tp.train(dylora, task, STEPS, batch_size=4, seed=0, progress=False)
    _, tests = tp.search_rank(dylora, task, "test")              # every rank, on each batch
by_rank = [tests[b]["loss"] for b in range(1, R + 1)]
print("rank b ", *(f"{b:6}" for b in range(1, R + 1)))
print("DyLoRA ", *(f"{loss:6.3f}" for loss in by_rank), f"  (frozen base {base_loss:.3f})")

# %%
row_five.beside(sum(b >= 5 for b in drawn))

# %% [markdown]
# ## 5. The other cut
#
# The cuts of section 1 took the *first* rows, although a LoRA's rows have no order. There is a
# better choice. Among all matrices of rank $b$ one is nearest to $\Delta W$, in the sum of squares:
# keep the $b$ largest singular values and their vectors (Eckart and Young). By hand: if
# $B A = \mathrm{diag}(3, 5)$, the first row keeps $3^2$ of $3^2 + 5^2 = 34$, which is 26 %. The
# largest singular value, 5, keeps 74 %.
#
# ### {exercise}
#
# Write `dylora_cut(A, B, b)`. Return `(A_b, B_b)`, of shapes $(b, d_\text{in})$ and
# $(d_\text{out}, b)$, such that `B_b @ A_b` is the matrix of rank $b$ that is nearest to `B @ A`.
# You may split the singular values between the two as you like: the check compares the product (its
# "result 1") and the two ranks. No scale is involved.

# %% exercise=dylora.cut points=3 minutes=12 bonus=yes as=my_cut
def dylora_cut(A, B, b):
    """A (R, d_in), B (d_out, R) → A_b (b, d_in), B_b (d_out, b) with B_b A_b nearest to B A."""


# %%
def nearest(A, B, b):
    """ΔW of the LoRA, cut by its singular values, at the scale α/R that it was trained with."""
    A_b, B_b = my_cut(A, B, b)
    return ALPHA / R * B_b @ A_b


by_svd = [loss_with(lambda A, B, b=b: nearest(A, B, b)) for b in ranks]
print("LoRA, cut by its singular values:", *(f"{loss:6.3f}" for loss in by_svd))

# %% [markdown]
# Move the handle: your cut of the change of one matrix, and the loss with all matrices cut.

# %%
layer = lora.wrappers["blocks.2.attention.query"]
whole, frames, told = layer.B.data @ layer.A.data, {}, {}
for b, loss in zip(ranks, by_svd, strict=True):
    A_b, B_b = my_cut(layer.A.data, layer.B.data, b)
    near = np.asarray(B_b) @ np.asarray(A_b)
    frames[b] = near[::3, ::3]                                   # every third row and column
    share = np.sum(near**2) / np.sum(whole**2)
    told[b] = f"{share:.0%} of the square of this matrix is left, the test loss is {loss:.3f}"
slider("rank b", frames, captions=told)

# %% [markdown]
# *What to see: at half of the rank nine tenths of the square are left, and most of the gain.*

# %% fold
fig, ax = plot.figure()
lines = [("LoRA cut, scale α/b", ranks, rescaled, "orange", "^", "-"),
         ("LoRA cut, scale α/R", ranks, kept, "vermillion", "o", "-"),
         ("DyLoRA", range(1, R + 1), by_rank, "blue", "D", "--"),
         ("LoRA cut, by SVD", ranks, by_svd, "green", "v", "-")]
top = max(kept) + 0.25
for label, xs, ys, colour, marker, ls in lines:
    ax.plot(xs, ys, color=plot.COLOURS[colour], marker=marker, ls=ls, label=label)
ax.axhline(base_loss, color=plot.COLOURS["grey"], ls=":", lw=1)
ax.text(R, base_loss, "frozen base", color="#606060", ha="right", va="bottom")
ax.set(xlabel="rank b in use", ylabel="test loss (nats/token)", ylim=(None, top),
       title=f"the orange line begins at {rescaled[0]:.2f}, far above the picture")
ax.legend(fontsize=8)
fig.set_label("Test loss against the rank in use, four lines. The cut at the scale α/b starts far "
              "above the picture at rank 1. The cut by SVD is the lowest line at small ranks.")
fig

# %% [markdown]
# *What to see: the cut by singular values is the lowest curve at small ranks. It needs no other
# training than an ordinary LoRA. DyLoRA is above it, and at the full rank DyLoRA is above LoRA,
# perhaps because each of its rows but the first was trained in a part of the steps only. At rank 1
# DyLoRA is hardly below the frozen base, and worse than the plain cut at the scale α/R. Section 6
# asks why.*
#
# Do DyLoRA's rows have an order?

# %% fold
fig, ax = plot.figure(height=2.8)
for name, tuned, colour, marker in (("LoRA", lora, "vermillion", "o"),
                                    ("DyLoRA", dylora, "blue", "D")):
    ax.plot(np.arange(1, R + 1), sizes(tuned), color=plot.COLOURS[colour], marker=marker)
    ax.text(R + 0.12, sizes(tuned)[-1], name, color=plot.COLOURS[colour], va="center")
ax.set(xlabel="row i of A, column i of B", ylabel="mean size ‖B[:, i]‖ ‖A[i]‖", xlim=(0.7, R + 1),
       ylim=(0, None), xticks=range(1, R + 1))
fig.set_label("The size of each row's part: about equal for LoRA's eight rows; DyLoRA's are "
              "smaller and fall from row 3 to row 8.")
fig

# %% [markdown]
# *What to see: LoRA's parts are alike. DyLoRA's are smaller, perhaps because they were trained in
# fewer steps or at larger scales. From row 3 on they get smaller, and the last ones, which only the
# largest ranks train, are the smallest. Row 1 is not the largest. It learned in part at the scale
# α/1, which is 8 times that of the last row, α/8, so it needs less size.*
#
# One run proves little. The study did this at rank 16, with more steps and several seeds, beside a
# LoRA trained for each rank by itself. It also trained a DyLoRA three times as long. Before you
# look: is DyLoRA, trained as long as one LoRA, better than that LoRA cut by its singular values?

# %%
show("dylora")

# %% [markdown]
# *What to see: the black line is what one training for each rank reaches. What lies above it is the
# price of training only once. DyLoRA × 3 reaches it from rank 4 on, the cut by SVD from rank 8
# on. Neither is a fair match: DyLoRA × 3 was trained for three times as many
# steps, and what the cut by SVD keeps comes from a LoRA that had 16 directions to learn with. At
# rank 16 nothing is cut, so that all three cuts are the LoRA of the black line.*
#
# <details><summary>Does DyLoRA pay here?</summary>
#
# Hardly. One LoRA of the largest rank, cut by its singular values, does about as well at the small
# ranks as a DyLoRA that was trained three times as long.
#
# | loss (nats/token) | steps | rank 1 | rank 4 | rank 16 |
# |---|---|---|---|---|
# | a LoRA for each rank | 5 × {study dylora: DyLoRA, steps, mean, as .0f} | {study rank: 1, loss} | {study rank: 4, loss} | {study rank: 16, loss} |
# | one LoRA, cut by SVD | {study dylora: LoRA r=16, cut, steps, mean, as .0f} | {study dylora: LoRA r=16, cut, loss_svd[0]} | {study dylora: LoRA r=16, cut, loss_svd[2]} | {study dylora: LoRA r=16, cut, loss_svd[4]} |
# | DyLoRA | {study dylora: DyLoRA, steps, mean, as .0f} | {study dylora: DyLoRA, loss[0]} | {study dylora: DyLoRA, loss[2]} | {study dylora: DyLoRA, loss[4]} |
# | DyLoRA × 3 | {study dylora: DyLoRA × 3, steps, mean, as .0f} | {study dylora: DyLoRA × 3, loss[0]} | {study dylora: DyLoRA × 3, loss[2]} | {study dylora: DyLoRA × 3, loss[4]} |
#
# These are the paper's two claims:
#
# {claim DyLoRA works at every rank}
#
# {claim One DyLoRA replaces}
#
# </details>
#
# ## 6. Choose a rank, and who learns how much
#
# After training a rank is chosen on *validation* text: the smallest whose loss is within a
# tolerance of the lowest. The test text only says how good the choice is. If you choose on the test
# text, the number that you report is too good.

# %%
_, validation = tp.search_rank(dylora, task)                     # on the validation text
losses = {b: metrics["loss"] for b, metrics in validation.items()}
for tolerance in (0.0, 0.02, 0.05):
    b = min(b for b, loss in losses.items() if loss <= min(losses.values()) + tolerance)
    loss = by_rank[b - 1]
    print(f"within {tolerance:.2f} nats/token of the lowest: rank {b}, test loss {loss:.3f}")

# %% [markdown]
# Which ranks come out well depends on $p_B$. You can choose it by what the rows should get.
#
# ### {exercise}
#
# `shares` is a dict row → in which share of all steps this row is to be trained (`frozen=False`).
# No row has more than the one before it, and row 1 takes part in every step. Write
# `dylora_draw(shares)`, which returns $p_B$, the probabilities of the ranks $1, \dots, R$, an array
# `(R,)`. For example, `{1: 1.0, 2: 0.5, 3: 0.25, 4: 0.25}` becomes `(0.5, 0.25, 0, 0.25)`: row 2
# takes part at the ranks 2, 3 and 4, in $0.25 + 0 + 0.25 = 0.5$ of the steps.

# %% exercise=dylora.draw points=2 minutes=9 as=my_draw
def dylora_draw(shares):
    """A dict row → share of the steps in which it is trained → p_B (R,)."""

# %% [markdown]
# Yours, at work. Let each row be trained in a fixed part of the steps of the row before it:

# %%
frames, told = {}, {}
for part in (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0):
    p_B = np.asarray(my_draw({row: part**(row - 1) for row in range(1, R + 1)}))
    frames[part] = {"p_B": (np.arange(1, R + 1), p_B)}
    told[part] = f"rank 1 is drawn in {p_B[0]:.0%} of the steps, rank {R} in {p_B[-1]:.0%}"
slider("part", frames, captions=told, xlabel="rank b", ylabel="probability")

# %% [markdown]
# *What to see: at 1 only rank 8 is drawn, at 0.8 ranks 1 and 8 about equally often, and at 0.3 rank
# 1 in seven steps of ten.* Now rows 1 and 2 are to learn in nearly every step, and the others in a
# fifth of them.

# %%
wanted = {1: 1.0, 2: 0.95} | {row: 0.2 for row in range(3, R + 1)}


class Chosen(Noting):
    """DyLoRA with the distribution that you computed."""

    def probabilities(self):
        return np.asarray(my_draw(wanted))


drawn_before = drawn.copy()
drawn.clear()
chosen = tp.attach(model, Chosen(rank=R, alpha=ALPHA), rng=0)
tp.train(chosen, task, STEPS, batch_size=4, seed=0, progress=False)
_, tests = tp.search_rank(chosen, task, "test")
print("p_B    ", *(f"{p:6.2f}" for p in my_draw(wanted)))
print("rank b ", *(f"{b:6}" for b in range(1, R + 1)))
print("uniform", *(f"{loss:6.3f}" for loss in by_rank))
print("chosen ", *(f"{tests[b]['loss']:6.3f}" for b in range(1, R + 1)))
print(f"of {STEPS} steps, {drawn.count(1)} were at rank 1 (uniform: {drawn_before.count(1)}), "
      f"and {sum(b >= 3 for b in drawn)} trained row 3")

# %% [markdown]
# *What to see: ranks 1 and 2 come out better than under the uniform distribution. The larger ranks
# pay for it: they are no better than rank 2.*
#
# Rank 1 gains although it was drawn *less* often. So how often it is drawn is not all that counts.
# Here is the loss at rank 1 of other distributions, each the cell above with other `probabilities`
# and with the seeds 0, 1 and 2:
#
# | ranks that are drawn | steps at rank 1 | loss at rank 1 |
# |---|---|---|
# | 2 … 8, equally often | 0, 0, 0 | 3.202, 3.105, 3.105 |
# | 1 … 8, equally often: uniform | 9, 8, 13 | 2.978, 2.951, 2.942 |
# | 1 in half of the steps, else 2 … 8 | 40, 40, 39 | 2.874, 2.861, 2.871 |
# | yours | 5, 3, 7 | 2.948, 2.919, 2.930 |
# | 2 in all steps | 0, 0, 0 | 2.948, 2.935, 2.965 |
# | 1 in an eighth of the steps, else 2 | 9, 8, 13 | 2.897, 2.900, 2.890 |
# | 1 in an eighth of the steps, else 8 | 9, 8, 13 | 2.990, 3.073, 2.962 |
#
# *What to see: both count, how often rank 1 is drawn (the first three lines) and what is drawn
# beside it (the last two: with the same steps at rank 1 the loss differs by 0.07 to 0.17 nats).*
# Training at rank 2 alone is about as good for rank 1 as the uniform distribution. Steps at rank 8
# help it less than those at rank 2. There the scale of row 1 is α/8 and not α/2, and seven rows
# stand beside it and not one. Which of the two does it, these runs do not tell.
#
# ### {exercise} · Which distribution? (open, 4 points, 35 minutes)
#
# $p_B$ may be uniform or geometric (`DyLoRA(distribution="geometric", p=…)`), which prefers small
# ranks. Predict what the curve over ranks does, then measure it. If you have time, take
# `frozen=True` as a second question.
#
# *Rubric: 1 point for a prediction with a reason; 1 for changing one thing at a time; 1 for at
# least three seeds with their spread; 1 for naming what the distribution is worth at the rank you
# would really use.*

# %% [answer]
# *Prediction.* Row $i$ is trained when $b \ge i$. A geometric $p_B$ draws small ranks more often,
# so the first rows get more steps at the rank at which they are used, and the last rows fewer: the
# curve gets flatter. It is lower on the left and higher on the right.
#
# *Measurement.* That is what happens, over three seeds with $p = 0.3$ and the lesson's rank of 8:
# at rank 1 it gains 0.05 to 0.10 nats, which is more than the seeds differ. At rank 8 it
# loses about half as much. The curves cross below rank 4. In `frozen=True` a step trains row $b$
# alone, so that each row gets a part of the steps: expect every rank to be worse for the same
# number of steps.
#
# *What it is worth.* Nothing, if the rank in use is the largest: then take the uniform one, or a
# plain LoRA. It pays if ranks 1 and 2 are what will be deployed. Both stay above a LoRA of the full
# rank that is cut by its singular values, which costs one ordinary training. {picture dylora}

# %% [markdown]
# ## The real call
#
# PEFT has no DyLoRA. It has the cut that did better here, by singular values and with the LoRA's
# scale, but only for a sum of several: given one adapter it leaves the rank as it was, without a
# word. So add two halves of the same:
#
# ```python
# from peft import PeftModel
# from transformers import AutoModelForCausalLM
# base = AutoModelForCausalLM.from_pretrained("folder-of-the-model")
# model = PeftModel.from_pretrained(base, "folder-of-the-adapter")
# model.add_weighted_adapter(
#     ["default", "default"], [0.5, 0.5], "cut", combination_type="svd", svd_rank=2)
# model.set_adapter("cut")
# ```
#
# A DyLoRA that you trained here becomes such a folder by `set_rank` and `save(…, "peft")`.

# %% [markdown]
# ## Recall
#
# <details><summary>1. Why does DyLoRA draw one rank for all layers, and not one for
# each?</summary>In use all layers have one rank. Drawing per layer would train combinations that
# nobody asks for. (Some programs do draw per module.)</details>
#
# <details><summary>2. How often is row i of A trained, if b is uniform on 1 … R?</summary>When b ≥
# i: in (R − i + 1)/R of the steps. In the frozen version in 1/R of them.</details>
#
# <details><summary>3. Why must a DyLoRA not be merged at one rank and then used at
# another?</summary> Merging adds ΔW_b to W₀. The change at another rank would be added to a weight
# that is no longer W₀.</details>
#
# <details><summary>4. What is the same in LoRA and DyLoRA?</summary>The parameters, their number,
# the start (B = 0), and that ΔW merges at whatever rank is chosen.</details>
#
# <details><summary>5. AdaLoRA and DyLoRA both avoid choosing a rank per matrix by hand. What
# differs?</summary>AdaLoRA decides in training, for each matrix, and the choice is final at the
# end. DyLoRA decides nothing: every rank works afterwards, the same one in all matrices.</details>
#
# ## Where the paper says this
#
# arXiv 2210.07558, section 3: the draw of $b$, truncation, and the frozen variant. Its abstract
# claims training "at least 4 to 7 times (depending to the task) faster than LoRA" without a loss of
# quality that matters, and good results over a wider range of ranks than LoRA's. This lesson tries
# the second claim. The study tests both, at toy size.
#
# ## Where implementations differ
#
# * The authors' code multiplies by $\alpha/R$, and $A$ and $B$ by $\sqrt{R/b}$ each: together
#   $\alpha/b$, as here. Others keep $\alpha/R$ (`rescale=False`).
# * The authors' training script draws $b$ uniformly and always trains only the last row
#   (`frozen=True`). Its AdamW also moves rows outside the mask, by its moments and a weight decay
#   of 0.1. Here rows outside the mask never move.
# * The authors count ranks from 0: their rank 0 is our rank 1.
# * Some implementations train blocks of rows (`block_size`), or draw a rank in evaluation as well,
#   which makes results random.
# * PEFT has no DyLoRA. An adapter exported at one rank is a LoRA.
#
# **Now you can** train once and choose a rank later, and say when a plain cut does the same. Next:
# [10 · Quantization from scratch](10_quantization.ipynb), where memory is saved in the weights that
# are not trained.
