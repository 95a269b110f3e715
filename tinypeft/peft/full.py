"""Full fine-tuning trains every parameter of the base. All other methods are measured against it.

It obeys the same protocol: the base keeps its arrays, training works on copies, and `detach` puts
the originals back. `targets` select a part: `FullFineTuning(targets=("bias",))` is BitFit (Ben
Zaken et al., arXiv 2106.10199), `("norm1", "norm2", "final_norm")` is layer-norm tuning. A Llama
has no biases, so BitFit is not possible there, but it has norms.

    θ = θ₀ + Δθ          Δθ has as many numbers as the part of θ₀ that is trained
"""
from dataclasses import dataclass

from ..decoder import Decoder
from ..hyper import Limit, declared
from ..nn import Packed
from .method import Method, MethodError

__all__ = ["FullFineTuning", "LinearProbe"]

NAMES = Limit(lambda x: isinstance(x, (tuple, list)) and all(isinstance(t, str) for t in x),
              "a tuple of names such as ('bias',)", ("bias", 3, (1,)))


@dataclass(frozen=True)
class FullFineTuning(Method):
    """Train all of the base, or only `targets`: parameters ("bias"), modules ("mlp"), or paths."""
    targets: tuple[str, ...] | None = declared(None, NAMES, or_none=True)

    def trained(self, model: Decoder) -> list[str]:
        names = [n for n, _ in model.named_parameters()]
        quantized = [f"{path}.weight" for path, m in model.named_modules()
                     if isinstance(vars(m).get("weight"), Packed)]
        hit = lambda target, name: f".{target}." in f".{name}."
        chosen = lambda name: self.targets is None or any(hit(t, name) for t in self.targets)
        for name in filter(chosen, quantized):
            raise MethodError(f"FullFineTuning: {name} is quantized, and codes cannot be trained; "
                              "attach a LoRA, or name other targets such as 'bias'")
        for t in self.targets or ():
            if any(hit(t, n) for n in names): continue
            parts = sorted({p for n in names for p in n.split(".") if not p.isdecimal()})
            hint = ("this model has no biases" if t == "bias" else
                    f"there are {', '.join(parts)}, or full paths such as {names[-1]!r}")
            raise MethodError(f"targets: {t!r} matches none of the parameters; {hint}")
        return list(filter(chosen, names))


@dataclass(frozen=True)
class LinearProbe(Method):
    """Trains only the classification head; it measures the base's features as they are."""
    learning_rate = 1e-2
