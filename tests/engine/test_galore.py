"""GaLore: its authors' trajectories, stored, in the same bases; the projector; its memory; when a basis is taken."""
import numpy as np
import pytest

from tests.oracles import assert_close, galore
from tinypeft.engine.nn import Parameter
from tinypeft.engine.optim import AdamW, GaLore, clip_grad_norm

RUNS = list(galore.stored())


def run(optimizer, p, grads):
    """Take a step for each gradient, and give the weights after it."""
    for g in grads:
        p.grad = g.copy()
        optimizer.step()
        yield p.data.copy()


def fixed_svd(bases, monkeypatch):
    """Let a decomposition give the bases of another one: signs of singular vectors are arbitrary, and decide the run."""
    bases = iter(bases)
    def svd(G, full_matrices):
        basis = next(bases)
        return (basis if len(basis) == len(G) else basis.T), None, None
    monkeypatch.setattr(np.linalg, "svd", svd)


@pytest.mark.parametrize("shape, options, bases, weights", RUNS)
def test_the_trajectory_is_the_authors_numerical(shape, options, bases, weights, monkeypatch):
    """Through three bases, float32: 1e-6 where they and the paper agree; elsewhere as far as their ε and decay move it."""
    fixed_svd(bases, monkeypatch)
    start, *grads = galore.gradients(shape)
    p = Parameter(start.copy())
    optimizer = GaLore([p], lr=1e-2, rank=galore.RANK, every=galore.EVERY, scale=0.25, **options)
    ours = list(run(optimizer, p, grads))
    error = max(np.abs(ours[t - 1] - theirs).max() for t, theirs in zip(galore.KEPT, weights, strict=True))
    assert np.abs(p.data - start).max() > 0.01
    assert error < (1e-6 if options["eps"] < 1e-6 else 5e-5)


@pytest.mark.parametrize("shape, options, bases, weights", RUNS[::2])
def test_the_basis_is_the_authors_but_for_signs(shape, options, bases, weights):
    start, *grads = galore.gradients(shape)
    p = Parameter(start)
    optimizer = GaLore([p], rank=galore.RANK, every=galore.EVERY)
    for i, g in enumerate(grads):
        p.grad = g
        optimizer.step()
        P, theirs = optimizer.state[id(p)]["P"], bases[i // galore.EVERY]
        theirs = theirs if theirs.shape == P.shape else theirs.T
        assert_close(np.abs(P.T @ theirs), np.eye(galore.RANK), 1e-4)


def test_a_basis_lasts_and_the_moments_outlast_it(rng):
    p = Parameter(np.zeros((6, 4)))
    optimizer, bases = GaLore([p], rank=2, every=3), []
    for _ in range(7):
        p.grad = rng.standard_normal((6, 4))
        optimizer.step()
        bases.append(optimizer.state[id(p)]["P"].copy())
    changes = [not np.array_equal(a, b) for a, b in zip(bases, bases[1:], strict=False)]
    assert changes == [False, False, True, False, False, True]
    assert optimizer.state[id(p)]["V"].all() and optimizer.state[id(p)]["M"].shape == (2, 6)


def test_a_step_moves_the_weights_in_the_subspace_alone(rng):
    for shape in ((6, 9), (9, 6), (6, 6)):
        p = Parameter(np.zeros(shape))
        p.grad = rng.standard_normal(shape)
        optimizer = GaLore([p], lr=1.0, rank=2, scale=1.0)
        optimizer.step()
        P = optimizer.state[id(p)]["P"]
        moved = p.data if shape[0] <= shape[1] else p.data.T
        assert P.shape == (6, 2) and np.linalg.matrix_rank(moved) == 2
        assert_close(P @ (P.T @ moved), moved, 1e-12)


def test_the_first_gradient_of_zeros_gives_no_basis(rng):
    """LoRA's A has none while B is zero: the basis is that of the first other gradient, whenever it comes."""
    p = Parameter(np.ones((4, 6)))
    optimizer = GaLore([p], rank=2, every=100)
    p.grad = np.zeros((4, 6))
    optimizer.step()
    assert np.array_equal(p.data, np.ones((4, 6))) and not optimizer.state[id(p)]["P"].any()
    p.grad = g = rng.standard_normal((4, 6))
    optimizer.step()
    assert_close(optimizer.state[id(p)]["P"], np.linalg.svd(g)[0][:, :2], 1e-12)
    assert (p.data != 1).all()


def test_vectors_and_what_is_named_are_adamws_bit_exact(rng):
    """As tests of AdamW's own, with clipping and a decay: bit for bit."""
    start = [rng.standard_normal(shape) for shape in ((5,), (), (2, 3, 4), (4, 6))]
    ours, theirs = ([Parameter(a.copy()) for a in start] for _ in range(2))
    pair = GaLore(ours, lr=0.1, weight_decay=0.2, by_adamw=ours[3:]), AdamW(theirs, lr=0.1, weight_decay=0.2)
    for _ in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = np.asarray(rng.standard_normal(p.shape))
            q.grad = p.grad.copy()
        for optimizer, params in zip(pair, (ours, theirs), strict=True):
            clip_grad_norm(params, 0.5)
            optimizer.step()
    assert all(np.array_equal(p.data, q.data) for p, q in zip(ours, theirs, strict=True))


def test_the_state_takes_what_the_equation_says():
    """r (short + 2 long) numbers; AdamW has 2 short long."""
    for shape in ((64, 256), (256, 64)):
        p = Parameter(np.zeros(shape, np.float32))
        arrays = GaLore([p], rank=8).state[id(p)].values()
        assert sum(a.nbytes for a in arrays) == 4 * 8 * (64 + 2 * 256)
    assert GaLore([p], rank=1000).state[id(p)]["P"].shape == (64, 64)


@pytest.mark.parametrize("options", [{"rank": 0}, {"every": 0}])
def test_misuse(options):
    with pytest.raises(ValueError, match="GaLore: rank and every must be at least 1"):
        GaLore([Parameter(np.ones((2, 2)))], **options)
