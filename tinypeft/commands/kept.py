"""What a training that is stopped leaves behind, as the command line says it."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["kept", "noted"]


@contextlib.contextmanager
def noted(kind: type[BaseException], note: Callable[[], str]) -> Iterator[None]:
    """An error of this kind that leaves the block carries a note, which `cli.main` prints."""
    try:
        yield
    except kind as e:
        e.add_note(note())
        raise


def kept(checkpoint: Path | None, adapter: Path | None = None) -> str:
    """Say what is left after an interruption: an adapter, or else a checkpoint, or nothing."""
    if adapter: return f"the adapter is saved in {adapter}"
    if checkpoint and checkpoint.exists(): return f"the same command goes on from {checkpoint}"
    return "nothing was kept" + (
        "" if checkpoint else ": --checkpoint FILE keeps the state of a training that is stopped")
