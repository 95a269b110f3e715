"""AdapterFusion: against PyTorch, what its paper promises, files, and which adapters cannot be fused."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tinypeft as tp
from tests.conftest import make_gpt
from tests.families import FAMILIES, make
from tests.oracles import assert_close
from tests.protocol import assert_gradients, assert_same_race, frozen_bytes, move
from tests.toys import Noise
from tinypeft.files import save_arrays

A = tp.BottleneckAdapter(4, placement="pfeiffer", norms=False)
B = tp.BottleneckAdapter(3, placement="pfeiffer", norms=False, activation="tanh")
C = tp.BottleneckAdapter(5, placement="pfeiffer", norms=False, activation="silu", activation_up=True)
HOULSBY = tp.BottleneckAdapter(4, norms=False)


def adapters(model, *methods, size=0.3):
    """Adapters on one model, detached, each with numbers of its own."""
    found = []
    for i, method in enumerate(methods):
        found.append(tp.attach(model, method, rng=i))
        move(found[-1], np.random.default_rng(i), size)
        found[-1].detach()
    return found


def fused(model, *methods, move_by=0.1, **options):
    tuned = tp.fuse(adapters(model, *methods), **options)
    move(tuned, np.random.default_rng(9), move_by)
    return tuned


# -- numbers -------------------------------------------------------------------------------------
@pytest.mark.parametrize("methods", [(A, B, C), (HOULSBY, HOULSBY)], ids=["pfeiffer", "houlsby"])
def test_gradients(methods, gpt, tokens):
    assert_gradients(fused(gpt(), *methods), tokens[:2, :4])


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_on_other_families(family, tokens):
    assert_gradients(fused(make(family), A, B), tokens[:2, :4])


@pytest.mark.parametrize("methods", [(A, B), (A,), (HOULSBY, tp.BottleneckAdapter(2, norms=False, activation="relu"))],
                         ids=["two", "one", "houlsby"])
def test_logits_and_20_steps_equal_torchs_numerical(methods, gpt, tokens):
    pytest.importorskip("torch")
    from tests.oracles.torch_fusion import put_fused
    from tests.oracles.torch_gpt import torch_copy
    model = gpt()
    oracle = torch_copy(model)
    for p in oracle.parameters(): p.requires_grad = False
    tuned = fused(model, *methods)
    new = put_fused(oracle, [(int(path.split(".")[1]), *path.split(".")[2:]) for path in tuned.wrappers],
                    [(m.bottleneck, m.activation) for m in methods])
    pairs = []
    for ours, theirs in zip(tuned.wrappers.values(), new, strict=True):
        pairs += [(ours.Q, theirs.query.weight), (ours.K, theirs.key.weight), (ours.V, theirs.value.weight)]
        for adapter, (down, _, up) in zip(ours.adapters, theirs.bottlenecks, strict=True):
            for name, q in ("W_d", down.weight), ("b_d", down.bias), ("W_u", up.weight), ("b_u", up.bias):
                q.data = q.data.new_tensor(getattr(adapter, name).data)
    assert_same_race(tuned, oracle, pairs, tokens)


def test_the_penalty_holds_V_near_the_identity(gpt):
    tuned = fused(gpt(), A, B, regularization=0.03)
    tuned.penalty().backward()
    total = 0
    for layer in tuned.wrappers.values():
        D = layer.V.data - np.eye(16)
        total += (D ** 2).sum()
        assert_close(layer.V.grad, 2 * 0.03 * D, 1e-12)
        assert layer.Q.grad is None and layer.K.grad is None
    assert_close(tuned.penalty().data, 0.03 * total, 1e-12)
    tuned.detach()
    assert tp.fuse(adapters(gpt(), A), regularization=0).penalty() is None


# -- what the paper promises ---------------------------------------------------------------------
def test_it_starts_as_the_average_of_the_adapters(gpt, tokens):
    """With Q = 0, or all adapters alike, every α is 1/N, and V is all but the identity."""
    model = gpt()
    (a,) = adapters(model, A)
    alone = a.reattach()(tokens).data
    assert_close(tp.fuse([a])(tokens), alone, 1e-4)
    model.attachment.take_off(model)
    assert_close(tp.fuse([a, a, a])(tokens), alone, 1e-4)
    model.attachment.take_off(model)
    one, two = adapters(model, A, B)
    tuned, h = tp.fuse([one, two]), tp.Tensor(np.random.default_rng(0).standard_normal((2, 3, 64)))
    for path, layer in tuned.wrappers.items():
        layer.Q.data[:] = 0
        mean = (one.wrappers[path](h).data + two.wrappers[path](h).data) / 2
        assert_close(layer(h), mean, 1e-4)
        assert_close(layer.attention(layer.base(h), tp.stack([x.z(layer.base(h)) for x in layer.adapters], 2)), np.full(
            (2, 3, 2, 1), 0.5), 1e-12)


def test_the_attention_chooses_by_position(gpt):
    layer = fused(gpt(), A, B, C, move_by=1.0).wrappers["blocks.0.mlp.down"]
    h = tp.Tensor(np.random.default_rng(0).standard_normal((2, 5, 16)))
    z = tp.stack([x.z(h) for x in layer.adapters], 2)
    alpha = layer.attention(h, z).data[..., 0]
    scores = np.einsum("ij,btj,ik,btnk->btn", layer.Q.data, h.data, layer.K.data, z.data)           # (Q h)ᵀ (K zₙ)
    assert_close(alpha, np.exp(scores) / np.exp(scores).sum(-1, keepdims=True), 1e-10)
    assert len(set(alpha.argmax(-1).ravel())) > 1


def test_training_moves_the_attention_and_nothing_else(gpt, tokens):
    model = gpt(np.float32)
    before = frozen_bytes(model)
    a, b = adapters(model, A, B)
    states = [{n: x.copy() for n, x in t.state_dict().items()} for t in (a, b)]
    tuned = tp.fuse([a, b], head=3)
    start = {n: x.copy() for n, x in tuned.state_dict().items()}
    summary = tuned.summary()
    assert summary.trained == 2 * 3 * 16 * 16 + 3 * 17
    assert summary.stored == summary.trained + 2 * (2 * 16 * 4 + 4 + 16 + 2 * 16 * 3 + 3 + 16)
    tp.train(tuned, Noise(), 3, lr=1e-2, progress=False)
    for name, x in tuned.state_dict().items():
        frozen = ".adapters." in name
        assert np.array_equal(x, start[name]) == (frozen or name.startswith("head")), name       # Noise has no classes
        if frozen:
            path, _, rest = name.removeprefix("AdapterFusion/").partition(".adapters.")
            n, _, at = rest.partition(".")
            assert np.array_equal(x, states[int(n)][f"BottleneckAdapter/{path}.{at}"])
    logits = tuned(tokens).data
    assert tuned.detach() is model and frozen_bytes(model) == before
    assert np.array_equal(tuned.reattach()(tokens).data, logits)
    tuned.detach()
    for t, s in zip((a, b), states, strict=True):                                   # and the adapters are still their own
        assert all(np.array_equal(x, s[n]) for n, x in t.reattach().state_dict().items())
        assert all(p.requires_grad for p in t.trainable_parameters()) and len(t.trainable_parameters()) == 8
        t.detach()


def test_it_learns_to_use_the_adapter_that_helps(gpt, tokens):
    """Of two adapters one makes the targets likely. Fusion trains neither, and becomes better than that one alone."""
    model, task = gpt(np.float32), Noise()
    helpful, harmful = adapters(model, A, B, size=0.05)
    data = task.batch("train", 8, np.random.default_rng(0))
    task.batch = lambda split, size, rng: data
    tp.train(helpful.reattach(), task, 60, lr=2e-2, progress=False)
    good = task.loss(helpful, data).item()
    helpful.detach()
    tuned = tp.fuse([helpful, harmful])
    start = task.loss(tuned, data).item()
    tp.train(tuned, task, 60, lr=2e-2, progress=False)
    assert task.loss(tuned, data).item() < good < start


def test_generates_with_and_without_cache(gpt, tokens):
    tuned = fused(gpt(), A, B)
    one, two = (tuned.generate(tokens, 8, use_cache=cached) for cached in (True, False))
    assert np.array_equal(one, two)


def test_another_method_beside_it(gpt, tokens):
    tuned = fused(gpt(), A, B)
    logits = tuned(tokens).data
    tuned.add(tp.LoRA(rank=2, targets=("down", "query")))
    assert np.array_equal(tuned(tokens).data, logits) and set(tuned.parts) == {"AdapterFusion", "LoRA"}
    move(tuned, np.random.default_rng(1))
    assert_gradients(tuned, tokens[:2, :4])


def test_its_learning_rate(gpt):
    assert tp.fuse(adapters(gpt(), A, B)).learning_rate == 5e-3


def test_it_does_not_merge(gpt):
    with pytest.raises(tp.MethodError, match="has no `merge`; keep the method attached"): fused(gpt(), A, B).merge()


# -- files ---------------------------------------------------------------------------------------
CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np, tinypeft as tp
from tests.conftest import make_gpt
tuned = tp.load_adapter(make_gpt(np.float32), sys.argv[2])
np.savez(sys.argv[2] + "/out.npz", logits=tuned(np.load(sys.argv[2] + "/tokens.npy")).data,
         trained=[p.size for p in tuned.trainable_parameters()])
"""


def test_saved_with_its_adapters_and_loaded_in_a_fresh_process(gpt, tokens, tmp_path):
    tuned = fused(gpt(np.float32), A, C, regularization=0.5, head=2)
    tuned.save(tmp_path)
    np.save(tmp_path / "tokens.npy", tokens)
    root = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-c", CHILD, root, str(tmp_path)], check=True)
    out = np.load(tmp_path / "out.npz")
    assert np.array_equal(out["logits"], tuned(tokens).data) and out["trained"].tolist() == [256] * 6 + [32, 2]
    loaded = tp.load_adapter(gpt(np.float32), tmp_path)
    assert loaded.method == tuned.method == tp.AdapterFusion((A, C), 0.5)
    with pytest.raises(tp.MethodError, match="PEFT has no counterpart"): tuned.save(tmp_path / "peft", "peft")


@pytest.mark.parametrize("fields, words", [
    ({"adapters": []}, "adapters must be a tuple of BottleneckAdapters"),
    ({"adapters": [3]}, "BottleneckAdapter: expected an object of fields, got 3"), ({"adapters": 3}, "adapters must be"),
    ({"adapters": [{"bottleneck": 0}]}, "bottleneck must be a positive integer"),
    ({"adapters": [{"rank": 3}]}, "no field 'rank'"), ({"adapters": [{"bottleneck": 4}]}, "norms=True"),
    ({}, "adapters must be"),
    ({"adapters": [{"bottleneck": 40, "norms": False}]}, "does not narrow"),
    ({"adapters": [{"bottleneck": 4, "norms": False}] * 3}, "missing")], ids=str)
def test_damaged_files_are_refused(fields, words, gpt, tmp_path):
    from tinypeft.files import load_arrays
    model = gpt(np.float32)
    fused(model, A, B).save(tmp_path)
    model.attachment.take_off(model)
    arrays, meta = load_arrays(tmp_path / "adapter.safetensors")
    meta["parts"]["AdapterFusion"]["fields"] = fields
    save_arrays(tmp_path / "adapter.safetensors", arrays, meta)
    with pytest.raises((ValueError, KeyError), match=words): tp.load_adapter(model, tmp_path)
    assert model.attached is None


def test_adapters_from_folders_and_copies_of_the_base(gpt, tokens, tmp_path):
    model, other = gpt(np.float32), gpt(np.float32)
    a, b = adapters(model, A, B)
    expected = tp.fuse([a, b])(tokens).data
    model.attachment.take_off(model)
    a.reattach().save(tmp_path)
    for given in ([tmp_path, b], [str(tmp_path), b]):
        got = tp.fuse(given, model=other)
        assert got.model is other and np.array_equal(got(tokens).data, expected)
        got.detach()
    assert a.active and tp.fuse([a, b]).active and not a.active


# -- refusals ------------------------------------------------------------------------------------
@pytest.mark.parametrize("method, words", [
    (tp.BottleneckAdapter(4, placement="pfeiffer"), "an adapter with norms=True trains the norms"),
    (HOULSBY, "must have the same placement, got pfeiffer, houlsby"), (tp.LoRA(), "expected a BottleneckAdapter, got LoRA"),
    (tp.ParallelAdapter(4), "expected a BottleneckAdapter, got ParallelAdapter")], ids=str)
def test_other_adapters_are_refused_and_all_is_left_as_it_was(method, words, gpt, tokens):
    model = gpt()
    (a,) = adapters(model, A)
    b = tp.attach(model, method)
    logits = b(tokens).data
    with pytest.raises(tp.MethodError, match=words): tp.fuse([a, b])
    assert b.active and np.array_equal(b(tokens).data, logits)


def test_what_is_no_adapter_or_of_another_base_is_refused(gpt, tmp_path):
    model, other = gpt(), make_gpt(rng=1)
    (a,), (b,) = adapters(model, A), adapters(other, B)
    with pytest.raises(tp.MethodError, match="fuse: .* is on a base with other weights"): tp.fuse([a, b])
    with pytest.raises(TypeError, match="fuse: expected PeftModels or folders, got a GPT"): tp.fuse([a, model])
    with pytest.raises(tp.MethodError, match="fuse: model= must be the base"): tp.fuse([])
    with pytest.raises(tp.MethodError, match="adapters must be a tuple"): tp.fuse([], model=model)
    with pytest.raises(tp.MethodError, match="regularization must be a non-negative"): tp.fuse([a], regularization=-1)
    with pytest.raises(tp.MethodError, match="adapters must be a tuple of BottleneckAdapters"): tp.AdapterFusion()
    assert model.attached is None and other.attached is None


def test_an_adapter_that_is_off_is_refused_by_name(gpt, tokens):
    model = gpt()
    (a,) = adapters(model, A)
    b = tp.attach(model, B)
    logits = b(tokens).data
    b.detach("BottleneckAdapter")
    with pytest.raises(tp.MethodError, match=r"fuse: .*, BottleneckAdapter\(bottleneck=3.*\), is switched off; reattach"):
        tp.fuse([a, b])
    assert b.active and np.array_equal(b.reattach("BottleneckAdapter")(tokens).data, logits)


def test_a_fusion_that_fails_leaves_no_fusion(gpt, tokens, monkeypatch):
    model = gpt()
    (a,) = adapters(model, A)
    b = tp.attach(model, B)
    logits = b(tokens).data
    def stop(*_): raise KeyboardInterrupt
    monkeypatch.setattr(tp.PeftModel, "load_state_dict", stop)
    with pytest.raises(KeyboardInterrupt): tp.fuse([a, b])
    assert b.active and np.array_equal(b(tokens).data, logits)
