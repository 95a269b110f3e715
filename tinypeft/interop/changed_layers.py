"""Methods on changed layers in PEFT's folders, both ways, as a row of a table says.

A `Row` says which of our fields and arrays are which of theirs. `changed_table` has one for each
method. Most need no more: the arrays that the method itself would put on the model say what shapes
the tensors must have, and those that a folder lacks are as the method makes them.

PEFT has some of these methods for layers of the class Linear alone. GPT-2's are of another class,
Conv1D. Where it has one for GPT-2, too, c_attn has one for query, key and value together, and here
each has its own.
"""
import math
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..common.hints import Array
from ..models.decoder import Decoder
from ..models.targets import names_for
from ..peft import Method, MethodError
from ..peft.method import Wrapper
from ..peft.model import PeftModel
from ..peft.part import own_state
from .lowrank import State, adapted_layers, check_kinds, linear_layers, plain_number
from .peft_config import PREFIX, Config, Tensors
from .peft_names import names_of

__all__ = ["Layout", "Row", "changed_folder", "fields_of", "method_of", "our_path", "read_changed",
           "read_plain", "take", "write_plain"]

Layout = Callable[[Array, Method], Array]

TOP = "base_model."                                      # in front of what layers share
TARGET_FIELDS = {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"}
PATTERNS = {"r": "rank_pattern", "alpha": "alpha_pattern",     # their field → by layer
            "n_frequency": "n_frequency_pattern"}
ONLY_TRAINING = {"init_weights", "rank_dropout", "module_dropout"}


@dataclass(frozen=True)
class Row:
    """How PEFT's folders hold one method.

    method, layer: its class here, and that of its wrappers. fields: our field → theirs, and the
    value of a file that has none. tensors: our array → theirs. shared: the same, of the method's
    arrays. there, back: our array → what makes theirs of it, or ours of theirs, for the method.
    needed: their field → the value that it must have. ignored: their fields that change nothing
    after training. conv1d: has PEFT it for GPT-2's layers? write, read: as `write_plain` and
    `read_plain`.
    """
    peft_type: str
    method: type[Method]
    layer: type[Wrapper]
    fields: Mapping[str, tuple[str, Any]]
    tensors: Mapping[str, str] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    there: Mapping[str, Layout] = field(default_factory=dict)
    back: Mapping[str, Layout] = field(default_factory=dict)
    needed: Mapping[str, Any] = field(default_factory=dict)
    ignored: Set[str] = frozenset()
    conv1d: bool = False
    write: Callable[..., tuple[dict[str, Any], State]] | None = None
    read: Callable[..., tuple[Method, State]] | None = None

    def to_theirs(self, name: str, array: Array, method: Method) -> Array:
        """Lay out our array `name` as PEFT does."""
        return self.there[name](array, method) if name in self.there else array

    def to_ours(self, name: str, array: Array, method: Method) -> Array:
        """Lay out PEFT's array of our `name` as we do."""
        return self.back[name](array, method) if name in self.back else array


# -- to a folder -----------------------------------------------------------------------------------
def changed_folder(tuned: PeftModel, row: Row,
                   method: Method) -> tuple[dict[str, Any], dict[str, Array]]:
    """(config, tensors) of a model tuned by `method`, whose row is `row`."""
    names, layers = names_of(tuned.model), dict(adapted_layers(tuned))
    if names.conv1d and not row.conv1d:
        raise MethodError(f"save: PEFT has {row.method.__name__} for layers of the class Linear, "
                          "and GPT-2's are Conv1D there; only the format tinypeft holds it")
    for path, wrappers in layers.items():
        check_kinds(path, wrappers, [row.layer])
    fields, tensors = (row.write or write_plain)(row, method, layers)
    if row.conv1d:
        fields["fan_in_fan_out"] = names.conv1d
    fields |= {"peft_type": row.peft_type, "target_modules": names.brief(layers),
               "init_weights": True, **row.needed}
    tensors = {PREFIX + name: array for name, array in tensors.items()}
    first = next(wrapper for wrappers in layers.values() for wrapper in wrappers if wrapper)
    for name, theirs in row.shared.items():
        tensors[TOP + theirs] = row.to_theirs(name, first.shared[name], method)
    return fields, tensors


def write_plain(row: Row, method: Method,
                layers: Mapping[str, list]) -> tuple[dict[str, Any], State]:
    """Name fields and arrays as PEFT does. layers: their path → our wrappers, or None."""
    tensors = {}
    for path, (layer, *others) in layers.items():
        if others:
            raise MethodError(f"save: PEFT has one {row.method.__name__} for {path}, which is "
                              "query, key and value in one; give other targets, or take the "
                              "format tinypeft")
        for ours, theirs in row.tensors.items():
            array = getattr(layer, ours).data
            tensors[f"{path}.{theirs}"] = row.to_theirs(ours, array, method)
    return fields_of(row, method), tensors


def fields_of(row: Row, method: Method) -> dict[str, Any]:
    """Name the method's fields as PEFT does."""
    return {theirs: as_written(getattr(method, ours)) for ours, (theirs, _) in row.fields.items()}


def as_written(value):
    """Make a whole float an int, as PEFT writes it."""
    return plain_number(value) if isinstance(value, float) else value


# -- from a folder ---------------------------------------------------------------------------------
def read_changed(row: Row, model: Decoder, config: Config,
                 tensors: Tensors) -> tuple[Method | None, State]:
    """(method, state) for a folder of the row's peft_type; method is None if no layer's tensors are
    there, or not those that layers share."""
    names = names_of(model)
    if names.conv1d and not row.conv1d:
        raise config.unsupported("peft_type", "PEFT has it for layers of the class Linear, and "
                                 "GPT-2's are Conv1D there")
    known = {name for name, _ in row.fields.values()}
    patterns = {PATTERNS[name] for name in known & PATTERNS.keys()}
    config.refuse_unknown(known | patterns | row.needed.keys() | TARGET_FIELDS | ONLY_TRAINING
                          | row.ignored)
    for name, value in row.needed.items():
        if config.get(name, (type(value), str), value) != value:         # a str may name a variant
            raise config.unsupported(name, f"here it must be {value!r}")
    layers = {path: (d_in, d_out) for path, d_in, d_out in linear_layers(model, config)}
    method, state = (row.read or read_plain)(row, model, config, tensors, layers)
    paths = dict.fromkeys(name.rpartition(".")[0] for name in state
                          if not name.startswith("shared."))
    if not paths or not {f"shared.{name}" for name in row.shared} <= state.keys():
        return None, {}
    method = replace(method, targets=names_for(paths, model.config.n_layers))
    if row.shared:
        state |= cut_shared(model, method, state)
    return method, state


def cut_shared(model, method, state):
    """Cut what layers share to the size of those whose tensors are there."""
    made = method.shared(model, np.random.default_rng(0))
    return {f"shared.{name}": state[f"shared.{name}"][tuple(map(slice, array.shape))]
            for name, array in made.items()}


def method_of(row: Row, config: Config, paths: Iterable[str]) -> Method:
    """Make the method of the fields; its targets are still to be named."""
    values = {}
    for ours, (theirs, default) in row.fields.items():
        kind = type(default)
        value = config.get(theirs, kind, default)
        if theirs in PATTERNS and PATTERNS[theirs] not in row.ignored:
            pattern = PATTERNS[theirs]
            per_layer = {config.pattern_value(pattern, kind, path, value) for path in paths}
            if len(per_layer) > 1:
                raise config.unsupported(pattern, f"a {row.method.__name__} has one {ours} here")
            (value,) = per_layer
        values[ours] = as_written(value)
    return row.method(**values)


def read_plain(row: Row, model: Decoder, config: Config, tensors: Tensors,
               layers: Mapping[str, tuple[int, int]],
               method: Method | None = None) -> tuple[Method, State]:
    """Read arrays of the shapes that the method gives them. layers: their path → (d_in, d_out).
    method: that of the fields, if it is known. A method's other arrays are as it makes them."""
    from ..peft.metered import Metered  # not above: numpy.random would load with the package
    method = method or method_of(row, config, layers)
    ours = {path: our_path(row, model, config, path) for path in layers}
    method = replace(method, targets=tuple(ours.values()))
    rng = Metered(sum(math.prod(tensors.file.shape(name)) for name in tensors.file))
    state = {}
    for name, array in method.shared(model, rng).items():
        state[f"shared.{name}"] = take(row, method, tensors, name, array, TOP + row.shared[name])
    wrappers = method.wrap(model, rng)
    for path in layers:
        made = own_state(wrappers[ours[path]])
        for name, theirs in row.tensors.items():
            made[name] = take(row, method, tensors, name, made[name], f"{PREFIX}{path}.{theirs}")
        if all(array is not None for array in made.values()):
            state |= {f"{ours[path]}.{name}": array for name, array in made.items()}
    return method, {name: array for name, array in state.items() if array is not None}


def take(row: Row, method: Method, tensors: Tensors, name: str, made: Array,
         theirs: str) -> Array | None:
    """Take the tensor `theirs` in place of `made`, our array `name`; None if it is missing."""
    array = tensors.take(theirs, row.to_theirs(name, made, method).shape)
    return None if array is None else row.to_ours(name, array, method)


def our_path(row: Row, model: Decoder, config: Config, path: str) -> str:
    """Find our layer that is theirs at `path`."""
    ours, *others = names_of(model).ours(path)
    if others:
        raise config.unsupported("target_modules", f"{path} is three layers here, each with a "
                                 f"{row.method.__name__} of its own")
    return ours
