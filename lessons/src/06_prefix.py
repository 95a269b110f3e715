# %% [markdown]
# # 06 · Prefix tuning and P-tuning v2
#
# **What you will do.** Put keys and values that no token ever had in front of every layer's attention, and train
# nothing else. You will write the attention that sees them, take it apart into "what the text says" and "what the
# prefix says", build the small network that makes training them stable, and measure whether depth is worth its
# parameters.
#
# **What you need.** Lesson 02 (attention, heads, the cache) and lesson 05 (prompt tuning).
#
# **Time.** 55 minutes; every cell together runs in well under a minute.

# %%
import numpy as np

import tinypeft as tp
from tinypeft import functional as F
from tinypeft.course import show
from tinypeft.study import plot

model = tp.load_pretrained()
task = tp.tasks.domain(model, context=128, held_out=8192)        # Matplotlib's documentation: new to the model
c = model.config
print(f"{c.n_layers} layers, {c.n_heads} heads of {c.d_model // c.n_heads} columns, d = {c.d_model}")
print(f"frozen base on {task.name}: {tp.evaluate(model, task)['loss']:.3f} nats/token")

# %% [markdown]
# ## From a prompt to a prefix
#
# Prompt tuning (lesson 05) trains $P$ vectors at the input. Each of them then passes through frozen layers: what
# the third layer sees of the prompt is whatever the first two, which were never trained for it, make of it. Li and
# Liang (arXiv 2101.00190) give every layer a prompt of its own. And since all that later tokens ever take from an
# earlier token is its **key** and its **value**, they do not bother with the rest of it: they train keys and values.
#
# In layer $\ell$, with $[\,;\,]$ for putting rows under rows,
#
# $$K \leftarrow [P_K;\, K], \qquad V \leftarrow [P_V;\, V] \tag{1}$$
#
# Here is that equation in the model's own attention. The same argument carries the generation cache: to the model, a
# prefix is a past that never happened.

# %%
show(tp.decoder.attend, around="concatenate([K, k]")

# %% [markdown]
# Nothing else changes. Queries are computed from tokens alone; there are as many outputs as tokens; no weight of the
# model moves. Two consequences are easy to overlook:
#
# * **Positions shift.** GPT-2 adds a vector for each position. Behind $P$ virtual positions the first real token is
#   number $P$, not 0.
# * **A prefix of zeros is not nothing.** A zero key has the score 0 with every query, and $e^0 = 1$: it takes its
#   share of the softmax and gives a zero value for it.
#
# See it: the same text, without a prefix, and behind one of ten zeros.

# %%
tokens = task.batch("test", 1, np.random.default_rng(0))[0][:, :40]                  # (1, 40)
zero = tp.Tensor(np.zeros((c.n_heads, 10, c.d_model // c.n_heads), np.float32))      # (H, P, d_head)
with tp.no_grad():
    plain = model(tokens).data
    behind = model(tokens, prefix=[(zero, zero)] * c.n_layers).data
print(f"the logits move by {abs(behind - plain).mean():.2f} on average; their standard deviation is {plain.std():.2f}")

# %% [markdown]
# ### {exercise}
#
# Write one head's attention with a prefix. `q`, `k`, `v` are Tensors $(T, d_\text{head})$, `P_K` and `P_V` Tensors
# $(P, d_\text{head})$. Token $t$ may look at the whole prefix and at tokens $0 \dots t$. Return the outputs
# $(T, d_\text{head})$:
#
# $$O = \mathrm{softmax}\!\left(\frac{q\,[P_K; k]^\top}{\sqrt{d_\text{head}}} + M\right)[P_V; v] \tag{2}$$
#
# with $M_{tj} = 0$ where token $t$ may look and $-\infty$ where it may not. Use operations on Tensors (`@`, `.T`,
# `tp.concatenate([a, b], axis=0)`, `F.softmax`), so that gradients reach all five; do not call `F.attention`.

# %% exercise=prefix.attention points=3 minutes=12
def prefix_attention(q, k, v, P_K, P_V):
    """Causal attention of one head whose keys and values stand behind a prefix: (T, d_head)."""
    ### BEGIN SOLUTION
    T, d = q.shape
    P = P_K.shape[0]
    K, V = tp.concatenate([P_K, k], axis=0), tp.concatenate([P_V, v], axis=0)        # (P + T, d_head)
    M = np.triu(np.full((T, P + T), -np.inf), P + 1)                                 # (T, P + T)
    return F.softmax(q @ K.T * (1 / d ** 0.5) + M) @ V
    ### END SOLUTION

# %%
result = tp.check("prefix.attention", prefix_attention)
result

# %% [markdown]
# ## What a prefix does to a head
#
# Because the softmax normalises over prefix and text together, equation (2) can be taken apart. For one query $q$,
# let $\lambda$ be the share of the softmax that falls on the prefix:
#
# $$\lambda(q) = \frac{\sum_i e^{\,q \cdot P_{K,i}/\sqrt{d}}}{\sum_i e^{\,q \cdot P_{K,i}/\sqrt{d}} + \sum_j e^{\,q \cdot k_j/\sqrt{d}}} \tag{3}$$
#
# Then (He et al., arXiv 2110.04366, equations 7 and 8)
#
# $$\text{head} = (1 - \lambda(q))\ \mathrm{Attn}(q, k, v) + \lambda(q)\ \mathrm{Attn}(q, P_K, P_V) \tag{4}$$
#
# Read it from the right: $\mathrm{Attn}(q, P_K, P_V) = \mathrm{softmax}(q P_K^\top / \sqrt d)\, P_V$ is a small network with one
# hidden layer of $P$ units, softmax for its nonlinearity, $P_K$ and $P_V$ for its weights. **A prefix is an adapter** in
# parallel to each head, with two peculiarities: its "bottleneck" is $P$, and a gate $\lambda$, computed and not
# trained, decides how far it *replaces* the head. That is how the paper of the parallel adapter came to be
# (lesson 04).
#
# ### {exercise}
#
# For the last token's query `q` $(d_\text{head},)$, which sees everything, compute $\lambda$ of equation (3). NumPy arrays
# this time: `k` $(S, d_\text{head})$, `P_K` $(P, d_\text{head})$; return a number. Scores may be large: subtract the largest one before
# you exponentiate, or $e^{1000}$ will spoil the day.

# %% exercise=prefix.share points=3 minutes=12
def prefix_share(q, k, P_K):
    """λ: how much of the softmax falls on the prefix, a number in (0, 1)."""
    ### BEGIN SOLUTION
    s = np.concatenate([P_K, k]) @ q / np.sqrt(len(q))                               # (P + S,)
    e = np.exp(s - s.max())
    return e[:len(P_K)].sum() / e.sum()
    ### END SOLUTION

# %%
result = tp.check("prefix.share", prefix_share)
result

# %% [markdown]
# Equation (4) with numbers: the head on the left, the mixture on the right.

# %%
share = result.function
rng = np.random.default_rng(1)
q, k, v, P_K, P_V = (rng.standard_normal((n, 8)) for n in (1, 6, 6, 3, 3))
attend = lambda q, k, v: F.attention(tp.Tensor(q), tp.Tensor(k), tp.Tensor(v)).data  # one query: it sees every key
left = attend(q, np.concatenate([P_K, k]), np.concatenate([P_V, v]))
lam = share(q[0], k, P_K)
right = (1 - lam) * attend(q, k, v) + lam * attend(q, P_K, P_V)
print(f"λ = {lam:.3f}, largest difference {abs(left - right).max():.1e}")

# %% [markdown]
# ## The table, and the network that makes it
#
# All of a prefix is one table $P_\theta$ with a row per virtual token: in each of $L$ layers $H$ heads need a key and a
# value of $d_\text{head} = d/H$ numbers, together $2Ld$ in a row. Training the table itself was unstable in the
# paper's experiments; it trains a smaller matrix $P'_\theta$ and a network that makes the table of it (section 4.3):
#
# $$P_\theta[i, :] = W_2 \tanh(W_1 P'_\theta[i, :] + b_1) + b_2 \tag{5}$$

# %%
from tinypeft.peft.prefix import Prefix, ReparameterizedPrefix

show(ReparameterizedPrefix.table)

# %% [markdown]
# After training the network is evaluated once and thrown away: only the table is kept (`tuned.fold()`). So there are
# two honest answers to "how many parameters", and papers, libraries and readers mix them up all the time.
#
# ### {exercise}
#
# For $P$ virtual tokens, $L$ layers, width $d$, and a network with $m$ hidden units ($P'$ is $P \times d$, both layers of
# the network have biases), return the numbers that are **trained** and that are **stored**.

# %% exercise=prefix.count points=1 minutes=5
def prefix_count(P, L, d, m):
    """(trained, stored) for a reparameterized prefix."""
    ### BEGIN SOLUTION
    return P * d + (d * m + m) + (2 * L * d * m + 2 * L * d), 2 * P * L * d
    ### END SOLUTION

# %%
result = tp.check("prefix.count", prefix_count)
result

# %%
count = result.function
for name, (P, L, d, m) in {"this base": (10, c.n_layers, c.d_model, 64), "GPT-2 medium, as in the authors' code": (10, 24, 1024, 512)}.items():
    trained, stored = count(P, L, d, m)
    print(f"{name:<37} trained {trained:>12,}   stored {stored:>9,}")
print(tp.attach(tp.load_pretrained(), tp.PrefixTuning(10, hidden=64)).summary())

# %% [markdown]
# GPT-2 medium has some 355 million parameters. The paper's "0.1 %" is what is stored, the second count; in training
# the network adds a multiple of it. (The authors say so when asked; see *Where implementations differ*.)
#
# ### {exercise}
#
# Cut a table $(P, 2Ld)$ into what the model wants: a list with one pair `(K, V)` per layer, each $(H, P, d_\text{head})$.
# A row holds, one after another: layer 0's keys, layer 0's values, layer 1's keys, …; and each of these holds head 0,
# head 1, …. The table is a NumPy array here.

# %% exercise=prefix.cut points=3 minutes=12
def prefix_cut(table, n_layers, n_heads):
    """[(K, V) for each layer], each (H, P, d_head), from a table (P, 2 L d)."""
    ### BEGIN SOLUTION
    P = len(table)
    parts = table.reshape(P, 2 * n_layers, n_heads, -1).transpose(1, 2, 0, 3)         # (2L, H, P, d_head)
    return [(parts[2 * i], parts[2 * i + 1]) for i in range(n_layers)]
    ### END SOLUTION

# %%
result = tp.check("prefix.cut", prefix_cut)
result

# %% [markdown]
# In the package the same cut is made on Tensors, so that gradients flow back into the table:

# %%
show(Prefix.seams)

# %% [markdown]
# ## Train one
#
# P-tuning v2 (Liu et al., arXiv 2110.07602) is the same table, trained directly, with a classification head on top when
# the task is to understand rather than to write. So `PTuningV2` is the package's name for a direct prefix; watch the
# three ways to spend twenty virtual tokens learn Matplotlib's documentation.

# %%
def learn(method, steps=60):
    """Losses in training, and the test loss, of a fresh copy of the base with `method`."""
    tuned = tp.attach(tp.load_pretrained(), method, rng=0)
    history = tp.train(tuned, task, steps, batch_size=4, seed=0, progress=False)
    return tuned, np.array(history.loss), tp.evaluate(tuned, task)["loss"]


methods = {"prompt": tp.PromptTuning(20), "prefix": tp.PrefixTuning(20), "ptuning_v2": tp.PTuningV2(20, dropout=0.0)}
runs = {name: learn(method) for name, method in methods.items()}

# %%
smooth = lambda x, n=10: np.convolve(x, np.ones(n) / n, "valid")
fig, ax = plot.figure()
for i, (name, (tuned, losses, test)) in enumerate(runs.items()):
    style = {**plot.mark(name), "marker": "", "ls": ("-", "--", ":")[i]}
    ax.plot(np.arange(10, len(losses) + 1), smooth(losses), **style)
    ax.plot([30, 33], [3.09 - 0.034 * i] * 2, **style)
    label = f"{type(tuned.method).__name__}: {tuned.summary().trained:,} trained, test loss {test:.3f}"
    ax.text(33.6, 3.09 - 0.034 * i, label, va="center", color=style["color"])
ax.set(xlabel="step (4 × 128 tokens each)", ylabel="training loss, mean of 10 steps (nats/token)", ylim=(None, 3.12))
fig

# %% [markdown]
# *What to see: three curves fall together; in so few steps depth pays little, and the direct table at its own, large
# learning rate is as well-behaved as the one behind a network.* Both starts are good ones: these prefixes begin as the
# keys and values of common words, not at random (section 7.4 of the paper: activations of real words help where data
# is scarce). Try `init="random"` and look at the first loss. The committed study trains prompts and prefixes of
# different lengths for longer, each at its own learning rate, over several seeds:

# %%
show("prefix_length")

# %% [markdown]
# *What to see: the same number of virtual tokens is worth more in every layer than at the input alone.* The papers say
# that prompt tuning closes its gap to fine-tuning at billions of parameters, and that deep prompts do so on small
# models, too.
#
# ## Where do the heads look?
#
# Follow the trained prefix through the model, layer by layer, and note $\lambda$ of every head for every token. The last line
# proves that this loop is the model and not something like it.

# %%
tuned = runs["ptuning_v2"][0]
base, P = tuned.model, 20
prefix = tuned.virtual.seams(tokens)["prefix"]                                       # one (K, V) per layer
T = tokens.shape[1]
heads = lambda t: t.data.reshape(T, c.n_heads, -1).transpose(1, 0, 2)                # (1, T, d) → (H, T, d_head)
attention_maps = []
with tp.no_grad():
    x = base.token_embedding(tokens) + base.position_embedding(np.arange(P, P + T))
    for block, (K, V) in zip(base.blocks, prefix, strict=True):
        n = block.norm1(x)
        q, k = heads(block.attention.query(n)), heads(block.attention.key(n))
        scores = q @ np.concatenate([K.data, k], axis=1).swapaxes(1, 2) / q.shape[-1] ** 0.5
        scores += np.triu(np.full((T, P + T), -np.inf), P + 1)
        attention_maps.append(F.softmax(tp.Tensor(scores)).data)                     # (H, T, P + T)
        x = block(x, (K, V))
    same = base.logits(base.final_norm(x)).data
    print("the same logits as the model:", np.allclose(same, tuned(tokens).data, atol=1e-4))
lam = np.stack([m[:, :, :P].sum(-1) for m in attention_maps])                        # λ: (L, H, T)

# %%
fig, (left, right) = plot.figure(1, 2, height=3.0)
layer, head = np.unravel_index(abs(lam.mean(-1) - 0.5).argmin(), lam.shape[:2])
image = left.imshow(attention_maps[layer][head], cmap="viridis", aspect="auto", vmin=0)
left.axvline(P - 0.5, color="white", lw=1)
left.set(xlabel="prefix │ text", ylabel="token", title=f"layer {layer}, head {head}: attention")
left.grid(False)
fig.colorbar(image, ax=left, label="probability")
image = right.imshow(lam.mean(-1), cmap="cividis", vmin=0, vmax=1)
right.set(xlabel="head", ylabel="layer", title="λ, mean over tokens", xticks=range(c.n_heads), yticks=range(c.n_layers))
right.grid(False)
for (i, j), value in np.ndenumerate(lam.mean(-1)):
    right.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=9, color="white" if value < 0.6 else "black")
fig

# %% [markdown]
# *What to see, left: columns of the prefix that every token looks at, beside the usual diagonal of the text. Right: some
# heads give most of their attention to the prefix, others ignore it.* The gate $\lambda$ is the model's own doing; nobody
# trained it but through the keys.
#
# ### {exercise} · How deep is deep? (open, 4 points, 20 minutes)
#
# P-tuning v2's paper asks which layers need a prompt (section 4.3 of it, "prompt depth"). Ask the same here. Write a
# small `Method`-free experiment: give a model only *some* layers of the trained prefix above and measure the loss, then
# train prefixes for the lower or the upper half alone. (A hint for the first part: a layer without a prefix still needs a pair
# of the same length; what pair changes least? Is it a zero pair? Use equation (4).) State your prediction first.
#
# *Rubric: 1 point for a prediction with a reason; 1 for an experiment that changes only what it means to; 1 for numbers over
# at least three seeds with their spread; 1 for saying where this differs from the paper and why it might.*

# %% [answer]
# *The pair that changes least.* A zero pair is not neutral. Its key has the score $q \cdot 0 = 0$, so by equation (4) it takes
# the share $\lambda$ of attention that $e^0$ earns for each of its $P$ positions, and adds $\lambda$ times a zero value: the
# output shrinks to $(1 - \lambda)$ of what it was. Neutral is what has $\lambda = 0$: leave the layer without a prefix, or
# mask its $P$ positions. Then only the positions of the text, which begin at $P$, must stay as they are.
#
# *Parts of a trained prefix.* Each layer was trained with the others, so half of it gains less than half. A fair comparison
# trains lower and upper halves anew, each with its own learning rate.
#
# *The paper* adds prompts to some layers only, at an equal number of trained numbers, and finds that the deeper layers are worth
# more. Here five layers and short training leave little to tell apart. An answer that finds no clear difference over three
# seeds, and says so, has the point. {claim Deep prompts are better}

# %% [markdown]
# ## Recall
#
# <details><summary>1. Why are there keys and values in a prefix, but no queries?</summary>Nothing is ever asked of a virtual
# token: its own output is not needed. Later tokens use an earlier one only through its key and value.</details>
#
# <details><summary>2. What does a prefix do that a parallel adapter at the same place does not?</summary>It replaces: the head's own
# output is multiplied by 1 − λ. An adapter adds.</details>
#
# <details><summary>3. Why can a prefix not be merged into the weights?</summary>λ depends on the query, through a softmax shared with
# the text; no change of W_q, W_k, W_v alone computes the same function for all inputs.</details>
#
# <details><summary>4. You may store 0.1 % of the model's parameters per task. How many does the reparameterized prefix train?</summary>
# The same table, and a network of about 2 L d m parameters besides, which is dropped after training.</details>
#
# <details><summary>5. What is the difference between prefix tuning and P-tuning v2?</summary>Not the function: both put keys and values
# before every layer's. v2 trains the table directly, with dropout on it, and reads a classifier off the model.</details>
#
# ## Where the papers say this
#
# * Prefix tuning, arXiv 2101.00190: equation (5) is in section 4.3; the ablation of depth (embedding-only) in section 7.2, of
#   real-word starts in 7.4. On E2E (table 4, BLEU) it reports 69.7 for the prefix and 48.1, 62.2 and 61.9 for 1, 10 and 20 embedding-only
#   vectors.
# * The decomposition (4) is He et al., arXiv 2110.04366, equations 7 and 8.
# * P-tuning v2, arXiv 2110.07602: section 3.3 for reparameterization, length and head.
#
# ## Where implementations differ
#
# * PEFT's `PrefixTuningConfig` trains the table directly unless `prefix_projection=True`; the paper's default is the network.
# * In the paper $P'$ is narrow ($P \times k$, $k = 512$ for GPT-2); in the authors' code, PEFT and here it is $P \times d$, and the hidden layer is the narrow
#   one.
# * PEFT draws the table from N(0, 1); here it starts from real words (`init="random"` for N(0, 1)). With the network, the random starts differ: PEFT's
#   table has a standard deviation of about 0.28, this package's 0.62.
# * PEFT's description of zero initialisation once called it a "no-op". You have seen that it is not.
# * The authors' code has dropout on the prefix; PEFT has not.
# * An exported prefix is the folded table: neither PEFT nor this package can resume training of the network from it.
#
# **Now you can** write the seam that prefix tuning, P-tuning v2 and a generation cache share, say what a head does with it, and count it both
# ways. Next: [07 · LoRA](07_lora.ipynb), which changes weights instead, and disappears into them.
