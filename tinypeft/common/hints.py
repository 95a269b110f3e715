"""Names for the types that signatures repeat."""
from typing import TypeAlias, Union

import numpy as np

__all__ = ["Array", "Rng", "Seed", "Targets"]

Array: TypeAlias = np.ndarray
Rng: TypeAlias = "np.random.Generator"               # a string, because numpy.random loads late
Seed: TypeAlias = Union[int, "np.random.Generator"]  # noqa: UP007  for the same reason
Targets: TypeAlias = tuple[str, ...] | str           # layers' names, or "all": `models/targets.py`
