# %% [markdown]
# # 00 · The map
#
# **What you will do.** See the whole course at a glance: what each fine-tuning method and each quantization scheme
# changes in one and the same model, in one line of mathematics and one line of code each; which letters the survey, the
# papers and the code use for it; and how the exercises work. Then count parameters and bits, and meet a sign on which books and libraries disagree.
#
# **What you need.** NumPy and matrix products. Nothing of the other lessons: come back here whenever a letter puzzles
# you.
#
# **Time.** 40 minutes; every cell together runs in well under a minute.
#
# ## How to use the course
#
# Every lesson exists twice: here with its solutions run, and under `assignments/` with stubs. Work in the assignment;
# run cells from top to bottom. Behind each exercise stands `tp.check(…)`. It compares your function with the package's
# on special and on random inputs, stops at the first difference, says what it got, what it expected and what the likely
# cause is, and has a hint for you. If your function is not right yet, the following cells use the package's own, so you
# can always go on. Points are for courses that grade; the last exercise of each lesson is open and has a rubric instead
# of a check. After changing code of the package restart the kernel.
#
# Everything runs offline on a laptop: the shipped base model (lesson 02) was trained by this package's own NumPy code
# on documentation, and the new text is Matplotlib's documentation, which it never saw.

# %%
import numpy as np
from IPython.display import Markdown

import tinypeft as tp
from tinypeft import functional as F
from tinypeft.course import show
from tinypeft.study import plot
from tinypeft.study.about import lesson_map

base = tp.load_pretrained()
c = base.config
print(f"{base.n_parameters():,} parameters: V = {c.vocab_size}, context {c.context_length}, d = {c.d_model}, "
      f"L = {c.n_layers}, H = {c.n_heads}")

# %% [markdown]
# The course follows section 3.6, "Tuning and Optimization", of Matarazzo and Torlone's survey (arXiv 2501.04040): first
# *parameter-efficient* adaptation, which trains few numbers, then *memory-efficient* adaptation, which stores the
# others in few bits. The table lists every method and scheme of the course with its lesson; lesson 15 helps to choose
# among them.

# %%
Markdown(lesson_map())

# %%
show("methods_in_a_block")

# %% [markdown]
# *What to see: coloured is what is trained, in one block of the model; everything grey is frozen.*
#
# ## Four ways to change a frozen function
#
# **Change the weight.** LoRA and its relatives add to a frozen $W_0$ a product of thin matrices:
#
# $$h = (W_0 + \Delta W)\,x, \qquad \Delta W = \frac{\alpha}{r}\, B A \quad\text{(LoRA)} \qquad\text{or}\qquad \Delta W = P \Lambda Q \quad\text{(AdaLoRA)} \tag{1}$$
#
# What is added to a weight can be added for good: these methods *merge* into a plain model.

# %%
tuned = tp.attach(base, tp.LoRA(rank=4, alpha=8), rng=0)
layer = tuned.wrappers["blocks.0.attention.query"]
layer.B.data = np.random.default_rng(0).standard_normal(layer.B.shape).astype(np.float32) * 0.1      # as if trained
W = layer.base.weight.data + 8 / 4 * layer.B.data @ layer.A.data                                     # equation (1)
print("merged weight:", np.allclose(W, tuned.merge().blocks[0].attention.query.weight.data, atol=1e-6))
_ = tuned.detach()

# %% [markdown]
# **Add a function.** Adapters add a small nonlinear network $g$ to what a sublayer gives. Nonlinear, so no weight can
# take it up:
#
# $$h \leftarrow h + g(h) \quad\text{(serial)}, \qquad h \leftarrow \mathrm{sublayer}(x) + s\,g(x) \quad\text{(parallel)} \tag{2}$$

# %%
tuned = tp.attach(base, tp.BottleneckAdapter(bottleneck=8), rng=0)
adapter = tuned.wrappers["blocks.0.mlp.down"]
x = tp.Tensor(np.random.default_rng(0).standard_normal((5, 4 * c.d_model)).astype(np.float32))
h = adapter.base(x)
g = F.linear(F.gelu(F.linear(h, adapter.W_d, adapter.b_d)), adapter.W_u, adapter.b_u)
print("adapter:", np.allclose((h + g).data, adapter(x).data, atol=1e-6))                             # equation (2)
_ = tuned.detach()

# %% [markdown]
# **Add to the input, or to attention's memory.** Prompts put trained vectors before the embedded text; prefixes put
# trained keys and values before those of every layer:
#
# $$X \leftarrow [P_e;\, X], \qquad K \leftarrow [P_K;\, K],\quad V \leftarrow [P_V;\, V] \tag{3}$$

# %%
tokens = base.tokenizer.encode("numpy.mean(a, axis=None)")[None]
for method in (tp.PromptTuning(5), tp.PTuningV2(5)):
    tuned = tp.attach(base, method, rng=0)
    seams = tuned.virtual.seams(tokens)                                                              # equation (3): what is put in
    shapes = {k: v.shape if k == "prompt" else [p.shape for p in v[0]] for k, v in seams.items()}
    print(f"{method}: {shapes}, the same logits: {np.array_equal(base(tokens, **seams).data, tuned(tokens).data)}")
    tuned.detach()

# %% [markdown]
# **Store it in fewer bits.** A quantizer keeps for a block of numbers one *scale* $s$, sometimes a *zero point* $z$,
# and for each number a small integer $q$:
#
# $$\hat x = s\,(q - z), \qquad q = \mathrm{round}(x/s) + z \ \text{ clipped to } 0 \dots 2^b - 1 \tag{4}$$

# %%
W = base.blocks[0].mlp.up.weight.data[:1, :64]
Q = tp.Uniform(bits=4, symmetric=False, granularity="group", group_size=64).quantize(W)
s = max((W.max() - min(W.min(), 0)) / 15, 1e-12)
z = np.rint(-W.min() / s)
q = np.clip(np.rint(W / s) + z, 0, 15)                                                               # equation (4), right
print("quantized:", np.allclose(s * (q - z), Q.dequantize(), atol=1e-6))                             # equation (4), left
print(f"largest error {abs(W - Q.dequantize()).max() / s:.2f} s")

# %% [markdown]
# ## What is trained
#
# | method | trained numbers |
# |---|---|
# | LoRA of rank $r$ on query and value | $r\,(d_{in} + d_{out})$ for each matrix, here $d_{in} = d_{out} = d$ |
# | prompt of $P$ vectors | $P\,d$ |
# | prefix of $P$ positions, without a network | a key and a value of $d$ numbers per position and layer |
# | adapters behind attention and MLP, without the norms | $2dm + m + d$ each |
#
# ### {exercise}
#
# Return the four numbers of trained parameters, in the order of the table, for a model of width $d$ with $L$ blocks.

# %% exercise=map.trained points=3 minutes=10
def map_trained(d, L, r, P, m):
    """(LoRA on query and value, prompt, prefix, adapters): how many numbers each trains."""
    ### BEGIN SOLUTION
    return 2 * L * r * (d + d), P * d, 2 * P * L * d, 2 * L * (2 * d * m + m + d)
    ### END SOLUTION

# %%
result = tp.check("map.trained", map_trained)
trained = result.function
result

# %%
models = {"base": (128, 5, 1_155_456), "GPT-2 small": (768, 12, 124_439_808), "GPT-2 XL": (1600, 48, 1_557_611_200),
          "7 B": (4096, 32, 6.7e9)}                                       # name → d, L, parameters
names = {"lora": "LoRA, r = 8", "prompt": "prompt, P = 20", "ptuning_v2": "prefix, P = 20", "adapter": "adapters, m = 64"}
shares = np.array([100 * np.array(trained(d, L, 8, 20, 64)) / N for d, L, N in models.values()])
fig, ax = plot.figure(height=3)
N = [n for *_, n in models.values()]
for key, share in zip(names, shares.T, strict=True):
    mark = plot.mark(key)
    ax.loglog(N, share, **mark)
    ax.annotate(names[key], (N[-1], share[-1]), xytext=(8, {"lora": -6, "ptuning_v2": 6}.get(key, 0)), va="center",
                textcoords="offset points", color=plot.ink(mark["color"]))
for name, n in zip(models, N, strict=True): ax.annotate(name, (n, 30), ha="center", fontsize=9)
ax.set(xlabel="parameters of the model", ylabel="trained, % of them", xlim=(6e5, 3e11), ylim=(5e-5, 60))
fig

# %% [markdown]
# *What to see: at fixed sizes every method's share falls as models grow, roughly as one over their width; on a small
# model "parameter-efficient" costs several per cent.* Weigh the axes in what follows by this: our base is at the left
# edge, the papers at the right.
#
# ## How many bits
#
# Codes of $b$ bits are not all that is stored: each group of $g$ weights has its scale, and perhaps its zero point:
#
# $$\text{bits per weight} = b + \frac{\text{bits of } s + \text{bits of } z}{g} \tag{5}$$
#
# ### {exercise}
#
# Compute equation (5) for one more case as well: the scales themselves may be quantized (double quantization, lesson
# 13). Then `scale_bits` is what a quantized scale takes, and for every `outer` scales there is one number of 32 bits on
# top; `outer` = 0 means no second level.

# %% exercise=map.bits points=2 minutes=5
def map_bits(bits, group, scale_bits, zero_bits, outer):
    """Bits per weight, the scales' own scales included."""
    ### BEGIN SOLUTION
    per_group = scale_bits + zero_bits + (32 / outer if outer else 0)
    return bits + per_group / group
    ### END SOLUTION

# %%
result = tp.check("map.bits", map_bits)
bits_per_weight = result.function
result

# %%
print(f"NF4, blocks of 64, float32 scales     {bits_per_weight(4, 64, 32, 0, 0):.3f}")               # equation (5)
print(f"the same, doubly quantized            {bits_per_weight(4, 64, 8, 0, 256):.3f}")
groups = 2.0 ** np.arange(4, 13)
fig, ax = plot.figure(height=2.8)
for bits, colour in ((8, "grey"), (4, "blue"), (3, "vermillion"), (2, "green")):
    gigabytes = [7 * bits_per_weight(bits, g, 16, bits, 0) / 8 for g in groups]
    ax.semilogx(groups, gigabytes, "o-", color=plot.COLOURS[colour], ms=4, base=2)
    ax.annotate(f"{bits} bits", (groups[-1], gigabytes[-1]), xytext=(6, 0), textcoords="offset points", va="center",
                color=plot.ink(plot.COLOURS[colour]))
ax.set(xlabel="weights that share a float16 scale and a zero point", ylabel="7 billion weights, GB", xlim=(13, 8000),
       ylim=(0, 9))
fig

# %% [markdown]
# *What to see: small groups cost; at 16 weights per scale, "2 bits" are more than three.* Above 128 there is little
# left to save.
#
# ## One sign, two conventions
#
# Every library writes $\hat x = s\,(q - z)$, as equation (4). Zhao et al. (arXiv 2303.18223, section 5.4), whose
# outline the survey follows in its part on quantization, write
#
# $$x_q = R(x/S) - Z, \qquad \tilde x = S\,(x_q + Z) \tag{6}$$
#
# with $R$ for rounding. The same codes, the same scale, but $Z = -z$. Codes decoded with the wrong sign are shifted by
# $2z$ steps: garbage that has the right shape and dtype.
#
# ### {exercise}
#
# Quantize the array `x` to codes $0 \dots 2^b - 1$: the range is $[l, h]$ with $l = \min(x_{min}, 0)$ and
# $h = \max(x_{max}, 0)$, so that 0 is a grid point, and $s = (h - l)/(2^b - 1)$. Round with `np.rint`. For `convention`
# "library" the zero point is $z = \mathrm{round}(-l/s)$ with equation (4), for "survey" $Z = \mathrm{round}(l/s)$ with
# equation (6). Return `(codes, s, zero point)`, everything as floats. Clip the codes to $0 \dots 2^b - 1$: the ends of a
# symmetric range lie midway between two codes, and without the clip its largest number gets the code $2^b$, which would
# become 0 in $b$ bits.

# %% exercise=map.signs points=3 minutes=10
def map_signs(x, bits, convention):
    """(codes, scale, zero point) of an asymmetric quantizer, in the sign convention asked for."""
    ### BEGIN SOLUTION
    l, h = min(x.min(), 0.0), max(x.max(), 0.0)
    s = (h - l) / (2 ** bits - 1)
    z = np.rint(-l / s)
    codes = np.clip(np.rint(x / s) + z, 0, 2 ** bits - 1)
    return codes, s, z if convention == "library" else -z
    ### END SOLUTION

# %%
result = tp.check("map.signs", map_signs)
signs = result.function
result

# %%
x = np.array([-0.4, 0.0, 0.1, 1.0])
decoders = {"library": lambda q, s, z: s * (q - z), "survey": lambda q, s, z: s * (q + z)}           # equations (4) and (6)
for convention, decode in decoders.items():
    codes, s, z = signs(x, 4, convention)
    print(f"{convention:8} codes {codes.astype(int)}  zero point {z:+.0f}  decoded {np.round(decode(codes, s, z), 3)}")

# %% [markdown]
# ## The letters
#
# | here, in code | shape | the paper | the survey |
# |---|---|---|---|
# | LoRA `A`, `B`, `rank` | $(r, d_{in})$, $(d_{out}, r)$ | $A$ ($r \times k$), $B$ ($d \times r$), $r$: $W_0 + BA$ | $A$ ($m \times k$), $B$ ($k \times n$), rank $k$: $W + AB$ |
# | AdaLoRA `P`, `Lam`, `Q` | $(d_{out}, r)$, $(r,)$, $(r, d_{in})$ | $P \Lambda Q$, budget $b(t)$ | $W^0 + \delta$, $\delta = P \Lambda Q$ |
# | DyLoRA `A`, `B`, rank $b$ | as LoRA, cut | $W_{dw\downarrow b}$, $W_{up\downarrow b}$ | "LoRA blocks" |
# | adapter `W_d`, `W_u`, `bottleneck` | $(m, d)$, $(d, m)$ | $W_d$, $W_u$, $m$ | the same, with $\sigma$ on the way up, too |
# | parallel `W_down`, `W_up`, `scale` | $(m, d)$, $(d, m)$ | transposed: $f(x W_{down}) W_{up}$, $s$ | no formula |
# | prefix table | $(P, 2Ld)$ | $P_\theta$, from $P'_\theta$ by an MLP | a small matrix, mapped by an MLP |
# | prompt `P_e`, `length` | $(P, d)$ | $P_e$, length $p$ | "prompt tokens" |
# | P-tuning `embedding`, `prompt()` | $(P, d)$ | $[P_i]$, $h_i$ | context, prompt, target |
# | `scale` $s$, `zero` $z$, codes $q$ | per block | every paper its own | $S$, $Z$ (sign!), $x_q$ |
#
# Weights are always $(d_{out}, d_{in})$ here, and $y = x W^\top + b$. Some letters have two lives; the lesson always
# says which one it means:
#
# | letter | may be |
# |---|---|
# | $P$ | number of virtual tokens; AdaLoRA's left vectors; position table; $p$ are probabilities |
# | $m$ | adapter's width; Adam's first moment; the survey's number of rows |
# | $k$ | survey's rank; LoRA's paper's input width; keys |
# | $s$, $\alpha$ | LoRA's $\alpha/r$ and He's scale; a quantizer's step; SmoothQuant's and AWQ's exponent |
# | $\beta$, $\gamma$ | layer norm's shift and gain; decay of averages in Adam and AdaLoRA; weight of its penalty |
# | $Q$ | queries; AdaLoRA's right vectors; a quantizer |
#
# Where will it lead? The main job, `python -m tinypeft`, compares everything in a minute:

# %%
show("compare")

# %% [markdown]
# *What to see: above, loss over trained parameters after very few steps: more is not always better. Below, perplexity, sorted by bits: nothing is lost at eight; at four and three the schemes part.*
#
# ### {exercise} · Before you begin (open, 3 points, 15 minutes)
#
# Three customers: a phone keyboard that must switch between a hundred users; a student with one 24 GB card and a model
# of 7 billion parameters; a server that answers requests of fifty tasks in one batch. From the map alone, choose a
# method (and bits) for each, with two sentences of reasons and one number computed with your functions above. Keep what
# you wrote, and correct it after lesson 15.
#
# *Rubric: 1 point per customer, for a choice whose reason is a property from this page (stored size, merging, longer
# input, mixed batches, bits) and whose number is right. There is more than one good answer.*

# %% [answer]
# Any choice that a property on the page supports earns its point. For example:
#
# - *The keyboard.* A prompt or a prefix, or a LoRA that is not merged, on one base of 4 bits: the users share the base, and
#   switching means to exchange a small file. A LoRA of rank $r$ on query and value has $2 \cdot 2 \cdot r\,d\,L$ numbers:
#   with $r = 4$, $d = 768$ and $L = 12$ these are 147,456, or 288 KiB in 16 bits. A hundred full models are out of question.
# - *The student.* QLoRA. Full fine-tuning takes 16 bytes per parameter, 112 GB. The weights take 14 GB in 16 bits and
#   $7 \cdot 10^9 \cdot 4.127 / 8 = 3.6$ GB in NF4 with double quantization. LoRA on 16 bits is also right, if the answer
#   says that about 10 GB remain for activations.
# - *The server.* What enters as input can differ from row to row: prompts and prefixes; unmerged LoRAs with one product for
#   each task in the batch. Merged models, or fifty copies, cannot share a batch. A prompt of $P$ tokens makes every row
#   $P$ tokens longer.

# %% [markdown]
# ## Recall
#
# <details><summary>1. Which methods can be merged into the model, and why?</summary>
# Those that change weights: LoRA, AdaLoRA, DyLoRA. A weight plus a matrix is a weight.
# </details>
# <details><summary>2. What do prompts and prefixes have in common, and in what do they differ?</summary>
# Both add virtual positions and leave all weights alone. A prompt enters once, at the input; a prefix gives every layer
# keys and values.
# </details>
# <details><summary>3. Does "0.1 % trained" mean that training takes 0.1 % of the memory?</summary>
# No. It shrinks gradients and optimizer state; weights and most activations stay (lesson 03).
# </details>
# <details><summary>4. Why is a 4-bit format never exactly 4 bits per weight?</summary>
# Scales, and zero points where there are any, are stored as well: (bits of s + bits of z)/g on top.
# </details>
# <details><summary>5. A file says zero point −8, your library expects +8. What happened?</summary>
# The other sign convention: S(q + Z) instead of s(q − z). Flip the sign, the codes are the same.
# </details>
#
# ## Where the paper says this
#
# - Matarazzo & Torlone, arXiv 2501.04040, section 3.6; for the mathematics go to the papers in the map.
# - Zhao et al., arXiv 2303.18223, section 5.4, for the part on quantization.
# - He et al., arXiv 2110.04366, were the first to write LoRA, adapters and prefixes as one family: what is added,
#   where, and how it is scaled.
#
# ## Where implementations differ
#
# - Hugging Face PEFT calls prefix tuning and P-tuning v2 by one class, `PrefixTuningConfig`; bottleneck adapters and
#   DyLoRA it has not.
# - "Scale" in one program is $\alpha/r$, in another $\alpha$, in a third a number of its own; here $\alpha$ is always
#   divided.
# - "4 bit" may be symmetric with 15 or 16 levels, asymmetric, or NF4. Lesson 10 sorts them.
#
# **Now you can** place every method of the course on one page. Next: [01 · Autograd](01_autograd.ipynb), the engine
# under all of them.
