# %% [markdown]
# # 15 · Choosing
#
# **What you will do.** Put the course together: what a method and a scheme cost and what they are worth, in one picture; whether the difference of
# two averages is a difference; what fits into the memory of a machine that has seven billion parameters to hold; and how an adapter
# that you trained here moves to Hugging Face's PEFT, where the work goes on on a GPU.
#
# **What you need.** Lessons 03, 07 and 13; the others for what the names mean.
#
# **Time.** 55 minutes; every cell together runs in well under a minute.

# %%
import json
import tempfile
from pathlib import Path

import numpy as np

import tinypeft as tp
from tinypeft.course import show
from tinypeft.course.show import FIGURES
from tinypeft.study import memory
from tinypeft.study.experiment import Results, half_width

# %% [markdown]
# ## Does it fit?
#
# The first question is not which method is best but which ones start at all. Before a single token is read, training needs the weights, and for each
# parameter that is trained the parameter itself, its gradient and AdamW's two moments, in four bytes each:
#
# $$\text{bytes} = n_\text{base} \cdot \frac{b}{8} + n_\text{trained} \cdot (4 + 4 + 2 \cdot 4) \tag{1}$$
#
# with $b$ bits for a weight of the frozen base.
#
# ### {exercise}
#
# Write equation (1). What is trained lies beside the base (an adapter, a LoRA), not within it.

# %% exercise=choosing.memory points=2 minutes=5
def choosing_memory(n_base, base_bits, n_trained):
    """Bytes of a frozen base of n_base weights, and of what is trained beside it with AdamW."""
    ### BEGIN SOLUTION
    return n_base * base_bits / 8 + n_trained * (4 + 4 + 2 * 4)
    ### END SOLUTION

# %%
result = tp.check("choosing.memory", choosing_memory)
result

# %%
needed = result.function
GiB = 2**30
llama = memory.SHAPES["llama-7b"]
n_lora = memory.FORMULAS["lora"](llama, rank=8).n
print(f"{llama.parameters / 1e9:.2f} G parameters; LoRA of rank 8 on query and value trains {n_lora / 1e6:.1f} M of them")
for name, bits in (("16-bit base", 16), ("NF4 with double quantization", 4.127)):
    print(f"LoRA on a {name:<29}{needed(llama.parameters, bits, n_lora) / GiB:6.1f} GiB")
print(f"full fine-tuning in 16 bits of gradients, 32 of moments: {llama.parameters * (2 + 2 + 8) / GiB:6.1f} GiB")

# %% [markdown]
# Activations come on top. They depend on the batch, the length of the rows, and on where gradients must pass; lesson 03 counted them for the small model.
# The study's memory model does it term by term, is held to within ten per cent of traced bytes at our sizes, and then asked about seven billion
# (`python -m tinypeft memory --help`):

# %%
print(memory.table(memory.compared(llama, batch=1, tokens=512)))

# %% [markdown]
# Read the columns. LoRA removes gradients and moments, and nothing else; QLoRA removes three quarters of the weights; what is left is mostly activations, for which
# there are other remedies (smaller batches, recomputing).

# %%
show("memory")

# %% [markdown]
# *What to see: a card with 24 GiB holds LoRA on a 16-bit base of this size if rows are short, QLoRA with room to spare, and full fine-tuning not at all.*
#
# ## Is it good?
#
# The second question. Load what the study measured for every method, over five seeds, and look at two numbers of each: what it trains, and what the test
# loss on Matplotlib's documentation is after the same number of steps.

# %%
r = Results.load(FIGURES / "results", "methods")
methods = [name for name in r.conditions if name != "frozen"]
trained = np.array([r.mean(name, "trained") for name in methods])
loss = np.array([r.mean(name, "loss") for name in methods])
print(f"{len(r.seeds)} seeds, {r.record['settings']['steps']} steps; frozen base {r.mean('frozen', 'loss'):.3f} nats/token")
for name, t, x in sorted(zip(methods, trained, loss, strict=True), key=lambda row: row[2]):
    print(f"  {name:<18}{int(t):>10,} trained   {x:.3f} ± {r.interval(name, 'loss'):.3f}")

# %% [markdown]
# A method is *dominated* if another one is no dearer and no worse, and strictly better in one of the two. What is not dominated is the **Pareto frontier**; all reasonable choices are on
# it, and which of them is right depends on what you have to pay with.
#
# ### {exercise}
#
# Given `cost` and `loss`, arrays $(n,)$ where less is better in both, return a boolean array $(n,)$, true for the points on the frontier. Two points that are equal do not dominate each other.

# %% exercise=choosing.pareto points=3 minutes=12
def choosing_pareto(cost, loss):
    """Which points no other point dominates: a boolean array (n,)."""
    ### BEGIN SOLUTION
    no_worse = (cost[:, None] <= cost) & (loss[:, None] <= loss)                     # [i, j]: i is no worse than j
    better = (cost[:, None] < cost) | (loss[:, None] < loss)
    return ~(no_worse & better).any(axis=0)
    ### END SOLUTION

# %%
result = tp.check("choosing.pareto", choosing_pareto)
result

# %%
frontier = result.function(trained, loss)
print("on the frontier of parameters and loss:", ", ".join(np.array(methods)[frontier]))

# %%
show("pareto")

# %% [markdown]
# *What to see: the frontier moves when the price is memory instead of parameters, because a method that trains little may still need the activations of everything.* And quality on the
# new text is not all: what has become of the old?

# %%
show("forgetting")

# %% [markdown]
# ## Is it a difference?
#
# The order of two methods in a table means nothing until you know how much a repetition would move them. The study's runs are *paired*: with the same seed, two methods see the same batches in the same
# order. So take the difference per seed, $d_k = a_k - b_k$, and the interval that covers its true mean with a probability of 95 %:
#
# $$\bar d \pm t_{0.975,\,n-1}\, \frac{s_d}{\sqrt n}, \qquad s_d^2 = \frac{1}{n-1} \sum_k (d_k - \bar d)^2 \tag{2}$$
#
# $t_{0.975,\,n-1}$ is the quantile of Student's distribution with $n - 1$ degrees of freedom (2.78 for five seeds; the familiar 1.96 would be far too sure of itself).
#
# ### {exercise}
#
# For arrays `a` and `b` $(n,)$, paired by seed, return $\bar d$ and half of the interval's width. (`from scipy.stats import t`; `t.ppf(0.975, n - 1)`.)

# %% exercise=choosing.difference points=3 minutes=12
def choosing_difference(a, b):
    """(mean of a − b, half width of its 95 % interval), paired over seeds."""
    ### BEGIN SOLUTION
    from scipy.stats import t
    d = a - b
    return d.mean(), t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d))
    ### END SOLUTION

# %%
result = tp.check("choosing.difference", choosing_difference)
result

# %%
difference = result.function
pairs = [("lora", "full"), ("parallel_adapter", "adapter"), ("ptuning_v2", "prompt"), ("lora", "dylora")]
for a, b in pairs:
    mean, half = difference(r.values(a, "loss"), r.values(b, "loss"))
    apart = np.hypot(half_width(r.values(a, "loss")), half_width(r.values(b, "loss")))
    verdict = "no difference that five seeds can show" if abs(mean) < half else f"{a if mean < 0 else b} is better"
    print(f"{a:>17} − {b:<8} {mean:+.3f} ± {half:.3f} nats/token   (unpaired ± {apart:.3f})   {verdict}")

# %% [markdown]
# These intervals say how much *seeds* matter: the start and the batches. They do not say that another text, another size of model or another number of steps would
# give the same order. All of the papers' claims that the study could put to such a test stand, with verdicts, in `figures/README.md`.
#
# ## How many bits?
#
# For the weights that do not train the choice is between bits, and again there is a frontier:

# %%
show("schemes")

# %% [markdown]
# *What to see: down to four bits a good scheme costs little; below, calibration (GPTQ, AWQ) is worth more than another clever grid, and training is worth more than calibration.*
# If memory is what you have to divide, is it better spent on more parameters or on more bits?

# %%
show("bits_vs_parameters")

# %% [markdown]
# *What to see: at the same number of bytes, which size of model is lowest.* For large language models the answer was four bits (Dettmers & Zettlemoyer, arXiv 2212.09720).
#
# ## A way to decide
#
# | you have | take | because |
# |---|---|---|
# | one task, and memory for everything | full fine-tuning, at a small learning rate | it is the yardstick; nothing here beats it on new text, and it forgets most |
# | many tasks on one base, latency matters | LoRA on all matrices, merged or swapped | small files, no cost at inference |
# | a base that hardly fits | QLoRA: NF4 with double quantization, LoRA on all matrices | a quarter of the weights' bytes |
# | no idea which rank | DyLoRA (choose later) or AdaLoRA (let it choose) | one training instead of many |
# | a model behind an API that takes vectors, or many tasks in one batch | prompt or prefix tuning | nothing in the model is touched |
# | little memory at inference, no training | GPTQ or AWQ at 4 bits | calibration in minutes |
# | 3 bits or fewer | training with quantization, or LoftQ before a LoRA | rounding alone breaks the model |
#
# Each line is a starting point, and each can be checked with a command of this package.
#
# ## Your own data
#
# A choice is made for a task, and yours is in a file. Three functions read it, and each has an option of `finetune`, `evaluate` and so on:
#
# | you have | in Python | on the command line |
# |---|---|---|
# | Markdown or plain text, to continue | `tp.tasks.text("notes/", model)` | `finetune lora --text notes/` |
# | rows with a label, as CSV or TSV | `tp.tasks.labelled("reviews.csv", model)` | `finetune lora --csv reviews.csv` |
# | prompts with answers, as JSONL or CSV | `tp.tasks.pairs("answers.jsonl", model)` | `finetune lora --pairs answers.jsonl` |
#
# Here is a file of 300 rows as somebody might collect them. (A seed makes it up, so that you see the numbers that are printed below.)

# %%
import csv

rng = np.random.default_rng(0)
words = {"good": "lovely excellent bright quick honest gentle".split(), "bad": "broken awful dull slow rude sticky".split()}
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
task.baselines
task

# %% [markdown]
# Before a model is trained, the task says three things. *How it was split*: rows that share 24 words in a row, or all their words, stand on one side, because a test on what was trained on
# measures memory. *What was left out*: a row that repeats another would count twice. *What is easy*: on rows like these a bag of words finds the label, so a model must do as well at least. A model that
# only beats the majority is not worth its parameters.

# %%
tuned = tp.attach(model, tp.LoRA(rank=8), rng=0, head=len(task.classes))
tp.find_rate(tuned, task, steps=40, batch_size=16, progress=False)

# %% [markdown]
# `find_rate` raises the learning rate from step to step and measures the validation loss after each. The model stays as it was. *What to see:* at small rates nothing happens, then the loss falls, and at
# large rates it jumps up and down. A rate inside the region where it falls is a place to start from. The lowest point of a jagged curve is partly luck, and a longer training often wants a smaller rate.
# LoRA's own rate, 0.01, is in that region, so the training below keeps it.

# %%
print(tp.train(tuned, task, 40, batch_size=16, progress=False))
print(tp.evaluate(tuned, task))
task.predict(tuned, ["The violin is rude.", "An honest clock, and a quick one!"])

# %% [markdown]
# The violin is in no row: what the base learned before carries over. The adapter alone does not know the names of the classes. `task.json`, beside it, does, and it holds no row of your file:

# %%
place = Path(tempfile.mkdtemp())
tuned.save(place)
tp.tasks.save_task(task, place)
task = tp.tasks.load_task(place, model)
print(*sorted(p.name for p in place.iterdir()), "; classes:", *task.classes)
task.predict(tuned, ["My coat is sticky."])

# %% [markdown]
# In a terminal these are three lines, and with `--model smollm2` the same three for a real model:
#
# ```bash
# python -m tinypeft finetune lora --csv reviews.csv --out my-adapter
# python -m tinypeft classify "The violin is rude." --adapter my-adapter
# python -m tinypeft evaluate --adapter my-adapter --csv reviews.csv
# ```
#
# `evaluate` recognises the file by its SHA-256 and measures the test part that training left alone; another file it measures whole. If a file is broken, the error says in which line, and how to mend it.
#
# ## Taking an adapter to PEFT
#
# GPT-2, as the world stores it, has query, key and value in one matrix `c_attn` of $3d$ rows of outputs. A LoRA on query and on value apart is there *one* LoRA of rank
# $r + s$ with zeros in the right places:
#
# $$A = \begin{bmatrix} A_q \\ A_v \end{bmatrix}, \qquad B = \begin{bmatrix} B_q & 0 \\ 0 & 0 \\ 0 & B_v \end{bmatrix} \tag{3}$$
#
# ### {exercise}
#
# Return $(A, B)$ of equation (3): `A_q` $(r, d)$, `B_q` $(d, r)$, `A_v` $(s, d)$, `B_v` $(d, s)$. The two ranks may differ.

# %% exercise=choosing.fuse points=4 minutes=15
def choosing_fuse(A_q, B_q, A_v, B_v):
    """(A, B) of c_attn: A (r + s, d), B (3 d, r + s), for LoRAs on query and on value."""
    ### BEGIN SOLUTION
    r, d = A_q.shape
    A = np.concatenate([A_q, A_v])
    B = np.zeros((3 * d, len(A)))
    B[:d, :r] = B_q
    B[2 * d:, r:] = B_v
    return A, B
    ### END SOLUTION

# %%
result = tp.check("choosing.fuse", choosing_fuse)
result

# %% [markdown]
# The package does the same when it saves in PEFT's format: two files, which `PeftModel.from_pretrained` reads on any GPT-2 of the same weights (the tests do that, for every method that PEFT has, in both
# directions). Train one for a few steps, and look into the folder:

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
from tinypeft.interop import read_safetensors

stored = read_safetensors(folder / "adapter_model.safetensors")
name = "base_model.model.transformer.h.0.attn.c_attn"
A, B = (np.array(stored[f"{name}.lora_{x}.weight"]) for x in "AB")
layers = [tuned.wrappers[f"blocks.0.attention.{x}"] for x in ("query", "value")]
mine = result.function(layers[0].A.data, layers[0].B.data, layers[1].A.data, layers[1].B.data)
scale = config["lora_alpha"] / config["r"]
print("A", A.shape, "B", B.shape, "; the same change of c_attn as your fused pair:",
      np.allclose(scale * B @ A, layers[0].scale * mine[1] @ mine[0], atol=1e-6))

# %% [markdown]
# Back again: `tp.load_adapter` recognises the folder, whoever wrote it. It is strict: a tensor that is missing, or is there for nothing, is an error with a list, where other programs
# warn and compute something else.

# %%
logits = tuned(np.arange(10)[None]).data
again = tp.load_adapter(tuned.detach(), folder)
print(again.method, "; the same logits:", np.allclose(again(np.arange(10)[None]).data, logits, atol=1e-4))

# %% [markdown]
# On a machine with PEFT and a GPU, with a GPT-2 in place of the toy (`tp.GPT.from_huggingface(folder)` reads it here, `model.to_huggingface(folder)` writes it):
#
# ```python
# from peft import PeftModel
# from transformers import AutoModelForCausalLM
# model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("folder-of-the-model"), "folder-of-the-adapter")
# ```
#
# ### {exercise} · Your choice (open, 5 points, 30 minutes)
#
# You have one machine with 16 GiB for everything, a model of seven billion parameters, twelve tasks with a thousand examples each, and users who wait for answers. Choose method, scheme, ranks and targets. Support each choice
# with a number: from `memory`, from the study, or from an experiment of your own on the small base. Say which of your numbers you would not trust at seven billion, and how you would find out.
#
# *Rubric: 1 point for a memory budget that adds up, activations included; 1 for quality with an interval; 1 for serving twelve tasks; 1 for what was left out and why; 1 for honest doubts.*

# %% [answer]
# One good choice among several: QLoRA, NF4 with double quantization, LoRA of rank 16 on all matrices, twelve adapters beside
# one base.
#
# - *Memory.* Weights: $7 \cdot 10^9 \cdot 4.127/8$ bytes = 3.4 GiB; embeddings, if they stay in 16 bits, add about 0.3. On
#   LLaMA 7 B rank 16 on all matrices is 40 M numbers: 16 bytes each with gradient and AdamW, 0.6 GiB. The rest is
#   activations, which grow with rows × tokens: a row at a time, accumulated, fits. LoRA on 16 bits needs 13 GiB for the
#   weights and leaves 3; full fine-tuning is out. {picture memory}
# - *Quality.* {claim QLoRA learns as well} {claim With the same number of parameters}
# - *Twelve tasks.* 80 MB each in 16 bits, unmerged: one base serves all, and a batch may mix tasks. Merging
#   and rounding again is not an option. {claim Rounding a merged QLoRA}
# - *Users who wait.* An unmerged LoRA adds two thin products to each matrix; a 4-bit base reads a quarter of the bytes for each
#   token. Adapters behind a sublayer add steps that wait for each other, prompts lengthen the input.
# - *Left out,* with a reason each: full fine-tuning (memory), prompts (quality here), AdaLoRA and DyLoRA (not
#   better than one rank for all), 3 bits (costs quality for memory that is not needed). {claim AdaLoRA is better}
# - *Doubts.* The study trains 1.2 million parameters for 150 steps. Trust orders that are large and agree with the papers;
#   do not trust distances, learning rates, or anything "not at this size". A thousand examples are few: a held-out part of
#   each task, three seeds on one or two of them, a sweep of three rates, and early stopping tell more.

# %% [markdown]
# ## Recall
#
# <details><summary>1. Which part of training memory does LoRA not reduce?</summary>The base's weights, and most activations: gradients pass through all layers to the first adapted one.</details>
#
# <details><summary>2. When is a dominated method still a good choice?</summary>When a price that is not in the picture matters: latency, files per task, how easily it is served or merged.</details>
#
# <details><summary>3. Two methods' intervals overlap. Is there no difference?</summary>That does not follow: paired over seeds, their difference may be far from zero. Look at the interval of the difference.</details>
#
# <details><summary>4. Why does the fused pair have rank r + s, and not max(r, s)?</summary>The rows of A_q and A_v are different directions of the input; each B must see its own only.</details>
#
# <details><summary>5. Merged into a 16-bit base, a QLoRA adapter computes something else than in training. Why?</summary>It was trained on top of the quantized weights, and has learned to make up for their errors, too (lesson 13).</details>
#
# ## Where the papers say this
#
# * LoRA, arXiv 2106.09685, section 4.2, names what is saved and what is not. QLoRA, arXiv 2305.14314, fine-tunes 65 billion parameters on one GPU with 48 GB.
# * He et al., arXiv 2110.04366, compare the families at equal numbers of parameters; their figure of performance over parameters is the ancestor of the one above.
#
# ## Where implementations differ
#
# * "Trainable parameters" count a classification head or not, what is stored or what is trained (lesson 06), merged parameters or not: ask before comparing.
# * Memory as frameworks report it includes caches of the allocator; as this package traces it, arrays alone.
# * PEFT's LoRA on `c_attn` shares one $A$ among query, key and value. That is a different method from LoRA on query and value, with the same name.
#
# **Now you can** choose, and say why, and take what you trained to where it is used. [Lesson 16](16_real_model.ipynb) does it with a real model. The end of the course is the beginning of `tinypeft/`: every file of it is meant to be read.
