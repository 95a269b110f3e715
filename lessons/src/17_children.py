# %% [markdown]
# # 17 · LoRA's children
#
# **What you will do.** You get two checkpoints and no README. Which method made one from the other,
# and can it be merged? Of the many methods that came after LoRA twenty stand here. You do not learn
# their equations by heart. You learn the experiments that tell the answers apart: you name a method
# by what it did to a weight, design a change that DoRA makes and LoRA misses, and write a test that
# catches a wrong start.
#
# **What you need.** [Lesson 07](07_lora.ipynb), and singular values. Its bonus introduces DoRA;
# if you left it out, section 3 says what is needed.
#
# **Words and letters.** The [glossary](GLOSSARY.md) has those that all lessons share. $W$ is the
# frozen weight and $W'$ what training made of it. $\odot$ multiplies number by number.
# $C \otimes M$ is Kronecker's product: each number of $C$ times the whole of $M$, as blocks.
# $R$ is a rotation, $g$ a factor for each row.
#
# **Time.** 100 minutes: 50 of reading and running, 50 of exercises. The open exercise takes 30
# more, the bonus 10.

# %%
import numpy as np

import tinypeft as tp
from tinypeft.course import show
from tinypeft.course.slider import slider
from tinypeft.engine import AdamW
from tinypeft.peft import starts
from tinypeft.peft.changed import linear_of
from tinypeft.peft.dora import DoRALinear
from tinypeft.peft.lora import LoRALinear
from tinypeft.study import plot

base = tp.load_pretrained()
task = tp.tasks.invented(base, context=64, things=8)          # the catalogue of lesson 07
size = np.linalg.norm
STEPS = 20


def learn(method, **options):
    """A fresh copy of the base with `method`, trained; its training losses."""
    tuned = tp.attach(tp.load_pretrained(), method, rng=0)
    history = tp.train(tuned, task, STEPS, batch_size=4, seed=0, progress=False, **options)
    return tuned, np.array(history.loss)


print(f"on the catalogue the frozen base has {tp.evaluate(base, task, 'train')['loss']:.2f} nats "
      "per token")

# %% [markdown]
# ## 1. Seven questions
#
# LoRA computes with $W' = W + s B A$. Each part of this is a choice, and could be another one:

# %%
show("schematic:children")

# %% [markdown]
# Five answers, each in one line:
#
# $$\underbrace{W + [D, D, \dots, D]}_{\text{MiSS}} \qquad \underbrace{W + W \odot B
# A}_{\text{HiRA}} \qquad \underbrace{W + s\,(B_1 A_1) \odot (B_2 A_2)}_{\text{LoHa}} \qquad
# \underbrace{W + s\, C \otimes B A}_{\text{LoKr}} \qquad
# \underbrace{W R^\top}_{\text{OFT}} \tag{1}$$
#
# MiSS repeats a thin $D$ of $r$ columns. Where $r$ does not divide the width, the last copy is cut
# off.
#
# **By hand.** 1. HiRA multiplies $W$ by a matrix of rank 1, number by number:
#
# $$W = \begin{pmatrix} 1 & 1 & 0 \\ 0 & 1 & 1 \\ 1 & 0 & 1 \end{pmatrix}, \qquad
# BA = \begin{pmatrix} 1 \\ 2 \\ 3 \end{pmatrix} \begin{pmatrix} 1 & 1 & 2 \end{pmatrix}
# = \begin{pmatrix} 1 & 1 & 2 \\ 2 & 2 & 4 \\ 3 & 3 & 6 \end{pmatrix}, \qquad
# W \odot BA = \begin{pmatrix} 1 & 1 & 0 \\ 0 & 2 & 4 \\ 3 & 0 & 6 \end{pmatrix}$$
#
# The determinant of the change is $1 \cdot (12 - 0) - 1 \cdot (0 - 12) = 24$, so its rank is 3.
# Six numbers of $B$ and $A$ make it. A LoRA of six numbers has rank 1.
#
# 2. OFT turns. Cayley's formula makes a rotation of a number $q$:
#
# $$R = (I + Q)(I - Q)^{-1}, \qquad Q = \begin{pmatrix} 0 & q \\ -q & 0 \end{pmatrix} \tag{2}$$
#
# Since $Q^\top = -Q$, $R^\top = (I + Q)^{-1} (I - Q)$ is the inverse of $R$, so $R$ keeps lengths
# and angles. For $q = 1/2$, $(I - Q)^{-1} = \frac{1}{1.25} \begin{pmatrix} 1 & 0.5 \\ -0.5 & 1
# \end{pmatrix}$, and $R = \begin{pmatrix} 0.6 & 0.8 \\ -0.8 & 0.6 \end{pmatrix}$. A row $(3, 4)$
# becomes $(0.6 \cdot 3 + 0.8 \cdot 4,\ -0.8 \cdot 3 + 0.6 \cdot 4) = (5, 0)$. Its length was 5
# before, too.

# %%
W3 = np.array([[1., 1, 0], [0, 1, 1], [1, 0, 1]])
BA = np.array([[1.], [2], [3]]) @ np.array([[1., 1, 2]])
print("HiRA's change:", (W3 * BA).tolist(), "of rank", np.linalg.matrix_rank(W3 * BA))


def turned(q, row=(3, 4)):
    I, Q = np.eye(2), np.array([[0, q], [-q, 0]])
    R = (I + Q) @ np.linalg.inv(I - Q)                                                   # (2)
    return R @ row


ends = {q: turned(q) for q in (-1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0)}
round_trip = np.linspace(0, 2 * np.pi, 100)
slider("q", {q: ([0, x], [0, y]) for q, (x, y) in ends.items()},
       captions={q: f"(3, 4) becomes ({x:.2f}, {y:.2f}), of length {np.hypot(x, y):.2f}"
                 for q, (x, y) in ends.items()},
       behind={"(3, 4)": ([0, 3], [0, 4]), "length 5": (5 * np.cos(round_trip),
                                                        5 * np.sin(round_trip))},
       xlabel="first input", ylabel="second input", equal=True)

# %% [markdown]
# ### {exercise}
#
# Row $i$ of `W` $(d_\text{out}, d_\text{in})$ shall become $g_i$ times as long, in its direction.
# Return $B$ $(d_\text{out}, 1)$ and $A$ $(1, d_\text{in})$ of the HiRA of rank 1 that does it:
# row $i$ of $W + W \odot B A$ is $g_i w_i$.

# %% exercise=children.stretch points=1 minutes=5 as=my_stretch
def children_stretch(W, g):
    """B (d_out, 1) and A (1, d_in): W + W ⊙ B A is W (d_out, d_in) with rows g (d_out,) as long."""

# %%
def hira(W, B, A):
    return W + W * (np.asarray(B) @ np.asarray(A))


print(hira(W3, *my_stretch(W3, np.array([1., 2, 3]))))

# %% [markdown]
# What does such a change look like in a larger weight? Here the trained numbers are random:

# %%
show("changes_of_a_weight")

# %% [markdown]
# *What to see: rank is one limit among others. MiSS repeats its columns, C³A goes round in
# circles, SHiRA leaves most places alone, FourierFT is a sum of few waves with trained heights.
# DoRA, RandLoRA, HiRA, C³A and OFT train few numbers and reach the full rank of 48.* (Where
# some of its singular values are tiny, a trained change counts as a little less than full below.)
#
# ## 2. Name it by its marks
#
# Somebody hands you a weight before and after, and has forgotten the method. In a picture of a
# trained $\Delta W = W' - W$ you see little. So test sentences that are true or false of its
# numbers. Each method has such a mark:
#
# | word | what is true of $W'$ and $\Delta W = W' - W$ |
# |---|---|
# | `"MiSS"` | for some $r$, at most a quarter of $d_\text{in}$, column $j + r$ of $\Delta W$ is column $j$, up to the last column |
# | `"C3A"` | for some $b \ge 2$ that divides both sides, $\Delta W$ consists of $b \times b$ blocks in which each row is the row above, moved one place to the right; what leaves at the right comes in at the left |
# | `"SHiRA"` | at least nine of ten numbers of $\Delta W$ are 0 |
# | `"OFT"` | $W' = W R^\top$ with a rotation $R$: the lengths of all rows stay, and the angles between them |
# | `"LoRA"` | the rank of $\Delta W$ is at most a quarter of its smaller side |
# | `"HiRA"` | $\Delta W = W \odot M$, and the rank of $M$ is at most a quarter of its smaller side |
# | `"none"` | nothing of this |
#
# ### {exercise}
#
# Return the word. If several marks hold, the first one in the table counts. `W` and `W2`
# $(d_\text{out}, d_\text{in})$ are float32, so their difference carries rounding: a difference
# below $10^{-4}$ of the largest number of $\Delta W$ counts as 0, and a rank is the number of
# singular values above $10^{-4}$ of the first. No number of `W` is 0. You do not know $r$ or $b$,
# and the change may be a thousandth of the weight, or less.

# %% exercise=children.which points=4 minutes=20 as=my_which
def children_which(W, W2):
    """The word for what training made of W, (d_out, d_in): W2."""
    ### BEGIN SOLUTION
    W, W2 = W.astype(float), W2.astype(float)
    D = W2 - W
    d_out, d_in = D.shape
    small = lambda E, of=D: abs(E).max() <= 1e-4 * abs(of).max()
    def low(M):
        S = np.linalg.svd(M, compute_uv=False)
        return (S > 1e-4 * S[0]).sum() <= min(M.shape) // 4
    def circular(b):
        blocks = D.reshape(d_out // b, b, d_in // b, b)
        return small(np.roll(blocks, (1, 1), (1, 3)) - blocks)

    if any(small(D[:, r:] - D[:, :-r]) for r in range(1, d_in // 4 + 1)): return "MiSS"
    if any(circular(b) for b in range(2, d_in + 1) if d_out % b == d_in % b == 0): return "C3A"
    if np.mean(D == 0) >= 0.9: return "SHiRA"
    if small(W2 @ W2.T - W @ W.T, W @ D.T): return "OFT"
    if low(D): return "LoRA"
    return "HiRA" if low(D / W) else "none"
    ### END SOLUTION

# %% [markdown]
# Now on weights that were really trained. Eight methods learn the catalogue for 20 steps, on query
# and value, each at its own default rate, and *every number* at 0.01. Your function looks at all
# ten weights of each:

# %%
methods = {
    "LoRA": tp.LoRA(rank=8), "DoRA": tp.DoRA(rank=8), "MiSS": tp.MiSS(rank=16),
    "HiRA": tp.HiRA(rank=8), "C³A": tp.C3A(block_size=16),
    "SHiRA": tp.SHiRA(rank=4), "OFT": tp.OFT(block_size=16),
    "every number": tp.FullFineTuning(targets=("query.weight", "value.weight"))}
arms = {name: learn(m, **({"lr": 1e-2} if name == "every number" else {}))
        for name, m in methods.items()}
paths = [f"blocks.{i}.attention.{part}" for i in range(5) for part in ("query", "value")]


def before_after(tuned, path):
    return base.get(path).weight.data, tuned.model.get(path).dense_weight()


def rank_of(D):
    S = np.linalg.svd(D, compute_uv=False)
    return int((S > 1e-4 * S[0]).sum())


print(f"{'':22}rank of ΔW\n{'method':13}{'trained':>8}  (blocks.2, query)  loss after"
      "   your word, for ten weights")
for name, (tuned, losses) in arms.items():
    pairs = [before_after(tuned, path) for path in paths]
    named = [my_which(W, W2) for W, W2 in pairs]
    said = ", ".join(f"{word} {named.count(word)}" for word in dict.fromkeys(named))
    print(f"{name:13}{tuned.summary().trained:8,}{rank_of(np.subtract(*pairs[4])):14}"
          f"{losses[-5:].mean():17.2f}   {said}")

# %% fold
fig, ax = plot.figure(height=3.2)
alike, smooth = ("LoRA", "DoRA", "SHiRA", "OFT"), {}
for name, (_, losses) in arms.items(): smooth[name] = np.convolve(losses, np.ones(5) / 5, "valid")
labels = [(STEPS, np.mean([smooth[name][-1] for name in alike]), ", ".join(alike), "#8A8A8A")]
looks = {"MiSS": ("blue", "-"), "HiRA": ("vermillion", "-."), "C³A": ("green", "--"),
         "every number": ("black", "-")}
for name, y in smooth.items():
    colour, style = looks.get(name, ("grey", "-"))
    ax.plot(np.arange(5, STEPS + 1), y, color=plot.COLOURS[colour], ls=style)
    if name in looks: labels.append((STEPS, y[-1], name, plot.COLOURS[colour]))
ax.set(xlabel="step (4 × 64 tokens each)", xlim=(4, STEPS + 7), xticks=range(5, STEPS + 1, 5),
       ylabel="loss on the catalogue,\nmean of 5 steps (nats/token)")
plot.label_ends(ax, labels, size=8)
fig.set_label("Falling curves of the loss over 20 steps, one for each of eight methods. LoRA, "
              "DoRA, SHiRA and OFT lie close together, in grey. The curve of every number ends "
              "lowest, and HiRA's highest. The table above has the numbers of their ends.")
fig

# %% [markdown]
# *What to see: six fall well, whatever shape they allow, C³A not quite two thirds as far as LoRA,
# and HiRA hardly at all. The rank of the
# change does not sort them: HiRA's is full.*
#
# Is HiRA bad? Its change is $W$ times the factors. The numbers of $W$ are about 1/12, so at LoRA's
# rate, 0.01, HiRA's steps change the weight by a 24th of LoRA's, which has $s = 2$ besides.
# **Predict** its loss after 20 steps at twelve times its rate, 0.12.

# %%
guess = tp.guess("17.hira", 3.0, "nats/token")

# %%
numbers = np.concatenate([base.get(path).weight.data.ravel() for path in paths])
faster = learn(tp.HiRA(rank=8), lr=0.12)[1][-5:].mean()
print(f"the root mean square of W is {np.sqrt(np.mean(numbers ** 2)):.3f}; "
      f"HiRA at 0.12 ends at {faster:.2f} nats per token")
guess.beside(faster)

# %% [markdown]
# From the last place of the table to the second, by one rate. So the table is no ranking.
# Lesson 15 says what a ranking takes.
#
# **On your own (★★★).** The table of marks has no row for LoKr. Find a mark of
# $C \otimes B A$, add it to your function, and test it on weights that `learn(tp.LoKr())` trained.
#
# MiSS, VeRA and RandLoRA ask why both factors should be trained. MiSS fixes $A$ to zeros and
# ones. The other two draw $A$ and $B$ at random, once for all layers, and train diagonals between
# them:
#
# $$\underbrace{\Lambda_b\, B\, \Lambda_d\, A}_{\text{VeRA}} \qquad
# \underbrace{s \sum_j B_j\, \Lambda_j\, A\, \Gamma_j}_{\text{RandLoRA, full rank}} \tag{3}$$
#
# No single weight shows this, but two do. The *row space* of a change has all sums of multiples of
# its rows. VeRA's changes share one $A$, so they share it. Two LoRAs share no more than chance
# gives:

# %%
def shared(method, steps=2):
    """How much of one layer's row space lies in another's: the mean of cos² of their angles."""
    tuned = tp.attach(tp.load_pretrained(), method, rng=0)
    tp.train(tuned, task, steps, batch_size=2, seed=0, progress=False)
    V = [np.linalg.svd(tuned.wrappers[p].delta())[2][:8] for p in (paths[0], paths[8])]
    return (V[0] @ V[1].T).ravel() @ (V[0] @ V[1].T).ravel() / 8


for name, method in (("VeRA", tp.VeRA(rank=8)), ("LoRA", tp.LoRA(rank=8))):
    print(f"{name}: layers share {shared(method):.0%} of their row spaces; by chance {8 / 128:.0%}")

# %% [markdown]
# ## 3. Length and direction
#
# DoRA (arXiv 2402.09353) writes each row $w$ of the weight as a length $m$ times a direction, and
# trains both:
#
# $$w' = m\, \frac{w + s\,(BA)_\text{row}}{\lVert w + s\,(BA)_\text{row} \rVert} \tag{4}$$
#
# A LoRA changes both at once. Is there a change that DoRA makes and a LoRA of the same rank does
# not? Take one in which no direction changes: row $i$ becomes $g_i w_i$. DoRA makes it with $m$
# alone. A LoRA of rank $r$ makes at best what the $r$ largest singular values of $\Delta W$ hold.
#
# ### {exercise}
#
# `W` $(d_\text{out}, d_\text{in})$ has `r` rows that are about ten times as long as the others, at
# unknown places. Return $g$ $(d_\text{out},)$, each factor from 0.5 to 2, such that no matrix of
# rank $r$ comes nearer to $\Delta W$, with the rows $(g_i - 1) w_i$, than 0.8 of its norm.

# %% exercise=children.lengths points=3 minutes=12 as=my_lengths
def children_lengths(W, r):
    """Factors g (d_out,) of the rows of W (d_out, d_in), beyond a LoRA of rank r."""

# %% [markdown]
# How much rank would a LoRA need? A real weight with eight rows made long, and two changes of it:
# by your factors, and by one factor for all rows.

# %%
W = base.get("blocks.2.attention.value").weight.data.astype(float)
W[::16] *= 10
g = np.asarray(my_lengths(W, 8))
changes = {"your factors": (g - 1)[:, None] * W, "one factor": 0.1 * W}
values = {name: np.linalg.svd(D, compute_uv=False) for name, D in changes.items()}
number = np.arange(1, 129)
def missed(S, r): return np.sqrt((S[r:] ** 2).sum() / (S ** 2).sum())
slider("rank of the LoRA",
       {r: {name: (number, np.where(number > r, S / S[0], 0)) for name, S in values.items()}
        for r in (1, 2, 4, 8, 16, 32, 64)},
       captions={r: ", ".join(f"{name}: {missed(S, r):.0%} is missed" for name, S in values.items())
                 for r in (1, 2, 4, 8, 16, 32, 64)},
       xlabel="index of the singular value", ylabel="what is left of it, relative to the largest")

# %% [markdown]
# *What to see: at rank 8 most of the change by one factor is made, since eight long rows are most
# of it. Most of yours is missed.* A bound is no experiment, so train both toward your change:

# %%
W0, target = W.astype(np.float32), (g[:, None] * W).astype(np.float32)
inputs = tp.Tensor(np.eye(128, dtype=np.float32))              # so the output is the weight itself
A = np.random.default_rng(0).uniform(-0.1, 0.1, (8, 128)).astype(np.float32)


def fit(layer, lr=0.1, steps=300):
    """What is left of ΔW after training the layer to be the target."""
    trained = [p for p in layer.parameters() if p.requires_grad]
    optimizer = AdamW(trained, lr, weight_decay=0.0)
    for _ in range(steps):
        for p in trained: p.grad = None
        gap = layer(inputs) - tp.Tensor(np.ascontiguousarray(target.T))
        (gap * gap).sum().backward()
        optimizer.step()
    return size(layer.dense_weight() - target) / size(target - W0)


def frozen():
    layer = linear_of(W0.copy(), None)
    layer.weight.requires_grad = False
    return layer


of_rank_8 = {"A": A, "scale": 2.0, "dropout": 0.0, "rng": 0}
print(f"LoRA of rank 8 misses {fit(LoRALinear(frozen(), **of_rank_8)):.0%}, at best "
      f"{missed(values['your factors'], 8):.0%}; "
      f"DoRA misses {fit(DoRALinear(frozen(), **of_rank_8)):.0%}")
by_hira = hira(W0, *my_stretch(W0, g))
left = size(by_hira - target) / size(target - W0)
print(f"the HiRA of rank 1 of your first exercise misses {left:.0%}; "
      f"your word for this change is {my_which(W0, target)}")

# %% [markdown]
# So there are such changes. Does training want them? Take the change that training *every number*
# made in section 2. What of it lies along a row alters the row's length. So does the rest, which is
# at right angles to it.
#
# **By hand.** A row $(1, 0)$ changed by $(0, 0.5)$ becomes $(1, 0.5)$, of length 1.118. Its angle
# to the old row has $\cos\theta = 1/1.118 = 0.894$. Nothing lay along the row, and yet it is 12 %
# longer: a change at right angles makes a row $1/\cos\theta$ times as long. LoRA trains no number
# for the length alone that could take this back. DoRA divides by $\lVert w + s(BA)_\text{row}
# \rVert$, which removes it. **Predict** how many per cent of the rows are longer after training
# every number.

# %%
guess = tp.guess("17.longer", 60.0, "%")

# %%
def length_and_direction(W, W2):
    """Means over the rows: |change of length| and 1 − cos. Then in per cent: rows that are longer,
    their growth, that by 1/cos alone, the square of ΔW along the rows, and that of a pure turn."""
    W, W2 = W.astype(float), W2.astype(float)
    before, after = size(W, axis=1), size(W2, axis=1)
    cosine = (W * W2).sum(1) / (before * after)
    along, turn = ((W2 - W) * W).sum(1) / before, before * (1 - cosine)
    return np.mean(abs(after - before)), np.mean(1 - cosine), *(100 * np.array([
        np.mean(after > 1.0001 * before), np.mean(after / before - 1), np.mean(1 / cosine - 1),
        (along ** 2).sum() / size(W2 - W) ** 2, (turn ** 2).sum() / (2 * before * turn).sum()]))


moved = {name: np.array([length_and_direction(*before_after(arms[name][0], path))
                         for path in paths])
         for name in ("every number", "LoRA", "DoRA", "OFT")}
print(f"{'':14}longer  growth  by 1/cos   square along the rows  of a pure turn")
for name, rows in moved.items():
    longer, growth, sideways, along, turn = rows[:, 2:].mean(0)
    print(f"{name:13}{longer:5.0f} %{growth:+7.1f} %{sideways:+8.1f} %{along:20.1f} %{turn:14.1f} "
          "%")
guess.beside(moved["every number"][:, 2].mean())

# %% fold
fig, ax = plot.figure(height=3.4)
for (name, rows), (colour, marker) in zip(moved.items(), (("black", "s"), ("blue", "o"),
                                                          ("vermillion", "^"), ("green", "D")),
                                          strict=True):
    ax.plot(rows[:, 4], rows[:, 3], marker, color=plot.COLOURS[colour], ms=5, label=name)
far = max(rows[:, 4].max() for rows in moved.values())
ax.plot([0, far], [0, far], "--", color=plot.COLOURS["grey"], lw=1, label="1/cos θ alone")
ax.set(xlabel="growth by 1/cos θ alone, mean of the rows (%)",
       ylabel="growth, mean of the rows (%)")
ax.legend(fontsize=8)
fig.set_label("Growth of the rows against the growth that turning alone would give, a point for "
              "each of ten weights and four methods. The points of LoRA and of every number lie "
              "along the diagonal. DoRA's and OFT's lie along the horizontal line at 0.")
fig

# %% [markdown]
# *What to see: with every number trained, and with LoRA, the points lie near the dashed line: rows
# grow because they step sideways. DoRA's rows grow or shrink about equally often. OFT's keep their
# lengths.* Full fine-tuning and LoRA change hardly anything along the rows: a change without a
# preference has $1/128 = 0.8$ per cent of its square there. A pure turn has $(1 - \cos\theta)/2$,
# since a step on a circle ends a little nearer to the middle than its tangent. That is all of OFT's
# share, and about half of DoRA's. Full fine-tuning and LoRA have less: their rows do not turn, they
# step straight to the side.
#
# DoRA's paper (figure 2) finds that the two rise together with LoRA, and that with DoRA and full
# fine-tuning one rises where the other falls. Here both rise with full fine-tuning, too. The open
# exercise asks for more.
#
# ## 4. Where it begins
#
# LoRA begins at $B = 0$, so in its first step only $B$ moves, along the random rows of $A$. PiSSA
# (arXiv 2404.02948) begins with the largest part of $W$. That would move the model, so the
# base gives up what $B$ and $A$ begin with:
#
# $$y = (W - s B_0 A_0)\, x + s B A\, x, \qquad s B_0 A_0 = U_r\, S_r\, V_r^\top
# \quad\text{of } W = U S V^\top \tag{5}$$
#
# A colleague has written PiSSA, tried it with $\alpha = r$, and was content:

# %%
def faulty_pissa(W, r, s):
    """WRONG for every s but 1: (base, B, A) of a layer that computes base x + s B A x."""
    U, S, Vt = np.linalg.svd(W, full_matrices=False)
    root = np.sqrt(S[:r])
    B, A = U[:, :r] * root, root[:, None] * Vt[:r]
    return W - B @ A, B, A


value = base.get("blocks.2.attention.value").weight.data.astype(float)
for alpha in (8, 16, 64):
    at, B, A = faulty_pissa(value, 8, alpha / 8)
    print(f"r = 8, α = {alpha:2}: at the start the layer is off by "
          f"{size(at + alpha / 8 * B @ A - value) / size(value):.0%} of W")

# %% [markdown]
# ### {exercise}
#
# Write the test that the colleague lacks. `start(W, r, s)` returns `(base, B, A)`; you choose the
# `W`, `r` and `s` with which you call it. Return
#
# - `"moves"`, if the layer $\text{base} + s B A$ is not $W$;
# - `"other"`, if it is, but $s B A$ is not the $r$ largest terms of $W$'s singular value
# decomposition;
# - `"PiSSA"`, if both hold, up to $10^{-6}$ of the norm.
#
# You get thirteen starts, one at a time, and do not see their code. Most wrong ones are right for a
# special `W`, `r` or `s`, and wrong for all others. Signs, and how $B$ and $A$ share the singular
# values, are free.

# %% exercise=children.bug points=3 minutes=13 as=my_test
def children_bug(start):
    """Is start(W, r, s) → base, B, A a PiSSA: "moves", "other" or "PiSSA"?"""

# %% [markdown]
# Your test on the colleague's start, and on the package's, from which the base is made as in (5):

# %%
def of_package(name):
    def start(W, r, s):
        B, A = starts.BY_WEIGHT[name](W, r, s)
        return W - s * B @ A, B, A                                                       # (5)
    return start


for name, start in (("the colleague's", faulty_pissa),
                    *((name, of_package(name)) for name in ("pissa", "milora", "olora"))):
    print(f"{name:16} {my_test(start)}")
show(starts.pissa)

# %% [markdown]
# What is a start good for? Look at one step. Full fine-tuning would go along $-G$, the gradient
# of the weight. With a small rate, plain descent on $A$ and $B$ goes along
#
# $$\Delta W \propto -\left(G\, A_0^\top A_0 + B_0 B_0^\top G\right) \tag{6}$$
#
# For a given $G$, the start decides what of $-G$ is in it. *kaiming* is LoRA's usual start, $B =
# 0$. LoRA-GA chooses singular vectors of $G$ so that it is as much as possible. EVA takes the
# directions in which the layer's inputs vary most, CorDA weighs $W$ by the inputs. OLoRA factors $W
# = Q R$, with orthonormal columns of $Q$ and a triangular $R$, and takes the first columns of $Q$
# and rows of $R$. MiLoRA takes the smallest singular values, and MiCA trains $A$ alone, behind the
# smallest singular vectors. The cosine of (6) and $-G$, mean of ten weights:

# %%
batch = task.batch("train", 16, np.random.default_rng(0))
full = tp.attach(tp.load_pretrained(), methods["every number"])
task.loss(full, batch).backward()
G = {path: full.model.get(path).weight.grad for path in paths}
logits = base(batch[0][:1]).data
cosines = {}
for init in ("kaiming", "pissa", "milora", "olora", "mica", "eva", "corda", "lora_ga"):
    data = {"calibration": [batch[0]]} if init in starts.NEEDS_DATA else {}   # text for X or G
    tuned = tp.attach(tp.load_pretrained(), tp.LoRA(rank=8, init=init), rng=0, **data)
    same = abs(tuned(batch[0][:1]).data - logits).max()
    row = []
    for path in paths:
        w = tuned.wrappers[path]
        A0, B0 = w.A.data, w.B.data
        step = G[path] @ A0.T @ A0                                                       # (6)
        if w.B.requires_grad is False: step = 0 * step                 # MiCA: B is frozen
        step = step + B0 @ B0.T @ G[path]
        row.append((step * G[path]).sum() / (size(step) * size(G[path])))
    cosines[init] = np.mean(row)
    print(f"{init:8} moves the logits by {same:.0e}; cosine with −G {cosines[init]:.2f}")

# %% [markdown]
# Does a good first step make a good end? **Write down** which start will have the lowest loss after
# 20 steps, and which the highest. Then train all eight:

# %%
ended = {}
for init in cosines:
    data = {"calibration": [batch[0]]} if init in starts.NEEDS_DATA else {}
    tuned = tp.attach(tp.load_pretrained(), tp.LoRA(rank=8, init=init), rng=0, **data)
    history = tp.train(tuned, task, STEPS, batch_size=4, seed=0, progress=False)
    ended[init] = np.mean(history.loss[-5:])
for init in sorted(ended, key=ended.get): print(f"{init:8} ends at {ended[init]:.2f}")
place = lambda of: np.argsort(np.argsort([of[init] for init in cosines]))
print(f"rank correlation with the cosine: {np.corrcoef(place(cosines), place(ended))[0, 1]:.2f}")

# %% fold
fig, ax = plot.figure(height=3.2)
shown = {"kaiming": "LoRA's usual start", "pissa": "PiSSA", "milora": "MiLoRA", "olora": "OLoRA",
         "mica": "MiCA", "eva": "EVA", "corda": "CorDA", "lora_ga": "LoRA-GA"}
points = [(cosines[init], ended[init], name,
           plot.COLOURS["vermillion" if init == "kaiming" else "blue"])
          for init, name in shown.items()]
for x, y, _, colour in points: ax.plot(x, y, "o", color=colour, ms=5)
ax.set(xlabel="cosine of the first step with that of full fine-tuning", xlim=(0, 1),
       ylabel="loss after 20 steps\n(nats/token)")
plot.label_points(ax, points, size=8)
fig.set_label("Loss after 20 steps against the cosine of the first step, a point for each of eight "
              "starts. LoRA-GA has the largest cosine and the lowest loss, MiCA the highest loss.")
fig

# %% [markdown]
# *What to see: LoRA-GA's first step is by far the nearest to full fine-tuning's, as it was made to
# be, and it ends lowest. The others follow it only loosely: MiLoRA has a better cosine than LoRA's
# usual start, and ends worse.* With three seeds the means are LoRA-GA 2.08, OLoRA 2.37, EVA 2.38,
# CorDA 2.40, PiSSA 2.41, kaiming 2.93, MiLoRA 3.12, MiCA 3.86. The four in the middle differ by
# less than their seeds do. The course trains with AdamW, whose step is not along the gradient, and
# a first step is one of twenty. Nor is it enough to know the inputs: EVA's cosine is 0.62,
# and CorDA's, 0.31, is below PiSSA's, 0.37. No start here moves the model.
#
# ## 5. Not the weight at all
#
# Two methods leave every weight of the blocks alone. LoReFT (arXiv 2404.03592) changes what flows
# *between* blocks, at a few positions, in $r$ directions, the rows of $R$:
#
# $$h \leftarrow h + R^\top (W h + b - R h), \qquad R R^\top = I \tag{7}$$
#
# Trainable tokens change some rows of the embedding. One more experiment, "which arrays are
# different?", tells them from all others:

# %%
marker = int(batch[0][0, 5])
tokens = np.array([[t for t in batch[0][0] if t != marker]])
for name, method in (("LoReFT", tp.LoReFT(rank=4, first=2, last=2)),
                     ("one token", tp.TrainableTokens(tokens=(marker,)))):
    tuned = tp.attach(tp.load_pretrained(), method, rng=0)
    tp.train(tuned, task, 2, batch_size=4, seed=0, progress=False)
    differ = abs(tuned(tokens).data - base(tokens).data).max((0, 1)) > 1e-4
    try: after, into = tuned.merge(), "a plain model"
    except tp.peft.MethodError as e: after, into = tuned.model, f"nothing ({type(e).__name__})"
    arrays = [key for key, value in base.state_dict().items()
              if not np.array_equal(value, after.state_dict()[key])]
    print(f"{name:9} merges into {into}, other arrays: {arrays or 'none'};\n{'':9} in a text "
          f"without the token, {differ.sum()} of {differ.size} logits differ")

# %% [markdown]
# LoReFT acts on every text, and cannot be merged: (7) depends on the position. The token's row
# acts only where it is read, and, because the head is the same table, on its own logit everywhere.
#
# ## 6. Bonus: which shape holds most?
#
# The points of this section are extra. Training every number gave a $\Delta W$. How much of its
# square can another shape hold, with $n$ trained numbers? For LoRA the best is a cut of the
# singular values. For SHiRA it is the $n$ largest numbers, if it knew their places. And for C³A?
#
# ### {exercise}
#
# `D` $(d_\text{out}, d_\text{in})$ is a change, and $b$ divides both sides. Return the matrix
# nearest to `D` whose $b \times b$ blocks are circular, as in the table of section 2.

# %% exercise=children.nearest points=2 minutes=10 bonus=yes as=my_nearest
def children_nearest(D, b):
    """The nearest matrix to D (d_out, d_in) with circular b × b blocks."""

# %%
made = [np.subtract(*before_after(arms["every number"][0], path)) for path in paths]
rng = np.random.default_rng(0)
print("share of ‖ΔW‖² that is held, mean of ten weights\n"
      "numbers   LoRA  SHiRA, best places  SHiRA, drawn places   C³A")
for n in (1024, 2048, 4096):
    held = []
    for D in made:
        S, largest = np.linalg.svd(D, compute_uv=False), np.sort(D.ravel() ** 2)[::-1]
        drawn, circle = rng.permutation(D.ravel())[:n], my_nearest(D, 128 * 128 // n)
        held.append([(S[:n // 256] ** 2).sum(), largest[:n].sum(), (drawn ** 2).sum(),
                     (circle ** 2).sum()] / (D ** 2).sum())
    low, best, places, circles = 100 * np.mean(held, 0)
    print(f"{n:7}{low:6.0f}%{best:19.0f}%{places:20.0f}%{circles:5.0f}%")

# %% [markdown]
# A low rank holds the most of what full fine-tuning did. That is LoRA's assumption, and here it is
# a measurement. SHiRA draws its places, and holds the share of the places that it has: $n$ of
# $d^2$. So does C³A. Yet with 1,024 numbers of each weight, 6 % in reach, SHiRA learned as much as
# LoRA (2.90 and 2.94 in section 2). There are many changes that solve the task, and a method needs
# only one that its shape holds.
#
# ### {exercise} · Does the pattern of lengths hold? (open, 4 points, 30 minutes)
#
# Figure 2 of DoRA's paper: over layers and checkpoints, the changes of length and direction rise
# together with LoRA, and go against each other with full fine-tuning and DoRA. Find out whether
# this holds here. `length_and_direction` measures both. Choose how to average, how often to look,
# and which learning rates are fair. Say beforehand what would speak against the paper.
#
# *Rubric: 1 point for a prediction that could fail, written before the numbers; 1 for rates
# chosen on the loss, for each method; 1 for several checkpoints and three seeds, with the spread
# of the correlation; 1 for a conclusion that says what the rate, the rank or the length of
# training might have done to it.*

# %% [answer]
# *Prediction.* With LoRA the correlation of both changes, over layers and checkpoints, is clearly
# above 0; with DoRA and full fine-tuning below 0. A positive one with all three speaks against
# the paper.
#
# *What to expect.* Over checkpoints both changes grow with the steps, from 0, for every method.
# So a correlation over checkpoints is positive unless one of them stops growing. The paper looks
# at checkpoints of a long training, with a decayed rate. Over layers at one checkpoint a layer
# with larger gradients changes more in both, which is positive, too. Whoever finds it positive
# for all three has not refuted the paper: another model, short training, AdamW at a rate that
# hides the difference. An honest conclusion names the two ways of averaging and gives both
# numbers.

# %% [markdown]
# ## Recall
#
# <details><summary>1. Which two marks need W, and not the change alone?</summary>
# OFT's, because lengths and angles are those of the rows before and after, and HiRA's, because its
# change is a multiple of W number by number.
# </details>
#
# <details><summary>2. MiSS trains one thin matrix. Why is it a LoRA all the same?</summary>
# Its change is D times a fixed A of zeros and ones, so it has rank r. At the same r only half as
# much is trained, if the weight has as many inputs as outputs.
# </details>
#
# <details><summary>3. What can DoRA do with m alone that costs LoRA a full rank?</summary>
# Give every row another length, and keep all directions. If each row changes by the same length,
# that change needs as many singular values as there are rows.
# </details>
#
# <details><summary>4. What must every start leave unchanged, and how is that achieved if B₀ A₀ is
# not 0?</summary> The function of the model. s B₀ A₀ is taken off: from the weight in the papers,
# in the layer's sum in this package.
# </details>
#
# <details><summary>5. Why can a method with little of full fine-tuning's change in reach still
# learn the task?</summary> Many changes of a weight give nearly the same outputs on the task. A
# method needs one of them.
# </details>
#
# ## Where the papers say this
#
# OFT: arXiv 2306.07280, section 3. LoHa (FedPara): arXiv 2108.06098, proposition 1, rank up to
# $r^2$. LoKr: arXiv 2309.14859. MiSS: arXiv 2409.15371, equations 4 to 7. VeRA: arXiv 2310.11454,
# equation 2. RandLoRA: arXiv 2502.00987, equation 4. SHiRA: arXiv 2406.13175. FourierFT: arXiv
# 2405.03003. C³A: arXiv 2407.19342. HiRA: [ICLR 2025](https://openreview.net/forum?id=TwJrTz9cRS).
# DoRA: arXiv 2402.09353, figure 2. PiSSA: arXiv 2404.02948. MiLoRA: arXiv 2406.09044. OLoRA: arXiv
# 2406.01775. MiCA: arXiv 2604.01694. EVA: arXiv 2410.07170. CorDA: arXiv 2406.05223. LoRA-GA: arXiv
# 2407.05000. LoReFT: arXiv 2404.03592.
#
# ## Where implementations differ
#
# * *Starts.* The papers and PEFT change $W$. Here the layer subtracts $s B_0 A_0$, so that
#   the base stays as it is. OLoRA's own code does not divide by $s$.
# * *OFT.* PEFT computes $(I - Q)^{-1}$ by the first terms of a series, or exactly
#   (`use_cayley_neumann=False`). The two turn in opposite directions.
# * *C³A.* PEFT and this package divide by $d_\text{in}$, the paper does not.
# * *SHiRA.* PEFT gives all layers of one shape the same places; here each layer draws its own.
# * *FourierFT.* The paper begins with random heights, here with 0.
#
# The docstring of each file in `tinypeft/peft` has the rest.
#
# ## The real call
#
# Most children are an option, or a class, of Hugging Face's PEFT:
#
# ```python
# from peft import LoraConfig, get_peft_model
# from transformers import AutoModelForCausalLM
# base = AutoModelForCausalLM.from_pretrained("folder-of-the-model")
# settings = LoraConfig(
#     r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM",
#     use_dora=True)                          # or init_lora_weights="pissa", "olora", …
# model = get_peft_model(base, settings)      # "eva" takes initialize_lora_eva_weights, too
# ```
#
# ```python
# from peft import OFTConfig, get_peft_model
# from transformers import AutoModelForCausalLM
# base = AutoModelForCausalLM.from_pretrained("folder-of-the-model")
# settings = OFTConfig(oft_block_size=16, target_modules=["q_proj", "v_proj"])
# model = get_peft_model(base, settings)      # HiraConfig, LoHaConfig, MissConfig, VeraConfig, …
# ```
#
# **Now you can** ask of a new method which question it answers, and design the experiment that
# shows its answer. [Lesson 15](15_choosing.ipynb) says how to find out whether the answer pays.
