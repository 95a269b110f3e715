"""SHiRA: numbers at places, hostile places, and PEFT's places. What every method promises is in test_methods.py."""
import numpy as np
import pytest

import tinypeft as tp
from tests.oracles import assert_close
from tests.protocol import learned
from tests.toys import Noise
from tinypeft.files import load_arrays, save_arrays
from tinypeft.peft.metered import Metered
from tinypeft.peft.shira import SHiRALinear

LAYERS = "query", "up", "down"
METHOD = tp.SHiRA(2, targets=LAYERS)
UP = "blocks.0.mlp.up"


# -- the equation --------------------------------------------------------------------------------
def test_the_rank_of_the_change_is_not_bounded_by_r(gpt):
    assert np.linalg.matrix_rank(learned(gpt(), METHOD).wrappers[UP].delta()) > 12


def test_places_are_drawn_evenly_and_anew_for_each_layer(gpt):
    tuned = tp.attach(gpt(), METHOD, rng=0)
    first, second = (tuned.wrappers[f"blocks.{n}.mlp.up"].places for n in (0, 1))
    assert first.dtype == np.int32 and not np.array_equal(first, second)
    assert np.array_equal(tp.attach(gpt(), METHOD, rng=0).wrappers[UP].places, first)
    counts, layer = np.zeros(16 * 16), gpt().get("blocks.0.attention.query")
    for seed in range(100): counts[SHiRALinear(layer, METHOD, np.random.default_rng(seed)).places] += 1
    assert counts.sum() == 100 * 64 and 8 < counts.min() and counts.max() < 46          # 25 ± 4.3


def test_all_places_are_full_fine_tuning_of_the_weight(gpt, tokens):
    """r (16 + 16) = 16 · 16 for r = 8."""
    tuned = tp.attach(gpt(), tp.SHiRA(8, targets=("query",)), rng=0)
    full = tp.attach(gpt(), tp.FullFineTuning(("query.weight",)))
    for t in (tuned, full): tp.train(t, Noise(), 3, lr=1e-2, weight_decay=0.0)
    assert_close(tuned(tokens), full(tokens), 1e-12)


def test_a_file_holds_its_places(gpt, tmp_path):
    tuned = tp.attach(gpt(np.float32), METHOD, rng=5)
    tuned.save(tmp_path)
    again = tp.load_adapter(gpt(np.float32), tmp_path)
    for path, layer in again.wrappers.items(): assert np.array_equal(layer.places, tuned.wrappers[path].places)
    assert not np.array_equal(layer.places, tp.attach(gpt(), METHOD, rng=0).wrappers[path].places)


def test_a_file_has_a_number_and_its_place(gpt):
    summary = tp.attach(gpt(np.float32), METHOD).summary()
    assert summary.nbytes == 8 * summary.stored


# -- hostile files ---------------------------------------------------------------------------------
HOSTILE = {"negative": lambda p: np.r_[np.int32(-1), p[1:]], "behind the matrix": lambda p: np.r_[p[:-1], np.int32(16 * 64)],
           "twice": lambda p: np.r_[p[:-1], p[-2]], "falling": lambda p: p[::-1].copy(),
           "a step that int32 cannot hold": lambda p: np.r_[p[:4], np.int32(2**31 - 1), np.int32(-2), p[6:]]}
hostile = pytest.mark.parametrize("kind", HOSTILE)


def edited(path, kind):
    """Give the file at `path` hostile places for one layer."""
    arrays, meta = load_arrays(path)
    arrays = {name: a.copy() for name, a in arrays.items()}
    name = next(name for name in arrays if name.endswith(f"{UP}.places"))
    arrays[name] = HOSTILE[kind](arrays[name])
    save_arrays(path, arrays, meta)


@hostile
def test_places_that_are_none_are_refused_and_the_model_stays(kind, gpt, tmp_path):
    learned(gpt(np.float32), METHOD).save(tmp_path)
    edited(tmp_path / "adapter.safetensors", kind)
    model = gpt(np.float32)
    with pytest.raises(ValueError, match="places: expected rising numbers from 0 to 1023, each once"):
        tp.load_adapter(model, tmp_path)
    assert model.attached is None


@hostile
def test_so_they_are_in_a_checkpoint(kind, gpt, tokens, tmp_path):
    run = lambda tuned, **options: tp.train(tuned, Noise(), 4, checkpoint=tmp_path / "run", lr=1e-2, **options)
    run(tp.attach(gpt(np.float32), METHOD), stop_after=2)
    edited(tmp_path / "run", kind)
    fresh = tp.attach(gpt(np.float32), METHOD)
    before = fresh(tokens).data
    with pytest.raises(ValueError, match="places: expected rising numbers"): run(fresh)
    assert np.array_equal(fresh(tokens).data, before)


def test_a_rank_that_the_file_does_not_hold_is_not_drawn():
    with pytest.raises(ValueError, match="many more numbers than the file holds"):
        Metered(10).choice(2**40, 2**30, replace=False)


# -- PEFT ------------------------------------------------------------------------------------------
def test_pefts_random_places_are_those_of_every_layer_of_a_shape(gpt):
    """What the docstring says of PEFT: if this fails, PEFT was mended, and the docstring is to change."""
    peft = pytest.importorskip("peft")
    from tests.oracles.torch_gpt import torch_copy
    for seed in (None, 3):
        model = peft.get_peft_model(torch_copy(gpt()), peft.ShiraConfig(r=2, target_modules=["query"], random_seed=seed))
        layers = [model.get_submodule(f"base_model.model.blocks.{n}.attention.query") for n in (0, 1)]
        first, second = (layer.shira_indices["default"] for layer in layers)
        assert (first == second).all()
