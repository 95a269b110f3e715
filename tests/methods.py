"""The table of methods: what the tests need to know of each, one row a method.

`peft/test_methods.py` holds what every method promises, as functions of a row. Every other test of all methods takes them
from here. A new method is one row, and a file of its own for what it alone promises.
"""
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

import tinypeft as tp
from tests.protocol import hold_norm

__all__ = ["GPT_LAYERS", "ROWS", "SMALL", "Row", "Size", "bias", "instances", "linear", "rank_of", "size_of", "weight",
           "with_dropout"]

GPT_LAYERS = "query", "key", "value", "output", "up", "down"
THREE = "query", "up", "down"                            # square, wide and tall


class Size(NamedTuple):
    """What a method is counted on."""
    layers: dict                                         # path → (d_in, d_out) of each layer with a wrapper
    d: int                                               # the model's width
    blocks: int
    keys: int                                            # numbers of a position's keys in one block
    parameters: dict                                     # name → how many numbers


class Theirs(NamedTuple):
    """PEFT's form of a method."""
    config: Callable                                     # method → PEFT's configuration
    names: dict                                          # our Parameter's name → theirs, ".T" where it is transposed
    races: tuple = ()                                    # the settings that PEFT has, if not all of the row's
    draw: Callable | None = None                         # (our layer, theirs): copies what is drawn and not trained


@dataclass(frozen=True)
class Row:
    """A method as it is tested, and in what it differs from the others."""
    small: tp.Method                                     # on every family, on plain weights and on codes
    count: Callable                                      # (method, Size) → numbers trained
    others: tuple = ()                                   # other settings, on a GPT
    stored: Callable | None = None                       # (method, Size) → numbers saved, if not as many as are trained
    equation: Callable | None = None                     # (method, layer, x (n, d_in)) → y (n, d_out), in plain NumPy
    starts: str = "the base"                             # "near the base"; "elsewhere": virtual tokens change the text
    drawn: tuple = ()                                    # other settings that start at what is drawn
    no_merge: str = ""                                   # why it does not merge, in the error's words
    before: bool = False                                 # it reads the layer itself: nothing may change that before it
    low_rank: bool = False                               # `combine` and `ranks` read its factors
    has_ranks: bool = False                              # `set_rank` cuts it
    folds: bool = False                                  # `fold` leaves out what made its numbers
    from_codes: bool = False                             # `loftq` starts it from what codes leave
    no_folder: str = ""                                  # why PEFT has no folder of it for a GPT
    no_codes: str = ""                                   # why codes refuse it
    still: tuple = ()                                    # ends of names of what three steps need not move
    bends: tuple = ()                                    # settings that bend within a step: ReLU, or large changes
    hold: Callable = lambda layer: None                  # makes what the gradient takes as a constant one
    too_much: tuple = ()                                 # (method, words): fields that a GPT 16 wide has no room for
    peft: Theirs | None = None


# -- equations: what a layer with the method on it computes, from the paper -----------------------------------------------
def weight(layer):
    return layer.base.dense_weight()


def bias(layer):
    b = layer.base.bias
    return 0 if b is None else b.data


def linear(x, W, b):
    return x @ W.T + b


def changed(change):
    """Make y = (W + ΔW) x + b of a function (method, layer) → ΔW."""
    return lambda m, layer, x: linear(x, weight(layer) + change(m, layer), bias(layer))


def product(m, layer):
    return m.alpha / m.rank * layer.B.data @ layer.A.data


def svd(m, layer):
    scale = (m.alpha or m.init_rank) / m.init_rank
    return scale * layer.P.data @ np.diag(layer.Lam.data) @ layer.Q.data


def repeated(m, layer):
    """MiSS: column j of the change is column j modulo r of D."""
    return layer.D.data[:, np.arange(layer.d_in) % m.rank]


def of_lengths(m, layer, x):
    """DoRA: each row has the length m and the direction of W₀ + s B A."""
    V = weight(layer) + product(m, layer)
    lengths = np.sqrt((V ** 2).sum(1))
    return x @ V.T * (layer.m.data / lengths) + bias(layer)


def scaled_rows(m, layer):
    A, B = layer.shared["A"][:, :layer.d_in], layer.shared["B"][:layer.d_out]
    return np.diag(layer.b.data) @ B @ np.diag(layer.d.data) @ A


def sum_of_products(m, layer):
    d, D = sorted((layer.d_in, layer.d_out))
    n = math.ceil(d / m.rank)
    A, B = layer.shared["A"][:, :d], layer.shared["B"][:D, :n * m.rank]
    terms = (B[:, j::n] @ np.diag(layer.Lam.data[:, j]) @ A @ np.diag(layer.Gam.data[j]) for j in range(n))
    total = m.alpha / m.rank * sum(terms)
    return total if layer.d_out >= layer.d_in else total.T


def waves(m, layer):
    d1, d2 = layer.d_out, layer.d_in
    F = np.zeros((d1, d2), complex)
    F[tuple(layer.E)] = layer.c.data
    return m.alpha * np.fft.ifft2(F).real


def circulant(m, layer):
    n, k, b = layer.w.shape
    turned = np.stack([np.roll(layer.w.data, i, axis=2) for i in range(b)], axis=2)             # (n, k, b rows, b)
    return turned.transpose(0, 2, 1, 3).reshape(n * b, k * b) / layer.d_in


def hadamard(m, layer):
    return m.alpha / m.rank * (layer.B1.data @ layer.A1.data) * (layer.B2.data @ layer.A2.data)


def kronecker(m, layer):
    return m.alpha / m.rank * np.kron(layer.C.data, layer.B.data @ layer.A.data)


def sparse(m, layer):
    S = np.zeros(layer.d_out * layer.d_in)
    S[layer.places] = layer.values.data
    return S.reshape(layer.d_out, layer.d_in)


def rotated(m, layer, x):
    """OFT: blocks of the input turn by R = (I + Q)(I − Q)⁻¹."""
    b, I = m.block_size, np.eye(m.block_size)
    y = x.copy()
    for i, q in enumerate(layer.q.data):
        Q = np.zeros((b, b))
        Q[np.triu_indices(b, 1)] = q
        Q = Q - Q.T
        y[:, i * b:(i + 1) * b] = x[:, i * b:(i + 1) * b] @ (I + Q) @ np.linalg.inv(I - Q)
    return linear(y, weight(layer), bias(layer))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x ** 3)))


def behind(m, layer, x):
    h = linear(x, weight(layer), bias(layer))
    return h + linear(gelu(linear(h, layer.W_d.data, layer.b_d.data)), layer.W_u.data, layer.b_u.data)


def beside(m, layer, x):
    """The layer is a whole sublayer here, which reads a row of states."""
    z = linear(gelu(linear(x, layer.W_down.data, layer.b_down.data)), layer.W_up.data, layer.b_up.data)
    return layer.base(tp.Tensor(x[None])).data[0] + m.scale * z


def scaled(m, layer, x):
    """(IA)³: l multiplies the inputs of the layers of `feedforward`, and the outputs of others."""
    if "input" in layer.describe(): return linear(x * layer.l.data, weight(layer), bias(layer))
    return layer.l.data * linear(x, weight(layer), bias(layer))


# -- counts ----------------------------------------------------------------------------------------------------------------
def each_layer(count):
    """Add up count(method, path, d_in, d_out) over the wrapped layers."""
    return lambda m, size: sum(count(m, path, d_in, d_out) for path, (d_in, d_out) in size.layers.items())


def named(name, path):
    return f".{name}." in f".{path}."


def rank_of(m, path):
    """Look up the rank of a layer: the longest of the patterns that name it decides."""
    ranks = {name: r for name, r in (m.rank_pattern or {}).items() if named(name, path)}
    return ranks[max(ranks, key=lambda name: name.count("."))] if ranks else m.rank


def divisor(d):
    """Find the largest divisor of d that is at most √d."""
    return max(k for k in range(1, math.isqrt(d) + 1) if d % k == 0)


def of_vera(m, size):
    widest, tallest = (max(sides) for sides in zip(*size.layers.values(), strict=True))
    return m.rank * (widest + tallest)


def of_randlora(m, size):
    d, D = sorted(max(sides) for sides in zip(*size.layers.values(), strict=True))
    return m.rank * (d + D * math.ceil(d / m.rank))


def of_ia3(m, path, d_in, d_out):
    is_inner = any(named(name, path) for name in m.feedforward or ())
    return d_in if is_inner else d_out


def of_mlp(m, size):
    """W and b, down and up."""
    return 2 * size.d * m.bottleneck + size.d + m.bottleneck


def of_norms(size):
    return sum(n for name, n in size.parameters.items() if "norm" in name)


def of_prefix(m, size):
    """P, W₁ and b₁, W₂ and b₂; or the keys and values themselves."""
    if not m.reparameterize: return keys_and_values(m, size)
    h = m.hidden or size.keys // 2
    return m.length * size.keys + (size.keys * h + h) + 2 * size.blocks * size.keys * (h + 1)


def keys_and_values(m, size):
    return 2 * m.length * size.blocks * size.keys


def of_full(m, size):
    return sum(n for name, n in size.parameters.items() if m.targets is None or any(named(t, name) for t in m.targets))


def of_ptuning(m, size):
    """The pseudo-tokens, a BiLSTM of two layers, and an MLP of two."""
    d, n = size.d, m.hidden
    lstm = 8 * (n * d + n * n + 2 * n) + 8 * (3 * n * n + 2 * n)
    mlp = (2 * n * 2 * n + 2 * n) + (2 * n * d + d)
    return sum(m.counts) * d + lstm + mlp


# -- PEFT ------------------------------------------------------------------------------------------------------------------
def config(name, also=lambda m: {}, **fields):
    """Make a function of the method that makes PEFT's configuration of it: PEFT's name → our field."""
    def make(m):
        import peft
        targets = list(GPT_LAYERS if m.targets == "all" else m.targets)
        return getattr(peft, name)(target_modules=targets, **{k: getattr(m, f) for k, f in fields.items()}, **also(m))
    return make


def lora_config(**own):
    def also(m): return {"rank_pattern": m.rank_pattern or {}, "alpha_pattern": m.alpha_pattern or {}, **own}
    return config("LoraConfig", also, r="rank", lora_alpha="alpha", use_rslora="rank_stabilized")


def same_bases(stem):
    """Give PEFT's layer our frozen A and B."""
    def draw(layer, theirs):
        import torch
        for name, array in layer.shared.items():
            buffer = getattr(theirs, f"{stem}_{name}")["default"]
            buffer.copy_(torch.as_tensor(array.copy()).reshape(buffer.shape))
    return draw


def same_places(layer, theirs):
    import torch
    assert theirs.shira_indices["default"].shape == (2, len(layer.places))
    theirs.shira_indices["default"] = torch.as_tensor(np.stack(np.divmod(layer.places, layer.d_in)))


# -- the rows --------------------------------------------------------------------------------------------------------------
VIRTUAL, CONV1D = "virtual tokens", "GPT-2's are Conv1D"
LORAS = [dict(rank=4, alpha=8, targets=GPT_LAYERS), dict(rank=4, alpha=8, rank_stabilized=True, init="gaussian"),
         dict(rank=2, alpha=3, targets=("query", "up"), rank_pattern={"up": 5}, alpha_pattern={"blocks.1.mlp.up": 1})]
SHORT = dict(t_init=1, t_final=1, delta_t=1)             # a budget that falls within three steps


def beyond_width(cls, *words):
    """A rank above what a width of 16 holds, and the words that refuse it."""
    return [(cls(17), *(words or ["rank 17 exceeds 16"]))]


ROWS = {
    "full": Row(
        full := tp.FullFineTuning(), of_full, (some := tp.FullFineTuning(("query", "mlp", "norm1")),),
        no_codes="codes cannot be trained", bends=(full, some)),
    "lora": Row(
        tp.LoRA(rank=2, alpha=2, targets="all"),
        each_layer(lambda m, path, i, o: rank_of(m, path) * (i + o)),
        tuple(tp.LoRA(**fields) for fields in LORAS),
        equation=changed(product), low_rank=True, from_codes=True, too_much=beyond_width(tp.LoRA),
        peft=Theirs(lora_config(), {"A": "lora_A", "B": "lora_B"})),
    "adalora": Row(
        tp.AdaLoRA(init_rank=4, target_rank=2, **SHORT, targets=("value", "down")),
        each_layer(lambda m, path, i, o: m.init_rank * (i + o + 1)),
        (tp.AdaLoRA(init_rank=6, target_rank=3, **SHORT, targets="all", alpha=3.0),),
        equation=changed(svd), low_rank=True, still=(".Lam",), too_much=beyond_width(tp.AdaLoRA)),
    "dylora": Row(
        tp.DyLoRA(rank=4, alpha=4, targets="all"),
        each_layer(lambda m, path, i, o: m.rank * (i + o)),
        (tp.DyLoRA(rank=5, alpha=3.0, targets=("query", "up")),
         tp.DyLoRA(rank=8, block_size=4, frozen=True, distribution="geometric")),
        equation=changed(product), low_rank=True, has_ranks=True, too_much=beyond_width(tp.DyLoRA)),
    "miss": Row(
        tp.MiSS(rank=3, targets="all"),
        each_layer(lambda m, path, i, o: m.rank * o),
        (tp.MiSS(4, targets=THREE), tp.MiSS(5, targets=THREE)),              # 4 divides 16 and 64; 5 divides neither
        no_folder=CONV1D, equation=changed(repeated), low_rank=True, too_much=beyond_width(tp.MiSS),
        peft=Theirs(config("MissConfig", r="rank"), {"D": "miss_block.T"})),
    "dora": Row(
        tp.DoRA(rank=2, alpha=3, targets="all"),
        each_layer(lambda m, path, i, o: rank_of(m, path) * (i + o) + o),
        tuple(tp.DoRA(**fields) for fields in LORAS),
        equation=of_lengths, before=True, hold=hold_norm, too_much=beyond_width(tp.DoRA),
        peft=Theirs(lora_config(use_dora=True), {"A": "lora_A", "B": "lora_B", "m": "lora_magnitude_vector"})),
    "vera": Row(
        tp.VeRA(rank=5, targets=("query", "value", "down")),
        vera := each_layer(lambda m, path, i, o: m.rank + o),
        (tp.VeRA(5, targets=THREE), tp.VeRA(40), tp.VeRA(100, d_initial=1e-2)),
        stored=lambda m, size: vera(m, size) + of_vera(m, size), equation=changed(scaled_rows),
        peft=Theirs(config("VeraConfig", r="rank"), {"d": "vera_lambda_d", "b": "vera_lambda_b"}, draw=same_bases("vera"))),
    "randlora": Row(
        tp.RandLoRA(rank=3, alpha=1, targets=("query", "value", "down")),
        randlora := each_layer(lambda m, path, i, o: math.ceil(min(i, o) / m.rank) * (m.rank + min(i, o))),
        (tp.RandLoRA(3, alpha=2, targets=THREE), tp.RandLoRA(4, alpha=2), tp.RandLoRA(20, alpha=20)),
        stored=lambda m, size: randlora(m, size) + of_randlora(m, size), equation=changed(sum_of_products),
        peft=Theirs(config("RandLoraConfig", r="rank", randlora_alpha="alpha"),
                    {"Lam": "randlora_lambda", "Gam": "randlora_gamma"}, draw=same_bases("randlora"))),
    "fourierft": Row(
        tp.FourierFT(20, alpha=20, targets="all"),
        each_layer(lambda m, path, i, o: m.frequencies),
        (tp.FourierFT(40, targets=THREE), waved := tp.FourierFT(40, alpha=200, std=1.0, targets=THREE)),
        drawn=(waved,), bends=(waved,), no_folder="PEFT has one FourierFT for .*c_attn", equation=changed(waves),
        too_much=[(tp.FourierFT(257), "frequencies is 257, but a 16 × 16 matrix has 256")]),
    "loha": Row(
        tp.LoHa(rank=2),
        each_layer(lambda m, path, i, o: 2 * m.rank * (i + o)),
        (tp.LoHa(3, alpha=6, targets=THREE),),
        no_folder=CONV1D, equation=changed(hadamard), too_much=beyond_width(tp.LoHa),
        peft=Theirs(config("LoHaConfig", r="rank", alpha="alpha"),
                    {"B1": "hada_w1_a", "A1": "hada_w1_b", "B2": "hada_w2_a", "A2": "hada_w2_b"})),
    "lokr": Row(
        tp.LoKr(rank=2, targets=("query", "up")),
        each_layer(lambda m, path, i, o: divisor(i) * divisor(o) + m.rank * (i // divisor(i) + o // divisor(o))),
        (thin := tp.LoKr(1, alpha=4, targets=THREE),),
        no_folder=CONV1D, equation=changed(kronecker), too_much=beyond_width(tp.LoKr),
        peft=Theirs(config("LoKrConfig", r="rank", alpha="alpha"), {"C": "lokr_w1", "B": "lokr_w2_a", "A": "lokr_w2_b"},
                    races=(thin,))),                     # of half the rank or more PEFT makes one matrix
    "hira": Row(
        tp.HiRA(rank=2),
        each_layer(lambda m, path, i, o: m.rank * (i + o)),
        (tp.HiRA(3, targets=THREE),),
        equation=changed(lambda m, layer: weight(layer) * (layer.B.data @ layer.A.data)), before=True,
        too_much=beyond_width(tp.HiRA), peft=Theirs(config("HiraConfig", r="rank"), {"A": "hira_A", "B": "hira_B"})),
    "c3a": Row(
        tp.C3A(targets="all"),
        each_layer(lambda m, path, i, o: i * o // (m.block_size or math.gcd(i, o))),
        (tp.C3A(4, targets=THREE), xavier := tp.C3A(4, init="xavier", targets=THREE)),
        drawn=(xavier,), no_folder=CONV1D, equation=changed(circulant),
        too_much=[(tp.C3A(3, targets=THREE), "block_size 3 does not divide the sides of all target layers; 1, 2, 4, 8, 16 do"),
                  (tp.C3A(32, targets=("up",)), "block_size 32 does not")]),
    "shira": Row(
        tp.SHiRA(rank=1, targets=("query", "up")),
        each_layer(lambda m, path, i, o: m.rank * (i + o)),
        (tp.SHiRA(2, targets=THREE),),
        no_folder=CONV1D, equation=changed(sparse),
        too_much=[(tp.SHiRA(9), "SHiRA: rank 9 asks for 288 of the 256 numbers of a 16 × 16 matrix")],
        peft=Theirs(config("ShiraConfig", r="rank"), {"values": "shira_weight"}, draw=same_places)),
    "oft": Row(
        tp.OFT(4, targets=("query", "up")),
        each_layer(lambda m, path, i, o: i * (m.block_size - 1) // 2),
        (tp.OFT(4, targets=THREE), whole := tp.OFT(16, targets="all"), tp.OFT(2, targets=THREE),
         tp.OFT(4, neumann_terms=5, targets=THREE)),
        no_folder=CONV1D, bends=(whole,), equation=rotated,
        too_much=[(tp.OFT(b), f"OFT: block_size {b} does not divide the 16 inputs of blocks.0.attention.query; what does: "
                   "2, 4, 8, 16$") for b in (32, 5)]),
    "adapter": Row(
        tp.BottleneckAdapter(4),
        lambda m, size: (2 if m.placement == "houlsby" else 1) * size.blocks * of_mlp(m, size) + m.norms * of_norms(size),
        (tp.BottleneckAdapter(4, placement="pfeiffer", norms=False),
         tp.BottleneckAdapter(4, activation="tanh", activation_up=True)),
        equation=behind, starts="near the base", no_merge="has no `merge`; keep the method attached",
        too_much=[(tp.BottleneckAdapter(16), "does not narrow")]),
    "parallel_adapter": Row(
        tp.ParallelAdapter(4, beside="both", activation="gelu"),
        lambda m, size: (1 + (m.beside == "both")) * size.blocks * of_mlp(m, size),
        (relu := tp.ParallelAdapter(4), tp.ParallelAdapter(4, beside="both", activation="silu"),
         attention := tp.ParallelAdapter(4, scale=2.0, beside="attention")),
        equation=beside, no_merge="has no `merge`; keep the method attached", bends=(relu, attention),
        too_much=[(tp.ParallelAdapter(16), "does not narrow")]),
    "ia3": Row(
        tp.IA3(),
        each_layer(of_ia3),
        (tp.IA3(targets=("query", "key", "value", "down")), tp.IA3(targets="all", feedforward=("up", "down")),
         tp.IA3(targets=("value", "blocks.1.mlp.up"), feedforward=None)),
        equation=scaled,
        too_much=[(tp.IA3(targets=("key", "value")), "'down' matches none of the targets.*add it to targets"),
                  (tp.IA3(feedforward=("c_proj",)), "feedforward: 'c_proj' matches none of the targets")],
        peft=Theirs(config("IA3Config", lambda m: {"feedforward_modules": list(m.feedforward or ())}), {"l": "ia3_l"})),
    "loreft": Row(
        tp.LoReFT(rank=2, first=2, last=1),
        lambda m, size: (2 - m.tied) * size.blocks * (2 * size.d + 1) * m.rank,
        (tp.LoReFT(rank=3, first=2, last=1), tp.LoReFT(rank=2, first=7, last=7, tied=False)),
        no_merge="works by a hook on states", no_folder="PEFT has no counterpart of LoReFT",
        too_much=beyond_width(tp.LoReFT, "rank 17 exceeds 16, the width")),
    "trainable_tokens": Row(
        tp.TrainableTokens((3, 7, 1, 36, 20)),
        lambda m, size: len({*m.tokens}) * size.d,
        (tp.TrainableTokens((0,)), tp.TrainableTokens((7, 7, 7))),
        too_much=[(tp.TrainableTokens((37,)), r"tokens must be words or ids in \[0, 37\)")]),
    "prefix": Row(
        tp.PrefixTuning(3, hidden=5), of_prefix,
        (tp.PrefixTuning(3, reparameterize=False), tp.PrefixTuning(3, hidden=12, init="random")),
        stored=keys_and_values, starts="elsewhere", no_merge=VIRTUAL, folds=True,
        too_much=[(tp.PrefixTuning(24), "24 virtual tokens leave no room")]),
    "prompt": Row(
        tp.PromptTuning(3),
        lambda m, size: m.length * size.d,
        (tp.PromptTuning(3, "random"), tp.PromptTuning(3, "text", (7, 1))),
        starts="elsewhere", no_merge=VIRTUAL, too_much=[(tp.PromptTuning(24), "no room")]),
    "ptuning": Row(
        ptuning := tp.PTuning(hidden=4), of_ptuning,
        stored=lambda m, size: sum(m.counts) * size.d, starts="elsewhere", no_merge=VIRTUAL, folds=True, bends=(ptuning,),
        too_much=[(tp.PTuning((24, "target")), "no room"), (tp.PTuning(separator=37), r"\[0, 37\)")]),
    "ptuning_v2": Row(
        tp.PTuningV2(3, dropout=0.0), of_prefix,
        (tp.PTuningV2(3), tp.PTuningV2(3, init="random"), tp.PTuningV2(3, reparameterize=True, hidden=5)),
        stored=keys_and_values, starts="elsewhere", no_merge=VIRTUAL,
        too_much=[(tp.PTuningV2(24), "PTuningV2: 24 virtual tokens leave no room")])}
SMALL = {name: row.small for name, row in ROWS.items()}


def instances(row):
    """List the settings of a row, the small one first."""
    return [row.small, *row.others]


def size_of(tuned):
    """Take the sizes that a method is counted by, of the base below it."""
    base, c = tuned.frozen, tuned.config
    layers = {path: base.get(path) for path in tuned.wrappers}
    keys = getattr(c, "n_kv_heads", c.n_heads) * getattr(c, "d_head", c.d_model // c.n_heads)
    return Size({path: (layer.d_in, layer.d_out) for path, layer in layers.items() if hasattr(layer, "d_in")},
                c.d_model, c.n_layers, keys, {name: p.size for name, p in base.named_parameters()})


def with_dropout(method):
    """Give a method half of its inputs dropped, or return None if it has no dropout."""
    has_it = "dropout" in {f.name for f in dataclasses.fields(method)}
    return dataclasses.replace(method, dropout=0.5) if has_it else None
