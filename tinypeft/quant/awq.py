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
Weights beyond the range take the outermost levels. s is
folded into what computes the input (`folding.py`), but not into a GELU: there `mlp.down` divides
its input by s and stores it, 32/d_out bits per weight more than b + (16 + b)/g (4.156 at g = 128).
In a gated MLP s is folded into `mlp.up`.

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
    sequential: bool = flag(False)

    def scale(self, ratio: float, mean_abs: Array, W: Array, columns: Array | None = None) -> Array:
        """s for one α, float32 (d,): one for every channel of what computes X. mean_abs (d_in,);
        W (d_out, d_in): the weights of all layers that read X. columns: the `channels` of the
        layers' inputs, if d < d_in; s_X is then the mean over the columns of a channel."""
        shared = lambda a: a if columns is None else np.bincount(columns, a) / np.bincount(columns)
        s = np.float32(shared(mean_abs))**np.float32(ratio)
        if self.duo_scaling:
            x = self.nearest.blocks(np.abs(W))
            w = (x / (x.max(1, keepdims=True) + np.float32(1e-6))).reshape(W.shape).mean(0)
            w = np.float32(shared(w))
            s = s / (w**np.float32(1 - ratio) + np.float32(1e-4))
        s = np.maximum(s, np.float32(1e-4))
        return s / np.float32(math.sqrt(s.max() * s.min()))

    def search(self, W: Array, mean_abs: Array, loss: Callable, columns: Array | None = None
               ) -> tuple[Array, Array]:
        """The s (d_in,) of least loss(s), and all losses (n_ratios,). The rest is as in `scale`."""
        ratios = [i / self.n_ratios for i in range(self.n_ratios)]
        candidates = [self.scale(ratio, mean_abs, W, columns) for ratio in ratios]
        if columns is not None: candidates = [s[columns] for s in candidates]
        losses = np.array(parallel_map(loss, candidates, workers=2))
        return candidates[losses.argmin()], losses

    def rounding(self, W: Array) -> Callable:
        """s ↦ Q(W diag(s)) diag(s)⁻¹."""
        nearest, W = self.nearest, checked(W)

        def rounded(s):
            x = nearest.blocks(W * s)
            return nearest.fit(x).round(x).reshape(W.shape) / s
        return rounded

    def output_loss(self, W: Array, H: Array) -> Callable:
        """L as a function of s, for a layer judged by its own output. The sums are float32: they
        tell two losses apart unless these agree in some six digits."""
        H, rounded = H.astype(np.float32), self.rounding(W)

        def L(s):
            D = rounded(s) - W
            return np.vdot(D @ H, D)
        return L

    def quantize(self, W: Array, H: Array | None = None) -> QTensor:
        """Clip and round W (d_out, d_in), scaled already; H (d_in, d_in) of inputs divided already.
        With `clip=False` this is round to nearest and needs no H. ValueError if groups do not
        divide d_in, or for an H that is missing, zero, or no sum of x xᵀ."""
        W = checked(W)
        if not self.clip: return self.nearest.quantize(W)
        x = self.nearest.blocks(W)                                        # (d_out · G, g)
        (n, d), g = W.shape, x.shape[1]
        H = self.hessian(H, d)
        H = np.array([H[j:j + g, j:j + g] for j in range(0, d, g)])       # (G, g, g)
        low, high = x.min(1), x.max(1)
        top, nearest = np.maximum(-low, high), self.nearest
        at = lambda edge: nearest.grid(np.maximum(low, -edge), np.minimum(high, edge))
        shares = [np.float32(1 - i / self.clip_steps)
                  for i in range(max(1, int(self.clip_steps * self.max_shrink)))]

        def error(share):                                                 # (d_out · G,)
            D = at(share * top).round(x) - x
            D = D.reshape(n, -1, g).transpose(1, 0, 2)                    # (G, d_out, g)
            return np.einsum("gij,gij->ig", D @ H, D).reshape(-1)
        best = np.argmin(parallel_map(error, shares, workers=2), axis=0)  # of equals, the widest
        return nearest.quantize(W, at(np.take(shares, best) * top))

    def apply(self, model: Decoder, layers: dict[str, Linear], batches: list[Array]) -> None:
        """Block by block: find and fold all scales of a block, then clip and round."""
        for layer in layers.values(): self.width(layer.d_in)              # fail before any work
        for path, block, inputs in block_by_block(model, batches, self.sequential):
            targets = {source: names for source, every in readers(block).items()
                       if (names := [name for name in every if f"{path}.{name}" in layers])}
            with recording_inputs(block, [names[0] for names in targets.values()], True) as seen:
                for h in inputs: block(h)
            found = {}
            for source, names in targets.items():
                statistics = seen[names[0]]                               # all see the same input
                s = self.best_scale(block, source, names, inputs, statistics)
                H = statistics.H / np.outer(s, s)
                modules = [block.get(name) for name in (source, *readers(block)[source]) if name]
                folds = source and all(isinstance(m, (*NORMS, Linear)) for m in modules)
                if folds: fold_scale(modules[0], modules[1:], s, channels(block, source))
                found |= dict.fromkeys(names, (H, None if folds else s))
            replace_modules(block, {name: self.rounded_layer(block, name, H, s)
                                    for name, (H, s) in found.items()})

    def best_scale(self, block: Module, source: str | None, names: list[str], inputs: list[Tensor],
                   seen: Statistics) -> Array:
        """s (d_in,) for the layers `names` of a block, which read the output of `source`."""
        linears = [block.get(name) for name in names]
        W, columns = np.concatenate([m.weight.data for m in linears]), channels(block, source)
        if len(every := readers(block)[source]) == 1:
            return self.search(W, seen.mean_abs, self.output_loss(W, seen.H), columns)[0]
        above = every[0].partition(".")[0]                                # "attention" or "mlp"
        module, roundings = block.get(above), [self.rounding(m.weight.data) for m in linears]
        pairs = [(x, module(x).data) for x in inputs_of(block, above, inputs)]

        def L(s):                                                     # judged by all of the module
            twin = copy.copy(module)
            for name, linear, rounded in zip(names, linears, roundings, strict=True):
                other = copy.copy(linear)
                other.weight = Parameter(rounded(s).astype(linear.weight.dtype, copy=False), False)
                replace_modules(twin, {name.removeprefix(f"{above}."): other})
            return sum(np.square(twin(x).data - y).sum() for x, y in pairs)
        return self.search(W, seen.mean_abs, L)[0]

    def rounded_layer(self, block: Module, name: str, H: Array, s: Array | None) -> QuantizedLinear:
        """The layer that replaces `name`. s: the scale, which it keeps, or None if s was folded."""
        clip = self.clip and name not in ("attention.query", "attention.key")
        scheme, linear = dataclasses.replace(self, clip=clip), block.get(name)
        W, b = linear.weight.data, linear.bias
        if s is None: return QuantizedLinear(scheme.quantize(W, H), b)
        return InputScaledLinear(scheme.quantize(W * s, H), b, s.astype(W.dtype, copy=False))


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
        if s.shape != (self.d_in,) or s.dtype.kind != "f" or not (s > 0).all():
            raise ValueError(f"input_scale must be {self.d_in} positive numbers, got {s.dtype} "
                             f"{s.shape}")

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x / self.input_scale)

    def dense_weight(self) -> Array:
        return self.weight.dequantize() / self.input_scale
