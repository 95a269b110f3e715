"""gradcheck.py: it passes what is right, and catches what a check with an upstream gradient of ones lets through."""
import numpy as np
import pytest

import tinypeft as tp
from tinypeft.engine import functional as F
from tinypeft.engine.tensor import Tensor

X = np.random.default_rng(0).standard_normal((3, 4))


def nonsense_softmax(x):
    """dx = dp − mean(dp) is 0 where dp = 1, as the right formula is: rows of probabilities sum to one anyway."""
    return Tensor.op(F.softmax(x).data, (x, lambda dp: dp - dp.mean(-1, keepdims=True)))


def layer_norm_without_its_means(x):
    y = F.layer_norm(x, Tensor(np.ones(4)), Tensor(np.zeros(4))).data
    return Tensor.op(y, (x, lambda dy: dy / x.data.std(-1, keepdims=True)))


def one_element_off(x):
    def dx(dy):
        dx = 2 * x.data * dy
        dx[1, 2] *= 1 + 1e-6
        return dx
    return Tensor.op(x.data ** 2, (x, dx))


@pytest.mark.parametrize("wrong", [nonsense_softmax, layer_norm_without_its_means, one_element_off])
def test_catches(wrong):
    with pytest.raises(AssertionError, match=r"input 0 of shape \(3, 4\): backward says .* finite differences say"):
        tp.gradcheck(wrong, X)


def test_ones_would_not_have_caught_the_softmax():
    x = Tensor(X, requires_grad=True)
    nonsense_softmax(x).sum().backward()
    assert np.array_equal(x.grad, np.zeros((3, 4)))


def test_says_which_input_is_wrong():
    def f(a, b):
        return Tensor.op(a.data * b.data, (a, lambda dy: dy * b.data), (b, lambda dy: dy * a.data * 1.001))
    with pytest.raises(AssertionError, match="input 1"):
        tp.gradcheck(f, X, X + 2)


def test_returns_the_worst_error():
    assert 0 < tp.gradcheck(lambda a: a.exp(), X) < 1e-9


def test_leaves_everything_as_it_was():
    a, b = Tensor(X.copy(), requires_grad=True), Tensor(X.copy())
    a.grad = np.ones((3, 4))
    data, grad = a.data, a.grad
    tp.gradcheck(lambda a, b: a * b, a, b)
    assert a.data is data and np.array_equal(a.data, X) and a.grad is grad and b.grad is None


def test_checks_what_requires_a_gradient_and_nothing_else():
    def f(a, b):                                         # the gradient of b is nonsense, but b is frozen
        return Tensor.op(a.data * b.data, (a, lambda dy: dy * b.data), (b, lambda dy: dy * 7))
    tp.gradcheck(f, Tensor(X, requires_grad=True), Tensor(X))


def test_an_input_that_does_not_matter_has_gradient_zero():
    tp.gradcheck(lambda a, b: a * 2, X, X)
    with pytest.raises(AssertionError, match="input 1"):  # one whose gradient was forgotten does not pass
        tp.gradcheck(lambda a, b: a * b.detach() + 0 * b.data, X, X)


def test_parameters_of_a_module():
    layer = tp.engine.Linear(4, 2, rng=0).to(np.float64)
    tp.gradcheck(lambda *_: layer(Tensor(X)), *layer.parameters())


@pytest.mark.parametrize("inputs, error, says", [
    ([Tensor(X.astype(np.float32), requires_grad=True)], TypeError, "input 0 is float32"),
    ([Tensor(X)], ValueError, "no input requires a gradient"),
])
def test_misuse(inputs, error, says):
    with pytest.raises(error, match=says):
        tp.gradcheck(lambda x: x * 2, *inputs)


@pytest.mark.parametrize("unit", [1e-12, 1e-6, 1e6])
def test_the_error_is_relative_to_the_gradients_size(unit):
    """Rounding of a steep function is large, too; an error of a millionth is found in any unit."""
    tp.gradcheck(lambda a: a.exp() * unit, X)
    with pytest.raises(AssertionError): tp.gradcheck(lambda a: one_element_off(a) * unit, X)


@pytest.mark.parametrize("f, x", [
    (lambda x: F.softmax(x).sum(-1), X),                 # the gradient is 0, and the values move by rounding
    (lambda x: 1e3 + 1e-6 * x, X),                       # it is far smaller than the rounding of the values allows to see
    (lambda x: x ** 3, np.zeros(4)), (lambda x: x * 0, X)])
def test_rounding_is_no_error(f, x):
    tp.gradcheck(f, x)


def test_a_tolerance_of_0_leaves_nothing_but_rounding():
    assert tp.gradcheck(lambda x: x * 0, X, tolerance=0) == 0
    with pytest.raises(AssertionError): tp.gradcheck(one_element_off, X, tolerance=0)
    wrong = lambda x: tp.Tensor.fused(x.data ** 2, [x], lambda dy: [0 * dy])          # the gradient is 0, and should not be
    with pytest.raises(AssertionError): tp.gradcheck(wrong, X)
