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

__all__ = ["Effect", "Rows", "Share", "among", "averaged", "between", "effect", "over_both_texts", "paired", "read"]

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
    z = mean + w * (d - mean)
    by_seed, by_document = z.mean(1), z.mean(0)
    S = float(by_seed.var(ddof=1) / n)
    if m < 2: return Effect(mean, S ** 0.5, n - 1)
    D, df = of_documents(by_document - mean, w)
    R = float(((z - by_seed[:, None] - by_document + mean) ** 2).sum() / (n * m * (n - 1) * (m - 1)))
    return Effect(mean, (S + D - min(S, D, R)) ** 0.5, ((S, n - 1), (D, df)))


def of_documents(off: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """D of the table above, and its degrees of freedom. off: (m,), the weighted documents' distances from the mean."""
    p = weights / len(weights)
    return float((off ** 2 / (1 - 2 * p + (p ** 2).sum())).sum() / len(off) ** 2), float(1 / (p ** 2).sum() - 1)


# -- rows, and what they add up to -----------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Rows:
    """What was measured, or computed of it: numbers by seed and test document. Operators pair them over the seeds and documents
    that both sides have: a − b, a + b, 2 · a, a − 1 are Rows, and so is a / b, a share with the error of a ratio of means.

    values: (seeds, m), a number for each document, or (seeds, 1). weights: (m,), of mean 1. metric: what was measured. whole:
    of a share, the rows of b.
    """
    seeds: tuple[int, ...]
    values: np.ndarray
    weights: np.ndarray
    metric: str = ""
    whole: Rows | None = None

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

    def __add__(self, other: Rows | float) -> Rows: return combined(np.add, self, other)

    def __sub__(self, other: Rows | float) -> Rows: return combined(np.subtract, self, other)

    def __rmul__(self, number: float) -> Rows: return combined(np.multiply, self, number)

    def __truediv__(self, other: Rows | float) -> Rows:
        """A share, or these rows over a number. The numbers z of a share have the ratio r = ā / b̄ of means as their mean, and
        their error is that of r (the delta method):

            r̂ − r ≈ mean of (a_ij − r b_ij) / b̄, so z_ij = r + (a_ij − r b_ij) / b̄  (Cochran, Sampling Techniques, 1977, §6)
        """
        if not isinstance(other, Rows): return combined(np.divide, self, other)
        a, b = paired(self, other)
        r = a.mean / b.mean
        return replace(a, values=r + (a.values - r * b.values) / b.mean, whole=b)


def combined(operator: np.ufunc, a: Rows, b: Rows | float) -> Rows:
    """Apply an operator to two rows, paired, or to rows and a number."""
    if not isinstance(b, Rows): return replace(a, values=operator(a.values, b), whole=None)
    a, b = paired(a, b)
    return replace(a, values=operator(a.values, b.values), whole=None)


def of_common_seeds(*arms: Rows) -> list[Rows]:
    """The rows of the seeds that all arms have, in one order. Raises KeyError if they share no seed."""
    seeds = tuple(seed for seed in arms[0].seeds if all(seed in arm.seeds for arm in arms))
    if not seeds: raise KeyError("no seed was measured for all of these conditions")
    return [replace(arm, seeds=seeds, values=arm.values[[arm.seeds.index(seed) for seed in seeds]]) for arm in arms]


def paired(*arms: Rows) -> list[Rows]:
    """The same, and one column in place of documents if the arms were not tested on the same ones."""
    arms = of_common_seeds(*arms)
    if len({arm.values.shape[1] for arm in arms}) == 1: return arms
    return [replace(arm, values=np.average(arm.values, 1, arm.weights)[:, None], weights=np.ones(1)) for arm in arms]


def read(results: Any, condition: str, metric: str = "loss", i: int | None = None) -> Rows:
    """The metric of `Results` per document if the runs stored METRIC_documents (sums of nats), else the metric alone. i: which
    entry of a list; None: a list is whole, without documents.

    Raises KeyError for a condition or a metric that was not measured.
    """
    values, runs = results.values(condition, metric), results.record["runs"][condition]
    if i is not None: values = values[:, i]
    seeds, by_document = tuple(map(int, runs)), f"{metric}_documents"
    if values.ndim > 1: return Rows(seeds, values, np.ones(1), metric)
    if by_document not in next(iter(runs.values())): return Rows(seeds, values[:, None], np.ones(1), metric)
    sums = results.values(condition, by_document)
    if i is not None: sums = sums[:, i]
    tokens = results.tokens(sums.shape[1])
    rows = sums / tokens
    off = values - np.average(rows, axis=1, weights=tokens)                  # stored sums have two decimals
    return Rows(seeds, rows + off[:, None], tokens / tokens.mean(), metric)


def among(*arms: Rows) -> Effect:
    """The first arm minus the mean of all that are shown beside it, itself among them: the error of what tells it from them,
    for a picture of several means. What all share, such as a hard text, is left out (Cousineau, 2005, Tutorials in
    Quantitative Methods for Psychology 1, 42–45), and the factor √(K/(K − 1)) makes up for the arm's own part of the mean of K
    (Morey, 2008, same journal 4, 61–64). An arm alone has its own error."""
    first, *others = paired(*arms)
    if not others: return first.effect
    K = len(arms)
    apart = (first - sum(others, first) / K).effect
    return replace(apart, error=apart.error * (K / (K - 1)) ** 0.5)


def averaged(*arms: Rows) -> Rows:
    """Several arms, such as one method on several bases, as the rows of one: row k is the mean over the seeds of arm k. Of arms
    without documents each seed is a part of the text, and so a column. Raises KeyError for a single arm, which cannot say how
    much others would differ."""
    if len(arms) < 2: raise KeyError("one base says nothing of others")
    whole = len(arms[0].weights) == 1
    values = np.array([arm.values[:, 0] if whole else arm.values.mean(0) for arm in arms])
    return Rows(tuple(range(len(arms))), values, np.ones(values.shape[1]) if whole else arms[0].weights)


def between(a: Rows, b: Rows) -> Effect:
    """a − b of two groups of rows that were drawn apart, such as bases of two sizes, on the same documents."""
    off = a.values.mean(0) - b.values.mean(0)
    mean = float((a.weights * off).mean())
    means = [np.average(group.values, axis=1, weights=a.weights) for group in (a, b)]
    parts = [(float(x.var(ddof=1) / len(x)), len(x) - 1) for x in means]
    if len(off) > 1: parts.append(of_documents(a.weights * (off - mean), a.weights))
    return Effect(mean, sum(variance for variance, _ in parts) ** 0.5, tuple(parts))


def over_both_texts(a: Rows, b: Rows) -> Rows:
    """The sum of two means that the same seeds measured on different documents. All documents become columns of one table,
    scaled so that its mean is the sum and its error that of the sum."""
    a, b = both = of_common_seeds(a, b)
    m, mean = len(a.weights) + len(b.weights), a.mean + b.mean
    columns = [mean + m / len(x.weights) * x.weights * (x.values - x.mean) for x in both]
    return Rows(a.seeds, np.concatenate(columns, axis=1), np.ones(m))
