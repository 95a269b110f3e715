"""Lesson 04: the bottleneck adapter, its size, and a parallel adapter as part of the MLP."""
import numpy as np

from ... import functional as F
from ...tensor import Tensor
from ..exercise import Exercise

__all__ = ["EXERCISES"]


# -- the adapter ---------------------------------------------------------------------------------
def reference_forward(h, W_d, b_d, W_u, b_u):
    return h + F.linear(F.gelu(F.linear(h, W_d, b_d)), W_u, b_u)


def forward_cases(rng, d=None, up=1.0):
    d = int(rng.integers(5, 9)) if d is None else d
    m = int(rng.integers(2, 4))
    draw = lambda *shape: Tensor(rng.standard_normal(shape).astype(np.float32))
    h, W_d, b_d, W_u, b_u = draw(2, 3, d), draw(m, d), draw(m), draw(d, m), draw(d)
    return h, W_d, b_d, W_u * up, b_u * up


# -- the count -----------------------------------------------------------------------------------
def reference_count(d, m, L, placement):
    n, norms = (2 * L, 2 * d * (2 * L + 1)) if placement == "houlsby" else (L, 0)
    return n * (2 * d * m + m + d) + norms


def count_cases(rng):
    d, m, L = (int(n) for n in rng.integers((40, 3, 3), (200, 30, 13)))
    return d, m, L, str(rng.choice(["houlsby", "pfeiffer"]))


def plus(term):
    return lambda d, m, L, placement: reference_count(d, m, L, placement) + term(d, m, L, placement == "houlsby")


# -- a wider MLP ---------------------------------------------------------------------------------
def reference_widen(W1, b1, W2, b2, W_down, b_down, W_up, b_up, s):
    return (np.concatenate([W1, W_down]), np.concatenate([b1, b_down]), np.concatenate([W2, s * W_up], axis=1), b2 + s * b_up)


def widen_cases(rng, s=None):
    d, k, m = (int(n) for n in rng.integers((3, 6, 2), (6, 10, 5)))
    shapes = (k, d), (k,), (d, k), (d,), (m, d), (m,), (d, m), (d,)
    return *(rng.standard_normal(shape) for shape in shapes), float(rng.integers(2, 6)) if s is None else s


def widened(down=1, up=lambda s: s, bias=lambda s: s):
    """A wider MLP whose scale went elsewhere: factors on W_down and b_down, W_up, b_up, as functions of s."""
    def wrong(W1, b1, W2, b2, W_down, b_down, W_up, b_up, s):
        a, u, b = (f(s) if callable(f) else f for f in (down, up, bias))
        return (np.concatenate([W1, a * W_down]), np.concatenate([b1, a * b_down]), np.concatenate([W2, u * W_up], axis=1),
                b2 + b * b_up)
    return wrong


def same_function(fn, rng):
    args = widen_cases(rng)
    W1, b1, W2, b2, W_down, b_down, W_up, b_up, s = args
    V1, c1, V2, c2 = fn(*args)
    x = rng.standard_normal((4, W1.shape[1]))
    return np.allclose(np.tanh(x @ V1.T + c1) @ V2.T + c2,
                       np.tanh(x @ W1.T + b1) @ W2.T + b2 + s * (np.tanh(x @ W_down.T + b_down) @ W_up.T + b_up))


EXERCISES = (
    Exercise(
        name="adapters.forward", title="The forward pass of an adapter", stars=1,
        reference=reference_forward, cases=forward_cases, gradient=("h", "W_d", "b_d", "W_u", "b_u"),
        special=(
            ("W_u and b_u are 0: the adapter is the identity", lambda rng: forward_cases(rng, up=0.0)),),
        mistakes=(
            ("the addition of h is missing: equation (1) adds the adapter's output to its input",
             lambda h, W_d, b_d, W_u, b_u: F.linear(F.gelu(F.linear(h, W_d, b_d)), W_u, b_u)),
            ("there is an activation on the way up: that is the survey's form, which neither the paper nor its code has",
             lambda h, W_d, b_d, W_u, b_u: h + F.gelu(F.linear(F.gelu(F.linear(h, W_d, b_d)), W_u, b_u))),
            ("the activation is missing; without it the two matrices amount to one",
             lambda h, W_d, b_d, W_u, b_u: h + F.linear(F.linear(h, W_d, b_d), W_u, b_u)),
            ("the activation is on the way up instead of on the way down",
             lambda h, W_d, b_d, W_u, b_u: h + F.gelu(F.linear(F.linear(h, W_d, b_d), W_u, b_u))),
            ("the biases are missing", lambda h, W_d, b_d, W_u, b_u: h + F.linear(F.gelu(F.linear(h, W_d)), W_u)),
            ("b_d is missing", lambda h, W_d, b_d, W_u, b_u: h + F.linear(F.gelu(F.linear(h, W_d)), W_u, b_u)),
            ("b_u is missing", lambda h, W_d, b_d, W_u, b_u: h + F.linear(F.gelu(F.linear(h, W_d, b_d)), W_u)),
            ("you used a ReLU instead of a GELU",
             lambda h, W_d, b_d, W_u, b_u: h + F.linear(F.linear(h, W_d, b_d).relu(), W_u, b_u))),
        hints=("How many activations are in equation (1), and what is added at the end?",
               "F.linear(h, W_d, b_d) is (…, m). F.linear of that with W_u and b_u is (…, d), like h.",
               "y = F.gelu(F.linear(h, W_d, b_d)); then h + F.linear(y, W_u, b_u).")),
    Exercise(
        name="adapters.count", title="The number of trained parameters", stars=1,
        reference=reference_count, cases=count_cases,
        special=(
            ("the base with Houlsby's adapters, m = 64", lambda rng: (128, 64, 5, "houlsby")),
            ("the base with Pfeiffer's, m = 64", lambda rng: (128, 64, 5, "pfeiffer"))),
        mistakes=(
            ("Houlsby puts two adapters into every block", plus(lambda d, m, L, h: -h * L * (2 * d * m + m + d))),
            ("Pfeiffer puts one adapter into every block", plus(lambda d, m, L, h: (not h) * L * (2 * d * m + m + d))),
            ("Houlsby trains the layer norms as well", plus(lambda d, m, L, h: -h * 2 * d * (2 * L + 1))),
            ("the final norm is missing: there are 2 L + 1 norms", plus(lambda d, m, L, h: -h * 2 * d)),
            ("Pfeiffer leaves the norms alone", plus(lambda d, m, L, h: (not h) * 2 * d * (2 * L + 1))),
            ("the biases are missing: m on the way down, d on the way up",
             plus(lambda d, m, L, h: -(1 + h) * L * (m + d))),
            ("each layer norm has both a weight and a bias", plus(lambda d, m, L, h: -h * d * (2 * L + 1)))),
        tolerance=0,
        hints=("How many adapters does each placement put into a block? Which of the two also trains layer norms, and how "
               "many norms are there?",
               "An adapter: (m, d), m, (d, m) and d. A norm: a weight and a bias of d.",
               "one = 2 d m + m + d. Houlsby: 2 L · one + (2 L + 1) · 2 d. Pfeiffer: L · one.")),
    Exercise(
        name="adapters.widen", title="A parallel adapter as a wider MLP", stars=3,
        reference=reference_widen, cases=widen_cases,
        invariants=(("the wider MLP computes MLP + s · adapter, here with f = tanh", same_function),),
        mistakes=(
            ("s is missing", widened(up=1, bias=1)),
            ("s must come after the activation: f(s y) is not s f(y)", widened(down=lambda s: s, up=1)),
            ("s must come after the activation: f(s y) is not s f(y); and the bias b_up is scaled too",
             widened(down=lambda s: s, up=1, bias=1)),
            ("s must multiply the adapter's output bias as well", widened(bias=1)),
            ("the adapter's output bias b_up is missing", widened(bias=0)),
            ("s is applied twice, on the way down and on the way up", widened(down=lambda s: s)),
            ("the adapter's units come after the MLP's", lambda W1, b1, W2, b2, W_down, b_down, W_up, b_up, s: (
                np.concatenate([W_down, W1]), np.concatenate([b_down, b1]), np.concatenate([s * W_up, W2], axis=1), b2 + s * b_up))),
        tolerance=1e-9,
        hints=("A hidden unit is a row of W1 and a column of W2. Where do the adapter's units go? On which side of the "
               "activation may s stand?",
               "W1 (k, d) and W_down (m, d) become (k + m, d). W2 (d, k) and W_up (d, m) become (d, k + m). b1 and b_down "
               "become (k + m,). b2 stays (d,).",
               "Concatenate W1 and W_down over rows, b1 and b_down, and W2 and s·W_up over columns. The new b2 is b2 + "
               "s·b_up.")),
)
