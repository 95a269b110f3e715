# %% [markdown]
# # 14 · Training with quantization: STE, LSQ, LLM-QAT, PEQA
#
# **What you will do.** Send a gradient through a function whose derivative is zero, and see why it works and what it
# costs (STE); derive the gradient of the step size and train it with the weights (LSQ); train nothing but the scales of
# a quantized model (PEQA); and train a quantized model on text that its own teacher has written (LLM-QAT). At 2 bits,
# where rounding alone leaves a ruin, each of these is put to the test.
#
# **What you need.** Grids and clipping (lesson 10), autograd's backward functions (lesson 01), cross-entropy and
# softmax (lesson 02).
#
# **Time.** 65 minutes: 35 of reading and running, 30 to 45 of exercises.

# %%
import copy
import math

import numpy as np

import tinypeft as tp
from tinypeft.course import show
from tinypeft.quant import llm_qat, peqa, rounding
from tinypeft.study import plot

model = tp.load_pretrained()
task = tp.tasks.domain(model.tokenizer, context=128)
def perplexity(m): return tp.evaluate(m, task, "test", max_batches=2)["perplexity"]
W = model.get("blocks.2.mlp.up").weight.data                              # (512, 128)

# %% [markdown]
# ## 1. A gradient where there is none
#
# Quantization-aware training computes the loss with rounded weights and changes the floats behind them. As a function,
# rounding is a staircase:
#
# $$\hat x = s\,(q - z), \qquad q = \mathrm{clip}\left(\lfloor x/s \rceil + z,\ l,\ h\right)$$
#
# Its derivative is 0 almost everywhere, so backpropagation would change nothing, ever. The **straight-through
# estimator** (STE) takes the staircase for the ramp that it follows:
#
# $$\frac{\partial \hat x}{\partial x} := 1 \ \text{ for } l < x/s + z < h, \qquad 0 \ \text{ outside}$$

# %%
show(rounding.fake_quantize)

# %% [markdown]
# ### {exercise}
#
# Write `qat_ste(x, s, z, low, high, dy)`: $\mathrm dx$, given $\mathrm dy = \partial L/\partial \hat x$, by the
# equation above, with strict inequalities. `x` and `dy` have one shape, the others are numbers.

# %% exercise=qat.ste points=2 minutes=5
def qat_ste(x, s, z, low, high, dy):
    """x, dy float (any shape); s > 0, z, low, high numbers → dx, of the same shape."""
    ### BEGIN SOLUTION
    u = x / s + z
    return dy * ((low < u) & (u < high))
    ### END SOLUTION

# %%
result = tp.check("qat.ste", qat_ste)
result

# %% [markdown]
# What does a descent with such a gradient do? Let there be one weight, the grid of all integers, and the loss
# $(\hat w - 0.3)^2$. The best grid point is 0. The STE's gradient at $\hat w = 0$ is $2(0 - 0.3) < 0$: up; at $\hat w =
#   1$ it is $2(1 - 0.3) > 0$: down.

# %%
qat_ste = result.function
w, path = 0.9, []
for _ in range(80):
    w_hat = float(np.rint(w))
    path.append((w, w_hat))
    w -= 0.05 * qat_ste(np.array([w]), 1.0, 8, 0, 15, np.array([2 * (w_hat - 0.3)]))[0]
path = np.array(path)

fig, (left, right) = plot.figure(1, 2, height=3.2, width=9)
x = np.linspace(-2.6, 2.6, 521)
left.plot(x, np.clip(np.rint(x), -2, 1), color=plot.COLOURS["blue"], label="x̂")
left.plot(x, qat_ste(x, 1.0, 2, 0, 3, np.ones_like(x)), color=plot.COLOURS["vermillion"], label="STE: ∂x̂/∂x")
left.set(xlabel="x/s", ylabel="x̂/s, and the derivative used")
left.legend()
right.plot(path[:, 0], color=plot.COLOURS["vermillion"], label="w, a float")
right.step(range(80), path[:, 1], where="mid", color=plot.COLOURS["blue"], label="ŵ, its integer")
right.axhline(0.3, color=plot.COLOURS["grey"], lw=1, ls="--")
right.set(xlabel="step", ylabel="weight", ylim=(-0.1, 1.5))
right.legend(loc="upper right", ncols=2)
fig

# %% [markdown]
# *What to see:* Left, the derivative that is used is that of the ramp between the clipping points. Right, the float
# does not come to rest: it is driven to the border between two integers and goes to and fro across it, and $\hat w$
# flips between 0 and 1. Their *average* comes near the target 0.3 (dashed). A weight alone cannot settle; in a layer of
# thousands the flips partly cancel, and a learning rate that falls to zero ends them.
#
# ## 2. LSQ: learn the step
#
# If $\hat x$ has a gradient with respect to $x$, it has one with respect to $s$. Differentiate $\hat x = s\,(q - z)$,
# passing straight through the rounding inside $q$, and use $u = x/s$:
#
# $$\frac{\partial \hat x}{\partial s} = \begin{cases} \lfloor u \rceil - u & \text{inside} \\ l - z \text{ or } h - z & \text{outside} \end{cases}$$

# %%
show(rounding.fake_quantize, "slope")

# %% [markdown]
# Inside, that is the rounding error, in units of the step; outside, a clipped number moves with the end of the range.
# So the step finds the balance between rounding and clipping (lesson 10, section 4) by descent, and for the *loss*, not
# for the weights.
#
# The step starts at $2\langle|x|\rangle/\sqrt{Q_P}$, with $Q_P = h - z$, the largest positive code. And because all $N$
# weights that share it add to its gradient, LSQ multiplies that by
#
# $$g = \frac{1}{\sqrt{N\, Q_P}}$$

# %%
show(rounding.LearnedStep.__init__, "self.g")

# %% [markdown]
# Steps and weights then move at like relative speeds. This is meant for SGD; Adam divides any constant factor out
# again.
#
# ### {exercise}
#
# Write `qat_lsq(x, s, bits, dy)` for symmetric signed codes $-Q_N, \dots, Q_P$ with $Q_N = 2^{b-1}$ and
# $Q_P = 2^{b-1} - 1$ ($z = 0$), rows `x (n, B)` and one step per row `s (n,)`. Return $(\hat x, \mathrm dx, \mathrm ds)$, $\mathrm
#   ds$ `(n,)` with the factor $g$. "Inside" is $-Q_N < x/s < Q_P$, as in the paper.

# %% exercise=qat.lsq points=4 minutes=15
def qat_lsq(x, s, bits, dy):
    """x, dy float (n, B), s (n,) > 0 → (x_hat (n, B), dx (n, B), ds (n,))."""
    ### BEGIN SOLUTION
    Q_N, Q_P = 2**(bits - 1), 2**(bits - 1) - 1
    u = x / s[:, None]
    k = np.clip(np.rint(u), -Q_N, Q_P)
    inside = (-Q_N < u) & (u < Q_P)
    g = 1 / math.sqrt(x.shape[1] * Q_P)
    return s[:, None] * k, dy * inside, g * (dy * np.where(inside, k - u, k)).sum(1)
    ### END SOLUTION

# %%
result = tp.check("qat.lsq", qat_lsq)
result

# %% [markdown]
# Try it where the answer is known: descend on $\|\hat x - x\|^2$ for one row of real weights, moving the step alone.

# %%
qat_lsq = result.function
row = W[:1].astype(float)
square = lambda s, bits: float(np.sum((qat_lsq(row, np.array([s]), bits, row)[0] - row)**2) / np.sum(row**2))
fig, ax = plot.figure(height=3.4, width=6.8)
for bits, colour in ((2, "vermillion"), (3, "green"), (4, "blue")):
    start = 2 * np.abs(row).mean() / math.sqrt(2**(bits - 1) - 1)
    steps = np.geomspace(start / 4, start * 4, 200)
    ax.plot(steps, [square(s, bits) for s in steps], color=plot.COLOURS[colour], lw=1)
    s = start
    for _ in range(300):
        x_hat, _, _ = qat_lsq(row, np.array([s]), bits, row)
        s -= 0.02 * qat_lsq(row, np.array([s]), bits, 2 * (x_hat - row))[2][0]
    ax.plot(start, square(start, bits), "o", mfc="none", color=plot.COLOURS[colour])
    ax.plot(s, square(s, bits), "o", color=plot.COLOURS[colour], label=f"{bits} bits")
ax.set(xscale="log", yscale="log", xlabel="step s", ylabel="‖x̂ − x‖²/‖x‖²")
ax.set_xticks([0.02, 0.05, 0.1, 0.2, 0.5], [0.02, 0.05, 0.1, 0.2, 0.5])
ax.minorticks_off()
ax.set_title("LSQ's start (ring), and where its gradient leads (dot)", loc="left", fontsize=10)
ax.legend()
fig

# %% [markdown]
# *What to see:* The rule for the start is a guess, here some 1.7 times too wide at every width; the gradient leads from
# there into the valley, although rounding made every piece of it.
#
# ## 3. PEQA: train the scales and nothing else
#
# Full quantization-aware training moves every weight, and needs for each a float, a gradient and an optimizer's state:
# nothing is saved until it is over. PEQA keeps the codes of round to nearest, *frozen*, and trains one number per
# output channel or per group:
#
# $$\hat W = (s_0 + \Delta s) \odot (q - z_0)$$
#
# With $G = \partial L/\partial \hat W = \mathrm dy^\top x$, and the sum over the weights that share a scale,
#
# $$\frac{\partial L}{\partial s_i} = \sum_j G_{ij}\,(q_{ij} - z_{0,i})$$

# %%
show(peqa.scaled_linear)

# %% [markdown]
# Both LSQ and PEQA train $s$, but not the same function of it. In LSQ a larger step also changes which code a weight
# gets; in PEQA the codes stay, and $\hat W$ is *linear* in $s$: no estimator, an exact gradient.
#
# ### {exercise}
#
# Write `qat_peqa(x, dy, q, z, g)`: $\partial L/\partial s$, `(d_out, d_in/g)`, where each group of `g` consecutive
# weights of a row has a scale and a zero point `z (d_out, d_in/g)`. `x (n, d_in)`, `dy (n, d_out)`, `q (d_out, d_in)`
# codes.

# %% exercise=qat.peqa points=3 minutes=10
def qat_peqa(x, dy, q, z, g):
    """x (n, d_in), dy (n, d_out), q (d_out, d_in), z (d_out, d_in/g) → ds (d_out, d_in/g)."""
    ### BEGIN SOLUTION
    G = dy.T @ x
    C = q - np.repeat(z, g, axis=1)
    return (G * C).reshape(len(q), -1, g).sum(2)
    ### END SOLUTION

# %%
result = tp.check("qat.peqa", qat_peqa)
result

# %% [markdown]
# ## 4. The test: 2 bits
#
# Asymmetric 2-bit weights in groups of 32, 30 steps of 4 × 128 tokens each of Matplotlib's documentation. `convert`
# puts integers in place of the floats afterwards; the function stays the same. Beside them, a LoRA on frozen 2-bit
# codes (lesson 13), and the float model trained on the same text, as a mark of what 30 steps of new text are worth.

# %%
groups = dict(symmetric=False, granularity="group", group_size=32)
runs = {"float32, trained": (None, 3e-4), "STE": (tp.FakeQuant(bits=2, **groups), 1e-3),
        "LSQ": (tp.FakeQuant(bits=2, learn_step=True, **groups), 1e-3),
        "PEQA": (tp.PEQA(bits=2, group_size=32), 3e-3), "QLoRA": (tp.Uniform(bits=2, **groups), 3e-3)}
curves, ends = {}, {}
for name, (scheme, lr) in runs.items():
    m = copy.deepcopy(model)
    if scheme: m = tp.quantize(m, scheme)
    if name == "QLoRA": m = tp.attach(m, tp.LoRA(rank=8, targets="all"), rng=0)
    trained = sum(p.data.size for p in m.parameters() if p.requires_grad)
    start = perplexity(m)
    curves[name] = tp.train(m, task, steps=30, batch_size=4, lr=lr, seed=0, progress=False).loss
    if name in ("STE", "LSQ", "PEQA"): m = tp.convert(m)
    ends[name] = perplexity(m)
    print(f"{name:17} {trained:>9,} trained   perplexity {start:6.2f} → {ends[name]:6.2f}")
print(f"{'float32, as it is':17} {'':>9}           perplexity {perplexity(model):6.2f}")

# %%
fig, ax = plot.figure(height=3.4, width=6.8)
ends_of_lines = []
for (name, loss), colour, style in zip(curves.items(), ("grey", "black", "blue", "orange", "green"), ("--", "-", "-", "-", "-"),
                                       strict=True):
    y = np.convolve(loss, np.ones(5) / 5, "valid")
    ax.plot(np.arange(len(y)) + 3, y, style, color=plot.COLOURS[colour])
    ends_of_lines.append((len(y) + 2, y[-1], name, plot.COLOURS[colour]))
plot.label_ends(ax, ends_of_lines)
ax.set(xlabel="step", ylabel="training loss (nats/token), mean of 5 steps", xlim=(2, 36))
fig

# %% [markdown]
# *What to see:* All four repair most of what rounding broke, in thirty steps. Moving every weight (STE, LSQ) goes
# furthest and needs the memory of full fine-tuning; PEQA trains one number in 32 of the base's and leaves nothing
# behind but a 2-bit model; the LoRA keeps its own floats beside the codes. This is one seed and one learning rate for
# each; the study has more:

# %%
show("qat")

# %% [markdown]
# ## 5. LLM-QAT: no data
#
# The text that a large model was trained on is often not at hand, and a small substitute would teach it that text's
# habits. Liu et al. let the full-precision model write its own: a first token at random, the next few the likeliest,
# the rest drawn from its distribution. Then the quantized student S learns to predict as the teacher T does:
#
# $$L = \frac1n \sum_i \mathrm{KL}\left(p_T(\cdot \mid x_{<i})\, \|\, p_S(\cdot \mid x_{<i})\right)$$
#
# Weights, inputs of the layers and the keys and values of the cache are all rounded, symmetrically and without
# clipping, $\hat X = s \lfloor X/s \rceil$ with $s = \max|X|/(2^{b-1} - 1)$: "4-8-4" are the bits of the three.

# %%
show(llm_qat.SelfDistillation.loss)
show(llm_qat.LLMQAT.layer)

# %% [markdown]
# ### {exercise}
#
# Write `qat_distillation(teacher, student)`: from two arrays of logits `(n, V)` return the mean KL divergence above, a
# number, and its gradient with respect to the student's logits, `(n, V)`. The gradient is short; derive it. Mind large
# logits: subtract the row's maximum before you exponentiate.

# %% exercise=qat.distillation points=3 minutes=12
def qat_distillation(teacher, student):
    """Logits float (n, V), twice → (mean KL in nats, gradient with respect to `student`, (n, V))."""
    ### BEGIN SOLUTION
    def log_softmax(a):
        a = a - a.max(1, keepdims=True)
        return a - np.log(np.exp(a).sum(1, keepdims=True))
    log_p, log_q = log_softmax(teacher), log_softmax(student)
    p = np.exp(log_p)
    return np.sum(p * (log_p - log_q)) / len(teacher), (np.exp(log_q) - p) / len(teacher)
    ### END SOLUTION

# %%
result = tp.check("qat.distillation", qat_distillation)
result

# %%
own = tp.self_distillation(model, rows=24, held_out=4, length=48, rng=0)
print(model.tokenizer.decode(own.splits["train"][0]), "\n" + "-" * 40)
student = tp.quantize(copy.deepcopy(model), tp.LLMQAT())
before = tp.evaluate(student, own, "test"), perplexity(student)
distilled = tp.train(student, own, steps=30, batch_size=4, lr=3e-4, seed=0, progress=False)
after = tp.evaluate(student, own, "test"), perplexity(student)
for name, (mine, real) in (("rounded", before), ("trained", after)):
    print(f"{name}: KL from the teacher {mine['loss']:.3f} nats/token, same likeliest token {mine['agreement']:.0%}; on "
          f"real text, perplexity {real:.2f}")

# %% [markdown]
# *What to see:* The text is made up, but has the manner of the documentation the base was trained on. A student that
# has seen nothing else predicts real text better than the merely rounded one, and has learned nothing new that it could
# forget the old for. What remains to the float model's perplexity is the price of 4-bit weights and a 4-bit cache.
#
# ### {exercise} · Repair, or knowledge? (open, 4 points, 15 minutes)
#
# "Quantization-aware training is fine-tuning in disguise": in section 4 the test text is of the same kind as the
# training text, so a better perplexity may come from repaired rounding or from new knowledge. Design a measurement that
# separates the two, run it for one method, and say what you find. (Which of this lesson's methods gains nothing from
# new knowledge by construction?)
#
# <details><summary>Rubric</summary>
#
# 1 point: names a control that has nothing new to learn from. 1 point: a sound measurement. 1 point: run, with command and
# numbers. 1 point: a conclusion that the numbers bear out.
#
# </details>

# %% [answer]
# *By construction* LLM-QAT gains nothing from new knowledge: it distils from the float model on that model's own text. That
# makes it one control; text of the kind that the base was trained on is another.
#
# *Sound measurements.* (1) Train the float model for the same steps on the same text, and compare the *gap* to it before
# and after: what both gain is knowledge, what closes the gap is repair. (2) Perplexity on held-out Python, NumPy or SciPy
# documentation. (3) The KL from the float model. Compare nats, not points of perplexity: the same step in nats is many
# points for a bad model and few for a good one.
#
# *Conclusion.* Nearly everything that training gains at 2 bits is repair, since the float model hardly changes on the
# base's own text. On the domain's text a part is knowledge: the float model gains there, too.
# {claim Training with rounded weights beats} {claim LLM-QAT, trained on text}

# %% [markdown]
# ## Recall
#
# 1. Why does the STE's gradient vanish outside the range?
# <details><summary>Answer</summary>
#
# There $\hat x$ is constant, and so is the ramp that stands for the staircase: moving $x$ changes nothing.
#
# </details>
#
# 2. For $s = 1$, signed 3-bit codes, $x = 2.4$ and $x = 7$: what is $\partial \hat x/\partial s$?
# <details><summary>Answer</summary>
#
# $\lfloor 2.4 \rceil - 2.4 = -0.4$; and 7 is clipped, so $Q_P = 3$.
#
# </details>
#
# 3. What is in memory during FakeQuant training, and what afterwards?
# <details><summary>Answer</summary>
#
# Float weights, their gradients and the optimizer's state, and rounded copies for a moment; afterwards codes and
# scales.
#
# </details>
#
# 4. Why is PEQA's gradient exact while LSQ's is an estimate?
# <details><summary>Answer</summary>
#
# With frozen codes $\hat W$ is a linear function of the scales. In LSQ the codes depend on the step, by a staircase.
#
# </details>
#
# 5. Why does LLM-QAT not clip?
# <details><summary>Answer</summary>
#
# Its steps come from the largest magnitude. The authors found outliers of weights and activations too important to be
# cut off.
#
# </details>

# %% [markdown]
# ## Where the paper says this
#
# - STE: Bengio et al. (arXiv 1308.3432); in quantization-aware training, Jacob et al. (arXiv 1712.05877).
# - LSQ: Esser et al. (arXiv 1902.08153), equations (2), (3) and (5); LSQ+: Bhalgat et al. (arXiv 2004.09576).
# - LLM-QAT: Liu et al. (arXiv 2305.17888), §2.1 (the data) and equations (1) to (3). PEQA: Kim et al. (arXiv
#   2305.14152), equations (1) and (2).
#
# ## Where implementations differ
#
# - *Where the gradient stops.* LSQ's paper tests $l < u + z < h$; PyTorch tests the *rounded* value, half a step
#   further out: `FakeQuant(mask="torch")`.
# - *The zero point.* LSQ+ learns an offset as it is; PyTorch, and this package, round it to an integer, so that sums of
#   products stay integer.
# - *LLM-QAT's repository* stops the gradient where $|X| \ge 2$, though its forward pass clips nothing:
#   `LLMQAT(cutoff=2.0)`. Its loss is the cross-entropy, which is the KL plus the teacher's entropy, a constant.
# - *LSQ's factor g* has no effect under Adam, which nearly everybody uses.
#
# ## What you can do now
#
# Train through rounding, train steps and scales, and distil without data. You have now met every method and scheme of
# the survey. **Lesson 15** puts them side by side: what to choose for which model and memory.
