"""DoRA: its start, the gradient that it has by design, lengths and directions, its merge, its refusals, and PEFT's numbers."""
import numpy as np
import pytest

import tinypeft as tp
from tests.families import make
from tests.oracles import assert_close
from tests.oracles import relative_error as error
from tests.protocol import assert_gradients, assert_leaves_base_alone, assert_saves, hold_norm, learned, shift
from tests.toys import Noise
from tinypeft.engine import functional as F
from tinypeft.peft import plain
from tinypeft.peft.changed import ChangedLinear
from tinypeft.peft.dora import DoRALinear
from tinypeft.peft.lora import LoRALinear

ALL = tp.DoRA(rank=3, alpha=4, targets="all")
QUERY = "blocks.0.attention.query"


# -- the equation --------------------------------------------------------------------------------
def test_a_fresh_dora_is_the_identity_bit_for_bit(gpt, tokens):
    for dtype in (np.float32, np.float64):
        model = gpt(dtype)
        before = model(tokens).data
        after = tp.attach(model, tp.DoRA(targets="all"))(tokens).data
        assert after.dtype == dtype and np.array_equal(before, after)


def test_lengths_are_m_and_directions_those_of_w0_and_the_lora(gpt, tokens):
    tuned = learned(gpt(), ALL)
    for layer in tuned.wrappers.values():
        W = layer.dense_weight()
        assert_close(W, plain.dora(layer), 1e-14)
        V = layer.base.weight.data + 4 / 3 * layer.B.data @ layer.A.data
        assert_close(np.linalg.norm(W, axis=1), np.abs(layer.m.data), 1e-12)
        assert_close(W / layer.m.data[:, None], V / np.linalg.norm(V, axis=1, keepdims=True), 1e-12)
        x = np.random.default_rng(0).standard_normal((5, layer.d_in))
        assert_close(layer(tp.Tensor(x)), x @ W.T + layer.base.bias.data, 1e-12)       # the bias is not scaled


def test_gradients_with_the_norm_held_numerical(gpt, tokens):
    """Without that, finite differences see the norm move: section 4.3 of the paper leaves that part of the gradient out."""
    tuned = learned(gpt(), ALL)
    assert len(tuned.trainable_parameters()) == 3 * 12
    with pytest.raises(AssertionError): assert_gradients(tuned, tokens)
    for layer in tuned.wrappers.values(): hold_norm(layer)
    assert_gradients(tuned, tokens)


def test_the_general_forward_pass_agrees_and_has_the_same_gradients(gpt):
    """y = base(x) + change() x, which forms ΔW, as `ChangedLinear` computes it; the norm is a constant there, too."""
    layer = learned(gpt(), ALL).wrappers[QUERY]
    x, results = np.random.default_rng(0).standard_normal((5, 16)), []
    for forward in (DoRALinear.forward, ChangedLinear.forward):
        for p in (layer.A, layer.B, layer.m): p.grad = None
        y = forward(layer, tp.Tensor(x))
        (y * np.random.default_rng(1).standard_normal(y.shape)).sum().backward()
        results.append([y.data, layer.A.grad, layer.B.grad, layer.m.grad])
    for ours, general in zip(*results, strict=True): assert_close(ours, general, 1e-12)


def test_dropout_is_on_all_that_is_learned(gpt, tokens):
    """y = W₀x + (m/‖V‖ − 1) W₀z + m/‖V‖ s B A z, as in the authors' code and in PEFT."""
    model = gpt()
    plain, tuned = model(tokens).data, learned(model, tp.DoRA(rank=3, dropout=0.5))
    quiet = tuned(tokens).data
    layer = tuned.wrappers[QUERY]
    x = np.random.default_rng(0).standard_normal((4, 16))
    tuned.train()
    layer.dropout.rng = np.random.default_rng(5)
    dropped = F.dropout(tp.Tensor(x), 0.5, np.random.default_rng(5)).data
    W0, b, g = layer.base.weight.data, layer.base.bias.data, layer.m.data / layer.norm()
    want = x @ W0.T + b + (g - 1) * (dropped @ W0.T) + g * layer.scale * (dropped @ layer.A.data.T @ layer.B.data.T)
    assert_close(layer(tp.Tensor(x)), want, 1e-12)
    assert np.array_equal(tuned.eval()(tokens).data, quiet) and not np.array_equal(quiet, plain)


def test_a_row_of_zeros_stays_zero(gpt, tokens):
    """It has no direction: PEFT divides by 0 there."""
    model = gpt(np.float32)
    model.get(QUERY).weight.data[2] = 0
    before = model(tokens).data
    tuned = tp.attach(model, tp.DoRA(rank=2))
    assert np.array_equal(tuned(tokens).data, before)
    history = tp.train(tuned, Noise(), 3, lr=1e-2)
    assert np.isfinite(history.loss).all() and not tuned.wrappers[QUERY].dense_weight()[2].any()


def test_the_norm_is_computed_once_while_it_generates(gpt, tokens, monkeypatch):
    tuned, calls, norm = learned(gpt(), tp.DoRA(rank=2)), [], DoRALinear.norm
    monkeypatch.setattr(DoRALinear, "norm", lambda self: calls.append(self) or norm(self))
    assert np.array_equal(tuned.generate(tokens, 5, use_cache=False), tuned.merge().generate(tokens, 5, use_cache=False))
    calls.clear()
    tuned.generate(tokens, 5)
    assert len(calls) == len(tuned.wrappers)


def test_count_is_the_formula(gpt):
    summary = tp.attach(gpt(), tp.DoRA(rank=3)).summary()
    assert summary.trained == summary.stored == 2 * 2 * (3 * (16 + 16) + 16)


# -- the promises of every method ------------------------------------------------------------------
def test_the_base_stays_as_it_is(gpt, tokens):
    assert_leaves_base_alone(gpt(), tp.DoRA(rank=2), tokens)


def test_saved_and_loaded_bit_exact(gpt, tokens, tmp_path):
    assert_saves(gpt, [tp.DoRA(rank=2, targets="all", rank_pattern={"up": 4}, dropout=0.1),
                       tp.DoRA(rank_stabilized=True, init="gaussian")], tokens, tmp_path)


def test_merged_is_wrapped_and_beside_another_method(gpt, tokens):
    tuned = learned(gpt(), ALL)
    assert_close(tuned.merge()(tokens), tuned(tokens), 1e-12)
    for outer in (tp.LoRA(2, targets="all"), tp.IA3(), tp.FullFineTuning(("attention",))):
        tuned = tp.attach(gpt(), {"dora": ALL, "outer": outer}, rng=0)
        for p in tuned.trainable_parameters(): p.data += 0.1 * np.random.default_rng(0).standard_normal(p.shape)
        assert_close(tuned.merge()(tokens), tuned(tokens), 1e-11)
        first = tuned.merge("dora")
        assert_close(first(tokens), tuned(tokens), 1e-11)


def test_beside_a_trained_weight_its_gradient_goes_through(gpt, tokens):
    tuned = tp.attach(gpt(), ALL, tp.FullFineTuning(("query", "up")), rng=0)
    for p in tuned.trainable_parameters(): p.data += 0.1 * np.random.default_rng(0).standard_normal(p.shape)
    for layer in tuned.parts["DoRA"].wrappers.values(): hold_norm(layer)
    assert_gradients(tuned, tokens[:2, :4], kinks=True)


def test_it_reads_the_layer_itself_so_it_is_named_first(gpt):
    with pytest.raises(tp.MethodError, match="DoRA works on the layer .* itself, which LoRA changes before it; name DoRA"):
        tp.attach(gpt(), tp.LoRA(2), tp.DoRA(2))
    assert tp.attach(gpt(), tp.DoRA(2), tp.LoRA(2)).active


def test_what_holds_low_rank_changes_only_refuses_it(gpt, tmp_path):
    tuned = learned(gpt(), tp.DoRA(2))
    with pytest.raises(tp.MethodError, match=r"combine: DoRA\(rank=2\) is not a LoRA, AdaLoRA,"): tp.combine({tuned: 1})
    with pytest.raises(tp.MethodError, match="ranks: .* does not change weights by a product B A"): tuned.ranks()
    with pytest.raises(tp.MethodError, match="loftq: expected a LoRA"): tp.loftq(gpt(np.float32), tp.DoRA(2), tp.NF4())
    with pytest.raises(tp.MethodError, match="rank 17 exceeds 16"): tp.attach(gpt(), tp.DoRA(rank=17))

    class Other(tp.DoRA):
        def adapted(self, layer, A, scale, rng): return LoRALinear(layer, A, scale, self.dropout, rng)
    with pytest.raises(tp.MethodError, match="save: a LoRALinear is not m V x/‖V‖"):
        tp.attach(gpt(), Other(2)).save(tmp_path, "peft")


def test_rows_of_one_batch_are_those_of_each_alone(gpt, tokens):
    model = gpt()
    a = learned(model, ALL)
    want = a(tokens).data
    a.detach()
    b = learned(model, tp.LoRA(2))
    other = b(tokens).data
    b.detach()
    got = tp.mixed_batch(model, {"a": a, "b": b}, tokens, ["a", "b", "a"]).data
    assert_close(got, np.stack([want[0], other[1], want[2]]), 1e-12)


# -- PEFT ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", [
    tp.DoRA(rank=4, alpha=8, targets=("query", "key", "value", "output", "up", "down")),
    tp.DoRA(rank=4, alpha=8, rank_stabilized=True),
    tp.DoRA(rank=2, alpha=3, targets=("query", "up"), rank_pattern={"up": 5}, alpha_pattern={"blocks.1.mlp.up": 1})], ids=str)
def test_logits_gradients_20_steps_of_adamw_and_the_merge_equal_pefts_numerical(method, gpt, tokens):
    peft = pytest.importorskip("peft")
    import torch

    from tests.oracles import peft_lora
    tuned = learned(gpt(), method)
    theirs = peft_lora.peft_model(tuned, peft.LoraConfig(
        r=method.rank, lora_alpha=method.alpha, target_modules=list(method.targets), use_dora=True,
        use_rslora=method.rank_stabilized, rank_pattern=method.rank_pattern or {}, alpha_pattern=method.alpha_pattern or {}))
    assert_close(tuned(tokens), theirs(tokens).logits, 1e-12)

    x, y = shift(tokens)
    F.cross_entropy(tuned(x), y).backward()
    theirs.base_model(x, y).loss.backward()
    for path, name, p, their_p in peft_lora.pairs(tuned, theirs):
        assert_close(p.grad, their_p.grad.reshape(p.shape), 1e-12, f"{path}.{name}")
        p.grad = their_p.grad = None

    ours = tp.train(tuned, Noise(), 20, lr=1e-2, schedule_kind="constant", warmup=0, clip=None, weight_decay=0.1)
    assert_close(ours.loss, peft_lora.train(theirs, Noise(), 20, 8, lr=1e-2, weight_decay=0.1), 1e-10)
    for path, name, p, their_p in peft_lora.pairs(tuned, theirs):
        assert_close(p, their_p.reshape(p.shape), 1e-8, f"{path}.{name}")
    with torch.no_grad(): merged = theirs.merge_and_unload()
    assert_close(tuned.merge()(tokens), merged(tokens).logits, 1e-8)


FAMILIES = ["GPT", "Llama", "Qwen3", "Gemma"]


@pytest.mark.parametrize("family", FAMILIES)
def test_folders_go_both_ways_numerical(family, tokens, tmp_path):
    peft = pytest.importorskip("peft")
    pytest.importorskip("transformers")
    from tests.oracles import peft_folders as oracle
    tokens, layers = oracle.TOKENS, ["c_attn", "c_fc"] if family == "GPT" else ["q_proj", "v_proj", "down_proj"]
    tuned = learned(make(family), tp.DoRA(rank=2, alpha=3, targets=("query", "value", "up"), rank_pattern={"value": 3}))
    tuned.save(tmp_path / "one", format="peft")
    theirs = oracle.loaded(oracle.base(family), tmp_path / "one")
    assert error(oracle.logits(theirs, tokens), tuned(tokens)) <= 1e-14
    again = tp.load_adapter(make(family), tmp_path / "one")
    assert type(again.method) is tp.DoRA and error(again(tokens), tuned(tokens)) <= 1e-14
    assert again.state_dict().keys() == tuned.state_dict().keys()
    again.save(tmp_path / "two", format="peft")
    assert oracle.files(tmp_path / "one") == oracle.files(tmp_path / "two")

    theirs = oracle.trained(oracle.base(family), peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=layers, use_dora=True, task_type="CAUSAL_LM"), tokens)
    theirs.save_pretrained(tmp_path / "peft")
    tuned = tp.load_adapter(make(family), tmp_path / "peft")
    assert error(tuned(tokens), oracle.logits(theirs, tokens)) <= 1e-14
    tuned.save(tmp_path / "back", format="peft")
    assert error(oracle.logits(oracle.loaded(oracle.base(family), tmp_path / "back"), tokens), tuned(tokens)) <= 1e-14


def test_a_part_of_c_attn_whose_lengths_alone_changed_is_kept(tmp_path):
    """PEFT trains one m for query, key and value: key's may move while its rows of B stay 0."""
    pytest.importorskip("transformers")
    from tests.oracles import peft_folders as oracle
    from tinypeft.interop import read_safetensors, write_safetensors
    tuned = learned(make("GPT"), tp.DoRA(rank=2))
    tuned.save(tmp_path, format="peft")
    arrays = {name: np.array(a) for name, a in read_safetensors(tmp_path / oracle.TENSORS).items()}
    name = "base_model.model.transformer.h.0.attn.c_attn.lora_magnitude_vector"
    arrays[name][16:32] *= 1.5
    write_safetensors(tmp_path / oracle.TENSORS, arrays, {"format": "pt"})
    theirs = oracle.loaded(oracle.base("GPT"), tmp_path)
    again = tp.load_adapter(make("GPT"), tmp_path)
    assert error(again(oracle.TOKENS), oracle.logits(theirs, oracle.TOKENS)) <= 1e-14
    assert {*again.wrappers} == {*tuned.wrappers, "blocks.0.attention.key"}


def test_on_a_quantized_base_it_is_pefts_on_the_decoded_weights_numerical(gpt, tokens):
    peft = pytest.importorskip("peft")
    from tests.oracles import peft_lora
    decoded, quantized = gpt(), tp.quantize(gpt(), tp.NF4(block_size=16))
    for path in ("query", "value"):
        for n in range(2): decoded.get(f"blocks.{n}.attention.{path}").weight.data = (
            quantized.get(f"blocks.{n}.attention.{path}").dense_weight().astype(float))
    quantized = tp.quantize(gpt(), tp.NF4(block_size=16), targets=("query", "value"))
    ours, dense = learned(quantized, tp.DoRA(rank=2)), learned(decoded, tp.DoRA(rank=2))
    for path, layer in dense.wrappers.items(): layer.m.assign(ours.wrappers[path].m.data)
    theirs = peft_lora.peft_model(dense, peft.LoraConfig(r=2, lora_alpha=16, target_modules=["query", "value"], use_dora=True))
    assert_close(ours(tokens), theirs(tokens).logits, 1e-12)
    got = tp.train(ours, Noise(), 10, lr=1e-2, schedule_kind="constant", warmup=0, clip=None, weight_decay=0.0)
    assert_close(got.loss, peft_lora.train(theirs, Noise(), 10, 8, lr=1e-2), 1e-9)
    assert_close(ours.merge()(tokens), ours(tokens), 1e-11)
