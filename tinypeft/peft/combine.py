"""combine: several low-rank adapters of one base become one LoRA.

Adapter i changes a weight by ΔWᵢ = sᵢ Bᵢ Aᵢ, and has the number wᵢ. `how` says what ΔW becomes:

    cat        Σ wᵢ ΔWᵢ, exactly:  B = [w₁ s₁ B₁, w₂ s₂ B₂, …],  A = [A₁; A₂; …]; ranks add up
    svd        the matrix of rank r that is nearest to that sum: its r largest singular values
    linear     B A with B = Σ √|wᵢ sᵢ| Bᵢ and A = Σ ±√|wᵢ sᵢ| Aᵢ; ± is the sign of wᵢ
    ties       trim, elect and mean: Yadav et al., arXiv 2306.01708, section 4
    dare       drop and rescale, then sum: Yu et al., arXiv 2311.03099, section 3
    dare_ties  drop and rescale, then elect and mean

    trim       Tᵢ ← Tᵢ where |Tᵢ| is among the largest of its matrix, a share `density`; else 0
    drop       Tᵢ ← Tᵢ / density with probability `density`, else 0, number by number
    elect      γ ← the sign of Σ Tᵢ, number by number; for `sign="frequency"`, of Σ sgn Tᵢ
    mean       the mean of wᵢ Tᵢ over those i that have sgn Tᵢ = γ; 0 if there are none

Here Tᵢ = ΔWᵢ, and the result, which has any rank, is replaced by the nearest one of rank r, as in
"svd". With `factors=True` B and A take the place of ΔW, each on its own. An adapter that does not
change a layer has no part in that layer. With all wᵢ = λ, "ties" is λ times the mean, as in the
paper.

The sum of two changes is what two adapters would do at once. "linear" is not that sum: its B A has
the products B₁ A₂ and B₂ A₁ as well, which mean nothing if the adapters were trained apart.

Where implementations differ. The names of PEFT's `add_weighted_adapter` are, for "ties", "dare" and
"dare_ties": ties_svd, dare_linear_svd, dare_ties_svd, and with `factors=True` ties, dare_linear,
dare_ties. As PEFT does, this file trims each matrix by itself, where the paper trims all numbers of
an adapter together; it elects by numbers without their wᵢ. PEFT puts the singular values into B;
here B and A have their roots, so that both have gradients of one size.
"""
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..common.hints import Array, Rng, Seed
from ..common.hyper import Checked, flag, one_of, real, whole
from ..engine.nn import Linear, are_twins
from ..files import fingerprint
from ..models.decoder import Decoder
from ..models.targets import names_for
from ..text.tasks.saved import common_task
from .folders import attach_with, fingerprints, load_adapter
from .lora import LoRA
from .low_rank import LowRankLinear, halves, thin_svd
from .method import Method, MethodError
from .model import PeftModel
from .switching import plain_twin

__all__ = ["Combination", "combine", "with_pairs"]

Adapter = PeftModel | str | Path
Pairs = Mapping[str, tuple[Array, Array]]
FINITE = real(1.0).metadata["limit"]


def combine(adapters: Mapping[Adapter, float], how: str = "cat", *, rank: int | None = None,
            density: float | None = None, sign: str = "total", factors: bool = False,
            head: Adapter | None = None, model: Decoder | None = None, rng: Seed = 0) -> PeftModel:
    """Make one LoRA of several adapters, on their base: `combine({a: 0.7, b: 0.3})`.

    adapters: PeftModel, or folder of a saved adapter → its number w, which may be negative. All are
    low-rank (LoRA, AdaLoRA, DyLoRA, MiSS), of one base, and have no part that is off; ranks and
    targets may differ. Each stays as it is. how,
    density, sign, factors: see the module; density lies in (0, 1], and is the paper's 0.2 for
    "ties" if it is not given. rank: of the nearest matrix; by default the largest that an adapter
    has in the layer. head: the adapter whose classification head is kept, because heads are not
    combined.
    The result's `task` is that adapter's, or what all of them have in common.
    model: the base, if all adapters are folders. rng: what "dare" draws from.

    Raises MethodError, and leaves all as it was, if that is not possible.
    """
    recipe = Combination(how, rank, density, sign, factors)
    w = numbers(adapters)
    rng = np.random.default_rng(rng)
    base = base_of(adapters, model)
    opened = {adapter: on_base(adapter, base) for adapter in adapters}
    for tuned in opened.values():
        check_low_rank(tuned)
    pairs = combined(as_it_was(base), list(opened.values()), w, recipe, rng)
    result = with_pairs(base, pairs, head_of(opened, head))
    result.task = task_of(opened, head)
    return result


def with_pairs(base: Decoder | PeftModel, pairs: Pairs, classifier: Linear | None,
               beside: Mapping[str, Method] | None = None,
               weights: Mapping[str, Array] | None = None) -> PeftModel:
    """Attach a LoRA with s = 1 and these matrices, path → (B, A), and a copy of `classifier`.

    beside, weights: other methods, and their arrays."""
    r, others = common({path: len(A) for path, (B, A) in pairs.items()})
    targets = names_for(pairs, base.config.n_layers)
    lora = LoRA(r, r, targets=targets, rank_pattern=others, alpha_pattern=others)
    state = dict(weights or {})
    for path, (B, A) in pairs.items():
        state[f"LoRA/{path}.B"] = B
        state[f"LoRA/{path}.A"] = A
    methods = {"LoRA": lora, **(beside or {})}
    if classifier is None:
        return attach_with(base, methods, state)
    state |= {f"head.{name}": array for name, array in classifier.state_dict().items()}
    return attach_with(base, methods, state, head=classifier.d_out,
                       head_bias=classifier.bias is not None)


# -- the adapters --------------------------------------------------------------------------------
def base_of(adapters: Iterable[Adapter], model: Decoder | None) -> Decoder | PeftModel:
    """Return what several adapters are on: `model`, or the first PeftModel, for its base."""
    for adapter in adapters:
        if not isinstance(adapter, (PeftModel, str, Path)):
            raise TypeError("combine: expected PeftModels or folders, got a "
                            f"{type(adapter).__name__}")
    tuned = [adapter for adapter in adapters if isinstance(adapter, PeftModel)]
    base = model or (tuned[0] if tuned else None)
    if not isinstance(base, (Decoder, PeftModel)):
        raise MethodError("combine: model= must be the base of the adapters in folders, got "
                          f"{type(base).__name__}")
    return base


def as_it_was(base: Decoder | PeftModel) -> Decoder:
    """Return the base, of a PeftModel as it was at `attach`."""
    return base.frozen if isinstance(base, PeftModel) else base


def on_base(adapter: Adapter, base: Decoder | PeftModel) -> PeftModel:
    """Return a PeftModel that learned on a base equal to `base`. A folder's is loaded."""
    base = as_it_was(base)
    if not isinstance(adapter, PeftModel):
        return loaded(adapter, base)
    is_same = are_twins(adapter.frozen, base)
    if not is_same and fingerprint(adapter.frozen.state_dict()) not in fingerprints(base):
        raise MethodError(f"combine: {adapter.method} is on a base with other weights, which its "
                          "numbers do not fit")
    return adapter


def loaded(folder, base):
    """Load the adapter in a folder; MethodError if it learned on another base."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*the base's weights differ")
        try:
            return load_adapter(plain_twin(base), folder)
        except UserWarning:
            raise MethodError(f"combine: {folder} learned on a base with other weights. If it fits "
                              "this one all the same, merge one adapter after the other, or in "
                              "Python combine what load_adapter(model, folder) returns") from None


def numbers(adapters):
    """Return the adapters' numbers w, (n,)."""
    if not isinstance(adapters, Mapping) or not adapters:
        kind = type(adapters).__name__ if adapters else "nothing"
        raise TypeError("combine: expected a dict from PeftModels or folders to numbers, such as "
                        f"{{a: 0.7, b: 0.3}}, got {kind}")
    for adapter, x in adapters.items():
        if not FINITE.holds(x):
            name = adapter.method if isinstance(adapter, PeftModel) else adapter
            raise MethodError(f"combine: {name} has {x!r}, expected a finite number")
    return np.array(list(adapters.values()), float)


def check_low_rank(tuned):
    """Raise MethodError unless all that was learned is low-rank changes of layers, or a head."""
    tuned.check_parts_there()
    tuned.check_none_off("combine")
    if tuned.trained:
        raise MethodError(f"combine: {tuned.method} trains parameters of the base, such as "
                          f"{next(iter(tuned.trained))}; only low-rank changes can be combined")
    changed = {}                                                      # path → name of its part
    for name, part in tuned.parts.items():
        if part.virtual or not all(layer.is_low_rank for layer in part.wrappers.values()):
            raise MethodError(f"combine: {part.method} is not a LoRA, AdaLoRA, DyLoRA or MiSS; "
                              "only low-rank changes can be combined")
        for path in part.wrappers:
            if path in changed:
                raise MethodError(f"combine: {changed[path]} and {name} both change {path}; an "
                                  "adapter may change a layer once. Merged, they are one model "
                                  "with both changes")
            changed[path] = name
    if not changed:
        raise MethodError(f"combine: {tuned.method} changes no layer; only low-rank changes can be "
                          "combined")


def head_of(opened, head):
    """Return the classifier of the adapter `head`, or None if none of them has a classifier."""
    if head is None and all(tuned.head is None for tuned in opened.values()):
        return None
    if head not in opened or opened[head].head is None:
        raise MethodError("combine: classification heads are not combined; `head` must name "
                          "one of the adapters, one that has a head, which is kept")
    return opened[head].head


def task_of(opened, head):
    """Return the task of the adapter whose head is kept, or the one that all have; else None."""
    if head is not None:
        return opened[head].task
    return common_task([tuned.task for tuned in opened.values()])


# -- the matrices --------------------------------------------------------------------------------
def combined(base, tuned, w, recipe, rng):
    """Combine each layer that an adapter changes, from top to bottom: path → (B, A)."""
    wrappers = [t.wrappers for t in tuned]
    pairs = {}
    for path, _ in base.named_modules():
        changing = [i for i in range(len(tuned)) if path in wrappers[i]]
        if changing:
            layers = [wrappers[i][path] for i in changing]
            pairs[path] = recipe.pair(path, layers, w[changing], rng)
    return pairs


def common(ranks):
    """Return the rank that most layers have, and a pattern of the others: a name → rank, or None.
    """
    r = Counter(ranks.values()).most_common(1)[0][0]
    pattern = {}
    for path, rank in ranks.items():
        if rank != r:
            name = path.rpartition(".")[2]
            of_name = {ranks[other] for other in ranks if other.endswith(f".{name}")}
            pattern[name if of_name == {rank} else path] = rank
    return r, pattern or None


def trim(T, density, rng):
    """Keep the share `density` of each matrix that is largest in magnitude; the paper's is 0.2."""
    return np.array([trimmed(t, density or 0.2) for t in T])


def drop(T, density, rng):
    """Keep each number with probability `density`, and divide it by that."""
    return T * (rng.random(T.shape) < density) / density


def add(T, w, sign):
    """Compute Σ wᵢ Tᵢ."""
    return (w * T).sum(0)


def elect(T, w, sign):
    """Compute the mean of wᵢ Tᵢ over those that agree with γ, number by number."""
    votes = (T if sign == "total" else np.sign(T)).sum(0)
    agree = np.sign(T) == np.where(votes >= 0, 1, -1)
    return (w * T * agree).sum(0) / np.maximum(agree.sum(0), 1)


# how → (what makes the matrices sparse, what makes one of them)
SPARSE = {"ties": (trim, elect), "dare": (drop, add), "dare_ties": (drop, elect)}


@dataclass(frozen=True)
class Combination(Checked):
    """The options of `combine`, and what they make of one layer's matrices."""
    how: str = one_of("cat", "svd", "linear", *SPARSE)
    rank: int | None = whole(None, least=1, or_none=True)
    density: float | None = real(None, above=0, most=1, or_none=True)
    sign: str = one_of("total", "frequency")
    factors: bool = flag(False)
    error = MethodError

    def check(self) -> None:
        option = f"combine: how {self.how!r}"
        if self.how in SPARSE:
            if self.density is None and SPARSE[self.how][0] is drop:
                raise MethodError(f"{option} needs density, the share of numbers that are not "
                                  "dropped")
        elif self.density is not None or self.factors:
            other = "factors" if self.factors else "density"
            raise MethodError(f"{option} makes nothing sparse; {other} is of 'ties', 'dare', "
                              "'dare_ties'")
        if self.rank is not None and (self.factors or self.how in ("cat", "linear")):
            raise MethodError(f"{option} gives the rank that the adapters have; rank is of the "
                              "nearest matrix: 'svd', or 'ties', 'dare', 'dare_ties' without "
                              "factors")

    def pair(self, path: str, layers: Sequence[LowRankLinear], w: Array,
             rng: Rng) -> tuple[Array, Array]:
        """Combine the layer at `path`: B (d_out, r) and A (r, d_in), in float64."""
        if self.factors or self.how == "linear":
            return self.factors_apart(path, layers, w, rng)
        r = self.rank or max(1, *(layer.rank for layer in layers))
        if self.how in SPARSE:
            W = self.merged([layer.delta() for layer in layers], w, rng)
            return halves(*np.linalg.svd(W, full_matrices=False), r)
        B, A = side_by_side(layers, w)
        if self.how == "cat":
            r = min(len(B), A.shape[1])                               # the rank of any matrix
            if len(A) <= r:
                return B, A
        return halves(*thin_svd(B, A), r)

    def factors_apart(self, path: str, layers: Sequence[LowRankLinear], w: Array,
                      rng: Rng) -> tuple[Array, Array]:
        """Merge B and A, each by itself."""
        s = np.array([layer.scale for layer in layers])
        sB, A = factors_of(layers)
        ranks = [len(a) for a in A]
        if len(set(ranks)) > 1:
            raise MethodError(f"combine: {path} has the ranks {', '.join(map(str, ranks))}; "
                              "factors of different ranks cannot be added, take 'cat' or 'svd'")
        B = [sb / x for sb, x in zip(sB, s, strict=True)]
        root = np.sqrt(np.abs(w * s))
        A = self.merged(A, np.sign(w) * root, rng)
        return self.merged(B, root, rng), A

    def merged(self, T: Sequence[Array], w: Array, rng: Rng) -> Array:
        """Make one matrix of several, each with its number."""
        T = np.array(T, float)                                        # (n, rows, columns)
        w = w.reshape(-1, 1, 1)
        if self.how == "linear":
            return add(T, w, self.sign)
        thin_out, to_one = SPARSE[self.how]
        return to_one(thin_out(T, self.density, rng), w, self.sign)


def factors_of(layers):
    """List the arrays s B of all layers, and their arrays A."""
    pairs = [layer.factors() for layer in layers]
    return [left.data for left, _ in pairs], [right.data for _, right in pairs]


def side_by_side(layers, w):
    """Write Σ wᵢ ΔWᵢ as one product: B = [w₁ s₁ B₁, w₂ s₂ B₂, …] and A = [A₁; A₂; …]."""
    sB, A = factors_of(layers)
    B = [x * sb.astype(float) for x, sb in zip(w, sB, strict=True)]
    B, A = np.hstack(B), np.vstack(A).astype(float)
    used = B.any(0)                                                   # a pruned triplet adds 0
    used[0] |= not used.any()
    return B[:, used], A[used]


def trimmed(t, density):
    """Keep the share `density` of the numbers that is largest in magnitude; set the others to 0."""
    order = np.argsort(-np.abs(t), axis=None, kind="stable")
    kept = order[:int(density * t.size)]
    out = np.zeros_like(t)
    out.flat[kept] = t.flat[kept]
    return out
