"""`train(optimizer=…)`: every optimizer with every method, killed and resumed, with what else `train` can do; refusals."""
import re
from functools import partial

import numpy as np
import pytest

import tinypeft as tp
from tests.families import make
from tests.methods import SMALL
from tests.protocol import Labels
from tests.stress.attacks import save_raw
from tests.toys import Noise, same, small
from tinypeft.files import load_arrays, save_arrays
from tinypeft.training.options import TrainOptions
from tinypeft.training.rates import make_optimizer, trained

N = 6
OPTIMIZERS = {"SGD": partial(tp.optim.SGD, momentum=0.9), "Muon": tp.optim.Muon,
              "Muon of AdamW's size": partial(tp.optim.Muon, adjust="match_rms_adamw"),
              "AdamW8bit": partial(tp.optim.AdamW8bit, min_8bit_size=0), "GaLore": partial(tp.optim.GaLore, rank=2, every=2)}
NEW = "Muon", "AdamW8bit", "GaLore"
METHODS = {**SMALL, "probe": tp.LinearProbe()}
EVERYTHING = dict(lr=1e-2, accumulate=2, clip=0.5, weight_decay=0.1, eval_every=2, keep_best=True, schedule_kind="cosine",
                  warmup=2, workers=1, progress=False)


def tables(model):
    """The parameters of a model that `train` tells an optimizer are tables."""
    return [t.p for t in trained(model) if t.is_table]


def tuned_by(method, family="GPT"):
    return tp.attach(small() if family == "GPT" else make(family, np.float32), METHODS[method], head=3, rng=0)


@pytest.mark.parametrize("optimizer", NEW)
@pytest.mark.parametrize("method", METHODS)
def test_resuming_is_never_having_stopped(method, optimizer, tmp_path):
    """Bit-exact: every method with every optimizer, and with accumulation, rates of its own, the best state, clipping."""
    rate = {next(iter(tuned_by(method).state_dict())).replace("/", "."): 3.0}
    options = EVERYTHING | {"optimizer": OPTIMIZERS[optimizer], "rates": rate, "checkpoint_every": N}
    whole = tuned_by(method)
    expected = tp.train(whole, Labels(), N, **options)
    assert np.isfinite(expected.loss).all() and not same(whole.state_dict(), tuned_by(method).state_dict())
    tp.train(tuned_by(method), Labels(), N, checkpoint=tmp_path / "c", stop_after=3, **options)
    resumed = tuned_by(method)
    history = tp.train(resumed, Labels(), N, checkpoint=tmp_path / "c", **options)
    assert same(resumed.state_dict(), whole.state_dict())
    assert history.loss == expected.loss and history.evals == expected.evals and history.best == expected.best


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_llama(method, optimizer):
    tuned = tuned_by(method, "Llama")
    before = {name: a.copy() for name, a in tuned.state_dict().items()}
    history = tp.train(tuned, Labels(), 3, lr=1e-2, optimizer=OPTIMIZERS[optimizer], workers=1, progress=False)
    assert np.isfinite(history.loss).all() and not same(before, tuned.state_dict())
    assert all(np.isfinite(a).all() for a in tuned.state_dict().values())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_it_learns_and_a_search_finds_a_rate(optimizer):
    """In float64, too. The search ends before the largest rate, and a run at the rate learns the one batch by heart."""
    class Same(Noise):
        def batch(self, split, size, rng):
            rows = np.random.default_rng(0).integers(0, 37, (2, 4, 7))
            return tuple(np.resize(part, (size, 7)) for part in rows)
        def batches(self, split, size): yield self.batch(split, size, None)
    model = small().to(np.float64)
    search = tp.find_rate(model, Same(), lowest=1e-4, highest=30.0, steps=24, optimizer=OPTIMIZERS[optimizer], progress=False)
    assert 1e-4 < search.suggestion < 30
    history = tp.train(model, Same(), 20, lr=search.suggestion / 3, optimizer=OPTIMIZERS[optimizer], progress=False)
    assert history.loss[-1] < 0.8 * history.loss[0] and all(p.dtype == np.float64 for p in model.parameters())


def test_what_muon_and_galore_leave_to_adamw_bit_exact():
    """Vectors, virtual tokens, embeddings and heads: where a method trains nothing else, the run is AdamW's."""
    for method in (tp.IA3(), tp.PromptTuning(3), tp.PrefixTuning(3, reparameterize=False), tp.PTuning(encoder=None)):
        states = []
        for optimizer in (tp.optim.AdamW, tp.optim.Muon, tp.optim.GaLore):
            tuned = tp.attach(small(), method, head=3, rng=0)
            tp.train(tuned, Labels(), 3, lr=1e-2, weight_decay=0.1, optimizer=optimizer, progress=False)
            states.append(tuned.state_dict())
        assert same(states[0], states[1]) and same(states[0], states[2])


@pytest.mark.parametrize("family, names", [
    ("GPT", ["model.head.weight", "model.head.bias", "model.position_embedding.weight", "model.token_embedding.weight"]),
    ("Qwen3", ["model.head.weight", "model.head.bias", "model.token_embedding.weight", "model.lm_head.weight"])])
def test_the_tables_of_a_model(family, names):
    tuned = tp.attach(make(family), {"a": tp.FullFineTuning(), "b": tp.PromptTuning(2)}, head=3, rng=0)
    paths = {id(p): path for path, p in tuned.named_parameters()}
    assert {paths[id(p)] for p in tables(tuned)} == {*names, "virtual.P_e"}
    optimizer = make_optimizer(tuned, TrainOptions(steps=1, optimizer=tp.optim.Muon))
    by_muon = {paths[id(p)] for p in optimizer.parameters() if "u" in optimizer.state[id(p)]}
    assert by_muon == {path for path, p in tuned.named_parameters() if path.startswith("model.blocks.") and p.ndim == 2}


@pytest.mark.parametrize("optimizer", NEW)
def test_weight_decay_is_for_the_parameters_that_adamw_decays(optimizer):
    def decays(kind):
        tuned = tuned_by("full")
        names = {id(p): path for path, p in tuned.named_parameters()}
        made = make_optimizer(tuned, TrainOptions(steps=1, optimizer=kind, weight_decay=0.3, rates={"norm1": 2.0}))
        return {names[id(p)]: (g["weight_decay"], g["lr"]) for g in made.groups for p in g["params"]}
    assert decays(OPTIMIZERS[optimizer]) == decays(tp.optim.AdamW)


@pytest.mark.parametrize("optimizer", NEW)
def test_the_first_step_of_a_lora_moves_b_alone(optimizer):
    """B is zero, so that the gradient of A is: no optimizer makes something of nothing, and none a NaN."""
    tuned = tp.attach(small(), tp.LoRA(2), rng=0)
    before = {name: a.copy() for name, a in tuned.state_dict().items()}
    tp.train(tuned, Noise(), 1, lr=1e-2, optimizer=OPTIMIZERS[optimizer], progress=False)
    for name, a in tuned.state_dict().items(): assert np.array_equal(a, before[name]) == name.endswith("A"), name


@pytest.mark.parametrize("optimizer", NEW)
def test_a_parameter_that_gets_no_gradient_for_a_while(optimizer):
    """It stays, with its state; and one that gets its first gradient late moves from then on."""
    first, late = (tp.Parameter(np.ones((4, 6))) for _ in range(2))
    made, rng = OPTIMIZERS[optimizer]([first, late], lr=0.1), np.random.default_rng(0)
    for step in range(6):
        first.grad = rng.standard_normal((4, 6)) if step != 2 else None
        late.grad = rng.standard_normal((4, 6)) if step >= 3 else None
        arrays = {id(p): [p.data, *made.state[id(p)].values()] for p in (first, late)}
        before = {key: [a.copy() for a in own] for key, own in arrays.items()}
        made.step()
        for p in (first, late):
            moved = [not np.array_equal(a, b) for a, b in zip(before[id(p)], arrays[id(p)], strict=True)]
            assert any(moved) == moved[0] == (p.grad is not None)


@pytest.mark.parametrize("optimizer", NEW)
def test_a_small_run_falls_below_its_start(optimizer):
    """Two threads and dropout, as a user has them."""
    tuned = tp.attach(small(), tp.LoRA(4, dropout=0.1), rng=0)
    again = tp.attach(small(), tp.LoRA(4, dropout=0.1), rng=0)
    losses = [tp.train(t, Noise(), 4, lr=1e-2, optimizer=OPTIMIZERS[optimizer], progress=False).loss for t in (tuned, again)]
    assert losses[0] == losses[1]


def test_a_function_is_given_rate_and_decay_and_betas_that_are_not_the_usual_ones():
    seen = {}
    def plain(groups, lr, weight_decay): return seen.update(plain=()) or tp.optim.SGD(groups, lr)
    def open_one(groups, **options): return seen.update(open_one={*options}) or tp.optim.AdamW(groups, **options)
    for function in (plain, open_one): tp.train(small(), Noise(), 1, optimizer=function, progress=False)
    assert seen == {"plain": (), "open_one": {"lr", "weight_decay"}}
    tp.train(small(), Noise(), 1, optimizer=open_one, betas=(0.8, 0.9), progress=False)
    assert seen["open_one"] == {"lr", "weight_decay", "betas"}


@pytest.mark.parametrize("kind", [tp.optim.Muon, tp.optim.GaLore])
def test_what_a_function_makes_is_told_the_tables(kind):
    """As the class is, and a class with options."""
    makers = kind, partial(kind, eps=1e-6), lambda groups, **options: kind(groups, **options)
    for make_one in makers:
        tuned = tp.attach(small(), tp.FullFineTuning(), head=3, rng=0)
        made = make_optimizer(tuned, TrainOptions(steps=1, optimizer=make_one))
        assert all(made.state[id(p)].keys() == {"m", "v"} for p in tables(tuned))
        assert made.state[id(tuned.model.blocks[0].mlp.up.weight)].keys().isdisjoint({"m", "v"})


@pytest.mark.parametrize("other", [tp.PrefixTuning(3, reparameterize=False), tp.LoReFT(2)])
def test_a_prompt_is_a_table_beside_another_virtual_part(other):
    tuned = tp.attach(small(), tp.PromptTuning(2), other, rng=0)
    ids = {id(p) for p in tables(tuned)}
    assert id(tuned.parts["PromptTuning"].virtual.P_e) in ids
    hidden = [p for path, p in tuned.named_parameters() if path.endswith((".M", ".W"))]          # LoReFT's
    assert not ids & {id(p) for p in hidden} and len(hidden) == (4 if isinstance(other, tp.LoReFT) else 0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_outside_dyloras_mask_nothing_moves(optimizer):
    """Neither a number nor its moments, bit for bit."""
    tuned = tp.attach(small(), tp.DyLoRA(4), rng=0)
    made = make_optimizer(tuned, TrainOptions(steps=1, lr=1e-2, weight_decay=0.1, optimizer=OPTIMIZERS[optimizer]))
    A = next(iter(tuned.wrappers.values())).A
    rng = np.random.default_rng(0)
    for b in 4, 2, 1, 3:
        for layer in tuned.wrappers.values(): layer.start_step(b)
        for p in made.parameters(): p.grad = rng.standard_normal(p.shape).astype(p.dtype)
        before = [a.copy() for a in (A.data, *made.state[id(A)].values())]
        made.step()
        for old, new in zip(before, (A.data, *made.state[id(A)].values()), strict=True):
            assert np.array_equal(old[b:], new[b:]) and not np.array_equal(old[:b], new[:b])


# -- options and files -----------------------------------------------------------------------------
@pytest.mark.parametrize("options, error, says", [
    ({"optimizer": "muon"}, ValueError, "optimizer must be a class of tp.optim, such as tp.optim.Muon, got 'muon'"),
    ({"optimizer": tp.optim.SGD([tp.Parameter(np.ones(2))], 0.1)}, ValueError, "optimizer must be a class of tp.optim"),
    ({"optimizer": tp.optim.SGD, "betas": (0.8, 0.9)}, TypeError, "SGD.*got an unexpected keyword argument 'betas'"),
    ({"optimizer": partial(tp.optim.Muon, weight_decay=0.1, lr=1.0)}, ValueError, "lr, weight_decay of the optimizer would be"),
    ({"optimizer": partial(tp.optim.Muon, rank=4)}, TypeError, "got an unexpected keyword argument 'rank'")])
def test_misuse(options, error, says):
    with pytest.raises(error, match=says): tp.train(small(), Noise(), 1, progress=False, **options)


@pytest.mark.parametrize("before, after, says", [
    (tp.optim.AdamW, tp.optim.Muon, "optimizer was None, is Muon(momentum=0.95, adjust='original'"),
    (tp.optim.Muon, tp.optim.AdamW, "optimizer was Muon(momentum=0.95, adjust='original'"),
    (tp.optim.GaLore, partial(tp.optim.GaLore, scale=1.0), "scale=0.25"),
    (tp.optim.Muon, partial(tp.optim.Muon, momentum=0.9), "is Muon(momentum=0.9"),
    (tp.optim.AdamW, partial(tp.optim.AdamW, eps=1e-6), "optimizer was None, is AdamW(eps=1e-06)")])
def test_a_checkpoint_of_another_optimizer_is_refused(before, after, says, tmp_path):
    tp.train(small(), Noise(), N, optimizer=before, checkpoint=tmp_path / "c", stop_after=2, progress=False)
    model = small()
    with pytest.raises(ValueError, match=f"another run .*{re.escape(says)}"):
        tp.train(model, Noise(), N, optimizer=after, checkpoint=tmp_path / "c", progress=False)
    assert same(model.state_dict(), small().state_dict())


def test_a_checkpoint_that_states_no_optimizer_is_adamws(tmp_path):
    """Such were all before there were others."""
    whole, resumed = small(), small()
    tp.train(whole, Noise(), N, progress=False)
    tp.train(small(), Noise(), N, checkpoint=tmp_path / "c", stop_after=2, progress=False)
    arrays, meta = load_arrays(tmp_path / "c")
    assert meta["settings"].pop("optimizer") is None
    save_arrays(tmp_path / "c", arrays, meta)
    tp.train(resumed, Noise(), N, checkpoint=tmp_path / "c", progress=False)
    assert same(resumed.state_dict(), whole.state_dict())


def changed(name, change):
    """A change of the first array of the optimizer whose name begins like this."""
    def damage(arrays):
        name_of = min(key for key in arrays if key.startswith(f"optimizer/{name}"))
        arrays[name_of] = change(arrays[name_of].copy())
    return damage


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("optimizer, damage, says", [
    ("AdamW8bit", changed("m_codes", lambda a: a.astype(np.int64)), "m_codes.0 has dtype int64, expected uint8"),
    ("AdamW8bit", changed("m_codes", lambda a: a[:-1]), r"m_codes.0 has shape \(2, 256\), expected \(3, 256\)"),
    ("AdamW8bit", changed("v_absmax", lambda a: -a), "v_absmax.0 holds a number below 0"),
    ("AdamW8bit", changed("m_absmax", lambda a: a + np.inf), "finite"),
    ("GaLore", changed("P", lambda a: a.T.copy()), r"P.10 has shape \(2, 16\), expected \(16, 2\)"),
    ("GaLore", changed("V", lambda a: -1 - a), "V.10 holds a number below 0"),
    ("Muon", changed("u", lambda a: a.astype(np.float64)), "u.10 has dtype float64, expected float32"),
    ("Muon", lambda arrays: arrays.update({"optimizer/m.2": arrays.pop("optimizer/u.2")}), r"lack \['u.2'\]")])
def test_a_damaged_state_is_refused_and_changes_nothing(optimizer, damage, says, tmp_path):
    options = dict(optimizer=OPTIMIZERS[optimizer], checkpoint=tmp_path / "c", progress=False)
    tp.train(small(), Noise(), N, stop_after=2, **options)
    arrays, meta = load_arrays(tmp_path / "c")
    damage(arrays)
    save_raw(tmp_path / "c", arrays, meta)
    model = small()
    with pytest.raises(ValueError, match=says): tp.train(model, Noise(), N, **options)
    assert same(model.state_dict(), small().state_dict())
