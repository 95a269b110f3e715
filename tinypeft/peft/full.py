"""Full fine-tuning: every parameter of the base is trained. What all the other methods are measured against.

It obeys the same protocol: the base keeps its arrays, training works on copies, and `detach` puts the
originals back. With `targets` it trains a part: `FullFineTuning(targets=("bias",))` is BitFit (Ben Zaken
et al., arXiv 2106.10199), `("norm1", "norm2", "final_norm")` is layer-norm tuning.
"""
from dataclasses import dataclass
from typing import ClassVar

from ..nn import Packed
from .model import Method, MethodError

__all__ = ["FullFineTuning", "LinearProbe"]


@dataclass(frozen=True)
class FullFineTuning(Method):
    """targets: None for everything, or parts of paths: a parameter ("bias"), a module ("mlp", "norm1"), a full path."""
    targets: tuple | None = None
    learning_rate: ClassVar[float] = 1e-3

    def trained(self, model):
        names = [n for n, _ in model.named_parameters()]
        if isinstance(self.targets, str):
            raise MethodError(f"targets: expected a tuple of names such as ('bias',), got {self.targets!r}")
        codes = [f"{path}.weight" for path, m in model.named_modules() if isinstance(vars(m).get("weight"), Packed)]
        for name in codes:
            if self.targets is None or any(f".{t}." in f".{name}." for t in self.targets):
                raise MethodError(f"FullFineTuning: {name} is quantized, and codes cannot be trained; attach a LoRA, or name "
                                  "targets that hold no codes, such as ('bias', 'norm1', 'norm2')")
        if self.targets is None:
            return names
        for t in self.targets:
            if not any(f".{t}." in f".{n}." for n in names):
                raise MethodError(f"targets: {t!r} matches no parameter; there are {', '.join(names)}")
        return [n for n in names if any(f".{t}." in f".{n}." for t in self.targets)]


@dataclass(frozen=True)
class LinearProbe(Method):
    """Nothing of the model is trained, only the classification head: what the base's features are worth as they are."""
    learning_rate: ClassVar[float] = 1e-2
