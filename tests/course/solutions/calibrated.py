"""Solutions of lesson 12's exercises, right and wrong."""
import numpy as np


def error_by_factor(W, W_hat, H):
    """With a square root of H in the place of the inputs."""
    values, vectors = np.linalg.eigh(H)
    X = vectors * np.sqrt(np.maximum(values, 0))
    return float(np.linalg.norm((W_hat - W) @ X) / np.linalg.norm(W @ X))


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


def awq_by_trace(W, H, mean_abs, quant, alphas):
    losses = np.zeros(len(alphas))
    for i, a in enumerate(alphas):
        S = np.diag(mean_abs**a)
        D = quant(W @ S) @ np.linalg.inv(S) - W
        losses[i] = np.trace(D @ H @ D.T)
    return alphas[losses.argmin()], losses


RIGHT = {"calibrated.output_error": [error_by_factor], "calibrated.compensate": [step_in_loops], "calibrated.gptq": [gptq_rows],
         "calibrated.awq": [awq_by_trace]}


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


def awq_loss(fn):
    def solve(W, H, mean_abs, quant, alphas):
        losses = np.array([fn(W, H, mean_abs**a, quant) for a in alphas])
        return alphas[losses.argmin()], losses
    return solve


def plain(W, H, s, quant):
    D = quant(W * s) / s - W
    return (D * D).sum()


def not_back(W, H, s, quant):
    D = quant(W * s) - W
    return ((D @ H) * D).sum()


def inverse(W, H, s, quant):
    D = quant(W / s) * s - W
    return ((D @ H) * D).sum()


WRONG = {
    "calibrated.output_error": [(lambda W, W_hat, H: float(np.sum(((W_hat - W) @ H) * (W_hat - W)) / np.sum((W @ H) * W)), "square"),
                                (lambda W, W_hat, H: float(np.linalg.norm(W_hat - W) / np.linalg.norm(W)), "H is not in it"),
                                (lambda W, W_hat, H: float(np.linalg.norm((W_hat - W) @ H) / np.linalg.norm(W @ H)), "XXᵀ already")],
    "calibrated.compensate": [(step_wrong_sign, "sign"), (step_no_elimination, "equation (3)"), (step_alone, "must move"),
                              (step_in_place, "writes into its argument")],
    "calibrated.gptq": [(gptq_nearest, "round to nearest"), (gptq_undivided, "U_jj"), (gptq_in_place, "writes into its argument"),
                        (gptq_last_only, "numbers")],
    "calibrated.awq": [(awq_loss(plain), "with H"), (awq_loss(not_back), "divided by s after it"), (awq_loss(inverse), "grows with the inputs")],
}
