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
    if targets == "all": return list(layers.items())
    if isinstance(targets, str) or not targets:
        raise TargetError("targets: expected a tuple of names such as ('query', 'value'), or "
                          f"'all', got {targets!r}")
    names = {path: (path, path.rpartition(".")[2]) for path in layers}       # in full, and the last
    for t in tuple(targets):
        if any(t in both for both in names.values()): continue
        if t in ("token_embedding", "head") and getattr(model, "lm_head", None) is None:
            raise TargetError(f"targets: {t!r} is the token embedding, which is tied to the output "
                              "head: a change meant for one end would change the other")
        paths, last = list(layers), ", ".join(sorted({last for _, last in names.values()}))
        raise TargetError(f"targets: {t!r} matches nothing; there are {last}, or full paths from "
                          f"{paths[0]!r} to {paths[-1]!r}")
    return [(path, m) for path, m in layers.items() if set(names[path]) & set(targets)]
