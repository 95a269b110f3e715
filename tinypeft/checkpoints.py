"""Checkpoints: what a stopped run of `train` needs to go on, in one file; no random state."""
from pathlib import Path

from .files import load_arrays, save_arrays
from .nn import Module
from .optim import Optimizer

__all__ = ["resume", "save_checkpoint"]


def save_checkpoint(path: str | Path, model: Module, optimizer: Optimizer, settings: dict,
                    history: dict, step: int) -> None:
    """Write the state after `step` steps to `path`, completely or not at all."""
    arrays = {f"model/{k}": v for k, v in model.state_dict().items()}
    arrays |= {f"optimizer/{k}": v for k, v in optimizer.state_arrays().items()}
    save_arrays(path, arrays, {"settings": settings, "step": step, "history": history})


def resume(path: str | Path, model: Module, optimizer: Optimizer, settings: dict) -> tuple:
    """Load a checkpoint; return (steps done, history). ValueError if its settings are others."""
    arrays, meta = load_arrays(path)
    differ = [f"{k} was {meta['settings'].get(k)}, is {v}" for k, v in settings.items()
              if meta["settings"].get(k) != v]
    if differ:
        raise ValueError(f"the checkpoint {path} belongs to another run ({'; '.join(differ)}); "
                         "give another file or the same settings")
    part = lambda own: {k.removeprefix(own): v for k, v in arrays.items() if k.startswith(own)}
    model.load_state_dict(part("model/"))
    optimizer.load_state_arrays(part("optimizer/"))
    return meta["step"], meta["history"]
