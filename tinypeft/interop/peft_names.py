"""What PEFT calls the layers of a model: the names of transformers' modules, from `families`.

    here, in blocks.N            GPT-2, in transformer.h.N    the others, in model.layers.N
    attention.query|key|value    attn.c_attn, all three       self_attn.q_proj|k_proj|v_proj
    attention.output             attn.c_proj                  self_attn.o_proj
    mlp.gate                     (none)                       mlp.gate_proj
    mlp.up, mlp.down             mlp.c_fc, mlp.c_proj         mlp.up_proj, mlp.down_proj
"""
from collections.abc import Collection
from dataclasses import dataclass

from ..models.decoder import Decoder
from ..peft import MethodError
from .families import FAMILIES, Family

__all__ = ["Names", "names_of"]


@dataclass(frozen=True)
class Names:
    """The names for one model. kind: its model_type. inner: a module of theirs with weights in a
    block, from top to bottom → our modules whose rows it stacks. layers: those that are linear.
    n_layers: how many blocks there are."""
    family: Family
    kind: str
    inner: dict[str, list[str]]
    layers: dict[str, list[str]]
    n_layers: int

    @property
    def blocks(self) -> str:
        """Return the path of their list of blocks."""
        return self.family.prefix + self.family.blocks

    @property
    def embedding(self) -> str:
        """Return their path of the token embedding."""
        return self.family.prefix + self.family.embedding

    @property
    def conv1d(self) -> bool:
        """Do their layers store W as (d_in, d_out)? PEFT calls it fan_in_fan_out."""
        return any(self.family.transposed.search(f".{layer}.weight") for layer in self.layers)

    def linear(self) -> list[str]:
        """Return the paths of all linear layers in the blocks."""
        return [f"{self.blocks}.{n}.{layer}" for n in range(self.n_layers) for layer in self.layers]

    def modules(self, lm_head: bool) -> list[str]:
        """Return the paths of all modules. lm_head: has the model one, or a classifier instead?"""
        f, top = self.family, self.family.prefix.rstrip(".")
        inner = dict.fromkeys([*self.inner, *f.idle]).keys() - self.layers.keys()
        inner |= {name.rpartition(".")[0] for name in inner | self.layers.keys()}
        outer = [f.blocks, *f.outer.keys() - {"lm_head"}, *f.idle_outer]
        others = [f"{self.blocks}.{n}.{m}".rstrip(".") for n in range(self.n_layers)
                  for m in sorted(inner)]
        return [*self.linear(), top, *(f"{top}.{name}" for name in outer), *others,
                *["lm_head"] * lm_head]

    def brief(self, paths: Collection[str]) -> list[str]:
        """Name modules briefly: one that all blocks have without its block, others by path."""
        names = []
        for theirs in self.inner:
            same = [path for path in paths if path.endswith(f".{theirs}")]
            names += [theirs] if len(same) == self.n_layers else same
        return names + [path for path in paths if not path.startswith(f"{self.blocks}.")]

    def ours(self, path: str) -> list[str]:
        """Return the paths of our layers that make up their linear layer `path`."""
        n, theirs = path.removeprefix(f"{self.blocks}.").split(".", 1)
        return [f"blocks.{n}.{part}" for part in self.layers[theirs]]


def names_of(model: Decoder) -> Names:
    """Return the names for a model. Raises MethodError for a family that transformers does not
    have."""
    family = next((f for f in FAMILIES if isinstance(model, f.model)), None)
    if family is None:
        raise MethodError(f"PEFT's folders are for {', '.join(f.model.__name__ for f in FAMILIES)},"
                          f" not for a {type(model).__name__}; only the format "
                          "tinypeft holds it")
    ours = dict(model.blocks[0].named_modules())
    inner = {theirs: parts for theirs, parts in family.modules.items() if parts[0] in ours}
    layers = {theirs: parts for theirs, parts in inner.items() if hasattr(ours[parts[0]], "d_in")}
    kind = next(iter(family.defaults))
    if getattr(model.config, "qkv_bias", False): kind = "qwen2"
    if getattr(model.config, "qk_norm", False): kind = "qwen3"
    return Names(family, kind, inner, layers, model.config.n_layers)
