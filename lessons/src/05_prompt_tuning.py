# %% [markdown]
# # 05 · Prompt tuning and P-tuning
#
# **What you will do.** Leave every weight alone and train what the model reads: a few vectors in front of the text, or
# between its parts. You will build the input of the first block, say what a longer input costs, find the words nearest
# to a trained prompt, place pseudo-tokens by a template, and see where this small model disagrees with the papers.
#
# **What you need.** Lesson 02 (embeddings, positions, the seams) and lesson 03 (activations).
#
# **Time.** 60 minutes; every cell together runs in well under a minute.

# %%
import numpy as np

import tinypeft as tp
from tinypeft import functional as F
from tinypeft.course import show
from tinypeft.peft import mixed_batch
from tinypeft.peft.ptuning import LSTMEncoder
from tinypeft.peft.virtual import starting_words
from tinypeft.study import plot

base = tp.load_pretrained()
tok, c = base.tokenizer, base.config
task = tp.tasks.summarize(base)                                  # a signature → the first sentence of its documentation
given, wanted = task.data("test")[5]
print(repr(tok.decode(given)), "→", repr(tok.decode(wanted)))

# %% [markdown]
# ## 1. Words that are no words
#
# A large model can be told what to do: put "Summarize:" in front of the text. But text is a clumsy way to talk to a
# network. After the embedding table, the model reads vectors of $d$ numbers, and a token can be only one of $V$ points
# in that space. Lester, Al-Rfou and Constant (arXiv 2104.08691) drop the table: $P$ vectors $P_e$, as wide as embedded
# tokens, stand before the embedded text $X_e$. They are trained by gradient descent, and nothing else is. The model
# $\theta$ then gives
#
# $$\Pr{}_{\theta;\,\theta_P}\big(Y \mid [P_e;\, X_e]\big), \qquad P_e \in \mathbb{R}^{P \times d} \tag{1}$$
#
# To the model the $P$ vectors are tokens like others: they take the positions $0 \dots P-1$, and the text moves up by
# $P$.
#
# ### {exercise}
#
# Build what the first block reads. `P_e` $(P, d)$ and `X_e` $(T, d)$ are Tensors, `positions` is the table of position
# vectors, a Tensor $(C, d)$, row $i$ for position $i$. Return the Tensor $(P + T, d)$: prompt and text, each with the
# vector of its position added. `tp.concatenate([a, b], axis=0)` puts rows under rows; Tensors can be sliced.

# %% exercise=prompts.input points=3 minutes=10
def prompts_input(P_e, X_e, positions):
    """What the first block reads: (P + T, d), prompt before text, with position vectors."""
    ### BEGIN SOLUTION
    x = tp.concatenate([P_e, X_e], axis=0)
    return x + positions[:x.shape[0]]
    ### END SOLUTION

# %%
result = tp.check("prompts.input", prompts_input)
model_input = result.function
result

# %% [markdown]
# Compare with the package's seam. By hand: your input through the blocks, and then the logits of the text alone.

# %%
tokens = np.concatenate([given, wanted])[:-1]
tuned = tp.attach(base, tp.PromptTuning(length=4), rng=0)
with tp.no_grad():
    h = model_input(tuned.virtual.P_e, base.token_embedding(tokens), base.position_embedding.weight)     # equation (1)
    h = h.reshape(1, *h.shape)
    for block in base.blocks: h = block(h)
    by_hand = base.logits(base.final_norm(h)[:, 4:])
    print("largest difference:", abs(by_hand.data - tuned(tokens[None]).data).max())
_ = tuned.detach()

# %% [markdown]
# ## 2. Where to start
#
# A trained vector has to start somewhere. Random numbers are one choice: the paper draws from $U(-0.5, 0.5)$. Another
# is the embeddings of real words, either common ones or words that say something about the task. What does the model
# make of such prompts *before* training?

# %%
starts = {"no prompt": None, "common words": tp.PromptTuning(20),
          "a sentence": tp.PromptTuning(20, init="text", text="Return the first sentence of the documentation of this function."),
          "random": tp.PromptTuning(20, init="random")}
untrained = {}
for name, method in starts.items():
    tuned = tp.attach(base, method, rng=0) if method else base
    untrained[name] = tp.evaluate(tuned, task, max_batches=6)["loss"]
    if method: tuned.detach()

E = base.token_embedding.weight.data
print(f"length of an embedding: {np.linalg.norm(E[256:], axis=1).mean():.2f}; of a vector from U(-0.5, 0.5): {(c.d_model / 12) ** 0.5:.2f}")
fig, ax = plot.figure(height=1.9)
ax.barh(list(untrained)[::-1], list(untrained.values())[::-1], color=plot.COLOURS["purple"])
for y, loss in enumerate(list(untrained.values())[::-1]): ax.text(loss, y, f" {loss:.2f}", va="center")
ax.set(xlabel="test loss before training, nats per token", xlim=(3, 4.2))
fig

# %% [markdown]
# *What to see: twenty random vectors confuse the model; twenty real words, even unrelated ones, do not, and may help a
# little.* Random vectors are three times as long as embeddings and point where no token ever was. Training can repair
# that, but it has to be done.
#
# ## 3. What it costs
#
# The count is the shortest of this course:
#
# $$N_{trained} = P\,d \tag{2}$$

# %%
print(20 * c.d_model, "=", tp.attach(tp.load_pretrained(), tp.PromptTuning(20)).summary().trained)       # equation (2)

# %% [markdown]
# But the bill has another line. The sequence is longer by $P$, in training and for ever after. A block does $12 d^2$
# multiplications per position in its six matrices; causal attention over $S$ positions does $d$ for each of the
# $S(S+1)/2$ scores, and as many for the values:
#
# $$F(S) = 12\,d^2 S + d\,S(S+1), \qquad \text{extra work} = \frac{F(P+T)}{F(T)} - 1 \tag{3}$$
#
# ### {exercise}
#
# Return the extra work of equation (3), as a number such as 0.25 for a quarter more.

# %% exercise=prompts.cost points=2 minutes=5
def prompts_cost(P, T, d):
    """By which fraction a prompt of P vectors before T tokens increases a block's multiplications."""
    ### BEGIN SOLUTION
    F = lambda S: 12 * d * d * S + d * S * (S + 1)
    return F(P + T) / F(T) - 1
    ### END SOLUTION

# %%
result = tp.check("prompts.cost", prompts_cost)
cost = result.function
result

# %%
rows = task.batch("train", 64, np.random.default_rng(0))[0]
print(f"here,      T = {rows.shape[1]:5}, P = 20:  {100 * cost(20, rows.shape[1], c.d_model):5.1f} % more work")
for T, P in ((512, 20), (512, 100), (2048, 100)):
    print(f"d = 4096,  T = {T:5}, P = {P:3}: {100 * cost(P, T, 4096):5.1f} % more work")

# %% [markdown]
# ## 4. Train it
#
# Three lengths, 40 steps of 8 signatures each:

# %%
def learn(method, steps=40):
    """(tuned model, test loss) of a fresh copy of the base with `method`."""
    tuned = tp.attach(tp.load_pretrained(), method, rng=0)
    tp.train(tuned, task, steps, batch_size=8, seed=0, progress=False)
    return tuned, tp.evaluate(tuned, task, max_batches=6)["loss"]


runs = {P: learn(tp.PromptTuning(P)) for P in (1, 6, 20)}
for P, (_, test) in runs.items():
    print(f"P = {P:2}: {P * c.d_model:5,} trained numbers, test loss {untrained['no prompt']:.3f} → {test:.3f}")
tuned = runs[20][0]
for before, after, (g, w) in zip(task.write(base, limit=3), task.write(tuned, limit=3), task.data("test"), strict=False):
    print(f"\n{tok.decode(g)[13:].strip()}\n  base    {before}\n  prompt  {after}\n  wanted  {tok.decode(w[:-1]).strip()}")

# %% [markdown]
# The sentences are no better than before. So where did the loss go? Sort it by place: the first token of a sentence,
# the end of text behind it, and everything between.

# %%
def by_place(model):
    """Mean loss (nats per token) on the first token of the wanted sentence, between, and on the end of text."""
    parts = [], [], []
    for tokens, targets in list(task.batches("test", 16))[:6]:
        with tp.no_grad(): log_p = F.log_softmax(model(tokens)).data
        for b, at in enumerate(np.nonzero(row != -100)[0] for row in targets):
            losses = -log_p[b, at, targets[b, at]]
            for part, some in zip(parts, (losses[:1], losses[1:-1], losses[-1:]), strict=True): part.extend(some)
    return [float(np.mean(part)) for part in parts]


for name, model in (("base", base), ("prompt", tuned)):
    print(name.ljust(8), "first {:.2f}   between {:.2f}   end of text {:.2f}".format(*by_place(model)))

# %% [markdown]
# Nearly all of the gain is the end: the base, which knows whole documents, goes on after the first sentence; the prompt
# has told it to stop. It has not taught the model Matplotlib; how could 2,560 numbers. A prompt selects among habits
# that the model has.
#
#
# ## 5. What does a prompt say?
#
# Each trained vector has nearest neighbours among the tokens. Nearest by angle, since lengths differ:
#
# $$\cos(p, e) = \frac{p \cdot e}{\|p\|\,\|e\|} \tag{4}$$
#
# ### {exercise}
#
# For each row of `P_e` $(P, d)$ return the numbers of the `k` rows of `E` $(V, d)$ with the largest cosine, largest
# first: an integer array $(P, k)$.

# %% exercise=prompts.nearest points=3 minutes=10
def prompts_nearest(P_e, E, k):
    """Ids (P, k) of the k tokens nearest to each prompt vector by cosine, nearest first."""
    ### BEGIN SOLUTION
    unit = lambda a: a / np.linalg.norm(a, axis=1, keepdims=True)
    return np.argsort(-unit(P_e) @ unit(E).T, axis=1)[:, :k]
    ### END SOLUTION

# %%
result = tp.check("prompts.nearest", prompts_nearest)
nearest = result.function
result

# %%
P_e, start = tuned.virtual.P_e.data, E[starting_words(base, 20, None, np.random.default_rng(0))]
for i, ids in enumerate(nearest(P_e, E, 4)[:6]):
    moved = np.linalg.norm(P_e[i] - start[i]) / np.linalg.norm(start[i])
    print(f"vector {i}: moved by {100 * moved:3.0f} % of its length, nearest to", *(repr(tok.decode([t])) for t in ids))

# %%
show("soft_prompts")

# %% [markdown]
# *What to see: a star is a vector whose nearest token is still the one it started from; even these are far from it, and
# the others point to nothing in particular.* Each has moved by more than its own length. Lester et al. (section 7) find
# clusters of related words, and class labels that survive from the start. But a soft prompt is no sentence in disguise:
# nobody could read this one.
#
# ## 6. One model, many tasks
#
# Since no weight changes, rows of one batch may belong to different tasks, each behind its own prompt:

# %%
other = tp.attach(tp.load_pretrained(), tp.PromptTuning(20), rng=1)
batch = task.batch("test", 3, np.random.default_rng(0))[0]
logits = mixed_batch(base, {"summarize": tuned, "other": other}, batch, ["summarize", "other", None])
print("row 0 as alone:", np.allclose(logits.data[0], tuned(batch[:1]).data[0], atol=1e-4), " row 2 as the base:",
      np.allclose(logits.data[2], base(batch[2:]).data[0], atol=1e-4))

# %% [markdown]
# ## 7. P-tuning: between the parts, and made by a network
#
# P-tuning (Liu et al., arXiv 2103.10385) came a month earlier, from cloze tests: "The capital of [x] is [y]". It trains
# the words around x and y. A *template* says how many pseudo-tokens stand before each part:
#
# $$T = \{[P_{0:i}],\ x,\ [P_{i+1:m}],\ y\} \ \to\ \{h_0, \dots, h_i,\ e(x),\ h_{i+1}, \dots, h_m,\ e(y)\} \tag{5}$$
#
# To do this with running text, somebody must find where $x$ ends. Here parts end with a separator token, for our task
# the line break behind the signature.
#
# ### {exercise}
#
# `tokens` $(T,)$ is one row. `counts` says how many pseudo-tokens stand before each part: `(2, 1)` means two before the
# first and one before the second, which is the last. Every part but the last ends *with* its `separator`; in the last
# part a separator is a token like others. Return the places, in ascending order, that the pseudo-tokens take in the
# lengthened sequence, an integer array. For `tokens = [7, 8, 10, 9]`, `counts = (2, 1)`, `separator = 10` the sequence
# becomes `p p 7 8 10 p 9`, and the answer is `[0, 1, 5]`.

# %% exercise=prompts.places points=4 minutes=15
def prompts_places(tokens, counts, separator):
    """Where the pseudo-tokens go in the lengthened sequence."""
    ### BEGIN SOLUTION
    ends = np.nonzero(tokens == separator)[0][:len(counts) - 1]          # where each part but the last ends
    starts = np.concatenate([[0], ends + 1])                             # in the row as it is
    placed, before = [], 0
    for start, n in zip(starts, counts, strict=True):
        placed.extend(range(start + before, start + before + n))
        before += n
    return np.array(placed)
    ### END SOLUTION

# %%
result = tp.check("prompts.places", prompts_places)
places = result.function
result

# %%
row = np.concatenate([given, wanted])
at = places(row, (3, 3), tok.encode("\n")[0])
line = list(row)
for place in at: line.insert(place, None)
print(" ".join("◦" if t is None else repr(tok.decode([t]))[1:-1] for t in line))

# %% [markdown]
# The second idea: do not train the $h_i$ themselves, but a network that makes them from embeddings $[P_i]$ of the
# pseudo-tokens, so that they move together and not each for itself:
#
# $$h_i = \mathrm{MLP}\big(\big[\overrightarrow{h_i} : \overleftarrow{h_i}\big]\big) = \mathrm{MLP}\big(\mathrm{LSTM}(h_{0:i}) : \mathrm{LSTM}(h_{i:m})\big) \tag{6}$$

# %%
show(LSTMEncoder.forward)

# %%
p_tuned, p_test = learn(tp.PTuning(template=(3, "context", 3, "target"), separator="\n"))
folded = tp.evaluate(p_tuned.fold(), task, max_batches=6)["loss"]
stored = p_tuned.summary().stored
fig, ax = plot.figure(height=2.3)
results = {"frozen base": untrained["no prompt"], "P-tuning, 3 + 3, LSTM": p_test,
           **{f"prompt, P = {P}": test for P, (_, test) in runs.items()}}
colours = ["grey"] + ["purple"] * 4
ax.barh(list(results)[::-1], list(results.values())[::-1], color=[plot.COLOURS[k] for k in colours[::-1]])
for y, loss in enumerate(list(results.values())[::-1]): ax.text(loss, y, f" {loss:.3f}", va="center")
ax.set(xlabel="test loss after 40 steps, nats per token", xlim=(2.8, 3.65))
print(f"P-tuning: {p_test:.3f} with its network, {folded:.3f} with the {stored} numbers it makes")
fig

# %% [markdown]
# After training the encoder is dropped, and only the $h_i$ are kept: the same loss with 768 numbers instead of 232,448.
# *What to see in the picture: on this task P-tuning does worse than a plain prompt with as many vectors.* The paper
# says the opposite for its tasks. Three differences: its encoder starts from random numbers, and a plain prompt here
# starts from words; 40 steps are few for a fresh LSTM; and in the paper's main experiments the model is tuned as well.
# On *classify* the order is the other way round: over five seeds P-tuning has 53.7 % and prompt tuning 49.6 %
# ([figures/README.md](../figures/README.md) has the table).
#
# And the size of the model? Prompt tuning's paper says that the gap to full fine-tuning closes at billions of
# parameters:

# %%
show("prompt_sizes")

# %% [markdown]
# *What to see: how much of full fine-tuning's gain a prompt reaches on three small bases; between the smallest and the
# largest is a factor of a few, between the largest and the paper's a factor of thousands.*
#
# ### {exercise} · Can words do it? (open, 4 points, 25 minutes)
#
# Find a *hard* prompt: five real tokens that, put before every signature, lower the loss of `task` as far as you can
# get (`tp.PromptTuning(5, init="text", text=(ids…))` without training measures one). Search as you like, for instance
# by exchanging one token at a time, or by taking for each trained vector the nearest token. How far do you get towards
# the soft prompt of length 5?
#
# *Rubric: 1 point for a search that is described so that others can repeat it, on training or validation rows; 1 for
# test losses of start, hard prompt and soft prompt in one table; 1 for the loss of the soft prompt rounded to nearest
# tokens; 1 for an explanation of the gap.*

# %% [answer]
# Every sound search is right. A greedy one takes the best of a few hundred tokens at one place, on a few training batches,
# then the next place, and goes round again. Expect a hard prompt that is better than its start and clearly worse than the
# soft prompt. Rounding each trained vector to its nearest token loses most of what training gained, and may end worse than
# the start.
#
# *Why.* Five tokens are one of $V^5$ points; five vectors are any point of a space with $5 d$ dimensions. The
# gradient was followed in directions that no token has, so that the nearest token has another length and another direction. In
# this model the tables are tied: a token's vector also has to be a good row of the head, and a prompt vector has not.
# {picture soft_prompts}

# %% [markdown]
# ## Recall
#
# <details><summary>1. What is trained in prompt tuning, and how many numbers are that?</summary>
# P vectors of width d before the embedded input: P d.
# </details>
# <details><summary>2. Which cost of a prompt is not in that number?</summary>
# A longer sequence, in training and in use: P more positions in every layer, and P more keys for every query.
# </details>
# <details><summary>3. Why start from words?</summary>
# The frozen layers have only ever seen vectors of the embedding table. A random vector is far from all of them, and
# confuses the model until training has moved it.
# </details>
# <details><summary>4. What are the two ideas of P-tuning?</summary>
# Pseudo-tokens between the parts, by a template; and a network that makes them, used in training only.
# </details>
# <details><summary>5. Why can two tasks share a batch with prompts, but not with two fully fine-tuned models?</summary>
# The weights are the same for both; only the input differs, row by row.
# </details>
#
# ## Where the paper says this
#
# - Lester et al., arXiv 2104.08691: equation (1) in section 2; random, vocabulary and class-label starts in section
#   3.2; that it "becomes more competitive with scale" in the abstract; nearest neighbours of prompts in section 7.
# - Liu et al., arXiv 2103.10385 (P-tuning): template and encoder in sections 3.1 and 3.2.
# - The survey (arXiv 2501.04040) treats both under one heading, together with P-tuning v2, which is a method of lesson
#   06.
#
# ## Where implementations differ
#
# - PEFT's P-tuning has no template: its pseudo-tokens always stand in front, so that it differs from prompt tuning by
#   the encoder alone. Its default encoder is an MLP of three layers; the paper's is the LSTM.
# - PEFT's random start is N(0, 1), the paper's U(−0.5, 0.5); the default here is words.
# - PEFT returns logits for the prompt's positions, too, and counts the first token's prediction in the loss. Here
#   virtual tokens never show.
#
# **Now you can** put trained vectors anywhere into a frozen model's input and say what they cost. Next: [06 · Prefix
# tuning](06_prefix.ipynb) gives every layer its own.
