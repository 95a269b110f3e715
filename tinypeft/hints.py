"""Names for the types that signatures repeat."""
from typing import TypeAlias

import numpy as np

__all__ = ["Array", "Seed", "Targets"]

Array: TypeAlias = np.ndarray
Seed: TypeAlias = int | np.random.Generator          # what `rng=` takes: numpy.random.default_rng(rng)
Targets: TypeAlias = tuple[str, ...] | str           # names of layers, or "all"
