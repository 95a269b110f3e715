# %% [markdown]
# # 13b · Merging a QLoRA, and LoftQ
#
# **What you will do.** This is the second half of lesson 13. You trained a LoRA on a base of 4 bits.
# Whoever serves the model wants one set of weights again, so you merge, in three ways, and see what
# each loses. You design a large change that rounding takes away completely.
# Then you start a LoRA at the error that quantization left (LoftQ), find out how much of it a low
# rank can hold, and mend a fault that the authors' code and PEFT have.
#
# **What you need.** [Lesson 13](13_nf4_qlora.ipynb). What a singular value decomposition is
# ([lesson 08](08_adalora.ipynb)).
#
# **Words and letters.** The [glossary](GLOSSARY.md) has those that all lessons share.
# $W$ is the pretrained weight, $\hat W$ the rounded one, and $M$ the merged one. $Q$ is a rounded
# matrix that need not be near $W$ alone. $s$ is LoRA's scale $\alpha/r$, and $\Delta$ the step of a
# grid. *int2* in the study's pictures is 2 bits in groups of 32.
#
# **Time.** 85 minutes: 48 of reading and running, 37 of exercises.
# The open exercise takes 25 more, and the bonus 10.

# %%
import copy

import numpy as np

import tinypeft as tp
from tinypeft.course import show, sliders
from tinypeft.course.slider import slider
from tinypeft.quant.loftq import loftq_rounds as package_rounds
from tinypeft.study import plot

model = tp.load_pretrained()
task = tp.tasks.domain(model.tokenizer, context=128)
W = model.get("blocks.2.mlp.up").weight.data                      # (512, 128)
def perplexity(m): return tp.evaluate(m, task, "test", max_batches=2)["perplexity"]
size = np.linalg.norm

# %% [markdown]
# ## 1. What merging does
#
# Whoever serves many adapters beside one base keeps them apart. Who serves a single one merges: the
# layer is one product again, and any program can run the model. On a base of 4 bits PEFT then rounds
# again, with a warning. Whoever overlooks it hands on a model that has lost a part of its training.
#
# We train four LoRAs for 30 steps on documentation that the base never saw: on the base itself,
# on NF4, and two on 2 bits. The second of these is started by LoftQ, which is section 2.

# %%
lora = tp.LoRA(rank=8, targets="all")
two_bits = tp.Uniform(2, False, "group", 32, scale_dtype="float16")
def build(name):
    m = copy.deepcopy(model)
    if name == "2 bits, LoftQ": return tp.loftq(m, lora, two_bits, iterations=5, rng=0)
    if name == "NF4, double":   m = tp.quantize(m, tp.NF4(double_quant=True))
    if name == "2 bits":        m = tp.quantize(m, two_bits)
    return tp.attach(m, lora, rng=0)

tuned = {}
for name in ("float32", "NF4, double", "2 bits", "2 bits, LoftQ"):
    tuned[name] = build(name)
    start = perplexity(tuned[name])
    tp.train(tuned[name], task, steps=30, batch_size=4, lr=3e-3, seed=0, progress=False)
    print(f"LoRA on {name:14} test perplexity {start:6.2f} → {perplexity(tuned[name]):6.2f}")

# %% [markdown]
# LoRA's change $s B A$ can be merged into the weights, so that inference takes no extra time.
# Here it was trained on $\hat W$. There are three ways to merge it:
#
# $$M_1 = \hat W + s B A, \qquad M_2 = W + s B A, \qquad M_3 = \mathrm{quant}(\hat W + s B A)$$
#
# 1. *Into $\hat W$, in floating point.* This is exact, but the result is no longer small.
# 2. *Into the original $W$.* The LoRA has never seen it.
#    The result differs from what was trained by $W - \hat W$.
# 3. *Into $\hat W$, and then the sum is quantized again.*
#    A change that is smaller than half a step is rounded away.

# %%
show("schematic:merging")

# %% [markdown]
# By hand, on the grid of the integers: a weight $\hat w = 2$ that is to change by $0.3$ becomes 2
# again. One that is to change by $0.6$ becomes 3, which is a change of 1.
#
# ### {exercise}
#
# How large can a change be that is lost completely? `W_hat` lies on a grid: each number of row $i$ is
# a multiple of `s[i]`. (Here $s$ is the step $\Delta$, not LoRA's scale.) Rounding means: to the
# nearest multiple.
# Write `loftq_vanish(W_hat, s)`: `B (d_out, 1)` and `A (1, d_in)`, such that rounding $\hat W + BA$
# gives back $\hat W$ in every number, and $\|BA\|$ is at least 0.9 of what half a step in every
# number would be.

# %% exercise=loftq.vanish points=3 minutes=12
def loftq_vanish(W_hat, s):
    """W_hat (d_out, d_in) on a grid with the steps s (d_out,) → B (d_out, 1), A (1, d_in)."""

# %% [markdown]
# So the norm of a change does not say whether it survives. Yours, on a grid of 3 bits for `mlp.up`,
# with the codes −3 … 3, beside the change that the LoRA on NF4 has learned:

# %%
rows = tp.Uniform(3, granularity="channel").quantize(W)
steps, W_hat = rows.scales().astype(float), rows.dequantize().astype(float)
B, A = (np.asarray(part) for part in result.function(W_hat, steps))
learned = tuned["NF4, double"].wrappers["blocks.2.mlp.up"]
change = learned.scale * learned.B.data @ learned.A.data
def codes(D): return np.clip(np.rint((W_hat + D) / steps[:, None]), -3, 3)
def moved(D): return f"{np.mean(codes(D) != codes(0)):.1%}"
for name, D in (("your change", B @ A), ("the LoRA's change", change)):
    print(f"{name:17} ‖change‖ ÷ ‖W‖ {size(D) / size(W):.1%}, and it moves {moved(D)} of the codes")

# %% [markdown]
# How large must a change be? Move the handle. Drawn are the codes of 48 weights, with a multiple of
# the LoRA's change:

# %%
place, multiples = np.arange(48), (0.5, 1, 2, 4, 8, 16, 32)
slider("change times", {c: {"codes after": (place, codes(c * change)[0, :48])} for c in multiples},
       captions={c: f"the LoRA's change moves {moved(c * change)} of all codes, "
                    f"yours {moved(c * B @ A)}" for c in multiples},
       behind={"codes before": (place, codes(0)[0, :48])}, xlabel="weight", ylabel="code",
       dots=True)

# %% [markdown]
# `requantize_error` measures the third way on a whole model. $M = \hat W + \Delta W$ is the merged
# weight, and its error is $\|\mathrm{quant}(M) - M\|$. If no code and no scale changed, it would be
# $\|\Delta W\|$. **Predict** it on NF4, in per cent of ‖ΔW‖.

# %%
guess = tp.guess("13b.lost", 60.0, "%")

# %%
def survives(m, again):
    """The part of ΔW that is left along ΔW itself, over all layers: 1 is all of it, 0 is none."""
    left = total = 0
    for path, layer in m.wrappers.items():
        change = layer.scale * layer.B.data @ layer.A.data
        left += np.sum((again.get(path).dense_weight() - layer.base.dense_weight()) * change)
        total += np.sum(change**2)
    return left / total

for name, scheme in (("NF4, double", tp.NF4(double_quant=True)), ("2 bits", two_bits)):
    of_weights, of_change = tp.requantize_error(tuned[name], scheme)
    again = tp.quantize(tuned[name].merge(), scheme)
    if scheme is not two_bits: measured = 100 * of_change
    print(f"{name:12} error ÷ ‖M‖ {of_weights:5.1%}   ÷ ‖ΔW‖ {of_change:5.1%}   perplexity: "
          f"kept apart {perplexity(tuned[name]):.2f}, quantized again {perplexity(again):.2f}; "
          f"survives: {survives(tuned[name], again):.0%}")
guess.beside(measured)

# %% [markdown]
# Both errors are about as large as ΔW, and they cost differently. The norm does not say where an
# error points. On NF4 a good part of ΔW survives in its own direction, and the rest of the error is
# noise beside it. At 2 bits nearly all of ΔW is gone.

# %%
show("qlora")

# %% [markdown]
# *What to see: on NF4 a LoRA ends close to where it ends on 16 bits. On 2 bits it ends far behind,
# and merging and rounding again costs most of what was learned.* The losses, in nats per token, over
# seeds and after a longer training:
#
# - *NF4.* Kept apart, or merged into $\hat W$: {study qlora: NF4, after}. Merged into $W$:
#   {study qlora: NF4, merged_into_16_bits}. Merged and rounded again:
#   {study qlora: NF4, merged_and_rounded}.
# - *2 bits.* Kept apart, or merged into $\hat W$: {study qlora: int2, after}. Merged into $W$:
#   {study qlora: int2, merged_into_16_bits}. Merged and rounded again:
#   {study qlora: int2, merged_and_rounded}.
#
# *Rounding again* loses a part of what was learned at 4 bits, and most of it at 2 bits.
#
# {claim Rounding a merged QLoRA}
#
# Then, is it worth the trouble to train on the rounded base at all, if the merged model is rounded
# in the end?
#
# {claim If the merged model is rounded in the end}
#
# (Of your own LoRA above, less survives: after 30 steps its change is still smaller.)
#
# *Merging into $W$* is often called a mistake: the LoRA has learned to make up for the errors of
# $\hat W$, and $W$ has no such errors.
# In the study it costs next to nothing at 4 bits, and at 2 bits little beside what was learned.
# What the LoRA has learned about the new text is of use on $W$ as well, and $W$ is the better
# base. So measure both.
#
# ## 2. LoftQ: spend the rank on the error first
#
# QLoRA starts from $\hat W + 0$, which is not the model that was pretrained.
# Li et al. choose $Q$, $A$ and $B$ together, so that their sum is as near to $W$ as possible
# (equation (6); their $A B^\top$ is LoRA's $B A$):
#
# $$\min_{Q, A, B}\ \|W - Q - B A\|$$
#
# $Q$ must lie on the grid, and $B A$ must have rank $r$. There is no formula for both at once.
# But each half is easy when the other half is fixed.
# If $B A$ is fixed, which matrix should be rounded?
# If $Q$ is fixed, which matrix should $B A$ approximate?
# The best approximation of rank $r$ comes from the singular value decomposition.
# LoftQ does these two steps by turns.
#
# *By hand*, with the integers as grid and $r = 1$. The error of rounding is
#
# $$W = \begin{bmatrix} 1 & 0.6 \\ 0.6 & 0.4 \end{bmatrix}, \qquad
# Q = \begin{bmatrix} 1 & 1 \\ 1 & 0 \end{bmatrix}, \qquad
# W - Q = \begin{bmatrix} 0 & -0.4 \\ -0.4 & 0.4 \end{bmatrix}$$
#
# Its singular values are 0.647 and 0.247, so its norm is $\sqrt{0.647^2 + 0.247^2} = 0.693$. Rank 1
# takes the larger one away, and 0.247 is left. Now $W - BA$ is rounded, which gives another $Q$ as
# soon as one number has crossed the middle between two integers. (Here none has.)
#
# ### {exercise}
#
# Write `loftq_rounds(W, quant, r, T)`: exactly $T$ rounds, which begin with $B A = 0$. (Which of the
# two steps has to come first, then?)
# Return `(Q, B, A)` of the **last** round (as in the paper; the package keeps the best round).
# `quant` takes a matrix and returns the rounded matrix.
# `B (d_out, r)` and `A (r, d_in)` share the singular values evenly: each gets $\sqrt{\Sigma_r}$.
# They are determined up to signs, and either sign is right.

# %% exercise=loftq.rounds points=4 minutes=17
def loftq_rounds(W, quant, r, T):
    """W (d_out, d_in), quant: matrix → rounded matrix
    → Q (d_out, d_in), B (d_out, r), A (r, d_in) of round T."""

# %% [markdown]
# Compare yours with the package's:

# %%
my_loftq = result.function
show(package_rounds)

# %% [markdown]
# Your function at work on `mlp.up`, with two grids and two ranks:

# %%
errors = {}
for scheme, name in ((tp.NF4(), "NF4"), (two_bits, "2 bits")):
    quant = lambda M, scheme=scheme: scheme.quantize(M).dequantize()
    for r in (4, 16):
        rounds = [my_loftq(W, quant, r, T) for T in (1, 2, 4, 8)]
        errors[name, r] = [size(W - Q - B @ A) / size(W - quant(W)) for Q, B, A in rounds]
        print(f"{name:7} r = {r:2}: ‖W − Q − BA‖ ÷ ‖W − Ŵ‖ after 1, 2, 4, 8 rounds",
              *(f"{e:.3f}" for e in errors[name, r]))

# %% fold
fig, (left, right) = plot.figure(1, 2, height=3.4, width=9)
share = lambda M: np.cumsum(np.linalg.svd(M, compute_uv=False)**2) / size(M)**2 * 100
ends = []
for scheme, name, colour in ((tp.NF4(), "NF4", "blue"), (two_bits, "2 bits", "vermillion")):
    left.plot(range(1, 129), share(W - scheme.quantize(W).dequantize()), color=plot.COLOURS[colour],
              lw=4 if name == "NF4" else 1.2)
    for r, style in ((4, ":"), (16, "-")):
        right.plot([0, 1, 2, 4, 8], [1, *errors[name, r]], style, marker="o", ms=3,
                   color=plot.COLOURS[colour])
        ends.append((8, errors[name, r][-1], f"{name}, r = {r}", plot.COLOURS[colour]))
left.plot(range(1, 129), share(W), color=plot.COLOURS["grey"])
for M, name in ((W - tp.NF4().quantize(W).dequantize(), "W − Ŵ, NF4"),
                (W - quant(W), "W − Ŵ, 2 bits"), (W, "W itself"),
                (np.random.default_rng(0).normal(size=W.shape), "a random matrix")):
    print(f"16 of 128 ranks hold {share(M)[15]:.0f} % of {name}, half of it needs "
          f"{np.searchsorted(share(M), 50) + 1} ranks")
left.annotate("W itself", (5, 62), fontsize=8, color="#606060")
left.annotate("W − Ŵ, NF4 (wide)", (60, 52), fontsize=8, color=plot.ink(plot.COLOURS["blue"]))
left.annotate("and 2 bits (narrow)", (60, 46), fontsize=8,
              color=plot.ink(plot.COLOURS["vermillion"]))
left.set(xlabel="rank", ylabel="share of the squared norm (%)")
left.set_title("How much of W − Ŵ a low rank can hold", loc="left", fontsize=10)
right.set(xlabel="rounds T", ylabel="‖W − Q − BA‖ ÷ ‖W − Ŵ‖", xlim=(-0.3, 11), ylim=(0, 1.05))
right.set_title("What alternating achieves", loc="left", fontsize=10)
plot.label_ends(right, ends, size=8)
fig.set_label("Left: the share of the squared norm that a rank can hold, a bent curve for W − Ŵ, "
              "as for a random matrix, and far above it for W itself. Right: the distance after T "
              "rounds, which "
              "falls most in the first round.")
fig

# %% [markdown]
# *What to see: the error of quantization is nearly noise, so a small rank can hold little of it.*
# Left: 16 of 128 ranks, an eighth, hold a quarter of its square, as of a random matrix, and much more
# of $W$ itself (printed above).
# Right: more rounds help beyond the first one, because the low-rank part also lets $Q$ choose
# better.

# %% [markdown]
# How much rank does it take? Move the rank. Your function makes each frame, with two rounds:

# %%
sliders.leftover(lambda r: my_loftq(W, quant, r, 2), W, quant(W))

# %% [markdown]
# *What to see: the singular values of the error of 2 bits are nearly a straight line. A rank $r$
# takes the first $r$ away: a low one little, and half of all ranks about half of the norm.*
#
# The study trained longer, at several widths and over seeds:

# %%
show("loftq")

# %% [markdown]
# *What to see: LoftQ helps most at 2 bits, before and after training.*
# After twice as many steps (hollow; the dashed line is of the usual number) its lead there is
# smaller.
#
# {claim LoftQ ends below QLoRA}
#
# The paper's gains are at 2 bits, too. There QLoRA did not converge on LLaMA-2, and LoftQ reached
# a perplexity of 7.85 on WikiText with 7 billion parameters.
#
# ## 3. A scale too many
#
# ### {exercise}
#
# A LoRA's scale stands between its factors and the layer:
#
# $$y = Q x + \frac{\alpha}{r}\, B A x$$
#
# A colleague starts LoRAs by LoftQ. With $\alpha = r$ all is well.
# With a larger $\alpha$ nothing is gained, or the start is worse than without LoftQ.
# By hand, with section 2's matrix, $r = 1$ and $\alpha = 4$: the singular values of $W - Q - 4BA$ are
# $3 \cdot 0.647$ and $0.247$, so the layer is 1.96 from $W$; without a LoRA it would be 0.693.
# This is the code, and what it does on `mlp.up`:

# %%
def faulty_loftq(W, quant, r, alpha):
    """Q, and the factors of a LoRA of rank r and scale α/r that makes up for W − Q?"""
    return my_loftq(W, quant, r, 1)

quant2 = lambda M: two_bits.quantize(M).dequantize()
def distance(f, alpha, r=8):
    """How far the layer, with its LoRA, is from W; 1 is the distance without a LoRA."""
    Q, B, A = f(W, quant2, r, alpha)
    return size(W - Q - alpha / r * B @ A) / size(W - quant2(W))

for alpha in (8, 16, 32):
    print(f"r = 8, α = {alpha:2}: distance from W {distance(faulty_loftq, alpha):.3f}")

# %% [markdown]
# Write `loftq_bug(W, quant, r, alpha)`, the mended function. Keep its one round.
# Any way to share the product between $B$ and $A$ is right.

# %% exercise=loftq.bug points=2 minutes=8
def loftq_bug(W, quant, r, alpha):
    """W (d_out, d_in), quant: matrix → rounded matrix → Q (d_out, d_in), B (d_out, r), A (r, d_in),
    for a layer that computes with Q + (α/r) B A."""

# %% [markdown]
# Both functions in the whole model, on a base of 2 bits, with $r = 8$ and $\alpha = 32$, before
# any training:

# %%
print(f"no LoftQ:      perplexity {perplexity(tp.quantize(copy.deepcopy(model), two_bits)):6.2f}")
for name, f in (("faulty LoftQ", faulty_loftq), ("your LoftQ", result.function)):
    started = tp.attach(tp.quantize(copy.deepcopy(model), two_bits),
                        tp.LoRA(rank=8, alpha=32, targets="all"), rng=0)
    for path, wrapper in started.wrappers.items():
        _, B, A = f(model.get(path).weight.data, quant2, 8, 32)
        wrapper.B.assign(np.float32(B))
        wrapper.A.assign(np.float32(A))
    print(f"{name + ':':14} perplexity {perplexity(started):6.2f}")

# %% [markdown]
# ### {exercise}
#
# LoftQ rounds first, and lets a low rank repair. One may also begin at the other end (QPiSSA, Meng et
# al.): how much is left to be rounded if $BA$ is as near to $W$ itself as its rank allows?
# Write `loftq_principal(W, quant, r)`: `(Q, B, A)`. The singular values are shared evenly, as above.

# %% exercise=loftq.principal points=2 minutes=10 bonus=yes
def loftq_principal(W, quant, r):
    """W (d_out, d_in), quant: matrix → rounded matrix
    → Q (d_out, d_in), B (d_out, r), A (r, d_in)."""

# %%
for r in (4, 16):
    for name, (Q, B, A) in (("one round of LoftQ", my_loftq(W, quant2, r, 1)),
                            ("yours", result.function(W, quant2, r))):
        distance_left = size(W - Q - B @ A) / size(W - quant2(W))
        print(f"r = {r:2}, {name:18} ‖W − Q − BA‖ ÷ ‖W − Ŵ‖ {distance_left:.3f}")

# %% [markdown]
# ### {exercise} · Spend your bits (open, 4 points, 25 minutes)
#
# You have memory for a base of 4.5 bits per weight.
# A LoRA of rank 8 comes on top of it and does not count. Ranks above 8 do.
# Compare three ways:
#
# - (a) NF4 with float32 scales, and a LoRA of rank 8 that starts at zero;
# - (b) NF4 with double quantization, and the bits saved are spent on a LoRA of a higher rank;
# - (c) 3 bits in groups of 32, and a LoRA of rank 8 that LoftQ starts. (This takes about 3.6 bits, or
#   4.1 if its scales are float32. The rest of the budget stays unused.)
#
# Say how large a rank (b) can afford on `mlp.up` if LoRA's numbers are kept in float16.
# Train two of the three for 30 steps with two seeds each, and recommend one. With the same seed both
# see the same batches, so compare them seed by seed: two differences, beside the spread of each.
# What would you have to measure before you recommend it for a model of 7 billion parameters?
#
# *Rubric: 1 point for the budget, in bits, and the rank that follows from it; 1 for runs with two
# seeds, on the same data, with numbers; 1 for the differences, seed by seed, and how far they agree,
# before anything is concluded; 1 for what does not carry over to 7 billion parameters.*

# %% [answer]
# *Budget.* Double quantization saves 0.373 bits for each of the $512 \cdot 128 = 65{,}536$
# weights of `mlp.up`: 24,445 bits.
# One rank costs $16 \cdot (128 + 512) = 10{,}240$ bits, so two more ranks: $r = 10$.
# (The LoRA of rank 8 itself costs 81,920 bits, 1.25 per weight.
# It comes on top in all three.) (c) does not use its whole budget: 3 bits in groups of 32 are
# about 3.6 bits per weight.
#
# *Runs.* Expect (a) and (b) to differ, with the same seed, by a tenth of what two seeds differ by.
# Two such differences of one sign do not yet show an advantage ($t$ is 12.7 for two), and one of some
# thousandths of a nat would be of no use.
# Two ranks are worth little, and double quantization costs nothing that can be seen.
# Either may be recommended. (c) is behind, because rounding to 3 bits costs more than LoftQ and
# training win back. {claim LoftQ ends below QLoRA} {claim Double quantization saves}
#
# *7 billion.* The share of a rank in $d = 4096$ is a thirtieth of what it is here.
# Weights may be less normal, or have outliers.
# The learning rate and the length of training differ.
# Activations, not weights, may fill the memory.
# Measure the loss of the rounded base, and two seeds of a short training, before the choice.

# %% [markdown]
# ## The real call
#
# The first two ways of section 1, for an adapter in a folder:
#
# ```python
# from peft import PeftModel
# from transformers import AutoModelForCausalLM, BitsAndBytesConfig
# four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
# base = AutoModelForCausalLM.from_pretrained(
#     "folder-of-the-model", quantization_config=four_bits)
# model = PeftModel.from_pretrained(base.dequantize(), "folder-of-the-adapter")
# model = model.merge_and_unload()                # into Ŵ, in floating point
# base = AutoModelForCausalLM.from_pretrained("folder-of-the-model")
# other = PeftModel.from_pretrained(base, "folder-of-the-adapter").merge_and_unload()   # into W
# ```
#
# Without `dequantize()`, `merge_and_unload()` is the third way. On a graphics card PEFT also starts a
# LoRA by LoftQ. It needs the weights in 16 bits, and puts $Q$ in their place:
#
# ```python
# from peft import LoftQConfig, LoraConfig, get_peft_model
# from transformers import AutoModelForCausalLM
# base = AutoModelForCausalLM.from_pretrained("folder-of-the-model")
# settings = LoraConfig(
#     init_lora_weights="loftq", loftq_config=LoftQConfig(loftq_bits=4, loftq_iter=5),
#     r=16, lora_alpha=16,                        # α = r: nothing corrects for another scale
#     target_modules="all-linear", task_type="CAUSAL_LM")
# model = get_peft_model(base, settings)
# ```

# %% [markdown]
# ## Recall
#
# 1. A change has a tenth of the norm of the weights. Does it survive rounding?
# <details><summary>Answer</summary>
#
# That depends on its single numbers. If all of them are below half a step, nothing survives.
#
# </details>
#
# 2. A colleague merges a LoRA that was trained on NF4 into the original 16-bit weights.
#    What happens?
# <details><summary>Answer</summary>
#
# The model differs from the one that was trained by $W - \hat W$.
# The LoRA may have learned to make up for that difference, a correction that is now useless.
# On the other hand $W$ is the better base.
# Which of the two counts more must be measured; section 1 has the study's numbers.
#
# </details>
#
# 3. Why can a low rank hold little of $W - \hat W$?
# <details><summary>Answer</summary>
#
# The errors of rounding are nearly independent of each other. Such a matrix has singular values
# that fall slowly, like those of noise.
#
# </details>
#
# 4. What does each of LoftQ's two steps keep fixed?
# <details><summary>Answer</summary>
#
# First $BA$, while $W - BA$ is rounded to $Q$. Then $Q$, while $BA$ becomes the nearest matrix of
# rank $r$ to $W - Q$.
#
# </details>
#
# 5. LoftQ's factors are put into a LoRA with $\alpha = 4r$. What does the layer compute?
# <details><summary>Answer</summary>
#
# $Q + 4BA$. The correction is four times too large, and may be worse than none.
#
# </details>

# %% [markdown]
# ## Where the papers say this
#
# - Merging: Hu et al., LoRA (arXiv 2106.09685), §4.1. QLoRA (arXiv 2305.14314) does not merge.
# - LoftQ: Li et al. (arXiv 2310.08659), Algorithm 1. QPiSSA: Meng et al. (arXiv 2404.02948).
#
# ## Where implementations differ
#
# - *LoftQ's scale.* The authors' code sets α = $r$, but α = 16 for causal models of 4 bits, and
#   corrects neither. PEFT does not either. With α ≠ $r$ the product is scaled and no longer
#   repairs the error. You have mended that above.
# - *LoftQ's rounds.* The paper keeps the last round. With uniform grids of 2 or 3 bits a later
#   round can be worse than an earlier one, and the package keeps the best.
# - *Merging.* PEFT merges a LoRA on 4 bits by decoding, adding and *quantizing again*, with a
#   warning: the third way, not the first.
#
# **Now you can** say what may be merged into what, and start a LoRA where quantization left off.
# The codes themselves have stayed frozen all along.
# [Lesson 14](14_qat.ipynb) trains through the rounding itself.
