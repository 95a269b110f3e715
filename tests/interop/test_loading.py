"""interop/loading.py: whatever holds a model, `load_model` takes the same arguments, and `save_model` writes what it reads."""
import shutil

import numpy as np
import pytest

import tinypeft as tp
from tinypeft.interop import read_safetensors, write_gguf, write_safetensors
from tinypeft.pretrained import FOLDER


@pytest.fixture
def places(tmp_path):
    """name → (a place that holds a model, its class)."""
    llama = tp.Llama(tp.LlamaConfig(41, 60, 24, 2, 6, 2, 20, 4), rng=0)
    tp.save_model(llama, tmp_path / "llama")
    write_gguf(tmp_path / "llama.gguf", llama)
    tp.save_model(tp.GPT(tp.GPTConfig(37, 24, 16, 2, 4), rng=0), tmp_path / "gpt")
    (tmp_path / "base").mkdir()
    for name in "weights.safetensors", "tokenizer.json": shutil.copy(FOLDER / name, tmp_path / "base")
    return {"shipped": (None, tp.GPT), "base": (tmp_path / "base", tp.GPT), "gpt": (tmp_path / "gpt", tp.GPT),
            "llama": (tmp_path / "llama", tp.Llama), "gguf": (tmp_path / "llama.gguf", tp.Llama)}


@pytest.mark.parametrize("name", ["shipped", "base", "gpt", "llama", "gguf"])
def test_every_place_takes_a_dtype_and_an_expected_class(name, places):
    place, cls = places[name]
    model, wide = tp.load_model(place, expected=cls), tp.load_model(str(place) if place else None, dtype=np.float64)
    assert type(model) is type(wide) is cls
    for a, b in zip(model.parameters(), wide.parameters(), strict=True):
        assert (a.dtype, b.dtype) == (np.float32, np.float64) and np.array_equal(a.data, b.data)
    other = tp.Llama if cls is tp.GPT else tp.GPT
    with pytest.raises(ValueError, match="expected '?(a )?(llama|Llama|gpt2|GPT)"): tp.load_model(place, expected=other)
    with pytest.raises(TypeError, match="load_model: expected float32 or float64, got float16"):
        tp.load_model(place, dtype=np.float16)


def test_the_error_names_what_is_there_and_what_was_expected(places):
    with pytest.raises(ValueError, match="the shipped base holds a GPT, expected a Llama$"): tp.load_model(expected=tp.Llama)
    with pytest.raises(ValueError, match="llama.gguf holds a Llama, expected a GPT$"):
        tp.load_model(places["gguf"][0], expected=tp.GPT)


def test_codes_stay_codes(places):
    for name in "shipped", "base", "gpt":
        place, _ = places[name]
        with pytest.raises(ValueError, match="only SmolLM2 and GGUF files hold codes"): tp.load_model(place, quantized=True)


def test_a_quantized_file_is_a_model_in_its_codes(tmp_path):
    """By its own path, or as the file of a folder that `quantize --out` names."""
    model = tp.quantize(tp.load_pretrained(), tp.NF4())
    tp.save_quantized(model, tmp_path / "quantized.safetensors")
    for place in tmp_path, tmp_path / "quantized.safetensors":
        loaded = tp.load_model(place, expected=tp.GPT)
        assert loaded.tokenizer == model.tokenizer and loaded.source == str(place)
        assert tp.bits_per_weight(loaded) == tp.bits_per_weight(model)
    with pytest.raises(ValueError, match="expected a Llama"): tp.load_model(tmp_path, expected=tp.Llama)


def test_strict_is_for_tensors_without_a_use(places):
    path = places["llama"][0] / "model.safetensors"
    write_safetensors(path, dict(read_safetensors(path)) | {"x": np.zeros(2, np.float32)})
    with pytest.raises(ValueError, match="not used 1 .x.; strict=False ignores"): tp.load_model(path.parent)
    assert len(tp.load_model(path.parent, strict=False).blocks) == 2


def test_a_place_that_holds_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither weights.safetensors .* nor config.json and model.safetensors"):
        tp.load_model(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing is downloaded"): tp.load_model("HuggingFaceTB/SmolLM2-135M")


def test_a_model_with_a_method_is_not_saved_as_a_model(tmp_path):
    tuned = tp.attach(tp.GPT(tp.GPTConfig(37, 24, 16, 2, 4), rng=0), tp.LoRA(rank=2))
    with pytest.raises(TypeError, match=r"got a PeftModel; .* save the adapter by tuned.save\(folder\), or .* tuned.merge"):
        tp.save_model(tuned, tmp_path / "out")
    with pytest.raises(ValueError, match=r"save_model: .* inside a PeftModel, with LoRA\(rank=2\) attached; give the base"):
        tp.save_model(tuned.model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    tp.save_model(tuned.merge(), tmp_path / "out")
    assert type(tp.load_model(tmp_path / "out")) is tp.GPT


def test_the_shipped_base_needs_no_reader():
    from tests.common.test_lazy import python
    code = "import tinypeft as tp; tp.load_model()\nprint(*sorted(n for n in sys.modules if n.startswith('tinypeft.interop')))"
    assert python(code) == ["tinypeft.interop", "tinypeft.interop.loading"]


def test_a_file_counts_in_a_folder_that_holds_no_model_of_hugging_face(places, tmp_path):
    """Repositories on huggingface.co often have both."""
    folder = tmp_path / "made"
    folder.mkdir()
    shutil.copy(places["gguf"][0], folder / "model.gguf")
    assert type(tp.load_model(folder)) is tp.Llama and tp.load_model(folder).source == str(folder)
    for path in places["gpt"][0].iterdir(): shutil.copy(path, folder)
    assert type(tp.load_model(folder)) is tp.GPT
