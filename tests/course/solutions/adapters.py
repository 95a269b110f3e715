"""Lesson 04: what students write, wrong and right."""
import numpy as np

import tinypeft as tp
from tinypeft.engine import functional as F


def adapter(skip=True, down=F.gelu, up=lambda z: z, biases=(True, True)):
    def adapters_forward(h, W_d, b_d, W_u, b_u):
        y = down(F.linear(h, W_d, b_d if biases[0] else None))
        z = up(F.linear(y, W_u, b_u if biases[1] else None))
        return h + z if skip else z
    return adapters_forward


def numpy_only(h, W_d, b_d, W_u, b_u):
    y = F.gelu(tp.Tensor(h.data @ W_d.data.T + b_d.data)).data
    return tp.Tensor(h.data + y @ W_u.data.T + b_u.data)


def by_matmul(h, W_d, b_d, W_u, b_u):
    return F.gelu(h @ W_d.T + b_d) @ W_u.T + b_u + h


def backward(slope=lambda z: z > 0, let_through=lambda z: z * (z > 0), shortcut=True, detour=True, order=(0, 1, 2), turned=False):
    def adapters_backward(h, W_d, W_u, dy):
        z = np.einsum("nd,md->nm", h, W_d)
        dz = np.einsum("nd,dm->nm", dy, W_u) * slope(z)
        dh = (dy if shortcut else 0) + (dz @ W_d if detour else 0)
        g = dh, np.einsum("nm,nd->md", dz, h), np.einsum("nd,nm->dm", dy, let_through(z))
        return tuple(g[i].T if turned and i else g[i] for i in order)
    return adapters_backward


def by_the_engine(h, W_d, W_u, dy):
    h, W_d, W_u = (tp.Tensor(a, requires_grad=True) for a in (h, W_d, W_u))
    (h + (h @ W_d.T).relu() @ W_u.T).backward(dy)
    return h.grad, W_d.grad, W_u.grad


def blockwise(W1, b1, W2, b2, W_down, b_down, W_up, b_up, s):
    (k, d), m = W1.shape, len(b_down)
    V1, c1, V2 = np.zeros((k + m, d)), np.zeros(k + m), np.zeros((d, k + m))
    V1[:k], V1[k:], c1[:k], c1[k:], V2[:, :k], V2[:, k:] = W1, W_down, b1, b_down, W2, W_up * s
    return V1, c1, V2, b2 + b_up * s


def widen(inside=False, bias=lambda s: s, scale=True):
    def adapters_widen(W1, b1, W2, b2, W_down, b_down, W_up, b_up, s):
        a, u = (s, 1) if inside else (1, s if scale else 1)
        return (np.vstack([W1, a * W_down]), np.hstack([b1, a * b_down]), np.hstack([W2, u * W_up]), b2 + bias(s) * b_up)
    return adapters_widen


def joined(first, second):
    """W1 and W_down joined along the first axis, W2 and W_up along the second."""
    def adapters_widen(W1, b1, W2, b2, W_down, b_down, W_up, b_up, s):
        return np.concatenate([W1, W_down], first), np.r_[b1, b_down], np.concatenate([W2, s * W_up], second), b2 + s * b_up
    return adapters_widen


def inner(bias):
    """b_down changed: bias(b_down, s)."""
    return lambda *a: blockwise(*a[:5], bias(a[5], a[8]), *a[6:])


def scaled_down():
    def adapters_widen(W1, b1, W2, b2, W_down, b_down, W_up, b_up, s):
        return np.r_[W1, s * W_down], np.r_[b1, b_down], np.c_[W2, W_up], b2 + s * b_up
    return adapters_widen


def filed(new=True, moved=lambda a, b: (a != b).any(), also=lambda name: True):
    def adapters_bug(before, after):
        names = []
        for name in after:
            if name not in before:
                if new: names.append(name)
            elif moved(after[name], before[name]) and also(name): names.append(name)
        return names
    return adapters_bug


def differing(before, after):
    return [name for name in after if (after[name] != before[name]).any()]


def one_layer(shortcut=True, bias=True, down=True, up=True, through=True):
    def adapters_linear(W, b, W_d, b_d, W_u, b_u):
        act = lambda z: (z if shortcut else 0) + W_u @ (W_d @ z)
        c = (act(b) if through else b) if bias else 0 * b
        return act(W), c + (W_u @ b_d if down else 0) + (b_u if up else 0)
    return adapters_linear


def by_probing(W, b, W_d, b_d, W_u, b_u):
    """Put in the zero vector and unit vectors."""
    f = lambda x: (lambda h: h + W_u @ (W_d @ h + b_d) + b_u)(W @ x + b)
    c = f(np.zeros(W.shape[1]))
    return np.stack([f(e) - c for e in np.eye(W.shape[1])], axis=1), c


WRONG = {
    "adapters.forward": [
        (adapter(skip=False), "addition of h is missing"),
        (adapter(up=F.gelu), "survey's form"),
        (adapter(down=lambda y: y), "activation is missing"),
        (adapter(biases=(False, False)), "biases are missing"),
        (adapter(down=lambda y: y.relu()), "ReLU"),
        (numpy_only, "no gradient reaches h"),
        (lambda h, *a: adapter()(h, *a).data, "expected a tinypeft.Tensor"),
        (lambda h, *a: adapter()(h, *a) + h, "a term is counted twice: argument 1"),
        (adapter(biases=(False, True)), "b_d is missing"),
        (adapter(biases=(True, False)), "b_u is missing"),
        (lambda h, *a: adapter(skip=False)(h, *a) + tp.Tensor(h.data), "that you add has left the graph"),
        (lambda h, W_d, b_d, W_u, b_u: h + F.gelu(h) @ W_d.T @ W_u.T + b_d @ W_u.T + b_u, "not before the first"),
        (lambda h, W_d, b_d, W_u, b_u: h + (F.gelu(h @ W_d.T) + b_d) @ W_u.T + b_u, "before the activation"),
        (lambda h, W_d, b_d, W_u, b_u: F.gelu(h + (h @ W_d.T + b_d) @ W_u.T + b_u), "on the sum with h"),
        (lambda h, *a: 2 * h - adapter()(h, *a), "you subtracted it"),
        (adapter(down=lambda y: y.tanh()), "you used a tanh"),
        (lambda h, W_d, b_d, W_u, b_u: F.gelu(h @ W_d.T + b_d), "of the middle"),
        (lambda h, *a: h + adapter(skip=False)(tp.Tensor(h.data), *a), "through the detour has left the graph")],
    "adapters.backward": [
        (backward(shortcut=False), "dh lacks the shortcut"),
        (backward(detour=False), "dh lacks the way through the detour"),
        (backward(slope=lambda z: np.ones_like(z)), "slope of the ReLU is missing"),
        (backward(slope=lambda z: z), "you multiplied by its input"),
        (backward(slope=lambda z: z < 0), "not where it is negative"),
        (backward(slope=lambda z: z >= 0), "0 at 0 as well"),
        (backward(slope=lambda z: (1 + np.sign(z)) / 2), "ask z > 0"),
        (backward(shortcut=False, slope=lambda z: 1 + 0 * z), "and besides, the slope"),
        (backward(let_through=lambda z: z), "not W_d h"),
        (backward(let_through=lambda z: z > 0), "not its slope"),
        (backward(order=(0, 2, 1)), "dW_d and dW_u are exchanged"),
        (backward(turned=True), "transpose it"),
        (lambda h, *a: [g / (len(h) if i else 1) for i, g in enumerate(backward()(h, *a))], "not means"),
        (lambda h, W_d, W_u, dy: backward()(h, W_d, W_u, dy)[1:], "3 results")],
    "adapters.widen": [
        (widen(scale=False, bias=lambda s: 1), "s is missing"),
        (widen(inside=True), "f(s y) is not s f(y)"),
        (widen(bias=lambda s: 1), "output bias as well"),
        (widen(bias=lambda s: 0), "b_up is missing"),
        (widen(scale=False), "not b_up alone"),
        (scaled_down(), "stands at W_down"),
        (lambda *a: scaled_down()(*a[:-1], a[-1])[:3] + (a[3] + a[7],), "it belongs behind it"),
        (inner(lambda b, s: s * b), "before the activation: s"),
        (inner(lambda b, s: 0 * b), "inner bias b_down"),
        (lambda *a: blockwise(*a[:-1], 1 / a[-1]), "you divided by it"),
        (lambda *a: (*blockwise(*a)[:2], a[-1] * np.hstack([a[2], a[6]]), blockwise(*a)[3]), "W2 stays as it is"),
        (lambda *a: (*blockwise(*a)[:3], a[-1] * (a[3] + a[7])), "b2 stays as it is"),
        (lambda *a: (*blockwise(*a)[:3], a[-1] * a[7]), "add s b_up to it"),
        (lambda *a: (*blockwise(*a)[:3], np.r_[a[3], a[-1] * a[7]]), "do not join them"),
        (lambda *a: (blockwise(*a)[0], a[1], *blockwise(*a)[2:]), "join b1 and b_down"),
        (lambda *a: tuple(blockwise(*a)[i] for i in (0, 2, 1, 3)), "in the order (W1"),
        (joined(0, 0), "(d, m) along axis 0"),
        (joined(1, 1), "(m, d) along axis 1"),
        (lambda *a: blockwise(*a)[::-1], "result 1 of 4"),
        (lambda *a: tuple(np.swapaxes(x, 0, -1) for x in blockwise(*a)), "transposed")],
    "adapters.bug": [
        (filed(moved=lambda a, b: False), "adapters alone"),
        (filed(new=False), "adapters are missing"),
        (filed(moved=lambda a, b: True), "whole model"),
        (filed(moved=lambda a, b: abs(a - b).max() > 1e-4), "overlooks a small step"),
        (filed(moved=lambda a, b: not np.allclose(a, b)), "as np.allclose has one"),
        (filed(moved=lambda a, b: (b != a).all()), "not with .all()"),
        (filed(moved=lambda a, b: a.max() != b.max()), "with the same sum, or"),
        (filed(moved=lambda a, b: (a - b).sum() != 0), "or largest number"),
        (filed(moved=lambda a, b: np.sum(a) != np.sum(b)), "with the same sum"),
        (filed(moved=lambda a, b: a.mean() != b.mean()), "same mean"),
        (filed(moved=lambda a, b: a != b), "makes one answer of them"),
        (lambda *a: set(filed()(*a)), "return a list of the names"),
        (lambda *a: sorted(filed()(*a)), "in another order"),
        (differing, "whether it is there"),
        (filed(moved=lambda a, b: a.ravel()[0] != b.ravel()[0]), "first numbers only"),
        (filed(also=lambda name: "weight" in name), "biases are trained"),
        (lambda before, after: [n for n in after if n not in before or "norm" in n], "by the word")],
    "adapters.linear": [
        (one_layer(through=False), "goes through the adapter"),
        (one_layer(down=False), "multiplied by W_u"),
        (one_layer(up=False), "b_u is missing"),
        (lambda W, b, W_d, b_d, W_u, b_u: (W + W_d.T @ (W_u.T @ W), b + W_d.T @ (W_u.T @ b) + W_u @ b_d + b_u),
         "not its transpose"),
        (lambda W, b, W_d, b_d, W_u, b_u: ((1 + W_u @ W_d) @ W, (1 + W_u @ W_d) @ b + W_u @ b_d + b_u),
         "not the number 1"),
        (lambda W, *a: (W, one_layer()(W, *a)[1]), "W goes through"),
        (lambda *a: one_layer(down=False)(a[0], a[1] + a[4] @ a[3] + a[5], *a[2:5], 0), "do not go through it again"),
        (lambda *a: one_layer(up=False)(a[0], a[1] + a[5], *a[2:]), "b_u is added at the end"),
        (lambda *a: (one_layer()(*a)[0], one_layer(shortcut=False)(*a)[1]), "missing in the bias"),
        (lambda *a: one_layer()(*a)[::-1], "the weight first"),
        (one_layer(bias=False), "bias b is missing"),
        (one_layer(shortcut=False), "I + W_u W_d"),
        (lambda *a: (one_layer(shortcut=False)(*a)[0], one_layer()(*a)[1]), "right in the bias")],
}
RIGHT = {
    "adapters.forward": [by_matmul, adapter()], "adapters.backward": [backward(), by_the_engine, lambda *a: list(backward()(*a))],
    "adapters.widen": [blockwise, widen(), lambda *a: [x.tolist() for x in widen()(*a)]],
    "adapters.bug": [filed(), lambda *a: np.array(filed()(*a)), lambda *a: tuple(filed()(*a))],
    "adapters.linear": [one_layer(), by_probing, lambda *a: [x.tolist() for x in one_layer()(*a)]],
}
