"""Quantized models: what `quantize` does and leaves alone, gradients, every method on every base, merging, files."""
import copy
import dataclasses
import importlib
import os
import subprocess
import sys

import numpy as np
import pytest

import tinypeft as tp
from tests.oracles import assert_close
from tests.toys import linear_paths
from tinypeft.engine import functional as F
from tinypeft.engine.nn import Linear, Packed, Parameter, replace_modules
from tinypeft.engine.optim import AdamW
from tinypeft.models.generation import keeping, kept
from tinypeft.quant import QTensor
from tinypeft.quant.linear import QuantizedLinear, quantized_linear
from tinypeft.quant.measure import bits_per_weight, layer_errors, requantize_error, weight_error
from tinypeft.quant.saving import load_quantized, save_quantized

generate_module = importlib.import_module("tinypeft.models.generation")         # tinypeft.generate is the function
BASES = {"nf4": tp.NF4(), "nf4, double": tp.NF4(double_quant=True), "uniform": tp.Uniform(4),
         "gptq": tp.GPTQ(group_size=16, act_order=True), "awq": tp.AWQ(group_size=16),
         "float": tp.FloatFormat("E2M1"), "w8a8": tp.W8A8(), "llm_int8": tp.LLMInt8(),
         "zeroquant": tp.ZeroQuant(groups=16), "smoothquant": tp.SmoothQuant()}
WEIGHT_ONLY = ["nf4", "nf4, double", "uniform", "gptq", "awq", "float"]
METHODS = {"adapter": tp.BottleneckAdapter(4), "parallel_adapter": tp.ParallelAdapter(4), "prompt": tp.PromptTuning(3),
           "ptuning": tp.PTuning((3, "context"), hidden=4), "prefix": tp.PrefixTuning(3, hidden=8),
           "ptuning_v2": tp.PTuningV2(3),
           "lora": tp.LoRA(4, targets="all"), "adalora": tp.AdaLoRA(4, 2), "dylora": tp.DyLoRA(4)}


@pytest.fixture
def base(gpt):
    """`base("nf4")`: a tiny GPT quantized by BASES["nf4"]."""
    def make(name, dtype=np.float32):
        calibration = np.random.default_rng(7).integers(0, 37, (4, 24))
        return tp.quantize(gpt(np.float32), BASES[name], calibration).to(dtype)
    return make


def moved(tuned, rng, size=0.1):
    """`tuned`, no trained number where it started."""
    for p in tuned.trainable_parameters():
        p.data = p.data + (size * rng.standard_normal(p.shape)).astype(p.dtype)
    return tuned


# -- quantize ------------------------------------------------------------------------------------------
def test_the_layers_in_the_blocks_are_replaced_and_nothing_else(gpt, tokens):
    model = gpt(np.float32)
    rest = {n: p for n, p in model.named_parameters() if not n.endswith("weight") or "norm" in n or "embedding" in n}
    bits = {n: p.data.tobytes() for n, p in rest.items()}
    W = {p: model.get(p).weight.data.copy() for p in linear_paths(model)}
    assert tp.quantize(model, tp.NF4()) is model
    for path, w in W.items():
        layer = model.get(path)
        assert type(layer) is QuantizedLinear
        assert np.array_equal(layer.dense_weight(), tp.NF4().quantize(w).dequantize())
        assert (layer.d_out, layer.d_in) == w.shape
    assert dict(model.named_parameters()) == rest and {n: p.data.tobytes() for n, p in rest.items()} == bits
    assert model.n_parameters() == gpt().n_parameters()


def test_targets_choose_the_layers(gpt):
    model = tp.quantize(gpt(np.float32), tp.NF4(), targets=("up", "blocks.1.attention.query"))
    quantized = {p for p in linear_paths(model) if isinstance(model.get(p), QuantizedLinear)}
    assert quantized == {"blocks.0.mlp.up", "blocks.1.mlp.up", "blocks.1.attention.query"}
    tp.quantize(model, tp.Uniform(8), targets=("down",))       # another scheme for other layers
    assert model.get("blocks.0.mlp.down").weight.bits == 8
    with pytest.raises(ValueError, match="'upp' matches none of the layers; did you mean 'up'"):
        tp.quantize(model, tp.NF4(), targets=("upp",))


def test_what_quantize_refuses(gpt, tokens):
    model = gpt(np.float32)
    with pytest.raises(TypeError, match="expected a scheme such as"):
        tp.quantize(model, "nf4")
    with pytest.raises(TypeError, match="expected a scheme such as"):
        tp.quantize(model, tp.NF4)
    with pytest.raises(TypeError, match="expected a language model, got ndarray"):
        tp.quantize(np.zeros((3, 3)), tp.NF4())
    tuned = tp.attach(model, tp.LoRA(4))
    with pytest.raises(ValueError, match="LoRA.* is attached"):
        tp.quantize(model, tp.NF4())
    with pytest.raises(TypeError, match="expected a language model, got PeftModel"):
        tp.quantize(tuned, tp.NF4())
    tuned.detach()
    tp.quantize(model, tp.NF4())
    with pytest.raises(ValueError, match="blocks.0.attention.query is a QuantizedLinear already"):
        tp.quantize(model, tp.Uniform(8))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", BASES)
def test_weights_that_are_not_finite_leave_the_model_as_it_was(gpt, tokens, name, bad):
    model = gpt(np.float32)
    model.get("blocks.1.mlp.up").weight.data[2, 3] = bad
    modules, before = dict(model.named_modules()), {n: a.tobytes() for n, a in model.state_dict().items()}
    with pytest.raises(ValueError, match="finite"), np.errstate(all="ignore"):
        tp.quantize(model, BASES[name], np.tile(tokens, (2, 3)))
    assert dict(model.named_modules()) == modules and not model.training
    assert {n: a.tobytes() for n, a in model.state_dict().items()} == before


@pytest.mark.parametrize("name", BASES)
def test_zero_and_constant_rows(gpt, tokens, name):
    """All-zero rows stay zero, at every scheme; a constant one keeps its sign and size within a step."""
    model = gpt(np.float32)
    W = model.get("blocks.1.attention.output").weight.data
    W[3], W[5] = 0, 0.25
    tp.quantize(model, BASES[name], np.tile(tokens, (2, 3)))
    W_hat = model.get("blocks.1.attention.output").dense_weight()
    assert not W_hat[3].any() and np.isfinite(W_hat).all() and (W_hat[5] > 0).all()
    assert np.isfinite(model(tokens).data).all()


@pytest.mark.parametrize("name", BASES)
def test_a_quantized_model_computes_about_the_same(gpt, base, tokens, name):
    """Close to the original, closer with more bits, and not the same: a scheme that does nothing fails."""
    exact, got = gpt(np.float32)(tokens).data, base(name)(tokens).data
    error = np.linalg.norm(got - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < (0.6 if base(name).get("blocks.0.mlp.up").weight.bits <= 4 else 0.15)


# -- the layer -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", BASES)
def test_a_float64_model_is_quantized_like_its_float32_copy(gpt, tokens, name):
    calibration = np.random.default_rng(7).integers(0, 37, (4, 24))
    narrow, wide = (tp.quantize(gpt(np.float32).to(dtype), BASES[name], calibration) for dtype in (np.float32, np.float64))
    assert_close(wide(tokens), narrow(tokens), 1e-3)


@pytest.mark.parametrize("bias", [True, False])
def test_forward_and_gradients_are_a_linear_layers_with_the_decoded_weight_numerical(rng, bias):
    q = tp.NF4().quantize(rng.standard_normal((5, 8)).astype(np.float32))
    x, b = rng.standard_normal((2, 3, 8)), rng.standard_normal(5) if bias else None
    inputs = [x] if b is None else [x, b]
    assert tp.gradcheck(lambda x, b=None: quantized_linear(x, q, b), *inputs) < 1e-8
    ours, dense = ([tp.Tensor(a, requires_grad=True) for a in inputs] for _ in range(2))
    W_hat = tp.Tensor(q.dequantize().astype(np.float64))
    y, expected = quantized_linear(ours[0], q, *ours[1:] or [None]), F.linear(dense[0], W_hat, *dense[1:])
    assert np.array_equal(y.data, expected.data)
    dy = rng.standard_normal(y.shape)
    y.backward(dy), expected.backward(dy)
    for a, e in zip(ours, dense, strict=True): assert np.array_equal(a.grad, e.grad)


def test_work_stays_in_the_dtype_of_the_input(rng):
    q = tp.NF4().quantize(rng.standard_normal((5, 8)).astype(np.float32))
    for dtype in (np.float32, np.float64):
        x = tp.Tensor(rng.standard_normal((3, 8)).astype(dtype), requires_grad=True)
        y = quantized_linear(x, q, None)
        y.backward(np.ones(y.shape, dtype))
        assert y.dtype == x.grad.dtype == dtype
    with pytest.raises(ValueError, match=r"x \(3, 7\) does not fit a weight of shape \(5, 8\)"):
        quantized_linear(tp.Tensor(np.zeros((3, 7))), q, None)


def test_an_input_without_gradient_costs_no_product(rng, products):
    q = tp.NF4().quantize(rng.standard_normal((5, 8)).astype(np.float32))
    x, b = tp.Tensor(rng.standard_normal((3, 8))), tp.Tensor(np.zeros(5), requires_grad=True)
    y = quantized_linear(x, q, b)
    dy = tp.Tensor(rng.standard_normal((3, 5)))
    products.watch(dy)
    y.backward(dy)
    assert products == [((3,), (3, 5))]                    # the sum of dy's rows, which is the bias' gradient
    assert_close(b.grad, dy.data.sum(0), 1e-12)


def test_codes_are_no_parameter_and_have_no_gradient(base, tokens):
    model = base("nf4")
    assert not any("attention.query.weight" in n for n, _ in model.named_parameters())
    for p in model.parameters(): p.requires_grad = True
    F.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:]).backward()
    codes = {n: a.tobytes() for n, a in model.state_dict().items() if "codes" in n or "scale" in n}
    assert len(codes) == 24
    optimizer = AdamW(model.parameters(), lr=0.1)
    optimizer.step()
    assert {n: a.tobytes() for n, a in model.state_dict().items() if n in codes} == codes


def test_full_fine_tuning_of_codes_is_refused_and_of_the_rest_is_not(base, tokens):
    with pytest.raises(tp.MethodError, match="blocks.0.attention.query.weight is quantized, and codes cannot be trained"):
        tp.attach(base("nf4"), tp.FullFineTuning())
    for targets in (("mlp",), ("query",), ("bias", "blocks.1.mlp.up"), ("weight",)):
        with pytest.raises(tp.MethodError, match="codes cannot be trained"):
            tp.attach(base("nf4"), tp.FullFineTuning(targets=targets))
    tuned = tp.attach(base("nf4"), tp.FullFineTuning(targets=("bias", "norm1")))
    F.cross_entropy(tuned(tokens[:, :-1]), tokens[:, 1:]).backward()
    trained = tuned.trainable_parameters()
    assert len(trained) == 2 * 9 + 1 and all(p.grad is not None for p in trained)
    partly = tp.quantize(base("nf4").__class__(base("nf4").config), tp.NF4(), targets=("up",))
    assert tp.attach(partly, tp.FullFineTuning(targets=("attention",))).summary().trained == 2 * 4 * (16 * 16 + 16)


# -- every method on every base ------------------------------------------------------------------------
@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_on_every_base(base, tokens, name, method):
    """Everything it trains gets a gradient and moves; nothing of the base has one or moves; detach gives it back."""
    model = base(name)
    before = {n: a.tobytes() for n, a in model.state_dict().items()}
    exact = model(tokens).data
    tuned = moved(tp.attach(model, METHODS[method], rng=1), np.random.default_rng(2))
    assert not np.array_equal(tuned(tokens).data, exact)
    optimizer, start = AdamW(tuned.trainable_parameters(), lr=1e-2), [p.data.copy() for p in tuned.trainable_parameters()]
    tuned.before_step(0, 10)
    F.cross_entropy(tuned(tokens[:, :-1]), tokens[:, 1:]).backward()
    trained = {id(p) for p in tuned.trainable_parameters()}
    assert all(p.grad is not None and np.isfinite(p.grad).all() for p in tuned.trainable_parameters())
    assert all(p.grad is None for p in tuned.parameters() if id(p) not in trained)
    optimizer.step()
    assert all(not np.array_equal(p.data, a) for p, a in zip(tuned.trainable_parameters(), start, strict=True))
    plain = tuned.detach()
    assert {n: a.tobytes() for n, a in plain.state_dict().items()} == before
    assert np.array_equal(plain(tokens).data, exact)


@pytest.mark.parametrize("name", WEIGHT_ONLY)
@pytest.mark.parametrize("method", METHODS)
def test_gradients_on_every_weight_quantized_base_numerical(base, tokens, name, method):
    """Against finite differences, float64, through decoded weights. PTuning's and adapters' kinks are avoided."""
    model = base(name, np.float64)
    tuned = moved(tp.attach(model, METHODS[method], rng=1), np.random.default_rng(2), 0.02)
    how = dict(step=1e-6, tolerance=1e-6) if method in ("adapter", "parallel_adapter", "ptuning") else dict(tolerance=1e-8)
    tp.gradcheck(lambda *_: tuned(tokens[:, :5]), *tuned.trainable_parameters(), directions=1, **how)


@pytest.mark.parametrize("name", WEIGHT_ONLY)
def test_a_fresh_lora_is_the_quantized_model_bit_exact(base, tokens, name):
    model = base(name)
    exact = model(tokens).data
    assert np.array_equal(tp.attach(model, tp.LoRA(4, targets="all"))(tokens).data, exact)


def test_training_on_a_quantized_base_is_training_on_its_decoded_weights_bit_exact(base, gpt, tokens):
    """QLoRA is LoRA, and the base happens to be stored in codes: 20 steps, the same numbers."""
    quantized, dense = base("nf4, double"), gpt(np.float32)
    for path in linear_paths(dense): dense.get(path).weight.data = quantized.get(path).dense_weight()
    tuned = [tp.attach(m, tp.LoRA(4, targets="all"), rng=3) for m in (quantized, dense)]
    for t in tuned:
        optimizer = AdamW(t.trainable_parameters(), lr=1e-2)
        for _ in range(20):
            optimizer.zero_grad()
            F.cross_entropy(t(tokens[:, :-1]), tokens[:, 1:]).backward()
            optimizer.step()
    a, b = (t.state_dict() for t in tuned)
    assert all(np.array_equal(a[n], b[n]) for n in a) and np.abs(a["LoRA/blocks.0.mlp.up.B"]).max() > 0.01


# -- QLoRA against bitsandbytes --------------------------------------------------------------------------
@pytest.mark.parametrize("double", [False, True])
def test_qloras_gradients_are_those_of_linear4bit_numerical(torch, rng, double):
    """y = x Ŵᵀ + b + s (x Aᵀ) Bᵀ: y, dx, dA and dB. Linear4bit in train mode; in eval mode it may compute in bfloat16."""
    bnb = pytest.importorskip("bitsandbytes")
    d_in, d_out, r, s = 64, 96, 4, 2.0
    W, b = (0.1 * rng.standard_normal((d_out, d_in))).astype(np.float32), rng.standard_normal(d_out).astype(np.float32)
    A, B = rng.standard_normal((r, d_in)).astype(np.float32), rng.standard_normal((d_out, r)).astype(np.float32)
    x, dy = rng.standard_normal((5, d_in)).astype(np.float32), rng.standard_normal((5, d_out)).astype(np.float32)

    theirs = bnb.nn.Linear4bit(d_in, d_out, compute_dtype=torch.float32, quant_type="nf4", compress_statistics=double)
    theirs.weight = bnb.nn.Params4bit(torch.tensor(W), quant_type="nf4", compress_statistics=double, requires_grad=False)
    theirs.bias = torch.nn.Parameter(torch.tensor(b))
    theirs = theirs.to("cpu").train()
    tx, tA, tB = (torch.tensor(a, requires_grad=True) for a in (x, A, B))
    ty = theirs(tx) + s * (tx @ tA.T) @ tB.T
    ty.backward(torch.tensor(dy))

    linear = Linear(d_in, d_out)
    linear.weight.data, linear.bias.data = W, b
    layer = tp.NF4(double_quant=double).layer(linear)
    ox, oA, oB = (tp.Tensor(a, requires_grad=True) for a in (x, A, B))
    y = layer(ox) + F.linear(F.linear(ox, oA) * s, oB)
    y.backward(dy)
    if double:                                                 # its 8-bit scales may be one code off: see nf4.py
        state = theirs.weight.quant_state
        exact = bnb.functional.dequantize_4bit(theirs.weight.data, state).numpy().reshape(d_out, d_in)
        assert np.abs(layer.dense_weight() - exact).max() < 0.03 * np.abs(W).max()
        tolerance = 0.02
    else:
        tolerance = 1e-5
    assert_close(y, ty, tolerance, "y")
    assert_close(ox.grad, tx.grad, tolerance, "dx")
    assert_close(oA.grad, tA.grad, 1e-5, "dA")
    assert_close(oB.grad, tB.grad, 1e-5, "dB")
    assert linear.weight.grad is None and theirs.weight.grad is None


# -- merging ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", WEIGHT_ONLY)
def test_merging_adds_to_the_decoded_weights(base, tokens, name):
    model = base(name)
    tuned = moved(tp.attach(model, tp.LoRA(4, targets="all")), np.random.default_rng(0))
    expected, plain = tuned(tokens).data, tuned.merge()
    assert all(type(plain.get(p)) is Linear for p in linear_paths(plain))
    assert_close(plain(tokens), expected, 1e-4)
    for path, wrapper in tuned.wrappers.items():
        assert np.array_equal(plain.get(path).weight.data, wrapper.base.dense_weight() + wrapper.delta())
    assert isinstance(tuned.detach().get("blocks.0.mlp.up"), QuantizedLinear)         # the base keeps its codes


ROUNDS = [tp.W8A8(), tp.W8A8("channel", "static"), tp.SmoothQuant(), tp.ZeroQuant(), tp.ZeroQuant(mlp_bits=4),
          tp.LLMInt8(), tp.LLMInt8(variant="bitsandbytes"), tp.FakeQuant(4, activation_bits=8),
          tp.FakeQuant(4, learn_step=True, activation_bits=8), tp.LLMQAT(), tp.LLMQAT(activation_bits=None)]


@pytest.mark.parametrize("method", [tp.LoRA(4, targets="all"), tp.IA3(), tp.LoRA(4, targets=("key",))], ids=str)
@pytest.mark.parametrize("scheme", ROUNDS, ids=str)
def test_no_weights_replace_a_layer_that_rounds_its_inputs(gpt, tokens, scheme, method):
    """So merging refuses, by the layer's name, until it is told to drop the rounding. Then it is exact: the merged
    model is the one whose layers are plain, with the decoded weights and the same method on them."""
    model = tp.quantize(gpt(np.float32), scheme, calibration=np.random.default_rng(7).integers(0, 37, (4, 24)))
    for trains in [True, False] if scheme.trains else [False]:
        if scheme.trains and not trains: model = tp.convert(model)
        tuned = moved(tp.attach(model, method), np.random.default_rng(0))
        path = next(path for path, w in tuned.wrappers.items() if not w.base.is_affine)   # LLM-QAT may round keys only
        with pytest.raises(tp.MethodError, match=rf'^merge: {path} is a \w+, .* merge\(activations="exact"\)'):
            tuned.merge()
        merged, state = tuned.merge(activations="exact"), tuned.state_dict()
        plain = copy.deepcopy(tuned.detach())
        for p in tuned.wrappers:
            layer = Linear(plain.get(p).d_in, plain.get(p).d_out)
            layer.weight, layer.bias = Parameter(plain.get(p).dense_weight()), plain.get(p).bias
            replace_modules(plain, {p: layer})
        again = tp.attach(plain, method).load_state_dict(state)
        others = len(tuned.wrappers) < len(linear_paths(gpt()))          # they round still: ties may fall either way
        assert_close(merged(tokens), again(tokens), 0.03 if others else 1e-4)
        assert all(type(merged.get(p)) is Linear for p in tuned.wrappers)
        assert all(type(merged.get(p)) is type(model.get(p)) for p in linear_paths(gpt()) if p not in tuned.wrappers)
    with pytest.raises(tp.MethodError, match="activations must be 'kept' or 'exact', got 'dropped'"):
        tp.attach(gpt(), method).merge(activations="dropped")


@pytest.mark.parametrize("scheme", [tp.FakeQuant(4), tp.PEQA(4), tp.LLMQAT(activation_bits=None, kv_bits=None)],
                         ids=str)
def test_layers_for_training_that_round_only_weights_merge_exactly(gpt, tokens, scheme):
    model = tp.quantize(gpt(np.float32), scheme)
    for _ in range(2):
        tuned = moved(tp.attach(model, tp.LoRA(4, targets="all")), np.random.default_rng(0))
        assert_close(tuned.merge()(tokens), tuned(tokens), 1e-4)
        tuned.detach()
        if any(hasattr(m, "convert") for _, m in model.named_modules()): tp.convert(model)


def test_what_requantizing_a_merge_loses(base, gpt, rng):
    """A change of a few percent is smaller than a 4-bit step: most of it is rounded away, and at 8 bits it is not."""
    model = base("nf4")
    tuned = moved(tp.attach(model, tp.LoRA(4, targets="all")), rng, 0.02)
    of_weight, of_change = requantize_error(tuned, tp.NF4())
    assert 0.05 < of_weight < 0.12 and of_change > 0.8
    M = {p: w.merge().weight.data for p, w in tuned.wrappers.items()}
    squares = lambda f: sum(np.square(f(p)).sum() for p in M)
    lost = squares(lambda p: tp.NF4().quantize(M[p]).dequantize() - M[p])
    assert_close(of_change**2, lost / squares(lambda p: tuned.wrappers[p].delta()), 1e-4)
    assert_close(of_weight**2, lost / squares(lambda p: M[p]), 1e-4)
    assert requantize_error(tuned, tp.Uniform(8))[1] < 0.2 * of_change
    assert requantize_error(tuned, tp.FloatFormat("FP16"))[1] < 1e-2


def test_requantizing_what_was_not_changed_loses_nothing_bit_exact(base):
    """NF4 and uniform grids are idempotent: their largest code decodes to the largest weight."""
    for scheme in (tp.NF4(), tp.Uniform(4)):
        once = scheme.quantize(np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)).dequantize()
        assert np.array_equal(scheme.quantize(once).dequantize(), once)
    with pytest.raises(ValueError, match="changes no weight"):
        requantize_error(tp.attach(base("nf4"), tp.LoRA(4)), tp.NF4())
    with pytest.raises(ValueError, match="does not change weights at blocks.0"):
        requantize_error(tp.attach(base("nf4"), tp.BottleneckAdapter(4)), tp.NF4())


# -- numbers ---------------------------------------------------------------------------------------------
def test_errors_and_sizes_are_those_of_the_layers_numerical(gpt, base, rng):
    model, quantized, tokens = gpt(np.float32), base("uniform"), rng.integers(0, 37, (4, 20))
    errors = layer_errors(model, quantized, tokens)
    assert list(errors) == linear_paths(model)
    W, W_hat = (np.concatenate([m.get(p).dense_weight().reshape(-1) for p in errors]) for m in (model, quantized))
    assert_close(weight_error(model, quantized), np.linalg.norm(W_hat - W) / np.linalg.norm(W), 1e-5)
    path = "blocks.1.mlp.down"
    w, w_hat = model.get(path).dense_weight(), quantized.get(path).dense_weight()
    assert_close(errors[path][0], np.linalg.norm(w_hat - w) / np.linalg.norm(w), 1e-6)
    seen = tp.capture(model, tokens, [path], hessian=True)[path]
    assert_close(errors[path][1], np.sqrt(np.trace((w_hat - w) @ seen.H @ (w_hat - w).T) / np.trace(w @ seen.H @ w.T)), 1e-5)


@pytest.mark.parametrize("name, formula", [("nf4", 4 + 32 / 64), ("gptq", 4 + 20 / 16 + 32 * 96 / 3072 * 1),
                                           ("awq", 4 + 20 / 16 + 32 * 64 / 3072)])
def test_bits_per_weight_of_a_model_are_the_formula_bit_exact(base, name, formula):
    """3072 weights in a block. GPTQ's order: 32 bits for each of 16 columns of four layers, of up, and 64 of down: 144."""
    expected = 4 + 20 / 16 + 32 * (5 * 16 + 64) / 3072 if name == "gptq" else formula
    assert bits_per_weight(base(name)) == pytest.approx(expected, rel=1e-12)


def test_a_qlora_that_is_merged_everywhere_has_no_codes(gpt, base):
    merged = tp.attach(base("nf4"), tp.LoRA(4, targets="all"), rng=0).merge()
    with pytest.raises(ValueError, match="no layer holds codes"): bits_per_weight(merged)
    with pytest.raises(ValueError, match="no layer of the second model is quantized"): weight_error(gpt(np.float32), merged)


# -- files -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", BASES)
def test_a_saved_model_comes_back_bit_exact(base, tokens, tmp_path, name):
    model = base(name)
    save_quantized(model, tmp_path / "model.npz")
    loaded = load_quantized(tmp_path / "model.npz")
    a, b = model.state_dict(), loaded.state_dict()
    assert list(a) == list(b) and all(a[n].tobytes() == b[n].tobytes() and a[n].dtype == b[n].dtype for n in a)
    assert repr(loaded) == repr(model) and np.array_equal(loaded(tokens).data, model(tokens).data)
    for path in linear_paths(model):
        assert isinstance(loaded.get(path).weight, Packed)
    tuned = tp.attach(loaded, tp.LoRA(4))                      # and is a model like any other
    F.cross_entropy(tuned(tokens[:, :-1]), tokens[:, 1:]).backward()
    assert all(p.grad is not None for p in tuned.trainable_parameters())


def test_mixed_models_and_heads_are_saved(gpt, tokens, tmp_path):
    model = tp.quantize(gpt(np.float32), tp.NF4(), targets=("up",))
    tp.quantize(model, tp.Uniform(3), targets=("down",))
    model.head = Linear(16, 5, rng=0)
    save_quantized(model, tmp_path / "model.npz")
    loaded = load_quantized(tmp_path / "model.npz")
    assert type(loaded.get("blocks.0.attention.query")) is Linear
    assert np.array_equal(loaded.class_logits(tokens, [7, 3, 5]).data, model.class_logits(tokens, [7, 3, 5]).data)


@pytest.mark.parametrize("scheme", [tp.NF4(), tp.NF4(double_quant=True), tp.Uniform(2), tp.FloatFormat("E4M3")])
def test_the_file_is_within_a_percent_of_the_bytes(scheme, tmp_path):
    """At the size of the shipped base."""
    model = tp.GPT(tp.GPTConfig(vocab_size=1024, context_length=256, d_model=160, n_layers=4, n_heads=5))
    save_quantized(tp.quantize(model, scheme), tmp_path / "model.npz")
    arrays = sum(a.nbytes for a in model.state_dict().values())
    assert arrays <= os.path.getsize(tmp_path / "model.npz") <= 1.01 * arrays
    blocks = sum(m.weight.size for _, m in model.named_modules() if isinstance(m, QuantizedLinear))
    rest = 4 * sum(p.size for p in model.parameters())
    assert arrays == pytest.approx(blocks * bits_per_weight(model) / 8 + rest)


def test_what_is_not_saved_or_loaded(base, tmp_path):
    model = base("nf4")
    tuned = tp.attach(model, tp.LoRA(4))
    with pytest.raises(ValueError, match="LoRA.* is attached"):
        save_quantized(model, tmp_path / "model.npz")
    tuned.detach()
    model.get("blocks.0.mlp.up").extra = object()
    with pytest.raises(TypeError, match="blocks.0.mlp.up.extra is a object"):
        save_quantized(model, tmp_path / "model.npz")
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError):
        load_quantized(tmp_path / "model.npz")
    tp.attach(base("nf4"), tp.LoRA(4)).save(tmp_path)
    with pytest.raises(ValueError, match="holds no quantized model"):
        load_quantized(tmp_path / "adapter.safetensors")
    (tmp_path / "noise.npz").write_bytes(b"PK" + bytes(100))
    with pytest.raises(ValueError, match="not a file that tinypeft wrote"):
        load_quantized(tmp_path / "noise.npz")


class Mine(QuantizedLinear):
    """A user's own layer."""


def test_a_users_own_layer_is_loaded_by_its_class(base, tokens, tmp_path):
    model = base("nf4")
    old = model.get("blocks.0.mlp.up")
    replace_modules(model, {"blocks.0.mlp.up": Mine(old.weight, old.bias)})
    save_quantized(model, tmp_path / "model.npz")
    with pytest.raises(ValueError, match=r"blocks.0.mlp.up: it is a Mine; give its class in layers="):
        load_quantized(tmp_path / "model.npz")
    loaded = load_quantized(tmp_path / "model.npz", layers=(Mine,))
    assert type(loaded.get("blocks.0.mlp.up")) is Mine and np.array_equal(loaded(tokens).data, model(tokens).data)


def test_a_failed_quantize_makes_older_graphs_stale_where_it_wrote(gpt, tokens):
    """The numbers are back, but in between there were others: `assign` counts both writes."""
    model = gpt(np.float32)
    y = model(tokens)
    model.get("blocks.1.mlp.up").weight.data[0, 0] = 1e9       # its scale does not fit into float16
    with pytest.raises(ValueError, match="overflows float16"):
        tp.quantize(model, tp.AWQ(group_size=16), tokens)
    with pytest.raises(tp.GraphError):
        y.backward(np.ones(y.shape, np.float32))


@pytest.mark.parametrize("make, name", [
    (lambda: tp.GPTQ(groupsize=128), "group_size"), (lambda: tp.GPTQ(wbits=4), "bits"),
    (lambda: tp.GPTQ(desc_act=True), "act_order"), (lambda: tp.GPTQ(percdamp=0.1), "damping"),
    (lambda: tp.GPTQ(damp_percent=0.1), "damping"), (lambda: tp.GPTQ(blocksize=64), "block_size"),
    (lambda: tp.AWQ(w_bit=4), "bits"), (lambda: tp.AWQ(q_group_size=64), "group_size"),
    (lambda: tp.AWQ(zero_point=True), "symmetric"), (lambda: tp.SmoothQuant(migration_strength=1), "alpha")])
def test_names_of_other_libraries_get_a_hint(make, name):
    with pytest.raises(TypeError, match=f"the field is called {name}"): make()


def test_state_dict_holds_the_codes_and_loads_them(base):
    a, b = base("nf4, double"), base("nf4, double")
    assert a.state_dict()["blocks.0.mlp.up.weight.codes"].dtype == np.uint8
    b.get("blocks.0.mlp.up").weight = tp.NF4(double_quant=True).quantize(np.ones((64, 16), np.float32))
    b.load_state_dict(a.state_dict())
    assert np.array_equal(a.get("blocks.0.mlp.up").dense_weight(), b.get("blocks.0.mlp.up").dense_weight())


def test_schemes_are_values():
    for name, cls in tp.SCHEMES.items():
        scheme = cls()
        assert cls(**dataclasses.asdict(scheme)) == scheme and hash(scheme) == hash(cls()), name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(scheme, dataclasses.fields(scheme)[0].name, 1)
    assert repr(tp.GPTQ()) == "GPTQ(bits=4)" and repr(tp.GPTQ(3, 128)) == "GPTQ(bits=3, group_size=128)"


def test_a_saved_file_does_not_depend_on_the_process(tmp_path):
    """The same model gives the same bytes under two seeds of Python's hashes."""
    code = ("import sys, tinypeft as tp\n"
            "model = tp.GPT(tp.GPTConfig(vocab_size=16, context_length=8, d_model=16, n_layers=1, n_heads=2))\n"
            "tp.save_quantized(tp.quantize(model, tp.NF4(double_quant=True, block_size=16)), sys.argv[1])")
    for seed in "1", "2", "3":
        subprocess.run([sys.executable, "-c", code, str(tmp_path / f"{seed}.npz")], check=True,
                       env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert len({(tmp_path / f"{seed}.npz").read_bytes() for seed in "123"}) == 1


# -- generation -------------------------------------------------------------------------------------
@pytest.mark.parametrize("scheme", [tp.NF4(), tp.LLMInt8(), tp.W8A8(), tp.ZeroQuant(group_size=16)], ids=repr)
def test_generate_decodes_every_weight_once_and_keeps_none(gpt, tokens, scheme, monkeypatch):
    """The same tokens as when weights are decoded again for each; outside of `generate` they are."""
    model = tp.quantize(gpt(np.float32), scheme)
    monkeypatch.setattr(generate_module, "KEPT", 0)
    expected = model.generate(tokens[:1], 6)
    monkeypatch.undo()
    made, look_up = [], QTensor.look_up
    monkeypatch.setattr(QTensor, "look_up", lambda q, *more: (made.append(q), look_up(q, *more)))
    assert np.array_equal(model.generate(tokens[:1], 6), expected)
    assert len(made) == len(linear_paths(model)) == len(set(made))
    with tp.no_grad(): model(tokens[:1]), model(tokens[:1])
    assert len(made) == 3 * len(linear_paths(model))


def test_what_generation_keeps_is_bounded(monkeypatch):
    made = []
    def make(name): return lambda: made.append(name) or np.zeros(256, np.float32)          # 1024 bytes
    monkeypatch.setattr(generate_module, "KEPT", 2048)
    with keeping() as arrays:
        for _ in range(2):
            for name in "abc": kept(name, make(name))
        assert made == ["a", "b", "c", "c"] and list(arrays) == ["a", "b"]
        assert kept("a", make("a")) is arrays["a"]
        with keeping(): kept("a", make("a"))                               # one inside another keeps its own
        kept("a", make("a"))
    kept("a", make("a"))
    assert made == ["a", "b", "c", "c", "a", "a"]


@pytest.mark.parametrize("name", WEIGHT_ONLY)
def test_plain_weights_hold_the_numbers_of_the_codes(base, tokens, name):
    """The model itself stays in its codes, and one without codes is what comes back."""
    model = base(name)
    before = model(tokens).data
    plain = tp.dequantize(model)
    assert type(plain.get("blocks.1.mlp.up")) is type(plain.get("blocks.0.attention.query")) is Linear
    np.testing.assert_allclose(plain(tokens).data, before, rtol=0, atol=1e-5)
    assert np.array_equal(model(tokens).data, before) and tp.dequantize(plain) is plain


def test_rounded_inputs_are_left_out_only_when_asked(base, gpt):
    model = base("llm_int8")
    with pytest.raises(ValueError, match="blocks.0.attention.query is a LLMInt8Linear, which rounds its"): tp.dequantize(model)
    plain, layer = tp.dequantize(model, "exact"), model.get("blocks.1.mlp.up")
    assert np.array_equal(plain.get("blocks.1.mlp.up").weight.data, layer.dense_weight())
    with pytest.raises(ValueError, match="must be 'kept' or 'exact', got 'all'"): tp.dequantize(model, "all")
    with pytest.raises(ValueError, match="LoRA.* is attached; merge or detach it first"):
        tp.dequantize(tp.attach(gpt(), tp.LoRA()).model)
