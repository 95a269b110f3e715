"""gguf_adapter.py: the file of an adapter is the difference of two files of models, in names of the package gguf."""
import numpy as np
import pytest

import tinypeft as tp
from tests.interop.test_gguf_architectures import made
from tinypeft.interop import write_gguf, write_gguf_adapter
from tinypeft.interop.gguf_reader import GGUFError, read_gguf
from tinypeft.interop.llama import from_gguf

KINDS = ["llama", "qwen2", "qwen3", "gemma3", "gpt2"]
METHODS = {
    "LoRA": [tp.LoRA(rank=4)],
    "every layer, other ranks and scales": [tp.LoRA(rank=3, targets="all", rank_pattern={"value": 5, "up": 2},
                                                    alpha_pattern={"query": 7.0})],
    "stabilized": [tp.LoRA(rank=3, rank_stabilized=True)], "one block": [tp.LoRA(rank=2, targets=("blocks.1.key",))],
    "a start": [tp.LoRA(rank=2, init="pissa")], "DyLoRA": [tp.DyLoRA(rank=4)], "AdaLoRA": [tp.AdaLoRA(4, 2)],
    "two methods": [{"a": tp.LoRA(rank=2, targets="all"), "b": tp.DyLoRA(rank=3)}]}


def spread(tuned, rng):
    for p in tuned.trainable_parameters(): p.assign((p.data + rng.normal(0, 0.1, p.shape)).astype(p.dtype))
    for part in tuned.parts.values():
        if isinstance(part.method, tp.DyLoRA): part.method.set_rank(part.wrappers, 2)
    return tuned


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_a_pair_is_the_difference_of_two_files(kind, name, tmp_path, rng):
    """W + (α/r) B A of each tensor of the base's file is that of the merged model's; what has no pair is the same."""
    base = made(kind)
    write_gguf(tmp_path / "base.gguf", base)
    tuned = spread(tp.attach(base, *METHODS[name], rng=0), rng)
    write_gguf_adapter(tmp_path / "adapter.gguf", tuned)
    write_gguf(tmp_path / "merged.gguf", tuned.merge())
    before, pairs, after = (read_gguf(tmp_path / f"{name}.gguf") for name in ("base", "adapter", "merged"))
    assert pairs and {key.rpartition(".")[0] for key in pairs} <= set(before) and len(pairs) % 2 == 0
    for key in before:
        expected = before[key]
        if f"{key}.lora_a" in pairs:
            A, B = pairs[f"{key}.lora_a"], pairs[f"{key}.lora_b"]
            expected = expected + pairs.fields["adapter.lora.alpha"] / len(A) * (B @ A)
            assert not np.allclose(after[key], before[key], rtol=0, atol=1e-3)
        np.testing.assert_allclose(after[key], expected, rtol=0, atol=1e-5)               # one product of float32


def test_a_plain_lora_is_written_as_it_is(tmp_path, rng):
    tuned = spread(tp.attach(made("qwen3"), tp.LoRA(rank=4, alpha=8), rng=0), rng)
    write_gguf_adapter(tmp_path / "a.gguf", tuned)
    file, layer = read_gguf(tmp_path / "a.gguf"), tuned.wrappers["blocks.1.attention.value"]
    assert np.array_equal(file["blk.1.attn_v.weight.lora_a"], layer.A.data)
    assert np.array_equal(file["blk.1.attn_v.weight.lora_b"], 2 * layer.B.data) and file.fields["adapter.lora.alpha"] == 4
    assert list(file)[:2] == ["blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"] and len(file) == 12


def test_a_base_of_codes_has_the_same_adapter(tmp_path, rng):
    files = []
    for base in made("llama"), tp.quantize(made("llama"), tp.GGUF("Q8_0")):
        write_gguf_adapter(tmp_path / "a.gguf", spread(tp.attach(base, tp.LoRA(rank=2), rng=0), np.random.default_rng(0)))
        files.append((tmp_path / "a.gguf").read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_fields_are_those_of_the_package_gguf(kind, tmp_path):
    gguf = pytest.importorskip("gguf")
    write_gguf_adapter(tmp_path / "a.gguf", tp.attach(made(kind), tp.LoRA(rank=4, targets="all"), rng=0))
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    field = lambda key: reader.fields[key].contents()
    assert field(gguf.Keys.General.TYPE) == gguf.GGUFType.ADAPTER and field(gguf.Keys.Adapter.TYPE) == "lora"
    assert field(gguf.Keys.General.ARCHITECTURE) == kind and field(gguf.Keys.Adapter.LORA_ALPHA) == max(
        t.shape[1] for t in reader.tensors if t.name.endswith("a"))
    assert reader.fields[gguf.Keys.Adapter.LORA_ALPHA].types == [gguf.GGUFValueType.FLOAT32]


@pytest.mark.parametrize("methods, says", [
    ([tp.DoRA(rank=2)], r"there is DoRA\(rank=2\)"), ([tp.PromptTuning(length=2)], r"there is PromptTuning\(.*\)"),
    ([tp.LoRA(rank=2), tp.IA3()], r"there is IA3\(\)"), ([tp.TrainableTokens((1, 2))], r"there is TrainableTokens\(.*\)"),
    ([tp.LoRA(rank=2), tp.FullFineTuning(("final_norm",))], "the base's final_norm.weight was trained")])
def test_what_llama_cpp_cannot_take_is_refused(methods, says, tmp_path):
    tuned = tp.attach(made("llama"), *methods, rng=0)
    with pytest.raises(tp.MethodError, match=f"write_gguf_adapter: an adapter of llama.cpp .*, but {says}; if"):
        write_gguf_adapter(tmp_path / "a.gguf", tuned)
    assert not list(tmp_path.iterdir())


def test_a_head_nothing_and_another_base_are_refused(tmp_path):
    with pytest.raises(tp.MethodError, match="but there is a classification head"):
        write_gguf_adapter(tmp_path / "a.gguf", tp.attach(made("llama"), tp.LoRA(rank=2), head=3, rng=0))
    tuned = tp.attach(made("llama"), {"one": tp.LoRA(rank=2), "other": tp.IA3()}, rng=0)
    tuned.detach("other")
    write_gguf_adapter(tmp_path / "a.gguf", tuned)                                        # what is off does not count
    tuned.detach("one")
    with pytest.raises(tp.MethodError, match="but no method is on"): write_gguf_adapter(tmp_path / "b.gguf", tuned)
    with pytest.raises(ValueError, match="write_gguf_adapter: in llama.cpp's 'qwen2', "):
        write_gguf_adapter(tmp_path / "b.gguf", tp.attach(made("qwen2", d_head=16), tp.LoRA(rank=2), rng=0))
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


def test_an_adapter_is_no_model(tmp_path):
    write_gguf_adapter(tmp_path / "a.gguf", tp.attach(made("llama"), tp.LoRA(rank=2), rng=0))
    with pytest.raises(GGUFError, match="a.gguf holds an adapter, not a model; llama.cpp takes it by --lora"):
        from_gguf(tmp_path / "a.gguf")
