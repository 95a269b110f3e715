"""How transformers writes one family of models: the names of its tensors, and its config.json."""
import re
from dataclasses import replace
from typing import Any, ClassVar

from ...models.decoder import Decoder

__all__ = ["Family", "Layout"]

Layout = dict[str, tuple[list[str], tuple[int, ...]]]    # their tensor → ours that it holds, shape


class Family:
    """One family of models; a subclass has its names.

    A tensor that holds several of ours holds their rows, one under the other. Beside the tensors of
    the layout a folder may have `lm_head.weight` where the head is tied to the embedding."""
    model: ClassVar[type[Decoder]]                       # our class
    parts: ClassVar[tuple[type, ...]]                    # the classes in its blocks, beside `nn`'s
    defaults: ClassVar[dict[str, dict[str, Any]]]        # model_type → fields that may be absent
    supported: ClassVar[dict[str, tuple]]                # field → values for which we are the same
    fields: ClassVar[dict[str, str]]                     # our size → their field
    prefix: ClassVar[str]                                # which all names but lm_head's may have
    embedding: ClassVar[str]                             # their token embedding
    outer: ClassVar[dict[str, str]]                      # their modules outside blocks → ours
    blocks: ClassVar[str]                                # their list of blocks
    modules: ClassVar[dict[str, list[str]]]              # their modules in a block → ours
    transposed: ClassVar[re.Pattern] = re.compile("(?!)")        # weights that are (d_in, d_out)
    buffers: ClassVar[re.Pattern]                        # constants that old files hold
    idle: ClassVar[tuple[str, ...]]                      # their modules without parameters,
    idle_outer: ClassVar[tuple[str, ...]]                # in a block and outside
    adapted: ClassVar[tuple[str, ...]]                   # what PEFT adapts unless told which layers

    def read(self, kind: str, content: dict[str, Any]) -> Any:
        """Return the fields of a config.json whose model_type is `kind` → our configuration, not
        yet compared with tensors. ValueError for one that describes another function."""
        raise NotImplementedError

    def write(self, config: Any) -> dict[str, Any]:
        """Our configuration → the fields of config.json. ValueError if transformers has no such
        model."""
        raise NotImplementedError

    def sizes(self, kind: str, content: dict[str, Any]) -> dict[str, Any]:
        """Our sizes, from `fields`. One that is absent has its default; null stays None."""
        there = self.defaults[kind] | content
        return {ours: there[theirs] for ours, theirs in self.fields.items()}

    def named(self, config: Any) -> dict[str, Any]:
        """Our sizes under the names of their fields."""
        return {theirs: getattr(config, ours) for ours, theirs in self.fields.items()}

    def layout(self, config: Any) -> Layout:
        """Their tensors, without the prefix. A part that the configuration lacks has none."""
        shapes = self.model.parameter_shapes(replace(config, n_layers=1))    # blocks are alike
        layout = self._tensors(shapes, "", {theirs: [ours] for theirs, ours in self.outer.items()})
        block = self._tensors(shapes, "blocks.0.", self.modules)
        for i in range(config.n_layers):
            for theirs, (ours, shape) in block.items():
                paths = [f"blocks.{i}.{name}" for name in ours]
                layout[f"{self.blocks}.{i}.{theirs}"] = paths, shape
        return layout

    def _tensors(self, shapes, path, modules):
        """Return a layout of modules whose parameters have `shapes`, named path + ours."""
        layout = {}
        for module, parts in modules.items():
            for kind in "weight", "bias":
                if f"{path}{parts[0]}.{kind}" not in shapes: continue
                rows, *columns = shapes[f"{path}{parts[0]}.{kind}"]
                theirs, shape = f"{module}.{kind}", (len(parts) * rows, *columns)
                layout[theirs] = ([f"{part}.{kind}" for part in parts],
                                  shape[::-1] if self.transposed.search(f".{theirs}") else shape)
        return layout
