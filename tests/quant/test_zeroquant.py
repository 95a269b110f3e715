"""ZeroQuant: groups, inputs per token, and distillation of one block after another."""
import copy

import numpy as np
import pytest

import tinypeft as tp
from tinypeft.engine.nn import Linear
from tinypeft.engine.tensor import no_grad
from tinypeft.quant import zeroquant
from tinypeft.quant.calibration import block_by_block
from tinypeft.quant.int8 import Int8Linear
from tinypeft.quant.zeroquant import distill

SIZES = dict(d_model=32, vocab_size=64, context_length=32)


def error(Y, reference):
    return np.linalg.norm(Y - reference) / np.linalg.norm(reference)


def linear(W):
    layer = Linear(*W.shape[::-1], bias=False)
    layer.weight.data = W
    return layer


# -- groups ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("bits", [8, 4, 3])
@pytest.mark.parametrize("fields, width", [(dict(groups=240 // n), n) for n in (240, 80, 40, 60, 10)]
                                          + [(dict(group_size=n), n) for n in (8, 20)])
def test_groups_are_runs_of_weights(rng, fields, width, bits):
    """Of a 6 × 40 matrix: all of it, two rows, one, one and a half, a quarter; group_size within rows."""
    W = rng.standard_normal((6, 40)).astype(np.float32)
    q = tp.ZeroQuant(bits=bits, **fields).quantize(W)
    runs, top = W.reshape(-1, width), 2**(bits - 1) - 1
    s = np.abs(runs).max(1, keepdims=True) / top
    np.testing.assert_allclose(q.dequantize(), (np.rint(runs / s) * s).reshape(6, 40), rtol=1e-6)
    assert q.nbytes == -(-240 * bits // 8) + 4 * 240 // width

    X = rng.standard_normal((2, 3, 40)).astype(np.float32)
    s_x = np.abs(X).max(2, keepdims=True) / 127
    expected = (np.rint(X / s_x) * s_x) @ q.dequantize().T
    layer = tp.ZeroQuant(bits=bits, **fields).layer(linear(W))
    np.testing.assert_allclose(layer(tp.Tensor(X)).data, expected, rtol=1e-4, atol=1e-4)


def test_bits_of_attention_and_mlp(gpt):
    model = tp.quantize(gpt(np.float32), tp.ZeroQuant(mlp_bits=4))
    block = model.blocks[0]
    assert [m.weight.bits for m in (block.attention.query, block.attention.output)] == [8, 8]
    assert [m.weight.bits for m in (block.mlp.up, block.mlp.down)] == [4, 4]
    assert block.mlp.up.weight.codes.nbytes == 64 * 16 // 2            # packed
    assert block.mlp.up.weight.bits_per_weight == 4 + 32 * 64 / (64 * 16)
    assert all(isinstance(m, Int8Linear) and m.activations == "token" for m in (block.attention.key, block.mlp.down))


def test_finer_is_better():
    """Direction, five seeds, where rows and tokens are of unlike size: groups against one scale for the matrix (4-bit
    weights), tokens against one scale for the batch (inputs)."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        X, W = rng.standard_normal((128, 128)).astype(np.float32), rng.standard_normal((64, 128)).astype(np.float32)
        W *= np.exp(rng.standard_normal((64, 1))).astype(np.float32)
        X *= np.exp(rng.standard_normal((128, 1))).astype(np.float32)
        weight = [error(tp.ZeroQuant(bits=4, groups=g).quantize(W).dequantize(), W) for g in (1, 8, 64, 512)]
        assert all(b < 0.95 * a for a, b in zip(weight, weight[1:], strict=False)), weight
        Y = X @ W.T
        token, tensor = (np.linalg.norm(scheme.layer(linear(W))(tp.Tensor(X)).data - Y, axis=1) / np.linalg.norm(Y, axis=1)
                         for scheme in (tp.W8A8("channel", "token"), tp.W8A8("channel")))
        assert token.mean() < 0.5 * tensor.mean()


# -- distillation ----------------------------------------------------------------------------------
def test_the_student_computes_what_the_layer_will(rng):
    """Forward as the integer layer; dW = dYᵀ X̂ and dX = dY Ŵ, from what was really multiplied."""
    W, X, dY = (rng.standard_normal(s).astype(np.float32) for s in ((8, 16), (5, 16), (5, 8)))
    scheme, layer, x = tp.ZeroQuant(groups=4), linear(W), tp.Tensor(X, requires_grad=True)
    y = scheme.student(layer, 4)(x)
    np.testing.assert_allclose(y.data, scheme.layer(layer, 4)(tp.Tensor(X)).data, rtol=1e-5, atol=1e-6)
    y.backward(dY)
    s = np.abs(X).max(1, keepdims=True) / 127
    np.testing.assert_allclose(layer.weight.grad, dY.T @ (np.rint(X / s) * s), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(x.grad, dY @ scheme.quantize(W, 4).dequantize(), rtol=1e-5, atol=1e-6)


def test_student_gradient_as_torch(torch, gpt, tokens):
    """Loss and gradients of a whole student block against straight-through rounding written in PyTorch; float64 but for the
    scales, which are float32 here."""
    from tests.oracles.torch_gpt import torch_copy
    model = gpt(np.float64)
    scheme, block, bits = tp.ZeroQuant(groups=16), model.blocks[1], {"mlp.up": 4, "mlp.down": 4, "attention.value": 8}
    x, target = (np.random.default_rng(s).standard_normal((2, 6, 16)) for s in (0, 1))
    theirs = torch_copy(model).blocks[1]

    class Rounded(torch.nn.Linear):
        def forward(self, x):
            through = lambda a, b: a + (b - a).detach()
            s = x.abs().amax(-1, keepdim=True) / 127
            top, W = 2**(self.bits - 1) - 1, self.weight.reshape(16, -1).float()       # quantize works in float32
            step = W.abs().amax(1, keepdim=True) / top
            W_hat = through(self.weight, (torch.round(W / step) * step).reshape(self.weight.shape).double())
            return torch.nn.functional.linear(through(x, torch.round(x / s) * s), W_hat, self.bias)

    for path, b in bits.items():
        theirs.get_submodule(path).__class__, theirs.get_submodule(path).bits = Rounded, b
    loss = ((theirs(torch.tensor(x)) - torch.tensor(target))**2).mean()
    loss.backward()

    student = copy.deepcopy(block)
    tp.engine.nn.replace_modules(student, {path: scheme.student(student.get(path), b) for path, b in bits.items()})
    mine = student(tp.Tensor(x)) - target
    mine = (mine * mine).mean()
    mine.backward()
    assert abs(mine.item() - loss.item()) < 1e-6
    for path in bits:
        other = theirs.get_submodule(path).weight.grad.numpy()
        np.testing.assert_allclose(student.get(path).weight.grad, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_distillation_repairs_four_bits(gpt, seed):
    """Direction: with a 4-bit MLP, 40 steps per block bring the error of a block's output below 0.8, and that of the logits
    below 0.85, of what rounding left, on tokens that were not trained on."""
    train, test = (np.random.default_rng(seed + k).integers(0, 64, (16, 32)) for k in (100, 200))
    plain = gpt(np.float32, rng=seed, **SIZES)
    rounded, repaired = (tp.quantize(gpt(np.float32, rng=seed, **SIZES), scheme, calibration=[train[:8], train[8:]])
                         for scheme in (tp.ZeroQuant(mlp_bits=4), tp.ZeroQuant(mlp_bits=4, steps=40, lr=1e-3)))
    with no_grad():
        x = plain.token_embedding(test) + plain.position_embedding(np.arange(32))
        block, a, b = (m.blocks[0](x).data for m in (plain, rounded, repaired))
        assert error(b, block) < 0.8 * error(a, block)
        logits, a, b = (m(test).data for m in (plain, rounded, repaired))
        assert error(b, logits) < 0.85 * error(a, logits)
    for name, array in plain.state_dict().items():                     # norms, embeddings and biases are as they were
        if name in repaired.state_dict(): assert np.array_equal(array, repaired.state_dict()[name]), name
    assert repaired.blocks[0].mlp.up.weight.bits == 4 and repaired.n_parameters() == plain.n_parameters()


def test_the_loss_falls_and_the_teacher_stays(gpt, tokens):
    model = gpt(np.float32)
    with no_grad():
        _, block, inputs = next(block_by_block(model, [tokens]))
        student = copy.deepcopy(block)
        tp.engine.nn.replace_modules(student, {"mlp.up": tp.ZeroQuant().student(student.mlp.up, 3)})
        teacher, key = {n: a.tobytes() for n, a in block.state_dict().items()}, student.attention.key.weight.data.copy()
        losses = distill(block, student, inputs, steps=50, lr=1e-3)
    assert losses[-1] < 0.7 * losses[0]
    assert teacher == {n: a.tobytes() for n, a in block.state_dict().items()}
    assert np.array_equal(student.attention.key.weight.data, key) and student.attention.key.weight.grad is None
    assert all(p.grad is None for p in block.parameters())


def test_inputs_come_from_quantized_blocks_and_targets_from_the_float_one(gpt, tokens, monkeypatch):
    """One block at a time: when block k is trained, those before it are quantized and those after it untouched."""
    model, plain, seen = gpt(np.float32), gpt(np.float32), []

    def spy(teacher, student, inputs, steps, lr):
        seen.append((teacher, [x.data.copy() for x in inputs], [type(b.mlp.up) for b in model.blocks]))
        return distill(teacher, student, inputs, steps, lr)
    monkeypatch.setattr(zeroquant, "distill", spy)
    tp.quantize(model, tp.ZeroQuant(mlp_bits=3, steps=3), calibration=[tokens])
    assert [types for _, _, types in seen] == [[Linear, Linear], [Int8Linear, Linear]]
    x = plain.token_embedding(tokens) + plain.position_embedding(np.arange(tokens.shape[1]))
    with no_grad():
        assert np.array_equal(seen[0][1][0], x.data)
        assert np.array_equal(seen[1][1][0], model.blocks[0](x).data)
        assert not np.allclose(seen[1][1][0], plain.blocks[0](x).data, rtol=1e-3)
    assert seen[1][0] is model.blocks[1]


def test_targets_and_determinism(gpt, tokens):
    """A block without a target is passed over; the same call gives the same bytes."""
    one, two = (tp.quantize(gpt(np.float32), tp.ZeroQuant(bits=4, steps=5), calibration=tokens, targets=("blocks.1.mlp.up",))
                for _ in range(2))
    assert isinstance(one.blocks[0].mlp.up, Linear) and isinstance(one.blocks[1].mlp.up, Int8Linear)
    assert np.array_equal(one.blocks[1].mlp.up.weight.codes, two.blocks[1].mlp.up.weight.codes)
    rounded = tp.quantize(gpt(np.float32), tp.ZeroQuant(bits=4), targets=("blocks.1.mlp.up",))
    assert not np.array_equal(one.blocks[1].mlp.up.weight.codes, rounded.blocks[1].mlp.up.weight.codes)
