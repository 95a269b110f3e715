"""Saved adapters: the same bits in a fresh process, nothing loaded by halves, and classes of one's own."""
import dataclasses
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest

import tinypeft as tp
from tests.families import make
from tests.methods import SMALL
from tests.oracles import assert_close
from tests.protocol import assert_saves, frozen_bytes, move, outputs
from tests.stress.attacks import save_raw
from tests.toys import Noise
from tinypeft.files import load_arrays, save_arrays

LORA, FULL, BITFIT, PROBE = tp.LoRA(rank=2), tp.FullFineTuning(), tp.FullFineTuning(targets=("bias",)), tp.LinearProbe()



def test_saved_and_loaded_in_a_fresh_process_bit_exact(gpt, tokens, tmp_path):
    assert_saves(gpt, [FULL, BITFIT, PROBE], tokens, tmp_path)


@pytest.fixture
def saved(gpt, tmp_path):
    """A folder with a saved LoRA."""
    tuned = tp.attach(gpt(np.float32), LORA, head=3)
    move(tuned, np.random.default_rng(0))
    tuned.save(tmp_path)
    return tmp_path


def edit(folder, change):
    arrays, meta = load_arrays(folder / "adapter.safetensors")
    change(arrays, meta)
    save_arrays(folder / "adapter.safetensors", arrays, meta)


@pytest.mark.parametrize("method", SMALL.values(), ids=SMALL)
def test_a_method_saves_what_it_learned_also_while_it_is_disabled(method, gpt, tokens, tmp_path):
    tuned = tp.attach(gpt(np.float32), method, head=3)
    move(tuned, np.random.default_rng(0))
    learned = outputs(tuned, tokens)
    with tuned.disabled(): tuned.save(tmp_path)
    assert outputs(tp.load_adapter(gpt(np.float32), tmp_path), tokens) == learned


def test_loading_checks_before_it_changes_anything(gpt, tokens, saved):
    def fails(error, words, **sizes):
        model = gpt(np.float32, **sizes)
        before = frozen_bytes(model)
        with pytest.raises(error, match=words): tp.load_adapter(model, saved)
        assert model.attached is None and frozen_bytes(model) == before
    fails(tp.MethodError, "made for a model of", n_layers=3)
    name = "LoRA/blocks.0.attention.query.A"
    edit(saved, lambda arrays, meta: arrays.update(extra=arrays.pop(name)))
    fails(KeyError, rf"matched 9 tensors, missing \['{name}'\], unknown \['extra'\]")
    model = gpt(np.float32)
    tp.load_adapter(model, saved, strict=False)
    edit(saved, lambda arrays, meta: arrays.update({name: arrays.pop("extra").T}))
    fails(ValueError, r"has shape \(16, 2\), expected \(2, 16\)")
    edit(saved, lambda arrays, meta: meta["parts"]["LoRA"].update(method="NoRA"))
    fails(ValueError, "unknown method 'NoRA'")
    (saved / "adapter.safetensors").write_bytes(b"not an archive")
    fails(ValueError, "damaged")
    (saved / "adapter.safetensors").unlink()
    fails(FileNotFoundError, "adapter.safetensors")


def test_loading_onto_another_base_warns(gpt, saved):
    with pytest.warns(UserWarning, match="base's weights differ"):
        tp.load_adapter(gpt(np.float32, rng=1), saved)


def test_an_adapter_is_for_one_family(gpt, saved):
    with pytest.raises(tp.MethodError, match="a GPT; this one is a Llama of"):
        tp.load_adapter(make("Llama", np.float32), saved)


def test_a_class_that_the_file_does_not_hold_is_refused(gpt, saved):
    with pytest.raises(ValueError, match=r"adapter.safetensors: .*the file holds no .*IA3.*, it holds LoRA\(rank=2\)"):
        tp.load_adapter(gpt(np.float32), saved, method=tp.IA3)


def test_the_saved_form_is_the_dataclass(saved):
    _, meta = load_arrays(saved / "adapter.safetensors")
    fields = {**dataclasses.asdict(LORA), "targets": ["query", "value"]}
    assert meta["parts"] == {"LoRA": {"method": "LoRA", "fields": fields}} and meta["head"] == 3


# -- classes of one's own ------------------------------------------------------------------------
MINE = """
from dataclasses import dataclass
import tinypeft as tp

class Mine(tp.LoRA):
    'A method without a field of its own, and not decorated.'

@dataclass(frozen=True)
class Louder(tp.LoRA):
    factor: float = 2.0
    def scale(self, *args): return self.factor * super().scale(*args)

class Outer:
    class Inner(Mine): pass

METHODS = [Mine(rank=2), Louder(rank=2, factor=3.0), Outer.Inner(rank=2), tp.LinearProbe(), tp.LoRA(rank=2)]
"""
FRESH = """
import sys; sys.path[:0] = [{root!r}, {here!r}]
import numpy as np, tinypeft as tp
from tests.conftest import make_gpt
from tests.protocol import LENGTHS, Labels
tokens = np.random.default_rng(1).integers(0, 37, (3, 7))
def run(tuned): return np.concatenate([tuned(tokens).data.ravel(), tuned.class_logits(tokens, LENGTHS).data.ravel()])
class InMain(tp.LoRA): pass
"""


def fresh(code, folder):
    """Run `code` in a new process, where `mine.py` can be imported and InMain is a class of __main__."""
    (folder / "mine.py").write_text(MINE)
    root = Path(__file__).parents[2]
    code = FRESH.format(root=str(root), here=str(folder)) + code
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder)


def test_a_class_of_ones_own_trains_saves_and_loads_in_a_fresh_process(tmp_path):
    fresh("""
import mine
for i, method in enumerate([*mine.METHODS, InMain(rank=3)]):
    tuned = tp.attach(make_gpt(np.float32), method, head=3, rng=i)
    history = tp.train(tuned, Labels(), 3, lr=1e-2)
    tuned.save(str(i))
    np.save(f"{i}.npy", run(tuned))
""", tmp_path)
    fresh("""
import mine
for i, method in enumerate([*mine.METHODS, InMain(rank=3)]):
    tuned = tp.load_adapter(make_gpt(np.float32), str(i))
    assert tuned.method == method and type(tuned.method) is type(method), tuned
    assert np.array_equal(run(tuned), np.load(f"{i}.npy")), tuned
""", tmp_path)


def test_nothing_is_imported_to_load_a_class_of_ones_own(gpt, tmp_path, monkeypatch):
    fresh("import mine; tp.attach(make_gpt(np.float32), mine.Mine(rank=2)).save('a')", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"unknown method 'Mine' of mine; .* import its module, or pass method=Mine"):
        tp.load_adapter(gpt(np.float32), tmp_path / "a")
    assert "mine" not in sys.modules
    class Mine(tp.LoRA): pass
    tuned = tp.load_adapter(gpt(np.float32), tmp_path / "a", method=Mine)
    assert type(tuned.method) is Mine and tuned.method == Mine(rank=2)
    for other in (tp.LoRA, Mine(), "Mine", Noise):
        with pytest.raises(ValueError, match="unknown method 'Mine' of mine, got method="):
            tp.load_adapter(gpt(np.float32), tmp_path / "a", method=other)


@pytest.mark.parametrize("module, name", [
    ("os", "system"), ("tinypeft.peft.lora", "LoRALinear"), ("tinypeft.peft.lora", "np.ndarray"), ("no", "LoRA"),
    ("tinypeft.peft.lora", ""), (3, "LoRA"), (["os"], "LoRA"), ("tinypeft.peft.lora", "LoRA.scale.__globals__")])
def test_a_file_can_name_no_other_object(module, name, gpt, saved):
    edit(saved, lambda arrays, meta: meta["parts"]["LoRA"].update(module=module, method=name))
    with pytest.raises(ValueError, match="load_adapter: unknown method|safetensors: parts, 'LoRA': module must be a string"):
        tp.load_adapter(gpt(np.float32), saved)


def test_a_class_of_the_package_is_named_without_its_module(gpt, saved, tmp_path):
    """So a folder can be loaded whatever file a class moves to."""
    tp.attach(gpt(np.float32), PROBE, head=3).save(tmp_path / "probe")
    peqa = tp.PEQA(bits=4)
    tp.attach(tp.quantize(gpt(np.float32), tp.Uniform(4, symmetric=False, granularity="channel")), peqa).save(tmp_path / "peqa")
    for folder, name in ((saved, "LoRA"), (tmp_path / "probe", "LinearProbe"), (tmp_path / "peqa", "PEQA")):
        _, meta = load_arrays(folder / "adapter.safetensors")
        assert meta["parts"][name]["method"] == name and "module" not in meta["parts"][name]
    assert tp.load_adapter(gpt(np.float32), tmp_path / "probe").method == PROBE


def test_pefts_folders_say_themselves_which_method_it_is(gpt, tmp_path):
    tp.attach(gpt(np.float32), LORA).save(tmp_path, format="peft")
    with pytest.raises(tp.MethodError, match="adapter_config.json says which method it is"):
        tp.load_adapter(gpt(np.float32), tmp_path, method=tp.LoRA)


# -- which base it is ----------------------------------------------------------------------------
def quiet(model, folder):
    """Load without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return tp.load_adapter(model, folder)


def test_dropout_is_no_size_of_the_model(gpt, tokens, saved):
    same = gpt(np.float32)
    other = tp.GPT(dataclasses.replace(same.config, dropout=0.3)).load_state_dict(same.state_dict())
    assert np.array_equal(quiet(other, saved)(tokens).data, quiet(same, saved)(tokens).data)


def test_a_cast_base_is_the_same_base(gpt, saved, tmp_path):
    """Real changes still warn."""
    quiet(gpt(np.float32).to(np.float64), saved)
    tp.attach(gpt(np.float32).to(np.float64), LORA).save(tmp_path / "64")
    quiet(gpt(np.float32), tmp_path / "64")
    for change in (lambda m: m.final_norm.bias.assign(m.final_norm.bias.data + np.float32(1e-6)),
                   lambda m: tp.quantize(m, tp.NF4(block_size=16))):
        model = gpt(np.float32)
        change(model)
        with pytest.warns(UserWarning, match="the base's weights differ"): tp.load_adapter(model, saved)


# -- two formats, and files that lie ---------------------------------------------------------------
def test_a_folder_with_both_formats_can_be_read(gpt, tokens, tmp_path):
    """Ours is of training step 1, PEFT's of step 2: the reader is asked which, and gets that one."""
    tuned, learned = tp.attach(gpt(np.float32), LORA), {}
    for seed, format in enumerate(["tinypeft", "peft"]):
        move(tuned, np.random.default_rng(seed))
        tuned.save(tmp_path, format=format)
        learned[format] = tuned(tokens).data
    with pytest.raises(ValueError, match="two adapters; say which to read by the format, 'tinypeft' or 'peft', or delete"):
        tp.load_adapter(gpt(np.float32), tmp_path)
    for format, expected in learned.items():
        assert_close(tp.load_adapter(gpt(np.float32), tmp_path, format=format)(tokens), expected, 1e-6)
    with pytest.raises(ValueError, match="unknown format 'npz'; there are tinypeft, peft"):
        tp.load_adapter(gpt(np.float32), tmp_path, format="npz")
    with pytest.raises(FileNotFoundError, match="no adapter_config.json in"):
        (tmp_path / "adapter_config.json").unlink()
        tp.load_adapter(gpt(np.float32), tmp_path, format="peft")


@pytest.mark.parametrize("part, value", [
    ("fields", {"rank": 1 << 40}), ("fields", {"rank": 1 << 22}), ("fields", {"rank": "2"}), ("head", 1 << 26),
    ("fields", {"rank_pattern": {"query": 1 << 22}}), ("fields", {"alpha": 1e39}), ("fields", {"more": 1}),
    ("fields", []), ("head", True), ("format", 2), ("format", "1"), ("config", None), ("base", 3), ("more", 1),
    ("method", "IA3"), ("parts", {}), ("off", 3), ("family", None)])
def test_a_description_that_lies_is_refused_and_takes_no_memory(part, value, gpt, saved):
    def lie(meta):
        place = meta["parts"]["LoRA"] if part in ("fields", "method") else meta
        place[part] = place[part] | value if isinstance(value, dict) and value else value
    arrays, meta = load_arrays(saved / "adapter.safetensors")
    lie(meta)
    save_raw(saved / "adapter.safetensors", arrays, meta)
    model = gpt(np.float32)
    before = frozen_bytes(model)
    tracemalloc.start()
    with pytest.raises(ValueError, match="adapter.safetensors: "): tp.load_adapter(model, saved)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()
    assert model.attached is None and frozen_bytes(model) == before


@pytest.mark.parametrize("b", [-1, 0, 9])
def test_the_rank_of_a_dylora_is_one_that_it_trains(b, gpt, tmp_path):
    tp.attach(gpt(np.float32), tp.DyLoRA(rank=4)).save(tmp_path)
    edit(tmp_path, lambda arrays, meta: [a.fill(b) for n, a in arrays.items() if n.endswith(".b")])
    model = gpt(np.float32)
    with pytest.raises(ValueError, match=rf"b is {b}, expected one of the ranks \[1, 2, 3, 4\]"):
        tp.load_adapter(model, tmp_path)
    assert model.attached is None


def test_a_loaded_adapter_draws_without_a_limit(gpt, saved):
    tuned = tp.load_adapter(gpt(np.float32), saved)
    assert tuned.rng.standard_normal(1 << 20).size == 1 << 20
