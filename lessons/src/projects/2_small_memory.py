# %% [markdown]
# # Project 2 · A model that fits
#
# **What you will do.** You have a budget of bytes in which the base does not fit as float32. You quantize it, fine-tune beside it,
# and say with numbers what the small memory costs. You write a page that a sceptical reader believes.
#
# **What you need.** Lessons 00 to 15, and lesson 16 if you use a real model. [The glossary](../GLOSSARY.md) explains words and
# letters. Project 1 shows how the record is used.
#
# **Time.** About ten hours, over two weeks.
#
# **What you hand in.** This notebook, and the page `report.md` that its last cell writes.
#
# | points | for |
# |---|---|
# | 9 | the nine criteria that the record checks, one point each |
# | 3 | the question and the budget: who has this budget, and what happens with less |
# | 3 | the bytes: predicted before they were measured, and the difference is explained |
# | 4 | the arms: scheme and method fit together, and one arm shows what quantizing costs |
# | 2 | merged, and rounded again: three losses, and what they say about handing the model on |
# | 4 | the conclusion: what the numbers carry, what they do not, and what you would trust at seven billion parameters |
#
# A criterion is met when the record below shows ✔. A reader gives the other points, so write sentences, not keywords.

# %%
import numpy as np

import tinypeft as tp
from tinypeft.course import Project
from tinypeft.study.compared import traced_peak

# %% [markdown]
# ## 1. The question and the budget
#
# Choose the budget first. It counts the bytes that the base's weights are stored in, what is trained with AdamW's two moments, and all
# bytes that one training step allocates. A base in float32 must not fit, so that there is something to solve. On the toy most bytes are activations, unless
# the rows are few. With one row of 128 tokens, all this takes 9.1 MiB for a LoRA of rank 8 on query and value beside
# the float32 base, and 5.8 beside NF4 with double quantization (on all matrices 11.6 and 8.3). So 8 MiB tell them apart. A real model is more interesting:
# `tp.load_pretrained("smollm2", quantized=True)`, whose linear layers take 66 MB instead of 425.

# %% project
### BEGIN SOLUTION
# skeleton: project = Project("Write your question here.", budget=8 * 2**20, quantized=True)
### END SOLUTION
project

# %% [markdown]
# ## 2. The data
#
# Files of your own, as in project 1, or a task of the package. Say what the base has read before, as far as you know. On text that
# it knows, fine-tuning has nothing to learn. Tell the record each base that an arm stands on, as it is and rounded: its test loss, and
# the bytes of its weights. The difference of the losses is what rounding costs before any training.

# %% project
### BEGIN SOLUTION
# model, task, project.data(task), project.frozen(loss, weights), project.frozen(loss, weights, bits=…) of the rounded base
### END SOLUTION
project

# %% [markdown]
# ## 3. The arms, and their bytes by hand
#
# Predict the bytes of each arm before you measure: the base's weights at their bits (`tp.quant.bits_per_weight` counts them), what
# is trained with its gradient and AdamW's two moments, and the activations (lesson 03 counts them). Keep each prediction with
# `tp.guess("p2.qlora", …, "MiB")`. One arm on the float32 base shows what quantizing costs. It is the *reference*, and the only arm that may be above
# the budget. Train the same rows in each arm: one at a time, four for each step of the optimizer (`batch_size=4,
# accumulate=4` in `tp.train`).

# %% project
### BEGIN SOLUTION
# project.arm("LoRA", tp.LoRA(…), reference=True), project.arm("QLoRA", tp.LoRA(…), bits=…)
### END SOLUTION
project

# %% [markdown]
# ## 4. The rates
#
# Each arm has its own rate: the best of three or more on validation text, with a seed that you do not report. (`project.tuned` keeps
# the rates of earlier calls with the same seeds.) A LoRA on a quantized
# base may want another rate than a LoRA on float32.

# %% project
### BEGIN SOLUTION
# project.tuned("LoRA", {rate: validation loss}, seeds=(100,))
### END SOLUTION
project

# %% [markdown]
# ## 5. The runs
#
# Run every arm at its own rate with the same three seeds or more. Measure on the test part, once, and state the bytes:
# `traced_peak(tuned, task, rows)` measures those of a step, `sum(a.nbytes for a in base.state_dict().values())` those of the base, before anything is
# attached, and the same sum of `tuned` those of the adapter, whose two moments take twice as much. (`parameters()` leaves out all
# codes.)

# %% project
### BEGIN SOLUTION
# project.ran("LoRA", {seed: test loss}, peak=bytes)
### END SOLUTION
project

# %% [markdown]
# ## 6. Merged, and rounded again
#
# Merge the adapter of one seed into the base, `merged = tuned.merge()`, and quantize the result again, `tp.quantize(merged, scheme,
# skip_quantized=True)`: a layer that no LoRA was on has its codes still. Measure the loss of all three: beside the quantized base,
# merged, and merged and rounded. Lesson 13b says what to expect. Does your model agree?

# %% project
### BEGIN SOLUTION
# three losses, and a sentence
### END SOLUTION

# %% [markdown]
# ## 7. The conclusion, and the page
#
# `project.concludes("A", "B")` says that A's loss is lower than B's; `project.concludes(None)` says that the runs do not show a
# difference. Then write the page. Add the sentences that the rubric asks for.

# %% project
### BEGIN SOLUTION
# project.concludes(…); project.report("report.md", "your sentences")
### END SOLUTION
project
