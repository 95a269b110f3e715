"""Which layers a method or a scheme applies to, chosen by name. All of them follow this one rule.

A path is a row of parts, such as blocks.0.attention.query. A name lists some of a path's parts, in
the same order, and matches every path that has them:

    query            attention         the layer; every layer of the module
    blocks.0         blocks.0.query    every layer of the first block; one of them
    blocks.2-5       blocks.6-         of blocks 2, 3, 4 and 5; of block 6 and all later ones
    *norm*           blocks.[02].m*    a part may be a pattern, as of file names (`fnmatch`)
    !blocks.0        !*.mlp            leaves out what the rest of the name matches

Targets are a tuple of names, and each must match something. ("query", "mlp", "!blocks.0") chooses
what the first or the second matches and the third does not. If all names leave something out, they
leave it out of everything, and "all" is everything.

So chosen are the layers of `targets`, in `attach` and in `quantize`, and of IA3's `feedforward`;
the layers of a key of LoRA's `rank_pattern` or `alpha_pattern`; and the parameters of
`FullFineTuning.targets` and of a key of `train`'s `rates`, whose names end in one more part, such
as blocks.0.norm1.bias.
"""
import difflib
import itertools
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from ..common.hints import Targets
from ..engine.nn import Module

__all__ = ["TargetError", "chosen", "match_targets", "matches", "names_for"]

RANGE = re.compile("([0-9]{1,9})-([0-9]{0,9})")


class TargetError(ValueError):
    """A target matches nothing, or something that cannot be adapted."""


def match_targets(model: Module, targets: Targets) -> list[tuple[str, Module]]:
    """Return [(path, layer)] of the linear layers in the blocks that `targets` choose.

    Raises TargetError for a name that matches nothing, and for the embedding.
    """
    layers = {path: m for path, m in model.named_modules() if path.startswith("blocks.")
              and hasattr(m, "d_in") and not path.endswith(".base")}   # not the layer in a wrapper
    for end in "token_embedding", "head":
        if targets != "all" and end in targets and getattr(model, "lm_head", None) is None:
            raise TargetError(f"targets: {end!r} is the token embedding, which is tied to the "
                              "output head: a change meant for one end would change the other")
    return [(path, layers[path]) for path in chosen(layers, targets)]


def chosen(paths: Iterable[str], names: Targets, field: str = "targets",
           kind: str = "layers") -> list[str]:
    """Return the `paths` that `names` choose, in order; an error speaks of `field` and `kind`.

    Raises TargetError for no names, for a name that matches nothing, and if nothing is chosen.
    """
    paths = list(paths)
    if names == "all":
        return paths
    if isinstance(names, str) or not names or not all(isinstance(name, str) for name in names):
        raise TargetError(f"{field}: expected a tuple of names such as ('query', 'value'), or "
                          f"'all', got {names!r}")
    included, excluded = set(), set()
    for name in names:
        pattern = name.removeprefix("!")
        matching = [path for path in paths if matches(pattern, path)]
        if not matching:
            raise TargetError(f"{field}: {name!r} matches none of the {kind}; "
                              f"{_hint(pattern, paths, field, kind)}")
        (included if pattern == name else excluded).update(matching)
    if all(name.startswith("!") for name in names):
        included = set(paths)
    included -= excluded
    if not included:
        raise TargetError(f"{field}: {names!r} leaves out all that it chooses")
    return [path for path in paths if path in included]


def names_for(paths: Iterable[str], n_blocks: int) -> tuple[str, ...]:
    """Return targets that choose exactly the layers `paths`: their last parts if every block has
    them, else the paths."""
    paths = list(paths)
    names = dict.fromkeys(path.rpartition(".")[2] for path in paths)
    return tuple(names if len(paths) == len(names) * n_blocks else paths)


def matches(name: str, path: str) -> bool:
    """Has the path the parts of the name, in this order?"""
    parts = iter(path.split("."))
    return all(any(_is(pattern, part) for part in parts) for pattern in name.split("."))


def _is(pattern, part):
    ends = RANGE.fullmatch(pattern)
    if not ends:
        return fnmatchcase(part, pattern)
    return part.isdecimal() and int(ends[1]) <= int(part) <= int(ends[2] or part)


def _hint(name, paths, field, kind):
    """Say what to write instead of a name that matches nothing."""
    if kind == "targets":
        return f"{field} takes names of {', '.join(paths)}; add it to targets?"
    rows = [path.split(".") for path in paths]
    possible = {".".join(row[i:j]) for row in rows
                for i, j in itertools.combinations(range(len(row) + 1), 2)}
    near = difflib.get_close_matches(name, sorted(possible), 1)
    start = f"did you mean {near[0]!r}? There" if near else "there"
    parts = sorted({part for row in rows for part in row if not part.isdecimal()})
    return f"{start} are {', '.join(parts)}, in paths from {paths[0]!r} to {paths[-1]!r}"
