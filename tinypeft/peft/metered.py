"""The generator for a method that a file names: a file could claim any rank."""
import math
from typing import Any

import numpy as np

from ..common.hints import Array

__all__ = ["Metered"]


class Metered(np.random.Generator):
    """`default_rng(0)` for the numbers that a method starts from. It raises ValueError instead of
    drawing many more than `n_saved`, the numbers in the method's file."""

    def __init__(self, n_saved: int):
        super().__init__(np.random.default_rng(0).bit_generator)
        self.left = 2 * n_saved + (1 << 18)

    def pay(self, size: Any) -> None:
        """Count the numbers of one draw."""
        self.left -= math.prod(size) if isinstance(size, tuple) else size or 1
        if self.left < 0:
            raise ValueError("the method needs many more numbers than the file holds")

    def standard_normal(self, size: Any = None, *args: Any, **options: Any) -> Array:
        self.pay(size)
        return super().standard_normal(size, *args, **options)

    def normal(self, loc: float = 0.0, scale: float = 1.0, size: Any = None) -> Array:
        self.pay(size)
        return super().normal(loc, scale, size)

    def uniform(self, low: float = 0.0, high: float = 1.0, size: Any = None) -> Array:
        self.pay(size)
        return super().uniform(low, high, size)

    def integers(self, low: Any, high: Any = None, size: Any = None, *args: Any,
                 **options: Any) -> Array:
        self.pay(size)
        return super().integers(low, high, size, *args, **options)

    def choice(self, a: Any, size: Any = None, *args: Any, **options: Any) -> Array:
        self.pay(size)
        return super().choice(a, size, *args, **options)
