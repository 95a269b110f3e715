"""AdaLoRA: Adaptive Budget Allocation (Zhang et al., arXiv 2303.10512).

LoRA gives every matrix the same rank. AdaLoRA writes the change as a singular value decomposition, starts with more
singular values than it may keep, and prunes the least important ones, over all matrices together, while it trains:

    W = W₀ + ΔW = W₀ + P Λ Q                                                                    (3)
    R(P, Q) = ‖PᵀP − I‖²_F + ‖QQᵀ − I‖²_F,      loss + γ Σ R over the matrices                 (4)

    I(w) = |w ∂L/∂w|                   sensitivity: how much the loss moves when w is removed    (9–13)
    Ī ← β₁ Ī + (1 − β₁) I              its moving average
    U ← β₂ U + (1 − β₂) |I − Ī|        its uncertainty
    s = Ī U                            a number's score
    S = s(λ) + mean s(p) + mean s(q)   the score of a triplet: λ, its column p of P, its row q of Q
    λ ← λ if S is among the b(t) largest of all matrices, else 0

    paper       here                      shape
    W₀          base                      (d_out, d_in), frozen
    P, Λ, Q     P, Lam, Q                 (d_out, r), (r,) starts at 0, (r, d_in)
    Ī, U        sensitivity, uncertainty  (r, 1 + d_out + d_in), row i for triplet [λᵢ, p, q]
    b(0), b(T)  init_rank, target_rank    numbers of triplets, here per matrix on average
    tᵢ, t_f     t_init, t_final           steps at the start and the end in which the budget rests
    Δ_T         delta_t                   steps from one allocation to the next
    γ           gamma                     weight of R

Only λ is zeroed. P, Q, λ's gradient and its moments live on, so the next step moves a pruned λ again, and it
comes back if its score has risen by the next allocation. From step T − t_f the choice is final, and kept after
every step. Trained parameters: Σ r (d_in + d_out + 1) over the targets, r = init_rank.

Where things differ:

* The budget's equation (14) has (t − tᵢ − t_f) in its numerator as printed, which jumps at tᵢ and does not end at
  b(T). This file follows the authors' code, which PEFT shares: b falls as b(T) + (b(0) − b(T)) u³, u from 1 to 0.
* Both codes average ‖·‖_F over all P and Q instead of summing ‖·‖²_F: `orthogonality="norm"`. Default: equation (4).
  The authors' γ = 0.1 weighs the average. As the weight of the sum it holds P and Q so stiff that they hardly learn
  (measured on planted ranks); hence γ = 0.01 here.
* Algorithm 1 multiplies the gradient by the weights it was computed at; both codes call the allocator after the
  optimizer, and multiply by the weights of the next step: `importance="after"`. Default: "before", as in the paper.
  A freshly zeroed λ has no sensitivity where it is zero, so before/after decides how soon triplets come back.
* The paper has no scale on P Λ Q; both codes multiply by α/(init_rank + 10⁻⁵), also after pruning. Here s is
  α/init_rank, and 1 with `alpha=None`, the default.
* Both codes prune every triplet whose score ties with the threshold; here exactly b(t) are kept.
* P and Q start at N(0, 0.02²), as in both codes; the paper says Gaussian.
* `tests/peft/test_adalora.py` compares with PEFT at orthogonality="norm" and importance="after". PEFT 0.21 by oversight
  trains the init_rank in its scale, and leaves out the penalty unless the model was given a task type.
"""
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .. import functional as F
from ..nn import Parameter
from ..targets import match_targets
from .lora import LowRankLinear, check_ranks
from .method import Method, MethodError

__all__ = ["AdaLoRA", "AdaLoRALinear"]


@dataclass(frozen=True)
class AdaLoRA(Method):
    """init_rank and target_rank: singular values per matrix, at the start and (on average) at the end.

    t_init, t_final: steps, or shares of all steps if below 1, before and after the budget falls. delta_t: steps
    between allocations (the authors take 100 for 10⁴ steps and more, 10 for 300). gamma: weight of the penalty.
    orthogonality: its form, "squared" (paper) or "norm" (codes). importance: by the weights "before" (paper) or
    "after" (codes) the optimizer's step.
    """
    init_rank: int = 12
    target_rank: int = 8
    t_init: float = 0.1
    t_final: float = 0.4
    delta_t: int = 10
    beta1: float = 0.85
    beta2: float = 0.85
    gamma: float = 0.01
    alpha: float | None = None
    dropout: float = 0.0
    targets: tuple | str = "all"
    orthogonality: str = "squared"
    importance: str = "before"
    learning_rate: ClassVar[float] = 2e-2
    shown: ClassVar[tuple] = ("init_rank", "target_rank")

    def __post_init__(self):
        check_ranks("AdaLoRA", init_rank=self.init_rank, target_rank=self.target_rank, delta_t=self.delta_t)
        if self.target_rank > self.init_rank:
            raise MethodError(f"AdaLoRA: the budget can only fall, but target_rank {self.target_rank} exceeds "
                              f"init_rank {self.init_rank}")
        for name in ("t_init", "t_final"):
            t = getattr(self, name)
            if t < 0 or t != int(t) and t >= 1:
                raise MethodError(f"AdaLoRA: {name} must be a number of steps, or a share in [0, 1), got {t}")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise MethodError(f"AdaLoRA: beta1 and beta2 must lie in [0, 1), got {self.beta1} and {self.beta2}")
        if not self.gamma >= 0 or self.alpha is not None and not self.alpha > 0:
            raise MethodError(f"AdaLoRA: gamma must be at least 0 and alpha positive, got {self.gamma} and {self.alpha}")
        if self.orthogonality not in ("squared", "norm") or self.importance not in ("before", "after"):
            raise MethodError("AdaLoRA: orthogonality must be 'squared' or 'norm' and importance 'before' or 'after', "
                              f"got {self.orthogonality!r} and {self.importance!r}")

    def wrap(self, model, rng):
        dtype = model.token_embedding.weight.dtype
        return {path: AdaLoRALinear(layer, self, rng, dtype) for path, layer in match_targets(model, self.targets)}

    def phases(self, total):
        """The steps after which the budget starts and stops to fall: tᵢ and T − t_f."""
        ti, tf = (int(t * total) if t < 1 else int(t) for t in (self.t_init, self.t_final))
        if ti + tf >= total:
            raise MethodError(f"AdaLoRA: {total} steps are too few: {ti} at the start and {tf} at the end leave none "
                              "in which the budget falls; train longer, or make t_init and t_final smaller")
        return ti, total - tf

    def budget(self, t, total, n):
        """b(t), how many triplets n matrices keep after step t of 1 … total."""
        start, end = self.phases(total)
        b0, bT = n * self.init_rank, n * self.target_rank
        return int((b0 - bT) * (1 - (min(max(t, start), end) - start) / (end - start)) ** 3 + bT)

    def before_step(self, tuned, step, total):
        self.phases(total)                                                    # a run too short ends here, at step 0
        if self.importance == "before":
            for layer in tuned.wrappers.values(): layer.remember()

    def penalty(self, tuned):
        """γ Σ R(P, Q) over the matrices; for "norm", γ times the mean of unsquared norms. A Tensor."""
        if not self.gamma: return None
        R = [(D * D).sum() for layer in tuned.wrappers.values() for D in layer.departures()]
        if self.orthogonality == "squared": return self.gamma * sum(R)
        return self.gamma / len(R) * sum(r.sqrt() for r in R)

    def after_step(self, tuned, step, total):
        layers, t = list(tuned.wrappers.values()), step + 1
        start, end = self.phases(total)
        if t < end:
            for layer in layers: layer.observe(self.beta1, self.beta2)
        if start < t <= end and (t % self.delta_t == 0 or t == end):
            S = np.concatenate([layer.scores() for layer in layers])
            kept = np.zeros(len(S), bool)
            kept[np.argsort(-S, kind="stable")[:self.budget(t, total, len(layers))]] = True
            for layer, mask in zip(layers, kept.reshape(len(layers), -1), strict=True): layer.keep(mask)
        if t > end:
            for layer in layers: layer.keep(layer.kept)


class AdaLoRALinear(LowRankLinear):
    """h = W₀ x + s P Λ Q x."""
    only_to_train = ("sensitivity", "uncertainty", "kept")

    def __init__(self, base, method, rng, dtype=np.float32):
        r = method.init_rank
        super().__init__(base, r, method.dropout, rng)
        self.scale = 1.0 if method.alpha is None else method.alpha / r
        gaussian = lambda *shape: Parameter((0.02 * rng.standard_normal(shape)).astype(np.float32))
        self.P, self.Lam, self.Q = gaussian(base.d_out, r), Parameter(np.zeros(r, np.float32)), gaussian(r, base.d_in)
        self.sensitivity, self.uncertainty = np.zeros((2, r, 1 + base.d_out + base.d_in), dtype)
        self.kept = np.ones(r, bool)                                          # by the last allocation
        self.before = None                                                    # what (P, Λ, Q) were before this step

    def forward(self, x):
        Qx = F.linear(self.dropout(x), self.Q)                                # (…, r)
        return self.base(x) + F.linear(Qx * (self.Lam * self.scale), self.P)

    def factors(self):
        return self.scale * self.P.data * self.Lam.data, self.Q.data

    rank = property(lambda self: int(np.count_nonzero(self.Lam.data)))

    def departures(self):
        """PᵀP − I and QQᵀ − I, Tensors (r, r)."""
        I = np.eye(len(self.Lam))
        return self.P.T @ self.P - I, self.Q @ self.Q.T - I

    # -- importance -----------------------------------------------------------------------------
    def remember(self):
        self.before = tuple(p.data.copy() for p in (self.P, self.Lam, self.Q))

    def observe(self, beta1, beta2):
        """Bring Ī and U up to date with this step's gradients, and the weights before or after it."""
        parameters = self.P, self.Lam, self.Q
        if any(p.grad is None for p in parameters):
            raise MethodError("AdaLoRA: after_step needs this step's gradients; call it after the optimizer's step "
                              "and before zero_grad")
        w, self.before = self.before or [p.data for p in parameters], None
        I = np.abs(triplets(*w) * triplets(*(p.grad for p in parameters)))
        self.sensitivity = beta1 * self.sensitivity + (1 - beta1) * I
        self.uncertainty = beta2 * self.uncertainty + (1 - beta2) * np.abs(I - self.sensitivity)

    def scores(self):
        """S of each triplet, (r,)."""
        lam, p, q = np.split(self.sensitivity * self.uncertainty, [1, 1 + self.d_out], axis=1)
        return lam[:, 0] + p.mean(1) + q.mean(1)

    def keep(self, mask):
        """Set λ to zero outside the boolean `mask` (r,)."""
        self.kept, self.Lam.data[~mask] = mask, 0
        self.Lam.version += 1

    def describe(self):
        return f"({self.d_in} → {self.d_out}, rank {self.rank} of {len(self.Lam)})"


def triplets(P, Lam, Q):
    """[λᵢ, column i of P, row i of Q] as row i: (r, 1 + d_out + d_in)."""
    return np.hstack([Lam[:, None], P.T, Q])
