"""Quantized models: what `quantize` takes, the layer, QLoRA, merging, files, generation. Every scheme: test_schemes.py."""
import os
import subprocess
import sys

import numpy as np
import pytest

import tinypeft as tp
from tests.oracles import assert_close
from tests.protocol import frozen_bytes
from tests.toys import linear_paths
from tinypeft.engine import functional as F
from tinypeft.engine import memo
from tinypeft.engine.memo import keeping, kept
from tinypeft.engine.nn import Linear
from tinypeft.engine.optim import AdamW
from tinypeft.quant import QTensor
from tinypeft.quant.linear import QuantizedLinear, quantized_linear
from tinypeft.quant.measure import bits_per_weight, layer_errors, requantize_error, weight_error
from tinypeft.quant.saving import load_quantized, save_quantized

BASES = {"nf4": tp.NF4(), "nf4, double": tp.NF4(double_quant=True), "uniform": tp.Uniform(4), "llm_int8": tp.LLMInt8()}


@pytest.fixture
def base(gpt):
    """`base("nf4")`: a tiny GPT quantized by BASES["nf4"]."""
    return lambda name: tp.quantize(gpt(np.float32), BASES[name], np.random.default_rng(7).integers(0, 37, (4, 24)))


def moved(tuned, rng, size=0.1):
    """`tuned`, no trained number where it started."""
    for p in tuned.trainable_parameters():
        p.data = p.data + (size * rng.standard_normal(p.shape)).astype(p.dtype)
    return tuned


# -- quantize ------------------------------------------------------------------------------------------
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
    with pytest.raises(ValueError, match=r"quantize: .* inside a PeftModel, with LoRA\(.*\) attached; give the base"):
        tp.quantize(tuned.model, tp.NF4())
    with pytest.raises(ValueError, match="quantize: .* inside a PeftModel, as it was at attach; give the base"):
        tp.quantize(tuned.frozen, tp.NF4())
    with pytest.raises(TypeError, match="expected a language model, got PeftModel"):
        tp.quantize(tuned, tp.NF4())
    logits = tuned(tokens).data
    assert tp.quantize(model, tp.NF4()) is tuned.detach()
    assert np.array_equal(tuned(tokens).data, logits)
    with pytest.raises(ValueError, match="blocks.0.attention.query is a QuantizedLinear already"):
        tp.quantize(model, tp.Uniform(8))


# -- the layer -----------------------------------------------------------------------------------------
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


# -- training on codes ---------------------------------------------------------------------------------
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


def test_a_qlora_that_is_merged_everywhere_has_no_codes(gpt, base):
    merged = tp.attach(base("nf4"), tp.LoRA(4, targets="all"), rng=0).merge()
    with pytest.raises(ValueError, match="no layer holds codes"): bits_per_weight(merged)
    with pytest.raises(ValueError, match="no layer of the second model is quantized"): weight_error(gpt(np.float32), merged)


# -- files -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scheme", [tp.NF4(), tp.NF4(double_quant=True), tp.Uniform(2), tp.FloatFormat("E4M3")])
def test_the_file_is_within_two_percent_of_the_bytes(scheme, tmp_path):
    """At the size of the shipped base."""
    model = tp.GPT(tp.GPTConfig(vocab_size=1024, context_length=256, d_model=160, n_layers=4, n_heads=5))
    save_quantized(tp.quantize(model, scheme), tmp_path / "model.npz")
    arrays = sum(a.nbytes for a in model.state_dict().values())
    assert arrays <= os.path.getsize(tmp_path / "model.npz") <= 1.02 * arrays
    blocks = sum(m.weight.size for _, m in model.named_modules() if isinstance(m, QuantizedLinear))
    rest = 4 * sum(p.size for p in model.parameters())
    assert arrays == pytest.approx(blocks * bits_per_weight(model) / 8 + rest)


def test_what_is_not_saved_or_loaded(base, tmp_path):
    model = base("nf4")
    tuned = tp.attach(model, tp.LoRA(4))
    for inside in (tuned.model, tuned.frozen):
        with pytest.raises(ValueError, match="save_quantized: this is the model inside a PeftModel"):
            save_quantized(inside, tmp_path / "model.npz")
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


def test_a_failed_quantize_leaves_the_numbers_and_makes_older_graphs_stale(gpt, tokens):
    """The numbers are back, but in between there were others: `assign` counts both writes. The second block cannot be
    quantized when the first has been, norms and all."""
    model = gpt(np.float32)
    y = model(tokens)
    model.get("blocks.1.mlp.up").weight.data[0, 0] = 1e9       # its scale does not fit into float16
    before, modules = frozen_bytes(model), dict(model.named_modules())
    with pytest.raises(ValueError, match="overflows float16"):
        tp.quantize(model, tp.AWQ(group_size=16), tokens)
    assert frozen_bytes(model) == before and dict(model.named_modules()) == modules
    with pytest.raises(tp.GraphError):
        y.backward(np.ones(y.shape, np.float32))


def test_state_dict_holds_the_codes_and_loads_them(base):
    a, b = base("nf4, double"), base("nf4, double")
    assert a.state_dict()["blocks.0.mlp.up.weight.codes"].dtype == np.uint8
    b.get("blocks.0.mlp.up").weight = tp.NF4(double_quant=True).quantize(np.ones((64, 16), np.float32))
    b.load_state_dict(a.state_dict())
    assert np.array_equal(a.get("blocks.0.mlp.up").dense_weight(), b.get("blocks.0.mlp.up").dense_weight())


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
    monkeypatch.setattr(memo, "KEPT", 0)
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
    monkeypatch.setattr(memo, "KEPT", 2048)
    with keeping() as arrays:
        for _ in range(2):
            for name in "abc": kept(name, make(name))
        assert made == ["a", "b", "c", "c"] and list(arrays) == ["a", "b"]
        assert kept("a", make("a")) is arrays["a"]
        with keeping(): kept("a", make("a"))                               # one inside another keeps its own
        kept("a", make("a"))
    kept("a", make("a"))
    assert made == ["a", "b", "c", "c", "a", "a"]


def test_what_dequantize_and_merge_do_not_take(base, gpt):
    model = base("llm_int8")
    with pytest.raises(tp.MethodError, match="activations must be 'kept' or 'exact', got 'dropped'"):
        tp.attach(gpt(), tp.LoRA()).merge(activations="dropped")
    with pytest.raises(ValueError, match="must be 'kept' or 'exact', got 'all'"): tp.dequantize(model, "all")
    tuned = tp.attach(gpt(), tp.LoRA())
    for inside in (tuned.model, tuned.frozen):
        with pytest.raises(ValueError, match="dequantize: this is the model inside a PeftModel"): tp.dequantize(inside)
