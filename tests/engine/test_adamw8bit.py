"""AdamW8bit: torchao's codes bit for bit, and its trajectory; the nearest entry by brute force; blocks, bytes."""
import numpy as np
import pytest

from tests.oracles import assert_close
from tinypeft.engine.nn import Parameter
from tinypeft.engine.optim import AdamW, AdamW8bit
from tinypeft.engine.optim.dynamic import dynamic_map, pack, unpack


@pytest.mark.parametrize("signed", [True, False])
def test_exact_table_of_bitsandbytes(signed):
    functional = pytest.importorskip("bitsandbytes.functional")
    assert np.array_equal(functional.create_dynamic_map(signed).numpy(), dynamic_map(signed))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("n", [1, 255, 256, 257, 1000])
def test_each_number_takes_the_nearest_entry(signed, n, rng):
    """By trying all 256, with a block of its own for every 256 numbers, and the last one shorter."""
    x = (rng.standard_normal(n) * 10 ** rng.uniform(-9, 0, n)).astype(np.float32)
    if not signed: x = x * x
    codes, absmax = pack(x, signed)
    blocks = -(-n // 256)
    assert (codes.dtype, codes.shape) == (np.uint8, (blocks, 256)) and (absmax.dtype, absmax.shape) == (np.float32, (blocks, 1))
    table = dynamic_map(signed).astype(np.float64)
    for i, (a,) in enumerate(absmax):
        block = x[256 * i:256 * (i + 1)]
        assert a == np.abs(block).max()
        gaps = np.abs(block.astype(np.float64)[:, None] / a - table)
        assert_close(gaps[np.arange(len(block)), codes[i, :len(block)]], gaps.min(1), 1e-5)
    assert np.array_equal(unpack(codes, absmax, signed), (table[codes] * absmax).astype(np.float32))


def test_zeros_and_numbers_too_small_for_other_implementations():
    for x in (np.zeros(300, np.float32), np.full(300, 1e-20, np.float32), np.full(300, 2e-38, np.float32)):
        for signed in (True, False): assert_close(unpack(*pack(x, signed), signed).reshape(-1)[:300], x, 1e-6)
    assert pack(np.zeros(0, np.float32), True)[0].shape == (0, 256)


@pytest.mark.parametrize("signed", [True, False])
def test_exact_codes_of_torchao(signed, torch, rng):
    utils = pytest.importorskip("torchao.optim.quant_utils")
    x = (rng.standard_normal(4096) * 10 ** rng.uniform(-4, 0, 4096)).astype(np.float32)
    if not signed: x = x * x
    scaled, scale = utils.scale_tensor(torch.tensor(x), 256)
    codes = utils.quantize_8bit_with_qmap(scaled, torch.tensor(dynamic_map(signed).copy()))
    ours, absmax = pack(x, signed)
    assert np.array_equal(ours.reshape(-1), codes.numpy()) and np.array_equal(absmax.reshape(-1), scale.numpy())


@pytest.mark.parametrize("shape", [(64, 96), (8, 512)])
def test_the_trajectory_is_torchaos_numerical(shape, torch, monkeypatch, rng):
    """12 steps. Where rounding differs in a last bit a code may fall on the other side, and the next step differs by a little:
    less than 1 % of what 8 bits cost."""
    optim = pytest.importorskip("torchao.optim")
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    start = rng.standard_normal(shape).astype(np.float32)
    p, full = Parameter(start.copy()), Parameter(start.copy())
    q = torch.nn.Parameter(torch.tensor(start))
    optimizers = [AdamW8bit([p], 1e-2), AdamW([full], 1e-2), optim.AdamW8bit([q], 1e-2, weight_decay=0.01)]
    for step in range(12):
        p.grad = full.grad = rng.standard_normal(shape).astype(np.float32)
        q.grad = torch.tensor(p.grad)
        for optimizer in optimizers: optimizer.step()
        errors = np.abs(p.data - q.detach().numpy())
        if step == 0: assert errors.max() < 1e-6         # the moments were zeros
    cost = np.abs(p.data - full.data)
    assert np.median(errors) < 1e-6 and errors.mean() < 0.01 * cost.mean() and cost.max() < 0.1 * np.abs(p.data - start).max()


@pytest.mark.parametrize("shape, dtype", [((64, 65), np.float32), ((300, 257), np.float32), ((4096,), np.float64)])
def test_a_step_is_adamws_between_unpacking_and_packing(shape, dtype, rng):
    p, q = (Parameter(np.ones(shape, dtype)) for _ in range(2))
    ours, plain = AdamW8bit([p], 0.1, weight_decay=0.2), AdamW([q], 0.1, weight_decay=0.2)
    for _ in range(3):
        state = ours.state[id(p)]
        q.data[...] = p.data
        for slot in ("m", "v"):
            numbers = unpack(state[f"{slot}_codes"], state[f"{slot}_absmax"], slot == "m")
            plain.state[id(q)][slot][...] = numbers.reshape(-1)[:p.size].reshape(shape)
        p.grad = q.grad = rng.standard_normal(shape).astype(dtype)
        ours.step(); plain.step()
        assert np.array_equal(p.data, q.data) and p.dtype == dtype
        m = plain.state[id(q)]["m"].reshape(-1).astype(np.float32)
        assert np.array_equal(state["m_codes"], pack(m, True)[0])


def test_bytes_for_each_number():
    p = Parameter(np.zeros((512, 256), np.float32))
    nbytes = lambda optimizer: sum(a.nbytes for a in optimizer.state[id(p)].values()) / p.size
    assert nbytes(AdamW([p])) == 8 and nbytes(AdamW8bit([p])) == 2 + 2 * 4 / 256


def test_a_small_parameter_has_adamws_moments_bit_exact(rng):
    small, same = (Parameter(np.ones(4095, np.float32)) for _ in range(2))
    ours, plain = AdamW8bit([small]), AdamW([same])
    for _ in range(3):
        small.grad = same.grad = rng.standard_normal(4095).astype(np.float32)
        ours.step(); plain.step()
    assert np.array_equal(small.data, same.data) and list(ours.state[id(small)]) == ["m", "v"]
    assert list(AdamW8bit([small], min_8bit_size=0).state[id(small)]) == ["m_codes", "m_absmax", "v_codes", "v_absmax"]


def test_a_masked_parameter_has_moments_in_its_own_type():
    p = Parameter(np.ones((32, 256), np.float32))
    p.update_mask = np.arange(256) < 16
    assert {name: a.dtype for name, a in AdamW8bit([p]).state[id(p)].items()} == {"m": np.float32, "v": np.float32}


def test_a_weight_that_is_a_transpose(rng):
    """Its numbers are read and written in order of its rows, wherever they lie."""
    start, g = (rng.standard_normal((64, 70)).astype(np.float32) for _ in range(2))
    p, q = Parameter(start.copy()), Parameter(start.T.copy().T)
    for parameter in (p, q):
        assert parameter.data.flags.c_contiguous == (parameter is p)
        parameter.grad = g
        AdamW8bit([parameter], 0.1).step()
    assert np.array_equal(p.data, q.data) and (p.data != start).any()
