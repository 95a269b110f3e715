"""Lesson 01: the walk through the graph, broadcasting, and backward passes."""
import itertools
from functools import partial

import numpy as np

from ...engine import functional as F
from ...engine.tensor import Tensor, unbroadcast
from ..exercise import Exercise, several

__all__ = ["EXERCISES"]

NO_ZEROS = ("the values have different shapes: keep a list, and begin an entry "
            "with the first array that arrives, not with zeros")
IS_NONE = "`or` and `if` do not take arrays: ask whether an entry `is None`"
EACH_USE = ("an operation may use a value twice, and each use has a function of its own: "
            "go through all pairs of tape[k]")
EARLY = ("a value passed its gradient on before all parts of it had arrived: "
         "go from the last value to the first, one after another")
STEPS = 5000                                             # more than functions may call each other


# -- the walk ------------------------------------------------------------------------------------
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


def added(old, new):
    return new if old is None else old + new


def added_in_place(old, new):
    return new if old is None else np.add(old, new, out=old)


def replaced(old, new):
    return new


def kept(old, new):
    return new if old is None else old


def walk(tape, dy, join=added, order=-1):
    """Return the gradients of all values; `join` and `order` are for the mistakes."""
    grads = [None] * len(tape)
    grads[-1] = dy
    for k in range(len(tape))[::order]:
        if grads[k] is not None:
            for j, vjp in tape[k]:
                grads[j] = join(grads[j], vjp(grads[k]))
    return grads


def once(tape):
    """Keep of the uses that an operation makes of a value the last one alone."""
    return [list(dict(uses).items()) for uses in tape]


def as_found(tape, dy, place):
    """Walk to the values in the order in which they are found, which may be too early."""
    grads = [None] * (len(tape) - 1) + [dy]
    waiting, passed = [len(tape) - 1], set()
    while waiting:
        k = waiting.pop(place)
        if k not in passed:
            passed.add(k)
            for j, vjp in tape[k]:
                grads[j] = added(grads[j], vjp(grads[k]))
                waiting.append(j)
    return grads


def skips_zeros(tape, dy):
    """Take a gradient of zeros for none."""
    grads = [None] * (len(tape) - 1) + [dy]
    for k in reversed(range(len(tape))):
        if grads[k] is not None and np.any(grads[k]):
            for j, vjp in tape[k]: grads[j] = added(grads[j], vjp(grads[k]))
    return grads


def of_leaves(tape, dy):
    grads = walk(tape, dy)
    return [None if tape[k] else grads[k] for k in range(len(tape))]


def too_many(got, expected, args):
    """Is there an array where None is expected?"""
    return any(g is not None and e is None for g, e in zip(got, expected, strict=True))


def reference_walk(tape, dy):
    return walk(tape, dy)


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


# -- broadcasting --------------------------------------------------------------------------------
def reference_unbroadcast(dy, shape):
    return np.array(unbroadcast(dy, tuple(shape)))


def unbroadcast_cases(rng):
    n, m, k = rng.permutation([2, 3, 4]).tolist()
    shapes = [(k,), (1, k), (m, 1)]
    shapes += [(n, 1, k), (1, m, 1), (n, m, k), (1, k)]
    shape = shapes[rng.integers(7)]
    return rng.standard_normal((n, m, k)), shape


def four_by_three(shape):
    return lambda rng: (rng.standard_normal((4, 3)), shape)


def summed_behind(dy, shape):
    return dy.sum(tuple(range(len(shape), dy.ndim)))


def summed_without_keepdims(dy, shape):
    out = dy.sum(tuple(range(dy.ndim - len(shape))))
    return out.sum(tuple(i for i, n in enumerate(shape) if n == 1))


def without_axes(got, expected, args):
    return got.ndim == expected.ndim and 1 in args[1]


def reshaped(dy, shape):
    return dy.reshape(-1, *shape).sum(0)


def averaged(dy, shape):
    return reference_unbroadcast(dy, shape) * (np.prod(shape) / dy.size)


# -- the linear layer ----------------------------------------------------------------------------
def reference_linear_vjp(X, W, dY, need=(True, True, True)):
    d_in = next((a.shape[1] for a in (X, W) if a is not None), 1)
    if X is None:
        X = np.zeros((len(dY), d_in))                    # it was not kept: dW is not needed
    if W is None:
        W = np.zeros((dY.shape[1], d_in))
    X, W = Tensor(X, requires_grad=need[0]), Tensor(W, requires_grad=need[1])
    b = Tensor(np.zeros(len(W), W.dtype), requires_grad=need[2])
    F.linear(X, W, b).backward(dY)
    return X.grad, W.grad, b.grad


def linear_cases(rng, need=None):
    N, d_in, d_out = 3 + rng.permutation(4)[:3]
    need = need or (True, True, True)
    X, W = rng.standard_normal((N, d_in)), rng.standard_normal((d_out, d_in))
    dY = rng.standard_normal((N, d_out))
    return X if need[1] else None, W if need[0] else None, dY, need


NOT_KEPT = ("what no wanted gradient needs was not kept and is None: "
            "look at `need` before you compute anything")


def linear_vjp(X, W, dY, need=(True, True, True), dW=lambda X, dY: dY.T @ X,
               db=lambda dY: dY.sum(0)):
    """Return what is needed; dW and db are for the mistakes."""
    dX = dY @ W if need[0] else None
    return dX, dW(X, dY) if need[1] else None, db(dY) if need[2] else None


def unneeded_bias(X, W, dY, need):
    dX, dW, _ = linear_vjp(X, W, dY, need)
    return dX, dW, dY.sum(0)


def weight_first(*args):
    dX, dW, db = linear_vjp(*args)
    return dW, dX, db


# -- layer norm ----------------------------------------------------------------------------------
def reference_layer_norm_vjp(x, gamma, dy, eps=1e-5):
    x, gamma = Tensor(x, requires_grad=True), Tensor(gamma)
    F.layer_norm(x, gamma, Tensor(np.zeros_like(gamma.data)), eps).backward(dy)
    return x.grad


def mean_of_rows(a):
    return a.mean(-1, keepdims=True)


def centred(a):
    return a - mean_of_rows(a)


def sum_of_rows(a):
    return a.sum(-1, keepdims=True)


def nearly_mean(a):
    return sum_of_rows(a) / (a.shape[-1] - 1)


def sigma_of(x, eps, ddof=0):
    return np.sqrt(x.var(-1, keepdims=True, ddof=ddof) + eps)


def layer_norm_vjp(x, gamma, dy, eps=1e-5, scaled=True, mean=True, projection=True, divided=True,
                   ddof=0, outside=0.0, average=mean_of_rows):
    """Return dx. `average` stands for the mean, and the other options leave a part out."""
    sigma = sigma_of(x, eps, ddof) + outside
    xhat = centred(x) / sigma
    dxhat = gamma * dy if scaled else dy
    dx = dxhat - (average(dxhat) if mean else 0)
    if projection:
        dx = dx - xhat * average(dxhat * xhat)
    return dx / sigma if divided else dx


def of_terms(dx):
    """Return dx with other terms before the division by σ, of d = dx̂, dy and h = x̂."""
    def wrong(x, gamma, dy, eps):
        sigma = sigma_of(x, eps)
        return dx(gamma * dy, dy, centred(x) / sigma) / sigma
    return wrong


def of_averages(first, second):
    """Return dx with these averages in the second and third term."""
    return of_terms(lambda d, dy, h: d - first(d) - h * second(d * h))


def one_less(x, gamma, dy, eps):
    """Return dx for a variance that divides by d − 1, derived rightly."""
    sigma, d = sigma_of(x, eps, ddof=1), gamma * dy
    xhat = centred(x) / sigma
    return (centred(d) - xhat * nearly_mean(d * xhat)) / sigma


def of_whole_array(x, gamma, dy, eps, sigma=sigma_of, average=mean_of_rows):
    """Return dx with μ, and with an option σ and both averages, over all of x."""
    s = sigma(x, eps)
    h, d = (x - x.mean()) / s, gamma * dy
    return (d - average(d) - h * average(d * h)) / s


def whole_sigma(x, eps):
    return np.sqrt(x.var() + eps)


def projected(of):
    """Return dx with of(x) in place of x̂ in the third term."""
    def wrong(x, gamma, dy, eps):
        d, a = gamma * dy, of(x)
        return (centred(d) - a * mean_of_rows(d * a)) / sigma_of(x, eps)
    return wrong


def itself(x):
    return x


def late_gamma(x, gamma, dy, eps):
    return gamma * layer_norm_vjp(x, 1, dy, eps)


def alone(x, gamma, dy, eps):
    return gamma * dy / sigma_of(x, eps)


def divided_twice(x, gamma, dy, eps):
    return layer_norm_vjp(x, gamma, dy, eps) / sigma_of(x, eps)


def multiplied(x, gamma, dy, eps):
    return layer_norm_vjp(x, gamma, dy, eps) * sigma_of(x, eps) ** 2


def other_axis(x, gamma, dy, eps):
    x, dxhat = x.swapaxes(0, -1), (gamma * dy).swapaxes(0, -1)
    return layer_norm_vjp(x, 1, dxhat, eps).swapaxes(0, -1)


def layer_norm_cases(rng):
    d = int(rng.integers(4, 9))
    x = rng.standard_normal((2, 3, d)) * 2 + 1
    gamma = 1 + 0.5 * rng.standard_normal(d)
    return x, gamma, rng.standard_normal((2, 3, d)), float(rng.choice([1e-5, 0.1]))


def eps_outside(x, gamma, dy, eps):
    return layer_norm_vjp(x, gamma, dy, 0.0, outside=eps)


def sums_to_zero(fn, rng):
    return abs(fn(*layer_norm_cases(rng)).sum(-1)).max() < 1e-9


# -- the other direction -------------------------------------------------------------------------
class Pushes:
    """Jacobian–vector products, dx ↦ J dx, with names as those of `Products`."""


by_name(Pushes, lambda J: lambda dx: J @ dx, seed=1)


def forward(tape, dx, join=added, order=1, first=0):
    """Return the changes of all values with the first one; the options are for the mistakes."""
    changes = [None] * len(tape)
    changes[first] = dx
    for k in range(len(tape))[::order]:
        for j, jvp in tape[k]:
            if changes[j] is not None:
                changes[k] = join(changes[k], jvp(changes[j]))
    return changes


def reference_forward(tape, dx):
    return forward(tape, dx)


def forward_cases(rng):
    tape, sizes = random_tape(rng, Pushes)
    return tape, rng.standard_normal(sizes[0])


EXERCISES = (
    Exercise(
        name="autograd.walk", title="The walk through the graph", stars=2,
        kind="design",
        reference=reference_walk, cases=walk_cases,
        special=(
            ("the example of equation (2)", chain),
            ("the same with dy = 0: all gradients are 0, and none is None", zeros)),
        extremes=(
            ("a chain of 5,000 steps, each of which uses the value before it twice", doublings),),
        mistakes=(
            *several("a value that is used twice keeps only one of its gradients; add "
                     "the new one to the old one",
                     partial(walk, join=replaced), partial(walk, join=kept)),
            ("the walk goes forwards; start at the last value and go down", partial(walk, order=1)),
            ("+= writes into an array that another value has as its gradient, too; write a + b",
             lambda tape, dy: walk(tape, np.array(dy), join=added_in_place)),
            (EACH_USE, lambda tape, dy: walk(once(tape), dy)),
            (EARLY, partial(as_found, place=0)),
            (EARLY, partial(as_found, place=-1)),
            ("the gradient of the last value is dy, not 1",
             lambda tape, dy: walk(tape, np.ones_like(dy))),
            ("the list is in reverse order: entry k is the gradient of value k",
             lambda tape, dy: walk(tape, dy)[::-1]),
            ("a gradient of zeros is one, too: skip a value only if nothing has arrived at it",
             skips_zeros),
            ("the gradients of all values are asked for, not those of the leaves alone",
             of_leaves)),
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
        reference=reference_unbroadcast, cases=unbroadcast_cases,
        special=(
            ("a bias under a matrix: (4, 3) → (3,)", four_by_three((3,))),
            ("a column: (4, 3) → (4, 1)", four_by_three((4, 1))),
            ("nothing was broadcast: (4, 3) → (4, 3)", four_by_three((4, 3))),
            ("a single number: (4, 3) → ()", four_by_three(()))),
        mistakes=(
            ("the sum over an axis of length 1 must keep that axis: keepdims=True",
             summed_without_keepdims),
            ("broadcasting adds new axes in front: sum over the first axes, not over the last",
             summed_behind),
            ("you took a mean instead of a sum: every copy sends its whole gradient back",
             averaged),
            ("the numbers are cut in the order in which they lie in memory, whatever axis they "
             "belong to: sum over axes", reshaped)),
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
        reference=reference_linear_vjp, cases=linear_cases,
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
        mistakes=(
            ("you computed a gradient that nobody needs: return None where need is False",
             unneeded_bias),
            ("db is a sum over the N rows, axis 0; yours is over axis 1",
             partial(linear_vjp, db=lambda dY: dY.sum(1))),
            ("db is a sum over rows, not a mean", partial(linear_vjp, db=lambda dY: dY.mean(0))),
            ("dW is averaged over rows; every row adds its part, so it is a sum",
             partial(linear_vjp, dW=lambda X, dY: dY.T @ X / len(X))),
            ("dW is transposed: it has the shape of W, (d_out, d_in)",
             partial(linear_vjp, dW=lambda X, dY: X.T @ dY)),
            ("the order is (dX, dW, db)", lambda *a: linear_vjp(*a)[::-1]),
            ("the order is (dX, dW, db)", weight_first)),
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
        reference=reference_layer_norm_vjp, cases=layer_norm_cases,
        invariants=(
            ("dx sums to 0 over the last axis, because adding a constant to x changes nothing",
             sums_to_zero),),
        mistakes=(
            ("γ is missing: dx̂ = γ dy", partial(layer_norm_vjp, scaled=False)),
            ("the mean of dx̂ is missing: μ depends on every x_j",
             partial(layer_norm_vjp, mean=False)),
            ("the term with x̂ is missing: σ depends on every x_j",
             partial(layer_norm_vjp, projection=False)),
            ("the division by σ is missing", partial(layer_norm_vjp, divided=False)),
            ("ε is missing: σ is the root of the variance plus ε",
             lambda x, gamma, dy, eps: layer_norm_vjp(x, gamma, dy, 0.0)),
            ("ε stands under the root: σ = √(var + ε), not √var + ε", eps_outside),
            *several("the variance divides by d, not by d − 1, and so does each mean",
                     partial(layer_norm_vjp, ddof=1),
                     partial(layer_norm_vjp, average=nearly_mean),
                     partial(layer_norm_vjp, ddof=1, average=nearly_mean),
                     of_averages(mean_of_rows, nearly_mean),
                     of_averages(nearly_mean, mean_of_rows), one_less),
            *several("a sum stands where a mean belongs: divide it by d",
                     partial(layer_norm_vjp, average=sum_of_rows),
                     of_averages(mean_of_rows, sum_of_rows),
                     of_averages(sum_of_rows, mean_of_rows)),
            *several("the means run over all axes; each row of d numbers has its own mean, over "
                     "the last axis",
                     partial(layer_norm_vjp, average=np.mean),
                     of_averages(mean_of_rows, np.mean), of_averages(np.mean, mean_of_rows)),
            *several("μ or σ runs over all axes; each row of d numbers has its own, over the "
                     "last axis",
                     of_whole_array, partial(of_whole_array, sigma=whole_sigma),
                     partial(of_whole_array, sigma=whole_sigma, average=np.mean)),
            *several("all three terms need dx̂ = γ dy, and not dy",
                     of_terms(lambda d, dy, h: d - mean_of_rows(dy) - h * mean_of_rows(d * h)),
                     of_terms(lambda d, dy, h: centred(d) - h * mean_of_rows(dy * h)),
                     of_terms(lambda d, dy, h: d - mean_of_rows(dy) - h * mean_of_rows(dy * h)),
                     late_gamma),
            ("σ and μ depend on x: two terms are missing, which are subtracted from dx̂", alone),
            ("both terms are subtracted from dx̂",
             of_terms(lambda d, dy, h: centred(d) + h * mean_of_rows(d * h))),
            *several("the third term is made of x̂, and not of x",
                     projected(itself), projected(centred)),
            ("divide by σ once", divided_twice),
            ("divide by σ, do not multiply with it", multiplied),
            ("ε is an argument: use it as it is given",
             lambda x, gamma, dy, eps: layer_norm_vjp(x, gamma, dy, 1e-5)),
            ("each row of d numbers is normalized by itself, over the last "
             "axis, and not over the first",
             other_axis)),
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
        reference=reference_forward, cases=forward_cases,
        special=(
            ("the example of equation (2)", chain),),
        mistakes=(
            ("a value that is made of two others changes with both: add the changes",
             partial(forward, join=replaced)),
            ("the walk goes backwards; a value's change is known after those of the "
             "values that it was made of",
             partial(forward, order=-1)),
            ("it is the first value that moves by dx, not the last", partial(forward, first=-1)),
            (EACH_USE, lambda tape, dx: forward(once(tape), dx)),
            ("+= writes into an array that another value has as its change, too; write a + b",
             lambda tape, dx: forward(tape, np.array(dx), join=added_in_place))),
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
