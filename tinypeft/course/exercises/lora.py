"""Lesson 07: LoRA put on a model, forward and backward, compared, and merged again and again."""
from functools import partial

import numpy as np
from numpy.linalg import norm

from ...engine import functional as F
from ...engine.tensor import Tensor
from ..exercise import Exercise
from ..slips import inputs, slip, slips, which

__all__ = ["EXERCISES"]

LORA = "x:N,i W0:o,i A:r,i B:o,r alpha=5..20"
SIZES = {"N": 5, "r": (3, 5), "i": (6, 9), "o": (9, 12)}             # all of them different
_arrays, _in_float32 = inputs(LORA, **SIZES), inputs(LORA, np.float32, **SIZES)


# -- lora.forward ----------------------------------------------------------------------------------
def forward(x, W0, A, B, alpha):
    r = A.shape[0]
    if slip("r is the number of rows of A, not of its columns"): r = A.shape[1]
    if slip("r is the number of columns of B, not of its rows"): r = B.shape[0]
    s = alpha / r
    if slip("the scale is α/r, not α"): s = alpha
    if slip("the scale α/r is missing"): s = 1
    if slip("the scale is α/r, not r/α"): s = r / alpha
    if slip("the scale is α/r; α/√r is the rank-stabilised one"): s = alpha / r ** 0.5
    if slip("the scale is applied twice"): s = s * s
    if slip("the scale is α/r, not 1/r"): s = 1 / r
    if slip("the scale is α/r, a division with /; // cuts off what is behind the point"):
        s = alpha // r
    low = F.linear(x, A)
    if slip("LoRA has no activation between A and B", 1): low = F.gelu(low)
    if slip("LoRA has no activation between A and B", 2): low = low.relu()
    h, change = F.linear(x, W0), F.linear(low, B) * s
    if slip("the frozen part W₀ x is missing"): h = 0
    if slip("the low-rank part B A x is missing"): change = 0
    if slip("you subtracted the low-rank part; add it"): change = -change
    if slip("the scale belongs to B A x alone, not to W₀ x"): h = h * s
    return h + change


def _tensors(rng, zero=False):
    x, W0, A, B, alpha = _in_float32(rng)
    if rng.integers(2): x = np.stack([x, 2 * x[::-1] + 1])           # (B, T, d_in), not (N, d_in)
    return Tensor(x), Tensor(W0), Tensor(A), Tensor(B * (not zero)), alpha


def _vast(rng):
    """Draw so small an x, and so large A and B, that B A is infinite, and B (A x) is not."""
    x, W0, A, B, alpha = _tensors(rng)
    return x * 1e-36, W0 * 1e37, A * 1e18, B * 1e22, alpha


def _of_the_page(rng):
    """Return the numbers of the lesson's example."""
    x, W0 = Tensor([1, 2, 3]), Tensor([[1, 0, 2], [0, 1, 0]])
    return x, W0, Tensor([[1, -1, 0]]), Tensor([[0.5], [1]]), 2.0


# -- lora.attach -----------------------------------------------------------------------------------
def attach(parameters, targets, r, seed):
    rng = np.random.default_rng(seed)
    arrays, trained = dict(parameters), dict.fromkeys(parameters, False)
    if slip("the base is frozen: of a layer with LoRA, A and B alone are trained", 1):
        trained = dict.fromkeys(parameters, True)
    if slip("layer after layer in the order of `parameters`: you sorted the names"):
        parameters = dict(sorted(parameters.items()))
    if slip("layer after layer in the order of `parameters`: you went through the targets first, "
            "so the numbers fall to other layers"):
        parameters = {name: W for target in targets for name, W in parameters.items()
                      if f".{target}." in name}
    for name, W in parameters.items():
        layer, _, kind = name.rpartition(".")
        match which("everything of the base is frozen, the biases and the norms as well", 3):
            case 1: trained[name] = kind == "bias"
            case 2: trained[name] = "norm" in name
            case 3: trained[name] = kind == "bias" or "norm" in name
        if kind == "weight" and layer.split(".")[-1] in targets:
            if slip("the base is frozen: of a layer with LoRA, A and B alone are trained", 2):
                trained[name] = True
            if slip("make one generator, before the loop: with a new one for each layer every A "
                    "is the same"):
                rng = np.random.default_rng(seed)
            d_out, d_in = W.shape
            divisor = np.sqrt(d_in)
            if slip("the numbers of A are divided by √d_in, not by √r"): divisor = np.sqrt(r)
            if slip("the division of A by √d_in is missing"): divisor = 1
            if slip("the division of A is by √d_in, not by d_in"): divisor = d_in
            if slip("A and B are exchanged: A is random, and B is zero"):
                A, B = np.zeros((r, d_in)), rng.standard_normal((d_out, r)) / np.sqrt(r)
            else:
                A, B = rng.standard_normal((r, d_in)) / divisor, np.zeros((d_out, r))
            if slip("the numbers of A are drawn as (r, d_in); you drew (d_in, r) and transposed "
                    "them, which puts them elsewhere"):
                A = A.reshape(d_in, r).T
            if slip("B starts at zero, so that the model starts unchanged"):
                B = rng.standard_normal((d_out, r)) / np.sqrt(r)
            if slip("if A is zero as well, neither A nor B ever gets a gradient"): A = 0 * A
            arrays[f"{layer}.A"], arrays[f"{layer}.B"] = A.astype(W.dtype), B.astype(W.dtype)
            trained[f"{layer}.A"] = trained[f"{layer}.B"] = True
            if slip("both A and B are trained, and not B alone"): trained[f"{layer}.A"] = False
            if slip("both A and B are trained, and not A alone"): trained[f"{layer}.B"] = False
    return arrays, trained


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


def _trained_alone(got, expected, args):
    """Does `trained` lack the names of frozen arrays?"""
    names = set(got[1])
    return names < set(expected[1]) and any(name.endswith(".A") for name in names)


def _transposed(got, expected, args):
    return np.shape(got) == np.shape(expected)[::-1] != np.shape(expected)


def _not_zero(got, expected, args):
    return np.shape(got) == np.shape(expected) and np.any(got) and not np.any(expected)


def _arrays_of(results):
    """Return the names in the first of two dicts; none if the results are something else."""
    dicts = isinstance(results, (tuple, list)) and len(results) == 2
    return set(results[0]) if dicts and isinstance(results[0], dict) else set()


def _base_left_out(got, expected, args):
    return bool(_arrays_of(got) and args[0].keys() - _arrays_of(got))


def _too_many(got, expected, args):
    return bool(_arrays_of(got) - _arrays_of(expected))


# -- lora.backward ---------------------------------------------------------------------------------
def backward(x, W0, A, B, alpha, dh):
    r = len(A)
    if slip("r is the number of rows of A, not of its columns"): r = A.shape[1]
    s = alpha / r
    if slip("the scale s = α/r is missing in all three"): s = 1
    if slip("the scale is α/r, not α"): s = alpha
    if slip("the scale s is applied twice"): s = s * s
    if slip("the scale is α/r, not r/α"): s = r / alpha
    dhB = dh @ B                                         # (N, r)
    dA, dB = s * dhB.T @ x, s * dh.T @ (x @ A.T)
    if slip("the scale s = α/r is missing in dA and dB"): dA, dB = dA / s, dB / s
    if slip("a gradient lacks the scale s = α/r: dA and dB both have it", 1): dA = dA / s
    if slip("a gradient lacks the scale s = α/r: dA and dB both have it", 2): dB = dB / s
    if slip("the gradients are sums over the N inputs, not means: dH has any division already"):
        dA, dB = dA / len(x), dB / len(x)
    dx, low = dh @ W0, s * dhB @ A
    if slip("the scale s belongs to the path through A and B alone, not to dH W₀"): dx = s * dx
    if slip("dX lacks the path through the frozen weight, dH W₀"): dx = 0
    if slip("the low-rank part of dX lacks the scale s"): low = low / s
    if slip("dX is the sum of both paths; you subtracted one"): low = -low
    if slip("dX lacks the path through A and B, s (dH B) A"): low = 0
    if slip("dA and dB are exchanged: return (dA, dB, dX)"): return dB, dA, dx + low
    if slip("the gradients are in the wrong order: return (dA, dB, dX)"): return dx + low, dA, dB
    return dA, dB, dx + low


_with_upstream = inputs(f"{LORA} dh:N,o", **SIZES)


def _starts(fn, rng):
    x, W0, A, B, alpha, dh = _with_upstream(rng)
    dA, dB, _ = fn(x, W0, A, 0 * B, alpha, dh)
    return not np.any(dA) and np.any(dB)


def _shape_of_another(got, expected, args):
    shapes = [np.shape(args[i]) for i in (0, 2, 3)]
    return np.shape(got) != np.shape(expected) and np.shape(got) in shapes


# -- lora.alike ------------------------------------------------------------------------------------
def alike(A1, B1, alpha1, A2, B2, alpha2):
    s1, s2 = alpha1 / len(A1), alpha2 / len(A2)
    if slip("the scale is α/r, not α", 1): s1, s2 = alpha1, alpha2
    if slip("the scale α/r belongs to the change", 1): s1, s2 = 1, 1
    first, second = s1 * B1 @ A1, s2 * B2 @ A2
    same = norm(first - second) <= 1e-3 * norm(first)
    if slip("other A and B can make the same change: compare B A, not A and B"):
        same = A1.shape == A2.shape and _near(A1, A2) and _near(B1, B2)
    if slip("the same A, or the same space of its rows, leaves B free"):
        same = _near(np.linalg.pinv(A1) @ A1, np.linalg.pinv(A2) @ A2)
    if slip("the ranks may differ: compare the changes, which have one shape"):
        same = same and len(A1) == len(A2)
    if slip("the scale is α/r, not α", 2):
        same = np.allclose(alpha1 * B1 @ A1, alpha2 * B2 @ A2, 1e-3)
    if slip("the scale α/r belongs to the change", 2): same = np.allclose(B1 @ A1, B2 @ A2, 1e-3)
    if slip("the scale α/r belongs to the change", 3): same = np.allclose(B1 @ A1, B2 @ A2)
    if slip("two changes with the same singular values may still differ, by a rotation"):
        same = _near(np.linalg.svd(first)[1], np.linalg.svd(second)[1])
    match which("two changes of the same size may still differ", 4):
        case 1: same = abs(norm(first) - norm(second)) <= 1e-3 * norm(first)
        case 2: same = abs(norm(first) - norm(second)) <= 3e-3 * norm(first)
        case 3: same = abs(norm(first) - norm(second)) <= 1e-2 * norm(first)
        case 4: same = np.allclose(norm(first), norm(second))
    match which("a multiple of a change has the same direction, and is another change", 3):
        case 1: same = np.vdot(first, second) / (norm(first) * norm(second)) > 0.9999
        case 2: same = np.vdot(first, second) >= 0.9999 * norm(first) * norm(second)
        case 3: same = abs(np.vdot(first, second)) / (norm(first) * norm(second)) > 0.9999
    match which("np.allclose asks each number by itself: that is too strict where a number is "
                "nearly 0, and its own limit of 10⁻⁸ is too lax for a tiny change. Compare the "
                "norm of the difference with the norm of the change", 3):
        case 1: same = np.allclose(first, second)
        case 2: same = np.allclose(first, second, 1e-3)
        case 3: same = np.allclose(first, second, 1e-2)
    if slip("two products in float32 differ by rounding: ask for a small distance, not for "
            "equality"):
        same = np.array_equal(first, second)
    if slip("if both changes are zero, they are the same: ask with <=, and multiply the limit by "
            "the norm in place of dividing by it, which is 0"):
        same = norm(first - second) < 1e-3 * norm(first)
    if slip("compare number by number: two changes may have the same sum"):
        same = abs(first.sum() - second.sum()) <= 1e-3 * abs(first.sum())
    return bool(same)


def _near(first, second, limit=1e-3):
    return norm(first - second) <= limit * norm(first)


SAME = "turned", "alpha", "padded", "permuted"
OTHER = "noise", "double", "minus", "exchanged", "same A"


def _pair(kind, rng, size=1.0):
    """Draw two LoRAs, with the same change or with different ones. kind: None for any."""
    _, _, A, B, alpha = _arrays(rng)
    if kind == "wide": A, B = rng.standard_normal((8, 128)), rng.standard_normal((128, 8))
    A, B, kind = size * A, size * B, kind or str(rng.choice(SAME + OTHER))
    r, d_out = len(A), len(B)
    A2, B2, alpha2 = A, B, alpha
    if kind in ("turned", "wide"):
        G = np.eye(r) + 0.3 * rng.standard_normal((r, r))
        A2, B2 = np.linalg.solve(G, A), B @ G
    if kind == "alpha": A2, B2, alpha2 = 2 * A, B / 4, 2 * alpha
    if kind in ("padded", "longer"):
        more = size * rng.standard_normal((2, A.shape[1]))
        A2, B2 = np.concatenate([A, more]), np.concatenate([B, np.zeros((d_out, 2))], axis=1)
        alpha2 = alpha * (r + 2) / r if kind == "padded" else alpha
    if kind == "cancelled":                              # the first input is all but ignored
        a = A[:, 0]
        B = B - np.outer(B @ a, a) / (a @ a)
    if kind in ("permuted", "cancelled"): A2, B2 = -A[::-1], -B[:, ::-1]
    if kind == "noise": B2 = B * (1 + 0.03 * rng.standard_normal(B.shape))
    if kind == "near": B2 = 1.015 * B
    if kind == "double": alpha2 = 2 * alpha
    if kind == "minus": B2 = -B
    if kind == "exchanged": B2 = B[::-1]
    if kind == "same A":
        B2 = rng.standard_normal(B.shape)
        B2 *= norm(B @ A) / norm(B2 @ A)
    if kind == "zero": B2 = 0 * B
    if kind == "both zero": B, B2, A2 = 0 * B, 0 * B, 2 * A
    A, B, A2, B2 = (a.astype(np.float32) for a in (A, B, A2, B2))
    return A, B, alpha, A2, B2, alpha2


def _changes(A1, B1, alpha1, A2, B2, alpha2):
    return alpha1 / len(A1) * B1 @ A1, alpha2 / len(A2) * B2 @ A2


def _rounding_refused(got, expected, args):
    """Is a False given of two LoRAs that are wide, or differ by the order of rows and by signs?"""
    A1, _, _, A2, _, _ = args
    return expected and not got and (A1.shape[1] == 128 or np.array_equal(A2, -A1[::-1]))


def _per_cents_passed(got, expected, args):
    """Is a True given of two changes that differ by some per cent?"""
    first, second = _changes(*args)
    return got and not expected and _near(first, second, 0.1)


def _tiny_passed(got, expected, args):
    return got and not expected and max(abs(change).max() for change in _changes(*args)) < 1e-6


def _opposite_passed(got, expected, args):
    A1, B1, _, A2, B2, _ = args
    return got and not expected and np.array_equal(A1, A2) and np.array_equal(B1, -B2)


# -- lora.swap -------------------------------------------------------------------------------------
def swap(W0, tasks):
    merged = []
    for A, B, alpha in tasks:
        r = len(A)
        if slip("r is the number of rows of A, not of its columns"): r = A.shape[1]
        if slip("r is the number of columns of B, not of its rows"): r = B.shape[0]
        s = alpha / r
        if slip("the scale is α/r, not α"): s = alpha
        if slip("the scale α/r is missing"): s = 1
        if slip("the scale is α/r, not r/α"): s = r / alpha
        if slip("the scale is α/r; α/√r is the rank-stabilised one"): s = alpha / r ** 0.5
        change = s * B @ A
        W = W0 + change                                  # always from W0 itself
        if slip("these are the changes; add W0"): W = change
        if slip("you subtracted the change; add it"): W = W0 - change
        merged.append(W)
        match which("the base wears out: after the subtraction it is W0 up to rounding only, in "
                    "float64 as well. Merge into W0 itself each time", 2):
            case 1: W0 = W - change
            case 2: W0 = (np.float64(W0) + change - change).astype(np.float32)
        if slip("the changes add up: each matrix has that of its own task alone"): W0 = W
        match which("all of your matrices are the same: make a new array for each task", 5):
            case 1: merged = [W] * len(merged)
            case 2: merged = merged[:1] * len(merged)
            case 3: W0, merged = W, [W] * len(merged)
            case 4: W0, merged = W - change, [W] * len(merged)
            case 5: W0, merged = W - change, [W - change] * len(merged)
    if slip("the tasks come in their own order, the first one first"): merged.reverse()
    return merged


def _served(rng, sizes=None, times=1):
    """Draw a weight and LoRAs of several tasks; the change of one or two of them is large."""
    r, d_in, d_out = rng.integers(2, 4), rng.integers(4, 6), rng.integers(6, 8)
    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)
    sizes = sizes or rng.permutation([1, 3000, 1, 1])
    tasks = [(draw(r, d_in), np.float32(size) * draw(d_out, r), float(rng.uniform(5, 20)))
             for size in sizes]
    return draw(d_out, d_in), tasks * times


# -- lora.bug --------------------------------------------------------------------------------------
def bug(W_before, A_before, B_before, W_after, A_after, B_after):
    frozen = np.array_equal(W_before, W_after)
    match which("frozen means equal to the last bit; a tolerance, as np.allclose has one, "
                "overlooks a small step", 2):
        case 1: frozen = np.allclose(W_before, W_after)
        case 2: frozen = np.allclose(W_before, W_after, 1e-4, 1e-5)
    match which("two arrays with the same sum, length or largest number may differ: compare the "
                "base number by number", 3):
        case 1: frozen = W_before.sum() == W_after.sum()
        case 2: frozen = norm(W_before) == norm(W_after)
        case 3: frozen = W_before.max() == W_after.max()
    if slip("one number of the base that has moved is enough: ask with .any(), not with .all()"):
        frozen = (W_before == W_after).any()
    if slip("you compared the base's first number only: any number may have moved"):
        frozen = W_before[0, 0] == W_after[0, 0]
    if slip("W_before and W_after are the base's weight before and after: they must be equal"):
        frozen = True
    if not frozen: return "base trained"

    changed = (B_before @ A_before).any()
    match which("the start is changed if B A is not zero; one of the two may be random", 4):
        case 1: changed = A_before.any()
        case 2: changed = B_before.any()
        case 3: changed = B_before.all()
        case 4: changed = A_before.any() or B_before.any()
    if slip("A and B may both differ from zero, and their product not: ask for B A"):
        changed = A_before.any() and B_before.any()
    if slip("the question is about the start: B_before @ A_before"):
        changed = (B_after @ A_after).any()
    if slip("the start is changed if any number of B A is not zero at all; a tolerance overlooks "
            "a small one"):
        changed = not np.allclose(B_before @ A_before, 0)
    match which("one number of B A that is not zero is enough: ask with .any()", 3):
        case 1: changed = (B_before @ A_before).all()
        case 2: changed = (B_before @ A_before)[0, 0] != 0
        case 3: changed = A_before.all() and B_before.all()
    if slip("numbers with the sum 0 need not be zero: ask for any number of B A"):
        changed = (B_before @ A_before).sum() != 0
    if slip("B A at the start must be zero"): changed = False
    if changed: return "start changed"

    A_still, B_still = np.array_equal(A_before, A_after), np.array_equal(B_before, B_after)
    if slip("one number of A or B that has moved is enough: “not trained” means that none has"):
        A_still, B_still = (A_before == A_after).any(), (B_before == B_after).any()
    if slip("two arrays with the same sum may differ: compare A and B number by number"):
        A_still, B_still = A_before.sum() == A_after.sum(), B_before.sum() == B_after.sum()
    still = A_still and B_still
    if slip("A and B are trained if any number has moved at all; a tolerance overlooks a small "
            "step"):
        still = np.allclose(A_before, A_after) and np.allclose(B_before, B_after)
    match which("a LoRA is fine after one step, when only one of its two matrices has moved: it "
                "is not trained if neither has", 5):
        case 1: still = A_still or B_still
        case 2: still = np.allclose(A_before, A_after) or np.allclose(B_before, B_after)
        case 3: still = A_still
        case 4: still = B_still
        case 5 if A_still or B_still: return "not trained"
    if slip("ask for “both zero” before “not trained”: from there nothing can move") and still:
        return "not trained"

    zero = not A_before.any() and not B_before.any()
    if slip("one of the two may start at zero: “both zero” asks for both"):
        zero = not A_before.any() or not B_before.any()
    match which("an array is zero only if all of its numbers are: ask with not A.any(), and the "
                "same for B", 3):
        case 1: zero = not A_before.all() and not B_before.all()
        case 2: zero = A_before[0, 0] == 0 and B_before[0, 0] == 0
        case 3: zero = A_before.sum() == 0 and B_before.sum() == 0
    if slip("“both zero” is about the start as well: A and B before training"):
        zero = not A_after.any() and not B_after.any()
    if slip("if A and B both start at zero, nothing can move: say “both zero”, whatever the "
            "optimizer has") and zero:
        return "not trained"
    if zero: return "both zero"
    if slip("“both zero” is about the start; A and B that do not move from another start are "
            "“not trained”") and still:
        return "both zero"
    return "not trained" if still else "fine"


WORDS = "fine", "base trained", "start changed", "both zero", "not trained"


def _run(fault, rng, steps=20, zero="B", move=lambda W, noise: W + 0.01 * noise):
    """Draw W, A and B before and after a training with one fault or with none, or, for None, with
    any of these. move: what training makes of the base."""
    _, W, A, B, _ = _in_float32(rng)
    W = np.round(64 * W) / 64                            # so that its sum is exact, in any order
    fault = fault or str(rng.choice(WORDS))
    A0, B0 = A * (zero != "A"), B * (zero != "B")
    if fault == "start changed": B0 = B
    if fault == "both zero": A0, B0 = 0 * A, 0 * B
    def noise(a):
        return rng.standard_normal(a.shape).astype(np.float32)
    W1, A1, B1 = W.copy(), A0.copy(), B0.copy()
    if fault == "base trained": W1 = move(W, noise(W)).astype(np.float32)
    if fault not in ("both zero", "not trained"):
        if steps > 1 or zero == "B": B1 = B0 + np.float32(0.01) * noise(B0)
        if steps > 1 or zero == "A": A1 = A0 + np.float32(0.01) * noise(A0)
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


def _paired(W):
    """Keep the first row, and set the second to minus the first: the sum is 0."""
    return np.concatenate([W[:1], -W[:1], 0 * W[2:]])


def _start(rng, A=lambda A: A, B=lambda B: 0 * B, after=_one_number):
    """Draw W, A and B before and after a training that leaves the base alone. A, B: what the start
    makes of random numbers, of which none is zero, and whose sums are exact in any order."""
    _, W, *random, _ = _in_float32(rng)
    A0, B0 = ((np.floor(8 * a) + 0.5) / 8 for a in random)
    A0, B0 = A(A0), B(B0)
    return W, A0, B0, W, after(A0), after(B0)


def _exchanged(W, noise):
    """Exchange two rows: the sum is as before."""
    return np.concatenate([W[1::-1], W[2:]])


def _last_row(W, noise):
    return np.concatenate([W[:-1], W[-1:] + 0.25])


# -- lora.dora -------------------------------------------------------------------------------------
def dora(x, W0, A, B, alpha, m):
    r = A.shape[0]
    s = alpha / r
    if slip("the scale α/r is missing in W0 + s B A"): s = 1
    if slip("the scale is α/r, not α"): s = alpha
    if slip("the scale is α/r, not r/α"): s = r / alpha
    if slip("the scale is α/r; α/√r is the rank-stabilised one"): s = alpha / r ** 0.5
    V = W0 + (B @ A) * s                                 # (d_out, d_in)
    length = (V * V).sum(axis=1).sqrt()                  # (d_out,)
    if slip("the length is that of the changed rows, W0 + s B A, not of W0's"):
        length = (W0 * W0).sum(axis=1).sqrt()
    if slip("the length of a row is the root of the sum of its squares; the root is missing"):
        length = (V * V).sum(axis=1)
    if slip("the length of a row is the root of the sum of its squares, not of their mean"):
        length = (V * V).mean(axis=1).sqrt()
    if slip("the length of a row is the root of the sum of its squares, not the sum of its sizes"):
        length = (V * V).sqrt().sum(axis=1)
    if slip("each row has its own length: you divided by that of the whole matrix"):
        length = (V * V).sum().sqrt()
    if slip("you took the rows' lengths as constants, which the paper allows to save memory: "
            "here gradients reach A and B through them as well"):
        length = Tensor(length.data)
    if slip("the division by the lengths is missing"): length = 1
    if slip("the magnitude m is missing"): m = 1
    if slip("the magnitude is the trained m, not the length of W0's rows"):
        m = (W0 * W0).sum(axis=1).sqrt()
    W = V * (m / length).reshape(-1, 1)
    if slip("divide a row by its length, and multiply it by m; you did the opposite"):
        W = V * (length / m).reshape(-1, 1)
    if slip("each row of W0 + s B A is divided by its own length; you divided the columns"):
        W = V / (V * V).sum(axis=0).sqrt() * m.reshape(-1, 1)
    if slip("the rows of the weight are brought to the length m, not the outputs"):
        h = F.linear(x, V)
        return h / (h * h).sum(axis=-1, keepdims=True).sqrt() * m
    return F.linear(x, W)


def _with_magnitude(rng, start=False):
    x, W0, A, B, alpha = _tensors(rng, zero=start)
    lengths = np.sqrt((W0.data ** 2).sum(1))
    if not start: lengths *= rng.uniform(0.5, 2, len(lengths)).astype(np.float32)
    return x, W0, A, B, alpha, Tensor(lengths)


EXERCISES = (
    Exercise(
        name="lora.forward", title="The forward pass of LoRA", stars=1,
        kind="formula", example=_of_the_page, reference=forward, cases=_tensors,
        gradient=("x", "A", "B"),
        special=(("B = 0: the base, unchanged", partial(_tensors, zero=True)),),
        extremes=(("A and B so large that B A is infinite, and B (A x) is not", _vast),),
        mistakes=slips(forward),
        symptoms=(
            ("you formed B A, with d_out · d_in numbers: apply A to x first, and B to what comes "
             "out",
             lambda got, expected, args: not np.isfinite(got).all()),),
        hints=("Which product is small and should be taken first, B A or A x?",
               "F.linear(x, A) is (…, r). F.linear of that with B is (…, d_out), like "
               "F.linear(x, W0).",
               "low = F.linear(F.linear(x, A), B); then F.linear(x, W0) + low * (alpha / "
               "A.shape[0]).")),
    Exercise(
        name="lora.attach", title="LoRA on a model, and everything else frozen", stars=2,
        kind="design", reference=attach, cases=_model,
        special=(
            ("one block, and LoRA on the MLP's layer up alone",
             partial(_model, blocks=1, targets=("up",))),
            ("layers whose names end like a target, and are none",
             partial(_model, targets=("uery", "value"))),
            ("query comes before key", partial(_model, targets=("query", "key")))),
        mistakes=slips(attach),
        symptoms=(
            ("arrays of the base are missing: the model still has them, frozen", _base_left_out),
            ("`trained` has a name for each array, with False for the frozen ones", _trained_alone),
            ("there is LoRA on too many arrays: the layer's own name, the last part of the path "
             "before .weight, must be one of the targets; to end like one is not enough",
             _too_many),
            ("A is (r, d_in), and B is (d_out, r)", _transposed),
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
        kind="gradient", reference=backward, cases=_with_upstream, tolerance=1e-7,
        invariants=(("with B = 0, as at the start, dA is zero and dB is not", _starts),),
        mistakes=slips(backward),
        symptoms=(
            ("a gradient has the shape of its parameter: transpose it", _transposed),
            ("W₀ is frozen, so its gradient is not needed: return (dA, dB, dX)",
             lambda got, expected, args: isinstance(got, (tuple, list)) and len(got) == 4),
            ("the gradients are in the wrong order: return (dA, dB, dX)", _shape_of_another),
            ("a factor is missing: a gradient has the shape of its array, dA that of A and dB that "
             "of B",
             lambda got, expected, args: np.shape(got) != np.shape(expected))),
        hints=("h = W0 x + s B (A x). What stands to the left and to the right of A, and of B? Use "
               "the rule twice: for B, where Z is X Aᵀ, and then for A, where Z is X.",
               "dh is (N, d_out); x Aᵀ and dh B are (N, r). Each gradient has the shape of its "
               "array: A (r, d_in), B (d_out, r), x (N, d_in).",
               "s = alpha / len(A). dB = s * dh.T @ (x @ A.T). dA = s * (dh @ B).T @ x. dx is a "
               "sum: one term through W0, and s * dh @ B @ A.")),
    Exercise(
        name="lora.bug", title="Find the bug: a LoRA that does not do what it should", stars=2,
        kind="fault", reference=bug, cases=partial(_run, None), tolerance=0,
        special=(
            ("nothing is wrong", partial(_run, "fine")),
            ("nothing is wrong, after one step: A has not moved yet",
             partial(_run, "fine", steps=1)),
            ("nothing is wrong: A started at zero, and B did not", partial(_run, "fine", zero="A")),
            ("nothing is wrong, after one step from A = 0: B has not moved yet",
             partial(_run, "fine", steps=1, zero="A")),
            ("nothing is wrong: one number of A and of B moved, by the smallest step that float32 "
             "has", _start),
            ("nothing is wrong: at the start A has a single number that is not zero",
             partial(_start, A=_last, after=lambda W: W + _last(np.ones_like(W)))),
            ("nothing is wrong: A and B moved, and their sums did not",
             partial(_start, A=_paired, after=lambda W: W[::-1] + _paired(np.ones_like(W)))),
            ("nothing is wrong: A and B are not zero, and B A is",
             partial(_start, A=_last, B=lambda B: np.pad(B[:, :-1], ((0, 0), (0, 1))))),
            ("the base moved", partial(_run, "base trained")),
            ("the base moved by a millionth",
             partial(_run, "base trained", move=lambda W, noise: W + 1e-6 * noise)),
            ("one number of the base moved, by the smallest step that float32 has",
             partial(_run, "base trained", move=_one_number)),
            ("one row of the base moved", partial(_run, "base trained", move=_last_row)),
            ("the base moved, and its sum did not", partial(_run, "base trained", move=_exchanged)),
            ("B did not start at zero", partial(_run, "start changed")),
            ("one number of B did not start at zero", partial(_start, B=_last)),
            ("B started near zero", partial(_start, B=lambda B: np.float32(1e-15) * B)),
            ("B A is not zero at the start, but its sum is", partial(_start, B=_paired)),
            ("A and B started at zero, and something else than a gradient moved them",
             partial(_start, A=np.zeros_like)),
            ("A and B started at zero", partial(_run, "both zero")),
            ("the optimizer has neither A nor B", partial(_run, "not trained"))),
        mistakes=slips(bug),
        symptoms=(("return one of the five words, as they stand in the text",
                   lambda got, expected, args: got not in WORDS),),
        hints=("Which of the six arrays must be equal in a sound LoRA? Which product must be zero "
               "at the start?",
               "np.array_equal(W_before, W_after) is one bool. B_before @ A_before is (d_out, "
               "d_in), and .any() tells whether a number of it is not zero.",
               "Ask in this order: W_before and W_after differ? (B_before @ A_before).any()? "
               "neither A_before.any() nor B_before.any()? A_before equals A_after and B_before "
               "equals B_after? Return the word of the first question that is answered by yes, "
               "else “fine”.")),
    Exercise(
        name="lora.alike", title="Do two LoRAs do the same?", stars=2,
        kind="design", reference=alike, cases=partial(_pair, None),
        special=(
            ("A and B turned by a matrix G, and back: the same", partial(_pair, "turned")),
            ("the same with 128 inputs and outputs", partial(_pair, "wide")),
            ("α is twice as large, A too, and B a quarter: the same", partial(_pair, "alpha")),
            ("two more rows in A, and zeros in B for them: the same", partial(_pair, "padded")),
            ("the rows in another order, all signs turned: the same", partial(_pair, "permuted")),
            ("the same, and the first column of the change is zero but for rounding",
             partial(_pair, "cancelled")),
            ("two LoRAs that change nothing: the same", partial(_pair, "both zero")),
            ("each number of B is off by some per cent: not the same", partial(_pair, "noise")),
            ("B is larger by 1.5 per cent: not the same", partial(_pair, "near")),
            ("two more rows in A, zeros in B, and the same α, so that α/r differs: not the same",
             partial(_pair, "longer")),
            ("only α differs: not the same", partial(_pair, "double")),
            ("the opposite change: not the same", partial(_pair, "minus")),
            ("the outputs are exchanged: not the same", partial(_pair, "exchanged")),
            ("the same A, and another B of the same size: not the same", partial(_pair, "same A")),
            ("the second changes nothing: not the same", partial(_pair, "zero")),
            ("both changes are tiny: not the same", partial(_pair, "same A", size=1e-6))),
        mistakes=slips(alike),
        symptoms=(
            ("these two differ by rounding alone: your limit is too small, or is asked of each "
             "number by itself, of which some are nearly 0. Ask for a small norm of the "
             "difference, beside the norm of the change", _rounding_refused),
            ("both changes are tiny here, and not the same: an absolute limit, as np.allclose has "
             "one of 10⁻⁸, calls them equal. Compare the norm of the difference with the norm of "
             "the change", _tiny_passed),
            ("these two changes differ by some per cent, and a hundredth is a difference: your "
             "limit is too large", _per_cents_passed),
            ("the opposite change has the same size, and is another change: signs count, so take "
             "the norm of the difference", _opposite_passed)),
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
        kind="design", reference=swap, cases=_served, tolerance=1e-6,
        special=(("two tasks, in turn, three times", partial(_served, sizes=(1, 3000), times=3)),),
        extremes=(("a change 10²⁰ times as large as the weight, and small ones after it",
                   partial(_served, sizes=(1, 1e20, 1, 1))),),
        mistakes=slips(swap),
        errors=(("matmul: ", "B is (d_out, r) and A is (r, d_in): their product is B A, not A B"),),
        hints=("What is left of a small number after a large one was added and subtracted again?",
               "Each merged matrix is (d_out, d_in), like W0, and there is one for each task.",
               "Return [W0 + alpha / len(A) * B @ A for A, B, alpha in tasks].")),
    Exercise(
        name="lora.dora", title="DoRA", stars=2,
        kind="formula", reference=dora, cases=_with_magnitude, gradient=("x", "A", "B", "m"),
        special=(("B = 0 and m the lengths of W0's rows: the base, unchanged",
                  partial(_with_magnitude, start=True)),),
        mistakes=slips(dora),
        hints=("The direction of a row has length 1. Of which matrix do you take the rows, and "
               "what are they divided by?",
               "V = W0 + s B A is (d_out, d_in). The lengths of its rows are (d_out,), like m. A "
               "column (d_out, 1) broadcasts over a row's numbers.",
               "V = W0 + (B @ A) * (alpha / A.shape[0]); length = (V * V).sum(axis=1).sqrt(); "
               "then F.linear(x, V * (m / length).reshape(-1, 1)).")),
)
