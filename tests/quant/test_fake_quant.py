"""FakeQuant and its rounding: gradients against PyTorch and differences, training against PyTorch's, integers at the end."""
import copy
import math

import numpy as np
import pytest

import tinypeft as tp
from tests.oracles import assert_close
from tests.protocol import assert_same_race
from tests.toys import Distil, linear_paths
from tinypeft.engine.tensor import Tensor
from tinypeft.quant.fake_quant import FakeQuantLinear
from tinypeft.quant.rounding import EPS, LearnedStep, fake_quantize

VARIANTS = [
    tp.FakeQuant(3), tp.FakeQuant(4, symmetric=False), tp.FakeQuant(2, granularity="group", group_size=8),
    tp.FakeQuant(4, activation_bits=8),
    tp.FakeQuant(3, learn_step=True), tp.FakeQuant(2, learn_step=True, granularity="tensor"),
    tp.FakeQuant(3, learn_step=True, symmetric=False), tp.FakeQuant(4, learn_step=True, activation_bits=6),
    tp.FakeQuant(4, learn_step=True, symmetric=False, granularity="group", group_size=16, activation_bits=5,
                 activation_symmetric=False)]


def fake_quantized(model, scheme, tokens):
    return tp.quantize(model, scheme, calibration=tokens if scheme.calibrated else None)


def moved(model, rng, size=0.05):
    """The model with everything it could train somewhere else; steps stay positive."""
    for name, p in model.named_parameters():
        change = (size * rng.standard_normal(p.shape)).astype(p.dtype)
        p.data, p.version = p.data * (1 + change) if name.endswith(("step", "offset")) else p.data + change, p.version + 1
    return model


# -- gradients -------------------------------------------------------------------------------------
@pytest.fixture
def points(rng):
    """x (5, 40) with numbers inside and outside of every row's range, s (5, 1), integer z (5, 1), codes 0 … 15."""
    s = rng.uniform(0.05, 0.2, (5, 1))
    return rng.standard_normal((5, 40)), s, rng.integers(4, 12, (5, 1)).astype(float)


def gradients(x, s, z, dy, **how):
    x, s, z = (Tensor(a.astype(dy.dtype), requires_grad=True) for a in (x, s, z))
    y = fake_quantize(x, s, z, 0, 15, **how)
    y.backward(dy)
    return y.data, x.grad, s.grad, z.grad


def test_torch_fake_quantize(points, rng, torch):
    """Numerical: values and dx of torch.fake_quantize_per_channel_affine and per_tensor_affine, float32."""
    x, s, z = (a.astype(np.float32) for a in points)
    dy = rng.standard_normal(x.shape).astype(np.float32)
    y, dx, _, _ = gradients(x, s, z, dy)
    t = torch.tensor(x, requires_grad=True)
    out = torch.fake_quantize_per_channel_affine(t, torch.tensor(s[:, 0]), torch.tensor(z[:, 0], dtype=torch.int32), 0, 0, 15)
    out.backward(torch.tensor(dy))
    assert_close(y, out, 1e-6)
    assert np.array_equal(dx, t.grad.numpy()) and 0.1 < (dx == 0).mean() < 0.9
    t = torch.tensor(x, requires_grad=True)
    out = torch.fake_quantize_per_tensor_affine(t, float(s[0, 0]), int(z[0, 0]), 0, 15)
    out.backward(torch.tensor(dy))
    y, dx, _, _ = gradients(x, s[:1], z[:1], dy)
    assert_close(y, out, 1e-6)
    assert np.array_equal(dx, t.grad.numpy())


def test_torch_learnable_fake_quantize(points, rng, torch):
    """Numerical: dx, ds and dz of torch's learnable quantizers, per channel and per tensor, gradient scale included."""
    x, s, z = (a.astype(np.float32) for a in points)
    dy, g = rng.standard_normal(x.shape).astype(np.float32), 0.37
    for rows, op in ((slice(None), lambda t, s, z: torch._fake_quantize_learnable_per_channel_affine(t, s, z, 0, 0, 15, g)),
                     (slice(1), lambda t, s, z: torch._fake_quantize_learnable_per_tensor_affine(t, s, z, 0, 15, g))):
        ts = [torch.tensor(a, requires_grad=True) for a in (x, s[rows, 0], z[rows, 0])]
        out = op(*ts)
        out.backward(torch.tensor(dy))
        y, dx, ds, dz = gradients(x, s[rows], z[rows], dy, mask="torch", g=g)
        assert_close(y, out, 1e-6)
        assert np.array_equal(dx, ts[0].grad.numpy())
        assert_close(ds[:, 0], ts[1].grad, 1e-5)
        assert_close(dz[:, 0], ts[2].grad, 1e-5)


@pytest.mark.parametrize("mask", ["paper", "torch"])
def test_finite_differences(points, mask):
    """float64: where rounding is frozen, ⌊u⌉ = u + e, the function is differentiable, and these are its derivatives."""
    x, s, z = points
    u = x / s
    u = np.where(np.abs(u - np.rint(u)) > 0.45, u + 0.1, u)              # off the ties, and off the range's ends
    x = u * s
    e, t = np.rint(u) - u, (np.rint(u) if mask == "torch" else u) + z
    below, above = t < 0, t > 15
    assert below.sum() > 5 and above.sum() > 5

    def smooth(x, s, z):
        return np.where(below, s * (0 - z), np.where(above, s * (15 - z), s * (x / s + e)))

    def value_and_gradient(X, S, Z):
        y = fake_quantize(X, S, Z, 0, 15, mask, 0.7)
        frozen = smooth(X.data, s, z)                                        # g scales ds and dz, not dx
        return Tensor.fused(0.7 * smooth(X.data, S.data, Z.data) + 0.3 * frozen, (y,), lambda dy: (dy,))
    tp.gradcheck(value_and_gradient, x, s, z, step=1e-4)


def test_where_the_masks_differ():
    """Half a step on either side: torch lets gradients through to where rounding stops, the paper to the last point."""
    s, z, ones = np.ones((1, 1)), np.full((1, 1), 8.0), np.ones((1, 8))
    u = np.array([[-8.6, -8.4, -8.0, -7.9, 6.9, 7.0, 7.4, 7.6]])
    _, paper, ds, _ = gradients(u, s, z, ones, mask="paper")
    _, torch, ds_torch, _ = gradients(u, s, z, ones, mask="torch")
    assert paper.tolist() == [[0, 0, 0, 1, 1, 0, 0, 0]]
    assert torch.tolist() == [[0, 1, 1, 1, 1, 1, 1, 0]]
    assert ds.item() == pytest.approx(3 * -8 + (-8 + 7.9) + (7 - 6.9) + 3 * 7)
    assert ds_torch.item() == pytest.approx(-8 + (-8 + 8.4) + 0 + (-8 + 7.9) + (7 - 6.9) + 0 + (7 - 7.4) + 7)


def test_straight_through_min_max_clips_nothing(rng):
    W = rng.standard_normal((6, 40)).astype(np.float32)
    rounding = tp.FakeQuant(3).rounding(W)
    x = Tensor(W, requires_grad=True)
    dy = rng.standard_normal(W.shape).astype(np.float32)
    rounding(x).backward(dy)
    assert np.array_equal(x.grad, dy)


# -- what is learned, and where it starts ----------------------------------------------------------
def test_start(rng):
    """s = 2⟨|w|⟩/√Q_P and g = 1/√(N Q_P), per layer as in the paper, per channel, per group."""
    W = rng.standard_normal((6, 40)).astype(np.float32)
    W[2] = 0
    for kind, blocks in (("tensor", W.reshape(1, -1)), ("channel", W), ("group", W.reshape(-1, 8))):
        scheme = tp.FakeQuant(3, learn_step=True, granularity=kind, group_size=8 if kind == "group" else None)
        rounding = scheme.rounding(W)
        expected = 2 * np.abs(blocks).mean(1) / math.sqrt(3)
        expected[expected == 0] = 1
        assert_close(rounding.step, expected, 1e-6)
        assert rounding.g == 1 / math.sqrt(blocks.shape[1] * 3) and rounding.offset is None
        assert np.array_equal(scheme.quantize(W).dequantize()[2], np.zeros(40))
    q = tp.FakeQuant(2, learn_step=True).quantize(W)
    assert set(np.unique(q.integers())) == {-2, -1, 0, 1}                    # LSQ uses all 2ᵇ codes


def test_with_offsets_the_start_is_the_range(rng):
    """Bit-exact: before training, what `Uniform` makes of it."""
    W = rng.standard_normal((6, 40)).astype(np.float32) + np.arange(-3, 3, dtype=np.float32)[:, None]
    scheme = tp.FakeQuant(3, learn_step=True, symmetric=False)
    assert scheme.rounding(W).g == 1 / math.sqrt(40 * 7)
    assert np.array_equal(scheme.quantize(W).dequantize(), tp.Uniform(3, symmetric=False).quantize(W).dequantize())


def test_inputs_start_from_the_calibration(gpt, tokens):
    path, seen = "blocks.1.mlp.down", tp.capture(gpt(np.float32), tokens)
    for symmetric in (True, False):
        scheme = tp.FakeQuant(4, learn_step=True, activation_bits=5, activation_symmetric=symmetric)
        layer = tp.quantize(gpt(np.float32), scheme, calibration=tokens).get(path)
        low, high = seen[path].low.min(), seen[path].high.max()
        step = 2 * seen[path].mean_abs.mean() / math.sqrt(15) if symmetric else (high - low) / 31
        assert_close(layer.round_input.step, [step], 1e-6)
        assert layer.round_input.g == 1 / math.sqrt(64 * (15 if symmetric else 31))
        assert symmetric or layer.round_input.grid().zero.item() == round(-low * 31 / (high - low))


def test_counts(gpt, tokens):
    """n per layer, 2n with offsets, 1 or 2 for the input; LSQ's steps are in no weight decay (one axis)."""
    rows = lambda model: sum(len(p.data) for n, p in model.named_parameters() if n.endswith(("step", "offset")))
    d_out = 2 * (4 * 16 + 64 + 16)
    assert rows(tp.quantize(gpt(), tp.FakeQuant(4))) == 0
    assert rows(tp.quantize(gpt(), tp.FakeQuant(4, learn_step=True))) == d_out
    assert rows(tp.quantize(gpt(), tp.FakeQuant(4, learn_step=True, granularity="tensor"))) == 12
    scheme = tp.FakeQuant(4, learn_step=True, symmetric=False, activation_bits=4)
    assert rows(fake_quantized(gpt(), scheme, tokens)) == 2 * d_out + 12


def test_steps_and_offsets_learn(rng):
    """Direction: on numbers with a few far outliers, 100 steps of Adam take the squared error to below half of what min and
    max give, and symmetric or not, both the step and the offset have moved."""
    X = np.concatenate([rng.standard_normal(4000) + 1, [9, -5]])[None]
    x, uniform = Tensor(X), tp.Uniform(3, symmetric=False, granularity="tensor")
    rounding = LearnedStep(uniform, np.abs(X).mean(1), X.min(1), X.max(1), X.size).to(np.float64)
    error = lambda: ((rounding(x) - x) * (rounding(x) - x)).mean()
    start, grid = error().item(), rounding.grid()
    optimizer = tp.optim.AdamW(rounding.parameters(), lr=0.02, weight_decay=0)
    for _ in range(100):
        optimizer.zero_grad(); error().backward(); optimizer.step()
    assert error().item() < 0.5 * start
    assert rounding.grid().scale < 0.8 * grid.scale and rounding.grid().zero != grid.zero


def test_a_step_stays_positive(rng):
    rounding = LearnedStep(tp.Uniform(3), np.ones(2), None, None, 5)
    rounding.step.data[:] = [-1, 0]
    x = Tensor(rng.standard_normal((2, 5)).astype(np.float32))
    y = rounding(x)
    assert np.isfinite(y.data).all() and np.abs(y.data).max() <= 4 * EPS
    y.backward(np.ones_like(y.data))
    assert rounding.step.grad.all()                                         # and can find its way back


# -- training, against PyTorch ---------------------------------------------------------------------
def torch_model(model, scheme, calibrated, torch):
    """(oracle, pairs of further parameters) for FakeQuantLinear layers of `calibrated`, from the plain `model`."""
    from tests.oracles.torch_gpt import torch_copy
    from tests.oracles.torch_qat import LSQ, QATLinear, min_max
    oracle, pairs = torch_copy(model), []
    for path, layer in calibrated.named_modules():
        if not isinstance(layer, FakeQuantLinear): continue
        width = {"tensor": layer.weight.size, "channel": layer.d_in, "group": scheme.group_size}[scheme.granularity]
        cut = lambda x, width=width: x.reshape(-1, width)
        flat = lambda x: x.reshape(1, -1)

        def learned(ours, n_sharing, blocks):
            arrays = [None if p is None else torch.tensor(p.data) for p in (ours.step, ours.offset)]
            theirs = LSQ(ours.uniform.bits, *arrays, n_sharing, blocks)
            pairs.extend((getattr(ours, n), getattr(theirs, n)) for n in ("step", "offset") if getattr(ours, n) is not None)
            return theirs
        if scheme.learn_step: weight, inputs = learned(layer.round_weight, width, cut), None
        else:                 weight, inputs = min_max(scheme.bits, scheme.symmetric, blocks=cut), None
        if scheme.calibrated: inputs = learned(layer.round_input, layer.d_in, flat)
        elif scheme.activation_bits: inputs = min_max(scheme.activation_bits)
        parent, name = path.rsplit(".", 1)
        setattr(oracle.get_submodule(parent), name, QATLinear(oracle.get_submodule(path), weight, inputs))
    return oracle, pairs


@pytest.mark.parametrize("scheme", VARIANTS, ids=str)
def test_training_follows_pytorch(gpt, scheme, torch, tokens):
    """20 steps of AdamW on all parameters, float64: logits, losses, weights, steps and offsets stay equal."""
    plain, model = gpt(), fake_quantized(gpt(), scheme, tokens)
    for name, p in model.named_parameters():                                # off the ends of the range, where masks differ
        if name.endswith(("step", "offset")): p.data *= np.random.default_rng(len(name)).uniform(0.7, 1.1, p.shape)
    tuned = tp.attach(model, tp.FullFineTuning())
    oracle, pairs = torch_model(plain, scheme, tuned.model, torch)
    theirs = dict(oracle.named_parameters())
    own = {id(p) for p, _ in pairs}
    pairs += [(p, theirs[n]) for n, p in tuned.trained.items() if id(p) not in own]
    assert_same_race(tuned, oracle, pairs, tokens, tolerance=1e-8)


# -- integers --------------------------------------------------------------------------------------
def test_the_error_of_a_trained_weight(gpt, rng):
    """Numerical: ‖Ŵ − W‖/‖W‖, where trained norms are not taken for folded scales."""
    plain = gpt(np.float32)
    model = tp.convert(moved(tp.quantize(gpt(np.float32), tp.FakeQuant(4)), rng, size=0.3))
    pairs = [(plain.get(p).weight.data, model.get(p).dense_weight()) for p in linear_paths(plain)]
    expected = np.sqrt(sum(((W - V) ** 2).sum() for W, V in pairs) / sum((W ** 2).sum() for W, _ in pairs))
    assert_close(tp.weight_error(plain, model, trained=True), expected, 1e-6)
    assert tp.weight_error(plain, model) > 1.2 * expected


@pytest.mark.parametrize("scheme", [s for s in VARIANTS if s.activation_bits], ids=str)
def test_the_product_is_one_of_integers(gpt, scheme, tokens, rng):
    """Numerical: s_x s_w Σ (q_x − z_x)(q_w − z_w) + b, summed in int64, is what the layer computes."""
    model = tp.convert(moved(fake_quantized(gpt(np.float32), scheme, tokens), rng))
    layer = model.get("blocks.0.mlp.up")
    X = rng.standard_normal((9, 16)).astype(np.float32)
    if layer.input_scale is None: q_x = tp.Uniform(layer.input_bits).quantize(X)
    else: q_x = tp.Uniform(layer.input_bits, granularity="tensor").quantize(
        X, tp.quant.uniform.Grid(layer.input_scale, layer.input_zero, layer.input_bits))
    width = layer.weight.block_size
    W, x = (q.integers().astype(np.int64) for q in (layer.weight, q_x))
    assert np.abs(x).max() < 2**layer.input_bits
    products = np.einsum("tgk,ogk->tog", x.reshape(9, -1, width), W.reshape(64, -1, width))
    y = (products * layer.weight.scales().reshape(64, -1)).sum(2) * q_x.scales().reshape(-1, 1) + layer.bias.data
    assert_close(layer(Tensor(X)), y, 1e-5)


# -- what it is for --------------------------------------------------------------------------------
@pytest.mark.parametrize("bits, learn_step", [(2, False), (2, True), (3, False), (3, True)])
def test_training_beats_rounding(gpt, seeds, bits, learn_step):
    """Direction, three seeds: KL from the float model after 80 steps, converted, is at most half of round to nearest's."""
    ratios = []
    for seed in seeds:
        teacher = gpt(np.float32, rng=seed)
        task = Distil(teacher)
        loss = lambda model, task=task: tp.evaluate(model, task, "test")["loss"]
        rounded = loss(tp.quantize(copy.deepcopy(teacher), tp.Uniform(bits)))
        model = tp.quantize(copy.deepcopy(teacher), tp.FakeQuant(bits, learn_step=learn_step))
        tp.train(model, task, 80, lr=3e-3, seed=seed, progress=False)
        ratios.append(loss(tp.convert(model)) / rounded)
    assert max(ratios) < 0.5, ratios


# -- what cannot be --------------------------------------------------------------------------------
@pytest.mark.parametrize("fields, says", [
    (dict(group_size=8), "granularity='group'"),
    (dict(activation_symmetric=False), "learn_step=True and activation_bits"),
    (dict(learn_step=True, activation_symmetric=False), "learn_step=True and activation_bits")])
def test_fields_that_do_not_go_together(fields, says):
    with pytest.raises(ValueError, match=says): tp.FakeQuant(**fields)


def test_models_that_convert_does_not_take(gpt):
    tuned = tp.attach(tp.quantize(gpt(), tp.FakeQuant(4)), tp.LoRA())
    with pytest.raises(TypeError, match="expected a language model"): tp.convert(tuned)
    with pytest.raises(ValueError, match=r"convert: .* inside a PeftModel, with LoRA\(.*\) attached"): tp.convert(tuned.model)
    with pytest.raises(ValueError, match="convert: .* inside a PeftModel, as it was at attach"): tp.convert(tuned.frozen)
