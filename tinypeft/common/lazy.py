"""A package whose names are imported when they are first used, so that its own import is quick.

The package's `__init__.py` lists its names as imports under `if TYPE_CHECKING:`. Type checkers and
editors follow those imports, and Python does not run them. `Package` reads them as text: it runs
the one that gives a name when the name is first used.
"""
import ast
import sys
from functools import cached_property
from importlib import import_module
from types import ModuleType
from typing import Any

__all__ = ["Package", "lazily"]


def lazily(name: str) -> None:
    """Make a `Package` of the module `name`, whose `__init__.py` calls this."""
    sys.modules[name].__class__ = Package


class Package(ModuleType):
    """A package that imports its public names and its modules when they are first used."""

    @cached_property
    def _homes(self) -> dict[str, str | None]:
        """Public name → the module that it is imported from; None if it is a module itself."""
        tree = ast.parse(self.__loader__.get_source(self.__name__))
        imports = next(node.body for node in tree.body if isinstance(node, ast.If))
        here = self.__name__.split(".")
        homes = {}
        for node in imports:
            package = here[:len(here) + 1 - node.level]
            home = ".".join([*package, node.module]) if node.module else None
            homes |= {alias.name: home for alias in node.names}
        return homes

    def __getattr__(self, name: str) -> Any:
        if name == "__all__":                                    # what `import *` gives
            return list(self._homes)
        unknown = AttributeError(f"module {self.__name__!r} has no attribute {name!r}",
                                 name=name, obj=self)
        if name.startswith("_"):
            raise unknown
        home = self._homes.get(name)
        if home:
            value = getattr(__import__(home, fromlist=[name]), name)
            return vars(self).setdefault(name, value)            # the next use finds it there
        try:
            return import_module(f".{name}", self.__name__)
        except ModuleNotFoundError as e:
            if e.name != f"{self.__name__}.{name}":              # a module that it needs
                raise
            raise unknown from None

    def __setattr__(self, name: str, value: Any) -> None:
        # Python puts each module that it imports into its package. Where a name is listed as a
        # function of a module that is called the same, the function has the name: `engine.graph`.
        if isinstance(value, ModuleType) and self._homes.get(name):
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._homes})
