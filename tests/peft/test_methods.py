"""What every method promises: one check a promise, over the rows of tests/methods.py, families of models, and weights."""
import copy
import pickle
import tracemalloc

import numpy as np
import pytest

import tinypeft as tp
from tests.conftest import make_gpt
from tests.families import FAMILIES, make
from tests.methods import ROWS, SMALL, instances, linear, size_of, weight, with_dropout
from tests.methods import bias as bias_of
from tests.oracles import assert_close
from tests.protocol import Both, Labels, assert_gradients, assert_same_race, assert_saves, frozen_bytes, learned, move, outputs
from tests.toys import Noise
from tinypeft.engine import functional as F
from tinypeft.models.llama import Llama, LlamaConfig

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:peft.*", "ignore::UserWarning:torch.*",
                                        "ignore:Sparse invariant checks")
EVERY = "GPT", *FAMILIES
CODES = "NF4", "coded table"
OTHERS = tp.LoRA(2, targets="all"), tp.IA3(), tp.FullFineTuning(("attention",))


# -- where a check runs ------------------------------------------------------------------------------------------------
def on(family, weights):
    """A model of plain weights, of NF4 in its blocks, or of a GGUF file's codes in its blocks, its embedding and its head."""
    dtype = np.float64 if weights.startswith("float64") else np.float32
    if weights.endswith("coded table"):                  # rows are whole blocks of 32
        sizes = {"d_model": 32} if family == "GPT" else {"d_model": 32, "d_mlp": 32, "d_head": 8}
        return tp.quantize(make(family, dtype, **sizes), tp.GGUF("Q4_0", embeddings=True))
    model = make(family, dtype)
    return tp.quantize(model, tp.NF4(block_size=8)) if weights.endswith("NF4") else model


def cells(plain="float32", codes=CODES, others=True, where=lambda row: True, coded=("GPT", "Llama"), long=()):
    """Parametrize a check: every small method on every family of plain weights, and on codes of the families `coded`; all
    other settings of it on a GPT. Codes of the families `long` wait for the long tests."""
    found = []
    for name, row in ROWS.items():
        if not where(row): continue
        places = [(row.small, family, plain) for family in EVERY]
        if others: places += [(method, "GPT", plain) for method in row.others]
        if not row.no_codes: places += [(row.small, family, w) for w in codes for family in (*coded, *long)]
        for method, family, weights in places:
            settings = "" if method is row.small else f"-{method}"
            marks = [pytest.mark.long] * (family in long and weights in codes)
            found.append(pytest.param(row, method, family, weights, id=f"{name}{settings}-{family}-{weights}", marks=marks))
    return pytest.mark.parametrize(("row", "method", "family", "weights"), found)


def settings(where=lambda row: True):
    """Parametrize a check that runs on a GPT: every setting of every method."""
    found = [pytest.param(row, method, id=f"{name}-{method}") for name, row in ROWS.items() if where(row)
             for method in instances(row)]
    return pytest.mark.parametrize(("row", "method"), found)


def rows(where=lambda row: True):
    """Parametrize a check that runs on a GPT: every method."""
    return pytest.mark.parametrize("row", [pytest.param(row, id=name) for name, row in ROWS.items() if where(row)])


def test_the_table_is_complete():
    """A method without a row would promise nothing. The probe trains a head alone: test_probe.py."""
    assert {*ROWS, "probe"} == {*tp.METHODS}
    assert all(type(method) is tp.METHODS[name] for name, row in ROWS.items() for method in instances(row))


# -- on the model and off again ----------------------------------------------------------------------------------------
@cells()
def test_it_starts_where_its_paper_says(row, method, family, weights, tokens):
    """A fresh method computes what its base computes, bit for bit, or it starts near the base, or elsewhere."""
    model = on(family, weights)
    before = model(tokens).data
    after = tp.attach(model, method, rng=1)(tokens).data
    assert after.dtype == before.dtype and after.shape == before.shape
    is_at_the_base = row.starts == "the base" and method not in row.drawn
    assert np.array_equal(after, before) == is_at_the_base
    if row.starts == "near the base": assert np.abs(after - before).max() < 1e-2 * np.abs(before).max()


@cells(long=("Qwen3", "Gemma"))
def test_training_moves_what_it_trains_and_nothing_else(row, method, family, weights, tokens):
    """Three steps move every number that is trained. Nothing else moves by a bit or gets a gradient, and losses are finite."""
    model = on(family, weights)
    tuned = tp.attach(model, method, head=3, rng=1)
    trained = {id(p) for p in tuned.trainable_parameters()}
    frozen = {n: p for n, p in tuned.named_parameters() if id(p) not in trained}
    start = {n: p.data.copy() for n, p in tuned.named_parameters()}
    before = frozen_bytes(model)
    history = tp.train(tuned, Both(), 3, batch_size=4, lr=1e-2, workers=1)
    assert np.isfinite(history.loss).all()
    assert all(p.grad is None and np.array_equal(p.data, start[n]) for n, p in frozen.items())
    stood = [n for n, p in tuned.named_parameters() if id(p) in trained and np.array_equal(p.data, start[n])]
    assert all(n.endswith(row.still) for n in stood), stood
    assert frozen_bytes(model) == frozen_bytes(tuned.frozen) == before


@cells()
def test_off_it_is_the_base_and_on_again_it_is_what_it_was(row, method, family, weights, tokens):
    """`disabled` and `detach(name)` give the base's logits, `reattach` the method's, bit for bit, whatever the base learns."""
    model = on(family, weights)
    before, flags, logits = frozen_bytes(model), [p.requires_grad for p in model.parameters()], model(tokens).data
    tuned = tp.attach(model, method, head=3, rng=1)
    move(tuned, np.random.default_rng(0))
    moved = outputs(tuned, tokens)
    assert moved[0] != logits.tobytes()
    with tuned.disabled(): assert np.array_equal(tuned(tokens).data, logits)
    assert outputs(tuned, tokens) == moved
    assert np.array_equal(tuned.detach(*tuned.parts)(tokens).data, logits)
    assert outputs(tuned.reattach(), tokens) == moved
    assert tuned.detach() is model and model.attached is None
    assert frozen_bytes(model) == before and np.array_equal(model(tokens).data, logits)
    assert [p.requires_grad for p in model.parameters()] == flags
    with pytest.warns(UserWarning, match="base of a PeftModel, which computes with the base as it was"):
        tp.train(model, Noise(), 1, lr=1e-2, progress=False)
    assert frozen_bytes(model) != before and outputs(tuned, tokens) == moved
    with tuned.disabled(): assert np.array_equal(tuned(tokens).data, logits)


@cells()
def test_a_copy_a_pickle_and_a_file_compute_the_same(row, method, family, weights, tokens, tmp_path):
    """Of a model that has trained, each gives the same logits and class logits, bit for bit."""
    tuned = tp.attach(on(family, weights), method, head=3, rng=1)
    tp.train(tuned, Labels(), 3, batch_size=4, lr=1e-2, workers=1)
    want = outputs(tuned, tokens)
    tuned.save(tmp_path)
    loaded = tp.load_adapter(on(family, weights), tmp_path)
    assert type(loaded.method) is type(tuned.method) and loaded.summary().stored == tuned.summary().stored
    for again in loaded, copy.deepcopy(tuned), pickle.loads(pickle.dumps(tuned)): assert outputs(again, tokens) == want


@rows()
def test_another_process_loads_the_same(row, tokens, tmp_path):
    """Nothing that a file lacks is left in the memory of the process that wrote it."""
    assert_saves(make_gpt, [m for method in instances(row) for m in (method, with_dropout(method)) if m], tokens, tmp_path)


@cells(plain="float64", codes=("float64 NF4", "NF4", "coded table"))
def test_merged_it_computes_the_same_or_the_refusal_says_why(row, method, family, weights, tokens):
    """A merged model is a plain one, and it has the tuned model's logits but for rounding."""
    model = on(family, weights)
    tuned = learned(model, method)
    want = tuned(tokens)
    if row.no_merge:
        with pytest.raises(tp.MethodError, match=f"^merge: .*{row.no_merge}"): tuned.merge()
        assert np.array_equal(tuned(tokens).data, want.data)
        return
    merged = tuned.merge()
    assert type(merged) is type(model) and merged.attached is None and merged.config == model.config
    assert weights != "float64" or [type(m) for _, m in merged.named_modules()] == [type(m) for m in modules(family)]
    assert_close(merged(tokens), want, 1e-12 if weights.startswith("float64") else 1e-5)
    assert np.array_equal(tuned(tokens).data, want.data)


def modules(family): return [m for _, m in make(family).named_modules()]


@rows(lambda row: row.no_codes)
@pytest.mark.parametrize("weights", CODES)
def test_codes_that_it_cannot_train_are_refused(row, weights, tokens):
    """The refusal says why, and the model is as it was."""
    model = on("GPT", weights)
    before = model(tokens).data
    with pytest.raises(tp.MethodError, match=row.no_codes): tp.attach(model, row.small, head=3)
    assert np.array_equal(model(tokens).data, before)


# -- what it computes --------------------------------------------------------------------------------------------------
@cells(plain="float64", codes=["float64 NF4"], others=False, where=lambda row: row.equation)
def test_a_layer_computes_its_equation(row, method, family, weights):
    """The equation of the paper, written once more in plain NumPy, gives the numbers of every layer."""
    tuned, rng = learned(on(family, weights), method), np.random.default_rng(2)
    assert tuned.wrappers
    for path, layer in tuned.wrappers.items():
        width = getattr(layer.base, "d_in", tuned.config.d_model)
        x = rng.standard_normal((7, width))
        y = layer(tp.Tensor(x[None])).data[0]
        assert_close(y, row.equation(method, layer, x), 1e-12, path)


@cells(plain="float64", codes=["float64 NF4", "float64 coded table"], coded=["Llama"], long=("GPT", "Qwen3", "Gemma"))
def test_gradients_are_those_of_finite_differences(row, method, family, weights, tokens):
    """Every trained number, for an upstream gradient drawn at random."""
    tuned = learned(on(family, weights), method)
    for layer in tuned.wrappers.values(): row.hold(layer)
    step = 3e-4 if weights.endswith("table") else 1e-3   # these models are wider, and bend more
    assert_gradients(tuned, tokens[:2, :4], kinks=method in row.bends, step=step)


@cells(plain="float64", codes=())
def test_it_generates_the_same_with_and_without_a_cache(row, method, family, weights, tokens):
    """What is kept of the tokens before is what would be computed again."""
    tuned = learned(on(family, weights), method)
    a, b = (tuned.generate(tokens, 8, use_cache=cached) for cached in (True, False))
    assert a.shape == (3, 15) and np.array_equal(a, b)


@pytest.mark.parametrize("row", [pytest.param(row, id=name) for name, row in ROWS.items()
                                 if row.equation and with_dropout(row.small)])
def test_dropout_is_on_the_input_of_the_change_in_training_alone(row, gpt, tokens):
    """The base reads its input whole: y = W x + b + (change of) dropped x. In evaluation nothing is dropped."""
    method = with_dropout(row.small)
    assert_close(tp.attach(gpt(), method, rng=1).train()(tokens), gpt()(tokens), 1e-12)
    tuned = learned(gpt(), method)
    quiet = tuned(tokens).data
    tuned.train()
    assert not np.array_equal(tuned(tokens).data, tuned(tokens).data)
    for layer in tuned.wrappers.values():
        x = np.random.default_rng(0).standard_normal((4, layer.d_in))
        layer.dropout.rng = np.random.default_rng(5)
        z = F.dropout(tp.Tensor(x), 0.5, np.random.default_rng(5)).data
        of_x, of_z = (linear(inputs, weight(layer), bias_of(layer)) for inputs in (x, z))
        assert_close(layer(tp.Tensor(x)), of_x + row.equation(method, layer, z) - of_z, 1e-12)
    assert np.array_equal(tuned.eval()(tokens).data, quiet)


@pytest.mark.parametrize("other", OTHERS, ids=str)
@settings(lambda row: row.equation and not row.no_merge)
def test_beside_another_method_it_merges_or_must_be_named_first(row, method, other, gpt, tokens):
    """Two methods on one layer are merged in their order, or the first alone. One that reads the layer itself refuses to be
    the second."""
    shared = {*tp.attach(gpt(), method).wrappers} & {*tp.attach(gpt(), other).wrappers}
    for parts in {"it": method, "other": other}, {"other": other, "it": method}:
        is_second = next(iter(parts)) == "other"
        if is_second and row.before and shared:
            with pytest.raises(tp.MethodError, match="works on the layer .* itself, which .* changes before it; name"):
                learned(gpt(), parts)
            continue
        tuned = learned(gpt(), parts)
        assert_close(tuned.merge()(tokens), tuned(tokens), 1e-11)
        if not is_second: assert_close(tuned.merge("it")(tokens), tuned(tokens), 1e-11)


@pytest.mark.parametrize("family", EVERY)
def test_rows_of_one_batch_have_different_methods(family, rng):
    """Each row has the logits that its own method gives it alone."""
    model = make(family)
    tuned = {name: learned(model, method) for name, method in SMALL.items()}
    tasks = [*SMALL, None]
    tokens = rng.integers(0, 37, (len(tasks), 6))
    got = tp.mixed_batch(model, tuned, tokens, tasks).data
    for b, task in enumerate(tasks):
        alone = (tuned[task] if task else model)(tokens[b:b + 1])
        np.testing.assert_allclose(got[b], alone.data[0], rtol=0, atol=1e-10)
    assert len({row.tobytes() for row in got}) == len(tasks)


# -- counts, memory, rates ---------------------------------------------------------------------------------------------
@cells(plain="float64", codes=())
def test_counts_are_the_formulas(row, method, family, weights):
    """Of what is trained and of what a file holds; a notebook shows them."""
    tuned = tp.attach(on(family, weights), method)
    summary, size = tuned.summary(), size_of(tuned)
    assert summary.trained == row.count(method, size)
    assert summary.stored == (row.stored or row.count)(method, size)
    assert f"{summary.trained:,}" in summary._repr_html_()


def test_nothing_but_full_fine_tuning_copies_the_weights(tmp_path):
    """7 MB of weights: attaching, switching off, saving and loading take a tenth of that."""
    model = Llama(LlamaConfig(8192, 256, d_model=128, n_layers=4, n_heads=4, n_kv_heads=2, d_mlp=384, d_head=32))
    most = model.n_parameters() * 4 // 10
    peaks, tokens = {}, np.arange(12).reshape(2, 6)
    np.unique(tokens)                                    # the first time imports NumPy's masked arrays

    def traced(what, call):
        tracemalloc.start()
        try: return call()
        finally:
            peaks[what] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    for name, row in ROWS.items():
        if row.no_codes: continue                        # what trains the weights themselves
        tuned = traced(name, lambda row=row: tp.attach(model, row.small, rng=0))
        tuned(tokens)                                    # and it runs
        traced(f"{name} off", lambda tuned=tuned: tuned.detach(*tuned.parts))
    assert peaks["lora"] - sum(p.data.nbytes for p in tuned.trainable_parameters()) < 2e5
    tuned = tp.attach(model, tp.LoRA(rank=2), rng=0)
    traced("save", lambda: tuned.save(tmp_path / "ours"))
    tuned.save(tmp_path / "peft", format="peft")         # the first time imports what PEFT's format needs
    traced("save for PEFT", lambda: tuned.save(tmp_path / "peft", format="peft"))
    traced("off and on", lambda: tuned.detach("LoRA") and tuned.reattach())
    for folder in ("ours", "peft"):
        tuned = traced(f"load {folder}", lambda folder=folder: tp.load_adapter(model, tmp_path / folder))
    assert max(peaks.values()) < most, {what: n for what, n in peaks.items() if n >= most}


@rows()
def test_a_learning_rate_can_be_given(row):
    """Its default suits a model 128 wide."""
    moved = []
    for lr in (None, 1e-12):
        tuned = tp.attach(make("Llama", np.float32), row.small, head=3, rng=1)
        start = [p.data.copy() for p in tuned.trainable_parameters()]
        tp.train(tuned, Labels(), 3, batch_size=4, lr=lr, weight_decay=0.0)
        moved.append(max(np.abs(p.data - a).max() for p, a in zip(tuned.trainable_parameters(), start, strict=True)))
    assert moved[0] > 1e-5 and moved[1] < 1e-9


# -- refusals ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("method", "words"), [(m, words) for row in ROWS.values() for m, words in row.too_much], ids=str)
def test_what_does_not_fit_the_model_is_refused(method, words, gpt, tokens):
    """The message says what fits, and nothing is left on the model."""
    model = gpt()
    before = model(tokens).data
    with pytest.raises(ValueError, match=words): tp.attach(model, method)
    assert model.attached is None and np.array_equal(model(tokens).data, before)


@rows()
def test_what_it_has_not_is_refused_by_name(row, gpt, tmp_path):
    """Low ranks, other ranks, what folds, a start from codes, a folder for PEFT: the error names the method."""
    tuned, name = learned(gpt(np.float32), row.small), type(row.small).__name__
    refused = {}
    if not row.low_rank: refused |= {lambda: tp.combine({tuned: 1}): name, tuned.ranks: "a product B A"}
    if not row.has_ranks: refused[lambda: tuned.set_rank(1)] = "no other rank to use"
    if not row.folds: refused[tuned.fold] = "no reparameterization"
    if not row.from_codes: refused[lambda: tp.loftq(gpt(np.float32), row.small, tp.NF4())] = "loftq: expected a LoRA"
    if row.no_folder: refused[lambda: tuned.save(tmp_path, format="peft")] = row.no_folder
    for call, words in refused.items():
        with pytest.raises(tp.MethodError, match=words): call()
    assert not any(tmp_path.iterdir())


# -- PEFT --------------------------------------------------------------------------------------------------------------
RACES = [pytest.param(row.peft, method, id=f"{name}-{method}") for name, row in ROWS.items() if row.peft
         for method in row.peft.races or instances(row)]


@pytest.mark.parametrize(("theirs_of", "method"), RACES)
def test_gradients_20_steps_of_adamw_and_the_merge_equal_pefts(theirs_of, method, gpt, tokens):
    """From the same numbers, on a PyTorch copy of the model: losses, logits, every parameter and the merged model."""
    pytest.importorskip("peft")
    import torch

    from tests.oracles.peft_twin import peft_twin
    tuned = learned(gpt(), method)
    theirs, pairs = peft_twin(theirs_of, tuned)
    assert_same_race(tuned, theirs, pairs, tokens)
    assert_close(tuned.merge()(tokens), theirs.merge_and_unload()(torch.as_tensor(tokens)).detach(), 1e-8)
