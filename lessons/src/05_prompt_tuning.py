# %% [markdown]
# # 05 · Prompt tuning and P-tuning
#
# **What you will do.** Leave every weight alone and train what the model reads: a few vectors in
# front of the text, or between its parts. You build the input of the first block, choose how long a
# prompt may be, derive its gradient, place pseudo-tokens by a template, and find out what a prompt
# teaches a model first, and what comes late.
#
# **What you need.** Lesson 02 (embeddings, positions, the seams) and lesson 03 (activations).
#
# **Words and letters.** [The glossary](GLOSSARY.md) explains every word and letter of the course.
#
# **Time.** 100 minutes for reading and the exercises. The open exercise takes 35 more, the bonus
# 10. Every cell together runs in about a minute.

# %%
import numpy as np

import tinypeft as tp
from tinypeft.engine import functional as F
from tinypeft.course import beside, show, use
from tinypeft.course.slider import slider
from tinypeft.peft import mixed_batch, ptuning
from tinypeft.peft.ptuning import LSTMEncoder
from tinypeft.peft.virtual import starting_words
from tinypeft.study import plot

base = tp.load_pretrained()
tok, c = base.tokenizer, base.config
task = tp.tasks.summarize(base)          # a signature → the first sentence of its documentation
given, wanted = task.data("test")[5]
print(repr(tok.decode(given)), "→", repr(tok.decode(wanted)))

# %% [markdown]
# ## 1. Words that are no words
#
# A large model can be told what to do: put "Summarize:" in front of the text.
# But words are a blunt tool. Behind the embedding table, the model reads vectors of $d$
# numbers, and a token can be only one of $V$ points in that space.
# ($V$ is the number of different tokens.)
# Lester, Al-Rfou and Constant (arXiv 2104.08691) train the vectors themselves.
# $P$ vectors $P_e$, as wide as embedded tokens, stand before the embedded text $X_e$:

# %%
show("schematic:prompts")

# %% [markdown]
# The vectors are trained by gradient descent, and nothing else is.
# The frozen model then gives the probability of a text $Y$ behind both:
#
# $$\Pr\big(Y \mid [P_e;\, X_e]\big), \qquad P_e \in \mathbb{R}^{P \times d} \tag{1}$$
#
# For the model the $P$ vectors are tokens like others.
# They take the positions $0 \dots P-1$, and the text moves up by $P$.
#
# **By hand.** Take $d = 2$, one prompt vector $(5, 5)$, two tokens with the embeddings $(1, 0)$
# and $(0, 1)$, and $(0.1, 0)$, $(0.2, 0)$, $(0.3, 0)$ as the vectors of the first three
# positions. The first block reads the rows $(5.1, 5)$, $(1.2, 0)$, $(0.3, 1)$.
# Without a prompt the first token would be $(1.1, 0)$: it stood at position 0.
#
# ### {exercise}
#
# Build what the first block reads. `P_e` $(P, d)$ and `X_e` $(T, d)$ are Tensors.
# `positions` is the table of position vectors, a Tensor with more rows than you need: row $i$ is
# for position $i$. Return a Tensor.
# `tp.concatenate([a, b], axis=0)` puts rows under rows, and Tensors can be sliced.

# %% exercise=prompts.input points=3 minutes=10 as=model_input
def prompts_input(P_e, X_e, positions):
    """What the first block reads: (P + T, d), prompt before text, with position vectors."""
    ### BEGIN SOLUTION
    x = tp.concatenate([P_e, X_e], axis=0)
    return x + positions[:x.shape[0]]
    ### END SOLUTION

# %% [markdown]
# **Your input at work.**
# It goes through the blocks, and then the logits of the text alone are read.
# The package's way to put a prompt in is a *seam*: a place where the model lets a method put
# something in.

# %%
tokens = np.concatenate([given, wanted])[:-1]
tuned = tp.attach(base, tp.PromptTuning(length=4), rng=0)
with tp.no_grad():
    h = model_input(tuned.virtual.P_e, base.token_embedding(tokens), base.position_embedding.weight)
    h = h.reshape(1, *h.shape)
    for block in base.blocks: h = block(h)
    by_hand = base.logits(base.final_norm(h)[:, 4:])
    print(f"largest difference: {abs(by_hand.data - tuned(tokens[None]).data).max():.0e}")

# %% [markdown]
# ## 2. Where to start
#
# A trained vector has to start somewhere. One choice is random numbers: the paper draws from
# $U(-0.5, 0.5)$, where all numbers between −0.5 and 0.5 are equally likely.
# Another is the embeddings of real words, either common words or words that say something about
# the task. What does the model make of such prompts *before* training?

# %%
sentence = "Return the first sentence of the documentation of this function."
starts = {"no prompt": None, "common words": tp.PromptTuning(20),
          "a sentence": tp.PromptTuning(20, init="text", text=sentence),
          "random": tp.PromptTuning(20, init="random")}
untrained = {}
for name, method in starts.items():
    tuned = tp.attach(base, method, rng=0) if method else base
    untrained[name] = tp.evaluate(tuned, task, max_batches=6)["loss"]

E = base.token_embedding.weight.data                                           # (V, d)
pieces = E[256:]                       # without the 256 single bytes, most of which no text has
print(f"length of an embedding {np.linalg.norm(pieces, axis=1).mean():.2f}, "
      f"of a vector from U(−0.5, 0.5) {(c.d_model / 12) ** 0.5:.2f}")

# %% fold
def dots(losses, colours, xlabel):
    """Losses as dots, one row for each name."""
    fig, ax = plot.figure(height=0.55 + 0.27 * len(losses))
    for row, (loss, colour) in enumerate(zip(losses.values(), colours, strict=True)):
        ax.plot(loss, -row, "o", color=plot.COLOURS[colour])
        ax.annotate(f"{loss:.2f}", (loss, -row), xytext=(7, 0), textcoords="offset points",
                    va="center")
    ax.set(xlabel=xlabel, yticks=[-row for row in range(len(losses))], yticklabels=list(losses),
           ylim=(-len(losses) + 0.4, 0.6))
    ax.margins(x=0.12)
    return fig


fig = dots(untrained, ["grey"] + ["purple"] * 3, "test loss before training, nats per token")
fig.set_label("Four losses before training. Common words and a sentence are close to no prompt; "
              "twenty random vectors are far above.")
fig

# %% [markdown]
# *What to see: twenty random vectors confuse the model.
# Twenty real words, even unrelated ones, do not, and they may help a little.*
# Random vectors are much longer than embeddings and point where no token ever was.
# Training can repair that, but it takes steps.
#
# ## 3. What it costs
#
# The count of trained numbers is the shortest of this course: $P\,d$.
# But the bill has another line.
# The sequence is longer by $P$, in training and whenever the model is used.
#
# For each of its $S$ positions a block does $12 d^2$ multiplications in its six matrices. In causal
# attention, position $i$ sees $i$ positions before it and itself, $S(S+1)/2$ pairs in all. Each
# pair takes $d$ multiplications for the score and $d$ for the value. For $d = 2$, two tokens take
# $96 + 12 = 108$, and three $144 + 24 = 168$: one vector before two tokens is 56 % more work. In
# general
#
# $$\text{work}(S) = 12\,d^2 S + d\,S(S+1), \qquad
# \text{extra} = \frac{\text{work}(P+T)}{\text{work}(T)} - 1 \tag{2}$$

# %%
def cost(P, T, d):
    """How much more a block multiplies with P vectors before T tokens; 0.25 is a quarter more."""
    work = lambda S: 12 * d * d * S + d * S * (S + 1)                          # equation (2)
    return work(P + T) / work(T) - 1


rows = task.batch("train", 64, np.random.default_rng(0))[0]
sizes = (c.d_model, rows.shape[1], 20), (4096, 512, 20), (4096, 512, 100), (4096, 2048, 100)
for d, T, P in sizes:
    print(f"d = {d:4}, T = {T:4}, P = {P:3}: {P * d:7,} trained numbers, "
          f"{100 * cost(P, T, d):4.1f} % more work")

# %% [markdown]
# ### {exercise}
#
# A server may become slower by a given share, and no more. How long a prompt can you afford? Return
# the largest whole number $P$ for which the extra work of equation (2) is at most `share`, for
# texts of `T` tokens and width `d`. A share of 0.25 is a quarter more work. (A loop finds it. It
# can also be done without one, because equation (2) is a quadratic in $P + T$.)

# %% exercise=prompts.longest points=3 minutes=10 as=longest
def prompts_longest(T, d, share):
    """The largest P with which a block does at most `share` more work on T tokens."""

# %% [markdown]
# Your function at work. Move the handle: the share that you allow, and the longest prompt for texts
# of different length, with this model's width and with 4,096.

# %%
texts, frames, told = np.array([32, 64, 128, 256, 512, 1024]), {}, {}
for share in (0.02, 0.05, 0.1, 0.2, 0.5):
    found = {f"d = {d}": [longest(int(T), d, share) for T in texts] for d in (c.d_model, 4096)}
    frames[share] = {name: (texts, P) for name, P in found.items()}
    told[share] = f"before 512 tokens: {', '.join(f'{P[4]} with {n}' for n, P in found.items())}"
slider("share", frames, captions=told, xlabel="tokens of the text", ylabel="longest prompt")

# %% [markdown]
# A wide model spends nearly all of its work in the matrices, so that the work is nearly
# proportional to the length. A narrow one spends more on attention, which grows faster.
#
# ## 4. Train it
#
# Three lengths, 40 steps of 8 signatures each. The loss that is printed is on test rows:

# %%
STEPS = 40


def learn(method, **options):
    """A fresh copy of the base with `method`, trained; its training losses; its test loss."""
    tuned = tp.attach(tp.load_pretrained(), method, rng=0)
    history = tp.train(tuned, task, STEPS, batch_size=8, seed=0, progress=False, **options)
    return tuned, np.array(history.loss), tp.evaluate(tuned, task, max_batches=6)["loss"]


runs = {P: learn(tp.PromptTuning(P)) for P in (1, 6, 20)}
for P, (_, _, test) in runs.items():
    print(f"P = {P:2}: {P * c.d_model:5,} trained numbers, "
          f"test loss {untrained['no prompt']:.3f} → {test:.3f}")
with tp.no_grad():
    batches = [task.batch("train", 8, np.random.default_rng([0, step])) for step in range(STEPS)]
    frozen = np.array([task.loss(base, batch).item() for batch in batches])

# %% fold
fig, ax = plot.figure(height=2.6)
ax.axhline(0, color=plot.COLOURS["grey"], ls="--")
ax.text(STEPS, 0.01, "frozen base", ha="right", color=plot.ink(plot.COLOURS["grey"]))
ends = []
for (P, (_, losses, _)), style in zip(runs.items(), (":", "--", "-"), strict=True):
    y = np.convolve(losses - frozen, np.ones(8) / 8, "valid")
    ax.plot(np.arange(8, STEPS + 1), y, color=plot.COLOURS["purple"], ls=style)
    ends.append((STEPS, y[-1], f"P = {P}", plot.COLOURS["purple"]))
ax.set(xlabel="step", xlim=(7, STEPS + 6), ylabel="training loss − frozen base's,\nmean of 8 steps")
plot.label_ends(ax, ends)
fig.set_label("The training loss minus the frozen base's, over 40 steps, for prompts of 1, 6 and "
              "20 vectors. All fall below zero, the longer prompt lowest.")
fig

# %% [markdown]
# *What to see: the loss minus the frozen base's on the same batches.
# More vectors learn more, and most of it in the first half of the steps.* And the sentences?

# %%
tuned = runs[20][0]
old, new = (task.write(model, limit=3) for model in (base, tuned))
asked = task.data("test")[:3]
beside({"signature": [tok.decode(g)[13:].strip() for g, _ in asked],
        f"frozen base, {untrained['no prompt']:.2f} nats": old,
        f"prompt of 20, {runs[20][2]:.2f} nats": new,
        "wanted": [tok.decode(w[:-1]).strip() for _, w in asked]})

# %% [markdown]
# They are hardly better. So where did the loss go?
# Sort it by place: the first token of a sentence, the end of text behind it, and everything
# between. Guess: how much of the gain does the end bring, one token of each sentence?

# %%
guess = tp.guess("05.end", 20, "%")

# %%
def by_place(model):
    """Losses of a sentence's first token, of those between, and of its end: three arrays."""
    parts = [], [], []
    for tokens, targets in list(task.batches("test", 16))[:6]:
        with tp.no_grad(): log_p = F.log_softmax(model(tokens)).data
        for b, at in enumerate(np.nonzero(row != -100)[0] for row in targets):
            losses = -log_p[b, at, targets[b, at]]
            for part, some in zip(parts, (losses[:1], losses[1:-1], losses[-1:]), strict=True):
                part.extend(some)
    return [np.array(part) for part in parts]


places_of = "first {:6.2f}   between {:6.2f}   end of text {:6.2f}".format
before, after = by_place(base), by_place(tuned)
print("base, nats per token  ", places_of(*(part.mean() for part in before)))
print("prompt, nats per token", places_of(*(part.mean() for part in after)))
gains = np.array([(a - b).sum() for a, b in zip(before, after, strict=True)])
print("share of the gain, %  ", places_of(*(100 * gains / gains.sum())))
guess.beside(100 * gains[2] / gains.sum())

# %% [markdown]
# The end alone brings most of the gain.
# The base, which knows whole documents, goes on after the first sentence.
# The prompt has told it to stop.
# It has hardly taught the model Matplotlib: all tokens but the last bring a quarter of the gain.
#
# **This is the lesson's finding.** A prompt first selects among habits that the model has. Facts
# come late. In lesson 04 you asked this model for 16 facts that no text contains, and adapters knew
# 8 to 14 of them after 100 steps. A prompt of 20 vectors, trained likewise at a rate of 0.1, knows
# none after 100 steps, and 3, 4 and 0 after 300, with three seeds. Lesson 06 sets longer and deeper
# prompts beside it. So in 40 steps do not look for new knowledge in the texts. Look at where the
# loss falls.
#
# What moves a prompt? The same $P$ vectors stand in every row of a batch.
#
# ### {exercise}
#
# `dx` $(B, n, d)$ is the gradient of what the first block reads, for $B$ rows of $n$ places. `at`
# $(B, P)$ says where the vectors stand in each row: vector $j$ of row $b$ at place `at[b, j]`. In
# front of the text that is $0 \dots P-1$ in all rows; with a template (section 7) it differs from row
# to row. Return the gradient of the vectors, $(P, d)$. Which rule of lesson 01 is this?

# %% exercise=prompts.gradient points=3 minutes=10 as=my_gradient
def prompts_gradient(dx, at):
    """The gradient (P, d) of vectors that stand at the places `at` (B, P) of the rows of dx."""

# %% [markdown]
# Your gradient beside the engine's, for a batch of eight signatures. Its rows differ in length, and
# the rule is broadcasting's: what is copied into each row collects a sum.

# %%
tuned = tp.attach(base, tp.PromptTuning(20), rng=0)
tokens, targets = task.batch("train", 8, np.random.default_rng(0))
tuned.virtual.P_e.grad = None
F.cross_entropy(tuned(tokens), targets).backward()
front = base.token_embedding.weight.data[tokens]                               # (8, T, d)
P_e = np.broadcast_to(tuned.virtual.P_e.data, (8, 20, c.d_model))
x = tp.Tensor(np.concatenate([P_e, front], axis=1), requires_grad=True)        # (8, 20 + T, d)
h = x + base.position_embedding(np.arange(x.shape[1]))
for block in base.blocks: h = block(h)
F.cross_entropy(base.logits(base.final_norm(h)[:, 20:]), targets).backward()
mine = my_gradient(x.grad, np.tile(np.arange(20), (8, 1)))
print(f"largest difference {abs(mine - tuned.virtual.P_e.grad).max():.0e}; "
      f"the gradients are as large as {abs(mine).max():.0e}")
tuned = runs[20][0]

# %% [markdown]
# ## 5. What does a prompt say?
#
# Each trained vector has nearest neighbours among the tokens.
# Lengths differ, so "near" means a small angle:
#
# $$\cos(p, e) = \frac{p \cdot e}{\|p\|\,\|e\|} \tag{3}$$

# %%
def nearest(P_e, E, k):
    """Ids (P, k) of the k tokens nearest to each prompt vector by cosine, nearest first."""
    unit = lambda a: a / np.linalg.norm(a, axis=1, keepdims=True)
    return np.argsort(-unit(P_e) @ unit(E).T, axis=1)[:, :k]                   # equation (3)

# %% [markdown]
# The twenty vectors started as twenty words, and then 40 steps moved nearly each by more than the
# word's length. Guess: of how many is the word from which it started still the nearest, by (3)?

# %%
guess = tp.guess("05.stay", 4, "of 20")

# %%
P_e, words = tuned.virtual.P_e.data, starting_words(base, 20, None, np.random.default_rng(0))
moved = np.linalg.norm(P_e - E[words], axis=1) / np.linalg.norm(E[words], axis=1)
for i, ids in enumerate(nearest(P_e, E, 4)[:6]):
    print(f"started as {tok.decode([words[i]])!r}, moved by {100 * moved[i]:3.0f} % of its length, "
          "nearest to", *(repr(tok.decode([t])) for t in ids))
guess.beside(int((nearest(P_e, E, 1)[:, 0] == words).sum()))

# %%
show("soft_prompts")

# %% [markdown]
# *What to see: a star is a vector whose nearest token is still the one from which it started.*
# (⏎ is a line break, and � a token that is only a part of a letter.)
# Even these vectors are far from the word: one with a cosine of 1 would point exactly as it does.
# The other vectors are near no meaningful word.
# In so many dimensions there is much room, so that a vector can move far and have no new
# neighbour.
# The guess above was about this lesson's prompt, after 40 steps.
# The study's prompts train for 150 steps on another text, and fewer vectors stay.
# The picture shows a typical one of them, and the share in the sentence is a mean over five.
#
# Lester et al. (section 7) find clusters of related words, and class labels that survive from the
# start. But a soft prompt is no sentence in disguise: nobody could read this one.
#
# ## 6. One model, many tasks
#
# No weight changes.
# So rows of one batch may belong to different tasks, each behind its own prompt:

# %%
other = tp.attach(tp.load_pretrained(), tp.PromptTuning(20), rng=1)
batch = task.batch("test", 3, np.random.default_rng(0))[0]
tasks = {"summarize": tuned, "other": other}
logits = mixed_batch(base, tasks, batch, ["summarize", "other", None])
same = lambda row, alone: np.allclose(logits.data[row], alone.data[0], atol=1e-4)
print("row 0 as with its prompt alone:", same(0, tuned(batch[:1])))
print("row 2 as the base:             ", same(2, base(batch[2:])))

# %% [markdown]
# ## 7. P-tuning: between the parts, and made by a network
#
# P-tuning (Liu et al., arXiv 2103.10385) came a month earlier, from cloze tests, in which a blank
# is filled in: "The capital of [x] is [y]". It trains the words around $x$ and $y$.
# They are called *pseudo-tokens*. A *template* says how many of them stand before each part, for
# example two before $x$ and one before $y$:
#
# $$[P_0],\ [P_1],\ x,\ [P_2],\ y \quad\to\quad h_0,\ h_1,\ e(x),\ h_2,\ e(y) \tag{4}$$
#
# On the right is what the model reads.
# $e(x)$ and $e(y)$ are embeddings of tokens, and the $h_i$ are trained.
#
# To do this with running text, somebody must find where $x$ ends.
# Here parts end with a separator token; for our task it is the line break behind the signature.
#
# ### {exercise}
#
# `tokens` $(T,)$ is one row, and `counts` says how many pseudo-tokens stand before each part:
# `(2, 1)` means two before the first and one before the second, which is the last.
# Every part but the last ends *with* its `separator`.
# In the last part a separator is a token like others.
# Return the places, in ascending order, that the pseudo-tokens take in the lengthened row, an
# integer array. For `tokens = [7, 8, 10, 9]`, `counts = (2, 1)`, `separator = 10` the row becomes
# `p p 7 8 10 p 9`, and the answer is `[0, 1, 5]`.

# %% exercise=prompts.places points=4 minutes=20 as=places
def prompts_places(tokens, counts, separator):
    """Where the pseudo-tokens go in the lengthened row."""

# %%
row, line_break = np.concatenate([given, wanted]), tok.encode("\n")[0]
line = list(row)
for place in places(row, (3, 3), line_break): line.insert(place, None)
print(" ".join("◦" if t is None else repr(tok.decode([t]))[1:-1] for t in line))

# %% [markdown]
# (`<|endoftext|>` opens every row of this task, and it ends every sentence.)
#
# The second idea of P-tuning: do not train the $h_i$ themselves.
# Train a network that makes all of them from embeddings $[P_i]$ of the pseudo-tokens. The reason: the
# words of a phrase depend on one another, and vectors that are trained apart do not. A network that
# reads them in order ties them together. Any network may stand here.
# The paper's is an *LSTM*, an older kind of network that reads a row token by token and carries a
# state along. It reads in both directions, and two linear maps follow:

# %%
show(LSTMEncoder.forward)

# %% [markdown]
# After training the network is dropped, and only the $h_i$ are kept.
#
# **Your places at work.**
# P-tuning trains, and all its pseudo-tokens go where your function puts them:

# %%
def my_places(tokens, counts, separator, lengths=None):
    """Your places for each row of tokens (B, T): (B, P)."""
    return np.stack([places(row, counts, separator) for row in tokens])


with use(ptuning, places=my_places):
    p_tuned, _, p_test = learn(tp.PTuning(template=(3, "context", 3, "target"), separator="\n"))
folded = tp.evaluate(p_tuned.fold(), task, max_batches=6)["loss"]      # with the package's places
print(f"test loss {p_test:.4f} with the network and your places, {folded:.4f} without the network, "
      "with the package's places")
from_random = learn(tp.PromptTuning(6, init="random"))[2]
faster = learn(tp.PTuning(template=(3, "context", 3, "target"), separator="\n"), lr=0.03)[2]
print(f"P-tuning at the prompts' rate, 0.03: {faster:.4f}")

# %% fold
results = {"frozen base": untrained["no prompt"], "P-tuning, 3 + 3, LSTM": p_test,
           "prompt, P = 6, random start": from_random,
           **{f"prompt, P = {P}": test for P, (_, _, test) in runs.items()}}
fig = dots(results, ["grey"] + ["purple"] * 5, f"test loss after {STEPS} steps, nats per token")
fig.set_label("Test losses: the frozen base highest, a prompt of 1 vector, one of 6 from a random "
              "start, and P-tuning with an LSTM a little below it, prompts of 6 and of 20 vectors "
              "that started from words far below.")
fig

# %% [markdown]
# *What to see: P-tuning does worse than a plain prompt of as many vectors that starts from words, and
# about as well as one that starts from random numbers, as its encoder does.* But its default rate is
# a tenth of theirs. At theirs it ends between the two, and with another seed below both. So here the
# rate decides, and not the encoder.
# The paper finds P-tuning better on its tasks; there the model is frozen in one half of the
# experiments (LAMA), and trained as well in the other (SuperGLUE).
# On *classify*, another task of the study, the model says which package a sentence documents.
# There P-tuning has {study methods: ptuning, accuracy, as .1%} right, and prompt tuning
# {study methods: prompt, accuracy, as .1%}: these intervals overlap.
#
# ## 8. A prompt that ruins the model
#
# A colleague writes the loop by hand.
# He puts the vectors in, runs the blocks, and reads the predictions:

# %%
def read_by_colleague(at, n):
    """Where to read the predictions. at (P,): the places of the vectors among n places."""
    return np.arange(n - len(at))                                # T tokens, T predictions


def losses(model, vectors, place, read, rows=24):
    """Mean loss on wanted sentences: of the model, and by hand, read at these places."""
    found = []
    for given, wanted in task.data("test")[:rows]:
        row, aim = np.concatenate([given, wanted])[:-1], np.concatenate([given, wanted])[1:]
        at = place(row)
        n = len(row) + len(at)
        x = np.empty((1, n, c.d_model), np.float32)
        x[0, at], x[0, np.setdiff1d(np.arange(n), at)] = vectors, E[row]
        with tp.no_grad():
            x = tp.Tensor(x) + base.position_embedding(np.arange(n))
            for block in base.blocks: x = block(x)
            both = model(row[None])[0], base.logits(base.final_norm(x))[0, read(at, n)]
        start = len(given) - 1
        found.append([F.cross_entropy(a[start:], aim[start:]).item() for a in both])
    off = np.diff(found)[:, 0]                           # by hand − in the model, per sentence
    lower, higher = (off < -1e-3).sum(), (off > 1e-3).sum()
    return ("in the model {:.3f}, by hand {:.3f}".format(*np.mean(found, axis=0))
            + f"; lower in {lower} of {rows} sentences, higher in {higher}")


in_front = tuned, tuned.virtual.P_e.data, lambda row: np.arange(20)
between = p_tuned, p_tuned.virtual.prompt().data, lambda row: places(row, (3, 3), line_break)
print("prompt in front:", losses(*in_front, read_by_colleague))
print("P-tuning, 3 + 3:", losses(*between, read_by_colleague))

# %% [markdown]
# By hand, the loss is far above anything that a sound model has.
# The vectors are right, and so are the blocks.
#
# ### {exercise}
#
# At which place must the prediction of the *next* token be read, so that all that stands before
# that token has been seen? Return this place for each of the $T$ tokens, an integer array $(T,)$.
# For the last token the answer is $n - 1$.
# `at` are the places of the trained vectors, ascending, and `n` is the number of all places.
#
# Mind vectors between the parts, as in the row `p p 7 8 10 p 9`, with `at = [0, 1, 5]` and `n = 7`.
# What has been seen when the token 9 is predicted?

# %% exercise=prompts.bug points=3 minutes=12 as=read
def prompts_bug(at, n):
    """For each real token, the place at which to read the prediction of the next one."""

# %%
own_place = lambda at, n: np.setdiff1d(np.arange(n), at)
print("prompt in front:", losses(*in_front, read))
print("P-tuning, 3 + 3:", losses(*between, read))
print("  own places:   ", losses(*between, own_place))

# %% [markdown]
# *What to see: read at each token's own place, the loss is lower in some sentences and higher in
# others.* Only the first token of a sentence is read elsewhere then: at the line break, before the
# three vectors that follow it. After 40 steps these vectors, whose LSTM started fresh, do not yet
# help with that token. So a low loss does not show that the place is right. What shows it is that
# both losses agree in every sentence.

# %% [markdown]
# ## 9. And the size of the model?
#
# Prompt tuning's paper says that the gap to full fine-tuning closes at billions of parameters. The
# study measures it on *domain*, the documentation of Python packages (P-tuning v2 is lesson 06's):

# %%
show("prompt_sizes")

# %% [markdown]
# *What to see, right: from the smallest base to the next one, the share of full fine-tuning's gain
# that a prompt reaches nearly doubles. From there to the largest it does not grow.*
# The study calls its three bases *small*, *medium* and *base*; the last is this lesson's. The right
# half is over three of each size, the left half and this table are of the shipped one:
#
# | base | parameters | gain of full fine-tuning | gain of a prompt (nats per token) |
# |---|---|---|---|
# | small | {study prompts: full small, parameters} | {study prompts: full small, gain} | {study prompts: prompt small, gain} |
# | medium | {study prompts: full medium, parameters} | {study prompts: full medium, gain} | {study prompts: prompt medium, gain} |
# | base | {study prompts: full base, parameters} | {study prompts: full base, gain} | {study prompts: prompt base, gain} |
#
# So these three sizes do not show that the gap closes, and at each of them most of it is left.
# The paper's smallest model has 77 million parameters, 67 times our base; the gap closes at the
# largest, which has 11 billion.
#
# {claim Prompt tuning's gap}
#
# ## 10. Bonus: what the LSTM costs
#
# The points of this section are extra. One direction of one LSTM layer has four parts, its gates.
# Each gate has a matrix $(n, k)$ for its input of $k$ numbers, a matrix $(n, n)$ for its state,
# and two biases of $n$. The paper's encoder has two layers, each in two directions.
# The first reads $d$ numbers, the second reads both directions of the first, $2n$.
# A linear map from $2n$ to $2n$ follows, and one from $2n$ to $d$, both with biases.
#
# ### {exercise}
#
# How many numbers are trained, with the embeddings of $P$ pseudo-tokens?

# %% exercise=prompts.lstm points=2 minutes=10 bonus=yes as=lstm_count
def prompts_lstm(P, d, n):
    """Trained numbers of P-tuning with an LSTM of n numbers in each direction."""

# %%
method = tp.PTuning(template=(3, "context", 3, "target"), separator="\n")
summary = tp.attach(tp.load_pretrained(), method, rng=0).summary()
print(f"trained: {lstm_count(6, c.d_model, c.d_model // 2):,} by your count, "
      f"{summary.trained:,} in the model; stored: {summary.stored:,}")

# %% [markdown]
# ### {exercise} · Can words do it? (open, 4 points, 35 minutes)
#
# Find a *hard* prompt: five real tokens that, put before every signature, lower the loss of
# `task` as far as you can get (`tp.PromptTuning(5, init="text", text=(ids…))` without training
# measures one). Search as you like, for instance by exchanging one token at a time, or by taking
# for each trained vector the nearest token.
# How far do you get towards the soft prompt of length 5?
#
# *Rubric: 1 point for a search that is described so that others can repeat it, on training or
# validation rows; 1 for test losses of start, hard prompt and soft prompt in one table; 1 for the
# loss of the soft prompt rounded to nearest tokens; 1 for an explanation of the gap.*

# %% [answer]
# Every sound search is right. A greedy one takes the best of a few hundred tokens at one place,
# on a few training batches, then the next place, and goes round again.
# Expect a hard prompt that is better than its start and clearly worse than the soft prompt.
# Rounding each trained vector to its nearest token loses most of what training gained, and may
# end worse than the start.
#
# *Why.* Five tokens are one of $V^5$ points; five vectors are any point of a space with $5 d$
# dimensions. The gradient was followed in directions that no token has, so that the nearest token
# has another length and another direction. In this model the tables are tied: a token's vector
# also has to be a good row of the head, and a prompt vector has not. {picture soft_prompts}

# %% [markdown]
# ## Recall
#
# <details><summary>1. What is trained in prompt tuning, and how many numbers are that?</summary>
# P vectors of width d before the embedded input: P d.
# </details>
#
# <details><summary>2. Which cost of a prompt is not in that number?</summary>
# A longer sequence, in training and in use: P more positions in every layer, and P more keys for
# every query of the text.
# </details>
#
# <details><summary>3. Why start from words?</summary>
# The frozen layers have only ever seen vectors of the embedding table.
# A random vector is far from all of them, and confuses the model until training has moved it.
# </details>
#
# <details><summary>4. What are the two ideas of P-tuning?</summary>
# Pseudo-tokens between the parts, by a template; and a network that makes them, used in training
# only.
# </details>
#
# <details><summary>5. Why can two tasks share a batch with prompts, but not with two fully
# fine-tuned models?</summary> The weights are the same for both; only the input differs, row by
# row.
# </details>
#
# ## Where the papers say this
#
# * Lester et al., arXiv 2104.08691: equation (1) in section 2; random, vocabulary and class-label
#   starts in section 3.2; that it "becomes more competitive with scale" in the abstract; nearest
#   neighbours of prompts in section 7.
# * Liu et al., arXiv 2103.10385 (P-tuning): template and encoder in sections 3.1 and 3.2
#   of its first version.
# * The survey (arXiv 2501.04040) treats both under one heading, together with P-tuning v2
#   (lesson 06).
#
# ## Where implementations differ
#
# * PEFT's P-tuning has no template: its pseudo-tokens always stand in front, so that it differs
#   from prompt tuning by the encoder alone.
#   Its default encoder is an MLP of three layers; the paper's is the LSTM.
# * PEFT's random start is N(0, 1), the paper's U(−0.5, 0.5); the default here is words.
# * PEFT returns logits for the prompt's positions, too, and counts the first token's prediction
#   in the loss. Here virtual tokens never show.
#
# ## The real call
#
# The same with Hugging Face's PEFT, for a `model` of transformers:
#
# ```python
# from peft import PromptEncoderConfig, PromptTuningConfig, get_peft_model
#
# config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20)     # random vectors
# # prompt_tuning_init="TEXT", prompt_tuning_init_text="…", tokenizer_name_or_path=…: from words
# # P-tuning: PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=6, …)
# tuned = get_peft_model(model, config)
# tuned.print_trainable_parameters()
# # … train as always, with a rate of 0.1 or so …
# tuned.save_pretrained("prompt")                                               # P × d numbers
# ```
#
# **Now you can** put trained vectors anywhere into a frozen model's input, read its predictions
# at the right places, and say what they cost.
# Next: [06 · Prefix tuning](06_prefix.ipynb) gives every layer its own.
