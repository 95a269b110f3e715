"""Solutions of lesson 12's exercises, right and wrong."""
import numpy as np


def by_power_iteration(H):
    """Multiply a vector by a matrix until only its strongest direction is left."""
    def strongest(A):
        v = np.linspace(1, 2, len(A)) + 0.1 * np.arange(len(A)) % 0.3
        for _ in range(40): A = A @ A / np.linalg.norm(A)
        return A @ v / np.linalg.norm(A @ v)
    return strongest(H), strongest(np.trace(H) * np.eye(len(H)) - H)


def by_svd(H):
    U, _, _ = np.linalg.svd(H)
    return -U[:, 0], U[:, -1]


def step_in_loops(w, Hinv, q, value):
    e = w[q] - value
    new = np.array([w[k] - e / Hinv[q, q] * Hinv[k, q] for k in range(len(w))])
    new[q] = value
    M = np.array([[Hinv[i, j] - Hinv[i, q] * Hinv[q, j] / Hinv[q, q] for j in range(len(w))] for i in range(len(w))])
    M[q, :] = 0
    M[:, q] = 0
    return new, M


def gptq_rows(W, U, quant):
    """A weight at a time."""
    W, out = W.copy(), np.zeros_like(W)
    for j in range(W.shape[1]):
        out[:, j] = quant(W[:, j])
        for k in range(j + 1, W.shape[1]):
            W[:, k] = W[:, k] - (W[:, j] - out[:, j]) / U[j, j] * U[j, k]
    return out


def output_loss(W, H, s, quant):
    D = quant(W * s) / s - W
    return np.trace(D @ H @ D.T)


def fine_search(W, H, mean_abs, quant):
    return min((mean_abs**a for a in np.linspace(0, 1, 41)), key=lambda s: output_loss(W, H, s, quant))


def column_by_column(W, H, mean_abs, quant):
    """No power at all: each column, the largest input first, gets the best of some factors, twice."""
    s = np.ones(len(H))
    for j in np.tile(np.argsort(-mean_abs), 2):
        tried = [np.where(np.arange(len(s)) == j, factor * s, s) for factor in (0.6, 0.8, 1, 1.25, 1.5, 2, 3, 4, 6)]
        s = min(tried, key=lambda s: output_loss(W, H, s, quant))
    return s


def factor_by_flips(H, damping):
    """From the factor of H itself, turned around: no inverse is factored."""
    A = H + damping * np.mean(np.diag(H)) * np.eye(len(H))
    return np.linalg.inv(np.linalg.cholesky(A[::-1, ::-1])[::-1, ::-1])


def factor_by_inverse(H, damping):
    A = H.copy()
    A[np.diag_indices(len(A))] += damping * np.trace(H) / len(H)
    return np.linalg.cholesky(np.linalg.inv(A)).T


def heaviest_first(W, H, quant, damping):
    order = sorted(range(len(H)), key=lambda j: -H[j, j])
    W_hat = gptq_rows(W[:, order], factor_by_inverse(H[np.ix_(order, order)], damping), quant)
    return W_hat[:, np.argsort(order)]


RIGHT = {"calibrated.directions": [by_power_iteration, by_svd, lambda H: [v.tolist() for v in by_svd(H)]],
         "calibrated.compensate": [step_in_loops, lambda *a: [x.tolist() for x in step_in_loops(*a)]],
         "calibrated.gptq": [gptq_rows, lambda *a: gptq_rows(*a).tolist()],
         "calibrated.bug": [factor_by_flips, factor_by_inverse, lambda *a: factor_by_inverse(*a).tolist()],
         "calibrated.order": [heaviest_first, lambda *a: heaviest_first(*a).tolist()],
         "calibrated.scale": [fine_search, column_by_column, lambda *a: fine_search(*a).tolist()]}


def step_wrong_sign(w, Hinv, q, value):
    new = w + (w[q] - value) / Hinv[q, q] * Hinv[:, q]
    new[q] = value
    M = Hinv - np.outer(Hinv[:, q], Hinv[q]) / Hinv[q, q]
    M[q] = M[:, q] = 0
    return new, M


def step_no_elimination(w, Hinv, q, value):
    new, M = w - (w[q] - value) / Hinv[q, q] * Hinv[:, q], Hinv.copy()
    new[q] = value
    M[q] = M[:, q] = 0
    return new, M


def step_alone(w, Hinv, q, value):
    new = w.copy()
    new[q] = value
    M = Hinv - np.outer(Hinv[:, q], Hinv[q]) / Hinv[q, q]
    M[q] = M[:, q] = 0
    return new, M


def step_all_wrong(w, Hinv, q, value):
    return w + (w[q] - value) / Hinv[q, q] * Hinv[q], step_in_loops(w, Hinv, q, value)[1]


def step_behind(w, Hinv, q, value):
    new = w.copy()
    new[q:] += (value - w[q]) / Hinv[q, q] * Hinv[q, q:]
    new[q] = value
    return new, step_in_loops(w, Hinv, q, value)[1]


def step_of(in_w=True, in_H=True, zeros=True, delta=False):
    def calibrated_compensate(w, Hinv, q, value):
        p = Hinv[q, q]
        change = (value - w[q]) * Hinv[:, q] / (p if in_w else 1)
        M = Hinv - np.outer(Hinv[:, q], Hinv[q, :]) / (p if in_H else 1)
        new = w + change
        new[q] = value
        if zeros: M[q], M[:, q] = 0, 0
        return change if delta else new, M
    return calibrated_compensate


def step_in_place(w, Hinv, q, value):
    w -= (w[q] - value) / Hinv[q, q] * Hinv[:, q]
    w[q] = value
    M = Hinv - np.outer(Hinv[:, q], Hinv[q]) / Hinv[q, q]
    M[q] = M[:, q] = 0
    return w, M


def gptq_nearest(W, U, quant):
    return np.stack([quant(W[:, j]) for j in range(W.shape[1])], axis=1)


def gptq_undivided(W, U, quant):
    W, out = W.copy(), np.empty_like(W)
    for j in range(W.shape[1]):
        out[:, j] = quant(W[:, j])
        W[:, j + 1:] -= np.outer(W[:, j] - out[:, j], U[j, j + 1:])
    return out


def gptq_same_inverse(W, U, quant):
    W, out, Hinv = W.copy(), np.empty_like(W), U.T @ U
    for j in range(W.shape[1]):
        out[:, j] = quant(W[:, j])
        for k in range(j + 1, W.shape[1]): W[:, k] -= (W[:, j] - out[:, j]) * Hinv[j, k] / Hinv[j, j]
    return out


def gptq_in_place(W, U, quant):
    out = np.empty_like(W)
    for j in range(W.shape[1]):
        out[:, j] = quant(W[:, j])
        W[:, j + 1:] -= np.outer((W[:, j] - out[:, j]) / U[j, j], U[j, j + 1:])
    return out


def gptq_last_only(W, U, quant):
    W, out = W.copy(), np.empty_like(W)
    for j in range(W.shape[1]):
        out[:, j] = quant(W[:, j])
        if j + 1 < W.shape[1]: W[:, j + 1] -= (W[:, j] - out[:, j]) / U[j, j] * U[j, j + 1]
    return out


def gptq_but_last(W, U, quant):
    return np.column_stack([gptq_rows(W, U, quant)[:, :-1], W[:, -1]])


def step_undivided(w, Hinv, q, value):
    new = w + (value - w[q]) * Hinv[:, q]
    new[q] = value
    M = Hinv - np.outer(Hinv[:, q], Hinv[q])
    M[q] = M[:, q] = 0
    return new, M


def step_untidy(w, Hinv, q, value):
    """Nothing is divided, and what is left of row and column q stays."""
    new = w + (value - w[q]) * Hinv[:, q]
    new[q] = value
    return new, Hinv - np.outer(Hinv[:, q], Hinv[q])


def gptq_steps(sign, result):
    def calibrated_gptq(W, U, quant):
        W, out = W.copy(), np.empty_like(W)
        for j in range(W.shape[1]):
            out[:, j] = quant(W[:, j])
            W[:, j + 1:] -= sign * np.outer((W[:, j] - out[:, j]) / U[j, j], U[j, j + 1:])
        return result(W, out)
    return calibrated_gptq


gptq_running, gptq_added = gptq_steps(1, lambda W, out: W), gptq_steps(-1, lambda W, out: out)


def factor_of(inverse=True, lower=False, more=lambda H, damping: damping * np.mean(np.diag(H)) * np.eye(len(H))):
    def calibrated_bug(H, damping):
        A = H + more(H, damping)
        L = np.linalg.cholesky(np.linalg.inv(A) if inverse else A)
        return L if lower else L.T
    return calibrated_bug


def factor_of_factor(transpose):
    def calibrated_bug(H, damping):
        M = np.linalg.inv(np.linalg.cholesky(H + damping * np.trace(H) / len(H) * np.eye(len(H))))
        return M.T if transpose else M
    return calibrated_bug


def factor_by_qr(H, damping):
    """R of a QR factorization, whose rows may have either sign."""
    values, vectors = np.linalg.eigh(H + damping * np.mean(np.diag(H)) * np.eye(len(H)))
    return -np.linalg.qr((vectors / np.sqrt(values)).T)[1]


def everywhere(H, damping): return damping * np.mean(np.diag(H))


def ordered(back=lambda V, order: V[:, np.argsort(order)], key=lambda H: -np.diag(H), both=True, damped=lambda damping: damping):
    def calibrated_order(W, H, quant, damping):
        order = np.argsort(key(H))
        U = factor_by_inverse(H[order][:, order] if both else H, damped(damping))
        return back(gptq_rows(W[:, order], U, quant), order)
    return calibrated_order


def permuted_factor(W, H, quant, damping):
    order = np.argsort(-np.diag(H))
    return gptq_rows(W[:, order], factor_by_inverse(H, damping)[order][:, order], quant)[:, np.argsort(order)]


# Rules for calibrated.scale that read neither W nor H.
FIXED = [
    lambda W, H, mean_abs, quant: np.maximum(np.sqrt(mean_abs / mean_abs.mean()), 1),
    lambda W, H, mean_abs, quant: np.where(mean_abs >= np.quantile(mean_abs, 0.9), 2.0, 1.0),
    lambda W, H, mean_abs, quant: np.log1p(mean_abs),
    *(lambda W, H, mean_abs, quant, a=a: mean_abs**a for a in (0.2, 0.35, 0.5, 0.7))]
WRONG = {
    "calibrated.bug": [
        (factor_of(inverse=False), "UᵀU is H; it should"),
        (factor_of(lower=True), "lower triangular"),
        (factor_of(more=everywhere), "every entry"),
        (factor_of(more=lambda H, damping: damping * np.eye(len(H))), "units of the mean"),
        (factor_of_factor(True), "factor the inverse"),
        (factor_of_factor(False), "and transpose"),
        (factor_of(more=lambda H, damping: damping * np.diag(np.diag(H))), "a share of each entry"),
        (factor_of(more=lambda H, damping: 0), "not added"),
        (factor_by_qr, "must be positive"),
        (factor_of(False, more=everywhere), "both faults")],
    "calibrated.order": [
        (ordered(back=lambda V, order: V), "come back in the new order"),
        (ordered(back=lambda V, order: V[:, order]), "once more"),
        (ordered(key=np.diag), "heaviest column comes first"),
        (ordered(both=False), "still in the old order"),
        (permuted_factor, "not triangular"),
        (ordered(damped=lambda damping: 0.01), "always 0.01"),
        (ordered(damped=lambda damping: 0), "not damped"),
        (ordered(key=lambda H: -np.linalg.norm(H, axis=0)), "not the length of its column"),
        (lambda W, H, quant, damping: gptq_rows(W, factor_by_inverse(H, damping), quant), "H says which"),
        (lambda W, H, quant, damping: ordered(key=lambda H: -(W * W).sum(0))(W, H, quant, damping), "sort them by its diagonal")],
    "calibrated.directions": [
        (lambda H: tuple(np.linalg.eig(H)[1].T[:2]), "eigenvectors of H"),
        (lambda H: (np.linalg.eigh(H)[1][:, 0], np.linalg.eigh(H)[1][:, -1]), "exchanged"),
        (lambda H: (np.linalg.eigh(H)[1][-1], np.linalg.eigh(H)[1][0]), "these are rows"),
        (lambda H: (np.eye(len(H))[np.diag(H).argmax()], np.eye(len(H))[np.diag(H).argmin()]), "single inputs"),
        (lambda H: tuple(np.eye(len(H))[np.argsort(np.diag(H))[[-1, 0]]]), "a mixture of them"),
        (lambda H: (H @ by_svd(H)[0], by_svd(H)[1]), "but not of length 1"),
        (lambda H: (np.linalg.eigh(H)[1][:, -1],) * 2, "the same direction"),
        (lambda H: (np.linalg.eigh(H)[1][:, -1], np.linalg.eigh(H)[1][:, -2]), "both are strong"),
        (lambda H: (np.linalg.eigh(H)[1][:, -1], np.linalg.eigh(H)[1][:, 1]), "second weakest"),
        (lambda H: np.linalg.eigh(H)[1][:, -1], "2 results")],
    "calibrated.compensate": [
        (step_wrong_sign, "sign"),
        (step_no_elimination, "elimination step"),
        (lambda w, Hinv, q, value: (step_in_loops(w, Hinv, q, value)[0], Hinv), "is fixed now"),
        (lambda w, Hinv, q, value: (step_in_loops(w, Hinv, q, value)[0], np.delete(np.delete(Hinv, q, 0), q, 1)), "shape"),
        (step_alone, "must move"),
        (step_in_place, "writes into its argument"),
        (step_undivided, "diagonal entry"),
        (step_untidy, "its entry [H⁻¹]_qq"),
        (step_of(in_w=False), "only the one that changes H⁻¹"),
        (step_of(in_H=False), "only the column that moves w"),
        (step_of(delta=True), "this is δ"),
        (step_of(zeros=False), "exactly 0"),
        (step_all_wrong, "δ is wrong"),
        (step_behind, "those before q"),
        (lambda *a: step_in_loops(*a)[0], "2 results")],
    "calibrated.gptq": [
        (gptq_nearest, "round to nearest"),
        (gptq_undivided, "U_jj"),
        (gptq_in_place, "writes into its argument"),
        (gptq_same_inverse, "row j of UᵀU does not"),
        (gptq_last_only, "numbers"),
        (gptq_running, "return the rounded columns"),
        (gptq_added, "wrong sign"),
        (gptq_but_last, "last column alone")],
    "calibrated.scale": [
        (lambda W, H, mean_abs, quant: np.ones(len(H)), "nothing is scaled"),
        (lambda W, H, mean_abs, quant: mean_abs, "the others pay"),
        (lambda W, H, mean_abs, quant: 1 / mean_abs, "upside down"),
        (lambda W, H, mean_abs, quant: np.abs(W).mean(axis=0), "sizes of the weights"),
        (lambda W, H, mean_abs, quant: mean_abs - mean_abs.mean(), "must be positive"),
        (lambda W, H, mean_abs, quant: mean_abs.mean(), "shape"),
        (lambda W, H, mean_abs, quant: max((mean_abs**a for a in np.arange(20) / 20),
                                           key=lambda s: output_loss(W, H, s, quant)), "the worst of the powers"),
        (lambda W, H, mean_abs, quant: min((mean_abs**a for a in np.arange(20) / 20),
                                           key=lambda s: np.sum((quant(W * s) / s - W)**2)), "the least error of the weights"),
        (lambda W, H, mean_abs, quant: min(((mean_abs / mean_abs.mean())**a for a in np.linspace(0, 1, 21)),
                                           key=lambda s: np.linalg.norm(quant(W * s) / s - W)), "of the outputs, with H"),
        (lambda W, H, mean_abs, quant: np.maximum(np.sqrt(mean_abs / mean_abs.mean()), 1), "no fixed rule")],
}
