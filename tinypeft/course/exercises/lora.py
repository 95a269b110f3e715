"""Lesson 07: LoRA put on a model, forward and backward, compared, and merged again and again."""
import operator
from functools import partial

import numpy as np

from ...engine import functional as F
from ...engine.tensor import Tensor
from ..exercise import Exercise, several

__all__ = ["EXERCISES"]


# -- the scale -------------------------------------------------------------------------------------
def _usual(alpha, r):
    return alpha / r


def _alpha(alpha, r):
    return alpha


def _one(alpha, r):
    return 1.0


def _inverse(alpha, r):
    return r / alpha


def _stabilised(alpha, r):
    return alpha / r ** 0.5


def _twice(alpha, r):
    return (alpha / r) ** 2


def _without_alpha(alpha, r):
    return 1 / r


def _cut_off(alpha, r):
    return alpha // r


def _negative(alpha, r):
    return -alpha / r


def _rows_of_A(A, B):
    return A.shape[0]


def _columns_of_A(A, B):
    return A.shape[1]


def _rows_of_B(A, B):
    return B.shape[0]


# -- lora.forward ----------------------------------------------------------------------------------
def forward(x, W0, A, B, alpha):
    low = F.linear(F.linear(x, A), B)
    return F.linear(x, W0) + low * (alpha / A.shape[0])


def _arrays(rng, dtype=np.float64):
    """Draw x, W0, A, B with r, d_in, d_out and rows all different, and α."""
    r, d_in, d_out = rng.integers(3, 5), rng.integers(6, 9), rng.integers(9, 12)
    def draw(*shape):
        return rng.standard_normal(shape).astype(dtype)
    x, W0 = draw(5, d_in), draw(d_out, d_in)
    A, B = draw(r, d_in), draw(d_out, r)
    return x, W0, A, B, float(rng.uniform(5, 20))


def _tensors(rng, zero=False):
    x, W0, A, B, alpha = _arrays(rng, np.float32)
    if rng.integers(2):
        x = np.stack([x, 2 * x[::-1] + 1])               # (B, T, d_in) in place of (N, d_in)
    return Tensor(x), Tensor(W0), Tensor(A), Tensor(B * (not zero)), alpha


def _vast(rng):
    """Draw so small an x, and so large A and B, that B A is infinite, and B (A x) is not."""
    x, W0, A, B, alpha = _tensors(rng)
    return x * 1e-36, W0 * 1e37, A * 1e18, B * 1e22, alpha


def _of_the_page(rng):
    """Return the numbers of the lesson's example, as arrays."""
    W0 = np.float32([[1, 0, 2], [0, 1, 0]])
    A, B = np.float32([[1, -1, 0]]), np.float32([[0.5], [1]])
    return np.float32([1, 2, 3]), W0, A, B, 2.0


def _tensors_of_the_page(rng):
    *arrays, alpha = _of_the_page(rng)
    return *map(Tensor, arrays), alpha


def _low(x, W0, A, B, alpha, scale=_usual, rank=_rows_of_A, bend=lambda y: y):
    return F.linear(bend(F.linear(x, A)), B) * scale(alpha, rank(A, B))


def _scaled(scale=_usual, **options):
    """Make the forward pass with another scale, or with another option of `_low`."""
    def wrong(x, W0, *low):
        return F.linear(x, W0) + _low(x, W0, *low, scale=scale, **options)
    return wrong


def _scales_both(x, W0, A, B, alpha):
    return forward(x, W0, A, B, A.shape[0]) * (alpha / A.shape[0])


# -- lora.backward ---------------------------------------------------------------------------------
def backward(x, W0, A, B, alpha, dh):
    """Return dA, dB and dx, by the engine."""
    t = [Tensor(a, requires_grad=True) for a in (x, A, B)]
    forward(t[0], Tensor(W0), t[1], t[2], alpha).backward(dh)
    return t[1].grad, t[2].grad, t[0].grad


def _with_upstream(rng, zero=False):
    x, W0, A, B, alpha = _arrays(rng)
    dh = rng.standard_normal((len(x), len(W0)))
    return x, W0, A, B * (not zero), alpha, dh


def _factor(number):
    return lambda s: number


def _by_hand(x, W0, A, B, alpha, dh, scale=_usual, rank=_rows_of_A, dA=operator.pos,
             dB=operator.pos, base=lambda s: 1, low=operator.pos):
    """Return the gradients, with another scale s, or other factors of s in one of four terms."""
    s = scale(alpha, rank(A, B))
    dx = base(s) * dh @ W0 + low(s) * dh @ B @ A
    of_A, of_B = (dh @ B).T @ x, dh.T @ (x @ A.T)
    return dA(s) * of_A, dB(s) * of_B, dx


def _means(x, *others):
    dA, dB, dx = backward(x, *others)
    return dA / len(x), dB / len(x), dx


def _in_order(*order):
    def wrong(*args):
        gradients = backward(*args)
        return tuple(gradients[i] for i in order)
    return wrong


def _starts(fn, rng):
    dA, dB, _ = fn(*_with_upstream(rng, zero=True))
    return not np.any(dA) and np.any(dB)


def _transposed(got, expected, args):
    shape, right = np.shape(got), np.shape(expected)
    return shape == right[::-1] and shape != right


def _shape_of_another(got, expected, args):
    shapes = [np.shape(args[i]) for i in (0, 2, 3)]
    return np.shape(got) != np.shape(expected) and np.shape(got) in shapes


def _other_shape(got, expected, args):
    return np.shape(got) != np.shape(expected)


def _four_gradients(got, expected, args):
    return isinstance(got, (tuple, list)) and len(got) == 4


# -- lora.attach -----------------------------------------------------------------------------------
def attach(parameters, targets, r, seed):
    rng, arrays, trained = np.random.default_rng(seed), {}, {}
    for name, array in parameters.items():
        arrays[name], trained[name] = array, False
        layer, _, kind = name.rpartition(".")
        if kind == "weight" and layer.rpartition(".")[2] in targets:
            A, B = _fresh(rng, r, array)
            arrays[f"{layer}.A"], arrays[f"{layer}.B"] = A, B
            trained[f"{layer}.A"] = trained[f"{layer}.B"] = True
    return arrays, trained


def _fresh(rng, r, W):
    d_out, d_in = W.shape
    A = rng.standard_normal((r, d_in)) / d_in ** 0.5
    return A.astype(W.dtype), np.zeros((d_out, r), W.dtype)


def _model(rng, blocks=2, targets=("query", "value")):
    """Draw the parameters of a small model, with names that contain a target and are none."""
    d, r = rng.integers(4, 7), int(rng.integers(2, 4))
    shapes = {"token_embedding.weight": (9, d), "value_embedding.weight": (3, d)}
    for i in range(blocks):
        for layer in ("query", "key", "value", "query_norm"):
            n = () if layer == "query_norm" else (d + 1,)
            shapes[f"blocks.{i}.attention.{layer}.weight"] = (*n, d)
            shapes[f"blocks.{i}.attention.{layer}.bias"] = n or (d,)
        shapes[f"blocks.{i}.mlp.up.weight"] = (3 * d, d)
        shapes[f"blocks.{i}.mlp.up.bias"] = (3 * d,)
    drawn = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return drawn, targets, r, int(rng.integers(1000))


def _put_on(start=_fresh, kinds=("weight",), named=lambda layer, targets: _end_of(layer) in targets,
            frozen=lambda name: False, again=False):
    """Make `attach` with another start, other arrays or names that count, or not all frozen."""
    def wrong(parameters, targets, r, seed):
        rng, arrays, trained = np.random.default_rng(seed), {}, {}
        for name, array in parameters.items():
            arrays[name], trained[name] = array, frozen(name)
            layer, _, kind = name.rpartition(".")
            if kind in kinds and array.ndim == 2 and named(layer, targets):
                if again:
                    rng = np.random.default_rng(seed)
                arrays[f"{layer}.A"], arrays[f"{layer}.B"] = start(rng, r, array)
                trained[f"{layer}.A"] = trained[f"{layer}.B"] = True
        return arrays, trained
    return wrong


def _end_of(path):
    return path.rpartition(".")[2]


def _both_random(rng, r, W):
    A, _ = _fresh(rng, r, W)
    return A, (rng.standard_normal((len(W), r)) / r ** 0.5).astype(W.dtype)


def _both_zero(rng, r, W):
    return np.zeros((r, W.shape[1]), W.dtype), np.zeros((len(W), r), W.dtype)


def _exchanged_start(rng, r, W):
    B = rng.standard_normal((len(W), r)) / r ** 0.5
    return np.zeros((r, W.shape[1]), W.dtype), B.astype(W.dtype)


def _started(rng, r, W, divisor=lambda r, d_in: d_in ** 0.5, dtype=np.float32):
    A, B = rng.standard_normal((r, W.shape[1])), np.zeros((len(W), r))
    return (A / divisor(r, W.shape[1])).astype(dtype), B.astype(dtype)


def _by_targets(parameters, targets, r, seed):
    """Draw A for all layers of one target, then for those of the next."""
    arrays, trained = attach(parameters, targets, r, seed)
    rng = np.random.default_rng(seed)
    for target in targets:
        for name, array in parameters.items():
            layer = name.removesuffix(".weight")
            if name.endswith(f"{target}.weight") and f"{layer}.A" in arrays:
                arrays[f"{layer}.A"], _ = _fresh(rng, r, array)
    return arrays, trained


def _drawn_transposed(rng, r, W):
    A = rng.standard_normal((W.shape[1], r)).T / W.shape[1] ** 0.5
    return A.astype(W.dtype), np.zeros((len(W), r), W.dtype)


def _trained_alone(got, expected, args):
    """Does `trained` lack the names of frozen arrays?"""
    names = set(got[1])
    return names < set(expected[1]) and any(name.endswith(".A") for name in names)


def _only(part):
    """Train one of the two matrices alone."""
    def wrong(*args):
        arrays, trained = attach(*args)
        return arrays, {name: on and _end_of(name) == part for name, on in trained.items()}
    return wrong


def _not_zero(got, expected, args):
    return np.shape(got) == np.shape(expected) and np.any(got) and not np.any(expected)


def _turned(got, expected, args):
    return np.shape(got) == np.shape(expected)[::-1] != np.shape(expected)


def _arrays_of(results):
    """Return the names in the first of two dicts; none if the results are something else."""
    dicts = isinstance(results, (tuple, list)) and len(results) == 2
    return set(results[0]) if dicts and isinstance(results[0], dict) else set()


def _base_left_out(got, expected, args):
    return bool(_arrays_of(got) and args[0].keys() - _arrays_of(got))


def _too_many(got, expected, args):
    return bool(_arrays_of(got) - _arrays_of(expected))


# -- lora.alike ------------------------------------------------------------------------------------
def alike(A1, B1, alpha1, A2, B2, alpha2):
    first, second = alpha1 / len(A1) * B1 @ A1, alpha2 / len(A2) * B2 @ A2
    return bool(np.linalg.norm(first - second) <= 1e-3 * np.linalg.norm(first))


SAME = "turned", "alpha", "padded", "permuted"
OTHER = "noise", "double", "minus", "exchanged", "same A"


def _pair(rng, kind=None, size=1.0):
    """Draw two LoRAs, with the same change or with different ones."""
    _, _, A, B, alpha = _arrays(rng)
    A, B, kind = size * A, size * B, kind or str(rng.choice(SAME + OTHER))
    r, d_out = len(A), len(B)
    A2, B2, alpha2 = A, B, alpha
    if kind == "turned":
        G = np.eye(r) + 0.3 * rng.standard_normal((r, r))
        A2, B2 = np.linalg.solve(G, A), B @ G
    if kind == "alpha":
        A2, B2, alpha2 = 2 * A, B / 4, 2 * alpha
    if kind in ("padded", "longer"):
        more = size * rng.standard_normal((2, A.shape[1]))
        A2, B2 = np.concatenate([A, more]), np.concatenate([B, np.zeros((d_out, 2))], axis=1)
        alpha2 = alpha * (r + 2) / r if kind == "padded" else alpha
    if kind == "cancelled":                              # the first input is all but ignored
        a = A[:, 0]
        B = B - np.outer(B @ a, a) / (a @ a)
    if kind in ("permuted", "cancelled"):
        A2, B2 = -A[::-1], -B[:, ::-1]
    if kind == "noise":
        B2 = B * (1 + 0.03 * rng.standard_normal(B.shape))
    if kind == "near":
        B2 = 1.015 * B
    if kind == "double":
        alpha2 = 2 * alpha
    if kind == "minus":
        B2 = -B
    if kind == "exchanged":
        B2 = B[::-1]
    if kind == "same A":
        B2 = rng.standard_normal(B.shape)
        B2 *= np.linalg.norm(B @ A) / np.linalg.norm(B2 @ A)
    if kind == "zero":
        B2 = 0 * B
    if kind == "both zero":
        B, B2, A2 = 0 * B, 0 * B, 2 * A
    A, B, A2, B2 = (a.astype(np.float32) for a in (A, B, A2, B2))
    return A, B, alpha, A2, B2, alpha2


def _wide(rng):
    """The same change, of 128 inputs and outputs, by other factors, each rounded to float32."""
    A, B, G = (rng.standard_normal(shape) for shape in ((8, 128), (128, 8), (8, 8)))
    first, second = (A, B), (np.linalg.solve(G, A), B @ G)
    A, B, A2, B2 = (a.astype(np.float32) for a in (*first, *second))
    return A, B, 16.0, A2, B2, 16.0


def _changes(A1, B1, alpha1, A2, B2, alpha2, scale=_usual):
    return scale(alpha1, len(A1)) * B1 @ A1, scale(alpha2, len(A2)) * B2 @ A2


def _judged(same, **options):
    return lambda *loras: bool(same(*_changes(*loras, **options)))


def _near(first, second, limit=1e-3):
    return np.linalg.norm(first - second) <= limit * np.linalg.norm(first)


def _all_close(first, second, limit=1e-3):
    return np.allclose(first, second, limit)


def _near_values(first, second):
    return _near(*(np.linalg.svd(change)[1] for change in (first, second)))


def _near_norms(first, second, near=_near):
    return near(*(np.linalg.norm(change, keepdims=True) for change in (first, second)))


def _cosine(first, second):
    sizes = np.linalg.norm(first) * np.linalg.norm(second)
    return np.vdot(first, second) / sizes if sizes else np.nan


def _along(first, second):
    return np.vdot(first, second) >= 0.9999 * np.linalg.norm(first) * np.linalg.norm(second)


def _same_factors(A1, B1, alpha1, A2, B2, alpha2):
    return A1.shape == A2.shape and bool(_near(A1, A2) and _near(B1, B2))


def _rounding_refused(got, expected, args):
    """Is a False given of two LoRAs that differ by the order of their rows and by two signs, or of
    the wide ones?"""
    A1, _, _, A2, _, _ = args
    wide = A1.shape[1] == 128
    return expected and not got and (wide or np.array_equal(A2, -A1[::-1]))


def _per_cents_passed(got, expected, args):
    """Is a True given of two changes that differ by some per cent?"""
    first, second = _changes(*args)
    return got and not expected and _near(first, second, 0.1)


def _tiny_passed(got, expected, args):
    return got and not expected and max(abs(change).max() for change in _changes(*args)) < 1e-6


def _opposite_passed(got, expected, args):
    A1, B1, _, A2, B2, _ = args
    return got and not expected and np.array_equal(A1, A2) and np.array_equal(B1, -B2)


def _same_rows(A1, B1, alpha1, A2, B2, alpha2):
    spaces = [np.linalg.pinv(A) @ A for A in (A1, A2)]
    return bool(_near(*spaces))


# -- lora.swap -------------------------------------------------------------------------------------
def swap(W0, tasks):
    return [W0 + alpha / len(A) * B @ A for A, B, alpha in tasks]


def _served(rng, sizes=None):
    """Draw a weight and LoRAs of several tasks; the change of one or two of them is large."""
    r, d_in, d_out = rng.integers(2, 4), rng.integers(4, 6), rng.integers(6, 8)
    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)
    sizes = sizes or rng.permutation([1, 3000, 1, 1])
    tasks = [(draw(r, d_in), np.float32(size) * draw(d_out, r), float(rng.uniform(5, 20)))
             for size in sizes]
    return draw(d_out, d_in), tasks


def _in_turn(W0, tasks):
    return W0, tasks * 3


def _swapped(scale=_usual, rank=_rows_of_A, base=1, sign=1):
    def wrong(W0, tasks):
        return [base * W0 + sign * scale(alpha, rank(A, B)) * B @ A for A, B, alpha in tasks]
    return wrong


def _subtracted(W0, tasks, dtype=np.float32):
    W, merged = W0.astype(dtype), []
    for A, B, alpha in tasks:
        change = alpha / len(A) * B.astype(dtype) @ A.astype(dtype)
        merged.append((W + change).astype(W0.dtype))
        W = W + change - change
    return merged


def _worn_out(W0, tasks):
    for A, B, alpha in tasks:
        change = alpha / len(A) * B @ A
        W0 = (W0 + change) - change
    return W0


def _added_up(W0, tasks):
    merged = []
    for A, B, alpha in tasks:
        W0 = W0 + alpha / len(A) * B @ A
        merged.append(W0)
    return merged


def _one_array(which):
    return lambda W0, tasks: [which(W0, tasks)] * len(tasks)


# -- lora.bug --------------------------------------------------------------------------------------
def bug(W_before, A_before, B_before, W_after, A_after, B_after):
    if not np.array_equal(W_before, W_after):
        return "base trained"
    if np.any(B_before @ A_before):
        return "start changed"
    if not (A_before.any() or B_before.any()):
        return "both zero"
    A_same, B_same = np.array_equal(A_before, A_after), np.array_equal(B_before, B_after)
    return "not trained" if A_same and B_same else "fine"


WORDS = "fine", "base trained", "start changed", "both zero", "not trained"


def _run(rng, fault=None, steps=20, zero="B", move=lambda W, noise: W + 0.01 * noise):
    """Draw W, A and B before and after a training with one fault or with none.

    move: what training makes of the base.
    """
    _, W, A, B, _ = _arrays(rng, np.float32)
    W = np.round(64 * W) / 64                            # so that its sum is exact, in any order
    fault = fault or str(rng.choice(WORDS))
    A0, B0 = A * (zero != "A"), B * (zero != "B")
    if fault == "start changed":
        B0 = B
    if fault == "both zero":
        A0, B0 = 0 * A, 0 * B
    def noise(a):
        return rng.standard_normal(a.shape).astype(np.float32)
    def moved(a):
        return a + np.float32(0.01) * noise(a)
    W1, A1, B1 = W.copy(), A0.copy(), B0.copy()
    if fault == "base trained":
        W1 = move(W, noise(W)).astype(np.float32)
    if fault not in ("both zero", "not trained"):
        if steps > 1 or zero == "B":
            B1 = moved(B0)
        if steps > 1 or zero == "A":
            A1 = moved(A0)
    return W, A0, B0, W1, A1, B1


def _one_number(W, noise=None):
    """Move the last number by the smallest step that float32 has."""
    W = W.copy()
    W.flat[-1] = np.nextafter(W.flat[-1], np.float32(np.inf))
    return W


def _last(W):
    """Keep the last number alone, among zeros."""
    kept = np.zeros_like(W)
    kept.flat[-1] = W.flat[-1]
    return kept


def _last_moved(W):
    return W + _last(np.ones_like(W))


def _paired(W):
    """Keep the first row, and set the second to minus the first: the sum is 0."""
    return np.concatenate([W[:1], -W[:1], 0 * W[2:]])


def _sum_unmoved(W):
    return W[::-1] + _paired(np.ones_like(W))


def _first_row(A):
    return A * (np.arange(len(A)) == 0)[:, None]


def _other_columns(B):
    return B * (np.arange(B.shape[1]) > 0)


def _start(rng, A=lambda A: A, B=lambda B: 0 * B, after=_one_number):
    """Draw W, A and B before and after a training that leaves the base alone.

    A, B: what the start makes of random numbers.
    """
    _, W, *random, _ = _arrays(rng, np.float32)
    # None of these is zero, and their sums are exact, in any order.
    A0, B0 = ((np.floor(8 * a) + 0.5) / 8 for a in random)
    A0, B0 = A(A0), B(B0)
    return W, A0, B0, W, after(A0), after(B0)


def _exchanged(W, noise):
    """Exchange two rows: the sum is as before."""
    return np.concatenate([W[1::-1], W[2:]])


def _last_row(W, noise):
    """Move the last row."""
    return np.concatenate([W[:-1], W[-1:] + 0.25])


def _asked(same=np.array_equal, start=lambda A, B: (B @ A).any(),
           zero=lambda a: not a.any(), both=operator.and_, still=np.array_equal,
           neither=operator.and_):
    """Make the diagnosis with other questions.

    They are: is the base the same, is the start changed, are both matrices zero, is neither moved?
    """
    def wrong(W, A, B, W1, A1, B1):
        if not same(W, W1):
            return "base trained"
        if start(A, B):
            return "start changed"
        if both(zero(A), zero(B)):
            return "both zero"
        return "not trained" if neither(still(A, A1), still(B, B1)) else "fine"
    return wrong


def _asked_of_the_sum(W, A, B, W1, A1, B1):
    """Compare W + B A with W, where a small B A is lost by rounding."""
    same = np.array_equal(W + B @ A, W)
    return bug(W, A, B * (not same), W1, A1, B1)


def _asked_at_the_end(W, A, B, W1, A1, B1):
    changed = np.array_equal(W, W1) and (B1 @ A1).any()
    return "start changed" if changed else bug(W, A, B, W1, A1, B1)


def _zero_at_the_end(W, A, B, W1, A1, B1):
    word = bug(W, A, B, W1, A1, B1)
    return "fine" if word == "both zero" and (A1.any() or B1.any()) else word


def _equal(measure):
    """Take two arrays for the same if one number of them is."""
    return lambda a, b: measure(a) == measure(b)


def _either_still(W, A, B, W1, A1, B1):
    """Ask too early, and of one matrix: has A not moved, or B?"""
    if not np.array_equal(W, W1):
        return "base trained"
    if np.array_equal(A, A1) or np.array_equal(B, B1):
        return "not trained"
    return bug(W, A, B, W1, A1, B1)


def _still_first(W, A, B, W1, A1, B1):
    word = bug(W, A, B, W1, A1, B1)
    still = np.array_equal(A, A1) and np.array_equal(B, B1)
    return "not trained" if word == "both zero" and still else word


def _first(a, b):
    return a


def _second(a, b):
    return b


def _reworded(**words):
    """Make the diagnosis with some of its words exchanged."""
    def wrong(*run):
        word = bug(*run)
        return words.get(word.replace(" ", "_"), word)
    return wrong


# -- lora.dora -------------------------------------------------------------------------------------
def dora(x, W0, A, B, alpha, m):
    V = W0 + (B @ A) * (alpha / A.shape[0])
    lengths = (V * V).sum(axis=1).sqrt()
    return F.linear(x, V * (m / lengths).reshape(-1, 1))


def _with_magnitude(rng, start=False):
    x, W0, A, B, alpha = _tensors(rng, zero=start)
    lengths = np.sqrt((W0.data ** 2).sum(1))
    if not start:
        lengths *= rng.uniform(0.5, 2, len(lengths)).astype(np.float32)
    return x, W0, A, B, alpha, Tensor(lengths)


def _changed(W0, A, B, alpha):
    return W0 + (B @ A) * (alpha / A.shape[0])


def _constant(x, W0, A, B, alpha, m):
    V = _changed(W0, A, B, alpha)
    lengths = Tensor(np.sqrt((V.data ** 2).sum(axis=1)))
    return F.linear(x, V * (m / lengths).reshape(-1, 1))


def _length(V):
    return (V * V).sum(axis=1, keepdims=True).sqrt()


def _length_of_columns(V):
    return (V * V).sum(axis=0, keepdims=True).sqrt()


def _normed(length=_length, scale=_usual, of_base=False, magnitude=True):
    def wrong(x, W0, A, B, alpha, m):
        V = W0 + (B @ A) * scale(alpha, A.shape[0])
        U = V / length(W0 if of_base else V)
        return F.linear(x, U * m.reshape(-1, 1) if magnitude else U)
    return wrong


def _opposite(x, W0, A, B, alpha, m):
    V = _changed(W0, A, B, alpha)
    return F.linear(x, V * _length(V) / m.reshape(-1, 1))


def _undivided(x, W0, A, B, alpha, m):
    return F.linear(x, _changed(W0, A, B, alpha) * m.reshape(-1, 1))


def _outputs_normed(x, W0, A, B, alpha, m):
    h = forward(x, W0, A, B, alpha)
    return h / (h * h).sum(axis=-1, keepdims=True).sqrt() * m


def _lengths_of_base(x, W0, A, B, alpha, m):
    return dora(x, W0, A, B, alpha, (W0 * W0).sum(axis=1).sqrt())


EXERCISES = (
    Exercise(
        name="lora.forward", title="The forward pass of LoRA", stars=1,
        kind="formula",
        example=_tensors_of_the_page,
        reference=forward, cases=_tensors, gradient=("x", "A", "B"),
        special=(
            ("B = 0: the base, unchanged", partial(_tensors, zero=True)),),
        extremes=(
            ("A and B so large that B A is infinite, and B (A x) is not", _vast),),
        mistakes=(
            ("the scale is α/r, not α", _scaled(_alpha)),
            ("the scale α/r is missing", _scaled(_one)),
            ("the scale is α/r, not r/α", _scaled(_inverse)),
            ("the scale is α/r; α/√r is the rank-stabilised one", _scaled(_stabilised)),
            ("the scale is applied twice", _scaled(_twice)),
            ("the scale is α/r, not 1/r", _scaled(_without_alpha)),
            ("the scale is α/r, a division with /; // cuts off what is behind the point",
             _scaled(_cut_off)),
            ("you subtracted the low-rank part; add it", _scaled(_negative)),
            ("LoRA has no activation between A and B", _scaled(bend=F.gelu)),
            ("LoRA has no activation between A and B", _scaled(bend=Tensor.relu)),
            ("the frozen part W₀ x is missing", _low),
            ("the low-rank part B A x is missing", lambda x, W0, A, B, alpha: F.linear(x, W0)),
            ("the scale belongs to B A x alone, not to W₀ x", _scales_both),
            ("r is the number of rows of A, not of its columns", _scaled(rank=_columns_of_A)),
            ("r is the number of columns of B, not of its rows", _scaled(rank=_rows_of_B))),
        symptoms=(
            ("you formed B A, with d_out · d_in numbers: apply A to x "
             "first, and B to what comes out",
             lambda got, expected, args: not np.isfinite(got).all()),),
        hints=("Which product is small and should be taken first, B A or A x?",
               "F.linear(x, A) is (…, r). F.linear of that with B is (…, "
               "d_out), like F.linear(x, W0).",
               "low = F.linear(F.linear(x, A), B); then F.linear(x, W0) + "
               "low * (alpha / A.shape[0]).")),
    Exercise(
        name="lora.attach", title="LoRA on a model, and everything else frozen", stars=2,
        kind="design",
        reference=attach, cases=_model,
        special=(
            ("one block, and LoRA on the MLP's layer up alone",
             partial(_model, blocks=1, targets=("up",))),
            ("layers whose names end like a target, and are none",
             partial(_model, targets=("uery", "value"))),
            ("query comes before key", partial(_model, targets=("query", "key")))),
        mistakes=(
            ("B starts at zero, so that the model starts unchanged", _put_on(_both_random)),
            ("if A is zero as well, neither A nor B ever gets a gradient", _put_on(_both_zero)),
            ("A and B are exchanged: A is random, and B is zero", _put_on(_exchanged_start)),
            ("the numbers of A are divided by √d_in, not by √r",
             _put_on(partial(_started, divisor=lambda r, d_in: r ** 0.5))),
            ("the division of A by √d_in is missing",
             _put_on(partial(_started, divisor=lambda r, d_in: 1))),
            ("the division of A is by √d_in, not by d_in",
             _put_on(partial(_started, divisor=lambda r, d_in: d_in))),
            ("make one generator, before the loop: with a new one for each layer every A is the "
             "same", _put_on(again=True)),
            ("the numbers of A are drawn as (r, d_in); you drew (d_in, r) and transposed them, "
             "which puts them elsewhere",
             _put_on(_drawn_transposed)),
            ("layer after layer in the order of `parameters`: you sorted the names",
             lambda parameters, *others: attach(dict(sorted(parameters.items())), *others)),
            ("layer after layer in the order of `parameters`: you went through the targets first, "
             "so the numbers fall to other layers",
             _by_targets),
            *several("everything of the base is frozen, the biases and the norms as well",
                     _put_on(frozen=lambda name: name.endswith("bias")),
                     _put_on(frozen=lambda name: "norm" in name),
                     _put_on(frozen=lambda name: name.endswith(("bias", "norm.weight")))),
            *several("the base is frozen: of a layer with LoRA, A and B alone are trained",
                     _put_on(frozen=lambda name: True),
                     _put_on(frozen=lambda name: name.endswith(
                         ("query.weight", "value.weight", "up.weight")))),
            ("both A and B are trained, and not B alone", _only("B")),
            ("both A and B are trained, and not A alone", _only("A"))),
        symptoms=(
            ("arrays of the base are missing: the model still has them, frozen", _base_left_out),
            ("`trained` has a name for each array, with False for the frozen ones", _trained_alone),
            ("there is LoRA on too many arrays: the layer's own name, the last part of the path "
             "before .weight, must be one of the targets; to end like one is not enough",
             _too_many),
            ("A is (r, d_in), and B is (d_out, r)", _turned),
            ("B starts at zero, so that the model starts unchanged", _not_zero)),
        errors=(
            ("unpack", "a bias or a norm's weight came here, and it has one axis: a layer counts "
             "if its own name, the last part of its path, is a target, not if it contains one"),),
        hints=("Which parts of the name say what an array is, and to which layer it belongs? Which "
               "of the arrays that come out are trained?",
               "W is (d_out, d_in), so A is (r, d_in) and B is (d_out, r). Both results are dicts "
               "with the same names.",
               'layer, kind = name.rsplit(".", 1). If kind is "weight" and layer.split(".")[-1] '
               "is in targets, add A = rng.standard_normal((r, d_in)) / np.sqrt(d_in) and "
               "np.zeros((d_out, r)), both in W.dtype, and True for both.")),
    Exercise(
        name="lora.backward", title="The backward pass of LoRA", stars=3,
        kind="gradient",
        reference=backward, cases=_with_upstream,
        invariants=(
            ("with B = 0, as at the start, dA is zero and dB is not", _starts),),
        mistakes=(
            ("the scale s = α/r is missing in dA and dB",
             partial(_by_hand, dA=_factor(1), dB=_factor(1))),
            ("the scale s = α/r is missing in all three", partial(_by_hand, scale=_one)),
            ("the scale is α/r, not α", partial(_by_hand, scale=_alpha)),
            *several("a gradient lacks the scale s = α/r: dA and dB both have it",
                     partial(_by_hand, dA=_factor(1)),
                     partial(_by_hand, dB=_factor(1))),
            ("the scale s is applied twice", partial(_by_hand, scale=_twice)),
            ("the scale is α/r, not r/α", partial(_by_hand, scale=_inverse)),
            ("r is the number of rows of A, not of its columns",
             partial(_by_hand, rank=_columns_of_A)),
            ("the gradients are sums over the N inputs, not means: dH has any division already",
             _means),
            ("the scale s belongs to the path through A and B alone, not to dH W₀",
             partial(_by_hand, base=operator.pos)),
            ("dX is the sum of both paths; you subtracted one",
             partial(_by_hand, low=operator.neg)),
            ("dX lacks the path through the frozen weight, dH W₀",
             partial(_by_hand, base=_factor(0))),
            ("dX lacks the path through A and B, s (dH B) A", partial(_by_hand, low=_factor(0))),
            ("the low-rank part of dX lacks the scale s", partial(_by_hand, low=_factor(1))),
            ("dA and dB are exchanged: return (dA, dB, dX)", _in_order(1, 0, 2)),
            ("the gradients are in the wrong order: return (dA, dB, dX)", _in_order(2, 0, 1))),
        symptoms=(
            ("a gradient has the shape of its parameter: transpose it", _transposed),
            ("W₀ is frozen, so its gradient is not needed: return (dA, dB, dX)", _four_gradients),
            ("the gradients are in the wrong order: return (dA, dB, dX)", _shape_of_another),
            ("a factor is missing: a gradient has the shape of its array, dA "
             "that of A and dB that of B",
             _other_shape)),
        tolerance=1e-7,
        hints=("h = W0 x + s B (A x). What stands to the left and to the right of A, and of B? Use "
               "the rule twice: for B, where Z is X Aᵀ, and then for A, where Z is X.",
               "dh is (N, d_out); x Aᵀ and dh B are (N, r). Each gradient has the shape of its "
               "array: A (r, d_in), B (d_out, r), x (N, d_in).",
               "s = alpha / len(A). dB = s * dh.T @ (x @ A.T). dA = s * (dh @ B).T @ x. dx is a "
               "sum: one term through W0, and s * dh @ B @ A.")),
    Exercise(
        name="lora.bug", title="Find the bug: a LoRA that does not do what it should", stars=2,
        kind="fault",
        reference=bug, cases=_run,
        special=(
            ("nothing is wrong", partial(_run, fault="fine")),
            ("nothing is wrong, after one step: A has not moved yet",
             partial(_run, fault="fine", steps=1)),
            ("nothing is wrong: A started at zero, and B did not",
             partial(_run, fault="fine", zero="A")),
            ("nothing is wrong, after one step from A = 0: B has not moved yet",
             partial(_run, fault="fine", steps=1, zero="A")),
            ("nothing is wrong: one number of A and of B moved, by the "
             "smallest step that float32 has",
             _start),
            ("nothing is wrong: at the start A has a single number that is not zero",
             partial(_start, A=_last, after=_last_moved)),
            ("nothing is wrong: A and B moved, and their sums did not",
             partial(_start, A=_paired, after=_sum_unmoved)),
            ("nothing is wrong: A and B are not zero, and B A is",
             partial(_start, A=_first_row, B=_other_columns)),
            ("the base moved", partial(_run, fault="base trained")),
            ("the base moved by a millionth",
             partial(_run, fault="base trained", move=lambda W, noise: W + 1e-6 * noise)),
            ("one number of the base moved, by the smallest step that float32 has",
             partial(_run, fault="base trained", move=_one_number)),
            ("one row of the base moved", partial(_run, fault="base trained", move=_last_row)),
            ("the base moved, and its sum did not",
             partial(_run, fault="base trained", move=_exchanged)),
            ("B did not start at zero", partial(_run, fault="start changed")),
            ("one number of B did not start at zero", partial(_start, B=_last)),
            ("B started near zero", partial(_start, B=lambda B: np.float32(1e-15) * B)),
            ("B A is not zero at the start, but its sum is", partial(_start, B=_paired)),
            ("A and B started at zero, and something else than a gradient moved them",
             partial(_start, A=lambda A: 0 * A)),
            ("A and B started at zero", partial(_run, fault="both zero")),
            ("the optimizer has neither A nor B", partial(_run, fault="not trained"))),
        mistakes=(
            *several("a LoRA is fine after one step, when only one of its two matrices has moved: "
                     "it is not trained if neither has",
                     _asked(neither=operator.or_),
                     _asked(neither=operator.or_, still=np.allclose),
                     _either_still,
                     _asked(neither=_first),
                     _asked(neither=_second)),
            *several("the start is changed if B A is not zero; one of the two may be random",
                     _asked(start=lambda A, B: B.any()),
                     _asked(start=lambda A, B: B.all()),
                     _asked(start=lambda A, B: A.any()),
                     _asked(start=lambda A, B: A.any() or B.any())),
            ("the question is about the start: B_before @ A_before", _asked_at_the_end),
            ("“both zero” is about the start as well: A and B before training", _zero_at_the_end),
            ("A and B may both differ from zero, and their product not: ask for B A",
             _asked(start=lambda A, B: A.any() and B.any())),
            *several("the start is changed if any number of B A is not zero at all; a "
                     "tolerance overlooks a small one",
                     _asked_of_the_sum,
                     _asked(start=lambda A, B: abs(B @ A).max() > 1e-9),
                     _asked(start=lambda A, B: not np.allclose(B @ A, 0)),
                     _asked(start=lambda A, B: abs(B @ A).max() > 1e-6)),
            *several("one number of B A that is not zero is enough: ask with .any()",
                     _asked(start=lambda A, B: (B @ A).all()),
                     _asked(start=lambda A, B: (B @ A)[0, 0] != 0),
                     _asked(start=lambda A, B: A.all() and B.all())),
            *several("numbers with the sum 0 need not be zero: ask for any number of B A",
                     _asked(start=lambda A, B: (B @ A).sum() != 0),
                     _asked(start=lambda A, B: (B @ A).mean() != 0)),
            ("A and B are trained if any number has moved at all; a "
             "tolerance overlooks a small step",
             _asked(still=np.allclose)),
            *several("one number of A or B that has moved is enough: “not "
                     "trained” means that none has",
                     _asked(still=lambda a, b: (a == b).any()),
                     _asked(still=lambda a, b: a[0, 0] == b[0, 0])),
            ("two arrays with the same sum may differ: compare A and B number by number",
             _asked(still=_equal(np.sum))),
            *several("an array is zero only if all of its numbers are: ask with not "
                     "A.any(), and the same for B",
                     _asked(zero=lambda a: not a.all()),
                     _asked(zero=lambda a: a[0, 0] == 0),
                     _asked(zero=lambda a: a.sum() == 0)),
            ("one of the two may start at zero: “both zero” asks for both",
             _asked(both=operator.or_)),
            *several("frozen means equal to the last bit; a tolerance, as np.allclose has "
                     "one, overlooks a small step",
                     _asked(np.allclose),
                     _asked(partial(np.allclose, rtol=1e-4, atol=1e-5))),
            ("one number of the base that has moved is enough: ask with .any(), not with .all()",
             _asked(lambda a, b: not (a != b).all())),
            *several("two arrays with the same sum, length or largest number may differ: compare "
                     "the base number by number",
                     _asked(_equal(np.sum)),
                     _asked(_equal(np.mean)),
                     _asked(_equal(np.linalg.norm)),
                     _asked(_equal(np.max))),
            ("you compared the base's first number only: any number may have moved",
             _asked(lambda a, b: a.flat[0] == b.flat[0])),
            ("if A and B both start at zero, nothing can move: say “both zero”, "
             "whatever the optimizer has",
             _reworded(both_zero="not trained")),
            ("ask for “both zero” before “not trained”: from there nothing can move",
             _still_first),
            ("“both zero” is about the start; A and B that do not move from "
             "another start are “not trained”",
             _reworded(not_trained="both zero")),
            ("W_before and W_after are the base's weight before and after: they must be equal",
             _reworded(base_trained="fine")),
            ("B A at the start must be zero", _reworded(start_changed="fine"))),
        symptoms=(
            ("return one of the five words, as they stand in the text",
             lambda got, expected, args: got not in WORDS),),
        tolerance=0,
        hints=("Which of the six arrays must be equal in a sound LoRA? Which product "
               "must be zero at the start?",
               "np.array_equal(W_before, W_after) is one bool. B_before @ A_before is (d_out, "
               "d_in), and .any() tells whether a number of it is not zero.",
               "Ask in this order: W_before and W_after differ? (B_before @ A_before).any()? "
               "neither A_before.any() nor B_before.any()? A_before equals A_after and "
               "B_before equals B_after? Return the word of the first question that is "
               "answered by yes, else “fine”.")),
    Exercise(
        name="lora.alike", title="Do two LoRAs do the same?", stars=2,
        kind="design",
        reference=alike, cases=_pair,
        special=(
            ("A and B turned by a matrix G, and back: the same", partial(_pair, kind="turned")),
            ("the same with 128 inputs and outputs", _wide),
            ("α is twice as large, A too, and B a quarter: the same",
             partial(_pair, kind="alpha")),
            ("two more rows in A, and zeros in B for them: the same",
             partial(_pair, kind="padded")),
            ("the rows in another order, all signs turned: the same",
             partial(_pair, kind="permuted")),
            ("the same, and the first column of the change is zero but for rounding",
             partial(_pair, kind="cancelled")),
            ("two LoRAs that change nothing: the same", partial(_pair, kind="both zero")),
            ("each number of B is off by some per cent: not the same",
             partial(_pair, kind="noise")),
            ("B is larger by 1.5 per cent: not the same", partial(_pair, kind="near")),
            ("two more rows in A, zeros in B, and the same α, so that α/r differs: not the same",
             partial(_pair, kind="longer")),
            ("only α differs: not the same", partial(_pair, kind="double")),
            ("the opposite change: not the same", partial(_pair, kind="minus")),
            ("the outputs are exchanged: not the same", partial(_pair, kind="exchanged")),
            ("the same A, and another B of the same size: not the same",
             partial(_pair, kind="same A")),
            ("the second changes nothing: not the same", partial(_pair, kind="zero")),
            ("both changes are tiny: not the same",
             partial(_pair, kind="same A", size=1e-6))),
        mistakes=(
            ("other A and B can make the same change: compare B A, not A and B", _same_factors),
            ("the ranks may differ: compare the changes, which have one shape",
             lambda A1, B1, alpha1, A2, B2, alpha2: len(A1) == len(A2) and alike(
                 A1, B1, alpha1, A2, B2, alpha2)),
            *several("the scale α/r belongs to the change",
                     _judged(_near, scale=_one),
                     _judged(_all_close, scale=_one),
                     _judged(partial(_all_close, limit=1e-5), scale=_one)),
            *several("the scale is α/r, not α",
                     _judged(_near, scale=_alpha),
                     _judged(_all_close, scale=_alpha)),
            ("two changes with the same singular values may still differ, by a rotation",
             _judged(_near_values)),
            *several("two changes of the same size may still differ",
                     _judged(_near_norms),
                     _judged(partial(_near_norms, near=partial(_near, limit=1e-2))),
                     _judged(partial(_near_norms, near=partial(_near, limit=3e-3))),
                     _judged(partial(_near_norms, near=np.allclose))),
            *several("a multiple of a change has the same direction, and is another change",
                     _judged(lambda a, b: _cosine(a, b) > 0.9999),
                     _judged(_along),
                     _judged(lambda a, b: abs(_cosine(a, b)) > 0.9999)),
            ("the same A, or the same space of its rows, leaves B free", _same_rows),
            *several("np.allclose asks each number by itself: that is too strict where a number is "
                     "nearly 0, and its own limit of 10⁻⁸ is too lax for a tiny change. Compare "
                     "the norm of the difference with the norm of the change",
                     _judged(_all_close),
                     _judged(partial(_all_close, limit=1e-2)),
                     _judged(np.allclose)),
            ("two products in float32 differ by rounding: ask for a small distance, not for "
             "equality", _judged(np.array_equal)),
            ("if both changes are zero, they are the same: ask with <=, and multiply the limit by "
             "the norm in place of dividing by it, which is 0",
             _judged(lambda a, b: _near(a, b) and np.linalg.norm(a) > 0)),
            ("compare number by number: two changes may have the same sum",
             _judged(lambda a, b: abs(a.sum() - b.sum()) <= 1e-3 * abs(a.sum())))),
        symptoms=(
            ("these two differ by rounding alone: your limit is too small, or is asked of each "
             "number by itself, of which some are nearly 0. Ask for a small norm of the "
             "difference, beside the norm of the change",
             _rounding_refused),
            ("both changes are tiny here, and not the same: an absolute limit, as np.allclose has "
             "one of 10⁻⁸, calls them equal. Compare the norm of the difference with the norm of "
             "the change",
             _tiny_passed),
            ("these two changes differ by some per cent, and a hundredth is a difference: your "
             "limit is too large",
             _per_cents_passed),
            ("the opposite change has the same size, and is another change: signs count, so take "
             "the norm of the difference",
             _opposite_passed)),
        errors=(
            ("matmul: ", "B is (d_out, r) and A is (r, d_in): their product is B A, not A B"),
            ("broadcast", "the ranks may differ: compare the two products, which have one shape")),
        hints=("A is not what the model sees of a LoRA, and B is not. What is? When is a "
               "difference of two such things small?",
               "Both changes are (d_out, d_in), whatever the ranks are. The answer is one bool, "
               "not an array (d_out, d_in) of bools.",
               "first = alpha1 / len(A1) * B1 @ A1, second likewise; the norm of their difference "
               "is at most 1e-3 times the norm of the first.")),
    Exercise(
        name="lora.swap", title="A base that wears out", stars=2,
        kind="design",
        reference=swap, cases=_served,
        special=(
            ("two tasks, in turn, three times", lambda rng: _in_turn(*_served(rng, (1, 3000)))),),
        extremes=(
            ("a change 10²⁰ times as large as the weight, and small ones after it",
             lambda rng: _served(rng, (1, 1e20, 1, 1))),),
        mistakes=(
            *several("the base wears out: after the subtraction it is W0 up to rounding only, in "
                     "float64 as well. Merge into W0 itself each time",
                     _subtracted,
                     partial(_subtracted, dtype=np.float64)),
            ("the changes add up: each matrix has that of its own task alone", _added_up),
            *several("all of your matrices are the same: make a new array for each task",
                     _one_array(lambda W0, tasks: _added_up(W0, tasks)[-1]),
                     _one_array(lambda W0, tasks: _subtracted(W0, tasks)[-1]),
                     _one_array(lambda W0, tasks: swap(W0, tasks)[-1]),
                     _one_array(lambda W0, tasks: swap(W0, tasks)[0]),
                     _one_array(_worn_out)),
            ("the tasks come in their own order, the first one first",
             lambda W0, tasks: swap(W0, tasks)[::-1]),
            ("the scale is α/r, not α", _swapped(_alpha)),
            ("the scale α/r is missing", _swapped(_one)),
            ("the scale is α/r, not r/α", _swapped(_inverse)),
            ("the scale is α/r; α/√r is the rank-stabilised one", _swapped(_stabilised)),
            ("r is the number of rows of A, not of its columns", _swapped(rank=_columns_of_A)),
            ("r is the number of columns of B, not of its rows", _swapped(rank=_rows_of_B)),
            ("these are the changes; add W0", _swapped(base=0)),
            ("you subtracted the change; add it", _swapped(sign=-1))),
        errors=(
            ("matmul: ", "B is (d_out, r) and A is (r, d_in): their product is B A, not A B"),),
        tolerance=1e-6,
        hints=("What is left of a small number after a large one was added and subtracted again?",
               "Each merged matrix is (d_out, d_in), like W0, and there is one for each task.",
               "Return [W0 + alpha / len(A) * B @ A for A, B, alpha in tasks].")),
    Exercise(
        name="lora.dora", title="DoRA", stars=2,
        kind="formula",
        reference=dora, cases=_with_magnitude, gradient=("x", "A", "B", "m"),
        special=(
            ("B = 0 and m the lengths of W0's rows: the base, unchanged",
             partial(_with_magnitude, start=True)),),
        mistakes=(
            ("each row of W0 + s B A is divided by its own length; you divided the columns",
             _normed(_length_of_columns)),
            ("the length is that of the changed rows, W0 + s B A, not of W0's",
             _normed(of_base=True)),
            ("the length of a row is the root of the sum of its squares; the root is missing",
             _normed(lambda V: (V * V).sum(axis=1, keepdims=True))),
            ("the length of a row is the root of the sum of its squares, not of their mean",
             _normed(lambda V: (V * V).mean(axis=1, keepdims=True).sqrt())),
            ("the length of a row is the root of the sum of its squares, not the sum of its sizes",
             _normed(lambda V: (V * V).sqrt().sum(axis=1, keepdims=True))),
            ("each row has its own length: you divided by that of the whole matrix",
             _normed(lambda V: (V * V).sum().sqrt())),
            ("divide a row by its length, and multiply it by m; you did the opposite", _opposite),
            ("the rows of the weight are brought to the length m, not the outputs",
             _outputs_normed),
            ("the magnitude is the trained m, not the length of W0's rows", _lengths_of_base),
            ("the magnitude m is missing", _normed(magnitude=False)),
            ("the division by the lengths is missing", _undivided),
            ("the scale α/r is missing in W0 + s B A", _normed(scale=_one)),
            ("the scale is α/r, not α", _normed(scale=_alpha)),
            ("the scale is α/r, not r/α", _normed(scale=_inverse)),
            ("the scale is α/r; α/√r is the rank-stabilised one", _normed(scale=_stabilised)),
            ("you took the rows' lengths as constants, which the paper allows to save memory: "
             "here gradients reach A and B through them as well",
             _constant)),
        hints=("The direction of a row has length 1. Of which matrix do you take the rows, and "
               "what are they divided by?",
               "V = W0 + s B A is (d_out, d_in). The lengths of its rows are (d_out,), like m. A "
               "column (d_out, 1) broadcasts over a row's numbers.",
               "V = W0 + (B @ A) * (alpha / A.shape[0]); length = (V * V).sum(axis=1).sqrt(); "
               "then F.linear(x, V * (m / length).reshape(-1, 1)).")),
)
