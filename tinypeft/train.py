"""Training and evaluation: one loop for pretraining, full fine-tuning and every method.

Everything random in step s is drawn from (seed, s): the batch, the dropout masks, a method's own
choices. A checkpoint therefore needs no random state, and a run that was stopped and resumed has the
same parameters, bit for bit, as one that never stopped.
"""
import contextlib
import itertools
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from .files import load_arrays, save_arrays
from .markup import table
from .nn import Dropout, Module, replace_modules
from .optim import AdamW, clip_grad_norm, schedule
from .progress import Progress
from .tensor import Tensor, no_grad
from .threads import parallel_map

__all__ = ["DivergedError", "History", "evaluate", "train"]


HEAD_LR = 1e-2        # a classification head starts from nothing, whatever the method beside it needs


class DivergedError(RuntimeError):
    """The loss or a gradient became NaN or infinite."""


@dataclass
class History:
    """What happened: `loss` (nats) per step, `evals` as [step, metrics], seconds in training steps."""
    loss: list = field(default_factory=list)
    evals: list = field(default_factory=list)
    seconds: float = 0.0

    def __repr__(self):
        n = len(self.loss)
        tail = self.loss[-max(1, n // 10):]
        return f"History({n} steps, loss {self.loss[0]:.3f} → {np.mean(tail):.3f}, {self.seconds:.1f} s)" if n else "History()"

    def _repr_html_(self):
        parts = np.array_split(np.array(self.loss or [0.0]), min(max(len(self.loss), 1), 40))
        means = np.array([part.mean() for part in parts])
        heights = (7 * (means - means.min()) / max(np.ptp(means), 1e-12)).round().astype(int)
        curve = "".join("▁▂▃▄▅▆▇█"[h] for h in heights) if self.loss else ""
        names = list(self.evals[0][1]) if self.evals else []
        rows = [[step, *(f"{metrics[name]:.4f}" for name in names)] for step, metrics in self.evals]
        return table(rows, ["after step", *(f"validation {name}" for name in names)] if rows else None, repr(self),
                     range(1 + len(names)), f"loss {curve}" if curve else None)


def train(model, task, steps, *, batch_size=8, lr=None, head_lr=None, weight_decay=0.0, schedule_kind="linear", warmup=None,
          lr_floor=0.0, clip=1.0, betas=(0.9, 0.999), seed=0, eval_every=None, eval_batches=None, checkpoint=None,
          checkpoint_every=500, stop_after=None, workers=2, optimizer=AdamW, progress=None):
    """Train the parameters of `model` that require gradients, by AdamW, on `task`; return a `History`.

    model: a GPT or a PeftModel. task: from `tinypeft.tasks`, or any object with its `batch` and `loss`.
    batch_size: rows per step. lr: peak learning rate of everything (default: the method's own or 1e-3, and HEAD_LR
        for a classification head). head_lr: the head's alone.
    weight_decay: applies to matrices only. schedule_kind, warmup (steps; default 5 %), lr_floor: see `optim.schedule`.
    clip: bound on the gradients' global norm, None for none. eval_every: steps between evaluations on "validation".
    checkpoint: a file. If it exists training goes on from it; it is rewritten, atomically, every
        `checkpoint_every` steps and at the end. stop_after: stop once this many steps in all are done.
    workers: threads that share a batch (see `threads`); one where dropout draws. The number changes rounding, not maths.
    optimizer: AdamW, or `PagedAdamW`, which keeps its state in a file; the trajectory is the same.
    Raises ValueError for options that make no sense or a checkpoint of another run, and DivergedError, naming
    the step and the module, when the loss or a gradient is no longer finite; the last checkpoint stays.
    """
    if steps < 1 or batch_size < 1:
        raise ValueError(f"train: steps and batch_size must be at least 1, got {steps} and {batch_size}")
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise ValueError("train: nothing to train, every parameter is frozen")
    if head_lr is None: head_lr = HEAD_LR if lr is None else lr
    lr = lr if lr is not None else getattr(model, "learning_rate", 1e-3)
    warmup = warmup if warmup is not None else max(1, steps // 20)
    optimizer = optimizer(_groups(model, params, head_lr), lr=lr, betas=betas, weight_decay=weight_decay)
    method = getattr(model, "method", None)
    settings = dict(steps=steps, batch_size=batch_size, lr=lr, weight_decay=weight_decay, schedule=schedule_kind,
                    warmup=warmup, lr_floor=lr_floor, clip=clip, betas=list(betas), seed=seed, workers=workers,
                    method=method and repr(method))
    if any(isinstance(m, Dropout) and m.p for _, m in model.named_modules()):
        workers = 1                                      # threads would draw in no fixed order
    history, first = History(), 0
    if checkpoint is not None and Path(checkpoint).exists():
        first = _resume(checkpoint, model, optimizer, history, settings)

    model.train()
    last = steps if stop_after is None else min(steps, stop_after)
    try:
        with Progress(steps, "training", progress) as bar:
            for step in range(first, last):
                start = time.perf_counter()
                _reseed(model, seed, step)
                model.before_step(step, steps)
                optimizer.scale_lr(schedule(schedule_kind, step, steps, warmup, lr_floor))
                optimizer.zero_grad()
                batch = task.batch("train", batch_size, np.random.default_rng([seed, step]))
                loss = backward(model, task, batch, workers)
                if not math.isfinite(loss):
                    _reseed(model, seed, step)           # the same dropout again
                    where = _first_nonfinite(model, lambda: task.loss(model, batch))     # noqa: B023
                    raise _diverged(step, f"the loss is {loss}; the first value that is not finite comes out of {where}",
                                    lr, checkpoint)
                norm = clip_grad_norm(params, clip or math.inf)
                if not math.isfinite(norm):
                    bad = [n for n, p in model.named_parameters() if p.grad is not None and not np.isfinite(p.grad).all()]
                    raise _diverged(step, f"the gradient is not finite, in {', '.join(bad) or 'its norm'}", lr, checkpoint)
                optimizer.step()
                model.after_step(step, steps)
                history.loss.append(loss)
                history.seconds += time.perf_counter() - start
                bar(step + 1, f"loss {np.mean(history.loss[-50:]):.3f}")
                if eval_every and ((step + 1) % eval_every == 0 or step + 1 == steps):
                    history.evals.append([step + 1, evaluate(model, task, "validation", max_batches=eval_batches)])
                    model.train()
                if checkpoint is not None and ((step + 1) % checkpoint_every == 0 or step + 1 == last):
                    _save_checkpoint(checkpoint, model, optimizer, history, settings, step + 1)
    finally:
        optimizer.zero_grad()
        model.eval()
    return history


def _groups(model, params, head_lr):
    """What the optimizer is told: weight decay is for matrices, a classification head has a rate of its own."""
    head = {id(p) for p in model.head.parameters()} if getattr(model, "head", None) else set()
    return [{"params": [p for p in params if p.ndim >= 2 and id(p) not in head]},
            {"params": [p for p in params if p.ndim < 2 and id(p) not in head], "weight_decay": 0.0},
            {"params": [p for p in params if id(p) in head], "weight_decay": 0.0, "lr": head_lr}]


def backward(model, task, batch, workers=1):
    """Add the gradients of the batch's mean loss, penalty included, to the parameters; return the loss (a float).

    The batch is cut into one part per worker; each part's gradients are weighted by what it counts of the mean.
    """
    rows = len(batch[0])
    cuts = np.linspace(0, rows, min(workers, rows) + 1).astype(int)
    parts = [tuple(a[i:j] for a in batch) for i, j in zip(cuts, cuts[1:], strict=False)]
    parts = [part for part in parts if task.count(part)]                 # one where all targets are ignored has no mean
    if not parts:
        raise ValueError(f"train: nothing counts in a batch of {rows} rows, every target is ignored")
    total = sum(map(task.count, parts))

    def one(part):
        share = task.count(part) / total
        loss = task.loss(model, part)
        return share * loss.item(), loss.gradients(share)
    results = parallel_map(one, parts, workers)
    penalty = model.penalty()
    if penalty is not None: results.append((penalty.item(), penalty.gradients()))
    for _, gradients in results:
        for p, g in gradients:
            if p.grad is None: p.grad = g
            else:              p.grad += g
    return sum(loss for loss, _ in results)


def evaluate(model, task, split="test", batch_size=16, max_batches=None, workers=2):
    """Metrics of `model` on a split of `task`, each the mean over what it counts (tokens, or examples)."""
    model.eval()
    with no_grad():
        batches = itertools.islice(task.batches(split, batch_size), max_batches)
        results = parallel_map(lambda batch: (task.count(batch), task.metrics(model, batch)), batches, workers)
    sums, weight = {}, sum(n for n, _ in results)
    for n, metrics in results:
        for name, value in metrics.items():
            sums[name] = sums.get(name, 0.0) + n * value
    if not weight:
        raise ValueError(f"evaluate: the split {split!r} of {task} is empty")
    return task.finish({name: total / weight for name, total in sums.items()}, split)


def _reseed(model, seed, step):
    """Give everything that draws a generator of its own for this step."""
    drawing = [m for _, m in model.named_modules() if isinstance(getattr(m, "rng", None), np.random.Generator)]
    for i, module in enumerate(drawing):
        module.rng = np.random.default_rng([seed, step, 1 + i])


# -- where did it go wrong -----------------------------------------------------------------------
def _diverged(step, what, lr, checkpoint):
    kept = f" The last good state is in {checkpoint}." if checkpoint and Path(checkpoint).exists() else ""
    return DivergedError(f"step {step}: {what}. Try a smaller learning rate than {lr:g}.{kept}")


class _Watched(Module):
    """A module that notes its path in `found` when its output is not finite."""

    def __init__(self, base, path, found):
        self.base, self.path, self.found, self.training = base, path, found, base.training

    def forward(self, *args, **kwargs):
        y = self.base(*args, **kwargs)
        if isinstance(y, Tensor) and not np.isfinite(y.data).all(): self.found.append(self.path)
        return y

    def __getattr__(self, name):                         # whatever else is asked of the module it stands for
        return getattr(vars(self)["base"], name)


def _first_nonfinite(model, run):
    found = []
    deepest_first = sorted(((p, m) for p, m in model.named_modules() if p), key=lambda pm: -pm[0].count("."))
    for path, module in deepest_first:
        replace_modules(model, {path: _Watched(module, path, found)})
    try:
        with no_grad(), np.errstate(all="ignore"), contextlib.suppress(ArithmeticError):
            run()
    finally:
        for path, module in reversed(deepest_first):
            replace_modules(model, {path: module})
    return found[0] if found else "the loss itself"


# -- checkpoints ---------------------------------------------------------------------------------
def _save_checkpoint(path, model, optimizer, history, settings, step):
    arrays = {f"model/{k}": v for k, v in model.state_dict().items()}
    arrays |= {f"optimizer/{k}": v for k, v in optimizer.state_arrays().items()}
    save_arrays(path, arrays, {"settings": settings, "step": step, "history": asdict(history)})


def _resume(path, model, optimizer, history, settings):
    arrays, meta = load_arrays(path)
    differ = {k: (meta["settings"].get(k), v) for k, v in settings.items() if meta["settings"].get(k) != v}
    if differ:
        told = "; ".join(f"{k} was {a}, is {b}" for k, (a, b) in differ.items())
        raise ValueError(f"the checkpoint {path} belongs to another run ({told}); give another file or the same settings")
    part = lambda prefix: {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    model.load_state_dict(part("model/"))
    optimizer.load_state_arrays(part("optimizer/"))
    vars(history).update(meta["history"])
    return meta["step"]
