# %% [markdown]
# # 03 · Full fine-tuning, and what it costs
#
# **What you will do.**
# Write AdamW and train every parameter of the base with it, on text that the base never saw.
# You see what the model gains there, what it loses elsewhere, and how it writes before and after.
# Then you write the bill: weights, gradients, optimizer state and activations, each by a formula.
# Activations and the peak of a step are compared with the bytes that were really allocated.
# The same formula says what 7 billion parameters need.
# Every method of this course attacks some line of this bill.
#
# **What you need.**
# Lesson 01 (what a vjp keeps) and lesson 02 (the model's parts).
#
# **Words and letters.**
# They are in the [glossary](GLOSSARY.md).
# $N$ is the number of weights, $n$ of those trained.
# $B$ rows of $T$ tokens are a batch, $d$ is the model's width, $L$ counts blocks, $H$ heads, $V$
# the vocabulary.
#
# **Time.** 90 minutes for reading and the exercises. The open exercise takes 35 more, the bonus 12.
# Every cell together runs in about a minute.

# %%
import gc
import tracemalloc

import numpy as np

import tinypeft as tp
from tinypeft.engine import optim, plain
from tinypeft.course import beside, show
from tinypeft.course.slider import slider
from tinypeft.engine.recompute import recomputing
from tinypeft.study import plot
from tinypeft.study.compared import traced_peak
from tinypeft.text import corpus
from tinypeft.text.tasks import LanguageModelling
from tinypeft.training.backward import backward
from tinypeft.training import plain as plain_loop

base = tp.load_pretrained()
tok = base.tokenizer
domain = tp.tasks.domain(base, context=128, held_out=8192)        # Matplotlib's documentation

# %% [markdown]
# ## 1. One step of AdamW
#
# Gradient descent moves every weight $w$ against its gradient $g$:
# $w \leftarrow w - \eta g$, where the *learning rate* $\eta$ is a small number.
# Transformers are hardly ever trained like that.
# The gradients of their parts differ in size, and a token that is not in the batch has hardly any
# in its row of the embedding.
# Adam divides a running mean of the gradient by a running average of its size.
# So, where batches agree on the sign, a weight moves by about $\eta$ per step, however large $g$ is.
# For that it remembers two numbers per weight, the running means of $g$ and of $g^2$ ($\beta_1$ and
# $\beta_2$ are a little below 1):
#
# $$m \leftarrow \beta_1 m + (1-\beta_1)\, g, \qquad
# v \leftarrow \beta_2 v + (1-\beta_2)\, g^2 \tag{1}$$

# %%
tuned = tp.attach(base, tp.FullFineTuning())
tokens, targets = domain.batch("train", 4, np.random.default_rng(0))
domain.loss(tuned, (tokens, targets)).backward()
parameters = dict(tuned.model.named_parameters())
for name in ("token_embedding.weight", "blocks.2.attention.query.weight", "blocks.2.mlp.up.weight",
             "final_norm.weight"):
    g = parameters[name].grad
    m, v = 0.9 * 0 + (1 - 0.9) * g, 0.999 * 0 + (1 - 0.999) * g ** 2  # equation (1), from m = v = 0
    ratio = np.median(abs(m[v > 0]) / np.sqrt(v[v > 0]))
    print(f"{name:33} typical |g| {np.sqrt((g ** 2).mean()):.0e}   |m|/√v {ratio:.2f}")
g = parameters["token_embedding.weight"].grad
# a token is read, and then it is to be predicted: it stands in both arrays
times = (np.bincount(np.append(tokens, targets), minlength=len(g)) + 1) // 2
for kind, rows in {"10 times and more": times >= 10, "once or twice": (0 < times) & (times <= 2),
                   "never": times == 0}.items():
    print(f"rows of tokens in the batch {kind:17}  {np.sqrt((g[rows] ** 2).mean()):.0e}")

# %% [markdown]
# The gradients of these parts differ several-fold, and those of rows of the embedding twentyfold and
# more.
# The ratio that Adam moves by does not depend on $g$: after one step it is
# $0.1\,|g| / \sqrt{0.001\,g^2} \approx 3.2$ for each.
# But it should be 1. $m$ and $v$ start at 0, so after few steps both are too small, and not by the
# same factor.
#
# **By hand.** One weight, two steps, with $\beta_1 = 0.9$ and $\beta_2 = 0.999$.
#
# * The first gradient is 2. Then $m = 0.1 \cdot 2 = 0.2$, $v = 0.001 \cdot 4 = 0.004$, and
#   $m/\sqrt v = 3.16$.
# * The second gradient is $-1$. Then $m = 0.9 \cdot 0.2 - 0.1 = 0.08$,
#   $v = 0.999 \cdot 0.004 + 0.001 = 0.004996$, and $m/\sqrt v = 1.13$.
#
# In $m$ a gradient of the opposite sign takes away more than half of what was there, and in $v$ it
# adds. So the weight moves less where the batches do not agree.
#
# ### {exercise}
#
# *First derive the correction.*
# Suppose that $g$ is the same in all steps.
# From $m = 0$, which multiple of $g$ is $m$ after one step?
# After two?
# After $t$?
# Divide $m$ by this factor, which gives $\hat m$, and treat $v$ likewise.
#
# *Then compute one step.*
# The weight moves by $-\eta\,\hat m/(\sqrt{\hat v} + \varepsilon)$.
# Besides, it shrinks by $\eta\lambda w$, where $w$ is the old weight and $\lambda$ the *weight
# decay*.
# This does not go through the gradient: that is the W in AdamW.
# From `w`, its gradient `g`, the state `m`, `v` before the step and the number `t` of this step (1
# for the first), return the new `(w, m, v)`, with $m$ and $v$ as in equation (1), not corrected.
# `lr` is $\eta$ and `decay` is $\lambda$.
# Do not write into the arguments.

# %% exercise=full.adamw points=4 minutes=15 as=adamw
def full_adamw(w, g, m, v, t, lr, beta1, beta2, eps, decay):
    """One step of AdamW. Returns the new (w, m, v)."""

# %% [markdown]
# <details><summary>The equations that you have found</summary>
#
# $$w \leftarrow w - \eta\lambda w - \eta\,\frac{\hat m}{\sqrt{\hat v} + \varepsilon}, \qquad
# \hat m = \frac{m}{1-\beta_1^t}, \quad \hat v = \frac{v}{1-\beta_2^t} \tag{2}$$
#
# In the first step $\hat m = g$ and $\hat v = g^2$, so the ratio is 1, up to ε: every weight whose
# gradient is not 0 moves by $\eta$. In the example above: first $\hat m = 0.2/0.1 = 2$
# and $\hat v = 0.004/0.001 = 4$, a move of $\eta$; then $\hat m = 0.08/0.19 = 0.42$ and
# $\hat v = 0.004996/0.001999 = 2.5$, a move of $0.42\,\eta/\sqrt{2.5} = 0.27\,\eta$.
#
# </details>

# %% [markdown]
# **Your function at work.**
# It trains all 1.2 million parameters for 20 steps, and so does the package's:

# %%
class Yours(optim.AdamW):
    """The package's optimizer, with your step."""

    def update(self, w, g, state, group):
        m, v = state["m"], state["v"]
        lr, decay = group["lr"], group["weight_decay"]
        w[...], m[...], v[...] = adamw(w, g, m, v, self.t, lr, *group["betas"], group["eps"], decay)


trained = {}
for kind in (optim.AdamW, Yours):
    tuned = tp.attach(base, tp.FullFineTuning())
    history = tp.train(tuned, domain, 20, batch_size=4, lr=1e-3, weight_decay=0.1, optimizer=kind,
                       progress=False)
    trained[kind] = np.concatenate([p.data.ravel() for p in tuned.trainable_parameters()])
    first, *_, last = history.loss
    print(f"{kind.__name__:6} loss of step 1 {first:.4f}, of step 20 {last:.4f}")
moved = abs(trained[Yours] - np.concatenate([p.data.ravel() for p in base.parameters()]))
apart = abs(trained[Yours] - trained[optim.AdamW])
print(f"on average a weight moved by {moved.mean():.1e}, "
      f"and the two runs differ by {apart.mean():.0e}")

# %% [markdown]
# They differ by rounding.
# (Where a gradient is almost zero, rounding decides its sign, and Adam moves the weight by $\eta$
# all the same.)
# Compare yours with the package's.
# `plain.py` has the step to be read:

# %%
show(plain.adamw)

# %% [markdown]
# `adamw.py` has it to be fast: the same sums in place, and in pieces that fit a core's cache.
# Tests compare the two.

# %%
show(optim.adamw_step)

# %% [markdown]
# ## 2. An AdamW that diverges
#
# Here is a whole loop, by somebody who knows that arrays in place save memory.
# `gradients` has one array for each step.
# We give it ten gradients of one array of 128 weights, from ten batches:

# %%
def descend(w, gradients, lr, beta1, beta2, decay):
    """WRONG: w after one step of AdamW for each gradient."""
    m, v = [np.zeros_like(w)] * 2
    for t, g in enumerate(gradients, 1):
        m *= beta1
        m += (1 - beta1) * g
        v *= beta2
        v += (1 - beta2) * g * g
        w -= lr * decay * w + lr * m / (1 - beta1 ** t) / (np.sqrt(v / (1 - beta2 ** t)) + 1e-8)
    return w


tuned, gradients = tp.attach(base, tp.FullFineTuning()), []
weight = tuned.model.final_norm.weight
for step in range(10):
    weight.grad = None
    domain.loss(tuned, domain.batch("train", 2, np.random.default_rng(step))).backward()
    gradients.append(weight.grad)
before, mine = weight.data.copy(), weight.data.copy()
with np.errstate(invalid="ignore"): new = descend(mine, gradients, 0.01, 0.9, 0.999, 0.0)
print(f"{np.isnan(new).sum()} of {new.size} numbers are NaN, and the array that we passed "
      f"{'has changed' if not np.array_equal(mine, before) else 'is as before'}")

# %% [markdown]
# Each line looks right.
# The loop has two faults, and both come from one habit.
#
# ### {exercise}
#
# Write the mended loop.
# `w` and all gradients have the same shape, `decay` is $\lambda$, and $\varepsilon$ is `1e-8`.
# Return the new `w`, and do not write into the arguments.

# %% exercise=full.bug points=3 minutes=6 as=mended
def full_bug(w, gradients, lr, beta1, beta2, decay):
    """w after one step of AdamW for each gradient."""

# %% [markdown]
# **Your function at work**, on the same ten gradients, beside the package's optimizer:

# %%
new = mended(before, gradients, 0.01, 0.9, 0.999, 0.0)
optimizer = optim.AdamW([weight], lr=0.01, weight_decay=0.0)
for weight.grad in gradients: optimizer.step()
print(f"{np.isnan(new).sum()} of {new.size} numbers are NaN; largest difference to the package "
      f"{abs(new - weight.data).max():.0e}; a number moved by up to {abs(new - before).max():.2f}")

# %% [markdown]
# ## 3. Train all of it
#
# The text is Matplotlib's documentation.
# The base knows the language of NumPy and SciPy, but not this library.
# We train on it, and measure the loss on two texts that training does not see: Matplotlib's, which
# we want to improve, and the base's own, which nobody asked us to touch.
# At the start and at the end we let the model write.
#
# Training is a loop of a dozen lines.
# `tp.train` computes the same, bit for bit, and has options besides:

# %%
show(plain_loop.train)

# %% [markdown]
# The loop below draws other batches, keeps one learning rate and does not clip. It steps with *your*
# AdamW, and tests on its way.

# %%
stream = tok.encode_documents(corpus.base_corpus().test[:40])
streams = {"train": stream, "validation": stream, "test": stream}
# only its test part is used
own = LanguageModelling("own", streams, dict.fromkeys(streams, 1), context=128)
start = tok.encode("matplotlib.axes.Axes.legend\n\n")[None]


def learn(lr, until=(0, 10, 20, 40), seed=0):
    """Full fine-tuning of a fresh base: rows of (step, loss on Matplotlib, loss on the base's own
    text), and a text before and after."""
    tuned = tp.attach(base, tp.FullFineTuning())
    rng, rows, texts = np.random.default_rng(seed), [], []
    optimizer = Yours(tuned.trainable_parameters(), lr=lr, weight_decay=0.0)
    for step in range(until[-1] + 1):
        if step in until:
            tested = [tp.evaluate(tuned, task, "test", max_batches=1) for task in (domain, own)]
            rows.append([step, *(metrics["loss"] for metrics in tested)])
            if step in (0, until[-1]):
                texts.append(tok.decode(tuned.generate(start, 60, temperature=0.7, rng=1)[0]))
        optimizer.zero_grad()
        backward(tuned, domain, domain.batch("train", 4, rng), workers=2)
        optimizer.step()  # your step, equation (2)
    return np.array(rows), texts


runs = {lr: learn(lr) for lr in (1e-4, 1e-3)}
for lr, (c, _) in runs.items():
    gained, forgotten = c[0, 1] - c[-1, 1], c[-1, 2] - c[0, 2]
    print(f"lr {lr:g}: Matplotlib {c[0, 1]:.3f} → {c[-1, 1]:.3f}, gained {gained:.3f}; "
          f"own text {c[0, 2]:.3f} → {c[-1, 2]:.3f}, forgot {forgotten:.3f} nats per token")
better = min(runs, key=lambda lr: runs[lr][0][-1, 1])      # the lower loss on Matplotlib at the end
c, (old, new) = runs[better]
print(f"The texts are of the run with lr {better:g}.")
beside({f"before, {c[0, 1]:.2f} nats per token": old,
        f"after 40 steps, {c[-1, 1]:.2f} nats per token": new})

# %% fold
fig, axes = plot.figure(1, 2, height=2.8)
titles = "Matplotlib: learned", "NumPy, SciPy, Python: forgotten"
for ax, column, title in zip(axes, (1, 2), titles, strict=True):
    for (lr, (c, _)), colour in zip(runs.items(), ("sky", "black"), strict=True):
        ax.plot(c[:, 0], c[:, column] - c[0, column], "s-", color=plot.COLOURS[colour], ms=4)
        ax.annotate(f"lr {lr:g}", (c[-1, 0], c[-1, column] - c[0, column]), xytext=(4, 0),
                    textcoords="offset points", va="center", color=plot.ink(plot.COLOURS[colour]))
    ax.axhline(0, color=plot.COLOURS["grey"], lw=1, ls="--")
    ax.set(xlabel="step (4 × 128 tokens)", title=title, xlim=(-2, 58))
axes[0].set_ylabel("change of the test loss, nats per token")
fig.set_label("The change of two test losses over 40 steps, at two learning rates. Left, "
              "Matplotlib: both fall. Right, the base's own text: the small rate stays near zero, "
              "the large one rises.")
fig

# %% [markdown]
# *What to see: the left picture is what we wanted, and the right one is its price.
# Here the small rate gains at least as much as the large one, and forgets almost nothing; the
# numbers are printed above.*
# The large rate overwrites at once, and what it loses on one text does not help it on the other.
# The same weights hold both skills, and nothing in the loss protects the old one.
# The study measured it at length, over several seeds:

# %%
show("forgetting")

# %% [markdown]
# *What to see: each curve is one method at six learning rates, and the large mark is its best one.
# At its best rate full fine-tuning learns most and forgets most.
# Go down its curve: where it learns as much as LoRA on all layers, AdaLoRA or one of the adapters
# does at best, it forgets less. The prompt and the prefix learn less than full fine-tuning at its
# gentlest rate, and cannot be compared so.* How much is forgotten depends on the learning rate,
# here as in the cells above, and not on the method alone.
#
# Forgetting is the first item on the bill, and not one in bytes.
# The second: what you have now is a second model of 1,155,456 numbers.
# Ten tasks would be ten of them.
#
# ## 4. Weights, gradients, state
#
# Training in float32 holds the $N$ weights, and for each of the $n$ trained ones a gradient and the
# two numbers of equation (1).
# Each of these numbers takes 4 bytes.
#
# Large models are trained in *mixed precision*.
# Weights and gradients are in 16 bits, 2 bytes each.
# But the updates are too small for 16 bits: bfloat16 has steps of $1/128$ between 1 and 2, and there
# an update of $\eta = 10^{-4}$ is lost. So each trained weight has a float32 *master copy*
# besides, and $m$ and $v$ stay in float32.
#
# ### {exercise}
#
# How many bytes per weight is that, if all are trained, in float32 and in mixed precision?
# Then write the function: the bytes of weights, gradients, master copies and Adam's state for $N$
# weights of which $n$ are trained.
# `weight_bytes` is what a trained weight takes, and its gradient as well: 4 for float32, 2 for
# mixed precision.
# Below 4 every trained weight has a float32 master copy besides.
# Frozen weights may take less than trained ones:
# `frozen_bytes` each (QLoRA of lesson 13: about 0.5).

# %% exercise=full.states points=2 minutes=8 as=states
def full_states(N, n, weight_bytes, frozen_bytes):
    """Bytes of weights, gradients, master copies and Adam's m and v."""

# %%
print(f"all trained: {states(1, 1, 4, 4)} bytes per weight in float32, "
      f"{states(1, 1, 2, 2)} in mixed precision")
print(f"all frozen:  {states(1, 0, 4, 4)} bytes per weight in float32, "
      f"{states(1, 0, 2, 0.5)} in 4 bits")

# %% [markdown]
# ## 5. Activations
#
# The fourth item is what the forward pass must keep for the backward pass: whatever a vjp needs.
# From lesson 01: $XW^\top$ keeps $X$ if $W$ is trained, $a \cdot b$ keeps both, and $\tanh x$ one
# array, of which it computes the slope.
# For one block:
#
# | operation | keeps | numbers |
# |---|---|---|
# | two layer norms | $\hat x$ and $1/\sigma$ | $2 \cdot (BTd + BT)$ |
# | query, key, value | their common input, for $dW$ | $BTd$ |
# | attention | $Q, K, V$ | $3 BTd$ |
# | attention | two numbers for each query of a head | $2 BHT$ |
# | output projection | its input | $BTd$ |
# | up | its input | $BTd$ |
# | GELU, $4d$ wide | ? | ? |
# | down | its input | ? |
# | two additions to the residual stream, $h + y$ | ? | ? |
#
# (The vjp of attention needs its weights, $T^2$ numbers in each head.
# In a long text they would be nearly all that is kept.
# So they are not kept. The backward pass computes them again from $Q$ and $K$, as FlashAttention
# does, Dao et al., arXiv 2205.14135.
# Of each query it needs two numbers for that: its largest score $s$, and the sum of
# $e^{\text{score} - s}$, by which softmax divides.
# `plain.flash_attention` shows how.)
#
# After the $L$ blocks come three more: the final norm, the head's input ($BTd$), and the
# probabilities of the cross-entropy, one for each token of the vocabulary.
#
# ### {exercise}
#
# Fill in the rows with question marks.
# What does the vjp of GELU need, if it may keep anything that it likes?
# What does the vjp of $h + y$ need?
# Then add everything up: the number of float32 numbers that are kept after a forward pass.

# %% exercise=full.activations points=5 minutes=20 as=activations
def full_activations(B, T, d, H, L, V):
    """Numbers that the forward pass of a GPT keeps for the backward pass."""

# %% [markdown]
# **Your function at work**, beside what the machine says:

# %%
def traced(model, task, B, T):
    """Bytes that a forward pass leaves allocated."""
    tokens, targets = (a[:, :T] for a in task.batch("train", B, np.random.default_rng(0)))
    gc.collect()
    tracemalloc.start()
    loss = task.loss(model, (tokens, targets))
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del loss
    return held


c = base.config
shape = c.d_model, c.n_heads, c.n_layers, c.vocab_size
tuned = tp.attach(base, tp.FullFineTuning())
print(f"{'B':>3}{'T':>5}{'formula':>14}{'traced':>14}")
for B, T in ((2, 64), (4, 64), (4, 128), (8, 128)):
    formula = 4 * activations(B, T, *shape)
    print(f"{B:3}{T:5}{formula / 2**20:10.2f} MiB{traced(tuned, domain, B, T) / 2**20:10.2f} MiB")

# %% [markdown]
# The formula and the machine agree, the better the larger the batch.
# (Python's own objects make the rest.)
# The schematic shows which operation keeps what:

# %%
show("schematic:memory")

# %% [markdown]
# Now predict a peak.
# A training step on one row of 128 tokens computes activations, and then gradients on the way back.
# Weights, $m$ and $v$ are there before the step, so do not count them.
# How many MiB does the step allocate at its peak?
# Use your two functions.
# Do all items exist at the same time?

# %%
guess = tp.guess("03.peak", 6.5, "MiB")
guess

# %%
B, T, N = 1, 128, base.n_parameters()
print(f"activations {4 * activations(B, T, *shape) / 2**20:.1f} MiB, "
      f"gradients {4 * N / 2**20:.1f} MiB")
guess.beside(traced_peak(tuned, domain, B) / 2**20)

# %% [markdown]
# While the walk goes down, activations are freed and gradients appear.
# So they never all exist at once: the peak is only a little above the activations.
# The whole bill, $M$ bytes:
#
# $$M = \underbrace{4N + 12n}_{\text{states}} +
# \underbrace{4\,L\,\big(16\,BTd + 2\,BHT\big) +
# 4\,BTV + \dots}_{\text{activations}} \tag{3}$$

# %%
B = 4
BTd, per_query = B * T * c.d_model, 2 * B * c.n_heads * T
keeps = {"norms": 2 * BTd, "attention": 5 * BTd + per_query, "MLP": 9 * BTd}  # equation (3)
bill = {"weights": 4 * N, "gradients": 4 * N, "Adam's m and v": 8 * N,
        **{f"activations: {part}": 4 * c.n_layers * k for part, k in keeps.items()},
        "activations: logits": 4 * B * T * c.vocab_size}

# %% fold
fig, ax = plot.figure(height=2.6)
ax.barh(list(bill)[::-1], [b / 2**20 for b in bill.values()][::-1],
        color=[plot.COLOURS["sky"]] * 4 + [plot.COLOURS["blue"]] * 3)
for y, b in enumerate(list(bill.values())[::-1]):
    ax.text(b / 2**20, y, f" {b / 2**20:.1f}", va="center")
total = sum(bill.values()) / 2**20
ax.set(xlabel="MiB", title=f"A step of the base, B = {B}, T = {T}: "
                           f"{total:.0f} MiB, but not all at once")
fig.set_label("Bars of the bill in MiB. Weights, gradients and Adam's two states are dark; the "
              "activations of norms, attention, MLP and logits are light, and together longer.")
fig

# %% [markdown]
# *What to see: for this small model the activations (light) outweigh the states (dark).*
# States grow with $d^2 L$, activations with $BTdL$.
# A wide model is dominated by its states, a large batch or a long text by its activations.
# Move the handle: your two functions write the bill for another batch.

# %%
lengths, frames, told = np.arange(64, 257, 64), {}, {}
all_states = states(N, N, 4, 4) / 2**20
for rows_of_batch in (1, 2, 4, 8, 16, 32):
    kept = [4 * activations(rows_of_batch, int(t), *shape) / 2**20 for t in lengths]
    frames[rows_of_batch] = {"activations": (lengths, kept)}
    told[rows_of_batch] = (f"rows of 128 tokens keep {kept[1]:.0f} MiB of activations, "
                           f"{kept[1] / all_states:.1f} times weights, gradients, m and v")
slider("rows in a batch", frames, captions=told, xlabel="tokens in a row", ylabel="MiB",
       behind={"weights, gradients, m, v": (lengths, [all_states] * len(lengths))}, ylog=True)

# %% [markdown]
# ## 6. What freezing changes
#
# If only LoRA's small matrices are trained, the twelve bytes of gradients and state shrink to
# nearly nothing.
# Of the activations, the inputs of frozen layers go, if nobody else needs them.
# LoRA on query and value still needs their common input.
# Layer norm, attention and GELU keep what they keep, because a gradient still has to pass through
# them on its way down to the lowest trained parameter.
#
# Look at the table again: which of the $16\,BTd$ go?
# How many MiB of activations are left, for the bill's batch of 4 rows of 128 tokens?

# %%
guess = tp.guess("03.lora", 15, "MiB")
guess

# %%
rows = {}
methods = {"full": tp.FullFineTuning(), "adapter": tp.BottleneckAdapter(),
           "prompt": tp.PromptTuning(), "lora": tp.LoRA(rank=8)}
for name, method in methods.items():
    tuned = tp.attach(base, method)
    n = sum(p.size for p in tuned.trainable_parameters())
    rows[name] = np.array([4 * N, 12 * n, traced(tuned, domain, B, T)]) / 2**20
    print(f"{method!s:40} activations {rows[name][2]:5.1f} MiB")
guess.beside(rows["lora"][2])

# %% fold
fig, ax = plot.figure(height=2.3)
left = np.zeros(len(rows))
parts = {"weights": "grey", "gradients, m, v": "blue", "activations": "sky"}
for i, (part, colour) in enumerate(parts.items()):
    width = np.array([r[i] for r in rows.values()])
    names = [str(method) for method in methods.values()]
    ax.barh(names, width, left=left, color=plot.COLOURS[colour], label=part)
    left += width
ax.invert_yaxis()
ax.set(xlabel="MiB, activations as traced")
ax.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.4, 1))
fig.set_label("Stacked bars of weights, of gradients with m and v, and of activations, for four "
              "methods. The middle part is large for full fine-tuning alone; the activations "
              "shrink far less.")
fig

# %% [markdown]
# With LoRA the inputs of `output` and `up` go, $BTd$ each, and that of `down`, $4\,BTd$. So does the
# head's. Nor does the first block's norm keep anything, because nothing below it is trained; the
# final norm takes its place. LoRA itself keeps $XA^\top$. What stays is
# $5\,(10\,BTd + 2\,BT + 2\,BHT + 2\,BTr) + BTV$ numbers, 14.75 MiB.
# *What to see: dark blue shrinks to little with every method; light blue shrinks far less.*
# Keep this picture in mind when you read that a method trains 1 % of the parameters: that is about
# the dark part alone. Prompt tuning trains least and keeps more than LoRA. Its vectors stand before
# the first block, and they lengthen every sequence.
#
# ## 7. Seven billion
#
# At $N = 7 \cdot 10^9$ the states dominate, and everything changes.
# Take $L = 32$, $d = 4096$, $H = 32$ and one row of 512 tokens.
# LoRA of rank 8 on query and value trains $n = 32 \cdot 2 \cdot 8 \cdot 2 \cdot 4096$ numbers.
# QLoRA stores the frozen weights in 4.127 bits each (lesson 13).
# For the activations in 16 bits, Korthikanti et al. count so many bytes in each block, with
# attention that is not fused and with *dropout*, which sets random numbers to 0 in training:
#
# $$34\,BTd + 5\,BHT^2 \tag{4}$$

# %%
N7, n7 = 7e9, 32 * 2 * 8 * 2 * 4096
plans = {"full, float32": states(N7, N7, 4, 4), "full, mixed precision": states(N7, N7, 2, 2),
         "LoRA, 16-bit base": states(N7, n7, 2, 2),
         "QLoRA, 4-bit base": states(N7, n7, 2, 4.127 / 8)}
B7, T7, d7, H7, L7 = 1, 512, 4096, 32, 32
inputs, scores = 34 * B7 * T7 * d7 * L7, 5 * B7 * H7 * T7 ** 2 * L7  # equation (4)
print(f"activations in 16 bits: {inputs / 1e9:.2f} + {scores / 1e9:.2f} = "
      f"{(inputs + scores) / 1e9:.1f} GB")
room = 24e9 - inputs - scores
for name, weight, frozen in (("16-bit base", 2, 2), ("4-bit base", 2, 4.127 / 8)):
    most = max(percent for percent in range(101)
               if states(N7, N7 * percent // 100, weight, frozen) <= room)
    print(f"{name}: with these activations {most} % of the weights may be trained on 24 GB")

# %% fold
fig, ax = plot.figure(height=2.1)
ax.barh(list(plans)[::-1], [b / 1e9 for b in plans.values()][::-1], color=plot.COLOURS["blue"])
ax.axvline(24, color=plot.COLOURS["vermillion"], ls="--")
for y, b in enumerate(list(plans.values())[::-1]):
    ax.text(26 if 10 < b / 1e9 < 24 else b / 1e9 + 1, y, f"{b / 1e9:.1f} GB", va="center")
ax.text(26, 0.0, "← a card with 24 GB", color=plot.ink(plot.COLOURS["vermillion"]), va="center")
ax.set(xlabel="weights, gradients and optimizer state of 7 B parameters, GB", xlim=(0, 128))
fig.set_label("Four bars for 7 billion parameters beside a line at 24 GB. Full fine-tuning takes "
              "112 GB in either precision; LoRA on 16 bits 14 GB; QLoRA 3.7 GB.")
fig

# %% [markdown]
# *What to see: full fine-tuning does not fit on the card, in either precision.*
# LoRA fits because gradients and state are nearly gone.
# These are $12n$ bytes in float32, and $14n$ with 16-bit weights: a gradient takes 2, the master
# copy 4, and $m$ and $v$ take 8.
# QLoRA leaves room for activations.
#
# ## 8. Trade time for memory
#
# Must the activations of all blocks be there at once?
# Keep only the input of a block and throw the rest away.
# On the way back, run the block once more, walk it, and go on to the block below.
# The price is one more forward pass.
# Chen et al. cut the $L$ blocks into parts of $k$ blocks.
# The input of each part is kept.
# On the way back the $k$ blocks of a part are computed again, all together, and then walked.
#
# ### {exercise}
#
# How many numbers are kept at the peak?
# $k$ divides $L$.
# There are two moments to look at: the end of the forward pass, when the arrays of the final norm,
# the head and the cross-entropy are there, and the walk through one part, when they are gone.
# The inputs of all parts are there at both.

# %% exercise=full.recompute points=3 minutes=12 bonus=yes as=recompute
def full_recompute(B, T, d, H, L, V, k):
    """Numbers kept at the peak if parts of k blocks are computed again in the backward pass."""

# %% [markdown]
# **Your function at work**, for a model of 256 narrow blocks.
# Which $k$ is best?

# %%
deep = 1, 1024, 64, 4, 256, 1000
print(f"keep everything {4 * activations(*deep) / 2**20:7.1f} MiB")
for k in (1, 2, 4, 8, 16):
    print(f"parts of {k:2} blocks {4 * recompute(*deep, k) / 2**20:6.1f} MiB")

# %% [markdown]
# Small parts have many inputs, and large parts are expensive to walk. A block keeps about 16 times
# its input, so the sum is about $(L/k + 16\,k)\,BTd$. It is least where both are equal:
#
# $$k = \sqrt{L/16}, \qquad L = 256: \; k = 4 \tag{5}$$
#
# With that $k$ memory grows with $\sqrt L$, which is Chen's result. Move the handle to other depths:

# %%
sizes, frames, told = np.array([1, 2, 4, 8, 16]), {}, {}
for depth in (16, 32, 64, 128, 256, 512, 1024):
    peak = [4 * recompute(*deep[:4], depth, 1000, int(k)) / 2**20 for k in sizes]
    frames[depth] = {"peak": (sizes, peak)}
    told[depth] = (f"parts of {sizes[int(np.argmin(peak))]} are the best of these; "
                   f"√(L/16) = {(depth / 16) ** 0.5:.1f}")
slider("blocks", frames, captions=told, xlabel="blocks in a part, k", ylabel="MiB", xlog=True,
       ylog=True)

# %% [markdown]
# The package computes block after block again, $k = 1$ (`checkpoint_activations=True` in `tp.train`).
# Up to 32 blocks that is within a few per cent of the best; with 256 it takes twice as much.

# %%
tuned, peaks = tp.attach(base, tp.FullFineTuning()), {}
for on in (False, True):
    with recomputing(on): peaks[on] = traced(tuned, domain, 8, 128) / 2**20
head = 2 * 8 * 128 * c.d_model + 8 * 128 + 8 * 128 * c.vocab_size
formula = 4 * (c.n_layers * 8 * 128 * c.d_model + head) / 2**20
print(f"kept after a forward pass of 8 rows: {peaks[False]:.1f} MiB; "
      f"with recomputation {peaks[True]:.1f} MiB (formula {formula:.1f})")

# %% [markdown]
# ### {exercise} · Halve it (open, 4 points, 35 minutes)
#
# The method stays full fine-tuning.
# Name three ways to reduce the bill of section 5. Say for each which term of equation (3) it
# reduces, by which factor, and what it costs.
# Try one of them.
# Either run `backward` on four batches of one row each, divide the gradients by 4 and take a step;
# or pass `optimizer=tp.PagedAdamW` to `tp.train`, which is AdamW with $m$ and $v$ in a file.
# Show that the trained weights are the same (up to what?).
# If you ran the four batches, also leave out the division: how much do the weights change, and why
# so little?
#
# *Rubric: 1 point for three ways that address different terms. 1 point for factors from equation
# (3), not adjectives. 1 point for a correct experiment. 1 point for saying whether the results
# agree bit for bit or up to rounding, and why.*

# %% [answer]
# | way | term of equation (3) | factor | price |
# |---|---|---|---|
# | accumulate gradients of $k$ parts of the batch | activations, by $B$ | $1/k$ | smaller products, so somewhat slower |
# | compute activations again in the backward pass | activations, by $L$ | $1/16 + 1/L$: one input per block, and one block at a time | one more forward pass, about a third more time |
# | state of 8 bits | $8n$ | 1/4 | rounding of $m$ and $v$ |
# | state in a file (`tp.PagedAdamW`) | $8n$ | 0 | reads and writes |
# | weights and gradients of 16 bits | $4N + 4n$ | 1/2 | a float32 copy, unless updates may be lost to rounding |
#
# Three of them that address different terms suffice.
# `PagedAdamW` computes AdamW's own numbers in the same order: the weights agree bit for bit.
# Accumulated gradients are the same sum in another order, so they agree up to rounding, about 1e-7
# of their size; AdamW divides by $\sqrt{\hat v}$, which can enlarge that where a gradient is nearly
# zero.
# Without the division by 4 the weights change little: Adam divides by the size of the gradient, so
# a common factor cancels, apart from $\varepsilon$.
# So a test of accumulation must look at the gradients.
# The parts must be weighted by their rows: the mean of four means is the mean only if all have
# equally many.

# %% [markdown]
# ## Recall
#
# <details><summary>1. What are the 16 bytes per parameter,
# in float32 and in mixed precision?</summary>
# float32: weight 4, gradient 4, m and v 8. Mixed: weight 2, gradient 2, master copy 4, m and v 8.
# </details>
# <details><summary>2. Why does Adam divide m by 1 − β₁ᵗ?</summary>
# m starts at zero, so after t steps it is an average with total weight 1 − β₁ᵗ.
# v starts at zero, too, and has the slower β.
# Without the two corrections the first step would be 0.1/√0.001 ≈ 3.2 times too large.
# </details>
# <details><summary>3. What is the difference between weight decay in AdamW
# and an L2 penalty in Adam?</summary>
# The penalty adds λw²/2 to the loss.
# Its gradient λw is divided by √v̂ like every gradient, so weights with large gradients decay less.
# AdamW shrinks all weights by the same factor.
# </details>
# <details><summary>4. Which activations does LoRA save, and why not all?</summary>
# The inputs of frozen linear layers, which only dW needs.
# Layer norm, attention and GELU need theirs to pass dx on.
# </details>
# <details><summary>5. Name two costs of full fine-tuning that are not memory in training.</summary>
# A whole model to store per task; forgetting what the base could do.
# </details>
#
# ## Where the papers say this
#
# - Kingma & Ba, *Adam*, arXiv 1412.6980, Algorithm 1: equations (1) and (2) without decay.
#   Loshchilov & Hutter, arXiv 1711.05101, Algorithm 2: the decay.
# - Rajbhandari et al., *ZeRO*, arXiv 1910.02054, section 3.1:
#   $2\Psi + 2\Psi + 12\Psi = 16\Psi$ bytes for $\Psi$ parameters in mixed precision with Adam.
# - Korthikanti et al., arXiv 2205.05198, section 4.1: activations of a transformer layer,
#   $sbh(34 + 5as/h)$ bytes, in their letters (sequence, batch, hidden, attention heads).
# - Chen et al., arXiv 1604.06174: recomputation, memory that grows with $\sqrt L$.
#
# ## Where implementations differ
#
# - In PyTorch's AdamW the decay is $\eta\lambda w$, as in equation (2) and here.
#   The paper's is $\eta_t\lambda w$ with a schedule factor $\eta_t$ apart from the learning rate:
#   numbers for $\lambda$ do not carry over between papers.
# - What the vjp keeps is a choice.
#   This engine keeps GELU's derivative instead of its input (the same size).
#   It keeps none of attention's weights, as fused attention kernels do.
#   Attention in separate operations keeps them, $T^2$ numbers in each head, and so does equation
#   (4).
# - Peak memory is more than what is kept: the first gradients of the backward pass come on top.
#   `tinypeft.study.compared.traced_peak` measures that.
#
# ## The real call
#
# The same in PyTorch for a `model` of transformers and `batches` of `input_ids` and `labels`.
# `autocast` is the other recipe of mixed precision: weights and gradients stay in float32, and each
# product rounds what it reads to 16 bits:
#
# ```python
# import torch
#
# model.train()
# optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
# model.gradient_checkpointing_enable()                        # section 8
# for batch in batches:
#     with torch.autocast("cpu", dtype=torch.bfloat16):        # "cuda" on a card
#         loss = model(**batch).loss
#     loss.backward()
#     optimizer.step()
#     optimizer.zero_grad()
# ```
#
# **Now you can** say what a training run will need before it fails, and which term a method
# attacks.
# Next: [04 · Adapters](04_adapters.ipynb) adds small networks between the layers and freezes the
# rest.
