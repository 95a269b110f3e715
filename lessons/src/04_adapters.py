# %% [markdown]
# # 04 · Adapters, sequential and parallel
#
# **What you will do.** Freeze the model and put small trained networks between its layers.
# You write the adapter's forward pass and put it into the model.
# You predict from its start how far it disturbs the model before training, and derive its gradients.
# Three kinds of adapters learn facts, and you see how many of them each one knows.
# You turn a parallel adapter into additional units of the MLP beside it.
#
# **What you need.** Lesson 00 (the catalogue, and `tuned.wrappers`), lesson 02 (blocks, the residual
# stream) and lesson 03 (the bill).
#
# **Words and letters.** [The glossary](GLOSSARY.md) explains every word and letter of the course.
#
# **Time.** 80 minutes for reading and the exercises. The open exercise takes 35 more, the bonus
# 10. Every cell together runs in well under a minute.

# %%
import math

import numpy as np

import tinypeft as tp
from tinypeft.engine import functional as F
from tinypeft.course import beside, show, use
from tinypeft.course.slider import slider
from tinypeft.engine.nn import Linear, Module, replace_modules
from tinypeft.peft.adapter import Adapter, BottleneckAdapter
from tinypeft.peft.parallel import Parallel
from tinypeft.study import plot

base = tp.load_pretrained()
task = tp.tasks.invented(base, context=64, things=8)          # machines that do not exist
c, N = base.config, base.n_parameters()
tokens = task.batch("train", 8, np.random.default_rng(0))[0]  # (8, 64)
frozen_loss = tp.evaluate(base, task, "train")["loss"]
print(f"{N:,} parameters; on the catalogue the frozen base has {frozen_loss:.2f} nats per token")

# %% [markdown]
# ## 1. A detour with a shortcut
#
# Full fine-tuning makes one copy of the model for each task.
# In 2019 Houlsby et al. (arXiv 1902.00751) left the model as it is and gave each task its own
# small modules *between* the layers. Such a module is an *adapter*.
# It stands behind a sublayer, which is the attention or the MLP, and reads its output $h$, $d$
# numbers per token. It maps them *down* to $m$ numbers, where $m$ is much smaller than $d$.
# It applies a nonlinearity $f$. It maps the result *up* to $d$ numbers, and adds that to $h$.
#
# The narrow middle is why it is called a *bottleneck*.
# The addition is why it works: if the detour gives zero, the model is the old one.
# The schematic shows a *sequential* adapter, which stands behind, and a *parallel* one, which
# stands beside:

# %%
show("schematic:adapters")

# %% [markdown]
# **By hand.**
# Take $d = 2$, $m = 1$, no biases, and a ReLU for $f$ (it makes negative numbers zero).
# Down: $W_d = (1,\ -1)$. Up: $W_u = (0.5,\ 0)^\top$.
#
# * For $h = (3, 1)$: down gives $3 - 1 = 2$, $f(2) = 2$, up gives $(1, 0)$. The sum is $(4, 1)$.
# * For $h = (1, 3)$: down gives $-2$, $f(-2) = 0$, up gives $(0, 0)$. The sum is $h$ itself.
#
# Without $f$ the second token would be changed as well, by $(-1, 0)$.
# Whatever a matrix adds for one $h$, it subtracts for $-h$. Because of $f$, an adapter can add
# something on one side only.
#
# ### {exercise}
#
# Write an adapter with $f$ = GELU and with biases on both ways.
# All arguments are Tensors: `h` $(\dots, d)$, `W_d` $(m, d)$, `b_d` $(m,)$, `W_u` $(d, m)$, `b_u`
# $(d,)$. Return a Tensor of the shape of `h`. Gradients must reach all five.
# `F.linear(x, W, b)` is $x W^\top + b$, and `F.gelu` is the activation.

# %% exercise=adapters.forward points=3 minutes=10 as=my_adapter
def adapters_forward(h, W_d, b_d, W_u, b_u):
    """h and, added to it, what the detour makes of it: a Tensor of the shape of h."""

# %% [markdown]
# <details><summary>The equation, to compare with yours</summary>
#
# $$h \leftarrow h + W_u\, f(W_d\, h + b_d) + b_u \tag{1}$$
#
# The survey that this course follows has an activation on the way up as well, and no addition.
# The paper and its code have no activation there, and they do have the addition.
# Equation (1) is the paper's.
#
# </details>

# %% [markdown]
# **Your adapter at work.** It takes the place of the package's in ten adapters of the model.
# Both train for 15 steps:

# %%
def my_layer(self, x):
    return my_adapter(self.base(x), self.W_d, self.b_d, self.W_u, self.b_u)


def losses_of(steps=15):
    tuned = tp.attach(tp.load_pretrained(), BottleneckAdapter(bottleneck=16), rng=0)
    return np.array(tp.train(tuned, task, steps, batch_size=2, seed=0, progress=False).loss)


theirs = losses_of()
with use(Adapter, forward=my_layer): mine = losses_of()
print("first and last loss", f"{mine[0]:.4f} {mine[-1]:.4f}",
      f"  largest difference from the package's: {abs(mine - theirs).max():.0e}")

# %% [markdown]
# Where do adapters go? Houlsby et al. put two into every block, one behind the attention's output
# and one behind the MLP, each before the result is added to the residual stream.
# They train the layer norms, too. Pfeiffer et al. (arXiv 2005.00247) found one, behind the MLP,
# to be enough, and left the norms alone. Here adapters stand among the other methods:

# %%
show("methods_in_a_block")

# %% [markdown]
# *What to see: a sequential adapter puts something **into** the path from block to block.
# A parallel adapter stands beside it, as a prefix does, and LoRA changes matrices on it.*
#
# ## 2. How near is "near the identity"?
#
# Both matrices start as small random numbers, and the biases as zeros. *Small* matters: drawn
# thirty times larger than in the paper, ten adapters make the model begin at 8.7 nats in place of
# 5.3, and training first has to repair that.
# The paper draws from a normal distribution of standard deviation $\sigma_0$ and cuts it off at
# $2\sigma_0$, and the package does the same.
# The truncated distribution has the standard deviation $\sigma = 0.88\,\sigma_0$.
# How large is the detour then, relative to $h$? The answer takes three lines.
# In each, use that a sum of independent numbers has the sum of their variances.
#
# 1. *Down.* Number $k$ of the middle is $y_k = \sum_j W_{d,kj}\, h_j$.
#    Its variance is $\sigma^2 \lVert h \rVert^2$.
#    There are $m$ of them, so $\lVert y \rVert \approx$ …
# 2. *Bend.* Near zero, GELU is $y/2$. So $\lVert f(y) \rVert \approx$ …
# 3. *Up.*
#    Each of $d$ numbers is a sum over $f(y)$, with variance $\sigma^2 \lVert f(y) \rVert^2$.
#    So $\lVert W_u f(y) \rVert \approx$ …
#
# Fill in the three. Then predict: with $\sigma_0 = 0.01$, $m = 64$ and $d = 128$, how large is
# what an adapter adds, in per cent of $h$?

# %%
guess = tp.guess("04.detour", 0.35, "%")

# %%
class Meter(Module):
    """An adapter that notes how large what it adds is, relative to what comes in."""

    def __init__(self, adapter): self.adapter, self.base = adapter, adapter.base

    def forward(self, x):
        h, out = self.base(x), self.adapter(x)
        self.size = np.linalg.norm(out.data - h.data) / np.linalg.norm(h.data)
        return out


def sizes(tuned):
    """path → how much each adapter adds, relative to the sublayer's output, on test tokens."""
    meters = {path: Meter(adapter) for path, adapter in tuned.wrappers.items()}
    replace_modules(tuned.model, meters)
    with tp.no_grad(): tuned(tokens)
    replace_modules(tuned.model, tuned.wrappers)
    return {path: meter.size for path, meter in meters.items()}


stds, added, losses = (0.001, 0.01, 0.03, 0.1, 0.3), [], []
for std in stds:
    tuned = tp.attach(base, BottleneckAdapter(bottleneck=64, init_std=std), rng=0)
    added.append(np.mean(list(sizes(tuned).values())))
    losses.append(tp.evaluate(tuned, task, "train")["loss"])
guess.beside(100 * added[stds.index(0.01)])

# %% [markdown]
# <details><summary>The three lines</summary>
#
# $\lVert y \rVert \approx \sqrt m\, \sigma \lVert h \rVert$, then
# $\lVert f(y) \rVert \approx \tfrac12 \sqrt m\, \sigma \lVert h \rVert$, then
#
# $$\frac{\lVert W_u f(W_d h) \rVert}{\lVert h \rVert} \approx \frac{\sigma^2 \sqrt{m\,d}}{2}
# \tag{2}$$
#
# With $\sigma = 0.0088$ this is 0.35 %. It grows with the *square* of $\sigma$.
# The paper has $\sigma_0 = 0.01$.
# Its code has 0.001, with which the detour is a hundred times smaller.
#
# </details>

# %% fold
predicted = [(0.88 * std) ** 2 * math.sqrt(64 * c.d_model) / 2 for std in stds]   # equation (2)
fig, (left, right) = plot.figure(1, 2, height=2.7)
left.loglog(stds, predicted, color=plot.COLOURS["grey"], ls="--")
left.loglog(stds, added, "P", color=plot.COLOURS["vermillion"])
left.set(xlabel="σ₀ at the start", ylabel="detour relative to h",
         title="Equation (2), dashed, and measured")
right.semilogx(stds, losses, "P-", color=plot.COLOURS["vermillion"])
right.axhline(losses[0], color=plot.COLOURS["grey"], ls="--")
right.set(xlabel="σ₀ at the start", ylabel="loss, nats per token",
          title="The model before any training")
fig.set_label("Left: the relative size of the detour against the start σ₀, both axes logarithmic; "
              "what is measured follows the dashed line of equation 2. Right: the loss before "
              "training is level up to 0.03, a little higher at 0.1 and far higher at 0.3.")
fig

# %% [markdown]
# *What to see: with a small $\sigma_0$ the model does not notice ten fresh adapters. At 0.3 their
# output is larger than the model's own.* Move the handle. Your adapter gets one vector $h$ of 128
# numbers, with $m = 64$. Drawn are the sizes of $h$'s numbers, and of what the detour adds:

# %%
rng, zeros = np.random.default_rng(0), np.zeros(c.d_model)
h, W_d, W_u = (rng.standard_normal(n) for n in ((1, c.d_model), (64, c.d_model), (c.d_model, 64)))
place, frames, told = np.arange(c.d_model), {}, {}
for std in (0.01, 0.03, 0.05, 0.1, 0.2, 0.3):
    arrays = (h, std * W_d, zeros[:64], std * W_u, zeros)
    out = my_adapter(*(tp.Tensor(a.astype(np.float32)) for a in arrays)).data
    frames[std] = {"detour": (place, np.sort(abs(out - h)[0]))}
    told[std] = (f"the detour is {100 * np.linalg.norm(out - h) / np.linalg.norm(h):.3g} % of h, "
                 f"by equation (2) {50 * std ** 2 * math.sqrt(64 * c.d_model):.3g} %")
slider("σ", frames, captions=told, behind={"h": (place, np.sort(abs(h[0])))}, ylog=True,
       xlabel="number, the least first", ylabel="size")

# %% [markdown]
# (Nothing is cut off here: $\sigma$ is what you set, and not 0.88 of it.) For a large $\sigma$ more
# comes out than equation (2) says: GELU is $y/2$ near zero only. For a large $y$ it is $y$ itself
# or 0, and in line 2 the half becomes $1/\sqrt2$ on average, 1.41 times as much. This one draw, of
# 64 numbers, is 7 % above equation (2) at 0.01 already, and 1.51 times at 0.3.
#
# ## 3. Why not start at zero?
#
# A detour of exactly zero would be simplest. Two starts give it: both matrices zero, or only one of
# them. The gradients tell which start can learn.
#
# ### {exercise}
#
# Take an adapter without biases and with a ReLU, $y = h + W_u\, \max(W_d\, h,\ 0)$ for each row.
# Derive its gradients on paper, with the rule of lesson 01 for $Y = Z M^\top$ twice. The slope of
# the ReLU is 1 where its input is positive, and 0 elsewhere. Return `(dh, dW_d, dW_u)` from `h`
# $(N, d)$, `W_d` $(m, d)$, `W_u` $(d, m)$ and `dy` $(N, d)$, all NumPy arrays.

# %% exercise=adapters.backward points=3 minutes=12 as=my_backward
def adapters_backward(h, W_d, W_u, dy):
    """(dh, dW_d, dW_u) of y = h + W_u max(W_d h, 0), from dy."""

# %% [markdown]
# Now four starts: both matrices random, only $W_u$ zero, only $W_d$ zero, both zero. Each has two
# gradients, of $W_d$ and of $W_u$. Predict from your equations: how many of the eight are zero?

# %%
guess = tp.guess("04.zeros", 4, "of 8")

# %%
zero = 0
rows, dy = rng.standard_normal((2, 32, c.d_model))
for start, (down, up) in {"both random": (0.01, 0.01), "up zero": (0.01, 0), "down zero": (0, 0.01),
                          "both zero": (0, 0)}.items():
    _, dW_d, dW_u = my_backward(rows, down * W_d, up * W_u, dy)
    sizes_of = [np.linalg.norm(g) for g in (dW_d, dW_u)]
    zero += sizes_of.count(0)
    print("{:12} ‖dW_d‖ = {:6.2f}   ‖dW_u‖ = {:6.2f}".format(start, *sizes_of))
guess.beside(zero)

# %% [markdown]
# With both at zero no gradient flows: $dW_u$ contains what comes down, and $dW_d$ contains $W_u$.
# With $W_u$ alone at zero, $dW_u$ is there from the first step, and then $W_d$ follows. The next
# kind of adapter starts so. (With a ReLU and $W_d = 0$ nothing moves either: its slope at 0 is 0.)
#
# What is trained? $W_d$, $W_u$ and the biases of $n$ adapters, $n = 2L$ for Houlsby and $L$ for
# Pfeiffer; Houlsby's placement also trains all $2L + 1$ norms:
#
# $$N_\text{trained} = n\,(2dm + m + d)\ \ [\,+\ 2d\,(2L + 1)\,] \tag{3}$$

# %%
for m in (4, 16, 64):
    n = 2 * c.n_layers * (2 * c.d_model * m + m + c.d_model) + 2 * c.d_model * (2 * c.n_layers + 1)
    tuned = tp.attach(base, BottleneckAdapter(bottleneck=m, norms=True))
    bill = tuned.summary()
    print(f"m = {m:2}: {n:8,} by equation (3), {bill.trained:8,} in the model, "
          f"{100 * n / N:5.2f} % of the base, {100 * bill.share:5.2f} % of base and adapters")

# %% [markdown]
# ## 4. Beside instead of behind
#
# A sequential adapter makes the model deeper: its two products have to wait for the sublayer.
# He et al. (arXiv 2110.04366) put the same bottleneck *beside* the sublayer.
# It reads the input $x$ of the sublayer, and its result, times a fixed number $s$ (4 in the
# paper), is added to the sublayer's output:
#
# $$h \leftarrow \mathrm{MLP}(x) + s\,\big(W_{up}\, f(W_{down}\, x + b_{down}) + b_{up}\big)
# \tag{4}$$

# %%
show(Parallel.forward)

# %% [markdown]
# $W_{up}$ and $b_{up}$ start at zero, so the model starts unchanged, exactly.
# (The paper writes $x W$, without biases and with $W_{down}$ as $(d, m)$.
# The authors' code has biases.)
#
# Look at equation (4) once more. The MLP itself is $W_2\, f(W_1 x + b_1) + b_2$.
# It reads $4d$ features from $x$, bends them, and writes back.
# The adapter does the same with $m$ features.
# If it has the same $f$, it *is* $m$ additional hidden units of the MLP.
#
# ### {exercise}
#
# The MLP's arrays are `W1` $(k, d)$, `b1` $(k,)$, `W2` $(d, k)$, `b2` $(d,)$.
# The adapter's are `W_down` $(m, d)$, `b_down` $(m,)$, `W_up` $(d, m)$, `b_up` $(d,)$, and the
# number `s`. Return the arrays `(W1, b1, W2, b2)` of *one* MLP with $k + m$ hidden units that
# computes equation (4), for every $x$ and with the same $f$.
# The adapter's units come after the MLP's.

# %% exercise=adapters.widen points=5 minutes=15 as=widen
def adapters_widen(W1, b1, W2, b2, W_down, b_down, W_up, b_up, s):
    """(W1, b1, W2, b2) of one MLP with k + m hidden units that computes MLP + s · adapter."""

# %% [markdown]
# **Your function at work**, on a whole model. The adapter gets the MLP's GELU in place of the
# paper's ReLU, and random numbers in its $W_{up}$, as if it had been trained:

# %%
tuned = tp.attach(base, tp.ParallelAdapter(bottleneck=16, activation="gelu"), rng=0)
rng, wide = np.random.default_rng(0), tp.load_pretrained()
for i, block in enumerate(wide.blocks):
    a, mlp = tuned.wrappers[f"blocks.{i}.mlp"], block.mlp
    a.W_up.data = 0.05 * rng.standard_normal(a.W_up.shape).astype(np.float32)
    old = (mlp.up.weight, mlp.up.bias, mlp.down.weight, mlp.down.bias)
    new = widen(*(p.data for p in (*old, a.W_down, a.b_down, a.W_up, a.b_up)), a.scale)
    new = [array.astype(np.float32) for array in new]
    mlp.up, mlp.down = Linear(c.d_model, len(new[1]), rng=0), Linear(len(new[1]), c.d_model, rng=0)
    (mlp.up.weight.data, mlp.up.bias.data, mlp.down.weight.data, mlp.down.bias.data) = new
with tp.no_grad():
    logits = tuned(tokens).data
    print(f"largest difference of the logits {abs(wide(tokens).data - logits).max():.0e}; "
          f"they are as large as {abs(logits).max():.0f}")

# %% [markdown]
# So a parallel adapter can be merged after all, into a model of another shape.
# `tuned.merge()` refuses, because it promises a plain model of the same shape.
# Remember this for lesson 07: LoRA is equation (4) without $f$, and *that* fits into the matrix
# that is there.
#
# ## 5. Train them
#
# Now three kinds learn the catalogue of lesson 00: eight machines that a generator has invented.
# Whatever a model knows of them it has learned here. Each kind trains about as many numbers for 100
# steps, at the better of two learning rates.

# %%
STEPS = 100


def learn(method, lr):
    """A fresh copy of the base with `method`, trained; its losses; its loss at the end."""
    tuned = tp.attach(tp.load_pretrained(), method, rng=0)
    history = tp.train(tuned, task, STEPS, batch_size=8, seed=0, lr=lr, progress=False)
    return tuned, np.array(history.loss), tp.evaluate(tuned, task, "train")["loss"]


kinds = {"Houlsby": (BottleneckAdapter(bottleneck=16), 2e-2),
         "Pfeiffer": (BottleneckAdapter(bottleneck=32, placement="pfeiffer", norms=False), 2e-2),
         "parallel": (tp.ParallelAdapter(bottleneck=32), 1e-2)}
runs = {name: learn(*kind) for name, kind in kinds.items()}
right = [fact for _, fact in task.taught]
answers = {"frozen base": task.answers(base),
           **{name: task.answers(tuned) for name, (tuned, _, _) in runs.items()}}
n_right = {name: sum(a == fact for a, fact in zip(said, right, strict=True))
           for name, said in answers.items()}
print(f"frozen base {frozen_loss:.2f} nats, {n_right['frozen base']} of {len(right)} answers right")
for name, (tuned, _, loss) in runs.items():
    print(f"{name:11} {loss:.2f} nats, {n_right[name]:2} of {len(right)} answers right, after "
          f"training {tuned.summary().trained:6,} numbers")

# %% fold
fig, ax = plot.figure(height=2.9)
looks = {"Houlsby": ("vermillion", "-"), "Pfeiffer": ("green", "--"), "parallel": ("blue", "-.")}
ends = []
for name, (_, losses, _) in runs.items():
    y, (colour, style) = np.convolve(losses, np.ones(10) / 10, "valid"), looks[name]
    ax.plot(np.arange(10, STEPS + 1), y, color=plot.COLOURS[colour], ls=style)
    ends.append((STEPS, y[-1], f"{name}: {n_right[name]} of {len(right)}", plot.COLOURS[colour]))
ax.set(xlabel="step (8 × 64 tokens each)", xlim=(8, STEPS + 32), xticks=range(20, STEPS + 1, 20),
       ylabel="loss on the catalogue,\nmean of 10 steps (nats/token)", yscale="log", ylim=(0.08, 5))
plot.plain_log(ax.yaxis)
plot.label_ends(ax, ends)
fig.set_label("The training losses of three kinds of adapters, on a logarithmic axis, fall from "
              "about 4 to about 0.2 nats in 100 steps. At each line's end stands how many of 16 "
              "answers are right.")
fig

# %% [markdown]
# *What to see: all three learn the catalogue.* With this seed Pfeiffer's five adapters know fewer
# facts than Houlsby's ten. It may be chance: two more seeds gave Houlsby 13 and 11, Pfeiffer 11 and
# 13. And what do they say?

# %%
ask = 0, 1, 4, 5, 8, 9
beside({"question": [task.taught[i][0].partition("\n")[2] + " …" for i in ask],
        **{name: [said[i] for i in ask] for name, said in answers.items()},
        "the catalogue": [right[i] for i in ask]})

# %% [markdown]
# The base answers in the language of documentation, which is all that it knows. The adapters answer
# with materials and uses, and half of the time or more with those of the right machine.
#
# For an order more than one seed is needed. The study trains on documentation, longer, at two widths
# and over four seeds, in nats per token:
#
# | $m$ | sequential | parallel | difference |
# |---|---|---|---|
# | 16 | {study adapters: sequential 16, loss, mean} | {study adapters: parallel 16, loss, mean} | {study adapters: sequential 16 - parallel 16, loss} |
# | 64 | {study adapters: sequential 64, loss, mean} | {study adapters: parallel 64, loss, mean} | {study adapters: sequential 64 - parallel 64, loss} |
#
# Here both kinds stand twice in a block, at attention and at the MLP, and the norms are frozen.
# (They still differ in activation, start and scale.) Parallel is a little lower at both sizes, and
# full fine-tuning is lower still. He et al. have the same order.
#
# What did the adapters learn to write? The meter of section 2, now after training:

# %%
written = {name: sizes(runs[name][0]) for name in ("Houlsby", "Pfeiffer")}
most = max(written["Houlsby"], key=written["Houlsby"].get)
print(f"largest: {most}, {100 * written['Houlsby'][most]:.0f} % of its sublayer's output")

# %% fold
fig, ax = plot.figure(height=2.5)
for i in range(c.n_layers):
    for place, shift, colour in (("attention.output", -0.17, "sky"),
                                 ("mlp.down", 0.17, "vermillion")):
        share = 100 * written["Houlsby"][f"blocks.{i}.{place}"]
        ax.bar(i + shift, share, width=0.3, color=plot.COLOURS[colour])
squares = [100 * written["Pfeiffer"][f"blocks.{i}.mlp.down"] for i in range(c.n_layers)]
ax.plot(range(c.n_layers), squares, "s", color="black")
ax.text(0.02, 0.93, "bars: Houlsby, behind attention (left) and MLP (right); squares: Pfeiffer",
        transform=ax.transAxes)
ax.set(xlabel="block", ylabel="added, % of the\nsublayer's output", xticks=range(c.n_layers),
       ylim=(0, 1.35 * 100 * max(max(w.values()) for w in written.values())))
fig.set_label("For each of five blocks, how much its adapters add, in per cent of the sublayer's "
              "output: bars for Houlsby's two, squares for Pfeiffer's one.")
fig

# %% [markdown]
# *What to see: every adapter began below one per cent, by equation (2). Facts need far more than
# that, in every block.*
#
# ## 6. A saved task that does not load correctly
#
# The promise is: one base, and for each task a small file. Here a colleague stores the file.
# "The adapters are what is not in the base", he says.
# He stores them, takes a fresh base next day, puts them on, and measures:

# %%
def files(model): return {name.replace(".base.", "."): a for name, a in model.state_dict().items()}


def stored_by_colleague(before, after):
    """The names of the arrays that go into the file."""
    return [name for name in after if name not in before]


def next_day(names, tuned):
    """The loss of a fresh base with fresh adapters, after the file was loaded."""
    fresh, after = tp.attach(tp.load_pretrained(), tuned.method, rng=1), files(tuned.model)
    fresh.model.load_state_dict({name: after[name] for name in names}, strict=False)
    return tp.evaluate(fresh, task, "train")["loss"]


tuned, _, test = runs["Houlsby"]
before, after = files(tp.load_pretrained()), files(tuned.model)
names = stored_by_colleague(before, after)
print(f"trained {test:.4f}, next day {next_day(names, tuned):.4f}, from {len(names)} arrays")

# %% [markdown]
# The loss is not what it was. No error was raised.
#
# ### {exercise}
#
# Write the mended function. `before` and `after` are dicts, name → array, of the base before
# training and of the model with adapters after training.
# Layers of the base have the same name in both.
# Return the list of all names that the file needs, and of no others, in the order of `after`.
# An array that training has moved by ever so little is needed.

# %% exercise=adapters.bug points=2 minutes=10 as=stored
def adapters_bug(before, after):
    """The names of the arrays without which the trained model cannot be rebuilt from the base."""
    ### BEGIN SOLUTION
    return [name for name, a in after.items()
            if name not in before or not np.array_equal(a, before[name])]
    ### END SOLUTION

# %%
names = stored(before, after)
print(f"trained {test:.4f}, next day {next_day(names, tuned):.4f}, from {len(names)} arrays")

# %% [markdown]
# PEFT has this trap, too: what is trained beside the method has to be named in `modules_to_save`.
#
# ## 7. Bonus: an adapter without its nonlinearity
#
# The points of this section are extra. Leave $f$ out of a sequential adapter.
# Then the layer before it and the adapter are linear, one after the other, and together they are
# *one* layer.
#
# ### {exercise}
#
# The layer before is $h = W x + b$, with `W` $(d, k)$ and `b` $(d,)$.
# The adapter without $f$ is $h + W_u (W_d h + b_d) + b_u$.
# Return the arrays `(W, b)` of one layer that does what both do.

# %% exercise=adapters.linear points=2 minutes=10 bonus=yes as=merged_layer
def adapters_linear(W, b, W_d, b_d, W_u, b_u):
    """(W, b) of one linear layer that computes the layer and the adapter without f behind it."""

# %%
rng = np.random.default_rng(0)
arrays = [rng.standard_normal(shape) for shape in ((64, 96), 64, (4, 64), 4, (64, 4), 64)]
change = merged_layer(*arrays)[0] - arrays[0]
print(f"the change of W {change.shape} has rank {np.linalg.matrix_rank(change)}")

# %% [markdown]
# The change has rank $m$. An adapter without $f$ is a low-rank change of the weight: lesson 07.
#
# ### {exercise} · Where would you spend 20,000 parameters? (open, 4 points, 35 minutes)
#
# You may train 20,000 numbers, give or take 5 %.
# Compare at least three ways to spend them on adapters: all blocks narrow, or only the upper (or
# lower) blocks wide; beside the MLP, or beside attention
# (`tp.ParallelAdapter(bottleneck=…, beside="attention")`).
# Predict the order first.
# These lines put adapters into all blocks, take them off again but for the blocks in `kept`, and
# count what is left:
#
# ```python
# tuned, kept = tp.attach(tp.load_pretrained(), tp.ParallelAdapter(bottleneck=38), rng=0), (3, 4)
# aside = {path: w for path, w in tuned.wrappers.items() if int(path.split(".")[1]) not in kept}
# replace_modules(tuned.model, {path: w.base for path, w in aside.items()})
# print(sum(p.size for p in tuned.model.parameters() if p.requires_grad))
# ```
#
# Mind that `tuned.summary()` still counts the adapters that were taken off.
#
# *Rubric: 1 point for budgets that really are equal (say how you counted); 1 for three seeds and
# their spread; 1 for a prediction with a reason; 1 for comparing the outcome with the papers (He
# et al.; Houlsby et al., section 3.6) and saying where this small model differs.*

# %% [answer]
# *Budget.* An adapter has $m(2d + 1) + d$ numbers, $257 m + 128$ here.
# One parallel adapter in each of five blocks: $m = 15$ gives 19,915.
# In two blocks: $m = 38$, 19,788. In one: $m = 77$, 19,917.
# Sequential adapters of Houlsby et al. are two per block: $m = 7$ gives 19,270, within 5 %.
#
# *What comes out.*
# Beside the MLP, all blocks narrow and the two upper ones wide are level in 60 steps on
# documentation, `tp.tasks.domain(base, context=128)`.
# Beside attention, the two lower blocks, and the last block alone are a few hundredths of a nat
# worse, and two seeds differ by less.
#
# *The papers.* He et al. find the MLP the better place for larger budgets, and attention as good
# for very small ones. Houlsby et al. can remove adapters of lower layers at little loss, but they
# remove them after training all. The study asks a related question.
# {claim Parallel adapters are better}

# %% [markdown]
# ## Recall
#
# <details><summary>1. Why does a fresh adapter not disturb the model?</summary>
# It adds something of relative size σ²√(md)/2, a third of a per cent at the paper's start.
# A parallel adapter adds nothing, because its W_up is zero.
# </details>
#
# <details><summary>2. Why may not both matrices be zero at the start?</summary>
# The gradient of each contains the other, or what the other makes. Both would stay zero for ever.
# </details>
#
# <details><summary>3. Why can a sequential adapter not be merged into the layer before
# it?</summary>
# It is a nonlinear function of that layer's output.
# No weight of the layer computes h + W_u f(W_d h).
# </details>
#
# <details><summary>4. In what sense can a parallel adapter be merged?</summary>
# With the MLP's activation it is m more hidden units. The result is an MLP of another shape.
# </details>
#
# <details><summary>5. What does an adapter cost when the model is used?</summary>
# 2dm multiplications per token, m/(6d) of a block's 12d², per adapter.
# If it is sequential, there are two more steps that must wait for one another.
# </details>
#
# ## Where the papers say this
#
# * Houlsby et al., arXiv 1902.00751: the module in section 2.1, near-identity initialisation
#   there and in section 3.6. Table 1: on GLUE (a benchmark) 80.0 with 3.6 % of BERT-large's
#   parameters per task, against 80.4 for full fine-tuning.
# * Pfeiffer et al., arXiv 2005.00247: one adapter per block, after a search over placements; and
#   AdapterFusion, which mixes several.
# * He et al., arXiv 2110.04366: equation (4) is their scaled parallel adapter.
#   On XSum (a benchmark of summaries, scored by ROUGE-2) beside the MLP 20.66 against 19.98
#   behind it (table 3). With a larger bottleneck 20.98 for $s = 1$ and 21.54 for $s = 4$ (table 5).
#
# ## Where implementations differ
#
# * Initialisation: the paper of 2019 says $\sigma = 0.01$, its code 0.001; the `adapters`
#   library's "bert" start is 0.02.
#   Its parallel adapter has a learned or a fixed scale, by option.
# * "Pfeiffer" and "Houlsby" are often confused.
#   The `adapters` library calls them `seq_bn` and `double_seq_bn`, and trains no norms in either.
# * BERT normalizes after the residual addition, GPT-2 before the sublayer.
#   The adapter's place, between projection and addition, is the same.
#   What Houlsby's reads is not normalized in either. In BERT, Pfeiffer's reads what a norm gives.
# * Hugging Face PEFT has no bottleneck adapters.
#   What `ParallelAdapter` computes is checked against a PyTorch version of our own.
#
# ## The real call
#
# Nearly the same with AdapterHub's library `adapters`, for a `model` of transformers. Its
# `double_seq_bn` stands where Houlsby's adapters stand, and leaves the pretrained norms frozen:
#
# ```python
# import adapters
#
# adapters.init(model)
# model.add_adapter("machines", config="double_seq_bn")    # also "seq_bn", "par_bn"
# model.train_adapter("machines")                          # freezes everything else
# # … train as always …
# model.save_adapter("machines", "machines")               # the adapters: nothing else has moved
# ```
#
# **Now you can** add a trained module to any place of a frozen model, predict what it does before
# training, and store what it needs. Next: [05 · Prompt tuning](05_prompt_tuning.ipynb) leaves the
# model alone altogether and changes what it reads.
