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

A K type needs rows of whole superblocks. Where 256 does not divide d_in, llama.cpp takes a larger
plain type: Q5_0 for Q4_K, Q5_1 for Q5_K, Q8_0 for Q6_K. Source: llama.cpp's llama-quant.cpp. It
stores the embedding as codes, too, and the output head as Q6_K, or as Q8_0 in a model of Q8_0. An
embedding that is also the head has the head's type. Here both stay float32 unless `embeddings` is
true.

*Importance* is the mean square h of each input of a layer, over tokens of calibration. An error of
a weight costs h times its square. llama.cpp calls it the importance matrix, imatrix, and writes it
to files, which `interop/importance.py` reads.
"""
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ..common.hints import Array
from ..common.hyper import Limit, declared, flag, one_of
from ..engine.nn import Embedding, Linear, replace_modules
from ..models.decoder import Decoder
from ..models.gpt import GPT
from .calibration import capture
from .gguf_blocks import LAYOUTS, quantize_blocks
from .k_quants import BITS, SUPERBLOCK, k_quantize
from .linear import QuantizedEmbedding, QuantizedLinear
from .qtensor import QTensor
from .scheme import Scheme, checked

MIXTURES = {"Q4_K_S": ("Q4_K", "Q5_K"),                  # most layers; the better one
            "Q4_K_M": ("Q4_K", "Q6_K"),
            "Q5_K_S": ("Q5_K", "Q5_K"),
            "Q5_K_M": ("Q5_K", "Q6_K")}
FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
TOO_LARGE = 2.0**29                          # above each type's largest number, 65504·128·32
READER = "tinypeft.interop.importance"       # a module with `read_importance`, imported when needed


def is_importance(x: Any) -> bool:
    return isinstance(x, (bool, Path)) or isinstance(x, str) and x != ""


IMPORTANCE = Limit(is_importance, "True, False or the path of an importance file")


@dataclass(frozen=True)
class GGUF(Scheme):
    """A type, such as "Q4_0" or "Q6_K", or a mixture, such as "Q4_K_M", of GGUF. importance: choose
    scales by the size of inputs: True takes it from tokens of calibration, a path from a file of
    llama-imatrix, in either of its forms. embeddings: round the embedding and the output head of a
    model, too. `quantize` raises ValueError for a mixture, if the rows are not whole blocks (of 32,
    of 256 in a K type), or if a scale overflows float16."""
    name: str = one_of(*LAYOUTS, *BITS, *MIXTURES, also=("qtype", "quant_type"))
    importance: bool | str | Path = declared(False, IMPORTANCE, also=("imatrix",))
    embeddings: bool = flag(False)
    shown = ("name",)

    @property
    def calibrated(self) -> bool:
        return self.importance is True

    def quantize(self, W: Array, importance: Array | None = None) -> QTensor:
        """Round W (…, d_in). importance: h (d_in,), each input's mean square."""
        W = checked(W)
        if self.name in MIXTURES:
            kinds = " and ".join(dict.fromkeys(MIXTURES[self.name]))
            raise ValueError(f"GGUF({self.name!r}) is a mixture of {kinds} by layer; "
                             "tinypeft.quantize(model, …) rounds a model by it, one array needs a "
                             "type")
        if self.importance and importance is None:
            raise ValueError(f"{self!r}: expected importance=, the mean square of each input, "
                             "(d_in,); tinypeft.quantize takes it from calibration= or the file")
        return quantize_as(self.name, W, importance)

    def apply(self, model: Decoder, layers: dict[str, Linear], batches: list[Array]) -> None:
        importances = self.importances(model, list(layers), batches)
        rounded = {}
        for path, linear in layers.items():
            kind = self.kind(path, linear, model)
            W = checked(linear.weight.data)
            q = quantize_as(kind, W, importances.get(path))
            rounded[path] = QuantizedLinear(q, linear.bias)
        if self.embeddings:
            rounded |= self.rounded_embeddings(model)
        replace_modules(model, rounded)

    def rounded_embeddings(self, model: Decoder) -> dict[str, QuantizedEmbedding | QuantizedLinear]:
        """Return the embedding and the output head in codes, by their paths. What holds codes
        already stays."""
        of_head = "Q8_0" if self.name == "Q8_0" else "Q6_K"
        embedding, head = model.token_embedding, model.lm_head
        usual = MIXTURES[self.name][0] if self.name in MIXTURES else self.name
        rounded = {}
        if type(embedding) is Embedding:
            kind = of_head if head is None else usual
            q = fitting(kind, embedding)
            rounded["token_embedding"] = QuantizedEmbedding(q, embedding.scale, model.dtype.name)
        if type(head) is Linear:
            rounded["lm_head"] = QuantizedLinear(fitting(of_head, head), head.bias)
        return rounded

    def importances(self, model: Decoder, paths: list[str], batches: list[Array]
                    ) -> dict[str, Array]:
        """Return h (d_in,) of each layer, by its path; {} without importance."""
        if not self.importance:
            return {}
        if self.calibrated:
            statistics = capture(model, batches, paths)
            importances = {path: statistics[path].mean_square for path in paths}
        else:
            reader = import_module(READER)
            importances = reader.read_importance(self.importance, model, paths)
        for path, h in importances.items():
            if not h.any():
                raise ValueError(f"{path}: its inputs are 0 on all tokens of calibration, so none "
                                 "of them is important; give other tokens")
        return importances

    def kind(self, path: str, linear: Linear, model: Decoder) -> str:
        """Return the type of one layer: `name`, or what the mixture says."""
        if self.name not in MIXTURES:
            return self.name
        usual, better = MIXTURES[self.name]
        kind = better if is_better(self.name, path, model) else usual
        if isinstance(model, GPT) and path.split(".")[2] == "attention":
            kind = in_one_tensor(self.name, path, usual)
        return fallback(kind, linear.d_in)


def fallback(kind: str, d_in: int) -> str:
    """Return the type, or what takes its place where rows are not whole superblocks."""
    return FALLBACKS.get(kind, kind) if d_in % SUPERBLOCK else kind


def fitting(kind: str, module: Embedding | Linear) -> QTensor:
    """Round a module's weight to a type that its rows fit."""
    W = checked(module.weight.data)
    return quantize_as(fallback(kind, W.shape[1]), W)


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
    largest = max(W.max(), -W.min())
    if largest > TOO_LARGE:                              # searches take squares, which overflow
        raise ValueError(f"a scale of {kind} overflows GGUF's float16; the largest weight is "
                         f"{largest:g}")
    if kind in BITS:
        if W.shape[-1] % SUPERBLOCK:
            raise ValueError(f"{kind} needs rows of whole superblocks of {SUPERBLOCK} weights, got "
                             f"{W.shape[-1]}; llama.cpp takes {FALLBACKS[kind]} there, and so does "
                             "a mixture such as 'Q4_K_M'")
        return k_quantize(W, kind, importance)
    return quantize_blocks(W, kind, importance)
