"""Effects and their uncertainty. One definition of the standard error serves every interval and every p-value.

d is a table of n seeds × m documents: the difference between two arms that saw the same seeds and the same test text, by
document, in nats per token. Other seeds would give another mean, and other documents would give another mean. Both errors
count. Tokens of one document resemble each other, so a document counts as one number, whatever its length:

    mean      d̄ = Σ_ij w_j d_ij / (n m)               w_j: tokens of document j over the mean of all, so that tokens count alike
    rows      z_ij = d̄ + w_j (d_ij − d̄)               their mean is d̄, and their error is that of the weighted mean

    mean z_ij = μ + seed_i + document_j + rest_ij

    seeds     S = Σ_i (z̄_i. − d̄)² / (n (n − 1))                                        with n − 1 degrees of freedom
    documents D = Σ_j (z̄_.j − d̄)² / (m (m − 1))                                        with m − 1
    rest      R = Σ_ij (z_ij − z̄_i. − z̄_.j + d̄)² / (n m (n − 1) (m − 1))              with (n − 1)(m − 1)
    error     SE² = S + D − min(S, D, R)

S and D both contain the rest, so it is taken off once, but SE is never smaller than the error of the seeds alone or of the
documents alone (two-way clusters as of Cameron, Gelbach & Miller, 2011; the minimum is ours). The degrees of freedom of a sum
of such variances are Satterthwaite's (1946). A metric without documents has SE² = S: its seeds draw the text themselves.
Where bases are drawn, a base takes the place of a seed.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import t

if TYPE_CHECKING:
    from .experiment import Results

__all__ = ["Effect", "Rows", "among", "averaged", "components", "difference", "effect", "gains", "half_of", "linear", "plus",
           "read", "relative", "satterthwaite", "share", "together"]

LEVEL = 0.95


@dataclass(frozen=True, eq=False)
class Rows:
    """What one arm measured. by_seed: seed → numbers (m,), one per document, or (1,). weights: (m,), of mean 1."""
    by_seed: dict[int, np.ndarray]
    weights: np.ndarray

    def mapped(self, f: Callable[[np.ndarray], np.ndarray]) -> Rows:
        """Return the same rows with every row changed by `f`."""
        return Rows({seed: f(row) for seed, row in self.by_seed.items()}, self.weights)


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


def components(values: np.ndarray, weights: np.ndarray) -> tuple[float, float, float]:
    """(S, D, R) of the table above, for (n, m) numbers, n and m at least 2."""
    d, (n, m) = np.asarray(values, float), values.shape
    mean = (weights * d).mean()
    z = mean + weights * (d - mean)
    by_seed, by_document = z.mean(1), z.mean(0)
    rest = z - by_seed[:, None] - by_document + mean
    return (float(by_seed.var(ddof=1) / n), float(by_document.var(ddof=1) / m),
            float((rest ** 2).sum() / (n * m * (n - 1) * (m - 1))))


def half_of(parts: tuple[float, float, float], n: int, m: int, seeds: float, documents: float) -> float:
    """Half of the 95 % interval that other numbers of seeds and documents would give, by the components (S, D, R) of n × m
    numbers. A component of seeds or documents that comes out below its share of the rest counts as zero."""
    S, D, R = parts
    of_seed, of_document, of_rest = max(S - R, 0) * n, max(D - R, 0) * m, R * n * m
    rest = of_rest / (seeds * documents)
    S, D = of_seed / seeds + rest, of_document / documents + rest
    total = S + D - min(S, D, rest)
    df = satterthwaite(total, (S, D, rest), (seeds - 1, documents - 1, (seeds - 1) * (documents - 1)))
    return float(t.ppf((1 + LEVEL) / 2, df)) * total ** 0.5


def effect(values: np.ndarray, weights: np.ndarray | None = None) -> Effect:
    """The mean of (n,) or (n, m) numbers, one per seed and document, with the error above. One seed has no error: inf.

    weights: (m,), of mean 1 (None: documents count alike).
    """
    d = np.asarray(values, float)
    d = d.reshape(len(d), -1)
    n, m = d.shape
    w = np.ones(m) if weights is None else weights
    mean = (w * d).mean()
    if n < 2: return Effect(float(mean), np.inf, 1)
    if m < 2: return Effect(float(mean), float(d.var(ddof=1) / n) ** 0.5, n - 1)
    S, D, R = components(d, w)
    total = S + D - min(S, D, R)
    df = satterthwaite(total, (S, D, R), (n - 1, m - 1, (n - 1) * (m - 1)))
    return Effect(float(mean), float(total) ** 0.5, df)


def satterthwaite(total: float, variances: Sequence[float], dfs: Sequence[float]) -> float:
    """Degrees of freedom of a total variance that is a sum or difference of estimated ones: total² / Σ_k variance_k² / df_k.

    Satterthwaite (1946), Biometrics Bulletin 2(6), 110–114. With two groups' variances of the mean it is Welch's.
    """
    spread = sum(v ** 2 / df for v, df in zip(variances, dfs, strict=True))
    return float(total ** 2 / spread) if spread else float(min(dfs))


# -- from results ----------------------------------------------------------------------------------
def read(results: Results, condition: str, metric: str = "loss", i: int | None = None) -> Rows:
    """The metric per document if the runs stored METRIC_documents (sums of nats), else the metric alone. i: which entry of a
    list.

    Raises KeyError for a condition or a metric that was not measured.
    """
    whole, runs = results.values(condition, metric), results.record["runs"][condition]
    if i is not None: whole = whole[:, i]
    if f"{metric}_documents" not in next(iter(runs.values())):
        return Rows({int(seed): np.atleast_1d(value) for seed, value in zip(runs, whole, strict=True)}, np.ones(1))
    sums = results.values(condition, f"{metric}_documents")
    if i is not None: sums = sums[:, i]
    tokens = results.tokens(sums.shape[1])
    rows = {}
    for seed, value, row in zip(runs, whole, sums / tokens, strict=True):        # stored sums have two decimals
        rows[int(seed)] = row + (value - np.average(row, weights=tokens))
    return Rows(rows, tokens / tokens.mean())


def together(*arms: Rows) -> tuple[list[np.ndarray], np.ndarray]:
    """Arms as arrays (n, m) over the seeds that all of them have, and the documents' weights (m,); arms that were not tested
    on the same documents are (n, 1)."""
    seeds = [s for s in arms[0].by_seed if all(s in arm.by_seed for arm in arms)]
    tables = [np.array([arm.by_seed[s] for s in seeds]) for arm in arms]
    weights = arms[0].weights
    if len({x.shape[1] for x in tables}) > 1:
        tables = [np.average(x, 1, arm.weights)[:, None] for x, arm in zip(tables, arms, strict=True)]
        weights = np.ones(1)
    return tables, weights


def difference(worse: Rows, better: Rows) -> Effect:
    """worse − better, paired over seeds and documents: positive if a claim that `better` is lower holds."""
    (a, b), weights = together(worse, better)
    return effect(a - b, weights)


def gains(frozen: Rows, *arms: Rows) -> list[Rows]:
    """By how much each arm's loss lies below the frozen base's, per seed and document."""
    (first, *others), weights = together(frozen, *arms)
    seeds = [s for s in frozen.by_seed if all(s in arm.by_seed for arm in arms)]
    return [Rows(dict(zip(seeds, first - x, strict=True)), weights) for x in others]


def among(arm: Rows, *others: Rows) -> Effect:
    """An arm minus the mean of all arms that are shown beside it, itself among them: the error of what tells it from them, for
    a picture of several means. What all share, such as a hard text, is left out (Cousineau, 2005, Tutorials in Quantitative
    Methods for Psychology 1, 42–45), and the factor √(K/(K − 1)) makes up for the arm's own part of the mean of K (Morey, 2008,
    same journal 4, 61–64)."""
    (first, *rest), weights = together(arm, *others)
    if not rest: return effect(first, weights)
    K = 1 + len(rest)
    apart = effect(first - (first + sum(rest)) / K, weights)
    return Effect(apart.mean, apart.error * (K / (K - 1)) ** 0.5, apart.df)


def averaged(*arms: Rows) -> Rows:
    """Several arms, such as one method on several bases, as the rows of one: row k is the mean over the seeds of arm k. Raises
    KeyError for a single one, which cannot say how much others would differ."""
    if len(arms) < 2: raise KeyError("one base says nothing of others")
    return Rows({k: np.mean(list(arm.by_seed.values()), axis=0) for k, arm in enumerate(arms)}, arms[0].weights)


def linear(a: np.ndarray, b: np.ndarray, weights: np.ndarray | float = 1.0) -> np.ndarray:
    """Numbers z, per seed and document, whose mean is the ratio r = ā / b̄ and whose error is that of r (the delta method):

        r̂ − r ≈ mean of (a_ij − r b_ij) / b̄, so z_ij = r + (a_ij − r b_ij) / b̄          (Cochran, Sampling Techniques, 1977, §6)
    """
    whole = (weights * b).mean()
    r = (weights * a).mean() / whole
    return r + (a - r * b) / whole


def share(part: Rows, whole: Rows) -> Effect:
    """The ratio of two means, such as the share of a gain."""
    (a, b), weights = together(part, whole)
    return effect(linear(a, b, weights), weights)


def relative(more: Rows, less: Rows) -> Effect:
    """By which share of itself `less` is smaller than `more`: the ratio of means minus one."""
    ratio = share(more, less)
    return Effect(ratio.mean - 1, ratio.error, ratio.df)


def plus(a: Rows, b: Rows) -> Effect:
    """The sum of two means that the same seeds measured on different documents. All documents become columns of one table,
    scaled so that its mean is the sum and its error that of the sum."""
    seeds = [s for s in a.by_seed if s in b.by_seed]
    parts = [(np.array([rows.by_seed[s] for s in seeds]), rows.weights) for rows in (a, b)]
    means = [(w * x).mean() for x, w in parts]
    m = sum(x.shape[1] for x, _ in parts)
    columns = [sum(means) + m / x.shape[1] * w * (x - mean) for (x, w), mean in zip(parts, means, strict=True)]
    return effect(np.concatenate(columns, axis=1))
