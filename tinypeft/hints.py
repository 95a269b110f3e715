"""Names for the types that signatures repeat."""
from typing import TypeAlias, Union

import numpy as np

__all__ = ["Array", "Seed", "Targets"]

Array: TypeAlias = np.ndarray
Seed: TypeAlias = Union[int, "np.random.Generator"]  # noqa: UP007  a string: numpy.random loads late
Targets: TypeAlias = tuple[str, ...] | str           # names of layers, or "all"
