"""Which layers of a model a method or a scheme is for, said by name."""

__all__ = ["TargetError", "match_targets"]


class TargetError(ValueError):
    """A target that names nothing, or something that cannot be adapted."""


def match_targets(model, targets):
    """[(path, layer)] of the linear layers in the blocks that `targets` name: last part of the path, or all of it.

    `targets` is a tuple of names such as ("query", "value"), or "all". Raises TargetError for a name that
    matches nothing, listing what exists, and for the embedding.
    """
    layers = {p: m for p, m in model.named_modules()
              if p.startswith("blocks.") and hasattr(m, "d_in") and not p.endswith(".base")}    # inside a layer: no target
    if targets == "all":
        return list(layers.items())
    if isinstance(targets, str) or not targets:
        raise TargetError(f"targets: expected a tuple of names such as ('query', 'value'), or 'all', got {targets!r}")
    hit = {t: [p for p in layers if p == t or p.rsplit(".", 1)[-1] == t] for t in targets}
    for t, paths in hit.items():
        if paths: continue
        if t in ("token_embedding", "head"):
            raise TargetError(f"targets: {t!r} is the token embedding, whose weight is also the output head (tied): "
                              "a change meant for one end would change the other")
        names = sorted({p.rsplit(".", 1)[-1] for p in layers})
        raise TargetError(f"targets: {t!r} matches nothing; there are {', '.join(names)}, or full paths from "
                          f"{next(iter(layers))!r} to {list(layers)[-1]!r}")
    wanted = {p for paths in hit.values() for p in paths}
    return [(p, m) for p, m in layers.items() if p in wanted]
