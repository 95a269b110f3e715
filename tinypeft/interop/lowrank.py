"""The tensors of LoRA and AdaLoRA in PEFT's folders for transformers' GPT-2, both ways.

transformers' GPT-2 computes query, key and value by one matrix, c_attn, and PEFT adapts it by one
pair (B, A). tinypeft has three layers with a pair each. Written as (d_out, d_in), c_attn stacks
W_q, W_k and W_v. So our pairs become one pair with zeros, whose rank is the sum of theirs:

    ΔW = [B_q   0 ] [A_q]          r = r_q + r_v, with one scale s for both;
         [ 0    0 ] [A_v]          if their scales differ, B absorbs the ratio
         [ 0   B_v]

The other way, one pair of PEFT's becomes three pairs. Each gets a copy of A without the rows that
its part of B does not use (where B is exactly 0). So a pair that was made of B_q A_q and B_v A_v
gives these back, and any other pair keeps its ΔW, up to rounding. Further training differs: our
copies of A diverge, and PEFT trains the zeros.

    here                 in a folder, after base_model.model.transformer.h.N.<layer>    shape
    LoRA, DyLoRA at b    .lora_A.weight, .lora_B.weight                (r, d_in), (d_out, r)
                             s = α/r, or α/√r with use_rslora
    AdaLoRA Q, Λ, P      .lora_A, .lora_E, .lora_B             (r, d_in), (r, 1), (d_out, r)
                             s = α/(init_r + 10⁻⁵); rank_pattern: which triplets are not pruned

These matrices are not transposed, unlike GPT-2's own (Conv1D). Format: PEFT 0.21.2, as it behaves.
"""
import math
from collections import Counter
from typing import Any

import numpy as np

from ..gpt import GPT
from ..hints import Array
from ..peft import AdaLoRA, LoRA, MethodError
from ..peft.dylora import DyLoRALinear
from ..peft.model import PeftModel
from .gpt2 import MODULES
from .peft_config import Config, Tensors

__all__ = ["LAYERS", "adalora_folder", "lora_folder", "read_adalora", "read_lora"]

# their linear layer → ours, from top to bottom
LAYERS = {theirs: ours for theirs, (ours, shape) in MODULES.items() if len(shape) == 2}
PREFIX = "base_model.model."
LORA_FIELDS = {"r", "lora_alpha", "lora_dropout", "rank_pattern", "bias", "init_lora_weights",
               "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"}
ADALORA_FIELDS = LORA_FIELDS | {"init_r", "target_r", "tinit", "tfinal", "deltaT", "total_step",
                                "beta1", "beta2", "orth_reg_weight"}


# -- to a folder ---------------------------------------------------------------------------------
def lora_folder(tuned: PeftModel) -> tuple[dict[str, Any], dict[str, Array]]:
    """(config, tensors) of a model tuned by LoRA, or by DyLoRA at its present rank."""
    rs = getattr(tuned.method, "rank_stabilized", False)
    tensors, ranks, alphas = {}, {}, {}
    for path, layers in adapted_layers(tuned):
        factors = [layer and _lora_factors(layer) for layer in layers]
        scale = max(s for _, _, s in filter(None, factors))
        B, A = stack([f and (f[0] if f[2] == scale else f[0] * (f[2] / scale), f[1])
                      for f in factors])
        tensors |= {f"{PREFIX}{path}.lora_A.weight": A, f"{PREFIX}{path}.lora_B.weight": B}
        ranks[path] = len(A)
        alphas[path] = plain_number(scale * (math.sqrt(len(A)) if rs else len(A)))
    r, alpha = most_common(ranks), most_common(alphas)
    return low_rank_fields(tuned, ranks) | {
        "peft_type": "LORA", "r": r, "lora_alpha": alpha, "use_rslora": rs,
        "rank_pattern": exceptions(ranks, r), "alpha_pattern": exceptions(alphas, alpha)}, tensors


def _lora_factors(layer):
    """(B, A, scale) of a wrapper, cut to its rank."""
    b, dynamic = layer.rank, isinstance(layer, DyLoRALinear)
    return layer.B.data[:, :b], layer.A.data[:b], layer.scale_at(b) if dynamic else layer.scale


def adalora_folder(tuned: PeftModel) -> tuple[dict[str, Any], dict[str, Array]]:
    """(config, tensors) of a model tuned by AdaLoRA. A layer keeps its unpruned triplets or one."""
    method, found = tuned.method, {}
    for path, layers in adapted_layers(tuned):
        P, Q = stack([w and (w.P.data, w.Q.data) for w in layers])
        Lam = np.concatenate([w.Lam.data for w in layers if w])
        kept = Lam != 0
        kept[0] |= not kept.any()
        found[path] = P, Lam, Q, kept, next(w.scale for w in layers if w)
    init_r, tensors, masks = max(len(kept) for *_, kept, _ in found.values()), {}, {}
    for path, (P, Lam, Q, kept, _) in found.items():
        tensors |= {f"{PREFIX}{path}.lora_A": Q[kept], f"{PREFIX}{path}.lora_E": Lam[kept, None],
                    f"{PREFIX}{path}.lora_B": P[:, kept]}
        masks[f"{path}.lora_E"] = [*kept.tolist(), *[False] * (init_r - len(kept))]
    total = 1000 + sum(int(t) for t in (method.t_init, method.t_final) if t >= 1)  # PEFT needs one
    start, end = method.phases(total)
    (scale,) = {s for *_, s in found.values()}
    target = round(method.target_rank * len(tuned.wrappers) / len(found))   # mean rank in theirs
    return low_rank_fields(tuned, found) | {
        "peft_type": "ADALORA", "init_r": init_r, "target_r": target,
        "lora_alpha": scale * (init_r + 1e-5), "tinit": start, "tfinal": total - end,
        "deltaT": method.delta_t, "total_step": total, "beta1": method.beta1,
        "beta2": method.beta2, "orth_reg_weight": method.gamma,
        "rank_pattern": None if all(all(m) for m in masks.values()) else masks}, tensors


def adapted_layers(tuned):
    """(their path, [our wrapper or None, for each of its parts]) of each layer that is adapted."""
    for n in range(tuned.config.n_layers):
        for theirs, parts in LAYERS.items():
            layers = [tuned.wrappers.get(f"blocks.{n}.{part}") for part in parts]
            if any(layers): yield f"transformer.h.{n}.{theirs}", layers


def stack(pairs):
    """[(left (d, r), right (r, d_in)) or None], one above the other → one pair for all of them."""
    right = np.concatenate([pair[1] for pair in pairs if pair])
    d, at = next(len(pair[0]) for pair in pairs if pair), 0
    left = np.zeros((d * len(pairs), len(right)), right.dtype)
    for i, pair in enumerate(pairs):
        if pair is None: continue
        r = len(pair[1])
        left[i * d:(i + 1) * d, at:at + r] = pair[0]
        at += r
    return left, right


def low_rank_fields(tuned, paths):
    """The fields that LoRA and AdaLoRA share. A layer that all blocks adapt is named once."""
    L, targets = tuned.config.n_layers, []
    for theirs in LAYERS:
        there = [p for p in paths if p.endswith(f".{theirs}")]
        targets += [theirs] if len(there) == L else there
    return {"target_modules": targets, "lora_dropout": tuned.method.dropout, "fan_in_fan_out": True,
            "bias": "none", "init_lora_weights": True}


def most_common(values): return Counter(values.values()).most_common(1)[0][0]
def exceptions(values, usual): return {path: x for path, x in values.items() if x != usual}
def plain_number(x): return int(x) if x == int(x) else float(x)       # int where PEFT writes an int


# -- from a folder -------------------------------------------------------------------------------
State = dict[str, Array]             # what `PeftModel.load_state_dict` takes


def read_lora(model: GPT, config: Config, tensors: Tensors) -> tuple[LoRA | None, State]:
    """(method, state) for LORA; method is None if no layer's tensors are there."""
    config.refuse_unknown(LORA_FIELDS | {"use_rslora", "alpha_pattern"})
    rs, state, ranks, alphas = config.get("use_rslora", bool, False), {}, {}, {}
    for path, d_in, d_out in layers_to_adapt(model, config):
        r = config.pattern_value("rank_pattern", int, path, config.get("r", int, 8))
        usual = config.get("lora_alpha", float, 8.0)
        alpha = config.pattern_value("alpha_pattern", float, path, usual)
        check_rank(r)
        A = tensors.take(f"{PREFIX}{path}.lora_A.weight", (r, d_in), f"r = {r}")
        B = tensors.take(f"{PREFIX}{path}.lora_B.weight", (d_out, r), f"r = {r}")
        if A is None or B is None: continue
        root = math.sqrt if rs else float
        for ours, (left, right, _) in split(path, B, A):
            state |= {f"{ours}.A": right, f"{ours}.B": left}
            ranks[ours] = len(right)
            alphas[ours] = plain_number(alpha / root(r) * root(len(right)))
    if not state: return None, state
    r, alpha = most_common(ranks), most_common(alphas)
    return LoRA(r, alpha, dropout=config.get("lora_dropout", float, 0.0),
                targets=targets(model, ranks), rank_stabilized=rs,
                rank_pattern=exceptions(ranks, r) or None,
                alpha_pattern=exceptions(alphas, alpha) or None), state


def read_adalora(model: GPT, config: Config, tensors: Tensors) -> tuple[AdaLoRA | None, State]:
    """(method, state) for ADALORA. Each matrix is filled up to the largest rank by λ = 0."""
    config.refuse_unknown(ADALORA_FIELDS)
    init_r, masks = config.get("init_r", int, 12), config.get("rank_pattern", dict, {})
    found, used = {}, set()
    check_rank(init_r)
    for path, d_in, d_out in layers_to_adapt(model, config):
        r, names = init_r, (f"{path}.lora_E", f"{path}.lora_E.default")
        if name := next((n for n in names if n in masks), None):
            mask = masks[name]
            if not isinstance(mask, list) or len(mask) != init_r or {*map(type, mask)} != {bool}:
                raise config.invalid("rank_pattern", f"a mapping from {name} to {init_r} booleans")
            used.add(name)
            r = sum(mask)
        reason = f"{r} of init_r = {init_r} triplets are left"
        A, E, B = (tensors.take(f"{PREFIX}{path}.lora_{x}", shape, reason)
                   for x, shape in (("A", (r, d_in)), ("E", (r, 1)), ("B", (d_out, r))))
        if not (A is None or E is None or B is None): found |= dict(split(path, B, A, E[:, 0]))
    if unknown := sorted(masks.keys() - used)[:8]:
        raise ValueError(f"{config.path}: rank_pattern names {unknown}, target_modules does not")
    if not found: return None, {}
    most, state = max(1, *(len(Q) for _, Q, _ in found.values())), {}
    for ours, (P, Q, Lam) in found.items():
        more = 0, most - len(Q)
        state |= {f"{ours}.P": np.pad(P, ((0, 0), more)), f"{ours}.Lam": np.pad(Lam, more),
                  f"{ours}.Q": np.pad(Q, (more, (0, 0)))}
    scale = config.get("lora_alpha", float, 8.0) / (init_r + 1e-5)   # AdaLoRA checks that it is > 0
    method = AdaLoRA(
        most, min(config.get("target_r", int, 8), most), t_init=config.get("tinit", int, 0),
        t_final=config.get("tfinal", int, 0), delta_t=config.get("deltaT", int, 1),
        beta1=config.get("beta1", float, 0.85), beta2=config.get("beta2", float, 0.85),
        gamma=config.get("orth_reg_weight", float, 0.5), alpha=scale * most,
        dropout=config.get("lora_dropout", float, 0.0), targets=targets(model, found),
        orthogonality="norm", importance="after")
    return method, state


def layers_to_adapt(model, config):
    """[(their path, d_in, d_out)] of the adapted layers. MethodError for more than a LoRA does."""
    if config.get("bias", str, "none") != "none":
        raise config.unsupported("bias", "an adapter here does not train the base's biases")
    init = config.get("init_lora_weights", (bool, str), True)
    if init not in (True, False, "gaussian", "eva", "orthogonal"):
        raise config.unsupported("init_lora_weights", "it changed the base's weights as well, and "
                                 "the folder lacks them; save it in PEFT with "
                                 "path_initial_model_for_weight_conversion")
    d, L = model.config.d_model, model.config.n_layers
    blocks = [f"transformer.h.{n}" for n in range(L)]
    linear = [f"{block}.{theirs}" for block in blocks for theirs in LAYERS]
    outer = ["", ".wte", ".wpe", ".drop", ".h", ".ln_f"]
    inner = ["", ".attn", ".mlp", ".ln_1", ".ln_2", ".attn.attn_dropout", ".attn.resid_dropout",
             ".mlp.act", ".mlp.dropout"]
    others = [*("transformer" + x for x in outer), *(block + x for block in blocks for x in inner),
              *(["lm_head"] if config.task() != "SEQ_CLS" else [])]
    chosen = config.select(linear + others, linear)
    if wrong := [p for p in chosen if p not in linear]:
        raise config.unsupported("target_modules", f"it selects {wrong[0]}, but only the linear "
                                 "layers of blocks can have low-rank changes here")
    return [(p, *(d * n for n in MODULES[p.split(".", 3)[3]][1])) for p in chosen]


def check_rank(r):
    if r < 1: raise MethodError(f"load_adapter: the rank must be at least 1, got {r}")


def split(path, left, right, diagonal=None):
    """(our path, (left, right, diagonal)) of their layer's changed parts, without unused rows."""
    _, _, n, theirs = path.split(".", 3)
    parts = LAYERS[theirs]
    keep_all = len(parts) == 1 or not left.any()                 # if left is 0, all parts are alike
    for part, rows in zip(parts, np.split(left, len(parts)), strict=True):
        used = np.ones(len(right), bool) if keep_all else rows.any(0)
        if used.any() or keep_all:
            yield f"blocks.{n}.{part}", (rows[:, used], right[used],
                                         None if diagonal is None else diagonal[used])


def targets(model, paths):
    """Targets that name exactly `paths`: by their last parts, if every block has them."""
    names = list(dict.fromkeys(p.rsplit(".", 1)[-1] for p in paths))
    return tuple(names if len(paths) == len(names) * model.config.n_layers else paths)
