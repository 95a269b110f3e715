"""Lesson 03: what students write, wrong and right."""
from types import SimpleNamespace

import numpy as np


def adamw(correct=True, coupled=False, inside=False, decay_lr=True, shift=0, old=False):
    def full_adamw(w, g, m, v, t, lr, beta1, beta2, eps, decay):
        if coupled: g = g + decay * w
        m1, v1 = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g ** 2
        a, b = (m, v) if old else (m1, v1)
        if correct: a, b = a / (1 - beta1 ** (t + shift)), b / (1 - beta2 ** (t + shift))
        move = lr * a / (np.sqrt(b + eps) if inside else np.sqrt(b) + eps)
        return w - move - (0 if coupled else decay * w * (lr if decay_lr else 1)), m1, v1
    return full_adamw


def by_parts(move, shrink=lambda p: p.lr * p.decay * p.w, mean=lambda beta, old, new: beta * old + (1 - beta) * new):
    """The move and the decay out of all that the paper names."""
    def full_adamw(w, g, m, v, t, lr, beta1, beta2, eps, decay):
        p = SimpleNamespace(w=w, g=g, m=mean(beta1, m, g), v=mean(beta2, v, g * g), lr=lr, eps=eps, decay=decay)
        p.a, p.b = 1 - beta1 ** t, 1 - beta2 ** t
        p.m_hat, p.v_hat = p.m / p.a, p.v / p.b
        return w - move(p) - shrink(p), p.m, p.v
    return full_adamw


def usual(p):
    return p.lr * p.m_hat / (np.sqrt(p.v_hat) + p.eps)


def in_turn(step):
    """A loop over the gradients, with any function of one step."""
    def full_bug(w, gradients, lr, beta1, beta2, decay):
        m, v = np.zeros_like(w), np.zeros_like(w)
        for t, g in enumerate(gradients, 1): w, m, v = step(w, g, m, v, t, lr, beta1, beta2, 1e-8, decay)
        return w
    return full_bug


def in_place(w, g, m, v, t, lr, beta1, beta2, eps, decay):
    m *= beta1
    m += (1 - beta1) * g
    v *= beta2
    v += (1 - beta2) * g * g
    return w - lr * decay * w - lr * m / (1 - beta1 ** t) / (np.sqrt(v / (1 - beta2 ** t)) + eps), m, v


def folded(w, g, m, v, t, lr, beta1, beta2, eps, decay):
    """The corrections folded into the rate, as PyTorch once did."""
    m, v = m + (1 - beta1) * (g - m), v + (1 - beta2) * (g * g - v)
    root = np.sqrt(1 - beta2 ** t)
    return (1 - lr * decay) * w - lr * root / (1 - beta1 ** t) * m / (np.sqrt(v) + eps * root), m, v


def corrected(w, g, m, v, t, lr, beta1, beta2, eps, decay):
    w, m, v = adamw()(w, g, m, v, t, lr, beta1, beta2, eps, decay)
    return w, m / (1 - beta1 ** t), v / (1 - beta2 ** t)


def states(N, n, b, f):
    return (N - n) * f + n * (2 * b + 8 + 4 * (b < 4))


def activations(B, T, d, H, L, V):
    n, queries = B * T, B * T * H
    return L * (16 * n * d + 2 * n + 2 * queries) + n * (2 * d + 1 + V)


def off(by):
    """The count with an error, as a function of B T, d, L and V."""
    return lambda B, T, d, H, L, V: activations(B, T, d, H, L, V) + by(B * T, d, L, V)


def plain(root=np.sqrt, decay=1, late=False, hat=True):
    """Line by line; the variants are what one forgets."""
    def full_adamw(w, g, m, v, t, lr, beta1, beta2, eps, lam):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        a, b = 1 - beta1 ** t, 1 - beta2 ** t
        step = lr * (m / a) / (root(v / b) + eps) if hat else lr * np.sqrt(b) / a * m / (np.sqrt(v) + eps)
        return (w - step) * (1 - lr * lam) if late else w - step - decay * lr * lam * w, m, v
    return full_adamw


def loop(shared=False, start=1, inside=False, constant=False, decayed=True, write=False, newest=False):
    def full_bug(w, gradients, lr, beta1, beta2, decay):
        m, v = [np.zeros_like(w)] * 2 if shared else [np.zeros_like(w) for _ in range(2)]
        for t, g in enumerate(gradients, start):
            if inside: m, v = np.zeros_like(w), np.zeros_like(w)
            if newest: g = gradients[-1]
            t = 1 if constant else t
            m *= beta1
            m += (1 - beta1) * g
            v *= beta2
            v += (1 - beta2) * g**2
            step = lr * (m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + 1e-8) + decay * w * decayed)
            if write: w -= step
            else: w = w - step
        return w
    return full_bug


def repeated(w, gradients, lr, beta1, beta2, decay):
    """The first exercise's function, once for each gradient."""
    m = v = np.zeros_like(w)
    for t, g in enumerate(gradients, 1): w, m, v = adamw()(w, g, m, v, t, lr, beta1, beta2, 1e-8, decay)
    return w


def peak(inputs=lambda L, k: L // k, blocks=lambda k: k, together=False, head=True, factor=1, of=max, final=1, queries=2):
    def full_recompute(B, T, d, H, L, V, k):
        n = B * T
        part = blocks(k) * (16 * n * d + 2 * n + queries * B * H * T)
        top = n * (final * (2 * d + 1) + V) if head else 0
        return factor * (inputs(L, k) * n * d + (part + top if together else of(part, top)))
    return full_recompute


def head_alone(B, T, d, H, L, V, k):
    """The parts' inputs are forgotten at the end of the forward pass."""
    return max(peak(head=False)(B, T, d, H, L, V, k), B * T * (2 * d + 1 + V))


WRONG = {
    "full.adamw": [
        (adamw(correct=False), "started at 0"),
        (adamw(coupled=True), "L2 penalty"),
        (adamw(inside=True), "outside the root"),
        (adamw(decay_lr=False), "lr · λ · w"),
        (adamw(shift=1), "not t + 1"),
        (adamw(old=True), "update them first"),
        (in_place, "writes into its argument"),
        (plain(root=lambda v: v), "without its root"),
        (plain(decay=0), "decay is missing"),
        (plain(late=True), "after the step"),
        (plain(hat=False), "added to √v̂"),
        (corrected, "return them as they are"),
        (by_parts(lambda p: p.lr * p.m_hat / (np.sqrt(p.v) + p.eps)), "v is not corrected"),
        (by_parts(lambda p: p.lr * p.m / (np.sqrt(p.v_hat) + p.eps)), "m is not corrected"),
        (by_parts(lambda p: p.lr * p.m * p.a / (np.sqrt(p.v * p.b) + p.eps)), "do not multiply"),
        (by_parts(lambda p: usual(p) / p.lr), "missing in the step"),
        (lambda w, g, m, v, t, lr, b1, b2, eps, decay: by_parts(lambda p: lr * p.m / (1 - b1) ** t / (
            np.sqrt(p.v / (1 - b2) ** t) + eps))(w, g, m, v, t, lr, b1, b2, eps, decay), "the power of β alone"),
        (by_parts(lambda p: p.lr * p.g / (np.sqrt(p.v_hat) + p.eps)), "not along g"),
        (by_parts(lambda p: p.lr * p.m_hat / np.sqrt(p.v_hat)), "ε is missing"),
        (by_parts(usual, lambda p: p.lr * p.decay * p.w / (np.sqrt(p.v_hat) + p.eps)), "not divided by √v̂"),
        (by_parts(usual, lambda p: -p.lr * p.decay * p.w), "decay is subtracted"),
        (by_parts(usual, mean=lambda beta, old, new: (1 - beta) * old + beta * new), "β multiplies the old mean"),
        (by_parts(usual, mean=lambda beta, old, new: beta * old + new), "with the factor 1 − β"),
        (lambda w, g, m, v, t, lr, b1, b2, *a: adamw()(w, g, m, v, t, lr, b2, b1, *a), "β₁ belongs to m"),
        (lambda w, g, m, v, t, *a: adamw()(w, g, m, v, 1, *a), "those of step t"),
        (lambda *a: (lambda w, m, v: (w, v, m))(*adamw()(*a)), "the order is"),
        (lambda *a: adamw()(*a)[0], "3 results"),
        (lambda *a: adamw()(*a)[::-1], "result 1 of 3")],
    "full.states": [
        (lambda N, n, b, f: (N - n) * f + n * b + N * (b + 8 + 4 * (b < 4)), "n trained weights only"),
        (lambda N, n, b, f: (N - n) * f + n * (2 * b + 8), "float32 master copy besides"),
        (lambda N, n, b, f: (N - n) * f + n * (2 * b + 8 + (4 if b == 2 else 0)), "not those of 2 bytes alone"),
        (lambda *a: int(states(*a)), "half a byte"),
        (lambda N, n, b, f: states(N, n, b, f) - 4 * n, "two numbers"),
        (lambda N, n, b, f: N * f + n * (2 * b + 8 + 4 * (b < 4)), "counted as frozen"),
        (lambda N, n, b, f: (N - n) * b + n * (2 * b + 8 + 4 * (b < 4)), "takes frozen_bytes"),
        (lambda N, n, b, f: (N - n) * f + n * (2 * b + 8) + 4 * N * (b < 4), "only trained weights"),
        (lambda N, n, b, f: (N - n) * f + n * (4 * b + 4 * (b < 4)), "m and v are in float32"),
        (lambda N, n, b, f: n * (2 * b + 8 + 4 * (b < 4)), "frozen weights are missing"),
        (lambda N, n, b, f: states(N, n, b, f) - 8 * n, "m and v are missing"),
        (lambda N, n, b, f: states(N, n, b, f) + (4 - b) * n, "a gradient takes weight_bytes"),
        (lambda *a: states(*a) * 8, "in bits"),
        (lambda N, n, b, f: (N - n) * f + n * (2 * b + 8 + b * (b < 4)), "master copy takes 4 bytes"),
        (lambda N, n, b, f: (N - n) * f + n * (2 * b + 4 * (b < 4)) + 8 * N, "gradients, m and v"),
        (lambda N, n, b, f: states(N, n, b, f) - n * b, "gradient is missing")],
    "full.activations": [
        (lambda B, T, d, H, L, V: activations(B, T, d, H, L, V) - L * (B * T * d + B * T), "two layer norms"),
        (lambda B, T, d, H, L, V: activations(B, T, d, H, L, V) - (2 * L + 1) * B * T, "1/σ of the layer norms"),
        (off(lambda n, d, L, V: -2 * L * n), "1/σ of the blocks"),
        (off(lambda n, d, L, V: -n), "1/σ of the final norm"),
        (off(lambda n, d, L, V: -3 * L * n * d), "where it is 4 d wide"),
        (off(lambda n, d, L, V: -4 * L * n * d), "one of the two is missing"),
        (off(lambda n, d, L, V: 4 * L * n * d), "too many"),
        (off(lambda n, d, L, V: 2 * L * n * d), "additions keep nothing"),
        (off(lambda n, d, L, V: n * V), "not the logits besides"),
        (off(lambda n, d, L, V: (L - 1) * n * (2 * d + 1)), "the head's input exist once"),
        (off(lambda n, d, L, V: (L - 1) * n * (2 * d + 1 + V)), "the head and the probabilities"),
        (lambda B, T, d, H, L, V: activations(B, T, d, H, L, V) - 6 * L * B * T * d, "4 d wide"),
        (lambda B, T, d, H, L, V: activations(B, T, d, H, 1, V), "there are L"),
        (lambda B, T, d, H, L, V: 4 * activations(B, T, d, H, L, V), "in bytes"),
        (lambda B, T, d, H, L, V: activations(B, T, d, H, L, V) - L * B * H * T, "the largest score and the sum"),
        (lambda B, T, d, H, L, V: activations(B, T, d, H, L, V) - 2 * L * B * (H - 1) * T, "not in one head"),
        (lambda B, T, d, H, L, V: activations(B, T, d, H, L, V) - 2 * L * B * H * T, "2 B H T"),
        (off(lambda n, d, L, V: 2 * L * n + n), "and not the mean"),
        (off(lambda n, d, L, V: -L * n * d), "missing in each block"),
        (off(lambda n, d, L, V: L * n * d), "and no input is kept twice"),
        (off(lambda n, d, L, V: 3 * L * n * d), "input of `up`"),
        (off(lambda n, d, L, V: -n * d - n), "the final norm is missing"),
        (off(lambda n, d, L, V: -n * d), "after the blocks B T d"),
        (off(lambda n, d, L, V: -n * (2 * d + 1 + V)), "three more are kept"),
        (off(lambda n, d, L, V: n * d), "the embedding keeps"),
        (lambda B, T, d, H, L, V: activations(B, T, d, H, L, V) + L * B * H * T * T, "beside the two numbers"),
        (lambda B, T, d, H, L, V: activations(B, T, d, H, L, V) + L * B * H * T * (T - 2), "T² in each head")],
    "full.bug": [
        (loop(shared=True), "has no root"),
        (loop(start=2), "t counts from 1"),
        (in_turn(adamw(inside=True)), "outside the root"),
        (loop(inside=True), "begin anew"),
        (loop(constant=True), "t stays 1"),
        (loop(decayed=False), "decay is missing"),
        (loop(newest=True), "the last gradient"),
        (in_turn(adamw(correct=False)), "corrections of m and v are missing"),
        (in_turn(adamw(coupled=True)), "went into the gradient"),
        (in_turn(adamw(decay_lr=False)), "learning rate is missing in the decay"),
        (in_turn(plain(late=True)), "the step has moved"),
        (lambda w, gs, *a: loop()(w, gs[::-1], *a), "in reverse order"),
        (lambda w, gs, *a: loop()(w, gs[:1], *a), "this is one step"),
        (loop(write=True), "argument w"),
        (lambda *a: [loop()(*a)], "shape")],
    "full.recompute": [
        (peak(inputs=lambda L, k: L), "for each part of k blocks"),
        (peak(inputs=lambda L, k: 0), "L/k of them"),
        (peak(inputs=lambda L, k: L // k - 1), "its own input"),
        (peak(inputs=lambda L, k: k), "each keeps one input"),
        (peak(inputs=lambda L, k: L // k + 1), "not k, and not one more"),
        (lambda *a: peak(blocks=lambda k: a[4])(*a), "not those of all"),
        (lambda *a: peak(blocks=lambda k: a[4] // k)(*a), "there are L/k parts"),
        (lambda *a: head_alone(*a), "at both moments"),
        (peak(of=min), "the smaller moment"),
        (peak(final=0), "the head's moment"),
        (peak(queries=0), "2 B H T in each block"),
        (peak(blocks=lambda k: 1), "whose arrays are all there"),
        (peak(together=True), "not the sum"),
        (peak(head=False), "the head also needs"),
        (peak(factor=4), "in bytes")],
}
RIGHT = {"full.adamw": [
        folded,
        adamw(),
        plain(),
        lambda *a: list(adamw()(*a)),
        lambda *a: tuple(x.tolist() for x in adamw()(*a))],
         "full.states": [states, lambda *a: np.float64(states(*a))],
         "full.activations": [
        activations,
        lambda *a: float(activations(*a)),
        lambda *a: np.int64(activations(*a))],
         "full.bug": [loop(), repeated, lambda *a: loop()(*a).tolist()],
         "full.recompute": [peak(), lambda *a: float(peak()(*a))]}
