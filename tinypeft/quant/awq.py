"""AWQ: scale up the weights that large activations meet, and round to nearest.

Lin, Tang, Tang, Yang, Dang, Gan, Han, "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration",
MLSys 2024 (arXiv 2306.00978). Of a group's weights one, w, is multiplied by s > 1 and its input divided by it. The step
Δ hardly changes, so neither does the rounding error of ws, and what of it arrives at the output is divided by s: eqs.
(2)–(3). A scale per input channel is sought along a curve, from round to nearest (α = 0) towards s_X itself:

    L(s) = ‖Q(W diag(s)) diag(s)⁻¹ X − W X‖²          (4)            s = s_X^α,  α* = argmin_α L(s_X^α)          (5)

    paper     here        shape
    W, X      W, H        (d_out, d_in), (d_in, d_in): of X no more than H = (2/n) X Xᵀ is needed, since
                          L = n/2 · tr(D H Dᵀ), D = Q(W s)/s − W
    s_X       mean_abs    (d_in,)  mean |x|
    s, α      s, ratio    (d_in,) float32, and a number of 0, 1/n_ratios, …, 1 − 1/n_ratios
    Q         nearest     round to nearest on groups, asymmetric

Then the range of every group is clipped to that of the fractions 1, 1 − 1/20, …, 0.55 which moves what the group adds
to the outputs the least (in the authors' code, not in the paper; not for query and key). s goes into what computes the
input (`folding.py`). For `mlp.down`, which reads a GELU, it cannot: the layer divides its input itself, and stores s,
32/d_out bits per weight. Bits per weight without that: b + (16 + b)/g, 4.156 at g = 128.

Where implementations differ, and what is done here:
 *  The authors' code: α stops at 0.95; s is made at least 1e-4 and divided by √(max s · min s), on which only rounding
    depends; query, key and value share s, chosen for the output of all of attention, while the other layers are judged
    by their own. So here. torchao's observer judges every layer alone: `search` with `output_loss`.
 *  `duo_scaling=True`, AutoAWQ's: s = s_X^α / (w̄^(1−α) + 1e-4), w̄ the mean of |w|/max of its group. Then α = 0 is no
    longer round to nearest, and nothing says that the best is better than it.
 *  The authors clip by 512 tokens; here it is by H, so by all of them. The authors' step is (max − min)/(2ᵇ − 1) of the
    group, which for a group of one sign does not reach its largest weights; here a range contains 0.
 *  All calibration runs through the original blocks. `sequential=True` is GPTQ's way, through the quantized ones.
"""
import dataclasses
import math

import numpy as np

from ..nn import LayerNorm, Linear, replace_modules
from .calibration import checked_hessian, observed, walk
from .folding import READS, fold
from .linear import QuantizedLinear
from .qtensor import QTensor
from .scheme import Scheme, checked
from .uniform import Uniform, group_width


@dataclasses.dataclass(frozen=True)
class AWQ(Scheme):
    """bits 1 … 8 (symmetric: 2 … 8). group_size: weights of a row that share a scale, None for the whole row. n_ratios:
    values of α. clip: search ranges, in steps of 1/`clip_steps` down to 1 − `max_shrink`."""
    bits: int = 4
    group_size: int | None = 128
    symmetric: bool = False
    n_ratios: int = 20
    duo_scaling: bool = False
    clip: bool = True
    clip_steps: int = 20
    max_shrink: float = 0.5
    scale_dtype: str = "float16"
    sequential: bool = False
    calibrated = True

    def __post_init__(self):
        if self.group_size is not None and not self.group_size >= 1:
            raise ValueError(f"group_size must be at least 1, or None for whole rows, got {self.group_size!r}")
        if not (self.n_ratios >= 1 and self.clip_steps >= 1 and 0 <= self.max_shrink < 1):
            raise ValueError("need n_ratios ≥ 1, clip_steps ≥ 1 and 0 ≤ max_shrink < 1, got "
                             f"{self.n_ratios!r}, {self.clip_steps!r}, {self.max_shrink!r}")
        assert self.nearest                                               # ValueError for bits or dtypes it cannot have

    @property
    def nearest(self) -> Uniform:
        """Q: round to nearest on groups."""
        granularity = "group" if self.group_size else "channel"
        return Uniform(self.bits, self.symmetric, granularity, self.group_size, scale_dtype=self.scale_dtype)

    def scale(self, ratio: float, mean_abs: np.ndarray, W: np.ndarray) -> np.ndarray:
        """s for one α, float32 (d_in,)."""
        s = np.float32(mean_abs)**np.float32(ratio)
        if self.duo_scaling:
            x = self.nearest.blocks(np.abs(W))
            w = (x / (x.max(1, keepdims=True) + np.float32(1e-6))).reshape(W.shape).mean(0)
            s = s / (w**np.float32(1 - ratio) + np.float32(1e-4))
        s = np.maximum(s, np.float32(1e-4))
        return s / np.float32(math.sqrt(s.max() * s.min()))

    def search(self, W: np.ndarray, mean_abs: np.ndarray, loss) -> tuple[np.ndarray, np.ndarray]:
        """(the s of least loss(s), the losses of all ratios (n_ratios,)). W (d_out, d_in): all that read the input."""
        candidates = [self.scale(i / self.n_ratios, mean_abs, W) for i in range(self.n_ratios)]
        losses = np.array([loss(s) for s in candidates])
        return candidates[losses.argmin()], losses

    def rounded(self, W: np.ndarray, s: np.ndarray) -> np.ndarray:
        """Q(W diag(s)) diag(s)⁻¹."""
        return self.nearest.quantize(W * s).dequantize() / s

    def output_loss(self, W: np.ndarray, H: np.ndarray):
        """L as a function of s, for a layer judged by its own output."""
        def L(s):
            D = self.rounded(W, s) - W
            return np.vdot(D @ H, D)
        return L

    def quantize(self, W: np.ndarray, H: np.ndarray | None = None) -> QTensor:
        """W (d_out, d_in), scaled already, and H (d_in, d_in) of its inputs, divided already → QTensor.

        With `clip=False` this is round to nearest, and needs no H: all of AWQ is in s. ValueError if a group does not
        divide d_in, or for an H that is missing, zero, or no sum of x xᵀ.
        """
        W = checked(W)
        if not self.clip:
            return self.nearest.quantize(W)
        x = self.nearest.blocks(W)                                        # (d_out · G, g), G groups in a row
        (n, d), g = W.shape, x.shape[1]
        H = checked_hessian(H, d, "AWQ")
        H = np.array([H[j:j + g, j:j + g] for j in range(0, d, g)])       # (G, g, g)
        top = np.abs(x).max(1, keepdims=True)
        best, least = top, np.full((n, d // g), np.inf)
        for i in range(max(1, int(self.clip_steps * self.max_shrink))):
            edge = top * np.float32(1 - i / self.clip_steps)
            inside = np.clip(x, -edge, edge)
            D = (self.nearest.fit(inside).round(inside) - x).reshape(n, -1, g).transpose(1, 0, 2)       # (G, d_out, g)
            error = ((D @ H) * D).sum(2).T                                # (d_out, G)
            best = np.where((error < least).reshape(-1, 1), edge, best)
            least = np.minimum(error, least)
        return self.nearest.quantize(np.clip(x, -best, best).reshape(W.shape))

    def apply(self, model, layers, batches):
        """Block after block: all its scales first, then folding, then clipping and rounding."""
        for layer in layers.values():
            group_width(layer.d_in, self.group_size or layer.d_in)        # fail before any work is done
        for prefix, block, inputs in walk(model, batches, self.sequential):
            groups = [(before, readers, chosen) for before, readers in READS
                      if (chosen := [name for name in readers if f"{prefix}.{name}" in layers])]
            with observed(block, [readers[0] for _, readers, _ in groups], hessian=True) as seen:
                for h in inputs: block(h)
            scales = [self.block_scale(block, readers, chosen, inputs, seen[readers[0]])
                      for _, readers, chosen in groups]
            folded = [fold_if_possible(block, before, readers, s)
                      for (before, readers, _), s in zip(groups, scales, strict=True)]
            new = {}
            for (_, readers, chosen), s, gone in zip(groups, scales, folded, strict=True):
                H = seen[readers[0]].H / np.outer(s, s)
                new |= {name: self.rounded_layer(block.get(name), H, None if gone else s, name) for name in chosen}
            replace_modules(block, new)

    def block_scale(self, block, readers, chosen, inputs, statistics):
        """s for the layers of a block that read one input: of `readers`, those `chosen` to be quantized."""
        linears = [block.get(name) for name in chosen]
        W = np.concatenate([linear.weight.data for linear in linears])
        if len(readers) == 1:
            return self.search(W, statistics.mean_abs, self.output_loss(W, statistics.H))[0]
        xs = [block.norm1(h) for h in inputs]
        outputs = [block.attention(x).data for x in xs]

        def L(s):                                                         # judged by the output of all of attention
            kept = [linear.weight.data for linear in linears]
            try:
                for linear in linears: linear.weight.data = self.rounded(linear.weight.data, s)
                return sum(np.square(block.attention(x).data - y).sum() for x, y in zip(xs, outputs, strict=True))
            finally:
                for linear, data in zip(linears, kept, strict=True): linear.weight.data = data
        return self.search(W, statistics.mean_abs, L)[0]

    def rounded_layer(self, linear, H, s, name):
        """The layer that stands for `linear`. s: a scale that could not be folded, which it then keeps, or None."""
        scheme = dataclasses.replace(self, clip=False) if name in ("attention.query", "attention.key") else self
        if s is None:
            return QuantizedLinear(scheme.quantize(linear.weight.data, H), linear.bias)
        return InputScaledLinear(scheme.quantize(linear.weight.data * s, H), linear.bias, s)


def fold_if_possible(block, before, readers, s):
    """Fold s into `before`, unless nothing linear stands there or some layer is quantized already; return whether."""
    modules = [block.get(name) for name in (before, *readers) if name]
    if before is None or not all(isinstance(module, (LayerNorm, Linear)) for module in modules):
        return False
    fold(modules[0], modules[1:], s)
    return True


class InputScaledLinear(QuantizedLinear):
    """y = (x/s) Ŵᵀ + b, s `input_scale` (d_in,): AWQ where s could not be folded into what computes x."""

    def __init__(self, weight, bias, input_scale):
        super().__init__(weight, bias)
        self.input_scale = input_scale

    def forward(self, x):
        return super().forward(x / self.input_scale)

    def dense_weight(self):
        return self.weight.dequantize() / self.input_scale
