"""Lesson 07: what students write, wrong and right."""
import numpy as np

from tinypeft import Tensor
from tinypeft.engine import functional as F


def forward(scale, base=True):
    def lora_forward(x, W, A, B, alpha):
        low = (x @ A.T) @ B.T * scale(alpha, A.shape[0])
        return x @ W.T + low if base else low
    return lora_forward


def dense(x, W, A, B, alpha):
    return x @ (W + (B @ A) * (alpha / A.shape[0])).T


def exchanged(x, W, A, B, alpha):
    """The survey's letters: A B."""
    return x @ W.T + x @ (A @ B).T * (alpha / A.shape[0])


def detached(x, W, A, B, alpha):
    return x @ W.T + Tensor(x.data @ A.data.T @ B.data.T * np.float32(alpha / A.shape[0]))


def backward(s=lambda alpha, r: alpha / r, frozen=True, low=True, order=(0, 1, 2), transposed=False):
    def lora_backward(x, W, A, B, alpha, dh):
        f = s(alpha, A.shape[0])
        dA, dB = f * np.einsum("no,or,ni->ri", dh, B, x), f * np.einsum("no,ni,ri->or", dh, x, A)
        dx = (dh @ W if frozen else 0) + (f * dh @ B @ A if low else 0)
        g = (dA.T if transposed else dA, dB, dx)
        return tuple(g[i] for i in order)
    return lora_backward


def one(part, change):
    """One of the gradients changed: change(gradient, s)."""
    def lora_backward(x, W, A, B, alpha, dh):
        g = list(backward()(x, W, A, B, alpha, dh))
        g[part] = change(g[part], alpha / len(A))
        return g
    return lora_backward


def attach(start=lambda rng, r, W: (rng.standard_normal((r, W.shape[1])) / W.shape[1] ** 0.5, np.zeros((len(W), r))),
           counts=lambda layer, targets: layer.split(".")[-1] in targets, base=lambda name: False, keep=True, parts="AB"):
    def lora_attach(parameters, targets, r, seed):
        rng = np.random.default_rng(seed)
        arrays, trained = (dict(parameters), {name: base(name) for name in parameters}) if keep else ({}, {})
        for name, W in parameters.items():
            layer = name.removesuffix(".weight")
            if layer != name and W.ndim == 2 and counts(layer, targets):
                for part, array in zip("AB", start(rng, r, W), strict=True):
                    arrays[f"{layer}.{part}"] = array.astype(W.dtype)
                    trained[f"{layer}.{part}"] = part in parts
        return arrays, trained
    return lora_attach


def targets_first(parameters, targets, r, seed):
    arrays, trained = attach()(parameters, targets, r, seed)
    rng = np.random.default_rng(seed)
    for target in targets:
        for name in [n for n in parameters if n.split(".")[-2:] == [target, "weight"]]:
            d_in = parameters[name].shape[1]
            arrays[name.replace(".weight", ".A")] = (rng.standard_normal((r, d_in)) / np.sqrt(d_in)).astype(parameters[name].dtype)
    return arrays, trained


def unpacked(parameters, targets, r, seed):
    """A target anywhere in the name, and no look at the number of axes."""
    for name, W in parameters.items():
        if any(target in name for target in targets) and name.endswith(".weight"): d_out, d_in = W.shape
    return attach()(parameters, targets, r, seed)


def normal(rng, *shape):
    return rng.standard_normal(shape)


def alike(same, scale=lambda alpha, r: alpha / r):
    return lambda A, B, a, C, D, c: bool(same(scale(a, len(A)) * B @ A, scale(c, len(C)) * D @ C))


def close(a, b, limit=1e-3):
    return np.linalg.norm(a - b) <= limit * np.linalg.norm(a)


def values(M):
    return np.linalg.svd(M)[1]


def server(finish=lambda W, change: W - change, note=np.copy, scale=lambda alpha, r: alpha / r):
    """Merge and take off again, in one array."""
    def lora_swap(W0, tasks):
        W, merged = W0.copy(), []
        for A, B, alpha in tasks:
            change = scale(alpha, len(A)) * B @ A
            W += change
            merged.append(note(W))
            W[...] = finish(W, change)
        return merged
    return lora_swap


def afresh(scale=lambda A, B, alpha: alpha / len(A), base=1.0, sign=1):
    return lambda W0, tasks: [base * W0 + sign * scale(A, B, alpha) * B @ A for A, B, alpha in tasks]


def diagnose(same=np.array_equal, start=lambda A, B: not (B @ A).any(), dead="both zero", still=all, unmoved="not trained",
             zero=lambda A, B: np.abs(A).max() == np.abs(B).max() == 0, equal=lambda a, b: (a == b).all()):
    def lora_bug(W_before, A_before, B_before, W_after, A_after, B_after):
        if not same(W_before, W_after): return "base trained"
        if not start(A_before, B_before): return "start changed"
        if zero(A_before, B_before): return dead
        return unmoved if still([equal(A_before, A_after), equal(B_before, B_after)]) else "fine"
    return lora_bug


def dora(axis=1, root=True, magnitude=True, scale=lambda alpha, r: alpha / r, rows=lambda W, V: V):
    def lora_dora(x, W, A, B, alpha, m):
        V = W + (B @ A) * scale(alpha, A.shape[0])
        length = (rows(W, V) ** 2).sum(axis=axis, keepdims=True) ** (0.5 if root else 1)
        return x @ (V / length * (m.reshape(-1, 1) if magnitude else 1.0)).T
    return lora_dora


def after_the_product(x, W, A, B, alpha, m):
    """The output's columns are scaled, not the weight's rows: the same function."""
    V = W + (B @ A) * (alpha / A.shape[0])
    return (x @ W.T + (x @ A.T) @ B.T * (alpha / A.shape[0])) * (m / (V ** 2).sum(axis=1) ** 0.5)


WRONG = {
    "lora.forward": [
        (forward(lambda a, r: a), "α/r, not α"),
        (forward(lambda a, r: a / r, base=False), "W₀ x is missing"),
        (forward(lambda a, r: a / r ** 0.5), "rank-stabilised"),
        (exchanged, "matmul"),
        (detached, "no gradient reaches"),
        (dense, "you formed B A"),
        (lambda x, W, A, B, alpha: x @ W.T + (Tensor(x.data) @ A.T) @ B.T * (alpha / A.shape[0]),
         "one of the ways from x"),
        (lambda x, W, A, B, alpha: forward(lambda a, r: a / B.shape[0])(x, W, A, B, alpha), "columns of B"),
        (lambda x, W, A, B, alpha: forward(lambda a, r: a / A.shape[1])(x, W, A, B, alpha), "rows of A"),
        (forward(lambda a, r: -a / r), "subtracted the low-rank"),
        (forward(lambda a, r: 1 / r), "not 1/r"),
        (forward(lambda a, r: a // r), "cuts off"),
        (lambda x, W, A, B, alpha: x @ W.T + F.gelu(x @ A.T) @ B.T * (alpha / A.shape[0]), "no activation"),
        (lambda *a: forward(lambda a, r: a / r)(*a).data, "expected a tinypeft.Tensor")],
    "lora.backward": [
        (backward(lambda a, r: 1.0), "missing in all three"),
        (backward(frozen=False), "frozen weight"),
        (backward(low=False), "through A and B"),
        (backward(order=(1, 0, 2)), "exchanged"),
        (backward(transposed=True), "transpose"),
        (one(0, lambda d, s: d / s), "dA and dB both have it"),
        (backward(lambda a, r: (a / r) ** 2), "s is applied twice"),
        (backward(lambda a, r: r / a), "not r/α"),
        (lambda x, W, A, B, alpha, dh: backward(lambda a, r: a / A.shape[1])(x, W, A, B, alpha, dh),
         "not of its columns"),
        (lambda x, *a: tuple(g / (len(x) if i < 2 else 1) for i, g in enumerate(backward()(x, *a))), "not means"),
        (lambda x, W, A, B, alpha, dh: (*backward()(x, W, A, B, alpha, dh)[:2], alpha / len(A) * (dh @ W + dh @ B @ A)),
         "not to dH W₀"),
        (lambda x, W, A, B, alpha, dh: (*backward()(x, W, A, B, alpha, dh)[:2], dh @ W - alpha / len(A) * dh @ B @ A),
         "you subtracted one"),
        (backward(order=(2, 1, 0)), "wrong order"),
        (lambda *a: (*backward()(*a), a[5].T @ a[0]), "its gradient is not needed"),
        (lambda x, W, A, B, alpha, dh: (backward()(x, W, A, B, alpha, dh)[0], dh.T @ x, dh @ W),
         "a factor is missing"),
        (backward(lambda a, r: a), "α/r, not α"),
        (lambda x, W, A, B, alpha, dh: backward()(x, W, A, B, alpha, dh)[:2], "3 results")],
    "lora.attach": [
        (attach(lambda rng, r, W: (normal(rng, r, W.shape[1]) / W.shape[1] ** 0.5, normal(rng, len(W), r) / r ** 0.5)),
         "B starts at zero"),
        (attach(lambda rng, r, W: (np.zeros((r, W.shape[1])), np.zeros((len(W), r)))), "ever gets a gradient"),
        (attach(lambda rng, r, W: (np.zeros((r, W.shape[1])), normal(rng, len(W), r) / r ** 0.5)), "A is random, and B is zero"),
        (attach(lambda rng, r, W: (normal(rng, r, W.shape[1]), np.zeros((len(W), r)))), "division of A by √d_in is missing"),
        (attach(lambda rng, r, W: (normal(rng, r, W.shape[1]) / r ** 0.5, np.zeros((len(W), r)))), "not by √r"),
        (attach(lambda rng, r, W: (normal(rng, r, W.shape[1]) / W.shape[1], np.zeros((len(W), r)))), "not by d_in"),
        (attach(lambda rng, r, W: (normal(rng, W.shape[1], r), np.zeros((r, len(W))))), "A is (r, d_in), and B"),
        (attach(counts=lambda layer, targets: any(t in layer for t in targets)), "too many arrays"),
        (unpacked, "not if it contains one"),
        (attach(counts=lambda layer, targets: True), "last part of the path"),
        (attach(base=lambda name: True), "of a layer with LoRA"),
        (attach(base=lambda name: name.endswith("bias")), "the biases and the norms"),
        (attach(keep=False), "arrays of the base are missing"),
        (attach(lambda rng, r, W: (normal(rng, W.shape[1], r).T / W.shape[1] ** 0.5, np.zeros((len(W), r)))), "and transposed them"),
        (targets_first, "through the targets first"),
        (lambda parameters, *a: attach()({name: parameters[name] for name in sorted(parameters)}, *a), "you sorted the names"),
        (attach(counts=lambda layer, targets: layer.endswith(tuple(targets))), "to end like one"),
        (lambda *a: (attach()(*a)[0], {name: on for name, on in attach()(*a)[1].items() if on}), "False for the frozen ones"),
        (attach(parts="B"), "not B alone"),
        (attach(parts="A"), "not A alone")],
    "lora.alike": [
        (lambda A, B, a, C, D, c: A.shape == C.shape and bool(close(A, C) and close(B, D)), "compare B A, not A and B"),
        (alike(close, lambda alpha, r: 1.0), "α/r belongs to the change"),
        (alike(np.allclose, lambda alpha, r: 1.0), "scale α/r belongs"),
        (alike(lambda a, b: np.allclose(a, b, atol=0)), "of which some are nearly 0"),
        (alike(lambda a, b: close(a, b, 0.1)), "your limit is too large"),
        (alike(lambda a, b: close(a, b, 1e-7)), "these two differ by rounding alone"),
        (lambda A, B, a, C, D, c: len(A) == len(C) and alike(close)(A, B, a, C, D, c), "the ranks may differ"),
        (lambda A, B, a, C, D, c: np.allclose((B @ A) * (a / len(A)), (D @ C) * (c / len(C)), 1e-2), "np.allclose asks"),
        (alike(lambda a, b: close(a, b, 0.02)), "a hundredth is a difference"),
        (alike(lambda a, b: np.isclose(np.linalg.norm(a), np.linalg.norm(b))), "two changes of the same size"),
        (alike(lambda a, b: close(abs(a), abs(b))), "signs count"),
        (alike(close, lambda alpha, r: alpha), "α/r, not α"),
        (alike(lambda a, b: close(values(a), values(b))), "by a rotation"),
        (alike(lambda a, b: abs(np.linalg.norm(a) - np.linalg.norm(b)) <= 1e-3 * np.linalg.norm(a)), "of the same size"),
        (alike(lambda a, b: np.vdot(a, b) >= 0.9999 * np.linalg.norm(a) * np.linalg.norm(b)), "a multiple of a change"),
        (alike(lambda a, b: np.allclose(a, b, rtol=1e-3)), "too lax for a tiny change"),
        (alike(lambda a, b: (a == b).all()), "not for equality"),
        (alike(lambda a, b: np.linalg.norm(a - b) / np.maximum(np.linalg.norm(a), 1e-300) < 1e-3 and a.any()), "ask with <="),
        (alike(lambda a, b: abs(a.sum() - b.sum()) <= 1e-3 * abs(a.sum())), "may have the same sum"),
        (lambda A, B, a, C, D, c: bool(close(np.linalg.pinv(A) @ A, np.linalg.pinv(C) @ C)), "leaves B free")],
    "lora.swap": [
        (server(), "the base wears out"),
        (lambda W0, tasks: [W.astype(W0.dtype) for W in server()(W0.astype(float), tasks)], "in float64 as well"),
        (server(finish=lambda W, change: W), "the changes add up"),
        (server(note=lambda W: W), "make a new array for each"),
        (afresh(lambda A, B, alpha: alpha), "α/r, not α"),
        (afresh(lambda A, B, alpha: 1.0), "α/r is missing"),
        (afresh(lambda A, B, alpha: len(A) / alpha), "not r/α"),
        (afresh(lambda A, B, alpha: alpha / len(A) ** 0.5), "rank-stabilised"),
        (afresh(lambda A, B, alpha: alpha / len(B)), "columns of B"),
        (afresh(base=0.0), "add W0"),
        (afresh(sign=-1), "you subtracted the change"),
        (lambda W0, tasks: afresh()(W0, tasks)[::-1], "the first one first"),
        (lambda W0, tasks: [W0 + alpha / len(A) * A @ B for A, B, alpha in tasks], "not A B")],
    "lora.bug": [
        (diagnose(still=any), "of its two matrices has moved"),
        (lambda W, A, B, W1, A1, B1: "not trained" if (W == W1).all() and ((A == A1).all() or (B == B1).all())
         else diagnose()(W, A, B, W1, A1, B1), "when only one of"),
        (diagnose(still=lambda moved: moved[1]), "it is not trained if neither has"),
        (diagnose(start=lambda A, B: not B.any()), "one of the two may be random"),
        (diagnose(start=lambda A, B: not A.any()), "the start is changed if B A is not zero; one"),
        (diagnose(start=lambda A, B: np.allclose(B @ A, 0)), "a tolerance overlooks a small one"),
        (lambda W, A, B, *after: diagnose(start=lambda A, B: (W + B @ A == W).all())(W, A, B, *after), "of B A is not zero at all"),
        (diagnose(start=lambda A, B: not (B @ A).all()), "number of B A that is not zero is enough"),
        (diagnose(start=lambda A, B: np.sum(B @ A) == 0), "with the sum 0"),
        (diagnose(start=lambda A, B: not (A.any() and B.any())), "and their product not"),
        (lambda W, A, B, W1, A1, B1: "base trained" if (W != W1).any() else "start changed" if np.any(B1 @ A1) else diagnose()(W, A, B, W1, A1, B1),
         "about the start: B_before"),
        (diagnose(equal=np.allclose), "has moved at all; a tolerance"),
        (diagnose(equal=lambda a, b: (a == b).any()), "means that none has"),
        (diagnose(equal=lambda a, b: a.sum() == b.sum()), "compare A and B number by number"),
        (diagnose(zero=lambda A, B: not (A.all() or B.all())), "only if all of its numbers"),
        (diagnose(zero=lambda A, B: not (A.any() and B.any())), "asks for both"),
        (diagnose(same=lambda a, b: a.max() == b.max()), "or largest number"),
        (lambda *run: diagnose()(*run).title(), "one of the five words"),
        (diagnose(same=lambda a, b: np.allclose(a, b, 1e-4, 1e-5)), "equal to the last bit"),
        (diagnose(same=np.allclose), "as np.allclose has one"),
        (diagnose(same=lambda a, b: (a == b).any()), "not with .all()"),
        (diagnose(same=lambda a, b: a.sum() == b.sum()), "with the same sum, length"),
        (diagnose(same=lambda a, b: a[0, 0] == b[0, 0]), "first number only"),
        (diagnose(dead="not trained"), "nothing can move"),
        (diagnose(unmoved="both zero"), "is about the start"),
        (diagnose(same=lambda a, b: True), "base's weight before and after"),
        (diagnose(start=lambda A, B: True), "B A at the start must be zero"),
        (lambda *run: None, "None")],
    "lora.dora": [
        (dora(axis=0), "you divided the columns"),
        (dora(root=False), "root is missing"),
        (dora(magnitude=False), "magnitude m is missing"),
        (dora(scale=lambda a, r: r / a), "not r/α"),
        (dora(scale=lambda a, r: a / r ** 0.5), "rank-stabilised"),
        (lambda x, W, A, B, alpha, m: dora()(x, W, A, B, alpha, m * W.shape[1] ** 0.5), "not of their mean"),
        (lambda x, W, A, B, alpha, m: dora(magnitude=False)(x, W, A, B, alpha, m) * (m ** -1 * ((W + B @ A * (alpha / A.shape[0])) ** 2).sum(axis=1)),
         "you did the opposite"),
        (lambda x, W, A, B, alpha, m: (lambda h: h * m / (h ** 2).sum(axis=-1, keepdims=True) ** 0.5)(dense(x, W, A, B, alpha)),
         "not the outputs"),
        (lambda x, W, A, B, alpha, m: (lambda V: x @ (V / (V ** 2).sum() ** 0.5).T * m)(W + B @ A * (alpha / A.shape[0])),
         "the whole matrix"),
        (lambda x, W, A, B, alpha, m: dora()(x, W, A, B, alpha, (W ** 2).sum(axis=1) ** 0.5), "is the trained m"),
        (dora(scale=lambda a, r: a), "α/r, not α"),
        (dora(rows=lambda W, V: W), "not of W0's"),
        (lambda x, W, A, B, alpha, m: dora()(x, W, A, Tensor(B.data), alpha, m), "no gradient reaches B"),
        (lambda x, W, A, B, alpha, m: dora(rows=lambda W, V: Tensor(V.data))(x, W, A, B, alpha, m),
         "lengths as constants"),
        (lambda x, W, A, B, alpha, m: forward(lambda a, r: a / r)(x, W, A, B, alpha) * m, "division by the lengths")],
}
RIGHT = {"lora.forward": [
        forward(lambda a, r: a / r),
        lambda x, W, A, B, alpha: x @ W.T + x @ A.T @ (B * (alpha / A.shape[0])).T],
         "lora.backward": [
        backward(),
        lambda *a: list(backward()(*a)),
        lambda *a: [g.tolist() for g in backward()(*a)]],
         "lora.attach": [attach(), lambda *args: tuple(map(dict, attach()(*args)))],
         "lora.alike": [
        alike(close),
        alike(lambda a, b: np.abs(a - b).max() <= 1e-3 * np.abs(a).max()),
        lambda A, B, a, C, D, c: np.linalg.norm((a / len(A) * B.T).T @ A - c / len(C) * D @ C) <= 1e-3 * np.linalg.norm(B @ A)],
         "lora.swap": [
        afresh(),
        lambda W0, tasks: tuple(afresh()(W0, tasks)),
        lambda W0, tasks: server(finish=lambda W, change: W0)(W0, tasks)],
         "lora.bug": [
        diagnose(),
        lambda *run: np.array([diagnose()(*run)])[0],
        diagnose(start=lambda A, B: np.linalg.norm(B @ A) == 0)], "lora.dora": [dora(), after_the_product]}
