"""transformers' Llama, Qwen2, Qwen3 and Gemma 3 with the weights of one of ours.

transformers computes norms, angles and Gemma's √d in float32, whatever the model's dtype. `exact` replaces them by the
model's own.
"""
import math
from unittest import mock

import numpy as np
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tinypeft.models.gemma import GemmaConfig

__all__ = ["their_name", "torch_llama"]

# our part of a name → theirs
TOP = {"token_embedding": "model.embed_tokens", "final_norm": "model.norm", "blocks": "model.layers",
       "lm_head": "lm_head"}
PARTS = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm", "attention": "self_attn", "mlp": "mlp",
         "query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj", "query_norm": "q_norm",
         "key_norm": "k_norm", "gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
OF_GEMMA = {"post_norm1": "post_attention_layernorm", "norm2": "pre_feedforward_layernorm",
            "post_norm2": "post_feedforward_layernorm"}


def their_name(name: str, gemma: bool = False) -> str:
    first, *rest = name.split(".")
    parts = PARTS | OF_GEMMA if gemma else PARTS
    return ".".join([TOP[first], *(parts.get(part, part) for part in rest)])


class Rotary(torch.nn.Module):
    """The angles of positions, in the precision of the model. theta: their base, or that of each type of layer. Stretched
    ones are computed by transformers' own functions, in float64."""

    def __init__(self, theta, d_head, config):
        super().__init__()
        self.theta, self.exponents = theta, -2 * torch.arange(d_head // 2, dtype=torch.float64) / d_head
        self.config = config

    def forward(self, x, position_ids, layer_type=None):
        theta = self.theta if layer_type is None else self.theta[layer_type]
        f, magnitude = theta ** self.exponents, 1.0
        kind = self.config.rope_parameters.get("rope_type", "default")
        if kind != "default":
            with mock.patch.object(torch, "float", torch.float64), mock.patch.object(torch, "float32", torch.float64):
                f, magnitude = ROPE_INIT_FUNCTIONS[kind](self.config, "cpu", int(position_ids.max()) + 1)
        assert f.dtype == torch.float64
        phi = position_ids[..., None].to(torch.float64) * f
        phi = torch.cat([phi, phi], -1)
        return (phi.cos() * magnitude).to(x.dtype), (phi.sin() * magnitude).to(x.dtype)


class Norm(torch.nn.RMSNorm):
    """An RMSNorm in the precision of the model, by `offset` + weight."""

    def __init__(self, like, eps, offset):
        super().__init__(like.weight.shape[0], eps)
        self.offset = offset

    def forward(self, x):
        return torch.nn.functional.rms_norm(x, self.normalized_shape, self.offset + self.weight, self.eps)


def theirs_of(c):
    """(transformers' model, the base of its angles)."""
    gemma = isinstance(c, GemmaConfig)
    common = dict(
        vocab_size=c.vocab_size, hidden_size=c.d_model, intermediate_size=c.d_mlp, num_hidden_layers=c.n_layers,
        num_attention_heads=c.n_heads, num_key_value_heads=c.n_kv_heads, head_dim=c.d_head,
        max_position_embeddings=c.context_length, rms_norm_eps=c.norm_eps, tie_word_embeddings=gemma or c.tied,
        attn_implementation="sdpa", pad_token_id=None, bos_token_id=None, eos_token_id=None)
    if not gemma:
        name = "Qwen3" if c.qk_norm else "Qwen2" if c.qkv_bias else "Llama"
        rope = {"rope_type": c.rope_kind, "rope_theta": c.rope_theta}
        if c.rope_kind != "default": rope["factor"] = c.rope_factor
        if c.rope_kind in ("llama3", "yarn"): rope["original_max_position_embeddings"] = c.rope_context
        if c.rope_kind == "llama3": rope |= {"low_freq_factor": c.rope_low, "high_freq_factor": c.rope_high}
        if c.rope_kind == "yarn":
            rope |= {"beta_slow": c.rope_low, "beta_fast": c.rope_high, "attention_factor": c.rope_magnitude}
        if c.rope_kind == "dynamic": common["max_position_embeddings"] = c.rope_context
        config = getattr(transformers, f"{name}Config")(**common, hidden_act="silu", rope_parameters=rope)
        return getattr(transformers, f"{name}ForCausalLM")(config), c.rope_theta
    theta = {"full_attention": c.rope_theta, "sliding_attention": c.local_theta}
    rope = {kind: {"rope_type": "default", "rope_theta": base} for kind, base in theta.items()}
    return transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(
        **common, hidden_activation="gelu_pytorch_tanh", sliding_window=c.window, sliding_window_pattern=c.global_every,
        query_pre_attn_scalar=c.query_scale, rope_parameters=rope)), theta


def torch_llama(model, dtype=torch.float64, exact=True):
    """A transformers model that computes what `model` does; exact=False leaves its norms and angles in float32."""
    c = model.config
    theirs, theta = theirs_of(c)
    theirs, gemma = theirs.to(dtype).eval(), isinstance(c, GemmaConfig)
    if exact:
        theirs.model.rotary_emb = Rotary(theta, c.d_head, theirs.config)
        for path, norm in list(theirs.named_modules()):
            if path.endswith("norm"): theirs.set_submodule(path, Norm(norm, c.norm_eps, float(gemma)).to(dtype))
        if gemma: theirs.model.embed_tokens.embed_scale = torch.tensor(math.sqrt(c.d_model), dtype=torch.float64)
    tensor = lambda a: torch.tensor(np.asarray(a), dtype=dtype)
    state = {their_name(name, gemma): tensor(a) for name, a in model.state_dict().items()}
    if "lm_head.weight" not in state: state["lm_head.weight"] = state["model.embed_tokens.weight"]
    theirs.load_state_dict(state)
    return theirs
