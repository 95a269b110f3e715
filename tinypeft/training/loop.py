"""Training and evaluation: one loop for pretraining, full fine-tuning and every method.

Everything random in step s is drawn from (seed, s): the batch, the dropout masks, a method's own
choices. A checkpoint therefore needs no random state: a run that was stopped and resumed has the
same parameters, bit for bit, as one that never stopped.
"""
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..common.heap import keep_freed_memory
from ..common.hyper import flag, mapping, real, whole
from ..common.progress import Progress
from ..common.signals import HeldSignals
from ..common.threads import parallel_map
from ..engine.nn import Dropout, Module
from ..engine.optim import AdamW, Optimizer, clip_grad_norm, schedule
from ..engine.recompute import recomputing
from ..engine.tensor import no_grad
from .checkpoints import resume, save_checkpoint
from .diagnosis import DivergedError, check_finite, diverged
from .history import History, Step
from .rates import groups, own_rate, own_rates

__all__ = ["HEAD_LR", "DivergedError", "History", "Step", "backward", "evaluate", "train"]

HEAD_LR = 1e-2        # a classification head starts from nothing, whatever method is beside it


def train(model: Module, task: Any, steps: int, *, batch_size: int = 8, lr: float | None = None,
          head_lr: float | None = None, rates: Mapping[str, float] | None = None,
          weight_decay: float = 0.0, schedule_kind: str = "linear", warmup: int | None = None,
          lr_floor: float = 0.0, clip: float | None = 1.0,
          betas: tuple[float, float] = (0.9, 0.999), seed: int = 0, eval_every: int | None = None,
          eval_batches: int | None = None, patience: int | None = None, keep_best: bool = False,
          callbacks: Sequence[Callable[[Step], object]] = (),
          checkpoint: str | Path | None = None, checkpoint_every: int | None = None,
          stop_after: int | None = None, workers: int = 2, accumulate: int = 1,
          checkpoint_activations: bool = False, optimizer: Callable[..., Optimizer] = AdamW,
          progress: bool | None = None) -> History:
    """Train the parameters of `model` that require gradients on `task`; return a `History`.

    model: a Decoder or a PeftModel. task: from `tinypeft.tasks`, or any object that has
        its `batch`, `count` and `loss` (for evaluations also `batches`, `metrics` and `finish`).
    batch_size: rows per step. lr: peak learning rate (default: each method's own, or 1e-3, times
        √(128/d) for a model that is d wide; see `rates.py`, and `find_rate`, which measures).
    head_lr: that of a classification head (default: `lr` if given, else HEAD_LR).
    rates: factors on the rate by names of parameters (`models/targets.py`): "B", "blocks.0-2.mlp".
        Factors of several names multiply. {"B": 16} is LoRA+ (Hayou et al., arXiv 2402.12354).
    weight_decay: for matrices only. clip: bound on the gradients' global norm, None for none.
    schedule_kind, warmup (steps; default 5 %), lr_floor: see `optim.schedule`.
    eval_every: steps between evaluations on at most `eval_batches` batches of "validation".
    patience: stop after this many evaluations without a lower validation loss. keep_best: end with
        the parameters of the best evaluation, `history.best`, not with the last ones. (A method
        such as AdaLoRA may then not have finished: its ranks are those of that step.)
    callbacks: each is called with a `Step` after every step; training stops if one returns True.
        A checkpoint does not keep what they remember.
    checkpoint: a file to go on from, if it exists, and to rewrite, atomically, every
        `checkpoint_every` steps (default: 500, or a tenth of the run if that is less), at the end,
        and when the run is stopped. stop_after: stop after this many steps in all.
    workers: threads that share a batch; one if dropout draws. The number changes only rounding.
    accumulate: the gradients of a batch are summed over this many parts, one after another, so that
        a step takes the memory of a part. The number changes rounding, and the masks of dropout.
    checkpoint_activations: compute each block again in backward (`engine/recompute.py`): less
        memory, more time, and the same numbers.
    optimizer: AdamW or `PagedAdamW`. Raises ValueError for options out of range or a checkpoint of
        another run, DivergedError, naming step and module, for a number that is not finite.

    Ctrl-C and SIGTERM act at the end of the step that they arrive in; Ctrl-C twice acts at once.
    """
    _check_options(locals())
    params = [p for p in model.parameters() if p.requires_grad]
    if not params: raise ValueError("train: nothing to train, every parameter is frozen")
    method = getattr(model, "method", None)
    rate = lr if lr is not None else own_rate(model)
    warmup = warmup if warmup is not None else max(1, steps // 20)
    settings = dict(
        steps=steps, batch_size=batch_size, lr=rate, head_lr=head_lr, clip=clip, betas=list(betas),
        weight_decay=weight_decay, schedule=schedule_kind, warmup=warmup, lr_floor=lr_floor,
        seed=seed, workers=workers, method=method and repr(method),
        accumulate=accumulate if accumulate > 1 else None,             # older files do not say
        rates=dict(rates) if rates else None, keep_best=keep_best or None)
    if head_lr is None: head_lr = HEAD_LR if lr is None else lr
    own = own_rates(model) if lr is None else lambda p: lr
    optimizer = optimizer(groups(model, own, head_lr, rates), lr=rate, betas=betas,
                          weight_decay=weight_decay)
    if any(isinstance(m, Dropout) and m.p for _, m in model.named_modules()):
        workers = 1                                      # threads would draw in no fixed order
    first, history, best = 0, History(), {}
    if checkpoint is not None and Path(checkpoint).exists():
        first, history, best = resume(checkpoint, model, optimizer, settings)

    last = steps if stop_after is None else min(steps, stop_after)
    if first < last and (why := history.in_vain(patience)): last, history.stopped = first, why
    every = checkpoint_every or max(1, min(500, steps // 10))
    with HeldSignals() as signals, Progress(steps, "training", progress) as bar:
        try:
            model.train()
            for step in range(first, last):
                start = time.perf_counter()
                _reseed(model, seed, step)
                model.before_step(step, steps)
                optimizer.scale_lr(schedule(schedule_kind, step, steps, warmup, lr_floor))
                optimizer.zero_grad()
                batch = task.batch("train", batch_size, np.random.default_rng([seed, step]))
                with recomputing(checkpoint_activations):
                    loss = backward(model, task, batch, workers, accumulate)
                norm = clip_grad_norm(params, clip or math.inf) if math.isfinite(loss) else loss
                if not math.isfinite(norm):
                    _reseed(model, seed, step)           # the same dropout again
                    raise diverged(model, task, batch, loss, step, rate, checkpoint)
                optimizer.step()
                model.after_step(step, steps)
                history.loss.append(loss)
                history.seconds += time.perf_counter() - start
                done = step + 1
                bar(done, f"loss {np.mean(history.loss[-50:]):.3f}")
                metrics = None
                if eval_every and (done % eval_every == 0 or done == steps):
                    metrics = evaluate(model, task, "validation", max_batches=eval_batches)
                    history.evals.append([done, metrics])
                    if keep_best and history.best == [done, metrics]:
                        best = {name: a.copy() for name, a in model.state_dict().items()}
                    model.train()
                why = _called(callbacks, Step(done, steps, loss, metrics, model, history))
                if done < steps: history.stopped = why or history.in_vain(patience)
                saves = checkpoint is not None and (done % every == 0 or signals.waiting)
                if saves or done == last or history.stopped:
                    check_finite(model, optimizer, step, rate, checkpoint)
                    if checkpoint is not None:
                        save_checkpoint(checkpoint, model, optimizer, settings, history, done,
                                        best)
                signals.deliver()
                if history.stopped: break
        finally:
            optimizer.zero_grad()
            model.eval()
    if best: model.load_state_dict(best)
    return history


def _called(callbacks, step):
    """Call all of them; in words: which returned True, or None. What is no bool stops nothing."""
    if not callbacks: return None
    step.model.eval()
    answers = [f(step) for f in callbacks]
    step.model.train()
    who = [getattr(f, "__name__", type(f).__name__) for f, answer in
           zip(callbacks, answers, strict=True) if isinstance(answer, (bool, np.bool_)) and answer]
    return f"{', '.join(who)} returned True after step {step.step}" if who else None


_LIMITS = {name: field.metadata["limit"] for name, field in {
    **dict.fromkeys(("steps", "batch_size", "workers", "accumulate"), whole(1, least=1)),
    "checkpoint_activations": flag(False),
    **dict.fromkeys(("eval_batches", "checkpoint_every"), whole(None, least=1, or_none=True)),
    **dict.fromkeys(("warmup", "eval_every", "stop_after"), whole(None, least=0, or_none=True)),
    "patience": whole(None, least=1, or_none=True), "keep_best": flag(False),
    "rates": mapping(real(1.0, least=0)),
    **dict.fromkeys(("lr", "head_lr", "clip"), real(None, least=0, or_none=True)),
    **dict.fromkeys(("weight_decay", "lr_floor"), real(0.0, least=0)), "seed": whole(0)}.items()}


def _check_options(options):
    for name, limit in _LIMITS.items():
        if not limit.holds(options[name]):
            raise ValueError(f"train: {name} must be {limit.expected}, got {options[name]!r}")
    if (options["patience"] or options["keep_best"]) and not options["eval_every"]:
        raise ValueError("train: patience and keep_best need evaluations; give eval_every, the "
                         "steps between them")
    callbacks = options["callbacks"]
    if not isinstance(callbacks, (list, tuple)) or not all(map(callable, callbacks)):
        raise ValueError(f"train: callbacks must be a list of functions, got {callbacks!r}")


def _reseed(model, seed, step):
    """Give everything that draws a generator of its own for this step."""
    drawing = [module for _, module in model.named_modules()
               if isinstance(getattr(module, "rng", None), np.random.Generator)]
    for i, module in enumerate(drawing, 1): module.rng = np.random.default_rng([seed, step, i])


def backward(model: Module, task: Any, batch: tuple, workers: int = 1,
             accumulate: int = 1) -> float:
    """Add the gradients of the batch's mean loss and the penalty to the parameters; return the sum.

    The batch is cut into one part per worker, or `accumulate` times as many, of which the workers
    take one each at a time. Each part is weighted by its share of what counts. The first call asks
    the C library to keep freed memory for the next step (`common/heap.py`).
    """
    keep_freed_memory()
    rows = len(batch[0])
    cuts = np.linspace(0, rows, min(workers * accumulate, rows) + 1).astype(int)
    parts = [tuple(a[i:j] for a in batch) for i, j in itertools.pairwise(cuts)]
    parts = [part for part in parts if task.count(part)]     # no mean where every target is ignored
    if not parts: raise ValueError(f"train: nothing counts in a batch of {rows} rows")
    total, losses = sum(map(task.count, parts)), []

    def one(job):
        i, part = job
        loss, share = task.loss(model, part), task.count(part) / total
        for p, g in loss.gradients(share):
            first = sums.setdefault((i // 2, p), g)      # of two parts, the second adds to the
            if first is not g: first += g                # first's array: a + b = b + a
        return share * loss.item()

    def add(p, g):
        if p.grad is None: p.grad = g
        else:              p.grad += g
    for i in range(0, len(parts), workers):
        sums = {}                                        # (pair of parts, parameter) → gradient
        losses += parallel_map(one, enumerate(parts[i:i + workers]), workers)
        for (_, p), g in sorted(sums.items(), key=lambda item: item[0][0]): add(p, g)
    if (penalty := model.penalty()) is not None:
        losses.append(penalty.item())
        for p, g in penalty.gradients(): add(p, g)
    return sum(losses)


def evaluate(model: Module, task: Any, split: str = "test", batch_size: int = 16,
             max_batches: int | None = None, workers: int = 2) -> dict:
    """Metrics of `model` on a split of `task`: means over what it counts (tokens, or examples)."""
    model.eval()
    with no_grad():
        batches = itertools.islice(task.batches(split, batch_size), max_batches)
        measured = lambda batch: (task.count(batch), task.metrics(model, batch))
        results = parallel_map(measured, batches, workers)
    sums, weight = {}, sum(n for n, _ in results)
    if not weight: raise ValueError(f"evaluate: the split {split!r} of {task} is empty")
    for n, metrics in results:
        for name, value in metrics.items(): sums[name] = sums.get(name, 0.0) + n * value
    return task.finish({name: total / weight for name, total in sums.items()}, split)
