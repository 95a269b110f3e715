"""PEQA: codes stay, scales learn; the same maths as quantization and as an adapter."""
import copy
from dataclasses import replace

import numpy as np
import pytest

import tinypeft as tp
from tests.oracles import assert_close
from tests.protocol import assert_same_race, frozen_bytes
from tests.toys import Distil, Noise, linear_paths
from tinypeft.engine.tensor import Tensor
from tinypeft.quant.peqa import PEQALinear, scaled, scaled_linear
from tinypeft.quant.qtensor import blocks_of


def with_order(q, rng):
    return replace(q, order=rng.permutation(q.shape[1]).astype(np.int32))


def weights(rng):
    """QTensors (6, 40) with float scales of every layout: zero points, groups, a short block, a table, an order, offsets."""
    W = rng.standard_normal((6, 40)).astype(np.float32)
    schemes = (tp.Uniform(4, symmetric=False), tp.Uniform(3), tp.Uniform(3, symmetric=False, granularity="group", group_size=8),
               tp.Uniform(2, granularity="tensor"), tp.NF4(block_size=64), tp.GGUF("Q4_0"))
    qs = [s.quantize(W if not isinstance(s, tp.GGUF) else W.reshape(3, 80)[:, :64]) for s in schemes]
    assert qs[4].size % 64                                                  # the short block
    offsets = rng.standard_normal(qs[5].scales().shape).astype(np.float32)
    return [*qs, with_order(qs[2], rng), replace(qs[5], offset=offsets)]


# -- the layer -------------------------------------------------------------------------------------
def test_with_its_own_scales_it_is_the_quantized_layer(rng):
    """Bit-exact."""
    for q in weights(rng):
        assert np.array_equal(scaled(q, q.scales()), q.dequantize())
        layer = tp.QuantizedLinear(q, None)
        x = Tensor(rng.standard_normal((2, 3, q.shape[1])).astype(np.float32))
        assert np.array_equal(PEQALinear(layer)(x).data, layer(x).data)


def test_gradients(rng):
    """dx, ds and db against finite differences, float64; only those that are needed."""
    for q in weights(rng):
        x, s, b = rng.standard_normal((2, 3, q.shape[1])), q.scales().astype(np.float64), rng.standard_normal(q.shape[0])
        tp.gradcheck(lambda x, s, b, q=q: scaled_linear(x, q, s, b), x, s, b)
        tp.gradcheck(lambda x, s, q=q: scaled_linear(x, q, s, None), Tensor(x), Tensor(s, requires_grad=True))


def test_the_gradient_of_a_scale_is_the_papers(rng):
    """∂L/∂sᵢ = Σⱼ Gᵢⱼ (qᵢⱼ − zᵢ)."""
    q = tp.Uniform(4, symmetric=False).quantize(rng.standard_normal((6, 40)).astype(np.float32))
    x, dy = rng.standard_normal((9, 40)), rng.standard_normal((9, 6))
    s = Tensor(q.scales().astype(np.float64), requires_grad=True)
    scaled_linear(Tensor(x), q, s, None).backward(dy)
    assert_close(s.grad, ((dy.T @ x) * q.integers()).sum(1), 1e-12)


# -- as an adapter ---------------------------------------------------------------------------------
CASES = [tp.PEQA(bits=4), tp.PEQA(bits=3, group_size=8), tp.PEQA(bits=2, symmetric=True, targets=("query", "up"))]


@pytest.mark.parametrize("peqa", CASES, ids=str)
def test_training_follows_pytorch(gpt, peqa, tokens):
    torch = pytest.importorskip("torch")
    from tests.oracles.torch_gpt import torch_copy
    from tests.oracles.torch_qat import ScaledLinear
    model = tp.quantize(gpt(), peqa)
    oracle = torch_copy(model)
    tuned = tp.attach(model, peqa)
    pairs = []
    for path, wrapper in tuned.wrappers.items():
        q = wrapper.base.weight
        C = torch.tensor(blocks_of(q.integers(), q.block_size).astype(np.float64))
        parent, name = path.rsplit(".", 1)
        theirs = ScaledLinear(oracle.get_submodule(path), C, torch.tensor(wrapper.scale.data))
        setattr(oracle.get_submodule(parent), name, theirs)
        pairs.append((wrapper.scale, theirs.scale))
    assert_same_race(tuned, oracle, pairs, tokens)


@pytest.mark.parametrize("peqa", CASES, ids=str)
def test_it_is_a_method_like_any_other(gpt, peqa, tokens, tmp_path):
    """Starts as the base, bit for bit; trains n scales and nothing else; file, merge and detach are exact."""
    base = tp.quantize(gpt(np.float32), tp.Uniform(peqa.bits, peqa.symmetric, "group" if peqa.group_size else "channel",
                                                   peqa.group_size))
    before, logits = frozen_bytes(base), base(tokens).data
    tuned = tp.attach(base, peqa)
    assert np.array_equal(tuned(tokens).data, logits)
    layers = [base.get(p) for p in tuned.wrappers]
    n = sum(m.weight.size // (peqa.group_size or m.d_in) for m in layers)
    assert len(layers) == (4 if peqa.targets != "all" else 12)
    assert tuned.summary().trained == tuned.summary().stored == n and tuned.summary().nbytes == 4 * n
    tp.train(tuned, Noise(), 5, lr=1e-2, progress=False)
    trained = tuned(tokens).data
    assert np.abs(trained - logits).max() > 1e-2
    tuned.save(tmp_path)
    merged = tuned.merge()
    assert np.array_equal(merged(tokens).data, trained)
    for path in tuned.wrappers:
        layer = merged.get(path)
        assert type(layer) is tp.QuantizedLinear
        assert np.array_equal(layer.weight.codes, base.get(path).weight.codes)
    assert tp.bits_per_weight(merged) == tp.bits_per_weight(base)
    assert frozen_bytes(tuned.detach()) == before
    assert np.array_equal(tp.load_adapter(base, tmp_path)(tokens).data, trained)


def test_gradients_of_the_model(gpt, tokens):
    peqa = tp.PEQA(bits=3, group_size=8)
    tuned = tp.attach(tp.quantize(gpt(), peqa), peqa)
    tp.gradcheck(lambda *_: tuned(tokens), *tuned.trainable_parameters(), directions=2, step=2e-4)


@pytest.mark.parametrize("scheme, peqa", [
    (tp.GPTQ(bits=4, group_size=16), tp.PEQA(bits=4, group_size=16)), (tp.GPTQ(bits=3, act_order=True), tp.PEQA(bits=3)),
    (tp.AWQ(bits=4, group_size=16), tp.PEQA(4, group_size=16, targets=("query", "value", "up"))),
    (tp.NF4(block_size=16), tp.PEQA(bits=4, group_size=16))], ids=str)
@pytest.mark.filterwarnings("ignore:GPTQ")
def test_on_what_another_scheme_quantized(gpt, scheme, peqa, tokens):
    base = tp.quantize(gpt(np.float32), scheme, calibration=tokens if scheme.calibrated else None)
    logits = base(tokens).data
    tuned = tp.attach(base, peqa)
    assert np.array_equal(tuned(tokens).data, logits)
    history = tp.train(tuned, Distil(gpt(np.float32)), 20, lr=3e-3, progress=False)
    assert np.mean(history.loss[-5:]) < np.mean(history.loss[:5])
    half = base.blocks[0].mlp.up.weight.scale.dtype == np.float16      # merging rounds to what the base stores
    assert_close(tuned.merge()(tokens).data, tuned(tokens).data, 1e-2 if half else 0)


# -- as quantization -------------------------------------------------------------------------------
def test_quantize_trains_the_same_scales(gpt, tokens):
    """Bit-exact: quantize + train + convert gives what quantize + attach + train + merge gives."""
    peqa, task = tp.PEQA(bits=3), Noise()
    model = tp.quantize(gpt(np.float32), peqa)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [f"{p}.scale" for p in linear_paths(model)
                                                                           if not p.endswith("base")]
    frozen = {n: p.data.tobytes() for n, p in model.named_parameters() if not p.requires_grad}
    tuned = tp.attach(tp.quantize(gpt(np.float32), peqa), peqa)
    for m in (model, tuned): tp.train(m, task, 5, lr=1e-2, progress=False)
    assert all(p.data.tobytes() == frozen[n] for n, p in model.named_parameters() if n in frozen)
    before = model(tokens).data
    assert np.array_equal(tp.convert(model)(tokens).data, before) and np.array_equal(tuned(tokens).data, before)
    assert all(type(model.get(p)) is tp.QuantizedLinear for p in linear_paths(model))


@pytest.mark.parametrize("peqa, n", [(tp.PEQA(bits=3), 12), (tp.PEQA(bits=3, targets=("query", "up")), 4)], ids=str)
def test_attached_to_what_it_quantized_itself(gpt, peqa, n, tokens, tmp_path):
    """Training goes on from the scales of the base, which stay; merging, switching and files are exact."""
    model = tp.quantize(gpt(np.float32), tp.PEQA(bits=3))
    tp.train(model, Noise(), 3, lr=1e-2, progress=False)
    logits, layer = model(tokens).data, model.blocks[0].mlp.up
    tuned = tp.attach(model, peqa)
    assert len(tuned.trainable_parameters()) == n
    assert np.array_equal(tuned(tokens).data, logits)
    tp.train(tuned, Noise(), 3, lr=1e-2, progress=False)
    trained = tuned(tokens).data
    assert not np.array_equal(trained, logits)
    assert np.array_equal(model(tokens).data, logits) and model.blocks[0].mlp.up is layer
    assert np.array_equal(tuned.merge()(tokens).data, trained)
    tuned.save(tmp_path)
    assert np.array_equal(tp.load_adapter(model, tmp_path)(tokens).data, trained)
    tuned.detach("PEQA")
    assert np.array_equal(tuned(tokens).data, logits)
    assert np.array_equal(tuned.reattach()(tokens).data, trained)
    tp.convert(model)
    assert np.array_equal(tuned.merge(in_place=True)(tokens).data, trained)


# -- what it is for --------------------------------------------------------------------------------
@pytest.mark.parametrize("peqa, bound", [(tp.PEQA(2), 0.6), (tp.PEQA(3), 0.6), (tp.PEQA(2, group_size=8), 0.6)], ids=str)
def test_it_learns(gpt, seeds, peqa, bound):
    """Direction, three seeds: KL from the float model after 80 steps is at most `bound` of round to nearest's."""
    ratios = []
    for seed in seeds:
        teacher = gpt(np.float32, rng=seed)
        task = Distil(teacher)
        tuned = tp.attach(tp.quantize(copy.deepcopy(teacher), peqa), peqa)
        start = tp.evaluate(tuned, task, "test")["loss"]
        tp.train(tuned, task, 80, lr=1e-2, seed=seed, progress=False)
        ratios.append(tp.evaluate(tuned.merge(), task, "test")["loss"] / start)
    assert max(ratios) < bound, ratios


# -- what cannot be --------------------------------------------------------------------------------
@pytest.mark.parametrize("quantized, peqa, says", [
    (None, tp.PEQA(), "not quantized; call tinypeft.quantize"),
    (tp.NF4(double_quant=True), tp.PEQA(bits=4, group_size=64), "codes themselves, and codes cannot be trained"),
    (tp.FloatFormat("BF16"), tp.PEQA(bits=4), "no scales"),
    (tp.Uniform(3), tp.PEQA(bits=4), r"use PEQA\(bits=3, group_size=16\)"),
    (tp.Uniform(4, granularity="group", group_size=8), tp.PEQA(bits=4), "group_size=8"),
    (tp.LLMInt8(), tp.PEQA(bits=8), "changes its input"), (tp.W8A8(), tp.PEQA(bits=8), "changes its input"),
    (tp.FakeQuant(4), tp.PEQA(bits=4), "not quantized")], ids=str)
def test_bases_it_cannot_train(gpt, quantized, peqa, says):
    model = gpt(np.float32)
    if quantized: tp.quantize(model, quantized)
    with pytest.raises(tp.MethodError, match=says): tp.attach(model, peqa)
    assert model.attached is None
