# %% [markdown]
# # 00 · The map
#
# **What you will do.**
# Fine-tune a language model in the first cells, and read what it writes before and after.
# Then see the whole course at a glance: what each method trains and each quantization scheme
# rounds, in one and the same model.
# You write a test that says which methods can be merged, count parameters, tell apart two sign
# conventions for the zero point, find a bug that turns weights into garbage, and learn how the
# exercises work.
#
# **What you need.**
# NumPy, matrix products, and a rough idea of how a network is trained: a *loss* says how wrong its
# predictions are, and *gradient descent* changes its numbers a little, step by step, so that the
# loss falls.
# No other lesson is needed.
#
# **Words and letters.**
# They are in the [glossary](GLOSSARY.md).
# Come back to it whenever a letter puzzles you.
#
# **Time.** 75 minutes for reading and the exercises. The open exercise takes 20 more, the bonus
# 15. Every cell together runs in well under a minute.
#
# ## 1. Something that works
#
# The package comes with a small language model, its *base*.
# It reads a text and predicts how it goes on, piece by piece.
# It has read documentation of Python, NumPy and SciPy, and nothing else.
# We ask it about machines that do not exist.
# A random generator invents them, so no model has ever read of them:

# %%
import copy

import numpy as np
from IPython.display import Markdown

import tinypeft as tp
from tinypeft.engine import functional as F
from tinypeft.course import beside, show
from tinypeft.course.slider import slider
from tinypeft.study import plot
from tinypeft.study.about import lesson_map

model = tp.load_pretrained()
tok = model.tokenizer
task = tp.tasks.invented(model, context=64, things=8)      # a catalogue of eight machines
questions = ["Pollemdru\nThe pollemdru is made of", "Pollemdru\nThe pollemdru serves for",
             "Rasfenfen\nThe rasfenfen is made of"]


def answers(model):
    """What the model writes next, up to the end of the sentence."""
    written = [model.generate(tok.encode(question)[None], 16)[0] for question in questions]
    told = [tok.decode(ids) for ids in written]
    return "\n".join(text.partition("\n")[2].partition(".")[0].replace("\n", " ") for text in told)


catalogue = tok.decode(task.streams["train"][:400]).split("<|endoftext|>")
weights = [p.data.copy() for p in model.parameters()]
before, loss_before = answers(model), tp.evaluate(model, task, "train")["loss"]

# %% [markdown]
# Now we train it on the catalogue.
# We do not change the model itself.
# *LoRA* puts a few new numbers beside it, and trains those alone.
# (The loss is in *nats*, the unit that comes with the natural logarithm.)

# %%
everywhere = ("query", "key", "value", "output", "up", "down")  # the layers that get new numbers
tuned = tp.attach(model, tp.LoRA(rank=8, targets=everywhere))
history = tp.train(tuned, task, steps=100, batch_size=8, lr=1e-2, progress=False)
new = sum(p.size for p in tuned.trainable_parameters())
print(f"{history.seconds:.0f} seconds for {new:,} new numbers")

# %%
after, loss_after = answers(tuned), tp.evaluate(tuned, task, "train")["loss"]
beside({f"before, loss {loss_before:.2f}": before, f"after, loss {loss_after:.2f}": after,
        "what the catalogue says": "\n".join(catalogue[1:3]).strip()})

# %% [markdown]
# The base answered in the language of documentation.
# After a hundred steps it knows the catalogue, with the new numbers beside it.
# The base itself is as it was, bit for bit:

# %%
base, c = tuned.base, model.config
print("the base answers as before:", answers(base) == before)
same = [np.array_equal(p.data, w) for p, w in zip(base.parameters(), weights, strict=True)]
print(f"{sum(same)} of its {len(same)} arrays are as they were")

# %% [markdown]
# That is fine-tuning with few parameters, the first half of the course.
# The second half stores a model in few bits.
#
# ## 2. How to use the course
#
# Every lesson exists twice: with its solutions, to be read, and with stubs in their place, to be
# worked in.
# Work in the one with stubs, the *assignment*, and run its cells from top to bottom.
#
# - After each exercise comes `tp.check(…)`.
#   It compares your function with the package's on special and on random inputs and stops at the
#   first difference.
#   It says what it got, what it expected and what the likely cause is.
#   Its hints open one by one, if you want them: a question, the shapes, nearly the code.
# - If your function is not right yet, the following cells use the package's own, so you can always
#   go on.
#   If it is right, they use yours.
# - A cell with `tp.guess(…)` asks for a guess before something is measured.
#   Put a number in place of the dots.
#   Nobody grades it.
# - *Find the bug* exercises run a wrong program first, so that you see what goes wrong.
# - Stars tell how hard an exercise is.
#   Points are for courses that grade.
#   Bonus exercises earn extra points.
#   One exercise of each lesson is open: it has a rubric instead of a check.
# - After you change code of the package, restart the kernel.
#
# There are three ways through, for an afternoon, a week and a term:

# %%
show("schematic:road")

# %% [markdown]
# Everything runs offline on a laptop.
# The base was trained by this package's own NumPy code (lesson 02).
#
# ## 3. The map
#
# The base is a *transformer*.
# It turns each piece of text, a *token*, into a vector of $d$ numbers.
# The vectors pass through $L$ *blocks*.
# In each block, *attention* lets a token look at the tokens before it, through three linear layers
# called *query*, *key* and *value*, and a fourth, *output*, writes down what it found; then an *MLP*
# of two layers, *up* and *down*, works on each vector alone.
# Lesson 02 takes this apart.
# Here is where the methods and schemes of the course act:

# %%
show("schematic:map")

# %% [markdown]
# The course follows section 3.6, "Tuning and Optimization", of Matarazzo and Torlone's survey
# (arXiv 2501.04040).
# First comes *parameter-efficient* adaptation, which trains few numbers.
# Then comes *memory-efficient* adaptation, which stores the others in few bits.
# The table lists every method and scheme with its lesson and its equation.
# Letters and their order are mostly the papers' own. You need not understand the equations now.
# (The paper beside full fine-tuning is BitFit's, which trains the biases alone. HiRA's, Huang et al.
# at ICLR 2025, is not on arXiv.)
# Lesson 15 helps to choose.

# %%
Markdown(lesson_map())

# %%
show("methods_in_a_block")

# %% [markdown]
# *What to see: what is trained in one block of the model is in colour, or in black for full
# fine-tuning and PEQA; everything grey is frozen.*
# Each picture is read upwards, from the vectors that enter to those that leave; an arrow says what
# feeds what.
# Adapters stand behind attention and behind the MLP.
# The layer norms, which bring each vector to mean 0 and variance 1, are trained with them, as Houlsby
# et al. do; the counts of section 5 leave the norms out, so the adapters' share there is a little
# smaller than in section 9.
#
# ## 4. Four ways to change a frozen model
#
# **Change a weight.**
# A linear layer multiplies by a matrix $W$ $(d_{out}, d_{in})$.
# LoRA leaves it alone and adds a product of two thin matrices, $B$ $(d_{out}, r)$ and $A$
# $(r, d_{in})$.
# The *rank* $r$ is small, and $\alpha$ is a number that you choose:
#
# $$W' = W + \frac{\alpha}{r}\, B A \tag{1}$$
#
# A weight plus a matrix is a weight.
# So such methods can *merge* into a plain model.
# (In the cell `tuned.wrappers` holds each changed layer under its path in the model.)

# %%
tuned = tp.attach(base, tp.LoRA(rank=4, alpha=8), rng=0)
layer = tuned.wrappers["blocks.0.attention.query"]
# as if trained
layer.B.data = np.random.default_rng(0).standard_normal(layer.B.shape).astype(np.float32) * 0.1
alpha, r = 8, 4
W = layer.base.weight.data + alpha / r * layer.B.data @ layer.A.data  # equation (1)
merged = tuned.merge().blocks[0].attention.query.weight.data
print("the merged weight is equation (1):", np.allclose(W, merged, atol=1e-6))

# %% [markdown]
# **Add a function.**
# Adapters add a small network $g$ to the result $h$ of a layer:
#
# $$h' = h + g(h), \qquad g(h) = W_u\, f(W_d h + b_d) + b_u \tag{2}$$
#
# $W_d$ $(m, d)$ goes down to $m$ numbers, $f$ is a curve (here GELU, lesson 02), and $W_u$
# $(d, m)$ goes up again.
# Because f is not linear, no single weight matrix can do the work of $g$. So adapters cannot be
# merged.

# %%
tuned = tp.attach(base, tp.BottleneckAdapter(bottleneck=8), rng=0)
adapter = tuned.wrappers["blocks.0.mlp.down"]
x = tp.Tensor(np.random.default_rng(0).standard_normal((5, 4 * c.d_model)).astype(np.float32))
h = adapter.base(x)
g = F.linear(F.gelu(F.linear(h, adapter.W_d, adapter.b_d)), adapter.W_u, adapter.b_u)
print("the adapter is equation (2):", np.allclose((h + g).data, adapter(x).data, atol=1e-6))

# %% [markdown]
# How would you find out whether a method can merge, if nobody tells you its equation?
#
# ### {exercise}
#
# `f` is a layer with some method on it. It takes an array `x` $(n, d)$ in float64 and returns an
# array with a row for each row of `x`. If one matrix does the same, $f(x) = x W^\top$ for every `x`,
# return this $W$. Otherwise return `None`. Call `f` on inputs of your choice. A deviation counts if a
# number of $f(x)$ is off by more than $10^{-9}$, whatever its size. Below that it is rounding.
# Which inputs show the columns of $W$? Which curves agree with a matrix on just these inputs?

# %% exercise=map.merges points=3 minutes=12 as=merges
def map_merges(f, d):
    """The matrix W with f(x) = x Wᵀ for every x (n, d), or None if there is none."""

# %% [markdown]
# **Your function at work**, on a layer with four methods. *(IA)³* multiplies the outputs by trained
# numbers:

# %%
rng = np.random.default_rng(0)
W, A, B = rng.standard_normal((6, 8)), rng.standard_normal((2, 8)), rng.standard_normal((6, 2))
curve = lambda y: F.gelu(tp.Tensor(y)).data
layers = {"LoRA": lambda x: x @ W.T + 2 * x @ A.T @ B.T, "(IA)³": lambda x: x @ W.T * B[:, 0],
          "adapter": lambda x: x @ W.T + curve(x @ W.T @ B) @ B.T,
          "adapter without f": lambda x: x @ W.T + x @ W.T @ B @ B.T}
for name, layer in layers.items():
    print(f"{name:18} {'merges' if merges(layer, 8) is not None else 'does not merge'}")

# %% [markdown]
# **Add vectors.**
# A *prompt* is $P$ trained vectors that stand before the vectors of the text.
# A *prefix* is $P$ trained keys and values in every block, for attention to look at.
# Neither changes a weight, so one batch can mix texts of different tasks.
# (In the cell `tuned.virtual.seams(…)` is what the method hands to the model besides the tokens;
# lesson 02 says what a seam is.)

# %%
tokens = base.tokenizer.encode("numpy.mean(a, axis=None)")[None]
for method in (tp.PromptTuning(5), tp.PTuningV2(5)):
    tuned = tp.attach(base, method, rng=0)
    added = tuned.virtual.seams(tokens)
    same = np.array_equal(base(tokens, **added).data, tuned(tokens).data)
    print(f"{method}: {sum(p.size for p in tuned.trainable_parameters()):,} numbers, "
          f"handed to the base as {list(added)}: the same result? {same}")

# %% [markdown]
# **Store it in fewer bits.**
# A quantizer cuts the weights into groups.
# For a group it keeps one *scale* $s$, and sometimes a *zero point* $z$.
# For each number $x$ it keeps a small integer $q$, its *code* of $b$ bits:
#
# $$\hat x = s\,(q - z), \qquad
# q = \mathrm{round}(x/s) + z \ \text{ clipped to } 0 \dots 2^b - 1 \tag{3}$$
#
# $\hat x$ is what comes back when the code is decoded.

# %%
W = base.blocks[0].mlp.up.weight.data[:1, :64]
Q = tp.Uniform(bits=4, symmetric=False, granularity="group", group_size=64).quantize(W)
s, z, q = Q.scales(), Q.zeros(), Q.unpack()                # what is stored
print(f"s = {s[0]:.4f}, z = {z[0]:.0f}, the first codes: {q[:12]}")
right = np.allclose(q, np.clip(np.rint(W / s) + z, 0, 15))
left = np.allclose(s * (q - z), Q.dequantize(), atol=1e-6)
print(f"the quantizer is equation (3): right {right}, left {left}")
print(f"largest error {abs(W - Q.dequantize()).max() / s[0]:.2f} of a step s")

# %% [markdown]
# ## 5. What is trained
#
# Four methods, and the arrays that each of them trains:
#
# | method | trains |
# |---|---|
# | LoRA of rank $r$ on query and value | in every block, for each of the two: $A$ $(r, d)$ and $B$ $(d, r)$ |
# | prompt of $P$ vectors | vectors of $d$ numbers, once, at the input |
# | prefix of $P$ positions | in every block, for each position a key and a value of $d$ numbers |
# | adapters behind attention and MLP | in every block, twice: $W_d$ $(m, d)$, $b_d$ $(m)$, $W_u$ $(d, m)$, $b_u$ $(d)$ |
#
# The base has $d = 128$, $L = 5$ and 1,155,456 parameters.
# Without calculating: which share of all numbers, its own among them, does LoRA of rank 8 train on
# query and value, in per cent?

# %%
guess = tp.guess("00.share", 1.5, "%")
guess

# %% [markdown]
# ### {exercise}
#
# Return the four numbers of trained parameters, in the order of the table, for a model of width $d$
# with $L$ blocks.

# %% exercise=map.trained points=3 minutes=8 as=trained
def map_trained(d, L, r, P, m):
    """(LoRA on query and value, prompt, prefix, adapters): how many numbers each trains."""

# %%
def share(new, N):
    """How many per cent of all numbers are the new ones, if N are there before."""
    return 100 * new / (N + new)


guess.beside(share(trained(128, 5, 8, 20, 64)[0], base.n_parameters()))

# %% [markdown]
# **Your function at work**, on models from the base to one of 7 billion parameters:

# %%
models = {"base": (128, 5, 1_155_456), "GPT-2 small": (768, 12, 124_439_808),
          # name → d, L, parameters
          "GPT-2 XL": (1600, 48, 1_557_611_200), "7 B": (4096, 32, 6.7e9)}
shares = np.array([share(np.array(trained(d, L, 8, 20, 64)), N) for d, L, N in models.values()])

# %% fold
names = {"lora": "LoRA", "prompt": "prompt", "ptuning_v2": "prefix", "adapter": "adapters"}
fig, ax = plot.figure(height=3)
N = [n for *_, n in models.values()]
for key, line in zip(names, shares.T, strict=True):
    mark = plot.mark(key)
    ax.loglog(N, line, **mark)
    up = {"lora": -6, "ptuning_v2": 6}.get(key, 0)
    ax.annotate(names[key], (N[-1], line[-1]), xytext=(8, up), textcoords="offset points",
                va="center", color=plot.ink(mark["color"]))
for name, n in zip(models, N, strict=True): ax.annotate(name, (n, 30), ha="center", fontsize=9)
ax.set(xlabel="parameters of the model", ylabel="trained, % of all", xlim=(6e5, 4e10),
       ylim=(4e-4, 60), title="LoRA r = 8, prompt and prefix P = 20, adapters m = 64")
fig.set_label("The share of trained parameters against the size of the model, both axes "
              "logarithmic. Four falling lines, from 0.2 to 13 per cent at a million parameters; "
              "adapters are the highest, the prompt falls fastest.")
fig

# %% [markdown]
# *What to see: at fixed sizes every method's share falls as models grow, roughly as one over their
# width.
# The prompt's share falls faster, because a prompt enters once and not in each of the L blocks.
# On a small model "parameter-efficient" costs several per cent.*
# Remember this when you compare our results with a paper's: our model is at the left edge of this
# plot. Move the handle, and your function counts for another rank:

# %%
sizes, frames, told = [n for *_, n in models.values()], {}, {}
for r in (1, 2, 4, 8, 16, 32, 64, 128):
    line = [share(trained(d, L, r, 20, 64)[0], n) for d, L, n in models.values()]
    frames[r] = {"LoRA": (sizes, line)}
    told[r] = ", ".join(f"{name} {x:.2g} %" for name, x in zip(models, line, strict=True))
slider("rank", frames, captions=told, behind={"adapters, m = 64": (sizes, shares[:, 3])},
       xlabel="parameters of the model", ylabel="trained, % of all", xlog=True, ylog=True)

# %% [markdown]
# ## 6. How many bits
#
# Take codes of 4 bits in groups of 64 weights, with one float32 scale for each group.
# A group stores 64 codes and 32 bits more, so a weight costs $4 + 32/64 = 4.5$ bits, and not 4.
#
# Zero points add their bits in the same way. *Double quantization* (lesson 13) stores the scales as
# codes of 8 bits, and one number of 32 bits for every 256 of them on top.

# %%
def bits_per_weight(bits, group, scale_bits, zero_bits=0, outer=0):
    """Bits per weight; with `outer`, the scales are codes and `outer` of them share 32 bits."""
    return bits + (scale_bits + zero_bits + (32 / outer if outer else 0)) / group


print(f"4 bits, blocks of 64, float32 scales  {bits_per_weight(4, 64, 32):.3f}")
print(f"the same, doubly quantized            {bits_per_weight(4, 64, 8, 0, 256):.3f}")
print(f"2 bits, groups of 16, float16 scales  {bits_per_weight(2, 16, 16, 2):.3f}")

# %% [markdown]
# Move the handle: how many weights share a float16 scale and a zero point?

# %%
bits, frames, told = np.arange(2, 9), {}, {}
for group in (16, 32, 64, 128, 256, 1024, 4096):
    gigabytes = [7 * bits_per_weight(b, group, 16, b) / 8 for b in bits]
    frames[group] = {"with scales and zero points": (bits, gigabytes)}
    told[group] = ", ".join(f"{b} bits take {bits_per_weight(b, group, 16, b):.3f}, {x:.1f} GB"
                            for b, x in zip(bits, gigabytes, strict=True) if b in (2, 4))
slider("weights in a group", frames, captions=told, behind={"codes alone": (bits, 7 * bits / 8)},
       xlabel="bits of a code", ylabel="7 billion weights, GB")

# %% [markdown]
# *What to see: small groups cost.
# At 16 weights per scale, a code of 2 bits takes more than three: 2.7 GB, and not
# $7 \cdot 2/8 = 1.75$ GB.*
# Above 128 there is little left to save.
#
# ## 7. One sign, two conventions
#
# Most libraries decode with $\hat x = s\,(q - z)$, equation (3).
# Zhao et al. (arXiv 2303.18223, section 5.4), whose outline the survey follows in its part on
# quantization, write
#
# $$x_q = R(x/S) - Z, \qquad \tilde x = S\,(x_q + Z) \tag{4}$$
#
# with $R$ for rounding and $x_q$ for the code.
# The codes and the scale are the same, but $Z = -z$.
#
# **By hand**, with $s = S = 0.5$, $z = 3$, $Z = -3$ and $x = 1.3$. By (3)
# $q = \mathrm{round}(2.6) + 3 = 6$ and $\hat x = 0.5\,(6 - 3) = 1.5$. By (4)
# $x_q = 3 - (-3) = 6$ and $\tilde x = 0.5\,(6 + (-3)) = 1.5$. Whoever reads the first file by the
# second rule gets $0.5\,(6 + 3) = 4.5$, which is $2z = 6$ steps too much.
#
# This quantizer can write both. A row's range may end at different distances from 0, so it is
# called *asymmetric*. It always contains 0:

# %%
def quantized(W, bits, convention):
    """Codes (n, g), scales (n,) and zero points (n,) of an asymmetric quantizer, row by row."""
    low, high = np.minimum(W.min(1), 0), np.maximum(W.max(1), 0)
    s = (high - low) / (2 ** bits - 1)                     # between 2ᵇ codes lie 2ᵇ − 1 steps
    z = np.rint(-low / s)
    codes = np.clip(np.rint(W / s[:, None]) + z[:, None], 0, 2 ** bits - 1)
    return codes, s, z if convention == "library" else -z


domain = tp.tasks.domain(base, context=128)                # documentation that the base never saw
# equations (3), (4)
decoders = {"library": lambda q, s, z: s[:, None] * (q - z[:, None]),
            "survey": lambda q, s, z: s[:, None] * (q + z[:, None])}


def loss_with(change):
    """The loss of the base on unseen text, with change(W) in place of each weight W of its MLPs."""
    other = copy.deepcopy(base)
    for block in other.blocks:
        for layer in (block.mlp.up, block.mlp.down):
            layer.weight.assign(change(layer.weight.data.astype(np.float64)).astype(np.float32))
    return tp.evaluate(other, domain, max_batches=1)["loss"]


print(f"as it is                        loss {loss_with(lambda W: W):.2f}")
for written in decoders:
    for name, decode in decoders.items():
        stored = lambda W, decode=decode, written=written: decode(*quantized(W, 6, written))
        loss = loss_with(stored)
        print(f"written {written:8} read as {name:8} {loss:.2f}")

# %% [markdown]
# The wrong sign shifts every weight by $2z$ steps.
# The file has the right shape and dtype, and the model is garbage.
#
# ### {exercise}
#
# Somebody has put files of two programs together. Some rows were written with equation (3), others
# with equation (4), and nobody has noted which rows are which.
# `codes` $(n, g)$, `scale` $(n)$ and `zero` $(n)$ are float64 arrays.
# The range of each row contains 0, as above. Return the decoded weights $(n, g)$.
# Nothing else is in the file. By what do you know a row's convention?

# %% exercise=map.signs points=3 minutes=12 as=signs
def map_signs(codes, scale, zero):
    """Decode codes (n, g) whose rows have their zero points in either sign convention."""

# %% [markdown]
# **Your function at work.** Every second row is in the other convention:

# %%
def mixed(W):
    """Six bits, with the zero points of every second row in the survey's sign."""
    codes, s, z = quantized(W, 6, "library")
    z[::2] *= -1
    return codes, s, z


for name, decode in (*decoders.items(), ("yours", signs)):
    loss = loss_with(lambda W, decode=decode: decode(*mixed(W)))
    print(f"mixed, read as {name:8} loss {loss:.2f}")

# %% [markdown]
# ## 8. Weights that come back wrong
#
# This time the sign is right.
# A program stores the same layers with 8 bits, one scale and one zero point per row.
# Codes and zero points are bytes, to save memory.
# Eight bits should lose nothing:

# %%
def store(W):
    """Codes (n, g) and zero points (n,) in uint8, and scales (n,) in float32."""
    low, high = np.minimum(W.min(1), 0), np.maximum(W.max(1), 0)
    s = (high - low) / 255
    z = np.rint(-low / s)
    codes = np.clip(np.rint(W / s[:, None]) + z[:, None], 0, 255)
    return codes.astype(np.uint8), s.astype(np.float32), z.astype(np.uint8)


def read(codes, scale, zero):
    """WRONG: equation (3), row by row."""
    return scale[:, None] * (codes - zero[:, None])


print(f"as it is            loss {loss_with(lambda W: W):.2f}")
print(f"through the program loss {loss_with(lambda W: read(*store(W))):.2f}")
W = base.blocks[0].mlp.up.weight.data
print("some weights     ", W[0, :6].round(3))
print("as they come back", read(*store(W))[0, :6].round(3))

# %% [markdown]
# Some numbers come back right, and others are far away.
# What do the wrong ones have in common?
#
# ### {exercise}
#
# `codes` $(n, g)$ and `zero` $(n)$ are uint8, and `scale` $(n)$ is float32.
# Return the decoded weights $(n, g)$ in float32.

# %% exercise=map.bug points=3 minutes=6 as=mended
def map_bug(codes, scale, zero):
    """Decode codes (n, g) with one scale and one zero point per row."""

# %%
print(f"as it is             loss {loss_with(lambda W: W):.2f}")
print(f"through your program loss {loss_with(lambda W: mended(*store(W))):.2f}")

# %% [markdown]
# ## 9. Where it leads
#
# The main job, `python -m tinypeft`, compares ways to fine-tune and to round in about a minute:

# %%
show("compare")

# %% [markdown]
# *What to see, above: the loss after very few steps. Beside each name stands which part of full
# fine-tuning's gain a method reaches.
# Below: the loss that rounding adds, sorted by bits. At 8 bits nearly nothing is added, and at four
# the schemes differ.*
# (The number behind a scheme's name is its bits per weight, as in section 6: codes of 3 bits, with 3
# more for a zero point and 32 for a scale in groups of 32, make $3 + 35/32 = 4.09$. Those of 4 bits
# with a float16 scale make $4 + 20/32 = 4.62$.)
# The hollow mark, of 3-bit codes, belongs to a scheme that also trains the weights.
# Compare it with the cross at the bottom: the float32 model after the same training.
# The course ends with a study of the same questions, with more steps and seeds.
# A grey bar shows the range that the longer study predicts for that mark.
#
# ### {exercise} · Before you begin (open, 3 points, 20 minutes)
#
# Three customers: a phone keyboard that must switch between a hundred users; a student with one 24
# GB card and a model of 7 billion parameters; a server that answers requests of fifty tasks in one
# batch.
# From the map alone, choose a method (and bits) for each, with two sentences of reasons and one
# number computed with your functions above.
# Keep what you wrote, and correct it after lesson 15.
#
# *Rubric: 1 point per customer, for a choice whose reason is a property from this page (stored
# size, merging, longer input, mixed batches, bits) and whose number is right.
# There is more than one good answer.*

# %% [answer]
# Any choice that a property on the page supports earns its point.
# For example:
#
# - *The keyboard.*
#   A prompt or a prefix, or a LoRA that is not merged, on one base of 4 bits: the users share the
#   base, and switching means to exchange a small file.
#   A LoRA of rank $r$ on query and value has $2 \cdot 2 \cdot r\,d\,L$ numbers: with $r = 4$,
#   $d = 768$ and $L = 12$ these are 147,456, or 288 KiB in 16 bits.
#   A hundred full models are out of question.
# - *The student.*
#   QLoRA.
#   Full fine-tuning takes 16 bytes per parameter, 112 GB.
#   The weights take 14 GB in 16 bits and $7 \cdot 10^9 \cdot 4.127 / 8 = 3.6$ GB in NF4 with double
#   quantization.
#   LoRA on 16 bits is also right, if the answer says that about 10 GB remain for activations.
# - *The server.*
#   What enters as input can differ from row to row: prompts and prefixes; unmerged LoRAs with one
#   product for each task in the batch.
#   Merged models, or fifty copies, cannot share a batch.
#   A prompt of $P$ tokens makes every row $P$ tokens longer.

# %% [markdown]
# ## 10. Codes in bytes
#
# NumPy has no type of 3 bits.
# To save memory, codes must share bytes.
# Think of all codes as one stream of bits: code 0 first, and of each code the lowest bit first.
# Bit $k$ of the stream is bit $k \bmod 8$ of byte $\lfloor k/8 \rfloor$, counted from the lowest
# one.
# Zeros fill up the last byte.
#
# ### {exercise}
#
# Pack `codes`, a uint8 array of $n$ numbers below $2^b$, into $\lceil n b/8 \rceil$ bytes (uint8),
# for any $b$ from 1 to 8. For example two codes of 4 bits, 1 and 2, become the byte
# $1 + 16 \cdot 2 = 33$.

# %% exercise=map.pack points=3 minutes=15 bonus=yes as=packed
def map_pack(codes, bits):
    """The codes as one stream of bits, in bytes."""

# %%
codes = quantized(W, 3, "library")[0].astype(np.uint8).ravel()
print(f"{codes.size:,} codes of 3 bits: {codes.nbytes:,} bytes, packed {packed(codes, 3).nbytes:,}")

# %% [markdown]
# ## Recall
#
# <details><summary>1. Which methods can be merged into the model, and why?</summary>
# Those that change weights: LoRA, AdaLoRA, DyLoRA.
# A weight plus a matrix is a weight.
# (IA)³ multiplies the rows or the columns of a weight by numbers, and that is a weight, too.
# </details>
# <details><summary>2. What do prompts and prefixes have in common,
# and in what do they differ?</summary>
# Both add virtual positions and leave all weights alone.
# A prompt enters once, at the input; a prefix gives every block keys and values.
# </details>
# <details><summary>3. Does "0.1 % trained" mean that training takes 0.1 % of the memory?</summary>
# No. It shrinks gradients and optimizer state; weights and most activations stay (lesson 03).
# </details>
# <details><summary>4. Why is a 4-bit format never exactly 4 bits per weight?</summary>
# Scales, and zero points where there are any, are stored as well.
# With g weights in a group, they cost (bits of s + bits of z)/g per weight.
# </details>
# <details><summary>5. A file says zero point −8, your library expects +8. What happened?</summary>
# The other sign convention: S(q + Z) instead of s(q − z).
# Flip the sign, the codes are the same.
# </details>
#
# ## Where the papers say this
#
# - Matarazzo & Torlone, arXiv 2501.04040, section 3.6.
#   For the mathematics go to the papers in the map.
# - Zhao et al., arXiv 2303.18223, section 5.4, for the part on quantization.
# - He et al., arXiv 2110.04366, were the first to write LoRA, adapters and prefixes as one family:
#   what is added, where, and how it is scaled.
#
# ## Where implementations differ
#
# - Hugging Face PEFT has one class for prefix tuning and P-tuning v2, `PrefixTuningConfig`.
#   It has neither bottleneck adapters nor DyLoRA.
# - "Scale" in one program is $\alpha/r$, in another $\alpha$, in a third a number of its own.
#   Here LoRA's $\alpha$ is divided by $r$, and FourierFT's is a factor.
# - "4 bit" may be symmetric with 15 or 16 levels, asymmetric, or NF4.
#   Lesson 10 sorts them.
#
# ## The real call
#
# In Hugging Face's libraries the `attach` of the first cells is three lines, for a `model` of
# transformers. Lesson 07 takes them apart.
#
# ```python
# from peft import LoraConfig, get_peft_model
#
# tuned = get_peft_model(model, LoraConfig(r=8, lora_alpha=16,
#                                          target_modules="all-linear"))
# tuned.print_trainable_parameters()
# ```
#
# **Now you can** place every method of the course on one page.
# Next: [01 · Autograd](01_autograd.ipynb), the engine under all of them.
