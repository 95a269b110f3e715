"""Muon: PyTorch's trajectory, and what makes it Muon: all singular values about 1, whatever the gradient's size."""
import numpy as np
import pytest

import tinypeft as tp
from tests.oracles import assert_close
from tests.toys import Noise
from tinypeft.engine.nn import Parameter
from tinypeft.engine.optim import AdamW, Muon
from tinypeft.engine.optim.muon import orthogonalized

ADJUSTMENTS = "original", "match_rms_adamw"


@pytest.fixture
def torch(torch):
    if not hasattr(torch.optim, "Muon"): pytest.skip("torch.optim.Muon is in PyTorch 2.9 and later")
    return torch


def race(torch, shape, dtype, adjust):
    """(largest difference between Muon and PyTorch's after 12 steps, how far the weights moved)."""
    rng = np.random.default_rng(0)
    start = rng.standard_normal(shape).astype(dtype)
    p, q = Parameter(start.copy()), torch.nn.Parameter(torch.tensor(start))
    options = dict(lr=1e-2, momentum=0.9, weight_decay=0.1)
    ours, theirs = Muon([p], adjust=adjust, **options), torch.optim.Muon([q], adjust_lr_fn=adjust, **options)
    for _ in range(12):
        p.grad = rng.standard_normal(shape).astype(dtype)
        q.grad = torch.tensor(p.grad)
        ours.step(); theirs.step()
    assert p.dtype == dtype
    return np.abs(p.data - q.detach().numpy()).max(), np.abs(p.data - start).max()


@pytest.mark.parametrize("adjust", ADJUSTMENTS)
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (16, 16)])
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-14), (np.float32, 2e-6)])
def test_the_trajectory_is_pytorchs_numerical(shape, dtype, tolerance, adjust, torch, monkeypatch):
    """With PyTorch's cast to bfloat16 taken out."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.clone())
    error, moved = race(torch, shape, dtype, adjust)
    assert error < tolerance and moved > 0.04


@pytest.mark.parametrize("adjust", ADJUSTMENTS)
def test_as_pytorch_computes_it_bfloat16_is_the_difference(adjust, torch):
    error, moved = race(torch, (24, 40), np.float32, adjust)
    assert 1e-5 < error < 0.02 * moved


def test_singular_values_end_about_one(rng):
    U, V = (np.linalg.qr(rng.standard_normal((n, 12)))[0] for n in (12, 30))
    S = np.geomspace(0.004, 1, 12)
    O = orthogonalized(U * S @ V.T)
    values = np.diag(U.T @ O @ V)
    assert values.min() > 0.67 and values.max() < 1.21
    assert_close(U * values @ V.T, O, 1e-9)              # the directions stay
    assert_close(orthogonalized((U * S @ V.T).T), O.T, 1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_zeros_stay_zeros_and_the_size_of_a_gradient_is_nothing(dtype, rng):
    assert not orthogonalized(np.zeros((3, 5), dtype)).any()
    g = rng.standard_normal((3, 5)).astype(dtype)
    assert_close(orthogonalized(1000 * g), orthogonalized(g), 1e-5)
    assert orthogonalized(g).dtype == dtype


def test_a_step_by_hand(rng):
    """In the first step u = (1 − μ) g, so that the direction is that of g; and the factor of a tall matrix is √(d_out/d_in)."""
    p, start, g = Parameter(np.full((8, 2), 2.0)), 2.0, rng.standard_normal((8, 2))
    optimizer = Muon([p], lr=0.1, momentum=0.5, weight_decay=0.3)
    p.grad = g
    optimizer.step()
    assert_close(p.data, start * (1 - 0.03) - 0.1 * 2 * orthogonalized(g), 1e-12)
    assert_close(optimizer.state[id(p)]["u"], 0.5 * g, 1e-14)


def test_vectors_and_what_is_named_are_adamws_bit_exact(rng):
    start = [rng.standard_normal(shape) for shape in ((5,), (), (2, 3, 4), (4, 6))]
    ours, theirs = ([Parameter(a.copy()) for a in start] for _ in range(2))
    groups = [{"params": ours[:2], "weight_decay": 0.0}, {"params": ours[2:], "lr": 0.3}]
    same = [{"params": theirs[:2], "weight_decay": 0.0}, {"params": theirs[2:], "lr": 0.3}]
    pair = Muon(groups, lr=0.1, by_adamw=ours[3:], betas=(0.8, 0.9)), AdamW(same, lr=0.1, weight_decay=0.1, betas=(0.8, 0.9))
    for _ in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = np.asarray(rng.standard_normal(p.shape))
            q.grad = p.grad
        for optimizer in pair: optimizer.step()
    assert all(np.array_equal(p.data, q.data) for p, q in zip(ours, theirs, strict=True))


def test_a_mask_is_the_matrix_that_ends_there(rng):
    """DyLoRA's mask of b rows of A: the step is that of the rows alone, and the others keep value and moment."""
    whole, rows = Parameter(np.ones((6, 9))), Parameter(np.ones((4, 9)))
    a, b = Muon([whole], lr=0.1), Muon([rows], lr=0.1)
    whole.grad = rng.standard_normal((6, 9))
    rows.grad = whole.grad[:4].copy()
    whole.update_mask = np.arange(6)[:, None] < 4
    for _ in range(2): a.step(); b.step()
    assert_close(whole.data[:4], rows.data, 1e-12)
    assert (whole.data[4:] == 1).all() and not a.state[id(whole)]["u"][4:].any()


def test_the_state_is_one_number_for_each():
    p = Parameter(np.zeros((8, 32), np.float32))
    assert sum(a.nbytes for a in Muon([p]).state[id(p)].values()) == 4 * p.size


def test_misuse():
    with pytest.raises(ValueError, match="Muon: adjust must be 'original' or 'match_rms_adamw', got 'moonlight'"):
        Muon([Parameter(np.ones((2, 2)))], adjust="moonlight")


def test_a_gpt_trains_as_with_pytorchs_muon_and_adamw_numerical(gpt, torch, monkeypatch):
    """`train`'s division of a whole model, vectors and tables to AdamW: 10 steps in float64, the cast taken out."""
    from tests.oracles.torch_gpt import torch_copy
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.clone())
    model = gpt()
    copy = torch_copy(model)
    theirs = dict(copy.named_parameters())
    hidden = {name for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("blocks.")}
    options = dict(lr=1e-2, weight_decay=0.1)
    pair = [torch.optim.Muon([p for name, p in theirs.items() if name in hidden], **options),
            torch.optim.AdamW([p for name, p in theirs.items() if name not in hidden and p.ndim == 2], **options),
            torch.optim.AdamW([p for name, p in theirs.items() if p.ndim < 2], lr=1e-2, weight_decay=0.0)]
    start, losses = {name: p.data.copy() for name, p in model.named_parameters()}, []
    for s in range(10):
        tokens, targets = (torch.as_tensor(a) for a in Noise().batch("train", 8, np.random.default_rng([0, s])))
        loss = torch.nn.functional.cross_entropy(copy(tokens).flatten(0, 1), targets.flatten())
        for optimizer in pair: optimizer.zero_grad()
        loss.backward()
        for optimizer in pair: optimizer.step()
        losses.append(loss.item())
    history = tp.train(model, Noise(), 10, optimizer=Muon, schedule_kind="constant", warmup=0, clip=None, workers=1,
                       progress=False, **options)
    assert_close(history.loss, losses, 1e-9)
    for name, p in model.named_parameters():
        if ".key.bias" in name: continue                 # its gradient is rounding, which Adam divides by itself
        assert_close(p, theirs[name], 1e-7, name)
        assert np.abs(p.data - start[name]).max() > 1e-3
