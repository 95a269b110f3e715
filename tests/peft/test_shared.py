"""`Method.shared`: arrays that belong to a method exist once, in memory and in files, whatever is done to the model."""
import copy
import pickle
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import tinypeft as tp
from tests.conftest import make_gpt
from tests.oracles import assert_close
from tests.protocol import frozen_bytes, learned, move
from tests.stress.attacks import save_raw
from tests.toys import Noise, same
from tinypeft.engine.tensor import Tensor
from tinypeft.files import load_arrays, save_arrays
from tinypeft.models.targets import match_targets
from tinypeft.peft.vera import VeRALinear

VERA = tp.VeRA(6, targets=("query", "value", "down"))
NAMES = {"shared.A", "shared.B"}
TOKENS = np.random.default_rng(0).integers(0, 37, (3, 7))


def layers_of(tuned, name="VeRA"): return tuned.parts[name].wrappers.values()


def assert_one_copy(tuned, name="VeRA"):
    """All layers read the part's dict, and no array of it is in the model or in a layer."""
    shared = tuned.parts[name].shared
    assert shared.keys() == {"A", "B"} and all(layer.shared is shared for layer in layers_of(tuned, name))
    own = {id(a) for a in shared.values()}
    assert not own & {id(a) for a in tuned.model.state_dict().values()}
    assert not own & {id(p.data) for p in tuned.parameters()}
    state = tuned.state_dict()
    assert [n for n, a in state.items() if id(a) in own] == [f"{name}/shared.A", f"{name}/shared.B"]
    assert not any(np.shares_memory(a, b) for n, a in state.items() if "/shared." not in n for b in shared.values())


# -- once ------------------------------------------------------------------------------------------
def test_it_is_in_the_state_once_and_in_no_layer(gpt):
    tuned = learned(gpt(), VERA)
    assert_one_copy(tuned)
    assert {n.partition("/")[2] for n in tuned.state_dict() if "shared" in n} == NAMES
    assert not any("shared" in path for path, _ in tuned.named_modules())
    assert not any("shared" in path for path, _ in tuned.named_parameters())
    assert len(tuned.trainable_parameters()) == 2 * 6                             # b and d of each layer


def test_the_file_has_as_many_bytes_as_the_formula_says(gpt, tmp_path):
    tuned = learned(gpt(np.float32), VERA)
    tuned.save(tmp_path)
    arrays, _ = load_arrays(tmp_path / "adapter.safetensors")
    numbers = 6 * (64 + 16) + 2 * (3 * 6 + 16 + 16 + 16)                          # A, B, and d and b of each layer
    assert sum(a.nbytes for a in arrays.values()) == 4 * numbers == tuned.summary().nbytes
    assert sum("shared" in name for name in arrays) == 2 and tuned.summary().stored == numbers
    assert 0 < (tmp_path / "adapter.safetensors").stat().st_size - 4 * numbers < 4000                     # names and fields


def test_attaching_takes_the_memory_of_one_copy():
    """Two matrices of 256 × 256; a copy for each of 24 layers would be 12 MB."""
    model = tp.GPT(tp.GPTConfig(37, 8, 256, 4, 2), rng=0)
    tracemalloc.start()
    try:
        tuned = tp.attach(model, tp.VeRA(256, targets=("query", "key", "value", "output")), rng=0)
        held, peak = tracemalloc.get_traced_memory()
    finally: tracemalloc.stop()
    once = sum(a.nbytes for a in tuned.parts["VeRA"].shared.values())
    assert once == 2 * 256 * 256 * 4 and once < held < 1.5 * once and peak < 4 * once       # it is drawn in float64


def test_two_parts_have_their_own(gpt):
    tuned = learned(gpt(), {"a": VERA, "b": VERA})
    for name in "ab": assert_one_copy(tuned, name)
    a, b = (tuned.parts[name].shared for name in "ab")
    assert not any(np.array_equal(a[letter], b[letter]) for letter in "AB")
    assert_close(tuned.merge()(TOKENS), tuned(TOKENS), 1e-11)
    first = tuned.merge("a")
    assert_one_copy(first, "b")
    assert_close(first(TOKENS), tuned(TOKENS), 1e-11)


@dataclass(frozen=True)
class Columns(tp.peft.Method):
    """Scale some columns of each layer's output: integers say which, floats by how much."""

    def shared(self, model, rng):
        return {"places": rng.permutation(16)[:5], "scales": rng.standard_normal(5).astype(np.float32)}

    def wrap(self, model, rng):
        return {path: ScaledColumns(layer) for path, layer in match_targets(model, ("query", "value"))}


class ScaledColumns(tp.peft.Wrapper):
    def __init__(self, base):
        self.base, self.g = base, tp.Parameter(np.ones(1, np.float32))

    def forward(self, x):
        factors = np.ones(16, self.g.dtype)
        factors[self.shared["places"]] = self.shared["scales"]
        return self.base(x) * Tensor(factors) * self.g


def test_a_method_of_ones_own_may_share_integers_too(gpt, tmp_path):
    tuned = learned(gpt(np.float32), Columns())
    assert {name: a.dtype for name, a in tuned.parts["Columns"].shared.items()} == {"places": np.int64, "scales": np.float32}
    tuned.save(tmp_path)
    again = tp.load_adapter(gpt(np.float32), tmp_path, method=Columns)
    assert np.array_equal(again(TOKENS).data, tuned(TOKENS).data) and same(again.state_dict(), tuned.state_dict())


def test_two_parts_do_not_share_the_dict_that_a_method_returns(gpt):
    class Same(Columns):
        def shared(self, model, rng): return numbers
    numbers = Columns().shared(None, np.random.default_rng(0))
    tuned = tp.attach(gpt(), {"a": Same(), "b": Same()})
    state = tuned.state_dict()
    tuned.load_state_dict(state | {"a/shared.scales": np.zeros(5)})
    assert not tuned.parts["a"].shared["scales"].any() and tuned.parts["b"].shared["scales"].all() and numbers["scales"].all()


def test_a_wrapper_of_a_method_without_any_has_no_such_attribute(gpt):
    tuned = tp.attach(gpt(), tp.LoRA(2))
    assert tuned.parts["LoRA"].shared == {} and not any("shared" in vars(layer) for layer in layers_of(tuned, "LoRA"))


# -- cast, copied, moved ---------------------------------------------------------------------------
@pytest.mark.parametrize("how", ["on", "model alone", "part off", "disabled"])
def test_a_cast_of_the_model_leaves_it_as_it_is(how, gpt):
    """It was drawn in float32. Its numbers are the same in both types, so one array serves both."""
    tuned = learned(gpt(np.float32), VERA)
    want, before = tuned(TOKENS).data, {n: a.copy() for n, a in tuned.state_dict().items()}
    arrays = list(tuned.parts["VeRA"].shared.values())
    if how == "part off": tuned.detach("VeRA")
    if how == "disabled":
        with tuned.disabled(): tuned.to(np.float64)
    elif how == "model alone": tuned.model.to(np.float64)
    else: tuned.to(np.float64)
    if how == "part off": tuned.reattach("VeRA")
    assert_one_copy(tuned)
    assert all(a is b for a, b in zip(arrays, tuned.parts["VeRA"].shared.values(), strict=True))
    out = tuned(TOKENS).data
    assert out.dtype == np.float64
    assert_close(out, want, 1e-5)
    tuned.to(np.float32)
    assert_one_copy(tuned)
    assert np.array_equal(tuned(TOKENS).data, want) and same(tuned.state_dict(), before)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_a_copy_has_one_copy_of_its_own(copied, gpt):
    tuned = learned(gpt(), VERA)
    want = tuned(TOKENS).data
    again, model = copied(tuned), copied(tuned.model)
    assert_one_copy(again)
    first, *others = [layer.shared for _, layer in model.named_modules() if "shared" in vars(layer)]
    assert len(others) == 5 and all(shared is first for shared in others)
    for shared in (again.parts["VeRA"].shared, first): shared["A"][:] = 0
    assert np.array_equal(tuned(TOKENS).data, want) and not np.array_equal(again(TOKENS).data, want)
    assert frozen_bytes(again.detach()) == frozen_bytes(gpt())


def test_parts_are_given_away_with_it(gpt):
    model = gpt()
    giver = learned(model, {"given": VERA})
    want, shared = giver(TOKENS).data, giver.parts["given"].shared
    taker = tp.attach(model, {"own": tp.VeRA(3)}).add(giver)
    assert taker.parts["given"].shared is shared
    for name in ("own", "given"): assert_one_copy(taker, name)
    taker.detach("own")
    assert np.array_equal(taker(TOKENS).data, want)


def test_rows_of_a_batch_read_those_of_their_task(gpt):
    model, tuned, want = gpt(), {}, {}
    for task in "ab":
        tuned[task] = tp.attach(model, VERA, rng=ord(task))
        move(tuned[task], np.random.default_rng(0))
        want[task] = tuned[task](TOKENS).data
    out = tp.mixed_batch(model, tuned, TOKENS, ["a", "b", None]).data
    assert_close(out[:2], np.stack([want["a"][0], want["b"][1]]), 1e-12)
    assert not np.array_equal(want["a"], want["b"])


def test_merged_in_place_and_with_another_part_that_stays(gpt):
    tuned = learned(gpt(), {"bases": VERA, "norms": tp.FullFineTuning(("norm1",)), "off": tp.VeRA(4)})
    tuned.detach("off")
    want = tuned(TOKENS).data
    merged = tuned.merge(in_place=True)
    assert [*merged.parts] == ["off"]
    assert_close(merged(TOKENS), want, 1e-11)
    merged.reattach("off")
    assert_one_copy(merged, "off")
    assert not np.array_equal(merged(TOKENS).data, want)


# -- files -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("off", [False, True])
def test_loading_gives_the_files_numbers_to_all_layers(off, gpt, tmp_path):
    """Not those that the loader draws: the file was made with another seed."""
    tuned = tp.attach(gpt(np.float32), VERA, rng=7)
    move(tuned, np.random.default_rng(0))
    want = tuned(TOKENS).data
    if off: tuned.detach("VeRA")
    tuned.save(tmp_path)
    for dtype in (np.float32, np.float64):
        again = tp.load_adapter(gpt(np.float32).to(dtype), tmp_path)
        if off: again.reattach("VeRA")
        assert_one_copy(again)
        assert np.array_equal(again.parts["VeRA"].shared["A"], tuned.parts["VeRA"].shared["A"])
        assert_close(again(TOKENS).data, want, 0 if dtype == np.float32 else 1e-5)


def test_loading_a_state_fills_the_same_dict(gpt):
    tuned, other = learned(gpt(), VERA), tp.attach(gpt(), VERA, rng=5)
    shared = other.parts["VeRA"].shared
    other.load_state_dict(tuned.state_dict())
    assert other.parts["VeRA"].shared is shared and np.array_equal(other(TOKENS).data, tuned(TOKENS).data)
    assert_one_copy(other)
    assert not np.shares_memory(shared["A"], tuned.parts["VeRA"].shared["A"])


DAMAGED = {
    "narrower": (lambda A: A[:, :-1], ValueError, r"VeRA/shared.A has shape \(6, 63\), expected \(6, 64\)"),
    "of another rank": (lambda A: A[:-1], ValueError, r"VeRA/shared.A has shape \(5, 64\), expected \(6, 64\)"),
    "flat": (lambda A: A.ravel(), ValueError, r"VeRA/shared.A has shape \(384,\)"),
    "not finite": (lambda A: np.full_like(A, np.nan), ValueError, "VeRA/shared.A.? has numbers that (float32|are not finite)"),
    "too large": (lambda A: np.full(A.shape, 1e300), ValueError, "VeRA/shared.A has numbers that float32 cannot hold"),
    "missing": (lambda A: None, KeyError, "missing .'VeRA/shared.A'"),
    "twice": (..., KeyError, "unknown .'VeRA/shared.C'")}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_hostile_file_is_refused_and_the_model_stays_as_it_was(damage, gpt, tmp_path):
    tuned = learned(gpt(np.float32), VERA)
    tuned.save(tmp_path)
    path = tmp_path / "adapter.safetensors"
    arrays, meta = load_arrays(path)
    change, error, message = DAMAGED[damage]
    if change is ...: arrays["VeRA/shared.C"] = arrays["VeRA/shared.A"]
    else: arrays["VeRA/shared.A"] = change(arrays["VeRA/shared.A"])
    save_raw(path, {name: a for name, a in arrays.items() if a is not None}, meta)
    model = gpt(np.float32)
    before = frozen_bytes(model)
    with pytest.raises(error, match=message): tp.load_adapter(model, tmp_path)
    assert model.attached is None and frozen_bytes(model) == before
    arrays = {name: a for name, a in tuned.state_dict().items()}
    if change is not ...: arrays["VeRA/shared.A"] = change(arrays["VeRA/shared.A"])
    if damage in ("missing", "twice"): return
    before = frozen_bytes(tuned)
    with pytest.raises(error, match=message): tuned.load_state_dict(arrays)
    assert frozen_bytes(tuned) == before


@pytest.mark.parametrize("name", ["VeRA", "RandLoRA"])
def test_a_file_that_claims_a_huge_rank_draws_nothing(name, gpt, tmp_path):
    tuned = learned(gpt(np.float32), getattr(tp, name)(3))
    tuned.save(tmp_path)
    path = tmp_path / "adapter.safetensors"
    arrays, meta = load_arrays(path)
    meta["parts"][name]["fields"]["rank"] = 10**7
    save_arrays(path, arrays, meta)
    model = gpt(np.float32)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="many more numbers than the file holds"): tp.load_adapter(model, tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2e6
    finally: tracemalloc.stop()


# -- training --------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", [VERA, tp.RandLoRA(3, alpha=1)], ids=str)
def test_a_run_resumes_with_the_numbers_of_its_checkpoint_bit_for_bit(method, gpt, tmp_path):
    """Also where the resuming process drew others; `keep_best` holds and restores them, too."""
    options = dict(lr=1e-2, workers=1, progress=False, eval_every=2, keep_best=True, batch_size=2)
    whole = tp.attach(gpt(np.float32), method, rng=0)
    history = tp.train(whole, Noise(), 6, **options)
    tp.train(tp.attach(gpt(np.float32), method, rng=0), Noise(), 6, checkpoint=tmp_path / "c", stop_after=3, **options)
    resumed = tp.attach(gpt(np.float32), method, rng=9)
    again = tp.train(resumed, Noise(), 6, checkpoint=tmp_path / "c", **options)
    assert same(resumed.state_dict(), whole.state_dict()) and history.loss == again.loss
    assert_one_copy(resumed, type(method).__name__)
    assert np.array_equal(resumed(TOKENS).data, whole(TOKENS).data)


# -- verbs in any order ----------------------------------------------------------------------------
@dataclass(frozen=True)
class Apart(tp.VeRA):
    """VeRA without a seam: every layer has A and B of its own, which are the same numbers."""

    def shared(self, model, rng): return {}

    def wrap(self, model, rng):
        bases = tp.VeRA.shared(self, model, rng)
        return {path: ApartLinear(layer, self, bases, rng) for path, layer in match_targets(model, self.targets)}


class ApartLinear(VeRALinear):
    def __init__(self, base, method, bases, rng):
        super().__init__(base, method, rng)
        self.A, self.B = (array.copy() for array in bases.values())

    def bases(self):
        A, B = (array.astype(self.d.dtype) for array in (self.A, self.B))
        return Tensor(A[:, :self.d_in]), Tensor(B[:self.d_out])


class Walk:
    """A model with a shared module, to which verbs are done."""

    def __init__(self, method, folder):
        self.folder, self.method, self.n = Path(folder), method, 0
        self.tuned = tp.attach(make_gpt(np.float32), {"one": method, "two": method}, rng=0)
        move(self.tuned, np.random.default_rng(0))

    def off(self): self.tuned.detach("two")
    def on(self): self.tuned.reattach("two")
    def alone(self): self.tuned.detach("one")
    def both(self): self.tuned.reattach("one")
    def all_on(self): self.tuned.reattach()
    def copied(self): self.tuned = copy.deepcopy(self.tuned)
    def pickled(self): self.tuned = pickle.loads(pickle.dumps(self.tuned))
    def cast(self): self.tuned.to(np.float64 if self.tuned.model.token_embedding.weight.dtype == np.float32 else np.float32)

    def attach(self):
        self.n += 1
        if self.n < 4: self.tuned.add({f"more {self.n}": self.method}, rng=self.n)

    def train(self): tp.train(self.tuned, Noise(), 1, lr=1e-2, batch_size=2, workers=1, progress=False)
    def save(self): self.tuned.save(self.folder)

    def load(self):
        """The file's numbers go to a new model, of the same dtype; without a file nothing happens."""
        if not (self.folder / "adapter.safetensors").exists(): return
        model = make_gpt(np.float32).to(self.tuned.model.token_embedding.weight.dtype)
        self.tuned = tp.load_adapter(model, self.folder, method=type(self.method))

    def merge(self):
        """The first of several parts; the base has other numbers then, so files of before are gone."""
        on = [name for name, part in self.tuned.parts.items() if part.on]
        if len(self.tuned.parts) > 1 and on: self.merged = self.tuned.merge(on[0])(TOKENS).data


VERBS = [name for name in vars(Walk) if not name.startswith("_")]


def test_verbs_in_any_order_do_what_they_do_with_arrays_in_each_layer(tmp_path_factory):
    """The same verbs on a model whose layers have the arrays themselves: the same logits, bit for bit, after each of them."""
    hypothesis, st = pytest.importorskip("hypothesis"), pytest.importorskip("hypothesis.strategies")

    @hypothesis.settings(max_examples=12)
    @hypothesis.given(st.lists(st.sampled_from(VERBS), min_size=4, max_size=12))
    def check(verbs): walk_twice(verbs, tmp_path_factory)
    check()


def walk_twice(verbs, tmp_path_factory):
    """Do the verbs to a model that shares its arrays and to one that does not, and compare them after each verb."""
    walks = [Walk(method(6, targets=VERA.targets), tmp_path_factory.mktemp("walk")) for method in (tp.VeRA, Apart)]
    for verb in verbs:
        for walk in walks: getattr(walk, verb)()
        ours, theirs = (walk.tuned(TOKENS).data for walk in walks)
        assert np.array_equal(ours, theirs), verb
        if verb == "merge" and hasattr(walks[0], "merged"): assert np.array_equal(*(walk.merged for walk in walks))
        for name in walks[0].tuned.parts: assert_one_copy(walks[0].tuned, name)
        for name, part in walks[0].tuned.parts.items():
            twin = walks[1].tuned.parts[name].wrappers.values()
            assert all(np.array_equal(part.shared[letter], getattr(layer, letter)) for layer in twin for letter in "AB")
