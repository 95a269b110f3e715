"""Lesson 04: the bottleneck adapter, its gradients, and a parallel adapter as part of the MLP."""
import operator
from functools import partial

import numpy as np

from ...engine import functional as F
from ...engine.tensor import Tensor
from ..exercise import Exercise, several

__all__ = ["EXERCISES"]


# -- the adapter ---------------------------------------------------------------------------------
def reference_forward(h, W_d, b_d, W_u, b_u):
    return h + F.linear(F.gelu(F.linear(h, W_d, b_d)), W_u, b_u)


def same(h):
    return h


def cut(h):
    """Take h out of the graph."""
    return Tensor(h.data)


def adapter(h, W_d, b_d, W_u, b_u, before=same, inner=F.gelu, outer=same, shortcut=same,
            after=same):
    """Compute the adapter, with other functions at five places for the mistakes."""
    y = inner(F.linear(before(h), W_d, b_d))
    return after(shortcut(h) + outer(F.linear(y, W_u, b_u)))


def late_bias(h, W_d, b_d, W_u, b_u):
    return adapter(h, W_d, None, W_u, b_u, inner=lambda y: F.gelu(y) + b_d)


def is_middle(got, expected, args):
    m = len(args[1].data)
    return np.shape(got)[-1] == m != np.shape(expected)[-1]


def forward_cases(rng, up=1.0):
    d = int(rng.integers(5, 9))
    m = int(rng.integers(2, 4))
    def draw(*shape):
        return Tensor(rng.standard_normal(shape).astype(np.float32))
    h, W_d, b_d = draw(2, 3, d), draw(m, d), draw(m)
    return h, W_d, b_d, draw(d, m) * up, draw(d) * up


# -- the gradients -------------------------------------------------------------------------------
def reference_backward(h, W_d, W_u, dy):
    return backward(h, W_d, W_u, dy)


def positive(z):
    return z > 0


def not_negative(z):
    return z >= 0


def half_at_zero(z):
    return np.heaviside(z, 0.5)


def backward(h, W_d, W_u, dy, slope=positive, bend=lambda z: np.maximum(z, 0), shortcut=1, detour=1,
             up=1, divisor=1):
    """Derive an adapter with a ReLU. The options are its parts, for the mistakes."""
    z = h @ W_d.T
    da = dy @ W_u
    dz = da * slope(z)
    return (shortcut * dy + detour * dz @ W_d, dz.T @ h / divisor,
            up * dy.T @ bend(z) / divisor)


def backward_cases(rng, down=1.0, up=1.0):
    N, d, m = rng.integers((3, 7, 4), (5, 9, 6)).tolist()
    h, W_d, W_u, dy = (rng.standard_normal(shape) for shape in ((N, d), (m, d), (d, m), (N, d)))
    return h, down * W_d, up * W_u, dy


def by_rows(h, W_d, W_u, dy):
    return backward(h, W_d, W_u, dy, divisor=len(h))


def of_result(h, W_d, W_u, dy):
    """Take the slope at what flows back, and not at what went in."""
    return backward(h, W_d, W_u, dy, slope=lambda z: dy @ W_u > 0)


def in_order(*order):
    return lambda *args: tuple(reference_backward(*args)[i] for i in order)


def transposed(got, expected, args):
    return np.shape(got) == np.shape(expected)[::-1] != np.shape(expected)


def of_y(got, expected, args):
    return np.shape(got) != np.shape(expected)


# -- a wider MLP ---------------------------------------------------------------------------------
def never(s):
    return 0


def once(s):
    return 1


def scaled(s):
    return s


def inverse(s):
    return 1 / s


def widen(W1, b1, W2, b2, W_down, b_down, W_up, b_up, s, down=once, inner=None, up=scaled,
          bias=scaled, of_W2=once, of_b2=once):
    """Make the wider MLP. The options are the factors of W_down, b_down, W_up, b_up, W2 and b2.

    Without `inner`, b_down has the factor of W_down. Other factors make the mistakes.
    """
    return (np.concatenate([W1, down(s) * W_down]),
            np.concatenate([b1, (inner or down)(s) * b_down]),
            np.concatenate([of_W2(s) * W2, up(s) * W_up], axis=1),
            of_b2(s) * b2 + bias(s) * b_up)


def reference_widen(W1, b1, W2, b2, W_down, b_down, W_up, b_up, s):
    return widen(W1, b1, W2, b2, W_down, b_down, W_up, b_up, s)


def adapter_first(W1, b1, W2, b2, W_down, b_down, W_up, b_up, s):
    W2 = np.concatenate([s * W_up, W2], axis=1)
    return np.concatenate([W_down, W1]), np.concatenate([b_down, b1]), W2, b2 + s * b_up


def widen_cases(rng):
    d, k, m = rng.integers((3, 6, 2), (6, 10, 5)).tolist()
    base = (k, d), k, (d, k), d
    added = (m, d), m, (d, m), d
    return *map(rng.standard_normal, base + added), float(rng.integers(2, 6))


def mlp(x, W1, b1, W2, b2):
    return np.tanh(x @ W1.T + b1) @ W2.T + b2


def same_function(fn, rng):
    *arrays, s = widen_cases(rng)
    wider = fn(*arrays, s)
    x = rng.standard_normal((4, arrays[0].shape[1]))
    both = mlp(x, *arrays[:4]) + s * mlp(x, *arrays[4:])
    return np.allclose(mlp(x, *wider), both)


def joins_biases(got, expected, args):
    d = len(args[3])
    return np.shape(got) == (2 * d,) and np.shape(expected) == (d,)


def other_ndim(got, expected, args):
    return np.ndim(got) != np.ndim(expected)


def one_bias(got, expected, args):
    return np.shape(got) == np.shape(args[1]) != np.shape(expected)


# -- what a task's file needs --------------------------------------------------------------------
def reference_bug(before, after):
    return moved(np.array_equal)(before, after)


def chosen(which):
    return lambda before, after: [name for name, a in after.items() if which(name, a, before)]


def moved(same):
    """List the names of new arrays, and of those that are not the `same` as before."""
    return chosen(lambda name, a, before: name not in before or not same(a, before[name]))


def alike(measure):
    """Take two arrays for the same if one number of them is."""
    return moved(lambda a, b: measure(a) == measure(b))


def moved_in_base(name, a, before):
    return name in before and not np.array_equal(a, before[name])


def moved_weight(name, a, before):
    moves = name.endswith("weight") and not np.array_equal(a, before[name])
    return name not in before or moves


def file_cases(rng, norms=None, size=None):
    """Draw a base and the model after training, with norms that moved or stayed."""
    d, m, L = rng.integers((3, 2, 2), (6, 4, 4)).tolist()
    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)
    size = size or float(rng.choice([0.1, 1e-6]))
    norms = (rng.random() < 0.7) if norms is None else norms
    before, after = {}, {}

    def add(name, a):
        before[name] = a
        moves = norms and "norm" in name
        after[name] = a + size * draw(*a.shape) if moves else a.copy()
    for i in range(L):
        block, down = f"blocks.{i}.", f"blocks.{i}.mlp.down."
        add(block + "norm2.weight", draw(d))
        add(block + "norm2.bias", np.zeros(d, np.float32))
        add(down + "weight", draw(d, 4 * d))
        add(down + "bias", np.zeros(d, np.float32))
        after[down + "W_d"] = draw(m, d)
        after[down + "b_d"] = draw(m)
        after[down + "W_u"] = draw(d, m)
        after[down + "b_u"] = draw(d)
    return before, after


def little_cases(rng, steps):
    """Let the norms start at ones and zeros, and move few of their numbers.

    steps: position in an array → a function that moves the number there.
    """
    before, after = file_cases(rng, norms=False)
    for name in before:
        if "norm" in name:
            before[name] = np.full_like(before[name], name.endswith("weight"))
            after[name] = before[name].copy()
            for at, step in steps.items():
                after[name][at] = step(after[name][at])
    return before, after


def least(x):
    """Return the next larger float32."""
    return np.nextafter(x, np.float32(np.inf))


def not_a_list(got, expected, args):
    return not isinstance(got, (list, tuple))


# -- an adapter without its nonlinearity ---------------------------------------------------------
def reference_linear(W, b, W_d, b_d, W_u, b_u):
    return compose(W, b, W_d, b_d, W_u, b_u)


def linear_cases(rng):
    d, k, m = rng.integers((5, 8, 2), (8, 11, 4)).tolist()
    shapes = (d, k), d, (m, d), m, (d, m), d
    return tuple(map(rng.standard_normal, shapes))


def with_shortcut(W_d, W_u):
    return np.eye(len(W_u)) + W_u @ W_d


def compose(W, b, W_d, b_d, W_u, b_u, matrix=with_shortcut,
            bias=lambda M, b, u, b_u: M @ b + u + b_u):
    """Make one layer of both. matrix, bias: for the mistakes. u is W_u b_d."""
    M = matrix(W_d, W_u)
    return M @ W, bias(M, b, W_u @ b_d, b_u)


def base_weight(W, *others):
    return W, reference_linear(W, *others)[1]


def weight_without_shortcut(W, b, W_d, b_d, W_u, b_u):
    return W_u @ W_d @ W, reference_linear(W, b, W_d, b_d, W_u, b_u)[1]


def transposed_with_shortcut(W_d, W_u):
    return np.eye(len(W_u)) + W_d.T @ W_u.T


def same_layers(fn, rng):
    W, b, W_d, b_d, W_u, b_u = args = linear_cases(rng)
    V, c = fn(*args)
    x = rng.standard_normal((4, W.shape[1]))
    h = x @ W.T + b
    y = h @ W_d.T + b_d
    return np.allclose(x @ V.T + c, h + y @ W_u.T + b_u)


EXERCISES = (
    Exercise(
        name="adapters.forward", title="The forward pass of an adapter", stars=1,
        kind="design",
        reference=reference_forward, cases=forward_cases,
        gradient=("h", "W_d", "b_d", "W_u", "b_u"),
        special=(
            ("W_u and b_u are 0: the adapter is the identity", partial(forward_cases, up=0.0)),),
        mistakes=(
            ("the addition of h is missing: what the detour gives is added to its input",
             partial(adapter, shortcut=lambda h: 0)),
            ("there is an activation on the way up: that is the survey's form, which neither "
             "the paper nor its code has",
             partial(adapter, outer=F.gelu)),
            ("the activation is missing; without it the two matrices amount to one",
             partial(adapter, inner=same)),
            ("the activation is on the way up instead of on the way down",
             partial(adapter, inner=same, outer=F.gelu)),
            ("the activation stands between the two matrices, not before the first",
             partial(adapter, before=F.gelu, inner=same)),
            ("b_d belongs to the way down, before the activation", late_bias),
            ("the activation is on the way down alone, not on the sum with h",
             partial(adapter, inner=same, after=F.gelu)),
            ("what the detour gives is added to h; you subtracted it",
             partial(adapter, outer=operator.neg)),
            ("you used a tanh instead of a GELU", partial(adapter, inner=Tensor.tanh)),
            ("the biases are missing",
             lambda h, W_d, b_d, W_u, b_u: adapter(h, W_d, None, W_u, None)),
            ("b_d is missing", lambda h, W_d, b_d, W_u, b_u: adapter(h, W_d, None, W_u, b_u)),
            ("b_u is missing", lambda h, W_d, b_d, W_u, b_u: adapter(h, W_d, b_d, W_u, None)),
            ("you used a ReLU instead of a GELU", partial(adapter, inner=Tensor.relu)),
            ("the h that you add has left the graph: add h itself, not h.data",
             partial(adapter, shortcut=cut)),
            ("the h that goes through the detour has left the graph: use h itself, not h.data",
             partial(adapter, before=cut))),
        symptoms=(
            ("these are the m numbers of the middle: map them up, and add h", is_middle),),
        hints=("How many activations has an adapter, and what is added at the end?",
               "F.linear(h, W_d, b_d) is (…, m). F.linear of that with W_u "
               "and b_u is (…, d), like h.",
               "y = F.gelu(F.linear(h, W_d, b_d)); then h + F.linear(y, W_u, b_u).")),
    Exercise(
        name="adapters.backward", title="Which start can learn?", stars=3,
        kind="gradient",
        reference=reference_backward, cases=backward_cases,
        special=(
            ("W_u = 0: dh is dy, and dW_d is zero", partial(backward_cases, up=0.0)),
            ("W_d = 0: the ReLU's slope at 0 is 0, so dh is dy, and both others are zero",
             partial(backward_cases, down=0.0))),
        mistakes=(
            ("dh lacks the shortcut: h itself is a part of y", partial(backward, shortcut=0)),
            ("dh lacks the way through the detour", partial(backward, detour=0)),
            ("dh is the sum of both ways; you subtracted one", partial(backward, detour=-1)),
            *several("the slope is 1 where the input is positive, and 0 at 0 as well: ask z > 0",
                     partial(backward, slope=not_negative),
                     partial(backward, slope=half_at_zero)),
            ("dh lacks the shortcut, and besides, the slope of the ReLU is missing",
             partial(backward, shortcut=0, slope=np.ones_like)),
            ("the slope of the ReLU is missing: it is 0 where W_d h is not positive",
             partial(backward, slope=np.ones_like)),
            ("the slope of the ReLU is 1 or 0; you multiplied by its input or its result",
             partial(backward, slope=lambda z: z)),
            ("the slope of the ReLU is 1 or 0; you multiplied by its input or its result",
             partial(backward, slope=lambda z: np.maximum(z, 0))),
            ("the slope is 1 where the input is positive, and not where it is negative",
             partial(backward, slope=lambda z: z < 0)),
            ("the slope is that at W_d h, not at the gradient that comes back", of_result),
            ("dW_u contains what the ReLU lets through, max(W_d h, 0), not W_d h",
             partial(backward, bend=lambda z: z)),
            ("dW_u contains what the ReLU lets through, max(W_d h, 0), not its slope",
             partial(backward, bend=positive)),
            ("dW_u has the wrong sign", partial(backward, up=-1)),
            ("the gradients of the weights are sums over the rows, not means", by_rows),
            ("dW_d and dW_u are exchanged: return (dh, dW_d, dW_u)", in_order(0, 2, 1)),
            ("the gradients are in another order: return (dh, dW_d, dW_u)", in_order(1, 2, 0))),
        symptoms=(
            ("a gradient has the shape of its array: transpose it", transposed),
            ("a gradient has the shape of its array: dW_d that of W_d, dW_u that of W_u", of_y)),
        tolerance=1e-7,
        hints=("In how many ways does h reach y, and through which of them does W_d?",
               "z = h W_dᵀ is (N, m), and so is dy W_u. dW_d is (m, d), dW_u is (d, m), dh is "
               "(N, d).",
               "z = h @ W_d.T; dz = (dy @ W_u) * (z > 0). dW_u = dy.T @ np.maximum(z, 0), "
               "dW_d = dz.T @ h, and dh is dy plus dz @ W_d.")),
    Exercise(
        name="adapters.widen", title="A parallel adapter as a wider MLP", stars=3,
        kind="design",
        reference=reference_widen, cases=widen_cases,
        invariants=(
            ("the wider MLP computes MLP + s · adapter, here with f = tanh", same_function),),
        mistakes=(
            ("s is missing", partial(widen, up=once, bias=once)),
            ("s must come after the activation: f(s y) is not s f(y)",
             partial(widen, down=scaled, up=once)),
            ("s must come after the activation: f(s y) is not s f(y); and "
             "the bias b_up is scaled too",
             partial(widen, down=scaled, up=once, bias=once)),
            ("s must multiply the adapter's output bias as well", partial(widen, bias=once)),
            ("s must multiply W_up as well, not b_up alone", partial(widen, up=once)),
            *several("s stands at W_down, before the activation: it belongs "
                     "behind it, at W_up and b_up",
                     partial(widen, down=scaled, inner=once, up=once, bias=once),
                     partial(widen, down=scaled, inner=once, up=once),
                     partial(widen, down=scaled, inner=once, bias=once),
                     partial(widen, down=scaled, inner=once)),
            ("the adapter's output bias b_up is missing", partial(widen, bias=never)),
            ("b_down stands before the activation: s belongs behind it",
             partial(widen, inner=scaled)),
            ("the adapter's inner bias b_down is missing", partial(widen, inner=never)),
            ("s multiplies what the adapter gives; you divided by it",
             partial(widen, up=inverse, bias=inverse)),
            ("s belongs to the adapter alone: the MLP's W2 stays as it is",
             partial(widen, of_W2=scaled)),
            ("s belongs to the adapter alone: the MLP's b2 stays as it is",
             partial(widen, of_b2=scaled)),
            ("the MLP's output bias b2 is missing: add s b_up to it", partial(widen, of_b2=never)),
            ("s is applied twice, on the way down and on the way up", partial(widen, down=scaled)),
            ("the adapter's units come after the MLP's", adapter_first)),
        symptoms=(
            ("b2 and b_up act on the same d outputs: add them, do not join them", joins_biases),
            ("the hidden units of the adapter need their biases: join b1 and b_down", one_bias),
            ("return the four arrays in the order (W1, b1, W2, b2)", other_ndim)),
        errors=(
            ("exactly, but along dimension 1",
             "you joined W2 (d, k) and W_up (d, m) along axis 0: a hidden unit is a column of "
             "them, so join along axis 1"),
            ("exactly, but along dimension 0",
             "you joined W1 (k, d) and W_down (m, d) along axis 1: a hidden unit is a row of "
             "them, so join along axis 0")),
        tolerance=1e-9,
        hints=("A hidden unit is a row of W1 and a column of W2. Where do the adapter's units go? "
               "On which side of the activation may s stand?",
               "W1 (k, d) and W_down (m, d) become (k + m, d). W2 (d, k) and W_up (d, m) become "
               "(d, k + m). b1 and b_down become (k + m,). b2 stays (d,).",
               "Concatenate W1 and W_down over rows, b1 and b_down, and W2 and s * W_up over "
               "columns. The new b2 is b2 + s * b_up.")),
    Exercise(
        name="adapters.bug", title="Find the bug: a file that lacks something", stars=2,
        kind="fault",
        reference=reference_bug, cases=file_cases,
        special=(
            ("only the adapters were trained", partial(file_cases, norms=False)),
            ("the norms were trained, too", partial(file_cases, norms=True, size=0.1)),
            ("the norms were trained, too, and moved by a millionth",
             partial(file_cases, norms=True, size=1e-6)),
            ("one number of each norm moved, by the smallest step that float32 has",
             partial(little_cases, steps={-1: least})),
            ("the last number of each norm moved",
             partial(little_cases, steps={-1: lambda x: x - 0.5})),
            ("two numbers of each norm moved, one up and one down by as much",
             partial(little_cases, steps={0: lambda x: x + 0.5, 1: lambda x: x - 0.5}))),
        mistakes=(
            ("these are the adapters alone: the layer norms were trained as well, and are in the "
             "base under the same name",
             chosen(lambda name, a, before: name not in before)),
            ("the adapters are missing: they are not in the base at all", chosen(moved_in_base)),
            ("this is the whole model: what training left as it was is in the base already",
             chosen(lambda name, a, before: True)),
            *several("a tolerance, as np.allclose has one, overlooks a small step: what "
                     "has moved at all is needed",
                     moved(np.allclose),
                     moved(partial(np.allclose, rtol=1e-4, atol=1e-4))),
            ("one number that has moved is enough: ask with .any(), not with .all()",
             moved(lambda a, b: not (a != b).all())),
            *several("two arrays with the same sum, or the same mean, length or largest number, "
                     "may differ: compare number by number",
                     alike(np.sum),
                     alike(np.mean),
                     moved(lambda a, b: (a - b).sum() == 0),
                     alike(np.linalg.norm),
                     alike(np.max),
                     alike(np.min)),
            ("you compared the first numbers only: any number may have moved",
             moved(lambda a, b: a.flat[0] == b.flat[0])),
            ("you chose by the word “norm”: choose by what has changed, since norms may be frozen",
             chosen(lambda name, a, before: name not in before or "norm" in name)),
            ("biases are trained, too", chosen(moved_weight))),
        symptoms=(
            ("return a list of the names, in the order of `after`", not_a_list),
            ("these are the right names, in another order: take them in the order of `after`",
             lambda got, expected, args: sorted(got) == sorted(expected))),
        errors=(
            ("truth value of an array",
             "a != b is an array with an answer for each number: .any() makes one answer of them"),
            ("KeyError",
             "an array of the adapters is not in `before`: ask first whether it is there")),
        tolerance=0,
        hints=("Which arrays of the trained model can you not get from the "
               "base? There are two kinds.",
               "`name in before` tells whether the base has an array. np.array_equal(a, b) is "
               "True or False for two arrays.",
               "[name for name, a in after.items() if name not in before or differ(a, "
               "before[name])]. Write the question whether two arrays differ in place of differ.")),
    Exercise(
        name="adapters.linear", title="A layer and an adapter in one", stars=2,
        kind="design",
        reference=reference_linear, cases=linear_cases,
        invariants=(
            ("one layer computes what the layer and the adapter compute", same_layers),),
        mistakes=(
            ("the shortcut is missing: h itself is added, so the matrix is I + W_u W_d",
             partial(compose, matrix=lambda W_d, W_u: W_u @ W_d)),
            ("the bias b goes through the adapter as well: (I + W_u W_d) b",
             partial(compose, bias=lambda M, b, u, b_u: b + u + b_u)),
            ("b_d comes before the way up, so it is multiplied by W_u",
             partial(compose, bias=lambda M, b, u, b_u: M @ b + b_u)),
            ("the shortcut adds the identity np.eye(d), ones on the "
             "diagonal alone, not the number 1",
             partial(compose, matrix=lambda W_d, W_u: 1 + W_u @ W_d)),
            ("W_d acts first and W_u on what it gives: W_u W_d, not its transpose",
             partial(compose, matrix=transposed_with_shortcut)),
            ("W goes through the adapter as well: (I + W_u W_d) W", base_weight),
            ("the biases of the adapter are added behind W_u W_d: they do not go through it again",
             partial(compose, bias=lambda M, b, u, b_u: M @ (b + u + b_u))),
            ("b_u is added at the end: it does not go through the adapter",
             partial(compose, bias=lambda M, b, u, b_u: M @ (b + b_u) + u)),
            ("the shortcut is missing in the bias: b itself is added as well, "
             "so it is (I + W_u W_d) b",
             partial(compose, bias=lambda M, b, u, b_u: M @ b - b + u + b_u)),
            ("the adapter's output bias b_u is missing",
             partial(compose, bias=lambda M, b, u, b_u: M @ b + u)),
            ("the layer's bias b is missing", partial(compose, bias=lambda M, b, u, b_u: u + b_u)),
            ("the shortcut is missing in the matrix, and right in the bias",
             weight_without_shortcut)),
        symptoms=(
            ("return the weight first, then the bias", other_ndim),),
        tolerance=1e-9,
        hints=("Put h = W x + b into the adapter and sort the terms: which "
               "have an x, and which do not?",
               "W (d, k), W_u W_d (d, d), b (d,), W_u b_d (d,). The results are (d, k) and (d,).",
               "M = np.eye(d) + W_u @ W_d. The matrix is M @ W. The bias is M @ b, plus what "
               "b_d and b_u give without any x.")),
)
