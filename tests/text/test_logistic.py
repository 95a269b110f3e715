"""logistic.py and bags.py: scikit-learn's solutions; and each row is measured by a fit that has not seen it."""
import numpy as np
import pytest

from tests.oracles import assert_close
from tinypeft.text.tasks import bags, logistic


def rows(n=90, d=7, n_classes=3, seed=0):
    """Rows of three classes that overlap."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, n)
    return rng.standard_normal((n, d)) + 0.8 * rng.standard_normal((n_classes, d))[labels], labels


@pytest.mark.parametrize("offset", [True, False])
@pytest.mark.parametrize("strength", [1.0, 0.03])
def test_the_fit_is_scikit_learns_numerical(strength, offset):
    linear_model = pytest.importorskip("sklearn.linear_model")
    X, labels = rows()
    theirs = linear_model.LogisticRegression(C=1 / (strength * len(X)), fit_intercept=offset, tol=1e-10, max_iter=10_000)
    theirs.fit(X, labels)
    W = logistic.fit(X, labels, 3, strength, offset=offset)
    assert_close(np.exp(logistic.log_probabilities(W, X)), theirs.predict_proba(X), 1e-4)
    assert (W[-1] == 0).all() != offset


def test_folds_share_each_class_evenly():
    labels = np.array([0] * 11 + [1] * 5 + [2] * 2)
    fold = logistic.folds_of(labels, 5, seed=0)
    for label, least, most in ((0, 2, 3), (1, 1, 1), (2, 0, 1)):
        counts = np.bincount(fold[labels == label], minlength=5)
        assert least <= counts.min() and counts.max() <= most
    assert not np.array_equal(fold, logistic.folds_of(labels, 5, seed=1))


def test_each_row_is_measured_by_a_fit_that_has_not_seen_it():
    X, labels = rows()
    calls = []

    def design(learned, held_out):
        calls.append((set(learned), set(held_out)))
        return X[learned], X[held_out]

    validated = logistic.cross_validate(design, labels, 3, (1.0, 0.1, 0.01), n_folds=4)
    assert len(calls) == 4 and all(not a & b and a | b == set(range(90)) for a, b in calls)
    assert set.union(*(b for _, b in calls)) == set(range(90))
    learned, held_out = (np.array(sorted(part)) for part in calls[2])
    W = logistic.fit(X[learned], labels[learned], 3, validated.strength)
    assert_close(np.exp(validated.log_p[held_out]), np.exp(logistic.log_probabilities(W, X[held_out])), 1e-3)
    assert validated.confusions().sum() == 90
    assert validated.accuracy == validated.confusions().trace() / 90


def test_labels_of_chance_are_found_to_be_chance():
    """Nothing leaks from the rows that are measured: with 200 features for 90 rows, a fit knows its own rows by heart."""
    rng = np.random.default_rng(0)
    X, labels = rng.standard_normal((90, 200)), rng.integers(0, 3, 90)
    validated = logistic.cross_validate(lambda a, b: (X[a], X[b]), labels, 3, (1.0, 0.01))
    low, high = validated.interval
    assert low < 1 / 3 < high and validated.loss > np.log(3) - 0.05
    W = logistic.fit(X, labels, 3, 0.01)
    assert (logistic.log_probabilities(W, X).argmax(1) == labels).all()


def test_a_bag_weighs_its_terms_as_scikit_learn_does():
    text = pytest.importorskip("sklearn.feature_extraction.text")
    texts = ["A lamp, a lamp!", "The lamp was dull", "dull coats and a radio", "so it is"]
    for terms, options in ((bags.words, {"token_pattern": r"\w+"}),
                           (bags.letters, {"analyzer": "char_wb", "ngram_range": (2, 5)})):
        theirs = text.TfidfVectorizer(binary=True, **options)
        expected = theirs.fit_transform(texts).toarray()
        bag = bags.Bag(texts, terms)
        ours = bag.design(texts).toarray()
        shared = [term for term in bag.column if term in theirs.vocabulary_]
        assert set(bag.column) == set(theirs.vocabulary_)
        assert_close(ours[:, [bag.column[t] for t in shared]], expected[:, [theirs.vocabulary_[t] for t in shared]], 1e-12)
    assert bags.Bag(texts, bags.words).design(["nothing known"]).nnz == 0
