"""AWQ: scale up the weights that meet large activations, and round to nearest.

Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", MLSys
2024 (arXiv 2306.00978). Multiply one weight w of a group by s > 1 and divide its input by s. The
step Δ of the group barely changes, so the rounding error of ws reaches the output divided by s:
equations (2) and (3). AWQ seeks one scale per input channel between 1 (α = 0) and s_X (α = 1):

    L(s) = ‖Q(W diag(s)) diag(s)⁻¹ X − W X‖²          (4)
    s = s_X^α,  α* = argmin_α L(s_X^α)                (5)

    paper     here        shape
    W, X      W, H        (d_out, d_in), (d_in, d_in): L needs only H = (2/n) X Xᵀ of X, because
                          L = n/2 · tr(D H Dᵀ), D = Q(W s)/s − W
    s_X       mean_abs    (d_in,)  mean |x|
    s, α      s, ratio    (d_in,) float32, and a number of 0, 1/n_ratios, …, 1 − 1/n_ratios
    Q         nearest     round to nearest on groups, asymmetric

Each group's range is then cut; of the fractions 1, 1 − 1/20, …, 0.55 the one that disturbs the
group's output least is kept (in the authors' code, not in the paper; not for query and key).
Weights beyond the range take the outermost levels. s is folded into what computes the input
(`folding.py`), but not into a GELU: there `mlp.down` divides its input by s and stores it, 32/d_out
bits per weight more than b + (16 + b)/g (4.156 at g = 128). In a gated MLP s is folded into
`mlp.up`. `plain.awq` is the search for a layer of its own; read it first.

Where implementations differ:
 *  As in the authors' code, α stops at 0.95; s is at least 1e-4 and is divided by √(max s · min s),
    which affects only rounding. As in its branches for OPT and Llama, layers that read one input
    share the s that is best for what they compute together: query, key and value for attention,
    gate and up for the MLP. Every other layer is judged by its own output. For other families that
    code judges `mlp.up` by the whole MLP or block. torchao judges every layer alone: `search` with
    `output_loss`.
 *  Grouped heads. The authors' code and AutoAWQ do not scale `attention.output` where several of
    its heads read one head of the values. Here these heads share s, whose s_X is the mean over all
    of them.
 *  `duo_scaling=True` is AutoAWQ's s = s_X^α / (w̄^(1−α) + 1e-4), w̄ the mean of |w|/max of its
    group. Then α = 0 is not round to nearest, and the best α may be worse than round to nearest.
 *  The authors choose the clipping on 512 tokens, this file on all, by H. Their step, the group's
    (max − min)/(2ᵇ − 1), misses the largest weights of a group of one sign. Here ranges contain 0.
    They also cut the weights themselves to [−e, e]. Both ends are then half a step beyond the grid,
    so a step that is stored a little too large would leave a level without weights.
 *  Calibration runs through the original blocks, with `sequential=True` through the quantized ones.
"""
import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from ..common.hints import Array
from ..common.hyper import flag, one_of, real, whole
from ..common.threads import parallel_map
from ..engine.nn import Linear, Module, Parameter, replace_modules
from ..engine.tensor import Tensor
from ..files import naming
from ..models.decoder import Decoder
from .calibration import CalibratedWeights, Statistics, block_by_block, inputs_of, recording_inputs
from .folding import NORMS, fold_scale
from .linear import QuantizedLinear
from .qtensor import QTensor
from .readers import channels, readers
from .scheme import checked, weights_per_scale


@dataclasses.dataclass(frozen=True)
class AWQ(CalibratedWeights):
    """group_size: weights of a row that share a scale, None for the whole row. n_ratios: how many α
    are tried. clip: search ranges, in steps of 1/`clip_steps` down to 1 − `max_shrink`."""
    group_size: int | None = weights_per_scale(128)
    n_ratios: int = whole(20, least=1, also=("n_grid",))
    duo_scaling: bool = flag(False)
    clip: bool = flag(True, also=("auto_clip", "apply_clip"))
    clip_steps: int = whole(20, least=1)
    max_shrink: float = real(0.5, least=0, below=1)
    scale_dtype: str = one_of("float32", "float16", default="float16")
    sequential: bool = flag(False)

    def scale(self, ratio: float, mean_abs: Array, W: Array,
              columns: Array | None = None) -> Array:
        """Return the scales s for one α, one per channel of the layer that computes X, float32
        (d,). mean_abs (d_in,); W (d_out, d_in): the weights of all layers that read X. columns: the
        `channels` of the layers' inputs, if d < d_in; s_X is then the mean over the columns of a
        channel."""
        s_X = np.float32(channel_means(mean_abs, columns))
        s = s_X**np.float32(ratio)
        if self.duo_scaling:
            x = self.nearest.blocks(np.abs(W))
            x = x / (x.max(1, keepdims=True) + np.float32(1e-6))
            w = np.float32(channel_means(x.reshape(W.shape).mean(0), columns))
            s = s / (w**np.float32(1 - ratio) + np.float32(1e-4))
        s = np.maximum(s, np.float32(1e-4))
        return s / np.float32(math.sqrt(s.max() * s.min()))

    def search(self, W: Array, mean_abs: Array, loss: Callable, columns: Array | None = None
               ) -> tuple[Array, Array]:
        """Return the s (d_in,) with the smallest loss(s), and the loss of every candidate
        (n_ratios,). The other arguments are those of `scale`."""
        candidates = []
        for i in range(self.n_ratios):
            s = self.scale(i / self.n_ratios, mean_abs, W, columns)
            candidates.append(s if columns is None else s[columns])
        losses = np.array(parallel_map(loss, candidates))
        return candidates[losses.argmin()], losses

    def rounding(self, W: Array) -> Callable:
        """s ↦ Q(W diag(s)) diag(s)⁻¹."""
        W = checked(W)
        nearest = self.nearest

        def rounded(s):
            x = nearest.blocks(W * s)
            return nearest.fit(x).round(x).reshape(W.shape) / s
        return rounded

    def output_loss(self, W: Array, H: Array) -> Callable:
        """Return L as a function of s, for a layer judged by its own output. The sums are float32:
        they tell two losses apart unless these agree in some six digits."""
        H = H.astype(np.float32)
        rounded = self.rounding(W)

        def L(s):
            D = rounded(s) - W
            return np.vdot(D @ H, D)
        return L

    def module_loss(self, block: Module, names: list[str], inputs: list[Tensor]) -> Callable:
        """Return the squared error of a module as a function of s: of the attention or MLP whose
        layers `names` are scaled and rounded together. inputs: of the block."""
        above = names[0].partition(".")[0]               # "attention" or "mlp"
        module = block.get(above)
        pairs = [(x, module(x).data) for x in inputs_of(block, above, inputs)]
        rounded = {name.removeprefix(f"{above}."): self.rounding(block.get(name).weight.data)
                   for name in names}

        def L(s):
            twin = with_weights(module, {name: weight(s) for name, weight in rounded.items()})
            return sum(np.square(twin(x).data - y).sum() for x, y in pairs)
        return L

    def quantize(self, W: Array, H: Array | None = None) -> QTensor:
        """Clip and round W (d_out, d_in), scaled already; H (d_in, d_in) of inputs divided already.
        With `clip=False` this is round to nearest and needs no H. ValueError if groups do not
        divide d_in, or for an H that is missing, zero, or no sum of x xᵀ."""
        W = checked(W)
        nearest = self.nearest
        if not self.clip:
            return nearest.quantize(W)
        x = nearest.blocks(W)                                             # (d_out · G, g)
        d_out, d_in = W.shape
        g = x.shape[1]
        H = self.hessian(H, d_in)
        groups = [slice(j, j + g) for j in range(0, d_in, g)]
        H = np.array([H[group, group] for group in groups])               # (G, g, g)
        low = x.min(1)
        high = x.max(1)
        m = np.maximum(-low, high)

        def grid(share):                                                  # of ranges that are cut
            edge = share * m
            return nearest.grid(np.maximum(low, -edge), np.minimum(high, edge))

        def error(share):                                 # (d_out · G,)
            D = grid(share).round(x) - x
            D = D.reshape(d_out, -1, g).transpose(1, 0, 2)                # (G, d_out, g)
            return np.einsum("gij,gij->ig", D @ H, D).reshape(-1)
        steps = max(1, int(self.clip_steps * self.max_shrink))
        shares = np.float32(1 - np.arange(steps) / self.clip_steps)
        errors = parallel_map(error, shares)
        best = np.argmin(errors, axis=0)                                  # of equals, the widest
        return nearest.quantize(W, grid(shares[best]))

    def apply(self, model: Decoder, layers: dict[str, Linear], batches: list[Array]) -> None:
        """Go block by block: find and fold all scales of a block, then clip and round."""
        for layer in layers.values():
            self.width(layer.d_in)                                        # fail before any work
        for path, block, inputs in block_by_block(model, batches, self.sequential):
            targets = {}
            for source, every in readers(block).items():
                if names := [name for name in every if f"{path}.{name}" in layers]:
                    targets[source] = names
            first = [names[0] for names in targets.values()]              # all see the same input
            with recording_inputs(block, first, hessian=True) as seen:
                for h in inputs:
                    block(h)
            scaled = {}
            for source, names in targets.items():
                statistics = seen[names[0]]
                s = self.best_scale(block, source, names, inputs, statistics)
                H = statistics.H / np.outer(s, s)
                own_scale = None if fold(block, source, s) else s
                scaled |= dict.fromkeys(names, (H, own_scale))
            with naming(path):
                new = {name: self.rounded_layer(block, name, H, s)
                       for name, (H, s) in scaled.items()}
            replace_modules(block, new)

    def best_scale(self, block: Module, source: str | None, names: list[str], inputs: list[Tensor],
                   seen: Statistics) -> Array:
        """Find s (d_in,) for the layers `names` of a block, which read the output of `source`."""
        W = np.concatenate([block.get(name).weight.data for name in names])
        if len(readers(block)[source]) > 1:
            return self.search(W, seen.mean_abs, self.module_loss(block, names, inputs))[0]
        loss = self.output_loss(W, seen.H)
        return self.search(W, seen.mean_abs, loss, channels(block, source))[0]

    def rounded_layer(self, block: Module, name: str, H: Array, s: Array | None) -> QuantizedLinear:
        """Make the layer that replaces `name`. s: the scale, which it keeps, or None if s was
        folded."""
        clip = self.clip and name not in ("attention.query", "attention.key")
        scheme = dataclasses.replace(self, clip=clip)
        linear = block.get(name)
        W = linear.weight.data
        if s is None:
            return QuantizedLinear(scheme.quantize(W, H), linear.bias)
        q = scheme.quantize(W * s, H)
        return InputScaledLinear(q, linear.bias, s.astype(W.dtype, copy=False))


def channel_means(x: Array, columns: Array | None) -> Array:
    """Average x (d_in,) over the columns of each channel → (d,); without columns, return x."""
    if columns is None:
        return x
    return np.bincount(columns, x) / np.bincount(columns)


def with_weights(module: Module, weights: dict[str, Array]) -> Module:
    """Copy `module`, with these weights in its layers; share everything else."""
    twin = copy.copy(module)
    for name, W in weights.items():
        linear = copy.copy(module.get(name))
        W = W.astype(linear.weight.dtype, copy=False)
        linear.weight = Parameter(W, requires_grad=False)
        replace_modules(twin, {name: linear})
    return twin


def fold(block: Module, source: str | None, s: Array) -> bool:
    """Fold s into `source` of a block and the layers that read it. Return False, with nothing
    changed, if one of them cannot take it up."""
    if source is None:
        return False
    computes = block.get(source)
    linears = [block.get(name) for name in readers(block)[source]]
    if not all(isinstance(module, (*NORMS, Linear)) for module in (computes, *linears)):
        return False
    fold_scale(computes, linears, s, channels(block, source))
    return True


class InputScaledLinear(QuantizedLinear):
    """y = (x/s) Ŵᵀ + b, s = `input_scale` (d_in,), which could not be folded away."""
    parts: ClassVar[dict[str, Any]] = QuantizedLinear.parts | {"input_scale": np.ndarray}

    is_affine = True                                     # s is part of `dense_weight`

    def __init__(self, weight: QTensor, bias: Tensor | None, input_scale: Array):
        super().__init__(weight, bias)
        self.input_scale = input_scale

    def check_parts(self) -> None:
        super().check_parts()
        s = self.input_scale
        d_in = self.d_in
        if s.shape != (d_in,) or s.dtype.kind != "f" or not (s > 0).all():
            raise ValueError(f"input_scale must be {d_in} positive numbers, got {s.dtype} "
                             f"{s.shape}")

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x / self.input_scale)

    def dense_weight(self) -> Array:
        return self.weight.dequantize() / self.input_scale
