"""importance.py: both forms of llama-imatrix's files, what `GGUF` makes of them, and files that are another model's."""
import io

import numpy as np
import pytest

import tinypeft as tp
from tests.conftest import make_gpt
from tests.models.test_llama import llama
from tests.stress.attacks import DATS, dat, save_gguf
from tests.toys import linear_paths, same
from tinypeft.interop.importance import TENSORS, entries_of_dat, name_of, read_importance
from tinypeft.quant.calibration import capture

TOKENS = np.random.default_rng(0).integers(0, 30, (4, 16))
SIZES = {"d_model": 32, "d_mlp": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_head": 8}


def f32(*shape): return lambda x: (0, shape, np.asarray(x, "<f4").reshape(-1).view(np.uint8))


def tensors(sums, n):
    """Those of the GGUF form. sums: name → Σ x²."""
    pairs = {f"{name}.in_sum2": f32(x.size)(x) for name, x in sums.items()}
    return pairs | {f"{name}.counts": f32(1)(n) for name in sums}


def in_float32(sums): return {name: x.astype("<f4") for name, x in sums.items()}


def write(path, sums, n):
    if path.suffix == ".dat": path.write_bytes(dat(in_float32(sums), n))
    else: save_gguf(path, {"general.type": "imatrix", "imatrix.chunk_count": 1}, tensors(sums, n))
    return path


def sums_of(model, n=64):
    """Σ x² of n tokens, by GGUF's names of the weights."""
    return {name_of(path, model): s.mean_square * np.float32(n) for path, s in capture(model, TOKENS).items()}


@pytest.fixture
def model(): return llama(dtype=np.float32, **SIZES)


@pytest.mark.parametrize("file", ["m.gguf", "m.dat"])
@pytest.mark.parametrize("family", ["Llama", "GPT"])
def test_a_file_says_what_calibration_says_bit_exact(family, file, tmp_path):
    """64 tokens: dividing by a power of two is exact."""
    make = {"Llama": lambda: llama(dtype=np.float32, **SIZES), "GPT": lambda: make_gpt(np.float32, d_model=32)}[family]
    path = write(tmp_path / file, sums_of(make()), 64)
    by_file = tp.quantize(make(), tp.GGUF("Q4_0", importance=path))
    by_tokens = tp.quantize(make(), tp.GGUF("Q4_0", importance=True), calibration=TOKENS)
    plain = tp.quantize(make(), tp.GGUF("Q4_0"))
    assert same(by_file.state_dict(), by_tokens.state_dict()) and not same(by_file.state_dict(), plain.state_dict())
    path.unlink()
    tp.save_quantized(by_file, tmp_path / "q")
    assert same(tp.load_quantized(tmp_path / "q").state_dict(), by_file.state_dict())    # it does not need the file


def test_a_scheme_with_a_file_is_a_value(tmp_path):
    scheme = tp.GGUF("Q4_K_M", importance="imatrix.gguf")
    assert repr(scheme) == "GGUF(name='Q4_K_M', importance='imatrix.gguf')" and not scheme.calibrated
    assert len({scheme, tp.GGUF("Q4_K_M", importance="imatrix.gguf"), tp.GGUF("Q4_K_M")}) == 2
    with pytest.raises(ValueError, match="'imatrix.gguf'.: expected importance=, the mean square of each input"):
        tp.GGUF("Q4_K", importance="imatrix.gguf").quantize(np.ones((2, 256)))
    with pytest.raises(FileNotFoundError): tp.quantize(llama(dtype=np.float32), tp.GGUF(importance=tmp_path / "no"))


def test_names_are_those_of_the_gguf_package(model):
    gguf = pytest.importorskip("gguf")
    for made, kind in (model, gguf.MODEL_ARCH.LLAMA), (make_gpt(np.float32, d_model=32), gguf.MODEL_ARCH.GPT2):
        known = {gguf.TENSOR_NAMES[tensor].format(bid=1) + ".weight" for tensor in gguf.MODEL_TENSORS[kind]}
        names = {name_of(path, made) for path in linear_paths(made)}
        assert {name for name in names if name.startswith("blk.1.")} <= known
        assert len(names) == 2 * (7 if made is model else 4)
    assert len(TENSORS) == len(set(TENSORS.values()))


def test_the_gguf_packages_files_are_read(model, tmp_path, rng):
    """With the shapes that llama-imatrix gives the tensors, and the same ones with a leading axis."""
    gguf = pytest.importorskip("gguf")
    sums = {name: rng.random(x.size).astype(np.float32) for name, x in sums_of(model).items()}
    for axes in (), (1,):
        w = gguf.GGUFWriter(tmp_path / "m.gguf", "")
        w.add_type("imatrix")
        for name, x in sums.items():
            w.add_tensor(f"{name}.in_sum2", x.reshape(*axes, -1))
            w.add_tensor(f"{name}.counts", np.full((*axes, 1), 512, np.float32))
        for step in (w.write_header_to_file, w.write_kv_data_to_file, w.write_tensors_to_file, w.close): step()
        read = read_importance(tmp_path / "m.gguf", model, linear_paths(model))
        for path, h in read.items(): assert h.dtype == np.float32 and np.array_equal(h, sums[name_of(path, model)] / 512)


def test_the_end_of_the_older_form_is_optional(model):
    sums = sums_of(model)
    whole = dat(in_float32(sums), 64)
    with_end, without = (entries_of_dat(io.BytesIO(content)) for content in (whole + b"text.txt", whole[:-8]))
    assert with_end.keys() == without.keys() == sums.keys()
    assert all(np.array_equal(without[name][0], sums[name]) and without[name][1] == 64 for name in sums)


@pytest.mark.parametrize("file", ["m.gguf", "m.dat"])
def test_what_a_file_lacks_is_named_and_nothing_is_changed(file, model, tmp_path):
    sums = sums_of(model)
    for name in "blk.0.attn_v.weight", "blk.1.ffn_down.weight": del sums[name]
    path = write(tmp_path / file, sums, 64)
    before = model.state_dict()
    scheme = tp.GGUF("Q4_0", importance=path)
    message = r"lacks 2 of 14 tensors, \['blk.0.attn_v.weight', 'blk.1.ffn_down.weight'\]; to round them without importance"
    with pytest.raises(ValueError, match=f"{file}: it {message}"): tp.quantize(model, scheme)
    assert same(model.state_dict(), before)
    tp.quantize(model, scheme, targets=("query", "key", "output", "gate", "up"))         # what the message says
    tp.quantize(model, scheme, targets=("blocks.1.attention.value",), skip_quantized=True)
    tp.quantize(model, tp.GGUF("Q4_0"), skip_quantized=True)


@pytest.mark.parametrize("file", ["m.gguf", "m.dat"])
@pytest.mark.parametrize("change, message", [
    (lambda sums: sums | {"blk.2.ffn_up.weight": np.ones(32)}, "it has 'blk.2.ffn_up.weight', but the model has 2 blocks"),
    (lambda sums: sums | {"blk.1.ffn_up.weight": np.ones(31)}, r"has importances of shape \(31,\), .* has 32 inputs"),
    (lambda sums: sums | {"blk.1.ffn_up.weight": np.full(32, np.nan)}, "from nan to nan, expected finite numbers ≥ 0"),
    (lambda sums: sums | {"blk.1.ffn_up.weight": np.arange(32) - 1.0}, "from -0.0156.* expected finite numbers ≥ 0"),
    (lambda sums: sums | {"blk.1.ffn_up.weight": np.zeros(32)}, "blocks.1.mlp.up: its inputs are 0 on all tokens"),
    (lambda sums: {"a" * 9999: np.ones(1)}, "lacks 14 of 14 tensors"),
    (lambda sums: {}, "no tensor NAME.in_sum2|should have 0 entries")])
def test_files_of_other_models_are_refused(change, message, file, model, tmp_path):
    path = write(tmp_path / file, change(sums_of(model)), 64)
    with pytest.raises(ValueError, match=message) as e: tp.quantize(model, tp.GGUF(importance=path))
    assert len(str(e.value)) < 500 + len(str(path))


def test_counts_that_are_none_are_refused(model, tmp_path):
    sums = sums_of(model)
    for n in 0, -1, np.nan, np.inf:
        with pytest.raises(ValueError, match="has the count .* expected 1 or more"):
            read_importance(write(tmp_path / "m.gguf", sums, n), model, linear_paths(model))
    for n in 0, -3:
        with pytest.raises(ValueError, match="has the count .* expected 1 or more"):
            read_importance(write(tmp_path / "m.dat", sums, n), model, linear_paths(model))
    name, ones = "blk.1.ffn_up.weight", np.ones(32)
    for change, message in [({f"{name}.counts": f32(2)([1, 1])}, "has shape .2,., expected one number; experts"),
                            ({f"{name}.counts": (1, (1,), np.ones(1, "<f2").view(np.uint8))}, "is F16, expected F32"),
                            ({f"{name}.in_sum2": (1, (32,), ones.astype("<f2").view(np.uint8))}, "is F16, expected F32")]:
        save_gguf(tmp_path / "m.gguf", {}, tensors(sums, 64) | change)
        with pytest.raises(ValueError, match=f"m.gguf: .*{message}"):
            read_importance(tmp_path / "m.gguf", model, linear_paths(model))
    alone = tensors(sums, 64)
    del alone[f"{name}.counts"]
    save_gguf(tmp_path / "m.gguf", {}, alone)
    with pytest.raises(ValueError, match="is there, but not"): read_importance(tmp_path / "m.gguf", model, linear_paths(model))


def test_a_file_that_is_cut_at_any_byte_is_refused_by_name(model, tmp_path):
    entries, path = {name: x[:2] for name, x in list(sums_of(model).items())[:3]}, tmp_path / "m.dat"
    whole = dat(in_float32(entries), 64)[:-8]
    assert len(entries_of_dat(io.BytesIO(whole))) == 3
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        with pytest.raises(ValueError, match="m.dat: "): read_importance(path, model, linear_paths(model))


@pytest.mark.parametrize("name, message", [
    ("two billion entries", "should have 2,147,483,647 entries"), ("fewer than no entries", "should have -1 entries"),
    ("a name of 2³¹ bytes", "should have 2,147,483,647 bytes more"), ("a name of −1 byte", "should have -1 bytes more"),
    ("2³¹ numbers", "should have 8,589,934,588 bytes more"), ("−2³¹ numbers", "should have -8,589,934,592 bytes more"),
    ("an entry twice", "the name 'a' occurs twice"), ("a name that is not UTF-8", "can't decode"),
    ("other names", "it lacks 14 of 14 tensors")])
def test_crafted_files_are_refused(name, message, model, tmp_path):
    (tmp_path / "m.dat").write_bytes(DATS[name])
    with pytest.raises(ValueError, match=f"m.dat: .*{message}"):
        read_importance(tmp_path / "m.dat", model, linear_paths(model))
