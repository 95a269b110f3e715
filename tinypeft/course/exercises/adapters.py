"""Lesson 04: the bottleneck adapter, its gradients, and a parallel adapter as part of the MLP."""
from functools import partial

import numpy as np

from ...engine import functional as F
from ...engine.tensor import Tensor
from ..exercise import Exercise
from ..slips import slip, slips, which

__all__ = ["EXERCISES"]


# -- adapters.forward ------------------------------------------------------------------------------
def forward(h, W_d, b_d, W_u, b_u):
    z = F.linear(h, W_d, b_d)                                     # (…, m)
    if slip("the biases are missing"): z, b_u = F.linear(h, W_d), None
    if slip("b_d is missing"): z = F.linear(h, W_d)
    if slip("b_u is missing"): b_u = None
    if slip("the h that goes through the detour has left the graph: use h itself, not h.data"):
        z = F.linear(Tensor(h.data), W_d, b_d)
    y = F.gelu(z)
    if slip("the activation is missing; without it the two matrices amount to one"): y = z
    if slip("the activation stands between the two matrices, not before the first"):
        y = F.linear(F.gelu(h), W_d, b_d)
    if slip("b_d belongs to the way down, before the activation"):
        y = F.gelu(F.linear(h, W_d)) + b_d
    if slip("you used a tanh instead of a GELU"): y = z.tanh()
    if slip("you used a ReLU instead of a GELU"): y = z.relu()
    detour = F.linear(y, W_u, b_u)                                # (…, d)
    if slip("there is an activation on the way up: that is the survey's form, which neither "
            "the paper nor its code has"):
        detour = F.gelu(detour)
    if slip("the activation is on the way up instead of on the way down"):
        detour = F.gelu(F.linear(z, W_u, b_u))
    if slip("what the detour gives is added to h; you subtracted it"): detour = -detour
    if slip("the activation is on the way down alone, not on the sum with h"):
        return F.gelu(h + F.linear(z, W_u, b_u))
    if slip("the addition of h is missing: what the detour gives is added to its input"):
        return detour
    if slip("the h that you add has left the graph: add h itself, not h.data"): h = Tensor(h.data)
    return h + detour


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


# -- adapters.backward -----------------------------------------------------------------------------
def backward(h, W_d, W_u, dy):
    z = h @ W_d.T                                                 # (N, m)
    slope = z > 0
    match which("the slope is 1 where the input is positive, and 0 at 0 as well: ask z > 0", 2):
        case 1: slope = z >= 0
        case 2: slope = np.heaviside(z, 0.5)
    both = slip("dh lacks the shortcut, and besides, the slope of the ReLU is missing")
    if both or slip("the slope of the ReLU is missing: it is 0 where W_d h is not positive"):
        slope = np.ones_like(z)
    match which("the slope of the ReLU is 1 or 0; you multiplied by its input or its result", 2):
        case 1: slope = z
        case 2: slope = np.maximum(z, 0)
    if slip("the slope is 1 where the input is positive, and not where it is negative"):
        slope = z < 0
    if slip("the slope is that at W_d h, not at the gradient that comes back"):
        slope = dy @ W_u > 0
    dz = dy @ W_u * slope
    dh, dW_d, dW_u = dy + dz @ W_d, dz.T @ h, dy.T @ np.maximum(z, 0)
    if both or slip("dh lacks the shortcut: h itself is a part of y"): dh = dz @ W_d
    if slip("dh lacks the way through the detour"): dh = dy
    if slip("dh is the sum of both ways; you subtracted one"): dh = dy - dz @ W_d
    if slip("dW_u contains what the ReLU lets through, max(W_d h, 0), not W_d h"): dW_u = dy.T @ z
    if slip("dW_u contains what the ReLU lets through, max(W_d h, 0), not its slope"):
        dW_u = dy.T @ slope
    if slip("dW_u has the wrong sign"): dW_u = -dW_u
    if slip("the gradients of the weights are sums over the rows, not means"):
        dW_d, dW_u = dW_d / len(h), dW_u / len(h)
    if slip("dW_d and dW_u are exchanged: return (dh, dW_d, dW_u)"): return dh, dW_u, dW_d
    if slip("the gradients are in another order: return (dh, dW_d, dW_u)"): return dW_d, dW_u, dh
    return dh, dW_d, dW_u


def backward_cases(rng, down=1.0, up=1.0):
    N, d, m = rng.integers((3, 7, 4), (5, 9, 6)).tolist()
    h, W_d, W_u, dy = (rng.standard_normal(shape) for shape in ((N, d), (m, d), (d, m), (N, d)))
    return h, down * W_d, up * W_u, dy


def transposed(got, expected, args):
    return np.shape(got) == np.shape(expected)[::-1] != np.shape(expected)


def of_y(got, expected, args):
    return np.shape(got) != np.shape(expected)


# -- adapters.widen --------------------------------------------------------------------------------
def widen(W1, b1, W2, b2, W_down, b_down, W_up, b_up, s):
    up, bias = s * W_up, s * b_up
    if slip("s is missing"): up, bias = W_up, b_up
    if slip("s must come after the activation: f(s y) is not s f(y)"):
        W_down, b_down, up = s * W_down, s * b_down, W_up
    if slip("s must come after the activation: f(s y) is not s f(y); and "
            "the bias b_up is scaled too"):
        W_down, b_down, up, bias = s * W_down, s * b_down, W_up, b_up
    if slip("s must multiply the adapter's output bias as well"): bias = b_up
    if slip("s must multiply W_up as well, not b_up alone"): up = W_up
    match which("s stands at W_down, before the activation: it belongs "
                "behind it, at W_up and b_up", 4):
        case 1: W_down, up, bias = s * W_down, W_up, b_up
        case 2: W_down, up = s * W_down, W_up
        case 3: W_down, bias = s * W_down, b_up
        case 4: W_down = s * W_down
    if slip("the adapter's output bias b_up is missing"): bias = 0
    if slip("b_down stands before the activation: s belongs behind it"): b_down = s * b_down
    if slip("the adapter's inner bias b_down is missing"): b_down = 0 * b_down
    if slip("s multiplies what the adapter gives; you divided by it"): up, bias = W_up / s, b_up / s
    if slip("s belongs to the adapter alone: the MLP's W2 stays as it is"): W2 = s * W2
    if slip("s belongs to the adapter alone: the MLP's b2 stays as it is"): b2 = s * b2
    if slip("the MLP's output bias b2 is missing: add s b_up to it"): b2 = 0
    if slip("s is applied twice, on the way down and on the way up"):
        W_down, b_down = s * W_down, s * b_down
    if slip("the adapter's units come after the MLP's"):
        W1, W_down, b1, b_down, W2, up = W_down, W1, b_down, b1, up, W2
    return (np.concatenate([W1, W_down]), np.concatenate([b1, b_down]),
            np.concatenate([W2, up], axis=1), b2 + bias)


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


# -- adapters.bug ----------------------------------------------------------------------------------
def needed(before, after):
    if slip("these are the adapters alone: the layer norms were trained as well, and are in the "
            "base under the same name"):
        return [name for name in after if name not in before]
    if slip("the adapters are missing: they are not in the base at all"):
        return [name for name in before if differ(after[name], before[name])]
    if slip("this is the whole model: what training left as it was is in the base already"):
        return list(after)
    if slip("you chose by the word “norm”: choose by what has changed, since norms may be frozen"):
        return [name for name in after if name not in before or "norm" in name]
    if slip("biases are trained, too"):
        after = {name: a for name, a in after.items() if name not in before or "weight" in name}
    return [name for name, a in after.items() if name not in before or differ(a, before[name])]


def differ(a, b):
    match which("a tolerance, as np.allclose has one, overlooks a small step: what "
                "has moved at all is needed", 2):
        case 1: return not np.allclose(a, b)
        case 2: return not np.allclose(a, b, rtol=1e-4, atol=1e-4)
    if slip("one number that has moved is enough: ask with .any(), not with .all()"):
        return (a != b).all()
    match which("two arrays with the same sum, or the same mean, length or largest number, "
                "may differ: compare number by number", 6):
        case 1: return np.sum(a) != np.sum(b)
        case 2: return np.mean(a) != np.mean(b)
        case 3: return (a - b).sum() != 0
        case 4: return np.linalg.norm(a) != np.linalg.norm(b)
        case 5: return np.max(a) != np.max(b)
        case 6: return np.min(a) != np.min(b)
    if slip("you compared the first numbers only: any number may have moved"):
        return a.flat[0] != b.flat[0]
    return not np.array_equal(a, b)


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


# -- adapters.linear -------------------------------------------------------------------------------
def linear(W, b, W_d, b_d, W_u, b_u):
    M = np.eye(len(W)) + W_u @ W_d                                # (d, d)
    if slip("the shortcut is missing: h itself is added, so the matrix is I + W_u W_d"):
        M = W_u @ W_d
    if slip("the shortcut adds the identity np.eye(d), ones on the "
            "diagonal alone, not the number 1"):
        M = 1 + W_u @ W_d
    if slip("W_d acts first and W_u on what it gives: W_u W_d, not its transpose"):
        M = np.eye(len(W)) + W_d.T @ W_u.T
    weight, bias = M @ W, M @ b + W_u @ b_d + b_u
    if slip("the bias b goes through the adapter as well: (I + W_u W_d) b"):
        bias = b + W_u @ b_d + b_u
    if slip("b_d comes before the way up, so it is multiplied by W_u"): bias = M @ b + b_u
    if slip("W goes through the adapter as well: (I + W_u W_d) W"): weight = W
    if slip("the biases of the adapter are added behind W_u W_d: they do not go through it again"):
        bias = M @ (b + W_u @ b_d + b_u)
    if slip("b_u is added at the end: it does not go through the adapter"):
        bias = M @ (b + b_u) + W_u @ b_d
    if slip("the shortcut is missing in the bias: b itself is added as well, "
            "so it is (I + W_u W_d) b"):
        bias = bias - b
    if slip("the adapter's output bias b_u is missing"): bias = M @ b + W_u @ b_d
    if slip("the layer's bias b is missing"): bias = W_u @ b_d + b_u
    if slip("the shortcut is missing in the matrix, and right in the bias"): weight = W_u @ W_d @ W
    return weight, bias


def linear_cases(rng):
    d, k, m = rng.integers((5, 8, 2), (8, 11, 4)).tolist()
    shapes = (d, k), d, (m, d), m, (d, m), d
    return tuple(map(rng.standard_normal, shapes))


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
        reference=forward, cases=forward_cases,
        gradient=("h", "W_d", "b_d", "W_u", "b_u"),
        special=(
            ("W_u and b_u are 0: the adapter is the identity", partial(forward_cases, up=0.0)),),
        mistakes=slips(forward),
        symptoms=(
            ("these are the m numbers of the middle: map them up, and add h", is_middle),),
        hints=("How many activations has an adapter, and what is added at the end?",
               "F.linear(h, W_d, b_d) is (…, m). F.linear of that with W_u "
               "and b_u is (…, d), like h.",
               "y = F.gelu(F.linear(h, W_d, b_d)); then h + F.linear(y, W_u, b_u).")),
    Exercise(
        name="adapters.backward", title="Which start can learn?", stars=3,
        kind="gradient",
        reference=backward, cases=backward_cases,
        special=(
            ("W_u = 0: dh is dy, and dW_d is zero", partial(backward_cases, up=0.0)),
            ("W_d = 0: the ReLU's slope at 0 is 0, so dh is dy, and both others are zero",
             partial(backward_cases, down=0.0))),
        mistakes=slips(backward),
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
        reference=widen, cases=widen_cases,
        invariants=(
            ("the wider MLP computes MLP + s · adapter, here with f = tanh", same_function),),
        mistakes=slips(widen),
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
        reference=needed, cases=file_cases,
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
        mistakes=slips(needed, differ),
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
        reference=linear, cases=linear_cases,
        invariants=(
            ("one layer computes what the layer and the adapter compute", same_layers),),
        mistakes=slips(linear),
        symptoms=(
            ("return the weight first, then the bias", other_ndim),),
        tolerance=1e-9,
        hints=("Put h = W x + b into the adapter and sort the terms: which "
               "have an x, and which do not?",
               "W (d, k), W_u W_d (d, d), b (d,), W_u b_d (d,). The results are (d, k) and (d,).",
               "M = np.eye(d) + W_u @ W_d. The matrix is M @ W. The bias is M @ b, plus what "
               "b_d and b_u give without any x.")),
)
