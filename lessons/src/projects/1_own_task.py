# %% [markdown]
# # Project 1 · A task of your own
#
# **What you will do.** You fine-tune a model for a text or a table that you bring along. You compare two methods fairly, and you
# write a page that a sceptical reader believes.
#
# **What you need.** Lessons 00 to 09. Files of your own are explained in section 2, intervals in section 6, and sections 6 and 3 of
# lesson 15, which you may read before, say more of both. [The glossary](../GLOSSARY.md) explains words and letters.
#
# **Time.** About six hours, over a week. The cells of the example run in a minute.
#
# **What you hand in.** This notebook, and the page `report.md` that its last cell writes.
#
# | points | for |
# |---|---|
# | 8 | the eight criteria that the record checks, one point each |
# | 3 | the question: somebody wants the answer, and the runs can give it |
# | 4 | the data: where they come from, what was left out, why the test is honest |
# | 3 | the arms: why these two methods, and why the comparison is fair |
# | 4 | the conclusion: what the numbers carry, the best baseline beside them, what they do not carry, and what you would do next |
#
# A criterion is met when the record below shows ✔. The other points are given by a reader, so write sentences, not keywords.

# %%
import tempfile
from pathlib import Path

import tinypeft as tp
from tinypeft.course import Project
from tinypeft.study.compared import traced_peak

# %% [markdown]
# ## 1. The question and the budget
#
# Ask one question that your runs can answer. A good question names the text, the methods, and the price: "Does LoRA learn my
# recipes as well as an adapter with as many parameters?" The budget is in bytes: the weights, AdamW's two moments of what is
# trained, and all that one training step allocates. Choose it before you measure, so that it rules something out. With four rows
# of 128 tokens, full fine-tuning of the toy takes 36.5 MiB, and a LoRA of rank 4 on all matrices 27.6.

# %% project
### BEGIN SOLUTION
# skeleton: project = Project("Write your question here.", budget=32 * 2**20)
project = Project("Which learns the documentation of IPython better with 4 % of the parameters, LoRA or a parallel adapter?",
                  budget=32 * 2**20)
### END SOLUTION
project

# %% [markdown]
# ## 2. The data
#
# Bring files of your own. Three functions read them, and each returns a task with a training, a validation and a test part:
#
# ```python
# tp.tasks.text("recipes", model)                                  # a folder of plain text or Markdown: write like this
# tp.tasks.labelled("mails.csv", model, text="body", label="team") # rows with a label: name it
# tp.tasks.pairs("questions.jsonl", model)                         # prompts with answers: answer like this
# ```
#
# A model for labels needs a head: `tp.attach(model, method, head=len(task.classes))`. Read what the task says about the split,
# and look at a few texts of the test part with your own eyes. Text that many documents repeat is worth removing. Then tell the
# record the task, `project.data(task)`, and the base, `project.frozen(loss, weights)`: its test loss before anything is trained,
# and the bytes of its weights.

# %% project
### BEGIN SOLUTION
import ast
import importlib.util

source = Path(importlib.util.find_spec("IPython").origin).parent
folder = Path(tempfile.mkdtemp()) / "ipython"
folder.mkdir()
for path in sorted(source.rglob("*.py")):                # the docstrings of one module are one document
    if "tests" in path.parts: continue
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = ast.Module, ast.ClassDef, ast.FunctionDef
    found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    text = "\n\n".join(doc for doc in found if doc and len(doc) > 80)
    if text: (folder / f"{'.'.join(path.relative_to(source).with_suffix('').parts)}.md").write_text(text, encoding="utf-8")

model = tp.load_pretrained()
task = tp.tasks.text(folder, model, context=128)
project.data(task)
weights = sum(array.nbytes for array in model.state_dict().values())              # codes, too, if there are some
project.frozen(tp.evaluate(model, task, "test")["loss"], weights)
### END SOLUTION
project

# %% [markdown]
# ## 3. The arms
#
# Choose two methods or more, and make them comparable: as many trained parameters, or as many bytes. Say what is equal.
# `tp.attach(model, method).summary()` counts.

# %% project
### BEGIN SOLUTION
project.arm("LoRA", tp.LoRA(rank=4, targets="all"))
project.arm("parallel adapter", tp.ParallelAdapter(bottleneck=16, beside="both"))
for name, arm in project.arms.items():
    tuned = tp.attach(model, arm.method, rng=0)
    print(f"{name:<18}{tuned.summary().trained:>9,} trained parameters")
### END SOLUTION
project

# %% [markdown]
# ## 4. The rates
#
# Each arm has its own learning rate: the best of three or more, by validation loss, with a seed that you do not report. If the
# best is the lowest or the highest of your rates, try one more on that side: `project.tuned` keeps the rates of earlier calls with
# the same seeds. (`project.arm` begins anew.)

# %% project
### BEGIN SOLUTION
steps = 40


def run(name, rate, seed, split):
    """Train an arm with one seed; its loss on a split, and the bytes of weights, moments and a step."""
    tuned = tp.attach(model, project.arms[name].method, rng=seed)
    added = sum(array.nbytes for array in tuned.state_dict().values())                # what is trained lies beside the base
    peak = weights + 3 * added + traced_peak(tuned, task, 4)                           # … with two moments for each number
    tp.train(tuned, task, steps, batch_size=4, lr=rate, seed=seed, progress=False)
    loss = tp.evaluate(tuned, task, split)["loss"]
    return loss, peak


grids = {"LoRA": (1e-3, 3e-3, 1e-2), "parallel adapter": (2e-3, 6e-3, 2e-2)}
for name, rates in grids.items():
    tried = {rate: run(name, rate, 100, "validation")[0] for rate in rates}
    best = project.tuned(name, tried, seeds=(100,))
    print(f"{name:<18}" + ", ".join(f"{rate:g}: {loss:.3f}" for rate, loss in tried.items()) + f"; best {best:g}")
### END SOLUTION
project

# %% [markdown]
# ## 5. The runs
#
# Run every arm at its own rate with the same three seeds or more, and measure on the test part, once. (If you do it again and the
# losses are others, the record says so, and you should say why.) State the bytes: `sum(a.nbytes for a in model.state_dict().values())`
# are those of the base, before anything is attached. The same sum of `tuned` counts what is trained, and AdamW keeps two moments of the
# same size. `traced_peak(tuned, task, rows)` measures one step.

# %% project
### BEGIN SOLUTION
for name, arm in project.arms.items():
    found = {seed: run(name, arm.rate, seed, "test") for seed in (0, 1, 2)}
    project.ran(name, {seed: loss for seed, (loss, _) in found.items()}, peak=max(peak for _, peak in found.values()))
### END SOLUTION
project

# %% [markdown]
# ## 6. The conclusion
#
# Look at the differences, paired over seeds, with their intervals. With the same seed two arms see the same batches, so take one
# difference for each seed. `project.difference("A", "B")` returns their mean and the half width of its 95 % interval: the standard
# deviation of the differences, divided by the root of their number, times 4.30 for three seeds (Student's t; 2.78 for five). By
# hand: 0.1, 0.2 and 0.3 have the mean 0.2 and the deviation 0.1, so it is 0.2 ± 0.25, and A and B cannot be told apart. (Lesson 15
# derives it.)
#
# Then say what the numbers carry: `project.concludes("A", "B")` if A's loss is lower than B's, or `project.concludes(None)` if
# three seeds do not show a difference. Look at the best baseline as well, in the record's first line. It is a count of words. If
# no arm is better, say so, and why.

# %% project
### BEGIN SOLUTION
better, other = project.best()[:2]
mean, half = project.difference(better, other)
print(f"{better} − {other}: {mean:+.3f} ± {half:.3f} nats/token")
project.concludes(better, other) if mean + half < 0 else project.concludes(None)
### END SOLUTION
project

# %% [markdown]
# ## 7. The page
#
# The page has the tables. You add the sentences: the question and who asks it, where the data come from, why the comparison is
# fair, what the numbers carry, what they do not, and what you would do next.

# %% project
### BEGIN SOLUTION
text = """
## What this says

The text is what IPython's modules say about themselves. The base has read Python's own documentation and nothing of IPython. One
module is one document, so no document is in two parts. The two arms train nearly as many parameters, each at the best of three
rates, which were chosen on validation text with another seed. The differences above are paired over seeds. Both arms are far better than a
5-gram model of the same text, and a tenth of a nat better than the base that was never trained on it.

After 40 steps on this text the runs show no difference between the two arms. That is no proof that there is none: the interval
says how large it may be. The runs say nothing of longer training, of other texts, or of a larger model. Next I would train five
times as long, and measure what each arm forgets of Python's documentation.
"""
page = project.report(Path(tempfile.mkdtemp()) / "report.md", text)
print(page.read_text(encoding="utf-8"))
### END SOLUTION
