"""The formats that an adapter's folder may have, each recognised by its file.

A format's functions are in a module of its own, which is imported when they are called: a method
that is saved in our own format loads nothing of PEFT's.
"""
from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from .method import MethodError

__all__ = ["FORMATS", "Format", "format_called"]


@dataclass(frozen=True)
class Format:
    """A format. file: its name in a folder. module: the name of a module with three functions:

        save(tuned, folder)           write a PeftModel; MethodError for what the format lacks
        load(model, file, strict)     attach to a model what the file holds
        check(tuned)                  raise that MethodError, before any training
    """
    file: str
    module: str

    def find(self, folder: Path) -> Path | None:
        """Return the path of the format's file in a folder, or None; a broken link is one, too."""
        path = folder / self.file
        return path if os.path.lexists(path) else None

    def functions(self) -> ModuleType:
        """Import the module with `save`, `load` and `check`."""
        return importlib.import_module(self.module)


FORMATS = {"tinypeft": Format("adapter.safetensors", "tinypeft.peft.folders"),
           "peft": Format("adapter_config.json", "tinypeft.interop.adapters")}


def format_called(name: str, verb: str) -> Format:
    """Look up a format; MethodError names those that there are."""
    if name not in FORMATS:
        raise MethodError(f"{verb}: unknown format {name!r}; there are {', '.join(FORMATS)}")
    return FORMATS[name]
