# %% [markdown]
# # 12 · GPTQ and AWQ: rounding with an eye on the inputs
#
# **What you will do.** Stop asking how far a rounded weight is from the original, and ask how far the layer's *output*
# is. You derive from two weights how the error of one can be repaired by the other (OBQ), turn that into an algorithm
# that does a whole matrix in a fraction of a second (GPTQ), and build the rival that only rescales (AWQ). Then you find
# out when calibration makes things worse.
#
# **What you need.** Lesson 10 (grids, groups); lesson 11 for the idea of folding a scale into the layer before.
# Positive definite matrices and what a Cholesky factor is.
#
# **Time.** 70 minutes: 35 of reading and running, 35 to 50 of exercises.

# %%
import copy
import warnings

import numpy as np

import tinypeft as tp
from tinypeft.course import show
from tinypeft.quant import awq, calibration, gptq, measure, obq
from tinypeft.study import plot

model = tp.load_pretrained()
task = tp.tasks.domain(model.tokenizer, context=128)
text = task.batch("train", 16, np.random.default_rng(0))[0]              # (16, 128) tokens to calibrate on
unseen = task.batch("test", 16, np.random.default_rng(1))[0]             # and 2,048 others to judge by

path = "blocks.2.mlp.up"
W = model.get(path).weight.data                                          # (512, 128)
seen = calibration.capture(model, text, [path], hessian=True)[path]
H = seen.H                                                               # (128, 128)
H_unseen = calibration.capture(model, unseen, [path], hessian=True)[path].H

# %% [markdown]
# ## 1. What should be small
#
# A layer computes $WX$, $X$ being its inputs, one column for each token. What reaches the rest of the model is not
# $\hat W - W$ but $(\hat W - W)X$. Its size is a quadratic form, and all that it needs to know of the inputs is one
# $d \times d$ matrix:
#
# $$\|(\hat W - W) X\|^2 = \frac{n}{2}\ \mathrm{tr}\left((\hat W - W)\, H\, (\hat W - W)^\top\right)$$
#
# $$H = \frac{2}{n} X X^\top$$
#
# $H$ is the Hessian of the mean squared error in a row of $\hat W$, the same for every row. It is summed up while text
# streams through the model; the inputs themselves are never kept.

# %%
show(calibration.Statistics.H.fget)
show(measure.output_error)

# %% [markdown]
# ### {exercise}
#
# Write `calibrated_output_error(W, W_hat, H)`: $\|(\hat W - W)X\| / \|WX\|$, a number, from $H = \frac2n XX^\top$
# alone. Try not to form a product larger than $W$.

# %% exercise=calibrated.output_error points=2 minutes=5
def calibrated_output_error(W, W_hat, H):
    """W, W_hat (d_out, d_in), H (d_in, d_in) → the relative error of the output, a number."""
    ### BEGIN SOLUTION
    D = W_hat - W
    return np.sqrt(np.sum((D @ H) * D) / np.sum((W @ H) * W))
    ### END SOLUTION

# %%
result = tp.check("calibrated.output_error", calibrated_output_error)
result

# %%
calibrated_output_error = result.function
nearest = tp.GPTQ(bits=3, group_size=32).nearest                          # round to nearest: lesson 10's asymmetric grid
W_rtn = nearest.quantize(W).dequantize()
values, vectors = np.linalg.eigh(H)
print("eigenvalues of H: largest {:.1f}, then {:.1f}, median {:.2f}, smallest {:.0e}".format(
    *values[[-1, -2, 64]], max(values[0], 0)), f"  largest ÷ trace {values[-1] / values.sum():.2f}")
size, row = np.linalg.norm(W_rtn - W), np.random.default_rng(0).normal(size=len(W))
print(f"{'round to nearest':28} output error {100 * calibrated_output_error(W, W_rtn, H):5.2f} %")
for k, name in ((1, "a weak direction"), (64, "a middling one"), (-1, "the strongest")):
    D = size * np.outer(row / np.linalg.norm(row), vectors[:, k])         # ‖D‖ = ‖W_rtn − W‖, along one eigenvector
    print(f"{'as large, in ' + name:28} output error {100 * calibrated_output_error(W, W + D, H):5.2f} %")

# %% [markdown]
# The inputs of this layer lie mostly in few directions: the first eigenvalue holds more than a quarter of the trace,
# and the last ones are nearly 0. Errors of the *same size in weights* cost very different amounts in the output, from a
# tenth of a per cent to a half, by the direction in which they lie. There is room: put the error where the inputs are
# not.
#
# ## 2. Two weights, one grid
#
# Let $w = (0.45,\ 0.45)$, the grid be the integers, and the two inputs be strongly correlated. Round to nearest gives
# $(0, 0)$: two errors of the same sign, which add up on inputs that go together. Better to round the first down and let
# the second make up for it. Which change $\delta$ of the others is best, once weight $q$ is fixed at its rounded value?
# Minimise the quadratic form under the condition that $\delta_q = \mathrm{quant}(w_q) - w_q$, with a Lagrange
# multiplier, and you have equation (2) of the GPTQ paper:
#
# $$\delta_F = -\frac{w_q - \mathrm{quant}(w_q)}{[H_F^{-1}]_{qq}}\ (H_F^{-1})_{:,q}$$
#
# $F$ are the weights still free. After that $q$ leaves $F$, and its row and column leave the inverse by one step of
# Gaussian elimination, equation (3):
#
# $$H_{F \setminus q}^{-1} = H_F^{-1} - \frac{(H_F^{-1})_{:,q}\,(H_F^{-1})_{q,:}}{[H_F^{-1}]_{qq}}$$

# %%
show(obq.obq_step)
show(obq.obq_row)

# %% [markdown]
# ### {exercise}
#
# Write `calibrated_compensate(w, Hinv, q, value)`: weight number `q` is fixed at `value`. Return `(w, Hinv)` after
# equations (2) and (3), as new arrays; of the new inverse, row and column `q` are zero (set them so, rounding leaves
# dust). Entry `q` of the new `w` is `value`; weights that were fixed earlier must not move, which the zeros in `Hinv`
# see to.

# %% exercise=calibrated.compensate points=3 minutes=12
def calibrated_compensate(w, Hinv, q, value):
    """w (d,), Hinv (d, d), zero in rows and columns already fixed; w[q] becomes `value` → (w, Hinv), updated copies."""
    ### BEGIN SOLUTION
    column = Hinv[:, q] / Hinv[q, q]
    w = w + (value - w[q]) * column
    w[q] = value
    Hinv = Hinv - np.outer(column, Hinv[q])
    Hinv[q] = Hinv[:, q] = 0
    return w, Hinv
    ### END SOLUTION

# %%
result = tp.check("calibrated.compensate", calibrated_compensate)
result

# %%
calibrated_compensate = result.function
w2, H2 = np.array([0.45, 0.45]), np.array([[2.0, 1.8], [1.8, 2.0]])
moved, _ = calibrated_compensate(w2, np.linalg.inv(H2), 0, 0.0)
ends = {"nearest": np.rint(w2), "compensated": np.rint(moved)}
loss = lambda v: (v - w2) @ H2 @ (v - w2)
for name, v in ends.items(): print(f"{name:12} {v}   (ŵ − w) H (ŵ − w)ᵀ = {loss(v):.3f}")

fig, ax = plot.figure(height=4.2)
a, b = np.meshgrid(np.linspace(-0.8, 1.8, 200), np.linspace(-0.8, 1.8, 200))
D = np.stack([a, b], -1) - w2
ax.contour(a, b, np.einsum("...i,ij,...j", D, H2, D), levels=np.geomspace(0.02, 6, 9), colors="#BBBBBB", linewidths=0.8)
ax.scatter(*np.meshgrid([0, 1], [0, 1]), color=plot.COLOURS["grey"], s=25)
ax.plot(*zip(w2, ends["nearest"], strict=True), "o-", color=plot.COLOURS["sky"])
ax.plot(*zip(w2, moved, ends["compensated"], strict=True), "o-", color=plot.COLOURS["vermillion"])
for text_, at in (("w", w2), ("nearest", ends["nearest"]), ("after δ", moved), ("compensated", ends["compensated"])):
    ax.annotate(text_, at, xytext=(7, -3), textcoords="offset points", fontsize=8)
ax.set(xlabel="ŵ₁", ylabel="ŵ₂", aspect="equal")
ax.grid(False)
fig

# %% [markdown]
# *What to see:* The valley of the loss runs from top left to bottom right. Round to nearest walks out of it; the
# compensated path first fixes $\hat w_1 = 0$, slides along the valley, and then rounds $\hat w_2$ to 1. Both end one
# grid point away from $w$; one loses a tenth of what the other does.
#
# ## 3. GPTQ: the same for a whole matrix
#
# OBQ chooses for each row its own order and keeps an inverse for each, $O(d^3)$ per row. GPTQ's first observation is
# that the order matters little. With one order for all rows there is a single sequence of inverses, and its second is
# that all of the rows needed from them are rows of one Cholesky factor,
#
# $$H^{-1} = U^\top U, \qquad U \text{ upper triangular}$$
#
# so that column $j$ of $W$ is rounded and its error passed on to the columns still to come by
#
# $$E_{:j} = \frac{W_{:j} - \mathrm{quant}(W_{:j})}{U_{jj}}, \qquad W_{:k} \leftarrow W_{:k} - E_{:j}\, U_{jk} \quad (k > j)$$

# %%
show(gptq.factor)
show(gptq.GPTQ.together, "E[")

# %% [markdown]
# The line that writes `E[i]` is the first equation. `correct` is the second one, for many columns at once: a block of
# 128 columns is halved again and again, the first half is rounded and corrects the second, and a finished block corrects
# all later columns in one matrix product. The order of the corrections changes nothing in the result. Before $H$ is inverted a
# little is added to its diagonal, *damping*, one per cent of its mean: directions that the calibration text hardly used
# would otherwise look free of charge.
#
# ### {exercise}
#
# Write `calibrated_gptq(W, U, quant)`, without blocks: for every column in order, round it, and pass its error on.
# `quant(column)` rounds a column `(d_out,)` to its grids and returns it. Return $\hat W$; leave `W` itself alone.

# %% exercise=calibrated.gptq points=4 minutes=15
def calibrated_gptq(W, U, quant):
    """W (d_out, d_in), U upper (d_in, d_in) with UᵀU = H⁻¹, quant: (d_out,) → (d_out,) → Ŵ (d_out, d_in)."""
    ### BEGIN SOLUTION
    W, W_hat = W.copy(), np.empty_like(W)
    for j in range(W.shape[1]):
        W_hat[:, j] = quant(W[:, j])
        E = (W[:, j] - W_hat[:, j]) / U[j, j]
        W[:, j + 1:] -= np.outer(E, U[j, j + 1:])
    return W_hat
    ### END SOLUTION

# %%
result = tp.check("calibrated.gptq", calibrated_gptq)
result

# %%
calibrated_gptq = result.function
rows = tp.Uniform(3, symmetric=False)                                     # one grid per row, from W as it is
grid = rows.fit(W)
U = gptq.factor(H, damping=0.01)
W_gptq = calibrated_gptq(W.astype(float), U, lambda w: grid.round(w[:, None].astype(np.float32))[:, 0])
W_near = grid.round(W)
for name, W_hat in (("nearest", W_near), ("GPTQ", W_gptq)):
    on_seen, on_unseen = calibrated_output_error(W, W_hat, H), calibrated_output_error(W, W_hat, H_unseen)
    print(f"{name:8} weight error {np.linalg.norm(W_hat - W) / np.linalg.norm(W):.3f}   output error {on_seen:.3f}"
          f"   on unseen text {on_unseen:.3f}")

# %% [markdown]
# The weight error has gone **up** and the output error **down**. If you quantize and then look at how far weights have
# moved, GPTQ looks like a mistake.

# %%
print("rms error by columns    1–32  33–64  65–96  97–128")
for name, W_hat in (("nearest", W_near), ("GPTQ", W_gptq)):
    print(f"{name:20}", *(f"{rms:6.3f}" for rms in np.sqrt(np.square(W_hat - W).mean(0).reshape(4, 32).mean(1))))

# %% [markdown]
# Round to nearest errs evenly. GPTQ's errors grow to the right, since later columns carry what earlier ones left;
# nothing comes after the last to carry for it.
#
# ## 4. When calibration hurts
#
# $H$ is an estimate. With fewer tokens than inputs it has directions in which the text never pointed, and GPTQ will
# gladly put the error there, where other texts do point.

# %%
down = "blocks.2.mlp.down"                                               # 512 inputs
V = model.get(down).weight.data
V_unseen = calibration.capture(model, unseen, [down], hessian=True)[down].H
scheme = tp.GPTQ(bits=3, group_size=32)
sizes, on_it, on_others = [32, 64, 128, 256, 512, 1024, 2048], [], []
for n in sizes:
    H_n = calibration.capture(model, text.reshape(-1, 32)[:n // 32], [down], hessian=True)[down].H
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                                   # it does warn
        V_hat = scheme.quantize(V, H_n).dequantize()
    on_it.append(calibrated_output_error(V, V_hat, H_n))
    on_others.append(calibrated_output_error(V, V_hat, V_unseen))

fig, ax = plot.figure(height=3.3)
ax.plot(sizes, [100 * e for e in on_it], "o-", ms=4, color=plot.COLOURS["sky"])
ax.plot(sizes, [100 * e for e in on_others], "o-", ms=4, color=plot.COLOURS["vermillion"])
ax.axhline(100 * calibrated_output_error(V, scheme.nearest.quantize(V).dequantize(), V_unseen),
           color=plot.COLOURS["grey"], lw=1, ls="--")
for y, label, colour, up in ((on_it, "on the calibration text", "sky", -14), (on_others, "on other text", "vermillion", 9)):
    ax.annotate(label, (sizes[4], 100 * y[4]), xytext=(0, up), textcoords="offset points", fontsize=8,
                color=plot.COLOURS[colour])
ax.set(xscale="log", xlabel="calibration tokens", ylabel="output error (%)", ylim=(0, None))
ax.set_xticks(sizes, sizes)
ax.set_title("mlp.down, 512 inputs, 3 bits; dashed: round to nearest", loc="left", fontsize=10)
fig

# %% [markdown]
# *What to see:* With up to about as many tokens as the layer has inputs GPTQ is *worse* than round to nearest on text
# it has not seen, while looking splendid on its own. It takes several tokens per input before the gain is real. The
# package warns when there are fewer tokens than inputs; large models are calibrated on hundreds of thousands.
#
# ## 5. AWQ: only scale
#
# Lin et al. start from another observation. Few weights matter, and one finds them not by their own size but by the
# size of the *inputs they meet*. Keep one per cent of the input channels in floating point, chosen in three ways:

# %%
kept = max(1, W.shape[1] // 100)
for name, size in (("largest inputs", seen.mean_abs), ("largest weights", np.abs(W).mean(0)),
                   ("at random", np.random.default_rng(0).random(W.shape[1]))):
    top = np.argsort(-size)[:kept]
    some = W_rtn.copy()
    some[:, top] = W[:, top]
    ratio = calibrated_output_error(W, some, H_unseen) / calibrated_output_error(W, W_rtn, H_unseen)
    print(f"{kept} of {W.shape[1]} channels, {name:16} output error ÷ that of round to nearest: {ratio:.3f}")

# %% [markdown]
# In our small base no channel is much larger than the others, so one of 128 helps by its share and little more, and the
# three ways differ by less than you would like. The effect is there, but the paper's is far larger: perplexity of
# OPT-6.7B in 3 bits 23.5 by rounding, 11.4 with one per cent kept by activation, 22.4 by weight (its Table 1).
#
# With outlier features planted, as in lesson 11, the study sees it at this size too:

# %%
show("awq")

# %% [markdown]
# Keeping some weights apart is awkward for hardware. So AWQ *scales* instead. Multiply a weight by $s > 1$ and divide
# its input by $s$: as long as the step $\Delta$ of the group hardly changes, the error of rounding is as large as
# before, and what arrives at the output is divided by $s$, equations (2) and (3):
#
# $$Q(w \cdot s)\,\frac{x}{s} = \Delta \cdot \mathrm{Round}\left(\frac{w s}{\Delta}\right) \cdot \frac{x}{s}$$
#
# $$\frac{\mathrm{error\ with\ } s}{\mathrm{error\ without}} \approx \frac1s$$

# %%
rng, trials = np.random.default_rng(0), 4000
group = rng.normal(size=(trials, 32)).astype(np.float32)
for s in (1.0, 1.5, 2.0, 4.0):
    scaled = group.copy()
    scaled[:, 0] *= s                                                     # one weight of 32 is scaled
    back = nearest.fit(scaled).round(scaled)
    back[:, 0] /= s
    one, others = np.sqrt(np.mean((back - group)[:, 0]**2)), np.sqrt(np.mean((back - group)[:, 1:]**2))
    print(f"s = {s}: rms error of the scaled weight {one:.3f}, of the 31 others {others:.3f}")

# %% [markdown]
# It holds while $s$ is small. Then the scaled weight becomes the largest of its group, the step grows, and the others
# pay. So there is a best scale, and AWQ looks for it along a curve with one parameter, from no scaling ($\alpha = 0$)
# to the size of the inputs itself, equations (4) and (5):
#
# $$\mathcal L(s) = \left\|Q(W\,\mathrm{diag}(s))\,\mathrm{diag}(s)^{-1} X - W X\right\|$$
#
# $$s = s_X^{\alpha}, \qquad \alpha^* = \arg\min_\alpha \mathcal L(s_X^\alpha)$$

# %%
show(awq.AWQ.output_loss)
show(awq.AWQ.rounding)
show(awq.AWQ.search)

# %% [markdown]
# ### {exercise}
#
# Write `calibrated_awq(W, H, mean_abs, quant, alphas)`: for each α the loss $\mathrm{tr}(D H D^\top)$,
# $D = Q(W\,\mathrm{diag}(s))\,\mathrm{diag}(s)^{-1} - W$, with $s = s_X^\alpha$ and $s_X$ = `mean_abs (d_in,)`. `quant`
# rounds a matrix `(d_out, d_in)`. Return `(alpha, losses)`, the α of least loss (of equal losses the first α) and all
# losses `(len(alphas),)`.

# %% exercise=calibrated.awq points=4 minutes=15
def calibrated_awq(W, H, mean_abs, quant, alphas):
    """W (d_out, d_in), H (d_in, d_in), mean_abs (d_in,), quant: matrix → rounded matrix → (best α, losses (len(alphas),))."""
    ### BEGIN SOLUTION
    losses = []
    for alpha in alphas:
        s = mean_abs**alpha
        D = quant(W * s) / s - W
        losses.append(np.sum((D @ H) * D))
    return alphas[int(np.argmin(losses))], np.array(losses)
    ### END SOLUTION

# %%
result = tp.check("calibrated.awq", calibrated_awq)
result

# %%
calibrated_awq = result.function
alphas = np.arange(20) / 20
fig, ax = plot.figure(height=3.3)
some_layers = ("blocks.0.attention.query", "blocks.2.mlp.up", "blocks.2.mlp.down", "blocks.4.attention.output")
statistics = calibration.capture(model, text, list(some_layers), hessian=True)
for name, colour in zip(some_layers, ("green", "blue", "vermillion", "purple"), strict=True):
    found = statistics[name]
    alpha, losses = calibrated_awq(model.get(name).weight.data, found.H, found.mean_abs,
                                   lambda A: nearest.quantize(A).dequantize(), alphas)
    ax.plot(alphas, losses / losses[0], color=plot.COLOURS[colour], label=name.replace("blocks.", "block "))
    ax.plot(alpha, losses.min() / losses[0], "o", color=plot.COLOURS[colour])
ax.set(xlabel="α", ylabel="squared output error ÷ round to nearest", ylim=(0.7, 1.15))
ax.legend(loc="upper left", ncols=2, fontsize=8)
fig

# %% [markdown]
# *What to see:* Every curve begins at 1, round to nearest, so on the calibration text AWQ cannot be worse than that.
# `mlp.down`, which reads what a GELU lets through and has channels of very different size, gains a fifth; the layers
# behind a norm gain little.
#
# ## 6. The whole model
#
# Both go through the model block by block. GPTQ takes the inputs of a block from the blocks already quantized; AWQ
# shares one scale among query, key and value and judges it by the output of all of attention. Here are 3 bits in groups
# of 32, calibrated on 2,048 tokens of Matplotlib's documentation:

# %%
def perplexity(m): return tp.evaluate(m, task, "test", max_batches=2)["perplexity"]

print(f"{'float32':10} perplexity {perplexity(model):.2f}")
for name, scheme in (("nearest", nearest), ("AWQ", tp.AWQ(bits=3, group_size=32)), ("GPTQ", tp.GPTQ(bits=3, group_size=32))):
    m = tp.quantize(copy.deepcopy(model), scheme, calibration=text)
    print(f"{name:10} perplexity {perplexity(m):.2f}   {tp.bits_per_weight(m):.3f} bits/weight   weight error "
          f"{tp.weight_error(model, m):.1%}")

# %% [markdown]
# The study's picture, at 4, 3 and 2 bits and over seeds:

# %%
show("gptq")

# %% [markdown]
# About half of what round to nearest loses at 3 bits is won back, by either, for nothing at run time. That AWQ keeps up
# with GPTQ although its single-layer gains were smaller has two reasons: its scales are followed by a search for the
# best clipping of every group (lesson 10, section 4), and it is the attention as a whole that it judges.
#
# ### {exercise} · Does the order matter? (open, 4 points, 15 minutes)
#
# `GPTQ(act_order=True)` rounds columns by falling diagonal of $H$. Say why that should help, using the picture of
# section 3. Then measure it (output error on unseen text, at 4 and at 2 bits, on at least two layers), and say what it
# costs in storage, and why `static_groups=True` costs nothing.
#
# <details><summary>Rubric</summary>
#
# 1 point: a reason that uses the picture. 1 point: measured on two layers and two widths on text not used for
# calibration, with the commands. 1 point: the storage, as a formula, with and without static groups. 1 point: an honest
# reading of the numbers.
#
# </details>

# %% [answer]
# *Why.* Errors grow to the right in the picture, because late columns have few others left to make up for them. Columns with a
# large diagonal of $H$ matter most. Rounding them first, while all others can still compensate, leaves the large errors
# where $H$ is small.
#
# *Storage.* When groups follow the permuted columns, the order must be stored: 32 bits per column, $32/d_\mathrm{out}$ per
# weight. With static groups, scales and zero points are computed for the original columns before anything is permuted, so
# nothing is stored.
#
# *Measured* (groups of 32, output error on unseen text, one calibration set): `mlp.up` gains a few per cent of its error,
# `mlp.down` about a tenth, `attention.value` more than a tenth, at 4 and at 2 bits alike. The sign is the same everywhere.
# The size is not, and one run on one text has no interval. To compare:
# {claim GPTQ loses less than round to nearest}

# %% [markdown]
# ## Recall
#
# 1. What is GPTQ when $H$ is a multiple of the identity?
# <details><summary>Answer</summary>
#
# Round to nearest: $U$ is diagonal, so nothing is passed on.
#
# </details>
#
# 2. Why does one $H$ serve all rows of $W$?
# <details><summary>Answer</summary>
#
# Each output is its own row times the same inputs, and the squared errors of rows add up; the quadratic form of each is
# $X X^\top$.
#
# </details>
#
# 3. The weight error of a GPTQ layer is larger than that of rounding. Is it broken?
# <details><summary>Answer</summary>
#
# No. Errors were moved into directions where inputs are small, and compensating moves weights further from where they
# were. Compare outputs, on text not used for calibration.
#
# </details>
#
# 4. What does damping do, and when is it needed most?
# <details><summary>Answer</summary>
#
# It adds a multiple of the identity to $H$, so that no direction is free. Without it $H$ cannot be inverted when there
# are fewer tokens than inputs, or dead inputs.
#
# </details>
#
# 5. Why does AWQ not simply take $\alpha = 1$?
# <details><summary>Answer</summary>
#
# The scaled weights become the largest of their groups and stretch the step for all others in the group; at some point
# that costs more than the protected weights gain.
#
# </details>

# %% [markdown]
# ## Where the paper says this
#
# - OBQ: Frantar and Alistarh (arXiv 2208.11580), §5.
# - GPTQ: Frantar et al. (arXiv 2210.17323); OBQ's step as equations (2) and (3), §3.3 with its three steps (fixed
#   order, lazy batches, Cholesky), Algorithm 1.
# - AWQ: Lin et al. (arXiv 2306.00978); equations (2) to (5), Table 1 the one per cent.
#
# ## Where implementations differ
#
# - *Scales of a group inside a block.* The authors' GPTQ and GPTQModel take them from $W$ as it was before the block;
#   with groups smaller than the block the results differ: `group_scales="lazy"` or `"fresh"`.
# - *Damping* is 0.01 in the paper's code and 0.05 in GPTQModel; *order*: AutoGPTQ calls `act_order` `desc_act`.
# - *Zero points.* Old GPTQ files store $z - 1$; readers that do not know this are off by one step everywhere.
# - *AWQ's* α stops at 0.95 in the authors' code; AutoAWQ's `duo_scaling` divides by a power of the weights' size as
#   well, and is then no longer sure to be at least as good as rounding.
#
# ## What you can do now
#
# Quantize weights to 3 or 4 bits against what a layer is used for, and tell whether a calibration set is large enough.
# **Lesson 13** goes back to methods that need no data at all, NF4 among them, and puts a LoRA on what they leave.
