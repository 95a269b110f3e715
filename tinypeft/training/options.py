"""The options of `train`: one value, whose fields declare their limits as a method's do."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from ..common.hyper import Checked, Limit, declared, flag, mapping, one_of, real, whole
from ..engine.optim import AdamW, Optimizer, schedule
from .history import Step

__all__ = ["TrainOptions"]


def _are_functions(value):
    return isinstance(value, (list, tuple)) and all(map(callable, value))


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Checked):
    """What `train` can be told. Raises ValueError for a value out of range, TypeError for a name
    that is no option.

    Learning rates
        lr: peak rate (default: each method's own, or 1e-3, times √(128/d) for a model that is d
            wide; see `rates.py`, and `find_rate`, which measures).
        head_lr: that of a classification head (default: `lr` if given, else 1e-2).
        rates: factors on the rate by names of parameters (`models/targets.py`): "B",
            "blocks.0-2.mlp". Factors of several names multiply. {"B": 16} is LoRA+ (Hayou et al.,
            arXiv 2402.12354).
        schedule_kind, warmup (steps; default 5 %), lr_floor: see `optim.schedule`.
    The step
        batch_size: rows per step. seed: with the step's number it draws everything. So a run that
            goes on from a checkpoint needs no state of a Generator, as `rng` would be.
        accumulate: each worker takes its share of a batch in this many parts, one after another,
            so that a step takes the memory of a part. It changes only rounding.
        workers: threads that share a batch; one if dropout draws. Default: one per core, or a
            single one if the rows are few or short (`training/backward.py`). Their number changes
            only rounding.
        checkpoint_activations: compute each block again in backward (`engine/recompute.py`): less
            memory, more time, and the same numbers.
        clip: bound on the global norm of the gradients, None for none.
        optimizer: a class of `tp.optim`, such as Muon, or one with options,
            functools.partial(tp.optim.GaLore, rank=4). weight_decay: for matrices, but not for a
            head. betas: of AdamW and its kin; an optimizer without any is called without these.
    The run
        eval_every: steps between evaluations on at most `eval_batches` batches of "validation".
        patience: stop after this many evaluations without a lower validation loss.
        keep_best: end with the parameters of the best evaluation, `history.best`, not with the
            last ones. A method such as AdaLoRA may then not have finished: its ranks are those of
            that step.
        callbacks: each is called with a `Step` after every step; training stops if one returns
            True. A checkpoint does not keep what they remember.
        checkpoint: a file to go on from, if it exists, and to rewrite, atomically, every
            `checkpoint_every` steps (default: 500, or a tenth of the run if that is less), at the
            end, and when the run is stopped. One run at a time may use it.
        stop_after: stop after this many steps in all.
        progress: show one line of progress (default: on a terminal and in a notebook).
    """
    steps: int = whole(MISSING, least=1)
    batch_size: int = whole(8, least=1)
    seed: int = whole(0)

    lr: float | None = real(None, least=0, or_none=True)
    head_lr: float | None = real(None, least=0, or_none=True)
    rates: dict[str, float] | None = mapping(real(1.0, least=0))
    schedule_kind: str = one_of("linear", "cosine", "constant", "exponential")
    warmup: int | None = whole(None, or_none=True)
    lr_floor: float = real(0.0, least=0)

    accumulate: int = whole(1, least=1)
    workers: int | None = whole(None, least=1, or_none=True)
    checkpoint_activations: bool = flag(False)
    clip: float | None = real(1.0, above=0, or_none=True)
    optimizer: Callable[..., Optimizer] = declared(
        AdamW, Limit(callable, "a class of tp.optim, such as tp.optim.Muon"))
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = real(0.0, least=0)

    eval_every: int | None = whole(None, or_none=True)
    eval_batches: int | None = whole(None, least=1, or_none=True)
    patience: int | None = whole(None, least=1, or_none=True)
    keep_best: bool = flag(False)
    callbacks: Sequence[Callable[[Step], object]] = declared(
        (), Limit(_are_functions, "a list of functions"))
    checkpoint: str | Path | None = None
    checkpoint_every: int | None = whole(None, least=1, or_none=True)
    stop_after: int | None = whole(None, or_none=True)
    progress: bool | None = flag(None, or_none=True)

    def check(self) -> None:
        if (self.patience or self.keep_best) and not self.eval_every:
            raise ValueError("TrainOptions: patience and keep_best need evaluations; give "
                             "eval_every, the steps between them")
        taken = {"lr", "betas", "weight_decay"} & getattr(self.optimizer, "keywords", {}).keys()
        if taken:
            raise ValueError(f"TrainOptions: {', '.join(sorted(taken))} of the optimizer would be "
                             "replaced; give it to train")

    @property
    def warmup_steps(self) -> int:
        """Steps in which the rate rises: `warmup`, or a twentieth of the run."""
        return max(1, self.steps // 20) if self.warmup is None else self.warmup

    def rate_factor(self, step: int) -> float:
        """Return the factor on every rate at `step` = 0 … steps − 1."""
        return schedule(self.schedule_kind, step, self.steps, self.warmup_steps, self.lr_floor)

    def settings(self, rate: float, method: Any, off: Sequence[str],
                 optimizer: str | None) -> dict[str, Any]:
        """Return what decides the numbers of a run: a checkpoint goes on with these alone.

        rate: the peak rate that stands for `lr`. method: what is on the model, or None. off: names
        of the parts that are switched off. optimizer: as it is `described`, None for AdamW.
        """
        names = ("steps", "batch_size", "seed", "head_lr", "rates", "schedule_kind", "lr_floor",
                 "accumulate", "workers", "clip", "weight_decay", "keep_best")
        return {name: getattr(self, name) for name in names} | {
            "lr": rate, "warmup": self.warmup_steps, "betas": list(self.betas),
            "method": method and repr(method), "off": list(off), "optimizer": optimizer}
