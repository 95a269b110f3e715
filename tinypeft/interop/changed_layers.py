"""Methods on changed layers in PEFT's folders, both ways: a table with a row for each method.

    here           peft_type   tensors, after base_model.model.<their layer>
    LoHa B₁, A₁    LOHA        .hada_w1_a, .hada_w1_b          (d_out, r), (r, d_in)
         B₂, A₂                .hada_w2_a, .hada_w2_b          the same
    LoKr C         LOKR        .lokr_w1                        (u, v)
         B, A                  .lokr_w2_a, .lokr_w2_b          (d_out/u, r), (r, d_in/v)
         B A                   .lokr_w2, if r is at least half of its longer side
    HiRA B, A      HIRA        .hira_B, .hira_A                (d_out, r), (r, d_in)

A row says which of our fields and arrays are which of theirs. Most need no more: the arrays of the
method that the fields describe say what shapes the tensors must have. LoKr and HiRA have functions
of their own, for these reasons:

* LoKr. PEFT trains a whole matrix where the product B A would not be smaller. Here it becomes the
  product of this matrix and the identity, so the rank can grow. `decompose_both` makes C a product,
  which is multiplied out.
* HiRA. PEFT has it for GPT-2, too, whose query, key and value are one matrix, c_attn. As in LoRA,
  our pairs become one pair with zeros, and back (`lowrank`).

Where ranks differ, ours are filled up to the largest one with zeros, which training leaves at 0.
PEFT has the other methods for layers of the class Linear, and GPT-2's are of another class.
"""
import math
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..common.hints import Array
from ..models.decoder import Decoder
from ..models.targets import names_for
from ..peft import C3A, FourierFT, HiRA, LoHa, LoKr, Method, MethodError, RandLoRA, VeRA
from ..peft.c3a import CircularLinear
from ..peft.fourierft import FourierLinear, draw
from ..peft.hadamard import HiRALinear, LoHaLinear, LoKrLinear, divisor
from ..peft.metered import Metered
from ..peft.method import Wrapper
from ..peft.model import PeftModel
from ..peft.part import own_state
from ..peft.randlora import RandLoRALinear
from ..peft.vera import VeRALinear
from .lowrank import State, adapted_layers, exceptions, linear_layers, most_common, plain_number, split, stack
from .peft_config import PREFIX, Config, Tensors
from .peft_names import names_of

__all__ = ["ROWS", "Row", "changed_folder", "read_changed", "read_plain", "row_of"]

Layout = Callable[[Array, Method], Array]
Pair = tuple[Array, Array]                               # of matrices B (d_out, r) and A (r, d_in)

TOP = "base_model."                                      # in front of what layers share
TARGET_FIELDS = {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"}
PATTERNS = {"r": "rank_pattern", "alpha": "alpha_pattern",     # their field → its values for layers
            "n_frequency": "n_frequency_pattern"}
ONLY_TRAINING = {"init_weights", "rank_dropout", "module_dropout"}


@dataclass(frozen=True)
class Row:
    """How PEFT's folders hold one method.

    method, layer: its class here, and that of its wrappers. fields: our field → theirs, and the
    value of a file that has none. tensors: our array → theirs. shared: our array of the method →
    theirs. there, back: our array → what makes theirs of it, or ours of theirs, for the method.
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


def row_of(method: Method) -> Row | None:
    """Find the row of a method; None if it has none."""
    return next((row for row in ROWS if isinstance(method, row.method)), None)


# -- to a folder -----------------------------------------------------------------------------------
def changed_folder(tuned: PeftModel, row: Row,
                   method: Method) -> tuple[dict[str, Any], dict[str, Array]]:
    """(config, tensors) of a model tuned by `method`, whose row is `row`."""
    names, layers = names_of(tuned.model), dict(adapted_layers(tuned))
    if names.conv1d and not row.conv1d:
        raise MethodError(f"save: PEFT has {row.method.__name__} for layers of the class Linear, "
                          "and GPT-2's are Conv1D there; save it in our own format")
    check_kinds(row, layers)
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


def check_kinds(row, layers):
    """Raise MethodError for a wrapper of another class, which may compute something else."""
    for path, wrappers in layers.items():
        for wrapper in filter(None, wrappers):
            if type(wrapper) is not row.layer:
                raise MethodError(f"save: a {type(wrapper).__name__} on {path} may do more than a "
                                  f"{row.layer.__name__} does; save it in our own format")


def write_plain(row: Row, method: Method,
                layers: Mapping[str, list]) -> tuple[dict[str, Any], State]:
    """Name fields and arrays as PEFT does. layers: their path → our wrappers, or None for some."""
    tensors = {}
    for path, (layer, *others) in layers.items():
        if others:
            raise MethodError(f"save: PEFT has one {row.method.__name__} for {path}, which is "
                              "query, key and value in one; give other targets, or save it in our "
                              "own format")
        for ours, theirs in row.tensors.items():
            array = getattr(layer, ours).data
            tensors[f"{path}.{theirs}"] = row.to_theirs(ours, array, method)
    return fields_of(row, method), tensors


def fields_of(row, method):
    """Name the method's fields as PEFT does."""
    return {theirs: as_written(getattr(method, ours)) for ours, (theirs, _) in row.fields.items()}


def as_written(value):
    """Make a whole float an int, as PEFT writes it."""
    return plain_number(value) if isinstance(value, float) else value


# -- from a folder ---------------------------------------------------------------------------------
def read_changed(model: Decoder, config: Config, tensors: Tensors) -> tuple[Method | None, State]:
    """(method, state) for a peft_type of `ROWS`; method is None if no layer's tensors are there."""
    row = next(row for row in ROWS if row.peft_type == config.fields["peft_type"])
    names = names_of(model)
    if names.conv1d and not row.conv1d:
        raise config.unsupported("peft_type", "PEFT has it for layers of the class Linear, and "
                                 "GPT-2's are Conv1D there")
    known = {name for name, _ in row.fields.values()}
    patterns = {PATTERNS[name] for name in known & PATTERNS.keys()}
    config.refuse_unknown(known | patterns | row.needed.keys() | TARGET_FIELDS | ONLY_TRAINING
                          | row.ignored)
    for name, value in row.needed.items():
        if config.get(name, type(value), value) != value:
            raise config.unsupported(name, f"here it must be {value!r}")
    layers = {path: (d_in, d_out) for path, d_in, d_out in linear_layers(model, config)}
    method, state = (row.read or read_plain)(row, model, config, tensors, layers)
    paths = dict.fromkeys(name.rpartition(".")[0] for name in state
                          if not name.startswith("shared."))
    if not paths or not {f"shared.{name}" for name in row.shared} <= state.keys():
        return None, {}
    return replace(method, targets=names_for(paths, model.config.n_layers)), state


def method_of(row, config, paths):
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


def take(row, method, tensors, name, made, theirs):
    """Take the tensor `theirs` in place of `made`, our array `name`; None if it is missing."""
    array = tensors.take(theirs, row.to_theirs(name, made, method).shape)
    return None if array is None else row.to_ours(name, array, method)


def our_path(row, model, config, path):
    """Find our layer that is theirs at `path`."""
    ours, *others = names_of(model).ours(path)
    if others:
        raise config.unsupported("target_modules", f"{path} is three layers here, each with a "
                                 f"{row.method.__name__} of its own")
    return ours


def filled_up(pairs: Mapping[str, Pair]) -> State:
    """Fill pairs (B, A) up to the largest rank by zeros: our path → pair becomes a part's state."""
    most, state = max(len(A) for _, A in pairs.values()), {}
    for ours, (B, A) in pairs.items():
        more = 0, most - len(A)
        state[f"{ours}.B"] = np.pad(B, ((0, 0), more))
        state[f"{ours}.A"] = np.pad(A, (more, (0, 0)))
    return state


# -- LoKr ------------------------------------------------------------------------------------------
def write_lokr(row, method, layers):
    """Write LoKr, as `write_plain` does. B A is one matrix where PEFT has it so."""
    tensors = {}
    for path, (layer,) in layers.items():
        B, A = layer.B.data, layer.A.data
        tensors[f"{path}.lokr_w1"] = layer.C.data
        if is_whole(len(A), (len(B), A.shape[1])):
            tensors[f"{path}.lokr_w2"] = B @ A
        else:
            tensors |= {f"{path}.lokr_w2_a": B, f"{path}.lokr_w2_b": A}
    return fields_of(row, method), tensors


def is_whole(r, shape):
    """Does PEFT hold a matrix of this shape as a whole, and not as a product of rank r?"""
    return r >= max(shape) / 2


def read_lokr(row, model, config, tensors, layers):
    """Read LoKr, as `read_plain` does. The rank is the largest that a layer needs."""
    method = method_of(row, config, layers)
    r_C = method.rank if config.get("decompose_both", bool, False) else math.inf
    pairs, state = {}, {}
    for path, (d_in, d_out) in layers.items():
        ours = our_path(row, model, config, path)
        u, v = divisor(d_out), divisor(d_in)
        C = take_product(tensors, f"{path}.lokr_w1", (u, v), r_C)
        BA = take_product(tensors, f"{path}.lokr_w2", (d_out // u, d_in // v), method.rank)
        if C is None or BA is None:
            continue
        with np.errstate(over="ignore", invalid="ignore"):       # what is not finite is refused
            state[f"{ours}.C"] = C[0] @ C[1]
        pairs[ours] = BA
    if not state:
        return method, state
    r = max(len(A) for _, A in pairs.values())
    alpha = method.alpha if r == method.rank else method.alpha / method.rank * r
    return replace(method, rank=r, alpha=alpha), state | filled_up(pairs)


def take_product(tensors, name, shape, r):
    """Take two factors of a matrix, (rows, r) and (r, columns). A whole matrix is the product of
    itself and the identity. None if tensors are missing."""
    rows, columns = shape
    name, reason = PREFIX + name, f"r = {r}"
    if not is_whole(r, shape):
        left = tensors.take(f"{name}_a", (rows, r), reason)
        right = tensors.take(f"{name}_b", (r, columns), reason)
        return None if left is None or right is None else (left, right)
    M = tensors.take(name, shape, reason)
    if M is None:
        return None
    identity = np.eye(min(shape), dtype=M.dtype)
    return (identity, M) if rows < columns else (M, identity)


# -- HiRA ------------------------------------------------------------------------------------------
def write_hira(row, method, layers):
    """Write HiRA, as `write_plain` does. PEFT has one rank, so it is the largest of the pairs."""
    pairs = {path: stack([wrapper and (wrapper.B.data, wrapper.A.data) for wrapper in wrappers])
             for path, wrappers in layers.items()}
    state = filled_up(pairs)
    tensors = {}
    for path in pairs:
        tensors |= {f"{path}.hira_A": state[f"{path}.A"], f"{path}.hira_B": state[f"{path}.B"]}
    r = len(tensors[f"{path}.hira_A"])
    return fields_of(row, method) | {"r": r}, tensors


def read_hira(row, model, config, tensors, layers):
    """Read HiRA, as `read_plain` does. A pair of c_attn becomes three. What is 0 in both matrices
    of a pair is left out. PEFT does not look at rank_pattern."""
    method, pairs = method_of(row, config, layers), {}
    reason = f"r = {method.rank}"
    for path, (d_in, d_out) in layers.items():
        A = tensors.take(f"{PREFIX}{path}.hira_A", (method.rank, d_in), reason)
        B = tensors.take(f"{PREFIX}{path}.hira_B", (d_out, method.rank), reason)
        if A is None or B is None:
            continue
        kept = A.any(1) | B.any(0)
        kept[0] |= not kept.any()
        A, B = A[kept], B[:, kept]
        for ours, rows, used in split(names_of(model).ours(path), B):
            pairs[ours] = rows[:, used], A[used]
    if not pairs:
        return method, {}
    rank = max(len(A) for _, A in pairs.values())
    return replace(method, rank=rank), filled_up(pairs)


# -- FourierFT and C3A ------------------------------------------------------------------------------
def write_fourier(row, method, layers):
    """Write FourierFT, as `write_plain` does. PEFT draws the entries anew from the seed."""
    for path, (layer, *_) in layers.items():
        size = layer.d_out * layer.d_in
        places = draw(method.frequencies, size, method.seed)
        if not np.array_equal(layer.E[0] * layer.d_in + layer.E[1], places):
            raise MethodError(f"save: the entries of {path} are not those of the seed "
                              f"{method.seed}, from which PEFT draws them; save it in our own "
                              "format")
    return write_plain(row, method, layers)


def write_c3a(row, method, layers):
    """Write C³A, as `write_plain` does, with the block sizes."""
    fields, tensors = write_plain(row, method, layers)
    sizes = {path: layer.w.shape[2] for path, (layer,) in layers.items()}
    usual = most_common(sizes)
    return fields | {"block_size": usual, "block_size_pattern": exceptions(sizes, usual)}, tensors


def read_c3a(row, model, config, tensors, layers):
    """Read C³A, as `read_plain` does, of one block size or of the largest ones."""
    usual = config.get("block_size", int, 256)
    sizes = {path: config.pattern_value("block_size_pattern", int, path, usual) for path in layers}
    if len({*sizes.values()}) == 1:
        method = C3A(sizes.popitem()[1])
    elif sizes == {path: math.gcd(*sides) for path, sides in layers.items()}:
        method = C3A()
    else:
        raise config.unsupported("block_size_pattern", "blocks are all equal here, or the largest "
                                 "that fit each layer")
    return read_plain(row, model, config, tensors, layers, method)


# -- VeRA and RandLoRA -----------------------------------------------------------------------------
def write_randlora(row, method, layers):
    """Write RandLoRA, as `write_plain` does. As in PEFT, A and B are in each layer once more."""
    fields, tensors = write_plain(row, method, layers)
    for path, (layer,) in layers.items():
        for name, theirs in row.shared.items():
            tensors[f"{path}.{theirs}"] = row.to_theirs(name, layer.shared[name], method)
    return fields, tensors


def read_randlora(row, model, config, tensors, layers):
    """Read RandLoRA, as `read_plain` does. The layers' A and B must be the method's."""
    method, state = read_plain(row, model, config, tensors, layers)
    for name, theirs in row.shared.items():
        shared = state.get(f"shared.{name}")
        if shared is None:
            continue
        for path in layers:
            copy = take(row, method, tensors, name, shared, f"{PREFIX}{path}.{theirs}")
            if copy is not None and not np.array_equal(copy, shared):
                raise ValueError(f"{tensors.path}: {path}.{theirs} differs from {TOP}{theirs}; "
                                 "all layers share one")
    return method, state


def columns_apart(B, method):
    """Lay out B (D, n r) as (D, n, r)."""
    return B.reshape(len(B), -1, method.rank)


def columns_joined(B, method):
    """Lay out B (D, n, r) as (D, n r)."""
    return B.reshape(len(B), -1)


# -- the table -------------------------------------------------------------------------------------
SCALED = {"rank": ("r", 8), "alpha": ("alpha", 8.0)}
SEEDED = {"projection_prng_key"}
ROWS = [
    Row("LOHA", LoHa, LoHaLinear, SCALED,
        {"B1": "hada_w1_a", "A1": "hada_w1_b", "B2": "hada_w2_a", "A2": "hada_w2_b"},
        ignored={"use_effective_conv2d"}),
    Row("LOKR", LoKr, LoKrLinear, SCALED,
        needed={"decompose_factor": -1},                 # C is as nearly square as it can be
        ignored={"use_effective_conv2d", "rank_dropout_scale", "decompose_both"},
        write=write_lokr, read=read_lokr),
    Row("HIRA", HiRA, HiRALinear, {"rank": ("r", 32), "dropout": ("hira_dropout", 0.0)},
        ignored={"rank_pattern"}, conv1d=True, write=write_hira, read=read_hira),
    Row("VERA", VeRA, VeRALinear,
        {"rank": ("r", 256), "d_initial": ("d_initial", 0.1), "dropout": ("vera_dropout", 0.0)},
        {"d": "vera_lambda_d", "b": "vera_lambda_b"}, {"A": "vera_A", "B": "vera_B"},
        needed={"save_projection": True, "bias": "none"}, ignored=SEEDED, conv1d=True),
    Row("RANDLORA", RandLoRA, RandLoRALinear,
        {"rank": ("r", 32), "alpha": ("randlora_alpha", 640.0),
         "dropout": ("randlora_dropout", 0.0)},
        {"Lam": "randlora_lambda", "Gam": "randlora_gamma"},
        {"A": "randlora_A", "B": "randlora_B"},
        there={"A": lambda A, _: A[:, None], "B": columns_apart},
        back={"A": lambda A, _: A[:, 0], "B": columns_joined},
        needed={"save_projection": True, "bias": "none"}, ignored=SEEDED, conv1d=True,
        write=write_randlora, read=read_randlora),
    Row("FOURIERFT", FourierFT, FourierLinear,
        {"frequencies": ("n_frequency", 1000), "alpha": ("scaling", 150.0),
         "seed": ("random_loc_seed", 777)},
        {"c": "fourierft_spectrum"}, needed={"bias": "none"}, conv1d=True, write=write_fourier),
    Row("C3A", C3A, CircularLinear, {}, {"w": "c3a_kernel"},
        needed={"bias": "none"}, ignored={"block_size", "block_size_pattern"},
        write=write_c3a, read=read_c3a)]
