"""Full fine-tuning trains every parameter of the base. All other methods are measured against it.

It obeys the same protocol: the base keeps its arrays, training works on copies, and `detach` puts
the originals back. `targets` select a part: `FullFineTuning(targets=("bias",))` is BitFit (Ben
Zaken et al., arXiv 2106.10199), `("norm1", "norm2", "final_norm")` is layer-norm tuning.

    θ = θ₀ + Δθ          Δθ has as many numbers as the part of θ₀ that is trained
"""
from dataclasses import dataclass
from typing import ClassVar

from ..gpt import GPT
from ..hyper import Limit, declared
from ..nn import Packed
from .method import Method, MethodError

__all__ = ["FullFineTuning", "LinearProbe"]

_names = Limit(lambda x: x is None or isinstance(x, (tuple, list))
               and all(isinstance(t, str) for t in x),
               "a tuple of names such as ('bias',), or None", ("bias", 3, (1,)))


@dataclass(frozen=True)
class FullFineTuning(Method):
    """Train all of the base, or only `targets`: parts of the parameters' paths.

    A target is a parameter ("bias"), a module ("mlp", "norm1"), or a full path.
    """
    targets: tuple[str, ...] | None = declared(None, _names)
    learning_rate: ClassVar[float] = 1e-3

    def trained(self, model: GPT) -> list[str]:
        names = [n for n, _ in model.named_parameters()]
        hit = lambda target, name: f".{target}." in f".{name}."
        for path, m in model.named_modules():
            name = f"{path}.weight"
            if isinstance(vars(m).get("weight"), Packed) and (
                    self.targets is None or any(hit(t, name) for t in self.targets)):
                raise MethodError(f"FullFineTuning: {name} is quantized, and codes cannot be "
                                  "trained; attach a LoRA, or name other targets such as 'bias'")
        if self.targets is None:
            return names
        for t in self.targets:
            if not any(hit(t, n) for n in names):
                raise MethodError(f"targets: {t!r} matches no parameter; there are "
                                  f"{', '.join(names)}")
        return [n for n in names if any(hit(t, n) for t in self.targets)]


@dataclass(frozen=True)
class LinearProbe(Method):
    """Trains only the classification head; it measures the base's features as they are."""
    learning_rate: ClassVar[float] = 1e-2
