"""Effects: the standard error over seeds and windows, its degrees of freedom, intervals and p-values, ratios."""
import itertools

import numpy as np
import pytest
from scipy import stats

from tinypeft.study.claims.effects import (
    Effect,
    difference,
    effect,
    gains,
    linear,
    read,
    relative,
    satterthwaite,
    share,
    together,
)
from tinypeft.study.experiment import Results, half_width

RNG = np.random.default_rng(0)


def rows(table):
    return dict(enumerate(np.asarray(table, float)))


# -- the error -------------------------------------------------------------------------------------
def test_without_windows_it_is_students_t():
    d = RNG.normal(0.3, 1, 8)
    e, test = effect(d), stats.ttest_1samp(d, 0, alternative="greater")
    assert (e.mean, e.df, e.half) == pytest.approx((d.mean(), 7, float(half_width(d))))
    assert e.p_above() == pytest.approx(test.pvalue) and e.p_below() == pytest.approx(1 - test.pvalue)
    assert stats.ttest_1samp(d, 0).confidence_interval(0.95) == pytest.approx((e.low, e.high))


def test_the_error_over_seeds_and_windows_by_loops():
    n, m = 4, 6
    d = RNG.normal(0, 1, (n, m)) + RNG.normal(0, 2, (n, 1)) + RNG.normal(0, 2, (1, m))
    mean = sum(d[i, j] for i in range(n) for j in range(m)) / (n * m)
    seeds, windows = [sum(row) / m for row in d], [sum(column) / n for column in d.T]
    S = sum((x - mean) ** 2 for x in seeds) / (n * (n - 1))
    W = sum((x - mean) ** 2 for x in windows) / (m * (m - 1))
    R = sum((d[i, j] - seeds[i] - windows[j] + mean) ** 2 for i in range(n) for j in range(m)) / (n * m * (n - 1) * (m - 1))
    total, e = S + W - R, effect(d)
    assert min(S, W) > R and (e.mean, e.error ** 2) == pytest.approx((mean, total))
    assert e.df == pytest.approx(total ** 2 / (S ** 2 / 3 + W ** 2 / 5 + R ** 2 / 15))


@pytest.mark.parametrize("tables", [(4, 6, 0.0, 3.0), (4, 6, 3.0, 0.0), (4, 40, 0.0, 0.0)])
def test_it_is_never_smaller_than_one_of_the_two_alone(tables):
    n, m, by_seed, by_window = tables
    d = RNG.normal(0, 1, (n, m)) + RNG.normal(0, by_seed, (n, 1)) + RNG.normal(0, by_window, (1, m))
    alone = effect(d.mean(1)).error, effect(d.mean(0)).error
    assert effect(d).error >= max(alone) * (1 - 1e-12)


@pytest.mark.parametrize("spread", [(0.01, 0.05, 0.03), (0.01, 0.0, 0.03), (0.0, 0.05, 0.03)])
def test_the_interval_covers_as_often_as_it_says(spread):
    """8 seeds, 111 windows, 1,200 draws: within three standard errors of 95 %."""
    rng, draws, covered, sizes = np.random.default_rng(1), 1200, 0, ((8, 1), (1, 111), (8, 111))
    for _ in range(draws):
        e = effect(0.02 + sum(s * rng.standard_normal(size) for s, size in zip(spread, sizes, strict=True)))
        covered += e.low <= 0.02 <= e.high
    assert covered / draws == pytest.approx(0.95, abs=3 * (0.95 * 0.05 / draws) ** 0.5)


def test_where_only_the_rest_varies_it_covers_more():
    rng = np.random.default_rng(2)
    covered = [abs(e.mean) <= e.half for e in (effect(rng.standard_normal((8, 60))) for _ in range(600))]
    assert np.mean(covered) > 0.95


def test_seeds_alone_cover_too_little_if_windows_vary():
    """Why windows count: another text would give another mean, which seeds do not show."""
    rng = np.random.default_rng(3)
    draw = lambda: 0.01 * rng.standard_normal((8, 1)) + 0.1 * rng.standard_normal((1, 60)) + 0.02 * rng.standard_normal((8, 60))
    covered = [abs(e.mean) <= e.half for e in (effect(draw().mean(1)) for _ in range(400))]
    assert np.mean(covered) < 0.6


def test_satterthwaites_degrees_of_freedom_are_welchs():
    a, b = RNG.normal(0, 1, 7), RNG.normal(0, 3, 12)
    v = a.var(ddof=1) / 7, b.var(ddof=1) / 12
    assert satterthwaite(sum(v), v, (6, 11)) == pytest.approx(stats.ttest_ind(a, b, equal_var=False).df)
    assert satterthwaite(2.0, (2.0,), (5,)) == 5 and satterthwaite(0.0, (0.0, 0.0), (4, 9)) == 4


@pytest.mark.parametrize("limit", [-0.5, 0.0, 0.2])
def test_intervals_and_p_values_agree(limit):
    for scale in np.linspace(0.05, 0.6, 12):
        e = Effect(0.3, scale, 6.5)
        assert (e.low > limit) == (e.p_above(limit) < 0.025) and (e.high < limit) == (e.p_below(limit) < 0.025)
    assert e.p_above(e.low) == pytest.approx(0.025) and e.p_below(e.high) == pytest.approx(0.025)
    assert e.p_above(limit) == pytest.approx(1 - e.p_below(limit))


def test_what_does_not_vary_and_what_is_seen_once():
    always, once = effect(np.full(5, 0.2)), effect([[0.2, 0.3]])
    assert (always.low, always.high, always.p_above(0.1), always.p_above(0.3)) == (0.2, 0.2, 0.0, 1.0)
    assert always.p_above(0.2) == 0.5
    assert once.half == np.inf and once.p_above() == 0.5
    assert (-always).mean == -0.2


# -- from results ----------------------------------------------------------------------------------
def made(runs):
    return Results({"experiment": "toy", "runs": runs})


def test_windows_are_read_if_they_are_there_and_keep_the_mean():
    """The last window is shorter, so that the loss is not the plain mean of the windows."""
    r = made({"a": {"0": {"loss": 2.0, "loss_windows": [1.0, 2.0, 3.6]}, "3": {"loss": 2.5, "loss_windows": [2.0, 2.5, 3.0]}},
              "b": {"0": {"loss": 1.5}, "3": {"loss": 1.4}}})
    a, b = read(r, "a"), read(r, "b")
    assert list(a) == [0, 3] and a[0].mean() == pytest.approx(2.0) and np.ptp(a[0]) == pytest.approx(2.6)
    assert [x.shape for x in together(a, a)] == [(2, 3)] * 2 and [x.shape for x in together(a, b)] == [(2, 1)] * 2
    assert difference(a, b).mean == pytest.approx(0.8)
    with pytest.raises(KeyError, match="no condition 'c'"): read(r, "c")
    with pytest.raises(KeyError, match="no metric 'gain'"): read(r, "a", "gain")


def test_an_entry_of_a_list_with_its_windows():
    r = made({"a": {"0": {"loss": [2.0, 3.0], "loss_windows": [[1.0, 3.0], [2.0, 4.0]]}}})
    np.testing.assert_allclose(read(r, "a", i=1)[0], [2.0, 4.0])


def test_differences_are_paired_over_the_seeds_that_both_have():
    a, b = {0: np.array([1.0]), 1: np.array([2.0]), 2: np.array([9.0])}, {1: np.array([1.5]), 0: np.array([0.5])}
    e = difference(a, b)
    assert (e.mean, e.error, e.df) == (0.5, 0.0, 1)


def test_a_share_and_its_error():
    """Against the definition, and against a simulation of the ratio of means."""
    rng, whole = np.random.default_rng(4), 0.5
    draw = lambda n: (lambda seed, w: (0.7 * whole + 0.5 * seed + w + rng.normal(0, 0.01, (n, 20)), whole + seed + w))(
        rng.normal(0, 0.02, (n, 1)), rng.normal(0, 0.05, (1, 20)))
    ratios, errors, covered = [], [], 0
    for _ in range(500):
        a, b = draw(8)
        e = share(rows(a), rows(b))
        assert e.mean == pytest.approx(a.mean() / b.mean()) == pytest.approx(linear(a, b).mean())
        ratios.append(e.mean)
        errors.append(e.error)
        covered += e.low <= 0.7 <= e.high
    assert np.std(ratios) == pytest.approx(np.mean(errors), rel=0.1) and covered / 500 == pytest.approx(0.95, abs=0.03)


def test_gains_and_relative_differences():
    frozen, arm, full = rows([[3.0], [3.0]]), rows([[2.5], [2.4]]), rows([[2.0], [2.0]])
    part, whole = gains(frozen, arm, full)
    assert share(part, whole).mean == pytest.approx(0.55) and effect(together(whole)[0]).mean == 1.0
    assert relative(rows([[3.0], [3.3]]), rows([[2.0], [2.2]])).mean == pytest.approx(0.5)


def test_pairing_is_by_seed_and_not_by_place():
    for order in itertools.permutations(range(3)):
        a = {s: np.array([float(s)]) for s in range(3)}
        b = {s: np.array([s - 0.5]) for s in order}
        assert difference(a, b).error == pytest.approx(0, abs=1e-12)
