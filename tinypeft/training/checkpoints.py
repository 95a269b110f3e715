"""Checkpoints: what a stopped run of `train` needs to go on, in one file; no random state.

A checkpoint is checked whole before anything is assigned. One that is refused changes nothing.
"""
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common.hints import Array
from ..engine.nn import Module
from ..engine.optim import Optimizer, misfit
from ..files import load_arrays, save_arrays
from .history import History

__all__ = ["resume", "save_checkpoint"]

KEPT = "loss", "evals", "seconds"                    # of a history


def save_checkpoint(path: str | Path, model: Module, optimizer: Optimizer, settings: dict,
                    history: History, step: int, best: Mapping[str, Array] | None = None) -> None:
    """Write the state after `step` steps to `path`, completely or not at all. best: the model's
    arrays at the best evaluation, if they are kept."""
    arrays = {f"model/{k}": v for k, v in model.state_dict().items()}
    arrays |= {f"optimizer/{k}": v for k, v in optimizer.state_arrays().items()}
    arrays |= {f"best/{k}": v for k, v in (best or {}).items()}
    kept = {name: getattr(history, name) for name in KEPT}
    save_arrays(path, arrays, {"settings": settings, "step": step, "history": kept})


def resume(path: str | Path, model: Module, optimizer: Optimizer, settings: dict) -> tuple:
    """Load a checkpoint; return (steps done, `History`, arrays of the best evaluation or {}).

    Raises ValueError for a file that is no checkpoint, is damaged, or belongs to other settings or
    another model. The model is then as it was; the optimizer may not be, so give a new one.
    """
    arrays, meta = load_arrays(path)
    part = lambda own: {k.removeprefix(own): v for k, v in arrays.items() if k.startswith(own)}
    before, loaded = model.state_dict(), part("model/")  # not copies: loading replaces the arrays
    try:
        if more := [k for k in arrays if not k.startswith(("model/", "optimizer/", "best/"))]:
            raise ValueError(f"it has arrays of neither model nor optimizer: {more[:8]}")
        _check_settings(meta.get("settings"), settings)
        step = _checked_step(meta.get("step"), settings["steps"])
        history = _checked_history(meta.get("history"), step)
        if wrong := misfit(before, loaded): raise ValueError(f"the model's {wrong}")
        best = _checked_best(part("best/"), before, settings.get("keep_best") and history.best)
        optimizer.load_state_arrays(part("optimizer/"))
        if optimizer.t != step:
            raise ValueError(f"its step is {step}, but its optimizer took {optimizer.t}")
        try: model.load_state_dict(loaded)
        except BaseException:
            model.load_state_dict(before)
            raise
    except (ValueError, TypeError, AttributeError) as e:
        raise ValueError(f"the checkpoint {path} cannot be resumed: {e}; give another file or the "
                         "same settings, or delete the file to start anew") from e
    return step, history, best


def _check_settings(stored: Any, settings: dict) -> None:
    if not isinstance(stored, dict): raise ValueError("it does not state the settings of its run")
    differ = [f"{k} was {stored.get(k)}, is {v}" for k, v in settings.items() if stored.get(k) != v]
    if differ: raise ValueError(f"it belongs to another run ({'; '.join(differ)})")


def _checked_step(step: Any, steps: int) -> int:
    if type(step) is not int or not 0 <= step <= steps:
        raise ValueError(f"its step is {step!r}, expected an integer from 0 to {steps}")
    return step


def _checked_best(best: dict, own: dict, evaluation: list | None) -> dict:
    """`best`, if it holds the arrays that belong to the best evaluation, where there is one."""
    if not evaluation and not best: return best
    if not (evaluation and best):
        when = f"after step {evaluation[0]}" if evaluation else "not known"
        raise ValueError(f"it has {len(best)} arrays of the best evaluation, which is {when}")
    if wrong := misfit(own, best): raise ValueError(f"the best model's {wrong}")
    return best


def _checked_history(history: Any, step: int) -> History:
    """`history`, if it can be that of a run of `step` steps."""
    number = lambda x: type(x) in (int, float) and abs(x) <= sys.float_info.max  # 10**400 is none
    each = lambda items, holds: isinstance(items, list) and all(map(holds, items))
    loss = lambda x: number(x) or type(x) is float                               # NaN and inf, too
    evaluation = lambda e: (isinstance(e, list) and len(e) == 2 and isinstance(e[1], dict)
                            and type(e[0]) is int and 0 < e[0] <= step
                            and loss(e[1].get("loss", 0)))
    expected = {
        "loss": (f"{step} numbers", lambda x: each(x, number) and len(x) == step),
        "evals": ("a list of [step, metrics]", lambda x: each(x, evaluation)),
        "seconds": ("a number ≥ 0", lambda x: number(x) and x >= 0)}
    if not isinstance(history, dict) or history.keys() != set(KEPT):
        raise ValueError(f"its history is {_short(history)}, expected {', '.join(KEPT)}")
    for name, (words, holds) in expected.items():
        if not holds(history[name]):
            raise ValueError(f"{name} in its history is {_short(history[name])}, expected {words}")
    return History(**history)


def _short(value): return text if len(text := repr(value)) <= 60 else text[:59] + "…"
