# %% [markdown]
# # 02 · The transformer and its pretrained base
#
# **What you will do.**
# Take the shipped base model apart.
# You follow a sentence from bytes to a predicted token, write attention, and let the whole model
# run and write text with your function.
# You find a bug that makes a model look too good, read what the model would say after each of its
# blocks, and count its parameters by hand.
# Every later lesson changes a few numbers in this model, so you should know what they do.
#
# **What you need.**
# Lesson 01, or at least softmax and layer norm.
#
# **Words and letters.**
# They are in the [glossary](GLOSSARY.md).
# $B$ rows of text have $T$ tokens each; $V$ is the size of the vocabulary, $d$ the width of the
# model, $L$ the number of blocks, $H$ the number of heads and $d_{head} = d/H$ the width of one
# head.
# $E$ is the table of tokens and $C$ the context, the most tokens that a row may have.
# In attention $M$ is the mask and $O$ the result.
# Some letters have two meanings: here $A$ is attention's weights and not a factor of LoRA, in
# equation (1) $P$ is the table of positions and not a number of vectors, and in equation (3) $V$ is
# the values.
#
# **Time.** 105 minutes for reading and the exercises. The open exercise takes 30 more, the bonus
# 10. Every cell together runs in well under a minute.

# %%
import copy
import inspect
import math

import numpy as np
from matplotlib.colors import ListedColormap

import tinypeft as tp
from tinypeft.engine import functional as F
from tinypeft.models import gpt
from tinypeft.engine import plain
from tinypeft.course import show, use
from tinypeft.course.slider import slider
from tinypeft.study import plot
from tinypeft.text import corpus

model = tp.load_pretrained()
tok = model.tokenizer
model.config

# %% [markdown]
# ## 1. From text to numbers
#
# The model reads *tokens*: pieces of text from a fixed list of $V = 1024$.
# The list was learned by byte pair encoding.
# It begins with the 256 bytes.
# Then, again and again, the most frequent pair of neighbours becomes a token of its own.
# So any text can be written, and a frequent word costs one token.

# %%
sentence = ("The arithmetic mean is the sum of the elements along the axis "
            "divided by the number of elements.")
ids = tok.encode(sentence)
print(" | ".join(tok.decode([i]) for i in ids))
n_bytes = len(sentence.encode())
print(f"{n_bytes} bytes, {len(ids)} tokens, {n_bytes / len(ids):.1f} bytes per token")

# %% [markdown]
# ## 2. The forward pass, equation by equation
#
# The model is an embedding, $L$ blocks one after another, and an output.
# The schematic shows one block, with the shape of every array:

# %%
show("schematic:transformer")

# %% [markdown]
# A token enters as a vector of $d = 128$ numbers, its row of a table $E$ $(V, d)$.
# A row of a second table $P$ is added, which says at which position the token stands:
#
# $$h_0 = E[\text{tokens}] + P[0 \dots T{-}1] \tag{1}$$

# %%
tokens = ids[None]  # (B, T) = (1, T)
E, P = model.token_embedding.weight, model.position_embedding.weight
h = tp.Tensor(E.data[tokens] + P.data[:tokens.shape[1]])  # equation (1): (B, T, d)

# %% [markdown]
# Then come $L = 5$ blocks.
# Each adds twice to $h$, and never replaces it (LN is layer norm; `prefix` and `cache`, below, wait
# for section 7):
#
# $$h \leftarrow h + \mathrm{Attention}(\mathrm{LN}(h)), \qquad
# h \leftarrow h + \mathrm{MLP}(\mathrm{LN}(h)) \tag{2}$$

# %%
show(gpt.Block.forward)
show(plain.gelu)

# %% [markdown]
# Think of $h$ as a stream that runs through all blocks, to which layers write: the *residual
# stream*.
# Hold on to this picture.
# An adapter (lesson 04) writes to the same stream, and LoRA (lesson 07) changes what a layer
# writes.
#
# The MLP works on each position alone: up to $4d$ numbers, GELU, down to $d$ again.
# Attention is the only place where positions meet.
# Each position makes a *query*, a *key* and a *value*: three linear maps of the same vector, cut
# into $H$ heads.
# A head compares its query with the keys of all positions up to its own.
# The comparison gives weights, and the head takes the mean of the values with these weights:
#
# $$A = \mathrm{softmax}\!\Big(\frac{Q K^\top}{\sqrt{d_{head}}} + M\Big), \qquad O = A V, \qquad
# M_{ij} = \begin{cases} 0 & j \le i \\ -\infty & j > i \end{cases} \tag{3}$$
#
# $M$ is the *mask*: it hides the future, because $e^{-\infty} = 0$.
# Why $\sqrt{d_{head}}$?
# A dot product of two vectors of $d_{head}$ independent numbers of mean 0 and
# variance 1 has variance $d_{head}$.
# Without the root, scores would grow with the width, and softmax would put all its weight on one
# key.
# By equation (5) of lesson 01 its gradient would then vanish.
#
# **By hand.** One query, three keys. After the division by the root the scores are $0$ and $\ln 3$,
# and the third key is in the future: $-\infty$. Their exponentials are 1, 3 and 0, with the sum 4.
# So the weights are $\tfrac14$, $\tfrac34$ and 0. With the values 4, 8 and 100 the result is
# $\tfrac14 \cdot 4 + \tfrac34 \cdot 8 = 7$. Add 1,000 to all three scores: the exponentials overflow,
# and the weights should still be the same. Subtract the largest score first: the exponentials are
# $\tfrac13$, 1 and 0, and the weights are $\tfrac14$, $\tfrac34$ and 0.
#
# ### {exercise}
#
# Compute $O$ for one head, with a twist that you will meet again in lesson 06: there may be more
# keys than queries.
# `q` is $(T, d_{head})$, `k` and `v` are $(S, d_{head})$ with $S \ge T$.
# The queries belong to the **last** $T$ of the $S$ positions.
# What stands before them (a cache of past tokens, a prefix) is seen by all.
# For $T = 3$ and $S = 5$ the mask is
#
#                 key 0    1    2    3    4
#       query 0       ●    ●    ●    ·    ·         ● seen
#       query 1       ●    ●    ●    ●    ·         · hidden
#       query 2       ●    ●    ●    ●    ●
#
# Scores may be as large as 1,000, and then `np.exp` overflows.
# The seen ones may also be near −1,000 while the hidden ones are near 1,000.
# The example shows what to subtract first.
# Write it with NumPy, without the package's `attention`, and keep the dtype.

# %% exercise=transformer.attention points=5 minutes=20 as=attention
def transformer_attention(q, k, v):
    """Causal attention of T queries, the last T positions, over S ≥ T keys. Returns (T, d_head)."""

# %% [markdown]
# **Your function at work.**
# `use` puts it in the place of the package's attention, one head after another.
# Inside the block the whole model runs on it, and writes: every new token is one query over all
# keys so far.

# %%
def of_heads(q, k, v, **options):
    """Your attention for each row and head: q (B, H, T, d_head), k and v (B, H, S, d_head)."""
    arrays = [zip(*row, strict=True) for row in zip(q.data, k.data, v.data, strict=True)]
    return tp.Tensor(np.array([[attention(*head) for head in row] for row in arrays]))


start = tok.encode("numpy.mean(a, axis=None)\n\n")[None]
with tp.no_grad(), use(F, attention=of_heads):
    mine = model(tokens)
    written = model.generate(start, 40, rng=4, temperature=0.7)
print(f"largest difference in the logits: {abs(mine.data - model(tokens).data).max():.0e}")
print(tok.decode(written[0]))

# %% [markdown]
# Most words fit the place, and the sentences mean little.
# A model of 1.2 million parameters knows how documentation sounds, and not what is true.
#
# Why the root? Move the handle: your function weighs ten random keys of 32 numbers, with their
# scores divided by this. ($\sqrt{32} = 5.66$)

# %%
def bars(heights):
    """The outline of bars at 1, 2, 3 …, for a slider."""
    x = np.arange(1, len(heights) + 1)[:, None] + np.array([-0.4, -0.4, 0.4, 0.4])
    return x.ravel(), (heights[:, None] * [0, 1, 1, 0]).ravel()


rng, frames, told = np.random.default_rng(3), {}, {}
q, k = rng.standard_normal((1, 32)), rng.standard_normal((10, 32))
for divisor in (1.0, 2.0, 4.0, math.sqrt(32), 8.0, 16.0, 32.0):
    weights = np.sort(attention(q * math.sqrt(32) / divisor, k, np.eye(10))[0])[::-1]
    frames[divisor] = bars(weights)
    told[divisor] = f"one key of ten has {100 * weights[0]:.0f} % of the weight"
slider("divisor", frames, captions=told, xlabel="key, the heaviest first", ylabel="weight")

# %% [markdown]
# Compare yours with the package's.
# It has each operation twice.
# `plain.py` composes it from small operations, to be read (what we call $A$ is $P$ there):

# %%
show(plain.attention)

# %% [markdown]
# `functional.py` has it fused into one operation, with a backward pass written by hand, to be fast.
# Tests compare the two. This is what it promises:

# %%
print(inspect.getdoc(F.attention))

# %% [markdown]
# The weights $A$ can be looked at.
# Some heads of this model have learned a job that has a name:

# %%
def attention_maps(model, tokens):
    """A of every layer and head, (L, H, T, T), for one row of tokens."""
    maps, T = [], len(tokens)
    h = model.token_embedding(tokens[None]) + model.position_embedding(np.arange(T))
    for block in model.blocks:
        x = block.norm1(h)
        q, k = ((layer(x).data[0].reshape(T, model.config.n_heads, -1).swapaxes(0, 1))
                for layer in (block.attention.query, block.attention.key))
        mask = np.triu(np.full((T, T), -np.inf, np.float32), 1)
        scores = q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1]) + mask
        maps.append(F.softmax(tp.Tensor(scores)).data)  # equation (3)
        h = block(h)
    return np.array(maps)


maps, T = attention_maps(model, ids), len(ids)

# %% fold
# weight on the token before, (L, H)
previous = maps[:, :, np.arange(1, T), np.arange(T - 1)].mean(-1)
breadth = -(maps * np.log(maps + 1e-9)).sum(-1).mean(-1)               # entropy in nats, (L, H)
words = [tok.decode([i]).strip() for i in ids]
fig, axes = plot.figure(1, 2, height=3.9)
kinds = {"the token before": previous, "the widest view": breadth}
for ax, (what, which) in zip(axes, kinds.items(), strict=True):
    layer, head = np.unravel_index(which.argmax(), which.shape)
    ax.imshow(np.sqrt(maps[layer, head]), cmap="viridis", vmin=0, vmax=1)
    ax.grid(False)
    title = f"block {layer}, head {head}: {what}"
    ax.set(xticks=range(T), yticks=range(T), xlabel="key", title=title)
    ax.set_xticklabels(words, rotation=90, fontsize=7)
    ax.set_yticklabels(words if ax is axes[0] else [], fontsize=7)
axes[0].set_ylabel("query")
fig.set_label("Two maps of attention of one sentence, queries down, keys across; above the "
              "diagonal all is dark. Left: a bright line just below the diagonal, the token "
              "before. Right: weights spread over all earlier tokens.")
fig

# %% [markdown]
# *What to see: a row is a query, and its weights sum to one (dark is 0, yellow is 1; the colour
# goes with the root, to show small weights).
# Everything above the diagonal is hidden.*
# Left is a *previous-token head*: it looks at the token before its own, and so makes pairs of
# tokens.
# Right is the head with the largest *entropy*, $-\sum_j A_{ij} \log A_{ij}$, which is large if the
# weights are spread evenly: it averages over nearly all it can see.
# Nobody told the heads to do this.
#
# ## 3. The output, and the loss
#
# After the last block comes one more layer norm, and then the table $E$ a second time.
# Now it is a matrix that gives every token of the vocabulary a score, its *logit*:
#
# $$\text{logits} = \mathrm{LN}(h_L)\, E^\top \tag{4}$$

# %%
for block in model.blocks: h = block(h)  # equation (2), five times
logits = F.linear(model.final_norm(h), E)  # equation (4): (B, T, V)
assert abs(logits.data - model(tokens).data).max() < 1e-4

likely = np.argsort(-logits.data[0, -2])[:5]  # after "… of elements"
print("after", repr(tok.decode(ids[:-1])[-19:]), "the model expects",
      [tok.decode([i]) for i in likely])

# %% [markdown]
# A text is written by drawing token after token from the softmax of the logits.
# The *temperature* $\tau$ divides the logits first.
# At a small temperature nearly every draw is one of the two likeliest tokens. The larger it is, the
# more even the chances; but at $\tau = 4$ the likeliest of 1,024 tokens still has 17 times its even
# share:

# %%
z, frames, told = np.sort(logits.data[0, -2])[::-1], {}, {}
for tau in (0.2, 0.4, 0.7, 1.0, 1.5, 2.0, 4.0):
    p = np.exp((z - z[0]) / tau)
    p /= p.sum()
    frames[tau] = bars(p[:10])
    first, two, ten = (100 * p[:n].sum() for n in (1, 2, 10))
    told[tau] = (f"the first token has {first:.0f} %, the first two {two:.0f} %, "
                 f"the ten {ten:.0f} %")
slider("temperature", frames, captions=told, xlabel="token, the likeliest first",
       ylabel="probability")

# %% [markdown]
# Head and embedding are *tied*: one table, two uses.
# Remember it in lesson 07, when somebody wants to change one of them alone.
#
# The softmax of the logits at position $t$ is a probability for each possible token $t + 1$.
# The *loss* is the mean surprise, $-\log p$ of the token that really came, in *nats* (the logarithm
# is natural).
# A model that knows nothing gives each of the 1,024 tokens the same probability.
# What is its loss?

# %%
guess = tp.guess("02.nothing", 6.9, "nats per token")
guess

# %% [markdown]
# ### {exercise}
#
# Write the loss as a sum first: over which rows and positions does it run, and by what is it
# divided?
# Then compute it from `logits` $(B, T, V)$ and the same rows' `tokens` $(B, T)$.
# Logits may be as large as 1,000 at one position, and near −1,000 at the next.
# Return one number.

# %% exercise=transformer.loss points=4 minutes=12 as=loss
def transformer_loss(logits, tokens):
    """Mean of −log p(next token) in nats, over all positions that have a next token."""

# %% [markdown]
# <details><summary>The sum that you have computed</summary>
#
# $$\text{loss} = -\frac{1}{B(T-1)} \sum_{b}\sum_{t=0}^{T-2}
# \log \mathrm{softmax}(\text{logits}_{b,t})[\,\text{token}_{b,t+1}\,]$$
#
# </details>

# %% [markdown]
# Nats per token depend on what a token is.
# There are two other units.
# *Perplexity* is $e^{\text{loss}}$, the number of equally likely tokens that would give the same
# loss.
# *Bits per byte* lets you compare models with different tokenizers:
#
# $$\text{bits per byte} =
# \frac{\text{loss}}{\ln 2} \cdot \frac{\text{tokens}}{\text{bytes}} \tag{5}$$
#
# **Your function at work**, on documents that the model never saw, and on a model with random
# weights:

# %%
def report(name, nats, tokens, n_bytes):
    bits_per_byte = nats / math.log(2) * tokens / n_bytes  # equation (5)
    print(f"{name:16}{nats:6.3f} nats/token, perplexity {math.exp(nats):7.1f}, "
          f"{bits_per_byte:.3f} bits/byte")


def logits_of(model):
    with tp.no_grad():
        return np.concatenate([model(rows[i:i + 16]).data for i in range(0, len(rows), 16)])


documents = corpus.base_corpus().test
n_bytes = sum(len(str(document).encode()) for document in documents)
stream = tok.encode_documents(documents)
rows = stream[:len(stream) // 128 * 128].reshape(-1, 128)[::16]   # each sixteenth row of the text
nothing = loss(logits_of(tp.GPT(model.config, rng=0)), rows)
report("random weights", nothing, len(stream), n_bytes)
report("the base", loss(logits_of(model), rows), len(stream), n_bytes)
guess.beside(nothing)

# %% [markdown]
# (A guess of 10 is right in bits: $\log_2 1024 = 10$, and $\ln 1024 = 6.93$.)
#
# How the base got there: 16,000 steps on documentation of Python, NumPy and SciPy.
# The study drew the run beside a strong model that only counts which token came how often after
# the four tokens before it, a Kneser–Ney model:

# %%
show("pretraining")

# %% [markdown]
# *What to see: the base passes the counting model on the way, and then goes on (its curve is of the
# validation text, the dashed line of the test text; the caption has both of the test text).
# Its training loss runs ahead of the validation loss, because it sees every training token some
# twelve times.*
# The caption gives the base a lower loss than the cell above does: it is measured in windows of 256
# tokens, and on all of the text. A token near the beginning of a window has little text before it,
# and windows of 128 have more such tokens. (In these, all of the text has 2.469. The cell's sixteenth
# happens to be easier.)
#
# ## 4. A loss that is too good
#
# Somebody wrote attention in a hurry.
# Everything runs.
# We fine-tune the base for 40 steps on text that it never saw, Matplotlib's documentation, once
# with the package's attention and once with this one:

# %%
def hurried(q, k, v, **options):
    """Attention, written in a hurry."""
    (T, d), S = q.shape[-2:], k.shape[-2]
    scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(d)
    hidden = np.triu(np.ones((T, S), bool), 2 + S - T)
    return plain.softmax(scores + np.where(hidden, -1e30, 0)) @ v


unseen = tp.tasks.domain(model, context=64)
for name, fn in (("the package's", F.attention), ("hurried", hurried)):
    with use(F, attention=fn):
        tuned = tp.attach(model, tp.FullFineTuning())
        before = tp.evaluate(tuned, unseen, max_batches=2)["loss"]
        tp.train(tuned, unseen, 40, batch_size=4, lr=1e-3, progress=False)
        after = tp.evaluate(tuned, unseen, max_batches=2)["loss"]
        print(f"{name:14} test loss {before:.2f} → {after:.2f} nats per token")

# %% [markdown]
# The second line begins higher: the base was trained with the right mask, and one more visible key
# disturbs it.
# Then it looks like a great success.
# It is measured on test text, so the model has not just memorized what it was trained on.
# But a few seconds of training cannot make a model of this size so much better.
# A loss that is too good is a bug.
# Which one?
# Do not search the code: ask the model.
#
# ### {exercise}
#
# `f` takes an array `x` $(T, d)$, one row for each position, and returns an array with $T$ rows.
# Return a matrix of booleans $(T, T)$: entry $[i, j]$ is `True` if row $i$ of `f(x)` changes when
# row $j$ of `x` changes.
# Any change counts, however small, in any number of the row.
# Do not write into `x`, not even for a moment, because `f` may return `x` itself.
# Some of the functions begin with a layer norm, or divide each row by its length: choose a change
# that none of them can undo.

# %% exercise=transformer.sees points=4 minutes=15 as=sees
def transformer_sees(f, x):
    """(T, T) booleans: does row i of f(x) depend on row j of x?"""

# %% [markdown]
# **Your function at work**, on one block and on all five, with either attention:

# %%
def through(n, fn):
    """The first n blocks of the model, with the attention `fn`, as a function of arrays (T, d)."""
    def f(x):
        h = tp.Tensor(x[None])
        with tp.no_grad(), use(F, attention=fn):
            for block in model.blocks[:n]: h = block(h)
        return h.data[0]
    return f


x = np.random.default_rng(2026).standard_normal((12, model.config.d_model)).astype(np.float32)
seen = {f"{name}, {n} block{'s' * (n > 1)}": sees(through(n, fn), x)
        for name, fn in (("package", F.attention), ("hurried", hurried)) for n in (1, 5)}

# %% fold
colours = ListedColormap(["white", plot.COLOURS["sky"], plot.COLOURS["vermillion"]])
fig, axes = plot.figure(1, 4, height=2.2)
for ax, (name, matrix) in zip(axes, seen.items(), strict=True):
    ax.imshow(matrix.astype(int) + np.triu(matrix, 1), cmap=colours, vmin=0, vmax=2)
    ax.grid(False)
    ax.set(title=name, xlabel="input j", xticks=(), yticks=())
axes[0].set_ylabel("output i")
fig.set_label("Four squares, outputs down and inputs across. With the package's attention a "
              "triangle, for one block and for five. With the hurried mask one red diagonal above "
              "the triangle for one block, and five for five.")
fig

# %% [markdown]
# *What to see: in red, what no position may see.
# The hurried mask is off by one: each position sees the token after its own, which is the one that
# it has to predict.
# Five blocks pass this on, so the model sees five tokens ahead.*
# The mask's diagonal should be $1 + S - T$.
# A test like yours belongs to every model that must not see the future.
#
# ## 5. What each block adds
#
# The residual stream has the same form everywhere.
# So we may stop after any block, apply equation (4), and ask what the model would say if it ended
# there.
# And we may ask what the loss is at each position: a later position has more text before it.

# %%
def losses(hidden, targets):
    """−log p of every target, from hidden states (B, T, d) → (B, T)."""
    log_p = F.log_softmax(model.logits(model.final_norm(hidden))).data  # equation (4)
    return -np.take_along_axis(log_p, targets[..., None], -1)[..., 0]


domain = tp.tasks.domain(model, context=128)
batches = {"NumPy, SciPy, Python": (rows[:, :-1], rows[:, 1:]),
           "Matplotlib": next(iter(domain.batches("test", len(rows))))}
depth, place = {}, {}
with tp.no_grad():
    for name, (tokens, targets) in batches.items():
        h = model.token_embedding(tokens) + model.position_embedding(np.arange(tokens.shape[1]))
        depth[name] = [losses(h, targets).mean()]
        for block in model.blocks:
            h = block(h)
            depth[name].append(losses(h, targets).mean())
        place[name] = losses(h, targets).mean(0)
print("no block at all:", "; ".join(f"{name} {d[0]:.1f} nats" for name, d in depth.items()))

# %% fold
fig, (left, right) = plot.figure(1, 2, height=2.9)
for name, colour in {"NumPy, SciPy, Python": "blue", "Matplotlib": "vermillion"}.items():
    left.plot(range(1, 6), depth[name][1:], "o-", color=plot.COLOURS[colour], label=name)
    right.plot(16 * np.arange(8) + 8, [part.mean() for part in np.array_split(place[name], 8)],
               "o-", color=plot.COLOURS[colour])
left.axhline(nothing, color=plot.COLOURS["grey"], ls="--", label="random weights")
left.legend(loc="lower left")
for ax in (left, right): ax.set_ylim(0, 7.4)
left.set(xlabel="blocks applied", ylabel="loss, nats per token", title="Stopping early")
right.set(xlabel="position in the window", title="More context, less surprise")
fig.set_label("Left: the loss falls with the number of blocks applied, most at the last ones. "
              "Right: the loss falls over the first tokens of a window and then stays level. "
              "Matplotlib's text is above the base's own everywhere.")
fig

# %% [markdown]
# With no block at all the loss is far worse than that of random weights.
# With tied tables a token's own vector scores best with itself, so the model says every token
# twice.
# *What to see, left: the first block undoes that, and every further one lowers the loss.
# The last ones lower it most, since the head was trained on what comes after them.
# Right: the loss falls over the first tokens of a window, and then more context helps little.*
# On Matplotlib, which it never saw, the model is worse everywhere.
# This gap is what the *domain* task of the later lessons fine-tunes away.
#
# ## 6. Where the parameters are
#
# One block has four $d \times d$ matrices in attention (query, key, value, output), and
# $4d \times d$ and $d \times 4d$ in the MLP.
# Each of the six has a bias, and each of the two layer norms has a weight and a bias.
# Besides the blocks there are the token table, the position table with one row for each of the $C$
# positions of the context, and the final norm.
# The head is tied and costs nothing.
#
# Guess before you count: GPT-2 XL has $V = 50257$, $C = 1024$, $d = 1600$ and $L = 48$.
# Which share of its parameters is in the MLPs?

# %%
guess = tp.guess("02.mlp", 50.0, "%")
guess

# %% [markdown]
# ### {exercise}
#
# Give the number of parameters of a GPT as a function of vocabulary $V$, context $C$, width $d$ and
# blocks $L$.
# For the base it must be 1,155,456.

# %% exercise=transformer.count points=2 minutes=8 as=count
def transformer_count(V, C, d, L):
    """Parameters of a GPT with tied embeddings, biases everywhere, and an MLP of width 4 d."""

# %%
sizes = {"the base": (1024, 256, 128, 5), "GPT-2 small": (50257, 1024, 768, 12),
         "GPT-2 XL": (50257, 1024, 1600, 48)}                          # name → V, C, d, L
for name, size in sizes.items(): print(f"{name:12} {count(*size):13,}")
V, C, d, L = sizes["GPT-2 XL"]
guess.beside(100 * L * (8 * d * d + 5 * d) / count(V, C, d, L))

# %% fold
fig, ax = plot.figure(height=1.9)
for y, (V, C, d, L) in enumerate(sizes.values()):
    blocks = [L * (4 * d * d + 4 * d), L * (8 * d * d + 5 * d), L * 4 * d + 2 * d]
    parts = np.array([V * d, C * d, *blocks])
    left = 0.0
    colours = "orange", "yellow", "sky", "blue", "black"
    for part, colour in zip(100 * parts / parts.sum(), colours, strict=True):
        ax.barh(y, part, left=left, color=plot.COLOURS[colour])
        left += part
    ax.text(101, y, f"{count(V, C, d, L) / 1e6:,.1f} M", va="center")
for x, text in ((5, "tokens"), (30, "attention"), (65, "MLP")): ax.text(x, 2.65, text)
ax.set(yticks=range(3), yticklabels=sizes, xlabel="share of the parameters, %", xlim=(0, 112))
fig.set_label("Where the parameters are, for three models: tokens, positions, attention and MLP. "
              "Attention and MLP have 86 % in the base, 68 % in GPT-2 small and 95 % in GPT-2 XL.")
fig

# %% [markdown]
# *What to see: with the same vocabulary, the larger model has more of itself in blocks, 95 % in GPT-2
# XL and 68 % in GPT-2 small. The base has 86 %, because its vocabulary is small.*
# (Yellow are positions; the norms are almost too thin to see.)
# This is why LoRA adapts these matrices and why quantization rounds them.
#
# ## 7. Two seams
#
# A *seam* is a place where the model lets a method put something in.
# Some methods put vectors where no token is.
# The model has two arguments for that, and no method needs any other access:
# `prompt=` takes vectors $(P, d)$ that enter as if they were embedded tokens, where $P$ counts
# them; `prefix=` takes keys and values for every block, which your attention function sees as
# $S - T$ extra keys.
# Generation's cache is such a prefix, one that grows:

# %%
cache = tp.KVCache(model.config.n_layers)
with tp.no_grad():
    at_once = model(ids[None])
    model(ids[None, :-1], cache=cache)                                 # all but the last token …
    last = model(ids[None, -1:], cache=cache)  # … and then one query over T keys
print("largest difference:", abs(last.data[0, 0] - at_once.data[0, -1]).max(),
      " bytes of keys and values:", cache.nbytes)

# %% [markdown]
# ### {exercise} · Which block would you remove? (open, 4 points, 30 minutes)
#
# Equation (2) adds, so a block can be skipped: leave its addition out and the stream flows on.
# Write a loop that measures the loss on `rows` without block 0, then without block 1, and so on.
# Then leave out only the attention or only the MLP of each.
# Before you run it, write down your guess: which removal hurts most?
# Explain what you find with the picture of section 5.
#
# *Rubric: 1 point for a correct measurement of all five blocks on the same text, with the whole
# model beside it. 1 point for attention and MLP separately. 1 point for a guess that was written
# down before, and compared. 1 point for an explanation by the residual stream, and not only by the
# loss of section 5, which asks another question.*

# %% [answer]
# Block 0 matters most by far: without it the loss is worse than guessing.
# Of its two parts it is the MLP: without its attention alone the loss rises by about one nat,
# without its MLP by seven.
# Block 1 comes next, and there it is attention.
# Each of the last three blocks costs less than one nat; in the last one the MLP is the larger part.
#
# *Why.*
# The embedding says "this token", and with tied tables its own row scores best.
# The first MLP writes what every later block expects to read, so without it all of them work on
# inputs that they never saw in training.
# A late block only adds to a stream that is already useful, and nobody but the head reads it.
# The loss of section 5 asks another question: how far the stream has come, not who depends on whom.
# There the last blocks help most.

# %% [markdown]
# ## 8. Positions without a table
#
# The table $P$ ends at position $C - 1$, and so does the model.
# ALiBi (*attention with linear biases*) has no table.
# It lowers the score of a key in proportion to its distance: it adds $-m_h\,(i - j)$ to the score
# of query position $i$ and key position $j$ in head $h$.
# The slopes are fixed and not trained: $m_h = 2^{-8h/H}$ for $h = 1 \dots H$.
# So some heads look near, and others look far.
#
# ### {exercise}
#
# Return the biases $(H, T, S)$ of $T$ queries, which are the last $T$ of $S$ positions.
# The mask is added elsewhere, so give keys of the future the bias 0.

# %% exercise=transformer.alibi points=3 minutes=10 bonus=yes as=alibi
def transformer_alibi(T, S, H):
    """The biases (H, T, S) that ALiBi adds to the scores; 0 for keys of the future."""

# %% [markdown]
# **Your function at work.**
# Our base was trained with its table.
# We take the table away, and give attention your biases in its place, without any training:

# %%
def with_bias(bias):
    """Causal attention with something added to its scores."""
    def attention(q, k, v, **options):
        (T, d), S, H = q.shape[-2:], k.shape[-2], q.shape[-3]
        added = np.triu(np.full((T, S), -1e30), 1 + S - T) + bias(T, S, H)
        return plain.softmax(q @ k.transpose(0, 1, 3, 2) / math.sqrt(d) + added) @ v
    return attention


blind = copy.deepcopy(model)
blind.position_embedding.weight.assign(np.zeros_like(P.data))
for name, who, bias in (("with the table", model, lambda T, S, H: 0.0),
                        ("without it", blind, lambda T, S, H: 0.0),
                        ("without it, with ALiBi", blind, alibi)):
    with use(F, attention=with_bias(bias)):
        print(f"{name:24}{loss(logits_of(who), rows):.2f} nats per token")

# %% [markdown]
# The biases bring back a part of what the table knew, in a model that never saw them.
# A model that is trained with ALiBi from the start needs no table.
#
# ## Recall
#
# <details><summary>1. Where in a transformer do positions exchange information?</summary>
# In attention only.
# Embedding, layer norm, MLP and head work on each position by itself.
# </details>
# <details><summary>2. What would happen without the division by √d_head?</summary>
# Scores would grow with the width, softmax would put all weight on one key, and its gradient would
# vanish.
# </details>
# <details><summary>3. Why does the loss compare the logits at position t
# with token t + 1?</summary>
# Because the model predicts the next token.
# Compared with token t itself, which it sees, it would have nothing to learn.
# </details>
# <details><summary>4. What does "tied" mean, and what does it forbid?</summary>
# Embedding and output head are the same array.
# Nobody can adapt one without changing the other.
# </details>
# <details><summary>5. Two models with different tokenizers have 2.4 and 2.9 nats per token.
# Which is better?</summary>
# One cannot tell: a token of the second may stand for more bytes.
# Compare bits per byte.
# </details>
#
# ## Where the papers say this
#
# - Vaswani et al., *Attention Is All You Need*, arXiv 1706.03762: section 3.2.1, equation (1), is
#   our (3) without the mask; footnote 4 there explains the root.
#   Its layer norm comes *after* the addition.
# - Radford et al., *Language Models are Unsupervised Multitask Learners* (GPT-2, 2019), section
#   2.3: layer norm moved to the input of each sublayer, one more after the last block, and the
#   weights of the residual layers scaled by one over the root of their number at the start.
# - Sennrich, Haddow, Birch, arXiv 1508.07909: byte pair encoding for words.
#   Press & Wolf, arXiv 1608.05859: tied embeddings.
#   Press, Smith, Lewis, arXiv 2108.12409: ALiBi.
#
# ## Where implementations differ
#
# - Hugging Face's GPT-2 has query, key and value in one matrix `c_attn`, stored as (in, out) and
#   called Conv1D.
#   Here they are three layers with weights (out, in), so that a method can adapt one alone.
# - BERT and the first transformer normalize after the addition ("post-norm").
#   Houlsby's adapters were made for that; lesson 04 says what changes.
# - Newer models replace learned positions by rotations, layer norm by its version without a mean,
#   GELU by a gated unit.
#   The seams stay the same.
#
# ## The real call
#
# The same architecture in Hugging Face's transformers. Your count says how many parameters it has:
#
# ```python
# from transformers import GPT2Config, GPT2LMHeadModel
#
# config = GPT2Config(vocab_size=1024, n_positions=256, n_embd=128, n_layer=5, n_head=4)
# gpt2 = GPT2LMHeadModel(config)                   # random weights
# print(f"{gpt2.num_parameters():,}")              # 1,155,456
# # GPT2LMHeadModel.from_pretrained("gpt2") loads OpenAI's, from the network
# ```
#
# **Now you can** compute every number in this model by hand, test that it does not see the future,
# and say where its parameters and its losses are.
# Next: [03 · Full fine-tuning](03_full_finetuning.ipynb) trains all of it on new text, and adds
# up the bill.
