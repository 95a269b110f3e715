"""Effects and their uncertainty. One definition of the standard error serves every interval and every p-value.

d is a table of n seeds × m test windows: the difference between two arms that saw the same seeds and the same windows. Other
seeds would give another mean, and another test text would give another mean. Both errors count:

    mean d_ij = μ + seed_i + window_j + rest_ij

    seeds     S = Σ_i (d̄_i. − d̄)² / (n (n − 1))                                        with n − 1 degrees of freedom
    windows   W = Σ_j (d̄_.j − d̄)² / (m (m − 1))                                        with m − 1
    rest      R = Σ_ij (d_ij − d̄_i. − d̄_.j + d̄)² / (n m (n − 1) (m − 1))              with (n − 1)(m − 1)
    error     SE² = S + W − min(S, W, R)

S and W both contain the rest, so it is taken off once, but SE is never smaller than the error of the seeds alone or of the
windows alone (two-way clusters as of Cameron, Gelbach & Miller, 2011; the minimum is ours). The degrees
of freedom of a sum of such variances are Satterthwaite's (1946). A metric without windows has SE² = S.

Windows that lie side by side may belong to one document, and are then less than independent. The interval does not know that.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

from ..experiment import Results

__all__ = ["Effect", "Rows", "difference", "effect", "gains", "linear", "read", "relative", "satterthwaite", "share",
           "together"]

LEVEL = 0.95
Rows = dict[int, np.ndarray]                             # seed → numbers (m,), one per test window, or (1,)


@dataclass(frozen=True)
class Effect:
    """An estimate, its standard error, and the degrees of freedom of that error (Student's t)."""
    mean: float
    error: float
    df: float

    @property
    def half(self) -> float:
        """Half the width of the 95 % interval: t(0.975; df) · error."""
        return float(t.ppf((1 + LEVEL) / 2, self.df)) * self.error if self.error else 0.0

    @property
    def low(self) -> float: return self.mean - self.half

    @property
    def high(self) -> float: return self.mean + self.half

    def p_above(self, limit: float = 0.0) -> float:
        """One-sided p of "the effect is at most `limit`": P(T > (mean − limit)/error). Below 0.025 just when low > limit."""
        return float(t.sf(self.distance(limit), self.df))

    def p_below(self, limit: float = 0.0) -> float:
        """One-sided p of "the effect is at least `limit`"."""
        return float(t.cdf(self.distance(limit), self.df))

    def distance(self, limit: float) -> float:
        """(mean − limit) in standard errors; ±inf for a number that does not vary, and 0 if it equals the limit."""
        off = self.mean - limit
        return off / self.error if self.error else float(np.copysign(np.inf, off)) if off else 0.0

    def __neg__(self) -> Effect: return Effect(-self.mean, self.error, self.df)


def effect(values: np.ndarray) -> Effect:
    """The mean of (n,) or (n, m) numbers, one per seed and test window, with the error above. One seed has no error: inf."""
    d = np.asarray(values, float)
    d = d.reshape(len(d), -1)
    n, m = d.shape
    mean, seeds, windows = d.mean(), d.mean(1), d.mean(0)
    if n < 2: return Effect(float(mean), np.inf, 1)
    S = seeds.var(ddof=1) / n
    if m < 2: return Effect(float(mean), float(S) ** 0.5, n - 1)
    rest = d - seeds[:, None] - windows + mean
    W, R = windows.var(ddof=1) / m, (rest ** 2).sum() / (n * m * (n - 1) * (m - 1))
    total = S + W - min(S, W, R)
    df = satterthwaite(total, (S, W, R), (n - 1, m - 1, (n - 1) * (m - 1)))
    return Effect(float(mean), float(total) ** 0.5, df)


def satterthwaite(total: float, variances: Sequence[float], dfs: Sequence[float]) -> float:
    """Degrees of freedom of a total variance that is a sum or difference of estimated ones: total² / Σ_k variance_k² / df_k.

    Satterthwaite (1946), Biometrics Bulletin 2(6), 110–114. With two groups' variances of the mean it is Welch's.
    """
    spread = sum(v ** 2 / df for v, df in zip(variances, dfs, strict=True))
    return float(total ** 2 / spread) if spread else float(min(dfs))


# -- from results ----------------------------------------------------------------------------------
def read(results: Results, condition: str, metric: str = "loss", i: int | None = None) -> Rows:
    """seed → the metric per test window if the run stored METRIC_windows, else the metric alone. i: which entry of a list.

    Windows count alike, but the last one may be shorter. So every row is shifted until its mean is the metric itself, which
    counts tokens. Raises KeyError for a condition or a metric that was not measured.
    """
    whole, rows = results.values(condition, metric), {}
    runs = results.record["runs"][condition]
    for seed, value in zip(runs, whole if i is None else whole[:, i], strict=True):
        windows = runs[seed].get(f"{metric}_windows")
        row = np.zeros(1) if windows is None else np.array(windows if i is None else windows[i], float)
        rows[int(seed)] = row + (value - row.mean())
    return rows


def together(*arms: Rows) -> list[np.ndarray]:
    """Arms as arrays (n, m) over the seeds that all of them have; (n, 1) unless all have the same windows."""
    seeds = [s for s in arms[0] if all(s in arm for arm in arms)]
    tables = [np.array([arm[s] for s in seeds]) for arm in arms]
    if len({x.shape[1] for x in tables}) > 1: tables = [x.mean(1, keepdims=True) for x in tables]
    return tables


def difference(worse: Rows, better: Rows) -> Effect:
    """worse − better, paired over seeds and windows: positive if a claim that `better` is lower holds."""
    a, b = together(worse, better)
    return effect(a - b)


def gains(frozen: Rows, *arms: Rows) -> list[Rows]:
    """By how much each arm's loss lies below the frozen base's, per seed and window."""
    first, *others = together(frozen, *arms)
    seeds = [s for s in frozen if all(s in arm for arm in arms)]
    return [dict(zip(seeds, first - x, strict=True)) for x in others]


def linear(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Numbers z, per seed and window, whose mean is the ratio r = ā / b̄ and whose error is that of r (the delta method):

        r̂ − r ≈ mean of (a_ij − r b_ij) / b̄, so z_ij = r + (a_ij − r b_ij) / b̄          (Cochran, Sampling Techniques, 1977, §6)
    """
    r = a.mean() / b.mean()
    return r + (a - r * b) / b.mean()


def share(part: Rows, whole: Rows) -> Effect:
    """The ratio of two means, such as the share of a gain."""
    return effect(linear(*together(part, whole)))


def relative(more: Rows, less: Rows) -> Effect:
    """By which share of itself `less` is smaller than `more`: the ratio of means minus one."""
    ratio = share(more, less)
    return Effect(ratio.mean - 1, ratio.error, ratio.df)
