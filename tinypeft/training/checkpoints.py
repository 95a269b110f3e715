"""Checkpoints: what a stopped run of `train` needs to go on, in one file; no random state.

A checkpoint is checked whole before anything is assigned. One that is refused changes nothing.
"""
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common.hints import Array
from ..common.wording import brief, shortened
from ..engine.nn import Module
from ..engine.optim import Optimizer, misfit
from ..files import load_arrays, save_arrays
from .history import History

__all__ = ["resume", "save_checkpoint"]


def save_checkpoint(path: str | Path, model: Module, optimizer: Optimizer, settings: dict,
                    history: History, step: int, best: Mapping[str, Array] | None = None) -> None:
    """Write the state after `step` steps to `path`, completely or not at all. best: the model's
    arrays at the best evaluation, if they are kept."""
    groups = {"model": model.state_dict(), "optimizer": optimizer.state_arrays(),
              "best": best or {}}
    arrays = {f"{group}/{name}": array for group, state in groups.items()
              for name, array in state.items()}
    kept = {"loss": history.loss, "evals": history.evals, "seconds": history.seconds}
    save_arrays(path, arrays, {"settings": settings, "step": step, "history": kept})


def resume(path: str | Path, model: Module, optimizer: Optimizer, settings: dict) -> tuple:
    """Load a checkpoint; return (steps done, `History`, arrays of the best evaluation or {}).

    Raises ValueError for a file that is no checkpoint, is damaged, or belongs to other settings or
    another model. The model is then as it was; the optimizer may not be, so give a new one.
    """
    arrays, meta = load_arrays(path)
    groups = {"model": {}, "optimizer": {}, "best": {}}
    before = model.state_dict()                      # no copies: loading replaces the arrays
    try:
        for name, array in arrays.items():
            group, _, rest = name.partition("/")
            if group not in groups:
                raise ValueError(f"it has an array of neither model nor optimizer: {brief(name)}")
            groups[group][rest] = array
        check_settings(meta.get("settings"), settings)
        step = meta.get("step")
        if type(step) is not int or not 0 <= step <= settings["steps"]:
            raise ValueError(f"its step is {brief(step)}, expected an integer from 0 to "
                             f"{settings['steps']}")
        history = checked_history(meta.get("history"), step)
        if reason := misfit(before, groups["model"]):
            raise ValueError(f"the model's {reason}")
        check_best(groups["best"], before, settings["keep_best"] and history.best)
        optimizer.load_state_arrays(groups["optimizer"])
        if optimizer.t != step:
            raise ValueError(f"its step is {step}, but its optimizer took {optimizer.t}")
        try:
            model.load_state_dict(groups["model"])
        except BaseException:
            model.load_state_dict(before)
            raise
    except (ValueError, TypeError, AttributeError, KeyError) as e:
        reason = shortened(str(e))
        raise ValueError(f"the checkpoint {path} cannot be resumed: {reason}; give another file or "
                         "the same settings, or delete the file to start anew") from e
    return step, history, groups["best"]


def check_settings(stored: Any, settings: dict) -> None:
    """Raise ValueError unless the stored settings are those of this run."""
    if not isinstance(stored, dict):
        raise ValueError("it does not state the settings of its run")
    changes = [f"{name} was {shortened(str(stored.get(name)), 80)}, is {value}"
               for name, value in settings.items() if stored.get(name) != value]
    if changes:
        raise ValueError(f"it belongs to another run ({'; '.join(changes)})")


def check_best(best: dict, own: dict, evaluation: list | None) -> None:
    """Raise ValueError unless `best` holds the arrays that belong to the best evaluation."""
    if bool(best) != bool(evaluation):
        when = f"after step {evaluation[0]}" if evaluation else "not known"
        raise ValueError(f"it has {len(best)} arrays of the best evaluation, which is {when}")
    if best and (reason := misfit(own, best)):
        raise ValueError(f"the best model's {reason}")


def checked_history(kept: Any, step: int) -> History:
    """Return the history of a run of `step` steps. Raises ValueError if `kept` cannot be it."""
    try:
        history = History(**kept)
        fits = type(history.loss) is type(history.evals) is list and len(history.loss) == step
        numbers = [*history.loss, history.seconds]
        fits = fits and all(type(x) is float and math.isfinite(x) for x in numbers)
        for done, metrics in history.evals:
            math.isnan(metrics.get("loss", 0))               # TypeError for what is no number
            fits = fits and type(done) is int and 0 < done <= step
    except (TypeError, ValueError, OverflowError, AttributeError):
        fits = False
    if not fits or history.seconds < 0:
        raise ValueError(f"its history is not that of a run of {step} steps")
    return history
