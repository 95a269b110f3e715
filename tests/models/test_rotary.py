"""rotary.py: rotations, and the angles of every kind against transformers', also at 3,000 positions."""
import numpy as np
import pytest

import tinypeft as tp
from tests.models.test_llama import llama
from tests.oracles import assert_close
from tinypeft.engine import functional as F
from tinypeft.engine.tensor import Tensor
from tinypeft.models.cache import KVCache
from tinypeft.models.llama import LlamaConfig
from tinypeft.models.rotary import Rotary, angles, frequencies

# kind → fields; texts of 3,000 tokens go past what the model was trained at
STRETCHED = {"linear": {"rope_kind": "linear", "rope_factor": 4.0},
             "dynamic": {"rope_kind": "dynamic", "rope_factor": 2.0, "rope_context": 1000},
             "llama3": {"rope_kind": "llama3", "rope_factor": 8.0, "rope_context": 512, "rope_high": 3.0},
             "yarn": {"rope_kind": "yarn", "rope_factor": 4.0, "rope_context": 800, "rope_high": 32.0,
                      "rope_magnitude": 0.1 * np.log(4) + 1},
             "yarn, one place": {"rope_kind": "yarn", "rope_factor": 1.5, "rope_context": 8, "rope_low": 1.0, "rope_high": 1.1}}
HEADS = {"n_heads": 3, "n_kv_heads": 1, "d_head": 16, "n_layers": 1, "context_length": 3000, "rope_theta": 1e4}


def test_a_score_depends_on_the_distance_alone(rng):
    q, k = (Tensor(rng.standard_normal((1, 8))) for _ in range(2))
    cos, sin = angles(Rotary(100.0, 8), 0, 50, np.dtype(np.float64))
    score = lambda i, j: (F.rotary(q, cos[i:i + 1], sin[i:i + 1]).data * F.rotary(k, cos[j:j + 1], sin[j:j + 1]).data).sum()
    assert np.isclose(score(7, 3), score(44, 40), rtol=1e-12)
    assert not np.isclose(score(7, 3), score(8, 3), rtol=1e-3)


def test_halves_are_paired_and_not_neighbours(rng):
    """A position rotates (x_i, x_{i + d/2}). Pairs of neighbours are another function of the same columns."""
    x = rng.standard_normal((1, 3, 8))
    cos, sin = angles(Rotary(100.0, 8), 0, 3, np.dtype(np.float64))
    z = x[..., :4] + 1j * x[..., 4:]                       # a pair as a complex number: rotation is a product
    y = z * (cos + 1j * sin)
    ours = F.rotary(Tensor(x), cos, sin).data
    assert_close(ours, np.concatenate([y.real, y.imag], -1), 1e-14)
    w = (x[..., 0::2] + 1j * x[..., 1::2]) * (cos + 1j * sin)
    neighbours = np.stack([w.real, w.imag], -1).reshape(x.shape)
    assert np.abs(ours - neighbours).max() > 0.1
    order = np.r_[0:8:2, 1:8:2]                            # neighbours first: the columns in another order
    assert_close(F.rotary(Tensor(x[..., order]), cos, sin).data, neighbours[..., order], 1e-14)


@pytest.mark.parametrize("kind", STRETCHED)
def test_stretched_angles_are_transformers_at_3000_positions(kind, rng, torch):
    """Logits in float64; transformers' own functions compute the angles in float64, too."""
    from tests.oracles.torch_llama import torch_llama
    model = llama(**HEADS, **STRETCHED[kind])
    tokens = rng.integers(0, 41, (1, 3000))
    with torch.no_grad(), tp.no_grad():
        expected = torch_llama(model)(torch.tensor(tokens)).logits
        ours = model(tokens).data
        plain = llama(**HEADS)(tokens).data
    assert np.abs(ours - expected.numpy()).max() < 1e-10
    assert np.abs(ours - plain).max() > 1e-3                           # and they matter


@pytest.mark.parametrize("kind", STRETCHED)
def test_angles_by_their_definition_numerical(kind):
    """Pair by pair, in plain Python."""
    import math
    fields = {name.removeprefix("rope_"): value for name, value in STRETCHED[kind].items()}
    r = Rotary(1e4, 16, **fields)
    for length in 5, 2500:
        for i, got in enumerate(frequencies(r, length)):
            s, theta = r.factor, 1e4
            if r.kind == "dynamic": theta *= (s * max(length, r.context) / r.context - (s - 1))**(16 / 14)
            f = 1 / theta**(2 * i / 16)
            turns = (r.context or 1) * f / (2 * math.pi)
            if r.kind == "linear": f /= s
            if r.kind == "llama3":
                if turns < r.low: f /= s
                elif turns <= r.high:
                    share = (turns - r.low) / (r.high - r.low)
                    f = share * f + (1 - share) * f / s
            if r.kind == "yarn":
                place = lambda n: 8 * math.log(r.context / (2 * math.pi * n)) / math.log(1e4)
                first, last = max(math.floor(place(r.high)), 0), min(math.ceil(place(r.low)), 15)
                share = min(max((i - first) / (last - first if last > first else 0.001), 0), 1)
                f = (1 - share) * f + share * f / s
            assert math.isclose(got, f, rel_tol=1e-12), (i, length)


def test_the_slow_pairs_are_slowed_down_and_the_fast_ones_are_not():
    plain = frequencies(Rotary(5e5, 64), 1)
    llama3 = frequencies(Rotary(5e5, 64, "llama3", 32.0, 8192), 1)     # Llama 3.2's
    assert np.array_equal(llama3[:14], plain[:14]) and np.allclose(llama3[-14:], plain[-14:] / 32, rtol=1e-14)
    assert (np.diff(llama3) < 0).all()


@pytest.mark.parametrize("kind", [kind for kind in STRETCHED if kind != "dynamic"])
def test_a_cache_computes_the_same_numerical(kind, rng):
    model = llama(**HEADS | {"context_length": 40}, **STRETCHED[kind])
    tokens = rng.integers(0, 41, (1, 12))
    cache = KVCache(1)
    with tp.no_grad():
        parts = [model(tokens[:, :7], cache=cache).data, model(tokens[:, 7:], cache=cache).data]
        assert_close(np.concatenate(parts, axis=1), model(tokens).data, 1e-12)


def test_dynamic_angles_are_plain_up_to_the_length_of_training(rng):
    model = llama(**HEADS | {"context_length": 40}, rope_kind="dynamic", rope_factor=2.0, rope_context=20)
    plain, tokens = llama(**HEADS | {"context_length": 40}), rng.integers(0, 41, (1, 40))
    assert np.array_equal(model(tokens[:, :20]).data, plain(tokens[:, :20]).data)
    assert np.abs(model(tokens).data - plain(tokens).data).max() > 1e-3


@pytest.mark.parametrize("fields, match", [
    ({"rope_kind": "llama3"}, "rope_kind='llama3' needs rope_context"), ({"rope_kind": "yarn"}, "needs rope_context"),
    ({"rope_kind": "dynamic", "rope_context": 8, "d_head": 2}, "needs a d_head of 4 or more, got 2"),
    ({"rope_low": 4.0}, "expected rope_low < rope_high, got 4 and 4")])
def test_fields_that_make_no_sense_together(fields, match):
    with pytest.raises(ValueError, match=match): LlamaConfig(**fields)
