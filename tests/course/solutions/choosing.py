"""Lesson 15: what students write, wrong and right."""
import math

import numpy as np
from scipy import stats


def memory(per_trained, per_bit=1 / 8):
    return lambda n_base, base_bits, n_trained: n_base * base_bits * per_bit + n_trained * per_trained


def pareto_loop(cost, loss):
    return np.array([not any(cost[i] <= cost[j] and loss[i] <= loss[j] and (cost[i] < cost[j] or loss[i] < loss[j])
                             for i in range(len(cost))) for j in range(len(cost))])


def pareto_swept(cost, loss):
    order = np.lexsort((loss, cost))
    before = np.minimum.accumulate(np.r_[np.inf, loss[order][:-1]])
    kept = np.zeros(len(cost), bool)
    kept[order] = loss[order] < before
    return kept


def pareto_strict(cost, loss):
    """Only what is beaten in both, strictly."""
    return np.array([not any((cost < cost[j]) & (loss < loss[j])) for j in range(len(cost))])


def pareto_weak(cost, loss):
    """Every point is beaten by itself, but for `!=`, which equal points are not saved by."""
    return np.array([not any(i != j and cost[i] <= cost[j] and loss[i] <= loss[j] for i in range(len(cost)))
                     for j in range(len(cost))])


def pareto_cheaper(cost, loss):
    """Lower than all points that cost strictly less."""
    return np.array([all(loss[j] < loss[i] for i in range(len(cost)) if cost[i] < cost[j]) for j in range(len(cost))])


def pareto_sorted(cost, loss):
    return loss <= np.minimum.accumulate(loss)


def half(x): return stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))


def lower(shift, react=1.0, noise=0.03, order=lambda a: a):
    """`shift` half widths lower, with a part of a's reaction to the seed, and a noise."""
    def choosing_apart(a):
        jitter = np.random.default_rng(1).permutation(np.linspace(-1, 1, len(a)))
        return a.mean() + react * (order(a) - a.mean()) - shift * half(a) + noise * a.std() * jitter
    return choosing_apart


def blocks(A_q, B_q, A_v, B_v):
    d, zero = len(B_q), np.zeros
    return np.vstack([A_q, A_v]), np.block([[B_q, zero((d, len(A_v)))], [zero((d, len(A_q))), zero((d, len(A_v)))],
                                            [zero((d, len(A_q))), B_v]])


def without_key(A_q, B_q, A_v, B_v):
    d = len(B_q)
    return np.vstack([A_q, A_v]), np.block([[B_q, np.zeros((d, len(A_v)))], [np.zeros((d, len(A_q))), B_v]])


def in_the_middle(A_q, B_q, A_v, B_v):
    A, B = blocks(A_q, B_q, A_v, B_v)
    d = len(B_q)
    return A, np.vstack([B[:d], B[2 * d:], B[d:2 * d]])


def swapped_A(A_q, B_q, A_v, B_v):
    return np.vstack([A_v, A_q]), blocks(A_q, B_q, A_v, B_v)[1]


def chosen(by, told=lambda validation, test, i: test[i].mean()):
    def choosing_bug(validation, test):
        i = int(by(validation, test))
        return i, told(validation, test, i)
    return choosing_bug


def by_validation(validation, test): return np.argmin(np.sum(validation, axis=1))


def each_seed(validation, test):
    losses = [test[validation[:, k].argmin(), k] for k in range(test.shape[1])]
    return int(by_validation(validation, test)), sum(losses) / len(losses)


def enough(factor, ddof=1, power=0.5, first=lambda d: 2):
    def choosing_seeds(d, half):
        n = first(d)
        while factor(n, len(d)) * np.std(d, ddof=ddof) / n**power > half: n += 1
        return n
    return choosing_seeds


def students(n, pilot): return stats.t.ppf(0.975, n - 1)


def searched(d, half):
    """Among many numbers at once."""
    n = np.arange(2, 5000)
    return n[stats.t.ppf(0.975, n - 1) * d.std(ddof=1) <= half * np.sqrt(n)][0]


WRONG = {
    "choosing.bug": [
        (chosen(lambda validation, test: test.mean(1).argmin()), "fault above"),
        (chosen(by_validation, lambda validation, test, i: validation[i].mean()), "too good"),
        (chosen(lambda validation, test: validation.min(1).argmin()), "the best seed is luck"),
        (chosen(by_validation, lambda validation, test, i: test[i].min()), "not that of the best seed"),
        (chosen(lambda validation, test: validation.mean(1).argmax()), "not the largest"),
        (each_seed, "one for each seed"),
        (lambda *a: (int(a[0][:, 0].argmin()), each_seed(*a)[1]), "chosen for all seeds"),
        (lambda *a: (a[0].argmin(0), each_seed(*a)[1]), "yours chooses one"),
        (lambda validation, test: chosen(by_validation)(test, validation), "two texts are exchanged"),
        (chosen(lambda validation, test: (validation + test).sum(1).argmin()), "alone chooses"),
        (chosen(by_validation, lambda validation, test, i: test.mean(1).min()), "not the least of all"),
        (chosen(lambda validation, test: np.median(validation, 1).argmin()), "not by their median"),
        (chosen(lambda validation, test: validation.sum(0).argmin(), lambda validation, test, i: test[:, i].mean()),
         "means over axis 1"),
        (chosen(by_validation, lambda validation, test, i: test[i]), "loss of each seed"),
        (lambda validation, test: test[by_validation(validation, test)].mean(), "2 results")],
    "choosing.seeds": [
        (enough(lambda n, pilot: stats.t.ppf(0.975, pilot - 1)), "of the pilot"),
        (enough(lambda n, pilot: 1.96), "1.96"),
        (enough(lambda n, pilot: stats.t.ppf(0.95, n - 1)), "two sides"),
        (enough(students, ddof=0), "ddof=1"),
        (enough(lambda n, pilot: stats.t.ppf(0.975, n)), "degrees of freedom"),
        (enough(students, first=len), "begin at 2"),
        (enough(students, power=1), "not with n"),
        (lambda d, half: enough(students)(d, half) + 1, "more than needed"),
        (lambda d, half: enough(students)(d, half) - len(d), "than in the pilot")],
    "choosing.memory": [
        (memory(16, 1), "bits are not bytes"),
        (memory(8), "moments"),
        (lambda n, bits, t: memory(16)(n, bits, t) + 12 * n, "frozen weights"),
        (lambda n, bits, t: (n + t) * bits / 8 + 12 * t, "whatever the base's bits"),
        (lambda n, bits, t: memory(16)(n, bits, t) / 2**30, "in GiB"),
        (lambda n, bits, t: memory(16)(n, bits, t) / 1e9, "in GB"),
        (memory(12), "yours takes 12"),
        (lambda n, bits, t: 16 * (n + t), "no gradient and no moments"),
        (lambda n, bits, t: memory(16)(n - t, bits, t), "do not subtract it"),
        (lambda n, bits, t: n * (bits // 8) + 16 * t, "not with //")],
    "choosing.pareto": [
        (pareto_swept, "of equal points both stay"),
        (lambda cost, loss: ~pareto_loop(cost, loss), "dominated ones"),
        (pareto_sorted, "sort first"),
        (lambda cost, loss: loss == loss.min(), "single best"),
        (pareto_strict, "equal in one and better in the other"),
        (pareto_cheaper, "equally cheap points"),
        (pareto_weak, "do not dominate each other"),
        (lambda cost, loss: np.flatnonzero(pareto_loop(cost, loss)), "a boolean array"),
        (lambda cost, loss: pareto_loop(cost, -loss), "a low loss is good"),
        (lambda cost, loss: np.array([y <= loss[cost <= x].min() for x, y in zip(cost, loss, strict=True)]),
         "equally good points")],
    "choosing.apart": [
        (lambda a: a.copy(), "the same as a"),
        (lambda a: a - 0.5 * half(a), "all equal"),
        (lambda a: lower(0.5, noise=0)(a) + 1e-9 * a, "all equal"[:9] + ", which"),
        (lower(0.5, noise=0.05), "less than a quarter"),
        (lower(0.7, noise=0.2, order=lambda a: np.roll(a, 1)), "another seed's"),
        (lower(0.5, noise=0.2, order=np.sort), "sorted"),
        (lower(0.5, react=-1, noise=0.2), "twice as much"),
        (lambda a: np.full_like(a, a.mean() - 0.5 * half(a)), "one number"),
        (lower(4, noise=0.5), "too far apart"),
        (lower(0.1, noise=0.6), "contains 0"),
        (lambda a: list(lower(0.5)(a))[:-1], "shape")],
    "choosing.fuse": [
        (without_key, "3d rows"),
        (in_the_middle, "last third"),
        (swapped_A, "come first in A"),
        (lambda *a: blocks(*a)[::-1], "return (A, B)"),
        (lambda A_q, B_q, A_v, B_v: (np.vstack([A_v, A_q]), np.hstack([blocks(A_q, B_q, A_v, B_v)[1][:, len(A_q):],
                                                                      blocks(A_q, B_q, A_v, B_v)[1][:, :len(A_q)]])),
         "another order"),
        (lambda *a: (blocks(*a)[0], np.concatenate(np.split(blocks(*a)[1], 3)[::-1])), "exchanged"),
        (lambda A_q, B_q, A_v, B_v: blocks(A_v, B_v, A_q, B_q), "the value's are exchanged"),
        (lambda A_q, B_q, A_v, B_v: (np.vstack([A_q, A_v]), np.concatenate([np.hstack([B, C]) for B, C in (
            (B_q, B_v), (0 * B_q, 0 * B_v), (B_q, B_v))])),
         "other blocks of B"),
        (lambda A_q, B_q, A_v, B_v: (A_q, blocks(A_q, B_q, A_v, B_v)[1]), "one below the other")],
}
RIGHT = {
    "choosing.bug": [chosen(by_validation), lambda v, t: list(chosen(by_validation)(v, t))],
    "choosing.seeds": [enough(students), searched],
    "choosing.memory": [
        memory(16),
        lambda *a: int(memory(16)(*a)),
        lambda *a: math.ceil(memory(16)(*a))],
    "choosing.pareto": [pareto_loop, lambda *a: pareto_loop(*a).tolist()], "choosing.apart": [lower(1.0, noise=0.5), lower(-0.9, noise=0.6), lower(1.2, 0.8, 0.6), lambda a: a.mean() + 1.5 * (a - a.mean()) + half(a)],
    "choosing.fuse": [blocks, lambda *a: [x.tolist() for x in blocks(*a)]],
}
