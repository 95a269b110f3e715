# %% [markdown]
# # 03 · Full fine-tuning, and what it costs
#
# **What you will do.** Train every parameter of the base on text it never saw, watch what it gains there and what it
# loses elsewhere, and then write the bill: weights, gradients, optimizer state, activations, each by a formula, each
# compared with the bytes that were really allocated. The same formula then says what 7 billion parameters need. Every
# method of this course attacks some line of this bill.
#
# **What you need.** Lesson 01 (what a vjp keeps) and lesson 02 (the model's parts).
#
# **Time.** 60 minutes; every cell together runs in well under a minute.

# %%
import copy
import gc
import tracemalloc

import numpy as np

import tinypeft as tp
from tinypeft import optim
from tinypeft.course import show
from tinypeft.study import plot
from tinypeft.text import corpus
from tinypeft.text.tasks import LanguageModelling
from tinypeft.train import backward

base = tp.load_pretrained()
domain = tp.tasks.domain(base, context=128, held_out=8192)        # Matplotlib's documentation

# %% [markdown]
# ## 1. One step of AdamW
#
# Gradient descent moves every weight against its gradient, $w \leftarrow w - \eta g$. Nobody trains transformers like
# that: gradients of different parts differ in size, and those of rare tokens' embeddings most of all. Adam divides by a running size of the gradient, so that every weight moves by about $\eta$ per step,
# whatever the scale of $g$. For that it remembers two numbers per weight:
#
# $$m \leftarrow \beta_1 m + (1-\beta_1)\, g, \qquad v \leftarrow \beta_2 v + (1-\beta_2)\, g^2 \tag{1}$$

# %%
tuned = tp.attach(copy.deepcopy(base), tp.FullFineTuning())
domain.loss(tuned, domain.batch("train", 4, np.random.default_rng(0))).backward()
for name in ("token_embedding.weight", "blocks.2.attention.query.weight", "blocks.2.mlp.up.weight", "final_norm.weight"):
    g = dict(tuned.model.named_parameters())[name].grad
    m, v = 0.9 * 0 + (1 - 0.9) * g, 0.999 * 0 + (1 - 0.999) * g ** 2                   # equation (1), from m = v = 0
    print(f"{name:33} typical |g| {np.sqrt((g ** 2).mean()):.0e}   |m|/√v {np.median(abs(m[g != 0]) / np.sqrt(v[g != 0])):.2f}")

# %% [markdown]
# The gradients of these parts differ several-fold; after this first step the ratio that Adam moves by is $0.1/\sqrt{0.001} \approx 3.2$ for all of them. # Both start at 0, so after $t$ steps they are too small, by the factors $1 - \beta_1^t$ and $1 - \beta_2^t$. With this
# undone, and with weight decay $\lambda$ that acts on the weight itself and not through the gradient (this is the W in
# AdamW), step $t = 1, 2, \dots$ is
#
# $$w \leftarrow w - \eta\lambda w - \eta\,\frac{\hat m}{\sqrt{\hat v} + \varepsilon}, \qquad \hat m = \frac{m}{1-\beta_1^t}, \quad \hat v = \frac{v}{1-\beta_2^t} \tag{2}$$
#
# ### {exercise}
#
# Compute one step: from `w`, its gradient `g`, the state `m`, `v` before the step and the number `t` of this step (1
# for the first), return the new `(w, m, v)`. Do not write into the arguments.

# %% exercise=full.adamw points=4 minutes=12
def full_adamw(w, g, m, v, t, lr, beta1, beta2, eps, decay):
    """One step of AdamW, equations (1) and (2). Returns the new (w, m, v)."""
    ### BEGIN SOLUTION
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    m_hat, v_hat = m / (1 - beta1 ** t), v / (1 - beta2 ** t)
    w = w - lr * decay * w - lr * m_hat / (np.sqrt(v_hat) + eps)
    return w, m, v
    ### END SOLUTION

# %%
result = tp.check("full.adamw", full_adamw)
adamw = result.function
result

# %% [markdown]
# The package does the same sums in place and in pieces that fit a core's cache; otherwise you should recognise every
# line:

# %%
show(optim.AdamW.update)

# %% [markdown]
# ## 2. Train all of it
#
# The text is Matplotlib's documentation. The base knows the language of NumPy and SciPy, but not this library. We train
# on it, and every few steps measure the loss on two held-out texts: Matplotlib's, which we want to improve, and the
# base's own, which nobody asked us to touch.

# %%
streams = {split: base.tokenizer.encode_documents(corpus.base_corpus().test[:40]) for split in ("train", "validation", "test")}
own = LanguageModelling("own", streams, dict.fromkeys(streams, 1), context=128)        # only its test part is used


def learn(lr, until=(0, 10, 20, 40), seed=0):
    """Full fine-tuning of a fresh base: rows of (step, loss on Matplotlib, loss on the base's own text)."""
    tuned, rng, rows = tp.attach(copy.deepcopy(base), tp.FullFineTuning()), np.random.default_rng(seed), []
    optimizer = optim.AdamW(tuned.trainable_parameters(), lr=lr, weight_decay=0.0)
    for step in range(until[-1] + 1):
        if step in until:
            rows.append([step, *(tp.evaluate(tuned, task, "test", max_batches=1)["loss"] for task in (domain, own))])
        optimizer.zero_grad()
        backward(tuned, domain, domain.batch("train", 4, rng), workers=2)
        optimizer.step()                                                               # equation (2)
    return np.array(rows)


curves = {lr: learn(lr) for lr in (1e-4, 1e-3)}
for lr, c in curves.items():
    print(f"lr {lr:g}: Matplotlib {c[0, 1]:.3f} → {c[-1, 1]:.3f}, own text {c[0, 2]:.3f} → {c[-1, 2]:.3f} nats per token")

# %%
fig, axes = plot.figure(1, 2, height=2.8)
for ax, column, title in zip(axes, (1, 2), ("Matplotlib: learned", "NumPy, SciPy, Python: forgotten"), strict=True):
    for (lr, c), colour in zip(curves.items(), ("sky", "black"), strict=True):
        ax.plot(c[:, 0], c[:, column], "s-", color=plot.COLOURS[colour], ms=4)
        ax.annotate(f"lr {lr:g}", (c[-1, 0], c[-1, column]), xytext=(4, 0), textcoords="offset points", va="center",
                    color=plot.ink(plot.COLOURS[colour]))
    ax.set(xlabel="step (4 × 128 tokens)", title=title, xlim=(-2, 51))
axes[0].set_ylabel("test loss, nats per token")
fig

# %% [markdown]
# *What to see: the left picture is what we wanted, the right one is its price.* The same weights hold both skills, and
# nothing in the loss protects the old one. The large rate overwrites at once; a warm-up (`tp.train` has one) and more
# steps mend the left curve, not the right one. The study measured it at length, over five seeds:

# %%
show("forgetting")

# %% [markdown]
# Forgetting is the first item on the bill, and not one in bytes. The second: what you have now is a second model of
# 1,155,456 numbers. Ten tasks would be ten of them.
#
# ## 3. Weights, gradients, state
#
# Let $N$ be the number of weights and $n$ the number that is trained; here $n = N$. Training in float32 holds, besides
# the weights, for each trained one a gradient and the two numbers of equation (1):
#
# $$M_{states} = 4N + 4n + 8n \ \text{bytes} \tag{3}$$
#
# Sixteen bytes per parameter if everything is trained. Large models are trained in *mixed precision*, which changes the
# items and not the sum: weights and gradients in 16 bits, 2 bytes each; but the updates are too small for 16 bits, so
# each trained weight has a float32 *master copy*, and $m$ and $v$ stay in float32: $2 + 2 + 4 + 8 = 16$.
#
# ### {exercise}
#
# Return the bytes of weights, gradients and Adam's state for $N$ weights of which $n$ are trained. `weight_bytes` $b$
# is what a weight takes, and a gradient as well: 4 for float32, 2 for mixed precision. Below 4 every trained weight has
# a float32 master copy besides. Frozen weights may take less than trained ones: `frozen_bytes` each (QLoRA of lesson
# 13: about 0.5).

# %% exercise=full.states points=2 minutes=5
def full_states(N, n, weight_bytes, frozen_bytes):
    """Bytes of weights, gradients, master copies and Adam's m and v."""
    ### BEGIN SOLUTION
    master = 4 if weight_bytes < 4 else 0
    return (N - n) * frozen_bytes + n * (2 * weight_bytes + master + 8)
    ### END SOLUTION

# %%
result = tp.check("full.states", full_states)
states = result.function
result

# %% [markdown]
# ## 4. Activations
#
# The fourth item is what the forward pass must keep for the backward pass. Lesson 01 said which arrays: whatever a vjp
# needs. For a block with $B$ rows of $T$ tokens, width $d$ and $H$ heads:
#
# | operation | keeps | numbers |
# |---|---|---|
# | two layer norms | $\hat x$ and $1/\sigma$ | $2 \cdot (BTd + BT)$ |
# | query, key, value | their common input, for $dW$ | $BTd$ |
# | attention | $Q, K, V$, output $O$ | $4 BTd$ |
# | attention | the weights $A$ (the visible part, in blocks of 64) | $BH \cdot T(T + 64)/2$ |
# | output projection | its input | $BTd$ |
# | up | its input | $BTd$ |
# | GELU | its derivative, $4d$ wide | $4 BTd$ |
# | down | its input, $4d$ wide | $4 BTd$ |
#
# The additions to the residual stream keep nothing: the vjp of a sum needs no values. After the $L$ blocks come the
# final norm ($BTd + BT$), the head's input ($BTd$), and the probabilities of the cross-entropy ($BTV$).
#
# ### {exercise}
#
# Add it up: the number of float32 numbers kept after a forward pass. Then compare with what the machine says, below.

# %% exercise=full.activations points=5 minutes=15
def full_activations(B, T, d, H, L, V):
    """Numbers that the forward pass of a GPT keeps for the backward pass, T a multiple of 64."""
    ### BEGIN SOLUTION
    norms = 2 * (B * T * d + B * T)
    block = norms + (1 + 4 + 1 + 1 + 4 + 4) * B * T * d + B * H * T * (T + 64) // 2
    return L * block + (B * T * d + B * T) + B * T * d + B * T * V
    ### END SOLUTION

# %%
result = tp.check("full.activations", full_activations)
activations = result.function
result

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
tuned = tp.attach(copy.deepcopy(base), tp.FullFineTuning())
print(f"{'B':>3}{'T':>5}{'formula':>14}{'traced':>14}")
for B, T in ((2, 64), (4, 64), (4, 128), (8, 128)):
    formula = 4 * activations(B, T, c.d_model, c.n_heads, c.n_layers, c.vocab_size)
    print(f"{B:3}{T:5}{formula / 2**20:10.2f} MiB{traced(tuned, domain, B, T) / 2**20:10.2f} MiB")

# %% [markdown]
# The formula is right to about one per cent (Python's own objects make the rest). With equation (3), the whole bill:
#
# $$M = \underbrace{4N + 12n}_{\text{states}} + \underbrace{4\,L\,\big(17\,BTd + \tfrac12 BHT(T+64)\big) + 4\,BTV + \dots}_{\text{activations}} \tag{4}$$

# %%
B, T = 4, 128
N = base.n_parameters()
keeps = {"norms": 2 * B * T * c.d_model, "attention": 6 * B * T * c.d_model + B * c.n_heads * T * (T + 64) // 2,
         "MLP": 9 * B * T * c.d_model}                                                 # per block; equation (4)
bill = {"weights": 4 * N, "gradients": 4 * N, "Adam's m and v": 8 * N,
        **{f"activations: {part}": 4 * c.n_layers * k for part, k in keeps.items()},
        "activations: logits": 4 * B * T * c.vocab_size}
fig, ax = plot.figure(height=2.6)
ax.barh(list(bill)[::-1], [b / 2**20 for b in bill.values()][::-1],
        color=[plot.COLOURS["sky"]] * 4 + [plot.COLOURS["blue"]] * 3)
for y, b in enumerate(list(bill.values())[::-1]): ax.text(b / 2**20, y, f" {b / 2**20:.1f}", va="center")
ax.set(xlabel="MiB", title=f"One training step of the base, B = {B}, T = {T}: {sum(bill.values()) / 2**20:.0f} MiB")
fig

# %% [markdown]
# *What to see: for this small model the activations (light) outweigh the states (dark).* Both grow with $d^2$ and $d$:
# states with $d^2 L$, activations with $BTd L$, so with the width fixed you turn the balance with batch and context.
#
# What would freezing change? If only LoRA's small matrices are trained, the twelve bytes of gradients and state shrink
# to nearly nothing. Of the activations, the inputs of frozen layers go: one for query, key and value, one for the
# output projection, one for up, four for down. But layer norm, attention and GELU keep what they keep, because a
# gradient still has to pass through them on its way down to the lowest trained parameter:

# %%
rows = {}
methods = {"full": tp.FullFineTuning(), "adapter": tp.BottleneckAdapter(), "prompt": tp.PromptTuning(), "lora": tp.LoRA(rank=8)}
for name, method in methods.items():
    tuned = tp.attach(copy.deepcopy(base), method)
    trained = sum(p.size for p in tuned.trainable_parameters())
    rows[name] = np.array([4 * N, 12 * trained, traced(tuned, domain, B, T)]) / 2**20
fig, ax = plot.figure(height=2.3)
left = np.zeros(len(rows))
for i, (part, colour) in enumerate(zip(("weights", "gradients, m, v", "activations"), ("grey", "blue", "sky"), strict=True)):
    width = np.array([r[i] for r in rows.values()])
    ax.barh([str(m) for m in methods.values()], width, left=left, color=plot.COLOURS[colour], label=part)
    left += width
ax.invert_yaxis()
ax.set(xlabel="MiB, activations as traced")
ax.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.4, 1))
fig

# %% [markdown]
# *What to see: dark blue all but disappears with every method; light blue shrinks by a quarter at best.* Keep this
# picture in mind when you read that a method trains 1 % of the parameters: that is about the dark part alone. Prompt
# tuning trains least and keeps more than LoRA: its vectors stand before the first block, and they lengthen every
# sequence.
#
# ## 5. Seven billion
#
# At $N = 7 \cdot 10^9$ the states dominate, and everything changes. Take $L = 32$, $d = 4096$, one row of 512 tokens;
# LoRA of rank 8 on query and value trains $n = 32 \cdot 2 \cdot 8 \cdot 2 \cdot 4096$ numbers:

# %%
N7, n7 = 7e9, 32 * 2 * 8 * 2 * 4096
plans = {"full, float32": states(N7, N7, 4, 4), "full, mixed precision": states(N7, N7, 2, 2),
         "LoRA, 16-bit base": states(N7, n7, 2, 2), "QLoRA, 4-bit base": states(N7, n7, 2, 4.127 / 8)}
fig, ax = plot.figure(height=2.1)
ax.barh(list(plans)[::-1], [b / 1e9 for b in plans.values()][::-1], color=plot.COLOURS["blue"])
for y, b in enumerate(list(plans.values())[::-1]): ax.text(b / 1e9, y, f" {b / 1e9:.1f} GB", va="center")
ax.axvline(24, color=plot.COLOURS["vermillion"], ls="--")
ax.text(26, 0.0, "← a card with 24 GB", color=plot.ink(plot.COLOURS["vermillion"]), va="center")
ax.set(xlabel="weights, gradients and optimizer state of 7 B parameters, GB", xlim=(0, 128))
fig

# %% [markdown]
# *What to see: full fine-tuning does not come near the card, in any precision.* LoRA fits because $12n$ is gone; QLoRA
# (4.127 bits per weight, lesson 13) leaves room for activations. For these, PyTorch in 16 bits keeps more than our
# engine does; Korthikanti et al. count $34\,BTd + 5\,BHT^2$ bytes per layer with dropout and an unfused softmax, here
# about 2.5 GB for one row of 512 tokens (mostly the first term).
#
# ### {exercise} · Halve it (open, 4 points, 20 minutes)
#
# The method stays full fine-tuning. Name three ways to reduce the bill of section 4 and say for each which term of
# equation (4) it reduces, by which factor, and what it costs. Try one of them: either accumulate the gradients of four
# batches of one row before a step, or pass `optimizer=tp.PagedAdamW` to `tp.train`. Show that the trained weights are
# the same (up to what?).
#
# *Rubric: 1 point for three ways that address different terms; 1 for factors from equation (4), not adjectives; 1 for a
# correct experiment; 1 for saying whether the results agree bit for bit or up to rounding, and why.*

# %% [answer]
# | way | term of equation (4) | factor | price |
# |---|---|---|---|
# | accumulate gradients of $k$ parts of the batch | activations, by $B$ | $1/k$ | smaller products, so somewhat slower |
# | compute activations again in the backward pass | activations, by $L$ | about $1/L$, for one kept input per block | one more forward pass, about a third more time |
# | state of 8 bits | $8n$ | $2n$ | rounding of $m$ and $v$ |
# | state in a file (`tp.PagedAdamW`) | $8n$ | out of memory | reads and writes |
# | weights and gradients of 16 bits | $4N + 4n$ | 1/2 | a float32 copy, unless updates may be lost to rounding |
#
# Three of them that address different terms suffice. `PagedAdamW` computes AdamW's own numbers in the same order: the
# weights agree bit for bit. Accumulated gradients are the same sum in another order, so they agree up to rounding, about
# 1e-7 of their size; AdamW divides by $\sqrt{\hat v}$, which can enlarge that where a gradient is nearly zero. The parts
# must be weighted by their rows: the mean of four means is the mean only if all have equally many.

# %% [markdown]
# ## Recall
#
# <details><summary>1. What are the 16 bytes per parameter, in float32 and in mixed precision?</summary>
# float32: weight 4, gradient 4, m and v 8. Mixed: weight 2, gradient 2, master copy 4, m and v 8.
# </details>
# <details><summary>2. Why does Adam divide m by 1 − β₁ᵗ?</summary>
# m starts at zero, so after t steps it is an average with total weight 1 − β₁ᵗ. Without the correction the first steps
# would be too small (or, as v has the slower β, too large).
# </details>
# <details><summary>3. What is the difference between weight decay in AdamW and an L2 penalty in Adam?</summary>
# The penalty's gradient λw is divided by √v̂ like every gradient, so weights with large gradients decay less. AdamW
# shrinks all weights by the same factor.
# </details>
# <details><summary>4. Which activations does LoRA save, and why not all?</summary>
# The inputs of frozen linear layers, which only dW needs. Layer norm, attention and GELU need theirs to pass dx on.
# </details>
# <details><summary>5. Name two costs of full fine-tuning that are not memory in training.</summary>
# A whole model to store per task; forgetting what the base could do.
# </details>
#
# ## Where the paper says this
#
# - Kingma & Ba, *Adam*, arXiv 1412.6980, Algorithm 1: equations (1) and (2) without decay. Loshchilov & Hutter, arXiv
#   1711.05101, Algorithm 2: the decay.
# - Rajbhandari et al., *ZeRO*, arXiv 1910.02054, section 3.1: $2\Psi + 2\Psi + 12\Psi = 16\Psi$ bytes for $\Psi$
#   parameters in mixed precision with Adam.
# - Korthikanti et al., arXiv 2205.05198, section 4.1: activations of a transformer layer, $sbh(34 + 5as/h)$ bytes, in
#   their letters (sequence, batch, hidden, attention heads).
# - Chen et al., arXiv 1604.06174: recomputation, memory that grows with $\sqrt L$.
#
# ## Where implementations differ
#
# - In PyTorch's AdamW the decay is $\eta\lambda w$, as in equation (2) and here. The paper's is $\eta_t\lambda w$ with
#   a schedule factor $\eta_t$ apart from the learning rate: numbers for $\lambda$ do not carry over between papers.
# - Where the vjp keeps its values is a choice: this engine keeps GELU's derivative instead of its input (the same
#   size), and only the visible half of attention's weights. Fused attention kernels keep none of the weights and
#   compute them again.
# - Peak memory is more than what is kept: the first gradients of the backward pass come on top.
#   `tinypeft.study.compare.traced_peak` measures that.
#
# **Now you can** say what a training run will need before it fails, and which term a method attacks. Next: [04 ·
# Adapters](04_adapters.ipynb) adds small networks between the layers and freezes the rest.
