"""Lesson 08: what students write, wrong and right."""
import numpy as np

from tinypeft import Tensor


def penalty(left, right, root=False, mean=False):
    def adalora_penalty(P, Q):
        parts = []
        for product in (left(P), right(Q)):
            D = product - np.eye(product.shape[0])
            n = (D * D).mean() if mean else (D * D).sum()
            parts.append(n.sqrt() if root else n)
        return parts[0] + parts[1]
    return adalora_penalty


gram, cogram = lambda M: M.T @ M, lambda M: M @ M.T


def expanded(P, Q):
    """‖A − I‖² = ‖A‖² − 2 tr A + r."""
    A, B = P.T @ P, Q @ Q.T
    return (A * A).sum() - 2 * (P * P).sum() + (B * B).sum() - 2 * (Q * Q).sum() + 2 * P.shape[1]


def without_graph(P, Q):
    from tinypeft import Tensor
    return penalty(gram, cogram)(Tensor(P.data), Tensor(Q.data))


def through_data(P, Q):
    return Tensor(np.sum((P.data.T @ P.data - np.eye(P.shape[1]))**2) + np.sum((Q.data @ Q.data.T - np.eye(Q.shape[0]))**2))


def off_diagonal(P, Q):
    total = 0
    for G in (gram(P), cogram(Q)):
        D = G * np.float64(1 - np.eye(G.shape[0]))
        total = total + (D ** 2).sum()
    return total


def unsquared(P, Q):
    I = np.eye(P.shape[1])
    return (gram(P) - I).sum() + (cogram(Q) - I).sum()


def in_place(w, g, I_bar, U, beta1, beta2):
    I = np.abs(w * g)
    I_bar *= beta1
    I_bar += (1 - beta1) * I
    U = beta2 * U + (1 - beta2) * np.abs(I - I_bar)
    return I_bar, U, I_bar * U


def importance(old=False, score=np.multiply, sign=False):
    def adalora_importance(w, g, I_bar, U, beta1, beta2):
        I = w * g if sign else np.abs(w * g)
        new = I_bar + (1 - beta1) * (I - I_bar)
        U = U + (1 - beta2) * (np.abs(I - (I_bar if old else new)) - U)
        return new, U, score(new, U)
    return adalora_importance


def scored(which):
    def adalora_importance(w, g, I_bar, U, beta1, beta2):
        new, new_U, _ = importance()(w, g, I_bar, U, beta1, beta2)
        return new, new_U, which(np.abs(w * g), I_bar, U, new, new_U)
    return adalora_importance


def without_abs(w, g, I_bar, U, beta1, beta2):
    new = beta1 * I_bar + (1 - beta1) * w * g
    U = beta2 * U + (1 - beta2) * (w * g - new)
    return new, U, new * U


def abs_once(w, g, I_bar, U, beta1, beta2):
    I = np.abs(w * g)
    new = beta1 * I_bar + (1 - beta1) * I
    U = beta2 * U + (1 - beta2) * (I - new)
    return new, U, new * U


def one_removed(t, T, t_i, t_f, b0, bT):
    if t <= t_i: return b0
    if t >= T - t_f: return bT
    return int(bT + (b0 - bT) * (1 - (t - t_i - t_f) / (T - t_i)) ** 3)


def budget(numerator=lambda t, t_i, t_f: t - t_i, power=3, whole=int):
    def adalora_budget(t, T, t_i, t_f, b0, bT):
        if t < t_i: return b0
        if t > T - t_f: return bT
        return whole(bT + (b0 - bT) * (1 - numerator(t, t_i, t_f) / (T - t_i - t_f)) ** power)
    return adalora_budget


def fall(share=lambda u: u ** 3, late=0, steps=lambda T, t_i, t_f: T - t_i - t_f, whole=int, rest=0):
    """The budget, with t clipped to the fall. late: steps too many. rest: how much longer the first rest is."""
    def adalora_budget(t, T, t_i, t_f, b0, bT):
        if t <= t_i + rest: return b0
        if t >= T - t_f: return bT
        return whole(bT + share(1 - (t - t_i + late) / steps(T, t_i, t_f)) * (b0 - bT))
    return adalora_budget


def no_rest(t, T, t_i, t_f, b0, bT):
    return int(bT + (b0 - bT) * (1 - (min(t, T - t_f) - t_i) / (T - t_i - t_f)) ** 3)


def averaged(beta1=lambda b1, b2: b1, beta2=lambda b1, b2: b2, share=lambda beta: 1 - beta, I=lambda w, g: abs(w * g),
             distance=abs):
    def adalora_importance(w, g, I_bar, U, b1, b2):
        first, second = beta1(b1, b2), beta2(b1, b2)
        I_bar = first * I_bar + share(first) * I(w, g)
        U = second * U + share(second) * distance(I(w, g) - I_bar)
        return I_bar, U, I_bar * U
    return adalora_importance


def by_places(scores, b):
    return np.argsort(-scores, axis=None).reshape(scores.shape) < b


def by_threshold(scores, b):
    return scores >= np.sort(scores.ravel())[scores.size - b] if b else np.zeros(scores.shape, bool)


def by_partition(scores, b):
    kept = np.zeros(scores.shape, bool)
    rows, columns = np.unravel_index(np.argpartition(scores, scores.size - b, axis=None)[scores.size - b:] if b < scores.size
                                     and b else np.arange(b), scores.shape)
    kept[rows, columns] = True
    return kept


def per_matrix(scores, b):
    kept = np.zeros(scores.shape, bool)
    for row, s in zip(kept, scores, strict=True): row[np.argsort(-s)[:b // len(scores)]] = True
    return kept


def from_the_end(scores, b):
    kept = np.zeros(scores.size, bool)
    kept[np.argsort(scores.ravel())[-b:]] = True
    return kept.reshape(scores.shape)


def export(kept, left=lambda lam: lam, right=lambda lam: 1 + 0 * lam):
    """B and A of the triplets `kept`, multiplied by functions of λ."""
    def adalora_export(P, Lam, Q):
        k = np.flatnonzero(kept(Lam))
        return P[:, k] * left(Lam[k]), Q[k] * right(Lam[k])[:, None]
    return adalora_export


def export_in_loops(P, Lam, Q):
    pairs = [(P[:, i], Lam[i] * Q[i]) for i in range(len(Lam)) if Lam[i]]
    B, A = np.zeros((len(P), len(pairs))), np.zeros((len(pairs), Q.shape[1]))
    for i, (p, q) in enumerate(pairs): B[:, i], A[i] = p, q
    return B, A


root, signed_root = lambda lam: np.sqrt(abs(lam)), lambda lam: np.sign(lam) * np.sqrt(abs(lam))

WRONG = {
    "adalora.penalty": [
        (penalty(cogram, gram), "wrong side"),
        (penalty(cogram, cogram), "columns of P"),
        (penalty(gram, cogram, root=True), "squared"),
        (lambda P, Q: (gram(P) * gram(P)).sum() + (cogram(Q) * cogram(Q)).sum(), "identity"),
        (penalty(gram, cogram, mean=True), "averaged"),
        (without_graph, "no gradient reaches P"),
        (lambda P, Q: Tensor(np.float32(expanded(P, Q).item())), "a new Tensor cuts the graph"),
        (lambda P, Q: expanded(P, Q).item(), "expected a tinypeft.Tensor"),
        (through_data, ".data, a NumPy function"),
        (off_diagonal, "the diagonal is left out"),
        (unsquared, "cancel"),
        (lambda P, Q: expanded(P, Q).sqrt(), "the root of the sum"),
        (lambda P, Q: (((P * P).sum(0) - 1) ** 2).sum() + (((Q * Q).sum(1) - 1) ** 2).sum(),
         "only the diagonal counts"),
        (lambda P, Q: (gram(P) * gram(P)).sum(), "another number")],
    "adalora.importance": [
        (importance(old=True), "new Ī"),
        (importance(score=np.add), "product"),
        (importance(sign=True), "sign"),
        (in_place, "I_bar"),
        (without_abs, "both absolute values"),
        (abs_once, "|I − Ī|, without a sign"),
        (scored(lambda I, a, u, b, v: a * u), "made of an old average"),
        (scored(lambda I, a, u, b, v: a * v), "the new Ī and the new U"),
        (scored(lambda I, a, u, b, v: b * u), "an old average"),
        (scored(lambda I, a, u, b, v: I * v), "this step's I"),
        (lambda *a: importance()(*a)[::-1], "result 1 of 3"),
        (lambda *a: importance()(*a)[2], "3 results"),
        (lambda w, g, I, U, b1, b2: importance()(w, g, I, U, 1 - b1, 1 - b2), "wrong way round"),
        (lambda w, g, I, U, b1, b2: importance()(np.ones_like(w), g, I, U, b1, b2), "weight is missing"),
        (lambda w, g, I, U, b1, b2: importance()(w, np.ones_like(g), I, U, b1, b2), "gradient is missing"),
        (lambda *a: tuple(importance()(*a)[i] for i in (1, 0, 2)), "results 1 and 2 are exchanged"),
        (averaged(beta1=lambda b1, b2: b2, beta2=lambda b1, b2: b1), "β1 belongs to Ī"),
        (averaged(share=lambda beta: 1), "without end"),
        (averaged(I=lambda w, g: (w * g) ** 2), "you squared w g"),
        (averaged(I=lambda w, g: (w * g) ** 2, distance=np.square), "you squared both"),
        (averaged(I=lambda w, g: g ** 2), "to the first power"),
        (scored(lambda I, a, u, b, v: (b * v) ** 2), "no square"),
        (scored(lambda I, a, u, b, v: v), "one of the two alone"),
        (scored(lambda I, a, u, b, v: b / v), "you divided"),
        (averaged(beta1=lambda b1, b2: 0), "this is I of this step"),
        (averaged(beta2=lambda b1, b2: 0), "|I − Ī| of this step")],
    "adalora.budget": [
        (budget(lambda t, t_i, t_f: t - t_i - t_f), "as printed"),
        (budget(power=1), "cubic"),
        (budget(whole=float), "whole number"),
        (no_rest, "rests at the start"),
        (one_removed, "still in the numerator"),
        (lambda t, T, t_i, t_f, b0, bT: min(b0, budget(lambda t, t_i, t_f: t - t_i - t_f)(t, T, t_i, t_f, b0, bT)),
         "min(b0, …)"),
        (lambda *a: None, "is there a return"),
        (lambda *a: budget()(*a) + 1, "another number"),
        (fall(whole=round), "rounded up or to the nearest"),
        (fall(lambda u: u ** 2), "another power"),
        (fall(lambda u: 1 - (1 - u) ** 3), "1 − progress³"),
        (fall(late=1), "steps of the fall are over; you counted"),
        (fall(steps=lambda T, t_i, t_f: T - t_i - t_f - 1), "the fall takes T − t_i − t_f steps; you counted"),
        (fall(steps=lambda T, t_i, t_f: T), "yours takes more"),
        (fall(rest=1), "the first step of the fall"),
        (lambda t, T, t_i, t_f, b0, bT: fall()(t, T, t_i, t_f, bT, b0), "rises from bT to b0"),
        (lambda t, T, t_i, t_f, b0, bT: fall()(t, T, t_f, t_i, b0, bT), "they are exchanged")],
    "adalora.allocate": [
        (per_matrix, "all matrices together"),
        (lambda scores, b: by_partition(-scores, b), "least important"),
        (lambda scores, b: by_partition(scores, scores.size - b), "not those that go"),
        (by_threshold, "exactly b"),
        (from_the_end, "[-b:] then begins at place 0"),
        (lambda scores, b: scores >= np.sort(scores, axis=None)[::-1][b - 1], "[b - 1] is the last place"),
        (lambda scores, b: by_partition(scores, min(b + 1, scores.size)), "one too many"),
        (lambda scores, b: by_partition(scores, b).reshape(-1), "shape"),
        (lambda scores, b: scores * by_partition(scores, b), "not the scores"),
        (lambda scores, b: ~by_partition(scores, b), "triplets that go"),
        (by_places, "not the rank of each score"),
        (lambda scores, b: np.argsort(-scores, axis=None)[:b], "these are the places"),
        (lambda *a: 1 * by_partition(*a), "use .astype(bool)")],
    "adalora.export": [
        (export(lambda lam: lam == lam), "still there"),
        (export(lambda lam: lam > 0), "not Lam > 0"),
        (export(lambda lam: lam != 0, root, root), "sign of λ is lost"),
        (export(lambda lam: lam != 0, right=lambda lam: lam), "counted twice"),
        (export(lambda lam: lam != 0, lambda lam: 1), "λ is missing"),
        (export(lambda lam: np.arange(len(lam)) < np.count_nonzero(lam)), "the first triplets"),
        (lambda *a: export_in_loops(*a)[::-1], "return B, which comes from P, first"),
        (lambda P, Lam, Q: (P[:, Lam != 0] * Lam[Lam != 0], Q), "cut both factors")],
}


RIGHT = {
    "adalora.penalty": [expanded, penalty(gram, cogram)], "adalora.importance": [importance(), lambda *a: [x.tolist() for x in importance()(*a)]],
    "adalora.budget": [budget(), lambda *a: float(budget()(*a))],
    "adalora.allocate": [by_partition, lambda *a: by_partition(*a).tolist()],
    "adalora.export": [
        export_in_loops,
        export(lambda lam: lam != 0, root, signed_root),
        lambda *a: list(export(lambda lam: abs(lam) > 0, right=np.ones_like)(*a))],
}
