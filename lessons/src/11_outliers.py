# %% [markdown]
# # 11 · Activations and outliers: LLM.int8(), ZeroQuant, SmoothQuant
#
# **What you will do.** Multiply matrices of integers instead of floats, give a small model the outliers that large ones
# grow by themselves, watch 8 bits fail because of three columns, and build the two cures: taking the columns out
# (LLM.int8()), and moving their size into the weights (SmoothQuant). ZeroQuant comes in between: finer scales, and a
# repair by training, block by block.
#
# **What you need.** Lesson 10: scales, granularity, absmax. What a layer norm's γ and β do (lesson 02).
#
# **Time.** 65 minutes: 35 of reading and running, 30 to 45 of exercises.

# %%
import copy

import numpy as np

import tinypeft as tp
from tinypeft.course import show
from tinypeft.quant import folding, int8, llm_int8, smoothquant, zeroquant
from tinypeft.quant.calibration import block_by_block
from tinypeft.study import plot

model = tp.load_pretrained()
task = tp.tasks.domain(model.tokenizer, context=128)
tokens = next(iter(task.batches("test", 4)))[0]                           # (4, 128): 512 tokens of text
calibration = task.batch("train", 16, np.random.default_rng(0))[0]        # (16, 128)
def perplexity(m): return tp.evaluate(m, task, "test", max_batches=2)["perplexity"]

# %% [markdown]
# ## 1. A product of integers
#
# In lesson 10 the weights were stored as integers and decoded before use; the multiplication was one of floats. If the
# inputs $X$ (tokens × features) are rounded too, the multiplication itself can be one of integers, which is what the
# int8 units of a GPU or a CPU are for. With one scale per row of $X$ (a token) and one per row of $W$ (an output
# channel), both scales stand outside the sum:
#
# $$Y = X W^\top \approx s_x\, s_w \cdot (q_x\, q_w^\top), \qquad q = \mathrm{round}(x/s), \quad s = \max|x|/127$$

# %%
show(int8.int8_inputs)
show(int8.scaled_matmul)

# %% [markdown]
# A scale per *column* of $X$ could not be pulled out like that: it would sit inside the sum over the columns. Keep this
# in mind; the whole lesson turns on it.
#
# The product of integers is exact, although the package computes it with floats: a float32 holds every integer up to
# $2^{24}$, and as long as
#
# $$127^2 K \le 2^{24}$$
#
# no partial sum of $K$ products can exceed that. For longer sums `int8_matmul` cuts at 1,024 columns.

# %%
show(int8.int8_matmul)
print("127² K ≤ 2²⁴ up to K =", 2**24 // 127**2)

# %% [markdown]
# ## 2. What the inputs look like
#
# We record the input of one layer on 512 tokens of documentation. Then we give the model outliers. From about 6.7
# billion parameters on, the LLM.int8() paper reports, a handful of features of the hidden state become some twenty
# times larger than the rest, in all layers and for most tokens, always the same ones. Our base has a million parameters
# and has none. `plant_outliers` makes three: it multiplies γ and β of every norm by 32 in three channels, and divides
# those columns of the layers that read the norm by 32. The function stays the same, bit for bit.

# %%
def inputs_of(m, path):
    """The inputs of the layer at `path` while the model reads `tokens`, (512, d_in)."""
    seen, layer = [], m.get(path)
    class Spy(tp.Module):
        def forward(self, x):
            seen.append(x.data)
            return layer(x)
    tp.nn.replace_modules(m, {path: Spy()})
    with tp.no_grad(): m(tokens)
    tp.nn.replace_modules(m, {path: layer})
    return seen[0].reshape(-1, seen[0].shape[-1])

hard = copy.deepcopy(model)
planted = tp.plant_outliers(hard, channels=3, factor=32.0, rng=0)
path = "blocks.2.mlp.up"
X, X_hard = inputs_of(model, path), inputs_of(hard, path)
W, W_hard = model.get(path).weight.data, hard.get(path).weight.data
print("planted channels:", planted, "  same logits:", np.array_equal(model(tokens).data, hard(tokens).data))

fig, axes = plot.figure(1, 2, height=3.4, width=8.4)
for ax, A, title in zip(axes, (X, X_hard), ("The base", "With three planted channels"), strict=True):
    image = ax.imshow(np.log10(np.abs(A[:96]) + 1e-2), aspect="auto", cmap="viridis", vmin=-2, vmax=2.1,
                      interpolation="nearest")
    ax.set(xlabel="feature", ylabel="token", title=title)
    ax.grid(False)
fig.colorbar(image, ax=axes, label="log₁₀ |input|")
fig

# %% [markdown]
# *What to see:* Left, all features are of about the same size, but for two that are nearly off. Right, three columns
# are bright from top to bottom: outliers belong to features, not to tokens.
#
# ## 3. Why three columns spoil the rest
#
# A token's scale is $m/127$, $m$ the largest entry. If the ordinary entries go up to $m'$ only, they reach the codes
#
# $$-c, \dots, c, \qquad c = \mathrm{round}(127\, m'/m)$$
#
# so with $m = 32\,m'$ there are 9 of 255 codes left: about three bits. It is one such row for *every* token.

# %% [markdown]
# ### {exercise}
#
# Write `outliers_codes_left(X, O)`: for every token of `X (n, d)` the number of int8 codes, $2c + 1$, that its entries
# outside the columns `O` (an integer array) can reach when the whole token shares one scale $\max|X|/127$. Return an
# integer array `(n,)`. No row is all zeros.

# %% exercise=outliers.codes_left points=2 minutes=5
def outliers_codes_left(X, O):
    """X float (n, d), O integers: the outlier columns → how many codes −c … c the others reach, int (n,)."""
    ### BEGIN SOLUTION
    rest = np.delete(np.abs(X), O, axis=1)
    c = np.rint(127 * rest.max(1) / np.abs(X).max(1))
    return 2 * c.astype(int) + 1
    ### END SOLUTION

# %%
result = tp.check("outliers.codes_left", outliers_codes_left)
result

# %%
outliers_codes_left = result.function
print("median over tokens:", np.median(outliers_codes_left(X, planted)), "codes in the base,",
      np.median(outliers_codes_left(X_hard, planted)), "with outliers")

# %% [markdown]
# How much this costs depends on who shares the scale. The paper's Table 1 compares *absmax* (one scale for all of $X$,
# one for all of $W$), *row-wise* (per token, one for $W$) and *vector-wise* (per token, per output channel). The last
# is yours to write.
#
# ### {exercise}
#
# Write `outliers_vector_wise(X, W)`: $s_x\, s_w (q_x q_w^\top)$ with symmetric 8-bit codes (−127 … 127), one scale per
# row of `X (n, d_in)` and one per row of `W (d_out, d_in)`. Return `(n, d_out)`. No row is all zeros. Mind which axis
# each scale belongs to in the result.

# %% exercise=outliers.vector_wise points=3 minutes=10
def outliers_vector_wise(X, W):
    """X float (n, d_in), W float (d_out, d_in) → the product of their 8-bit codes, scaled back, (n, d_out)."""
    ### BEGIN SOLUTION
    s_x = np.abs(X).max(1, keepdims=True) / 127
    s_w = np.abs(W).max(1, keepdims=True) / 127
    return s_x * s_w.T * (np.rint(X / s_x) @ np.rint(W / s_w).T)
    ### END SOLUTION

# %%
result = tp.check("outliers.vector_wise", outliers_vector_wise)
result

# %%
outliers_vector_wise = result.function

def error(Y_hat, X, W):
    """‖Ŷ − XWᵀ‖/‖XWᵀ‖."""
    Y = X @ W.T
    return float(np.linalg.norm(Y_hat - Y) / np.linalg.norm(Y))

def integer_product(X, W, activations, weights):
    Q, s = int8.int8_inputs(X, activations)
    return s * int8.scaled_matmul(Q, tp.Uniform(8, granularity=weights).quantize(W))

named = {"absmax": ("tensor", "tensor"), "row-wise": ("token", "tensor"), "vector-wise": ("token", "channel")}
products = {name: lambda X, W, kinds=kinds: integer_product(X, W, *kinds) for name, kinds in named.items()}
for name, product in {**products, "yours": outliers_vector_wise}.items():
    a, b = (100 * error(product(X, W), X, W) for X, W in ((X, W), (X_hard, W_hard)))
    print(f"{name:12} {a:6.2f} %   with outliers {b:6.2f} %")

# %% [markdown]
# Finer scales help, by a factor of two or three, but the outliers make every variant some ten times worse. A token's
# scale cannot help a token that carries the outlier itself.
#
# ## 4. LLM.int8(): take the columns out
#
# Dettmers et al. split the sum over features in two. Columns $O$ in which any entry reaches the threshold $\alpha = 6$
# are multiplied in 16-bit floats, the others in integers, and the results are added, their equation (8):
#
# $$X W^\top \approx \sum_{h \in O} X_h W_h^\top + s_x\, s_w \cdot \sum_{h \notin O} q_{x,h}\, q_{w,h}^\top$$
#
# The scales $s_x$ are now taken over the ordinary entries alone. $O$ is found anew in every call.

# %%
show(llm_int8.inputs)
show(llm_int8.LLMInt8Linear.product)

# %% [markdown]
# ### {exercise}
#
# Write `outliers_llm_int8(X, W, threshold)`, which returns `(Y, O)`: the product by equation (8), `(n, d_out)`, and the
# outlier columns, ascending. Where a token has nothing but outliers and zeros, its scale must not become 0. The scale
# of a row of `W` is taken over the whole row, since $W$ is quantized before any input is seen. Multiply the outlier
# columns in the dtype of `X`: only a GPU gains by 16 bits.

# %% exercise=outliers.llm_int8 points=4 minutes=15
def outliers_llm_int8(X, W, threshold=6.0):
    """X float (n, d_in), W float (d_out, d_in) → (Y (n, d_out), O: indices of the columns of X that reach the threshold)."""
    ### BEGIN SOLUTION
    O = np.flatnonzero(np.abs(X).max(0) >= threshold)
    rest = X.copy()
    rest[:, O] = 0
    s_x = np.abs(rest).max(1, keepdims=True) / 127
    s_x[s_x == 0] = 1
    s_w = np.abs(W).max(1, keepdims=True) / 127
    q_w = np.rint(W / s_w)
    return X[:, O] @ W[:, O].T + s_x * s_w.T * (np.rint(rest / s_x) @ q_w.T), O
    ### END SOLUTION

# %%
result = tp.check("outliers.llm_int8", outliers_llm_int8)
result

# %%
outliers_llm_int8 = result.function
thresholds = np.geomspace(2, 200, 25)
curve = [(error(Y, X_hard, W_hard), len(O)) for Y, O in (outliers_llm_int8(X_hard, W_hard, t) for t in thresholds)]

fig, ax = plot.figure()
ax.plot(thresholds, [100 * e for e, _ in curve], color=plot.COLOURS["blue"])
ax.set(xscale="log", yscale="log", xlabel="threshold (in units of the inputs)", ylabel="error of the product (%)")
for (e, n), t in list(zip(curve, thresholds, strict=True))[::4]:
    ax.annotate(f"{n}", (t, 100 * e), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8)
ax.axvline(6, color=plot.COLOURS["grey"], lw=1, ls="--")
ax.set_title("Error over threshold; the numbers count columns in floating point", loc="left", fontsize=10)
fig

# %% [markdown]
# *What to see:* Between 6 (dashed, the paper's choice) and the size of the outliers the error is flat, at the level of
# a model that has none, with 3 columns of 128 in floating point. Lower thresholds buy accuracy with more and more
# columns; above the outliers, everything is quantized and the error jumps by ten.
#
# What is stored? $O$ depends on the input, and taken literally the method needs all of $W$ in 16 bits as well. The
# package keeps the columns that were outliers in calibration, $k$ of them:
#
# $$\mathrm{bits/weight} = 8 + \frac{32}{d_\mathrm{in}} + \frac{k}{d_\mathrm{in}}\left(16 + \frac{32}{d_\mathrm{out}}\right)$$

# %%
layer = tp.quantize(copy.deepcopy(hard), tp.LLMInt8(), calibration=calibration).get(path)
k, (d_out, d_in) = len(layer.columns), W.shape
print(layer.columns, f"{8 * layer.nbytes / W.size:.3f} bits/weight;",
      f"by the formula {8 + 32 / d_in + k / d_in * (16 + 32 / d_out):.3f}")

# %% [markdown]
# In a model with $d = 4096$ and seven outlier features this is well under 1 % more; at $d = 128$ it is not nothing.
#
# ## 5. ZeroQuant: finer scales, and a repair
#
# ZeroQuant also takes one dynamic scale per token, and for weights one per *group*. That is what fails on outliers
# above, and it did on large models: in SmoothQuant's Table 3 OPT-175B keeps an average accuracy of 35.8 % under
# ZeroQuant, of 66.9 % in FP16. Its second idea has lasted. Where 4 bits are asked for, each block $L_k$ is trained,
# alone, to give the outputs it gave before, on the inputs that the blocks quantized before it now produce:
#
# $$\min_{\hat W}\ \mathrm{MSE}\left(L_k(x),\ \hat L_k(x)\right), \qquad x = \hat L_{k-1} \cdots \hat L_1 (h_0)$$
#
# One block at a time is held in memory, and no labels are needed. Rounding has derivative 0, so the gradient is passed
# straight through it; lesson 14 is about why that works.

# %%
show(zeroquant.distill)

# %%
scheme = tp.ZeroQuant(bits=4)
linears = [f"attention.{name}" for name in ("query", "key", "value", "output")] + ["mlp.up", "mlp.down"]
with tp.no_grad():
    _, block, hs = next(block_by_block(copy.deepcopy(model), [calibration[i:i + 4] for i in (0, 4, 8)]))
    student = copy.deepcopy(block)
    tp.nn.replace_modules(student, {name: scheme.student(student.get(name), 4) for name in linears})
    losses = zeroquant.distill(block, student, hs, steps=40, lr=3e-4)

print(f"MSE of the block's output: {losses[0]:.4f} at first, {np.mean(losses[-3:]):.4f} in the last three steps")

# %% [markdown]
# In forty steps on 1,536 tokens about half of the error that rounding to 4 bits makes in this block is gone.
#
# ## 6. SmoothQuant: move the size into the weights
#
# Outliers sit in *columns* of $X$. A scale per column would cure them at once, but cannot be pulled out of the sum
# (section 1). It can be pulled *into the weight*, equation (3) of the paper:
#
# $$Y = \left(X\,\mathrm{diag}(s)^{-1}\right) \left(\mathrm{diag}(s)\, W^\top\right)$$

# %%
s = np.random.default_rng(0).uniform(0.5, 2, X.shape[1]).astype(np.float32)
print(f"difference of the outputs, relative: {error((X / s) @ (W * s).T, X, W):.1e}")

# %% [markdown]
# Dividing column $j$ of $X$ by $s_j$ and multiplying column $j$ of $W$ by it changes nothing. At run time it is free,
# because $X$ is the output of a layer norm, and γ and β can be divided instead:
#
# $$\gamma \leftarrow \gamma / s, \qquad \beta \leftarrow \beta / s, \qquad W \leftarrow W \odot s$$

# %%
show(folding.fold_scale)

# %% [markdown]
# How much should be moved? Equation (4) shares the difficulty between the two sides by a number α between 0 and 1:
#
# $$s_j = \frac{\max|X_j|^{\alpha}}{\max|W_j|^{1-\alpha}}$$
#
# At α = ½ both sides get the same maximum in every channel: the square root of the product of the two.

# %%
show(smoothquant.smoothing_factors)

# %% [markdown]
# ### {exercise}
#
# Write `outliers_smooth(gamma, beta, weights, max_abs, alpha)`. A norm with `gamma (d,)` and `beta (d,)` feeds several
# layers, `weights` being the list of their `(d_out, d)`; `max_abs (d,)` is $\max|X_j|$ in calibration. Return
# `(gamma, beta, weights)` after smoothing, as new arrays. All layers that read the norm must share $s$, so $\max|W_j|$
# runs over all of them. No maximum is zero here.

# %% exercise=outliers.smooth points=4 minutes=15
def outliers_smooth(gamma, beta, weights, max_abs, alpha=0.5):
    """γ, β (d,), weights: a list of (d_out, d), max_abs (d,) → the smoothed (γ, β, weights)."""
    ### BEGIN SOLUTION
    largest = np.max([np.abs(W).max(0) for W in weights], axis=0)
    s = max_abs**alpha / largest**(1 - alpha)
    return gamma / s, beta / s, [W * s for W in weights]
    ### END SOLUTION

# %%
result = tp.check("outliers.smooth", outliers_smooth)
result

# %% [markdown]
# Now the sweep. For once the outliers are put into $X$ alone and the weights left as they are, which is closer to a
# real large model, where the columns that meet outliers are no smaller than others.

# %%
X_out = X.copy()
X_out[:, planted] *= 32
largest_x, largest_w = np.abs(X_out).max(0), np.abs(W).max(0)
alphas = np.linspace(0, 1, 21)
def smoothed(alpha):
    s = smoothquant.smoothing_factors(largest_x, [W], alpha)
    return X_out / s, W * s
sweep = {kind: [error(integer_product(*smoothed(a), kind, "channel"), X_out, W) for a in alphas] for kind in ("token",
                                                                                                              "tensor")}

fig, (left, right) = plot.figure(1, 2, height=3.4, width=9)
A, B = smoothed(0.5)
for values, label, colour in ((largest_x, "X before", "vermillion"), (largest_w, "W before", "sky"),
                              (np.abs(A).max(0), "X and W after", "black")):
    left.plot(np.sort(values)[::-1], label=label, color=plot.COLOURS[colour])
left.plot(np.sort(np.abs(B).max(0))[::-1], color=plot.COLOURS["black"], ls=":")
left.set(yscale="log", xlabel="channel, by falling size", ylabel="largest magnitude")
left.set_title("Channel maxima at α = ½", loc="left", fontsize=10)
left.legend()
for (kind, values), colour in zip(sweep.items(), ("blue", "orange"), strict=True):
    right.plot(alphas, [100 * e for e in values], color=plot.COLOURS[colour])
    right.annotate(f"per {kind}", (alphas[3], 100 * values[3]), xytext=(4, 4), textcoords="offset points", fontsize=8,
                   color=plot.COLOURS[colour])
right.set(yscale="log", xlabel="α", ylabel="error of the product (%)")
right.set_title("What is moved: nothing (0) to everything (1)", loc="left", fontsize=10)
fig

# %% [markdown]
# *What to see:* Left, the outliers' maxima and the weights' meet in the middle. Right, a valley: at α = 0 the inputs
# remain hard, at α = 1 the weights have become so, and the least error lies between, near the paper's ½.
#
# Outliers planted by `plant_outliers` would have shown no valley. There the columns of $W$ were divided by 32, and then
# $s_j$ grows by $32^\alpha \cdot 32^{1-\alpha} = 32$ whatever α is: smoothing undoes the planting *exactly*. A made-up
# difficulty can be made up too kindly for the method under test.
#
# ## 7. The whole model
#
# Perplexity of the base and of the model with planted outliers, both of which compute the same function in float32:

# %%
schemes = {"W8A8 absmax": tp.W8A8("tensor", "tensor"), "W8A8 row-wise": tp.W8A8("tensor", "token"),
           "W8A8 vector-wise": tp.W8A8("channel", "token"),
           "ZeroQuant": tp.ZeroQuant(), "LLM.int8()": tp.LLMInt8(), "SmoothQuant O1": tp.SmoothQuant(activations="token"),
           "SmoothQuant O3": tp.SmoothQuant(activations="static")}
exact = perplexity(model)
found = {name: [perplexity(tp.quantize(copy.deepcopy(m), scheme, calibration=calibration)) for m in (model, hard)]
         for name, scheme in schemes.items()}

print(f"{'float32':17} {exact:6.2f}")
for name, (base, outliers) in found.items(): print(f"{name:17} {base:6.2f}   with outliers {outliers:6.2f}")

# %%
show("int8_outliers")

# %% [markdown]
# Without outliers everything in 8 bits is as good as float32, LLM.int8() included: at this size the problem it solves
# does not exist. With them one scale for everything nearly doubles the perplexity, finer scales lose a few per cent,
# and the two cures lose nothing that can be seen on these 4,096 tokens.
#
# ### {exercise} · A token that stands out (open, 4 points, 15 minutes)
#
# In a model you are given, one *token* (the first of every row) has inputs 100 times larger than all other tokens, in
# all features; no feature stands out otherwise. Which of the schemes of this lesson cope, and which do not? Say what
# each one's scale would be, then test your prediction: scale one row of `X` by 100 and measure the error on the *other*
# rows. What would you do about static scales (O3)?
#
# <details><summary>Rubric</summary>
#
# 1 point: which schemes cope, with the scale that each would use. 1 point: which do not, and on what that depends. 1
# point: what LLM.int8() and SmoothQuant do here. 1 point: an experiment that shows it, and a remedy for O3.
#
# </details>

# %% [answer]
# *Cope:* row-wise, vector-wise, ZeroQuant and SmoothQuant O1. The token's scale is 100 times larger, its own codes are as good
# as before, and the other tokens have scales of their own. *Do not:* one scale for the tensor, dynamic or static: the step
# becomes 100 times coarser, and the other tokens keep about one code. A static scale copes only if calibration clipped the token,
# which then is itself wrong.
#
# *LLM.int8()* compares single numbers with a fixed threshold, so nearly every feature is an outlier when that token is in
# the batch: exact, and no longer int8. *SmoothQuant's* $s$ is a maximum per feature; all features have the same large one,
# so $s$ is nearly constant and moves nothing from one feature to another.
#
# *Experiment.* `X = X.copy(); X[0] *= 100`, then the error of rows 1 and later against the float product, for each scheme.
# *Remedy for O3:* leave the first token out of calibration, keep it apart in floating point, or take a percentile in place
# of the maximum. Lesson 16 meets such tokens in a real model.

# %% [markdown]
# ## Recall
#
# 1. Why can a scale per token and a scale per output channel be applied after the integer product, but not a scale per
#   input feature?
# <details><summary>Answer</summary>
#
# The sum runs over input features. What does not depend on the feature is a common factor of all terms and can stand
# outside; a scale per feature cannot.
#
# </details>
#
# 2. The ordinary entries of a token reach 2.0 and its outlier is 40. How many codes are left for them?
# <details><summary>Answer</summary>
#
# $c = \mathrm{round}(127 \cdot 2/40) = 6$, so 13 codes.
#
# </details>
#
# 3. In LLM.int8(), over what are $s_x$ and $s_w$ taken?
# <details><summary>Answer</summary>
#
# $s_x$ over the entries of the token outside $O$; $s_w$ over the whole row of $W$, outlier columns included, because
# $W$ is quantized once, before $O$ is known.
#
# </details>
#
# 4. Why does SmoothQuant leave the inputs of `mlp.down` alone?
# <details><summary>Answer</summary>
#
# They come out of a GELU, through which a factor does not pass: $\mathrm{GELU}(x/s) \ne \mathrm{GELU}(x)/s$. There is
# no norm to fold $s$ into.
#
# </details>
#
# 5. What does ZeroQuant's distillation need: labels, the whole model, the training data?
# <details><summary>Answer</summary>
#
# None of these: the inputs of one block and the outputs it used to give. Any text will do for the inputs, though a few
# thousand tokens are soon overfitted.
#
# </details>

# %% [markdown]
# ## Where the paper says this
#
# - LLM.int8(): Dettmers et al. (arXiv 2208.07339); §3.2 and equation (8) the decomposition, Table 1 the comparison (13
#   B parameters, C4 perplexity: 12.45 in float32, 19.08 absmax, 16.48 vector-wise, 12.45 LLM.int8()), §4 the outliers.
# - ZeroQuant: Yao et al. (arXiv 2206.01861), §4.1 (granularity) and §4.2 (layer-by-layer distillation).
# - SmoothQuant: Xiao et al. (arXiv 2211.10438), equations (3) and (4); Table 2 the levels O1 to O3.
#
# ## Where implementations differ
#
# - bitsandbytes reads the outlier columns of $W$ from their int8 codes (no 16-bit copy), lets below-threshold entries
#   of outlier columns count towards $s_x$, and passes $W$ and $X$ through float16: `LLMInt8(variant="bitsandbytes")`.
#   Its CPU layer in training mode does not quantize inputs at all.
# - SmoothQuant's repository uses one scale per output channel by default, and α = 0.85 to 0.9 for Llama.
# - DeepSpeed released ZeroQuant's quantization, but not the distillation; its symmetric step is $\max/2^{b-1}$, with
#   the last code clipped.
# - Speed: the gain of int8 is in hardware units that NumPy does not reach. Nothing here is faster than float32.
#
# ## What you can do now
#
# Tell from a heat map whether 8 bits will hold, and choose between taking outliers out and smoothing them away. Both
# spare the weights any loss; at 4 bits and below the weights are the problem. **Lesson 12** looks at the inputs again,
# this time to round weights better.
