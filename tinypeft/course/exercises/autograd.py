"""Lesson 01: the walk through the graph, broadcasting, and the backward passes of two layers."""
import numpy as np

from ... import functional as F
from ...tensor import Tensor, unbroadcast
from ..exercise import Exercise

__all__ = ["EXERCISES"]

STEPS = 5000                                                                  # more than functions may call each other


# -- the walk ------------------------------------------------------------------------------------
def walk(tape, dy, add=True, order=-1):
    """Gradients of all values of a tape of Jacobians; `add` and `order` make the mistakes."""
    grads = [None] * len(tape)
    grads[-1] = dy
    for k in range(len(tape))[::order]:
        if grads[k] is None: continue
        for j, J in tape[k]:
            dx = J.T @ grads[k]
            grads[j] = grads[j] + dx if add and grads[j] is not None else dx
    return grads


def reference_walk(tape, dy):
    return walk(tape, dy)


def tape_of(edges, sizes, rng):
    """A tape of values of the given sizes, with a random Jacobian for each pair of `edges`, (user, used)."""
    return [[(j, rng.standard_normal((sizes[k], sizes[j]))) for user, j in edges if user == k] for k in range(len(sizes))]


def walk_cases(rng):
    sizes = rng.integers(1, 5, 7).tolist()                                    # 0 and 1 leaves, 3 a value that leads nowhere
    edges = [(2, 0), (2, 1), (2, 0), (3, 1), (4, 2), (4, 2), (5, 4), (5, 1), (6, 5), (6, 2)]
    return tape_of(edges, sizes, rng), rng.standard_normal(sizes[-1])


def chain(rng):
    """Equation (2) of the lesson: x·x, a + a, b + a at x = 3."""
    J3, J1 = np.array([[3.0]]), np.array([[1.0]])
    return [[], [(0, J3), (0, J3)], [(1, J1), (1, J1)], [(2, J1), (1, J1)]], np.array([1.0])


def long_chain(rng):
    """y = ½ x + ½ x, again and again: a value has 2 paths to the next one, and 2ⁿ to the n-th after it."""
    half = np.array([[0.5]])
    return [[], *([(k, half), (k, half)] for k in range(STEPS))], np.array([1.0])


# -- broadcasting --------------------------------------------------------------------------------
def reference_unbroadcast(dy, shape):
    return np.array(unbroadcast(dy, tuple(shape)))


def unbroadcast_cases(rng):
    n, m, k = rng.permutation([2, 3, 4]).tolist()
    shape = [(k,), (1, k), (m, 1), (n, 1, k), (1, m, 1), (n, m, k), (1, k)][rng.integers(7)]
    return rng.standard_normal((n, m, k)), shape


def summed_without_keepdims(dy, shape):
    out = dy.sum(tuple(range(dy.ndim - len(shape))))
    return out.sum(tuple(i for i, n in enumerate(shape) if n == 1))


# -- the linear layer ----------------------------------------------------------------------------
def reference_linear_vjp(X, W, dY, need=(True, True, True)):
    if X is None: X = np.zeros((len(dY), W.shape[1]))                         # it was not kept: dW is not needed
    if W is None: W = np.zeros((dY.shape[1], X.shape[1]))
    X, W = Tensor(X, requires_grad=need[0]), Tensor(W, requires_grad=need[1])
    b = Tensor(np.zeros(len(W), W.dtype), requires_grad=need[2])
    F.linear(X, W, b).backward(dY)
    return X.grad, W.grad, b.grad


def linear_cases(rng, need=None):
    N, d_in, d_out = 3 + rng.permutation(4)[:3]
    if need is None: need = [(True, True, True), (True, False, True), (False, True, False), (True, False, False)][rng.integers(4)]
    return rng.standard_normal((N, d_in)), rng.standard_normal((d_out, d_in)), rng.standard_normal((N, d_out)), need


def all_three(X, W, dY, need=(True, True, True)):
    return dY @ W, dY.T @ X, dY.sum(0)


def only_needed(triple, need):
    return tuple(g if n else None for g, n in zip(triple, need, strict=True))


# -- layer norm ----------------------------------------------------------------------------------
def reference_layer_norm_vjp(x, gamma, dy, eps=1e-5):
    x, gamma = Tensor(x, requires_grad=True), Tensor(gamma)
    F.layer_norm(x, gamma, Tensor(np.zeros_like(gamma.data)), eps).backward(dy)
    return x.grad


def layer_norm_vjp(x, gamma, dy, eps=1e-5, scaled=True, mean=True, projection=True, divided=True, ddof=0, outside=0.0):
    sigma = np.sqrt(x.var(-1, keepdims=True, ddof=ddof) + eps) + outside
    xhat = (x - x.mean(-1, keepdims=True)) / sigma
    dxhat = gamma * dy if scaled else dy
    dx = dxhat - (dxhat.mean(-1, keepdims=True) if mean else 0)
    if projection: dx = dx - xhat * (dxhat * xhat).mean(-1, keepdims=True)
    return dx / sigma if divided else dx


def layer_norm_cases(rng):
    d = int(rng.integers(4, 9))
    return rng.standard_normal((2, 3, d)) * 2 + 1, 1 + 0.5 * rng.standard_normal(d), rng.standard_normal((2, 3, d)), float(rng.choice([1e-5, 0.1]))


EXERCISES = (
    Exercise(
        name="autograd.walk", title="The walk through the graph", stars=2,
        reference=reference_walk, cases=walk_cases,
        special=(
            ("the example of equation (2)", chain),
            ("a chain of 5,000 steps, each of which uses the value before it twice", long_chain)),
        mistakes=(
            ("a value that is used twice keeps only one of its gradients; add the new one to the old one",
             lambda tape, dy: walk(tape, dy, add=False)),
            ("the walk goes forwards; start at the last value and go down", lambda tape, dy: walk(tape, dy, order=1)),
            ("J is not transposed: dx = Jᵀ dy",
             lambda tape, dy: walk([[(j, J.T) if J.shape[0] == J.shape[1] else (j, J) for j, J in uses] for uses in tape], dy))),
        symptoms=(
            ("a value that the last one does not depend on has no gradient: None, not zeros",
             lambda got, expected, args: got[3] is not None and expected[3] is None),),
        errors=(
            ("RecursionError", "there are 2ⁿ paths through n steps: do not follow them, go once through all values, from the "
                               "last to the first"),
            ("no result after", "there are 2ⁿ paths through n steps: do not follow them, go once through all values, from the "
                                "last to the first"),
            ("matmul", "J is (size of k, size of j) and the gradient of k comes in: dx = J.T @ dy, not J @ dy")),
        tolerance=1e-9,
        hints=("When is the gradient of a value complete, so that it may be passed on? What do you do with a second "
               "gradient that reaches the same value?",
               "Keep a list as long as the tape, None at first; entry k has the size of value k. J is (size of k, size of "
               "j), so J.T @ grads[k] has the size of value j.",
               "grads[-1] = dy. Loop over k from the last to the first; skip k if grads[k] is None. For each (j, J) in "
               "tape[k], the new grads[j] is J.T @ grads[k], plus the old one if there is one. Write a + b, not +=, which "
               "would change an array that another value uses.")),
    Exercise(
        name="autograd.unbroadcast", title="Undo a broadcast", stars=2,
        reference=reference_unbroadcast, cases=unbroadcast_cases,
        special=(
            ("a bias under a matrix: (4, 3) → (3,)", lambda rng: (rng.standard_normal((4, 3)), (3,))),
            ("a column: (4, 3) → (4, 1)", lambda rng: (rng.standard_normal((4, 3)), (4, 1))),
            ("nothing was broadcast: (4, 3) → (4, 3)", lambda rng: (rng.standard_normal((4, 3)), (4, 3))),
            ("a single number: (4, 3) → ()", lambda rng: (rng.standard_normal((4, 3)), ()))),
        mistakes=(
            ("the sum over an axis of length 1 must keep that axis: keepdims=True", summed_without_keepdims),
            ("broadcasting adds new axes in front: sum over the first axes, not over the last",
             lambda dy, shape: dy.sum(tuple(range(len(shape), dy.ndim)))),
            ("you took a mean instead of a sum: every copy sends its whole gradient back",
             lambda dy, shape: reference_unbroadcast(dy, shape) * (np.prod(shape) / dy.size))),
        symptoms=(
            ("axes of length 1 in `shape` were broadcast too: sum over them and keep the axis",
             lambda got, expected, args: got.ndim == expected.ndim and 1 in args[1]),),
        tolerance=1e-9,
        hints=("Every copy of a number sends a gradient back. Along which axes was the array copied?",
               "The first dy.ndim − len(shape) axes are new. Of the others, those where `shape` has a 1 were stretched. "
               "The result has the shape `shape`.",
               "Sum over the new axes first: dy.sum(axis=tuple(range(dy.ndim − len(shape)))). Then sum over the axes where"
               " `shape` has a 1, with keepdims=True.")),
    Exercise(
        name="autograd.linear_vjp", title="The backward pass of a linear layer", stars=2,
        reference=reference_linear_vjp, cases=linear_cases,
        special=(
            ("everything is needed", lambda rng: linear_cases(rng, (True, True, True))),
            ("a frozen weight in the middle of a network: only dX",
             lambda rng: linear_cases(rng, (True, False, False))),
            ("dW is not needed, so X was not kept", lambda rng: (None, *linear_cases(rng, (True, False, True))[1:])),
            ("dX is not needed, so W was not kept",
             lambda rng: (lambda X, W, dY, need: (X, None, dY, need))(*linear_cases(rng, (False, True, True))))),
        mistakes=(
            ("you computed a gradient that nobody needs: return None where need is False, and save the product",
             all_three),
            ("db is a sum over the N rows, axis 0; yours is over axis 1",
             lambda X, W, dY, need: only_needed((dY @ W, dY.T @ X, dY.sum(1)), need)),
            ("db is a sum over rows, not a mean",
             lambda X, W, dY, need: only_needed((dY @ W, dY.T @ X, dY.mean(0)), need)),
            ("dW is averaged over rows; equation (5) is a sum",
             lambda X, W, dY, need: only_needed((dY @ W, dY.T @ X / len(X), dY.sum(0)), need)),
            ("dW is transposed: W is (d_out, d_in), so dW = dYᵀ X",
             lambda X, W, dY, need: only_needed((dY @ W, X.T @ dY, dY.sum(0)), need))),
        errors=(
            ("NoneType", "what no wanted gradient needs was not kept and is None: look at `need` before you compute anything"),
            ("(has 0,", "what no wanted gradient needs was not kept and is None: look at `need` before you compute anything")),
        tolerance=1e-9,
        hints=("Which two of X, W and dY does each gradient need? Which order of the factors do the shapes allow?",
               "dX (N, d_in) is dY (N, d_out) times W (d_out, d_in). dW (d_out, d_in) is dYᵀ (d_out, N) times X (N, d_in)."
               " db (d_out,) is a sum over N rows.",
               "dX = dY @ W if need[0] else None. Write dW with dY.T @ X and db with dY.sum(0) in the same way, so that "
               "nothing is computed that nobody needs.")),
    Exercise(
        name="autograd.layer_norm_vjp", title="The backward pass of layer norm", stars=3,
        reference=reference_layer_norm_vjp, cases=layer_norm_cases,
        invariants=(
            ("dx sums to 0 over the last axis, because adding a constant to x changes nothing",
             lambda fn, rng: abs(fn(*layer_norm_cases(rng)).sum(-1)).max() < 1e-9),),
        mistakes=(
            ("γ is missing: dx̂ = γ dy", lambda *a: layer_norm_vjp(*a, scaled=False)),
            ("the mean of dx̂ is missing: μ depends on every x_j", lambda *a: layer_norm_vjp(*a, mean=False)),
            ("the term with x̂ is missing: σ depends on every x_j", lambda *a: layer_norm_vjp(*a, projection=False)),
            ("the division by σ is missing", lambda *a: layer_norm_vjp(*a, divided=False)),
            ("ε is missing: σ is the root of the variance plus ε", lambda x, gamma, dy, eps: layer_norm_vjp(x, gamma, dy, 0.0)),
            ("ε stands under the root: σ = √(var + ε), not √var + ε",
             lambda x, gamma, dy, eps: layer_norm_vjp(x, gamma, dy, 0.0, outside=eps)),
            ("the variance divides by d, not by d − 1", lambda *a: layer_norm_vjp(*a, ddof=1)),
            ("the first term uses dx̂, but the means use dy: all three terms need dx̂ = γ dy",
             lambda x, gamma, dy, eps: layer_norm_vjp(x, gamma, dy, eps)
             + ((gamma * dy).mean(-1, keepdims=True) - dy.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps))),
        tolerance=1e-7,
        hints=("In which three ways does x_j change x̂_i: directly, through μ, and through which other number?",
               "∂x̂_i/∂x_j = (δ_ij − 1/d − x̂_i x̂_j/d)/σ. σ and all means are (…, 1): use keepdims=True.",
               "With dxhat = gamma * dy: dx = (dxhat − mean(dxhat) − xhat * mean(dxhat * xhat))/sigma, and each mean is "
               "over the last axis.")),
)
