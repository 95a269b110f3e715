"""Lesson 01: the walk through the graph, broadcasting, and backward passes."""
import itertools
from functools import partial

import numpy as np

from ..exercise import Exercise
from ..slips import slip, slips, which

__all__ = ["EXERCISES"]

NO_ZEROS = ("the values have different shapes: keep a list, and begin an entry "
            "with the first array that arrives, not with zeros")
IS_NONE = "`or` and `if` do not take arrays: ask whether an entry `is None`"
STEPS = 5000                                             # more than functions may call each other


# -- autograd.walk ---------------------------------------------------------------------------------
def walk(tape, dy):
    match which("a value passed its gradient on before all parts of it had arrived: "
                "go from the last value to the first, one after another", 2):
        case 1: return as_found(tape, dy, 0)
        case 2: return as_found(tape, dy, -1)
    if slip("an operation may use a value twice, and each use has a function of its own: "
            "go through all pairs of tape[k]"):
        tape = [list(dict(uses).items()) for uses in tape]
    if slip("the gradient of the last value is dy, not 1"): dy = np.ones_like(dy)
    in_place = slip("+= writes into an array that another value has as its gradient, too; write "
                    "a + b")
    if in_place: dy = dy.copy()
    grads = [None] * len(tape)
    grads[-1] = dy
    order = reversed(range(len(tape)))
    if slip("the walk goes forwards; start at the last value and go down"): order = range(len(tape))
    for k in order:
        if grads[k] is None: continue
        if slip("a gradient of zeros is one, too: skip a value only if nothing has arrived at it"):
            if not grads[k].any(): continue
        for j, vjp in tape[k]:
            dx = vjp(grads[k])
            total = dx if grads[j] is None else grads[j] + dx
            match which("a value that is used twice keeps only one of its gradients; add "
                        "the new one to the old one", 2):
                case 1: total = dx
                case 2: total = dx if grads[j] is None else grads[j]
            if in_place and grads[j] is not None: total = np.add(grads[j], dx, out=grads[j])
            grads[j] = total
    if slip("the list is in reverse order: entry k is the gradient of value k"): return grads[::-1]
    if slip("the gradients of all values are asked for, not those of the leaves alone"):
        return [None if tape[k] else grads[k] for k in range(len(tape))]
    return grads


def as_found(tape, dy, place):
    """Walk to the values in the order in which they are found, which may be too early."""
    grads = [None] * (len(tape) - 1) + [dy]
    waiting, passed = [len(tape) - 1], set()
    while waiting:
        k = waiting.pop(place)
        if k not in passed:
            passed.add(k)
            for j, vjp in tape[k]:
                dx = vjp(grads[k])
                grads[j] = dx if grads[j] is None else grads[j] + dx
                waiting.append(j)
    return grads


class Products:
    """Vector–Jacobian products, dy ↦ Jᵀ dy, of linear maps from n to m numbers, n and m = 1 … 4.

    `Products.of_m_n_i` are three of each size, i = 0, 1, 2. They have names because a function is
    sent to the grader's other process by its name.
    """

    @staticmethod
    def same(dy):
        """Of a sum: it hands on the array itself."""
        return dy

    @staticmethod
    def three(dy):
        return 3.0 * dy

    @staticmethod
    def half(dy):
        return 0.5 * dy


def by_name(kind, of, seed):
    """Give the class `kind` a function `of`(J) for three random Jacobians (m, n) of each size."""
    rng = np.random.default_rng(seed)
    for m, n, i in itertools.product(range(1, 5), range(1, 5), range(3)):
        fn = of(rng.standard_normal((m, n)))
        fn.__qualname__ = f"{kind.__name__}.of_{m}_{n}_{i}"
        setattr(kind, f"of_{m}_{n}_{i}", staticmethod(fn))


by_name(Products, lambda J: lambda dy: J.T @ dy, seed=0)


def too_many(got, expected, args):
    """Is there an array where None is expected?"""
    return any(g is not None and e is None for g, e in zip(got, expected, strict=True))


# The values that each of seven values uses. 0 and 1 are leaves, and 3 leads nowhere.
USES = (), (), (0, 1, 0), (1,), (2, 2), (4, 1), (5, 2)


def random_tape(rng, kind):
    """Draw a tape with functions of the class `kind`, and the sizes of its values."""
    sizes = rng.integers(1, 5, 7).tolist()
    def function(k, j):
        return getattr(kind, f"of_{sizes[k]}_{sizes[j]}_{rng.integers(3)}")
    return [[(j, function(k, j)) for j in uses] for k, uses in enumerate(USES)], sizes


def walk_cases(rng):
    tape, sizes = random_tape(rng, Products)
    return tape, rng.standard_normal(sizes[-1])


def chain(rng):
    """Equation (2) of the lesson: x·x, a + a, b + a at x = 3."""
    x, plus = (0, Products.three), (1, Products.same)
    tape = [[], [x, x], [plus, plus], [(2, Products.same), plus]]
    return tape, np.array([1.0])


def zeros(rng):
    tape, dy = chain(rng)
    return tape, 0 * dy


def doublings(rng):
    """y = ½ x + ½ x, again and again: a value has 2ⁿ paths to the n-th value after it."""
    steps = [[(k, Products.half)] * 2 for k in range(STEPS)]
    return [[], *steps], np.array([1.0])


def leads_nowhere(got, expected, args):
    return got[3] is not None and expected[3] is None


# -- autograd.unbroadcast --------------------------------------------------------------------------
def unbroadcast(dy, shape):
    if slip("broadcasting adds new axes in front: sum over the first axes, not over the last"):
        return dy.sum(tuple(range(len(shape), dy.ndim)))
    if slip("the numbers are cut in the order in which they lie in memory, whatever axis they "
            "belong to: sum over axes"):
        return dy.reshape(-1, *shape).sum(0)
    total = dy.sum(axis=tuple(range(dy.ndim - len(shape))))
    if slip("the sum over an axis of length 1 must keep that axis: keepdims=True"):
        return total.sum(tuple(axis for axis, n in enumerate(shape) if n == 1))
    for axis, n in enumerate(shape):
        if n == 1: total = total.sum(axis=axis, keepdims=True)
    if slip("you took a mean instead of a sum: every copy sends its whole gradient back"):
        total = total * (np.prod(shape) / dy.size)
    return total


def unbroadcast_cases(rng):
    n, m, k = rng.permutation([2, 3, 4]).tolist()
    shapes = [(k,), (1, k), (m, 1)]
    shapes += [(n, 1, k), (1, m, 1), (n, m, k), (1, k)]
    shape = shapes[rng.integers(7)]
    return rng.standard_normal((n, m, k)), shape


def four_by_three(shape):
    return lambda rng: (rng.standard_normal((4, 3)), shape)


def without_axes(got, expected, args):
    return got.ndim == expected.ndim and 1 in args[1]


# -- autograd.linear_vjp ---------------------------------------------------------------------------
def linear_vjp(X, W, dY, need=(True, True, True)):
    dX = dY @ W if need[0] else None
    dW = dY.T @ X if need[1] else None
    db = dY.sum(0) if need[2] else None
    if slip("you computed a gradient that nobody needs: return None where need is False"):
        db = dY.sum(0)
    if need[2] and slip("db is a sum over the N rows, axis 0; yours is over axis 1"):
        db = dY.sum(1)
    if need[2] and slip("db is a sum over rows, not a mean"): db = dY.mean(0)
    if need[1] and slip("dW is averaged over rows; every row adds its part, so it is a sum"):
        dW = dY.T @ X / len(X)
    if need[1] and slip("dW is transposed: it has the shape of W, (d_out, d_in)"): dW = X.T @ dY
    match which("the order is (dX, dW, db)", 2):
        case 1: return db, dW, dX
        case 2: return dW, dX, db
    return dX, dW, db


def linear_cases(rng, need=None):
    N, d_in, d_out = 3 + rng.permutation(4)[:3]
    need = need or (True, True, True)
    X, W = rng.standard_normal((N, d_in)), rng.standard_normal((d_out, d_in))
    dY = rng.standard_normal((N, d_out))
    return X if need[1] else None, W if need[0] else None, dY, need


NOT_KEPT = ("what no wanted gradient needs was not kept and is None: "
            "look at `need` before you compute anything")


# -- autograd.layer_norm_vjp -----------------------------------------------------------------------
def layer_norm_vjp(x, gamma, dy, eps=1e-5):
    less = which("the variance divides by d, not by d − 1, and so does each mean", 6)
    sums = which("a sum stands where a mean belongs: divide it by d", 3)
    means = which("the means run over all axes; each row of d numbers has its own mean, over "
                  "the last axis", 3)
    whole = which("μ or σ runs over all axes; each row of d numbers has its own, over the "
                  "last axis", 3)
    turned = slip("each row of d numbers is normalized by itself, over the last "
                  "axis, and not over the first")
    if turned: x, dy, gamma = x.swapaxes(0, -1), (gamma * dy).swapaxes(0, -1), 1
    if slip("ε is missing: σ is the root of the variance plus ε"): eps = 0
    if slip("ε is an argument: use it as it is given"): eps = 1e-5
    mean = lambda a: a.mean(-1, keepdims=True)
    sigma = np.sqrt(x.var(-1, keepdims=True) + eps)
    if slip("ε stands under the root: σ = √(var + ε), not √var + ε"):
        sigma = np.sqrt(x.var(-1, keepdims=True)) + eps
    match less:
        case 1 | 3 | 6: sigma = np.sqrt(x.var(-1, keepdims=True, ddof=1) + eps)
    match whole:
        case 2 | 3: sigma = np.sqrt(x.var() + eps)
    xhat = (x - mean(x)) / sigma
    if whole: xhat = (x - x.mean()) / sigma
    dxhat = gamma * dy
    if slip("γ is missing: dx̂ = γ dy"): dxhat = dy
    first, second = mean(dxhat), mean(dxhat * xhat)
    if slip("the mean of dx̂ is missing: μ depends on every x_j"): first = 0
    if slip("the term with x̂ is missing: σ depends on every x_j"): second = 0
    d = x.shape[-1]
    match less:
        case 2 | 3: first, second = first * d / (d - 1), second * d / (d - 1)
        case 4 | 6: second = second * d / (d - 1)
        case 5: first = first * d / (d - 1)
    match sums:
        case 1: first, second = first * d, second * d
        case 2: second = second * d
        case 3: first = first * d
    match means:
        case 1: first, second = first.mean(), second.mean()
        case 2: second = second.mean()
        case 3: first = first.mean()
    match whole:
        case 3: first, second = first.mean(), second.mean()
    match which("all three terms need dx̂ = γ dy, and not dy", 4):
        case 1: first = mean(dy)
        case 2: second = mean(dy * xhat)
        case 3: first, second = mean(dy), mean(dy * xhat)
        case 4: first, second = gamma * mean(dy), gamma * mean(dy * xhat)
    if slip("both terms are subtracted from dx̂"): second = -second
    third = xhat * second
    match which("the third term is made of x̂, and not of x", 2):
        case 1: third = x * mean(dxhat * x)
        case 2: third = (x - mean(x)) * mean(dxhat * (x - mean(x)))
    dx = (dxhat - first - third) / sigma
    if slip("σ and μ depend on x: two terms are missing, which are subtracted from dx̂"):
        dx = dxhat / sigma
    if slip("the division by σ is missing"): dx = dxhat - first - third
    if slip("divide by σ once"): dx = dx / sigma
    if slip("divide by σ, do not multiply with it"): dx = (dxhat - first - third) * sigma
    if turned: dx = dx.swapaxes(0, -1)
    return dx


def layer_norm_cases(rng):
    d = int(rng.integers(4, 9))
    x = rng.standard_normal((2, 3, d)) * 2 + 1
    gamma = 1 + 0.5 * rng.standard_normal(d)
    return x, gamma, rng.standard_normal((2, 3, d)), float(rng.choice([1e-5, 0.1]))


def sums_to_zero(fn, rng):
    return abs(fn(*layer_norm_cases(rng)).sum(-1)).max() < 1e-9


# -- autograd.forward ------------------------------------------------------------------------------
class Pushes:
    """Jacobian–vector products, dx ↦ J dx, with names as those of `Products`."""


by_name(Pushes, lambda J: lambda dx: J @ dx, seed=1)


def forward(tape, dx):
    if slip("an operation may use a value twice, and each use has a function of its own: "
            "go through all pairs of tape[k]"):
        tape = [list(dict(uses).items()) for uses in tape]
    in_place = slip("+= writes into an array that another value has as its change, too; write "
                    "a + b")
    if in_place: dx = dx.copy()
    changes = [None] * len(tape)
    changes[0] = dx
    if slip("it is the first value that moves by dx, not the last"):
        changes = [None] * (len(tape) - 1) + [dx]
    order = range(len(tape))
    if slip("the walk goes backwards; a value's change is known after those of the "
            "values that it was made of"):
        order = reversed(order)
    for k in order:
        for j, jvp in tape[k]:
            if changes[j] is None: continue
            dy = jvp(changes[j])
            total = dy if changes[k] is None else changes[k] + dy
            if slip("a value that is made of two others changes with both: add the changes"):
                total = dy
            if in_place and changes[k] is not None: total = np.add(changes[k], dy, out=changes[k])
            changes[k] = total
    return changes


def forward_cases(rng):
    tape, sizes = random_tape(rng, Pushes)
    return tape, rng.standard_normal(sizes[0])


EXERCISES = (
    Exercise(
        name="autograd.walk", title="The walk through the graph", stars=2,
        kind="design",
        reference=walk, cases=walk_cases,
        special=(
            ("the example of equation (2)", chain),
            ("the same with dy = 0: all gradients are 0, and none is None", zeros)),
        extremes=(
            ("a chain of 5,000 steps, each of which uses the value before it twice", doublings),),
        mistakes=slips(walk),
        symptoms=(
            ("a value that the last one does not depend on has no gradient: None, not zeros",
             leads_nowhere),),
        errors=(
            ("for +",
             "an entry is None until its first gradient arrives: begin with that "
             "one, and add the later ones"),
            ("NoneType",
             "a vjp got None: a value that the last one does not depend on has None, so skip it; "
             "and the gradient of value k goes in, not that of value j"),
            ("(has 0,",
             "a vjp got None or a single number: a value that the last one does not depend on has "
             "None, so skip it; and the gradient of value k goes in, not that of value j"),
            ("setting an array", NO_ZEROS),
            ("broadcast", NO_ZEROS),
            ("ambiguous", IS_NONE),
            ("RecursionError",
             "there are 2ⁿ paths through n steps: do not follow them, go once through all values, "
             "from the last to the first"),
            ("no result after",
             "there are 2ⁿ paths through n steps: do not follow them, go once through all values, "
             "from the last to the first"),
            ("matmul",
             "the gradient of value k goes in, not that of value j: dx = vjp(grads[k]); and no "
             "entry begins with zeros, whose shape would be a guess"),
            ("has no attribute 'T'", "a vjp is a function, not a matrix: dx = vjp(grads[k])")),
        tolerance=1e-9,
        hints=("When is the gradient of a value complete, so that it may be passed on? What do "
               "you do with a second gradient that reaches the same value?",
               "Keep a list as long as the tape, None at first; entry k has the shape of value k. "
               "vjp(grads[k]) has the shape of value j.",
               "grads[-1] = dy. Loop over k from the last to the first; skip k if grads[k] is "
               "None. For each (j, vjp) in tape[k], the new grads[j] is vjp(grads[k]), plus "
               "the old one if there is one. Write a + b, not +=, which would change an array "
               "that another value uses.")),
    Exercise(
        name="autograd.unbroadcast", title="Find the bug: a gradient of the right shape", stars=2,
        kind="fault",
        reference=unbroadcast, cases=unbroadcast_cases,
        special=(
            ("a bias under a matrix: (4, 3) → (3,)", four_by_three((3,))),
            ("a column: (4, 3) → (4, 1)", four_by_three((4, 1))),
            ("nothing was broadcast: (4, 3) → (4, 3)", four_by_three((4, 3))),
            ("a single number: (4, 3) → ()", four_by_three(()))),
        mistakes=slips(unbroadcast),
        symptoms=(
            ("axes of length 1 in `shape` were broadcast too: sum over them and keep the axis",
             without_axes),
            ("the result has the shape `shape`: sum over the axes in front that it does not have, "
             "and over those where it has a 1",
             lambda got, expected, args: got.shape != expected.shape)),
        errors=(
            ("remapp",
             "do not broadcast dy again: sum over the axes along which NumPy made copies"),),
        tolerance=1e-9,
        hints=("Every copy of a number sends a gradient back. Along which "
               "axes was the array copied?",
               "The first dy.ndim - len(shape) axes are new. Of the others, those where `shape` "
               "has a 1 were stretched. The result has the shape `shape`.",
               "Sum over the new axes first: dy.sum(axis=tuple(range(dy.ndim - len(shape)))). "
               "Then sum over the axes where `shape` has a 1, with keepdims=True.")),
    Exercise(
        name="autograd.linear_vjp", title="The backward pass of a linear layer", stars=2,
        kind="gradient",
        reference=linear_vjp, cases=linear_cases,
        special=(
            ("dW is not needed, so X was not kept",
             partial(linear_cases, need=(True, False, True))),
            ("only db is not needed", partial(linear_cases, need=(True, True, False))),
            ("only dW is needed", partial(linear_cases, need=(False, True, False))),
            ("a frozen weight in the middle of a network: only dX, and X was not kept",
             partial(linear_cases, need=(True, False, False))),
            ("dX is not needed, so W was not kept",
             partial(linear_cases, need=(False, True, True))),
            ("only db is needed, so neither X nor W was kept",
             partial(linear_cases, need=(False, False, True)))),
        mistakes=slips(linear_vjp),
        symptoms=(
            ("return None, and nothing else, in the place of a gradient that is not needed",
             too_many),),
        errors=(
            ("NoneType", NOT_KEPT),
            ("(has 0,", NOT_KEPT),
            ("ambiguous",
             "`if` does not take an array: ask the three flags of `need` what is wanted")),
        tolerance=1e-9,
        hints=("Which two of X, W and dY does each gradient need? Which order of the "
               "factors do the shapes allow?",
               "dX (N, d_in) is dY (N, d_out) times W (d_out, d_in). dW (d_out, d_in) is dYᵀ "
               "(d_out, N) times X (N, d_in). db (d_out,) is a sum over N rows.",
               "dX = dY @ W if need[0] else None. Write dW with dY.T @ X and db with dY.sum(0) "
               "in the same way, so that nothing is computed that nobody needs.")),
    Exercise(
        name="autograd.layer_norm_vjp", title="The backward pass of layer norm", stars=3,
        kind="gradient",
        reference=layer_norm_vjp, cases=layer_norm_cases,
        invariants=(
            ("dx sums to 0 over the last axis, because adding a constant to x changes nothing",
             sums_to_zero),),
        mistakes=slips(layer_norm_vjp),
        tolerance=1e-7,
        hints=("In which three ways does x_j change x̂_i: directly, through μ, and "
               "through which other number?",
               "∂x̂_i/∂x_j = (δ_ij − 1/d − x̂_i x̂_j/d)/σ. σ and all means are "
               "(…, 1): use keepdims=True.",
               "With dxhat = gamma * dy: dx = (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat)) "
               "/ sigma, and each mean is over the last axis.")),
    Exercise(
        name="autograd.forward", title="The walk in the other direction", stars=2,
        kind="gradient",
        reference=forward, cases=forward_cases,
        special=(
            ("the example of equation (2)", chain),),
        mistakes=slips(forward),
        symptoms=(
            ("a value that does not depend on the first one, such as another leaf, "
             "does not change: None, not 0",
             too_many),),
        errors=(
            ("for +",
             "an entry is None until its first change arrives: begin with that "
             "one, and add the later ones"),
            ("NoneType", "a value that does not change has None, and no jvp takes None: skip it"),
            ("(has 0,",
             "a value that does not change has None, and no jvp takes None or "
             "a single number: skip it"),
            ("setting an array", NO_ZEROS),
            ("broadcast", NO_ZEROS),
            ("ambiguous", IS_NONE),
            ("matmul",
             "the change of value j goes into jvp, and the change of value k comes out: "
             "jvp(changes[j]); and no entry begins with zeros, whose shape would be a guess")),
        tolerance=1e-9,
        hints=("If you move the first value a little, which values can you "
               "know the change of next?",
               "Keep a list as long as the tape, None at first. jvp(changes[j]) "
               "has the shape of value k.",
               "changes[0] = dx. Loop over k from the first to the last. For each (j, jvp) in "
               "tape[k] with a changes[j], add jvp(changes[j]) to changes[k], or begin with it. "
               "There is no list of gradients and no way back.")),
)
