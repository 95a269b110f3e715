"""What a step holds: attention keeps no scores, leaves leave the walk when they are complete, the head holds few logits."""
import math
import tracemalloc

import numpy as np
import pytest

import tinypeft as tp
from tests.engine.test_tensor import normal
from tests.oracles import assert_close
from tinypeft.engine import functional as F
from tinypeft.engine import plain
from tinypeft.engine.tensor import RowGradient, Tensor, concatenate
from tinypeft.models.llama import Llama, LlamaConfig
from tinypeft.quant import QuantizedEmbedding
from tinypeft.quant.rounding import fake_quantize


def close(a, b, tolerance=1e-12):
    """Largest difference over the largest number."""
    assert np.abs(np.asarray(a) - np.asarray(b)).max() <= tolerance * np.abs(np.asarray(b)).max()


def traced(run):
    """(bytes that stay, peak) of what NumPy allocates in run(), and its result."""
    tracemalloc.start()
    try:
        y = run()
        return *tracemalloc.get_traced_memory(), y
    finally: tracemalloc.stop()


# -- attention -----------------------------------------------------------------------------------
def composed(q, k, v, causal=True, scale=None, window=None, drop=None):
    """Attention in primitives: grouped heads, a scale, a window, dropout's mask."""
    T, S, R = q.shape[-2], k.shape[-2], q.shape[-3] // k.shape[-3]
    heads = np.arange(q.shape[-3]) // R
    k, v = k[..., heads, :, :], v[..., heads, :, :]
    scores = q @ k.transpose(*range(k.ndim - 2), -1, -2) * (scale or 1 / math.sqrt(q.shape[-1]))
    i, j = np.arange(T)[:, None] + S - T, np.arange(S)
    hidden = (j > i if causal else j < 0) | (j <= i - window if window else j < 0)
    P = plain.softmax(scores + np.where(hidden, -1e30, 0))
    return (P if drop is None else P * drop) @ v


def rounded(x):
    """QAT of keys or values: 4 bits, gradients straight through."""
    s = Tensor(np.full(x.shape[:-1] + (1,), 0.3))
    return fake_quantize(x, s, Tensor(np.full_like(s.data, 8)), 0, 15)


B, H, G, T, d = 2, 6, 2, 150, 5                          # more than two blocks of 64 queries
SHAPES = (B, H, T, d), (B, G, T, d), (B, G, T, d)
FORMS = {
    "grouped": (SHAPES, {}, None), "one head each": ([(3, T, d)] * 3, {}, None),
    "window": (SHAPES, {"window": 70}, None), "narrow window": (SHAPES, {"window": 3}, None),
    "everything seen": (SHAPES, {"causal": False}, None), "scale": (SHAPES, {"scale": 0.7}, None),
    "rounded keys and values": (SHAPES, {}, lambda q, k, v: (q, rounded(k), rounded(v))),
    "a trained prefix": ([*SHAPES, (B, G, 9, d), (B, G, 9, d)], {},
                         lambda q, k, v, K, V: (q, concatenate([K, k], 2), concatenate([V, v], 2))),
    "a prefix and a window": ([*SHAPES, (B, G, 9, d), (B, G, 9, d)], {"window": 80},
                              lambda q, k, v, K, V: (q, concatenate([K, k], 2), concatenate([V, v], 2))),
    "a cache": ([(B, H, 2, d), (B, G, T, d), (B, G, T, d)], {}, None)}


@pytest.mark.parametrize("name", FORMS)
def test_the_scores_of_backward_are_those_of_forward(name):
    """Values and gradients of attention, which computes P twice, are autograd's through its composition, which keeps it."""
    shapes, options, inputs = FORMS[name]
    arrays, dO = [normal(*shape) for shape in shapes], normal(*shapes[0])
    results = []
    for f in (F.attention, composed):
        xs = [Tensor(a, requires_grad=True) for a in arrays]
        y = f(*(inputs(*xs) if inputs else xs), **options)
        y.backward(dO)
        results.append([y.data, *(x.grad for x in xs)])
    for ours, expected in zip(*results, strict=True): close(ours, expected)


def test_backward_draws_the_masks_of_forward_again():
    """In blocks, and the generator goes on as if it had drawn once."""
    arrays, dO = [normal(2, T, d) for _ in range(3)], normal(2, T, d)
    rng = np.random.default_rng(5)
    mask = np.concatenate([F.dropout(Tensor(np.ones((2, min(64, T - i), T))), 0.4, rng).data for i in range(0, T, 64)], 1)
    after = rng.random()
    results, rng = [], np.random.default_rng(5)
    for f in (lambda *xs: F.attention(*xs, causal=False, dropout=0.4, rng=rng),
              lambda *xs: composed(*xs, causal=False, drop=mask)):
        xs = [Tensor(a[None], requires_grad=True) for a in arrays]
        y = f(*xs)
        y.backward(dO[None])
        results.append([y.data, *(x.grad for x in xs)])
    for ours, expected in zip(*results, strict=True): close(ours, expected)
    assert rng.random() == after


@pytest.mark.parametrize("trained", ["q", "k", "v", "qk", "kv"])
def test_what_is_frozen_gets_no_gradient(trained):
    """Each gradient alone is the one that it is beside the others, to the bit."""
    arrays, dO = dict(zip("qkv", (normal(*shape) for shape in SHAPES), strict=True)), normal(*SHAPES[0])
    grads = {}
    for names in (trained, "qkv"):
        xs = {n: Tensor(a, requires_grad=n in names) for n, a in arrays.items()}
        F.attention(*xs.values()).backward(dO)
        grads[names] = {n: x.grad for n, x in xs.items()}
    for n in "qkv": assert np.array_equal(grads[trained][n], grads["qkv"][n]) if n in trained else grads[trained][n] is None


def step_of_attention(T, dropout=0.0):
    """(bytes that wait for backward, peak of both passes), over the bytes of q."""
    q, k, v = (Tensor(np.ones((1, 2, T, 8), np.float32), requires_grad=True) for _ in range(3))
    def run():
        y = F.attention(q, k, v, dropout=dropout, rng=0)
        kept = tracemalloc.get_traced_memory()[0]
        y.backward(np.ones_like(y.data))
        return kept
    _, peak, kept = traced(run)
    return kept / q.nbytes, peak / q.nbytes


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_memory_is_linear_in_the_text(dropout):
    """What waits: Q, the output, two numbers a query; k and v are held anyway. P would be 128 times Q at 2,048 tokens."""
    F._bound.cache_clear()
    (kept, short), (kept_too, long) = step_of_attention(1024, dropout), step_of_attention(2048, dropout)
    assert 2 < kept < 3 and 2 < kept_too < 3 and long < 1.15 * short


# -- the walk ------------------------------------------------------------------------------------
def test_a_leaf_leaves_the_walk_when_it_is_complete():
    """The gradient of a layer's weight is given before the layers below are walked."""
    events = []
    def layer(x, w, name):
        def vjp(dy):
            events.append(f"walk {name}")
            return dy * w.data, dy * x.data
        return Tensor.fused(x.data * w.data, (x, w), vjp)
    names = {}
    x = y = Tensor(np.ones(2), requires_grad=True)
    for i in range(3):
        w = Tensor(np.full(2, i + 2.0), requires_grad=True)
        names[id(w)] = f"give {i}"
        y = layer(y, w, i)
    names[id(x)] = "give x"
    for leaf, _ in y.gradients(np.ones(2)): events.append(names[id(leaf)])
    assert events == ["walk 2", "give 2", "walk 1", "give 1", "walk 0", "give x", "give 0"]


def test_contributions_are_added_in_the_order_of_the_walk():
    """(−1e8 + 1) + 1e8 is 0 in float32, (−1e8 + 1e8) + 1 is 1. That a leaf leaves early does not change the order."""
    for factors, expected in ((-1e8, 1, 1e8), 0), ((-1e8, 1e8, 1), 1), ((1, -1e8, 1e8), 0):
        w = Tensor(np.ones(1, np.float32), requires_grad=True)
        y = w * np.float32(0)
        for factor in factors: y = y * 1.0 + w * np.float32(factor)
        y.backward(np.ones(1, np.float32))
        assert w.grad.item() == expected


def test_only_one_layers_gradients_wait():
    """A consumer that drops each gradient holds at most one layer's: with ten layers the peak is a fraction of their sum."""
    ws = [Tensor(np.ones((200, 200), np.float32) / 200, requires_grad=True) for _ in range(10)]
    y = Tensor(np.ones((1, 200), np.float32))
    for w in ws: y = F.linear(y, w)
    loss = y.sum()
    def run():
        for _ in loss.gradients(): pass
    _, peak, _ = traced(run)
    assert peak < 3.5 * ws[0].nbytes


def test_a_tied_table_has_one_gradient():
    """The rows that were looked up are added to the head's gradient: bits as with a dense sum, no second array."""
    E, x0 = np.random.default_rng(0).standard_normal((4000, 8)).astype(np.float32), np.array([[3, 9, 3, 0]])
    table = Tensor(E, requires_grad=True)
    loss = F.cross_entropy(F.linear(F.embedding(x0, table), table), x0)
    _, peak, _ = traced(loss.backward)
    assert peak < 1.2 * table.nbytes
    head, looked_up = (Tensor(E, requires_grad=True) for _ in range(2))
    F.cross_entropy(F.linear(F.embedding(x0, looked_up), head), x0).backward()
    assert np.array_equal(table.grad, head.grad + looked_up.grad)
    assert np.array_equal(np.flatnonzero(looked_up.grad.any(1)), [0, 3, 9])


def test_rows_are_added_wherever_they_meet():
    """Rows alone, rows twice, rows after and before what is dense and may not be written to."""
    for f in (lambda E: F.embedding(IDS, E).sum(), lambda E: (F.embedding(IDS, E) * F.embedding(IDS + 1, E)).sum(),
              lambda E: F.embedding(IDS, E).sum() + E.sum(), lambda E: E.sum() + F.embedding(IDS, E).sum(),
              lambda E: F.embedding(IDS, E * 2).sum() + (E * 3).sum()):
        tp.gradcheck(f, normal(6, 3), tolerance=1e-8)
    rows = RowGradient((3, 2), np.array([2, 0]), np.array([[1.0, 2], [3, 4]]))
    assert np.array_equal(np.asarray(rows), [[3, 4], [0, 0], [1, 2]])


IDS = np.array([[3, 0, 3], [2, 4, 0]])


# -- the head ------------------------------------------------------------------------------------
def head_case(dtype, rows=700, V=5, width=3):
    rng = np.random.default_rng(1)
    targets = rng.integers(0, V, rows)
    targets[rng.random(rows) < 0.3] = F.IGNORED
    targets[100:420] = F.IGNORED                         # a piece in which nothing counts
    return rng.standard_normal((rows, width)).astype(dtype), rng.standard_normal((V, width)).astype(dtype), targets


def losses_and_gradients(f, x, W, share, trained):
    x, W = Tensor(x, "x" in trained), Tensor(W, "W" in trained)
    loss = f(x, W)
    loss.backward(np.asarray(share, x.dtype))
    return [a for a in (loss.data, x.grad, W.grad) if a is not None]


@pytest.mark.parametrize("trained", ["xW", "x", "W"])
def test_few_logits_are_treated_as_by_two_operations_to_the_bit(trained):
    x, W, t = head_case(np.float32)
    one, two = (losses_and_gradients(f, x, W, 0.3, trained) for f in (
        lambda x, W: F.linear_cross_entropy(x, W, t), lambda x, W: F.cross_entropy(F.linear(x, W), t)))
    assert len(one) == len(two) == 1 + len(trained)
    for a, b in zip(one, two, strict=True): assert np.array_equal(a, b)


@pytest.mark.parametrize("trained", ["xW", "x", "W"])
def test_many_logits_go_piece_by_piece(monkeypatch, trained):
    x, W, t = head_case(np.float64)
    whole = losses_and_gradients(lambda x, W: plain.linear_cross_entropy(x, W, t), x, W, 0.3, trained)
    monkeypatch.setattr(F, "LOGITS", 1)
    pieces = losses_and_gradients(lambda x, W: F.linear_cross_entropy(x, W, t), x, W, 0.3, trained)
    for a, b in zip(pieces, whole, strict=True): close(a, b)
    with tp.no_grad(): assert_close(F.linear_cross_entropy(Tensor(x), Tensor(W), t), whole[0], 1e-12)


def test_the_head_holds_few_logits(monkeypatch):
    """Those of one piece and their softmax in one array; with no_grad nothing stays."""
    x, W = Tensor(np.ones((2048, 2), np.float32), requires_grad=True), Tensor(np.ones((4096, 2), np.float32))
    W.requires_grad = True
    size = 2048 * 4096 * 4
    def run():
        loss = F.linear_cross_entropy(x, W, np.arange(2048))
        if loss.requires_grad: loss.backward()
    _, at_once, _ = traced(run)
    monkeypatch.setattr(F, "LOGITS", 1 << 20)
    _, in_pieces, _ = traced(run)
    with tp.no_grad(): left, evaluation, _ = traced(run)
    assert at_once < 0.6 * size and in_pieces < 0.2 * size and evaluation < 0.2 * size and left < 0.01 * size


@pytest.mark.parametrize("call, says", [
    (lambda: F.linear_cross_entropy(normal(2, 3), normal(5, 4), [0, 1]), r"x \(2, 3\), W \(5, 4\)"),
    (lambda: F.linear_cross_entropy(normal(2, 3), normal(3), [0, 1]), r"W \(3,\)"),
    (lambda: F.linear_cross_entropy(normal(2, 3), normal(5, 3), [0, 5]), r"targets must lie in \[0, 5\), got 5"),
    (lambda: F.linear_cross_entropy(normal(2, 3), normal(5, 3), [0]), r"targets \(1,\)"),
    (lambda: F.linear_cross_entropy(normal(2, 3), normal(5, 3), [-100, -100]), "no target counts")])
def test_what_does_not_fit_is_refused(call, says):
    with pytest.raises(ValueError, match=says): call()


@pytest.mark.parametrize("name", ["tied", "untied", "prompt", "prefix", "trained tokens", "quantized"])
def test_a_models_loss_is_the_cross_entropy_of_its_logits(name):
    """To the bit, with the gradients, whatever head, prompt or prefix it has."""
    config = LlamaConfig(40, 30, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, d_mlp=16, d_head=8, tied=name != "untied")
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(0, 40, (2, 3, 12))
    targets[0, :5] = F.IGNORED
    def make():
        model = Llama(config, rng=1)
        method = {"prompt": tp.PromptTuning(length=3), "prefix": tp.PTuningV2(length=3, dropout=0.0),
                  "trained tokens": tp.TrainableTokens(tokens=(1, 2)), "quantized": tp.LoRA(rank=2)}.get(name)
        if name == "quantized":
            table = tp.Uniform(bits=8).quantize(model.token_embedding.weight.data)
            model.token_embedding = QuantizedEmbedding(table)
        return model if method is None else tp.attach(model, method, rng=2)
    results = []
    for of in (lambda m: m.loss(tokens, targets), lambda m: F.cross_entropy(m(tokens), targets)):
        model = make()
        loss = of(model)
        loss.backward()
        results.append([loss.data, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1]) > 1
    for a, b in zip(*results, strict=True): assert np.array_equal(a, b)
