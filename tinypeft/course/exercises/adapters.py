"""Lesson 04: the bottleneck adapter, its size, and a parallel adapter as part of the MLP."""
import numpy as np

from ...engine import functional as F
from ...engine.tensor import Tensor
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


def widened(down=1, up=lambda s: s, bias=lambda s: s, inner=None):
    """A wider MLP whose scale went elsewhere: factors on W_down, W_up, b_up and b_down (that of W_down), as functions of s."""
    def wrong(W1, b1, W2, b2, W_down, b_down, W_up, b_up, s):
        a, u, b, c = (f(s) if callable(f) else f for f in (down, up, bias, down if inner is None else inner))
        return (np.concatenate([W1, a * W_down]), np.concatenate([b1, c * b_down]), np.concatenate([W2, u * W_up], axis=1),
                b2 + b * b_up)
    return wrong


def same_function(fn, rng):
    args = widen_cases(rng)
    W1, b1, W2, b2, W_down, b_down, W_up, b_up, s = args
    V1, c1, V2, c2 = fn(*args)
    x = rng.standard_normal((4, W1.shape[1]))
    return np.allclose(np.tanh(x @ V1.T + c1) @ V2.T + c2,
                       np.tanh(x @ W1.T + b1) @ W2.T + b2 + s * (np.tanh(x @ W_down.T + b_down) @ W_up.T + b_up))


# -- what a task's file needs --------------------------------------------------------------------
def reference_bug(before, after):
    return [name for name, a in after.items() if name not in before or not np.array_equal(a, before[name])]


def file_cases(rng, norms=None, size=None):
    """A base and the model after training, with norms that moved or stayed."""
    d, m, L = (int(n) for n in rng.integers((3, 2, 2), (6, 4, 4)))
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    size = size or float(rng.choice([0.1, 1e-6]))
    moved = (rng.random() < 0.7) if norms is None else norms
    before, after = {}, {}
    for i in range(L):
        for name, shape in (("norm2.weight", (d,)), ("norm2.bias", (d,)), ("mlp.down.weight", (d, 4 * d)), ("mlp.down.bias", (d,))):
            a = before[f"blocks.{i}.{name}"] = draw(*shape) if name.endswith("weight") else np.zeros(d, np.float32)
            after[f"blocks.{i}.{name}"] = (a + size * draw(*shape)) if moved and "norm" in name else a.copy()
        for name, shape in (("W_d", (m, d)), ("b_d", (m,)), ("W_u", (d, m)), ("b_u", (d,))):
            after[f"blocks.{i}.mlp.down.{name}"] = draw(*shape)
    return before, after


def little_cases(rng, steps):
    """The norms start at ones and zeros, and few of their numbers moved. steps: position in an array → what it adds."""
    before, after = file_cases(rng, norms=False)
    for name in (name for name in before if "norm" in name):
        before[name] = np.full_like(before[name], name.endswith("weight"))
        after[name] = before[name].copy()
        for at, step in steps.items(): after[name][at] = step(after[name][at])
    return before, after


def least(x):
    """The next larger float32."""
    return np.nextafter(x, np.float32(np.inf))


def chosen(which):
    return lambda before, after: [name for name, a in after.items() if which(name, a, before)]


# -- an adapter without its nonlinearity ---------------------------------------------------------
def reference_linear(W, b, W_d, b_d, W_u, b_u):
    M = np.eye(len(W)) + W_u @ W_d
    return M @ W, M @ b + W_u @ b_d + b_u


def linear_cases(rng):
    d, k, m = (int(n) for n in rng.integers((5, 8, 2), (8, 11, 4)))
    return tuple(rng.standard_normal(shape) for shape in ((d, k), (d,), (m, d), (m,), (d, m), (d,)))


def composed(matrix=lambda W_d, W_u: np.eye(len(W_u)) + W_u @ W_d,
             bias=lambda M, b, W_u, b_d, b_u: M @ b + W_u @ b_d + b_u):
    def wrong(W, b, W_d, b_d, W_u, b_u):
        M = matrix(W_d, W_u)
        return M @ W, bias(M, b, W_u, b_d, b_u)
    return wrong


def same_layers(fn, rng):
    W, b, W_d, b_d, W_u, b_u = args = linear_cases(rng)
    V, c = fn(*args)
    h = (x := rng.standard_normal((4, W.shape[1]))) @ W.T + b
    return np.allclose(x @ V.T + c, h + (h @ W_d.T + b_d) @ W_u.T + b_u)


EXERCISES = (
    Exercise(
        name="adapters.forward", title="The forward pass of an adapter", stars=1,
        reference=reference_forward, cases=forward_cases, gradient=("h", "W_d", "b_d", "W_u", "b_u"),
        special=(
            ("W_u and b_u are 0: the adapter is the identity", lambda rng: forward_cases(rng, up=0.0)),),
        mistakes=(
            ("the addition of h is missing: what the detour gives is added to its input",
             lambda h, W_d, b_d, W_u, b_u: F.linear(F.gelu(F.linear(h, W_d, b_d)), W_u, b_u)),
            ("there is an activation on the way up: that is the survey's form, which neither the paper nor its code has",
             lambda h, W_d, b_d, W_u, b_u: h + F.gelu(F.linear(F.gelu(F.linear(h, W_d, b_d)), W_u, b_u))),
            ("the activation is missing; without it the two matrices amount to one",
             lambda h, W_d, b_d, W_u, b_u: h + F.linear(F.linear(h, W_d, b_d), W_u, b_u)),
            ("the activation is on the way up instead of on the way down",
             lambda h, W_d, b_d, W_u, b_u: h + F.gelu(F.linear(F.linear(h, W_d, b_d), W_u, b_u))),
            ("the activation stands between the two matrices, not before the first",
             lambda h, W_d, b_d, W_u, b_u: h + F.linear(F.linear(F.gelu(h), W_d, b_d), W_u, b_u)),
            ("b_d belongs to the way down, before the activation",
             lambda h, W_d, b_d, W_u, b_u: h + F.linear(F.gelu(F.linear(h, W_d)) + b_d, W_u, b_u)),
            ("the activation is on the way down alone, not on the sum with h",
             lambda h, W_d, b_d, W_u, b_u: F.gelu(h + F.linear(F.linear(h, W_d, b_d), W_u, b_u))),
            ("what the detour gives is added to h; you subtracted it",
             lambda h, W_d, b_d, W_u, b_u: h - F.linear(F.gelu(F.linear(h, W_d, b_d)), W_u, b_u)),
            ("you used a tanh instead of a GELU", lambda h, W_d, b_d, W_u, b_u: h + F.linear(F.linear(h, W_d, b_d).tanh(), W_u, b_u)),
            ("the biases are missing", lambda h, W_d, b_d, W_u, b_u: h + F.linear(F.gelu(F.linear(h, W_d)), W_u)),
            ("b_d is missing", lambda h, W_d, b_d, W_u, b_u: h + F.linear(F.gelu(F.linear(h, W_d)), W_u, b_u)),
            ("b_u is missing", lambda h, W_d, b_d, W_u, b_u: h + F.linear(F.gelu(F.linear(h, W_d, b_d)), W_u)),
            ("you used a ReLU instead of a GELU",
             lambda h, W_d, b_d, W_u, b_u: h + F.linear(F.linear(h, W_d, b_d).relu(), W_u, b_u)),
            ("the h that you add has left the graph: add h itself, not h.data",
             lambda h, W_d, b_d, W_u, b_u: Tensor(h.data) + F.linear(F.gelu(F.linear(h, W_d, b_d)), W_u, b_u)),
            ("the h that goes through the detour has left the graph: use h itself, not h.data",
             lambda h, W_d, b_d, W_u, b_u: h + F.linear(F.gelu(F.linear(Tensor(h.data), W_d, b_d)), W_u, b_u))),
        symptoms=(
            ("these are the m numbers of the middle: map them up, and add h",
             lambda got, expected, args: np.shape(got)[-1] == args[1].shape[0] != np.shape(expected)[-1]),),
        hints=("How many activations has an adapter, and what is added at the end?",
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
            ("the bias on the way up, d numbers, is missing", plus(lambda d, m, L, h: -(1 + h) * L * d)),
            ("the bias on the way down, m numbers, is missing", plus(lambda d, m, L, h: -(1 + h) * L * m)),
            ("an adapter has two matrices, one down and one up", plus(lambda d, m, L, h: -(1 + h) * L * d * m)),
            ("the biases are m on the way down and d on the way up", plus(lambda d, m, L, h: (1 + h) * L * (d - m))),
            ("the biases are m on the way down and d on the way up", plus(lambda d, m, L, h: (1 + h) * L * (m - d))),
            ("there are L blocks, and each has adapters of its own", plus(lambda d, m, L, h: (1 + h) * (1 - L) * (2 * d * m + m + d))),
            ("each block has two norms: with the final one they are 2 L + 1, not L + 1", plus(lambda d, m, L, h: -h * 2 * d * L)),
            ("each block has two norms: with the final one they are 2 L + 1, not L", plus(lambda d, m, L, h: -h * 2 * d * (L + 1))),
            ("there is one final norm in the model, not one in every block", plus(lambda d, m, L, h: h * 2 * d * (L - 1))),
            ("the two placements are exchanged: “houlsby” has two adapters in a block and trains the norms",
             lambda d, m, L, placement: reference_count(d, m, L, "pfeiffer" if placement == "houlsby" else "houlsby")),
            ("each layer norm has both a weight and a bias", plus(lambda d, m, L, h: -h * d * (2 * L + 1)))),
        tolerance=0,
        hints=("How many adapters does each placement put into a block? Which of the two also trains layer norms, and how "
               "many norms are there?",
               "An adapter: (m, d), m, (d, m) and d. A norm: a weight and a bias of d.",
               "one = 2 * d * m + m + d. Houlsby: 2 * L * one + (2 * L + 1) * 2 * d. Pfeiffer: L * one.")),
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
            ("s must multiply W_up as well, not b_up alone", widened(up=1)),
            *(("s stands at W_down, before the activation: it belongs behind it, at W_up and b_up",
               widened(down=lambda s: s, inner=1, up=up, bias=bias))
              for up in (1, lambda s: s) for bias in (1, lambda s: s)),
            ("the adapter's output bias b_up is missing", widened(bias=0)),
            ("b_down stands before the activation: s belongs behind it", widened(inner=lambda s: s)),
            ("the adapter's inner bias b_down is missing", widened(inner=0)),
            ("s multiplies what the adapter gives; you divided by it", widened(up=lambda s: 1 / s, bias=lambda s: 1 / s)),
            ("s belongs to the adapter alone: the MLP's W2 stays as it is", lambda W1, b1, W2, b2, W_down, b_down, W_up, b_up, s: (
                reference_widen(W1, b1, s * W2, b2, W_down, b_down, W_up, b_up, s))),
            ("s belongs to the adapter alone: the MLP's b2 stays as it is", lambda W1, b1, W2, b2, W_down, b_down, W_up, b_up, s: (
                reference_widen(W1, b1, W2, s * b2, W_down, b_down, W_up, b_up, s))),
            ("the MLP's output bias b2 is missing: add s b_up to it", lambda W1, b1, W2, b2, W_down, b_down, W_up, b_up, s: (
                reference_widen(W1, b1, W2, 0 * b2, W_down, b_down, W_up, b_up, s))),
            ("s is applied twice, on the way down and on the way up", widened(down=lambda s: s)),
            ("the adapter's units come after the MLP's", lambda W1, b1, W2, b2, W_down, b_down, W_up, b_up, s: (
                np.concatenate([W_down, W1]), np.concatenate([b_down, b1]), np.concatenate([s * W_up, W2], axis=1), b2 + s * b_up))),
        symptoms=(
            ("b2 and b_up act on the same d outputs: add them, do not join them",
             lambda got, expected, args: np.shape(got) == (2 * len(args[3]),) and np.shape(expected) == (len(args[3]),)),
            ("the hidden units of the adapter need their biases: join b1 and b_down",
             lambda got, expected, args: np.shape(got) == np.shape(args[1]) != np.shape(expected)),
            ("return the four arrays in the order (W1, b1, W2, b2)", lambda got, expected, args: np.ndim(got) != np.ndim(expected))),
        errors=(
            ("exactly, but along dimension 1", "you joined W2 (d, k) and W_up (d, m) along axis 0: a hidden unit is a column of "
             "them, so join along axis 1"),
            ("exactly, but along dimension 0", "you joined W1 (k, d) and W_down (m, d) along axis 1: a hidden unit is a row of "
             "them, so join along axis 0")),
        tolerance=1e-9,
        hints=("A hidden unit is a row of W1 and a column of W2. Where do the adapter's units go? On which side of the "
               "activation may s stand?",
               "W1 (k, d) and W_down (m, d) become (k + m, d). W2 (d, k) and W_up (d, m) become (d, k + m). b1 and b_down "
               "become (k + m,). b2 stays (d,).",
               "Concatenate W1 and W_down over rows, b1 and b_down, and W2 and s * W_up over columns. The new b2 is "
               "b2 + s * b_up.")),
    Exercise(
        name="adapters.bug", title="Find the bug: a file that lacks something", stars=2,
        reference=reference_bug, cases=file_cases,
        special=(
            ("only the adapters were trained", lambda rng: file_cases(rng, norms=False)),
            ("the norms were trained, too", lambda rng: file_cases(rng, norms=True, size=0.1)),
            ("the norms were trained, too, and moved by a millionth", lambda rng: file_cases(rng, norms=True, size=1e-6)),
            ("one number of each norm moved, by the smallest step that float32 has", lambda rng: little_cases(rng, {-1: least})),
            ("the last number of each norm moved", lambda rng: little_cases(rng, {-1: lambda x: x - 0.5})),
            ("two numbers of each norm moved, one up and one down by as much",
             lambda rng: little_cases(rng, {0: lambda x: x + 0.5, 1: lambda x: x - 0.5}))),
        mistakes=(
            ("these are the adapters alone: the layer norms were trained as well, and are in the base under the same name",
             chosen(lambda name, a, before: name not in before)),
            ("the adapters are missing: they are not in the base at all",
             chosen(lambda name, a, before: name in before and not np.array_equal(a, before[name]))),
            ("this is the whole model: what training left as it was is in the base already",
             chosen(lambda name, a, before: True)),
            *(("a tolerance, as np.allclose has one, overlooks a small step: what has moved at all is needed",
               chosen(lambda name, a, before, near=near: name not in before or not np.allclose(a, before[name], **near)))
              for near in ({}, {"rtol": 1e-4, "atol": 1e-4})),
            ("one number that has moved is enough: ask with .any(), not with .all()",
             chosen(lambda name, a, before: name not in before or (a != before[name]).all())),
            *(("two arrays with the same sum, or the same mean, length or largest number, may differ: compare number by number",
               chosen(lambda name, a, before, same=same: name not in before or not same(a, before[name])))
              for same in (lambda a, b: a.sum() == b.sum(), lambda a, b: a.mean() == b.mean(), lambda a, b: (a - b).sum() == 0,
                           lambda a, b: np.linalg.norm(a) == np.linalg.norm(b), lambda a, b: a.max() == b.max(),
                           lambda a, b: a.min() == b.min())),
            ("you compared the first numbers only: any number may have moved",
             chosen(lambda name, a, before: name not in before or a.flat[0] != before[name].flat[0])),
            ("you chose by the word “norm”: choose by what has changed, since norms may be frozen",
             chosen(lambda name, a, before: name not in before or "norm" in name)),
            ("biases are trained, too", chosen(lambda name, a, before: name not in before or (
                not np.array_equal(a, before[name]) and name.endswith("weight"))))),
        symptoms=(
            ("return a list of the names, in the order of `after`", lambda got, expected, args: not isinstance(got, (list, tuple))),
            ("these are the right names, in another order: take them in the order of `after`",
             lambda got, expected, args: sorted(got) == sorted(expected))),
        errors=(("truth value of an array", "a != b is an array with an answer for each number: .any() makes one answer of them"),
                ("KeyError", "an array of the adapters is not in `before`: ask first whether it is there")),
        tolerance=0,
        hints=("Which arrays of the trained model can you not get from the base? There are two kinds.",
               "`name in before` tells whether the base has an array. np.array_equal(a, b) is True or False for two arrays.",
               "[name for name, a in after.items() if name not in before or differ(a, before[name])]. Write the question whether "
               "two arrays differ in place of differ.")),
    Exercise(
        name="adapters.linear", title="A layer and an adapter in one", stars=2,
        reference=reference_linear, cases=linear_cases,
        invariants=(("one layer computes what the layer and the adapter compute", same_layers),),
        mistakes=(
            ("the shortcut is missing: h itself is added, so the matrix is I + W_u W_d",
             composed(lambda W_d, W_u: W_u @ W_d)),
            ("the bias b goes through the adapter as well: (I + W_u W_d) b",
             composed(bias=lambda M, b, W_u, b_d, b_u: b + W_u @ b_d + b_u)),
            ("b_d comes before the way up, so it is multiplied by W_u",
             composed(bias=lambda M, b, W_u, b_d, b_u: M @ b + b_u)),
            ("the shortcut adds the identity np.eye(d), ones on the diagonal alone, not the number 1",
             composed(lambda W_d, W_u: 1 + W_u @ W_d)),
            ("W_d acts first and W_u on what it gives: W_u W_d, not its transpose",
             composed(lambda W_d, W_u: np.eye(len(W_u)) + W_d.T @ W_u.T)),
            ("W goes through the adapter as well: (I + W_u W_d) W", lambda W, b, W_d, b_d, W_u, b_u: (
                W, reference_linear(W, b, W_d, b_d, W_u, b_u)[1])),
            ("the biases of the adapter are added behind W_u W_d: they do not go through it again",
             composed(bias=lambda M, b, W_u, b_d, b_u: M @ (b + W_u @ b_d + b_u))),
            ("b_u is added at the end: it does not go through the adapter",
             composed(bias=lambda M, b, W_u, b_d, b_u: M @ (b + b_u) + W_u @ b_d)),
            ("the shortcut is missing in the bias: b itself is added as well, so it is (I + W_u W_d) b",
             composed(bias=lambda M, b, W_u, b_d, b_u: M @ b - b + W_u @ b_d + b_u)),
            ("the adapter's output bias b_u is missing", composed(bias=lambda M, b, W_u, b_d, b_u: M @ b + W_u @ b_d)),
            ("the layer's bias b is missing", composed(bias=lambda M, b, W_u, b_d, b_u: W_u @ b_d + b_u)),
            ("the shortcut is missing in the matrix, and right in the bias", lambda W, b, W_d, b_d, W_u, b_u: (
                W_u @ W_d @ W, reference_linear(W, b, W_d, b_d, W_u, b_u)[1]))),
        symptoms=(("return the weight first, then the bias", lambda got, expected, args: np.ndim(got) != np.ndim(expected)),),
        tolerance=1e-9,
        hints=("Put h = W x + b into the adapter and sort the terms: which have an x, and which do not?",
               "W (d, k), W_u W_d (d, d), b (d,), W_u b_d (d,). The results are (d, k) and (d,).",
               "M = np.eye(d) + W_u @ W_d. The matrix is M @ W. The bias is M @ b, plus what b_d and b_u give without "
               "any x.")),
)
