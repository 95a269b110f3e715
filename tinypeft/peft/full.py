"""Full fine-tuning trains every parameter of the base. All other methods are measured against it.

It obeys the same protocol: the base keeps its arrays, and training works on copies. `targets`
select a part: `FullFineTuning(targets=("bias",))` is BitFit (Ben Zaken et al., arXiv 2106.10199),
`("norm1", "norm2", "final_norm")` is layer-norm tuning. A Llama has no biases, so BitFit is not
possible there, but it has norms.

    θ = θ₀ + Δθ          Δθ has as many numbers as the part of θ₀ that is trained
"""
from dataclasses import dataclass

from ..common.hints import Targets
from ..common.hyper import layer_names
from ..engine.nn import Packed
from ..models.decoder import Decoder
from ..models.targets import chosen
from .method import Method, MethodError

__all__ = ["FullFineTuning", "LinearProbe"]


@dataclass(frozen=True)
class FullFineTuning(Method):
    """Train all of the base, or the parameters of `targets`: ("bias",), ("mlp", "!blocks.0")."""
    targets: Targets | None = layer_names(None, or_none=True)

    def trained(self, model: Decoder) -> list[str]:
        names = [name for name, _ in model.named_parameters()]
        quantized = [f"{path}.weight" for path, layer in model.named_modules()
                     if isinstance(vars(layer).get("weight"), Packed)]
        trained = chosen([*names, *quantized], self.targets or "all", kind="parameters")
        for name in quantized:
            if name in trained:
                raise MethodError(f"FullFineTuning: {name} is quantized, and codes cannot be "
                                  "trained; attach a LoRA, or name other targets such as 'bias'")
        return trained


@dataclass(frozen=True)
class LinearProbe(Method):
    """Train only the classification head (Alain & Bengio, arXiv 1610.01644).

        p = softmax(W h + b)          h (d,): what the frozen base computes, W (C, d)

    Training says little of what h holds, because the features are not standardized: on SmolLM2 a
    head stays far below the solution even after 300 steps. `fit_probe` computes the solution."""
    learning_rate = 1e-2
