"""Effects: the standard error over seeds and documents, its degrees of freedom, intervals and p-values, ratios."""
import itertools

import numpy as np
import pytest
from scipy import stats

from tinypeft.study.effects import (
    Effect,
    Rows,
    Share,
    among,
    averaged,
    between,
    effect,
    over_both_texts,
    paired,
    read,
)
from tinypeft.study.experiment import Results, half_width

RNG = np.random.default_rng(0)


def rows(table):
    table = np.asarray(table, float)
    return Rows(tuple(range(len(table))), table, np.ones(table.shape[1]))


def at(numbers):
    return Rows(tuple(numbers), np.array([*numbers.values()])[:, None], np.ones(1))


# -- the error -------------------------------------------------------------------------------------
def test_without_documents_it_is_students_t():
    d = RNG.normal(0.3, 1, 8)
    e, test = effect(d), stats.ttest_1samp(d, 0, alternative="greater")
    assert (e.mean, e.df, e.half) == pytest.approx((d.mean(), 7, float(half_width(d))))
    assert e.p_above() == pytest.approx(test.pvalue) and e.p_below() == pytest.approx(1 - test.pvalue)
    assert stats.ttest_1samp(d, 0).confidence_interval(0.95) == pytest.approx((e.low, e.high))


def test_the_error_over_seeds_and_documents_by_loops():
    n, m = 4, 6
    w = np.array([0.5, 2, 1, 1, 0.5, 1])
    d = RNG.normal(0, 1, (n, m)) + RNG.normal(0, 2, (n, 1)) + RNG.normal(0, 2, (1, m))
    mean = sum(w[j] * d[i, j] for i in range(n) for j in range(m)) / (n * m)
    z = [[mean + w[j] * (d[i, j] - mean) for j in range(m)] for i in range(n)]
    seeds, documents = [sum(row) / m for row in z], [sum(column) / n for column in zip(*z, strict=True)]
    p = [x / m for x in w]
    c = [1 - 2 * x + sum(y * y for y in p) for x in p]
    S = sum((x - mean) ** 2 for x in seeds) / (n * (n - 1))
    D = sum((x - mean) ** 2 / c[j] for j, x in enumerate(documents)) / m ** 2
    R = sum((z[i][j] - seeds[i] - documents[j] + mean) ** 2 for i in range(n) for j in range(m)) / (n * m * (n - 1) * (m - 1))
    e = effect(d, w)
    assert min(S, D) > R and (e.mean, e.error ** 2) == pytest.approx((mean, S + D - R))
    assert e.df == (pytest.approx((S, 3)), pytest.approx((D, m ** 2 / sum(x * x for x in w) - 1)))
    both = (S * stats.t.ppf(0.975, 3) + D * stats.t.ppf(0.975, e.df[1][1])) / (S + D)
    assert e.half == pytest.approx(both * (S + D - R) ** 0.5)


@pytest.mark.parametrize("tables", [(4, 6, 0.0, 3.0), (4, 6, 3.0, 0.0), (4, 40, 0.0, 0.0)])
def test_it_is_never_smaller_than_one_of_the_two_alone(tables):
    n, m, by_seed, by_document = tables
    d = RNG.normal(0, 1, (n, m)) + RNG.normal(0, by_seed, (n, 1)) + RNG.normal(0, by_document, (1, m))
    alone = effect(d.mean(1)).error, effect(d.mean(0)).error
    assert effect(d).error >= max(alone) * (1 - 1e-12)


@pytest.mark.parametrize("spread", [(0.01, 0.05, 0.03), (0.01, 0.0, 0.03), (0.0, 0.05, 0.03)])
def test_the_interval_covers_as_often_as_it_says(spread):
    """8 seeds, 111 documents, 1,200 draws: within three standard errors of 95 %."""
    rng, draws, covered, sizes = np.random.default_rng(1), 1200, 0, ((8, 1), (1, 111), (8, 111))
    for _ in range(draws):
        e = effect(0.02 + sum(s * rng.standard_normal(size) for s, size in zip(spread, sizes, strict=True)))
        covered += e.low <= 0.02 <= e.high
    assert covered / draws == pytest.approx(0.95, abs=3 * (0.95 * 0.05 / draws) ** 0.5)


def test_where_only_the_rest_varies_it_covers_more():
    rng = np.random.default_rng(2)
    covered = [abs(e.mean) <= e.half for e in (effect(rng.standard_normal((8, 60))) for _ in range(600))]
    assert np.mean(covered) > 0.95


def test_seeds_alone_cover_too_little_if_documents_vary():
    """Why documents count: another text would give another mean, which seeds do not show."""
    rng = np.random.default_rng(3)
    draw = lambda: 0.01 * rng.standard_normal((8, 1)) + 0.1 * rng.standard_normal((1, 60)) + 0.02 * rng.standard_normal((8, 60))
    covered = [abs(e.mean) <= e.half for e in (effect(draw().mean(1)) for _ in range(400))]
    assert np.mean(covered) < 0.6


@pytest.mark.parametrize("n", [3, 4])
@pytest.mark.parametrize("by_document", [0.02, 0.05, 0.1])
def test_small_p_are_not_too_small_with_few_seeds(n, by_document):
    """Holm asks for p of a thousandth: a true null falls below it at most twice as often, where seeds vary as well."""
    rng, draws = np.random.default_rng(9), 50_000
    S = 0.01 ** 2 / n * rng.chisquare(n - 1, draws) / (n - 1)
    D = by_document ** 2 / 400 * rng.chisquare(110, draws) / 110
    means = rng.normal(0, (0.01 ** 2 / n + by_document ** 2 / 400) ** 0.5, draws)
    one, other = (Effect(0, 1, df).quantile(1 - 0.0005) for df in (n - 1, 110))
    quantiles = (S * one + D * other) / (S + D)
    assert Effect(0, 1, ((S[0], n - 1), (D[0], 110))).quantile(1 - 0.0005) == pytest.approx(quantiles[0])
    falls = (np.abs(means) > quantiles * (S + D) ** 0.5).mean()
    assert falls < 0.002 + 3 * (0.002 / draws) ** 0.5


@pytest.mark.parametrize("limit", [-0.5, 0.0, 0.2])
def test_intervals_and_p_values_agree(limit):
    for scale, df in itertools.product(np.linspace(0.05, 0.6, 6), (6.5, ((1.0, 2), (3.0, 50)))):
        e = Effect(0.3, scale, df)
        assert (e.low > limit) == (e.p_above(limit) < 0.025) and (e.high < limit) == (e.p_below(limit) < 0.025)
    assert e.p_above(e.low) == pytest.approx(0.025) and e.p_below(e.high) == pytest.approx(0.025)
    assert e.p_above(limit) == pytest.approx(1 - e.p_below(limit))


def test_what_does_not_vary_and_what_is_seen_once():
    always, once = effect(np.full(5, 0.2)), effect([[0.2, 0.3]])
    assert (always.low, always.high, always.p_above(0.1), always.p_above(0.3)) == (0.2, 0.2, 0.0, 1.0)
    assert always.p_above(0.2) == 0.5
    assert once.half == np.inf and once.p_above() == 0.5 and Effect(1.0, 0.1, ((1.0, 2), (1.0, 9))).p_above(-1e9) < 1e-9
    assert (-always).mean == -0.2


# -- documents of unequal length ---------------------------------------------------------------------
def corpus(rng, seeds=4, documents=60, by_seed=0.01, by_document=0.1, own=0.05, mean=0.02):
    """(tokens (m,), differences (n, m)): lengths from 20 to 2,000 tokens; within a document all tokens move together, and each
    adds a little of its own."""
    tokens = np.exp(rng.uniform(np.log(20), np.log(2000), documents))
    table = mean + by_seed * rng.standard_normal((seeds, 1)) + by_document * rng.standard_normal(documents)
    return tokens, table + own * rng.standard_normal((seeds, documents)) + 1.0 / tokens ** 0.5 * rng.standard_normal(documents)


@pytest.mark.parametrize("spread", [{}, {"by_seed": 0.03}, {"by_document": 0.02}, {"documents": 400}])
def test_the_interval_covers_on_simulated_documents(spread):
    """At least 93 % of 1,500 corpora: documents of unequal length, whose tokens resemble each other."""
    rng, covered = np.random.default_rng(6), 0
    for _ in range(1500):
        tokens, d = corpus(rng, **spread)
        e = effect(d, tokens / tokens.mean())
        assert e.mean == pytest.approx(np.average(d.mean(0), weights=tokens))
        covered += e.low <= 0.02 <= e.high
    assert covered / 1500 > 0.93


def test_windows_of_equal_length_cover_too_little_if_tokens_of_a_document_resemble_each_other():
    """Why documents count: cut into windows, a long document would count as many numbers."""
    rng, covered = np.random.default_rng(7), []
    for _ in range(400):
        tokens, d = corpus(rng)
        windows = np.repeat(d, np.ceil(tokens / 128).astype(int), axis=1)
        e = effect(windows)
        covered.append(e.low <= 0.02 <= e.high)
    assert np.mean(covered) < 0.9


def test_weights_of_one_change_nothing():
    d = RNG.normal(0, 1, (4, 9))
    assert effect(d, np.ones(9)) == effect(d)


# -- from results ----------------------------------------------------------------------------------
def made(runs, *tokens):
    return Results({"experiment": "toy", "runs": runs}, tuple(np.array(t) for t in tokens))


def test_documents_are_read_if_they_are_there_and_keep_the_mean():
    """Stored are sums of nats; tokens count alike, so a long document weighs more."""
    r = made({"a": {"0": {"loss": 2.0, "loss_documents": [10.0, 20.0, 30.0]},
                    "3": {"loss": 2.5, "loss_documents": [20, 20, 35]}},
              "b": {"0": {"loss": 1.5}, "3": {"loss": 1.4}}}, [10, 5, 15], [1, 1])
    a, b = read(r, "a"), read(r, "b")
    assert a.seeds == (0, 3) and a.mean == pytest.approx(2.25)
    np.testing.assert_allclose(a.values[0], [1, 4, 2])
    np.testing.assert_allclose(a.weights, [1, 0.5, 1.5])
    x, y = paired(a, a)
    assert x.values.shape == y.values.shape == (2, 3) and x.weights is a.weights
    x, y = paired(a, b)
    np.testing.assert_allclose(x.values, [[2.0], [2.5]])
    assert y.values.shape == (2, 1) and (a - b).effect.mean == pytest.approx(0.8)
    with pytest.raises(KeyError, match="no condition 'c'"): read(r, "c")
    with pytest.raises(KeyError, match="no metric 'gain'"): read(r, "a", "gain")
    with pytest.raises(KeyError, match="no text of 3 documents"): read(made(r.record["runs"]), "a")


def test_an_entry_of_a_list_with_its_documents():
    r = made({"a": {"0": {"loss": [2.0, 3.0], "loss_documents": [[1.0, 3.0], [2.0, 4.0]]}}}, [1, 1])
    np.testing.assert_allclose(read(r, "a", i=1).values[0], [2.0, 4.0])


def test_differences_are_paired_over_the_seeds_that_both_have():
    a, b = at({0: 1.0, 1: 2.0, 2: 9.0}), at({1: 1.5, 0: 0.5})
    e = (a - b).effect
    assert (e.mean, e.error, e.df) == (0.5, 0.0, 1)


def test_the_mean_over_the_seeds_of_several_bases_is_one_row_each():
    a, b = rows([[1, 2], [3, 4]]), rows([[0, 0]])
    both = averaged(a, b)
    np.testing.assert_allclose(both.values, [[2, 3], [0, 0]])
    with pytest.raises(KeyError, match="one base"): averaged(a)
    parts = averaged(at({5: 1.0, 6: 2.0}), at({5: 3.0, 6: 5.0}))         # without documents, seeds are parts of the text
    np.testing.assert_allclose(parts.values, [[1, 2], [3, 5]])


def test_two_groups_of_bases_are_welch_and_their_text():
    rng = np.random.default_rng(10)
    a, b = rng.normal(1, 0.3, (3, 1)) + np.zeros((3, 40)), rng.normal(0, 0.1, (4, 1)) + np.zeros((4, 40))
    e, test = between(rows(a), rows(b)), stats.ttest_ind(a[:, 0], b[:, 0], equal_var=False)
    assert e.mean == pytest.approx(a.mean() - b.mean()) and e.mean / e.error == pytest.approx(test.statistic)
    text = rng.normal(0, 1, 40)
    wider = between(rows(a + text), rows(b))
    assert wider.error ** 2 == pytest.approx(e.error ** 2 + text.var(ddof=1) / 40)


def test_the_interval_covers_for_two_groups_of_three_bases():
    rng, covered = np.random.default_rng(11), 0
    for _ in range(800):
        text = 0.1 * rng.standard_normal(60)
        a, b = (0.05 * rng.standard_normal((3, 1)) + x + 0.02 * rng.standard_normal((3, 60)) for x in (text, 0))
        e = between(rows(a), rows(b))
        covered += e.low <= 0 <= e.high
    assert covered / 800 > 0.93


def test_a_sum_over_two_texts_has_the_error_of_both():
    """Against a simulation: the same seeds, other documents."""
    rng, sums, errors = np.random.default_rng(8), [], []
    for _ in range(500):
        x, y = (rng.normal(0, 0.02, (4, 1)) + s * rng.standard_normal(m) + 0.02 * rng.standard_normal((4, m))
                for s, m in ((0.2, 30), (0.1, 90)))
        e = over_both_texts(rows(x), rows(y)).effect
        assert e.mean == pytest.approx(x.mean() + y.mean())
        sums.append(e.mean)
        errors.append(e.error)
    assert np.std(sums) == pytest.approx(np.mean(errors), rel=0.1)


def test_beside_others_what_all_share_is_left_out():
    """A hard text moves all arms; with two arms the interval is that of half their difference, times √2."""
    a, b = RNG.normal(0, 1, (4, 20)), RNG.normal(0, 1, (4, 20))
    shared = 9 * RNG.standard_normal((4, 20))
    e, alone = among(rows(a + shared), rows(b + shared)), (rows(a) - rows(b)).effect
    assert e.error == pytest.approx(alone.error / 2 ** 0.5) and e.half == pytest.approx(alone.half / 2 ** 0.5)


def test_a_share_and_its_error():
    """Against the definition, and against a simulation of the ratio of means."""
    rng, whole = np.random.default_rng(4), 0.5
    draw = lambda n: (lambda seed, w: (0.7 * whole + 0.5 * seed + w + rng.normal(0, 0.01, (n, 20)), whole + seed + w))(
        rng.normal(0, 0.02, (n, 1)), rng.normal(0, 0.05, (1, 20)))
    ratios, errors, covered = [], [], 0
    for _ in range(500):
        a, b = draw(8)
        e = (rows(a) / rows(b)).effect
        assert e.mean == pytest.approx(a.mean() / b.mean())
        ratios.append(e.mean)
        errors.append(e.error)
        covered += e.low <= 0.7 <= e.high
    assert np.std(ratios) == pytest.approx(np.mean(errors), rel=0.1) and covered / 500 == pytest.approx(0.95, abs=0.03)


def test_a_share_remembers_its_whole():
    """Over the seeds that both have. What is computed of it further is no share."""
    frozen, arm, full = at({0: 3.0, 1: 3.0}), at({1: 2.4, 0: 2.5}), at({0: 2.0, 1: 1.0, 2: -9.0})
    of_gain = ((frozen - arm) / (frozen - full)).effect
    assert isinstance(of_gain, Share) and of_gain.mean == pytest.approx(1.1 / 3) and of_gain.whole.mean == pytest.approx(1.5)
    assert of_gain.whole.error == effect([1.0, 2.0]).error
    more = (rows([[3.0], [3.3]]) / rows([[2.0], [2.2]]) - 1).effect
    assert more.mean == pytest.approx(0.5) and not isinstance(more, Share)


def test_operators_pair_rows_and_take_numbers():
    a, b = RNG.normal(0, 1, (3, 5)), RNG.normal(0, 1, (3, 5))
    for found, expected in ((rows(a) + rows(b), a + b), (rows(a) - rows(b), a - b), (2 * rows(a), 2 * a),
                            (rows(a) - 1, a - 1), (rows(a) + 1, a + 1), (rows(a) / 2, a / 2)):
        np.testing.assert_array_equal(found.values, expected)
    swapped = Rows((2, 0), b[[2, 0]], np.ones(5))
    np.testing.assert_array_equal((rows(a) - swapped).values, (a - b)[[0, 2]])
    both = rows(a) - at({0: 1.0, 1: 2.0, 2: 3.0})        # without documents the means of seeds are paired
    np.testing.assert_allclose(both.values[:, 0], a.mean(1) - [1, 2, 3])
    with pytest.raises(KeyError, match="no seed"): rows(a) - at({7: 1.0})


def test_a_list_has_no_effect_but_its_entries_have():
    r = made({"a": {"0": {"loss": [2.0, 3.0]}, "1": {"loss": [2.2, 3.4]}}})
    assert read(r, "a", i=1).effect.mean == pytest.approx(3.2)
    with pytest.raises(ValueError, match=r"loss is a list of shape \(2,\); name an entry"): assert read(r, "a").effect


def test_effects_in_words():
    assert f"{Effect(0.05, 0.005, 7):+.3f} {100 * Effect(-0.05, 0.005, 7):.0f}" == "+0.050 ± 0.012 -5 ± 1"


def test_pairing_is_by_seed_and_not_by_place():
    for order in itertools.permutations(range(3)):
        a, b = at({s: float(s) for s in range(3)}), at({s: s - 0.5 for s in order})
        assert (a - b).effect.error == pytest.approx(0, abs=1e-12)
