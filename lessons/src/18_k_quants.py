# %% [markdown]
# # 18 · Rounding after 2023
#
# **What you will do.** A model that people download for their own machine is most often a file of
# llama.cpp with a name such as `Q4_K_M`. There is no paper on it. You take its decisions apart and
# try each one on real weights: what a scale costs, what is worth searching for, whose error counts,
# and which layer deserves more bits. You find out from decoded weights alone in which type they
# were stored, design a search of your own, put it into the package, and share out bits among
# layers.
#
# **What you need.** Lesson 10 (grids, groups, bits per weight), lesson 12 (the error of an output),
# and lesson 13 (scales that are rounded themselves).
#
# **Words and letters.** The [glossary](GLOSSARY.md) has those that all lessons share.
# $x$ is a weight here, $q$ its code, and $w$ how much its error counts. $s$ and $m$ are the scale
# and the minimum of a sub-block. $d$ and $e$ are the two scales of a superblock, $sc$ and $mn$ its
# whole numbers. $h$ is the importance of an input.
#
# **Time.** 100 minutes: 45 of reading and running, 55 of exercises.
# The open exercise takes 25 more, and the bonus 15.

# %%
import copy

import numpy as np

import tinypeft as tp
from tinypeft.course import show, use
from tinypeft.course.slider import slider
from tinypeft.models.targets import match_targets
from tinypeft.quant import calibration, gguf, k_quants
from tinypeft.quant.codebooks import codebook
from tinypeft.study import plot

model = tp.load_pretrained()
task = tp.tasks.domain(model.tokenizer, context=128)
paths = [path for path, _ in match_targets(model, "all")]         # 30 layers of 5 blocks
W = model.get("blocks.1.mlp.down").weight.data                    # (128, 512)
batches = [task.batch("test", 8, np.random.default_rng(i)) for i in range(16)]

def losses(m):
    """The loss on each of 16 batches, which are the same for all models."""
    with tp.no_grad():
        return np.array([task.loss(m, batch).data.item() for batch in batches])

exact = losses(model)

# %% [markdown]
# ## 1. What a scale costs
#
# In lesson 10 a scale of 16 bits for 32 weights cost half a bit per weight. A minimum of
# 16 bits beside it costs as much again. llama.cpp's first types pay that: `Q4_0` has a scale,
# `Q4_1` a scale and a minimum. Its types of 2023, the *K-quants*, round scales and minima to whole
# numbers. In `Q4_K` these have six bits, and 256 weights of a row are a *superblock* of eight
# *sub-blocks* $j$:

# %%
show("schematic:superblock")

# %% [markdown]
# A weight is read as
#
# $$\hat x = d\, sc_j\, q - e\, mn_j$$
#
# and a superblock has
#
# $$256 \cdot 4 + 8 \cdot (6 + 6) + 2 \cdot 16 = 1152 \text{ bits}$$
#
# These are 4.5 bits for each weight, as in `Q4_0`, and there are minima besides.
# ([K-quants](../tinypeft/quant/K_QUANTS.md) shows the 144 bytes of a superblock.)
#
# ### {exercise}
#
# Somebody reads the first superblock of a layer. `q` has a row for each sub-block.

# %%
stored = tp.GGUF("Q4_K").quantize(W)
d, sc = float(stored.scale.scale[0]), stored.scale.unpack()[:8].astype(int)
e, mn = -float(stored.offset.scale[0]), stored.offset.unpack()[:8].astype(int)
q = stored.unpack().reshape(-1, 32)[:8].astype(int)

def faulty_read(d, sc, e, mn, q):
    return (d * sc)[:, None] * (q - (e * mn)[:, None])

print("the weights lie between", W[0, :256].min(), "and", W[0, :256].max())
print("it reads", *faulty_read(d, sc, e, mn, q)[0, :5].round(3), "… for", *W[0, :5].round(3), "…")

# %% [markdown]
# Find the bug, and write `k_quants_read(d, sc, e, mn, q)`, mended.

# %% exercise=k_quants.read points=1 minutes=5
def k_quants_read(d, sc, e, mn, q):
    """d, e; sc, mn (8,), q (8, 32), whole numbers → the weights (8, 32)."""

# %% [markdown]
# Yours, beside the package's:

# %%
read = result.function
mine = read(d, sc, e, mn, q)
print("computed by you and by the package:",
      np.allclose(mine.ravel(), stored.dequantize()[0, :256]))
print(f"{(256 * 4 + 8 * (6 + 6) + 2 * 16) / 256} bits per weight; the package says "
      f"{stored.bits_per_weight}; sc of the superblock: {sc}")

# %% [markdown]
# ### {exercise}
#
# A file has lost its header, and only the decoded weights are left. In which type were they stored?
#
# | | weights that share a step | levels | a minimum? | steps |
# |---|---|---|---|---|
# | `Q4_0`, `Q5_0`, `Q8_0` | 32 | 16, 32, 255 | no, 0 is a level | each its own |
# | `Q4_1`, `Q5_1` | 32 | 16, 32 | yes | each its own |
# | `Q4_K`, `Q5_K` | 32 | 16, 32 | yes | eight are whole multiples of one number |
# | `Q6_K` | 16 | 64 | no | sixteen are whole multiples of one number |
#
# Write `k_quants_which(W_hat)`, which returns one of these eight names as text. The original
# weights are unknown, so look at the decoded numbers alone: how far apart are they? Every matrix has
# negative weights. These were rounded without importance (section 4), so the largest of the eight
# steps in `Q4_K` and `Q5_K` is $63\,d$. A sub-block need not use all of its levels, and decoded
# numbers are float32, so a step is known to about six digits.

# %% exercise=k_quants.which points=4 minutes=16
def k_quants_which(W_hat):
    """W_hat (rows, d_in), decoded, float32, whole superblocks → "Q4_0", "Q4_1", "Q4_K", …"""

# %% [markdown]
# Yours on real weights, and on those of a mixture, layer after layer:

# %%
for kind in ("Q4_0", "Q4_1", "Q4_K", "Q6_K"):
    print(f"{kind} is named {result.function(tp.GGUF(kind).quantize(W).dequantize())}", end="; ")
mixed = tp.quantize(copy.deepcopy(model), tp.GGUF("Q4_K_M"))
found = {path: result.function(mixed.get(path).dense_weight().reshape(-1, 256)) for path in paths}
print("\nin a Q4_K_M of the base:", {kind: list(found.values()).count(kind)
                                     for kind in sorted({*found.values()})})

# %% [markdown]
# `Q4_K_M` of the base holds few K-quants. 256 does not divide the 128 inputs of most layers, and
# llama.cpp takes a larger plain type there: `Q5_0` for `Q4_K`, `Q5_1` for `Q5_K`, and `Q8_0` for
# `Q6_K`. Query, key and value of a GPT-2, such as the base, are one tensor for llama.cpp, which
# gets `Q5_K`: these are the fifteen `Q5_1`. To compare the types themselves, we let two rows of 128
# lie side by side in a superblock:

# %%
def rounded(kinds, h=None):
    """A rounded copy of the model, and its bits per weight. kinds: a type, or path → type, where
    Q4_K is usual. h: path → importance of its inputs."""
    m, bits, n = copy.deepcopy(model), 0, 0
    for path in paths:
        kind = kinds if isinstance(kinds, str) else kinds.get(path, "Q4_K")
        weight = m.get(path).weight
        rows = weight.data.reshape(-1, max(256, weight.shape[1]))
        of_rows = None if h is None else np.resize(h[path], rows.shape[1])
        q = gguf.quantize_as(kind, rows, of_rows)
        weight.data = q.dequantize().reshape(weight.shape)
        bits, n = bits + q.bits_per_weight * rows.size, n + rows.size
    return m, bits / n

added = {}
def compare(name, kinds, h=None):
    """Print how much loss rounding adds, in 0.001 nats per token, with its standard error."""
    m, bits = rounded(kinds, h)
    added[name] = 1000 * (losses(m) - exact)
    error = added[name].std(ddof=1) / np.sqrt(len(batches))
    print(f"{name:32} {bits:.3f} bits, adds {added[name].mean():5.1f} ± {error:.1f}")

def minus(name, other):
    """Print the difference of two, batch by batch, with its standard error."""
    difference = added[name] - added[other]
    error = difference.std(ddof=1) / np.sqrt(len(batches))
    print(f"{name} − {other}: {difference.mean():+.1f} ± {error:.1f}")

for kind in ("Q4_0", "Q4_1", "Q4_K", "Q5_K", "Q6_K"): compare(kind, kind)
for kind in ("Q4_1", "Q4_K"): minus(kind, "Q4_0")

# %% [markdown]
# All rounded models see the same batches, so a difference batch by batch is surer than either loss.
# These batches decide neither of the two: a difference below about twice its ± may be chance. And ±
# tells of batches only, but each way of rounding is one draw as well. The study draws calibration
# and test text eight times, of the base's own kind. There the loss of `Q4_0` minus that of `Q4_K`
# is {study k_quants: Q4_0 - Q4_K, excess} nats per token. (Where the study is quoted, ± is half of
# a 95 % interval.)
#
# ## 2. What is worth searching for
#
# The simplest $s$ and $m$ put the lowest level on the smallest weight and the highest on the
# largest: *max–min*. Two weights then decide for 32. What should be small is
#
# $$E = \sum w\,(s\,q - m - x)^2$$
#
# llama.cpp takes $w = \sqrt{\mathrm{mean}(x^2)} + |x|$: large weights count more. If the codes are
# fixed, the best $s$ and $m$ solve two linear equations, with
# $D = \sum w \sum w q^2 - (\sum w q)^2$:
#
# $$s = \frac{\sum w \sum w q x - \sum w x \sum w q}{D}, \qquad
# m = \frac{\sum w q \sum w q x - \sum w q^2 \sum w x}{D}$$
#
# $m$ is stored without a sign. If it comes out negative, $m = 0$ and $s = \sum w q x / \sum w q^2$.
#
# *By hand*, with two bits and $w = 1$: the weights are $-0.3,\ 0.1,\ 0.5,\ 1.2$. Max–min gives
# $s = 0.5$, $m = 0.3$ and the levels $-0.3,\ 0.2,\ 0.7,\ 1.2$. The codes are $0, 1, 2, 3$, and
# $E = 0.1^2 + 0.2^2 = 0.05$. The fit to these codes gives $s = 0.49$ and $m = 0.36$, so the levels
# are $-0.36,\ 0.13,\ 0.62,\ 1.11$, and $E = 0.06^2 + 0.03^2 + 0.12^2 + 0.09^2 = 0.027$.
# If the largest $s$ of the superblock is $0.63$, then $d = 0.01$, and this scale is stored as
# $sc = 49$.

# %%
four, four_codes = np.array([-0.3, 0.1, 0.5, 1.2]), np.arange(4)

def fit(x, q, w):
    S, Sq, Sqq, Sx, Sqx = (np.sum(w * part) for part in (1, q, q**2, x, q * x))
    D = S * Sqq - Sq**2
    s, m = (S * Sqx - Sx * Sq) / D, (Sq * Sqx - Sqq * Sx) / D
    print(f"s = {s:.3f}, m = {m:.3f}, levels {np.round(s * q - m, 3)}, "
          f"E = {np.sum(w * (s * q - m - x)**2):.3f}")

fit(four, four_codes, np.ones(4))

# %% [markdown]
# New $s$ and $m$ may call for new codes, and these for another fit. This stops where neither
# changes any more, and another start may stop at a smaller $E$ (compare lesson 10's search for a
# clipping point).
#
# ### {exercise}
#
# Write `k_quants_search(x, w)`. A row of `x` is a sub-block, a row of `w` says how much its errors
# count. Return $s > 0$ and $m \ge 0$ of each. They are judged with the best codes 0 … 15 for them.
# The sum of all $E$ must be at most 0.72 of that of max–min (with $m_0 = -\min(0, \min x)$ and
# $s_0 = (\max x + m_0)/15$). Where no weight is negative, 0.85 is enough. No sub-block may be worse
# than with max–min. Calling the package's own search, `k_quants.fit_line`, is no solution.

# %% exercise=k_quants.search points=4 minutes=18
def k_quants_search(x, w):
    """x, w (n, 32) → s, m (n,)."""
    ### BEGIN SOLUTION
    m0 = -np.minimum(x.min(axis=1), 0)
    high = x.max(axis=1)
    total = lambda terms: np.sum(w * terms, axis=1)
    best_s, best_m, least = (high + m0) / 15, m0, np.full(len(x), np.inf)
    starts = [((high + m0) / 15, m0)]
    for a in (0.5, 0.65, 0.8, 0.95, 1.05):
        starts += [((b * high + a * m0) / 15, a * m0) for b in (0.5, 0.65, 0.8, 0.95, 1.05)]
    for s, m in starts:
        for _ in range(4):
            q = np.clip(np.rint((x + m[:, None]) / s[:, None]), 0, 15)
            E = total((s[:, None] * q - m[:, None] - x)**2)
            better = E < least
            best_s, best_m, least = (np.where(better, new, old) for new, old in (
                (s, best_s), (m, best_m), (E, least)))
            S, Sq, Sqq, Sx, Sqx = (total(part) for part in (1, q, q * q, x, q * x))
            D = np.maximum(S * Sqq - Sq**2, 1e-12)
            s, m = (S * Sqx - Sx * Sq) / D, (Sq * Sqx - Sqq * Sx) / D
            s = np.where(m < 0, Sqx / np.maximum(Sqq, 1e-12), s)
            s, m = np.where(s > 0, s, best_s), np.maximum(m, 0)
    return best_s, best_m
    ### END SOLUTION

# %% [markdown]
# llama.cpp's own search begins with max–min, in its first lines. Then it makes 21 *trials*. A trial
# lays $n$ steps, 14 to 16, between `low` and `high`, `levels` gives the codes (0 … `most`),
# and your fit follows. A trial with a smaller $E$ is kept. It also moves the *origin* `low` to its
# $-m$, and later trials count from there. ([K-quants](../tinypeft/quant/K_QUANTS.md) tells every
# step.)

# %%
my_search = result.function
show(k_quants.fit_line)

# %%
show("k_quants")

# %% [markdown]
# *What to see: above, each sub-block has a ladder of its own height. Left below, an origin that
# moves leads to a smaller error in this sub-block. Right below, the weights' error of `Q4_K` lies
# below that of `Q4_0` at equal bits.*
#
# Move the handle: it says how much more one weight counts than the 31 others of its sub-block. Your
# search lays the levels anew. An error beyond half a step means that the weight lies outside the
# levels.

# %%
block, place = W[0, 96:128].astype(float), np.arange(32)
frames, captions, k = {}, {}, int(np.argsort(W[0, 96:128])[24])
for times in (1, 3, 10, 30, 100, 1000):
    w = np.where(place == k, float(times), 1.0)
    s, m = (np.asarray(part, float) for part in my_search(block[None], w[None]))
    off = s * np.clip(np.rint((block + m) / s), 0, 15) - m - block
    others = place != k
    half = np.full(32, s.item() / 2)
    frames[times] = {"31 others": (place[others], off[others]), f"weight {k}": ([k], off[[k]]),
                     "half a step": (np.tile(place, 2), np.concatenate([half, -half]))}
    captions[times] = (f"weight {k} is off by {abs(off[k]):.5f}, the others by "
                       f"{np.sqrt(np.mean(off[others]**2)):.5f} (rms)")
slider(f"weight {k} counts times", frames, captions=captions, xlabel="weight",
       ylabel="rounded − weight", dots=True)

# %% [markdown]
# Which search is worth its time? `use` puts yours into `Q4_K` in place of llama.cpp's, and max–min
# as well. Everything else stays: scales of six bits, and 4.5 bits per weight.

# %%
def in_the_package(search):
    def fit_line(x, w, most, trials):                             # x, w (32, n), float32
        s, m = (np.float32(part) for part in search(x.T.astype(float), w.T.astype(float)))
        return s, m, np.clip(np.rint((x + m) / np.where(s > 0, s, 1)), 0, most)
    return fit_line

def max_min(x, w):
    low = np.minimum(x.min(axis=1), 0)
    return (x.max(axis=1) - low) / 15, -low

for name, search in (("Q4_K, max–min", max_min), ("Q4_K, your search", my_search)):
    with use(k_quants, fit_line=in_the_package(search)):
        compare(name, "Q4_K")
    minus(name, "Q4_K")

# %% [markdown]
# A search changes the loss by chance as well: each way of rounding is one draw. To judge a search,
# take several models, not more batches alone. Section 4 changes $w$, the trials, and how
# $d$ and $e$ are found; together they count more.
#
# ## 3. Scales that are rounded
#
# ### {exercise}
#
# A colleague stores a superblock so:

# %%
def faulty_store(x, s, m):
    """x (8, 32), and s, m (8,) of its sub-blocks → d, sc, e, mn, codes"""
    q = np.clip(np.rint((x + m[:, None]) / s[:, None]), 0, 15)
    d, e = s.max() / 63, m.max() / 63
    return d, np.rint(s / d), e, np.rint(m / e), q

def relative(x, stored):
    return np.linalg.norm(read(*stored) - x, axis=1) / np.linalg.norm(x, axis=1)

superblocks = W.reshape(-1, 8, 32).astype(float)
even = superblocks[0]
uneven = even * np.array([1, 1, 1, 1, 1, 1, 1, 0.06])[:, None]
for name, x in (("a superblock of the base", even), ("its last sub-block made small", uneven)):
    print(f"{name:30} error of the sub-blocks",
          *(f"{each:.0%}" for each in relative(x, faulty_store(x, *max_min(x, 1)))))

# %% [markdown]
# On most superblocks nobody notices. Where a sub-block is much smaller than its neighbours, its
# error is far too large. **Predict**: it is 39 % above. How much is left with the right codes?

# %%
guess = tp.guess("18.small", 20.0, "%")

# %% [markdown]
# Write `k_quants_bug(x, s, m)`, mended, which keeps $d$, $sc$, $e$ and $mn$. It also takes
# superblocks in which all $s$ are 0 (then $d$ and all $sc$ are 0), or all $m$ (then $e$ and all
# $mn$), or in which a step $d\,sc_j$ becomes 0 (then its codes are 0). Nothing may be divided by 0.
# (A file also rounds $d$ and $e$ to float16, which is left out here.)

# %% exercise=k_quants.bug points=2 minutes=8
def k_quants_bug(x, s, m):
    """x (8, 32), s, m (8,) → d, sc (8,), e, mn (8,), codes (8, 32)."""

# %%
for name, x in (("a superblock of the base", even), ("its last sub-block made small", uneven)):
    print(f"{name:30} error of the sub-blocks",
          *(f"{each:.0%}" for each in relative(x, result.function(x, *max_min(x, 1)))))
guess.beside(100 * relative(uneven, result.function(uneven, *max_min(uneven, 1)))[-1])

# %% [markdown]
# The scale of the small sub-block has few whole numbers to choose from. Codes that know which one
# was taken make up for most of that:

# %%
show("schematic:stored")

# %% [markdown]
# *What to see: the colleague's codes belong to a step that no file holds.* (GPTQ in lesson 12 works
# by the same idea: what comes later repairs what was rounded before.)
#
# ## 4. Whose error counts
#
# A weight multiplies an input. Let $h_i$ be the mean square of input $i$ over some text. In
# `blocks.1.mlp.down`, input 446 has $h = 0.0038$ on the text below, and input 117 has $0.328$: the
# same error of a weight costs 85 times as much there. If the errors of weights, or the inputs, are
# unrelated and zero on average, the mean squared error of an output over the text is
#
# $$\sum_i h_i\,(\hat x_i - x_i)^2$$
#
# *By hand*, with the four weights of section 2 and $w = (1, 1, 4, 1)$: the fit gives $s = 0.471$,
# $m = 0.379$ and the levels $-0.379,\ 0.092,\ 0.563,\ 1.034$. The third weight's error falls from
# $0.12$ to $0.063$. $E$ is $0.050$, and was $0.070$ with $s$ and $m$ of before.

# %%
fit(four, four_codes, np.array([1, 1, 4, 1]))

# %% [markdown]
# In lesson 12 $h$ was the diagonal of $H$, up to a factor. llama.cpp stores $h$ of each layer in a
# file, the importance matrix. In `Q4_K` the search takes $w_i = h_i \sqrt{2\,\mathrm{mean}(x^2) +
# x_i^2}$, with the mean over the superblock. It makes 37 trials in place of 21, and searches for
# $d$ and $e$ as well. (In `Q6_K`, $w = h$.) The file of the model looks the same afterwards, and
# takes as many bits. **Predict**: how much of the loss that `Q4_K` adds is left with importance, in
# per cent, as a mean over three draws of the text?

# %%
guess = tp.guess("18.importance", 75.0, "%")

# %%
def importance(tokens):
    seen = calibration.capture(model, tokens, paths, hessian=True)
    return seen, {path: seen[path].mean_square for path in paths}

rng = np.random.default_rng(0)
tokens = task.batch("train", 32, rng)[0]
seen, h = importance(tokens)
path, error = "blocks.1.mlp.down", stored.dequantize().astype(float) - W
print(f"h from {h[path].min():.4f} (input {h[path].argmin()}) to {h[path].max():.4f} (input "
      f"{h[path].argmax()}); error of the outputs: by h {np.sum(h[path] * error**2):.4f}, "
      f"measured with H {np.sum(error @ seen[path].H * error) / 2:.4f}")
_, of_noise = importance(rng.integers(0, model.config.vocab_size, tokens.shape))
equal = {path: np.ones_like(h[path]) for path in paths}
of_others = [f"Q4_K, h shuffled, draw {i}" for i in range(3)]
draws = [h] + [importance(task.batch("train", 32, np.random.default_rng(i))[0])[1] for i in (1, 2)]
of_text = [f"Q4_K, h of text, draw {i}" for i in range(3)]
for name, drawn in zip(of_text, draws, strict=True): compare(name, "Q4_K", drawn)
compare("Q4_K, h of random tokens", "Q4_K", of_noise)
for i, name in enumerate(of_others):
    shuffle = np.random.default_rng(i).permutation
    compare(name, "Q4_K", {path: shuffle(h[path]) for path in paths})
compare("Q4_K, h = 1 for all inputs", "Q4_K", equal)
with use(k_quants, fit_line=in_the_package(my_search)):
    compare("Q4_K, h of text, your search", "Q4_K", h)
minus("Q4_K, h = 1 for all inputs", "Q4_K")
for name in of_text: minus(name, "Q4_K, h = 1 for all inputs")
minus("Q4_K, h of text, your search", of_text[0])
for name in of_text: minus("Q4_K, h of random tokens", name)
guess.beside(100 * np.mean([added[name] for name in of_text]) / added["Q4_K"].mean())

# %% fold
names = ["Q4_0", "Q4_1", "Q4_K, max–min", "Q4_K", "Q4_K, your search", *of_others,
         "Q4_K, h = 1 for all inputs", "Q4_K, h of random tokens", *of_text,
         "Q4_K, h of text, your search"]
fig, ax = plot.figure(height=4.4)
for i, name in enumerate(names[::-1]):
    colour = plot.COLOURS["blue" if "h of text" in name or "random" in name else "grey"]
    ax.plot(added[name], np.full(len(batches), i), ".", color=colour, ms=5)
    ax.plot(added[name].mean(), i, "|", color="black", ms=14)
labels = ["Q4_1 (5 bits)" if name == "Q4_1" else name for name in names]
ax.set(yticks=range(len(names)), yticklabels=labels[::-1],
       xlabel="added loss, 0.001 nats per token")
fig.set_label("Fourteen ways to round the base to 4.5 bits, or 5 in Q4_1, with 16 dots each, one "
              "for each batch, and a stroke at their mean. Across: the added loss. The five ways "
              "with the importance of these inputs are blue. Importance 1 for all inputs lies "
              "among them, one shuffle left of them, and one far to the right.")
fig

# %% [markdown]
# *What to see: on this model most of the gain needs no importance.* With $h = 1$ for all inputs
# `Q4_K` adds about as much as with the $h$ of the text. The gain comes from the search for $d$ and
# $e$, from $w$, which is flatter than before, and a little from the 37 trials. Shuffled, $h$ belongs
# to other inputs: its three draws lie far apart, and one of them is the best of all, by chance. So
# one model cannot tell what the right inputs add. The study, over eight draws of the text, in nats
# per token:
#
# | importance $h$ | `Q4_K` adds |
# |---|---|
# | none | {study k_quants: Q4_K, excess} |
# | 1 for all inputs | {study k_quants: Q4_K, equal importance, excess} |
# | of other inputs, shuffled | {study k_quants: Q4_K, shuffled importance, excess} |
# | of the model's kind of text | {study k_quants: Q4_K, importance, excess} |
# | of another kind of text | {study k_quants: Q4_K, importance from other text, excess} |
#
# On average about half of the gain is the search's, and half the right inputs', and either half is
# hardly larger than its error. Which inputs are large depends on the layer more than on the text.
#
# ### {exercise}
#
# $h$ looks at each input alone. Find inputs on which it misleads. Write `k_quants_misled(W)`: 16
# tokens `X (16, d_in)`. Round $W$ to `Q4_K` twice, with the $h$ of your own $X$ and without
# importance, and compare the squared errors of the output, $\|(\hat W - W) X^\top\|^2$. With
# importance it must be at least twice as large. $W$ has fewer rows than columns.
# (`tp.GGUF("Q4_K").quantize(W).dequantize()` is a tool here. `gguf.quantize_as("Q4_K", W, h)` takes
# an $h$ of float32.)

# %% exercise=k_quants.misled points=3 minutes=15 bonus=yes
def k_quants_misled(W):
    """W (rows, d_in), float32, rows < d_in → X (16, d_in)."""
    ### BEGIN SOLUTION
    error = tp.GGUF("Q4_K").quantize(W).dequantize().astype(float) - W
    X = np.random.default_rng(0).standard_normal((16, W.shape[1]))
    return X - X @ np.linalg.pinv(error) @ error                  # error @ X.T is 0
    ### END SOLUTION

# %%
few = W[:16, :256]
X = np.asarray(result.function(few), float)
h_of_X = np.float32(np.mean(X**2, axis=0))
for name, of in (("without importance", None), ("with that of X", h_of_X)):
    D = gguf.quantize_as("Q4_K", few, of).dequantize() - few
    print(f"{name:20} ‖D Xᵀ‖² {np.sum((D @ X.T)**2):.2e}, ‖D‖² {np.sum(D**2):.2e}")

# %% [markdown]
# GPTQ (lesson 12) sees relations between inputs, since it has all of $H$. It costs more to run, and
# more text to measure.
#
# ## 5. Which layer deserves more bits
#
# A name such as `Q4_K_M` is a *mixture*. In a Llama, llama.cpp's rule gives `Q6_K` to
# `attention.value` and `mlp.down` in about half of the blocks, and `Q4_K` to all else in them. It
# looks at names, not at numbers. Here we use this rule for the base, too.
#
# ### {exercise}
#
# Measure instead. Write `k_quants_mixture(weights, inputs, budget)`: which layers get `Q6_K`
# (6.5625 bits per weight), if all others get `Q4_K` (4.5) and `budget` is the number of bits in
# all? Layer $l$ has `weights[l] (d_out, d_in)` and `inputs[l] (tokens, d_in)`. The sum over layers
#
# $$\sum_l \|(\hat W_l - W_l)\, X_l^\top\|^2$$
#
# must be at most 1.05 of the least that any choice within the budget reaches. $\hat W$ is rounded
# without importance.
#
# *By hand*: a layer of 4,000 weights gains 8, that is, `Q6_K` lowers its error by 8, and costs
# $2.0625 \cdot 4{,}000 = 8{,}250$ bits. One of 1,000 weights gains 4 and costs 2,062.5. Per 1,000
# bits these gain 0.97 and 1.94, so the small one comes first. (Taken in this order, layers need not
# give the least sum of all, but they come close to it.)

# %% exercise=k_quants.mixture points=3 minutes=8
def k_quants_mixture(weights, inputs, budget):
    """lists of W (d_out, d_in), float32, and of X (tokens, d_in); bits → (n,), True for Q6_K."""
    ### BEGIN SOLUTION
    def error(W, X, kind):
        return np.sum(((tp.GGUF(kind).quantize(W).dequantize() - W) @ X.T)**2)
    sizes = np.array([W.size for W in weights])
    pairs = zip(weights, inputs, strict=True)
    gains = [error(W, X, "Q4_K") - error(W, X, "Q6_K") for W, X in pairs]
    better, left = np.zeros(len(sizes), bool), budget - 4.5 * sizes.sum()
    for i in np.argsort(-np.array(gains) / sizes):
        if 2.0625 * sizes[i] <= left:
            better[i] = True
            left -= 2.0625 * sizes[i]
    return better
    ### END SOLUTION

# %% [markdown]
# On the base, within the bits that llama.cpp's rule takes. All tokens of the text would be many. So
# $X$ is the *Cholesky factor* of $H$, a triangular matrix with $X^\top X = H$: its few rows give
# the same errors, up to a factor that all layers share. 1e-5 of the diagonal's mean is added to it
# first, since there is no such factor if rounding makes $H$ negative in some direction. Where two
# rows of 128 lie in one of 256, each half of the row meets $X$ by itself.

# %%
def inputs_of(path):
    H = seen[path].H.astype(float)
    factor = np.linalg.cholesky(H + 1e-5 * np.trace(H) / len(H) * np.eye(len(H))).T
    return factor if len(factor) >= 256 else np.kron(np.eye(2), factor)

size = {path: model.get(path).weight.data.size for path in paths}
rule = [path for path in paths if gguf.is_better("Q4_K_M", path, model)]
budget = 4.5 * sum(size.values()) + 2.0625 * sum(size[path] for path in rule)
weights = [model.get(path).weight.data for path in paths]
weights = [each.reshape(-1, max(256, each.shape[1])) for each in weights]
mine = np.asarray(result.function(weights, list(map(inputs_of, paths)), budget), bool)

def by_order(order):
    """As many layers as fit into the budget, in an order."""
    chosen, left = [], budget - 4.5 * sum(size.values())
    for path in order:
        if 2.0625 * size[path] <= left:
            chosen.append(path)
            left -= 2.0625 * size[path]
    return chosen

choices = {"llama.cpp's rule": rule, "your choice": [paths[i] for i in np.flatnonzero(mine)]}
choices |= {f"random choice {i}": by_order(np.random.default_rng(i).permutation(paths))
            for i in range(3)}
for name, chosen in choices.items(): compare(name, dict.fromkeys(chosen, "Q6_K"), h)
for name in ("llama.cpp's rule", "your choice"): print(f"{name}: {', '.join(choices[name])}")
for name in [*choices][1:]: minus(name, "llama.cpp's rule")

# %% [markdown]
# *What to see: the sum of output errors is nearly the least by construction, and the loss need not
# be.* Most of the four differences are below twice their ±: these batches do not tell such choices
# from the rule. An error of one layer's output is not worth as much as that of another one's. The
# open exercise asks the loss itself.
#
# ### {exercise} · Ask the loss (open, 4 points, 25 minutes)
#
# Find a mixture of `Q4_K` and `Q6_K` within the same budget that loses less than llama.cpp's rule.
# Measure what single layers, or kinds of layers, gain *in loss* per bit, on text of
# `task.batch("train", …)`. Choose, and only then compare with the rule and with three random
# choices on `batches`. Say whether your choice may be used for another model.
#
# *Rubric: 1 point for gains in loss per bit, on other text than that of the comparison; 1 for a
# choice within the budget; 1 for the comparison batch by batch, with its spread, against the rule
# and the random choices; 1 for what carries over to another model, and how you would find out.*

# %% [answer]
# *Gains.* Round everything to `Q4_K` with importance, then give `Q6_K` to one kind of layers, or
# to one block, and measure on 3 batches of training text. `attention.value` of all blocks is small,
# 0.17 bits on the average, and gains 8 to 10 thousandths of a nat; `mlp.down`, which takes 0.69,
# gains 6 to 9. Block 0 gains 10 to 12 ± 7, block 2 7 to 11 ± 2, the others less. (Three draws of
# the calibration text.)
#
# *Choice.* By gain per bit: `attention.value` everywhere, and what fits of block 0. Single layers
# gain a few thousandths of a nat at most, so that with few batches their order is partly chance.
# Kinds and blocks are measured more safely than 30 single layers.
#
# *Comparison.* Expect a lead of 2 to 4 thousandths of a nat per token over the rule, with ± 1 in 24
# batches, and of one sign in two to four of five batches. The lead over random choices is 2 to 7
# thousandths. The same batches for all make that visible: losses of single batches differ by a
# tenth of a nat.
#
# *Another model.* The order depends on the model: in a larger one the first and last blocks, or
# layers with outliers, may lead. The method carries over, not the list. Measure again, with text of
# the model's use, and keep text aside for the comparison.

# %% [markdown]
# ## 6. What else such files hold
#
# Not all levels are evenly spaced. `IQ4_NL` has a table of 16 levels, as NF4 (lesson 13), and a
# scale for 32 weights. `MXFP4` stores small floating-point numbers, and a power of two as the scale
# of 32 weights: 4.25 bits, and only the exponent to search for. `Q2_K` and `Q3_K` are superblocks
# of 16 sub-blocks of 16 weights, with 2 and 3 bits. The package reads these types from files, and
# `tp.GGUF` rounds to none of them.

# %% fold
fig, ax = plot.figure(height=2.2)
tables = {"Q4_0": np.arange(-8, 8) / 8, "NF4": codebook("nf4"), "IQ4_NL": codebook("IQ4_NL") / 127,
          "MXFP4": codebook("E2M1") / 6}
for i, levels in enumerate(tables.values()):
    ax.plot(levels, np.full(16, -i), "|", color=plot.COLOURS["blue"], ms=13)
ax.set(yticks=[0, -1, -2, -3], yticklabels=list(tables), xlabel="level ÷ largest magnitude")
ax.set_ylim(-3.6, 0.6)
fig.set_label("Four rows of strokes between −1 and 1: the levels of Q4_0 are evenly spaced; those "
              "of NF4 and IQ4_NL are denser around 0; those of MXFP4 are densest there, with wide "
              "gaps at the ends.")
fig

# %%
def show_error(name, bits, W_hat):
    error = np.linalg.norm(W_hat - W) / np.linalg.norm(W)
    print(f"{name:6} {bits:.2f} bits, error of the weights {error:.1%}")

for name, scheme in (("Q4_0", tp.GGUF("Q4_0")), ("Q4_K", tp.GGUF("Q4_K")),
                     ("NF4", tp.NF4(block_size=32)),
                     ("MXFP4", tp.FloatFormat("E2M1", block_size=32, scale_format="E8M0"))):
    q = scheme.quantize(W)
    show_error(name, q.bits_per_weight, q.dequantize())
levels, x = codebook("IQ4_NL").astype(float), W.reshape(-1, 32)
s = np.take_along_axis(x, abs(x).argmax(axis=1, keepdims=True), axis=1) / levels[0]
nearest = abs(x[..., None] / s[..., None] - levels).argmin(axis=-1)
show_error("IQ4_NL", 4 + 16 / 32, (s * levels[nearest]).reshape(W.shape))

# %% [markdown]
# *What to see: levels that are denser around 0 help only if the ends are not too far apart.*
# `IQ4_NL` beats `Q4_0` at equal bits. `MXFP4` has wide gaps at its ends and a scale that is a power
# of two, and loses. NF4's ends are farther apart, too, and its scales take 32 bits. `MXFP4` has two
# zeros, so its 16 codes draw 15 strokes.
#
# ## The real call
#
# llama.cpp's two programs, for a file of full precision. The first one measures $h$, the second one
# rounds by it. (`python -m tinypeft export --to gguf --type Q4_K_M --out base` writes
# `base/model.gguf` here, and `tp.GGUF("Q4_K_M", importance="imatrix.gguf")` takes llama.cpp's $h$.)
#
# ```bash
# llama-imatrix -m full.gguf -f text.txt -o imatrix.gguf
# llama-quantize --imatrix imatrix.gguf full.gguf base.gguf Q4_K_M
# ```
#
# llama.cpp's own package for Python reads the file, and your function of section 1 names its types,
# for the base's file all of them rightly:
#
# ```python
# from gguf import GGUFReader
# from gguf.quants import dequantize
# weights, kinds = {}, {}
# for tensor in GGUFReader("base.gguf").tensors:
#     weights[tensor.name] = dequantize(tensor.data, tensor.tensor_type)
#     kinds[tensor.name] = tensor.tensor_type.name
# coded = [name for name in kinds if kinds[name] != "F32"]
# named = {name: k_quants_which(weights[name].reshape(-1, 256)) for name in coded}
# print(sum(named[name] == kinds[name] for name in coded), "of", len(coded), "named rightly")
# ```

# %% [markdown]
# ## Recall
#
# 1. `Q4_0` and `Q4_K` take 4.5 bits each. Where do the minima of `Q4_K` come from?
# <details><summary>Answer</summary>
#
# From cheaper scales: six bits for a scale and six for a minimum, in place of 16 for a scale. The
# two numbers $d$ and $e$ of 16 bits are shared by 256 weights.
#
# </details>
#
# 2. Why does a fit of $s$ and $m$, repeated until nothing changes, not find the best ones?
# <details><summary>Answer</summary>
#
# Each fit is best for its codes, and the codes for their $s$ and $m$. Other codes may have a
# smaller error, and single steps from these do not lead there.
#
# </details>
#
# 3. What must happen after scales and minima were rounded?
# <details><summary>Answer</summary>
#
# The weights are rounded once more, to the levels that a reader of the file computes.
#
# </details>
#
# 4. Importance changes the weights. Can a reader of the file tell?
# <details><summary>Answer</summary>
#
# No. The format and the bits are the same; other codes and scales are stored.
#
# </details>
#
# 5. When can importance make an output worse?
# <details><summary>Answer</summary>
#
# When inputs are related, so that errors of different weights add up or cancel. $h$ does not see
# this. Or when it belongs to inputs of another kind.
#
# </details>

# %% [markdown]
# ## Where the papers say this
#
# - There is no paper on K-quants. Sources are llama.cpp's pull requests
#   [1684](https://github.com/ggml-org/llama.cpp/pull/1684) (the types) and
#   [4861](https://github.com/ggml-org/llama.cpp/pull/4861) (importance), and its
#   [`ggml-quants.c`](https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-quants.c).
#   The page [K-quants](../tinypeft/quant/K_QUANTS.md) tells all of it, byte by byte.
# - The diagonal of $H$ as a weight: AWQ (arXiv 2306.00978) scales by the inputs' size, and GPTQ
#   (arXiv 2210.17323) has all of $H$. MXFP4's blocks: Rouhani et al. (arXiv 2310.10537).
#
# ## Where implementations differ
#
# - *Bytes.* The package writes llama.cpp's bytes for `Q4_K`, `Q5_K` and `Q6_K`, with importance or
#   without; a test compares them. In `MXFP4` ties are broken in another way.
# - *Layers without importance.* llama.cpp rounds a layer that the file lacks without it, and says
#   so in its log alone. The package refuses.
# - *Rows of 128.* No file has two rows in a superblock, as here. llama.cpp falls back to a larger
#   type.
#
# **Now you can** read a type's name, say what its bits buy, and decide by experiment which of them
# your model needs.
