"""Which layers of a model a method or a scheme applies to, chosen by name."""
from .hints import Targets
from .nn import Module

__all__ = ["TargetError", "match_targets"]


class TargetError(ValueError):
    """A target matches nothing, or something that cannot be adapted."""


def match_targets(model: Module, targets: Targets) -> list[tuple[str, Module]]:
    """[(path, layer)] of the linear layers in the blocks that `targets` name.

    targets: "all", or a tuple of names: the last part of a layer's path, such as "query", or the
    full path. Raises TargetError for a name that matches nothing, and for the embedding.
    """
    layers = {path: m for path, m in model.named_modules() if path.startswith("blocks.")
              and hasattr(m, "d_in") and not path.endswith(".base")}   # not the layer in a wrapper
    if targets == "all":
        return list(layers.items())
    if isinstance(targets, str) or not targets:
        raise TargetError("targets: expected a tuple of names such as ('query', 'value'), or "
                          f"'all', got {targets!r}")
    targets = tuple(targets)
    last = lambda path: path.rsplit(".", 1)[-1]
    for t in targets:
        if any(t in (path, last(path)) for path in layers): continue
        if t in ("token_embedding", "head"):
            raise TargetError(f"targets: {t!r} is the token embedding, which is tied to the output "
                              "head: a change meant for one end would change the other")
        names = ", ".join(sorted(set(map(last, layers))))
        raise TargetError(f"targets: {t!r} matches nothing; there are {names}, or full paths from "
                          f"{next(iter(layers))!r} to {list(layers)[-1]!r}")
    return [(path, m) for path, m in layers.items() if path in targets or last(path) in targets]
