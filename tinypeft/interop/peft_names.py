"""What PEFT calls the layers of a model: transformers' names, family by family.

    here, in blocks.N            GPT-2, in transformer.h.N    Llama, Qwen3, in model.layers.N
    attention.query|key|value    attn.c_attn, all three       self_attn.q_proj|k_proj|v_proj
    attention.output             attn.c_proj                  self_attn.o_proj
    mlp.gate                     (none)                       mlp.gate_proj
    mlp.up, mlp.down             mlp.c_fc, mlp.c_proj         mlp.up_proj, mlp.down_proj

A family with the same names needs one entry in `FAMILIES`, any other one a table as well.
"""
from dataclasses import dataclass

from ..decoder import Decoder
from ..peft import MethodError

__all__ = ["FAMILIES", "GPT2", "LLAMA", "Names", "names_of"]


@dataclass(frozen=True)
class Names:
    """Their names for one family.

    blocks: the path of the list of blocks. layers: a linear layer in a block, from top to bottom →
    our layers whose rows its matrix stacks. inner, outer: modules that are not linear, in a block
    and outside of the blocks. default: the target_modules that PEFT takes if a folder names none.
    conv1d: do their layers store W as (d_in, d_out)? PEFT calls it fan_in_fan_out."""
    family: str
    blocks: str
    layers: dict[str, tuple[str, ...]]
    inner: tuple[str, ...]
    outer: tuple[str, ...]
    default: tuple[str, ...]
    conv1d: bool = False

    def linear(self, n_layers: int) -> list[str]:
        """The paths of all linear layers in the blocks."""
        return [f"{self.blocks}.{n}.{layer}" for n in range(n_layers) for layer in self.layers]

    def modules(self, n_layers: int, lm_head: bool) -> list[str]:
        """The paths of all modules. lm_head: does the model have one, or a classifier instead?"""
        inner = [f"{self.blocks}.{n}{m and '.'}{m}" for n in range(n_layers) for m in self.inner]
        return [*self.linear(n_layers), *self.outer, *inner, *["lm_head"] * lm_head]

    def ours(self, path: str) -> list[str]:
        """The paths of our layers that make up their linear layer `path`."""
        n, theirs = path.removeprefix(f"{self.blocks}.").split(".", 1)
        return [f"blocks.{n}.{part}" for part in self.layers[theirs]]


GPT2 = Names(
    "GPT-2", "transformer.h", conv1d=True, default=("c_attn",),
    layers={"attn.c_attn": ("attention.query", "attention.key", "attention.value"),
            "attn.c_proj": ("attention.output",), "mlp.c_fc": ("mlp.up",),
            "mlp.c_proj": ("mlp.down",)},
    inner=("", "attn", "mlp", "ln_1", "ln_2", "attn.attn_dropout", "attn.resid_dropout", "mlp.act",
           "mlp.dropout"),
    outer=("transformer", "transformer.wte", "transformer.wpe", "transformer.drop",
           "transformer.h", "transformer.ln_f"))
LLAMA = Names(
    "the Llama family", "model.layers", default=("q_proj", "v_proj"),
    layers={"self_attn.q_proj": ("attention.query",), "self_attn.k_proj": ("attention.key",),
            "self_attn.v_proj": ("attention.value",), "self_attn.o_proj": ("attention.output",),
            "mlp.gate_proj": ("mlp.gate",), "mlp.up_proj": ("mlp.up",),
            "mlp.down_proj": ("mlp.down",)},
    inner=("", "self_attn", "self_attn.q_norm", "self_attn.k_norm", "mlp", "mlp.act_fn",
           "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
           "post_feedforward_layernorm"),
    outer=("model", "model.embed_tokens", "model.layers", "model.norm", "model.rotary_emb"))
FAMILIES = {"GPT": GPT2, "Llama": LLAMA, "Gemma": LLAMA}         # by the name of our model's class


def names_of(model: Decoder) -> Names:
    """The names for a model's family. Raises MethodError for a family without an entry."""
    if names := next((FAMILIES[cls.__name__] for cls in type(model).__mro__
                      if cls.__name__ in FAMILIES), None): return names
    raise MethodError(f"PEFT's folders are known for {', '.join(FAMILIES)}, not for a "
                      f"{type(model).__name__}; save the adapter in our own format")
