"""Llama and models of its architecture, as transformers writes them: SmolLM2, TinyLlama, Mistral
without a window, and Qwen3.

Their model.layers.N is our blocks.N. Rows of q_proj and k_proj are for a rotation of halves, as in
`Llama`. Their configurations differ in the defaults of fields that a folder leaves out. A model
says nothing of the name that it came under, so it is written as "llama", or as "qwen3" if it
normalizes queries and keys.

θ of the rotary embeddings has two places. transformers 5 writes `rope_parameters`: {"rope_type":
"default", "rope_theta": θ}. Older files have `rope_theta`, and `rope_scaling` if the angles are
changed for long contexts, which is not supported. Folders written here have both.
"""
import re
from dataclasses import replace
from typing import Any

from ...common.wording import brief
from ...models.llama import MLP, Attention, Llama, LlamaConfig
from ..folder import check_fields
from .family import Family

__all__ = ["SUPPORTED", "LlamaFamily", "check_division", "object_in", "rope_theta", "with_heads"]

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
# what `rope_parameters` and `rope_scaling` may say, beside θ
ROTARY = {"rope_type": ("default",), "type": ("default",), "partial_rotary_factor": (None, 1.0)}


class LlamaFamily(Family):
    """model_type "llama", "mistral" and "qwen3" ↔ `Llama`."""
    model, parts = Llama, (Attention, MLP)
    defaults = {"llama": LLAMA, "mistral": LLAMA | MISTRAL, "qwen3": LLAMA | QWEN3}
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
        theta = rope_theta(content, "rope_theta", 10000.0, object_in(content, "rope_parameters"),
                           object_in(content, "rope_scaling"))
        return with_heads(LlamaConfig, self.sizes(kind, content), rope_theta=theta,
                          qk_norm=kind == "qwen3", tied=content.get("tie_word_embeddings", False))

    def write(self, config: LlamaConfig) -> dict[str, Any]:
        kind, name = ("qwen3", "Qwen3") if config.qk_norm else ("llama", "Llama")
        if kind == "llama": check_division(config)
        theta = {"rope_theta": config.rope_theta}
        return {"model_type": kind, "architectures": [f"{name}ForCausalLM"],
                **self.named(config), "tie_word_embeddings": config.tied,
                "hidden_act": "silu", "attention_bias": False,
                "rope_parameters": {"rope_type": "default", **theta}, **theta}


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


def rope_theta(content: dict[str, Any], older: str, default: float, *newer: dict) -> Any:
    """θ of rotary embeddings. older: the field in older files. newer: objects that may hold it as
    rope_theta. ValueError if they disagree, or if the angles are not the plain ones."""
    found = [content[older]] if older in content else []
    for rotary in newer:
        check_fields(rotary, ROTARY)
        if unknown := sorted(rotary.keys() - ROTARY.keys() - {"rope_theta"}):
            raise ValueError(f"rotary embeddings with {unknown[0]}={brief(rotary[unknown[0]])} are "
                             "not supported; expected rope_type and rope_theta")
        if "rope_theta" in rotary: found.append(rotary["rope_theta"])
    if any(theta != found[0] for theta in found):
        raise ValueError(f"{older} is {' and '.join(map(brief, found))}, "
                         "expected one number")
    return found[0] if found else default


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
