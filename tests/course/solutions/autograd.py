"""Lesson 01: what students write, wrong and right."""
import numpy as np

import tinypeft as tp


def walk(add=True, order=-1, empty=None, matrix=False, in_place=False, own=False, skip=True):
    def autograd_walk(tape, dy):
        grads = [empty] * len(tape)
        grads[-1] = dy
        for k in range(len(tape))[::order]:
            if skip and (grads[k] is None or isinstance(grads[k], float)): continue
            for j, vjp in tape[k]:
                dx = vjp.T @ grads[k] if matrix else vjp(grads[j if own else k])
                if in_place and grads[j] is not None: grads[j] += dx
                else: grads[j] = dx if not add or grads[j] is None or isinstance(grads[j], float) else grads[j] + dx
        return grads
    return autograd_walk


def begun_with_zeros(zeros):
    """Every entry is there from the start, and nothing is skipped."""
    def autograd_walk(tape, dy):
        grads = zeros(tape, dy)
        grads[-1] = dy
        for k in reversed(range(len(tape))):
            for j, vjp in tape[k]: grads[j] = grads[j] + vjp(grads[k])
        return grads
    return autograd_walk


def changes_begun_with_zeros(zeros):
    def autograd_forward(tape, dx):
        changes = zeros(tape, dx)
        changes[0] = dx
        for k, uses in enumerate(tape):
            for j, jvp in uses: changes[k] = changes[k] + jvp(changes[j])
        return changes
    return autograd_forward


ZEROS = (lambda tape, d: [0] * len(tape), lambda tape, d: [np.zeros_like(d) for _ in tape], lambda tape, d: np.zeros(len(tape)))


def with_or(tape, dy):
    grads = [None] * (len(tape) - 1) + [dy]
    for k in reversed(range(len(tape))):
        if grads[k] is None: continue
        for j, vjp in tape[k]: grads[j] = (grads[j] or 0) + vjp(grads[k])
    return grads


def as_found(depth):
    """Values pass on as they are found, depth first or breadth first."""
    def autograd_walk(tape, dy):
        grads, stack, seen = {len(tape) - 1: dy}, [len(tape) - 1], {len(tape) - 1}
        while stack:
            k = stack.pop(-1 if depth else 0)
            for j, vjp in tape[k]:
                grads[j] = grads.get(j, 0) + vjp(grads[k])
                if j not in seen: stack.append(j)
                seen.add(j)
        return [grads.get(k) for k in range(len(tape))]
    return autograd_walk


def adding_to_none(tape, dy):
    grads = [None] * (len(tape) - 1) + [dy]
    for k in reversed(range(len(tape))):
        for j, vjp in tape[k]: grads[j] = grads[j] + vjp(grads[k])
    return grads


def zeros(tape, dy):
    return [np.zeros(1) if g is None else g for g in walk()(tape, dy)]


def recursive(tape, dy):
    """Pull instead of push: a value asks everything that uses it."""
    def grad(k):
        if k == len(tape) - 1: return dy
        parts = [vjp(grad(i)) for i in range(k + 1, len(tape)) for j, vjp in tape[i] if j == k and grad(i) is not None]
        return sum(parts) if parts else None
    return [grad(k) for k in range(len(tape))]


def all_paths(tape, dy):
    """Push along each path for itself: right, and 2ⁿ calls for n doublings."""
    grads = [None] * len(tape)

    def push(k, d):
        grads[k] = d if grads[k] is None else grads[k] + d
        for j, vjp in tape[k]: push(j, vjp(d))
    push(len(tape) - 1, dy)
    return grads


def pull(tape, dy):
    """Value for value from the end: what do all that use it send?"""
    users, grads = [[] for _ in tape], [None] * (len(tape) - 1) + [dy]
    for i, uses in enumerate(tape):
        for j, vjp in uses: users[j].append((i, vjp))
    for k in reversed(range(len(tape) - 1)):
        parts = [vjp(grads[i]) for i, vjp in users[k] if grads[i] is not None]
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


def linear(dX=lambda X, W, dY: dY @ W, dW=lambda X, W, dY: dY.T @ X, db=lambda X, W, dY: dY.sum(0), always=()):
    """always: places of the gradients that are computed whatever `need` says."""
    return lambda X, W, dY, need: tuple(f(X, W, dY) if n or i in always else None
                                        for i, (f, n) in enumerate(zip((dX, dW, db), need, strict=True)))


def all_of_them(X, W, dY, need):
    """What is not needed is thrown away, after it was computed."""
    dX, dW, db = dY @ W, dY.T @ X, dY.sum(0)
    return dX if need[0] else None, dW if need[1] else None, db if need[2] else None


def asking_arrays(X, W, dY, need):
    dX = dY @ W if W else None
    return dX, dY.T @ X if X else None, dY.sum(0)


def zeros_instead(X, W, dY, need):
    """All of them, with zeros for what was not kept."""
    X = np.zeros((len(dY), W.shape[1])) if X is None else X
    return all_of_them(X, np.zeros((dY.shape[1], X.shape[1])) if W is None else W, dY, need)


def layer_norm(mean=True, project=True, scale=True, sigma=True, ddof=0, over=lambda a: a.mean(-1, keepdims=True)):
    def autograd_layer_norm_vjp(x, gamma, dy, eps):
        s = np.sqrt(x.var(-1, keepdims=True, ddof=ddof) + eps)
        xhat, d = (x - x.mean(-1, keepdims=True)) / s, gamma * dy if scale else dy
        out = d - over(d) * mean - xhat * over(d * xhat) * project
        return out / s if sigma else out
    return autograd_layer_norm_vjp


def terms(dx):
    """Out of dx̂, dy, γ, x − μ, σ, x̂ and the mean over the last axis."""
    def autograd_layer_norm_vjp(x, gamma, dy, eps):
        mean = lambda a: a.mean(-1, keepdims=True)
        s = np.sqrt(x.var(-1, keepdims=True) + eps)
        return dx(gamma * dy, dy, gamma, x - mean(x), s, (x - mean(x)) / s, mean)
    return autograd_layer_norm_vjp


def outside(x, gamma, dy, eps):
    s = np.sqrt(x.var(-1, keepdims=True)) + eps
    xhat, d = (x - x.mean(-1, keepdims=True)) / s, gamma * dy
    return (d - d.mean(-1, keepdims=True) - xhat * (d * xhat).mean(-1, keepdims=True)) / s


def over_everything(x, gamma, dy, eps):
    """mean() and var() without an axis."""
    s, d = np.sqrt(x.var() + eps), gamma * dy
    h = (x - x.mean()) / s
    return (d - d.mean() - h * (d * h).mean()) / s


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


def forward(add=True, order=1, first=0, fill=None, guard=True, in_place=False):
    def autograd_forward(tape, dx):
        changes = [None] * len(tape)
        changes[first] = dx
        for k in range(len(tape))[::order]:
            for j, jvp in tape[k]:
                if guard and changes[j] is None: continue
                dy = jvp(changes[j])
                if in_place and changes[k] is not None: changes[k] += dy
                else: changes[k] = dy if changes[k] is None or not add else changes[k] + dy
        return [fill if c is None else c for c in changes]
    return autograd_forward


def forward_to_none(tape, dx):
    changes = [dx] + [None] * (len(tape) - 1)
    for k, uses in enumerate(tape):
        for j, jvp in uses:
            if changes[j] is not None: changes[k] += jvp(changes[j])
    return changes


def recursive_forward(tape, dx):
    def change(k):
        if k == 0: return dx
        parts = [jvp(change(j)) for j, jvp in tape[k] if change(j) is not None]
        return sum(parts) if parts else None
    return [change(k) for k in range(len(tape))]


def where_something_flows(tape, dy):
    g = {len(tape) - 1: dy}
    for k in range(len(tape) - 1, -1, -1):
        if k in g and np.abs(g[k]).sum() > 0:
            for parent, vjp in tape[k]: g[parent] = g.get(parent, 0) + vjp(g[k])
    return [g.get(k) for k in range(len(tape))]


WRONG = {
    "autograd.walk": [
        (walk(add=False), "keeps only one of its gradients"),
        (walk(order=1), "the walk goes forwards"),
        (zeros, "not zeros"),
        (walk(matrix=True), "not a matrix"),
        (walk(in_place=True), "write a + b"),
        (recursive, "2ⁿ paths"),
        (walk(skip=False), "so skip it"),
        (where_something_flows, "a gradient of zeros is one"),
        (walk(own=True), "value k goes in"),
        (adding_to_none, "begin with that one"),
        (all_paths, "do not follow them"),
        (reversing, "argument tape"),
        (lambda tape, dy: None, "is there a return"),
        (begun_with_zeros(ZEROS[0]), "or a single number"),
        (begun_with_zeros(ZEROS[1]), "with zeros"),
        (begun_with_zeros(ZEROS[2]), "keep a list"),
        (with_or, "`or` and `if`"),
        (as_found(depth=False), "before all parts"),
        (lambda tape, dy: walk()([list(dict(uses).items()) for uses in tape], dy), "go through all pairs"),
        (lambda tape, dy: walk()(tape, np.ones(len(dy))), "is dy, not 1"),
        (lambda tape, dy: walk()(tape, dy)[::-1], "in reverse order"),
        (lambda tape, dy: [None if uses else g for g, uses in zip(walk()(tape, dy), tape, strict=True)],
         "leaves alone")],
    "autograd.unbroadcast": [
        (lambda dy, shape: dy.sum(tuple(range(dy.ndim - len(shape)))), "axes of length 1"),
        (lambda dy, shape: one_by_one(dy, shape) * (np.prod(shape) / dy.size), "a mean instead of a sum"),
        (lambda dy, shape: dy.reshape(-1, *shape).sum(0), "in which they lie in memory"),
        (lambda dy, shape: np.full(shape, dy.sum()), "other numbers"),
        (lambda dy, shape: dy.sum(tuple(range(len(shape), dy.ndim))), "not over the last"),
        (lambda dy, shape: one_by_one(dy, shape).reshape([n for n in shape if n > 1]), "must keep that axis"),
        (lambda dy, shape: np.broadcast_to(dy, shape), "do not broadcast"),
        (lambda dy, shape: one_by_one(dy, shape).astype(np.float32), "float32")],
    "autograd.linear_vjp": [
        (linear(always=[2]), "nobody needs"),
        (linear(always=[0, 1, 2]), "before you compute"),
        (linear(db=lambda X, W, dY: dY.mean(0)), "not a mean"),
        (linear(dW=lambda X, W, dY: X.T @ dY), "transposed"),
        (linear(dW=lambda X, W, dY: dY.T @ X / len(X)), "averaged over rows"),
        (linear(db=lambda X, W, dY: dY.sum(1)), "axis 1"),
        (linear(db=lambda X, W, dY: dY.sum(0, keepdims=True)), "keepdims"),
        (all_of_them, "look at `need`"),
        (zeros_instead, "is None: look"),
        (linear(dX=lambda X, W, dY: -dY @ W), "the sign is wrong"),
        (lambda *a: linear()(*a)[::-1], "the order is"),
        (lambda *a: tuple(0 if g is None else g for g in einsum(*a)), "and nothing else"),
        (asking_arrays, "ask the three flags"),
        (linear(dX=lambda X, W, dY: dY @ W.T), "shapes do not fit")],
    "autograd.layer_norm_vjp": [
        (layer_norm(mean=False), "mean of dx̂ is missing"),
        (layer_norm(project=False), "term with x̂ is missing"),
        (lambda x, gamma, dy, eps: layer_norm()(x, gamma, dy, 0), "ε is missing"),
        (outside, "under the root"),
        (lambda x, gamma, dy, eps: 1.5 * layer_norm()(x, gamma, dy, eps), "1.5 times"),
        (layer_norm(scale=False), "γ is missing"),
        (layer_norm(sigma=False), "division by σ"),
        (layer_norm(ddof=1), "not by d − 1"),
        (layer_norm(over=lambda a: a.sum(-1, keepdims=True)), "divide it by d"),
        (layer_norm(over=np.mean), "the means run over all axes"),
        (terms(lambda d, dy, g, c, s, xhat, m: (d - m(d) - xhat * (d * xhat).sum(-1, keepdims=True)) / s), "a sum stands where"),
        (terms(lambda d, dy, g, c, s, xhat, m: (d - d.mean() - xhat * m(d * xhat)) / s), "its own mean"),
        (over_everything, "μ or σ runs over all axes"),
        (terms(lambda d, dy, g, c, s, xhat, m: g * (dy - m(dy) - xhat * m(dy * xhat)) / s), "all three terms"),
        (terms(lambda d, dy, g, c, s, xhat, m: d / s), "two terms are missing"),
        (terms(lambda d, dy, g, c, s, xhat, m: (d - m(d) + xhat * m(d * xhat)) / s), "both terms are subtracted"),
        (terms(lambda d, dy, g, c, s, xhat, m: (d - m(d) - c * m(d * c)) / s), "made of x̂"),
        (terms(lambda d, dy, g, c, s, xhat, m: (d - m(d) - xhat * m(d * xhat)) / s**2), "by σ once"),
        (terms(lambda d, dy, g, c, s, xhat, m: (d - m(d) - xhat * m(d * xhat)) * s), "do not multiply"),
        (lambda x, gamma, dy, eps: layer_norm()(x, gamma, dy, 1e-5), "as it is given")],
    "autograd.forward": [
        (forward(add=False), "changes with both"),
        (forward(order=-1), "goes backwards"),
        (forward(first=-1), "not the last"),
        (forward(fill=0.0), "None, not 0"),
        (forward(guard=False), "no jvp takes None"),
        (forward(in_place=True), "write a + b"),
        (forward_to_none, "begin with that one"),
        (forward(fill=np.zeros(2)), "such as another leaf"),
        (changes_begun_with_zeros(ZEROS[0]), "or a single number"),
        (changes_begun_with_zeros(ZEROS[1]), "with zeros"),
        (changes_begun_with_zeros(ZEROS[2]), "keep a list"),
        (lambda tape, dx: forward()([list(dict(uses).items()) for uses in tape], dx), "go through all pairs")],
}
RIGHT = {
    "autograd.walk": [walk(), pull, lambda tape, dy: tuple(pull(tape, dy))],
    "autograd.unbroadcast": [one_by_one, lambda dy, shape: one_by_one(dy, shape).tolist()],
    "autograd.linear_vjp": [einsum, linear(), lambda *a: list(einsum(*a))],
    "autograd.layer_norm_vjp": [by_jacobian, by_autograd],
    "autograd.forward": [forward(), recursive_forward, lambda *a: tuple(forward()(*a))],
}
