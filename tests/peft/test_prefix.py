"""Prefix tuning and P-tuning v2: PEFT's encoder, the identities of their papers. Their promises are in test_methods.py."""
import itertools
import math

import numpy as np
import pytest

import tinypeft as tp
from tests.protocol import assert_same_race, move, shift
from tinypeft.engine import functional as F
from tinypeft.peft.prefix import activations
from tinypeft.text.tasks import LanguageModelling

MLP, PLAIN = tp.PrefixTuning(3, hidden=12), tp.PrefixTuning(3, reparameterize=False)
MLP_RANDOM, PLAIN_RANDOM = tp.PrefixTuning(3, hidden=12, init="random"), tp.PTuningV2(3, init="random", dropout=0.0)


def peft_prefix(copy, projection):
    """PEFT's encoder on the torch copy, its table taken apart as PEFT does for GPT-2."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, token_dim=16, num_layers=2,
                                     num_transformer_submodules=1, num_attention_heads=4, encoder_hidden_size=12,
                                     prefix_projection=projection)
    encoder = peft.PrefixEncoder(config).double()

    def forward(x):
        past = encoder(torch.arange(3).expand(len(x), -1))                # (B, P, 2Ld)
        past = past.view(len(x), 3, 2 * 2, 4, 4).permute(2, 0, 3, 1, 4)   # (2L, B, H, P, d_head)
        return copy(x, prefix=[tuple(layer) for layer in past.split(2)])
    return encoder, forward


@pytest.mark.parametrize("method", [MLP, MLP_RANDOM], ids=str)
def test_with_projection_equals_peft(method, gpt, tokens):
    pytest.importorskip("torch")
    from tests.oracles.torch_gpt import torch_copy
    model = gpt()
    encoder, oracle = peft_prefix(torch_copy(model), True)
    tuned = tp.attach(model, method, rng=0)
    v, (first, _, second) = tuned.virtual, encoder.transform
    assert_same_race(tuned, oracle, [(v.P_small, encoder.embedding.weight), (v.W1.weight, first.weight),
                                     (v.W1.bias, first.bias), (v.W2.weight, second.weight), (v.W2.bias, second.bias)],
                     tokens)


@pytest.mark.parametrize("method", [PLAIN, PLAIN_RANDOM], ids=str)
def test_without_projection_equals_peft(method, gpt, tokens):
    pytest.importorskip("torch")
    from tests.oracles.torch_gpt import torch_copy
    model = gpt()
    encoder, oracle = peft_prefix(torch_copy(model), False)
    tuned = tp.attach(model, method, rng=0)
    assert_same_race(tuned, oracle, [(tuned.virtual.P, encoder.embedding.weight)], tokens)


def test_a_head_is_a_mixture_of_attention_and_prefix(rng):
    """He et al., equation 7: (1 − λ) Attn(x W_q, C W_k, C W_v) + λ softmax(x W_q P_Kᵀ) P_V."""
    q, k, v = (rng.standard_normal((5, 4)) for _ in range(3))
    P_K, P_V = (rng.standard_normal((3, 4)) for _ in range(2))
    T = tp.Tensor
    head = F.attention(T(q), T(np.vstack([P_K, k])), T(np.vstack([P_V, v]))).data
    alone, prefix = F.attention(T(q), T(k), T(v)).data, F.attention(T(q), T(P_K), T(P_V), causal=False).data
    scores = np.exp(q @ np.vstack([P_K, k]).T / math.sqrt(4)) * np.tril(np.ones((5, 8)), 3)
    lam = scores[:, :3].sum(1, keepdims=True) / scores.sum(1, keepdims=True)
    np.testing.assert_allclose(head, (1 - lam) * alone + lam * prefix, rtol=0, atol=1e-10)
    assert (lam > 0.05).all() and (lam < 0.999).all()


@pytest.mark.parametrize("method", [
    tp.PrefixTuning(3, False, init="text", text=(7, 1)), tp.PTuningV2(3, init="text", text=(7, 1)),
    tp.PrefixTuning(3, hidden=3, init="text", text=(7, 1))], ids=str)
def test_starts_as_if_real_words_had_gone_before(method, gpt, tokens):
    """The MLP gives the activations exactly as soon as it has as many units as the prefix has tokens."""
    model = gpt()
    want = model(np.hstack([np.tile([7, 1, 7], (3, 1)), tokens])).data[:, 3:]
    np.testing.assert_allclose(tp.attach(model, method)(tokens).data, want, rtol=0, atol=1e-10)


def test_narrow_mlp_starts_as_close_as_it_can(gpt):
    """With fewer units than tokens, W₂ is the least-squares solution: no other comes closer to the activations."""
    model = gpt()
    v = tp.attach(model, tp.PrefixTuning(6, hidden=2, init="text", text=(1, 2, 3, 4, 5, 6)), rng=0).virtual
    target = activations(model, [1, 2, 3, 4, 5, 6])
    hidden = np.tanh(v.P_small.data @ v.W1.weight.data.T)
    residual = v.table().data - target
    assert np.abs(residual).max() > 0.01 and np.abs(hidden.T @ residual).max() < 1e-12


def test_a_zero_prefix_is_not_nothing(gpt, tokens):
    """Its keys take their share of the softmax, and the tokens' positions move."""
    model = gpt()
    before = model(tokens).data
    tuned = tp.attach(model, PLAIN)
    tuned.virtual.P.data = np.zeros_like(tuned.virtual.P.data)
    assert np.abs(tuned(tokens).data - before).max() > 0.1


@pytest.mark.parametrize("head", [None, 3])
def test_folding_changes_nothing_but_the_counts(head, gpt, tokens, rng):
    P, d, L, m, C = 3, 16, 2, 12, 0 if head is None else head * 17
    tuned = tp.attach(gpt(np.float32), MLP, head=head)
    move(tuned, rng)
    tuned.train()
    before, summary = tuned(tokens).data, tuned.summary()
    assert summary.trained == P * d + (d * m + m) + (2 * L * d * m + 2 * L * d) + C
    assert summary.trained - C == 1084                                   # PEFT's count for these sizes
    assert summary.stored == 2 * P * L * d + C and summary.nbytes == 4 * summary.stored
    assert tuned.fold() is tuned and tuned.virtual.training
    assert np.array_equal(tuned(tokens).data, before)
    assert tuned.summary().trained == tuned.summary().stored == 2 * P * L * d + C
    assert tuned.method == PLAIN.__class__(3, False, hidden=12) and tuned.model.attached is tuned.method
    x, y = shift(tokens)
    F.cross_entropy(tuned(x), y).backward()
    assert [p.shape for p in tuned.trainable_parameters()][0] == (P, 2 * L * d) and tuned.virtual.P.grad is not None
    with pytest.raises(tp.MethodError, match="no reparameterization"):
        tuned.fold()


def test_a_checkpoint_keeps_the_mlp_and_resumes_exactly(gpt, tmp_path):
    ids = np.random.default_rng(0).integers(0, 37, 200)
    task = LanguageModelling("ids", {s: ids for s in ("train", "validation", "test")}, dict(test=200), 8)
    settings = dict(steps=6, batch_size=2, seed=3, progress=False, workers=1)
    whole, parts = (tp.attach(gpt(np.float32), tp.PrefixTuning(3, hidden=12, dropout=0.2), rng=0) for _ in range(2))
    tp.train(whole, task, **settings)
    tp.train(parts, task, **settings, checkpoint=tmp_path / "c.npz", stop_after=3)
    fresh = tp.attach(gpt(np.float32), tp.PrefixTuning(3, hidden=12, dropout=0.2), rng=9)
    tp.train(fresh, task, **settings, checkpoint=tmp_path / "c.npz")
    for a, b in zip(whole.trainable_parameters(), fresh.trainable_parameters(), strict=True):
        assert np.array_equal(a.data, b.data)


def test_dropout_in_training_only_and_for_each_row(gpt, tokens):
    tuned = tp.attach(gpt(), tp.PrefixTuning(3, False, dropout=0.5))
    same_rows = np.tile(tokens[:1], (4, 1))
    still = tuned(same_rows).data
    np.testing.assert_allclose(still, still[:1].repeat(4, 0), rtol=1e-12)          # rows of one product round apart
    tuned.train()
    shaken = tuned(same_rows).data
    assert min(np.abs(a - b).max() for a, b in itertools.combinations(shaken, 2)) > 1e-3
    tuned.virtual.dropout.p = 0.999999                                   # next to everything dropped: a zero prefix
    dropped = tuned(same_rows).data
    tuned.eval()
    tuned.virtual.P.data = np.zeros_like(tuned.virtual.P.data)
    np.testing.assert_allclose(dropped, tuned(same_rows).data)


def test_dropout_gradients(gpt, tokens):
    tuned = tp.attach(gpt(), tp.PrefixTuning(3, hidden=12, dropout=0.3)).train()

    def fixed(*_):
        tuned.virtual.dropout.rng = np.random.default_rng(5)
        return tuned(tokens)
    tp.gradcheck(fixed, *tuned.trainable_parameters(), directions=1)


def test_defaults(gpt):
    assert tp.attach(gpt(), tp.PrefixTuning()).virtual.W1.weight.shape == (8, 16)    # m = d/2
    for cls in (tp.PrefixTuning, tp.PTuningV2):
        assert [cls(reparameterize=r).learning_rate for r in (True, False)] == [3e-3, 6e-2]
    assert (tp.PrefixTuning().learning_rate, tp.PTuningV2().learning_rate) == (3e-3, 6e-2)
    tuned = tp.attach(gpt(), tp.PrefixTuning())
    assert (tuned.learning_rate, tuned.fold().learning_rate) == (3e-3, 6e-2)


def test_the_mlp_starts_with_outputs_of_size_one_numerical(gpt):
    """Weights of standard deviation 1/√d_in keep the size of what they read."""
    made = tp.attach(gpt(np.float32, d_model=128), tp.PrefixTuning(4, hidden=96, init="random"), rng=0).virtual
    for layer in (made.W1, made.W2): assert layer.weight.data.std() == pytest.approx(layer.d_in ** -0.5, rel=0.05)
