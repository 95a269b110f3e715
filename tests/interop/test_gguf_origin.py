"""A GGUF file stays what it was: what was read is written again, and what is not known stops only what needs it."""
import copy
import struct
import time
import warnings

import numpy as np
import pytest

import tinypeft as tp
from tests.models.test_gemma import gemma
from tests.models.test_llama import llama
from tests.oracles.hf_tokenizers import smollm2
from tests.stress.attacks import gguf_content, save_gguf, tensor
from tests.stress.attacks import head as start_of_file
from tinypeft.interop import write_gguf
from tinypeft.interop.gguf_bytes import file_bytes
from tinypeft.interop.gguf_reader import GGUFError, read_gguf
from tinypeft.interop.gguf_tokenizer import KEY
from tinypeft.interop.llama import from_gguf

SIZES = {"vocab_size": 300, "d_model": 256, "d_mlp": 256, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_head": 64}
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['role'] }} ✓\n{% endfor %}"
# types of numbers that this package would not choose, and fields that it does not know
FIELDS = {"general.name": "A chat", "general.license": "apache-2.0", "general.tags": ["chat", "ü"],
          "general.count": np.uint8(3), "general.big": np.uint64(1 << 63), "general.small": np.int8(-3),
          "general.precise": np.float64(0.1), "general.numbers": np.arange(5, dtype=np.uint16),
          "general.sampling.temp": np.float32(0.2), "general.file_type": np.uint32(99),
          "quantize.imatrix.file": "a.dat", "llama.attention.causal": True, "llama.unheard_of": 5,
          "tokenizer.chat_template": TEMPLATE, f"{KEY}padding_token_id": np.uint32(269), f"{KEY}unknown_token_id": np.uint32(0),
          f"{KEY}add_space_prefix": False, "tokenizer.chat_template.tool_use": "{{ tools }}"}


def chat(scheme="Q4_K_M", **sizes):
    model = llama(dtype=np.float32, **SIZES | sizes)
    model.tokenizer = tp.text.BPETokenizer.train("low lower lowest newer wide naïve " * 3, 270, split="smollm")
    return tp.quantize(model, tp.GGUF(scheme)) if scheme else model


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """A chat model with fields and types of tensors that `write_gguf` does not choose by itself."""
    write_gguf(path := tmp_path_factory.mktemp("content") / "chat.gguf", chat())
    fields, tensors = gguf_content(path)
    E = np.random.default_rng(0).standard_normal((300, 256)).astype(np.float32)
    for name, scheme in (("token_embd.weight", tp.GGUF("Q6_K")), ("blk.1.ffn_up.weight", tp.GGUF("Q8_0"))):
        W = E[:tensors[name][1][0]]
        tensors[name] = {"Q6_K": 14, "Q8_0": 8}[scheme.name], W.shape, file_bytes(scheme.quantize(W)).reshape(-1)
    norm = np.arange(1, 257) / 128
    tensors["output_norm.weight"] = 1, (256,), norm.astype("<f2").view(np.uint8)                               # F16
    tensors["blk.0.attn_norm.weight"] = 30, (256,), (norm.astype("<f4").view("<u4") >> 16).astype("<u2").view(np.uint8)
    tensors["blk.0.attn_k.weight"] = 1, (128, 256), E[:128].astype("<f2").reshape(-1).view(np.uint8)
    save_gguf(path, fields | FIELDS, dict(reversed(tensors.items())))
    return path.read_bytes()


@pytest.fixture
def file(content, tmp_path):
    (path := tmp_path / "chat.gguf").write_bytes(content)
    return path


def test_an_unchanged_model_gives_the_same_bytes(file, tmp_path):
    """All of the file: fields in their order and with their types, and the codes of every tensor."""
    model = from_gguf(file, quantized=True)
    write_gguf(tmp_path / "again.gguf", model)
    assert (tmp_path / "again.gguf").read_bytes() == file.read_bytes()
    write_gguf(tmp_path / "copy.gguf", copy.deepcopy(model))
    assert (tmp_path / "copy.gguf").read_bytes() == file.read_bytes()
    assert type(model.token_embedding) is tp.quant.QuantizedEmbedding and model.token_embedding.weight.bits == 6


def test_the_package_gguf_reads_the_same_fields(file, tmp_path):
    gguf = pytest.importorskip("gguf")
    write_gguf(tmp_path / "again.gguf", from_gguf(file))                                                    # decoded
    one, two = gguf.GGUFReader(file), gguf.GGUFReader(tmp_path / "again.gguf")
    for name in FIELDS.keys() - {"general.file_type"}:
        assert one.fields[name].contents() == two.fields[name].contents() and one.fields[name].types == two.fields[name].types
    types = {t.name: t.tensor_type.name for t in two.tensors}
    assert types.pop("output_norm.weight") == types.pop("blk.0.attn_k.weight") == "F16"
    assert types.pop("blk.0.attn_norm.weight") == "BF16" and set(types.values()) == {"F32"}
    assert two.fields["general.file_type"].contents() == 1       # F16 is the commonest that is not F32
    for t, u in zip(one.tensors, two.tensors, strict=True):
        assert t.name == u.name
        a, b = (gguf.quants.dequantize(x.data, x.tensor_type) for x in (t, u))
        np.testing.assert_array_equal(a, b)


def test_a_merged_adapter_stays_a_chat_model(file, tmp_path):
    """Layers that were merged are F32 now; all else is as it was."""
    tuned = tp.attach(from_gguf(file, quantized=True), tp.LoRA(rank=2, targets=("query",)), rng=0)
    for p in tuned.trainable_parameters(): p.assign(p.data + np.float32(0.1))
    write_gguf(tmp_path / "merged.gguf", tuned.merge())
    before, after = read_gguf(file), read_gguf(tmp_path / "merged.gguf")
    changed = {name for name, value in before.fields.items() if not np.array_equal(after.fields[name], value)}
    assert list(before.fields) == list(after.fields) and changed == {"general.file_type"}
    assert after.fields["tokenizer.chat_template"] == TEMPLATE and after.fields["general.file_type"] == 15          # Q4_K_M
    for name in before:
        if "attn_q" in name: assert after.kind(name).name == "F32"
        else: assert after.kind(name) == before.kind(name) and np.array_equal(after.octets(name), before.octets(name))


def test_numbers_that_changed_are_rounded_to_no_type(file, tmp_path):
    model = from_gguf(file, quantized=True)
    for norm in model.final_norm, model.blocks[0].norm1: norm.weight.assign(norm.weight.data * np.float32(1.001))
    write_gguf(tmp_path / "m.gguf", model)
    after = read_gguf(tmp_path / "m.gguf")
    assert after.kind("output_norm.weight").name == after.kind("blk.0.attn_norm.weight").name == "F32"
    np.testing.assert_array_equal(after["output_norm.weight"], model.final_norm.weight.data)


def test_another_tokenizer_has_fields_of_its_own(file, tmp_path):
    model = from_gguf(file)
    model.tokenizer = tp.text.BPETokenizer.train("another text of other words " * 3, 265)
    write_gguf(tmp_path / "m.gguf", model)
    fields = read_gguf(tmp_path / "m.gguf").fields
    assert fields["general.name"] == "A chat" and not any("template" in name or "padding" in name for name in fields)
    assert from_gguf(tmp_path / "m.gguf").tokenizer == model.tokenizer
    model.tokenizer.chat_template = "{{ messages }}"
    write_gguf(tmp_path / "m.gguf", model)
    assert read_gguf(tmp_path / "m.gguf").fields["tokenizer.chat_template"] == "{{ messages }}"
    assert from_gguf(tmp_path / "m.gguf").tokenizer == model.tokenizer
    model.tokenizer = None
    write_gguf(tmp_path / "m.gguf", model)
    assert not any(name.startswith("tokenizer") for name in read_gguf(tmp_path / "m.gguf").fields)


def test_other_sizes_are_written_anew(file, tmp_path):
    """A configuration that is another one now does not keep fields of the old one."""
    model = from_gguf(file)
    model.config = type(model.config)(**vars(model.config) | {"context_length": 40})
    write_gguf(tmp_path / "m.gguf", model)
    fields = read_gguf(tmp_path / "m.gguf").fields
    assert fields["llama.context_length"] == 40 and "llama.unheard_of" not in fields and fields["general.name"] == "A chat"


def test_smollm2_comes_back_byte_for_byte(tmp_path):
    """Reading was measured at 0.5 s of the processor's time; a busy machine may take 2. Its file is 98 MB, and so is what
    memory holds of it."""
    start = time.process_time()
    model = from_gguf(smollm2(), quantized=True)
    assert time.process_time() - start < 2
    assert 95e6 < sum(a.nbytes for a in model.state_dict().values()) < 98e6 and tp.bits_per_weight(model) == 5
    write_gguf(tmp_path / "again.gguf", model)
    assert (tmp_path / "again.gguf").read_bytes() == smollm2().read_bytes()


# -- what is not known ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name, value", [("pre", "tekken"), ("model", "t5"), ("add_eos_token", True),
                                         ("eos_token_id", np.uint32(3))])
def test_an_unknown_tokenizer_is_a_warning_and_stays_in_the_file(name, value, file, tmp_path):
    expected = from_gguf(file).state_dict()
    fields, tensors = gguf_content(file)
    save_gguf(file, fields | {f"{KEY}{name}": value}, tensors)
    says = f"chat.gguf: the tokenizer is not supported: .*{name}.*; the model has no tokenizer"
    with pytest.warns(UserWarning, match=says) as caught:
        model = from_gguf(file, quantized=True)
    assert caught[0].filename == __file__ and model.tokenizer is None
    with pytest.warns(UserWarning): decoded = from_gguf(file)
    assert all(np.array_equal(a, decoded.state_dict()[name]) for name, a in expected.items())
    write_gguf(tmp_path / "again.gguf", model)
    assert read_gguf(tmp_path / "again.gguf").field_octets() == read_gguf(file).field_octets()


def test_a_gemma_is_read_without_its_tokenizer(tmp_path):
    model = gemma(dtype=np.float32, d_model=32, d_mlp=64, n_heads=4, d_head=16, query_scale=16)
    model.tokenizer = None
    write_gguf(tmp_path / "m.gguf", model)
    fields, tensors = gguf_content(tmp_path / "m.gguf")
    n = model.config.vocab_size
    fields |= {f"{KEY}model": "llama", f"{KEY}tokens": [f"t{i}" for i in range(n)], f"{KEY}scores": np.zeros(n, np.float32),
               f"{KEY}token_type": np.ones(n, np.int32), f"{KEY}eos_token_id": np.uint32(1)}
    save_gguf(tmp_path / "m.gguf", fields, tensors)
    with pytest.warns(UserWarning, match="a Gemma GGUF file does not say in which order to merge"):
        back = from_gguf(tmp_path / "m.gguf")
    write_gguf(tmp_path / "again.gguf", back)
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "m.gguf").read_bytes()


@pytest.mark.parametrize("number, name", [(16, "IQ2_XXS"), (99, "99")])
def test_a_tensor_of_an_unknown_type_stops_only_its_use(number, name, tmp_path):
    numbers = np.arange(4, dtype="<f4")
    infos = tensor("odd", (256,), number) + tensor("known", (4,), at=96)
    (path := tmp_path / "m.gguf").write_bytes((head := start_of_file(tensors=2, rest=infos)) + bytes(-len(head) % 32)
                                              + bytes(96) + numbers.tobytes() + bytes(16))
    read = read_gguf(path)
    assert np.array_equal(read["known"], numbers) and read.shape("odd") == (256,) and read.kind("odd").name == name
    for use in read.__getitem__, read.octets:
        with pytest.raises(GGUFError, match=f"m.gguf: tensor 'odd' has type {name}, which is not supported; the types are F32"):
            use("odd")


def test_a_model_names_the_tensor_whose_type_it_cannot_read(file):
    fields, tensors = gguf_content(file)
    tensors["blk.1.ffn_up.weight"] = 20, *tensors["blk.1.ffn_up.weight"][1:]
    save_gguf(file, fields, tensors)
    content = file.read_bytes()
    place = content.index(b"blk.1.ffn_up.weight") + len("blk.1.ffn_up.weight") + 4 + 16
    assert content[place:place + 4] == struct.pack("<I", 20)
    file.write_bytes(content[:place] + struct.pack("<I", 22) + content[place + 4:])
    for quantized in True, False:
        with pytest.raises(GGUFError, match="chat.gguf: tensor 'blk.1.ffn_up.weight' has type IQ2_S, which is not supported"):
            from_gguf(file, quantized)


# -- files that are not to be believed -----------------------------------------------------------------------------------
@pytest.mark.parametrize("name, says, values", [
    ("bos_token_id", "bos_token_id is .*, expected an id below 300", [300, -1, 1 << 40, "x", [1], np.arange(3)]),
    ("padding_token_id", "padding_token_id is .*, expected an id below 300", [300, -1, "x" * 10**5, 1.5, True]),
    ("eot_token_id", "eot_token_id is 300, expected an id below 300", [300]),
    ("model", "model is .*, expected a name", [3, ["gpt2"], np.arange(3)]),
    ("pre", "pre is .*, expected a name", [7, ["smollm"]]),
    ("tokens", "(tokens|types)", ["x", np.arange(300), [], ["a"] * 300, ["a"] * 10**5]),
    ("token_type", "type", [["a"] * 300, np.ones(300), np.full(300, 9, np.int32), np.ones(299, np.int32)]),
    ("merges", "(merge|vocabulary)", [np.arange(3), "a b", ["a"], ["a b"] * 2])])
def test_fields_of_the_tokenizer_that_make_no_sense(name, says, values, file):
    fields, tensors = gguf_content(file)
    for value in values:
        save_gguf(file, fields | {f"{KEY}{name}": value}, tensors)
        with pytest.raises(GGUFError, match=f"chat.gguf: the tokenizer is damaged: .*{says}") as e: from_gguf(file)
        assert len(str(e.value)) < 700


@pytest.mark.parametrize("value", ["{{ x }}" * 1_500_000, ["a", "b"], np.arange(9.0), 5, ""])
def test_a_template_is_carried_and_never_run(value, file, tmp_path):
    """10 MB, a list, numbers: nothing here looks into it."""
    fields, tensors = gguf_content(file)
    save_gguf(file, fields | {"tokenizer.chat_template": value}, tensors)
    with warnings.catch_warnings(action="error"): model = from_gguf(file, quantized=True)
    write_gguf(tmp_path / "again.gguf", model)
    assert (tmp_path / "again.gguf").read_bytes() == file.read_bytes()
