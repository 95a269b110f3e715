"""How transformers writes one family of models: the names of its tensors, and its config.json."""
import re
from typing import Any, ClassVar

from ...decoder import Decoder

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

    def read(self, kind: str, content: dict[str, Any]) -> Any:
        """The fields of a config.json whose model_type is `kind` → our configuration, not yet
        compared with tensors. ValueError for one that describes another function."""
        raise NotImplementedError

    def write(self, config: Any) -> dict[str, Any]:
        """Our configuration → the fields of config.json. ValueError if transformers has no such
        model."""
        raise NotImplementedError

    def layout(self, config: Any) -> Layout:
        """Their tensors, without the prefix. A part that the configuration lacks has none."""
        layout, shapes = {}, self.model.parameter_shapes(config)
        names = {theirs: [ours] for theirs, ours in self.outer.items()}
        for i in range(config.n_layers):
            names |= {f"{self.blocks}.{i}.{theirs}": [f"blocks.{i}.{name}" for name in ours]
                      for theirs, ours in self.modules.items()}
        for module, paths in names.items():
            for kind in "weight", "bias":
                if f"{paths[0]}.{kind}" not in shapes: continue
                theirs, ours = f"{module}.{kind}", [f"{path}.{kind}" for path in paths]
                rows, *columns = shapes[ours[0]]
                shape = len(ours) * rows, *columns
                layout[theirs] = ours, shape[::-1] if self.transposed.search(theirs) else shape
        return layout
