# %% [markdown]
# # 02 · The transformer and its pretrained base
#
# **What you will do.** Take the shipped base model apart: follow a sentence from bytes to a predicted token, compute
# attention by hand, read what the model would say after each of its layers, measure where its loss comes from, and
# count its parameters on the back of an envelope. Every later lesson changes a few numbers in this model, so you should
# know what they do.
#
# **What you need.** Lesson 01, or at least softmax and layer norm.
#
# **Time.** 55 minutes; every cell together runs in well under a minute.

# %%
import math

import numpy as np

import tinypeft as tp
from tinypeft import functional as F
from tinypeft import gpt, plain
from tinypeft.course import show
from tinypeft.pretrained import training_record
from tinypeft.study import plot
from tinypeft.text import corpus

model = tp.load_pretrained()
tok = model.tokenizer
model.config

# %% [markdown]
# ## 1. From text to numbers
#
# The model reads *tokens*: pieces of text from a fixed list of $V = 1024$. The list was learned by byte-level BPE:
# begin with the 256 bytes, then again and again make the most frequent pair of neighbours a token of its own. No text
# is impossible, and frequent words cost one token.

# %%
sentence = "The arithmetic mean is the sum of the elements along the axis divided by the number of elements."
ids = tok.encode(sentence)
print(" | ".join(tok.decode([i]) for i in ids))
print(f"{len(sentence.encode())} bytes, {len(ids)} tokens, {len(sentence.encode()) / len(ids):.1f} bytes per token")

# %% [markdown]
# ## 2. The forward pass, equation by equation
#
# A token enters as a vector of $d = 128$ numbers, its row of a table $E$, plus a row of a second table for its
# position:
#
# $$h_0 = E[\text{tokens}] + P[0 \dots T{-}1] \tag{1}$$

# %%
tokens = ids[None]                                                                     # (B, T) = (1, T)
E, P = model.token_embedding.weight, model.position_embedding.weight
h = tp.Tensor(E.data[tokens] + P.data[:tokens.shape[1]])                               # equation (1): (B, T, d)

# %% [markdown]
# Then come $L = 5$ blocks. Each adds twice to $h$, and never replaces it:
#
# $$h \leftarrow h + \mathrm{Attention}(\mathrm{LN}(h)), \qquad h \leftarrow h + \mathrm{MLP}(\mathrm{LN}(h)) \tag{2}$$

# %%
show(gpt.Block.forward)
show(plain.gelu)

# %% [markdown]
# Think of $h$ as a stream that runs from bottom to top, to which layers write: the *residual stream*. Hold on to this
# picture. An adapter (lesson 04) writes to the same stream, LoRA (lesson 07) changes what a layer writes.
#
# The MLP works on each position alone: up to $4d$ numbers, a GELU, down again. Attention is the only place where
# positions meet. Each position makes a query, a key and a value, three linear maps of the same vector; a head compares
# its query with the keys of all positions up to its own and takes the mean of their values with these weights:
#
# $$A = \mathrm{softmax}\!\Big(\frac{Q K^\top}{\sqrt{d_{head}}} + M\Big), \qquad O = A V, \qquad M_{ij} = \begin{cases} 0 & j \le i \\ -\infty & j > i \end{cases} \tag{3}$$
#
# Why $\sqrt{d_{head}}$? A dot product of two vectors of $d_{head}$ independent numbers of variance 1 has variance
# $d_{head}$. Without the root, scores would grow with the width, softmax would put all its weight on one key, and by
# equation (7) of lesson 01 its gradient would vanish.
#
# ### {exercise}
#
# Compute $O$ for one head, with a twist that you will meet again in lesson 06: there may be more keys than queries. `q`
# is $(T, d_{head})$, `k` and `v` are $(S, d_{head})$ with $S \ge T$. The queries belong to the **last** $T$ of the $S$
# positions; what stands before them (a cache of past tokens, a prefix) is seen by all. So query $i$ sees the keys
# $0 \dots i + S - T$. Scores may be as large as 1,000, and then `np.exp` overflows: subtract the largest score of each row
# first. Write it with NumPy, without the package's `attention`, and keep the dtype.

# %% exercise=transformer.attention points=5 minutes=15
def transformer_attention(q, k, v):
    """Causal attention of T queries over S ≥ T keys, the queries being the last T positions. Returns (T, d_head)."""
    ### BEGIN SOLUTION
    (T, d), S = q.shape, len(k)
    scores = q @ k.T / math.sqrt(d)                                                    # (T, S)
    hidden = np.arange(S) > np.arange(T)[:, None] + S - T
    scores = np.where(hidden, np.array(-np.inf, scores.dtype), scores)
    A = np.exp(scores - scores.max(-1, keepdims=True))
    A /= A.sum(-1, keepdims=True)
    return A @ v
    ### END SOLUTION

# %%
result = tp.check("transformer.attention", transformer_attention)
attention = result.function
result

# %% [markdown]
# The package has each operation twice. `plain.py` composes it from primitives, to be read:

# %%
show(plain.attention)

# %% [markdown]
# `functional.py` has it fused, with a backward pass written by hand, to be fast. Tests compare the two:

# %%
show(F.attention)

# %% [markdown]
# Now the whole of a block's attention is your function, once per head. Compare with the model:

# %%
block = model.blocks[0]
x = block.norm1(h)
q, k, v = (layer(x).data[0] for layer in (block.attention.query, block.attention.key, block.attention.value))    # (T, d)
heads = np.split(np.arange(model.config.d_model), model.config.n_heads)                # columns of each head
O = np.concatenate([attention(q[:, c], k[:, c], v[:, c]) for c in heads], axis=1)      # (T, d)
by_hand = block.attention.output(tp.Tensor(O[None]))
print("largest difference:", abs(by_hand.data - block.attention(x).data).max())

# %% [markdown]
# The weights $A$ can be looked at. Some heads of this model have learned a job that has a name:

# %%
def attention_maps(model, tokens):
    """A of every layer and head, (L, H, T, T), for one row of tokens."""
    maps, T = [], len(tokens)
    h = model.token_embedding(tokens[None]) + model.position_embedding(np.arange(T))
    for block in model.blocks:
        x = block.norm1(h)
        q, k = ((layer(x).data[0].reshape(T, model.config.n_heads, -1).swapaxes(0, 1))
                for layer in (block.attention.query, block.attention.key))
        scores = q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1]) + np.triu(np.full((T, T), -np.inf, np.float32), 1)
        maps.append(F.softmax(tp.Tensor(scores)).data)                                 # equation (3)
        h = block(h)
    return np.array(maps)


maps, T = attention_maps(model, ids), len(ids)
previous = maps[:, :, np.arange(1, T), np.arange(T - 1)].mean(-1)                      # weight on the token before, (L, H)
breadth = -(maps * np.log(maps + 1e-9)).sum(-1).mean(-1)                               # entropy in nats, (L, H)
words = [tok.decode([i]).strip() for i in ids]
fig, axes = plot.figure(1, 2, height=3.9)
for ax, which, what in zip(axes, (previous, breadth), ("the token before", "the widest view"), strict=True):
    layer, head = np.unravel_index(which.argmax(), which.shape)
    ax.imshow(np.sqrt(maps[layer, head]), cmap="viridis", vmin=0, vmax=1)
    ax.grid(False)
    ax.set(xticks=range(T), yticks=range(T), xlabel="key", title=f"block {layer}, head {head}: {what}")
    ax.set_xticklabels(words, rotation=90, fontsize=7)
    ax.set_yticklabels(words if ax is axes[0] else [], fontsize=7)
axes[0].set_ylabel("query")
fig

# %% [markdown]
# *What to see: a row is a query, its weights sum to one (dark is 0, yellow 1; the colour goes with the root, to show
# small ones), and everything above the diagonal is hidden.* Left: a head that looks at the token before it, and so
# makes pairs of tokens. Right: the head with the largest entropy, which averages over nearly all it can see. Nobody
# told the heads to do this.
#
# ## 3. The output, and the loss
#
# After the last block one more layer norm, and then the table $E$ a second time, as a matrix that scores every token of
# the vocabulary:
#
# $$\text{logits} = \mathrm{LN}(h_L)\, E^\top \tag{4}$$

# %%
for block in model.blocks: h = block(h)                                                # equation (2), five times
logits = F.linear(model.final_norm(h), E)                                              # equation (4): (B, T, V)
assert abs(logits.data - model(tokens).data).max() < 1e-4

likely = np.argsort(-logits.data[0, -2])[:5]                                           # after "… of elements"
print("after", repr(tok.decode(ids[:-1])[-19:]), "the model expects", [tok.decode([i]) for i in likely])

# %% [markdown]
# Head and embedding are *tied*: one table, two uses. Remember it in lesson 07, when somebody wants to change one of
# them alone.
#
# The logits at position $t$ are about token $t + 1$. The loss is the mean surprise, in nats:
#
# $$\text{loss} = -\frac{1}{B(T-1)} \sum_{b}\sum_{t=0}^{T-2} \log \mathrm{softmax}(\text{logits}_{b,t})[\,\text{token}_{b,t+1}\,] \tag{5}$$
#
# ### {exercise}
#
# Compute equation (5) from `logits` $(B, T, V)$ and the same rows' `tokens` $(B, T)$. Logits may be as large as 1,000,
# and then `np.exp` overflows: recall that softmax does not change when a constant is subtracted. Return one number.

# %% exercise=transformer.loss points=4 minutes=10
def transformer_loss(logits, tokens):
    """Mean of −log p(next token) in nats, over all positions that have a next token."""
    ### BEGIN SOLUTION
    z, targets = logits[:, :-1], tokens[:, 1:]
    z = z - z.max(-1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    return float(-np.take_along_axis(log_p, targets[..., None], -1).mean())
    ### END SOLUTION

# %%
result = tp.check("transformer.loss", transformer_loss)
loss = result.function
result

# %% [markdown]
# Nats per token depend on what a token is. Two other units: *perplexity* $e^{\text{loss}}$, the number of equally
# likely tokens that would be as surprising, and *bits per byte*, which lets you compare models with different
# tokenizers:
#
# $$\text{bits per byte} = \frac{\text{loss}}{\ln 2} \cdot \frac{\text{tokens}}{\text{bytes}} \tag{6}$$

# %%
def report(name, nats, tokens, n_bytes):
    bits_per_byte = nats / math.log(2) * tokens / n_bytes                                 # equation (6)
    print(f"{name:32}{nats:6.3f} nats/token   perplexity {math.exp(nats):8.1f}   {bits_per_byte:.3f} bits/byte")


text = "\n\n".join(str(d) for d in corpus.base_corpus().test)[:24_000]                         # documents the model never saw
stream = tok.encode(text)
rows = stream[:len(stream) // 128 * 128].reshape(-1, 128)
with tp.no_grad():
    logits = np.concatenate([model(rows[i:i + 16]).data for i in range(0, len(rows), 16)])
report("uniform over the vocabulary", math.log(model.config.vocab_size), len(stream), len(text.encode()))
report("the base", loss(logits, rows), len(stream), len(text.encode()))

# %% [markdown]
# How it got there: 16,000 steps on documentation of Python, NumPy and SciPy. The grey line is a 5-gram model of the
# same text, the best that counting can do.

# %%
record = training_record()
fig, ax = plot.figure(height=2.8)
ax.plot(*zip(*record["loss_curve"], strict=True), color=plot.COLOURS["sky"])
ax.plot(*zip(*((step, m["loss"]) for step, m in record["validation"]), strict=True), "o-", color=plot.COLOURS["blue"], ms=3)
five = record["results"]["5-gram base test"]["loss"]
ax.axhline(five, color=plot.COLOURS["grey"], ls="--")
ax.annotate("training", (12000, 1.75), color=plot.ink(plot.COLOURS["sky"]))
ax.annotate("validation", (12000, 2.5), xytext=(9000, 3.0), color=plot.COLOURS["blue"])
ax.annotate("5-gram, test text", (300, five), xytext=(100, five - 0.25), color=plot.ink(plot.COLOURS["grey"]))
ax.set(xlabel="step", ylabel="loss, nats per token", ylim=(1.6, 6.6), title="Pretraining the base")
fig

# %% [markdown]
# *What to see: the base passes the 5-gram model half-way, and then goes on. Its training loss runs ahead, because it
# sees every training token some twelve times.*
#
# ## 4. What each layer adds
#
# The residual stream has the same form everywhere, so we may stop after any block, apply equation (4), and ask what the
# model would say if it ended there. And we may ask what the loss is at each position of the window: attention can use
# what stands before, and a later position has more of it.

# %%
def losses(hidden, targets):
    """−log p of every target, from hidden states (B, T, d) → (B, T)."""
    log_p = F.log_softmax(model.logits(model.final_norm(hidden))).data                 # equation (4)
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

fig, (left, right) = plot.figure(1, 2, height=2.9)
for (name, colour), dy in zip({"NumPy, SciPy, Python": "blue", "Matplotlib": "vermillion"}.items(), (-0.9, 0.5), strict=True):
    left.plot(range(1, 6), depth[name][1:], "o-", color=plot.COLOURS[colour])
    right.plot(16 * np.arange(8) + 8, [part.mean() for part in np.array_split(place[name], 8)], color=plot.COLOURS[colour])
    right.annotate(name, (60, place[name][40:80].mean() + dy), color=plot.COLOURS[colour])
left.axhline(math.log(model.config.vocab_size), color=plot.COLOURS["grey"], ls="--")
left.annotate("uniform", (4.2, 6.5), color=plot.ink(plot.COLOURS["grey"]))
left.set(xlabel="blocks applied", ylim=(2, 7.2), ylabel="loss, nats per token", title="Stopping early")
right.set(xlabel="position in the window", ylim=(1, 5), title="More context, less surprise")
print("no block at all:", *(f"{name} {d[0]:.1f} nats" for name, d in depth.items()))
fig

# %% [markdown]
# With no block at all the loss is far worse than guessing: with tied tables a token's own vector scores best with
# itself, so the model says every token twice. *What to see, left: the first block undoes that, every further one lowers
# the loss, and the last ones most, since the head was trained on what comes after them.* Right: the loss falls over the
# first tokens of a window, and then the model gains little more. On Matplotlib, which it never saw, it is worse
# everywhere: this gap is what the *domain* task of the later lessons fine-tunes away.
#
# ## 5. Where the parameters are
#
# Count one block: four $d \times d$ matrices in attention, $4d \times d$ and $d \times 4d$ in the MLP, a bias for each
# of the six, and two layer norms with a weight and a bias each. The tables come on top, the position table with one row
# for each of the $C$ positions of the context, and the final norm; the head is tied and costs nothing.
#
# ### {exercise}
#
# Give the number of parameters of a GPT as a function of vocabulary $V$, context $C$, width $d$ and layers $L$. For the
# base it must be 1,155,456.

# %% exercise=transformer.count points=2 minutes=5
def transformer_count(V, C, d, L):
    """Parameters of a GPT with tied embeddings, biases everywhere, and an MLP of width 4 d."""
    ### BEGIN SOLUTION
    block = (4 * d * d + 4 * d) + (8 * d * d + 5 * d) + 4 * d
    return V * d + C * d + L * block + 2 * d
    ### END SOLUTION

# %%
result = tp.check("transformer.count", transformer_count)
count = result.function
result

# %%
c = model.config
print("the base:", count(c.vocab_size, c.context_length, c.d_model, c.n_layers), "counted,", model.n_parameters(), "in the model")
sizes = {"the base": (1024, 256, 128, 5), "GPT-2 small": (50257, 1024, 768, 12), "GPT-2 XL": (50257, 1024, 1600, 48)}
fig, ax = plot.figure(height=1.9)
for y, (V, C, d, L) in enumerate(sizes.values()):
    parts = np.array([V * d, C * d, L * (4 * d * d + 4 * d), L * (8 * d * d + 5 * d), L * 4 * d + 2 * d])
    left = 0.0
    for part, colour in zip(100 * parts / parts.sum(), ("orange", "yellow", "sky", "blue", "black"), strict=True):
        ax.barh(y, part, left=left, color=plot.COLOURS[colour])
        left += part
    ax.text(101, y, f"{count(V, C, d, L) / 1e6:,.1f} M", va="center")
for x, text in ((5, "tokens"), (30, "attention"), (65, "MLP")): ax.text(x, 2.65, text)
ax.set(yticks=range(3), yticklabels=sizes, xlabel="share of the parameters, %", xlim=(0, 112))
fig

# %% [markdown]
# *What to see: the larger the model, the more of it is matrices in blocks; of GPT-2 XL they are 95 %.* (Yellow are
# positions; the norms are too thin to see.) This is why LoRA adapts these matrices and why quantization rounds them.
#
# ## 6. Two seams
#
# Some methods put vectors where no token is. The model has two arguments for that, and no method needs any other
# access: `prompt=` takes vectors $(P, d)$ that enter as if they were embedded tokens, `prefix=` takes keys and values
# for every layer, which your attention function would see as $S - T$ extra keys. Generation's cache is such a prefix,
# one that grows:

# %%
cache = tp.KVCache(model.config.n_layers)
with tp.no_grad():
    at_once = model(ids[None])
    model(ids[None, :-1], cache=cache)                                                 # all but the last token …
    last = model(ids[None, -1:], cache=cache)                                          # … and then one query over T keys
print("largest difference:", abs(last.data[0, 0] - at_once.data[0, -1]).max(), " bytes of keys and values:", cache.nbytes)
print(tok.decode(model.generate(tok.encode("numpy.mean(a, axis=None)\n\n")[None], 40, rng=4, temperature=0.7)[0]))

# %% [markdown]
# ### {exercise} · Which block would you remove? (open, 4 points, 20 minutes)
#
# Equation (2) adds, so a block can be skipped: leave its addition out and the stream flows on. Write a loop that
# measures the loss on `rows` without block 0, then without block 1, and so on, and then without only the attention or
# only the MLP of each. Before you run it, write down your guess: which removal hurts most? Explain what you find with
# the picture of section 4.
#
# *Rubric: 1 point for a correct measurement of all five blocks on the same text, with the whole model beside it; 1 for
# attention and MLP separately; 1 for a guess written down before and compared; 1 for an explanation by the residual
# stream, and not only by the loss of the early exit, which asks another question.*

# %% [answer]
# Block 0 matters most by far: without it the loss is worse than guessing. Of its two parts it is
# the MLP: without its attention alone the loss rises by about one nat, without its MLP by seven. Block 1 comes next, and
# there it is attention. Each of the last three blocks costs less than one nat; in the last one the MLP is the larger part.
#
# *Why.* The embedding says "this token", and with tied tables its own row scores best. The first MLP writes what every later
# block expects to read, so without it all of them work on inputs that they never saw in training. A late block only adds to
# a stream that is already useful, and nobody but the head reads it. The early exit asks another question: how far the
# stream has come, not who depends on whom. There the last blocks help most.

# %% [markdown]
# ## Recall
#
# <details><summary>1. Where in a transformer do positions exchange information?</summary>
# In attention only. Embedding, layer norm, MLP and head work on each position by itself.
# </details>
# <details><summary>2. What would happen without the division by √d_head?</summary>
# Scores would grow with the width, softmax would saturate, and its gradient, p(1 − p), would vanish.
# </details>
# <details><summary>3. Why does the loss compare the logits at position t with token t + 1?</summary>
# Because the model predicts the next token. Compared with token t itself, which it sees, it would have nothing to
# learn.
# </details>
# <details><summary>4. What does "tied" mean, and what does it forbid?</summary>
# Embedding and output head are the same array. Nobody can adapt one without changing the other.
# </details>
# <details><summary>5. Two models with different tokenizers have 2.4 and 2.9 nats per token. Which is better?</summary>
# One cannot tell: a token of the second may stand for more bytes. Compare bits per byte.
# </details>
#
# ## Where the paper says this
#
# - Vaswani et al., *Attention Is All You Need*, arXiv 1706.03762: section 3.2.1, equation (1), is our (3) without the
#   mask; footnote 4 there explains the root. Its layer norm comes *after* the addition.
# - Radford et al., *Language Models are Unsupervised Multitask Learners* (GPT-2, 2019), section 2.3: layer norm moved
#   to the input of each sublayer, one more after the last block, and the weights of the residual layers scaled by one
#   over the root of their number at the start.
# - Sennrich, Haddow, Birch, arXiv 1508.07909: byte pair encoding for words. Press & Wolf, arXiv 1608.05859: tied
#   embeddings.
#
# ## Where implementations differ
#
# - Hugging Face's GPT-2 has query, key and value in one matrix `c_attn`, stored as (in, out) and called Conv1D. Here
#   they are three layers with weights (out, in), so that a method can adapt one alone.
# - BERT and the first transformer normalize after the addition ("post-norm"). Houlsby's adapters were made for that;
#   lesson 04 says what changes.
# - Newer models replace learned positions by rotations, layer norm by its version without a mean, GELU by a gated unit.
#   The seams stay the same.
#
# **Now you can** compute every number in this model by hand, and say where its parameters and its losses are. Next: [03
# · Full fine-tuning](03_full_finetuning.ipynb) trains all of it on new text, and adds up the bill.
