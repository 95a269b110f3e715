"""LoRA and AdaLoRA as Hugging Face's PEFT stores them for transformers' GPT-2, both ways.

GPT-2 there has one matrix c_attn for query, key and value, and PEFT adapts it by one pair. With W_q, W_k, W_v one
above the other in it (as (d_out, d_in)), pairs of their own are one pair of their ranks' sum, with zeros:

    ΔW = [B_q   0 ] [A_q]          r = r_q + r_v,   s common (what differs is put into B)
         [ 0    0 ] [A_v]
         [ 0   B_v]

and a pair of PEFT's, which fills all of B, is three pairs here that share A: the rows of A that a part's rows of B do not
use (exact zeros) are left out, which finds B_q A_q and B_v A_v again in what was written so. Either way ΔW is the
same, to rounding. Trained on, three pairs here get three A, and zeros there do not stay.

    here                 in a folder, after base_model.model.transformer.h.N.<layer>      shape
    LoRA, DyLoRA at b    .lora_A.weight, .lora_B.weight                                   (r, d_in), (d_out, r)
                             s = α/r, or α/√r with use_rslora
    AdaLoRA Q, Λ, P      .lora_A, .lora_E, .lora_B                                        (r, d_in), (r, 1), (d_out, r)
                             s = α/(init_r + 10⁻⁵); rank_pattern: which of init_r triplets pruning has left

The matrices of a layer are not transposed, although GPT-2's own are (Conv1D). Format: PEFT 0.21.2, as it behaves.
"""
import math
from collections import Counter

import numpy as np

from ..peft import AdaLoRA, LoRA, MethodError
from ..peft.dylora import DyLoRALinear
from .gpt2 import MODULES

__all__ = ["LAYERS", "adalora_folder", "lora_folder", "read_adalora", "read_lora"]

LAYERS = {theirs: ours for theirs, (ours, shape) in MODULES.items() if len(shape) == 2}     # → its parts, from top to bottom
PREFIX = "base_model.model."
LORA_FIELDS = {"r", "lora_alpha", "lora_dropout", "rank_pattern", "bias", "init_lora_weights", "target_modules",
               "exclude_modules", "layers_to_transform", "layers_pattern"}


# -- to a folder ---------------------------------------------------------------------------------
def lora_folder(tuned):
    """(config, tensors) of a model tuned by LoRA, or by DyLoRA: then at the rank it is set to."""
    rs = getattr(tuned.method, "rank_stabilized", False)
    tensors, ranks, alphas = {}, {}, {}
    for path, layers in layers_of(tuned):
        factors = [w and _lora(w) for w in layers]
        scale = max(s for _, _, s in filter(None, factors))
        B, A = stacked([f and (f[0] if f[2] == scale else f[0] * (f[2] / scale), f[1]) for f in factors])
        tensors |= {f"{PREFIX}{path}.lora_A.weight": A, f"{PREFIX}{path}.lora_B.weight": B}
        ranks[path], alphas[path] = len(A), plain(scale * (math.sqrt(len(A)) if rs else len(A)))
    r, alpha = commonest(ranks), commonest(alphas)
    return {"peft_type": "LORA", "r": r, "lora_alpha": alpha, "use_rslora": rs,
            "rank_pattern": {p: n for p, n in ranks.items() if n != r},
            "alpha_pattern": {p: a for p, a in alphas.items() if a != alpha}, **low_rank_fields(tuned, ranks)}, tensors


def _lora(layer):
    """(B, A, scale) of a layer, cut to its rank."""
    b, dynamic = layer.rank, isinstance(layer, DyLoRALinear)
    return layer.B.data[:, :b], layer.A.data[:b], layer.scale_at(b) if dynamic else layer.scale


def adalora_folder(tuned):
    """(config, tensors) of a model tuned by AdaLoRA. Triplets with λ = 0 are left out, but for one in each layer."""
    method, found = tuned.method, {}
    for path, layers in layers_of(tuned):
        P, Q = stacked([w and (w.P.data, w.Q.data) for w in layers])
        Lam = np.concatenate([w.Lam.data for w in layers if w])
        kept = Lam != 0
        kept[0] |= not kept.any()
        found[path] = P, Lam, Q, kept, next(w.scale for w in layers if w)
    init_r, tensors = max(len(kept) for *_, kept, _ in found.values()), {}
    for path, (P, Lam, Q, kept, _) in found.items():
        tensors |= {f"{PREFIX}{path}.lora_A": Q[kept], f"{PREFIX}{path}.lora_E": Lam[kept, None],
                    f"{PREFIX}{path}.lora_B": P[:, kept]}
    masks = {f"{path}.lora_E": [*kept.tolist(), *[False] * (init_r - len(kept))] for path, (*_, kept, _) in found.items()}
    total = 1000 + sum(int(t) for t in (method.t_init, method.t_final) if t >= 1)      # which PEFT wants to be told
    start, end = method.phases(total)
    (scale,) = {s for *_, s in found.values()}
    target = round(method.target_rank * len(tuned.wrappers) / len(found))     # of theirs, fewer and larger, on average
    return {"peft_type": "ADALORA", "init_r": init_r, "target_r": target, "lora_alpha": scale * (init_r + 1e-5),
            "tinit": start, "tfinal": total - end, "deltaT": method.delta_t, "total_step": total, "beta1": method.beta1,
            "beta2": method.beta2, "orth_reg_weight": method.gamma,
            "rank_pattern": None if all(all(m) for m in masks.values()) else masks, **low_rank_fields(tuned, found)}, tensors


def layers_of(tuned):
    """(their path, [our wrapper, or None, for each of its parts]) for their layers of which a part is adapted."""
    for n in range(tuned.config.n_layers):
        for theirs, parts in LAYERS.items():
            layers = [tuned.wrappers.get(f"blocks.{n}.{part}") for part in parts]
            if any(layers): yield f"transformer.h.{n}.{theirs}", layers


def stacked(pairs):
    """[(left (d, r), right (r, d_in)), or None] for parts that lie one above the other → one such pair for all of them."""
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
    """What the two share: which layers, by the end of their paths where all blocks have them."""
    L, targets = tuned.config.n_layers, []
    for theirs in LAYERS:
        there = [p for p in paths if p.endswith(f".{theirs}")]
        targets += [theirs] if len(there) == L else there
    return {"target_modules": targets, "lora_dropout": tuned.method.dropout, "fan_in_fan_out": True, "bias": "none",
            "init_lora_weights": True}


def commonest(values):
    return Counter(values.values()).most_common(1)[0][0]


def plain(x):
    """A whole number as an int, as PEFT's own files have it."""
    return int(x) if x == int(x) else float(x)


# -- from a folder -------------------------------------------------------------------------------
def read_lora(model, config, tensors):
    """(method, state): a LoRA and what `load_state_dict` takes, of a folder's `Config` and `Tensors`."""
    config.refuse_others(LORA_FIELDS | {"use_rslora", "alpha_pattern"})
    rs, state, ranks, alphas = config.get("use_rslora", bool, False), {}, {}, {}
    for path, d_in, d_out in adapted(model, config):
        r = config.by_pattern("rank_pattern", int, path, config.get("r", int, 8))
        alpha = config.by_pattern("alpha_pattern", float, path, config.get("lora_alpha", float, 8.0))
        check_rank(r)
        A = tensors.take(f"{PREFIX}{path}.lora_A.weight", (r, d_in), f"r = {r}")
        B = tensors.take(f"{PREFIX}{path}.lora_B.weight", (d_out, r), f"r = {r}")
        if A is None or B is None: continue
        root = math.sqrt if rs else float
        for ours, (left, right, _) in parted(path, B, A):
            state |= {f"{ours}.A": right, f"{ours}.B": left}
            ranks[ours], alphas[ours] = len(right), plain(alpha / root(r) * root(len(right)))
    if not state: return None, state
    r, alpha = commonest(ranks), commonest(alphas)
    return LoRA(r, alpha, dropout=config.get("lora_dropout", float, 0.0), targets=targets(model, ranks), rank_stabilized=rs,
                rank_pattern={p: n for p, n in ranks.items() if n != r} or None,
                alpha_pattern={p: a for p, a in alphas.items() if a != alpha} or None), state


def read_adalora(model, config, tensors):
    """(method, state): an AdaLoRA with as many triplets per matrix as any has left, those of others pruned: λ = 0."""
    config.refuse_others(LORA_FIELDS | {"init_r", "target_r", "tinit", "tfinal", "deltaT", "total_step", "beta1", "beta2",
                                        "orth_reg_weight"})
    init_r, masks, found, used = config.get("init_r", int, 12), config.get("rank_pattern", dict, {}), {}, set()
    check_rank(init_r)
    for path, d_in, d_out in adapted(model, config):
        r, name = init_r, next((n for n in (f"{path}.lora_E", f"{path}.lora_E.default") if n in masks), None)
        if name:
            mask = masks[name]
            if not isinstance(mask, list) or len(mask) != init_r or {type(m) for m in mask} != {bool}:
                raise ValueError(f"{config.path}: rank_pattern[{name!r}] must be {init_r} times true or false")
            used.add(name)
            r = sum(mask)
        A, E, B = (tensors.take(f"{PREFIX}{path}.lora_{x}", shape, f"{r} of init_r = {init_r} triplets are left")
                   for x, shape in (("A", (r, d_in)), ("E", (r, 1)), ("B", (d_out, r))))
        if not (A is None or E is None or B is None):
            found |= {ours: part for ours, part in parted(path, B, A, E[:, 0])}
    if masks.keys() - used:
        raise ValueError(f"{config.path}: rank_pattern names {sorted(masks.keys() - used)[:8]}, which target_modules does not")
    if not found: return None, {}
    most, state = max(1, *(len(Q) for _, Q, _ in found.values())), {}
    for ours, (P, Q, Lam) in found.items():
        more = 0, most - len(Q)
        state |= {f"{ours}.P": np.pad(P, ((0, 0), more)), f"{ours}.Lam": np.pad(Lam, more),
                  f"{ours}.Q": np.pad(Q, (more, (0, 0)))}
    scale = config.get("lora_alpha", float, 8.0) / (init_r + 1e-5)          # AdaLoRA refuses one that is not positive
    method = AdaLoRA(most, min(config.get("target_r", int, 8), most), t_init=config.get("tinit", int, 0),
                     t_final=config.get("tfinal", int, 0), delta_t=config.get("deltaT", int, 1),
                     beta1=config.get("beta1", float, 0.85), beta2=config.get("beta2", float, 0.85),
                     gamma=config.get("orth_reg_weight", float, 0.5), alpha=scale * most,
                     dropout=config.get("lora_dropout", float, 0.0), targets=targets(model, found), orthogonality="norm",
                     importance="after")
    return method, state


def adapted(model, config):
    """(their path, d_in, d_out) of the layers that a folder adapts. MethodError if it does more than is done here."""
    if (bias := config.get("bias", str, "none")) != "none":
        raise MethodError(f"load_adapter: bias={bias!r} is not supported: here an adapter leaves the base's biases alone")
    init = config.get("init_lora_weights", (bool, str), True)
    if init not in (True, False, "gaussian", "eva", "orthogonal"):
        raise MethodError(f"load_adapter: init_lora_weights={init!r} is not supported: it changed the base's weights as well, "
                          "which the folder does not hold; save with path_initial_model_for_weight_conversion in PEFT")
    d, L = model.config.d_model, model.config.n_layers
    linear = [f"transformer.h.{n}.{theirs}" for n in range(L) for theirs in LAYERS]
    inner = ["attn", "mlp", "ln_1", "ln_2", "attn.attn_dropout", "attn.resid_dropout", "mlp.act", "mlp.dropout"]
    others = ["transformer", "transformer.wte", "transformer.wpe", "transformer.drop", "transformer.h", "transformer.ln_f",
              *(f"transformer.h.{n}" for n in range(L)), *(f"transformer.h.{n}.{x}" for n in range(L) for x in inner),
              *(["lm_head"] if config.task() != "SEQ_CLS" else [])]
    hit = config.hits(linear + others, linear)
    if wrong := [p for p in hit if p not in linear]:
        raise MethodError(f"load_adapter: target_modules {str(config.fields.get('target_modules'))[:200]!r} names {wrong[0]}; "
                          "here low-rank changes are for the linear layers of blocks, not for embeddings, norms or the "
                          "output head, which is the token embedding (tied)")
    return [(p, *(d * n for n in MODULES[p.split(".", 3)[3]][1])) for p in hit]


def check_rank(r):
    if r < 1: raise MethodError(f"load_adapter: the rank must be at least 1, got {r}")


def parted(path, left, right, diagonal=None):
    """(our path, (left, right, diagonal)) of each part of their layer that is changed; rows it does not use are left out."""
    _, _, n, theirs = path.split(".", 3)
    parts = LAYERS[theirs]
    whole = len(parts) == 1 or not left.any()                             # nothing tells the parts apart
    for part, rows in zip(parts, np.split(left, len(parts)), strict=True):
        used = np.ones(len(right), bool) if whole else rows.any(0)
        if whole or used.any():
            yield f"blocks.{n}.{part}", (rows[:, used], right[used], None if diagonal is None else diagonal[used])


def targets(model, paths):
    """Targets that name exactly `paths`: by their last parts, if every block has them."""
    names = list(dict.fromkeys(p.rsplit(".", 1)[-1] for p in paths))
    return tuple(names if len(paths) == len(names) * model.config.n_layers else paths)
