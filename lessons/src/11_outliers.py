# %% [markdown]
# # 11 · Activations and outliers: LLM.int8(), ZeroQuant, SmoothQuant
#
# **What you will do.** You multiply matrices of integers instead of floats. You give a small model
# the outliers that large ones grow by themselves, and see 8 bits fail because of three columns.
# Then you build two cures and put them into the model: taking the columns out (LLM.int8()), and
# moving their size into the weights (SmoothQuant). ZeroQuant comes last, with a repair by
# training, block by block.
#
# **What you need.** Lesson 10: codes, scales, what shares a scale. What a layer norm's γ and β do
# (lesson 02).
#
# **Words and letters.** They are explained on first use, and all together in the
# [glossary](GLOSSARY.md).
#
# **Time.** 100 minutes for reading and the exercises. The open exercise takes 25 more, the bonus
# 10. Every cell together runs in well under a minute.

# %%
import copy

import numpy as np

import tinypeft as tp
from tinypeft.course import show, sliders, use
from tinypeft.course.slider import slider
from tinypeft.quant import folding, int8, llm_int8, plain, smoothquant, zeroquant
from tinypeft.quant.calibration import block_by_block
from tinypeft.study import plot

model = tp.load_pretrained()
task = tp.tasks.domain(model.tokenizer, context=128)
tokens = next(iter(task.batches("test", 4)))[0]                           # (4, 128): 512 tokens
calibration = task.batch("train", 16, np.random.default_rng(0))[0]        # (16, 128)
perplexity = lambda m, **few: tp.evaluate(m, task, "test", **few)["perplexity"]


def inputs_of(m, path, text=tokens):
    """The inputs of the layer at `path` while the model reads `text`, (number of tokens, d_in)."""
    seen, layer = [], m.get(path)
    class Spy(tp.Module):
        def forward(self, x):
            seen.append(x.data)
            return layer(x)
    tp.engine.nn.replace_modules(m, {path: Spy()})
    with tp.no_grad(): m(text)
    tp.engine.nn.replace_modules(m, {path: layer})
    return seen[0].reshape(-1, seen[0].shape[-1])


def error(Y_hat, X, W):
    """‖Ŷ − XWᵀ‖/‖XWᵀ‖ in per cent."""
    Y = X @ W.T
    return 100 * float(np.linalg.norm(Y_hat - Y) / np.linalg.norm(Y))


path = "blocks.2.mlp.up"
X, W = inputs_of(model, path), model.get(path).weight.data

# %% [markdown]
# ## 1. A product of integers
#
# In lesson 10 the weights were stored as integers and decoded before use, and the product was one
# of floats. The inputs of a linear layer, its *activations*, can be rounded as well. Then the
# product itself is one of integers, for which many processors have fast units. Let $X$ be the
# inputs (tokens × features). A row is a token, and a column is a *feature*: one of the numbers that
# describe every token. $X$ has one scale $s_x$ per row. The weight $W$ has one scale $s_w$ per row,
# an output channel. With the codes $q$, both scales stand outside the sum:
#
# $$Y = X W^\top \approx s_x\, s_w \cdot (q_x\, q_w^\top), \qquad q = \mathrm{round}(x/s), \quad s =
# \max|x|/127 \tag{1}$$
#
# A scale per *column* of $X$ could not be pulled out: it would sit inside the sum, which runs over
# the features. Keep this in mind. The whole lesson turns on it.
#
# ### {exercise}
#
# Here is the product of codes, in the type in which they are stored:

# %%
def careless_product(q_x, q_w):
    """Codes int8 (n, K) and (d_out, K) → their product (n, d_out)."""
    return q_x @ q_w.T


rng = np.random.default_rng(0)
q_x, q_w = (rng.integers(-127, 128, (rows, 128)).astype(np.int8) for rows in (2, 4))
as_floats = q_x.astype(float) @ q_w.T.astype(float)
print("codes multiplied as floats:", as_floats[0])
print("by the program:            ", careless_product(q_x, q_w)[0])

# %% [markdown]
# *What to see: both lines should be the same. The second is wrong altogether.* No error and no
# warning was raised.
#
# Find the bug and write `outliers_bug(q_x, q_w)`, the mended product of codes int8 `(n, K)` and
# `(d_out, K)`. It must be exact, also for long sums: the check goes up to $K = 2001$. Which
# integers can a float32 hold?

# %% exercise=outliers.bug points=2 minutes=8 as=my_product
def outliers_bug(q_x, q_w):
    """Codes int8 (n, K) and (d_out, K), −127 … 127 → their exact product (n, d_out)."""

# %%
print("largest difference:", abs(np.asarray(my_product(q_x, q_w)) - as_floats).max())

# %% [markdown]
# Compare yours with the package's. It computes with floats, because NumPy is fast with these only.
# A float32 holds every integer up to $2^{24}$, so the sum is exact as long as $127^2 K \le 2^{24}$,
# which is true up to $K = 1040$. Longer sums are cut into pieces.

# %%
show(int8.int8_matmul)

# %% [markdown]
# ## 2. What the inputs look like
#
# The vector of a token inside the model is its *hidden state*. The LLM.int8() paper reports that
# from about 6.7 billion parameters on a handful of features of the hidden state become some twenty
# times larger than the rest. They are the same ones in all layers and for most tokens. These are
# *outlier* features. Our base has a million parameters and has none, so `plant_outliers` makes
# three. It multiplies γ and β of every norm in the blocks by 32 in three channels, and divides
# those columns of the layers that read the norm by 32. The function stays the same, bit for bit.

# %%
hard = copy.deepcopy(model)
planted = tp.plant_outliers(hard, channels=3, factor=32.0, rng=0)
X_hard, W_hard = inputs_of(hard, path), hard.get(path).weight.data
print("planted channels:", planted,
      "  same logits:", np.array_equal(model(tokens).data, hard(tokens).data))

# %% fold
fig, axes = plot.figure(1, 2, height=3.4, width=8.4)
titles = "the base", "with three planted channels"
for ax, A, title in zip(axes, (X, X_hard), titles, strict=True):
    image = ax.imshow(np.log10(np.abs(A[:96]) + 1e-2), aspect="auto", cmap="viridis",
                      vmin=-2, vmax=2.1, interpolation="nearest")
    ax.set(xlabel="feature", ylabel="token", title=title)
    ax.grid(False)
fig.colorbar(image, ax=axes, label="log₁₀ |input|")
fig.set_label("Two heat maps, tokens by features. On the right three columns are bright from top "
              "to bottom.")
fig

# %% [markdown]
# *What to see: on the left all features are of about the same size, except two that are almost
# zero. On the right three columns are bright from top to bottom. Outliers belong to features, not
# to tokens.*
#
# ## 3. Why three columns spoil the rest
#
# A token's scale is $m/127$, where $m$ is its largest entry. If the ordinary entries go up to $m'$
# only, they reach the codes $-c, \dots, c$ with $c = \mathrm{round}(127\, m'/m)$. By hand: for
# $m' = 2$ and $m = 40$ it is $c = 6$, so 13 of the 255 codes are used. Which number do you expect
# with our outliers, as a median over the tokens? This is what is known of the base. The three
# planted columns become 32 times as large.

# %%
print("largest entry of a token in the base, median over tokens:")
for name, A in (("over all features", X), ("over the three columns", X[:, planted])):
    print(f"  {name:23} {np.median(np.abs(A).max(1)):.1f}")
left = tp.guess("11.codes_left", 9, "codes")

# %%
def codes_left(X, O):
    """For each token the codes −c … c that entries outside the columns O can reach: 2 c + 1."""
    rest = np.delete(np.abs(X), O, axis=1).max(1)
    return 2 * np.rint(127 * rest / np.abs(X).max(1)) + 1


print("median over tokens, in the base:", np.median(codes_left(X, planted)), "codes")
left.beside(np.median(codes_left(X_hard, planted)))

# %% [markdown]
# With 32 times the largest entry of all, 9 codes would be left. But the planted columns are 32
# times as large as *they* were, and they were not the largest before.
#
# ### {exercise}
#
# How large must one more entry be, so that it leaves nothing at all? Write `outliers_drown(x)`: the
# magnitude $m$ of an entry beside which every entry of the token `x (d,)` is rounded to the code 0.
# It may be at most 0.5 % larger than it has to be.

# %% exercise=outliers.drown points=2 minutes=6
def outliers_drown(x):
    """x float (d,) → the least magnitude of one more entry that leaves all codes of x at 0."""

# %%
token = X[100]
m = float(result.function(token))
print(f"the token's largest entry is {np.abs(token).max():.2f}, and yours {m:.0f}")
for size in (m, m / 2, m / 10):
    q = np.rint(127 * token / size)
    print(f"beside {size:6.1f}: {np.count_nonzero(q)} of {len(q)} entries have a code other than 0")

# %% [markdown]
# How much this costs depends on who shares the scale. The paper's Table 1 compares *absmax* (one
# scale for all of $X$, one for all of $W$), *row-wise* (one per token, one for $W$) and
# *vector-wise* (one per token, one per output channel). The last is yours to write.
#
# ### {exercise}
#
# Write the vector-wise product `outliers_vector_wise(X, W)`: symmetric 8-bit codes from −127 to
# 127, one scale per row of `X (n, d_in)` and one per row of `W (d_out, d_in)`. Return `(n, d_out)`.
# No row is all zeros. Find out first which axis of the result each of the two scales belongs to.

# %% exercise=outliers.vector_wise points=3 minutes=10 as=my_vector_wise
def outliers_vector_wise(X, W):
    """X float (n, d_in), W float (d_out, d_in) → the product of their 8-bit codes, scaled back."""

# %%
def integer_product(X, W, activations, weights):
    """The package's product of integers; the two words say what shares a scale."""
    Q, s = int8.int8_inputs(X, activations)
    return s * int8.scaled_matmul(Q, tp.Uniform(8, granularity=weights).quantize(W))


products = {
    "absmax": lambda X, W: integer_product(X, W, activations="tensor", weights="tensor"),
    "row-wise": lambda X, W: integer_product(X, W, activations="token", weights="tensor"),
    "vector-wise, yours": my_vector_wise}
for name, product in products.items():
    usual, spoilt = error(product(X, W), X, W), error(product(X_hard, W_hard), X_hard, W_hard)
    print(f"{name:18} {usual:6.2f} %   with outliers {spoilt:6.2f} %, "
          f"{spoilt / usual:.0f} times as much")

# %% [markdown]
# Finer scales help, but the outliers make every variant many times worse, as the last number of
# each line says. Every token carries the outliers, so no token's own scale escapes them. Make them
# grow:

# %%
frames, told = {}, {}
for factor in (1, 2, 4, 8, 16, 32, 64, 128):
    grown = np.ones(X.shape[1], np.float32)
    grown[planted] = factor
    A, V = X * grown, W / grown
    codes = np.rint(127 * A[100] / np.abs(A[100]).max())
    frames[factor] = {"codes of one token": (np.arange(128), codes)}
    off = error(np.asarray(my_vector_wise(A, V)), A, V)
    told[factor] = f"the error of your product is {off:.2f} %"
slider("the three columns times", frames, captions=told, xlabel="feature", ylabel="code")

# %% [markdown]
# *What to see: the larger the three columns, the fewer codes are left for the rest.*
#
# Compare yours with the package's. In the second function `signed_codes` are $q_w$, `int8_matmul`
# is that of section 1, and `scaled` multiplies by $s_w$. `kept` remembers what it has computed.

# %%
show(int8.int8_inputs)
show(int8.scaled_matmul)

# %% [markdown]
# ## 4. LLM.int8(): take the columns out
#
# A product of matrices is a sum over the columns of $X$, so columns can be taken out and added
# again:

# %%
show("schematic:outliers")

# %% [markdown]
# Dettmers et al. split the sum over features in two. Columns of $X$ in which any magnitude reaches
# a *threshold* $\tau = 6$ are the outlier columns $O$. They are multiplied in floating point, with
# the weights as they were. All other columns are multiplied as integers, and both results are
# added. $O$ is found anew in every call. (The paper's letter is α, which is kept for section 5. In
# other lessons τ is a temperature.)
#
# By hand, for $x = (2, -1, 40)$ and $w = (0.5, 0.25, 1)$, whose product is $40.75$. The scale of
# $w$ is $1/127$, its codes $(64, 32, 127)$. Without the split $s_x = 40/127$ and the codes are
# $(6, -3, 127)$: $\frac{40}{127^2} (6 \cdot 64 - 3 \cdot 32 + 127^2) = 40.714$. With the split the
# third column gives $40 \cdot 1$. The rest has $s_x = 2/127$ and the codes $(127, -64)$, and gives
# $\frac{2}{127^2}(127 \cdot 64 - 64 \cdot 32) = 0.754$. The error falls from $0.036$ to $0.004$.
#
# ### {exercise}
#
# Write `outliers_llm_int8(X, W, threshold)`. Return `(Y, O)`, the product $Y$ `(n, d_out)` and the
# outlier columns, ascending. Think about the scales: over which entries must $s_x$ be taken so that
# the split helps? $s_w$ is taken over whole rows of $W$, because $W$ is quantized before any input
# is seen. Where a token has nothing but outliers and zeros, its scale must not become 0. All
# columns may be outlier columns, or none, and the threshold may be any number above 0. Multiply the
# outlier columns in the dtype of `X`. (The paper takes 16 bits there, which helps a GPU only.)

# %% exercise=outliers.llm_int8 points=4 minutes=15 as=my_llm_int8
def outliers_llm_int8(X, W, threshold=6.0):
    """X float (n, d_in), W float (d_out, d_in) → Y (n, d_out), and the outlier columns O."""

# %% [markdown]
# <details><summary>The equation of the paper, with our letters</summary>
#
# $$X W^\top \approx \sum_{h \in O} X_h W_h^\top + s_x\, s_w \cdot \sum_{h \notin O} q_{x,h}\,
# q_{w,h}^\top \tag{2}$$
#
# </details>
#
# **Your product, inside the model.** For the next cell your functions compute all linear layers in
# the blocks, on 512 tokens of text. Within the block of `with use(…)`, `tp.engine.Linear` has your
# forward pass.

# %%
def perplexity_with(product, m):
    """Perplexity of m on 512 tokens when product(X, W) computes every linear layer."""
    def forward(self, x):
        Y = np.asarray(product(x.data.reshape(-1, self.d_in), self.weight.data))
        Y = Y.reshape(*x.shape[:-1], self.d_out) + (0 if self.bias is None else self.bias.data)
        return tp.Tensor(Y.astype(np.float32))
    with use(tp.engine.Linear, forward=forward): return perplexity(m, batch_size=4, max_batches=1)


for name, product in {**products, "LLM.int8(), yours": lambda X, W: my_llm_int8(X, W, 6.0)[0],
                      "floats": lambda X, W: X @ W.T}.items():
    print(f"{name:18} perplexity {perplexity_with(product, model):6.2f}   "
          f"with outliers {perplexity_with(product, hard):6.2f}")

# %% [markdown]
# *What to see: with outliers the first three are worse than floats, absmax most of all. LLM.int8()
# is as good as floats.* On 512 tokens a difference of a tenth is chance.
#
# Compare yours with the package's. `plain.llm_int8` is equation (8) of the paper and no more. It
# rounds the outlier columns of $W$ to 16 bits, and it has none of your guards: a token of nothing
# but outliers makes it divide by 0. The layer in the model has them, in `inputs`.

# %%
show(plain.llm_int8)
show(llm_int8.inputs)
show(llm_int8.LLMInt8Linear.product)

# %% [markdown]
# Now your product over many thresholds. Move τ: what lies above the line is computed in floats.

# %%
largest = np.sort(np.abs(X_hard).max(0))[::-1]
frames, told = {}, {}
for tau in (1.0, 2.0, 3.0, 4.0, 6.0, 10.0, 20.0, 40.0, 80.0, 160.0):
    Y, O = my_llm_int8(X_hard, W_hard, tau)
    frames[tau] = {"τ": ([0, len(largest)], [tau, tau])}
    off = error(np.asarray(Y), X_hard, W_hard)
    told[tau] = f"{len(O)} columns in floats, the error is {off:.2f} %"
slider("τ", frames, captions=told, behind={"largest |x|": (np.arange(len(largest)), largest)},
       xlabel="column, the largest first", ylabel="largest magnitude", ylog=True)

# %% [markdown]
# And as a curve:

# %%
thresholds = np.geomspace(2, 200, 25)
curve = [(error(np.asarray(Y), X_hard, W_hard), len(O))
         for Y, O in (my_llm_int8(X_hard, W_hard, t) for t in thresholds)]

# %% fold
fig, ax = plot.figure()
ax.plot(thresholds, [e for e, _ in curve], color=plot.COLOURS["blue"])
ax.set(xscale="log", yscale="log", xlabel="threshold τ (in units of the inputs)",
       ylabel="error of the product (%)")
for (e, n), t in list(zip(curve, thresholds, strict=True))[::4]:
    ax.annotate(f"{n}", (t, e), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8)
ax.axvline(6, color=plot.COLOURS["grey"], lw=1, ls="--")
ax.set_title("the numbers count columns in floating point", loc="left", fontsize=10)
fig.set_label("The error against the threshold: flat from 6 to the size of the outliers, then a "
              "jump to eleven times as much.")
fig

# %% [markdown]
# *What to see: between 6 (dashed, the paper's choice) and the size of the outliers the error is
# flat, at the level of a model that has none. Lower thresholds put more and more columns into
# floating point. Above the outliers everything is quantized, and the error is eleven times as
# large.*
#
# What is stored? $O$ depends on the input, so taken literally the method needs all of $W$ in 16
# bits as well. The package keeps the columns that were outliers in calibration, and for each of
# them its index in 32 bits, which makes $32/d_\mathrm{out}$ per weight of that column. With $k$ of
# them,
#
# $$\mathrm{bits/weight} = 8 + \frac{32}{d_\mathrm{in}} + \frac{k}{d_\mathrm{in}}\left(16 +
# \frac{32}{d_\mathrm{out}}\right) \tag{3}$$

# %%
layer = tp.quantize(copy.deepcopy(hard), tp.LLMInt8(), calibration, progress=False).get(path)
k, (d_out, d_in) = len(layer.columns), W.shape
print(layer.columns, f"{8 * layer.nbytes / W.size:.3f} bits/weight;",
      f"by the formula {8 + 32 / d_in + k / d_in * (16 + 32 / d_out):.3f}")

# %% [markdown]
# In a model with $d = 4096$ and seven outlier features this is well under 1 % more. At $d = 128$ it
# is not nothing.
#
# ## 5. SmoothQuant: move the size into the weights
#
# Outliers sit in *columns* of $X$. A scale $s_j$ per column $j$ would cure them at once, but it
# cannot be pulled out of the sum. It can be pulled *into the weight*:
#
# $$Y = \left(X\,\mathrm{diag}(s)^{-1}\right) \left(\mathrm{diag}(s)\, W^\top\right) \tag{4}$$
#
# Dividing column $j$ of $X$ by $s_j$ and multiplying column $j$ of $W$ by it changes nothing:

# %%
s = np.random.default_rng(0).uniform(0.5, 2, X.shape[1]).astype(np.float32)
print(f"difference of the outputs, relative: {error((X / s) @ (W * s).T, X, W):.1e} %")

# %% [markdown]
# At run time the division is free. $X$ is the output of a layer norm,
# $X = \gamma \odot \hat h + \beta$, where $\hat h$ is the normalized hidden state. So γ, β and $W$
# can be changed once and for all.
#
# How much should be moved? A number α between 0 and 1 shares the difficulty between the two sides.
# With the columns $X_j$ and $W_j$, $s_j$ is a power of $\max|X_j|$ times a power of $\max|W_j|$.
# The exponents grow evenly with α, so two demands settle them: with α = 0 all columns of $W$ get
# the maximum 1, with α = 1 all columns of $X$. At α = ½ both sides then get the same maximum in
# every column. By hand: two columns with $\max|X_j| = (2, 32)$ and $\max|W_j| = (2, 0.5)$. At α = ½
# it is $s = (1, 8)$, and both sides become $(2, 4)$.
#
# ### {exercise}
#
# Write `outliers_smooth(gamma, beta, weights, max_abs, alpha)`. A norm with `gamma (d,)` and
# `beta (d,)` feeds several layers. `weights` is the list of their `(d_out, d)`. `max_abs (d,)` is
# $\max|X_j|$ in calibration. Return `(gamma, beta, weights)` after smoothing, as new arrays, so
# that every layer computes what it did. All layers that read the norm share one $s$, so $\max|W_j|$
# runs over all of them. Derive $s_j$ from the two demands, and from
# $X = \gamma \odot \hat h + \beta$ what becomes of γ and β. No maximum is zero here.

# %% exercise=outliers.smooth points=4 minutes=15 as=my_smooth
def outliers_smooth(gamma, beta, weights, max_abs, alpha=0.5):
    """γ, β (d,), weights: a list of (d_out, d), max_abs (d,) → the smoothed (γ, β, weights)."""

# %% [markdown]
# <details><summary>The scale as an equation</summary>
#
# $$s_j = \frac{\max|X_j|^{\alpha}}{\max|W_j|^{1-\alpha}} \tag{5}$$
#
# </details>
#
# The example from above:

# %%
show("schematic:smoothing")

# %% [markdown]
# **Your smoothing, in the model.** It smooths every norm of the model with outliers. Then weights
# and inputs, the *activations*, are rounded to 8 bits. That is called *W8A8*.

# %%
def smoothed_by_me(m, alpha):
    """A copy of m, every norm in its blocks smoothed by my_smooth."""
    m = copy.deepcopy(m)
    for norm, readers in folding.followers(m).items():           # a norm, and who reads it
        source, layers = m.get(norm), [m.get(reader) for reader in readers]
        max_abs = np.abs(inputs_of(m, readers[0], calibration)).max(0)
        weights = [layer.weight.data for layer in layers]
        gamma, beta, new = my_smooth(source.weight.data, source.bias.data, weights, max_abs, alpha)
        source.weight.data, source.bias.data = np.float32(gamma), np.float32(beta)
        for layer, V in zip(layers, new, strict=True): layer.weight.data = np.float32(V)
    return m


def rounded(m, scheme):
    """A quantized copy of m."""
    return tp.quantize(copy.deepcopy(m), scheme, calibration, progress=False)


mine = rounded(smoothed_by_me(hard, 0.5), tp.W8A8(weights="tensor", activations="token"))
theirs = rounded(hard, tp.SmoothQuant(alpha=0.5, activations="token"))
print(f"perplexity with outliers: {perplexity(mine, max_batches=2):.2f} with your smoothing, "
      f"{perplexity(theirs, max_batches=2):.2f} with the package's")

# %% [markdown]
# Compare yours with the package's.

# %%
show(smoothquant.smoothing_factors)
show(folding.fold_scale)

# %% [markdown]
# Now over α. Move the handle. Here the outliers are put into $X$ alone, and the weights are left as
# they are. This is closer to a real large model, where the columns of $W$ that meet outliers are no
# smaller than others. Drawn are 40 of the 128 features, at equal distances in the order of their
# largest inputs: number 0 has the smallest, number 39 the largest.

# %%
X_out = X.copy()
X_out[:, planted] *= 32
sliders.smoothing(X_out, W)

# %% fold
largest_x, largest_w = np.abs(X_out).max(0), np.abs(W).max(0)
alphas = np.linspace(0, 1, 21)
def smoothed(alpha):
    s = smoothquant.smoothing_factors(largest_x, [W], alpha)
    return X_out / s, W * s
sweep = {kind: [error(integer_product(*smoothed(a), activations=kind, weights="channel"), X_out, W)
                for a in alphas] for kind in ("token", "tensor")}

fig, ax = plot.figure(height=3)
for (kind, values), colour in zip(sweep.items(), ("blue", "orange"), strict=True):
    ax.plot(alphas, values, color=plot.COLOURS[colour])
    ax.annotate(f"inputs per {kind}", (alphas[3], values[3]), xytext=(4, 4), fontsize=8,
                textcoords="offset points", color=plot.COLOURS[colour])
ax.set(yscale="log", xlabel="α", ylabel="error of the product (%)")
ax.set_title("α = 0: all columns of W have one maximum; α = 1: all columns of X", loc="left",
             fontsize=10)
ax.set_xticks([0, 0.25, 0.5, 0.75, 1])
fig.set_label("The error of the product against α, two valleys. Both are high at α = 0 and at "
              "α = 1, and lowest in between.")
fig

# %% [markdown]
# *What to see: with the handle at ½ the inputs' maxima and the weights' lie on one line. The curve
# is a valley. At α = 0 the inputs remain hard, at α = 1 the weights have become so, and the least
# error lies between.*
#
# The outliers of `plant_outliers` would show no valley. There the columns of $W$ were divided by
# 32, and $s_j$ grows by $32^\alpha \cdot 32^{1-\alpha} = 32$ whatever α is. So smoothing undoes the
# planting *exactly*. A made-up difficulty can be too kind to the method under test.
#
# ## 6. ZeroQuant: groups of weights, and a repair
#
# ZeroQuant also takes one dynamic scale per token. For weights it takes one scale per *group*: a
# matrix is cut into 64 groups, which are 2 or 8 rows each in our model. That is finer than one
# scale for the matrix and coarser than one per row. Against outliers it has no remedy, and it
# failed on large models: in SmoothQuant's Table 3 OPT-175B keeps an average accuracy of 35.8 %
# under ZeroQuant, of 66.9 % in FP16.
#
# Its second idea has lasted. Where 4 bits are asked for, each block $L_k$ is trained alone. Its
# rounded copy $\hat L_k$ learns to give the outputs that the block gave before, for the inputs $x$
# that the rounded blocks before it now produce ($h_0$ is the embedding). To train one network to
# give the outputs of another is called *distillation*. The one that learns is the *student*:
#
# $$\min_{\hat W}\ \mathrm{MSE}\left(L_k(x),\ \hat L_k(x)\right), \qquad x = \hat L_{k-1} \cdots
# \hat L_1 (h_0) \tag{6}$$
#
# MSE is the mean squared error. Only one block is held in memory for training, and no labels are
# needed. Rounding has derivative 0, so the gradient is passed straight through it. Lesson 14 is
# about why that works.

# %%
show(zeroquant.distill)

# %%
scheme = tp.ZeroQuant(bits=4)      # its student(layer, bits) rounds in each forward pass
names = ["attention.query", "attention.key", "attention.value", "attention.output", "mlp.up",
         "mlp.down"]
batches = [calibration[i:i + 4] for i in (0, 4, 8)]                       # 1,536 tokens
unseen = task.batch("test", 16, np.random.default_rng(1))[0]              # 2,048 others
with tp.no_grad():
    _, block, xs = next(block_by_block(copy.deepcopy(model), batches))    # block 1 and its inputs
    student = copy.deepcopy(block)                               # its layers will round to 4 bits
    rounding = {name: scheme.student(student.get(name), 4) for name in names}
    tp.engine.nn.replace_modules(student, rounding)
    _, _, others = next(block_by_block(copy.deepcopy(model), [unseen]))
    mse = lambda xs: np.mean([np.square(student(x).data - block(x).data).mean() for x in xs])
    before = mse(xs), mse(others)
    zeroquant.distill(block, student, xs, steps=40, lr=3e-4)
    after = mse(xs), mse(others)

for i, name in enumerate(("these tokens", "others")):
    print(f"MSE of the block's output on {name:12}: {before[i]:.4f} before, "
          f"{after[i]:.4f} after 40 steps")

# %% [markdown]
# *What to see: on the tokens that it was trained on the student's error falls to half, and on
# others by a good third.* Training repairs a part of what rounding to 4 bits has done to the block.
# The rest of what it seems to repair is overfitting: 1,536 tokens are few.
#
# ## 7. The whole model
#
# SmoothQuant has three levels, all with one
# scale per weight matrix. *O1* has one scale per token and *O2* one per call, both found at run
# time (*dynamic*). *O3* has one scale for all calls, found in calibration (*static*). Guess the
# perplexity of absmax on the model with outliers. The next cell prints that of float32. (It reads
# more text than section 4 did, so it is another number for the same model. How much worse absmax
# was on the text of section 4, you have seen there, and may use it.)

# %%
print(f"float32: {perplexity(model, max_batches=2):.2f}")
absmax = tp.guess("11.absmax", 22.0)
absmax

# %%
schemes = {"W8A8 absmax": tp.W8A8(weights="tensor", activations="tensor"),
           "W8A8 row-wise": tp.W8A8(weights="tensor", activations="token"),
           "W8A8 vector-wise": tp.W8A8(weights="channel", activations="token"),
           "ZeroQuant": tp.ZeroQuant(),
           "LLM.int8()": tp.LLMInt8(), "SmoothQuant O1": tp.SmoothQuant(activations="token"),
           "SmoothQuant O3": tp.SmoothQuant(activations="static")}
for name, scheme in schemes.items():
    base, outliers = (perplexity(rounded(m, scheme), max_batches=2) for m in (model, hard))
    print(f"{name:17} {base:6.2f}   with outliers {outliers:6.2f}")
    if name == "W8A8 absmax": spoilt = outliers
absmax.beside(spoilt)

# %%
show("int8_outliers")

# %% [markdown]
# *What to see: at the left end, without outliers, all lines show an error of a few per cent of the
# logits. In the table above that costs at most 1 % of perplexity, and LLM.int8() has nothing to
# solve. The larger the outliers, the more the other schemes lose, and LLM.int8() loses nothing. The
# line "zero-point" is absmax with asymmetric grids, from the smallest number to the largest, which
# hardly helps. SmoothQuant is in the table only. There ZeroQuant lies between row-wise and
# vector-wise, as its groups do.*
#
# ### {exercise}
#
# The inputs of `mlp.down` come out of a GELU, so they are lopsided, and reach much further above 0
# than below it: none is below −0.17. A zero point $z$ per token spends no codes on numbers that do
# not occur. But the processor multiplies the codes as they are. Write
# `outliers_zero_point(product, z, q_w)`: given `product`, which is $q_x
# q_w^\top$ `(n, d_out)`, the zero points `z (n,)` of the tokens, and `q_w` int8 `(d_out, K)`,
# return $\sum_k (q_x - z)\, q_w$, `(n, d_out)`.

# %% exercise=outliers.zero_point points=2 minutes=10 bonus=yes as=my_zero_point
def outliers_zero_point(product, z, q_w):
    """Integers: product (n, d_out), z (n,), q_w (d_out, K) → the product of q_x − z and q_w."""

# %%
X_down, W_down = inputs_of(model, "blocks.2.mlp.down"), model.get("blocks.2.mlp.down").weight.data
low, high = X_down.min(1, keepdims=True), X_down.max(1, keepdims=True)
s_x, s_w = (high - low) / 255, np.abs(W_down).max(1, keepdims=True) / 127
z = np.rint(-low / s_x).astype(int)
q_x = np.clip(np.rint(X_down / s_x).astype(int) + z, 0, 255)
q_w = np.rint(W_down / s_w).astype(np.int8)
with_zeros = s_x * s_w.T * np.asarray(my_zero_point(q_x @ q_w.T.astype(int), z[:, 0], q_w))
print(f"inputs from {X_down.min():.2f} to {X_down.max():.2f}; error of the product: "
      f"symmetric {error(my_vector_wise(X_down, W_down), X_down, W_down):.2f} %, "
      f"with zero points {error(with_zeros, X_down, W_down):.2f} %")

# %% [markdown]
# ### {exercise} · A token that stands out (open, 4 points, 25 minutes)
#
# In a model that you are given, one *token* (the first of every row) has inputs 100 times larger
# than all other tokens, in all features. No feature stands out otherwise. Which of the schemes of
# this lesson cope, and which do not? Say what each one's scale would be, then test your prediction:
# scale one row of `X` by 100 and measure the error on the *other* rows. What would you do about
# static scales (O3)?
#
# <details><summary>Rubric</summary>
#
# 1 point: which schemes cope, with the scale that each would use. 1 point: which do not, and on
# what that depends. 1 point: what LLM.int8() and SmoothQuant do here. 1 point: an experiment that
# shows it, and a remedy for O3.
#
# </details>

# %% [answer]
# *Cope:* row-wise, vector-wise, ZeroQuant and SmoothQuant O1. The token's scale is 100 times
# larger, its own codes are as good as before, and the other tokens have scales of their own. *Do
# not:* one scale for the tensor, dynamic or static. The step becomes 100 times coarser, and the
# other tokens keep about one code. A static scale copes only if calibration clipped the token,
# which then is itself wrong.
#
# *LLM.int8()* compares single numbers with a fixed threshold, so nearly every feature is an outlier
# when that token is in the batch: exact, and no longer int8. *SmoothQuant's* $s$ is a maximum per
# feature. All features have the same large one, so $s$ is nearly constant and moves nothing from
# one feature to another.
#
# *Experiment.* `X = X.copy(); X[0] *= 100`, then the error of rows 1 and later against the float
# product, for each scheme. *Remedy for O3:* leave the first token out of calibration, keep it apart
# in floating point, or take a percentile in place of the maximum. Lesson 16 meets such tokens in a
# real model.

# %% [markdown]
# ## The real call
#
# LLM.int8() on a model in a folder, with transformers and bitsandbytes:
#
# ```python
# from transformers import AutoModelForCausalLM, BitsAndBytesConfig
# eight_bits = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6.0)     # τ of section 4
# model = AutoModelForCausalLM.from_pretrained(
#     "folder-of-the-model", quantization_config=eight_bits)
# ```

# %% [markdown]
# ## Recall
#
# 1. Why can a scale per token and a scale per output channel be applied after the integer product,
# but not a scale per input feature?
# <details><summary>Answer</summary>
#
# The sum runs over input features. What does not depend on the feature is a common factor of all
# terms and can stand outside. A scale per feature cannot.
#
# </details>
#
# 2. The ordinary entries of a token reach 3.0 and its outlier is 50. How many codes are left for
# them?
# <details><summary>Answer</summary>
#
# $c = \mathrm{round}(127 \cdot 3/50) = 8$, so 17 codes.
#
# </details>
#
# 3. In LLM.int8(), over what are $s_x$ and $s_w$ taken?
# <details><summary>Answer</summary>
#
# $s_x$ over the entries of the token outside $O$; $s_w$ over the whole row of $W$, outlier columns
# included, because $W$ is quantized once, before $O$ is known.
#
# </details>
#
# 4. Why does SmoothQuant leave the inputs of `mlp.down` alone?
# <details><summary>Answer</summary>
#
# They come out of a GELU, through which a factor does not pass: $\mathrm{GELU}(x/s) \ne
# \mathrm{GELU}(x)/s$. There is no norm to fold $s$ into.
#
# </details>
#
# 5. What does ZeroQuant's distillation need: labels, the whole model, the training data?
# <details><summary>Answer</summary>
#
# None of these. It needs the inputs of one block and the outputs that the block used to give. Any
# text will do for the inputs, though a few thousand tokens are soon overfitted.
#
# </details>

# %% [markdown]
# ## Where the paper says this
#
# * LLM.int8(): Dettmers et al. (arXiv 2208.07339); §3.2 and equation (8) the decomposition, Table 1
#   the comparison (13 B parameters, C4 perplexity: 12.45 in float32, 19.08 absmax, 16.48
#   vector-wise, 12.45 LLM.int8()), §4 the outliers.
# * ZeroQuant: Yao et al. (arXiv 2206.01861), §4.1 (granularity) and §4.2 (layer-by-layer
#   distillation).
# * SmoothQuant: Xiao et al. (arXiv 2211.10438), equations (3) and (4), here (4) and (5); Table 2
#   the levels O1 to O3.
#
# ## Where implementations differ
#
# * bitsandbytes reads the outlier columns of $W$ from their int8 codes (no 16-bit copy), lets
#   below-threshold entries of outlier columns count towards $s_x$, and passes $W$ and $X$ through
#   float16: `LLMInt8(variant="bitsandbytes")`. Its CPU layer in training mode does not quantize
#   inputs at all.
# * SmoothQuant's repository uses one scale per output channel by default, and α = 0.85 to 0.9 for
#   Llama.
# * DeepSpeed released ZeroQuant's quantization, but not the distillation. Its symmetric step is
#   $\max/2^{b-1}$, with the last code clipped.
# * Speed: the gain of int8 is in hardware units that NumPy does not reach. Nothing here is faster
#   than float32. SmoothQuant's abstract has up to 1.56 times the speed of FP16.
#
# ## What you can do now
#
# Tell from a heat map whether 8 bits will hold, and choose between taking outliers out and
# smoothing them away. Both leave 8-bit weights nearly as good as they were. At 4 bits and
# below the weights are the problem. **Lesson 12** looks at the inputs again, this time to round
# weights better.
