"""Matrices with orthonormal columns, made of any matrix, so that they can be trained.

    M = Q S,      QᵀQ = I, S upper triangular, its diagonal positive
    dM = (dQ + Q sym(−dQᵀ Q)) S⁻ᵀ

sym(X) is the lower triangle of X, mirrored at the diagonal. Q is what Gram's and Schmidt's process
makes of the columns of M: it changes smoothly with M. With LAPACK's signs a column of Q would jump
to its opposite where the number M[0, 0] passes 0. `plain.py` has the process.
"""
import numpy as np

from ..engine.tensor import Tensor

__all__ = ["orthonormal"]


def orthonormal(M: Tensor) -> Tensor:
    """Compute Q (d, r) of M (d, r), r ≤ d."""
    Q, S = np.linalg.qr(M.data)
    sign = np.where(np.diag(S) < 0, -1, 1).astype(M.dtype)    # LAPACK's S may have any
    Q = Q * sign
    S = S * sign[:, None]

    def dM(dQ):
        X = -dQ.T @ Q
        sym = np.tril(X) + np.tril(X, -1).T
        return np.linalg.solve(S, (dQ + Q @ sym).T).T
    return Tensor.op(Q, (M, dM))
