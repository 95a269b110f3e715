"""Llama and models of its architecture, as transformers writes them: SmolLM2, TinyLlama, Llama 3,
Mistral without a window, Qwen 2.5 and Qwen 3.

Their model.layers.N is our blocks.N. Rows of q_proj and k_proj are for a rotation of halves, as in
`Llama`. Their configurations differ in the defaults of fields that a folder leaves out. A model
says nothing of the name that it came under, so it is written as "llama", as "qwen3" if it
normalizes queries and keys, or as "qwen2" if these have biases.

The rotary embeddings have two places. transformers 5 writes `rope_parameters`: {"rope_type":
"default", "rope_theta": θ, …}. Older files have `rope_theta`, and `rope_scaling` if the angles are
stretched for long texts. Folders written here have `rope_parameters` and `rope_theta`.
"""
import math
import re
from dataclasses import replace
from typing import Any

from ...common.wording import brief
from ...models.llama import MLP, Attention, Llama, LlamaConfig
from ...models.rotary import KINDS
from ..folder import check_fields
from .family import Family

__all__ = ["SUPPORTED", "LlamaFamily", "check_division", "object_in", "rotary_fields", "with_heads"]

# the values for which our models are the same, also for Gemma 3
SUPPORTED = {"attention_bias": (False,), "attention_dropout": (0.0, None),
             "partial_rotary_factor": (None, 1.0), "per_layer_config": (None,),
             "quantization_config": (None,)}
# the values of fields that are absent
LLAMA = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
         "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": None,
         "head_dim": None, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6}
MISTRAL = {"intermediate_size": 14336, "num_key_value_heads": 8,
           "max_position_embeddings": 131072, "sliding_window": 4096}
QWEN3 = {"vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32,
         "head_dim": 128, "max_position_embeddings": 32768}
QWEN2 = {"vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32,
         "max_position_embeddings": 32768, "sliding_window": 4096}
# what `rope_parameters` and `rope_scaling` may hold, beside θ and the type, by type
ROTARY = {"default": (), "linear": ("factor",), "dynamic": ("factor",),
          "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor",
                     "high_freq_factor"),
          "yarn": ("factor", "original_max_position_embeddings", "beta_slow", "beta_fast",
                   "attention_factor", "mscale", "mscale_all_dim", "truncate")}
ENDS = {"llama3": ("low_freq_factor", "high_freq_factor"), "yarn": ("beta_slow", "beta_fast")}


class LlamaFamily(Family):
    """model_type "llama", "mistral", "qwen2" and "qwen3" ↔ `Llama`."""
    model, parts = Llama, (Attention, MLP)
    defaults = {"llama": LLAMA, "mistral": LLAMA | MISTRAL, "qwen2": LLAMA | QWEN2,
                "qwen3": LLAMA | QWEN3}
    fields = {"vocab_size": "vocab_size", "context_length": "max_position_embeddings",
              "d_model": "hidden_size", "n_layers": "num_hidden_layers",
              "n_heads": "num_attention_heads", "n_kv_heads": "num_key_value_heads",
              "d_mlp": "intermediate_size", "d_head": "head_dim", "norm_eps": "rms_norm_eps"}
    supported = SUPPORTED | {"hidden_act": ("silu", "swish"), "mlp_bias": (False,),
                             "use_sliding_window": (False, None),
                             "rope_interleaved": (False, None)}
    prefix, embedding, blocks = "model.", "embed_tokens", "layers"
    outer = {"embed_tokens": "token_embedding", "norm": "final_norm", "lm_head": "lm_head"}
    modules = {"input_layernorm": ["norm1"], "self_attn.q_proj": ["attention.query"],
               "self_attn.k_proj": ["attention.key"], "self_attn.v_proj": ["attention.value"],
               "self_attn.o_proj": ["attention.output"],
               "self_attn.q_norm": ["attention.query_norm"],
               "self_attn.k_norm": ["attention.key_norm"],
               "post_attention_layernorm": ["norm2"], "mlp.gate_proj": ["mlp.gate"],
               "mlp.up_proj": ["mlp.up"], "mlp.down_proj": ["mlp.down"]}
    buffers = re.compile(r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
    idle, idle_outer, adapted = ("mlp.act_fn",), ("rotary_emb",), ("q_proj", "v_proj")

    def read(self, kind: str, content: dict[str, Any]) -> LlamaConfig:
        if kind == "mistral":
            check_fields(self.defaults[kind] | content, {"sliding_window": (None,)})
        layers = [] if (given := content.get("layer_types")) is None else given
        if type(layers) is not list or any(layer != "full_attention" for layer in layers):
            raise ValueError(f"layer_types is {brief(layers)}, expected 'full_attention' for all")
        places = (object_in(content, name) for name in ("rope_parameters", "rope_scaling"))
        rotary = rotary_fields(content, "rope_theta", 10000.0, *places, kinds=KINDS)
        sizes = self.sizes(kind, content)
        if rotary.get("rope_kind") == "dynamic":         # it stretches what transformers calls the
            length = sizes["context_length"]             # longest text; ours is the stretched one
            rotary["rope_context"] = length
            sizes["context_length"] = int(length * rotary["rope_factor"])
        elif "rope_context" in rotary and rotary["rope_context"] is None:
            rotary["rope_context"] = sizes["context_length"]
        return with_heads(LlamaConfig, sizes, **rotary, qkv_bias=kind == "qwen2",
                          qk_norm=kind == "qwen3", tied=content.get("tie_word_embeddings", False))

    def write(self, config: LlamaConfig) -> dict[str, Any]:
        if config.qk_norm and config.qkv_bias:
            raise ValueError("save_model: transformers has no Llama with norms of queries and keys "
                             "and biases (qk_norm and qkv_bias)")
        kind, name = (("qwen3", "Qwen3") if config.qk_norm else
                      ("qwen2", "Qwen2") if config.qkv_bias else ("llama", "Llama"))
        if kind == "llama": check_division(config)
        if kind == "qwen2" and config.d_head * config.n_heads != config.d_model:
            raise ValueError("save_model: transformers needs n_heads · d_head = d_model in Qwen "
                             f"2.5, got {config.n_heads} · {config.d_head} and {config.d_model}")
        if config.rope_magnitude != 1 and config.rope_kind != "yarn":
            raise ValueError("save_model: transformers has a factor on cos and sin only in YaRN, "
                             f"got rope_magnitude={config.rope_magnitude:g}")
        sizes = self.named(config)
        if config.rope_kind == "dynamic": sizes["max_position_embeddings"] = config.rope_context
        biased = {} if kind == "qwen2" else {"attention_bias": False}
        return {"model_type": kind, "architectures": [f"{name}ForCausalLM"],
                **sizes, "tie_word_embeddings": config.tied, "hidden_act": "silu", **biased,
                "rope_parameters": rotary_object(config), "rope_theta": config.rope_theta}


def with_heads(cls: type, sizes: dict[str, Any], **more: Any) -> Any:
    """`cls(**sizes, **more)`. Without a number of key heads, there are as many as of queries.
    Without a width of heads, they share d_model."""
    kv_heads, d_head = sizes["n_kv_heads"], sizes["d_head"]
    if kv_heads is None: sizes |= {"n_kv_heads": sizes["n_heads"]}
    if d_head is not None: return cls(**sizes, **more)
    config = cls(**sizes | {"d_head": 2}, **more)        # checks that the two are whole numbers
    if config.d_model % config.n_heads:
        raise ValueError(f"the hidden size {config.d_model} does not divide into {config.n_heads} "
                         "heads; state head_dim")
    return replace(config, d_head=config.d_model // config.n_heads)


def rotary_fields(content: dict[str, Any], older: str, default: float, *newer: dict,
                  kinds: tuple[str, ...] = ("default",)) -> dict[str, Any]:
    """Return the fields `rope_…` of our configuration. older: the field of θ in older files. newer:
    objects that may hold θ and the type. ValueError if they disagree, or for another type than
    `kinds`."""
    theta = [content[older]] if older in content else []
    found: dict[str, Any] = {}
    for rotary in newer:
        check_fields(rotary, {"partial_rotary_factor": (None, 1.0)})
        rotary = {name: value for name, value in rotary.items() if name != "partial_rotary_factor"}
        if "rope_theta" in rotary: theta.append(rotary.pop("rope_theta"))
        kind = rotary.pop("type", "default")
        kind = rotary.pop("rope_type", kind)
        if kind not in kinds:
            expected = " or ".join(map(repr, kinds))
            raise ValueError(f"rope_type is {brief(kind)}, expected {expected}")
        if unknown := sorted(rotary.keys() - set(ROTARY[kind])):
            raise ValueError(f"rotary embeddings of rope_type {kind!r} with {unknown[0]}="
                             f"{brief(rotary[unknown[0]])} are not supported")
        if kind == "default": continue
        if found and found != {"kind": kind, **rotary}:
            raise ValueError("rope_parameters and rope_scaling say different things, expected one")
        found = {"kind": kind, **rotary}
    if any(value != theta[0] for value in theta):
        raise ValueError(f"{older} is {' and '.join(map(brief, theta))}, expected one number")
    return {"rope_theta": theta[0] if theta else default, **stretched(found)}


def stretched(rotary: dict[str, Any]) -> dict[str, Any]:
    """Return our fields of stretched angles; {} for plain ones."""
    if not rotary: return {}
    kind = rotary["kind"]
    if missing := [name for name in ("factor", *(ENDS[kind] if kind == "llama3" else ()))
                   if rotary.get(name) is None]:
        raise ValueError(f"rope_type {kind!r} needs {missing[0]}")
    fields = {"rope_kind": kind, "rope_factor": rotary["factor"]}
    if kind not in ENDS: return fields
    low, high = ENDS[kind]
    fields |= {"rope_context": rotary.get("original_max_position_embeddings"),
               "rope_low": rotary.get(low) or 1, "rope_high": rotary.get(high) or 32}
    if kind == "llama3": return fields
    check_fields(rotary, {"truncate": (True, None)})
    return fields | {"rope_magnitude": magnitude(rotary)}


def magnitude(rotary: dict[str, Any]) -> float:
    """Return the factor on cos and sin of YaRN: attention_factor, or what follows from the rest."""
    def grown(times):
        return 0.1 * times * math.log(rotary["factor"]) + 1 if rotary["factor"] > 1 else 1.0
    if rotary.get("attention_factor") is not None: return rotary["attention_factor"]
    both = rotary.get("mscale"), rotary.get("mscale_all_dim")
    numbers = [x for x in (rotary["factor"], *both) if x is not None]
    if any(isinstance(x, bool) or not isinstance(x, (int, float)) for x in numbers):
        raise ValueError(f"factor, mscale and mscale_all_dim are {brief(numbers)}, expected "
                         "numbers")
    return grown(both[0]) / grown(both[1]) if all(both) else grown(1)


def rotary_object(config: LlamaConfig) -> dict[str, Any]:
    """Return the object rope_parameters."""
    kind = config.rope_kind
    rotary = {"rope_type": kind, "rope_theta": config.rope_theta}
    if kind != "default": rotary["factor"] = config.rope_factor
    if kind in ENDS:
        low, high = ENDS[kind]
        rotary |= {"original_max_position_embeddings": config.rope_context,
                   low: config.rope_low, high: config.rope_high}
    if kind == "yarn": rotary["attention_factor"] = config.rope_magnitude
    return rotary


def object_in(content: dict[str, Any], name: str) -> dict:
    """Return a field that is a JSON object; {} if it is absent or null."""
    if (value := content.get(name)) is None: return {}
    if isinstance(value, dict): return value
    raise ValueError(f"{name} is {brief(value)}, expected an object or null")


def check_division(config: Any) -> None:
    """Raise ValueError for sizes that transformers refuses in all families but Qwen3."""
    if config.d_model % config.n_heads:
        raise ValueError("save_model: transformers needs a hidden size that divides into the "
                         f"heads, got {config.d_model} and {config.n_heads}")
