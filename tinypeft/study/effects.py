"""Effects and their uncertainty. One definition of the standard error serves every interval and its p-value.

d is a table of n seeds × m documents: the difference between two arms that saw the same seeds and the same test text, by
document, in nats per token. Other seeds would give another mean, and other documents would give another mean. Both errors
count. Tokens of one document resemble each other, so a document counts as one number, whatever its length:

    mean      d̄ = Σ_ij w_j d_ij / (n m)               w_j: tokens of document j over the mean of all, so that tokens count alike
    rows      z_ij = d̄ + w_j (d_ij − d̄)               their mean is d̄, and their error is that of the weighted mean

    mean z_ij = μ + seed_i + document_j + rest_ij

    seeds     S = Σ_i (z̄_i. − d̄)² / (n (n − 1))                                        with n − 1 degrees of freedom
    documents D = Σ_j (z̄_.j − d̄)² / (m² c_j)                                           with m² / Σ_j w_j² − 1
    rest      R = Σ_ij (z_ij − z̄_i. − z̄_.j + d̄)² / (n m (n − 1) (m − 1))
    error     SE² = S + D − min(S, D, R)

S and D both contain the rest, so it is taken off once, but SE is never smaller than the error of the seeds alone or of the
documents alone (two-way clusters as of Cameron, Gelbach & Miller, 2011; the minimum is ours). c_j = 1 − 2 p_j + Σ p² with
p = w/m makes up for the part that a document has in the mean itself; for equal documents it is (m − 1)/m. The quantile of
such a sum is that of Cochran and Cox (1957, Experimental Designs, §4.14), the mean of the components' Student quantiles,
weighted by their variances: with three or four seeds, degrees of freedom by Satterthwaite would make small p far too small.
A metric without documents has SE² = S. Where bases are drawn, a base takes the place of a seed. Two sizes of bases have no
pairs: SE² = S_a + S_b + D, the seeds' errors of each size and that of the documents, and nothing is taken off.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

__all__ = ["Effect", "Rows", "Share", "among", "averaged", "between", "components", "difference", "effect", "half_of",
           "over_both_texts", "read", "share", "together"]

LEVEL, TINY = 0.95, -230.0                               # of intervals; the logarithm of a p that counts as 0


@dataclass(frozen=True)
class Effect:
    """An estimate, its standard error, and how surely that is known: its degrees of freedom, or (variance, degrees of freedom)
    of each of its components."""
    mean: float
    error: float
    df: float | tuple[tuple[float, float], ...]

    def quantile(self, p: float) -> float:
        """The p-quantile of (estimate − truth)/error, see above."""
        from scipy.stats import t
        if not isinstance(self.df, tuple): return float(t.ppf(p, self.df))
        variances, dfs = np.array(self.df).T
        return float(t.ppf(p, dfs) @ variances / variances.sum()) if variances.any() else float(t.ppf(p, dfs.min()))

    @property
    def half(self) -> float:
        """Half the width of the 95 % interval: the 97.5 % quantile times the error."""
        return self.quantile((1 + LEVEL) / 2) * self.error if self.error else 0.0

    @property
    def low(self) -> float: return self.mean - self.half

    @property
    def high(self) -> float: return self.mean + self.half

    def p_above(self, limit: float = 0.0) -> float:
        """One-sided p of "the effect is at most `limit`". Below 0.025 just when low > limit."""
        off = self.mean - limit
        if not self.error: return 0.5 - 0.5 * float(np.sign(off))
        if not np.isfinite(self.error): return 0.5
        least = self.tail(abs(off) / self.error)
        return least if off > 0 else 1 - least

    def p_below(self, limit: float = 0.0) -> float:
        """One-sided p of "the effect is at least `limit`"."""
        return (-self).p_above(-limit)

    def tail(self, distance: float) -> float:
        """The p at which the (1 − p)-quantile is `distance`, at least 0 and at most 1/2."""
        from scipy.optimize import brentq
        beyond = lambda log_p: -self.quantile(np.exp(log_p)) - distance
        if beyond(TINY) < 0: return 0.0
        return float(np.exp(brentq(beyond, TINY, np.log(0.5)))) if distance else 0.5

    def __rmul__(self, by: float) -> Effect: return replace(self, mean=by * self.mean, error=abs(by) * self.error)

    def __neg__(self) -> Effect: return -1 * self

    def __format__(self, form: str) -> str:
        """"mean ± half of the 95 % interval"; only the mean has the sign that `form` asks for."""
        return f"{self.mean:{form}} ± {format(self.half, form).lstrip('+')}"


@dataclass(frozen=True)
class Share(Effect):
    """The effect of a ratio a / b. whole: that of b."""
    whole: Effect


def components(values: np.ndarray, weights: np.ndarray) -> tuple[float, float, float]:
    """(S, D, R) of the table above, for (n, m) numbers, n and m at least 2."""
    d, (n, m) = np.asarray(values, float), np.shape(values)
    mean = (weights * d).mean()
    z = mean + weights * (d - mean)
    by_seed, by_document = z.mean(1), z.mean(0)
    rest = z - by_seed[:, None] - by_document + mean
    return (float(by_seed.var(ddof=1) / n), of_documents(by_document - mean, weights),
            float((rest ** 2).sum() / (n * m * (n - 1) * (m - 1))))


def of_documents(off: np.ndarray, weights: np.ndarray) -> float:
    """D of the table above. off: (m,), the weighted documents' distances from the mean."""
    p = weights / len(weights)
    return float((off ** 2 / (1 - 2 * p + (p ** 2).sum())).sum() / len(off) ** 2)


def documents_df(weights: np.ndarray) -> float:
    """The degrees of freedom of D: as many equal documents as would weigh alike, less one."""
    return float(len(weights) ** 2 / (weights ** 2).sum() - 1)


def half_of(parts: tuple[float, float, float], n: int, m: int, seeds: float, documents: float, weights: np.ndarray) -> float:
    """Half of the 95 % interval that other numbers of seeds and documents would give, by the components (S, D, R) of n × m
    numbers. A component of seeds or documents that comes out below its share of the rest counts as zero."""
    S, D, R = parts
    of_seed, of_document, of_rest = max(S - R, 0) * n, max(D - R, 0) * m, R * n * m
    rest = of_rest / (seeds * documents)
    S, D = of_seed / seeds + rest, of_document / documents + rest
    df = (documents_df(weights) + 1) * documents / m - 1
    return Effect(0.0, (S + D - min(S, D, rest)) ** 0.5, ((S, seeds - 1), (D, df))).half


def effect(values: np.ndarray, weights: np.ndarray | None = None) -> Effect:
    """The mean of (n,) or (n, m) numbers, one per seed and document, with the error above. One seed has no error: inf.

    weights: (m,), of mean 1 (None: documents count alike).
    """
    d = np.asarray(values, float)
    d = d.reshape(len(d), -1)
    n, m = d.shape
    w = np.ones(m) if weights is None else weights
    mean = float((w * d).mean())
    if n < 2: return Effect(mean, np.inf, 1)
    if m < 2: return Effect(mean, float(d.var(ddof=1) / n) ** 0.5, n - 1)
    S, D, R = components(d, w)
    return Effect(mean, (S + D - min(S, D, R)) ** 0.5, ((S, n - 1), (D, documents_df(w))))


# -- rows, and what they add up to -----------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Rows:
    """What was measured, or computed of it: numbers by seed and test document. Operators pair them over the seeds and documents
    that both sides have: a − b, a + b, 2 · a, a − 1 are Rows, and so is a / b, a share with the error of a ratio of means.

    by_seed: seed → numbers (m,), one per document, or (1,). weights: (m,), of mean 1. metric: what was measured. whole: of
    a share, the rows of b.
    """
    by_seed: dict[int, np.ndarray]
    weights: np.ndarray
    metric: str = ""
    whole: Rows | None = None

    @property
    def values(self) -> np.ndarray:
        """(seeds, m)."""
        return np.array(list(self.by_seed.values()))

    @property
    def is_list(self) -> bool:
        """Is a row a list of several numbers, without documents?"""
        return self.values[0].shape != self.weights.shape

    @property
    def mean(self) -> float: return float((self.weights * self.values).mean())

    @property
    def effect(self) -> Effect:
        """The mean with its error, a `Share` if the rows are one. Raises ValueError if a row is a list of several numbers."""
        if self.is_list:
            raise ValueError(f"{self.metric} is a list of shape {self.values[0].shape}; name an entry, such as [condition, 0]")
        e = effect(self.values, self.weights)
        return Share(e.mean, e.error, e.df, self.whole.effect) if self.whole else e

    def __format__(self, form: str) -> str:
        """The mean, or those of a list, in three decimals if `form` is empty."""
        means = self.values.mean(0).flat if self.is_list else [self.mean]
        return " / ".join(format(mean, form or ".3f") for mean in means).replace("%", " %")

    def with_other(self, other: Rows | float, operator: np.ufunc) -> Rows:
        """Apply `operator` to these rows and others, paired, or to these rows and a number."""
        if not isinstance(other, Rows):
            return Rows({s: operator(row, other) for s, row in self.by_seed.items()}, self.weights, self.metric)
        (a, b), weights = together(self, other)
        return Rows(dict(zip(common(self, other), operator(a, b), strict=True)), weights, self.metric)

    def __add__(self, other: Rows | float) -> Rows: return self.with_other(other, np.add)

    def __sub__(self, other: Rows | float) -> Rows: return self.with_other(other, np.subtract)

    def __mul__(self, number: float) -> Rows: return self.with_other(number, np.multiply)

    __rmul__ = __mul__

    def __truediv__(self, other: Rows | float) -> Rows:
        """A share, or these rows over a number. The numbers z of a share have the ratio r = ā / b̄ of means as their mean, and
        their error is that of r (the delta method):

            r̂ − r ≈ mean of (a_ij − r b_ij) / b̄, so z_ij = r + (a_ij − r b_ij) / b̄  (Cochran, Sampling Techniques, 1977, §6)
        """
        if not isinstance(other, Rows): return self.with_other(other, np.divide)
        (a, b), weights = together(self, other)
        whole = Rows(dict(zip(common(self, other), b, strict=True)), weights)
        r = (weights * a).mean() / whole.mean
        z = r + (a - r * b) / whole.mean
        return Rows(dict(zip(whole.by_seed, z, strict=True)), weights, whole=whole)


def common(*arms: Rows) -> list[int]:
    """The seeds that all arms have."""
    return [seed for seed in arms[0].by_seed if all(seed in arm.by_seed for arm in arms)]


def read(results: Any, condition: str, metric: str = "loss", i: int | None = None) -> Rows:
    """The metric of `Results` per document if the runs stored METRIC_documents (sums of nats), else the metric alone. i: which
    entry of a list; None: a list is whole, without documents.

    Raises KeyError for a condition or a metric that was not measured.
    """
    whole, runs = results.values(condition, metric), results.record["runs"][condition]
    if i is not None: whole = whole[:, i]
    if whole.ndim > 1 or f"{metric}_documents" not in next(iter(runs.values())):
        return Rows({int(seed): np.atleast_1d(x) for seed, x in zip(runs, whole, strict=True)}, np.ones(1), metric)
    sums = results.values(condition, f"{metric}_documents")
    if i is not None: sums = sums[:, i]
    tokens = results.tokens(sums.shape[1])
    rows = {}
    for seed, value, row in zip(runs, whole, sums / tokens, strict=True):        # stored sums have two decimals
        rows[int(seed)] = row + (value - np.average(row, weights=tokens))
    return Rows(rows, tokens / tokens.mean(), metric)


def together(*arms: Rows) -> tuple[list[np.ndarray], np.ndarray]:
    """Arms as arrays (n, m) over the seeds that all of them have, and the documents' weights (m,); arms that were not tested
    on the same documents are (n, 1). Raises KeyError if they share no seed."""
    seeds = common(*arms)
    if not seeds: raise KeyError("no seed was measured for all of these conditions")
    tables = [np.array([arm.by_seed[s] for s in seeds]) for arm in arms]
    weights = arms[0].weights
    if len({x.shape[1] for x in tables}) > 1:
        tables = [np.average(x, 1, arm.weights)[:, None] for x, arm in zip(tables, arms, strict=True)]
        weights = np.ones(1)
    return tables, weights


def difference(worse: Rows, better: Rows) -> Effect:
    """worse − better, paired over seeds and documents: positive if a claim that `better` is lower holds."""
    return (worse - better).effect


def share(part: Rows, whole: Rows) -> Effect:
    """The ratio of two means, such as the share of a gain."""
    return (part / whole).effect


def among(arm: Rows, *others: Rows) -> Effect:
    """An arm minus the mean of all arms that are shown beside it, itself among them: the error of what tells it from them, for
    a picture of several means. What all share, such as a hard text, is left out (Cousineau, 2005, Tutorials in Quantitative
    Methods for Psychology 1, 42–45), and the factor √(K/(K − 1)) makes up for the arm's own part of the mean of K (Morey, 2008,
    same journal 4, 61–64)."""
    (first, *rest), weights = together(arm, *others)
    if not rest: return effect(first, weights)
    K = 1 + len(rest)
    apart = effect(first - (first + sum(rest)) / K, weights)
    return replace(apart, error=apart.error * (K / (K - 1)) ** 0.5)


def averaged(*arms: Rows) -> Rows:
    """Several arms, such as one method on several bases, as the rows of one: row k is the mean over the seeds of arm k. Of arms
    without documents each seed is a part of the text, and so a column. Raises KeyError for a single arm, which cannot say how
    much others would differ."""
    if len(arms) < 2: raise KeyError("one base says nothing of others")
    rows = [np.array(list(arm.by_seed.values())) for arm in arms]
    whole = len(arms[0].weights) == 1
    rows = [x[:, 0] if whole else x.mean(0) for x in rows]
    return Rows(dict(enumerate(rows)), np.ones(len(rows[0])) if whole else arms[0].weights)


def between(a: Rows, b: Rows) -> Effect:
    """a − b of two groups of rows that were drawn apart, such as bases of two sizes, on the same documents."""
    x, y = (np.array(list(group.by_seed.values())) for group in (a, b))
    rows = [np.average(group, axis=1, weights=a.weights) for group in (x, y)]
    off = x.mean(0) - y.mean(0)
    mean = float((a.weights * off).mean())
    D = of_documents(a.weights * (off - mean), a.weights) if len(off) > 1 else 0.0
    parts = [(float(r.var(ddof=1) / len(r)), len(r) - 1) for r in rows] + [(D, max(documents_df(a.weights), 1))]
    return Effect(mean, sum(v for v, _ in parts) ** 0.5, tuple(parts))


def over_both_texts(a: Rows, b: Rows) -> Rows:
    """The sum of two means that the same seeds measured on different documents. All documents become columns of one table,
    scaled so that its mean is the sum and its error that of the sum."""
    seeds, m = common(a, b), len(a.weights) + len(b.weights)
    tables = [(np.array([rows.by_seed[s] for s in seeds]), rows.weights) for rows in (a, b)]
    means = [(w * x).mean() for x, w in tables]
    columns = [sum(means) + m / len(w) * w * (x - mean) for (x, w), mean in zip(tables, means, strict=True)]
    return Rows(dict(zip(seeds, np.concatenate(columns, axis=1), strict=True)), np.ones(m))
