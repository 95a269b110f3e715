# %% [markdown]
# # 08 · AdaLoRA
#
# **What you will do.** Let a model decide by itself where it needs rank. You will write LoRA's change as a singular value
# decomposition, keep its factors orthogonal by a penalty, score every singular value by what the loss would say if it
# were gone, and take the least important ones away while training goes on. Then you will look at where the ranks went.
#
# **What you need.** Lesson 07 (LoRA). A singular value decomposition should be an acquaintance.
#
# **Time.** 60 minutes; every cell together runs in well under a minute.

# %%
import numpy as np

import tinypeft as tp
from tinypeft.course import show
from tinypeft.peft.adalora import AdaLoRALinear
from tinypeft.study import plot

model = tp.load_pretrained()
task = tp.tasks.domain(model, context=128, held_out=8192)        # Matplotlib's documentation: new to the model
print(f"frozen base on {task.name}: {tp.evaluate(model, task)['loss']:.3f} nats/token")

# %% [markdown]
# ## A rank for everybody is a rank for nobody
#
# LoRA gives each adapted matrix the same rank $r$. Some matrices may have little to learn and waste theirs; others would
# use more. AdaLoRA (Zhang et al., arXiv 2303.10512) starts every matrix with a few singular values more than it may keep, and
# gives a budget to *all matrices together*. For that it needs pieces that can be taken away one by one without
# disturbing the others. A product $BA$ has no such pieces; a singular value decomposition has:
#
# $$W = W_0 + P \Lambda Q, \qquad P \in \mathbb{R}^{d_\text{out} \times r},\ \Lambda = \mathrm{diag}(\lambda_1 \dots \lambda_r),\ Q \in \mathbb{R}^{r \times d_\text{in}} \tag{1}$$
#
# A *triplet* is $\lambda_i$ with its column of $P$ and its row of $Q$. Setting $\lambda_i = 0$ removes it and nothing else. The
# layer never forms $P \Lambda Q$; it scales the $r$ numbers in the middle:

# %%
show(AdaLoRALinear.forward)

# %% [markdown]
# $\Lambda$ starts at zero, so a fresh AdaLoRA is the model it is put on, as with LoRA. $P$ and $Q$ start as small random
# numbers.
#
# ## Staying a decomposition
#
# Gradient steps know nothing of singular values; after a few of them, the columns of $P$ need not be orthogonal, and
# then removing one triplet *does* disturb the others. A real decomposition after every step would be too dear, so the paper
# adds a penalty to the loss that pulls $P$ and $Q$ back:
#
# $$R(P, Q) = \lVert P^\top P - I \rVert_F^2 + \lVert Q Q^\top - I \rVert_F^2 \tag{2}$$
#
# with the loss $L + \gamma \sum R$ over all matrices. Mind which side the transpose is on: $P^\top P$ compares the $r$ columns
# of $P$ with each other, $Q Q^\top$ the $r$ rows of $Q$.

# %%
show(AdaLoRALinear.departures)

# %% [markdown]
# ### {exercise}
#
# Write equation (2) for Tensors `P` $(d_\text{out}, r)$ and `Q` $(r, d_\text{in})$; return a Tensor with one number. The squared
# Frobenius norm is the sum of the squares of all entries.

# %% exercise=adalora.penalty points=3 minutes=10
def adalora_penalty(P, Q):
    """R(P, Q), how far the columns of P and the rows of Q are from being orthonormal."""
    ### BEGIN SOLUTION
    I = np.eye(P.shape[1])
    D, E = P.T @ P - I, Q @ Q.T - I
    return (D * D).sum() + (E * E).sum()
    ### END SOLUTION

# %%
result = tp.check("adalora.penalty", adalora_penalty)
result

# %% [markdown]
# ## What is a triplet worth?
#
# The size of $\lambda_i$ alone is a poor judge: a large singular value may sit where the loss does not care. Ask the loss
# instead. If one number $w$ were set to zero, to first order the loss would change by
#
# $$I(w) = \left| w\, \frac{\partial L}{\partial w} \right| \tag{3}$$
#
# On one small batch this is noisy, so it is averaged over steps; and a number whose sensitivity jumps about should not
# be pruned in a bad moment, so its uncertainty counts in its favour:
#
# $$\bar I \leftarrow \beta_1 \bar I + (1 - \beta_1)\, I, \qquad U \leftarrow \beta_2 U + (1 - \beta_2)\, |I - \bar I|, \qquad s = \bar I\, U \tag{4}$$
#
# ($\bar I$ in the middle is the new one.) The package keeps both averages for a triplet's $1 + d_\text{out} + d_\text{in}$
# numbers as one row:

# %%
show(AdaLoRALinear.observe)

# %% [markdown]
# ### {exercise}
#
# Given weights `w`, their gradient `g`, and the two averages so far (all arrays of the same shape), return the new averages
# $\bar I$, $U$, and the score $s$.

# %% exercise=adalora.importance points=3 minutes=12
def adalora_importance(w, g, I_bar, U, beta1, beta2):
    """(new I_bar, new U, score s), each of the shape of w."""
    ### BEGIN SOLUTION
    I = abs(w * g)
    I_bar = beta1 * I_bar + (1 - beta1) * I
    U = beta2 * U + (1 - beta2) * abs(I - I_bar)
    return I_bar, U, I_bar * U
    ### END SOLUTION

# %%
result = tp.check("adalora.importance", adalora_importance)
result

# %% [markdown]
# A triplet's score adds what its parts are worth on average:
#
# $$S_i = s(\lambda_i) + \frac{1}{d_\text{out}} \sum_k s(P_{ki}) + \frac{1}{d_\text{in}} \sum_k s(Q_{ik}) \tag{5}$$

# %%
show(AdaLoRALinear.scores)

# %% [markdown]
# ## The budget
#
# $n$ matrices start with $b^{(0)} = n\, r_\text{init}$ triplets and end with $b^{(T)} = n\, r_\text{target}$. The budget rests for
# $t_i$ steps, falls along a cubic, and rests for the last $t_f$ steps, in which what is left can settle:
#
# $$b^{(t)} = b^{(T)} + \left(b^{(0)} - b^{(T)}\right)\left(1 - \frac{t - t_i}{T - t_i - t_f}\right)^{3} \quad \text{for } t_i \le t \le T - t_f \tag{6}$$
#
# **This is not what the paper prints.** The equation of its Appendix A has $t - t_i - t_f$ in the numerator. Draw both and decide for yourself which one
# can have been meant:

# %%
T, t_i, t_f, b0, bT = 300, 30, 120, 12 * 30, 8 * 30
t = np.arange(T + 1)
falling = (t >= t_i) & (t <= T - t_f)
budget = lambda numerator: bT + (b0 - bT) * (1 - numerator / (T - t_i - t_f)) ** 3
code = np.where(t < t_i, b0, np.where(t > T - t_f, bT, budget(t - t_i)))
fig, ax = plot.figure()
ax.plot(t, code, color=plot.COLOURS["blue"])
ax.plot(t[falling], budget(t - t_i - t_f)[falling], color=plot.COLOURS["vermillion"], ls="--")
ax.set(xlabel="step t", ylabel="triplets kept, all matrices", ylim=(0, None))
ax.annotate("the authors' code, equation (6)", (110, code[110]), (190, 330), color=plot.COLOURS["blue"],
            arrowprops={"arrowstyle": "-", "color": "#BBBBBB"})
ax.annotate("as printed", (60, budget(60 - t_i - t_f)), (75, 900), color=plot.COLOURS["vermillion"],
            arrowprops={"arrowstyle": "-", "color": "#BBBBBB"})
fig

# %% [markdown]
# *What to see: as printed, the budget jumps up at $t_i$, to far more triplets than exist, and does not come down to $b^{(T)}$ at the end.*
#
# ### {exercise}
#
# Return $b^{(t)}$ for any $t$ from 0 to $T$: $b^{(0)}$ up to $t_i$, then equation (6), then $b^{(T)}$; rounded down to a whole number.

# %% exercise=adalora.budget points=2 minutes=8
def adalora_budget(t, T, t_i, t_f, b0, bT):
    """How many triplets all matrices together keep after step t."""
    ### BEGIN SOLUTION
    progress = (min(max(t, t_i), T - t_f) - t_i) / (T - t_i - t_f)
    return int(bT + (b0 - bT) * (1 - progress) ** 3)
    ### END SOLUTION

# %%
result = tp.check("adalora.budget", adalora_budget)
result

# %% [markdown]
# ### {exercise}
#
# Now the step that gives the method its name. `scores` is an array $(n, r)$: the scores of $r$ triplets in each of $n$ matrices.
# Return a boolean array $(n, r)$ that is true for exactly the `b` best **of all matrices together**. `b` may be 0. Where
# scores are equal, any of them may stay, but exactly `b` in all.

# %% exercise=adalora.allocate points=3 minutes=12
def adalora_allocate(scores, b):
    """Which triplets stay: a boolean array (n, r) with b true entries."""
    ### BEGIN SOLUTION
    kept = np.zeros(scores.size, bool)
    kept[np.argsort(-scores.reshape(-1), kind="stable")[:b]] = True
    return kept.reshape(scores.shape)
    ### END SOLUTION

# %%
result = tp.check("adalora.allocate", adalora_allocate)
result

# %%
allocate = result.function
rng = np.random.default_rng(0)
scores = rng.exponential(1, (4, 6)) * np.array([[0.2], [1], [1], [3]])               # the last matrix matters most
print("ranks of four matrices, twelve triplets among them:", allocate(scores, 12).sum(1))

# %% [markdown]
# ## All of it, at work
#
# `train` calls three hooks of every method, so that nobody can forget the allocation (with other libraries many did: ranks that
# never moved from where they began are a frequent report). Here a subclass uses the last hook to write down what happens. Note
# one thing: only $\lambda$ is set to zero. $P$, $Q$ and the optimizer's moments live on, the next step
# moves $\lambda$ away from zero again, and if the triplet has become important by the next allocation, it stays.

# %%
log = []


class Watched(tp.AdaLoRA):
    """AdaLoRA that notes every step's singular values."""

    def after_step(self, tuned, step, total):
        super().after_step(tuned, step, total)
        log.append({path: layer.Lam.data.copy() for path, layer in tuned.wrappers.items()})


tuned = tp.attach(model, Watched(init_rank=8, target_rank=4, delta_t=4), rng=0)
history = tp.train(tuned, task, 100, batch_size=4, seed=0, progress=False)
print(tuned.summary())
print(f"test loss {tp.evaluate(tuned, task)['loss']:.3f}")

# %%
fig, ax = plot.figure()
pruned = {p: (np.array([step[p] for step in log]) == 0).any(0) for p in log[-1]}
came_back = sum((pruned[p] & (log[-1][p] != 0)).sum() for p in pruned)
print(f"{sum(mask.sum() for mask in pruned.values())} triplets were pruned at some time; {came_back} of them came back and stayed")
path = min(pruned, key=lambda p: abs(np.count_nonzero(log[-1][p]) - 4))              # one that kept half
values = np.abs([step[path] for step in log])                                        # (steps, r)
alive = values[-1] > 0
for i in range(values.shape[1]):
    ax.plot(np.where(values[:, i] > 0, values[:, i], np.nan), lw=1.5 if alive[i] else 0.8,
            color=plot.COLOURS["blue" if alive[i] else "vermillion"], ls="-" if alive[i] else "--")
ax.set(xlabel="step", ylabel="|λ|, gaps: pruned", title=f"the singular values of {path}")
fig

# %% [markdown]
# *What to see: all triplets grow for the first steps; then the dashed ones are pruned. The optimizer moves them away from zero again, and the next
# allocation takes them once more, if they have not become important. The choice is final after step $T - t_f$.* Where did the ranks go?

# %%
kinds = ["attention.query", "attention.key", "attention.value", "attention.output", "mlp.up", "mlp.down"]
ranks = tuned.ranks()
grid = np.array([[ranks[f"blocks.{layer}.{kind}"] for kind in kinds] for layer in range(model.config.n_layers)])
fig, ax = plot.figure()
image = ax.imshow(grid, cmap="cividis", vmin=0, vmax=8)
ax.set(xticks=range(6), xticklabels=[k.split(".")[1] for k in kinds], yticks=range(len(grid)), ylabel="layer",
       title=f"final ranks, {grid.sum()} in all: {grid.sum() / grid.size:.0f} per matrix on average")
ax.grid(False)
for (i, j), value in np.ndenumerate(grid):
    ax.text(j, i, value, ha="center", va="center", color="white" if value < 4 else "black")
fig.colorbar(image, ax=ax, label="rank")
fig

# %% [markdown]
# *What to see: the same average as a LoRA of rank 4 in all six matrices, unevenly spent.* Is the uneven allocation *right*? On
# real text nobody knows the truth. So the package can plant one: the task `tp.tasks.planted` hides a low-rank change
# of known ranks in a copy of the model, and AdaLoRA has to find where. The committed study did that over seeds:

# %%
show("adalora_planted")

# %% [markdown]
# *What to see: found against planted ranks.* And does it pay? At the same final budget, against a LoRA with one rank for all:

# %%
show("adalora")

# %% [markdown]
# ### {exercise} · Is it luck? (open, 4 points, 20 minutes)
#
# Train the `Watched` AdaLoRA with three seeds and compare the maps of ranks. Which cells agree, and which are chance? Propose a number that says how
# much two maps agree, and what it would be for two random maps with the same total.
#
# *Rubric: 1 point for three runs that differ in the seed alone; 1 for a sensible number (a rank correlation will do); 1 for its value under
# chance; 1 for a conclusion that does not claim more than three seeds can show.*

# %% [answer]
# *Runs.* `rng=s` in `attach` and `seed=s` in `train`, and nothing else differs. If only one of them is changed, say which:
# the start and the order of the text are two sources of chance.
#
# *A number.* Spearman's correlation of the 30 ranks of two maps. Under chance its mean is 0 and its standard deviation
# $1/\sqrt{29} \approx 0.19$; shuffling one map many times gives the same without a formula, and keeps the total. (The share of
# equal cells is a poor number: with eight possible ranks even maps that are alike rarely agree exactly.) In three runs of the
# lesson's length expect about 0.5 to 0.7 for each pair: far from chance, and far from 1. What agrees is the kind of
# matrix: query and key keep least. Which layer's query keeps two or four is chance.
#
# *Conclusion.* Three seeds make three pairs, which share runs and are not independent. They show that the map is not luck;
# they do not give an interval for a single cell. {claim AdaLoRA's ranks are uneven}

# %% [markdown]
# ## Recall
#
# <details><summary>1. Why does AdaLoRA not prune rows of LoRA's A and columns of its B by the same score?</summary>It could; but B A has
# no separate measure of size, and its rank-one parts overlap: taking one away changes what the others do. Orthogonal triplets do not.</details>
#
# <details><summary>2. What would happen without the uncertainty U?</summary>A triplet with a bad batch or two just before an allocation would
# be dropped although its sensitivity is merely noisy; U raises the score of those.</details>
#
# <details><summary>3. A triplet's λ has been zero since the last allocation. What is its sensitivity now?</summary>For λ itself |0 · g| = 0, if the weight is
# taken before the step. It lives by the scores of P and Q, and by its moving average.</details>
#
# <details><summary>4. How many parameters train, and how many are worth storing?</summary>r_init (d_in + d_out + 1) per matrix train; what is left of the
# triplets after pruning is all that a merged or exported adapter needs.</details>
#
# <details><summary>5. What must a training loop do for AdaLoRA that it need not do for LoRA?</summary>Add the penalty to the loss, and call the allocator
# between the optimizer's step and zero_grad, with the number of all steps known from the start.</details>
#
# ## Where the paper says this
#
# arXiv 2303.10512: the decomposition is equation 3, the penalty 4, pruning 6, importance 7 to 11, Algorithm 1 the whole; the budget is in
# Appendix A. (These are the numbers of the PDF. The HTML rendering adds 2 from 6 on.) Table 1 (GLUE, DeBERTaV3-base, average): full
# fine-tuning 88.09, LoRA with r = 8 (1.33 M parameters) 88.34, AdaLoRA (1.27 M) 89.31.
#
# ## Where implementations differ
#
# * The authors' code and PEFT average *unsquared* norms for the penalty: `orthogonality="norm"`. Its weight γ is not comparable then.
# * Both multiply the gradient by the weights *after* the step (`importance="after"`); Algorithm 1 means before.
# * The paper scales $P \Lambda Q$ by α/r, as LoRA does, and fixes α (16 or 32). Both codes divide by the *initial* rank, also after pruning. Here the scale is 1
#   unless you give `alpha`, and the default learning rate belongs to that.
# * Training a second time begins at the initial rank again, and prunes anew.
# * In PEFT `tfinal` is a duration, `total_step` is required, and nothing is pruned unless you call `update_and_allocate`.
#
# **Now you can** allocate a budget by importance. Next: [09 · DyLoRA](09_dylora.ipynb), which does not choose a rank at all, and trains every one at once.
