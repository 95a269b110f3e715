"""The quantized types of GGUF, llama.cpp's files, as a scheme; and its mixtures of types by layer.

    x̂ = d (q − z) + m                   blocks of 32: `gguf_blocks.py`
    x̂ = d sc (q − z) − e mn             superblocks of 256: `k_quants.py`

These are *types*: each says how a block of weights is stored. A *mixture* such as Q4_K_M gives each
layer a type. More bits go to the layers in which an error costs most, and to the ends of the model:

    mixture   attention.value, mlp.down    query, key and value in one tensor    other layers
    Q4_K_S    Q5_K in the first layers*    Q4_K                                  Q4_K
    Q4_K_M    Q6_K in half of the layers†  Q5_K                                  Q4_K
    Q5_K_S    Q5_K                         Q5_K                                  Q5_K
    Q5_K_M    Q6_K in half of the layers†  Q6_K                                  Q5_K

    * value: of the first 4 blocks; down: of the first eighth of the blocks
    † the first eighth, the last eighth, and every third block between them

A K type needs rows of whole superblocks. Where 256 does not divide d_in, llama.cpp takes a plain
type that is a little larger: Q5_0 for Q4_K, Q5_1 for Q5_K, Q8_0 for Q6_K. Source: llama.cpp's
llama-quant.cpp. It stores embeddings and the output head as codes, too; here they stay float32.

*Importance* is the mean square h of each input of a layer, over tokens of calibration. An error of
a weight costs h times its square. llama.cpp calls it the importance matrix, imatrix.
"""
from dataclasses import dataclass

from ..common.hints import Array
from ..common.hyper import flag, one_of
from ..engine.nn import Linear, replace_modules
from ..models.decoder import Decoder
from ..models.gpt import GPT
from .calibration import capture
from .gguf_blocks import LAYOUTS, quantize_blocks
from .k_quants import BITS, SUPERBLOCK, k_quantize
from .linear import QuantizedLinear
from .qtensor import QTensor
from .scheme import Scheme, checked

MIXTURES = {"Q4_K_S": ("Q4_K", "Q5_K"),                  # most layers; the better one
            "Q4_K_M": ("Q4_K", "Q6_K"),
            "Q5_K_S": ("Q5_K", "Q5_K"),
            "Q5_K_M": ("Q5_K", "Q6_K")}
FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


@dataclass(frozen=True)
class GGUF(Scheme):
    """A type, such as "Q4_0" or "Q6_K", or a mixture, such as "Q4_K_M", of GGUF. importance: choose
    scales by the inputs of calibration. `quantize` raises ValueError for a mixture, if the rows are
    not whole blocks (of 32, of 256 in a K type), or if a scale overflows float16."""
    name: str = one_of(*LAYOUTS, *BITS, *MIXTURES, also=("qtype", "quant_type"))
    importance: bool = flag(False, also=("imatrix",))
    shown = ("name",)

    @property
    def calibrated(self) -> bool:
        return self.importance

    def quantize(self, W: Array, importance: Array | None = None) -> QTensor:
        """Round W (…, d_in). importance: h (d_in,), each input's mean square."""
        W = checked(W)
        if self.name in MIXTURES:
            kinds = " and ".join(dict.fromkeys(MIXTURES[self.name]))
            raise ValueError(f"GGUF({self.name!r}) is a mixture of {kinds} by layer; "
                             "tinypeft.quantize(model, …) rounds a model by it, one array needs a "
                             "type")
        if self.importance and importance is None:
            raise ValueError("GGUF(importance=True): expected importance=, the mean square of each "
                             "input, (d_in,); tinypeft.quantize takes it from calibration=")
        return quantize_as(self.name, W, importance)

    def apply(self, model: Decoder, layers: dict[str, Linear], batches: list[Array]) -> None:
        seen = capture(model, batches, list(layers)) if self.importance else {}
        rounded = {}
        for path, linear in layers.items():
            importance = seen[path].mean_square if self.importance else None
            if importance is not None and not importance.any():
                raise ValueError(f"{path}: its inputs are 0 on all tokens of calibration, so none "
                                 "of them is important; give other tokens")
            kind = self.kind(path, linear, model)
            q = quantize_as(kind, checked(linear.weight.data), importance)
            rounded[path] = QuantizedLinear(q, linear.bias)
        replace_modules(model, rounded)

    def kind(self, path: str, linear: Linear, model: Decoder) -> str:
        """Return the type of one layer: `name`, or what the mixture says."""
        if self.name not in MIXTURES:
            return self.name
        usual, better = MIXTURES[self.name]
        kind = better if is_better(self.name, path, model) else usual
        if isinstance(model, GPT) and path.split(".")[2] == "attention":
            kind = in_one_tensor(self.name, path, usual)
        return kind if linear.d_in % SUPERBLOCK == 0 else FALLBACKS[kind]


def is_better(mixture: str, path: str, model: Decoder) -> bool:
    """Tell whether the mixture gives the layer its better type."""
    _, block, *role = path.split(".")
    i, n = int(block), model.config.n_layers
    if role not in (["attention", "value"], ["mlp", "down"]):
        return False
    if mixture.endswith("_S"):
        return i < (4 if role == ["attention", "value"] else n // 8)
    eighth = n // 8
    return i < eighth or i >= 7 * n // 8 or (i - eighth) % 3 == 2


def in_one_tensor(mixture: str, path: str, usual: str) -> str:
    """Return the type of a layer of a GPT's attention: query, key and value are one tensor."""
    if path.endswith(".output") or mixture.endswith("_S"):
        return usual
    return {"Q4_K_M": "Q5_K", "Q5_K_M": "Q6_K"}[mixture]


def quantize_as(kind: str, W: Array, importance: Array | None = None) -> QTensor:
    """Round W, float32 (…, d_in), to a type."""
    if importance is not None:
        importance = checked(importance, "importance")
        if importance.shape != W.shape[-1:] or (importance < 0).any():
            raise ValueError(f"importance: expected {W.shape[-1]} numbers ≥ 0, one for each input, "
                             f"got shape {importance.shape} and a least of {importance.min():g}")
    if kind in BITS:
        if W.shape[-1] % SUPERBLOCK:
            raise ValueError(f"{kind} needs rows of whole superblocks of {SUPERBLOCK} weights, got "
                             f"{W.shape[-1]}; llama.cpp takes {FALLBACKS[kind]} there, and so does "
                             "a mixture such as 'Q4_K_M'")
        return k_quantize(W, kind, importance)
    return quantize_blocks(W, kind, importance)
