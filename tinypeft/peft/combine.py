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
import contextlib
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..common.hints import Array, Rng, Seed
from ..common.hyper import Checked, flag, one_of, real, whole
from ..engine.nn import Module
from ..files import fingerprint
from ..models.decoder import Decoder
from ..models.targets import names_for
from .attachment import bare
from .dylora import scale_of
from .folders import attach_with, fingerprints, load_adapter
from .lora import LoRA, LowRankLinear, thin_svd
from .method import MethodError
from .model import PeftModel

__all__ = ["Combination", "combine", "free_base", "on_base"]

Adapter = PeftModel | str | Path


def combine(adapters: Mapping[Adapter, float], how: str = "cat", *, rank: int | None = None,
            density: float | None = None, sign: str = "total", factors: bool = False,
            head: Adapter | None = None, model: Decoder | None = None, rng: Seed = 0) -> PeftModel:
    """One LoRA out of several adapters, on their base: `combine({a: 0.7, b: 0.3})`.

    adapters: PeftModel, or folder of a saved adapter → its number w, which may be negative. All are
    low-rank (LoRA, AdaLoRA, DyLoRA) and of one base; ranks and targets may differ. An adapter that
    is on the base is detached, and each stays as it is. how, density, sign, factors: see the
    module; density lies in (0, 1], and is the paper's 0.2 for "ties" if it is not given. rank: of
    the nearest matrix; by default the largest that an adapter has in the layer. head: the adapter
    whose classification head is kept, because heads are not combined. model: the base, if all
    adapters are folders. rng: what "dare" draws from.

    Raises MethodError, and leaves all as it was, if that is not possible.
    """
    recipe, w = Combination(how, rank, density, sign, factors), numbers(adapters)
    with free_base("combine", adapters, model) as base:
        opened = {adapter: low_rank(on_base("combine", adapter, base)) for adapter in adapters}
        kept = head_of(opened, head)
        pairs = combined(base, list(opened.values()), w, recipe, np.random.default_rng(rng))
        r, others = common({path: len(A) for path, (B, A) in pairs.items()})
        lora = LoRA(r, r, targets=names_for(pairs, base.config.n_layers), rank_pattern=others,
                    alpha_pattern=others)                         # α = r, so s = 1 everywhere
        state = {f"{path}.{name}": array for path, pair in pairs.items()
                 for name, array in zip("BA", pair, strict=True)}
        if kept is None: return attach_with(base, lora, state)
        state |= {f"head.{name}": array for name, array in kept.state_dict().items()}
        return attach_with(base, lora, state, head=kept.d_out, head_bias=kept.bias is not None)


# -- the adapters --------------------------------------------------------------------------------
@contextlib.contextmanager
def free_base(verb: str, adapters: Iterable[Adapter], model: Decoder | None) -> Iterator[Decoder]:
    """The base of several adapters, with none of them on it; after an error as it was before."""
    for a in adapters:
        if not isinstance(a, (PeftModel, str, Path)):
            raise TypeError(f"{verb}: expected PeftModels or folders, got a {type(a).__name__}")
    tuned = [a for a in adapters if isinstance(a, PeftModel)]
    base = model or next((t.model for t in tuned), None)
    if not isinstance(base, Decoder):
        raise MethodError(f"{verb}: model= must be the base of the adapters in folders, got "
                          f"{type(base).__name__}")
    on = [t for t in tuned if t.active and t.model is base][:1]   # there may be the same one twice
    for t in on: t.detach()
    try:
        base.check_free(verb)
        yield base
    except BaseException:
        for t in on: t.reattach()
        raise


def on_base(verb: str, adapter: Adapter, base: Decoder) -> PeftModel:
    """A PeftModel that learned on a base equal to `base`. A folder's is loaded and detached."""
    if isinstance(adapter, PeftModel):
        if adapter.model is base:
            adapter.check_base(verb)
            return adapter
        with bare(adapter.model): theirs = fingerprint(adapter.model.state_dict())
        if theirs in fingerprints(base): return adapter
        raise MethodError(f"{verb}: {adapter.method} is on a base with other weights, which its "
                          "numbers do not fit")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*the base's weights differ")
        try:
            tuned = load_adapter(base, adapter)
        except UserWarning:
            raise MethodError(f"{verb}: {adapter} learned on a base with other weights. If it fits "
                              "this one all the same, give what load_adapter(model, folder) "
                              "returns for each adapter") from None
    tuned.detach()
    return tuned


def numbers(adapters):
    """The adapters' numbers w, (n,)."""
    if not isinstance(adapters, Mapping) or not adapters:
        got = type(adapters).__name__ if adapters else "nothing"
        raise TypeError("combine: expected a dict from PeftModels or folders to numbers, such as "
                        f"{{a: 0.7, b: 0.3}}, got {got}")
    finite = real(1.0).metadata["limit"].holds
    for adapter, x in adapters.items():
        if not finite(x):
            name = adapter.method if isinstance(adapter, PeftModel) else adapter
            raise MethodError(f"combine: {name} has {x!r}, expected a finite number")
    return np.array([*adapters.values()], float)


def low_rank(tuned):
    """`tuned`, if all that it learned is low-rank changes of linear layers, and perhaps a head."""
    if tuned.trained:
        raise MethodError(f"combine: {tuned.method} trains parameters of the base, such as "
                          f"{next(iter(tuned.trained))}; only low-rank changes can be combined")
    parts = {name: part for name, part in tuned.parts.items() if part.on}
    changed = {}                                                      # path → name of its part
    for name, part in parts.items():
        if part.virtual or not all(map(is_low_rank, part.wrappers.values())):
            raise MethodError(f"combine: {part.method} is not a LoRA, AdaLoRA or DyLoRA; only "
                              "low-rank changes can be combined")
        for path in part.wrappers:
            if path in changed:
                raise MethodError(f"combine: {changed[path]} and {name} both change {path}; an "
                                  "adapter may change a layer once. merge() gives a plain model "
                                  "with both changes")
            changed[path] = name
    if not changed:
        raise MethodError(f"combine: {tuned.method} changes no layer; only low-rank changes can be "
                          "combined")
    return tuned


def is_low_rank(wrapper: Module) -> bool:
    """Is a wrapper base(x) + ΔW x, and no more?"""
    return isinstance(wrapper, LowRankLinear) and wrapper.is_low_rank


def head_of(opened, head):
    """The classifier of the adapter `head`, or None if none of them has a classifier."""
    if head is None and all(tuned.head is None for tuned in opened.values()): return None
    if head not in opened or opened[head].head is None:
        raise MethodError("combine: classification heads are not combined; head= must be one of "
                          "the dict's keys, an adapter with a head, and its head is kept")
    return opened[head].head


# -- the matrices --------------------------------------------------------------------------------
def combined(base, tuned, w, recipe, rng):
    """path → (B, A) of each layer that one of the adapters changes, from top to bottom."""
    pairs = {}
    for path, _ in base.named_modules():
        there = [i for i, t in enumerate(tuned) if path in t.wrappers]
        layers = [tuned[i].wrappers[path] for i in there]
        if layers: pairs[path] = recipe.pair(path, layers, w[there], rng)
    return pairs


def common(ranks):
    """The rank that most layers have, and a pattern of the others: a name → rank, or None."""
    r, kinds = Counter(ranks.values()).most_common(1)[0][0], defaultdict(set)
    last = {path: path.rpartition(".")[2] for path in ranks}
    for path, n in ranks.items(): kinds[last[path]].add(n)
    return r, {last[path] if len(kinds[last[path]]) == 1 else path: n
               for path, n in ranks.items() if n != r} or None


@dataclass(frozen=True)
class Combination(Checked):
    """The options of `combine`, and what they make of one layer's matrices."""
    how: str = one_of("cat", "svd", "linear", "ties", "dare", "dare_ties")
    rank: int | None = whole(None, least=1, or_none=True)
    density: float | None = real(None, above=0, most=1, or_none=True)
    sign: str = one_of("total", "frequency")
    factors: bool = flag(False)
    error = MethodError

    def check(self) -> None:
        sparse, of = self.how in ("ties", "dare", "dare_ties"), f"combine: how={self.how!r}"
        if self.density is None and self.how.startswith("dare"):
            raise MethodError(f"{of} needs density=, the share of numbers that are not dropped")
        if self.density is not None and not sparse:
            raise MethodError(f"{of} uses all numbers; density is of 'ties', 'dare', 'dare_ties'")
        if self.factors and not sparse:
            raise MethodError(f"{of} has no other form; factors is of 'ties', 'dare', 'dare_ties'")
        if self.rank is not None and (self.factors or self.how in ("cat", "linear")):
            raise MethodError(f"{of} gives the rank that the adapters have; rank is of the nearest "
                              "matrix: 'svd', or 'ties', 'dare', 'dare_ties' without factors")

    def pair(self, path: str, layers: Sequence[LowRankLinear], w: Array,
             rng: Rng) -> tuple[Array, Array]:
        """B (d_out, r) and A (r, d_in) of the layer at `path`, in float64."""
        if self.factors or self.how == "linear": return self.sums(path, layers, w, rng)
        r = self.rank or max(1, *(layer.rank for layer in layers))
        if self.how not in ("cat", "svd"):
            W = self.merged([layer.delta() for layer in layers], w, rng)
            return halves(*np.linalg.svd(W, full_matrices=False), r)
        lefts, rights = zip(*(layer.factors() for layer in layers), strict=True)
        B = np.hstack([x * left.astype(float) for x, left in zip(w, lefts, strict=True)])
        A = np.vstack(rights).astype(float)
        used = B.any(0)                                           # pruned triplets add nothing
        used[0] |= not used.any()
        B, A = B[:, used], A[used]
        most = min(len(B), A.shape[1])                            # the rank of any matrix
        if self.how == "cat" and len(A) <= most: return B, A
        return halves(*thin_svd(B, A), most if self.how == "cat" else r)

    def sums(self, path: str, layers: Sequence[LowRankLinear], w: Array,
             rng: Rng) -> tuple[Array, Array]:
        """B and A, each merged by itself."""
        s = np.array([scale_of(layer) for layer in layers])
        lefts, A = zip(*(layer.factors() for layer in layers), strict=True)
        ranks, root = [len(a) for a in A], np.sqrt(np.abs(w * s))
        if len({*ranks}) > 1:
            raise MethodError(f"combine: {path} has the ranks {', '.join(map(str, ranks))}; "
                              "factors of different ranks cannot be added, take 'cat' or 'svd'")
        A = self.merged(A, np.sign(w) * root, rng)
        return self.merged([left / x for left, x in zip(lefts, s, strict=True)], root, rng), A

    def merged(self, T: Sequence[Array], w: Array, rng: Rng) -> Array:
        """One matrix made of several, each with its number."""
        T, w, d = np.array(T, float), w.reshape(-1, 1, 1), self.density     # T (n, rows, columns)
        if self.how == "ties":            T = np.array([trimmed(t, d or 0.2) for t in T])
        elif self.how.startswith("dare"): T = T * (rng.random(T.shape) < d) / d
        if not self.how.endswith("ties"): return (w * T).sum(0)
        votes = (T if self.sign == "total" else np.sign(T)).sum(0)
        agree = np.sign(T) == np.where(votes >= 0, 1, -1)
        return (w * T * agree).sum(0) / np.maximum(agree.sum(0), 1)


def trimmed(t: Array, density: float) -> Array:
    """The share `density` of the numbers that is largest in magnitude; the others become 0."""
    kept = np.argsort(-np.abs(t), axis=None, kind="stable")[:int(density * t.size)]
    out = np.zeros_like(t)
    out.flat[kept] = t.flat[kept]
    return out


def halves(U: Array, S: Array, Vt: Array, r: int) -> tuple[Array, Array]:
    """B = U √S and A = √S Vᵀ of the r largest singular values, or of all if they are fewer."""
    root = np.sqrt(S[:r])
    return U[:, :r] * root, root[:, None] * Vt[:r]
