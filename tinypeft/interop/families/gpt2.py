"""GPT-2 as transformers writes it.

Their wte, wpe and ln_f are our token_embedding, position_embedding and final_norm. Their h.N is our
blocks.N. Their linear layers (Conv1D) store W as (d_in, d_out), the transpose of ours. c_attn
computes query, key and value together. `attn.bias` and `attn.masked_bias`, in old files, hold the
causal mask.
"""
import re
from typing import Any

from ...common.wording import brief
from ...models.gpt import GPT, MLP, Attention, GPTConfig
from ..folder import check_fields
from .family import Family

__all__ = ["GPT2"]

DROPOUTS = "resid_pdrop", "embd_pdrop", "attn_pdrop"


class GPT2(Family):
    """model_type "gpt2" ↔ `GPT`."""
    model, parts = GPT, (Attention, MLP)
    defaults = {"gpt2": {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12,
                         "n_head": 12, "layer_norm_epsilon": 1e-5, **dict.fromkeys(DROPOUTS, 0.1)}}
    fields = {"vocab_size": "vocab_size", "context_length": "n_positions", "d_model": "n_embd",
              "n_layers": "n_layer", "n_heads": "n_head", "norm_eps": "layer_norm_epsilon",
              "dropout": "resid_pdrop"}
    supported = {"activation_function": ("gelu_new", "gelu_pytorch_tanh"),
                 "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,),
                 "reorder_and_upcast_attn": (False,), "add_cross_attention": (False,),
                 "pruned_heads": (None, {}), "quantization_config": (None,)}
    prefix, embedding, blocks = "transformer.", "wte", "h"
    outer = {"wte": "token_embedding", "wpe": "position_embedding", "ln_f": "final_norm"}
    modules = {"ln_1": ["norm1"],
               "attn.c_attn": ["attention.query", "attention.key", "attention.value"],
               "attn.c_proj": ["attention.output"],
               "ln_2": ["norm2"], "mlp.c_fc": ["mlp.up"], "mlp.c_proj": ["mlp.down"]}
    transposed = re.compile(r"\.c_\w+\.weight$")
    buffers = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
    idle = "attn.attn_dropout", "attn.resid_dropout", "mlp.act", "mlp.dropout"
    idle_outer, adapted = ("drop",), ("c_attn",)

    def read(self, kind: str, content: dict[str, Any]) -> GPTConfig:
        dropouts = {name: content.get(name, self.defaults[kind][name]) for name in DROPOUTS}
        if any(p != dropouts["resid_pdrop"] for p in dropouts.values()):
            raise ValueError(f"a GPT here has one dropout for all, got {brief(dropouts)}; "
                             "make them equal")
        config = GPTConfig(**self.sizes(kind, content))
        check_fields(content, {"n_inner": (None, 4 * config.d_model)})
        return config

    def write(self, config: GPTConfig) -> dict[str, Any]:
        return {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"],
                **self.named(config), **dict.fromkeys(DROPOUTS, config.dropout), "n_inner": None,
                "activation_function": "gelu_new", "tie_word_embeddings": True}
