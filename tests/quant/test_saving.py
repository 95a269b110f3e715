"""quant/saving.py: every kind of model comes back, and nothing that a file says is believed."""
import copy
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import tinypeft as tp
from tests.stress.attacks import ATTRIBUTES, TENSORS, edited, layer, put
from tests.stress.files import model
from tinypeft.engine.nn import Linear
from tinypeft.files import load_arrays, save_arrays
from tinypeft.quant import load_quantized, save_quantized
from tinypeft.quant.linear import QuantizedEmbedding, QuantizedLinear
from tinypeft.quant.saving import LAYERS, restored

TOKENS = np.random.default_rng(0).integers(0, 37, (2, 7))
def nf4(dtype=np.float32): return tp.quantize(model().to(dtype), tp.NF4(block_size=16, double_quant=True))


class Own(tp.GPT):
    """A family of one's own."""


def changed(path, **attributes): return lambda m: vars(m.get(path)).update(attributes)


def quantized_head(m): m.head = QuantizedLinear(tp.NF4().quantize(np.ones((3, 16), np.float32)), None)


@pytest.mark.parametrize("spoil, says", [
    (lambda m: setattr(m, "__class__", Own), "its family is 'Own'; there are GPT, Llama, Gemma"),
    (lambda m: m.blocks.pop(), "missing .'blocks.1"), (changed("", shift=np.ones(3)), "unknown .'shift'"),
    (changed("blocks.0.norm1", eps=0.5), "blocks.0.norm1.eps is 0.5, and would be 1e-05"),
    (changed("token_embedding", scale=2.0), "token_embedding.scale is 2.0"),
    (changed("blocks.1.norm2", weight=tp.engine.nn.Parameter(np.ones(16))), "the arrays are float32 and float64"),
    (changed("blocks.0.attention.dropout", p=0.5), "dropout.p is 0.5, and would be 0.0"),
    (lambda m: vars(m).update(final_norm=tp.engine.RMSNorm(16)), "final_norm.bias"), (quantized_head, "head"),
    (changed("blocks.0.mlp.up", forward=1), "blocks.0.mlp.up: unknown field 'forward'"),
    (changed("blocks.0", norm1=tp.engine.nn.Dropout(0.0)), "norm1")])
def test_what_would_not_come_back_is_refused_before_anything_is_written(spoil, says, tmp_path):
    m = nf4()
    spoil(m)
    with pytest.raises((ValueError, KeyError), match=f"save_quantized: load_quantized could not read this model: .*{says}"):
        save_quantized(m, tmp_path / "f")
    assert not list(tmp_path.iterdir())


def test_only_models_are_saved(tmp_path):
    for other in tp.attach(nf4(), tp.LoRA(2)), nf4().blocks[0]:
        with pytest.raises(TypeError, match="save_quantized: expected a language model, got (PeftModel|Block)"):
            save_quantized(other, tmp_path / "f")


def test_a_head_comes_back_without_a_bias(tmp_path):
    m = nf4()
    m.head = Linear(16, 5, bias=False, rng=0)
    save_quantized(m, tmp_path / "f")
    loaded = load_quantized(tmp_path / "f")
    assert loaded.head.bias is None
    assert np.array_equal(loaded.class_logits(TOKENS, [7, 3]).data, m.class_logits(TOKENS, [7, 3]).data)


@pytest.fixture
def saved(tmp_path):
    save_quantized(nf4(), tmp_path / "model.safetensors")
    return tmp_path


def refused(folder, says=None):
    with pytest.raises((ValueError, KeyError), match=says) as error: load_quantized(folder / "model.safetensors")
    assert "model.safetensors" in str(error.value) and len(str(error.value)) < 1500


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_a_layer_has_the_attributes_of_its_class_and_no_others(name, saved):
    edited("quantized", put(layer, name, ATTRIBUTES[name]))(saved)
    refused(saved, "blocks.0.attention.query: ")


@pytest.mark.parametrize("name, value", [(name, value) for name, values in TENSORS.items() for value in values])
def test_a_weight_has_parts_that_fit(name, value, saved):
    edited("quantized", put(lambda meta: layer(meta)["weight"]["QTensor"], name, value))(saved)
    refused(saved)


@pytest.mark.parametrize("scheme, name, value", [
    (tp.W8A8(activations="static"), "activations", "none"), (tp.W8A8(activations="static"), "scale", None),
    (tp.LLMInt8(), "variant", "mine"), (tp.LLMInt8(), "threshold", -1), (tp.LLMInt8(), "threshold", None),
    (tp.AWQ(group_size=8), "input_scale", None)])
def test_what_a_class_cannot_compute_with_is_refused(scheme, name, value, tmp_path):
    save_quantized(tp.quantize(model(), scheme, TOKENS), tmp_path / "model.safetensors")

    def edit(arrays, meta):
        for fields in meta["layers"].values():
            if name in fields: fields[name] = value
    edited("quantized", edit)(tmp_path)
    refused(tmp_path)


def test_codes_that_stand_for_no_number_are_refused(tmp_path):
    save_quantized(tp.quantize(model(), tp.FloatFormat("E4M3")), tmp_path / "model.safetensors")
    edited("quantized", lambda arrays, meta: arrays["blocks.0.mlp.up.weight.codes"].fill(127))(tmp_path)        # E4M3's NaN
    refused(tmp_path, "a code of E4M3 stands for a number that is not finite")


def test_a_file_takes_no_more_memory_than_it_should(saved):
    """Sizes that would take 1 GiB are refused before they take it."""
    def peak(read):
        tracemalloc.start()
        read()
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top
    for sizes in {"vocab_size": 1 << 24}, {"d_model": 1 << 14}, {"n_layers": 1 << 22}, {"n_layers": 1 << 40}:
        save_quantized(nf4(), saved / "model.safetensors")
        edited("quantized", lambda arrays, meta, sizes=sizes: meta["config"].update(sizes))(saved)
        assert peak(lambda: refused(saved)) < 4 << 20


class Noisy(QuantizedLinear):
    """A layer of one's own, with an attribute that `parts` does not have."""
    def __init__(self, weight, bias):
        super().__init__(weight, bias)
        self.level, self.shift = 0.5, np.ones(3, np.float32)

    def helper(self): return None


def test_a_class_of_ones_own_keeps_its_attributes_but_not_in_place_of_its_methods(saved):
    m = nf4()
    old = m.get("blocks.1.mlp.up")
    m.blocks[1].mlp.up = Noisy(old.weight, old.bias)
    save_quantized(m, saved / "model.safetensors")
    with pytest.raises(ValueError, match=r"blocks.1.mlp.up: it is a Noisy; give its class in layers="):
        load_quantized(saved / "model.safetensors")
    noisy = load_quantized(saved / "model.safetensors", layers=[Noisy]).get("blocks.1.mlp.up")
    assert noisy.level == 0.5 and noisy.shift.tolist() == [1, 1, 1]
    for name in "helper", "forward", "no name":
        edited("quantized", lambda arrays, meta, name=name: meta["layers"]["blocks.1.mlp.up"].update({name: 1}))(saved)
        with pytest.raises(ValueError, match=f"unknown field '{name}'"):
            load_quantized(saved / "model.safetensors", layers=[Noisy])
        save_quantized(m, saved / "model.safetensors")


def test_a_model_that_was_loaded_is_saved(tmp_path):
    """It says what it was loaded by, which is no setting."""
    m = tp.quantize(tp.load_pretrained(), tp.Uniform(4), targets=("blocks.0.up",))
    assert m.source is not None
    save_quantized(m, tmp_path / "q")
    assert np.array_equal(load_quantized(tmp_path / "q")(TOKENS).data, m(TOKENS).data)


# -- a file of format 2, of a GPT with one block in NF4; commit d2a105a8 wrote it and these logits of its first three tokens
OLD = Path(__file__).parents[1] / "files" / "stored" / "quantized_format_2.safetensors"
OLD_LOGITS = [[1.107327, 0.166083, -0.017414], [0.236200, 0.864165, -0.428596], [-0.117573, -0.398685, 1.096341]]


def test_a_file_of_format_2_is_read_and_saved_anew(tmp_path):
    for path in OLD, tmp_path / "new":
        loaded = load_quantized(path)
        np.testing.assert_allclose(loaded(np.arange(3)[None]).data[0, :, :3], OLD_LOGITS, atol=1e-5)
        assert load_arrays(path)[1]["format"] == (2 if path == OLD else 3)
        save_quantized(loaded, tmp_path / "new")


@pytest.mark.parametrize("where, value", [
    ("index", {}), ("index", []), ("index", {"uint8": 3}), ("index", {"uint8": {"x": [2**62]}}),
    ("index", {"uint8": {"x": [-1]}}), ("kinds", []), ("kinds", 3),
    ("layers", {"blocks.0.mlp.up": 99}), ("layers", {"blocks.0.mlp.up": "x"}), ("layers", [])])
def test_nothing_that_a_file_of_format_2_says_is_believed(where, value, tmp_path):
    shutil.copy(OLD, tmp_path / "model.safetensors")
    edited("quantized", put(lambda meta: meta, where, value))(tmp_path)
    refused(tmp_path)


def test_every_class_says_which_parts_it_has():
    for cls in LAYERS:
        if cls is QuantizedEmbedding: assert cls.parts.keys() == vars(cls(tp.GGUF("Q8_0").quantize(np.ones((2, 32))))).keys()
        else:                         assert {"weight", "bias"} <= cls.parts.keys()


@pytest.mark.parametrize("kind", ["Parameter", "ndarray"])
def test_an_array_that_a_file_announces_must_be_in_it(kind):
    with pytest.raises(KeyError, match="there is no array bias"): restored({"array": kind}, "bias", {"weight": np.ones(2)})


@pytest.mark.parametrize("kind", ["bytes", "characters"])
def test_the_tokenizer_comes_back(kind, tmp_path):
    m = tp.load_pretrained()
    if kind == "characters":
        vocab = {f"<0x{b:02X}>": b for b in range(256)} | {"▁": 256, "a": 257, "▁a": 258}
        m.tokenizer = tp.text.SentencePieceTokenizer([("▁", "a")], vocab, 259, {"</s>": 259})
    m.tokenizer = copy.copy(m.tokenizer)
    m.tokenizer.chat_template = "{{ messages }}"
    save_quantized(tp.quantize(m, tp.NF4()), tmp_path / "q")
    assert load_quantized(tmp_path / "q").tokenizer == m.tokenizer


@pytest.mark.parametrize("change, says", [
    ({"format": "other"}, "the tokenizer: its format is 'other'; there are tinypeft-bpe"), ({"format": [1]}, "its format is"),
    ({"vocab": {"a": 0}}, "the tokenizer: 208 bytes that text needs are no tokens"), ({"merges": [["a"]]}, "the tokenizer: "),
    ({"merges": 3}, "merges must be a list"),
    ({"special": {"<|endoftext|>": 1023, "x": 5000}}, "5,001 ids, the model only 1,024"),
    ({"chat_template": 3}, "chat_template must be a string")])
def test_a_tokenizer_in_a_file_is_not_believed(change, says, tmp_path):
    save_quantized(tp.quantize(tp.load_pretrained(), tp.NF4()), tmp_path / "q")
    arrays, meta = load_arrays(tmp_path / "q")
    save_arrays(tmp_path / "q", arrays, meta | {"tokenizer": meta["tokenizer"] | change})
    with pytest.raises(ValueError, match=says): load_quantized(tmp_path / "q")
