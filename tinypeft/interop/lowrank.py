"""The tensors of LoRA and AdaLoRA in PEFT's folders, both ways.

Most layers of transformers' models are layers here as well (`peft_names`), and their pairs (B, A)
are ours. GPT-2 is special: it computes query, key and value by one matrix, c_attn, and PEFT adapts
it by one pair. tinypeft has three layers with a pair each. Written as (d_out, d_in), c_attn stacks
W_q, W_k and W_v. So our pairs become one pair with zeros, whose rank is the sum of theirs:

    ΔW = [B_q   0 ] [A_q]          r = r_q + r_v, with one scale s for both;
         [ 0    0 ] [A_v]          if their scales differ, B absorbs the ratio
         [ 0   B_v]

The other way, one pair becomes three. Each gets a copy of A without the rows for which its part of
B is 0. So a pair made of B_q A_q and B_v A_v gives these back, and any other keeps its ΔW, up to
rounding. Further training differs: our copies of A diverge, and PEFT trains the zeros.

    here                 in a folder, after base_model.model.<their layer>              shape
    LoRA, DyLoRA at b    .lora_A.weight, .lora_B.weight                (r, d_in), (d_out, r)
                             s = α/r, or α/√r with use_rslora
    LoRA from a start    B′ = [B, −B₀], A′ = [A; A₀], of rank 2r, as PEFT converts its own
    DoRA                 the same, with use_dora, and .lora_magnitude_vector     m (d_out,)
    AdaLoRA Q, Λ, P      .lora_A, .lora_E, .lora_B             (r, d_in), (r, 1), (d_out, r)
                             s = α/(init_r + 10⁻⁵); rank_pattern: which triplets are not pruned

An m of c_attn stacks those of the parts. A part without a DoRA has the lengths of its rows there,
so that nothing changes it. On the way back it gets none.

They are not transposed, even where GPT-2's own matrices are (Conv1D). Format: PEFT 0.21.2, as it
behaves.
"""
import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from ..common.hints import Array
from ..common.wording import brief
from ..engine.nn import Module
from ..models.decoder import Decoder
from ..models.targets import names_for
from ..peft import AdaLoRA, DoRA, LoRA, Method, MethodError
from ..peft.adalora import AdaLoRALinear
from ..peft.dora import DoRALinear, lengths
from ..peft.dylora import DyLoRALinear
from ..peft.lora import LoRALinear, StartedLinear
from ..peft.low_rank import halves, thin_svd
from ..peft.model import PeftModel
from .peft_config import PREFIX, Config, Tensors
from .peft_names import names_of

__all__ = ["adalora_folder", "adapted_layers", "check_kinds", "linear_layers", "lora_folder",
           "read_adalora", "read_lora", "read_lora_biases"]

State = dict[str, Array]                                # a part's arrays, as in `Part.state_dict`
LORA_FIELDS = {"r", "lora_alpha", "lora_dropout", "rank_pattern", "bias", "init_lora_weights",
               "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
               "trainable_token_indices"}
ADALORA_FIELDS = {"init_r", "target_r", "tinit", "tfinal", "deltaT", "total_step", "beta1", "beta2",
                  "orth_reg_weight"}


# -- to a folder ---------------------------------------------------------------------------------
def lora_folder(tuned: PeftModel, method: Method) -> tuple[dict[str, Any], dict[str, Array]]:
    """(config, tensors) of a model tuned by `method`, a LoRA, or a DyLoRA at its present rank."""
    rs, tensors, ranks, alphas = getattr(method, "rank_stabilized", False), {}, {}, {}
    is_dora = isinstance(method, DoRA)
    kinds = [DoRALinear] if is_dora else [LoRALinear, StartedLinear, DyLoRALinear]
    for path, layers in adapted_layers(tuned):
        check_kinds(path, layers, kinds)
        scale = max(layer.scale for layer in filter(None, layers))
        B, A = stack([layer and lora_pair(layer, scale) for layer in layers])
        tensors |= {f"{PREFIX}{path}.lora_A.weight": A, f"{PREFIX}{path}.lora_B.weight": B}
        if is_dora: tensors[f"{PREFIX}{path}.lora_magnitude_vector"] = magnitudes(tuned, path)
        ranks[path] = len(A)
        alphas[path] = plain_number(scale * (math.sqrt(len(A)) if rs else len(A)))
    r, alpha = most_common(ranks), most_common(alphas)
    return low_rank_fields(tuned, method, ranks) | {
        "peft_type": "LORA", "r": r, "lora_alpha": alpha, "use_rslora": rs,
        "rank_pattern": exceptions(ranks, r), "alpha_pattern": exceptions(alphas, alpha),
        **({"use_dora": True} if is_dora else {})}, tensors


def lora_pair(layer, scale):
    """(B, A) of a wrapper, with B scaled so that the common `scale` fits. The rank is that of
    `pair`: a DyLoRA's may be smaller than A, and a start doubles it, but for a small matrix."""
    B, A = layer.B.data, layer.A.data
    if isinstance(layer, LoRALinear):
        B, A = (factor.data for factor in layer.pair())
    most = min(layer.d_out, layer.d_in)
    if len(A) > most:
        B, A = halves(*thin_svd(B, A), most)
    return B if layer.scale == scale else B * (layer.scale / scale), A


def magnitudes(tuned, path):
    """Stack m of our layers that make up theirs at `path`; where one has no DoRA, its lengths."""
    wrappers, m = tuned.wrappers, []
    for ours in names_of(tuned.model).ours(path):
        layer = wrappers.get(ours)
        m.append(layer.m.data if layer else lengths(tuned.model.get(ours).dense_weight()))
    return np.concatenate(m, dtype=tuned.model.dtype)


def adalora_folder(tuned: PeftModel, method: AdaLoRA) -> tuple[dict[str, Any], dict[str, Array]]:
    """(config, tensors) of a model tuned by AdaLoRA. A layer keeps its unpruned triplets or one."""
    adapted, tensors, masks = dict(adapted_layers(tuned)), {}, {}
    init_r = max(sum(len(w.Lam.data) for w in layers if w) for layers in adapted.values())
    for path, layers in adapted.items():
        check_kinds(path, layers, [AdaLoRALinear])
        P, Q = stack([w and (w.P.data, w.Q.data) for w in layers])
        Lam = np.concatenate([w.Lam.data for w in layers if w])
        kept = Lam != 0
        kept[0] |= not kept.any()
        tensors |= {f"{PREFIX}{path}.lora_A": Q[kept], f"{PREFIX}{path}.lora_E": Lam[kept, None],
                    f"{PREFIX}{path}.lora_B": P[:, kept]}
        masks[f"{path}.lora_E"] = [*kept.tolist(), *[False] * (init_r - len(kept))]
    total = 1000 + sum(int(t) for t in (method.t_init, method.t_final) if t >= 1)  # PEFT needs one
    start, end = method.phases(total)
    wrappers = [w for layers in adapted.values() for w in layers if w]
    (scale,) = {w.scale for w in wrappers}
    target = round(method.target_rank * len(wrappers) / len(adapted))         # mean rank in theirs
    return low_rank_fields(tuned, method, adapted) | {
        "peft_type": "ADALORA", "init_r": init_r, "target_r": target, "total_step": total,
        "lora_alpha": scale * (init_r + 1e-5), "tinit": start, "tfinal": total - end,
        "deltaT": method.delta_t, "beta1": method.beta1, "beta2": method.beta2,
        "orth_reg_weight": method.gamma,
        "rank_pattern": None if all(map(all, masks.values())) else masks}, tensors


def adapted_layers(tuned: PeftModel) -> Iterator[tuple[str, list]]:
    """Yield the adapted layers: (their path, [our wrapper, or None, for each of its parts])."""
    names = names_of(tuned.model)
    for path in names.linear():
        layers = [tuned.wrappers.get(ours) for ours in names.ours(path)]
        if any(layers): yield path, layers


def check_kinds(path: str, modules: Collection[Module | None], kinds: Sequence[type]) -> None:
    """Raise MethodError for a module of another class, which may compute something else."""
    for other in {type(module) for module in modules if module} - {*kinds}:
        raise MethodError(f"save: a {other.__name__} on {path} may do more than a "
                          f"{kinds[0].__name__} does; only the format tinypeft holds it")


def stack(pairs):
    """[(left (d, r), right (r, d_in)) or None], one above the other → one pair for all of them."""
    right = np.concatenate([pair[1] for pair in pairs if pair])
    d, at = next(len(pair[0]) for pair in pairs if pair), 0
    left = np.zeros((len(pairs), d, len(right)), right.dtype)
    for rows, pair in zip(left, pairs, strict=True):
        if pair is None: continue
        rows[:, at:at + len(pair[1])] = pair[0]
        at += len(pair[1])
    return left.reshape(-1, len(right)), right


def low_rank_fields(tuned, method, paths):
    """Return the fields that LoRA and AdaLoRA share."""
    names = names_of(tuned.model)
    return {"target_modules": names.brief(paths), "lora_dropout": method.dropout,
            "fan_in_fan_out": names.conv1d, "bias": "none", "init_lora_weights": True}


def most_common(values): return Counter(values.values()).most_common(1)[0][0]
def exceptions(values, usual): return {path: x for path, x in values.items() if x != usual}
def plain_number(x): return int(x) if x == int(x) else float(x)       # int where PEFT writes an int


# -- from a folder -------------------------------------------------------------------------------
def read_lora(model: Decoder, config: Config, tensors: Tensors) -> tuple[LoRA | None, State]:
    """(method, state) for LORA; method is None if no layer's tensors are there."""
    config.refuse_unknown(LORA_FIELDS | {"use_rslora", "use_dora", "alpha_pattern", "lora_bias"})
    rs, state, ranks, alphas = config.get("use_rslora", bool, False), {}, {}, {}
    is_dora = config.get("use_dora", bool, False)
    if is_dora and config.get("lora_bias", bool, False):
        raise config.unsupported("lora_bias", "with use_dora PEFT has no such bias")
    for path, d_in, d_out in layers_to_adapt(model, config):
        r, alpha = sizes_of(path, config)
        A = tensors.take(f"{PREFIX}{path}.lora_A.weight", (r, d_in), f"r = {r}")
        B = tensors.take(f"{PREFIX}{path}.lora_B.weight", (d_out, r), f"r = {r}")
        m = {}
        if is_dora: m = take_magnitudes(model, path, tensors, d_out)
        if A is None or B is None or m is None: continue
        root = math.sqrt if rs else float
        for ours, rows, used in split(names_of(model).ours(path), B, rescaled(model, m)):
            state |= {f"{ours}.A": A[used], f"{ours}.B": rows[:, used]}
            if is_dora: state[f"{ours}.m"] = m[ours]
            ranks[ours] = int(used.sum())
            alphas[ours] = plain_number(alpha / root(r) * root(ranks[ours]))
    if not state: return None, state
    r, alpha = most_common(ranks), most_common(alphas)
    method = DoRA if is_dora else LoRA
    is_mica = config.get("init_lora_weights", (bool, str), True) == "mica"
    return method(r, alpha, dropout=config.get("lora_dropout", float, 0.0), rank_stabilized=rs,
                targets=names_for(ranks, model.config.n_layers),
                init="mica" if is_mica and not is_dora else "kaiming",     # B stays frozen
                rank_pattern=exceptions(ranks, r) or None,
                alpha_pattern=exceptions(alphas, alpha) or None), state


def take_magnitudes(model, path, tensors, d_out):
    """Take the m of their layer at `path`: our path → its rows of m; None if it is missing."""
    m = tensors.take(f"{PREFIX}{path}.lora_magnitude_vector", (d_out,))
    parts = names_of(model).ours(path)
    return m if m is None else dict(zip(parts, np.split(m, len(parts)), strict=True))


def rescaled(model, m):
    """List the layers of ours whose rows `m` brings to another length."""
    return [ours for ours, rows in m.items()
            if not np.allclose(rows, lengths(model.get(ours).dense_weight()), rtol=1e-5, atol=0)]


def sizes_of(path, config):
    """Return r and alpha of the layer at `path`."""
    r = config.pattern_value("rank_pattern", int, path, config.get("r", int, 8))
    usual_alpha = config.get("lora_alpha", float, 8.0)
    alpha = config.pattern_value("alpha_pattern", float, path, usual_alpha)
    if r < 1:
        raise MethodError(f"load_adapter: {path}: the rank must be at least 1, got {r}")
    return r, alpha


def read_lora_biases(model: Decoder, config: Config, tensors: Tensors) -> State:
    """Name of a bias of ours → what `lora_bias` adds to it, s b_B."""
    if not config.get("lora_bias", bool, False):
        return {}
    root = math.sqrt if config.get("use_rslora", bool, False) else float
    changes = {}
    for path, _, d_out in layers_to_adapt(model, config):
        parts = names_of(model).ours(path)
        if model.get(parts[0]).bias is None:
            raise config.unsupported("lora_bias", f"{path} has no bias in this model, so no weight "
                                     "of the base can hold its part of the change")
        b = tensors.take(f"{PREFIX}{path}.lora_B.bias", (d_out,))
        if b is None:
            continue
        r, alpha = sizes_of(path, config)
        rows = np.split(alpha / root(r) * b, len(parts))
        changes |= {f"{ours}.bias": row for ours, row in zip(parts, rows, strict=True)}
    return changes


def read_adalora(model: Decoder, config: Config, tensors: Tensors) -> tuple[AdaLoRA | None, State]:
    """(method, state) for ADALORA. Each matrix is filled up to the largest rank by λ = 0."""
    config.refuse_unknown(LORA_FIELDS | ADALORA_FIELDS)
    init_r, masks = config.get("init_r", int, 12), dict(config.get("rank_pattern", dict, {}))
    if init_r < 1: raise config.invalid("init_r", "at least 1")
    found = {}
    for path, d_in, d_out in layers_to_adapt(model, config):
        r, name = init_r, f"{path}.lora_E"
        if name not in masks: name += ".default"
        if name in masks:
            mask = masks.pop(name)
            if not isinstance(mask, list) or len(mask) != init_r or {*map(type, mask)} != {bool}:
                raise config.invalid("rank_pattern", f"a mapping from {name} to "
                                     f"{brief(init_r)} booleans")
            r = sum(mask)
        reason = f"{r} of init_r = {init_r} triplets are left"
        A, E, B = (tensors.take(f"{PREFIX}{path}.lora_{x}", shape, reason)
                   for x, shape in (("A", (r, d_in)), ("E", (r, 1)), ("B", (d_out, r))))
        if A is None or E is None or B is None: continue
        for ours, rows, used in split(names_of(model).ours(path), B):
            found[ours] = rows[:, used], A[used], E[used, 0]
    if masks:
        raise ValueError(f"{config.path}: rank_pattern names {brief(sorted(masks))}, "
                         "target_modules does not")
    if not found: return None, {}
    most, state = max(1, *(len(Q) for _, Q, _ in found.values())), {}
    for ours, (P, Q, Lam) in found.items():
        more = 0, most - len(Q)
        state |= {f"{ours}.P": np.pad(P, ((0, 0), more)), f"{ours}.Lam": np.pad(Lam, more),
                  f"{ours}.Q": np.pad(Q, (more, (0, 0)))}
    scale = config.get("lora_alpha", float, 8.0) / (init_r + 1e-5)   # AdaLoRA checks that it is > 0
    return AdaLoRA(
        most, min(config.get("target_r", int, 8), most), t_init=config.get("tinit", int, 0),
        t_final=config.get("tfinal", int, 0), delta_t=config.get("deltaT", int, 1),
        beta1=config.get("beta1", float, 0.85), beta2=config.get("beta2", float, 0.85),
        gamma=config.get("orth_reg_weight", float, 0.5), alpha=scale * most,
        dropout=config.get("lora_dropout", float, 0.0),
        targets=names_for(found, model.config.n_layers),
        orthogonality="norm", importance="after"), state


def layers_to_adapt(model, config):
    """As `linear_layers`. MethodError for a LoRA that changed the base."""
    init = config.get("init_lora_weights", (bool, str), True)
    if init not in (True, False, "gaussian", "eva", "orthogonal", "mica"):
        raise config.unsupported(
            "init_lora_weights", "it changed the base's weights as well, which the folder lacks; "
            "save it in PEFT with path_initial_model_for_weight_conversion")
    yield from linear_layers(model, config)


def linear_layers(model: Decoder, config: Config,
                  default: Sequence[str] = ()) -> Iterator[tuple[str, int, int]]:
    """Yield (their path, d_in, d_out) of each layer that target_modules, or the default, selects.
    MethodError unless all are linear layers of blocks."""
    names = names_of(model)
    linear = names.linear()
    paths = names.modules(lm_head=config.task() != "SEQ_CLS")
    for path in config.select(names, paths, default):
        if path not in linear:
            raise config.unsupported("target_modules", f"it selects {path}, but only the linear "
                                     "layers of blocks can be adapted here")
        parts = [model.get(ours) for ours in names.ours(path)]
        yield path, parts[0].d_in, sum(part.d_out for part in parts)


def split(parts, B, kept=()):
    """Cut a ΔW of theirs into our layers at the paths `parts`, which are equal in size. List
    those that change, and those in `kept`: (our path, its rows of B, a mask of the columns that it
    uses, one or more)."""
    keep_all = len(parts) == 1 or not B.any()                       # if B is 0, all parts are alike
    for ours, rows in zip(parts, np.split(B, len(parts)), strict=True):
        used = rows.any(0) | keep_all
        if ours in kept and not used.any(): used[0] = True
        if used.any() or keep_all: yield ours, rows, used
