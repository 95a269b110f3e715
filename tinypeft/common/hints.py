"""Names for the types that signatures repeat."""
from collections.abc import Iterable
from typing import TypeAlias, Union

import numpy as np

__all__ = ["Array", "Calibration", "Rng", "Seed", "Targets"]

Array: TypeAlias = np.ndarray
Calibration: TypeAlias = np.ndarray | Iterable[np.ndarray] | None    # tokens (B, T), or several
Rng: TypeAlias = "np.random.Generator"               # a string, because numpy.random loads late
Seed: TypeAlias = Union[int, "np.random.Generator"]  # noqa: UP007  for the same reason
Targets: TypeAlias = tuple[str, ...] | str           # layers' names, or "all": `models/targets.py`
