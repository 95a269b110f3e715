"""The formats that an adapter's folder may have, each recognised by its file.

A format's functions are in a module of its own, which is imported when they are called: a method
that is saved in our own format loads nothing of PEFT's.
"""
from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ..files import only_file

__all__ = ["FORMATS", "Format"]


@dataclass(frozen=True)
class Format:
    """A format. file: its name in a folder. module: the name of a module with three functions:

        save(tuned, folder)           write a PeftModel; MethodError for what the format lacks
        load(model, file, strict)     attach to a model what the file holds
        check(tuned)                  raise that MethodError, before any training

    older: names of the file in folders that earlier versions wrote.
    """
    file: str
    module: str
    older: tuple[str, ...] = ()

    def find(self, folder: Path) -> Path | None:
        """The format's file in a folder, or None. ValueError for two of them."""
        return only_file(folder, self.file, *self.older)

    def functions(self) -> ModuleType:
        """The module with `save`, `load` and `check`."""
        return importlib.import_module(self.module)


FORMATS = {"tinypeft": Format("adapter.safetensors", "tinypeft.peft.folders", ("adapter.npz",)),
           "peft": Format("adapter_config.json", "tinypeft.interop.adapters")}
