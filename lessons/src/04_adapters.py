# %% [markdown]
# # 04 · Adapters, serial and parallel
#
# **What you will do.** Freeze the model and put small trained networks between its layers. You will write the adapter's
# forward pass, predict from its initialisation how far it disturbs the model before training, count what is trained,
# turn a parallel adapter into extra units of the MLP beside it, and look at what trained adapters add to each layer.
#
# **What you need.** Lesson 02 (blocks, the residual stream) and lesson 03 (the bill).
#
# **Time.** 60 minutes; every cell together runs in well under a minute.

# %%
import math

import numpy as np

import tinypeft as tp
from tinypeft import functional as F
from tinypeft.course import show
from tinypeft.nn import Linear, Module, replace_modules
from tinypeft.peft.adapter import Adapter, BottleneckAdapter
from tinypeft.peft.parallel import Parallel
from tinypeft.study import plot

base = tp.load_pretrained()
task = tp.tasks.domain(base, context=128, held_out=8192)         # Matplotlib's documentation: new to the model
c = base.config
tokens = task.batch("test", 8, np.random.default_rng(0))[0]      # (8, 128)

# %% [markdown]
# ## 1. A detour with a shortcut
#
# Ten tasks, ten copies of the model: that is full fine-tuning. In 2019 Houlsby et al. (arXiv 1902.00751) left the model
# as it is and gave each task its own small modules *between* the layers. A module sits behind a sublayer and reads its
# output $h$, $d$ numbers per token. It maps them down to $m \ll d$, bends them with a nonlinearity $f$, maps them up
# again, and adds the result to what came in:
#
# $$h \leftarrow h + W_u\, f(W_d\, h + b_d) + b_u \tag{1}$$
#
# The narrow middle is why it is called a *bottleneck*. The addition is why it works: if the detour gives zero, the
# model is the old one.

# %%
show(Adapter.forward)

# %% [markdown]
# ### {exercise}
#
# Write equation (1) with $f$ = GELU. All arguments are Tensors: `h` $(\dots, d)$, `W_d` $(m, d)$, `b_d` $(m,)$, `W_u`
# $(d, m)$, `b_u` $(d,)$. Return a Tensor $(\dots, d)$; gradients must reach all five. `F.linear(x, W, b)` is
# $x W^\top + b$, `F.gelu` the activation. (The survey's formula for an adapter has an activation on the way up as well,
# and no addition. Neither the paper nor its code has the one or lacks the other: follow equation (1).)

# %% exercise=adapters.forward points=3 minutes=10
def adapters_forward(h, W_d, b_d, W_u, b_u):
    """h + W_u gelu(W_d h + b_d) + b_u, a Tensor of the shape of h."""
    ### BEGIN SOLUTION
    y = F.gelu(F.linear(h, W_d, b_d))                            # (…, m)
    return h + F.linear(y, W_u, b_u)                             # (…, d)
    ### END SOLUTION

# %%
result = tp.check("adapters.forward", adapters_forward)
result

# %% [markdown]
# Where do they go? Houlsby: two in every block, behind the attention's output and behind the MLP, each before its
# result is added to the residual stream; the layer norms are trained as well. Pfeiffer et al. (arXiv 2005.00247) found
# one, behind the MLP, to be enough, and left the norms alone. Here they stand among the other methods:

# %%
show("methods_in_a_block")

# %% [markdown]
# *What to see: adapters are the only methods here that put something **into** the path from block to block; LoRA
# changes matrices on it, prefixes stand beside it.*
#
# ## 2. How near is "near the identity"?
#
# Both matrices start as small random numbers of standard deviation $\sigma$. How large is the detour then? A bottleneck
# unit gets $y_k = \sum_j W_{d,kj} h_j$, with variance $d\,\sigma^2\,\overline{h^2}$, where $\overline{h^2}$ is the mean
# square of $h$. Near zero, GELU is $y/2$. The way up multiplies by $\sqrt m\,\sigma$:
#
# $$\frac{\|W_u f(W_d h)\|}{\|h\|} \approx \frac{\sigma^2 \sqrt{m\,d}}{2} \tag{2}$$
#
# It goes with the *square* of $\sigma$: the paper's $\sigma = 0.01$ disturbs by half a per cent, its code's 0.001 a
# hundred times less. Measure it, and what the whole model makes of it:

# %%
predicted = lambda std, m: std ** 2 * math.sqrt(m * c.d_model) / 2                     # equation (2)


class Meter(Module):
    """An adapter that notes how large what it adds is, relative to what comes in."""

    def __init__(self, adapter):
        self.adapter, self.base = adapter, adapter.base

    def forward(self, x):
        h, out = self.base(x), self.adapter(x)
        self.size = np.linalg.norm(out.data - h.data) / np.linalg.norm(h.data)
        return out


def sizes(tuned):
    """path → how much each adapter of `tuned` adds, relative to the sublayer's own output, on the test tokens."""
    meters = {path: Meter(adapter) for path, adapter in tuned.wrappers.items()}
    replace_modules(tuned.model, meters)
    with tp.no_grad(): tuned(tokens)
    replace_modules(tuned.model, tuned.wrappers)
    return {path: meter.size for path, meter in meters.items()}


frozen = tp.evaluate(base, task)["loss"]
stds, rows = (0.001, 0.01, 0.03, 0.1, 0.3), []
for std in stds:
    tuned = tp.attach(base, BottleneckAdapter(bottleneck=64, init_std=std), rng=0)
    rows.append((np.mean(list(sizes(tuned).values())), tp.evaluate(tuned, task, max_batches=2)["loss"]))
    tuned.detach()

fig, (left, right) = plot.figure(1, 2, height=2.7)
left.loglog(stds, [predicted(std, 64) for std in stds], color=plot.COLOURS["grey"], ls="--")
left.loglog(stds, [size for size, _ in rows], "P", color=plot.COLOURS["vermillion"])
left.set(xlabel="σ at the start", ylabel="detour relative to h", title="Equation (2) (dashed), measured")
right.semilogx(stds, [loss for _, loss in rows], "P-", color=plot.COLOURS["vermillion"])
right.axhline(rows[0][1], color=plot.COLOURS["grey"], ls="--")
right.set(xlabel="σ at the start", ylabel="test loss, nats per token", title="The model before any training")
fig

# %% [markdown]
# *What to see: up to 0.03 the model does not notice ten fresh adapters; at 0.3 they have drowned it.* Why not zero,
# then? With both matrices at zero no gradient flows: $dW_u$ needs $f(W_d h)$, and $dW_d$ needs $W_u$. One of the two
# may be zero, which the next kind of adapter uses.
#
# ## 3. The count
#
# One adapter has $2dm + m + d$ numbers. With $n$ adapters in the model, and the norms in Houlsby's case (two in each of
# $L$ blocks and the final one, $2d$ numbers each),
#
# $$N_{trained} = n\,(2dm + m + d)\ \ [\,+\ 2d\,(2L + 1)\ ] \tag{3}$$
#
# ### {exercise}
#
# Return the number of trained parameters for `placement` "houlsby" ($n = 2L$, and the norms) or "pfeiffer" ($n = L$, no
# norms).

# %% exercise=adapters.count points=2 minutes=5
def adapters_count(d, m, L, placement):
    """Trained parameters of bottleneck adapters in a model of width d with L blocks."""
    ### BEGIN SOLUTION
    n, norms = (2 * L, 2 * d * (2 * L + 1)) if placement == "houlsby" else (L, 0)
    return n * (2 * d * m + m + d) + norms
    ### END SOLUTION

# %%
result = tp.check("adapters.count", adapters_count)
count = result.function
result

# %%
for m in (4, 16, 64):
    n = count(c.d_model, m, c.n_layers, "houlsby")               # equation (3)
    tuned = tp.attach(base, BottleneckAdapter(bottleneck=m, norms=True))
    print(f"m = {m:2}: {n:8,} by formula, {tuned.summary().trained:8,} in the model, "
          f"{100 * n / base.n_parameters():5.2f} % of the base")
    tuned.detach()

# %% [markdown]
# ## 4. Beside instead of behind
#
# A serial adapter makes the model deeper: its two products have to wait for the sublayer. He et al. (arXiv 2110.04366)
# put the same bottleneck *beside* the sublayer: it reads what the sublayer reads, and its result, times a fixed number
# $s$ (4 in the paper), is added:
#
# $$h \leftarrow \mathrm{FFN}(x) + s\, f(x\, W_{down})\, W_{up} \tag{4}$$

# %%
show(Parallel.forward)

# %% [markdown]
# $W_{up}$ starts at zero, so the model starts unchanged, exactly. (The paper writes $x W$ with $W_{down}$ as $(d, m)$;
# the code keeps this package's $(m, d)$ and multiplies by the transpose.)
#
# Look at equation (4) once more. The FFN itself is $W_2\, f(W_1 x + b_1) + b_2$: read $4d$ features off $x$, bend,
# write back. The adapter does the same with $m$ more features. If it has the same $f$, it *is* $m$ more hidden units of
# the MLP. A serial adapter cannot be had for so little.
#
# ### {exercise}
#
# Given the MLP's arrays `W1` $(k, d)$, `b1` $(k,)$, `W2` $(d, k)$, `b2` $(d,)$, the adapter's `W_down` $(m, d)$,
# `b_down` $(m,)$, `W_up` $(d, m)$, `b_up` $(d,)$ and the number `s`, return the arrays `(W1, b1, W2, b2)` of one MLP
# with $k + m$ hidden units that computes, for every $x$ and with the same $f$,
#
# $$W_2\, f(W_1 x + b_1) + b_2 + s\,\big(W_{up}\, f(W_{down}\, x + b_{down}) + b_{up}\big) \tag{5}$$
#
# The adapter's units come after the MLP's.

# %% exercise=adapters.widen points=5 minutes=15
def adapters_widen(W1, b1, W2, b2, W_down, b_down, W_up, b_up, s):
    """(W1, b1, W2, b2) of one MLP with k + m hidden units that computes MLP + s · adapter."""
    ### BEGIN SOLUTION
    return (np.concatenate([W1, W_down]), np.concatenate([b1, b_down]),
            np.concatenate([W2, s * W_up], axis=1), b2 + s * b_up)
    ### END SOLUTION

# %%
result = tp.check("adapters.widen", adapters_widen)
widen = result.function
result

# %% [markdown]
# Do it to a whole model. The adapter gets the MLP's GELU in place of the paper's ReLU, and some numbers in its
# $W_{up}$, as if it had been trained:

# %%
tuned = tp.attach(base, tp.ParallelAdapter(bottleneck=16, activation="gelu"), rng=0)
rng, wide = np.random.default_rng(0), tp.load_pretrained()
for i, block in enumerate(wide.blocks):
    adapter = tuned.wrappers[f"blocks.{i}.mlp"]
    adapter.W_up.data = 0.05 * rng.standard_normal(adapter.W_up.shape).astype(np.float32)
    mlp = block.mlp
    W1, b1, W2, b2 = widen(mlp.up.weight.data, mlp.up.bias.data, mlp.down.weight.data, mlp.down.bias.data, adapter.W_down.data,
                           adapter.b_down.data, adapter.W_up.data, adapter.b_up.data, adapter.scale)     # equation (5)
    mlp.up, mlp.down = Linear(c.d_model, len(b1), rng=0), Linear(len(b1), c.d_model, rng=0)
    mlp.up.weight.data, mlp.up.bias.data, mlp.down.weight.data, mlp.down.bias.data = W1, b1, W2, b2
with tp.no_grad():
    logits = tuned(tokens).data
    print(f"largest difference of the logits {abs(wide(tokens).data - logits).max():.0e}; they are as large as {abs(logits).max():.0f}")
_ = tuned.detach()

# %% [markdown]
# So a parallel adapter can be merged after all, into a model of another shape. `tuned.merge()` refuses, since it
# promises a plain model of the same shape. Remember the picture for lesson 07: LoRA is equation (4) without the $f$,
# and *that* fits into the matrix that is there.
#
# ## 5. Train them
#
# The same 60 steps of 4 × 128 tokens for three kinds, one seed, each at the package's learning rate for it:

# %%
def learn(method, steps=60):
    """(tuned model, training losses, test loss) of a fresh copy of the base with `method`."""
    tuned = tp.attach(tp.load_pretrained(), method, rng=0)
    history = tp.train(tuned, task, steps, batch_size=4, seed=0, progress=False)
    return tuned, np.array(history.loss), tp.evaluate(tuned, task)["loss"]


kinds = {"Houlsby": (BottleneckAdapter(bottleneck=16), "P", "-"),
         "Pfeiffer": (BottleneckAdapter(bottleneck=32, placement="pfeiffer", norms=False), "s", "--"),
         "parallel": (tp.ParallelAdapter(bottleneck=32), "X", ":")}
runs = {name: learn(method) for name, (method, *_) in kinds.items()}
print(f"frozen base: {frozen:.3f} nats per token")
for name, (tuned, _, test) in runs.items():
    print(f"{name:10}{tuned.summary().trained:8,} trained   test loss {test:.3f}")

fig, ax = plot.figure(height=2.8)
for name, (_, losses, _) in runs.items():
    smooth = np.convolve(losses, np.ones(10) / 10, "valid")
    ax.plot(np.arange(10, 61), smooth, ls=kinds[name][2], color=plot.COLOURS["vermillion"])
    ax.annotate(name, (60, smooth[-1]), xytext=(4, 0), textcoords="offset points", va="center", color=plot.ink(plot.COLOURS["vermillion"]))
ax.set(xlabel="step", ylabel="training loss, mean of 10 steps", xlim=(8, 70), title="About 43,000 trained numbers each")
fig

# %% [markdown]
# *What to see: three curves with the same wiggles, which are the batches. They differ by little, but steadily.* The
# order agrees with He et al.: parallel before serial. One seed of 60 steps proves nothing; the study trains longer,
# over five seeds and three widths:

# %%
show("adapters")

# %% [markdown]
# *What to see: parallel against serial at equal size, and where the line of full fine-tuning is.*
#
# What did the adapters learn to write? The same meter, now after training:

# %%
written = {name: sizes(runs[name][0]) for name in ("Houlsby", "Pfeiffer")}
fig, ax = plot.figure(height=2.5)
places = [(f"blocks.{i}.{place}", i + shift) for i in range(c.n_layers) for place, shift in (("attention.output", -0.17), ("mlp.down", 0.17))]
for path, x in places:
    place = "sky" if "attention" in path else "vermillion"
    ax.bar(x, 100 * written["Houlsby"][path], width=0.3, color=plot.COLOURS[place])
ax.plot(range(c.n_layers), [100 * written["Pfeiffer"][f"blocks.{i}.mlp.down"] for i in range(c.n_layers)], "s", color="black")
ax.text(0.02, 0.93, "bars: Houlsby, behind attention (left) and MLP (right); squares: Pfeiffer", transform=ax.transAxes)
ax.set(xlabel="block", ylabel="added, % of the sublayer's output", ylim=(0, 1.35 * 100 * max(max(w.values()) for w in written.values())))
fig

# %% [markdown]
# *What to see: how much each adapter adds, in per cent of what its sublayer says by itself.* It began at a fraction of
# a per cent, equation (2), everywhere.
#
# ### {exercise} · Where would you spend 20,000 parameters? (open, 4 points, 25 minutes)
#
# You may train 20,000 numbers, give or take 5 %. Compare at least three ways to spend them on adapters: all blocks
# narrow, or only the upper (or lower) blocks wide; beside attention or beside the MLP (`beside="attention"`). For
# single blocks, set the adapters of the others aside: after `attach`, put their bases back with `replace_modules`.
# Predict the order first.
#
# *Rubric: 1 point for budgets that really are equal (say how you counted); 1 for three seeds and their spread; 1 for a
# prediction with a reason; 1 for comparing the outcome with the papers (He et al.; Houlsby et al., section 3.6) and saying
# where this small model differs.*

# %% [answer]
# *Budget.* An adapter has $m(2d + 1) + d$ numbers, $257 m + 128$ here. One parallel adapter in each of five blocks:
# $m = 15$ gives 19,915. In two blocks: $m = 38$, 19,788. In one: $m = 77$, 19,917. Serial adapters of Houlsby et al. are two
# per block: $m = 7$ gives 19,270, within 5 %.
#
# *What comes out.* Beside the MLP, all blocks narrow and the two upper ones wide are level in 60 steps; beside attention, the two lower blocks,
# and the last block alone are 0.02 to 0.04 nats worse, with two seeds that differ by less than 0.01. (`trainable_parameters()`
# still lists the adapters that were set aside: count those that are in the model.)
#
# *The papers.* He et al. find the MLP the better place for larger budgets, and attention as good for very small ones.
# Houlsby et al. can remove adapters of lower layers at little loss, but they remove them after training all. The study
# asks a related question. {claim Parallel adapters are better}

# %% [markdown]
# ## Recall
#
# <details><summary>1. Why does a fresh adapter not disturb the model?</summary>
# It adds something of relative size σ²√(md)/2, half a per cent at σ = 0.01. A parallel adapter adds exactly nothing,
# since its W_up is zero.
# </details>
# <details><summary>2. Why may not both matrices be zero at the start?</summary>
# Each one's gradient is multiplied by the other, or by what the other makes: both would stay zero for ever.
# </details>
# <details><summary>3. Why can a serial adapter not be merged into the layer before it?</summary>
# It is a nonlinear function of that layer's output; no weight of the layer computes h + W_u f(W_d h).
# </details>
# <details><summary>4. In what sense can a parallel adapter be merged?</summary>
# With the MLP's activation it is m further hidden units; the result is an MLP of another shape.
# </details>
# <details><summary>5. What does an adapter cost when the model is used?</summary>
# 4dm multiplications and additions per token and adapter, under 1 % to a few per cent of a block's 24d²; and, if
# serial, two more steps that must wait for one another.
# </details>
#
# ## Where the paper says this
#
# - Houlsby et al., arXiv 1902.00751: the module in section 2.1, near-identity initialisation there and in section 3.6.
#   Table 1: GLUE 80.0 with 3.6 % of BERT-large's parameters per task, against 80.4 for full fine-tuning.
# - Pfeiffer et al., arXiv 2005.00247: one adapter per block, after a search over placements; and AdapterFusion, which
#   mixes several.
# - He et al., arXiv 2110.04366: equation (4) is their scaled parallel adapter. On XSum (ROUGE-2) beside the FFN 20.66
#   against 19.98 behind it (table 3), and 21.54 with $s = 4$ (table 5).
#
# ## Where implementations differ
#
# - Initialisation: the paper of 2019 says $\sigma = 0.01$, its code 0.001; the `adapters` library's "bert" start is
#   0.02. Its parallel adapter has a learned or a fixed scale, by option.
# - "Pfeiffer" and "Houlsby" are confused all the time. The `adapters` library calls them `seq_bn` and `double_seq_bn`.
# - BERT normalizes after the residual addition, GPT-2 before the sublayer. The adapter's place, between projection and
#   addition, is the same; what it reads is not normalized in either.
# - Hugging Face PEFT has no bottleneck adapters at all. What `ParallelAdapter` computes is checked against a PyTorch
#   version of our own.
#
# **Now you can** add a trained module to any place of a frozen model and predict what it does before training. Next:
# [05 · Prompt tuning](05_prompt_tuning.ipynb) leaves the model alone altogether and changes what it reads.
