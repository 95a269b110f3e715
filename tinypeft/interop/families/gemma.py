"""Gemma 3's models for text, as transformers writes them. The norms hold w of 1 + w, as in `Gemma`.

Which layers see only a window is a list, `layer_types`, or in older files a period,
`sliding_window_pattern`. `Gemma` has a period, so a list without one is refused. θ has a value for
each of the two types of layer: in `rope_parameters`, or in older files in `rope_theta` for the
layers that see all and `rope_local_base_freq` for the others.
"""
from typing import Any

from ...common.wording import brief
from ...models.gemma import Gemma, GemmaBlock, GemmaConfig
from ...models.llama import MLP, Attention
from .llama import SUPPORTED, LlamaFamily, check_division, object_in, rotary_fields, with_heads

__all__ = ["GemmaFamily"]

FULL, WINDOW = "full_attention", "sliding_attention"     # types of layers


class GemmaFamily(LlamaFamily):
    """model_type "gemma3_text" ↔ `Gemma`."""
    model, parts = Gemma, (GemmaBlock, Attention, MLP)
    defaults = {"gemma3_text": {
        "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216,
        "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-6,
        "sliding_window": 4096, "query_pre_attn_scalar": 256}}
    fields = LlamaFamily.fields | {"window": "sliding_window",
                                   "query_scale": "query_pre_attn_scalar"}
    supported = SUPPORTED | {"hidden_activation": ("gelu_pytorch_tanh", "gelu_new"),
                             "attn_logit_softcapping": (None,), "final_logit_softcapping": (None,),
                             "use_bidirectional_attention": (False, None)}
    outer = {"embed_tokens": "token_embedding", "norm": "final_norm"}
    modules = LlamaFamily.modules | {"post_attention_layernorm": ["post_norm1"],
                                     "pre_feedforward_layernorm": ["norm2"],
                                     "post_feedforward_layernorm": ["post_norm2"]}

    def read(self, kind: str, content: dict[str, Any]) -> GemmaConfig:
        new, layers = object_in(content, "rope_parameters"), content.get("layer_types")
        if unknown := sorted(new.keys() - {FULL, WINDOW}):
            raise ValueError(f"rope_parameters has {brief(unknown[0])}, expected {FULL}, {WINDOW}")
        config = with_heads(
            GemmaConfig, self.sizes(kind, content),
            global_every=(content.get("sliding_window_pattern", 6) if layers is None
                          else period(layers)),
            **rotary_fields(content, "rope_theta", 1e6, object_in(new, FULL),
                            object_in(content, "rope_scaling")),
            local_theta=rotary_fields(content, "rope_local_base_freq", 1e4,
                                      object_in(new, WINDOW))["rope_theta"])
        if layers is not None and len(layers) != config.n_layers:
            raise ValueError(f"layer_types has {len(layers)} layers, expected {config.n_layers}")
        return config

    def write(self, config: GemmaConfig) -> dict[str, Any]:
        check_division(config)
        if config.query_scale % 1:
            raise ValueError("save_model: query_pre_attn_scalar is a whole number in "
                             f"transformers, got {config.query_scale}")
        rotary = {name: {"rope_type": "default", "rope_theta": theta} for name, theta in
                  ((FULL, config.rope_theta), (WINDOW, config.local_theta))}
        return {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"],
                **self.named(config), "query_pre_attn_scalar": int(config.query_scale),
                "tie_word_embeddings": True,
                "layer_types": layer_types(config.n_layers, config.global_every),
                "sliding_window_pattern": config.global_every,
                "hidden_activation": "gelu_pytorch_tanh", "attention_bias": False,
                "rope_parameters": rotary, "rope_theta": config.rope_theta,
                "rope_local_base_freq": config.local_theta}


def layer_types(n: int, every: int) -> list[str]:
    """Return the types of n layers: every `every`-th sees all tokens."""
    return [WINDOW if i % every else FULL for i in range(1, n + 1)]


def period(layers: Any) -> int:
    """Return the `every` of `layer_types`. ValueError if there is none."""
    if isinstance(layers, list):
        every = layers.index(FULL) + 1 if FULL in layers else max(6, len(layers) + 1)
        if layers == layer_types(len(layers), every): return every
    raise ValueError(f"layer_types is {brief(layers)}, expected {WINDOW!r}, and {FULL!r} at every "
                     "k-th place")
