"""Calibration: the statistics are those of all inputs, memory does not grow with tokens, wrappers leave no trace."""
import tracemalloc

import numpy as np
import pytest

import tinypeft as tp
from tests.oracles import assert_close
from tests.protocol import learned
from tests.toys import linear_paths
from tinypeft.engine.nn import Module, replace_modules
from tinypeft.models.calibration import as_batches, calibrating
from tinypeft.quant.calibration import Statistics, block_by_block, capture
from tinypeft.quant.measure import output_error


class Recorder(Module):
    """Keeps every input: what `Statistics` may not do."""

    def __init__(self, base):
        self.base, self.xs = base, []

    def forward(self, x, *more):
        self.xs.append(x.data.reshape(-1, x.shape[-1]))
        return self.base(x, *more)


def recorded(model, batches):
    """path → all inputs (n, d) of the layer."""
    layers = {p: model.get(p) for p in linear_paths(model)}
    recorders = {p: Recorder(m) for p, m in layers.items()}
    replace_modules(model, recorders)
    with tp.no_grad():
        for tokens in batches: model(tokens)
    replace_modules(model, layers)
    return {p: np.concatenate(r.xs) for p, r in recorders.items()}


def some_batches(rng, sizes=((3, 7), (1, 24), (5, 2))):
    return [rng.integers(0, 37, size) for size in sizes]


def test_statistics_are_those_of_all_inputs_numerical(gpt, rng):
    model, batches = gpt(), some_batches(rng)
    seen, X = capture(model, batches, hessian=True), recorded(model, batches)
    assert list(seen) == linear_paths(model)
    for path, s in seen.items():
        x = X[path]
        assert s.n == len(x) == 3 * 7 + 24 + 5 * 2
        assert_close(s.H, 2 / len(x) * x.T @ x, 1e-12)
        assert_close(s.mean_abs, np.abs(x).mean(0), 1e-6)
        assert np.array_equal(s.max_abs, np.abs(x).max(0).astype(np.float32))


STACK = tp.LoRA(2, targets="all"), tp.IA3(), tp.ParallelAdapter(4), tp.BottleneckAdapter(4)
METHODS = {"LoRA": STACK[:1], "PEQA": (tp.PEQA(bits=4),), "several": STACK}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_on_the_model_computes_while_its_inputs_are_taken(name, gpt, rng):
    """A layer inside a wrapper is not one more layer: where both were listened to, the wrapper did not run."""
    model = tp.quantize(gpt(), tp.PEQA(bits=4)) if name == "PEQA" else gpt()
    tuned = learned(model, {str(i): method for i, method in enumerate(METHODS[name])})
    batches = some_batches(rng)
    seen, plain = capture(tuned.model, batches), linear_paths(gpt())
    paths = [path.replace(".base.", ".") for path in seen]                # beside a ParallelAdapter: mlp.base.up
    assert paths == plain
    last = Recorder(tuned.model.blocks[-1].attention)                    # what it reads has gone through a whole block
    tuned.model.blocks[-1].attention = last
    for tokens in batches: tuned(tokens)
    assert_close(seen["blocks.1.attention.query"].mean_abs, np.abs(np.concatenate(last.xs)).mean(0), 1e-6)


def test_layers_that_read_the_same_input_see_the_same(gpt, rng):
    seen = capture(gpt(), some_batches(rng), hessian=True)
    q, k, o = (seen[f"blocks.1.attention.{name}"] for name in ("query", "key", "output"))
    assert np.array_equal(q.H, k.H) and not np.allclose(q.H, o.H)


def test_one_array_is_one_batch_and_a_generator_will_do(gpt, rng):
    model, batches = gpt(), some_batches(rng, ((2, 7), (2, 7)))
    one = capture(model, np.concatenate(batches), hessian=True)
    for other in (capture(model, batches, hessian=True), capture(model, iter(batches), hessian=True),
                  capture(model, [b.tolist() for b in batches], hessian=True)):
        for path in one: assert_close(other[path].H, one[path].H, 1e-12)


def test_only_the_paths_asked_for_and_no_hessian_unless_asked_for(gpt, tokens):
    seen = capture(gpt(), tokens, ["blocks.1.mlp.down"])
    assert list(seen) == ["blocks.1.mlp.down"]
    with pytest.raises(ValueError, match="hessian=True"):
        _ = seen["blocks.1.mlp.down"].H
    with pytest.raises(KeyError, match="blocks.9"):
        capture(gpt(), tokens, ["blocks.9.mlp.down"])


def test_memory_does_not_grow_with_tokens():
    d, peaks = 64, []
    for n in (10, 200):
        rng, s = np.random.default_rng(0), Statistics(d, hessian=True)
        tracemalloc.start()
        for _ in range(n): s.update(rng.standard_normal((50, d)).astype(np.float32))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]
    kept = sum(v.nbytes for v in vars(s).values() if isinstance(v, np.ndarray))
    assert kept == 8 * d * d + 2 * 8 * d + 2 * 4 * d


def test_capture_leaves_the_model_as_it_was(gpt, tokens):
    model = gpt(np.float32, dropout=0.5).train()
    before, modules = {n: a.tobytes() for n, a in model.state_dict().items()}, dict(model.named_modules())
    first = capture(model, tokens)
    assert dict(model.named_modules()) == modules and all(m.training for m in modules.values())
    assert {n: a.tobytes() for n, a in model.state_dict().items()} == before
    second = capture(model, tokens)                            # and without dropout: twice the same
    for path in first: assert np.array_equal(first[path].mean_abs, second[path].mean_abs)


def test_capture_leaves_the_model_as_it_was_when_it_fails(gpt, tokens):
    model = gpt()
    model.blocks[1].norm2.weight.data[3] = np.inf
    modules = dict(model.named_modules())
    with pytest.raises(ValueError, match="not finite"), np.errstate(all="ignore"):
        capture(model, tokens)
    assert dict(model.named_modules()) == modules and not model.training
    model.blocks[1].norm2.weight.data[3] = 1
    assert model(tokens).requires_grad                         # recording is on again


@pytest.mark.parametrize("quantized", [True, False])
def test_block_by_block_passes_on_what_blocks_have_become(gpt, rng, quantized):
    model, batches = gpt(), some_batches(rng)
    original = capture(model, batches, ["blocks.1.attention.query"]).popitem()[1].mean_abs
    got = None
    with calibrating(model):
        for path, block, inputs in block_by_block(model, batches, quantized):
            if path == "blocks.0":
                block.mlp.down.weight.data = block.mlp.down.weight.data * 3
                assert [h.shape for h in inputs] == [(*b.shape, 16) for b in batches]
            else:
                got = np.abs(np.concatenate([block.norm1(h).data.reshape(-1, 16) for h in inputs])).mean(0)
    changed = capture(model, batches, ["blocks.1.attention.query"]).popitem()[1].mean_abs
    assert_close(got, changed if quantized else original, 1e-6)
    assert np.abs(changed - original).max() > 0.01


def test_block_by_block_ends_where_the_model_ends(gpt, tokens):
    model = gpt()
    with calibrating(model):
        *_, (_, block, inputs) = block_by_block(model, [tokens])
        assert np.array_equal(model.final_norm(block(inputs[0])).data, model.hidden(tokens).data)


@pytest.mark.parametrize("calibration, error, match", [
    ([], ValueError, "not one token"),
    (np.zeros((0, 5), int), ValueError, "not one token"),
    (np.zeros((3, 0), int), ValueError, "not one token"),
    (np.zeros(5, int), ValueError, r"\(B, T\) with .* got int64 \(5,\)"),
    (np.zeros((2, 5)), ValueError, "expected integers"),
    (np.zeros((2, 25), int), ValueError, r"T ≤ 24, the context length, got int64 \(2, 25\)"),
    (tp.Tensor(np.zeros((2, 5))), TypeError, "Tensor"),
])
def test_calibration_that_makes_no_sense(gpt, calibration, error, match):
    with pytest.raises(error, match=match):
        capture(gpt(), calibration)
    with pytest.raises(error, match=match):
        tp.quantize(gpt(), tp.NF4(), calibration)              # even where it would not be looked at


def test_no_calibration_is_an_empty_list_of_batches(gpt):
    assert as_batches(gpt(), None) == []
    with pytest.raises(ValueError, match="no tokens to calibrate on"):
        capture(gpt(), None)


@pytest.mark.parametrize("H, match", [
    (None, "H is missing"),
    (np.zeros((4, 4)), "H is zero"),
    (np.eye(5), r"\(4, 4\), got \(5, 5\)"),
    (-np.eye(4), "diagonal"),
    (np.diag([1, 1, 1, np.nan]), "finite"),
    (np.triu(np.ones((4, 4))), "symmetric"),
])
def test_what_is_no_hessian(H, match):
    with pytest.raises(ValueError, match=match):
        tp.GPTQ().hessian(H, 4)


def test_output_error_is_that_of_the_outputs_numerical(rng):
    X, W = rng.standard_normal((50, 8)), rng.standard_normal((5, 8))
    W_hat = W + 0.1 * rng.standard_normal(W.shape)
    expected = np.linalg.norm(X @ (W_hat - W).T) / np.linalg.norm(X @ W.T)
    assert_close(output_error(W, W_hat, 2 / 50 * X.T @ X), expected, 1e-12)
    assert output_error(W, W, X.T @ X) == 0


@pytest.mark.parametrize("sign", [1, -1])
def test_a_range_holds_zero_numerical(sign, rng):
    """Activations of one sign: zero, which padding and masks produce, stays representable."""
    X, s = sign * np.float32(rng.uniform(2, 3, (20, 4))), Statistics(4)
    s.update(X)
    zero, extreme = (s.low, s.high)[::sign]
    assert np.array_equal(zero, np.zeros(4)) and np.array_equal(sign * extreme, np.abs(X).max(0))


# -- progress --------------------------------------------------------------------------------------
def test_an_error_ends_the_line_of_progress(gpt, capsys, rng):
    def batches():
        yield rng.integers(0, 37, (2, 12))
        yield np.full((2, 12), 99)
    with pytest.raises(ValueError, match="99"): tp.quantize(gpt(np.float32), tp.SmoothQuant(), batches(), progress=True)
    err = capsys.readouterr().err
    assert err.startswith("\rquantizing 1/2") and err.endswith("\n") and err.count("\n") == 1
