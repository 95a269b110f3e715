"""transformers' Llama and Qwen3 with the weights of one of ours.

transformers computes norms and angles in float32, whatever the model's dtype. `exact` replaces both by float64 ones.
"""
import numpy as np
import torch
import transformers

__all__ = ["NAMES", "torch_llama"]

# our part of a name → theirs
NAMES = {"token_embedding": "model.embed_tokens", "final_norm": "model.norm", "blocks.": "model.layers.",
         "norm1": "input_layernorm", "norm2": "post_attention_layernorm",
         "attention.query_norm": "self_attn.q_norm", "attention.key_norm": "self_attn.k_norm",
         "attention.query": "self_attn.q_proj", "attention.key": "self_attn.k_proj",
         "attention.value": "self_attn.v_proj", "attention.output": "self_attn.o_proj",
         "mlp.gate": "mlp.gate_proj", "mlp.up": "mlp.up_proj", "mlp.down": "mlp.down_proj"}


def their_name(name: str) -> str:
    for ours, theirs in NAMES.items(): name = name.replace(ours, theirs)
    return name


class Rotary(torch.nn.Module):
    """The angles of positions, in the precision of the model (transformers: always float32)."""

    def __init__(self, c):
        super().__init__()
        self.frequencies = c.rope_theta ** (-2 * torch.arange(c.d_head // 2, dtype=torch.float64) / c.d_head)

    def forward(self, x, position_ids):
        phi = position_ids[..., None].to(torch.float64) * self.frequencies
        phi = torch.cat([phi, phi], -1)
        return phi.cos().to(x.dtype), phi.sin().to(x.dtype)


def torch_llama(model, dtype=torch.float64, exact=True):
    """A transformers model that computes what `model` does; exact=False leaves its norms and angles in float32."""
    c = model.config
    family = (transformers.Qwen3Config, transformers.Qwen3ForCausalLM) if c.qk_norm else (
        transformers.LlamaConfig, transformers.LlamaForCausalLM)
    config = family[0](
        vocab_size=c.vocab_size, hidden_size=c.d_model, intermediate_size=c.d_mlp, num_hidden_layers=c.n_layers,
        num_attention_heads=c.n_heads, num_key_value_heads=c.n_kv_heads, head_dim=c.d_head, hidden_act="silu",
        max_position_embeddings=c.context_length, rms_norm_eps=c.norm_eps, tie_word_embeddings=c.tied,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta}, attn_implementation="sdpa",
        pad_token_id=None, bos_token_id=None, eos_token_id=None)
    theirs = family[1](config).to(dtype).eval()
    if exact:
        theirs.model.rotary_emb = Rotary(c)
        for path, norm in list(theirs.named_modules()):
            if path.endswith("norm"): theirs.set_submodule(path, torch.nn.RMSNorm(norm.weight.shape[0], c.norm_eps).to(dtype))
    state = {their_name(name): torch.tensor(np.asarray(a), dtype=dtype) for name, a in model.state_dict().items()}
    if c.tied: state["lm_head.weight"] = state["model.embed_tokens.weight"]
    theirs.load_state_dict(state)
    return theirs


