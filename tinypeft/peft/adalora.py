"""AdaLoRA: Adaptive Budget Allocation (Zhang et al., arXiv 2303.10512).

LoRA gives every matrix the same rank. AdaLoRA writes the change as a singular value decomposition
and, while it trains, prunes the least important singular values of all matrices together:

    W = W₀ + ΔW = W₀ + P Λ Q                                                           (3)
    R(P, Q) = ‖PᵀP − I‖²_F + ‖QQᵀ − I‖²_F,      loss + γ Σ R over the matrices         (4)

    λ ← λ if S is among the b(t) largest of all matrices, else 0                       (6)
    S = s(λ) + mean s(p) + mean s(q)   the score of a triplet: λ, p of P, q of Q       (7)
    I(w) = |w ∂L/∂w|                   how much the loss moves without w               (8)
    Ī ← β₁ Ī + (1 − β₁) I              its moving average                              (9)
    U ← β₂ U + (1 − β₂) |I − Ī|        its uncertainty                                 (10)
    s = Ī U                            the score of a number w                         (11)

    paper       here                      shape
    W₀          base                      (d_out, d_in), frozen
    P, Λ, Q     P, Lam, Q                 (d_out, r), (r,) starts at 0, (r, d_in)
    Ī, U        sensitivity, uncertainty  (r, 1 + d_out + d_in), row i for triplet [λᵢ, p, q]
    b(0), b(T)  init_rank, target_rank    numbers of triplets, here per matrix on average
    tᵢ, t_f     t_init, t_final           steps at the start and the end with a constant budget
    Δ_T, γ      delta_t, gamma            steps from one allocation to the next; weight of R

Pruning only sets λ to zero. P, Q and the optimizer's moments are kept, so the next step moves a
pruned λ again, and it survives the next allocation if its score has risen. From step T − t_f on the
choice is final and applied after every step. Trained: Σ r (d_in + d_out + 1), r = init_rank.
Training a second time starts at init_rank again and prunes anew. AdamW's weight decay is for
matrices here, so it skips λ; PEFT's λ is an (r, 1) matrix, which decays.

The equations are numbered as in the PDF. The HTML rendering adds 2 to every number from (6) on.

Where implementations differ ("both codes": the authors' and PEFT's):

* The budget, the equation of Appendix A, has (t − tᵢ − t_f) in its numerator as printed. It jumps
  at tᵢ and misses b(T). Both codes and this file use b(T) + (b(0) − b(T)) u³, u from 1 to 0.
* Both codes average ‖·‖_F over all P and Q, `orthogonality="norm"`, instead of summing ‖·‖²_F. The
  authors' γ = 0.1 is for the average. On the sum, 0.1 pins P and Q so firmly that they barely learn
  (measured on planted ranks), so the default is 0.01.
* Algorithm 1 multiplies a gradient by the weights it was computed at, both codes by those after the
  step, `importance="after"`. A λ just pruned is 0 at first, so "after" lets it come back sooner.
* The paper scales P Λ Q as LoRA does, with α fixed (section 4 names 16 and 32). Both codes multiply
  by α/(init_rank + 10⁻⁵), also after pruning. Here s = α/init_rank, or 1 with `alpha=None`. That is
  the default and not the paper's choice: the default learning rate was found at s = 1.
* Both codes prune every triplet whose score equals the threshold; here exactly b(t) are kept. P and
  Q start at N(0, 0.02²), as in both codes; the paper says Gaussian.
* PEFT 0.21 holds init_rank as a parameter, `ranknum`. It is frozen on a float32 base, but trained
  on any other: the cast to the base's dtype makes a new parameter. PEFT also omits the penalty
  unless the model has a task type. `tests/peft/test_adalora.py` freezes `ranknum`.
"""
from dataclasses import dataclass

import numpy as np

from ..common.hints import Array, Rng, Targets
from ..common.hyper import Limit, declared, layer_names, one_of, real, whole
from ..engine import functional as F
from ..engine.nn import Module, Parameter
from ..engine.tensor import Tensor
from ..models.decoder import Decoder
from ..models.targets import match_targets
from .lora import LowRankLinear
from .method import Layers, Method, MethodError, Wrapper

__all__ = ["AdaLoRA", "AdaLoRALinear"]

NOT_NEGATIVE = real(0.0, least=0).metadata["limit"]


def is_steps(t):
    """Is t a number of steps, or a share of all steps?"""
    return NOT_NEGATIVE.holds(t) and (t < 1 or t == int(t))


STEPS = Limit(is_steps, "a number of steps, or a share in [0, 1) of all steps")


@dataclass(frozen=True)
class AdaLoRA(Method):
    """Train changes P Λ Q of the layers named in `targets`, and prune their singular values.

    t_init, t_final: numbers of steps, or shares of all steps if below 1. delta_t: in Table 8 of the
    paper 100 for runs of more than 10⁴ steps, 10 or 1 for those of 3,500 to 7,000.
    """
    init_rank: int = whole(12, least=1, also=("init_r", "r"))
    target_rank: int = whole(8, least=1, also=("target_r",))
    t_init: float = declared(0.1, STEPS, also=("tinit",))
    t_final: float = declared(0.4, STEPS, also=("tfinal",))
    delta_t: int = whole(10, least=1, also=("deltaT",))
    beta1: float = real(0.85, least=0, below=1)
    beta2: float = real(0.85, least=0, below=1)
    gamma: float = real(0.01, least=0, also=("orth_reg_weight",))
    alpha: float | None = real(None, above=0, or_none=True, also=("lora_alpha",))
    dropout: float = real(0.0, least=0, below=1, also=("lora_dropout",))
    targets: Targets = layer_names("all")
    orthogonality: str = one_of("squared", "norm")
    importance: str = one_of("before", "after")
    learning_rate = 2e-2
    shown = ("init_rank", "target_rank")

    def check(self) -> None:
        if self.target_rank > self.init_rank:
            raise MethodError(f"{self}: target_rank exceeds init_rank, but the budget only falls")

    def wrap(self, model: Decoder, rng: Rng) -> dict[str, Wrapper]:
        dtype = model.dtype
        return {path: AdaLoRALinear(layer, self, rng, dtype)
                for path, layer in match_targets(model, self.targets)}

    def phases(self, total: int) -> tuple[int, int]:
        """Find tᵢ and T − t_f, the steps after which the budget starts and stops falling."""
        ti, tf = (int(t if t >= 1 else t * total) for t in (self.t_init, self.t_final))
        if ti + tf >= total:
            raise MethodError(f"AdaLoRA: {total} steps are too few: {ti} at the start and {tf} at "
                              "the end leave none where the budget falls; lower t_init or t_final")
        return ti, total - tf

    def budget(self, t: int, total: int, n: int) -> int:
        """Compute b(t), how many triplets n matrices keep after step t of 1 … total."""
        start, end = self.phases(total)
        b0, bT = n * self.init_rank, n * self.target_rank
        t = min(max(t, start), end)
        u = 1 - (t - start) / (end - start)                       # from 1 to 0
        return int((b0 - bT) * u ** 3 + bT)

    def before_step(self, layers: Layers, step: int, total: int, rng: Rng) -> None:
        self.phases(total)                                        # a run too short ends at step 0
        if self.importance == "before":
            for layer in layers.values():
                layer.remember()

    def end_training(self, layers: Layers) -> None:
        for layer in layers.values():
            layer.before = None

    def penalty(self, layers: Layers) -> Tensor | None:
        """Compute γ Σ R(P, Q); for "norm", γ times the mean of unsquared norms."""
        if not self.gamma:
            return None
        R = [(D * D).sum() for layer in layers.values() for D in layer.departures()]
        if self.orthogonality == "squared":
            return self.gamma * sum(R)
        norms = [r.sqrt() for r in R if r.data]                  # √r has no derivative at 0: take 0
        return self.gamma / len(R) * sum(norms) if norms else None

    def after_step(self, layers: Layers, step: int, total: int) -> None:
        t = step + 1
        start, end = self.phases(total)
        if t < end:
            for layer in layers.values():
                layer.observe(self.beta1, self.beta2)
        if start < t <= end and (t % self.delta_t == 0 or t == end):
            self.allocate(layers, self.budget(t, total, len(layers)))
        if t > end:
            for layer in layers.values():
                layer.keep(layer.kept)

    def allocate(self, layers: Layers, budget: int) -> None:
        """Keep the `budget` triplets with the largest scores, and set every other λ to zero."""
        S = np.concatenate([layer.scores() for layer in layers.values()])
        largest = np.argsort(-S, kind="stable")[:budget]
        kept = np.zeros(len(S), bool)
        kept[largest] = True
        for layer, mask in zip(layers.values(), np.split(kept, len(layers)), strict=True):
            layer.keep(mask)


class AdaLoRALinear(LowRankLinear):
    """h = W₀ x + s P Λ Q x."""
    only_to_train = ("sensitivity", "uncertainty", "kept")

    def __init__(self, base: Module, method: AdaLoRA, rng: Rng, dtype: type = np.float32):
        r, d_in, d_out = method.init_rank, base.d_in, base.d_out
        super().__init__(base, r, method.dropout, rng)
        self.scale = 1.0 if method.alpha is None else method.alpha / r
        self.P = Parameter((0.02 * rng.standard_normal((d_out, r))).astype(np.float32))
        self.Lam = Parameter(np.zeros(r, np.float32))
        self.Q = Parameter((0.02 * rng.standard_normal((r, d_in))).astype(np.float32))
        self.sensitivity, self.uncertainty = np.zeros((2, r, 1 + d_out + d_in), dtype)
        self.kept = np.ones(r, bool)                              # by the last allocation
        self.before = None                                        # (P, Λ, Q) before this step

    def forward(self, x: Tensor) -> Tensor:
        Qx = F.linear(self.dropout(x), self.Q)                                # (…, r)
        return self.base(x) + F.linear(Qx * (self.Lam * self.scale), self.P)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.scale * self.P * self.Lam, self.Q

    @property
    def rank(self) -> int:
        return int(np.count_nonzero(self.Lam.data))

    def departures(self) -> tuple[Tensor, Tensor]:
        """Compute PᵀP − I and QQᵀ − I, (r, r)."""
        P, Q, I = self.P, self.Q, np.eye(len(self.Lam))
        return P.T @ P - I, Q @ Q.T - I

    def remember(self) -> None:
        """Copy the weights, which the optimizer is about to change."""
        weights = self.P, self.Lam, self.Q
        self.before = tuple(p.data.copy() for p in weights)      # a tuple is no part of the state

    def observe(self, beta1: float, beta2: float) -> None:
        """Update Ī and U by this step's gradients and the weights before or after the step."""
        P, Lam, Q = self.P, self.Lam, self.Q
        if P.grad is None or Lam.grad is None or Q.grad is None:
            raise MethodError("AdaLoRA: a gradient is missing; call after_step before zero_grad")
        weights = self.before or (P.data, Lam.data, Q.data)
        self.before = None
        I = np.abs(triplets(*weights) * triplets(P.grad, Lam.grad, Q.grad))
        self.sensitivity = beta1 * self.sensitivity + (1 - beta1) * I
        self.uncertainty = beta2 * self.uncertainty + (1 - beta2) * np.abs(I - self.sensitivity)

    def scores(self) -> Array:
        """Compute S of each triplet, (r,)."""
        s = self.sensitivity * self.uncertainty
        lam, p, q = np.split(s, [1, 1 + self.d_out], axis=1)
        return lam[:, 0] + p.mean(1) + q.mean(1)

    def keep(self, mask: Array) -> None:
        """Set λ to zero outside the boolean `mask` (r,)."""
        self.kept = mask
        self.Lam.assign(np.where(mask, self.Lam.data, 0))

    def describe(self) -> str:
        return f"({self.d_in} → {self.d_out}, rank {self.rank} of {len(self.Lam)})"


def triplets(P, Lam, Q):
    """Write [λᵢ, column i of P, row i of Q] as row i: (r, 1 + d_out + d_in)."""
    return np.hstack([Lam[:, None], P.T, Q])
