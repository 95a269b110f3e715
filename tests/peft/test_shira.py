"""SHiRA: numbers at places, hostile places, the promises of every method, and PEFT's numbers."""
import numpy as np
import pytest

import tinypeft as tp
from tests.oracles import assert_close
from tests.protocol import assert_gradients, assert_leaves_base_alone, assert_same_race, assert_saves, learned
from tests.toys import Noise
from tinypeft.files import load_arrays, save_arrays
from tinypeft.peft.metered import Metered
from tinypeft.peft.shira import SHiRALinear

LAYERS = "query", "up", "down"
METHOD = tp.SHiRA(2, targets=LAYERS)
UP = "blocks.0.mlp.up"


# -- the equation --------------------------------------------------------------------------------
def test_the_change_is_n_numbers_at_their_places(gpt):
    for layer in learned(gpt(), METHOD).wrappers.values():
        n = 2 * (layer.d_in + layer.d_out)
        S, (rows, columns) = layer.delta(), np.divmod(layer.places, layer.d_in)
        assert layer.places.shape == layer.values.shape == (n,) and np.count_nonzero(S) == n
        assert np.array_equal(S[rows, columns], layer.values.data)


def test_the_rank_of_the_change_is_not_bounded_by_r(gpt):
    assert np.linalg.matrix_rank(learned(gpt(), METHOD).wrappers[UP].delta()) > 12


def test_places_are_drawn_evenly_and_anew_for_each_layer(gpt):
    tuned = tp.attach(gpt(), METHOD, rng=0)
    first, second = (tuned.wrappers[f"blocks.{n}.mlp.up"].places for n in (0, 1))
    assert first.dtype == np.int32 and not np.array_equal(first, second)
    assert np.array_equal(tp.attach(gpt(), METHOD, rng=0).wrappers[UP].places, first)
    counts, layer = np.zeros(16 * 16), gpt().get("blocks.0.attention.query")
    for seed in range(100): counts[SHiRALinear(layer, 2, np.random.default_rng(seed)).places] += 1
    assert counts.sum() == 100 * 64 and 8 < counts.min() and counts.max() < 46          # 25 ± 4.3


def test_all_places_are_full_fine_tuning_of_the_weight(gpt, tokens):
    """r (16 + 16) = 16 · 16 for r = 8."""
    tuned = tp.attach(gpt(), tp.SHiRA(8, targets=("query",)), rng=0)
    full = tp.attach(gpt(), tp.FullFineTuning(("query.weight",)))
    for t in (tuned, full): tp.train(t, Noise(), 3, lr=1e-2, weight_decay=0.0)
    assert_close(tuned(tokens), full(tokens), 1e-12)


def test_gradients_numerical(gpt, tokens):
    assert_gradients(learned(gpt(), METHOD), tokens)


# -- the promises of every method ------------------------------------------------------------------
def test_the_base_stays_as_it_is(gpt, tokens):
    assert_leaves_base_alone(gpt(), METHOD, tokens)


def test_saved_and_loaded_bit_exact_with_its_places(gpt, tokens, tmp_path):
    assert_saves(gpt, [METHOD, tp.SHiRA(1, targets="all")], tokens, tmp_path)
    tuned = tp.attach(gpt(np.float32), METHOD, rng=5)
    tuned.save(tmp_path)
    again = tp.load_adapter(gpt(np.float32), tmp_path)
    for path, layer in again.wrappers.items(): assert np.array_equal(layer.places, tuned.wrappers[path].places)
    assert not np.array_equal(layer.places, tp.attach(gpt(), METHOD, rng=0).wrappers[path].places)


def test_a_fresh_one_is_the_base_and_a_merged_one_is_wrapped(gpt, tokens):
    model = gpt()
    before = model(tokens).data
    assert np.array_equal(tp.attach(model, METHOD)(tokens).data, before)
    tuned = learned(gpt(), METHOD)
    assert_close(tuned.merge()(tokens), tuned(tokens), 1e-12)
    outside = tp.attach(gpt(), {"inner": tp.LoRA(2, targets="all"), "outer": METHOD}, rng=0)
    for p in outside.trainable_parameters(): p.data += 0.1 * np.random.default_rng(0).standard_normal(p.shape)
    assert_close(outside.merge()(tokens), outside(tokens), 1e-11)


def test_count_is_the_formula(gpt):
    summary = tp.attach(gpt(np.float32), METHOD).summary()
    assert summary.trained == summary.stored == 2 * 2 * (32 + 80 + 80) and summary.nbytes == 8 * summary.stored


def test_what_it_cannot_do_is_refused_by_name(gpt, tmp_path):
    with pytest.raises(tp.MethodError, match="SHiRA: rank 9 asks for 288 of the 256 numbers of a 16 × 16 matrix"):
        tp.attach(gpt(), tp.SHiRA(9))
    tuned = learned(gpt(), METHOD)
    for verb in (lambda: tp.combine({tuned: 1}), tuned.ranks, tuned.fold):
        with pytest.raises(tp.MethodError): verb()
    with pytest.raises(tp.MethodError, match="GPT-2's are Conv1D"):
        tuned.save(tmp_path / "peft", format="peft")


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
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_20_steps_of_adamw_equal_pefts_numerical(gpt, tokens):
    peft = pytest.importorskip("peft")
    import torch

    from tests.oracles.torch_gpt import torch_copy
    tuned = learned(gpt(), METHOD)
    config = peft.ShiraConfig(r=2, target_modules=list(LAYERS))
    with tuned.disabled() as base: theirs = peft.get_peft_model(torch_copy(base), config, autocast_adapter_dtype=False).double()
    pairs = []
    for path, layer in tuned.wrappers.items():
        their_layer = theirs.get_submodule(f"base_model.model.{path}")
        assert their_layer.shira_indices["default"].shape == (2, len(layer.places))
        their_layer.shira_indices["default"] = torch.as_tensor(np.stack(np.divmod(layer.places, layer.d_in)))
        pairs.append((layer.values, their_layer.shira_weight["default"]))
    assert_same_race(tuned, theirs, pairs, tokens)
    assert_close(tuned.merge()(tokens), theirs.merge_and_unload()(tokens).detach(), 1e-8)


def test_pefts_random_places_are_those_of_every_layer_of_a_shape(gpt):
    """What the docstring says of PEFT: if this fails, PEFT was mended, and the docstring is to change."""
    peft = pytest.importorskip("peft")
    from tests.oracles.torch_gpt import torch_copy
    for seed in (None, 3):
        model = peft.get_peft_model(torch_copy(gpt()), peft.ShiraConfig(r=2, target_modules=["query"], random_seed=seed))
        layers = [model.get_submodule(f"base_model.model.blocks.{n}.attention.query") for n in (0, 1)]
        first, second = (layer.shira_indices["default"] for layer in layers)
        assert (first == second).all()
