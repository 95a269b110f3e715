"""Lesson 01: what students write, wrong and right."""
import numpy as np

import tinypeft as tp


def walk(add=True, order=-1, transpose=True, empty=None):
    def autograd_walk(tape, dy):
        grads = [empty] * len(tape)
        grads[-1] = dy
        for k in range(len(tape))[::order]:
            if grads[k] is None or isinstance(grads[k], float): continue
            for j, J in tape[k]:
                dx = J.T @ grads[k] if transpose else J @ grads[k]
                grads[j] = dx if not add or grads[j] is None or isinstance(grads[j], float) else grads[j] + dx
        return grads
    return autograd_walk


def zeros(tape, dy):
    grads = walk()(tape, dy)
    width = {j: J.shape[1] for uses in tape for j, J in uses} | {k: uses[0][1].shape[0] for k, uses in enumerate(tape) if uses}
    return [np.zeros(width.get(k, 1)) if g is None else g for k, g in enumerate(grads)]


def recursive(tape, dy):
    """Pull instead of push: a value asks everything that uses it."""
    def grad(k):
        if k == len(tape) - 1: return dy
        parts = [J.T @ grad(i) for i in range(k + 1, len(tape)) for j, J in tape[i] if j == k and grad(i) is not None]
        return sum(parts) if parts else None
    return [grad(k) for k in range(len(tape))]


def all_paths(tape, dy):
    """Push along each path for itself: right, and 2ⁿ calls for n doublings."""
    grads = [None] * len(tape)

    def push(k, d):
        grads[k] = d if grads[k] is None else grads[k] + d
        for j, J in tape[k]: push(j, J.T @ d)
    push(len(tape) - 1, dy)
    return grads


def pull(tape, dy):
    """Value for value from the end: what do all that use it send?"""
    users, grads = [[] for _ in tape], [None] * (len(tape) - 1) + [dy]
    for i, uses in enumerate(tape):
        for j, J in uses: users[j].append((i, J))
    for k in reversed(range(len(tape) - 1)):
        parts = [J.T @ grads[i] for i, J in users[k] if grads[i] is not None]
        grads[k] = np.sum(parts, axis=0) if parts else None
    return grads


def reversing(tape, dy):
    grads = walk()(tape, dy)
    tape.reverse()
    return grads


def one_by_one(dy, shape):
    while dy.ndim > len(shape): dy = dy.sum(0)
    for axis, n in enumerate(shape):
        if dy.shape[axis] != n: dy = dy.sum(axis, keepdims=True)
    return dy


def einsum(X, W, dY, need):
    return (np.einsum("no,oi->ni", dY, W) if need[0] else None, np.einsum("no,ni->oi", dY, X) if need[1] else None,
            np.einsum("no->o", dY) if need[2] else None)


def linear(dX=lambda X, W, dY: dY @ W, dW=lambda X, W, dY: dY.T @ X, db=lambda X, W, dY: dY.sum(0), obey=True):
    return lambda X, W, dY, need: tuple(f(X, W, dY) if n or not obey else None for f, n in zip((dX, dW, db), need, strict=True))


def all_of_them(X, W, dY, need):
    """What is not needed is thrown away, after it was computed."""
    dX, dW, db = dY @ W, dY.T @ X, dY.sum(0)
    return dX if need[0] else None, dW if need[1] else None, db if need[2] else None


def layer_norm(mean=True, project=True, scale=True, sigma=True, ddof=0):
    def autograd_layer_norm_vjp(x, gamma, dy, eps):
        s = np.sqrt(x.var(-1, keepdims=True, ddof=ddof) + eps)
        xhat, d = (x - x.mean(-1, keepdims=True)) / s, gamma * dy if scale else dy
        out = d - d.mean(-1, keepdims=True) * mean - xhat * (d * xhat).mean(-1, keepdims=True) * project
        return out / s if sigma else out
    return autograd_layer_norm_vjp


def outside(x, gamma, dy, eps):
    s = np.sqrt(x.var(-1, keepdims=True)) + eps
    xhat, d = (x - x.mean(-1, keepdims=True)) / s, gamma * dy
    return (d - d.mean(-1, keepdims=True) - xhat * (d * xhat).mean(-1, keepdims=True)) / s


def by_jacobian(x, gamma, dy, eps):
    d = x.shape[-1]
    dx = np.empty_like(x)
    for i in np.ndindex(x.shape[:-1]):
        s = np.sqrt(x[i].var() + eps)
        xhat = (x[i] - x[i].mean()) / s
        J = (np.eye(d) - 1 / d - np.outer(xhat, xhat) / d) / s
        dx[i] = J.T @ (gamma * dy[i])
    return dx


def by_autograd(x, gamma, dy, eps):
    x = tp.Tensor(x, requires_grad=True)
    centred = x - x.mean(-1, keepdims=True)
    y = centred / ((centred * centred).mean(-1, keepdims=True) + eps).sqrt() * gamma
    y.backward(dy)
    return x.grad


WRONG = {
    "autograd.walk": [
        (walk(add=False), "keeps only one of its gradients"), (walk(order=1), "the walk goes forwards"), (zeros, "not zeros"),
        (walk(transpose=False), "J.T @ dy, not J @ dy"), (recursive, "2ⁿ paths"), (all_paths, "do not follow them"), (reversing, "argument tape"),
        (lambda tape, dy: None, "is there a return")],
    "autograd.unbroadcast": [
        (lambda dy, shape: dy.sum(tuple(range(dy.ndim - len(shape)))), "axes of length 1"),
        (lambda dy, shape: one_by_one(dy, shape) * (np.prod(shape) / dy.size), "a mean instead of a sum"),
        (lambda dy, shape: dy.reshape(-1, *shape).sum(0), "other numbers"),
        (lambda dy, shape: dy.sum(tuple(range(len(shape), dy.ndim))), "not over the last"),
        (lambda dy, shape: one_by_one(dy, shape).reshape([n for n in shape if n > 1]), "must keep that axis"),
        (lambda dy, shape: np.broadcast_to(dy, shape), "could not be broadcast"), (lambda dy, shape: one_by_one(dy, shape).astype(np.float32), "float32")],
    "autograd.linear_vjp": [
        (linear(obey=False), "nobody needs"), (linear(db=lambda X, W, dY: dY.mean(0)), "not a mean"),
        (linear(dW=lambda X, W, dY: X.T @ dY), "transposed"), (linear(dW=lambda X, W, dY: dY.T @ X / len(X)), "averaged over rows"),
        (linear(db=lambda X, W, dY: dY.sum(1)), "axis 1"), (linear(db=lambda X, W, dY: dY.sum(0, keepdims=True)), "keepdims"),
        (all_of_them, "look at `need`"), (linear(dX=lambda X, W, dY: -dY @ W), "the sign is wrong"),
        (linear(dX=lambda X, W, dY: dY @ W.T), "shapes do not fit")],
    "autograd.layer_norm_vjp": [
        (layer_norm(mean=False), "mean of dx̂ is missing"), (layer_norm(project=False), "term with x̂ is missing"),
        (lambda x, gamma, dy, eps: layer_norm()(x, gamma, dy, 0), "ε is missing"), (outside, "under the root"),
        (lambda x, gamma, dy, eps: 1.5 * layer_norm()(x, gamma, dy, eps), "1.5 times"),
        (layer_norm(scale=False), "γ is missing"), (layer_norm(sigma=False), "division by σ"), (layer_norm(ddof=1), "not by d − 1")],
}
RIGHT = {
    "autograd.walk": [walk(), pull, lambda tape, dy: tuple(pull(tape, dy))],
    "autograd.unbroadcast": [one_by_one, lambda dy, shape: one_by_one(dy, shape).tolist()],
    "autograd.linear_vjp": [einsum, linear(), lambda *a: list(einsum(*a))],
    "autograd.layer_norm_vjp": [by_jacobian, by_autograd],
}
