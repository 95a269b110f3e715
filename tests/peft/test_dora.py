"""DoRA: lengths and directions, the gradient that it has by design, PEFT's folders. Its promises are in test_methods.py."""
import numpy as np
import pytest

import tinypeft as tp
from tests.families import make
from tests.oracles import assert_close
from tests.oracles import relative_error as error
from tests.protocol import assert_gradients, hold_norm, learned
from tests.toys import Noise
from tinypeft.peft import plain
from tinypeft.peft.changed import ChangedLinear
from tinypeft.peft.dora import DoRALinear
from tinypeft.peft.lora import LoRALinear

ALL = tp.DoRA(rank=3, alpha=4, targets="all")
QUERY = "blocks.0.attention.query"


# -- the equation --------------------------------------------------------------------------------
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


# -- beside others ---------------------------------------------------------------------------------
def test_beside_a_trained_weight_its_gradient_goes_through(gpt, tokens):
    tuned = tp.attach(gpt(), ALL, tp.FullFineTuning(("query", "up")), rng=0)
    for p in tuned.trainable_parameters(): p.data += 0.1 * np.random.default_rng(0).standard_normal(p.shape)
    for layer in tuned.parts["DoRA"].wrappers.values(): hold_norm(layer)
    assert_gradients(tuned, tokens[:2, :4], kinks=True)


def test_pefts_folder_of_another_layer_is_refused(gpt, tmp_path):
    class Other(tp.DoRA):
        def adapted(self, layer, A, scale, rng): return LoRALinear(layer, A, scale, self.dropout, rng)
    with pytest.raises(tp.MethodError, match="save: a LoRALinear on .* may do more than a DoRALinear"):
        tp.attach(gpt(), Other(2)).save(tmp_path, "peft")


# -- PEFT ------------------------------------------------------------------------------------------
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
    for path, layer in dense.wrappers.items(): layer.m.assign(ours.wrappers[path].m.data.copy())
    theirs = peft_lora.peft_model(dense, peft.LoraConfig(r=2, lora_alpha=16, target_modules=["query", "value"], use_dora=True))
    assert_close(ours(tokens), theirs(tokens).logits, 1e-12)
    got = tp.train(ours, Noise(), 10, lr=1e-2, schedule_kind="constant", warmup=0, clip=None, weight_decay=0.0)
    assert_close(got.loss, peft_lora.train(theirs, Noise(), 10, 8, lr=1e-2), 1e-9)
    assert_close(ours.merge()(tokens), ours(tokens), 1e-11)
