"""Solutions of lesson 13b's exercises, right and wrong."""
import numpy as np


def alternating_signs(W_hat, s):
    """Half a step, less a little, to and fro."""
    return 0.499 * s[:, None], np.where(np.arange(W_hat.shape[1]) % 2, 1.0, -1.0)[None]


def alternate(W, quant, r, T):
    B, A = np.zeros((W.shape[0], r)), np.zeros((r, W.shape[1]))
    for _ in range(T):
        Q = quant(W - B @ A)
        U, S, Vt = np.linalg.svd(W - Q, full_matrices=False)
        root = np.diag(np.sqrt(S[:r]))
        B, A = U[:, :r] @ root, root @ Vt[:r]
    return Q, B, A


def by_eigenvectors(W, quant, r, T):
    """Right singular vectors from RᵀR: other signs than the SVD's."""
    BA = np.zeros_like(W)
    for _ in range(T):
        Q = quant(W - BA)
        R = W - Q
        V = np.linalg.eigh(R.T @ R)[1][:, ::-1][:, :r]
        s = np.sqrt(np.linalg.norm(R @ V, axis=0))
        B, A = R @ V / s, (V * s).T
        BA = B @ A
    return Q, B, A


def scaled_on_B(W, quant, r, alpha):
    """All of α/r on B."""
    Q, B, A = alternate(W, quant, r, 1)
    return Q, B * r / alpha, A


def scaled_on_singular_values(W, quant, r, alpha):
    Q = quant(W)
    U, S, Vt = np.linalg.svd(W - Q, full_matrices=False)
    root = np.sqrt(S[:r] * r / alpha)
    return Q, U[:, :r] * root, root[:, None] * Vt[:r]


def by_parts(W, quant, r):
    """One singular value after another."""
    R, columns, rows = W.copy(), [], []
    for _ in range(r):
        U, S, Vt = np.linalg.svd(R)
        columns.append(-U[:, 0] * np.sqrt(S[0]))
        rows.append(-Vt[0] * np.sqrt(S[0]))
        R = R - np.outer(columns[-1], rows[-1])
    B, A = np.stack(columns, axis=1), np.stack(rows)
    return quant(W - B @ A), B, A


RIGHT = {"loftq.vanish": [alternating_signs, lambda *a: [x.tolist() for x in alternating_signs(*a)]],
         "loftq.bug": [scaled_on_B, scaled_on_singular_values, lambda *a: [x.tolist() for x in scaled_on_B(*a)]],
         "loftq.rounds": [alternate, by_eigenvectors, lambda *a: (lambda Q, B, A: (Q, -B, -A))(*alternate(*a))],
         "loftq.principal": [by_parts, lambda *a: [x.tolist() for x in by_parts(*a)]]}


def loftq_never_back(W, quant, r, T):
    for _ in range(T):
        Q = quant(W)
        U, S, Vt = np.linalg.svd(W - Q, full_matrices=False)
    return Q, U[:, :r] * np.sqrt(S[:r]), np.sqrt(S[:r])[:, None] * Vt[:r]


def loftq_one_sided(W, quant, r, T):
    B, A = np.zeros((W.shape[0], r)), np.zeros((r, W.shape[1]))
    for _ in range(T):
        Q = quant(W - B @ A)
        U, S, Vt = np.linalg.svd(W - Q, full_matrices=False)
        B, A = U[:, :r] * S[:r], Vt[:r]
    return Q, B, A


def loftq_twice(W, quant, r, T):
    B, A = np.zeros((W.shape[0], r)), np.zeros((r, W.shape[1]))
    for _ in range(T):
        Q = quant(W - B @ A)
        U, S, Vt = np.linalg.svd(W - Q - B @ A, full_matrices=False)
        B, A = U[:, :r] * np.sqrt(S[:r]), np.sqrt(S[:r])[:, None] * Vt[:r]
    return Q, B, A


def loftq_of(target, of):
    def loftq_rounds(W, quant, r, T):
        P = np.zeros_like(W)
        for _ in range(T):
            Q = quant(target(W, P))
            U, S, Vt = np.linalg.svd(of(W, Q), full_matrices=False)
            B, A = U[:, :r] * np.sqrt(S[:r]), np.sqrt(S[:r])[:, None] * Vt[:r]
            P = B @ A
        return Q, B, A
    return loftq_rounds


def decomposed_first(W, quant, r, T):
    Q = 0 * W
    for _ in range(T):
        U, S, Vt = np.linalg.svd(W - Q, full_matrices=False)
        root = np.sqrt(np.diag(S[:r]))
        B, A = U[:, :r] @ root, root @ Vt[:r]
        Q = quant(W - B @ A)
    return Q, B, A


def loftq_nearest(W, quant, r, T):
    """Of all rounds, the one that comes nearest to W."""
    rounds = [alternate(W, quant, r, t + 1) for t in range(T)]
    return rounds[int(np.argmin([np.linalg.norm(W - Q - B @ A) for Q, B, A in rounds]))]


def loftq_stale(W, quant, r, T):
    """Q of one round, and factors of the next."""
    Q, B, A = alternate(W, quant, r, T)
    return quant(W - B @ A), B, A


def scaled_by(of_B, of_A, of_Q=1):
    def loftq_bug(W, quant, r, alpha):
        Q, B, A = alternate(W, quant, r, 1)
        s = alpha / r
        return Q * s**(of_Q - 1), B * s**of_B, A * s**of_A
    return loftq_bug


def share_of(share, step=lambda s: s):
    return lambda W_hat, s: ((share * step(s) * np.ones(len(s)))[:, None], np.ones((1, W_hat.shape[1])))


def principal_of(target=lambda W, BA: W - BA, parts=slice, root=np.sqrt):
    def loftq_principal(W, quant, r):
        U, S, Vt = np.linalg.svd(W, full_matrices=False)
        k = parts(r)
        B, A = U[:, k] * root(S[k]), root(S[k])[:, None] * Vt[k]
        return quant(target(W, B @ A)), B, A
    return loftq_principal


WRONG = {
    "loftq.vanish": [
        (share_of(0.75), "some codes change"),
        (share_of(0.5), "a tie"),
        (share_of(0.3), "the change is too small"),
        (share_of(1, np.min), "may reach half a step"),
        (share_of(0.3, np.min), "no code changes"),
        (share_of(0.49, np.max), "the largest for all rows"),
        (share_of(0.49, np.min), "the smallest for all rows"),
        (lambda W_hat, s: (np.zeros((len(s), 1)), np.ones((1, W_hat.shape[1]))), "nothing is added"),
        (lambda W_hat, s: (0.49 * s[:, None], np.eye(1, W_hat.shape[1])), "one weight of each row"),
        (lambda W_hat, s: share_of(0.49)(W_hat, s)[::-1], "in this order"),
        (lambda W_hat, s: share_of(0.49)(W_hat, s)[0], "2 results")],
    "loftq.principal": [
        (principal_of(lambda W, BA: W), "not W itself"),
        (principal_of(parts=lambda r: slice(-r, None)), "smallest singular values"),
        (lambda W, quant, r: alternate(W, quant, r, 1), "LoftQ's first round"),
        (principal_of(root=lambda S: S), "each factor gets"),
        (lambda W, quant, r: (quant(W) - np.matmul(*by_parts(W, quant, r)[1:]), *by_parts(W, quant, r)[1:]), "have rounded W"),
        (principal_of(lambda W, BA: W + BA), "not added"),
        (lambda *a: (lambda Q, B, A: (Q, A, B))(*principal_of()(*a)), "in this order"),
        (lambda *a: by_parts(*a)[1:], "3 results")],
    "loftq.bug": [
        (scaled_by(0, 0), "fault of the code above"),
        (scaled_by(0.5, 0.5), "you multiply by the scale"),
        (scaled_by(-1, -1), "its square"),
        (scaled_by(-0.5, -0.5, 0), "Q is not scaled"),
        (scaled_by(-0.5, 0), "not by its root"),
        (lambda W, quant, r, alpha: scaled_on_B(W, quant, r, alpha * r), "α/r, not α"),
        (lambda W, quant, r, alpha: (lambda Q, B, A: (Q * r / alpha, B, A))(*alternate(W, quant, r, 1)),
         "only the product"),
        (lambda W, quant, r, alpha: (lambda Q, B, A: (Q, B * r / alpha, A))(*alternate(W, quant, r, 5)),
         "keep the one round"),
        (lambda *a: scaled_on_B(*a)[1:], "3 results")],
    "loftq.rounds": [
        (loftq_never_back, "from the second on"),
        (lambda W, quant, r, T: alternate(W, quant, r, 1), "what one round gives"),
        (loftq_of(lambda W, P: W, lambda W, Q: W), "W itself"),
        (loftq_of(lambda W, P: W - P, lambda W, Q: W), "leaves, not W itself"),
        (loftq_of(lambda W, P: W + P, lambda W, Q: W - Q), "not W + B A"),
        (loftq_nearest, "return the last one"),
        (decomposed_first, "rounding comes first"),
        (loftq_one_sided, "split"),
        (loftq_twice, "W − Q"),
        (loftq_stale, "same round"),
        (lambda W, quant, r, T: alternate(W, quant, r, T + 1), "too many"),
        (lambda W, quant, r, T: alternate(W, quant, r, T)[1:], "3 results"),
        (lambda W, quant, r, T: alternate(W, quant, r + 1, T), "shape"),
        (lambda *a: (lambda Q, B, A: (Q, A, B))(*alternate(*a)), "in this order")],
}
