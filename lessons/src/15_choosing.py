# %% [markdown]
# # 15 · Choosing
#
# **What you will do.** You put the course together.
# You compute what fits into the memory of a machine, compare what a method costs with what it is
# worth, and decide whether the difference of two averages is a difference.
# You find out how a method wins by luck. Then you train on a file of your own, and take an
# adapter to Hugging Face's PEFT.
#
# **What you need.** Lessons [03](03_full_finetuning.ipynb), [07](07_lora.ipynb) and
# [13](13_nf4_qlora.ipynb). The others explain what the names mean.
#
# **Words and letters.** The [glossary](GLOSSARY.md) has those that all lessons share.
# This lesson adds: $n$, the number of seeds; $d_k$, the difference of two runs with the seed $k$;
# and *dominated*, which is said of a method that another method beats.
#
# **Time.** 90 minutes: 48 of reading and running, 42 of exercises.
# The open exercise takes 30 more, and the bonus 10.

# %%
import csv
import json
import tempfile
from pathlib import Path

import numpy as np
from scipy.stats import ttest_ind

import tinypeft as tp
from tinypeft.course import show, sliders
from tinypeft.course.show import FIGURES
from tinypeft.course.slider import slider
from tinypeft.interop import read_safetensors
from tinypeft.study import memory, stored
from tinypeft.study.experiment import half_width

# %% [markdown]
# The first question, in one picture:

# %%
show("schematic:choosing")

# %% [markdown]
# ## 1. Does it fit?
#
# The first question is not which method is best but which ones start at all.
# Before a single token is read, training needs the weights of the base, in $b$ bits each.
# For each parameter that is trained it needs the parameter itself, its gradient, and the two
# moments that AdamW keeps, in four bytes each.
#
# *By hand.* A base of 1,000 weights in 4 bits takes 500 bytes.
# Ten trained parameters beside it take $10 \cdot 16 = 160$ bytes.
#
# ### {exercise}
#
# Write the bytes of the whole.
# What is trained lies beside the base (an adapter, a LoRA), not within it.

# %% exercise=choosing.memory points=2 minutes=4
def choosing_memory(n_base, base_bits, n_trained):
    """Bytes of a frozen base of n_base weights, and of what is trained beside it with AdamW."""

# %% [markdown]
# Your function at work, for a model of 7 billion parameters:

# %%
needed = result.function
GiB = 2**30
llama = memory.SHAPES["llama-7b"]
n_lora = memory.FORMULAS["lora"](llama, rank=8).n
print(f"{llama.parameters / 1e9:.2f} G parameters; "
      f"LoRA of rank 8 on query and value trains {n_lora / 1e6:.1f} M of them")
for name, bits in (("16-bit base", 16), ("base in NF4, double quantization", 4.127)):
    print(f"LoRA on a {name:<33}{needed(llama.parameters, bits, n_lora) / GiB:6.1f} GiB")
sixteen, thirty_two = llama.parameters * (2 + 2 + 8), llama.parameters * (4 + 4 + 8)
print("full fine-tuning, weights and gradients in 16 bits, moments in 32: "
      f"{sixteen / GiB:.1f} GiB; all in 32 bits: {thirty_two / GiB:.1f} GiB")

# %% [markdown]
# Move the handle to choose the bits of the base. Your function counts what a LoRA on all matrices
# adds, for a card of 16 GiB:

# %%
per_rank = memory.FORMULAS["lora"](llama, rank=1, targets="all").n
sliders.budget(needed, llama.parameters, per_rank)

# %% [markdown]
# *What to see: fewer bits of the base pay for much rank,* and below 4 bits for little more.

# %% [markdown]
# Activations come on top.
# They depend on the batch, on the length of the rows, and on where gradients must pass.
# Lesson 03 counted them for the small model. The study's memory model does it term by term.
# At our sizes it agrees with traced bytes within ten per cent, and then it can be asked about
# seven billion (`python -m tinypeft memory --help`).
# **Predict** the peak of QLoRA with one row of 512 tokens, in GiB.
# The LoRA is the one above: rank 8, on query and value. One of the 32 layers keeps about 45 MiB of
# activations.

# %%
guess = tp.guess("15.qlora", 8.0, "GiB")

# %%
estimates = memory.compared(llama, batch=1, tokens=512)
print(memory.table(estimates))
guess.beside(estimates["qlora"]["peak"] / GiB)

# %% [markdown]
# Read the columns. In the row *full* weights, gradients and moments have 32 bits, as in the last
# line above. LoRA removes nearly all of the gradients and of the optimizer. A base that is frozen
# may also be kept in 16 bits, which halves the weights. A part of the activations goes, too. QLoRA
# removes most of what is left of the weights. (The table keeps embeddings in 16 bits, so its QLoRA
# has more bytes of weights than your line above.) After that, the weights are still the largest
# part, and the activations come next. For these other remedies exist: smaller batches, shorter
# rows, and computing activations again in the backward pass.

# %%
show("memory")

# %% [markdown]
# *What to see: a card with 24 GiB holds LoRA on a 16-bit base of this size if rows are short,
# QLoRA with room to spare, and full fine-tuning not at all.*
# In the panel of the small base, *full* shows no gradients: its peak comes at the end of the forward
# pass, before there are any. QLoRA on all matrices takes more than LoRA, because that LoRA is
# on query and value alone. What quantization saves is little where activations are most of it.
#
# ## 2. Is it good?
#
# Load what the study measured for every method, over several seeds.
# Look at two numbers of each: how many parameters it trains, and the test loss on Matplotlib's
# documentation after the same number of steps.

# %%
r = stored.load(FIGURES / "results", "methods")
methods = [name for name in r.conditions if name != "frozen"]
trained = np.array([r.mean(name, "trained") for name in methods])
loss = np.array([r.mean(name, "loss") for name in methods])
print(f"{len(r.seeds)} seeds, {r.record['settings']['steps']} steps; "
      f"frozen base {r.mean('frozen', 'loss'):.3f} nats/token")
for name, t, x in sorted(zip(methods, trained, loss, strict=True), key=lambda row: row[2]):
    print(f"  {name:<18}{int(t):>10,} trained   {x:.3f} ± {r.interval(name, 'loss'):.3f}")
counts = stored.load(FIGURES / "results", "baselines").mean("domain", "Kneser–Ney 5-gram")
print(f"  a table of counts (5-gram)              {counts:.3f}")

# %% [markdown]
# The last row counted which token follows which four in all of the training text, of which a run
# read a seventh.
#
# A method is *dominated* if another one costs no more and is no worse, and is strictly better in
# one of the two. The methods that are not dominated are the **Pareto frontier**. By hand, as (cost,
# loss): of $(1, 3)$, $(2, 2)$ and $(3, 2.5)$ the second dominates the third, and two remain.
# Choose a point on it, by what is scarce: memory, latency or files.
#
# ### {exercise}
#
# Given `cost` and `loss`, arrays `(n,)` where less is better in both, return a boolean array
# `(n,)`, true for the points on the frontier.
# Equal points do not dominate each other.

# %% exercise=choosing.pareto points=3 minutes=10
def choosing_pareto(cost, loss):
    """Which points no other point dominates: a boolean array (n,)."""

# %%
frontier = result.function(trained, loss)
print("on the frontier of parameters and loss:")
for i in sorted(np.flatnonzero(frontier), key=lambda i: trained[i]):
    print(f"  {methods[i]:<18}{int(trained[i]):>10,} trained   {loss[i]:.4f}")

# %%
show("pareto")

# %% [markdown]
# A method may owe its place to a thousandth of a nat (section 3).
#
# *What to see: the frontier moves when the price is memory instead of parameters.*
# A method that trains little may need all activations.
#
# The quality on the new text is not all. What has become of the old text?

# %%
show("forgetting")

# %% [markdown]
# *What to see: at its best learning rate, the large mark, full fine-tuning learns and forgets most.
# At an eighth of it, it learns as much as LoRA does at best, and forgets far less.*
# Who fears forgetting should lower the rate before changing the method.
#
# {claim Where LoRA and full fine-tuning learn as much}
#
# ## 3. Is it a difference?
#
# The order of two methods means nothing until you know how much a repetition would change it. The
# study's runs are *paired*: with the same seed, two methods see the same batches
# in the same order. So take the difference for each seed, $d_k = a_k - b_k$.
# That helps when the two methods react alike to a seed.
# You want the interval that covers the true mean of the differences with a probability of 95 %.
#
# Its middle is the mean $\bar d$. Its half width is the standard error of the mean, times the
# 97.5 % quantile of Student's t distribution with $n - 1$ degrees of freedom.
# For four seeds the quantile is 3.18.
# With 1.96, the quantile of the normal distribution, the interval would be too narrow.
# The standard error is the standard deviation of the differences (with $n - 1$), divided by
# $\sqrt n$.
#
# *By hand.* Three seeds give the differences $0.1$, $0.2$ and $0.3$. Their mean is $0.2$ and their
# standard deviation $0.1$. For $n = 3$ the quantile is $4.30$, so the half width is
# $4.30 \cdot 0.1/\sqrt 3 = 0.25$: the interval contains 0.
#
# %%
def difference(a, b):
    """(mean of a − b, half width of its 95 % interval), paired over seeds."""
    d = a - b
    return d.mean(), half_width(d)        # t.ppf(0.975, n - 1) * d.std(ddof=1) / sqrt(n)


print("by hand: {:.2f} ± {:.2f}".format(*difference(np.array([0.1, 0.2, 0.3]), np.zeros(3))))

# %% [markdown]
# ### {exercise}
#
# Two bars in a chart have error bars that overlap. Can the two methods differ? Given `a (n,)`, the
# losses of one method with $n$ seeds, make up `b (n,)`, those of another one with the same seeds. The
# 95 % intervals of `a` and of `b`, each by itself, shall overlap, and the interval of $a - b$ shall
# not contain 0. The standard deviation of the differences must be at least a quarter of that of `a`.
# (In most real pairs it is more.)

# %% exercise=choosing.apart points=3 minutes=11
def choosing_apart(a):
    """Losses a (n,) → losses b (n,) whose interval overlaps, and which can be told apart from a."""
    ### BEGIN SOLUTION
    from scipy.stats import t
    half = t.ppf(0.975, len(a) - 1) * a.std(ddof=1) / np.sqrt(len(a))
    noise = a.std(ddof=1) / 3 * np.resize([1, -1], len(a))
    return a - half + noise                                   # goes up and down with a
    ### END SOLUTION

# %% [markdown]
# Your two methods, beside real ones. *Varies* is the standard deviation of the differences, in that
# of the first method; *unpaired* is the half width that one gets without the pairs (Welch's):

# %%
pairs = [("adalora", "lora_all"), ("parallel_adapter", "adapter"), ("ptuning_v2", "prompt"),
         ("lora", "full")]
measured = {name: r.values(name, "loss") for name in methods}
measured["yours"] = np.asarray(result.function(measured["lora"]))
for a, b in [("lora", "yours"), *pairs]:
    A, B = measured[a], measured[b]
    mean, half = difference(A, B)
    unpaired = ttest_ind(A, B, equal_var=False).confidence_interval()
    apart = (unpaired.high - unpaired.low) / 2
    verdict = "cannot be told apart" if abs(mean) < half else f"{a if mean < 0 else b} is better"
    overlap = "" if abs(mean) > half_width(A) + half_width(B) else ", intervals overlap"
    print(f"{a:>16} − {b:<8} {mean:+.4f} ± {half:.4f}, varies {np.std(A - B) / np.std(A):.2f}, "
          f"unpaired ± {apart:.4f}: {verdict}{overlap}")

# %% [markdown]
# Does a real pair do what yours does? Where does pairing help least? (AdaLoRA trains three times as
# many numbers; section 5 compares equal ones.) Move the handle for more seeds:

# %%
A, B = (measured[name] for name in pairs[0])
frames, told, ends = {}, {}, np.array([0, len(A) - 1])
for n in range(2, len(A) + 1):
    mean, half = difference(A[:n], B[:n])
    frames[n] = {"mean": (ends, [mean] * 2), "lower end": (ends, [mean - half] * 2),
                 "upper end": (ends, [mean + half] * 2)}
    told[n] = f"{mean:+.4f} ± {half:.4f} nats/token"
slider("seeds", frames, captions=told, xlabel="seed", ylabel=" − ".join(pairs[0]),
       behind={"differences": (np.arange(len(A)), A - B)})

# %% [markdown]
# These intervals say how much *seeds* matter: the start and the batches.
# Another test text would give another mean, too. So the study also asks how much the difference
# varies from document to document, and adds both errors (`study/effects.py`).
# No interval says that another size of model or another number of steps would give
# the same order. The page `figures/README.md` lists every claim of the papers that the study
# could test, each with its verdict, and with the rule by which it was judged. All of it:

# %%
show("forest")

# %% [markdown]
# *What to see: an effect counts only in comparison with δ, the difference that matters in it.* Marks
# inside the grey band are too small to matter, which is what *as good as* and *within δ* claim. A
# claim with several marks is right only if all of them are.
#
# ### {exercise}
#
# Intervals do not help if the comparison itself is wrong.
# Here is how a colleague measures a method that has a learning rate to be chosen.
# `validation` and `test` hold losses, `(rates, seeds)`.
# We let the colleague measure a method for which *all rates are equally good*: every loss is 2.5,
# plus noise. What comes out depends on how many rates are tried:

# %%
def faulty(validation, test):
    """The rate to use, and the loss that it is reported with?"""
    i = int(test.mean(axis=1).argmin())
    return i, test.mean(axis=1)[i]

def reported(choose, rates, trials=500):
    """The mean of what is reported, when nothing is to be gained."""
    rng = np.random.default_rng(0)
    return np.mean([choose(*(2.5 + rng.normal(0, 0.03, (2, rates, 3))))[1] for _ in range(trials)])

for rates in (1, 5, 20):
    print(f"{rates:2} rates tried: reported loss {reported(faulty, rates):.3f}")

# %% [markdown]
# Whoever tries more rates wins. Write `choosing_bug(validation, test)`, the mended function.
# It returns the index of the rate and the loss to report.
# The rate is the same for all seeds, and is judged by its mean over them.

# %% exercise=choosing.bug points=3 minutes=6
def choosing_bug(validation, test):
    """validation, test (rates, seeds) → (the index of the rate, the mean loss to report)."""

# %%
for rates in (1, 5, 20):
    print(f"{rates:2} rates tried: reported loss {reported(result.function, rates):.3f}")

# %% [markdown]
# ### {exercise}
#
# A pilot with a few seeds gave the differences `d (n,)`.
# How many seeds would bring the half width of the interval down to `half`?
# Write `choosing_seeds(d, half)`: the smallest number of seeds, at least 2.
# Take the standard deviation of the pilot as it is.

# %% exercise=choosing.seeds points=2 minutes=10 bonus=yes
def choosing_seeds(d, half):
    """Differences d (n,) of a pilot, and the half width that is wanted → a number of seeds."""

# %%
for a, b in pairs:
    d = r.values(a, "loss") - r.values(b, "loss")
    print(f"{a:>17} − {b:<8} to know it to ± 0.005 nats: {result.function(d, 0.005)} seeds")

# %% [markdown]
# ## 4. How many bits?
#
# For weights that do not train, the choice is between bits:

# %%
show("schemes")

# %% [markdown]
# *What to see: down to four bits a good scheme costs little, and at three bits the marks furthest
# to the left calibrate or train.* At 4 bits in groups, rounding to integers costs
# {study schemes: int4 asymmetric, excess} nats and GPTQ costs
# {study schemes: GPTQ 4 bit, excess}. At 3 bits rounding costs
# {study schemes: int3 asymmetric, excess} and GPTQ {study schemes: GPTQ 3 bit, excess}.
# Two schemes train at 3 bits: QAT (STE) costs {study schemes: QAT 3 bit *, excess} and
# PEQA {study schemes: PEQA 3 bit *, excess}, but their scales have 32 bits, so they store half a bit
# more per weight. At 2 bits training is far ahead (lesson 14).
#
# For a fixed number of bytes: a small model in many bits, or a large one in few?

# %%
show("bits_vs_parameters")

# %% [markdown]
# *What to see: the larger model in 3 bits is far below the smaller one in 16 bits, and in 2 bits it
# is above it.* All were trained for as long; the lines are means of three bases of each size.
#
# In 2 bits the larger model takes about as many bytes of matrices as the smaller one in 16, in 3 bits
# a third to a half more. With 4 bits each model loses little. At the right the embeddings count,
# too, in 16 bits.
#
# {claim A larger model at 3 bits}
#
# For large language models the answer was four bits (Dettmers & Zettlemoyer, arXiv 2212.09720).
# Three sizes so far apart cannot test that.
#
# ## 5. A way to decide
#
# - *One task, and memory for everything:* full fine-tuning. At its best rate it ends at
#   {study methods: full, loss} nats, where LoRA on all matrices has
#   {study methods: lora_all, loss}, and it forgets most. At an eighth of that rate it learns as
#   much as LoRA and forgets far less.
# - *Many tasks on one base, and latency matters:* LoRA on all matrices, merged or swapped. The
#   files are small, and inference costs nothing more.
# - *A base that hardly fits:* QLoRA, which is NF4 with double quantization and LoRA on all
#   matrices. The weights take a quarter of 16 bits, and in the study a LoRA on NF4 ends
#   {study qlora: NF4 - 16 bits, after} nats from a LoRA on 16 bits.
# - *No idea which rank:* train one LoRA of a large rank, and cut it by SVD (lesson 09). Neither
#   DyLoRA nor AdaLoRA was better here: see the verdicts below.
# - *A model behind an interface that takes vectors, or many tasks in one batch:* prompt or prefix
#   tuning.
# - *Little memory at inference, and no training:* GPTQ or AWQ at 4 bits. Calibration takes
#   minutes.
# - *3 bits:* GPTQ or AWQ in groups, if there is no training.
# - *2 bits:* training with quantization, or LoftQ before a LoRA. Rounding alone breaks the model:
#   in groups of 32 it costs {study gptq: round to nearest, 2 bits, group 32, excess} nats.
#
# Three verdicts of the study belong to these lines:
#
# - {claim DyLoRA works at every rank}
# - {claim AdaLoRA is better}
# - {claim QLoRA learns as well}
#
# ## 6. Your own data
#
# A choice is made for a task, and yours is in a file.
# Three functions read it, and each has an option of `finetune`, `evaluate` and so on:
#
# | you have | in Python | option |
# |---|---|---|
# | Markdown or plain text, to continue | `tp.tasks.text("notes/", model)` | `--text notes/` |
# | rows with a label, CSV or TSV | `tp.tasks.labelled("rows.csv", model)` | `--csv rows.csv` |
# | prompts and answers, JSONL or CSV | `tp.tasks.pairs("qa.jsonl", model)` | `--pairs qa.jsonl` |
#
# Here is a file of 300 rows, which a seed makes up:

# %%
rng = np.random.default_rng(0)
words = {"good": "lovely excellent bright quick honest gentle".split(),
         "bad": "broken awful dull slow rude sticky".split()}
things = "phone lamp chair kettle bicycle coat radio table spoon clock".split()
own = Path(tempfile.mkdtemp()) / "reviews.csv"
with own.open("w", newline="") as f:
    table = csv.writer(f)
    table.writerow(["text", "label"])
    for i in range(300):
        label = ("bad", "good")[i % 2]
        (a, b), x = rng.choice(words[label], 2, replace=False), rng.choice(things)
        table.writerow([f"{rng.choice(['The', 'My', 'That'])} {x} is {a} and {b}.", label])

model = tp.load_pretrained()
task = tp.tasks.labelled(own, model)
print(*(f"{name}: accuracy {measured['accuracy']:.2f}"
        for name, measured in task.baselines.items()), sep="\n")
task

# %% [markdown]
# Before a model is trained, the task says three things.
#
# - *How it was split.* Rows that share 24 words in a row, or all their words, stand on one side.
#   A test on rows that were trained on would measure memory.
# - *What was left out.* A row that repeats another one would count twice.
# - *What is easy.* On rows like these a bag of words finds the label, so a model must do at least
#   as well. A model that only beats the majority is not worth its parameters.

# %%
tuned = tp.attach(model, tp.LoRA(rank=8), rng=0, head=len(task.classes))
tp.find_rate(tuned, task, steps=40, batch_size=16, progress=False)

# %% [markdown]
# `find_rate` raises the learning rate from step to step and measures the validation loss after
# each. The model stays as it was.
#
# *What to see: at small rates nothing happens, then the loss falls, and at the last rate, where the
# search ends, it shoots up.* A rate where it falls is a place to start from.
# The lowest point is partly luck, so the suggestion is that of the smoothed curve: not the last rate
# before the jump, but the one before it. A longer training often
# wants a smaller rate. LoRA's own rate, which the next cell prints, is about the same, so the
# training keeps it.

# %%
print("LoRA's own rate:", tp.LoRA.learning_rate)
print(tp.train(tuned, task, 40, batch_size=16, progress=False))
print(tp.evaluate(tuned, task))
task.predict(tuned, ["The violin is rude.", "An honest clock, and a quick one!"])

# %% [markdown]
# No row mentions a violin, but "rude", "honest" and "quick" are in the rows.
# Does the model know what good and bad things are called, or only these twelve adjectives?
# None of the next ten is in the rows:

# %%
fresh = {"good": "kind warm fresh safe wonderful".split(),
         "bad": "weak noisy cold ugly terrible".split()}
hits = 0
for label, adjectives in fresh.items():
    said = task.predict(tuned, [f"The violin is {a}." for a in adjectives])
    hits += sum(x == label for x in said)
    print(f"{label}?  ", *(f"{a}: {x}" for a, x in zip(adjectives, said, strict=True)), sep="  ")
print(f"{hits} of 10 right; a coin has 5")

# %% [markdown]
# *What to see: on words that are in no row the model does not do much better than a coin.*
# It has learned the words of the file, as a bag of words would.
# Rows that share words with the training rows hide that, so test on what users will write.
# `save` writes `task.json` beside the adapter. It has the names of the classes, and no row of your
# file:

# %%
place = Path(tempfile.mkdtemp())
tuned.save(place)
task = tp.tasks.load_task(place, model)
print(*sorted(p.name for p in place.iterdir()), "; classes:", *task.classes)
task.predict(tuned, ["My coat is sticky."])

# %% [markdown]
# In a terminal these are three lines.
# With `--model smollm2` the same three work for a real model:
#
# ```bash
# python -m tinypeft finetune lora --csv reviews.csv --out my-adapter
# python -m tinypeft classify "The violin is rude." --adapter my-adapter
# python -m tinypeft evaluate --adapter my-adapter --csv reviews.csv
# ```
#
# `evaluate` recognizes the file by its SHA-256 and measures the test part that training left
# alone. Another file it measures whole.
#
# ## 7. Taking an adapter to PEFT
#
# PEFT puts one LoRA on each layer that it finds. Hugging Face's GPT-2 keeps query, key and value in
# one layer, `c_attn`, with $3d$ outputs: those of the query, then of the key, then of the value.
# Here they are three layers. Two LoRAs, on query (rank $r$) and on value (rank $s$), become *one*
# LoRA of `c_attn`, of rank $r + s$. For every input $x$ it must add the same numbers:
#
# $$B A x = \begin{bmatrix} B_q A_q x \\ 0 \\ B_v A_v x \end{bmatrix}$$
#
# ### {exercise}
#
# Find $A$ and $B$, and return `(A, B)`. The rows of $A_q$ come first in $A$.
# Given are `A_q (r, d)`, `B_q (d, r)`, `A_v (s, d)` and `B_v (d, s)`. The two ranks may differ.

# %% exercise=choosing.fuse points=4 minutes=11
def choosing_fuse(A_q, B_q, A_v, B_v):
    """(A, B) of c_attn: A (r + s, d), B (3 d, r + s), for LoRAs on query and on value."""

# %% [markdown]
# The package does the same when it saves in PEFT's format.
# It writes two files, which `PeftModel.from_pretrained` reads on any GPT-2 of the same weights, and
# `task.json`, which says for what task.
# (The package's tests do that in both directions, for every method here that PEFT has, too.)
# Train one for a few steps, and look into the folder:

# %%
model = tp.load_pretrained()
task = tp.tasks.domain(model, context=128, held_out=4096)
tuned = tp.attach(model, tp.LoRA(rank=4, alpha=8), rng=0)
tp.train(tuned, task, 20, batch_size=4, seed=0, progress=False)
folder = Path(tempfile.mkdtemp()) / "adapter"
tuned.save(folder, format="peft")
print(*sorted(f"{p.name}: {p.stat().st_size:,} bytes" for p in folder.iterdir()), sep="\n")
config = json.loads((folder / "adapter_config.json").read_text())
print({k: config[k] for k in ("peft_type", "r", "lora_alpha", "target_modules", "fan_in_fan_out")})

# %%
tensors = read_safetensors(folder / "adapter_model.safetensors")
name = "base_model.model.transformer.h.0.attn.c_attn"
A, B = (np.array(tensors[f"{name}.lora_{x}.weight"]) for x in "AB")
layers = [tuned.wrappers[f"blocks.0.attention.{x}"] for x in ("query", "value")]
mine = result.function(layers[0].A.data, layers[0].B.data, layers[1].A.data, layers[1].B.data)
scale = config["lora_alpha"] / config["r"]
print("A", A.shape, "B", B.shape, "; the same change of c_attn as your fused pair:",
      np.allclose(scale * B @ A, layers[0].scale * mine[1] @ mine[0], atol=1e-6))

# %% [markdown]
# And back again: `tp.load_adapter` recognizes the folder, whoever wrote it. It is strict.
# A tensor that is missing or has no place is an error with a list.
# Other programs warn and compute something else.

# %%
logits = tuned(np.arange(10)[None]).data
again = tp.load_adapter(model, folder)
same = np.allclose(again(np.arange(10)[None]).data, logits, atol=1e-4)
print(again.method, "; the same logits:", same)

# %% [markdown]
# ### {exercise} · Your choice (open, 5 points, 30 minutes)
#
# You have one machine with 16 GiB for everything, a model of seven billion parameters, twelve
# tasks with a thousand examples each, and users who wait for answers.
# Choose method, scheme, ranks and targets. Support each choice with a number: from `memory`, from
# the study, or from an experiment of your own on the small base.
# Say which of your numbers you would not trust at seven billion, and how you would find out.
#
# *Rubric: 1 point for a memory budget that adds up, activations included; 1 for quality with an
# interval; 1 for serving twelve tasks; 1 for what was left out and why; 1 for honest doubts.*

# %% [answer]
# One good choice among several: QLoRA, NF4 with double quantization, LoRA of rank 16 on all
# matrices, twelve adapters beside one base.
#
# - *Memory.* Weights: $7 \cdot 10^9 \cdot 4.127/8$ bytes = 3.4 GiB; embeddings, if they stay in
#   16 bits, add about 0.4. On LLaMA 7 B rank 16 on all matrices is 40 M numbers: 16 bytes each
#   with gradient and AdamW, 0.6 GiB. The rest is activations, which grow with rows × tokens: a
#   row at a time, accumulated, fits. LoRA on 16 bits needs 13 GiB for the weights and leaves 3;
#   full fine-tuning is out. {picture memory}
# - *Quality.* {claim QLoRA learns as well} {claim With the same number of parameters}
# - *Twelve tasks.* 80 MB each in 16 bits, unmerged: one base serves all, and a batch may mix
#   tasks. Merging and rounding again is not an option. {claim Rounding a merged QLoRA}
# - *Users who wait.* An unmerged LoRA adds two thin products to each matrix; a 4-bit base reads a
#   quarter of the bytes for each token. Adapters behind a sublayer add steps that wait for each
#   other, prompts lengthen the input.
# - *Left out,* with a reason each: full fine-tuning (memory), prompts (quality here), AdaLoRA and
#   DyLoRA (not better than one rank for all), 3 bits (costs quality for memory that is not
#   needed). {claim AdaLoRA is better}
# - *Doubts.* The study trains 1.2 million parameters for 150 steps. Trust orders that are large
#   and agree with the papers; do not trust distances, learning rates, or anything "not at this
#   size". A thousand examples are few: a held-out part of each task, three seeds on one or two of
#   them, a sweep of three rates, and early stopping tell more.

# %% [markdown]
# ## The real call
#
# This is the code for a machine with PEFT and a GPU, with a GPT-2 in place of the toy.
# (`tp.load_model(folder)` reads such a model here, `tp.save_model(model, folder)` writes it.)
#
# ```python
# from peft import PeftModel
# from transformers import AutoModelForCausalLM
# base = AutoModelForCausalLM.from_pretrained("folder-of-the-model")
# model = PeftModel.from_pretrained(base, "folder-of-the-adapter")
# ```

# %% [markdown]
# ## Recall
#
# 1. Which parts of training memory does LoRA not reduce much?
# <details><summary>Answer</summary>
#
# The base's weights, and most activations.
# Gradients pass through all layers down to the first adapted one.
# (A frozen base may be stored in fewer bits. That is QLoRA's part.)
#
# </details>
#
# 2. When is a dominated method still a good choice?
# <details><summary>Answer</summary>
#
# When a price that is not in the picture matters: latency, files per task, how easily it is
# served or merged.
#
# </details>
#
# 3. Two methods' intervals overlap. Is there no difference?
# <details><summary>Answer</summary>
#
# That does not follow. Paired over seeds, their difference may be far from zero.
# Look at the interval of the difference.
#
# </details>
#
# 4. Why does the fused pair have rank r + s, and not max(r, s)?
# <details><summary>Answer</summary>
#
# The rows of $A_q$ and $A_v$ are different directions of the input.
# Each of $B_q$ and $B_v$ must see its own rows only.
#
# </details>
#
# 5. Merged into a 16-bit base, a QLoRA adapter computes something else than in training. Why?
#    Is it worse?
# <details><summary>Answer</summary>
#
# It was trained on top of the quantized weights, and may have learned to make up for their
# errors. Whether the result is worse must be measured: the 16-bit base is better (lesson 13b).
#
# </details>

# %% [markdown]
# ## Where the papers say this
#
# - LoRA, arXiv 2106.09685, section 4.2, names what is saved and what is not.
# - QLoRA, arXiv 2305.14314, fine-tunes 65 billion parameters on one GPU with 48 GB.
# - He et al., arXiv 2110.04366, compare the families at equal numbers of parameters. Their figure
#   of performance over parameters is the model of the one above.
#
# ## Where implementations differ
#
# - *"Trainable parameters"* count a classification head or not, what is stored or what is trained
#   (lesson 06), merged parameters or not. Ask before you compare.
# - *Memory* as frameworks report it includes caches of the allocator. As this package traces it,
#   it is arrays alone.
# - *PEFT's LoRA on `c_attn`* shares one $A$ among query, key and value. That is a different
#   method from LoRA on query and value, with the same name.
#
# **Now you can** choose, say why, and take what you trained to where it is used.
# [Lesson 16](16_real_model.ipynb) does it with a real model.
# The end of the course is the beginning of `tinypeft/`: every file of it is meant to be read.
