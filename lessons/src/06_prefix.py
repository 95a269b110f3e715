# %% [markdown]
# # 06 · Prefix tuning and P-tuning v2
#
# **What you will do.** Put keys and values that no token ever had in front of every layer's
# attention, and train nothing else.
# You derive their gradients and train with them. You take attention apart into "what the text says"
# and "what the prefix says", find out why a colleague's prefix does harm, and see how
# many facts prompts and prefixes learn in the same time.
#
# **What you need.** Lesson 02 (attention, heads, the cache) and lesson 05 (prompt tuning).
#
# **Words and letters.** [The glossary](GLOSSARY.md) explains every word and letter of the course.
#
# **Time.** 95 minutes for reading and the exercises. The open exercise takes 40 more, the bonus
# 10. Every cell together runs in about a minute.

# %%
import numpy as np

import tinypeft as tp
from tinypeft.engine import functional as F
from tinypeft.models import gpt
from tinypeft.course import beside, show, sliders, use
from tinypeft.course.slider import slider
from tinypeft.peft.prefix import Prefix, ReparameterizedPrefix
from tinypeft.study import plot

base = tp.load_pretrained()
task = tp.tasks.invented(base, context=64, things=8)          # machines that do not exist
c = base.config
d_head = c.d_model // c.n_heads
frozen_loss = tp.evaluate(base, task, "train")["loss"]
print(f"{c.n_layers} layers, {c.n_heads} heads of {d_head} columns, d = {c.d_model}")
print(f"on the catalogue the frozen base has {frozen_loss:.2f} nats per token")

# %% [markdown]
# ## 1. From a prompt to a prefix
#
# Prompt tuning (lesson 05) trains $P$ vectors at the input.
# Each of them then passes through frozen layers.
# What the third layer sees of the prompt is what the first two make of it, and they were never
# trained for it. Li and Liang (arXiv 2101.00190) give every layer a prompt of its own.
# All that later tokens ever take from an earlier token is its **key** and its **value**, so they
# train only keys and values. These are the *prefix*:

# %%
show("schematic:prefix")

# %% [markdown]
# In every layer, with $[\,;\,]$ for putting rows under rows, $P_K$ for the trained keys and $P_V$
# for the trained values,
#
# $$K \leftarrow [P_K;\, K], \qquad V \leftarrow [P_V;\, V] \tag{1}$$
#
# Nothing else changes. Queries are computed from tokens alone.
# There are as many outputs as tokens. No weight of the model moves.
# Two consequences are easy to overlook.
#
# * **Positions shift.** GPT-2 adds a vector for each position.
#   Behind $P$ virtual positions the first real token has the position $P$, not 0.
# * **A prefix of zeros does something.**
#   A zero key has the score 0 with every query, and $e^0 = 1$.
#   It takes its share of the softmax and gives a zero value for it.
#
# Let us measure the second: the same 40 tokens, once without a prefix, once with a prefix of ten
# zero vectors. Guess first. The last token sees 10 zero keys and 40 keys of text.
# Which share of its attention goes to the zeros, as a mean over all heads?
#
# (`walk`, in the next cell, is the model by hand. You need not read it now.)

# %%
guess = tp.guess("06.zeros", 20, "%")

# %%
def walk(model, tokens, prefix, seen, positions):
    """The logits of one row of tokens (1, T), and all maps of attention (L, H, T, P + T), by hand.

    prefix: a (K, V) for each layer. seen (T, P + T), or one for each layer: may token t look at
    column j?
    positions (T,): the position of each token."""
    cut = lambda t: t.data.reshape(tokens.shape[1], c.n_heads, -1).transpose(1, 0, 2)
    maps = []
    with tp.no_grad():
        x = model.token_embedding(tokens) + model.position_embedding(positions)
        seen = np.broadcast_to(seen, (len(prefix), *np.shape(seen)[-2:]))
        for block, (P_K, P_V), may_see in zip(model.blocks, prefix, seen, strict=True):
            n, a = block.norm1(x), block.attention
            q, k, v = (cut(project(n)) for project in (a.query, a.key, a.value))    # (H, T, d_head)
            scores = q @ np.concatenate([P_K.data, k], axis=1).swapaxes(1, 2) / d_head ** 0.5
            maps.append(F.softmax(tp.Tensor(np.where(may_see, scores, -np.inf))).data)
            o = maps[-1] @ np.concatenate([P_V.data, v], axis=1)
            x = x + a.output(tp.Tensor(o.transpose(1, 0, 2).reshape(1, len(positions), -1)))
            x = x + block.mlp(block.norm2(x))
        return model.logits(model.final_norm(x)), np.stack(maps)


tokens, targets = (a[:, :40] for a in task.batch("train", 1, np.random.default_rng(0)))
zero = tp.Tensor(np.zeros((c.n_heads, 10, d_head), np.float32))               # (H, P, d_head)
with tp.no_grad(): behind = base(tokens, prefix=[(zero, zero)] * c.n_layers)
all_seen = np.tril(np.ones((40, 50), bool), 10)
by_hand, maps = walk(base, tokens, [(zero, zero)] * c.n_layers, all_seen, np.arange(10, 50))
print("the walk by hand is the model:", np.allclose(by_hand.data, behind.data, atol=1e-3))
print(f"loss {F.cross_entropy(base(tokens), targets).item():.2f} without a prefix, "
      f"{F.cross_entropy(behind, targets).item():.2f} behind ten zeros")
below = maps[:, :, -1, 10:] < maps[:, :, -1, :1]               # a score below 0, that of a zero key
print(f"most scores of the text are negative in {(below.mean(-1) > 0.5).sum()} of 20 heads")
guess.beside(100 * maps[:, :, -1, :10].sum(-1).mean())

# %% [markdown]
# A head ignores a token by a low score. Most scores are negative, and there 0 is a large one.
#
# ## 2. What a prefix learns from
#
# One head, one query $q$ that sees all of the prefix and all of the text:
#
# $$p = \mathrm{softmax}\!\left(\frac{[P_K; k]\,q}{\sqrt{d_\text{head}}}\right), \qquad
# o = [P_V; v]^\top p \tag{2}$$

# %%
rng = np.random.default_rng(1)
q, k, v, P_K, P_V = (rng.standard_normal((n, 8)) for n in (1, 6, 6, 3, 3))
scores = np.concatenate([P_K, k]) @ q[0] / 8 ** 0.5
p = np.exp(scores) / np.exp(scores).sum()                                    # equation (2)
print("the prefix's three shares", p[:3].round(3), " o", (p @ np.concatenate([P_V, v])).round(2))

# %% [markdown]
# **By hand.** One number a head, $q = 1$, both keys 0, the prefix's value 8 and the text's 4: the
# shares are ½ each, and $o = 6$. With 8.01 in $P_V$ it is 6.005. With 0.01 in $P_K$ the shares are
# 0.5025 and 0.4975, and $o = 6.01$. So for $do = 1$ the gradients are $dP_V = 0.5$ and $dP_K = 1$.
#
# ### {exercise}
#
# The gradient `do` $(d_\text{head},)$ of the output is given. Derive $(dP_K, dP_V)$ on paper, for
# `q` $(d_\text{head},)$, `k` and `v` $(T, d_\text{head})$, `P_K` and `P_V` $(P, d_\text{head})$.
# You have done all of it before: $o$ is a sum over the rows of $[P_V; v]$, equation (5) of lesson 01
# leads back through the softmax, and the scores are a product. All arrays are NumPy's.

# %% exercise=prefix.backward points=4 minutes=18 as=my_backward
def prefix_backward(q, k, v, P_K, P_V, do):
    """(dP_K, dP_V), each (P, d_head), from do = ∂L/∂o of one query."""

# %% [markdown]
# <details><summary>The equations, to compare with yours</summary>
#
# $$dP_V = p_P\, do^\top, \qquad ds = p \odot (dp - p^\top dp), \quad dp = [P_V; v]\, do, \qquad
# dP_K = \frac{ds_P\, q^\top}{\sqrt{d_\text{head}}}$$
#
# The index $P$ takes the prefix's entries. A row of the prefix that nobody looks at, $p_i \approx 0$,
# learns nothing: its key and its value both get a gradient of about zero.
#
# </details>

# %% [markdown]
# **Your gradients at work.** The package computes every head's output and the gradients of the
# text. Those of the prefix come from you, query by query, in all layers. A prefix trains with them
# for four steps. (*Dropout* sets random numbers to zero in training. Here it is off, so that both
# trainings see the same prefix.)

# %%
def my_attend(q, k, v, prefix, cache, of_package=gpt.attend, **options):
    """The package's attention, with your gradients of the prefix: P_K and P_V (H, P, d_head)."""
    P_K, P_V = prefix
    fixed = [tp.Tensor(t.data) for t in prefix]
    out = of_package(q, k, v, fixed, cache, **options)                        # (B, T, H d_head)

    def gradients(dout):
        dK, dV = np.zeros_like(P_K.data), np.zeros_like(P_V.data)
        for b, h, t in np.ndindex(q.shape[:3]):
            do, text = dout[b, t].reshape(len(dK), -1)[h], slice(0, t + 1)
            one = my_backward(q.data[b, h, t], k.data[b, h, text], v.data[b, h, text],
                              P_K.data[h], P_V.data[h], do)
            dK[h] += one[0]
            dV[h] += one[1]
        return dK, dV
    return out + tp.Tensor.fused(np.zeros_like(out.data), (P_K, P_V), gradients)


def losses_of(tuned, steps=4):
    return np.array(tp.train(tuned, task, steps, batch_size=2, seed=0, progress=False).loss)


first, second = (tp.attach(tp.load_pretrained(), tp.PTuningV2(10, dropout=0.0)) for _ in range(2))
theirs = losses_of(first)
with use(gpt, attend=my_attend): mine = losses_of(second)
print("your losses", mine.round(3))
print(f"largest difference from the package's: {abs(mine - theirs).max():.0e}")

# %% [markdown]
# The package's attention joins all heads at once.
# Generation's cache goes through the same function: for the model, a prefix looks like earlier
# tokens that were never there.

# %%
show(tp.models.attend, around="concatenate([K, k]")

# %% [markdown]
# ## 3. What a prefix does to a head
#
# **By hand.** One key of a prefix has the score $\ln 3$, one key of the text the score 0.
# Their exponentials are 3 and 1, so the prefix gets $\lambda = 3/4$ of the attention.
# The prefix's value is 8, the text's is 4.
# The head's output is $\tfrac14 \cdot 4 + \tfrac34 \cdot 8 = 7$.
#
# Now for any number of keys.
# For one query $q$, let $\lambda$ be the share of the softmax that falls on the prefix.
# Because the softmax covers prefix and text together, the head can be taken apart (He et al.,
# arXiv 2110.04366, equations 7 and 8):
#
# $$\text{head} = (1 - \lambda)\ \mathrm{Attn}(q, k, v) + \lambda\ \mathrm{Attn}(q, P_K, P_V)
# \tag{3}$$
#
# Read it from the right.
# $\mathrm{Attn}(q, P_K, P_V) = \mathrm{softmax}(q P_K^\top / \sqrt{d_\text{head}})\, P_V$ is a
# small network with one hidden layer of $P$ units.
# Its nonlinearity is the softmax, and its weights are $P_K$ and $P_V$.
# **A prefix is an adapter** in parallel to each head. It differs from an adapter in two ways. Its
# hidden units, one for each virtual token, share one softmax. And a gate $\lambda$, which is
# computed and not trained, decides how far it *replaces* the head. That is how the paper of the
# parallel adapter (lesson 04) came to it.
#
# ### {exercise}
#
# For the last token's query `q` $(d_\text{head},)$, which sees everything, derive $\lambda$ from
# the scores and compute it.
# NumPy arrays this time: `k` $(T, d_\text{head})$, `P_K` $(P, d_\text{head})$. Return a number.
# Scores are divided by $\sqrt{d_\text{head}}$. They may be in the thousands, where `np.exp`
# overflows, or far below zero, where it gives 0: $\lambda$ must be right there, too.

# %% exercise=prefix.share points=3 minutes=12 as=share
def prefix_share(q, k, P_K):
    """λ: how much of the softmax falls on the prefix, a number from 0 to 1."""

# %% [markdown]
# <details><summary>The equation</summary>
#
# $$\lambda(q) = \frac{\sum_i e^{\,q \cdot P_{K,i}/\sqrt{d_\text{head}}}}
# {\sum_i e^{\,q \cdot P_{K,i}/\sqrt{d_\text{head}}} +
# \sum_j e^{\,q \cdot k_j/\sqrt{d_\text{head}}}} \tag{4}$$
#
# </details>

# %% [markdown]
# Your $\lambda$ in equation (3): the head on the left, the mixture on the right, and what happens
# to both as the prefix's keys grow.

# %%
attend = lambda *qkv: F.attention(*map(tp.Tensor, qkv)).data                 # it sees every key
for factor in (0, 1, 4, 16):
    lam = share(q[0], k, factor * P_K)
    left = attend(q, np.concatenate([factor * P_K, k]), np.concatenate([P_V, v]))
    right = (1 - lam) * attend(q, k, v) + lam * attend(q, factor * P_K, P_V)
    moved = np.linalg.norm(left - attend(q, k, v))
    print(f"{factor:2} × P_K: λ = {lam:.3f}, output moved by {moved:.2f}, "
          f"left − right {abs(left - right).max():.0e}")

# %% [markdown]
# Move the handle: the keys of this prefix grow, and $\lambda$, by your function, opens the gate.

# %%
sliders.gate(share, q[0], k, P_K)

# %% [markdown]
# ## 4. The table, and the network that makes it
#
# All of a prefix is one table $P_\theta$ with a row for each virtual token.
# In each of $L$ layers, $H$ heads need a key and a value of $d_\text{head} = d/H$ numbers.
# That is $2Ld$ numbers in a row.
# Training the table itself was unstable in the paper's experiments.
# The paper trains a smaller matrix $P'_\theta$ and a network that makes the table of it (section
# 4.3):
#
# $$P_\theta[i, :] = W_2 \tanh(W_1 P'_\theta[i, :] + b_1) + b_2 \tag{5}$$

# %%
show(ReparameterizedPrefix.table)

# %% [markdown]
# After training, the network is evaluated once and dropped.
# Only the table is kept (`tuned.fold()`).
# So "how many parameters" has two honest answers, and papers and libraries mix them up. Stored are
# $2PLd$ numbers. Trained are $P'$ and both layers with their biases, for $m$ hidden units
# $Pd + m(d + 1) + 2Ld(m + 1)$.

# %%
sizes = {"this base": (10, c.n_layers, c.d_model, 64),
         "GPT-2 medium, authors' code": (10, 24, 1024, 512)}
for name, (P, L, d, m) in sizes.items():
    trained, stored = P * d + m * (d + 1) + 2 * L * d * (m + 1), 2 * P * L * d
    print(f"{name:27} trained {trained:>12,}   stored {stored:>9,}   "
          f"{trained / stored:.0f} times as many")
summary = tp.attach(tp.load_pretrained(), tp.PrefixTuning(10, hidden=64)).summary()
print(f"the package's summary       trained {summary.trained:>12,}   stored {summary.stored:>9,}")

# %% [markdown]
# GPT-2 medium has some 355 million parameters. The paper's "0.1 %" is what is stored.
# In training it is some fifty times as many, and 7 % of the model.
#
# ### {exercise}
#
# Cut a table $(P, 2Ld)$ into what the model wants: a list with one pair `(K, V)` for each layer,
# each $(H, P, d_\text{head})$.
# A row holds, one after another, layer 0's keys, layer 0's values, layer 1's keys, and so on.
# Each of these holds head 0, head 1, and so on. The table is a NumPy array here.

# %% exercise=prefix.cut points=3 minutes=12 as=my_cut
def prefix_cut(table, n_layers, n_heads):
    """[(K, V) for each layer], each (H, P, d_head), from a table (P, 2 L d)."""

# %% [markdown]
# Compare yours with the package's, which cuts a Tensor, so that gradients flow back into the
# table:

# %%
show(Prefix.seams)

# %% [markdown]
# ## 5. Train one
#
# P-tuning v2 (Liu et al., arXiv 2110.07602) is the same table, trained directly.
# It has a classification head on top when the task is to understand text and not to write it.
# So `PTuningV2` is the package's name for a direct prefix.
# Three methods learn the catalogue of lesson 00, each with twenty virtual tokens and at the best of
# three learning rates. Two more arms are for a fair comparison: a P-tuning v2 of two virtual tokens,
# which has as many numbers as the prompt of twenty, and a prompt of 64. All begin as common words, or
# as the keys and values of common words, and not at random (section 7.4 of the paper: activations of
# real words help where data is scarce). The network of equation (5) makes nearly these keys and
# values at the start: least squares set its $W_2$ and $b_2$.

# %%
STEPS = 100


def learn(method, lr):
    """A fresh copy of the base with `method`, trained; its losses; its loss at the end."""
    tuned = tp.attach(tp.load_pretrained(), method, rng=0)
    history = tp.train(tuned, task, STEPS, batch_size=8, seed=0, lr=lr, progress=False)
    return tuned, np.array(history.loss), tp.evaluate(tuned, task, "train")["loss"]


methods = {"prompt": (tp.PromptTuning(20), 0.1), "prompt of 64": (tp.PromptTuning(64), 0.1),
           "v2 of 2": (tp.PTuningV2(2, dropout=0.0), 0.3), "prefix": (tp.PrefixTuning(20), 0.02),
           "ptuning_v2": (tp.PTuningV2(20, dropout=0.0), 0.3)}
runs = {name: learn(*method) for name, method in methods.items()}
right = [fact for _, fact in task.taught]
answers = {"frozen base": task.answers(base),
           **{name: task.answers(tuned) for name, (tuned, _, _) in runs.items()}}
n_right = {name: sum(a == fact for a, fact in zip(said, right, strict=True))
           for name, said in answers.items()}
print(f"frozen base {frozen_loss:.2f} nats, {n_right['frozen base']} of 16 answers right")
for name, (tuned, _, loss) in runs.items():
    print(f"{name:12} {loss:5.2f} nats, {n_right[name]:2} of 16 answers right, after training "
          f"{tuned.summary().trained:7,} numbers")

# %% fold
fig, ax = plot.figure(height=2.9)
looks = {"prompt": "-", "prompt of 64": ":", "v2 of 2": ":", "prefix": "--", "ptuning_v2": "-"}
ends = []
for name, (_, losses, _) in runs.items():
    y = np.convolve(losses, np.ones(10) / 10, "valid")
    colour = plot.mark({"prompt of 64": "prompt", "v2 of 2": "ptuning_v2"}.get(name, name))["color"]
    ax.plot(np.arange(10, STEPS + 1), y, color=colour, ls=looks[name])
    ends.append((STEPS, y[-1], f"{name}: {n_right[name]} of 16", colour))
ax.set(xlabel="step (8 × 64 tokens each)", xlim=(8, STEPS + 34), xticks=range(20, STEPS + 1, 20),
       ylabel="loss on the catalogue,\nmean of 10 steps (nats/token)", yscale="log", ylim=(0.2, 5))
plot.plain_log(ax.yaxis)
plot.label_ends(ax, ends)
fig.set_label("Training losses over 100 steps, on a logarithmic axis. The prompt of 20 ends near "
              "2.7 nats and has no answer right. Below it follow two virtual tokens in every "
              "layer, and a prompt of 64. The two prefixes of 20 fall below 1 nat and have "
              "several of 16 right.")
fig

# %% [markdown]
# *What to see: at the same length the prefixes, with more numbers, are far ahead. With as many
# numbers two virtual tokens in every layer still are ahead of twenty at the input, by less. A longer
# prompt knows facts as well.* So a prompt can learn facts, slowly: with
# three seeds, 300 steps brought the twenty vectors to 1.9 nats, and to 3, 4 and 0 right answers.
# Such a count hangs on chance; trust the losses more.
#
# And the network of equation (5)? Here the direct table is ahead of it, with a quarter of the
# numbers, and two more seeds agree: 0.42 and 0.46 nats against 0.54 and 0.61. Nothing was unstable.
# The study trained longer:
#
# {claim Reparameterized prefixes}
#
# What do the prefixes say?

# %%
ask = 0, 1, 4, 5, 8, 9
beside({"question": [task.taught[i][0].partition("\n")[2] + " …" for i in ask],
        **{name: [said[i] for i in ask] for name, said in answers.items() if " of " not in name},
        "the catalogue": [right[i] for i in ask]})

# %% [markdown]
# The prompt of 20 has learned what a use looks like, and answers one and the same. For a material it
# makes words up. The prefixes know some facts. LoRA on all six matrices knows all 16 (lesson 07), and
# the adapters of lesson 04 know 8 to 14.
#
# **Your cut at work.** It cuts the trained table, and the model reads what you cut:

# %%
tuned, P, T = runs["ptuning_v2"][0], 20, tokens.shape[1]
mine = [(tp.Tensor(np.float32(K)), tp.Tensor(np.float32(V)))
        for K, V in my_cut(tuned.virtual.P.data, c.n_layers, c.n_heads)]
with tp.no_grad(): logits = base(tokens, prefix=mine).data
print("the same logits as by the package:", np.allclose(logits, tuned(tokens).data, atol=1e-4))

# %% [markdown]
# The study trains prompts and prefixes of different lengths for longer, each at its own learning
# rate, over several seeds:

# %%
show("prefix_length")

# %% [markdown]
# *What to see: the same number of virtual tokens is worth more in every layer than at the input
# alone.* ("prefix" is the direct table.) With ten of them the distance is {study prefix_length:
# prompt 10 - prefix 10, loss} nats. But ten in every layer are ten times as many numbers. A prompt
# of 100 has as many, 12,800: against it the distance is {study prefix_length: prompt 100 - prefix
# 10, loss}. The papers say that prompt tuning closes its gap to fine-tuning at billions of
# parameters, and that deep prompts do so in smaller models, too. The study asks that of its three
# bases (lesson 05), in nats per token:
#
# | base | gain of a prompt at the input | gain of prompts in every layer |
# |---|---|---|
# | small | {study prompts: prompt small, gain} | {study prompts: ptuning_v2 small, gain} |
# | medium | {study prompts: prompt medium, gain} | {study prompts: ptuning_v2 medium, gain} |
# | base | {study prompts: prompt base, gain} | {study prompts: ptuning_v2 base, gain} |
#
# Depth gains more at each size. It does not close the gap: compare with what full fine-tuning gains,
# in lesson 05.
# On the smallest base it doubles the gain of a prompt, and on the other two it adds more than half.
# (Dropout is off here. With its own dropout of 0.1 P-tuning v2 gains less in 150 steps.)
#
# ## 6. A prefix that does harm
#
# A colleague runs the trained prefix in her own loop, which is `walk` of section 1.
# `walk` has to be told which columns each token may see, and the position of each token.
# She writes:

# %%
def of_colleague(T, P):
    """(seen, positions): may token t see column j of the P + T? And where does each token stand?"""
    seen = np.tril(np.ones((T, P + T), bool))        # causal: nobody sees the future
    return seen, np.arange(T)                        # T tokens


def losses(places):
    """Mean loss on four texts: without a prefix, with it in the model, with it in her loop."""
    found = []
    for seed in range(4):
        row, aim = (a[:, :40] for a in task.batch("train", 1, np.random.default_rng(seed)))
        by_hand, _ = walk(tuned.model, row, mine, *places(40, P))
        three = base(row), tuned(row), by_hand
        found.append([F.cross_entropy(logits, aim).item() for logits in three])
    return "without {:.3f}, in the model {:.3f}, in her loop {:.3f}".format(*np.mean(found, axis=0))


print(losses(of_colleague))

# %% [markdown]
# The loss is above even that of a model without a prefix.
#
# ### {exercise}
#
# Write the mended function. What is wrong in it?
# `seen` is a bool array $(T, P + T)$, `positions` an integer array $(T,)$.

# %% exercise=prefix.bug points=3 minutes=12 as=mended
def prefix_bug(T, P):
    """(seen, positions) of T tokens behind a prefix of P."""

# %% [markdown]
# Two things were wrong. Guess the loss if she mends the mask alone:

# %%
guess = tp.guess("06.mask", 1, "nats")

# %%
print("both mended:         ", losses(mended))
print("only the positions:  ", losses(lambda T, P: (of_colleague(T, P)[0], mended(T, P)[1])))
print("only the mask:       ", only_mask := losses(lambda T, P: (mended(T, P)[0], np.arange(T))))
guess.beside(float(only_mask.split()[-1]))

# %% [markdown]
# *What to see: the mask does most of the harm. With hers, token $t$ sees the first $t + 1$ columns,
# at most twenty of them the prefix's: no token sees itself, nor the nineteen before it, and the first
# twenty see no text at all. There the right positions alone are no help.*

# %% [markdown]
# ## 7. Where do the heads look?
#
# `walk` also returns every map of attention.
# So $\lambda$ of every head and token can be read off.
# On the left is the head whose mean $\lambda$ is nearest to 1/2, so that both parts show:

# %%
_, maps = walk(tuned.model, tokens, mine, *mended(T, P))                       # (L, H, T, P + T)
lam = maps[..., :P].sum(-1).mean(-1)                                           # (L, H), over tokens

# %% fold
fig, (left, right) = plot.figure(1, 2, height=3.0)
layer, head = np.unravel_index(abs(lam - 0.5).argmin(), lam.shape)
image = left.imshow(np.sqrt(maps[layer, head]), cmap="viridis", aspect="auto", vmin=0)
left.axvline(P - 0.5, color="white", lw=1)
left.set(xlabel="prefix │ text", ylabel="token", title=f"layer {layer}, head {head}: attention")
left.grid(False)
fig.colorbar(image, ax=left, label="root of the probability")
right.imshow(lam, cmap="cividis", vmin=0, vmax=1)
right.set(xlabel="head", ylabel="layer", title="λ, mean over tokens", xticks=range(c.n_heads),
          yticks=range(c.n_layers))
right.grid(False)
for (i, j), value in np.ndenumerate(lam):
    right.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=9,
               color="white" if value < 0.6 else "black")
fig.set_label("Left: the attention of 40 tokens of one head to 20 columns of the prefix and 40 of "
              "the text; some of the prefix's columns are bright from top to bottom. Right: the "
              "share λ of each of 20 heads, from near 0 to near 1.")
fig

# %% [markdown]
# *What to see, left: columns of the prefix that all tokens look at. In the text a token sees itself
# and what is left of it, so that nothing is right of the diagonal (the root shows small shares).
# Right: some heads give most of their attention to the prefix, others nearly ignore it.* Nobody
# trained the gate $\lambda$ itself. It follows from the keys. Move the handle to see the other
# heads, layer after layer, with the prefix's columns on the left:

# %%
heads = {f"{i}.{j}": np.sqrt(maps[i, j]) for i, j in np.ndindex(lam.shape)}
told = {name: f"layer {name[0]}, head {name[2]}: λ = {mean:.2f}"
        for name, mean in zip(heads, lam.flat, strict=True)}
slider("layer.head", heads, captions=told)

# %% [markdown]
# ## 8. Bonus: more of the same prefix
#
# The points of this section are extra. A prefix has the share $\lambda$.
# Put the same prefix $n$ times in a row. Which share have the $n$ copies together?
# It is not $n\lambda$, which could be more than 1.
#
# ### {exercise}
#
# Derive the new share from $\lambda$ and $n$ alone. `lam` is an array of shares, `n` a number.
# Here a share may be 0, and none is 1.
# (Think of $\lambda : (1 - \lambda)$, the odds of prefix against text.)

# %% exercise=prefix.copies points=2 minutes=10 bonus=yes as=copies
def prefix_copies(lam, n):
    """The share of n copies of a prefix whose share alone is lam: an array like lam."""

# %%
alone = share(q[0], k, P_K)
for n in (1, 2, 10, 100):
    measured = share(q[0], k, np.tile(P_K, (n, 1)))
    (mine,) = copies(np.array([alone]), n)
    print(f"{n:3} copies: λ = {measured:.4f}, by your formula {mine:.4f}")

# %% [markdown]
# Ten zero vectors are ten copies of one. That is why ten of them take so much.
#
# ### {exercise} · How deep is deep? (open, 4 points, 40 minutes)
#
# The paper of P-tuning v2 asks which layers need a prompt (its section 4.3, "prompt depth").
# Ask the same here. First give the model only *some* layers of the trained prefix above, by
# `walk`, and measure the loss. A layer without a prefix needs columns that no token may see;
# which pair and which `seen` change nothing? Is it a zero pair? Use equation (3).
# Then train prefixes for the lower or the upper half alone.
# `p = tuned.virtual.P` is the table, and `p.update_mask` may be a bool array of its shape: only
# where it is True does the optimizer change the table. State your prediction first.
#
# *Rubric: 1 point for a prediction with a reason; 1 for an experiment that changes only what it
# means to; 1 for numbers over at least three seeds with their spread; 1 for saying where this
# differs from the paper and why it might.*

# %% [answer]
# *The pair that changes least.* A zero pair is not neutral.
# Its key has the score $q \cdot 0 = 0$, so by equation (3) it takes the share $\lambda$ of
# attention that $e^0$ earns for each of its $P$ positions, and adds $\lambda$ times a zero value:
# the output shrinks to $(1 - \lambda)$ of what it was.
# Neutral is what has $\lambda = 0$: leave the layer without a prefix, or hide its $P$ columns.
# Then the positions of the text, which begin at $P$, must stay as they are.
#
# *Parts of a trained prefix.*
# Each layer was trained with the others, so half of it gains less than half.
# A fair comparison trains lower and upper halves anew, each with its own learning rate.
#
# *The paper* adds prompts to some layers only, at an equal number of trained numbers, and finds
# that the deeper layers are worth more.
# Here five layers and short training leave little to tell apart.
# An answer that finds no clear difference over three seeds, and says so, has the point.
# {claim Deep prompts are better}

# %% [markdown]
# ## Recall
#
# <details><summary>1. Why are there keys and values in a prefix, but no queries?</summary>
# Nothing is ever asked of a virtual token: its own output is not needed.
# Later tokens use an earlier one only through its key and value.
# </details>
#
# <details><summary>2. What does a prefix do that a parallel adapter at the same place does
# not?</summary> It replaces: the head's own output is multiplied by 1 − λ. An adapter adds.
# </details>
#
# <details><summary>3. Why can a prefix not be merged into the weights?</summary>
# λ depends on the query, through a softmax shared with the text.
# No change of W_q, W_k and W_v computes the same function for all inputs.
# </details>
#
# <details><summary>4. You may store 0.1 % of the model's parameters per task. How many numbers
# does the reparameterized prefix train?</summary> P d for P′, and a network of about 2 L d m
# numbers, which is dropped after training. The table is not trained.
# </details>
#
# <details><summary>5. What is the difference between prefix tuning and P-tuning v2?</summary>
# The function is the same: both put keys and values before every layer's. v2 trains the table
# directly, with dropout on it, and reads a classifier off the model.
# </details>
#
# ## Where the papers say this
#
# * Prefix tuning, arXiv 2101.00190: equation (5) is in section 4.3; the ablation of depth
#   (embedding-only) in section 7.2, of real-word starts in 7.4. An ablation is an experiment that
#   leaves one part of a method out.
#   On E2E (a benchmark; table 4, BLEU) it reports 69.7 for the prefix and 48.1, 62.2 and 61.9 for
#   1, 10 and 20 embedding-only vectors.
# * The decomposition (3) is He et al., arXiv 2110.04366, equations 7 and 8.
# * P-tuning v2, arXiv 2110.07602: section 3.3 for reparameterization, length and head.
#
# ## Where implementations differ
#
# * PEFT's `PrefixTuningConfig` trains the table directly unless `prefix_projection=True`; the
#   paper's default is the network.
# * In the paper $P'$ is narrow ($P \times k$, $k = 512$ for GPT-2).
#   In the authors' code, PEFT and here it is $P \times d$, and the hidden layer is the narrow
#   one.
# * PEFT draws the table from N(0, 1); here it starts from real words (`init="random"` for N(0,
#   1)). With the network, the random starts differ: PEFT's table has a standard deviation of
#   about 0.28, this package's 0.62.
# * PEFT's description of zero initialisation calls it a "no-op".
#   You have seen that it is not.
# * The authors' code has dropout on the prefix; PEFT has not.
# * An exported prefix is the folded table: neither PEFT nor this package can resume training of
#   the network from it.
#
# ## The real call
#
# The same with Hugging Face's PEFT, for a `model` of transformers:
#
# ```python
# from peft import PrefixTuningConfig, get_peft_model
#
# config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20)     # P-tuning v2
# # prefix_projection=True, encoder_hidden_size=512: the table behind a network, prefix tuning
# tuned = get_peft_model(model, config)
# tuned.print_trainable_parameters()
# # … train as always; its learning rate is far larger than full fine-tuning's …
# tuned.save_pretrained("prefix")                                               # the table alone
# ```
#
# **Now you can** derive what a prefix learns, say what a head does with it, and count a prefix both
# ways.
# Next: [07 · LoRA](07_lora.ipynb), which changes weights, and disappears into them.
