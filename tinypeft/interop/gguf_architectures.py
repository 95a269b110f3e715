"""How GGUF files hold each family of models: the names of its tensors, and the fields of its sizes.

    theirs                               ours                              blk.N is blocks.N
    token_embd                           token_embedding
    position_embd                        position_embedding                GPT-2 alone
    output (absent if tied)              lm_head
    output_norm                          final_norm
    attn_norm  ffn_norm                  norm1  norm2
    post_attention_norm  post_ffw_norm   post_norm1  post_norm2            Gemma 3 alone
    attn_q  attn_k  attn_v  attn_output  attention.query  key  value  output
    attn_q_norm  attn_k_norm             attention.query_norm  key_norm    Qwen 3 and Gemma 3
    attn_qkv                             attention.query, key and value, with their rows stacked:
                                         GPT-2, in place of attn_q, attn_k and attn_v
    ffn_gate  ffn_up  ffn_down           mlp.gate  up  down                GPT-2 has no gate

Weights are (d_out, d_in), as here, also those of GPT-2. What differs from our numbers:

    "llama"     the rows of attn_q and attn_k are for a rotation of neighbours (x_{2i}, x_{2i+1}).
                `halves` reorders them for the rotation of halves (x_i, x_{i + d/2}) that `Llama`
                computes. All other architectures with rotations have them for halves
    "gemma3"    norms hold 1 + w, of which `Gemma` has w

Stretched angles are fields (`rope.scaling.…`), but those of Llama 3.1 to 3.3 are a tensor,
rope_freqs.weight: a divisor for the angle of each pair. It does not say what it was made of.
`llama3_fields` tries what these models have, and refuses other divisors. llama.cpp obeys the fields
in `only`, too; they are refused unless what they say changes nothing. Source: llama.cpp's converter
(conversion/) and its loaders (src/models/); gguf-py's constants.py.
"""
import math
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from ..common.hints import Array
from ..common.wording import brief, shortened
from ..models.decoder import Decoder
from ..models.gemma import Gemma, GemmaConfig
from ..models.gpt import GPT, GPTConfig
from ..models.llama import Llama, LlamaConfig
from ..models.rotary import Rotary, frequencies
from .families import Family

__all__ = ["ADVICE", "ARCHITECTURES", "FACTORS", "Architecture", "architecture_of", "halves",
           "neighbours"]

FACTORS = "rope_freqs.weight"
ADVICE = "take a model without it, or run this one with llama.cpp"
# our size → their field, after the architecture's name
SIZES = {"context_length": "context_length", "d_model": "embedding_length",
         "n_layers": "block_count", "n_heads": "attention.head_count",
         "n_kv_heads": "attention.head_count_kv", "d_mlp": "feed_forward_length",
         "rope_theta": "rope.freq_base", "norm_eps": "attention.layer_norm_rms_epsilon"}
# their field → the only value that is computed here, or the size of ours that it is
ONLY = {"attention.causal": True, "attention.value_length": "d_head",
        "expert_count": 0, "expert_used_count": 0, "nextn_predict_layers": 0,
        "rope.dimension_count": "d_head"}
SCALING = {"type", "factor", "attn_factor", "finetuned", "original_context_length"}
FLOATS = "rope_theta", "local_theta", "norm_eps"
WINDOWED = ("attention.sliding_window", "attention.sliding_window_pattern", "rope.freq_base_swa")
MODULES = {"attn_norm": ["norm1"], "attn_q": ["attention.query"], "attn_k": ["attention.key"],
           "attn_v": ["attention.value"], "attn_output": ["attention.output"],
           "ffn_norm": ["norm2"], "ffn_gate": ["mlp.gate"], "ffn_up": ["mlp.up"],
           "ffn_down": ["mlp.down"], "attn_q_norm": ["attention.query_norm"],
           "attn_k_norm": ["attention.key_norm"]}


class Architecture(Family):
    """One family of models in GGUF files. `defaults` has the names of its architectures."""
    blocks = "blk"
    outer = {"token_embd": "token_embedding", "output_norm": "final_norm", "output": "lm_head"}
    modules = MODULES
    fields = SIZES
    only: ClassVar[dict[str, Any]] = ONLY
    offset: ClassVar[float] = 0.0                        # what their norms are larger by

    def read(self, kind: str, content: dict[str, Any]) -> Any:
        """Return our configuration. content: the fields after "kind.", and `vocab_size`, `tied` and
        `rope_freqs` of the tensors. ValueError or TypeError for another function than ours."""
        raise NotImplementedError

    def kind(self, config: Any) -> str:
        """Return the name of the architecture of a configuration."""
        kind, = self.defaults
        return kind

    def check(self, config: Any) -> None:
        """ValueError for a function that llama.cpp lacks."""

    def write(self, config: Any) -> dict[str, Any]:
        """Return the fields of the sizes."""
        return {theirs: float(value) if ours in FLOATS else value
                for ours, theirs in self.fields.items() for value in [getattr(config, ours)]}

    def sizes(self, kind: str, content: dict[str, Any]) -> dict[str, Any]:
        there = self.defaults[kind] | content
        there.setdefault("attention.head_count_kv", there.get("attention.head_count"))
        for theirs in self.fields.values():
            if theirs not in there: raise ValueError(f"the field {kind}.{theirs} is missing")
            if isinstance(there[theirs], (list, np.ndarray)):
                raise ValueError(f"{kind}.{theirs} is a list, expected one number for all layers")
        return {ours: there[theirs] for ours, theirs in self.fields.items()}

    def check_only(self, kind: str, content: dict[str, Any], config: Any) -> None:
        """ValueError if a field asks for another function than ours."""
        for name, value in content.items():
            scaling = name.partition("rope.scaling.")[2]
            if name not in self.only and (not scaling or scaling in SCALING): continue
            only = self.only.get(name)
            only = getattr(config, only) if isinstance(only, str) else only
            if isinstance(value, (list, np.ndarray)) or value != only:
                expected = "no such field" if only is None else repr(only)
                raise ValueError(f"{shortened(f'{kind}.{name}', 80)} is {brief(value)}, expected "
                                 f"{expected}; nothing else is computed here: {ADVICE}")

    def divisors(self, config: Any) -> Array | None:
        """Return the tensor of divisors of the angles, float32 (d_head/2,), or None."""
        return None

    def is_paired(self, config: Any, name: str) -> bool:
        """Are the rows of their tensor for a rotation of neighbours?"""
        return False

    def shift(self, name: str) -> float:
        """Return what their tensor's numbers are larger by than ours."""
        return self.offset if name.endswith("norm.weight") else 0.0


class LlamaFile(Architecture):
    """The architectures "llama", "qwen2" (with biases of q, k, v) and "qwen3" (with their norms)
    ↔ `Llama`."""
    model = Llama
    defaults = dict.fromkeys(("llama", "qwen2", "qwen3"), {"rope.freq_base": 10000.0})

    def read(self, kind: str, content: dict[str, Any]) -> LlamaConfig:
        sizes = self.sizes(kind, content)
        d_head = content.get("attention.key_length", sizes["d_model"] // sizes["n_heads"])
        config = LlamaConfig(vocab_size=content["vocab_size"], tied=content["tied"], d_head=d_head,
                             qkv_bias=kind == "qwen2", qk_norm=kind == "qwen3", **sizes)
        self.check_only(kind, content, config)
        return replace(config, **stretched(content, config))

    def kind(self, config: LlamaConfig) -> str:
        return "qwen2" if config.qkv_bias else "qwen3" if config.qk_norm else "llama"

    def check(self, config: LlamaConfig) -> None:
        c, kind = config, self.kind(config)
        if c.qkv_bias and c.qk_norm:
            raise ValueError("llama.cpp has no Llama with norms of queries and keys and biases "
                             "(qk_norm and qkv_bias)")
        if c.qkv_bias and c.n_heads * c.d_head != c.d_model:
            raise ValueError(f"in llama.cpp's {kind!r}, a Llama with qkv_bias, n_heads · d_head is "
                             f"d_model: expected {c.d_model}, got {c.n_heads} · {c.d_head}")
        unusual = c.rope_kind == "yarn" and (c.rope_low, c.rope_high) != (1, 32)
        misplaced = c.rope_kind == "llama3" and kind != "llama"
        if c.rope_kind == "dynamic" or unusual or misplaced:
            raise ValueError(f"llama.cpp has no rotary embeddings of this kind in {kind!r}: "
                             f"rope_kind={c.rope_kind!r}, rope_low={c.rope_low:g}, "
                             f"rope_high={c.rope_high:g}")

    def write(self, config: LlamaConfig) -> dict[str, Any]:
        c, sizes = config, super().write(config)
        sizes |= {"vocab_size": c.vocab_size, "rope.dimension_count": c.d_head,
                  "attention.key_length": c.d_head, "attention.value_length": c.d_head}
        if c.rope_kind in ("linear", "yarn"):
            sizes |= {"rope.scaling.type": c.rope_kind, "rope.scaling.factor": float(c.rope_factor)}
        magnitude = float(c.rope_magnitude)
        if c.rope_kind == "yarn":
            sizes["rope.scaling.original_context_length"] = c.rope_context
            magnitude /= 0.1 * math.log(c.rope_factor) + 1       # which llama.cpp multiplies
        if not math.isclose(magnitude, 1): sizes["rope.scaling.attn_factor"] = magnitude
        return sizes

    def divisors(self, config: LlamaConfig) -> Array | None:
        c = config
        if c.rope_kind != "llama3": return None
        plain = frequencies(Rotary(c.rope_theta, c.d_head), 1)
        return np.float32(plain / frequencies(c.rotary, 1))

    def is_paired(self, config: LlamaConfig, name: str) -> bool:
        return self.kind(config) == "llama" and name.endswith(("attn_q.weight", "attn_k.weight"))


class GemmaFile(Architecture):
    """The architecture "gemma3" ↔ `Gemma`. Scores are divided by √d_head, and by √(d_model/n_heads)
    in a model of 62 layers: llama.cpp knows Gemma-3-27B by their number. Without the field of the
    window, all layers see all tokens; llama.cpp stops at a window that no layer has."""
    model = Gemma
    modules = MODULES | {"post_attention_norm": ["post_norm1"], "post_ffw_norm": ["post_norm2"]}
    fields = SIZES | {"window": "attention.sliding_window", "local_theta": "rope.freq_base_swa",
                      "global_every": "attention.sliding_window_pattern"}
    defaults = {"gemma3": {"rope.freq_base": 10000.0, "rope.freq_base_swa": 10000.0,
                           "attention.sliding_window": 0, "attention.sliding_window_pattern": 6}}
    only = ONLY | {"final_logit_softcapping": 0.0, "rope.scale_linear": 1.0,
                   "rope.scaling.factor": 1.0, "rope.scaling.attn_factor": 1.0}
    offset = 1.0

    def read(self, kind: str, content: dict[str, Any]) -> GemmaConfig:
        sizes = self.sizes(kind, content)
        d_head = content.get("attention.key_length", sizes["d_model"] // sizes["n_heads"])
        if sizes["window"] == 0: sizes |= {"window": sizes["context_length"], "global_every": 1}
        config = GemmaConfig(vocab_size=content["vocab_size"], d_head=d_head, **sizes)
        self.check_only(kind, content, config)
        return replace(config, query_scale=float(self.score_scale(config)))

    def check(self, config: GemmaConfig) -> None:
        if config.query_scale != self.score_scale(config):
            raise ValueError(f"llama.cpp divides the scores of a Gemma with {config.n_layers} "
                             f"layers by √{self.score_scale(config)}, this one by "
                             f"√{config.query_scale:g}")

    def write(self, config: GemmaConfig) -> dict[str, Any]:
        sizes = super().write(config)
        if config.global_every == 1:
            for name in WINDOWED: del sizes[name]
        return sizes | {"vocab_size": config.vocab_size, "attention.key_length": config.d_head,
                        "attention.value_length": config.d_head}

    def score_scale(self, config: GemmaConfig) -> int:
        """Return the number by whose root llama.cpp divides scores."""
        return config.d_model // config.n_heads if config.n_layers == 62 else config.d_head


class GPT2File(Architecture):
    """The architecture "gpt2" ↔ `GPT`."""
    model = GPT
    outer = {"token_embd": "token_embedding", "position_embd": "position_embedding",
             "output_norm": "final_norm"}
    modules = {"attn_norm": ["norm1"],
               "attn_qkv": ["attention.query", "attention.key", "attention.value"],
               "attn_output": ["attention.output"], "ffn_norm": ["norm2"], "ffn_up": ["mlp.up"],
               "ffn_down": ["mlp.down"]}
    fields = {"context_length": "context_length", "d_model": "embedding_length",
              "n_layers": "block_count", "n_heads": "attention.head_count",
              "norm_eps": "attention.layer_norm_epsilon"}
    defaults = {"gpt2": {}}
    only = {"attention.causal": True, "attention.head_count_kv": "n_heads",
            "attention.key_length": "d_head", "attention.value_length": "d_head"}

    def read(self, kind: str, content: dict[str, Any]) -> GPTConfig:
        config = GPTConfig(vocab_size=content["vocab_size"], **self.sizes(kind, content))
        self.check_only(kind, content, config)
        width = content.get("feed_forward_length")
        if isinstance(width, (list, np.ndarray)) or width != 4 * config.d_model:
            raise ValueError(f"gpt2.feed_forward_length is {brief(width)}, expected "
                             f"{4 * config.d_model}: the MLP of a GPT is 4 d_model wide")
        return config

    def check(self, config: GPTConfig) -> None:
        if config.d_head == 1:
            raise ValueError("llama.cpp has no heads of one number: expected n_heads < d_model, "
                             f"got {config.n_heads} = d_model")

    def write(self, config: GPTConfig) -> dict[str, Any]:
        return super().write(config) | {"feed_forward_length": 4 * config.d_model}


ARCHITECTURES: dict[str, Architecture] = {
    kind: architecture for architecture in (LlamaFile(), GemmaFile(), GPT2File())
    for kind in architecture.defaults}


def architecture_of(model: Decoder) -> Architecture:
    """Return the architecture of a model. ValueError if GGUF has none for its class."""
    for architecture in ARCHITECTURES.values():
        if type(model) is architecture.model: return architecture
    raise ValueError(f"a GPT, a Llama or a Gemma is expected, got {type(model).__name__}")


def halves(W: Array, d_head: int) -> Array:
    """Reorder the rows of W (heads · d_head, d): 2i, 2i + 1 of a head become i, i + d_head/2."""
    pairs = W.reshape(-1, d_head // 2, 2, W.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(W.shape)


def neighbours(W: Array, d_head: int) -> Array:
    """Return the inverse of `halves`."""
    pairs = W.reshape(-1, 2, d_head // 2, W.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(W.shape)


def stretched(content: dict[str, Any], config: LlamaConfig) -> dict[str, Any]:
    """Return our fields of stretched angles. ValueError for those that `Llama` does not compute."""
    def field(name, default):
        """A field after "rope.scaling."; of the default's type."""
        value = content.get(f"rope.scaling.{name}", default)
        if isinstance(value, (list, np.ndarray)) or type(value) not in (type(default), int):
            raise ValueError(f"rope.scaling.{name} is {brief(value)}, expected a "
                             f"{type(default).__name__}")
        return value
    kind = field("type", "linear")
    field("finetuned", False)                            # changes nothing
    if kind not in ("none", "linear", "yarn"):
        raise ValueError(f"rope.scaling.type is {brief(kind)}, expected 'none', 'linear' or 'yarn'")
    older = content.get("rope.scale_linear", 1.0)
    if not isinstance(older, (int, float)):
        raise ValueError(f"rope.scale_linear is {brief(older)}, expected a number")
    factor = field("factor", float(older)) or 1.0        # 0 stands for none
    context = field("original_context_length", config.context_length)
    magnitude = field("attn_factor", 1.0)
    fields = {"rope_factor": factor, "rope_magnitude": magnitude}
    replace(config, **fields, rope_context=context)      # are they numbers that a model can have?
    if (divisors := content["rope_freqs"]) is not None:
        if kind == "yarn" or factor != 1:
            raise ValueError(f"it has {FACTORS} and rope.scaling.type {kind!r}, expected one")
        if divisors.shape != (config.d_head // 2,):
            raise ValueError(f"{FACTORS} has shape {divisors.shape}, "
                             f"expected ({config.d_head // 2},)")
        return {"rope_magnitude": magnitude, **llama3_fields(config, divisors)}
    if kind == "yarn":
        magnitude *= 0.1 * math.log(factor) + 1
        return {"rope_kind": kind, "rope_factor": factor, "rope_context": context,
                "rope_high": 32.0, "rope_magnitude": magnitude}
    return fields | ({"rope_kind": "linear"} if factor != 1 else {})


def llama3_fields(config: LlamaConfig, divisors: Array) -> dict[str, Any]:
    """Return the fields of the angles of Llama 3.1 to 3.3 that `divisors` (d_head/2,) makes; {} if
    all are 1. ValueError if none of their settings makes them."""
    if (divisors == 1).all(): return {}
    plain = Rotary(config.rope_theta, config.d_head)
    factor = float(divisors.max())
    fields = {"rope_kind": "llama3", "rope_factor": factor, "rope_context": 8192}
    tried = replace(config, **fields).rotary if factor >= 1 else plain
    expected = frequencies(plain, 1) / frequencies(tried, 1)
    if not np.allclose(divisors, expected, rtol=1e-5, atol=0):
        raise ValueError(f"{FACTORS} divides the angles of the rotary embeddings, but not as in "
                         f"Llama 3.1 to 3.3; {ADVICE}")
    return fields
