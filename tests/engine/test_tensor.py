"""tensor.py: every primitive against finite differences and PyTorch, the walk backward, memory, and every error."""
import gc
import threading
import weakref

import numpy as np
import pytest

import tinypeft as tp
from tests.oracles import assert_close
from tinypeft.engine import tensor
from tinypeft.engine.tensor import Tensor, enable_grad, topological_order, unbroadcast


# -- arrays ----------------------------------------------------------------------------------------
def normal(*shape):
    return np.asarray(np.random.default_rng(sum(shape) + len(shape)).standard_normal(shape))


def positive(*shape):
    return 0.5 + np.abs(normal(*shape))


def apart(*shape):
    """No two numbers, and no number and 0, closer than 0.1: finite differences stay on one side of every kink."""
    n = int(np.prod(shape))
    return np.random.default_rng(n).permutation(0.1 * (np.arange(n) - n // 2 + 0.5)).reshape(shape)


def layouts(a):
    """The same numbers in memory row by row, column by column, backwards, and with gaps."""
    backwards = (slice(None, None, -1),) * a.ndim
    return {"rows": a, "columns": np.asfortranarray(a), "backwards": a[backwards].copy()[backwards],
            "gaps": np.repeat(a, 2, axis=-1)[..., ::2] if a.ndim else a}


IDS = np.array([[0, 2, 2], [1, 0, 2]])
ROWS = [2, 0, 2, -1]
HIDDEN = np.random.default_rng(5).random((3, 4)) < 0.5

# name → (arrays, ours, PyTorch's; None where both are spelled alike)
CASES = {
    "add":              ((normal(3, 4), normal(3, 4)), lambda a, b: a + b, None),
    "add rows":         ((normal(3, 4), normal(4)), lambda a, b: a + b, None),
    "add columns":      ((normal(3, 4), normal(3, 1)), lambda a, b: a + b, None),
    "add both ways":    ((normal(3, 1, 4), normal(2, 1)), lambda a, b: a + b, None),
    "add 0-d":          ((normal(3, 4), normal()), lambda a, b: a + b, None),
    "add itself":       ((normal(3, 4),), lambda a: a + a, None),
    "add number":       ((normal(3, 4),), lambda a: 2 + (a + 1.5), None),
    "sub":              ((normal(2, 3, 4), normal(3, 1)), lambda a, b: a - b, None),
    "sub from number":  ((normal(3, 4),), lambda a: 1.5 - a, None),
    "neg":              ((normal(3, 4),), lambda a: -a, None),
    "mul":              ((normal(3, 4), normal(4)), lambda a, b: a * b, None),
    "mul both ways":    ((normal(4, 1), normal(1, 3)), lambda a, b: a * b, None),
    "mul 0-d":          ((normal(), normal()), lambda a, b: a * b, None),
    "square":           ((normal(3, 4),), lambda a: a * a, None),
    "mul number":       ((normal(3, 4),), lambda a: 2 * a * 0.5, None),
    "div":              ((normal(3, 4), positive(3, 1)), lambda a, b: a / b, None),
    "div number":       ((positive(3, 4),), lambda a: 3 / a + a / 7, None),
    "pow 2":            ((normal(3, 4),), lambda a: a ** 2, None),
    "pow 3.5":          ((positive(3, 4),), lambda a: a ** 3.5, None),
    "pow -1":           ((positive(3, 4),), lambda a: a ** -1, None),
    "pow 0":            ((normal(3, 4),), lambda a: a ** 0, None),
    "pow tensor":       ((positive(3, 4), normal(4)), lambda a, b: a ** b, None),
    "number to the":    ((normal(3, 4),), lambda a: 2.0 ** a, None),
    "matmul":           ((normal(3, 4), normal(4, 5)), lambda a, b: a @ b, None),
    "matmul batched":   ((normal(2, 3, 4), normal(2, 4, 5)), lambda a, b: a @ b, None),
    "matmul broadcast": ((normal(2, 1, 3, 4), normal(5, 4, 2)), lambda a, b: a @ b, None),
    "matmul vector":    ((normal(2, 3, 4), normal(4)), lambda a, b: a @ b, None),
    "vector matmul":    ((normal(4), normal(2, 4, 3)), lambda a, b: a @ b, None),
    "vector vector":    ((normal(4), normal(4)), lambda a, b: a @ b, None),
    "exp":              ((normal(3, 4),), lambda a: a.exp(), None),
    "log":              ((positive(3, 4),), lambda a: a.log(), None),
    "sqrt":             ((positive(3, 4),), lambda a: a.sqrt(), None),
    "tanh":             ((normal(3, 4),), lambda a: a.tanh(), None),
    "sigmoid":          ((3 * normal(3, 4),), lambda a: a.sigmoid(), None),
    "relu":             ((apart(3, 4),), lambda a: a.relu(), None),
    "abs":              ((apart(3, 4),), lambda a: a.abs(), None),
    "exp 0-d":          ((normal(),), lambda a: a.exp(), None),
    "sum":              ((normal(2, 3, 4),), lambda a: a.sum(), None),
    "sum axis":         ((normal(2, 3, 4),), lambda a: a.sum(1), None),
    "sum axes":         ((normal(2, 3, 4),), lambda a: a.sum((0, -1)), None),
    "sum keepdims":     ((normal(2, 3, 4),), lambda a: a.sum(-1, keepdims=True), lambda a: a.sum(-1, keepdim=True)),
    "sum all keepdims": ((normal(2, 3),), lambda a: a.sum(keepdims=True), lambda a: a.sum((0, 1), keepdim=True)),
    "mean":             ((normal(2, 3, 4),), lambda a: a.mean(), None),
    "mean axes":        ((normal(2, 3, 4),), lambda a: a.mean((0, 2)), None),
    "mean keepdims":    ((normal(2, 3, 4),), lambda a: a.mean(1, keepdims=True), lambda a: a.mean(1, keepdim=True)),
    "max":              ((apart(2, 3, 4),), lambda a: a.max(), None),
    "max axis":         ((apart(2, 3, 4),), lambda a: a.max(1), lambda a: a.amax(1)),
    "max axes":         ((apart(2, 3, 4),), lambda a: a.max((0, 2)), lambda a: a.amax((0, 2))),
    "max keepdims":     ((apart(2, 3, 4),), lambda a: a.max(-1, keepdims=True), lambda a: a.amax(-1, keepdim=True)),
    "max of 1 by 1":    ((apart(1, 1),), lambda a: a.max(0), lambda a: a.amax(0)),
    "reshape":          ((normal(2, 3, 4),), lambda a: a.reshape(4, -1) * a.reshape((4, 6)), None),
    "transpose":        ((normal(2, 3, 4),), lambda a: a.transpose(), lambda a: a.permute(2, 1, 0)),
    "transpose axes":   ((normal(2, 3, 4),), lambda a: a.transpose(1, -1, 0), lambda a: a.permute(1, -1, 0)),
    "T":                ((normal(3, 4),), lambda a: a.T @ a, None),
    "slice":            ((normal(5, 4),), lambda a: a[1:4, ::2], None),
    "slice backwards":  ((normal(5, 4),), lambda a: a[::-1, 1], lambda a: a.flip(0)[:, 1]),
    "ellipsis, new":    ((normal(2, 3, 4),), lambda a: a[..., None, -1], None),
    "ids":              ((normal(3, 4),), lambda a: a[IDS], None),
    "ids and slice":    ((normal(2, 3, 4),), lambda a: a[:, ROWS[:3], 1:], None),
    "list":             ((normal(3, 4),), lambda a: a[ROWS], None),
    "ids pairwise":     ((normal(3, 4),), lambda a: a[ROWS, [0, 1, 0, 1]], None),
    "mask":             ((normal(3, 4),), lambda a: a[HIDDEN], None),
    "concatenate":      ((normal(3, 4), normal(2, 4), normal(1, 4)), lambda *a: tp.concatenate(a), "cat"),
    "concatenate last": ((normal(3, 4), normal(3, 1)), lambda *a: tp.concatenate(a, -1), "cat last"),
    "stack":            ((normal(3, 4), normal(3, 4)), lambda *a: tp.stack(a), "stack"),
    "stack last":       ((normal(3, 4), normal(3, 4)), lambda *a: tp.stack(a, -1), "stack last"),
    "split":            ((normal(6, 4),), lambda a: tp.split(a, 3)[1] * tp.split(a, 3)[0], lambda a: a[2:4] * a[:2]),
    "split at":         ((normal(6, 4),), lambda a: tp.split(a, [1, 5])[1], lambda a: a[1:5]),
    "split last":       ((normal(3, 4),), lambda a: tp.split(a, 2, axis=-1)[1], lambda a: a[:, 2:]),
    "maximum":          ((apart(3, 4), apart(3, 4)[::-1, :1].copy() + 0.04), lambda a, b: tp.maximum(a, b), "maximum"),
    "where":            ((normal(3, 4), normal(4)), lambda a, b: tp.where(HIDDEN, a, b), "where"),
    "where number":     ((normal(3, 4),), lambda a: tp.where(HIDDEN, a, 2.0), "where number"),
    "empty":            ((normal(0, 4), normal(4)), lambda a, b: (a * b).exp().sum(0), None),
    "empty mean":       ((normal(0, 4),), lambda a: a.mean(-1), None),
    "empty slice":      ((normal(3, 4), normal(4)), lambda a, b: (a[3:] + b).sum(), None),
    "empty ids":        ((normal(3, 4),), lambda a: a[np.zeros(0, int)], None),
    "empty max":        ((normal(0, 4),), lambda a: a.max(1), lambda a: a.amax(1)),
    "empty split":      ((normal(0, 4), normal(4)), lambda a, b: tp.split(a, 2)[1] + b, lambda a, b: a + b),
    "no columns":       ((normal(3, 0), normal(0, 2)), lambda a, b: a @ b, None),
    "empty matmul":     ((normal(0, 4), normal(4, 3)), lambda a, b: a @ b, None),
}


def theirs(name):
    arrays, ours, other = CASES[name]
    torch = pytest.importorskip("torch")
    spelled = {"cat": lambda *a: torch.cat(a), "cat last": lambda *a: torch.cat(a, -1),
               "stack": lambda *a: torch.stack(a), "stack last": lambda *a: torch.stack(a, -1),
               "maximum": torch.maximum, "where": lambda a, b: torch.where(torch.tensor(HIDDEN), a, b),
               "where number": lambda a: torch.where(torch.tensor(HIDDEN), a, 2.0)}
    return spelled.get(other, other) if other is not None else ours


@pytest.mark.parametrize("name", CASES)
def test_finite_differences(name):
    arrays, f, _ = CASES[name]
    for layout in layouts(arrays[0]):
        tp.gradcheck(f, *(layouts(a)[layout] for a in arrays), tolerance=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_pytorch(name, torch):
    from tests.oracles.against_torch import against_torch
    arrays, f, _ = CASES[name]
    for layout in layouts(arrays[0]):
        against_torch(f, theirs(name), *(layouts(a)[layout] for a in arrays))
    for i in range(len(arrays) - 1):                     # with all but one frozen: the others get no gradient
        against_torch(f, theirs(name), *arrays, frozen=[j for j in range(len(arrays)) if j != i])


@pytest.mark.parametrize("name", CASES)
def test_float32(name, torch):
    from tests.oracles.against_torch import against_torch
    arrays, f, _ = CASES[name]
    against_torch(f, theirs(name), *(a.astype(np.float32) for a in arrays), tolerance=1e-5)


def test_every_primitive_has_a_case():
    """A new operation cannot be added without a case: its name must occur in one of the functions above."""
    used = {name for _, f, _ in CASES.values() for name in f.__code__.co_names}
    operations = {n for n, f in vars(Tensor).items() if callable(f) and not n.startswith("_")}
    operations -= {"op", "fused", "backward", "gradients", "assign", "writable", "detach", "item"}
    assert operations | {"concatenate", "stack", "split", "maximum", "where"} <= used


# -- ties and corners ------------------------------------------------------------------------------
def test_max_shares_its_gradient_between_equal_elements():
    x = Tensor(np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]), requires_grad=True)
    x.max(axis=1).backward(np.array([6.0, 6.0]))
    assert np.array_equal(x.grad, [[0, 3, 3], [2, 2, 2]])


def test_maximum_shares_its_gradient_between_equal_elements():
    a, b = Tensor(np.array([1.0, 2.0]), requires_grad=True), Tensor(np.array([1.0, 5.0]), requires_grad=True)
    tp.maximum(a, b).backward(np.array([4.0, 4.0]))
    assert np.array_equal(a.grad, [2, 0]) and np.array_equal(b.grad, [2, 4])


def test_relu_and_abs_have_slope_zero_at_zero():
    for f in (Tensor.relu, Tensor.abs):
        x = Tensor(np.zeros(3), requires_grad=True)
        f(x).backward(np.ones(3))
        assert np.array_equal(x.grad, np.zeros(3))


def test_powers_at_zero():
    a, b = Tensor(np.zeros(2), requires_grad=True), Tensor(np.array([2.0, 0.0]), requires_grad=True)
    with np.errstate(all="raise"):
        y = a ** b
        y.backward(np.ones(2))
    assert np.array_equal(y.data, [0, 1]) and np.array_equal(a.grad, [0, 0]) and np.array_equal(b.grad, [0, 0])


def test_sigmoid_in_its_tails():
    x = Tensor(np.array([-1e4, -30, 30, 1e4], np.float32), requires_grad=True)
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        y = x.sigmoid()
        y.backward(np.ones(4))
    assert_close(y, [0, np.exp(-30), 1, 1], 1e-6)
    assert_close(y.data[1], np.exp(-30), 1e-6)
    assert_close(x.grad, [0, np.exp(-30), np.exp(-30), 0], 1e-6)


@pytest.mark.parametrize("dtype, huge", [(np.float32, 1e25), (np.float64, 1e200)])
@pytest.mark.parametrize("inverse", [False, True])
def test_division_of_numbers_whose_square_is_out_of_range(dtype, huge, inverse, torch):
    """b² overflows or is 0, a/b² is in range: the gradient was 0 or infinite."""
    c = 1 / huge if inverse else huge
    for a, b in ((c, c), (-3 * c, c), (0, c), (1, -c)):
        x, y = (Tensor(np.asarray(v, dtype), requires_grad=True) for v in (a, b))
        with np.errstate(over="ignore"): (x / y).backward()
        t, u = (torch.tensor(np.asarray(v, dtype), requires_grad=True) for v in (a, b))
        (t / u).backward()
        assert x.grad == pytest.approx(t.grad.item(), 1e-6, 0) and y.grad == pytest.approx(u.grad.item(), 1e-6, 0)


@pytest.mark.parametrize("f, passes", [
    (lambda x: x.relu(), [0, 0, 1]), (lambda x: x.abs(), [-1, 0, 1]), (lambda x: x.max(), [0, 0, 1]),
    (lambda x: x.max(0, keepdims=True), [0, 0, 1]), (lambda x: tp.maximum(x, 1), [0, 0, 1]),
    (lambda x: tp.maximum(1, x), [0, 0, 1]),
    (lambda x: tp.where([False, False, True], x, 5), [0, 0, 1]),
    (lambda x: tp.where([True, True, False], 5, x), [0, 0, 1]),
], ids=["relu", "abs", "max", "max, kept", "maximum", "maximum, swapped", "where", "where, swapped"])
def test_what_is_not_passed_on_has_gradient_zero_even_if_dy_is_infinite(f, passes):
    """0 · ∞ is NaN: in relu(x).sqrt(), dy is infinite wherever x ≤ 0."""
    x = Tensor(np.array([-2.0, 0.0, 3.0]), requires_grad=True)
    y = f(x)
    with np.errstate(all="raise"): y.backward(np.full(y.shape, np.inf))
    assert np.array_equal(x.grad, [np.inf * p if p else 0 for p in passes])


def test_the_root_of_relu():
    x = Tensor(np.array([-1.0, 4.0]), requires_grad=True)
    with np.errstate(divide="ignore"): x.relu().sqrt().backward(np.ones(2))
    assert np.array_equal(x.grad, [0, 0.25])


def test_powers_of_extreme_numbers(torch):
    """As PyTorch's, at the places where a factor of the gradient is infinite or its product with dy overflows."""
    values = [0.0, 1e-25, 0.5, 2.0, 1e25, np.inf]
    a, b = (x.ravel().astype(np.float32) for x in np.meshgrid(values, [-2.0, -1.0, 0.0, 1e-25, 1.0, 2.0, 100.0]))
    for dy in (1.0, 1e37, np.inf):
        x, y = Tensor(a, requires_grad=True), Tensor(b, requires_grad=True)
        with np.errstate(all="ignore"): (x ** y).backward(np.full(a.shape, dy, np.float32))
        t, u = (torch.tensor(v, requires_grad=True) for v in (a, b))
        (t ** u).backward(torch.full(a.shape, dy))
        for got, expected in ((x.grad, t.grad), (y.grad, u.grad)):
            np.testing.assert_allclose(got, expected.numpy(), rtol=1e-5, atol=1e-37)


# -- the walk --------------------------------------------------------------------------------------
def test_a_tensor_used_many_times():
    """∂/∂x of x·x + x + … through shared subexpressions: all paths add up."""
    x = Tensor(np.array(3.0), requires_grad=True)
    a = x * x
    b = a + a
    c = b + a * b + x
    c.backward()                                         # c = 2x² + 2x⁴ + x
    assert x.grad == 4 * 3 + 8 * 27 + 1


def test_gradients_add_up_over_calls_and_are_new_arrays():
    x = Tensor(np.ones(3), requires_grad=True)
    (x * 2).sum().backward()
    first = x.grad
    (x * 3).sum().backward()
    assert np.array_equal(x.grad, [5, 5, 5]) and np.array_equal(first, [2, 2, 2])


def test_leaf_gradients_share_no_memory():
    """c = a + b hands the same dy to both; clipping one in place must not scale the other."""
    a, b = (Tensor(np.ones((2, 3)), requires_grad=True) for _ in range(2))
    dy = np.ones((2, 3))
    (a + b).backward(dy)
    for one, other in ((a.grad, b.grad), (a.grad, dy), (b.grad, dy)):
        assert one is not other and not np.shares_memory(one, other)
    a.grad *= 0
    assert np.array_equal(b.grad, np.ones((2, 3))) and np.array_equal(dy, np.ones((2, 3)))
    for f in (lambda x: x.reshape(6), lambda x: x.T, lambda x: x + 0, lambda x: x[:], lambda x: tp.stack([x, x])):
        x = Tensor(np.ones((2, 3)), requires_grad=True)
        y = f(x)
        dy = np.ones(y.shape)
        y.backward(dy)
        assert not np.shares_memory(x.grad, dy) and x.grad.flags.writeable


def test_backward_of_a_leaf():
    x = Tensor(np.ones(2), requires_grad=True)
    dy = np.array([1.0, 2.0])
    x.backward(dy)
    assert np.array_equal(x.grad, dy) and x.grad is not dy


def test_gradients_returns_them_and_keeps_grad():
    x = Tensor(np.ones(2), requires_grad=True)
    ((leaf, dx),) = (x * 3).sum().gradients()
    assert leaf is x and np.array_equal(dx, [3, 3]) and x.grad is None


def test_a_chain_of_5000_operations():
    x = Tensor(np.ones(2), requires_grad=True)
    y = x
    for _ in range(5000):
        y = y * 1.0001
    y.sum().backward()
    assert_close(x.grad, np.full(2, 1.0001 ** 5000), 1e-10)
    del y                                                # nor does taking it apart recurse
    z = x
    for _ in range(5000):
        z = z + x
    del z


def test_two_losses_of_one_graph():
    """A part of a graph that was walked cannot be walked again, whichever end one comes from."""
    x = Tensor(np.ones(2), requires_grad=True)
    h = x * 2
    first, second = h.sum(), (h * h).sum()
    first.backward()
    with pytest.raises(tp.GraphError, match="walked already"):
        second.backward()


def test_unbroadcast():
    dy = normal(2, 3, 4)
    assert unbroadcast(dy, (2, 3, 4)) is dy
    for shape in ((3, 4), (4,), (), (1, 4), (3, 1), (2, 1, 4), (1, 1, 1)):
        got = unbroadcast(dy, shape)
        assert got.shape == shape
        spread = np.broadcast_to(np.arange(np.prod(shape, dtype=int)).reshape(shape), dy.shape)
        assert_close(np.ravel(got), [dy[spread == i].sum() for i in range(got.size)], 1e-12)


# -- what a frozen parent costs --------------------------------------------------------------------
def test_nothing_is_recorded_without_a_trainable_parent():
    x = Tensor(normal(3, 4))
    y = ((x * 2).exp() @ Tensor(normal(4, 2))).sum()
    assert not y.requires_grad and y.node is None


def test_only_what_lies_above_a_trainable_leaf_is_walked():
    x, w = Tensor(normal(3, 4)), Tensor(normal(3, 4), requires_grad=True)
    below = x
    for _ in range(10): below = below.tanh()
    y = (below * w).sum()
    assert len(topological_order(y.node)) == 3           # sum, mul, w


def test_the_gradient_of_a_frozen_parent_is_not_computed():
    """The vjp of a frozen parent is not called: this one would raise."""
    def poison(dy): raise AssertionError("the gradient of a frozen parent was computed")
    x, w = Tensor(np.ones(2), requires_grad=True), Tensor(np.ones(2))
    y = Tensor.op(x.data * w.data, (x, lambda dy: dy * w.data), (w, poison))
    y.backward(np.ones(2))
    assert np.array_equal(x.grad, [1, 1]) and w.grad is None
    x.requires_grad, w.requires_grad = False, True
    with pytest.raises(AssertionError, match="frozen"):
        Tensor.op(x.data * w.data, (x, lambda dy: dy), (w, poison)).backward(np.ones(2))


def test_a_flag_changed_after_the_forward_pass_changes_nothing():
    x, w = Tensor(np.ones(2), requires_grad=True), Tensor(np.ones(2))
    y = (x * w).sum()
    x.requires_grad, w.requires_grad = False, True
    y.backward()
    assert np.array_equal(x.grad, [1, 1]) and w.grad is None


def test_no_grad_records_nothing_and_nests():
    x = Tensor(np.ones(2), requires_grad=True)
    with tp.no_grad():
        with tp.no_grad(): pass
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad
    with pytest.raises(KeyError), tp.no_grad():
        raise KeyError
    assert (x * 2).requires_grad                         # and an exception does not leave it switched off


def test_enable_grad_records_inside_no_grad():
    x = Tensor(np.ones(2), requires_grad=True)
    with tp.no_grad():
        with enable_grad():
            y = (x * 2).sum()
        assert not (x * 2).requires_grad
    y.backward()
    assert np.array_equal(x.grad, [2, 2])


def test_each_thread_has_its_own_no_grad():
    """One trains while another generates; and blocks that overlap leave both as they were."""
    x = Tensor(np.ones(2), requires_grad=True)
    inside, leave, recorded = threading.Event(), threading.Event(), []

    def generate():
        with tp.no_grad():
            inside.set()
            assert leave.wait(10)
            recorded.append((x * 2).requires_grad)
        recorded.append((x * 2).requires_grad)
    thread = threading.Thread(target=generate)
    thread.start()
    assert inside.wait(10)
    assert (x * 2).requires_grad
    with tp.no_grad():
        leave.set()
        thread.join()
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad and recorded == [False, True]


def test_each_thread_has_its_own_tape():
    x = Tensor(np.ones(2), requires_grad=True)
    with tensor.tape() as made:
        thread = threading.Thread(target=lambda: x * 2)
        thread.start()
        thread.join()
        y = x * 3
    x * 4
    assert made == [y]


# -- memory ----------------------------------------------------------------------------------------
def memory(tensor):
    """A weak reference to the array that owns a tensor's numbers."""
    array = tensor.data
    return weakref.ref(array if array.base is None else array.base)


@pytest.fixture
def no_collector():
    gc.disable()
    yield
    gc.enable()


def test_a_graph_is_freed_without_the_garbage_collector(no_collector):
    x = Tensor(normal(3, 4), requires_grad=True)
    for walk in (True, False):
        kept = []
        a = x.exp();            kept.append(memory(a))
        b = a * a;              kept.append(memory(b))
        c = b.max(axis=1);      kept.append(memory(c))
        d = tp.stack([c, c]);   kept.append(memory(d))
        e = (d[:, [0, 0, 1]] ** 2).mean()
        if walk: e.backward()
        del a, b, c, d, e
        assert [r() for r in kept] == [None] * 4


def test_the_graph_holds_no_values_it_does_not_need(no_collector):
    """The sum in 3 (x + 1) needs no gradient of its own value; that of exp does."""
    x = Tensor(normal(3, 4), requires_grad=True)
    a = x + 1
    b = a * 3
    c = b.exp()
    held = [memory(t) for t in (a, b, c)]
    loss = c.sum()
    del a, b, c
    assert [r() is None for r in held] == [True, True, False]
    loss.backward()
    assert held[2]() is None                             # and backward frees what it has used
    assert_close(x.grad, 3 * np.exp(3 * (x.data + 1)), 1e-12)


LINEAR = {"add": lambda h: h + 1, "sub": lambda h: 1 - h, "neg": lambda h: -h, "mul": lambda h: h * 3, "div": lambda h: h / 3,
          "matmul": lambda h: h @ np.ones((4, 2)), "sum": lambda h: h.sum(1), "mean": lambda h: h.mean(0),
          "reshape": lambda h: h.reshape(-1), "transpose": lambda h: h.T, "slice": lambda h: h[1:], "ids": lambda h: h[[0, 0]],
          "concatenate": lambda h: tp.concatenate([h, h]), "stack": lambda h: tp.stack([h, h]),
          "split": lambda h: tp.split(h, 3)[0], "where": lambda h: tp.where(HIDDEN, h, 0)}


@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_operation_holds_nothing(name, no_collector):
    """Its gradient does not depend on its input: what it was computed from is freed."""
    x = Tensor(normal(3, 4), requires_grad=True)
    h = x + 1
    held = memory(h)
    loss = LINEAR[name](h).sum()
    del h
    assert held() is None
    loss.backward()
    assert x.grad is not None


def test_backward_frees_as_it_goes():
    """While the walk is in the lower half of the graph, what the upper half had saved is gone."""
    x = Tensor(normal(3, 4), requires_grad=True)
    seen = []

    def look(dy):
        seen.append(upper())
        return dy
    lower = Tensor.op(x.data + 0, (x, look))
    middle = lower.exp()
    upper = memory(middle)
    loss = middle.sum()
    del middle
    loss.backward()
    assert len(seen) == 1 and seen[0] is None


# -- what it holds ---------------------------------------------------------------------------------
@pytest.mark.parametrize("value, dtype", [
    (1, np.float32), (1.5, np.float32), ([1, 2], np.float32), ([[1.5]], np.float32), (True, np.float32),
    (np.arange(3), np.float32), (np.array([True]), np.float32), (np.ones(2, np.float32), np.float32),
    (np.ones(2), np.float64), (np.float64(2), np.float64), (np.float32(2), np.float32)])
def test_dtypes(value, dtype):
    assert Tensor(value).dtype == dtype


def test_constants_take_the_tensors_dtype():
    x = Tensor(np.ones(3, np.float32), requires_grad=True)
    for y in (x + 1, 1.5 * x, x / np.float64(3), np.float64(3) - x, x + np.arange(3), np.ones(3) * x, x ** 2, x ** 0.5,
              x ** np.float64(2), x ** np.int64(2), 2 ** x, x.mean(), x.sum(), x.max(), x @ np.ones(3), x ** np.ones(3),
              tp.maximum(x, 0), tp.maximum(np.float64(0), x), tp.where(x.data > 0, x, np.pi), tp.stack([x, np.ones(3)]),
              tp.concatenate([np.ones(2), x]), np.ones((2, 3)) @ x):
        assert y.dtype == np.float32 and isinstance(y, Tensor) and y.requires_grad
        y.backward(np.ones(y.shape))
    assert x.grad.dtype == np.float32


def test_of_arrays_alone_the_first_decides_the_dtype():
    assert tp.concatenate([np.ones(2), np.ones(1, np.float32)]).dtype == np.float64
    assert tp.maximum(np.ones(2, np.float32), np.ones(2)).dtype == tp.where(True, 1, 2.0).dtype == np.float32
    assert np.array_equal(tp.concatenate(np.ones((2, 3))).data, np.ones(6))
    with pytest.raises(ValueError, match="at least one array"): tp.stack([])


def test_what_an_array_has():
    x = Tensor(normal(2, 3))
    assert (x.shape, x.ndim, x.size, x.dtype, len(x), x.T.shape) == ((2, 3), 2, 6, np.float64, 2, (3, 2))
    assert Tensor(2.5).item() == 2.5 and bool(Tensor(1.0)) and not bool(Tensor(0.0))
    assert repr(Tensor([1.0], requires_grad=True)) == "Tensor(array([1.], dtype=float32), requires_grad=True)"
    assert np.array_equal(np.stack([row.data for row in x]), x.data)


def test_detach_shares_data_and_has_no_history():
    x = Tensor(normal(3), requires_grad=True)
    y = (x * 2).detach()
    assert not y.requires_grad and np.shares_memory(x.detach().data, x.data)
    y.requires_grad = True
    (y * x).sum().backward()
    assert_close(x.grad, 2 * x.data, 1e-15)


# -- misuse ----------------------------------------------------------------------------------------
def leaf(*shape):
    return Tensor(np.ones(shape), requires_grad=True)


def walked_twice():
    y = leaf(2).sum()
    y.backward()
    y.backward()


def changed_before_backward():
    from tinypeft.engine.nn import Parameter
    p = Parameter(np.ones(2))
    loss = (p * p).sum()
    loss.backward()
    late = (p * p).sum()
    tp.optim.SGD([p], lr=0.1).step()
    late.backward()


def loaded_before_backward():
    layer = tp.engine.Linear(2, 2)
    y = layer(Tensor([[1.0, 2.0]])).sum()
    layer.load_state_dict({"weight": np.ones((2, 2)), "bias": np.ones(2)})
    y.backward()


def write_into_recorded():
    y = leaf(2) * 2
    y.data[0] = 5


def wrong_formula():
    x = leaf(2, 3)
    Tensor.op(x.data.sum(0), (x, lambda dy: dy)).backward(np.ones(3))


def wrong_dtype():
    x = leaf(2)
    Tensor.op(x.data * 2, (x, lambda dy: dy.astype(np.float32))).backward(np.ones(2))


@pytest.mark.parametrize("misuse, error, says", [
    (walked_twice, tp.GraphError, "walked already.*run the forward pass again"),
    (changed_before_backward, tp.GraphError, r"shape \(2,\) was written to.*before the optimizer's step"),
    (loaded_before_backward, tp.GraphError, "was written to"),
    (write_into_recorded, ValueError, "read-only"),
    (wrong_formula, AssertionError, r"float64\(3,\) for a parent that is float64\(2, 3\)"),
    (wrong_dtype, AssertionError, r"float32\(2,\) for a parent that is float64\(2,\)"),
    (lambda: leaf(2).tanh().backward(), ValueError, r"shape \(2,\) needs its gradient"),
    (lambda: leaf(2).tanh().backward(np.ones(3)), ValueError, r"shape \(2,\) needs its gradient dy in that shape, got \(3,\)"),
    (lambda: Tensor([1.0]).backward(), tp.GraphError, "nothing to differentiate"),
    (lambda: leaf(2).__setitem__(0, 1.0), TypeError, "writing into a Tensor"),
    (lambda: leaf(2).__iadd__(1), TypeError, "writing into a Tensor"),
    (lambda: leaf(2).__imul__(2), TypeError, "writing into a Tensor"),
    (lambda: leaf(2).__imatmul__(2), TypeError, "writing into a Tensor"),
    (lambda: leaf(2) + Tensor(np.ones(2, np.float32)), TypeError, "float64 and float32 tensors do not mix"),
    (lambda: tp.stack([leaf(2), Tensor(np.ones(2, np.float32))]), TypeError, "do not mix"),
    (lambda: Tensor(leaf(2)), TypeError, "use x.detach"),
    (lambda: Tensor(np.ones(2, np.float16)), TypeError, "got float16"),
    (lambda: Tensor(np.ones(2, complex)), TypeError, "got complex128"),
    (lambda: Tensor(None), TypeError, "got object"),
    (lambda: Tensor("3"), TypeError, "got <U1"),
    (lambda: leaf(2) + None, TypeError, "object values do not mix"),
    (lambda: leaf(2) * "3", TypeError, "<U1 values do not mix"),
    (lambda: leaf(2) * np.ones(2, complex), TypeError, "complex128 values do not mix"),
    (lambda: leaf(2) ** None, TypeError, "object values do not mix"),
    (lambda: leaf(0, 3).mean(), ValueError, r"mean over nothing: a tensor of shape \(0, 3\)"),
    (lambda: leaf(0, 3).mean(0), ValueError, r"mean over nothing: .* axis 0"),
    (lambda: tp.split(leaf(5), 2), ValueError, "axis 0 of length 5 does not divide into 2"),
    (lambda: leaf(2, 3) @ leaf(2, 3), ValueError, "matmul"),
    (lambda: leaf(2) + leaf(3), ValueError, "broadcast"),
    (lambda: leaf(2)[2], IndexError, "out of bounds"),
    (lambda: bool(leaf(2)), ValueError, "ambiguous"),
])
def test_misuse(misuse, error, says):
    with pytest.raises(error, match=says):
        misuse()


def test_numpy_does_not_take_over():
    """ndarray * Tensor is a Tensor, and a NumPy function of one is refused rather than losing the gradient."""
    x = leaf(2)
    assert isinstance(np.ones(2) * x, Tensor) and isinstance(np.float64(2) * x, Tensor)
    with pytest.raises(TypeError):
        np.exp(x)
    array = np.ones(2)
    with pytest.raises(TypeError):
        array += x


def test_a_walk_that_fails_leaves_every_gradient_as_it_was():
    def fails(dy): raise FloatingPointError
    x, w = (Tensor(np.ones(3), requires_grad=True) for _ in range(2))
    y = x * 2 + Tensor.op(np.ones(3), (w, fails))         # x is complete when the other branch fails, or the other way round
    z = Tensor.op(np.ones(3), (w, fails)) + x * 2
    for root in (y, z):
        with pytest.raises(FloatingPointError): root.backward(np.ones(3))
        assert x.grad is None and w.grad is None
