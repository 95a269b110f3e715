"""FourierFT, C³A: transforms, which entries, files that lie, and PEFT's numbers. Their promises are in test_methods.py."""
import numpy as np
import pytest

import tinypeft as tp
from tests.oracles import assert_close
from tests.protocol import assert_same_race, learned
from tinypeft.engine.nn import Parameter
from tinypeft.files import load_arrays, save_arrays
from tinypeft.peft import plain
from tinypeft.peft.fourierft import draw, inverse_transform

LAYERS = "query", "up", "down"
METHODS = {"fourierft": tp.FourierFT(40, alpha=200, std=1.0, targets=LAYERS), "c3a": tp.C3A(4, init="xavier", targets=LAYERS)}
UP = "blocks.0.mlp.up"                                                            # 16 → 64
names = pytest.mark.parametrize("name", METHODS)


def layers(tuned, theirs):
    return [(layer, theirs.get_submodule(f"base_model.model.{path}")) for path, layer in tuned.wrappers.items()]


# -- the equations -------------------------------------------------------------------------------
def test_fourierft_is_a_sum_of_waves(gpt):
    """By the transform, and by cosines: the same numbers and gradients."""
    layer = learned(gpt(), METHODS["fourierft"]).wrappers[UP]
    shape, dS, results = (64, 16), np.random.default_rng(1).standard_normal((64, 16)), []
    for compute in inverse_transform, plain.waves:
        layer.c.grad = None
        S = compute(layer.c, layer.E, shape)
        (S * dS).sum().backward()
        results.append([S.data, layer.c.grad])
    for fast, slow in zip(*results, strict=True): assert_close(fast, slow, 1e-13)
    assert_close(layer.delta(), 200 * results[0][0], 1e-13)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (6, 1), (3, 4), (7, 5)])
def test_the_transpose_of_the_transform_is_itself_numerical(shape):
    size = shape[0] * shape[1]
    E = np.array(divmod(np.random.default_rng(0).permutation(size)[:(size + 1) // 2], shape[1]))
    c = Parameter(np.random.default_rng(1).standard_normal(E.shape[1]))
    assert_close(inverse_transform(c, E, shape), plain.waves(c, E, shape), 1e-14)
    tp.gradcheck(lambda c: inverse_transform(c, E, shape), c)


def test_a_sum_of_cosines_is_even(gpt):
    """So half of all matrices cannot be learned, however many entries there are, and the rank has no bound of its own."""
    layer = learned(gpt(), METHODS["fourierft"]).wrappers[UP]
    change = layer.delta()
    assert_close(change, np.roll(change[::-1, ::-1], (1, 1), (0, 1)), 1e-13)
    assert np.linalg.matrix_rank(change) == 16


def test_blocks_of_c3a_are_circulant(gpt):
    layer = learned(gpt(), METHODS["c3a"]).wrappers[UP]
    assert layer.w.shape == (16, 4, 4)
    blocks = layer.delta().reshape(16, 4, 4, 4).transpose(0, 2, 1, 3)                 # which block, rows, columns
    for turn in range(4): assert_close(blocks[:, :, turn], np.roll(layer.w.data, turn, axis=2) / 16, 1e-15)
    whole = tp.attach(gpt(), tp.C3A(targets=LAYERS)).wrappers
    assert {path.rpartition(".")[2]: w.w.shape for path, w in whole.items()} == {
        "query": (1, 1, 16), "up": (4, 1, 16), "down": (1, 4, 16)}


def test_c3a_multiplies_as_the_transforms_of_the_paper(gpt, rng):
    for path, layer in learned(gpt(), METHODS["c3a"]).wrappers.items():
        x = rng.standard_normal((5, layer.d_in))
        assert_close(plain.circular(layer.w.data, x), x @ layer.delta().T, 1e-14, path)
        dz = rng.standard_normal((5, layer.d_out))
        assert_close(plain.circular_dx(layer.w.data, dz), dz @ layer.delta(), 1e-14, path)


# -- starts and sizes ----------------------------------------------------------------------------
def test_starts_have_the_width_of_the_formulas(gpt):
    """Of the change at the start, over many entries: α √(n/2)/(d₁ d₂), and Xavier's √(2/(d₁ + d₂))/d₂."""
    d1, d2 = 64, 16
    drawn = [tp.FourierFT(200, std=2.0, targets=("up",), seed=seed) for seed in range(8)]
    changes = [tp.attach(gpt(), method, rng=method.seed).wrappers[UP].delta() for method in drawn]
    assert_close(np.std(changes), 2 * 150 * 10 / (d1 * d2), 0.1 * 2.9)
    most = np.sqrt(6 / (d1 + d2)) / d2
    change = tp.attach(gpt(), tp.C3A(2, init="xavier", targets=("up",)), rng=0).wrappers[UP].delta()
    assert 0.95 * most < np.abs(change).max() <= most and abs(change.std() / most - 1 / np.sqrt(3)) < 0.03


@pytest.mark.parametrize("method", [tp.FourierFT(256), tp.C3A(16, targets=LAYERS)], ids=str)
def test_the_largest_that_fits_is_taken(method, gpt, tokens):
    assert_close(learned(gpt(), method).merge()(tokens), learned(gpt(), method)(tokens), 1e-12)


# -- which entries -------------------------------------------------------------------------------
def test_entries_follow_from_the_seed_and_differ_between_shapes(gpt):
    a, b = (tp.attach(gpt(), tp.FourierFT(30, seed=seed, targets=LAYERS)).wrappers for seed in (777, 778))
    query, again, up = (a[path].E for path in ("blocks.0.attention.query", "blocks.1.attention.query", UP))
    assert np.array_equal(query, again) and not np.array_equal(query, b["blocks.0.attention.query"].E)
    assert up[0].max() > 16 and len(set(zip(*up.tolist(), strict=True))) == 30


@pytest.mark.parametrize(("n", "size", "seed"), [(1, 1, 0), (7, 9, 1), (9, 9, 2**32 - 1), (40, 1024, 777), (1000, 10**7, 777)])
def test_drawing_equals_a_random_permutation_of_torch(n, size, seed):
    torch = pytest.importorskip("torch")
    ours = draw(n, size, seed)
    assert len(set(ours.tolist())) == n
    if size < 10**6:                                         # torch draws all of them
        theirs = torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:n]
        assert np.array_equal(ours, theirs.numpy())


BAD = {"a row outside": lambda E: E + [[64], [0]], "a column outside": lambda E: E + [[0], [16]], "negative": lambda E: E - 64,
       "repeated": lambda E: np.repeat(E[:, ::2], 2, axis=1), "not whole": lambda E: E + 0.5, "huge": lambda E: E + 2.0**70}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_whose_entries_do_not_fit_is_refused(kind, gpt, tmp_path):
    tp.attach(gpt(np.float32), tp.FourierFT(40, targets=("up",))).save(tmp_path)
    path = tmp_path / "adapter.safetensors"
    arrays, meta = load_arrays(path)
    name = f"FourierFT/{UP}.E"
    save_arrays(path, arrays | {name: BAD[kind](arrays[name])}, meta)
    model = gpt(np.float32)
    logits = model(np.arange(5)[None]).data
    with pytest.raises(ValueError, match="E must hold 40 different places in a 64 × 16 matrix|numbers that int32 cannot hold"):
        tp.load_adapter(model, tmp_path)
    assert model.attached is None and np.array_equal(model(np.arange(5)[None]).data, logits)


@pytest.mark.parametrize(("method", "fields"), [
    (tp.FourierFT(40), {"frequencies": 10**12}), (tp.FourierFT(40), {"frequencies": 256}), (tp.C3A(4), {"block_size": 10**12}),
    (tp.C3A(4), {"block_size": 1})])
def test_a_file_that_claims_other_sizes_is_refused(method, fields, gpt, tmp_path):
    tp.attach(gpt(np.float32), method).save(tmp_path)
    path = tmp_path / "adapter.safetensors"
    arrays, meta = load_arrays(path)
    meta["parts"][type(method).__name__]["fields"] |= fields
    save_arrays(path, arrays, meta)
    with pytest.raises(ValueError): tp.load_adapter(gpt(np.float32), tmp_path)


# -- PEFT ----------------------------------------------------------------------------------------
def pefts(name, model):
    """PEFT's method on a copy of the model. It computes the change in float32."""
    peft = pytest.importorskip("peft")
    from tests.oracles.torch_gpt import torch_copy
    config = {"fourierft": peft.FourierFTConfig(n_frequency=40, scaling=200.0, target_modules=list(LAYERS)),
              "c3a": peft.C3AConfig(block_size=4, target_modules=list(LAYERS))}[name]
    return peft.get_peft_model(torch_copy(model), config, autocast_adapter_dtype=False).double()


THEIRS = {"fourierft": ("c", "fourierft_spectrum"), "c3a": ("w", "c3a_kernel")}


def pairs(name, tuned, theirs):
    ours, their = THEIRS[name]
    return [(getattr(layer, ours), getattr(module, their)["default"]) for layer, module in layers(tuned, theirs)]


@names
def test_10_steps_of_adamw_equal_pefts_numerical(name, gpt, tokens, monkeypatch):
    """FourierFT with PEFT's own entries, which follow from the seed. C³A with autograd in place of PEFT's gradient."""
    tuned = learned(gpt(), METHODS[name])
    theirs = pefts(name, tuned.frozen)
    if name == "fourierft":
        for layer, module in layers(tuned, theirs): assert np.array_equal(layer.E, module.indices["default"].numpy())
    else:
        from peft.tuners.c3a.layer import BlockCircularConvolution as Theirs
        monkeypatch.setattr(Theirs, "apply", by_autograd)
    tolerance = {"fourierft": 1e-5, "c3a": 1e-6}[name]
    assert_same_race(tuned, theirs, pairs(name, tuned, theirs), tokens, steps=10, tolerance=tolerance)
    assert_close(tuned.merge()(tokens), theirs.merge_and_unload()(tokens).detach(), 1e-5)


def by_autograd(x, w):
    """PEFT's forward pass of C³A, whose gradients torch derives."""
    import torch
    from torch.fft import fft, ifft
    pieces = x.reshape(*x.shape[:-1], *w.shape[1:])
    return fft(torch.einsum("...nb,mnb->...mb", ifft(pieces), fft(w))).real.flatten(-2)


def test_the_gradient_of_c3as_input_is_right_and_pefts_is_not(gpt, rng):
    """The paper's Algorithm A1 transforms Δw the wrong way. If PEFT mends it, this test fails: change c3a.py's docstring."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("peft")
    from peft.tuners.c3a.utils import BlockCircularConvolution as Theirs
    layer = learned(gpt(), METHODS["c3a"]).wrappers[UP]
    x, dz = rng.standard_normal((5, 16)), rng.standard_normal((5, 64))
    ours = Parameter(x)
    (tp.functional.linear(ours, layer.change()) * dz * 16).sum().backward()
    grads = {}
    for which, apply in ("PEFT", Theirs.apply), ("autograd", by_autograd):
        tx, tw = (torch.as_tensor(a.copy()).requires_grad_() for a in (x, layer.w.data))
        apply(tx, tw).backward(torch.as_tensor(dz))
        grads[which] = tx.grad, tw.grad
    dx, dw = grads["autograd"]
    assert_close(ours.grad, dx, 1e-13)
    assert_close(layer.w.grad, dw, 1e-13)
    assert_close(grads["PEFT"][1], dw, 1e-13)
    assert (grads["PEFT"][0] - dx).abs().max() > 0.5 * dx.abs().max()
