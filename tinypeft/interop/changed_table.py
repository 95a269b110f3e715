"""The table of `changed_layers`: what PEFT's folders hold of each method on changed layers.

    here             peft_type   tensors, after base_model.model.<their layer>
    LoHa B₁, A₁      LOHA        .hada_w1_a, .hada_w1_b       (d_out, r), (r, d_in)
         B₂, A₂                  .hada_w2_a, .hada_w2_b       the same
    LoKr C           LOKR        .lokr_w1                     (u, v)
         B, A                    .lokr_w2_a, .lokr_w2_b       (d_out/u, r), (r, d_in/v)
         B A                     .lokr_w2, if r is at least half of its longer side
    HiRA B, A        HIRA        .hira_B, .hira_A             (d_out, r), (r, d_in)
    VeRA d, b        VERA        .vera_lambda_d, _b           (r,), (d_out,)
         A, B                    base_model.vera_A, vera_B    (r, d_in), (d_out, r) of the largest
    RandLoRA Λ, Γ    RANDLORA    .randlora_lambda, _gamma     (r, n), (n, d)
         A, B                    base_model.randlora_A, _B    (r, 1, d), (D, n, r)
    FourierFT c      FOURIERFT   .fourierft_spectrum          (n,)
    C3A Δw           C3A         .c3a_kernel                  (d_out/b, d_in/b, b)
    MiSS D           MISS        .miss_block                  (r, d_out), the transpose of ours
    SHiRA values     SHIRA       .shira_weight                (n,)
          places                 .shira_indices               (2, n), rows and columns
    OFT Q            OFT         .oft_R.weight                (k, b (b − 1)/2)

What is not as in the table:

* LoKr. PEFT trains a whole matrix where the product B A would not be smaller. Here it becomes the
  product of this matrix and the identity, so the rank can grow. `decompose_both` makes C a product,
  which is multiplied out.
* HiRA. As LoRA's, our pairs for GPT-2's query, key and value become one pair with zeros, and back
  (`lowrank`). PEFT does not look at rank_pattern, so smaller pairs are filled up with zeros.
* FourierFT. A folder lacks the places of the entries. PEFT draws them from the seed, as we do.
* RandLoRA. PEFT saves A and B again with each layer, and warns if they are absent.
* OFT. PEFT's series is ours, and its inverse is that of −Q. Its series of 3 terms is that of 4.

Ranks that are filled up with zeros, in both matrices of a pair, stay so in training. PEFT computes
FourierFT and C³A in float32, and has LoHa's scale in it.
"""
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..common.hints import Array
from ..peft import (
    C3A,
    OFT,
    FourierFT,
    HiRA,
    LoHa,
    LoKr,
    Method,
    MethodError,
    MiSS,
    RandLoRA,
    SHiRA,
    VeRA,
)
from ..peft.c3a import CircularLinear
from ..peft.fourierft import FourierLinear, draw
from ..peft.hadamard import HiRALinear, LoHaLinear, LoKrLinear, divisor
from ..peft.miss import MiSSLinear
from ..peft.oft import OFTLinear
from ..peft.randlora import RandLoRALinear
from ..peft.shira import SHiRALinear
from ..peft.vera import VeRALinear
from .changed_layers import TOP, Row, fields_of, method_of, our_path, read_plain, take, write_plain
from .lowrank import State, exceptions, most_common, split, stack
from .peft_config import PREFIX
from .peft_names import names_of

__all__ = ["ROWS", "row_of"]

Pair = tuple[Array, Array]                               # of matrices B (d_out, r) and A (r, d_in)


def row_of(method: Method) -> Row | None:
    """Find the row of a method; None if it has none."""
    return next((row for row in ROWS if isinstance(method, row.method)), None)


def filled_up(pairs: Mapping[str, Pair]) -> State:
    """Fill pairs (B, A) up to the largest rank by zeros: path → pair becomes a part's state."""
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


# -- FourierFT and C3A -----------------------------------------------------------------------------
def write_fourier(row, method, layers):
    """Write FourierFT, as `write_plain` does. PEFT draws the entries anew from the seed."""
    fields, tensors = write_plain(row, method, layers)
    for path, (layer,) in layers.items():
        size = layer.d_out * layer.d_in
        places = draw(method.frequencies, size, method.seed)
        if not np.array_equal(layer.E[0] * layer.d_in + layer.E[1], places):
            raise MethodError(f"save: the entries of {path} are not those of the seed "
                              f"{method.seed}, from which PEFT draws them; only the format "
                              "tinypeft holds it")
    return fields, tensors


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


# -- MiSS, SHiRA and OFT ---------------------------------------------------------------------------
def transposed(D, method):
    """Transpose D, which is (d_out, r) here and (r, d_out) there."""
    return D.T


def write_shira(row, method, layers):
    """Write SHiRA, as `write_plain` does. A place is a row and a column."""
    fields, tensors = write_plain(row, method, layers)
    for path, (layer,) in layers.items():
        places = np.divmod(layer.places, layer.d_in)
        tensors[f"{path}.shira_indices"] = np.array(places, np.int32)
    return fields, tensors


def read_shira(row, model, config, tensors, layers):
    """Read SHiRA, as `read_plain` does. Places rise here."""
    method, state = method_of(row, config, layers), {}
    for path, (d_in, d_out) in layers.items():
        ours, n = our_path(row, model, config, path), method.rank * (d_in + d_out)
        values = tensors.take(f"{PREFIX}{path}.shira_weight", (n,))
        places = tensors.take(f"{PREFIX}{path}.shira_indices", (2, n), whole=True)
        if values is None or places is None:
            continue
        i, j = places
        if places.min() < 0 or i.max() >= d_out or j.max() >= d_in:
            raise ValueError(f"{tensors.path}: {path}.shira_indices has places outside of a "
                             f"{d_out} × {d_in} matrix")
        order = np.argsort(i * d_in + j)
        state[f"{ours}.values"] = values[order]
        state[f"{ours}.places"] = (i * d_in + j)[order].astype(np.int32)
    return method, state


def turned_as_there(q, method):
    """Change the sign of q for the inverse, which is that of −Q in PEFT."""
    return -q if method.neumann_terms is None else q


def write_oft(row, method, layers):
    """Write OFT, as `write_plain` does."""
    terms = method.neumann_terms
    if terms is not None and terms < 4:
        raise MethodError(f"save: PEFT's series of {terms} terms is another one; only the format "
                          "tinypeft holds it")
    fields, tensors = write_plain(row, method, layers)
    fields |= {"use_cayley_neumann": terms is not None, "peft_version": "0.21.2"}
    if terms is not None:
        fields["num_cayley_neumann_terms"] = terms
    return fields, tensors


def read_oft(row, model, config, tensors, layers):
    """Read OFT, as `read_plain` does. A field says how many blocks there are, or how large."""
    terms = config.get("num_cayley_neumann_terms", int, 5)
    if not config.get("use_cayley_neumann", bool, True):
        terms = None
    elif terms < 3:
        raise config.unsupported("num_cayley_neumann_terms", "a series here has 3 terms or more")
    size, k = config.get("oft_block_size", int, 32), config.get("r", int, 0)
    if k:
        sizes = {d_in / k for d_in, _ in layers.values()}
        if size or len(sizes) > 1 or not min(sizes).is_integer():
            raise config.unsupported("r", "here blocks have one size; write oft_block_size")
        size = int(min(sizes))
    method = OFT(size, terms and max(terms, 4))
    return read_plain(row, model, config, tensors, layers, method)


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
        write=write_c3a, read=read_c3a),
    Row("MISS", MiSS, MiSSLinear, {"rank": ("r", 64), "dropout": ("miss_dropout", 0.0)},
        {"D": "miss_block"}, there={"D": transposed}, back={"D": transposed},
        needed={"init_weights": True, "bias": "none"}, ignored={"mini_r"}),
    Row("SHIRA", SHiRA, SHiRALinear, {"rank": ("r", 32)}, {"values": "shira_weight"},
        ignored={"mask_type", "random_seed"}, write=write_shira, read=read_shira),
    Row("OFT", OFT, OFTLinear, {"block_size": ("oft_block_size", 32)}, {"q": "oft_R.weight"},
        there={"q": turned_as_there}, back={"q": turned_as_there}, needed={"bias": "none"},
        ignored={"r", "eps", "use_cayley_neumann", "num_cayley_neumann_terms"},
        write=write_oft, read=read_oft)]
